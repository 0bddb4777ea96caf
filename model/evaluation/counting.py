"""Counts the boxes of one image before and after NMS, and finds boxes that NMS drops for one of a lower IoU.

By kind of suppression, a box is dropped for another one of its class:
- nms: that has a better score and overlaps it by more than `nms_iou`; diou: by a DIoU of more than that.
- voting: as in nms. Whether a box is placed worse is told before the vote, of the boxes that NMS compared.
- iou_guided: that has a better confidence; a winner that `max_detections` cuts off is no detection, and not counted.
- soft_*, matrix_*: never. They lower scores, and none is dropped in favour of another, so `dropped` is empty.
The oracle is greedy NMS by IoU, by DIoU for diou, with `nms_iou`; it neither votes nor lowers scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.data.split import CocoData
from model.evaluation.misalignment import BINS, IOUS, SCORES, WELL_PLACED, DroppedTable, Misalignment
from model.evaluation.parts import Part
from model.inference.fusion import exponents
from model.inference.postprocess import Pool, Shortlist, Suppressed, suppress_one
from model.inference.suppression.nms import distance_overlap, keep, overlap
from model.inference.table import DetectionTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
SCORE_LIMITS = np.array(SCORES, np.float32)
IOU_LIMITS = np.array(IOUS, np.float32)
NEAREST = np.float32(4e-7)
"""Slack on a log score: what rounding to single precision may take from it."""


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The ground-truth objects of one image; crowds left out."""

    boxes: Floats
    """[G, 4] xyxy pixels of the original image."""
    labels: Ints
    """[G] from 0."""
    rows: Ints
    """[G] among the annotations of the data set."""


def objects_of(data: CocoData, index: int) -> Objects:
    """The objects of one image."""
    start, stop = data.offsets[index : index + 2].tolist()
    rows = np.flatnonzero(~data.annotation_crowds[start:stop]) + start
    low, side = data.annotation_boxes[rows, :2], data.annotation_boxes[rows, 2:]
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    return Objects(boxes, data.annotation_labels[rows].astype(np.int64), rows)


def image_parts(
    pool: Pool, lists: Sequence[Shortlist], objects: Objects, num_positive_anchors: int | None
) -> list[Part]:
    """What a scoring pass finds on one image under each setting.

    Args:
        pool: of the image.
        lists: what each setting sends to NMS.
        objects: of the image.
        num_positive_anchors: that training would assign an object; None leaves boxes uncounted.
    """
    categories = pool.category_ids[objects.labels]
    if num_positive_anchors is not None:  # the IoUs of all that is pooled, once for all settings
        ious, object_of = overlaps(pool.boxes, len(pool.category_ids), objects.boxes, objects.labels)
    parts = []
    for one in lists:
        found = suppress_one(pool, one)
        kept, droppers = found.kept, found.droppers
        kept = replace(kept, ious=best_overlaps(kept.boxes, kept.category_ids, objects.boxes, categories))
        misalignment = None
        if num_positive_anchors is not None:
            misalignment = _count(pool, one, Suppressed(kept, droppers), objects, ious, object_of, num_positive_anchors)
        parts.append(Part(kept, misalignment))
    return parts


def _count(
    pool: Pool,
    one: Shortlist,
    found: Suppressed,
    objects: Objects,
    ious: Floats,
    object_of: Ints,
    num_positive_anchors: int,
) -> Misalignment:
    """The counts of one image: a `Misalignment` of one row.

    Args:
        pool: of the image.
        one: what the setting sends to NMS.
        found: what is kept of that, with IoUs, and what dropped others.
        objects: of the image.
        ious: [U, K] from `overlaps`.
        object_of: [U, K] from `overlaps`.
        num_positive_anchors: that training would assign an object.
    """
    config, kept = one.config, found.kept
    places = pool.place_of[one.anchors]
    of_class, of_confidence = exponents(config)
    log_confidences = np.zeros(len(places), np.float32)  # not the pool's, which are NaN without a branch
    if config.needs_confidence:
        log_confidences = pool.log_confidences[places] * one.fused
    num, scores_before, ious_before, density_before, row, label, log_score = count_candidates(
        places,
        pool.probabilities,
        pool.log_probabilities,
        log_confidences,
        of_class,
        of_confidence,
        np.float32(np.log(max(config.score_threshold, 1e-30))),
        _log_floor(pool, one, places),
        ious,
    )
    place = places[row]  # from the shortlist to the pool
    well_placed = replace(pool.take(place, label, np.exp(log_score)), ious=ious[place, label])
    scores_after, ious_after, density_after = count_detections(kept.class_scores, kept.scores, kept.ious)
    return Misalignment(
        image_ids=np.array([pool.image_id]),
        num_objects=_row(len(objects.labels)),
        num_positive_anchors=_row(num_positive_anchors),
        num_before=_row(num),
        num_after=_row(len(kept)),
        scores_before=_row(scores_before),
        scores_after=_row(scores_after),
        ious_before=_row(ious_before),
        ious_after=_row(ious_after),
        density_before=density_before,
        density_after=density_after,
        dropped=_dropped(well_placed, object_of[place, label], found, objects, config),
        oracle=_oracle(well_placed, label, config),
    )


