"""Which boxes of an image tell how NMS chose: what it kept, and what it dropped although that is better placed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data.coco import CocoData
from model.evaluation.misalignment import WELL_PLACED, DroppedTable
from model.inference.table import DetectionTable

BEST = 3
"""Kept boxes that are shown wherever they lie, the best by score."""
MOST_PLACED = 10
"""Well-placed kept boxes shown at most, the best by score: one for each object."""
MOST_DROPPED = 5
"""Dropped boxes shown at most: those that lost to the best by score."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxRow:
    """One box, and what the detector says of it."""

    mark: str
    """A number for a kept box, by score; that of the kept one and a letter for a box dropped for it."""
    beaten_by: str | None
    """The mark of the kept box for which NMS dropped this one; None of a kept box."""
    label: str
    """Its class."""
    box: tuple[float, float, float, float]
    """xyxy pixels of the original image."""
    class_score: float
    confidence: float
    """NaN where the detector has no such branch."""
    score: float
    iou: float
    """With the object of its class that it overlaps most."""


def box_rows(data: CocoData, index: int, kept: DetectionTable, dropped: DroppedTable) -> list[BoxRow]:
    """The boxes of one image that are worth a look, best first, each dropped one below the box that beat it.

    Args:
        data: the images.
        index: which of them.
        kept: detections, of this image and of others.
        dropped: what NMS dropped for these detections although it is better placed.
    """
    names = dict(zip(data.category_ids, data.category_names, strict=True))
    image_id = data.image_ids[index]
    here = np.flatnonzero(kept.image_ids == image_id)
    here = here[np.argsort(-kept.scores[here], kind="stable")]
    own = kept.take(here)
    lost = np.flatnonzero(dropped.image_ids == image_id)
    winners = _winners(own, dropped, lost)
    order = np.lexsort((-dropped.ious[lost], winners))[:MOST_DROPPED]
    lost, winners = lost[order], winners[order]
    rows = []
    for number, place in enumerate(_shown(own, winners, len(data.labels(index))), start=1):
        rows.append(_row(own, place, names, str(number), None))
        for letter, which in zip("abcde", lost[winners == place], strict=False):
            rows.append(_row(dropped, which, names, f"{number}{letter}", str(number)))
    return rows


def _winners(own: DetectionTable, dropped: DroppedTable, lost: Ints) -> Ints:
    """The place of the kept box that beat each dropped one."""
    places = {key: place for place, key in enumerate(zip(own.category_ids.tolist(), own.anchors.tolist(), strict=True))}
    keys = zip(dropped.category_ids[lost].tolist(), dropped.kept_anchors[lost].tolist(), strict=True)
    return np.array([places[key] for key in keys], np.int64)


def _shown(own: DetectionTable, winners: Ints, num_objects: int) -> list[int]:
    """Places of the kept boxes to show: the best, well-placed ones, and all that beat a dropped one."""
    well_placed = np.flatnonzero(own.ious >= WELL_PLACED)[: min(num_objects, MOST_PLACED)]
    places: list[int] = np.unique(np.concatenate([np.arange(min(BEST, len(own))), well_placed, winners])).tolist()
    return places


def _row(
    table: DetectionTable | DroppedTable, place: int, names: dict[int, str], mark: str, beaten_by: str | None
) -> BoxRow:
    left, top, right, bottom = table.boxes[place].tolist()
    return BoxRow(
        mark=mark,
        beaten_by=beaten_by,
        label=names[int(table.category_ids[place])],
        box=(left, top, right, bottom),
        class_score=float(table.class_scores[place]),
        confidence=float(table.confidences[place]),
        score=float(table.scores[place]),
        iou=float(table.ious[place]),
    )
