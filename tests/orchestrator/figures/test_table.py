"""One table in five formats, as a DataFrame, and in a notebook."""

import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.figures.page import FORMATS, html_page, render
from orchestrator.figures.table import (
    NOT_APPLICABLE,
    Cell,
    Column,
    Group,
    Table,
    show,
)
from orchestrator.figures.texts import width

TABLE = Table(
    title="Heads & tails",
    caption="Which is better?",
    columns=(Column("row", numeric=False), Column("AP_S"), Column("gain", signed=True), Column("epochs")),
    rows=(
        ("plain", 35.649, None, 12),
        ("with <b>|50%|</b>", Cell(36.0, spread=0.24, bold=True), 0.351, 12),
        ("広い", None, -0.04, 9),
    ),
    notes=("paper: COCO val2017, ours: shapes",),
    rules_before=(2,),
)


def test_text_is_aligned_by_what_a_terminal_shows() -> None:
    assert TABLE.to_text() == (
        "Heads & tails\n"
        "Which is better?\n"
        "\n"
        "row                      AP_S  gain  epochs\n"
        "─────────────────  ──────────  ────  ──────\n"
        "plain                    35.6     —      12\n"
        "with <b>|50%|</b>  36.0 ± 0.2  +0.4      12\n"
        "─────────────────  ──────────  ────  ──────\n"
        "広い                        —   0.0       9\n"
        "\n"
        "paper: COCO val2017, ours: shapes"
    )


def test_wide_and_combining_characters_count_as_a_terminal_counts_them() -> None:
    assert [width(text) for text in ("abc", "α", "広い", "e\u0301", "")] == [3, 1, 4, 1, 0]  # noqa: RUF001


def test_markdown_escapes_what_github_would_read_as_markup() -> None:
    assert TABLE.to_markdown() == (
        "**Heads & tails**\n"
        "\n"
        "Which is better?\n"
        "\n"
        "| row | AP\\_S | gain | epochs |\n"
        "|---|---:|---:|---:|\n"
        "| plain | 35.6 | — | 12 |\n"
        "| with \\<b\\>\\|50%\\|\\</b\\> | **36.0 ± 0.2** | +0.4 | 12 |\n"
        "| 広い | — | 0.0 | 9 |\n"
        "\n"
        "- paper: COCO val2017, ours: shapes"
    )


def test_latex_uses_booktabs_and_escapes_its_special_characters() -> None:
    assert TABLE.to_latex() == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{Heads \\& tails. Which is better?}\n"
        "\\begin{tabular}{lrrr}\n"
        "\\toprule\n"
        "row & AP\\_S & gain & epochs \\\\\n"
        "\\midrule\n"
        "plain & 35.6 & --- & 12 \\\\\n"
        "with \\textless{}b\\textgreater{}|50\\%|\\textless{}/b\\textgreater{}"
        " & \\textbf{36.0 $\\pm$ 0.2} & +0.4 & 12 \\\\\n"
        "\\midrule\n"
        "広い & --- & 0.0 & 9 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\par\\footnotesize paper: COCO val2017, ours: shapes.\n"
        "\\end{table}"
    )


def test_json_keeps_the_full_values() -> None:
    content = json.loads(TABLE.to_json())
    assert content["columns"] == ["row", "AP_S", "gain", "epochs"]
    assert content["rows"] == [
        {"row": "plain", "AP_S": 35.649, "gain": None, "epochs": 12},
        {"row": "with <b>|50%|</b>", "AP_S": 36.0, "AP_S std": 0.24, "gain": 0.351, "epochs": 12},
        {"row": "広い", "AP_S": None, "gain": -0.04, "epochs": 9},
    ]
    assert content["notes"] == ["paper: COCO val2017, ours: shapes"]


