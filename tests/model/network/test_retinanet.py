"""The towers and the confidence branch, and the detector that joins them to the pyramid."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from model.config import ConfidenceConfig, ModelConfig
from model.network.retinanet import Head, build_detector, flat, for_inference, per_anchor

FEATURES = [torch.randn(2, 16, size, size, generator=torch.Generator().manual_seed(size)) for size in (4, 2, 1)]


def head(**settings: object) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Head(ModelConfig(channels=16, **settings), num_classes=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tower", "other"), [("classification", "box"), ("box", "classification")])
def test_the_confidence_branch_reads_the_tower_that_it_is_set_on(tower: str, other: str) -> None:
    module = head(confidence=ConfidenceConfig(tower=tower))  # type: ignore[arg-type]
    confidence = module(FEATURES).confidence_logits
    assert confidence is not None
    sum(level.square().sum() for level in confidence).backward()
    towers = {"classification": module.class_tower, "box": module.box_tower}
    assert all(parameter.grad is not None for parameter in towers[tower].parameters())
    assert all(parameter.grad is None for parameter in towers[other].parameters())


def test_without_confidence_there_is_no_branch_and_the_rest_has_the_same_shape() -> None:
    plain, whole = head(confidence=None), head()
    predictions = plain(FEATURES)
    assert predictions.confidence_logits is None
    assert predictions.float().confidence_logits is None
    extra = whole.state_dict().keys() - plain.state_dict().keys()
    assert extra == {"confidence_logits.weight", "confidence_logits.bias"}
    assert [tuple(level.shape) for level in predictions.class_logits] == [(2, 27, 4, 4), (2, 27, 2, 2), (2, 27, 1, 1)]
    assert [tuple(level.shape) for level in predictions.box_deltas] == [(2, 36, 4, 4), (2, 36, 2, 2), (2, 36, 1, 1)]


def test_classes_start_at_one_percent_and_confidence_at_one_half() -> None:
    predictions = head()([torch.zeros(1, 16, 2, 2)])
    assert torch.allclose(predictions.class_logits[0].sigmoid(), torch.tensor(0.01))
    assert predictions.confidence_logits is not None
    assert predictions.confidence_logits[0].unique().tolist() == [0.0]


@pytest.mark.parametrize("depth", [1, 4])
def test_towers_have_the_depth_and_norm_that_are_set(depth: int) -> None:
    plain, normed = head(tower_depth=depth), head(tower_depth=depth, tower_norm="group")
    assert [type(layer) for layer in plain.box_tower] == [nn.Conv2d, nn.ReLU] * depth
    assert [type(layer) for layer in normed.class_tower] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * depth


def test_channels_run_anchor_by_anchor_and_flatten_to_row_column_anchor() -> None:
    def value(anchor: int, part: int, row: int, column: int) -> int:
        return 1000 * anchor + 100 * part + 10 * row + column

    level = torch.tensor(
        [
            [[[value(a, k, y, x) for x in range(3)] for y in range(2)] for a in range(9) for k in range(2)],
        ]
    )
    rows = per_anchor(level, 2)[0].tolist()
    assert rows == [[value(a, k, y, x) for k in range(2)] for y in range(2) for x in range(3) for a in range(9)]
    assert torch.equal(flat([level, level], 2), torch.cat([per_anchor(level, 2)] * 2, dim=1))


@pytest.mark.parametrize(("channels", "norm"), [(1, "none"), (20, "none"), (4, "group"), (20, "group"), (37, "group")])
def test_pyramid_and_towers_may_have_any_width(channels: int, norm: Literal["none", "group"]) -> None:
    config = ModelConfig(backbone="resnet18_quarter", channels=channels, tower_depth=1, tower_norm=norm)
    detector = build_detector(config, num_classes=3, seed=0)
    predictions = detector(torch.zeros(1, 3, 64, 64))
    assert detector.head.box_deltas.weight.shape == (36, channels, 3, 3)
    assert all(level.isfinite().all() for level in predictions.class_logits + predictions.box_deltas)


def weights(seed: int) -> dict[str, Tensor]:
    config = ModelConfig(backbone="resnet18_quarter", channels=16, tower_depth=1)
    return build_detector(config, num_classes=3, seed=seed).state_dict()


def test_first_weights_depend_on_the_seed_alone_and_leave_the_callers_generator_as_it_was() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = weights(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights(seed=1).items())
    assert not torch.equal(weights(seed=2)["head.class_logits.weight"], first["head.class_logits.weight"])


@pytest.mark.parametrize("backbone", ["resnet18_quarter", "resnet50"])
def test_a_copy_for_inference_predicts_the_same_bits_and_leaves_the_detector_alone(
    backbone: Literal["resnet18_quarter", "resnet50"],
) -> None:
    detector = build_detector(ModelConfig(backbone=backbone, channels=16, tower_depth=1), num_classes=3, seed=0).eval()
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    images = torch.randn(1, 3, 64, 96)
    copy = for_inference(detector, torch.float32)
    with torch.inference_mode():
        expected, found = detector(images), copy(images)
    pairs = zip(found.class_logits + found.box_deltas, expected.class_logits + expected.box_deltas, strict=True)
    for mine, their in pairs:
        assert torch.equal(mine, their)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
