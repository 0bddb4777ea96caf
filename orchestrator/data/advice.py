"""What is suspicious about a data set, each with a way out, and the one sentence that says how it stands."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.data.audit import Audit, box_sides, boxes_by_class, class_names, learnt
from orchestrator.data.duplicates import Twin, double_boxes, leaks

if TYPE_CHECKING:
    from model.data.split import CocoData

FEW = 20
"""Boxes to learn below which a class is named."""
IMBALANCE = 100
"""Times the boxes of the rarest class that the most frequent one may have."""
ANCHOR_SIDE = 22.6
"""Pixels: a square box of smaller sides overlaps the smallest anchor, 32 x 32, by less than an IoU of 0.5."""
MANY = 0.25
"""The part of the boxes from which on such small ones are named."""
NAMED = 5
"""Examples of one thing that are named."""
PAIRS = 3
"""Pairs of images that are named."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Something suspicious, and what to do about it."""

    seen: str
    way_out: str = ""
    """Empty where what was seen is an error message, which names its own."""

    def __str__(self) -> str:
        return f"{self.seen}; {self.way_out}" if self.way_out else self.seen


def verdict(found: Audit) -> str:
    """Say in one line how many images and classes there are, what is learnt, and what is at fault."""
    from model.data.layouts.files import usual_split

    names = ", ".join(data.split for data in found.splits)
    counts = " + ".join(f"{len(data):,}" for data in found.splits)
    num_classes = len(class_names(found))
    train = found.splits[0]
    are = "are" if usual_split(train.split) == "train" else "can be"
    parts = [
        f"{counts} images ({names})",
        f"{num_classes} class{'' if num_classes == 1 else 'es'}",
        f"{train.learnt().boxes:,} of {len(train.annotation_ids):,} boxes of {train.split} {are} learnt",
    ]
    told = [", ".join(parts)]
    num_faults = sum(len(data.faults) for data in found.splits)
    if num_faults:
        told.append(f"{num_faults:,} {'fault is' if num_faults == 1 else 'faults are'} left out")
    if found.refused:
        told.append(f"{', '.join(found.refused)} cannot be read")
    if found.looked is not None:
        told += [_are_twins(twins, *pair) for pair, twins in _by_splits(found.looked.across).items()]
    return "; ".join(told)


def notes(found: Audit) -> list[str]:
    """What is left out, and what of each split is read otherwise than it is written."""
    return [*found.notes, *(f"{data.split}: {note}" for data in found.splits for note in data.notes)]


def advice(found: Audit) -> list[Advice]:
    """List what is suspicious, the gravest first."""
    told = [Advice(f"split {split} cannot be read: {reason}") for split, reason in found.refused.items()]
    for data in found.splits:
        told += _of_faults(found, data)
    told += [*_of_learning(found.splits[0]), *_of_leaks(found), *_of_classes(found), *_of_small_boxes(found)]
    return told + [one for data in found.splits for one in _of_double_boxes(data)]


def quick_advice(train: "CocoData", val: "CocoData") -> list[Advice]:
    """What is worth a warning before a training and costs a second: copies of training images in val, doubled boxes.

    Who validates on the split that trains knows that its images are in both.
    """
    if train.split == val.split:
        return _of_double_boxes(train)
    twins = leaks(train, val)
    return [*(_of_leak(twins) if twins else []), *_of_double_boxes(train), *_of_double_boxes(val)]


def _of_faults(found: Audit, data: "CocoData") -> list[Advice]:
    from model.data.faults import describe

    told = [
        Advice(f"{data.split}: {line}", "mend them, or leave them out with train.data.faults: quarantine")
        for line in describe(data.faults)
    ]
    broken = found.looked.broken.get(data.split, {}) if found.looked else {}
    if broken:
        named = listed([f"{name} ({reason})" for name, reason in broken.items()])
        told.append(
            Advice(
                f"{data.split}: {len(broken):,} images do not decode: {named}",
                "restore them, or take them off the list",
            )
        )
    if data.annotation_crowds.all():
        what = "every box is a crowd" if len(data.annotation_crowds) else "there is no box"
        told.append(
            Advice(f"{data.split} has nothing to find: {what}", f"its AP is n/a: annotate images of {data.split}")
        )
    return told


_WAYS_OUT = {
    "crowd": "iscrowd: 1 marks groups that nobody can tell apart; where an exporter sets it on every mask, set it to 0",
    "area 0": "give each its area in square pixels, or leave `area` out: that of the box is taken then",
    "under a pixel": "boxes count in pixels; fractions of the image have to be multiplied by its width and height",
    "outside": "they lie beside their image: they may count from 1, or be of another image",
    "small image": "images with a side under 32 pixels do not train: enlarge them",
}


def _of_learning(train: "CocoData") -> list[Advice]:
    total = len(train.annotation_ids)
    told = []
    for reason, mask in train.not_learnt().items():
        count = int(mask.sum())
        # COCO itself has some crowds; where they are most boxes, an exporter is to blame.
        if count > (total / 2 if reason == "crowd" else 0):
            what = f"{count:,} of {total:,} boxes of {train.split} are not learnt: {reason}"
            told.append(Advice(what, _WAYS_OUT[reason]))
    if num_empty := int((np.diff(train.offsets) == 0).sum()):
        what = f"images of {train.split} without a box, which do not train: {num_empty:,} of {len(train):,}"
        told.append(
            Advice(what, "where there is really nothing to see, train.data.train_on_empty_images: true trains on them")
        )
    return told


