"""Figures are well-formed SVG, put each number where its axis says, and are left out where there is nothing to draw."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from model.config import DataConfig, InferenceConfig, ScheduleConfig, TrainConfig
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.rows import Row
from orchestrator.figures.drawing import WIDTH, to_svg
from orchestrator.figures.table import Table
from orchestrator.report.figures import drawings, figures, row_dots, row_grid, setting_curves, with_matrix
from orchestrator.report.results.rows import RowResult
from orchestrator.report.results.table import results_table


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


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("stopped early by ASHA after epoch 2 (AP 12.3)", "stopped early"),
        ("running", "running"),
        ("not run", "not run"),
        ("not run: failed: out of memory", "not run"),
    ],
)
def test_a_row_without_a_number_is_not_called_not_run_where_its_search_stopped_it(state: str, said: str) -> None:
    rows = [measured(Row(label="a"), 30.0), replace(measured(Row(label="b"), None), state=state)]
    (drawing,) = row_dots(experiment(rows), rows)
    texts = [text.text for text in ElementTree.fromstring(to_svg(drawing)).iter("text")]
    assert texts[texts.index("b") + 1] == said


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


SHAPES = DataConfig(dataset="shapes", val_split="val")


def trainings_by_exponents(data: DataConfig | None = None, *, is_measured: bool = True) -> list[RowResult]:
    """Heads A and B at exponents 0, 0.2 and 0.4, exponent by exponent: A has 24, 25, 26, B one less; the paper 12 more.

    Every row's AP is as sure as 0.1, and that of A at 0.4 is the highest.
    """
    rows = []
    for place, value in enumerate((0.0, 0.2, 0.4)):
        for label, rate, less in (("A", 0.01, 0.0), ("B", 0.02, 1.0)):
            train = TrainConfig(schedule=ScheduleConfig(learning_rate=rate), data=data or DataConfig())
            ap = 24.0 + place - less
            row = Row(
                label=f"Head {label}, alpha {value}",
                train=train,
                split=train.data.val_split,
                inference=InferenceConfig(confidence_exponent=value),
                paper={"AP": ap + 12.0, "AP50": 50.0},
            )
            rows.append(measured(row, ap if is_measured else None, 0.1 if is_measured else None))
    return rows


def matrix_of(rows: list[RowResult], reference: str | None = "Head A, alpha 0.0") -> tuple[Table, str]:
    of = replace(experiment(rows, reference), columns=("AP", "AP50"))
    table = with_matrix(of, rows, results_table(of, rows, is_resampled=True))
    return table, table.to_text()


def test_trainings_by_values_are_shown_as_a_matrix_for_each_metric() -> None:
    table, text = matrix_of(trainings_by_exponents(SHAPES))
    lines = [line.split() for line in text.splitlines()[2:]]
    assert lines[0] == ["alpha", "0", "0.2", "0.4"]
    paper = ["COCO", "2017,", "the", "paper"]
    assert lines[2:8] == [
        ["AP"],
        ["Head", "A", "24.0", "25.0", "26.0"],
        [*paper, "36.0", "37.0", "38.0"],
        ["Head", "B", "23.0", "24.0", "25.0"],
        [*paper, "35.0", "36.0", "37.0"],
        lines[1],
    ]
    assert lines[8] == ["AP50"] and lines[14] == ["AP", "over", "Head", "A,", "alpha", "0.0"]
    assert lines[15:19] == [
        ["Head", "A", "ref.", "+1.0*", "+2.0*"],
        [*paper, "+1.0", "+2.0"],
        ["Head", "B", "-1.0*", "0.0", "+1.0*"],
        [*paper, "-1.0", "0.0", "+1.0"],
    ]
    assert "The 6 rows one by one, with their intervals: rnc report FILE --rows." in text
    # the only number that is above all others, and by more than its interval
    assert table.to_markdown().count("**26.0**") == 1 and "**25.0**" not in table.to_markdown()


def test_values_that_agree_to_six_digits_are_told_apart_in_a_matrix() -> None:
    rows = trainings_by_exponents(SHAPES)
    near = {0.0: 0.33333331, 0.2: 0.33333332, 0.4: 0.4}
    rows = [
        replace(one, row=replace(one.row, inference=InferenceConfig(confidence_exponent=near[value])))
        for one in rows
        for value in [one.row.inference.confidence_exponent]
    ]
    _, text = matrix_of(rows)
    assert text.splitlines()[2].split()[-3:] == ["0.33333331", "0.33333332", "0.4"]


def test_programs_read_the_rows_of_a_matrix_one_by_one_and_so_does_who_asks_for_them() -> None:
    table, _ = matrix_of(trainings_by_exponents(SHAPES))
    labels = [row["row"] for row in json.loads(table.to_json())["rows"]]
    assert labels == [one.row.label for one in trainings_by_exponents()]
    assert table.to_pandas()["row"].tolist() == labels
    assert "Head B, alpha 0.2" in replace(table, compact=None).to_text()


def test_on_the_papers_data_a_matrix_has_the_differences_to_it() -> None:
    _, text = matrix_of(trainings_by_exponents())
    lines = [line.split() for line in text.splitlines()]
    place = lines.index(["Head", "A", "24.0", "25.0", "26.0"])
    assert lines[place + 1 : place + 3] == [
        ["paper", "36.0", "37.0", "38.0"],
        ["difference", "-12.0", "-12.0", "-12.0"],
    ]


def test_before_any_run_the_matrix_and_the_curves_are_the_papers() -> None:
    rows = trainings_by_exponents(is_measured=False)
    _, text = matrix_of(rows)
    assert "COCO 2017, the paper; nothing has run yet." in text and "—" not in text
    assert ["Head", "B", "35.0", "36.0", "37.0"] in [line.split() for line in text.splitlines()]
    of = replace(experiment(rows), columns=("AP", "AP50", "APs"))
    plots = [ElementTree.fromstring(to_svg(plot)) for plot in setting_curves(of, rows)]
    assert [[line.attrib["class"] for line in plot.iter("polyline")] for plot in plots] == [["paper", "paper"]] * 2
    assert "alpha" in figures(of, rows) and drawings(of, rows) == setting_curves(of, rows)


def test_the_papers_curves_stand_apart_on_other_data_and_beside_ours_on_its_own() -> None:
    for data, called in ((SHAPES, "COCO 2017, the paper"), (None, "paper")):
        rows = trainings_by_exponents(data)
        text = to_svg(setting_curves(experiment(rows), rows)[0])
        assert f"Head A: {called}</text>" in text
        heights = [
            float(line.attrib["points"].split()[0].split(",")[1])
            for line in ElementTree.fromstring(text).iter("polyline")
        ]
        # 36 lies above 24 on a common axis, and below on a panel of its own
        assert (heights[2] < heights[0]) is (data is None)
        assert ("levels of different data" in figures(experiment(rows), rows)) is (data is not None)


def test_what_is_no_matrix_stays_as_it_is() -> None:
    one_training = exponents(0.01, 0.0, 0.2, 0.4)
    assert row_grid(one_training) is not None
    for rows in (one_training, exponents(0.01, 0.0, 0.4), [*exponents(0.01, 0.0, 0.2, 0.4), *exponents(0.01, 0.2)]):
        table = results_table(experiment(rows), rows)
        assert with_matrix(experiment(rows), rows, table) is table
    assert row_grid([*exponents(0.01, 0.0, 0.2, 0.4), *exponents(0.01, 0.2)]) is None  # which of the two at 0.2?


def test_missing_rows_of_a_matrix_are_named_below_it() -> None:
    rows = trainings_by_exponents(SHAPES)
    rows[3] = replace(measured(rows[3].row, None), state="not run")
    _, text = matrix_of(rows)
    assert ["Head", "B", "23.0", "—", "25.0"] in [line.split() for line in text.splitlines()]
    assert "Head B, alpha 0.2: not run." in text


def test_dots_are_marked_as_those_of_a_narrow_page_where_the_table_has_their_intervals() -> None:
    rows = [measured(Row(label="a"), 30.0, 1.0), measured(Row(label="b"), 34.0, 1.0)]
    assert 'class="below-forest"' in figures(experiment(rows, reference="a"), rows)
    assert 'class="below-forest"' not in figures(experiment(rows), rows)
    rows = [measured(Row(label="a"), 30.0), measured(Row(label="b"), 34.0)]
    assert 'class="below-forest"' not in figures(experiment(rows, reference="a"), rows)
