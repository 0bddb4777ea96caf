"""The registered model on a real MLflow server: which one it is, that it loads without pickle, and that it serves."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

import model
from model.config import InferenceConfig, TrainConfig
from model.data.coco import read_coco
from orchestrator import names
from orchestrator.checkpoint import registry
from orchestrator.checkpoint.find import Query, best_version, find, finished
from orchestrator.checkpoint.pull import pull, read_provenance
from orchestrator.checkpoint.registry import register_best
from orchestrator.driver.garbage import _aliases
from orchestrator.experiment.plan import Evaluation, Place, TrainRun, evaluation_key, train_key
from orchestrator.experiment.rows import Resources, Row
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.runs import Tracking, open_tracking, read_runs
from tests.detectors import MODEL, SIZES, save_opinionated
from tests.orchestrator.ledgers import experiment, suite_of

TABLE = experiment("table1", [Row(label="row 0")])
CATEGORIES = ((3, 8), ("dog", "cat"))


@pytest.fixture
def suite(mlflow_uri, request) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name.replace("[", "-").replace("]", ""))


def record(suite: Tracking, tmp_path: Path, ap: float, seed: int = 0, exponent: float = 0.3, split: str = "val") -> str:
    """A scored row; returns the evaluation's key."""
    config = TrainConfig(model=MODEL, data=SIZES, seed=seed)
    train_run = TrainRun(key=train_key(config), config=config, resources=Resources(), suite="any", label="ours")
    run_id = tracking.begin_training(suite, train_run)
    checkpoint = save_opinionated(tmp_path / f"checkpoint-{seed}", CATEGORIES, config)
    tracking.record_checkpoint(suite, run_id, checkpoint)
    tracking.end_training(suite, run_id, "FINISHED")
    inference = InferenceConfig(confidence_exponent=exponent)
    evaluation = Evaluation(
        key=evaluation_key(train_key(config), inference, split),
        train_key=train_key(config),
        inference=inference,
        split=split,
        suite="any",
        places=(Place("table1", seed, f"row {seed}"),),
    )
    tracking.record_evaluation(suite, evaluation, {"AP": ap, "AP50": ap}, detections=None, train_run_id=run_id)
    return evaluation.key


def registered(suite: Tracking) -> tuple[str, str]:
    held = best_version(suite.uri, suite.suite)
    assert held is not None
    return held[names.EVALUATION_KEY], held["AP"]


def test_the_alias_follows_the_best_evaluation_and_is_written_only_when_it_moves(suite, tmp_path):
    said: list[str] = []
    register_best(suite_of(suite, [TABLE], tmp_path), said.append)
    assert said == [] and best_version(suite.uri, suite.suite) is None
    first = record(suite, tmp_path, 30.0)
    record(suite, tmp_path, 99.0, split="train")
    register_best(suite_of(suite, [TABLE], tmp_path), said.append)
    assert registered(suite) == (first, "30.00")
    assert said == [f"registered model retinanet-conf-{suite.suite} version 1, alias best: row 0, AP 30.0"]

    record(suite, tmp_path, 29.0, seed=1)
    register_best(suite_of(suite, [TABLE], tmp_path), said.append)
    assert len(said) == 1

    second = record(suite, tmp_path, 31.0, exponent=0.5)
    register_best(suite_of(suite, [TABLE], tmp_path), said.append)
    assert registered(suite) == (second, "31.00") and "version 2" in said[-1]
    (best,) = (one for one in finished(read_runs(suite), suite.suite) if one.metrics["AP"] == 31.0)
    from orchestrator.tracking import rest

    rest.post(suite.uri, "runs/delete", {"run_id": best.run_id})
    register_best(suite_of(suite, [TABLE], tmp_path), said.append)
    assert registered(suite) == (first, "30.00") and "version 1" in said[-1]  # the version of before, no new copy
    assert len(said) == 3


