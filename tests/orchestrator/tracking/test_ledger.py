"""The ledger on a real MLflow server, one suite to a test; expected values are those that the test records."""

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import (
    METRICS,
    AssignmentConfig,
    ClassificationConfig,
    ConfidenceConfig,
    DataConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
)
from model.settings import to_dict
from orchestrator.driver.lock import looks_alive
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Evaluation, Ledger, Place, TrainRun, evaluation_key, train_key
from orchestrator.experiment.rows import Resources
from orchestrator.process import this_process
from orchestrator.tracking import artifacts, rest, runs
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.evaluations.classes import ClassRecord
from orchestrator.tracking.runs import Run, Tracking, open_tracking, read_runs, tag_experiment

BOX = TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box", loss="l1")), seed=3)
NUMBERS = {name: 100 / (place + 3) for place, name in enumerate(METRICS)}  # no short decimals: 33.333..., 25, 20


@pytest.fixture
def suite(mlflow_uri, request) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def train_run(config: TrainConfig = BOX) -> TrainRun:
    return TrainRun(key=train_key(config), config=config, resources=Resources(), suite="any", label="box, L1")


def evaluation(exponent: float = 0.4, *places: Place) -> Evaluation:
    inference = InferenceConfig(confidence_exponent=exponent)
    key = evaluation_key(train_key(BOX), inference, "val2017")
    return Evaluation(
        key=key,
        train_key=train_key(BOX),
        inference=inference,
        split="val2017",
        suite="any",
        places=places or (Place("table3", 2, "λ = 0.4"),),
        paper={"AP": 36.5},
    )


def trained(suite: Tracking, checkpoint: Path) -> str:
    run_id = tracking.begin_training(suite, train_run())
    tracking.record_checkpoint(suite, run_id, checkpoint)
    tracking.end_training(suite, run_id, "FINISHED")
    return run_id


def tags(suite: Tracking, run_id: str) -> dict[str, str]:
    return dict(runs.get_run(suite.uri, run_id).tags)


def params(suite: Tracking, run_id: str) -> dict[str, str]:
    return dict(runs.get_run(suite.uri, run_id).params)


def artifact(suite: Tracking, run_id: str, path: str) -> str:
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(run_id=run_id, artifact_path=path, tracking_uri=suite.uri)).read_text()


def all_runs(suite: Tracking) -> list[runs.Run]:
    assert suite.experiment_id is not None
    return list(runs.search_runs(suite.uri, suite.experiment_id, ""))


def test_a_suite_that_does_not_exist_is_an_empty_view_and_stays_absent(mlflow_uri):
    view = open_tracking(mlflow_uri, "never made", create=False)
    assert tracking.read_ledger(view) == Ledger()
    with pytest.raises(UserError, match="holds nothing of suite never made yet"):
        tracking.begin_training(view, train_run())
    assert open_tracking(mlflow_uri, "never made", create=False).experiment_id is None


def test_a_suite_is_made_once(suite):
    assert open_tracking(suite.uri, suite.suite) == suite
    assert open_tracking(suite.uri, suite.suite, create=False) == suite


def test_a_suite_in_the_trash_is_an_error_that_says_so(suite):
    rest.post(suite.uri, "experiments/delete", {"experiment_id": suite.experiment_id})
    with pytest.raises(UserError, match="is deleted; restore it"):
        open_tracking(suite.uri, suite.suite)


def test_a_training_is_running_then_finished_with_its_config_and_checkpoint(suite, checkpoint):
    run_id = tracking.begin_training(suite, train_run())
    assert tracking.read_ledger(suite).trainings[train_key(BOX)].status == "RUNNING"
    digest = tracking.record_checkpoint(suite, run_id, checkpoint)
    tracking.end_training(suite, run_id, "FINISHED")
    record = tracking.read_ledger(suite).trainings[train_key(BOX)]
    assert (record.status, record.run_id, record.note) == ("FINISHED", run_id, "")
    assert digest == hashlib.sha256(b"weights").hexdigest() == tags(suite, run_id)["checkpoint_sha256"]
    assert json.loads(artifact(suite, run_id, "config.json")) == to_dict(BOX)
    assert artifact(suite, run_id, "checkpoint/model.safetensors") == "weights"
    assert artifact(suite, run_id, "checkpoint/config.json") == "{}"


