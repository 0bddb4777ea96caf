"""The processes of one suite, by what they are; none of another suite or user is ever found."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Processes:
    """All that was ever seen of the processes of a home: its RNC_HOME in their environment, or in a parent's."""

    def __init__(self, home: Path) -> None:
        self._mark = f"RNC_HOME={home}\0".encode()
        self._seen: dict[int, psutil.Process] = {}

    def alive(self) -> list[psutil.Process]:
        """Return those that live, in the order of their ids."""
        parents: dict[int, int] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                parents[process.pid] = process.ppid()
                # Titles that Ray gives its processes may overwrite their environment; their parents' stands.
                if process.pid not in self._seen and self._mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                    self._seen[process.pid] = process
        grows = True
        while grows:
            children = {pid for pid, parent in parents.items() if parent in self._seen and pid not in self._seen}
            for pid in children:
                with suppress(psutil.Error):
                    self._seen[pid] = psutil.Process(pid)
            grows = bool(children & self._seen.keys())
        self._seen = {pid: process for pid, process in self._seen.items() if lives(process)}
        return [self._seen[pid] for pid in sorted(self._seen) if pid != os.getpid()]

    def named(self, *names: str) -> list[psutil.Process]:
        """Return those whose name or title begins so."""
        return [process for process in self.alive() if title(process).startswith(names)]


def title(process: psutil.Process) -> str:
    """Say what a process is called: by Ray, or its program."""
    with suppress(psutil.Error):
        words = process.cmdline()
        if words and words[0].startswith("ray::"):
            return str(words[0])
        if "uvicorn" in words:
            return "MLflow"
        return str(process.name())
    return ""


def lives(process: psutil.Process) -> bool:
    """Whether it is that process still, and no zombie."""
    with suppress(psutil.Error):
        return bool(process.is_running()) and process.status() not in GONE  # by its start, as ids are used again
    return False


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> bool:
    """Send a signal, and say whether the process was there to get it."""
    if not lives(process):
        return False
    with suppress(psutil.Error):
        process.send_signal(number)
        return True
    return False


@contextmanager
def paused(process: psutil.Process, seconds: float = 2.0) -> Iterator[bool]:
    """Hold a process still, and say whether it is; it goes on afterwards, if it is there."""
    kill(process, signal.SIGSTOP)
    deadline = time.monotonic() + seconds
    while not (stopped := _is_stopped(process)) and time.monotonic() < deadline and lives(process):
        time.sleep(0.001)
    try:
        yield stopped
    finally:
        kill(process, signal.SIGCONT)


def talks_to(client: psutil.Process, server: psutil.Process) -> bool:
    """Whether a process has a connection to a port on which another listens."""
    with suppress(psutil.Error):
        ports = {one.laddr.port for one in server.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
        return any(one.raddr and one.raddr.port in ports for one in client.net_connections("tcp"))
    return False


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False
