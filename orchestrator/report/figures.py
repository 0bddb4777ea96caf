"""Figures of results tables: a dot for each row, and curves against a setting that varies."""

from collections.abc import Sequence
from numbers import Real

from model.settings import to_dict
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import train_key
from orchestrator.figures.svg import WIDTH, curve_plot, place, span, svg, text, ticks
from orchestrator.report.results import Measured

CURVES = ("AP", "AP50", "AP75")


def figures(experiment: Experiment, rows: Sequence[Measured]) -> str:
    """Draw what a table shows: a dot for each row, and curves where it varies one numeric setting of the scoring."""
    return dot_plot(experiment, rows) + "".join(curve_plots(experiment, rows))


def dot_plot(experiment: Experiment, rows: Sequence[Measured]) -> str:
    """Draw the first column's metric of each row, its 95 % interval, and a line through the reference row."""
    metric = experiment.columns[0]
    means = {row.row.label: mean for row in rows if (mean := row.mean(metric)) is not None}
    if not means:
        return ""
    estimates = {row.row.label: row.estimate(metric) for row in rows}
    ends = [end for e in estimates.values() if e for end in (e.low, e.high)]
    low, high = span([*means.values(), *ends])
    lines = [text(0, 12, f"{metric}, and its 95 % interval by image" if ends else metric, "soft")]
    bottom = 20 + 34 * len(rows)
    reference = means.get(experiment.reference or "")
    if reference is not None:
        x = place(reference, low, high)
        lines.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        y, label = 32 + 34 * number, row.row.label
        mean, estimate = means.get(label), estimates[label]
        shown = "not run" if mean is None else f"{mean:.1f}"
        lines += [text(0, y, label), text(WIDTH, y, shown, "soft", "end")]
        if estimate is not None:
            ends_x = [place(end, low, high) for end in (estimate.low, estimate.high)]
            lines.append(f'<line x1="{ends_x[0]:.1f}" x2="{ends_x[1]:.1f}" y1="{y + 10}" y2="{y + 10}"/>')
        if mean is not None:
            kind = ' class="hollow"' if label == experiment.reference else ""
            lines.append(f'<circle{kind} cx="{place(mean, low, high):.1f}" cy="{y + 10}" r="4"/>')
    lines.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    lines += [text(place(tick, low, high), bottom + 14, f"{tick:g}", "soft", "middle") for tick in ticks(low, high)]
    return svg(bottom + 20, f"{metric} of each row: {experiment.title}", lines)


def curve_plots(experiment: Experiment, rows: Sequence[Measured]) -> list[str]:
    """Draw AP, AP50 and AP75 against the one numeric setting of the scoring that varies, a line for each training."""
    setting = _varied_number(rows)
    if setting is None:
        return []
    curves: dict[str, list[Measured]] = {}
    for row in rows:
        curves.setdefault(train_key(row.row.train), []).append(row)
    curves = {_common_label(of_one): of_one for of_one in curves.values()}
    drawn = []
    for metric in CURVES:
        points = {
            label: [(_number(row, setting), mean) for row in of_one if (mean := row.mean(metric)) is not None]
            for label, of_one in curves.items()
        }
        if any(points.values()):
            drawn.append(curve_plot(metric, setting.replace("_", " "), points, experiment.title))
    return drawn


def _varied_number(rows: Sequence[Measured]) -> str | None:
    """Return the one setting of the scoring that varies, if it is a number and some training has three values of it."""
    settings = [to_dict(row.row.inference) for row in rows]
    varied = [name for name in (settings[0] if settings else ()) if len({one[name] for one in settings}) > 1]
    trainings = [train_key(row.row.train) for row in rows]
    if len(varied) != 1 or max(map(trainings.count, trainings)) < 3:
        return None
    values = [one[varied[0]] for one in settings]
    return varied[0] if all(isinstance(value, Real) and not isinstance(value, bool) for value in values) else None


def _number(row: Measured, setting: str) -> float:
    return float(to_dict(row.row.inference)[setting])


def _common_label(rows: Sequence[Measured]) -> str:
    words = [row.row.label.split() for row in rows]
    common = [first for first, *others in zip(*words, strict=False) if all(other == first for other in others)]
    return " ".join(common).rstrip(",;:") or rows[0].row.label
