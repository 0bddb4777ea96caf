"""Image sizes out of their headers, for formats that do not say them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.files.decoding import orientation
from model.foreign import require_file
from model.paths import OutsideError, inside

NO_SIZE = (1, 1)
"""Stands for the size of an image that is missing or has no header: the check of images tells why."""


def image_sizes(
    folder: Path, names: Sequence[str], *, as_seen: bool = False, num_threads: int = 16
) -> NDArray[np.int32]:
    """[n, 2], height and width of the stored pixels; or `as_seen`, once turned as an EXIF orientation says."""
    with ThreadPoolExecutor(num_threads) as pool:
        sizes = list(pool.map(partial(_size, as_seen=as_seen), [_path(folder, name) for name in names]))
    return np.array(sizes, dtype=np.int32).reshape(-1, 2)


def _path(folder: Path, name: str) -> Path | None:
    try:
        return inside(folder, name)
    except OutsideError:
        return None


def _size(path: Path | None, as_seen: bool) -> tuple[int, int]:
    if path is None:  # the check of images tells of it
        return NO_SIZE
    try:
        require_file(path)
        with Image.open(path) as image:
            is_turned = as_seen and orientation(image) >= 5  # 5 to 8 swap the sides
            return (image.width, image.height) if is_turned else (image.height, image.width)
    except Exception:  # a decoder raises whatever its format's parser meets
        return NO_SIZE
