"""Convolutions with what follows them, on the CPU."""

import pytest
import torch
from torch import nn

from model.network.layers.convolution import apply


@pytest.mark.parametrize("height", [1, 3, 8])
@pytest.mark.parametrize("side", [3, 7])
def test_maps_of_one_column_have_sound_gradients_in_bfloat16(height: int, side: int) -> None:
    """Those of images up to 64 wide; torch 2.15 alone leaves the weight's gradient to chance there."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(16, 16, side, stride=2, padding=side // 2)
    map = torch.randn(2, 16, height, 1, generator=generator).to(memory_format=torch.channels_last)
    gradients = {}
    for is_brief in (False, True):
        layer.zero_grad()
        for _ in range(8):  # memory that others have used
            torch.full((16, 16, side, side), 1e30)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_brief):
            output = apply(layer, map)
        output.float().square().sum().backward()
        assert layer.weight.grad is not None
        gradients[is_brief] = layer.weight.grad.clone()
    assert output.shape == (2, 16, (height + 1) // 2, 1)
    torch.testing.assert_close(
        gradients[True], gradients[False], rtol=0.05, atol=0.05 * float(gradients[False].abs().max())
    )
