"""Images a second from JPEGs on disk to the last step: our training beside torchvision's reference.

Both take the same images in the same batches. Ours is `model.training.loop.train`, as in every training; theirs is
torchvision's dataset, transforms and model as in references/detection, with as many processes to decode.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peer import RATE, SIZE, Variant, their_step
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection
from torchvision.transforms import v2

from model.config import DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from model.data.coco import read_for_training
from model.data.shapes import draw_shapes
from model.training.batches import epoch_batches
from model.training.loop import Progress, train

Sample = tuple[Tensor, dict[str, Tensor]]


def report(
    num_images: int,
    batch: int,
    num_processes: int,
    device: torch.device,
    ways: dict[str, Variant],
    say: Callable[[str], None],
) -> None:
    """Train each way, and print images a second: of the second epoch on a GPU, else of all but the first step."""
    with tempfile.TemporaryDirectory() as scratch:
        epochs = 2 if device.type == "cuda" else 1
        root, split = _data(Path(scratch) / "drawn", num_images)
        config = TrainConfig(
            model=ModelConfig(confidence=None),  # as torchvision's
            data=DataConfig(
                train_split=split,
                val_split=split,
                num_train_images=num_images,
                num_val_images=1,
                short_edge=SIZE[0],
                long_edge=SIZE[1],
            ),
            schedule=ScheduleConfig(epochs=epochs, validate_every=epochs, lr_drop_epochs=(), learning_rate=RATE),
            precision="bfloat16" if device.type == "cuda" else "float32",
            global_batch=batch,
        )
        say(f"training from JPEGs ({root.name}/{split}), batch {batch}, {num_processes} processes that decode")
        speeds = {"ours": _ours(config, root, Path(scratch) / "checkpoints", num_processes, device)}
        speeds |= {name: _theirs(config, root, num_processes, device, variant) for name, variant in ways.items()}
    best = max((name for name in speeds if name != "ours"), key=lambda name: speeds[name])
    for name, speed in speeds.items():
        say(f"  {name}: {speed:.2f} images/s{'  <- the best of theirs' if name == best else ''}")
    say(f"  seconds an image, ours over the best of theirs: {speeds[best] / speeds['ours']:.2f}")


def _data(drawn: Path, num_images: int) -> tuple[Path, str]:
    if "RNC_COCO_ROOT" in os.environ:
        return Path(os.environ["RNC_COCO_ROOT"]), "val2017"
    draw_shapes(drawn, num_train=num_images, num_val=1, image_size=640)
    return drawn, "train"


def _ours(config: TrainConfig, root: Path, folder: Path, num_processes: int, device: torch.device) -> float:
    batches = _batches(config, root)
    seen: dict[int, float] = {}

    def note(progress: Progress) -> None:
        if not progress.end_of_epoch:
            _wait(device)
            seen[progress.step] = time.perf_counter()

    train(config, data_root=root, folder=folder, report=note, num_loader_processes=num_processes, device=device)
    first = _warm(config, batches)
    return sum(map(len, batches[first:])) / (seen[len(batches)] - seen[first])


def _theirs(config: TrainConfig, root: Path, num_processes: int, device: torch.device, variant: Variant) -> float:
    batches = _batches(config, root)
    loader = DataLoader(
        _Images(root, config.data.train_split),
        batch_sampler=batches,
        num_workers=num_processes,
        prefetch_factor=4 if num_processes else None,
        collate_fn=list,
        pin_memory=device.type == "cuda",
    )
    step = their_step(device, config.precision, variant, resize=True)
    first, begin = _warm(config, batches), 0.0
    for number, samples in enumerate(loader, start=1):
        images = [image.to(device, non_blocking=True) for image, _ in samples]
        targets = [{name: value.to(device, non_blocking=True) for name, value in boxes.items()} for _, boxes in samples]
        step(images, targets)
        if number == first:
            _wait(device)
            begin = time.perf_counter()
    _wait(device)
    return sum(map(len, batches[first:])) / (time.perf_counter() - begin)


def _batches(config: TrainConfig, root: Path) -> list[list[int]]:
    """The ids of the images of each step, over all epochs."""
    data = read_for_training(root, config.data)
    epochs = range(config.schedule.epochs)
    return [data.image_ids[batch].tolist() for epoch in epochs for batch in epoch_batches(data, config, epoch)]


def _warm(config: TrainConfig, batches: list[list[int]]) -> int:
    """Steps that do not count: of two epochs the first, in which shapes are compiled or recorded, else one step."""
    return len(batches) // 2 if config.schedule.epochs == 2 else 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class _Images(Dataset[Sample]):
    """What torchvision's reference does to an image before its model, by the id of the image."""

    def __init__(self, root: Path, split: str) -> None:
        self.images = CocoDetection(str(root / split), str(root / "annotations" / f"instances_{split}.json"))
        self.places = {image_id: place for place, image_id in enumerate(self.images.ids)}
        self.labels = {id: label for label, id in enumerate(sorted(self.images.coco.getCatIds()))}
        self.transforms = v2.Compose(
            [v2.RandomHorizontalFlip(0.5), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )

    def __getitem__(self, image_id: int) -> Sample:
        image, rows = self.images[self.places[image_id]]
        rows = [row for row in rows if not row["iscrowd"] and min(row["bbox"][2:]) > 0]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)),
            "labels": torch.tensor([self.labels[row["category_id"]] for row in rows], dtype=torch.int64),
        }
        sample: Sample = self.transforms(image, target)
        return sample
