"""What the tables of results say; every number in them is worked out by hand here."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, make_plan, row_keys
from orchestrator.experiment.rows import Cited, Resources, Row, SeedRule
from orchestrator.figures.page import render
from orchestrator.figures.table import Cell, Table
from orchestrator.report.results.rows import RowResult, differences_to_reference, measure
from orchestrator.report.results.table import papers_gains
from orchestrator.report.results.table import results_table as table_of
from orchestrator.report.statistics.intervals import Estimate
from orchestrator.report.statistics.resamples import ROWS, Resamples
from orchestrator.report.status_table import status_table
from tests.orchestrator.ledgers import finished, ledger_of
from tests.orchestrator.tables import shown

BASE = Row(
    label="RetinaNet",
    train=TrainConfig(model=ModelConfig(confidence=None)),
    inference=InferenceConfig(confidence_exponent=0.0),
)
OURS = Row(label="RetinaNet-Conf")
BOX = Row(label="IoU-aware", train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))))


def experiment(*rows: Row, columns: tuple[str, ...] = ("AP", "APs"), reference: str | None = None) -> Experiment:
    return Experiment(
        name="table",
        suite="suite",
        title="Heads",
        question="Which?",
        rows=rows,
        columns=columns,
        reference=reference,
        resources=Resources(num_workers=8, gpus_per_worker=0.5),
        path=Path("table.yaml"),
    )


def results_table(of: Experiment, held: Ledger, resampled: Mapping[str, Resamples] | None = None) -> Table:
    return table_of(of, measure(of, held, resampled), is_resampled=resampled is not None)


def bold(table: Table) -> list[list[bool]]:
    return [[isinstance(cell, Cell) and cell.bold for cell in row] for row in table.rows]


def test_results_stand_beside_the_papers_numbers_with_the_difference() -> None:
    base = Row(label=BASE.label, train=BASE.train, inference=BASE.inference, paper={"AP": 35.6})
    held = ledger_of((base, [finished(AP=35.24, APs=18.0)]), (OURS, [finished(AP=36.5, APs=17.0)]))
    table = results_table(experiment(base, OURS, reference="RetinaNet"), held)
    assert (table.title, table.caption) == ("Heads", "Which?")
    assert shown(table) == [
        # 35.24 - 35.6 = -0.36
        {
            "row": "RetinaNet",
            "AP": "35.2",
            "AP, paper": "35.6",
            "AP, Δ": "-0.4",
            "APs": "18.0",
            "AP over reference": "reference",
        },
        # 36.5 - 35.24 = 1.26
        {
            "row": "RetinaNet-Conf",
            "AP": "36.5",
            "AP, paper": "—",
            "AP, Δ": "—",
            "APs": "17.0",
            "AP over reference": "+1.3",
        },
    ]
    assert bold(table) == [[False] * 6] * 2
    assert table.notes == (
        "One seed: 0.",
        "Measured on COCO val2017.",
        "Reference: RetinaNet.",
        "Nothing is in bold: no interval tells which is best.",
    )


def test_a_line_that_is_only_cited_stands_below_ours_with_its_numbers_and_its_source() -> None:
    theirs = Cited(label="Theirs", paper={"AP": 40.0}, source="Their paper, Table 2")
    cites = replace(experiment(OURS, BASE, reference="RetinaNet"), cited=(theirs,))
    table = results_table(cites, ledger_of((OURS, [finished(AP=36.5, APs=17.0)])))
    assert shown(table)[-1] == {
        "row": "Theirs",
        "AP": "—",
        "AP, paper": "40.0",
        "AP, Δ": "—",
        "APs": "—",
        "AP over reference": "—",
        "state": "—",
    }
    assert table.rules_before == (2,)
    assert table.notes[-1] == "Cited, not run: Theirs, Their paper, Table 2."
    assert not any(cell.bold for cell in table.cells()[-1])


def test_without_numbers_of_the_paper_there_is_no_column_for_them() -> None:
    table = results_table(experiment(OURS, BOX), ledger_of((OURS, [finished(AP=30.0)]), (BOX, [finished(AP=31.0)])))
    assert [column.name for column in table.columns] == ["row", "AP", "APs"]


def test_seeds_are_summed_up_by_mean_and_sample_standard_deviation() -> None:
    row = Row(label="A", seeds=(0, 1, 2))
    table = results_table(experiment(row), ledger_of((row, [finished(AP=30.0), finished(AP=31.0), finished(AP=35.0)])))
    # mean 32; deviations -2, -1, 3; variance (4 + 1 + 9) / 2 = 7; root 2.6458
    assert shown(table) == [{"row": "A", "AP": "32.0 ± 2.6", "APs": "n/a"}]
    assert table.notes[0] == "Mean ± std over 3 seeds: 0, 1, 2."


def test_a_size_without_objects_is_not_applicable_and_a_row_that_never_ran_is_a_dash() -> None:
    nothing = finished()  # a data set without any annotation
    held = ledger_of((OURS, [finished(AP=30.0)]), (BOX, [nothing]))
    table = results_table(experiment(OURS, BOX, BASE), held)
    assert [(row["AP"], row["APs"]) for row in shown(table)] == [("30.0", "n/a"), ("n/a", "n/a"), ("—", "—")]
    for form in ("text", "markdown", "latex", "html"):
        rendered = render(table, form)
        assert rendered.count("n/a") == 3 and "-1" not in rendered and "None" not in rendered
    rows = json.loads(render(table, "json"))["rows"]
    assert [(row["AP"], row["APs"]) for row in rows] == [(30.0, None), (None, None), (None, None)]
    assert [row["state"] for row in rows] == ["", "", "not run"]


def sampled(*rows: tuple[Row, float, float]) -> tuple[Ledger, dict[str, Resamples]]:
    """Rows of these APs; the resamples of each are spread evenly, `half` to either side, and alike but for that."""
    scored: list[tuple[Row, list[Record | None]]] = [(row, [finished(AP=ap, APs=ap)]) for row, ap, _ in rows]
    held = ledger_of(*scored)
    keys = [row_keys(row)[0].evaluation_key for row, _, _ in rows]
    moved = np.linspace(-1, 1, 1001)
    return held, {key: np.tile(ap + half * moved, (3, 1)) for key, (_, ap, half) in zip(keys, rows, strict=True)}


def test_the_best_is_bold_only_if_its_intervals_to_all_others_exclude_zero() -> None:
    """Ours is 1 above the box tower, whose resamples move 0.5 or 2 to either side, and 3 above the base."""
    for half, is_best in ((0.5, True), (2.0, False)):
        held, samples = sampled((OURS, 31.0, 0.0), (BOX, 30.0, half), (BASE, 28.0, 0.0))
        table = results_table(experiment(OURS, BOX, BASE), held, samples)
        # of APs there are no resamples, though ours is as far above there
        assert bold(table) == [[False, is_best, False], [False] * 3, [False] * 3]
        rule = "above each other row by a 95 % interval that excludes 0."
        assert table.notes[-1] == (f"In bold: {rule}" if is_best else f"Nothing is in bold: no row is {rule}")
    # 2 further down the third row does not matter; where the second lacks its matches, nobody knows
    del samples[row_keys(BOX)[0].evaluation_key]
    assert not any(map(any, bold(results_table(experiment(OURS, BOX, BASE), held, samples))))


@pytest.mark.parametrize(("more", "gain"), [(4e-5, "0.0 [0.0, 0.0]"), (6e-5, "+0.0001 [+0.0001, +0.0001]*")])
def test_what_no_table_can_tell_from_zero_is_neither_marked_nor_bold(more: float, gain: str) -> None:
    held, samples = sampled((BASE, 30.0, 0.5), (OURS, 30.0 + more, 0.5))
    table = results_table(experiment(BASE, OURS, columns=("AP",), reference="RetinaNet"), held, samples)
    assert shown(table)[1]["AP over reference"] == gain
    assert bold(table)[1][1] == gain.endswith("*")


def test_of_equal_rows_and_of_a_single_one_none_is_bold() -> None:
    held, samples = sampled((OURS, 36.0, 1.0), (BOX, 36.0, 1.0))
    assert not any(map(any, bold(results_table(experiment(OURS, BOX), held, samples))))
    alone = results_table(experiment(OURS, BASE), *sampled((OURS, 36.0, 1.0)))
    assert not any(map(any, bold(alone))) and not any("bold" in note for note in alone.notes)


SHAPES = TrainConfig(data=DataConfig(dataset="shapes", val_split="val"))


def test_on_other_data_the_papers_column_is_grey_and_no_difference_is_formed() -> None:
    numbers = {"AP": 35.3, "APs": 18.4}
    ours = Row(label="A", train=SHAPES, split="val", paper=numbers)
    base = replace(ours, label="B", train=replace(SHAPES, global_batch=8), paper={"AP": 35.1})
    of = experiment(ours, base, reference="B")
    table = results_table(of, ledger_of((ours, [finished(AP=24.0, APs=9.0)]), (base, [finished(AP=23.0)])))
    names = ["row", "AP", "AP, paper", "APs", "APs, paper", "AP over reference", "AP over reference, paper"]
    assert [column.name for column in table.columns] == names
    grey = {column.name: column.head for column in table.columns if column.is_soft}
    assert grey == {
        "AP, paper": "AP, COCO 2017, the paper",
        "APs, paper": "APs, COCO 2017, the paper",
        "AP over reference, paper": "AP over reference, paper",
    }
    # what the paper itself has over its own reference, 35.3 - 35.1, is a difference on one data set
    assert shown(table)[0]["AP over reference, paper"] == "+0.2"
    assert any(note.startswith("Numbers of different data have no common level") for note in table.notes)
    for form in ("text", "markdown", "latex", "html"):
        rendered = render(table, form)
        assert "COCO 2017, the paper" in rendered and "35.3" in rendered and "-11.3" not in rendered
    row = json.loads(render(table, "json"))["rows"][0]
    assert (row["AP"], row["AP, paper"]) == (24.0, 35.3) and "AP, Δ" not in row
    assert table.to_pandas()["AP, paper"].tolist() == [35.3, 35.1]


def test_a_row_on_other_data_has_no_difference_in_a_table_where_others_have() -> None:
    small = TrainConfig(data=DataConfig(dataset="coco", num_val_images=500))
    here, there = Row(label="A", paper={"AP": 35.0}), Row(label="B", train=small, paper={"AP": 35.0})
    held = ledger_of((here, [finished(AP=36.0)]), (there, [finished(AP=36.0)]))
    table = results_table(experiment(here, there, columns=("AP",)), held)
    assert [row["AP, Δ"] for row in shown(table)] == ["+1.0", "—"] and table.columns[2].head.endswith("the paper")


def test_before_anything_is_measured_the_papers_numbers_stand_in_the_place_of_ours() -> None:
    base = replace(BASE, paper={"AP": 35.3, "APs": 18.4})
    ours = replace(OURS, paper={"AP": 35.7, "APs": 17.6})
    theirs = Cited(label="Theirs", paper={"AP": 21.6, "APs": 50.0}, published={"APs": 5.0}, source="Their paper")
    table = results_table(replace(experiment(base, ours, reference="RetinaNet"), cited=(theirs,)), Ledger())
    lines = table.to_text().splitlines()[3:]
    assert [line.split() for line in lines if not line.startswith("─")][:6] == [
        ["row", "AP", "APs", "AP", "over", "reference", "state"],
        ["COCO", "2017,", "the", "paper;", "nothing", "has", "run", "yet"],
        ["RetinaNet", "35.3", "18.4", "reference", "not", "run"],
        ["RetinaNet-Conf", "35.7", "17.6", "+0.4", "not", "run"],
        ["Cited", "by", "the", "paper"],
        ["Theirs", "21.6", "50.0†"],
    ]
    assert table.notes[-1] == "† Theirs: its authors publish APs 5.0."
    # programs read the same columns as after a run, with nothing in ours
    rows = json.loads(render(table, "json"))["rows"]
    assert [(row["AP"], row["AP, paper"]) for row in rows] == [(None, 35.3), (None, 35.7), (None, 21.6)]
    latex = render(table, "latex")
    assert "\\textcolor{gray}{35.3}" in latex and "\\multicolumn{5}{l}{\\emph{Cited by the paper}}" in latex
    after = results_table(experiment(base, ours), ledger_of((ours, [finished(AP=36.0, APs=18.0)])))
    assert after.groups == () and [row["AP"] for row in shown(after)] == ["—", "36.0"]


def test_what_a_table_quotes_from_elsewhere_than_the_paper_is_not_called_the_papers() -> None:
    """Rows without numbers of the paper: all that stands beside ours is others', of recipes of their own."""
    theirs = Cited(label="Theirs", paper={"AP": 39.4}, source="Their framework")
    quoting = replace(experiment(BASE, OURS, reference="RetinaNet"), cited=(theirs,))
    measured = ledger_of((BASE, [finished(AP=30.0, APs=15.0)]), (OURS, [finished(AP=36.0, APs=18.0)]))
    for held in (Ledger(), measured):
        table = results_table(quoting, held)
        text = table.to_text()
        assert "Published elsewhere" in text and "39.4" in text
        assert "paper" not in text.lower()
        # Their recipe is not ours: no difference is formed, though both are measured on COCO val2017.
        assert {row.get("AP, Δ", "—") for row in shown(table)} == {"—"}
    assert "COCO 2017, published; nothing has run yet" in results_table(quoting, Ledger()).to_text()
    assert {column.head for column in table.columns if column.is_soft} == {"AP, published"}
    beside = replace(quoting, rows=(replace(BASE, paper={"AP": 35.3}), OURS))
    assert "Cited by the paper" in results_table(beside, measured).to_text()


