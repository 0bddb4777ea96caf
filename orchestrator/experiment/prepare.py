"""What has to be right before anything starts: data sets drawn and checked, weights and disk space there."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from model.config import DataConfig, ModelConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.estimate import needed_while_training
from orchestrator.experiment.plan import Ledger, Plan
from orchestrator.site import NUM_SHAPES, Site


class Reading(NamedTuple):
    """What decides which data are read, but for their content."""

    dataset: str
    split: str
    num_images: int | None
    faults: str


class Measured(NamedTuple):
    """Data on which something was trained or scored."""

    what: str
    reading: Reading
    fingerprint: str


def training_reading(data: DataConfig) -> Reading:
    """Return what a training reads."""
    return Reading(data.dataset, data.train_split, data.num_train_images, data.faults)


def scoring_reading(data: DataConfig, split: str) -> Reading:
    """Return what an evaluation on a split reads."""
    limits = {data.train_split: data.num_train_images, data.val_split: data.num_val_images}
    return Reading(data.dataset, split, limits.get(split), data.faults)


def measured(plan: Plan, ledger: Ledger) -> list[Measured]:
    """Return on which data the finished results of a plan rest, as far as that was recorded."""
    return list(_measured(plan, ledger))


def require_same_data(reading: Reading, fingerprint: str, results: list[Measured]) -> None:
    """Refuse data that are read as those of a result are, and are others; nothing is lost.

    Raises:
        UserError: the message names the split, a result, both fingerprints and the ways out.
    """
    for result in results:
        if result.reading == reading and result.fingerprint != fingerprint:
            raise UserError(
                f"split {reading.split} of {reading.dataset} has changed: {result.what} rests on data of fingerprint "
                f"{result.fingerprint[:12]}, now it has {fingerprint[:12]}, and numbers of both would stand in one "
                "table. Bring the old data back; or give the new data another split name (train.data.train_split, "
                "train.data.val_split); or give the experiment another suite, which begins anew"
            )


def _measured(plan: Plan, ledger: Ledger) -> Iterator[Measured]:
    for key, run in plan.trainings.items():
        record = ledger.trainings.get(key)
        if record is not None and record.status == "FINISHED" and record.data_fingerprint:
            yield Measured(f"training {run.label!r}", training_reading(run.config.data), record.data_fingerprint)
    for key, evaluation in plan.evaluations.items():
        record = ledger.evaluations.get(key)
        if record is not None and record.status == "FINISHED" and record.data_fingerprint:
            data, place = plan.trainings[evaluation.train_key].config.data, evaluation.places[0]
            what = f"evaluation {place.label!r} of {place.table}"
            yield Measured(what, scoring_reading(data, evaluation.split), record.data_fingerprint)


SHAPES = {"num_train": NUM_SHAPES, "num_val": 300}
"""How many scenes of the embedded data set are drawn; trainings may take fewer."""


def prepare(plan: Plan, ledger: Ledger, site: Site, say: Callable[[str], None], *, check_images: bool = True) -> None:
    """Draw and check the data of all that is missing; nothing is started and nothing of the plan is lost.

    Args:
        plan: of one suite.
        ledger: what it was made from; its results must rest on the data that are there now.
        site: where data, weights and storage are.
        say: told of faults that are left out.
        check_images: read the headers of all images, which takes minutes where there are many.

    Raises:
        UserError: data, weights or disk cannot carry the plan.
    """
    missing = [run.config for key, run in plan.trainings.items() if key in plan.missing_trainings]
    scored = [
        (plan.trainings[evaluation.train_key].config, evaluation.split)
        for key, evaluation in plan.evaluations.items()
        if key in plan.missing_evaluations
    ]
    for model in dict.fromkeys(config.model for config in missing):
        _check_weights(model, site)
    _require_space(site.home, missing)
    for config in [*missing, *(config for config, _ in scored)]:
        draw(config.data, site)
    training = dict.fromkeys(config.data for config in missing)
    scoring = dict.fromkeys((config.data, split) for config, split in scored)
    scoring |= dict.fromkeys((data, data.val_split) for data in training)
    category_ids = _check(training, scoring, measured(plan, ledger), site, say, check_images)
    for model, dataset in dict.fromkeys((config.model, config.data.dataset) for config in missing):
        _check_detector_weights(model, category_ids[dataset], site)


def draw(config: DataConfig, site: Site) -> None:
    """Draw the embedded data set if a training uses it and it is not there yet."""
    if config.dataset != "shapes":
        return
    from model.data.faults import DataError
    from model.data.shapes import draw_shapes

    for name, asked in (("num_train", config.num_train_images), ("num_val", config.num_val_images)):
        if asked is not None and asked > SHAPES[name]:
            raise UserError(f"train.data.{name}_images is {asked}; the data set shapes has {SHAPES[name]}")
    try:
        draw_shapes(site.data_root("shapes"), **SHAPES)
    except DataError as error:
        raise UserError(str(error)) from error


def _check_weights(model: ModelConfig, site: Site) -> None:
    file = site.weights_file(model.weights)
    if model.backbone_weights is None or file is None:
        return
    from model.network.backbone import Backbone
    from model.network.pretrained import load_backbone

    try:
        load_backbone(Backbone(model), file)
    except ValueError as error:
        raise UserError(f"train.model.backbone_weights: {error}") from error


def _check_detector_weights(model: ModelConfig, category_ids: Sequence[int], site: Site) -> None:
    """A whole detector has classes, so that its file can be checked only once the data's categories are known."""
    file = site.weights_file(model.detector_weights)
    if file is None:
        return
    from model.network.pretrained import load_detector
    from model.network.retinanet import build_detector

    try:
        load_detector(build_detector(model, len(category_ids), seed=0), file, category_ids=category_ids)
    except ValueError as error:
        raise UserError(f"train.model.detector_weights: {error}") from error


