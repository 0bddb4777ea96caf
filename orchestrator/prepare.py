"""What has to be right before anything starts: data sets drawn and checked, weights and disk space there."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from model.config import TrainConfig
from orchestrator.errors import UserError
from orchestrator.plan import Plan
from orchestrator.site import Site

SHAPES = {"num_train": 2000, "num_val": 300}
"""How many scenes of the embedded data set are drawn; trainings may take fewer."""
CHECKPOINT_BYTES = {"resnet18_quarter": 10_000_000, "resnet18": 250_000_000, "resnet50": 420_000_000}
"""Weights and resume state of one checkpoint, about; a larger backbone counts as 650 MB."""
CHECKPOINTS_ALIVE = 4
"""Ray keeps two, writes a third, and MLflow stores the weights of the last."""


def prepare(plan: Plan, site: Site, say: Callable[[str], None]) -> None:
    """Draw and check the data of all that is missing; nothing is started and nothing of the plan is lost.

    Args:
        plan: of one suite.
        site: where data, weights and storage are.
        say: told of faults that are left out.

    Raises:
        UserError: data, weights or disk cannot carry the plan.
    """
    missing = [run for key, run in plan.trainings.items() if key in plan.missing_trainings]
    scored = {evaluation.train_key for key, evaluation in plan.evaluations.items() if key in plan.missing_evaluations}
    needed = [run.config for key, run in plan.trainings.items() if key in plan.missing_trainings or key in scored]
    for config in needed:
        site.weights_file(config.model.backbone_weights)
    _require_space(site.home, [run.config for run in missing])
    for config in needed:
        draw(config, site)
    splits = {
        _split(plan.trainings[evaluation.train_key].config, evaluation.split): None
        for key, evaluation in plan.evaluations.items()
        if key in plan.missing_evaluations
    }
    for run in missing:
        splits |= {_split(run.config, name): None for name in (run.config.data.train_split, run.config.data.val_split)}
    categories: dict[str, tuple[str, tuple[str, ...]]] = {}
    for dataset, split, num_images, faults in splits:
        names = _check(site.data_root(dataset), split, num_images, faults, say)
        first, expected = categories.setdefault(dataset, (split, names))
        if names != expected:
            raise UserError(
                f"{site.data_root(dataset)}: split {split} has the categories {list(names)[:5]}..., split {first} has "
                f"{list(expected)[:5]}...; a detector is scored on the categories that it was trained on"
            )


def draw(config: TrainConfig, site: Site) -> None:
    """Draw the embedded data set if this training uses it and it is not there yet."""
    if config.data.dataset != "shapes":
        return
    from model.faults import DataError
    from model.shapes import draw_shapes

    for name, asked in (("num_train", config.data.num_train_images), ("num_val", config.data.num_val_images)):
        if asked is not None and asked > SHAPES[name]:
            raise UserError(f"train.data.{name}_images is {asked}; the data set shapes has {SHAPES[name]}")
    try:
        draw_shapes(site.data_root("shapes"), **SHAPES)
    except DataError as error:
        raise UserError(str(error)) from error


def _split(config: TrainConfig, split: str) -> tuple[str, str, int | None, str]:
    data = config.data
    limits = {data.val_split: data.num_val_images, data.train_split: data.num_train_images}
    return data.dataset, split, limits.get(split), data.faults


def _check(root: Path, split: str, num_images: int | None, faults: str, say: Callable[[str], None]) -> tuple[str, ...]:
    """Read a split with all its images' headers, and return the names of its categories."""
    from model.coco import read_coco
    from model.faults import DataError, describe

    try:
        data = read_coco(root, split, num_images=num_images, faults=faults)  # type: ignore[arg-type]
    except DataError as error:
        raise UserError(str(error)) from error
    if data.faults:
        say("\n  ".join([f"{root}, split {split}: left out (train.data.faults is quarantine)", *describe(data.faults)]))
    return data.category_names


def _require_space(home: Path, configs: Iterable[TrainConfig]) -> None:
    needed = CHECKPOINTS_ALIVE * sum(CHECKPOINT_BYTES.get(config.model.backbone, 650_000_000) for config in configs)
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < needed:
        raise UserError(
            f"RNC_HOME: {home} has {free / 1e9:.1f} GB free, these trainings need about {needed / 1e9:.1f} GB; free "
            "some, submit fewer rows, or set RNC_HOME to another disk"
        )
