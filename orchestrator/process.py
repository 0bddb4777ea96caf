"""Which process answers for something: named by host, id and start, so that it can be told whether it still exists."""

import os
import socket
from pathlib import Path


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
