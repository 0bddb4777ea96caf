"""What becomes of each detection at IoU 0.5: the IoU with the object that it finds, 0 if it finds none."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data.split import CocoData
from model.evaluation.coco.matches import MAX_DETECTIONS, places, written_overlap
from model.inference.table import DetectionTable

FOUND = 0.5
"""The IoU from which a detection finds an object: tau of LaECE and LRP."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """The detections that count, in the order of their table; those that COCO ignores, on crowds, are left out."""

    rows: Ints
    """[D] where each stands in the table."""
    labels: Ints
    """[D] places among the data's categories."""
    scores: Floats
    """[D]."""
    ious: Floats
    """[D] u: at least FOUND of a true positive, 0 of a false one."""
    num_objects: Ints
    """[K] objects to find of each category, crowds left out."""


def outcomes(data: CocoData, detections: DetectionTable) -> Outcomes:
    """Match detections with objects by COCO's rule at one threshold; see `written_outcomes`."""
    boxes = detections.boxes.astype(np.float64)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    scores = detections.scores.astype(np.float64)
    return written_outcomes(data, detections.image_ids, detections.category_ids, sides, scores)


def written_outcomes(data: CocoData, image_ids: Ints, category_ids: Ints, boxes: Floats, scores: Floats) -> Outcomes:
    """Match detections as they are written with objects: best first, each takes the free one that it overlaps most.

    It is `matches.match` at IoU 0.5 alone, with the overlaps: of one image and category, the best 100 detections
    count; of objects that are overlapped alike the last is taken; what finds none and lies on a crowd is ignored.

    Args:
        data: the images.
        image_ids: [D].
        category_ids: [D].
        boxes: [D, 4], x, y, width and height.
        scores: [D].

    Raises:
        ValueError: a detection's image or category is none of the data's.
    """
    num_categories = len(data.category_ids)
    labels = places(category_ids, np.array(data.category_ids, np.int64), "category")
    images = places(image_ids, data.image_ids, "image")
    cells = images * num_categories + labels
    # Most detectors keep no more than that of a whole image.
    is_long = np.bincount(images, minlength=1).max() > MAX_DETECTIONS
    rows = _counted(cells, scores) if is_long else np.arange(len(cells))
    if len(rows) < len(cells):
        labels, cells, boxes, scores = labels[rows], cells[rows], boxes[rows], scores[rows]
    of_detection, of_object, overlaps = _close_pairs(data, cells, boxes)
    # lexsort's first key is its last argument: best first, then by detection, objects before crowds, larger IoU, later.
    crowds = data.annotation_crowds[of_object]
    order = np.lexsort((-of_object, -overlaps, crowds, of_detection, -scores[of_detection]))
    ious, ignored = np.zeros(len(scores)), np.zeros(len(scores), np.bool_)
    done, free = bytearray(len(scores)), bytearray(b"\1") * len(data.annotation_crowds)
    pairs = (of_detection[order], of_object[order], crowds[order], order)
    taken = []
    for detection, thing, crowd, pair in zip(*(values.tolist() for values in pairs), strict=True):
        # A crowd is never used up: any number of detections may lie on it.
        if not done[detection] and (crowd or free[thing]):
            done[detection], free[thing] = 1, 0
            taken.append(pair)
    chosen = np.array(taken, np.int64)
    is_crowd = crowds[chosen]
    ious[of_detection[chosen[~is_crowd]]] = overlaps[chosen[~is_crowd]]
    ignored[of_detection[chosen[is_crowd]]] = True
    counted = np.flatnonzero(~ignored)
    objects = data.annotation_labels[~data.annotation_crowds]
    return Outcomes(
        rows=rows[counted],
        labels=labels[counted],
        scores=scores[counted],
        ious=ious[counted],
        num_objects=np.bincount(objects, minlength=num_categories).astype(np.int64),
    )


def _counted(cells: Ints, scores: Floats) -> Ints:
    """Return the rows of the best of each image and category, rising."""
    _, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
    order = np.lexsort((-scores, inverse))  # of equal scores the first row comes first
    ranks = np.arange(len(cells)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[ranks < MAX_DETECTIONS])


def _close_pairs(data: CocoData, cells: Ints, boxes: Floats) -> tuple[Ints, Ints, Floats]:
    """Pair detections with the objects of their image and category that they overlap by FOUND or more.

    Returns:
        [P] rows of detections, [P] of annotations, and their [P] IoUs; with a crowd, the share of the box on it.
    """
    images = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    of_objects = images * len(data.category_ids) + data.annotation_labels
    by_cell = np.argsort(of_objects, kind="stable")
    held, first, count = np.unique(of_objects[by_cell], return_index=True, return_counts=True)
    where = np.searchsorted(held, cells)
    hit = np.flatnonzero(np.append(held, -1)[where] == cells)
    where = where[hit]
    of_detection = np.repeat(hit, count[where])
    ends = np.cumsum(count[where])
    rank = np.arange(len(of_detection)) - np.repeat(ends - count[where], count[where])
    of_object = by_cell[np.repeat(first[where], count[where]) + rank]
    overlaps = written_overlap(boxes[of_detection], data.annotation_boxes[of_object], data.annotation_crowds[of_object])
    close = overlaps >= FOUND
    return of_detection[close], of_object[close], overlaps[close]
