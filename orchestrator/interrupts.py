"""What ends a command from outside: Ctrl-C, SIGTERM and a terminal that is closed, all three as one exception."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
