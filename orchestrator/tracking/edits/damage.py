"""Finds what somebody has edited in the runs of a suite, and writes it anew from the plan and from MLflow's own files.

What neither tells is marked as not finished, so that the next submit records it again: from its checkpoint, where
there is one, without training.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from model.config import TrainConfig
from model.data.cache import file_sha256
from model.names import CARD, WEIGHTS
from model.settings import from_dict
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Plan, evaluation_key, train_key
from orchestrator.names import Kind
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import download
from orchestrator.tracking.edits.experiments import others_of
from orchestrator.tracking.ledger import end_run
from orchestrator.tracking.records import (
    by_key,
    damage_of,
    name_of_training,
    place_tags,
    read_inference,
    read_record,
    row_name,
    training_name,
)
from orchestrator.tracking.rest import Refused, ServerAway
from orchestrator.tracking.runs import Run, Tracking, delete_tag, read_place, read_sizes, rename, write

KINDS: tuple[Kind, ...] = ("training", "evaluation", "table")
FILES = (f"{names.CHECKPOINT}/{WEIGHTS}", f"{names.CHECKPOINT}/{CARD}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Something in a run that nobody of ours wrote, or that somebody took away."""

    text: str
    """What it is, and what mending it comes to."""
    mend: Callable[[], object]


def find_damage(
    tracking: Tracking, runs: Sequence[Run], wanted: Plan, titles: Mapping[str, str], alive: Iterable[str] = ()
) -> list[Damage]:
    """Look for what was edited in the runs of a suite; nothing is written.

    Args:
        tracking: of the suite.
        runs: all of it, newest first.
        wanted: what the tables at hand need, by key.
        titles: what a training or an evaluation is called, by its key.
        alive: the ids of runs that somebody works on.
    """
    alive = set(alive)
    found = [one for run in runs if run.run_id not in alive for one in _identity(tracking, run, wanted, titles)]
    counting = {kind: by_key(runs, kind) for kind in KINDS}
    for run in runs:
        # A key that is a path counts for nobody; `_identity` writes it anew where the rest of the run proves it.
        winner = counting[run.kind].get(run.key) if run.kind in KINDS and run.run_id not in alive else None
        if winner is not None:
            title = titles.get(run.key, f"{run.kind} {run.key}")
            if winner.run_id == run.run_id:
                edits, mended = _facts(tracking, run, wanted, counting["training"], title)
                found += [*edits, *_unfinished(tracking, mended, title)]
            else:
                found.append(_second(tracking, run, winner, title))
    return found


def doubts(tracking: Tracking) -> list[str]:
    """Say what only a person can decide: which of two experiments is the suite."""
    if tracking.experiment_id is None:
        return []
    others = others_of(tracking.uri, tracking.suite, tracking.experiment_id)
    return [
        f"MLflow at {tracking.uri}: experiment {one.name} (id {one.id}) has the tag {names.SUITE} = {tracking.suite}, "
        f"too; experiment {tracking.experiment_id} counts, by its name. If the other one should, rename this one and "
        "remove its tag; else remove the tag of the other"
        for one in others
    ]


def _identity(tracking: Tracking, run: Run, wanted: Plan, titles: Mapping[str, str]) -> Iterator[Damage]:
    """Find the kind and the key of a run that lacks one of them, as far as the rest of it proves them."""
    is_known = run.key != "" and (run.kind == "table" or run.key in wanted.trainings or run.key in wanted.evaluations)
    # The settings of a training are in a file, which is fetched only where its key cannot be one.
    is_known = is_known or (run.kind == "training" and re.fullmatch("[0-9a-f]{12}", run.key) is not None)
    if is_known or run.tags.get(names.KIND) == names.SUPERSEDED:
        return
    told = _evaluation(run, wanted) or _training(tracking, run, wanted) or _table(run)
    if told is None or told == (run.kind, run.key):
        return
    is_kind, key = told
    tags = {names.KIND: is_kind, names.KEY[is_kind]: key}
    lacking = {name: value for name, value in tags.items() if run.tags.get(name) != value}
    title = titles.get(key, f"{is_kind} {key}")
    text = f"{title}: run {run.run_id} in MLflow has {_odd(run, lacking) or 'tags of two kinds'}: written anew"

    def mend() -> None:
        write(tracking.uri, run.run_id, tags=tags)
        if is_kind == "training":
            delete_tag(tracking.uri, run.run_id, names.EVALUATION_KEY)

    yield Damage(text=text, mend=mend)


