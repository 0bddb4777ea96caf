"""What `rnc cancel` and `rnc submit --prune` do: end trainings that another terminal's submit runs."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from model.foreign import parse_json
from orchestrator import names
from orchestrator.driver.lock import holder_of
from orchestrator.errors import Say, UserError
from orchestrator.experiment.cost.seeds import at_most
from orchestrator.experiment.load import find_row
from orchestrator.experiment.plan import TrainRun, gather, train_key
from orchestrator.tracking.ledger import begin_training, end_training, read_ledger
from orchestrator.tracking.runs import (
    Run,
    Tracking,
    experiment_tags,
    now,
    read_runs,
    tag_experiment,
    whole_number,
    write,
)
from orchestrator.tracking.suite import Suite


def cancel_row(suite: Suite, label: str, seed: int | None, say: Say) -> None:
    """Ask the running submit to end the trainings of a row, and say which other rows stand on them.

    Args:
        suite: in whose tables the row is looked up, and the rows that share its trainings.
        label: of the row.
        seed: one of the row's; None for all of them.
        say: prints.

    Raises:
        UserError: there is no such row or seed, or nobody runs the suite.
    """
    _, row = find_row(suite.experiments, label, seed)
    tracking = suite.tracking
    if tracking is None or tracking.experiment_id is None or holder_of(suite) is None:
        raise UserError(f"nothing to cancel: nobody runs suite {suite.name} now; `rnc status` says where it stands")
    plan = suite.make_plan()
    for one in row.seeds if seed is None else (seed,):
        run = plan.trainings.get(train_key(replace(row.train, seed=one)))
        if run is None:
            raise UserError(f"row {label!r}: seed {one} was not added to it; it has {list(row.seeds)}")
        if run.key not in plan.missing_trainings:
            say(f"{run.label}: its training has ended; nothing to cancel")
            continue
        ask_to_cancel(tracking, run)
        places = dict.fromkeys(place for scored in plan.evaluations_on(run.key) for place in scored.places)
        rows = ", ".join(f"{place.table}, {place.label}" for place in places)
        say(f"{run.label}: training {run.key} ends within seconds and keeps its checkpoints. Rows on it: {rows}")
    say(
        "The other rows go on, and submits that wait for their turn leave alone what is cancelled; one that is started"
        " from now on takes it up from its last checkpoint."
    )


def prune_trainings(suite: Suite, say: Say) -> None:
    """End unfinished trainings that only these tables of a suite wanted, and of which no row asks any more.

    Whoever runs the suite ends its own within seconds, those that wait included. Finished work stays, and so does what
    a table wants that is not among these.
    """
    tracking = suite.connection
    wish = Prune(
        tables=frozenset(experiment.name for experiment in suite.experiments),
        # Seeds that a submit elsewhere has just added are in no record yet.
        keep=frozenset(gather([at_most(experiment) for experiment in suite.experiments]).trainings),
    )
    runs = holder_of(suite) is not None
    if runs:
        ask_to_prune(tracking, wish)
        say("The submit that runs the suite was asked to end the trainings that no row asks for any more.")
    for key, record in suite.ledger.trainings.items():
        if not wish.takes(key, record.wanted_by) or record.status in ("FINISHED", "STOPPED") or record.note == PRUNED:
            continue
        # A running training is ended by the submit that runs it, as only that one reaches its workers.
        if not (runs and record.status == "RUNNING"):
            end_training(tracking, record.run_id, "KILLED", PRUNED)
        say(f"pruned: training {key} ({record.label})")
    suite.refresh()


KEYS_OF_A_TAG = 300
"""Of 12 characters and a blank each."""
CANCELLED = "cancelled"
PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune:
    """A wish to end what no row asks for any more."""

    tables: frozenset[str]
    keep: frozenset[str]
    """Train keys that rows of these tables ask for."""

    def takes(self, key: str, wanted_by: Collection[str]) -> bool:
        """Say whether a training ends; one that another table wants, or whose tables are not known, stays."""
        return bool(wanted_by) and key not in self.keep and self.tables.issuperset(wanted_by)


def ask_to_cancel(tracking: Tracking, run: TrainRun) -> None:
    """Ask for the end of one training; where it waits, its run says at once that it is cancelled."""
    record = read_ledger(tracking, run.key).trainings.get(run.key)
    # A training that still waits has no run yet; it gets one, which holds the wish.
    run_id = begin_training(tracking, run) if record is None else record.run_id
    write(tracking.uri, run_id, tags={names.STOP: CANCELLED, names.STOP_ASKED: str(now())})
    if record is None or record.status != "RUNNING":
        end_training(tracking, run_id, "KILLED", CANCELLED)


def ask_to_prune(tracking: Tracking, prune: Prune) -> None:
    """Ask for the end of all trainings that a prune takes."""
    wish, keep = {"tables": sorted(prune.tables), "asked": now()}, sorted(prune.keep)
    text = json.dumps(wish | {"keep": keep})
    if len(text) > names.MOST_TAG:
        parts = [keep[start : start + KEYS_OF_A_TAG] for start in range(0, len(keep), KEYS_OF_A_TAG)]
        # Before the wish itself, which is read as soon as it stands.
        for place, part in enumerate(parts):
            tag_experiment(tracking, f"{names.PRUNE}.{place}", " ".join(part))
        text = json.dumps(wish | {"parts": len(parts)})
    tag_experiment(tracking, names.PRUNE, text)


def prune_asked(tracking: Tracking) -> Prune | None:
    """Return the prune that was asked for, if any was."""
    tags = experiment_tags(tracking)
    told = _told(tags.get(names.PRUNE, ""))
    tables, keep, parts = told.get("tables"), told.get("keep"), told.get("parts")
    if isinstance(parts, int) and 0 < parts <= len(tags):
        named = [f"{names.PRUNE}.{place}" for place in range(parts)]
        keep = [key for name in named for key in tags[name].split()] if all(name in tags for name in named) else None
    # Somebody has edited it: what is read in another way than it was meant would end what should stay.
    if not isinstance(tables, list) or not isinstance(keep, list):
        return None
    return Prune(tables=frozenset(map(str, tables)), keep=frozenset(map(str, keep)))


def _told(text: str) -> dict[str, Any]:
    """Read the wish to prune; an empty one where the tag was edited."""
    try:
        told = parse_json(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stops:
    """What was asked to end up to some moment, as a submit finds it when it starts."""

    cancels: frozenset[tuple[str, str]] = frozenset()
    """The run of a training, and when it was asked: somebody may cancel it again."""
    prune: str = ""
    """The tag of the experiment."""


def stops_asked(tracking: Tracking, until: int | None = None) -> Stops:
    """Return the cancels and the prune that stand now.

    Args:
        tracking: of the suite.
        until: without those that were asked for later, in milliseconds since 1970; None for all.
    """
    cancels = frozenset((run.run_id, run.tags.get(names.STOP_ASKED, "")) for run in _cancelled(tracking))
    prune = experiment_tags(tracking).get(names.PRUNE, "")
    if until is not None:
        cancels = frozenset((run_id, asked) for run_id, asked in cancels if (whole_number(asked) or 0) <= until)
        asked = _told(prune).get("asked", 0)
        prune = prune if isinstance(asked, int) and asked <= until else ""
    return Stops(cancels=cancels, prune=prune)


def stopped_since(suite: Suite, before: Stops) -> dict[str, str]:
    """Return the missing trainings that somebody asked to end since then, by key, each with the note of that.

    Whoever asks means every submit that is there, those that wait for their turn as well.
    """
    tracking, plan = suite.connection, suite.make_plan()
    asked = stops_asked(tracking)
    new = {run_id for run_id, _ in asked.cancels - before.cancels}
    found = {key: record.stop for key, record in suite.ledger.trainings.items() if record.run_id in new}
    if asked.prune != before.prune and (prune := prune_asked(tracking)) is not None:
        found |= {key: PRUNED for key, run in plan.trainings.items() if prune.takes(key, run.tables)}
    return {key: note for key, note in found.items() if key in plan.missing_trainings}


def forget_stops(tracking: Tracking, known: Stops | None = None) -> None:
    """Drop cancels and prunes that were meant for an earlier submit: those that were known, or all.

    Newer ones stay, for the submits that still wait.
    """
    if tracking.experiment_id is None:
        return
    for run in _cancelled(tracking):
        if known is None or (run.run_id, run.tags.get(names.STOP_ASKED, "")) in known.cancels:
            write(tracking.uri, run.run_id, tags={names.STOP: ""})
    prune = experiment_tags(tracking).get(names.PRUNE, "")
    if prune and (known is None or prune == known.prune):
        tag_experiment(tracking, names.PRUNE, "")


def _cancelled(tracking: Tracking) -> list[Run]:
    return read_runs(tracking, f"tags.{names.STOP} != ''")
