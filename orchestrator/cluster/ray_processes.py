"""The processes of Ray: whether those are there that all wait for, and those that outlive a driver that was killed.

Where its GCS dies, Ray's own library waits a minute and then ends the process; where its raylet dies, Tune waits on.
After a driver that was killed, the agents of its raylet stay for a minute or more. A driver therefore signs the folder
of its Ray session, and a process of Ray belongs to a session if it writes to a file of that folder; names of processes
alone say nothing, as another Ray may run beside ours.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from model.foreign import read_bounded
from orchestrator.cluster.environment import ray_folder
from orchestrator.errors import UserError
from orchestrator.process import exists_here, this_process

LOOK_SECONDS = 1.0
SILENT_SECONDS = 40.0
"""So long a joined cluster may be silent, as while its GCS starts again; after 60 s Ray ends the process."""
CONNECT_SECONDS = 5.0
PARTS = ("gcs_server", "raylet")
"""The processes of a Ray of our own, children of this one, without which nothing goes on."""
SIGNATURE = "rnc_driver"
"""The file, in the folder of a Ray session, that names the driver which started it."""
MOST_SIGNATURE = 1000
"""Bytes of it: the name of a host and two numbers."""
END_SECONDS = 5.0


class RayWatch:
    """Looks every second whether Ray has ended, and interrupts what waits for it."""

    def __init__(self, *, is_local: bool) -> None:
        """Begin with a Ray that is there: one of our own, or a cluster that was joined."""
        self._look = _own() if is_local else _joined()
        self._said, self._done = "", threading.Event()

    @property
    def why(self) -> str:
        """Say in one line what became of Ray; empty where it is there."""
        self._said = self._said or self._look()
        return self._said

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """While the context lasts, raise a Ctrl-C once Ray has ended; in the main thread, as other threads get none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        thread = threading.Thread(target=self._watch, name="ray", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            if self.why:
                # A signal, which ends waiting in the kernel as well; Tune would wait for its trials for ever.
                os.kill(os.getpid(), signal.SIGINT)
                return


def sign(session: Path) -> None:
    """Note that this process started the Ray session of a folder."""
    with suppress(OSError):  # only a later look for what is left of it finds less
        (session / SIGNATURE).write_text(this_process())


def withdraw() -> None:
    """Take the signatures of this process back, of the sessions that have ended with all their processes."""
    for file in _signatures():
        with suppress(OSError):
            if _driver_of(file) == this_process() and not processes_of([file.parent]):
                file.unlink()


def sessions_folder() -> Path:
    """Return the folder in which a Ray of our own keeps those of its sessions."""
    with suppress(UserError):  # told where a Ray is to start
        if (moved := ray_folder(os.environ)) is not None:
            return moved
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def orphaned_sessions() -> list[Path]:
    """Return the sessions whose drivers, processes of this user and this host, are gone."""
    return [file.parent for file in _signatures() if _is_orphaned(file)]


def end_leftovers() -> list[str]:
    """End the processes of orphaned sessions, and return their numbers and names."""
    sessions = orphaned_sessions()
    found = processes_of(sessions) if sessions else []
    ended = []
    for process in found:
        with suppress(psutil.Error):
            ended.append(f"{process.pid} {process.name()}")
            process.kill()  # by number and start, so that none is hit that took the number since
    _, alive = psutil.wait_procs(found, END_SECONDS)
    if not alive:
        for session in sessions:
            with suppress(OSError):
                (session / SIGNATURE).unlink()
    return ended


def processes_of(sessions: Sequence[Path]) -> list[psutil.Process]:
    """Return this user's processes of some Ray sessions, but for this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is somebody else's
            if process.pid != os.getpid() and process.uids().real == os.getuid() and _belongs(process, sessions):
                found.append(process)
    return found


def _own() -> Callable[[], str]:
    parts = [(process.name(), process) for process in psutil.Process().children() if process.name() in PARTS]

    def look() -> str:
        for name, process in parts:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return (
                    f"Ray has ended: its {name}, process {process.pid}, was killed or died, as it does where memory "
                    "runs out (`dmesg` tells)"
                )
        return ""

    return look


def _joined() -> Callable[[], str]:
    address = ray.get_runtime_context().gcs_address
    heard = time.monotonic()

    def look() -> str:
        nonlocal heard
        if not (why := _silence(address)):
            heard = time.monotonic()
            return ""
        return f"the Ray cluster at {address} went away ({why})" if time.monotonic() - heard > SILENT_SECONDS else ""

    # Through Ray's client, or a gateway, its GCS may be out of reach from the beginning.
    return (lambda: "") if _silence(address) else look


def _silence(address: str) -> str:
    """Say why nobody answers at an address; empty where somebody does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _signatures() -> list[Path]:
    # Once each: Ray links the newest as session_latest.
    return sorted({file.resolve() for file in sessions_folder().glob(f"session_*/{SIGNATURE}")})


def _driver_of(signature: Path) -> str:
    """Return the driver that signed a session; empty where another user did: anybody may write to /tmp."""
    with suppress(OSError, ValueError):  # a pipe, say, or no text
        if signature.stat().st_uid == os.getuid():
            return read_bounded(signature, MOST_SIGNATURE, "remove it").decode()
    return ""


def _belongs(process: psutil.Process, sessions: Sequence[Path]) -> bool:
    """Whether a process writes to a file of a session, and is Python or a program of Ray, no editor of an old log."""
    program = Path(process.exe()).name
    if program not in PARTS and not program.startswith("python"):
        return False
    # Somebody who looks at the logs reads them.
    written = [file.path for file in process.open_files() if getattr(file, "mode", "w") != "r"]
    return any(path.startswith(f"{session}{os.sep}") for session in sessions for path in written)


def _is_orphaned(signature: Path) -> bool:
    driver = _driver_of(signature)
    return driver != "" and exists_here(driver) is False
