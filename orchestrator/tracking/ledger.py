"""The ledger: what MLflow holds of a suite, and the only place that writes it.

Records go over MLflow's REST API and always name their run; only files need mlflow itself, whose import takes seconds.
A run is FINISHED last of all, so that whatever dies on the way is seen as unfinished and taken up again.
"""

import hashlib
import json
import math
import platform
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.config import METRICS
from model.data.cache import file_sha256
from model.names import CARD, VAL, WEIGHTS
from model.settings import to_dict
from orchestrator import names
from orchestrator.experiment.plan import Evaluation, Ledger, TrainRun
from orchestrator.names import Kind
from orchestrator.process import this_process
from orchestrator.tracking.artifacts import store, upload_texts
from orchestrator.tracking.recorder import replay
from orchestrator.tracking.records import (
    beside_paper,
    by_key,
    calibration_metrics,
    inference_params,
    is_finished,
    ledger_of,
    measured_where_the_paper_did,
    misalignment_metrics,
    name_of_training,
    papers_own,
    place_tags,
    read_record,
    resources_tags,
    run_name,
    shown_metrics,
    training_name,
    training_params,
)
from orchestrator.tracking.runs import (
    Run,
    Tracking,
    create_run,
    delete_tag,
    experiment_id,
    get_run,
    git_commit,
    metrics_target,
    now,
    read_place,
    read_runs,
    rename,
    set_status,
    tagged,
    write,
)

if TYPE_CHECKING:
    from orchestrator.tracking.evaluations.classes import ClassRecord

Status = Literal["FINISHED", "RUNNING", "FAILED", "KILLED"]


def read_ledger(tracking: Tracking, train_key: str = "") -> Ledger:
    """Read what the suite holds, or of it one training and its evaluations alone."""
    where = f"tags.{names.TRAIN_KEY} = '{train_key}'" if train_key else ""
    return ledger_of(read_runs(tracking, where))


def begin_training(tracking: Tracking, train_run: TrainRun) -> str:
    """Return the run of a training, set running: the one that has its key, or a new one."""
    config = train_run.config
    tags = {names.SEED: str(config.seed)} | resources_tags(train_run.resources)
    tags |= {f"{names.TABLE}{table}": "wanted" for table in train_run.tables}
    params = training_params(config)
    run_id = _begin(tracking, "training", train_run.key, name_of_training(train_run), tags, params)
    upload_texts(tracking.uri, run_id, {CARD: json.dumps(to_dict(config), indent=2)})
    return run_id


def end_training(tracking: Tracking, run_id: str, status: Status, note: str = "") -> None:
    """End a training, and say why it did not finish.

    Raises:
        ValueError: it is said to be FINISHED and has no recorded checkpoint.
    """
    if status == "FINISHED" and names.WEIGHTS_SHA256 not in get_run(tracking.uri, run_id).tags:
        raise ValueError(f"training {run_id} cannot be FINISHED before its checkpoint is recorded")
    end_run(tracking, run_id, status, note)


def stop_training(tracking: Tracking, run_id: str, reason: str, journal: Path) -> None:
    """End a training that its search stopped early, and complete its curves from its journal."""
    replay(journal, metrics_target(tracking.uri, run_id))
    write(tracking.uri, run_id, tags={names.STOPPED_EARLY: reason})
    end_run(tracking, run_id, "KILLED", reason)


def finish_training(tracking: Tracking, run_id: str, folder: Path, journal: Path) -> bool:
    """Complete the record of a training from its last checkpoint and its journal, unless that stands already."""
    run = get_run(tracking.uri, run_id)
    if is_finished(run) and run.tags.get(names.WEIGHTS_SHA256) == card_of(folder).get("weights_sha256"):
        return False
    replay(journal, metrics_target(tracking.uri, run_id))
    record_checkpoint(tracking, run_id, folder)
    # Last of all: what dies on the way is seen as unfinished, and taken up again.
    end_training(tracking, run_id, "FINISHED")
    return True


def record_checkpoint(tracking: Tracking, run_id: str, folder: Path) -> str:
    """Store the weights and the config of a checkpoint with its training, and return the sha256 of the weights.

    Raises:
        ValueError: the weights are not those of the card.
    """
    weights = folder / WEIGHTS
    digest = file_sha256(weights)
    if card_of(folder).get("weights_sha256", digest) != digest:
        raise ValueError(
            f"{weights} is damaged: its card says another sha256; submit again, which looks for a sound one"
        )
    held = get_run(tracking.uri, run_id)
    # An earlier try may have stored them, 137 MB for ResNet-50.
    if held.tags.get(names.WEIGHTS_SHA256) != digest or f"{names.CHECKPOINT}/{WEIGHTS}" not in held.files:
        store(tracking.uri, run_id, [weights, folder / CARD], names.CHECKPOINT)
        # The tag of the checksum comes after the files: it says that they are there.
        fingerprint = str(card_of(folder).get("data_fingerprint", ""))
        tags = {names.FINGERPRINT: fingerprint, names.WEIGHTS_SHA256: digest, names.VERSIONS: json.dumps(_versions())}
        write(tracking.uri, run_id, tags=tags)
    return digest


