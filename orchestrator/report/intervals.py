"""Intervals of an AP and of a difference of two: a paired bootstrap over images, crossed with the scatter of seeds.

The images are drawn again with replacement, as many as there are, some of them twice, some not at all.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.data.cache import file_sha256
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record

if TYPE_CHECKING:
    from model.evaluation.coco_eval import MatchTable

Floats = NDArray[np.floating[Any]]
Numbers = float | Floats
Resamples = NDArray[np.float64]
"""[rows, resamples] ROWS, 0 to 100, as far as they are known: three, those that cost no more, or all."""
Fetch = Callable[[str, Path], Path]
"""Gets the file of matches of a run, by its id, into a folder."""
NUM_RESAMPLES = 1000
SEED = 0
ROWS = ("AP", "AP50", "AP75", "AR100", "num_images", "APs", "ARs", "APm", "ARm", "APl", "ARl")
"""What is known of each resample; of sizes only where that is asked for, and the matches tell."""
RESAMPLED = tuple(name for name in ROWS if name != "num_images")
"""The metrics that are resampled."""
MOST_SEEDS = 1000
"""More than anyone would train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its interval, of 95 % where nothing else was asked for, and where its variance comes from."""

    value: float
    low: float
    high: float
    num_seeds: int = 0
    """The seeds, or pairs of them, that it rests on; 0 where that is not known."""
    num_images: int = 0
    """The images that were scored; 0 where that is not known."""
    variance_images: float = 0.0
    """The part of the variance of `value`, in points squared, that other images of the same kind would bring."""
    variance_seeds: float = 0.0
    """The part that other seeds would bring on the same images."""
    variance_shared: float = 0.0
    """Of variance_images, what all seeds have in common, so that more of them leave it as it is."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the number is surely on one side of 0."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def dominant(self) -> Literal["images", "seeds"] | None:
        """What makes more of its variance; None of less than two seeds or without resamples, which do not tell."""
        if self.num_seeds < 2 or not self.variance_images:
            return None
        return "seeds" if self.variance_seeds > self.variance_images else "images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """How much more it takes to know a number to a margin."""

    images: int | None
    """At the same seeds; None where images alone never get there, or their number is not known."""
    seeds: int | None
    """On the same images; None where seeds alone never get there, or one seed does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeedValues:
    """One metric of one row."""

    measured: Mapping[int, float]
    """By seed."""
    resampled: Mapping[int, NDArray[np.float64]]
    """[resamples] by seed; lacks the seeds of which no matches are known, and is empty of a metric without any."""
    num_images: int = 0
    """0 where that is not known."""


def estimate(values: SeedValues, level: float = 0.95) -> Estimate | None:
    """Return the mean over seeds with its interval; None where matches lack, or one seed has no resamples.

    A metric without resamples has the interval of its seeds alone, which is one of these images; see `difference`.
    """
    return _estimate(values.measured, values.resampled, values.num_images, level)


def difference(values: SeedValues, reference: SeedValues, level: float = 0.95) -> Estimate | None:
    """Return how far a row is above another, with its interval; None where matches lack, or the images are others.

    Two rows on the same seeds and images are what radiology calls readers and cases, fully crossed. With d_s the
    difference at seed s, the variance of its mean over S seeds is s^2 / S + C (Obuchowski and Rockette 1995,
    "Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests"): s^2 is the sample variance of
    d_s, which holds what seeds do and the image noise that is each seed's own, and C the image noise that all seeds
    share, the mean bootstrap covariance of d_s and d_s'.

    One seed tells nothing of others: its interval is the bootstrap's, and one of these two trainings.

    Only seeds that both rows have count, pair by pair, in value and interval; where they have none in common, the
    first seeds of each are as good a pair.
    """
    common = [seed for seed in values.measured if seed in reference.measured]
    ours, theirs = sorted(values.measured), sorted(reference.measured)
    pairs = [(seed, seed) for seed in common] or list(zip(ours, theirs, strict=False))
    if bool(values.resampled) != bool(reference.resampled):
        return None
    if values.num_images and reference.num_images and values.num_images != reference.num_images:
        return None
    gains = {one: values.measured[one] - reference.measured[other] for one, other in pairs}
    known = [(one, other) for one, other in pairs if one in values.resampled and other in reference.resampled]
    if any(values.resampled[one].shape != reference.resampled[other].shape for one, other in known):
        return None
    resampled = {one: values.resampled[one] - reference.resampled[other] for one, other in known}
    num_images = values.num_images if values.num_images == reference.num_images else 0
    return _estimate(gains, resampled, num_images, level) if known or not values.resampled else None