def test_a_training_shows_its_identity_and_what_differs_from_the_defaults(suite):
    run_id = tracking.begin_training(suite, train_run())
    assert params(suite, run_id) == {"head": "box", "loss": "l1"}
    expected = {"kind": "training", "train_key": train_key(BOX), "seed": "3", "suite": suite.suite}
    expected |= {"mlflow.runName": "box, L1"}
    assert expected.items() <= tags(suite, run_id).items()
    plain = TrainConfig(model=ModelConfig(confidence=None))
    assert params(suite, tracking.begin_training(suite, train_run(plain))) == {"head": "none"}


def test_a_training_tells_what_it_last_ran_on(suite):
    for resources in (Resources(num_workers=8, gpus_per_worker=1.0), Resources(num_workers=2, gpus_per_worker=0.5)):
        tracking.begin_training(suite, replace(train_run(), resources=resources))
        (record,) = tracking.read_ledger(suite).trainings.values()
        assert record.resources == resources


def test_a_training_does_not_finish_without_its_checkpoint(suite):
    run_id = tracking.begin_training(suite, train_run())
    with pytest.raises(ValueError, match="before its checkpoint is recorded"):
        tracking.end_training(suite, run_id, "FINISHED")
    assert tracking.read_ledger(suite).trainings[train_key(BOX)].status == "RUNNING"


def test_a_training_that_failed_says_why_and_is_taken_up_in_the_same_run(suite):
    first = tracking.begin_training(suite, train_run())
    tracking.end_training(suite, first, "FAILED", "loss is NaN at step 7")
    record = tracking.read_ledger(suite).trainings[train_key(BOX)]
    assert (record.status, record.note) == ("FAILED", "loss is NaN at step 7")
    assert tracking.begin_training(suite, train_run()) == first
    tracking.end_training(suite, first, "KILLED")
    record = tracking.read_ledger(suite).trainings[train_key(BOX)]
    assert (record.status, record.note) == ("KILLED", "")
    assert len(all_runs(suite)) == 1


def test_a_training_names_its_seed_once_its_row_has_several(suite):
    run_id = tracking.begin_training(suite, train_run())
    tracking.name_trainings(suite, read_runs(suite), [train_run()])
    assert tags(suite, run_id)["mlflow.runName"] == "box, L1"
    several = replace(train_run(), label="box, L1, seed 3")
    tracking.name_trainings(suite, read_runs(suite), [several])
    assert tags(suite, run_id)["mlflow.runName"] == "box, L1, seed 3"
    tracking.name_trainings(suite, read_runs(suite), [train_run()])  # a file with one seed does not take it back
    assert tags(suite, run_id)["mlflow.runName"] == "box, L1, seed 3"


def test_a_training_begins_with_what_tells_it_from_another_of_the_same_label(suite):
    """Its name follows that of its evaluations; the name of a run that began before this was told is brought up."""
    model = ModelConfig(confidence=None, classification=ClassificationConfig(loss="qfl"))
    trainings = []
    for one in (model, replace(model, assignment=AssignmentConfig(kind="atss"))):
        config = TrainConfig(model=one, seed=3)
        trainings.append(replace(train_run(), key=train_key(config), config=config, label="QFL"))
    run_ids = [tracking.begin_training(suite, one) for one in trainings]

    def called() -> list[str]:
        return [tags(suite, run_id)["mlflow.runName"] for run_id in run_ids]

    assert called() == ["QFL", "QFL, atss"]
    several = [replace(one, label="QFL, seed 3") for one in trainings]
    for earlier in ("QFL, atss", "QFL", "QFL, seed 3"):
        runs.rename(suite.uri, run_ids[1], earlier)
        tracking.name_trainings(suite, read_runs(suite), several)
        assert called() == ["QFL, seed 3", "QFL, atss, seed 3"]
    tracking.name_trainings(suite, read_runs(suite), trainings)
    assert called() == ["QFL, seed 3", "QFL, atss, seed 3"]
    runs.rename(suite.uri, run_ids[1], "mine")
    tracking.name_trainings(suite, read_runs(suite), several)
    assert called() == ["QFL, seed 3", "mine"]