def card_of(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself, without torch."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    return card


def record_evaluation(
    tracking: Tracking,
    evaluation: Evaluation,
    metrics: Mapping[str, float | None],
    *,
    detections: Path | None,
    train_run_id: str,
    matches: Path | None = None,
    misalignment: Sequence[Path] = (),
    statistics: Mapping[str, float | None] | None = None,
    calibration: Mapping[str, float | None] | None = None,
    classes: "ClassRecord | None" = None,
    data_fingerprint: str = "",
    data_root: str = "",
) -> str:
    """Record the numbers and the files of an evaluation, and return its run; doing so twice changes nothing.

    `misalignment` are files, and `statistics` what model.evaluation.misalignment makes of them; `calibration` has the
    names of CALIBRATION; `data_fingerprint` is that of the images which were scored, and `data_root` where they lie.
    The files of `classes` lie under names.CLASSES.
    """
    training = get_run(tracking.uri, train_run_id)
    seed = str(training.seed or 0)
    tags = {names.TRAIN_KEY: evaluation.train_key, names.SPLIT: evaluation.split, names.SEED: seed} | place_tags(
        evaluation
    )
    tags |= {names.FINGERPRINT: data_fingerprint} if data_fingerprint else {}
    tags |= {names.DATA_ROOT: data_root} if data_root else {}
    params = {**training.params, **inference_params(evaluation.inference)}
    name = run_name(tagged(tags, names.ROW), params, seed)
    run_id = _begin(tracking, "evaluation", evaluation.key, name, tags, params)
    if detections is not None:
        store(tracking.uri, run_id, [detections], names.DETECTIONS)
    digests = {}
    if matches is not None:
        store(tracking.uri, run_id, [matches], names.DETECTIONS)
        digests = {names.MATCHES_SHA256: file_sha256(matches)}
    if misalignment:
        store(tracking.uri, run_id, misalignment, names.MISALIGNMENT)
    if classes is not None:
        # Not among the files without which an evaluation is made again: the matches tell all of it.
        store(tracking.uri, run_id, classes.files, names.CLASSES, needed=False)
        shown = {"path": f"{names.CLASSES}/{classes.files[0].name}", "type": "table"}
        digests |= {names.SHOWN_TABLES: json.dumps([shown])}
    held = get_run(tracking.uri, run_id).metrics
    numbers = {f"{VAL}{name}": float(value) for name, value in metrics.items() if value is not None}
    if not numbers:  # else it would pass for one whose numbers are lost, and be scored again and again
        digests[names.NO_OBJECTS] = "true"
    is_comparable = measured_where_the_paper_did(params, evaluation.split)
    numbers |= shown_metrics(metrics, evaluation.paper, is_on_papers_data=is_comparable)
    numbers |= misalignment_metrics(statistics or {}) | calibration_metrics(calibration or {})
    numbers |= classes.metrics if classes else {}
    # MLflow appends a metric that is logged again at the same step, instead of replacing it.
    changed = {name: value for name, value in numbers.items() if held.get(name) != value}
    write(tracking.uri, run_id, metrics=changed, tags=digests)
    end_run(tracking, run_id, "FINISHED", "")
    return run_id


def place_evaluations(
    tracking: Tracking, runs: Sequence[Run], evaluations: Iterable[Evaluation], tables: Collection[str] = ()
) -> bool:
    """Bring what recorded runs say of their rows up to date, and say whether anything was written.

    Args:
        tracking: of the suite.
        runs: all of it.
        evaluations: those that the tables use by now.
        tables: at hand; an evaluation that stands in one of them no longer loses its row there.
    """
    wanted = {evaluation.key: evaluation for evaluation in evaluations}
    labels: dict[str, set[str]] = defaultdict(set)
    has_new = False
    for key, run in by_key(runs, "evaluation").items():
        rows, wrote = _place(tracking, run, wanted.get(key), tables)
        labels[run.train_key] |= {read_place(place)[1] for place in rows.values()}
        has_new = has_new or wrote
    for key, run in by_key(runs, "training").items():
        name = training_name(run.params, run.tags.get(names.SEED, "0"))
        # One label of several would be wrong in the other tables.
        if len(labels[key]) > 1 and run.name != name:
            rename(tracking.uri, run.run_id, name)
            has_new = True
    return has_new


def _place(
    tracking: Tracking, run: Run, evaluation: Evaluation | None, tables: Collection[str]
) -> tuple[dict[str, str], bool]:
    """Bring one evaluation up to date; return its rows, and whether anything was written."""
    wanted = place_tags(evaluation) if evaluation else {}
    tags = {name: value for name, value in wanted.items() if run.tags.get(name) != value}
    gone = [names.ROW + table for table in run.rows if table in tables and names.ROW + table not in wanted]
    rows = tagged({**run.tags, **wanted}, names.ROW)
    rows = {table: place for table, place in rows.items() if names.ROW + table not in gone}
    is_comparable = measured_where_the_paper_did(run.params, run.tags.get(names.SPLIT, ""))
    paper = evaluation.paper if evaluation else {}
    shown = shown_metrics(read_record(run).metrics, paper, is_on_papers_data=is_comparable)
    metrics = {name: value for name, value in shown.items() if run.metrics.get(name) != value}
    outdated = {papers_own(metric) for metric in METRICS}
    if not is_comparable:
        outdated = {name for metric in METRICS for name in beside_paper(metric)}
    if run.rows.keys() <= set(tables):  # else the paper's numbers may come from a table that is not at hand
        gone += [name for name in run.tags if name.startswith(names.PAPER) and name not in wanted]
        outdated = {name for metric in METRICS for name in (*beside_paper(metric), papers_own(metric))} - shown.keys()
    # MLflow deletes no metric; a number that is none says that it holds no longer.
    metrics |= {name: math.nan for name in outdated if not math.isnan(run.metrics.get(name, math.nan))}
    write(tracking.uri, run.run_id, metrics=metrics, tags=tags)
    for name in gone:
        delete_tag(tracking.uri, run.run_id, name)
    called = run_name(rows, run.params, run.tags.get(names.SEED, "0"))
    if run.name != called:
        rename(tracking.uri, run.run_id, called)
    return rows, bool(metrics or tags or gone or run.name != called)


def name_trainings(tracking: Tracking, runs: Iterable[Run], trainings: Iterable[TrainRun]) -> None:
    """Name what the runs of trainings did not tell when they began: the first of several seeds, losses, assignment."""
    held_runs = by_key(runs, "training")
    for training in trainings:
        if run := held_runs.get(training.key):
            called, end = name_of_training(training), f", seed {training.config.seed}"
            earlier = {training.label, training.label.removesuffix(end), called.removesuffix(end)}
            if run.name in earlier and run.name != called:
                rename(tracking.uri, run.run_id, called)


def end_run(tracking: Tracking, run_id: str, status: Status, note: str) -> None:
    """End a run of any kind, and say why it did not finish."""
    if note or names.NOTE in get_run(tracking.uri, run_id).tags:
        write(tracking.uri, run_id, tags={names.NOTE: note[: names.MOST_TAG]})
    set_status(tracking.uri, run_id, status)


def log_table(tracking: Tracking, runs: Iterable[Run], name: str, files: Mapping[str, str]) -> str:
    """Store the rendered forms of a table, by file name, in the one run that is the table's, and return that run.

    What the run holds already is not written again.
    """
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    held = by_key(runs, "table").get(name)
    if held is not None and is_finished(held) and held.tags.get(names.CONTENT_SHA256) == digest:
        return held.run_id
    run_id = _begin(tracking, "table", name, name, {}, {})
    upload_texts(tracking.uri, run_id, files)
    write(tracking.uri, run_id, tags={names.CONTENT_SHA256: digest})
    end_run(tracking, run_id, "FINISHED", "")
    return run_id


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "torchvision", "ray")}


