"""Starts a submit that goes on when its terminal is closed."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from orchestrator.driver.cancel import prune_trainings
from orchestrator.driver.lock import holder_of, lock_file, signed
from orchestrator.driver.submit import check
from orchestrator.errors import Say, UserError
from orchestrator.site import CLI_MODULE
from orchestrator.tracking.server import using_server
from orchestrator.tracking.suite import Suite

START_SECONDS = 20.0
"""How long the start is watched; a process that takes longer goes on, and its log tells what becomes of it."""


def submit_detached(suites: Sequence[Suite], options: Sequence[str], say: Say) -> None:
    """Check what can be checked in seconds, then submit the suites from a process of their own, and say which it is.

    A suite that is complete, or that somebody runs already, is left alone.

    Args:
        suites: of one site.
        options: passed on to `rnc submit`.
        say: told what happens.

    Raises:
        UserError: something that must be right before the start is not; nothing was started.
    """
    todo: list[Suite] = []
    for suite in suites:
        # Where seeds are added until decided, only a look at the intervals tells whether that is all.
        if check(suite, say).is_complete and not any(one.seed_rule for one in suite.experiments):
            say(f"Suite {suite.name}: nothing is missing, nothing was started.")
        elif holder := holder_of(suite):
            say(
                f"Suite {suite.name} is being run by {holder}; nothing was started. What this submit asks for beyond "
                f"that one, submit again once it has ended, or now with --suite {suite.name}-2: a suite of its own, "
                f"which shares no results.{holder.work and f' {holder.work}'}"
            )
            if "--prune" in options:  # it is for just this: whoever runs the suite ends trainings of its own
                with using_server(suite.site):
                    suite.connect()
                    prune_trainings(suite, say)
        else:
            todo.append(suite)
    if todo:
        files = [str(experiment.path.absolute()) for suite in todo for experiment in suite.experiments]
        _start(files, todo[0], options, say)


def _start(files: Sequence[str], first: Suite, options: Sequence[str], say: Say) -> None:
    log = lock_file(first.site, first.name).with_name(f"{time.strftime('%Y%m%d-%H%M%S')}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    # Without -P, `-m` looks in the current folder first, where a folder may be called model, too.
    command = [sys.executable, "-P", "-m", CLI_MODULE, "submit", *files, *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            # Python writes to a file in blocks; `tail -f` is to show each line at once.
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A terminal that closes sends SIGHUP to its session.
            start_new_session=True,
        )
    _wait_for_lock(process, first, log)
    changes = [word for pair in pairwise(options) if pair[0] in ("--set", "--suite") for word in pair]
    changes += ["--yes"] if "--yes" in options else []
    shown = shlex.join([*map(_relative, files), *changes])  # which suite and settings it is about
    say(
        f"Submitted as process {process.pid}, which goes on without this terminal.\n"
        f"  its output:   tail -f {log}\n"
        f"  how far:      rnc status {shown}\n"
        f"  its progress: rnc submit {shown}   (looks on, and takes over when it ends)\n"
        f"  to stop it:   kill {process.pid}   (the next submit goes on from the last checkpoints)"
    )


def _wait_for_lock(process: "subprocess.Popen[bytes]", suite: Suite, log: Path) -> None:
    """Return once the new process holds the suite's lock, or after START_SECONDS; raise if it failed first."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        holder = signed(suite.site, suite.name)
        if holder is not None and holder.driver.split(" ")[1] == str(process.pid):
            return
        # Exit code 0 is no failure: there may be nothing left to do.
        if process.poll():
            raise UserError(f"the submit ended with code {process.returncode}; {log} ends with\n{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
