"""What a scoring pass sees of one image before NMS and after it, under each setting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.data.coco import CocoData
from model.evaluation.misalignment import BINS, IOUS, SCORES, WELL_PLACED
from model.inference.fusion import exponents
from model.inference.nms import keep, overlap
from model.inference.postprocess import Boxes, ImagePredictions, Pool, Shortlist

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
SCORE_LIMITS = np.array(SCORES, np.float32)
IOU_LIMITS = np.array(IOUS, np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def tally_detections(class_scores: Floats, scores: Floats, ious: Floats) -> tuple[Ints, Ints, Ints]:
    """Count detections above each of SCORES and IOUS, and list the cells of those that overlap an object."""
    by_score, by_iou = np.zeros(len(SCORES), np.int64), np.zeros(len(IOUS), np.int64)
    cells, num_cells = np.empty(len(ious), np.int64), 0
    for i in range(len(ious)):
        for place in range(len(SCORES)):
            by_score[place] += class_scores[i] > SCORE_LIMITS[place]
        for place in range(len(IOUS)):
            by_iou[place] += ious[i] > IOU_LIMITS[place]
        if ious[i] > 0:
            cells[num_cells] = _cell(scores[i], ious[i])
            num_cells += 1
    return by_score, by_iou, cells[:num_cells]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _cell(score: np.float32, iou: np.float32) -> int:
    return min(int(score * BINS), BINS - 1) * BINS + min(int(iou * BINS), BINS - 1)


@njit(nogil=True, cache=True, error_model="numpy")
def overlaps(boxes: Floats, num_classes: int, truths: Floats, labels: Ints) -> tuple[Floats, Ints]:
    """[n, K] IoU of each box with the object of each class that it overlaps most, and which; 0 and -1 where none."""
    ious = np.zeros((len(boxes), num_classes), np.float32)
    which = np.full((len(boxes), num_classes), -1)
    for g in range(len(truths)):
        for i in range(len(boxes)):
            iou = overlap(boxes[i], truths[g])
            if iou > ious[i, labels[g]]:
                ious[i, labels[g]] = iou
                which[i, labels[g]] = g
    return ious, which


@njit(nogil=True, cache=True, error_model="numpy")
def best_overlaps(boxes: Floats, classes: Ints, truths: Floats, labels: Ints) -> Floats:
    """[n] IoU of each box with the object of its class that it overlaps most."""
    ious = np.zeros(len(boxes), np.float32)
    for i in range(len(boxes)):
        for g in range(len(truths)):
            if labels[g] == classes[i]:
                iou = overlap(boxes[i], truths[g])
                if iou > ious[i]:
                    ious[i] = iou
    return ious


@njit(nogil=True, cache=True, error_model="numpy")
def tally_candidates(
    rows: Ints,
    probabilities: Floats,
    log_probabilities: Floats,
    log_confidences: Floats,
    of_class: np.float32,
    of_confidence: np.float32,
    threshold: np.float32,
    floor: Floats,
    ious: Floats,
) -> tuple[int, Ints, Ints, Ints, Ints, Ints, Floats]:
    """Count candidates, and list those that overlap an object (by cell) or lie well on one (row, class, log score)."""
    num_classes = log_probabilities.shape[1]
    num, by_score, by_iou = 0, np.zeros(len(SCORES), np.int64), np.zeros(len(IOUS), np.int64)
    most = len(rows) * num_classes  # memory that is never touched costs nothing
    cells, num_cells, num_placed = np.empty(most, np.int64), 0, 0
    row, label, scores = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)
    for i in range(len(rows)):
        u = rows[i]
        for k in range(num_classes):
            total = of_class * log_probabilities[u, k] + of_confidence * log_confidences[i]
            if total > threshold and total >= floor[i]:
                num += 1
                if probabilities[u, k] > SCORE_LIMITS[0]:
                    for place in range(len(SCORES)):
                        by_score[place] += probabilities[u, k] > SCORE_LIMITS[place]
                iou = ious[u, k]
                if iou > 0:
                    cells[num_cells] = _cell(np.exp(total), iou)
                    num_cells += 1
                    for place in range(len(IOUS)):
                        by_iou[place] += iou > IOU_LIMITS[place]
                    if iou >= WELL_PLACED:
                        row[num_placed], label[num_placed], scores[num_placed] = i, k, total
                        num_placed += 1
    return num, by_score, by_iou, cells[:num_cells], row[:num_placed], label[:num_placed], scores[:num_placed]


@njit(nogil=True, cache=True, error_model="numpy")
def beaten(
    boxes: Floats,
    labels: Ints,
    scores: Floats,
    anchors: Ints,
    own: Floats,
    object_of: Ints,
    kept: Floats,
    kept_labels: Ints,
    kept_scores: Floats,
    kept_anchors: Ints,
    truths: Floats,
    nms_iou: np.float32,
) -> tuple[Ints, Ints, Floats, Ints]:
    """Of each kept box and object, the best box dropped for it that is placed better, and how many there are."""
    best = np.full((len(kept), len(truths)), -1)
    counts = np.zeros((len(kept), len(truths)), np.int64)
    for w in range(len(boxes)):
        for k in range(len(kept)):
            if kept_labels[k] == labels[w]:
                tie = kept_scores[k] == scores[w]
                if kept_scores[k] < scores[w] or (tie and kept_anchors[k] >= anchors[w]):
                    break  # from here on they come after it
                if overlap(kept[k], boxes[w]) > nms_iou:
                    g = object_of[w]
                    if own[w] > overlap(kept[k], truths[g]):
                        counts[k, g] += 1
                        if best[k, g] < 0 or own[w] > own[best[k, g]]:
                            best[k, g] = w
                    break
    number = np.count_nonzero(counts)
    chosen, by, ious, nums = (
        np.empty(number, np.int64),
        np.empty(number, np.int64),
        np.empty(number, np.float32),
        np.empty(number, np.int64),
    )
    place = 0
    for k in range(len(kept)):
        for g in range(len(truths)):
            if counts[k, g]:
                chosen[place], by[place], nums[place] = best[k, g], k, counts[k, g]
                ious[place] = overlap(kept[k], truths[g])
                place += 1
    return chosen, by, ious, nums


NEAREST = np.float32(4e-7)
"""What a logarithm may lose of a score."""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """What there is to find on an image; crowds left out."""

    boxes: Floats
    """[G, 4] xyxy pixels of the original image."""
    labels: Ints
    """[G] from 0."""
    rows: Ints
    """[G] among the annotations of the data set."""


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """Boxes that NMS dropped in favour of one that is placed worse; see `misalignment.DroppedTable`."""

    boxes: Boxes
    ious: Floats
    kept_anchors: Ints
    kept_ious: Floats
    objects: Ints
    counts: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """One image under one setting; see `misalignment.Misalignment`."""

    num_before: int
    scores_before: Ints
    ious_before: Ints
    scores_after: Ints
    ious_after: Ints
    cells_before: Ints
    """Cells of the density, one for each candidate that overlaps an object."""
    cells_after: Ints
    dropped: Dropped
    dropped_levels: NDArray[np.int8]
    oracle: tuple[Boxes, Floats]
    """What NMS by IoU would keep, and the IoUs."""
    oracle_levels: NDArray[np.int8]


def objects_of(data: CocoData, index: int) -> Objects:
    """The objects of one image."""
    start, stop = data.offsets[index : index + 2].tolist()
    rows = np.flatnonzero(~data.annotation_crowds[start:stop]) + start
    low, side = data.annotation_boxes[rows, :2], data.annotation_boxes[rows, 2:]
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    return Objects(boxes, data.annotation_labels[rows].astype(np.int64), rows)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One image under one setting."""

    index: int
    """Its place in the data set."""
    num_objects: int
    num_positive_anchors: int
    detections: Boxes
    levels: NDArray[np.int8]
    """[D] of the feature pyramid, 3 to 7."""
    ious: Floats
    """[D]."""
    counts: Counts | None


