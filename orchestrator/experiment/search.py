"""Rows that a file does not list: every combination of a grid, and draws from a space of settings.

Draws depend on the seed alone, and not on Ray or its version: a later submit has to find the first one's trainings.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Any

from model.config import InferenceConfig, TrainConfig
from model.settings import Settings, merge, misspelt, read_settings, short_names, suggestion

Distribution = Mapping[str, Sequence[Any]]
"""One of Ray Tune's by name, with its arguments: {"loguniform": [1e-4, 1e-1]}."""
MOST_ROWS = 1000
"""The most rows of a file, unless somebody says that more are meant; they may be a slip in a grid."""
MOST_ROWS_EVER = 100_000
"""And then; they take ten seconds and a gigabyte to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settable:
    """What defaults, a grid and a search may set."""

    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    split: str = "val2017"
    """The split that is scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asha:
    """Stops trainings early that are worse than others at the same epoch (asynchronous successive halving)."""

    grace_epochs: int = 1
    """Epochs that every training gets."""
    reduction_factor: float = 3.0
    """Of this many trainings one goes on, at grace_epochs, this many times grace_epochs, and so on."""

    def __post_init__(self) -> None:
        if self.grace_epochs < 1:
            raise ValueError(f"grace_epochs is {self.grace_epochs}, expected at least 1")
        if self.reduction_factor <= 1.0:
            raise ValueError(f"reduction_factor is {self.reduction_factor}, expected more than 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How some rows of an experiment were drawn, and by which rule their trainings may be stopped early."""

    labels: tuple[str, ...]
    """The rows that were drawn."""
    space: Mapping[str, Distribution]
    """Distributions by dotted setting."""
    num_samples: int
    """Draws; one that repeats an earlier one makes no row."""
    metric: str
    """What is to become large."""
    asha: Asha | None
    """None trains every row to its end."""
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """Which scheduler may stop trainings early; None lets all run to their end."""

    asha: Asha | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchForm:
    """The setting `search` of a file, of the right types but not yet checked against the settings that it varies."""

    space: dict[str, dict[str, tuple[Any, ...]]]
    num_samples: int
    metric: str = "AP"
    scheduler: Scheduler = field(default_factory=Scheduler)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MOST_ROWS_EVER:
            raise ValueError(f"num_samples is {self.num_samples}, expected 1 to {MOST_ROWS}")


def too_many(number: int, most: int) -> str:
    """Say what is the matter with so many rows, and the way out; empty where there are no more than that."""
    if number <= most:
        return ""
    way = " without --yes" if number <= MOST_ROWS_EVER else ""
    return f"{number} rows, at most {most if way else MOST_ROWS_EVER} are taken{way}"


def grid_rows(grid: Mapping[str, list[Any]], most: int = MOST_ROWS) -> tuple[list[Settings], list[str]]:
    """Return a row for each combination, the last setting varying fastest, or the mistakes.

    Args:
        grid: values by dotted setting, as in {"train.model.tower_depth": [2, 4]}.
        most: rows that it may make.
    """
    problems = list(_grid_mistakes(grid, most))
    if problems:
        return [], problems
    return [_varied_row(dict(zip(grid, values, strict=True))) for values in product(*grid.values())], []


def read_search(raw: Settings, most: int = MOST_ROWS) -> tuple[Search | None, list[Settings], list[str]]:
    """Return the search, the rows that it draws and its mistakes; None and no rows where there are any.

    More samples begin with the same rows, and one setting more leaves the draws of the others alone.
    """
    form, problems = read_settings(SearchForm, raw, "search.")
    if form is None:
        return None, [], problems
    problems = list(_search_mistakes(form, most))
    if problems:
        return None, [], problems
    draws = {path: _draws(path, distribution, form) for path, distribution in form.space.items()}
    by_label: dict[str, Settings] = {}
    for place in range(form.num_samples):
        row = _varied_row({path: drawn[place] for path, drawn in draws.items()})
        # A draw that repeats an earlier one has its label, and so adds no row.
        by_label[row["label"]] = row
    rows = list(by_label.values())
    search = Search(
        labels=tuple(row["label"] for row in rows),
        space=form.space,
        num_samples=form.num_samples,
        metric=form.metric,
        asha=form.scheduler.asha,
        seed=form.seed,
    )
    return search, rows, []


def _grid_mistakes(grid: Mapping[str, list[Any]], most: int) -> Iterator[str]:
    if not grid:
        yield "grid is empty; name a setting and its values, or leave grid out"
    for path, values in grid.items():
        if not values:
            yield f"grid.{path} has no values; list some, or leave it out"
        for text, count in Counter(map(_text, values)).items():
            if count > 1:
                yield f"grid.{path} lists {text} {count} times"
    yield from _unsettable(grid, "grid.")
    if told := too_many(math.prod(map(len, grid.values())), most):
        yield f"grid makes {told}; list fewer values"


def _search_mistakes(form: SearchForm, most: int) -> Iterator[str]:
    if told := too_many(form.num_samples, most):
        yield f"search.num_samples makes {told}; draw fewer"
    if not form.space:
        yield "search.space is empty; name a setting and its distribution"
    for path, distribution in form.space.items():
        for problem in _mistakes_of_distribution(distribution):
            yield f"search.space.{path}{problem}"
    choices = {path: list(distribution.get("choice", ())) for path, distribution in form.space.items()}
    yield from _unsettable(choices, "search.space.")
    if form.scheduler.asha and form.space and not any(path.startswith("train.") for path in form.space):
        yield ("search.scheduler.asha stops trainings early, but search.space varies no setting of train; leave it out")


def _mistakes_of_distribution(distribution: Distribution) -> Iterator[str]:
    if len(distribution) != 1:
        yield f" has {len(distribution)} distributions, expected one of: {', '.join(_DISTRIBUTIONS)}"
        return
    ((name, arguments),) = distribution.items()
    if name not in _DISTRIBUTIONS:
        yield f".{name} is no distribution; {suggestion(name, _DISTRIBUTIONS)}"
    elif name == "choice":
        if not arguments:
            yield ".choice has no values; list some"
    elif len(arguments) != (3 if name == "quniform" else 2) or not all(map(_is_number, arguments)):
        wanted = "[low, high, step]" if name == "quniform" else "[low, high]"
        yield f".{name} is {list(arguments)}, expected {wanted} in numbers"
    elif arguments[0] >= arguments[1]:
        yield f".{name} is {list(arguments)}, expected the lower limit first"
    elif name == "loguniform" and arguments[0] <= 0:
        yield f".loguniform is {list(arguments)}, expected limits above 0"
    elif name == "randint" and not all(isinstance(limit, int) for limit in arguments):
        yield f".randint is {list(arguments)}, expected whole numbers, of which the upper is never drawn"
    elif name == "quniform" and arguments[2] <= 0:
        yield f".quniform is {list(arguments)}, expected a step above 0"
    elif name == "quniform" and not math.isfinite((arguments[1] - arguments[0]) / arguments[2]):
        yield f".quniform is {list(arguments)}, expected a larger step"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _unsettable(settings: Mapping[str, list[Any]], prefix: str) -> Iterator[str]:
    """Name each dotted setting that does not exist, or of which another sets a part.

    Args:
        settings: the values of each, which may be mappings of settings themselves.
        prefix: stands before each name.
    """
    for path, values in settings.items():
        problems: list[str] = []
        for value in values or [None]:
            problems += misspelt(Settable, _nested(path, value), prefix)
        yield from dict.fromkeys(problems)  # a misspelt path is one mistake, whatever number of values it has
        for other in settings:
            if other.startswith(f"{path}."):
                yield f"{prefix}{other} is a part of {path}; vary one of them"


def _varied_row(settings: Mapping[str, Any]) -> Settings:
    """Return the row that has settings by dotted name, with a label that says them: "tower_depth 2, tower box"."""
    row: Settings = {}
    for path, value in settings.items():
        row = merge(row, _nested(path, value))
    names = short_names(settings)
    return {"label": ", ".join(f"{names[path]} {_text(value)}" for path, value in settings.items())} | row


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
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _draws(path: str, distribution: Distribution, form: SearchForm) -> list[Any]:
    ((name, arguments),) = distribution.items()
    draw = _DISTRIBUTIONS[name]
    stream = Random(f"{form.seed} {path}")  # a stream for each setting, so that one more leaves the others' draws alone
    return [draw(stream.random(), *arguments) for _ in range(form.num_samples)]


def _short(value: float, low: float, high: float) -> float:
    """Round to four digits, within the limits: enough to tune by, the same on every machine, and short in a label."""
    return min(max(float(f"{value:.4g}"), low), high)


def _uniform(u: float, low: float, high: float) -> float:
    return _short(low + u * (high - low), low, high)


def _loguniform(u: float, low: float, high: float) -> float:
    return _short(low * (high / low) ** u, low, high)


def _quniform(u: float, low: float, high: float, step: float) -> float:
    # floor(x + 0.5): halves go up, where Python's round() takes them to the even neighbour.
    return _short(math.floor((low + u * (high - low)) / step + 0.5) * step, low, high)


def _randint(u: float, low: int, high: int) -> int:
    return low + int(u * (high - low))


def _choice(u: float, *values: Any) -> Any:
    return values[int(u * len(values))]


# Ray Tune's names and arguments. Each maps a number u, uniform in [0, 1), to a value.
_DISTRIBUTIONS: Mapping[str, Callable[..., Any]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
    "randint": _randint,
    "choice": _choice,
}