def test_a_number_shows_no_digit_that_its_spread_makes_meaningless() -> None:
    row = Row(label="A", seeds=(0, 1, 2), paper={"AP": 35.3})
    held = ledger_of((row, [finished(AP=30.4), finished(AP=35.0), finished(AP=39.0)]))
    # mean 34.8, std 4.3035: the first decimal says nothing; 34.8 - 35.3 = -0.5 rounds to 0
    assert shown(results_table(experiment(row, columns=("AP",)), held))[0]["AP"] == "35 ± 4"
    assert json.loads(render(results_table(experiment(row), held), "json"))["rows"][0]["AP"] == pytest.approx(34.8)


def test_a_row_that_is_not_there_says_why() -> None:
    failed = Record(status="FAILED", run_id="r", note="out of memory")
    held = ledger_of((OURS, [finished(AP=30.0)]), (BOX, [failed]))
    states = [row["state"] for row in shown(results_table(experiment(BASE, OURS, BOX), held))]
    assert states == ["not run", "", "not run: failed: out of memory"]
    ((_, train_key, _),) = row_keys(BASE)
    broken = Ledger(trainings={train_key: Record(status="KILLED", run_id="r", note="interrupted at epoch 3")})
    assert shown(results_table(experiment(BASE), broken))[0]["state"] == "not run: interrupted at epoch 3"


