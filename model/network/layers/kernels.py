"""What CUDA computes in one pass over a map: bias, its gradient and that of a ReLU after it, the class losses (Triton).

In a step on an H100, biases, ReLUs and their gradients took PyTorch's own operations 20 ms, and all convolutions 31.
Each operation is known to torch by name, so that fake tensors and graphs go through it.
"""

from contextlib import AbstractContextManager
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

PROGRAMS = 528
"""About so many programs share a map: four for each multiprocessor of an H100."""
COLUMNS = 128
"""Most channels that a program reads side by side."""
ROWS = 32
"""Cells that a program takes at once."""
BLOCK = 4096
"""Logits that a program takes at once."""


@torch.library.custom_op("rnc::finish", mutates_args=("maps",))
def finish(maps: Tensor, bias: Tensor) -> None:
    """Add a bias, in place.

    Args:
        maps: [B, C, h, w] in channels_last order, on CUDA.
        bias: [C].
    """
    rows, columns, per_program, grid = _tiles(maps)
    with _on(maps):
        _compiled().finish[grid](
            maps, bias, rows, maps.shape[1], per_program, ROWS=ROWS, COLUMNS=columns,
        )  # fmt: skip


@torch.library.custom_op("rnc::finish_backward", mutates_args=())
def finish_backward(gradient: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of `finish`, of a residual added to it, and of a ReLU after these.

    Args:
        gradient: of what came out, [B, C, h, w] in channels_last order, on CUDA.
        maps: what a ReLU after it gave; None without one.

    Returns:
        That of its input and residual (nothing, if `maps` is None: it is `gradient` itself), and of the bias, float32.
    """
    rows, columns, per_program, grid = _tiles(gradient)
    masked = gradient.new_empty(0) if maps is None else torch.empty_like(gradient)
    # Sums of programs are added up in order, as atomic additions would differ from run to run.
    partial = torch.empty(grid[0], gradient.shape[1], device=gradient.device)
    with _on(gradient):
        _compiled().finish_backward[grid](
            gradient, gradient if maps is None else maps, masked, partial, rows, gradient.shape[1], per_program,
            RELU=maps is not None, ROWS=ROWS, COLUMNS=columns,
        )  # fmt: skip
    return masked, partial.sum(dim=0)


@finish_backward.register_fake
def _(gradient: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor]:
    masked = gradient.new_empty(0) if maps is None else torch.empty_like(gradient)
    return masked, gradient.new_empty(gradient.shape[1], dtype=torch.float32)


@torch.library.custom_op("rnc::focal", mutates_args=())
def focal(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss, summed; see losses.classification.focal_loss for its arguments, which are on CUDA."""
    return _class_loss(logits, labels, alpha, 1 - alpha, gamma)


@focal.register_fake
def _(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    return logits.new_empty((), dtype=torch.float32)


@torch.library.custom_op("rnc::focal_backward", mutates_args=())
def focal_backward(logits: Tensor, labels: Tensor, scale: Tensor, alpha: float, gamma: float) -> Tensor:
    """[R, K] the gradient of `focal` times `scale` []."""
    return _class_gradient(logits, labels, None, scale, alpha, 1 - alpha, gamma, gamma)


@focal_backward.register_fake
def _(logits: Tensor, labels: Tensor, scale: Tensor, alpha: float, gamma: float) -> Tensor:
    return torch.empty_like(logits)


@torch.library.custom_op("rnc::background", mutates_args=())
def background(logits: Tensor, labels: Tensor, weight: float, gamma: float) -> Tensor:
    """weight * p^gamma * softplus(x), summed over all entries but the own classes of positives.

    Args:
        logits: [R, K], on CUDA, row after row.
        labels: [R] as those of losses.classification.classification_loss.
        weight: of every entry.
        gamma: the exponent of the factor p^gamma.
    """
    return _class_loss(logits, labels, None, weight, gamma)


@background.register_fake
def _(logits: Tensor, labels: Tensor, weight: float, gamma: float) -> Tensor:
    return logits.new_empty((), dtype=torch.float32)


@torch.library.custom_op("rnc::background_backward", mutates_args=())
def background_backward(
    logits: Tensor, labels: Tensor, own: Tensor, scale: Tensor, weight: float, gamma: float, through: float
) -> Tensor:
    """[R, K] the gradient of `background`, with `own` at the own classes of positives, times `scale` [].

    Args:
        logits: [R, K], on CUDA, row after row.
        labels: [R].
        own: [R] the derivative of the loss in the logit of the own class.
        scale: [].
        weight: of every entry.
        gamma: the exponent of the factor p^gamma.
        through: gamma, or 0 if the factor carries no gradient.
    """
    return _class_gradient(logits, labels, own, scale, None, weight, gamma, through)


@background_backward.register_fake
def _(
    logits: Tensor, labels: Tensor, own: Tensor, scale: Tensor, weight: float, gamma: float, through: float
) -> Tensor:
    return torch.empty_like(logits)


def _class_loss(logits: Tensor, labels: Tensor, alpha: float | None, weight: float, gamma: float) -> Tensor:
    partial, per_program = _shares(logits)
    with _on(logits):
        _compiled().class_loss[(len(partial),)](
            logits, labels, partial, logits, partial, partial, logits.numel(), per_program, alpha or 0.0, weight,
            gamma, gamma, CLASSES=logits.shape[1], FOCAL=alpha is not None, BACKWARD=False, BLOCK=BLOCK,
        )  # fmt: skip
    return partial.sum()


def _class_gradient(
    logits: Tensor, labels: Tensor, own: Tensor | None, scale: Tensor, alpha: float | None, weight: float,
    gamma: float, through: float,
) -> Tensor:  # fmt: skip
    gradient = torch.empty_like(logits)
    partial, per_program = _shares(logits)
    with _on(logits):
        _compiled().class_loss[(len(partial),)](
            logits, labels, partial, gradient, partial if own is None else own, scale, logits.numel(), per_program,
            alpha or 0.0, weight, gamma, through, CLASSES=logits.shape[1], FOCAL=alpha is not None, BACKWARD=True,
            BLOCK=BLOCK,
        )  # fmt: skip
    return gradient


def _on(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton starts kernels on the current device, whatever device their tensors are on."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _tiles(maps: Tensor) -> tuple[int, int, int, tuple[int, int]]:
    """(cells, channels of a program, cells of a program, programs) of a map in channels_last order."""
    rows, channels = maps.numel() // maps.shape[1], maps.shape[1]
    columns = min(COLUMNS, max(16, 1 << (channels - 1).bit_length()))
    across = -(-channels // columns)
    down = max(1, min(PROGRAMS // across, -(-rows // ROWS)))
    per_program = ROWS * -(-rows // (ROWS * down))
    return rows, columns, per_program, (-(-rows // per_program), across)


def _shares(logits: Tensor) -> tuple[Tensor, int]:
    """(an empty sum for each program, logits of a program)."""
    blocks = -(-logits.numel() // BLOCK)
    per_program = BLOCK * max(1, -(-blocks // (4 * PROGRAMS)))
    return torch.empty(-(-logits.numel() // per_program), device=logits.device), per_program


@cache
def _compiled() -> SimpleNamespace:
    """The kernels; made at their first use, as Triton comes with torch for CUDA alone."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def finish(  # type: ignore[no-untyped-def]
        maps, bias, rows, channels, per_program, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        shift = tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)
        first = tl.program_id(0).to(tl.int64) * per_program
        for start in range(0, per_program, ROWS):
            row = first + start + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & (column < channels)[None, :]
            place = row[:, None] * channels + column[None, :]
            value = tl.load(maps + place, mask=inside).to(tl.float32) + shift[None, :]
            tl.store(maps + place, value.to(maps.dtype.element_ty), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def finish_backward(  # type: ignore[no-untyped-def]
        gradient, maps, masked, partial, rows, channels, per_program,
        RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.program_id(0).to(tl.int64) * per_program
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, per_program, ROWS):
            row = first + start + tl.arange(0, ROWS)
            inside = (row < rows)[:, None] & (column < channels)[None, :]
            place = row[:, None] * channels + column[None, :]
            value = tl.load(gradient + place, mask=inside, other=0.0)
            if RELU:
                value = tl.where(tl.load(maps + place, mask=inside, other=0.0) > 0.0, value, 0.0)
                tl.store(masked + place, value, mask=inside)
            total += value.to(tl.float32)
        tl.store(partial + tl.program_id(0) * channels + column, tl.sum(total, axis=0), mask=column < channels)

    @triton.jit  # type: ignore[untyped-decorator]
    def class_loss(  # type: ignore[no-untyped-def]
        logits, labels, partial, gradient, slopes, scale, count, per_program, alpha, weight, gamma, through,
        CLASSES: tl.constexpr, FOCAL: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        first = tl.program_id(0).to(tl.int64) * per_program
        # Places within the program's part fit 32 bits, in which divisions are cheaper.
        row, column = first // CLASSES, (first % CLASSES).to(tl.int32)
        logits, gradient, labels, slopes = logits + first, gradient + first, labels + row, slopes + row
        count = count - first
        total = tl.zeros([BLOCK], tl.float32)
        factor = tl.load(scale) if BACKWARD else 1.0
        for start in range(0, per_program, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < count
            anchor = (place + column) // CLASSES
            label = tl.load(labels + anchor, mask=inside, other=-2)
            own = label == (place + column) % CLASSES
            logit = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32)
            # The focal loss of an anchor's own class is that of the background with the sign of its logit turned.
            sign = tl.where(own, -1.0, 1.0)
            counts = tl.where(own, alpha, tl.where(label >= -1, weight, 0.0))  # -1 is samples.NEGATIVE
            x = sign * logit
            small = tl.exp(-tl.abs(x))
            softplus = tl.maximum(x, 0.0) + tl.log(1.0 + small)
            power = tl.exp(gamma * (x - softplus))  # p^gamma: ln p is x - softplus(x)
            if BACKWARD:
                p = tl.where(x >= 0.0, 1.0, small) / (1.0 + small)
                q = tl.where(x >= 0.0, small, 1.0) / (1.0 + small)
                slope = sign * counts * factor * power * (through * q * softplus + p)
                if not FOCAL:
                    given = tl.load(slopes + anchor, mask=inside & own, other=0.0).to(tl.float32)
                    slope = tl.where(own, factor * given, slope)
                tl.store(gradient + place, slope.to(gradient.dtype.element_ty), mask=inside)
            else:
                total += tl.where(inside, counts * power * softplus, 0.0)
        if not BACKWARD:
            tl.store(partial + tl.program_id(0), tl.sum(total, axis=0))

    return SimpleNamespace(finish=finish, finish_backward=finish_backward, class_loss=class_loss)
