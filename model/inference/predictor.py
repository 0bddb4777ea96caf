"""A checkpoint as a function from images to named boxes, and the forward pass of a batch that scoring uses as well."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.config import DataConfig, InferenceConfig, require_branch
from model.data.files.decoding import upright
from model.data.images import (
    Batch,
    Sample,
    collate,
    load_sample,
    normalize,
    padded_shape,
    resize,
    resize_shape,
    rgb_pixels,
)
from model.data.split import CocoData
from model.inference.postprocess import ImagePredictions, pool, shortlist, split, suppress
from model.inference.table import DetectionTable
from model.network.anchors import anchor_grid
from model.network.checkpoint import Card, read_card, read_inference
from model.network.finite import require_finite_outputs
from model.network.retinanet import Predictions, RetinaNetConf, load_detector
from model.parallel import map_in_order, one_thread_each
from model.settings import changed

T = TypeVar("T")
R = TypeVar("R")
Precision = Literal["float32", "bfloat16"]
Photo = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""A file, which is turned as its EXIF orientation says, or pixels as they are: a PIL image, or uint8 RGB [h, w, 3]; a
tensor may be [3, h, w] as well."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What was detected on one image, best first."""

    boxes: NDArray[np.float32]
    """[D, 4] xyxy, in pixels of the image as it was given; of a file, as people see it: turned as its EXIF data say."""
    scores: NDArray[np.float32]
    """[D], 0 to 1."""
    labels: tuple[str, ...]
    """[D] names of the classes."""
    category_ids: tuple[int, ...]
    """[D] the same, by the ids of the data set that the detector learnt from."""
    size: tuple[int, int]
    """Height and width of the image."""

    def above(self, score: float) -> "Found":
        """Those with at least this score."""
        count = int((self.scores >= score).sum())  # they are sorted
        return replace(
            self,
            boxes=self.boxes[:count],
            scores=self.scores[:count],
            labels=self.labels[:count],
            category_ids=self.category_ids[:count],
        )

    def records(self) -> list[dict[str, Any]]:
        """One JSON-able record a detection: box (xyxy), label, category_id, score."""
        columns = zip(self.boxes.tolist(), self.labels, self.category_ids, self.scores.tolist(), strict=True)
        return [dict(zip(("box", "label", "category_id", "score"), row, strict=True)) for row in columns]


class Predictor:
    """A detector on its device, with its classes, its input size and its inference settings."""

    def __init__(self, detector: RetinaNetConf, card: Card, inference: InferenceConfig) -> None:
        """`detector` is on its device already."""
        self.detector, self.card, self.inference = detector, card, inference
        on_cpu = next(detector.parameters()).device.type == "cpu"
        # Threads that share a GPU would only queue there, each with the memory of an image.
        self._device: AbstractContextManager[object] = nullcontext() if on_cpu else threading.Lock()

    def __call__(self, images: Photo | Sequence[Photo], **settings: Any) -> list[Found]:
        """Detect on one image or several; one result for each, in their order.

        On the CPU as many images are worked on at a time as torch has threads, each by one thread: the results are
        those of `model.evaluation.scoring.score` bit for bit, whatever the number of threads and of images.

        Args:
            images: a file, PIL image, array or tensor, or a list of such.
            settings: inference settings to change for this call, such as confidence_exponent=0.2.

        Raises:
            ValueError: an image does not decode or has another form, a setting has no meaning, or the network's
                outputs are NaN or infinite.
        """
        several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 4)
        photos: Iterable[Photo] = images if several else [images]  # type: ignore[assignment, list-item]
        return list(self.stream(photos, **settings))

    def stream(self, images: Iterable[Photo], **settings: Any) -> Generator[Found, None, None]:
        """Detect on images one after the other as they come, such as frames of a camera; a few are read ahead.

        While results are taken from it, torch computes with one thread; its setting comes back at the end.

        Args:
            images: as many as there are; each as in a call.
            settings: as in a call.

        Raises:
            ValueError: as in a call.
        """
        inference = changed(self.inference, settings)
        require_branch(inference, has_branch=self.card.config.model.confidence is not None)
        return self.in_parallel(lambda photo: self._detect(pixels_of(photo), inference), images)

    def in_parallel(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """Yield function(item) for each item, in their order: what `stream` does with images, for any work on them.

        Args:
            function: is called by several threads, each with one thread for torch; it may call `detect`.
            items: are read ahead by one for each thread, and one more.
        """
        # Two threads on one image wait for each other most of the time, and sum in another order than one.
        with one_thread_each() as num_threads:
            yield from map_in_order(function, items, num_threads)

    def detect(self, photo: Photo) -> Found:
        """Detect on one image, in this thread, under the checkpoint's own settings; for `in_parallel`."""
        return self._detect(pixels_of(photo), self.inference)

    def _detect(self, pixels: Tensor, inference: InferenceConfig) -> Found:
        old = (pixels.shape[1], pixels.shape[2])
        data = self.card.config.data
        new = resize_shape(*old, data.short_edge, data.long_edge)
        sample = Sample(
            image=resize(pixels, new),
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            image_id=0,
            size=new,
            original_size=old,
            flipped=False,
        )
        batch = collate([sample], pad_to=padded_shape(*new))
        with self._device:
            ((table,),) = detect_batch(self.detector, batch, self.card.category_ids, [inference], images_per_pass=1)
        names = dict(zip(self.card.category_ids, self.card.category_names, strict=True))
        category_ids = table.category_ids.tolist()
        return Found(
            boxes=table.boxes,
            scores=table.scores,
            labels=tuple(names[id] for id in category_ids),
            category_ids=tuple(category_ids),
            size=old,
        )


def load(folder: Path, device: str | torch.device | None, settings: dict[str, Any]) -> Predictor:
    """Load a checkpoint; `model.load` says the rest."""
    card = read_card(folder)
    inference = changed(read_inference(folder), settings)
    require_branch(inference, has_branch=card.config.model.confidence is not None)
    detector = load_detector(folder)
    return Predictor(detector.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), card, inference)


