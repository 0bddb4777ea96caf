"""The losses of the class logits beside the focal loss and beside one-hot PyTorch: time and memory of both passes.

One image of 800 x 1344 with 80 classes, 200 positive anchors of it. All losses take turns in one run; ratios are to the
focal loss of the same round. Beside each stands the usual way to write it: maps of one-hot targets and autograd. On the
CPU, seconds are those of a single thread's work, which a machine with other work stretches less than the clock's.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from peer import Way, in_turn, peak_of, ratios, spread
from torch import Tensor
from torch.nn import functional

from model.assignment.samples import IGNORED, NEGATIVE
from model.config import ClassificationConfig, ModelConfig
from model.losses.classification import classification_loss

ANCHORS, CLASSES, POSITIVES = 201_600, 80, 200
PEER = ", one-hot"
LOSSES = {
    "focal": ClassificationConfig(),
    "qfl": ClassificationConfig(loss="qfl"),
    "vfl": ClassificationConfig(loss="vfl"),
    "ia_bce": ClassificationConfig(loss="ia_bce"),
    "mal": ClassificationConfig(loss="mal"),
}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@click.command(help=__doc__)
@click.option("--rounds", default=15, show_default=True, help="Measurements of each loss.")
@click.option("--anchors", default=ANCHORS, show_default=True, help="Rows of the logits.")
@click.option("--classes", default=CLASSES, show_default=True, help="Columns of the logits.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Measure the one-hot ways as well.")
def main(rounds: int, anchors: int, classes: int, peers: bool) -> None:
    """Measure, and print a table."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, 1 thread"
    click.echo(f"{where}; torch {torch.__version__}; load of the machine {os.getloadavg()[0]:.1f}")
    click.echo(f"{anchors} anchors, {classes} classes, {POSITIVES} positives, float32, both passes, {rounds} rounds")
    prepare = partial(_way, device, anchors, classes)
    names = [*LOSSES, *(name + PEER for name in LOSSES if peers)]
    worst = max((_difference(prepare, name) for name in LOSSES if peers), default=0.0)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = in_turn({name: prepare(name) for name in names}, rounds, device, clock=clock)
    peaks = {name: _peak(prepare, name, device) for name in names}
    for name in names:
        work = f"{spread([1e3 * value for value in seconds[name]], 1)} ms"
        ratio, memory = ratios(seconds[name], seconds["focal"]), peaks[name]
        click.echo(f"  {name:15} {work}, ratio {ratio}; {memory:.1f} MiB, ratio {memory / peaks['focal']:.2f}")
    click.echo(f"medians to focal's: {_medians(seconds)}")
    if peers:
        click.echo(f"losses and gradients differ from the one-hot ways' by at most {worst:.1e} of their own size")


def _way(device: torch.device, anchors: int, classes: int, name: str) -> Way:
    """Both passes of the loss of that name, on logits about the prior of a detector that has begun to learn."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(anchors, classes, generator=generator, device=device).sub_(4.6).requires_grad_()
    labels = torch.full((anchors,), NEGATIVE, device=device)
    labels[:: anchors // POSITIVES] = torch.arange(len(labels[:: anchors // POSITIVES]), device=device) % classes
    labels[1::20] = IGNORED
    quality = torch.rand(anchors, generator=generator, device=device)
    settings = LOSSES[name.removesuffix(PEER)]
    loss: Loss = partial(_one_hot_loss, settings=settings)
    if not name.endswith(PEER):
        config = ModelConfig(classification=settings)
        loss = partial(classification_loss, config=config)

    def both_passes() -> tuple[Tensor, ...]:
        value = loss(logits, labels, quality)
        return value.detach(), *torch.autograd.grad(value, logits)

    return both_passes


def _one_hot_loss(logits: Tensor, labels: Tensor, quality: Tensor, settings: ClassificationConfig) -> Tensor:
    """The loss with the defaults of `settings`, as it is usually written."""
    own = functional.one_hot(labels.clamp(min=0), logits.shape[1]).bool() & (labels >= 0)[:, None]
    target, p = torch.where(own, quality[:, None], 0.0), logits.sigmoid()
    if settings.loss == "focal":
        target = own.float()
        weight = torch.where(own, 0.25 * (1 - p) ** 2, 0.75 * p**2)
    elif settings.loss == "qfl":
        weight = (target - p).abs() ** 2
    elif settings.loss == "vfl":
        weight = torch.where(target > 0, target, 0.75 * p**2)
    elif settings.loss == "ia_bce":
        target = torch.where(own, (p**0.25 * target**0.75).clamp(min=0.01), 0.0).detach()
        weight = torch.where(own, 1.0, p**2)
    else:
        target = torch.where(own, target**1.5, 0.0)
        weight = torch.where(own, 1.0, p.detach() ** 1.5)
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * loss * (labels >= NEGATIVE)[:, None]).sum()


def _difference(prepare: Callable[[str], Callable[[], object]], name: str) -> float:
    """How far the loss and its gradient are from the one-hot way's, in parts of the largest number of each."""
    pairs = zip(prepare(name)(), prepare(name + PEER)(), strict=True)  # type: ignore[call-overload]
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


def _peak(prepare: Callable[[str], Way], name: str, device: torch.device) -> float:
    """MiB that both passes take at most, the gradient included, beside logits, labels and qualities."""
    if device.type == "cpu":
        return min(peak_of(prepare, name) for _ in range(3))  # a fresh process takes 15 to 40 MiB more now and then
    call = prepare(name)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _medians(seconds: dict[str, list[float]]) -> str:
    focal = statistics.median(seconds["focal"])
    return ", ".join(f"{name} {statistics.median(values) / focal:.2f}" for name, values in seconds.items())


if __name__ == "__main__":
    main()
