"""Checks annotations: each box by itself, and all of them for signs that they are written in another form."""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.data.annotations import Annotations, Images
from model.data.faults import Fault, FaultKind, named

MAX_OVERHANG = 1.0
"""Pixels by which a box may leave its image and count as sound; it is clipped without a report."""
FAR = 1e9
"""Pixels; beyond any image, and still no sum or product of two overflows."""
MANY = 0.2
"""The share of boxes that leave their images from which on their form is in doubt, and not these boxes."""
NEARLY_ALL = 0.95
"""The share of boxes that have to fit another form before the data are taken for it."""
MIN_CENTRES = 3
"""Boxes that leave their images before they may be centres; those of few boxes have as many other reasons."""


def annotation_faults(annotations: Annotations, images: Images, category_ids: Sequence[int]) -> dict[int, Fault]:
    """Find the annotations that no detector should see; each is named for its first fault only.

    Args:
        annotations: all of a file.
        images: all of a file, by rising id.
        category_ids: the categories of the file.

    Returns:
        The fault of each faulty row.
    """
    image = np.searchsorted(images.ids, annotations.image_ids).clip(max=len(images.ids) - 1)
    stray = images.ids[image] != annotations.image_ids
    bounds = images.sizes[image, ::-1]
    first = np.zeros(len(stray), dtype=bool)
    first[np.unique(annotations.ids, return_index=True)[1]] = True
    slack = MAX_OVERHANG + 1e-6  # x + width is rounded
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = annotations.boxes[:, :2], annotations.boxes[:, :2] + annotations.boxes[:, 2:]
        found: dict[FaultKind, NDArray[np.bool_] | np.bool_] = {
            "annotation_duplicate": ~first,
            "annotation_stray": stray,
            "category_unknown": ~np.isin(annotations.category_ids, np.array(category_ids)),
            "box_not_finite": ~np.isfinite(high).all(axis=1),
            "box_empty": (annotations.boxes[:, 2:] <= 0).any(axis=1),
            "box_outside": ((low < -slack) | (high > bounds + slack)).any(axis=1),
        }
    faults: dict[int, Fault] = {}
    # An annotation is named for its first fault: one of no listed image has no size to compare its box with.
    for kind, rows in found.items():
        for row in np.flatnonzero(rows).tolist():
            faults.setdefault(row, _annotation_fault(kind, annotations, row))
    return dict(sorted(faults.items()))


def _annotation_fault(kind: FaultKind, annotations: Annotations, row: int) -> Fault:
    image_id, annotation_id = int(annotations.image_ids[row]), int(annotations.ids[row])
    detail = f"image {image_id}"
    if kind.startswith("box"):
        detail += f", bbox {annotations.written.get(row) or _plain(annotations.boxes[row].tolist())}"
    elif kind == "category_unknown":
        detail += f", category {annotations.written.get(row) or int(annotations.category_ids[row])}"
    return Fault(kind=kind, image_id=image_id, annotation_id=annotation_id, detail=detail)


def _plain(numbers: Sequence[float]) -> str:
    """Numbers to their last digit, whole ones without a point."""
    return f"[{', '.join(str(int(n)) if n.is_integer() and abs(n) < 1e16 else repr(n) for n in numbers)}]"


