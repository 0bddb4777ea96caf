"""The embedded data set: COCO-format scenes of textured shapes, drawn from a seed and alike on every machine."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from model.data.faults import DataError
from model.data.scenes import CLASSES, Scene, draw_scene

_MARKER = "shapes.json"
_VERSION = 1
"""Rises whenever the same parameters draw other pixels."""
_SPLITS = ("train", "val")


def draw_shapes(root: Path, *, num_train: int, num_val: int, image_size: int = 128, seed: int = 0) -> None:
    """Write splits `train` and `val` under `root` in COCO format, whole or not at all.

    Image k of a split depends on the seed and k alone. A folder that already holds these scenes stays as it is.

    Args:
        root: the folder to make.
        num_train: images of split `train`.
        num_val: images of split `val`.
        image_size: the longer side of every image, in pixels.
        seed: decides every scene.

    Raises:
        DataError: `root` holds something else.
    """
    for name, value, least in (("num_train", num_train, 1), ("num_val", num_val, 1), ("image_size", image_size, 32)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    counts = dict(zip(_SPLITS, (num_train, num_val), strict=True))
    parameters = {"version": _VERSION, "seed": seed, "image_size": image_size, "num_images": counts}
    if _is_drawn(root, parameters):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        draft.chmod(0o755)
        for stream, split in enumerate(_SPLITS):
            _draw_split(draft, split, counts[split], image_size, (seed, stream))
        (draft / _MARKER).write_text(json.dumps(parameters, indent=2) + "\n")
        try:
            os.rename(draft, root)
        except OSError:
            if not _is_drawn(root, parameters):  # else another process was quicker
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_drawn(root: Path, parameters: dict[str, Any]) -> bool:
    """Whether `root` holds these very scenes; False where nothing stands in the way of drawing them."""
    try:
        present = json.loads((root / _MARKER).read_text())
    except (OSError, ValueError):
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        raise DataError(f"{root}: not a folder of drawn shapes; remove it, or draw them elsewhere") from None
    if present != parameters:
        raise DataError(
            f"{root}: holds shapes drawn with {json.dumps(present)}, wanted {json.dumps(parameters)}; remove the folder"
        )
    return True


def _draw_split(root: Path, split: str, num_images: int, image_size: int, key: tuple[int, int]) -> None:
    folder = root / split
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        scene = draw_scene((*key, image_id), image_size)
        name = f"{image_id:06d}.jpg"
        Image.fromarray(scene.pixels).save(folder / name, quality=92)
        height, width = scene.pixels.shape[:2]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += _annotations(scene, image_id, len(annotations) + 1)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": place + 1, "name": name} for place, name in enumerate(CLASSES)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + place,
            "image_id": image_id,
            "category_id": shape.label + 1,
            "bbox": [shape.left, shape.top, shape.right - shape.left, shape.bottom - shape.top],
            "area": shape.area,
            "iscrowd": 0,
        }
        for place, shape in enumerate(scene.shapes)
    ]