def test_a_dataframe_has_numbers_spreads_and_intervals_in_columns_of_their_own() -> None:
    frame = TABLE.to_pandas()
    assert list(frame.columns) == ["row", "AP_S", "AP_S std", "gain", "epochs"]
    assert [kind.kind for kind in frame.dtypes] == ["O", "f", "f", "f", "i"]
    assert frame["AP_S"].tolist()[:2] == [35.649, 36.0] and frame["AP_S"].isna().tolist() == [False, False, True]
    assert frame["AP_S std"].isna().tolist() == [True, False, True] and frame["epochs"].tolist() == [12, 12, 9]
    wide = WIDE.to_pandas()
    assert list(wide.columns)[-4:] == ["AP50", "gain", "gain low", "gain high"]
    assert wide.loc[0, ["gain", "gain low", "gain high"]].tolist() == [0.44, 0.12, 0.81]
    empty = Table(title="t", columns=(Column("a"), Column("b", numeric=False)), rows=((None, None),)).to_pandas()
    assert [kind.kind for kind in empty.dtypes] == ["f", "O"]


def test_a_notebook_shows_the_table_and_print_its_text() -> None:
    text = TABLE._repr_html_()
    page = Page(text)
    assert page.open == [] and page.cells[4] == "with <b>|50%|</b>" and page.links == []
    assert "<h3>Heads &amp; tails</h3>" in text and "<p>Which is better?</p>" in text and "<html" not in text
    assert "<li>paper: COCO val2017, ours: shapes</li>" in text
    assert str(TABLE) == TABLE.to_text()


def test_a_page_shows_in_grey_what_is_not_ours() -> None:
    row = (Cell("theirs", soft=True), Cell(35.3, soft=True), Cell(36.0))
    columns = (Column("row", numeric=False), Column("paper"), Column("ours"))
    text = Table(title="t", columns=columns, rows=(row,)).to_html()
    assert '<td class="soft">theirs</td><td class="number soft">35.3</td><td class="number">36.0</td>' in text
    assert "td.soft { color: var(--soft); }" in html_page("t", [])


