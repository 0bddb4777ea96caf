"""The embedded data set: COCO-format scenes of textured shapes, drawn from a seed and alike on every machine."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.data.faults import DataError

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
CLASSES = ("disc", "square", "triangle", "ring", "star", "cross")
MIN_VISIBLE = 0.4
"""Smallest visible part of a shape; one that would show less is not drawn at all."""
MIN_SIDE = 5
"""Pixels of a box's shorter side."""
_MARKER = "shapes.json"
_VERSION = 1
"""Rises whenever the same parameters draw other pixels."""
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What is annotated: class, and the box and area of the part inside the canvas, hidden pixels included."""

    label: int
    left: int
    top: int
    right: int
    bottom: int
    area: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """A picture and the shapes in it, front to back."""

    pixels: NDArray[np.uint8]
    """RGB [height, width, 3]."""
    shapes: tuple[Shape, ...]


def draw_shapes(
    root: Path, *, num_train: int, num_val: int, num_test: int = 0, image_size: int = 128, seed: int = 0
) -> None:
    """Write splits `train`, `val` and `test` under `root` in COCO format, each whole or not at all.

    Image k of a split depends on the seed and k alone. A folder that already holds these scenes stays as it is; one
    that lacks a split of them gets it.

    Args:
        root: the folder to make.
        num_train: images of split `train`.
        num_val: images of split `val`.
        num_test: images of split `test`; 0 draws no such split.
        image_size: the longer side of every image, in pixels.
        seed: decides every scene.

    Raises:
        DataError: `root` holds something else.
    """
    for name, value, least in (
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("num_test", num_test, 0),
        ("image_size", image_size, 32),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    counts = {name: n for name, n in zip(_SPLITS, (num_train, num_val, num_test), strict=True) if n}
    parameters = {"version": _VERSION, "seed": seed, "image_size": image_size, "num_images": counts}
    missing = _missing_splits(root, parameters)
    if not missing:
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        # mkdtemp lets nobody else in.
        draft.chmod(0o755)
        for split in missing:
            _draw_split(draft, split, counts[split], image_size, (seed, _SPLITS.index(split)))
        (draft / _MARKER).write_text(json.dumps(parameters, indent=2) + "\n")
        try:
            # In one step, so that a kill leaves no half of a data set; fails where root is no empty folder.
            os.rename(draft, root)
        except OSError:
            if missing := _missing_splits(root, parameters):  # else another process was quicker
                _add_splits(draft, root, missing)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _missing_splits(root: Path, parameters: dict[str, Any]) -> list[str]:
    """Return the splits of these very scenes that `root` lacks.

    Raises:
        DataError: something else stands in the way of drawing them.
    """
    wanted = parameters["num_images"]
    try:
        present = json.loads((root / _MARKER).read_text())
    except (OSError, ValueError):
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return list(wanted)
        raise DataError(f"{root}: not a folder of drawn shapes; remove it, or draw them elsewhere") from None
    held = present.get("num_images", {}) if isinstance(present, dict) else {}
    if held.items() - wanted.items() or present != parameters | {"num_images": held}:
        raise DataError(
            f"{root}: holds shapes drawn with {json.dumps(present)}, wanted {json.dumps(parameters)}; remove the folder"
        )
    return [split for split in wanted if split not in held]


def _add_splits(draft: Path, root: Path, splits: Sequence[str]) -> None:
    """Move new splits into a folder that lacks them; the marker comes last, so that a kill leaves them missing."""
    for split in splits:
        # One that is there already came whole from a process that was killed, or that is at it just now.
        with contextlib.suppress(OSError):
            os.rename(draft / split, root / split)
        annotations = f"annotations/instances_{split}.json"
        os.replace(draft / annotations, root / annotations)
    os.replace(draft / _MARKER, root / _MARKER)


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


def draw_scene(key: Sequence[int], image_size: int) -> Scene:
    """Draw the scene that belongs to these numbers; its longer side is `image_size`."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(key))))
    height, width = _canvas(rng, image_size)
    pixels = _background(rng, height, width)
    shapes: list[Shape] = []
    taken = np.zeros((height, width), dtype=bool)
    for place in range(2 + _below(rng, 5)):
        drawn = _draw_shape(rng, pixels, taken, whole=place == 0)
        if drawn is not None:
            shapes.append(drawn)
    pixels += (rng.random((height, width, 1), dtype=np.float32) - 0.5) * np.float32(4 + 16 * rng.random())
    return Scene(pixels=pixels.clip(0, 255).astype(np.uint8), shapes=tuple(shapes))


