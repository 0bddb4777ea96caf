"""Frozen dataclasses as nested mappings of settings: written, read and checked, compared, merged, hashed."""

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from model.config import InferenceConfig

T = TypeVar("T")
Settings = dict[str, Any]
MOST_SHOWN = 200
"""Letters of a value in a message; what is said of a long list is lost behind it."""


def to_dict(config: Any) -> Settings:
    """Write a config dataclass as a full, JSON-able mapping; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def from_dict(kind: type[T], settings: Any, prefix: str = "") -> T:
    """Read a mapping back as the dataclass `kind`; settings left out keep their defaults.

    Args:
        kind: a dataclass of numbers, texts, Literals, tuples, mappings and other such dataclasses, each possibly None.
        settings: what JSON or YAML gives: lists stand for tuples, and whole numbers for floats.
        prefix: stands before each name in the message, such as "inference.".

    Raises:
        ValueError: a setting is unknown, missing, of another type or out of range; the message names each.
    """
    unknown = list(misspelt(kind, settings, prefix)) if isinstance(settings, Mapping) else []
    config, problems = read_settings(kind, settings, prefix)
    if config is None or unknown:
        raise ValueError("; ".join(unknown + problems))
    return config


def read_settings(kind: type[T], settings: Any, prefix: str = "") -> tuple[T | None, list[str]]:
    """Like `from_dict`, but return the mistakes, with None, instead of raising them; unknown settings are passed over.

    Where files are laid over each other, `misspelt` names unknown settings in the file that has them.
    """
    problems: list[str] = []
    config = _read(kind, settings, prefix.removesuffix("."), problems)
    return (None, problems) if problems else (config, [])


def misspelt(kind: Any, settings: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Name each key of `settings` that is no setting of the dataclass `kind`, at any depth, with a suggestion."""
    known = [f.name for f in fields(kind)]
    nested = nested_kinds(kind)
    for name, value in settings.items():
        if name not in known:
            below = list(_settings_below(kind, name, prefix))
            meant = f"did you mean {below[0]}?" if len(below) == 1 else suggestion(name, known, prefix)
            yield f"{prefix}{name} is not a setting; {meant}"
        elif name in nested and isinstance(value, Mapping):
            yield from misspelt(nested[name], value, f"{prefix}{name}.")


def _settings_below(kind: Any, name: Any, prefix: str) -> Iterator[str]:
    """Yield each setting of the groups in `kind`, at any depth, whose last part is this name."""
    for group, part in nested_kinds(kind).items():
        if name in [f.name for f in fields(part)]:
            yield f"{prefix}{group}.{name}"
        yield from _settings_below(part, name, f"{prefix}{group}.")


