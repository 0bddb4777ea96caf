"""Pulling from a real MLflow server: what is recorded arrives whole, or nothing does and the reason is told."""

import errno
import json
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import model
from model.config import (
    METRICS,
    AssignmentConfig,
    BoxConfig,
    ClassificationConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
)
from orchestrator.checkpoint import find
from orchestrator.checkpoint import pull as pulling
from orchestrator.checkpoint.find import FinishedEvaluation, Query
from orchestrator.checkpoint.pull import last_suite, locate, pull, read_provenance
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Evaluation, Place, TrainRun, evaluation_key, train_key
from orchestrator.experiment.rows import Resources
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking import rest, runs
from orchestrator.tracking.artifacts import download, upload
from orchestrator.tracking.runs import Run, Tracking, open_tracking
from tests.detectors import MODEL, SIZES, save_opinionated

CATEGORIES = ((3, 8), ("dog", "cat"))
NUMBERS = {name: 100 / (place + 3) for place, name in enumerate(METRICS)} | {"APl": None}
CLOCK = r"\d\d:\d\d"
DATE = rf"[0-9-]{{10}} {CLOCK}"


@pytest.fixture
def suite(mlflow_uri, request) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


@pytest.fixture
def site(mlflow_uri, tmp_path) -> Site:
    return Site(home=tmp_path / "home", tracking_uri=mlflow_uri)


def record(
    suite: Tracking,
    tmp_path: Path,
    seed: int = 0,
    exponent: float = 0.3,
    detections: Path | None = None,
    model: ModelConfig = MODEL,
    **metrics: float,
) -> str:
    """One row of table1_heads, trained and scored; returns the training's run."""
    config = TrainConfig(model=model, data=SIZES, seed=seed)
    checkpoint = save_opinionated(tmp_path / f"checkpoint-{seed}", CATEGORIES, config)
    train_run = TrainRun(key=train_key(config), config=config, resources=Resources(), suite="any", label="ours")
    run_id = tracking.begin_training(suite, train_run)
    tracking.record_checkpoint(suite, run_id, checkpoint)
    tracking.end_training(suite, run_id, "FINISHED")
    inference = InferenceConfig(confidence_exponent=exponent, nms_iou=0.6)
    evaluation = Evaluation(
        key=evaluation_key(train_key(config), inference, "val"),
        train_key=train_key(config),
        inference=inference,
        split="val",
        suite="any",
        places=(Place("table1_heads", seed, f"row {seed}"), Place("table5", 0, f"exponent {exponent}")),
    )
    numbers = NUMBERS | metrics
    tracking.record_evaluation(
        suite, evaluation, numbers, detections=detections, train_run_id=run_id, data_fingerprint="f" * 64
    )
    return run_id


def quiet(text: str) -> None:
    pass


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["../../../../x", "..", "a/../../../x", "\x1b[31m/../x", "/etc"])
def test_a_suite_that_is_a_path_is_none_and_would_be_pulled_below_the_home_alone(
    mlflow_uri, tmp_path, site, name, monkeypatch
):
    suite = replace(open_tracking(mlflow_uri, f"{tmp_path.name}/{name}"), suite=f"{tmp_path.name}/{name}")
    record(suite, tmp_path)
    before = {path for path in tmp_path.rglob("*")} | set(tmp_path.parent.iterdir())
    with pytest.raises(UserError, match="has no such suite"):
        pull(Query(suite=suite.suite), site, None, quiet)
    monkeypatch.setattr(find, "all_suites", lambda uri: {suite.suite: suite.experiment_id})
    folder = pull(Query(suite=suite.suite), site, None, quiet)
    assert folder.parent == site.home / "pulled"
    made = ({path for path in tmp_path.rglob("*")} | set(tmp_path.parent.iterdir())) - before
    assert all(path.is_relative_to(site.home) for path in made)
    model.load(folder)


