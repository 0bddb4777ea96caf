"""Checks of one machine: each a look, which runs there and returns plain facts, and a judgement made on the driver."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model.data.cache import file_sha256, own_folder
from model.data.faults import DataError
from model.data.layout import count_images, split_files
from orchestrator.cluster.environment import ray_folder
from orchestrator.cluster.gpus import VISIBLE, count_gpus, why_no_cuda
from orchestrator.doctor.finding import Finding, Level, finding
from orchestrator.doctor.services import ask_mlflow, judge_listeners, judge_mlflow, listeners
from orchestrator.doctor.surroundings import judge_limits, judge_temporary, limits, temporary
from orchestrator.doctor.versions import judge_versions, look_at_versions
from orchestrator.errors import UserError

Facts = Mapping[str, Any]
GB, MB = 1e9, 1e6
SHM = Path("/dev/shm")
# Docker's default of 64 MB is too little.
LEAST_SHM, WANTED_SHM = 100 * MB, 1 * GB
LEAST_DISK, WANTED_DISK = 1 * GB, 10 * GB
FULLEST = 0.95
"""Part of a disk that is in use when Ray stops spilling objects to it."""
STORED_MB = 16
SLOWEST_MB_PER_S = 20.0
BUSY_GPU = 0.05
"""Part of a GPU's memory that others may hold without a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What a machine is asked for; the paths are those that a training on it is told."""

    home: Path
    splits: tuple[tuple[Path, str], ...] = ()
    """Roots of data sets, folders or files, with the splits of them that are used."""
    weights: tuple[Path, ...] = ()
    tracking_uri: str | None = None
    left: tuple[Path, str] | None = None
    """A file that the driver has left in the storage, and its sha256."""


class Check(NamedTuple):
    """A look at one machine, and the judgement on what it saw."""

    look: Callable[[Questions], Facts]
    judge: Callable[[str, Facts], Iterator[Finding]]
    """Takes the name of the machine and what the look has returned."""


def examine(asked: Questions) -> dict[str, Facts]:
    """Look at this machine; what cannot be looked at says why, under `error`. Nothing that is made stays."""
    return {name: _guarded(check.look, asked) for name, check in CHECKS.items()}


def _guarded(look: Callable[[Questions], Facts], asked: Questions) -> Facts:
    try:
        return look(asked)
    except Exception as error:  # one thing that cannot be seen must not hide the others
        return {"error": f"{type(error).__name__}: {error}"}


