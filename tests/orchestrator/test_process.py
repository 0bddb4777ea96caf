"""Processes as they are named in tags, held against /proc and against processes that really end; and the signals.

These are sent to this process, and to one on a terminal that is closed.
"""

import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from orchestrator import process
from orchestrator.process import SIGNALS, exists_here, interruptible, this_process, uninterruptible

ROOT = Path(__file__).parents[2]
AT_WORK = """
import pathlib, sys, time
from orchestrator.process import interruptible
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no /proc")
def test_a_driver_is_named_as_in_tags_of_older_versions_and_by_machine_and_has_ended_once_it_is_a_zombie():
    def tag(pid: int) -> str:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{socket.gethostname()} {pid} {fields[19]}"  # field 22 of proc(5), starttime in ticks since boot

    older = re.sub(r" [0-9a-f]{8}$", "", this_process())
    assert older == tag(os.getpid())
    assert exists_here(older) and exists_here(this_process())
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        driver = tag(sleeper.pid)
        assert exists_here(driver)
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
        assert not exists_here(driver)


def test_a_process_of_another_machine_of_this_name_is_not_looked_for_here(monkeypatch: pytest.MonkeyPatch):
    other = f"{socket.gethostname()} 123 1 0badcafe"
    assert exists_here(other) is None
    monkeypatch.setattr(process, "_machine", lambda: "0badcafe")
    assert exists_here(other) is False


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
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