def other_form(annotations: Annotations, images: Images) -> str | None:
    """Say in which form the boxes seem to be written, where they are not x, y, width and height in pixels.

    Args:
        annotations: all of a file.
        images: all of a file, by rising id.
    """
    image = np.searchsorted(images.ids, annotations.image_ids).clip(max=len(images.ids) - 1)
    rows = np.flatnonzero((images.ids[image] == annotations.image_ids) & np.isfinite(annotations.boxes).all(axis=1))
    if not len(rows):
        return None
    boxes, bounds = annotations.boxes[rows], images.sizes[image[rows], ::-1].astype(np.float64)
    example = f"annotation {annotations.ids[rows[0]]} has {_plain(boxes[0].tolist())}"
    boxes = boxes.clip(-FAR, FAR)
    first, second = boxes[:, :2], boxes[:, 2:]
    fractions = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & ((boxes > 0) & (boxes < 1)).any(axis=1)
    if fractions.mean() >= NEARLY_ALL and (bounds > 2).all():
        return f"boxes look like fractions of the image, from 0 to 1 ({example}); write them in pixels"
    slack = MAX_OVERHANG + 1e-6
    leaves = ((first < -slack) | (first + second > bounds + slack)).any(axis=1)
    corners = ((second > first) & (first >= -slack) & (second <= bounds + slack)).all(axis=1)
    is_many = leaves.mean() >= MANY
    if corners.mean() >= NEARLY_ALL and (is_many or _areas_are_of_corners(boxes, annotations.areas[rows])):
        return (
            f"boxes look like corners (x1, y1, x2, y2), not like x, y, width and height ({example}, in an image of "
            f"{int(bounds[0, 0])} x {int(bounds[0, 1])}); write x2 - x1 and y2 - y1 in their third and fourth place"
        )
    centres = ((second > 0) & (first - second / 2 >= -slack) & (first + second / 2 <= bounds + slack)).all(axis=1)
    if is_many and leaves.sum() >= MIN_CENTRES and centres.mean() >= NEARLY_ALL:
        return (
            f"boxes look as if x and y were their centre ({example}, in an image of {int(bounds[0, 0])} x "
            f"{int(bounds[0, 1])}); write the upper left corner"
        )
    return None


def _areas_are_of_corners(boxes: NDArray[np.float64], areas: NDArray[np.float64]) -> bool:
    """Whether the areas are those of the boxes read as corners, and not as width and height."""
    as_corners = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    as_sides = boxes[:, 2:].prod(axis=1)
    fits = np.isclose(areas, as_corners, rtol=1e-3, atol=0.5)
    # Corners from (0, 0) have the same area either way.
    differs = ~np.isclose(as_corners, as_sides, rtol=1e-2, atol=1.0)
    return bool(fits.mean() >= NEARLY_ALL and (fits & differs).mean() >= MANY)


def names_alike(categories: Mapping[int, str]) -> list[str]:
    """Tell of categories that people would take for one: their names differ in case, spaces or accents' form alone."""
    alike: dict[str, list[int]] = {}
    for id, name in categories.items():
        alike.setdefault(" ".join(unicodedata.normalize("NFC", name).casefold().split()), []).append(id)
    found = [", ".join(f"{categories[id]!r} ({id})" for id in ids) for ids in alike.values() if len(ids) > 1]
    if not found:
        return []
    return [f"categories have the same name, but for case and spaces: {named(found)}; each is a class of its own"]


def box_notes(annotations: Annotations, images: Images) -> list[str]:
    """Tell of boxes that are listed twice, and of signs that they are counted from 1."""
    notes = []
    columns = [annotations.image_ids, annotations.category_ids, *annotations.boxes.T]
    # By a hash first: to sort the rows themselves takes ten times as long.
    mixed = np.zeros(len(annotations.ids), dtype=np.uint64)
    for column in columns:
        mixed = (mixed ^ np.ascontiguousarray(column).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    same = np.ones(max(0, len(order) - 1), dtype=bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    again = np.flatnonzero(same)
    if len(again):
        pairs = [f"{annotations.ids[order[one]]} and {annotations.ids[order[one + 1]]}" for one in again[:3].tolist()]
        notes.append(
            f"{len(again)} boxes are listed more than once in the same image and category (annotations "
            f"{', '.join(pairs)}{', ...' if len(again) > 3 else ''}); each counts as an object of its own"
        )
    if len(annotations.ids):
        image = np.searchsorted(images.ids, annotations.image_ids).clip(max=len(images.ids) - 1)
        over = annotations.boxes[:, :2] + annotations.boxes[:, 2:] - images.sizes[image, ::-1]
        if annotations.boxes[:, :2].min() == 1 and over.max() == 1:
            notes.append("boxes begin at 1 and end a pixel outside: they seem to count pixels from 1, and COCO from 0")
    return notes
