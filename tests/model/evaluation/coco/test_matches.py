"""How detections fare against the truth: bit for bit as pycocotools matches them, and enough for its AP."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.coco.matches import MatchTable, match, read_matches, write_matches
from model.inference.table import DetectionTable
from tests.detections import border_scene, pycocotools_evaluation, random_scene, table, write

Cells = dict[tuple[int, int], tuple[int, list[float], list[int], list[int]]]
"""By (image id, category id): objects to find; and of each detection the score, where it is true, where ignored."""


def our_cells(data: CocoData, matches: MatchTable) -> Cells:
    cells = {}
    for place, (start, stop) in enumerate(zip(matches.offsets[:-1], matches.offsets[1:], strict=True)):
        key = int(data.image_ids[matches.images[place]]), data.category_ids[matches.categories[place]]
        columns = (column[start:stop].tolist() for column in (matches.scores, matches.true, matches.ignored))
        cells[key] = (int(matches.num_truths[place]), *columns)
    return cells


def masks(rows: NDArray[np.bool_]) -> list[int]:
    """[10, D] -> D masks, bit t for row t."""
    return (rows.astype(int) * (1 << np.arange(len(rows)))[:, None]).sum(axis=0).tolist()


def pycocotools_cells(evaluator: Any, size: str = "all") -> Cells:
    cells = {}
    areas = dict(zip(evaluator.params.areaRngLbl, evaluator.params.areaRng, strict=True))
    for one in evaluator.evalImgs[: len(evaluator.params.imgIds) * len(evaluator.params.catIds) * 4]:
        if one is not None and one["aRng"] == areas[size]:
            found, ignored = one["dtMatches"] > 0, one["dtIgnore"].astype(bool)
            objects = int((np.asarray(one["gtIgnore"]) == 0).sum())
            key = one["image_id"], one["category_id"]
            cells[key] = (objects, list(one["dtScores"]), masks(found & ~ignored), masks(ignored))
    return cells


def assert_same_matches(data: CocoData, file: Path, found: DetectionTable) -> Cells:
    matches, evaluator = match(data, found), pycocotools_evaluation(file, found)
    ours = our_cells(data, matches)
    assert ours == pycocotools_cells(evaluator)
    assert list(matches.by_size) == ["small", "medium", "large"]
    for size, of_size in matches.by_size.items():
        assert our_cells(data, of_size) == pycocotools_cells(evaluator, size), size
    assert list(ours) == sorted(ours, key=lambda cell: (cell[1], cell[0]))
    return ours


@pytest.mark.parametrize("seed", range(6))
def test_ties_and_crowds_are_matched_as_pycocotools_matches_them(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    data, file = write(tmp_path, annotations, num_images=8)
    cells = assert_same_matches(data, file, table(found)).values()
    assert any(any(ignored) for *_, ignored in cells) and any(len(scores) == 100 for _, scores, *_ in cells)


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_next_to_a_threshold_are_matched_as_pycocotools_matches_them(tmp_path: Path, seed: int) -> None:
    annotations, found = border_scene(seed)
    data, file = write(tmp_path, annotations, num_images=7)
    assert_same_matches(data, file, table(found))


def test_a_real_detectors_matches_are_those_of_pycocotools(coco_root: Path) -> None:
    data = read_coco(coco_root, "val2017", check_images=False)
    rows = json.loads((coco_root / "results" / "yolov5s_val2017_bbox.json").read_text())
    found = table([(row["image_id"], row["category_id"], row["bbox"], row["score"]) for row in rows])
    cells = assert_same_matches(data, coco_root / "annotations" / "instances_val2017.json", found)
    assert sum(len(scores) for _, scores, *_ in cells.values()) == len(rows)


def box(id: int, x: float, *, crowd: int = 0, side: float = 100.0, image: int = 1) -> dict[str, Any]:
    identity = {"id": id, "image_id": image, "category_id": 2, "iscrowd": crowd}
    return identity | {"bbox": [x, 0.0, side, 100.0], "area": side * 100}


def test_matches_by_hand(tmp_path: Path) -> None:
    """Objects at 0 and 40, a crowd from 200 to 400; each detection is 100 wide, so IoU = (100 - d) / (100 + d)."""
    data, _ = write(tmp_path, [box(1, 0.0), box(2, 40.0), box(3, 200.0, crowd=1, side=200.0)], num_images=2)
    found = [
        (1, 2, [10.0, 0.0, 100.0, 100.0], 0.9),  # 90/110 = 0.82 with the first, 70/130 = 0.54 with the second
        (1, 2, [0.0, 0.0, 100.0, 100.0], 0.8),  # 1.0 with the first, which is free from 0.85; 60/140 with the second
        (1, 2, [30.0, 0.0, 100.0, 100.0], 0.7),  # 0.82 with the second
        (1, 2, [260.0, 0.0, 100.0, 100.0], 0.6),  # all of it on the crowd
        (1, 2, [175.0, 0.0, 100.0, 100.0], 0.5),  # 75 of 100 on the crowd
        (2, 2, [0.0, 0.0, 100.0, 100.0], 0.4),  # nothing is there
    ]
    cells = our_cells(data, match(data, table(found)))
    to_80, from_85, to_75 = 0b0001111111, 0b1110000000, 0b0000111111
    assert [cells[1, 2][0], *cells[1, 2][2:]] == [2, [to_80, from_85, to_80, 0, 0], [0, 0, 0, 0b1111111111, to_75]]
    assert cells[2, 2][2:] == ([0], [0])


def test_of_two_objects_overlapped_alike_the_last_is_taken_by_hand(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [box(1, 0.0), box(2, 40.0)], num_images=1)
    found = [(1, 2, [20.0, 0.0, 100.0, 100.0], 0.9), (1, 2, [60.0, 0.0, 100.0, 100.0], 0.8)]  # 80/120 with both; second
    assert our_cells(data, match(data, table(found)))[1, 2][2] == [0b0000001111, 0]


def test_matches_are_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    for number, rows in enumerate((found, [])):
        matches = match(data, table(rows))
        write_matches(matches, tmp_path / f"{number}.parquet")
        again = read_matches(tmp_path / f"{number}.parquet")
        assert list(again.by_size) == list(matches.by_size) == ["small", "medium", "large"]
        assert_same(matches, again)
        for size, of_size in matches.by_size.items():
            assert_same(of_size, again.by_size[size])


def assert_same(written: MatchTable, read: MatchTable) -> None:
    for name in set(MatchTable.__slots__) - {"by_size"}:
        ours, theirs = getattr(written, name), getattr(read, name)
        assert np.array_equal(ours, theirs) and getattr(ours, "dtype", None) == getattr(theirs, "dtype", None), name


def test_a_file_of_before_there_were_sizes_is_read_as_it_was(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    matches = match(data, table(found))
    write_matches(replace(matches, by_size={}), tmp_path / "old.parquet")
    again = read_matches(tmp_path / "old.parquet")
    assert_same(matches, again)
    assert again.by_size == {}


def test_an_object_of_another_size_hides_what_is_matched_with_it_by_hand(tmp_path: Path) -> None:
    """Objects of 100 x 100 at 0 and of 90 x 90 at 300: large and medium; IoU of 100 x 90 and 90 x 90 is 0.9."""
    small = {"id": 2, "image_id": 1, "category_id": 2, "iscrowd": 0, "bbox": [300.0, 0.0, 90.0, 90.0], "area": 8100.0}
    data, _ = write(tmp_path, [box(1, 0.0), small], num_images=1)
    found = [
        (1, 2, [0.0, 0.0, 100.0, 100.0], 0.9),  # the large one
        (1, 2, [0.0, 0.0, 100.0, 90.0], 0.8),  # medium itself, 0.9 with the large one, which is taken
        (1, 2, [300.0, 0.0, 100.0, 90.0], 0.7),  # medium itself, 0.9 with the medium one
        (1, 2, [150.0, 0.0, 100.0, 100.0], 0.6),  # large itself, and on nothing
    ]
    sizes = match(data, table(found)).by_size
    everywhere, to_90 = 0b1111111111, 0b0111111111
    large = our_cells(data, sizes["large"])[1, 2]
    assert [large[0], *large[2:]] == [1, [everywhere, 0, 0, 0], [0, everywhere, everywhere, 0]]
    assert our_cells(data, sizes["medium"])[1, 2][2:] == ([0, 0, to_90, 0], [everywhere, 0, 0, everywhere])
    assert our_cells(data, sizes["small"])[1, 2][::3] == (0, [everywhere] * 4)


def test_neither_objects_nor_detections_make_an_empty_table(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [], num_images=2)
    matches = match(data, table([]))
    write_matches(matches, tmp_path / "empty.parquet")
    again = read_matches(tmp_path / "empty.parquet")
    assert (len(again.images), again.offsets.tolist(), again.num_images) == (0, [0], 2)


def test_a_file_without_matches_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"score": [1.0]}), tmp_path / "other.parquet")
    (tmp_path / "none.parquet").write_text("nothing")
    for name in ("other", "none"):
        with pytest.raises(ValueError, match=f"{name}.parquet"):
            read_matches(tmp_path / f"{name}.parquet")


def test_a_detection_on_an_unknown_image_is_refused(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [], num_images=2)
    with pytest.raises(ValueError, match="image 9 of a detection is not in the data set"):
        match(data, table([(9, 2, [0, 0, 1, 1], 0.5)]))
    with pytest.raises(ValueError, match="category 7 of a detection"):
        match(data, table([(1, 7, [0, 0, 1, 1], 0.5)]))
