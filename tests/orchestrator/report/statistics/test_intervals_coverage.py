"""How often an interval holds the truth: drawn seeds and images of known variance, 8,000 experiments of each kind.

Shows its tables with `python -m pytest -s tests/orchestrator/report/statistics/test_intervals_coverage.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t

from orchestrator.report.statistics.intervals import SeedValues, difference, half_width, image_variances
from orchestrator.report.statistics.resamples import resample

NUM_EXPERIMENTS, NUM_IMAGES = 8000, 200
SEEDS = (1, 2, 3, 4, 5)
EFFECTS = np.array([0.0, 0.25, 0.5, 1.0])
"""True differences, in points; the experiments take them in turn."""
MIXTURES = {
    # Variances in points squared: image noise that seeds share, that is each seed's own, and seeds themselves.
    "images, shared": (0.20, 0.01, 0.005),
    "images, own": (0.04, 0.20, 0.02),
    "balanced": (0.10, 0.10, 0.10),
    "seeds and images": (0.05, 0.05, 0.30),
    "seeds": (0.01, 0.01, 0.50),
}
ERROR = 3 * (0.95 * 0.05 / NUM_EXPERIMENTS) ** 0.5
"""Of a coverage that is found, by simulation alone: 0.7 %."""
Floats = NDArray[np.floating[Any]]
Method = Callable[[Floats, Floats], Floats]
"""Half-widths, [N], by the differences that were measured, [N, S], and resampled, [N, S, resamples]."""


@dataclass(frozen=True)
class Experiments:
    """Differences of two rows as they are measured, on S seeds and the same images."""

    truth: Floats
    """[N]; of one seed that of its two trainings, as nothing is said of others."""
    measured: Floats
    """[N, S]."""
    resampled: Floats
    """[N, S, resamples]."""


def draw(mixture: str, num_seeds: int) -> Experiments:
    """Draw experiments; a seed's difference is the effect, its own shift, and the mean of what each image brings."""
    generator = np.random.default_rng([list(MIXTURES).index(mixture), num_seeds])
    shared, own, seeds = np.sqrt(MIXTURES[mixture])
    effect = np.resize(EFFECTS, NUM_EXPERIMENTS)
    shift = seeds * generator.standard_normal((NUM_EXPERIMENTS, num_seeds))
    # Most images bring little and some much, as images do: Laplace's distribution, of variance 2.
    brought = np.zeros((NUM_EXPERIMENTS, num_seeds, NUM_IMAGES), np.float32)
    for share, count in ((shared, 1), (own, num_seeds)):
        drawn = generator.exponential(size=(NUM_EXPERIMENTS, count, NUM_IMAGES))
        drawn -= generator.exponential(size=drawn.shape)
        brought += share * (NUM_IMAGES / 2) ** 0.5 * drawn
    measured = effect[:, None] + shift + brought.mean(axis=-1)
    weights = resample(NUM_IMAGES, 1000 if num_seeds == 1 else 200) / NUM_IMAGES
    truth = effect + shift[:, 0] if num_seeds == 1 else effect
    return Experiments(truth, measured, (brought @ weights + (effect[:, None] + shift)[..., None]).astype(np.float64))


def ours(measured: Floats, resampled: Floats) -> Floats:
    shared, _ = image_variances(resampled)
    return half_width(scatter(measured), shared, measured.shape[1])


def quadrature(measured: Floats, resampled: Floats) -> Floats:
    """What was done before: Student's t of the seeds beside all image noise of the mean, which counts `own` twice."""
    images, num = resampled.mean(axis=1).var(axis=-1, ddof=1), measured.shape[1]
    return np.hypot(t.ppf(0.975, num - 1) * np.sqrt(scatter(measured)), norm.ppf(0.975) * np.sqrt(images))


def hillis(measured: Floats, resampled: Floats) -> Floats:
    """The degrees of freedom of Hillis (2007)."""
    shared, seeds = image_variances(resampled)[0], scatter(measured)
    freedom = ((seeds + shared) / seeds) ** 2 * (measured.shape[1] - 1)
    wide: Floats = t.ppf(0.975, freedom) * np.sqrt(seeds + shared)
    return wide


def normal(measured: Floats, resampled: Floats) -> Floats:
    """As if the scatter of a few seeds were known for sure."""
    wide: Floats = norm.ppf(0.975) * np.sqrt(scatter(measured) + image_variances(resampled)[0])
    return wide


def scatter(measured: Floats) -> Floats:
    variance: Floats = measured.var(axis=1, ddof=1) / measured.shape[1]
    return variance


