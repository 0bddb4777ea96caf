"""The bootstrap over images: COCO's metrics on data sets of images drawn again, from the matches that MLflow keeps.

The images are drawn with replacement, as many as there are, some of them twice, some not at all.
"""

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.data.cache import file_sha256
from model.machine import usable_cores
from model.paths import inside, one_name
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.homes import make_home

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from model.evaluation.coco_eval import MatchTable

Floats = NDArray[np.floating[Any]]
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
    from model.evaluation.coco_eval import precisions, truths_of

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
    """Fetch the matches of an evaluation; None where they are lost, or not those recorded."""
    from model.evaluation.coco_eval import read_matches

    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetched = fetch(record.run_id, Path(scratch))
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


def precision_and_recall(matches: "MatchTable", weights: Floats) -> NDArray[np.float64]:
    """Return AP, AP50, AP75 and AR100 of each resample, [4, resamples], 0 to 100; NaN where there is nothing to find.

    See `of_classes`.
    """
    return of_classes(matches, weights)[0]


def of_classes(matches: "MatchTable", weights: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AP, AP50, AP75 and AR100 of each resample, [4, resamples], and AP of each category, [K, resamples].

    They are 0 to 100, NaN where there is nothing to find, and COCO's of the data set in which each image stands as
    often as its weight says: the precision envelope at 101 recalls, and the last recall, over the categories of which
    there is an object. Of equal scores within one image and category, all copies of the first count before those of
    the second.

    Args:
        matches: of one evaluation.
        weights: [images, resamples], whole numbers. float64 keeps every digit; float32 is twice as fast, and right to
            six digits up to 100,000 objects of a category.
    """
    sums = np.zeros((NUM_THRESHOLDS, weights.shape[1]))
    recalls, num_present = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    classes = np.full((matches.num_categories, weights.shape[1]), np.nan)
    for category in _categories(matches):
        # Whatever is found lies on images with objects; summed over the thresholds, it is their mean recall.
        places = np.searchsorted(category.truth_images, category.images).clip(max=len(category.truth_images) - 1)
        num_found = np.bincount(places, np.bitwise_count(category.true), minlength=len(category.truth_images))
        drawn = weights[category.truth_images]
        positives, found = category.num_truths.astype(weights.dtype) @ drawn, num_found.astype(weights.dtype) @ drawn
        is_present = positives > 0
        num_present += is_present
        np.maximum(positives, 1, out=positives)
        recalls += found.astype(np.float64) / positives
        weighty, counts = _condense(category, len(weights))
        own = np.zeros_like(sums)
        for columns in _blocks(len(weighty.images), weights.shape[1]):
            total = 100 * (counts.astype(weights.dtype) @ weights[:, columns])
            _scan(np.add, total)
            _add(weighty, 100 * weights[weighty.images, columns], total, positives[columns], own[:, columns])
        sums += own
        classes[category.number, is_present] = 100 / NUM_RECALLS * own[:, is_present].mean(axis=0)
    with np.errstate(invalid="ignore"):
        recall = 100 / NUM_THRESHOLDS * recalls / num_present
    return np.concatenate([_points(sums, num_present), recall[None]]), classes


def leave_one_out(matches: "MatchTable") -> NDArray[np.float64]:
    """Return AP, AP50 and AP75 without each image in turn, and of all images, [3, images + 1], 0 to 100.

    The same as with weights that are 0 for one image; but a category is counted again only for the images that hold
    something of it, which on 5000 images with 80 categories is a quarter of the work.
    """
    everything = matches.num_images  # a number that is no image's: leaving it out leaves out nothing
    sums = np.zeros((NUM_THRESHOLDS, everything + 1))
    num_present = np.zeros(everything + 1)

    def count(category: _Category) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        left_out = np.append(np.union1d(category.images, category.truth_images), everything)
        truths = np.bincount(category.truth_images, category.num_truths, minlength=everything + 1)
        positives = truths.sum() - truths[left_out]
        found = np.zeros((NUM_THRESHOLDS, len(left_out)))
        for columns in _blocks(len(category.images), len(left_out)):
            weights = 100.0 * (category.images[:, None] != left_out[columns])
            total = np.where((category.ignored == 0)[:, None], weights, 0)
            _scan(np.add, total)
            _add(category, weights, total, np.maximum(positives[columns], 1), found[:, columns])
        return left_out, positives > 0, found

    with ThreadPoolExecutor(usable_cores()) as threads:  # numpy lets go of the interpreter while it counts
        for left_out, is_present, found in threads.map(count, _categories(matches)):
            of_all = np.repeat(found[:, -1:], everything + 1, axis=1)
            of_all[:, left_out] = found
            sums += of_all
            present = np.ones(everything + 1)
            present[left_out] = is_present
            num_present += present
    return _points(sums, num_present)


def _points(sums: NDArray[np.float64], num_present: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return AP, AP50 and AP75, [3, R], of sums of 101 precisions, [10, R], over so many categories, [R]."""
    with np.errstate(invalid="ignore"):
        # NaN where a resample has no object at all.
        by_threshold = 100 / NUM_RECALLS * sums / num_present
    return np.stack([by_threshold.mean(axis=0), by_threshold[0], by_threshold[5]])


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
    return inside(folder, f"{one_name(record.matches)}-{NUM_RESAMPLES}-{SEED}-{kind}.{suffix}")


def _resample(record: Record, fetch: Fetch, folder: Path, kinds: Sequence[Kind]) -> None:
    """Resample an evaluation into files; none is written where its matches are lost, or not those recorded."""
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
        sizes = [precision_and_recall(matches.by_size[size], weights)[[0, 3]] for size in matches.by_size]
        of_sizes = np.concatenate([np.empty((0, NUM_RESAMPLES)), *sizes])
        _keep(_file(record, folder, "sizes"), lambda part: np.save(part, of_sizes))


def _keep(file: Path, save: Callable[[IO[bytes]], None]) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        save(part)
    os.replace(part.name, file)  # whole or not at all, also where two processes report at once


@cache
def _weights(num_images: int) -> NDArray[np.float32]:
    return resample(num_images)


NUM_THRESHOLDS = 10
NUM_RECALLS = 101
_LATE = np.flatnonzero(np.linspace(0, 1, NUM_RECALLS) > np.arange(NUM_RECALLS) / 100)
"""COCO's recalls that are, by rounding, a last bit above so many hundredths: just that recall does not reach them."""
_BLOCK = 2_000_000
"""Elements of an array that the processor's cache still holds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Category:
    """The detections of one category, best first, up to the last that is true at any threshold."""

    number: int
    truth_images: NDArray[np.int32]
    num_truths: NDArray[np.int32]
    images: NDArray[np.int32]
    true: NDArray[np.uint16]
    ignored: NDArray[np.uint16]


def _categories(matches: "MatchTable") -> Iterator[_Category]:
    """Yield each category of which there is an object."""
    counts = np.diff(matches.offsets)
    categories, images = np.repeat(matches.categories, counts), np.repeat(matches.images, counts)
    order = np.lexsort((-matches.scores, categories))  # of equal scores the first image comes first
    order = order[matches.ignored[order] != (1 << NUM_THRESHOLDS) - 1]  # the others count nowhere
    images, true, ignored = images[order], matches.true[order], matches.ignored[order]
    names = np.arange(matches.num_categories + 1)
    starts, cells = np.searchsorted(categories[order], names), np.searchsorted(matches.categories, names)
    for category in range(matches.num_categories):
        cell = slice(cells[category], cells[category + 1])
        holds = matches.num_truths[cell] > 0
        found = np.flatnonzero(true[starts[category] : starts[category + 1]])
        # What ranks below the last true detection adds no recall, and precision there is in no envelope.
        chosen = slice(starts[category], starts[category] + (found[-1] + 1 if len(found) else 0))
        if holds.any():
            yield _Category(
                number=category,
                truth_images=matches.images[cell][holds],
                num_truths=matches.num_truths[cell][holds],
                images=images[chosen],
                true=true[chosen],
                ignored=ignored[chosen],
            )


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yield the columns that are worked on at once; none where there are no rows."""
    width = max(1, min(num_columns, _BLOCK // num_rows)) if num_rows else num_columns + 1
    yield from (slice(start, start + width) for start in range(0, num_columns if num_rows else 0, width))


def _condense(category: _Category, num_images: int) -> "tuple[_Category, csr_array]":
    """Leave out the detections that are false at all thresholds, which are most, and count them by image instead.

    Returns:
        The others, D of them; and [D, images], of how many detections that count at all thresholds each of these and
        those since the one before it are: times the weights of the images, and added up, what precision is a part of.
    """
    from scipy.sparse import csr_array  # takes a moment, and where nothing is new, nothing is counted

    rows = np.flatnonzero((category.true > 0) | (category.ignored > 0))
    counted = np.flatnonzero(category.ignored == 0)
    places = np.searchsorted(rows, counted), category.images[counted]
    counts = csr_array((np.ones(len(counted), np.float32), places), (len(rows), num_images))
    chosen = {name: getattr(category, name)[rows] for name in ("images", "true", "ignored")}
    return replace(category, **chosen), counts


def _add(category: _Category, weights: Floats, total: Floats, positives: Floats, sums: NDArray[np.float64]) -> None:
    """Add the sum of the 101 precisions of a category to that of every threshold, [10, R].

    Args:
        category: with D detections.
        weights: [D, R] how often each detection stands in each resample, times 100, so that recall comes in hundredths.
        total: [D, R] of the detections that count at all thresholds, those up to each, weighted so.
        positives: [R] objects.
        sums: [10, R].
    """
    partly = np.flatnonzero((category.ignored > 0) & (category.ignored < (1 << NUM_THRESHOLDS) - 1))
    late = np.flatnonzero(positives % 5 == 0)  # else no recall is just one of _LATE
    for threshold in range(NUM_THRESHOLDS):
        found = np.flatnonzero(category.true >> threshold & 1)
        if not len(found):
            continue
        true, precision = weights[found], total[found]
        _scan(np.add, true)
        # Detections that are ignored at some thresholds count, false, at the others.
        wrong = partly[category.ignored[partly] >> threshold & 1 == 0]
        if len(wrong):
            more = np.concatenate([np.zeros_like(weights[:1]), weights[wrong]])
            _scan(np.add, more)
            precision += more[np.searchsorted(wrong, found, side="right")]
        np.maximum(precision, 1, out=precision)  # where all weights are 0 so far
        np.divide(true, precision, out=precision)
        # COCO's envelope: the precision at a recall is the highest at this recall or a higher one.
        _scan(np.maximum, precision[::-1])
        recall = np.divide(true, positives, out=true)
        recall[:, late] -= 0.5 * np.isin(recall[:, late], _LATE)
        reached = np.floor(recall, out=recall)
        # Recall 0 counts as reached at the first position whatever its weight, and the others where it rises to them.
        sums[threshold] += precision[0] + precision[0] * reached[0]
        sums[threshold] += np.einsum("pr,pr->r", precision[1:], np.diff(reached, axis=0))


def _scan(operation: Callable[..., Any], values: Floats) -> None:
    """Accumulate down the rows in place, as `operation.accumulate` does, but across whole rows at once.

    Rows are taken in runs: first every run within itself, all runs side by side, then each with the end of the last.
    """
    run = max(1, int(len(values) ** 0.5))
    num_runs = len(values) // run
    runs = values[: num_runs * run].reshape(num_runs, run, -1)
    for place in range(1, run):
        operation(runs[:, place], runs[:, place - 1], out=runs[:, place])
    for number in range(1, num_runs):
        operation(runs[number], runs[number - 1, -1], out=runs[number])
    for row in range(num_runs * run, len(values)):
        operation(values[row], values[row - 1], out=values[row])
