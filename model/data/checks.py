"""Finding every fault of a data set: of its annotations at once, of its images by header and end."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.annotations import Annotations, Images
from model.data.faults import Fault, FaultKind

MAX_OVERHANG = 1.0
"""Pixels by which a box may leave its image; it is clipped and nobody is told."""
_END_OF_JPEG = b"\xff\xd9"
"""Coded pixels cannot hold this pair of bytes."""


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
    low, high = annotations.boxes[:, :2], annotations.boxes[:, :2] + annotations.boxes[:, 2:]
    first = np.zeros(len(stray), dtype=bool)
    first[np.unique(annotations.ids, return_index=True)[1]] = True
    slack = MAX_OVERHANG + 1e-6  # x + width is rounded
    with np.errstate(invalid="ignore"):
        found: dict[FaultKind, NDArray[np.bool_] | np.bool_] = {
            "annotation_duplicate": ~first,
            "annotation_stray": stray,
            "category_unknown": ~np.isin(annotations.category_ids, np.array(category_ids)),
            "box_not_finite": ~np.isfinite(high).all(axis=1),
            "box_empty": (annotations.boxes[:, 2:] <= 0).any(axis=1),
            "box_outside": ((low < -slack) | (high > bounds + slack)).any(axis=1),
        }
    faults: dict[int, Fault] = {}
    for kind, rows in found.items():
        for row in np.flatnonzero(rows).tolist():
            faults.setdefault(row, _annotation_fault(kind, annotations, row))
    return dict(sorted(faults.items()))


def _annotation_fault(kind: FaultKind, annotations: Annotations, row: int) -> Fault:
    image_id, annotation_id = int(annotations.image_ids[row]), int(annotations.ids[row])
    detail = f"image {image_id}"
    if kind.startswith("box"):
        detail += f", bbox {[round(value, 2) for value in annotations.boxes[row].tolist()]}"
    elif kind == "category_unknown":
        detail += f", category {int(annotations.category_ids[row])}"
    return Fault(kind=kind, image_id=image_id, annotation_id=annotation_id, detail=detail)


def image_faults(folder: Path, images: Images, num_threads: int = 16) -> list[Fault]:
    """Find the images that are missing, cut short, or of another size than annotated; reads headers and ends only."""
    paths = [folder / name for name in images.names]
    with ThreadPoolExecutor(num_threads) as pool:
        found = pool.map(_image_fault, paths, images.ids.tolist(), images.sizes.tolist())
        return [fault for fault in found if fault is not None]


def _image_fault(path: Path, image_id: int, size: Sequence[int]) -> Fault | None:
    try:
        with path.open("rb") as file, Image.open(file) as image:
            width, height = image.size
            if [height, width] != list(size):
                detail = f"{path.name}: {height} x {width}, annotated {size[0]} x {size[1]} (height x width)"
                return Fault(kind="image_resized", image_id=image_id, detail=detail)
            _require_whole(file, image)
    except FileNotFoundError:
        return Fault(kind="image_missing", image_id=image_id, detail=path.name)
    except Exception as error:  # a decoder raises whatever its format's parser meets
        return Fault(kind="image_broken", image_id=image_id, detail=f"{path.name}: {type(error).__name__}")
    return None


def _require_whole(file: IO[bytes], image: Image.Image) -> None:
    """Raise what the decoder raises where the file is cut short, without decoding a sound JPEG."""
    if image.format == "PNG":
        image.verify()
        return
    if image.format == "JPEG":
        file.seek(max(0, file.seek(0, 2) - 4096))
        if _END_OF_JPEG in file.read():
            return
    image.load()