METHODS: dict[str, Method] = {"ours": ours, "quadrature": quadrature, "Hillis": hillis, "normal": normal}


@cache
def simulate(mixture: str, num_seeds: int) -> dict[str, tuple[NDArray[np.bool_], float]]:
    """By method which experiments' intervals hold the truth, and the mean half-width; last of known variances."""
    drawn = draw(mixture, num_seeds)
    shared, own, seeds = MIXTURES[mixture]
    known = shared + (own if num_seeds == 1 else (own + seeds) / num_seeds)
    found = {}
    if num_seeds == 1:
        pairs = zip(drawn.measured[:, 0], drawn.resampled[:, 0], strict=True)
        gains = [difference(one(*pair), one(0.0, np.zeros(1000))) for pair in pairs]
        ends = np.array([(gain.low, gain.high) for gain in gains if gain is not None])
        holds = (ends[:, 0] <= drawn.truth) & (drawn.truth <= ends[:, 1])
        found["ours"] = holds, float(np.diff(ends).mean() / 2)
    else:
        distance = np.abs(drawn.measured.mean(axis=1) - drawn.truth)
        for name, method in METHODS.items():
            wide = method(drawn.measured, drawn.resampled)
            found[name] = distance <= wide, float(wide.mean())
    return found | {"known": (np.ones(1, bool), norm.ppf(0.975) * known**0.5)}


def one(measured: float, resampled: NDArray[np.float64]) -> SeedValues:
    return SeedValues(measured={0: measured}, resampled={0: resampled})


def lines() -> Iterator[str]:
    yield f"{'coverage in %, mean half-width':<32}" + "".join(f"{name:>16}" for name in [*METHODS, "known"])
    for mixture in MIXTURES:
        for num in SEEDS:
            found = simulate(mixture, num)
            shown = [
                f"{100 * found[name][0].mean():.1f} ±{found[name][1]:.2f}" if name in found else "" for name in METHODS
            ]
            cells = "".join(f"{cell:>16}" for cell in [*shown, f"±{found['known'][1]:.2f}"])
            yield f"{mixture:<20}{num} seed{'s' if num > 1 else ' '}     {cells}"
    for place, effect in enumerate(EFFECTS):
        holds = [simulate(mixture, num)["ours"][0][place :: len(EFFECTS)] for mixture in MIXTURES for num in SEEDS]
        yield f"an effect of {effect:.2f} points: {100 * np.mean(holds):.2f} % by ours, over all of these"


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    print("", *lines(), sep="\n")
    found = {(mixture, num): simulate(mixture, num)["ours"][0] for mixture in MIXTURES for num in SEEDS}
    covered = {case: float(holds.mean()) for case, holds in found.items()}
    assert all(0.93 - ERROR < share < 0.97 + ERROR for share in covered.values()), covered
    for place, effect in enumerate(EFFECTS):
        by_effect = np.mean([holds[place :: len(EFFECTS)] for holds in found.values()])
        assert 0.94 < by_effect < 0.97, effect


def test_ways_that_are_wrong_are_seen_to_be() -> None:
    covered = {
        name: [simulate(mixture, num)[name][0].mean() for mixture in MIXTURES for num in SEEDS[1:]] for name in METHODS
    }
    assert max(covered["quadrature"]) > 0.97 + ERROR
    assert min(covered["Hillis"]) < 0.93 - ERROR
    assert min(covered["normal"]) < 0.93 - ERROR


def test_what_is_simulated_is_what_a_report_computes() -> None:
    drawn = draw("balanced", 3)
    for measured, resampled in zip(drawn.measured[:5], drawn.resampled[:5], strict=True):
        theirs = {seed: np.zeros(200) for seed in range(3)}
        values = SeedValues(measured=dict(enumerate(measured)), resampled=dict(enumerate(resampled)), num_images=200)
        gain = difference(values, SeedValues(measured=dict.fromkeys(range(3), 0.0), resampled=theirs))
        assert gain is not None
        assert (gain.high - gain.low) / 2 == pytest.approx(ours(measured[None], resampled[None])[0])


def test_the_parts_of_the_variance_are_found() -> None:
    for mixture, (shared, own, seeds) in MIXTURES.items():
        drawn = draw(mixture, 5)
        found = [float(part.mean()) for part in image_variances(drawn.resampled)]
        assert found == pytest.approx([shared, own / 5], rel=0.1, abs=0.002)
        assert scatter(drawn.measured).mean() == pytest.approx((own + seeds) / 5, rel=0.05)
