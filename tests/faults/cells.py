"""The cells of the matrix: which process is struck, and in which moment of a training."""

from dataclasses import dataclass
from typing import Literal, get_args

Fault = Literal["worker", "second worker", "trial", "driver", "interruption", "raylet", "GCS", "MLflow"]
"""What is killed with SIGKILL; an interruption is a SIGINT or a SIGTERM to the driver, and MLflow comes back."""
Moment = Literal["start", "training", "saving", "uploading", "scoring"]
"""Before the first update; in the middle of an epoch; a checkpoint is begun and not committed; its weights are on the
way into MLflow and the training is not recorded as finished; the checkpoint is scored and its numbers are recorded."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
MOMENTS: tuple[Moment, ...] = get_args(Moment)
ENDS_SUBMIT: tuple[Fault, ...] = ("driver", "interruption", "raylet", "GCS")
"""After these `rnc submit` is started again; it gets over the others by itself."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault in one moment."""

    fault: Fault
    moment: Moment

    def __str__(self) -> str:
        return f"{self.fault} in {self.moment}" if self.moment != "start" else f"{self.fault} at the start"


MATRIX = tuple(Cell(fault, moment) for fault in FAULTS for moment in MOMENTS)
JOURNEYS: tuple[tuple[Cell, ...], ...] = (
    (
        Cell("worker", "start"),
        Cell("driver", "saving"),
        Cell("trial", "training"),
        Cell("second worker", "saving"),
        Cell("MLflow", "uploading"),
        Cell("raylet", "scoring"),
    ),
    (
        Cell("interruption", "start"),
        Cell("driver", "training"),
        Cell("worker", "saving"),
        Cell("second worker", "uploading"),
        Cell("trial", "scoring"),
        Cell("GCS", "scoring"),
    ),
)
"""Twelve cells with every fault and every moment among them, those of a journey on one and the same suite.

Raylet and GCS come last: workers go on without them until their driver ends, by when this suite may be complete.
"""
