"""Misalignment of score and placement: boxes before and after NMS by image, and heads side by side; with figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import InferenceConfig
from model.network.checkpoint import read_card
from model.settings import to_dict
from orchestrator.checkpoint.inputs import (
    ScoringInputs,
    Selection,
    digest_of,
    no_progress,
    open_inputs,
    read_checkpoint,
)
from orchestrator.errors import Say, UserError
from orchestrator.figures.lab import Lab, instructive_indices, join, lab_section, make_lab
from orchestrator.figures.page import html_image, html_page
from orchestrator.figures.pictures import choose_images, write_pictures
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value
from orchestrator.homes import make_home
from orchestrator.report.claims.boxes import (
    BOXES,
    SHARES,
    THE_PAPER,
    Boxes,
    counted,
    image_table,
    line_table,
    papers_table,
    read_boxes,
    share_table,
)
from orchestrator.report.files import every_format
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS, MISALIGNMENT_NOTES, embolden, statistics_cells
from orchestrator.site import Site
from orchestrator.tracking.artifacts import Progress

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.evaluation.misalignment import Misalignment
    from model.evaluation.scoring import Scores
    from orchestrator.figures.charts import Shares

EXPONENTS = (0.2, 0.4, 0.5)
"""The confidence exponents that Figure 4 shows, beside those that the heads were scored with."""

SUPPRESSIONS = {
    "soft_linear": "linear soft-NMS",
    "soft_gaussian": "Gaussian soft-NMS",
    "iou_guided": "IoU-guided NMS",
    "diou": "DIoU-NMS",
    "matrix_linear": "linear matrix NMS",
    "matrix_gaussian": "Gaussian matrix NMS",
    "voting": "NMS with box voting",
}
"""What stands for NMS in these tables where a head is scored so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Closeup:
    """The images that are looked at one by one, in the table by image and as pictures."""

    num_images: int = 10
    """The first by id."""
    image_ids: tuple[int, ...] = ()
    """Other images instead."""
    only: bool = False
    """Score `num_images` images alone, so that statistics and figures are of them, too."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head:
    """One checkpoint, scored."""

    folder: Path
    label: str
    data: "CocoData"
    scores: "Scores"
    counts: "Misalignment"


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """What was found, as tables and as a page, and where it was written to."""

    tables: Mapping[str, Table]
    """By the names of their files: boxes by image for each head and of the paper, then those of all heads."""
    page: str
    """All of it as HTML that needs nothing else."""
    folder: Path
    """Where tables, figures and pictures lie."""


def analyse(
    folders: Sequence[Path],
    closeup: Closeup,
    selection: Selection,
    output: Path | None,
    site: Site,
    say: Say,
    progress: Progress = no_progress,
) -> Analysis:
    """Score each checkpoint on the same images, and write tables and figures of what its scores say of placement.

    The paper's counts of boxes in ten images stand beside ours, where their file lies beside the sources.

    Args:
        folders: checkpoints.
        closeup: the images to look at one by one.
        selection: the images to score, and the settings to change of all checkpoints.
        output: where tables, figures and pictures go; None takes a folder among the site's reports.
        site: where data sets, scored shards and reports are.
        say: told what was left out of the data.
        progress: of the images of each checkpoint, then of the pictures.

    Raises:
        UserError: a checkpoint, the data or a setting is not what it should be, or there is nothing to look at.
    """
    paper = read_boxes() if BOXES.is_file() else None  # an installed wheel has no experiments/
    if closeup.only:
        selection = replace(selection, first=closeup.num_images)
    # All cards before any data, and all data before any score: what is wrong with the last should not come late.
    checkpoints = [read_checkpoint(folder, selection.settings) for folder in dict.fromkeys(folders)]
    by_checkpoint = [open_inputs(checkpoint, selection, site, say) for checkpoint in checkpoints]
    labels = _labels({one.path: one.row or one.card.config.model.head for one in checkpoints})
    _require_same_images(by_checkpoint, labels)
    places = choose_images(by_checkpoint[0].data, closeup.num_images, closeup.image_ids)
    heads = []
    for inputs in by_checkpoint:
        (scores,) = inputs.score([inputs.checkpoint.inference], progress)
        assert scores.misalignment is not None
        folder = inputs.checkpoint.path
        heads.append(
            Head(folder=folder, label=labels[folder], data=inputs.data, scores=scores, counts=scores.misalignment)
        )
    names = _file_names([head.label for head in heads])
    tables = {name: by_image(head, places) for name, head in zip(names, heads, strict=True)}
    tables |= beside_paper(heads, places, paper) if paper else {}
    tables["statistics"] = by_head(heads)
    where = output or make_home(site.home) / "reports" / "misalignment" / _name(heads, places)
    return _write(where, tables, heads, _lab(heads), places, paper, progress)


def by_image(head: Head, places: Sequence[int]) -> Table:
    """Count boxes of these images by class score and by IoU, before and after NMS: the paper's first Table 1."""
    counts, num_images = head.counts, len(places)
    chosen = f"The first {num_images}" if list(places) == list(range(num_images)) else str(num_images)
    notes = [
        "anchors: those that training would match with an object. p: class score. IoU: with the object of its class "
        "that a box overlaps most.",
        "before: every anchor and class that enters NMS; after: the detections. " + _setting(head.scores.inference),
        f"{chosen} of {len(head.data)} images of {head.data.root}, split {head.data.split}, by id.",
    ]
    empty = [str(counts.image_ids[place]) for place in places if counts.num_objects[place] == 0]
    notes += [f"Without objects: image {', '.join(empty)}."] if empty else []
    return image_table(f"Boxes before and after NMS: {head.label}", counted(counts), places, notes)


