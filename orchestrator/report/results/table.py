"""The table of an experiment's results, with the paper's numbers beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.config import CALIBRATION
from orchestrator.experiment.cost.seeds import note_on_looks
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.rows import Cited
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Group, Table, Value, side_of_zero
from orchestrator.report.results.rows import RowResult, data_of, is_calibrated, measured_on, with_references

if TYPE_CHECKING:
    from orchestrator.report.statistics.intervals import Estimate

PAPERS_DATA = "COCO val2017"
PAPER, PAPER_ELSEWHERE = "paper", "COCO 2017, the paper"
"""What the paper's numbers are called beside ours: on its own data, and beside numbers of other data."""
OTHERS, OTHERS_ELSEWHERE = "published", "COCO 2017, published"
"""The same of a table that quotes others alone, and has no number of the paper in a row."""
PUBLISHED = "†"
"""Marks a number that the paper quotes otherwise than its source gives it."""
EXCLUDES_ZERO = "*"
"""Marks a difference whose 95 % interval excludes 0."""
FEW, FEW_IMAGES = "‡", 10
"""Marks an interval on fewer images with an object: resamples of them say too little of what other images would do."""
SEEDS_ALONE = "[95 % interval] by the scatter of the seeds alone: what other images would do is not in it."
"""What the intervals of a metric without resamples rest on."""


