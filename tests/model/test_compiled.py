"""Compiled functions stay inside of their arrays whatever their numbers are: numba itself checks no index."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
NUM_ROUNDS = 300
"""Of random inputs for each function."""
Args = tuple[Any, ...]
Random = np.random.Generator
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-45, 0.5, 1e30], np.float32)


def compiled() -> dict[str, Any]:
    """Every function that numba compiles, by module and name, in whichever file it is."""
    found = {}
    for package in ("model", "orchestrator"):
        for file in sorted((ROOT / package).rglob("*.py")):
            if "numba" in file.read_text(encoding="utf-8"):
                module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
                for name, value in vars(module).items():
                    if hasattr(value, "py_func") and value.__module__ == module.__name__:
                        found[f"{module.__name__}.{name}"] = value
    return found


def count(random: Random) -> int:
    return int(random.choice([0, 1, 2, 7, 33, 90]))


def floats(random: Random, *shape: int) -> NDArray[np.float32]:
    """Numbers from 0 to 1 with many ties, odd ones among them, or nothing else."""
    values = (random.integers(0, random.choice([2, 9, 1000]), shape) / 9).astype(np.float32)
    odd = random.random(shape) < random.choice([0.0, 0.1, 1.0])
    return np.where(odd, random.choice(ODD, shape), values).astype(np.float32)


def boxes(random: Random, num: int) -> NDArray[np.float32]:
    """Sound, duplicated, turned inside out, without area, huge, or no numbers at all."""
    found = (floats(random, num, 4) * np.float32(random.choice([1, 100]))).astype(np.float32)
    if random.random() < 0.5:
        found[:, 2:] = found[:, :2] + np.abs(found[:, 2:])
    return found[random.integers(0, num, num)] if num and random.random() < 0.3 else found


def integers(random: Random, below: int, num: int) -> NDArray[np.int64]:
    return random.integers(0, max(below, 1), num)


def limit(random: Random) -> int:
    return int(random.choice([0, 1, 5, 100, 200]))


def iou(random: Random) -> np.float32:
    return np.float32(random.choice([0.0, 0.5, 1.0, np.nan]))


def ends(random: Random, total: int, parts: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.sort(random.integers(0, total + 1, parts - 1)), [total]]).astype(np.int64)


def of_keep(random: Random) -> Args:
    num = count(random)
    return boxes(random, num), integers(random, 3, num), iou(random), limit(random), by_distance(random)


def by_distance(random: Random) -> bool | None:
    """Each compiles a function of its own."""
    return True if random.random() < 0.5 else None


def of_largest(random: Random) -> Args:
    values = floats(random, count(random) + 1)
    chosen = int(random.integers(1, len(values) + 1))
    # As the caller has it, by a partition that takes NaN for the largest; and any other number.
    kth = np.partition(values, -chosen)[-chosen] if random.random() < 0.7 else random.choice(ODD)
    return values, np.float32(kth), chosen


def of_pack(random: Random) -> Args:
    threshold = np.abs(floats(random, 1)).view(np.uint32)[0]
    return floats(random, count(random), 3).view(np.uint32), threshold


def of_keep_packed(random: Random) -> Args:
    from model.inference.suppression.nms import pack

    num, num_boxes = count(random), count(random) + 1
    scores = floats(random, num, 3)
    keys = pack(scores.view(np.uint32), np.float32(random.choice([0.0, 0.3])).view(np.uint32))
    random.shuffle(keys)
    places = integers(random, num_boxes, num)
    return keys, scores.size - 1, places, boxes(random, num_boxes), 3, iou(random), limit(random)


def of_deal(random: Random) -> Args:
    spread = int(random.choice([1, 2, 1000, 2**40, 2**63]))
    return (random.integers(0, spread, count(random), dtype=np.uint64) + np.uint64(random.choice([0, 2**63])),)


def of_overlap(random: Random) -> Args:
    return boxes(random, 1)[0], boxes(random, 1)[0]


def candidates(random: Random) -> tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.float32], Any]:
    """Keys, scores, boxes and labels of candidates, sorted as functions get them, odd numbers among all of them."""
    num = count(random)
    scores = floats(random, num)
    keys = (scores.view(np.uint32).astype(np.uint64) << np.uint64(32)) | random.integers(0, 99, num).astype(np.uint64)
    order = np.argsort(keys)[::-1] if random.random() < 0.8 else np.arange(num)
    return keys[order], scores[order], boxes(random, num), integers(random, 3, num)


def sigma(random: Random) -> float:
    return float(random.choice([0.0, 1e-30, 0.5, 1e30, np.nan]))


def of_keep_lowered(random: Random) -> Args:
    return *candidates(random), 3, iou(random), sigma(random), np.float32(random.choice(ODD)), limit(random)


def of_rank_decayed(random: Random) -> Args:
    return *candidates(random), 3, sigma(random), np.float32(random.choice(ODD)), limit(random)


def of_keep_voted(random: Random) -> Args:
    _, scores, there, labels = candidates(random)
    return scores, there, labels, 3, iou(random), sigma(random), limit(random)


def of_keep_guided(random: Random) -> Args:
    _, scores, there, labels = candidates(random)
    return random.permutation(len(scores)), scores, there, labels, 3, iou(random)


def of_sink(random: Random) -> Args:
    num = count(random)
    keys = random.integers(0, 9, num, dtype=np.uint64)
    return keys, np.arange(num), int(random.integers(0, num + 1))


def of_count_candidates(random: Random) -> Args:
    num, pooled = count(random), count(random) + 1
    return (
        *(integers(random, pooled, num), floats(random, pooled, 3), floats(random, pooled, 3), floats(random, num)),
        *(*(np.float32(one) for one in floats(random, 3)), floats(random, num), floats(random, pooled, 3)),
    )


def of_count_detections(random: Random) -> Args:
    num = count(random)
    return floats(random, num), floats(random, num), floats(random, num)


def of_overlaps(random: Random) -> Args:
    num = count(random)
    return boxes(random, count(random)), 3, boxes(random, num), integers(random, 3, num)


def of_best_overlaps(random: Random) -> Args:
    num, objects = count(random), count(random)
    return boxes(random, num), integers(random, 3, num), boxes(random, objects), integers(random, 3, objects)


def of_beaten(random: Random) -> Args:
    num, kept, objects = count(random), count(random), count(random) + 1
    return (
        *(boxes(random, num), integers(random, 3, num), floats(random, num), anchors(random, num), floats(random, num)),
        *(integers(random, objects, num), boxes(random, kept), integers(random, 3, kept), floats(random, kept)),
        *(anchors(random, kept), boxes(random, objects), iou(random), by_distance(random)),
    )


def anchors(random: Random, num: int) -> NDArray[np.int32]:
    return integers(random, 1000, num).astype(np.int32)


def of_batch_overlaps(random: Random) -> Args:
    first, *rest = of_best_overlaps(random)
    parts = int(random.integers(1, 4))
    return first, rest[0], ends(random, len(first), parts), rest[1], rest[2], ends(random, len(rest[1]), parts)


def of_batch_counts(random: Random) -> Args:
    columns = of_count_detections(random)
    return *columns, ends(random, len(columns[0]), int(random.integers(1, 4)))


def of_batch_beaten(random: Random) -> Args:
    parts = int(random.integers(1, 4))
    images = [of_beaten(random) for _ in range(parts)]
    columns = [np.concatenate([image[place] for image in images]) for place in range(11)]
    ended = [np.cumsum([0, *(len(image[place]) for image in images)]) for place in (0, 6, 10)]
    columns[5] = np.concatenate([image[5] + start for image, start in zip(images, ended[2], strict=False)])
    return *columns[:6], ended[0], *columns[6:10], ended[1], columns[10], ended[2], *images[0][11:]


def of_oracle(random: Random) -> Args:
    num = count(random)
    places = ends(random, num, int(random.integers(1, 4)))
    columns = boxes(random, num), integers(random, 3, num), floats(random, num)
    return *columns, places, iou(random), limit(random), by_distance(random)


def of_weighted_sum(random: Random) -> Args:
    num, num_images = count(random), count(random) + 1
    return integers(random, num_images, num), integers(random, 9, num), floats(random, num_images, count(random))


def masks(random: Random, num: int) -> NDArray[np.uint16]:
    """Of thresholds, most of them none, never all."""
    return (random.integers(0, 1023, num) * (random.random(num) < random.choice([0.0, 0.1, 1.0]))).astype(np.uint16)


def of_precision_sums(random: Random) -> Args:
    num_images, width = count(random) + 1, int(random.choice([1, 127, 128, 129, 300]))
    used, images = np.unique(integers(random, num_images, count(random)), return_inverse=True)
    columns = masks(random, len(images)), masks(random, len(images))
    return used, images, *columns, floats(random, num_images, width), floats(random, width)


def of_count(random: Random) -> Args:
    used, images, _, ignored, weights, _ = of_precision_sums(random)
    rows = np.flatnonzero(random.random(len(images)) < random.choice([0.1, 0.5, 1.0]))
    return rows, images, ignored, weights[used], np.empty((len(rows), weights.shape[1]))


def of_rise(random: Random) -> Args:
    used, images, true, ignored, weights, _ = of_precision_sums(random)
    counted, found, precision = np.ones((3, len(images), weights.shape[1]))
    return int(random.integers(0, 10)), images, true, ignored, weights[used], counted, found, precision


def of_sum_envelope(random: Random) -> Args:
    num, width = count(random), count(random)
    columns = (floats(random, *shape).astype(np.float64) for shape in ((num, width), (num, width), (width,)))
    return int(random.integers(0, num + 1)), *columns, np.empty(width)


INPUTS: dict[str, Callable[[Random], Args]] = {
    "model.inference.suppression.nms.keep": of_keep,
    "model.inference.suppression.nms.largest": of_largest,
    "model.inference.suppression.nms.pack": of_pack,
    "model.inference.suppression.nms.keep_packed": of_keep_packed,
    "model.inference.suppression.nms._deal": of_deal,
    "model.inference.suppression.nms._sort": of_deal,
    "model.inference.suppression.nms.overlap": of_overlap,
    "model.inference.suppression.nms.distance_overlap": of_overlap,
    "model.inference.suppression.soft_nms.keep_lowered": of_keep_lowered,
    "model.inference.suppression.soft_nms._factor": lambda random: (floats(random, 1)[0], iou(random), sigma(random)),
    "model.inference.suppression.soft_nms._sink": of_sink,
    "model.inference.suppression.matrix_nms.rank_decayed": of_rank_decayed,
    "model.inference.suppression.voting.keep_voted": of_keep_voted,
    "model.inference.suppression.iou_guided.keep_guided": of_keep_guided,
    "model.evaluation.counting.count_candidates": of_count_candidates,
    "model.evaluation.counting.count_detections": of_count_detections,
    "model.evaluation.counting._bin": lambda random: (floats(random, 1)[0] * np.float32(random.choice([-1, 1, 99])),),
    "model.evaluation.counting.overlaps": of_overlaps,
    "model.evaluation.counting.best_overlaps": of_best_overlaps,
    "model.evaluation.counting.beaten": of_beaten,
    "model.evaluation.batched_counting._best_overlaps": of_batch_overlaps,
    "model.evaluation.batched_counting._count_detections": of_batch_counts,
    "model.evaluation.batched_counting._beaten": of_batch_beaten,
    "model.evaluation.batched_counting._oracle": of_oracle,
    "model.evaluation.coco.reweighted._weighted_sum": of_weighted_sum,
    "model.evaluation.coco.reweighted._precision_sums": of_precision_sums,
    "model.evaluation.coco.reweighted._count": of_count,
    "model.evaluation.coco.reweighted._rise": of_rise,
    "model.evaluation.coco.reweighted._sum_envelope": of_sum_envelope,
}
"""What each compiled function may be called with, as far as its indices go; its floats may be anything."""
PLACES: dict[str, Callable[[Any, Args], list[tuple[Any, int]]]] = {
    "model.inference.suppression.nms.keep": lambda found, args: [(found, len(args[0]))],
    "model.inference.suppression.nms.largest": lambda found, args: [(found, len(args[0]))],
    "model.inference.suppression.nms.keep_packed": lambda found, args: [(found[0], len(args[2])), (found[1], args[4])],
    "model.inference.suppression.nms._deal": lambda found, args: [(found[1], len(args[0]) + 1)],
    "model.inference.suppression.soft_nms.keep_lowered": lambda found, args: [(found[0], len(args[0]))],
    "model.inference.suppression.matrix_nms.rank_decayed": lambda found, args: [(found[0], len(args[0]))],
    "model.inference.suppression.voting.keep_voted": lambda found, args: [(found[0], len(args[0]))],
    "model.inference.suppression.iou_guided.keep_guided": lambda found, args: [(found[0], len(args[0]))],
    "model.evaluation.counting._bin": lambda found, args: [(np.array([found]), 50)],
    "model.evaluation.counting.count_candidates": lambda found, args: [(found[4], len(args[0])), (found[5], 3)],
    "model.evaluation.counting.overlaps": lambda found, args: [(found[1] + 1, len(args[2]) + 1)],
    "model.evaluation.counting.beaten": lambda found, args: [(found[0], len(args[0])), (found[1], len(args[6]))],
    "model.evaluation.batched_counting._beaten": lambda found, args: [
        *((found[0], len(args[0])), (found[1], len(args[7])))
    ],
    "model.evaluation.batched_counting._oracle": lambda found, args: [(found, len(args[0]))],
}
"""Which results are places, each with the length of what they are places in: memory that was never written is none."""


def misused() -> Iterator[str]:
    """What goes wrong with random inputs: places outside of an array, by index or in a result."""
    functions = compiled()
    for name, make in INPUTS.items():
        random = np.random.default_rng(len(name))
        for number in range(NUM_ROUNDS):
            with np.errstate(all="ignore"):
                args = make(random)
            # Memory that is not written must not look like places.
            junk = [np.full(size, -(2**62) + number) for size in (8, 64, 512) for _ in range(4)]
            del junk
            try:
                found = functions[name](*args)
            except Exception as error:
                yield f"{name}, round {number}: {type(error).__name__}: {error}"
                break
            places = PLACES[name](found, args) if name in PLACES else []
            wrong = [one for values, most in places for one in np.ravel(values).tolist() if not 0 <= one < most]
            if wrong:
                yield f"{name}, round {number}: {wrong[:3]} in its result are no places"
                break


def test_each_compiled_function_is_known_here() -> None:
    assert sorted(compiled()) == sorted(INPUTS)


@pytest.mark.slow
def test_no_number_leads_out_of_an_array(tmp_path: Path) -> None:
    # A cache of its own, as numba does not tell functions with checks and without apart there.
    checked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", __name__], env=checked, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("all sound\n", 0), done.stdout + done.stderr[-3000:]


if __name__ == "__main__":
    print("\n".join(misused()) or "all sound")
