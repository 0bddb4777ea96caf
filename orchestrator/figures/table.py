"""A table of values that renders itself: as text, Markdown, LaTeX, HTML, JSON, a DataFrame, or in a notebook."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from orchestrator.figures.texts import for_json, for_latex, for_markdown, printable, sentence, width, wrapped

Value = str | int | float | None
Tone = Literal["", "good", "warn", "bad"]
"""What a cell says of its row, as a colour where there are colours: green, yellow, red."""
MOST_DIGITS = 4
TEXT_WIDTH = 120
ABSENT = "—"
NOT_APPLICABLE = "n/a"
"""Shown for a number that cannot exist, such as the AP of a size of which the data set has no object."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and how it is shown."""

    value: Value
    spread: float | None = None
    """Standard deviation, shown behind the value."""
    bold: bool = False
    interval: tuple[float, float] | None = None
    """Low and high end, shown in brackets behind the value."""
    mark: str = ""
    """Shown behind everything else, such as an asterisk that a note explains."""
    soft: bool = False
    """Shown in grey: a number that is not ours."""
    absent: str = ABSENT
    """What an absent value is shown as: a dash where it may still come, NOT_APPLICABLE where it cannot exist."""
    digits: int | None = None
    """Decimals of a float that carries fewer than its column shows."""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Column:
    """The heading of a column, and how its values are shown."""

    name: str
    """What programs call it; different from all others of the table."""
    numeric: bool = True
    """Numbers stand to the right, text to the left."""
    digits: int = 1
    """Decimals of a float."""
    signed: bool = False
    """Differences show their plus."""
    under: str = ""
    """The column of which this one is a detail; a table that is too wide has it on a line of its own below the row."""
    detail: str = ""
    """What that line is called."""
    wrap: int | None = None
    """Of text: the characters of a line; a table with such columns shows details below their column's own text."""
    heading: str = ""
    """What stands above it; empty for its name."""
    is_soft: bool = False
    """Shown in grey: what stands beside the numbers of the table, and is none of them."""
    has_forest: bool = False
    """Its intervals are also drawn on a page, one to a row."""
    narrow: Literal["", "heading", "left out"] = ""
    """What becomes of it on a screen that is too narrow: its values stand as headings above their rows, or it goes."""

    @property
    def head(self) -> str:
        """What stands above it."""
        return self.heading or self.name


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that belong together, up to the next group."""

    first: int
    """The place of its first row."""
    heading: str = ""
    """A line above it."""
    shows: str = ""
    """The detail that its rows show in the place of numbers of their own, which they lack; in grey."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table as it is shown."""

    texts: tuple[str, ...]
    """A text for each column; of a heading it is the only one."""
    row: int
    """The place of the row that it is, or is of."""
    kind: Literal["row", "detail", "heading"] = "row"
    bold: frozenset[int] = frozenset()
    soft: frozenset[int] = frozenset()
    """The places of texts in bold, and of those in grey."""
    tones: Mapping[int, Tone] = field(default_factory=dict)
    """Those of texts that have one, by place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of cells under columns; plain values are cells as well."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | Value, ...], ...]
    caption: str = ""
    """A sentence below the title: the question that the table answers."""
    notes: tuple[str, ...] = ()
    rules_before: tuple[int, ...] = ()
    """Rows, by place, before which there is a rule."""
    groups: tuple[Group, ...] = ()
    """Groups with a heading, or with a look of their own; there is a rule before each."""
    folds: bool = False
    """Whether details of columns stand on lines of their own even where there is room beside."""
    compact: "Table | None" = None
    """The same numbers in another arrangement, which people are shown; programs and pandas get the rows."""

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"columns {names} of table {self.title!r}: expected different names")
        for place, row in enumerate(self.rows):
            if len(row) != len(names):
                raise ValueError(f"row {place} of table {self.title!r} has {len(row)} cells, expected {len(names)}")

    def cells(self) -> list[list[Cell]]:
        """Return the rows with every plain value made a cell."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def begins_group(self, place: int) -> bool:
        """Whether a rule stands before a row."""
        return place > 0 and (place in self.rules_before or any(group.first == place for group in self.groups))

    def to_text(self, max_width: int = TEXT_WIDTH) -> str:
        """Render for a terminal: columns aligned by the width that characters take on a screen.

        What would be wider than `max_width` has spreads and details of columns on lines of their own below each row.
        """
        if self.compact is not None:
            return self.compact.to_text(max_width)
        table = self.printable()
        columns, lines = table.lay_out_text(max_width)
        widths = widths_of(columns, lines)
        rule = "  ".join("─" * n for n in widths)
        shown = [table.title, *([table.caption] if table.caption else []), ""]
        shown += [_aligned([column.head for column in columns], widths, columns), rule]
        for place, line in enumerate(lines):
            shown += [rule] if table.rule_above(lines, place) else []
            begins = place > 0 and lines[place - 1].row != line.row
            shown += [""] if table.is_wrapped and begins and not table.begins_group(line.row) else []
            first = f"  {line.texts[0]}" if line.kind == "detail" else line.texts[0]
            is_heading = line.kind == "heading"
            shown.append(first if is_heading else _aligned([first, *line.texts[1:]], widths, columns))
        notes = [line for note in table.notes for line in (wrapped(note, max_width) if table.is_wrapped else [note])]
        shown += ["", *notes] if notes else []
        return "\n".join(shown)

    def printable(self) -> "Table":
        """Return the table as a terminal may be given it: every text `texts.printable`."""
        return replace(
            self,
            title=printable(self.title),
            caption=printable(self.caption),
            columns=tuple(replace(one, heading=printable(one.head)) for one in self.columns),
            rows=tuple(
                tuple(
                    replace(cell, value=printable(cell.value)) if isinstance(cell.value, str) else cell for cell in row
                )
                for row in self.cells()
            ),
            groups=tuple(replace(one, heading=printable(one.heading)) for one in self.groups),
            notes=tuple(map(printable, self.notes)),
        )

    def to_markdown(self) -> str:
        """Render for GitHub, which knows no grey: what would be grey is in italics."""
        if self.compact is not None:
            return self.compact.to_markdown()
        columns, lines = self.lay_out(folds=self.is_folded())
        shown = [f"**{for_markdown(self.title)}**", ""]
        shown += [for_markdown(self.caption), ""] if self.caption else []
        shown.append("| " + " | ".join(for_markdown(column.head) for column in columns) + " |")
        shown.append("|" + "|".join("---:" if column.numeric else "---" for column in columns) + "|")
        for line in lines:
            texts = _styled(line, for_markdown, {"bold": "**%s**", "soft": "*%s*", "heading": "*%s*"})
            texts += [""] * (len(columns) - len(texts))
            shown.append("| " + " | ".join(texts) + " |")
        shown += ["", *(f"- {for_markdown(note)}" for note in self.notes)] if self.notes else []
        return "\n".join(shown)

    def to_latex(self) -> str:
        r"""Render for a paper; it needs \usepackage{booktabs}, and \usepackage{xcolor} where something is grey."""
        if self.compact is not None:
            return self.compact.to_latex()
        columns, lines = self.lay_out(folds=self.is_folded())
        caption = " ".join(for_latex(sentence(part)) for part in (self.title, self.caption) if part)
        shown = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        shown.append(rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in columns)}}}")
        shown += [r"\toprule", " & ".join(for_latex(column.head) for column in columns) + r" \\", r"\midrule"]
        forms = {"bold": r"\textbf{%s}", "soft": r"\textcolor{gray}{%s}"}
        forms["heading"] = rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{%s}}}}"
        for place, line in enumerate(lines):
            shown += [r"\midrule"] if self.rule_above(lines, place) else []
            texts = _styled(line, for_latex, forms)
            shown.append((r"\quad " if line.kind == "detail" else "") + " & ".join(texts) + r" \\")
        shown += [r"\bottomrule", r"\end{tabular}"]
        shown += [rf"\par\footnotesize {for_latex(sentence(note))}" for note in self.notes]
        return "\n".join([*shown, r"\end{table}"])

    def to_html(self) -> str:
        """Render as a part of a page: title, caption, a `<table>` and notes, which take the style of the page."""
        from orchestrator.figures.templating import fill

        return fill("table.html", **(self.compact or self).html_part())

    def html_part(self, forest: Mapping[int, str] | None = None, axis: str = "") -> dict[str, Any]:
        """Return what templates show of the table.

        Args:
            forest: the drawn interval of each row, by its place; only a page has the style for it.
            axis: of these drawings.
        """
        columns, lines = self.lay_out(folds=self.is_folded())
        lasts = {line.row: place for place, line in enumerate(lines)}
        shown = []
        for place, line in enumerate(lines):
            drawn = (forest or {}).get(line.row) if line.kind == "row" else None
            # What is drawn of a row stands beside all its lines.
            height = lasts[line.row] - place + 1
            begins = self.rule_above(lines, place)
            shown.append({"line": line, "begins_group": begins, "forest": drawn, "height": height})
        return {"table": self, "columns": columns, "lines": shown, "axis": axis}

    @property
    def is_wrapped(self) -> bool:
        """Whether texts are wrapped within their columns."""
        return any(column.wrap for column in self.columns)

    def is_folded(self, max_width: int = TEXT_WIDTH) -> bool:
        """Whether details of columns have lines of their own: where text would be too wide, or the table says so."""
        if self.is_wrapped or not any(column.under for column in self.columns):
            return False
        return self.folds or any(group.shows for group in self.groups) or self._width() > max_width

    def lay_out(self, *, folds: bool) -> tuple[tuple[Column, ...], list[Line]]:
        """Return the columns and lines that are shown; `folds` puts details and spreads on lines of their own."""
        columns = tuple(column for column in self.columns if not (folds and column.under))
        lines: list[Line] = []
        for place, row in enumerate(self.cells()):
            group = next((group for group in reversed(self.groups) if group.first <= place), None)
            if group is not None and group.first == place and group.heading:
                lines.append(Line((group.heading,), place, "heading"))
            if folds:
                lines += _folded(row, self.columns, place, group.shows if group else "")
            else:
                lines.append(_line(row, self.columns, place))
        return columns, lines

    def lay_out_text(self, max_width: int = TEXT_WIDTH) -> tuple[tuple[Column, ...], list[Line]]:
        """Return the columns and lines of a text: folded where they are wider, wrapped where columns say so."""
        if self.is_wrapped:
            columns = tuple(column for column in self.columns if not column.under)
            rows = enumerate(self.cells())
            return columns, [line for place, row in rows for line in _wrapped(row, self.columns, place)]
        return self.lay_out(folds=self.is_folded(max_width) or (_has_spreads(self) and self._width() > max_width))

    def rule_above(self, lines: Sequence[Line], place: int) -> bool:
        """Whether a rule stands above a line, by its place."""
        row = lines[place].row
        return self.begins_group(row) and (place == 0 or lines[place - 1].row != row)

    def _width(self) -> int:
        widths = widths_of(self.columns, [_line(row, self.columns, 0) for row in self.cells()])
        return sum(widths) + 2 * (len(widths) - 1)

    def to_json(self) -> str:
        """Render for a program: one object for each row, its values by column name.

        Spreads stand as `<column> std`, intervals as `<column> low` and `<column> high`.
        """
        content = {
            "title": self.title,
            "caption": self.caption,
            "columns": [column.name for column in self.columns],
            "rows": self._records(),
            "notes": list(self.notes),
        }
        return for_json(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False))

    def to_pandas(self) -> Any:
        """Return the full values as a pandas.DataFrame: numbers as numbers, absent ones as NaN.

        What some cell has beside its value follows its column: a spread as `<column> std`, an interval as
        `<column> low` and `<column> high`.
        """
        import pandas as pd  # type: ignore[import-untyped]

        records, columns = self._records(), {}
        for column in self.columns:
            for name in (column.name, f"{column.name} std", f"{column.name} low", f"{column.name} high"):
                values = [record.get(name) for record in records]
                is_empty = all(value is None for value in values)
                if name == column.name or not is_empty:
                    # Left to itself, pandas takes a column of nothing but None for text.
                    columns[name] = pd.Series(values, dtype=float if is_empty and column.numeric else None)
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()

    def _records(self) -> list[dict[str, Value]]:
        records = []
        for cells in self.cells():
            record: dict[str, Value] = {}
            for cell, column in zip(cells, self.columns, strict=True):
                record[column.name] = cell.value
                if cell.spread is not None:
                    record[f"{column.name} std"] = cell.spread
                if cell.interval is not None:
                    record[f"{column.name} low"], record[f"{column.name} high"] = cell.interval
            records.append(record)
        return records


