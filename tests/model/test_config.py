"""Settings that mean nothing, alone or together, are refused with the reason and the way out."""

import re
from typing import Any

import pytest

from model.config import InferenceConfig, TrainConfig, require_branch
from model.settings import from_dict, read_settings

DFL = {"bins": 17}


def refusal(kind: type[Any], settings: dict[str, Any]) -> str:
    """The one line that is said of settings that are refused."""
    config, problems = read_settings(kind, settings)
    assert config is None and len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            {"classification": {"loss": "qfl", "quality": "alignment"}},
            "model.classification.quality 'alignment' is measured by assignment.kind 'task_aligned' alone, not by "
            "'max_iou'; take that, or quality 'iou'",
        ),
        (
            {"classification": {"edge_quality": "dfine"}},
            "model.classification.edge_quality 'dfine' reads the distributions of edges, and there are none without "
            "box.bins; set box.bins: 17",
        ),
        (
            {"confidence": {"target": "centerness"}, "positive_iou": 0.45},
            "model.confidence.target 'centerness' needs anchors whose centres lie in their boxes, which "
            "assignment.kind 'max_iou' with positive_iou 0.45 does not promise; take 'atss' or 'task_aligned', or "
            "'max_iou' with a positive_iou of at least 0.5",
        ),
        (
            {"confidence": {"target": "centerness"}, "assignment": {"kind": "sim_ota"}},
            "model.confidence.target 'centerness' needs anchors whose centres lie in their boxes, which "
            "assignment.kind 'sim_ota' does not promise; take 'atss' or 'task_aligned', or 'max_iou' with "
            "a positive_iou of at least 0.5",
        ),
        (
            {"assignment": {"kind": "paa"}, "positive_iou": 0.6},
            "model.positive_iou and negative_iou have no meaning for assignment.kind 'paa'; they belong to 'max_iou'",
        ),
        (
            {"classification": {"loss": "vfl"}, "focal_gamma": 1.0},
            "model.focal_alpha and focal_gamma have no meaning for classification.loss 'vfl'; set classification.gamma "
            "instead",
        ),
        (
            {"classification": {"quality": "alignment"}, "assignment": {"kind": "task_aligned"}},
            "model.classification.quality 'alignment' has no meaning for loss 'focal', whose target is 1; take 'qfl', "
            "'vfl', 'ia_bce' or 'mal'",
        ),
        (
            {"assignment": {"kind": "task_aligned", "alignment_class": 0, "alignment_iou": 0}},
            "model.assignment.alignment_class and alignment_iou are both 0, so that no anchor is aligned better than "
            "another; leave one at its default",
        ),
        (
            {"box": {"distribution_loss_weight": 0.5}},
            "model.box.distribution_loss_weight has no meaning without box.bins, whose distributions it trains",
        ),
        ({"box": {"bins": 1}}, "model.box.bins is 1, expected at least 2, or null"),
        ({"box": {"loss_weight": 0}}, "model.box.loss_weight is 0.0, expected more than 0"),
        ({"classification": {"loss_weight": 0}}, "model.classification.loss_weight is 0.0, expected more than 0"),
        (
            {"classification": {"gamma": 1.0}},
            "model.classification.gamma is 1.0 for loss 'focal', expected at least 0, and for 'qfl', 'vfl', 'ia_bce' "
            "or 'mal'; focal loss has train.model.focal_gamma",
        ),
        (
            {"confidence": {"target": "centerness", "detach_iou_target": True}},
            "model.confidence.detach_iou_target has no meaning for target 'centerness'; it belongs to 'iou': leave it "
            "at false, or take another target",
        ),
    ],
)
def test_losses_and_rules_that_do_not_fit_together_are_refused(model: dict[str, Any], says: str) -> None:
    assert refusal(TrainConfig, {"model": model}) == says


@pytest.mark.parametrize(
    ("part", "setting", "says"),
    [
        ("classification", {"loss": "qfl", "vfl_alpha": 0.5}, "'vfl': leave it at 0.75"),
        ("classification", {"loss": "mal", "vfl_iou_weighted": False}, "'vfl': leave it at true"),
        ("classification", {"loss": "vfl", "ia_bce_alpha": 0.5}, "'ia_bce': leave it at 0.25"),
        (
            "assignment",
            {"kind": "max_iou", "top_k": 9},
            "'atss', 'task_aligned', 'sim_ota' and 'paa': leave it at null",
        ),
        ("assignment", {"kind": "atss", "alignment_iou": 2.0}, "'task_aligned': leave it at 6.0"),
        ("assignment", {"kind": "paa", "ota_radius": 1.5}, "'sim_ota': leave it at 2.5"),
        ("assignment", {"kind": "sim_ota", "paa_iou": 0.2}, "'paa': leave it at 0.1"),
    ],
)
def test_a_setting_of_another_kind_is_refused_with_the_kinds_it_belongs_to_and_its_default(
    part: str, setting: dict[str, Any], says: str
) -> None:
    (switch, kind), (name, _) = setting.items()
    assert refusal(TrainConfig, {"model": {part: setting}}) == (
        f"model.{part}.{name} has no meaning for {switch} {kind!r}; it belongs to {says}, or take another {switch}"
    )


