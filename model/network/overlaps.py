"""How boxes overlap: IoU, of pairs and of all with all."""

import torch
from torch import Tensor


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """[M, N] IoU of every box with every anchor, in the order of operations that decides float32 ties."""
    top_left = torch.maximum(boxes[:, None, :2], anchors[:, :2])
    sides = torch.minimum(boxes[:, None, 2:], anchors[:, 2:]).sub_(top_left).clamp_(min=0)
    inter = sides[..., 0] * sides[..., 1]
    # Boxes with sides under 22 pixels tie with several anchors; this order of sums decides which ties float32 keeps.
    union = area(boxes)[:, None] + area(anchors) - inter
    return inter.div_(union.clamp_(min=1e-6))


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """[N] IoU of each box with its counterpart; differentiable."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    return inter / (area(first) + area(second) - inter).clamp(min=1e-6)


def aligned_giou(first: Tensor, second: Tensor) -> Tensor:
    """[N] IoU, less the part of the hull that neither box covers (Rezatofighi et al. 2019); -1 to 1."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = (area(first) + area(second) - inter).clamp(min=1e-6)
    hull_sides = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull = (hull_sides[..., 0] * hull_sides[..., 1]).clamp(min=1e-6)
    return inter / union - (hull - union) / hull


def area(boxes: Tensor) -> Tensor:
    """[...] width times height of xyxy boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
