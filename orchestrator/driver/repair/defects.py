"""Mends what killed processes and damaged or deleted files left behind: `rnc repair`, and the start of every submit.

Stale runs are closed, metrics that wait in journals are sent, weights that MLflow lost are stored again from the
checkpoint that Ray kept, a result whose files are gone is marked, so that the next submit makes it again, trainings
whose last checkpoint is damaged are set back to the one before, and what somebody edited in MLflow is written anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.network.checkpoint import damages
from orchestrator import names
from orchestrator.cluster.checkpoints import examine
from orchestrator.driver.lock import looks_alive
from orchestrator.errors import Say, UserError
from orchestrator.experiment.plan import Evaluation, Plan, Record
from orchestrator.tracking.edits.damage import doubts, find_damage
from orchestrator.tracking.ledger import card_of, end_run, finish_training
from orchestrator.tracking.recorder import num_lacking, replay
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.runs import Run, Tracking, delete_tag, get_run, metrics_target
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL, last_checkpoint, take_up

MOST_EDITS = 4
"""Of a run that are mended in one go; more would be mended again and again, with no effect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """Something that stands wrongly in the ledger, or does not stand in it."""

    text: str
    """What it is, and what mending it comes to."""
    mend: Callable[[], object] | None
    """None where only somebody else can mend it."""
    key: str = ""
    """Of the training or evaluation that it is about."""


def repair(suite: Suite, say: Say, *, dry_run: bool = False) -> int:
    """Mend what is wrong with what MLflow and the storage hold, say what it is, and return how much of it there is."""
    for text in doubts(suite.tracking) if suite.tracking is not None else ():
        say(text)
    number = 0
    # First, and until no more is found, as a run that is found again may lack more than its key.
    while edits := find_edits(suite):
        mended = mend(suite, edits, say, dry_run=dry_run)
        number += mended
        if dry_run or not mended or number > MOST_EDITS * len(suite.mlflow_runs):
            break
    return number + mend(suite, find_defects(suite), say, dry_run=dry_run)


def mend(suite: Suite, defects: Sequence[Defect], say: Say, *, dry_run: bool = False) -> int:
    """Mend what was found, one after the other, say what it is, and return how much could be, or would be, mended."""
    number = 0
    for defect in defects:
        text, can_be_mended = defect.text, defect.mend is not None
        if defect.mend is not None and not dry_run:
            try:
                defect.mend()
            except ServerAway:
                raise
            except (UserError, OSError) as error:  # of one training, which does not stop the others
                text, can_be_mended = f"{text}; this did not work: {error}", False
        say(text)
        number += can_be_mended
    if defects and not dry_run:
        suite.refresh()
    return number


def find_edits(suite: Suite, is_alive: Callable[[Run], bool] = looks_alive) -> list[Defect]:
    """Look for what somebody has edited in the runs of a suite; nothing is written."""
    tracking, runs = suite.tracking, suite.mlflow_runs
    if tracking is None:
        return []
    alive = {run.run_id for run in runs if run.status == "RUNNING" and is_alive(run)}
    found = find_damage(tracking, runs, suite.wanted, titles_of(suite.wanted), alive)
    return [Defect(text=one.text, mend=one.mend) for one in found]


def find_defects(suite: Suite, is_alive: Callable[[Run], bool] = looks_alive) -> list[Defect]:
    """Look for what is wrong with a suite, and with the files of what its tables need; nothing is written.

    Args:
        suite: the ledger is as it was read last.
        is_alive: tells a run that somebody works on.
    """
    tracking = suite.tracking
    titles = titles_of(suite.wanted)
    if tracking is None:
        return [*_lost_checkpoints(suite, set(), titles)]
    running = [run for run in suite.mlflow_runs if run.status == "RUNNING" and run.kind in names.KEY]
    stale = [run for run in running if not is_alive(run)]
    alive = {run.run_id for run in running if run not in stale}
    held, checked = suite.ledger, suite.verified
    return [
        *(_stale(tracking, run, titles) for run in stale),
        *_waiting_metrics(suite, tracking, alive, titles),
        *_lost_checkpoints(suite, {run.key for run in running if run.run_id in alive}, titles),
        *(lost_training(suite, tracking, key, lost, titles) for key, lost in _lost(held.trainings, checked.trainings)),
        *(lost_evaluation(tracking, key, lost, titles) for key, lost in _lost(held.evaluations, checked.evaluations)),
    ]