def test_edges_that_do_not_reach_over_the_image_are_refused_with_the_bins_that_do() -> None:
    """P7 has a cell every 128 pixels: 8 bins are 0 to 7 strides, 896 pixels, and an image of 1,000 needs 8 strides."""
    assert refusal(TrainConfig, {"model": {"box": {"bins": 8}}}) == (
        "model.box.bins is 8, whose edges reach 896 pixels on the coarsest level, less than data.long_edge, 1000; set "
        "bins to at least 9"
    )
    for bins, long_edge in ((9, 1000), (9, 1024), (8, 896), (2, 128)):
        data = {"short_edge": 32, "long_edge": long_edge}
        from_dict(TrainConfig, {"model": {"box": {"bins": bins}}, "data": data})


@pytest.mark.parametrize(
    "model",
    [
        {"confidence": {"target": "centerness"}},
        {"confidence": {"target": "centerness"}, "assignment": {"kind": "atss"}},
        {"classification": {"loss": "qfl", "quality": "alignment"}, "assignment": {"kind": "task_aligned"}},
        {"classification": {"loss": "qfl", "edge_quality": "gflv2"}, "box": DFL},
        {"box": DFL | {"distribution_loss_weight": 0}},  # distributions that learn by the box loss alone
    ],
)
def test_what_fits_together_is_taken(model: dict[str, Any]) -> None:
    from_dict(TrainConfig, {"model": model})


@pytest.mark.parametrize(
    ("inference", "says"),
    [
        (
            {"suppression": "soft_linear", "soft_floor": 0.1},
            "soft_floor is 0.1, above score_threshold, 0.05: boxes that nothing overlaps would be dropped by it; set "
            "it to at most score_threshold",
        ),
        (
            {"suppression": "matrix_linear", "score_threshold": 0.0},
            "soft_floor is 0.001, above score_threshold, 0.0: boxes that nothing overlaps would be dropped by it; set "
            "it to at most score_threshold",
        ),
        (
            {"suppression": "voting", "soft_floor": 0.01},
            "soft_floor has no meaning for suppression 'voting'; it belongs to 'soft_linear', 'soft_gaussian', "
            "'matrix_linear' and 'matrix_gaussian': leave it at 0.001, or take another suppression",
        ),
        (
            {"suppression": "soft_linear", "suppression_sigma": 0.5},
            "suppression_sigma has no meaning for suppression 'soft_linear'; it belongs to 'soft_gaussian', "
            "'matrix_gaussian' and 'voting': leave it at null, or take another suppression",
        ),
        (
            {"suppression": "matrix_gaussian", "nms_iou": 0.6},
            "nms_iou has no meaning for suppression 'matrix_gaussian'; it belongs to 'nms', 'soft_linear', "
            "'iou_guided', 'diou' and 'voting': leave it at 0.5, or take another suppression",
        ),
        ({"suppression": "voting", "suppression_sigma": 0}, "suppression_sigma is 0.0, expected more than 0, or null"),
    ],
)
def test_a_suppression_that_cannot_be_meant_is_refused(inference: dict[str, Any], says: str) -> None:
    assert refusal(InferenceConfig, inference) == says


@pytest.mark.parametrize(
    "inference", [{"top_k_of": "pairs"}, {"min_confidence": 0.5}, {"fusion": "product"}, {"confidence_exponent": 1}]
)
def test_the_released_rule_for_small_levels_is_refused_where_it_has_no_meaning(inference: dict[str, Any]) -> None:
    says = (
        "fuse_small_levels: false is the released code's rule for fusion 'power' without an object filter, where "
        "nms_pre counts anchors; leave fusion, min_confidence and top_k_of at their defaults"
    )
    if "confidence_exponent" in inference:
        says = (
            "confidence_exponent is 1 and fuse_small_levels false: each box of a small level would score p^0 = 1; take "
            "an exponent below 1, or fuse_small_levels: true"
        )
    assert refusal(InferenceConfig, inference | {"fuse_small_levels": False}) == says
    from_dict(InferenceConfig, inference)
    from_dict(InferenceConfig, {"fuse_small_levels": False, "confidence_exponent": 0.9})


def test_a_suppression_that_ranks_by_the_confidence_needs_the_branch_whatever_the_score_reads() -> None:
    guided = InferenceConfig(suppression="iou_guided", confidence_exponent=0.0)
    require_branch(guided, has_branch=True)
    says = (
        "inference.suppression is iou_guided, but a RetinaNet has no confidence branch (train.model.confidence is null)"
        "; set inference.confidence_exponent: 0 and leave inference.fusion, inference.min_confidence and "
        "inference.suppression out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        require_branch(guided, has_branch=False)
