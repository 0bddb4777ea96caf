"""A training step of ours beside torchvision's RetinaNet: time, memory, and what is not convolution.

Both have the same ResNet-50, images of 608 x 1024 (or of COCO's ten shapes), boxes and optimizer, and take turns in one
run; ratios are to torchvision's best. On a GPU both run in bfloat16, and wait for it at the end of a round alone.
The part "epoch" begins with JPEGs on disk: those of RNC_COCO_ROOT (val2017) where that is set, else drawn scenes.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import click
import epoch
import torch
from peer import (
    NUM_CLASSES,
    RATE,
    SHAPES,
    SIZE,
    Scene,
    Variant,
    Way,
    in_turn,
    our_step,
    peak_of,
    say_times,
    scene,
    their_detector,
    their_step,
    variants,
)
from torch.profiler import ProfilerActivity, profile

from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth, loss_normalizer
from model.config import ModelConfig
from model.network.anchors import NUM_ANCHORS, AnchorGrid, anchor_grid
from model.network.retinanet import Predictions, flat
from model.training.batches import MicroBatch
from model.training.losses import detector_losses

PARTS = ("losses", "step", "epoch", "memory")
CALLS = 10
"""Steps of a round on a GPU, which waits for the device at its end alone."""
CONVOLUTION = ("aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::convolution_backward")
PRODUCTS = ("aten::mm", "aten::addmm")
"""The convolutions of the box tower, where only some cells are computed."""


@click.command(help=__doc__)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Measurements of each kind.")
@click.option("--batch", type=int, help="Images of a step; default 2, on a GPU 16.")
@click.option("--shapes", type=click.Choice(["one", "all"]), default="one", show_default=True, help="Of batches.")
@click.option("--images", type=int, help="Images of the epoch; default 8, on a GPU 1,600.")
@click.option("--loaders", type=int, help="Processes that decode; default 0, on a GPU one for each core but two.")
@click.option("--compile/--no-compile", "compiled", default=None, help="Compile theirs as well; default on a GPU.")
def main(
    parts: tuple[str, ...],
    rounds: int,
    batch: int | None,
    shapes: str,
    images: int | None,
    loaders: int | None,
    compiled: bool | None,
) -> None:
    """Measure, and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cuda = device.type == "cuda"
    where = torch.cuda.get_device_name() if on_cuda else f"CPU, {torch.get_num_threads()} threads"
    click.echo(f"{where}; torch {torch.__version__}; load of the machine {os.getloadavg()[0]:.1f}")
    batch = batch or (16 if on_cuda else 2)
    ways = variants(device, compiled=compiled)
    if "losses" in parts:
        _losses(rounds, device)
    if "step" in parts:
        _step(rounds, batch, device, SHAPES if shapes == "all" else (SIZE,), ways)
    if "epoch" in parts:
        processes = loaders if loaders is not None else max(1, (os.cpu_count() or 1) - 2) if on_cuda else 0
        epoch.report(images or (1600 if on_cuda else 8), batch, processes, device, ways, click.echo)
    if "memory" in parts and not on_cuda:
        _memory(batch)


def _losses(rounds: int, device: torch.device) -> None:
    both = {name: _loss(16, device, name) for name in ("ours", "theirs")}
    seconds = in_turn(both, rounds, device)
    click.echo(f"assignment and losses of 16 images of {SIZE[0]} x {SIZE[1]}, {NUM_CLASSES} classes, both passes")
    say_times(seconds, "ms")
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
    assigned = max_iou(grid, batch.sizes, truth, positive_iou=0.5, negative_iou=0.4)
    config = ModelConfig(confidence=None)
    losses = detector_losses(predictions, grid, Assignment(assigned), truth, loss_normalizer(assigned), config)
    losses.total.backward()  # type: ignore[no-untyped-call]
    for level in [*predictions.class_logits, *predictions.box_deltas]:
        level.grad = None


def _step(
    rounds: int, batch: int, device: torch.device, sizes: Sequence[tuple[int, int]], ways: dict[str, Variant]
) -> None:
    precision = "bfloat16" if device.type == "cuda" else "float32"
    scenes = [scene(batch, device, size) for size in sizes]
    trainer = our_step(device, precision)
    steps: dict[str, Callable[[Scene], object]] = {
        "ours": lambda given: trainer.update([MicroBatch(given.batch, True)], RATE)
    }
    for name, variant in ways.items():
        peer = their_step(device, precision, variant)
        steps[name] = lambda given, peer=peer: peer(given.images, given.targets)  # type: ignore[misc]
    # One after the other without a wait, a step of each shape.
    each: dict[str, Way] = {name: partial(_all, step, scenes) for name, step in steps.items()}
    if device.type == "cuda":
        for way in each.values():  # the first step of a shape compiles, the second may record a graph
            way()
            way()
    found = in_turn(each, rounds, device, CALLS if device.type == "cuda" else 1)
    seconds = {name: [value / len(scenes) for value in values] for name, values in found.items()}
    shapes = f"images of {sizes[0][0]} x {sizes[0][1]}" if len(sizes) == 1 else f"{len(sizes)} shapes in turn"
    click.echo(f"training step, batch {batch}, {precision}, {shapes}")
    say_times(seconds, "s", digits=3)
    for name, values in seconds.items():
        click.echo(f"  {name}: {batch / statistics.median(values):.2f} images/s")
    for name, way in each.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            way()
            click.echo(
                f"  {name}: peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB, with what the others keep"
            )
        elif len(scenes) == 1:
            click.echo(f"  {name}: {_share_of_others(way):.1%} of a step are no convolutions")


def _all(step: Callable[[Scene], object], scenes: Sequence[Scene]) -> None:
    for given in scenes:
        step(given)


def _share_of_others(step: Way) -> float:
    """The part of a step's CPU time that no convolution takes, in its usual form or as a matrix product."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    times = {event.key: float(event.self_cpu_time_total) for event in profiled.key_averages()}
    return 1 - sum(times.get(name, 0.0) for name in (*CONVOLUTION, *PRODUCTS)) / sum(times.values())


def _memory(batch: int) -> None:
    click.echo(f"training step, batch {batch}: model, optimizer and step in a process of their own")
    names = ("ours", *variants(torch.device("cpu")))
    _say_peaks({name: peak_of(partial(_whole_step, batch), name) for name in names})


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
            peer = their_step(cpu, variant=variants(cpu)[name])
            ready.append(lambda: peer(given.images, given.targets))
        ready[0]()

    return step


def _say_peaks(peaks: dict[str, float]) -> None:
    click.echo("  peak memory: " + "; ".join(f"{name} {peak:,.0f} MiB" for name, peak in peaks.items()), nl=False)
    least = min(peak for name, peak in peaks.items() if name != "ours")
    click.echo(f"; ratio to the least of theirs {peaks['ours'] / least:.2f}")


if __name__ == "__main__":
    main()
