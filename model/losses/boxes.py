"""The losses of the box branch: of overlaps, and of edges as distributions; and how central anchors lie in boxes."""

from typing import Any, Literal

import torch
from torch import Tensor

from model.network.anchors import at_least_float32, edge_distances
from model.network.overlaps import aligned_ciou, aligned_diou, aligned_giou, aligned_iou

OVERLAPS = {"iou": aligned_iou, "giou": aligned_giou, "diou": aligned_diou, "ciou": aligned_ciou}


def box_loss(kind: Literal["iou", "giou", "diou", "ciou"], predicted: Tensor, target: Tensor) -> Tensor:
    """[P] one less the overlap of each predicted box with its target; 0 for equal boxes.

    Args:
        kind: of the overlap.
        predicted: [P, 4] xyxy pixels.
        target: [P, 4].
    """
    return 1 - OVERLAPS[kind](predicted, target)


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[P] the cross entropy to both neighbours of the target, by how near they are (Li et al. 2020, GFL, Eq. 6).

    Args:
        logits: [P, n] of the distances 0 to n - 1; less than float32 is computed in float32.
        target: [P] a distance in [0, n - 1]; no gradient reaches it.

    Returns:
        [P] at least float32. Nothing but the logits is kept for the gradient.
    """
    loss: Tensor = _DistributionFocalLoss.apply(logits, target)
    return loss


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """[P] how central each anchor's centre lies in its box, 1 in the middle, 0 on its border and outside (FCOS, Eq. 3).

    Args:
        anchors: [P, 4] xyxy pixels.
        boxes: [P, 4].
    """
    low, high = edge_distances(anchors, boxes).clamp(min=0).chunk(2, dim=-1)
    ratios = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-6)
    return ratios.prod(dim=-1).sqrt()


class _DistributionFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        numbers = at_least_float32(logits)
        return numbers.logsumexp(dim=-1) - (numbers * _nearness(target, numbers)).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        probability = at_least_float32(logits).softmax(dim=-1)
        return ((probability - _nearness(target, probability)) * grads[0][..., None]).to(logits.dtype), None


def _nearness(target: Tensor, numbers: Tensor) -> Tensor:
    """[P, n] the target's weight of each distance: 1 less how far it lies, and 0 from 1 on."""
    distances = torch.arange(numbers.shape[-1], dtype=numbers.dtype, device=numbers.device)
    return (1 - (distances - target[..., None]).abs()).clamp(min=0)
