"""A table for a terminal: fitted to the width of its screen, broken between words only, and with colours."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.figures.table import ABSENT, TEXT_WIDTH, Column, Group, Line, Table, widths_of
from orchestrator.figures.texts import width, wrapped

Look = Literal["good", "warn", "bad", "bold", "soft", "plain"]
Style = Callable[[str, Look], str]
"""Returns a text as the screen shows this look, such as with the codes of a colour."""
LEAST = (24, 16, 12)
"""Characters that a line of the first column keeps where its texts are longer; the later, the more crowded."""
READABLE = 24
"""Characters that a line of another text keeps."""
MOST_BESIDE = 3
"""Columns of numbers that a table has at least whose numbers are compared from row to row, over several panels."""
GAP = 2


def unstyled(text: str, look: Look) -> str:
    """Return the text as it is, for a screen without colours."""
    return text


def on_screen(table: Table, columns: int, style: Style = unstyled) -> str:
    """Render for a terminal of so many columns.

    What does not fit has the heads and texts of its columns broken between words, then the columns that are marked
    as `narrow` as headings or left out, and at last its columns in several panels, or a block of lines for each row.
    A word is never broken, so that a path that is longer than a line can still be copied.
    """
    table = (table.compact or table).printable()
    most = min(columns, TEXT_WIDTH)  # longer sentences are hard to read, however wide the screen
    shown = [style(line, "bold") for line in wrapped(table.title, columns)]
    shown += [*(wrapped(table.caption, most) if table.caption else []), ""]
    shown += _body(table, columns, style)
    tones = {text: tone for tone, text in _toned(table)}
    notes = [line for note in table.notes for line in _note(note, most, tones, style)]
    return "\n".join([*shown, *(["", *notes] if notes else [])])


@dataclass(frozen=True, slots=True)
class _Grid:
    """Columns side by side, which fit."""

    table: Table
    columns: tuple[Column, ...]
    lines: list[Line]
    widths: list[int]


def _body(table: Table, columns: int, style: Style) -> list[str]:
    for arranged, least in _arrangements(table):
        grid = _grid(arranged, columns, least)
        if grid is not None:
            return _grid_lines(grid, style)
    return _panel_lines(table, columns, style) or _block_lines(table, columns, style)


def _arrangements(table: Table) -> Iterator[tuple[Table, int]]:
    yield table, LEAST[0]
    headed, small = _headed(table), _without(table, [c.name for c in table.columns if c.narrow == "left out"])
    both = _headed(small)
    for arranged in (headed, small, both):
        if len(arranged.columns) < len(table.columns):
            yield arranged, LEAST[0]
    yield from ((both, least) for least in LEAST[1:])


def _headed(table: Table) -> Table:
    """Let the values of the column that may be a heading stand above their rows."""
    place = next((place for place, column in enumerate(table.columns) if column.narrow == "heading"), None)
    if place is None or table.groups:
        return table
    values = [str(row[place].value or "") for row in table.cells()]
    groups = [Group(n, value) for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    return replace(_without(table, [table.columns[place].name]), groups=tuple(groups))


def _without(table: Table, names: Sequence[str]) -> Table:
    kept = [place for place, column in enumerate(table.columns) if column.name not in names]
    return replace(
        table,
        columns=tuple(table.columns[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in table.rows),
    )


def _grid(table: Table, columns: int, least: int) -> _Grid | None:
    """Lay out side by side; None where that takes more than the columns of the screen."""
    shown, lines = table.lay_out_text(min(columns, TEXT_WIDTH))
    room = columns - GAP * (len(shown) - 1)
    widths = _fitted(shown, lines, room, least)
    if table.is_wrapped and widths is not None and sum(widths_of(shown, lines)) > room:
        # Broken anew from its whole texts, each column and the details below it to what it got.
        wraps = dict(zip([column.name for column in shown], widths, strict=True))
        narrower = tuple(replace(column, wrap=wraps[column.under or column.name]) for column in table.columns)
        return _grid(replace(table, columns=narrower), columns, least)
    return None if widths is None else _Grid(table, shown, lines, widths)


def _fitted(columns: Sequence[Column], lines: Sequence[Line], room: int, least: int) -> list[int] | None:
    """Return the width of each column, the widest texts broken first; None where the longest words do not fit."""
    widths = widths_of(columns, lines)
    if sum(widths) <= room:
        return widths
    lowest = _lowest(columns, lines, least)
    widths = [low if column.numeric else wide for low, wide, column in zip(lowest, widths, columns, strict=True)]
    while sum(widths) > room:
        place = max(range(len(widths)), key=lambda place: (widths[place] > lowest[place], widths[place]))
        if widths[place] <= lowest[place]:
            return None
        widths[place] -= 1
    return widths


def _lowest(columns: Sequence[Column], lines: Sequence[Line], least: int) -> list[int]:
    """Return the least width of each column: of its longest word, and what leaves longer texts readable."""
    found = []
    lines = [line for line in lines if line.kind != "heading"]
    for place, (column, natural) in enumerate(zip(columns, widths_of(columns, lines), strict=True)):
        texts = [line.texts[place] for line in lines]
        # A number is read as one word, whatever stands behind it.
        parts = texts if column.numeric else [word for text in texts for word in text.split()]
        longest = max(map(width, [*column.head.split(), *parts]), default=0)
        indent = 2 * (place == 0 and any(line.kind == "detail" or width(line.texts[0]) > least for line in lines))
        readable = least if place == 0 or column.wrap else READABLE
        found.append(longest if column.numeric else max(longest + indent, min(natural, readable)))
    return found


def _grid_lines(grid: _Grid, style: Style) -> list[str]:
    rule = "  ".join("─" * wide for wide in grid.widths)
    heads = [wrapped(column.head, wide) for column, wide in zip(grid.columns, grid.widths, strict=True)]
    tall = max(map(len, heads))
    bold: list[list[Look]] = [["bold"] * len(heads)] * tall
    # A head of one line stands beside the last line of the others, next to its column.
    shown = _aligned([["" for _ in range(tall - len(head))] + head for head in heads], bold, grid, style)
    shown.append(rule)
    for place, line in enumerate(grid.lines):
        shown += [rule] if grid.table.rule_above(grid.lines, place) else []
        begins = place > 0 and grid.lines[place - 1].row != line.row
        shown += [""] if grid.table.is_wrapped and begins and not grid.table.begins_group(line.row) else []
        if line.kind == "heading":
            shown += [style(text, "bold") for text in wrapped(line.texts[0], sum(grid.widths) + 2 * len(grid.widths))]
            continue
        broken = [_broken(line, n, column, grid.widths[n]) for n, column in enumerate(grid.columns)]
        looks = [[_look(line, n) for n in range(len(broken))]] * max(map(len, broken))
        shown += _aligned(broken, looks, grid, style)
    return shown


def _broken(line: Line, place: int, column: Column, wide: int) -> list[str]:
    text = line.texts[place]
    if place:
        return [text] if column.numeric or width(text) <= wide else wrapped(text, wide)
    indent = "  " if line.kind == "detail" else ""
    if width(indent + text) <= wide:
        return [indent + text]
    # What goes on is set in, or it would look like a row of its own.
    first, *others = wrapped(text, wide - len(indent))
    more = wrapped(" ".join(others), wide - len(indent) - 2)
    return [indent + first, *(f"{indent}  {part}" for part in more)]


def _look(line: Line, place: int) -> Look:
    if tone := line.tones.get(place):
        return tone
    return "bold" if place in line.bold else "soft" if place in line.soft else "plain"


def _aligned(texts: Sequence[Sequence[str]], looks: Sequence[Sequence[Look]], grid: _Grid, style: Style) -> list[str]:
    """Put the texts of each column below each other, to the right those of numbers."""
    lines = []
    for at in range(max(map(len, texts))):
        parts = []
        for place, (column, wide) in enumerate(zip(grid.columns, grid.widths, strict=True)):
            text = texts[place][at] if at < len(texts[place]) else ""
            space, look = " " * (wide - width(text)), looks[at][place]
            shown = style(text, look) if text else ""
            parts.append(space + shown if column.numeric else shown + space)
        lines.append("  ".join(parts).rstrip())
    return lines


def _panel_lines(table: Table, columns: int, style: Style) -> list[str]:
    """Show as many columns of numbers as fit below the next ones, each time beside the first; empty if too few do."""
    shown, lines = table.lay_out_text(min(columns, TEXT_WIDTH))
    widths = _lowest(shown, lines, LEAST[0])
    if sum(column.numeric for column in shown) < MOST_BESIDE or widths[0] + GAP + max(widths[1:]) > columns:
        return []
    panels: list[list[int]] = [[0]]
    for place in range(1, len(shown)):
        if sum(widths[n] + GAP for n in [*panels[-1], place]) - GAP > columns:
            panels.append([0])
        panels[-1].append(place)
    told: list[str] = []
    for places in panels:
        heads = tuple(shown[place] for place in places)
        picked = [line if line.kind == "heading" else _picked(line, places) for line in lines]
        # A detail that has nothing to say of these columns has a line in another panel.
        picked = [line for line in picked if line.kind != "detail" or any(line.texts[1:])]
        room = columns - GAP * (len(places) - 1)
        roomy = _fitted(heads, picked, room, LEAST[0]) or [widths[place] for place in places]
        told += [*([""] if told else []), *_grid_lines(_Grid(table, heads, picked, roomy), style)]
    return told


def _picked(line: Line, places: Sequence[int]) -> Line:
    return replace(
        line,
        texts=tuple(line.texts[place] for place in places),
        bold=frozenset(n for n, place in enumerate(places) if place in line.bold),
        soft=frozenset(n for n, place in enumerate(places) if place in line.soft),
        tones={n: line.tones[place] for n, place in enumerate(places) if place in line.tones},
    )


def _block_lines(table: Table, columns: int, style: Style) -> list[str]:
    """Show each row as a line of its name, with its numbers and texts set in below."""
    headings, rows = {group.first: group.heading for group in table.groups}, table.cells()
    shown, lines = table.lay_out(folds=False)
    blocks: list[str] = []
    for line in lines:
        if line.kind == "heading":
            continue
        if heading := headings.get(line.row):
            blocks.append(style(heading, "bold"))
        blocks += [style(part, "bold") for part in wrapped(line.texts[0], columns)]
        told = [n for n, cell in enumerate(rows[line.row]) if n and (cell.value is not None or cell.absent != ABSENT)]
        short = [n for n in told if n not in line.tones and (shown[n].numeric or width(line.texts[n]) <= READABLE)]
        beside = ", ".join(f"{shown[n].head} {line.texts[n]}" for n in short if line.texts[n])
        blocks += [f"  {part}" for part in wrapped(beside, columns - 2)]
        for n in (n for n in told if n not in short):
            first, *more = wrapped(f"{shown[n].head}: {line.texts[n]}", columns - 4) or [""]
            look = _look(line, n)
            blocks += [f"  {style(first, look)}", *(f"    {style(part, look)}" for part in more)]
    return blocks


def _toned(table: Table) -> Iterator[tuple[Look, str]]:
    yield from ((cell.tone, str(cell.value)) for row in table.cells() for cell in row if cell.tone)


def _note(note: str, columns: int, tones: Mapping[str, Look], style: Style) -> list[str]:
    """Break a note between words; one that begins with the text of a coloured cell begins in its colour."""
    shown = []
    for line in note.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        shown += [indent + part for part in wrapped(line, columns - len(indent))] or [""]
    word, colon, rest = shown[0].partition(":")
    return [f"{style(word, tones[word])}{colon}{rest}", *shown[1:]] if word in tones else shown
