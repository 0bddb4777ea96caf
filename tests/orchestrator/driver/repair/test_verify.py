"""Files of a suite that changed, on the storage and in a real MLflow server: what finds them, and what mends them."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from model.config import InferenceConfig, ModelConfig, TrainConfig
from orchestrator import names
from orchestrator.api import OpenSuite
from orchestrator.cli import suites as verbs
from orchestrator.cli.main import cli
from orchestrator.driver.repair.defects import Defect, find_defects, mend, repair
from orchestrator.driver.repair.verify import Verified, verify
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.tracking import artifacts, rest, runs
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import epochs_done
from tests.orchestrator.ledgers import experiment, keep_checkpoint, record, suite_of, write_snapshot

TABLE = experiment(
    "table1",
    [
        Row(label="plain", train=TrainConfig(model=ModelConfig(confidence=None))),
        Row(label="ours"),
        Row(label="ours, 0.2", inference=InferenceConfig(confidence_exponent=0.2)),
    ],
)
PLAIN, OURS = make_plan([TABLE], Ledger()).trainings
ALL_FILES = 2 * (3 + 2) + 3
"""Three files of each checkpoint on the storage, two in MLflow, and one of each evaluation."""


@pytest.fixture
def suite(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name[:60])


def read(suite: Tracking, storage: Path) -> Verified:
    return verify(suite_of(suite, [TABLE], storage))


def texts(verified: Verified) -> list[str]:
    return [defect.text for defect in verified.defects]


def mended(suite: Tracking, storage: Path) -> None:
    """Mend what a reading finds; a second one must find nothing."""
    opened = suite_of(suite, [TABLE], storage)
    said: list[str] = []
    found = verify(opened)
    assert mend(opened, found.defects, said.append) == len(found.defects) == len(said)
    assert texts(read(suite, storage)) == []


def change(suite: Tracking, run_id: str, path: str, scratch: Path, content: bytes | None = None) -> None:
    """Flip a bit of a file in MLflow, or give it other content."""
    file = artifacts.download(suite.uri, run_id, path, scratch)
    was = file.read_bytes()
    file.write_bytes(bytes([was[0] ^ 1]) + was[1:] if content is None else content)
    artifacts.upload(suite.uri, run_id, [file], path.rpartition("/")[0])


def test_every_file_of_a_sound_suite_is_read_and_none_is_written(suite: Tracking, tmp_path: Path):
    record(suite, [TABLE], tmp_path)
    before = list(runs.search_runs(suite.uri, str(suite.experiment_id), ""))
    told: list[tuple[int, int]] = []
    verified = verify(suite_of(suite, [TABLE], tmp_path), lambda done, total: told.append((done, total)))
    assert (verified.num_files, verified.num_unsigned, verified.defects) == (ALL_FILES, 0, ())
    assert str(verified).startswith("13 files (0.0 MB) were read: all are as they were written")
    assert len(told) == ALL_FILES and told[-1] == (verified.num_bytes, verified.num_bytes)
    assert list(runs.search_runs(suite.uri, str(suite.experiment_id), "")) == before


def test_weights_that_changed_in_mlflow_and_kept_their_size_are_stored_again_from_the_storage(
    suite: Tracking, tmp_path: Path
):
    record(suite, [TABLE], tmp_path)
    run_id = tracking.read_ledger(suite).trainings[PLAIN].run_id
    change(suite, run_id, "checkpoint/model.safetensors", tmp_path)
    assert find_defects(suite_of(suite, [TABLE], tmp_path)) == []  # its size is right
    (text,) = texts(read(suite, tmp_path))
    assert text.startswith("training 'plain': its checkpoint/model.safetensors has sha256 ")
    assert text.endswith(f" in MLflow: stored again from {tmp_path / PLAIN / 'epoch-0012'}")
    mended(suite, tmp_path)
    assert artifacts.download(suite.uri, run_id, "checkpoint/model.safetensors", tmp_path).read_text() == PLAIN
    assert not make_plan([TABLE], tracking.read_ledger(suite)).missing_trainings


def test_weights_that_changed_on_both_sides_are_trained_again(suite: Tracking, tmp_path: Path):
    record(suite, [TABLE], tmp_path)
    change(suite, tracking.read_ledger(suite).trainings[PLAIN].run_id, "checkpoint/model.safetensors", tmp_path)
    kept = tmp_path / PLAIN / "epoch-0012" / "model.safetensors"
    kept.write_bytes(bytes([kept.read_bytes()[0] ^ 1]) + kept.read_bytes()[1:])
    storage, mlflow = texts(read(suite, tmp_path))
    assert storage.startswith(f"training 'plain': in {tmp_path / PLAIN}, epoch-0012/model.safetensors (12 bytes) has")
    assert mlflow.endswith(f" in MLflow, and not in {tmp_path / PLAIN} either: to be trained again")
    mended(suite, tmp_path)
    assert epochs_done(tmp_path / PLAIN) == 0
    assert list(make_plan([TABLE], tracking.read_ledger(suite)).missing_trainings) == [PLAIN]


@pytest.mark.parametrize("content", [b"", b"{", b'{"weights_sha256": "of another"}', b"[" * 5000])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_card_in_mlflow_that_is_not_that_of_its_weights_is_stored_again(
    suite: Tracking, tmp_path: Path, content: bytes, is_old: bool
):
    record(suite, [TABLE], tmp_path)
    run_id = tracking.read_ledger(suite).trainings[OURS].run_id
    change(suite, run_id, "checkpoint/config.json", tmp_path, content)
    if is_old:  # nothing but the sizes was recorded, and by chance it is the same
        sizes = {"checkpoint/model.safetensors": 12, "checkpoint/config.json": len(content)}
        tags = {names.FILES: json.dumps(sizes), names.FILES_SHA256: "{}"}
        runs.write(suite.uri, run_id, tags=tags)
    (text,) = texts(read(suite, tmp_path))
    why = "is not the card of its weights" if is_old else f"has {len(content):,} bytes, recorded are "
    assert text.startswith(f"training 'ours': its checkpoint/config.json {why}")
    mended(suite, tmp_path)


def test_detections_that_changed_are_scored_again(suite: Tracking, tmp_path: Path):
    plan = record(suite, [TABLE], tmp_path)
    key = plan.evaluations_of("table1", "ours, 0.2")[0].key
    run_id = tracking.read_ledger(suite).evaluations[key].run_id
    change(suite, run_id, "detections/detections.parquet", tmp_path)
    (text,) = texts(read(suite, tmp_path))
    assert text.startswith("evaluation 'ours, 0.2' of table1, seed 0: its detections/detections.parquet has sha256 ")
    assert text.endswith(" in MLflow: to be scored again")
    mended(suite, tmp_path)
    missing = make_plan([TABLE], tracking.read_ledger(suite)).missing_evaluations
    assert list(missing) == [key] and "has sha256" in missing[key]


@pytest.mark.parametrize("tag", ["", "{", "[]", '{"detections/detections.parquet": 7}'])
def test_a_run_of_an_earlier_version_has_its_sizes_compared_and_is_counted(suite: Tracking, tmp_path: Path, tag: str):
    plan = record(suite, [TABLE], tmp_path)
    run_id = tracking.read_ledger(suite).evaluations[plan.evaluations_of("table1", "plain")[0].key].run_id
    runs.write(suite.uri, run_id, tags={names.FILES_SHA256: tag})
    change(suite, run_id, "detections/detections.parquet", tmp_path)
    verified = read(suite, tmp_path)
    assert (verified.num_files, verified.num_unsigned, verified.defects) == (ALL_FILES, 1, ())
    assert "1 were recorded by a version that noted no digest" in str(verified)


def test_a_file_for_the_lab_that_changed_is_made_again_when_its_training_is_next_scored(
    suite: Tracking, tmp_path: Path
):
    record(suite, [TABLE], tmp_path)
    run_id = tracking.read_ledger(suite).trainings[OURS].run_id
    artifacts.upload_texts(suite.uri, run_id, {})
    (tmp_path / "lab.json").write_text("{}")
    artifacts.upload(suite.uri, run_id, [tmp_path / "lab.json"], names.LAB)
    runs.write(suite.uri, run_id, tags={names.LAB_SHA256: "0" * 64})
    (text,) = texts(read(suite, tmp_path))
    assert text.startswith("training 'ours': lab/lab.json has sha256 44136fa355b3, recorded is 000000000000 in MLflow")
    mended(suite, tmp_path)
    assert names.LAB_SHA256 not in runs.get_run(suite.uri, run_id).tags


def test_an_older_checkpoint_that_is_damaged_beside_a_sound_one_is_found_and_set_aside(suite: Tracking, tmp_path: Path):
    older = keep_checkpoint(tmp_path, PLAIN, epoch=3)
    shutil.copytree(older, tmp_path / PLAIN / "epoch-0004")
    card = json.loads((older / "config.json").read_text())
    (tmp_path / PLAIN / "epoch-0004" / "config.json").write_text(json.dumps(card | {"epoch": 4}))
    write_snapshot(tmp_path / PLAIN, "epoch-0003", "epoch-0004")
    card["config"]["model"]["confidence"] = None
    for epoch in (3, 4):
        content = json.dumps(card | {"epoch": epoch})
        (tmp_path / PLAIN / f"epoch-000{epoch}" / "config.json").write_text(content)
    (older / "resume.pt").unlink()
    assert find_defects(suite_of(suite, [TABLE], tmp_path)) == []
    (text,) = texts(read(suite, tmp_path))
    assert "epoch-0003/resume.pt is missing; set aside as " in text and text.endswith("it goes on from epoch 4")
    mended(suite, tmp_path)
    assert epochs_done(tmp_path / PLAIN) == 4


def test_the_state_of_a_last_epoch_that_changed_is_removed_as_nothing_goes_on_from_it(suite: Tracking, tmp_path: Path):
    record(suite, [TABLE], tmp_path)
    state = tmp_path / OURS / "epoch-0012" / "resume.pt"
    state.write_bytes(state.read_bytes()[:100])
    (text,) = texts(read(suite, tmp_path))
    assert "epoch-0012/resume.pt (100 bytes) is no whole archive" in text
    mended(suite, tmp_path)
    assert epochs_done(tmp_path / OURS) == 12 and not state.exists()


def test_a_repair_without_deep_sets_back_an_unfinished_training_whose_last_checkpoint_is_damaged(
    suite: Tracking, tmp_path: Path
):
    folder = keep_checkpoint(tmp_path, OURS, epoch=5)
    (folder / "model.safetensors").write_bytes(b"cut")
    said: list[str] = []
    assert repair(suite_of(suite, [TABLE], tmp_path), said.append, dry_run=True) == 1
    assert folder.is_dir()
    assert repair(suite_of(suite, [TABLE], tmp_path), said.append) == 1
    assert said[0] == said[1]
    assert said[0].startswith("training 'ours': epoch-0005/model.safetensors (3 bytes) has sha256 ")
    assert said[0].endswith(
        f"set aside as {tmp_path / OURS}/damaged-epoch-0005; no sound checkpoint is left, so it begins anew"
    )
    assert not folder.exists()
    assert repair(suite_of(suite, [TABLE], tmp_path), said.append) == 0


def test_a_file_that_the_server_does_not_give_whole_is_named_and_nothing_is_thrown_away_for_it(
    suite: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(suite, [TABLE], tmp_path)
    usual = artifacts.download

    def refuse(uri: str, run_id: str, path: str, into: Path) -> Path:
        if path.endswith("detections.parquet"):
            raise rest.ServerAway("status 500")
        return usual(uri, run_id, path, into)

    monkeypatch.setattr("orchestrator.driver.repair.verify.download", refuse)
    verified = read(suite, tmp_path)
    assert (verified.num_files, len(verified.defects)) == (ALL_FILES, 3)
    assert "its detections/detections.parquet is not given whole (status 500); mend " in texts(verified)[0]
    # The disk of TMPDIR may be full, which says nothing of what MLflow holds.
    assert mend(suite_of(suite, [TABLE], tmp_path), verified.defects, lambda _: None) == 0
    assert make_plan([TABLE], tracking.read_ledger(suite)).is_complete


def test_one_mend_that_the_system_refuses_does_not_stop_the_others(suite: Tracking, tmp_path: Path):
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted", "/a/file")

    said: list[str] = []
    defects = [Defect(text="first", mend=refuse), Defect(text="second", mend=lambda: None)]
    assert mend(suite_of(suite, [TABLE], tmp_path), defects, said.append) == 1
    assert said[0].startswith("first; this did not work: ") and said[1:] == ["second"]


def test_the_last_epoch_of_a_row_that_left_its_table_needs_no_state_either(suite: Tracking, tmp_path: Path):
    (keep_checkpoint(tmp_path, "0123456789ab") / "resume.pt").unlink()
    assert texts(read(suite, tmp_path)) == []
    (keep_checkpoint(tmp_path, "ba9876543210", epoch=11) / "resume.pt").unlink()
    (text,) = texts(read(suite, tmp_path))
    assert "epoch-0011/resume.pt is missing" in text


def test_a_training_that_somebody_works_on_is_left_alone(suite: Tracking, tmp_path: Path):
    folder = keep_checkpoint(tmp_path, OURS, epoch=5)
    (folder / "model.safetensors").write_bytes(b"cut")
    tracking.begin_training(suite, make_plan([TABLE], Ledger()).trainings[OURS])
    assert find_defects(suite_of(suite, [TABLE], tmp_path)) == []
    assert read(suite, tmp_path).num_files == 0
    assert len(verify(suite_of(suite, [TABLE], tmp_path), is_alive=lambda run: False).defects) == 1


def test_the_verbs_name_what_is_damaged_and_end_with_1_until_it_is_mended(
    suite: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record(suite, [TABLE], tmp_path)
    change(suite, tracking.read_ledger(suite).trainings[PLAIN].run_id, "checkpoint/model.safetensors", tmp_path)

    def open_suites(_: object) -> list[Suite]:
        at = suite_of(suite, [TABLE], tmp_path)
        return [type("OpenSuiteAt", (OpenSuite,), {"storage": tmp_path})(at.experiments, at.site)]

    monkeypatch.setattr(verbs, "suites", open_suites)

    def rnc(*words: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, [*words, "experiments/demo"])
        return done.exit_code, done.stdout, done.stderr

    code, said, hint = rnc("verify")
    assert code == 1
    first, count = said.splitlines()
    assert first.startswith("training 'plain': its checkpoint/model.safetensors has sha256 ")
    assert count == f"suite {suite.suite}: 13 files (0.0 MB) were read: 1 damaged."
    assert "rnc repair --deep" in hint
    assert rnc("repair")[:2] == (0, "Nothing to mend.\n")
    assert rnc("repair", "--deep", "--dry-run")[:2] == (0, "1 to mend.\n")
    assert rnc("repair", "--deep")[:2] == (0, "1 mended.\n")
    code, said, hint = rnc("verify")
    assert (code, hint) == (0, "")
    assert said.endswith("all are as they were written.\n")