def test_the_curves_of_a_training_are_in_its_record(suite):
    run_id = tracking.begin_training(suite, train_run())
    runs.write(suite.uri, run_id, metrics={"train/loss": 0.25, "val/AP": 12.5})
    assert tracking.read_ledger(suite).trainings[train_key(BOX)].metrics == {"train/loss": 0.25, "val/AP": 12.5}


def test_an_evaluation_keeps_every_digit_and_leaves_out_what_is_absent(suite, checkpoint, tmp_path):
    (tmp_path / "detections.json").write_text("[1]")
    (tmp_path / "matches").write_text("abc")
    run_id = tracking.record_evaluation(
        suite,
        evaluation(),
        NUMBERS | {"APl": None},
        detections=tmp_path / "detections.json",
        matches=tmp_path / "matches",
        train_run_id=trained(suite, checkpoint),
    )
    record = tracking.read_ledger(suite).evaluations[evaluation().key]
    assert (record.status, record.run_id) == ("FINISHED", run_id)
    assert record.metrics == {name: value for name, value in NUMBERS.items() if name != "APl"}
    assert artifact(suite, run_id, "detections/detections.json") == "[1]"
    assert artifact(suite, run_id, "detections/matches") == "abc"
    # sha256 of "abc", from FIPS 180-2, appendix B.1
    assert record.matches == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_evaluation_shows_its_places_the_papers_numbers_and_all_settings(suite, checkpoint):
    places = (Place("table3", 2, "λ = 0.2"), Place("table5", 11, "ours"), Place("table3", 4, "again"))
    run_id = tracking.record_evaluation(
        suite, evaluation(0.2, *places), NUMBERS, detections=None, train_run_id=trained(suite, checkpoint)
    )
    expected = {"kind": "evaluation", "evaluation_key": evaluation(0.2).key, "train_key": train_key(BOX)}
    expected |= {"split": "val2017", "seed": "3", "paper.AP": "36.5"}
    # A name that is right in both tables, which call it by two labels.
    expected |= {"mlflow.runName": "IoU-aware Net, l1, resnet50, alpha 0.2, seed 3"}
    expected |= {"row.table3": "02 λ = 0.2", "row.table5": "11 ours"}
    assert expected.items() <= tags(suite, run_id).items()
    assert params(suite, run_id) == {"head": "box", "loss": "l1", "confidence_exponent": "0.2"}


def test_recording_an_evaluation_twice_changes_nothing(suite, checkpoint):
    training = trained(suite, checkpoint)
    once, twice = (
        tracking.record_evaluation(suite, evaluation(), NUMBERS, detections=None, train_run_id=training)
        for _ in range(2)
    )
    assert once == twice
    assert len(list(runs.history(suite.uri, once, "val/AP"))) == 1
    assert tracking.read_ledger(suite).evaluations[evaluation().key].metrics == NUMBERS