def judge_machine(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge all that one machine has told of itself."""
    for name, check in CHECKS.items():
        seen = facts.get(name, {})
        if "error" in seen:
            way_out = f"mend what the message says on {where}; without it this cannot be judged"
            yield finding(name, where, "fail", seen["error"], way_out)
        else:
            yield from check.judge(where, seen)


def gpus() -> Facts:
    """The GPUs that the driver of the machine shows, and what of their memory other processes hold."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return {"devices": []}
    except pynvml.NVMLError as error:  # as after an update of the driver without a reboot
        return {"devices": [], "problem": str(error)}
    try:
        devices = [_gpu(pynvml.nvmlDeviceGetHandleByIndex(place)) for place in range(pynvml.nvmlDeviceGetCount())]
        driver = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    usable, why_none = _torch_sees() if devices else (0, "")
    return {
        "devices": devices,
        "driver": driver,
        "torch_sees": usable,
        "why_none": why_none,
        "ray_counts": count_gpus(),
        "visible": os.environ.get(VISIBLE),
    }


def _gpu(handle: Any) -> Facts:
    import pynvml

    seen: dict[str, Any] = {"name": pynvml.nvmlDeviceGetName(handle), "total": 0, "used": 0, "pids": []}
    # A container may be forbidden to list processes, and with MIG on to ask for the memory of the whole board.
    with suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        seen |= {"total": memory.total, "used": memory.used}
    with suppress(pynvml.NVMLError):
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        seen["pids"] = [one.pid for one in running if one.pid != os.getpid()]
    return seen


def _torch_sees() -> tuple[int, str]:
    """How many GPUs torch can use, and why none; CUDA_VISIBLE_DEVICES may hide some from this very process."""
    import torch

    # NVML, which device_count() asks as well, shows GPUs for which the driver is too old.
    why = why_no_cuda()
    return (0, why) if why else (torch.cuda.device_count(), "")


def judge_gpus(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether GPUs are free and torch can use them; to have none is no fault."""
    devices = facts["devices"]
    if problem := facts.get("problem"):
        yield finding(
            "gpus", where, "fail", f"the driver tells of no GPU: {problem}", "load the driver anew, or reboot"
        )
        return
    if not devices:
        yield finding("gpus", where, "ok", "no GPU: trainings run on the CPU")
        return
    seen = f"{len(devices)} x {' and '.join(sorted({one['name'] for one in devices}))}, driver {facts['driver']}"
    busy = [
        f"GPU {place}: {one['used'] / GB:.1f} GB{_by(one['pids'])}"
        for place, one in enumerate(devices)
        if one["used"] > BUSY_GPU * one["total"]
    ]
    if facts.get("visible") is not None:
        seen += f", of which CUDA_VISIBLE_DEVICES={facts['visible']!r} leaves {facts['ray_counts']}"
    if not facts["torch_sees"]:
        why, _, way_out = facts.get("why_none", "").rpartition("; ")
        way_out = way_out or "install a torch that is built for CUDA, and a driver that is new enough for it"
        yield finding("gpus", where, "fail", f"{seen}, but torch can use none{why and f': {why}'}", way_out)
    elif busy:
        way_out = "end the processes that hold the memory, or leave these GPUs out with CUDA_VISIBLE_DEVICES"
        yield finding("gpus", where, "warn", f"{seen}; in use by others: {', '.join(busy)}", way_out)
    else:
        yield finding("gpus", where, "ok", seen)


def _by(pids: list[int]) -> str:
    return f" (process {', '.join(map(str, pids))})" if pids else ""


def shm() -> Facts:
    """Shared memory, through which loader processes and Ray's object store hand over arrays."""
    return shutil.disk_usage(SHM)._asdict() if SHM.is_dir() else {}


def judge_shm(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether shared memory is large enough for Ray's objects and for loader processes."""
    if not facts:
        yield finding("/dev/shm", where, "ok", "this system has none")
        return
    level: Level = "fail" if facts["free"] < LEAST_SHM else "warn" if facts["total"] < WANTED_SHM else "ok"
    seen = f"{facts['free'] / GB:.2f} of {facts['total'] / GB:.2f} GB free"
    way_out = "give the container more: --shm-size=4g, shm_size in compose, an emptyDir of medium Memory in Kubernetes"
    yield finding("/dev/shm", where, level, seen, way_out)


def disks(home: Path) -> Facts:
    """Free space where results, parsed annotations and Ray's session lie."""
    temporary_folder = Path(tempfile.gettempdir())
    places = {
        "RNC_HOME": home,
        "RNC_CACHE": own_folder(),
        "Ray": _ray_folder() or Path(os.environ.get("RAY_TMPDIR") or temporary_folder),
        "TMPDIR": temporary_folder,
    }
    return {
        name: {"path": str(path), **shutil.disk_usage(existing(path))._asdict()}
        for name, path in places.items()
        if path is not None
    }


def _ray_folder() -> Path | None:
    with suppress(UserError):  # which is told elsewhere
        return ray_folder(os.environ)
    return None


def existing(path: Path) -> Path:
    """Return the innermost folder of a path that is there, and so on the disk where the path would be made."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def judge_disks(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether a disk is full, or soon will be."""
    for name, disk in facts.items():
        free, total = disk["free"], disk["total"]
        is_tight = free < WANTED_DISK or free < (1 - FULLEST) * total
        level: Level = "fail" if free < LEAST_DISK else "warn" if is_tight else "ok"
        setting = {"Ray": "RAY_TMPDIR"}.get(name, name)
        seen = f"{disk['path']}: {free / GB:.0f} of {total / GB:.0f} GB free"
        yield finding(f"disk of {name}", where, level, seen, f"free some, or set {setting} to another disk")


def storage(home: Path, left: tuple[Path, str] | None) -> Facts:
    """Write, read, list and delete a file in the storage, and look for the one that the driver has left there."""
    # Folders that are not there yet, which are removed again.
    made = [path for path in (home, *home.parents) if not path.exists()]
    home.mkdir(parents=True, exist_ok=True)
    content = os.urandom(1_000_000) * STORED_MB
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=home, ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "written"
            begun = time.perf_counter()
            _write_through(path, content)
            written = time.perf_counter()
            is_same = path.read_bytes() == content
            read = time.perf_counter()
            is_listed = os.listdir(folder) == ["written"]
            path.unlink()
            is_deleted = not path.exists()
    finally:
        for parent in made:
            with suppress(OSError):  # another node may still be at work in it
                parent.rmdir()
    return {
        "path": str(home),
        "write_mb_per_s": STORED_MB / max(written - begun, 1e-9),
        "read_mb_per_s": STORED_MB / max(read - written, 1e-9),
        "same": is_same,
        "listed": is_listed,
        "deleted": is_deleted,
        "shared": None if left is None else left[0].is_file() and file_sha256(left[0]) == left[1],
    }


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # else the read that follows would measure the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def judge_storage(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether the storage keeps, lists and deletes files, fast enough, and is shared by all machines."""
    path, write, read = facts["path"], facts["write_mb_per_s"], facts["read_mb_per_s"]
    words = {"same": "read back with other content", "listed": "not listed", "deleted": "not deleted"}
    broken = [text for name, text in words.items() if not facts[name]]
    if broken:
        way_out = "set RNC_HOME to storage that keeps what is written: NFS, Lustre, a mounted volume"
        yield finding("storage", where, "fail", f"{path}: a file of {STORED_MB} MB was {', '.join(broken)}", way_out)
    else:
        level: Level = "warn" if min(write, read) < SLOWEST_MB_PER_S else "ok"
        way_out = f"below {SLOWEST_MB_PER_S:.0f} MB/s checkpoints hold trainings up; set RNC_HOME to faster storage"
        yield finding("storage", where, level, f"{path}: write {write:.0f} MB/s, read {read:.0f} MB/s", way_out)
    if facts["shared"] is False:
        way_out = "mount the same storage on all nodes, under the same path, and set RNC_HOME to it"
        seen = f"a file that the driver wrote to {path} is not there"
        yield finding("storage is shared", where, "fail", seen, way_out)
    elif facts["shared"]:
        yield finding("storage is shared", where, "ok", "the driver's file is there")


def split_facts(root: Path, split: str) -> Facts:
    """The sha256 of a split's annotations and its number of images, which take seconds; images are not read."""
    try:
        files = split_files(root, split)
    except DataError as error:
        return {"missing": str(error)}
    parts = [file_sha256(file) for file in files.annotations]
    # Of one file its own, which `sha256sum` shows as well.
    sha256 = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    return {"sha256": sha256[:12], "images": count_images(root, split)}


def weights_facts(path: Path) -> Facts:
    """The sha256 of a file of weights."""
    return {"sha256": file_sha256(path)[:12]} if path.is_file() else {"missing": str(path)}


def judge_data(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether all splits are there."""
    for name, split in facts.items():
        if "missing" in split:
            way_out = (
                "bring the data there; data.root or RNC_COCO_ROOT has to hold them on every node, under the same path"
            )
            yield finding("data", where, "fail", split["missing"], way_out)
        else:
            yield finding("data", where, "ok", f"{name}: {split['images']} images, annotations {split['sha256']}")


def judge_weights(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether all files of first weights are there."""
    for name, file in facts.items():
        if "missing" in file:
            way_out = "put the file there, or name a folder that holds it on every node (data.weights or RNC_WEIGHTS)"
            yield finding("weights", where, "fail", f"{file['missing']} is not there", way_out)
        else:
            yield finding("weights", where, "ok", f"{name}: sha256 {file['sha256']}")


CHECKS = {
    "versions": Check(lambda _: look_at_versions(), judge_versions),
    "gpus": Check(lambda _: gpus(), judge_gpus),
    "limits": Check(lambda _: limits(), judge_limits),
    "temporary": Check(lambda _: temporary(), judge_temporary),
    "shm": Check(lambda _: shm(), judge_shm),
    "disks": Check(lambda asked: disks(asked.home), judge_disks),
    "storage": Check(lambda asked: storage(asked.home, asked.left), judge_storage),
    "data": Check(
        lambda asked: {f"{root} {split}": split_facts(root, split) for root, split in asked.splits}, judge_data
    ),
    "weights": Check(lambda asked: {path.name: weights_facts(path) for path in asked.weights}, judge_weights),
    "mlflow": Check(lambda asked: ask_mlflow(asked.tracking_uri) if asked.tracking_uri else {}, judge_mlflow),
    "listeners": Check(lambda _: listeners(), judge_listeners),
}
"""The checks of a machine, in the order in which findings are shown."""
