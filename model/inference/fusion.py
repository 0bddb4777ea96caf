"""Score fusion: how class probability and object confidence make the score that ranks a box (Eq. 11, Table 4)."""

import numpy as np
from numpy.typing import NDArray

from model.config import InferenceConfig

Floats = NDArray[np.float32]


def fuse_scores(
    probabilities: Floats, log_probabilities: Floats, log_confidences: Floats | None, config: InferenceConfig
) -> Floats:
    """Score pairs of an anchor and a class by the class and by how well the box should fit: p^(1-e) * c^e, or p * c.

    Args:
        probabilities: [..., K] of the classes.
        log_probabilities: [..., K].
        log_confidences: a shape that broadcasts to it; may be None where `config.needs_confidence` is False.
        config: fusion, exponent, and the object filter: the score is 0 where the confidence does not pass it.

    Returns:
        [..., K] scores in [0, 1], the order in which NMS keeps boxes. Numpy gives an element the same bits wherever it
        stands in an array, which torch's vectors do not.
    """
    scores = probabilities
    if config.score_reads_confidence:
        # p^(1-e) * c^e as exp((1-e) ln p + e ln c), in single precision.
        scores = np.exp(log_scores(log_probabilities, log_confidences, config))
    if log_confidences is not None and config.min_confidence > 0.0:
        scores = scores * (np.exp(log_confidences) > np.float32(config.min_confidence))
    return scores


def log_scores(log_probabilities: Floats, log_confidences: Floats | None, config: InferenceConfig) -> Floats:
    """The logarithm of the score, the object filter aside."""
    of_class, of_confidence = exponents(config)
    total = log_probabilities if of_class == 1.0 else of_class * log_probabilities
    if log_confidences is not None and of_confidence > 0.0:
        total = total + of_confidence * log_confidences
    return total


def exponents(config: InferenceConfig) -> tuple[np.float32, np.float32]:
    """The powers of class probability and confidence in the score."""
    if config.fusion == "product":
        return np.float32(1.0), np.float32(1.0)
    return np.float32(1.0 - config.confidence_exponent), np.float32(config.confidence_exponent)


def sigmoid(logits: Floats) -> Floats:
    """The probability; below -80 as if at -80, so that its logarithm is finite."""
    probabilities: Floats = np.reciprocal(1 + np.exp(-np.maximum(logits, np.float32(-80.0))))
    return probabilities
