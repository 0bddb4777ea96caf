"""Each kind of claim is supported, contradicted or left open by intervals that are worked out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.experiment.rows import Row
from orchestrator.report.claims.evidence import PapersNumbers
from orchestrator.report.claims.file import TEN_IMAGES, Claim, ClaimsFile, Part, Printed
from orchestrator.report.claims.kinds import Absent, Number, Outcome, weigh
from orchestrator.report.claims.ledger import judge
from orchestrator.report.results.rows import RowResult
from orchestrator.report.statistics.intervals import Needed

NOISE = np.linspace(-0.5, 0.5, 1001)
"""95 % of it lie within 0.475 of 0; every second row has it, so that neighbours differ by it."""


def measured(label: str, ap: float | None, slope: float) -> RowResult:
    """A row whose resamples scatter by `slope` times what NOISE does; differences by the difference of slopes."""
    numbers = {} if ap is None else {0: {"AP": ap, "AP50": ap}}
    samples = {} if ap is None else {0: np.tile(ap + slope * NOISE, (3, 1))}
    return RowResult(row=Row(label=label), by_seed=numbers, resampled=samples, state="")


def file_of(*parts: Part) -> ClaimsFile:
    claims = (Claim(sentence="s", parts=parts),)
    return ClaimsFile(path=Path("claims.yaml"), claims=claims, printed=Printed(), tables={})


def by_rows(part: Part, tables: Mapping[str, Sequence[RowResult]]) -> Outcome:
    (judgement,) = judge(file_of(part), tables, PapersNumbers(lines={}, boxes=None))
    return judgement.measured


def judgement(
    kind: str, values: Sequence[float | None], num_rows: int, *, value: float = 0.0, metric: str = "AP"
) -> Outcome:
    """Judge rows a, b, c ... of these APs, the first `num_rows` as rows, the others as over."""
    labels = "abcdefg"[: len(values)]
    rows = [measured(label, ap, float(place % 2)) for place, (label, ap) in enumerate(zip(labels, values, strict=True))]
    part = Part(
        kind=kind,  # type: ignore[arg-type]
        table="t",
        rows=tuple(labels[:num_rows]),
        over=tuple(labels[num_rows:]),
        metric=(metric,),
        value=value,
    )
    return by_rows(part, {"t": rows})


@dataclass(frozen=True)
class Given:
    """A side whose numbers are given by row and metric: exact, or each give or take `width`."""

    values: Mapping[Any, float]
    width: float = 0.0
    rounding: float = 0.0
    asked: list[float] = field(default_factory=list)

    def numbers(self, part: Part, name: str, metric: str) -> list[Number]:
        if (name, metric) not in self.values:
            raise Absent("not yet run", "", [name])
        return [self._number(self.values[name, metric])]

    def difference(self, part: Part, name: str, other: str, metric: str) -> Number:
        ours, theirs = (self.numbers(part, one, metric)[0].value for one in (name, other))
        return self._number(ours - theirs)

    def needed(self, number: Number, margin: float) -> Needed:
        self.asked.append(margin)
        return Needed(images=round(1000 / margin), seeds=None if margin < 0.15 else 4)

    def _number(self, value: float) -> Number:
        return Number(value=value, low=value - self.width, high=value + self.width)


def printed(**values: float) -> Given:
    """The paper's AP of some rows."""
    return Given({(row, "AP"): value for row, value in values.items()}, rounding=0.1)


def weighed(side: Given, *parts: Part) -> Outcome:
    return weigh(Claim(sentence="s", parts=parts), side)


@pytest.mark.parametrize(
    ("ap", "verdict"),
    [(31.2, "supported"), (30.2, "undecided"), (30.1, "contradicted")],  # from 30.65, which is printed 30.7
)
def test_at_least_compares_a_difference_with_its_bound(ap: float, verdict: str) -> None:
    found = judgement("at_least", [ap, 30.0], 1, value=0.7)
    assert found.verdict == verdict
    assert (
        found.numbers
        == {
            "supported": "+1.2 [+0.7, +1.7], claimed +0.7",
            "undecided": "+0.2 [-0.3, +0.7], claimed +0.7",
            "contradicted": "+0.1 [-0.4, +0.6], claimed +0.7",
        }[verdict]
    )


