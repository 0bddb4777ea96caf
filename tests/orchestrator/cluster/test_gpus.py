"""GPUs counted, refused and given to workers, on a machine that has none: the driver and torch.cuda are made up."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pynvml  # type: ignore[import-untyped]
import pytest
import ray
import torch
from ray.air._internal.device_manager import nvidia_gpu

from orchestrator.cluster import gpus
from orchestrator.cluster.capacity import local_cluster
from orchestrator.errors import UserError

UUIDS = ["GPU-aaaa1111-0", "GPU-bbbb2222-0"]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        (" 0, 1", ["0", "1"]),
        ("0,-1,1", ["0"]),  # CUDA takes none from the first on that is not there
        ("0,7", ["0"]),
        ("2", []),
        ("0,0", ["0"]),
        ("GPU-bbbb2222-0,GPU-aaaa1111-0", ["GPU-bbbb2222-0", "GPU-aaaa1111-0"]),
        ("GPU-bbbb", ["GPU-bbbb"]),  # CUDA takes the beginning of a UUID
        ("GPU-cccc,0", []),
        ("MIG-1c1c,MIG-2d2d", ["MIG-1c1c", "MIG-2d2d"]),
        ("MIG-GPU-aaaa1111-0/1/0", ["MIG-GPU-aaaa1111-0/1/0"]),
    ],
)
def test_gpus_are_counted_as_cuda_reads_its_variable(visible: str | None, found: list[str]):
    assert gpus.visible_gpus(visible, UUIDS) == found
    assert gpus.visible_gpus(visible, []) == []


def test_a_gpu_whose_uuid_is_not_known_counts_by_any():
    assert gpus.visible_gpus("GPU-cccc", [""]) == ["GPU-cccc"]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that shows two GPUs."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(UUIDS))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: UUIDS[handle])


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("visible", "number"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("GPU-bbbb2222-0", 1)])
def test_a_ray_of_our_own_gives_away_as_many_gpus_as_the_driver_shows_and_the_variable_leaves(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_cluster().total("GPU") == number


@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.parametrize(("devices", "number"), [([], 0), (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], 2)])
def test_without_an_answer_of_the_driver_the_files_of_devices_are_counted(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool, devices: list[str], number: int
):
    def no_answer() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", no_answer)
    if not is_installed:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(os, "listdir", lambda _: devices)
    assert gpus.count_gpus() == number
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-any")
    assert gpus.count_gpus() == (2 if number else 0)


def without_cuda(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def refuse() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)


OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: ..."
)


@pytest.mark.parametrize(
    ("error", "why", "way_out"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), "not compiled with CUDA", "install a torch that is"),
        (RuntimeError(OLD), r"too old \(found version 11040\) \(torch", "update the driver, or install a torch"),
        (RuntimeError("Found no NVIDIA driver on your system. Please check"), "no NVIDIA driver", "--gpus all"),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs", "unset CUDA_VISIBLE_DEVICES where Ray"),
        (RuntimeError("CUDA unknown error - this may be due to"), "unknown error", "nvidia-smi"),
        (None, "No CUDA GPUs are available", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_worker_whose_torch_can_use_no_gpu_says_why_in_one_line_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, why: str, way_out: str
):
    without_cuda(monkeypatch, error)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match=rf"gpus_per_worker asks for a GPU.*{why}.*='3'\); .*{way_out}") as refused:
        gpus.worker_device(1.0)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("or set resources.gpus_per_worker: 0 to train on CPUs")


def test_a_worker_on_the_cpu_never_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    without_cuda(monkeypatch, RuntimeError("No CUDA GPUs are available"))
    assert gpus.worker_device(0.0) == torch.device("cpu")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any], str | None, int], dict[str, Any]]:
    """Make this process a worker to which Ray gave GPUs, with the variable as Ray Train sets it."""

    def give(ids: list[Any], visible: str | None, num_seen: int) -> dict[str, Any]:
        done: dict[str, Any] = {}

        def set_device(device: torch.device) -> None:
            if device.index >= num_seen:
                raise RuntimeError("CUDA error: invalid device ordinal")
            done["device"] = device

        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_device", set_device)
        monkeypatch.setattr(
            torch.cuda, "set_per_process_memory_fraction", lambda part, device: done.update(part=(part, device))
        )
        monkeypatch.setattr(ray, "get_gpu_ids", lambda: ids)
        manager = nvidia_gpu.CUDATorchDeviceManager()
        monkeypatch.setattr("ray.train.torch.get_device", lambda: manager.get_devices()[0])
        return done

    return give


Give = Callable[[list[Any], str | None, int], dict[str, Any]]


@pytest.mark.parametrize(
    ("ids", "visible", "num_seen", "place"),
    [
        ([0], "0", 1, 0),
        ([3], "3", 1, 0),  # a worker alone sees its own GPU, and no other
        ([1], "0,1", 2, 1),  # workers of one training on one node see each other's
        (["GPU-bbbb2222-0"], "GPU-aaaa1111-0,GPU-bbbb2222-0", 2, 1),
        (["MIG-1c1c"], "MIG-1c1c", 1, 0),
    ],
)
def test_a_worker_computes_on_the_gpu_that_ray_gave_it(
    given: Give, ids: list[Any], visible: str, num_seen: int, place: int
):
    done = given(ids, visible, num_seen)
    assert gpus.worker_device(1.0) == torch.device("cuda", place)
    assert done == {"device": torch.device("cuda", place)}


def test_two_trainings_on_one_gpu_get_its_parts_and_its_memory_alike(given: Give):
    done = given([0], "0", 1)
    assert gpus.worker_device(0.5) == torch.device("cuda", 0)
    assert done == {"device": torch.device("cuda", 0), "part": (0.5, torch.device("cuda", 0))}


@pytest.mark.parametrize(("ids", "visible"), [([1], "0"), ([0], None), ([0], ""), ([1], "0,1")])
def test_a_worker_whose_gpu_is_hidden_refuses_instead_of_taking_another(given: Give, ids: list[int], visible: str):
    given(ids, visible, 1)
    with pytest.raises(UserError, match=r"the GPU that Ray gave this worker is not among .*CUDA_VISIBLE_DEVICES"):
        gpus.worker_device(1.0)