@torch.inference_mode()
def detect_batch(
    detector: RetinaNetConf,
    batch: Batch,
    category_ids: Sequence[int],
    settings: Sequence[InferenceConfig],
    images_per_pass: int,
) -> Iterator[list[DetectionTable]]:
    """The detections of each image of a batch, a table for each setting, all of one precision; see `predict_batch`."""
    (precision,) = {setting.precision for setting in settings}
    for image in predict_batch(detector, batch, category_ids, images_per_pass, precision):
        lists = [shortlist(image, setting) for setting in settings]
        pooled = pool(image, lists)
        yield [suppress(pooled, one) for one in lists]


@torch.inference_mode()
def predict_batch(
    detector: RetinaNetConf,
    batch: Batch,
    category_ids: Sequence[int],
    images_per_pass: int,
    precision: Precision = "float32",
) -> Iterator[ImagePredictions]:
    """Yield the raw outputs for each image of a batch, in float32.

    Args:
        detector: on its device.
        batch: goes to the same device.
        category_ids: [K] of the detector's classes, rising.
        images_per_pass: of a forward pass; the last is filled up with copies of its last image.
        precision: of the forward pass.

    Raises:
        NonFiniteError: an output is NaN or infinite.
    """
    batch = batch.to(next(detector.parameters()).device)
    grid = anchor_grid(batch.shape, batch.images.device, detector.config.anchor_rule)
    scales = batch.sizes / batch.original_sizes
    image_ids = batch.image_ids.tolist()
    for chosen, predictions in forward_passes(detector, batch, images_per_pass, precision):
        require_finite_outputs(detector, predictions)
        sizes = batch.sizes[chosen]
        yield from split(predictions.float(), grid, sizes, scales[chosen], image_ids[chosen], category_ids)


@torch.inference_mode()
def forward_passes(
    detector: RetinaNetConf, batch: Batch, images_per_pass: int, precision: Precision
) -> Iterator[tuple[slice, Predictions]]:
    """Yield the images of each forward pass, by their places, and the raw outputs for them.

    Args:
        detector: on its device.
        batch: on the same device.
        images_per_pass: as in `predict_batch`.
        precision: of the outputs as well.
    """
    for start in range(0, len(batch.images), images_per_pass):
        chosen = slice(start, start + images_per_pass)
        sizes = batch.sizes[chosen]
        images = normalize(batch.images[chosen], sizes)
        # The last bits of a convolution depend on the number of images, so every pass takes the same number.
        images = torch.cat([images, images[-1:].expand(images_per_pass - len(images), -1, -1, -1)])
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            predictions = detector(images)
        yield chosen, _first(predictions, len(sizes))


def _first(predictions: Predictions, count: int) -> Predictions:
    confidences = predictions.confidence_logits
    return Predictions(
        [level[:count] for level in predictions.class_logits],
        [level[:count] for level in predictions.box_deltas],
        None if confidences is None else [level[:count] for level in confidences],
    )


def load_batch(data: CocoData, indices: Sequence[int], config: DataConfig) -> Batch:
    """Images of one padded shape, by their places in the data set, as they are scored."""
    samples = [load_sample(data, index, config.short_edge, config.long_edge, flip=False) for index in indices]
    return collate(samples, pad_to=padded_shape(*samples[0].size))


def pixels_of(photo: Photo) -> Tensor:
    """uint8 RGB [3, h, w] of an image in any of its forms.

    Raises:
        ValueError: a file does not decode, or pixels have another type or shape.
    """
    if isinstance(photo, str | Path):
        try:
            return rgb_pixels(upright(Path(photo)))
        except ValueError as error:
            raise ValueError(f"{photo}: {error}") from error
    if isinstance(photo, Image.Image):
        if 0 in photo.size:
            raise ValueError(f"an image is {photo.width} x {photo.height}; expected pixels")
        return rgb_pixels(photo)
    if not isinstance(photo, np.ndarray | Tensor):
        raise ValueError(f"an image is a {type(photo).__name__}; expected a path, a PIL image, an array or a tensor")
    pixels = photo.numpy(force=True) if isinstance(photo, Tensor) else photo
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size > 0:
        if pixels.shape[2] != 3 and pixels.shape[0] == 3 and isinstance(photo, Tensor):
            pixels = pixels.transpose(1, 2, 0)
        if pixels.shape[2] == 3:
            return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)  # a copy: torch takes no reversed view
    raise ValueError(f"an image is {photo.dtype} {list(photo.shape)}; expected uint8 RGB pixels [height, width, 3]")
