"""Pages with results: the forest plot in the table, and how they look on a wide screen, on a phone and on paper."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.figures.page import captioned, html_page
from orchestrator.figures.plots import FOREST_WIDTH
from orchestrator.figures.table import Cell, Column, Group, Table, Value
from tests.browser import CHROMIUM, Browser, chromium

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "ARs", "ARm", "ARl")
GAINS = (Cell(None, absent="reference"), Cell(0.5, interval=(-0.5, 1.5)), Cell(1.0, interval=(0.5, 1.5), mark="*"))
LABELS = ("RetinaNet", "IoU-aware Net, alpha 0.5", "RetinaNet-Conf, alpha 0.4")


def results(gains: tuple[Cell, ...] = GAINS) -> Table:
    """Ten metrics, the paper's below each row, and the difference to the first row."""
    columns = [Column("row", numeric=False)]
    for metric in METRICS:
        columns += [Column(metric), Column(f"{metric}, paper", under=metric, detail="COCO 2017, the paper")]
    columns.append(Column("AP over reference", signed=True, has_forest=True))
    rows: list[tuple[Cell | Value, ...]]
    rows = [(label, *(20 * [35.3]), gain) for label, gain in zip(LABELS, gains, strict=True)]
    quoted: tuple[Cell | Value, ...] = ("Theirs", *(10 * [None, 40.0]), None)
    groups = (Group(3, "Cited by the paper", "COCO 2017, the paper"),)
    return Table(title="Heads", columns=tuple(columns), rows=(*rows, quoted), groups=groups)


def forests(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(one) for one in re.findall(r'<td class="forest"[^>]*>(<svg.*?</svg>)', page)]


def test_each_row_has_its_interval_on_one_axis_with_a_line_at_zero() -> None:
    reference, unsure, sure, quoted, axis = forests(html_page("Heads", [results()]))
    zeros = {one.find("line[@class='reference']").attrib["x1"] for one in (reference, unsure, sure, quoted)}  # type: ignore[union-attr]
    ((zero,),) = (tuple(map(float, zeros)),)
    low, high = (float(unsure[1].attrib[end]) for end in ("x1", "x2"))
    assert 0 <= low < zero < high <= FOREST_WIDTH
    one = (high - low) / 2  # of -0.5 to 1.5
    assert zero - low == pytest.approx(one / 2, abs=0.2)
    left, right = (float(sure[1].attrib[end]) for end in ("x1", "x2"))
    assert (left - zero, right - zero) == pytest.approx((one / 2, 1.5 * one), abs=0.2)
    (dot,) = sure.iter("circle")
    assert float(dot.attrib["cx"]) == pytest.approx(zero + one, abs=0.2) and "class" not in dot.attrib
    # the reference is a circle at 0, and a word; a cited line has no difference to show
    (circle,) = reference.iter("circle")
    assert float(circle.attrib["cx"]) == zero and circle.attrib["class"] == "hollow" and len(quoted) == 1
    ticks = {text.text: float(text.attrib["x"]) for text in axis.iter("text")}
    assert ticks["0"] == zero and ticks["+1"] == pytest.approx(zero + one, abs=0.2)
    said = "+1.0, 95 % interval +0.5 to +1.5"
    assert (sure.attrib["aria-label"], reference.attrib["aria-label"]) == (said, "the reference")


def test_the_plot_of_a_row_stands_beside_all_its_lines() -> None:
    page = html_page("Heads", [results()])
    assert re.findall(r'<td class="forest" rowspan="(\d)">', page) == ["2", "2", "2", "1"]
    assert ">reference</td>" in page and page.count("<tfoot") == 1


def test_without_an_interval_there_is_no_plot() -> None:
    page = html_page("Heads", [results((Cell(None, absent="reference"), Cell(0.5), Cell(1.0)))])
    assert forests(page) == [] and "<tfoot" not in page and 'class="forest"' not in page


def test_a_notebook_which_has_no_style_of_ours_gets_no_plot() -> None:
    assert "<svg" not in results().to_html() and "+1.0 [+0.5, +1.5]*" in results().to_html()


def test_a_page_says_first_what_was_found_and_last_what_to_cite() -> None:
    page = html_page("Heads", [results()], found=["A is <above> B."], facts=["shapes", "seed 0"], cites="@article{x}")
    places = [page.index(part) for part in ("<h1>", "A is &lt;above&gt; B.", "shapes · seed 0", "<h2>", "@article{x}")]
    assert places == sorted(places)
    assert "<footer" not in html_page("Heads", [results()]) and 'class="facts"' not in html_page("Heads", [results()])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with chromium() as running:
        yield running


SEEN = """(() => {
  const seen = (query) => [...document.querySelectorAll(query)].filter((one) => one.getClientRects().length).length;
  const root = document.documentElement;
  const cut = [...document.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth + 1).length;
  return [seen("td.forest"), seen(".below-forest"), seen(".lab"), root.scrollWidth > root.clientWidth, cut];
})()"""


@pytest.mark.slow  # starts a browser
@pytest.mark.parametrize(
    ("size", "media", "seen"),
    [
        ((1280, 900), "", [5, 0, 1, False, 0]),  # three rows, the cited one, the axis
        ((390, 844), "", [0, 1, 1, False, 1]),  # a phone scrolls the table within the page, and never the page
        ((718, 1000), "print", [0, 1, 0, False, 0]),  # A4 less its margins: no table is cut, and no lab
    ],
)
def test_ten_metrics_are_readable_on_a_screen_a_phone_and_paper(
    browser: Browser, tmp_path: Path, size: tuple[int, int], media: str, seen: list[object]
) -> None:
    figure = captioned("<svg viewBox='0 0 360 40'></svg>", "", "below-forest")
    page = html_page("Heads", [results()], [figure]).replace("</main>", '<section class="lab">x</section></main>')
    (tmp_path / "index.html").write_text(page)
    url = (tmp_path / "index.html").as_uri()
    assert browser.look(url, "document.readyState === 'complete'", then=SEEN, size=size, media=media) == seen
