"""The identity of a process, as tags and locks keep it, and what ends one from outside.

Ctrl-C, SIGTERM and a terminal that is closed are one exception while they are asked for.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command from outside."""


def exists_here(driver: str) -> bool | None:
    """Say whether a process that `this_process` named still exists; None if it is one of another host."""
    host, pid, start, machine = (*driver.split(" "), "", "", "", "")[:4]
    # Earlier versions named no machine.
    if host != socket.gethostname() or machine not in ("", _machine()):
        return None
    # A tag of MLflow may hold anything; a process's id has seven digits at most.
    return pid.isascii() and pid.isdigit() and len(pid) < 10 and f"{pid} {start}" == identity(int(pid))


def this_process() -> str:
    """Name this process by host, id and start, so that a later process with the same id is told apart, and by machine.

    Two machines may have one host name: "localhost", or that of the image that both were made from.
    """
    return f"{socket.gethostname()} {identity(os.getpid())} {_machine()}".rstrip()


@cache
def _machine() -> str:
    """Return a few digits that tell this machine from others, after reboots, too; none where it has no number."""
    with suppress(OSError):
        # Only a digest, as systemd wants that number to stay on its machine.
        return sha256(Path("/etc/machine-id").read_bytes()).hexdigest()[:8]
    return ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and on SIGHUP, as Python does on SIGINT.

    The exception holds the number of the signal. SIGHUP stays ignored where it is: whoever starts a command by nohup
    means it to outlive its terminal.
    """
    screens = [number for number in (1, 2) if _is_screen(number)]

    def stop(number: int, *_: Any) -> None:
        if number == signal.SIGHUP:
            _leave(screens)
        raise KeyboardInterrupt(number)

    with _handlers(stop):
        yield


@contextmanager
def uninterruptible() -> Iterator[None]:
    """Let a second Ctrl-C not disturb the cleaning up after the first."""
    screens = [number for number in (1, 2) if _is_screen(number)]

    def stay(number: int, *_: Any) -> None:
        if number == signal.SIGHUP:
            _leave(screens)

    with _handlers(stay):
        yield


def identity(pid: int) -> str | None:
    """Return a process's id and its start in clock ticks since boot, or None if it has ended."""
    if not psutil.LINUX:  # elsewhere the start as psutil tells it moves whenever the clock is set
        return f"{pid} ?" if psutil.pid_exists(pid) else None
    try:
        booted = psutil.boot_time()  # first: releases before 7.1 add the boot time that was last asked for
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        # Ticks, since seconds of the calendar would change with the clock, and older drivers' tags hold ticks.
        return f"{pid} {round((process.create_time() - booted) * os.sysconf('SC_CLK_TCK'))}"
    except psutil.Error:
        return None


@contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    # Python sets signal handlers in the main thread only; notebooks and tests may run this in another.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []
    old = {number: signal.signal(number, handler) for number in SIGNALS if number not in kept}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def _is_screen(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _leave(screens: Sequence[int]) -> None:
    """Print to nowhere what would go to a terminal that is gone; each further line would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in screens:
        os.dup2(nowhere, number)
    os.close(nowhere)
