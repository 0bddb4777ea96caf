"""Which anchor learns which box; the expected assignments follow from IoUs worked out by hand."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model.assignment import max_iou as module
from model.assignment.max_iou import max_iou
from model.assignment.samples import IGNORED, INVALID, NEGATIVE, GroundTruth, loss_normalizer
from model.network.anchors import AnchorGrid, anchor_grid, valid_anchors
from model.network.overlaps import pairwise_iou

Box = Sequence[float]
FAR: Box = (900, 900, 910, 910)


def one_cell(*anchors: Box) -> AnchorGrid:
    """A grid of nine anchors; those not given lie far away."""
    boxes = torch.tensor([*anchors, *[FAR] * (9 - len(anchors))], dtype=torch.float32)
    return AnchorGrid(boxes, ((1, 1), (0, 0), (0, 0), (0, 0), (0, 0)))


def truth(*images: Sequence[Box]) -> GroundTruth:
    boxes = torch.tensor([box for image in images for box in image], dtype=torch.float32).reshape(-1, 4)
    places = torch.tensor([place for place, image in enumerate(images) for _ in image], dtype=torch.int64)
    return GroundTruth(boxes, torch.zeros(len(boxes), dtype=torch.int64), places)


def assigned_to(grid: AnchorGrid, *images: Sequence[Box], sizes: Tensor | None = None) -> Tensor:
    sizes = torch.full((len(images), 2), 8) if sizes is None else sizes
    return max_iou(grid, sizes, truth(*images), positive_iou=0.5, negative_iou=0.4)


def test_thresholds_take_the_side_that_the_released_code_takes() -> None:
    box = (0, 0, 10, 5)
    # IoU: 1, exactly 0.5, just below, exactly 0.4, just below
    grid = one_cell(box, (0, 0, 10, 10), (0, 0, 10, 10.1), (0, 0, 10, 12.5), (0, 0, 10, 12.6))
    assert assigned_to(grid, [box])[0].tolist() == [0, 0, IGNORED, IGNORED, NEGATIVE, *[NEGATIVE] * 4]


def test_the_first_box_wins_an_anchor_that_is_equally_near_to_two() -> None:
    upper, lower = (0, 0, 10, 5), (0, 5, 10, 10)
    grid = one_cell((0, 0, 10, 10), upper, lower)  # IoU 0.5 with both; each box has a better anchor of its own
    assert assigned_to(grid, [upper, lower])[0, :3].tolist() == [0, 0, 1]
    assert assigned_to(grid, [lower, upper])[0, :3].tolist() == [0, 1, 0]


def test_the_later_of_two_equal_boxes_wins_the_best_anchor_and_the_first_wins_the_others() -> None:
    box = (0, 0, 10, 10)
    grid = one_cell(box, (0, 0, 10, 8))
    assert assigned_to(grid, [box, box])[0, :3].tolist() == [1, 0, NEGATIVE]


def test_every_box_gets_all_its_best_anchors_however_low_the_iou() -> None:
    box = (0, 0, 4, 4)
    grid = one_cell((0, 0, 10, 10), (-6, -6, 4, 4), (1, 0, 11, 10), (50, 50, 60, 60))  # IoU 0.16, 0.16, 0.12, 0
    assert assigned_to(grid, [box])[0, :4].tolist() == [0, 0, NEGATIVE, NEGATIVE]


@pytest.mark.parametrize("poor_first", [True, False])
def test_the_best_anchor_of_a_poor_box_is_taken_even_from_a_box_that_fits_it_better(poor_first: bool) -> None:
    good, poor = (0, 0, 10, 10), (0, 0, 2, 2)
    grid = one_cell(good, (0, 0, 10, 9))  # IoU with good: 1, 0.9; with poor: 0.04, 0.0444
    boxes = [poor, good] if poor_first else [good, poor]
    assert assigned_to(grid, boxes)[0, :2].tolist() == [boxes.index(good), boxes.index(poor)]


def test_a_box_without_area_takes_every_anchor_that_later_boxes_leave() -> None:
    point, box = (5, 5, 5, 5), (0, 0, 10, 10)
    grid = one_cell(box, (0, 0, 10, 6))
    assert assigned_to(grid, [point, box])[0].tolist() == [1, *[0] * 8]
    assert assigned_to(grid, [box, point])[0].tolist() == [1] * 9


def test_an_image_without_boxes_is_all_background() -> None:
    assert assigned_to(one_cell(), [])[0].tolist() == [NEGATIVE] * 9
    both = assigned_to(one_cell(FAR), [], [FAR])
    assert both[0].tolist() == [NEGATIVE] * 9
    assert both[1].tolist() == [0] * 9


def test_anchors_beyond_an_images_own_padding_take_no_part() -> None:
    grid = anchor_grid((64, 64))
    sizes = torch.tensor([[32, 64]])
    anchor = 9 * (6 * 8 + 2) + 3  # on P3, centred at (16, 48): below the image
    box = grid.boxes[anchor].tolist()
    inside = valid_anchors(grid, sizes)[0]
    assert not inside[anchor]
    assigned = assigned_to(grid, [box], sizes=sizes)[0]
    assert torch.equal(assigned == INVALID, ~inside)
    best = pairwise_iou(torch.tensor([box]), grid.boxes)[0].masked_fill(~inside, -1)
    assert 0 < best.max() < 1
    assert torch.equal(assigned == 0, (best >= 0.5) | (best == best.max()))
    assert (assigned_to(grid, [], sizes=sizes)[0][inside] == NEGATIVE).all()


def by_the_book(grid: AnchorGrid, boxes: Tensor, size: Tensor) -> list[int]:
    """The four rules one after the other, for one image, anchor by anchor."""
    valid = valid_anchors(grid, size[None])[0].tolist()
    rows = pairwise_iou(boxes, grid.boxes).tolist()
    four, half = float(torch.tensor(0.4)), 0.5
    assigned = []
    for anchor, usable in enumerate(valid):
        column = [row[anchor] for row in rows]
        best = max(column, default=0.0)
        choice = NEGATIVE if best < four else column.index(best) if best >= half else IGNORED
        assigned.append(choice if usable else INVALID)
    for place, row in enumerate(rows):
        best = max(iou for iou, usable in zip(row, valid, strict=True) if usable)
        for anchor, iou in enumerate(row):
            if valid[anchor] and iou == best:
                assigned[anchor] = place
    return assigned


@pytest.mark.parametrize("boxes_at_a_time", [1, 5, 1000])
def test_a_batch_is_assigned_as_its_images_one_by_one_by_the_book(boxes_at_a_time: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(5)
    grid = anchor_grid((64, 96))
    sizes = torch.tensor([[64, 96], [32, 96], [64, 32], [64, 64]])
    images = []
    for count in (7, 0, 1, 12):
        low = torch.rand(count, 2, generator=generator) * 50
        side = torch.rand(count, 2, generator=generator) ** 2 * 60
        images.append(torch.cat([low, low + side], dim=1).round())
    # The same box three times: its anchors that are good are the first's, its best ones the last's.
    images[3][4] = images[3][8] = images[3][11]
    monkeypatch.setattr(module, "BLOCK", boxes_at_a_time * len(grid.boxes))
    assigned = assigned_to(grid, *[image.tolist() for image in images], sizes=sizes)
    offset = 0
    for place, boxes in enumerate(images):
        local = [value - offset if value >= 0 else value for value in assigned[place].tolist()]
        assert local == by_the_book(grid, boxes, sizes[place])
        offset += len(boxes)
    assert {NEGATIVE, IGNORED, INVALID, 6, 7, 8, 19} <= set(assigned.flatten().tolist())


def test_an_image_without_positives_still_counts_as_one_sample() -> None:
    assigned = torch.tensor([[0, 1, 1, NEGATIVE], [NEGATIVE, IGNORED, INVALID, NEGATIVE], [2, 2, 2, 2]])
    assert int(loss_normalizer(assigned)) == 3 + 1 + 4
