"""The claims ledger: each sentence of the paper with two verdicts, by its own tables and by what is measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.experiment.load import Experiment
from orchestrator.figures.table import Cell, Column, Table
from orchestrator.report.claims.evidence import NO_INTERVAL, Fetch, OurNumbers, PapersNumbers
from orchestrator.report.claims.file import GRADIENTS, TEN_IMAGES, Claim, ClaimsFile
from orchestrator.report.claims.kinds import Outcome, Verdict, weigh, weigh_part
from orchestrator.report.results.rows import RowResult, measured_on
from orchestrator.report.results.table import PAPERS_DATA

if TYPE_CHECKING:
    from orchestrator.report.statistics.intervals import Needed

MARKS: Mapping[Verdict, str] = {
    "supported": "\u00a0✓",
    "contradicted": "\u00a0✗",
    "partly": "\u00a0±",
    "undecided": "\u00a0?",
    "not yet run": "\u00a0…",
    "to be measured": "\u00a0…",
}
"""Shown behind a verdict, so that a glance tells them apart without colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A claim and its two verdicts."""

    claim: Claim
    paper: Outcome
    """By the paper's own tables."""
    measured: Outcome


def judge(
    file: ClaimsFile, tables: Mapping[str, Sequence[RowResult]], paper: PapersNumbers, fetch: Fetch = lambda row: None
) -> list[Judgement]:
    """Say of each claim what the paper's tables make of it, and what ours do.

    Args:
        file: the claims.
        tables: ours, by name.
        paper: what it prints.
        fetch: gets what was counted of a row's boxes.

    Raises:
        UserError: a table lacks a row that it should have.
    """
    ours = OurNumbers(tables=tables, file=file, fetch=fetch)
    return [Judgement(claim=claim, paper=weigh(claim, paper), measured=weigh(claim, ours)) for claim in file.claims]


def open_rows(file: ClaimsFile, tables: Mapping[str, Sequence[RowResult]], most: int) -> dict[str, list[str]]:
    """Return the rows that a claim rests on and leaves open, by table, where up to so many seeds would decide it.

    A claim that takes more seeds than that, as its variance was measured, would end as it began.
    """
    ours = OurNumbers(tables=tables, file=file, fetch=lambda row: None)
    found: dict[str, list[str]] = {}
    for part in (part for claim in file.claims for part in claim.parts):
        # No seed decides these, and slopes would import torch, which takes seconds of each submit.
        if part.table in (GRADIENTS, TEN_IMAGES):
            continue
        outcome = weigh_part(part, ours)
        seeds = outcome.needed.seeds if outcome.needed else None
        if outcome.verdict != "undecided" or seeds is None or seeds > most:
            continue
        # A number that is only cited has no row, and no seeds.
        rests_on = [ours.row(part, name) for name in (*part.rows, *part.over) if not ours.is_cited(part, name)]
        for table, rows in tables.items():
            labels = [row.row.label for row in rows if any(row is one for one in rests_on)]
            found[table] = list(dict.fromkeys([*found.get(table, []), *labels]))
    return found


def claims_table(
    judgements: Sequence[Judgement], tables: Mapping[str, Sequence[RowResult]], experiments: Sequence[Experiment] = ()
) -> Table:
    """Show each claim with its verdicts and the numbers behind, and what the tables were measured on."""
    ours = measured_on([measured for rows in tables.values() for measured in rows])
    notes = [
        f"The paper's tables: {_counted([one.paper.verdict for one in judgements])}. They are printed to 0.1, so that "
        "a difference may be off by 0.1.",
        f"Measured: {_counted([one.measured.verdict for one in judgements])}.",
        "partly: some parts of the sentence hold and others fail.",
    ]
    if any(row.by_seed for rows in tables.values() for row in rows):
        notes.append(
            "[95 % interval] by images, and by seeds where several; undecided is what it leaves open, and behind the "
            "numbers stands what would decide it."
        )
        if any(NO_INTERVAL in one.measured.numbers for one in judgements):
            ways = "more seeds give it one, or a new scoring where the old one did not match objects by size."
            notes.append(f"{NO_INTERVAL} has no interval, and so decides nothing: {ways}")
        if any(len(row.by_seed) == 1 for rows in tables.values() for row in rows):
            notes.append("Of rows with one seed a verdict is on these trainings; another seed may decide otherwise.")
        elsewhere = (
            f", and not on {PAPERS_DATA}, of which the paper speaks: a verdict here is on whether the sentence holds "
            "there as well"
        )
        notes.append(f"Measured on {'; '.join(ours)}{elsewhere if ours != [PAPERS_DATA] else ''}.")
    suites = ", ".join(dict.fromkeys(experiment.suite for experiment in experiments))
    return Table(
        title=f"Claims of the paper{f', suite {suites}' if suites else ''}",
        caption="What do the paper's own tables say to its sentences, and what do the measured rows?",
        columns=(
            Column("no.", numeric=False),
            Column("claim", numeric=False, wrap=42),
            Column("place", numeric=False, wrap=13),
            Column("paper's tables", numeric=False, wrap=26),
            Column("numbers, paper's tables", numeric=False, wrap=26, under="paper's tables"),
            Column("measured", numeric=False, wrap=27),
            Column("numbers, measured", numeric=False, wrap=27, under="measured"),
        ),
        rows=tuple(
            (
                str(number),
                one.claim.sentence,
                one.claim.place,
                _verdict(one.paper),
                one.paper.numbers,
                _verdict(one.measured),
                _numbers(one.measured),
            )
            for number, one in enumerate(judgements, start=1)
        ),
        notes=tuple(notes),
    )


def _counted(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdicts)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in MARKS if counts[verdict])


def _verdict(outcome: Outcome) -> Cell:
    return Cell(outcome.verdict, mark=MARKS[outcome.verdict], bold=outcome.verdict in ("supported", "contradicted"))


def _numbers(outcome: Outcome) -> str:
    return "; ".join(text for text in (outcome.numbers, _way_out(outcome.needed)) if text)


def _way_out(needed: "Needed | None") -> str:
    """Say how many images or seeds would decide."""
    if needed is None:
        return ""
    ways = []
    if needed.images is not None:
        ways.append(f"{_more_than(needed.images, needed.num_images)} images")
    if needed.seeds is not None:
        ways.append(f"{_more_than(needed.seeds, needed.num_seeds)} seeds")
    return f"would take {' or '.join(ways)}" if ways else "no number of images alone, or of seeds, is known to decide"


def _more_than(count: int, there: int) -> str:
    # A look at a higher level, or a skewed bootstrap, leaves open what by its variance these would decide.
    return f"{count:,}" if count > there else f"more than {there:,}"
