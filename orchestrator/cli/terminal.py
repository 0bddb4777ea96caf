"""How `rnc` writes to a terminal: its width, colours where it has them, errors, and what a Ctrl-C leaves behind."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, TextIO

import click

from orchestrator.figures.screen import Look, on_screen, unstyled
from orchestrator.figures.table import Table
from orchestrator.figures.texts import printable, width, wrapped

LOOKS: Mapping[Look, Mapping[str, Any]] = {
    "good": {"fg": "green"},
    "warn": {"fg": "yellow"},
    "bad": {"fg": "red"},
    "bold": {"bold": True},
    "soft": {"dim": True},
    "plain": {},
}
GOES_ON = "What is recorded stays; the same command goes on from there."
DEFAULT_COLUMNS = 80
COLOR = re.compile(r"\x1b\[[0-9;]*m")
_INTERRUPTION = "rnc.interruption"


def print_text(table: Table) -> None:
    """Print a table, fitted to the screen; into a file or a pipe as `Table.to_text` has it."""
    columns = screen_columns(sys.stdout)
    if columns is None:
        click.echo(table.to_text())
        return
    colors = has_colors(sys.stdout)
    click.echo(on_screen(beginning(table), columns, _styled if colors else unstyled), color=colors)


def print_line(text: str, *, nl: bool = True) -> None:
    """Print a line to standard output."""
    click.echo(printable(text), nl=nl)


def print_log(text: str, *, nl: bool = True) -> None:
    """Print what a process wrote to a terminal of its own: without its colours."""
    print_line(COLOR.sub("", text), nl=nl)


MOST_ON_SCREEN = 500
"""Rows of a table that a terminal shows, which is about what it keeps to scroll back to."""


def beginning(table: Table, most: int = MOST_ON_SCREEN) -> Table:
    """Return a table with its first rows and all of its notes, and say how the others are seen."""
    if len(table.rows) <= most or table.compact is not None:
        return table
    note = (
        f"{len(table.rows) - most} rows more: all are printed into a file or a pipe, as | less, and by --format json."
    )
    return replace(
        table,
        rows=table.rows[:most],
        rules_before=tuple(place for place in table.rules_before if place < most),
        groups=tuple(group for group in table.groups if group.first < most),
        notes=(note, *table.notes),
    )


def screen_columns(stream: TextIO | None) -> int | None:
    """Return the width of the screen that shows a stream, which COLUMNS overrides; None where it goes elsewhere."""
    named = os.environ.get("COLUMNS", "")
    if named.isdigit() and int(named):
        return int(named)
    if stream is None or not stream.isatty():  # Python has none where the shell closed it, as with >&-
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except (OSError, ValueError):  # a terminal of no known size, or one without a descriptor
        return DEFAULT_COLUMNS


def has_colors(stream: TextIO | None) -> bool:
    """Whether a stream shows colours: a terminal, if NO_COLOR is not set, or anything under FORCE_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def print_error(text: str) -> None:
    """Print what a user can mend to standard error."""
    colors = has_colors(sys.stderr)
    word, rest = "error:", say_lines(f"error: {text}").removeprefix("error:")
    click.echo(f"{_styled(word, 'bad') if colors else word}{rest}", err=True, color=colors)


def say_lines(text: str) -> str:
    """Break lines for standard error between words where a terminal shows it, and set in what goes on."""
    text, columns = printable(text), screen_columns(sys.stderr)
    return text if columns is None else "\n".join(part for line in text.split("\n") for part in _fitted(line, columns))


def usage_error(error: click.ClickException) -> str:
    """Say a mistake in the call as all others are said."""
    text = error.format_message().rstrip(".")
    said, guessed = re.subn(r"\. \(?Did you mean (.+)\?\)?$", r"; did you mean \1?", f"{text[:1].lower()}{text[1:]}")
    context = getattr(error, "ctx", None)
    return said if guessed or context is None else f"{said}; `{context.command_path} --help` says what it takes"


def when_interrupted(says: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb what is said after a Ctrl-C, behind "Interrupted."."""

    def decorated(verb: Callable[..., None]) -> Callable[..., None]:
        @wraps(verb)
        def told(*args: Any, **settings: Any) -> None:
            click.get_current_context().meta[_INTERRUPTION] = says
            verb(*args, **settings)

        return told

    return decorated


def interruption(context: click.Context) -> str:
    """Return what is said after a Ctrl-C: that it was one, and what the verb leaves behind."""
    return " ".join(["Interrupted.", *filter(None, [context.meta.get(_INTERRUPTION)])])


def _fitted(line: str, columns: int) -> list[str]:
    if width(line) <= columns:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    first, *others = wrapped(line, columns - len(indent))
    return [indent + first, *(f"{indent}  {part}" for part in wrapped(" ".join(others), columns - len(indent) - 2))]


def _styled(text: str, look: Look) -> str:
    return click.style(text, **LOOKS[look]) if LOOKS[look] else text
