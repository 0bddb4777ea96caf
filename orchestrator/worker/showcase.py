"""What a training shows of itself in MLflow beside its curves: its data, its machine, and example detections."""

import logging
import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from PIL import Image

from orchestrator.tracking.artifacts import list_files, upload
from orchestrator.tracking.runs import log_input, write

if TYPE_CHECKING:
    import torch

    from model.config import DataConfig
    from model.data.coco import CocoData
    from model.inference.table import DetectionTable
    from model.training.loop import Progress
if TYPE_CHECKING:
    import torch

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
        self._machine, self._background = Machine(device), BackgroundTasks()

    def look(self, progress: "Progress") -> dict[str, float]:
        """Return the metrics of the machine, now and then, and show what a report brings; never waits."""
        if self._read is not None:
            self._background.add("the data as an input of the run", partial(self._name_data, self._read))
            self._read = None
        if progress.validation is not None:
            job = partial(self._show, progress.step, *progress.validation)
            self._background.add(f"example detections at step {progress.step}", job)
        return self._machine.sample()

    def close(self, timeout: float) -> None:
        """Show what is to be shown yet, for `timeout` seconds at most."""
        self._background.close(timeout)

    def _name_data(self, read: "Callable[[], CocoData]") -> None:
        log_input(self._uri, self._run_id, self._dataset, read(), "training")

    def _show(self, step: int, data: "CocoData", detections: "DetectionTable") -> None:
        from orchestrator.figures.pictures import draw_examples

        log_input(self._uri, self._run_id, self._dataset, data, "validation")
        store_picture(self._uri, self._run_id, DETECTIONS, 0, lambda: draw_examples(data, None))
        store_picture(self._uri, self._run_id, DETECTIONS, step, lambda: draw_examples(data, detections))


FOLDER = "images"
PREVIEW = 1024
"""Pixels of the longer side of what the user interface shows first."""


def store_picture(uri: str, run_id: str, key: str, step: int, draw: Callable[[], Image.Image]) -> bool:
    """Draw a picture and store it with a run, unless that has one of this key and step; says whether it did.

    Raises:
        UserError: the server does not take it.
    """
    start = f"{key.replace('/', '~')}+step+{step}+"
    if any(Path(path).name.startswith(start) for path in list_files(uri, run_id, FOLDER)):
        return False
    name = f"{start}timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"
    with tempfile.TemporaryDirectory() as scratch:
        full, small = Path(scratch) / f"{name}.png", Path(scratch) / f"{name}+compressed.webp"
        picture = draw()
        picture.save(full, compress_level=1)
        preview = picture.copy()
        preview.thumbnail((PREVIEW, PREVIEW))
        preview.save(small, quality=85)
        upload(uri, run_id, [small, full], FOLDER)
    write(uri, run_id, tags={"mlflow.loggedImages": "True"})
    return True


logger = logging.getLogger(__name__)
Job = Callable[[], None]


class BackgroundTasks:
    """What is good to have and must cost a training neither time nor life: examples as images, the data's name."""

    def __init__(self, most: int = 4) -> None:
        """Start the background thread.

        Args:
            most: how many jobs may wait; what comes on top is dropped.
        """
        self._jobs: queue.Queue[tuple[str, Job] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="background tasks", daemon=True)
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


INTERVAL = 10.0  # seconds, as MLflow's own monitor has it


class Machine:
    """Samples the CPUs and the memory of the node, and the GPU of this process if it has one."""

    def __init__(self, device: "torch.device", interval: float = INTERVAL) -> None:
        """Begin to count.

        Args:
            device: on which the process trains.
            interval: seconds from one sample to the next.
        """
        self._gpu = device if device.type == "cuda" else None
        self._interval, self._next = interval, 0.0
        psutil.cpu_percent()  # what it returns is the load since the call before

    def sample(self) -> dict[str, float]:
        """Return the metrics if it is time for them, else none."""
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + self._interval
        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": round(memory.used / 1e6, 1),
            "system/system_memory_usage_percentage": memory.percent,
            **self._sample_gpu(),
        }

    def _sample_gpu(self) -> dict[str, float]:
        if self._gpu is None:
            return {}
        try:
            return _gpu(self._gpu)
        except Exception as error:  # a driver that hides its numbers must not end a training
            logger.warning("the GPU is not sampled: %s", error)
            self._gpu = None
            return {}


def _gpu(device: "torch.device") -> dict[str, float]:
    """Return the use of one GPU, which is called the first, as it is to its process."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {
        "system/gpu_0_memory_usage_megabytes": round((total - free) / 1e6, 1),
        "system/gpu_0_memory_usage_percentage": round(100 * (1 - free / total), 1),
        "system/gpu_0_utilization_percentage": torch.cuda.utilization(device),
        "system/gpu_0_power_usage_watts": torch.cuda.power_draw(device) / 1000,
    }
