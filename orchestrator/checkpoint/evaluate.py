"""Scores a pulled checkpoint on a COCO-format data set, and compares the numbers with those in MLflow."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import METRICS, DataConfig, InferenceConfig, require_branch
from model.evaluation.shards import Pass, score_missing, scores_of
from model.settings import Settings, misspelt, read_settings, to_dict
from orchestrator.checkpoint.pull import Provenance, read_provenance
from orchestrator.errors import UserError
from orchestrator.experiment.prepare import draw
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table
from orchestrator.report.results import COLUMNS as MISALIGNMENT
from orchestrator.site import Site
from orchestrator.tracking.detections import (
    About,
    describe,
    read_stored,
    require_same_images,
    write_coco_json,
    write_stored,
)

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.network.checkpoint import Card
if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.evaluation.scoring import Scores

COLUMNS = (Column("", numeric=False), *(Column(name) for name in METRICS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to score, and how."""

    folder: Path
    """A checkpoint, as `rnc pull` fetches it."""
    data: Path | None = None
    """A COCO-format data set; None takes the one that the site has under the checkpoint's name."""
    split: str | None = None
    """None takes the one that the row was scored on."""
    settings: Sequence[str] = ()
    """Inference settings to change, such as `nms_iou=0.6`."""
    all_images: bool = False
    """Score the whole split, even where the training scored its first images only."""
    save: Path | None = None
    """Where to write the detections, to be evaluated again without the checkpoint."""
    coco_json: Path | None = None
    """Where to write the detections, as the list that the COCO tools read."""


