"""The scoring pass: one forward pass over the images for any number of inference settings, and their COCO numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.config import DataConfig, InferenceConfig
from model.data.images import STRIDE, Batch, padded_shape, resize_shape
from model.data.split import CocoData
from model.evaluation.coco_eval import evaluate_all
from model.evaluation.counting import image_parts, objects_of
from model.evaluation.misalignment import Misalignment
from model.evaluation.parts import Part, merge
from model.inference.postprocess import pool, shortlist
from model.inference.predictor import load_batch, predict_batch
from model.inference.table import DetectionTable
from model.network.anchors import anchor_grid
from model.network.assignment import GroundTruth, assign
from model.network.retinanet import RetinaNetConf
from model.parallel import gather, map_in_order, one_thread_each, world

SHARD = 64
"""Images that are scored together and then joined; a shard on storage has as many."""
Shard = tuple[int, ...]
"""Images that are scored together, by their places in the data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The results of one inference setting: COCO numbers, detections and misalignment."""

    inference: InferenceConfig
    metrics: dict[str, float | None]
    """The twelve COCO numbers, 0 to 100; None where the data set has no such object."""
    detections: DetectionTable
    misalignment: Misalignment | None
    """None where it was not asked for."""


def score(
    detector: RetinaNetConf,
    data: CocoData,
    settings: Sequence[InferenceConfig],
    config: DataConfig,
    *,
    counting: bool = True,
    batch_size: int | None = None,
    num_loader_processes: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scores]:
    """Detect on every image of `data`, shared out over the processes, and evaluate each setting.

    Args:
        detector: on its device.
        data: the images; their categories must be the detector's.
        settings: as many as wanted; the forward pass is made once.
        config: input size.
        counting: whether boxes are counted before and after NMS, for the misalignment.
        batch_size: as in `score_shards`.
        num_loader_processes: as in `score_shards`.
        progress: called with (images done, images in all) of this process.
    """
    rank, num_processes = world()
    share = [tuple(indices) for indices in _batches(data, config, range(rank, len(data), num_processes), SHARD)]
    scored = score_shards(
        detector,
        data,
        share,
        settings,
        config,
        counting=counting,
        batch_size=batch_size,
        num_loader_processes=num_loader_processes,
        progress=progress,
    )
    mine = [merge(parts) for parts in _by_setting(list(scored), len(settings))]
    # merge sorts by image, so that it does not matter which process scored what.
    merged = [merge(parts) for parts in _by_setting(gather(mine), len(settings))]
    # One process evaluates for all, which would get the same numbers.
    metrics = gather(evaluate_all(data, [part.detections for part in merged]) if rank == 0 else None)[0]
    return [
        Scores(inference=setting, metrics=numbers, detections=part.detections, misalignment=part.misalignment)
        for setting, numbers, part in zip(settings, metrics, merged, strict=True)
    ]


def shards(data: CocoData, config: DataConfig) -> list[Shard]:
    """Divide the images, the same way on any number of processes; those of a shard have one padded shape."""
    return [tuple(indices) for indices in _batches(data, config, range(len(data)), SHARD)]


def score_shards(
    detector: RetinaNetConf,
    data: CocoData,
    chosen: Sequence[Shard],
    settings: Sequence[InferenceConfig],
    config: DataConfig,
    *,
    counting: bool = True,
    batch_size: int | None = None,
    num_loader_processes: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[list[Part]]:
    """Detect on some shards, in this process, and yield for one after the other a part for each setting.

    Images are padded to their own size only. A convolution's last bits depend on how many images it takes at once, and
    on how many threads. So the CPU predicts image by image, as many at a time as torch has threads, and CUDA always
    `batch_size` images, filled up where fewer of a shape are left: no detection depends on the number of processes,
    nor, on the CPU, on `batch_size` and threads.

    Args:
        detector: on its device.
        data: the images; their categories must be the detector's.
        chosen: which of them; what is read ahead reaches from one into the next.
        settings: as many as wanted; the forward pass is made once.
        config: input size.
        counting: whether boxes are counted before and after NMS, for the misalignment.
        batch_size: images decoded and moved to the device together, on CUDA those of one forward pass as well; None
            takes 8 on CUDA, and 1 on the CPU.
        num_loader_processes: processes that decode images; 0 decodes in this one.
        progress: called with (images done, images in all).
    """
    on_cuda = next(detector.parameters()).is_cuda
    batch_size = batch_size or (8 if on_cuda else 1)
    batches = [_batches(data, config, shard, batch_size) for shard in chosen]
    loader = DataLoader(
        _Batches(data, config, [batch for of_shard in batches for batch in of_shard]),
        batch_size=None,
        shuffle=False,
        num_workers=num_loader_processes,
    )
    training = detector.training
    detector.eval()
    # The last bits of a convolution depend on how many images it takes: one size, whatever is left of a shape.
    images_per_pass = batch_size if on_cuda else 1

    def look(batch: Batch) -> list[list[Part]]:
        return _score_batch(detector, data, batch, settings, images_per_pass, counting)

    with one_thread_each() as num_threads:
        results = map(look, loader) if on_cuda else map_in_order(look, loader, num_threads)
        done, total = 0, sum(len(shard) for shard in chosen)
        for of_shard in batches:
            images: list[list[Part]] = []
            for of_batch in islice(results, len(of_shard)):
                images += of_batch
                done += len(of_batch)
                progress(done, total)
            yield [merge(parts) for parts in _by_setting(images, len(settings))]
    # A training goes on after its validation.
    detector.train(training)


def _by_setting(parts: Sequence[Sequence[Part]], num_settings: int) -> list[list[Part]]:
    """Lists with a part for each setting, as a list for each setting; also where there are none."""
    return [[of_images[place] for of_images in parts] for place in range(num_settings)]


@torch.inference_mode()
def _score_batch(
    detector: RetinaNetConf,
    data: CocoData,
    batch: Batch,
    settings: Sequence[InferenceConfig],
    images_per_pass: int,
    counting: bool,
) -> list[list[Part]]:
    """For each image of a batch, a part for each setting."""
    numbers = _num_positive_anchors(detector, batch) if counting else [None] * len(batch.image_ids)
    found = []
    for number, image in zip(numbers, predict_batch(detector, batch, data.category_ids, images_per_pass), strict=True):
        lists = [shortlist(image, setting) for setting in settings]
        objects = objects_of(data, int(np.searchsorted(data.image_ids, image.image_id)))
        found.append(image_parts(pool(image, lists), lists, objects, number))
    return found


def _num_positive_anchors(detector: RetinaNetConf, batch: Batch) -> list[int]:
    """Anchors of each image that training would assign an object."""
    rules = detector.config
    grid = anchor_grid(batch.shape, batch.boxes.device, rules.anchor_rule)
    truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
    padded = (batch.sizes + STRIDE - 1) // STRIDE * STRIDE
    assigned = assign(grid, padded, truth, positive_iou=rules.positive_iou, negative_iou=rules.negative_iou)
    numbers: list[int] = (assigned >= 0).sum(dim=1).tolist()
    return numbers


class _Batches(Dataset[Batch]):
    """Decoded batches by their place."""

    def __init__(self, data: CocoData, config: DataConfig, batches: list[list[int]]) -> None:
        self.data, self.config, self.batches = data, config, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> Batch:
        return load_batch(self.data, self.batches[place], self.config)


def _batches(data: CocoData, config: DataConfig, indices: Sequence[int], limit: int) -> list[list[int]]:
    """Images of one padded shape side by side."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        height, width = (int(side) for side in data.sizes[index])
        shape = padded_shape(*resize_shape(height, width, config.short_edge, config.long_edge))
        by_shape.setdefault(shape, []).append(index)
    return [group[i : i + limit] for group in by_shape.values() for i in range(0, len(group), limit)]
