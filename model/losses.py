"""Focal loss, L1 on box deltas, and the confidence losses of Table 2, each summed over a batch.

Sums are divided by the number of samples of the *global* batch (matching.num_samples), so that any split of the
batch over workers and accumulation steps adds up to the same update.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.anchors import NUM_ANCHORS, AnchorGrid, aligned_iou, decode, encode
from model.config import ConfidenceConfig, ModelConfig
from model.heads import Predictions, flat
from model.matching import NEGATIVE, GroundTruth


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
    assigned: Tensor,
    truth: GroundTruth,
    normalizer: Tensor,
    config: ModelConfig,
) -> Losses:
    """Losses of one batch, or of one part of it.

    Args:
        predictions: B images, N anchors.
        grid: the N anchors.
        assigned: [B, N] from matching.match.
        truth: the boxes that `assigned` points into.
        normalizer: [] samples of the global batch.
        config: which losses.
    """
    labels = torch.where(assigned >= 0, 0, assigned)
    if len(truth.labels):
        labels = torch.where(assigned >= 0, truth.labels[assigned.clamp(min=0)], labels)
    levels = zip(predictions.class_logits, torch.split(labels, grid.level_lengths, dim=1), strict=True)
    classification = [_focal_sum(logits, level, config) for logits, level in levels]

    image, anchor = (assigned >= 0).nonzero(as_tuple=True)
    boxes = truth.boxes[assigned[image, anchor]]
    anchors = grid.boxes[anchor]
    deltas = flat(predictions.box_deltas, 4)[image, anchor]
    targets = encode(anchors, boxes)
    box = (deltas - targets).abs().sum(dim=1)
    confidence = torch.zeros_like(box)
    negatives = box.new_zeros(len(grid.level_sizes))
    if config.confidence is not None and predictions.confidence_logits is not None:
        iou = aligned_iou(decode(anchors, deltas), decode(anchors, targets))
        target = iou.detach() if config.confidence.detach_iou_target else iou
        logits = flat(predictions.confidence_logits, 1)[..., 0]
        confidence = confidence_loss(logits[image, anchor], target, config.confidence)
        if config.confidence.negative_weight > 0:
            background = functional.softplus(logits) * (assigned == NEGATIVE)
            negatives = torch.stack([part.sum() for part in torch.split(background, grid.level_lengths, dim=1)])
            negatives = negatives * config.confidence.negative_weight
        confidence, negatives = (part * config.confidence.loss_weight for part in (confidence, negatives))
    level_of_anchor = torch.arange(len(grid.level_sizes), device=anchor.device).repeat_interleave(
        torch.tensor(grid.level_lengths, device=anchor.device), output_size=len(grid.boxes)
    )
    level = level_of_anchor[anchor]
    by_level = box.new_zeros(len(grid.level_sizes))
    return Losses(
        torch.stack(classification) / normalizer,
        by_level.index_add(0, level, box) / normalizer,
        (by_level.index_add(0, level, confidence) + negatives) / normalizer,
    )


def confidence_loss(logits: Tensor, target: Tensor, config: ConfidenceConfig) -> Tensor:
    """[P] the loss of each positive sample; differentiable in the target, too (Eqs. 5-7, 13)."""
    if config.loss in ("ce", "gfocal"):
        cross_entropy = functional.softplus(logits) - logits * target
        if config.loss == "gfocal":
            return (target - logits.sigmoid()).abs() ** config.gfocal_gamma * cross_entropy
        if config.negative_weight > 0:  # a positive whose box misses its target weighs like a negative
            return torch.where(target == 0, config.negative_weight, 1.0) * cross_entropy
        return cross_entropy
    predicted = logits.sigmoid() if config.loss_on == "sigmoid" else logits
    error = (predicted - target).abs()
    if config.loss == "l1":
        return error
    if config.loss == "l2":
        return error**2
    beta = config.smooth_l1_beta
    return torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)


def _focal_sum(class_logits: Tensor, labels: Tensor, config: ModelConfig) -> Tensor:
    """[] focal loss of one level [B, 9*K, h, w], labels [B, h*w*9] with NEGATIVE for background."""
    batch, _, height, width = class_logits.shape
    logits = class_logits.view(batch, NUM_ANCHORS, -1, height, width)
    labels = labels.view(batch, height, width, NUM_ANCHORS).permute(0, 3, 1, 2)
    background: Tensor = _BackgroundFocal.apply(logits, labels >= NEGATIVE, config.focal_alpha, config.focal_gamma)
    image, anchor, y, x = (labels >= 0).nonzero(as_tuple=True)
    positive = logits[image, anchor, labels[image, anchor, y, x], y, x]
    foreground = config.focal_alpha * (1 - positive.sigmoid()) ** config.focal_gamma * functional.softplus(-positive)
    counted = (1 - config.focal_alpha) * positive.sigmoid() ** config.focal_gamma * functional.softplus(positive)
    return background + (foreground - counted).sum()


class _BackgroundFocal(torch.autograd.Function):
    """Focal loss as if every class of every sample were absent; keeps nothing but the logits for backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, counts: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.save_for_backward(logits, counts)
        ctx.alpha, ctx.gamma = alpha, gamma
        loss = logits.sigmoid().pow_(gamma).mul_(functional.softplus(logits))
        return (1 - alpha) * loss.mul_(counts[:, :, None]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, counts = ctx.saved_tensors
        probability = logits.sigmoid()
        slope = functional.softplus(logits).mul_(1 - probability).mul_(ctx.gamma).add_(probability)
        slope.mul_(probability.pow_(ctx.gamma)).mul_(counts[:, :, None])
        return slope.mul_((1 - ctx.alpha) * grads[0]), None, None, None
