"""The embedded data set: the same scenes everywhere, and boxes that fit what is drawn."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data import shapes
from model.data import shapes as scenes
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.images import load_image
from model.data.shapes import CLASSES, Scene, draw_scene, draw_shapes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256(path.read_bytes()) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [draw_scene((0, 0, number), 128) for number in range(1, 201)]


def test_scenes_are_the_same_to_the_bit_on_every_machine(many: list[Scene]) -> None:
    # Of the pixels before compression, as first drawn; new sums need a new shapes._VERSION.
    assert [sha256(scene.pixels.tobytes())[:16] for scene in many[:3]] == [
        "b8377f38d3a874bb",
        "63a09418dd703b89",
        "d73fd62b4031bbad",
    ]
    assert sha256(repr([scene.shapes for scene in many[:50]]).encode())[:16] == "e975f7961d239d3e"
    assert sha256(b"".join(scene.pixels.tobytes() for scene in many[:50]))[:16] == "5ebe6eae622efb7c"


def test_a_box_is_tight_around_the_pixels_of_its_shape(many: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    # With grain and texture off and one shape alone, the painted pixels are those that differ from the background.
    checked = 0
    for number in range(1, 60):
        canvas: scenes.Array = np.zeros((96, 128, 3), dtype=np.float32)
        rng = np.random.Generator(np.random.PCG64(number))
        shape = scenes._draw_shape(rng, canvas, np.zeros((96, 128), dtype=bool), whole=number % 2 == 0)
        if shape is None:
            continue
        painted: scenes.Mask = (canvas != 0).any(axis=2)
        rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert found == (shape.left, shape.top, shape.right, shape.bottom)
        assert painted.sum() == shape.area
        checked += 1
    assert checked > 40


def test_a_shape_of_which_too_little_would_be_seen_is_not_drawn() -> None:
    drawn = 0
    for number in range(200):
        canvas, taken = np.zeros((64, 64, 3), dtype=np.float32), np.zeros((64, 64), dtype=bool)
        taken[:, :40] = True
        rng = np.random.Generator(np.random.PCG64(number))
        shape = scenes._draw_shape(rng, canvas, taken, whole=True)
        seen = np.count_nonzero(canvas.any(axis=2))
        if shape is None:
            assert seen == 0
        else:
            assert seen >= 0.25 * shape.area
            drawn += 1
    assert 20 < drawn < 180


def test_every_scene_has_shapes_inside_its_canvas(many: list[Scene]) -> None:
    for scene in many:
        height, width = scene.pixels.shape[:2]
        assert 1 <= len(scene.shapes) <= 6
        for shape in scene.shapes:
            assert 0 <= shape.left < shape.right <= width
            assert 0 <= shape.top < shape.bottom <= height
            assert min(shape.right - shape.left, shape.bottom - shape.top) >= 5
            assert 0 < shape.area <= (shape.right - shape.left) * (shape.bottom - shape.top)


def test_classes_sizes_and_canvases_are_of_every_kind(many: list[Scene]) -> None:
    everything = [shape for scene in many for shape in scene.shapes]
    counts = np.bincount([shape.label for shape in everything], minlength=len(CLASSES))
    assert counts.min() > 0.1 * len(everything)
    sides = np.array([max(shape.right - shape.left, shape.bottom - shape.top) for shape in everything])
    assert (sides < 25).sum() > 30
    assert (sides > 60).sum() > 30
    assert {scene.pixels.shape for scene in many} == {(128, 128, 3), (96, 128, 3), (128, 96, 3)}


def test_shapes_stand_out_from_what_is_behind_them(many: list[Scene]) -> None:
    """A shape that nobody could see would teach nothing."""
    faint = 0
    everything = 0
    for scene in many:
        for shape in scene.shapes[:1]:
            box = scene.pixels[shape.top : shape.bottom, shape.left : shape.right].astype(float)
            centre = box[box.shape[0] // 2 - 1 : box.shape[0] // 2 + 2, box.shape[1] // 2 - 1 : box.shape[1] // 2 + 2]
            corners = np.stack([box[0, 0], box[0, -1], box[-1, 0], box[-1, -1]])
            contrast = np.abs(corners - centre.mean(axis=(0, 1))).max()
            faint += contrast < 40 and CLASSES[shape.label] not in ("ring", "square")
            everything += 1
    assert faint < 0.05 * everything


def test_a_scene_depends_on_seed_split_and_number_alone(tmp_path: Path) -> None:
    few, more, other = tmp_path / "few", tmp_path / "more", tmp_path / "other"
    draw_shapes(few, num_train=3, num_val=2, image_size=64, seed=5)
    draw_shapes(more, num_train=6, num_val=4, image_size=64, seed=5)
    draw_shapes(other, num_train=3, num_val=2, image_size=64, seed=6)
    images = {name: sums for name, sums in files(few).items() if name.endswith(".jpg")}
    assert len(images) == len(set(images.values())) == 5
    assert images.items() <= files(more).items()
    assert not set(images.values()) & set(files(other).values())
    a, b = (read_coco(root, "train", num_images=3) for root in (few, more))
    assert a.fingerprint == b.fingerprint


def test_the_files_are_a_sound_coco_data_set(shapes_root: Path) -> None:
    for split, count in (("train", 48), ("val", 16)):
        data = read_coco(shapes_root, split)
        assert len(data) == count
        assert data.category_names == CLASSES
        assert data.category_ids == (1, 2, 3, 4, 5, 6)
        key = (0, ("train", "val").index(split), 7)
        scene = draw_scene(key, 128)
        assert data.boxes(6).tolist() == [[s.left, s.top, s.right, s.bottom] for s in scene.shapes]
        assert data.labels(6).tolist() == [shape.label for shape in scene.shapes]
        decoded = load_image(data.path(6)).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(decoded - scene.pixels).mean() < 8  # JPEG loses a little


def test_drawing_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "shapes"
    draw_shapes(root, num_train=2, num_val=1, image_size=64, seed=0)
    before = files(root)
    monkeypatch.setattr(shapes, "draw_scene", None)  # drawing would fail
    draw_shapes(root, num_train=2, num_val=1, image_size=64, seed=0)
    assert files(root) == before


def test_a_folder_that_lacks_a_split_gets_it_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shapes"
    draw_shapes(root, num_train=2, num_val=1, image_size=64)
    before = {name: digest for name, digest in files(root).items() if name != "shapes.json"}
    draw_shapes(root, num_train=2, num_val=1, num_test=3, image_size=64)
    after = files(root)
    assert before.items() <= after.items()
    assert len(read_coco(root, "test")) == 3
    drawn = {name: digest for name, digest in after.items() if name.startswith("test/")}
    assert not set(drawn.values()) & set(before.values())
    monkeypatch.setattr(shapes, "draw_scene", None)  # drawing would fail
    draw_shapes(root, num_train=2, num_val=1, num_test=3, image_size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("change", [{"num_train": 3}, {"num_val": 2}, {"image_size": 96}, {"seed": 1}])
def test_other_parameters_do_not_overwrite_a_folder(tmp_path: Path, change: dict[str, int]) -> None:
    root = tmp_path / "shapes"
    parameters = {"num_train": 2, "num_val": 1, "image_size": 64, "seed": 0}
    draw_shapes(root, **parameters)
    with pytest.raises(DataError, match="remove the folder"):
        draw_shapes(root, **parameters | change)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not a folder of drawn shapes"):
        draw_shapes(tmp_path, num_train=1, num_val=1, image_size=64, seed=0)
    assert files(tmp_path).keys() == {"thesis.tex"}


def test_a_drawing_that_stops_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(key: Any, image_size: int) -> Scene:
        if key[-1] == 3:
            raise KeyboardInterrupt
        return draw_scene(key, image_size)

    monkeypatch.setattr(shapes, "draw_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        draw_shapes(tmp_path / "shapes", num_train=4, num_val=1, image_size=64, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_processes_takes_what_the_quicker_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shapes"
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        draw_shapes(root, num_train=2, num_val=1, image_size=64, seed=0)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    draw_shapes(root, num_train=2, num_val=1, image_size=64, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(read_coco(root, "train")) == 2


def test_the_marker_states_what_was_drawn(shapes_root: Path) -> None:
    assert json.loads((shapes_root / "shapes.json").read_text()) == {
        "version": 1,
        "seed": 0,
        "image_size": 128,
        "num_images": {"train": 48, "val": 16},
    }


@pytest.mark.parametrize("change", [{"num_train": 0}, {"num_val": 0}, {"image_size": 16}])
def test_values_that_draw_nothing_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    parameters = {"num_train": 2, "num_val": 1, "image_size": 64, "seed": 0} | change
    with pytest.raises(ValueError, match=f"{next(iter(change))} is "):
        draw_shapes(tmp_path / "shapes", **parameters)
