"""Frames of videos that are written here, with colours and times that are known."""

import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.inference import video
from model.inference.video import Film, Frame, PicturesWriter, VideoWriter, open_film

COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]


def pictures(size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, color) for color in COLORS]


def written(file: Path, *, size: tuple[int, int] = (64, 48), seconds: float = 0.1) -> Path:
    writer = VideoWriter(file, 1 / seconds)
    for number, picture in enumerate(pictures(size)):
        writer.add(picture, Frame(number=number, seconds=3 + number * seconds, picture=picture))
    writer.close()
    return file


def opened(file: Path) -> Film:
    film = open_film(file)
    assert film is not None
    return film


def test_a_video_comes_back_frame_by_frame_with_its_times(tmp_path: Path) -> None:
    pytest.importorskip("av")
    film = opened(written(tmp_path / "clip.mp4"))
    assert film.num_frames == 5
    assert film.frames_per_s == pytest.approx(10)
    frames = list(film.frames())
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])  # a video begins at 0
    for frame, color in zip(frames, COLORS, strict=True):
        np.testing.assert_allclose(np.asarray(frame.picture).mean((0, 1)), color, atol=12)  # H.264 is lossy
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert [frame.number for frame in film.frames(every=2)] == [0, 2, 4]


def test_odd_sides_get_a_row_and_a_column_more(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (first, *_) = opened(written(tmp_path / "odd.mp4", size=(63, 47))).frames()
    assert first.picture.size == (64, 48)


def test_a_phones_video_is_seen_upright(tmp_path: Path) -> None:
    pytest.importorskip("av")
    file = tmp_path / "phone.mp4"
    writer = VideoWriter(file, 10)
    picture = Image.new("RGB", (64, 48), "red")
    picture.paste("blue", (0, 24, 64, 48))  # red above blue
    writer.add(picture, Frame(number=0, seconds=0, picture=picture))
    writer.close()
    content = bytearray(file.read_bytes())
    # ISO 14496-12, "tkhd" of version 0: 40 bytes, then a matrix in 16.16; this one turns by 90 degrees clockwise, so
    # that what was above comes to the right.
    place = content.index(b"tkhd") + 44
    one = 1 << 16
    content[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    file.write_bytes(content)
    (frame,) = opened(file).frames()
    assert frame.picture.size == (48, 64)
    pixels = np.asarray(frame.picture).astype(int)
    assert pixels[32, 40, 0] > 200 > 50 > pixels[32, 40, 2]
    assert pixels[32, 8, 2] > 200 > 50 > pixels[32, 8, 0]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_needs_pillow_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    first, *others = pictures()
    first.save(tmp_path / name, save_all=True, append_images=others, duration=[40, 60, 80, 100, 120])
    film = opened(tmp_path / name)
    assert film.num_frames == 5
    frames = list(film.frames(every=2))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.1, 0.28])
    for frame, color in zip(frames, COLORS[::2], strict=True):
        np.testing.assert_allclose(np.asarray(frame.picture).mean((0, 1)), color, atol=12)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.avif"])
def test_an_animation_that_is_damaged_anywhere_raises_nothing_but_value_errors(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, *others = (Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(4))
    file = tmp_path / name
    first.save(file, save_all=True, append_images=others)
    whole = file.read_bytes()
    for place in range(1, len(whole), len(whole) // 60):
        for damaged in (whole[:place], whole[:place] + bytes(2) + whole[place + 2 :]):
            file.write_bytes(damaged)
            film = open_film(file)
            with suppress(ValueError):
                assert film is None or len(list(film.frames())) <= 4


def test_a_picture_of_one_frame_is_no_film_and_neither_are_the_pages_of_a_document(tmp_path: Path) -> None:
    first, *others = pictures()
    for name in ("one.jpg", "one.gif", "one.png"):
        first.save(tmp_path / name)
        assert open_film(tmp_path / name) is None
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others)
    assert open_film(tmp_path / "pages.tif") is None
    (tmp_path / "text.png").write_text("no image")
    assert open_film(tmp_path / "text.png") is None  # who decodes it says why


def test_what_is_no_video_is_refused_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"^the video does not open \(Invalid data found when processing input\)$"):
        open_film(tmp_path / "text.mp4")
    whole = written(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"^the file holds no pictures: it is cut off, or sound alone$"):
        open_film(tmp_path / "cut.mp4")


@pytest.mark.parametrize("kind", ["avi", "matroska", "mp4"])
def test_a_video_that_was_cut_off_says_after_how_many_frames(kind: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    file = tmp_path / ("clip.mkv" if kind == "matroska" else f"clip.{kind}")
    with av.open(str(file), "w", format=kind, options={"movflags": "faststart"} if kind == "mp4" else {}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(40):
            picture = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(list(opened(file).frames(every=3))) == 14
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"it ends after \d+ of about 40 frames|the video does not decode"):
        list(opened(file).frames())
    if kind == "mp4":
        file.write_bytes(whole[: whole.index(b"mdat") + 4])
        with pytest.raises(ValueError, match="the file holds no frame: it is cut off"):
            list(opened(file).frames())


def test_without_pyav_a_video_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"PyAV, .*, is not installed: pip install 'retinanet-conf\[video\]'"):
        open_film(tmp_path / "clip.mp4")
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert not video.can_read_videos()


def test_frames_are_pictures_where_no_video_can_be_written(tmp_path: Path) -> None:
    writer = PicturesWriter(tmp_path / "clip")
    for picture, number in zip(pictures(), (0, 5, 10, 15, 20), strict=True):
        writer.add(picture, Frame(number=number, seconds=number / 25, picture=picture))
    writer.close()
    files = sorted((tmp_path / "clip").iterdir())
    assert [file.name for file in files] == [f"{number:06d}.jpg" for number in (0, 5, 10, 15, 20)]
    np.testing.assert_allclose(np.asarray(Image.open(files[1])).mean((0, 1)), COLORS[1], atol=12)
