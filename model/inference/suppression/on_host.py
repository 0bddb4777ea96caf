"""Suppression of a batch on the host, for kinds that the accelerator has no kernel for: image by image, compiled."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.inference.suppression.kinds import NEEDS_ALL, Ranked, Survivors, sort_candidates, survivors

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
SCORE, CONFIDENCE, BOX = 0, 2, slice(3, 7)
"""Columns among the floats of a candidate."""
Lists = tuple[Ints, Ints]
"""Rows [B, S, D, 9] as in `batched.Kept`, and how many of the D there are, [B, S]."""


def suppress_candidates(
    values: Ints, count: Ints, complete: NDArray[np.bool_], settings: Sequence[InferenceConfig], num_classes: int
) -> tuple[Lists, Lists] | None:
    """What is kept of the candidates of B images under S settings, and which of them dropped others.

    Args:
        values: [B, S, C, 9] the best candidates, as in `batched.Candidates`.
        count: [B, S] how many of the C there are.
        complete: [B, S] whether there are no others.
        settings: [S] of any kind of suppression but `nms`.
        num_classes: K.

    Returns:
        The same rows of those kept, best first, their scores and boxes as they are in the end; and of those that
        dropped others, with what put them in order in the place of the score. None where more have to be seen.
    """
    if any(config.suppression in NEEDS_ALL and not complete[:, place].all() for place, config in enumerate(settings)):
        return None  # before any is ranked in vain
    kept: list[Ints] = []
    droppers: list[Ints] = []
    for image in range(values.shape[0]):
        for setting, config in enumerate(settings):
            rows = values[image, setting, : count[image, setting]]
            floats = np.ascontiguousarray(rows[:, 2:]).view(np.float32)
            order, ranked = _rank(rows, floats, bool(complete[image, setting]), num_classes)
            found = survivors(ranked, config)
            if found is None:
                return None
            one, other = _rows(rows, floats, order, found)
            kept.append(one)
            droppers.append(other)
    shape = values.shape[:2]
    return _padded(kept, shape), _padded(droppers, shape)


def _rank(rows: Ints, floats: Floats, complete: bool, num_classes: int) -> tuple[NDArray[np.int64], Ranked]:
    """The candidates of one image, by their places in `rows`, and these."""
    # As many numbers as there are anchors, so that those of pairs fit the lower half of a key.
    _, places = np.unique(rows[:, 0], return_inverse=True)
    scores = floats[:, SCORE]
    return sort_candidates(
        scores,
        places.astype(np.int64),
        rows[:, 1].astype(np.int64),
        np.ascontiguousarray(floats[:, BOX]),
        np.ascontiguousarray(floats[:, CONFIDENCE]),
        num_classes,
        # Those that were not sent may score as much as the last that was.
        None if complete or not len(scores) else scores.min(),
    )


def _rows(rows: Ints, floats: Floats, order: NDArray[np.int64], found: Survivors) -> tuple[Ints, Ints]:
    """Those that are kept, and those that dropped others."""
    kept, droppers = order[found.places], order[found.droppers]
    of_kept, of_droppers = floats[kept], floats[droppers]
    of_kept[:, SCORE], of_kept[:, BOX], of_droppers[:, SCORE] = found.scores, found.boxes, found.ranks
    return (
        np.concatenate([rows[kept, :2], of_kept.view(np.int32)], axis=1),
        np.concatenate([rows[droppers, :2], of_droppers.view(np.int32)], axis=1),
    )


def _padded(lists: Sequence[Ints], shape: Sequence[int]) -> Lists:
    count = np.array([len(one) for one in lists], np.int32)
    values = np.zeros((len(lists), int(count.max(initial=0)), 9), np.int32)
    for place, one in enumerate(lists):
        values[place, : len(one)] = one
    return values.reshape(*shape, -1, 9) if values.size else np.zeros((*shape, 0, 9), np.int32), count.reshape(shape)
