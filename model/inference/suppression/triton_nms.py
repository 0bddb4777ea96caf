"""Greedy class-wise NMS as one kernel: a program for each list, which keeps the boxes that it has kept in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def one_by_one(boxes: Tensor, labels: Tensor, num: Tensor, iou: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """As `batched_nms.greedy`; each candidate is compared with all that are kept, and the rest is left once there are
    `limit`."""
    num_lists, num_candidates = labels.shape
    places = torch.zeros(num_lists, limit, dtype=torch.int32, device=boxes.device)
    count = torch.zeros(num_lists, dtype=torch.int32, device=boxes.device)
    width = triton.next_power_of_2(limit)
    # Triton starts kernels on the current device.
    with torch.cuda.device_of(boxes):  # type: ignore[no-untyped-call]
        _keep[(num_lists,)](
            boxes.contiguous(),
            labels.contiguous(),
            num,
            iou,
            places,
            count,
            num_candidates,
            limit,
            WIDTH=max(32, width),
            num_warps=min(8, max(1, width // 128)),
            # A fused multiply-add would round the areas otherwise than the CPU does.
            enable_fp_fusion=False,
        )
    return places, count


@triton.jit  # type: ignore[untyped-decorator]
def _keep(boxes, labels, num, iou, places, count, num_candidates, limit, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    lanes = tl.arange(0, WIDTH)
    x1 = tl.zeros([WIDTH], tl.float32)
    y1 = tl.zeros([WIDTH], tl.float32)
    x2 = tl.zeros([WIDTH], tl.float32)
    y2 = tl.zeros([WIDTH], tl.float32)
    name = tl.full([WIDTH], -1, tl.int32)  # of a lane that has no box yet
    most = tl.load(iou + row)
    end = tl.load(num + row)
    first = row.to(tl.int64) * num_candidates
    i = 0
    kept = 0
    while (i < end) & (kept < limit):
        box = boxes + (first + i) * 4
        left = tl.load(box)
        top = tl.load(box + 1)
        right = tl.load(box + 2)
        bottom = tl.load(box + 3)
        label = tl.load(labels + first + i)
        width = tl.maximum(tl.minimum(x2, right) - tl.maximum(x1, left), 0.0)
        height = tl.maximum(tl.minimum(y2, bottom) - tl.maximum(y1, top), 0.0)
        shared = width * height
        union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - shared
        # NaN, of two boxes without area, is above nothing.
        beaten = (tl.div_rn(shared, union) > most) & (name == label)
        stays = tl.sum(beaten.to(tl.int32), axis=0) == 0
        here = (lanes == kept) & stays
        x1 = tl.where(here, left, x1)
        y1 = tl.where(here, top, y1)
        x2 = tl.where(here, right, x2)
        y2 = tl.where(here, bottom, y2)
        name = tl.where(here, label, name)
        tl.store(places + row.to(tl.int64) * limit + kept, i, mask=stays)
        kept += stays.to(tl.int32)
        i += 1
    tl.store(count + row, kept)