def _evaluation(run: Run, wanted: Plan) -> tuple[str, str] | None:
    """Return that a run is an evaluation, and its key, where its tags and params have a key of the plan."""
    if names.SPLIT not in run.tags and _trained(run):
        return None
    key = run.tags.get(names.EVALUATION_KEY, "")
    if key in wanted.evaluations:
        return "evaluation", key
    if not run.tags.get(names.SPLIT):
        return None
    try:
        key = evaluation_key(run.train_key, read_inference(run.params), run.tags[names.SPLIT])
    except (TypeError, ValueError):
        return None
    return ("evaluation", key) if key in wanted.evaluations else None


def _training(tracking: Tracking, run: Run, wanted: Plan) -> tuple[str, str] | None:
    """Return that a run is a training, and its key, by the settings that it stored when it began."""
    if names.SPLIT in run.tags or not _trained(run):
        return None
    if run.train_key in wanted.trainings:
        return "training", run.train_key
    try:
        with tempfile.TemporaryDirectory() as scratch:
            card = download(tracking.uri, run.run_id, CARD, Path(scratch))
            key = train_key(from_dict(TrainConfig, json.loads(card.read_text())))
    except (ServerAway, Refused):
        raise
    except (UserError, TypeError, ValueError, KeyError, RecursionError):
        return None
    return ("training", key) if key in wanted.trainings else None


def _trained(run: Run) -> bool:
    """Say whether a run has tags that no evaluation has."""
    return any(name in (names.NUM_WORKERS, names.WEIGHTS_SHA256) or name.startswith(names.TABLE) for name in run.tags)


def _table(run: Run) -> tuple[str, str] | None:
    key = run.tags.get(names.KEY["table"], "")
    return ("table", key) if key and names.CONTENT_SHA256 in run.tags else None


def _second(tracking: Tracking, run: Run, winner: Run, title: str) -> Damage:
    """Set a run aside whose key another one has, which counts: a finished one before the others, else the newest."""
    text = f"{title}: MLflow has two runs of it, and {winner.run_id} counts: {run.run_id} is set aside as superseded"
    note = f"run {winner.run_id} counts; this one has the same key"
    tags = {names.KIND: names.SUPERSEDED, names.NOTE: note}

    def mend() -> None:
        write(tracking.uri, run.run_id, tags=tags)
        if run.status == "RUNNING":
            end_run(tracking, run.run_id, "KILLED", note)

    return Damage(text=text, mend=mend)


def _facts(
    tracking: Tracking, run: Run, wanted: Plan, trainings: Mapping[str, Run], title: str
) -> tuple[list[Damage], Run]:
    """Write anew what the plan knows of a run: suite, seed, split, training, places, its name, and when it began.

    The run is returned as it will be.
    """
    tags = {} if run.kind == "table" else {names.SUITE: tracking.suite}
    called = run.name
    if run.kind == "training" and (training := wanted.trainings.get(run.key)):
        tags[names.SEED] = str(training.config.seed)
        called = called or name_of_training(training)
    elif run.kind == "evaluation" and (evaluation := wanted.evaluations.get(run.key)):
        seed = str(wanted.trainings[evaluation.train_key].config.seed)
        tags |= {names.SEED: seed, names.TRAIN_KEY: evaluation.train_key, names.SPLIT: evaluation.split}
        # A place may have moved, or a row may be new: the end of a submit writes these. Here only what is no place.
        places = place_tags(evaluation).items()
        tags |= {name: value for name, value in places if name in run.tags and read_place(run.tags[name])[0] is None}
        called = called or row_name(evaluation.label, run.params, seed)
    elif run.kind == "evaluation" and run.seed is None and (scored := trainings.get(run.train_key)):
        tags |= {} if scored.seed is None else {names.SEED: str(scored.seed)}
    if names.BEGUN in run.tags and run.begun is None:
        tags[names.BEGUN] = str(run.start_time)
    changed = {name: value for name, value in tags.items() if run.tags.get(name) != value}
    found = []
    if changed:
        text = f"{title}: run {run.run_id} in MLflow has {_odd(run, changed)}: written anew"
        found.append(Damage(text=text, mend=partial(write, tracking.uri, run.run_id, tags=changed)))
    if not run.name and run.kind != "table":
        called = called or training_name(run.params, str(run.seed or 0))
        text = f"{title}: run {run.run_id} in MLflow has no name: called {called!r} again"
        found.append(Damage(text=text, mend=partial(rename, tracking.uri, run.run_id, called)))
    return found, replace(run, tags={**run.tags, **changed})


