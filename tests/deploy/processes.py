"""Starts the processes of a stack, and ends all that they started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "RNC_TEST_STACK"
"""A variable that every process of a stack inherits."""


class StartError(Exception):
    """A process ended, or does not get ready; holds the end of its log."""


class Processes:
    """Those of one stack, by name, and their logs in one folder."""

    def __init__(self, folder: Path) -> None:
        """Start none yet."""
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._endings: dict[str, int] = {}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], ending: int) -> None:
        """Start one, with this environment and no other.

        Args:
            name: of its log, too.
            command: without secrets.
            environment: of it.
            ending: the signal that ends it in order.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**environment, MARK: str(self.folder)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[name], self._endings[name] = process, ending

    def wait(self, name: str, is_ready: Callable[[], bool], seconds: float = 180.0) -> None:
        """Wait until something is true.

        Raises:
            StartError: the process ended, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.running[name].poll() is None:
            if is_ready():
                return
            time.sleep(0.1)
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        raise StartError(f"{name} does not get ready: {log[-2000:]}")

    def pids(self, name: str) -> list[int]:
        """One process, and all below it."""
        parent = psutil.Process(self.running[name].pid)
        return [parent.pid, *(child.pid for child in parent.children(recursive=True))]

    def stop(self) -> None:
        """End all, the last one first, and what they left behind."""
        for name, process in reversed(self.running.items()):
            if process.poll() is None:
                process.send_signal(self._endings[name])
        deadline = time.monotonic() + 20.0
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in marked(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """Yield a starter whose processes end with the context."""
    all_of_them = Processes(folder)
    try:
        yield all_of_them
    finally:
        all_of_them.stop()


def marked(folder: Path) -> list[int]:
    """The processes of this user that a stack in this folder started, whoever their parent is by now."""
    mark = f"{MARK}={folder}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
