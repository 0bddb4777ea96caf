"""Pre-flight checks: data, weights, disk space, and whether recorded results rest on the same data."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from model.config import DataConfig, ModelConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.cost.estimate import needed_while_training
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, row_keys, why_evaluation_is_missing
from orchestrator.homes import make_home
from orchestrator.site import NUM_SHAPES, Site

if TYPE_CHECKING:
    from model.data.split import CocoData


CategoryIds = dict[str, tuple[int, ...]]
"""By data set."""
Read = Callable[[DataConfig, str | None], "CocoData"]
"""Reads what a training of these settings learns from, or a split that it is scored on."""


MOST_COMPARED = 20_000
"""Images of two splits, up to which each file's size is asked for; on network storage more would take minutes."""
MOST_LOOKED_AT = 5_000
"""Images of a split, up to which a plan looks at every file."""


class Selection(NamedTuple):
    """The settings that decide which images and annotations are read."""

    dataset: str
    split: str
    num_images: int | None
    faults: Literal["refuse", "quarantine"]


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
        say: told of each split, what of it is learnt, and what was left out or read otherwise.
        check_images: read the headers of all images, which takes minutes where there are many.

    Raises:
        UserError: weights, disk or data are missing, damaged, too small, or not what finished results rest on; nothing
            was started.
    """
    # Quick checks first: reading data may take minutes. dict.fromkeys keeps what many rows share once, in their order.
    missing = _missing(plan)
    require_learning(plan)
    for model in dict.fromkeys(config.model for config in missing):
        _check_backbone_weights(model, site, say)
    _require_home(site.home)
    _require_space(site.home, missing)
    for data, _ in _splits(plan):
        draw(data, site)
    category_ids = check_data(plan, _used_data(plan, ledger), site, _reader(site, check_images=check_images), say)
    # A whole detector has classes, so that its file can be checked only now that the data's categories are known.
    for model, dataset in dict.fromkeys((config.model, config.data.dataset) for config in missing):
        _check_detector_weights(model, category_ids[dataset], site, say)
    require_known_data(plan, ledger, site, say)


def look_ahead(
    plan: Plan, ledger: Ledger, site: Site, say: Callable[[str], None], *, is_here: bool, most_images: int
) -> list[str]:
    """Say what `prepare` would find in weights, disk and data, and write nothing; return what would stop a submit.

    Args:
        plan: of one suite.
        ledger: what the plan was made from.
        site: where data and weights are.
        say: told of each split.
        is_here: whether a submit reads weights and data on this machine; where not, what is not here may be on the
            cluster, is said, and stops nothing.
        most_images: of a split, up to which image files are looked at as well; more take minutes.
    """
    stops: dict[str, None] = {}  # rows share mistakes, each of which is told once
    category_ids: CategoryIds = {}
    missing = _missing(plan)
    models = dict.fromkeys((config.model, config.data.dataset) for config in missing)

    def look(check: Callable[[], object]) -> None:
        try:
            check()
        except UserError as error:
            stops[str(error)] = None

    look(lambda: require_learning(plan))
    absent = _absent_weights(missing, site)
    if is_here:
        stops |= dict.fromkeys(absent.values())
    elif absent and site.weights_root is None:
        say(
            f"weights {', '.join(absent)}: not looked for, as RNC_WEIGHTS is not set here and no file has "
            "`data: {weights: ...}`"
        )
    else:
        for text in absent.values():
            say(text)
    for model in dict.fromkeys(model for model, _ in models if model.weights not in absent):
        look(partial(_check_backbone_weights, model, site, say))
    look(lambda: _require_space(site.home, missing))
    for data, _ in _splits(plan):
        look(partial(_require_drawn, data))
    datasets = {config.dataset for config, _ in _splits(plan)}
    on_outside, root = datasets - {"shapes"}, site.coco_root
    if "shapes" in datasets and not site.data_root("shapes").is_dir():
        say(f"data {site.data_root('shapes')}: drawn by the first submit")
    elif on_outside and root is None and not is_here:
        say("data: RNC_COCO_ROOT is not set here and no file has `data: {root: ...}`, so that nothing was looked at")
    elif on_outside and root is not None and not root.exists() and not is_here:
        say(f"data {root}: not here, so that nothing was looked at")
    else:
        # Without fingerprints, as a large split may be read without a look at its images.
        look(lambda: category_ids.update(check_data(plan, (), site, _hasty_reader(site, most_images), say)))
    for model, dataset in models:
        if dataset in category_ids and model.weights not in absent:
            look(partial(_check_detector_weights, model, category_ids[dataset], site, say))
    look(lambda: require_known_data(plan, ledger, site, say))
    return list(stops)


def _absent_weights(configs: Iterable[TrainConfig], site: Site) -> dict[str, str]:
    """The files of first weights that are not on this machine, and why not."""
    absent: dict[str, str] = {}
    for file in dict.fromkeys(config.model.weights for config in configs):
        try:
            site.weights_file(file)
        except UserError as error:
            absent[str(file)] = str(error)
    return absent


def require_learning(plan: Plan) -> None:
    """Refuse trainings that cannot learn: a backbone of random numbers of which a part stays as it is.

    Raises:
        UserError: the message names the rows, their settings and the two ways out.
    """
    stuck: dict[str, list[str]] = {}
    for key in plan.missing_trainings:
        model, reasons = plan.trainings[key].config.model, []
        if model.weights is None and model.backbone_norm == "frozen_batch":
            reasons.append("train.model.backbone_norm is frozen_batch, which takes its statistics from such a file")
        if model.weights is None and model.frozen_stages > 0:
            reasons.append(f"train.model.frozen_stages is {model.frozen_stages}: these stages keep random numbers")
        if reasons:
            stuck.setdefault("; ".join(reasons), []).append(plan.trainings[key].label)
    if stuck:
        named = "\n  ".join(f"{', '.join(labels)}: {reason}" for reason, labels in stuck.items())
        raise UserError(
            f"{plan.suite}: there are no first weights (train.model.backbone_weights is null), so that these cannot "
            f"learn:\n  {named}\nName first weights, train.model.backbone_weights: a file of RNC_WEIGHTS; or let all "
            "of it learn from random numbers, train.model: {backbone_norm: group, frozen_stages: 0}"
        )


def check_data(plan: Plan, used: Iterable[UsedData], site: Site, read: Read, say: Callable[[str], None]) -> CategoryIds:
    """Read every split that a plan's missing trainings learn from or are scored on, and say what is there.

    Args:
        plan: of one suite.
        used: what finished results rest on.
        site: where the data are.
        read: reads a split.
        say: told of each split.

    Returns:
        The category ids of each data set.

    Raises:
        UserError: a split is missing or faulty, or is not what finished results rest on.
    """
    _require_root(plan, site)
    used = list(used)
    first: dict[str, CocoData] = {}
    learnt: dict[DataConfig, CocoData] = {}
    told: set[str] = set()
    for config, split in _splits(plan):
        data = read(config, split)
        selection = training_data(config) if split is None else scoring_data(config, split)
        require_same_data(selection, data.fingerprint, used)
        learnt |= {config: data} if split is None else {}
        # Many rows share a split, which is told of once.
        for text in (describe_split(data), *_advice(learnt.get(config), data)):
            if text not in told:
                say(text)
            told.add(text)
        require_same_categories(data, first.setdefault(config.dataset, data))
    return {dataset: data.category_ids for dataset, data in first.items()}


def _require_root(plan: Plan, site: Site) -> None:
    """Refuse data that are named and not there, by the file and the setting, or the variable, that name them."""
    root = site.coco_root
    if root is None or root.exists() or all(config.dataset == "shapes" for config, _ in _splits(plan)):
        return
    naming = [str(one.path) for one in plan.experiments if one.data.root is not None and Path(one.data.root) == root]
    named = f"{naming[0]}: data.root" if naming else "RNC_COCO_ROOT"
    raise UserError(f"{named} is {root}: there is no such folder or file; correct it, or put the data there")


def _advice(train: "CocoData | None", scored: "CocoData") -> list[str]:
    """Warn of images that are trained and scored on, and of boxes that stand twice, where a look takes a second."""
    if train is None or train is scored or len(train) + len(scored) > MOST_COMPARED:
        return []
    from orchestrator.data.advice import quick_advice

    return [f"warning: {one}" for one in quick_advice(train, scored)]


def describe_split(data: "CocoData") -> str:
    """Say in a line what a split holds and what of it is learnt, and beneath it what was read otherwise."""
    from model.data.faults import describe

    lines = [f"data {data.root}, split {data.split}: {len(data):,} images; {data.learnt()}", *data.notes]
    lines += ["left out are", *describe(data.faults)] if data.faults else []
    return "\n  ".join(lines)


def _reader(site: Site, *, check_images: bool) -> Read:
    """Read what a training learns from, or the split that it is scored on."""
    from model.data.coco import read_for_scoring, read_for_training
    from model.data.faults import DataError

    def read(config: DataConfig, split: str | None) -> "CocoData":
        root = site.data_root(config.dataset)
        try:
            if split is None:
                return read_for_training(root, config, check_images=check_images)
            return read_for_scoring(root, config, split, check_images=check_images)
        except DataError as error:
            raise UserError(str(error)) from error

    return read


def _hasty_reader(site: Site, most_images: int) -> Read:
    """The same, but of a split of more images only the annotations, which takes a second."""
    from model.data.coco import read_coco, require_boxes
    from model.data.faults import DataError

    whole = _reader(site, check_images=True)

    def read(config: DataConfig, split: str | None) -> "CocoData":
        selection = training_data(config) if split is None else scoring_data(config, split)
        root, num_images = site.data_root(config.dataset), selection.num_images
        try:
            data = read_coco(root, selection.split, num_images=num_images, faults=config.faults, check_images=False)
            if split is None:
                require_boxes(data)
        except DataError as error:
            raise UserError(str(error)) from error
        return data if len(data) > most_images else whole(config, split)

    return read


def _missing(plan: Plan) -> list[TrainConfig]:
    return [run.config for key, run in plan.trainings.items() if key in plan.missing_trainings]


def _splits(plan: Plan) -> list[tuple[DataConfig, str | None]]:
    """List what is read: a training's own split, as None, then all that are scored, each once."""
    training = dict.fromkeys(config.data for config in _missing(plan))
    scoring = dict.fromkeys(
        (plan.trainings[evaluation.train_key].config.data, evaluation.split)
        for key, evaluation in plan.evaluations.items()
        if key in plan.missing_evaluations
    )
    scoring |= dict.fromkeys((data, data.val_split) for data in training)  # validation after each epoch
    return [*((data, None) for data in training), *scoring]


