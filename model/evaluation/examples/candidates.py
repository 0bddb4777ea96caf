"""The candidates of an image that are enough to see what NMS keeps and drops, whatever the exponent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import DataConfig, InferenceConfig
from model.data.split import CocoData
from model.evaluation.counting import objects_of, overlaps
from model.evaluation.misalignment import WELL_PLACED
from model.inference.fusion import fuse_scores
from model.inference.postprocess import ImagePredictions, Pool, Shortlist, pool, shortlist, suppress
from model.inference.predictor import load_batch, predict_batch
from model.network.retinanet import RetinaNetConf
from model.parallel import one_thread_each

# 21 of them: one bit each in a uint32, as JavaScript's bit operations have 32 bits.
EXPONENTS = tuple(step / 20 for step in range(21))
"""The exponents on offer."""
NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The NMS thresholds on offer."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """The pairs of an anchor and a class, rising, that show what NMS does to one image under any of the settings.

    These are the detections under each of EXPONENTS and NMS_IOUS (other settings at their defaults), and all candidates
    that are well placed. NMS of these pairs alone therefore keeps the same detections as NMS of all candidates.
    """

    anchors: NDArray[np.uint32]
    """[n] flat index."""
    labels: NDArray[np.uint16]
    """[n] from 0."""
    levels: NDArray[np.uint8]
    """[n] of the feature pyramid, 3 to 7."""
    boxes: NDArray[np.float32]
    """[n, 4] xyxy pixels of the original image."""
    class_scores: NDArray[np.float32]
    confidences: NDArray[np.float32]
    """[n], NaN without a confidence branch."""
    exponents: NDArray[np.uint32]
    """[n] bit i is set where this is a candidate under EXPONENTS[i]."""


def settings(*, has_confidence: bool) -> list[InferenceConfig]:
    """A setting for each exponent on offer, or for exponent 0 alone without a confidence branch."""
    chosen = EXPONENTS if has_confidence else EXPONENTS[:1]
    return [InferenceConfig(confidence_exponent=exponent) for exponent in chosen]


@torch.inference_mode()
def candidates(detector: RetinaNetConf, data: CocoData, indices: Sequence[int], config: DataConfig) -> list[Candidates]:
    """Gather the candidates of some images, by their places in the data set.

    Args:
        detector: on its device.
        data: its categories must be the detector's.
        indices: the images.
        config: input size.
    """
    training = detector.training
    detector.eval()
    found = []
    # As scoring does it: other numbers of threads give other last bits.
    with one_thread_each():
        for index in indices:
            (image,) = predict_batch(detector, load_batch(data, [index], config), data.category_ids, 1)
            found.append(_of_image(image, data, index))
    detector.train(training)
    return found


def _of_image(image: ImagePredictions, data: CocoData, index: int) -> Candidates:
    lists = [shortlist(image, config) for config in settings(has_confidence=image.confidence_logits is not None)]
    gathered = pool(image, lists)
    bits = np.zeros(gathered.probabilities.shape, np.uint32)
    for place, one in enumerate(lists):
        bits[gathered.place_of[one.anchors]] |= _is_candidate(gathered, one).astype(np.uint32) << np.uint32(place)
    chosen = _well_placed(gathered, data, index) & (bits > 0)
    for iou in NMS_IOUS:
        for one in lists:
            kept = suppress(gathered, replace(one, config=replace(one.config, nms_iou=iou)))
            labels = np.searchsorted(gathered.category_ids, kept.category_ids)
            chosen[gathered.place_of[kept.anchors], labels] = True
    places, labels = np.nonzero(chosen)
    return Candidates(
        anchors=gathered.anchors[places].astype(np.uint32),
        labels=labels.astype(np.uint16),
        levels=gathered.levels[places].astype(np.uint8),
        boxes=gathered.boxes[places],
        class_scores=gathered.probabilities[places, labels],
        confidences=gathered.confidences[places],
        exponents=bits[places, labels],
    )


def _is_candidate(gathered: Pool, one: Shortlist) -> NDArray[np.bool_]:
    """[R, K] of the anchors of a shortlist."""
    places = gathered.place_of[one.anchors]
    of_confidence = gathered.log_confidences[places][:, None] if one.config.needs_confidence else None
    scores = fuse_scores(gathered.probabilities[places], gathered.log_probabilities[places], of_confidence, one.config)
    above: NDArray[np.bool_] = scores > np.float32(one.config.score_threshold)
    return above


def _well_placed(gathered: Pool, data: CocoData, index: int) -> NDArray[np.bool_]:
    """[U, K] whether a pair of the pool lies well on an object of its class."""
    objects = objects_of(data, index)
    ious, _ = overlaps(gathered.boxes, gathered.probabilities.shape[1], objects.boxes, objects.labels)
    placed: NDArray[np.bool_] = ious >= WELL_PLACED
    return placed
