"""Ranges as one types them, and what is no range."""

import pytest

from orchestrator.checkpoint.sweep import MOST, combinations, parse_axis
from orchestrator.errors import UserError


def values(text: str) -> tuple[float, ...]:
    return parse_axis("confidence_exponent", "--exponents", text).values


def test_a_range_holds_both_ends_and_the_very_numbers_that_a_file_would() -> None:
    assert values("0:1:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert values("0:1:0.3") == (0.0, 0.3, 0.6, 0.9)
    assert values("0.4:0.4:0.1") == (0.4,)
    assert len(values("0:1:0.05")) == 21


def test_a_list_is_sorted() -> None:
    assert values("0.5, 0,0.25") == (0.0, 0.25, 0.5)
    assert parse_axis("nms_iou", "--nms-iou", "0.5,0.25").digits == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:1:0", "--exponents 0:1:0: the step is 0, expected more than 0"),
        ("0:1:-0.1", "the step is -0.1"),
        ("1:0:0.1", "begins at 1, above its end 0"),
        ("0:1", "expected START:STOP:STEP or a list"),
        ("0:1:0.1:2", "expected START:STOP:STEP or a list"),
        ("much", "'much' is no number; expected START:STOP:STEP"),
        ("", "'' is no number"),
        ("0,,1", "'' is no number"),
        ("nan", "'nan' is no number"),
        ("0:inf:1", "'inf' is no number"),
        ("0.5,0.50", "stands twice"),
        ("0:1:1e-9", f"more than {MOST} values"),
    ],
)
def test_what_is_no_range_is_told_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(UserError, match="--exponents") as told:
        values(text)
    assert said in str(told.value)


def test_two_settings_are_combined_the_last_changing_first_and_no_more_than_two() -> None:
    one, two = parse_axis("confidence_exponent", "-e", "0,1"), parse_axis("nms_iou", "-n", "0.4,0.5")
    fixed, third = parse_axis("min_confidence", "-m", "0.1"), parse_axis("score_threshold", "-s", "0,0.1")
    assert combinations([one, two, fixed]) == [(0.0, 0.4, 0.1), (0.0, 0.5, 0.1), (1.0, 0.4, 0.1), (1.0, 0.5, 0.1)]
    with pytest.raises(UserError, match="vary one for a curve or two for a grid"):
        combinations([one, two, third])
    with pytest.raises(UserError, match=f"are 441 settings, at most {MOST}"):
        combinations([parse_axis("a", "-a", "0:1:0.05"), parse_axis("b", "-b", "0:1:0.05")])
