"""Settings as mappings: written, read back with every mistake named, and compared with the defaults."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from model.config import (
    ConfidenceConfig,
    InferenceConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
    require_branch,
)
from model.settings import differences, flat_differences, from_dict, read_settings, to_dict

NO_BRANCH = TrainConfig(model=ModelConfig(confidence=None))


def test_a_setting_that_is_added_later_leaves_old_keys_alone() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        width: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Before:
        depth: int = 2

    @dataclass(frozen=True, kw_only=True)
    class After:
        depth: int = 2
        inner: Inner = field(default_factory=Inner)
        head: Inner | None = None

    assert differences(Before(depth=3)) == differences(After(depth=3)) == {"depth": 3}
    assert differences(After(head=Inner())) == {"head": {}}  # a part where the default has none is a difference
    assert differences(After(head=Inner(width=5))) == {"head": {"width": 5}}


def test_settings_that_differ_have_dotted_names() -> None:
    config = TrainConfig(
        model=ModelConfig(backbone="resnet18", confidence=ConfidenceConfig(loss="l2")),
        schedule=ScheduleConfig(lr_drop_epochs=(3, 5)),
    )
    assert flat_differences(config) == {
        "model.backbone": "resnet18",
        "model.confidence.loss": "l2",
        "schedule.lr_drop_epochs": [3, 5],
    }
    assert flat_differences(NO_BRANCH) == {"model.confidence": None}
    assert flat_differences(TrainConfig()) == {}


@pytest.mark.parametrize("config", [TrainConfig(), NO_BRANCH, TrainConfig(schedule=ScheduleConfig(lr_drop_epochs=()))])
def test_a_training_is_read_back_as_it_was_written(config: TrainConfig) -> None:
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_reading_back_refuses_what_is_unknown_or_out_of_range() -> None:
    assert from_dict(InferenceConfig, {"nms_iou": 0.6}) == InferenceConfig(nms_iou=0.6)
    with pytest.raises(ValueError, match=r"nms_iuo is not a setting; did you mean nms_iou\?"):
        from_dict(InferenceConfig, {"nms_iuo": 0.6})
    with pytest.raises(ValueError, match=r"model\.confidence\.towr is not a setting"):
        from_dict(TrainConfig, {"model": {"confidence": {"towr": "box"}}})
    with pytest.raises(ValueError, match=r"nms_iou is 2\.0, expected 0 to 1"):
        from_dict(InferenceConfig, {"nms_iou": 2})


@dataclass(frozen=True, kw_only=True)
class Part:
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.width < 0.0:
            raise ValueError(f"width is {self.width}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class Whole:
    label: str
    kind: Literal["a", "b", "c"] = "a"
    part: Part | None = field(default_factory=Part)
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    free: tuple[dict[str, Any], ...] = ()
    is_on: bool = True


def test_json_is_read_into_the_types_of_the_fields() -> None:
    text = '{"label": "x", "part": {"width": 2}, "numbers": {"AP": 1, "APl": null}, "seeds": [3], "free": [{"a": [1]}]}'
    whole = from_dict(Whole, json.loads(text))
    assert whole == Whole(
        label="x", part=Part(width=2.0), numbers={"AP": 1.0, "APl": None}, seeds=(3,), free=({"a": [1]},)
    )
    assert whole.part is not None and type(whole.part.width) is float
    assert from_dict(Whole, {"label": "x", "part": None}).part is None
    from_numpy = from_dict(Part, {"width": np.float32(0.5)})
    assert from_numpy == Part(width=0.5) and type(from_numpy.width) is float


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "at.label is missing"),
        ({"label": 2}, "at.label is 2, expected text; put it in quotes"),
        ({"label": "x", "kind": "d"}, "at.kind is \"d\", expected 'a', 'b' or 'c'"),
        ({"label": "x", "kind": ["a"]}, "at.kind is [\"a\"], expected 'a', 'b' or 'c'"),
        ({"label": "x", "part": [1]}, "at.part is [1], expected a mapping of settings"),
        ({"label": "x", "part": {"width": True}}, "at.part.width is true, expected a number"),
        ({"label": "x", "part": {"width": -1}}, "at.part.width is -1.0, expected at least 0"),
        ({"label": "x", "numbers": {"AP": "1"}}, 'at.numbers.AP is "1", expected a number'),
        pytest.param(
            {"label": "x", "numbers": {"AP": 10**309}},
            f"at.numbers.AP is 1{'0' * 199}…, expected a number",
            id="larger than any float, and too long to be shown",
        ),
        ({"label": "x", "numbers": 1}, "at.numbers is 1, expected a mapping of settings"),
        ({"label": "x", "seeds": [1, 2.0]}, "at.seeds.1 is 2.0, expected a whole number"),
        ({"label": "x", "seeds": None}, "at.seeds is null, expected a list"),
        ({"label": "x", "is_on": 1}, "at.is_on is 1, expected true or false"),
    ],
)
def test_a_mistake_is_named_with_its_path_its_value_and_what_is_expected(settings: dict[str, Any], says: str) -> None:
    assert read_settings(Whole, settings, "at.") == (None, [says])
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        from_dict(Whole, settings, "at.")


def test_all_mistakes_are_named_at_once_and_something_else_than_a_mapping_is_refused() -> None:
    settings = {"part": {"width": -1, "widht": 1}, "seeds": [1, "2"], "zzz": 1}
    _, problems = read_settings(Whole, settings)
    assert problems == [
        "label is missing",
        "part.width is -1.0, expected at least 0",
        'seeds.1 is "2", expected a whole number',
    ]
    known = "label, kind, part, numbers, seeds, free, is_on"
    unknown = [
        "part.widht is not a setting; did you mean part.width?",
        f"zzz is not a setting; expected one of: {known}",
    ]
    with pytest.raises(ValueError, match=f"^{re.escape('; '.join(unknown + problems))}$"):
        from_dict(Whole, settings)
    with pytest.raises(ValueError, match=r"^Whole is \[1\], expected a mapping of settings$"):
        from_dict(Whole, [1])


def test_settings_that_read_a_branch_are_refused_where_there_is_none() -> None:
    require_branch(InferenceConfig(), has_branch=True)
    require_branch(InferenceConfig(confidence_exponent=0.0), has_branch=False)
    # IoU-guided NMS ranks by the confidence, even where no score reads it.
    guided = InferenceConfig(suppression="iou_guided", confidence_exponent=0.0)
    require_branch(guided, has_branch=True)
    with pytest.raises(
        ValueError, match=r"^inference\.suppression is iou_guided, but .* and inference\.suppression out"
    ):
        require_branch(guided, has_branch=False)
    with pytest.raises(ValueError, match=r"^inference\.fusion is product, inference\.min_confidence is 0\.5, but"):
        require_branch(InferenceConfig(fusion="product", min_confidence=0.5), has_branch=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"suppression": "soft_linear", "soft_floor": 0.06},
            "soft_floor is 0.06, above score_threshold, 0.05: boxes that nothing overlaps would be dropped by it; set "
            "it to at most score_threshold",
        ),
        ({"suppression": "matrix_gaussian", "score_threshold": 0.0}, "soft_floor is 0.001, above score_threshold, 0.0"),
        ({"suppression": "soft_linear", "soft_floor": -0.1}, "soft_floor is -0.1, expected 0 to below 1"),
        ({"soft_floor": 0.01}, "soft_floor has no meaning for suppression 'nms'; it belongs to 'soft_linear', "),
        ({"suppression": "soft_linear", "suppression_sigma": 1.0}, "suppression_sigma has no meaning for suppression"),
        (
            {"suppression": "voting", "suppression_sigma": 0.0},
            "suppression_sigma is 0.0, expected more than 0, or null",
        ),
        ({"suppression": "matrix_linear", "nms_iou": 0.6}, "nms_iou has no meaning for suppression 'matrix_linear'"),
    ],
)
def test_suppression_that_means_nothing_is_refused_with_the_reason(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        InferenceConfig(**settings)
    InferenceConfig(suppression="soft_linear", soft_floor=0.05)
    InferenceConfig(suppression="soft_gaussian", soft_floor=0.0, score_threshold=0.0)
