"""Asks whoever runs a suite to end some of its trainings, through MLflow, where the running submit looks every 2 s."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.experiment.plan import TrainRun
from orchestrator.tracking.entries import STOP_TAG
from orchestrator.tracking.ledger import begin_training, end_training, read_ledger
from orchestrator.tracking.runs import search_runs, write
from orchestrator.tracking.suite import Tracking, experiment_tags, tag_experiment

CANCELLED = "cancelled"
PRUNED = "pruned"
PRUNE_TAG = "prune"
"""Of the suite's experiment: the trainings to keep, of those that only the named tables want."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune:
    """A wish to end what no row asks for any more."""

    tables: frozenset[str]
    keep: frozenset[str]
    """Train keys that rows of these tables ask for."""

    def takes(self, key: str, wanted_by: Collection[str]) -> bool:
        """Say whether a training goes; one that yet another table wants, or nobody knows which, stays."""
        return bool(wanted_by) and key not in self.keep and self.tables.issuperset(wanted_by)


def ask_to_cancel(suite: Tracking, run: TrainRun) -> None:
    """Ask for the end of one training; where it waits, its run says at once that it is cancelled."""
    record = read_ledger(suite).trainings.get(run.key)
    run_id = begin_training(suite, run) if record is None else record.run_id
    write(suite.uri, run_id, tags={STOP_TAG: CANCELLED})
    if record is None or record.status != "RUNNING":
        end_training(suite, run_id, "KILLED", CANCELLED)


def ask_to_prune(suite: Tracking, prune: Prune) -> None:
    """Ask for the end of all trainings that a prune takes."""
    tag_experiment(suite, PRUNE_TAG, json.dumps({"tables": sorted(prune.tables), "keep": sorted(prune.keep)}))


def prune_asked(suite: Tracking) -> Prune | None:
    """Return what was asked for, if anything was."""
    text = experiment_tags(suite).get(PRUNE_TAG)
    if not text:
        return None
    told = json.loads(text)
    return Prune(tables=frozenset(told["tables"]), keep=frozenset(told["keep"]))


def forget_stops(suite: Tracking) -> None:
    """Drop what was asked of an earlier submit."""
    if suite.experiment_id is None:
        return
    for run in search_runs(suite.uri, suite.experiment_id, f"tags.{STOP_TAG} != ''"):
        write(suite.uri, run["info"]["run_id"], tags={STOP_TAG: ""})
    if prune_asked(suite) is not None:
        tag_experiment(suite, PRUNE_TAG, "")
