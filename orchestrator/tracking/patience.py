"""Waits for a tracking server that is away, or that has lost a run which the driver opens again."""

import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.errors import UserError
from orchestrator.tracking.rest import Refused, ServerAway

PATIENCE_SECONDS = 1200.0
"""Well below the 30 minutes for which the other workers of a training wait in a collective call."""
LONGEST_PAUSE = 10.0

T = TypeVar("T")


def patiently(action: Callable[[], T], seconds: float | None = None) -> T:
    """Do something again and again until the server takes it.

    Args:
        action: may be done twice; it has to ask for the run each time.
        seconds: how long, instead of PATIENCE_SECONDS.

    Raises:
        UserError: the server refuses it for good, or did not answer in time.
    """
    seconds = PATIENCE_SECONDS if seconds is None else seconds
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return action()
        except UserError as error:
            if not _may_pass(error):
                raise
            if time.monotonic() + pause > deadline:
                raise UserError(given_up(seconds, error)) from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def given_up(seconds: float, reason: object) -> str:
    """Say that the server was waited for in vain, and what that means."""
    return (
        f"MLflow took no record for {seconds / 60:.0f} minutes ({reason}); the checkpoints stay, and the next submit "
        "records them without training again"
    )


def _may_pass(error: UserError) -> bool:
    return isinstance(error, ServerAway) or (isinstance(error, Refused) and (error.may_pass or error.is_gone))
