"""Pre-flight checks: data, weights, disk space, and whether recorded results rest on the same data."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model.config import DataConfig, ModelConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.estimate import needed_while_training
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, row_keys, why_evaluation_is_missing
from orchestrator.site import NUM_SHAPES, Site

if TYPE_CHECKING:
    from model.data.split import CocoData


class Selection(NamedTuple):
    """The settings that decide which images and annotations are read."""

    dataset: str
    split: str
    num_images: int | None
    faults: str


class UsedData(NamedTuple):
    """The data that a finished training or evaluation was made from."""

    result: str
    """The training or evaluation, in words."""
    selection: Selection
    fingerprint: str
    """CocoData.fingerprint of them, as it was then."""


def prepare(plan: Plan, ledger: Ledger, site: Site, say: Callable[[str], None], *, check_images: bool = True) -> None:
    """Check weights, disk space and data for all that a plan lacks, and draw the embedded data set where it is used.

    Args:
        plan: of one suite.
        ledger: what the plan was made from; its results must rest on the data that are there now.
        site: where data, weights and storage are.
        say: told of faults of the annotations that are left out.
        check_images: read the headers of all images, which takes minutes where there are many.

    Raises:
        UserError: weights, disk or data are missing, damaged or too small; nothing was started.
    """
    missing = [run.config for key, run in plan.trainings.items() if key in plan.missing_trainings]
    scored = [
        (plan.trainings[evaluation.train_key].config, evaluation.split)
        for key, evaluation in plan.evaluations.items()
        if key in plan.missing_evaluations
    ]
    # Quick checks first: reading data may take minutes. dict.fromkeys keeps what many rows share once, in their order.
    for model in dict.fromkeys(config.model for config in missing):
        _check_backbone_weights(model, site)
    _require_space(site.home, missing)
    for config in missing + [config for config, _ in scored]:
        draw(config.data, site)
    training = dict.fromkeys(config.data for config in missing)
    scoring = dict.fromkeys((config.data, split) for config, split in scored)
    scoring |= dict.fromkeys((data, data.val_split) for data in training)  # validation after each epoch
    category_ids = _check_data(training, scoring, list(_used_data(plan, ledger)), site, say, check_images)
    # A whole detector has classes, so that its file can be checked only now that the data's categories are known.
    for model, dataset in dict.fromkeys((config.model, config.data.dataset) for config in missing):
        _check_detector_weights(model, category_ids[dataset], site)


def draw(config: DataConfig, site: Site) -> None:
    """Draw the embedded data set if a training uses it and it is not there yet.

    Raises:
        UserError: more images are asked for than it has, or it cannot be written.
    """
    if config.dataset != "shapes":
        return
    from model.data.faults import DataError
    from model.data.shapes import draw_shapes

    for split, asked in (("train", config.num_train_images), ("val", config.num_val_images)):
        if asked is not None and asked > NUM_SHAPES[split]:
            raise UserError(f"train.data.num_{split}_images is {asked}; the data set shapes has {NUM_SHAPES[split]}")
    try:
        draw_shapes(site.data_root("shapes"), **{f"num_{split}": number for split, number in NUM_SHAPES.items()})
    except DataError as error:
        raise UserError(str(error)) from error


def training_data(data: DataConfig) -> Selection:
    """Return what a training reads."""
    return Selection(data.dataset, data.train_split, data.num_train_images, data.faults)


def scoring_data(data: DataConfig, split: str) -> Selection:
    """Return what an evaluation on a split reads."""
    limits = {data.train_split: data.num_train_images, data.val_split: data.num_val_images}
    return Selection(data.dataset, split, limits.get(split), data.faults)


def require_same_data(selection: Selection, fingerprint: str, used: Iterable[UsedData]) -> None:
    """Refuse data that have changed since a result was made on them; nothing of the result is lost.

    Raises:
        UserError: the message names the split, a result, both fingerprints and the ways out.
    """
    for before in used:
        if before.selection == selection and before.fingerprint != fingerprint:
            raise UserError(
                f"split {selection.split} of {selection.dataset} has changed: {before.result} rests on data of "
                f"fingerprint {before.fingerprint[:12]}, now it has {fingerprint[:12]}, and numbers of both would "
                "stand in one table. Bring the old data back; or give the new data another split name "
                "(train.data.train_split, train.data.val_split); or give the experiment another suite, which begins "
                "anew"
            )


def require_one_version(experiment: Experiment, ledger: Ledger) -> None:
    """Refuse a table of which results rest on two versions of the same data: they have no mean and no difference.

    A submit refuses data that have changed since its own results; those of two files may have been submitted apart.

    Raises:
        UserError: the message names the table, two rows with their seeds, both fingerprints and the ways out.
    """
    seen: dict[tuple[str, Selection], tuple[str, str]] = {}
    for row in experiment.rows:
        train, scored = training_data(row.train.data), scoring_data(row.train.data, row.split)
        for seed, train_key, evaluation_key in row_keys(row):
            if why_evaluation_is_missing(ledger, train_key, evaluation_key) is not None:
                continue
            place = f"row {row.label!r}, seed {seed}"
            records = (
                ("trained", train, ledger.trainings[train_key]),
                ("scored", scored, ledger.evaluations[evaluation_key]),
            )
            for done, selection, record in records:
                now = record.data_fingerprint
                if not now:
                    continue  # older runs did not note it
                first, before = seen.setdefault((done, selection), (place, now))
                if now != before:
                    runs = "trainings" if done == "trained" else "evaluations"
                    raise UserError(
                        f"table {experiment.name}: {first}, was {done} on another version of split {selection.split} "
                        f"of {selection.dataset} than {place} (fingerprints {before[:12]} and {now[:12]}); numbers of "
                        f"both have no mean and no difference. Delete the {runs} of the older version in MLflow and "
                        "submit again, or give each version a file of its own"
                    )


def _used_data(plan: Plan, ledger: Ledger) -> Iterator[UsedData]:
    """Yield the data behind the finished results of a plan, as far as their fingerprints were recorded."""
    for key, run in plan.trainings.items():
        record = ledger.trainings.get(key)
        if record is not None and record.status == "FINISHED" and record.data_fingerprint:
            yield UsedData(f"training {run.label!r}", training_data(run.config.data), record.data_fingerprint)
    for key, evaluation in plan.evaluations.items():
        record = ledger.evaluations.get(key)
        if record is not None and record.status == "FINISHED" and record.data_fingerprint:
            data, place = plan.trainings[evaluation.train_key].config.data, evaluation.places[0]
            result = f"evaluation {place.label!r} of {place.table}"
            yield UsedData(result, scoring_data(data, evaluation.split), record.data_fingerprint)


def _check_backbone_weights(model: ModelConfig, site: Site) -> None:
    file = site.weights_file(model.weights)
    if model.backbone_weights is None or file is None:
        return
    from model.network.backbone import Backbone
    from model.network.pretrained import load_backbone_weights

    try:
        load_backbone_weights(Backbone(model), file)
    except ValueError as error:
        raise UserError(f"train.model.backbone_weights: {error}") from error


def _check_detector_weights(model: ModelConfig, category_ids: Sequence[int], site: Site) -> None:
    file = site.weights_file(model.detector_weights)
    if file is None:
        return
    from model.network.pretrained import load_detector_weights
    from model.network.retinanet import build_detector

    try:
        load_detector_weights(build_detector(model, len(category_ids), seed=0), file, category_ids=category_ids)
    except ValueError as error:
        raise UserError(f"train.model.detector_weights: {error}") from error


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


def _check_data(
    training: Iterable[DataConfig],
    scoring: Iterable[tuple[DataConfig, str]],
    used: Sequence[UsedData],
    site: Site,
    say: Callable[[str], None],
    check_images: bool,
) -> dict[str, tuple[int, ...]]:
    """Read every split that is trained or scored on; return the category ids of each data set."""
    from model.data.coco import read_for_scoring, read_for_training
    from model.data.faults import DataError, describe
    from model.data.split import CocoData

    def read(config: DataConfig, split: str | None) -> CocoData:
        root = site.data_root(config.dataset)
        if split is None:
            return read_for_training(root, config, check_images=check_images)
        return read_for_scoring(root, config, split, check_images=check_images)

    first: dict[str, CocoData] = {}
    told: set[str] = set()
    splits: list[tuple[DataConfig, str | None]] = [(config, None) for config in training]
    for config, split in [*splits, *scoring]:
        try:
            data = read(config, split)
        except DataError as error:
            raise UserError(str(error)) from error
        selection = training_data(config) if split is None else scoring_data(config, split)
        require_same_data(selection, data.fingerprint, used)
        faults = "\n  ".join([f"{data.root}, split {data.split}: left out are", *describe(data.faults)])
        # Many rows share a split, whose faults are told once.
        if data.faults and faults not in told:
            say(faults)
        told.add(faults)
        _require_same_categories(data, first.setdefault(config.dataset, data))
    return {dataset: data.category_ids for dataset, data in first.items()}


def _require_same_categories(data: "CocoData", first: "CocoData") -> None:
    here = list(zip(data.category_ids, data.category_names, strict=True))
    there = list(zip(first.category_ids, first.category_names, strict=True))
    if here != there:
        raise UserError(
            f"{data.root}: split {data.split} has the categories {here[:5]}..., split {first.split} has "
            f"{there[:5]}...; a detector is scored on the categories that it was trained on"
        )
