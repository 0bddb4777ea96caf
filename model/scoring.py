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
from model.detector import RetinaNetConf
from model.distributed import gather, world
from model.evaluation import DetectionTable, evaluate
from model.postprocess import Detections, detect
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
    num_loader_processes: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scores]:
    """Detect on every image of `data`, shared out over the processes, and evaluate each setting.

    Images are padded to their own size only, so that a detection depends neither on the batch nor on the number of
    processes.

    Args:
        detector: on its device.
        data: the images; their categories must be the detector's.
        settings: as many as wanted; the forward pass is made once.
        config: input size.
        num_loader_processes: processes that decode images; 0 decodes in this one.
        progress: called with (images done, images in all) of this process.
    """
    rank, num_processes = world()
    batches = _batches(data, config, range(rank, len(data), num_processes), _batch_limit(detector))
    loader = DataLoader(
        _Batches(data, config, batches), batch_size=None, shuffle=False, num_workers=num_loader_processes
    )
    tables: list[list[DetectionTable]] = [[] for _ in settings]
    done, mine = 0, sum(len(batch) for batch in batches)
    training = detector.training
    detector.eval()
    for batch, detections in _detect(detector, loader, settings):
        for table, images in zip(tables, detections, strict=True):
            table.extend(_table(data, int(i), found) for i, found in zip(batch.image_ids, images, strict=True))
        done += len(batch.image_ids)
        progress(done, mine)
    detector.train(training)
    shares = gather([DetectionTable.concatenate(table) for table in tables])
    merged = [DetectionTable.concatenate([part[place] for part in shares]) for place in range(len(settings))]
    metrics = gather([evaluate(data, table) for table in merged] if rank == 0 else None)[0]
    return [
        Scores(inference=setting, metrics=numbers, detections=table)
        for setting, numbers, table in zip(settings, metrics, merged, strict=True)
    ]


def _detect(
    detector: RetinaNetConf, loader: "DataLoader[Batch]", settings: Sequence[InferenceConfig]
) -> Iterator[tuple[Batch, list[list[Detections]]]]:
    device = next(detector.parameters()).device
    for batch in loader:
        with torch.inference_mode():
            images = normalize(batch.images.to(device), batch.sizes.to(device))
            predictions = detector(images).float()
            grid = anchor_grid(tuple(batch.images.shape[-2:]), device, detector.config.anchor_rule)
            sizes = batch.sizes.to(device)
            scales = sizes / batch.original_sizes.to(device)
            yield batch, [detect(predictions, grid, sizes, scales, setting) for setting in settings]


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


def _batch_limit(detector: RetinaNetConf) -> int:
    return 8 if next(detector.parameters()).is_cuda else 1


def _table(data: CocoData, image_id: int, found: Detections) -> DetectionTable:
    return DetectionTable(
        np.full(len(found.scores), image_id, np.int64),
        np.asarray(data.category_ids, np.int64)[found.labels.cpu().numpy()],
        found.boxes.cpu().numpy(),
        found.scores.cpu().numpy(),
        found.anchors.cpu().numpy().astype(np.int32),
    )