def results_table(experiment: Experiment, results: Sequence[RowResult], *, is_resampled: bool = False) -> Table:
    """Show our numbers, the paper's in grey beside them, and in bold the best where its intervals bear it out.

    The difference to the paper is formed only of rows that are measured on its data. Before anything is measured, the
    paper's numbers stand in the place of ours.

    Args:
        experiment: one table.
        results: its rows, measured; with resamples, the difference to the reference row has its 95 % interval.
        is_resampled: whether resamples were asked for, so that it is worth saying where they lack.
    """
    paper = paper_beside(experiment)
    columns = [Column("row", numeric=False)]
    for metric in experiment.columns:
        columns += [Column(metric), *paper.columns(metric)]
    best = {metric: best_row(results, metric) for metric in experiment.columns}
    rows = [[result.row.label, *_numbers(result, experiment.columns, paper, best)] for result in results]
    gains: list[Cell] = []
    if experiment.reference is not None and len(results) > 1:
        over = f"{experiment.columns[0]} over reference"
        columns.append(Column(over, signed=True, has_forest=True))
        gains = _gains(results, experiment)
        for row, gain in zip(rows, gains, strict=True):
            row.append(gain)
        if any(theirs := papers_gains(experiment)):
            columns.append(Column(f"{over}, paper", signed=True, under=over, detail=paper.called, is_soft=True))
            for row, papers in zip(rows, theirs, strict=True):
                row.append(papers)
    if any(result.state for result in results):
        columns.append(Column("state", numeric=False))
        for row, result in zip(rows, results, strict=True):
            row.append(result.state)
    quoted = [_quoted(line, columns) for line in experiment.cited]
    by_whom = "Published elsewhere" if paper.is_of_others else "Cited by the paper"
    groups = [Group(len(rows), by_whom, paper.called)] if quoted else []
    if paper.metrics and not any(result.by_seed for result in results):
        elsewhere = OTHERS_ELSEWHERE if paper.is_of_others else PAPER_ELSEWHERE
        groups.insert(0, Group(0, f"{elsewhere}; nothing has run yet", paper.called))
    return Table(
        title=experiment.title,
        caption=experiment.question,
        columns=tuple(columns),
        rows=(*map(tuple, rows), *map(tuple, quoted)),
        rules_before=(len(rows),) if quoted else (),
        groups=tuple(groups),
        notes=(
            *_notes(experiment, paper, results),
            *_notes_on_gains(experiment, results, gains, is_resampled),
            *_notes_on_best(results, experiment.columns, best),
            *_notes_on_calibration(results, experiment.columns),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperBeside:
    """How the paper's numbers stand beside those of a table."""

    metrics: tuple[str, ...]
    """Of which it gives any."""
    called: str
    has_differences: bool
    """Whether a row is measured on the paper's data."""

    @property
    def is_of_others(self) -> bool:
        """Whether all numbers are those of lines that are only quoted, from elsewhere than the paper."""
        return self.called in (OTHERS, OTHERS_ELSEWHERE)

    def columns(self, metric: str, *, always: bool = False) -> list[Column]:
        """Return the columns behind that of a metric, if the paper gives it; `always`, if it gives any."""
        if metric not in self.metrics and not (always and self.metrics):
            return []
        name = f"{metric}, {PAPER}"
        heading = "" if self.called == PAPER else f"{metric}, {self.called}"
        found = [Column(name, under=metric, detail=self.called, heading=heading, is_soft=True)]
        if self.has_differences:
            found.append(Column(f"{metric}, Δ", signed=True, under=metric, detail="difference"))
        return found


def paper_beside(experiment: Experiment) -> PaperBeside:
    """Say which numbers of the paper a table has, and whether ours can be compared with them."""
    numbers = [row.paper for row in experiment.rows] + [line.paper for line in experiment.cited]
    at_home = [data_of(row) == PAPERS_DATA for row in experiment.rows]
    is_of_others = bool(experiment.cited) and not any(row.paper for row in experiment.rows)
    here, elsewhere = (OTHERS, OTHERS_ELSEWHERE) if is_of_others else (PAPER, PAPER_ELSEWHERE)
    return PaperBeside(
        metrics=tuple(metric for metric in experiment.columns if any(metric in one for one in numbers)),
        called=here if all(at_home) else elsewhere,
        has_differences=any(at_home),
    )


def best_row(results: Sequence[RowResult], metric: str) -> RowResult | None:
    """Return the row that is above each other one by a 95 % interval that excludes 0; None where there is none.

    Without intervals, and of a metric without resamples such as CALIBRATION, there is none: a number more says nothing
    of what another seed, or other images, would do.
    """
    means = [(one.mean(metric), place) for place, one in enumerate(results)]
    ranked = sorted((-mean, place) for mean, place in means if mean is not None)
    if len(ranked) < 2 or not all(results[place].knows_images(metric) for _, place in ranked):
        return None
    # The next best comes first, which decides it nearly always.
    best, *others = (results[place] for _, place in ranked)
    gains = (best.difference(other, metric) for other in others)
    return best if all(gain is not None and side_of_zero((gain.low, gain.high)) > 0 for gain in gains) else None


def marks_of(interval: tuple[float, float], num_with_objects: int) -> str:
    """Return what stands behind the interval of a difference, on so many images with an object; 0 are unknown."""
    return (EXCLUDES_ZERO if side_of_zero(interval) else "") + mark_of_few(num_with_objects)


def mark_of_few(num_with_objects: int) -> str:
    """Return what stands behind any interval on so many images with an object; 0 are unknown."""
    return FEW if 0 < num_with_objects < FEW_IMAGES else ""


def notes_on_marks(marks: str) -> list[str]:
    """Say what they mean."""
    known = {
        EXCLUDES_ZERO: "The interval excludes 0.",
        FEW: f"On fewer than {FEW_IMAGES} images with an object: too few to tell, the interval is too narrow.",
    }
    return [f"{mark} {said}" for mark, said in known.items() if mark in marks]


def interval_note(estimates: Sequence["Estimate"]) -> str:
    """Say what the intervals of a table rest on, and what would narrow them."""
    from orchestrator.report.statistics.intervals import narrowed_by
    from orchestrator.report.statistics.resamples import NUM_RESAMPLES

    crossed = [one for one in estimates if one.num_seeds > 1]
    note = f"[95 % interval] by {NUM_RESAMPLES} paired resamples of the images"
    note += ", crossed with the seeds (Obuchowski and Rockette 1995)." if crossed else "."
    if len(crossed) < len(estimates):
        note += f" How far another seed would move it is not in it{', where there is but one' if crossed else ''}."
    known = [one for one in crossed if one.dominant]
    seeds, images = sum(one.variance_seeds for one in known), sum(one.variance_images for one in known)
    if known:
        share = round(100 * seeds / (seeds + images))
        parts, more = {"seeds": share, "images": 100 - share}, narrowed_by(known)
        most, least = ("seeds", "images") if share >= 50 else ("images", "seeds")
        note += (
            f" {most.capitalize()} make {parts[most]} % of the variance of these differences, {least} {parts[least]} %"
        )
        note += f": more {more} narrow them." if more == most else f", and yet more {more} narrow them most."
    return note


def _numbers(
    result: RowResult, metrics: Sequence[str], paper: PaperBeside, best: Mapping[str, RowResult | None]
) -> list[Cell | Value]:
    cells: list[Cell | Value] = []
    for metric in metrics:
        ours, theirs = measured_cell(result, metric, is_best=result is best[metric]), result.row.paper.get(metric)
        cells.append(ours)
        if metric in paper.metrics:
            cells.append(theirs)
            if paper.has_differences:
                cells.append(to_paper(result, metric))
    return cells


def measured_cell(result: RowResult, metric: str, *, is_best: bool = False) -> Cell:
    """Show the mean of a row and its spread, with no more digits than the spread leaves of a meaning."""
    # A row that was scored lacks a number only where its data set has nothing to measure it on, or where it was scored
    # before that was measured.
    is_known = any(metric not in CALIBRATION or is_calibrated(numbers) for numbers in result.by_seed.values())
    absent = NOT_APPLICABLE if is_known else Cell(None).absent
    spread = result.std(metric)
    return Cell(result.mean(metric), spread=spread, bold=is_best, absent=absent, digits=digits_beside(spread))


def to_paper(result: RowResult, metric: str) -> Cell:
    """Return how far a row is above the paper's number; nothing where it is measured on other data."""
    ours, theirs = result.mean(metric), result.row.paper.get(metric)
    if ours is None or theirs is None or data_of(result.row) != PAPERS_DATA:
        return Cell(None)
    return Cell(ours - theirs, digits=digits_beside(result.std(metric)))


def digits_beside(spread: float | None) -> int | None:
    """Return the decimals of a number with this standard deviation; None for as many as its column has, one.

    The Particle Data Group's rule: two digits of a spread that begins with 10 to 35, one of others. The paper prints
    one decimal, so a smaller spread than 0.355 adds none.
    """
    return 0 if spread is not None and spread >= 3.55 else None


def _quoted(line: Cited, columns: Sequence[Column]) -> list[Cell | Value]:
    """Show a line that is only cited: the paper's numbers, and none of ours."""
    cells: list[Cell | Value] = [line.label]
    for column in columns[1:]:
        metric, is_papers = column.under, column.name.endswith(f", {PAPER}")
        number = line.paper.get(metric) if is_papers else None
        cells.append(Cell(number, mark=PUBLISHED) if is_papers and metric in line.published else number)
    return cells


def _gains(results: Sequence[RowResult], experiment: Experiment) -> list[Cell]:
    """Return how far each row is above its reference, in the first column's metric."""
    named = Cell(None, absent="reference")
    return [
        named if base is None else _gain(result, base, experiment.columns[0])
        for result, base in with_references(experiment, results)
    ]


def papers_gains(experiment: Experiment) -> list[float | None]:
    """Return how far the paper's number of each row is above its number of that row's reference."""
    papers: dict[str | None, float | None] = {
        row.label: row.paper.get(experiment.columns[0]) for row in experiment.rows
    }
    gains = []
    for row in experiment.rows:
        theirs, base = papers[row.label], papers.get(experiment.reference_of(row))
        # Of numbers with one decimal the difference has one, too; the binary one has a tail.
        gains.append(None if theirs is None or base is None else round(theirs - base, 6))
    return gains


def _gain(result: RowResult, base: RowResult, metric: str) -> Cell:
    gain = result.difference(base, metric)
    if gain is None:
        return Cell(result.gap(base, metric))
    interval = (gain.low, gain.high)
    return Cell(gain.value, interval=interval, mark=marks_of(interval, gain.num_with_objects))


def _notes_on_gains(
    experiment: Experiment, results: Sequence[RowResult], gains: Sequence[Cell], is_resampled: bool
) -> list[str]:
    notes, pairs = [], with_references(experiment, results)
    if any(gain.interval for gain in gains):
        found = [result.difference(base, experiment.columns[0]) for result, base in pairs if base is not None]
        known = any(result.knows_images(experiment.columns[0]) for result in results)
        notes.append(interval_note([one for one in found if one is not None]) if known else SEEDS_ALONE)
        notes += notes_on_marks("".join(gain.mark for gain in gains))
    if gains and any(result.num_with_objects == 1 for result in results):
        notes.append("No interval, as only one image has an object.")
    moved = [result.row.label for result, gain in zip(results, gains, strict=False) if _is_outside(gain)]
    if moved:
        notes.append(f"Seeds since the look that decided it moved the mean out of the interval: {', '.join(moved)}.")
    apart = [result.row.label for result, base in pairs if base is not None and not result.is_on_images_of(base)]
    if apart:
        notes.append(f"Measured on other images than the reference, and not compared: {', '.join(apart)}.")
    old = [result.row.label for result in results if len(result.resampled) < len(result.by_seed)]
    if gains and is_resampled and old:
        notes.append(f"No interval, for want of matches: {', '.join(old)}.")
    return notes


def _is_outside(gain: Cell) -> bool:
    if gain.interval is None or not isinstance(gain.value, float):
        return False
    low, high = gain.interval
    return not low <= gain.value <= high


def _notes_on_best(
    results: Sequence[RowResult], metrics: Sequence[str], best: Mapping[str, RowResult | None]
) -> list[str]:
    if sum(bool(result.by_seed) for result in results) < 2:
        return []
    rule = "above each other row by a 95 % interval that excludes 0"
    if any(best.values()):
        return [f"In bold: {rule}."]
    asked = any(result.estimate(metric) for result in results for metric in metrics)
    return [
        f"Nothing is in bold: no row is {rule}." if asked else "Nothing is in bold: no interval tells which is best."
    ]


def _notes_on_calibration(results: Sequence[RowResult], metrics: Sequence[str]) -> list[str]:
    """Say which columns want to be small, and which rows were scored before there were such."""
    shown = [metric for metric in metrics if metric in CALIBRATION]
    if not shown:
        return []
    less = f"less is better{', and so is a negative difference' if shown[0] == metrics[0] else ''}"
    notes = [f"{', '.join(shown)}: {less}; none is in bold, as no resample tells what other images would do."]
    old = [one.row.label for one in results if one.by_seed and not all(map(is_calibrated, one.by_seed.values()))]
    if old:
        notes.append(
            f"Scored before {shown[0]} was measured: {', '.join(old)}. To measure it, delete their evaluations in "
            "MLflow and submit again; nothing is trained for it."
        )
    return notes


def _notes(experiment: Experiment, paper: PaperBeside, results: Sequence[RowResult]) -> list[str]:
    notes, is_begun = [], any(result.by_seed for result in results)
    for seeds in dict.fromkeys(row.seeds for row in experiment.rows):
        listed = ", ".join(map(str, seeds))
        notes.append(f"One seed: {listed}." if len(seeds) == 1 else f"Mean ± std over {len(seeds)} seeds: {listed}.")
    ours = measured_on(results)
    if paper.metrics and ours != [PAPERS_DATA]:
        theirs, to_them = ("published", "them") if paper.is_of_others else ("paper", "the paper")
        notes.append(f"{theirs}: {PAPERS_DATA}, ours: {'; '.join(ours)}.")
        notes.append(f"Numbers of different data have no common level: no difference to {to_them} is formed of them.")
    else:
        measured = "Measured" if is_begun or not paper.metrics else "Ours: to be measured"
        notes.append(f"{measured} on {'; '.join(ours)}.")
    if experiment.reference is not None:
        notes.append(f"Reference: {experiment.reference}.")
        for label in dict.fromkeys(row.reference for row in experiment.rows if row.reference):
            of = "; ".join(row.label for row in experiment.rows if row.reference == label)
            notes.append(f"Reference of {of}: {label}.")
    if experiment.seed_rule:
        pairs = with_references(experiment, results)
        nums = (len(result.by_seed.keys() & base.by_seed.keys()) for result, base in pairs if base is not None)
        notes.append(note_on_looks(experiment.seed_rule, max(nums, default=0)))
    notes += [f"Cited, not run: {line.label}, {line.source}." for line in experiment.cited]
    for line in experiment.cited:
        listed = ", ".join(f"{metric} {number:.1f}" for metric, number in line.published.items())
        notes += [f"{PUBLISHED} {line.label}: its authors publish {listed}."] if listed else []
    return notes
