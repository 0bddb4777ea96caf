"""Intervals by hand: of one seed, of several, at any level, and what it takes to narrow them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.report.statistics.intervals import Estimate, Needed, SeedValues, difference, estimate, needed


def numbers(one: Estimate | None) -> tuple[float, float, float]:
    assert one is not None
    return one.value, one.low, one.high


def sample(measured: list[float], resampled: list[NDArray[np.float64]]) -> SeedValues:
    return SeedValues(measured=dict(enumerate(measured)), resampled=dict(enumerate(resampled)))


EVEN = np.arange(1001) / 100.0  # 0 to 10, its mean 5; 2.5 % and 97.5 % of it lie 4.75 below and above


def test_an_interval_is_centred_on_what_was_measured() -> None:
    assert numbers(estimate(sample([30.0], [EVEN]))) == pytest.approx((30.0, 25.25, 34.75))


def test_a_difference_is_of_paired_resamples() -> None:
    """Resamples that move both rows alike leave their difference sure."""
    both = np.random.default_rng(0).normal(scale=9.0, size=1001)
    gain = difference(sample([31.0], [both + EVEN / 10]), sample([30.0], [both]))
    assert numbers(gain) == pytest.approx((1.0, 0.525, 1.475)) and gain is not None and gain.excludes_zero


def test_the_spread_over_seeds_widens_an_interval() -> None:
    """Gains of 1, 2 and 3: std 1, so 4.30265 / sqrt(3) = 2.48414 by seeds, none by images."""
    still = np.full(100, 7.0)
    ours, theirs = sample([31.0, 33.0, 35.0], [still] * 3), sample([30.0, 31.0, 32.0], [still] * 3)
    gain = difference(ours, theirs)
    assert numbers(gain) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-5)
    assert gain is not None and not gain.excludes_zero


def test_seeds_that_one_row_lacks_count_neither_in_the_difference_nor_in_its_interval() -> None:
    still = np.full(100, 7.0)
    ours = sample([31.0, 33.0, 35.0], [still] * 3)
    alone = difference(ours, sample([30.0], [still]))
    assert numbers(alone) == (1.0, 1.0, 1.0) and alone is not None and alone.num_seeds == 1
    shifted = SeedValues(measured={2: 32.0, 1: 31.0, 7: 0.0}, resampled={seed: still for seed in (1, 2, 7)})
    paired = difference(ours, shifted)  # 33 - 31 and 35 - 32: mean 2.5, std 0.7071, 12.706 x 0.5 either way
    assert numbers(paired) == pytest.approx((2.5, 2.5 - 6.353, 2.5 + 6.353), abs=1e-3)
    apart = SeedValues(measured={8: 31.0, 7: 30.0}, resampled={seed: still for seed in (7, 8)})
    unpaired = difference(ours, apart)  # in order of their seeds: 31 - 30 and 33 - 31
    assert numbers(unpaired) == pytest.approx((1.5, 1.5 - 6.353, 1.5 + 6.353), abs=1e-3)


WAVE = np.tile([3.0, -3.0, 1.0, -1.0], 250) * (999 / 5000) ** 0.5  # variance 1
OTHER = np.tile([1.0, -1.0, -3.0, 3.0], 250) * (999 / 5000) ** 0.5  # the same, and its covariance with WAVE is 0


def test_image_noise_counts_once_what_a_seed_has_alone_and_in_full_what_seeds_share() -> None:
    """Gains of 1 and 3: s^2 / S = 2 / 2 = 1. Resamples of variance 5/4 x 4/3 each, and covariance 3/4 x 4/3.

    So C = 1; a seed's own noise is 5/3 - 1, over two seeds 1/3, and seeds make 1 - 1/3. The variance is 1 + 1 = 2, half
    of it scatter of seeds: weight 0.5, and (1.95996 + 0.5 x (12.7062 - 1.95996)) x 2^0.5 = 10.3705.
    """
    noise = [(WAVE + OTHER / 2) * (4 / 3) ** 0.5, (WAVE - OTHER / 2) * (4 / 3) ** 0.5]
    gain = difference(sample([31.0, 34.0], noise), sample([30.0, 31.0], [np.zeros(1000)] * 2))
    assert numbers(gain) == pytest.approx((2.0, 2.0 - 10.3705, 2.0 + 10.3705), abs=1e-4)
    assert gain is not None and (gain.num_seeds, gain.num_images, gain.dominant) == (2, 0, "images")
    parts = gain.variance_images, gain.variance_seeds, gain.variance_shared
    assert parts == pytest.approx((4 / 3, 2 / 3, 1.0))
    assert numbers(estimate(sample([1.0, 3.0], noise))) == pytest.approx(numbers(gain))


def test_an_interval_has_the_level_asked_for() -> None:
    """2.91999 is Student's t of two degrees of freedom at 95 %; of 0 to 10 the middle 80 % is 1 to 9."""
    still = [np.full(100, 7.0)] * 3
    gain = difference(sample([31.0, 33.0, 35.0], still), sample([30.0, 31.0, 32.0], still), level=0.9)
    assert numbers(gain) == pytest.approx((2.0, 2.0 - 2.91999 / 3**0.5, 2.0 + 2.91999 / 3**0.5), abs=1e-5)
    assert numbers(estimate(sample([30.0], [EVEN]), level=0.8)) == pytest.approx((30.0, 26.0, 34.0))


