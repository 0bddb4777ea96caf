"""Small data sets of two splits whose images look like photographs: soft, and different from each other."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MakeSplit = Callable[..., Path]
SIZE = 160, 120


def photo(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A soft picture; the hashes of two seeds differ by about half of their bits."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def make_split(tmp_path: Path) -> MakeSplit:
    """A function that writes a split in COCO's layout, and returns the root.

    Args of it: the split; images by file name, with ids 1, 2, ...; annotations as (image id, class, box) or such with
    further keys; the classes, with ids 1, 2, ... Beside train it writes a val of one image with a box of each class,
    unless there is one: data of one split would be shared out.
    """

    def make(
        split: str,
        images: dict[str, Image.Image],
        annotations: Sequence[tuple[Any, ...]] = (),
        classes: Sequence[str] = ("cat", "dog"),
    ) -> Path:
        if split == "train" and not (tmp_path / "val").exists():
            make("val", {"val.png": photo(1000)}, [(1, name, [10, 10, 60, 60]) for name in classes], classes)
        shutil.rmtree(tmp_path / split, ignore_errors=True)
        (tmp_path / split).mkdir()
        for name, image in images.items():
            image.save(tmp_path / split / name, quality=95)
        rows = []
        for id, (image_id, name, box, *more) in enumerate(annotations, start=1):
            row = {"id": id, "image_id": image_id, "category_id": 1 + [*classes].index(name), "bbox": box}
            rows.append(row | {"area": box[2] * box[3], "iscrowd": 0} | (more[0] if more else {}))
        content = {
            "images": [
                {"id": id, "file_name": name, "width": image.width, "height": image.height}
                for id, (name, image) in enumerate(images.items(), start=1)
            ],
            "annotations": rows,
            "categories": [{"id": id, "name": name} for id, name in enumerate(classes, start=1)],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def cut_short(file: Path) -> None:
    """Leave the beginning of an annotation file, as a broken download does."""
    file.write_text(file.read_text()[:-5])
