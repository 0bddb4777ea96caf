"""Refuses outputs of a network that are NaN or infinite, before anything ranks boxes by them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.anchors import FIRST_LEVEL
from model.network.retinanet import Predictions, RetinaNetConf

PARTS = ("class_logits", "box_deltas", "confidence_logits")
"""The outputs, in the order in which `are_finite` looks at them."""


class NonFiniteError(ValueError):
    """Outputs of a network, or the weights that they come from, are NaN or infinite."""


def require_finite_outputs(detector: RetinaNetConf, predictions: Predictions) -> None:
    """Refuse raw outputs with NaN or infinity among them. On a GPU the host waits for the answer.

    Raises:
        NonFiniteError: names the checkpoint, the output, its level, and the likely cause.
    """
    levels = [getattr(predictions, part) for part in PARTS]
    if are_finite([level for part in levels if part is not None for level in part]).all():
        return
    for part, maps in zip(PARTS, levels, strict=True):
        for place, level in enumerate(maps or ()):
            if wrong := int((~level.isfinite()).sum()):
                what = f"{part} of level P{FIRST_LEVEL + place} are NaN or infinite in {wrong:,} of {level.numel():,}"
                raise refusal(detector, f"{what} numbers")


def are_finite(outputs: Sequence[Tensor]) -> Tensor:
    """[len(outputs)] whether all numbers of each are finite, on their device, without waiting for it.

    The least and the greatest of all numbers tell, in one look at the memory and without a copy of it: both are NaN
    where one number is.
    """
    bounds = [bound.float() for output in outputs for bound in torch.aminmax(output)]
    return torch.stack(bounds).isfinite().view(-1, 2).all(dim=1)


def refusal(detector: RetinaNetConf, what: str) -> NonFiniteError:
    """Say in one line which outputs are not finite, whether the weights are, and what to do."""
    said = f"{detector.source}: {what}"
    bad = [name for name, tensor in detector.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        return NonFiniteError(
            f"{said}, as are {len(bad)} of its tensors of weights, first {bad[0]}: the training diverged, or the file "
            "is damaged; take an earlier checkpoint, or train again with a lower train.schedule.learning_rate"
        )
    return NonFiniteError(
        f"{said}, though all of its weights are finite: they are so large that the numbers overflow; take an earlier "
        "checkpoint, or train again with a lower train.schedule.learning_rate"
    )
