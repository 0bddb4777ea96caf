"""The losses of the class logits: one family over (logit, quality), with value and gradient in one pass over them.

Every class of an anchor is background, with the loss weight * p^gamma * softplus(x) of its logit x and p = sigmoid(x),
but for the own class of a positive, one logit of K: there alone the losses differ, so there is no one-hot map, and any
of them costs hardly more than the focal loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.assignment.samples import NEGATIVE
from model.config import ClassificationConfig, ModelConfig
from model.network.anchors import at_least_float32
from model.network.layers import kernels

BLOCK = 2**18
"""Logits taken at once on the CPU, so that the steps in between stay in its cache."""
LEAST_TARGET = 0.01
"""IA-BCE: a positive learns at least this, however badly its box lies (RF-DETR's code)."""


def classification_loss(logits: Tensor, labels: Tensor, quality: Tensor | None, config: ModelConfig) -> Tensor:
    """The sum over anchors and classes of the loss that `config.classification` names, without its loss_weight.

    Args:
        logits: [R, K], one row per anchor; less than float32 is computed in float32.
        labels: [R] class of each anchor, or NEGATIVE for background; anything below counts nothing.
        quality: [R] how well each positive's box lies, 0 to 1; carries no gradient, and is read at rows with a class
            alone. None for the focal loss, whose target is 1.
        config: which loss.

    Returns:
        [] at least float32. Its gradient is computed along with it, so `backward` may run once.
    """
    settings = config.classification
    if not settings.uses_quality:
        return focal_loss(logits, labels, alpha=config.focal_alpha, gamma=config.focal_gamma)
    if quality is None:
        raise ValueError(f"classification.loss is {settings.loss!r}, whose target needs the quality of each positive")
    function = _CudaLoss if logits.is_cuda else _Loss
    loss: Tensor = function.apply(logits, labels, quality.detach(), _form(settings))
    return loss


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
    loss: Tensor
    if logits.is_cuda:
        loss = _CudaFocalLoss.apply(logits, labels, alpha, gamma)
    else:
        form = _Form(1 - alpha, gamma, partial(_own_focal, alpha=alpha, gamma=gamma))
        loss = _Loss.apply(logits, labels, None, form)
    return loss


@dataclass(frozen=True, slots=True)
class _Form:
    """What makes a loss of the family."""

    weight: float
    """Of the background."""
    gamma: float
    """The exponent of the background's factor p^gamma."""
    own: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    """The loss of the own class of a positive and its derivative, from its logit and quality, of any one shape."""
    factor_learns: bool = True
    """Whether the factor p^gamma has a gradient, or is a weight."""


def _form(settings: ClassificationConfig) -> _Form:
    default = 1.5 if settings.loss == "mal" else 2.0
    gamma = default if settings.gamma is None else settings.gamma
    if settings.loss == "qfl":
        return _Form(1.0, gamma, partial(_own_qfl, gamma=gamma))
    if settings.loss == "vfl":
        alpha = settings.vfl_alpha
        own = partial(_own_vfl, alpha=alpha, gamma=gamma, iou_weighted=settings.vfl_iou_weighted)
        return _Form(alpha, gamma, own)
    if settings.loss == "ia_bce":
        return _Form(1.0, gamma, partial(_own_ia_bce, alpha=settings.ia_bce_alpha))
    # Unlike the equation in its paper, DEIM's code lets no gradient through the weights of negatives.
    return _Form(1.0, gamma, partial(_own_mal, gamma=gamma), factor_learns=False)


def _own_focal(logits: Tensor, _quality: Tensor | None, *, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """alpha * (1 - p)^gamma * -ln p: that of the background with the sign of the logit turned."""
    foreground, rise = _background(-logits, gamma)
    return alpha * foreground, -alpha * rise


def _own_qfl(logits: Tensor, quality: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """|p - u|^gamma * BCE(p, u): quality focal loss (Li et al. 2020, Generalized Focal Loss, Eq. 2)."""
    cross_entropy, error = _cross_entropy(logits, quality)
    factor = error.abs() ** gamma
    slope = factor * error
    if gamma > 0:
        rise = logits.sigmoid() * (-logits).sigmoid() * error.sign()  # of |p - u|
        slope = slope + gamma * error.abs() ** (gamma - 1) * rise * cross_entropy
    return factor * cross_entropy, slope


def _own_vfl(
    logits: Tensor, quality: Tensor, *, alpha: float, gamma: float, iou_weighted: bool
) -> tuple[Tensor, Tensor]:
    """u * BCE(p, u), or the background's where u is 0: varifocal loss (Zhang et al. 2021, VarifocalNet, Eq. 2)."""
    weight = quality if iou_weighted else 1.0
    missed = _background(logits, gamma)
    either = zip(_cross_entropy(logits, quality), missed, strict=True)
    value, slope = (torch.where(quality > 0, weight * hit, alpha * miss) for hit, miss in either)
    return value, slope


def _own_ia_bce(logits: Tensor, quality: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    """BCE(p, t) at t = max(p^a * u^(1-a), 0.01), which carries no gradient (Cai et al. 2023, Align-DETR; RF-DETR)."""
    target = (logits.sigmoid() ** alpha * quality ** (1 - alpha)).clamp(min=LEAST_TARGET)
    return _cross_entropy(logits, target)


def _own_mal(logits: Tensor, quality: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """BCE(p, u^gamma): matchability-aware loss (Huang et al. 2025, DEIM)."""
    return _cross_entropy(logits, quality**gamma)


def _cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """-t ln p - (1-t) ln(1-p), and its derivative p - t; sums of what has one sign, so that nothing cancels out."""
    value = target * functional.softplus(-logits) + (1 - target) * functional.softplus(logits)
    return value, (1 - target) * logits.sigmoid() - target * (-logits).sigmoid()


def _background(logits: Tensor, gamma: float, factor_learns: bool = True) -> tuple[Tensor, Tensor]:
    """p^gamma * softplus(x), and its derivative p^gamma * (gamma * (1 - p) * softplus(x) + p)."""
    probability = logits.sigmoid()
    cross_entropy = functional.softplus(logits)
    if not factor_learns:
        # MAL's own gamma is 1.5; as a power, that took half of the whole loss's time again.
        factor = probability.sqrt().mul_(probability) if gamma == 1.5 else probability**gamma
        return cross_entropy.mul_(factor), probability.mul_(factor)
    slope = (1 - probability).mul_(cross_entropy).mul_(gamma).add_(probability)
    factor = probability.pow_(gamma)
    return cross_entropy.mul_(factor), slope.mul_(factor)


class _Loss(torch.autograd.Function):
    """On the CPU, block by block, the gradient along with the value."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, quality: Tensor | None, form: _Form) -> Tensor:
        gradient = torch.empty_like(logits)
        rows = max(1, BLOCK // max(1, logits.shape[1]))
        blocks = [torch.split(tensor, rows) for tensor in (logits, labels, gradient)]
        qualities = [None] * len(blocks[0]) if quality is None else torch.split(quality, rows)
        values = [_block(x, label, slope, u, form) for x, label, slope, u in zip(*blocks, qualities, strict=True)]
        ctx.gradient = gradient
        return torch.stack(values).sum() if values else logits.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grads[0]), None, None, None


def _block(logits: Tensor, labels: Tensor, gradient: Tensor, quality: Tensor | None, form: _Form) -> Tensor:
    """The loss of some rows; their gradient is written into `gradient`."""
    # Ignored and invalid anchors weigh 0; every class of the others weighs the same, but for the own one below.
    counts = (labels >= NEGATIVE).float()[:, None] * form.weight
    logits = at_least_float32(logits)
    value, slope = _background(logits, form.gamma, form.factor_learns)
    value = value.mul_(counts)
    torch.mul(slope, counts, out=gradient)
    own, positive = labels.clamp(min=0)[:, None], (labels >= 0)[:, None]
    foreground, rise = form.own(logits.gather(1, own), _column(quality, logits))
    value.scatter_(1, own, torch.where(positive, foreground, value.gather(1, own)))
    gradient.scatter_(1, own, torch.where(positive, rise.to(gradient.dtype), gradient.gather(1, own)))
    return value.sum()


def _column(quality: Tensor | None, logits: Tensor) -> Tensor | None:
    """[R, 1] in the precision of the logits."""
    return None if quality is None else quality.to(logits.dtype)[:, None]


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


class _CudaLoss(torch.autograd.Function):
    """The background by a kernel; own classes, one logit of each row, by PyTorch, without a wait of the host."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, quality: Tensor, form: _Form) -> Tensor:
        logits = logits.contiguous()
        positive = labels >= 0
        own = at_least_float32(logits.gather(1, labels.clamp(min=0)[:, None])[:, 0])
        foreground, rise = form.own(own, quality.to(own.dtype))
        ctx.save_for_backward(logits, labels, torch.where(positive, rise, 0.0))
        ctx.form = form
        background: Tensor = kernels.background(logits, labels, form.weight, form.gamma)
        return background + torch.where(positive, foreground, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        form = ctx.form
        gradient = kernels.background_backward(
            *ctx.saved_tensors, grads[0], form.weight, form.gamma, form.gamma if form.factor_learns else 0.0
        )
        return gradient, None, None, None
