"""A checkpoint under many inference settings, from one pass: what each setting gives, beside what the paper gives."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import DataConfig, InferenceConfig, TrainConfig, require_branch
from model.settings import to_dict
from orchestrator.checkpoint.evaluate import read_checkpoint, read_images, score_checkpoint
from orchestrator.checkpoint.pull import slug
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import train_key
from orchestrator.site import Site

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.network.checkpoint import Card

MOST = 256
"""Settings of one sweep; every one of them holds its detections of all images in memory."""
FORM = "expected START:STOP:STEP or a list, such as 0:1:0.05 or 0,0.4,0.5"
Combination = tuple[float, ...]
"""A value for each axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """An inference setting and the values that it takes, rising."""

    setting: str
    """Its name in InferenceConfig."""
    option: str
    """What it is called on the command line."""
    values: tuple[float, ...]

    @property
    def label(self) -> str:
        """What it is called in tables and figures."""
        return LABELS.get(self.setting, self.setting.replace("_", " "))

    @property
    def digits(self) -> int:
        """Decimals that tell the values apart, at least one."""
        return max(1, *(-_exponent(Decimal(str(value))) for value in self.values))


LABELS = {"confidence_exponent": "exponent", "nms_iou": "NMS IoU"}


def parse_axis(setting: str, option: str, text: str) -> Axis:
    """Read the values of a setting.

    Raises:
        UserError: it is no range and no list of different numbers, or an empty or an endless one.
    """
    parts = text.split(":")
    if len(parts) == 3:
        values = _range(f"{option} {text}", *(_number(f"{option} {text}", part) for part in parts))
    elif len(parts) == 1:
        values = [_number(f"{option} {text}", part) for part in text.split(",")]
    else:
        raise UserError(f"{option} {text}: {FORM}")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option} {text}: {value} stands twice; leave one out")
    return Axis(setting=setting, option=option, values=tuple(float(value) for value in sorted(values)))


def combinations(axes: Sequence[Axis]) -> list[Combination]:
    """Every value of each axis with every one of the others, the last axis changing first.

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
    """From START to STOP, both included, in decimal arithmetic: 0:1:0.1 holds 0.3, and not 0.30000000000000004."""
    if step <= 0:
        raise UserError(f"{said}: the step is {step}, expected more than 0")
    if start > stop:
        raise UserError(f"{said}: it begins at {start}, above its end {stop}; swap them")
    if (stop - start) / step >= MOST:
        raise UserError(f"{said}: more than {MOST} values; take a larger step")
    return [start + place * step for place in range(int((stop - start) / step) + 1)]


def _number(said: str, text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise UserError(f"{said}: {text.strip()!r} is no number; {FORM}")
    return number


def _exponent(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


OPTIONS = {
    "confidence_exponent": "--exponents",
    "nms_iou": "--nms-iou",
    "score_threshold": "--score-threshold",
    "min_confidence": "--min-confidence",
}
"""The settings that can be swept over, and what they are called on the command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to sweep over, and on which images."""

    folder: Path
    """A checkpoint, as `rnc pull` fetches it."""
    axes: tuple[Axis, ...]
    settings: Sequence[str] = ()
    """Inference settings to change for all, such as `nms_pre=500`."""
    data: Path | None = None
    """A COCO-format data set; None takes the one that the site has under the checkpoint's name."""
    split: str | None = None
    """None takes the one that the row was scored on."""
    all_images: bool = False
    """Score the whole split, even where the training scored its first images only."""
    beside: tuple[Experiment, ...] = ()
    """Tables whose numbers of the paper stand beside ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """One setting."""

    values: Combination
    """Of each axis that varies."""
    inference: InferenceConfig
    metrics: Mapping[str, float | None]
    """The twelve and those of model.evaluation.misalignment.OF_DETECTIONS; None where there is nothing to measure."""
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
    request: Request,
    site: Site,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Score all settings in one pass.

    Raises:
        UserError: the checkpoint, the data or a setting is not what it should be; no image was scored then.
    """
    card, provenance, base = read_checkpoint(request.folder, request.settings)
    chosen = combinations(request.axes)
    settings = [_setting(card, base, request.axes, one) for one in chosen]
    varied = tuple(axis for axis in request.axes if len(axis.values) > 1)
    if not varied:
        raise UserError(
            f"nothing varies; give one of {', '.join(OPTIONS.values())} several values, such as --exponents 0:1:0.05, "
            "or score a single setting with `rnc evaluate`"
        )
    split = request.split or (provenance.split if provenance else card.config.data.val_split)
    config = card.config.data
    if request.all_images:
        config = replace(config, num_train_images=None, num_val_images=None)
    data = read_images(request.data, config, split, site, say)
    scores = score_checkpoint(request.folder, data, settings, progress, site.scored)
    from model.evaluation.misalignment import of_detections

    papers = [papers_numbers(request.beside, card.config, config, one, split) for one in settings]
    spots = [
        Spot(
            values=tuple(value for axis, value in zip(request.axes, one, strict=True) if axis in varied),
            inference=setting,
            metrics=score.metrics | of_detections(data, score.detections),
            paper=paper,
        )
        for one, setting, score, paper in zip(chosen, settings, scores, papers, strict=True)
    ]
    label = provenance.row if provenance else f"{card.config.model.head}, epoch {card.epoch}"
    return Sweep(
        name=_name(label, varied, card, data, settings),
        title=f"{label}, swept over {' and '.join(axis.label for axis in varied)}",
        axes=varied,
        spots=tuple(spots),
        notes=tuple(_notes(request, card, data, base, varied, papers)),
    )


