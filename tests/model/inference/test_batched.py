"""Post-processing of a batch under many settings finds what that of one image on the CPU finds."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import InferenceConfig
from model.inference import batched, batched_scores, postprocess
from model.inference.batched_scores import BatchPredictions, Scored, of_batch, score_settings
from model.inference.suppression import on_host
from model.inference.suppression.batched_nms import blockwise, greedy
from model.inference.suppression.nms import keep
from model.inference.table import DetectionTable
from model.network.anchors import AnchorGrid, anchor_grid
from model.network.retinanet import Predictions
from tests.detectors import SETTINGS, SUPPRESSIONS

MANY = [
    *SETTINGS,
    InferenceConfig(score_threshold=0.0, max_detections=300),
    InferenceConfig(confidence_exponent=0.8, nms_iou=0.7, score_threshold=0.3),
]


def random_predictions(grid: AnchorGrid, num_images: int, num_classes: int, *, branch: bool = True) -> Predictions:
    """Logits and deltas of a detector that finds boxes of all scores in all places."""
    generator = torch.Generator().manual_seed(num_classes)

    def maps(num: int, spread: float, mean: float) -> list[Tensor]:
        shapes = [(num_images, 9 * num, *size) for size in grid.level_sizes]
        return [torch.randn(shape, generator=generator) * spread + mean for shape in shapes]

    return Predictions(maps(num_classes, 2.0, -4.0), maps(4, 0.4, 0.0), maps(1, 2.0, 0.0) if branch else None)


def sizes_and_scales(num_images: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([[size[0] - 3 * place, size[1] - 5 * place] for place in range(num_images)])
    return sizes, torch.tensor([[1.0 + 0.1 * place, 1.2] for place in range(num_images)])


def both_ways(
    predictions: Predictions,
    grid: AnchorGrid,
    where: tuple[Tensor, Tensor],
    num_classes: int,
    settings: list[InferenceConfig],
) -> list[tuple[DetectionTable, DetectionTable]]:
    """Of each setting and image the detections found on the CPU, and those found for all at once."""
    images = of_batch(predictions, grid, *where)
    num_images = len(where[0])
    together: dict[int, DetectionTable] = {}
    for found in batched.detect(images, settings, np.arange(num_images), np.arange(num_classes)):
        together |= dict(zip(found.scored.places, found.tables, strict=True))
    pairs = []
    for place, setting in enumerate(settings):
        table = together[place]
        for image, alone in enumerate(postprocess.detect(predictions.float(), grid, *where, setting)):
            pairs.append((alone, table.take(table.image_ids == image)))
    return pairs


def assert_same(alone: DetectionTable, among_others: DetectionTable) -> None:
    """The same pairs of an anchor and a class, in the same order but for equal scores; numbers up to rounding."""
    orders = [np.lexsort((one.category_ids, one.anchors)) for one in (alone, among_others)]
    one, other = alone.take(orders[0]), among_others.take(orders[1])
    for name in ("anchors", "category_ids", "levels"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for name in ("scores", "class_scores", "confidences", "boxes"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-6, rel=1e-6, nan_ok=True), name
    assert among_others.scores == pytest.approx(alone.scores, abs=1e-6)
    assert (np.diff(among_others.scores) <= 0).all()


@pytest.mark.parametrize(("size", "num_classes"), [((128, 160), 3), ((96, 96), 80)])
def test_a_batch_under_many_settings_keeps_what_each_image_keeps_under_each(
    size: tuple[int, int], num_classes: int
) -> None:
    grid, where = anchor_grid(size), sizes_and_scales(2, size)
    pairs = both_ways(random_predictions(grid, 2, num_classes), grid, where, num_classes, MANY)
    for alone, among_others in pairs:
        assert_same(alone, among_others)
    assert sum(len(alone) for alone, _ in pairs) > 1000


def test_kinds_of_suppression_find_the_same_in_a_batch_and_among_other_settings() -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    settings = [setting for pair in zip(SUPPRESSIONS, [*MANY, InferenceConfig()], strict=True) for setting in pair]
    pairs = both_ways(random_predictions(grid, 2, 3), grid, where, 3, settings)
    for alone, among_others in pairs:
        assert_same(alone, among_others)
    found = [[alone.scores.tolist() for alone, _ in pairs[start : start + 2]] for start in range(0, len(pairs), 4)]
    assert all(found.count(one) == 1 for one in found)


@pytest.mark.parametrize("setting", SUPPRESSIONS, ids=lambda setting: setting.suppression)
def test_kinds_of_suppression_look_further_until_what_they_found_stands(
    setting: InferenceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    predictions = random_predictions(grid, 2, 3)
    (images,) = [of_batch(predictions, grid, *where)]
    expected = both_ways(predictions, grid, where, 3, [setting])
    looked: list[int] = []
    best_candidates = batched.best_candidates

    def look_at(images: BatchPredictions, scored: Scored, look: int) -> batched.Candidates:
        looked.append(look)
        return best_candidates(images, scored, look)

    monkeypatch.setattr(batched, "best_candidates", look_at)
    for module in (batched, postprocess):
        monkeypatch.setattr(module, "FIRST_LOOK", 1)
    (found,) = batched.detect(images, [setting], np.arange(2), np.arange(3))
    (table,) = found.tables
    alone = postprocess.detect(predictions, grid, *where, setting)
    for image, (on_cpu, in_batch) in enumerate(expected):
        assert np.array_equal(alone[image].scores, on_cpu.scores) and np.array_equal(alone[image].boxes, on_cpu.boxes)
        assert np.array_equal(table.take(table.image_ids == image).anchors, in_batch.anchors)
        assert found.count[image, 0] == len(in_batch)
    assert looked[0] == 1 and len(looked) > 1 and looked == sorted(looked)


def test_what_needs_all_candidates_has_them_at_the_second_look_and_sends_no_other_kind_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    images = of_batch(random_predictions(grid, 2, 3), grid, *where)
    looked: list[tuple[str, int]] = []
    ranked: list[int] = []
    best_candidates, rank = batched.best_candidates, on_host._rank

    def look_at(images: BatchPredictions, scored: Scored, look: int) -> batched.Candidates:
        looked.append((scored.settings[0].suppression, look))
        return best_candidates(images, scored, look)

    def count_ranked(rows: on_host.Ints, floats: on_host.Floats, complete: bool, num_classes: int) -> Any:
        ranked.append(len(rows))
        return rank(rows, floats, complete, num_classes)

    monkeypatch.setattr(batched, "best_candidates", look_at)
    monkeypatch.setattr(on_host, "_rank", count_ranked)
    monkeypatch.setattr(batched, "FIRST_LOOK", 4)
    settings = [InferenceConfig(suppression=kind) for kind in ("diou", "iou_guided", "voting")]
    found = list(batched.detect(images, settings, np.arange(2), np.arange(3)))
    assert [one.scored.places for one in found] == [(0,), (1, 2)]
    total = int(found[1].scored.log_scores[:, 0].flatten(1).isfinite().sum(dim=1).max())
    assert total > 4 * 100
    assert looked == [("diou", 4), ("iou_guided", 4), ("iou_guided", -(-total // 100))]
    assert len(ranked) == 2 * 3  # each image once under each setting: nothing was ranked in vain


def test_the_types_of_the_forward_pass_are_taken_as_they_are() -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    predictions = random_predictions(grid, 2, 3)
    kinds = (predictions.class_logits, predictions.box_deltas, predictions.confidence_logits or [])
    rounded = Predictions(*[[level.bfloat16() for level in kind] for kind in kinds])
    for alone, among_others in both_ways(rounded, grid, where, 3, MANY[:1]):
        # Of the many equal scores, others may be the last that are kept.
        assert among_others.scores == pytest.approx(alone.scores, abs=1e-6)


def test_without_a_branch_the_class_ranks_and_a_setting_that_asks_for_more_is_refused() -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    predictions = random_predictions(grid, 2, 3, branch=False)
    for alone, among_others in both_ways(predictions, grid, where, 3, [MANY[1]]):
        assert_same(alone, among_others)
        assert np.isnan(among_others.confidences).all() and len(among_others) > 10
        assert np.array_equal(among_others.scores, among_others.class_scores)
    with pytest.raises(ValueError, match="no confidence branch"):
        both_ways(predictions, grid, where, 3, [InferenceConfig()])


def test_settings_that_do_not_fit_the_memory_at_once_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    monkeypatch.setattr(batched_scores, "MOST_PAIRS", 1)
    for alone, among_others in both_ways(random_predictions(grid, 2, 3), grid, where, 3, MANY):
        assert_same(alone, among_others)


def test_nms_looks_further_where_the_best_candidates_are_all_of_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(1, (96, 96))
    looked: list[int] = []
    suppress = batched.suppress

    def look_at(images: BatchPredictions, scored: Scored, look: int) -> batched.Kept:
        looked.append(look)
        return suppress(images, scored, look)

    monkeypatch.setattr(batched, "suppress", look_at)
    monkeypatch.setattr(batched, "FIRST_LOOK", 2)
    crowded = [InferenceConfig(nms_iou=0.0, score_threshold=0.0)]
    for alone, among_others in both_ways(random_predictions(grid, 1, 3), grid, where, 3, crowded):
        assert_same(alone, among_others)
    assert looked[:2] == [2, 8]


def test_a_setting_under_which_nothing_scores_has_an_empty_table_beside_the_others() -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    settings = [InferenceConfig(), InferenceConfig(score_threshold=1.0)]
    pairs = both_ways(random_predictions(grid, 2, 3), grid, where, 3, settings)
    assert [len(among_others) > 0 for _, among_others in pairs] == [True, True, False, False]


def candidates(num_lists: int, num: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, some of them without area or twice there, classes, numbers and limits."""
    generator = torch.Generator().manual_seed(num)
    corners = torch.rand(num_lists, num, 2, generator=generator) * 60
    sides = torch.rand(num_lists, num, 2, generator=generator) * 40
    sides[:, ::17], corners[:, 1::13] = 0, corners[:, :1].clone()
    labels = torch.randint(0, num_classes, (num_lists, num), generator=generator).int()
    numbers = torch.randint(0, num + 1, (num_lists,), generator=generator).int()
    numbers[0] = num
    return torch.cat([corners, corners + sides], dim=2), labels, numbers, torch.rand(num_lists, generator=generator)


