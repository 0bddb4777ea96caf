"""Tells a run that somebody works on from one that only says so."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

SILENT_SECONDS = 3600.0
"""A run of another host that has received nothing for so long is taken for dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A run whose status is RUNNING."""

    key: str
    """Its train key or evaluation key."""
    run_id: str
    driver: str
    """The process that answers for it, as `this_process` named it."""
    last_sign_of_life: float
    """Seconds since 1970."""


def looks_alive(running: Running) -> bool:
    """Say whether a run's driver still exists: by its process on this host, by signs of life from another host."""
    here = exists_here(running.driver)
    return time.time() - running.last_sign_of_life < SILENT_SECONDS if here is None else here


def exists_here(driver: str) -> bool | None:
    """Say whether a process that `this_process` named still exists; None if it is one of another host."""
    host, _, process = driver.partition(" ")
    if host != socket.gethostname():
        return None
    pid = process.partition(" ")[0]
    return pid.isdigit() and process == _process(int(pid))


def this_process() -> str:
    """Name this process by host, id and start, so that a later process with the same id is told apart."""
    return f"{socket.gethostname()} {_process(os.getpid())}"


def _process(pid: int) -> str | None:
    """Return the process id with the process's start in ticks since the machine's, or None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return f"{pid} ?" if _exists(pid) and not Path("/proc/self/stat").exists() else None
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else f"{pid} {rest[18]}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
