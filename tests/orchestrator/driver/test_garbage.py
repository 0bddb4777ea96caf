"""What a suite in a real MLflow server keeps, and what of it may go."""

import os
import time
from dataclasses import replace

import pytest

from model.config import InferenceConfig, ModelConfig, TrainConfig
from orchestrator.driver.garbage import CACHE_DAYS, FREED, collect_garbage, find_garbage
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.experiment.search import Asha, Search
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking import rest, runs
from orchestrator.tracking.artifacts import check_files
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL
from tests.orchestrator.ledgers import experiment, keep_checkpoint, record, suite_of

PLAIN = Row(label="plain", train=TrainConfig(model=ModelConfig(confidence=None)))
OURS = Row(label="ours")
OLD = Row(label="old", seeds=(5,))
BOTH = experiment("table1", [PLAIN, OURS])
OTHER = experiment("table2", [OLD])


@pytest.fixture
def suite(mlflow_uri, request) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


@pytest.fixture(autouse=True)
def _no_caches(monkeypatch):
    monkeypatch.setattr("orchestrator.driver.garbage.own_folder", lambda: None)


def key_of(row: Row) -> str:
    return row_keys(row)[0].train_key


def plan_of(*experiments: Experiment) -> Plan:
    return make_plan(experiments, Ledger())


def verdicts(suite: Suite) -> dict[tuple[str, str], tuple[bool, str]]:
    """By kind and row: whether it may go, and why."""
    found = {}
    for item in find_garbage(suite):
        kind = "weights" if item.what.endswith("weights") else "resume"
        row = next(r.label for r in (PLAIN, OURS, OLD) if key_of(r) in item.what or repr(r.label) in item.what)
        found[kind, row] = (item.free is not None, item.reason)
    return found


def test_checkpoints_to_resume_from_go_once_finished_and_weights_of_rows_stay(suite, tmp_path):
    record(suite, [BOTH], tmp_path)
    found = verdicts(suite_of(suite, [BOTH], tmp_path))
    assert found["resume", "plain"] == (True, "it is finished, and its weights stand in MLflow")
    assert found["weights", "plain"] == (False, "row 'plain' needs it")
    for item in find_garbage(suite_of(suite, [BOTH], tmp_path)):
        if item.free is not None:
            assert item.num_bytes > 1000
            item.free()
    assert not list(tmp_path.glob("*/epoch-*"))
    assert not any(goes for goes, _ in verdicts(suite_of(suite, [BOTH], tmp_path)).values())
    ledger = tracking.read_ledger(suite)
    assert not make_plan([BOTH], check_files(suite, ledger, ledger.trainings)).missing_trainings


def test_what_another_table_uses_stays_until_that_file_is_named_without_the_row(suite, tmp_path):
    record(suite, [BOTH, OTHER], tmp_path)
    found = verdicts(suite_of(suite, [BOTH], tmp_path))
    assert found["weights", "old"] == (False, "table2 uses it; name that file as well")
    emptied = experiment("table2", [OURS])
    assert verdicts(suite_of(suite, [BOTH, emptied], tmp_path))["weights", "old"][0]
    (item,) = (
        i for i in find_garbage(suite_of(suite, [BOTH, emptied], tmp_path)) if "'old" in i.what and i.free is not None
    )
    assert item.free is not None
    item.free()
    assert make_plan([OTHER], tracking.read_ledger(suite)).missing_trainings == {key_of(OLD): FREED}
    assert not make_plan([BOTH], tracking.read_ledger(suite)).missing_trainings


def test_pins_aliases_and_what_is_running_stay(suite, tmp_path):
    record(suite, [experiment("table1", [PLAIN, OURS, OLD])], tmp_path)
    ledger = tracking.read_ledger(suite)
    runs.write(suite.uri, ledger.trainings[key_of(PLAIN)].run_id, tags={"pin": "for the talk"})
    run_id = ledger.trainings[key_of(OURS)].run_id
    rest.post(suite.uri, "registered-models/create", {"name": suite.suite})
    version = {"name": suite.suite, "source": f"runs:/{run_id}/checkpoint", "run_id": run_id}
    rest.post(suite.uri, "model-versions/create", version)
    rest.post(suite.uri, "registered-models/alias", {"name": suite.suite, "alias": "best", "version": "1"})
    runs.set_status(suite.uri, ledger.trainings[key_of(OLD)].run_id, "RUNNING")
    found = verdicts(suite_of(suite, [experiment("table1", [Row(label="new", seeds=(9,))])], tmp_path))
    assert found["weights", "plain"] == found["resume", "plain"] == (False, "its run is pinned")
    assert found["weights", "ours"] == (False, f"the model registry names it: {suite.suite}@best")
    assert found["resume", "old"] == (False, "it says RUNNING; if its process is gone, rnc repair closes it")


