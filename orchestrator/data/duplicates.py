"""Finds images that occur twice: the same bytes by sha256, the same view by a perceptual hash; and doubled boxes."""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.files.decoding import open_image, rgb
from model.foreign import require_file
from model.machine import usable_cores

if TYPE_CHECKING:
    from model.data.split import CocoData

SIDE = 8
"""Frequencies across and down that a perceptual hash keeps: one bit each."""
OVERSAMPLING = 4
"""Pixels a side, for each frequency kept, that the cosine transform sees."""
NEAR = 8
"""The most of 64 bits in which near-duplicates differ.

Measured on 575 photographs of an aquarium and 1,296 of blood cells: two that show different things differ by 32 bits
in the median; all 83 pairs up to 8 bits apart show one scene or one cell, and so do the 14 of which one is mirrored;
of the 8 pairs at 10 bits on blood four do not. Copies of the aquarium as JPEG of quality 20 to 50, at half the size,
squeezed to a square or at 60 % of the brightness differ by at most 4 bits; at 130 %, by 2 in the median and 10 at
most; with 3 % cut off each side, by 6 in the median and 16 at most.
"""
BLOCK = 4096
"""Bytes in the middle of a file that are compared before the whole of it is."""
AT_ONCE = 2**20
"""Pairs of hashes that are compared at once: what a cache holds."""
FAR = 65
"""A distance beyond every other."""


@dataclass(frozen=True, slots=True)
class Twin:
    """An image that shows what another shows."""

    split: str
    name: str
    other_split: str
    other_name: str
    distance: int | None
    """Bits of 64 in which their perceptual hashes differ; None where the files are the same bytes."""
    is_mirrored: bool = False
    """Whether it is like the other's mirror image, as which training may see it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prints:
    """The fingerprints of a split's images."""

    split: str
    names: tuple[str, ...]
    digests: NDArray[np.bytes_]
    """[n], half of the file's sha256, in hexadecimal; empty where it could not be read."""
    hashes: NDArray[np.uint64]
    """[n], the perceptual hash."""
    mirrored: NDArray[np.uint64]
    """[n], that of the mirror image."""
    broken: dict[str, str]
    """Why images do not decode, by name; they are like no other."""

    @property
    def sound(self) -> NDArray[np.bool_]:
        """[n], whether the image decodes."""
        return np.array([name not in self.broken for name in self.names], dtype=bool)


def prints(data: "CocoData", progress: Callable[[int], None] = lambda done: None) -> Prints:
    """Read and decode every image of a split.

    Args:
        data: the split.
        progress: told how many images are done.
    """
    paths, sizes = [data.path(index) for index in range(len(data))], data.sizes.tolist()
    found = []
    # The decoder and sha256 let other threads run.
    with ThreadPoolExecutor(usable_cores()) as pool:
        for done, one in enumerate(pool.map(_print, paths, sizes), start=1):
            found.append(one)
            progress(done)
    names = tuple(data.file_names)
    return Prints(
        split=data.split,
        names=names,
        digests=np.array([digest for digest, *_ in found], dtype="S32"),
        hashes=np.array([own for _, own, _, _ in found], dtype=np.uint64),
        mirrored=np.array([mirrored for _, _, mirrored, _ in found], dtype=np.uint64),
        broken={name: reason for name, (*_, reason) in zip(names, found, strict=True) if reason},
    )


def _print(path: Path, size: tuple[int, int]) -> tuple[bytes, int, int, str]:
    """sha256, perceptual hash, that of the mirror image, and why the file of that annotated size does not decode."""
    try:
        require_file(path)
        content = path.read_bytes()
    except OSError as error:
        return b"", 0, 0, error.strerror or type(error).__name__
    # Not the bytes themselves: NumPy cuts zeros off their end.
    digest = hashlib.sha256(content).hexdigest()[:32].encode()
    try:
        with open_image(io.BytesIO(content), size) as image:
            return digest, *perceptual_hash(image), ""
    except Exception as error:  # a decoder raises whatever its format's parser meets
        return digest, 0, 0, f"{type(error).__name__}: {error}"


