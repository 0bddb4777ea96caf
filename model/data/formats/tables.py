"""The tables of a split from what a format says that numbers neither images nor annotations; and shares of them."""

import hashlib
from collections import Counter
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
    images the fifth is counted out instead. Ids stay what they are in the whole.

    Raises:
        DataError: there is but one image, or copies of one.
    """
    names = tables.images.names
    hashes = _hashes(names)
    if len(np.unique(hashes)) < 2:
        raise DataError(f"{whole}: a single image can be learnt from or validated on, not both; add images")
    validated = hashes % PART == 0
    if len(names) < FEW or validated.all() or not validated.any():
        validated = _counted_out(hashes)
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


def _counted_out(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[n], the fifth of the lowest hashes, or as near to it as images of one hash stay together."""
    ordered = np.sort(hashes)
    borders = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    border = borders[np.abs(borders - max(1, round(len(hashes) / PART))).argmin()]
    validated: NDArray[np.bool_] = hashes < ordered[border]
    return validated


def _hashes(names: list[str]) -> NDArray[np.uint64]:
    """[n], of the last part of each name, so that the data may be moved; of the whole where many share that part."""
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names]
    most = max(Counter(path.name for path in set(paths)).values(), default=0)
    # A folder for each scene, with the same few names in all: one of them would fill a share.
    is_whole = most > 1 and FEW * most > len(names)
    # Roboflow's augmented copies of a picture, NAME.rf.HASH.jpg, stay on one side.
    sources = [path.name.split(".rf.")[0] for path in paths]
    if is_whole:
        sources = [f"{path.parent}/{source}" for path, source in zip(paths, sources, strict=True)]
    digests = [hashlib.sha256(source.encode(errors="surrogateescape")).digest() for source in sources]
    return np.array([int.from_bytes(digest[:8]) for digest in digests], dtype=np.uint64)
