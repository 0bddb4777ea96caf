"""Kinds of claims: what numbers with intervals say to each part of a sentence, and all parts to the sentence."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from model.config import METRICS
from orchestrator.figures.table import Cell, Column, show, side_of_zero
from orchestrator.report.claims.file import EVERY_IMAGE, TEN_IMAGES, Claim, Kind, Part, means, place_of

if TYPE_CHECKING:
    from orchestrator.report.statistics.intervals import Estimate, Needed

Verdict = Literal["supported", "contradicted", "partly", "undecided", "not yet run", "to be measured"]
EPSILON = 1e-6
"""What sums of decimals may be off by."""
PRINTED = 0.05
"""What an AP or AR that is written with one decimal may be off by."""
MOST_SHOWN = 2
"""So many numbers are shown of one part, and one more where that is the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A number with its 95 % interval, which has no width where the number is exact."""

    value: float
    low: float
    high: float
    estimates: "tuple[Estimate, ...]" = ()
    """What it is made of, as far as that has intervals by images and seeds."""

    @property
    def is_exact(self) -> bool:
        """Whether it has no interval."""
        return self.low == self.high


class Side(Protocol):
    """Where numbers come from: the paper's tables, or what is measured. Each raises `Absent` for what it lacks."""

    @property
    def rounding(self) -> float:
        """What a difference of two numbers may be off by because both were rounded."""
        ...

    def numbers(self, part: Part, name: str, metric: str) -> Sequence[Number]:
        """Return the metric of a row, one number; of EVERY_IMAGE, one for each image."""
        ...

    def difference(self, part: Part, name: str, other: str, metric: str) -> Number:
        """Return how far a row is above another."""
        ...

    def needed(self, number: Number, margin: float) -> "Needed | None":
        """Say what would make the interval narrower than the margin to either side; None where that is not known."""
        ...


