"""The tables of a split from what a format says that numbers neither images nor annotations; and shares of them."""

import hashlib
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.data.annotations import Annotations, Images, Tables
from model.data.faults import DataError
from model.data.layouts.files import Share

PART = 5
"""One image in so many is validated on, where data are one split."""
FEW = 100
"""Images below which the validated ones are counted out; a hash alone might take far too few of them, or none."""


def make_tables(
    names: list[str],
    sizes: NDArray[np.int32],
    *,
    images: ArrayLike,
    boxes: ArrayLike,
    category_ids: ArrayLike,
    crowds: ArrayLike,
    categories: dict[int, str],
    notes: tuple[str, ...] = (),
    written: dict[int, str] | None = None,
) -> Tables:
    """Number images and annotations from 1 in the order given.

    Args:
        names: of the image files, sorted.
        sizes: [n, 2], height and width.
        images: [annotations], the place of each one's image in `names`.
        boxes: [annotations, 4], x, y, width and height in pixels; NaN where there is no such box.
        category_ids: [annotations].
        crowds: [annotations].
        categories: names by id.
        notes: what was read otherwise than it is written.
        written: what the file has for a box, by the row of one that is not four numbers.

    Raises:
        DataError: the name of an image file is not UTF-8, which no result could be stored under.
    """
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        name = next(name for name in names if any("\udc80" <= letter <= "\udcff" for letter in name))
        raise DataError(f"image {name!r}: the name of the file is not UTF-8; rename it") from error
    box = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        areas = box[:, 2] * box[:, 3]
    return Tables(
        Images(ids=np.arange(1, len(names) + 1, dtype=np.int64), names=names, sizes=sizes),
        Annotations(
            ids=np.arange(1, len(box) + 1, dtype=np.int64),
            image_ids=np.array(images, dtype=np.int64) + 1,
            category_ids=np.array(category_ids, dtype=np.int64),
            boxes=box,
            areas=areas,
            crowds=np.array(crowds, dtype=bool),
            written=written or {},
        ),
        dict(sorted(categories.items())),
        notes,
    )


def take_share(tables: Tables, share: Share, whole: str) -> Tables:
    """The images of one of two shares, about four fifths and one, and their annotations.

    Which share an image is in follows from its file's name alone, so that images may be added; of fewer than 100
    images the fifth is exact instead. Ids stay what they are in the whole.

    Raises:
        DataError: there is but one image.
    """
    names = tables.images.names
    if len(set(names)) < 2:
        raise DataError(f"{whole}: a single image can be learnt from or validated on, not both; add images")
    hashes = [_hash(name) for name in names]
    if len(names) < FEW:
        rank = np.empty(len(names), dtype=np.int64)
        rank[sorted(range(len(names)), key=lambda row: (hashes[row], names[row]))] = np.arange(len(names))
        validated = rank < max(1, round(len(names) / PART))
    else:
        validated = np.array([value % PART == 0 for value in hashes])
    rows = np.flatnonzero(validated if share == "val" else ~validated)
    images = tables.images.take(rows)
    # An annotation of no listed image is a fault, of either share.
    other = np.setdiff1d(tables.images.ids, images.ids)
    annotations = tables.annotations.take(np.flatnonzero(~np.isin(tables.annotations.image_ids, other)))
    note = (
        f"{share} is {len(rows):,} of the {len(names):,} images of '{whole}', "
        f"{'the fifth' if share == 'val' else 'all but the fifth'} that a hash of their names picks; split the data to "
        "choose for yourself"
    )
    return tables._replace(images=images, annotations=annotations, notes=(*tables.notes, note))


def _hash(name: str) -> int:
    # Roboflow's augmented copies of a picture, NAME.rf.HASH.jpg, stay on one side.
    source = PurePosixPath(name.replace("\\", "/")).name.split(".rf.")[0]
    return int.from_bytes(hashlib.sha256(source.encode(errors="surrogateescape")).digest()[:8])
