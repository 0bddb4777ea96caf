"""ATSS (Zhang et al. 2020, Algorithm 1): the IoU from which on an anchor learns a box follows from the box itself."""

import torch
from torch import Tensor

from model.assignment.samples import GroundTruth, best, shared_out
from model.network.anchors import AnchorGrid, cell_centers, valid_anchors
from model.network.overlaps import aligned_iou

MARGIN = 0.01
"""Pixels that a centre has to lie within its box, as in the released code."""


def atss(grid: AnchorGrid, padded_sizes: Tensor, truth: GroundTruth, *, top_k: int) -> Tensor:
    """Assign each anchor a box or background, by statistics of the anchors near each box.

    Candidates of a box are all anchors of the `top_k` cells of each level whose centres are nearest to the box's. They
    learn it where their IoU reaches the mean plus the standard deviation of the candidates' IoUs, and their centre lies
    inside the box. Of several boxes an anchor learns that of the largest IoU, the first on ties.

    Args:
        grid: N anchors.
        padded_sizes: [B, 2] each image's own padded (height, width); anchors outside are INVALID.
        truth: M boxes.
        top_k: cells of each level; a level with fewer gives all.

    Returns:
        [B, N] int64: index into `truth` (0 to M-1), or NEGATIVE, INVALID.
    """
    valid = valid_anchors(grid, padded_sizes)
    centers = cell_centers(grid)
    usable_cells = valid[:, :: grid.anchors_per_cell][truth.image_index]
    cells = _nearest_cells(grid, centers, truth.boxes, usable_cells, top_k)
    anchors = anchors_of(cells, grid)
    # Where a level has too few cells within the image's own area, cells outside of it are among the nearest.
    usable = usable_cells.gather(1, cells)
    inside = usable & centers_inside(centers[cells], truth.boxes)
    usable, inside = (of_cells.repeat_interleave(grid.anchors_per_cell, dim=1) for of_cells in (usable, inside))
    iou = aligned_iou(truth.boxes[:, None], grid.boxes[anchors])
    wanted = inside & (iou >= _threshold(iou, usable))
    return shared_out(anchors, iou, wanted, truth, valid)


def anchors_of(cells: Tensor, grid: AnchorGrid) -> Tensor:
    """[M, S] places of cells -> [M, S*A] places of their A anchors each."""
    count = grid.anchors_per_cell
    return (cells[..., None] * count + torch.arange(count, device=cells.device)).flatten(1)


def centers_inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """[M, S] whether centres [M, S, 2] lie within their boxes [M, 4]."""
    within = torch.cat([centers - boxes[:, None, :2], boxes[:, None, 2:] - centers], dim=-1)
    return within.amin(dim=-1) > MARGIN


def _nearest_cells(grid: AnchorGrid, centers: Tensor, boxes: Tensor, usable: Tensor, top_k: int) -> Tensor:
    """[M, S] the `top_k` cells of each level that lie nearest to each box, level by level."""
    apart = (boxes[:, None, :2] + boxes[:, None, 2:]) * 0.5 - centers
    # Not its root, which would round different distances to the same number.
    distance = (apart[..., 0].square() + apart[..., 1].square()).masked_fill(~usable, torch.inf)
    nearest, start = [], 0
    for level in torch.split(distance, [height * width for height, width in grid.level_sizes], dim=1):
        nearest.append(start + best(level, top_k, largest=False))
        start += level.shape[1]
    return torch.cat(nearest, dim=1)


def _threshold(iou: Tensor, usable: Tensor) -> Tensor:
    """[M, 1] mean plus standard deviation of the usable candidates' IoUs [M, C]."""
    # In float32 the order of the sum, which differs between devices, would decide candidates that are nearly as good.
    count, exact = usable.sum(dim=1, keepdim=True), iou.double().masked_fill(~usable, 0.0)
    mean = exact.sum(dim=1, keepdim=True) / count
    squares = (exact - mean).square().masked_fill(~usable, 0.0).sum(dim=1, keepdim=True)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()
