"""The files that are to be detected on, from what a user names, and the folder that the results go to.

Nothing here imports torch, so that a misspelt name is told at once.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from os.path import expanduser
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from model.data.layouts.files import IMAGE_SUFFIXES
from model.foreign import parse_json, require_file
from model.inference.video import INSTALL, Film, can_read_videos, is_video, open_film
from model.inference.video import SUFFIXES as VIDEO_SUFFIXES
from model.paths import one_name
from orchestrator.errors import UserError
from orchestrator.homes import make_home
from orchestrator.site import Site

DETECTIONS, MADE_BY = "detections.json", "rnc predict"
"""The file of results, and how it says what made it."""
HEIC_SUFFIXES = (".heic", ".heif")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file to detect on."""

    place: int
    """Among all, from 1: the id of an image."""
    path: Path
    film: Film | None
    """None for a picture of one frame."""
    target: str
    """The name of what is drawn, in the folder that is written to."""
    problem: str = ""
    """Why it cannot be read, where that is known already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to detect on, and where to."""

    arguments: tuple[str, ...]
    """The checkpoint, and what was named to detect on, made absolute: whether two jobs are the same one."""
    sources: tuple[Source, ...]
    out: Path
    score: float
    """The least that a detection is shown and written with, 0 to 1."""
    every: int
    """Of a film, this manieth frame is taken."""

    @property
    def num_images(self) -> int:
        """Pictures and frames, as far as films say how many they have."""
        films = (source.film for source in self.sources)
        return sum(1 if film is None else -(-film.num_frames // self.every) for film in films)


def find_files(arguments: Sequence[str]) -> list[Path]:
    """List the images and videos that arguments stand for, without torch, whose import takes seconds.

    Args:
        arguments: of each, a file, a folder or a pattern.

    Raises:
        UserError: there is nothing to detect on, or a video that cannot be read here.
    """
    # A file may be named, and lie in a folder that is named, too.
    files = list(dict.fromkeys(file for argument in arguments for file in _files(argument)))
    for file in filter(is_video, files):
        if not can_read_videos():
            raise UserError(f"{file} is a video, and PyAV, which reads them, is not installed: {INSTALL}")
    return files


def plan_job(
    checkpoint: Path,
    arguments: Sequence[str],
    files: Sequence[Path],
    out: Path | None,
    site: Site,
    score: float = 0.3,
    every: int = 1,
) -> Job:
    """Look at the files, and make the folder to write to.

    Args:
        checkpoint: the folder of what detects.
        arguments: what was named.
        files: what `find_files` makes of that.
        out: the folder to write to; None takes one under the site's home, by the names of what is looked at, and of
            the checkpoint.
        site: whose home that is.
        score: see `Job`.
        every: see `Job`.

    Raises:
        UserError: the folder cannot be written to, or holds what is looked at.
    """
    absolute = tuple(str(Path(path).absolute()) for path in (str(checkpoint), *arguments))
    name = one_name(f"{_name(arguments[0], files[0])}-{checkpoint.resolve().name}")
    folder = out or _own_folder(make_home(site.home) / "predictions", name, absolute)
    sources = _sources(files, folder)
    if (folder / DETECTIONS).exists() and not read_results(folder):
        raise UserError(
            f"--out {folder}: its {DETECTIONS} was not written by `{MADE_BY}`, and would be overwritten; move it away, "
            "or name another folder"
        )
    _require_writable(folder, "--out" if out else "RNC_HOME")
    return Job(arguments=absolute, sources=sources, out=folder, score=score, every=every)


def read_results(folder: Path) -> dict[str, Any]:
    """What an earlier run has written there; nothing where there is none, or another's file."""
    try:
        require_file(folder / DETECTIONS)
        content = parse_json((folder / DETECTIONS).read_bytes())
    except (OSError, ValueError):
        return {}
    ours = isinstance(content, dict) and isinstance(content.get("info"), dict)
    return content if ours and content["info"].get("made_by") == MADE_BY else {}


def _files(argument: str) -> Iterator[Path]:
    """The files that an argument stands for, by name."""
    path = Path(expanduser(argument))
    if not argument.strip():  # such as a variable that is not set, which would be the current folder
        raise UserError("an empty name stands for no image, video or folder; '.' is the current folder")
    if path.is_file():
        yield path
        return
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if _is_taken(file))
        if not inside:
            deeper = next((file.parent for file in path.rglob("*") if _is_taken(file)), None)
            hint = f"; {deeper} holds some: name it, or '{path}/**/*'" if deeper else f", expected {_listed()}"
            raise UserError(f"{argument}: no image and no video in this folder{hint}")
        yield from inside
        return
    matches = [file for match in sorted(glob.glob(str(path), recursive=True)) if (file := Path(match)).is_file()]
    if not matches:
        raise UserError(f"{argument}: no such image, video, folder or pattern")
    # 'photos/*' means the photographs of a folder, not their labels; 'photos/*.raw' means what it says.
    yield from [file for file in matches if _is_taken(file)] or matches


def _is_taken(file: Path) -> bool:
    """Whether a file of a folder is detected on; a HEIC picture is, so that it is named as one that cannot be read."""
    hidden = file.name.startswith(".")  # such as the ._1.jpg that macOS puts beside files on other disks
    return file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *HEIC_SUFFIXES) and not hidden and file.is_file()


def _listed() -> str:
    usual_first = sorted(IMAGE_SUFFIXES, key=lambda suffix: (suffix not in (".jpg", ".png"), suffix))
    return ", ".join((*usual_first, *VIDEO_SUFFIXES))


def _sources(files: Sequence[Path], out: Path) -> tuple[Source, ...]:
    """The files with what is drawn of each; files of one name in several folders are numbered."""
    taken: set[str] = set()
    sources = []
    for place, file in enumerate(files, start=1):
        short, number = one_name(file.stem), 1
        stem = short
        while stem in taken:
            number += 1
            stem = f"{short}-{number}"
        taken.add(stem)
        film, problem = None, ""
        try:
            film = open_film(file)
        except ValueError as error:
            problem = str(error)
        suffix = ".jpg" if film is None else ".mp4" if can_read_videos() else ""
        sources.append(Source(place=place, path=file, film=film, target=f"{stem}{suffix}", problem=problem))
    # Found before anything is detected: --out may be the folder of the images.
    originals = {file.resolve() for file in files}
    for source in sources:
        if (out / source.target).resolve() in originals:
            raise UserError(f"--out {out}: {out / source.target} would be overwritten; name another folder")
    return tuple(sources)


def _name(argument: str, first: Path) -> str:
    """A name for what an argument stands for: of a file, of a folder, or of that in which the first match lies."""
    path = Path(expanduser(argument))
    if path.is_dir():
        return path.resolve().name or "root"
    return first.stem if path.is_file() else first.resolve().parent.name


def _own_folder(parent: Path, name: str, arguments: tuple[str, ...]) -> Path:
    """A folder of this name that is new, or that holds what the same arguments gave before."""
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        # One that was made and never written to is free, too.
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if is_free or read_results(folder).get("info", {}).get("arguments") == list(arguments):
            return folder
    raise AssertionError  # count() has no end


def _require_writable(folder: Path, setting: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{setting}: cannot write to {folder} ({error.strerror}); name another folder") from error
