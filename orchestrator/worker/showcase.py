"""What a training's run shows in MLflow beside its curves: its data, example detections, and the load of its machine.

All of it is good to have and may cost a training neither time nor life: uploads run in a background thread, and one
that fails is a warning. What is to be shown lies in the training's folder until it is: after a killed process, or a
server that was away, the next start of the training or the next submit shows it.
"""

import functools
import logging
import queue
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from PIL import Image

from model.names import VAL
from orchestrator.tracking.artifacts import list_files, upload
from orchestrator.tracking.runs import Context, log_input, write

if TYPE_CHECKING:
    import torch

    from model.config import DataConfig
    from model.data.split import CocoData
    from model.inference.table import DetectionTable
    from model.training.loop import Progress

DETECTIONS = f"{VAL}detections"
"""Under which name MLflow shows the pictures of a validation, with a slider over their steps."""
WAITING = "pictures"
"""The folder, in a training's folder, of detections whose pictures MLflow does not have yet."""
IMAGES_FOLDER = "images"
"""Where MLflow's own log_image puts pictures, among the files of a run."""
PREVIEW_SIZE = 1024
"""Pixels of the longer side of the small copy that MLflow's pages show first."""
SAMPLE_SECONDS = 10.0
"""From one sample of the machine to the next, as in MLflow's own monitor."""
MAX_WAITING = 4
"""Tasks that may wait for the background thread; what comes on top is dropped."""

logger = logging.getLogger(__name__)


class Showcase:
    """Sends data, pictures and the machine's load of a training to its run; what fails is left out with a warning."""

    def __init__(
        self,
        uri: str,
        run_id: str,
        config: "DataConfig",
        read: "Callable[[], CocoData]",
        device: "torch.device",
        folder: Path,
    ) -> None:
        """Begin.

        Args:
            uri: of the server.
            run_id: of the training's run.
            config: of the data.
            read: gives the images that are trained on; called once the training has read them itself.
            device: on which the process trains.
            folder: of the training, which keeps what is not shown yet.
        """
        self._uri, self._run_id, self._dataset, self._folder = uri, run_id, config.dataset, folder
        self._read: Callable[[], CocoData] | None = read
        self._metrics, self._background = SystemMetrics(device), BackgroundTasks()

    def look(self, progress: "Progress") -> dict[str, float]:
        """Show what a report of the training brings, and return the load of the machine now and then; never waits."""
        if self._read is not None:
            read, self._read = self._read, None
            # Not earlier: the training has filled the cache of the data by now, so that reading it again is cheap.
            self._background.add("the data as an input of the run", lambda: self._log_data(read(), "training"))
        if progress.validation is not None:
            data, detections = progress.validation
            # At once, and so before the checkpoint, after which nobody would make this validation again.
            keep_examples(self._folder, progress.step, data, detections)
            self._background.add(f"example detections at step {progress.step}", lambda: self._show(data))
        return self._metrics.sample()

    def close(self, timeout: float) -> None:
        """Show what is to be shown yet, for `timeout` seconds at most."""
        self._background.close(timeout)

    def _log_data(self, data: "CocoData", context: Context) -> None:
        log_input(self._uri, self._run_id, self._dataset, data, context)

    def _show(self, data: "CocoData") -> None:
        show_examples(self._uri, self._run_id, self._dataset, self._folder, data)


def waiting_examples(folder: Path) -> list[Path]:
    """Return the files of a training's folder that hold detections which MLflow does not show yet, oldest first."""
    return sorted((folder / WAITING).glob("*.npz"))


def keep_examples(folder: Path, step: int, data: "CocoData", detections: "DetectionTable") -> None:
    """Write what was detected on the example images of a validation, some KB, to the folder of its training."""
    from orchestrator.figures.pictures import example_indices

    file = folder / WAITING / f"{step:09d}.npz"
    try:
        shown = detections.take(np.isin(detections.image_ids, data.image_ids[example_indices(data)]))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".new").open("wb") as draft:
            np.savez(draft, **{name: getattr(shown, name) for name in shown.types})
        file.with_suffix(".new").replace(file)
    except Exception as error:  # a full disk, say
        logger.warning("example detections at step %d: dropped, %s", step, error)


