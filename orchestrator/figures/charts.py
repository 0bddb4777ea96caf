"""Figures of misalignment, by matplotlib: reliability; the paper's 1 and 2 of a scoring pass, 4 and 5 of formulas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from model.evaluation.calibration.errors import BINS as SCORE_BINS
from model.evaluation.calibration.errors import Reliability
from model.evaluation.misalignment import BINS, IOUS, SCORES, Misalignment
from orchestrator.figures.texts import printable

SUFFIXES = ("png", "svg")
DPI = 120
"""Of a PNG."""
COLOURS = "cividis"
"""Runs from dark blue to yellow, alike for every kind of colour vision, and in grey."""
ACCENT, SECOND, SOFT = "#d55e00", "#56b4e9", "#6b7178"
BEFORE, AFTER = "#0072b2", ACCENT
"""Of a stage of NMS, as in the paper's Figure 2."""
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    # Letters stay text, and ids are hashes with a fixed salt: by default matplotlib takes a random one.
    "svg.fonttype": "none",
    "svg.hashsalt": "retinanet-conf",
}
TENTHS = ("0.5 to 0.6", "0.6 to 0.7", "0.7 to 0.8", "0.8 to 0.9", "0.9 to 1")
FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FEW = 10
"""The mean score at an IoU is drawn only where there are at least so many boxes."""
MOST_NAMES = 60
"""More images than these have no room for their names."""
Counts = Mapping[str, Misalignment]
"""By the label of the head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """How many per cent of the boxes of each image meet a condition; NaN for an image without boxes."""

    images: Sequence[str]
    before: Sequence[float]
    """Of the boxes that enter NMS."""
    after: Sequence[float]
    """Of those that it keeps."""


def reliability_diagrams(bins: Mapping[str, Reliability], errors: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Draw what lies behind a score: mean IoU and precision above, detections below, a column for each head.

    Args:
        bins: by the label of the head.
        errors: the same heads' numbers, by the names of CALIBRATION.
    """
    edges = np.arange(SCORE_BINS) / SCORE_BINS
    most = max(10, *(int(one.counts.max()) for one in bins.values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 2.9 * len(bins), 4.4 if len(bins) > 1 else 4.8))
        axes = figure.subplots(2, len(bins), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
        for (ax, below), (label, one) in zip(axes.T, bins.items(), strict=True):
            ax.bar(edges, one.ious, 1 / SCORE_BINS, align="edge", color=SECOND, label="mean IoU, a false positive's 0")
            ax.plot(one.scores, one.precision, "o", color=ACCENT, markersize=3.5, label="precision at IoU 0.5")
            ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1.0, label="as the score says")
            said = "  ".join(
                f"{name} n/a" if (value := errors[label].get(name)) is None else f"{name} {value:.1f}"
                for name in ("LaECE", "D-ECE")
            )
            ax.set_title(printable(f"{label}\n{said}" if len(bins) > 1 else said), parse_math=False)
            ax.set(xlim=(0, 1), ylim=(0, 1), xticks=FIFTHS, yticks=FIFTHS)
            # Nine in ten detections have a score below 0.2. The limits come first: bins without any have no logarithm.
            below.set(ylim=(0.8, 2 * most), yscale="log", xlabel="score")
            below.bar(edges, one.counts, 1 / SCORE_BINS, align="edge", color=SOFT)
        axes[0, 0].set_ylabel("of the detections")
        axes[1, 0].set_ylabel("detections")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(bins) > 1 else 1)
    return figure


