"""What killed processes and deleted files leave behind in a real MLflow server, and how it is mended."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import InferenceConfig, ModelConfig, TrainConfig
from orchestrator import names
from orchestrator.driver.repair.defects import find_defects, repair
from orchestrator.driver.submit import submit
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.site import Site
from orchestrator.tracking import artifacts, rest, runs
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.artifacts import check_files
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL
from tests.orchestrator.ledgers import experiment, keep_checkpoint, record, suite_of

TABLE = experiment(
    "table1",
    [
        Row(label="plain", train=TrainConfig(model=ModelConfig(confidence=None))),
        Row(label="ours"),
        Row(label="ours, 0.2", inference=InferenceConfig(confidence_exponent=0.2)),
    ],
)
DEAD = "from orchestrator.process import this_process; print(this_process())"


@pytest.fixture
def suite(mlflow_uri, request) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


def mended(suite: Tracking, storage: Path) -> list[str]:
    """Mend everything, and return what it was; a second look must find nothing."""
    said: list[str] = []
    repair(suite_of(suite, [TABLE], storage), said.append)
    assert find_defects(suite_of(suite, [TABLE], storage)) == []
    return said


def checked(suite: Tracking) -> Plan:
    """The plan once the files were looked at."""
    ledger = tracking.read_ledger(suite)
    return make_plan([TABLE], check_files(suite, ledger, [*ledger.trainings, *ledger.evaluations]))


def test_an_evaluation_that_lost_its_detections_is_named_by_the_plan_and_scored_again(suite, tmp_path):
    plan = record(suite, [TABLE], tmp_path)
    assert not plan.missing_evaluations
    assert not checked(suite).missing_evaluations
    lost = plan.evaluations_of("table1", "ours, 0.2")[0].key
    artifacts.delete(suite.uri, tracking.read_ledger(suite).evaluations[lost].run_id, "detections/detections.parquet")
    assert checked(suite).missing_evaluations == {lost: "its detections are missing"}
    assert not checked(suite).missing_trainings
    assert mended(suite, tmp_path) == [
        "evaluation 'ours, 0.2' of table1, seed 0: its detections are missing in MLflow: to be scored again"
    ]
    unchecked = make_plan([TABLE], tracking.read_ledger(suite))
    assert unchecked.missing_evaluations == {lost: "its detections are missing"}


def test_a_file_that_was_cut_short_counts_as_lost(suite, tmp_path):
    plan = record(suite, [TABLE], tmp_path)
    cut = plan.evaluations_of("table1", "plain")[0].key
    run_id = tracking.read_ledger(suite).evaluations[cut].run_id
    runs.write(suite.uri, run_id, tags={names.FILES: json.dumps({"detections/detections.parquet": 10**6})})
    assert checked(suite).missing_evaluations == {cut: "its detections are missing"}


def test_weights_that_mlflow_lost_are_stored_again_from_the_checkpoint_that_ray_kept(suite, tmp_path):
    record(suite, [TABLE], tmp_path)
    key = next(iter(make_plan([TABLE], Ledger()).trainings))
    before = tracking.read_ledger(suite).trainings[key]
    artifacts.delete(suite.uri, before.run_id, "checkpoint/model.safetensors")
    assert checked(suite).missing_trainings == {key: "its checkpoint is missing"}
    (text,) = mended(suite, tmp_path)
    assert text.startswith("training 'plain': its checkpoint is missing in MLflow: stored again from ")
    assert not checked(suite).missing_trainings
    assert not checked(suite).missing_evaluations
    assert artifacts.download(suite.uri, before.run_id, "checkpoint/model.safetensors", tmp_path).read_text() == key
    assert tracking.read_ledger(suite).trainings[key] == before


def test_weights_that_nobody_has_any_more_are_trained_again(suite, tmp_path):
    record(suite, [TABLE], tmp_path / "storage")
    key = next(iter(make_plan([TABLE], Ledger()).trainings))
    artifacts.delete(suite.uri, tracking.read_ledger(suite).trainings[key].run_id, "checkpoint/model.safetensors")
    config = make_plan([TABLE], Ledger()).trainings[key].config
    keep_checkpoint(tmp_path / "other", key, weights="those of another training", config=config)
    (text,) = mended(suite, tmp_path / "other")
    assert text.endswith("to be trained again")
    assert make_plan([TABLE], tracking.read_ledger(suite)).missing_trainings == {key: "its checkpoint is missing"}


def test_a_run_that_was_deleted_counts_as_never_run(suite, tmp_path):
    plan = record(suite, [TABLE], tmp_path)
    key = plan.evaluations_of("table1", "ours")[0].key
    run_id = tracking.read_ledger(suite).evaluations[key].run_id
    rest.post(suite.uri, "runs/delete", {"run_id": run_id})
    assert checked(suite).missing_evaluations == {key: "never run"}


def test_a_run_whose_process_is_gone_is_closed_and_a_live_one_is_left(suite, tmp_path):
    dead = subprocess.run([sys.executable, "-c", DEAD], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    ours, theirs = (tracking.begin_training(suite, run) for run in make_plan([TABLE], Ledger()).trainings.values())
    runs.write(suite.uri, theirs, tags={"driver": dead})
    assert mended(suite, tmp_path) == ["training 'ours' says RUNNING, and its process is gone: closed as interrupted"]
    live, killed = tracking.read_ledger(suite).trainings.values()
    if live.run_id != ours:
        live, killed = killed, live
    assert (live.status, killed.status, killed.note) == ("RUNNING", "KILLED", "interrupted")


def test_metrics_that_wait_in_a_journal_are_sent_once_their_training_is_over(suite, tmp_path):
    run = next(iter(make_plan([TABLE], Ledger()).trainings.values()))
    run_id = tracking.begin_training(suite, run)
    journal = tmp_path / run.key / JOURNAL
    journal.parent.mkdir()
    lines = [{"step": step, "timestamp": 1000 + step, "metrics": {"train/loss": 1 / step}} for step in (1, 2, 3)]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert mended(suite, tmp_path) == []  # this process answers for it, and may still be sending
    tracking.end_training(suite, run_id, "FAILED", "MLflow was away")
    (text,) = mended(suite, tmp_path)
    assert "training 'plain': MLflow lacks 3 metrics" in text
    points = [(point["step"], point["value"]) for point in runs.history(suite.uri, run_id, "train/loss")]
    assert points == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


def test_looking_writes_nothing(suite, tmp_path):
    plan = record(suite, [TABLE], tmp_path)
    key = next(iter(plan.trainings))
    artifacts.delete(suite.uri, tracking.read_ledger(suite).trainings[key].run_id, "checkpoint/model.safetensors")
    before = list(runs.search_runs(suite.uri, str(suite.experiment_id), ""))
    assert len(find_defects(suite_of(suite, [TABLE], tmp_path))) == 1
    assert list(runs.search_runs(suite.uri, str(suite.experiment_id), "")) == before


def test_a_submit_of_a_finished_suite_writes_nothing(suite, tmp_path):
    site = Site(home=tmp_path, tracking_uri=suite.uri)
    table = replace(TABLE, suite=suite.suite)
    record(suite, [table], site.storage / suite.suite)
    said: list[str] = []

    def content() -> tuple[object, ...]:
        held = rest.get(suite.uri, "experiments/get", {"experiment_id": suite.experiment_id})["experiment"]
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        return list(runs.search_runs(suite.uri, str(suite.experiment_id), "")), held, files

    assert submit(Suite([table], site), said.append).exit_code == 0
    before = content()
    assert submit(Suite([table], site), said.append).exit_code == 0
    assert content() == before
    assert said.count("Nothing is missing: 2 trainings and 3 evaluations stand.") == 2