def draw(config: DataConfig, site: Site) -> None:
    """Draw the embedded data set if a training uses it and it is not there yet.

    Raises:
        UserError: more images are asked for than it has, or it cannot be written.
    """
    if config.dataset != "shapes":
        return
    from model.data.faults import DataError
    from model.data.shapes import draw_shapes

    _require_drawn(config)
    try:
        make_home(site.home)
        draw_shapes(site.data_root("shapes"), **{f"num_{split}": number for split, number in NUM_SHAPES.items()})
    except DataError as error:
        raise UserError(str(error)) from error


def _require_drawn(config: DataConfig) -> None:
    for split, asked in (("train", config.num_train_images), ("val", config.num_val_images)):
        if config.dataset == "shapes" and asked is not None and asked > NUM_SHAPES[split]:
            raise UserError(f"train.data.num_{split}_images is {asked}; the data set shapes has {NUM_SHAPES[split]}")


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


def require_known_data(plan: Plan, ledger: Ledger, site: Site, say: Callable[[str], None]) -> None:
    """Refuse data that are here and have changed since a finished result of a plan was made on them.

    Also where nothing is missing, so that no corrected label is ignored. Annotations are cached, and image files only
    looked at where a quarantine may leave some out, of at most MOST_LOOKED_AT images.

    Args:
        plan: of one suite.
        ledger: what the plan was made from.
        site: where the data are.
        say: told what could not be compared.

    Raises:
        UserError: see `require_same_data`.
    """
    used = list(_used_data(plan, ledger))
    for selection in dict.fromkeys(one.selection for one in used):
        root = site.coco_root if selection.dataset != "shapes" else site.data_root("shapes")
        if root is None or (selection.dataset == "shapes" and not root.is_dir()):
            continue  # results stand without their data
        from model.data.coco import read_coco
        from model.data.faults import DataError

        _, split, num_images, faults = selection
        try:
            data = read_coco(root, split, num_images=num_images, faults=faults, check_images=False)
            if faults == "quarantine" and len(data) > MOST_LOOKED_AT:
                continue
            if faults == "quarantine":
                data = read_coco(root, split, num_images=num_images, faults=faults)
        except DataError as error:
            say(f"not compared with the data of finished results: {str(error).splitlines()[0]}")
        else:
            require_same_data(selection, data.fingerprint, used)


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


