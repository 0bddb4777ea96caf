"""Reads a YAML file strictly, and types its settings; each mistake is told in the words of the file."""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

from model.settings import Settings
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def read_yaml(path: Path, *, named_by: Path | None = None) -> Settings:
    """Read one YAML mapping, in which no key stands twice; `named_by` is the file that extends this one."""
    try:
        content = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        reason = f"{error.strerror or error}".lower()
        named = f", named by extends in {named_by}" if named_by else ""
        raise UserError(f"{path}: cannot be read{named}: {reason}; expected an experiment file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{at}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise UserError(f"{path}: is empty; expected title, rows and so on, as in experiments/README.md")
    if not isinstance(content, dict):
        raise UserError(f"{path}: is a {type(content).__name__}, expected a mapping: title, rows and so on")
    return content


def typed(kind: type[T], settings: Settings, prefix: str = "") -> tuple[T | None, list[str]]:
    """Build the dataclass `kind` with strict types; return it, or None and its mistakes."""
    from pydantic import ValidationError

    try:
        return _adapter(cast(Any, kind)).validate_json(json.dumps(settings), strict=True), []
    except ValidationError as error:
        return None, [_explain(details, prefix) for details in error.errors(include_url=False)]


def _explain(details: Mapping[str, Any], prefix: str) -> str:
    """Say in the words of the file what pydantic found."""
    if details["type"] == "value_error":  # from a __post_init__; it begins with the setting's name
        return prefix + ".".join(map(str, (*details["loc"], details["ctx"]["error"])))
    path = prefix + ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return f"{path} is missing"
    expected = details["msg"].replace("Input should be ", "").removeprefix("a valid ")
    expected = _EXPECTED.get(details["type"], expected)
    return f"{path} is {json.dumps(details['input'], ensure_ascii=False)}, expected {expected}"


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text; put it in quotes",
    "tuple_type": "a list",
    "dict_type": "a mapping of settings",
    "mapping_type": "a mapping of settings",
    "dataclass_type": "a mapping of settings",
}


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: 1e-4 is a number; yes, 12:30 and 2024-01-01 are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (add_implicit_resolver fills it below)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice; YAML would silently keep the last."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key in seen:
                problem = f"{key} stands twice in one mapping" if key else "a key must be one word"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Refuse a number that no float can hold."""
        value = float(node.value)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} is too large", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
