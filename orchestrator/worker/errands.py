"""Small jobs beside a training, one after the other in the background; one that fails is told, and nothing more."""

import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

Job = Callable[[], None]


class Errands:
    """What is good to have and must cost a training neither time nor life: examples as images, the data's name."""

    def __init__(self, most: int = 4) -> None:
        """Start the background thread.

        Args:
            most: how many jobs may wait; what comes on top is dropped.
        """
        self._jobs: queue.Queue[tuple[str, Job] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="errands", daemon=True)
        self._thread.start()

    def add(self, what: str, job: Job) -> None:
        """Have a job done, some time; never waits."""
        try:
            self._jobs.put_nowait((what, job))
        except queue.Full:
            logger.warning("%s: dropped, as %d jobs before it still wait", what, self._jobs.maxsize)

    def close(self, timeout: float) -> bool:
        """Let the jobs that wait be done, for `timeout` seconds at most, and say whether they were."""
        try:
            self._jobs.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            what, job = entry
            try:
                job()
            except Exception as error:
                logger.warning("%s: dropped, %s", what, error)
