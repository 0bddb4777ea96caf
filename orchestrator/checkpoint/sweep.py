"""A sweep: ranges of inference settings as they are typed, and a checkpoint scored under all of them in one pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, DecimalException, InvalidOperation
from itertools import product
from pathlib import Path

from model.config import InferenceConfig, TrainConfig
from model.settings import Settings, read_settings, to_dict
from orchestrator.checkpoint.inputs import (
    ScoringInputs,
    Selection,
    change_settings,
    digest_of,
    no_progress,
    open_inputs,
    read_checkpoint,
)
from orchestrator.checkpoint.pull import slug
from orchestrator.errors import Say, UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import train_key
from orchestrator.site import Site
from orchestrator.tracking.artifacts import Progress

OPTIONS = {
    "confidence_exponent": "--exponents",
    "nms_iou": "--nms-iou",
    "score_threshold": "--score-threshold",
    "min_confidence": "--min-confidence",
    "suppression_sigma": "--suppression-sigma",
    "suppression": "--suppression",
}
"""The settings that can be swept over, and what they are called on the command line."""
KINDS = ("suppression",)
"""Those of OPTIONS whose values are names, which have no order."""
LABELS = {"confidence_exponent": "exponent", "nms_iou": "NMS IoU"}
"""What they are called in tables and figures, where that is not their name."""
MOST = 256
"""Settings of one sweep; every one of them holds its detections of all images in memory."""
FORM = "expected START:STOP:STEP or a list, such as 0:1:0.05 or 0,0.4,0.5"
Value = float | str
Combination = tuple[Value, ...]
"""A value for each axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """An inference setting and the values that it takes, rising, or names in the order in which they are typed."""

    setting: str
    """Its name in InferenceConfig."""
    option: str
    """What it is called on the command line."""
    values: tuple[Value, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether its values are numbers."""
        return self.setting not in KINDS

    @property
    def label(self) -> str:
        """What it is called in tables and figures."""
        return LABELS.get(self.setting, self.setting.replace("_", " "))

    @property
    def digits(self) -> int:
        """Decimals that tell the values apart, at least one."""
        return max(1, *(-_exponent(Decimal(str(value))) for value in self.values)) if self.is_ordered else 0

    def shown(self, value: Value) -> str:
        """Write a value so that it is told from the others."""
        return value if isinstance(value, str) else f"{value:.{self.digits}f}"

    def typed(self, value: Value) -> str:
        """Write a single value as on the command line."""
        return f"{self.option} {value}" if isinstance(value, str) else f"{self.option} {value:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The settings to sweep over, and the tables whose numbers of the paper stand beside ours."""

    axes: tuple[Axis, ...]
    """Those with a single value hold for all."""
    beside: tuple[Experiment, ...] = ()

    @property
    def varied(self) -> tuple[Axis, ...]:
        """Those with several values."""
        return tuple(axis for axis in self.axes if len(axis.values) > 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """One combination of the values, and what the checkpoint reaches under it."""

    values: Combination
    """Of each axis that varies."""
    inference: InferenceConfig
    metrics: Mapping[str, float | None]
    """The twelve, those of CALIBRATION and those of model.evaluation.misalignment.OF_DETECTIONS; None where there is
    nothing to measure."""
    paper: Mapping[str, float]
    """The paper's numbers of this setting, by metric, where it gives any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a checkpoint reaches under each of many settings."""

    name: str
    """Of the folder that it is written to: what it is, and a hash of what decides its numbers."""
    title: str
    axes: tuple[Axis, ...]
    """The one or two that vary."""
    spots: tuple[Spot, ...]
    """Every combination of their values, the last axis changing first."""
    notes: tuple[str, ...]


def sweep(
    folder: Path,
    grid: Grid,
    selection: Selection,
    site: Site,
    say: Say,
    progress: Progress = no_progress,
) -> Sweep:
    """Score a checkpoint under all settings of a grid in one pass.

    Raises:
        UserError: the checkpoint, the data or a setting is not what it should be; no image was scored then.
    """
    from model.evaluation.misalignment import of_detections

    checkpoint = read_checkpoint(folder, selection.settings)
    chosen = combinations(grid.axes)
    settings = []
    for values in chosen:
        changes = {axis.setting: value for axis, value in zip(grid.axes, values, strict=True)}
        typed = " ".join(axis.typed(value) for axis, value in zip(grid.axes, values, strict=True))
        settings.append(change_settings(checkpoint.card, checkpoint.inference, changes, typed))
    if not grid.varied:
        raise UserError(
            f"nothing varies; give one of {', '.join(OPTIONS.values())} several values, such as --exponents 0:1:0.05, "
            "or score a single setting with `rnc evaluate`"
        )
    # Images come last: reading a large data set takes minutes, and a mistake in the ranges should not wait for it.
    inputs = open_inputs(checkpoint, selection, site, say)
    spots = []
    # 20 settings at once take 1.9 times as long as one with the miniature detector, 1.1 times with ResNet-50.
    for values, scores in zip(chosen, inputs.score(settings, progress), strict=True):
        spots.append(
            Spot(
                values=tuple(value for axis, value in zip(grid.axes, values, strict=True) if axis in grid.varied),
                inference=scores.inference,
                metrics={**scores.metrics, **scores.calibration, **of_detections(inputs.data, scores.detections)},
                paper=papers_numbers(grid.beside, inputs, scores.inference),
            )
        )
    label = checkpoint.row or f"{checkpoint.card.config.model.head}, epoch {checkpoint.card.epoch}"
    return Sweep(
        name=_name(label, grid, inputs, settings),
        title=f"{label}, swept over {' and '.join(axis.label for axis in grid.varied)}",
        axes=grid.varied,
        spots=tuple(spots),
        notes=tuple(_notes(grid, inputs, spots)),
    )


def papers_numbers(
    experiments: Sequence[Experiment], inputs: ScoringInputs, inference: InferenceConfig
) -> Mapping[str, float]:
    """Return what the paper gives for a checkpoint's training under a setting; empty where it gives nothing.

    The first row of these tables counts that has the same training settings, whatever the seed, the same inference
    settings and the same split, as long as the images are those of the training's own settings.
    """
    trained = inputs.checkpoint.card.config
    if inputs.config != trained.data:
        return {}
    for row in (row for experiment in experiments for row in experiment.rows):
        is_same_scoring = row.split == inputs.data.split and row.inference == inference
        if row.paper and is_same_scoring and _same_training(row.train, trained):
            return row.paper
    return {}


def _same_training(one: TrainConfig, other: TrainConfig) -> bool:
    return train_key(replace(one, seed=0)) == train_key(replace(other, seed=0))


def _notes(grid: Grid, inputs: ScoringInputs, spots: Sequence[Spot]) -> list[str]:
    notes = [f"{inputs.images}."]
    if not len(inputs.data.annotation_ids):
        notes.append("None of them has an object, so there is nothing to measure: n/a.")
    swept = {axis.setting for axis in grid.varied}
    alone = {axis.setting: axis.values[0] for axis in grid.axes if axis.setting not in swept}
    fixed = {n: v for n, v in (to_dict(inputs.checkpoint.inference) | alone).items() if n not in swept}
    notes.append(f"The same for all: {', '.join(f'{name} {value}' for name, value in fixed.items())}.")
    if grid.beside and not any(spot.paper for spot in spots):
        trained = inputs.checkpoint.card.config
        files = ", ".join(str(experiment.path) for experiment in grid.beside)
        if any(_same_training(row.train, trained) for experiment in grid.beside for row in experiment.rows):
            why = "has numbers of the paper for these inference settings and images"
        else:
            why = f"has the training settings of this checkpoint (training {train_key(trained)})"
        notes.append(f"The paper's numbers are not beside: no row of {files} {why}.")
    return notes


def _name(label: str, grid: Grid, inputs: ScoringInputs, settings: Sequence[InferenceConfig]) -> str:
    """Name the folder of a sweep; another checkpoint, other images or other settings go to another folder."""
    weights, data = inputs.checkpoint.card.weights_sha256, inputs.data.fingerprint
    digest = digest_of(weights, data, [to_dict(setting) for setting in settings])
    return f"{slug(label)}-{'-'.join(slug(axis.label) for axis in grid.varied)}-{digest}"


def parse_axes(ranges: Mapping[str, str | None]) -> tuple[Axis, ...]:
    """Read the ranges of the settings that have one, names before numbers: the first axis goes down a grid.

    Raises:
        UserError: see `parse_axis`.
    """
    order = sorted(OPTIONS, key=lambda setting: setting not in KINDS)
    texts = {setting: ranges[setting] for setting in order}
    return tuple(parse_axis(name, OPTIONS[name], text) for name, text in texts.items() if text is not None)


def parse_axis(setting: str, option: str, text: str) -> Axis:
    """Read the values of a setting.

    Raises:
        UserError: it is no range and no list of different numbers, or an empty or an endless one, or leaves what the
            setting allows, or is no list of different names that the setting knows.
    """
    said, parts = f"{option} {text}", text.split(":")
    if setting in KINDS:
        names = tuple(name.strip() for name in text.split(","))
        _require_once(said, names)
        for name in names:
            _require_known(said, {setting: name})
        return Axis(setting=setting, option=option, values=names)
    if len(parts) == 3:
        start, stop, step = (_number(said, part) for part in parts)
        values = _range(said, start, stop, step)
    elif len(parts) == 1:
        values = [_number(said, part) for part in text.split(",")]
    else:
        raise UserError(f"{said}: {FORM}")
    _require_once(said, values)
    # Only some suppressions have a width.
    alone: Settings = {"suppression": "voting"} if setting == "suppression_sigma" else {}
    numbers = tuple(float(value) for value in sorted(values))
    for number in numbers:
        _require_known(f"{option} {number:g}", {setting: number, **alone})
    return Axis(setting=setting, option=option, values=numbers)


def _require_known(said: str, settings: Settings) -> None:
    _, problems = read_settings(InferenceConfig, settings)
    if problems:
        raise UserError(f"{said}: {problems[0]}")


def _require_once(said: str, values: Sequence[object]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{said}: {value} stands twice; leave one out")


def combinations(axes: Sequence[Axis]) -> list[Combination]:
    """Combine every value of each axis with every one of the others, the last axis changing first.

    Raises:
        UserError: these are more than MOST, or more than two axes have several values.
    """
    varied = [axis for axis in axes if len(axis.values) > 1]
    if len(varied) > 2:
        raise UserError(
            f"{', '.join(axis.option for axis in varied)} all have several values; vary one for a curve or two for a "
            "grid, and give the others one value"
        )
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST:
        raise UserError(
            f"{' x '.join(axis.option for axis in varied)} are {count} settings, at most {MOST} are scored at once; "
            "take a larger step"
        )
    return list(product(*(axis.values for axis in axes)))


def _range(said: str, start: Decimal, stop: Decimal, step: Decimal) -> list[Decimal]:
    """Return the values from START to STOP, both included."""
    if step <= 0:
        raise UserError(f"{said}: the step is {step}, expected more than 0")
    if start > stop:
        raise UserError(f"{said}: it begins at {start}, above its end {stop}; swap them")
    try:
        count = int((stop - start) / step) + 1
    except DecimalException:  # of more digits than any setting has
        count = MOST + 1
    if count > MOST:
        raise UserError(f"{said}: more than {MOST} values; take a larger step")
    # Decimals, as floats would make 0:1:0.1 hold 0.30000000000000004, which no row of an experiment file has.
    return [start + place * step for place in range(count)]


def _number(said: str, text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise UserError(f"{said}: {text.strip()!r} is no number; {FORM}")
    return number


def _exponent(number: Decimal) -> int:
    """Return the power of ten of a number's last digit: -2 for 0.05."""
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent
