"""Settings laid over settings: a file over what it extends, a row over the defaults, the command line over all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeGuard

from model.config import InferenceConfig, ScheduleConfig, TrainConfig
from model.settings import Settings, merge, misspelt
from orchestrator.errors import UserError
from orchestrator.experiment.rows import Places, Resources
from orchestrator.strict_yaml import read_value

OF_ROWS = ("train", "inference", "split", "seeds")
"""What a command line sets in every row; all else that it sets is of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overridable:
    """What a command line may set with `--set`."""

    train: TrainConfig = field(default_factory=TrainConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    split: str = ""
    seeds: tuple[int, ...] = ()
    resources: Resources = field(default_factory=Resources)
    data: Places = field(default_factory=Places)
    suite: str = ""
    columns: tuple[str, ...] = ()
    reference: str = ""


def lay(over: Mapping[str, Any], base: Settings) -> Settings:
    """Lay settings over others, deeply; drops of the learning rate move with the number of epochs.

    Args:
        over: with `train`, `inference` and so on; where it sets `train.schedule.epochs` alone, the drops that `base`
            has are kept in proportion.
        base: of the same form.
    """
    laid = merge(base, over)
    epochs = _schedule(over).get("epochs")
    below = _schedule(base)
    if "lr_drop_epochs" in _schedule(over) or "lr_drop_epochs" not in below or not _is_count(epochs):
        return laid
    before = below.get("epochs", ScheduleConfig().epochs)
    if not _is_count(before) or not _are_drops(below["lr_drop_epochs"], before):
        return laid  # a mistake, which is told where the row is read
    drops = moved_drops(below["lr_drop_epochs"], before, epochs)
    return merge(laid, {"train": {"schedule": {"lr_drop_epochs": drops}}})


def with_drops(raw: Settings) -> Settings:
    """Give a row that says how many epochs, and not where the rate drops, the default's drops in proportion."""
    schedule, usual = _schedule(raw), ScheduleConfig()
    epochs = schedule.get("epochs")
    if "lr_drop_epochs" in schedule or not _is_count(epochs):
        return raw
    drops = moved_drops(usual.lr_drop_epochs, usual.epochs, epochs)
    return merge(raw, {"train": {"schedule": {"lr_drop_epochs": drops}}})


def moved_drops(drops: Sequence[int], before: int, epochs: int) -> list[int]:
    """Move drops of a schedule of `before` epochs to one of `epochs`: in proportion, each in an epoch of its own.

    >>> moved_drops([8, 11], 12, 24), moved_drops([8, 11], 12, 3), moved_drops([8, 11], 12, 1)
    ([16, 22], [2], [])
    """
    # Halves go up. What would come behind the last epoch comes with it, and two that meet are one.
    moved = [min(epochs - 1, (2 * drop * epochs + before) // (2 * before)) for drop in drops]
    return sorted({drop for drop in moved if drop >= 1})


def parse_overrides(texts: Iterable[str]) -> Settings:
    """Read `NAME=VALUE` pairs, such as train.schedule.epochs=3, as the settings of a file; values are YAML.

    Raises:
        UserError: a pair has no `=`, a value is no YAML, or a name is no setting.
    """
    overrides: Settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        *path, last = name.strip().split(".")
        if not equals or not last:
            raise UserError(f"--set {text}: expected a setting and its value, such as train.schedule.epochs=3")
        setting: Settings = {last: read_value(value, f"--set {text}")}
        for part in reversed(path):
            setting = {part: setting}
        if problems := list(misspelt(Overridable, setting)):
            raise UserError("\n".join(f"--set {problem}" for problem in problems))
        overrides = merge(overrides, setting)
    return overrides


def override(merged: Settings, overrides: Settings) -> Settings:
    """Lay the settings of a command line over a file, and over each row of it."""
    of_rows = {name: value for name, value in overrides.items() if name in OF_ROWS}
    of_file = {name: value for name, value in overrides.items() if name not in OF_ROWS}
    if not overrides:
        return merged
    # A row is laid over the defaults later; what is set here has to rule over both.
    merged = merge(merged, of_file)
    merged = merged | {"defaults": lay(of_rows, merged.get("defaults", {}))}
    return merged | {"rows": [lay(of_rows, row) if isinstance(row, dict) else row for row in merged.get("rows") or ()]}


def _schedule(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    train = settings.get("train")
    schedule = train.get("schedule") if isinstance(train, Mapping) else None
    return schedule if isinstance(schedule, Mapping) else {}


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _are_drops(drops: Any, epochs: int) -> bool:
    sound = isinstance(drops, list | tuple) and all(map(_is_count, drops)) and max(drops, default=0) < epochs
    return sound and all(one < other for one, other in pairwise(drops))
