"""One pass over the images gives the detections of any number of inference settings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.config import DataConfig, InferenceConfig
from model.data.coco import CocoData
from model.data.images import Batch, padded_shape, resize_shape
from model.evaluation.coco_eval import evaluate_all
from model.evaluation.counting import Seen, objects_of, see
from model.evaluation.misalignment import Misalignment
from model.evaluation.parts import Part, merge, of_images
from model.inference.postprocess import pool, shortlists, suppress
from model.inference.predictor import load_batch, predict_batch
from model.inference.table import DetectionTable
from model.network.anchors import anchor_grid
from model.network.assignment import GroundTruth, assign
from model.network.retinanet import RetinaNetConf
from model.parallel import gather, map_in_order, one_thread_each, world

SHARD = 64
"""Images scored between two looks at what is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What one inference setting makes of a checkpoint."""

    inference: InferenceConfig
    metrics: dict[str, float | None]
    """The twelve COCO numbers, 0 to 100; None where the data set has no such object."""
    detections: DetectionTable
    misalignment: Misalignment | None
    """None where it was not asked for."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Images that are scored together."""

    indices: tuple[int, ...]
    """Places in the data set."""


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
    share = Shard(tuple(range(rank, len(data), num_processes)))
    (parts,) = score_shards(
        detector,
        data,
        [share],
        settings,
        config,
        counting=counting,
        batch_size=batch_size,
        num_loader_processes=num_loader_processes,
        progress=progress,
    )
    shares = gather(parts)
    merged = [merge([share[place] for share in shares]) for place in range(len(settings))]
    metrics = gather(evaluate_all(data, [part.detections for part in merged]) if rank == 0 else None)[0]
    return [
        Scores(inference=setting, metrics=numbers, detections=part.detections, misalignment=part.misalignment)
        for setting, numbers, part in zip(settings, metrics, merged, strict=True)
    ]


def shards(data: CocoData, config: DataConfig) -> list[Shard]:
    """Divide the images, the same way on any number of processes; those of a shard have one padded shape."""
    return [Shard(tuple(batch)) for batch in _batches(data, config, range(len(data)), SHARD)]


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
    batches = [_batches(data, config, shard.indices, batch_size) for shard in chosen]
    loader = DataLoader(
        _Batches(data, config, list(chain.from_iterable(batches))),
        batch_size=None,
        shuffle=False,
        num_workers=num_loader_processes,
    )
    training = detector.training
    detector.eval()
    images_per_pass = batch_size if on_cuda else 1

    def look(batch: Batch) -> list[list[Seen]]:
        return list(_look(detector, data, batch, settings, images_per_pass, counting))

    with one_thread_each() as num_threads:
        results = map(look, loader) if on_cuda else map_in_order(look, loader, num_threads)
        done, total = 0, sum(len(shard.indices) for shard in chosen)
        for of_shard in batches:
            seen: list[list[Seen]] = [[] for _ in settings]
            for of_batch in islice(results, len(of_shard)):
                for of_image in of_batch:
                    for of_setting, one in zip(seen, of_image, strict=True):
                        of_setting.append(one)
                done += len(of_batch)
                progress(done, total)
            yield [of_images(data, of_setting) for of_setting in seen]
    detector.train(training)


@torch.inference_mode()
def _look(
    detector: RetinaNetConf,
    data: CocoData,
    batch: Batch,
    settings: Sequence[InferenceConfig],
    images_per_pass: int,
    counting: bool,
) -> Iterator[list[Seen]]:
    """What there is to see of each image of a batch, under each setting."""
    indices = np.searchsorted(data.image_ids, batch.image_ids.numpy()).tolist()
    numbers = _num_positive_anchors(detector, batch) if counting else [0] * len(indices)
    images = predict_batch(detector, batch, images_per_pass)
    for index, number, image in zip(indices, numbers, images, strict=True):
        lists = shortlists(image, settings)
        gathered = pool(image, lists)
        detections = suppress(gathered, lists)
        yield see(image, gathered, lists, detections, objects_of(data, index), index, number, counting=counting)


@torch.inference_mode()
def _num_positive_anchors(detector: RetinaNetConf, batch: Batch) -> list[int]:
    """Anchors of each image that training would assign an object."""
    rules = detector.config
    grid = anchor_grid(batch.shape, batch.boxes.device, rules.anchor_rule)
    truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
    padded = (batch.sizes + 31) // 32 * 32
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
