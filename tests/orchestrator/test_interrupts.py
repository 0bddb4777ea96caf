"""Signals that end a command, sent to this process and to one on a terminal that is closed."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.interrupts import SIGNALS, interruptible, uninterruptible

ROOT = Path(__file__).parents[2]
AT_WORK = """
import pathlib, sys, time
from orchestrator.interrupts import interruptible
try:
    with interruptible():
        print("at work", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    for _ in range(5):
        print("cleaning up", file=sys.stderr, flush=True)
        time.sleep(0.05)
    pathlib.Path(sys.argv[1]).write_text("clean")
    sys.exit(130)
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_of_them_is_a_keyboard_interrupt_while_it_is_asked_for(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    is_interrupted = False
    try:
        with interruptible():
            os.kill(os.getpid(), number)
            time.sleep(1)
    except KeyboardInterrupt:
        is_interrupted = True
    assert is_interrupted
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_none_of_them_disturbs_what_cleans_up(number: signal.Signals) -> None:
    with uninterruptible():
        os.kill(os.getpid(), number)
        time.sleep(0.01)


def test_a_closed_terminal_does_not_end_what_nohup_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_whose_terminal_closes_ends_as_after_ctrl_c(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(tmp_path / "done")],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # The terminal is that of a session of its own, whose end the kernel tells it.
        preexec_fn=lambda: _control(theirs),
    )
    os.close(theirs)
    assert b"at work" in os.read(ours, 1000)
    os.close(ours)  # what it prints from now on is an error of input and output
    assert process.wait(20) == 130
    assert (tmp_path / "done").read_text() == "clean"


def _control(terminal: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