class Absent(Exception):
    """A number that there is not, why, and what the verdict is without it."""

    def __init__(self, verdict: Verdict, why: str, rows: Sequence[str] = (), *, is_foreign: bool = False) -> None:
        """Say why, or which rows have not run.

        `is_foreign`: it cannot be had on this data, so that the other parts of the sentence decide.
        """
        super().__init__(why)
        self.verdict, self.why, self.rows, self.is_foreign = verdict, why, tuple(rows), is_foreign


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A verdict and what it rests on."""

    verdict: Verdict
    numbers: str = ""
    needed: "Needed | None" = None
    """How many images or seeds would decide what is undecided."""
    not_run: tuple[str, ...] = ()
    """The rows without which nothing can be said."""
    is_foreign: bool = False


class _Finding(NamedTuple):
    verdict: Verdict
    text: str
    needed: "Needed | None" = None
    reserve: float = math.inf
    """How far the number is from the bound."""


def weigh(claim: Claim, side: Side) -> Outcome:
    """Judge a sentence: by the one part that it is, or by how many of its parts hold."""
    outcomes = [weigh_part(part, side) for part in claim.parts]
    judged = [(part, one) for part, one in zip(claim.parts, outcomes, strict=True) if not one.is_foreign]
    judged = judged or list(zip(claim.parts, outcomes, strict=True))
    verdict = _of_parts([one.verdict for _, one in judged])
    decides = ("contradicted",) if verdict in ("contradicted", "partly") else ("undecided", "not yet run")
    telling = [(part, one) for part, one in judged if one.verdict in decides] or judged
    count = sum(one.verdict == "supported" for _, one in judged)
    texts = [f"{count} of {len(judged)} parts hold"] if 0 < count < len(judged) else []
    for part, one in telling:
        label = _told_apart(part, claim.parts) if one.verdict != "not yet run" else ""
        texts += [": ".join(text for text in (label, one.numbers) if text)] if one.numbers else []
    foreign = sum(one.is_foreign for one in outcomes)
    if 0 < foreign < len(outcomes) and texts:
        texts.append(f"of {len(outcomes)} parts {foreign} cannot be asked of these data")
    not_run = list(dict.fromkeys(row for _, one in telling for row in one.not_run))
    texts += [f"not run: {'; '.join(_some(not_run))}"] if not_run else []
    return Outcome(
        verdict=verdict,
        numbers="; ".join(dict.fromkeys(texts)),
        needed=all_needed([one.needed for _, one in judged]) if verdict == "undecided" else None,
        not_run=tuple(not_run),
    )


def weigh_part(part: Part, side: Side) -> Outcome:
    """Judge one part: contradicted where anything in it is, undecided where anything is, else supported."""
    try:
        findings = _by_metric(part, side)
    except Absent as absent:
        return Outcome(verdict=absent.verdict, numbers=absent.why, not_run=absent.rows, is_foreign=absent.is_foreign)
    verdict = _all([finding.verdict for finding in findings])
    telling = [finding for finding in findings if finding.verdict == verdict] or findings
    texts = _some([finding.text for finding in telling])
    if verdict == "supported" and len(telling) > len(texts):
        closest = min(telling, key=lambda finding: finding.reserve)
        texts = [f"{closest.text}, the closest of {len(telling)}"]
    return Outcome(
        verdict=verdict,
        numbers="; ".join(texts),
        needed=all_needed([finding.needed for finding in findings]),
    )


def _by_metric(part: Part, side: Side) -> list[_Finding]:
    """Weigh a part metric by metric, so that one of which there is no number leaves the others their say."""
    if part.kind in ("most", "same_magnitude"):
        return _KINDS[part.kind](part, side)
    found: list[_Finding] = []
    absent: list[Absent] = []
    for metric in part.metric:
        try:
            found += _KINDS[part.kind](replace(part, metric=(metric,)), side)
        except Absent as one:
            absent.append(one)
    lacking = [one for one in absent if not one.is_foreign]
    if not found:
        raise (lacking or absent)[0]
    return found + [_Finding(one.verdict, one.why) for one in lacking]


def _within(part: Part, side: Side) -> list[_Finding]:
    """at_least, at_most, equals."""
    slack = part.tolerance + (side.rounding if part.over else 0.0)
    if all(metric in METRICS for one in part.metric for metric in means(one)):
        slack = max(slack, PRINTED)  # what is shown as the number that is claimed does not contradict it
    low = -math.inf if part.kind == "at_most" else part.value - slack
    high = math.inf if part.kind == "at_least" else part.value + slack
    found = []
    for number, text in _each(part, side):
        verdict = _between(number, low, high)
        margin = min(abs(number.value - low), abs(number.value - high))
        needed = side.needed(number, margin) if verdict == "undecided" else None
        found.append(_Finding(verdict, f"{text}, claimed {_claimed(part)}", needed, margin))
    return found


def _above(part: Part, side: Side) -> list[_Finding]:
    return [_compared(number, text, side, tie="contradicted") for number, text in _each(part, side)]


def _best(part: Part, side: Side) -> list[_Finding]:
    return [_compared(number, text, side, tie="supported") for number, text in _each(part, side, tell_others=True)]


def _highest(part: Part, side: Side) -> list[_Finding]:
    found = []
    for metric in part.metric:
        best, other = (
            max(names, key=lambda name: side.numbers(part, name, metric)[0].value) for names in (part.rows, part.over)
        )
        gain = side.difference(part, best, other, metric)
        text = f"{_prefix(metric)}{shown(gain, metric, '+')}, {_label(part, best)} over {_label(part, other)}"
        found.append(_compared(gain, text, side, tie="contradicted"))
    return found


def _flat(part: Part, side: Side) -> list[_Finding]:
    found = []
    for metric in part.metric:
        gaps = [side.difference(part, one, other, metric) for one, other in combinations(part.rows, 2)]
        width = part.value + side.rounding
        verdict = _all([_between(gap, -width, width) for gap in gaps])
        widest = max(gaps, key=lambda gap: abs(gap.value))
        needed = side.needed(widest, abs(width - abs(widest.value))) if verdict == "undecided" else None
        text = f"{_prefix(metric)}widest gap {shown(widest, metric, '+')}, claimed within {part.value:.1f}"
        found.append(_Finding(verdict, text, needed))
    return found


def _monotone(part: Part, side: Side) -> list[_Finding]:
    """falls, rises."""
    found = []
    for metric in part.metric:
        whole = side.difference(part, part.rows[-1], part.rows[0], metric)
        steps = [side.difference(part, later, earlier, metric) for earlier, later in pairwise(part.rows)]
        text = f"{_prefix(metric)}{shown(whole, metric, '+')} from first to last"
        # A step back contradicts only where its interval excludes 0: between neighbours, noise goes back as well.
        falls = part.kind == "falls"
        back = [step for step in steps if _side(step) == (1 if falls else -1)]
        if back:
            found.append(_Finding("contradicted", f"{text}, but a step of {shown(back[0], metric, '+')}"))
        else:
            found.append(_compared(_negative(whole) if falls else whole, text, side, tie="contradicted"))
    return found


def _most(part: Part, side: Side) -> list[_Finding]:
    first = side.difference(part, part.rows[-1], part.rows[0], part.metric[0])
    found = []
    for metric in part.metric[1:]:
        try:
            other = side.difference(part, part.rows[-1], part.rows[0], metric)
        except Absent as absent:
            if absent.is_foreign:
                continue
            raise
        # Without their common noise: both intervals at their worst.
        gap = Number(value=first.value - other.value, low=first.low - other.high, high=first.high - other.low)
        text = f"{part.metric[0]} {shown(first, metric, '+')}, {metric} {shown(other, metric, '+')}"
        found.append(_compared(gap, text, side, tie="contradicted"))
    return found


def _share(part: Part, side: Side) -> list[_Finding]:
    numbers = [number for number, _ in _each(part, side)]
    sure, never = sum(number.low > EPSILON for number in numbers), sum(number.high <= EPSILON for number in numbers)
    least, most = 100 * sure / len(numbers), 100 * (len(numbers) - never) / len(numbers)
    wanted = part.value - part.tolerance
    verdict: Verdict = "supported" if least >= wanted else "contradicted" if most < wanted else "undecided"
    what = "images" if part.table == TEN_IMAGES else "rows"
    return [_Finding(verdict, f"{part.metric[0]}: above 0 in {sure} of {len(numbers)} {what}")]


def _same_magnitude(part: Part, side: Side) -> list[_Finding]:
    found = []
    for row in part.rows:
        numbers = {metric: side.numbers(part, row, metric)[0] for metric in part.metric}
        values = [number.value for number in numbers.values()]
        if min(values) <= 0:
            raise Absent("undecided", f"{_label(part, row)}: one of them is 0")
        low = max(number.low for number in numbers.values()) / min(number.high for number in numbers.values())
        high = max(number.high for number in numbers.values()) / max(min(n.low for n in numbers.values()), EPSILON)
        ratio = Number(value=max(values) / min(values), low=low, high=high)
        listed = ", ".join(f"{_named(metric)} {shown(number, metric)}" for metric, number in numbers.items())
        text = f"{listed}: {ratio.value:.1f} to 1, claimed within {part.value:g}"
        found.append(_Finding(_between(ratio, 0.0, part.value), text))
    return found


_KINDS: dict[Kind, Callable[[Part, Side], list[_Finding]]] = {
    "at_least": _within,
    "at_most": _within,
    "equals": _within,
    "above": _above,
    "best": _best,
    "highest": _highest,
    "flat": _flat,
    "falls": _monotone,
    "rises": _monotone,
    "most": _most,
    "share": _share,
    "same_magnitude": _same_magnitude,
}


def shown(number: Number, metric: str, sign: str = "") -> str:
    """Write a number with its interval: "+1.2 [+0.7, +1.7]"."""
    column = Column(metric, digits=1 if metric in METRICS else 2, signed=bool(sign))
    return show(Cell(number.value, interval=None if number.is_exact else (number.low, number.high)), column)


def _each(part: Part, side: Side, *, tell_others: bool = False) -> Iterator[tuple[Number, str]]:
    """Yield each number that a part rests on, and how it is written."""
    for metric in part.metric:
        for name in part.rows:
            # Behind a label that ends in a number, such as "alpha 0.2", another needs more than a blank.
            whose = f"{_label(part, name)}{' ' if _prefix(metric) else ': '}" if len(part.rows) > 1 else ""
            for other in part.over:
                gain = side.difference(part, name, other, metric)
                than = f" over {_label(part, other)}" if tell_others or len(part.over) > 1 else ""
                yield gain, f"{whose}{_prefix(metric)}{shown(gain, metric, '+')}{than}"
            if not part.over:
                for number in side.numbers(part, name, metric):
                    yield number, f"{whose}{_prefix(metric)}{shown(number, metric)}"


def _compared(gain: Number, text: str, side: Side, *, tie: Verdict) -> _Finding:
    """Judge that a gain is above 0; where it is 0 without an interval, as rows that are printed alike, it is a tie."""
    # Two measured rows that are one evaluation differ by 0 exactly, and that says nothing of either.
    if abs(gain.value) <= EPSILON and gain.is_exact:
        return _Finding(tie if side.rounding else "undecided", text, reserve=0.0)
    if _side(gain) > 0:
        return _Finding("supported", text, reserve=gain.value)
    if _side(gain) < 0:
        return _Finding("contradicted", text)
    return _Finding("undecided", text, side.needed(gain, abs(gain.value)))


def _side(number: Number) -> int:
    return side_of_zero((number.low, number.high))


def _between(number: Number, low: float, high: float) -> Verdict:
    if number.low >= low - EPSILON and number.high <= high + EPSILON:
        return "supported"
    return "contradicted" if number.high < low - EPSILON or number.low > high + EPSILON else "undecided"


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if set(verdicts) == {"supported"} else "undecided"


def _of_parts(verdicts: Sequence[Verdict]) -> Verdict:
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if "contradicted" in verdicts:
        return "partly" if "supported" in verdicts else "contradicted"
    return "undecided"


def _some(texts: Sequence[str]) -> list[str]:
    more = [f"and {len(texts) - MOST_SHOWN} more"] if len(texts) > MOST_SHOWN + 1 else texts[MOST_SHOWN:]
    return [*texts[:MOST_SHOWN], *more]


def all_needed(parts: "Sequence[Needed | None]") -> "Needed | None":
    """Return what decides all of them; None where nothing is known of any."""
    known = [one for one in parts if one is not None]
    if not known:
        return None
    images, seeds = [one.images for one in known], [one.seeds for one in known]
    there = {name: max(getattr(one, name) for one in known) for name in ("num_images", "num_seeds")}
    return replace(known[0], images=_most_of(images), seeds=_most_of(seeds), **there)


def _most_of(counts: Sequence[int | None]) -> int | None:
    numbers = [count for count in counts if count is not None]
    return max(numbers) if len(numbers) == len(counts) else None


def _told_apart(part: Part, parts: Sequence[Part]) -> str:
    """Name the row of a part where other parts have others, and the one below it where the same row has several."""
    row = _label(part, part.rows[0]) if len(part.rows) == 1 and len({one.rows for one in parts}) > 1 else ""
    others = {one.over for one in parts if one.rows == part.rows}
    over = f"over {_label(part, part.over[0])}" if len(part.over) == 1 and len(others) > 1 else ""
    return " ".join(text for text in (row, over) if text)


def _label(part: Part, name: str) -> str:
    return place_of(part, name)[1] if name != EVERY_IMAGE else ""


def _prefix(metric: str) -> str:
    """Name a metric; AP goes without saying."""
    return "" if metric == "AP" else f"{_named(metric)} "


def _named(metric: str) -> str:
    """Write "train/loss_box" as the words that it is made of."""
    return metric.rpartition("/")[2].replace("_", " ")


def _claimed(part: Part) -> str:
    sign = "+" if part.over else ""
    digits = 1 if round(part.value, 1) == part.value else 2
    value = _unsigned_zero(f"{part.value:{sign}.{digits}f}")
    return f"at most {value}" if part.kind == "at_most" else value


def _negative(number: Number) -> Number:
    return Number(value=-number.value, low=-number.high, high=-number.low, estimates=number.estimates)


def _unsigned_zero(number: str) -> str:
    # What is shown as zero has no sign, from whichever side it was rounded.
    return number if float(number) else number.lstrip("+-")
