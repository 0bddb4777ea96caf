"""What `rnc doctor` sees of real folders, and how it judges a machine; what is judged is made up here."""

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml  # type: ignore[import-untyped]
import pytest
import torch

from orchestrator.doctor import machine
from orchestrator.doctor.finding import exit_code
from orchestrator.doctor.machine import judge_machine

GB = 10**9
SOUND: dict[str, Any] = {
    "versions": {"python": "3.11.7", "torch": "2.15.0+cu132", "ray": "2.60.0", "mlflow": "3.17.2", "sources": "a"},
    "gpus": {
        "devices": [{"name": "H100", "total": 80 * GB, "used": GB, "pids": []}],
        "driver": "580.1",
        "torch_sees": 1,
    },
    "limits": {
        "cores": 16,
        "all_cores": 16,
        "quota": None,
        "memory": 128 * GB,
        "all_memory": 128 * GB,
        "files": 1048576,
    },
    "temporary": {"folder": "/tmp", "loaders": True, "ray": None},
    "shm": {"total": 8 * GB, "free": 7 * GB},
    "disks": {"RNC_HOME": {"path": "/shared/runs", "free": 500 * GB, "total": 1000 * GB}},
    "storage": {
        "path": "/shared/runs",
        "write_mb_per_s": 300.0,
        "read_mb_per_s": 500.0,
        "same": True,
        "listed": True,
        "deleted": True,
        "shared": True,
    },
    "data": {"/data/coco val2017": {"sha256": "0123", "images": 5000}},
    "weights": {"resnet50.pth": {"sha256": "4567"}},
    "mlflow": {"uri": "http://mlflow:5000", "skew": 0.2, "version": "3.17.2", "open": False},
    "listeners": {
        "0.0.0.0:6379": {"service": "ray", "open": None},
        "0.0.0.0:5000": {"service": "mlflow", "open": False},
    },
}


def broken(change: Callable[[Any], object]) -> dict[str, Any]:
    facts = copy.deepcopy(SOUND)
    change(facts)
    return facts


