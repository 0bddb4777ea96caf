"""Edges of boxes as distributions over distances (box.bins): their means, and what they say of a box's quality."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from model.network.anchors import NUM_ANCHORS, STRIDES, AnchorRule, at_least_float32, base_anchors, deltas_of_edges

NUM_TOP = 4
"""Largest probabilities of an edge that its quality is read off, beside their mean (GFLv2, D-FINE)."""
QUALITY_CHANNELS = 64
"""Hidden numbers of the network that reads them."""


class Edges(nn.Module):
    """Reads distributions of edges (box.bins): the boxes that they mean, and how well these should lie."""

    sides: Tensor
    """[5, 9, 2] width and height of each level's anchors, in its strides."""

    def __init__(self, bins: int, rule: AnchorRule, quality: Literal["gflv2", "dfine"] | None) -> None:
        """Take distributions over so many distances; without a quality there is nothing to learn here."""
        super().__init__()
        self.bins, self.kind = bins, quality
        boxes = torch.stack([base_anchors(stride, rule) / stride for stride in STRIDES])
        self.register_buffer("sides", boxes[..., 2:] - boxes[..., :2], persistent=False)
        self.num_top = 0
        self.quality = None
        if quality is not None:
            self.num_top = min(NUM_TOP, bins)
            first, last = nn.Linear(4 * (self.num_top + 1), QUALITY_CHANNELS), nn.Linear(QUALITY_CHANNELS, 1)
            self.quality = nn.Sequential(first, nn.ReLU(), last)
            if quality == "dfine":  # begins with the scores as they are
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            else:
                for layer in (first, last):
                    nn.init.normal_(layer.weight, std=0.01)
                    nn.init.zeros_(layer.bias)

    def forward(self, logits: Tensor, level: int | Tensor) -> tuple[Tensor, Tensor | None]:
        """Read the distributions of some cells.

        Args:
            logits: [..., 9*4*n].
            level: of the cells, 0 for P3; or [...] that of each.

        Returns:
            [..., 9*4] deltas, at least float32, and [..., 9] logits of the quality, if any.
        """
        mean, top = read_distributions(torch.unflatten(logits, -1, (NUM_ANCHORS, 4, self.bins)), self.num_top)
        deltas = deltas_of_edges(mean, self.sides[level]).flatten(-2)
        if self.quality is None:
            return deltas, None
        # Both sources let the gradient of the score through to the edges.
        statistics = torch.cat([top, top.mean(dim=-1, keepdim=True)], dim=-1)
        return deltas, self.quality(statistics.flatten(-2))[..., 0]

    def join(self, class_logits: Tensor, quality: Tensor) -> Tensor:
        """Class logits [B, 9*K, h, w] that hold the quality [B, h, w, 9] as well."""
        classes = torch.unflatten(class_logits, 1, (NUM_ANCHORS, -1))
        quality = quality.permute(0, 3, 1, 2)[:, :, None]
        if self.kind == "dfine":
            return (classes + quality).flatten(1, 2)
        # The logit of the product of both probabilities, -logsumexp(-a, -b, -a - b), with one exponential an entry.
        classes, quality = at_least_float32(classes), at_least_float32(quality)
        return (quality - softplus(softplus(quality) - classes)).flatten(1, 2).to(class_logits.dtype)


def read_distributions(logits: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """Take the mean and the largest probabilities of distributions.

    Args:
        logits: [..., n] of the distances 0 to n - 1.
        num_top: probabilities wanted of each, up to n.

    Returns:
        [...] and [..., num_top], at least float32. Nothing but the logits and the places is kept for the gradient: at
        all anchors the probabilities would take as much memory as those of all classes.
    """
    mean, top = _Distributions.apply(logits, num_top)
    return mean, top


class _Distributions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
        probability = at_least_float32(logits).softmax(dim=-1)
        top, places = probability.topk(num_top, dim=-1)
        ctx.save_for_backward(logits, places)
        ctx.set_materialize_grads(False)
        return (probability * _distances(probability)).sum(dim=-1), top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, places = ctx.saved_tensors
        of_mean, of_top = grads  # None where nothing reads one of them
        probability = at_least_float32(logits).softmax(dim=-1)
        slope = torch.zeros_like(probability)
        if of_top is not None:
            slope.scatter_(-1, places, of_top)
        if of_mean is not None:
            slope.add_(of_mean[..., None] * _distances(probability))
        slope.sub_((probability * slope).sum(dim=-1, keepdim=True)).mul_(probability)
        return slope.to(logits.dtype), None


def _distances(numbers: Tensor) -> Tensor:
    """[n] 0 to n - 1 for numbers [..., n]."""
    return torch.arange(numbers.shape[-1], dtype=numbers.dtype, device=numbers.device)
