"""The confidence exponent and a recalibration of scores, fitted on one split and reported on another.

Whatever is chosen on the images that are scored is an optimum over them, and no result. So the choice is made of the
split to fit on alone, before the scored one is looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import HEADS, InferenceConfig
from model.settings import to_dict
from orchestrator.checkpoint.inputs import (
    CheckpointFolder,
    ScoringInputs,
    Selection,
    change_settings,
    digest_of,
    no_progress,
    open_inputs,
    read_checkpoint,
)
from orchestrator.checkpoint.pull import slug
from orchestrator.checkpoint.sweep import OPTIONS, Axis, combinations, parse_axis
from orchestrator.data.duplicates import leaks
from orchestrator.errors import Say, UserError
from orchestrator.site import Site
from orchestrator.tracking.artifacts import Progress

if TYPE_CHECKING:
    from model.evaluation.calibration.errors import Reliability
    from model.evaluation.calibration.outcomes import Outcomes
    from model.evaluation.calibration.recalibration import Recalibration
    from model.inference.table import DetectionTable
    from orchestrator.report.statistics.intervals import Estimate

EXPONENT = "confidence_exponent"
EVERY = "0:1:0.05"
"""The exponents that are tried where --exponents names none."""
AP_DIGITS = 1
"""Two APs that are shown alike are no reason to leave the exponent that was there."""
JUDGED = ("LaECE", "LaACE", "D-ECE")
"""The errors that a recalibration is judged by."""
Metrics = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One exponent, and what the checkpoint reaches with it."""

    exponent: float
    fitted_on: Metrics
    """The twelve, on the split to fit on."""
    scored: Metrics
    """The same on the scored one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrated:
    """The detections of the scored split with their scores as they are, or recalibrated."""

    name: str
    exponent: float
    by: "Recalibration | None"
    """None as they are."""
    errors: Metrics
    """JUDGED, 0 to 100."""
    bins: "Reliability"
    """What a reliability diagram shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What was fitted on one split, and what it is worth on another."""

    name: str
    """Of the folder that it is written to: what it is, and a hash of what decides its numbers."""
    title: str
    fitted_on: str
    """The split of which everything is chosen."""
    scored: str
    """The split that is reported on."""
    usual: float
    """The exponent before: the checkpoint's own, or the paper's."""
    usual_is: str
    """Whose it is, in words."""
    chosen: float
    best_there: float
    """The exponent of the highest AP on the scored split itself."""
    tried: tuple[Tried, ...]
    """By rising exponent; one alone where there is none to choose."""
    gain: "Estimate | None"
    """Of AP on the scored split at the chosen exponent over that at the usual one; None where they are the same."""
    calibrated: tuple[Calibrated, ...]
    notes: tuple[str, ...]

    def at(self, exponent: float) -> Tried:
        """What is reached with one of the exponents."""
        return next(one for one in self.tried if one.exponent == exponent)


def fit(
    folder: Path,
    split: str,
    axes: Sequence[Axis],
    selection: Selection,
    site: Site,
    say: Say,
    progress: Progress = no_progress,
) -> Fit:
    """Fit a checkpoint's exponent and two recalibrations on a split, and report them on the selected one.

    Args:
        folder: the checkpoint.
        split: to fit on.
        axes: the exponents to try, EVERY where that axis is not given, and the single values of other settings.
        selection: the data, the split that is scored, and how much of both.
        site: where data and scored shards are.
        say: told of what is left out.
        progress: told of both passes as one.

    Raises:
        UserError: the two splits have the same images, or one has no object or other categories than the checkpoint,
            or anything else is not as it should be; no image was scored then.
    """
    checkpoint = read_checkpoint(folder, selection.settings)
    selection = replace(selection, split=selection.split or checkpoint.split)
    if split == selection.split:
        raise _same(split, selection, f"{split} is the split that is scored")
    settings, usual = _settings(checkpoint, axes)
    # Images come last: reading a large data set takes minutes, and a mistake in the call should not wait for it.
    scored = open_inputs(checkpoint, selection, site, say)
    fitted_on = open_inputs(checkpoint, replace(selection, split=split), site, say, option="--fit")
    for inputs in (fitted_on, scored):
        _require_labels(inputs)
    twins = len(leaks(fitted_on.data, scored.data))
    if twins == len(scored.data):
        raise _same(split, selection, f"it has every image of {scored.data.split}, which is scored")

    total = len(fitted_on.data) + len(scored.data)
    curve, kept = _fitted_curve(fitted_on, settings, usual, lambda done, _: progress(done, total))
    chosen = choose(curve, usual)
    there, detections = {}, {}
    passed = scored.scores(
        list(settings.values()),
        lambda done, _: progress(len(fitted_on.data) + done, total),
        calibrating=False,  # of two exponents alone, by `_calibrated`
    )
    for one in passed:
        exponent = one.inference.confidence_exponent
        there[exponent] = one.metrics
        if exponent in (usual, chosen):
            detections[exponent] = one.detections
    tried = [Tried(exponent=one, fitted_on=curve[one], scored=there[one]) for one in settings]
    label = checkpoint.row or f"{checkpoint.card.config.model.head}, epoch {checkpoint.card.epoch}"
    return Fit(
        name=_name(label, fitted_on, scored, settings),
        title=f"{label}, fitted on {split}, scored on {selection.split}",
        fitted_on=split,
        scored=scored.data.split,
        usual=usual,
        usual_is=_usual_is(checkpoint, usual),
        chosen=chosen,
        best_there=choose(there, usual),
        tried=tuple(tried),
        gain=None if chosen == usual else _gain(scored, there, detections, chosen, usual),
        calibrated=tuple(_calibrated(fitted_on, kept, scored, detections, chosen)),
        notes=tuple(_notes(fitted_on, scored, twins, list(settings.values()))),
    )


def choose(curve: Mapping[float, Metrics], usual: float) -> float:
    """Return the exponent of the highest AP as it is shown; of equal ones that nearest to the usual, then the lower."""
    return min(curve, key=lambda one: (-round(curve[one]["AP"] or 0.0, AP_DIGITS), round(abs(one - usual), 9), one))


def _settings(checkpoint: CheckpointFolder, axes: Sequence[Axis]) -> tuple[dict[float, InferenceConfig], float]:
    """Return the inference settings to try, by rising exponent, and the exponent that is usual."""
    combinations(axes)  # refuses too many
    others = {axis.setting: axis for axis in axes if axis.setting != EXPONENT}
    for axis in others.values():
        if len(axis.values) > 1:
            raise UserError(
                f"{axis.option} has several values, but --fit chooses the exponent alone; give it one, or sweep over "
                "it without --fit"
            )
    fixed = {name: axis.values[0] for name, axis in others.items()}
    typed = " ".join(axis.typed(axis.values[0]) for axis in others.values())
    base = change_settings(checkpoint.card, checkpoint.inference, fixed, typed)
    usual = base.confidence_exponent
    given = [axis for axis in axes if axis.setting == EXPONENT]
    if not given and has_exponent(checkpoint):
        given = [parse_axis(EXPONENT, OPTIONS[EXPONENT], EVERY)]
    settings = {usual: base}
    for axis in given:
        for value in map(float, axis.values):
            settings[value] = change_settings(checkpoint.card, base, {EXPONENT: value}, axis.typed(value))
    return dict(sorted(settings.items())), usual


def has_exponent(checkpoint: CheckpointFolder) -> bool:
    """Whether a checkpoint's scores have a confidence exponent that could be chosen."""
    return checkpoint.card.config.model.confidence is not None and checkpoint.inference.fusion == "power"


