"""Boxes of an image before and after NMS, by class score and by IoU: the paper's counts of ten images, and ours."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from orchestrator.errors import UserError
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value
from orchestrator.site import ROOT

if TYPE_CHECKING:
    from model.evaluation.misalignment import Misalignment

BOXES = ROOT / "experiments" / "paper" / "boxes_of_ten_images.csv"
"""The paper's, Table 1 of its Section 1; the file lies beside those of its other tables."""
THE_PAPER = "the paper, its ten images of COCO"
"""Heads its numbers."""
_PAPER = "the paper"
"""The same where a column has no room for more, and a note says the rest."""
SCORED = "cls>0.05"
"""The condition that all boxes of the paper meet: what scores less does not reach NMS."""
CONDITIONS = (
    *(SCORED, "cls>0.5", "cls>0.6", "cls>0.7", "cls>0.8", "cls>0.9"),
    *("iou>0.5", "iou>0.6", "iou>0.7", "iou>0.8", "iou>0.9"),
)
"""A class score, or an IoU with a ground-truth box, above a threshold."""
SHARES = ("iou>0.5", "cls>0.5")
"""The conditions of which Figure 2 and the text give shares."""
COUNTED_AT = {"Image9": (76_725, (640, 640)), "Image10": (92_070, (640, 768))}
"""Anchors that the text gives to an image, and the input size that has so many: 9 for each cell of P3 to P7."""
Stage = Literal["before_nms", "after_nms"]
_STAGES = {"anchors": "", "before_nms": "before", "after_nms": "after"}
LINES = (
    ("anchors", "positive"),
    *(("before_nms", condition) for condition in CONDITIONS),
    *(("after_nms", condition) for condition in CONDITIONS),
)
"""Stage and condition of each line, in the paper's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes:
    """How many boxes of each image meet a condition, before and after NMS."""

    images: tuple[str, ...]
    """What they are called."""
    positive_anchors: tuple[int, ...]
    """Anchors that training matches with an object."""
    num_before: tuple[int, ...]
    """Boxes that enter NMS; in the paper those of SCORED, as the class score alone ranks."""
    num_after: tuple[int, ...]
    """Boxes that NMS keeps."""
    before_nms: Mapping[str, tuple[int, ...]]
    """Of those that enter, by condition: all of CONDITIONS."""
    after_nms: Mapping[str, tuple[int, ...]]

    def take(self, places: Sequence[int]) -> "Boxes":
        """Return the counts of some of the images."""

        def some(counts: Sequence[int]) -> tuple[int, ...]:
            return tuple(counts[place] for place in places)

        return Boxes(
            images=tuple(self.images[place] for place in places),
            positive_anchors=some(self.positive_anchors),
            num_before=some(self.num_before),
            num_after=some(self.num_after),
            before_nms={condition: some(counts) for condition, counts in self.before_nms.items()},
            after_nms={condition: some(counts) for condition, counts in self.after_nms.items()},
        )

    def shares(self, stage: Stage, condition: str) -> tuple[float, ...]:
        """Return what per cent of the boxes of a stage meet a condition, for each image; NaN where there is no box."""
        counts, wholes = (
            (self.before_nms, self.num_before) if stage == "before_nms" else (self.after_nms, self.num_after)
        )
        return tuple(100 * n / whole if whole else nan for n, whole in zip(counts[condition], wholes, strict=True))

    def changes(self, condition: str) -> tuple[float, ...]:
        """Return by how many points NMS raises that share, for each image."""
        pairs = zip(self.shares("before_nms", condition), self.shares("after_nms", condition), strict=True)
        return tuple(after - before for before, after in pairs)


def read_boxes(path: Path = BOXES) -> Boxes:
    """Read a file of counts: a line for each of LINES, a column for each image.

    Raises:
        UserError: it cannot be read, or a line is not what it should be.
    """
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    header, *rows = lines or [[]]
    expected = ["stage", "condition", *(f"image{place}" for place in range(1, max(2, len(header) - 1)))]
    if header != expected:
        raise UserError(f"{path}, line 1: is {','.join(header)!r}, expected {','.join(expected)!r}")
    if len(rows) != len(LINES):
        raise UserError(f"{path}: has {len(rows)} lines below its header, expected {len(LINES)}")
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for place, (names, row) in enumerate(zip(LINES, rows, strict=True), start=2):
        where = f"{path}, line {place}"
        if tuple(row[:2]) != names:
            raise UserError(f"{where}: begins {','.join(row[:2])!r}, expected {','.join(names)!r}")
        if len(row) != len(header):
            raise UserError(f"{where}: has {len(row) - 2} counts, expected {len(header) - 2}")
        found[names] = tuple(_count(where, image, text) for image, text in zip(header[2:], row[2:], strict=True))
    boxes = Boxes(
        images=tuple(name.capitalize() for name in header[2:]),
        num_before=found["before_nms", SCORED],
        num_after=found["after_nms", SCORED],
        positive_anchors=found["anchors", "positive"],
        before_nms={condition: found["before_nms", condition] for condition in CONDITIONS},
        after_nms={condition: found["after_nms", condition] for condition in CONDITIONS},
    )
    problems = list(_contradictions(boxes))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return boxes


def counted(counts: "Misalignment") -> Boxes:
    """Return what a scoring pass counted, in the paper's lines; images are called by their ids."""
    above = {
        "before_nms": (*counts.scores_before.T.tolist(), *counts.ious_before.T.tolist()),
        "after_nms": (*counts.scores_after.T.tolist(), *counts.ious_after.T.tolist()),
    }
    by_condition = {stage: dict(zip(CONDITIONS, map(tuple, lines), strict=True)) for stage, lines in above.items()}
    return Boxes(
        images=tuple(map(str, counts.image_ids.tolist())),
        positive_anchors=tuple(counts.num_positive_anchors.tolist()),
        num_before=tuple(counts.num_before.tolist()),
        num_after=tuple(counts.num_after.tolist()),
        **by_condition,
    )