def needed(estimate: Estimate, margin: float) -> Needed:
    """Return how many images or seeds bring the half-width of the 95 % interval below a margin, to one percent.

    Both from the variances as they were measured, at least as many as there are; of one seed for these two trainings.
    """
    num, margin = estimate.num_seeds, abs(margin)
    own, seeds = estimate.variance_images - estimate.variance_shared, estimate.variance_seeds
    images = more = None
    if num and estimate.num_images and estimate.variance_images:
        factors = np.geomspace(1.0, 1e6, 2001)
        widths = half_width(own / factors + seeds, estimate.variance_shared / factors, num)
        reached = np.flatnonzero(widths < margin)
        images = math.ceil(estimate.num_images * factors[reached[0]]) if len(reached) else None
    if num > 1:
        nums = np.arange(num, MOST_SEEDS + 1)
        reached = np.flatnonzero(half_width((own + seeds) * num / nums, estimate.variance_shared, nums) < margin)
        more = int(nums[reached[0]]) if len(reached) else None
    return Needed(images=images, seeds=more)


def image_variances(resampled: Floats) -> tuple[Floats, Floats]:
    """Return what images bring to the variance of a mean over seeds: C, which all seeds share, and the seeds' own part.

    Args:
        resampled: [..., S, resamples] of each seed, on the same draws of images.

    Returns:
        [...] each, 0 at least: the mean covariance of two seeds, and what a seed's variance is above it, over S.
    """
    num = resampled.shape[-2]
    alone, of_mean = resampled.var(axis=-1, ddof=1).mean(axis=-1), resampled.mean(axis=-2).var(axis=-1, ddof=1)
    # The variance of a mean of S is a seed's over S, and (S - 1) / S covariances.
    shared = np.maximum((num * of_mean - alone) / (num - 1), 0.0) if num > 1 else alone
    return shared, np.maximum(alone - shared, 0.0) / num


def half_width(seeds: Numbers, shared: Numbers, num_seeds: int | NDArray[np.int64], level: float = 0.95) -> Floats:
    """Return half the width of the interval of a mean over seeds, whose variance is `seeds + shared`.

    The first has S - 1 degrees of freedom, the second as many as there are images, so that the quantile lies between
    Student's t and the normal one. Hillis (2007) gives the sum degrees of freedom as Satterthwaite does, which covers
    too little for few seeds: down to 87 % where 95 were meant for two, 92 % for three. Cochran (1964, "Approximate
    significance levels of the Behrens-Fisher test") takes the mean of both quantiles, weighted by their variances: 93.9
    to 97.8 % for two seeds. The weight here was bent until it is 93.1 to 96.9 % for two seeds and 95.0 to 96.4 % for
    three to eight, whatever the two variances are; for 99 %, 97.0 and 98.6 at least.

    Args:
        seeds: s^2 / S, as the seeds scatter on these images; not used of one seed.
        shared: C.
        num_seeds: S.
        level: such as 0.95.
    """
    from scipy.special import ndtri, stdtrit

    seeds = np.where(np.asarray(num_seeds) > 1, seeds, 0.0)
    total = seeds + shared
    share = np.divide(seeds, total, out=np.zeros_like(total), where=total > 0)
    weight = share * (1 + 9 * share - 6 * share**2) / 4  # 0 and 1 as share is; Cochran's is share itself
    normal, students = ndtri((1 + level) / 2), stdtrit(np.maximum(1, np.asarray(num_seeds) - 1), (1 + level) / 2)
    wide: Floats = (normal + weight * (students - normal)) * np.sqrt(total)
    return wide


