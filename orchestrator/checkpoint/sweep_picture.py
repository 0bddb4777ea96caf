"""The figures of a sweep as one picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checkpoint.sweep import Sweep
from orchestrator.checkpoint.sweep_report import SHOWN, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