def test_a_sound_machine_is_green_throughout():
    found = list(judge_machine("node a", SOUND))
    assert {finding.level for finding in found} == {"ok"}
    assert {finding.where for finding in found} == {"node a"}
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("check", "level", "change", "says"),
    [
        ("versions", "fail", lambda f: f["versions"].update(torch="2.9.1+cpu"), "torch 2.9.1+cpu is not"),
        ("versions", "fail", lambda f: f["versions"].update(ray="2.51.2"), "ray 2.51.2 is not"),
        ("versions", "fail", lambda f: f["versions"].update(mlflow="3.16.9"), "mlflow 3.16.9 is not"),
        ("versions", "fail", lambda f: f["versions"].update(mlflow=None), "mlflow is not installed"),
        ("gpus", "fail", lambda f: f["gpus"].update(torch_sees=0), "torch can use none"),
        (
            "gpus",
            "fail",
            lambda f: f["gpus"].update(torch_sees=0, why_none="driver too old (torch 2.15.0); update the driver"),
            "driver 580.1, but torch can use none: driver too old (torch 2.15.0)",
        ),
        (
            "gpus",
            "fail",
            lambda f: f["gpus"].update(torch_sees=0, visible="-1", ray_counts=0),
            "of which CUDA_VISIBLE_DEVICES='-1' leaves 0, but torch can use none",
        ),
        ("gpus", "fail", lambda f: f.update(gpus={"devices": [], "problem": "version mismatch"}), "version mismatch"),
        ("gpus", "warn", lambda f: f["gpus"]["devices"][0].update(used=9 * GB, pids=[77]), "9.0 GB (process 77)"),
        ("/dev/shm", "fail", lambda f: f["shm"].update(total=64_000_000, free=64_000_000), "0.06 of 0.06 GB"),
        ("/dev/shm", "warn", lambda f: f["shm"].update(total=GB // 2, free=GB // 2), "0.50 of 0.50 GB"),
        (
            "cores",
            "warn",
            lambda f: f["limits"].update(cores=1, quota=0.5),
            "1 of 16, by the limit of a control group, 0.5",
        ),
        (
            "memory",
            "fail",
            lambda f: f["limits"].update(memory=GB // 2),
            "0.5 GB by the limit of a control group, of 128",
        ),
        ("memory", "warn", lambda f: f["limits"].update(memory=2 * GB), "2.0 GB by the limit"),
        ("open files", "fail", lambda f: f["limits"].update(files=64), "64 at once"),
        ("open files", "warn", lambda f: f["limits"].update(files=512), "512 at once"),
        ("temporary folder", "fail", lambda f: f["temporary"].update(loaders=False), "/tmp is too long a path"),
        ("temporary folder", "fail", lambda f: f["temporary"].update(problem="TMPDIR: long"), "TMPDIR: long"),
        ("disk of RNC_HOME", "fail", lambda f: f["disks"]["RNC_HOME"].update(free=GB // 2), "free"),
        ("disk of RNC_HOME", "warn", lambda f: f["disks"]["RNC_HOME"].update(free=49 * GB), "49 of 1000 GB free"),
        ("storage", "fail", lambda f: f["storage"].update(same=False), "read back with other content"),
        ("storage", "fail", lambda f: f["storage"].update(listed=False), "not listed"),
        ("storage", "fail", lambda f: f["storage"].update(deleted=False), "not deleted"),
        ("storage", "warn", lambda f: f["storage"].update(write_mb_per_s=3.0), "write 3 MB/s"),
        ("storage", "fail", lambda f: f.update(storage={"error": "OSError: read-only"}), "read-only"),
        ("storage is shared", "fail", lambda f: f["storage"].update(shared=False), "is not there"),
        ("data", "fail", lambda f: f.update(data={"x": {"missing": "/data lacks x.json"}}), "/data lacks x.json"),
        ("weights", "fail", lambda f: f.update(weights={"a": {"missing": "/w/a"}}), "/w/a is not there"),
        ("mlflow", "fail", lambda f: f.update(mlflow={"uri": "u", "away": "gone"}), "gone"),
        ("mlflow", "fail", lambda f: f["mlflow"].update(refused="wants a password"), "wants a password"),
        ("mlflow version", "fail", lambda f: f["mlflow"].update(version="3.5.0"), "MLflow 3.5.0, not >="),
        ("clock of MLflow", "warn", lambda f: f["mlflow"].update(skew=5.0), "5.0 s off"),
        ("clock of MLflow", "fail", lambda f: f["mlflow"].update(skew=500.0), "500.0 s off"),
        ("ports", "fail", lambda f: f["listeners"]["0.0.0.0:5000"].update(open=True), "mlflow on 0.0.0.0:5000"),
    ],
)
def test_what_is_not_right_is_told_with_a_way_out(check: str, level: str, change: Callable[[Any], object], says: str):
    found = list(judge_machine("node a", broken(change)))
    wrong = [finding for finding in found if finding.level != "ok"]
    assert [(finding.check, finding.level) for finding in wrong] == [(check, level)]
    assert says in wrong[0].seen
    assert wrong[0].way_out
    assert exit_code(found) == (level == "fail")


def test_a_machine_without_gpu_shared_memory_and_mlflow_is_green():
    def bare(facts: Any) -> None:
        facts.update(gpus={"devices": []}, shm={}, mlflow={}, listeners={})

    assert {finding.level for finding in judge_machine("driver", broken(bare))} == {"ok"}


def fake_driver(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """A driver with one H100; an answer that is an error is raised."""
    usual = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetUUID": "GPU-aaaa",
        "nvmlDeviceGetName": "H100",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * GB, used=GB),
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=77), SimpleNamespace(pid=os.getpid())],
        "nvmlSystemGetDriverVersion": "470.1",
    }

    def answering(answer: Any) -> Callable[..., Any]:
        def function(*_: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return function

    for name, answer in (usual | answers).items():
        monkeypatch.setattr(pynvml, name, answering(answer))


def test_a_driver_that_is_too_old_for_torch_is_a_fault_though_it_shows_the_gpu(monkeypatch: pytest.MonkeyPatch):
    words = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by"
    fake_driver(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # it asks NVML

    def init() -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(torch.cuda, "init", init)
    facts = machine.gpus()
    assert facts["devices"] == [{"name": "H100", "total": 80 * GB, "used": GB, "pids": [77]}]
    assert (facts["torch_sees"], facts["ray_counts"], facts["visible"]) == (0, 1, None)
    (found,) = machine.judge_gpus("node a", facts)
    assert (found.level, found.way_out.split(",")[0]) == ("fail", "update the driver")
    assert "torch can use none: The NVIDIA driver on your system is too old (found version 11040) (torch" in found.seen


def test_a_board_that_does_not_tell_its_memory_as_with_mig_is_no_fault(monkeypatch: pytest.MonkeyPatch):
    forbidden = pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
    fake_driver(monkeypatch, nvmlDeviceGetMemoryInfo=forbidden, nvmlDeviceGetComputeRunningProcesses=forbidden)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1c1c,MIG-2d2d")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    facts = machine.gpus()
    assert facts["ray_counts"] == 2
    (found,) = machine.judge_gpus("node a", facts)
    assert found.level == "ok"
    assert found.seen.endswith("of which CUDA_VISIBLE_DEVICES='MIG-1c1c,MIG-2d2d' leaves 2")


@pytest.mark.parametrize(
    ("code", "level"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "ok"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "ok"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "fail"),
    ],
)
def test_a_driver_that_does_not_answer_is_a_fault_and_none_at_all_is_not(
    monkeypatch: pytest.MonkeyPatch, code: int, level: str
):
    fake_driver(monkeypatch, nvmlInit=pynvml.NVMLError(code))
    (found,) = machine.judge_gpus("node a", machine.gpus())
    assert found.level == level


def test_the_storage_is_measured_and_left_as_it_was(tmp_path: Path):
    left = tmp_path / "left"
    left.write_bytes(b"any")
    facts = machine.storage(tmp_path, (left, hashlib.sha256(b"any").hexdigest()))
    assert [facts[name] for name in ("same", "listed", "deleted", "shared")] == [True] * 4
    assert facts["write_mb_per_s"] > 0 and facts["read_mb_per_s"] > 0
    assert list(tmp_path.iterdir()) == [left]
    assert machine.storage(tmp_path, (tmp_path / "another", "any"))["shared"] is False
    assert machine.storage(tmp_path / "new" / "runs", None)["shared"] is None
    assert list(tmp_path.iterdir()) == [left]


def test_a_storage_that_cannot_be_written_says_why(tmp_path: Path):
    (tmp_path / "file").write_text("")
    facts = machine.examine(machine.Questions(home=tmp_path / "file" / "runs"))
    assert "Error" in facts["storage"]["error"]
    assert "error" not in facts["versions"]


def test_splits_and_weights_are_told_apart_by_their_content(tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    assert "missing" in machine.split_facts(tmp_path, "val")
    image = {"id": 1, "file_name": "1.jpg", "width": 8, "height": 8}
    content = json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "thing"}]})
    (tmp_path / "annotations" / "instances_val.json").write_text(content)
    assert f"put them into {tmp_path / 'val'}" in machine.split_facts(tmp_path, "val")["missing"]
    (tmp_path / "val").mkdir()
    before = machine.split_facts(tmp_path, "val")
    (tmp_path / "val" / "1.jpg").write_bytes(b"")
    more = machine.split_facts(tmp_path, "val")
    (tmp_path / "annotations" / "instances_val.json").write_text(f"{content} ")
    other = machine.split_facts(tmp_path, "val")
    assert (before["images"], more["images"]) == (0, 1)
    assert before["sha256"] == more["sha256"] != other["sha256"]
    assert "missing" in machine.weights_facts(tmp_path / "r50.pth")
