"""Milliseconds of one core for an image, from its JPEG to what the network takes: ours beside torchvision's."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from model.data.images import (
    collate,
    flip_boxes,
    load_image,
    load_sample,
    normalize,
    padded_shape,
    resize,
    resize_boxes,
    resize_shape,
)
from model.data.split import CocoData

Edges = tuple[int, int]


def report(data: CocoData, rounds: int, edges: Edges, say: Callable[[str], None]) -> None:
    """Prepare every image both ways in turn, on one thread, and print times, their ratio, and where ours goes."""
    torch.set_num_threads(1)
    peer = _peer(data, edges)
    ours, theirs = [], []
    for number in range(rounds + 1):  # the first one warms up
        spent = {"ours": 0.0, "theirs": 0.0}
        for index in range(len(data)):
            ways: list[tuple[str, Callable[[int], object]]] = [
                ("ours", lambda place: _ours(data, place, edges)),
                ("theirs", peer),
            ]
            for name, prepare in ways if (index + number) % 2 else reversed(ways):
                clock = time.perf_counter()
                prepare(index)
                spent[name] += time.perf_counter() - clock
        if number:
            ours.append(1e3 * spent["ours"] / len(data))
            theirs.append(1e3 * spent["theirs"] / len(data))
    ratios = [second / first for first, second in zip(ours, theirs, strict=True)]
    say(f"images: {len(data)} JPEGs to {edges[0]} x {edges[1]}, one thread, {rounds} rounds in turn")
    say(f"  ours         {_spread(ours)} ms an image")
    say(f"  torchvision  {_spread(theirs)} ms an image")
    say(f"  ratio        {_spread(ratios)}")
    parts = [_parts(data, index, edges) for _ in range(rounds) for index in range(len(data))]
    say("  ours, by part (median ms): " + ", ".join(f"{name} {_median(parts, name):.2f}" for name in parts[0]))


def _ours(data: CocoData, index: int, edges: Edges) -> Tensor:
    sample = load_sample(data, index, *edges, flip=index % 2 == 0)
    batch = collate([sample], padded_shape(*sample.size))
    return normalize(batch.images, batch.sizes)


def _peer(data: CocoData, edges: Edges) -> Callable[[int], Tensor]:
    """What references/detection and the model's own transform do to an image of a RetinaNet."""
    annotations = data.root / "annotations" / f"instances_{data.split}.json"
    images = CocoDetection(str(data.root / data.split), str(annotations))
    transforms = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    last = GeneralizedRCNNTransform(*edges, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def prepare(index: int) -> Tensor:
        image, rows = images[index]
        rows = [row for row in rows if not row["iscrowd"]]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)),
            "labels": torch.tensor([row["category_id"] for row in rows], dtype=torch.int64),
        }
        image, target = transforms(image, target)
        batch, _ = last([image], [target])
        tensors: Tensor = batch.tensors
        return tensors

    return prepare


def _parts(data: CocoData, index: int, edges: Edges) -> dict[str, float]:
    """Milliseconds of each part, and of another decoder."""
    times = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        clock = time.perf_counter()
        result = function()
        times[name] = 1e3 * (time.perf_counter() - clock)
        return result

    image = timed("decode", lambda: load_image(data.path(index)))
    old = (image.shape[1], image.shape[2])
    new = resize_shape(*old, *edges)
    resized = timed("resize", lambda: resize(image, new))
    timed("flip", lambda: resized.flip(2))
    timed("boxes", lambda: (flip_boxes(resize_boxes(data.boxes(index), old, new), new[1]), data.labels(index)))
    sample = load_sample(data, index, *edges, flip=False)
    batch = timed("collate", lambda: collate([sample], padded_shape(*new)))
    timed("normalize", lambda: normalize(batch.images, batch.sizes))
    timed("torchvision.io would decode in", lambda: _torchvision_decode(data, index))
    return times


def _torchvision_decode(data: CocoData, index: int) -> Tensor:
    pixels: Tensor = decode_jpeg(
        torch.from_numpy(np.fromfile(data.path(index), dtype=np.uint8)), mode=ImageReadMode.RGB
    )
    return pixels


def _median(parts: list[dict[str, float]], name: str) -> float:
    return statistics.median(part[name] for part in parts)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} (from {min(values):.2f} to {max(values):.2f})"
