"""Image sizes out of their headers, for formats that do not say them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.annotations import MAX_SIDE
from model.data.files.decoding import NUM_THREADS, open_image, orientation
from model.foreign import require_file
from model.paths import OutsideError, inside

NO_SIZE = (1, 1)
"""Stands for the size of an image that is missing or has no header: the check of images tells why."""


class Headers(NamedTuple):
    """What the headers of image files say."""

    sizes: NDArray[np.int32]
    """[n, 2], height and width of the stored pixels."""
    orientations: NDArray[np.int32]
    """[n], the EXIF orientations, 1 to 8."""


def image_sizes(folder: Path, names: Sequence[str]) -> NDArray[np.int32]:
    """[n, 2], height and width of the stored pixels."""
    return read_headers(folder, names).sizes


def read_headers(folder: Path, names: Sequence[str]) -> Headers:
    """Read the headers of the images of a folder."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(_header, [_path(folder, name) for name in names]))
    numbers = np.array(found, dtype=np.int32).reshape(-1, 3)
    return Headers(sizes=numbers[:, :2], orientations=numbers[:, 2])


def _path(folder: Path, name: str) -> Path | None:
    try:
        return inside(folder, name)
    except OutsideError:
        return None


def _header(path: Path | None) -> tuple[int, int, int]:
    """Height, width and orientation."""
    if path is None:  # the check of images tells of it
        return (*NO_SIZE, 1)
    try:
        require_file(path)
        with _open(path) as image:
            return image.height, image.width, orientation(image)
    except Exception:  # a decoder raises whatever its format's parser meets
        return (*NO_SIZE, 1)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        # A header costs nothing, and its size is the one that no annotation says. Only then, as others wait for it.
        return open_image(path, (MAX_SIDE, MAX_SIDE))
