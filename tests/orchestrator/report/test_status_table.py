"""What `rnc status` says; every number in them is worked out by hand here."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.config import ConfidenceConfig, InferenceConfig, ModelConfig, TrainConfig
from orchestrator.experiment.plan import Ledger, Record, make_plan, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.report.status_table import MANY_LINES, status_table
from orchestrator.worker.training_log import Scoring, write_event
from tests.orchestrator.ledgers import experiment, finished, ledger_of
from tests.orchestrator.tables import shown

BASE = Row(
    label="RetinaNet",
    train=TrainConfig(model=ModelConfig(confidence=None)),
    inference=InferenceConfig(confidence_exponent=0.0),
)
OURS = Row(label="RetinaNet-Conf")
BOX = Row(label="IoU-aware", train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))))


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
    table = status_table(make_plan([experiment("table", [BASE, OURS, BOX])], held), held)
    nothing = {"loss": "—", "val AP": "—", "images/s": "—", "ETA": "—"}
    assert [line.pop("table") for line in shown(table)] == ["table"] * 3
    assert [{name: value for name, value in line.items() if name != "table"} for line in shown(table)] == [
        {"row": "RetinaNet", "training": "waiting (never run)", "epoch": "0/12", **nothing, "AP": "—", "scored": "no"},
        {
            "row": "RetinaNet-Conf",
            "training": "running",
            "epoch": "3.5/12",
            "loss": "0.123",
            "val AP": "12.3",
            "images/s": "80.0",
            "ETA": "1 h 05 min",
            "AP": "—",
            "scored": "no",
        },
        {"row": "IoU-aware", "training": "finished", "epoch": "12/12", **nothing, "AP": "30.0", "scored": "yes"},
    ]


def test_status_shows_the_ap_of_each_row_and_that_of_a_training_beside_the_first_of_its_rows_alone() -> None:
    others = [replace(OURS, label=f"alpha {e}", inference=InferenceConfig(confidence_exponent=e)) for e in (0.2, 0.6)]
    held = ledger_of((OURS, [finished(AP=30.0)]), (others[0], [finished(AP=31.0)]))
    ((_, train_key, _),) = row_keys(OURS)
    validated = replace(held.trainings[train_key], metrics={"val/AP": 24.4})
    held = replace(held, trainings={train_key: validated})
    lines = shown(status_table(make_plan([experiment("table", [OURS, *others])], held), held))
    assert [(line["val AP"], line["AP"]) for line in lines] == [("24.4", "30.0"), ("—", "31.0"), ("—", "—")]


def test_status_tells_what_is_well_from_what_is_not_by_colours() -> None:
    def tone(record: Record | None) -> str:
        ((_, train_key, _),) = row_keys(OURS)
        held = Ledger(trainings={train_key: record} if record else {})
        return status_table(make_plan([experiment("table", [OURS])], held), held).cells()[0][2].tone

    records = [Record(status=status, run_id="r") for status in ("FINISHED", "FAILED", "KILLED", "RUNNING")]
    assert [*map(tone, records), tone(None)] == ["good", "bad", "warn", "", ""]


def test_status_has_a_line_for_each_seed_of_each_row_of_each_table() -> None:
    twice = replace(OURS, seeds=(0, 3))
    other = experiment("other", [replace(OURS, label="again")])
    held = ledger_of((twice, [finished(AP=30.0), None]))
    lines = shown(status_table(make_plan([experiment("table", [twice]), other], held), held))
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
    plan = make_plan([experiment("table", [OURS])], held)
    cut = status_table(plan, held, tmp_path)
    assert shown(cut)[0]["training"] == "failed: the loss is nan at update 3: lower train.schedule.l…"
    assert cut.notes == (f"RetinaNet-Conf: {log}",)
    whole = status_table(plan, held)
    assert (shown(whole)[0]["training"], whole.notes) == (f"failed: {reason}", ())


def test_status_shows_how_far_the_scoring_of_a_row_is(tmp_path: Path) -> None:
    ((_, train_key, _),) = row_keys(OURS)
    held = Ledger(trainings={train_key: Record(status="FINISHED", run_id="r")})
    write_event(tmp_path / train_key, Scoring(num_done=128, num_images=200, split="val", num_settings=2))
    (line,) = shown(status_table(make_plan([experiment("table", [OURS])], held), held, tmp_path))
    assert line["scored"] == "128 of 200 images of val, 2 settings"


@pytest.mark.parametrize(
    ("seconds", "shown_as"), [(20.0, "< 1 min"), (300.0, "5 min"), (float("inf"), "—"), (7199.0, "2 h 00 min")]
)
def test_the_time_left_is_rounded_to_minutes(seconds: float, shown_as: str) -> None:
    ((_, train_key, _),) = row_keys(OURS)
    record = Record(status="RUNNING", run_id="r", metrics={"perf/eta_s": seconds})
    held = Ledger(trainings={train_key: record})
    assert shown(status_table(make_plan([experiment("table", [OURS])], held), held))[0]["ETA"] == shown_as


def test_a_status_of_many_lines_counts_them_by_where_they_stand() -> None:
    rows = [
        replace(OURS, label=f"row {n}", train=replace(OURS.train, seed=n), seeds=(n,)) for n in range(MANY_LINES + 1)
    ]
    stopped = Record(status="STOPPED", run_id="s", note="stopped early")
    measured: list[Record | None] = [finished(AP=30.0)]
    held = ledger_of(*((row, measured) for row in rows[:60]))
    trained, running, early = (row_keys(row)[0].train_key for row in rows[60:63])
    trainings = {trained: finished(), running: Record(status="RUNNING", run_id="r"), early: stopped}
    held = replace(held, trainings={**held.trainings, **trainings})
    table = status_table(make_plan([experiment("table", rows)], held), held)
    assert table.notes[0] == "101 lines: 60 measured, 38 waiting, 1 to be scored, 1 running, 1 stopped."
    fewer = status_table(make_plan([experiment("table", rows[:MANY_LINES])], held), held)
    assert not [note for note in fewer.notes if "lines:" in note]
