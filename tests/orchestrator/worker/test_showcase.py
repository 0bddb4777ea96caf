"""What a training shows beside its curves; expected values are those that were given, or stand in the data set."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import DataConfig
from model.data.coco import read_for_scoring, read_for_training
from model.data.split import CocoData
from model.inference.table import DetectionTable
from model.training.loop import Progress
from orchestrator.figures.pictures import draw_examples, example_indices
from orchestrator.tracking import rest, runs
from orchestrator.tracking.artifacts import list_files
from orchestrator.tracking.runs import log_input, open_tracking
from orchestrator.worker.showcase import (
    BackgroundTasks,
    Showcase,
    SystemMetrics,
    keep_examples,
    show_examples,
    store_picture,
    waiting_examples,
)
from tests.conftest import MakeCoco

SHAPES = DataConfig(dataset="shapes", train_split="train", val_split="val", short_edge=64, long_edge=96)
CPU = torch.device("cpu")


@pytest.fixture
def validation(shapes_root: Path) -> CocoData:
    return read_for_scoring(shapes_root, SHAPES, "val")


@pytest.fixture
def run(mlflow_uri, request) -> tuple[str, str]:
    """A server and a run on it."""
    suite = open_tracking(mlflow_uri, request.node.name)
    return mlflow_uri, runs.create_run(mlflow_uri, str(suite.experiment_id), "run", {})


def perfect(data: CocoData, score: float) -> DetectionTable:
    """Detections that are the ground truth itself."""
    boxes = data.annotation_boxes
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
    count = len(corners)
    categories = np.asarray(data.category_ids, np.int64)[data.annotation_labels]
    scores = np.full(count, score, np.float32)
    return DetectionTable.plain(np.repeat(data.image_ids, np.diff(data.offsets)), categories, corners, scores)


def at_end_of_epoch(data: CocoData, step: int) -> Progress:
    return Progress(
        step=step, num_steps=9, epoch=1.0, metrics={}, end_of_epoch=True, validation=(data, perfect(data, 0.9))
    )


def test_a_background_task_that_fails_is_told_and_the_next_one_is_run(caplog):
    done = threading.Event()
    tasks = BackgroundTasks()
    tasks.add("the first", lambda: json.loads("{"))
    tasks.add("the second", done.set)
    assert tasks.close(10.0)
    assert done.is_set()
    assert "the first: dropped, Expecting property name" in caplog.text


def test_errands_that_pile_up_are_dropped_and_never_waited_for(caplog):
    gate, started = threading.Event(), threading.Event()
    tasks = BackgroundTasks(max_waiting=1)

    def stick() -> None:
        started.set()
        gate.wait()

    tasks.add("stuck", stick)
    started.wait()
    tasks.add("waits", lambda: None)
    tasks.add("too many", lambda: None)
    assert "too many: dropped, as 1 tasks before it still wait" in caplog.text
    assert not tasks.close(0.05)
    gate.set()


def test_examples_are_images_with_objects_from_all_over_the_split(make_coco: MakeCoco):
    boxes = [{"id": i, "image_id": i, "category_id": 3, "bbox": [9, 9, 20, 20], "area": 400} for i in (2, 3, 5, 6, 8)]
    root = make_coco([box | {"iscrowd": 0} for box in boxes], sizes=((60, 80),) * 8)
    data = read_for_scoring(root, DataConfig(train_split="train", val_split="train"), "train")
    assert example_indices(data) == [1, 2, 5, 7]  # the places 0, 4/3, 8/3 and 4 of those five, rounded
    assert example_indices(data, 9) == [1, 2, 4, 5, 7]


def test_a_split_without_objects_has_examples_as_well(make_coco: MakeCoco):
    data = read_for_scoring(make_coco([], sizes=((60, 80), (80, 60))), DataConfig(val_split="train"), "train")
    assert example_indices(data) == [0, 1]
    sheet = draw_examples(data, None)
    assert sheet.size == (512 + 4 + 384, 512)  # 80 x 60 beside 60 x 80, enlarged to 512 on the longer side


def test_only_detections_that_are_at_all_sure_are_drawn(validation: CocoData):
    truth = draw_examples(validation, None).tobytes()
    assert draw_examples(validation, perfect(validation, 0.1)).tobytes() == truth
    assert draw_examples(validation, perfect(validation, 0.9)).tobytes() != truth


def test_the_machine_is_sampled_now_and_then_under_the_names_of_mlflow():
    machine = SystemMetrics(CPU, interval=0.05)
    first = machine.sample()
    assert list(first) == [
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
    ]
    assert 0.0 < first["system/system_memory_usage_percentage"] < 100.0
    assert machine.sample() == {}
    threading.Event().wait(0.06)
    assert machine.sample().keys() == first.keys()


def test_a_gpu_that_does_not_tell_is_asked_once_and_ends_no_training(monkeypatch: pytest.MonkeyPatch, caplog):
    def refuse(*_: object) -> tuple[int, int]:
        raise RuntimeError("not supported")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    machine = SystemMetrics(torch.device("cuda"), interval=0.0)
    assert machine.sample().keys() == machine.sample().keys() == SystemMetrics(CPU).sample().keys()
    assert [record.getMessage() for record in caplog.records] == ["the GPU is not sampled: not supported"]


def test_a_gpu_is_sampled_as_the_first_of_its_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 93)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: 412_000)  # milliwatts
    sample = SystemMetrics(torch.device("cuda", 3)).sample()
    assert {name: value for name, value in sample.items() if "gpu" in name} == {
        "system/gpu_0_memory_usage_megabytes": 20_000.0,
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_0_utilization_percentage": 93,
        "system/gpu_0_power_usage_watts": 412.0,
    }


def test_a_picture_is_stored_once_for_a_step_under_the_names_of_mlflows_own(run: tuple[str, str]):
    import mlflow

    white = Image.new("RGB", (300, 200), "white")
    assert store_picture(*run, "val/detections", 7, lambda: white)
    assert not store_picture(*run, "val/detections", 7, lambda: pytest.fail("drawn again"))
    assert store_picture(*run, "val/detections", 70, lambda: white)
    mlflow.MlflowClient(tracking_uri=run[0]).log_image(run[1], white, key="val/detections", step=9)
    found = sorted(Path(path).name for path in list_files(*run, "images"))
    shapes = [[part for part in name.split("+") if not part.isdigit() and part.count("-") != 4] for name in found]
    assert len(found) == 6
    of_ours, of_theirs = shapes[:2], shapes[4:]
    assert of_ours[0] == of_theirs[0] == ["val~detections", "step", "timestamp", "compressed.webp"]
    assert [name.split("+")[2] for name in found] == ["7", "7", "70", "70", "9", "9"]
    assert runs.get_run(*run).tags["mlflow.loggedImages"] == "True"


def inputs_of(uri: str, run_id: str) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = rest.get(uri, "runs/get", {"run_id": run_id})["run"]["inputs"]["dataset_inputs"]
    return inputs


def test_a_data_set_that_is_named_twice_is_one_input_with_its_fingerprint_and_size(
    run: tuple[str, str], validation: CocoData
):
    log_input(*run, "shapes", validation, "validation")
    log_input(*run, "shapes", validation, "validation")
    (held,) = inputs_of(*run)
    assert held["dataset"]["name"] == "shapes val"
    assert held["dataset"]["digest"] == validation.fingerprint[:36]
    profile = json.loads(held["dataset"]["profile"])
    assert profile["fingerprint"] == validation.fingerprint
    assert (profile["num_images"], profile["num_boxes"]) == (16, len(validation.annotation_ids))
    assert held["tags"] == [{"key": "mlflow.data.context", "value": "validation"}]


def test_a_training_that_is_resumed_shows_nothing_twice(
    run: tuple[str, str], validation: CocoData, shapes_root: Path, tmp_path: Path
):
    for steps in ((6, 12), (12, 18)):  # killed before its second checkpoint was kept
        showcase = Showcase(*run, SHAPES, lambda: read_for_training(shapes_root, SHAPES), CPU, tmp_path)
        machine = [showcase.look(Progress(step=steps[0] - 1, num_steps=18, epoch=0.9))]
        machine += [showcase.look(at_end_of_epoch(validation, step)) for step in steps]
        showcase.close(30.0)
        assert [bool(metrics) for metrics in machine] == [True, False, False]
    stored = [Path(path).name.split("+") for path in list_files(*run, "images")]
    assert sorted(int(parts[2]) for parts in stored) == [0, 0, 6, 6, 12, 12, 18, 18]  # a PNG and a preview each
    inputs = inputs_of(*run)
    assert sorted(held["dataset"]["name"] for held in inputs) == ["shapes train", "shapes val"]


def test_where_mlflow_is_away_nothing_fails_and_what_was_to_be_shown_comes_later(
    run: tuple[str, str], validation: CocoData, tmp_path: Path, caplog
):
    showcase = Showcase("http://127.0.0.1:9", "a run", SHAPES, lambda: validation, CPU, tmp_path)
    showcase.look(at_end_of_epoch(validation, 6))
    showcase.close(30.0)
    assert "the data as an input of the run: dropped, the MLflow server at http://127.0.0.1:9 does not" in caplog.text
    assert "example detections at step 6: dropped" in caplog.text
    assert [file.name for file in waiting_examples(tmp_path)] == ["000000006.npz"]
    assert show_examples(*run, "shapes", tmp_path, validation) == 1
    assert waiting_examples(tmp_path) == []
    stored = [Path(path).name.split("+") for path in list_files(*run, "images")]
    assert sorted(int(parts[2]) for parts in stored) == [0, 0, 6, 6]
    assert [held["dataset"]["name"] for held in inputs_of(*run)] == ["shapes val"]


def test_a_picture_in_flight_when_its_process_is_killed_is_drawn_as_it_would_have_been(
    run: tuple[str, str], validation: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[bytes] = []

    def keep(uri: str, run_id: str, key: str, step: int, draw: Callable[[], Image.Image]) -> bool:
        drawn.append(draw().tobytes())
        return True

    monkeypatch.setattr("orchestrator.worker.showcase.store_picture", keep)
    keep_examples(tmp_path, 6, validation, perfect(validation, 0.9))  # and the process is killed
    show_examples(*run, "shapes", tmp_path, validation)
    assert drawn[1:] == [draw_examples(validation, perfect(validation, 0.9)).tobytes()]


def test_a_file_that_a_kill_has_damaged_is_dropped_and_the_others_are_shown(
    run: tuple[str, str], validation: CocoData, tmp_path: Path, caplog
):
    keep_examples(tmp_path, 6, validation, perfect(validation, 0.9))
    keep_examples(tmp_path, 12, validation, perfect(validation, 0.9))
    (first, _) = waiting_examples(tmp_path)
    first.write_bytes(first.read_bytes()[:100])
    show_examples(*run, "shapes", tmp_path, validation)
    assert f"{first}: dropped" in caplog.text
    assert waiting_examples(tmp_path) == []
    assert sorted({Path(path).name.split("+")[2] for path in list_files(*run, "images")}) == ["0", "12"]


def test_a_folder_that_takes_nothing_costs_the_pictures_alone(validation: CocoData, tmp_path: Path, caplog):
    (tmp_path / "pictures").write_text("")
    keep_examples(tmp_path, 6, validation, perfect(validation, 0.9))
    assert "example detections at step 6: dropped" in caplog.text
    assert waiting_examples(tmp_path) == []