class Page(HTMLParser):
    """Collects the cells of a page and everything that it would load, and checks that its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "style", "onload")]
        if tag != "meta":
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_the_page_holds_every_cell_and_loads_nothing() -> None:
    text = html_page("Results <2>", [TABLE, TABLE])
    page = Page(text)
    assert page.open == []
    assert page.cells == 2 * [
        "plain",
        "35.6",
        "—",
        "12",
        "with <b>|50%|</b>",
        "36.0 ± 0.2",
        "+0.4",
        "12",
        "広い",
        "—",
        "0.0",
        "9",
    ]
    assert page.links == ["#table-0", "#table-1"]  # the table of contents
    assert "url(" not in text and "@import" not in text and "<script" not in text
    assert "<title>Results &lt;2&gt;</title>" in text
    assert '<meta name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<strong>36.0 ± 0.2</strong>") == 2


@pytest.mark.parametrize(
    ("value", "column", "shown"),
    [
        (None, Column("c"), "—"),
        (-0.04, Column("c"), "0.0"),
        (-0.06, Column("c", signed=True), "-0.1"),
        (3, Column("c", signed=True), "+3"),
        (0.12345, Column("c", digits=3), "0.123"),
        ("text", Column("c"), "text"),
    ],
)
def test_a_value_is_shown_as_its_column_says(value: str | float | None, column: Column, shown: str) -> None:
    assert show(Cell(value), column) == shown


def test_a_number_that_cannot_exist_is_shown_as_such_in_every_form_and_null_in_json() -> None:
    table = Table(title="t", columns=(Column("APs"),), rows=((Cell(None, absent=NOT_APPLICABLE),), (None,)))
    assert [render(table, form).count("n/a") for form in FORMATS] == [1, 1, 1, 1, 0]
    assert [render(table, form).count(dash) for form, dash in zip(FORMATS, "——-—", strict=False)] == [1, 1, 3, 1]
    assert json.loads(table.to_json())["rows"] == [{"APs": None}, {"APs": None}]


def test_every_format_is_rendered_and_another_is_refused() -> None:
    assert [bool(render(TABLE, form)) for form in FORMATS] == [True] * 5
    assert render(TABLE, "html") == html_page(TABLE.title, [TABLE])
    with pytest.raises(UserError, match="format is 'pdf', expected one of: text, markdown, latex, html, json"):
        render(TABLE, "pdf")


def test_a_table_whose_rows_do_not_fit_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 of table 't' has 1 cells, expected 2"):
        Table(title="t", columns=(Column("a"), Column("b")), rows=((1,),))
    with pytest.raises(ValueError, match="expected different names"):
        Table(title="t", columns=(Column("a"), Column("a")), rows=())
    assert Table(title="t", columns=(Column("a"),), rows=()).to_text() == "t\n\na\n─"


WIDE = Table(
    title="Wide",
    columns=(
        Column("row", numeric=False),
        Column("AP"),
        Column("AP, paper", under="AP", detail="paper"),
        Column("AP, Δ", signed=True, under="AP", detail="difference"),
        Column("AP50"),
        Column("gain", signed=True),
    ),
    rows=(
        ("ours", Cell(36.0, spread=0.24), 35.5, 0.5, 55.0, Cell(0.44, interval=(0.12, 0.81), mark="*")),
        ("cited", None, 37.0, None, None, None),
    ),
    rules_before=(1,),
)


def test_text_that_is_too_wide_has_spreads_and_details_on_lines_of_their_own() -> None:
    assert WIDE.to_text(50) == (
        "Wide\n"
        "\n"
        "row                  AP  AP50                gain\n"
        "────────────────  ─────  ────  ──────────────────\n"
        "ours               36.0  55.0  +0.4 [+0.1, +0.8]*\n"
        "  std over seeds  ± 0.2\n"
        "  paper            35.5\n"
        "  difference       +0.5\n"
        "────────────────  ─────  ────  ──────────────────\n"
        "cited                 —     —                   —\n"
        "  paper            37.0"
    )
    assert "ours   36.0 ± 0.2       35.5   +0.5  55.0  +0.4 [+0.1, +0.8]*" in WIDE.to_text()


GROUPED = Table(
    title="Grouped",
    columns=(
        Column("row", numeric=False),
        Column("AP"),
        Column("AP, paper", under="AP", detail="the paper", is_soft=True),
        Column("gain", signed=True),
    ),
    rows=(("ours", Cell(36.26, bold=True), 35.5, 0.7), ("quoted", None, Cell(37.0, mark="†"), None)),
    groups=(Group(0, "Run"), Group(1, "Quoted", "the paper")),
)


def test_rows_of_a_group_show_a_detail_in_the_place_of_numbers_of_their_own() -> None:
    assert GROUPED.to_text() == (
        "Grouped\n"
        "\n"
        "row             AP  gain\n"
        "───────────  ─────  ────\n"
        "Run\n"
        "ours          36.3  +0.7\n"
        "  the paper   35.5\n"
        "───────────  ─────  ────\n"
        "Quoted\n"
        "quoted       37.0†"
    )
    assert GROUPED.to_markdown().splitlines()[4:] == [
        "| *Run* |  |  |",
        "| ours | **36.3** | +0.7 |",
        "| *the paper* | *35.5* |  |",
        "| *Quoted* |  |  |",
        "| *quoted* | *37.0†* |  |",
    ]
    assert GROUPED.to_latex().splitlines()[7:-3] == [
        "\\multicolumn{3}{l}{\\emph{Run}} \\\\",
        "ours & \\textbf{36.3} & +0.7 \\\\",
        "\\quad \\textcolor{gray}{the paper} & \\textcolor{gray}{35.5} &  \\\\",
        "\\midrule",
        "\\multicolumn{3}{l}{\\emph{Quoted}} \\\\",
        "\\textcolor{gray}{quoted} & \\textcolor{gray}{37.0\\dag{}} &  \\\\",
    ]
    page = render(GROUPED, "html")
    assert Page(page).open == [] and page.count('<tr class="heading') == 2 and page.count('<tr class="detail">') == 1
    assert '<td class="number soft">37.0†</td>' in page and '<td class="number"><strong>36.3</strong></td>' in page
    # programs get every number in its own column
    assert [row["AP, paper"] for row in json.loads(GROUPED.to_json())["rows"]] == [35.5, 37.0]


def test_people_are_shown_another_arrangement_and_programs_the_rows() -> None:
    both = replace(TABLE, compact=GROUPED)
    shown = (Table.to_text, Table.to_markdown, Table.to_latex, Table.to_html)
    assert [form(both) for form in shown] == [form(GROUPED) for form in shown]
    assert both.to_json() == TABLE.to_json() and both.to_pandas().equals(TABLE.to_pandas())


def test_a_cell_may_carry_fewer_digits_than_its_column() -> None:
    assert show(Cell(34.8, spread=4.3, digits=0), Column("AP")) == "35 ± 4"


def test_an_interval_is_written_in_every_format() -> None:
    assert "+0.4 [+0.1, +0.8]*" in WIDE.to_text() and "+0.4 \\[+0.1, +0.8\\]\\*" in WIDE.to_markdown()
    assert "+0.4 {[}+0.1, +0.8]*" in WIDE.to_latex() and '<td class="number">+0.4 [+0.1, +0.8]*</td>' in render(
        WIDE, "html"
    )
    row = json.loads(WIDE.to_json())["rows"][0]
    assert (row["gain"], row["gain low"], row["gain high"]) == (0.44, 0.12, 0.81)


def test_what_would_round_to_the_zero_that_its_interval_excludes_has_more_digits() -> None:
    column = Column("gain", signed=True)
    assert show(Cell(0.34, interval=(0.014, 0.66), mark="*"), column) == "+0.3 [+0.01, +0.7]*"
    assert show(Cell(-0.34, interval=(-0.66, -0.04), mark="*"), column) == "-0.3 [-0.7, -0.04]*"
    # the value as well, or it would stand outside of its interval
    assert show(Cell(-0.0245, interval=(-0.04, -0.011), mark="*"), column) == "-0.02 [-0.04, -0.01]*"
    assert show(Cell(0.34, interval=(-0.014, 0.66)), column) == "+0.3 [0.0, +0.7]"


def test_figures_stand_below_their_table() -> None:
    text = html_page("Results", [TABLE, WIDE], ["<svg></svg>"])
    Page(text)
    assert text.count("<figure>") == 1 and text.index("<svg>") < text.index('id="table-1"')


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex is installed")
def test_latex_compiles_with_booktabs(tmp_path: Path) -> None:
    odd = Table(
        title="Odd: 100% & $5 #1_a {b} ~ ^ \\ <i>",
        columns=(Column("row", numeric=False), Column("AP, Δ", signed=True)),
        rows=(("[0.5, 1] cls^0.6 * obj^0.4", Cell(0.4, spread=0.1)), ("α × β − 1 — |x|", None)),  # noqa: RUF001
    )
    tables = "\n".join(table.to_latex() for table in (WIDE, GROUPED, odd))
    packages = r"\documentclass{article}\usepackage{booktabs}\usepackage{xcolor}"
    (tmp_path / "tables.tex").write_text(packages + r"\begin{document}" + tables + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (tmp_path / "tables.pdf").exists(), done.stdout[-2000:]


def test_wrapped_text_breaks_between_words_and_details_stand_below_their_own_column() -> None:
    table = Table(
        title="Claims",
        columns=(
            Column("claim", numeric=False, wrap=12),
            Column("verdict", numeric=False, wrap=11),
            Column("why", numeric=False, wrap=11, under="verdict"),
        ),
        rows=(("Faster R-CNN is far below", "supported", "+0.7 against +0.5"), ("short", "open", None)),
        notes=("a note " * 20,),
    )
    text = table.to_text()
    assert text.splitlines()[2:9] == [
        "claim         verdict",
        "────────────  ─────────",
        "Faster R-CNN  supported",
        "is far below  +0.7",
        "              against",
        "              +0.5",
        "",
    ]
    assert max(map(len, text.splitlines())) <= 120
    assert json.loads(table.to_json())["rows"][0]["why"] == "+0.7 against +0.5"
    page = table.to_html()
    assert '<td class="words">+0.7 against +0.5</td>' in page