GAIN = Column("difference", signed=True)
"""How texts show what tables show in a column of differences."""


def side_of_zero(interval: tuple[float, float]) -> Literal[-1, 0, 1]:
    """Return the side of 0 on which an interval lies; 0 where it holds 0, as far as MOST_DIGITS can show."""
    low, high = interval
    least = 0.5 * 10**-MOST_DIGITS
    return 1 if low > least else -1 if high < -least else 0


def show(cell: Cell, column: Column) -> str:
    """Write a cell's value as the column has it."""
    if cell.value is None:
        return f"{cell.absent}{cell.mark}"
    column = _as_precise(cell, column)
    shown = _number(cell.value, column) if cell.interval is None else written(cell.value, cell.interval, column)
    spread = "" if cell.spread is None else f" ± {cell.spread:.{column.digits}f}"
    interval = "" if cell.interval is None else f" [{', '.join(ends_of(cell.interval, column))}]"
    return f"{shown}{spread}{interval}{cell.mark}"


def ends_of(interval: tuple[float, float], column: Column) -> list[str]:
    """Write both ends of an interval; see `written`."""
    return [written(end, interval, column) for end in interval]


def written(value: Value, interval: tuple[float, float], column: Column) -> str:
    """Write a value or an end of an interval, with as many digits as it takes not to be the 0 that this excludes."""
    digits = column.digits
    if isinstance(value, float) and side_of_zero(interval) and round(value, MOST_DIGITS) != 0.0:
        while round(value, digits) == 0.0:
            digits += 1
    return _number(value, replace(column, digits=digits))