def _of_leaks(found: Audit) -> list[Advice]:
    if found.looked is None:
        return []
    told = [
        Advice(f"{whole} contains {part}: the same files", "score by neither what learnt from the other")
        for whole, part in found.looked.contained
    ]
    for twins in _by_splits(found.looked.across).values():
        told += _of_leak(twins)
    for (split, _), twins in _by_splits(found.looked.within).items():
        what = f"{_are_twins(twins, split, 'an earlier one')}: {listed([pair_text(twin) for twin in twins], PAIRS)}"
        told.append(Advice(what, "each weighs as an image of its own: thin them out, unless that is meant"))
    return told


def _of_leak(twins: list[Twin]) -> list[Advice]:
    split, other = twins[0].split, twins[0].other_split
    what = f"{_are_twins(twins, split, other)}: {listed([pair_text(twin) for twin in twins], PAIRS)}"
    return [Advice(what, f"the numbers of {split} flatter: keep copies, and frames of one video, in one split")]


def _of_classes(found: Audit) -> list[Advice]:
    from model.data.split import category_differences

    train, *others = found.splits
    names = class_names(found)
    told = []
    for data in others:
        if differing := category_differences(train, data):
            what = f"{train.split} and {data.split} list other classes: {listed(differing)}"
            told.append(Advice(what, "give all splits one list of categories"))
    here = boxes_by_class(train, names, learnt(train))
    for data in others:
        there = boxes_by_class(data, names)
        told += _named(
            {name: a for name, a, b in zip(names, here.tolist(), there.tolist(), strict=True) if a and not b},
            f"in {train.split} and none in {data.split}",
            f"it has no AP in {data.split}: move some images with it there",
        )
        told += _named(
            {name: b for name, a, b in zip(names, here.tolist(), there.tolist(), strict=True) if b and not a},
            f"in {data.split} and none to learn in {train.split}",
            f"its AP will be 0: move some images with it to {train.split}",
        )
    counts = dict(zip(names, here.tolist(), strict=True))
    told += _named(
        {name: count for name, count in counts.items() if 0 < count < FEW},
        f"to learn in {train.split}, fewer than {FEW}",
        "so few teach little: annotate more, or join the class to another",
    )
    total = np.sum([boxes_by_class(data, names) for data in found.splits], axis=0)
    nowhere = [names[place] for place in np.flatnonzero(total == 0).tolist()]
    if nowhere:
        what = f"class {nowhere[0]!r} has" if len(nowhere) == 1 else f"{len(nowhere):,} classes have"
        named = "" if len(nowhere) == 1 else f": {listed([repr(name) for name in nowhere])}"
        told.append(Advice(f"{what} no box in any split{named}", "take it off the list of categories, or annotate it"))
    present = {name: count for name, count in counts.items() if count}
    if present:
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        ratio = present[most] / present[least]
        if ratio > IMBALANCE:
            what = f"class {most!r} has {ratio:,.0f} times the boxes of class {least!r} in {train.split}"
            told.append(Advice(what, "look at the AP of each class; the mean over classes moves with the rare ones"))
    return told


def _of_small_boxes(found: Audit) -> list[Advice]:
    train = found.splits[0]
    sides = box_sides(train, found.edges)[learnt(train)]
    part = float((sides < ANCHOR_SIDE).mean()) if len(sides) else 0.0
    if part < MANY:
        return []
    what = (
        f"{100 * part:.0f} % of the boxes of {train.split} are smaller than {ANCHOR_SIDE:.0f} pixels a side at "
        f"{found.edges[0]} x {found.edges[1]}, which no anchor overlaps by half"
    )
    return [Advice(what, "train at a larger train.data.short_edge and long_edge")]


def _of_double_boxes(data: "CocoData") -> list[Advice]:
    rows = double_boxes(data)
    if not len(rows):
        return []
    image_ids = np.repeat(data.image_ids, np.diff(data.offsets))
    named = listed(
        [f"annotation {data.annotation_ids[row]} (image {image_ids[row]})" for row in rows[: NAMED + 1].tolist()]
    )
    total = len(data.annotation_ids)
    what = f"{len(rows):,} of {total:,} boxes of {data.split} repeat another of the same image and class: {named}"
    return [Advice(what, "delete them: each counts as an object of its own, in learning and in scoring")]


def _named(counts: dict[str, int], where: str, way_out: str) -> list[Advice]:
    """One advice for all classes of a kind, which names the first few with their numbers of boxes."""
    if not counts:
        return []
    first, count = next(iter(counts.items()))
    if len(counts) == 1:
        return [Advice(f"class {first!r} has {count:,} {'box' if count == 1 else 'boxes'} {where}", way_out)]
    named = listed([f"{name!r} ({count:,})" for name, count in counts.items()])
    return [Advice(f"{len(counts):,} classes have boxes {where}: {named}", way_out)]


def listed(texts: list[str], most: int = NAMED) -> str:
    """The first few of a list."""
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def pair_text(twin: Twin) -> str:
    """Two images that are alike, and how much."""
    how = "same bytes" if twin.distance is None else f"{twin.distance} bits{', mirrored' if twin.is_mirrored else ''}"
    return f"{twin.split}/{twin.name} = {twin.other_split}/{twin.other_name} ({how})"


def _by_splits(twins: tuple[Twin, ...]) -> dict[tuple[str, str], list[Twin]]:
    pairs: dict[tuple[str, str], list[Twin]] = {}
    for twin in twins:
        pairs.setdefault((twin.split, twin.other_split), []).append(twin)
    return pairs


def _are_twins(twins: list[Twin], split: str, other: str) -> str:
    """Say how many images of a split are like some of another."""
    count, num_same = len(twins), sum(twin.distance is None for twin in twins)
    if num_same == count:
        are = "is a copy" if count == 1 else "are copies"
    else:
        are = "is a near-duplicate" if count == 1 else "are near-duplicates"
        are += f" ({num_same:,} byte by byte)" if num_same else ""
    return f"{count:,} image{'' if count == 1 else 's'} of {split} {are} of {other}"
