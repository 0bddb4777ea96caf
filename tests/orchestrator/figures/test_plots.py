"""Curves of ours and the paper's, and plots of classes; what is expected is worked out from the points."""

from xml.etree import ElementTree

import pytest

from orchestrator.figures.drawing import Text, to_svg
from orchestrator.figures.plots import (
    ClassMeasurement,
    Forest,
    Measurement,
    class_dots,
    curve_plot,
    dot_plot,
    forest_axis,
    forest_row,
    precision_recall,
    row_key,
    ticks,
)

OURS = {"A": [(0.0, 24.0), (0.5, 25.0)], "B": [(0.0, 23.0), (0.5, 24.0)]}
PAPERS = {"A: paper": [(0.0, 36.0), (0.5, 37.0)], "B: paper": [(0.0, 35.0), (0.5, 36.0)]}


def drawn(*, is_apart: bool = False) -> tuple[ElementTree.Element, list[list[float]]]:
    """The plot, and of each curve the heights of its points."""
    svg = ElementTree.fromstring(to_svg(curve_plot("AP", "alpha", OURS, "t", papers=PAPERS, is_apart=is_apart)))
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


@pytest.mark.parametrize(
    ("marked", "anchors"),
    [
        ({"fitted": 0.25}, ["start"]),
        ({"fitted": 0.25, "paper's": 0.2}, ["start", "end"]),  # away from each other
        ({"fitted": 0.5, "paper's": 0.0}, ["end", "start"]),  # and never over an edge
    ],
)
def test_a_value_that_is_marked_has_a_line_and_its_words_stand_clear(
    marked: dict[str, float], anchors: list[str]
) -> None:
    plot = curve_plot("AP", "alpha", {"": [(0.0, 24.0), (0.5, 25.0)]}, "t", marked=marked)
    svg = ElementTree.fromstring(to_svg(plot))
    left, right = (
        float(point.split(",")[0]) for line in svg.iter("polyline") for point in line.attrib["points"].split()
    )
    lines = [line for line in svg.iter("line") if line.attrib["class"] == "reference"]
    words = {text.text: text for text in svg.iter("text")}
    for (said, value), line, anchor in zip(marked.items(), lines, anchors, strict=True):
        x = left + (right - left) * value / 0.5
        assert float(line.attrib["x1"]) == float(line.attrib["x2"]) == pytest.approx(x, abs=0.2)
        assert words[said].attrib["text-anchor"] == anchor
    heights = {float(words[said].attrib["y"]) for said in marked}
    assert len(heights) == len(marked)
    highest = min(
        float(point.split(",")[1]) for line in svg.iter("polyline") for point in line.attrib["points"].split()
    )
    assert max(heights) < highest  # y grows downwards: no word on a curve


def test_precision_is_drawn_over_recall_at_both_ious_and_needless_points_are_left_out() -> None:
    step = [1.0] * 50 + [0.25] * 51  # precision 1 up to recall 0.49
    wavy = [1 - n / 100 + (0.002 if n % 2 else 0.0) for n in range(101)]  # a quarter of a pixel off a line
    one = ClassMeasurement(name="cat", said="", values=(), curves=[(step, [0.0] * 101), (wavy, wavy)])
    svg = ElementTree.fromstring(to_svg(precision_recall(one)))
    assert svg.attrib["aria-label"] == "Precision by recall: cat"
    lines = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in svg.iter("polyline")
    ]
    first, waves, flat, _ = lines
    (left, top), (right, bottom) = first[0], flat[-1]
    wide, tall = first[-1][0] - left, flat[0][1] - top
    assert right > first[-1][0] and bottom == pytest.approx(top + tall, abs=0.1)
    corners = [(left, top), (left + 0.49 * wide, top), (left + 0.5 * wide, top + 0.75 * tall)]
    ends = [*corners, (left + wide, top + 0.75 * tall)]
    assert [value for point in first for value in point] == pytest.approx([v for end in ends for v in end], abs=0.1)
    assert len(flat) == 2 and len(waves) <= 3


def test_classes_share_an_axis_and_the_reference_is_a_circle() -> None:
    classes = [
        ClassMeasurement(name=name, said="", values=[Measurement(label="r", value=value, interval=ends), lost])
        for name, value, ends in (("cat", 10.0, (5.0, 15.0)), ("dog", 20.0, (15.0, 25.0)))
        for lost in [Measurement(label="s", value=None)]
    ]
    svg = ElementTree.fromstring(to_svg(class_dots(classes, ["A", "B"], 0, "t")))
    at = [float(dot.attrib["cx"]) for dot in svg.iter("circle")]
    assert [dot.attrib.get("class") for dot in svg.iter("circle")] == ["hollow", "hollow"]
    spans = [
        (float(line.attrib["x1"]), float(line.attrib["x2"])) for line in svg.iter("line") if "class" not in line.attrib
    ]
    assert spans[0][1] == spans[1][0] and at == pytest.approx([sum(ends) / 2 for ends in spans], abs=0.1)
    keys = [text.text for text in svg.iter("text")]
    assert keys.count("A") == keys.count("B") == 2
    key = ElementTree.fromstring(to_svg(row_key({"A": "one", "B": "two"}, "t")))
    assert [text.text for text in key.iter("text")] == ["A", "one", "B", "two"]


def test_differences_that_are_all_zero_stand_on_the_line_of_zero() -> None:
    """As where two settings give the same detections, or nothing is found yet."""
    forest = Forest(low=0.0, high=0.0)
    svg = ElementTree.fromstring(to_svg(forest_row(forest, 0.0, (0.0, 0.0), is_reference=False)))
    (dot,), lines = svg.iter("circle"), list(svg.iter("line"))
    assert {float(line.attrib["x1"]) for line in lines} == {float(dot.attrib["cx"])}
    assert "0" in [text.text for text in ElementTree.fromstring(to_svg(forest_axis(forest, "AP"))).iter("text")]


def test_an_end_beside_the_zero_that_it_excludes_is_not_said_to_be_zero() -> None:
    drawn = forest_row(Forest(low=0.0, high=1.0), 0.3, (0.04, 0.7), is_reference=False)
    assert drawn.title == "+0.3, 95 % interval +0.04 to +0.7"


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (0.0, 5.5, [0, 1, 2, 3, 4, 5]),
        (-0.5, 3.0, [0, 1, 2, 3]),
        (0.1, 0.30000000000000004, [0.1, 0.15, 0.2, 0.25, 0.3]),
    ],
)
def test_an_axis_is_labelled_at_its_ends_where_these_are_round(low: float, high: float, numbers: list[float]) -> None:
    assert ticks(low, high) == numbers


def test_a_dot_plot_does_not_say_of_what_its_intervals_are() -> None:
    """Of one seed they are by image, of several crossed with the seeds; the notes of the table tell."""
    heading = dot_plot("AP", [Measurement(label="a", value=1.0, interval=(0.0, 2.0))], None, "t").marks[0]
    assert isinstance(heading, Text) and heading.text == "AP, and its 95 % interval"
