"""SimOTA: each box takes as many anchors as its best IoUs add up to, those that cost the least."""

import torch
from torch import Tensor

from model.assignment.costs import BLOCK, background_cost, order_key, softplus
from model.assignment.samples import INVALID, NEGATIVE, GroundTruth, Predicted
from model.network.anchors import STRIDES, AnchorGrid, cell_centers, valid_anchors
from model.network.overlaps import aligned_iou

LAST = torch.iinfo(torch.int64).max
"""Behind every key: an anchor that is no candidate."""
BITS = 31
"""Of a cost's key, and of a place among the anchors or boxes."""


def sim_ota(
    grid: AnchorGrid,
    padded_sizes: Tensor,
    truth: GroundTruth,
    predicted: Predicted,
    *,
    top_k: int,
    radius: float,
    iou_weight: float,
) -> Tensor:
    """Assign each anchor a box or background by SimOTA (Ge et al. 2021, YOLOX, Section 2.1).

    Candidates of an image are the valid anchors whose centre lies in one of its boxes, or within `radius` strides of
    a box's centre. A candidate costs a box

        BCE(p, one-hot class of the box) + iou_weight * -ln(IoU of predicted box and box),

    and more than any other if its centre does not lie in that box and near its centre as well. A box takes its k
    cheapest candidates, where k is the sum of its `top_k` largest IoUs, cut to a whole number of at least 1. What
    several boxes take goes to the cheapest box of the image. Of equal costs the lower place wins.

    Boxes without area take no part: they fill up batches.

    Args:
        grid: N anchors.
        padded_sizes: [B, 2] each image's own padded (height, width); anchors outside are INVALID.
        truth: M boxes.
        predicted: of the same B images and N anchors, over K classes.
        top_k: IoUs that add up to a box's number of anchors.
        radius: in strides of the anchor's level.
        iou_weight: of the IoU cost beside the class cost.

    Returns:
        [B, N] int64: index into `truth` (0 to M-1), or NEGATIVE, INVALID.
    """
    valid = valid_anchors(grid, padded_sizes)
    num_boxes = len(truth.boxes)
    if not num_boxes:
        return torch.full(valid.shape, NEGATIVE, device=valid.device).masked_fill_(~valid, INVALID)
    both, candidates = _regions(grid, truth, len(valid), radius)
    background = background_cost(predicted.class_logits, softplus)
    cheapest = torch.full(valid.shape, LAST, device=valid.device)
    taken = []
    # So many boxes at a time that memory does not grow with their number.
    for rows in torch.split(torch.arange(num_boxes, device=valid.device), max(1, BLOCK // len(grid.boxes))):
        image = truth.image_index[rows]
        usable = _of_anchors(candidates[rows], grid) & valid[image]
        iou = aligned_iou(predicted.boxes[image], truth.boxes[rows, None]).mul_(usable)
        own = predicted.class_logits[image, :, truth.labels[rows]]
        # Cross entropy towards 1 is that towards 0 less the logit.
        cost = (background[image] - own).sub_((iou + 1e-7).log_(), alpha=iou_weight)
        key = order_key(cost).add_(_of_anchors(~both[rows], grid), alpha=2**BITS)
        key = key.bitwise_left_shift_(BITS).masked_fill_(~usable, LAST)
        taken.append(_take(key, iou, top_k))
        cheapest.index_reduce_(0, image, key.bitwise_or_(rows[:, None]), "amin")
    return _takers(torch.cat(taken), cheapest, truth).masked_fill_(~valid, INVALID)


def _regions(grid: AnchorGrid, truth: GroundTruth, num_images: int, radius: float) -> tuple[Tensor, Tensor]:
    """[M, C] whether a cell's centre lies both in a box and near its centre; whether its anchors are candidates."""
    centers = cell_centers(grid)
    reach = torch.cat(
        [
            torch.full((height * width, 1), radius * stride, device=centers.device)
            for stride, (height, width) in zip(STRIDES, grid.level_sizes, strict=True)
        ]
    )
    low, high = truth.boxes[:, None, :2], truth.boxes[:, None, 2:]
    middle = (low + high) * 0.5
    in_box = ((centers > low) & (centers < high)).all(dim=2)
    near = ((centers > middle - reach) & (centers < middle + reach)).all(dim=2)
    has_area = (high > low).all(dim=2)
    counts = torch.zeros(num_images, len(centers), dtype=torch.int32, device=centers.device)
    counts.index_add_(0, truth.image_index, ((in_box | near) & has_area).int())
    return in_box & near, (counts[truth.image_index] > 0) & has_area


def _of_anchors(per_cell: Tensor, grid: AnchorGrid) -> Tensor:
    """[M, C] of cells -> [M, N] of their anchors."""
    return per_cell[:, :, None].expand(-1, -1, grid.anchors_per_cell).flatten(1)


def _take(key: Tensor, iou: Tensor, top_k: int) -> Tensor:
    """[m, k] places of the anchors that each box takes, or -1.

    Args:
        key: [m, N] rises with the cost; its last bits are 0.
        iou: [m, N] 0 where an anchor is no candidate.
        top_k: IoUs to add up.
    """
    top_k = min(top_k, key.shape[1])
    # IoUs are at most 1, so that no box takes more than top_k.
    wanted = iou.topk(top_k, dim=1).values.sum(dim=1, keepdim=True).long().clamp_(min=1)
    place = torch.arange(key.shape[1], device=key.device)
    least = (key | place).topk(top_k, dim=1, largest=False).values
    takes = (torch.arange(top_k, device=key.device) < wanted) & (least >> BITS != LAST >> BITS)
    return torch.where(takes, least & (2**BITS - 1), -1)


def _takers(places: Tensor, cheapest: Tensor, truth: GroundTruth) -> Tensor:
    """[B, N] the box that takes an anchor, the cheapest of the image where several do, or NEGATIVE.

    Args:
        places: [M, k] anchors that each box takes, or -1.
        cheapest: [B, N] keys of the lowest cost, with the box in the last bits.
        truth: M boxes.
    """
    num_anchors = cheapest.numel()
    at = truth.image_index[:, None] * cheapest.shape[1] + places
    # One place more, for what is not taken.
    at = torch.where(places < 0, num_anchors, at).flatten()
    box = torch.arange(len(places), device=at.device)[:, None].expand_as(places).flatten()
    taker = box.new_full((num_anchors + 1,), NEGATIVE).scatter_reduce_(0, at, box, "amax")
    count = torch.zeros_like(taker).scatter_add_(0, at, torch.ones_like(at))
    assigned = torch.where(count[:-1] > 1, cheapest.flatten() & (2**BITS - 1), taker[:-1])
    return assigned.view(cheapest.shape)
