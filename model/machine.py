"""What this process may use of its machine: cores, memory, and a folder whose path is short enough for sockets.

Affinity (taskset, Slurm) and control groups (containers, systemd) leave a process less than the machine has, which
`os.cpu_count` does not know.
"""

import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc/self")
LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket: sun_path has 108 (unix(7)), of which the last is 0."""
MULTIPROCESSING_SOCKET = len("/pymp-12345678/listener-12345678")
"""What `multiprocessing` adds to the folder for temporary files; its loader processes hand over arrays there."""


def usable_cores() -> int:
    """Return how many cores this process may keep busy: those of its affinity, within its quota of time.

    Of a quota of 1.5 cores it is 1, as a second thread would be stopped for half of its time, and the first would wait
    for it; of less than 1 it is 1.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = core_quota()
    return allowed if quota is None else max(1, min(allowed, math.floor(quota + 1e-9)))


def limit_threads() -> None:
    """Let torch start as many threads as cores may be busy; call it before torch is imported.

    It asks for the affinity itself. A quota alone, which it does not, would stop the threads that are too many.
    """
    if core_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def core_quota(proc: Path = PROC) -> float | None:
    """Return how many cores' time the control groups of a process grant; None without a limit.

    Args:
        proc: its folder under /proc.
    """
    return _least("cpu", _quota, proc)


def usable_memory() -> int:
    """Return the bytes of memory that this process may have: the machine's, within the limit of its control groups."""
    limit, there = memory_limit(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return there if limit is None else min(there, int(limit))


def memory_limit(proc: Path = PROC) -> float | None:
    """Return the bytes that the control groups of a process grant; None without a limit."""
    return _least("memory", _memory, proc)


def short_folder(most_bytes: int) -> Path | None:
    """Return a folder of this user's own for sockets, made where none is; None where none can be had.

    Args:
        most_bytes: of its path.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # The runtime folder last, as it lies in memory.
    for parent in ("/tmp", "/var/tmp", *([runtime] if runtime else [])):
        folder = Path(parent) / f"rnc-{os.getuid()}"
        if len(os.fsencode(folder)) > most_bytes:
            continue
        with suppress(OSError):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            there = folder.lstat()
            # Others may make a folder of this name in /tmp before, or a link that leads elsewhere.
            if stat.S_ISDIR(there.st_mode) and there.st_uid == os.getuid():
                folder.chmod(0o700)
                if os.access(folder, os.W_OK):
                    return folder
    return None


def shorten_sockets() -> None:
    """See that the sockets of `multiprocessing` have short paths, whatever TMPDIR is; files stay where they are."""
    most = LONGEST_SOCKET - MULTIPROCESSING_SOCKET
    if len(os.fsencode(tempfile.gettempdir())) <= most or (folder := short_folder(most)) is None:
        return
    import multiprocessing.util  # which takes longer than all of this module

    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        multiprocessing.util.get_temp_dir()  # which it keeps, hands on to its processes, and removes at the end
    finally:
        tempfile.tempdir = before


def _least(controller: str, read: Callable[[Path], float | None], proc: Path) -> float | None:
    """Return the smallest limit of a process's control group and of all those around it."""
    limits = [limit for folder in _groups(controller, proc) if (limit := _read(read, folder)) is not None]
    return min(limits, default=None)


def _read(read: Callable[[Path], float | None], folder: Path) -> float | None:
    try:
        return read(folder)
    except (OSError, ValueError, ZeroDivisionError):  # the root has no such files; others may be forbidden
        return None


def _quota(folder: Path) -> float | None:
    """Return the quota of a group in cores; version 2 has it in one file, version 1 in two."""
    if (file := folder / "cpu.max").exists():
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota) / int(period) if int(quota) > 0 else None  # -1 is none


def _memory(folder: Path) -> float | None:
    """Return the limit of a group in bytes; that of version 1 is close to 2^63 where there is none."""
    file = folder / "memory.max"
    text = (file if file.exists() else folder / "memory.limit_in_bytes").read_text().strip()
    return None if text == "max" or int(text) > 2**60 else int(text)


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Yield the folders of a process's group and of those around it, of both versions, by cgroups(7)."""
    try:
        of_process = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:  # no Linux
        return
    for names, path in (fields[1:] for fields in of_process if len(fields) == 3):
        if names and controller not in names.split(","):
            continue
        for root, mounted in (_mounted(fields) for fields in mounts if _holds(fields, controller, bool(names))):
            # In a container the path may be that of its host, and the mount begin at the container's own group.
            inner = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
            group = mounted if ".." in inner.parts else mounted / inner
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mounted))


def _mounted(fields: list[str]) -> tuple[Path, Path]:
    """Return which group a mount shows, and where; both have blanks as \\040."""
    root, mounted = (Path(field.encode().decode("unicode_escape")) for field in fields[3:5])
    return root, mounted


def _holds(fields: list[str], controller: str, is_first: bool) -> bool:
    """Say whether a line of mountinfo is the mount of a controller of version 1, or that of version 2."""
    if "-" not in fields[6:]:
        return False
    kind, _, options = (*fields[fields.index("-", 6) + 1 :], "", "", "")[:3]
    return (kind == "cgroup" and controller in options.split(",")) if is_first else kind == "cgroup2"