def perceptual_hash(image: Image.Image) -> tuple[int, int]:
    """The 64-bit pHash of an image, and that of its mirror image.

    A bit for each of the lowest 8 x 8 frequencies of the grey image at 32 x 32 pixels: whether its coefficient of the
    cosine transform is above their median (Zauner, "Implementation and benchmarking of perceptual image hash
    functions", 2010; the package imagehash computes the same, and brings a wavelet library for other hashes).
    """
    from scipy.fft import dctn

    side = SIDE * OVERSAMPLING
    # A JPEG decodes at an eighth of its size or a quarter, if that is enough: two to three times as fast.
    image.draft("L", (2 * side, 2 * side))
    grey = np.asarray(rgb(image).convert("L").resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    low = dctn(grey)[:SIDE, :SIDE].round(2)  # what is left of an even grey is rounding
    mirrored = low * np.where(np.arange(SIDE) % 2, -1, 1)  # frequency k about the middle is even or odd, as k is
    return _bits(low), _bits(mirrored)


def _bits(low: NDArray[np.float32]) -> int:
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def twins(images: Prints, others: Prints | None = None) -> list[Twin]:
    """The images that are like one of the others, each with the one that it is most like; the most alike first.

    Args:
        images: of one split.
        others: of another; None looks among the earlier images of the same split.
    """
    are_earlier, others = others is None, others or images
    first: dict[bytes, int] = {}
    for place, digest in enumerate(others.digests.tolist()):
        first.setdefault(digest, place)
    found = []
    nearest = zip(*(column.tolist() for column in _nearest(images, others, are_earlier)), strict=True)
    for place, (digest, (near, distance, is_mirrored)) in enumerate(zip(images.digests.tolist(), nearest, strict=True)):
        same = first.get(digest) if digest else None
        pair = images.split, images.names[place], others.split
        if same is not None and not (are_earlier and same >= place):
            found.append(Twin(*pair, others.names[same], None))
        elif distance <= NEAR:
            found.append(Twin(*pair, others.names[near], distance, is_mirrored))
    return sorted(found, key=lambda twin: (-1 if twin.distance is None else twin.distance, twin.name))


def _nearest(
    images: Prints, others: Prints, are_earlier: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """For each image the place of the nearest other, its distance in bits, and whether it is the mirror image."""
    count = len(images.names)
    near, distances = np.zeros(count, dtype=np.int64), np.full(count, FAR)
    is_mirrored, is_broken = np.zeros(count, dtype=bool), ~others.sound
    step = max(1, AT_ONCE // max(1, len(others.names)))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        columns = np.arange(rows[-1] + 1 if are_earlier else len(others.names))
        for hashes, are_mirrored in ((others.hashes, False), (others.mirrored, True)):
            bits = np.bitwise_count(images.hashes[rows, None] ^ hashes[columns])
            bits[:, is_broken[columns]] = FAR
            if are_earlier:
                bits[columns >= rows[:, None]] = FAR
            best = bits.argmin(axis=1)
            least = bits[np.arange(len(rows)), best].astype(np.int64)
            better = rows[least < distances[rows]]
            near[better], distances[better] = best[better - start], least[better - start]
            is_mirrored[better] = are_mirrored
    distances[~images.sound] = FAR
    return near, distances, is_mirrored


def leaks(train: "CocoData", val: "CocoData") -> list[Twin]:
    """The images of `val` of which `train` has the same bytes: quick, as few files are read as a whole.

    Files are compared by size, then by 4 KiB from their middle, and only what is alike so far by sha256. Files that
    cannot be read are left to the checks that are made for them.
    """
    splits = train, val
    left = [list(range(len(data))) for data in splits]
    signs: list[list[bytes | None]] = []
    with ThreadPoolExecutor(16) as pool:
        for sign in (_size, _middle, _digest):
            signs = [list(pool.map(sign, map(data.path, of))) for data, of in zip(splits, left, strict=True)]
            both = set(signs[0]) & set(signs[1]) - {None}
            keep = [[one in both for one in of] for of in signs]
            left = [list(compress(of, kept)) for of, kept in zip(left, keep, strict=True)]
            signs = [list(compress(of, kept)) for of, kept in zip(signs, keep, strict=True)]
    first = dict(reversed([*zip(signs[0], left[0], strict=True)]))
    names = [data.file_names for data in splits]
    return [
        Twin(val.split, names[1][place], train.split, names[0][first[sign]], None)
        for sign, place in zip(signs[1], left[1], strict=True)
    ]


def _size(path: Path) -> bytes | None:
    try:
        return str(path.stat().st_size).encode()
    except OSError:
        return None


def _middle(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            # Of photographs by one camera the beginnings are alike, and drawings of one size end alike.
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, (size - BLOCK) // 2))
            return file.read(BLOCK)
    except OSError:
        return None


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def double_boxes(data: "CocoData") -> NDArray[np.int64]:
    """The rows of annotations that repeat an earlier one: the same box and class in the same image; rising."""
    image = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    keys = [data.annotation_crowds, *data.annotation_boxes.T, data.annotation_labels, image]
    order = np.lexsort(keys)  # which keeps the order of equals
    repeats = np.ones(max(0, len(order) - 1), dtype=bool)
    for key in keys:
        repeats &= key[order[1:]] == key[order[:-1]]
    rows: NDArray[np.int64] = np.sort(order[1:][repeats])
    return rows