def papers_numbers(
    experiments: Sequence[Experiment], trained: TrainConfig, read: DataConfig, inference: InferenceConfig, split: str
) -> Mapping[str, float]:
    """What the paper gives for a training under a setting, whatever the seed; empty where it gives nothing.

    Args:
        experiments: the tables to look in; the first row that fits counts.
        trained: the settings of the training.
        read: its data settings, or those that the images were read with in their stead.
        inference: the setting.
        split: that was scored.
    """
    if read != trained.data:
        return {}
    for row in (row for experiment in experiments for row in experiment.rows):
        if row.paper and row.split == split and row.inference == inference and _same_training(row.train, trained):
            return row.paper
    return {}


def _same_training(one: TrainConfig, other: TrainConfig) -> bool:
    return train_key(replace(one, seed=0)) == train_key(replace(other, seed=0))


def _setting(card: "Card", base: InferenceConfig, axes: Sequence[Axis], values: Combination) -> InferenceConfig:
    from model.inference.predictor import changed

    try:
        inference = changed(base, {axis.setting: value for axis, value in zip(axes, values, strict=True)})
        require_branch(inference, has_branch=card.config.model.confidence is not None)
    except ValueError as error:
        options = " ".join(f"{axis.option} {value:g}" for axis, value in zip(axes, values, strict=True))
        raise UserError(f"{options}: {error}") from error
    return inference


def _notes(
    request: Request,
    card: "Card",
    data: "CocoData",
    base: InferenceConfig,
    varied: Sequence[Axis],
    papers: Sequence[Mapping[str, float]],
) -> list[str]:
    notes = [f"{len(data)} images of {data.root / data.split}."]
    if not len(data.annotation_ids):
        notes.append("None of them has an object, so there is nothing to measure: n/a.")
    swept = {axis.setting for axis in varied}
    alone = {axis.setting: axis.values[0] for axis in request.axes if axis.setting not in swept}
    fixed = {name: value for name, value in (to_dict(base) | alone).items() if name not in swept}
    notes.append(f"The same for all: {', '.join(f'{name} {value}' for name, value in fixed.items())}.")
    if request.beside and not any(papers):
        files = ", ".join(str(experiment.path) for experiment in request.beside)
        rows = [row for experiment in request.beside for row in experiment.rows]
        if any(_same_training(row.train, card.config) for row in rows):
            why = "has numbers of the paper for these inference settings and images"
        else:
            why = f"has the training settings of this checkpoint (training {train_key(card.config)})"
        notes.append(f"The paper's numbers are not beside: no row of {files} {why}.")
    return notes


def _name(
    label: str, varied: Sequence[Axis], card: "Card", data: "CocoData", settings: Sequence[InferenceConfig]
) -> str:
    content = [card.weights_sha256, data.fingerprint, [to_dict(setting) for setting in settings]]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:6]
    return f"{slug(label)}-{'-'.join(slug(axis.label) for axis in varied)}-{digest}"