def image_table(
    title: str, boxes: Boxes, places: Sequence[int], notes: Sequence[str], *, is_papers: bool = False
) -> Table:
    """Show the counts of some images, each before and after NMS, then their sums and those of all images."""
    columns = ("image", "NMS", "anchors", *map(_short, CONDITIONS))
    rows = [row for place in places for row in _rows(boxes.images[place], boxes, [place])]
    rows += _rows(f"these {len(places)}", boxes, places)
    if len(places) < len(boxes.images):
        rows += _rows(f"all {len(boxes.images)}", boxes, range(len(boxes.images)))
    return Table(
        title=title,
        columns=tuple(Column(name, numeric=name not in ("image", "NMS")) for name in columns),
        rows=tuple(_grey(row) for row in rows) if is_papers else tuple(rows),
        rules_before=(2 * len(places),),
        notes=tuple(notes),
    )


def papers_table(paper: Boxes, max_detections: int) -> Table:
    """Show the paper's counts as `image_table` shows ours; `max_detections` is the number of boxes that ours keep."""
    more = [f"{image} ({n})" for image, n in zip(paper.images, paper.num_after, strict=True) if n > max_detections]
    notes = [
        "Table 1 of the paper's Section 1, counted for RetinaNet; p is its cls. It does not say which images of COCO "
        "these are: others than ours, so that no differences are formed.",
        _note_on_anchors(),
    ]
    if more:
        notes.append(
            f"More than the {max_detections} boxes that are kept here: {', '.join(more)}; "
            "--set inference.max_detections=1000 counts without that limit."
        )
    title = f"Boxes before and after NMS: {THE_PAPER}"
    return image_table(title, paper, range(len(paper.images)), notes, is_papers=True)


def line_table(heads: Mapping[str, Boxes], paper: Boxes) -> Table:
    """Show the paper's lines one by one, each with its mean and range over images, of each head and of the paper."""
    sides = {**heads, _PAPER: paper}
    rows: list[tuple[Cell | Value, ...]] = []
    for stage, condition in LINES:
        counts = [_line(boxes, stage, condition) for boxes in sides.values()]
        cells = [Cell(fmean(one), interval=(min(one), max(one))) if one else Cell(None) for one in counts]
        cells[-1] = replace(cells[-1], soft=True)
        rows.append((_STAGES[stage] if condition == SCORED else "", _short(condition), *cells))
    return Table(
        title="Boxes of an image, line by line",
        columns=(Column("NMS", numeric=False), Column("boxes", numeric=False), *map(Column, sides)),
        rows=tuple(rows),
        rules_before=tuple(place for place, (_, condition) in enumerate(LINES) if condition == SCORED),
        notes=(
            "Mean over the images, and in brackets the fewest and the most of one image.",
            f"Beside ours stands {THE_PAPER}: other images, of another input size, so that no differences are formed.",
        ),
    )