def _usual_is(checkpoint: CheckpointFolder, usual: float) -> str:
    if not has_exponent(checkpoint):
        return "none to choose"
    return "the paper's" if usual == InferenceConfig().confidence_exponent else "the checkpoint's"


def _same(split: str, selection: Selection, why: str) -> UserError:
    return UserError(
        f"--fit {split}: {why}; what is chosen on the images that are scored is an optimum over them, and says nothing "
        f"of others; name another split with --fit, or score another than {selection.split} with --split"
    )


def _require_labels(inputs: ScoringInputs) -> None:
    """Refuse images on which nothing can be fitted or told, before any is scored."""
    from model.network.checkpoint import require_categories

    data = inputs.data
    if data.annotation_crowds.all():
        raise UserError(
            f"{data.root}, split {data.split}: none of its {len(data)} images has an object, so there is nothing to "
            "fit or to report; name a split with annotations"
        )
    try:
        categories = data.category_ids, data.category_names
        require_categories(inputs.checkpoint.path, categories, f"split {data.split}")
    except ValueError as error:
        raise UserError(str(error)) from error


def _fitted_curve(
    inputs: ScoringInputs, settings: Mapping[float, InferenceConfig], usual: float, progress: Progress
) -> "tuple[dict[float, Metrics], DetectionTable]":
    """Return the metrics by exponent, and the detections of the one that is chosen."""
    curve: dict[float, Metrics] = {}
    kept = None
    for one in inputs.scores(list(settings.values()), progress, calibrating=False):
        exponent = one.inference.confidence_exponent
        curve[exponent] = one.metrics
        if choose(curve, usual) == exponent:
            kept = one.detections  # of one setting at a time: a training split's fill gigabytes
    assert kept is not None
    return curve, kept


