"""Frames of videos and of animated pictures, and the files that frames with boxes are written to.

PyAV reads and writes videos. It brings FFmpeg with it, 100 MB, so that it is the optional extra `video`; animations are
read by Pillow, and without PyAV their frames are written as pictures.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from model.foreign import NoFileError, require_file
from model.paths import one_name

if TYPE_CHECKING:
    import av

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
"""Files that are taken for videos."""
ANIMATED = (".gif", ".webp", ".png", ".apng", ".avif")
"""Pictures that may have several frames. Those of TIFF are pages, and those of a phone's MPO are previews."""
STILL_MS = 100
"""How long browsers show a frame of an animation that does not say it."""
MOST_OF = 0.9
"""The part of the frames and seconds that its file promises with which a film is whole; some promise a little more."""
TICKS = 90_000
"""A second in the time of the videos that are written: whole numbers of it are a frame at 24, 25, 29.97, 30 and 60."""
INSTALL = "pip install 'retinanet-conf[video]'"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One frame, as people see it."""

    number: int
    """From 0, among all frames of its video."""
    seconds: float
    """When it is shown."""
    picture: Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """A video, or an animated picture."""

    path: Path
    num_frames: int
    """0 where its file does not say it."""
    frames_per_s: float
    """On average."""
    seconds: float = 0.0
    """How long its pictures last; 0 where its file does not say it."""

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Decode every so-manieth frame, from the first on.

        Raises:
            ValueError: the file is damaged, there or further on, or has clearly fewer frames than it says.
        """
        frames = _of_video(self.path) if is_video(self.path) else _of_animation(self.path)
        return islice(self._whole(frames), 0, None, every)

    def _whole(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames, and an error where they end too early: FFmpeg takes a file that is cut for one that ends."""
        count, first, last = 0, 0.0, 0.0
        for count, frame in enumerate(frames, start=1):
            last = frame.seconds
            first = last if count == 1 else first
            yield frame
        if not count:
            raise ValueError("the file holds no frame: it is cut off")
        # Either may mislead: of a film that was trimmed without encoding, MP4 counts what is not shown as well, and
        # where frames have other times than their average rate, their number is guessed.
        seconds = last - first + 1 / self.frames_per_s
        if count < MOST_OF * self.num_frames and seconds < MOST_OF * self.seconds:
            raise ValueError(f"it ends after {count} of about {self.num_frames} frames; fetch it again")


class Writer(Protocol):
    """Takes the frames of a film, one after the other."""

    def add(self, picture: Image.Image, frame: Frame) -> None:
        """Write the next frame, which looks like `picture` now."""

    def close(self) -> None:
        """End the file; it is whole then, with the frames that it has."""


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name; PyAV is needed for it."""
    return path.suffix.lower() in SUFFIXES


def can_read_videos() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def open_film(path: Path) -> Film | None:
    """Look at a file; None stands for a picture of one frame, and for what is no picture.

    Raises:
        ValueError: it should be a video, and is damaged or something else.
    """
    try:
        require_file(path)
    except NoFileError as error:
        raise ValueError(f"{error.strerror}") from error
    except OSError:  # missing: whoever opens it says so
        pass
    if is_video(path):
        with _opened(path) as container:
            stream = _stream(container)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            seconds = _seconds(container, stream)
            frames = stream.frames or round(seconds * rate)
            return Film(path=path, num_frames=frames, frames_per_s=rate, seconds=seconds)
    if path.suffix.lower() not in ANIMATED:
        return None
    try:
        with Image.open(path) as image:
            if not getattr(image, "is_animated", False):
                return None
            return Film(path=path, num_frames=image.n_frames, frames_per_s=1000 / _milliseconds(image))  # type: ignore[attr-defined]
    except Exception:  # Pillow's readers raise whatever their parsers meet: IndexError of GIF, RuntimeError of AVIF
        return None  # whoever decodes it as a picture says why it is none


class VideoWriter:
    """An H.264 video in an MP4 file, with each frame at its own time."""

    def __init__(self, file: Path, frames_per_s: float) -> None:
        """The file appears when it is closed; its size is that of the first frame."""
        import av

        self.file, self.rate = file, Fraction(frames_per_s).limit_denominator(1001)
        self.first: float | None = None
        self.last = -1
        self.partial = file.with_name(f".{one_name(file.stem)}.partial")  # no longer than a name may be
        self.container = av.open(str(self.partial), "w", format="mp4", options={"movflags": "faststart"})
        self.stream: Any = None

    def add(self, picture: Image.Image, frame: Frame) -> None:
        """Encode a frame.

        Raises:
            ValueError: the encoder does not take it, as where it is larger than H.264 allows.
            OSError: it cannot be written.
        """
        with _encoding():
            self._add(picture, frame)

    def _add(self, picture: Image.Image, frame: Frame) -> None:
        import av

        if self.stream is None:
            self._begin(picture)
        width, height = self.stream.width, self.stream.height
        if picture.size != (width, height):  # H.264 halves the sides for colours, and takes even ones alone
            picture = picture.crop((0, 0, width, height))
        self.first = frame.seconds if self.first is None else self.first
        encoded = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        # Times that stand still or run back, as damaged files have them, are refused by the encoder.
        encoded.pts = self.last = max(self.last + 1, round((frame.seconds - self.first) * TICKS))
        encoded.time_base = Fraction(1, TICKS)
        self.container.mux(self.stream.encode(encoded))

    def close(self) -> None:
        """Encode what the encoder has kept back, and end the file; what fails leaves none.

        Raises:
            ValueError: the encoder fails.
            OSError: it cannot be written.
        """
        try:
            with _encoding(), self.container:
                if self.stream is not None:
                    self.container.mux(self.stream.encode(None))
            self.partial.replace(self.file)
        finally:
            self.partial.unlink(missing_ok=True)

    def _begin(self, picture: Image.Image) -> None:
        import av

        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self.stream = self.container.add_stream(codec, rate=self.rate)
        self.stream.width, self.stream.height = (side + side % 2 for side in picture.size)
        self.stream.pix_fmt = "yuv420p"  # what every player shows
        self.stream.codec_context.time_base = Fraction(1, TICKS)
        if codec == "libx264":
            self.stream.options = {"crf": "20", "preset": "veryfast"}


class PicturesWriter:
    """A folder with a JPEG file for each frame, named by its number."""

    def __init__(self, folder: Path) -> None:
        """The folder is made."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, picture: Image.Image, frame: Frame) -> None:
        """Write a frame."""
        picture.save(self.folder / f"{frame.number:06d}.jpg", quality=90)

    def close(self) -> None:
        """Every file is whole already."""


@contextmanager
def _encoding() -> Iterator[None]:
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"the video is not encoded ({_said(error)})") from error


def _of_video(path: Path) -> Iterator[Frame]:
    with _opened(path) as container:
        yield from _decoded(_frames_of_video(container), "video")


def _frames_of_video(container: "av.container.InputContainer") -> Iterator[Frame]:
    stream = _stream(container)
    for number, frame in enumerate(container.decode(stream)):
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
        if frame.rotation:  # phones lie on their side, and note it
            picture = picture.rotate(frame.rotation, expand=True)
        seconds = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
        yield Frame(number=number, seconds=seconds, picture=picture)


def _of_animation(path: Path) -> Iterator[Frame]:
    return _decoded(_frames_of_animation(path), "animation")


def _frames_of_animation(path: Path) -> Iterator[Frame]:
    with Image.open(path) as image:
        milliseconds = 0.0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # some formats know how long a frame is shown only now
            yield Frame(number=number, seconds=milliseconds / 1000, picture=image.convert("RGB"))
            milliseconds += _milliseconds(image)


def _decoded(frames: Iterator[Frame], kind: str) -> Iterator[Frame]:
    """The same frames; what the decoder raises becomes a ValueError, what their taker raises does not."""
    while True:
        try:
            frame = next(frames, None)
        except Exception as error:  # a decoder raises whatever its format's parser meets
            raise ValueError(f"the {kind} does not decode ({_said(error)})") from error
        if frame is None:
            return
        yield frame


def _opened(path: Path) -> "av.container.InputContainer":
    try:
        import av
    except ImportError as error:
        raise ValueError(f"PyAV, which decodes videos, is not installed: {INSTALL}") from error
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"the video does not open ({_said(error)})") from error


def _stream(container: "av.container.InputContainer") -> "av.VideoStream":
    if not container.streams.video:
        raise ValueError("the file holds no pictures: it is cut off, or sound alone")
    return container.streams.video[0]


def _seconds(container: "av.container.InputContainer", stream: "av.VideoStream") -> float:
    """How long the pictures last, or else the whole, whose sound may last longer; 0 where the file does not say it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / 1e6


def _said(error: Exception) -> str:
    """What FFmpeg or the system says, without its number and without the file, which is named already."""
    return str(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")


def _milliseconds(image: Image.Image) -> float:
    return float(image.info.get("duration") or STILL_MS)
