"""Reads a YAML file strictly: a mapping of YAML 1.2 scalars, in which no key stands twice."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from model.foreign import MOST_NODES, read_yaml_text
from model.settings import Settings
from orchestrator.errors import UserError

SHORTER = "write a grid or a search in place of rows, or divide the file"
"""What makes an experiment file shorter."""


def read_yaml(
    path: Path, *, named_by: Path | None = None, kind: str = "an experiment file", holds: str = "title, rows and so on"
) -> Settings:
    """Read one YAML mapping, in which no key stands twice.

    Args:
        path: of the file.
        named_by: the file that extends this one.
        kind: what is expected to lie there, and
        holds: to stand in it, in the words of an error.

    Raises:
        UserError: it cannot be read, or is no such mapping.
    """
    try:
        content = yaml.load(read_yaml_text(path, SHORTER), _Loader)
    except OSError as error:
        reason = f"{error.strerror or error}".lower()
        named = f", named by extends in {named_by}" if named_by else ""
        raise UserError(f"{path}: cannot be read{named}: {reason}; expected {kind}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{at}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply for {kind}; mend the file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # too large; or a number of more digits than Python reads
        raise UserError(f"{path}: {error}") from error
    if content is None:
        raise UserError(f"{path}: is empty; expected {holds}, as in experiments/README.md")
    if not isinstance(content, dict):
        raise UserError(f"{path}: is a {type(content).__name__}, expected a mapping: {holds}")
    return content


def read_value(text: str, where: str) -> Any:
    """Read one value: a scalar, a list such as [1, 2], or a mapping; what is no YAML by itself is text.

    Raises:
        UserError: it begins as a list or a mapping and does not end as one; `where` leads.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if text.strip()[:1] in ("[", "{", '"', "'"):
            problem = getattr(error, "problem", None) or "no YAML"
            raise UserError(f"{where}: the value cannot be read ({problem}); write a list as [1, 2]") from error
        return text


def write_value(value: Any) -> str:
    """Write one value in a line, as `read_value` reads it back."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: 1e-4 is a number; yes, 12:30 and 2024-01-01 are text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (add_implicit_resolver fills it below)

    def get_single_node(self) -> yaml.Node | None:
        """Refuse aliases of aliases, which double with each line: a file of 600 bytes would take all memory."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None and _written_out(root, {}, ()) > MOST_NODES:
            problem = f"its aliases (*name) stand for more than {MOST_NODES:,} values; write the values out"
            raise yaml.constructor.ConstructorError(None, None, problem, root.start_mark)
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice."""
        seen: set[object] = set()  # PyYAML itself silently keeps the last of two
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key in seen:
                problem = f"{key} stands twice in one mapping" if key else "a key must be one word"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Refuse a number that no float can hold, such as 1e999."""
        value = float(node.value)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value} is too large", node.start_mark)
        return value


def _written_out(node: yaml.Node, known: dict[yaml.Node, int], within: tuple[yaml.Node, ...]) -> int:
    """How many values a node has with all of its aliases written out; `within` are those that it stands in."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node in within:
        raise yaml.constructor.ConstructorError(None, None, "found unconstructable recursive node", node.start_mark)
    if node not in known:
        inside = [part for pair in node.value for part in (pair if isinstance(node, yaml.MappingNode) else (pair,))]
        known[node] = 1 + sum(_written_out(one, known, (*within, node)) for one in inside)
    return known[node]


# PyYAML knows YAML 1.1 alone, which takes 1e-4 for text, `no` for false and 12:30 for 750. It looks for a scalar's kind
# by the first character, then by the pattern.
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
