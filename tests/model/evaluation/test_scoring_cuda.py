"""Scoring on an imagined GPU: the host waits once for what NMS keeps under many settings, and nowhere else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ConfidenceConfig, InferenceConfig
from model.inference import batched
from model.inference.batched import detect, suppress
from model.inference.batched_scores import BatchPredictions, of_batch, score_settings
from model.inference.predictor import forward_passes
from model.network.anchors import anchor_grid
from tests.detectors import small
from tests.fake_cuda import CUDA, HostWaitsError, detector_on_cuda, imagined_cuda, watched
from tests.model.training.test_step_cuda import SHAPE, batch

SETTINGS = {
    "exponents": [InferenceConfig(confidence_exponent=tenths / 10) for tenths in range(10)],
    "filters": [InferenceConfig(min_confidence=0.1), InferenceConfig(fusion="product")],
    "pairs": [InferenceConfig(top_k_of="pairs", nms_pre=100), InferenceConfig(fuse_small_levels=False)],
    "suppressions": [InferenceConfig(suppression="soft_linear"), InferenceConfig(suppression="iou_guided")],
    "suppressions beside NMS": [InferenceConfig(), InferenceConfig(suppression="voting")],
}
CLASSES = np.array([3, 5, 8])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("confidence", [None, ConfidenceConfig()], ids=["plain", "confidence"])
def test_a_forward_pass_of_scoring_waits_for_nothing(confidence: ConfidenceConfig | None, precision: Any) -> None:
    with imagined_cuda():
        detector, given, grid = (
            detector_on_cuda(small(confidence=confidence)).eval(),
            batch(3),
            anchor_grid(SHAPE, CUDA),
        )
        for _ in forward_passes(detector, given.to(CUDA), 4, precision):
            pass  # constants are sent once
        with watched(sent=[given]):
            moved = given.to(CUDA)
            ((chosen, predictions),) = forward_passes(detector, moved, 4, precision)
            images = of_batch(predictions, grid, moved.sizes, moved.sizes / moved.original_sizes)
        assert chosen == slice(0, 4)
        assert images.boxes.shape == (2, len(grid.boxes), 4) and images.boxes.device == CUDA
        assert images.class_logits.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_host_waits_once_for_all_settings_that_are_scored_together(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, waits = SETTINGS[name], []

    def to_host(tensors: Sequence[Tensor]) -> list[Any]:
        """In place of the copy: one detection of each image."""
        waits.append(tensors)
        assert {tensor.device for tensor in tensors} == {CUDA}
        return [np.ones(tensor.shape, np.int32) for tensor in tensors]

    monkeypatch.setattr(batched, "to_host", to_host)
    with imagined_cuda():
        images = said()
        groups = list(score_settings(images, settings))  # constants are sent once
        with watched():
            found = list(detect(images, settings, np.array([7, 9]), CLASSES))
    tables = [table for group in found for table in group.tables]
    assert len(waits) == len(groups) <= 2
    assert [table.image_ids.tolist() for table in tables] == len(settings) * [[7, 9]]


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_and_nms_wait_for_nothing(name: str) -> None:
    with imagined_cuda():
        images = said()
        list(score_settings(images, SETTINGS[name]))
        with watched():
            kept = [suppress(images, scored) for scored in score_settings(images, SETTINGS[name])]
        assert sum(one.count.shape[1] for one in kept) == len(SETTINGS[name])
        with watched(), pytest.raises(HostWaitsError, match="to the host"):
            batched.to_host([kept[0].count])


def said() -> BatchPredictions:
    """What a detector of three classes might say of two images."""
    grid = anchor_grid(SHAPE, CUDA)
    num_anchors = len(grid.boxes)
    return BatchPredictions(
        class_logits=torch.zeros(2, num_anchors, len(CLASSES), device=CUDA),
        confidence_logits=torch.zeros(2, num_anchors, device=CUDA),
        boxes=torch.zeros(2, num_anchors, 4, device=CUDA),
        level_lengths=tuple(grid.level_lengths),
    )