def _row(values: object) -> NDArray[np.int32]:
    return np.array([values], np.int32)


def _log_floor(pool: Pool, one: Shortlist, places: Ints) -> Floats:
    """[R] the log score from which a pair of a shortlisted anchor and a class is a candidate; infinite for none."""
    floor = np.full(len(places), -np.inf, np.float32)
    if one.floor is not None:
        floor = np.log(np.maximum(one.floor, 1e-30)) - NEAREST
    if one.config.min_confidence > 0.0:
        floor[~(pool.confidences[places] > np.float32(one.config.min_confidence))] = np.inf
    return floor


def _dropped(
    well_placed: DetectionTable, object_of: Ints, found: Suppressed, objects: Objects, config: InferenceConfig
) -> DroppedTable:
    droppers = found.droppers
    chosen, by, kept_ious, counts = beaten(
        well_placed.boxes,
        well_placed.category_ids,
        ranks(well_placed, config),
        well_placed.anchors,
        well_placed.ious,
        object_of,
        droppers.boxes,
        droppers.category_ids,
        droppers.scores,
        droppers.anchors,
        objects.boxes,
        np.float32(config.nms_iou),
        by_distance(config),
    )
    if config.suppression == "iou_guided":
        stays = are_detections(droppers, found.kept)[by]
        chosen, by, kept_ious, counts = chosen[stays], by[stays], kept_ious[stays], counts[stays]
    columns = {name: getattr(well_placed, name)[chosen] for name in well_placed.types}
    return DroppedTable(
        **columns,
        kept_anchors=droppers.anchors[by],
        kept_ious=kept_ious,
        objects=objects.rows[object_of[chosen]],
        counts=counts.astype(np.int32),
    )


def ranks(candidates: DetectionTable, config: InferenceConfig) -> Floats:
    """[n] what decides which candidate drops which."""
    return candidates.confidences if config.suppression == "iou_guided" else candidates.scores


def by_distance(config: InferenceConfig) -> bool | None:
    """Whether DIoU decides, as compiled functions want it: None leaves the question out of what they compile."""
    return True if config.suppression == "diou" else None


def are_detections(winners: DetectionTable, kept: DetectionTable) -> NDArray[np.bool_]:
    """[W] whether each of the winners of an IoU-guided NMS is among its detections, which may be fewer."""
    detections = set(zip(kept.image_ids.tolist(), kept.anchors.tolist(), kept.category_ids.tolist(), strict=True))
    pairs = zip(winners.image_ids.tolist(), winners.anchors.tolist(), winners.category_ids.tolist(), strict=True)
    return np.array([pair in detections for pair in pairs], np.bool_)


def _oracle(well_placed: DetectionTable, labels: Ints, config: InferenceConfig) -> DetectionTable:
    order = np.argsort(-well_placed.ious, kind="stable")
    boxes, labels = well_placed.boxes[order], labels[order]
    kept = keep(boxes, labels, np.float32(config.nms_iou), config.max_detections, by_distance(config))
    ranked = well_placed.take(order[kept])
    return replace(ranked, scores=ranked.ious)


@njit(nogil=True, cache=True, error_model="numpy")
def count_candidates(
    places: Ints,
    probabilities: Floats,
    log_probabilities: Floats,
    log_confidences: Floats,
    of_class: np.float32,
    of_confidence: np.float32,
    threshold: np.float32,
    floor: Floats,
    ious: Floats,
) -> tuple[int, Ints, Ints, Ints, Ints, Ints, Floats]:
    """Count the candidates of a setting, and list the well-placed ones.

    Args:
        places: [R] in the pool, of the shortlisted anchors.
        probabilities: [U, K] of the pool.
        log_probabilities: [U, K].
        log_confidences: [R]; 0 where the confidence does not enter the score.
        of_class: the power of the class probability in the score.
        of_confidence: that of the confidence.
        threshold: the log score above which a pair is a candidate.
        floor: [R] the log score that it has to reach besides.
        ious: [U, K] with the object of the class.

    Returns:
        Number of candidates; those above each of SCORES [6] and of IOUS [5]; the density [BINS, BINS] of those that
        overlap an object; row (place in the shortlist), class and log score of each well-placed one.
    """
    num_classes = log_probabilities.shape[1]
    num, by_score, by_iou = 0, np.zeros(len(SCORES), np.int64), np.zeros(len(IOUS), np.int64)
    density, num_placed = np.zeros((BINS, BINS), np.int64), 0
    most = len(places) * num_classes  # memory that is never touched costs nothing
    row, label, scores = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)
    for i in range(len(places)):
        u = places[i]
        for k in range(num_classes):
            total = of_class * log_probabilities[u, k] + of_confidence * log_confidences[i]
            if total > threshold and total >= floor[i]:
                num += 1
                # Most pairs fail the lowest limit, so that the others are not compared.
                if probabilities[u, k] > SCORE_LIMITS[0]:
                    for limit in range(len(SCORES)):
                        by_score[limit] += probabilities[u, k] > SCORE_LIMITS[limit]
                iou = ious[u, k]
                if iou > 0:
                    density[_bin(np.exp(total)), _bin(iou)] += 1
                    for limit in range(len(IOUS)):
                        by_iou[limit] += iou > IOU_LIMITS[limit]
                    if iou >= WELL_PLACED:
                        row[num_placed], label[num_placed], scores[num_placed] = i, k, total
                        num_placed += 1
    return num, by_score, by_iou, density, row[:num_placed], label[:num_placed], scores[:num_placed]