def test_a_folder_that_is_named_is_open_to_whom_the_umask_says(suite, site, tmp_path):
    record(suite, tmp_path)
    for mask, mode in ((0o002, 0o775), (0o077, 0o700)):
        before = os.umask(mask)
        try:
            folder = pull(Query(suite=suite.suite), site, tmp_path / f"for {mode:o}", quiet)
        finally:
            os.umask(before)
        assert folder.stat().st_mode & 0o777 == mode
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_card_of_an_earlier_version_is_read_without_its_password(suite, site, tmp_path):
    record(suite, tmp_path)
    folder = pull(Query(suite=suite.suite), site, tmp_path / "ours", quiet)
    card = read_provenance(folder)
    file = folder / "provenance.json"
    file.write_text(file.read_text().replace('"http://', '"http://ada:geheim@'))
    assert "geheim" in file.read_text()
    assert read_provenance(folder) == card


def test_a_pulled_folder_is_a_detector_with_the_rows_settings_and_says_what_it_is(suite, site, tmp_path):
    training = record(suite, tmp_path)
    said: list[str] = []
    told: list[tuple[int, int]] = []
    query = Query(table="table1", suite=suite.suite)
    folder = pull(query, site, tmp_path / "ours", said.append, lambda done, total: told.append((done, total)))
    assert names(folder) == {"model.safetensors", "config.json", "inference.json", "provenance.json", "README.md"}
    source = tmp_path / "checkpoint-0" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == source.read_bytes()
    assert told[-1] == (source.stat().st_size,) * 2
    row = f"suite {suite.suite}, table table1_heads, row row 0, seed 0: AP 33.3 on val"
    size = f"{source.stat().st_size / 1e6:.1f} MB"
    assert re.fullmatch(rf"{re.escape(row)}, scored {DATE}, {size}, sha256 verified", said[0]) and len(said) == 1
    assert model.load(folder).inference == InferenceConfig(confidence_exponent=0.3, nms_iou=0.6)
    card = read_provenance(folder)
    assert card is not None
    assert card.metrics == {name: value for name, value in NUMBERS.items() if value is not None}
    assert (card.row, card.suite, card.seed, card.split, card.dataset) == ("row 0", suite.suite, 0, "val", "shapes")
    assert card.tables == {"table1_heads": "row 0", "table5": "exponent 0.3"}
    assert (card.train_fingerprint, card.split_fingerprint) == ("0" * 64, "f" * 64)
    assert card.versions["torch"] == torch.__version__.partition("+")[0] or card.versions["torch"] == torch.__version__
    assert card.training_link.endswith(f"/{training}?workflowType=machine_learning")
    page = (folder / "README.md").read_text()
    for text in ("# row 0", "| AP | 33.3 |", card.weights_sha256, card.link, card.train_key, "nms_iou 0.6"):
        assert text in page


def test_the_page_says_by_which_losses_and_assignment_a_detector_learnt(suite, site, tmp_path):
    model = replace(
        MODEL,
        confidence=None,
        classification=ClassificationConfig(loss="qfl"),
        box=BoxConfig(loss="giou", loss_weight=2.0, bins=17),
        assignment=AssignmentConfig(kind="atss"),
    )
    record(suite, tmp_path, exponent=0.0, model=model)
    folder = pull(Query(suite=suite.suite), site, tmp_path / "ours", quiet)
    (line,) = (line for line in (folder / "README.md").read_text().splitlines() if line.startswith("- model"))
    assert line.startswith("- model, where it is not the default: backbone resnet18\\_quarter, ")
    for text in ("confidence none", "classification.loss qfl", "box.loss giou", "box.bins 17", "assignment.kind atss"):
        assert f", {text}" in line
    card = folder / "provenance.json"
    before = {name: value for name, value in json.loads(card.read_text()).items() if name != "model"}
    card.write_text(json.dumps(before))  # as earlier versions wrote it
    found = read_provenance(folder)
    assert found is not None and found.model == {} and "- model" not in found.to_markdown()


def test_the_recorded_detections_come_along_and_those_of_another_row_do_not_stay(suite, site, tmp_path):
    file = tmp_path / "detections.parquet"
    file.write_bytes(b"what was detected")
    record(suite, tmp_path, exponent=0.3, detections=file)
    record(suite, tmp_path, exponent=0.5)
    folder = pull(Query(suite=suite.suite, row="exponent 0.3"), site, tmp_path / "ours", quiet)
    assert (folder / "detections.parquet").read_bytes() == b"what was detected"
    assert "`detections.parquet`; `rnc evaluate --detections`" in (folder / "README.md").read_text()
    pull(Query(suite=suite.suite, row="exponent 0.5"), site, folder, quiet)
    assert not (folder / "detections.parquet").exists()
    assert "detections.parquet" not in (folder / "README.md").read_text()
    card = read_provenance(folder)
    assert card is not None and card.detections == ""


