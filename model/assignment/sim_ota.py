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
    num_images, num_anchors = valid.shape
    num_boxes = len(truth.boxes)
    if not num_boxes:
        return torch.full(valid.shape, NEGATIVE, device=valid.device).masked_fill_(~valid, INVALID)
    inside, candidates = _regions(grid, valid, truth, radius)
    background = background_cost(predicted.class_logits, softplus)
    order = torch.arange(num_boxes, device=valid.device)
    cheapest = torch.full(valid.shape, LAST, device=valid.device)
    taken = []
    # So many boxes at a time that memory does not grow with their number.
    for rows in order.split(max(1, BLOCK // num_anchors)):
        image = truth.image_index[rows]
        iou = aligned_iou(predicted.boxes[image], truth.boxes[rows, None]).mul_(candidates[rows])
        own = predicted.class_logits[image, :, truth.labels[rows]]
        # Cross entropy towards 1 is that towards 0 less the logit.
        cost = (background[image] - own).sub_((iou + 1e-7).log_(), alpha=iou_weight)
        key = order_key(cost) + (~inside[rows]).long().bitwise_left_shift_(BITS)
        key = key.bitwise_left_shift_(BITS).masked_fill_(~candidates[rows], LAST)
        taken.append(_take(key, iou, top_k))
        cheapest.index_reduce_(0, image, key.bitwise_or_(rows[:, None]), "amin")
    # One place more, for what is not taken.
    places = torch.cat(taken)
    places = torch.where(places < 0, valid.numel(), truth.image_index[:, None] * num_anchors + places).flatten()
    count = torch.zeros(valid.numel() + 1, dtype=torch.int32, device=valid.device)
    count = count.scatter_add_(0, places, torch.ones_like(places, dtype=torch.int32))[:-1].view(valid.shape)
    taker = torch.full((valid.numel() + 1,), NEGATIVE, device=valid.device)
    boxes = order[:, None].expand(len(order), len(places) // num_boxes).flatten()
    taker = taker.scatter_reduce_(0, places, boxes, "amax")[:-1].view(valid.shape)
    assigned = torch.where(count > 1, cheapest.bitwise_and_(2**BITS - 1), taker)
    return assigned.masked_fill_(~valid, INVALID)


def _regions(grid: AnchorGrid, valid: Tensor, truth: GroundTruth, radius: float) -> tuple[Tensor, Tensor]:
    """[M, N] whether an anchor's centre lies both in a box and near its centre; whether it is a candidate at all."""
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
    counts = torch.zeros(len(valid), len(centers), dtype=torch.int32, device=valid.device)
    counts.index_add_(0, truth.image_index, ((in_box | near) & has_area).int())
    candidates = (counts[truth.image_index] > 0) & has_area

    def of_anchors(per_cell: Tensor) -> Tensor:
        return per_cell[:, :, None].expand(-1, -1, grid.anchors_per_cell).flatten(1)

    return of_anchors(in_box & near), of_anchors(candidates) & valid[truth.image_index]


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
