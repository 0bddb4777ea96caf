"""Task-aligned assignment (TOOD, Feng et al. 2021, Section 3.2): anchors learn the boxes that they predict best."""

import torch
from torch import Tensor

from model.assignment.atss import centers_inside
from model.assignment.samples import Assignment, GroundTruth, Predicted, best, shared_out
from model.network.anchors import AnchorGrid, cell_centers, valid_anchors
from model.network.overlaps import aligned_iou

AT_ONCE = 64
"""Boxes that are compared with all anchors at once: at 600 x 1000, 30 MB for each number of a pair."""


def task_aligned(
    grid: AnchorGrid,
    padded_sizes: Tensor,
    truth: GroundTruth,
    predicted: Predicted,
    *,
    top_k: int,
    alpha: float,
    beta: float,
) -> Assignment:
    """Assign each anchor a box or background, by how well its class score and its predicted box suit the box.

    Candidates of a box are the `top_k` anchors with the largest alignment, of those above 0. They learn it where their
    centre lies inside the box; of several boxes an anchor learns that of the largest IoU. Ties go to the lower place.

    Args:
        grid: N anchors.
        padded_sizes: [B, 2] each image's own padded (height, width); anchors outside are INVALID.
        truth: M boxes.
        predicted: for B images at N anchors.
        top_k: candidates of a box.
        alpha: the exponent of the class score in the alignment.
        beta: the exponent of the IoU.

    Returns:
        With the alignment of each positive, divided by the largest of its box and multiplied by the largest IoU of its
        box (Section 3.2, "task-aligned loss"); 0 elsewhere.
    """
    valid = valid_anchors(grid, padded_sizes)
    num_candidates = min(top_k, len(grid.boxes))
    anchors = truth.image_index.new_zeros(len(truth.boxes), num_candidates)
    metric, iou = (predicted.boxes.new_zeros(anchors.shape) for _ in range(2))
    for start in range(0, len(truth.boxes), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        images = truth.image_index[some]
        overlaps = aligned_iou(truth.boxes[some, None], predicted.boxes[images])
        scores = predicted.class_logits[images, :, truth.labels[some]].sigmoid()
        aligned = alignment(scores, overlaps, alpha=alpha, beta=beta).masked_fill(~valid[images], 0.0)
        anchors[some] = chosen = best(aligned, num_candidates)
        metric[some], iou[some] = aligned.gather(1, chosen), overlaps.gather(1, chosen)
    centers = cell_centers(grid)[anchors // grid.anchors_per_cell]
    wanted = (metric > 0) & centers_inside(centers, truth.boxes)
    assigned = shared_out(anchors, iou, wanted, truth, valid)
    return Assignment(assigned, _normalized(anchors, metric, iou, truth, assigned))


def alignment(scores: Tensor, iou: Tensor, *, alpha: float, beta: float) -> Tensor:
    """[...] s^alpha * u^beta of class scores s and IoUs u (Eq. 2)."""
    return scores**alpha * iou**beta


def _normalized(anchors: Tensor, metric: Tensor, iou: Tensor, truth: GroundTruth, assigned: Tensor) -> Tensor:
    """[B, N] the alignment of positives, so that the best one of a box has the largest IoU of that box.

    Args:
        anchors: [M, C] candidates of each box.
        metric: [M, C] their alignment.
        iou: [M, C].
        truth: M boxes.
        assigned: [B, N] what anchors learn at last.
    """
    place = anchors + truth.image_index[:, None] * assigned.shape[1]  # in [B*N]
    order = torch.arange(len(anchors), device=anchors.device)[:, None]
    learns = assigned.flatten()[place] == order
    metric, iou = metric.masked_fill(~learns, 0.0), iou.masked_fill(~learns, 0.0)
    # A box that nobody learns has 0 / 1 everywhere.
    largest = metric.amax(dim=1, keepdim=True)
    normalized = metric / torch.where(largest > 0, largest, 1.0) * iou.amax(dim=1, keepdim=True)
    whole = normalized.new_zeros(assigned.numel())
    # At most one box learns an anchor, and all others give 0.
    return whole.scatter_reduce_(0, place.flatten(), normalized.flatten(), "amax").view(assigned.shape)
