"""The detector on a GPU: right, then fast, beside torchvision's RetinaNet; a JSON line for each result.

Needs PyTorch and this tree, neither Ray nor MLflow: `PYTHONPATH=. python experiments/benchmarks/gpu.py` runs all parts,
by an estimate in 15 minutes of a GPU. If there are fewer, name parts: `correct methods assigning losses scoring` hold
what no GPU has run yet, the first of them first. Without a GPU it runs small, to see that it runs. A step is timed with
one wait at its end, "host" is until the step is queued; images are 608 x 1024, the precision is bfloat16.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import peer
import torch
from one_pass import opinionated
from PIL import Image
from torch import Tensor

from model.assignment.assign import assign
from model.assignment.samples import GroundTruth, loss_normalizer, predicted
from model.config import (
    AssignmentConfig,
    BoxConfig,
    ClassificationConfig,
    ConfidenceConfig,
    DataConfig,
    InferenceConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.data.coco import read_coco
from model.data.images import Batch
from model.data.split import CocoData
from model.evaluation.scoring import DTYPES, score
from model.network.anchors import NUM_ANCHORS, AnchorGrid, anchor_grid
from model.network.retinanet import Predictions, RetinaNetConf, build_detector, for_inference
from model.training.batches import MicroBatch
from model.training.loop import Progress, train
from model.training.losses import detector_losses
from model.training.step import TrainingStep

HEADS: dict[str, dict[str, Any]] = {
    "RetinaNet": {"confidence": None},
    "RetinaNet-Conf": {},
    "IoU-aware": {"confidence": ConfidenceConfig(tower="box")},
    "CE^w": {"confidence": ConfidenceConfig(negative_weight=0.1)},
    "GFocal": {"confidence": ConfidenceConfig(loss="gfocal")},
}
BINS = BoxConfig(loss="giou", loss_weight=2.0, bins=17)
METHODS: dict[str, dict[str, Any]] = {
    "task-aligned, QFL on alignment, GIoU": {
        "assignment": AssignmentConfig(kind="task_aligned"),
        "classification": ClassificationConfig(loss="qfl", quality="alignment"),
        "box": BoxConfig(loss="giou"),
    },
    "SimOTA, MAL, CIoU": {
        "assignment": AssignmentConfig(kind="sim_ota"),
        "classification": ClassificationConfig(loss="mal"),
        "box": BoxConfig(loss="ciou"),
    },
    "PAA, IA-BCE, DIoU, its branch": {
        "assignment": AssignmentConfig(kind="paa"),
        "classification": ClassificationConfig(loss="ia_bce"),
        "box": BoxConfig(loss="diou"),
        "confidence": ConfidenceConfig(tower="box", detach_iou_target=True, loss_weight=0.5),
    },
    "ATSS, VFL, GIoU and DFL, centerness": {
        "assignment": AssignmentConfig(kind="atss"),
        "classification": ClassificationConfig(loss="vfl"),
        "box": BINS,
        "confidence": ConfidenceConfig(tower="box", target="centerness"),
    },
    "QFL, DFL, GFLv2's quality": {
        "classification": ClassificationConfig(loss="qfl", edge_quality="gflv2"),
        "box": BINS,
        "confidence": None,
    },
    "MAL, IoU and DFL, D-FINE's quality, group norm": {
        "classification": ClassificationConfig(loss="mal", edge_quality="dfine"),
        "box": BoxConfig(loss="iou", loss_weight=2.0, bins=17),
        "confidence": None,
        "tower_norm": "group",
    },
}
"""Of the ladder: each class loss, box loss, assignment and branch once."""
ASSIGNERS = ("max_iou", "atss", "task_aligned", "sim_ota", "paa")
LOSSES: dict[str, dict[str, Any]] = {
    "focal, L1": {},
    **{loss: {"classification": ClassificationConfig(loss=loss)} for loss in ("qfl", "vfl", "ia_bce", "mal")},
    **{loss: {"box": BoxConfig(loss=loss)} for loss in ("iou", "giou", "diou", "ciou")},
    "giou, DFL": {"box": BINS},
}
"""Each beside the focal loss, L1 and RetinaNet-Conf's branch."""
COCO_SHAPES = ((640, 480), (480, 640), (640, 427), (427, 640), (640, 384), (500, 375))
"""Width and height of most images."""
RATE = 1e-5
SUPPRESSIONS = (
    "soft_linear", "soft_gaussian", "iou_guided", "diou", "matrix_linear", "matrix_gaussian", "voting",
)  # fmt: skip
EXPONENTS = {
    f"{count} exponents": [InferenceConfig(confidence_exponent=place / max(10, count)) for place in range(count)]
    for count in (1, 10, 20)
}
SETTINGS = {
    "top k of pairs": [InferenceConfig(top_k_of="pairs")],
    "product, filtered": [InferenceConfig(fusion="product", min_confidence=0.5)],
    # Of the 300,000 pairs that score here, and in no detector that has learnt, IoU-guided NMS would take 5 s an image.
    "suppressions": [InferenceConfig(suppression=kind, top_k_of="pairs") for kind in SUPPRESSIONS],  # type: ignore[arg-type]
}
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DETECTOR: dict[str, Any] = {} if CUDA else {"backbone": "resnet18_quarter", "channels": 16, "tower_depth": 1}
STEPS = 20 if CUDA else 1
BATCH = 16 if CUDA else 1


