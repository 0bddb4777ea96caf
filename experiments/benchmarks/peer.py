"""torchvision's RetinaNet beside ours: the same backbone, images and boxes, timed in turn, with peaks of memory."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
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
RATE = 1e-5
"""So low that a step changes next to nothing."""
MEBIBYTE = 2**20

Way = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch as either detector takes it."""

    batch: Batch
    images: list[Tensor]
    """float32 [3, H, W], 0 to 1."""
    targets: list[dict[str, Tensor]]


def scene(num_images: int, device: torch.device) -> Scene:
    """Noise, with 7 boxes an image, as in COCO on average; their sides are spread evenly over octaves of 16 to 400."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (num_images, 3, *SIZE), generator=generator, dtype=torch.uint8)
    sides = 16 * 25 ** torch.rand(7 * num_images, 2, generator=generator)
    low = torch.rand(len(sides), 2, generator=generator) * (torch.tensor(SIZE[::-1]) - sides)
    batch = Batch(
        images=pixels,
        sizes=torch.tensor([SIZE] * num_images),
        boxes=torch.cat([low, low + sides], dim=1),
        labels=torch.randint(NUM_CLASSES, (len(sides),), generator=generator),
        image_index=torch.arange(num_images).repeat_interleave(7),
        image_ids=torch.arange(num_images),
        original_sizes=torch.tensor([SIZE] * num_images),
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


def their_detector(device: torch.device) -> RetinaNet:
    """retinanet_resnet50_fpn with frozen batch norm, stem and first stage, as it is fine-tuned from ImageNet."""
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    pyramid = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=pyramid)
    return RetinaNet(backbone, NUM_CLASSES, min_size=SIZE[0], max_size=SIZE[1]).to(device)


def their_step(device: torch.device, precision: str = "float32") -> Callable[[Scene], None]:
    """One step as in torchvision's references/detection."""
    detector = their_detector(device).train()
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=RATE, momentum=0.9, weight_decay=1e-4)

    def step(given: Scene) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            losses = detector(given.images, given.targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def in_turn(ways: Mapping[str, Way], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every round of each way; the first round is not counted, the order turns round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in [*ways][:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.{digits}f} (from {min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours over theirs, round by round."""
    return spread([mine / their for mine, their in zip(ours, theirs, strict=True)])


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
