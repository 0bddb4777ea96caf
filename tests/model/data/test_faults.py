"""Damaged data sets: everything wrong is told at once, and what a quarantine leaves can train."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.config import DataConfig, TrainConfig
from model.data.coco import read_coco, read_for_scoring, read_for_training
from model.data.faults import DataError
from model.data.images import collate, load_sample
from model.training.batches import epoch_batches
from tests.conftest import MakeCoco


def annotation(id: int, bbox: Any, image_id: int = 1, category_id: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def told(root: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_coco(root, "train", **options)
    return str(caught.value)


def kinds(root: Path) -> list[tuple[str, int, int | None]]:
    return [(fault.kind, fault.image_id, fault.annotation_id) for fault in quarantine(root).faults]


def quarantine(root: Path) -> Any:
    return read_coco(root, "train", faults="quarantine")


def annotations_file(root: Path) -> Path:
    return root / "annotations" / "instances_train.json"


@pytest.fixture
def damaged(make_coco: MakeCoco) -> Path:
    """Ten images of 60 x 80 with every fault that a quarantine can leave out; images 1 and 10 are sound."""
    annotations = [
        annotation(1, [5, 5, 20, 20]),
        annotation(1, [6, 6, 20, 20]),
        annotation(2, [5, 5, 0, 20]),
        annotation(3, [5, 5, 20, -3]),
        annotation(4, [5, 5, float("nan"), 20]),
        annotation(5, [5, float("inf"), 20, 20]),
        annotation(6, [70, 5, 20, 20], area=400.0),
        annotation(7, [81, 5, 20, 20]),
        annotation(8, [5, 5, 20, 20], category_id=4),
        annotation(9, [5, 5, 20, 20], image_id=99),
        annotation(10, [5, 5, 20]),
        annotation(11, None),
        annotation(12, [5, 5, 20, "20"]),
        *(annotation(20 + image_id, [10, 20, 30, 40], image_id) for image_id in range(2, 11)),
    ]
    root = make_coco(annotations, sizes=[(60, 80)] * 10)
    folder = root / "train"
    (folder / "2.jpg").unlink()
    (folder / "3.jpg").write_bytes(b"")
    (folder / "4.jpg").write_text("<html>404</html>")
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for image_id, form in ((5, "jpeg"), (6, "png"), (7, "bmp")):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, form)
        (folder / f"{image_id}.jpg").write_bytes(file.getvalue()[:-40])
    Image.new("RGB", (60, 80)).save(folder / "8.jpg")
    (folder / "9.jpg").unlink()
    (folder / "9.jpg").mkdir()
    return root


FAULTS = [
    ("image_missing", 2, None),
    ("image_broken", 3, None),
    ("image_broken", 4, None),
    ("image_broken", 5, None),
    ("image_broken", 6, None),
    ("image_broken", 7, None),
    ("image_resized", 8, None),
    ("image_broken", 9, None),
    ("annotation_duplicate", 1, 1),
    ("box_empty", 1, 2),
    ("box_empty", 1, 3),
    ("box_not_finite", 1, 4),
    ("box_not_finite", 1, 5),
    ("box_outside", 1, 6),
    ("box_outside", 1, 7),
    ("category_unknown", 1, 8),
    ("annotation_stray", 99, 9),
    ("box_not_finite", 1, 10),
    ("box_not_finite", 1, 11),
    ("box_not_finite", 1, 12),
]


def test_every_fault_is_told_at_once_by_kind_and_number(damaged: Path) -> None:
    lines = told(damaged).splitlines()
    assert lines[0] == f"{annotations_file(damaged)}: the data set is faulty in 20 places"
    folder = damaged / "train"
    assert lines[1].strip() == f"images missing (1): image 2 (2.jpg, looked for in {folder})"
    assert lines[2].startswith(f"  images that do not decode (6): image 3 ({folder / '3.jpg'}: ")
    assert lines[2].endswith(", ...")
    assert [line.strip() for line in lines[3:8]] == [
        f"images of another size than annotated (1): image 8 ({folder / '8.jpg'}: 80 x 60, annotated 60 x 80 "
        "(height x width))",
        "duplicate annotation ids (1): annotation 1 (image 1)",
        "annotations of images that are not listed (1): annotation 9 (image 99)",
        "annotations of unknown categories (1): annotation 8 (image 1, category 4)",
        "boxes that are not four finite numbers (5): annotation 4 (image 1, bbox [5, 5, NaN, 20]), "
        "annotation 5 (image 1, bbox [5, Infinity, 20, 20]), annotation 10 (image 1, bbox [5, 5, 20]), "
        'annotation 11 (image 1, bbox null), annotation 12 (image 1, bbox [5, 5, 20, "20"])',
    ]
    assert lines[8].startswith("  boxes of zero or negative size (2): annotation 2 (image 1, bbox [5, 5, 0, 20])")
    assert lines[9].startswith("  boxes that leave their image by more than a pixel (2): annotation 6")
    assert "`faults: quarantine` (setting train.data.faults)" in lines[10]
    assert len(lines) == 11


def test_a_quarantine_leaves_out_what_is_faulty_and_tells_of_it(damaged: Path) -> None:
    data = quarantine(damaged)
    assert [(fault.kind, fault.image_id, fault.annotation_id) for fault in data.faults] == FAULTS
    assert data.image_ids.tolist() == [1, 10]
    assert data.boxes(0).tolist() == [[5, 5, 25, 25], [70, 5, 80, 25]]
    assert data.boxes(1).tolist() == [[10, 20, 40, 60]]
    assert [row["bbox"] for row in data.coco_dict()["annotations"]] == [
        [5, 5, 20, 20],
        [70, 5, 10, 20],
        [10, 20, 30, 40],
    ]
    assert data.annotation_areas.tolist() == [400, 200, 1200]


def test_what_a_quarantine_leaves_can_train(damaged: Path) -> None:
    data = quarantine(damaged)
    config = TrainConfig(data=DataConfig(short_edge=64, long_edge=96))
    (batch,) = epoch_batches(data, config, 0)
    samples = collate([load_sample(data, index, 64, 96, flip=True) for index in batch], (64, 96))
    corners = samples.boxes[samples.labels >= 0]
    assert corners.isfinite().all()
    assert (corners[:, 2:] > corners[:, :2]).all()


def test_every_reader_of_a_quarantined_split_leaves_out_the_same(damaged: Path) -> None:
    config = DataConfig(train_split="train", val_split="train", faults="quarantine")
    fingerprint = quarantine(damaged).fingerprint
    assert read_for_training(damaged, config).fingerprint == fingerprint
    assert read_for_scoring(damaged, config, "train").fingerprint == fingerprint


def test_a_split_is_scored_on_as_many_images_as_its_config_says(shapes_root: Path) -> None:
    config = DataConfig(dataset="shapes", train_split="train", val_split="val", num_train_images=5, num_val_images=3)
    assert len(read_for_training(shapes_root, config)) == 5
    assert len(read_for_scoring(shapes_root, config, "val")) == 3
    assert len(read_for_scoring(shapes_root, config, "train")) == 5


def test_faults_of_images_that_are_not_selected_do_not_count(damaged: Path) -> None:
    assert "faulty in 12 places" in told(damaged, num_images=1)
    data = read_coco(damaged, "train", num_images=1, faults="quarantine")
    assert data.image_ids.tolist() == [1]


def test_annotations_of_images_that_are_not_selected_may_be_faulty(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, [5, 5, 9, 9]), annotation(2, [5, 5, 0, 9], 2)], sizes=[(60, 80)] * 2)
    assert read_coco(root, "train", num_images=1).boxes(0).tolist() == [[5, 5, 14, 14]]
    assert "annotation 2" in told(root, num_images=2)


@pytest.mark.parametrize(
    ("bbox", "faulty"),
    [
        ([-1, -1, 82, 62], False),
        ([-1.01, 5, 20, 20], True),
        ([5, -1.01, 20, 20], True),
        ([60, 5, 21.01, 20], True),
        ([5, 40, 20, 21.01], True),
        ([5, 5, 1e-3, 20], False),
        ([5, 5, 1e200, 1e200], True),
        ([5, 5, 10**400, 20], True),
    ],
)
def test_a_box_may_leave_its_image_by_one_pixel(make_coco: MakeCoco, bbox: list[float], faulty: bool) -> None:
    root = make_coco([annotation(1, [5, 5, 20, 20]), annotation(2, bbox)])
    assert bool(kinds(root)) == faulty


def test_a_sound_image_of_any_format_passes(make_coco: MakeCoco) -> None:
    root = make_coco(sizes=[(60, 80)] * 5)
    for image_id, form in enumerate(("jpeg", "png", "bmp", "webp", "gif"), start=1):
        Image.new("L", (80, 60)).save(root / "train" / f"{image_id}.jpg", form)
    with (root / "train" / "1.jpg").open("ab") as file:
        file.write(b"\0" * 9000)  # some cameras write on after the end of the image
    assert len(read_coco(root, "train")) == 5


@pytest.mark.parametrize("faults", ["refuse", "quarantine"])
def test_duplicate_image_ids_are_refused_always(make_coco: MakeCoco, faults: str) -> None:
    images = [{"id": id, "file_name": f"{place}.jpg", "height": 60, "width": 80} for place, id in enumerate((4, 4, 5))]
    message = told(make_coco([annotation(1, [5, 5, 0, 9], 5)], images=images), faults=faults)
    assert "duplicate image ids (1): image 4" in message
    assert "boxes of zero or negative size (1): annotation 1" in message
    assert "give every image an id of its own" in message


@pytest.mark.parametrize("faults", ["refuse", "quarantine"])
def test_a_truncated_file_is_named_with_the_place(make_coco: MakeCoco, faults: str) -> None:
    root = make_coco([annotation(1, [5, 5, 9, 9], segmentation=[[1, 2, 3, 4]])])
    file = annotations_file(root)
    text = file.read_text().replace('"annotations"', '\n"annotations"')
    file.write_text(text[:-30])
    message = told(root, faults=faults)
    assert message.startswith(f"{file}: not JSON at line 2, column ")
    assert message.endswith("the file may be cut short: fetch it again")


def test_the_place_of_a_mistake_counts_outlines_as_they_stand_in_the_file(make_coco: MakeCoco) -> None:
    root = make_coco()
    text = '{"annotations": [{"segmentation": [[1, 2, 3, 4]], "bbox": ?}]}'
    annotations_file(root).write_text(text)
    assert f"line 1, column {text.index('?') + 1} of {len(text)} bytes" in told(root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON at line 1, column 1"),
        ("[1, 2]", "not COCO: the top level is a list"),
        ('{"images": [], "categories": []}', "not COCO: 'annotations' is missing, expected a list"),
        ('{"images": {}, "annotations": [], "categories": []}', "not COCO: 'images' is a dict, expected a list"),
        ('{"images": [1], "annotations": [], "categories": []}', r"not COCO: images[0] is 1, expected an object"),
        ("\xff\xfe\x00", "not JSON"),
        ("[" * 200000, "not JSON"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(make_coco: MakeCoco, text: str, reason: str) -> None:
    root = make_coco()
    annotations_file(root).write_bytes(text.encode("latin-1"))
    for faults in ("refuse", "quarantine"):
        message = told(root, faults=faults)
        assert message.startswith(f"{annotations_file(root)}: ")
        assert reason in message


IMAGE = {"id": 1, "file_name": "1.jpg", "height": 60, "width": 80}


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"images": []}, "the split is empty"),
        ({"categories": []}, "nothing to detect"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "'categories' gives one id to several"),
        ({"categories": [{"id": 1}]}, "categories[0].name is None, expected a text"),
        ({"images": [IMAGE | {"id": "a"}]}, "images[0].id is 'a', expected a whole number"),
        ({"images": [IMAGE | {"id": 2**70}]}, "images[0].id is 1180591620717411303424, expected a whole number"),
        ({"annotations": [annotation(1, [1, 1, 9, 9], image_id=1.5)]}, "annotations[0].image_id is 1.5"),  # type: ignore[arg-type]
        ({"annotations": [{"id": True}]}, "annotations[0].id is True, expected a whole number"),
    ],
)
def test_a_table_without_what_coco_demands_is_refused(make_coco: MakeCoco, tables: Any, reason: str) -> None:
    root = make_coco(**tables)
    assert reason in told(root, faults="quarantine")


def test_an_image_without_extent_is_refused(make_coco: MakeCoco) -> None:
    root = make_coco()
    file = annotations_file(root)
    file.write_text(file.read_text().replace('"height": 60', '"height": 0'))
    assert "images[0] is [0, 80] (height, width)" in told(root, faults="quarantine")


def test_whole_numbers_written_as_decimals_are_read(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, [5, 5, 9, 9])])
    file = annotations_file(root)
    file.write_text(file.read_text().replace('"height": 60', '"height": 60.0').replace('"id": 1', '"id": 1.0'))
    assert read_coco(root, "train").sizes.tolist() == [[60, 80]]


def test_missing_files_are_named_together(tmp_path: Path) -> None:
    message = told(tmp_path / "nowhere")
    assert message.startswith(f"{tmp_path / 'nowhere'}: the data set lacks file ")
    assert f"{annotations_file(tmp_path / 'nowhere')} and folder {tmp_path / 'nowhere' / 'train'};" in message


def test_a_split_of_which_a_quarantine_leaves_nothing_is_refused(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1, [5, 5, 9, 9])])
    (root / "train" / "1.jpg").unlink()
    message = told(root, faults="quarantine")
    assert "no image is left of 1" in message
    assert f"images missing (1): image 1 (1.jpg, looked for in {root / 'train'})" in message


def test_an_unknown_way_with_faults_is_a_bad_value(make_coco: MakeCoco) -> None:
    with pytest.raises(ValueError, match="faults is 'ignore', expected 'refuse' or 'quarantine'"):
        read_coco(make_coco(), "train", faults="ignore")  # type: ignore[arg-type]
