"""Intervals of a metric and of a difference of two: resamples of the images, crossed with the scatter of seeds."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.figures.table import side_of_zero

Floats = NDArray[np.floating[Any]]
Numbers = float | Floats
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
    num_with_objects: int = 0
    """Those with an object to find; 0 where that is not known."""
    variance_images: float = 0.0
    """The part of the variance of `value`, in points squared, that other images of the same kind would bring."""
    variance_seeds: float = 0.0
    """The part that other seeds would bring on the same images."""
    variance_shared: float = 0.0
    """Of variance_images, what all seeds have in common, so that more of them leave it as it is."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the number is surely on one side of 0, and not so near to it that no table shows on which."""
        return side_of_zero((self.low, self.high)) != 0

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
    num_images: int = 0
    """Those that there are; 0 where that is not known."""
    num_seeds: int = 0
    """The same of seeds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SeedValues:
    """One metric of one row."""

    measured: Mapping[int, float]
    """By seed."""
    resampled: Mapping[int, NDArray[np.float64]]
    """[resamples] by seed; lacks the seeds of which no matches are known, and is empty of a metric without any."""
    num_images: int = 0
    """0 where that is not known."""
    num_with_objects: int = 0
    """Of them with an object to find; 0 where that is not known."""


def estimate(values: SeedValues, level: float = 0.95) -> Estimate | None:
    """Return the mean over seeds with its interval; None where matches lack, or one seed has no resamples.

    A metric without resamples has the interval of its seeds alone, which is one of these images; see `difference`.
    """
    return _estimate(values.measured, values, values.resampled, level)


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
    pairs = seed_pairs(values.measured, reference.measured)
    if bool(values.resampled) != bool(reference.resampled):
        return None
    if values.num_images and reference.num_images and values.num_images != reference.num_images:
        return None
    gains = {one: values.measured[one] - reference.measured[other] for one, other in pairs}
    known = [(one, other) for one, other in pairs if one in values.resampled and other in reference.resampled]
    if any(values.resampled[one].shape != reference.resampled[other].shape for one, other in known):
        return None
    resampled = {one: values.resampled[one] - reference.resampled[other] for one, other in known}
    of = values if values.num_images == reference.num_images else replace(values, num_images=0)
    return _estimate(gains, of, resampled, level) if known or not values.resampled else None


def seed_pairs(ours: Collection[int], theirs: Collection[int]) -> list[tuple[int, int]]:
    """Return the seeds of two rows that are compared: those that both have, or else the first of each."""
    common = [(seed, seed) for seed in ours if seed in theirs]
    return common or list(zip(sorted(ours), sorted(theirs), strict=False))


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
    return Needed(images=images, seeds=more, num_images=estimate.num_images, num_seeds=num)


def narrowed_by(estimates: Sequence[Estimate]) -> Literal["images", "seeds"]:
    """Return of what twice as much would leave the intervals narrower, on the whole.

    It may be seeds where images make more of the variance: Student's quantile is 12.7 of two and 3.2 of four, and a
    seed more averages the image noise that is each seed's own as well.
    """
    by_images = by_seeds = 0.0
    for one in estimates:
        shared, own = one.variance_shared, one.variance_images - one.variance_shared
        by_images += float(half_width(own / 2 + one.variance_seeds, shared / 2, one.num_seeds))
        by_seeds += float(half_width((own + one.variance_seeds) / 2, shared, 2 * one.num_seeds))
    return "seeds" if by_seeds < by_images else "images"


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


def _estimate(
    by_seed: Mapping[int, float], of: SeedValues, resampled: Mapping[int, NDArray[np.float64]], level: float
) -> Estimate | None:
    num = len(by_seed)
    if of.num_with_objects == 1:
        # Each resample is that image again, so that everything would seem to be known without any doubt.
        return None
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
        num_images=of.num_images,
        num_with_objects=of.num_with_objects,
        variance_images=float(shared + own),
        variance_seeds=seeds,
        variance_shared=float(shared),
    )