def test_best_or_a_row_or_a_run_decides_which_checkpoint_comes(suite, site, tmp_path):
    trainings = [record(suite, tmp_path, seed, AP=20.0 + seed, AP50=60.0 - seed) for seed in range(2)]
    wanted = {
        Query(suite=suite.suite): 1,
        Query(suite=suite.suite, metric="AP50"): 0,
        Query(suite=suite.suite, row="row 0"): 0,
        Query(run_id=trainings[0]): 0,
        Query(run_id=trainings[1]): 1,
    }
    for number, (query, seed) in enumerate(wanted.items()):
        card = read_provenance(pull(query, site, tmp_path / str(number), quiet))
        assert card is not None and card.seed == seed


def test_the_same_weights_are_recognised_and_anything_else_in_the_way_is_left_alone(suite, site, tmp_path, monkeypatch):
    record(suite, tmp_path)
    record(suite, tmp_path, exponent=0.5)
    folder = pull(Query(suite=suite.suite, row="exponent 0.3"), site, tmp_path / "ours", quiet)
    fetched: list[str] = []

    def counted(uri, run_id, path, into, **rest):
        fetched.append(path)
        return download(uri, run_id, path, into, **rest)

    monkeypatch.setattr(pulling, "download", counted)
    pull(Query(suite=suite.suite, row="exponent 0.5"), site, folder, quiet)
    assert fetched == ["checkpoint/config.json", "detections/detections.parquet"]
    assert model.load(folder).inference.confidence_exponent == 0.5

    record(suite, tmp_path, seed=1, AP=99.0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="holds other weights; remove it, or name another folder with --output"):
        pull(Query(suite=suite.suite), site, folder, quiet)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary").write_text("dear")
    for occupied in (tmp_path / "notes", tmp_path / "notes" / "diary"):
        with pytest.raises(UserError, match="holds something else; remove it"):
            pull(Query(suite=suite.suite), site, occupied, quiet)
    assert names(folder) == before.keys() and names(tmp_path / "notes") == {"diary"}


@pytest.mark.parametrize("output", [".", "new/..", "empty", "mount"], ids=["here", "back", "empty", "mount"])
def test_a_folder_that_is_there_and_empty_is_filled(suite, site, tmp_path, monkeypatch, output):
    record(suite, tmp_path)
    for name in ("empty", "mount", "mount/.pull-killed", "current"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path if output in ("empty", "mount") else tmp_path / "current")
    rename = Path.rename

    def busy(path: Path, target: Path) -> Path:
        if target.exists():  # as a mount is, and a folder that is somebody's current one on some systems
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    folder = pull(Query(suite=suite.suite), site, output, quiet)
    files = {"model.safetensors", "config.json", "inference.json", "provenance.json", "README.md"}
    assert names(folder) - {".pull-killed"} == files
    assert model.load(folder).inference.nms_iou == 0.6


@pytest.mark.parametrize("others", [False, True])
def test_of_two_pulls_at_once_the_second_finds_the_folder_made(suite, site, tmp_path, monkeypatch, others):
    record(suite, tmp_path)
    first, folder = pull(Query(suite=suite.suite), site, tmp_path / "first", quiet), tmp_path / "ours"
    if others:
        (first / "model.safetensors").write_bytes(b"others")
    rename = Path.rename

    def overtaken(path: Path, target: Path) -> Path:
        rename(first, folder)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(UserError, match="ours holds other weights; remove it") if others else nullcontext():
        pull(Query(suite=suite.suite), site, folder, quiet)
    assert len(names(folder)) == 5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_that_are_not_the_recorded_ones_leave_nothing_behind(suite, site, tmp_path):
    run_id = record(suite, tmp_path)
    (tmp_path / "out").mkdir()
    damaged = save_opinionated(tmp_path / "damaged", CATEGORIES, TrainConfig(model=MODEL, data=SIZES, seed=9))
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"!")
    upload(suite.uri, run_id, [damaged / "model.safetensors"], "checkpoint")
    with pytest.raises(UserError, match="they are damaged or were swapped; nothing was kept"):
        pull(Query(suite=suite.suite), site, tmp_path / "out" / "ours", quiet)
    runs.write(suite.uri, run_id, tags={"checkpoint_sha256": "0" * 64})
    with pytest.raises(UserError, match="recorded is 000000000000: they are damaged or were swapped; nothing was"):
        pull(Query(suite=suite.suite), site, tmp_path / "out" / "ours", quiet)
    assert names(tmp_path / "out") == set()