def test_a_row_that_somebody_works_on_is_running_and_not_called_not_run() -> None:
    ((_, train_key, _),) = row_keys(BASE)
    held = Ledger(trainings={train_key: Record(status="RUNNING", run_id="r")})
    assert shown(results_table(experiment(BASE), held))[0]["state"] == "running"


def test_a_row_that_its_search_stopped_says_so_and_nothing_else() -> None:
    ((_, train_key, _),) = row_keys(BASE)
    note = "stopped early by ASHA after epoch 2 (AP 12.3)"
    record = Record(status="STOPPED", run_id="r", note=note, metrics={"train/epoch": 2.0, "val/AP": 12.3})
    held = Ledger(trainings={train_key: record})
    (line,) = shown(results_table(experiment(BASE, columns=("AP",)), held))
    assert (line["AP"], line["state"]) == ("—", note)
    (line,) = shown(status_table(make_plan([experiment(BASE)], held), held))
    assert (line["training"], line["epoch"], line["val AP"], line["scored"]) == (note, "2/12", "12.3", "no")


def test_a_row_with_some_of_its_seeds_says_how_many() -> None:
    row = Row(label="A", seeds=(0, 1, 2))
    held = ledger_of((row, [finished(AP=30.0), None, Record(status="FAILED", run_id="r", note="lost")]))
    assert shown(results_table(experiment(row, columns=("AP",)), held)) == [
        {"row": "A", "AP": "30.0", "state": "1 of 3 seeds: never run (seed 1); failed: lost (seed 2)"}
    ]