def _as_precise(cell: Cell, column: Column) -> Column:
    return column if cell.digits is None else replace(column, digits=cell.digits)


def _has_spreads(table: Table) -> bool:
    return any(cell.spread is not None for row in table.cells() for cell in row)


def _line(row: Sequence[Cell], columns: Sequence[Column], place: int) -> Line:
    return Line(
        texts=tuple(show(cell, column) for cell, column in zip(row, columns, strict=True)),
        row=place,
        bold=frozenset(number for number, cell in enumerate(row) if cell.bold),
        soft=frozenset(
            n for n, (cell, column) in enumerate(zip(row, columns, strict=True)) if cell.soft or column.is_soft
        ),
        tones={number: cell.tone for number, cell in enumerate(row) if cell.tone},
    )


def _folded(row: Sequence[Cell], columns: Sequence[Column], place: int, shows: str) -> list[Line]:
    """The line of a row, then one of its spreads and one of each detail, as far as there are any."""
    cells = {column.name: (cell, column) for cell, column in zip(row, columns, strict=True)}
    main = [column for column in columns if not column.under]
    details: dict[str, dict[str, str]] = {"std over seeds": {}}
    for name, (cell, column) in cells.items():
        if cell.spread is not None:
            details["std over seeds"][name] = f"± {cell.spread:.{_as_precise(cell, column).digits}f}"
        if column.under and cell.value is not None:
            details.setdefault(column.detail, {})[column.under] = show(cell, column)
    if shows:
        in_place = details.pop(shows, {})
        texts = [in_place.get(column.name) or _own(*cells[column.name]) for column in main]
        lines = [Line(tuple(texts), place, soft=frozenset(range(len(main))))]
    else:
        lines = [_line([replace(cells[column.name][0], spread=None) for column in main], main, place)]
    for detail, of_detail in details.items():
        if of_detail:
            texts = [detail, *(of_detail.get(column.name, "") for column in main[1:])]
            lines.append(Line(tuple(texts), place, "detail", soft=frozenset(range(len(main)))))
    return lines


