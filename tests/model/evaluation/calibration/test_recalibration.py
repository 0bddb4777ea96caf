"""Temperature and isotonic regression: optima that are known by hand, scikit-learn as judge, and their files."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.calibration.recalibration import (
    LEAST,
    MOST,
    Isotonic,
    Recalibration,
    Temperature,
    fit_isotonic,
    fit_temperature,
    read_recalibration,
    recalibrate,
    to_json,
)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def cross_entropy(scores: np.ndarray, targets: np.ndarray) -> float:
    return float(-(targets * np.log(scores) + (1 - targets) * np.log1p(-scores)).mean())


def noisy(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that say too much, as detectors' do: most targets are 0, the others rise with the score."""
    generator = np.random.default_rng(0)
    scores = generator.beta(0.6, 2.0, count)
    found = generator.random(count) < 0.8 * scores
    targets = np.where(found, np.clip(0.5 + 0.4 * scores + generator.normal(0, 0.1, count), 0.5, 1.0), 0.0)
    return scores.astype(np.float32), targets


def test_the_temperature_of_targets_that_are_the_scores_is_1() -> None:
    scores = np.array([0.1, 0.3, 0.6, 0.9])
    assert fit_temperature(scores, scores).temperature == pytest.approx(1.0, abs=1e-9)


def test_the_temperature_of_one_logit_is_what_makes_its_score_the_mean_target() -> None:
    # By hand: at logit 4 and targets whose mean is sigmoid(1), the least cross entropy is where 4 / T = 1.
    mean = sigmoid(1.0)
    scores = np.array([sigmoid(4.0)] * 2)
    assert fit_temperature(scores, np.array([mean - 0.2, mean + 0.2])).temperature == pytest.approx(4.0, rel=1e-9)


def test_the_temperature_is_a_minimum_of_the_cross_entropy() -> None:
    scores, targets = noisy(5000)
    best = fit_temperature(scores, targets).temperature
    costs = [cross_entropy(recalibrate(scores, Temperature(best * by)), targets) for by in (0.98, 1.0, 1.02)]
    assert min(costs) == costs[1] < cross_entropy(scores.astype(np.float64), targets) - 1e-4


def test_scores_without_an_optimum_get_the_outermost_temperature() -> None:
    scores = np.array([0.2, 0.8])
    assert fit_temperature(scores, np.array([0.0, 1.0])).temperature == LEAST  # the surer the better
    assert fit_temperature(scores, np.array([1.0, 0.0])).temperature == MOST  # all but 0.5: never the other way round
    assert fit_temperature(np.array([0.5, 0.5]), np.array([0.1, 0.2])).temperature == 1.0  # none of them does anything


def test_scores_of_0_and_1_have_a_temperature_and_stay_in_order() -> None:
    scores = np.array([0.0, 0.4, 1.0])
    found = recalibrate(scores, fit_temperature(scores, np.array([0.0, 0.1, 0.9])))
    assert np.isfinite(found).all() and (np.diff(found) > 0).all()


def test_pool_adjacent_violators_by_hand() -> None:
    scores = np.array([0.6, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7])
    targets = np.array([0.9, 0.2, 0.6, 0.4, 0.5, 0.1, 0.8])
    # By score 0.2 | 0.6 0.4 0.5 0.1 | 0.9 0.8: the violators pool to 1.6 / 4 = 0.4 and 1.7 / 2 = 0.85.
    fitted = fit_isotonic(scores, targets)
    assert fitted.scores == pytest.approx((0.1, 0.2, 0.5, 0.6, 0.7))
    assert fitted.values == pytest.approx((0.2, 0.4, 0.4, 0.85, 0.85))
    # Level beyond its ends and within a pool, straight in between.
    given = np.array([0.0, 0.15, 0.3, 0.55, 1.0])
    np.testing.assert_allclose(recalibrate(given, fitted), [0.2, 0.3, 0.4, 0.625, 0.85])


