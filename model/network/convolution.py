"""A convolution with what follows it: bias, residual, ReLU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network import kernels

Pair = tuple[int, int]


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
    output = functional.conv2d(input, weight, bias, stride, padding)
    if residual is not None:
        output = output.add_(residual)
    return output.relu_() if relu else output


def apply(layer: nn.Conv2d, input: Tensor, *, relu: bool = False) -> Tensor:
    """`convolve` with the weights of a layer that has a bias."""
    assert layer.bias is not None
    return convolve(input, layer.weight, layer.bias, layer.stride, layer.padding, relu=relu)  # type: ignore[arg-type]


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
