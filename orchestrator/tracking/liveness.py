"""Whether somebody works on a run that says RUNNING: by its process on this host, by signs of life from another."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from orchestrator import names
from orchestrator.experiment.plan import Ledger
from orchestrator.process import exists_here
from orchestrator.tracking.records import by_key
from orchestrator.tracking.runs import Run

SILENT_SECONDS = 3600.0
"""A run of another host that has received nothing for so long is taken for dead."""
QUIET_SECONDS = 300.0
"""For so long a training on another host may tell nothing before `rnc status` says so."""


def looks_alive(run: Run, told: float = 0.0) -> bool:
    """Say whether a run's driver still exists: by its process on this host, by signs of life from another host.

    Args:
        run: of any status.
        told: another sign of life of that driver, in seconds since 1970.
    """
    here = exists_here(run.tags.get(names.DRIVER, ""))
    if here is not None:
        return here
    return time.time() - max(told, run.last_sign_of_life / 1000) < SILENT_SECONDS


def without_the_dead(ledger: Ledger, runs: Iterable[Run], heard: Callable[[], Mapping[str, float]]) -> Ledger:
    """Return the ledger as it is where the drivers of running trainings are gone: these are interrupted.

    A training on another host that tells nothing is named; its driver may be scoring, or its network may be down.

    Args:
        ledger: what MLflow holds of a suite.
        runs: of it, newest first, from which the ledger was read.
        heard: asks for signs of life of drivers beside those of their runs, in seconds since 1970.
    """
    running = {
        key: run
        for key, run in by_key(runs, "training").items()
        if run.status == "RUNNING" and key in ledger.trainings and not exists_here(run.tags.get(names.DRIVER, ""))
    }
    if not running:
        return ledger
    signs, now = heard(), time.time()
    seen = {}
    for key, run in running.items():
        driver = run.tags.get(names.DRIVER, "")
        told = max(signs.get(driver, 0.0), run.last_sign_of_life / 1000)
        if not looks_alive(run, told):
            seen[key] = replace(ledger.trainings[key], status="KILLED", note=_gone(driver, told))
        elif now - told > QUIET_SECONDS:
            quiet = f"no sign of life for {(now - told) / 60:.0f} min from {_process(driver)}"
            seen[key] = replace(ledger.trainings[key], note=quiet)
    return replace(ledger, trainings={**ledger.trainings, **seen})


def _gone(driver: str, told: float) -> str:
    # The first 60 characters are what a table has room for.
    since = time.strftime("%d %b %H:%M", time.localtime(told))
    return f"interrupted: driver gone since {since}; submit goes on from its checkpoint (it was {_process(driver)})"


def _process(driver: str) -> str:
    host, _, process = driver.partition(" ")
    return f"process {process.partition(' ')[0]} on {host}" if process else "a process that is not known"