@click.command(help=__doc__)
@click.argument("parts", nargs=-1)
@click.option("--output", type=click.Path(path_type=Path), help="A file to add the lines to.")
def main(parts: tuple[str, ...], output: Path | None) -> None:
    """Run the parts, all of them if none is named; one that fails does not keep the others from running."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise click.UsageError(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not CUDA:
        peer.SIZE = (96, 128)
        torch.set_num_threads(1)  # of work so small, more threads wait for each other
    failed = []
    for part in parts or PARTS:
        start = time.perf_counter()

        def say(part: str = part, **result: Any) -> None:
            line = json.dumps({"part": part, **result})
            click.echo(line)
            if output is not None:
                with output.open("a") as stream:
                    stream.write(line + "\n")

        try:
            PARTS[part](say)
        except Exception:
            failed.append(part)
            say(failed=traceback.format_exc()[-3000:])
        if CUDA:
            torch.cuda.empty_cache()
        click.echo(f"-- {part}: {time.perf_counter() - start:.0f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


Say = Callable[..., None]


def environment(say: Say) -> None:
    """What this is, and what it can do at most."""
    import numba
    import torchvision

    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    say(**versions, numba=numba.__version__, cores=os.cpu_count())
    if CUDA:
        source = torch.randn(2**29, device=DEVICE)
        target = torch.empty_like(source)
        factor = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
        copying, _ = _pace(lambda: target.copy_(source), 10)
        product, _ = _pace(lambda: factor @ factor, 10)
        say(
            device=torch.cuda.get_device_name(),
            cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            copied_tb_per_s=2 * source.nbytes / copying / 1e12,
            bfloat16_tflop_per_s=2 * 8192**3 / product / 1e12,
        )


def correct(say: Say) -> None:
    """Losses and gradients against the CPU's, and whether a step ever makes the host wait."""
    given = peer.scene(2, torch.device("cpu")).batch
    for name, model in {**HEADS, **METHODS}.items():
        reference = _trainer(model, "float32", torch.device("cpu"))
        expected = reference.update([MicroBatch(given, True)], RATE)
        # In bfloat16 a rule that looks at predictions may assign otherwise than the CPU; its float32 rows are to agree.
        cases = [("float32", False), ("float32", True), ("bfloat16", True)]
        for precision, use_graphs in cases if CUDA else cases[:1]:
            mine = _trainer(model, precision, DEVICE, use_graphs=use_graphs)
            with _without_tf32():
                # A graph is recorded at the second update, and replayed from then on; at a rate of 0 all are equal.
                found = [mine.update([MicroBatch(given, True)], 0.0) for _ in range(3 if use_graphs else 1)]
                say(
                    head=name,
                    precision=precision,
                    graphs=use_graphs,
                    losses=found[-1].tolist(),
                    expected=expected.tolist(),
                    largest_error_of_a_gradient=_largest_error(mine, reference),
                    waits=_waits(mine, given),
                )


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Float32 as on the CPU: TF32 would turn over what rules assign by predictions; even so the last bits may."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False  # `cudnn.flags` turns off cuDNN itself as well, which is to be compared
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _largest_error(mine: TrainingStep, reference: TrainingStep) -> dict[str, Any]:
    """Of the gradients of weights, as a part of their norm; biases and scales of frozen norms are near 0 by chance."""
    errors = {
        name: ((parameter.grad.cpu() - other.grad).norm() / other.grad.norm()).item()
        for (name, parameter), other in zip(
            mine.detector.named_parameters(), reference.detector.parameters(), strict=True
        )
        if other.grad is not None and parameter.grad is not None and other.ndim == 4
    }
    name = max(errors, key=lambda name: errors[name])
    return {"weight": name, "error": errors[name], "median": statistics.median(errors.values())}


