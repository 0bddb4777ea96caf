"""How boxes overlap: IoU of all with all, and of pairs IoU, GIoU, DIoU and CIoU."""

import math

import torch
from torch import Tensor

LEAST = 1e-6
"""Square pixels, or pixels, that areas and sides are taken for where they are smaller and divide."""


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """[M, N] IoU of every box with every anchor, in the order of operations that decides float32 ties."""
    # One side after the other: at most three [M, N] at once, which a crowded batch makes gigabytes of.
    width, height = (
        torch.minimum(boxes[:, None, high], anchors[:, high])
        .sub_(torch.maximum(boxes[:, None, low], anchors[:, low]))
        .clamp_(min=0)
        for low, high in ((0, 2), (1, 3))
    )
    inter = width.mul_(height)
    # Boxes with sides under 22 pixels tie with several anchors; this order of sums decides which ties float32 keeps.
    union = (area(boxes)[:, None] + area(anchors)).sub_(inter)
    return inter.div_(union.clamp_(min=LEAST))


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """[...] IoU of each box with its counterpart, xyxy [..., 4] that broadcast; differentiable."""
    inter, union = _inter_and_union(first, second)
    return inter / union


def aligned_giou(first: Tensor, second: Tensor) -> Tensor:
    """[...] IoU, less the part of the hull that neither box covers (Rezatofighi et al. 2019); -1 to 1."""
    inter, union = _inter_and_union(first, second)
    sides = _hull_sides(first, second)
    hull = (sides[..., 0] * sides[..., 1]).clamp(min=LEAST)
    return inter / union - (hull - union) / hull


def aligned_diou(first: Tensor, second: Tensor) -> Tensor:
    """[...] IoU, less (distance of the centres / diagonal of the hull)^2 (Zheng et al. 2020, Eq. 7); -1 to 1."""
    inter, union = _inter_and_union(first, second)
    return inter / union - _center_distance(first, second)


def aligned_ciou(first: Tensor, second: Tensor) -> Tensor:
    """[...] DIoU, less alpha * v for the difference v of the aspect ratios (Zheng et al. 2020, Eqs. 8 to 11).

    alpha is a constant to the gradient, and 0 up to an IoU of 0.5, where boxes have to meet before shapes matter
    (their later text, Zheng et al. 2021).
    """
    inter, union = _inter_and_union(first, second)
    iou = inter / union
    v = 4 / math.pi**2 * (_angle(first) - _angle(second)) ** 2
    # Of equal boxes both are 0; alpha is 0 / 0 without the bound.
    alpha = torch.where(iou > 0.5, v / (1 - iou + v).clamp(min=LEAST), 0.0).detach()
    return iou - _center_distance(first, second) - alpha * v


def area(boxes: Tensor) -> Tensor:
    """[...] width times height of xyxy boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _inter_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """[N] areas, the union at least LEAST."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    sides = (torch.minimum(first[..., 2:], second[..., 2:]) - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    return inter, (area(first) + area(second) - inter).clamp(min=LEAST)


def _hull_sides(first: Tensor, second: Tensor) -> Tensor:
    """[N, 2] width and height of the smallest box around both."""
    low, high = torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0)


def _center_distance(first: Tensor, second: Tensor) -> Tensor:
    """[N] square of the distance of the centres over the square of the hull's diagonal."""
    between = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) * 0.5
    return between.square().sum(dim=-1) / _hull_sides(first, second).square().sum(dim=-1).clamp(min=LEAST)


def _angle(boxes: Tensor) -> Tensor:
    """[N] the angle whose tangent is width over height."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return torch.atan(width / height.clamp(min=LEAST))
