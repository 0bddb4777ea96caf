"""Config dataclasses seen as nested mappings of settings: written out, read back, compared, merged, spell-checked."""

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from model.config import InferenceConfig

T = TypeVar("T")
Settings = dict[str, Any]


def to_dict(config: Any) -> Settings:
    """Write a config dataclass as a full, JSON-able mapping; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}


def from_dict(kind: type[T], settings: Mapping[str, Any]) -> T:
    """Read a mapping back as the config dataclass `kind`; settings left out keep their defaults.

    Raises:
        ValueError: a setting is unknown, or has a value out of range.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{settings!r} is no {kind.__name__}, expected a mapping")
    unknown = list(misspelt(kind, settings))
    if unknown:
        raise ValueError("; ".join(unknown))
    values = dict(settings)
    for name, nested in nested_kinds(cast(Any, kind)).items():
        if values.get(name) is not None:
            values[name] = from_dict(nested, values[name])
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def differences(config: Any) -> Settings:
    """Return the settings that differ from the defaults, nested, in a canonical form where 0 equals 0.0."""
    return _differences(config, type(config)())


def flat_differences(config: Any) -> dict[str, Any]:
    """Return the settings that differ from the defaults by dotted name, as in {"model.backbone": "resnet18"}."""
    return dict(_flatten(differences(config), ""))


def merge(base: Settings, over: Mapping[str, Any]) -> Settings:
    """Lay `over` on `base`: mappings merge deeply, everything else (None and lists, too) replaces."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below if isinstance(below, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the last part of each dotted name, or the whole where two would share it."""
    short = {path: path.rpartition(".")[2] for path in paths}
    uses = Counter(short.values())
    return {path: name if uses[name] == 1 else path for path, name in short.items()}


def misspelt(kind: Any, settings: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Name each key of `settings` that is no setting of the dataclass `kind`, at any depth, with a suggestion."""
    known = [f.name for f in fields(kind)]
    nested = nested_kinds(kind)
    for name, value in settings.items():
        if name not in known:
            yield f"{prefix}{name} is not a setting; {suggestion(name, known, prefix)}"
        elif name in nested and isinstance(value, Mapping):
            yield from misspelt(nested[name], value, f"{prefix}{name}.")


def suggestion(name: object, known: Iterable[str], prefix: str = "") -> str:
    """Say which known name was probably meant, or list them all."""
    known = list(known)
    by_lower_case = {other.lower().replace("-", "_"): other for other in known}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), by_lower_case, n=1)
    if near:
        return f"did you mean {prefix}{by_lower_case[near[0]]}?"
    return f"expected one of: {', '.join(known)}"


@cache
def nested_kinds(kind: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are dataclasses themselves, or such a class or None."""
    hints = get_type_hints(kind)
    parts = {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(kind)}
    return {name: part for name, inside in parts.items() for part in inside if is_dataclass(part)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _canonical(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _differences(config: Any, default: Any) -> Settings:
    """Compare by field; a nested config whose default is None appears even when it holds nothing but defaults."""
    found: Settings = {}
    for f in fields(config):
        value: Any = getattr(config, f.name)
        usual: Any = getattr(default, f.name)
        if is_dataclass(value):
            inside = _differences(value, cast(Any, type(value))() if usual is None else usual)
            if inside or usual is None:
                found[f.name] = inside
        elif is_dataclass(usual) or _canonical(value) != _canonical(usual):
            found[f.name] = _canonical(value)
    return found


def _flatten(settings: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def inference_key(inference: InferenceConfig) -> str:
    """Return the identity of an inference setting, whatever is scored by it."""
    return _key("InferenceConfig", differences(inference))


def _key(kind: str, settings: Settings, *rest: str) -> str:
    content = json.dumps([kind, settings, *rest], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
