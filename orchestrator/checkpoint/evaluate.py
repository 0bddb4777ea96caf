"""The COCO numbers of a checkpoint or of stored detections, beside those that MLflow or the file has recorded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.config import CALIBRATION, METRICS
from model.inference.table import DetectionTable
from model.settings import to_dict
from orchestrator.checkpoint.inputs import (
    ScoringInputs,
    Selection,
    no_progress,
    open_inputs,
    read_annotations,
    read_checkpoint,
    read_images,
    recorded_root,
    scoring_device,
)
from orchestrator.checkpoint.pull import Provenance, read_provenance
from orchestrator.errors import Say, UserError
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table
from orchestrator.figures.texts import for_json
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS
from orchestrator.site import Site
from orchestrator.tracking.artifacts import Progress
from orchestrator.tracking.evaluations.detections import (
    About,
    Results,
    describe,
    holds_json,
    read_results,
    read_stored,
    require_same_images,
    write_coco_json,
    write_stored,
)

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.network.checkpoint import Card

NAMES = METRICS + CALIBRATION
COLUMNS = (Column("", numeric=False), *(Column(name) for name in NAMES))


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionFiles:
    """Where detections are written to; None writes none."""

    parquet: Path | None = None
    """With all that is needed to evaluate them again without the checkpoint."""
    coco_json: Path | None = None
    """As the list that the COCO tools read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What a scoring gives."""

    table: Table
    """The twelve numbers and the five of calibration, beside recorded ones."""
    data: "CocoData"
    detections: DetectionTable

    def classes(self, *, by_ap: bool = False) -> Table:
        """Return AP of each class with its interval, counted by now: about a second on 5000 images."""
        from model.evaluation.coco.matches import match
        from orchestrator.report.classes.numbers import of_scoring
        from orchestrator.report.classes.table import classes_table
        from orchestrator.report.statistics.resamples import class_samples

        samples = class_samples(match(self.data, self.detections))
        return classes_table(of_scoring(self.table.title, samples), by_ap=by_ap)

    def to_json(self, *, by_ap: bool = False) -> str:
        """Render for a program: the table, and its classes under `classes`."""
        content = json.loads(self.table.to_json()) | {"classes": json.loads(self.classes(by_ap=by_ap).to_json())}
        return for_json(json.dumps(content, ensure_ascii=False, indent=2))


def evaluate(
    folder: Path,
    selection: Selection,
    files: DetectionFiles,
    site: Site,
    say: Say,
    progress: Progress = no_progress,
) -> Numbers:
    """Give the numbers of a checkpoint, and say whether the twelve are MLflow's.

    Raises:
        UserError: the checkpoint, the data or a setting is not what it should be.
    """
    from model.evaluation.misalignment import of_detections

    checkpoint = read_checkpoint(folder, selection.settings)
    inputs = open_inputs(checkpoint, selection, site, say)
    (scores,) = inputs.score([checkpoint.inference], progress)
    if files.parquet is not None:
        statistics = of_detections(inputs.data, scores.detections)
        about = describe(checkpoint.card, inputs.config, inputs.data, scores, statistics)
        write_stored(files.parquet, scores.detections, about)
        say(f"{len(scores.detections)} detections written to {files.parquet}")
    _export(scores.detections, files, say)
    table = _beside_mlflow(inputs, scores.metrics, scores.calibration)
    return Numbers(table=table, data=inputs.data, detections=scores.detections)


def recompute(stored: Path, selection: Selection, files: DetectionFiles, site: Site, say: Say) -> Numbers:
    """Give the numbers of stored detections, and say whether they are those that the file records.

    Args:
        stored: a file of detections, as `rnc evaluate --save`, `rnc pull` and MLflow have them; or the results of any
            detector, as COCO's tools exchange them (JSON).
        selection: the data set and the split that they were made on, where these are neither where the card beside the
            file says nor where the site has them.
        files: where to write them; the Parquet file is there already.
        site: where data sets are.
        say: told what stands beside the numbers.

    Raises:
        UserError: the file is damaged, or of other data than these; or the selection asks for other detections.
    """
    from model.evaluation.calibration.errors import calibration
    from model.evaluation.coco.metrics import evaluate
    from model.evaluation.misalignment import of_detections

    if holds_json(stored):
        return of_results(stored, selection, files, site, say)
    if selection.settings or selection.all_images or files.parquet:
        raise UserError(
            "--exponent, --set, --all and --save need a CHECKPOINT; the detections of a file are what they are"
        )
    detections, about = read_stored(stored)
    root = selection.data or recorded_root(_card_beside(stored), about.data.dataset, site, say)
    data = read_images(root, about.data, selection.split or about.split, site, say)
    require_same_images(stored, about, detections, data)
    metrics, statistics = evaluate(data, detections), of_detections(data, detections)
    _export(detections, files, say)
    here, recorded = metrics | statistics, {**about.metrics, **about.statistics}
    names = (*NAMES, *statistics)
    rows = [_row("here", names, here | calibration(data, detections))]
    is_equal, verdict = _compared(here, recorded, f"the numbers recorded in {stored.name}")
    if not is_equal:
        rows.append(_row("recorded", names, recorded))
    table = Table(
        title=f"Detections of {stored}",
        columns=(*COLUMNS, *(MISALIGNMENT_COLUMNS[name] for name in statistics)),
        rows=tuple(rows),
        notes=(
            f"{len(detections)} detections on {len(data)} images of {data.root}, split {data.split}.",
            _settings(about),
            verdict,
        ),
    )
    return Numbers(table=table, data=data, detections=detections)


def of_results(file: Path, selection: Selection, files: DetectionFiles, site: Site, say: Say) -> Numbers:
    """Give the numbers of a results file of COCO's tools, whatever detector made it.

    Args:
        file: a list of {image_id, category_id, bbox, score}, as JSON.
        selection: the data set and the split that they were made on; the site's COCO and its validation split if not.
        files: nothing is written of detections that lie there already.
        site: where data sets are.
        say: told what is worth to know of the data.

    Raises:
        UserError: the file is none, or of other data than these; or the selection asks for other detections.
    """
    from model.evaluation.calibration.errors import calibration_errors
    from model.evaluation.calibration.outcomes import written_outcomes
    from model.evaluation.coco.metrics import evaluate_written

    if selection.settings or selection.all_images or files.parquet or files.coco_json:
        raise UserError(
            "--exponent, --set, --all, --save and --coco-json need a CHECKPOINT; the detections of a file are what "
            "they are"
        )
    data = read_annotations(selection.data, selection.split, site, say)
    found = read_results(file, data)
    columns = (found.image_ids, found.category_ids, found.boxes, found.scores)
    metrics = evaluate_written(data, *columns) | calibration_errors(written_outcomes(data, *columns))
    table = Table(
        title=f"Detections of {file}",
        columns=COLUMNS,
        rows=(_row("here", NAMES, metrics),),
        notes=(
            f"{len(found.scores)} detections on {len(data)} images of {data.root}, split {data.split}.",
            *(f"{note}." for note in found.notes),
        ),
    )
    return Numbers(table=table, data=data, detections=_detections(found))


def _card_beside(stored: Path) -> Provenance | None:
    """Read the card that `rnc pull` has put beside detections; of those that lie elsewhere nothing is known."""
    try:
        return read_provenance(stored.parent)
    except ValueError:  # a file of that name and of another kind
        return None


def _detections(found: Results) -> DetectionTable:
    """The detections of a results file as our own have them: sorted by image, best first, in float32."""
    order = np.lexsort((-found.scores, found.image_ids))
    scores, boxes = found.scores[order].astype(np.float32), found.boxes[order]
    count = len(order)
    return DetectionTable(
        image_ids=found.image_ids[order],
        category_ids=found.category_ids[order],
        boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32),
        scores=scores,
        class_scores=scores,
        confidences=np.full(count, np.nan, np.float32),
        ious=np.zeros(count, np.float32),
        levels=np.zeros(count, np.int8),
        anchors=np.zeros(count, np.int32),
    )


def _export(detections: DetectionTable, files: DetectionFiles, say: Say) -> None:
    if files.coco_json is not None:
        write_coco_json(files.coco_json, detections)
        say(f"{len(detections)} detections written to {files.coco_json}")


def _beside_mlflow(
    inputs: ScoringInputs, metrics: Mapping[str, float | None], calibration: Mapping[str, float | None]
) -> Table:
    """Show the numbers of a checkpoint, and MLflow's where they differ though they ought to be the same."""
    card, provenance = inputs.checkpoint.card, inputs.checkpoint.provenance
    rows, notes = [_row("here", NAMES, {**metrics, **calibration})], [f"{inputs.images}."]
    if len(inputs.data) in (card.config.data.num_val_images, card.config.data.num_train_images):
        where = f"{inputs.data.root}, split {inputs.data.split}"
        notes = [f"The first {len(inputs.data)} images by id of {where}, as in the training; --all takes all."]
    if provenance is not None:
        reasons = list(_why_not_compared(provenance, inputs))
        is_equal, verdict = _compared(metrics, provenance.metrics, "MLflow's numbers")
        if reasons:
            verdict = f"Not compared with MLflow's numbers: {'; '.join(reasons)}."
        elif not is_equal:
            rows.append(_row("MLflow", NAMES, provenance.metrics))
        notes.append(verdict)
    notes += _note_on_device(card)
    title = inputs.checkpoint.row or f"epoch {card.epoch} of {card.config.model.backbone}"
    return Table(title=title, columns=COLUMNS, rows=tuple(rows), notes=tuple(notes))


def _note_on_device(card: "Card") -> Iterator[str]:
    """Say what may differ where a checkpoint is scored on another device than it was trained, and so scored, on."""
    from model.network.checkpoint import device_name

    here = device_name(scoring_device())
    if card.device not in ("", here):
        yield (
            f"Trained on {card.device}, scored on {here}, which adds up in another order: scores may differ from those"
            " of the training in their last digits, and AP with them a little."
        )


def _why_not_compared(provenance: Provenance, inputs: ScoringInputs) -> Iterator[str]:
    data = inputs.data
    if data.split != provenance.split:
        yield f"they are of split {provenance.split}"
    elif not provenance.split_fingerprint:
        yield "which data they were measured on was not recorded"
    elif data.fingerprint != provenance.split_fingerprint:
        yield f"they are of other data (fingerprint {provenance.split_fingerprint[:12]}, here {data.fingerprint[:12]})"
    theirs = provenance.inference
    changed = [name for name, value in to_dict(inputs.checkpoint.inference).items() if theirs.get(name) != value]
    if changed:
        yield f"they are of other settings ({', '.join(f'{name} {theirs.get(name)}' for name in changed)})"


def _compared(
    here: Mapping[str, float | None], recorded: Mapping[str, float | None], recorded_name: str
) -> tuple[bool, str]:
    """Say whether numbers are those that were recorded; one that the data cannot give is None, or left out."""
    # MLflow's metrics lack what cannot be measured; a file of detections holds it as null.
    ours, theirs = ({n: v for n, v in numbers.items() if v is not None} for numbers in (here, recorded))
    # No tolerance: the order of every sum is fixed, so that on the same device each bit has to come out again.
    if ours == theirs:
        return True, f"Equal to {recorded_name}, to the last digit."
    largest = max(abs(ours.get(name, 0.0) - theirs.get(name, 0.0)) for name in here)
    return False, f"Not equal to {recorded_name}: they differ by up to {largest:.2g}."


def _row(whose: str, names: tuple[str, ...], numbers: Mapping[str, float | None]) -> tuple[Cell | str, ...]:
    return (whose, *(Cell(numbers.get(name), absent=NOT_APPLICABLE) for name in names))


def _settings(about: About) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in to_dict(about.inference).items())
    return f"Training {about.train_key}, evaluation {about.evaluation_key}: {settings}."
