"""What decides the settings of a first training: the data, this machine, and the first weights that are there."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from model.machine import usable_cores
from orchestrator.cluster.gpus import count_gpus
from orchestrator.errors import UserError
from orchestrator.experiment.prepare import require_same_categories
from orchestrator.site import Site

if TYPE_CHECKING:
    from model.data.layout import Layout
    from model.data.split import CocoData

WeightsInput = Literal["imagenet", "caffe"]
MOST_FAULTY = 0.02
"""The part of the images or boxes that may be left out as faulty; more is a mistake of the whole file."""
FIRST_WEIGHTS = ("resnet50", "resnet18", "resnet101")
"""How names of ImageNet weights begin, the one to take first."""
CAFFE = ("msra", "caffe", "detectron")
"""What a file's name says of weights whose stages carry their stride in the 1x1 convolution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split, counted."""

    name: str
    num_images: int
    num_empty: int
    """Images without a box."""
    num_boxes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What a data set holds."""

    root: Path
    train: Split
    val: Split
    classes: tuple[str, ...]
    faults: Literal["refuse", "quarantine"]
    """quarantine where a few images or boxes are faulty."""
    short_side: int
    """Median over the training images, in pixels."""
    long_side: int
    small_box: float
    """The side of a square as large as a box that a tenth of the boxes are smaller than, as a part of the short side of
    its image."""
    notes: tuple[str, ...] = ()
    """What was found that people should know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a training here would run on."""

    num_gpus: int
    num_cores: int
    weights: Path | None
    """A file of ImageNet weights."""
    weights_input: WeightsInput = "imagenet"
    """What they expect of the pixels."""

    @property
    def backbone(self) -> str:
        """The ResNet of the weights."""
        assert self.weights is not None
        return next(name for name in FIRST_WEIGHTS if self.weights.name.lower().startswith(name))

    @property
    def is_caffe(self) -> bool:
        """Whether the weights are of Caffe's ResNet, by their name; shapes do not tell."""
        return self.weights is not None and any(word in self.weights.name.lower() for word in CAFFE)


def data_facts(root: Path) -> DataFacts:
    """Read all of a data set that a training and its validation would see.

    Raises:
        UserError: it is no data set, lacks a split to learn from or to validate on, has no box to learn, other
            categories in either split, or faults beyond a few boxes.
    """
    from model.data.coco import require_boxes
    from model.data.faults import DataError
    from model.data.layout import find_layout

    try:
        layout = find_layout(root)
        train, val = _roles(layout)
        data, faults, notes = _read(root, train)
        require_boxes(data)
        held, faults_of_val, notes_of_val = _read(root, val)
    except DataError as error:
        raise UserError(str(error)) from error
    require_same_categories(held, data)
    if not len(held.annotation_ids):
        notes_of_val += (f"split {val}: has no box, so that there is no AP; annotate some of its images",)
    short, long = np.sort(data.sizes, axis=1).T
    sides = np.sqrt(np.abs(data.annotation_boxes[:, 2] * data.annotation_boxes[:, 3]))
    of_image = np.repeat(short, np.diff(data.offsets))
    return DataFacts(
        root=root,
        train=_split(train, data),
        val=_split(val, held),
        classes=data.category_names,
        faults="quarantine" if "quarantine" in (faults, faults_of_val) else "refuse",
        short_side=int(np.median(short)),
        long_side=int(np.median(long)),
        small_box=float(np.percentile(sides / of_image, 10)) if len(sides) else 0.0,
        notes=tuple(dict.fromkeys((*layout.notes, *notes, *notes_of_val))),
    )


def machine_facts(site: Site, environ: Mapping[str, str]) -> Machine:
    """Look at this machine."""
    found = Machine(num_gpus=count_gpus(), num_cores=usable_cores(), weights=_first_weights(site, environ))
    return replace(found, weights_input=_input_of(found.weights)) if found.weights and found.is_caffe else found


def _input_of(weights: Path) -> WeightsInput:
    """Look into weights whose name says Caffe: some were brought to torchvision's input, and some were not."""
    from model.network.weight_files import read_weights, resnet_of, seen_input

    with suppress(ValueError):  # what is wrong with the file, the submit tells
        return seen_input(resnet_of(weights, read_weights(weights)).weights) or "imagenet"
    return "imagenet"


def _roles(layout: "Layout") -> tuple[str, str]:
    """Return the names of the splits to train on and to validate on: of a whole its two shares, never the whole."""
    train, val = layout.train, layout.val
    if train is None or val is None:
        raise UserError(
            f"{layout.root}: has the splits {', '.join(layout.splits)}, but none that is called train, or none beside "
            "it that is called val; rename the folders or files of the splits"
        )
    return train, val


def _read(root: Path, split: str) -> tuple["CocoData", Literal["refuse", "quarantine"], tuple[str, ...]]:
    """Read a split, without what is faulty where that is little; return how, and what was left out."""
    from model.data.coco import read_coco
    from model.data.faults import DataError, describe

    try:
        data = read_coco(root, split)
        return data, "refuse", tuple(f"split {split}: {note}" for note in data.notes)
    except DataError as refused:
        try:
            data = read_coco(root, split, faults="quarantine")
        except DataError:
            raise refused from None
        lost_images = sum(fault.annotation_id is None for fault in data.faults)
        lost_boxes = len(data.faults) - lost_images
        if lost_images > MOST_FAULTY * len(data) or lost_boxes > MOST_FAULTY * len(data.annotation_ids):
            raise
        found = (*data.notes, f"left out are {'; '.join(describe(data.faults))}")
        return data, "quarantine", tuple(f"split {split}: {note}" for note in found)


def _split(name: str, data: "CocoData") -> Split:
    counts = np.diff(data.offsets)
    return Split(
        name=name, num_images=len(data), num_empty=int((counts == 0).sum()), num_boxes=len(data.annotation_ids)
    )


def _first_weights(site: Site, environ: Mapping[str, str]) -> Path | None:
    files = [file for folder in _weights_folders(site, environ) if folder.is_dir() for file in sorted(folder.iterdir())]
    for name in FIRST_WEIGHTS:
        for file in files:
            if file.name.lower().startswith(name) and file.suffix in (".pth", ".safetensors"):
                return file
    return None


def _weights_folders(site: Site, environ: Mapping[str, str]) -> Iterator[Path]:
    """RNC_WEIGHTS, or else where torchvision puts what it fetches, which torch would tell after seconds of import."""
    if site.weights_root is not None:
        yield site.weights_root
        return
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    yield Path(environ.get("TORCH_HOME") or cache) / "hub" / "checkpoints"
