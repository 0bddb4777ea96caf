"""What is sent to a cluster: the sources that git tracks, and the experiment files with what they extend."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import normpath, relpath
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import UserError
from orchestrator.experiment.strict_yaml import read_yaml
from orchestrator.site import COMMIT

ROOT = Path(__file__).parents[2]
SOURCES = ("model", "orchestrator", "pyproject.toml")
MAX_BYTES = 100_000_000
OUTSIDE = "submitted"
"""The folder of the package for experiment files from outside of the repository."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A folder that holds all that a cluster needs besides the environment."""

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
        UserError: the project is no git checkout, a file cannot be read, or the package is too large.
    """
    tracked = _git(root, "ls-files", "-z", "--", *SOURCES)
    if not any(name.startswith("orchestrator/") for name in tracked):
        raise UserError(f"{root} is no git checkout of the project; only a checkout can be sent to a cluster")
    for name in tracked:
        if (root / name).is_file() and not (root / name).is_symlink():
            _place(folder / name)
            shutil.copyfile(root / name, folder / name)
    places = _places(files, root)
    for path, place in places.items():
        _copy_experiment(path, places, folder / place)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    _require_small(written, folder)
    return Package(
        experiments=tuple(places[_absolute(path)] for path in files),
        num_files=len(written),
        num_bytes=sum(path.stat().st_size for path in written),
        digest=_digest(written, folder),
        left_out=tuple(
            name
            for name in _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES)
            if name.endswith(".py")
        ),
    )


def _git(root: Path, *words: str) -> list[str]:
    try:
        done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{root}: git does not list the files to send ({error}); is it a git checkout?") from error
    return [name for name in done.stdout.split("\0") if name]


def _places(files: Iterable[Path], root: Path) -> dict[Path, str]:
    """Give every experiment file, and all that they extend, a place in the package."""
    found: dict[Path, None] = {}
    waiting = [_absolute(path) for path in files]
    while waiting:
        path = waiting.pop(0)
        if path not in found:
            found[path] = None
            waiting += [target for _, target in _extended(path)]
    parents = {path.parent: None for path in found if not path.is_relative_to(root)}
    numbers = {parent: number for number, parent in enumerate(parents)}
    return {
        path: path.relative_to(root).as_posix()
        if path.is_relative_to(root)
        else f"{OUTSIDE}/{numbers[path.parent]}/{path.parent.name}/{path.name}"
        for path in found
    }


def _extended(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a file extends, as it says it, and where that is."""
    named = read_yaml(path).get("extends") or ()
    for name in [named] if isinstance(named, str) else named:
        yield name, _absolute(path.parent / name)


def _copy_experiment(path: Path, places: dict[Path, str], target: Path) -> None:
    _place(target)
    before = [name for name, _ in _extended(path)]
    after = [relpath(places[extended], Path(places[path]).parent) for _, extended in _extended(path)]
    if [normpath(name) for name in before] == after:
        shutil.copyfile(path, target)
    else:
        target.write_text(json.dumps(read_yaml(path) | {"extends": after if len(after) > 1 else after[0]}, indent=1))


def _place(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


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
            content.update(len(part).to_bytes(8, "big") + part)
    return content.hexdigest()[:16]


JOB = "RNC_JOB"
"""Names the job to the process that it runs, and so says that this machine is none to keep anything on."""
SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|(^|_)KEY(_|$)|ACCESS_KEY")
STOP_SECONDS = "60"


def is_jobs_address(address: str | None) -> bool:
    """Whether an address takes jobs; any other is a cluster to join from here."""
    return address is not None and address.startswith(("http://", "https://"))


def job_environment(given: Sequence[str], environ: Mapping[str, str], job: str, commit: str | None) -> dict[str, str]:
    """Return what a job finds in its environment; everybody who reads the Jobs API sees it.

    Args:
        given: NAME=VALUE, as --env takes it; nothing else decides a path on the cluster.
        environ: of this process; of it only an MLflow server that is no local one is passed on.
        job: the id of the job.
        commit: of the sources.

    Raises:
        UserError: one of them is no NAME=VALUE, or a secret.
    """
    sent: dict[str, str] = {}
    uri = environ.get("MLFLOW_TRACKING_URI", "")
    if uri and urlsplit(uri).hostname not in ("127.0.0.1", "localhost", "::1", None):
        sent["MLFLOW_TRACKING_URI"] = _open("MLFLOW_TRACKING_URI", uri)
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {name}: expected NAME=VALUE, as in --env RNC_HOME=/shared/runs")
        sent[name] = _open(name, value)
    return sent | {JOB: job, "RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS} | ({COMMIT: commit} if commit else {})


def require_cluster_settings(environ: Mapping[str, str]) -> None:
    """In a job, refuse to keep results where they would vanish with the machine that runs it.

    Raises:
        UserError: RNC_HOME or MLFLOW_TRACKING_URI is not set on the cluster.
    """
    if not environ.get(JOB):
        return
    needed = {
        "RNC_HOME": ("storage that all nodes share", "/shared/runs"),
        "MLFLOW_TRACKING_URI": ("an MLflow server that outlives the job", "http://mlflow:5000"),
    }
    missing = [
        f"{name} is not set on the cluster, where it has to name {what}; set it in the environment of the cluster's "
        f"nodes, or submit with --env {name}={example}"
        for name, (what, example) in needed.items()
        if not environ.get(name)
    ]
    if missing:
        raise UserError("\n".join(missing))


def _open(name: str, value: str) -> str:
    """Return a value that everybody may see."""
    if SECRET.search(name.upper()):
        raise UserError(f"--env {name}: everybody who reads Ray's Jobs API would see it; the cluster has to hold it")
    if urlsplit(value).password:
        raise UserError(
            f"{name}: the address holds a password, which everybody who reads Ray's Jobs API would see; give it "
            "without, and let the cluster hold MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return value
