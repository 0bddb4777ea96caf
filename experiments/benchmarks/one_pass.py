"""What more inference settings cost in one pass over the images: Table 5's exponents beside a single setting.

Everything is counted: decoding, the forward pass, NMS, the counts of the misalignment, and the twelve numbers. The
first two are timed by themselves as well, which leaves what comes after the network. The real model is a ResNet-50 at
608 x 1024 with 80 classes, on val2017 of RNC_COCO_ROOT where that is set, else on drawn shapes; its backbone comes from
RNC_WEIGHTS where that is set, and its head is random, with scores spread from 0 to 1. The miniature one is what
`experiments/miniature` trains, with such a head, or the --checkpoint that you give.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from peer import Way, in_turn, ratios, spread

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig
from model.data.coco import read_coco
from model.data.images import Batch, padded_shape, resize_shape
from model.data.shapes import draw_shapes
from model.data.split import CocoData
from model.evaluation.scoring import Scores, score
from model.inference.predictor import forward_passes, load_batch
from model.inference.table import TYPES
from model.network.checkpoint import read_card
from model.network.pretrained import load_backbone_weights
from model.network.retinanet import RetinaNetConf, build_detector, load_detector
from model.parallel import map_in_order, one_thread_each

ONE = [InferenceConfig()]
TEN = [InferenceConfig(confidence_exponent=tenths / 10) for tenths in range(10)]
TWENTY = [InferenceConfig(confidence_exponent=twentieths / 20) for twentieths in range(20)]
"""As many settings as Table 5 has rows."""
BATCH = 16
"""Images of a forward pass on a GPU."""
MINIATURE = ModelConfig(
    backbone="resnet18_quarter", backbone_norm="group", frozen_stages=0, channels=64, tower_depth=2, tower_norm="group"
)


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True, help="Measurements of each.")
@click.option("--images", default=6, show_default=True, help="Images for the real model; the miniature one sees 200.")
@click.option("--threads", default=None, type=int, help="Of torch; its own choice if not given.")
@click.option("--checkpoint", type=click.Path(exists=True, path_type=Path), help="A trained miniature detector.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="The data set of that checkpoint.")
def main(rounds: int, images: int, threads: int | None, checkpoint: Path | None, data: Path | None) -> None:
    """Measure, and print."""
    torch.set_num_threads(threads or torch.get_num_threads())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch)
        draw_shapes(drawn, num_train=1, num_val=200)
        _measure(*_miniature(drawn, checkpoint, data), rounds, device)
        _measure(*_real(drawn, images), rounds, device)


def _miniature(
    drawn: Path, checkpoint: Path | None, root: Path | None
) -> tuple[str, RetinaNetConf, CocoData, DataConfig]:
    if checkpoint is not None:
        config = read_card(checkpoint).config.data
        data = read_coco(root or drawn, config.val_split, num_images=config.num_val_images)
        return f"miniature, trained, {len(data)} images", load_detector(checkpoint), data, config
    config = DataConfig(dataset="shapes", train_split="train", val_split="val", short_edge=128, long_edge=128)
    data = read_coco(drawn, "val")
    return f"miniature, {len(data)} images", opinionated(MINIATURE, data), data, config


def _real(drawn: Path, num_images: int) -> tuple[str, RetinaNetConf, CocoData, DataConfig]:
    coco, weights = os.environ.get("RNC_COCO_ROOT"), os.environ.get("RNC_WEIGHTS")
    config = DataConfig(short_edge=608, long_edge=1024)
    data = read_coco(Path(coco or drawn), "val2017" if coco else "val", num_images=num_images)
    file = next(Path(weights).glob("resnet50*"), None) if weights else None
    model = ModelConfig(
        confidence=ConfidenceConfig(),
        backbone_weights=file.name if file else None,
        backbone_stride="1x1" if file and "msra" in file.name else "3x3",
    )
    name = f"ResNet-50 at 608 x 1024, {num_images} images of {'val2017' if coco else 'shapes'}"
    return name, opinionated(model, data, file), data, config


def opinionated(model: ModelConfig, data: CocoData, weights: Path | None = None) -> RetinaNetConf:
    """A detector whose scores spread from 0 to 1, though it learnt nothing."""
    detector = build_detector(replace(model, backbone_weights=None), len(data.category_ids), seed=0)
    if weights is not None:
        load_backbone_weights(detector.backbone, weights)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in detector.head.named_parameters():
            if name in ("class_logits.weight", "confidence_logits.weight", "box_deltas.weight"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
            if name == "class_logits.bias":
                weight.fill_(-4.0)
    return detector.eval()


def _measure(
    name: str, detector: RetinaNetConf, data: CocoData, config: DataConfig, rounds: int, device: torch.device
) -> None:
    detector = detector.to(device)
    results: dict[str, list[Scores]] = {}

    def way(label: str, settings: Sequence[InferenceConfig]) -> Way:
        return lambda: results.__setitem__(label, score(detector, data, settings, config))

    batches = _batches(data, config, BATCH if device.type == "cuda" else 1)
    decoded = [load_batch(data, indices, config) for indices in batches]
    alone_ways: dict[str, Way] = {
        "decoding": lambda: _decode(data, batches, config),
        "network": lambda: _forward(detector, decoded, data),
    }
    ways = {"1 setting": way("1 setting", ONE), "10 settings": way("10", TEN), "20 settings": way("20", TWENTY)}
    seconds = in_turn(alone_ways | ways, rounds, device)
    click.echo(f"{name}, {torch.get_num_threads()} threads of torch")
    before = statistics.median(seconds["decoding"]) + statistics.median(seconds["network"])
    for label, values in seconds.items():
        line = f"  {label:12} {spread(values)} s, {len(data) / statistics.median(values):.1f} images/s"
        if label in ways:
            # Below 0 where decoding, network and the rest overlap.
            line += f"; after the network {1e3 * (statistics.median(values) - before) / len(data):.1f} ms an image"
        if label in ways and label != "1 setting":
            line += f"; ratio {ratios(values, seconds['1 setting'])}"
        click.echo(line)
    alone, together = results["1 setting"][0], results["10"][4]
    same = all(
        np.array_equal(getattr(alone.detections, column), getattr(together.detections, column), equal_nan=True)
        for column in TYPES
    )
    click.echo(f"  exponent 0.4 alone and among ten: {'the same bits' if same else 'DIFFERENT'}")


def _batches(data: CocoData, config: DataConfig, limit: int) -> list[list[int]]:
    """Places of images that share a padded shape, as many as `limit` together."""
    edges = config.short_edge, config.long_edge
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (height, width) in enumerate(data.sizes.tolist()):
        groups.setdefault(padded_shape(*resize_shape(height, width, *edges)), []).append(place)
    return [group[start : start + limit] for group in groups.values() for start in range(0, len(group), limit)]


def _decode(data: CocoData, batches: Sequence[list[int]], config: DataConfig) -> None:
    """Decode and resize, on as many threads as scoring takes."""
    with one_thread_each() as num_threads:
        for _ in map_in_order(lambda indices: load_batch(data, indices, config), batches, num_threads):
            pass


def _forward(detector: RetinaNetConf, batches: Sequence[Batch], data: CocoData) -> None:
    """The network alone; on the CPU image by image, as many at a time as torch has threads, as scoring does."""
    device = next(detector.parameters()).device

    def look(batch: Batch) -> None:
        for _ in forward_passes(detector, batch.to(device), BATCH if device.type == "cuda" else 1, "float32"):
            pass

    with one_thread_each() as num_threads:
        for _ in map_in_order(look, batches, 1 if device.type == "cuda" else num_threads):
            pass


if __name__ == "__main__":
    main()
