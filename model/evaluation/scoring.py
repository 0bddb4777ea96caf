"""The scoring pass: one pass over the images for any number of inference settings, and their COCO numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model.assignment.assign import assign
from model.assignment.samples import GroundTruth, Predicted, predicted
from model.config import DataConfig, InferenceConfig, ModelConfig
from model.data.images import STRIDE, Batch, padded_shape, resize_shape
from model.data.split import CocoData
from model.evaluation.batched_counting import (
    BatchObjects,
    Counted,
    batch_objects,
    batch_part,
    count_candidates,
    with_ious,
)
from model.evaluation.calibration.errors import calibration
from model.evaluation.coco_eval import evaluate_all
from model.evaluation.counting import image_parts, objects_of
from model.evaluation.misalignment import Misalignment
from model.evaluation.parts import Part, merge
from model.inference.batched import detect, of_batch, to_host
from model.inference.postprocess import pool, shortlist
from model.inference.predictor import Precision, forward_passes, load_batch, predict_batch
from model.inference.table import DetectionTable
from model.machine import shorten_sockets
from model.network.anchors import anchor_grid, decode
from model.network.finite import NonFiniteError, refusal
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
        for one in (_by_precision(settings) if on_cuda else ())
    }
    lanes = _Lanes(device)

    def look(batch: Batch) -> list[list[Part]]:
        if on_cuda:
            return [_score_on_device(detector, networks, data, batch, settings, images_per_pass, counting, lanes.one())]
        return _score_batch(detector, data, batch, settings, images_per_pass, counting)

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
    found: list[dict[int, Part]] = [{} for _ in batch.image_ids]
    rules = detector.config
    numbers: list[int | None] = [None] * len(found)
    if counting and not rules.assignment.by_prediction:
        numbers = _num_positive_anchors(rules, batch).tolist()
    for precision, places in _by_precision(settings).items():
        images = predict_batch(detector, batch, data.category_ids, images_per_pass, precision)
        for which, (image, parts) in enumerate(zip(images, found, strict=True)):
            number = numbers[which]
            if counting and rules.assignment.by_prediction:
                said = Predicted(decode(image.grid.boxes, image.box_deltas)[None], image.class_logits[None])
                number = int(_num_positive_anchors(rules, _one_image(batch, which), said))
            lists = [shortlist(image, settings[place]) for place in places]
            objects = objects_of(data, int(np.searchsorted(data.image_ids, image.image_id)))
            parts.update(zip(places, image_parts(pool(image, lists), lists, objects, number), strict=True))
    return [[parts[place] for place in range(len(settings))] for parts in found]


@torch.inference_mode()
def _score_on_device(
    detector: RetinaNetConf,
    networks: Mapping[Precision, RetinaNetConf],
    data: CocoData,
    batch: Batch,
    settings: Sequence[InferenceConfig],
    images_per_pass: int,
    counting: bool,
    lane: AbstractContextManager[object],
) -> list[Part]:
    """For all images of a batch, which fit one pass, a part for each setting.

    `lane` is held while the device works; what is left for the host overlaps with what other threads have it do.
    """
    category_ids, image_ids = np.asarray(data.category_ids, np.int64), batch.image_ids.numpy()
    objects = batch_objects([objects_of(data, place) for place in np.searchsorted(data.image_ids, image_ids).tolist()])
    with lane:
        batch = batch.to(next(detector.parameters()).device)
        try:
            found = _find_on_device(
                networks, batch, settings, images_per_pass, image_ids, category_ids, objects if counting else None
            )
        except NonFiniteError as error:  # told of outputs alone, which do not know whose they are
            raise refusal(detector, str(error)) from error
        positives = to_host([one.positives for one in found if one.positives is not None]) if counting else []
    parts: dict[int, Part] = {}
    for which, one in enumerate(found):
        kept = with_ious(one.kept, one.ends, objects, category_ids)
        parts[one.place] = Part(kept, None)
        if one.counted is not None:
            parts[one.place] = batch_part(
                one.counted,
                one.number,
                settings[one.place],
                kept,
                one.ends,
                objects,
                image_ids,
                category_ids,
                positives[which],
                one.droppers,
            )
    return [parts[place] for place in range(len(settings))]


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What the device finds on a batch under one setting."""

    place: int
    """Of the setting."""
    kept: DetectionTable
    ends: NDArray[np.int64]
    """[B + 1] where the detections of each image end; the first is 0."""
    counted: Counted | None
    number: int
    """Of the setting, among those that were counted together."""
    positives: Tensor | None
    """[B] anchors that training would assign an object; None where nothing is counted."""
    droppers: tuple[DetectionTable, NDArray[np.int64]] | None
    """What dropped others, and where those of each image end; None where these are the detections."""