def _gain(
    inputs: ScoringInputs,
    metrics: Mapping[float, Metrics],
    detections: "Mapping[float, DetectionTable]",
    chosen: float,
    usual: float,
) -> "Estimate | None":
    """The difference of two APs, with an interval by images that are drawn again: of this training and this choice."""
    from model.evaluation.coco.matches import match
    from model.evaluation.coco.reweighted import precision_and_recall
    from orchestrator.report.statistics.intervals import SeedValues, difference
    from orchestrator.report.statistics.resamples import num_with_objects, resample

    weights = resample(len(inputs.data))

    def values(exponent: float) -> SeedValues:
        matches = match(inputs.data, detections[exponent])
        return SeedValues(
            measured={0: metrics[exponent]["AP"] or 0.0},
            resampled={0: precision_and_recall(matches, weights)[0]},
            num_images=len(inputs.data),
            num_with_objects=num_with_objects(matches),
        )

    return difference(values(chosen), values(usual))


def _calibrated(
    fitted_on: ScoringInputs,
    kept: "DetectionTable",
    scored: ScoringInputs,
    detections: "Mapping[float, DetectionTable]",
    chosen: float,
) -> list[Calibrated]:
    """Fit both recalibrations, and judge them beside the scores as they are."""
    from model.evaluation.calibration.outcomes import outcomes
    from model.evaluation.calibration.recalibration import fit_isotonic, fit_temperature, recalibrate

    learnt = outcomes(fitted_on.data, kept)
    if not len(learnt.scores):
        raise UserError(
            f"the checkpoint finds nothing on split {fitted_on.data.split}, so there is no score to recalibrate; lower "
            "its --score-threshold, or train it longer"
        )
    # The usual exponent first, where that is another: what the choice alone does to calibration.
    found = {one: outcomes(scored.data, detections[one]) for one in sorted(detections, key=lambda one: one == chosen)}
    judged = [_judged("as it is", exponent, None, one) for exponent, one in found.items()]
    fits: dict[str, Recalibration] = {
        "temperature": fit_temperature(learnt.scores, learnt.ious),
        "isotonic": fit_isotonic(learnt.scores, learnt.ious),
    }
    for name, by in fits.items():
        # The order of scores stays, so that each detection finds the same object as before.
        scores = recalibrate(found[chosen].scores, by)
        judged.append(_judged(name, chosen, by, replace(found[chosen], scores=scores)))
    return judged


def _judged(name: str, exponent: float, by: "Recalibration | None", found: "Outcomes") -> Calibrated:
    from model.evaluation.calibration.errors import calibration_errors, reliability

    errors = calibration_errors(found)
    judged = {error: errors[error] for error in JUDGED}
    return Calibrated(name=name, exponent=exponent, by=by, errors=judged, bins=reliability(found))


def _notes(
    fitted_on: ScoringInputs, scored: ScoringInputs, twins: int, settings: Sequence[InferenceConfig]
) -> list[str]:
    checkpoint, inference = fitted_on.checkpoint, settings[0]
    branch = checkpoint.card.config.model.confidence
    notes = [f"Fitted on {fitted_on.images}.", f"Scored on {scored.images}."]
    if twins:
        notes.append(
            f"{twins} of the {len(scored.data)} images that are scored are also in {fitted_on.data.split}, byte by "
            "byte: what is fitted there looks better on them than it is."
        )
    if fitted_on.data.split == checkpoint.card.config.data.train_split:
        notes.append(
            f"The checkpoint was trained on {fitted_on.data.split}, where it finds more, and scores it higher, than on "
            "other images: a split that it has not seen fits better."
        )
    if branch is None:
        notes.append(f"A {HEADS[None]} has no confidence branch, and so no exponent: only its scores are recalibrated.")
    elif inference.fusion != "power":
        notes.append(f"Fusion {inference.fusion!r} has no exponent: only the scores are recalibrated.")
    elif len(settings) == 1:
        notes.append("There is one exponent alone, so that none is chosen.")
    alone = {name: value for name, value in to_dict(inference).items() if name != EXPONENT}
    notes.append(f"The same for all: {', '.join(f'{name} {value}' for name, value in alone.items())}.")
    return notes


def _name(
    label: str, fitted_on: ScoringInputs, scored: ScoringInputs, settings: Mapping[float, InferenceConfig]
) -> str:
    """Name the folder of a fit; another checkpoint, other images or other settings go to another folder."""
    prints = [inputs.data.fingerprint for inputs in (fitted_on, scored)]
    every = [to_dict(setting) for setting in settings.values()]
    digest = digest_of(scored.checkpoint.card.weights_sha256, prints, every)
    return f"{slug(label)}-fit-{slug(fitted_on.data.split)}-{digest}"