@pytest.mark.parametrize(
    ("paper", "note"),
    [
        ({"AP": 35.6}, "paper: COCO val2017, ours: shapes val, at most the first 50 images."),
        ({}, "Measured on shapes val, at most the first 50 images."),
    ],
)
def test_another_data_set_than_the_papers_is_noted(paper: dict[str, float], note: str) -> None:
    train = TrainConfig(data=DataConfig(dataset="shapes", val_split="val", num_val_images=50))
    table = results_table(experiment(Row(label="A", train=train, split="val", paper=paper)), Ledger())
    assert note in table.notes


def test_a_split_with_fewer_images_than_a_training_validates_on_is_called_whole() -> None:
    def noted(num_images: int, at_most: int | None) -> str:
        train = TrainConfig(data=DataConfig(dataset="photos", val_split="val", num_val_images=at_most))
        row = Row(label="A", train=train, split="val")
        numbers = np.zeros((len(ROWS), 11))
        numbers[ROWS.index("num_images")] = num_images
        held = ledger_of((row, [finished(AP=30.0)]))
        notes = results_table(experiment(row), held, {row_keys(row)[0].evaluation_key: numbers}).notes
        return next(note for note in notes if note.startswith("Measured"))

    assert noted(20, 200) == "Measured on photos val, all 20 images."
    assert noted(200, 200) == "Measured on photos val, first 200 images."
    assert noted(0, 200) == "Measured on photos val, at most the first 200 images."
    assert noted(20, None) == "Measured on photos val."
    # a row that has not run yet is measured on the images that another one was
    train = TrainConfig(data=DataConfig(dataset="photos", val_split="val", num_val_images=200))
    first, second = Row(label="A", train=train, split="val"), Row(label="B", train=train, split="val", seeds=(1,))
    numbers = np.full((len(ROWS), 11), 20.0)
    held = ledger_of((first, [finished(AP=30.0)]))
    table = results_table(experiment(first, second), held, {row_keys(first)[0].evaluation_key: numbers})
    assert "Measured on photos val, all 20 images." in table.notes


