"""The losses of a detector, of its classes, boxes and confidences, each summed over a batch.

Sums are divided by the positive anchors of the *global* batch (samples.loss_normalizer), so that any split of the batch
over workers and accumulation steps adds up to the same update.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.assignment.samples import NEGATIVE, Assignment, GroundTruth, positives
from model.config import ConfidenceConfig, ModelConfig
from model.losses.boxes import box_loss, centerness, distribution_focal_loss
from model.losses.classification import classification_loss
from model.losses.confidence import confidence_loss
from model.network.anchors import NUM_ANCHORS, STRIDES, AnchorGrid, at_least_float32, decode, edge_distances, encode
from model.network.overlaps import aligned_iou
from model.network.retinanet import Predictions, flat, per_anchor


@dataclass(frozen=True, slots=True)
class Losses:
    """The three losses by level, [L] each; the total is their plain sum."""

    classification: Tensor
    box: Tensor
    confidence: Tensor

    @property
    def total(self) -> Tensor:
        """[] the number that training minimises."""
        return self.classification.sum() + self.box.sum() + self.confidence.sum()


def detector_losses(
    predictions: Predictions,
    grid: AnchorGrid,
    assignment: Assignment,
    truth: GroundTruth,
    normalizer: Tensor,
    config: ModelConfig,
) -> Losses:
    """Losses of one batch, or of one part of it.

    Args:
        predictions: B images, N anchors.
        grid: the N anchors.
        assignment: from assignment.assign.assign.
        truth: the boxes that it points into.
        normalizer: [] samples of the global batch.
        config: which losses.
    """
    assigned, branch = assignment.assigned, config.confidence
    learners = _learners(assigned, grid.boxes, truth)
    anchors = learners.anchors
    deltas = at_least_float32(flat(predictions.box_deltas, 4).flatten(0, 1)[learners.chosen])
    targets = encode(anchors, learners.boxes)
    predicted = wanted = iou = None
    reads_iou = (branch is not None and branch.target == "iou") or config.classification.uses_quality
    if reads_iou or config.box.loss != "l1":
        # The decoded target instead of the box itself: decoding clamps dw and dh, and both sides have to.
        predicted, wanted = decode(anchors, deltas), decode(anchors, targets)
        iou = aligned_iou(predicted, wanted) if reads_iou else None

    def everywhere(values: Tensor) -> Tensor:
        """[B, N] values [P] of the anchors that learn boxes, 0 of all others."""
        whole = values.new_zeros(assigned.shape).flatten()
        whole[learners.chosen] = torch.where(learners.positive, values, 0.0)
        return whole.view(assigned.shape)

    quality = None
    if config.classification.uses_quality:
        quality = assignment.alignment
        if config.classification.quality == "iou":
            assert iou is not None
            quality = everywhere(iou.detach())
    labels = torch.where(assigned >= 0, _rows(truth.labels, assigned), assigned)
    classification = _classification_sums(predictions.class_logits, labels, quality, grid, config)

    if config.box.loss == "l1":
        box = (deltas - targets).abs().sum(dim=1)
    else:
        assert predicted is not None and wanted is not None
        box = box_loss(config.box.loss, predicted, wanted)
    box = _level_sums(everywhere(box), grid) * config.box.loss_weight
    if predictions.edge_logits is not None:
        distribution = _distribution_sums(predictions.edge_logits, assigned, truth, grid)
        box = box + config.box.distribution_loss_weight * distribution

    confidence = torch.zeros_like(box)
    if branch is not None and predictions.confidence_logits is not None:
        if branch.target == "centerness":
            target = centerness(anchors, learners.boxes)
        else:
            assert iou is not None
            # Released: not detached. For CE the gradient in the IoU is minus the logit, and reaches the box tower.
            target = iou.detach() if branch.detach_iou_target else iou
        logits = at_least_float32(flat(predictions.confidence_logits, 1)[..., 0])
        of_positives = everywhere(confidence_loss(logits.flatten()[learners.chosen], target, branch))
        confidence = _confidence_sums(of_positives, logits, assigned, grid, branch)
    return Losses(classification / normalizer, box / normalizer, confidence / normalizer)


@dataclass(frozen=True, slots=True)
class _Learners:
    """The P anchors that learn boxes; or all of them, where the positive ones cannot be listed."""

    chosen: Tensor | slice
    """[P] their places in [B*N]."""
    positive: Tensor
    """[P] whether it learns a box."""
    anchors: Tensor
    """[P, 4]."""
    boxes: Tensor
    """[P, 4] the box that each learns, or itself."""


def _learners(assigned: Tensor, anchors: Tensor, truth: GroundTruth) -> _Learners:
    """Those among anchors [N, 4] of B images, by assigned [B, N]."""
    listed = positives(assigned)
    chosen = slice(None) if listed is None else listed
    matched = assigned.flatten()[chosen]
    anchors = anchors.expand(len(assigned), -1, -1).flatten(0, 1)[chosen]
    boxes = torch.where(matched[:, None] >= 0, _rows(truth.boxes, matched), anchors)
    return _Learners(chosen, matched >= 0, anchors, boxes)


def _classification_sums(
    class_logits: list[Tensor], labels: Tensor, quality: Tensor | None, grid: AnchorGrid, config: ModelConfig
) -> Tensor:
    """[L] weighted losses of maps [B, 9*K, h, w] with labels and quality [B, N]."""
    lengths = grid.level_lengths
    qualities = [None] * len(lengths) if quality is None else torch.split(quality, lengths, dim=1)
    sums = []
    for logits, label, level in zip(class_logits, torch.split(labels, lengths, dim=1), qualities, strict=True):
        rows = per_anchor(logits, logits.shape[1] // NUM_ANCHORS).flatten(0, 1)
        target = None if level is None else level.flatten()
        sums.append(classification_loss(rows, label.flatten(), target, config))
    return torch.stack(sums) * config.classification.loss_weight


def _confidence_sums(
    of_positives: Tensor, logits: Tensor, assigned: Tensor, grid: AnchorGrid, config: ConfidenceConfig
) -> Tensor:
    """[L] weighted losses of positives, and of negatives where they count, all [B, N]."""
    sums = _level_sums(of_positives, grid)
    if config.negative_weight > 0:
        background = functional.softplus(logits)
        if config.loss == "gfocal":  # Eq. 13 at a target of 0
            background = logits.sigmoid() ** config.gfocal_gamma * background
        background = background * (assigned == NEGATIVE)
        sums = sums + config.negative_weight * _level_sums(background, grid)
    return sums * config.loss_weight


def _distribution_sums(edge_logits: list[Tensor], assigned: Tensor, truth: GroundTruth, grid: AnchorGrid) -> Tensor:
    """[L] DFL of maps [B, 9*4*n, h, w], the mean of the four edges of each anchor that learns a box (GFL)."""
    lengths, sums = grid.level_lengths, []
    parts = zip(STRIDES, edge_logits, torch.split(grid.boxes, lengths), torch.split(assigned, lengths, 1), strict=True)
    # Level by level: a copy of the distributions of all anchors would take as much as that of all classes.
    for stride, logits, anchors, matched in parts:
        bins = logits.shape[1] // (4 * NUM_ANCHORS)
        learners = _learners(matched, anchors, truth)
        rows = per_anchor(logits, 4 * bins).flatten(0, 1)[learners.chosen].view(-1, 4, bins)
        # Below the last distance, so that both neighbours of the target are there (released: 0.01).
        target = (edge_distances(learners.anchors, learners.boxes) / stride).clamp(0, bins - 1 - 0.01)
        loss = distribution_focal_loss(rows, target).mean(dim=1)
        sums.append(torch.where(learners.positive, loss, 0.0).sum())
    return torch.stack(sums)


def _rows(table: Tensor, assigned: Tensor) -> Tensor:
    """table[assigned], with a row of zeros for every anchor that learns no box."""
    table = torch.cat([table, table.new_zeros(1, *table.shape[1:])])
    if not table.is_cuda:
        return table[assigned.clamp(min=-1)]
    # Number by number: where a million anchors want the same row, CUDA's way to copy rows took 0.6 ms (H100).
    row = torch.where(assigned >= 0, assigned, len(table) - 1)
    if table.ndim == 1:
        return table.take(row)
    return table.take(row[..., None] * table.shape[1] + torch.arange(table.shape[1], device=table.device))


def _level_sums(per_anchor: Tensor, grid: AnchorGrid) -> Tensor:
    """[B, N] -> [L]."""
    return torch.stack([level.sum() for level in torch.split(per_anchor, grid.level_lengths, dim=1)])
