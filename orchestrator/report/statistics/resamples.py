"""The bootstrap over images: COCO's metrics on data sets of images drawn again, from the matches that MLflow keeps.

The images are drawn with replacement, as many as there are, some of them twice, some not at all.
"""

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.data.cache import file_sha256
from model.machine import usable_cores
from model.paths import inside, one_name
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.homes import make_home
from orchestrator.tracking.rest import Refused, ServerAway

if TYPE_CHECKING:
    from model.evaluation.coco.matches import MatchTable

Resamples = NDArray[np.float64]
"""[rows, resamples] ROWS, 0 to 100, as far as they are known: three, those that cost no more, or all."""
Kind = Literal["metrics", "objects", "sizes", "classes"]
"""Of files of what was resampled."""
Fetch = Callable[[str, Path], Path]
"""Gets the file of matches of a run, by its id, into a folder."""
Kept = TypeVar("Kept")
DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file that is empty or cut short raises."""
NUM_RESAMPLES = 1000
SEED = 0
ROWS = ("AP", "AP50", "AP75", "AR100", "num_images", "num_with_objects", "APs", "ARs", "APm", "ARm", "APl", "ARl")
"""What is known of each resample; of sizes only where that is asked for, and the matches tell."""
OF_SIZES = ROWS[6:]
"""Those of sizes."""
CLASS_ARRAYS = ("num_objects", "num_images", "precision", "resampled")
"""Of ClassSamples."""


def resampled(
    ledger: Ledger, keys: Iterable[str], fetch: Fetch, folder: Path, *, by_size: bool = False, by_class: bool = False
) -> Mapping[str, Resamples]:
    """Return the metrics of each resample, by evaluation key, but of lost matches.

    Args:
        ledger: says which evaluations are there, and the sha256 of their matches.
        keys: of evaluations.
        fetch: gets the matches.
        folder: keeps what was resampled, by that sha256; it may be deleted at any time.
        by_size: whether APs to ARl are wanted, too, which takes as long again.
        by_class: whether `resampled_classes` will be asked for the same keys: one pass counts both.

    Raises:
        UserError: MLflow does not answer, or refuses; see `recorded_matches`. What was resampled before is kept.
    """
    kinds: tuple[Kind, ...] = ("metrics", "objects", "sizes") if by_size else ("metrics", "objects")
    made: tuple[Kind, ...] = (*kinds, "classes") if by_class else kinds
    return _read(ledger, keys, fetch, folder, made, lambda of: np.concatenate([np.load(of[kind]) for kind in kinds]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassSamples:
    """What one evaluation says of each of its K categories, by their rising ids."""

    ids: tuple[int, ...]
    """Empty of matches that were recorded before they named their categories, as are the names."""
    names: tuple[str, ...]
    num_objects: NDArray[np.int64]
    """[K] objects to find, crowds left out."""
    num_images: NDArray[np.int64]
    """[K] images with one."""
    precision: NDArray[np.float64]
    """[3, 101, K] at IoU 0.5, at 0.75, and the mean over the ten thresholds, 0 to 1; NaN without an object."""
    resampled: NDArray[np.float32]
    """[K, resamples] AP, 0 to 100; NaN where the images that were drawn have no such object."""

    def save(self, file: IO[bytes]) -> None:
        """Write what `load_classes` reads."""
        arrays = {name: getattr(self, name) for name in CLASS_ARRAYS}
        np.savez_compressed(file, ids=json.dumps(self.ids), names=json.dumps(self.names), **arrays)


def resampled_classes(ledger: Ledger, keys: Iterable[str], fetch: Fetch, folder: Path) -> Mapping[str, ClassSamples]:
    """Return what is known of each class, by evaluation key, but of lost matches; see `resampled`."""
    return _read(ledger, keys, fetch, folder, ["classes"], lambda of: load_classes(of["classes"]))


def load_classes(file: Path) -> ClassSamples:
    """Read back what `ClassSamples.save` wrote."""
    with np.load(file) as kept:
        ids, names = (tuple(json.loads(str(kept[name]))) for name in ("ids", "names"))
        return ClassSamples(ids=ids, names=names, **{name: kept[name] for name in CLASS_ARRAYS})


def class_samples(matches: "MatchTable", resampled: NDArray[np.float64] | None = None) -> ClassSamples:
    """Return what matches say of each class; `resampled` as `of_classes` gives it, if that is known already."""
    from model.evaluation.coco.matches import precisions, truths_of
    from model.evaluation.coco.reweighted import of_classes

    by_threshold = precisions(matches)
    num_objects, num_images = truths_of(matches)
    if resampled is None:
        resampled = of_classes(matches, _weights(matches.num_images))[1]
    return ClassSamples(
        ids=matches.category_ids,
        names=matches.category_names,
        num_objects=num_objects,
        num_images=num_images,
        precision=np.stack([by_threshold[0], by_threshold[5], by_threshold.mean(axis=0)]),
        resampled=resampled.astype(np.float32),
    )


def recorded_matches(record: Record, fetch: Fetch) -> "MatchTable | None":
    """Fetch the matches of an evaluation; None where they are lost, or not those recorded.

    Raises:
        ServerAway: MLflow does not answer, which says nothing of the matches.
        Refused: it does not give them to this user, say.
    """
    from model.evaluation.coco.matches import read_matches

    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetched = fetch(record.run_id, Path(scratch))
        except (ServerAway, Refused):
            raise
        except UserError:
            return None
        return read_matches(fetched) if file_sha256(fetched) == record.matches else None


def num_with_objects(matches: "MatchTable") -> int:
    """Count the images with an object to find."""
    return len(np.unique(matches.images[matches.num_truths > 0]))


def resample(num_images: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> NDArray[np.float32]:
    """Return how often each resample draws each image, [images, resamples]; the same for the same numbers."""
    # The same draws for all evaluations on one set of images: in a difference of two detectors, what the images
    # have in common then cancels.
    generator = np.random.default_rng((seed, num_images))
    weights = np.empty((num_resamples, num_images), np.float32)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, max(1, num_images), num_images), minlength=num_images)
    return np.ascontiguousarray(weights.T)


def _read(
    ledger: Ledger,
    keys: Iterable[str],
    fetch: Fetch,
    folder: Path,
    kinds: Sequence[Kind],
    read: Callable[[Mapping[Kind, Path]], Kept],
) -> dict[str, Kept]:
    """Return what is read of the files of each evaluation; those that a power cut left short are made again."""
    keys = list(keys)
    files = _files(ledger, keys, fetch, folder, kinds)
    try:
        return {key: read(of_key) for key, of_key in files.items()}
    except DAMAGED:
        for file in {file for of_key in files.values() for file in of_key.values()}:
            if not _is_whole(file):
                file.unlink(missing_ok=True)
    return {key: read(of_key) for key, of_key in _files(ledger, keys, fetch, folder, kinds).items()}


def _files(
    ledger: Ledger, keys: Iterable[str], fetch: Fetch, folder: Path, kinds: Sequence[Kind]
) -> dict[str, dict[Kind, Path]]:
    """Return the file of each kind of what was resampled, by evaluation key, but of lost matches; new ones are made."""
    records = {key: ledger.evaluations[key] for key in dict.fromkeys(keys) if key in ledger.evaluations}
    files = {
        key: {kind: _file(record, folder, kind) for kind in kinds}
        for key, record in records.items()
        if record.status == "FINISHED" and record.matches
    }
    missing = {records[key].matches: records[key] for key in files if not _exist(files[key])}
    if missing:
        make_home(folder.parent)
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(usable_cores()) as threads:  # numpy lets go of the interpreter while it counts
            list(threads.map(lambda record: _resample(record, fetch, folder, kinds), missing.values()))
    return {key: of_key for key, of_key in files.items() if _exist(of_key)}


def _exist(files: Mapping[Kind, Path]) -> bool:
    return all(file.exists() for file in files.values())


def _is_whole(file: Path) -> bool:
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as kept:
                return kept.testzip() is None
        np.load(file, mmap_mode="r")  # which compares its length with what its header says
    except DAMAGED:
        return False
    return True


def _file(record: Record, folder: Path, kind: Kind) -> Path:
    suffix = "npz" if kind == "classes" else "npy"
    # Not those that were counted in single precision once: a difference to them would be one of rounding alone.
    return inside(folder, f"{one_name(record.matches)}-{NUM_RESAMPLES}-{SEED}-double-{kind}.{suffix}")


def _resample(record: Record, fetch: Fetch, folder: Path, kinds: Sequence[Kind]) -> None:
    """Resample an evaluation into files; none is written where its matches are lost, or not those recorded."""
    from model.evaluation.coco.reweighted import of_classes, of_sizes  # numba takes a moment

    missing = [kind for kind in kinds if not _file(record, folder, kind).exists()]
    matches = recorded_matches(record, fetch)
    if matches is None:
        return
    weights = _weights(matches.num_images)
    if "metrics" in missing or "classes" in missing:
        numbers, classes = of_classes(matches, weights)
        if "metrics" in missing:
            numbers = np.vstack([numbers, np.full(NUM_RESAMPLES, matches.num_images)])
            _keep(_file(record, folder, "metrics"), lambda part: np.save(part, numbers))
        if "classes" in missing:
            _keep(_file(record, folder, "classes"), class_samples(matches, classes).save)
    if "objects" in missing:  # of its own, as what was resampled before it was counted stays good
        count = np.full((1, NUM_RESAMPLES), float(num_with_objects(matches)))
        _keep(_file(record, folder, "objects"), lambda part: np.save(part, count))
    if "sizes" in missing:
        # None of matches that were recorded before there were sizes.
        rows = [of_size[[0, 3]] for of_size in of_sizes(matches, weights).values()]
        sizes = np.concatenate([np.empty((0, NUM_RESAMPLES)), *rows])
        _keep(_file(record, folder, "sizes"), lambda part: np.save(part, sizes))


def _keep(file: Path, save: Callable[[IO[bytes]], None]) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        save(part)
    os.replace(part.name, file)  # whole or not at all, also where two processes report at once


@cache
def _weights(num_images: int) -> NDArray[np.float32]:
    return resample(num_images)
