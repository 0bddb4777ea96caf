"""The figures of misalignment: what they draw is what was counted."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from model.evaluation.calibration.errors import BINS as SCORE_BINS
from model.evaluation.calibration.errors import Reliability
from model.evaluation.misalignment import BINS, Misalignment
from orchestrator.figures import charts
from tests.misalignments import misalignment


def counted(**columns: object) -> Misalignment:
    return replace(misalignment((2,)), **columns)  # type: ignore[arg-type]


def texts(figure: Figure) -> list[str]:
    axes = figure.axes
    said = [part for ax in axes for part in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())]
    return [text for text in [*said, *(text.get_text() for ax in axes for text in ax.texts)] if text]


def image(ax: Axes) -> "np.ma.MaskedArray[tuple[int, ...], np.dtype[np.int64]]":
    return np.ma.asarray(ax.images[0].get_array())


def binned(**of_bin: tuple[int, float, float]) -> Reliability:
    """(detections, mean u, precision) by the number of the bin, as in `b17`."""
    counts, ious, precision = np.zeros(SCORE_BINS, np.int64), *np.full((2, SCORE_BINS), np.nan)
    for name, (number, iou, share) in of_bin.items():
        counts[int(name[1:])], ious[int(name[1:])], precision[int(name[1:])] = number, iou, share
    return Reliability(counts=counts, scores=(np.arange(SCORE_BINS) + 0.5) / SCORE_BINS, ious=ious, precision=precision)


def test_a_reliability_diagram_shows_mean_iou_and_precision_and_how_many_there_are() -> None:
    bins = {"first": binned(b2=(3000, 0.1, 0.125), b20=(4, 0.75, 1.0)), "second": binned()}
    figure = charts.reliability_diagrams(bins, {"first": {"LaECE": 12.34, "D-ECE": 5.0}, "second": {"LaECE": None}})
    above, other, below, beside = figure.axes
    bars = [bar for bar in above.patches if isinstance(bar, Rectangle) and np.isfinite(bar.get_height())]
    assert [(round(bar.get_x(), 9), bar.get_height()) for bar in bars] == [(0.08, 0.1), (0.8, 0.75)]
    points = np.asarray(above.lines[0].get_xydata())
    assert points[np.isfinite(points[:, 1])] == pytest.approx(np.array([[0.1, 0.125], [0.82, 1.0]]))
    counts = {round(bar.get_x(), 2): bar.get_height() for bar in below.patches if isinstance(bar, Rectangle)}
    assert {score: number for score, number in counts.items() if number} == {0.08: 3000, 0.8: 4}
    assert np.asarray(above.lines[1].get_xydata()).tolist() == [[0, 0], [1, 1]]
    assert (above.get_title(), other.get_title()) == ("first\nLaECE 12.3  D-ECE 5.0", "second\nLaECE n/a  D-ECE n/a")
    assert below.get_yscale() == "log" and below.get_ylim() == beside.get_ylim()


def test_figure_1_shows_each_cell_of_scores_and_ious_where_it_is() -> None:
    before, after = np.zeros((2, BINS, BINS), np.int64)
    before[10, 40], after[10, 40] = 700, 3  # a score of 0.2 to 0.22, an IoU of 0.8 to 0.82
    heads = {"first": counted(density_before=before, density_after=after), "second": misalignment((2,))}
    figure = charts.score_against_iou(heads)
    above, _, below, _ = figure.axes[:4]
    for ax, number in ((above, 700), (below, 3)):
        assert image(ax).count() == 1 and image(ax)[10, 40] == number
        left, right, bottom, top = ax.images[0].get_extent()
        assert (left, right, bottom, top, ax.images[0].origin) == (0, 1, 0, 1, "lower")
    means = above.lines[1].get_xydata()
    assert np.isfinite(np.asarray(means)[:, 1]).nonzero()[0].tolist() == [40]
    assert np.asarray(means)[40].tolist() == pytest.approx([0.81, 0.21])
    assert not np.isfinite(np.asarray(below.lines[1].get_xydata())[:, 1]).any()  # three boxes give no mean
    assert {"fused score", "IoU with the object", "boxes in a cell"} <= set(texts(figure))
    assert above.get_title() == "first\nbefore NMS: 700 on objects"


def test_all_panels_of_figure_1_share_one_scale_of_colours() -> None:
    figure = charts.score_against_iou({"first": misalignment(), "second": misalignment()})
    norms = [(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in figure.axes[:4]]
    assert norms == [(1, BINS * BINS - 1)] * 4


def test_figure_2_shows_the_share_of_each_tenth_above_a_half() -> None:
    scores = np.array([[900, 60, 30, 20, 10, 10], [0, 40, 10, 0, 0, 0]], np.int32)  # 100, 40, 20, 10, 10 above 0.5, ...
    one = counted(scores_before=scores, num_before=np.array([950, 50], np.int32))
    figure = charts.proportions({"only": one})
    bars = [bar for bar in figure.axes[0].patches if isinstance(bar, Rectangle) and bar.get_y() < 0.5]
    assert [bar.get_width() for bar in bars] == [60, 20, 10, 0, 10]
    assert [bar.get_x() for bar in bars] == [0, 60, 80, 90, 90]
    assert "100 of 1,000" in texts(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["only\nbefore NMS", "only\nafter NMS"]


def test_figure_2_shows_the_shares_of_each_image_and_the_papers_with_marks_of_their_own() -> None:
    ours = charts.Shares(images=("42", "57"), before=(10.0, 4.0), after=(5.0, float("nan")))
    papers = charts.Shares(images=("Image1",), before=(40.0,), after=(20.5,))
    figure = charts.shares({one: {"head": ours, "paper": papers} for one in ("IoU", "score")}, "paper")
    assert len(figure.axes) == 2
    ax = figure.axes[0]
    marks: dict[str, list[list[list[float]]]] = {"o": [], "D": []}
    for line in ax.lines:
        marks[str(line.get_marker())].append(np.asarray(line.get_xydata()).tolist())
    assert marks["o"][0] == [[0, 10], [1, 4]] and marks["o"][1][0] == [0, 5] and np.isnan(marks["o"][1][1][1])
    assert marks["D"] == [[[3.5, 40]], [[3.5, 20.5]]]
    assert {"head\n-5.0 points on average", "paper\n-19.5 points on average"} <= set(texts(figure))
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["42", "57", "Image1"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["before NMS", "after NMS", "diamonds: paper"]
    many = charts.Shares(images=[str(k) for k in range(80)], before=[1.0] * 80, after=[2.0] * 80)
    assert not charts.shares({"IoU": {"head": many}}, "paper").axes[0].get_xticklabels()


def test_figure_4_shows_the_fused_scores_of_each_exponent() -> None:
    figure = charts.fused_scores((0.4,))
    product, power = figure.axes[:2]
    assert product.get_xlabel() == power.get_xlabel() == "class score p"
    assert product.get_ylabel() == "object confidence c"

    def level_on_the_diagonal(ax: Axes, level: float) -> float:
        lines = next(one for one in ax.collections if np.all(one.get_linewidth() == 0.6))
        points = np.asarray(lines.get_paths()[round(level * 10) - 1].vertices)
        nearest = points[np.abs(points[:, 0] - points[:, 1]).argmin()]
        return float(nearest.mean())

    assert level_on_the_diagonal(product, 0.5) == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert level_on_the_diagonal(power, 0.5) == pytest.approx(0.5, abs=0.01)  # p^0.6 p^0.4


def test_figure_5_marks_the_logit_that_cross_entropy_asks_for() -> None:
    curves, losses = charts.sigmoid((0.9,)).axes
    curve = np.asarray(curves.lines[0].get_xydata())
    assert curve[len(curve) // 2].tolist() == [0.0, 0.5]
    marked = np.asarray(curves.lines[-1].get_xydata())[0]
    assert marked.tolist() == pytest.approx([2.1972, 0.9], abs=1e-4)  # log 9
    loss = np.asarray(losses.lines[0].get_xydata())
    assert loss[loss[:, 1].argmin(), 0] == pytest.approx(2.1972, abs=0.05)
    assert np.asarray(losses.lines[1].get_xydata())[0, 1] <= loss[:, 1].min()


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        files = charts.save(charts.proportions({"only": misalignment()}), folder, "figure2")
        assert [file.name for file in files] == ["figure2.png", "figure2.svg"]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]


def test_a_png_has_the_pixels_that_savefig_draws(tmp_path: Path) -> None:
    for name, draw in (("figure1", charts.score_against_iou), ("figure2", charts.proportions)):
        (file,) = charts.save(draw({"only": misalignment()}), tmp_path, name, ("png",))
        with matplotlib.rc_context(charts.STYLE):
            draw({"only": misalignment()}).savefig(tmp_path / "expected.png", dpi=charts.DPI)
        with Image.open(file) as ours, Image.open(tmp_path / "expected.png") as expected:
            assert np.array_equal(np.asarray(ours), np.asarray(expected))


def test_figures_of_nothing_are_drawn(tmp_path: Path) -> None:
    nothing = misalignment(())
    empty = replace(nothing, density_before=np.zeros((BINS, BINS), np.int64), density_after=nothing.density_after * 0)
    (file,) = charts.save(charts.reliability_diagrams({"only": binned()}, {"only": {}}), tmp_path, "r", ("png",))
    assert file.stat().st_size > 1000
    for name, draw in (("figure1", charts.score_against_iou), ("figure2", charts.proportions)):
        (file,) = charts.save(draw({"only": empty}), tmp_path, name, ("png",))
        assert file.stat().st_size > 1000


def test_a_label_is_no_formula(tmp_path: Path) -> None:
    label = r"costs $\frac{1$ or x^2"
    counts = {label: misalignment(), "other": misalignment()}
    ours = charts.Shares(images=("42",), before=(10.0,), after=(5.0,))
    for figure in (
        charts.reliability_diagrams({label: binned(), "other": binned()}, {label: {}, "other": {}}),
        charts.score_against_iou(counts),
        charts.proportions(counts),
        charts.shares({"IoU": {label: ours}}, ""),
    ):
        _, drawn = charts.save(figure, tmp_path, "figure")  # matplotlib reads formulas when it draws
        assert label in drawn.read_text()