def beside_paper(heads: Sequence[Head], places: Sequence[int], paper: Boxes) -> dict[str, Table]:
    """Return the paper's counts as `by_image` shows ours, then both line by line, and the shares that follow."""
    ours = {head.label: counted(head.counts).take(places) for head in heads}
    settings = {head.label: head.scores.inference for head in heads}
    notes = [
        "Per cent of the boxes that enter NMS, and of those that it keeps; Δ: the difference, in points.",
        "The paper's ten images of COCO: of the boxes of cls>0.05, which enter NMS where the class score alone ranks.",
    ]
    fused = [
        label
        for label, inference in settings.items()
        if inference.score_reads_confidence or inference.min_confidence > 0.0
    ]
    if fused:
        notes.append(f"Other boxes enter by a fused score ({'; '.join(fused)}): --exponent 0 counts as the paper does.")
    for label, boxes in ours.items():
        most = settings[label].max_detections
        if full := sum(num >= most for num in boxes.num_after):
            notes.append(f"{label} keeps the best {most} in {full} of {len(places)} images; the paper keeps all.")
    return {
        "paper-boxes": papers_table(paper, min(inference.max_detections for inference in settings.values())),
        "paper-lines": line_table(ours, paper),
        "paper-shares": share_table(ours, paper, notes),
    }


def by_head(heads: Sequence[Head]) -> Table:
    """Show the statistics of each head beside its AP."""
    from model.evaluation.misalignment import statistics

    lines: list[tuple[Cell | Value, ...]] = []
    for head in heads:
        numbers = statistics(head.data, head.scores.detections, head.counts)
        ap = Cell(head.scores.metrics["AP"], absent=NOT_APPLICABLE)
        lines.append((head.label, ap, *statistics_cells(numbers)))
    data = heads[0].data
    return Table(
        title="Misalignment",
        caption="How well do scores rank boxes by their placement, and what does NMS throw away?",
        columns=(Column("head", numeric=False), Column("AP"), *MISALIGNMENT_COLUMNS.values()),
        rows=tuple(embolden(lines)),
        notes=(f"{len(data)} images of {data.root}, split {data.split}.", *_settings(heads), *MISALIGNMENT_NOTES),
    )


def _require_same_images(by_checkpoint: Sequence[ScoringInputs], labels: Mapping[Path, str]) -> None:
    first, *others = by_checkpoint
    for inputs in by_checkpoint:
        if not len(inputs.data):
            where = f"{inputs.data.root}, split {inputs.data.split}"
            raise UserError(f"{where}: has no images to look at; name another with --split")
    for other in others:
        if other.data.fingerprint != first.data.fingerprint:
            raise UserError(
                f"{labels[first.checkpoint.path]} was to be scored on {first.images}, and "
                f"{labels[other.checkpoint.path]} on {other.images}; name "
                "the same for all of them with --data and --split, and --all where one takes the first images only"
            )


def _lab(heads: Sequence[Head]) -> Lab:
    """Show the heads on the images on which NMS drops the most better boxes."""
    from model.network.retinanet import load_detector

    data = heads[0].data
    indices = instructive_indices(data, [head.counts for head in heads])
    labs = []
    for head in heads:
        config = read_card(head.folder).config.data
        labs.append(make_lab(head.label, load_detector(head.folder), data, indices, config))
    joined = join(labs)
    assert joined is not None
    return joined