def test_an_interval_that_excludes_zero_is_shown_to_exclude_it() -> None:
    found = judgement("above", [30.49, 30.0], 1)
    assert (found.verdict, found.numbers) == ("supported", "+0.5 [+0.01, +1.0]")


def test_at_least_compares_a_row_with_its_bound() -> None:
    assert judgement("at_least", [38.5], 1, value=38.4).verdict == "supported"  # row a does not scatter
    assert judgement("at_least", [38.3], 1, value=38.4).verdict == "contradicted"


@pytest.mark.parametrize(
    ("ap", "verdict"),
    [(29.2, "supported"), (29.4, "undecided"), (30.2, "undecided"), (30.3, "contradicted")],
)
def test_at_most_compares_a_difference_with_its_bound(ap: float, verdict: str) -> None:
    """-0.3 claimed; what is found is known to 0.475."""
    found = judgement("at_most", [ap, 30.0], 1, value=-0.3)
    assert found.verdict == verdict and found.numbers.endswith("claimed at most -0.3")


@pytest.mark.parametrize(
    ("ap", "tolerance", "verdict"),
    [(30.5, 0.5, "supported"), (30.5, 0.4, "undecided"), (31.5, 0.5, "contradicted"), (29.4, 0.5, "contradicted")],
)
def test_equals_keeps_the_whole_interval_within_its_tolerance(ap: float, tolerance: float, verdict: str) -> None:
    """0.5 claimed; found 0.5, 1.5 and -0.6, each give or take 0.475."""
    rows = [measured("a", ap, 0.0), measured("b", 30.0, 1.0)]
    part = Part(kind="equals", table="t", rows=("a",), over=("b",), value=0.5, tolerance=tolerance)
    assert by_rows(part, {"t": rows}).verdict == verdict


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([30.0, 30.9], "supported"),
        ([30.5, 30.0], "supported"),
        ([31.1, 30.0], "undecided"),
        ([32.0, 31.1], "contradicted"),
    ],
)
@pytest.mark.parametrize("kind", ["best", "above"])
def test_best_is_above_each_of_the_others(kind: str, others: list[float], verdict: str) -> None:
    assert judgement(kind, [31.0, *others], 1).verdict == verdict


@pytest.mark.parametrize(("more", "verdict"), [(4e-5, "undecided"), (6e-5, "supported"), (-6e-5, "contradicted")])
def test_a_difference_that_no_table_shows_decides_nothing(more: float, verdict: str) -> None:
    rows = [measured("a", 30.0 + more, 1.0), measured("b", 30.0, 1.0)]
    assert by_rows(Part(kind="above", table="t", rows=("a",), over=("b",)), {"t": rows}).verdict == verdict


def test_rows_that_are_one_training_are_not_above_each_other() -> None:
    same = [measured("a", 30.0, 1.0), measured("b", 30.0, 1.0)]
    assert by_rows(Part(kind="best", table="t", rows=("a",), over=("b",)), {"t": same}).verdict == "undecided"


def test_a_row_that_is_printed_like_another_is_not_above_it_and_may_be_the_best() -> None:
    side = printed(a=36.0, b=36.0, c=35.9)
    assert weighed(side, Part(kind="above", table="t", rows=("a",), over=("b", "c"))).verdict == "contradicted"
    assert weighed(side, Part(kind="best", table="t", rows=("a",), over=("b", "c"))).verdict == "supported"
    assert weighed(side, Part(kind="best", table="t", rows=("c",), over=("a", "b"))).verdict == "contradicted"


