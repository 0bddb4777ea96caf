"""What the detector says of one image: classes, boxes and confidences of the anchors that one asks for."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from model.inference.fusion import sigmoid
from model.network.anchors import NUM_ANCHORS, AnchorGrid, clip, decode
from model.network.retinanet import Predictions, flat

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class ImagePredictions:
    """What the detector says of one image, over the anchors of all levels; on its device."""

    def __init__(
        self,
        classes: Tensor,
        deltas: Tensor,
        confidences: Tensor | None,
        size: Tensor,
        scale: Tensor,
        *,
        grid: AnchorGrid,
    ) -> None:
        """Logits [N, K], deltas [N, 4], confidence logits [N]; the rest as in `split`."""
        self._classes, self._deltas, self._confidences = classes, deltas, confidences
        self._size, self._scale, self.grid = size, scale, grid
        self.num_anchors, self.num_classes = classes.shape

    @property
    def has_confidence(self) -> bool:
        """Whether there is a confidence branch."""
        return self._confidences is not None

    @cached_property
    def best(self) -> Floats:
        """[N] logarithm of the probability of each anchor's best class."""
        return _numpy(logsigmoid(self._classes.amax(dim=1)))

    @cached_property
    def log_confidences(self) -> Floats | None:
        """[N]."""
        return None if self._confidences is None else _numpy(logsigmoid(self._confidences))

    def confidences(self, anchors: Ints) -> Floats:
        """[n] of some anchors; NaN without a confidence branch."""
        if self._confidences is None:
            return np.full(len(anchors), np.float32(np.nan))
        return sigmoid(_numpy(self._confidences[torch.from_numpy(anchors).to(self._confidences.device)]))

    def class_logits(self, anchors: Ints) -> Floats:
        """[n, K] of some anchors."""
        return _numpy(self._classes[torch.from_numpy(anchors).to(self._classes.device)])

    def levels(self, anchors: Ints) -> NDArray[np.int8]:
        """[n] levels of the feature pyramid, from 3, that some anchors stand on."""
        return (3 + np.searchsorted(self._level_ends, anchors, side="right")).astype(np.int8)

    @cached_property
    def _level_ends(self) -> Ints:
        return np.cumsum(self.grid.level_lengths)

    @cached_property
    def _boxes(self) -> Tensor:
        # All of them, as torch's last bits depend on where a number stands.
        return clip(decode(self.grid.boxes, self._deltas), self._size) / self._scale.flip(0).repeat(2)

    def boxes(self, anchors: Ints) -> Floats:
        """[n, 4] xyxy boxes of some anchors, in pixels of the original image."""
        return _numpy(self._boxes[torch.from_numpy(anchors).to(self._boxes.device)])


def split(predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor) -> list[ImagePredictions]:
    """The images of a batch one by one.

    Args:
        predictions: B images, N anchors, float32.
        grid: the N anchors.
        sizes: [B, 2] (height, width) of each resized image, to which boxes are cut.
        scales: [B, 2] resized size over original size, (y, x); boxes are divided by it.
    """
    num_classes = predictions.class_logits[0].shape[1] // NUM_ANCHORS
    classes, deltas = flat(predictions.class_logits, num_classes), flat(predictions.box_deltas, 4)
    logits = predictions.confidence_logits
    confidences = [None] * len(sizes) if logits is None else flat(logits, 1)[..., 0]
    return [ImagePredictions(*one, grid=grid) for one in zip(classes, deltas, confidences, sizes, scales, strict=True)]


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.cpu().numpy()
    return array
