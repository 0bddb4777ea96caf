"""Focal loss, L1 on box deltas, and the confidence losses of Table 2, each summed over a batch.

Sums are divided by the positive anchors of the *global* batch (samples.loss_normalizer), so that any split of the batch
over workers and accumulation steps adds up to the same update.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model.assignment.samples import NEGATIVE, Assignment, GroundTruth, positives
from model.config import ModelConfig
from model.losses.classification import at_least_float32, focal_loss
from model.losses.confidence import confidence_loss
from model.network.anchors import NUM_ANCHORS, AnchorGrid, decode, encode
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
        truth: the boxes that `assignment` points into.
        normalizer: [] samples of the global batch.
        config: which losses.
    """
    assigned = assignment.assigned
    labels = torch.where(assigned >= 0, _rows(truth.labels, assigned), assigned)
    levels = zip(predictions.class_logits, torch.split(labels, grid.level_lengths, dim=1), strict=True)
    classification = [_focal_sum(logits, level, config) for logits, level in levels]

    chosen = positives(assigned)
    learn = slice(None) if chosen is None else chosen  # all anchors where the positive ones cannot be listed
    positive = assigned.flatten()[learn] >= 0
    anchors = grid.boxes.expand(len(assigned), -1, -1).flatten(0, 1)[learn]
    boxes = torch.where(positive[:, None], _rows(truth.boxes, assigned.flatten()[learn]), anchors)
    deltas = at_least_float32(flat(predictions.box_deltas, 4).flatten(0, 1)[learn])
    targets = encode(anchors, boxes)

    def by_level(loss: Tensor) -> Tensor:
        whole = loss.new_zeros(assigned.shape).flatten()
        whole[learn] = torch.where(positive, loss, 0.0)
        return _level_sums(whole.view(assigned.shape), grid)

    box = by_level((deltas - targets).abs().sum(dim=1))
    confidence = torch.zeros_like(box)
    if config.confidence is not None and predictions.confidence_logits is not None:
        # The decoded target instead of the box itself: decoding clamps dw and dh, and both sides have to.
        iou = aligned_iou(decode(anchors, deltas), decode(anchors, targets))
        # Released: not detached. For CE the gradient in the IoU is minus the logit, and reaches the box tower.
        target = iou.detach() if config.confidence.detach_iou_target else iou
        logits = at_least_float32(flat(predictions.confidence_logits, 1)[..., 0])
        confidence = by_level(confidence_loss(logits.flatten()[learn], target, config.confidence))
        if config.confidence.negative_weight > 0:
            background = functional.softplus(logits)
            if config.confidence.loss == "gfocal":  # Eq. 13 at a target of 0
                background = logits.sigmoid() ** config.confidence.gfocal_gamma * background
            background = background * (assigned == NEGATIVE)
            confidence = confidence + config.confidence.negative_weight * _level_sums(background, grid)
        confidence = confidence * config.confidence.loss_weight
    return Losses(torch.stack(classification) / normalizer, box / normalizer, confidence / normalizer)


def _focal_sum(class_logits: Tensor, labels: Tensor, config: ModelConfig) -> Tensor:
    """[] focal loss of one level [B, 9*K, h, w] with labels [B, h*w*9]."""
    rows = per_anchor(class_logits, class_logits.shape[1] // NUM_ANCHORS).flatten(0, 1)
    return focal_loss(rows, labels.flatten(), alpha=config.focal_alpha, gamma=config.focal_gamma)


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