def score_against_iou(counts: Counts) -> Figure:
    """Figure 1: a density of scores and IoUs, before NMS above and after it below, a column for each head."""
    densities = [
        {label: one.density_before for label, one in counts.items()},
        {label: one.density_after for label, one in counts.items()},
    ]
    most = max((int(density.max(initial=1)) for row in densities for density in row.values()), default=1)
    # One scale for all panels, so that their shades can be compared.
    norm = LogNorm(1, max(most, 10))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 2.6 * len(counts), 5.2))
        axes = figure.subplots(2, len(counts), sharex=True, sharey=True, squeeze=False)
        for row, when in enumerate(("before", "after")):
            for ax, (label, density) in zip(axes[row], densities[row].items(), strict=True):
                _density(ax, density, norm)
                said = f"{when} NMS: {int(density.sum()):,} on objects"
                # A label such as "$5 or $6" is no formula.
                ax.set_title(printable(f"{label}\n{said}" if len(counts) > 1 else said), parse_math=False)
        for ax in axes[:, 0]:
            ax.set_ylabel("fused score")
        for ax in axes[1]:
            ax.set_xlabel("IoU with the object")
        bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, shrink=0.7, pad=0.02)
        bar.set_label("boxes in a cell")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def proportions(counts: Counts) -> Figure:
    """Figure 2: how boxes above 0.5 are spread over tenths of the class score and of the IoU, before and after NMS."""
    first = SCORES.index(IOUS[0])
    panels = {
        "a class score": [(one.scores_before[:, first:], one.scores_after[:, first:]) for one in counts.values()],
        "an IoU": [(one.ious_before, one.ious_after) for one in counts.values()],
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 1.5 + 0.75 * len(counts)))
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (what, pairs) in zip(axes, panels.items(), strict=True):
            for place, ((before, after), one) in enumerate(zip(pairs, counts.values(), strict=True)):
                _stack(ax, 2.4 * place, before, int(one.num_before.sum()))
                _stack(ax, 2.4 * place + 1, after, int(one.num_after.sum()))
            ax.set(title=f"boxes with {what} above 0.5", xlim=(0, 100), xlabel="per cent of them")
        labels = [f"{printable(label)}\n{when} NMS" for label in counts for when in ("before", "after")]
        axes[0].set_yticks([2.4 * place + k for place in range(len(counts)) for k in (0, 1)], labels, parse_math=False)
        axes[0].invert_yaxis()
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles[:5], names[:5], loc="outside lower center", ncols=5)
    return figure


def shares(panels: Mapping[str, Mapping[str, Shares]], papers: str) -> Figure:
    """Figure 2, image by image: what per cent of its boxes meet a condition before NMS, and after it.

    Args:
        panels: by condition, then by the label of the head; of each condition the same heads and images.
        papers: the label of the paper's numbers among them, which get marks and a ground of their own.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 5.8))
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (condition, groups) in zip(axes, panels.items(), strict=True):
            ticks = _image_by_image(ax, groups, papers)
            ax.set_ylabel(f"{condition}\nper cent of the boxes")
        if len(ticks) <= MOST_NAMES:
            axes[-1].set_xticks(list(ticks), [*ticks.values()], rotation=90, fontsize=7)
        else:
            axes[-1].set_xticks([])
        axes[-1].set_xlabel("image")
        key = (
            ("before NMS", "o", BEFORE, "white"),
            ("after NMS", "o", AFTER, AFTER),
            (f"diamonds: {papers}", "D", SOFT, SOFT),
        )
        handles = [
            Line2D([], [], linewidth=0, marker=mark, color=edge, markerfacecolor=face, label=said)
            for said, mark, edge, face in key
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def fused_scores(exponents: Sequence[float]) -> Figure:
    """Figure 4: the product p c, and the fused score p^(1-e) c^e of each exponent, over class score and confidence."""
    p, c = np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101))
    surfaces = {r"product  $p\,c$": p * c}
    surfaces |= {rf"power  $p^{{{1 - e:g}}}\,c^{{{e:g}}}$": p ** (1 - e) * c**e for e in exponents}
    levels = np.linspace(0, 1, 11)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 2.6 * len(surfaces), 3.0))
        axes = figure.subplots(1, len(surfaces), sharey=True, squeeze=False)[0]
        for ax, (title, surface) in zip(axes, surfaces.items(), strict=True):
            filled = ax.contourf(p, c, surface, levels, cmap=COLOURS)
            lines = ax.contour(p, c, surface, levels[1:-1], colors="white", linewidths=0.6)
            ax.clabel(lines, levels[5:-1:2], fontsize=7, fmt="%.1f")
            ax.set(title=title, xlabel="class score p", aspect="equal")
        axes[0].set_ylabel("object confidence c")
        figure.colorbar(filled, ax=axes, label="fused score", shrink=0.85, pad=0.02)
    return figure


def sigmoid(targets: Sequence[float] = (0.5, 0.7, 0.9)) -> Figure:
    """Figure 5: the sigmoid against the logit, and the logits at which cross entropy to an IoU target is least."""
    logits = np.linspace(-6, 6, 241)
    probability = 1 / (1 + np.exp(-logits))
    colours = matplotlib.colormaps[COLOURS](np.linspace(0.0, 0.8, len(targets)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.4))
        left, right = figure.subplots(1, 2)
        left.plot(logits, probability, color="black")
        for target, colour, mark in zip(targets, colours, "osD^v", strict=False):
            best = float(np.log(target / (1 - target)))
            left.plot([best, best, logits[0]], [0, target, target], color=colour, linestyle=":", linewidth=1.2)
            left.plot([best], [target], mark, color=colour)
            loss = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
            right.plot(logits, loss, color=colour, label=f"IoU {target:g}: least at logit {best:.2f}")
            right.plot([best], [-(target * np.log(target) + (1 - target) * np.log(1 - target))], mark, color=colour)
        left.set(xlabel="logit x", ylabel="sigmoid, 1 / (1 + exp(-x))", title="sigmoid", ylim=(0, 1), xlim=(-6, 6))
        right.set(xlabel="logit x", ylabel="cross entropy", title="cross entropy of the sigmoid to an IoU target")
        right.set(ylim=(0, None), xlim=(-6, 6))
        right.legend(loc="upper center")
    return figure


def save(figure: Figure, folder: Path, name: str, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Write a figure; the same figure gives the same bytes."""
    files = [folder / f"{name}.{suffix}" for suffix in suffixes]
    for file in files:
        # The style again, as fonttype and hashsalt are read when a file is written.
        with matplotlib.rc_context(STYLE):
            if file.suffix == ".png":
                _save_png(figure, file)
            else:
                figure.savefig(file, metadata={"Date": None})  # a date would differ every time
    return files