def test_classes_are_recorded_as_metrics_files_and_a_table_and_twice_changes_nothing(suite, checkpoint, tmp_path):
    (tmp_path / "classes.json").write_text('{"columns": ["class"], "data": [["cat"]]}')
    classes = ClassRecord(metrics={"AP_class/cat": 12.34}, files=(tmp_path / "classes.json",))
    training = trained(suite, checkpoint)
    once, twice = (
        tracking.record_evaluation(
            suite, evaluation(), NUMBERS, detections=None, classes=classes, train_run_id=training
        )
        for _ in range(2)
    )
    assert once == twice and [point["value"] for point in runs.history(suite.uri, once, "AP_class/cat")] == [12.34]
    assert json.loads(artifact(suite, once, "classes/classes.json"))["data"] == [["cat"]]
    assert json.loads(tags(suite, once)["mlflow.loggedArtifacts"]) == [
        {"path": "classes/classes.json", "type": "table"}
    ]
    record = tracking.read_ledger(suite).evaluations[evaluation().key]
    # an evaluation is not made again for want of them
    assert record.metrics == NUMBERS and record.files == {}


def test_calibration_is_recorded_under_plain_names_and_moves_none_of_the_twelve(suite, checkpoint):
    training = trained(suite, checkpoint)
    once, twice = (
        tracking.record_evaluation(
            suite,
            evaluation(),
            NUMBERS,
            detections=None,
            calibration={"LaECE": 100 / 3, "D-ECE": None, "oLRP": 60.0},
            train_run_id=training,
        )
        for _ in range(2)
    )
    held = runs.get_run(suite.uri, once).metrics
    assert once == twice and len(list(runs.history(suite.uri, once, "LaECE"))) == 1
    assert (held["LaECE"], held["oLRP"]) == (33.3333, 60.0)
    assert not {"val/LaECE", "D-ECE"} & held.keys()
    record = tracking.read_ledger(suite).evaluations[evaluation().key]
    assert (record.calibration, record.metrics) == ({"LaECE": 33.3333, "oLRP": 60.0}, NUMBERS)
    # Written before there was such a thing, and finished all the same.
    other = tracking.record_evaluation(suite, evaluation(0.2), NUMBERS, detections=None, train_run_id=training)
    held_now = tracking.read_ledger(suite).evaluations[evaluation(0.2).key]
    assert (held_now.run_id, held_now.status, held_now.calibration) == (other, "FINISHED", {})
    tracking.place_evaluations(suite, read_runs(suite), [evaluation()], ["table1"])
    assert runs.get_run(suite.uri, once).metrics["LaECE"] == 33.3333  # nothing rounds it to the two digits of others


def test_what_scores_say_of_placement_is_recorded_beside_the_numbers_and_twice_changes_nothing(
    suite, checkpoint, tmp_path
):
    (tmp_path / "counts.parquet").write_text("counts")
    training = trained(suite, checkpoint)
    once, twice = (
        tracking.record_evaluation(
            suite,
            evaluation(),
            NUMBERS,
            detections=None,
            misalignment=[tmp_path / "counts.parquet"],
            statistics={"ece": 100 / 3, "objects_lost": None},
            train_run_id=training,
        )
        for _ in range(2)
    )
    assert once == twice and len(list(runs.history(suite.uri, once, "misalignment/ece"))) == 1
    record = tracking.read_ledger(suite).evaluations[evaluation().key]
    assert record.misalignment == {"misalignment/ece": 33.3333}
    assert record.metrics == NUMBERS and record.files == {"misalignment/counts.parquet": 6}
    assert artifact(suite, once, "misalignment/counts.parquet") == "counts"


def test_an_evaluation_without_misalignment_is_as_finished_as_before(suite, checkpoint):
    tracking.record_evaluation(suite, evaluation(), NUMBERS, detections=None, train_run_id=trained(suite, checkpoint))
    record = tracking.read_ledger(suite).evaluations[evaluation().key]
    assert (record.status, record.misalignment) == ("FINISHED", {})


def test_a_table_that_comes_later_is_entered_in_the_evaluations_it_uses(suite, checkpoint):
    training = trained(suite, checkpoint)
    run_id = tracking.record_evaluation(suite, evaluation(), NUMBERS, detections=None, train_run_id=training)
    later = replace(evaluation(), places=(*evaluation().places, Place("figure4", 0, "new")))
    tracking.place_evaluations(suite, read_runs(suite), [later, evaluation(0.9)])
    assert {"row.table3": "02 λ = 0.4", "row.figure4": "00 new"}.items() <= tags(suite, run_id).items()
    assert tracking.read_ledger(suite).evaluations.keys() == {evaluation().key}


