"""Anchors, boxes and predictions of a few cells, for tests of the rules that assign anchors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.assignment.samples import GroundTruth, Predicted
from model.config import AssignmentConfig, ModelConfig
from model.network.anchors import AnchorGrid, decode

Box = Sequence[float]
KINDS = ("max_iou", "atss", "task_aligned", "sim_ota", "paa")
"""Rules that are tested for what all of them promise."""
BY_PREDICTION = tuple(kind for kind in KINDS if AssignmentConfig(kind=kind).by_prediction)  # type: ignore[arg-type]
SIZES = torch.tensor([[64, 96], [32, 96], [64, 32], [64, 64]])
"""[4, 2] padded (height, width) of images that share a batch of 64 x 96."""
COUNTS = (7, 0, 1, 12)
"""Boxes of each."""


def rule(kind: str) -> ModelConfig:
    """The settings of a detector that assigns so."""
    return ModelConfig(assignment=AssignmentConfig(kind=kind))  # type: ignore[arg-type]


def one_row(*anchors: Box) -> AnchorGrid:
    """A grid of one level, of one row of cells 8 pixels apart, with one anchor each."""
    boxes = torch.tensor(anchors, dtype=torch.float32)
    return AnchorGrid(boxes, ((1, len(anchors)), (0, 0), (0, 0), (0, 0), (0, 0)))


def truth(*images: Sequence[Box]) -> GroundTruth:
    """Boxes of class 0, image by image."""
    boxes = torch.tensor([box for image in images for box in image], dtype=torch.float32).reshape(-1, 4)
    places = torch.tensor([place for place, image in enumerate(images) for _ in image], dtype=torch.int64)
    return GroundTruth(boxes, torch.zeros(len(boxes), dtype=torch.int64), places)


def said(boxes: Sequence[Box], scores: Sequence[float]) -> Predicted:
    """What is predicted for one image: boxes, and their probabilities of the only class."""
    return Predicted(torch.tensor([boxes], dtype=torch.float32), torch.tensor(scores).logit()[None, :, None])


def random_truth(generator: torch.Generator, counts: Sequence[int] = COUNTS, num_classes: int = 3) -> GroundTruth:
    """Boxes on whole pixels within 64 x 64, so that some overlap and others reach beyond their images."""
    total = sum(counts)
    low = torch.rand(total, 2, generator=generator) * 20
    side = 4 + torch.rand(total, 2, generator=generator) ** 2 * 40
    labels = torch.randint(num_classes, (total,), generator=generator)
    places = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return GroundTruth(torch.cat([low, low + side], dim=1).round(), labels, places)


def random_predicted(
    generator: torch.Generator, grid: AnchorGrid, num_images: int = len(COUNTS), num_classes: int = 3
) -> Predicted:
    """Boxes about the anchors, and any class probabilities."""
    deltas = 0.3 * torch.randn(num_images, len(grid.boxes), 4, generator=generator)
    return Predicted(
        decode(grid.boxes, deltas), 2 * torch.randn(num_images, len(grid.boxes), num_classes, generator=generator)
    )


def of_one_image(given: GroundTruth, place: int) -> tuple[Tensor, Tensor, int]:
    """Boxes and labels of an image, and the place of its first box among all."""
    mine = given.image_index == place
    return given.boxes[mine], given.labels[mine], int((given.image_index < place).sum())