@njit(nogil=True, cache=True, error_model="numpy")
def count_detections(class_scores: Floats, scores: Floats, ious: Floats) -> tuple[Ints, Ints, Ints]:
    """Detections above each of SCORES [6] and IOUS [5], and the density [BINS, BINS] of those on an object."""
    by_score, by_iou = np.zeros(len(SCORES), np.int64), np.zeros(len(IOUS), np.int64)
    density = np.zeros((BINS, BINS), np.int64)
    for i in range(len(ious)):
        for limit in range(len(SCORES)):
            by_score[limit] += class_scores[i] > SCORE_LIMITS[limit]
        for limit in range(len(IOUS)):
            by_iou[limit] += ious[i] > IOU_LIMITS[limit]
        if ious[i] > 0:
            density[_bin(scores[i]), _bin(ious[i])] += 1
    return by_score, by_iou, density


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _bin(value: np.float32) -> int:
    # NaN and infinity are no whole numbers: what a conversion makes of them lies far outside of any array.
    if not value < 1:
        return BINS - 1
    return min(int(value * BINS), BINS - 1) if value > 0 else 0


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
def beaten(
    boxes: Floats,
    labels: Ints,
    scores: Floats,
    anchors: NDArray[np.int32],
    own: Floats,
    object_of: Ints,
    kept: Floats,
    kept_labels: Ints,
    kept_scores: Floats,
    kept_anchors: NDArray[np.int32],
    truths: Floats,
    nms_iou: np.float32,
    by_distance: bool | None = None,
) -> tuple[Ints, Ints, Floats, Ints]:
    """Find the candidates that NMS drops for a kept box of a lower IoU with their object, by kept box and object.

    Args:
        boxes: [n, 4] of the well-placed candidates; then their classes, scores, anchors, IoUs and objects.
        labels: [n] anything that is equal for equal classes.
        scores: [n].
        anchors: [n]; of equal scores the lower one is the better.
        own: [n] IoU with the object.
        object_of: [n] the object, by its place in `truths`.
        kept: [m, 4] what NMS kept, best first; then classes, scores and anchors.
        kept_labels: [m].
        kept_scores: [m].
        kept_anchors: [m].
        truths: [G, 4] boxes of the objects.
        nms_iou: above which NMS drops a box.
        by_distance: as in `nms.keep`.

    Returns:
        For each pair of a kept box and an object: the place of the best dropped box, that of the kept box, its IoU
        with the object, and the number of better boxes dropped for it.
    """
    best = np.full((len(kept), len(truths)), -1)
    counts = np.zeros((len(kept), len(truths)), np.int64)
    for w in range(len(boxes)):
        for k in range(len(kept)):
            if kept_labels[k] == labels[w]:
                tie = kept_scores[k] == scores[w]
                if kept_scores[k] < scores[w] or (tie and kept_anchors[k] >= anchors[w]):
                    break  # from here on they come after it
                if overlap(kept[k], boxes[w]) > nms_iou and (
                    by_distance is None or distance_overlap(kept[k], boxes[w]) > nms_iou
                ):
                    g = object_of[w]
                    if own[w] > overlap(kept[k], truths[g]):
                        counts[k, g] += 1
                        if best[k, g] < 0 or own[w] > own[best[k, g]]:
                            best[k, g] = w
                    break
    num = np.count_nonzero(counts)
    chosen, by, nums = np.empty(num, np.int64), np.empty(num, np.int64), np.empty(num, np.int64)
    ious = np.empty(num, np.float32)
    place = 0
    for k in range(len(kept)):
        for g in range(len(truths)):
            if counts[k, g]:
                chosen[place], by[place], nums[place] = best[k, g], k, counts[k, g]
                ious[place] = overlap(kept[k], truths[g])
                place += 1
    return chosen, by, ious, nums
