"""Claims of the paper: sentences that rows can support, contradict or leave undecided, read from a file and judged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.config import METRICS
from model.settings import misspelt, read_settings, suggestion
from orchestrator.errors import UserError
from orchestrator.experiment.load import CLAIMS
from orchestrator.experiment.strict_yaml import read_yaml
from orchestrator.figures.table import Column, Table
from orchestrator.report.results import PAPERS_DATA, RowResult, data_of

if TYPE_CHECKING:
    from orchestrator.report.intervals import Estimate

JUDGED = METRICS[:3]
"""The metrics that have intervals."""

Verdict = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One sentence, and the rows that it rests on."""

    sentence: str
    kind: Literal["at_least", "best", "flat", "falls"]
    """at_least: the row, or its difference to the row `over`, is `value` or more. best: the row is above each of
    `over`. flat: no two of `rows` are more than `value` apart. falls: the metric sinks from the first of `rows` to the
    last, and rises nowhere in between."""
    table: str
    """The name of the experiment."""
    rows: tuple[str, ...]
    over: tuple[str, ...] = ()
    metric: str = "AP"
    value: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A claim, its verdict, and the numbers behind it."""

    claim: Claim
    verdict: Verdict
    numbers: str
    """What it rests on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    claims: tuple[dict[str, Any], ...]


def load_claims(path: Path) -> list[Claim]:
    """Read a file of claims.

    Raises:
        UserError: it has mistakes; all of them, one to a line.
    """
    raw = read_yaml(path)
    file, problems = read_settings(_File, raw)
    problems = [*misspelt(_File, raw), *problems]
    claims = []
    for place, one in enumerate(file.claims if file else ()):
        claim, mistakes = read_settings(Claim, one)
        mistakes = [*misspelt(Claim, one), *mistakes, *(_mistakes(claim) if claim else ())]
        problems += [f"claim {one.get('sentence', place + 1)!r}: {mistake}" for mistake in mistakes]
        claims += [claim] if claim else []
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return claims


def find_claims(paths: Sequence[Path]) -> Path:
    """Return the file of claims that lies beside experiment files, or beside the paper's tables.

    Raises:
        UserError: there is none.
    """
    for folder in [*(path.parent for path in paths), *(path.parent.parent / "paper" for path in paths)]:
        if (folder / CLAIMS).is_file():
            return folder / CLAIMS
    raise UserError(f"--claims: no {CLAIMS} lies beside {paths[0]}; name the file: --claims FILE")


def judge(claims: Sequence[Claim], tables: Mapping[str, Sequence[RowResult]]) -> list[Judgement]:
    """Say of each claim whether the rows support it, contradict it, or leave it open at the measured precision.

    Raises:
        UserError: a claim names a row that its table does not have.
    """
    return [_judge(claim, tables.get(claim.table)) for claim in claims]


def claims_table(judgements: Sequence[Judgement], tables: Mapping[str, Sequence[RowResult]]) -> Table:
    """Show each claim with its verdict and the numbers behind, and what the tables were measured on."""
    ours = list(dict.fromkeys(data_of(measured.row) for rows in tables.values() for measured in rows))
    counts = {v: sum(one.verdict == v for one in judgements) for v in ("supported", "contradicted", "undecided")}
    return Table(
        title="Claims of the paper",
        caption="What do the measured rows say to them?",
        columns=tuple(Column(name, numeric=False) for name in ("claim", "verdict", "measured")),
        rows=tuple((one.claim.sentence, one.verdict, one.numbers) for one in judgements),
        notes=(
            ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".",
            "[95 % interval] by paired resamples of the images, and by seeds where several; "
            "undecided is what it leaves open.",
            f"Measured on {'; '.join(ours)}{'' if ours == [PAPERS_DATA] else f'; the paper speaks of {PAPERS_DATA}'}.",
        ),
    )


def _mistakes(claim: Claim) -> Iterator[str]:
    counts = {"at_least": (1, 1, 0, 1), "best": (1, 1, 1, 99), "flat": (2, 99, 0, 0), "falls": (2, 99, 0, 0)}
    least, most, least_over, most_over = counts[claim.kind]
    if not least <= len(claim.rows) <= most:
        yield f"rows is {list(claim.rows)}, expected {'one' if most == 1 else 'at least two'} for kind {claim.kind}"
    if not least_over <= len(claim.over) <= most_over:
        expected = {0: "none", 1: "at most one", 99: "at least one"}[most_over]
        yield f"over is {list(claim.over)}, expected {expected} for kind {claim.kind}"
    if claim.metric not in JUDGED:
        yield f"metric is {claim.metric!r}, expected one of: {', '.join(JUDGED)}"
    if claim.kind == "flat" and claim.value <= 0:
        yield f"value is {claim.value}, expected more than 0 for kind flat"
    labels = [*claim.rows, *claim.over]
    if len(set(labels)) < len(labels):
        yield f"rows and over are {labels}, expected different rows"