def misplaced(kind: Any, settings: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Name what stands in the place of a group of settings of the dataclass `kind`, at any depth, and is no group.

    Such is null, as YAML has it where all that stood below a name is commented out: merged, it takes away what the
    file inherits. A part that may be None may be null.
    """
    for name, part in nested_kinds(kind).items():
        value = settings.get(name, {})
        if isinstance(value, Mapping):
            yield from misplaced(part, value, f"{prefix}{name}.")
        elif value is not None or NoneType not in get_args(_hints(kind)[name]):
            yield _not_read(f"{prefix}{name}", value, part)


def suggestion(name: object, known: Iterable[str], prefix: str = "") -> str:
    """Say which known name was probably meant, or list them all."""
    known = list(known)
    by_lower_case = {other.lower().replace("-", "_"): other for other in known}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), by_lower_case, n=1)
    if near:
        return f"did you mean {prefix}{by_lower_case[near[0]]}?"
    return f"expected one of: {', '.join(known)}"


def merge(base: Settings, over: Mapping[str, Any]) -> Settings:
    """Lay `over` on `base`: mappings merge deeply, everything else (None and lists, too) replaces."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def changed(inference: InferenceConfig, settings: dict[str, Any]) -> InferenceConfig:
    """The settings with some of them changed; a change of fusion drops the exponent, which belongs to the other one.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    if settings.get("fusion", inference.fusion) != inference.fusion:
        # By way of the defaults, since InferenceConfig refuses an exponent beside the fusion "product".
        inference = replace(inference, fusion="power", confidence_exponent=InferenceConfig().confidence_exponent)
    return from_dict(InferenceConfig, to_dict(inference) | settings, "inference.")


def differences(config: Any) -> Settings:
    """Return the settings that differ from the defaults, nested, in a canonical form where 0 equals 0.0."""
    return _differences(config, _default(cast(Any, type(config))))


def flat_differences(config: Any) -> dict[str, Any]:
    """Return the settings that differ from the defaults by dotted name, as in {"model.backbone": "resnet18"}."""
    return dict(_flatten(differences(config), ""))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the last part of each dotted name, or the whole where two would share it."""
    short = {path: path.rpartition(".")[2] for path in paths}
    uses = Counter(short.values())
    return {path: name if uses[name] == 1 else path for path, name in short.items()}


def inference_key(inference: InferenceConfig) -> str:
    """Return the identity of an inference setting, whatever is scored by it."""
    return content_key("InferenceConfig", differences(inference))


def content_key(kind: str, settings: Settings, *rest: str) -> str:
    """Return 12 hex digits of a hash over the name of a config's class, its settings, and what else tells it apart."""
    # Sorted: the order in which a class lists its settings is no part of a key.
    content = json.dumps([kind, settings, *rest], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def nested_kinds(kind: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are dataclasses themselves, or such a class or None."""
    hints = _hints(kind)
    parts = {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(kind)}
    return {name: part for name, inside in parts.items() for part in inside if is_dataclass(part)}


def _read(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Return a value as the type `kind`, or None after adding to `problems` what is wrong with it."""
    inside = get_args(kind)
    if NoneType in inside:
        (kind,) = (part for part in inside if part is not NoneType)
        return None if value is None else _read(kind, value, path, problems)
    origin = get_origin(kind)
    if kind is Any or (origin is Literal and value in inside):
        return value
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _read_fields(kind, value, path, problems)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read(inside[0], item, f"{path}.{place}", problems) for place, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {name: _read(inside[1], item, f"{path}.{name}", problems) for name, item in value.items()}
    # Real and Integral, because Python callers may pass numpy's numbers; bool is an Integral, but no number in YAML.
    if kind in (int, float) and isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number of 309 digits is no float
            return kind(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    problems.append(_not_read(path or kind.__name__, value, kind))
    return None


def _not_read(path: str, value: Any, kind: Any) -> str:
    said = json.dumps(value, ensure_ascii=False, default=repr)
    shown = said if len(said) <= MOST_SHOWN else f"{said[:MOST_SHOWN]}…"
    return f"{path} is {shown}, expected {_expected(kind)}"


def _read_fields(kind: Any, settings: Mapping[str, Any], path: str, problems: list[str]) -> Any:
    prefix, before = f"{path}." if path else "", len(problems)
    values = {}
    for f in fields(kind):
        if f.name in settings:
            values[f.name] = _read(_hints(kind)[f.name], settings[f.name], prefix + f.name, problems)
        elif f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"{prefix}{f.name} is missing")
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:  # from a __post_init__; it begins with the setting's name
        problems.append(f"{prefix}{error}")
        return None


def _expected(kind: Any) -> str:
    """Say what a setting of this type may be, in the words of a YAML file."""
    if get_origin(kind) is Literal:
        *others, last = (f"'{choice}'" for choice in get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if is_dataclass(kind) or get_origin(kind) in (dict, Mapping):
        return "a mapping of settings"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text; put it in quotes"}
    return "a list" if get_origin(kind) is tuple else words[kind]


@cache  # get_type_hints evaluates annotations anew each time, which hundreds of rows would feel
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _differences(config: Any, default: Any) -> Settings:
    """Compare by field; a nested config whose default is None appears even when it holds nothing but defaults."""
    found: Settings = {}
    for f in fields(config):
        value: Any = getattr(config, f.name)
        usual: Any = getattr(default, f.name)
        if value is usual:  # most settings of most of thousands of rows
            continue
        if is_dataclass(value):
            inside = _differences(value, _default(cast(Any, type(value))) if usual is None else usual)
            if inside or usual is None:
                found[f.name] = inside
        elif is_dataclass(usual) or _canonical(value) != _canonical(usual):
            found[f.name] = _canonical(value)
    return found


@cache  # configs are frozen, so that one serves all
def _default(kind: Any) -> Any:
    return kind()


def _canonical(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    # YAML may say 1 or 1.0 for one setting, which has to have one key.
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _flatten(settings: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
