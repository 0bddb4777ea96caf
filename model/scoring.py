"""One pass over the images gives the detections of any number of inference settings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.anchors import anchor_grid
from model.checkpoint import load_weights, read_card
from model.config import DataConfig, InferenceConfig
from model.data import Batch, CocoData, collate, load_sample
from model.detections import DetectionTable
from model.detector import RetinaNetConf
from model.distributed import gather, world
from model.evaluation import evaluate
from model.heads import Predictions
from model.postprocess import Detections, detect
from model.threads import map_in_order, one_thread_each
from model.transforms import normalize, padded_shape, resize_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What one inference setting makes of a checkpoint."""

    inference: InferenceConfig
    metrics: dict[str, float | None]
    """The twelve COCO numbers, 0 to 100; None where the data set has no such object."""
    detections: DetectionTable


def load_detector(folder: Path) -> RetinaNetConf:
    """The detector of a checkpoint, on the CPU, ready to predict.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    card = read_card(folder)
    detector = RetinaNetConf(card.config.model, len(card.category_ids))
    detector.load_state_dict(load_weights(folder))
    return detector.eval()


def score(
    detector: RetinaNetConf,
    data: CocoData,
    settings: Sequence[InferenceConfig],
    config: DataConfig,
    *,
    batch_size: int | None = None,
    num_loader_processes: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scores]:
    """Detect on every image of `data`, shared out over the processes, and evaluate each setting.

    Images are padded to their own size only. A convolution's last bits depend on how many images it takes at once, and
    on how many threads. So the CPU predicts image by image, as many at a time as torch has threads, and CUDA always
    `batch_size` images, filled up where fewer of a shape are left: no detection depends on the number of processes,
    nor, on the CPU, on `batch_size` and threads.

    Args:
        detector: on its device.
        data: the images; their categories must be the detector's.
        settings: as many as wanted; the forward pass is made once.
        config: input size.
        batch_size: images decoded and moved to the device together, on CUDA those of one forward pass as well; None
            takes 8 on CUDA, and 1 on the CPU.
        num_loader_processes: processes that decode images; 0 decodes in this one.
        progress: called with (images done, images in all) of this process.
    """
    rank, num_processes = world()
    on_cuda = next(detector.parameters()).is_cuda
    batch_size = batch_size or (8 if on_cuda else 1)
    batches = _batches(data, config, range(rank, len(data), num_processes), batch_size)
    loader = DataLoader(
        _Batches(data, config, batches), batch_size=None, shuffle=False, num_workers=num_loader_processes
    )
    tables: list[list[DetectionTable]] = [[] for _ in settings]
    done, mine = 0, sum(len(batch) for batch in batches)
    training = detector.training
    detector.eval()
    images_per_pass = batch_size if on_cuda else 1

    def detect_all(batch: Batch) -> tuple[list[int], list[list[Detections]]]:
        return batch.image_ids.tolist(), list(detect_batch(detector, batch, settings, images_per_pass))

    with one_thread_each() as num_threads:
        results = map(detect_all, loader) if on_cuda else map_in_order(detect_all, loader, num_threads)
        for image_ids, found in results:
            for image_id, detections in zip(image_ids, found, strict=True):
                for table, of_setting in zip(tables, detections, strict=True):
                    table.append(_table(data, image_id, of_setting))
            done += len(image_ids)
            progress(done, mine)
    detector.train(training)
    shares = gather([DetectionTable.concatenate(table) for table in tables])
    merged = [DetectionTable.concatenate([part[place] for part in shares]) for place in range(len(settings))]
    metrics = gather([evaluate(data, table) for table in merged] if rank == 0 else None)[0]
    return [
        Scores(inference=setting, metrics=numbers, detections=table)
        for setting, numbers, table in zip(settings, metrics, merged, strict=True)
    ]


@torch.inference_mode()
def detect_batch(
    detector: RetinaNetConf, batch: Batch, settings: Sequence[InferenceConfig], images_per_pass: int
) -> Iterator[list[Detections]]:
    """The detections of each image of a batch, one for each setting; the batch goes to the detector's device."""
    batch = batch.to(next(detector.parameters()).device)
    grid = anchor_grid(batch.shape, batch.images.device, detector.config.anchor_rule)
    scales = batch.sizes / batch.original_sizes
    for start in range(0, len(batch.images), images_per_pass):
        chosen = slice(start, start + images_per_pass)
        sizes = batch.sizes[chosen]
        images = normalize(batch.images[chosen], sizes)
        images = torch.cat([images, images[-1:].expand(images_per_pass - len(images), -1, -1, -1)])
        images = images.contiguous(memory_format=torch.channels_last)
        predictions = _first(detector(images).float(), len(sizes))
        by_setting = [detect(predictions, grid, sizes, scales[chosen], setting) for setting in settings]
        yield from ([of_setting[image] for of_setting in by_setting] for image in range(len(sizes)))


def _first(predictions: Predictions, count: int) -> Predictions:
    confidences = predictions.confidence_logits
    return Predictions(
        [level[:count] for level in predictions.class_logits],
        [level[:count] for level in predictions.box_deltas],
        None if confidences is None else [level[:count] for level in confidences],
    )


class _Batches(Dataset[Batch]):
    """Decoded batches by their place."""

    def __init__(self, data: CocoData, config: DataConfig, batches: list[list[int]]) -> None:
        self.data, self.config, self.batches = data, config, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> Batch:
        edges = self.config.short_edge, self.config.long_edge
        samples = [load_sample(self.data, index, *edges, flip=False) for index in self.batches[place]]
        return collate(samples, pad_to=padded_shape(*samples[0].size))


def _batches(data: CocoData, config: DataConfig, indices: range, limit: int) -> list[list[int]]:
    """Images of one padded shape side by side."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        height, width = (int(side) for side in data.sizes[index])
        shape = padded_shape(*resize_shape(height, width, config.short_edge, config.long_edge))
        by_shape.setdefault(shape, []).append(index)
    return [group[i : i + limit] for group in by_shape.values() for i in range(0, len(group), limit)]


def _table(data: CocoData, image_id: int, found: Detections) -> DetectionTable:
    return DetectionTable.plain(
        np.full(len(found.scores), image_id, np.int64),
        np.asarray(data.category_ids, np.int64)[found.labels.cpu().numpy()],
        found.boxes.cpu().numpy(),
        found.scores.cpu().numpy(),
    )
