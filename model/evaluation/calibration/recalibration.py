"""Recalibration: a rising function that makes scores say the IoU of their boxes, fitted on the detections of a split.

It leaves the order of scores as it is, so that it moves calibration errors and hardly AP: by isotonic regression where
that gives several scores one value, by a temperature where floats end. What it is fitted on must not be what is scored:
the same images would make it look better than it is.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.foreign import read_json

Floats = NDArray[np.float64]
LEAST, MOST = 0.01, 100.0
"""Temperatures beyond these are not looked for: at the first scores are 0 or 1 in all but name, at the last 0.5."""
CLOSEST = 1e-7
"""Scores nearer to 0 or 1 count as this near, as others have no logit."""
KIND = "recalibration"
"""The key of a file under which it says which of the two it holds."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """One number, by which the logit of a score is divided: sigmoid(logit(s) / T).

    Guo et al., "On calibration of modern neural networks", ICML 2017.
    """

    temperature: float
    """T; above 1 it draws scores towards 0.5."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0.0):
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0")


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A curve through points, straight between them and level beyond; it never falls.

    Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
    """

    scores: tuple[float, ...]
    """[P] rising, none twice."""
    values: tuple[float, ...]
    """[P] what they become, 0 to 1, never falling."""

    def __post_init__(self) -> None:
        scores, values = np.array(self.scores, np.float64), np.array(self.values, np.float64)
        if not len(scores) or len(scores) != len(values):
            raise ValueError(f"scores are {len(scores)} and values {len(values)}, expected as many of both, 1 at least")
        # Written so that NaN is refused, too: it compares as false.
        if not ((np.diff(scores) > 0).all() and np.isfinite(scores).all()):
            raise ValueError("scores do not rise from each to the next")
        if not ((np.diff(values) >= 0).all() and values[0] >= 0.0 and values[-1] <= 1.0):
            raise ValueError("values fall somewhere, or are not from 0 to 1")


Recalibration = Temperature | Isotonic
KINDS: Mapping[str, type[Recalibration]] = {"temperature": Temperature, "isotonic": Isotonic}
"""By their names in a file."""


def recalibrate(scores: NDArray[np.floating[Any]], by: Recalibration) -> Floats:
    """Return scores that say how well boxes lie, [D], in the order of the old ones."""
    if isinstance(by, Isotonic):
        return np.asarray(np.interp(scores, by.scores, by.values), np.float64)
    return _sigmoid(_logits(scores) / by.temperature)


def fit_temperature(scores: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> Temperature:
    """Find the temperature at which the mean cross entropy of scores to targets is least.

    Args:
        scores: [D], 0 to 1.
        targets: [D] the IoU u of each detection with the object that it finds, 0 of a false positive.

    Raises:
        ValueError: there is no detection.
    """
    from scipy.optimize import brentq  # takes a moment to import

    logits, targets = _logits(scores), _checked(scores, targets)

    def slope(inverse: float) -> float:
        """The derivative of the mean cross entropy by 1 / T; it rises, as the cross entropy is convex in that."""
        return float(np.mean((_sigmoid(inverse * logits) - targets) * logits))

    if not logits.any():
        return Temperature(1.0)  # every score is 0.5, whatever the temperature
    if slope(1 / MOST) >= 0.0:
        return Temperature(MOST)
    if slope(1 / LEAST) <= 0.0:
        return Temperature(LEAST)
    return Temperature(1.0 / float(brentq(slope, 1 / MOST, 1 / LEAST, xtol=1e-12, rtol=1e-12)))


def fit_isotonic(scores: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> Isotonic:
    """Find the rising function of the score with the least squared error to the targets: pool adjacent violators.

    Args:
        scores: [D].
        targets: [D], 0 to 1, as in `fit_temperature`.

    Raises:
        ValueError: there is no detection.
    """
    from scipy.optimize import isotonic_regression

    targets = _checked(scores, targets)
    # A function gives equal scores one value, so that they are one point, with the mean of their targets.
    points, inverse, counts = np.unique(np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    means = np.bincount(inverse, targets) / counts
    values = np.clip(isotonic_regression(means, weights=counts).x, 0.0, 1.0)
    # Of points of one value the first and the last are enough.
    is_inner = np.zeros(len(points), np.bool_)
    is_inner[1:-1] = (values[1:-1] == values[:-2]) & (values[1:-1] == values[2:])
    return Isotonic(tuple(points[~is_inner].tolist()), tuple(values[~is_inner].tolist()))


def to_json(recalibration: Recalibration, about: Mapping[str, Any]) -> str:
    """Write as JSON, as `read_recalibration` reads it; `about` says what it was fitted on."""
    (kind,) = (name for name, known in KINDS.items() if isinstance(recalibration, known))
    return json.dumps({KIND: kind, **asdict(recalibration), "about": dict(about)}, ensure_ascii=False, indent=1) + "\n"


def read_recalibration(file: Path) -> Recalibration:
    """Read back a file of what `to_json` wrote.

    Raises:
        ValueError: the file is none of ours, or holds what cannot be.
    """
    try:
        content = read_json(file)
        if not isinstance(content, dict) or content.get(KIND) not in KINDS:
            raise ValueError(f"{KIND} is none of {', '.join(KINDS)}")
        if content[KIND] == "temperature":
            return Temperature(float(content["temperature"]))
        return Isotonic(*(tuple(map(float, content[name])) for name in ("scores", "values")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no recalibration ({error}); fit it again with `rnc sweep --fit`") from error


def _checked(scores: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> Floats:
    if not len(scores):
        raise ValueError("there is no detection to fit a recalibration on")
    if len(scores) != len(targets):
        raise ValueError(f"scores are {len(scores)} and targets {len(targets)}, expected one of each for a detection")
    return np.asarray(targets, np.float64)


def _logits(scores: NDArray[np.floating[Any]]) -> Floats:
    inside = np.clip(np.asarray(scores, np.float64), CLOSEST, 1.0 - CLOSEST)
    return np.log(inside) - np.log1p(-inside)


def _sigmoid(logits: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(logits), np.float64)