def _find_on_device(
    networks: Mapping[Precision, RetinaNetConf],
    batch: Batch,
    settings: Sequence[InferenceConfig],
    images_per_pass: int,
    image_ids: NDArray[np.int64],
    category_ids: NDArray[np.int64],
    objects: BatchObjects | None,
) -> list[_Found]:
    """Everything that needs the device, whose memory is free again afterwards; `objects` are None if none count."""
    found: list[_Found] = []
    positives = None
    for precision, places in _by_precision(settings).items():
        network = networks[precision]
        grid = anchor_grid(batch.shape, batch.images.device, network.config.anchor_rule)
        ((_, predictions),) = forward_passes(network, batch, images_per_pass, precision)
        images = of_batch(predictions, grid, batch.sizes, batch.sizes / batch.original_sizes)
        by_prediction = network.config.assignment.by_prediction
        if objects is not None and (by_prediction or positives is None):
            said = predicted(predictions, grid) if by_prediction else None
            positives = _num_positive_anchors(network.config, batch, said)
            del said
        del predictions
        chosen = [settings[place] for place in places]
        for group in detect(images, chosen, image_ids, category_ids):
            counted = None if objects is None else count_candidates(images, group.scored, objects)
            for number, (place, table) in enumerate(zip(group.scored.places, group.tables, strict=True)):
                droppers = None
                if group.droppers is not None:
                    droppers = group.droppers[0][number], np.cumsum([0, *group.droppers[1][:, number]])
                ends = np.cumsum([0, *group.count[:, number]])
                found.append(_Found(places[place], table, ends, counted, number, positives, droppers))
    return found


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


def _by_precision(settings: Sequence[InferenceConfig]) -> dict[Precision, list[int]]:
    """Places of the settings that share a forward pass."""
    places: dict[Precision, list[int]] = {}
    for place, setting in enumerate(settings):
        places.setdefault(setting.precision, []).append(place)
    return places


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


def _num_positive_anchors(rules: ModelConfig, batch: Batch, said: Predicted | None = None) -> Tensor:
    """[B] anchors of each image that training would assign an object, where it assigns by predictions by these ones.

    Args:
        rules: of the detector.
        batch: B images.
        said: of them, where the rule looks at predictions.
    """
    grid = anchor_grid(batch.shape, batch.boxes.device, rules.anchor_rule)
    truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
    padded = (batch.sizes + STRIDE - 1) // STRIDE * STRIDE
    assigned = assign(grid, padded, truth, rules, said).assigned
    return (assigned >= 0).sum(dim=1)


def _one_image(batch: Batch, place: int) -> Batch:
    """The image at this place of a batch, with its boxes; on the CPU."""
    mine, one = batch.image_index == place, slice(place, place + 1)
    return Batch(
        images=batch.images[one],
        sizes=batch.sizes[one],
        boxes=batch.boxes[mine],
        labels=batch.labels[mine],
        image_index=batch.image_index[mine] - place,
        image_ids=batch.image_ids[one],
        original_sizes=batch.original_sizes[one],
    )


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
