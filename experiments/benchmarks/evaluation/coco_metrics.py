"""What the twelve COCO numbers cost: hotcoco, which this project takes, against pycocotools, on the same detections.

The truth is `scale/instances_val2017_intbox.json` under RNC_COCO_ROOT, where there is such a file, or as many random
boxes; the detections are made from it by seeded noise. Each side runs in a process of its own, in turn. Reading the
file is not counted; handing the truth to hotcoco is. Then what the metrics of calibration add, on 100 detections an
image.
"""

import contextlib
import io
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import numpy as np

from model.config import METRICS
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.calibration.errors import calibration
from model.evaluation.coco.metrics import evaluate
from model.inference.table import DetectionTable

SPLIT = "val2017"
NUM_CATEGORIES = 80
Measured = tuple[list[float | None], float, float]
"""The twelve numbers, seconds, and by how many MB the process grew."""


@click.command(help=__doc__)
@click.option("--pairs", default=2, show_default=True, help="Evaluations by each side.")
@click.option("--images", default=4910, show_default=True, help="Images, the first by id.")
def main(pairs: int, images: int) -> None:
    """Measure, and print ratios."""
    ratios = []
    same = True
    with tempfile.TemporaryDirectory() as scratch:
        file = write_truth(Path(scratch), images)
        data = read_coco(Path(scratch), SPLIT, check_images=False)
        found = detections(data)
        click.echo(f"{len(data)} images, {len(data.annotation_ids)} boxes, {len(found.scores)} detections")
        for pair in range(pairs):
            ours, theirs = (_apart(side, file, found) for side in (_ours, _theirs))
            ratios.append(theirs[1] / ours[1])
            same &= ours[0] == theirs[0]
            click.echo(
                f"pair {pair + 1}: {ours[1]:.3f} s and {ours[2]:.0f} MB here, {theirs[1]:.2f} s and {theirs[2]:.0f} MB "
                f"by pycocotools, ratio {ratios[-1]:.0f}"
            )
    dense = filled(data, found)
    twelve, ours_too = (_cpu(measure, data, dense) for measure in (evaluate, calibration))
    click.echo(
        f"calibration: {ours_too:.3f} s of CPU beside {twelve:.3f} s of the twelve numbers, on {len(dense)} detections"
    )
    click.echo(f"pycocotools takes {statistics.median(ratios):.0f} times as long")
    numbers = ", ".join(f"{name} {value}" for name, value in zip(METRICS, ours[0], strict=True))
    click.echo(f"numbers: {'identical to the last bit' if same else 'DIFFERENT'}, {numbers}")
    sys.exit(0 if same else 1)


def write_truth(root: Path, num_images: int) -> Path:
    """A data set of annotations alone; boxes without a side are left out, as pycocotools has no use for them."""
    stored = Path(os.environ.get("RNC_COCO_ROOT", "")) / "scale" / "instances_val2017_intbox.json"
    content = json.loads(stored.read_text()) if stored.is_file() else _random_truth(num_images)
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:num_images]
    kept = {image["id"] for image in content["images"]}
    rows = content["annotations"]
    content["annotations"] = [row for row in rows if row["image_id"] in kept and min(row["bbox"][2:]) > 0]
    file = root / "annotations" / f"instances_{SPLIT}.json"
    file.parent.mkdir()
    (root / SPLIT).mkdir()
    file.write_text(json.dumps(content))
    return file


