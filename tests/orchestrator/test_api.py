"""The Python API on a real MLflow server, though nothing is trained; expected numbers are those that were recorded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import model
import orchestrator as rnc
from model.config import TrainConfig
from model.data.coco import read_coco
from model.settings import differences
from orchestrator import names
from orchestrator.api import OpenSuite
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiments
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.site import ROOT
from orchestrator.tracking import artifacts
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.runs import open_tracking
from tests.detectors import MODEL, SIZES, save_opinionated
from tests.experiment_files import write
from tests.orchestrator.ledgers import NUMBERS, record

HEADS = """
title: Heads
suite: {suite}
rows:
  - {{label: RetinaNet, train: {{model: {{confidence: null}}}}, inference: {{confidence_exponent: 0.0}}}}
  - {{label: RetinaNet-Conf}}
"""
EXPONENTS = """
title: Exponents
suite: {suite}
rows:
  - {{label: exponent 0.4}}
  - {{label: exponent 0.2, inference: {{confidence_exponent: 0.2}}}}
"""


@pytest.fixture
def suite(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OpenSuite:
    """Two tables that share a training, of which nothing was done yet."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setattr("orchestrator.driver.garbage.own_folder", lambda: None)
    for name in ("RNC_COCO_ROOT", "RNC_WEIGHTS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, text in {"table1_heads": HEADS, "table5_exponents": EXPONENTS}.items():
        write(tmp_path / "tables", text.format(suite=request.node.name), f"{name}.yaml")
    return rnc.open(tmp_path / "tables", home=tmp_path / "home")


def record_all(suite: OpenSuite) -> None:
    """Record both tables as finished, as another process would."""
    record(open_tracking(str(suite.site.tracking_uri), suite.name), suite.experiments, suite.storage)
    suite.refresh()


def quiet(text: str) -> None:
    pass


def test_files_and_folders_are_opened_as_one_suite_and_nothing_is_made(
    suite: OpenSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [experiment.name for experiment in suite.experiments] == ["table1_heads", "table5_exponents"]
    assert suite.site.home == tmp_path / "home" and not suite.site.home.exists()
    files = sorted((tmp_path / "tables").iterdir())
    assert rnc.open(*map(str, files)).experiments == suite.experiments
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "elsewhere"))
    assert rnc.open(files[0]).site.home == tmp_path / "elsewhere"


