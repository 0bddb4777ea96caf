"""The package that a job is sent with: the sources that git tracks, and the experiment files with what they extend."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import normpath, relpath
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.experiment.document import parent_file, placed
from orchestrator.site import ROOT
from orchestrator.strict_yaml import read_yaml

SOURCES = ("model", "orchestrator", "pyproject.toml")
"""What is sent of the repository: what git tracks there, templates and other package data included."""
MAX_BYTES = 100_000_000
OUTSIDE = "submitted"
"""The folder of the package for experiment files from outside of the repository."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A folder that holds all that a cluster needs besides the environment."""

    folder: Path
    experiments: tuple[str, ...]
    """The submitted files, as paths in it."""
    num_files: int
    num_bytes: int
    digest: str
    """Of names and content: two packages with one digest run the same."""
    left_out: tuple[str, ...]
    """Python files among the sources that git does not track."""


def build_package(files: Sequence[Path], folder: Path, root: Path = ROOT) -> Package:
    """Copy into an empty folder what the experiment files need on a cluster.

    Files of the repository keep their places; those from elsewhere go to `submitted/<number>/<name of their folder>/`,
    with what they extend, whose paths are rewritten where they have to be.

    Raises:
        UserError: the project is neither installed nor a git checkout, a file cannot be read, or the package is too
            large.
    """
    # A folder of sources without git may hold anything; what a wheel has installed is known.
    is_checkout = (root / "pyproject.toml").is_file()
    tracked = _git(root, "ls-files", "-z", "--", *SOURCES) if is_checkout else _installed(root)
    if not any(name.startswith("orchestrator/") for name in tracked):
        raise UserError(f"{root} is no git checkout of the project; only a checkout can be sent to a cluster")
    for name in tracked:
        # A link may lead to a file that nobody meant to send, such as one of secrets.
        if (root / name).is_file() and not (root / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    places = _places(files, root)
    for path, place in places.items():
        _copy_experiment(path, places, folder / place)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    _require_small(written, folder)
    return Package(
        folder=folder,
        experiments=tuple(places[_absolute(path)] for path in files),
        num_files=len(written),
        num_bytes=sum(path.stat().st_size for path in written),
        digest=_digest(written, folder),
        left_out=tuple(
            name
            for name in (
                _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES) if is_checkout else ()
            )
            if name.endswith(".py")
        ),
    )


def _git(root: Path, *words: str) -> list[str]:
    try:
        done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{root}: git does not list the files to send ({error}); is it a git checkout?") from error
    return [name for name in done.stdout.split("\0") if name]


def _installed(root: Path) -> list[str]:
    """The files of the project's packages, as a wheel has installed them."""
    files = (path for package in SOURCES[:2] for path in sorted((root / package).rglob("*")))
    return [path.relative_to(root).as_posix() for path in files if path.is_file() and path.suffix != ".pyc"]


def _places(files: Iterable[Path], root: Path) -> dict[Path, str]:
    """Give every experiment file, and all that they extend, a place in the package."""
    found: dict[Path, None] = {}
    waiting = [_absolute(path) for path in files]
    while waiting:
        path = waiting.pop(0)
        if path not in found:
            found[path] = None
            waiting += [target for _, target in _extended(path)]
    folders = list(dict.fromkeys(path.parent for path in found if not path.is_relative_to(root)))
    places = {}
    for path in found:
        if path.is_relative_to(root):
            places[path] = path.relative_to(root).as_posix()
        else:
            # A suite is named after its folder, so that is kept; the number tells folders of one name apart.
            places[path] = f"{OUTSIDE}/{folders.index(path.parent)}/{path.parent.name}/{path.name}"
    return places


def _extended(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a file extends, as it says it, and where that is."""
    named = read_yaml(path).get("extends") or ()
    for name in [named] if isinstance(named, str) else named:
        yield name, _absolute(parent_file(path, name))


def _copy_experiment(path: Path, places: dict[Path, str], target: Path) -> None:
    """Copy an experiment file; paths that would lead elsewhere from the package are rewritten."""
    target.parent.mkdir(parents=True, exist_ok=True)
    content = read_yaml(path)
    # Data do not travel: what counts from the file is looked for at the same place of the cluster's storage.
    moved = placed(content, path.parent)
    before = [name for name, _ in _extended(path)]
    after = [relpath(places[extended], Path(places[path]).parent) for _, extended in _extended(path)]
    if [normpath(name) for name in before] != after:
        moved = moved | {"extends": after if len(after) > 1 else after[0]}
    if moved == content:
        shutil.copyfile(path, target)
    else:
        target.write_text(json.dumps(moved, indent=1))


def _absolute(path: Path) -> Path:
    return Path(normpath(path.absolute()))


def _require_small(files: Sequence[Path], folder: Path) -> None:
    total = sum(path.stat().st_size for path in files)
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda path: -path.stat().st_size)[:3]
        named = ", ".join(f"{path.relative_to(folder)} ({path.stat().st_size / 1e6:.1f} MB)" for path in largest)
        raise UserError(
            f"the package for the cluster has {total / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f} MB can be sent; the "
            f"largest files are {named}: take them out of git"
        )


def _digest(files: Iterable[Path], folder: Path) -> str:
    content = hashlib.sha256()
    for path in files:
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            # Each with its length: without, "a" + "bc" and "ab" + "c" would have one digest.
            content.update(len(part).to_bytes(8, "big") + part)
    return content.hexdigest()[:16]