def _canvas(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Mostly square; now and then wide or high, so that batches have two groups."""
    short = size * 3 // 4
    return ((size, size), (size, size), (size, size), (size, size), (short, size), (size, short))[_below(rng, 6)]


def _background(rng: np.random.Generator, height: int, width: int) -> Array:
    """float32 [height, width, 3]: a dull texture, soft blobs and thin strokes, none of them a class."""
    grey = np.float32(_between(rng, 50, 200))
    first = grey + (_colour(rng) - 128) * np.float32(0.35)
    second = first + (_colour(rng) - 128) * np.float32(0.45)
    mix = _pattern(rng, height, width, _between(rng, 12, 60))[..., None]
    pixels: Array = first + (second - first) * mix
    for _ in range(_below(rng, 3)):
        blob = _clouds(rng, height, width, 3 + _below(rng, 4))
        strength = (blob - np.float32(0.55)).clip(0, 0.15)[..., None] * np.float32(5)
        pixels += (_colour(rng) - pixels) * strength * np.float32(0.8)
    x, y = _grid(height, width)
    for _ in range(_below(rng, 5)):
        c, s = (np.float32(part) for part in _direction(rng))
        offset = x * c + y * s - np.float32(_between(rng, 0.1, 0.9) * width) * c - np.float32(rng.random() * height) * s
        pixels[np.abs(offset) < np.float32(_between(rng, 0.5, 2.0))] = _colour(rng)
    return pixels


def _draw_shape(rng: np.random.Generator, pixels: Array, taken: Mask, *, whole: bool) -> Shape | None:
    """Paint one shape behind those already there; None, with nothing painted, where too little would be seen.

    Args:
        rng: the scene's numbers.
        pixels: [height, width, 3], painted on.
        taken: [height, width], the pixels of nearer shapes; this one's are added.
        whole: keep the shape inside the canvas.
    """
    height, width = taken.shape
    label = _below(rng, len(CLASSES))
    # The product of two makes small shapes more frequent than large ones.
    radius = min(height, width) * (0.11 + 0.3 * rng.random() * rng.random())
    reach = int(radius * 1.25) + 1
    margin = reach if whole else 0
    centre_x = _between(rng, margin, width - margin)
    centre_y = _between(rng, margin, height - margin)
    top, left, side = int(centre_y) - reach, int(centre_x) - reach, 2 * reach + 1
    mask = _mask(rng, label, centre_x - left, centre_y - top, radius, side)

    inner = slice(max(0, -top), min(side, height - top)), slice(max(0, -left), min(side, width - left))
    outer = slice(max(0, top), top + inner[0].stop), slice(max(0, left), left + inner[1].stop)
    inside = mask[inner]
    seen = inside & ~taken[outer]
    # Of the whole mask: what lies beyond the canvas counts as hidden.
    if np.count_nonzero(seen) < MIN_VISIBLE * np.count_nonzero(mask):
        return None
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if min(rows[-1] - rows[0], columns[-1] - columns[0]) < MIN_SIDE - 1:
        return None
    _paint(rng, pixels[outer], seen, radius)
    taken[outer] |= inside
    return Shape(
        label=label,
        left=outer[1].start + int(columns[0]),
        top=outer[0].start + int(rows[0]),
        right=outer[1].start + int(columns[-1]) + 1,
        bottom=outer[0].start + int(rows[-1]) + 1,
        area=int(np.count_nonzero(inside)),
    )


def _mask(rng: np.random.Generator, label: int, x0: float, y0: float, radius: float, side: int) -> Mask:
    """[side, side], a shape around (x0, y0), turned and a little stretched."""
    x, y = _grid(side, side)
    x, y = x - np.float32(x0), y - np.float32(y0)
    c, s = _direction(rng)
    stretch = _between(rng, 0.8, 1.25)
    u = x * np.float32(c / radius * stretch) + y * np.float32(s / radius * stretch)
    v = y * np.float32(c / radius / stretch) - x * np.float32(s / radius / stretch)
    return _DRAWERS[label](u, v)


def _paint(rng: np.random.Generator, window: Array, seen: Mask, radius: float) -> None:
    """Fill the visible pixels with a texture of two colours that stand out from what lay there."""
    height, width = seen.shape
    behind = window[height // 2, width // 2]
    candidates = (rng.random((6, 3)) * 255).astype(np.float32)
    distances = np.abs(candidates - behind).max(axis=1)
    first = candidates[int(distances.argmax())]
    second = first + (_colour(rng) - 128) * np.float32(0.6)
    mix = _pattern(rng, height, width, _between(rng, 0.25, 0.6) * radius + 3)[..., None]
    window[seen] = (first + (second - first) * mix)[seen]


def _pattern(rng: np.random.Generator, height: int, width: int, period: float) -> Array:
    """A texture [height, width] from 0 to 1: a gradient, stripes, checks or clouds."""
    kind = _below(rng, 4)
    if kind == 3:
        return _clouds(rng, height, width, 3 + _below(rng, 6))
    x, y = _grid(height, width)
    if kind == 0:
        period = 2.0 * max(height, width)
    c, s = (np.float32(part / period) for part in _direction(rng))
    along = _triangle_wave(x * c + y * s + np.float32(rng.random()))
    if kind < 2:
        return along
    checks: Array = np.abs(along - _triangle_wave(y * c - x * s))
    return checks


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Smooth noise [height, width] from 0 to 1: `cells` x `cells` random values, interpolated."""
    coarse = (rng.random((cells, cells)) * 256).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth).astype(np.float32) / np.float32(255)


