"""Whether somebody works on a run, as `rnc status` tells of runs that say RUNNING."""

import socket
import time
from collections.abc import Mapping

import pytest

from orchestrator.experiment.plan import Ledger
from orchestrator.process import this_process
from orchestrator.tracking.liveness import without_the_dead
from orchestrator.tracking.records import ledger_of
from orchestrator.tracking.runs import Run

KEY = "k"
DEAD = f"{socket.gethostname()} 123 1"
"""No process of this host began in the first tick after its start."""


def running(driver: str, silent: float = 0.0) -> Run:
    began = str(round(1000 * (time.time() - silent)))
    tags = {"kind": "training", "train_key": KEY, "driver": driver, "begun": began}
    return Run(run_id="r", name="ours", status="RUNNING", tags=tags)


def seen(run: Run, heard: Mapping[str, float] | None = None) -> tuple[str, str]:
    record = without_the_dead(ledger_of([run]), [run], lambda: heard or {}).trainings[KEY]
    return record.status, record.note


def test_a_training_whose_driver_is_gone_is_interrupted_and_says_since_when_and_how_it_goes_on() -> None:
    status, note = seen(running(DEAD, silent=60.0))
    since = time.strftime("%d %b %H:%M", time.localtime(time.time() - 60.0))
    assert status == "KILLED"
    assert note[:59] == f"interrupted: driver gone since {since}; submit goes on"  # what a table has room for
    assert note.endswith(f" from its checkpoint (it was process 123 on {socket.gethostname()})")


def test_a_training_whose_driver_lives_stands_as_it_is_and_costs_no_question() -> None:
    run = running(this_process(), silent=9999.0)
    ledger = ledger_of([run])
    assert without_the_dead(ledger, [run], lambda: pytest.fail("asked")) is ledger
    assert without_the_dead(Ledger(), [], lambda: pytest.fail("asked")) == Ledger()


def test_of_another_host_signs_of_life_tell() -> None:
    other = "elsewhere 7 1"
    assert seen(running(other, silent=60.0)) == ("RUNNING", "")
    assert seen(running(other, silent=900.0)) == ("RUNNING", "no sign of life for 15 min from process 7 on elsewhere")
    # It scores, which its run does not tell, and renews its claim.
    assert seen(running(other, silent=900.0), {other: time.time() - 5}) == ("RUNNING", "")
    status, note = seen(running(other, silent=7200.0))
    assert (status, note[:24]) == ("KILLED", "interrupted: driver gone")
    assert seen(running(other, silent=7200.0), {other: time.time() - 5}) == ("RUNNING", "")
