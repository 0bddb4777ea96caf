"""torchvision's RetinaNet beside ours: the same backbone, images and boxes, timed in turn, with peaks of memory.

It runs as it comes, with its maps in channels_last order, and on a GPU compiled as well; ratios are to its best.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from model.config import ModelConfig, ScheduleConfig, TrainConfig
from model.data.images import Batch
from model.network.retinanet import build_detector
from model.training.step import TrainingStep

NUM_CLASSES = 80
SIZE = (608, 1024)
SHAPES = (
    *((608, width) for width in (928, 960, 992, 1024)),
    *((height, 608) for height in (800, 896, 928, 960, 992, 1024)),
)
"""The padded shapes that batches of 16 of COCO's images have at 600 x 1000, by loading/shapes.py."""
RATE = 1e-5
"""So low that a step changes next to nothing."""
MEBIBYTE = 2**20

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Variant:
    """How torchvision's detector runs."""

    channels_last: bool = False
    """Weights and maps in the order in which convolutions are fastest."""
    compiled: bool = False
    """Backbone and head go through torch.compile, each shape by itself."""


def variants(device: torch.device, *, compiled: bool | None = None) -> dict[str, Variant]:
    """The ways of theirs by their names; compiled as well on a GPU, or if asked."""
    ways = {"theirs": Variant(), "theirs, channels_last": Variant(channels_last=True)}
    if device.type == "cuda" if compiled is None else compiled:
        ways["theirs, channels_last, compiled"] = Variant(channels_last=True, compiled=True)
    return ways


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch as either detector takes it."""

    batch: Batch
    images: list[Tensor]
    """float32 [3, H, W], 0 to 1."""
    targets: list[dict[str, Tensor]]


def scene(num_images: int, device: torch.device, size: tuple[int, int] | None = None) -> Scene:
    """Noise, with 7 boxes an image, as in COCO on average; their sides are spread evenly over octaves of 16 to 400."""
    size = size or SIZE
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (num_images, 3, *size), generator=generator, dtype=torch.uint8)
    sides = 16 * 25 ** torch.rand(7 * num_images, 2, generator=generator)
    low = torch.rand(len(sides), 2, generator=generator) * (torch.tensor(size[::-1]) - sides)
    batch = Batch(
        images=pixels,
        sizes=torch.tensor([size] * num_images),
        boxes=torch.cat([low, low + sides], dim=1),
        labels=torch.randint(NUM_CLASSES, (len(sides),), generator=generator),
        image_index=torch.arange(num_images).repeat_interleave(7),
        image_ids=torch.arange(num_images),
        original_sizes=torch.tensor([size] * num_images),
    ).to(device)
    targets = zip(batch.boxes.split(7), batch.labels.split(7), strict=True)  # type: ignore[no-untyped-call]
    return Scene(
        batch, list(batch.images.float() / 255), [{"boxes": boxes, "labels": labels} for boxes, labels in targets]
    )


def our_step(device: torch.device, precision: str = "float32") -> TrainingStep:
    """Plain RetinaNet, as torchvision has no confidence branch."""
    config = TrainConfig(
        model=ModelConfig(confidence=None),
        schedule=ScheduleConfig(learning_rate=RATE),
        precision=precision,  # type: ignore[arg-type]
    )
    return TrainingStep(config, build_detector(config.model, NUM_CLASSES, seed=0).to(device))


def their_detector(device: torch.device, variant: Variant | None = None, *, resize: bool = False) -> RetinaNet:
    """retinanet_resnet50_fpn with frozen batch norm, stem and first stage, as it is fine-tuned from ImageNet.

    Args:
        device: of the weights.
        variant: how it runs; None as it comes.
        resize: whether it resizes images to 608 x 1024 while it trains; else they have their size already.
    """
    variant = variant or Variant()
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    pyramid = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=pyramid)
    detector = RetinaNet(backbone, NUM_CLASSES, min_size=SIZE[0], max_size=SIZE[1], _skip_resize=not resize)
    if variant.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
        # Its own transform gives a batch in rows, which the first convolution would hand on.
        detector.backbone.register_forward_pre_hook(_in_channels_last)
    if variant.compiled:
        torch._dynamo.config.recompile_limit = 64  # by default, from the ninth shape on it would not compile any more
        detector.backbone = torch.compile(detector.backbone, dynamic=False)
        detector.head = torch.compile(detector.head, dynamic=False)
    return detector.to(device)


def _in_channels_last(_module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    return (given[0].contiguous(memory_format=torch.channels_last),)


def their_step(
    device: torch.device, precision: str = "float32", variant: Variant | None = None, *, resize: bool = False
) -> Callable[[list[Tensor], list[dict[str, Tensor]]], None]:
    """One step as in torchvision's references/detection, on a GPU with a fused optimizer; see their_detector."""
    detector = their_detector(device, variant, resize=resize).train()
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.SGD(learning, lr=RATE, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step(images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def in_turn(
    ways: Mapping[str, Way],
    rounds: int,
    device: torch.device,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a call of each way, one number a round; the first round is not counted.

    The order turns round by round. A round waits for the device at the end of its `calls` calls alone.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in [*ways][:: 1 if number % 2 else -1]:
            start = clock()
            for _ in range(calls):
                ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((clock() - start) / calls)
    return seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.{digits}f} (from {min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours over theirs, round by round."""
    return spread([mine / their for mine, their in zip(ours, theirs, strict=True)])


def best_of_theirs(seconds: Mapping[str, Sequence[float]]) -> str:
    """The name of torchvision's fastest way, by the median."""
    return min(
        (name for name in seconds if name.startswith("theirs")), key=lambda name: statistics.median(seconds[name])
    )


def say_times(seconds: Mapping[str, Sequence[float]], unit: str, digits: int = 2) -> None:
    """Print the times of each way, which way was torchvision's best, and the ratios of ours to that."""
    scale, best = {"s": 1.0, "ms": 1e3}[unit], best_of_theirs(seconds)
    width = max(map(len, seconds))
    for name, values in seconds.items():
        line = f"  {name:{width}} {spread([scale * value for value in values], digits)} {unit}"
        if name == best:
            line += "  <- the best of theirs"
        elif not name.startswith("theirs"):
            line += f", ratio to the best of theirs {ratios(values, seconds[best])}"
        click.echo(line)


def peak_of(prepare: Callable[[str], Way], name: str) -> float:
    """MiB by which a fresh process grows at most while it calls what `prepare(name)` returns, twice."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grown, (prepare, name))


def _grown(prepare: Callable[[str], Way], name: str) -> float:
    call = prepare(name)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    call()
    call()
    return (_status("VmHWM") - before) / MEBIBYTE


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])
