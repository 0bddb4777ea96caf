"""The runs of a suite as they are now: read as a whole once, and then only what runs, began or ended since."""

import threading
import time
from collections.abc import Sequence

from orchestrator.experiment.plan import Ledger, Record
from orchestrator.tracking.records import ledger_of
from orchestrator.tracking.runs import Run, Tracking, now, read_changes, read_runs

MARGIN_MS = 120_000
"""By so much the clocks of two machines may differ: whoever begins or ends a run says when."""
WHOLE_SHARE = 0.01
"""Of the time, for reading all again: what somebody deletes or tags by hand is no run that began or ended."""
GOES_ON = ("RUNNING", "SCHEDULED")


class LiveRuns:
    """Keeps the runs of a suite, for who looks at them every few seconds."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._tracking: Tracking | None = None
        self._runs: dict[str, Run] = {}
        self._records: dict[str, tuple[Run, Record]] = {}
        self._asked = 0
        self._whole_again = 0.0
        self._lock = threading.Lock()  # the last look of a submit may meet one that is late

    def ledger(self, tracking: Tracking) -> Ledger:
        """Return what the runs hold by now; see `look`."""
        return self.ledger_of(self.look(tracking))

    def ledger_of(self, runs: Sequence[Run]) -> Ledger:
        """Return what the runs of a look hold; those that are as they were at the look before are not read again."""
        return ledger_of(runs, self._records)

    def look(self, tracking: Tracking) -> list[Run]:
        """Return the runs of all kinds, newest first; those that had ended before the last look are as they were then.

        Raises:
            UserError: the server does not answer; the next look goes on from the last that was answered.
        """
        with self._lock:
            began, asked = time.monotonic(), now()
            if tracking != self._tracking or began > self._whole_again or not self._follow(tracking):
                self._runs = {run.run_id: run for run in read_runs(tracking)}
                self._tracking = tracking
                ended = time.monotonic()
                self._whole_again = ended + (ended - began) / WHOLE_SHARE
                self._records.clear()
            self._asked = asked
            return sorted(self._runs.values(), key=lambda run: (-run.start_time, run.run_id))

    def _follow(self, tracking: Tracking) -> bool:
        """Take in what changed, and say whether that is all: a run that went on and is gone was deleted, or is hidden
        by a clock that is far off."""
        changed = {run.run_id: run for run in read_changes(tracking, self._asked - MARGIN_MS)}
        if any(run.status in GOES_ON and run_id not in changed for run_id, run in self._runs.items()):
            return False
        self._runs |= changed
        return True
