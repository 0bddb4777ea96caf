"""Curves of ours and the paper's, side by side or apart; what is expected is worked out from the points."""

from xml.etree import ElementTree

import pytest

from orchestrator.figures.drawing import to_svg
from orchestrator.figures.plots import curve_plot

OURS = {"A": [(0.0, 24.0), (0.5, 25.0)], "B": [(0.0, 23.0), (0.5, 24.0)]}
PAPERS = {"A: paper": [(0.0, 36.0), (0.5, 37.0)], "B: paper": [(0.0, 35.0), (0.5, 36.0)]}


def drawn(**how: bool) -> tuple[ElementTree.Element, list[list[float]]]:
    """The plot, and of each curve the heights of its points."""
    svg = ElementTree.fromstring(to_svg(curve_plot("AP", "alpha", OURS, "t", papers=PAPERS, **how)))
    lines = [line.attrib["points"].split() for line in svg.iter("polyline")]
    return svg, [[float(point.split(",")[1]) for point in line] for line in lines]


def test_on_one_data_set_all_curves_share_an_axis() -> None:
    svg, (ours, other, papers, _) = drawn()
    step = ours[0] - ours[1]  # 1 AP
    assert other[0] - ours[0] == pytest.approx(step, abs=0.2)
    assert ours[0] - papers[0] == pytest.approx(12 * step, abs=1.3)  # of tenths of a pixel, twelve times
    kinds = [(line.attrib.get("class"), "stroke-dasharray" in line.attrib) for line in svg.iter("polyline")]
    assert kinds == [(None, False), (None, True), ("paper", True), ("paper", True)]
    dashes = [line.attrib.get("stroke-dasharray") for line in svg.iter("polyline")]
    assert len(set(dashes)) == 4
    assert {"A", "B", "A: paper", "B: paper"} <= {text.text for text in svg.iter("text")}


def test_on_other_data_the_papers_curves_stand_below_ours_on_an_axis_of_their_own() -> None:
    svg, (*ours, above, below) = drawn(is_apart=True)
    assert max(max(ys) for ys in ours) < min(*above, *below)  # y grows downwards
    # both panels are filled by their own 2 AP, so that 36 is no higher than 24
    fill = [max(*one, *two) - min(*one, *two) for one, two in (ours, (above, below))]
    assert fill[0] > 100 and 60 < fill[1] < 84
    ticks = [float(text.text) for text in svg.iter("text") if text.attrib["text-anchor"] == "end" and text.text]
    assert {23.0, 24.0, 25.0} <= set(ticks) and {35.0, 36.0, 37.0} <= set(ticks)


def test_where_ours_lack_the_papers_take_their_place() -> None:
    nothing: dict[str, list[tuple[float, float]]] = {"A": [], "B": []}
    plot = curve_plot("AP", "alpha", nothing, "t", papers=PAPERS, is_apart=True)
    alone = curve_plot("AP", "alpha", nothing, "t", papers=PAPERS)
    assert to_svg(plot) == to_svg(alone) and to_svg(plot).count('<polyline class="paper"') == 2