def test_a_transfer_that_breaks_leaves_nothing_under_the_final_name(suite, site, tmp_path, monkeypatch):
    record(suite, tmp_path)
    (tmp_path / "out").mkdir()

    def broken(uri, run_id, path, into, **rest):
        (into / Path(path).name).write_bytes(b"half")
        if path.endswith("safetensors"):
            raise KeyboardInterrupt
        return download(uri, run_id, path, into, **rest)

    monkeypatch.setattr(pulling, "download", broken)
    with pytest.raises(KeyboardInterrupt):
        pull(Query(suite=suite.suite), site, tmp_path / "out" / "ours", quiet)
    assert names(tmp_path / "out") == set()


def test_a_checkpoint_that_was_deleted_is_told_from_one_that_never_was(suite, site, tmp_path):
    with pytest.raises(UserError, match=f"nothing of suite {suite.suite} is finished"):
        pull(Query(suite=suite.suite), site, tmp_path / "out", quiet)
    run_id = record(suite, tmp_path)
    from mlflow.tracking import MlflowClient

    location = MlflowClient(suite.uri).get_run(run_id).info.artifact_uri
    assert location.startswith("mlflow-artifacts:/")
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(location, tracking_uri=suite.uri).delete_artifacts("checkpoint")
    with pytest.raises(UserError, match="row 0 is recorded, but its checkpoint is not there any more"):
        pull(Query(suite=suite.suite, table="table1"), site, tmp_path / "out", quiet)
    rest.post(suite.uri, "runs/delete", {"run_id": run_id})
    with pytest.raises(UserError, match=r"the training .* is not in MLflow any more"):
        pull(Query(suite=suite.suite), site, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_found_is_an_error_with_the_way_out(suite, site, tmp_path):
    record(suite, tmp_path)
    for query, says in {
        Query(suite=suite.suite[:-2]): f"no such suite; did you mean {suite.suite}",
        Query(run_id="0" * 32): "has no such run",
    }.items():
        with pytest.raises(UserError, match=says):
            pull(query, site, None, quiet)
    away = replace(site, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        pull(Query(), away, None, quiet)


def test_nothing_recorded_at_all_needs_no_server_to_be_told(tmp_path):
    with pytest.raises(UserError, match="nothing was ever recorded under"):
        pull(Query(), Site(home=tmp_path), None, quiet)


def test_without_a_place_it_goes_under_the_home_by_suite_and_label(suite, site, tmp_path):
    record(suite, tmp_path)
    folder = pull(Query(suite=suite.suite, table="table1"), site, None, quiet)
    assert folder.parent == site.home / "pulled"
    assert folder.name.startswith(f"{suite.suite}-row-0-")
    shutil.rmtree(tmp_path / "checkpoint-0")
    assert json.loads((folder / "config.json").read_text())["category_names"] == ["dog", "cat"]


def test_a_row_is_pulled_once_and_its_folder_said(suite, site, tmp_path):
    record(suite, tmp_path)
    said: list[str] = []
    query = Query(suite=suite.suite)
    for name in ("best", "row 0", "table1_heads:row 0", "table1: row 0"):
        folder = locate(name, query, site, said.append)
        assert folder.parent == site.home / "pulled" and model.load(folder).inference.nms_iou == 0.6
    found = f"suite {suite.suite}, table table1_heads, row row 0, seed 0: AP 33.3 on val"
    assert [re.sub(rf", scored {DATE}", "", line) for line in said] == [
        f"best: {found}, pulled to {folder}",
        f"row 0: {found}, in {folder}",
        f"table1_heads:row 0: {found}, in {folder}",
        f"table1: row 0: {found}, in {folder}",
    ]
    with pytest.raises(
        UserError, match=r"row 7: no such folder \(.*/row 7\), and as a row: 'row 7' is no finished row"
    ):
        locate("row 7", query, site, said.append)


def test_a_folder_goes_before_a_row_and_best_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nowhere = Site(home=tmp_path / "home")
    said: list[str] = []
    with pytest.raises(UserError, match="nothing was ever recorded under"):
        locate("best", Query(), nowhere, said.append)
    (tmp_path / "best").mkdir()
    with pytest.raises(UserError, match="nothing was ever recorded under"):  # there is no checkpoint in it
        locate("best", Query(), nowhere, said.append)
    save_opinionated(tmp_path / "best", CATEGORIES, TrainConfig(model=MODEL, data=SIZES))
    assert locate("best", Query(), nowhere, said.append) == Path("best")
    assert said == [f"best: the folder {tmp_path / 'best'}, which goes before the best row; remove it if that is meant"]
    assert locate("./best", Query(), nowhere, said.append) == Path("best") and len(said) == 1
    (tmp_path / "photos").mkdir()
    for name, says in {
        "./photos": r"^\./photos: no checkpoint, as .*/photos holds no config\.json; name a folder that",
        "./other": r"other does not exist; name a folder",
        str(tmp_path / "best" / "config.json"): "config.json is a file; name a folder",
        "photos": r"^photos: no checkpoint, as it holds no config.json \(.*/photos\), and as a row: nothing was ever",
    }.items():
        with pytest.raises(UserError, match=says):
            locate(name, Query(), nowhere, said.append)


def test_the_best_is_that_of_the_suite_that_was_submitted_last_from_here(suite, site, tmp_path):
    other = open_tracking(suite.uri, f"{suite.suite}-other")
    record(suite, tmp_path, AP=90.0)
    record(other, tmp_path / "other", seed=1, AP=10.0)
    assert last_suite(site) is None
    with pytest.raises(UserError, match=rf"stands in the suites .*{suite.suite}, .*-other.*; say which with --suite"):
        locate("best", Query(), site, quiet)
    for age, one in enumerate((other, suite)):
        lock = site.home / "submits" / one.suite / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (1e9 - age, 1e9 - age))
    assert last_suite(site) == other.suite
    said: list[str] = []
    folder = locate("best", Query(), site, said.append)
    card = read_provenance(folder)
    assert card is not None and card.suite == other.suite
    assert said[0].startswith(
        f"best: suite {other.suite} (the last one submitted here), table table1_heads, row row 1, "
    )
    assert "before its last submit" not in said[0]
    os.utime(site.home / "submits" / other.suite / "lock", (2e9, 2e9))  # one that is stopped, as it registers no best
    locate("best", Query(), site, said.append)
    locate("row 1", Query(suite=other.suite), site, said.append)
    old = rf"scored {DATE}, before its last submit here \(2033-05-1\d {CLOCK}\), which has not ended"
    assert re.search(old, said[1]) and "before its last submit" not in said[2]
    (site.home / "submits" / "young").mkdir()
    (site.home / "submits" / "young" / "lock").touch()
    os.utime(site.home / "submits" / "young" / "lock", (2.1e9, 2.1e9))
    with pytest.raises(UserError, match=rf"suite young, the last one submitted here, has no result .* {suite.suite}"):
        locate("best", Query(), site, quiet)


def test_settings_and_versions_that_somebody_edited_are_a_line_or_nothing():
    edited = Run(run_id="r1", name="ours", status="FINISHED", params={"nms_iou": "half"})
    with pytest.raises(UserError, match=r"the params of run r1 in MLflow were edited: .*; pull another row, or delete"):
        pulling._inference_of(FinishedEvaluation(suite="any", run=edited))
    assert pulling._versions_of('{"torch": "2.9"}') == {"torch": "2.9"}
    assert [pulling._versions_of(text) for text in ("torch", "[]", "null", "[" * 9000)] == [{}] * 4
