"""The scoring pass: one pass over the images for any number of inference settings, and their COCO numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch
from torch.utils.data import DataLoader, Dataset

from model.config import DataConfig, InferenceConfig
from model.data.images import Batch, padded_shape, resize_shape
from model.data.split import CocoData
from model.evaluation.batch_scoring import by_precision, score_batch, score_on_device
from model.evaluation.calibration.errors import calibration
from model.evaluation.coco.metrics import evaluate_all
from model.evaluation.misalignment import Misalignment
from model.evaluation.parts import Part, merge
from model.inference.predictor import Precision, load_batch
from model.inference.table import DetectionTable
from model.machine import shorten_sockets
from model.network.retinanet import RetinaNetConf, for_inference
from model.parallel import gather, map_in_order, one_thread_each, world

SHARD = 64
"""Images that are scored together and then joined; a shard on storage has as many."""
Shard = tuple[int, ...]
"""Images that are scored together, by their places in the data set."""
SMALL_GPU, LARGE_GPU = 15 * 2**30, 30 * 2**30
"""Bytes of memory below which a GPU takes 8 images a pass instead of 16, and from which on two passes at once."""
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NUM_THREADS = 6
"""Batches that are on a GPU, wait for it, or are counted on the host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The results of one inference setting: COCO numbers, detections and misalignment."""

    inference: InferenceConfig
    metrics: dict[str, float | None]
    """The twelve COCO numbers, 0 to 100; None where the data set has no such object."""
    detections: DetectionTable
    misalignment: Misalignment | None
    """None where it was not asked for."""
    calibration: Mapping[str, float | None] = field(default_factory=dict)
    """How far the scores are from what they estimate, 0 to 100, by the names of CALIBRATION; None as above, or without
    a detection; empty where it was not asked for."""


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
        settings: as many as wanted; a forward pass is made for each of their precisions.
        config: input size.
        counting: whether boxes are counted before and after NMS, for the misalignment, and scores are compared with
            what they estimate; a training's validations want the twelve numbers alone.
        batch_size: as in `score_shards`.
        num_loader_processes: as in `score_shards`.
        progress: called with (images done, images in all) of this process.

    Raises:
        NonFiniteError: the network's outputs are NaN or infinite.
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
    tables = [part.detections for part in merged] if rank == 0 else []
    metrics = gather(evaluate_all(data, tables) if rank == 0 else None)[0]
    errors = gather([calibration(data, table) if counting else {} for table in tables] if rank == 0 else None)[0]
    return [
        Scores(
            inference=setting,
            metrics=numbers,
            detections=part.detections,
            misalignment=part.misalignment,
            calibration=off,
        )
        for setting, part, numbers, off in zip(settings, merged, metrics, errors, strict=True)
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
        settings: as many as wanted; a forward pass is made for each of their precisions.
        config: input size.
        counting: whether boxes are counted before and after NMS, for the misalignment.
        batch_size: images decoded and moved to the device together, on CUDA those of one forward pass as well; None
            takes 16 on CUDA (8 on a GPU with less than 15 GiB), and 1 on the CPU.
        num_loader_processes: processes that decode images; 0 decodes in this one.
        progress: called with (images done, images in all).

    Raises:
        NonFiniteError: the network's outputs are NaN or infinite.
    """
    on_cuda, device = _on_cuda(detector), next(detector.parameters()).device
    batch_size = batch_size or (_images_that_fit(device) if on_cuda else 1)
    batches = [_batches(data, config, shard, batch_size) for shard in chosen]
    if num_loader_processes:
        shorten_sockets()
    loader = DataLoader(
        _Batches(data, config, [batch for of_shard in batches for batch in of_shard]),
        batch_size=None,
        shuffle=False,
        num_workers=num_loader_processes,
        pin_memory=on_cuda,
    )
    training = detector.training
    detector.eval()
    # The last bits of a convolution depend on how many images it takes: one size, whatever is left of a shape.
    images_per_pass = batch_size if on_cuda else 1
    # A GPU waits for the host to name its operations; on the CPU there is nothing to win.
    networks = {
        one: for_inference(detector, DTYPES[one]).to(memory_format=torch.channels_last)
        for one in (by_precision(settings) if on_cuda else ())
    }
    lanes = _Lanes(device)

    def look(batch: Batch) -> list[list[Part]]:
        if on_cuda:
            return [score_on_device(detector, networks, data, batch, settings, images_per_pass, counting, lanes.one())]
        return score_batch(detector, data, batch, settings, images_per_pass, counting)

    with one_thread_each() as num_threads, _same_algorithms():
        results = map_in_order(look, loader, NUM_THREADS if on_cuda else num_threads)
        done, total = 0, sum(len(shard) for shard in chosen)
        for of_shard in batches:
            found: list[list[Part]] = []
            for of_batch, parts in zip(of_shard, results, strict=False):
                found += parts
                done += len(of_batch)
                progress(done, total)
            yield [merge(parts) for parts in _by_setting(found, len(settings))]
    # A training goes on after its validation, and what the streams kept would be lost to it.
    detector.train(training)
    if on_cuda:
        torch.cuda.empty_cache()


def _by_setting(parts: Sequence[Sequence[Part]], num_settings: int) -> list[list[Part]]:
    """Lists with a part for each setting, as a list for each setting; also where there are none."""
    return [[of_images[place] for of_images in parts] for place in range(num_settings)]


def _on_cuda(detector: RetinaNetConf) -> bool:
    return next(detector.parameters()).is_cuda


def _images_that_fit(device: torch.device) -> int:
    """Images of a forward pass: of all memory, whoever uses it, so that the same GPU always takes as many."""
    return 8 if _memory(device) < SMALL_GPU else 16


def _lanes_that_fit(device: torch.device) -> int:
    """Batches on a GPU at once: of the memory that this process may take, as no number depends on them."""
    part = torch.cuda.get_per_process_memory_fraction(device) if device.type == "cuda" else 1.0
    return 2 if _memory(device) * part >= LARGE_GPU else 1


def _memory(device: torch.device) -> int:
    """Bytes that a GPU has; for the CPU as if that were enough."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else LARGE_GPU


class _Lanes:
    """Streams of a GPU that threads take turns on, each with a batch: while one copies or waits, another computes."""

    def __init__(self, device: torch.device) -> None:
        self.free: SimpleQueue[torch.cuda.Stream | None] = SimpleQueue()
        for _ in range(_lanes_that_fit(device)):
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
            if stream is not None:
                # The weights may be still on their way there.
                stream.wait_stream(torch.cuda.current_stream(device))
            self.free.put(stream)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a free stream, and work on it."""
        stream = self.free.get()
        try:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                yield
        finally:
            self.free.put(stream)


@contextmanager
def _same_algorithms() -> Iterator[None]:
    """Let cuDNN choose by shape alone, and not by what is fastest at the moment, which may give other last bits."""
    chosen = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = chosen


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
