"""From raw predictions to detections; expected numbers are worked out by hand unless a test says otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.inference import postprocess
from model.inference.fusion import fuse_scores, sigmoid
from model.inference.postprocess import detect
from model.inference.table import DetectionTable
from model.network.anchors import AnchorGrid, anchor_grid
from model.network.retinanet import Predictions

NUM_CLASSES = 2
Floats = NDArray[np.float32]
SQUARE = 3
CLASS_ONLY = InferenceConfig(confidence_exponent=0.0)


class Scene:
    """One image where no anchor scores, but those that are put there."""

    def __init__(self, size: tuple[int, int] = (128, 128), num_images: int = 1) -> None:
        self.grid: AnchorGrid = anchor_grid(size)
        self.size = size
        fills = ((9 * NUM_CLASSES, -20.0), (36, 0.0), (9, 0.0))
        self.maps = Predictions(
            *[[torch.full((num_images, n, *level), fill) for level in self.grid.level_sizes] for n, fill in fills]
        )

    def put(
        self, level: int, row: int, column: int, p: float, c: float = 0.5, label: int = 0, image: int = 0
    ) -> "Scene":
        """Let the square anchor of a cell have this class probability and confidence."""
        assert self.maps.confidence_logits is not None
        place = image, SQUARE * NUM_CLASSES + label, row, column
        self.maps.class_logits[level][place] = torch.tensor(p).logit()
        self.maps.confidence_logits[level][image, SQUARE, row, column] = torch.tensor(c).logit()
        return self

    def anchor(self, level: int, row: int, column: int) -> int:
        """The flat index of the square anchor of a cell."""
        width = self.grid.level_sizes[level][1]
        return sum(self.grid.level_lengths[:level]) + 9 * (row * width + column) + SQUARE

    def detect(
        self, config: InferenceConfig, size: tuple[int, int] | None = None, scale: tuple[float, float] = (1.0, 1.0)
    ) -> DetectionTable:
        sizes, scales = torch.tensor([size or self.size]), torch.tensor([scale])
        return detect(self.maps, self.grid, sizes, scales, config)[0]


def random_logits(*shape: int, seed: int = 0) -> Floats:
    return (2 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def logits(*probabilities: float) -> Floats:
    return np.log(np.array(probabilities) / (1 - np.array(probabilities))).astype(np.float32)


def fused(class_logits: Floats, confidence_logits: Floats, config: InferenceConfig) -> Floats:
    """[n, K] the scores of anchors from logits [n, K] and [n]."""
    probabilities, confidences = sigmoid(class_logits), sigmoid(confidence_logits)[..., None]
    return fuse_scores(probabilities, np.log(probabilities), np.log(confidences), config)


def test_fused_score_matches_the_hand_computed_blend() -> None:
    class_logits, confidence_logits = logits(0.8, 0.1)[None], logits(0.5)
    scores = fused(class_logits, confidence_logits, InferenceConfig(confidence_exponent=0.4))
    assert scores == pytest.approx(np.array([[0.66289, 0.19037]]), abs=1e-5)  # 0.8^0.6 * 0.5^0.4, 0.1^0.6 * 0.5^0.4
    product = fused(class_logits, confidence_logits, InferenceConfig(fusion="product"))
    assert product == pytest.approx(np.array([[0.4, 0.05]]), rel=1e-5)


def test_exponent_0_is_the_class_score_exactly_and_exponent_1_the_confidence() -> None:
    classes, confidence = random_logits(50, 4), random_logits(50, seed=1)
    assert np.array_equal(fused(classes, confidence, CLASS_ONLY), sigmoid(classes))
    assert np.array_equal(fuse_scores(sigmoid(classes), np.log(sigmoid(classes)), None, CLASS_ONLY), sigmoid(classes))
    assert sigmoid(classes) == pytest.approx(torch.from_numpy(classes).sigmoid().numpy(), rel=1e-6)
    ones = fused(classes, confidence, InferenceConfig(confidence_exponent=1.0))
    assert ones == pytest.approx(np.broadcast_to(sigmoid(confidence)[:, None], (50, 4)), rel=1e-6)


def test_product_and_exponent_one_half_rank_alike() -> None:
    scene = Scene()
    for row in range(1, 14, 4):
        for column in range(1, 14, 4):
            p, c = torch.rand(2, generator=torch.Generator().manual_seed(16 * row + column)) * 0.9 + 0.05
            scene.put(0, row, column, float(p), float(c), label=(row + column) // 4 % 2)
    settings = InferenceConfig(score_threshold=1e-4, nms_iou=0.1)
    product = scene.detect(replace(settings, fusion="product"))
    power = scene.detect(replace(settings, confidence_exponent=0.5))
    real = product.scores > 1e-3
    assert real.sum() >= 9
    assert product.anchors[real].tolist() == power.anchors[: int(real.sum())].tolist()
    assert np.sqrt(product.scores[real]) == pytest.approx(power.scores[: int(real.sum())], rel=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 0.4])
def test_the_object_filter_drops_what_is_not_above_it(exponent: float) -> None:
    config = InferenceConfig(confidence_exponent=exponent, min_confidence=0.5)
    scores = fused(np.zeros((3, 1), np.float32), np.array([-0.01, 0.0, 0.01], np.float32), config)
    assert scores[:2].flatten().tolist() == [0, 0]
    assert scores[2].item() == pytest.approx(0.5, abs=1e-2)


def test_the_object_filter_acts_before_the_top_k() -> None:
    scene = Scene().put(0, 2, 2, p=0.9, c=0.4).put(0, 2, 8, p=0.6, c=0.7)
    found = scene.detect(InferenceConfig(confidence_exponent=0.0, min_confidence=0.5, nms_pre=1))
    assert found.anchors.tolist() == [scene.anchor(0, 2, 8)]


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(fusion="product"),
        InferenceConfig(confidence_exponent=0.0, min_confidence=0.5),
    ],
)
def test_a_detector_without_the_branch_says_how_to_score_it(config: InferenceConfig) -> None:
    scene = Scene()
    without, sizes = replace(scene.maps, confidence_logits=None), torch.tensor([scene.size])
    with pytest.raises(ValueError, match=r"no confidence branch.*inference\.confidence_exponent: 0"):
        detect(without, scene.grid, sizes, torch.ones(1, 2), config)


def test_a_detector_without_the_branch_detects_by_class() -> None:
    scene = Scene().put(0, 2, 2, p=0.9, c=0.1)
    without = detect(
        replace(scene.maps, confidence_logits=None),
        scene.grid,
        torch.tensor([scene.size]),
        torch.ones(1, 2),
        CLASS_ONLY,
    )
    assert np.array_equal(without[0].scores, scene.detect(CLASS_ONLY).scores)
    assert without[0].scores.item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("nms_pre", "small_levels"),
    [(100, (2, 3, 4)), (143, (2, 3, 4)), (144, (1, 2, 3, 4)), (1000, (0, 1, 2, 3, 4))],
)
def test_the_released_code_leaves_small_levels_unfused(nms_pre: int, small_levels: tuple[int, ...]) -> None:
    scene = Scene((64, 64))  # 576, 144, 36, 9 and 9 anchors
    for level in range(5):
        scene.put(level, 0, 0, p=0.8, label=level % 2)
    released = InferenceConfig(fuse_small_levels=False, nms_pre=nms_pre, nms_iou=1.0, score_threshold=0.2)
    found = scene.detect(released)
    by_anchor = dict(zip(found.anchors.tolist(), found.scores.tolist(), strict=True))
    by_hand = [0.87469 if level in small_levels else 0.66289 for level in range(5)]  # 0.8^0.6; 0.8^0.6 * 0.5^0.4
    assert [by_anchor[scene.anchor(level, 0, 0)] for level in range(5)] == pytest.approx(by_hand, abs=1e-5)
    everywhere = scene.detect(replace(released, fuse_small_levels=True))
    assert everywhere.scores.tolist() == pytest.approx([0.66289] * 5, abs=1e-5)


def test_each_level_keeps_its_best_anchors_by_fused_score() -> None:
    scene = Scene().put(0, 2, 2, p=0.9, c=0.1).put(0, 2, 8, p=0.6, c=0.9).put(0, 8, 2, p=0.7, c=0.8, label=1)
    scene.put(1, 4, 4, p=0.3, c=0.5)
    # fused: 0.374, 0.706, 0.738; and 0.368 on the next level
    found = scene.detect(InferenceConfig(nms_pre=2))
    kept = [scene.anchor(0, 8, 2), scene.anchor(0, 2, 8), scene.anchor(1, 4, 4)]
    assert found.anchors.tolist() == kept
    assert found.category_ids.tolist() == [1, 0, 0]
    assert found.scores.tolist() == pytest.approx([0.7384, 0.7057, 0.3680], abs=1e-4)
    assert scene.detect(replace(CLASS_ONLY, nms_pre=1)).anchors[0] == scene.anchor(0, 2, 2)


def test_the_threshold_holds_for_the_fused_score() -> None:
    scene = Scene().put(0, 2, 2, p=0.06, c=0.01).put(0, 2, 8, p=0.04, c=0.9)  # fused: 0.029, 0.139
    assert scene.detect(InferenceConfig()).anchors.tolist() == [scene.anchor(0, 2, 8)]
    assert scene.detect(CLASS_ONLY).anchors.tolist() == [scene.anchor(0, 2, 2)]


def test_a_score_at_the_threshold_is_dropped() -> None:
    scene = Scene().put(0, 2, 2, p=0.5)
    assert len(scene.detect(replace(CLASS_ONLY, score_threshold=0.5)).scores) == 0
    assert len(scene.detect(replace(CLASS_ONLY, score_threshold=0.4999)).scores) == 1


def test_boxes_are_cut_to_the_image_and_scaled_back() -> None:
    scene = Scene().put(0, 0, 0, p=0.9).put(0, 8, 8, p=0.8)
    found = scene.detect(CLASS_ONLY, size=(70, 60), scale=(2.0, 4.0))
    # [-16, -16, 16, 16] and [48, 48, 80, 80], cut at y = 70 and x = 60; x / 4, y / 2
    assert found.boxes.tolist() == [[0, 0, 4, 8], [12, 24, 15, 35]]


def test_box_deltas_move_the_box() -> None:
    scene = Scene().put(0, 8, 8, p=0.9)
    scene.maps.box_deltas[0][0, 4 * SQUARE, 8, 8] = 0.5  # 16 pixels to the right
    assert scene.detect(CLASS_ONLY).boxes.tolist() == [[64, 48, 96, 80]]


def test_nms_keeps_the_best_box_of_each_class_by_fused_score() -> None:
    scene = Scene().put(0, 4, 4, p=0.9, c=0.2).put(0, 4, 5, p=0.7, c=0.9).put(0, 5, 4, p=0.6, label=1)  # IoU 0.6
    assert scene.detect(CLASS_ONLY).anchors.tolist() == [scene.anchor(0, 4, 4), scene.anchor(0, 5, 4)]
    assert scene.detect(InferenceConfig()).anchors.tolist() == [scene.anchor(0, 4, 5), scene.anchor(0, 5, 4)]
    assert len(scene.detect(replace(CLASS_ONLY, nms_iou=0.61)).anchors) == 3


def test_a_weak_class_of_a_good_anchor_is_not_kept_before_a_better_box_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene().put(0, 4, 4, p=0.9).put(0, 4, 4, p=0.1, label=1).put(0, 4, 5, p=0.8).put(0, 12, 12, p=0.5)
    # Of the two best anchors one drops the other, so that its second class would be the second detection.
    monkeypatch.setattr(postprocess, "FIRST_LOOK", 1)
    found = scene.detect(replace(CLASS_ONLY, max_detections=2))
    assert found.anchors.tolist() == [scene.anchor(0, 4, 4), scene.anchor(0, 12, 12)]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])


def test_an_anchor_may_be_two_detections_of_two_classes() -> None:
    scene = Scene().put(0, 4, 4, p=0.9).put(0, 4, 4, p=0.3, label=1)
    found = scene.detect(CLASS_ONLY)
    assert found.category_ids.tolist() == [0, 1]
    assert found.anchors.tolist() == [scene.anchor(0, 4, 4)] * 2


def test_the_best_max_detections_are_kept_in_falling_order() -> None:
    scene = Scene()
    for place, p in enumerate((0.5, 0.9, 0.7, 0.8)):
        scene.put(0, 2, 4 * place, p=p, label=place % 2)
    found = scene.detect(replace(CLASS_ONLY, max_detections=3))
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_an_image_may_have_no_detections() -> None:
    found = Scene().detect(InferenceConfig())
    assert (found.boxes.shape, found.scores.shape, found.category_ids.shape, found.anchors.shape) == (
        (0, 4),
        (0,),
        (0,),
        (0,),
    )


def test_the_images_of_a_batch_do_not_touch_each_other() -> None:
    scene = Scene(num_images=3).put(0, 4, 4, p=0.9).put(0, 4, 5, p=0.8, image=2)
    found = detect(
        scene.maps,
        scene.grid,
        torch.tensor([[128, 128], [128, 128], [40, 50]]),
        torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]]),
        CLASS_ONLY,
    )
    assert [image.anchors.tolist() for image in found] == [[scene.anchor(0, 4, 4)], [], [scene.anchor(0, 4, 5)]]
    assert found[0].boxes.tolist() == [[16, 16, 48, 48]]
    assert found[2].boxes.tolist() == [[24, 8, 50, 20]]
