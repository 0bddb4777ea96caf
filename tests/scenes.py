"""Small batches with boxes and predictions, for the rules that assign anchors by what a detector predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.assignment.samples import GroundTruth, Predicted
from model.network.anchors import AnchorGrid, anchor_grid
from model.network.overlaps import pairwise_iou

Box = Sequence[float]


@dataclass(frozen=True)
class Scene:
    """A batch of B images, and what is predicted at N anchors."""

    grid: AnchorGrid
    padded_sizes: Tensor
    truth: GroundTruth
    predicted: Predicted

    def images(self, places: Sequence[int]) -> "Scene":
        """Some of the images, in this order."""
        index = self.truth.image_index
        boxes = torch.cat([(index == place).nonzero()[:, 0] for place in places])
        renumbered = torch.tensor([new for new, place in enumerate(places) for _ in range(int((index == place).sum()))])
        return Scene(
            self.grid,
            self.padded_sizes[list(places)],
            GroundTruth(self.truth.boxes[boxes], self.truth.labels[boxes], renumbered.long()),
            Predicted(self.predicted.boxes[list(places)], self.predicted.class_logits[list(places)]),
        )

    def filled_up(self, count: int) -> "Scene":
        """With boxes of zeros at the end, as fill up the batches of a graph."""
        truth = self.truth
        zeros = torch.zeros(count, dtype=torch.int64)
        more = GroundTruth(
            torch.cat([truth.boxes, torch.zeros(count, 4)]),
            torch.cat([truth.labels, zeros]),
            torch.cat([truth.image_index, zeros]),
        )
        return Scene(self.grid, self.padded_sizes, more, self.predicted)


def hand_made(
    anchors: Sequence[Box],
    boxes: Sequence[Box],
    predicted: Sequence[Box],
    logits: Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
) -> Scene:
    """One image whose anchors lie alone in their cells of P3."""
    grid = AnchorGrid(torch.tensor(anchors, dtype=torch.float32), ((1, len(anchors)), *[(0, 0)] * 4))
    given = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.zeros(len(given), dtype=torch.int64) if labels is None else torch.tensor(labels)
    truth = GroundTruth(given, classes, torch.zeros_like(classes))
    at = Predicted(torch.tensor([predicted], dtype=torch.float32), torch.tensor([logits], dtype=torch.float32))
    return Scene(grid, torch.tensor([[8, 8 * len(anchors)]]), truth, at)


def drawn(counts: Sequence[int] = (20, 0, 6, 30), num_classes: int = 4, seed: int = 5) -> Scene:
    """Images of up to 64 x 96 pixels with so many boxes each, and predictions between the anchors and the boxes."""
    generator = torch.Generator().manual_seed(seed)
    grid = anchor_grid((64, 96))
    sizes = torch.tensor([[64, 96], [32, 96], [64, 64], [64, 96]])[: len(counts)]
    images = []
    for count, (height, width) in zip(counts, sizes.tolist(), strict=True):
        low = torch.rand(count, 2, generator=generator) * torch.tensor([width - 16.0, height - 16.0])
        images.append(torch.cat([low, low + 4 + torch.rand(count, 2, generator=generator) * 40], dim=1))
    boxes = torch.cat(images)
    labels = torch.randint(num_classes, (len(boxes),), generator=generator)
    index = torch.tensor([place for place, count in enumerate(counts) for _ in range(count)])
    predicted = grid.boxes + torch.randn(len(counts), len(grid.boxes), 4, generator=generator) * 2
    for place in range(len(counts)):
        if counts[place]:
            nearest = images[place][pairwise_iou(images[place], grid.boxes).argmax(dim=0)]
            predicted[place] += (nearest - grid.boxes) * torch.rand(len(grid.boxes), 1, generator=generator) ** 0.3
    logits = torch.randn(len(counts), len(grid.boxes), num_classes, generator=generator) - 1
    return Scene(grid, sizes, GroundTruth(boxes, labels, index), Predicted(predicted, logits))


def own_numbers(assigned: Tensor, counts: Sequence[int]) -> list[list[int]]:
    """[B, N] with the boxes of each image numbered from 0."""
    starts = [sum(counts[:place]) for place in range(len(counts))]
    rows = zip(assigned.tolist(), starts, strict=True)
    return [[value - start if value >= 0 else value for value in row] for row, start in rows]