def test_the_best_is_one_of_the_split_that_the_tables_are_scored_on(suite, tmp_path):
    first, second = (record(suite, tmp_path, ap, exponent=ap / 100, split="test") for ap in (30.0, 31.0))
    record(suite, tmp_path, 40.0, split="val")
    register_best(suite_of(suite, [TABLE], tmp_path), lambda text: None)
    assert registered(suite) == (second, "31.00") != (first, "30.00")


def test_pulling_a_suite_takes_its_registered_model(suite, tmp_path):
    first = record(suite, tmp_path, 30.0)
    register_best(suite_of(suite, [TABLE], tmp_path), lambda text: None)
    record(suite, tmp_path, 40.0, seed=1)
    site = Site(home=tmp_path / "home", tracking_uri=suite.uri)
    card = read_provenance(pull(Query(suite=suite.suite), site, None, lambda text: None))
    assert card is not None and card.evaluation_key == first
    assert find(suite.uri, Query(suite=suite.suite, table="table1")).metrics["AP"] == 40.0


def test_a_version_belongs_to_its_training_so_that_its_checkpoint_is_not_freed(suite, tmp_path):
    record(suite, tmp_path, 30.0)
    register_best(suite_of(suite, [TABLE], tmp_path), lambda text: None)
    (training,) = tracking.read_ledger(suite).trainings.values()
    assert _aliases(suite)[training.run_id] == f"retinanet-conf-{suite.suite}@best"


def test_a_registration_that_fails_is_told_and_stops_nothing(suite, tmp_path, monkeypatch):
    record(suite, tmp_path, 30.0)
    said: list[str] = []
    monkeypatch.setattr(
        "orchestrator.checkpoint.registry._ensure", lambda *_: (_ for _ in ()).throw(OSError("no space"))
    )
    register_best(suite_of(suite, [TABLE], tmp_path), said.append)
    assert said[0].startswith("the best checkpoint was not registered, the next submit tries again: MLflow at")
    assert best_version(suite.uri, suite.suite) is None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def picture(path: Path) -> str:
    with Image.open(path) as image:
        drawn = io.BytesIO()
        image.save(drawn, "PNG")
    return base64.b64encode(drawn.getvalue()).decode()


def test_the_registered_model_loads_without_pickle_and_serves_the_detections_of_its_checkpoint(
    suite, tmp_path, shapes_root
):
    record(suite, tmp_path, 30.0)
    register_best(suite_of(suite, [TABLE], tmp_path), lambda text: None)
    paths = [read_coco(shapes_root, "val", num_images=2).path(index) for index in range(2)]
    expected = model.load(tmp_path / "checkpoint-0", device="cpu", confidence_exponent=0.3)(paths)
    images = [picture(path) for path in paths]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": suite.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    uri, port = f"models:/retinanet-conf-{suite.suite}@best", free_port()
    script = Path(sys.executable).with_name("mlflow")
    environment["PATH"] = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(script), "models", "serve", "-m", uri, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=file, stderr=file, start_new_session=True
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                if requests.get(f"{address}/ping", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        payload: dict[str, Any] = {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}}
        answer = requests.post(f"{address}/invocations", json=payload, timeout=120)
        assert answer.ok, answer.text
        for found, one in zip(answer.json()["predictions"], expected, strict=True):
            np.testing.assert_allclose(np.array(found["boxes"]), one.boxes, rtol=0, atol=1e-2)
            np.testing.assert_allclose(np.array(found["scores"]), one.scores, rtol=0, atol=1e-4)
            assert found["labels"] == list(one.labels) and len(one.labels) > 3
        payload = {"inputs": images[:1], "params": {"score": 0.5}}
        (few,) = requests.post(f"{address}/invocations", json=payload, timeout=120).json()["predictions"]
        assert few["scores"] == [score for score in answer.json()["predictions"][0]["scores"] if score >= 0.5]
        wrong = {"dataframe_records": [{"image": "no image"}]}
        refused = requests.post(f"{address}/invocations", json=wrong, timeout=120)
        assert refused.status_code == 400 and "image 0 is no JPEG or PNG in base64" in refused.text
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_served_models_code_needs_nothing_of_the_orchestrator():
    source = Path(registry.__file__).with_name("served_model.py").read_text()
    assert "orchestrator" not in source
