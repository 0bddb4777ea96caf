"""Lists of images to their detections: `model.load(..)(images)` beside torchvision's RetinaNet, as its users call it.

Same backbone, same sizes after resizing, weights drawn by chance, so that next to nothing is left for NMS. torchvision
runs in eval() and inference_mode(), image by image and as one batch, with torch's threads as they come and with each
lesser number of them. All take turns in one run; the ratio is ours over the best of theirs. Last come theirs in our
threads, which nobody writes, but which says how much of the ratio comes from the threads.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import click
import torch
from peer import NUM_CLASSES, Variant, Way, in_turn, say_times, their_detector
from torch import Tensor

from model.config import DataConfig, InferenceConfig, ModelConfig, TrainConfig
from model.inference.predictor import Predictor
from model.network.checkpoint import Card
from model.network.retinanet import build_detector
from model.parallel import map_in_order, one_thread_each


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, help="Measurements of each way.")
@click.option("--images", default=8, show_default=True, help="Of a call.")
@click.option("--short-edge", default=320, show_default=True, help="Of images after resizing; they come as 480 x 640.")
def main(rounds: int, images: int, short_edge: int) -> None:
    """Measure, and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    given = [torch.randint(256, (3, 480, 640), generator=generator, dtype=torch.uint8) for _ in range(images)]
    # A GPU gains nothing from fewer threads.
    counts = range(1, torch.get_num_threads()) if device.type == "cpu" else ()
    ways: dict[str, Way] = {"ours": _ours(given, short_edge, device)}
    for name, variant in {"theirs": Variant(), "theirs, channels_last": Variant(channels_last=True)}.items():
        alone, together, pooled = _theirs(given, short_edge, device, variant)
        ways[name], ways[f"{name}, in one batch"] = alone, together
        for count in counts:
            ways[f"{name}, {count} of the threads"] = _with_threads(alone, count)
    ways["in our threads: theirs, channels_last"] = pooled
    click.echo(f"{images} images of 480 x 640, short edge {short_edge}, {torch.get_num_threads()} threads, a call")
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    say_times(in_turn({name: _counted(way, cpu[name]) for name, way in ways.items()}, rounds, device), "s", digits=3)
    if device.type == "cpu":
        click.echo("  CPU seconds an image, of all threads; what else runs on the machine counts less in them")
        best = min(statistics.median(cpu[name]) for name in ways if name.startswith("theirs"))
        for name, seconds in cpu.items():
            spent = statistics.median(seconds)
            click.echo(f"  {name:40} {spent / images:.3f}, ratio to the least of theirs {spent / best:.2f}")


def _ours(images: Sequence[Tensor], short_edge: int, device: torch.device) -> Way:
    config = TrainConfig(
        model=ModelConfig(confidence=None), data=DataConfig(short_edge=short_edge, long_edge=2 * short_edge)
    )
    card = Card(
        config=config,
        epoch=0,
        step=0,
        category_ids=tuple(range(1, NUM_CLASSES + 1)),
        category_names=tuple(map(str, range(1, NUM_CLASSES + 1))),
        data_fingerprint="",
        weights_sha256="",
    )
    detector = build_detector(config.model, NUM_CLASSES, seed=0).to(device).eval()
    predictor = Predictor(detector, card, InferenceConfig(confidence_exponent=0.0))
    return lambda: predictor(list(images))


def _theirs(images: Sequence[Tensor], short_edge: int, device: torch.device, variant: Variant) -> tuple[Way, Way, Way]:
    """Image by image, all as one batch, and image by image in our threads."""
    detector: Any = their_detector(device, variant, resize=True).eval()
    detector.transform.min_size, detector.transform.max_size = (short_edge,), 2 * short_edge
    given = [(image.float() / 255).to(device) for image in images]

    def detect(batch: list[Tensor]) -> object:
        with torch.inference_mode():
            return detector(batch)

    def pooled() -> object:
        with one_thread_each() as count:
            return list(map_in_order(lambda image: detect([image]), given, count))

    return lambda: [detect([image]) for image in given], lambda: detect(given), pooled


def _counted(way: Way, seconds: list[float]) -> Way:
    """The same, which notes its CPU seconds."""

    def call() -> None:
        before = time.process_time()
        way()
        seconds.append(time.process_time() - before)

    return call


def _with_threads(way: Way, count: int) -> Way:
    def call() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return way()
        finally:
            torch.set_num_threads(before)

    return call


if __name__ == "__main__":
    main()
