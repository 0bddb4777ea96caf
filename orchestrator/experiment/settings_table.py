"""Every setting of an experiment file as a table: name, type, default, what a change of it costs, meaning."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model.config import InferenceConfig, TrainConfig
from model.settings import nested_kinds, suggestion
from orchestrator.errors import UserError
from orchestrator.experiment.rows import Places, Resources
from orchestrator.figures.table import Column, Table

Cost = Literal["train again", "score again", "free"]
"""What a change of a setting costs where results are there already: its ring of cost."""
SECTIONS: tuple[tuple[str, type, Cost], ...] = (
    ("train", TrainConfig, "train again"),
    ("inference", InferenceConfig, "score again"),
    ("resources", Resources, "free"),
    ("data", Places, "free"),
)
"""The mappings of a file that hold settings, and their classes."""
NOTES = (
    "train again: a change is another training. score again: another scoring pass over a finished training. "
    "free: no part of any identity, so that nothing is done again.",
    "train and inference stand in a row or under defaults, resources and data at the top of the file; seeds sets "
    "train.seed. Every verb that takes an EXPERIMENT takes --set SETTING=VALUE as well.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting, as it is documented."""

    name: str
    """With its path in the file, such as train.model.channels."""
    type: str
    default: str
    """As YAML has it."""
    cost: Cost
    meaning: str


def all_settings() -> list[Setting]:
    """List the settings of train, inference, resources and data, in the order in which their classes define them."""
    return [setting for name, kind, cost in SECTIONS for setting in _settings(name, kind, cost)]


def settings_table(pattern: str = "") -> Table:
    """Show the settings that fit a pattern.

    Args:
        pattern: a part of a name or of a meaning, or a glob that the whole of one fits, in any case of letters.

    Raises:
        UserError: no setting fits.
    """
    everything = all_settings()
    found = [setting for setting in everything if _fits(setting, pattern.lower())]
    if not found:
        names = [setting.name for setting in everything]
        last_parts = [name.rpartition(".")[2] for name in names]
        guess = suggestion(pattern, names if "." in pattern else last_parts)
        guess = guess if guess.startswith("did you mean") else "`rnc settings` lists all"
        raise UserError(f"no setting has {pattern!r} in its name or meaning; {guess}")
    return Table(
        title="Settings",
        caption="What an experiment file can set, with the paper's values as defaults",
        columns=tuple(
            Column(name, numeric=False) for name in ("setting", "type", "default", "cost of a change", "meaning")
        ),
        rows=tuple((s.name, s.type, s.default, s.cost, s.meaning) for s in found),
        notes=NOTES,
        rules_before=tuple(i for i, (one, next_) in enumerate(pairwise(found), 1) if one.cost != next_.cost),
    )


def _fits(setting: Setting, pattern: str) -> bool:
    texts = (setting.name.lower(), setting.meaning.lower())
    # A glob has to fit the whole of a text, plain words any part of it.
    if "*" in pattern or "?" in pattern:
        return any(fnmatchcase(text, pattern) for text in texts)
    return any(pattern in text for text in texts)


def _settings(prefix: str, kind: Any, cost: Cost) -> Iterator[Setting]:
    hints, meanings, nested = get_type_hints(kind), _meanings(kind), nested_kinds(kind)
    for field in fields(kind):
        name = f"{prefix}.{field.name}"
        may_be_absent = NoneType in get_args(hints[field.name])
        # A part that is always there, such as train.model, is nothing to set by itself; one that may be null is.
        if field.name not in nested or may_be_absent:
            yield Setting(
                name=name,
                type=_type_name(hints[field.name]),
                default=_default(field),
                cost=cost,
                meaning=meanings[field.name],
            )
        if field.name in nested:
            yield from _settings(name, nested[field.name], cost)


def _meanings(kind: type) -> dict[str, str]:
    """Return the text beneath each field, in the words of a YAML file."""
    # Python throws a string that stands alone away, so that these are read from the source.
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for line, below in pairwise(definition.body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[line.target.id] = re.sub(r"\bNone\b", "null", " ".join(text.replace("`", "").split()))
    return found


def _type_name(kind: Any) -> str:
    inside = get_args(kind)
    if NoneType in inside:
        (kind,) = (part for part in inside if part is not NoneType)
        return f"{_type_name(kind)}, or null"
    if get_origin(kind) is Literal:
        return f"one of: {', '.join(inside)}"
    if get_origin(kind) is tuple:
        return f"list of {_type_name(inside[0])}s"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(kind, "mapping")


def _default(field: "Field[Any]") -> str:
    # A mapping, whose own settings follow in the table.
    if field.default is MISSING or is_dataclass(field.default):
        return "the defaults below"
    return field.default if isinstance(field.default, str) else json.dumps(field.default)
