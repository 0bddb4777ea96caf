"""The pull of a checkpoint out of MLflow, its sha256 verified, with a card of its provenance: numbers and data."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from model.config import InferenceConfig, ModelConfig
from model.data.cache import file_sha256
from model.foreign import parse_json, read_json
from model.names import CARD, INFERENCE, WEIGHTS
from model.paths import inside, one_name
from model.settings import Settings, flat_differences, from_dict, to_dict
from orchestrator import names
from orchestrator.addresses import without_secrets
from orchestrator.checkpoint.destination import gathering, held, keep
from orchestrator.checkpoint.find import BEST, FinishedEvaluation, Query, find, table_of
from orchestrator.errors import Say, UserError
from orchestrator.figures.templating import fill
from orchestrator.homes import make_home
from orchestrator.report import views
from orchestrator.site import Site
from orchestrator.tracking.artifacts import Missing, Progress, download
from orchestrator.tracking.edits.experiments import quoted
from orchestrator.tracking.records import read_inference, read_record
from orchestrator.tracking.runs import Run, search_runs
from orchestrator.tracking.server import existing_tracking_server

PROVENANCE, PAGE = "provenance.json", "README.md"
"""The provenance of a checkpoint, for programs and for people; beside its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """One evaluation of one training, as MLflow knows it."""

    row: str
    """The label of the row."""
    tables: Mapping[str, str]
    """The label of the row in every table that shows it."""
    suite: str
    seed: int
    split: str
    """The split that was scored."""
    metrics: Mapping[str, float]
    """The twelve numbers, to the last digit; those that the split cannot give are left out."""
    inference: Settings
    """The inference settings behind the numbers."""
    dataset: str
    train_fingerprint: str
    """CocoData.fingerprint of the images that it learnt from."""
    split_fingerprint: str
    """... and of those that it was scored on; empty where it was not recorded."""
    train_key: str
    evaluation_key: str
    git_commit: str
    link: str
    """The evaluation in MLflow's user interface."""
    training_link: str
    weights_sha256: str
    weights_bytes: int
    versions: Mapping[str, str]
    """Of the libraries that trained it."""
    data_root: str = ""
    """Where the data that it was scored on lay then; empty where that was not recorded."""
    detections: str = ""
    """The file of its detections, beside the checkpoint; empty where MLflow has none."""
    model: Settings = field(default_factory=dict)
    """What of train.model is not the default, by dotted name; empty in cards of earlier versions."""

    def to_markdown(self) -> str:
        """A page for people."""
        return fill("checkpoint.md", card=self) + "\n"


