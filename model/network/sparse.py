"""A tower of 3x3 convolutions computed only where somebody looks.

In training, boxes matter at the positive anchors alone: a few percent of the cells. What a cell needs of the layer
below are its nine neighbours, so a tower of four layers works on regions that grow by one cell a layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = 0.25
"""The part of all cells up to which this is faster than whole maps."""


def sparse_rows(
    layers: Sequence[nn.Conv2d], outputs: Sequence[nn.Conv2d], features: Sequence[Tensor], cells: Tensor
) -> list[Tensor] | None:
    """Run convolution and ReLU for each of `layers`, then each of `outputs` on the last, at some cells only.

    Args:
        layers: 3x3 convolutions with padding 1, at least one.
        outputs: likewise; each reads the last layer.
        features: L maps [B, C, h, w].
        cells: [S] rising places in the list of all cells: level, image, row, column.

    Returns:
        For each output its values at the cells, [S, O]; None where the regions are so large that maps are faster.
    """
    shapes = [(len(feature), *feature.shape[2:]) for feature in features]
    regions, neighbours = [cells], []
    for _ in range(len(layers) + 1):
        around = _neighbours(regions[-1], shapes)
        regions.append(torch.unique(around[around >= 0]))
        neighbours.append(_places(regions[-1], around))
    if len(regions[-2]) > MOST * sum(feature[:, 0].numel() for feature in features):
        return None
    rows = _rows_of(features, regions[-1])
    for layer, places in zip(layers, reversed(neighbours[1:]), strict=True):
        rows = _convolve(layer, rows, places).relu_()
    return [_convolve(output, rows, neighbours[0]) for output in outputs]


def dense_maps(rows: Tensor, cells: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """L maps [B, O, h, w] that hold the rows at their cells, and 0 elsewhere."""
    sizes = [feature[:, 0].numel() for feature in features]
    whole = rows.new_zeros(sum(sizes), rows.shape[1]).index_copy(0, cells, rows)
    return [
        part.view(len(feature), *feature.shape[2:], -1).permute(0, 3, 1, 2)
        for part, feature in zip(torch.split(whole, sizes), features, strict=True)
    ]


def _convolve(layer: nn.Conv2d, rows: Tensor, places: Tensor) -> Tensor:
    """[S, O] the convolution of rows [R, C] at the cells whose nine neighbours are rows `places` [S, 9]; R is zero."""
    table = functional.pad(rows, (0, 0, 0, 1))
    patches = table.index_select(0, places.flatten()).view(len(places), 9 * rows.shape[1])
    return functional.linear(patches, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)


def _neighbours(cells: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
    """[S, 9] the 3x3 neighbours of each cell by row and column, -1 where there are none."""
    found, first = [], 0
    offset = torch.arange(-1, 2, device=cells.device)
    for images, height, width in shapes:
        count = images * height * width
        cell = cells[(cells >= first) & (cells < first + count)] - first
        row = (cell // width % height)[:, None] + offset
        column = (cell % width)[:, None] + offset
        inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
        places = cell[:, None, None] + width * offset[:, None] + offset + first
        found.append(torch.where(inside, places, -1).flatten(1))
        first += count
    return torch.cat(found)


def _places(region: Tensor, cells: Tensor) -> Tensor:
    """Where in a rising region each cell stands; behind its end for -1."""
    return torch.where(cells >= 0, torch.searchsorted(region, cells), len(region))


def _rows_of(features: Sequence[Tensor], cells: Tensor) -> Tensor:
    """[S, C] the features of the cells."""
    rows, first = [], 0
    for feature in features:
        table = feature.permute(0, 2, 3, 1).flatten(0, 2)
        mine = cells[(cells >= first) & (cells < first + len(table))] - first
        rows.append(table.index_select(0, mine))
        first += len(table)
    return torch.cat(rows)