@pytest.mark.parametrize(("num", "num_classes", "limit"), [(400, 3, 20), (300, 2, 100), (50, 5, 200), (1, 1, 1)])
def test_nms_of_many_lists_keeps_what_nms_of_each_keeps(num: int, num_classes: int, limit: int) -> None:
    boxes, labels, numbers, iou = candidates(4, num, num_classes)
    places, count = greedy(boxes, labels, numbers, iou, limit)
    for row in range(4):
        there = int(numbers[row])
        kept = keep(boxes[row, :there].numpy(), labels[row, :there].long().numpy(), np.float32(iou[row]), limit)
        assert places[row, : count[row]].tolist() == kept.tolist()
        assert not places[row, count[row] :].any()


def test_the_kernel_for_gpus_keeps_what_torch_keeps() -> None:
    pytest.importorskip("triton", reason="comes with torch for CUDA only")
    # Triton reads the variable as it is imported, so that its interpreter needs a process of its own.
    code = """
import torch
from model.inference.suppression.batched_nms import blockwise
from model.inference.suppression.triton_nms import one_by_one
from tests.model.inference.test_batched import candidates
for num, num_classes, limit in ((90, 3, 9), (40, 2, 100), (1, 1, 1)):
    lists = candidates(2, num, num_classes)
    for one, other in zip(one_by_one(*lists, limit), blockwise(*lists, limit), strict=True):
        assert torch.equal(one, other), (num, one, other)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TRITON_INTERPRET": "1"})


def test_a_long_chain_of_boxes_each_over_the_next_is_settled_exactly() -> None:
    left = torch.arange(130.0)[:, None] * 4
    boxes = torch.cat([left, torch.zeros(130, 1), left + 10, torch.full((130, 1), 10.0)], dim=1)[None]
    labels, num = torch.zeros(1, 130, dtype=torch.int32), torch.tensor([130], dtype=torch.int32)
    # Neighbours overlap by 6 of 14, next but one by 2 of 18: every second stays.
    places, count = blockwise(boxes, labels, num, torch.tensor([0.4]), 100)
    assert places[0, : count[0]].tolist() == list(range(0, 130, 2))


def test_one_setting_alone_and_among_others_keeps_the_same_bits() -> None:
    grid, where = anchor_grid((96, 96)), sizes_and_scales(2, (96, 96))
    predictions = random_predictions(grid, 2, 3)
    images = of_batch(predictions, grid, *where)
    settings = [replace(InferenceConfig(), confidence_exponent=tenths / 10) for tenths in range(10)]
    (everything,) = batched.detect(images, settings, np.arange(2), np.arange(3))
    for place, setting in enumerate(settings):
        (one,) = batched.detect(images, [setting], np.arange(2), np.arange(3))
        (alone,), among_others = one.tables, everything.tables[place]
        assert np.array_equal(alone.anchors, among_others.anchors)
        assert np.array_equal(alone.scores, among_others.scores)


def test_up_to_the_transfer_nothing_makes_the_host_wait_for_a_gpu() -> None:
    def there(*shape: int) -> Tensor:
        return torch.empty(shape, device="cuda")

    # Fake tensors have no values: whatever has to know one fails, and so does a constant on the CPU.
    try:
        with FakeTensorMode():
            sizes = anchor_grid((96, 96)).level_sizes
            grid = AnchorGrid(there(sum(height * width * 9 for height, width in sizes), 4), sizes)
            maps = [[there(2, 9 * num, *size) for size in sizes] for num in (3, 4, 1)]
            images = of_batch(Predictions(*maps), grid, there(2, 2).long(), there(2, 2))
            for scored in score_settings(images, MANY):
                kept = batched.suppress(images, scored)
                limit = scored.settings[0].max_detections
                assert kept.values.shape == (2, len(scored.settings), limit, 9)
                assert kept.values.device.type == kept.complete.device.type == "cuda"
    finally:
        batched_scores.constants_of.cache_clear()
