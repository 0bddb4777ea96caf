"""Checks image files without decoding those that are sound, and tells what of them is not read as it is stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from model.data.faults import DataError
from model.data.files.decoding import (
    Size,
    if_turned,
    is_turned,
    may_be_turned,
    open_image,
    orientation,
    require_image_file,
    rgb,
)

READABLE = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
"""Pillow's modes of which every image becomes RGB; of another, its pixels tell."""
LARGE = 50_000_000
"""Pixels from which on an image is told of."""
TAIL = 4096
"""Bytes at the end of a JPEG in which its end mark is looked for."""
END = b"\xff\xd9"
"""The end mark of a JPEG; coded pixels cannot hold this pair of bytes."""
ZEROS = 128
"""Zero bytes that hold a block of 64 coefficients of a JPEG in any case, whatever its sampling of colours."""


class OtherSizeError(DataError):
    """An image is of another size than annotated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What of a sound image is not read as it is stored."""

    orientation: int
    """The EXIF orientation, 1 to 8."""
    turned: bool
    """Its annotated size is its size once turned."""
    brightest: int | None
    """The largest grey level of an image of 16 bits; None for others."""
    size: Size


def inspect(path: Path, size: Size) -> Traits:
    """Check one file against its annotated size; headers and ends are read, and what they leave open is decoded.

    Raises:
        FileNotFoundError: there is no such file.
        OtherSizeError: it is of another size.
        Exception: whatever a decoder raises where it is damaged, cut short, or of a kind that nobody can read.
    """
    require_image_file(path)
    with path.open("rb") as file, open_image(file, size) as image:
        other = (image.height, image.width) != size
        if other and may_be_turned(image, size):
            image.load()  # a PNG may have its EXIF data behind its pixels
        turn = orientation(image)
        turned = other and is_turned(image, size)
        if other and not turned:
            annotated = f"annotated {size[0]} x {size[1]} (height x width)"
            raise OtherSizeError(f"{image.height} x {image.width}, {annotated}{if_turned(image)}")
        brightest = None
        if image.mode not in READABLE:
            rgb(image)
            brightest = int(np.asarray(image).max()) if image.mode.startswith("I;16") else None
        elif image.format != "PNG":
            _require_whole(file, image)
        elif not other:  # and so decoded already
            image.verify()  # a PNG's parts carry checksums
    return Traits(orientation=turn, turned=turned, brightest=brightest, size=size)


def notes(found: Sequence[Traits], *, boxes_follow: bool = False) -> Iterator[str]:
    """Tell people, in a sentence each, what of the images of a split is not read as it is stored.

    Args:
        found: of the sound images.
        boxes_follow: whether boxes were drawn in pictures as people see them, and brought to the stored pixels.
    """
    if oriented := [one for one in found if one.orientation > 1]:
        turned = sum(one.turned for one in oriented)
        stored = len(oriented) - turned
        ways = [f"{turned} are turned as it says, since they were annotated so"] if turned else []
        if stored:
            told = "as pycocotools has it; if boxes lie beside objects, turn the files"
            if boxes_follow:
                told = "to which their boxes were turned, as labels count in the picture that people see"
            ways.append(f"{stored} are read as stored, {told}")
        yield f"{len(oriented)} of {len(found)} images carry an EXIF orientation: {'; '.join(ways)}"
    if levels := [one.brightest for one in found if one.brightest is not None]:
        text = f"{len(levels)} of {len(found)} images have 16 bits, of which the upper eight are read"
        if max(levels) < 1 << 12:
            text += f"; the brightest pixel of all is {max(levels)} of 65535, so that they are nearly black: scale them"
        yield text
    if large := [one.size for one in found if one.size[0] * one.size[1] >= LARGE]:
        height, width = max(large, key=lambda size: size[0] * size[1])
        yield (
            f"{len(large)} of {len(found)} images have over {LARGE // 10**6} million pixels (the largest {width} x "
            f"{height}, {height * width * 7 / 1e9:.1f} GB to decode in each loading process), and lose small objects "
            "where they are scaled down; tiles of them would not"
        )


def _require_whole(file: IO[bytes], image: Image.Image) -> None:
    """Raise what the decoder raises where the file is cut short, without decoding a sound JPEG."""
    if image.format not in ("JPEG", "MPO"):
        image.load()
        return
    length = file.seek(0, 2)
    file.seek(max(0, length - TAIL))
    tail = file.read()
    end = tail.rfind(END)
    # What was allocated and never written is zeros, over which decoders pass without a word.
    stop = length if end < 0 else length - len(tail) + end
    for place in (stop, length // 2):
        if zeros := _zeros_around(file, place):
            _require_possible(file, image, *zeros)
    if end < 0:
        file.seek(0)
        image.load()


def _zeros_around(file: IO[bytes], place: int) -> tuple[int, int] | None:
    """(start, length) of the run of zeros that ends at or spans a place; None for a short one."""
    file.seek(max(0, place - ZEROS))
    if file.read(ZEROS).strip(b"\0"):
        return None
    start = stop = place
    while start > 0:
        file.seek(max(0, start - TAIL))
        block = file.read(min(TAIL, start))
        zeros = len(block) - len(block.rstrip(b"\0"))
        start -= zeros
        if zeros < len(block):
            break
    file.seek(stop)
    while block := file.read(TAIL):
        zeros = len(block) - len(block.lstrip(b"\0"))
        stop += zeros
        if zeros < len(block):
            break
    return start, stop - start


def _require_possible(file: IO[bytes], image: Image.Image, start: int, zeros: int) -> None:
    """Refuse a run of zeros in a JPEG's coded pixels that stands for no picture.

    The shortest code of a Huffman table is all zeros. Mostly it stands for a coefficient of -1, and a block of nothing
    else is in no photograph. Where it ends a block instead, zeros are an even area, which has its limit in the size.
    """
    file.seek(max(0, start - len(END)))
    scan = _first_scan(file) if file.read(len(END)) != END else None  # behind the end mark lies what it may
    if scan is None or start < scan[0]:  # among the metadata
        return
    _, is_progressive, first_code = scan
    pixels = image.width * image.height
    if is_progressive:
        most = 3 * pixels // 8  # a bit for each coefficient of a refinement
    elif first_code == 0:
        most = 3 * pixels // 64 * 4 // 8  # 64 coefficients of three colours take four bits or so
    else:
        most = 0
    if zeros > ZEROS + most:
        raise DataError(f"{zeros} of its {file.seek(0, 2)} bytes, from byte {start} on, are zeros: fetch it again")


def _first_scan(file: IO[bytes]) -> tuple[int, bool, int | None] | None:
    """Where coded pixels begin, whether they are progressive, and what the shortest code of brightness stands for."""
    is_progressive, first_code = False, None
    place = 2
    while True:
        file.seek(place)
        mark, kind, *length = file.read(4) or (0, 0)
        if mark != 0xFF or len(length) < 2:
            return None
        if kind == 0xFF:  # a fill byte
            place += 1
            continue
        size = int.from_bytes(length, "big")
        place += 2 + size
        if kind == 0xDA:  # start of scan
            return place, is_progressive, first_code
        if kind in (0xC2, 0xC6, 0xCA, 0xCE):  # start of a progressive frame
            is_progressive = True
        if kind == 0xC4:  # Huffman tables: class and number, 16 counts of codes by length, and what they stand for
            tables = file.read(size - 2)
            while len(tables) > 17:
                if tables[0] == 0x10:
                    first_code = tables[17]
                tables = tables[17 + sum(tables[1:17]) :]
