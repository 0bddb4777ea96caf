"""Starts a submit that goes on when its terminal is closed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.driver.lock import holder_of, lock_file, signed
from orchestrator.driver.submit import check
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.site import Site
from orchestrator.tracking.suite import open_suite

START_SECONDS = 20.0


def submit_detached(
    suites: Sequence[Sequence[Experiment]], site: Site, options: Sequence[str], say: Callable[[str], None]
) -> None:
    """Check what can be checked in seconds, then submit the suites from a process of their own, and say which it is.

    A suite that is complete, or that somebody runs already, is left alone.

    Args:
        suites: the experiments of each.
        site: where everything is.
        options: passed on to `rnc submit`.
        say: told what happens.

    Raises:
        UserError: something that must be right before the start is not; nothing was started.
    """
    todo: list[Experiment] = []
    for experiments in suites:
        suite = experiments[0].suite
        plan, uri = check(experiments, site, say)
        if not (plan.missing_trainings or plan.missing_evaluations):
            say(f"Suite {suite}: nothing is missing, nothing was started.")
        elif holder := holder_of(open_suite(uri, suite, create=False), site):
            say(
                f"Suite {suite} is being run by {holder}; nothing was started. What this submit asks for beyond that "
                "one, submit again once it has ended."
            )
        else:
            todo.extend(experiments)
    if todo:
        _start([str(experiment.path.absolute()) for experiment in todo], todo[0].suite, site, options, say)


def _start(files: Sequence[str], suite: str, site: Site, options: Sequence[str], say: Callable[[str], None]) -> None:
    log = lock_file(site, suite).with_name(f"{time.strftime('%Y%m%d-%H%M%S')}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "submit", *files, *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _wait_for_turn(process, site, suite, log)
    shown = " ".join(_relative(file) for file in files)
    say(
        f"Submitted as process {process.pid}, which goes on without this terminal.\n"
        f"  its output:   tail -f {log}\n"
        f"  how far:      rnc status {shown}\n"
        f"  its progress: rnc submit {shown}   (looks on, and takes over when it ends)\n"
        f"  to stop it:   kill {process.pid}   (the next submit goes on from the last checkpoints)"
    )


def _wait_for_turn(process: "subprocess.Popen[bytes]", site: Site, suite: str, log: Path) -> None:
    """From then on everybody can see who runs the suite."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        holder = signed(site, suite)
        if holder is not None and holder.driver.split(" ")[1] == str(process.pid):
            return
        if process.poll():
            raise UserError(f"the submit ended with code {process.returncode}; {log} ends with\n{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
