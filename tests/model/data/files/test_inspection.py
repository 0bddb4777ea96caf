"""What of an image file is told before anything starts; pixels and bytes are worked out by hand."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.files.decoding import decode, upright
from model.data.files.inspection import Traits, inspect, notes
from model.data.formats.sizes import read_headers
from tests.conftest import MakeCoco

SIZE = (64, 96)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
EVEN = Image.new("RGB", (1600, 1200), (200, 200, 200))


def jpeg(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **how)
    return buffer.getvalue()


def refused(folder: Path, content: bytes, size: tuple[int, int] = SIZE) -> str:
    (folder / "photo.jpg").write_bytes(content)
    with pytest.raises((DataError, OSError)) as caught:
        inspect(folder / "photo.jpg", size)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("optimize", [False, True])
def test_a_jpeg_whose_second_half_is_zeros_is_told(tmp_path: Path, optimize: bool) -> None:
    whole = jpeg(NOISE, quality=95, optimize=optimize)
    half = len(whole) // 2
    says = (
        f"DataError: {len(whole) - half - 2} of its {len(whole)} bytes, from byte {half} on, are zeros: fetch it again"
    )
    assert refused(tmp_path, whole[:half] + bytes(len(whole) - half - 2) + b"\xff\xd9") == says
    without_end = refused(tmp_path, whole[:half] + bytes(len(whole) - half))
    assert without_end.startswith(f"DataError: {len(whole) - half} of its {len(whole)} bytes, from byte")


def test_a_hole_in_the_middle_of_a_jpeg_is_told(tmp_path: Path) -> None:
    whole = jpeg(NOISE, quality=95)
    start = len(whole) // 2 - 200
    assert "400 of its" in refused(tmp_path, whole[:start] + bytes(400) + whole[start + 400 :])


def test_a_jpeg_that_is_cut_short_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path, jpeg(NOISE)[:-900]).startswith("OSError: image file is truncated")


@pytest.mark.parametrize("how", [{}, {"optimize": True}, {"progressive": True}, {"optimize": True, "subsampling": 0}])
@pytest.mark.parametrize("end", [b"", bytes(9000), b"\0" * 300 + b"a trailer"])
def test_zeros_that_make_an_even_picture_or_lie_behind_its_end_are_sound(
    tmp_path: Path, how: dict[str, Any], end: bytes
) -> None:
    (tmp_path / "even.jpg").write_bytes(jpeg(EVEN, **how) + end)
    assert inspect(tmp_path / "even.jpg", (1200, 1600)).orientation == 1


def test_an_even_picture_may_be_zeros_alone_but_not_more_than_it_has_blocks(tmp_path: Path) -> None:
    even = jpeg(EVEN, optimize=True)
    # Its 2 bits for each of 45,000 blocks of 8 x 8, those of colour at half size, are 11,250 bytes.
    assert b"\0" * 5000 in even
    assert "from byte" in refused(tmp_path, even[:-2] + bytes(200_000) + even[-2:], (1200, 1600))


def test_zeros_among_the_metadata_are_no_picture(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg(NOISE, comment=bytes(40_000)))
    assert inspect(tmp_path / "photo.jpg", SIZE) == Traits(orientation=1, turned=False, brightest=None, size=SIZE)


def png_of_ones(folder: Path, width: int, height: int) -> Path:
    """A white PNG of one bit a pixel, row by row, so that it needs no memory."""
    squeeze, rows = zlib.compressobj(1), []
    rows = [squeeze.compress(b"\0" + b"\xff" * (width // 8)) for _ in range(height)] + [squeeze.flush()]
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", b"".join(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (folder / "large.png").write_bytes(content)
    return folder / "large.png"


def test_a_picture_of_192_million_pixels_is_sound_where_it_is_annotated_so(tmp_path: Path) -> None:
    file = png_of_ones(tmp_path, 16000, 12000)
    traits = inspect(file, (12000, 16000))
    (note,) = notes([traits])
    assert note.startswith(
        "1 of 1 images have over 50 million pixels (the largest 16000 x 12000, 1.3 GB to decode in each loading "
    )
    with pytest.raises(
        DataError, match=r"too large: more than 179 million pixels, annotated 600 x 800 .height x width"
    ):
        inspect(file, (600, 800))


def test_what_is_read_otherwise_than_stored_is_told_once_for_the_data_set(make_coco: MakeCoco) -> None:
    names = ["0.png", "1.png", "2.jpg", "3.jpg", "4.jpg"]
    images = [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names)]
    root = make_coco(images=images)
    folder = root / "train"
    Image.fromarray(np.full((60, 80), 4095, np.uint16)).save(folder / "0.png")
    Image.fromarray(np.full((60, 80), 100, np.uint16)).save(folder / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 80)).save(folder / "2.jpg", exif=exif)
    Image.new("RGB", (80, 60)).save(folder / "3.jpg", exif=exif)
    assert read_coco(root, "train").notes == (
        "2 of 5 images carry an EXIF orientation: 1 are turned as it says, since they were annotated so; 1 are read as "
        "stored, as pycocotools has it; if boxes lie beside objects, turn the files",
        "2 of 5 images have 16 bits, of which the upper eight are read; the brightest pixel of all is 4095 of 65535, "
        "so that they are nearly black: scale them",
    )
    Image.fromarray(np.full((60, 80), 4096, np.uint16)).save(folder / "0.png")
    (_, depth) = read_coco(root, "train").notes
    assert depth == "2 of 5 images have 16 bits, of which the upper eight are read"
    assert read_coco(root, "train", check_images=False).notes == ()


def test_exif_data_behind_the_pixels_of_a_png_are_found_where_the_size_asks_for_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    whole = (tmp_path / "photo.png").read_bytes()
    start = whole.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    end = whole.index(b"IEND") - 4
    (tmp_path / "photo.png").write_bytes(whole[:start] + whole[stop:end] + whole[start:stop] + whole[end:])
    assert inspect(tmp_path / "photo.png", (4, 3)).turned
    assert not inspect(tmp_path / "photo.png", (3, 4)).turned
    for image in (upright(tmp_path / "photo.png"), decode(tmp_path / "photo.png", (4, 3))):
        assert np.array_equal(np.asarray(image)[..., 0], pixels.T[:, ::-1])


def test_headers_say_the_size_of_the_stored_pixels_and_how_people_see_them(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (4, 3)).save(tmp_path / f"{orientation}.jpg", exif=exif)
    names = [f"{orientation}.jpg" for orientation in range(1, 9)]
    sizes, orientations = read_headers(tmp_path, names)
    assert (sizes.tolist(), orientations.tolist()) == ([[3, 4]] * 8, list(range(1, 9)))


def test_pixels_that_nobody_can_read_are_a_fault_before_anything_starts(make_coco: MakeCoco) -> None:
    root = make_coco(images=[{"id": 1, "file_name": "1.tif", "height": 60, "width": 80}])
    Image.fromarray(np.full((60, 80), 7.5, np.float32)).save(root / "train" / "1.tif")
    with pytest.raises(DataError) as caught:
        read_coco(root, "train")
    assert (
        f"images that do not decode (1): image 1 ({root / 'train' / '1.tif'}: its grey levels, 7.5 to 7.5, are floats, "
        "expected 0 to 1; save it with 8 or 16 bits)" in str(caught.value)
    )


def test_no_photograph_is_taken_for_damaged(photos_root: Path) -> None:
    files = sorted(photos_root.rglob("*.jpg"))
    assert len(files) > 1000
    for file in files:
        with Image.open(file) as image:
            size = (image.height, image.width)
        inspect(file, size)