def test_no_interval_of_an_ap_goes_below_0_or_above_100_and_that_of_a_difference_may() -> None:
    def row(label: str, ap: float, moved: float) -> RowResult:
        scatter = np.tile(np.linspace(-moved, moved, 1001), (len(ROWS), 1))
        scatter[ROWS.index("num_images")] = 100
        by_seed = {seed: {"AP": ap + seed, "misalignment/ece": seed - 0.5} for seed in (0, 1)}
        return RowResult(row=Row(label=label), by_seed=by_seed, resampled={0: scatter, 1: scatter}, state="")

    def ends(found: Estimate | None) -> tuple[float, float]:
        assert found is not None
        return found.low, found.high

    low, high = row("low", 0.3, 5.0), row("high", 98.9, 5.0)
    assert ends(low.estimate("AP"))[0] == 0.0 and ends(low.estimate("AP"))[1] > 1.0
    assert ends(high.estimate("AP"))[1] == 100.0 and ends(high.estimate("AP"))[0] < 99.0
    assert ends(low.estimate("misalignment/ece"))[0] < 0.0
    assert ends(low.difference(row("other", 0.2, -5.0), "AP"))[0] < 0.0


def test_a_difference_to_the_reference_has_its_interval_and_a_mark_when_it_is_sure() -> None:
    """Resamples in which ours is 0.5 to 1.5 above, and the box tower -1 to 1: 95 % of each, centred on the means."""
    held = ledger_of((BASE, [finished(AP=30.0)]), (OURS, [finished(AP=31.0)]), (BOX, [finished(AP=30.2)]))
    keys = {row.label: row_keys(row)[0].evaluation_key for row in (BASE, OURS, BOX)}
    moved = np.linspace(-5, 5, 1001)
    samples = {
        keys["RetinaNet"]: np.tile(moved, (3, 1)),
        keys["RetinaNet-Conf"]: np.tile(moved + 1 + moved / 10, (3, 1)),
        keys["IoU-aware"]: np.tile(moved + moved / 5, (3, 1)),
    }
    table = results_table(experiment(BASE, OURS, BOX, reference="RetinaNet"), held, samples)
    gains = [row["AP over reference"] for row in shown(table)]
    assert gains == ["reference", "+1.0 [+0.5, +1.5]*", "+0.2 [-0.8, +1.1]"]
    assert table.notes[3:5] == (
        "[95 % interval] by 1000 paired resamples of the images. How far another seed would move it is not in it.",
        "* The interval excludes 0.",
    )
    del samples[keys["IoU-aware"]]
    table = results_table(experiment(BASE, OURS, BOX, reference="RetinaNet"), held, samples)
    assert shown(table)[2]["AP over reference"] == "+0.2"
    assert table.notes[-2] == "No interval, for want of matches: IoU-aware."


