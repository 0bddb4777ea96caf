"""Mends what killed processes and deleted files left behind in the ledger: `rnc repair`, and the start of every submit.

Stale runs are closed, metrics that wait in journals are sent, weights that MLflow lost are stored again from the
checkpoint that Ray kept, and a result whose files are gone is marked, so that the next submit makes it again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.errors import Say
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Evaluation, Ledger, Plan, Record, make_plan
from orchestrator.site import Site
from orchestrator.tracking.artifacts import check_files
from orchestrator.tracking.ledger import card_of, end_run, finish_training, ledger_of
from orchestrator.tracking.recorder import num_lacking, replay
from orchestrator.tracking.runs import (
    Run,
    Running,
    delete_tag,
    get_run,
    last_sign_of_life,
    looks_alive,
    metrics_target,
    tags_of,
)
from orchestrator.tracking.server import existing_tracking_server
from orchestrator.tracking.suite import KEY_TAG, Tracking, open_suite, read_runs
from orchestrator.worker.task import JOURNAL, last_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """Something that stands wrongly in the ledger, or does not stand in it."""

    text: str
    """What it is, and what mending it comes to."""
    mend: Callable[[], object]


def find_defects(
    suite: Tracking,
    plan: Plan,
    storage: Path,
    is_alive: Callable[[Running], bool] = looks_alive,
    *,
    runs: Sequence[Run] | None = None,
) -> list[Defect]:
    """Look for what is wrong with a suite, and with the files of what a plan uses; nothing is written.

    Args:
        suite: the ledger.
        plan: of experiments of the suite.
        storage: the suite's folder, where Ray keeps checkpoints and journals lie.
        is_alive: tells a run that somebody works on.
        runs: those of the suite, if they were read just now and hold their files.
    """
    names = _names(plan)
    held = read_runs(suite) if runs is None else runs
    running = list(_running(held))
    stale = [run for run in running if not is_alive(run)]
    alive = {run.run_id for run in running} - {run.run_id for run in stale}
    ledger = ledger_of(held)
    checked = check_files(suite.uri, ledger, [*plan.trainings, *plan.evaluations]) if runs is None else ledger
    return [
        *(_stale(suite, run, names) for run in stale),
        *_waiting_metrics(suite.uri, ledger, storage, alive, names),
        *(_lost_training(suite, key, lost, storage, names) for key, lost in _lost(ledger.trainings, checked.trainings)),
        *(_lost_evaluation(suite, key, lost, names) for key, lost in _lost(ledger.evaluations, checked.evaluations)),
    ]


def _names(plan: Plan) -> dict[str, str]:
    trainings = {key: f"training {run.label!r}" for key, run in plan.trainings.items()}
    return trainings | {key: _evaluation_name(plan, evaluation) for key, evaluation in plan.evaluations.items()}


def _evaluation_name(plan: Plan, evaluation: Evaluation) -> str:
    place, seed = evaluation.places[0], plan.trainings[evaluation.train_key].config.seed
    return f"evaluation {place.label!r} of {place.table}, seed {seed}"


def _running(runs: Sequence[Run]) -> Iterator[Running]:
    for run in runs:
        tags = tags_of(run)
        if run["info"]["status"] == "RUNNING" and tags.get("kind") in KEY_TAG:
            yield Running(
                key=tags.get(KEY_TAG[tags["kind"]], ""),  # type: ignore[index]
                run_id=run["info"]["run_id"],
                driver=tags.get("driver", ""),
                last_sign_of_life=last_sign_of_life(run) / 1000,
            )


def _stale(suite: Tracking, run: Running, names: Mapping[str, str]) -> Defect:
    return Defect(
        text=f"{names.get(run.key, run.key)} says RUNNING, and its process is gone: closed as interrupted",
        mend=partial(end_run, suite, run.run_id, "KILLED", "interrupted"),
    )


def _waiting_metrics(
    uri: str, ledger: Ledger, storage: Path, alive: set[str], names: Mapping[str, str]
) -> Iterator[Defect]:
    for key, record in ledger.trainings.items():
        journal, target = storage / key / JOURNAL, metrics_target(uri, record.run_id)
        if record.run_id not in alive and (number := num_lacking(journal, target)):
            text = f"{names.get(key, f'training {key}')}: MLflow lacks {number} metrics of {journal}: sent"
            yield Defect(text=text, mend=partial(replay, journal, target))


def _lost(before: Mapping[str, Record], after: Mapping[str, Record]) -> Iterator[tuple[str, Record]]:
    """Yield what no longer counts as finished, once its files were looked at."""
    return ((key, after[key]) for key, record in before.items() if record.status != after[key].status)


def _lost_training(suite: Tracking, key: str, lost: Record, storage: Path, names: Mapping[str, str]) -> Defect:
    checkpoint = last_checkpoint(storage / key)
    weights = tags_of(get_run(suite.uri, lost.run_id)).get("checkpoint_sha256")
    if checkpoint is not None and checkpoint.is_dir() and card_of(checkpoint).get("weights_sha256") == weights:

        def store_again() -> None:
            _mark_lost(suite, lost)
            finish_training(suite, lost.run_id, checkpoint, storage / key / JOURNAL)

        return Defect(text=f"{names[key]}: {lost.note} in MLflow: stored again from {checkpoint}", mend=store_again)
    text = f"{names[key]}: {lost.note} in MLflow, and not in {storage / key} either: to be trained again"
    return Defect(text=text, mend=partial(_mark_lost, suite, lost))


def _lost_evaluation(suite: Tracking, key: str, lost: Record, names: Mapping[str, str]) -> Defect:
    text = f"{names[key]}: {lost.note} in MLflow: to be scored again"
    return Defect(text=text, mend=partial(_mark_lost, suite, lost))


def _mark_lost(suite: Tracking, lost: Record) -> None:
    """Let the ledger say what is missing; a training without its checksum counts as one without a checkpoint."""
    delete_tag(suite.uri, lost.run_id, "checkpoint_sha256")
    end_run(suite, lost.run_id, "KILLED", lost.note)


def repair_suite(experiments: Sequence[Experiment], site: Site, say: Say, *, dry_run: bool = False) -> int:
    """Mend what is wrong with what MLflow holds, say what it is, and return how much of it there is."""
    uri = existing_tracking_server(site)
    if uri is None:
        return 0
    suite = open_suite(uri, experiments[0].suite, create=False)
    return _repair(experiments, suite, site, say, dry_run=dry_run)


def _repair(
    experiments: Sequence[Experiment],
    suite: Tracking,
    site: Site,
    say: Say,
    *,
    dry_run: bool = False,
    runs: Sequence[Run] | None = None,
) -> int:
    plan, storage = make_plan(experiments, Ledger()), site.storage / suite.suite
    defects = find_defects(suite, plan, storage, runs=runs)
    for defect in defects:
        if not dry_run:
            defect.mend()
        say(defect.text)
    return len(defects)
