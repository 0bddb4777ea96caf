"""A sweep as a table, and as a page with its curves or grids."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import METRICS
from orchestrator.checkpoint.sweep import Spot, Sweep
from orchestrator.errors import UserError
from orchestrator.figures.page import html_page, render
from orchestrator.figures.svg import curve_plot, heat_map
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table
from orchestrator.report.files import SUFFIXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """How a metric is shown."""

    name: str
    digits: int = 1
    best: Callable[[Iterable[float]], float] = max
    """Of several values."""


SHOWN: Mapping[str, Shown] = {name: Shown(name=name) for name in METRICS} | {
    "rank_correlation": Shown(name="rank corr.", digits=3),
    "ece": Shown(name="ECE", best=min),
    "oracle_AP": Shown(name="oracle AP"),
}
"""The metrics of a sweep, in the order of its columns."""
FEW = 4
"""Of the best settings, as many are named."""


def sweep_table(sweep: Sweep) -> Table:
    """Show a line for each setting, the best of each column in bold, and the paper's numbers where it gives them."""
    in_paper = [metric for metric in SHOWN if any(metric in spot.paper for spot in sweep.spots)]
    best = {metric: _best(sweep, metric) for metric in SHOWN}
    columns = [Column(axis.label, digits=axis.digits) for axis in sweep.axes]
    for metric, shown in SHOWN.items():
        columns.append(Column(shown.name, digits=shown.digits))
        if metric in in_paper:
            columns.append(Column(f"{shown.name}, paper", digits=shown.digits, under=shown.name, detail="paper"))
    return Table(
        title=sweep.title,
        columns=tuple(columns),
        rows=tuple((*spot.values, *_cells(spot, in_paper, best)) for spot in sweep.spots),
        rules_before=tuple(_first_of_groups(sweep)),
        notes=(*_best_settings(sweep, best), *sweep.notes),
    )


def sweep_figures(sweep: Sweep) -> str:
    """Draw each metric: a curve against the setting that varies, or a heat map against the two that do."""
    drawn = (_curve(sweep, metric) if len(sweep.axes) == 1 else _heat_map(sweep, metric) for metric in SHOWN)
    figures = "".join(drawn)
    return f'<div class="multiples">{figures}</div>' if figures else ""


def sweep_page(sweep: Sweep) -> str:
    """Table and figures on a page that needs nothing else."""
    return html_page(sweep.title, [sweep_table(sweep)], [sweep_figures(sweep)])


def measured(sweep: Sweep, metric: str) -> list[tuple[Spot, float]]:
    """The settings that have a number, with it."""
    return [(spot, value) for spot in sweep.spots if (value := spot.metrics.get(metric)) is not None]


def _cells(spot: Spot, in_paper: list[str], best: Mapping[str, float | None]) -> list[Cell]:
    cells = []
    for metric in SHOWN:
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
    """The first and last of neighbours; in a grid, of those in which only the last setting differs."""
    wide = len(sweep.axes[-1].values)
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
        upto = f" to {high:.{axis.digits}f}" if high > low else ""
        words.append(f"{axis.label} {low:.{axis.digits}f}{upto}")
    return ", ".join(words)


def _first_of_groups(sweep: Sweep) -> list[int]:
    """The lines at which the first of two settings changes."""
    if len(sweep.axes) == 1:
        return []
    return list(range(0, len(sweep.spots), len(sweep.axes[1].values)))


def _curve(sweep: Sweep, metric: str) -> str:
    ours = [(spot.values[0], value) for spot, value in measured(sweep, metric)]
    papers = [(spot.values[0], spot.paper[metric]) for spot in sweep.spots if metric in spot.paper]
    if not ours:
        return ""
    curves = {"here": ours, "paper": papers} if papers else {"": ours}
    return curve_plot(SHOWN[metric].name, sweep.axes[0].label, curves, sweep.title)


def _heat_map(sweep: Sweep, metric: str) -> str:
    values = [spot.metrics.get(metric) for spot in sweep.spots]
    if not any(value is not None for value in values):
        return ""
    down, across = ((axis.label, [f"{value:.{axis.digits}f}" for value in axis.values]) for axis in sweep.axes)
    wide = len(across[1])
    rows = [values[start : start + wide] for start in range(0, len(values), wide)]
    return heat_map(SHOWN[metric].name, across, down, rows)


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the table in every format, a page with the figures, and the figures as a picture.

    Raises:
        UserError: they cannot be written there.
    """
    table = sweep_table(sweep)
    files = {f"sweep.{suffix}": render(table, form) + "\n" for form, suffix in SUFFIXES.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (files | {"index.html": sweep_page(sweep)}).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_picture(sweep, folder / "sweep.png")
    except OSError as error:
        raise UserError(f"--output: cannot write to {folder} ({error.strerror}); name another folder") from error


ACROSS = 4
"""Panels side by side."""


def write_picture(sweep: Sweep, file: Path) -> None:
    """Draw a panel for each metric that was measured; nothing is written where none was."""
    from matplotlib.figure import Figure

    metrics = [metric for metric in SHOWN if measured(sweep, metric)]
    if not metrics:
        return
    is_grid = len(sweep.axes) == 2
    down = math.ceil(len(metrics) / ACROSS)
    figure = Figure(figsize=(3.4 * ACROSS, (3.0 if is_grid else 2.5) * down + 0.6), dpi=130, layout="constrained")
    panels = figure.subplots(down, ACROSS, squeeze=False).flatten()
    for panel, metric in zip(panels, metrics, strict=False):
        (_draw_grid if is_grid else _draw_curve)(panel, sweep, metric)
        panel.set_title(SHOWN[metric].name, fontsize=10)
        panel.tick_params(labelsize=8)
    for panel in panels[len(metrics) :]:
        panel.set_visible(False)
    figure.suptitle(sweep.title, fontsize=11)
    figure.savefig(file)


def _draw_curve(panel: "Axes", sweep: Sweep, metric: str) -> None:
    axis = sweep.axes[0]
    ours = [(spot.values[0], value) for spot, value in measured(sweep, metric)]
    papers = [(spot.values[0], spot.paper[metric]) for spot in sweep.spots if metric in spot.paper]
    panel.plot(*zip(*ours, strict=True), color="#1f5a99", marker="o", markersize=3, linewidth=1.4, label="here")
    if papers:
        panel.plot(*zip(*papers, strict=True), color="#c4501b", marker="s", markersize=3, linestyle="--", label="paper")
        panel.legend(fontsize=8, frameon=False)
    panel.set_xlabel(axis.label, fontsize=8)
    panel.grid(visible=True, color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_grid(panel: "Axes", sweep: Sweep, metric: str) -> None:
    down, across = sweep.axes
    wide = len(across.values)
    values = [math.nan if (value := spot.metrics.get(metric)) is None else value for spot in sweep.spots]
    rows = [values[start : start + wide] for start in range(0, len(values), wide)]
    image = panel.imshow(rows, aspect="auto", cmap="viridis")
    for axis, set_ticks in ((across, panel.set_xticks), (down, panel.set_yticks)):
        shown = range(0, len(axis.values), math.ceil(len(axis.values) / 8))
        set_ticks(list(shown), [f"{axis.values[place]:.{axis.digits}f}" for place in shown])
    panel.set_xlabel(across.label, fontsize=8)
    panel.set_ylabel(down.label, fontsize=8)
    figure = panel.figure
    figure.colorbar(image, ax=panel).ax.tick_params(labelsize=8)