def _check_backbone_weights(model: ModelConfig, site: Site, say: Callable[[str], None]) -> None:
    file = site.weights_file(model.weights)
    if model.backbone_weights is None or file is None:
        return
    from model.network.backbone import Backbone
    from model.network.pretrained import load_backbone_weights

    try:
        notes = load_backbone_weights(Backbone(model), file, expects=model.weights_input)
    except ValueError as error:
        raise UserError(f"train.model.backbone_weights: {error}") from error
    for note in notes:
        say(note)


def _check_detector_weights(
    model: ModelConfig, category_ids: Sequence[int], site: Site, say: Callable[[str], None]
) -> None:
    file = site.weights_file(model.detector_weights)
    if file is None:
        return
    from model.network.pretrained import load_detector_weights
    from model.network.retinanet import build_detector

    try:
        detector = build_detector(model, len(category_ids), seed=0)
        notes = load_detector_weights(detector, file, category_ids=category_ids)
    except ValueError as error:
        raise UserError(f"train.model.detector_weights: {error}") from error
    for note in notes:
        say(note)


def _require_home(home: Path) -> None:
    try:
        make_home(home).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"RNC_HOME: cannot write to {home} ({error.strerror}); set RNC_HOME to another folder"
        ) from error


def _require_space(home: Path, configs: Iterable[TrainConfig]) -> None:
    needed = needed_while_training(configs)
    # The disk on which the home is, or would be made.
    free = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free
    if free < needed:
        raise UserError(
            f"RNC_HOME: {home} has {free / 1e9:.1f} GB free, these trainings need about {needed / 1e9:.1f} GB; free "
            "some, submit fewer rows, or set RNC_HOME to another disk"
        )


def require_same_categories(data: "CocoData", first: "CocoData") -> None:
    """Refuse a split of other categories than those that a detector learns.

    Raises:
        UserError: the message names the differing ones.
    """
    from model.data.faults import named
    from model.data.split import category_differences

    if differing := category_differences(first, data):
        raise UserError(
            f"{data.root}: split {data.split} has other categories than split {first.split}: {named(differing)}; a "
            "detector is scored on the categories that it was trained on: give both splits the same list"
        )