def test_tables_of_several_suites_are_refused(suite: OpenSuite, tmp_path: Path) -> None:
    other = write(tmp_path, HEADS.format(suite="other"), "other.yaml")
    with pytest.raises(UserError, match="suites"):
        rnc.open(tmp_path / "tables", other)
    with pytest.raises(UserError, match="cannot be read"):
        rnc.open(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("named", [(), (["table1_heads.yaml"],), (None,)])
def test_files_that_are_not_named_one_by_one_are_refused(named: tuple[Any, ...]) -> None:
    with pytest.raises(UserError, match=r"rnc\.open\(\*files\)"):
        rnc.open(*named)


def test_plan_status_and_tables_say_what_is_missing_and_then_what_was_recorded(suite: OpenSuite) -> None:
    assert "Missing: 2 trainings, 3 evaluations." in suite.plan(gpus=8).notes
    assert not len(suite.runs())
    record_all(suite)
    assert "Nothing is missing." in suite.plan().notes
    status = suite.status()
    assert [row[:2] for row in status.rows] == [
        ("table1_heads", "RetinaNet"),
        ("table1_heads", "RetinaNet-Conf"),
        ("table5_exponents", "exponent 0.4"),
        ("table5_exponents", "exponent 0.2"),
    ]
    assert {row[-1] for row in status.rows} == {"yes"}
    table = suite.table("table5", bootstrap=False)
    assert table.title == "Exponents" and len(table.rows) == 2
    assert f"{NUMBERS['AP']:.1f}" in table.to_markdown()


def test_a_table_is_named_by_its_beginning_and_by_nothing_where_it_is_alone(suite: OpenSuite, tmp_path: Path) -> None:
    assert suite.table("table1", bootstrap=False).title == "Heads"
    with pytest.raises(UserError, match="table 'table' may be any of table1_heads, table5_exponents"):
        suite.table("table")
    with pytest.raises(UserError, match="has no table 'table2'"):
        suite.table("table2")
    alone = rnc.open(tmp_path / "tables" / "table1_heads.yaml", home=tmp_path / "home")
    assert alone.table(bootstrap=False).title == "Heads"


def test_classes_of_a_table_without_matches_are_refused_by_name(suite: OpenSuite) -> None:
    with pytest.raises(UserError, match="no matches of any row are known"):
        suite.classes(suite.experiments[0].name)


def test_runs_are_a_frame_of_all_trainings_and_evaluations(suite: OpenSuite) -> None:
    record_all(suite)
    frame = suite.runs()
    assert sorted(frame["kind"]) == ["evaluation"] * 3 + ["training"] * 2
    assert set(frame["key"]) == {*suite.wanted.trainings, *suite.wanted.evaluations}
    scored = frame[frame["kind"] == "evaluation"]
    assert set(scored["status"]) == {"FINISHED"} and set(scored["metrics.val/AP"]) == {NUMBERS["AP"]}
    conf = scored[scored["name"] == "RetinaNet, seed 0"]
    assert conf["tags.row.table1_heads"].tolist() == ["00 RetinaNet"]


def test_repair_marks_what_lost_its_files_and_the_suite_has_read_that(suite: OpenSuite) -> None:
    record_all(suite)
    assert suite.repair(say=quiet) == 0
    lost = suite.wanted.evaluations_of("table5_exponents", "exponent 0.2")[0].key
    run_id = suite.ledger.evaluations[lost].run_id
    artifacts.delete(str(suite.uri), run_id, f"{names.DETECTIONS}/{names.DETECTIONS_FILE}")
    suite.refresh()
    said: list[str] = []
    assert suite.repair(say=said.append, dry_run=True) == 1 and "its detections are missing" in said[0]
    assert not suite.make_plan().missing_evaluations
    assert suite.repair(say=quiet) == 1
    assert suite.make_plan().missing_evaluations == {lost: "its detections are missing"}


def test_gc_shows_what_may_go_and_frees_it_when_told_so(suite: OpenSuite) -> None:
    (table,) = suite.gc()
    assert not table.rows
    record_all(suite)
    kept = list(suite.storage.glob("*/epoch-*"))
    (table,) = suite.gc()
    assert len(kept) == 2 and all(folder.exists() for folder in kept)
    assert table.rows
    suite.gc(delete=True)
    assert not list(suite.storage.glob("*/epoch-*"))
    assert "Nothing is missing." in suite.plan().notes


def test_the_best_checkpoint_is_fetched_and_detects(suite: OpenSuite, shapes_root: Path, tmp_path: Path) -> None:
    train = json.dumps(differences(TrainConfig(model=MODEL, data=SIZES)))
    text = f"title: Tiny\nsuite: {suite.name}\nrows:\n  - {{label: tiny, split: val, train: {train}}}\n"
    file = write(tmp_path, text, "tiny.yaml")
    tiny = rnc.open(file, home=tmp_path / "home")
    plan = make_plan(load_experiments([file]), Ledger())
    (run,), (evaluation,) = plan.trainings.values(), plan.evaluations.values()
    server = open_tracking(str(tiny.site.tracking_uri), tiny.name)
    run_id = tracking.begin_training(server, run)
    folder = save_opinionated(tmp_path / "made", ((3, 8), ("dog", "cat")), run.config)
    tracking.record_checkpoint(server, run_id, folder)
    tracking.end_training(server, run_id, "FINISHED")
    tracking.record_evaluation(server, evaluation, NUMBERS, detections=None, train_run_id=run_id)

    said: list[str] = []
    pulled = tiny.pull("tiny", table="tiny", say=said.append)
    assert len(said) == 1 and said[0].startswith(f"suite {tiny.name}, table tiny, row tiny, seed 0: AP 33.3 on val, ")
    best = tiny.best()
    assert best.folder == pulled.folder and best.folder.is_relative_to(tmp_path / "home" / "pulled")
    assert best.metrics == NUMBERS and best.provenance.row == "tiny" and best.provenance.suite == tiny.name
    image = read_coco(shapes_root, "val", num_images=1).path(0)
    (found,), (expected,) = best.load(device="cpu")(image), model.load(folder, device="cpu")(image)
    assert found.records() == expected.records() and len(found.scores) > 3
    changed = best.load(device="cpu", confidence_exponent=0.0)
    assert changed.inference.confidence_exponent == 0.0
    with pytest.raises(UserError, match="'Tiny' is no finished row"):
        tiny.pull("Tiny", say=quiet)


def test_importing_the_api_imports_nothing_heavy() -> None:
    heavy = {"torch", "torchvision", "ray", "mlflow", "numpy", "pandas", "pyarrow", "matplotlib"}
    code = f"import sys, orchestrator, orchestrator.api; print(*sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
