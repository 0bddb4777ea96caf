"""The losses of the box branch; expected numbers are worked out by hand, or are torchvision's or finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from model.losses.boxes import OVERLAPS, box_loss, centerness, distribution_focal_loss
from model.network.overlaps import aligned_ciou, aligned_diou, aligned_giou

APART = ((0.0, 0, 1, 1), (2.0, 0, 3, 1))  # hull 3 x 1
CORNERS = ((0.0, 0, 2, 2), (1.0, 1, 3, 3))  # 1 of 7 in common, hull 3 x 3
FLATTER = ((0.0, 0, 4, 4), (0.0, 0, 4, 3))  # 12 of 16 in common
RATIO = 4 / math.pi**2 * (math.atan(4 / 3) - math.atan(1)) ** 2


def boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 10 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low, low + 4 + 12 * torch.rand(count, 2, generator=generator, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize(
    ("kind", "pair", "overlap"),
    [
        ("iou", APART, 0),
        ("iou", CORNERS, 1 / 7),
        ("giou", APART, -1 / 3),
        ("giou", CORNERS, 1 / 7 - 2 / 9),
        ("giou", FLATTER, 12 / 16),
        ("diou", APART, -4 / 10),
        ("diou", CORNERS, 1 / 7 - 2 / 18),
        ("diou", FLATTER, 12 / 16 - 0.25 / 32),
        ("ciou", CORNERS, 1 / 7 - 2 / 18),  # both square
        ("ciou", FLATTER, 12 / 16 - 0.25 / 32 - RATIO / (4 / 16 + RATIO) * RATIO),
    ],
)
def test_each_overlap_of_two_boxes_is_that_of_the_hand_calculation(kind, pair, overlap) -> None:
    first, second = (torch.tensor([box]) for box in pair)
    assert_close(box_loss(kind, first, second), torch.tensor([1.0 - overlap]))
    assert_close(box_loss(kind, second, first), torch.tensor([1.0 - overlap]))


def test_up_to_half_an_overlap_ciou_leaves_the_shapes_alone() -> None:
    square, flat = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 1]])
    assert torch.equal(aligned_ciou(square, flat), aligned_diou(square, flat))


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("giou", generalized_box_iou_loss),
        ("diou", distance_box_iou_loss),
        ("ciou", complete_box_iou_loss),
    ],
)
def test_losses_and_gradients_are_those_of_torchvision(kind, theirs: Callable[..., Tensor]) -> None:
    predicted, target = boxes(2000).requires_grad_(), boxes(2000, seed=1)
    if kind == "ciou":  # torchvision has no bound below which shapes do not count
        close = 1 - box_loss("iou", predicted, target) > 0.5
        assert 10 < close.sum() < 2000
        predicted, target = predicted.detach()[close].requires_grad_(), target[close]
    ours, their = box_loss(kind, predicted, target), theirs(predicted, target)
    assert_close(ours, their, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss.sum(), predicted)[0] for loss in (ours, their)]
    assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_gradients_of_overlaps_are_finite_differences(kind) -> None:
    predicted, target = boxes(20).requires_grad_(), boxes(20, seed=1)
    assert gradcheck(lambda given: box_loss(kind, given, target), [predicted])


def test_the_gradient_of_ciou_takes_its_alpha_for_a_constant() -> None:
    predicted, target = torch.tensor([FLATTER[1]], dtype=torch.float64), torch.tensor([FLATTER[0]]).double()
    alpha = RATIO / (4 / 16 + RATIO)

    def loss(given: Tensor) -> Tensor:
        (x1, y1, x2, y2) = given.unbind(1)
        v = 4 / math.pi**2 * (math.atan(1) - torch.atan((x2 - x1) / (y2 - y1))) ** 2
        return 1 - aligned_diou(given, target) + alpha * v

    gradients = []
    for function in (lambda given: box_loss("ciou", given, target), loss):
        given = predicted.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(given).sum(), given)[0])
    assert (gradients[1] != 0).all()
    assert_close(*gradients)


@pytest.mark.parametrize("kind", OVERLAPS)
def test_equal_boxes_cost_nothing_and_have_finite_gradients(kind) -> None:
    target = boxes(20).float()
    predicted = target.clone().requires_grad_()
    loss = box_loss(kind, predicted, target)
    assert_close(loss, torch.zeros(20))
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", OVERLAPS)
def test_boxes_without_an_area_have_finite_losses_and_gradients(kind) -> None:
    target = torch.tensor([[5.0, 5, 5, 5], [0.0, 0, 10, 10], [5.0, 5, 5, 5]])
    predicted = torch.tensor([[5.0, 5, 5, 5], [5.0, 5, 5, 5], [8.0, 5, 8, 5]]).requires_grad_()
    loss = box_loss(kind, predicted, target)
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    assert loss.isfinite().all() and gradient.isfinite().all()


def test_giou_and_diou_go_on_falling_where_boxes_are_apart() -> None:
    near, far, target = (torch.tensor([[x, 0.0, x + 1, 1.0]]) for x in (2, 6, 0))
    for overlap in (aligned_giou, aligned_diou):
        assert overlap(near, target) > overlap(far, target) > -1


@pytest.mark.parametrize(
    ("weights", "target", "by_hand"),
    [
        ([1.0, 1, 1, 1], 1.25, math.log(4)),
        ([1.0, 2, 3, 4], 2.25, -0.75 * math.log(0.3) - 0.25 * math.log(0.4)),
        ([1.0, 2, 3, 4], 0.0, -math.log(0.1)),
        ([1.0, 2, 3, 4], 2.0, -math.log(0.3)),
        ([1.0, 2, 3, 4], 3.0, -math.log(0.4)),
    ],
)
def test_the_distribution_focal_loss_is_the_cross_entropy_to_both_neighbours(weights, target, by_hand) -> None:
    loss = distribution_focal_loss(torch.tensor([weights]).log(), torch.tensor([target]))
    assert_close(loss, torch.tensor([by_hand]))


def test_the_gradient_of_the_distribution_focal_loss_is_that_of_finite_differences_and_stops_at_the_target() -> None:
    logits = torch.randn(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    target = torch.linspace(0, 8, 12, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda given: distribution_focal_loss(given, target.detach()), [logits])
    distribution_focal_loss(logits, target).sum().backward()
    assert target.grad is None


def test_the_distribution_focal_loss_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits = (30 * torch.randn(40, 17, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    target = torch.linspace(0, 15.99, 40)
    loss = distribution_focal_loss(logits, target)
    assert loss.dtype == torch.float32 and torch.equal(loss, distribution_focal_loss(logits.float(), target))
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16 and logits.grad.isfinite().all()


def test_centerness_is_1_in_the_middle_and_0_outside() -> None:
    anchor = torch.tensor([0.0, 0, 4, 4])  # around (2, 2)
    around = torch.tensor(
        [
            [1.0, 1, 3, 3],
            [0.0, 0, 8, 4],  # 2 to 6 across
            [1.0, 0, 5, 8],  # 1 to 3 across, 2 to 6 down
            [2.0, 0, 4, 4],  # on the border
            [3.0, 0, 9, 4],  # outside
            [2.0, 2, 2, 2],
        ]
    )
    expected = torch.tensor([1.0, math.sqrt(1 / 3), 1 / 3, 0, 0, 0])
    assert_close(centerness(anchor.expand(6, 4), around), expected)
