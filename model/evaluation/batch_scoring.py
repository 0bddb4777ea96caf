"""The scoring of one batch of images under any number of settings: image by image on the CPU, at once on a GPU."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.assignment.assign import assign
from model.assignment.samples import GroundTruth, Predicted, predicted
from model.config import InferenceConfig, ModelConfig
from model.data.images import STRIDE, Batch
from model.data.split import CocoData
from model.evaluation.batched_counting import (
    BatchObjects,
    Counted,
    batch_objects,
    batch_part,
    count_candidates,
    with_ious,
)
from model.evaluation.counting import image_parts, objects_of
from model.evaluation.parts import Part
from model.inference.batched import detect, to_host
from model.inference.batched_scores import of_batch
from model.inference.postprocess import pool, shortlist
from model.inference.predictor import Precision, forward_passes, predict_batch
from model.inference.table import DetectionTable
from model.network.anchors import anchor_grid, decode
from model.network.finite import NonFiniteError, refusal
from model.network.retinanet import RetinaNetConf


@torch.inference_mode()
def score_batch(
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
    for precision, places in by_precision(settings).items():
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
def score_on_device(
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


def by_precision(settings: Sequence[InferenceConfig]) -> dict[Precision, list[int]]:
    """Places of the settings that share a forward pass."""
    places: dict[Precision, list[int]] = {}
    for place, setting in enumerate(settings):
        places.setdefault(setting.precision, []).append(place)
    return places


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
    for precision, places in by_precision(settings).items():
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
