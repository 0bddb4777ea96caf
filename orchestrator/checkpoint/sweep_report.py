"""What `rnc sweep` writes: a table, a page with its curves or heat maps, and the same drawings as one picture."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.config import CALIBRATION, METRICS
from orchestrator.checkpoint.sweep import Spot, Sweep
from orchestrator.errors import UserError
from orchestrator.figures.drawing import Drawing, small_multiples, write_png
from orchestrator.figures.page import html_page
from orchestrator.figures.plots import curve_plot, heat_map
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Group, Table
from orchestrator.report.files import every_format


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """How a metric is shown."""

    name: str
    digits: int = 1
    best: Callable[[Iterable[float]], float] = max
    """Takes the best of several values."""
    heading: str = ""
    """What stands above its column; empty for its name."""

    @property
    def title(self) -> str:
        """What a figure calls it, with the arrow of a metric of which less is better."""
        return f"{self.name} ↓" if self.best is min else self.name


SHOWN: Mapping[str, Shown] = (
    {name: Shown(name=name) for name in METRICS}
    | {name: Shown(name=name, best=min) for name in CALIBRATION}
    | {
        "rank_correlation": Shown(name="rank corr.", digits=3),
        "ece": Shown(name="ECE", best=min),
        # Without its "AP", exponents and all columns take 120 characters, which a table in a file has.
        "oracle_AP": Shown(name="oracle AP", heading="oracle"),
    }
)
"""The metrics of a sweep, in the order of its columns."""
FOR_PROGRAMS = ("LaACE", "D-ECE", "LRP")
"""Those that JSON and pandas have, and no figure: with them the table would be wider than a screen."""
FEW = 4
"""So many of the settings with the highest AP are named in the note."""


def sweep_table(sweep: Sweep) -> Table:
    """Show a line for each setting, the best of each column in bold, and the paper's numbers where it gives them.

    People see it without FOR_PROGRAMS, and the first of two settings as a heading above its lines.
    """
    compact = _table(sweep, [metric for metric in SHOWN if metric not in FOR_PROGRAMS])
    return replace(_table(sweep, list(SHOWN)), compact=_headed(sweep, compact) if len(sweep.axes) == 2 else compact)


def sweep_drawings(sweep: Sweep) -> list[Drawing]:
    """Draw each metric that was measured: a curve against a number that varies, or a heat map against names or two."""
    metrics = [metric for metric in SHOWN if metric not in FOR_PROGRAMS and measured(sweep, metric)]
    is_curve = len(sweep.axes) == 1 and sweep.axes[0].is_ordered
    return [(_curve if is_curve else _heat_map)(sweep, metric) for metric in metrics]


def sweep_page(sweep: Sweep) -> str:
    """Table and figures on a page that needs nothing else."""
    return html_page(sweep.title, [sweep_table(sweep)], [small_multiples(sweep_drawings(sweep))])


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the table in every format, a page with the figures, and the figures as a picture.

    Raises:
        UserError: they cannot be written there.
    """
    files = every_format("sweep", sweep_table(sweep)) | {"index.html": sweep_page(sweep)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_png(sweep_drawings(sweep), sweep.title, folder / "sweep.png")
    except OSError as error:
        raise UserError(f"--output: cannot write to {folder} ({error.strerror}); name another folder") from error


def measured(sweep: Sweep, metric: str) -> list[tuple[Spot, float]]:
    """The settings that have a number, with it."""
    return [(spot, value) for spot in sweep.spots if (value := spot.metrics.get(metric)) is not None]


def _table(sweep: Sweep, metrics: Sequence[str]) -> Table:
    in_paper = [metric for metric in metrics if any(metric in spot.paper for spot in sweep.spots)]
    best = {metric: _best(sweep, metric) for metric in metrics}
    columns = [Column(axis.label, digits=axis.digits, numeric=axis.is_ordered) for axis in sweep.axes]
    for metric in metrics:
        shown = SHOWN[metric]
        columns.append(Column(shown.name, digits=shown.digits, heading=shown.heading))
        if metric in in_paper:
            columns.append(Column(f"{shown.name}, paper", digits=shown.digits, under=shown.name, detail="paper"))
    lowest = [SHOWN[metric].name for metric in metrics if SHOWN[metric].best is min]
    return Table(
        title=sweep.title,
        columns=tuple(columns),
        rows=tuple((*spot.values, *_cells(spot, in_paper, best)) for spot in sweep.spots),
        rules_before=tuple(_first_of_groups(sweep)),
        notes=(
            *_best_settings(sweep, best),
            f"{', '.join(lowest)}: less is better (in figures: ↓).",
            *sweep.notes,
        ),
    )


def _headed(sweep: Sweep, table: Table) -> Table:
    """Let the values of the first setting stand above their lines, as two settings beside all metrics are too wide."""
    axis = sweep.axes[0]
    firsts = _first_of_groups(sweep)
    return replace(
        table,
        columns=table.columns[1:],
        rows=tuple(row[1:] for row in table.rows),
        rules_before=(),
        groups=tuple(Group(place, f"{axis.label} {axis.shown(sweep.spots[place].values[0])}") for place in firsts),
    )


def _cells(spot: Spot, in_paper: list[str], best: Mapping[str, float | None]) -> list[Cell]:
    cells = []
    for metric in best:
        value = spot.metrics.get(metric)
        cells.append(Cell(value, bold=_is_best(spot, metric, best), absent=NOT_APPLICABLE))
        if metric in in_paper:
            cells.append(Cell(spot.paper.get(metric)))
    return cells


def _best(sweep: Sweep, metric: str) -> float | None:
    """The best value as it is shown, so that lines that look equal are bold together."""
    values = [round(value, SHOWN[metric].digits) for _, value in measured(sweep, metric)]
    return SHOWN[metric].best(values) if values else None


def _best_settings(sweep: Sweep, best: Mapping[str, float | None]) -> list[str]:
    """Say in a note, as text shows nothing in bold, where AP is highest."""
    if best["AP"] is None:
        return []
    found = [place for place, spot in enumerate(sweep.spots) if _is_best(spot, "AP", best)]
    said = [_words(sweep, first, last) for first, last in _runs(sweep, found)]
    more = f" and {len(said) - FEW} more" if len(said) > FEW else ""
    return [f"Highest AP, {best['AP']:.1f}: {'; '.join(said[:FEW])}{more}."]


def _is_best(spot: Spot, metric: str, best: Mapping[str, float | None]) -> bool:
    value = spot.metrics.get(metric)
    return value is not None and round(value, SHOWN[metric].digits) == best[metric]


def _runs(sweep: Sweep, places: list[int]) -> list[tuple[int, int]]:
    """The first and last of neighbours; in a grid, of those in which only the last setting differs; no name has any."""
    wide = len(sweep.axes[-1].values) if sweep.axes[-1].is_ordered else 1
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1 and place % wide:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs


def _words(sweep: Sweep, first: int, last: int) -> str:
    words = []
    for axis, low, high in zip(sweep.axes, sweep.spots[first].values, sweep.spots[last].values, strict=True):
        upto = f" to {axis.shown(high)}" if high != low else ""
        words.append(f"{axis.label} {axis.shown(low)}{upto}")
    return ", ".join(words)


def _first_of_groups(sweep: Sweep) -> list[int]:
    """The lines at which the first of two settings changes."""
    if len(sweep.axes) == 1:
        return []
    return list(range(0, len(sweep.spots), len(sweep.axes[1].values)))


def _curve(sweep: Sweep, metric: str) -> Drawing:
    ours = [(float(spot.values[0]), value) for spot, value in measured(sweep, metric)]
    papers = [(float(spot.values[0]), spot.paper[metric]) for spot in sweep.spots if metric in spot.paper]
    curves = {"here": ours, "paper": papers} if papers else {"": ours}
    return curve_plot(SHOWN[metric].title, sweep.axes[0].label, curves, sweep.title)


def _heat_map(sweep: Sweep, metric: str) -> Drawing:
    values = [spot.metrics.get(metric) for spot in sweep.spots]
    down, *others = ((axis.label, [axis.shown(value) for value in axis.values]) for axis in sweep.axes)
    across = others[0] if others else ("", [""])
    wide = len(across[1])
    rows = [values[start : start + wide] for start in range(0, len(values), wide)]
    return heat_map(SHOWN[metric].title, across, down, rows)
