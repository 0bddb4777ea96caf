"""The imagined GPU of tests/fake_cuda.py catches what tests of the GPU's path are to catch, and lets the rest pass."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.detectors import small
from tests.fake_cuda import CUDA, HostWaitsError, detector_on_cuda, imagined_cuda, run_backward, watched

WAITS: dict[str, Callable[[Tensor], object]] = {
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu", non_blocking=True),
    "copy down": lambda x: torch.zeros(3, 4).copy_(x),
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "write by mask": lambda x: x.__setitem__(x > 0, x[0]),
    "unique": lambda x: x.unique(),
    "repeat": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64, device=CUDA), dim=0),
    "constant": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0], device=CUDA),
    "scalar constant": lambda x: x + torch.tensor(1.0, device=CUDA),
    "new_tensor": lambda x: x + x.new_tensor([1.0, 2.0, 3.0, 4.0]),
    "list as index": lambda x: x[[0, 2]],
    "host's index": lambda x: x[torch.tensor([0, 2])],
    "copy up": lambda x: x.copy_(torch.zeros(3, 4)),
    "unwaited copy of another tensor": lambda x: torch.zeros(3).to(CUDA, non_blocking=True),
}
PASSES: dict[str, Callable[[Tensor], object]] = {
    "number": lambda x: 2.0 * x + 1.0,
    "number as tensor": lambda x: torch.tensor(2.0) * x,
    "filled": lambda x: x + torch.full((4,), 2.0, device=CUDA),
    "range": lambda x: x + torch.arange(4, device=CUDA),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "write a number by mask": lambda x: x.__setitem__(x > 0, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "index": lambda x: x[torch.arange(3, device=CUDA)],
    "place": lambda x: x[1, :2],
    "topk": lambda x: x.topk(2),
    "repeat to a known size": lambda x: x.repeat_interleave(
        torch.ones(3, dtype=torch.int64, device=CUDA), dim=0, output_size=3
    ),
    "cast": lambda x: x.to(torch.bfloat16),
}


@pytest.mark.parametrize("inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("name", WAITS)
def test_what_makes_the_host_wait_is_refused(name: str, inference: bool) -> None:
    with imagined_cuda(), torch.inference_mode(inference):
        given = torch.ones(3, 4, device=CUDA)
        with watched(), pytest.raises(HostWaitsError):
            WAITS[name](given)


@pytest.mark.parametrize("inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("name", PASSES)
def test_what_needs_no_wait_passes(name: str, inference: bool) -> None:
    with imagined_cuda(), torch.inference_mode(inference):
        given = torch.ones(3, 4, device=CUDA)
        with watched():
            PASSES[name](given)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.where(x > 0, x, torch.ones(3, 4)),
        lambda x: x.gather(1, torch.ones(3, 1).long()),
    ],
    ids=["sum", "where", "gather"],
)
def test_a_tensor_of_the_other_device_is_refused_without_a_watch_as_well(wrong: Callable[[Tensor], object]) -> None:
    with imagined_cuda():
        given = torch.ones(3, 4, device=CUDA)
        with pytest.raises(RuntimeError, match="device"):
            wrong(given)
        with watched(), pytest.raises(HostWaitsError, match="both devices"):
            wrong(given)


def test_a_wait_in_a_backward_pass_is_refused() -> None:
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, given):
            return 2 * given

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.cpu()[0]

    with imagined_cuda():
        given = torch.ones(3, device=CUDA, requires_grad=True)
        loss = Waits.apply(given).sum()
        with watched(), pytest.raises(HostWaitsError, match="to the host"):
            loss.backward()


def test_a_network_is_moved_and_cast_as_on_a_gpu() -> None:
    with imagined_cuda():
        detector = detector_on_cuda(small()).to(memory_format=torch.channels_last)
        images = torch.zeros(1, 3, 64, 64, device=CUDA)
        with warnings.catch_warnings(), torch.autocast("cuda", torch.bfloat16):
            warnings.simplefilter("error")
            assert detector(images).class_logits[0].dtype == torch.bfloat16
        assert {part.device for part in [*detector.parameters(), *detector.buffers()]} == {CUDA}


def test_the_backward_pass_of_the_imagined_gpu_gives_the_gradients_of_autograd() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())
    scale = nn.Parameter(torch.rand(1))
    given = torch.randn(2, 3, 8, 8)

    def loss() -> Tensor:
        features = network(given)
        return (scale * features.sigmoid()).square().sum() + features[:, ::2].abs().amax(dim=1).double().mean()

    parts = [*network.parameters(), scale]
    expected = torch.autograd.grad(loss(), parts)
    for times in (1, 2):  # gradients add up
        run_backward([loss()], [None], False, False, accumulate_grad=True)
        for part, gradient in zip(parts, expected, strict=True):
            assert part.grad is not None
            torch.testing.assert_close(part.grad, times * gradient)
