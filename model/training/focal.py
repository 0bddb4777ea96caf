"""Sigmoid focal loss over all anchors and classes: value and gradient in one pass, without one-hot targets."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.training.matching import NEGATIVE

BLOCK = 2**18
"""Logits taken at once on the CPU, so that the steps in between stay in its cache."""


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The sum over anchors and classes of the focal loss (Lin et al. 2017, Eq. 5).

    Args:
        logits: [R, K], one row per anchor; less than float32 is computed in float32.
        labels: [R] class of each anchor, or NEGATIVE for background; anything below counts nothing.
        alpha: the weight of an anchor's own class; all others weigh 1 - alpha.
        gamma: the exponent of the modulating factor.

    Returns:
        [] at least float32. Its gradient is computed along with it, so `backward` may run once.
    """
    loss: Tensor = _FocalLoss.apply(logits, labels, alpha, gamma)
    return loss


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        gradient = torch.empty_like(logits)
        rows = len(logits) if logits.is_cuda else max(1, BLOCK // max(1, logits.shape[1]))
        blocks = zip(*(torch.split(tensor, rows) for tensor in (logits, labels, gradient)), strict=True)
        values = [_block(*block, alpha=alpha, gamma=gamma) for block in blocks]
        ctx.gradient = gradient
        return torch.stack(values).sum() if values else logits.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grads[0]), None, None, None


def _block(logits: Tensor, labels: Tensor, gradient: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The loss of some rows; their gradient is written into `gradient`."""
    counts = (labels >= NEGATIVE).float()[:, None] * (1 - alpha)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    value, slope = _background(logits, gamma)
    value = value.mul_(counts)
    torch.mul(slope, counts, out=gradient)
    own, positive = labels.clamp(min=0)[:, None], (labels >= 0)[:, None]
    # The loss of an anchor's own class is that of the background with the sign of its logit turned.
    foreground, rise = _background(-logits.gather(1, own), gamma)
    value.scatter_(1, own, torch.where(positive, alpha * foreground, value.gather(1, own)))
    gradient.scatter_(1, own, torch.where(positive, (-alpha * rise).to(gradient.dtype), gradient.gather(1, own)))
    return value.sum()


def _background(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """p^gamma * softplus(x), and its derivative p^gamma * (gamma * (1 - p) * softplus(x) + p)."""
    probability = logits.sigmoid()
    cross_entropy = functional.softplus(logits)
    slope = (1 - probability).mul_(cross_entropy).mul_(gamma).add_(probability)
    factor = probability.pow_(gamma)
    return cross_entropy.mul_(factor), slope.mul_(factor)
