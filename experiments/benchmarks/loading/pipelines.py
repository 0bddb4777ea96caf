"""Images a second through torch's DataLoader and through Ray Data, on the same images and two cores."""

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model.config import DataConfig, TrainConfig
from model.data.coco import read_coco
from model.data.images import collate, load_sample
from model.data.split import CocoData
from model.training.batches import batch_shape, epoch_batches, flips, updates
from orchestrator.cluster.environment import set_ray_environment

WARM_UP = 4
"""Batches that do not count."""


def report(
    source: CocoData, copies: int, rounds: int, edges: tuple[int, int], root: Path, say: Callable[[str], None]
) -> None:
    """Run an epoch through each in turn, and print images a second and whether the order was kept."""
    data = _repeated(source, copies, root)
    config = TrainConfig(data=DataConfig(short_edge=edges[0], long_edge=edges[1], train_on_empty_images=True))
    say(
        f"pipelines: {len(data)} images to {edges[0]} x {edges[1]} in batches of 16, two processes, "
        f"{rounds} rounds in turn"
    )
    set_ray_environment(is_local=True)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        logging.disable(logging.WARNING)  # Ray Data tells of every epoch, and resets levels
        ray.data.DataContext.get_current().enable_progress_bars = False
        ways: dict[str, Callable[[int], Iterator[list[int]]]] = {
            "DataLoader": lambda epoch: _through_data_loader(data, config, epoch),
            "Ray Data": lambda epoch: _through_ray(data, config, epoch, ordered=False),
            "Ray Data, order kept": lambda epoch: _through_ray(data, config, epoch, ordered=True),
        }
        runs: dict[str, list[tuple[float, float, float, bool]]] = {name: [] for name in ways}
        for epoch in range(rounds):
            order = [data.image_ids[batch].tolist() for batch in epoch_batches(data, config, epoch)]
            for name, way in ways.items():
                runs[name].append(_measure(way(epoch), order))
    finally:
        logging.disable(logging.NOTSET)
        ray.shutdown()
    for name, numbers in runs.items():
        speeds, whole, starts, kept = zip(*numbers, strict=True)
        say(
            f"  {name:22s} {statistics.median(speeds):6.1f} images/s (from {min(speeds):.1f} to {max(speeds):.1f}), "
            f"{statistics.median(whole):.1f} with the start, first batch after {statistics.median(starts):.1f} s, "
            f"order kept in {sum(kept)} of {len(kept)}"
        )


def _measure(batches: Iterator[list[int]], order: list[list[int]]) -> tuple[float, float, float, bool]:
    """Images a second after the warm-up, and over all; seconds to the first batch; whether the order was kept."""
    clock, times, seen = time.perf_counter(), [], []
    for ids in batches:
        times.append(time.perf_counter() - clock)
        seen.append(ids)
    if sorted(map(sorted, seen)) != sorted(map(sorted, order)):
        raise RuntimeError("an epoch lost images, or had some twice")
    late, every = sum(map(len, seen[WARM_UP:])), sum(map(len, seen))
    return late / (times[-1] - times[WARM_UP - 1]), every / times[-1], times[0], seen == order


def _through_data_loader(data: CocoData, config: TrainConfig, epoch: int) -> Iterator[list[int]]:
    for update in updates(data, config, [epoch], None, 2):
        yield [int(id) for part in update.micro_batches for id in part.batch.image_ids]


def _through_ray(data: CocoData, config: TrainConfig, epoch: int, *, ordered: bool) -> Iterator[list[int]]:
    import ray

    batches = epoch_batches(data, config, epoch)
    shapes = [batch_shape(data, batch, config) for batch in batches]
    edges = config.data.short_edge, config.data.long_edge

    def decode(rows: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        (place,) = rows["id"].tolist()
        mirrored = [flips(config, epoch, int(data.image_ids[index])) for index in batches[place]]
        samples = [load_sample(data, i, *edges, flip) for i, flip in zip(batches[place], mirrored, strict=True)]
        batch = collate(samples, pad_to=shapes[place])
        return {name: getattr(batch, name).numpy()[None] for name in batch.__slots__}

    ray.data.DataContext.get_current().execution_options.preserve_order = ordered
    places = ray.data.range(len(batches), override_num_blocks=len(batches))
    for row in places.map_batches(decode, batch_size=1).iter_rows():
        yield np.asarray(row["image_ids"]).tolist()


def _repeated(source: CocoData, copies: int, root: Path) -> CocoData:
    """The images and boxes of a split several times under new ids."""
    content = source.coco_dict()
    width = max(image["id"] for image in content["images"]) + 1
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for copy in range(copies):
        for image in content["images"]:
            name = f"{copy}-{image['file_name']}"
            (root / "train" / name).symlink_to((source.root / source.split / image["file_name"]).resolve())
            images.append(image | {"id": copy * width + image["id"], "file_name": name})
        for row in content["annotations"]:
            annotations.append(row | {"id": len(annotations) + 1, "image_id": copy * width + row["image_id"]})
    tables = {"images": images, "annotations": annotations, "categories": content["categories"]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(tables))
    return read_coco(root, "train", check_images=False)