def _wrapped(row: Sequence[Cell], columns: Sequence[Column], place: int) -> list[Line]:
    """The lines of a row whose texts are wrapped, each followed by the details under its column."""
    below: dict[str, list[str]] = {column.name: [] for column in columns if not column.under}
    for cell, column in zip(row, columns, strict=True):
        below[column.under or column.name] += wrapped(show(cell, column), column.wrap or TEXT_WIDTH)
    height = max(map(len, below.values()))
    texts = [[lines[at] if at < len(lines) else "" for lines in below.values()] for at in range(height)]
    return [Line(tuple(line), place) for line in texts]


def _own(cell: Cell, column: Column) -> str:
    """What a row that has no numbers of its own shows in a column: nothing rather than a dash."""
    return "" if cell.value is None and cell.absent == ABSENT else show(cell, column)


def _styled(line: Line, escape: Callable[[str], str], forms: Mapping[str, str]) -> list[str]:
    """Escape the texts of a line, and put each into its form: bold, soft, heading, or none."""
    if line.kind == "heading":
        return [forms["heading"] % escape(line.texts[0])]
    texts = []
    for place, text in enumerate(line.texts):
        form = forms["bold"] if place in line.bold else forms["soft"] if place in line.soft else "%s"
        texts.append(form % escape(text) if text else "")
    return texts


def widths_of(columns: Sequence[Column], lines: Sequence[Line]) -> list[int]:
    """Return the width of each column on a screen, headings of groups left out."""
    indented = [
        ("  " + line.texts[0], *line.texts[1:]) if line.kind == "detail" else line.texts
        for line in lines
        if line.kind != "heading"
    ]
    return [max(map(width, texts)) for texts in zip([column.head for column in columns], *indented, strict=True)]


def _number(value: Value, column: Column) -> str:
    if isinstance(value, float):
        shown = f"{value:+.{column.digits}f}" if column.signed else f"{value:.{column.digits}f}"
        # -0.04 would be shown as -0.0, and a difference that rounds to nothing as +0.0.
        return shown if float(shown) else shown.lstrip("+-")
    return f"{value:+d}" if column.signed and isinstance(value, int) and value else str(value)


def _aligned(texts: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = []
    for text, wide, column in zip(texts, widths, columns, strict=True):
        space = " " * (wide - width(text))
        padded.append(space + text if column.numeric else text + space)
    return "  ".join(padded).rstrip()
