"""What `rnc doctor` looks at on one machine: plain functions that return plain data, and change nothing that stays."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.cache import file_sha256, own_folder
from orchestrator.doctor.services import ask_mlflow, listeners

Facts = dict[str, Any]
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy")
SOURCES = Path(__file__).parents[2]
STORED_BYTES = 16_000_000
SHM = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What a machine is asked for; the paths are those that a training on it is told."""

    home: Path
    splits: tuple[tuple[Path, str], ...] = ()
    """Roots of data sets in COCO's format, with the splits of them that are used."""
    weights: tuple[Path, ...] = ()
    tracking_uri: str | None = None
    left: tuple[Path, str] | None = None
    """A file that the driver has left in the storage, and its sha256."""


def examine(asked: Questions) -> Facts:
    """Look at this machine; what cannot be looked at says why, under `error`."""
    probes: dict[str, Callable[[], Facts]] = {
        "versions": versions,
        "gpus": gpus,
        "shm": shm,
        "disks": lambda: disks(asked.home),
        "storage": lambda: storage(asked.home, asked.left),
        "data": lambda: {f"{root} {split}": split_facts(root, split) for root, split in asked.splits},
        "weights": lambda: {path.name: weights_facts(path) for path in asked.weights},
        "mlflow": lambda: ask_mlflow(asked.tracking_uri) if asked.tracking_uri else {},
        "listeners": listeners,
        "ray": lambda: {"auth_mode": os.environ.get("RAY_AUTH_MODE", "")},
    }
    return {"host": socket.gethostname(), **{name: _guarded(probe) for name, probe in probes.items()}}


def _guarded(probe: Callable[[], Facts]) -> Facts:
    try:
        return probe()
    except Exception as error:  # one thing that cannot be seen must not hide the others
        return {"error": f"{type(error).__name__}: {error}"}


def versions() -> Facts:
    """Python, the packages that numbers or nodes depend on, and the project's own sources."""
    found: Facts = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {"sources": sources_digest(SOURCES)}


def sources_digest(root: Path) -> str:
    """The Python files of the project as one short digest."""
    content = hashlib.sha256()
    for path in sorted(path for package in ("model", "orchestrator") for path in (root / package).rglob("*.py")):
        content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def gpus() -> Facts:
    """The GPUs that the driver of the machine shows, and what of their memory other processes hold."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {"devices": []}
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        devices = [_gpu(pynvml.nvmlDeviceGetHandleByIndex(place)) for place in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    return {"devices": devices, "driver": driver, "torch_sees": _torch_sees() if devices else 0}


def _gpu(handle: Any) -> Facts:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    with suppress(pynvml.NVMLError):
        others = [one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if one.pid != os.getpid()]
        return {"name": pynvml.nvmlDeviceGetName(handle), "total": memory.total, "used": memory.used, "pids": others}
    return {"name": pynvml.nvmlDeviceGetName(handle), "total": memory.total, "used": memory.used, "pids": []}


def _torch_sees() -> int:
    """How many GPUs torch can use; CUDA_VISIBLE_DEVICES may hide some from this very process."""
    import torch

    return torch.cuda.device_count() if torch.version.cuda else 0


def shm() -> Facts:
    """Shared memory, through which loader processes and Ray's object store hand over arrays."""
    if not SHM.is_dir():
        return {}
    usage = shutil.disk_usage(SHM)
    return {"total": usage.total, "free": usage.free}


def disks(home: Path) -> Facts:
    """Free space where results, parsed annotations and Ray's session lie."""
    places = {"RNC_HOME": home, "RNC_CACHE": own_folder(), "Ray": Path(os.environ.get("RAY_TMPDIR") or "/tmp")}
    return {
        name: {"path": str(path), "free": usage.free, "total": usage.total}
        for name, path in places.items()
        if path is not None and (usage := shutil.disk_usage(_existing(path)))
    }


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def storage(home: Path, left: tuple[Path, str] | None) -> Facts:
    """Write, read, list and delete a file in the storage, and look for the one that the driver has left there."""
    made = _make(home)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=home))
    content = os.urandom(1_000_000) * (STORED_BYTES // 1_000_000)
    path = folder / "written"
    try:
        begun = time.perf_counter()
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        written = time.perf_counter()
        is_same = path.read_bytes() == content
        read = time.perf_counter()
        is_listed = os.listdir(folder) == ["written"]
        path.unlink()
        is_deleted = not path.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
    return {
        "path": str(home),
        "write_mb_per_s": STORED_BYTES / 1e6 / max(written - begun, 1e-9),
        "read_mb_per_s": STORED_BYTES / 1e6 / max(read - written, 1e-9),
        "same": is_same,
        "listed": is_listed,
        "deleted": is_deleted,
        "shared": None if left is None else _holds(*left),
    }


def _make(folder: Path) -> list[Path]:
    """Make a folder, and return what was not there before, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def split_facts(root: Path, split: str) -> Facts:
    """What tells one data set from another in seconds: its annotations, and how many images lie beside them."""
    file, images = root / "annotations" / f"instances_{split}.json", root / split
    if not file.is_file():
        return {"missing": str(file)}
    if not images.is_dir():
        return {"missing": str(images)}
    return {"sha256": file_sha256(file)[:12], "images": len(os.listdir(images))}


def weights_facts(path: Path) -> Facts:
    """The sha256 of a file of weights."""
    return {"sha256": file_sha256(path)[:12]} if path.is_file() else {"missing": str(path)}


def clock() -> float:
    """What time it is here."""
    return time.time()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


def all_reduce(rank: int, count: int, address: str, backend: str, seconds: float) -> float:
    """Add up a number over all ranks as a training does, and return the sum; rank 0 is at `address`."""
    from datetime import timedelta

    import torch
    from torch import distributed

    distributed.init_process_group(
        backend,
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=seconds),
    )
    try:
        number = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
        distributed.all_reduce(number)
        return float(number.item())
    finally:
        distributed.destroy_process_group()