def _random_truth(num_images: int) -> dict[str, list[dict[str, Any]]]:
    """About 7 boxes an image with sides from 4 to 300 pixels, as COCO's are spread."""
    generator = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image in range(1, num_images + 1):
        for _ in range(generator.poisson(7)):
            width, height = np.exp(generator.uniform(np.log(4), np.log(300), 2)).round().tolist()
            x, y = (generator.uniform(0, [640 - width, 480 - height])).round().tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(generator.integers(1, NUM_CATEGORIES + 1)),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(generator.random() < 0.01),
                }
            )
    images = [{"id": id, "file_name": f"{id}.jpg", "height": 480, "width": 640} for id in range(1, num_images + 1)]
    categories = [{"id": id, "name": f"thing {id}"} for id in range(1, NUM_CATEGORIES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def detections(data: CocoData, seed: int = 0) -> DetectionTable:
    """Four in five boxes found, moved and resized a little, as many false ones beside them; scores in 1/64 for ties."""
    generator = np.random.default_rng(seed)
    number = len(data.annotation_ids)
    images = np.repeat(data.image_ids, np.diff(data.offsets))
    rows = np.concatenate([np.flatnonzero(generator.random(number) < 0.8), generator.integers(0, number, number)])
    true = np.arange(len(rows)) < len(rows) - number
    low, side = data.annotation_boxes[rows, :2], data.annotation_boxes[rows, 2:]
    spread = np.where(true, 0.08, 0.6)[:, None] * side
    low = low + generator.normal(size=low.shape) * spread
    side = side * np.exp(generator.normal(size=side.shape) * np.where(true, 0.1, 0.5)[:, None])
    labels = data.annotation_labels[rows].astype(np.int64)
    wrong = generator.random(len(rows)) < np.where(true, 0.1, 0.5)
    labels[wrong] = generator.integers(0, len(data.category_ids), int(wrong.sum()))
    scores = np.round(generator.beta(np.where(true, 3, 1), 2) * 64) / 64
    order = np.lexsort([-scores, images[rows]])
    return DetectionTable.plain(
        images[rows][order],
        np.array(data.category_ids)[labels][order],
        np.concatenate([low, low + side], axis=1).astype(np.float32)[order],
        scores.astype(np.float32)[order],
    )


def filled(data: CocoData, found: DetectionTable, seed: int = 1) -> DetectionTable:
    """Add false detections around the objects of each image, three in five of an object's class, until it has 100."""
    generator = np.random.default_rng(seed)
    held = np.bincount(np.searchsorted(data.image_ids, found.image_ids), minlength=len(data))
    images = np.repeat(np.arange(len(data)), np.maximum(0, 100 - held))
    count, objects = len(images), np.diff(data.offsets)[images]
    rows = data.offsets[:-1][images] + (generator.random(count) * np.maximum(objects, 1)).astype(np.int64)
    rows = np.minimum(rows, len(data.annotation_ids) - 1)
    low, side = data.annotation_boxes[rows, :2], data.annotation_boxes[rows, 2:]
    low = low + generator.normal(size=low.shape) * 0.6 * side
    side = side * np.exp(generator.normal(size=side.shape) * 0.5)
    others = generator.integers(0, len(data.category_ids), count)
    labels = np.where(generator.random(count) < 0.6, data.annotation_labels[rows], others)
    more = DetectionTable.plain(
        data.image_ids[images],
        np.array(data.category_ids)[labels],
        np.concatenate([low, low + side], axis=1).astype(np.float32),
        (generator.random(count) ** 3).astype(np.float32),
    )
    both = DetectionTable.concatenate([found, more])
    return both.take(np.lexsort((-both.scores, both.image_ids)))


def _cpu(measure: Callable[[CocoData, DetectionTable], object], data: CocoData, found: DetectionTable) -> float:
    """Return the least seconds of CPU of three times."""
    seconds = []
    for _ in range(3):
        clock = time.process_time()
        measure(data, found)
        seconds.append(time.process_time() - clock)
    return min(seconds)


def _apart(side: object, file: Path, found: DetectionTable) -> Measured:
    context = get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(side, file, found, theirs))
    process.start()
    theirs.close()
    try:
        measured: Measured = mine.recv()
    except EOFError:
        raise click.ClickException("an evaluation died; its message stands above") from None
    process.join()
    return measured


def _measure(side: object, file: Path, found: DetectionTable, answer: Connection) -> None:
    assert callable(side)
    numbers, seconds, before = side(file, found)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send((numbers, seconds, (after - before) / 1024))


def _ours(file: Path, found: DetectionTable) -> Measured:
    import hotcoco  # noqa: F401  its import is not the evaluation

    data = read_coco(file.parents[1], SPLIT, check_images=False)
    before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    numbers = evaluate(data, found)
    return list(numbers.values()), time.perf_counter() - clock, before


def _theirs(file: Path, found: DetectionTable) -> Measured:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes = found.boxes.astype(np.float64)
    columns = [found.image_ids, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found.scores.astype(float)]
    rows = np.column_stack([*columns, found.category_ids])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        seconds = time.perf_counter() - clock
    return [100.0 * value if value > -1 else None for value in evaluator.stats.tolist()], seconds, before


if __name__ == "__main__":
    main()
