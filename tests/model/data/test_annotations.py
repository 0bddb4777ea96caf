"""COCO files as exporters write them: what is unambiguous is read and told, all the rest is refused at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import DataConfig
from model.data.coco import read_coco, read_for_scoring, read_for_training
from model.data.faults import DataError
from model.data.split import CocoData
from tests.conftest import MakeCoco

BOX = [20, 10, 40, 30]
TRAIN = DataConfig(train_split="train", val_split="train")


def annotation(id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": 1, "category_id": 3, "bbox": BOX, "area": 1200, "iscrowd": 0} | more


def image(id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "file_name": f"{id}.jpg", "height": 60, "width": 80} | more


def rewritten(root: Path, **tables: Any) -> Path:
    """The data set with other tables, of which the images are not drawn."""
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | tables))
    return root


def read(root: Path, **options: Any) -> CocoData:
    return read_coco(root, "train", check_images=False, **options)


def refused(root: Path) -> str:
    """The message, which is the same under a quarantine."""
    messages = []
    for faults in ("refuse", "quarantine"):
        with pytest.raises(DataError) as caught:
            read(root, faults=faults)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


@pytest.mark.parametrize("id", [0, -3, 2**53 + 1, 20230101123045671, 2**63 - 1, -(2**63) + 1])
def test_whole_numbers_of_64_bits_are_read_to_their_last_digit(make_coco: MakeCoco, id: int) -> None:
    root = make_coco([annotation(id, image_id=id)], images=[image(id)])
    data = read_coco(root, "train")
    assert (data.image_ids.tolist(), data.annotation_ids.tolist()) == ([id], [id])
    assert data.coco_dict()["images"][0]["id"] == id
    assert data.notes == ()


@pytest.mark.parametrize(
    ("written", "id"), [("12", 12), (" 12 ", 12), ("-3", -3), ("12.0", 12), ("9007199254740993", 2**53 + 1), ("007", 7)]
)
def test_ids_written_as_text_are_read_and_told(make_coco: MakeCoco, written: str, id: int) -> None:
    root = rewritten(make_coco(), images=[image(written)], annotations=[annotation(image_id=written)])
    data = read(root)
    assert (data.image_ids.tolist(), data.offsets.tolist()) == ([id], [0, 1])
    shown = json.dumps(written)
    assert data.notes == (
        f"images.id of 1 of 1 rows: whole numbers written as text, read as numbers (images[0].id {shown})",
        f"annotations.image_id of 1 of 1 rows: whole numbers written as text, read as numbers "
        f"(annotations[0].image_id {shown})",
    )


def test_a_text_and_a_number_of_the_same_value_are_one_id(make_coco: MakeCoco) -> None:
    root = rewritten(make_coco(), images=[image("1"), image(1, file_name="other.jpg")])
    assert "duplicate image ids (1): image 1" in refused(root)


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("a1", "a whole number"),
        ("", "a whole number"),
        ("1e3", "a whole number"),
        ("1_000", "a whole number"),
        ("٣", "a whole number"),
        (True, "a whole number"),
        (None, "a whole number"),
        ([1], "a whole number"),
        (1.5, "a whole number"),
        (float("nan"), "a whole number"),
        (float("inf"), "a whole number"),
        (2**63, "a whole number of 64 bits"),
        (-(2**63), "a whole number of 64 bits"),
        (1e20, "a whole number of 64 bits"),
        ("9223372036854775808", "a whole number of 64 bits"),
        (2.0**53, "a whole number: a decimal one beyond 2^53 has lost its last digits"),
    ],
)
def test_what_is_no_id_is_refused_with_its_value(make_coco: MakeCoco, id: Any, expected: str) -> None:
    root = rewritten(make_coco(), images=[image(id, file_name="1.jpg")])
    message = refused(root)
    assert f"images[0].id is {id!r}, expected {expected}" in message
    assert "an id is a whole number; number anew" in message


def test_sizes_written_as_text_are_read_and_told(make_coco: MakeCoco) -> None:
    data = read(rewritten(make_coco([annotation()]), images=[image(height="60", width="80.0")]))
    assert data.sizes.tolist() == [[60, 80]]
    assert [note.split(" ", 1)[0] for note in data.notes] == ["images.height", "images.width"]


@pytest.mark.parametrize("size", [{"width": 0}, {"height": -60}, {"width": 2**24 + 1}, {"height": 2**40}])
def test_an_image_of_no_or_endless_extent_is_refused(make_coco: MakeCoco, size: dict[str, int]) -> None:
    message = refused(rewritten(make_coco([annotation()]), images=[image(**size)]))
    assert "(height, width); give the size in pixels" in message
    assert str(next(iter(size.values()))) in message


def test_all_fields_and_rows_that_cannot_be_read_are_named_at_once(make_coco: MakeCoco) -> None:
    images = [image("a"), image("b", height="high"), image(3, width=0), image(4, file_name=None)]
    annotations = [annotation(1, image_id="a", iscrowd="maybe"), annotation(2, image_id="b", category_id=None)]
    categories = [{"id": 1, "name": ""}, {"id": 1.5, "name": "b"}]
    message = refused(rewritten(make_coco(), images=images, annotations=annotations, categories=categories))
    assert message.splitlines()[1:] == [
        "  images[3].file_name is None, expected a text",
        "  images[1].height is 'high', expected a whole number",
        "  images[2] is [60, 0] (height, width); give the size in pixels",
        "  annotations[0].image_id is 'a', annotations[1].image_id is 'b', expected a whole number",
        "  annotations[1].category_id is None, expected a whole number",
        "  annotations[0].iscrowd is 'maybe', expected 0 or 1",
        "  categories[1].id is 1.5, expected a whole number",
        "  categories[0].name is '', expected a text",
        "  mend the file: an id is a whole number; number anew what has names or hashes, alike in all tables",
    ]
    assert "not COCO: images[0].id is 'a', images[1].id is 'b', expected a whole number" in message.splitlines()[0]


def test_of_many_rows_the_first_are_named_and_the_rest_counted(make_coco: MakeCoco) -> None:
    message = refused(rewritten(make_coco(), annotations=[annotation(i, iscrowd=2) for i in range(500)]))
    assert message.count("].iscrowd is 2") == 20
    assert "annotations[19].iscrowd is 2, ... (500 in all), expected 0 or 1" in message


@pytest.mark.parametrize(
    ("crowd", "is_crowd"),
    [
        (0, False),
        (1, True),
        (False, False),
        (True, True),
        (1.0, True),
        ("0", False),
        ("1", True),
        ("false", False),
        ("True", True),
        (None, False),
    ],
)
def test_a_crowd_is_what_says_so_beyond_doubt(make_coco: MakeCoco, crowd: Any, is_crowd: bool) -> None:
    data = read(make_coco([annotation(iscrowd=crowd), annotation(2, bbox=[1, 2, 30, 40])]))
    assert data.annotation_crowds.tolist() == [is_crowd, False]
    assert bool(data.notes) == (crowd is None or isinstance(crowd, str))
    assert len(data.boxes(0)) == 2 - is_crowd


@pytest.mark.parametrize("crowd", [2, -1, 0.5, float("nan"), [0], [1], {}, "", "no", "2", "nan", 10**30])
def test_a_crowd_that_may_mean_anything_is_refused(make_coco: MakeCoco, crowd: Any) -> None:
    assert f"annotations[0].iscrowd is {crowd!r}, expected 0 or 1" in refused(make_coco([annotation(iscrowd=crowd)]))


@pytest.mark.parametrize(
    ("area", "read_as", "told"),
    [
        (1000, 1000, ""),
        (None, 1200, ""),
        (0, 1200, "no area above 0; the area of the box is taken (annotations[0].area 0)"),
        (-1, 1200, "no area above 0; the area of the box is taken (annotations[0].area -1)"),
        (float("nan"), 1200, "no area above 0; the area of the box is taken (annotations[0].area NaN)"),
        (float("inf"), 1200, "no area above 0; the area of the box is taken (annotations[0].area Infinity)"),
        (10**400, 1200, "no area above 0; the area of the box is taken (annotations[0].area 1000"),
        ("big", 1200, 'no area above 0; the area of the box is taken (annotations[0].area "big")'),
        ([5], 1200, "no area above 0; the area of the box is taken (annotations[0].area [5])"),
        (1e10, 1e10, ""),
        (1.1e10, 1200, "beyond any image; the area of the box is taken (annotations[0].area 11000000000.0)"),
        (0.195, 1200, "a fraction of the image; the area of the box is taken (annotations[0].area 0.195)"),
        ("1000.5", 1000.5, 'numbers written as text, read as numbers (annotations[0].area "1000.5")'),
        ("0", 1200, "no area above 0"),
    ],
)
def test_a_sound_box_has_an_area_and_is_learnt_and_scored_alike(
    make_coco: MakeCoco, area: Any, read_as: float, told: str
) -> None:
    data = read(make_coco([annotation(area=area)]))
    assert data.coco_dict()["annotations"][0]["area"] == read_as
    assert data.boxes(0).tolist() == [[20, 10, 60, 40]]
    assert told in " ".join(data.notes) if told else data.notes == ()


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        (None, "null"),
        ("20,10,40,30", '"20,10,40,30"'),
        (["20", "10", "40", "30"], '["20", "10", "40", "30"]'),
        ({"x": 20, "y": 10, "w": 40, "h": 30}, '{"x": 20, "y": 10, "w": 40, "h": 30}'),
        ([20, 10, 40, 30, 1], "[20, 10, 40, 30, 1]"),
        ([], "[]"),
        ([20, 10, float("nan"), 30], "[20, 10, NaN, 30]"),
        ([20, 10, float("inf"), 30], "[20, 10, Infinity, 30]"),
        ([True, 10, 40, 30], "[true, 10, 40, 30]"),
        ([20, 10, 0, 30], "[20, 10, 0, 30]"),
        ([20.123456789, 10, 400, 30], "[20.123456789, 10, 400, 30]"),
        ([[1, 2]] * 40, "[[1, 2], [1, 2], "),
    ],
)
def test_a_faulty_box_is_shown_as_the_file_has_it(make_coco: MakeCoco, box: Any, shown: str) -> None:
    root = make_coco([annotation(1), *(annotation(i, bbox=[1, 2, 3, 4], area=12) for i in range(3, 9))])
    rows = [*json.loads((root / "annotations" / "instances_train.json").read_text())["annotations"]]
    with pytest.raises(DataError) as caught:
        read(rewritten(root, annotations=[*rows, annotation(2, bbox=box)]))
    assert f"annotation 2 (image 1, bbox {shown}" in str(caught.value)
    assert len(str(caught.value).splitlines()[1]) < 200


def test_a_category_listed_several_times_alike_counts_once(make_coco: MakeCoco) -> None:
    thing = {"id": 3, "name": "thing", "supercategory": ""}
    data = read(make_coco([annotation()], categories=[thing, {"id": 1, "name": "other"}, thing, thing]))
    assert (data.category_ids, data.category_names) == ((1, 3), ("other", "thing"))
    assert data.notes == ("categories listed several times with the same name count once: 3 'thing'",)


def test_a_category_listed_with_two_names_is_refused_with_both(make_coco: MakeCoco) -> None:
    root = make_coco([annotation()], categories=[{"id": 3, "name": "cat"}, {"id": "3", "name": "dog"}])
    assert "'categories' gives one id to several: 3 ('cat', 'dog'); give every category" in refused(root)


def test_images_and_annotations_listed_twice_alike_count_once(make_coco: MakeCoco) -> None:
    root = make_coco([annotation(1), annotation(2, image_id=2), annotation(1)], images=[image(1), image(2), image(1)])
    data = read_coco(root, "train")
    assert (data.image_ids.tolist(), data.annotation_ids.tolist()) == ([1, 2], [1, 2])
    assert data.notes == (
        "annotations: 1 rows repeat another, id included; each counts once",
        "images: 1 of 3 rows repeat another; each counts once",
    )


def test_numbers_beyond_any_image_are_faults_and_no_warnings(make_coco: MakeCoco, recwarn: Any) -> None:
    root = make_coco([annotation(1), *(annotation(i, bbox=[1e308] * 4) for i in range(2, 5))])
    with pytest.raises(DataError, match=r"boxes that are not four finite numbers \(3\): annotation 2"):
        read(root)
    assert not recwarn.list


def test_annotations_without_ids_are_numbered(make_coco: MakeCoco) -> None:
    rows = [{name: value for name, value in annotation().items() if name != "id"}] * 3
    data = read(make_coco(rows))
    assert data.annotation_ids.tolist() == [1, 2, 3]
    assert "annotations.id of 3 of 3 rows: absent; numbered from 1" in data.notes[0]
    rows[1] = annotation()
    assert "annotations[0].id is None, annotations[2].id is None, expected" in refused(make_coco(rows))


def test_category_ids_and_names_of_any_kind_are_read(make_coco: MakeCoco) -> None:
    categories = [{"id": id, "name": f"n{id}"} for id in (0, -5, 2**53 + 1, 2**53)] + [{"id": "7", "name": 7}]
    rows = [annotation(place, category_id=category["id"]) for place, category in enumerate(categories)]
    data = read(make_coco(rows, categories=categories))
    assert data.category_ids == (-5, 0, 7, 2**53, 2**53 + 1)
    assert data.labels(0).tolist() == [1, 0, 4, 3, 2]
    assert data.category_names[2] == "7"
    assert [row["category_id"] for row in data.coco_dict()["annotations"]] == [0, -5, 2**53 + 1, 2**53, 7]


@pytest.mark.parametrize(("count", "dtype"), [(32768, np.int16), (32769, np.int32), (40000, np.int32)])
def test_labels_hold_as_many_categories_as_there_are(
    make_coco: MakeCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, dtype: type
) -> None:
    from tests.model.data.test_cache import settled

    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    categories = [{"id": id, "name": str(id)} for id in range(count)]
    root = settled(make_coco([annotation(category_id=count - 1)], categories=categories))
    for _ in range(2):  # parsed, and mapped
        data = read(root)
        assert data.annotation_labels.dtype == dtype
        assert data.labels(0).tolist() == [count - 1]
    assert data.file is not None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_may_begin_with_a_mark_and_be_in_any_unicode(make_coco: MakeCoco, encoding: str) -> None:
    root = make_coco([annotation(segmentation=[[1, 2, 3, 4]])], categories=[{"id": 3, "name": "Möwe 🐦"}])
    file = root / "annotations" / "instances_train.json"
    content = json.dumps(json.loads(file.read_text()), ensure_ascii=False)
    file.write_bytes(content.encode(encoding))
    assert read(root).category_names == ("Möwe 🐦",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_such_a_file_is_found_beside_its_images_too(make_coco: MakeCoco, encoding: str) -> None:
    root = make_coco([annotation()])
    text = (root / "annotations" / "instances_train.json").read_text()
    (root / "annotations" / "instances_train.json").unlink()
    (root / "train" / "_annotations.coco.json").write_bytes(text.encode(encoding))
    assert read_coco(root, "train").labels(0).tolist() == [0]


def test_a_file_in_an_older_encoding_is_refused_with_the_place(make_coco: MakeCoco) -> None:
    root = make_coco([annotation()], categories=[{"id": 3, "name": "M_we"}])
    file = root / "annotations" / "instances_train.json"
    file.write_bytes(file.read_bytes().replace(b"M_we", b"M\xf6we"))
    message = refused(root)
    assert f"not JSON in UTF-8 at byte {file.read_bytes().index(0xF6)} of" in message
    assert "M\\xf6we" in message
    assert "an older encoding such as Latin-1: save the file as UTF-8" in message


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "a\0b.jpg"])
def test_names_that_no_text_can_hold_are_refused(make_coco: MakeCoco, name: str) -> None:
    root = rewritten(make_coco(), images=[image(file_name=name)], categories=[{"id": 3, "name": name}])
    message = refused(root)
    assert f"images[0].file_name is {name!r}, expected a text in UTF-8" in message
    assert f"categories[0].name is {name!r}, expected a text in UTF-8" in message
    message.encode()  # can be printed


def test_a_training_without_a_box_to_learn_is_refused_with_the_count_and_the_cause(make_coco: MakeCoco) -> None:
    def told(*rows: dict[str, Any], sizes: Any = ((60, 80),), **data: Any) -> str:
        root = make_coco(rows, sizes=sizes)
        with pytest.raises(DataError, match="has no box to learn: 0 of") as caught:
            read_for_training(root, DataConfig(train_split="train", **data))
        assert str(caught.value).startswith(f"{root / 'annotations' / 'instances_train.json'}: split 'train' has")
        return str(caught.value)

    crowds = told(annotation(1, iscrowd=1), annotation(2, iscrowd=1))
    assert (
        "0 of 2 boxes are learnt: 2 crowds, 0 of area 0, 0 under a pixel, 0 outside their image, 0 in images " in crowds
    )
    assert "some exporters set it on every mask" in crowds
    small = told(annotation(bbox=[1, 1, 9, 9]), sizes=[(31, 80)])
    assert "1 in images under 32 px" in small and "images with a side under 32 pixels do not train" in small
    thin = told(annotation(bbox=[5, 5, 20, 0.5]))
    assert "1 under a pixel" in thin and "another unit" in thin
    assert "annotate some" in told()
    faulty = told(annotation(bbox=None), faults="quarantine")
    assert "annotation 1 (image 1, bbox null)" in faulty and "mend what is faulty" in faulty


def test_a_box_that_only_touches_its_image_is_not_learnt(make_coco: MakeCoco) -> None:
    """It is no fault, as it leaves the image by a pixel at most; clipped it has no width, and no anchor overlaps it.

    Nor has one a width that reaches into it by 1e-5, once mirrored in single precision: its loss would be infinite.
    """
    sound, rows = [1, 1, 9, 9], [[80, 5, 1, 20], [-1, 5, 1.00001, 20], [5, 60, 20, 1], [5, -1, 20, 1]]
    data = read(make_coco([annotation(n, bbox=box) for n, box in enumerate([*rows, sound], 1)], sizes=[(60, 80)]))
    assert data.faults == ()
    assert data.boxes(0).tolist() == [[1, 1, 10, 10]] and len(data.labels(0)) == 1
    assert str(data.learnt()).startswith("1 of 5 boxes are learnt: 0 crowds, 0 of area 0, 0 under a pixel, 4 outside")


def test_boxes_are_counted_by_the_first_reason_for_which_they_are_not_learnt(make_coco: MakeCoco) -> None:
    rows = [
        annotation(1),
        annotation(2, iscrowd=1, bbox=[1, 1, 0.5, 9]),
        annotation(3, bbox=[1, 1, 0.5, 9]),
        annotation(4, image_id=2, bbox=[1, 1, 9, 9]),
        annotation(5, image_id=2, bbox=[1, 1, 0.5, 9]),
    ]
    data = read(make_coco(rows, sizes=[(60, 80), (80, 31), (60, 80)]))
    assert str(data.learnt()) == (
        "1 of 5 boxes are learnt: 1 crowds, 0 of area 0, 2 under a pixel, 0 outside their image, 1 in images under "
        "32 px"
    )
    assert data.learnt().total == 5


def test_a_split_to_score_on_may_have_nothing_to_find(make_coco: MakeCoco) -> None:
    root = make_coco([])
    assert len(read_for_scoring(root, TRAIN, "train")) == 1
    root = make_coco([annotation(iscrowd=1)])
    assert read_for_scoring(root, TRAIN, "train").notes == (
        "every box is a crowd (iscrowd is 1): there is nothing to find, and no AP",
    )


def test_notes_survive_the_cache_and_are_no_part_of_the_fingerprint(
    make_coco: MakeCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.model.data.test_cache import settled

    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    plain = read(settled(make_coco([annotation()])))
    root = settled(make_coco([annotation("1", iscrowd="0")]))
    first, mapped = read(root), read(root)
    assert mapped.file is not None
    assert len(first.notes) == 2 and mapped.notes == first.notes
    assert mapped.fingerprint == plain.fingerprint