def test_an_evaluation_loses_its_row_in_a_table_at_hand_that_holds_it_no_longer_and_keeps_the_others(suite, checkpoint):
    places = (Place("table3", 2, "CE"), Place("table5", 11, "CE"))
    once = evaluation(0.4, *places)
    run_id = tracking.record_evaluation(suite, once, NUMBERS, detections=None, train_run_id=trained(suite, checkpoint))
    moved = replace(once, places=(Place("table3", 6, "CE loss"),), paper={})
    assert tracking.place_evaluations(suite, read_runs(suite), [moved], ["table3"])
    held = tags(suite, run_id)
    assert (held["row.table3"], held["row.table5"]) == ("06 CE loss", "11 CE")
    assert held["paper.AP"] == "36.5"  # it may be that of table 5, which is not at hand
    assert held["mlflow.runName"] == "IoU-aware Net, l1, resnet50, alpha 0.4, seed 3"
    assert tracking.place_evaluations(suite, read_runs(suite), [moved], ["table3", "table5"])
    held = tags(suite, run_id)
    assert "row.table5" not in held and "paper.AP" not in held
    assert held["mlflow.runName"] == "CE loss, seed 3"
    metrics = runs.get_run(suite.uri, run_id).metrics
    assert math.isnan(metrics["AP paper"]) and math.isnan(metrics["AP Δ"])
    assert tracking.place_evaluations(suite, read_runs(suite), [], ["table3"])
    assert not [name for name in tags(suite, run_id) if name.startswith("row.")]
    assert not tracking.place_evaluations(suite, read_runs(suite), [], ["table3", "table5"])


def test_what_is_up_to_date_is_not_written_again(suite, checkpoint, monkeypatch):
    training = trained(suite, checkpoint)
    places = [Place("table3", 2, "λ = 0.4"), Place("table5", 4, "alpha 0.4")]
    tracking.record_evaluation(suite, evaluation(0.4, *places), NUMBERS, detections=None, train_run_id=training)
    tracking.place_evaluations(suite, read_runs(suite), [evaluation(0.4, *places)], ["table3", "table5"])
    held = read_runs(suite)
    monkeypatch.setattr(rest, "post", lambda *_: pytest.fail("something was written"))
    assert not tracking.place_evaluations(suite, held, [evaluation(0.4, *places)], ["table3", "table5"])


def test_a_training_is_called_by_what_it_is_where_rows_of_several_labels_stand_on_it(suite, checkpoint):
    training = trained(suite, checkpoint)
    two = [evaluation(0.0, Place("table1", 1, "IoU-aware Net")), evaluation(0.5, Place("table5", 10, "alpha 0.5"))]
    for one in two:
        tracking.record_evaluation(suite, one, NUMBERS, detections=None, train_run_id=training)
        tracking.place_evaluations(suite, read_runs(suite), two, ["table1", "table5"])
        called = "box, L1" if one is two[0] else "IoU-aware Net, l1, resnet50, seed 3"
        assert runs.get_run(suite.uri, training).name == called


def test_no_difference_to_the_paper_is_formed_on_other_data_and_an_older_one_is_withdrawn(suite, checkpoint):
    shapes = replace(train_run(), config=replace(BOX, data=DataConfig(dataset="shapes")))
    training = tracking.begin_training(suite, shapes)
    tracking.record_checkpoint(suite, training, checkpoint)
    run_id = tracking.record_evaluation(suite, evaluation(), {"AP": 20.0}, detections=None, train_run_id=training)
    shown = {"AP": 20.0, "val/AP": 20.0, "paper on COCO 2017: AP": 36.5}
    assert runs.get_run(suite.uri, run_id).metrics == shown
    runs.write(suite.uri, run_id, metrics={"AP paper": 36.5, "AP Δ": -16.5})  # as older versions did
    tracking.place_evaluations(suite, read_runs(suite), [evaluation()], ["table3"])
    metrics = dict(runs.get_run(suite.uri, run_id).metrics)
    assert math.isnan(metrics.pop("AP paper")) and math.isnan(metrics.pop("AP Δ"))
    assert metrics == shown
    assert not tracking.place_evaluations(suite, read_runs(suite), [evaluation()], ["table3"])


