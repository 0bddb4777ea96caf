"""Binds the post-processing of batches to the golden vectors, as `vectors_adapter` does that of single images."""

from functools import partial

import numpy as np
from torch import Tensor

from model.config import InferenceConfig
from model.inference import batched
from model.inference.batched_scores import of_batch
from model.inference.table import DetectionTable
from model.network.anchors import AnchorGrid
from model.network.retinanet import Predictions
from tests.golden import vectors_adapter


def _find(
    predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor, config: InferenceConfig
) -> list[DetectionTable]:
    images = of_batch(predictions, grid, sizes, scales)
    num_classes = images.class_logits.shape[2]
    (found,) = batched.detect(images, [config], np.arange(len(sizes)), np.arange(num_classes))
    return found.tables


detect = partial(vectors_adapter.detect, find=_find)