def test_equal_scores_are_one_point_with_the_weight_of_all() -> None:
    # 0.5 has mean 0.6 of three, 0.7 has 0.2 of one: pooled (3 * 0.6 + 0.2) / 4 = 0.5.
    fitted = fit_isotonic(np.array([0.5, 0.5, 0.5, 0.7]), np.array([0.3, 0.6, 0.9, 0.2]))
    assert fitted.values == pytest.approx((0.5, 0.5))
    alone = fit_isotonic(np.array([0.3, 0.3]), np.array([0.0, 1.0]))
    assert (alone.scores, alone.values) == ((0.3,), (0.5,))
    assert recalibrate(np.array([0.0, 1.0]), alone).tolist() == [0.5, 0.5]


def test_scikit_learn_fits_the_same_function() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    scores, targets = noisy(3000)
    scores = np.round(scores, 2)  # so that many are equal
    judge = isotonic.IsotonicRegression(out_of_bounds="clip").fit(scores.astype(np.float64), targets)
    given = np.linspace(0.0, 1.0, 777)
    fitted = fit_isotonic(scores, targets)
    np.testing.assert_allclose(recalibrate(given, fitted), judge.predict(given), atol=1e-9)
    assert len(fitted.scores) < len(np.unique(scores))


def test_scikit_learn_finds_the_same_temperature() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    scores, targets = noisy(3000)
    wide = scores.astype(np.float64)
    logits = np.log(wide / (1 - wide))
    # Cross entropy to a soft target is that to 1, weighted by it, and to 0, weighted by the rest.
    judge = linear.LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    labels, weights = np.repeat([1, 0], len(wide)), np.concatenate([targets, 1 - targets])
    judge.fit(np.tile(logits, 2)[:, None], labels, sample_weight=weights)
    assert fit_temperature(scores, targets).temperature == pytest.approx(1 / judge.coef_.item(), rel=1e-4)


@pytest.mark.parametrize("fit", [fit_temperature, fit_isotonic])
def test_nothing_can_be_fitted_on_no_detection_or_on_half_of_them(fit: object) -> None:
    with pytest.raises(ValueError, match="there is no detection to fit"):
        fit(np.zeros(0), np.zeros(0))  # type: ignore[operator]
    with pytest.raises(ValueError, match="scores are 2 and targets 1"):
        fit(np.zeros(2), np.zeros(1))  # type: ignore[operator]


@pytest.mark.parametrize("fitted", [Temperature(1.7), Isotonic((0.1, 0.2), (0.0, 1 / 3))])
def test_a_recalibration_survives_as_json(fitted: Recalibration, tmp_path: Path) -> None:
    file = tmp_path / "fitted.json"
    file.write_text(to_json(fitted, {"split": "val"}))
    assert read_recalibration(file) == fitted
    assert json.loads(file.read_text())["about"] == {"split": "val"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting"),
        ("[]", "recalibration is none of temperature, isotonic"),
        ('{"recalibration": "platt"}', "none of temperature"),
        ('{"recalibration": "temperature"}', "temperature"),
        ('{"recalibration": "temperature", "temperature": 0}', "expected a number above 0"),
        ('{"recalibration": "temperature", "temperature": NaN}', "expected a number above 0"),
        ('{"recalibration": "isotonic", "scores": [], "values": []}', "1 at least"),
        ('{"recalibration": "isotonic", "scores": [0.1, 0.1], "values": [0, 1]}', "do not rise"),
        ('{"recalibration": "isotonic", "scores": [0.1, NaN], "values": [0, 1]}', "do not rise"),
        ('{"recalibration": "isotonic", "scores": [0.1, 0.2], "values": [0.5, 0.4]}', "fall somewhere"),
        ('{"recalibration": "isotonic", "scores": [0.1, 0.2], "values": [0.5, 1.4]}', "not from 0 to 1"),
    ],
)
def test_a_file_that_holds_none_is_told_by_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "fitted.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"fitted\.json holds no recalibration") as told:
        read_recalibration(file)
    assert said in str(told.value)
