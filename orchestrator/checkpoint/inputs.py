"""Inputs of scoring, for evaluate, sweep and misalignment: a checkpoint's folder and the images to score it on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import DataConfig, InferenceConfig, require_branch
from model.evaluation.shards import Pass, score_missing, scores_of
from model.machine import usable_cores
from model.network.checkpoint import read_card, read_inference
from model.settings import Settings, changed, misspelt, read_settings
from orchestrator.checkpoint.pull import Provenance, read_provenance
from orchestrator.errors import Say, UserError
from orchestrator.experiment.prepare import draw
from orchestrator.site import Site
from orchestrator.strict_yaml import read_value
from orchestrator.tracking.artifacts import Progress

if TYPE_CHECKING:
    import torch

    from model.data.faults import UnknownSplit
    from model.data.split import CocoData
    from model.evaluation.scoring import Scores
    from model.network.checkpoint import Card


def no_progress(done: int, total: int) -> None:
    """Take (images done, images in all), and show nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which images a checkpoint is scored on, and which of its inference settings are changed for it."""

    data: Path | None = None
    """A folder or a file of any format; None takes the data of the row, where they lay when it was scored, or else
    where the site has it."""
    split: str | None = None
    """None takes the one that the row was scored on."""
    all_images: bool = False
    """The whole split, even where the training scored its first images only."""
    first: int | None = None
    """This many images alone, the first by id; None takes as many as the training."""
    settings: Sequence[str] = ()
    """Inference settings to change, such as `nms_iou=0.6`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFolder:
    """What lies beside the weights of a checkpoint; the weights are not read yet."""

    path: Path
    card: "Card"
    provenance: Provenance | None
    """None where it was not fetched by `rnc pull`."""
    inference: InferenceConfig
    """Its own settings, or else the paper's, with the changes that were asked for."""

    @property
    def row(self) -> str | None:
        """The label of its row, where that is known."""
        return self.provenance.row if self.provenance else None

    @property
    def split(self) -> str:
        """The split on which its row was scored, or else the one that its training validates on."""
        return self.provenance.split if self.provenance else self.card.config.data.val_split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoringInputs:
    """A checkpoint and the images to score it on."""

    checkpoint: CheckpointFolder
    data: "CocoData"
    config: DataConfig
    """The training's data settings, with as many images as were selected."""
    scored: Path
    """The folder of scored shards, from which a pass that was killed, or done before, is taken up."""

    @property
    def images(self) -> str:
        """The images, in words."""
        return f"{len(self.data)} images of {self.data.root}, split {self.data.split}"

    def score(self, settings: Sequence[InferenceConfig], progress: Progress = no_progress) -> "list[Scores]":
        """Score on the GPU of this machine, or else on its CPU, under each setting; many cost hardly more than one.

        Raises:
            UserError: see `scores`.
        """
        return list(self.scores(settings, progress))

    def scores(
        self, settings: Sequence[InferenceConfig], progress: Progress = no_progress, *, calibrating: bool = True
    ) -> "Iterator[Scores]":
        """Yield what `score` returns: memory then holds the detections of one setting at a time.

        `calibrating` says whether scores are compared with what they estimate, which takes a while for each setting.

        Raises:
            UserError: the checkpoint is damaged, learnt other categories than the images have, or says NaN.
        """
        from model.network.checkpoint import require_categories
        from model.network.finite import NonFiniteError
        from model.network.retinanet import load_detector

        folder, card = self.checkpoint.path, self.checkpoint.card
        try:
            require_categories(folder, (self.data.category_ids, self.data.category_names), f"split {self.data.split}")
            detector = load_detector(folder)
        except ValueError as error:
            raise UserError(str(error)) from error
        device = scoring_device()
        work = Pass(
            detector=detector.to(device),
            weights_sha256=card.weights_sha256,
            data=self.data,
            config=card.config.data,
            settings=settings,
            keep=self.scored,
            # On a CPU the pass itself takes every core; processes that decode would only get in its way.
            num_loader_processes=min(8, usable_cores()) if device.type == "cuda" else 0,
        )
        try:
            score_missing(work, progress=progress)
        except NonFiniteError as error:
            raise UserError(str(error)) from error
        yield from scores_of(work, settings, calibrating=calibrating)