def _triangle_wave(values: Array) -> Array:
    """0 to 1 and back over every unit."""
    wave: Array = np.abs(values - np.floor(values) - np.float32(0.5)) * np.float32(2)
    return wave


def _grid(height: int, width: int) -> tuple[Array, Array]:
    """x [1, width] and y [height, 1] of the pixels of a window."""
    return np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]


def _colour(rng: np.random.Generator) -> Array:
    return (rng.random(3) * 255).astype(np.float32)


def _direction(rng: np.random.Generator) -> tuple[float, float]:
    """A unit vector, by the rational points of a quarter circle and a random quadrant."""
    # IEEE fixes the last bit of + - * /; sine and cosine may differ between machines.
    t = rng.random()
    x, y = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return ((x, y), (-y, x), (-x, -y), (y, -x))[_below(rng, 4)]


def _below(rng: np.random.Generator, limit: int) -> int:
    """A number from 0 to limit - 1, from the one stream of doubles that numpy keeps alike between versions."""
    return int(rng.random() * limit)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _disc(u: Array, v: Array) -> Mask:
    return u * u + v * v <= 1


def _square(u: Array, v: Array) -> Mask:
    return (np.abs(u) <= 0.8) & (np.abs(v) <= 0.8)


def _triangle(u: Array, v: Array) -> Mask:
    slope = np.float32(1.7320508)
    return (v >= -0.5) & (v <= 1 - slope * u) & (v <= 1 + slope * u)


def _ring(u: Array, v: Array) -> Mask:
    square = u * u + v * v
    return (square <= 1) & (square >= 0.3)


def _star(u: Array, v: Array) -> Mask:
    """Inside at least four of the five lines of a pentagram."""
    normals = ((0.0, -1.0), (0.95105652, -0.30901699), (0.58778525, 0.80901699))
    inner = np.float32(0.36)
    count = np.zeros(u.shape, dtype=np.int8)
    for place, (a, b) in enumerate(normals):
        for sign in (1.0,) if place == 0 else (1.0, -1.0):
            count += u * np.float32(sign * a) + v * np.float32(b) <= inner
    return count >= 4


def _cross(u: Array, v: Array) -> Mask:
    a, b = np.abs(u), np.abs(v)
    return ((a <= 0.3) & (b <= 1)) | ((b <= 0.3) & (a <= 1))


_DRAWERS: tuple[Callable[[Array, Array], Mask], ...] = (_disc, _square, _triangle, _ring, _star, _cross)