def test_a_metric_without_resamples_has_the_interval_of_its_seeds() -> None:
    """Gains of 1, 2 and 3, as above."""
    ours = SeedValues(measured={0: 31.0, 1: 33.0, 2: 35.0}, resampled={})
    gain = difference(ours, SeedValues(measured={0: 30.0, 1: 31.0, 2: 32.0}, resampled={}))
    assert numbers(gain) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-5)
    assert gain is not None and gain.dominant is None and gain.variance_images == 0.0
    assert difference(ours, SeedValues(measured={0: 30.0}, resampled={})) is None  # one seed alone says nothing


def part(images: float, seeds: float, shared: float, num_seeds: int, num_images: int = 500) -> Estimate:
    return Estimate(
        value=1.0,
        low=-2.0,
        high=4.0,
        num_seeds=num_seeds,
        num_images=num_images,
        variance_images=images,
        variance_seeds=seeds,
        variance_shared=shared,
    )


def test_more_images_or_more_seeds_get_to_a_margin_or_never_do() -> None:
    """One seed, a variance of 1: 1.95996 above and below; for 0.98 it takes four times as many images."""
    assert needed(part(1.0, 0.0, 1.0, 1), 0.98) == Needed(
        images=pytest.approx(2000, rel=0.01),  # type: ignore[arg-type]
        seeds=None,
        num_images=500,
        num_seeds=1,
    )
    # Seeds alone, two of them: a variance of 4.5 of each. Three: 4.303 x (4.5 / 3)^0.5 = 5.27; four: 3.182 x 1.061 =
    # 3.38; five: 2.776 x 0.949 = 2.63; ten: 2.262 x 0.671 = 1.52.
    assert [needed(part(0.0, 2.25, 0.0, 2), margin).seeds for margin in (5.3, -5.2, 3.3, 1.53)] == [3, 4, 5, 10]
    assert needed(part(0.0, 2.25, 0.0, 2), 5.0).images is None
    # No number of seeds takes off what they share, 1.96; and no number of images what two seeds scatter: 12.7 x 0.5.
    assert needed(part(1.0, 0.25, 1.0, 2), 1.9) == Needed(images=None, seeds=None, num_images=500, num_seeds=2)
    assert needed(part(1.0, 0.25, 1.0, 2), 2.1).seeds is not None
    assert needed(part(1.0, 0.25, 1.0, 2), 6.4).images is not None
    assert needed(part(1.0, 0.25, 1.0, 2), 0.0) == Needed(images=None, seeds=None, num_images=500, num_seeds=2)
    assert needed(part(1.0, 0.0, 1.0, 1, num_images=0), 1.0) == Needed(images=None, seeds=None, num_seeds=1)
    assert needed(Estimate(value=1.0, low=0.0, high=2.0), 0.5) == Needed(images=None, seeds=None)
    assert needed(part(1.0, 0.0, 1.0, 3), 50.0) == Needed(
        images=500, seeds=3, num_images=500, num_seeds=3
    )  # as many as there are


def test_without_matches_or_on_other_images_there_is_no_interval() -> None:
    known, unknown = sample([30.0], [EVEN]), SeedValues(measured={0: 30.0}, resampled={})
    assert estimate(unknown) is None and difference(known, unknown) is None and difference(unknown, known) is None
    assert difference(known, sample([30.0], [EVEN[:9]])) is None
    assert estimate(SeedValues(measured={}, resampled={})) is None