def test_a_printed_difference_may_be_off_by_its_rounding_and_a_printed_number_may_not() -> None:
    side = printed(a=36.0, b=35.4)
    part = Part(kind="at_least", table="t", rows=("a",), over=("b",), value=0.7)
    assert weighed(side, part).verdict == "supported"  # 0.6 may be 36.04 - 35.35
    assert weighed(printed(a=36.0, b=35.5), part).verdict == "contradicted"
    assert weighed(side, Part(kind="at_least", table="t", rows=("a",), value=36.1)).verdict == "contradicted"


def test_highest_compares_the_highest_of_either_side() -> None:
    part = Part(kind="highest", table="t", rows=("a", "b"), over=("c", "d"))
    found = weighed(printed(a=35.0, b=36.1, c=36.0, d=34.0), part)
    assert (found.verdict, found.numbers) == ("supported", "+0.1, b over c")
    assert weighed(printed(a=36.0, b=35.0, c=36.0, d=34.0), part).verdict == "contradicted"  # as high is not above


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([30.0, 30.1, 30.0], "supported"), ([30.0, 30.2, 30.0], "undecided"), ([30.0, 31.1, 30.0], "contradicted")],
)
def test_flat_keeps_every_pair_within_its_width(values: list[float], verdict: str) -> None:
    """Gaps of 0.1, 0.2, 1.1 +- 0.475 against 0.6."""
    found = judgement("flat", values, 3, value=0.6)
    assert found.verdict == verdict
    if verdict == "contradicted":
        assert found.numbers in (
            "widest gap -1.1 [-1.6, -0.6], claimed within 0.6",
            "widest gap +1.1 [+0.6, +1.6], claimed within 0.6",
        )


@pytest.mark.parametrize("values", [[30.0, 31.1], [31.1, 30.0]])
def test_flat_looks_up_and_down(values: list[float]) -> None:
    assert judgement("flat", values, 2, value=0.6).verdict == "contradicted"


def test_each_metric_has_resamples_of_its_own() -> None:
    row = RowResult(
        row=Row(label="a"),
        by_seed={0: {"AP": 30.0, "AP50": 50.0, "AP75": 32.0, "APs": 9.0}},
        resampled={0: np.stack([NOISE, 2 * NOISE, 3 * NOISE])},
        state="",
    )
    halves = [
        found.high - found.value if (found := row.estimate(name)) else None for name in ("AP", "AP50", "AP75", "APs")
    ]
    assert halves == [pytest.approx(0.475), pytest.approx(0.95), pytest.approx(1.425), None]


FALLING = [
    ([31.0, 30.9, 30.0, 30.1], "supported"),  # a step up of 0.1 may be chance
    ([31.0, 30.3, 30.4, 30.7], "undecided"),  # -0.3 from first to last
    ([31.0, 30.0, 30.6, 29.0], "contradicted"),  # a step up of 0.6 is none
    ([30.0, 30.3, 30.3, 30.6], "contradicted"),  # no step is sure, the whole is
]


@pytest.mark.parametrize(("values", "verdict"), FALLING)
def test_falls_sinks_as_a_whole_and_rises_nowhere_for_sure(values: list[float], verdict: str) -> None:
    assert judgement("falls", values, 4, metric="AP50").verdict == verdict


@pytest.mark.parametrize(("values", "verdict"), FALLING)
def test_rises_is_falls_upside_down(values: list[float], verdict: str) -> None:
    assert judgement("rises", [-value for value in values], 4, metric="AP50").verdict == verdict


def test_most_compares_what_metrics_gain_from_first_to_last() -> None:
    values = {("a", "ARs"): 30.0, ("b", "ARs"): 31.0, ("a", "AP"): 36.0, ("b", "AP"): 36.4}
    part = Part(kind="most", table="t", rows=("a", "b"), metric=("ARs", "AP"))
    found = weighed(Given(values), part)
    assert (found.verdict, found.numbers) == ("supported", "ARs +1.0, AP +0.4")
    assert weighed(Given(values, width=0.2), part).verdict == "supported"  # 0.6 +- 0.4
    assert weighed(Given(values, width=0.4), part).verdict == "undecided"  # 0.6 +- 0.8
    other = Part(kind="most", table="t", rows=("a", "b"), metric=("AP", "ARs"))
    assert weighed(Given(values, width=0.2), other).verdict == "contradicted"