def test_an_unfinished_training_keeps_its_checkpoints_only_while_a_row_needs_it(suite, tmp_path):
    keep_checkpoint(tmp_path, key_of(OURS), epoch=3)
    (tmp_path / key_of(OURS) / JOURNAL).write_text("{}\n")
    found = verdicts(suite_of(suite, [BOTH], tmp_path))
    assert found == {("resume", "ours"): (False, "row 'ours' goes on from epoch 3")}
    assert verdicts(suite_of(suite, [OTHER], tmp_path))["resume", "ours"][0]
    (item,) = find_garbage(suite_of(suite, [OTHER], tmp_path))
    assert item.free is not None
    item.free()
    assert [path.name for path in (tmp_path / key_of(OURS)).iterdir()] == [JOURNAL]


def test_checkpoints_of_a_training_that_its_search_stopped_may_go(suite, tmp_path):
    search = Search(labels=("ours",), space={}, num_samples=1, metric="AP", asha=Asha(), seed=0)
    searched = replace(experiment("searched", [OURS]), search=search)
    (run,) = plan_of(searched).trainings.values()
    folder = keep_checkpoint(tmp_path, run.key, epoch=2).parent
    reason = "stopped early by ASHA after epoch 2 (AP 12.3)"
    tracking.stop_training(suite, tracking.begin_training(suite, run), reason, folder / JOURNAL)
    assert verdicts(suite_of(suite, [searched], tmp_path)) == {("resume", "ours"): (True, reason)}
    assert not verdicts(suite_of(suite, [searched, BOTH], tmp_path))["resume", "ours"][0]


def test_a_setting_of_inference_alone_keeps_the_weights_it_needs(suite, tmp_path):
    record(suite, [BOTH], tmp_path)
    scored = experiment("table5", [Row(label="ours", inference=InferenceConfig(confidence_exponent=0.7))])
    assert verdicts(suite_of(suite, [scored], tmp_path))["weights", "ours"] == (False, "row 'ours' needs it")


def test_scored_shards_go_once_nothing_was_scored_there_for_a_month(suite, tmp_path):
    old, recent = tmp_path / "scored" / "old", tmp_path / "scored" / "recent"
    for folder, days in ((old, CACHE_DAYS + 1), (recent, CACHE_DAYS - 1)):
        folder.mkdir(parents=True)
        (folder / "shard.parquet").write_bytes(b"four")
        os.utime(folder, times=(time.time() - days * 86400,) * 2)
    (item,) = find_garbage(suite_of(suite, [BOTH], tmp_path / "ray", tmp_path))
    assert item.what == f"{old}: scored images" and item.num_bytes == 4 and item.free is not None
    item.free()
    assert not old.exists() and recent.exists()


def test_what_was_freed_is_told_as_gone_and_not_as_what_may_go(suite, tmp_path):
    record(suite, [BOTH], tmp_path)
    (before,) = collect_garbage(suite_of(suite, [BOTH], tmp_path), deletes=False)
    (freed,) = collect_garbage(suite_of(suite, [BOTH], tmp_path), deletes=True)
    assert "MB may go" in before.notes[0] and before.notes[0].endswith("; --delete frees them.")
    assert "MB were freed" in freed.notes[0] and "may go" not in freed.to_text()
    assert {row[2] for row in before.rows} == {"free", "keep"} and {row[2] for row in freed.rows} == {"freed", "keep"}
    assert [row[:2] for row in freed.rows] == [row[:2] for row in before.rows]
    (after,) = collect_garbage(suite_of(suite, [BOTH], tmp_path), deletes=False)
    assert after.notes[0].startswith("0.0 MB may go")