def pull(
    query: Query,
    site: Site,
    output: str | Path | None,
    say: Say,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Fetch the checkpoint of the evaluation that is asked for; returns the folder.

    A folder that holds these weights already gets its cards anew, and no weights are fetched.

    Args:
        query: the evaluation.
        site: where MLflow is.
        output: the folder to make; None takes one of its own under the site's home.
        say: told what was fetched.
        progress: called with (bytes done, bytes in all) of the weights.

    Raises:
        UserError: nothing fits, the files are gone or damaged, or the folder holds something else.
    """
    evaluation, folder, _ = _pull(query, site, output, progress)
    size = (folder / WEIGHTS).stat().st_size / 1e6
    say(f"{describe(evaluation, query, site)}, {size:.1f} MB, sha256 verified")
    return folder


def locate(name: str, query: Query, site: Site, say: Say, progress: Progress = lambda done, total: None) -> Path:
    """Return the folder of a checkpoint by what a user calls it: that folder, or a row, which is pulled if need be.

    A folder goes before a row of the same name, also one that is called `best`.

    Args:
        name: a folder, `best`, the label of a row, or `table:label`.
        query: where to look for a row; its own row does not count.
        site: where MLflow is.
        say: told which row it is, and where its files are.
        progress: of the weights, where they are fetched.

    Raises:
        UserError: there is neither such a folder nor such a row.
    """
    path = Path(os.path.expanduser(name))
    if (path / CARD).is_file():
        if name == BEST:
            say(f"best: the folder {path.absolute()}, which goes before the best row; remove it if that is meant")
        return path
    if name.startswith((".", "~", os.sep)) or (path.exists() and os.sep in name):
        what = f"holds no {CARD}" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"{name}: no checkpoint, as {path.absolute()} {what}; name a folder that `rnc pull` made, `best`, or a row"
        )
    try:
        evaluation, folder, fetched = _pull(replace(query, row=name), site, None, progress)
    except UserError as error:
        if name == BEST:
            raise
        what = f"no checkpoint, as it holds no {CARD}" if path.is_dir() else "no such folder"
        raise UserError(f"{name}: {what} ({path.absolute()}), and as a row: {error}") from error
    where = "pulled to" if fetched else "in"
    say(f"{name}: {describe(evaluation, replace(query, row=name), site)}, {where} {folder}")
    return folder


def describe(evaluation: FinishedEvaluation, query: Query, site: Site) -> str:
    """Say which row was found: suite, table, label, seed, number and date, and of a best one if it is an old one."""
    table = table_of(evaluation, query)
    suite = f"suite {evaluation.suite}"
    if query.suite is None and query.row == BEST and query.run_id is None and evaluation.suite == last_suite(site):
        suite += " (the last one submitted here)"
    value, scored = evaluation.metrics[query.metric], evaluation.run.begun or evaluation.run.start_time
    submitted = _submitted(site).get(evaluation.suite, 0)
    old = ""
    # A submit registers its best where it ends, so that one that was stopped or refused leaves that of an earlier one.
    if query.row == BEST and query.run_id is None and submitted > scored:
        old = f", before its last submit here ({_clock(submitted)}), which has not ended or has scored nothing better"
    return (
        f"{suite}, {f'table {table}, ' if table else ''}row {evaluation.label(table)}, seed {evaluation.seed}: "
        f"{query.metric} {value:.1f} on {evaluation.tags.get(names.SPLIT, '')}, scored {_clock(scored)}{old}"
    )


def last_suite(site: Site) -> str | None:
    """Return the suite that was submitted last from this home; None where none was."""
    taken = _submitted(site)
    return max(taken, key=lambda suite: taken[suite], default=None)


def _submitted(site: Site) -> dict[str, float]:
    """Return when each suite was last submitted from this home with something to do, in milliseconds since 1970."""
    # A lock keeps the time at which it was taken; logs and the like beside it change as long as a suite runs.
    return {lock.parent.name: lock.stat().st_mtime_ns / 1e6 for lock in site.home.glob("submits/*/lock")}


def _clock(milliseconds: float) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M}"


def _pull(
    query: Query, site: Site, output: str | Path | None, progress: Progress
) -> tuple[FinishedEvaluation, Path, bool]:
    """Find and fetch; the last says whether weights had to be fetched."""
    uri = existing_tracking_server(site)
    if uri is None:
        raise UserError(
            f"nothing was ever recorded under {site.home}; `rnc submit` does so, RNC_HOME or MLFLOW_TRACKING_URI name "
            "another place"
        )
    evaluation = find(uri, query, last_suite(site))
    label = evaluation.label(table_of(evaluation, query))
    # Names of others: whoever may write to MLflow may call an experiment `retinanet-conf/../../x`.
    name, key = one_name(f"{evaluation.suite}-{slug(label)}"), one_name(evaluation.run.key[:6])
    # `new/..` would be another folder once `new` is made.
    folder = Path(os.path.normpath(output)) if output else inside(make_home(site.home) / "pulled", f"{name}-{key}")
    is_there = (folder / WEIGHTS).is_file()
    fetch(uri, evaluation, label, folder, progress, with_detections=True)
    return evaluation, folder, not is_there


def fetch(
    uri: str,
    evaluation: FinishedEvaluation,
    label: str,
    folder: Path,
    progress: Progress = lambda done, total: None,
    *,
    with_detections: bool = False,
) -> Provenance:
    """Put weights, config, inference settings and provenance of an evaluation into a folder, a new one whole or not.

    Its detections come along if they are wanted and MLflow has them.

    Raises:
        UserError: a file is gone or damaged, or the folder holds something else.
    """
    training = training_of(uri, evaluation)
    digest = training.tags[names.WEIGHTS_SHA256]
    is_held = held(folder, digest)
    with gathering(folder) as partial:
        try:
            # The card first: a few hundred bytes tell whether 150 MB of weights are worth fetching.
            download(uri, training.run_id, f"{names.CHECKPOINT}/{CARD}", partial)
            card = _card(partial / CARD, digest)
            if not is_held:
                download(uri, training.run_id, f"{names.CHECKPOINT}/{WEIGHTS}", partial, progress=progress)
                _require_same(file_sha256(partial / WEIGHTS), digest)
        except Missing as error:
            raise UserError(
                f"{label} is recorded, but its checkpoint is not there any more ({error}); pull another row, or train "
                "it again: delete its training in MLflow, then `rnc submit`"
            ) from error
        weights = (folder if is_held else partial) / WEIGHTS
        provenance = _provenance(uri, evaluation, label, training, card, weights)
        if with_detections:
            provenance = replace(provenance, detections=_fetch_detections(uri, evaluation, partial))
        write_provenance(partial, provenance)
        (partial / INFERENCE).write_text(json.dumps(provenance.inference, indent=2) + "\n")
        keep(partial, folder, digest)
    return provenance


def training_of(uri: str, evaluation: FinishedEvaluation) -> Run:
    """Return the finished training behind an evaluation.

    Raises:
        UserError: it is gone.
    """
    key = evaluation.run.train_key
    where = f"tags.{names.KIND} = 'training' and tags.{names.TRAIN_KEY} = {quoted(key)}"
    notes = []
    for run in search_runs(uri, evaluation.run.experiment_id, where):
        record = read_record(run)
        if record.status == "FINISHED":
            return run
        notes.append(f"run {run.run_id}: {record.note or record.status}")
    if notes:
        raise UserError(
            f"the training {key} of {evaluation.label()} is not finished in MLflow ({'; '.join(notes)}); `rnc repair` "
            "mends what can be mended, `rnc submit` the rest"
        )
    raise UserError(
        f"the training {key} of {evaluation.label()} is not in MLflow any more; restore it there, or submit again"
    )


def read_provenance(folder: Path) -> Provenance | None:
    """Read the card; None where a checkpoint has none.

    Raises:
        ValueError: the file is no such card.
    """
    try:
        card = from_dict(Provenance, read_json(folder / PROVENANCE))
        # Earlier versions wrote the address of MLflow as it was given, with a password.
        return replace(card, link=without_secrets(card.link), training_link=without_secrets(card.training_link))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / PROVENANCE} is no provenance card ({error}); remove it, or pull again") from error


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Put the card beside a checkpoint, for programs and for people."""
    (folder / PROVENANCE).write_text(json.dumps(asdict(provenance), indent=2, ensure_ascii=False) + "\n")
    (folder / PAGE).write_text(provenance.to_markdown())


def slug(label: str) -> str:
    """Make a part of a file name of a label."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "row"


def _provenance(
    uri: str, evaluation: FinishedEvaluation, label: str, training: Run, card: dict[str, Any], weights: Path
) -> Provenance:
    tags, learnt = evaluation.tags, training.tags
    return Provenance(
        row=label,
        tables={table: evaluation.label(table) for table in evaluation.places},
        suite=evaluation.suite,
        seed=evaluation.seed,
        split=tags.get(names.SPLIT, ""),
        metrics=evaluation.metrics,
        inference=to_dict(_inference_of(evaluation)),
        dataset=card["config"]["data"]["dataset"],
        train_fingerprint=card["data_fingerprint"],
        split_fingerprint=tags.get(names.FINGERPRINT, ""),
        data_root=tags.get(names.DATA_ROOT, ""),
        train_key=evaluation.run.train_key,
        evaluation_key=evaluation.run.key,
        git_commit=learnt.get(names.COMMIT, ""),
        link=views.run_link(uri, evaluation.run.experiment_id, evaluation.run_id),
        training_link=views.run_link(uri, evaluation.run.experiment_id, training.run_id),
        weights_sha256=learnt[names.WEIGHTS_SHA256],
        weights_bytes=weights.stat().st_size,
        versions=_versions_of(learnt.get(names.VERSIONS, "{}")),
        model=_model_of(card),
    )


def _model_of(card: dict[str, Any]) -> Settings:
    """Return what of the detector's settings is not the default; nothing where another version wrote them."""
    with suppress(ValueError):
        return flat_differences(from_dict(ModelConfig, card["config"].get("model", {})))
    return {}


def _inference_of(evaluation: FinishedEvaluation) -> InferenceConfig:
    try:
        return read_inference(evaluation.run.params)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the params of run {evaluation.run_id} in MLflow were edited: {error}; pull another row, or delete the "
            "run there, and the next submit scores its row again"
        ) from error