def _waits(mine: TrainingStep, given: Any) -> str:
    """Where the host waits for the device in a step, if it does."""
    if not CUDA:
        return ""
    batch = given.pin_memory()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mine.update([MicroBatch(batch, True)], RATE)
    except RuntimeError as error:
        return "".join(traceback.format_exception(error)[-4:])[-900:]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def repeat(say: Say) -> None:
    """Whether ten updates give the same bits again, with and without `deterministic`."""
    given = peer.scene(BATCH // 2 or 1, DEVICE).batch
    cases = [("RetinaNet-Conf", deterministic) for deterministic in (False, True)] + [(name, True) for name in METHODS]
    for head, deterministic in cases if CUDA else cases[:2]:
        for use_graphs in (False, True):
            sums = []
            for _ in range(2):
                model = {**HEADS, **METHODS}[head]
                mine = _trainer(model, "bfloat16", use_graphs=use_graphs, deterministic=deterministic)
                for _ in range(10 if CUDA else 2):
                    mine.update([MicroBatch(given, True)], 1e-3)
                sums.append(torch.stack([p.double().sum() for p in mine.detector.parameters()]).tolist())
            pace, _ = _pace(_update(mine, given), STEPS // 2 or 1)
            say(
                head=head,
                deterministic=deterministic,
                graphs=use_graphs,
                same_bits=sums[0] == sums[1],
                images_per_s=len(given.sizes) / pace,
            )


def step(say: Say) -> None:
    """A training step, by batch, precision and head."""
    cases: list[tuple[str, str, int, bool]] = [
        ("RetinaNet", "bfloat16", BATCH, True),
        ("RetinaNet-Conf", "bfloat16", BATCH, True),
        ("RetinaNet-Conf", "bfloat16", BATCH, False),
        ("RetinaNet-Conf", "bfloat16", 2, True),
        ("RetinaNet-Conf", "bfloat16", 2, False),
        ("RetinaNet-Conf", "bfloat16", 32, True),
        ("RetinaNet-Conf", "float32", BATCH, True),
    ]
    for head, precision, batch, use_graphs in cases if CUDA else cases[:1]:
        mine, given = _trainer(HEADS[head], precision, use_graphs=use_graphs), peer.scene(batch, DEVICE).batch
        _reset_peak()
        pace, host = _pace(_update(mine, given), STEPS)
        say(head=head, precision=precision, graphs=use_graphs, batch=batch, **_speed(batch, pace, host))
        del mine


def methods(say: Say) -> None:
    """A training step of each method of the ladder, as RetinaNet's in `step`."""
    given = peer.scene(BATCH, DEVICE).batch
    for head, model in METHODS.items():
        for use_graphs in (True, False) if CUDA else (True,):
            mine = _trainer(model, "bfloat16", use_graphs=use_graphs)
            _reset_peak()
            pace, host = _pace(_update(mine, given), STEPS // 2 or 1)
            say(head=head, precision="bfloat16", graphs=use_graphs, batch=BATCH, **_speed(BATCH, pace, host))
            del mine


def assigning(say: Say) -> None:
    """Each rule's assignment of a batch by itself, by operations and replayed."""
    given = peer.scene(BATCH, DEVICE).batch
    for kind in ASSIGNERS:
        model = ModelConfig(assignment=AssignmentConfig(kind=kind))  # type: ignore[arg-type]
        grid, predictions = _said(given, model)

        def once(model: ModelConfig = model, grid: AnchorGrid = grid, predictions: Predictions = predictions) -> Tensor:
            said = predicted(predictions, grid) if model.assignment.by_prediction else None
            return assign(grid, given.sizes, _truth(given), model, said).assigned

        _both_ways(say, once, kind=kind)


def losses(say: Say) -> None:
    """Each loss of a batch and its gradient by themselves, by operations and replayed."""
    given = peer.scene(BATCH, DEVICE).batch
    for name, settings in LOSSES.items():
        model = ModelConfig(**settings)
        grid, predictions = _said(given, model)
        maps = (getattr(predictions, field.name) for field in fields(predictions))
        leaves = [level.requires_grad_() for levels in maps if levels is not None for level in levels]
        assignment = assign(grid, given.sizes, _truth(given), model)
        about = grid, assignment, _truth(given), loss_normalizer(assignment.assigned), model

        def once(predictions: Predictions = predictions, about: Any = about, leaves: Any = leaves) -> object:
            return torch.autograd.grad(detector_losses(predictions, *about).total, leaves)

        _both_ways(say, once, loss=name)


def _said(given: Batch, model: ModelConfig) -> tuple[AnchorGrid, Predictions]:
    """The anchors of a batch, and what a network that has learnt little would say of them in bfloat16."""
    grid = anchor_grid(given.shape, DEVICE, model.anchor_rule)

    def maps(size: int, mean: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        shapes = [(len(given.images), *cells, NUM_ANCHORS * size) for cells in grid.level_sizes]
        return [(torch.randn(shape, device=DEVICE) / 4 + mean).to(dtype).permute(0, 3, 1, 2) for shape in shapes]

    bins = model.box.bins
    deltas = maps(4, dtype=torch.float32 if bins else torch.bfloat16)
    return grid, Predictions(
        maps(peer.NUM_CLASSES, -4.6), deltas, maps(1) if model.confidence else None, maps(4 * bins) if bins else None
    )


def _truth(given: Batch) -> GroundTruth:
    return GroundTruth(given.boxes, given.labels, given.image_index)


def _both_ways(say: Say, call: Callable[[], object], **about: str) -> None:
    """Say how long a call takes, and the memory that it takes beside what there is."""
    for use_graphs in (False, True) if CUDA else (False,):
        _reset_peak()
        before = torch.cuda.memory_allocated() / 2**20 if CUDA else 0.0
        pace, host = _pace(_recorded(call) if use_graphs else call, STEPS)
        say(**about, graphs=use_graphs, batch=BATCH, mib_before=before, **_speed(BATCH, pace, host))


def _recorded(call: Callable[[], object]) -> Callable[[], object]:
    """A call as a graph, after it has run by operations."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def shapes(say: Say) -> None:
    """Steps over batches of many shapes in turn, each recorded once."""
    mine = _trainer({}, "bfloat16")
    sizes = peer.SHAPES if CUDA else [peer.SIZE]
    batches = [peer.scene(BATCH, DEVICE, size).batch for size in sizes]

    def one_of_each() -> None:
        for batch in batches:
            mine.update([MicroBatch(batch, True)], RATE)

    start = time.perf_counter()
    for _ in range(2):
        one_of_each()
    _wait()
    first = time.perf_counter() - start
    pace, host = _pace(one_of_each, STEPS // 4 or 1)
    say(shapes=len(batches), first_two_rounds_s=first, **_speed(BATCH * len(batches), pace, host))


def theirs(say: Say) -> None:
    """torchvision's step, as it comes, in channels_last, and compiled."""
    given = peer.scene(BATCH, DEVICE)
    for name, variant in peer.variants(DEVICE).items():
        update = peer.their_step(DEVICE, "bfloat16", variant)
        _reset_peak()
        pace, host = _pace(lambda update=update: update(given.images, given.targets), STEPS // 3 or 1)  # type: ignore[misc]
        say(variant=name, batch=BATCH, **_speed(BATCH, pace, host))


def whole(say: Say) -> None:
    """An epoch from JPEG files of COCO's size on disk, by the loop that trains."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _draw(root, "train", 2400 if CUDA else 2)
        _draw(root, "val", 1)
        for processes in (6, 10, 14) if CUDA else (0,):
            _whole_epoch(say, root, processes)


def _whole_epoch(say: Say, root: Path, processes: int) -> None:
    config = TrainConfig(
        model=ModelConfig(**DETECTOR),
        data=DataConfig(train_split="train", val_split="val", short_edge=peer.SIZE[0], long_edge=peer.SIZE[1]),
        schedule=ScheduleConfig(epochs=2, lr_drop_epochs=(), learning_rate=RATE, validate_every=2),
        precision="bfloat16",
        global_batch=BATCH,
    )
    seen: list[tuple[float, int]] = []

    def report(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress.step))

    with tempfile.TemporaryDirectory() as folder:
        train(config, data_root=root, folder=Path(folder), report=report, num_loader_processes=processes, device=DEVICE)
    # From the second report, when all is warm, to the last update of the first epoch.
    steps_per_epoch = seen[-1][1] // 2
    timed = [one for one in seen if one[1] <= steps_per_epoch]
    (begin, first), (end, last) = timed[len(timed) // 4], timed[-1]
    pace = BATCH * (last - first) / (end - begin) if end > begin else None
    say(loader_processes=processes, images=BATCH * (last - first), images_per_s=pace)


def _draw(root: Path, split: str, count: int, shapes: Sequence[tuple[int, int]] = ((640, 384),)) -> None:
    """Smooth noise, 120 kB a file as in COCO, with seven boxes each: all of 640 x 384, or of COCO's shapes in turn."""
    folder = root / split
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (96, 160, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC) for shape in shapes]
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture = pictures[number % len(pictures)]
        picture.save(folder / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": picture.width, "height": picture.height})
        for _ in range(7):
            width, height = (16 * 12 ** generator.random(2)).tolist()
            corner = [generator.random() * (picture.width - width), generator.random() * (picture.height - height)]
            place = len(boxes)
            box = {"id": place + 1, "image_id": number, "category_id": 1 + place % 80, "bbox": [*corner, width, height]}
            boxes.append(box | {"area": width * height, "iscrowd": 0})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def scoring(say: Say) -> None:
    """The network alone, and the whole scoring pass from JPEG files by settings, with and without the counts."""
    with tempfile.TemporaryDirectory() as scratch:
        _draw(Path(scratch), "val", 1024 if CUDA else 2)
        data = read_coco(Path(scratch), "val")
        config = DataConfig(short_edge=peer.SIZE[0], long_edge=peer.SIZE[1])
        detector = opinionated(ModelConfig(**DETECTOR), data).to(DEVICE).to(memory_format=torch.channels_last)
        images = torch.randn(BATCH, 3, *peer.SIZE, device=DEVICE).contiguous(memory_format=torch.channels_last)
        for precision, dtype in DTYPES.items():
            network = for_inference(detector, dtype) if CUDA else detector
            enabled = precision == "bfloat16"
            with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=enabled):
                pace, host = _pace(lambda network=network: network(images), STEPS)  # type: ignore[misc]
            say(kind="network", precision=precision, batch=BATCH, **_speed(BATCH, pace, host))
            for name, settings in EXPONENTS.items():
                chosen = [replace(setting, precision=precision) for setting in settings]
                for counting in (False, True):
                    _score(say, name, detector, data, chosen, config, counting)
        for name, settings in SETTINGS.items():
            _score(say, name, detector, data, settings, config, True)
        # Each thread of each pass makes its convolutions' plans for each shape anew.
        _draw(Path(scratch), "shapes", 1024 if CUDA else 2, COCO_SHAPES)
        of_shapes = read_coco(Path(scratch), "shapes")
        _score(say, "20 exponents", detector, of_shapes, EXPONENTS["20 exponents"], config, True)


def _score(
    say: Say,
    name: str,
    detector: RetinaNetConf,
    data: CocoData,
    settings: list[InferenceConfig],
    config: DataConfig,
    counting: bool,
) -> None:
    seen: list[tuple[float, int]] = []
    _reset_peak()
    start = time.perf_counter()
    score(
        detector,
        data,
        settings,
        config,
        counting=counting,
        num_loader_processes=14 if CUDA else 0,
        progress=lambda done, total: seen.append((time.perf_counter(), done)),
    )
    # Without the first quarter, in which kernels are compiled and loaders start.
    (begin, first), (end, last) = seen[len(seen) // 4], seen[-1]
    peak = {"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if CUDA else {}
    pace = (last - first) / (end - begin) if end > begin else None
    precision = settings[0].precision
    say(
        kind="pass",
        data=data.split,
        precision=precision,
        settings=name,
        counting=counting,
        images_per_s=pace,
        images_per_s_from_the_start=last / (end - start),
        **peak,
    )


def profile(say: Say) -> None:
    """Where a step's time goes on the device: the ten operations that take longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    mine, given = _trainer({}, "bfloat16", use_graphs=False), peer.scene(BATCH, DEVICE).batch
    for _ in range(3):
        mine.update([MicroBatch(given, True)], RATE)
    _wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profiler(activities=activities) as profiled:
        mine.update([MicroBatch(given, True)], RATE)
        _wait()
    kind = "self_device_time_total" if CUDA else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -float(getattr(event, kind)))
    kernels = [event for event in events if not CUDA or event.device_type.name == "CUDA"]
    say(total_ms=sum(float(getattr(event, kind)) for event in kernels) / 1e3)
    for event in kernels[:30]:
        say(kernel=event.key[:110], calls=event.count, ms=float(getattr(event, kind)) / 1e3)


def _trainer(
    model: dict[str, Any],
    precision: str,
    device: torch.device = DEVICE,
    *,
    use_graphs: bool = True,
    deterministic: bool = False,
) -> TrainingStep:
    config = TrainConfig(
        model=ModelConfig(**model, **DETECTOR),
        schedule=ScheduleConfig(learning_rate=RATE),
        precision=precision,  # type: ignore[arg-type]
        deterministic=deterministic,
    )
    detector = build_detector(config.model, peer.NUM_CLASSES, seed=0).to(device)
    return TrainingStep(config, detector, use_graphs=use_graphs)


def _update(trainer: TrainingStep, batch: Any) -> Callable[[], Tensor]:
    return lambda: trainer.update([MicroBatch(batch, True)], RATE)


def _pace(call: Callable[[], object], times: int) -> tuple[float, float]:
    """Seconds of a call, by the median of three blocks with one wait at their end; and until it is queued."""
    for _ in range(3 if CUDA else 1):
        call()
    _wait()
    whole, host = [], []
    for _ in range(3 if CUDA else 1):
        start = time.perf_counter()
        for _ in range(times):
            call()
        _wait()
        whole.append((time.perf_counter() - start) / times)
        # By itself: with a full queue the host waits for the device.
        start = time.perf_counter()
        call()
        host.append(time.perf_counter() - start)
        _wait()
    return statistics.median(whole), statistics.median(host)


def _speed(images: int, pace: float, host: float) -> dict[str, float]:
    peak = {"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if CUDA else {}
    return {"images_per_s": images / pace, "ms": 1e3 * pace, "host_ms": 1e3 * host, "host_part": host / pace, **peak}


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


PARTS: dict[str, Callable[[Say], None]] = {
    "environment": environment,
    "correct": correct,
    "repeat": repeat,
    "step": step,
    "methods": methods,
    "assigning": assigning,
    "losses": losses,
    "shapes": shapes,
    "profile": profile,
    "whole": whole,
    "theirs": theirs,
    "scoring": scoring,
}

if __name__ == "__main__":
    main()
