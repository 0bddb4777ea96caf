"""What a worker does where its GPU is too small, and what it tells of its GPU; torch.cuda is made up."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.shapes import draw_shapes
from model.training import memory
from orchestrator.cluster import gpus
from orchestrator.errors import UserError
from orchestrator.experiment.plan import TrainRun, train_key
from orchestrator.experiment.rows import Resources
from orchestrator.worker import run
from orchestrator.worker.task import TrainingTask
from orchestrator.worker.trainer import TooLarge
from orchestrator.worker.trial import backend_of
from tests.orchestrator.ledgers import keep_checkpoint
from tests.suites import TRAIN


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., TrainingTask]:
    """Makes the task of a training of TRAIN, whose update has 4 images, on some resources."""
    draw_shapes(tmp_path / "data", num_train=4, num_val=2, image_size=64)

    def make(**resources: Any) -> TrainingTask:
        key = train_key(TRAIN)
        train_run = TrainRun(key=key, config=TRAIN, resources=Resources(**resources), suite="suite", label="row")
        return TrainingTask(
            train_run=train_run,
            evaluations=(),
            is_trained=False,
            storage=tmp_path,
            data_root=tmp_path / "data",
            weights_file=None,
            tracking_uri="http://nowhere",
        )

    return make


class Large:
    """Stands for a tensor of a training."""


@pytest.mark.parametrize(
    ("resources", "tried", "part"),
    [
        ({"gpus_per_worker": 1.0}, 4, 1.0),
        ({"gpus_per_worker": 0.5, "local_batch": 3}, 3, 0.5),
        ({"gpus_per_worker": 1.0, "num_workers": 3}, 2, 1.0),  # 4 = 2 + 1 + 1
        ({"gpus_per_worker": 1.0, "cuda_graphs": False}, 4, 1.0),
    ],
)
def test_a_worker_that_runs_out_of_memory_frees_it_and_asks_what_would_have_fitted(
    task: Callable[..., TrainingTask],
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, Any],
    tried: int,
    part: float,
):
    held: list[weakref.ref[Large]] = []
    asked: list[Any] = []

    def train() -> None:
        tensor = Large()
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def ask(*arguments: Any) -> int:
        asked.extend(arguments)
        assert held[0]() is None  # or the try would find the GPU full
        return 1

    monkeypatch.setattr(memory, "ask_largest_batch", ask)
    words = r"^CUDA out of memory\. Tried to allocate 2\.00 GiB\.$"
    with pytest.raises(TooLarge, match=words) as told, run._sized(task(**resources)):
        train()
    assert (told.value.tried, told.value.largest) == (tried, 1)
    assert asked == [TRAIN, 6, tried, part, resources.get("cuda_graphs", True)]  # shapes has six classes


def test_memory_that_ends_while_a_graph_is_recorded_is_freed_and_told_as_well(
    task: Callable[..., TrainingTask], monkeypatch: pytest.MonkeyPatch
):
    held: list[weakref.ref[Large]] = []

    def forward() -> None:
        tensor = Large()
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def record() -> None:
        try:
            forward()
        finally:  # as torch.cuda.graph does
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(memory, "ask_largest_batch", lambda *_: None if held[0]() is None else 1)
    with pytest.raises(TooLarge, match=r"during capture$") as told, run._sized(task(gpus_per_worker=1.0)):
        record()
    assert (told.value.tried, told.value.largest) == (4, None)


def test_any_other_error_of_a_training_passes_as_it_is(task: Callable[..., TrainingTask]):
    with pytest.raises(ValueError, match=r"^no$"), run._sized(task()):
        raise ValueError("no")


@pytest.mark.parametrize(
    ("resources", "backend"),
    [
        (Resources(), None),
        (Resources(gpus_per_worker=1.0), None),
        (Resources(num_workers=2), "gloo"),
        (Resources(num_workers=2, gpus_per_worker=1.0), "nccl"),
    ],
)
def test_workers_on_gpus_talk_by_nccl_and_those_on_cpus_by_gloo(resources: Resources, backend: str | None):
    assert backend_of(resources) == backend


def test_a_worker_loads_with_its_share_of_the_node_that_it_finds_itself_on(task: Callable[..., TrainingTask]):
    node = {"CPU": 8.0, "GPU": 2.0}
    chosen = run._for_node(task(gpus_per_worker=1.0), node)
    assert chosen.train_run.resources == Resources(gpus_per_worker=1.0, loader_processes=3)
    assert run._for_node(task(), node).train_run.resources == Resources(loader_processes=0)


def test_the_peak_of_a_gpus_memory_is_a_metric_and_a_cpu_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    assert gpus.peak_memory(torch.device("cuda", 0)) == {"perf/peak_memory_mib": 3072.0}
    assert gpus.peak_memory(torch.device("cpu")) == {}


def test_a_run_names_the_gpu_that_it_is_trained_on(task: Callable[..., TrainingTask], monkeypatch: pytest.MonkeyPatch):
    written: list[Any] = []
    one = task(gpus_per_worker=1.0)
    one.folder.mkdir()
    one.tell_run(run_id="r")
    monkeypatch.setattr(run, "write", lambda *arguments, **named: written.append((*arguments, named)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H100 {device.index}")
    run._name_device(one, torch.device("cuda", 1))
    run._name_device(one, torch.device("cpu"))
    assert written == [("http://nowhere", "r", {"tags": {"device": "H100 1"}})]


def test_weights_that_mlflow_gives_back_changed_are_refused_with_the_way_out(
    task: Callable[..., TrainingTask], monkeypatch: pytest.MonkeyPatch
):
    def changed(uri: str, run_id: str, path: str, into: Path) -> None:
        keep = keep_checkpoint(into / "stored", "key", config=TRAIN)
        for name in ("config.json", "model.safetensors"):
            (keep / name).rename(into / name)
        (into / "model.safetensors").write_bytes(b"kez")

    one = task()
    one.folder.mkdir()
    one.tell_run(run_id="r")
    monkeypatch.setattr(run, "download", lambda *words: None if words[2].endswith("config.json") else changed(*words))
    monkeypatch.setattr(run, "_reported_by_first", lambda: None)
    told = r"model\.safetensors \(3 bytes\) has sha256 .*; `rnc repair --deep`"
    with pytest.raises(UserError, match=told), run._checkpoint(one):
        pass
