"""The paper's counts of boxes in ten images of COCO, Table 1 of its Section 1: read from their file, and as shares."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Literal

from orchestrator.errors import UserError
from orchestrator.site import ROOT

BOXES = ROOT / "experiments" / "paper" / "boxes_of_ten_images.csv"
"""The file; it lies beside the paper's other tables."""
SCORED = "cls>0.05"
"""The condition that all boxes of the paper meet: what scores less does not reach NMS."""
CONDITIONS = (
    *(SCORED, "cls>0.5", "cls>0.6", "cls>0.7", "cls>0.8", "cls>0.9"),
    *("iou>0.5", "iou>0.6", "iou>0.7", "iou>0.8", "iou>0.9"),
)
"""A class score, or an IoU with a ground-truth box, above a threshold."""
Stage = Literal["before_nms", "after_nms"]
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
