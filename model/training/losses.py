"""Focal loss, L1 on box deltas, and the confidence losses of Table 2, each summed over a batch.

Sums are divided by the positive anchors of the *global* batch (assignment.loss_normalizer), so that any split of the
batch over workers and accumulation steps adds up to the same update.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.config import ConfidenceConfig, ModelConfig
from model.network import kernels
from model.network.anchors import NUM_ANCHORS, AnchorGrid, aligned_iou, decode, encode
from model.network.assignment import NEGATIVE, GroundTruth, positives
from model.network.retinanet import Predictions, flat, per_anchor

BLOCK = 2**18
"""Logits taken at once on the CPU, so that the steps in between stay in its cache."""


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
        assigned: [B, N] from assignment.assign.
        truth: the boxes that `assigned` points into.
        normalizer: [] samples of the global batch.
        config: which losses.
    """
    labels = torch.where(assigned >= 0, _rows(truth.labels, assigned), assigned)
    levels = zip(predictions.class_logits, torch.split(labels, grid.level_lengths, dim=1), strict=True)
    classification = [_focal_sum(logits, level, config) for logits, level in levels]

    chosen = positives(assigned)
    learn = slice(None) if chosen is None else chosen  # all anchors where the positive ones cannot be listed
    positive = assigned.flatten()[learn] >= 0
    anchors = grid.boxes.expand(len(assigned), -1, -1).flatten(0, 1)[learn]
    boxes = torch.where(positive[:, None], _rows(truth.boxes, assigned.flatten()[learn]), anchors)
    deltas = _at_least_float32(flat(predictions.box_deltas, 4).flatten(0, 1)[learn])
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
        logits = _at_least_float32(flat(predictions.confidence_logits, 1)[..., 0])
        confidence = by_level(confidence_loss(logits.flatten()[learn], target, config.confidence))
        if config.confidence.negative_weight > 0:
            background = functional.softplus(logits)
            if config.confidence.loss == "gfocal":  # Eq. 13 at a target of 0
                background = logits.sigmoid() ** config.confidence.gfocal_gamma * background
            background = background * (assigned == NEGATIVE)
            confidence = confidence + config.confidence.negative_weight * _level_sums(background, grid)
        confidence = confidence * config.confidence.loss_weight
    return Losses(torch.stack(classification) / normalizer, box / normalizer, confidence / normalizer)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 has 8 bits: the IoU of a decoded box would be off by up to 0.006."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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


def confidence_loss(logits: Tensor, target: Tensor, config: ConfidenceConfig) -> Tensor:
    """[P] the confidence loss of each positive anchor; differentiable in the IoU target, too (Eqs. 5-7, 13)."""
    if config.loss in ("ce", "gfocal"):
        # -y ln p - (1-y) ln(1-p), in the form that stays finite in float32 for logits above 16.6 or below -88.
        cross_entropy = functional.softplus(logits) - logits * target
        if config.loss == "gfocal":
            # Eq. 13, with the sign and the absolute value that make it a positive loss.
            cross_entropy = (target - logits.sigmoid()).abs() ** config.gfocal_gamma * cross_entropy
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


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The sum over anchors and classes of the focal loss (Lin et al. 2017, Eq. 5).

    Args:
        logits: [R, K], one row per anchor; less than float32 is computed in float32.
        labels: [R] class of each anchor, or NEGATIVE for background; anything below counts nothing.
        alpha: the weight of an anchor's own class; all others weigh 1 - alpha.
        gamma: the exponent of the modulating factor.

    Returns:
        [] at least float32. Its gradient is computed along with it, so `backward` may run once.
    """
    function = _CudaFocalLoss if logits.is_cuda else _FocalLoss
    loss: Tensor = function.apply(logits, labels, alpha, gamma)
    return loss


class _CudaFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        logits = logits.contiguous()
        ctx.save_for_backward(logits, labels)
        ctx.alpha, ctx.gamma = alpha, gamma
        loss: Tensor = kernels.focal(logits, labels, alpha, gamma)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # Computed here from the logits, so that it is written once, multiplied by grads[0] already.
        return kernels.focal_backward(*ctx.saved_tensors, grads[0], ctx.alpha, ctx.gamma), None, None, None


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        gradient = torch.empty_like(logits)
        rows = max(1, BLOCK // max(1, logits.shape[1]))
        blocks = zip(*(torch.split(tensor, rows) for tensor in (logits, labels, gradient)), strict=True)
        values = [_block(*block, alpha=alpha, gamma=gamma) for block in blocks]
        ctx.gradient = gradient
        return torch.stack(values).sum() if values else logits.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grads[0]), None, None, None


def _block(logits: Tensor, labels: Tensor, gradient: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The loss of some rows; their gradient is written into `gradient`."""
    # Ignored and invalid anchors weigh 0; every class of the others weighs 1 - alpha, but for the own one below.
    counts = (labels >= NEGATIVE).float()[:, None] * (1 - alpha)
    logits = _at_least_float32(logits)
    value, slope = _background(logits, gamma)
    value = value.mul_(counts)
    torch.mul(slope, counts, out=gradient)
    own, positive = labels.clamp(min=0)[:, None], (labels >= 0)[:, None]
    # The loss of an anchor's own class is that of the background with the sign of its logit turned.
    foreground, rise = _background(-logits.gather(1, own), gamma)
    value.scatter_(1, own, torch.where(positive, alpha * foreground, value.gather(1, own)))
    gradient.scatter_(1, own, torch.where(positive, (-alpha * rise).to(gradient.dtype), gradient.gather(1, own)))
    return value.sum()


def _background(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """p^gamma * softplus(x), and its derivative p^gamma * (gamma * (1 - p) * softplus(x) + p)."""
    probability = logits.sigmoid()
    cross_entropy = functional.softplus(logits)
    slope = (1 - probability).mul_(cross_entropy).mul_(gamma).add_(probability)
    factor = probability.pow_(gamma)
    return cross_entropy.mul_(factor), slope.mul_(factor)
