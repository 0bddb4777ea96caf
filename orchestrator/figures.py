"""Figures of results tables as SVG, which takes its colours from the page around it."""

from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real

from orchestrator.experiment import Experiment
from orchestrator.keys import train_key
from orchestrator.measured import Measured
from orchestrator.settings import to_dict

WIDTH = 360
"""As wide as a phone, so that its letters are as large there as the page's."""
MARGIN = 14
CURVES = ("AP", "AP50", "AP75")
DASHES = ("", "6 4", "2 3", "8 3 2 3")


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
    low, high = _span([*means.values(), *ends])
    lines = [_text(0, 12, f"{metric}, and its 95 % interval by image" if ends else metric, "soft")]
    bottom = 20 + 34 * len(rows)
    reference = means.get(experiment.reference or "")
    if reference is not None:
        x = _place(reference, low, high)
        lines.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{bottom}"/>')
    for place, row in enumerate(rows):
        y, label = 32 + 34 * place, row.row.label
        mean, estimate = means.get(label), estimates[label]
        shown = "not run" if mean is None else f"{mean:.1f}"
        lines += [_text(0, y, label), _text(WIDTH, y, shown, "soft", "end")]
        if estimate is not None:
            ends_x = [_place(end, low, high) for end in (estimate.low, estimate.high)]
            lines.append(f'<line x1="{ends_x[0]:.1f}" x2="{ends_x[1]:.1f}" y1="{y + 10}" y2="{y + 10}"/>')
        if mean is not None:
            kind = ' class="hollow"' if label == experiment.reference else ""
            lines.append(f'<circle{kind} cx="{_place(mean, low, high):.1f}" cy="{y + 10}" r="4"/>')
    lines.append(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"/>')
    lines += [_text(_place(tick, low, high), bottom + 14, f"{tick:g}", "soft", "middle") for tick in _ticks(low, high)]
    return _svg(bottom + 20, f"{metric} of each row: {experiment.title}", lines)


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
            drawn.append(_curve_plot(metric, setting, points, experiment.title))
    return drawn


def _curve_plot(metric: str, setting: str, curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    xs, ys = ([point[axis] for points in curves.values() for point in points] for axis in (0, 1))
    (left, right), (low, high) = _span(xs, 0.0), _span(ys)
    top, bottom = 22 + 16 * len(curves), 170 + 16 * len(curves)
    lines = [_text(0, 12, f"{metric} against {setting.replace('_', ' ')}", "soft")]
    for tick in _ticks(low, high):
        y = bottom - (tick - low) / (high - low) * (bottom - top)
        lines.append(f'<line class="grid" x1="34" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(28, y + 4, f"{tick:g}", "soft", "end"))
    for x in sorted(set(xs)):
        lines.append(_text(_x(x, left, right), bottom + 16, f"{x:g}", "soft", "middle"))
    for place, (label, points) in enumerate(curves.items()):
        dash = f' stroke-dasharray="{DASHES[place % len(DASHES)]}"'
        y = 28 + 16 * place
        lines += [f'<line x1="34" x2="60" y1="{y - 4}" y2="{y - 4}"{dash}/>', _text(66, y, label)]
        at = [
            (_x(x, left, right), bottom - (value - low) / (high - low) * (bottom - top)) for x, value in sorted(points)
        ]
        lines.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"{dash}/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in at]
    return _svg(bottom + 24, f"{metric} against {setting}: {title}", lines)


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


def _span(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    wide = (high - low) or 1.0
    return low - room * wide, high + room * wide


def _ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers in between."""
    steps = (digit * 10.0**power for power in range(6, -9, -1) for digit in (5, 2, 1))
    step = next(step for step in steps if (high - low) / step >= 3)
    first = int(low // step) + 1
    return [round(first * step + place * step, 10) for place in range(int((high - first * step) // step) + 1)]


def _place(value: float, low: float, high: float) -> float:
    return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)


def _x(value: float, left: float, right: float) -> float:
    return 44 + (value - left) / (right - left) * (WIDTH - 58)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, title: str, lines: Sequence[str]) -> str:
    said = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{said}">{"".join(lines)}</svg>'
