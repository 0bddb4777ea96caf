"""Reads every file of a suite against its digest: `rnc verify`, and what `rnc repair --deep` mends of it.

Checkpoints on the storage are compared with their cards, artifacts in MLflow with the digests that their runs hold, and
where an earlier version recorded none, with their sizes.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from model.data.cache import file_sha256
from model.foreign import read_json
from model.names import CARD, RESUME
from model.network.checkpoint import damages
from orchestrator import names
from orchestrator.cluster.checkpoints import FILES, committed, epoch_of, examine
from orchestrator.driver.lock import looks_alive
from orchestrator.driver.repair.defects import Defect, lost_evaluation, lost_training, titles_of
from orchestrator.errors import UserError
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import Missing, Progress, digests, download
from orchestrator.tracking.records import by_key, is_finished, read_record
from orchestrator.tracking.runs import Run, Tracking, delete_tag, get_run
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import take_up


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a reading of all files came to."""

    num_files: int
    num_bytes: int
    num_unsigned: int
    """Files of which no digest was recorded, so that their sizes alone were compared."""
    defects: tuple[Defect, ...]
    """A training, an evaluation or a checkpoint each, with every damaged file."""

    def __str__(self) -> str:
        """Say how much was read, and how much of it is damaged."""
        read = f"{self.num_files:,} files ({self.num_bytes / 1e6:,.1f} MB) were read"
        found = f"{len(self.defects):,} damaged" if self.defects else "all are as they were written"
        if self.num_unsigned:
            found += (
                f"; {self.num_unsigned:,} were recorded by a version that noted no digest: their sizes were compared"
            )
        return f"{read}: {found}."


@dataclass(slots=True)
class _Count:
    """How much was read by now."""

    tell: Progress
    num_expected: int
    num_files: int = 0
    num_bytes: int = 0
    num_unsigned: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, num_bytes: int, *, is_signed: bool = True) -> None:
        with self.lock:
            self.num_files += 1
            self.num_bytes += num_bytes
            self.num_unsigned += not is_signed
            self.tell(min(self.num_bytes, self.num_expected), self.num_expected)


def verify(
    suite: Suite, tell: Progress = lambda done, total: None, is_alive: Callable[[Run], bool] = looks_alive
) -> Verified:
    """Read all files of a suite; what somebody works on is left out, and nothing is written.

    Args:
        suite: of all its tables, those of other experiment files as well.
        tell: is given bytes read and bytes in all.
        is_alive: tells a run that somebody works on.

    Raises:
        ServerAway: MLflow does not answer.
    """
    trainings, evaluations = by_key(suite.mlflow_runs, "training"), by_key(suite.mlflow_runs, "evaluation")
    alive = {key for key, run in trainings.items() if run.status == "RUNNING" and is_alive(run)}
    folders = [folder for folder in _folders(suite.storage) if folder.name not in alive]
    finished = [run for run in (*trainings.values(), *evaluations.values()) if is_finished(run)]
    expected = sum(_size(file) for folder in folders for path in committed(folder) for file in path.iterdir())
    count = _Count(tell, expected + sum(sum(run.files.values()) for run in finished))
    titles = titles_of(suite.wanted)
    defects = [defect for folder in folders for defect in _storage(suite, folder, trainings, titles, count)]
    tracking = suite.tracking
    if tracking is not None:
        # Each file takes three questions, with waits in between.
        with ThreadPoolExecutor(rest.AT_ONCE) as pool:
            found = pool.map(lambda run: [*_artifacts(suite, tracking, run, titles, count)], finished)
            defects += [defect for of_run in found for defect in of_run]
    return Verified(
        num_files=count.num_files,
        num_bytes=count.num_bytes,
        num_unsigned=count.num_unsigned,
        defects=tuple(defects),
    )


def _folders(storage: Path) -> list[Path]:
    """Return the folders of trainings; those of Ray Tune, and hidden ones, are none."""
    return sorted(path for path in storage.glob("[!_.]*") if path.is_dir()) if storage.is_dir() else []