def test_of_two_runs_with_one_key_the_finished_one_counts_and_else_the_newer(suite):
    identity = {"kind": "training", "train_key": "abc"}
    made = [runs.create_run(suite.uri, suite.experiment_id, name, identity) for name in "12"]
    for run_id, second in zip(made, (1000, 2000), strict=True):
        rest.post(suite.uri, "runs/update", {"run_id": run_id, "status": "KILLED", "end_time": second})
    newest = all_runs(suite)[0].run_id
    (older,) = set(made) - {newest}
    assert tracking.read_ledger(suite).trainings["abc"].run_id == newest
    runs.write(suite.uri, older, tags={"checkpoint_sha256": "0"})
    runs.set_status(suite.uri, older, "FINISHED")
    assert tracking.read_ledger(suite).trainings["abc"].run_id == older


def test_a_run_that_says_finished_and_lacks_its_results_is_not(suite):
    for kind in ("training", "evaluation"):
        run_id = runs.create_run(suite.uri, suite.experiment_id, kind, {"kind": kind, f"{kind[:5]}_key": "a"})
        runs.write(suite.uri, run_id, tags={"train_key": "a", "evaluation_key": "a"})
        runs.set_status(suite.uri, run_id, "FINISHED")
    ledger = tracking.read_ledger(suite)
    assert (ledger.trainings["a"].status, ledger.trainings["a"].note) == ("KILLED", "its checkpoint is missing")
    assert (ledger.evaluations["a"].status, ledger.evaluations["a"].note) == ("KILLED", "its metrics are missing")


def test_an_evaluation_on_data_without_an_object_is_finished_without_numbers(suite, checkpoint):
    training = tracking.begin_training(suite, train_run())
    tracking.record_checkpoint(suite, training, checkpoint)
    tracking.record_evaluation(suite, evaluation(), {"AP": None}, detections=None, train_run_id=training)
    record = tracking.read_ledger(suite).evaluations[evaluation().key]
    assert (record.status, record.metrics) == ("FINISHED", {})


def test_a_training_that_was_stopped_early_says_why_until_it_is_begun_again(suite, tmp_path):
    run_id = tracking.begin_training(suite, train_run())
    journal = tmp_path / "metrics.jsonl"
    journal.write_text('{"step": 8, "timestamp": 1, "metrics": {"val/AP": 3.0}}\n')
    tracking.stop_training(suite, run_id, "stopped early by ASHA after epoch 1 (AP 3.0)", journal)
    record = tracking.read_ledger(suite).trainings[train_run().key]
    assert (record.status, record.note) == ("STOPPED", "stopped early by ASHA after epoch 1 (AP 3.0)")
    assert record.metrics == {"val/AP": 3.0}
    assert tracking.begin_training(suite, train_run()) == run_id
    tracking.end_training(suite, run_id, "KILLED", "interrupted")
    record = tracking.read_ledger(suite).trainings[train_run().key]
    assert (record.status, record.note) == ("KILLED", "interrupted")


def test_a_ledger_of_many_pages_is_read_whole(suite, monkeypatch):
    monkeypatch.setattr(runs, "PAGE", 2)
    for number in range(5):
        runs.create_run(suite.uri, suite.experiment_id, "", {"kind": "training", "train_key": f"key{number}"})
    assert tracking.read_ledger(suite).trainings.keys() == {f"key{number}" for number in range(5)}