def _write(
    folder: Path,
    tables: Mapping[str, Table],
    heads: Sequence[Head],
    lab: Lab,
    places: Sequence[int],
    paper: Boxes | None,
    progress: Callable[[int, int], None],
) -> Analysis:
    from model.evaluation.calibration.errors import reliability
    from model.evaluation.calibration.outcomes import outcomes
    from orchestrator.figures.charts import (
        fused_scores,
        proportions,
        reliability_diagrams,
        save,
        score_against_iou,
        shares,
        sigmoid,
    )

    counts = {head.label: head.counts for head in heads}
    used = {head.scores.inference.confidence_exponent for head in heads if head.scores.inference.needs_confidence}
    bins = {head.label: reliability(outcomes(head.data, head.scores.detections)) for head in heads}
    errors = {head.label: head.scores.calibration for head in heads}
    figures = {
        "reliability": (
            "What a score is worth: detections of all classes, by score",
            reliability_diagrams(bins, errors),
        ),
        "figure1": ("Score against IoU, before and after NMS", score_against_iou(counts)),
        "figure2": ("Class scores and IoUs above 0.5, before and after NMS", proportions(counts)),
        "figure4": ("Fused scores over class score and confidence", fused_scores(sorted({*EXPONENTS, *used}))),
        "figure5": ("The sigmoid, and what cross entropy on IoU targets asks of it", sigmoid()),
    }
    if paper is not None:
        sides = {**{label: counted(one).take(places) for label, one in counts.items()}, THE_PAPER: paper}
        figures["figure2-by-image"] = (
            "Shares of boxes above 0.5, image by image, and the paper's",
            shares(_panels(sides), THE_PAPER),
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = {}
        for name, (title, figure) in figures.items():
            png, _ = save(figure, folder, name)
            drawn[name] = html_image(png.read_bytes(), "png", title)
        for name, table in tables.items():
            for file, text in every_format(name, table).items():
                (folder / file).write_text(text, encoding="utf-8")
        boxes = {head.label: (head.scores.detections, head.counts.dropped) for head in heads}
        pictures = write_pictures(folder / "boxes", heads[0].data, places, boxes, progress)
        below = dict.fromkeys(tables, "")
        if paper is not None:
            below["paper-shares"] = drawn.pop("figure2-by-image")
        below["statistics"] = "\n".join([*drawn.values(), *pictures])
        page = html_page("Misalignment", [*tables.values()], [*below.values()], [lab_section(lab)])
        (folder / "index.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: cannot write to {folder} ({error.strerror}); name another folder") from error
    return Analysis(tables=tables, page=page, folder=folder)


def _panels(sides: Mapping[str, Boxes]) -> dict[str, "dict[str, Shares]"]:
    from orchestrator.figures.charts import Shares

    headings = {"iou>0.5": "IoU above 0.5", "cls>0.5": "class score above 0.5"}
    return {
        headings[condition]: {
            label: Shares(
                images=boxes.images,
                before=boxes.shares("before_nms", condition),
                after=boxes.shares("after_nms", condition),
            )
            for label, boxes in sides.items()
        }
        for condition in SHARES
    }


def _labels(labels: Mapping[Path, str]) -> dict[Path, str]:
    """Tell heads of one name apart by their folders."""
    names = list(labels.values())
    return {
        folder: label if names.count(label) == 1 else f"{label} ({'/'.join(folder.resolve().parts[-2:])})"
        for folder, label in labels.items()
    }


def _settings(heads: Sequence[Head]) -> list[str]:
    settings = dict.fromkeys(_setting(head.scores.inference) for head in heads)
    if len(settings) > 1:
        return [f"{head.label}: {_setting(head.scores.inference)}" for head in heads]
    return list(settings)


def _setting(inference: InferenceConfig) -> str:
    ranked = f"Ranked with exponent {inference.confidence_exponent:g}."
    if inference.fusion == "product":
        ranked = "Ranked by class score times confidence."
    elif not inference.score_reads_confidence:
        ranked = "Ranked by the class score."
    other = SUPPRESSIONS.get(inference.suppression)
    return f"{ranked} Suppressed by {other}." if other else ranked


def _name(heads: Sequence[Head], places: Sequence[int]) -> str:
    """Name the folder of a report; other weights, images or settings go to another, so that none overwrites another."""
    weights = [read_card(head.folder).weights_sha256 for head in heads]
    settings = [to_dict(head.scores.inference) for head in heads]
    digest = digest_of(weights, heads[0].data.fingerprint, settings, list(places))
    return f"{_slug([head.label for head in heads])}-{digest}"


def _file_names(labels: Sequence[str]) -> list[str]:
    slugs = [f"boxes-{_slug([label])}" for label in labels]
    # Labels that differ in their marks alone would share a file.
    return [slug if slugs.count(slug) == 1 else f"{slug}-{place}" for place, slug in enumerate(slugs, start=1)]


def _slug(labels: Sequence[str]) -> str:
    letters = ["".join(c.lower() if c.isalnum() else "-" for c in label) for label in labels]
    slug = "-".join("-".join(filter(None, text.split("-"))) for text in letters)
    # A name holds 255 bytes, of which a letter may take four.
    return slug.encode()[:100].decode(errors="ignore")
