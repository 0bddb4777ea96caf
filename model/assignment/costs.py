"""What an anchor's class logits cost for a box, where rules weigh anchors by predictions; never a number for each class
of each pair of a box and an anchor."""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 2**22
"""Numbers of an intermediate tensor: what follows is done for so many at a time."""

LogitCost = Callable[[Tensor], Tensor]
"""The cost of logits, elementwise, for a target of 0; that of -x is the cost of x for a target of 1."""


def background_cost(class_logits: Tensor, cost: LogitCost) -> Tensor:
    """[B, N] what all classes of an anchor cost if none is the target.

    With class c as the target, an anchor costs this less the background cost of x_c plus its foreground cost, so that
    M boxes need [M, N] numbers and not [M, N, K].

    Args:
        class_logits: [B, N, K].
        cost: of each logit.
    """
    rows = torch.split(class_logits.flatten(0, 1), max(1, BLOCK // max(1, class_logits.shape[2])))
    sums = [cost(block).sum(dim=1) for block in rows]
    return torch.cat(sums).view(class_logits.shape[:2]) if sums else class_logits.new_zeros(class_logits.shape[:2])


def softplus(x: Tensor) -> Tensor:
    """-ln(1 - p), the cross entropy of a logit towards 0.

    torch's own takes another path for the last few numbers of a tensor, and an anchor's cost would depend on its batch.
    """
    return x.abs().neg_().exp_().log1p_().add_(x.clamp(min=0))


def order_key(cost: Tensor) -> Tensor:
    """int64 in 0 to 2^31 - 1 that rises with a cost, as float32 has it; costs below 0 count as 0."""
    # + 0.0, as the bits of -0.0 are those of a negative number.
    return (cost.float().clamp(min=0) + 0.0).view(torch.int32).long()
