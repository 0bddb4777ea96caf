"""What `rnc cancel` and `rnc submit --prune` do: end trainings that another terminal's submit runs."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from orchestrator.driver.lock import holder_of
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, find_row
from orchestrator.experiment.plan import TrainRun, make_plan, train_key
from orchestrator.site import Site
from orchestrator.tracking.ledger import begin_training, end_training, read_ledger
from orchestrator.tracking.runs import search_runs, write
from orchestrator.tracking.server import existing_tracking_server
from orchestrator.tracking.suite import STOP_TAG, Tracking, experiment_tags, open_suite, tag_experiment

Say = Callable[[str], None]


def cancel_row(experiments: Sequence[Experiment], label: str, seed: int | None, site: Site, say: Say) -> None:
    """Ask the running submit to end the trainings of a row, and say which other rows stand on them.

    Args:
        experiments: in which the row is looked up, and the rows that share its trainings.
        label: of the row.
        seed: one of the row's; None for all of them.
        site: where MLflow is.
        say: prints.

    Raises:
        UserError: there is no such row or seed, or nobody runs the suite.
    """
    experiment, row = find_row(experiments, label, seed)
    uri = existing_tracking_server(site)
    suite = open_suite(uri, experiment.suite, create=False) if uri is not None else None
    if suite is None or suite.experiment_id is None or holder_of(suite, site) is None:
        raise UserError(
            f"nothing to cancel: nobody runs suite {experiment.suite} now; `rnc status` says where it stands"
        )
    plan = make_plan([one for one in experiments if one.suite == experiment.suite], read_ledger(suite))
    for one in row.seeds if seed is None else (seed,):
        run = plan.trainings[train_key(replace(row.train, seed=one))]
        if run.key not in plan.missing_trainings:
            say(f"{run.label}: its training has ended; nothing to cancel")
            continue
        ask_to_cancel(suite, run)
        places = dict.fromkeys(place for scored in plan.evaluations_on(run.key) for place in scored.places)
        rows = ", ".join(f"{place.table}, {place.label}" for place in places)
        say(f"{run.label}: training {run.key} ends within seconds and keeps its checkpoints. Rows on it: {rows}")
    say("The other rows go on; the next submit takes up what is cancelled from its last checkpoint.")


def prune(experiments: Sequence[Experiment], suite: Tracking, site: Site, say: Say) -> None:
    """End unfinished trainings that only tables of `experiments` wanted, and of which no row asks any more.

    Whoever runs the suite ends its own within seconds, those that wait included. Finished work stays, and so does what
    a table wants that is not among `experiments`.
    """
    ledger = read_ledger(suite)
    wish = Prune(
        tables=frozenset(experiment.name for experiment in experiments),
        keep=frozenset(make_plan(experiments, ledger).trainings),
    )
    runs = holder_of(suite, site) is not None
    if runs:
        ask_to_prune(suite, wish)
        say("The submit that runs the suite was asked to end the trainings that no row asks for any more.")
    for key, record in ledger.trainings.items():
        if not wish.takes(key, record.wanted_by) or record.status in ("FINISHED", "STOPPED") or record.note == PRUNED:
            continue
        if not (runs and record.status == "RUNNING"):
            end_training(suite, record.run_id, "KILLED", PRUNED)
        say(f"pruned: training {key} ({record.label})")


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
