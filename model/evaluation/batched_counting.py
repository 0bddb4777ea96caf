"""What `counting` counts, of a whole batch under many settings: on the accelerator what is large, then on the host.

The counts are those of `counting.image_parts`, but for candidates whose score or overlap is within rounding of a limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from model.config import InferenceConfig
from model.evaluation.counting import (
    Objects,
    are_detections,
    beaten,
    best_overlaps,
    by_distance,
    count_detections,
    ranks,
)
from model.evaluation.misalignment import BINS, IOUS, SCORES, WELL_PLACED, DroppedTable, Misalignment
from model.evaluation.parts import Part
from model.inference.batched import to_host
from model.inference.batched_scores import BatchPredictions, Scored
from model.inference.suppression.batched_nms import overlaps
from model.inference.suppression.nms import keep
from model.inference.table import DetectionTable
from model.network.anchors import FIRST_LEVEL

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BatchObjects:
    """The ground-truth objects of B images in one list, image after image; those of an image by class."""

    boxes: Floats
    """[M, 4] xyxy pixels of the original images."""
    labels: Ints
    """[M] from 0."""
    rows: Ints
    """[M] among the annotations of the data set."""
    ends: Ints
    """[B + 1] where the objects of each image end; the first is 0."""

    def padded(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Boxes [B, G, 4] and labels [B, G] on the device, -1 where an image has fewer than G."""
        sizes = np.diff(self.ends)
        image = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(image)) - self.ends[image]
        most = max(1, int(sizes.max(initial=0)))
        boxes, labels = np.zeros((len(sizes), most, 4), np.float32), np.full((len(sizes), most), -1)
        boxes[image, place], labels[image, place] = self.boxes, self.labels
        return torch.from_numpy(boxes).to(device), torch.from_numpy(labels).to(device)


