"""Image sizes out of their headers, for formats that do not say them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.files.decoding import orientation

NO_SIZE = (1, 1)
"""Stands for the size of an image that is missing or has no header: the check of images tells why."""


def image_sizes(folder: Path, names: Sequence[str], num_threads: int = 16) -> NDArray[np.int32]:
    """[n, 2], height and width as people see the images and draw boxes on them: an EXIF orientation may swap them."""
    with ThreadPoolExecutor(num_threads) as pool:
        sizes = list(pool.map(_size, [folder / name for name in names]))
    return np.array(sizes, dtype=np.int32).reshape(-1, 2)


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)
    except Exception:  # a decoder raises whatever its format's parser meets
        return NO_SIZE
