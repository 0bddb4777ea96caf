"""Small data sets full of borderline cases with detections on them, and what pycocotools makes of them."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.coco.matches import MatchTable
from model.inference.table import DetectionTable

CATEGORIES = (2, 5, 9, 11)


def table(rows: Sequence[tuple[int, int, Sequence[float], float]]) -> DetectionTable:
    """Detections (image id, category id, xywh box, score) as a detector hands them over."""
    boxes = np.array([box for _, _, box, _ in rows], np.float64).reshape(-1, 4)
    return DetectionTable.plain(
        np.array([image for image, *_ in rows], np.int64),
        np.array([category for _, category, *_ in rows], np.int64),
        np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32),
        np.array([score for *_, score in rows], np.float32),
    )


def pycocotools_evaluation(truth_file: Path, found: DetectionTable) -> Any:
    """The evaluator of pycocotools, having summed up."""
    boxes = found.boxes.astype(np.float64)
    rows = np.column_stack(
        [found.image_ids, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found.scores.astype(float), found.category_ids]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def pycocotools_numbers(truth_file: Path, found: DetectionTable) -> NDArray[np.float64]:
    stats: NDArray[np.float64] = pycocotools_evaluation(truth_file, found).stats
    return stats


def write(root: Path, annotations: Sequence[dict[str, Any]], num_images: int) -> tuple[CocoData, Path]:
    (root / "annotations").mkdir()
    (root / "val").mkdir()
    sizes = {"height": 400, "width": 500}
    content = {
        "images": [{"id": id, "file_name": f"{id}.jpg", **sizes} for id in range(1, num_images + 1)],
        "annotations": list(annotations),
        "categories": [{"id": id, "name": f"thing {id}"} for id in CATEGORIES],
    }
    file = root / "annotations" / "instances_val.json"
    file.write_text(json.dumps(content))
    return read_coco(root, "val", check_images=False), file


def matches_of(scores: list[list[float]], true: list[list[int]], num_truths: list[int]) -> MatchTable:
    """One category, an image for each list."""
    flat = [value for image in true for value in image]
    return MatchTable(
        num_images=len(scores),
        num_categories=1,
        images=np.arange(len(scores), dtype=np.int32),
        categories=np.zeros(len(scores), np.int32),
        num_truths=np.array(num_truths, np.int32),
        offsets=np.cumsum([0, *map(len, scores)]).astype(np.int32),
        scores=np.array([value for image in scores for value in image], np.float32),
        true=np.array(flat, np.uint16),
        ignored=np.zeros(len(flat), np.uint16),
    )


def random_scene(seed: int) -> tuple[list[dict[str, Any]], list[tuple[int, int, list[float], float]]]:
    """Annotations and detections full of ties, crowds, and areas on the borders of the size classes."""
    generator = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    found: list[tuple[int, int, list[float], float]] = []
    sides = [8.0, 31.0, 32.0, 33.0, 60.0, 96.0, 97.0, 150.0]
    for image in range(1, 8):  # image 8 has neither, image 7 has detections alone
        for _ in range(0 if image == 7 else int(generator.integers(2, 12))):
            box = [*generator.integers(0, 200, 2).astype(float).tolist(), *generator.choice(sides, 2).tolist()]
            category = int(generator.choice(CATEGORIES[:3]))
            crowd = int(generator.random() < 0.15)
            identity = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
            annotations.append(identity | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
            for _ in range(int(generator.integers(0, 4))):
                moved = [side + float(generator.integers(-3, 4)) for side in box]
                found.append((image, category, moved, float(generator.integers(1, 8)) / 8))
    for _ in range(300):
        box = [*generator.integers(0, 200, 2).astype(float).tolist(), *generator.choice(sides, 2).tolist()]
        image = int(generator.choice([1, 1, 1, 1, 1, 2, 3, 7]))
        found.append((image, int(generator.choice([2, 2, 2, 2, 5, 11])), box, float(generator.integers(1, 8)) / 8))
    return annotations, found


def around(area: float) -> list[float]:
    """An area, and its neighbours one unit in the last place below and above."""
    return [float(np.nextafter(area, 0)), area, float(np.nextafter(area, np.inf))]


def border_scene(seed: int) -> tuple[list[dict[str, Any]], list[tuple[int, int, list[float], float]]]:
    """Truth whose areas are one ulp from a border of the size classes, and detections whose sides are (in float32)."""
    generator = np.random.default_rng(seed)
    sides = {
        border: np.nextafter(np.float32(border), np.array([0, border, 1e3], np.float32)).tolist() for border in (32, 96)
    }
    annotations: list[dict[str, Any]] = []
    found: list[tuple[int, int, list[float], float]] = []
    for image in range(1, 6):
        for border, lengths in sides.items():
            for area in around(float(border**2)):
                category, crowd = int(generator.choice(CATEGORIES)), int(generator.random() < 0.2)
                identity = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": crowd}
                # From the corner, as only there float32 corners hold a side that is one ulp from the border.
                annotations.append(identity | {"bbox": [0.0, 0.0, float(border), float(border)], "area": area})
                for _ in range(int(generator.integers(0, 3))):
                    box = [0.0, 0.0, *generator.choice(lengths, 2).tolist()]
                    found.append(
                        (image, int(generator.choice([category, 2])), box, float(generator.integers(1, 5)) / 4)
                    )
        for _ in range(130 if image == 3 else 10):
            border = int(generator.choice([32, 96]))
            box = [float(generator.integers(0, 200)), 0.0, *generator.choice(sides[border], 2).tolist()]
            found.append((image, 2, box, float(generator.integers(1, 5)) / 4))
    return annotations, found
