"""Files of data sets in the forms that exporters write, small enough to work their boxes out by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, height: int = 60, width: int = 80) -> Path:
    """A grey image file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 128, dtype=np.uint8)).save(path)
    return path


def text(path: Path, content: str = "") -> Path:
    """A file of text, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def coco_json(path: Path, names: Iterable[str], **tables: Any) -> Path:
    """A COCO file of 60 x 80 images with these names, each with one box of a cat."""
    names = list(names)
    content: dict[str, Any] = {
        "images": [
            {"id": place, "file_name": name, "height": 60, "width": 80} for place, name in enumerate(names, start=1)
        ],
        "annotations": [
            {"id": place, "image_id": place, "category_id": 1, "bbox": [place, 2, 20, 30], "area": 600, "iscrowd": 0}
            for place in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return text(path, json.dumps(content | tables))


def voc_xml(
    objects: Iterable[tuple[str, Iterable[object]]],
    *,
    filename: str = "1.jpg",
    size: tuple[int, int] | None = (60, 80),
    database: str = "Unknown",
    more: str = "",
) -> str:
    """An XML file of objects: a name and xmin, ymin, xmax, ymax; `size` is height and width."""
    parts = [f"<filename>{filename}</filename><source><database>{database}</database></source>"]
    if size is not None:
        parts.append(f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>")
    for name, corners in objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        parts.append(f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"