def test_a_driver_is_told_from_a_later_process_of_the_same_id():
    def on(driver: str, silent: float = 0.0) -> bool:
        begun = str(round(runs.now() - 1000 * silent))
        return looks_alive(Run(run_id="", name="", status="RUNNING", tags={"driver": driver, "begun": begun}))

    assert on(this_process())
    assert not on(f"{socket.gethostname()} {os.getpid()} 1")
    assert not on(f"{socket.gethostname()} nonsense")
    assert on("another-host 1 1", silent=60.0)
    assert not on("another-host 1 1", silent=2 * 3600.0)


def test_a_table_has_one_run_with_its_newest_files(suite):
    first = tracking.log_table(suite, read_runs(suite), "table3", {"table3.md": "old", "table3.tex": "old"})
    assert tracking.log_table(suite, read_runs(suite), "table3", {"table3.md": "new λ"}) == first
    assert artifact(suite, first, "table3.md") == "new λ"
    assert artifact(suite, first, "table3.tex") == "old"
    assert tracking.read_ledger(suite) == Ledger()


def test_a_table_that_stands_as_it_is_is_not_written_again(suite, monkeypatch):
    files = {"table4.md": "λ", "table4.tex": "x"}
    first = tracking.log_table(suite, read_runs(suite), "table4", files)

    def refuse(*arguments, **named):
        raise AssertionError("nothing is to be written")

    for name in ("upload_texts", "write", "_begin"):
        monkeypatch.setattr(tracking, name, refuse)
    assert tracking.log_table(suite, read_runs(suite), "table4", dict(files)) == first
    with pytest.raises(AssertionError):
        tracking.log_table(suite, read_runs(suite), "table4", files | {"table4.md": "other"})


def test_a_server_that_is_away_is_an_error_that_names_it(suite, checkpoint):
    gone = replace(suite, uri="http://127.0.0.1:9")
    for call in (
        lambda: open_tracking(gone.uri, "any"),
        lambda: tracking.read_ledger(gone),
        lambda: artifacts.upload(gone.uri, "abc", [checkpoint / "config.json"]),
    ):
        with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
            call()


def test_reading_the_ledger_takes_no_import_of_mlflow():
    code = "import sys, orchestrator.tracking.ledger; sys.exit('mlflow' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "words", ["(sqlite3.IntegrityError) UNIQUE constraint failed", "(psycopg2.errors.UniqueViolation) duplicate key"]
)
def test_a_tag_that_another_process_makes_at_the_same_moment_is_written_over(monkeypatch, words):
    answers = iter([rest.Refused(f"answers with 400: {words}", "BAD_REQUEST"), None])
    asked = []

    def post(uri, path, body):
        asked.append(body)
        if (answer := next(answers)) is not None:
            raise answer

    monkeypatch.setattr(rest, "post", post)
    tag_experiment(Tracking(uri="http://127.0.0.1:1", suite="s", experiment_id="1"), "turn", "mine")
    assert asked == [{"experiment_id": "1", "key": "turn", "value": "mine"}] * 2


def test_a_tag_that_is_refused_for_another_reason_is_not_written_again(monkeypatch):
    def post(uri, path, body):
        raise rest.Refused("answers with 400: too long", "INVALID_PARAMETER_VALUE")

    monkeypatch.setattr(rest, "post", post)
    with pytest.raises(rest.Refused, match="too long"):
        tag_experiment(Tracking(uri="http://127.0.0.1:1", suite="s", experiment_id="1"), "turn", "mine")


def test_weights_that_are_not_those_of_their_card_are_not_recorded(suite, tmp_path):
    run_id = tracking.begin_training(suite, train_run(BOX))
    (tmp_path / "model.safetensors").write_bytes(b"changed")
    (tmp_path / "config.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its card says another sha256; submit again"):
        tracking.record_checkpoint(suite, run_id, tmp_path)
    assert tracking.read_ledger(suite).trainings[train_key(BOX)].files == {}
