"""What a scoring pass sees of one image before NMS and after it, under each setting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.data.coco import CocoData
from model.evaluation.tally import beaten, best_overlaps, overlaps, tally_candidates, tally_detections
from model.inference.fusion import exponents
from model.inference.image_predictions import ImagePredictions
from model.inference.nms import keep
from model.inference.postprocess import Boxes, Pool, Shortlist

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
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