def resampled(
    ledger: Ledger, keys: Iterable[str], fetch: Fetch, folder: Path, *, by_size: bool = False
) -> Mapping[str, Resamples]:
    """Return the metrics of each resample, by evaluation key, but of lost matches.

    Args:
        ledger: says which evaluations are there, and the sha256 of their matches.
        keys: of evaluations.
        fetch: gets the matches.
        folder: keeps what was resampled, by that sha256; it may be deleted at any time.
        by_size: whether APs to ARl are wanted, too, which takes as long again.
    """
    records = {key: ledger.evaluations[key] for key in dict.fromkeys(keys) if key in ledger.evaluations}
    wanted = {key: record for key, record in records.items() if record.status == "FINISHED" and record.matches}
    if not wanted:
        return {}
    kinds = ("metrics", "sizes")[: 1 + by_size]
    files = {
        (key, kind): folder / f"{record.matches}-{NUM_RESAMPLES}-{SEED}-{kind}.npy"
        for key, record in wanted.items()
        for kind in kinds
    }
    missing = {record.matches: record for key, record in wanted.items() if not _exist(files, key, kinds)}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy lets go of the interpreter while it counts
            list(threads.map(lambda record: _resample(record, fetch, folder, kinds), missing.values()))
    found = {key: [np.load(files[key, kind]) for kind in kinds] for key in wanted if _exist(files, key, kinds)}
    return {key: np.concatenate(parts) for key, parts in found.items()}


def recorded_matches(record: Record, fetch: Fetch) -> "MatchTable | None":
    """Fetch the matches of an evaluation; None where they are lost, or not those recorded."""
    from model.evaluation.coco_eval import read_matches

    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetched = fetch(record.run_id, Path(scratch))
        except UserError:
            return None
        return read_matches(fetched) if file_sha256(fetched) == record.matches else None


def resample(num_images: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> NDArray[np.float32]:
    """Return how often each resample draws each image, [images, resamples]; the same for the same numbers."""
    # The same draws for all evaluations on one set of images: in a difference of two detectors, what the images
    # have in common then cancels.
    generator = np.random.default_rng((seed, num_images))
    weights = np.empty((num_resamples, num_images), np.float32)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, max(1, num_images), num_images), minlength=num_images)
    return np.ascontiguousarray(weights.T)


def average_precision(matches: "MatchTable", weights: Floats) -> NDArray[np.float64]:
    """Return AP, AP50 and AP75 of each resample, [3, resamples], 0 to 100; NaN where there is nothing to find.

    It is COCO's AP of the data set in which each image stands as often as its weight says: the precision envelope at
    101 recalls, over the categories of which there is an object. Of equal scores within one image and category, all
    copies of the first count before those of the second.

    Args:
        matches: of one evaluation.
        weights: [images, resamples], whole numbers. float64 keeps every digit; float32 is twice as fast, and right to
            six digits up to 100,000 objects of a category.
    """
    return precision_and_recall(matches, weights)[:3]


def precision_and_recall(matches: "MatchTable", weights: Floats) -> NDArray[np.float64]:
    """Return AP, AP50, AP75 and AR100 of each resample, [4, resamples]; see `average_precision`."""
    sums = np.zeros((NUM_THRESHOLDS, weights.shape[1]))
    recalls, num_present = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for category in _categories(matches):
        # Whatever is found lies on images with objects; summed over the thresholds, it is their mean recall.
        places = np.searchsorted(category.truth_images, category.images).clip(max=len(category.truth_images) - 1)
        num_found = np.bincount(places, np.bitwise_count(category.true), minlength=len(category.truth_images))
        drawn = weights[category.truth_images]
        positives, found = category.num_truths.astype(weights.dtype) @ drawn, num_found.astype(weights.dtype) @ drawn
        num_present += positives > 0
        np.maximum(positives, 1, out=positives)
        recalls += found.astype(np.float64) / positives
        for columns in _blocks(len(category.images), weights.shape[1]):
            _add(category, weights[category.images, columns], positives[columns], sums[:, columns])
    with np.errstate(invalid="ignore"):
        recall = 100 / NUM_THRESHOLDS * recalls / num_present
    return np.concatenate([_points(sums, num_present), recall[None]])