def batch_objects(of_images: Sequence[Objects]) -> BatchObjects:
    """Join the objects of some images."""
    # By class, so that the pairs of an anchor and a class come in the order of the classes.
    orders = [np.argsort(objects.labels, kind="stable") for objects in of_images]
    parts = list(zip(of_images, orders, strict=True))
    return BatchObjects(
        boxes=np.concatenate([objects.boxes[order] for objects, order in parts]).reshape(-1, 4),
        labels=np.concatenate([objects.labels[order] for objects, order in parts]),
        rows=np.concatenate([objects.rows[order] for objects, order in parts]),
        ends=np.cumsum([0, *map(len, orders)]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted:
    """What is counted of the candidates of B images under S settings, and W of them that are well placed under any."""

    num: NDArray[np.int32]
    """[B, S] candidates."""
    by_score: NDArray[np.int32]
    """[B, S, 6]."""
    by_iou: NDArray[np.int32]
    """[B, S, 5]."""
    density: NDArray[np.int32]
    """[S, BINS * BINS]."""
    well_placed: DetectionTable
    """[W] by image, anchor and class; scores are 0, and image ids places in the batch, and categories classes."""
    object_of: Ints
    """[W] among all objects of the batch."""
    scores: Floats
    """[W, S]; 0 under a setting where the pair is no candidate."""


def count_candidates(images: BatchPredictions, scored: Scored, objects: BatchObjects) -> Counted:
    """Count the candidates of all settings; the host waits for the device.

    Args:
        images: that were scored.
        scored: their candidates.
        objects: of the images.
    """
    device = images.boxes.device
    num_images, num_settings, num_rows, _ = scored.log_scores.shape
    is_candidate = scored.log_scores > -torch.inf
    num = is_candidate.sum(dim=(2, 3), dtype=torch.int32)
    logits = scored.class_logits.masked_fill(~is_candidate, -torch.inf)
    # p > t, of the logits.
    by_score = [(logits > math.log(t / (1 - t))).sum(dim=(2, 3), dtype=torch.int32) for t in SCORES]
    del is_candidate, logits
    # [B, S, N] the row of each anchor; -1 where it is not on the list.
    row_of = torch.full((num_images, num_settings, images.boxes.shape[1]), -1, dtype=torch.int32, device=device)
    row_of.scatter_(
        2, scored.anchors, torch.arange(num_rows, dtype=torch.int32, device=device).expand_as(scored.anchors)
    )
    image, anchor, which, iou, label = _on_objects(images, (row_of >= 0).any(dim=1), *objects.padded(device))
    setting = torch.arange(num_settings, device=device)
    row = row_of[image[:, None], setting, anchor[:, None]]
    log_scores = scored.log_scores[image[:, None], setting, row.clamp(min=0), label[:, None]]
    scores = log_scores.exp() * (row >= 0)  # [T, S]
    above = (scores > 0)[..., None] & (iou[:, None] > torch.tensor(IOUS, device=device))[:, None]
    by_iou = torch.zeros(num_images, num_settings, len(IOUS), dtype=torch.int32, device=device)
    by_iou.index_add_(0, image, above.int())
    bins = _bin(scores) * BINS + _bin(iou)[:, None] + setting * BINS**2
    density = torch.bincount(bins[scores > 0], minlength=num_settings * BINS**2)
    placed = ((iou >= WELL_PLACED) & (scores > 0).any(dim=1)).nonzero()[:, 0]
    image, anchor, which, label = image[placed], anchor[placed], which[placed], label[placed]
    class_scores = images.class_logits[image, anchor, label].float().sigmoid()
    confidences = torch.full_like(class_scores, torch.nan)
    if images.confidence_logits is not None:
        confidences = images.confidence_logits[image, anchor].sigmoid()
    floats = torch.cat(
        [torch.stack([iou[placed], class_scores, confidences], dim=1), images.boxes[image, anchor]], dim=1
    )
    floats = torch.cat([floats, scores[placed]], dim=1)
    whole = torch.stack([image, anchor, label, which], dim=1)
    host = to_host([num, torch.stack(by_score, dim=2), by_iou, density, whole, floats.view(torch.int32)])
    return _counted(host, objects, images.level_lengths)


def _on_objects(
    images: BatchPredictions, listed: Tensor, truths: Tensor, names: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pairs of a listed anchor [B, N] and a class of which it overlaps an object, rising.

    Returns:
        [T] each: image, anchor, the object of that class that it overlaps most, the IoU, the class.
    """
    image, anchor = listed.nonzero().unbind(1)
    ious = overlaps(images.boxes[image, anchor][:, None], truths[image])[:, 0]
    ious = torch.where(names[image] >= 0, ious, 0.0).nan_to_num_(0.0)
    row, which = (ious > 0).nonzero().unbind(1)
    image, anchor, iou = image[row], anchor[row], ious[row, which]
    label = names[image, which]
    # Objects are sorted by class, so that pairs of one anchor and one class come in a row.
    starts = torch.ones_like(row, dtype=torch.bool)
    starts[1:] = (row[1:] != row[:-1]) | (label[1:] != label[:-1])
    group, place = starts.cumsum(0) - 1, torch.arange(len(row), device=row.device)
    most = torch.zeros_like(iou).scatter_reduce_(0, group, iou, "amax")
    # Of objects that it overlaps alike, the first.
    among = torch.where(iou == most[group], place, len(row))
    best = torch.full_like(place, len(row)).scatter_reduce_(0, group, among, "amin")[group] == place
    return image[best], anchor[best], which[best], iou[best], label[best]


def _bin(values: Tensor) -> Tensor:
    return (values.double() * BINS).long().clamp_(max=BINS - 1)


def _counted(arrays: list[NDArray[np.int32]], objects: BatchObjects, level_lengths: Sequence[int]) -> Counted:
    num, by_score, by_iou, density, whole, bits = arrays
    image, anchor, label, which = whole.T
    floats = np.ascontiguousarray(bits).view(np.float32)
    well_placed = DetectionTable(
        image_ids=image.astype(np.int64),
        category_ids=label.astype(np.int64),
        boxes=np.ascontiguousarray(floats[:, 3:7]),
        scores=np.zeros(len(floats), np.float32),
        class_scores=floats[:, 1].copy(),
        confidences=floats[:, 2].copy(),
        ious=floats[:, 0].copy(),
        levels=(FIRST_LEVEL + np.searchsorted(np.cumsum(level_lengths), anchor, side="right")).astype(np.int8),
        anchors=anchor.copy(),
    )
    return Counted(
        num=num,
        by_score=by_score,
        by_iou=by_iou,
        density=density.reshape(num.shape[1], -1),
        well_placed=well_placed,
        object_of=objects.ends[image] + which,
        scores=floats[:, 7:],
    )


def with_ious(
    kept: DetectionTable, kept_ends: Ints, objects: BatchObjects, category_ids: NDArray[np.int64]
) -> DetectionTable:
    """The detections of a batch, with the IoUs with their objects.

    Args:
        kept: image after image.
        kept_ends: [B + 1] where those of each image end; the first is 0.
        objects: of the images.
        category_ids: [K] of the classes, rising.
    """
    categories = category_ids[objects.labels]
    return replace(
        kept, ious=_best_overlaps(kept.boxes, kept.category_ids, kept_ends, objects.boxes, categories, objects.ends)
    )


def batch_part(
    counted: Counted,
    place: int,
    config: InferenceConfig,
    kept: DetectionTable,
    kept_ends: Ints,
    objects: BatchObjects,
    image_ids: NDArray[np.int64],
    category_ids: NDArray[np.int64],
    num_positive_anchors: NDArray[np.int32],
    droppers: tuple[DetectionTable, Ints] | None = None,
) -> Part:
    """What a scoring pass finds on a batch under one setting.

    Args:
        counted: of the candidates.
        place: of the setting among those that were counted.
        config: the setting.
        kept: what NMS keeps, with IoUs.
        kept_ends: as in `with_ious`.
        objects: of the images.
        image_ids: [B].
        category_ids: [K] of the classes, rising.
        num_positive_anchors: [B] that training would assign an object.
        droppers: what dropped others, and where those of each image end; None where these are the detections.
    """
    by_score, by_iou, density = _count_detections(kept.class_scores, kept.scores, kept.ious, kept_ends)
    rows = np.flatnonzero(counted.scores[:, place])
    here, object_of = counted.well_placed.take(rows), counted.object_of[rows]
    labels, ends = here.category_ids, np.searchsorted(here.image_ids, np.arange(len(image_ids) + 1))
    here = replace(
        here,
        image_ids=image_ids[here.image_ids],
        category_ids=category_ids[labels],
        scores=np.ascontiguousarray(counted.scores[rows, place]),
    )
    winners, winner_ends = (kept, kept_ends) if droppers is None else droppers
    chosen, by, kept_ious, counts = _beaten(
        here.boxes,
        here.category_ids,
        ranks(here, config),
        here.anchors,
        here.ious,
        object_of,
        ends,
        winners.boxes,
        winners.category_ids,
        winners.scores,
        winners.anchors,
        winner_ends,
        objects.boxes,
        objects.ends,
        np.float32(config.nms_iou),
        by_distance(config),
    )
    if config.suppression == "iou_guided":
        stays = are_detections(winners, kept)[by]
        chosen, by, kept_ious, counts = chosen[stays], by[stays], kept_ious[stays], counts[stays]
    best = _oracle(
        here.boxes, labels, here.ious, ends, np.float32(config.nms_iou), config.max_detections, by_distance(config)
    )
    oracle = here.take(best)
    dropped = here.take(chosen)
    misalignment = Misalignment(
        image_ids=image_ids,
        num_objects=np.diff(objects.ends).astype(np.int32),
        num_positive_anchors=num_positive_anchors,
        num_before=counted.num[:, place].copy(),
        num_after=np.diff(kept_ends).astype(np.int32),
        scores_before=counted.by_score[:, place].copy(),
        scores_after=by_score,
        ious_before=counted.by_iou[:, place].copy(),
        ious_after=by_iou,
        density_before=counted.density[place].astype(np.int64).reshape(BINS, BINS),
        density_after=density,
        dropped=DroppedTable(
            **{name: getattr(dropped, name) for name in dropped.types},
            kept_anchors=winners.anchors[by],
            kept_ious=kept_ious,
            objects=objects.rows[object_of[chosen]],
            counts=counts.astype(np.int32),
        ),
        oracle=replace(oracle, scores=oracle.ious),
    )
    return Part(kept, misalignment)


@njit(nogil=True, cache=True, error_model="numpy")
def _best_overlaps(boxes: Floats, classes: Ints, ends: Ints, truths: Floats, labels: Ints, truth_ends: Ints) -> Floats:
    ious = np.zeros(len(boxes), np.float32)
    for b in range(len(ends) - 1):
        here, there = slice(ends[b], ends[b + 1]), slice(truth_ends[b], truth_ends[b + 1])
        ious[here] = best_overlaps(boxes[here], classes[here], truths[there], labels[there])
    return ious


@njit(nogil=True, cache=True, error_model="numpy")
def _count_detections(
    class_scores: Floats, scores: Floats, ious: Floats, ends: Ints
) -> tuple[NDArray[np.int32], NDArray[np.int32], Ints]:
    num = len(ends) - 1
    by_score, by_iou = np.zeros((num, len(SCORES)), np.int32), np.zeros((num, len(IOUS)), np.int32)
    density = np.zeros((BINS, BINS), np.int64)
    for b in range(num):
        here = slice(ends[b], ends[b + 1])
        of_score, of_iou, of_both = count_detections(class_scores[here], scores[here], ious[here])
        by_score[b], by_iou[b] = of_score, of_iou
        density += of_both
    return by_score, by_iou, density


@njit(nogil=True, cache=True, error_model="numpy")
def _beaten(
    boxes: Floats,
    labels: Ints,
    scores: Floats,
    anchors: NDArray[np.int32],
    own: Floats,
    object_of: Ints,
    ends: Ints,
    kept: Floats,
    kept_labels: Ints,
    kept_scores: Floats,
    kept_anchors: NDArray[np.int32],
    kept_ends: Ints,
    truths: Floats,
    truth_ends: Ints,
    nms_iou: np.float32,
    by_distance: bool | None = None,
) -> tuple[Ints, Ints, Floats, Ints]:
    """`beaten` of each image; places are those in the batch."""
    # Each candidate is dropped for one kept box at most.
    chosen, by, nums = np.empty(len(boxes), np.int64), np.empty(len(boxes), np.int64), np.empty(len(boxes), np.int64)
    ious = np.empty(len(boxes), np.float32)
    end = 0
    for b in range(len(ends) - 1):
        here, there = slice(ends[b], ends[b + 1]), slice(kept_ends[b], kept_ends[b + 1])
        one, other, iou, num = beaten(
            boxes[here],
            labels[here],
            scores[here],
            anchors[here],
            own[here],
            object_of[here] - truth_ends[b],
            kept[there],
            kept_labels[there],
            kept_scores[there],
            kept_anchors[there],
            truths[truth_ends[b] : truth_ends[b + 1]],
            nms_iou,
            by_distance,
        )
        new = slice(end, end + len(one))
        chosen[new], by[new], ious[new], nums[new] = one + ends[b], other + kept_ends[b], iou, num
        end += len(one)
    return chosen[:end], by[:end], ious[:end], nums[:end]


@njit(nogil=True, cache=True, error_model="numpy")
def _oracle(
    boxes: Floats,
    labels: Ints,
    ious: Floats,
    ends: Ints,
    nms_iou: np.float32,
    limit: int,
    by_distance: bool | None = None,
) -> Ints:
    """Places of what NMS keeps of each image if it ranks by IoU, best first within an image."""
    chosen, end = np.empty(len(boxes), np.int64), 0
    for b in range(len(ends) - 1):
        order = np.argsort(-ious[ends[b] : ends[b + 1]], kind="mergesort") + ends[b]
        kept = order[keep(boxes[order], labels[order], nms_iou, limit, by_distance)]
        chosen[end : end + len(kept)] = kept
        end += len(kept)
    return chosen[:end]