@pytest.mark.parametrize(("value", "verdict"), [(50, "supported"), (75, "undecided"), (76, "contradicted")])
def test_share_counts_the_rows_above_zero(value: float, verdict: str) -> None:
    """Of four rows two are above 0 for sure, one is not, and one may be: 50 to 75 per cent."""
    side = Given({("a", "AP"): 1.0, ("b", "AP"): 0.6, ("c", "AP"): 0.2, ("d", "AP"): -2.0}, width=0.5)
    found = weighed(side, Part(kind="share", table="t", rows=("a", "b", "c", "d"), value=value))
    assert (found.verdict, found.numbers) == (verdict, "AP: above 0 in 2 of 4 rows")


@pytest.mark.parametrize(("width", "verdict"), [(0.0, "supported"), (0.1, "undecided")])
def test_losses_are_of_one_magnitude_where_the_largest_is_less_than_so_many_times_the_smallest(
    width: float, verdict: str
) -> None:
    """0.9 to 0.1 is 9 to 1; with 0.1 either way it may be 10 to anything."""
    side = Given({("a", "train/loss_box"): 0.9, ("a", "train/loss_class"): 0.1}, width=width)
    part = Part(kind="same_magnitude", table="t", rows=("a",), metric=("train/loss_box", "train/loss_class"), value=10)
    found = weighed(side, part)
    assert found.verdict == verdict
    if not width:
        assert found.numbers == "loss box 0.90, loss class 0.10: 9.0 to 1, claimed within 10"
    apart = Given({("a", "train/loss_box"): 1.1, ("a", "train/loss_class"): 0.1})
    assert weighed(apart, part).verdict == "contradicted"


HOLDS, FAILS, OPEN = (Part(kind="at_least", table="t", rows=("a",), value=value) for value in (29.0, 31.0, 30.1))
MISSING = Part(kind="at_least", table="t", rows=("z",), value=1.0)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([HOLDS, HOLDS], "supported"),
        ([FAILS, FAILS], "contradicted"),
        ([HOLDS, FAILS], "partly"),
        ([HOLDS, FAILS, OPEN], "partly"),
        ([HOLDS, OPEN], "undecided"),
        ([FAILS, OPEN], "contradicted"),
        ([HOLDS, MISSING], "undecided"),
        ([MISSING, MISSING], "not yet run"),
    ],
)
def test_a_sentence_holds_where_all_its_parts_do(parts: list[Part], verdict: str) -> None:
    found = weighed(Given({("a", "AP"): 30.0}, width=0.5), *parts)
    assert found.verdict == verdict
    if verdict == "partly":
        assert found.numbers == f"1 of {len(parts)} parts hold; 30.0 [29.5, 30.5], claimed 31.0"
    if verdict == "not yet run":
        assert found.numbers == "not run: z"


def test_what_is_undecided_says_what_the_widest_of_its_parts_would_take() -> None:
    near = Part(kind="at_least", table="t", rows=("a",), value=30.15)
    far = Part(kind="at_least", table="t", rows=("a",), value=29.85)
    side = Given({("a", "AP"): 30.0}, width=0.5)
    assert weighed(side, far).needed == Needed(images=5000, seeds=4)
    assert side.asked == [pytest.approx(0.2)]
    assert weighed(side, far, near).needed == Needed(images=10000, seeds=None)
    assert weighed(side, FAILS, far).needed is None  # contradicted, whatever becomes of the other part
    bound = Part(kind="above", table="t", rows=("a",), over=("b",))
    sides = Given({("a", "AP"): 30.25, ("b", "AP"): 30.0}, width=0.5)
    assert weighed(sides, bound).needed == Needed(images=4000, seeds=4)


