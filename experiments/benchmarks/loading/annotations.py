"""What annotations of the size of COCO's train2017 cost a process: seconds to read, and memory of its own."""

import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.data.coco import read_coco
from model.data.split import COLUMNS, CocoData

TRAIN2017 = 118_287
SPLIT = "large"


def report(source: Path, num_images: int, scratch: Path, say: Callable[[str], None]) -> None:
    """Write a large annotation file after `source`, read it in fresh processes, and print what each took."""
    root = scratch / "large"
    num_annotations = write_large(source, num_images, root)
    size = (root / "annotations" / f"instances_{SPLIT}.json").stat().st_size
    say(f"annotations: {num_images:,} images, {num_annotations:,} annotations, {size / 1e6:.0f} MB of JSON")
    say(f"  {'a fresh process':34s} seconds   private MB grown by  anonymous   peak MB")
    nowhere = str(scratch / "large" / "annotations" / f"instances_{SPLIT}.json")
    for name, cache in (("without a cache", nowhere), ("first read", str(scratch)), ("second read", str(scratch))):
        with _cache_in(cache):
            took = _in_a_fresh_process(_reading, root)
        say(f"  {name:34s} {took[0]:7.2f} {took[1] / 1e6:21.1f} {took[2] / 1e6:9.1f} {took[3] / 1e6:9.0f}")
    with _cache_in(str(scratch)):
        mapped = read_coco(root, SPLIT, check_images=False)
    with _cache_in(nowhere):
        in_memory = read_coco(root, SPLIT, check_images=False)
    held = sum(getattr(mapped, name).nbytes for name in COLUMNS)
    say(
        f"  the columns are {held / 1e6:.1f} MB; private MB of two DataLoader workers that read all of them, over those"
    )
    say("  of workers without data:")
    for method in ("fork", "spawn"):
        base = max(_workers(None, method))
        grown = [(max(_workers(data, method)) - base) / 1e6 for data in (in_memory, mapped)]
        say(f"    {method:6s} in memory {grown[0]:7.1f}   mapped {grown[1]:7.1f}")


def write_large(source: Path, num_images: int, root: Path) -> int:
    """Repeat the images and boxes of a COCO file under new ids, with outlines of the usual length."""
    content = json.loads(source.read_text())
    boxes: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        if min(row["bbox"][2:]) > 0:
            boxes[row["image_id"]].append(row)
    random = np.random.default_rng(0)
    outlines = [_outline(random) for _ in range(997)]
    (root / SPLIT).mkdir(parents=True)
    (root / "annotations").mkdir()
    count = 0
    with (root / "annotations" / f"instances_{SPLIT}.json").open("w") as file:
        file.write(f'{{"info": {{}}, "categories": {json.dumps(content["categories"])}, "images": [')
        for place in range(num_images):
            image = content["images"][place % len(content["images"])]
            renamed = image | {"id": place + 1, "file_name": f"{place + 1:012d}.jpg"}
            file.write(f"{', ' if place else ''}{json.dumps(renamed)}")
        file.write('], "annotations": [')
        for place in range(num_images):
            for row in boxes[content["images"][place % len(content["images"])]["id"]]:
                file.write(
                    f'{", " if count else ""}{{"segmentation": {outlines[count % len(outlines)]}, "area": '
                    f'{row["area"] + 0.25}, "iscrowd": {row["iscrowd"]}, "image_id": {place + 1}, "bbox": '
                    f'{row["bbox"]}, "category_id": {row["category_id"]}, "id": {count + 1}}}'
                )
                count += 1
        file.write("]}")
    file_settled = time.time() - 60
    os.utime(root / "annotations" / f"instances_{SPLIT}.json", (file_settled, file_settled))
    return count


def _outline(random: np.random.Generator) -> str:
    """A polygon as COCO writes it, of some 25 points."""
    return json.dumps([np.round(random.uniform(0, 640, 2 * random.integers(6, 44)), 2).tolist()])


def _reading(root: Path, pipe: Connection) -> None:
    before = private_memory()
    clock = time.perf_counter()
    data = read_coco(root, SPLIT, check_images=False)
    seconds = time.perf_counter() - clock
    use(data)
    after = private_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send((seconds, after[0] - before[0], after[1] - before[1], peak))


def _in_a_fresh_process(function: Callable[[Path, Connection], None], root: Path) -> tuple[float, ...]:
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=function, args=(root, theirs))
    process.start()
    took: tuple[float, ...] = mine.recv()
    process.join()
    return took


def private_memory() -> tuple[int, int]:
    """Bytes that this process shares with no other (what a file holds is shared once two map it), and of no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":") for line in lines)}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Anonymous"]


def use(data: CocoData) -> None:
    """Read every byte, and boxes as a training does."""
    for name in COLUMNS:
        getattr(data, name).reshape(-1).view(np.uint8).max()
    for index in range(0, len(data), max(1, len(data) // 2000)):
        data.boxes(index)
        data.labels(index)


class _Using(Dataset[int]):
    """Its items are the private bytes of the worker that makes them."""

    def __init__(self, data: CocoData | None) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> int:
        torch.set_num_threads(1)
        if self.data is not None:
            use(self.data)
        time.sleep(1)  # until the other worker has mapped the file as well
        return private_memory()[0]


def _workers(data: CocoData | None, method: str) -> list[int]:
    loader = DataLoader(_Using(data), batch_size=None, num_workers=2, multiprocessing_context=method)
    return [int(size) for size in loader]


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get("RNC_CACHE")
    os.environ["RNC_CACHE"] = folder
    try:
        yield
    finally:
        os.environ.pop("RNC_CACHE") if before is None else os.environ.update(RNC_CACHE=before)
