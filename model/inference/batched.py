"""Post-processing on an accelerator: NMS of a batch under many settings, as batched kernels, and what the host gets.

The detections are those of `postprocess`, up to the rounding of scores in single precision; the CPU uses that module,
whose bits do not depend on the batch. `batched_scores` comes before. Nothing makes the host wait but `to_host`, and
settings that are new. Kinds of suppression other than NMS are the host's: it gets the best candidates of the batch in
one transfer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import InferenceConfig
from model.inference.batched_scores import BatchPredictions, Scored, constants_of, score_settings
from model.inference.postprocess import FIRST_LOOK
from model.inference.suppression.batched_nms import greedy
from model.inference.suppression.kinds import NEEDS_ALL
from model.inference.suppression.on_host import suppress_candidates
from model.inference.table import DetectionTable
from model.network.anchors import FIRST_LEVEL
from model.network.finite import PARTS, NonFiniteError

LABEL = 0xFFFFFFFF
"""Mask of the lower half of a sort key, which holds the place of a pair."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """What NMS keeps of B images under S settings: `count` each, best first, of D places."""

    values: Tensor
    """[B, S, D, 9] int32: anchor and label; the bits of score, class score, confidence and box. Void from `count`."""
    count: Tensor
    """[B, S] int32."""
    complete: Tensor
    """[B, S] whether no candidate that NMS has not seen could be kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The best candidates of B images under S settings, `count` each, best first, of C places."""

    values: Tensor
    """[B, S, C, 9] int32, as in `Kept`."""
    count: Tensor
    """[B, S] int32."""
    total: Tensor
    """[B, S] int32: how many there are in all."""


def suppress(images: BatchPredictions, scored: Scored, look: int = FIRST_LOOK) -> Kept:
    """Greedy NMS by class, of the best candidates of each image under each setting.

    Args:
        images: that were scored.
        scored: their candidates.
        look: candidates that are looked at, for each detection that may be kept.
    """
    num_images, num_settings, num_rows, num_classes = scored.log_scores.shape
    constants = constants_of(scored.settings, images.level_lengths, images.boxes.device)
    image, setting = _images_and_settings(num_images, num_settings, images.boxes.device)
    limit = scored.settings[0].max_detections
    count = min(look * limit, num_rows * num_classes)
    log_scores, pairs = _best(scored.log_scores.flatten(2).flatten(0, 1), count)
    labels = pairs % num_classes
    anchors = scored.anchors.flatten(0, 1).gather(1, pairs // num_classes)
    boxes = images.boxes[image, anchors]
    num_candidates = log_scores.isfinite().sum(dim=1, dtype=torch.int32)
    kept, num_kept = greedy(boxes, labels.int(), num_candidates, constants.nms_iou[setting[:, 0]], limit)
    complete = num_kept == limit
    complete |= num_candidates < count if count < num_rows * num_classes else True
    kept = kept.long()
    values = _values(
        images,
        scored,
        anchors.gather(1, kept),
        labels.gather(1, kept),
        log_scores.gather(1, kept),
        boxes.gather(1, kept[..., None].expand(-1, -1, 4)),
    )
    return Kept(
        values=values.view(num_images, num_settings, limit, -1),
        count=num_kept.view(num_images, num_settings),
        complete=complete.view(num_images, num_settings),
    )


def best_candidates(images: BatchPredictions, scored: Scored, look: int = FIRST_LOOK) -> Candidates:
    """The candidates that `suppress` would look at, for a kind of suppression that is the host's."""
    num_images, num_settings, num_rows, num_classes = scored.log_scores.shape
    image, _ = _images_and_settings(num_images, num_settings, images.boxes.device)
    count = min(look * scored.settings[0].max_detections, num_rows * num_classes)
    log_scores, pairs = _best(scored.log_scores.flatten(2).flatten(0, 1), count)
    anchors = scored.anchors.flatten(0, 1).gather(1, pairs // num_classes)
    values = _values(images, scored, anchors, pairs % num_classes, log_scores, images.boxes[image, anchors])
    num = log_scores.isfinite().sum(dim=1, dtype=torch.int32)
    total = scored.log_scores.flatten(2).isfinite().sum(dim=2, dtype=torch.int32)
    return Candidates(
        values=values.view(num_images, num_settings, count, -1), count=num.view(num_images, num_settings), total=total
    )


def _values(
    images: BatchPredictions, scored: Scored, anchors: Tensor, labels: Tensor, log_scores: Tensor, boxes: Tensor
) -> Tensor:
    """[P, D, 9] as in `Kept`, of the columns [P, D] and [P, D, 4] of B * S lists."""
    num_images, num_settings = scored.log_scores.shape[:2]
    constants = constants_of(scored.settings, images.level_lengths, images.boxes.device)
    image, setting = _images_and_settings(num_images, num_settings, images.boxes.device)
    class_scores = images.class_logits[image, anchors, labels].float().sigmoid()
    if images.confidence_logits is None:
        confidences = torch.full_like(class_scores, torch.nan)
    else:
        confidences = images.confidence_logits[image, anchors].sigmoid()
    # Exponent 0 is the class score exactly.
    scores = torch.where(constants.plain[setting[:, 0]], class_scores, log_scores.exp())
    floats = torch.cat([torch.stack([scores, class_scores, confidences], dim=2), boxes], dim=2)
    return torch.cat([torch.stack([anchors, labels], dim=2).int(), floats.view(torch.int32)], dim=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detected:
    """What is found on B images under S settings."""

    scored: Scored
    tables: list[DetectionTable]
    """[S] of the detections of all images, image after image."""
    count: NDArray[np.int32]
    """[B, S] detections of each image."""
    droppers: tuple[list[DetectionTable], NDArray[np.int32]] | None
    """The same of the boxes that dropped others (`postprocess.Suppressed`); None where these are the detections."""


def detect(
    images: BatchPredictions,
    settings: Sequence[InferenceConfig],
    image_ids: NDArray[np.int64],
    category_ids: NDArray[np.int64],
) -> Iterator[Detected]:
    """Yield what is found under some settings after others.

    The host waits for the device once for each group of settings, and again where one has to see more candidates.

    Args:
        images: B of them.
        settings: as many as wanted.
        image_ids: [B].
        category_ids: [K] of the classes, rising.

    Raises:
        ValueError: a setting reads a confidence branch, and the detector has none.
        NonFiniteError: an output is NaN or infinite; it says which, as `finite.refusal` wants it.
    """
    unseen = [] if images.finite is None else [images.finite]
    for scored in score_settings(images, settings):
        kind, limit = scored.settings[0].suppression, scored.settings[0].max_detections
        look, detected = FIRST_LOOK, None
        # With a detector whose boxes overlap much, the 100th detection may be beyond the 2,400th candidate.
        while detected is None:
            if kind == "nms":
                kept = suppress(images, scored, look)
                tensors = [kept.values, kept.count, kept.complete]
            else:
                best = best_candidates(images, scored, look)
                tensors = [best.values, best.count, best.total]
            # With the first group, so that nobody waits for the device once more.
            values, count, known, *finite = to_host([*tensors, *unseen])
            if unseen and not finite[0].all():
                raise NonFiniteError(_not_finite(images, finite[0]))
            unseen = []
            about = image_ids, category_ids, images.level_lengths
            if kind != "nms":
                detected = _suppressed(scored, values, count, count == known, *about)
            elif known.all():
                found = tables(values, count, *about)
                detected = Detected(scored=scored, tables=found, count=count, droppers=None)
            # What needs all candidates has them at the second look.
            look = -(-int(known.max()) // limit) if kind in NEEDS_ALL else 4 * look
        yield detected


def _suppressed(
    scored: Scored,
    values: NDArray[np.int32],
    count: NDArray[np.int32],
    complete: NDArray[np.bool_],
    image_ids: NDArray[np.int64],
    category_ids: NDArray[np.int64],
    level_lengths: Sequence[int],
) -> Detected | None:
    """What a kind of suppression that is the host's makes of candidates; None where it has to see more of them."""
    lists = suppress_candidates(values, count, complete, scored.settings, len(category_ids))
    if lists is None:
        return None
    kept, droppers = (tables(*some, image_ids, category_ids, level_lengths) for some in lists)
    return Detected(scored=scored, tables=kept, count=lists[0][1], droppers=(droppers, lists[1][1]))


def _not_finite(images: BatchPredictions, finite: NDArray[np.int32]) -> str:
    """The outputs that are NaN or infinite, and the level of the first such number, where it can still be seen."""
    # Infinite deltas are cut to the image with their boxes.
    kept = (images.class_logits, images.boxes, images.confidence_logits)
    place = int(np.flatnonzero(finite == 0)[0])
    output = kept[place]
    assert output is not None
    anchors = (~output.isfinite()).flatten(2).any(dim=2) if output.ndim == 3 else ~output.isfinite()
    wrong = anchors.any(dim=0).nonzero()
    if not len(wrong):
        return f"{PARTS[place]} are NaN or infinite"
    level = np.searchsorted(np.cumsum(images.level_lengths), int(wrong[0]), side="right")
    return f"{PARTS[place]} of level P{FIRST_LEVEL + int(level)} are NaN or infinite"


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[np.int32]]:
    """Integers and flags of any shapes as int32, in one transfer; this is where the host waits for the device."""
    packed = torch.cat([tensor.flatten().int() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(np.split(packed, ends[:-1]), tensors, strict=True)]


def tables(
    values: NDArray[np.int32],
    count: NDArray[np.int32],
    image_ids: NDArray[np.int64],
    category_ids: NDArray[np.int64],
    level_lengths: Sequence[int],
) -> list[DetectionTable]:
    """A table for each setting of the detections of all images, which are not yet compared with any object.

    Args:
        values: [B, S, D, 9] of `Kept`.
        count: [B, S] of `Kept`.
        image_ids: [B].
        category_ids: [K] of the classes, rising.
        level_lengths: anchors of each level.
    """
    level_ends = np.cumsum(level_lengths)
    found = []
    for setting in range(values.shape[1]):
        image, place = np.nonzero(np.arange(values.shape[2]) < count[:, setting, None])
        rows = values[image, setting, place]
        floats = rows[:, 2:].view(np.float32)
        found.append(
            DetectionTable(
                image_ids=image_ids[image],
                category_ids=category_ids[rows[:, 1]],
                boxes=np.ascontiguousarray(floats[:, 3:]),
                scores=floats[:, 0].copy(),
                class_scores=floats[:, 1].copy(),
                confidences=floats[:, 2].copy(),
                ious=np.zeros(len(rows), np.float32),
                levels=(FIRST_LEVEL + np.searchsorted(level_ends, rows[:, 0], side="right")).astype(np.int8),
                anchors=rows[:, 0].copy(),
            )
        )
    return found


def _best(log_scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[P, count] the best of [P, n] and their places, best first; of equal ones the first."""
    values, places = log_scores.topk(count, sorted=False)
    # The bits of floats from 0 on sort as the floats do; -values would make of 0 a -0, whose bits do not.
    keys = ((0.0 - values).view(torch.int32).long() << 32) | places
    keys = keys.sort(dim=1).values
    return -(keys >> 32).int().view(torch.float32), keys & LABEL


def _images_and_settings(num_images: int, num_settings: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[B * S, 1] each."""
    rows = torch.arange(num_images * num_settings, device=device)[:, None]
    return rows // num_settings, rows % num_settings