def leave_one_out(matches: "MatchTable") -> NDArray[np.float64]:
    """Return AP, AP50 and AP75 without each image in turn, and of all images, [3, images + 1]; see `average_precision`.

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
            weights = (category.images[:, None] != left_out[columns]).astype(np.float64)
            _add(category, weights, np.maximum(positives[columns], 1), found[:, columns])
        return left_out, positives > 0, found

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy lets go of the interpreter while it counts
        for left_out, is_present, found in threads.map(count, _categories(matches)):
            of_all = np.repeat(found[:, -1:], everything + 1, axis=1)
            of_all[:, left_out] = found
            sums += of_all
            present = np.ones(everything + 1)
            present[left_out] = is_present
            num_present += present
    return _points(sums, num_present)


def _estimate(
    by_seed: Mapping[int, float], resampled: Mapping[int, NDArray[np.float64]], num_images: int, level: float
) -> Estimate | None:
    num = len(by_seed)
    if not num or (resampled and set(resampled) != set(by_seed)) or (num == 1 and not resampled):
        return None
    scatter = np.array([resampled[seed] for seed in by_seed]) if resampled else np.zeros((num, 2))
    scatter = scatter[:, np.isfinite(scatter).all(axis=0)]  # a resample without any object has no number
    shared, own = image_variances(scatter) if scatter.size else (np.inf, 0.0)
    value, seeds = float(np.mean([*by_seed.values()])), 0.0
    if num > 1:
        seeds = float(np.var([*by_seed.values()], ddof=1)) / num
        above = float(half_width(seeds, shared, num, level))
        below, seeds = -above, max(0.0, seeds - float(own))
    elif scatter.size:
        # Images that are drawn twice shift a resample's AP, so that only the scatter around their own mean counts.
        below, above = map(float, np.quantile(scatter - scatter.mean(), ((1 - level) / 2, (1 + level) / 2)))
    else:
        below, above = -np.inf, np.inf
    return Estimate(
        value=value,
        low=value + below,
        high=value + above,
        num_seeds=num,
        num_images=num_images,
        variance_images=float(shared + own),
        variance_seeds=seeds,
        variance_shared=float(shared),
    )


def _points(sums: NDArray[np.float64], num_present: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return AP, AP50 and AP75, [3, R], of sums of 101 precisions, [10, R], over so many categories, [R]."""
    with np.errstate(invalid="ignore"):
        # NaN where a resample has no object at all.
        by_threshold = 100 / NUM_RECALLS * sums / num_present
    return np.stack([by_threshold.mean(axis=0), by_threshold[0], by_threshold[5]])


def _exist(files: Mapping[tuple[str, str], Path], key: str, kinds: Sequence[str]) -> bool:
    return all(files[key, kind].exists() for kind in kinds)


def _resample(record: Record, fetch: Fetch, folder: Path, kinds: Sequence[str]) -> None:
    """Resample an evaluation into files; none is written where its matches are lost, or not those recorded."""
    files = {kind: folder / f"{record.matches}-{NUM_RESAMPLES}-{SEED}-{kind}.npy" for kind in kinds}
    missing = [kind for kind, file in files.items() if not file.exists()]
    matches = recorded_matches(record, fetch)
    if matches is None:
        return
    weights = _weights(matches.num_images)
    for kind in missing:
        if kind == "metrics":
            numbers = np.vstack([precision_and_recall(matches, weights), np.full(NUM_RESAMPLES, matches.num_images)])
        else:
            # None of matches that were recorded before there were sizes.
            sizes = [precision_and_recall(matches.by_size[size], weights)[[0, 3]] for size in matches.by_size]
            numbers = np.concatenate([np.empty((0, NUM_RESAMPLES)), *sizes])
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            np.save(part, numbers)
        os.replace(part.name, files[kind])  # whole or not at all, also where two processes report at once


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


def _add(category: _Category, weights: Floats, positives: Floats, sums: NDArray[np.float64]) -> None:
    """Add the sum of the 101 precisions of a category to that of every threshold, [10, R].

    Args:
        category: with D detections.
        weights: [D, R] how often each detection stands in each resample; it is overwritten.
        positives: [R] objects.
        sums: [10, R].
    """
    weights *= 100  # so that recall comes in hundredths; precision stays what it is
    total = np.where((category.ignored == 0)[:, None], weights, 0)
    _scan(np.add, total)
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