def test_rows_on_other_images_are_not_compared_though_there_are_as_many() -> None:
    elsewhere = replace(BOX, split="minival")
    held, samples = sampled((BASE, 30.0, 0.1), (OURS, 31.0, 0.2), (elsewhere, 33.0, 0.3))
    for resamples in (samples, None):
        table = results_table(experiment(BASE, OURS, elsewhere, reference="RetinaNet"), held, resamples)
        assert [bool(row["AP over reference"].startswith("+")) for row in shown(table)] == [False, True, False]
        assert not any(map(any, bold(table)))
        assert "Measured on other images than the reference, and not compared: IoU-aware." in table.notes


def test_a_row_of_two_tables_is_not_compared_with_one_on_another_version_of_the_data() -> None:
    rows = [
        measure(experiment(row), ledger_of((row, [replace(finished(AP=30.0), data_fingerprint=data)])))[0]
        for row, data in ((OURS, "old"), (BOX, "new"), (BASE, ""))
    ]
    assert [rows[0].is_on_images_of(other) for other in rows] == [True, False, True]


def test_without_intervals_rows_are_compared_by_the_same_seeds_as_with_them() -> None:
    """By seeds 0 and 1: 31 - 30 and 32 - 30. The third seed of ours, 3 above the others, counts in its mean alone."""
    base, ours = replace(BASE, seeds=(0, 1)), replace(OURS, seeds=(0, 1, 2))
    held = ledger_of(
        (base, [finished(AP=30.0), finished(AP=30.0)]),
        (ours, [finished(AP=31.0), finished(AP=32.0), finished(AP=36.0)]),
    )
    samples = {key: np.tile(np.linspace(-1, 1, 1001), (3, 1)) for row in (base, ours) for _, _, key in row_keys(row)}
    for resamples in (samples, None):
        table = results_table(experiment(base, ours, columns=("AP",), reference="RetinaNet"), held, resamples)
        assert table.cells()[1][2].value == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("images", "gain", "said"),
    [
        (1, "+1.0", "No interval, as only one image has an object."),
        (9, "+1.0 [+0.8, +1.2]*‡", "‡ On fewer than 10 images with an object: too few to tell, the interval is"),
        (10, "+1.0 [+0.8, +1.2]*", "In bold: "),
    ],
)
def test_an_interval_on_few_images_with_an_object_says_so_and_on_one_there_is_none(
    images: int, gain: str, said: str
) -> None:
    held, samples = sampled((BASE, 30.0, 0.3), (OURS, 31.0, 0.5))
    counts = np.array([[20.0], [20.0], [float(images)]]) * np.ones(1001)  # AR100, all images, those with an object
    counted = {key: np.vstack([numbers, counts]) for key, numbers in samples.items()}
    table = results_table(experiment(BASE, OURS, columns=("AP",), reference="RetinaNet"), held, counted)
    assert shown(table)[1]["AP over reference"] == gain and bold(table)[1][1] == (images > 1)
    assert any(note.startswith(said) for note in table.notes)


def test_a_row_is_compared_with_a_reference_of_its_own() -> None:
    """Ours is 1.0 above RetinaNet by 0.5 to 1.5 in its resamples, and the box tower 0.8 below ours by -1.3 to -0.3."""
    box = replace(BOX, reference="RetinaNet-Conf", paper={"AP": 35.0})
    ours, base = replace(OURS, paper={"AP": 36.0}), replace(BASE, paper={"AP": 35.3})
    held = ledger_of((base, [finished(AP=30.0)]), (ours, [finished(AP=31.0)]), (box, [finished(AP=30.2)]))
    moved = np.linspace(-5, 5, 1001)
    samples = {
        row_keys(row)[0].evaluation_key: np.tile(moved * (1 + share), (3, 1))
        for row, share in ((base, 0.0), (ours, 0.1), (box, 0.2))
    }
    of = experiment(base, ours, box, reference="RetinaNet")
    table = results_table(of, held, samples)
    assert [row["AP over reference"] for row in shown(table)] == [
        "reference",
        "+1.0 [+0.5, +1.5]*",
        "-0.8 [-1.3, -0.3]*",
    ]
    assert table.notes[2:4] == ("Reference: RetinaNet.", "Reference of IoU-aware: RetinaNet-Conf.")
    assert papers_gains(of) == [None, 0.7, -1.0]
    growing = replace(of, seed_rule=SeedRule(until="decided"))
    gains = differences_to_reference(growing, measure(of, held, samples))
    assert {label: round(gain.value, 6) for label, gain in gains.items()} == {"RetinaNet-Conf": 1.0, "IoU-aware": -0.8}