def _check(
    training: Iterable[DataConfig],
    scoring: Iterable[tuple[DataConfig, str]],
    results: list[Measured],
    site: Site,
    say: Callable[[str], None],
    check_images: bool,
) -> dict[str, tuple[int, ...]]:
    """Read every split that is used, if asked with the headers of its images; give each data set's category ids."""
    from model.data.coco import CocoData, read_for_scoring, read_for_training
    from model.data.faults import DataError, describe

    readings = [(training_reading(data), partial(read_for_training, config=data)) for data in training]
    readings += [
        (scoring_reading(data, split), partial(read_for_scoring, config=data, split=split)) for data, split in scoring
    ]
    first: dict[str, CocoData] = {}
    told: set[str] = set()
    for reading, read in readings:
        dataset = reading.dataset
        try:
            data = read(site.data_root(dataset), check_images=check_images)
        except DataError as error:
            raise UserError(str(error)) from error
        require_same_data(reading, data.fingerprint, results)
        faults = "\n  ".join([f"{data.root}, split {data.split}: left out are", *describe(data.faults)])
        if data.faults and faults not in told:
            say(faults)
        told.add(faults)
        here, there = (
            list(zip(part.category_ids, part.category_names, strict=True))
            for part in (data, first.setdefault(dataset, data))
        )
        if here != there:
            raise UserError(
                f"{data.root}: split {data.split} has the categories {here[:5]}..., split {first[dataset].split} has "
                f"{there[:5]}...; a detector is scored on the categories that it was trained on"
            )
    return {dataset: data.category_ids for dataset, data in first.items()}


def _require_space(home: Path, configs: Iterable[TrainConfig]) -> None:
    needed = needed_while_training(configs)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"RNC_HOME: cannot write to {home} ({error.strerror}); set RNC_HOME to another folder"
        ) from error
    free = shutil.disk_usage(home).free
    if free < needed:
        raise UserError(
            f"RNC_HOME: {home} has {free / 1e9:.1f} GB free, these trainings need about {needed / 1e9:.1f} GB; free "
            "some, submit fewer rows, or set RNC_HOME to another disk"
        )
