"""Which pixels an image file stands for; expected ones are worked out by hand, or are those of another file of it."""

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.files.decoding import decode, upright
from model.data.files.inspection import inspect
from model.data.images import load_image, load_sample
from tests.conftest import MakeCoco

STORED = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
SEEN = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.transpose(1, 0, 2),
    6: STORED.transpose(1, 0, 2)[:, ::-1],
    7: STORED.transpose(1, 0, 2)[::-1, ::-1],
    8: STORED.transpose(1, 0, 2)[::-1],
}
"""What people see of the stored pixels, by EXIF orientation (EXIF 2.32, tag 0x0112: where row 0 and column 0 are)."""


def oriented(file: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    how: dict[str, Any] = {"lossless": True} if file.suffix == ".webp" else {}
    Image.fromarray(STORED).save(file, exif=exif, **how)
    return file


def array(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["photo.png", "photo.webp"])
def test_people_see_a_photograph_upright_and_a_data_set_has_it_as_stored(
    tmp_path: Path, orientation: int, name: str
) -> None:
    file = oriented(tmp_path / name, orientation)
    assert np.array_equal(array(upright(file)), SEEN[orientation])
    assert np.array_equal(array(decode(file)), STORED)
    assert np.array_equal(array(decode(file, (3, 4))), STORED)
    assert np.array_equal(array(upright(BytesIO(file.read_bytes()))), SEEN[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_annotated_as_people_see_it_is_turned(make_coco: MakeCoco, orientation: int) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 1, 3, 2]}
    images = [{"id": 1, "file_name": "1.png", "height": 4, "width": 3}]
    root = make_coco([annotation], images=images)
    oriented(root / "train" / "1.png", orientation)
    if orientation < 5:  # which keep the size, so that the annotated one is of no orientation
        with pytest.raises(DataError, match=r"1\.png: 3 x 4, annotated 4 x 3 \(height x width\)"):
            read_coco(root, "train")
        with pytest.raises(DataError, match=r"1\.png: is \(3, 4\) \(height, width\), annotated \(4, 3\)"):
            load_sample(read_coco(root, "train", check_images=False), 0, 3, 4, False)
        return
    sample = load_sample(read_coco(root, "train"), 0, 3, 4, False)
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), SEEN[orientation])
    assert sample.boxes.tolist() == [[0, 1, 3, 3]]


def test_another_size_names_the_orientation_that_does_not_explain_it(tmp_path: Path) -> None:
    file = oriented(tmp_path / "photo.jpg", 6)
    with pytest.raises(
        DataError, match=r"annotated \(8, 6\); turned as its EXIF orientation 6 says, it is 4 x 3; mend either"
    ):
        decode(file, (8, 6))


@pytest.mark.parametrize("exif", [b"Exif\0\0MM", b"Exif\0\0" + bytes(40), b"nonsense"])
def test_exif_data_that_make_no_sense_leave_the_picture_as_it_is(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(STORED).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(array(upright(tmp_path / "photo.png")), STORED)
    with pytest.raises(DataError, match=r"is \(3, 4\).*annotated \(4, 3\); mend"):
        decode(tmp_path / "photo.png", (4, 3))
    assert np.array_equal(array(upright(oriented(tmp_path / "nine.png", 9))), STORED)


def test_images_of_every_mode_become_rgb(tmp_path: Path) -> None:
    colours = Image.new("RGB", (4, 3), (200, 100, 50))
    for mode, name, expected in (
        ("L", "grey.png", [124, 124, 124]),  # 0.299 * 200 + 0.587 * 100 + 0.114 * 50
        ("P", "palette.png", [200, 100, 50]),
        ("RGBA", "alpha.png", [200, 100, 50]),
        ("LA", "grey_alpha.png", [124, 124, 124]),
        ("CMYK", "print.tif", [200, 100, 50]),
        ("CMYK", "print.jpg", [200, 100, 50]),
        ("1", "ink.png", [255, 255, 255]),
    ):
        image = Image.new("1", (4, 3), 1) if mode == "1" else colours.convert(mode)
        image.save(tmp_path / name)
        pixels = load_image(tmp_path / name)
        assert (pixels.shape, pixels.dtype) == ((3, 3, 4), torch.uint8)
        assert np.abs(pixels[:, 1, 1].numpy().astype(int) - expected).max() <= 4, mode  # a palette has few colours


def test_what_is_transparent_has_its_colour(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.fromarray(np.dstack([STORED, np.zeros((3, 4), np.uint8)])).save(tmp_path / "alpha.png")
    assert np.array_equal(array(decode(tmp_path / "alpha.png")), STORED)
    palette = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), "P")
    palette.putpalette(STORED.tobytes())
    palette.save(tmp_path / "palette.png", transparency=bytes(range(12)))
    palette.save(tmp_path / "one.png", transparency=3)
    palette.save(tmp_path / "still.gif", transparency=3)
    for name in ("palette.png", "one.png", "still.gif"):
        assert np.array_equal(array(decode(tmp_path / name)), STORED), name
    assert not recwarn.list


GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "big_endian.tif", "deep.pgm", "deep.jp2"])
def test_grey_has_the_same_pixels_in_8_and_in_16_bits(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    deep = GREY.astype(np.uint16) * 257  # 255 becomes 65535
    if name == "deep.pgm":
        (tmp_path / name).write_bytes(b"P5 32 8 65535\n" + deep.astype(">u2").tobytes())
    elif name == "big_endian.tif":
        Image.frombytes("I;16B", (32, 8), deep.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(deep).save(tmp_path / name)
    assert torch.equal(load_image(tmp_path / name), load_image(tmp_path / "grey.png"))
    assert torch.equal(load_image(tmp_path / name)[0], torch.from_numpy(GREY))


def test_colour_has_the_same_pixels_in_8_and_in_16_bits(tmp_path: Path) -> None:
    rows = (STORED.astype(">u2") * 257).astype(">u2").reshape(3, -1)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)),  # 4 x 3 pixels of 16 bits, RGB
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "deep.png").write_bytes(content)
    assert np.array_equal(array(decode(tmp_path / "deep.png")), STORED)


def test_sixteen_bits_are_turned_as_eight_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png", exif=exif)
    assert np.array_equal(array(upright(tmp_path / "deep.png"))[..., 1], GREY.T[:, ::-1])
    assert np.array_equal(array(decode(tmp_path / "deep.png", (32, 8)))[..., 1], GREY.T[:, ::-1])


def test_floats_count_from_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert torch.equal(load_image(tmp_path / "float.tif")[2], torch.from_numpy(GREY))


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        (GREY.astype(np.float32), r"grey levels, 0 to 255, are floats, expected 0 to 1; save it with 8 or 16 bits"),
        (GREY.astype(np.float32) / 255 - 0.5, r"grey levels, -0\.5 to 0\.5, are floats"),
        (np.where(GREY > 9, np.nan, 0.5).astype(np.float32), r"grey levels, nan to nan, are floats"),
        (GREY.astype(np.int32) * 257, r"grey levels, 0 to 65535, are 32-bit or signed integers.*save it with 8 or 16"),
    ],
)
def test_grey_levels_without_a_known_white_are_refused(tmp_path: Path, levels: NDArray[Any], says: str) -> None:
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    with pytest.raises(DataError, match=rf"grey\.tif: its {says}"):
        load_image(tmp_path / "grey.tif")


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png", "pages.tif"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, name: str) -> None:
    first, second = Image.fromarray(STORED), Image.new("RGB", (4, 3), (255, 0, 0))
    lossless: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **lossless)
    with Image.open(tmp_path / name) as image:
        assert len(list(ImageSequence.Iterator(image))) == 2
    assert np.array_equal(array(decode(tmp_path / name)), STORED)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty; fetch it again"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture, which is not read here; save it as JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS in place of the image"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page in place of the image; fetch it again"),
    ],
)
def test_what_lies_in_the_place_of_an_image_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"photo\.jpg: {re.escape(says)}"):
        decode(tmp_path / "photo.jpg")
    for source in (tmp_path / "photo.jpg", BytesIO(content)):
        with pytest.raises(ValueError, match=re.escape(says)):
            upright(source)
    with pytest.raises(DataError, match=re.escape(says)):
        inspect(tmp_path / "photo.jpg", (3, 4))


def test_a_picture_over_pillows_limit_is_read_where_its_annotated_size_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(STORED).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)  # Pillow refuses what is over twice as large: 12 pixels
    assert np.array_equal(array(decode(tmp_path / "large.png", (3, 4))), STORED)
    assert Image.MAX_IMAGE_PIXELS == 5
    with pytest.raises(DataError, match=r"large\.png: too large: more than .* million pixels; scale it down"):
        decode(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large\.png: too large: .*annotated 1 x 2 \(height x width\); scale it down"):
        decode(tmp_path / "large.png", (1, 2))
    with pytest.raises(DataError, match=r"too large: more than"):
        upright(tmp_path / "large.png")