def ruled(*gains: float) -> Table:
    """A row above its reference by so much at each seed, whose images hardly move it; the first look is at two."""
    rule, seeds = SeedRule(until="decided", at_least=2, most=8), tuple(range(max(2, len(gains))))
    base, ours = replace(BASE, seeds=seeds), replace(OURS, seeds=seeds)
    lacking: list[Record | None] = [None] * (len(seeds) - len(gains))
    held = ledger_of(
        (base, [*(finished(AP=30.0) for _ in gains), *lacking]),
        (ours, [*(finished(AP=30.0 + gain) for gain in gains), *lacking]),
    )
    samples = {key: np.zeros((3, 1001)) for _, _, key in row_keys(base)}
    samples |= {key: np.tile(np.linspace(-0.1, 0.1, 1001), (3, 1)) for _, _, key in row_keys(ours)}
    of = replace(experiment(base, ours, columns=("AP",), reference="RetinaNet"), seed_rule=rule)
    return results_table(of, held, samples)


def test_before_the_first_look_a_row_has_a_difference_and_no_interval() -> None:
    assert [shown(table)[1]["AP over reference"][:6] for table in (ruled(1.0), ruled(1.0, 1.0))] == ["+1.0", "+1.0 ["]
    assert not any(map(any, bold(ruled(1.0))))
    # of two seeds that were asked for one is measured
    said = [note for table in (ruled(1.0), ruled(1.0, 1.0)) for note in table.notes if note.startswith("Seeds are")]
    assert "no look so far" in said[0] and "1 look so far" in said[1]


def test_a_mean_that_left_the_interval_that_decided_it_is_noted() -> None:
    said = "Seeds since the look that decided it moved the mean out of the interval: RetinaNet-Conf."
    assert said not in ruled(1.0, 1.0).notes
    turned = ruled(1.0, 1.0, -2.0)
    assert shown(turned)[1]["AP over reference"].startswith("0.0 [+0.8") and said in turned.notes


def test_a_table_says_whether_seeds_or_images_make_its_intervals_and_which_narrow_them() -> None:
    """Gains of mean 2 with s^2 / S = 1; resamples that all seeds share with a variance of 1/4, or of 4.

    With a variance of 4, two seeds have 3.34 x sqrt(5) = 7.5, on twice the images 4.94 x sqrt(3) = 8.6, and twice the
    seeds 2.02 x sqrt(4.5) = 4.3; eight have 2.01 x sqrt(5) = 4.5, then 2.06 x sqrt(3) = 3.6 and 1.97 x sqrt(4.5) = 4.2.
    """
    crossed = "[95 % interval] by 1000 paired resamples of the images, crossed with the seeds (Obuchowski and Rockette"
    moved = np.tile([1.0, -1.0], 500) * 0.999**0.5

    def note(num_seeds: int, spread: float) -> str:
        base, ours = (replace(row, seeds=tuple(range(num_seeds))) for row in (BASE, OURS))
        apart = (num_seeds - 1) ** 0.5  # half of the gains lie so far above 2, half below
        gains = [finished(AP=32.0 + (apart if seed % 2 else -apart)) for seed in range(num_seeds)]
        held = ledger_of((base, [finished(AP=30.0) for _ in gains]), (ours, [*gains]))
        samples = {key: np.zeros((3, 1000)) for _, _, key in row_keys(base)}
        samples |= {key: np.tile(spread * moved, (3, 1)) for _, _, key in row_keys(ours)}
        said = results_table(experiment(base, ours, reference="RetinaNet"), held, samples).notes[3]
        assert said.startswith(f"{crossed} 1995). ")
        return said.removeprefix(f"{crossed} 1995). ")

    of = "of the variance of these differences"
    assert note(2, 0.5) == f"Seeds make 80 % {of}, images 20 %: more seeds narrow them."
    assert note(2, 2.0) == f"Images make 80 % {of}, seeds 20 %, and yet more seeds narrow them most."
    assert note(8, 2.0) == f"Images make 80 % {of}, seeds 20 %: more images narrow them."


