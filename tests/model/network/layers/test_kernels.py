"""What CUDA computes in one pass, by Triton's interpreter, which needs no GPU, beside what PyTorch makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import torch
from model.network.layers import kernels
from model.config import ClassificationConfig
from model.losses.classification import _CudaLoss, _form, _Loss, focal_loss

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
    logits, labels = (4 * torch.randn(rows, 80) - 2).requires_grad_(), torch.randint(-3, 80, (rows,))
    expected = focal_loss(logits, labels, alpha=0.25, gamma=gamma)
    (gradient,) = torch.autograd.grad(expected, logits)
    logits, expected = logits.detach(), expected.detach()
    torch.testing.assert_close(kernels.focal(logits, labels, 0.25, gamma), expected, rtol=1e-6, atol=0)
    found = kernels.focal_backward(logits, labels, torch.tensor(0.5), 0.25, gamma)
    torch.testing.assert_close(found, 0.5 * gradient, rtol=1e-5, atol=2e-6)
for settings in (
    {"loss": "qfl"}, {"loss": "qfl", "gamma": 0.0}, {"loss": "vfl"}, {"loss": "vfl", "vfl_iou_weighted": False},
    {"loss": "ia_bce"}, {"loss": "mal"}, {"loss": "mal", "gamma": 0.0},
):
    form = _form(ClassificationConfig(**settings))
    for rows, classes, precision in ((201, 80, torch.float32), (137, 80, torch.bfloat16), (5000, 1, torch.float32)):
        given, labels = (4 * torch.randn(rows, classes) - 2).to(precision), torch.randint(-3, classes, (rows,))
        quality = torch.rand(rows).where(labels >= 0, torch.nan)
        quality[::5] = quality[::5] * 0
        results = []
        for function in (_CudaLoss, _Loss):
            logits = given.clone().requires_grad_()
            loss = function.apply(logits, labels, quality, form)
            (0.5 * loss).backward()
            results.append((loss.detach(), logits.grad))
        (loss, gradient), (expected, of_cpu) = results
        assert (gradient.dtype, loss.dtype) == (precision, torch.float32)
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0, msg=str(settings))
        roughly = {"rtol": 1e-5, "atol": 2e-6} if precision == torch.float32 else {"rtol": 2**-7, "atol": 2e-6}
        torch.testing.assert_close(gradient, of_cpu, **roughly, msg=str(settings))
"""


def test_the_kernels_compute_what_pytorch_does() -> None:
    pytest.importorskip("triton", reason="PyTorch for the CPU alone comes without Triton")
    # Triton reads the variable when it is imported, which other tests may have done.
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
