"""The anchor grid, and the coder between boxes and the deltas that the box tower predicts."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

AnchorRule = Literal["paper", "torchvision"]
FIRST_LEVEL = 3
"""Of the feature pyramid: P3."""
STRIDES = (8, 16, 32, 64, 128)
"""Pixels from one cell to the next on P3 to P7."""
NUM_ANCHORS = 9
"""Anchors of one cell: three ratios times three scales."""
MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest abs(dw) and abs(dh) that decoding follows."""


@dataclass(frozen=True, slots=True)
class AnchorGrid:
    """All anchors of one padded image size, in flat order: level, row, column, anchor of the cell."""

    boxes: Tensor
    """[N, 4] xyxy pixels; not clipped to the image."""
    level_sizes: tuple[tuple[int, int], ...]
    """Cells (height, width) of each level."""

    @property
    def anchors_per_cell(self) -> int:
        """NUM_ANCHORS, or what other detectors have whose numbers are compared."""
        return len(self.boxes) // sum(height * width for height, width in self.level_sizes)

    @property
    def level_lengths(self) -> list[int]:
        """Anchors of each level; they add up to N."""
        return [height * width * self.anchors_per_cell for height, width in self.level_sizes]


def level_sizes(image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Cells of P3 to P7 for a padded image size; each level halves the one before, rounding up."""
    height, width = image_size
    sizes = [(height // stride, width // stride) for stride in STRIDES[:3]]
    while len(sizes) < len(STRIDES):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return tuple(sizes)


def base_anchors(stride: int, rule: AnchorRule = "paper") -> Tensor:
    """[9, 4] anchors of the cell at the origin: ratios h/w of 1/2, 1, 2 times scales 4, 4*2^(1/3), 4*2^(2/3).

    torchvision cuts the sides of the squares to whole pixels, and rounds the corners of all.
    """
    sides = torch.tensor([4 * stride * 2 ** (octave / 3) for octave in range(3)])
    if rule == "torchvision":
        sides = sides.trunc()
    root = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    # Ratio by ratio, the three scales of each: the order of the anchors in the head's channels.
    widths = ((1 / root)[:, None] * sides).flatten()
    heights = (root[:, None] * sides).flatten()
    boxes = torch.stack([-0.5 * widths, -0.5 * heights, 0.5 * widths, 0.5 * heights], dim=1)
    return boxes.round() if rule == "torchvision" else boxes


# Batches of COCO have about 10 padded shapes at 600 x 1000.
@lru_cache(maxsize=64)
def anchor_grid(
    image_size: tuple[int, int], device: torch.device = torch.device("cpu"), rule: AnchorRule = "paper"
) -> AnchorGrid:
    """The anchors of a padded image size (height, width), both multiples of 32; kept for the next call.

    torchvision's cells are image size // map size apart: less than the stride where a coarse map was rounded up.
    """
    # Kept for a training, too, which could not save an inference tensor for its backward pass.
    with torch.inference_mode(False):
        return _anchor_grid(image_size, device, rule)


def _anchor_grid(image_size: tuple[int, int], device: torch.device, rule: AnchorRule) -> AnchorGrid:
    sizes = level_sizes(image_size)
    levels = []
    for stride, (height, width) in zip(STRIDES, sizes, strict=True):
        down, right = (stride, stride) if rule == "paper" else (image_size[0] // height, image_size[1] // width)
        y, x = torch.meshgrid(torch.arange(height) * down, torch.arange(width) * right, indexing="ij")
        # Centred on the cell's corner: the released code adds no half cell.
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).float()
        levels.append((shifts + base_anchors(stride, rule)).reshape(-1, 4))
    return AnchorGrid(torch.cat(levels).to(device), sizes)


def valid_anchors(grid: AnchorGrid, padded_sizes: Tensor) -> Tensor:
    """[B, N] whether an anchor's cell lies in the image's own padded area.

    Args:
        grid: the anchors of the batch's size.
        padded_sizes: [B, 2] each image's own (height, width), rounded up to multiples of 32.
    """
    levels = []
    for stride, (height, width) in zip(STRIDES, grid.level_sizes, strict=True):
        # Rounded up: padded sides are multiples of 32, which the strides 64 and 128 need not divide.
        cells = (padded_sizes + stride - 1) // stride
        rows = torch.arange(height, device=cells.device) < cells[:, :1]
        columns = torch.arange(width, device=cells.device) < cells[:, 1:]
        inside = rows[:, :, None] & columns[:, None, :]
        levels.append(inside[..., None].expand(-1, -1, -1, grid.anchors_per_cell).flatten(1))
    return torch.cat(levels, dim=1)


def cell_centers(grid: AnchorGrid) -> Tensor:
    """[C, 2] (x, y) on which the anchors of each cell are centred, in the flat order of the cells."""
    first = grid.boxes[:: grid.anchors_per_cell]
    # Whole or half pixels. Corners are rounded, and what that moves would decide between cells that are equally far.
    return (first[:, :2] + first[:, 2:]).round() * 0.5


def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """[N, 4] deltas (dx, dy, dw, dh) that move each anchor onto its box."""
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers, sizes = _centers_and_sizes(boxes)
    return torch.cat([(centers - anchor_centers) / anchor_sizes, (sizes / anchor_sizes).log()], dim=-1)


def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
    """[..., 4] boxes that the deltas make of the anchors; dw and dh beyond MAX_LOG_SCALE are cut off."""
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers = anchor_centers + anchor_sizes * deltas[..., :2]
    # Beyond the clamp no gradient flows; boxes are not clipped to the image here, as losses take them whole.
    half = 0.5 * anchor_sizes * deltas[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp()
    return torch.cat([centers - half, centers + half], dim=-1)


def edge_distances(anchors: Tensor, boxes: Tensor) -> Tensor:
    """[..., 4] pixels from each anchor's centre to the left, top, right and bottom of its box; below 0 outside."""
    centers, _ = _centers_and_sizes(anchors)
    return torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], dim=-1)


def deltas_of_edges(distances: Tensor, sides: Tensor) -> Tensor:
    """[..., 4] the deltas that move anchors onto boxes with such edges.

    Args:
        distances: [..., 4] from the anchors' centres to left, top, right and bottom.
        sides: [..., 2] width and height of the anchors, in the same unit.
    """
    low, high = distances[..., :2], distances[..., 2:]
    # `decode` cuts off what is smaller, and the logarithm of 0 would be infinite.
    scales = ((low + high) / sides).clamp(min=math.exp(-MAX_LOG_SCALE))
    return torch.cat([(high - low) / (2 * sides), scales.log()], dim=-1)


def clip(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes cut to [0, width] x [0, height]; image_size is (height, width)."""
    height, width = image_size.unbind(-1)
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height], dim=-1).to(boxes))


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 has 8 bits: a mean of 7.97 strides would be 8, and the IoU of a decoded box off by up to 0.006."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]