def _judge(claim: Claim, rows: Sequence[RowResult] | None) -> Judgement:
    if rows is None:
        return Judgement(claim=claim, verdict="undecided", numbers=f"table {claim.table} is not among those shown")
    by_label = {row.row.label: row for row in rows}
    for label in (*claim.rows, *claim.over):
        if label not in by_label:
            hint = suggestion(label, by_label)
            raise UserError(f"claim {claim.sentence!r}: {label!r} is no row of {claim.table}; {hint}")
    involved = [by_label[label] for label in (*claim.rows, *claim.over)]
    absent = [row.row.label for row in involved if row.mean(claim.metric) is None]
    if absent:
        return Judgement(claim=claim, verdict="undecided", numbers=f"not run: {', '.join(absent)}")
    unsure = [row.row.label for row in involved if row.estimate(claim.metric) is None]
    if unsure:
        return Judgement(
            claim=claim, verdict="undecided", numbers=f"for want of matches no interval: {', '.join(unsure)}"
        )
    over = involved[len(claim.rows) :]
    verdict, numbers = _KINDS[claim.kind](claim, involved[: len(claim.rows)], over)
    return Judgement(claim=claim, verdict=verdict, numbers=numbers)


def _at_least(claim: Claim, rows: Sequence[RowResult], over: Sequence[RowResult]) -> tuple[Verdict, str]:
    found = _gain(claim, rows[0], over[0]) if over else rows[0].estimate(claim.metric)
    assert found is not None
    sign = "+" if over else ""
    numbers = f"{_shown(found, sign)}, claimed {claim.value:{sign}.1f}"
    return _beyond(found.low - claim.value, found.high - claim.value), numbers


def _best(claim: Claim, rows: Sequence[RowResult], over: Sequence[RowResult]) -> tuple[Verdict, str]:
    gains = {row.row.label: _gain(claim, rows[0], row) for row in over}
    verdicts = [_above(gain.low, gain.high) for gain in gains.values()]
    return _all(verdicts), "; ".join(f"{_shown(gain, '+')} over {label}" for label, gain in gains.items())


def _flat(claim: Claim, rows: Sequence[RowResult], over: Sequence[RowResult]) -> tuple[Verdict, str]:
    gaps = [_gain(claim, one, other) for one, other in combinations(rows, 2)]
    verdicts = [
        _all(
            [
                # Both ends: the gap is at most `value`, and at least -`value`.
                _beyond(claim.value - gap.high, claim.value - gap.low),
                _beyond(gap.low + claim.value, gap.high + claim.value),
            ]
        )
        for gap in gaps
    ]
    widest = max(gaps, key=lambda gap: abs(gap.value))
    return _all(verdicts), f"widest gap {_shown(widest, '+')}, claimed within {claim.value:.1f}"


def _falls(claim: Claim, rows: Sequence[RowResult], over: Sequence[RowResult]) -> tuple[Verdict, str]:
    whole = _gain(claim, rows[-1], rows[0])
    steps = [_gain(claim, later, earlier) for earlier, later in pairwise(rows)]
    # A rise contradicts only where its interval excludes 0: between neighbours, noise rises as well.
    rises = [step for step in steps if step.low > 0]
    numbers = f"{_shown(whole, '+')} from first to last"
    if rises:
        return "contradicted", f"{numbers}, but a step of {_shown(rises[0], '+')}"
    return _above(-whole.high, -whole.low), numbers


_KINDS = {"at_least": _at_least, "best": _best, "flat": _flat, "falls": _falls}


def _gain(claim: Claim, row: RowResult, other: RowResult) -> "Estimate":
    gain = row.difference(other, claim.metric)
    if gain is None:
        raise UserError(f"claim {claim.sentence!r}: {row.row.label} and {other.row.label} were scored on other images")
    return gain


def _beyond(low: float, high: float) -> Verdict:
    """Judge that a number with this interval is 0 or more."""
    return "supported" if low >= 0 else "contradicted" if high < 0 else "undecided"


def _above(low: float, high: float) -> Verdict:
    """Judge that a number with this interval is more than 0."""
    return "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if "contradicted" in verdicts:
        return "contradicted"
    return "undecided" if "undecided" in verdicts else "supported"


def _shown(found: "Estimate", sign: str) -> str:
    value, low, high = (f"{number:{sign}.1f}" for number in (found.value, found.low, found.high))
    return f"{_unsigned_zero(value)} [{_unsigned_zero(low)}, {_unsigned_zero(high)}]"


def _unsigned_zero(number: str) -> str:
    # What is shown as zero has no sign, from whichever side it was rounded.
    return number if float(number) else number.lstrip("+-")