def evaluate(
    request: Request,
    site: Site,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Give the twelve numbers of a checkpoint, and say whether they are MLflow's.

    Raises:
        UserError: the checkpoint, the data or a setting is not what it should be.
    """
    card, provenance, inference = read_checkpoint(request.folder, request.settings)
    split = request.split or (provenance.split if provenance else card.config.data.val_split)
    config = card.config.data
    if request.all_images:
        config = replace(config, num_train_images=None, num_val_images=None)
    data = read_images(request.data, config, split, site, say)
    (scores,) = score_checkpoint(request.folder, data, [inference], progress, site.scored)
    if request.save is not None:
        from model.evaluation.misalignment import of_detections

        statistics = of_detections(data, scores.detections)
        write_stored(request.save, scores.detections, describe(card, config, data, scores, statistics))
        say(f"{len(scores.detections)} detections written to {request.save}")
    if request.coco_json is not None:
        write_coco_json(request.coco_json, scores.detections)
        say(f"{len(scores.detections)} detections written to {request.coco_json}")
    return _table(card, provenance, inference, split, data, scores.metrics)


def read_checkpoint(folder: Path, settings: Sequence[str]) -> "tuple[Card, Provenance | None, InferenceConfig]":
    """Read what lies beside the weights, with some inference settings changed.

    Raises:
        UserError: the folder is no checkpoint, or a setting is unknown, of another type or has no meaning for it.
    """
    from model.inference.predictor import changed, read_inference
    from model.network.checkpoint import read_card

    try:
        card, provenance = read_card(folder), read_provenance(folder)
        changes = _changes(settings)
        inference = changed(read_inference(folder), changes)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        require_branch(inference, has_branch=card.config.model.confidence is not None)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    return card, provenance, inference


def _changes(settings: Sequence[str]) -> Settings:
    """Type `name=value` pairs, in which `inference.` before the name may be left out."""
    changes: Settings = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected a setting and its value, such as inference.nms_iou=0.6")
        try:
            changes[name.strip().removeprefix("inference.")] = json.loads(value)
        except ValueError:
            changes[name.strip().removeprefix("inference.")] = value.strip()
    problems = list(misspelt(InferenceConfig, changes, "inference."))
    problems = problems or read_settings(InferenceConfig, changes, "inference.")[1]
    if problems:
        raise UserError("\n".join(f"--set {problem}" for problem in problems))
    return changes


def read_images(
    root: Path | None, config: DataConfig, split: str, site: Site, say: Callable[[str], None]
) -> "CocoData":
    """Read a split as a training has it, from `root` or from where the site has its data set.

    Raises:
        UserError: there is no such split, or it is faulty.
    """
    from model.data.coco import read_for_scoring
    from model.data.faults import DataError
    from model.data.faults import describe as describe_faults

    if root is None:
        draw(config, site)
        root = site.data_root(config.dataset)
    try:
        data = read_for_scoring(root, config, split, check_images=True)
    except DataError as error:
        raise UserError(str(error)) from error
    if data.faults:
        say("\n  ".join([f"{root}, split {split}: left out are", *describe_faults(data.faults)]))
    return data


def _table(
    card: "Card",
    provenance: Provenance | None,
    inference: InferenceConfig,
    split: str,
    data: "CocoData",
    metrics: Mapping[str, float | None],
) -> Table:
    title = provenance.row if provenance else f"epoch {card.epoch} of {card.config.model.backbone}"
    rows = [row_of("here", metrics)]
    notes = [f"{len(data)} images of {data.root / split}."]
    if len(data) in (card.config.data.num_val_images, card.config.data.num_train_images):
        notes = [f"The first {len(data)} images by id of {data.root / split}, as in the training; --all takes all."]
    if provenance is not None:
        reasons = list(_why_not_compared(provenance, inference, split, data))
        ours = {name: value for name, value in metrics.items() if value is not None}
        if reasons:
            notes.append(f"Not compared with MLflow's numbers: {'; '.join(reasons)}.")
        elif ours == dict(provenance.metrics):
            notes.append("Equal to MLflow's numbers, to the last digit.")
        else:
            far = max(abs(ours.get(name, 0.0) - provenance.metrics.get(name, 0.0)) for name in METRICS)
            rows.append(row_of("MLflow", provenance.metrics))
            notes.append(f"Not equal to MLflow's numbers: they differ by up to {far:.2g}.")
    return Table(title=title, columns=COLUMNS, rows=tuple(rows), notes=tuple(notes))


def row_of(name: str, metrics: Mapping[str, float | None]) -> tuple[Cell | str, ...]:
    """A line of the table: whose numbers, and the twelve."""
    return (name, *(Cell(metrics.get(metric), absent=NOT_APPLICABLE) for metric in METRICS))


def _why_not_compared(
    provenance: Provenance, inference: InferenceConfig, split: str, data: "CocoData"
) -> Iterator[str]:
    if split != provenance.split:
        yield f"they are of split {provenance.split}"
    elif not provenance.split_fingerprint:
        yield "which data they were measured on was not recorded"
    elif data.fingerprint != provenance.split_fingerprint:
        yield f"they are of other data (fingerprint {provenance.split_fingerprint[:12]}, here {data.fingerprint[:12]})"
    mine = to_dict(inference)
    changed = [name for name, value in mine.items() if provenance.inference.get(name) != value]
    if changed:
        yield "they are of other settings (" + ", ".join(f"{n} {provenance.inference.get(n)}" for n in changed) + ")"


def recompute(
    file: Path, root: Path | None, split: str | None, coco_json: Path | None, site: Site, say: Callable[[str], None]
) -> Table:
    """Give the numbers of stored detections, and say whether they are those that the file records.

    Args:
        file: of detections, as `rnc evaluate --save`, `rnc pull` and MLflow have them.
        root: of the data set that they were made on; None takes the one that the site has under its name.
        split: its name there; None takes the file's.
        coco_json: where to write the detections, as the list that the COCO tools read.
        site: where data sets are.
        say: told what stands beside the numbers.

    Raises:
        UserError: the file is damaged, or of other data than these.
    """
    from model.evaluation.coco_eval import evaluate
    from model.evaluation.misalignment import of_detections

    detections, about = read_stored(file)
    data = read_images(root, about.data, split or about.split, site, say)
    require_same_images(file, about, detections, data)
    metrics = evaluate(data, detections)
    if coco_json is not None:
        write_coco_json(coco_json, detections)
        say(f"{len(detections)} detections written to {coco_json}")
    statistics = of_detections(data, detections)
    columns = [MISALIGNMENT[name] for name in statistics]
    rows = [(*row_of("here", metrics), *_cells(statistics, statistics))]
    notes = [f"{len(detections)} detections on {len(data)} images of {data.root / data.split}.", _settings(about)]
    here, recorded = metrics | statistics, {**about.metrics, **about.statistics}
    if here == recorded:
        notes.append(f"Equal to the numbers recorded in {file.name}, to the last digit.")
    else:
        far = max(abs((here[name] or 0.0) - (recorded.get(name) or 0.0)) for name in here)
        rows.append((*row_of("recorded", about.metrics), *_cells(statistics, about.statistics)))
        notes.append(f"Not equal to the numbers recorded in {file.name}: they differ by up to {far:.2g}.")
    return Table(title=f"Detections of {file}", columns=(*COLUMNS, *columns), rows=tuple(rows), notes=tuple(notes))


def _cells(names: Iterable[str], statistics: Mapping[str, float | None]) -> Iterator[Cell]:
    return (Cell(statistics.get(name), absent=NOT_APPLICABLE) for name in names)


def _settings(about: About) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in to_dict(about.inference).items())
    return f"Training {about.train_key}, evaluation {about.evaluation_key}: {settings}."


def score_checkpoint(
    folder: Path,
    data: "CocoData",
    settings: Sequence[InferenceConfig],
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep: Path | None = None,
) -> "list[Scores]":
    """Score on the GPU of this machine, or else on its CPU.

    Args:
        folder: a checkpoint.
        data: the images; their categories have to be those of the checkpoint.
        settings: as many as wanted, for hardly more than the price of one.
        progress: called with (images done, images in all).
        keep: where shards are kept as they are scored, so that what was killed, or done before, is not done again.

    Raises:
        UserError: the checkpoint is damaged, or learnt other categories.
    """
    import torch

    from model.evaluation.scoring import score
    from model.network.checkpoint import read_card, require_categories
    from model.network.retinanet import load_detector

    try:
        require_categories(folder, (data.category_ids, data.category_names), f"split {data.split}")
        detector = load_detector(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    on_cuda = torch.cuda.is_available()
    detector, card = detector.to("cuda" if on_cuda else "cpu"), read_card(folder)
    num_loader_processes = min(8, os.cpu_count() or 1) if on_cuda else 0
    if keep is None:
        return score(
            detector, data, settings, card.config.data, num_loader_processes=num_loader_processes, progress=progress
        )
    work = Pass(
        detector=detector,
        weights_sha256=card.weights_sha256,
        data=data,
        config=card.config.data,
        settings=settings,
        keep=keep,
        num_loader_processes=num_loader_processes,
    )
    score_missing(work, progress=progress)
    return list(scores_of(work, settings))
