"""Rows that are every combination of some settings' values."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from model.config import InferenceConfig, TrainConfig
from model.settings import Settings, merge, misspelt, short_names

MOST_ROWS = 1000
"""A grid of more is taken for a mistake."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settable:
    """What defaults, a grid and a search may set."""

    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)


def grid_rows(grid: Mapping[str, list[Any]]) -> tuple[list[Settings], list[str]]:
    """Return a row for each combination, the last setting varying fastest, or the mistakes.

    Args:
        grid: values by dotted setting, as in {"train.model.tower_depth": [2, 4]}.
    """
    problems = list(_mistakes(grid))
    if problems:
        return [], problems
    return [varied_row(dict(zip(grid, values, strict=True))) for values in product(*grid.values())], []


def varied_row(settings: Mapping[str, Any]) -> Settings:
    """Return the row that has settings by dotted name, with a label that says them: "tower_depth 2, tower box"."""
    row: Settings = {}
    for path, value in settings.items():
        row = merge(row, _nested(path, value))
    names = short_names(settings)
    return {"label": ", ".join(f"{names[path]} {_text(value)}" for path, value in settings.items())} | row


def unsettable(settings: Mapping[str, list[Any]], prefix: str) -> Iterator[str]:
    """Name each dotted setting that does not exist, or of which another sets a part.

    Args:
        settings: the values of each, which may be mappings of settings themselves.
        prefix: stands before each name.
    """
    for path, values in settings.items():
        problems = [
            problem for value in values or [None] for problem in misspelt(Settable, _nested(path, value), prefix)
        ]
        yield from dict.fromkeys(problems)
        for other in settings:
            if other.startswith(f"{path}."):
                yield f"{prefix}{other} is a part of {path}; vary one of them"


def _mistakes(grid: Mapping[str, list[Any]]) -> Iterator[str]:
    if not grid:
        yield "grid is empty; name a setting and its values, or leave grid out"
    for path, values in grid.items():
        if not values:
            yield f"grid.{path} has no values; list some, or leave it out"
        seen = [_text(value) for value in values]
        for value in dict.fromkeys(seen):
            if seen.count(value) > 1:
                yield f"grid.{path} lists {value} {seen.count(value)} times"
    yield from unsettable(grid, "grid.")
    number = math.prod(map(len, grid.values()))
    if number > MOST_ROWS:
        yield f"grid makes {number} rows, at most {MOST_ROWS} are taken; list fewer values"


def _nested(path: str, value: Any) -> Settings:
    for name in reversed(path.split(".")):
        value = {name: value}
    nested: Settings = value
    return nested


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_text(inside)}' for name, inside in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
