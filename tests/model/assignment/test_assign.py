"""What every rule of assignment promises, and that the settings choose it."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from model.assignment.assign import assign
from model.assignment.atss import atss
from model.assignment.samples import INVALID, NEGATIVE, Assignment, GroundTruth, Predicted, best, predicted
from model.assignment.task_aligned import task_aligned
from model.config import AssignmentConfig, ModelConfig
from model.network.anchors import anchor_grid, decode, valid_anchors
from model.network.retinanet import Predictions
from tests.assignments import BY_PREDICTION, COUNTS, KINDS, SIZES, of_one_image, random_predicted, random_truth, rule
from tests.fake_cuda import CUDA, imagined_cuda, watched

GRID = anchor_grid((64, 96))


def scene(seed: int = 5) -> tuple[GroundTruth, Predicted]:
    generator = torch.Generator().manual_seed(seed)
    return random_truth(generator), random_predicted(generator, GRID)


def found(kind: str, given: GroundTruth, said: Predicted) -> Assignment:
    return assign(GRID, SIZES, given, rule(kind), said)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_assigned_the_same_alone_and_in_a_batch(kind: str) -> None:
    given, said = scene()
    whole = found(kind, given, said)
    valid = valid_anchors(GRID, SIZES)
    assert torch.equal(whole.assigned == INVALID, ~valid)
    for place in range(len(COUNTS)):
        boxes, labels, first = of_one_image(given, place)
        one, mine = slice(place, place + 1), GroundTruth(boxes, labels, torch.zeros(len(boxes), dtype=torch.int64))
        alone = assign(GRID, SIZES[one], mine, rule(kind), Predicted(said.boxes[one], said.class_logits[one]))
        expected = torch.where(alone.assigned >= 0, alone.assigned + first, alone.assigned)
        assert torch.equal(whole.assigned[one], expected)
        if whole.alignment is not None:
            assert_close(whole.alignment[one], alone.alignment)
        assert bool((alone.assigned >= 0).any()) == (len(boxes) > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_boxes_is_all_background(kind: str) -> None:
    given, said = scene()
    none = GroundTruth(given.boxes[:0], given.labels[:0], given.image_index[:0])
    assert torch.equal(found(kind, none, said).assigned == NEGATIVE, valid_anchors(GRID, SIZES))


@pytest.mark.parametrize("kind", BY_PREDICTION)
def test_what_is_predicted_decides_and_carries_no_gradient(kind: str) -> None:
    given, said = scene()
    first = found(kind, given, said)
    assert not torch.equal(first.assigned, found(kind, given, scene(6)[1]).assigned)
    if first.alignment is not None:
        positive = first.assigned >= 0
        assert bool((first.alignment[positive] > 0).all()) and bool((first.alignment <= 1).all())
        assert not bool(first.alignment[~positive].any())
    with pytest.raises(ValueError, match=f"{kind}.* looks at predictions"):
        assign(GRID, SIZES, given, rule(kind))


@pytest.mark.parametrize("num_boxes", [3, 1, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_rule_makes_the_host_wait(kind: str, num_boxes: int) -> None:
    with imagined_cuda():
        grid = anchor_grid((64, 96), CUDA)
        given = GroundTruth(
            torch.zeros(num_boxes, 4, device=CUDA),
            torch.zeros(num_boxes, dtype=torch.int64, device=CUDA),
            torch.zeros(num_boxes, dtype=torch.int64, device=CUDA),
        )
        said = Predicted(
            torch.zeros(2, len(grid.boxes), 4, device=CUDA), torch.zeros(2, len(grid.boxes), 3, device=CUDA)
        )
        sizes = torch.zeros(2, 2, dtype=torch.int64, device=CUDA)
        with watched():
            result = assign(grid, sizes, given, rule(kind), said)
        assert (result.assigned.shape, result.assigned.device) == ((2, len(grid.boxes)), CUDA)
        assert result.assigned.dtype == torch.int64


def test_settings_reach_their_rule_and_none_takes_the_papers_number_of_candidates() -> None:
    given, said = scene()

    def by(**settings: object) -> Assignment:
        config = replace(ModelConfig(), assignment=AssignmentConfig(**settings))  # type: ignore[arg-type]
        return assign(GRID, SIZES, given, config, said)

    assert torch.equal(by(kind="atss").assigned, atss(GRID, SIZES, given, top_k=9))
    assert torch.equal(by(kind="atss", top_k=2).assigned, atss(GRID, SIZES, given, top_k=2))
    usual = task_aligned(GRID, SIZES, given, said, top_k=13, alpha=1.0, beta=6.0)
    assert torch.equal(by(kind="task_aligned").assigned, usual.assigned)
    assert by(kind="task_aligned").alignment is not None
    other = task_aligned(GRID, SIZES, given, said, top_k=5, alpha=0.5, beta=2.0)
    chosen = by(kind="task_aligned", top_k=5, alignment_class=0.5, alignment_iou=2.0)
    assert torch.equal(chosen.assigned, other.assigned) and not torch.equal(usual.assigned, other.assigned)


def test_the_best_of_equal_values_are_the_first() -> None:
    values = torch.tensor([[0.5, 2.0, 0.5, 0.0, 2.0, 0.5], [torch.inf, 1.0, 1e-45, 0.0, 0.0, torch.inf]])
    assert best(values, 4).tolist() == [[1, 4, 0, 2], [0, 5, 1, 2]]
    assert best(values, 4, largest=False).tolist() == [[3, 0, 2, 5], [3, 4, 2, 1]]
    assert best(values, 9).shape == (2, 6)


def test_predictions_are_decoded_in_float32_without_a_gradient() -> None:
    generator = torch.Generator().manual_seed(0)

    def maps(size: int) -> list[torch.Tensor]:
        return [
            torch.randn(2, 9 * size, *cells, generator=generator).bfloat16().requires_grad_()
            for cells in GRID.level_sizes
        ]

    given = Predictions(maps(3), maps(4), None)
    said = predicted(given, GRID)
    assert said.boxes.dtype == said.class_logits.dtype == torch.float32
    assert not said.boxes.requires_grad and not said.class_logits.requires_grad
    # The second anchor of the second cell of P3, in the second image.
    deltas = given.box_deltas[0][1, 4:8, 0, 1].float()
    assert_close(said.boxes[1, 10], decode(GRID.boxes[10], deltas))
    assert torch.equal(said.class_logits[1, 10], given.class_logits[0][1, 3:6, 0, 1].float())