def scoring_device() -> "torch.device":
    """Return the GPU of this machine, or else its CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_checkpoint(folder: Path, settings: Sequence[str] = ()) -> CheckpointFolder:
    """Read what lies beside the weights, with some inference settings changed.

    Raises:
        UserError: the folder is no checkpoint, or a setting is unknown, of another type or has no meaning for it.
    """
    try:
        card, provenance, inference = read_card(folder), read_provenance(folder), read_inference(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    return CheckpointFolder(
        path=folder,
        card=card,
        provenance=provenance,
        inference=change_settings(card, inference, typed_changes(settings), str(folder)),
    )


def change_settings(card: "Card", inference: InferenceConfig, changes: Settings, where: str) -> InferenceConfig:
    """Change inference settings of a checkpoint.

    Raises:
        UserError: a value is out of range, or asks for a confidence branch that the checkpoint lacks; `where` leads.
    """
    try:
        inference = changed(inference, changes)
        require_branch(inference, has_branch=card.config.model.confidence is not None)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return inference


def open_inputs(
    checkpoint: CheckpointFolder, selection: Selection, site: Site, say: Say, *, option: str = "--split"
) -> ScoringInputs:
    """Read the images that are selected for a checkpoint; the embedded data set is drawn if it is not there.

    Raises:
        UserError: there is no such split, as `option` has named it, or it is faulty.
    """
    split, config = selection.split or checkpoint.split, checkpoint.card.config.data
    if selection.all_images:
        config = replace(config, num_train_images=None, num_val_images=None)
    if selection.first is not None:
        # num_val_images counts for the validation split alone, so that this split is made that.
        config = replace(config, val_split=split, num_val_images=selection.first)
    root = selection.data or recorded_root(checkpoint.provenance, config.dataset, site, say)
    data = _as_learnt(read_images(root, config, split, site, say, option=option), checkpoint.card, say)
    return ScoringInputs(checkpoint=checkpoint, data=data, config=config, scored=site.scored)


def _as_learnt(data: "CocoData", card: "Card", say: Say) -> "CocoData":
    """Number the classes of data as a checkpoint does, where both have the same names, each once."""
    from model.data.split import renumbered

    learnt = dict(zip(card.category_ids, card.category_names, strict=True))
    here = dict(zip(data.category_ids, data.category_names, strict=True))
    # YOLO counts classes from 0, VOC from 1 and by the alphabet: there an id means nothing, and a name everything.
    if here == learnt or len({*learnt.values()}) < len(learnt) or sorted(here.values()) != sorted(learnt.values()):
        return data
    say(f"{data.root}, split {data.split}: classes have other numbers than in the checkpoint; they go by their names")
    return renumbered(data, learnt)


def recorded_root(provenance: Provenance | None, dataset: str, site: Site, say: Say) -> Path | None:
    """Return where somebody's own data lay when the row was scored; None for those that are the site's to find.

    Raises:
        UserError: they are not there any more, or where they lay is not recorded, and the site names no others.
    """
    if dataset in ("coco", "shapes"):
        return None
    lay = provenance.data_root if provenance is not None else ""
    if lay and Path(lay).exists():
        return Path(lay)
    lack = f"{lay}, where they lay when the row was scored, is not there" if lay else "where they lie is not recorded"
    if site.coco_root is None:
        raise UserError(f"data {dataset}: {lack}; name the folder or file that has them now with --data")
    say(f"data {dataset}: {lack}; those at RNC_COCO_ROOT are taken, {site.coco_root}; --data names others")
    return None


def read_images(
    root: Path | None, config: DataConfig, split: str, site: Site, say: Say, *, option: str = "--split"
) -> "CocoData":
    """Read a split as a training has it, from `root` or from where the site has its data set.

    Raises:
        UserError: there is no such split, as `option` has named it, or it is faulty.
    """
    from model.data.coco import read_for_scoring
    from model.data.faults import DataError, UnknownSplit, describe

    if root is None:
        draw(config, site)
        root = _root_of(config.dataset, site)
    try:
        data = read_for_scoring(root, config, split, check_images=True)
    except UnknownSplit as error:
        raise _unknown(error, option) from error
    except DataError as error:
        raise UserError(str(error)) from error
    if data.faults:
        say("\n  ".join([f"{root}, split {split}: left out are", *describe(data.faults)]))
    for note in data.notes:
        say(f"{root}, split {split}: {note}")
    return data


def read_annotations(root: Path | None, split: str | None, site: Site, say: Say) -> "CocoData":
    """Read the annotations of a split, from `root` or from where the site has COCO; images need not be there.

    Raises:
        UserError: there is no such split, or it is faulty.
    """
    from model.data.coco import read_coco
    from model.data.faults import DataError, UnknownSplit
    from model.data.layout import find_layout

    root = root or _root_of("coco", site)
    try:
        if split is None:
            layout = find_layout(root)
            whole = [name for name, files in layout.splits.items() if files.share is None]
            split = whole[0] if len(whole) == 1 else layout.val
        if split is None:
            raise UserError(f"{root}: of {', '.join(whole)}, none is called val or the like; name one with --split")
        data = read_coco(root, split, check_images=False)
    except UnknownSplit as error:
        raise _unknown(error, "--split") from error
    except DataError as error:
        raise UserError(str(error)) from error
    for note in data.notes:
        say(f"{root}, split {split}: {note}")
    return data


def digest_of(*decisive: Any) -> str:
    """Return what the name of a report's folder ends with, by what decides its numbers: none overwrites another."""
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:6]


def _unknown(error: "UnknownSplit", option: str) -> UserError:
    """Name a split that is not there by the option that takes another, as no file is there to be corrected."""
    return UserError(f"{option} {error.split}: {error.root} has no such split; it has {', '.join(error.splits)}")


def _root_of(dataset: str, site: Site) -> Path:
    try:
        return site.data_root(dataset)
    except UserError as error:
        raise UserError(f"{error}; here --data does so, too") from error


def typed_changes(settings: Sequence[str]) -> Settings:
    """Type `name=value` pairs, in which `inference.` before the name may be left out."""
    changes: Settings = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected a setting and its value, such as inference.nms_iou=0.6")
        changes[name.strip().removeprefix("inference.")] = read_value(value, f"--set {text}")
    problems = list(misspelt(InferenceConfig, changes, "inference."))
    problems = problems or read_settings(InferenceConfig, changes, "inference.")[1]
    if problems:
        raise UserError("\n".join(f"--set {problem}" for problem in problems))
    return changes
