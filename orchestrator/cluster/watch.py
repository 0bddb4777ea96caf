"""Watches whether Ray is still there: its own library waits a minute for a cluster that died, then ends the process."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import ray

LOOK_SECONDS = 1.0
SILENT_SECONDS = 40.0
"""So long a joined cluster may be silent, as while its GCS starts again; after 60 s Ray ends the process."""
CONNECT_SECONDS = 5.0
PARTS = ("gcs_server", "raylet")
"""The processes of a Ray of our own, children of this one, without which nothing goes on."""


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
        """While the context lasts, raise a Ctrl-C in the main thread once Ray has ended."""
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
    host, _, port = address.rpartition(":")
    heard = time.monotonic()

    def look() -> str:
        nonlocal heard
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            silent = time.monotonic() - heard
            return f"the Ray cluster at {address} went away ({error})" if silent > SILENT_SECONDS else ""
        heard = time.monotonic()
        return ""

    return look