def titles_of(plan: Plan) -> dict[str, str]:
    """Name the trainings and evaluations of a plan, by key."""
    trainings = {key: f"training {run.label!r}" for key, run in plan.trainings.items()}
    return trainings | {key: _evaluation_title(plan, evaluation) for key, evaluation in plan.evaluations.items()}


def _evaluation_title(plan: Plan, evaluation: Evaluation) -> str:
    place, seed = evaluation.places[0], plan.trainings[evaluation.train_key].config.seed
    return f"evaluation {place.label!r} of {place.table}, seed {seed}"


def _stale(tracking: Tracking, run: Run, titles: Mapping[str, str]) -> Defect:
    return Defect(
        key=run.key,
        text=f"{titles.get(run.key, run.key)} says RUNNING, and its process is gone: closed as interrupted",
        mend=partial(end_run, tracking, run.run_id, "KILLED", "interrupted"),
    )


def _waiting_metrics(suite: Suite, tracking: Tracking, alive: set[str], titles: Mapping[str, str]) -> Iterator[Defect]:
    for key, record in suite.ledger.trainings.items():
        journal, target = suite.storage / key / JOURNAL, metrics_target(tracking.uri, record.run_id)
        # A journal has one sender at a time: a training that runs sends its own.
        if record.run_id not in alive and (number := num_lacking(journal, target)):
            text = f"{titles.get(key, f'training {key}')}: MLflow lacks {number} metrics of {journal}: sent"
            yield Defect(key=key, text=text, mend=partial(replay, journal, target))


def _lost(before: Mapping[str, Record], after: Mapping[str, Record]) -> Iterator[tuple[str, Record]]:
    """Yield what no longer counts as finished, once its files were looked at."""
    return ((key, after[key]) for key, record in before.items() if record.status != after[key].status)


def _lost_checkpoints(suite: Suite, alive: set[str], titles: Mapping[str, str]) -> Iterator[Defect]:
    """Look at what unfinished trainings go on from, but those that somebody works on."""
    for key, run in suite.wanted.trainings.items():
        record, folder = suite.verified.trainings.get(key), suite.storage / key
        if key in alive or not folder.is_dir() or (record is not None and record.status in ("FINISHED", "STOPPED")):
            continue
        try:
            found = examine(folder, run.config)
        except UserError as error:
            yield Defect(key=key, text=f"{titles[key]}: {error}", mend=None)
            continue
        if found is not None:
            again = partial(take_up, folder, run.config, is_trained=False)
            yield Defect(key=key, text=f"{titles[key]}: {found.describe()}", mend=again)


def lost_training(suite: Suite, tracking: Tracking, key: str, lost: Record, titles: Mapping[str, str]) -> Defect:
    """Return what becomes of a training whose files are not in MLflow as they were recorded; `lost.note` says how."""
    folder, title = suite.storage / key, titles.get(key, f"training {key}")
    checkpoint = last_checkpoint(folder)
    weights = get_run(tracking.uri, lost.run_id).tags.get(names.WEIGHTS_SHA256)
    if checkpoint is not None and _is_sound(checkpoint) and card_of(checkpoint).get("weights_sha256") == weights:

        def store_again() -> None:
            # First, since `finish_training` leaves a record alone that looks complete.
            _mark_lost(tracking, lost)
            finish_training(tracking, lost.run_id, checkpoint, folder / JOURNAL)

        text = f"{title}: {lost.note} in MLflow: stored again from {checkpoint}"
        return Defect(key=key, text=text, mend=store_again)
    text = f"{title}: {lost.note} in MLflow, and not in {folder} either: to be trained again"
    return Defect(key=key, text=text, mend=partial(_mark_lost, tracking, lost))


def lost_evaluation(tracking: Tracking, key: str, lost: Record, titles: Mapping[str, str]) -> Defect:
    """Return what becomes of an evaluation whose files are not in MLflow as they were recorded."""
    text = f"{titles.get(key, f'evaluation {key}')}: {lost.note} in MLflow: to be scored again"
    return Defect(key=key, text=text, mend=partial(_mark_lost, tracking, lost))


def _is_sound(checkpoint: Path) -> bool:
    """Whether a checkpoint can be scored, and stored in MLflow."""
    try:
        return next(damages(checkpoint, with_resume=False), None) is None
    except (OSError, ValueError):
        return False


def _mark_lost(tracking: Tracking, lost: Record) -> None:
    """Let the ledger say what is missing; a training without its checksum counts as one without a checkpoint."""
    delete_tag(tracking.uri, lost.run_id, names.WEIGHTS_SHA256)
    end_run(tracking, lost.run_id, "KILLED", lost.note)
