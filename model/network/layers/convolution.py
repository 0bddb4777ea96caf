"""A convolution with what follows it: bias, residual, ReLU; and convolutions at some cells instead of whole maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network.layers import kernels

Pair = tuple[int, int]
MOST = 0.25
"""Largest part of all cells for which single cells are faster to compute than whole maps (CPU)."""


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """[B, O, h, w] convolution of `input` [B, C, H, W], plus bias, through a ReLU if asked.

    A residual, like the output, is added before the ReLU, and comes with one.
    """
    assert residual is None or relu
    if input.is_cuda:
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            input, weight, bias = input.to(dtype), weight.to(dtype), bias.to(dtype)
            residual = None if residual is None else residual.to(dtype)
        output: Tensor = _Convolution.apply(input, weight, bias, residual, stride, padding, relu)
        return output
    if input.shape[3] == 1 and stride[1] == 2 and _in_bfloat16(input):
        # torch 2.15, CPU, bfloat16: the weight's gradient over maps of one column is memory that nobody has written.
        # With a column of zeros behind it, the output has the same shape and values.
        input = functional.pad(input, (0, 1))
    output = functional.conv2d(input, weight, bias, stride, padding)
    if residual is not None:
        output = output.add_(residual)
    return output.relu_() if relu else output


def _in_bfloat16(input: Tensor) -> bool:
    return torch.bfloat16 in (input.dtype, torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))


def apply(layer: nn.Conv2d, input: Tensor, *, relu: bool = False) -> Tensor:
    """`convolve` with the weights of a layer that has a bias."""
    assert layer.bias is not None
    return convolve(input, layer.weight, layer.bias, layer.stride, layer.padding, relu=relu)  # type: ignore[arg-type]


def sparse_rows(
    layers: Sequence[nn.Conv2d], outputs: Sequence[nn.Conv2d], features: Sequence[Tensor], cells: Tensor
) -> list[Tensor] | None:
    """Run convolution and ReLU for each of `layers`, then each of `outputs` on the last, at some cells only.

    Args:
        layers: 3x3 convolutions with padding 1, at least one.
        outputs: likewise; each reads the last layer.
        features: L maps [B, C, h, w].
        cells: [S] rising places in the list of all cells: level, image, row, column.

    Returns:
        For each output its values at the cells, [S, O]; None where the regions are so large that maps are faster.
    """
    shapes = [(len(feature), *feature.shape[2:]) for feature in features]
    regions, neighbours = [cells], []
    # From the last layer back: a 3x3 convolution reads a ring of cells around those that it computes.
    for _ in range(len(layers) + 1):
        around = _neighbours(regions[-1], shapes)
        regions.append(torch.unique(around[around >= 0]))
        neighbours.append(_places(regions[-1], around))
    if len(regions[-2]) > MOST * sum(feature[:, 0].numel() for feature in features):
        return None
    rows = _rows_of(features, regions[-1])
    for layer, places in zip(layers, reversed(neighbours[1:]), strict=True):
        rows = _convolve(layer, rows, places).relu_()
    return [_convolve(output, rows, neighbours[0]) for output in outputs]


def dense_maps(rows: Tensor, cells: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """L maps [B, O, h, w] that hold the rows at their cells, and 0 elsewhere."""
    sizes = [feature[:, 0].numel() for feature in features]
    whole = rows.new_zeros(sum(sizes), rows.shape[1]).index_copy(0, cells, rows)
    return [
        part.view(len(feature), *feature.shape[2:], -1).permute(0, 3, 1, 2)
        for part, feature in zip(torch.split(whole, sizes), features, strict=True)
    ]


@torch.library.custom_op("rnc::convolve", mutates_args=())
def _on_cuda(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    relu: bool,
) -> Tensor:
    if relu:  # cuDNN does all of it at once
        rest = (bias, stride, padding, (1, 1), 1)
        if residual is None:
            output = torch.cudnn_convolution_relu(input, weight, *rest)
        else:
            output = torch.cudnn_convolution_add_relu(input, weight, residual, 1.0, *rest)
        return output.contiguous(memory_format=torch.channels_last)
    output = functional.conv2d(input, weight, None, stride, padding).contiguous(memory_format=torch.channels_last)
    kernels.finish(output, bias)
    return output


@_on_cuda.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    relu: bool,
) -> Tensor:
    output = functional.conv2d(input, weight, None, stride, padding)
    return output.contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """On CUDA, where biases by themselves took 8.6 ms of a step (H100), convolutions 10.1, biases' gradients 5.4."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        stride: Pair,
        padding: Pair,
        relu: bool,
    ) -> Tensor:
        output: Tensor = _on_cuda(input, weight, bias, residual, stride, padding, relu)
        ctx.save_for_backward(input, weight, output if relu else None)
        ctx.stride, ctx.padding, ctx.has_residual, ctx.dtype = stride, padding, residual is not None, bias.dtype
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, output = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        masked, of_bias = kernels.finish_backward(gradient, output)
        gradient = gradient if output is None else masked
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient,
            input,
            weight,
            None,
            ctx.stride,
            ctx.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False),
        )
        of_residual = gradient if ctx.has_residual and ctx.needs_input_grad[3] else None
        return of_input, of_weight, of_bias.to(ctx.dtype), of_residual, None, None, None


def _convolve(layer: nn.Conv2d, rows: Tensor, places: Tensor) -> Tensor:
    """[S, O] the convolution of rows [R, C] at the cells whose nine neighbours are rows `places` [S, 9]; R is zero."""
    table = functional.pad(rows, (0, 0, 0, 1))
    patches = table.index_select(0, places.flatten()).view(len(places), 9 * rows.shape[1])
    # One matrix product; the weights as rows over (row, column, channel), like the patches.
    return functional.linear(patches, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)


def _neighbours(cells: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """[S, 9] the 3x3 neighbours of each cell by row and column, -1 where there are none."""
    found, first = [], 0
    offset = torch.arange(-1, 2, device=cells.device)
    for images, height, width in shapes:
        count = images * height * width
        cell = cells[(cells >= first) & (cells < first + count)] - first
        row = (cell // width % height)[:, None] + offset
        column = (cell % width)[:, None] + offset
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
        places = cell[:, None, None] + width * offset[:, None] + offset + first
        found.append(torch.where(inside, places, -1).flatten(1))
        first += count
    return torch.cat(found)


def _places(region: Tensor, cells: Tensor) -> Tensor:
    """Where in a rising region each cell stands; behind its end for -1."""
    return torch.where(cells >= 0, torch.searchsorted(region, cells), len(region))


def _rows_of(features: Sequence[Tensor], cells: Tensor) -> Tensor:
    """[S, C] the features of the cells."""
    rows, first = [], 0
    for feature in features:
        table = feature.permute(0, 2, 3, 1).flatten(0, 2)
        mine = cells[(cells >= first) & (cells < first + len(table))] - first
        rows.append(table.index_select(0, mine))
        first += len(table)
    return torch.cat(rows)
