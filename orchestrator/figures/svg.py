"""Plots as SVG that take their colours from the page around them: curves, heat maps, and what they are drawn with."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 360
"""As wide as a phone, so that its letters are as large there as the page's."""
MARGIN = 14
DASHES = ("", "6 4", "2 3", "8 3 2 3")
LETTER = 6.5
"""About as wide as a digit."""
Point = tuple[float, float]


def curve_plot(metric: str, setting: str, curves: Mapping[str, Sequence[Point]], title: str) -> str:
    """Draw a metric against a setting, a line for each label; a single curve needs none."""
    xs, ys = ([point[axis] for points in curves.values() for point in points] for axis in (0, 1))
    (left, right), (low, high) = span(xs, 0.0), span(ys)
    num_labels = sum(bool(label) for label in curves)
    top, bottom = 22 + 16 * num_labels, 170 + 16 * num_labels
    lines = [text(0, 12, f"{metric} against {setting}", "soft")]
    for tick in ticks(low, high):
        y = bottom - (tick - low) / (high - low) * (bottom - top)
        lines.append(f'<line class="grid" x1="34" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(text(28, y + 4, f"{tick:g}", "soft", "end"))
    shown = [(f"{x:g}", _x(x, left, right)) for x in sorted(set(xs))]
    for name, x in shown[:: _every([name for name, _ in shown], WIDTH - 58)]:
        lines.append(text(x, bottom + 16, name, "soft", "middle"))
    for place, (label, points) in enumerate(curves.items()):
        dash = f' stroke-dasharray="{DASHES[place % len(DASHES)]}"'
        if label:
            y = 28 + 16 * place
            lines += [f'<line x1="34" x2="60" y1="{y - 4}" y2="{y - 4}"{dash}/>', text(66, y, label)]
        at = [
            (_x(x, left, right), bottom - (value - low) / (high - low) * (bottom - top)) for x, value in sorted(points)
        ]
        lines.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"{dash}/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in at]
    return svg(bottom + 24, f"{metric} against {setting}: {title}", lines)


def heat_map(
    metric: str,
    across: tuple[str, Sequence[str]],
    down: tuple[str, Sequence[str]],
    values: Sequence[Sequence[float | None]],
) -> str:
    """Draw a metric against two settings: the higher a value, the darker its cell, with the value in it where it fits.

    Args:
        metric: what is shown.
        across: name and values of the setting from left to right.
        down: name and values of the one from top to bottom.
        values: [down, across]; None leaves a cell empty.
    """
    there = [value for row in values for value in row if value is not None]
    low, high = min(there), max(there)
    digits = 1 if high >= 1 else 3
    left = 8 + LETTER * max(map(len, down[1]))
    wide, tall = (WIDTH - left) / len(across[1]), 18
    lines = [text(0, 12, f"{metric} against {across[0]} (across) and {down[0]} (down)", "soft")]
    for row, (name, of_row) in enumerate(zip(down[1], values, strict=True)):
        y = 22 + tall * row
        lines.append(text(left - 6, y + 13, name, "soft", "end"))
        for place, value in enumerate(of_row):
            if value is None:
                continue
            x, shade = left + wide * place, 0.0 if high == low else (value - low) / (high - low)
            lines.append(
                f'<rect class="cell" x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{tall}" '
                f'fill-opacity="{0.04 + 0.4 * shade:.3f}"><title>{value:.4g}</title></rect>'
            )
            if (shown := f"{value:.{digits}f}") and LETTER * len(shown) <= wide:
                lines.append(text(x + wide / 2, y + 13, shown, "", "middle"))
    bottom = 22 + tall * len(down[1])
    for place in range(0, len(across[1]), _every(across[1], WIDTH - left)):
        lines.append(text(left + wide * (place + 0.5), bottom + 14, across[1][place], "soft", "middle"))
    return svg(bottom + 20, f"{metric} against {across[0]} and {down[0]}", lines)


def span(values: Sequence[float], room: float = 0.06) -> Point:
    """The ends of an axis that holds the values, with some room on either side."""
    low, high = min(values), max(values)
    wide = (high - low) or 1.0
    return low - room * wide, high + room * wide


def ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers in between."""
    steps = (digit * 10.0**power for power in range(6, -9, -1) for digit in (5, 2, 1))
    step = next(step for step in steps if (high - low) / step >= 3)
    first = int(low // step) + 1
    return [round(first * step + place * step, 10) for place in range(int((high - first * step) // step) + 1)]


def place(value: float, low: float, high: float) -> float:
    """Where a value stands on an axis over the whole width."""
    return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text; `kind` is a class of the page's style."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def svg(height: float, title: str, lines: Sequence[str]) -> str:
    """The whole drawing; the title is read out to those who do not see it."""
    said = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{said}">{"".join(lines)}</svg>'


def _x(value: float, left: float, right: float) -> float:
    return 44 + (value - left) / (right - left) * (WIDTH - 58)


def _every(names: Sequence[str], wide: float) -> int:
    """Of how many names in a row one has to be shown, so that none touches the next."""
    fit = max(1, int(wide // (LETTER * max(map(len, names)) + 8)))
    return -(-len(names) // fit)
