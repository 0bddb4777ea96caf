"""The focal loss of the class logits, with value and gradient in one pass over them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.assignment.samples import NEGATIVE
from model.network import kernels

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
    function = _CudaFocalLoss if logits.is_cuda else _FocalLoss
    loss: Tensor = function.apply(logits, labels, alpha, gamma)
    return loss


class _CudaFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        logits = logits.contiguous()
        ctx.save_for_backward(logits, labels)
        ctx.alpha, ctx.gamma = alpha, gamma
        loss: Tensor = kernels.focal(logits, labels, alpha, gamma)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # Computed here from the logits, so that it is written once, multiplied by grads[0] already.
        return kernels.focal_backward(*ctx.saved_tensors, grads[0], ctx.alpha, ctx.gamma), None, None, None


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        gradient = torch.empty_like(logits)
        rows = max(1, BLOCK // max(1, logits.shape[1]))
        blocks = zip(*(torch.split(tensor, rows) for tensor in (logits, labels, gradient)), strict=True)
        values = [_block(*block, alpha=alpha, gamma=gamma) for block in blocks]
        ctx.gradient = gradient
        return torch.stack(values).sum() if values else logits.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grads[0]), None, None, None


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 has 8 bits: the IoU of a decoded box would be off by up to 0.006."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _block(logits: Tensor, labels: Tensor, gradient: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """The loss of some rows; their gradient is written into `gradient`."""
    # Ignored and invalid anchors weigh 0; every class of the others weighs 1 - alpha, but for the own one below.
    counts = (labels >= NEGATIVE).float()[:, None] * (1 - alpha)
    logits = at_least_float32(logits)
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