def test_seeds_that_were_measured_on_two_versions_of_the_data_have_no_mean() -> None:
    row = replace(OURS, seeds=(0, 7))
    old, new = (replace(finished(AP=ap), data_fingerprint=data) for ap, data in ((30.0, "old"), (32.0, "new")))
    with pytest.raises(UserError, match=r"table table: row 'RetinaNet-Conf', seed 0, .* seed 7"):
        measure(experiment(row), ledger_of((row, [old, new])))
    (result,) = measure(experiment(row), ledger_of((row, [replace(old, data_fingerprint="new"), new])))
    assert result.mean("AP") == 31.0


def calibrated(*values: float | None) -> list[Record | None]:
    """Finished evaluations of as many seeds, with an AP of 30, and an LaECE each; None was scored before there was."""
    return [replace(finished(AP=30.0), calibration={} if one is None else {"LaECE": one}) for one in values]


def test_of_a_metric_of_which_less_is_better_that_is_said_and_that_its_intervals_are_of_seeds_alone() -> None:
    low, high = (replace(row, seeds=(0, 1, 2)) for row in (OURS, BOX))
    held = ledger_of((high, calibrated(20.0, 21.0, 22.0)), (low, calibrated(10.0, 11.1, 12.1)))
    keys = [seed.evaluation_key for row in (low, high) for seed in row_keys(row)]
    samples = {key: np.tile(np.linspace(29, 31, 1001), (3, 1)) for key in keys}
    of = experiment(high, low, columns=("LaECE", "AP"), reference=BOX.label)
    table = results_table(of, held, samples)
    assert [row["LaECE"] for row in shown(table)] == ["21.0 ± 1.0", "11.1 ± 1.1"]
    # ... which does not make it bold: that of other images is not known.
    assert not any(map(any, bold(table)))
    # The seeds' differences are -10, -9.9 and -9.9: mean -9.93, and an interval of their scatter alone.
    assert shown(table)[1]["LaECE over reference"].startswith("-9.9 [-1")
    assert table.notes[-4:] == (
        "[95 % interval] by the scatter of the seeds alone: what other images would do is not in it.",
        "* The interval excludes 0.",
        "Nothing is in bold: no row is above each other row by a 95 % interval that excludes 0.",
        "LaECE: less is better, and so is a negative difference; none is in bold, as no resample tells what other"
        " images would do.",
    )
    # The other way round nothing changes but the sign.
    turned = results_table(replace(of, reference=OURS.label), held, samples)
    assert shown(turned)[0]["LaECE over reference"].startswith("+9.9 [")


def test_what_was_scored_before_calibration_was_measured_is_complete_and_has_dashes() -> None:
    held = ledger_of((OURS, calibrated(None)), (BOX, calibrated(12.0)), (BASE, [finished()]))
    of = experiment(OURS, BOX, BASE, columns=("AP", "LaECE", "D-ECE"))
    table = results_table(of, held)
    assert shown(table) == [
        {"row": "RetinaNet-Conf", "AP": "30.0", "LaECE": "—", "D-ECE": "—"},
        {"row": "IoU-aware", "AP": "30.0", "LaECE": "12.0", "D-ECE": "n/a"},
        {"row": "RetinaNet", "AP": "n/a", "LaECE": "n/a", "D-ECE": "n/a"},  # no object to measure anything on
    ]
    assert table.notes[-2:] == (
        "LaECE, D-ECE: less is better; none is in bold, as no resample tells what other images would do.",
        "Scored before LaECE was measured: RetinaNet-Conf. To measure it, delete their evaluations in MLflow and "
        "submit again; nothing is trained for it.",
    )
    assert make_plan([of], held).is_complete