def _storage(
    suite: Suite, folder: Path, trainings: Mapping[str, Run], titles: Mapping[str, str], count: _Count
) -> Iterator[Defect]:
    """Read the checkpoints of a training."""
    key, run = folder.name, suite.wanted.trainings.get(folder.name)
    title, config = titles.get(key, f"training {key}"), run.config if run else None
    is_trained = key in trainings and is_finished(trainings[key])
    for checkpoint in committed(folder):
        for file in (checkpoint / name for name in FILES):
            if file.is_file():
                count.add(_size(file))
    try:
        found = examine(folder, config, thorough=True)
        if found is not None:
            again = partial(take_up, folder, config, is_trained=is_trained, thorough=True)
            text = f"{title}: in {folder}, {found.describe(is_trained=is_trained)}"
            yield Defect(key=key, text=text, mend=again)
        for checkpoint in committed(folder):
            if config is not None and epoch_of(checkpoint.name) == config.schedule.epochs:
                yield from _needless(title, key, checkpoint)
    except UserError as error:
        yield Defect(key=key, text=f"{title}: {error}", mend=None)


def _needless(title: str, key: str, checkpoint: Path) -> Iterator[Defect]:
    """Look at the state of a last epoch, from which nothing goes on, so that it may as well be missing."""
    state = checkpoint / RESUME
    for damage in damages(checkpoint) if state.exists() else ():
        if damage.file == state:
            text = f"{title}: in {checkpoint.parent}, {damage}; nothing goes on from it: removed"
            yield Defect(key=key, text=text, mend=partial(state.unlink, missing_ok=True))


def _artifacts(
    suite: Suite, tracking: Tracking, run: Run, titles: Mapping[str, str], count: _Count
) -> Iterator[Defect]:
    """Read the files of a finished run that were recorded with it."""
    title, signed, damaged = titles.get(run.key, f"{run.kind} {run.key}"), digests(run), {}
    # Of weights that were freed the digests stay; the sizes say which files there should be.
    further = [path for path in signed if path.partition("/")[0] in (names.CLASSES, names.LAB)]
    for path in dict.fromkeys([*run.files, *further]):
        try:
            why = _damage(tracking.uri, run, path, signed.get(path), count)
        except UserError as error:
            get_run(tracking.uri, run.run_id)  # if the server is away, this says so
            count.add(0)
            # Nothing is thrown away for it: the disk of TMPDIR may be full, and the file sound.
            text = f"{title}: its {path} is not given whole ({error}); mend the server's files, or the disk of TMPDIR"
            yield Defect(key=run.key, text=text, mend=None)
            continue
        if why:
            damaged[path] = why
    lab = f"{names.LAB}/{names.LAB_FILE}"
    if why := damaged.pop(lab, ""):
        text = f"{title}: {lab} {why} in MLflow: to be made again when it is next scored"
        yield Defect(key=run.key, text=text, mend=partial(delete_tag, tracking.uri, run.run_id, names.LAB_SHA256))
    if damaged:
        note = f"its {' and '.join(f'{path} {why}' for path, why in damaged.items())}"
        lost = replace(read_record(run), status="KILLED", note=note)
        if run.kind == "training":
            yield lost_training(suite, tracking, run.key, lost, titles)
        else:
            yield lost_evaluation(tracking, run.key, lost, titles)


def _damage(uri: str, run: Run, path: str, digest: str | None, count: _Count) -> str:
    """Fetch an artifact and say how it differs from what was recorded; empty where it does not.

    Raises:
        UserError: it does not arrive, or not whole.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            file = download(uri, run.run_id, path, Path(scratch))
        except Missing:
            count.add(0)
            return "is missing"
        size = file.stat().st_size
        count.add(size, is_signed=digest is not None)
        if size != run.files.get(path, size):
            return f"has {size:,} bytes, recorded are {run.files[path]:,}"
        if digest is not None and (found := file_sha256(file)) != digest:
            return f"has sha256 {found[:12]}, recorded is {digest[:12]}"
        if path == f"{names.CHECKPOINT}/{CARD}" and not _names_weights(file, run.tags.get(names.WEIGHTS_SHA256, "")):
            return "is not the card of its weights"
    return ""


def _names_weights(card: Path, weights: str) -> bool:
    try:
        return bool(read_json(card)["weights_sha256"] == weights)
    except (ValueError, KeyError, TypeError):
        return False


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # Ray has just deleted an older checkpoint
        return 0
