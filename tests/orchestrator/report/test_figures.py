"""Figures are well-formed SVG, put each number where its axis says, and are left out where there is nothing to draw."""

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from model.config import InferenceConfig, ScheduleConfig, TrainConfig
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.rows import Row
from orchestrator.figures.drawing import WIDTH, to_svg
from orchestrator.report.figures import figures, row_dots, setting_curves
from orchestrator.report.results import RowResult


def measured(row: Row, ap: float | None, half: float | None = None) -> RowResult:
    """A row whose 95 % interval reaches `half` to both sides."""
    numbers: Mapping[int, Mapping[str, float]] = {} if ap is None else {0: {"AP": ap, "AP50": 2 * ap, "AP75": ap}}
    samples = {} if half is None else {0: np.tile(np.linspace(-half, half, 1001) / 0.95, (3, 1))}
    return RowResult(row=row, by_seed=numbers, resampled=samples, state="")


def experiment(rows: list[RowResult], reference: str | None = None) -> Experiment:
    title = 'Heads & "tails" <1>'
    all_rows = tuple(one.row for one in rows)
    return Experiment(name="t", suite="s", title=title, rows=all_rows, reference=reference, path=Path("t.yaml"))


def test_each_row_has_a_dot_at_its_value_and_a_line_as_long_as_its_interval() -> None:
    rows = [measured(Row(label="a"), 30.0, 1.0), measured(Row(label="<b>"), 34.0), measured(Row(label="c"), None)]
    (drawing,) = row_dots(experiment(rows, reference="a"), rows)
    svg = ElementTree.fromstring(to_svg(drawing))
    first, second = (float(circle.attrib["cx"]) for circle in svg.iter("circle"))
    reference, interval, _ = svg.iter("line")
    assert float(reference.attrib["x1"]) == first
    ends = [float(interval.attrib[name]) for name in ("x1", "x2")]
    # 1 AP to either side, where 4 AP lie between the dots
    assert [end - first for end in ends] == pytest.approx([-(second - first) / 4, (second - first) / 4], abs=0.2)
    assert ends[0] >= 0 and second <= WIDTH
    texts = [text.text for text in svg.iter("text")]
    assert {"a", "<b>", "c", "30.0", "34.0", "not run"} <= set(texts)
    ticks = [float(text.text or "") for text in list(svg.iter("text"))[7:]]
    assert len(ticks) >= 3 and ticks == sorted(ticks)


def test_nothing_measured_draws_nothing() -> None:
    rows = [measured(Row(label="a"), None)]
    assert figures(experiment(rows), rows) == ""


def exponents(rate: float, *values: float) -> list[RowResult]:
    """Rows of one training, whose learning rate tells it apart."""
    train = TrainConfig(schedule=ScheduleConfig(learning_rate=rate))
    rows = [
        Row(label=f"rate {rate}, at {value}", train=train, inference=InferenceConfig(confidence_exponent=value))
        for value in values
    ]
    return [measured(row, 30.0 + place) for place, row in enumerate(rows)]


def test_a_table_that_varies_one_number_has_a_curve_for_each_metric_and_training() -> None:
    rows = [*exponents(0.01, 0.0, 0.2, 0.4), *exponents(0.02, 0.4, 0.0, 0.2)]
    plots = [ElementTree.fromstring(to_svg(plot)) for plot in setting_curves(experiment(rows), rows)]
    assert [plot.attrib["aria-label"].split()[0] for plot in plots] == ["AP", "AP50", "AP75"]
    rising, other = (line.attrib["points"] for line in plots[0].iter("polyline"))
    xs, ys = zip(*(map(float, point.split(",")) for point in rising.split()), strict=True)
    assert list(xs) == sorted(xs) and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert list(ys) == sorted(ys, reverse=True)  # up is less
    assert [float(point.split(",")[0]) for point in other.split()] == list(xs)  # in the order of the exponent
    assert re.search("rate 0.01, at<", to_svg(setting_curves(experiment(rows), rows)[0]))


def test_a_table_that_varies_no_single_number_has_no_curves() -> None:
    few = exponents(0.01, 0.0, 0.4)
    assert setting_curves(experiment(few), few) == []
    two = [
        measured(Row(label=str(n), inference=InferenceConfig(confidence_exponent=0.1 * n, nms_iou=0.1 * n)), 30.0)
        for n in (1, 2, 3)
    ]
    assert setting_curves(experiment(two), two) == []
    words = [measured(Row(label=name, inference=InferenceConfig(top_k_of=name)), 30.0) for name in ("pairs", "anchors")]
    assert setting_curves(experiment(words), words) == []