def _begin(
    tracking: Tracking, kind: Kind, key: str, name: str, tags: Mapping[str, str], params: Mapping[str, str]
) -> str:
    """Return the run of this kind and key, set running, with these tags, and with the params it lacks."""
    commit = git_commit()
    tags = {**tags, names.DRIVER: this_process(), names.BEGUN: str(now())}
    tags |= {names.COMMIT: commit, "mlflow.source.git.commit": commit.split()[0]} if commit else {}
    where = f"tags.{names.KIND} = '{kind}' and tags.{names.KEY[kind]} = '{key}'"
    run = by_key(read_runs(tracking, where), kind).get(key)
    if run is None:
        identity = {names.KIND: kind, names.KEY[kind]: key, names.SUITE: tracking.suite}
        run_id = create_run(tracking.uri, experiment_id(tracking), name, {**identity, **tags})
        write(tracking.uri, run_id, params=params)
    else:
        run_id = run.run_id
        # MLflow's params are written once: it refuses another value.
        new = {name: value for name, value in params.items() if name not in run.params}
        tags |= {name: "" for name in (names.NOTE, names.STOPPED_EARLY) if name in run.tags}
        write(tracking.uri, run_id, tags=tags, params=new)
        set_status(tracking.uri, run_id, "RUNNING")
    return run_id
