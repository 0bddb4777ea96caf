"""The global batches of an epoch as one process takes them: its share, in parts that fit into memory, decoded."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from model.config import TrainConfig
from model.data.coco import CocoData
from model.data.samples import Batch, collate, load_sample
from model.parallel import share, world
from model.training.order import batch_shape, epoch_batches, flips


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A part of an update that goes through the network at once."""

    batch: Batch
    counts: bool
    """False for the stand-in of a process whose share of the update is empty."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one step of the optimizer sees."""

    micro_batches: list[MicroBatch]
    num_images: int
    """Of the global batch."""


def updates(
    data: CocoData, config: TrainConfig, epoch: int, local_batch: int | None, num_loader_processes: int
) -> Iterator[Update]:
    """The epoch's updates, with this process's share of each decoded."""
    rank, num_processes = world()
    batches = epoch_batches(data, config, epoch)
    shares = [share(batch, rank, num_processes) for batch in batches]
    parts = []
    for batch, mine in zip(batches, shares, strict=True):
        limit = local_batch or max(1, len(mine))
        pieces = [mine[i : i + limit] for i in range(0, len(mine), limit)]
        parts.append((batch_shape(data, batch, config), pieces or [batch[:1]], bool(pieces)))
    jobs = [(shape, piece) for shape, pieces, _ in parts for piece in pieces]
    loader = iter(
        DataLoader(
            _Decoded(data, config, epoch, jobs),
            batch_size=None,
            num_workers=num_loader_processes,
            prefetch_factor=4 if num_loader_processes else None,
            pin_memory=torch.cuda.is_available(),
        )
    )
    for batch, (_, pieces, counts) in zip(batches, parts, strict=True):
        yield Update([MicroBatch(next(loader), counts) for _ in pieces], len(batch))


class _Decoded(Dataset[Batch]):
    """Decoded micro-batches, in the order of training."""

    def __init__(
        self, data: CocoData, config: TrainConfig, epoch: int, jobs: list[tuple[tuple[int, int], list[int]]]
    ) -> None:
        self.data, self.config, self.epoch, self.jobs = data, config, epoch, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, place: int) -> Batch:
        shape, indices = self.jobs[place]
        edges = self.config.data.short_edge, self.config.data.long_edge
        mirrored = [flips(self.config, self.epoch, int(self.data.image_ids[index])) for index in indices]
        samples = [load_sample(self.data, i, *edges, flip) for i, flip in zip(indices, mirrored, strict=True)]
        return collate(samples, pad_to=shape)
