"""What a training shows of itself in MLflow beside its curves: its data, its machine, and example detections."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.tracking.inputs import log_input
from orchestrator.worker.errands import Errands
from orchestrator.worker.machine import Machine
from orchestrator.worker.pictures import store_picture

if TYPE_CHECKING:
    import torch

    from model.config import DataConfig
    from model.data.coco import CocoData
    from model.inference.table import DetectionTable
    from model.training.loop import Progress

DETECTIONS = "val/detections"


class Showcase:
    """Shows a run from the background; where MLflow is away, something is not shown, and nothing else happens."""

    def __init__(
        self, uri: str, run_id: str, config: "DataConfig", read: "Callable[[], CocoData]", device: "torch.device"
    ) -> None:
        """Begin.

        Args:
            uri: of the server.
            run_id: of the training's run.
            config: of the data.
            read: gives the images that are trained on; called once the training has read them itself.
            device: on which the process trains.
        """
        self._uri, self._run_id, self._dataset = uri, run_id, config.dataset
        self._read: Callable[[], CocoData] | None = read
        self._machine, self._errands = Machine(device), Errands()

    def look(self, progress: "Progress") -> dict[str, float]:
        """Return the metrics of the machine, now and then, and show what a report brings; never waits."""
        if self._read is not None:
            self._errands.add("the data as an input of the run", partial(self._name_data, self._read))
            self._read = None
        if progress.validation is not None:
            job = partial(self._show, progress.step, *progress.validation)
            self._errands.add(f"example detections at step {progress.step}", job)
        return self._machine.sample()

    def close(self, timeout: float) -> None:
        """Show what is to be shown yet, for `timeout` seconds at most."""
        self._errands.close(timeout)

    def _name_data(self, read: "Callable[[], CocoData]") -> None:
        log_input(self._uri, self._run_id, self._dataset, read(), "training")

    def _show(self, step: int, data: "CocoData", detections: "DetectionTable") -> None:
        from orchestrator.figures.examples import draw_examples

        log_input(self._uri, self._run_id, self._dataset, data, "validation")
        store_picture(self._uri, self._run_id, DETECTIONS, 0, lambda: draw_examples(data, None))
        store_picture(self._uri, self._run_id, DETECTIONS, step, lambda: draw_examples(data, detections))