def see(
    image: ImagePredictions,
    pool: Pool,
    lists: Sequence[Shortlist],
    detections: Sequence[Boxes],
    objects: Objects,
    index: int,
    num_positive_anchors: int,
    *,
    counting: bool,
) -> list[Seen]:
    """What a pass keeps of an image, under each setting.

    Args:
        image: what the detector says of it.
        pool: what the settings shortlist of that.
        lists: what each setting sends to NMS.
        detections: what NMS keeps of that.
        objects: what there is to find.
        index: place of the image in the data set.
        num_positive_anchors: that training would match with an object.
        counting: whether to count boxes before and after NMS.
    """
    ious = [best_overlaps(kept.boxes, kept.labels, objects.boxes, objects.labels) for kept in detections]
    counts = _count(image, pool, lists, detections, ious, objects) if counting else [None] * len(lists)
    return [
        Seen(index, len(objects.labels), num_positive_anchors, kept, image.levels(kept.anchors), of_kept, of_setting)
        for kept, of_kept, of_setting in zip(detections, ious, counts, strict=True)
    ]


def _count(
    image: ImagePredictions,
    pool: Pool,
    lists: Sequence[Shortlist],
    detections: Sequence[Boxes],
    kept_ious: Sequence[Floats],
    objects: Objects,
) -> list[Counts]:
    """Count what each setting sends to NMS, what NMS keeps, and what it drops although it is better placed."""
    log_confidences = np.nan_to_num(pool.log_confidences)
    ious, which = overlaps(pool.boxes, image.num_classes, objects.boxes, objects.labels)
    found = []
    for one, kept, kept_iou in zip(lists, detections, kept_ious, strict=True):
        rows = pool.place_of[one.anchors]
        of_class, of_confidence = exponents(one.config)
        floor = (
            np.full(len(rows), -np.inf, np.float32)
            if one.floor is None
            else np.log(np.maximum(one.floor, 1e-30)) - NEAREST
        )
        if one.config.min_confidence > 0.0:
            floor[~(pool.confidences[rows] > np.float32(one.config.min_confidence))] = np.inf
        threshold = np.float32(np.log(max(one.config.score_threshold, 1e-30)))
        logs = pool.probabilities, pool.log_probabilities, log_confidences[rows] * one.fused
        num, by_score, by_iou, cells, row, label, total = tally_candidates(
            rows, *logs, of_class, of_confidence, threshold, floor, ious
        )
        place = rows[row]
        well_placed = pool.take(place, label, np.exp(total))
        own, object_of = ious[place, label], which[place, label]
        by_score_after, by_iou_after, cells_after = tally_detections(kept.class_scores, kept.scores, kept_iou)
        dropped = _dropped(well_placed, own, object_of, kept, objects, one.config)
        oracle = _oracle(well_placed, own, one.config)
        found.append(
            Counts(
                num_before=num,
                scores_before=by_score,
                ious_before=by_iou,
                scores_after=by_score_after,
                ious_after=by_iou_after,
                cells_before=cells,
                cells_after=cells_after,
                dropped=dropped,
                dropped_levels=image.levels(dropped.boxes.anchors),
                oracle=oracle,
                oracle_levels=image.levels(oracle[0].anchors),
            )
        )
    return found


def _dropped(
    boxes: Boxes, own: Floats, object_of: Ints, kept: Boxes, objects: Objects, config: InferenceConfig
) -> Dropped:
    chosen, by, kept_ious, counts = beaten(
        *(boxes.boxes, boxes.labels, boxes.scores, boxes.anchors, own, object_of),
        *(kept.boxes, kept.labels, kept.scores, kept.anchors),
        objects.boxes,
        np.float32(config.nms_iou),
    )
    return Dropped(
        boxes.take(chosen), own[chosen], kept.anchors[by], kept_ious, objects.rows[object_of[chosen]], counts
    )


def _oracle(boxes: Boxes, own: Floats, config: InferenceConfig) -> tuple[Boxes, Floats]:
    order = np.argsort(-own, kind="stable")
    ranks = order[keep(boxes.boxes[order], boxes.labels[order], np.float32(config.nms_iou), config.max_detections)]
    return boxes.take(ranks), own[ranks]