def share_table(heads: Mapping[str, Boxes], paper: Boxes, notes: Sequence[str]) -> Table:
    """Show what NMS does to the shares of well-placed and of confident boxes, image by image; then the paper's."""
    rows: list[tuple[Cell | Value, ...]] = []
    rules = []
    for label, boxes in {**heads, _PAPER: paper}.items():
        rules.append(len(rows))
        by_condition = [
            numbers
            for condition in SHARES
            for numbers in (
                boxes.shares("before_nms", condition),
                boxes.shares("after_nms", condition),
                boxes.changes(condition),
            )
        ]
        lines = [(image, *numbers) for image, *numbers in zip(boxes.images, *by_condition, strict=True)]
        lines.append(("mean", *(_mean(numbers) for numbers in by_condition)))
        for place, (image, *numbers) in enumerate(lines):
            cells = [Cell(None if isnan(number) else number, absent=NOT_APPLICABLE) for number in numbers]
            row = (label if place == 0 else "", image, *cells)
            rows.append(_grey(row) if boxes is paper else row)
    columns = [Column("boxes of", numeric=False), Column("image", numeric=False)]
    for name in map(_short, SHARES):
        columns += [Column(f"{name} before"), Column(f"{name} after"), Column(f"Δ {name}", digits=2, signed=True)]
    return Table(
        title="Shares before and after NMS",
        caption="Does NMS keep the boxes that are placed well?",
        columns=tuple(columns),
        rows=tuple(rows),
        rules_before=tuple(rules),
        notes=tuple(notes),
    )


def _rows(name: str, boxes: Boxes, places: Sequence[int]) -> Iterator[tuple[Cell | Value, ...]]:
    """The row before NMS and the row after it, of these images together."""

    def total(counts: Sequence[int]) -> int:
        return sum(counts[place] for place in places)

    yield (name, "before", total(boxes.positive_anchors), *map(total, boxes.before_nms.values()))
    yield ("", "after", Cell(None, absent=""), *map(total, boxes.after_nms.values()))


def _line(boxes: Boxes, stage: str, condition: str) -> tuple[int, ...]:
    if stage == "anchors":
        return boxes.positive_anchors
    return (boxes.before_nms if stage == "before_nms" else boxes.after_nms)[condition]


def _note_on_anchors() -> str:
    sizes = ", ".join(f"{image} {anchors:,} anchors" for image, (anchors, _) in COUNTED_AT.items())
    inputs = " and ".join(f"{height} x {width}" for _, (height, width) in COUNTED_AT.values())
    return (
        f"The text gives {sizes}: 9 for each cell of inputs of {inputs}, so that the ten images were not counted at "
        "the 600 x 1000 of the experiments."
    )


def _grey(row: Sequence[Cell | Value]) -> tuple[Cell, ...]:
    return tuple(replace(cell if isinstance(cell, Cell) else Cell(cell), soft=True) for cell in row)


def _mean(numbers: Sequence[float]) -> float:
    known = [number for number in numbers if not isnan(number)]
    return fmean(known) if known else nan


def _short(condition: str) -> str:
    """A condition as a heading: `p>.05` for `cls>0.05`, `IoU>.5` for `iou>0.5`."""
    short = condition.replace("cls>", "p>").replace("iou>", "IoU>").replace("positive", "positive anchors")
    return short.replace(">0.", ">.")


def _count(where: str, image: str, text: str) -> int:
    # isdecimal alone would take digits of other scripts.
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{where}, {image}: is {text!r}, expected a whole number of boxes, such as 331")
    return int(text)


def _contradictions(boxes: Boxes) -> Iterator[str]:
    """Name counts that cannot be: a mistyped digit often makes one."""
    stages: Sequence[tuple[str, Mapping[str, tuple[int, ...]]]]
    stages = (("before_nms", boxes.before_nms), ("after_nms", boxes.after_nms))
    for stage, counts in stages:
        for looser, stricter in pairwise(CONDITIONS):
            if looser[:3] == stricter[:3]:
                yield from _more(f"{stage},{stricter}", counts[stricter], f"{stage},{looser}", counts[looser])
    for condition in CONDITIONS:
        after, before = boxes.after_nms[condition], boxes.before_nms[condition]
        yield from _more(f"after_nms,{condition}", after, f"before_nms,{condition}", before)


def _more(part: str, parts: Sequence[int], whole: str, wholes: Sequence[int]) -> Iterator[str]:
    for place, (some, most) in enumerate(zip(parts, wholes, strict=True), start=1):
        if some > most:
            yield f"{part}, image{place}: is {some}, expected at most the {most} of {whole}"