def show_examples(uri: str, run_id: str, dataset: str, folder: Path, data: "CocoData") -> int:
    """Draw and store what waits in a training's folder, and return how many validations that were.

    Args:
        uri: of the server.
        run_id: of the training's run.
        dataset: the name of the data.
        folder: of the training.
        data: the images of its validations.

    Raises:
        UserError: the server does not take it; what was not stored waits on.
    """
    from model.inference.table import DetectionTable
    from orchestrator.figures.pictures import draw_examples

    waiting = waiting_examples(folder)
    if waiting:
        log_input(uri, run_id, dataset, data, "validation")
        # Step 0, where nothing is detected yet, shows the ground truth.
        store_picture(uri, run_id, DETECTIONS, 0, lambda: draw_examples(data, None))
    for file in waiting:
        try:
            with np.load(file) as columns:
                detections = DetectionTable(**{name: columns[name] for name in DetectionTable.types})
            step = int(file.stem)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s: dropped, %s", file, error)
        else:
            store_picture(uri, run_id, DETECTIONS, step, functools.partial(draw_examples, data, detections))
        file.unlink(missing_ok=True)
    return len(waiting)


def store_picture(uri: str, run_id: str, key: str, step: int, draw: Callable[[], Image.Image]) -> bool:
    """Draw a picture and store it with a run, unless that has one of this key and step; says whether it did.

    Raises:
        UserError: the server does not take it.
    """
    # The names, the preview and the tag are those of mlflow.log_image, by which MLflow's pages find a run's pictures;
    # log_image itself would store a step again that a resumed training comes by twice.
    start = f"{key.replace('/', '~')}+step+{step}+"
    if any(Path(path).name.startswith(start) for path in list_files(uri, run_id, IMAGES_FOLDER)):
        return False
    name = f"{start}timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"
    with tempfile.TemporaryDirectory() as scratch:
        full, small = Path(scratch) / f"{name}.png", Path(scratch) / f"{name}+compressed.webp"
        picture = draw()
        picture.save(full, compress_level=1)
        preview = picture.copy()
        preview.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
        preview.save(small, quality=85)
        upload(uri, run_id, [small, full], IMAGES_FOLDER)
    write(uri, run_id, tags={"mlflow.loggedImages": "True"})
    return True


class BackgroundTasks:
    """A thread that runs one task after the other; one that fails is told in a warning."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        """Start the thread; of the tasks that wait for it, more than `max_waiting` are dropped."""
        self._waiting: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue(max_waiting)
        # A daemon, so that an upload that hangs does not keep a worker's process alive.
        self._thread = threading.Thread(target=self._run, name="background tasks", daemon=True)
        self._thread.start()

    def add(self, name: str, task: Callable[[], None]) -> None:
        """Have a task run, some time; never waits."""
        try:
            self._waiting.put_nowait((name, task))
        except queue.Full:
            logger.warning("%s: dropped, as %d tasks before it still wait", name, self._waiting.maxsize)

    def close(self, timeout: float) -> bool:
        """Let the tasks that wait be run, for `timeout` seconds at most, and say whether they were."""
        try:
            self._waiting.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            name, task = waiting
            try:
                task()
            except Exception as error:
                logger.warning("%s: dropped, %s", name, error)


class SystemMetrics:
    """Samples the CPUs and the memory of the node, and the GPU of this process if it has one, under MLflow's names."""

    def __init__(self, device: "torch.device", interval: float = SAMPLE_SECONDS) -> None:
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
            return _gpu_metrics(self._gpu)
        except Exception as error:  # a driver that hides its numbers must not end a training
            logger.warning("the GPU is not sampled: %s", error)
            self._gpu = None
            return {}


def _gpu_metrics(device: "torch.device") -> dict[str, float]:
    """Return the load of one GPU, which is named the first, as it is to its process."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {
        # All of the GPU, other processes included, as MLflow's own monitor counts.
        "system/gpu_0_memory_usage_megabytes": round((total - free) / 1e6, 1),
        "system/gpu_0_memory_usage_percentage": round(100 * (1 - free / total), 1),
        "system/gpu_0_utilization_percentage": torch.cuda.utilization(device),
        "system/gpu_0_power_usage_watts": torch.cuda.power_draw(device) / 1000,  # it gives milliwatts
    }
