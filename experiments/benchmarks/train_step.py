"""A training step of ours beside torchvision's RetinaNet: time, memory, and what is not convolution.

Both have the same ResNet-50, images of 608 x 1024, boxes and optimizer, and take turns in one run; ratios are ours over
theirs. On a GPU both run in bfloat16, ours also compiled with --compile.
"""

import statistics
from functools import partial

import click
import torch
from peer import (
    NUM_CLASSES,
    RATE,
    SIZE,
    Scene,
    Way,
    in_turn,
    our_step,
    peak_of,
    ratios,
    scene,
    spread,
    their_detector,
    their_step,
)
from torch.profiler import ProfilerActivity, profile

from model.config import ModelConfig
from model.network.anchors import NUM_ANCHORS, AnchorGrid, anchor_grid
from model.network.assignment import GroundTruth, assign, loss_normalizer
from model.network.retinanet import Predictions, flat
from model.training.batches import MicroBatch
from model.training.losses import detector_losses

PARTS = ("losses", "step", "memory")
CONVOLUTION = ("aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::convolution_backward")
PRODUCTS = ("aten::mm", "aten::addmm")
"""The convolutions of the box tower, where only some cells are computed."""


@click.command(help=__doc__)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Measurements of each kind.")
@click.option("--batch", type=int, help="Images of a step; default 2, on a GPU 16.")
@click.option("--compile", "compiled", is_flag=True, help="Compile our network (GPU).")
def main(parts: tuple[str, ...], rounds: int, batch: int | None, compiled: bool) -> None:
    """Measure, and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    click.echo(f"{where}; torch {torch.__version__}; images of {SIZE[0]} x {SIZE[1]}")
    if "losses" in parts:
        _losses(rounds, device)
    if "step" in parts:
        _step(rounds, batch or (16 if device.type == "cuda" else 2), device, compiled)
    if "memory" in parts and device.type == "cpu":
        _memory(batch or 2)


def _losses(rounds: int, device: torch.device) -> None:
    both = {name: _loss(16, device, name) for name in ("ours", "theirs")}
    seconds = in_turn(both, rounds, device)
    click.echo(f"assignment and losses of 16 images, {NUM_CLASSES} classes, forward and backward")
    _say(seconds, 1e3, "ms")
    if device.type == "cpu":
        _say_peaks({name: peak_of(partial(_loss, 16, device), name) for name in both})


def _loss(num_images: int, device: torch.device, name: str) -> Way:
    """Matching and losses on given predictions, as the detector of that name lays them out."""
    given, grid = scene(num_images, device), anchor_grid(SIZE, device)
    predictions = _predictions(num_images, grid, device)
    if name == "ours":
        return lambda: _our_loss(given, grid, predictions)
    detector = their_detector(device).train()
    outputs = {
        "cls_logits": flat(predictions.class_logits, NUM_CLASSES).detach().requires_grad_(),
        "bbox_regression": flat(predictions.box_deltas, 4).detach().requires_grad_(),
    }
    anchors = [grid.boxes] * num_images

    def their_loss() -> None:
        losses = detector.compute_loss(given.targets, outputs, anchors)
        sum(losses.values()).backward()
        for tensor in outputs.values():
            tensor.grad = None

    return their_loss


def _predictions(num_images: int, grid: AnchorGrid, device: torch.device) -> Predictions:
    """Logits about the prior, in the memory layout of the network's outputs."""
    generator = torch.Generator(device).manual_seed(0)

    def maps(size: int, mean: float) -> list[torch.Tensor]:
        shapes = [(num_images, height, width, NUM_ANCHORS * size) for height, width in grid.level_sizes]
        levels = [torch.randn(shape, generator=generator, device=device).add_(mean) for shape in shapes]
        return [level.permute(0, 3, 1, 2).requires_grad_() for level in levels]

    return Predictions(maps(NUM_CLASSES, -4.6), maps(4, 0.0), None)


def _our_loss(given: Scene, grid: AnchorGrid, predictions: Predictions) -> None:
    batch = given.batch
    truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
    assigned = assign(grid, batch.sizes, truth, positive_iou=0.5, negative_iou=0.4)
    config = ModelConfig(confidence=None)
    losses = detector_losses(predictions, grid, assigned, truth, loss_normalizer(assigned), config)
    losses.total.backward()  # type: ignore[no-untyped-call]
    for level in [*predictions.class_logits, *predictions.box_deltas]:
        level.grad = None


def _step(rounds: int, batch: int, device: torch.device, compiled: bool) -> None:
    precision = "bfloat16" if device.type == "cuda" else "float32"
    given = scene(batch, device)
    trainer, peer = our_step(device, precision), their_step(device, precision)
    if compiled:
        trainer.model = torch.compile(trainer.model)  # type: ignore[assignment]
    both: dict[str, Way] = {
        "ours": lambda: trainer.update([MicroBatch(given.batch, True)], RATE),
        "theirs": lambda: peer(given),
    }
    seconds = in_turn(both, rounds, device)
    click.echo(f"training step, batch {batch}, {precision}")
    _say(seconds, 1.0, "s")
    click.echo(f"  ours {batch / statistics.median(seconds['ours']):.2f} images/s")
    if device.type == "cuda":
        for name, step in both.items():
            torch.cuda.reset_peak_memory_stats()
            step()
            click.echo(f"  {name} peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB")
    else:
        for name, step in both.items():
            click.echo(f"  {name} without convolutions: {_share_of_others(step):.1%} of a step")


def _share_of_others(step: Way) -> float:
    """The part of a step's CPU time that no convolution takes, in its usual form or as a matrix product."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    times = {event.key: float(event.self_cpu_time_total) for event in profiled.key_averages()}
    return 1 - sum(times.get(name, 0.0) for name in (*CONVOLUTION, *PRODUCTS)) / sum(times.values())


def _memory(batch: int) -> None:
    click.echo(f"training step, batch {batch}: model, optimizer and step in a process of their own")
    _say_peaks({name: peak_of(partial(_whole_step, batch), name) for name in ("ours", "theirs")})


def _whole_step(batch: int, name: str) -> Way:
    """What builds a detector and its optimizer when first called, and makes a step each time."""
    cpu = torch.device("cpu")
    given = scene(batch, cpu)
    ready: list[Way] = []

    def step() -> None:
        if not ready and name == "ours":
            trainer = our_step(cpu)
            ready.append(lambda: trainer.update([MicroBatch(given.batch, True)], RATE))
        elif not ready:
            peer = their_step(cpu)
            ready.append(lambda: peer(given))
        ready[0]()

    return step


def _say(seconds: dict[str, list[float]], scale: float, unit: str) -> None:
    for name, values in seconds.items():
        click.echo(f"  {name:6} {spread([scale * value for value in values])} {unit}")
    click.echo(f"  ratio  {ratios(seconds['ours'], seconds['theirs'])}")


def _say_peaks(peaks: dict[str, float]) -> None:
    click.echo(f"  peak memory: ours {peaks['ours']:,.0f} MiB, theirs {peaks['theirs']:,.0f} MiB", nl=False)
    click.echo(f", ratio {peaks['ours'] / peaks['theirs']:.2f}")


if __name__ == "__main__":
    main()
