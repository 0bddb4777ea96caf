"""What CUDA computes in one pass, by Triton's interpreter, which needs no GPU, beside what PyTorch makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import torch
from model.network import kernels
from model.losses.classification import _block

torch.manual_seed(0)
for channels, images, height, width in ((36, 2, 5, 7), (720, 1, 4, 6), (9, 1, 3, 3), (64, 2, 9, 11), (512, 1, 3, 5)):
    maps = torch.randn(images, channels, height, width).contiguous(memory_format=torch.channels_last)
    bias, found = torch.randn(channels), maps.clone(memory_format=torch.preserve_format)
    kernels.finish(found, bias)
    assert torch.equal(found, maps + bias[:, None, None]), channels
    output, gradient = maps.relu(), torch.randn_like(maps)
    masked, of_bias = kernels.finish_backward(gradient, output)
    assert torch.equal(masked, torch.where(output > 0, gradient, 0)), channels
    torch.testing.assert_close(of_bias, masked.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    _, of_bias = kernels.finish_backward(gradient, None)
    torch.testing.assert_close(of_bias, gradient.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
for rows, gamma in ((37, 2.0), (200, 0.0), (201, 1.5)):
    logits, labels = 4 * torch.randn(rows, 80) - 2, torch.randint(-3, 80, (rows,))
    gradient = torch.empty_like(logits)
    expected = _block(logits.clone(), labels, gradient, alpha=0.25, gamma=gamma)
    torch.testing.assert_close(kernels.focal(logits, labels, 0.25, gamma), expected, rtol=1e-6, atol=0)
    found = kernels.focal_backward(logits, labels, torch.tensor(0.5), 0.25, gamma)
    torch.testing.assert_close(found, 0.5 * gradient, rtol=1e-5, atol=2e-6)
"""


def test_the_kernels_compute_what_pytorch_does() -> None:
    pytest.importorskip("triton", reason="PyTorch for the CPU alone comes without Triton")
    # Triton reads the variable when it is imported, which other tests may have done.
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
