"""How many padded shapes an epoch has, and how much is padding, under the rule of the recipe and coarser ones."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.config import DataConfig, TrainConfig
from model.data.images import resize_shape
from model.data.split import CocoData, assemble
from model.training.batches import batch_shape, epoch_batches


def report(source: Path, num_images: int, say: Callable[[str], None]) -> None:
    """Print figures of the first epoch over `num_images` images of the sizes of `source`."""
    sizes = [(image["height"], image["width"]) for image in json.loads(source.read_text())["images"]]
    data = of_sizes(sizes, num_images)
    say(f"shapes: {num_images:,} images of {len(set(sizes))} sizes in batches of 16")
    say(f"  {'edges':12s} {'padded to':22s} shapes  padding  ten commonest cover")
    for short, long in ((600, 1000), (608, 1024)):
        config = TrainConfig(data=DataConfig(short_edge=short, long_edge=long, train_on_empty_images=True))
        batches = epoch_batches(data, config, 0)
        shapes = [batch_shape(data, batch, config) for batch in batches]
        inside = [_pixels(data, batch, config) for batch in batches]
        full = -(-long // 32) * 32
        rules: dict[str, Callable[[int, int], int]] = {
            "multiples of 32 (ours)": lambda side, full: side,
            "multiples of 64": lambda side, full: min(full, -(-side // 64) * 64),
            "multiples of 128": lambda side, full: min(full, -(-side // 128) * 128),
            "608 or the long edge": lambda side, full: side if side <= 608 else full,
        }
        for name, rule in rules.items():
            padded = [(rule(height, full), rule(width, full)) for height, width in shapes]
            counts = Counter(padded)
            area = sum(height * width * len(batch) for (height, width), batch in zip(padded, batches, strict=True))
            covered = sum(count for _, count in counts.most_common(10)) / len(batches)
            say(f"  {short} x {long:5d} {name:23s} {len(counts):6d} {1 - sum(inside) / area:8.1%} {covered:10.1%}")


def of_sizes(sizes: list[tuple[int, int]], num_images: int) -> CocoData:
    """Data without annotations or files, of these sizes in turn."""
    columns = {
        "image_ids": np.arange(1, num_images + 1),
        "names": np.array([b"0"] * num_images),
        "sizes": np.resize(np.array(sizes, dtype=np.int32), (num_images, 2)),
        "offsets": np.zeros(num_images + 1, dtype=np.int64),
        "annotation_ids": np.zeros(0, dtype=np.int64),
        "annotation_boxes": np.zeros((0, 4)),
        "annotation_areas": np.zeros(0),
        "annotation_labels": np.zeros(0, dtype=np.int16),
        "annotation_crowds": np.zeros(0, dtype=bool),
    }
    return assemble(Path(), "sizes", Path(), columns, {1: "thing"}, ())


def _pixels(data: CocoData, batch: list[int], config: TrainConfig) -> int:
    edges = config.data.short_edge, config.data.long_edge
    shapes = (resize_shape(height, width, *edges) for height, width in data.sizes[batch].tolist())
    return sum(height * width for height, width in shapes)