def _odd(run: Run, changed: Iterable[str]) -> str:
    return ", ".join(f"{name} {run.tags[name][:40]!r}" if name in run.tags else f"no {name}" for name in changed)


def _unfinished(tracking: Tracking, run: Run, title: str) -> Iterator[Damage]:
    """Mend a run that says FINISHED and lacks what belongs to it, or let it say that it is not."""
    if run.kind == "table":
        if damage := damage_of(run):
            yield Damage(text=f"{title}: {damage}: removed", mend=partial(_forget_files, tracking, run))
        return
    record = read_record(run)
    if run.status != "FINISHED" or record.status == "FINISHED":
        return
    # `rnc gc` has taken its weights, and says so.
    if run.kind == "training" and names.WEIGHTS_SHA256 not in run.tags and run.tags.get(names.NOTE):
        return
    if run.kind == "evaluation":
        text = f"{title}: {record.note}: to be scored again"
        yield Damage(text=text, mend=partial(_mark, tracking, run, record.note))
    elif _holds_checkpoint(tracking, run):
        text = f"{title}: {record.note}: its weights in MLflow are read against their digest, and noted again"
        yield Damage(text=text, mend=partial(_note_checkpoint, tracking, run, record.note))
    else:
        text = f"{title}: {record.note}: to be recorded again from its last checkpoint, or trained again"
        yield Damage(text=text, mend=partial(_mark, tracking, run, record.note))


def _holds_checkpoint(tracking: Tracking, run: Run) -> bool:
    answer = rest.get(tracking.uri, "artifacts/list", {"run_id": run.run_id, "path": names.CHECKPOINT})
    return set(FILES) <= {str(file["path"]) for file in answer.get("files", [])}


def _note_checkpoint(tracking: Tracking, run: Run, damage: str) -> None:
    """Note the files and the digest of a checkpoint anew, if its card and its weights agree; else mark the run."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            weights, card = (download(tracking.uri, run.run_id, path, Path(scratch)) for path in FILES)
            told = json.loads(card.read_text())
            digest, config = file_sha256(weights), from_dict(TrainConfig, told["config"])
            fingerprint = str(told.get("data_fingerprint", ""))
        except (ServerAway, Refused):
            raise
        except (UserError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
            _mark(tracking, run, damage)
            return
        if (told.get("weights_sha256"), train_key(config)) != (digest, run.key):
            _mark(tracking, run, damage)
            return
        sizes = {path: file.stat().st_size for path, file in zip(FILES, (weights, card), strict=True)}
    tags = {names.FILES: json.dumps(run.files | sizes), names.WEIGHTS_SHA256: digest, names.FINGERPRINT: fingerprint}
    write(tracking.uri, run.run_id, tags=tags | {names.SEED: str(config.seed)})


def _mark(tracking: Tracking, run: Run, note: str) -> None:
    """Mark a run as not finished, without the tags that nobody can trust."""
    _forget_files(tracking, run)
    if run.kind == "training":
        delete_tag(tracking.uri, run.run_id, names.WEIGHTS_SHA256)
    end_run(tracking, run.run_id, "KILLED", note)


def _forget_files(tracking: Tracking, run: Run) -> None:
    if read_sizes(run.tags.get(names.FILES, "{}")) is None:
        delete_tag(tracking.uri, run.run_id, names.FILES)
