"""COCO's AP and AR of data sets in which each image stands as often as its weight says, compiled by numba.

A bootstrap asks for a thousand of them: counted from one table of matches, they take a quarter of a second together.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.evaluation.coco.matches import ALL, IOU_THRESHOLDS, RECALLS, MatchTable
from model.machine import usable_cores

Weights = NDArray[np.floating[Any] | np.integer[Any]]
"""[images, R] whole numbers below 2^24."""
NUM_THRESHOLDS = len(IOU_THRESHOLDS)
AT_ONCE = 512
"""Images that are left out, each by itself, in one call: the weights of 50,000 would take 10 GB."""
LANES = 128
"""Weightings that are counted side by side, as the processor's vectors and its cache like it."""


def precision_and_recall(matches: MatchTable, weights: Weights) -> NDArray[np.float64]:
    """Return AP, AP50, AP75 and AR100 of each weighting, [4, R], 0 to 100; NaN where there is nothing to find.

    See `of_classes`.
    """
    return of_classes(matches, weights)[0]


def of_classes(matches: MatchTable, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AP, AP50, AP75 and AR100 of each weighting, [4, R], and AP of each category, [K, R].

    They are 0 to 100, NaN where there is nothing to find, and COCO's of the data set in which each image stands as
    often as its weight says: the precision envelope at 101 recalls, and the last recall, over the categories of which
    there is an object. Of equal scores within one image and category, all copies of the first count before those of
    the second.

    Args:
        matches: of one evaluation.
        weights: of its images.
    """
    return _count_all(matches, _best_first(matches), weights)


def of_sizes(matches: MatchTable, weights: Weights) -> dict[str, NDArray[np.float64]]:
    """Return what `precision_and_recall` does of the objects of each size, by the names of `by_size`."""
    order = _best_first(matches)  # the same for all of them
    return {size: _count_all(table, order, weights)[0] for size, table in matches.by_size.items()}


def _count_all(
    matches: MatchTable, order: NDArray[np.int64], weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `of_classes`; `order` is that of `_best_first`."""
    weights = np.ascontiguousarray(weights, np.float32)
    sums = np.zeros((NUM_THRESHOLDS, weights.shape[1]))
    recalls, num_present = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    classes = np.full((matches.num_categories, weights.shape[1]), np.nan)
    for category in _categories(matches, order):
        positives = _weighted_sum(category.truth_images, category.num_truths, weights)
        is_present = positives > 0
        num_present += is_present
        np.maximum(positives, 1, out=positives)
        # Of all thresholds: the mean is formed at the end.
        found = category.true > 0
        num_found = np.bitwise_count(category.true[found])
        recalls += _weighted_sum(category.images[found], num_found, weights) / positives
        used, images = np.unique(category.images, return_inverse=True)
        own = _precision_sums(used, images, category.true, category.ignored, weights, positives)
        sums += own
        classes[category.number, is_present] = 100 / len(RECALLS) * own[:, is_present].mean(axis=0)
    with np.errstate(invalid="ignore"):
        recall = 100 / NUM_THRESHOLDS * recalls / num_present
    return np.concatenate([_points(sums, num_present), recall[None]]), classes


def leave_one_out(matches: MatchTable) -> NDArray[np.float64]:
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
        places = np.searchsorted(left_out, category.images).astype(np.int32)
        used, images = np.unique(places, return_inverse=True)
        found = np.zeros((NUM_THRESHOLDS, len(left_out)))
        for start in range(0, len(left_out), AT_ONCE):
            columns = np.arange(start, min(start + AT_ONCE, len(left_out)))
            weights = (np.arange(len(left_out))[:, None] != columns).astype(np.float32)
            at_least_1 = np.maximum(positives[columns], 1.0)
            found[:, columns] = _precision_sums(used, images, category.true, category.ignored, weights, at_least_1)
        return left_out, positives > 0, found

    with ThreadPoolExecutor(usable_cores()) as threads:  # what numba compiled lets go of the interpreter
        for left_out, is_present, found in threads.map(count, _categories(matches, _best_first(matches))):
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
        # NaN where a weighting leaves no object at all.
        by_threshold = 100 / len(RECALLS) * sums / num_present
    return np.stack([by_threshold.mean(axis=0), by_threshold[0], by_threshold[5]])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Category:
    """The detections of one category, best first, up to the last that is true at any threshold."""

    number: int
    truth_images: NDArray[np.int32]
    num_truths: NDArray[np.int32]
    images: NDArray[np.int32]
    true: NDArray[np.uint16]
    ignored: NDArray[np.uint16]


def _best_first(matches: MatchTable) -> NDArray[np.int64]:
    """The places of the detections by category, best first; of equal scores the first image comes first."""
    return np.lexsort((-matches.scores, np.repeat(matches.categories, np.diff(matches.offsets))))


def _categories(matches: MatchTable, order: NDArray[np.int64]) -> Iterator[_Category]:
    """Yield each category of which there is an object; `order` is that of `_best_first`."""
    counts = np.diff(matches.offsets)
    categories, images = np.repeat(matches.categories, counts), np.repeat(matches.images, counts)
    order = order[matches.ignored[order] != ALL]  # the others count nowhere
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


@njit(nogil=True, cache=True, error_model="numpy")
def _weighted_sum(images, counts, weights):  # type: ignore[no-untyped-def]
    """Sum counts, [N], of these images under each weighting, [R]; numpy's product would wake a thread for each core."""
    sums = np.zeros(weights.shape[1])
    for place in range(len(images)):
        count, weight = counts[place], weights[images[place]]
        for lane in range(len(sums)):
            sums[lane] += count * weight[lane]
    return sums


@njit(nogil=True, cache=True, error_model="numpy")
def _precision_sums(used, images, true, ignored, weights, positives):  # type: ignore[no-untyped-def]
    """The sum of COCO's 101 precisions of a category at each threshold under each weighting, [10, R].

    Args:
        used: [U] images with a detection.
        images: [D] that of each detection, by its place in `used`; best first, none is ignored at all thresholds.
        true: [D] the thresholds, as a mask, at which a detection finds an object.
        ignored: [D] those at which it is neither right nor wrong.
        weights: [images, R] float32.
        positives: [R] objects under each weighting, at least 1.
    """
    sums = np.zeros((NUM_THRESHOLDS, weights.shape[1]))
    # Most detections are false at all thresholds: they are counted once for all, up to each of the others.
    rows = np.flatnonzero((true > 0) | (ignored > 0))
    images_of_rows, true_of_rows, ignored_of_rows = images[rows], true[rows], ignored[rows]
    mine, objects = np.zeros((len(used), LANES), np.float32), np.ones(LANES)
    own, counted = np.empty(LANES), np.empty((len(rows), LANES))
    found, precision = np.empty((len(rows), LANES)), np.empty((len(rows), LANES))
    for start in range(0, weights.shape[1], LANES):
        end = min(start + LANES, weights.shape[1])
        for lane in range(end - start):
            objects[lane] = positives[start + lane]
        for place in range(len(used)):  # else they lie pages apart
            for lane in range(end - start):
                mine[place, lane] = weights[used[place], start + lane]
        _count(rows, images, ignored, mine, counted)
        for threshold in range(NUM_THRESHOLDS):
            num_found = _rise(threshold, images_of_rows, true_of_rows, ignored_of_rows, mine, counted, found, precision)
            _sum_envelope(num_found, found, precision, objects, own)
            for lane in range(end - start):
                sums[threshold, start + lane] = own[lane]
    return sums


@njit(nogil=True, cache=True, error_model="numpy")
def _count(rows, images, ignored, weights, counted):  # type: ignore[no-untyped-def]
    """Fill `counted`, [rows, L]: the detections up to each of these rows that no threshold ignores."""
    so_far = np.zeros(weights.shape[1])
    start = 0
    for number in range(len(rows)):
        for place in range(start, rows[number] + 1):
            if ignored[place] == 0:
                weight = weights[images[place]]
                for lane in range(len(so_far)):
                    so_far[lane] += weight[lane]
        start = rows[number] + 1
        for lane in range(len(so_far)):
            counted[number, lane] = so_far[lane]


@njit(nogil=True, cache=True, error_model="numpy")
def _rise(threshold, images, true, ignored, weights, counted, found, precision):  # type: ignore[no-untyped-def]
    """Fill `found` and `precision`, [., L]: the objects found up to each detection that is true, and its precision.

    Returns:
        How many detections are true at this threshold.
    """
    num_found, bit = 0, 1 << threshold
    so_far, wrong = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for row in range(len(images)):
        weight = weights[images[row]]
        # A detection that is ignored at some thresholds counts, false, at the others.
        if ignored[row] > 0 and not ignored[row] & bit:
            for lane in range(len(wrong)):
                wrong[lane] += weight[lane]
        if true[row] & bit:
            for lane in range(len(so_far)):
                so_far[lane] += weight[lane]
                found[num_found, lane] = so_far[lane]
                # At least 1, where all weights are 0 so far.
                precision[num_found, lane] = so_far[lane] / max(counted[row, lane] + wrong[lane], 1.0)
            num_found += 1
    return num_found


@njit(nogil=True, cache=True, error_model="numpy")
def _sum_envelope(num_found, found, precision, objects, sums):  # type: ignore[no-untyped-def]
    """Fill `sums`, [L]: of the precisions at the 101 recalls, each the highest at that recall or a higher one."""
    envelope, reached = np.zeros(len(sums)), np.zeros(len(sums))
    for lane in range(len(sums)):
        sums[lane] = 0.0
    for row in range(num_found - 1, -1, -1):
        for lane in range(len(sums)):
            # How many recalls above 0 this one reaches. COCO's are i * 0.01: by rounding, some lie above i hundredths.
            recall = found[row, lane] / objects[lane]
            nearest = np.floor(recall * 100.0 + 0.5)
            now = nearest - 1.0 if nearest * 0.01 > recall else nearest
            sums[lane] += envelope[lane] * (reached[lane] - now)
            envelope[lane] = max(envelope[lane], precision[row, lane])
            reached[lane] = now
    for lane in range(len(sums)):
        # Recall 0 is reached at the first detection, whatever its weight.
        sums[lane] += envelope[lane] * (reached[lane] + 1.0)