def test_what_cannot_be_had_on_this_data_leaves_the_verdict_to_the_other_parts() -> None:
    class Elsewhere(Given):
        def numbers(self, part: Part, name: str, metric: str) -> list[Number]:
            if part.table == TEN_IMAGES:
                raise Absent("undecided", "which images?", is_foreign=True)
            return super().numbers(part, name, metric)

    side = Elsewhere({("a", "AP"): 30.0})
    foreign = Part(kind="equals", table=TEN_IMAGES, rows=("Image2",), metric=("iou>0.5 by NMS",))
    assert weighed(side, foreign, HOLDS).verdict == "supported"
    assert weighed(side, foreign, FAILS).verdict == "contradicted"
    assert weighed(side, foreign).verdict == "undecided"


def test_a_metric_without_a_number_leaves_the_others_of_its_part_their_say() -> None:
    class Lacking(Given):
        def difference(self, part: Part, name: str, other: str, metric: str) -> Number:
            if metric == "APl":
                raise Absent("undecided", "no large object", is_foreign=True)
            if metric == "APs":
                raise Absent("undecided", "no interval")
            return super().difference(part, name, other, metric)

    side = Lacking({("a", "AP"): 30.0, ("b", "AP"): 29.0, ("a", "AP50"): 31.0, ("b", "AP50"): 29.0})

    def verdict(*metrics: str, rows: tuple[str, str] = ("a", "b")) -> tuple[str, str]:
        found = weighed(side, Part(kind="above", table="t", rows=rows[:1], over=rows[1:], metric=metrics))
        return found.verdict, found.numbers

    assert verdict("AP", "APl") == ("supported", "+1.0")
    assert verdict("AP", "APs") == ("undecided", "no interval")
    assert verdict("AP", "APs", rows=("b", "a")) == ("contradicted", "-1.0")
    assert verdict("APl") == ("undecided", "no large object")
    most = Part(kind="most", table="t", rows=("b", "a"), metric=("AP", "APl"))
    assert weighed(side, most).verdict == "undecided"  # nothing is left to compare with
    beside = Part(kind="most", table="t", rows=("b", "a"), metric=("AP", "APl", "AP50"))
    assert weighed(side, beside).verdict == "contradicted"  # +1.0 and +2.0


def test_of_many_numbers_that_support_a_part_the_closest_is_shown() -> None:
    side = printed(a=36.0, b=35.0, c=35.8, d=34.0, e=33.0)
    found = weighed(side, Part(kind="best", table="t", rows=("a",), over=("b", "c", "d", "e")))
    assert found.numbers == "+0.2 over c, the closest of 4"


def test_what_is_not_there_leaves_a_claim_open() -> None:
    found = judgement("best", [31.0, None], 1)
    assert (found.verdict, found.numbers) == ("not yet run", "not run: b")
    bare = RowResult(row=Row(label="a"), by_seed={0: {"AP": 31.0}}, resampled={}, state="")
    part = Part(kind="at_least", table="t", rows=("a",), value=30)
    assert by_rows(part, {"t": [bare]}).numbers == "for want of matches no interval: a"
    unasked = replace(bare, is_resampled=False)
    assert by_rows(part, {"t": [unasked]}).numbers == "AP 31.0, and intervals were left out"
    assert by_rows(part, {}).numbers == "table t is not among those shown"
    longer = replace(unasked, row=Row(label="b"), by_seed={0: {"AP": 30.0}, 1: {"AP": 39.0}})
    over = Part(kind="above", table="t", rows=("a",), over=("b",))
    assert by_rows(over, {"t": [unasked, longer]}).numbers == "AP +1.0, and intervals were left out"
    apart = [measured("a", 31.0, 0.0), replace(measured("b", 30.0, 0.0), row=Row(label="b", split="minival"))]
    assert by_rows(over, {"t": apart}) == Outcome(
        verdict="undecided", numbers="scored on other images: a on COCO val2017 and b on coco minival"
    )
    with pytest.raises(UserError, match="'a' is no row of t; did you mean"):
        by_rows(part, {"t": [measured("aa", 30.0, 0.0)]})
