"""Image files to 8-bit RGB: bit depths, EXIF orientations, and how many pixels a file may have."""

from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from model.data.faults import DataError
from model.data.split import CocoData
from model.foreign import NoFileError, require_file

Size = tuple[int, int]
"""Height and width."""
NUM_THREADS = 16
"""Files that are looked at at once, each of which mostly waits for the storage."""
HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""The brands of HEIC files."""
MODEST = 50_000_000
"""Pixels up to which an image of another size than annotated is decoded, only to say more of it."""
_limit = Lock()


def decode(path: Path, size: Size | None = None) -> Image.Image:
    """Decode a file of a data set to RGB, in the pixels that its annotations count in.

    These are the stored ones, as pycocotools' users have them, whatever the EXIF orientation says; but an image whose
    annotated size is its size once turned was annotated as people saw it, and is turned.

    Args:
        path: of the file; of several frames, the first is read.
        size: as annotated; None takes the stored pixels.

    Raises:
        DataError: it does not decode, or has another size.
    """
    try:
        with open_image(path, size) as image:
            if size is None or (image.height, image.width) == size:
                return rgb(image)
            if may_be_turned(image, size):
                image.load()  # a PNG may have its EXIF data behind its pixels
            if is_turned(image, size):
                return rgb(ImageOps.exif_transpose(image))
            found = (image.height, image.width)
            raise DataError(f"is {found} (height, width), annotated {size}{if_turned(image)}; mend either")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a decoder raises whatever its format's parser meets
        raise DataError(
            f"{path}: the image does not decode ({type(error).__name__}: {error}); restore it, or take it off the list"
        ) from error


def decode_image(data: CocoData, index: int) -> Image.Image:
    """Decode an image of a split to RGB, of its annotated size; see `decode`."""
    height, width = data.sizes[index].tolist()
    return decode(data.path(index), (height, width))


def upright(source: Path | IO[bytes]) -> Image.Image:
    """Decode a photograph to RGB as people see it: turned as its EXIF orientation says.

    Raises:
        ValueError: it does not decode.
    """
    try:
        with open_image(source) as image:
            image.load()  # a PNG may have its EXIF data behind its pixels
            return rgb(image if orientation(image) == 1 else ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # a decoder raises whatever its format's parser meets
        raise ValueError(f"the image does not decode ({type(error).__name__}: {error})") from error


def open_image(source: Path | IO[bytes], size: Size | None = None) -> Image.Image:
    """Open a file and read its header; a file as large as its annotated size may have any number of pixels.

    Raises:
        DataError: it is no file but a pipe or a folder, or it has more pixels than Pillow takes for harmless, and no
            size was annotated that says so.
    """
    if isinstance(source, Path):
        require_image_file(source)
    with _limit:  # which another thread may have lifted
        most = Image.MAX_IMAGE_PIXELS
    if most is None or size is None or size[0] * size[1] <= most:
        try:
            image = Image.open(source)
            # Pillow refuses twice its limit. Nobody has said that these pixels are meant, and 169 million of them take
            # 1.6 GB until they are a tensor; photographs of 108 million pixels pass.
            if size is None and most is not None and image.width * image.height > most * 4 / 3:
                image.close()
                raise Image.DecompressionBombError
            return image
        except UnidentifiedImageError as error:
            if found := _no_image(source):
                raise DataError(found) from error
            raise
        except Image.DecompressionBombError as error:
            annotated = "" if size is None else f", annotated {size[0]} x {size[1]} (height x width)"
            raise DataError(
                f"too large: more than {(4 / 3 if size is None else 2) * (most or 0) / 1e6:.0f} million "
                f"pixels{annotated}; scale it down, cut it "
                "into tiles, or say its true size in the annotations"
            ) from error
    # Pillow has one limit for the whole process, of which only those who come with a size are to be free.
    with _limit:
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = most


def require_image_file(path: Path) -> None:
    """Refuse what is no file, before anything opens it: a named pipe would be waited for.

    Raises:
        DataError: it is a named pipe, a socket, a device or a folder.
        OSError: it is not there.
    """
    try:
        require_file(path)
    except NoFileError as error:
        raise DataError(f"{error.strerror}; take it away") from error


def _no_image(source: Path | IO[bytes]) -> str | None:
    """What a file is that is often found in the place of an image."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _no_image(file)
    source.seek(0)
    begin = source.read(64)
    if not begin:
        return "the file is empty; fetch it again"
    if begin[4:8] == b"ftyp" and begin[8:12] in HEIC:
        return "a HEIC picture, which is not read here; save it as JPEG"
    if begin.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the image; fetch it with `git lfs pull`"
    if begin.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page in place of the image; fetch it again"
    return None


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode; transparency is dropped, as other readers of data sets do.

    16 bits keep their upper eight, so that an image has the same pixels in 8 and in 16 bits, in grey as in colour,
    where Pillow itself does so. Floats count from 0 to 1.

    Raises:
        DataError: nobody knows which number is white.
    """
    image.load()  # opening a file reads its header alone
    if image.mode == "RGB":
        return image
    # Pillow brings a PGM of more than 8 bits to 0..65535, in 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        levels = np.asarray(image)
        low, high = levels.min(), levels.max()
        if image.mode == "F" and low >= 0 and high <= 1:  # false for NaN
            return Image.fromarray(np.round(levels * 255).astype(np.uint8)).convert("RGB")
        kind = "floats, expected 0 to 1" if image.mode == "F" else "32-bit or signed integers, of which none is white"
        raise DataError(f"its grey levels, {low:g} to {high:g}, are {kind}; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # or Pillow warns
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that makes sense, or a PNG has not shown it yet."""
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # or Pillow would decode the whole image, to look behind its pixels
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data may be damaged in any way, and the picture sound
        return 1
    return int(value) if value in range(1, 9) else 1


def may_be_turned(image: Image.Image, size: Size) -> bool:
    """Whether to decode an image of another size, whose pixels may hide an EXIF orientation: by its header alone."""
    return (image.width, image.height) == size or image.width * image.height <= MODEST


def is_turned(image: Image.Image, size: Size) -> bool:
    """Whether the EXIF orientation brings an image of another size to this one."""
    return (image.width, image.height) == size and orientation(image) >= 5  # 5 to 8 swap the sides


def if_turned(image: Image.Image) -> str:
    """Say which size an image of another size than annotated has once it is turned; nothing where it is not to be."""
    turn = orientation(image)
    if turn == 1:
        return ""
    height, width = (image.width, image.height) if turn >= 5 else (image.height, image.width)
    return f"; turned as its EXIF orientation {turn} says, it is {height} x {width}"