def _versions_of(text: str) -> dict[str, str]:
    """Read what versions a training ran on; nothing where somebody wrote something else there."""
    try:
        told = parse_json(text)
    except ValueError:
        return {}
    return {str(name): str(number) for name, number in told.items()} if isinstance(told, dict) else {}


def _fetch_detections(uri: str, evaluation: FinishedEvaluation, into: Path) -> str:
    """Fetch what was detected, and return the file's name; nothing where MLflow has no such file."""
    with suppress(Missing):
        return download(uri, evaluation.run_id, f"{names.DETECTIONS}/{names.DETECTIONS_FILE}", into).name
    return ""


def _card(file: Path, digest: str) -> dict[str, Any]:
    try:
        card: dict[str, Any] = read_json(file)
        _require_same(card["weights_sha256"], digest)
        told = (card["config"]["data"]["dataset"], card["data_fingerprint"])
        if not all(isinstance(one, str) for one in told):
            raise TypeError(f"dataset and data_fingerprint are {told}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"MLflow's {CARD} of this training is damaged ({error!r}); pull another row") from error
    return card


def _require_same(found: str, recorded: str) -> None:
    if found != recorded:
        raise UserError(
            f"the weights in MLflow have sha256 {found[:12]}, recorded is {recorded[:12]}: they are damaged or were "
            "swapped; nothing was kept. Try again, or pull another row"
        )
