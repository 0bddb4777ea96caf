"""The global batches of an epoch as one process takes them: its share, in parts that fit into memory, decoded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from model.config import TrainConfig
from model.data.faults import DataError
from model.data.images import Batch, collate, load_sample, padded_shape, resize_shape
from model.data.split import MIN_SIDE, CocoData
from model.machine import shorten_sockets
from model.parallel import share, world

_PURPOSES = {"images": 1, "batches": 2, "flips": 3}


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
    data: CocoData, config: TrainConfig, epochs: Iterable[int], local_batch: int | None, num_loader_processes: int
) -> Iterator[Update]:
    """The updates of some epochs, one after the other, with this process's share of each decoded.

    What decodes reads ahead from one epoch into the next.
    """
    if num_loader_processes:
        shorten_sockets()
    parts, ahead = tee(part for epoch in epochs for part in _shares(data, config, epoch, local_batch))
    # Ray Data was no faster within the spread, keeps the order of images only if asked, and would tie model/ to Ray.
    loader = iter(
        DataLoader(
            _Decoded(data, config),
            # The jobs are batches already.
            batch_size=None,
            sampler=(job for part in ahead for job in part.jobs),
            num_workers=num_loader_processes,
            # torch refuses the argument where the loader has no processes.
            prefetch_factor=4 if num_loader_processes else None,
            # Not is_available(): on the CPU of a machine with a GPU, pinning would take memory of that.
            pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
        )
    )
    for part in parts:
        yield Update([MicroBatch(next(loader), part.counts) for _ in part.jobs], part.num_images)


@dataclass(frozen=True, slots=True)
class _Job:
    """Images that are decoded together."""

    epoch: int
    shape: tuple[int, int]
    """Padded (height, width)."""
    indices: list[int]


@dataclass(frozen=True, slots=True)
class _Share:
    """What a process decodes for an update."""

    jobs: list[_Job]
    counts: bool
    num_images: int
    """Of the global batch."""


def _shares(data: CocoData, config: TrainConfig, epoch: int, local_batch: int | None) -> Iterator[_Share]:
    rank, num_processes = world()
    for batch in epoch_batches(data, config, epoch):
        mine = share(batch, rank, num_processes)
        limit = local_batch or max(1, len(mine))
        # Where a share is empty, a stand-in keeps the process in step with the others' collective operations.
        pieces = [mine[i : i + limit] for i in range(0, len(mine), limit)]
        shape = batch_shape(data, batch, config)
        yield _Share([_Job(epoch, shape, piece) for piece in pieces or [batch[:1]]], bool(pieces), len(batch))


class _Decoded(Dataset[Batch]):
    """Decoded micro-batches by their jobs."""

    def __init__(self, data: CocoData, config: TrainConfig) -> None:
        self.data, self.config = data, config

    def __getitem__(self, job: _Job) -> Batch:
        edges = self.config.data.short_edge, self.config.data.long_edge
        mirrored = [flips(self.config, job.epoch, int(self.data.image_ids[index])) for index in job.indices]
        samples = [load_sample(self.data, i, *edges, flip) for i, flip in zip(job.indices, mirrored, strict=True)]
        return collate(samples, pad_to=job.shape)


def epoch_batches(data: CocoData, config: TrainConfig, epoch: int) -> list[list[int]]:
    """The global batches of one epoch, as indices into `data`.

    Every image that trains appears exactly once. Images wider than high never share a batch with the others, so the
    last batch of either group may be smaller.
    """
    images = training_images(data, config)
    images = images[np.argsort(_random(config.seed, epoch, "images", data.image_ids[images]), kind="stable")]
    # The released code's groups: width above height, and all others. There, repeats fill up a group's last batch; here
    # that one stays smaller, so that each image counts once.
    wide = data.sizes[images, 1] > data.sizes[images, 0]
    batches = [
        group[start : start + config.global_batch].tolist()
        for group in (images[wide], images[~wide])
        for start in range(0, len(group), config.global_batch)
    ]
    first_ids = data.image_ids[[batch[0] for batch in batches]]
    order = np.argsort(_random(config.seed, epoch, "batches", first_ids), kind="stable")
    return [batches[place] for place in order]


def training_images(data: CocoData, config: TrainConfig) -> NDArray[np.int64]:
    """The indices of the images that train: large enough and, unless asked otherwise, annotated at all."""
    keep = data.sizes.min(axis=1) >= MIN_SIDE
    if not config.data.train_on_empty_images:
        keep &= np.diff(data.offsets) > 0
    if not keep.any():
        raise DataError(
            f"{data.root}: no image of split {data.split!r} can train: each is without annotations or has a side below "
            f"{MIN_SIDE} pixels; annotate some, or set train.data.train_on_empty_images: true"
        )
    return np.flatnonzero(keep)


def flips(config: TrainConfig, epoch: int, image_id: int) -> bool:
    """Whether this image is mirrored in this epoch."""
    number = _random(config.seed, epoch, "flips", np.array([image_id]))[0]
    return bool(int(number) < config.data.flip_probability * 2.0**64)


def batch_shape(data: CocoData, indices: Sequence[int], config: TrainConfig) -> tuple[int, int]:
    """The padded (height, width) that a batch of these images needs; no image is read."""
    shapes = [
        padded_shape(*resize_shape(height, width, config.data.short_edge, config.data.long_edge))
        for height, width in data.sizes[list(indices)].tolist()
    ]
    return max(height for height, _ in shapes), max(width for _, width in shapes)


def _random(
    seed: int, epoch: int, purpose: Literal["images", "batches", "flips"], image_ids: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """A random 64-bit number for each image id; a keyed hash, so that no number depends on which others are drawn."""
    state = np.zeros(len(image_ids), dtype=np.uint64)
    for word in (np.array([_PURPOSES[purpose]]), np.array([seed]), np.array([epoch]), image_ids):
        state = _mix(state ^ word.astype(np.uint64))
    return state


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The step of the SplitMix64 generator."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