def _save_png(figure: Figure, file: Path) -> None:
    """Write what savefig would, pixel by pixel; it draws a figure twice, as the first time lays it out."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).save(file, compress_level=1)


def _density(ax: Axes, density: NDArray[np.int64], norm: LogNorm) -> None:
    """Draw cells [score, IoU], and the mean score of each column."""
    shown = np.ma.masked_equal(density, 0)
    ax.imshow(shown, cmap=COLOURS, norm=norm, origin="lower", extent=(0, 1, 0, 1), interpolation="nearest")
    ax.plot([0, 1], [0, 1], color=SECOND, linestyle="--", linewidth=1.2, label="score = IoU")
    middles = (np.arange(BINS) + 0.5) / BINS
    boxes = density.sum(axis=0)
    mean = np.divide(middles @ density, boxes, out=np.full(BINS, np.nan), where=boxes >= FEW)
    ax.plot(middles, mean, color=ACCENT, linewidth=1.5, label="mean score at this IoU")
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=FIFTHS, yticks=FIFTHS)


def _image_by_image(ax: Axes, groups: Mapping[str, Shares], papers: str) -> dict[float, str]:
    """Draw each image as a stem from its share before NMS to that after it; return the images' names by place."""
    ticks: dict[float, str] = {}
    start = 0.0
    for label, one in groups.items():
        xs = start + np.arange(len(one.images))
        before, after = np.array(one.before, float), np.array(one.after, float)
        mark, size = ("D", 4.0) if label == papers else ("o", 4.5)
        if label == papers:
            ax.axvspan(xs[0] - 0.75, xs[-1] + 0.75, color=SOFT, alpha=0.1, linewidth=0)
        ax.vlines(xs, before, after, color=SOFT, linewidth=1.0, zorder=1)
        ax.plot(xs, before, mark, color=BEFORE, markerfacecolor="white", markersize=size, clip_on=False)
        ax.plot(xs, after, mark, color=AFTER, markersize=size, clip_on=False)
        changes = (after - before)[np.isfinite(after - before)]
        said = f"{label}\n{changes.mean():+.1f} points on average" if len(changes) else label
        middle, above = xs.mean(), ax.get_xaxis_transform()
        ax.text(middle, 1.02, printable(said), transform=above, ha="center", va="bottom", fontsize=8, parse_math=False)
        ticks |= dict(zip(xs.tolist(), one.images, strict=True))
        start = float(xs[-1]) + 2.5
    ax.set(ylim=(0, None), xlim=(-1, start - 1.5))
    ax.grid(axis="y", color=SOFT, alpha=0.2, linewidth=0.6)
    return ticks


def _stack(ax: Axes, y: float, above: NDArray[np.int32], num_boxes: int) -> None:
    """Draw a bar of five parts from counts above 0.5 ... 0.9 of each image."""
    counted = above.sum(axis=0, dtype=np.int64)
    # What is above 0.6 is above 0.5 as well: the differences are the tenths.
    parts = counted - np.append(counted[1:], 0)
    shares = 100 * parts / max(1, int(counted[0]))
    starts = np.cumsum(shares) - shares
    colours = matplotlib.colormaps[COLOURS](np.linspace(0.0, 1.0, len(TENTHS)))
    for place, (label, start, share) in enumerate(zip(TENTHS, starts, shares, strict=True)):
        ax.barh(y, share, left=start, color=colours[place], edgecolor="white", linewidth=0.8, label=label)
        # A narrower part has no room for its number.
        if share >= 6:
            ink = "white" if place < 3 else "black"
            ax.text(start + share / 2, y, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    said = f"{int(counted[0]):,} of {num_boxes:,}"
    ax.text(101, y, said, ha="left", va="center", fontsize=7.5, color=SOFT, clip_on=False)
