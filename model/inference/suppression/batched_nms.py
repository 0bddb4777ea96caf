"""Greedy class-wise NMS of many lists of candidates at once, on whichever device they are."""

import torch
from torch import Tensor

BLOCK = 128
"""Candidates that are compared with each other at once where there is no compiled kernel."""


@torch.library.custom_op("retinanet_conf::greedy_nms", mutates_args=())
def greedy(boxes: Tensor, labels: Tensor, num: Tensor, iou: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Keep the best candidates: one is dropped whose IoU with a better kept one of its class is strictly above a limit.

    Args:
        boxes: [P, C, 4] xyxy, best first.
        labels: [P, C] int32, from 0.
        num: [P] int32, how many of the C there are; what comes behind them has no meaning.
        iou: [P] the limit.
        limit: how many are wanted of each list; NMS ends there, as later boxes cannot change it.

    Returns:
        [P, limit] int32 the places of those kept, rising, 0 from their number on; [P] int32 their number.
    """
    return blockwise(boxes, labels, num, iou, limit)


@greedy.register_kernel("cuda")
def _on_cuda(boxes: Tensor, labels: Tensor, num: Tensor, iou: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    try:
        # It comes with torch for CUDA, on Linux.
        from model.inference.suppression.triton_nms import one_by_one
    except ImportError:
        return blockwise(boxes, labels, num, iou, limit)
    return one_by_one(boxes, labels, num, iou, limit)


@greedy.register_fake
def _shapes(boxes: Tensor, labels: Tensor, num: Tensor, iou: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    return boxes.new_empty((len(boxes), limit), dtype=torch.int32), boxes.new_empty(len(boxes), dtype=torch.int32)


def blockwise(boxes: Tensor, labels: Tensor, num: Tensor, iou: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """`greedy` in torch's own operations: block by block of candidates, all lists side by side.

    The order within a block is settled by repeating `kept unless a better kept one beats it` until nothing changes;
    after i rounds the first i are right, so that what does not change is what NMS keeps.
    """
    num_lists, num_candidates = labels.shape
    places = torch.zeros(num_lists, limit + 1, dtype=torch.int64, device=boxes.device)  # the last catches the others
    count = torch.zeros(num_lists, 1, dtype=torch.int64, device=boxes.device)
    iou = iou[:, None, None]
    for start in range(0, num_candidates, BLOCK):
        order = torch.arange(start, min(start + BLOCK, num_candidates), device=boxes.device)
        here, names = boxes[:, order], labels[:, order]
        kept = places[:, :limit]
        beaten = overlaps(here, boxes.gather(1, kept[..., None].expand(-1, -1, 4))) > iou
        beaten &= names[:, :, None] == labels.gather(1, kept)[:, None]
        beaten &= torch.arange(limit, device=boxes.device) < count[..., None]
        alive = (order < num[:, None]) & ~beaten.any(dim=2)
        # [P, i, j] whether i is dropped if j is kept.
        beats = (overlaps(here, here) > iou) & (names[:, :, None] == names[:, None])
        beats &= (order[:, None] > order)[None]
        keep, before = alive, None
        while before is None or not torch.equal(keep, before):
            keep, before = alive & ~(beats & keep[:, None]).any(dim=2), keep
        slot = torch.where(keep, count + keep.cumsum(dim=1) - 1, limit).clamp(max=limit)
        places.scatter_(1, slot, order.expand_as(slot))
        count = (count + keep.sum(dim=1, keepdim=True)).clamp(max=limit)
        if bool((count == limit).all()):
            break
    return places[:, :limit].masked_fill(torch.arange(limit, device=boxes.device) >= count, 0).int(), count[:, 0].int()


def overlaps(ones: Tensor, others: Tensor) -> Tensor:
    """[P, n, m] IoU of boxes [P, n, 4] and [P, m, 4], in `nms.overlap`'s order of operations; NaN without area."""
    ones, others = ones[:, :, None], others[:, None]
    sides = (torch.minimum(ones[..., 2:], others[..., 2:]) - torch.maximum(ones[..., :2], others[..., :2])).clamp_(
        min=0
    )
    shared = sides[..., 0] * sides[..., 1]
    area, other = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (ones, others))
    return shared / (area + other - shared)
