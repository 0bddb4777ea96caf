"""What the tables of status and results say; every number in them is worked out by hand here."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig, TrainConfig
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, make_plan, row_keys
from orchestrator.experiment.rows import Cited, Resources, Row
from orchestrator.figures.page import render
from orchestrator.figures.table import Cell, Table, show
from orchestrator.report import results
from orchestrator.report.intervals import Resamples
from orchestrator.report.plan_tables import status_table
from orchestrator.report.results import measure
from orchestrator.worker.training_log import Scoring, write_event

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


def finished(**metrics: float) -> Record:
    return Record(status="FINISHED", run_id="r", metrics=metrics)


def ledger(*scored: tuple[Row, list[Record | None]]) -> Ledger:
    """Return a ledger with a finished training for each evaluation, one record for each seed of each row."""
    trainings, evaluations = {}, {}
    for row, records in scored:
        for (_, train_key, evaluation_key), record in zip(row_keys(row), records, strict=True):
            if record is not None:
                trainings[train_key] = finished()
                evaluations[evaluation_key] = record
    return Ledger(trainings=trainings, evaluations=evaluations)


def results_table(of: Experiment, held: Ledger, resampled: Mapping[str, Resamples] | None = None) -> Table:
    return results.results_table(of, measure(of, held, resampled), is_resampled=resampled is not None)


def shown(table: Table) -> list[dict[str, str]]:
    names = [column.name for column in table.columns]
    texts = [[show(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.cells()]
    return [dict(zip(names, row, strict=True)) for row in texts]


def bold(table: Table) -> list[list[bool]]:
    return [[isinstance(cell, Cell) and cell.bold for cell in row] for row in table.rows]


def test_results_stand_beside_the_papers_numbers_with_the_difference() -> None:
    base = Row(label=BASE.label, train=BASE.train, inference=BASE.inference, paper={"AP": 35.6})
    held = ledger((base, [finished(AP=35.24, APs=18.0)]), (OURS, [finished(AP=36.5, APs=17.0)]))
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
            "AP over reference": "—",
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
    assert bold(table) == [[False, False, False, False, True, False], [False, True, False, False, False, False]]
    assert table.notes == ("One seed: 0.", "Measured on COCO val2017.", "Reference: RetinaNet.")


def test_a_line_that_is_only_cited_stands_below_ours_with_its_numbers_and_its_source() -> None:
    theirs = Cited(label="Theirs", paper={"AP": 40.0}, source="Their paper, Table 2")
    cites = replace(experiment(OURS, BASE, reference="RetinaNet"), cited=(theirs,))
    table = results_table(cites, ledger((OURS, [finished(AP=36.5, APs=17.0)])))
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
    table = results_table(experiment(OURS, BOX), ledger((OURS, [finished(AP=30.0)]), (BOX, [finished(AP=31.0)])))
    assert [column.name for column in table.columns] == ["row", "AP", "APs"]


def test_seeds_are_summed_up_by_mean_and_sample_standard_deviation() -> None:
    row = Row(label="A", seeds=(0, 1, 2))
    table = results_table(experiment(row), ledger((row, [finished(AP=30.0), finished(AP=31.0), finished(AP=35.0)])))
    # mean 32; deviations -2, -1, 3; variance (4 + 1 + 9) / 2 = 7; root 2.6458
    assert shown(table) == [{"row": "A", "AP": "32.0 ± 2.6", "APs": "n/a"}]
    assert table.notes[0] == "Mean ± std over 3 seeds: 0, 1, 2."


def test_a_size_without_objects_is_not_applicable_and_a_row_that_never_ran_is_a_dash() -> None:
    nothing = finished()  # a data set without any annotation
    held = ledger((OURS, [finished(AP=30.0)]), (BOX, [nothing]))
    table = results_table(experiment(OURS, BOX, BASE), held)
    assert [(row["AP"], row["APs"]) for row in shown(table)] == [("30.0", "n/a"), ("n/a", "n/a"), ("—", "—")]
    for form in ("text", "markdown", "latex", "html"):
        rendered = render(table, form)
        assert rendered.count("n/a") == 3 and "-1" not in rendered and "None" not in rendered
    rows = json.loads(render(table, "json"))["rows"]
    assert [(row["AP"], row["APs"]) for row in rows] == [(30.0, None), (None, None), (None, None)]
    assert [row["state"] for row in rows] == ["", "", "not run"]


def test_rows_that_look_equal_are_bold_together_and_a_single_one_never_is() -> None:
    held = ledger((OURS, [finished(AP=36.04, APs=1.0)]), (BOX, [finished(AP=35.96)]))
    assert bold(results_table(experiment(OURS, BOX), held)) == [[False, True, False], [False, True, False]]


def test_a_row_that_is_not_there_says_why() -> None:
    failed = Record(status="FAILED", run_id="r", note="out of memory")
    held = ledger((OURS, [finished(AP=30.0)]), (BOX, [failed]))
    states = [row["state"] for row in shown(results_table(experiment(BASE, OURS, BOX), held))]
    assert states == ["not run", "", "not run: failed: out of memory"]
    ((_, train_key, _),) = row_keys(BASE)
    broken = Ledger(trainings={train_key: Record(status="KILLED", run_id="r", note="interrupted at epoch 3")})
    assert shown(results_table(experiment(BASE), broken))[0]["state"] == "not run: interrupted at epoch 3"


def test_a_row_that_its_search_stopped_says_so_and_nothing_else() -> None:
    ((_, train_key, _),) = row_keys(BASE)
    note = "stopped early by ASHA after epoch 2 (AP 12.3)"
    record = Record(status="STOPPED", run_id="r", note=note, metrics={"train/epoch": 2.0, "val/AP": 12.3})
    held = Ledger(trainings={train_key: record})
    (line,) = shown(results_table(experiment(BASE, columns=("AP",)), held))
    assert (line["AP"], line["state"]) == ("—", note)
    (line,) = shown(status_table(make_plan([experiment(BASE)], held), held))
    assert (line["training"], line["epoch"], line["AP"], line["scored"]) == (note, "2/12", "12.3", "no")


def test_a_row_with_some_of_its_seeds_says_how_many() -> None:
    row = Row(label="A", seeds=(0, 1, 2))
    held = ledger((row, [finished(AP=30.0), None, Record(status="FAILED", run_id="r", note="lost")]))
    assert shown(results_table(experiment(row, columns=("AP",)), held)) == [
        {"row": "A", "AP": "30.0", "state": "1 of 3 seeds: never run (seed 1); failed: lost (seed 2)"}
    ]


@pytest.mark.parametrize(
    ("paper", "note"),
    [
        ({"AP": 35.6}, "paper: COCO val2017, ours: shapes val, first 50 images."),
        ({}, "Measured on shapes val, first 50 images."),
    ],
)
def test_another_data_set_than_the_papers_is_noted(paper: dict[str, float], note: str) -> None:
    train = TrainConfig(data=DataConfig(dataset="shapes", val_split="val", num_val_images=50))
    table = results_table(experiment(Row(label="A", train=train, split="val", paper=paper)), Ledger())
    assert note in table.notes


def test_status_shows_how_far_the_training_of_each_row_is_and_how_fast() -> None:
    running = {
        "train/epoch": 3.5,
        "train/loss": 0.12345,
        "val/AP": 12.3,
        "perf/images_per_s": 80.0,
        "perf/eta_s": 3900.0,
    }
    keys = {row.label: row_keys(row)[0] for row in (OURS, BOX)}
    held = Ledger(
        trainings={
            keys["RetinaNet-Conf"].train_key: Record(status="RUNNING", run_id="r", metrics=running),
            keys["IoU-aware"].train_key: finished(**{"train/epoch": 12.0, "perf/eta_s": 60.0}),
        },
        evaluations={keys["IoU-aware"].evaluation_key: finished(AP=30.0)},
    )
    table = status_table(make_plan([experiment(BASE, OURS, BOX)], held), held)
    nothing = {"loss": "—", "AP": "—", "images/s": "—", "ETA": "—"}
    assert [line.pop("table") for line in shown(table)] == ["table"] * 3
    assert [{name: value for name, value in line.items() if name != "table"} for line in shown(table)] == [
        {"row": "RetinaNet", "training": "waiting (never run)", "epoch": "0/12", **nothing, "scored": "no"},
        {
            "row": "RetinaNet-Conf",
            "training": "running",
            "epoch": "3.5/12",
            "loss": "0.123",
            "AP": "12.3",
            "images/s": "80.0",
            "ETA": "1 h 05 min",
            "scored": "no",
        },
        {"row": "IoU-aware", "training": "finished", "epoch": "12/12", **nothing, "scored": "yes"},
    ]


def test_status_has_a_line_for_each_seed_of_each_row_of_each_table() -> None:
    twice = replace(OURS, seeds=(0, 3))
    other = replace(experiment(replace(OURS, label="again")), name="other")
    held = ledger((twice, [finished(AP=30.0), None]))
    lines = shown(status_table(make_plan([experiment(twice), other], held), held))
    assert [(line["table"], line["row"], line["scored"]) for line in lines] == [
        ("table", "RetinaNet-Conf, seed 0", "yes"),
        ("table", "RetinaNet-Conf, seed 3", "no"),
        ("other", "again", "yes"),
    ]


def test_status_cuts_long_reasons_for_people_and_names_the_log_with_the_rest(tmp_path: Path) -> None:
    ((_, train_key, _),) = row_keys(OURS)
    reason = "the loss is nan at update 3: lower train.schedule.learning_rate, or set train.schedule.gradient_clip"
    held = Ledger(trainings={train_key: Record(status="FAILED", run_id="r", note=reason)})
    (tmp_path / train_key).mkdir()
    log = tmp_path / train_key / "error-1.log"
    log.write_text("Traceback")
    plan = make_plan([experiment(OURS)], held)
    cut = status_table(plan, held, tmp_path)
    assert shown(cut)[0]["training"] == "failed: the loss is nan at update 3: lower train.schedule.l…"
    assert cut.notes == (f"RetinaNet-Conf: {log}",)
    whole = status_table(plan, held)
    assert (shown(whole)[0]["training"], whole.notes) == (f"failed: {reason}", ())


def test_status_shows_how_far_the_scoring_of_a_row_is(tmp_path: Path) -> None:
    ((_, train_key, _),) = row_keys(OURS)
    held = Ledger(trainings={train_key: Record(status="FINISHED", run_id="r")})
    write_event(tmp_path / train_key, Scoring(num_done=128, num_images=200, split="val", num_settings=2))
    (line,) = shown(status_table(make_plan([experiment(OURS)], held), held, tmp_path))
    assert line["scored"] == "128 of 200 images of val, 2 settings"


@pytest.mark.parametrize(
    ("seconds", "shown_as"), [(20.0, "< 1 min"), (300.0, "5 min"), (float("inf"), "—"), (7199.0, "2 h 00 min")]
)
def test_the_time_left_is_rounded_to_minutes(seconds: float, shown_as: str) -> None:
    ((_, train_key, _),) = row_keys(OURS)
    record = Record(status="RUNNING", run_id="r", metrics={"perf/eta_s": seconds})
    held = Ledger(trainings={train_key: record})
    assert shown(status_table(make_plan([experiment(OURS)], held), held))[0]["ETA"] == shown_as


def test_a_difference_to_the_reference_has_its_interval_and_a_mark_when_it_is_sure() -> None:
    """Resamples in which ours is 0.5 to 1.5 above, and the box tower -1 to 1: 95 % of each, centred on the means."""
    held = ledger((BASE, [finished(AP=30.0)]), (OURS, [finished(AP=31.0)]), (BOX, [finished(AP=30.2)]))
    keys = {row.label: row_keys(row)[0].evaluation_key for row in (BASE, OURS, BOX)}
    moved = np.linspace(-5, 5, 1001)
    samples = {
        keys["RetinaNet"]: np.tile(moved, (3, 1)),
        keys["RetinaNet-Conf"]: np.tile(moved + 1 + moved / 10, (3, 1)),
        keys["IoU-aware"]: np.tile(moved + moved / 5, (3, 1)),
    }
    table = results_table(experiment(BASE, OURS, BOX, reference="RetinaNet"), held, samples)
    gains = [row["AP over reference"] for row in shown(table)]
    assert gains == ["—", "+1.0 [+0.5, +1.5]*", "+0.2 [-0.8, +1.1]"]
    assert table.notes[3:] == (
        "[95 % interval] by 1000 paired resamples of the images, and by seeds where several.",
        "* The interval excludes 0.",
    )
    del samples[keys["IoU-aware"]]
    table = results_table(experiment(BASE, OURS, BOX, reference="RetinaNet"), held, samples)
    assert shown(table)[2]["AP over reference"] == "+0.2"
    assert table.notes[-1] == "No interval, for want of matches: IoU-aware."
