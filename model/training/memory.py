"""How many images of a training fit into a GPU's memory at once: tried on random images, in a process of its own.

`python -m model.training.memory` reads the arguments of `largest_batch` as JSON from its standard input, and prints
what it returns. A process of its own has neither the tensors of the training that failed nor its process group.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

import torch

from model.config import TrainConfig
from model.data.images import Batch, padded_shape
from model.network.retinanet import build_detector
from model.settings import from_dict
from model.training.batches import MicroBatch
from model.training.step import TrainingStep

NUM_BOXES = 32
"""Of each random image; COCO has 7 on average."""
SECONDS = 120.0
"""After which a number is given up."""


def ask_largest_batch(
    config: TrainConfig, num_classes: int, most: int, part: float = 1.0, use_graphs: bool = True
) -> int | None:
    """`largest_batch` from a process of its own, on the GPU that is the current one here; None if it does not tell."""
    asked = {"config": asdict(config), "num_classes": num_classes, "most": most, "part": part}
    asked["use_graphs"] = use_graphs
    asked["device"] = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    # Ray puts the sources of a job on the path of its workers alone.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        told = subprocess.run(
            [sys.executable, "-m", "model.training.memory"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            check=True,
        )
        return int(told.stdout.split()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def largest_batch(
    config: TrainConfig,
    num_classes: int,
    most: int,
    *,
    part: float = 1.0,
    use_graphs: bool = True,
    device: torch.device,
) -> int:
    """Return the most images, up to `most`, with which an update of the largest shape fits; 0 if not even one.

    Args:
        config: of the training.
        num_classes: of the detector.
        most: images of a forward pass that did not fit, at least beside what else was on the GPU.
        part: of the GPU's memory that the training may take.
        use_graphs: as in TrainingStep.
        device: to try it on.
    """
    if part < 1.0 and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(part, device)
    shape = padded_shape(config.data.short_edge, config.data.long_edge)

    def updates(num_images: int) -> None:
        detector = build_detector(config.model, num_classes, config.seed).to(device)
        step = TrainingStep(config, detector, use_graphs=use_graphs)
        # On CUDA the second update of a shape becomes a graph, which keeps its memory while that of an upright shape,
        # the first of its kind, takes as much beside it.
        for one in (shape, shape, shape[::-1]):
            # A rate of 0 leaves the weights finite; the optimizer's state takes its memory all the same.
            step.update([MicroBatch(random_batch(num_images, one, num_classes), counts=True)], 0.0)

    return largest_that_fits(updates, most)


def ran_out(error: BaseException | None) -> bool:
    """Whether an error is a lack of a device's memory, or came of one."""
    # Where memory ends while a graph is recorded, torch raises what became of the graph instead.
    return error is not None and (
        isinstance(error, torch.OutOfMemoryError) or ran_out(error.__cause__) or ran_out(error.__context__)
    )


def largest_that_fits(updates: Callable[[int], object], most: int) -> int:
    """Return the largest number up to `most` with which a call does not run out of memory; 0 if none is."""
    if not _runs(updates, 1):
        return 0
    if most == 1 or _runs(updates, most):
        return most
    fits, fails = 1, most
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _runs(updates, middle) else (fits, middle)
    return fits


def _runs(updates: Callable[[int], object], number: int) -> bool:
    fits = True
    try:
        updates(number)
    except Exception as error:
        if not ran_out(error):
            raise
        fits = False
    # After the handler, in which the error still holds the tensors of its frames; a graph holds its own until then.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fits


def random_batch(num_images: int, shape: tuple[int, int], num_classes: int) -> Batch:
    """A batch of grey noise with random boxes, the whole of its shape."""
    random = torch.Generator().manual_seed(0)
    height, width = shape
    limit = torch.tensor([width, height], dtype=torch.float32)
    total = num_images * NUM_BOXES
    corners = torch.rand(total, 2, generator=random) * limit * 0.75
    sizes = torch.tensor([shape]).repeat(num_images, 1)
    return Batch(
        images=torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8, generator=random),
        sizes=sizes,
        boxes=torch.cat([corners, corners + limit * 0.25], dim=1),
        labels=torch.randint(0, num_classes, (total,), generator=random),
        image_index=torch.arange(num_images).repeat_interleave(NUM_BOXES),
        image_ids=torch.arange(num_images),
        original_sizes=sizes,
    )


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(
        largest_batch(
            from_dict(TrainConfig, given["config"]),
            given["num_classes"],
            given["most"],
            part=given["part"],
            use_graphs=given["use_graphs"],
            device=torch.device(given["device"]),
        )
    )
