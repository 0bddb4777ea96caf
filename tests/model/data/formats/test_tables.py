"""Shares of data that are one split."""

import hashlib

import numpy as np
import pytest

from model.data.annotations import Tables
from model.data.faults import DataError
from model.data.formats.tables import make_tables, take_share
from model.data.layouts.files import Share


def tables(names: list[str]) -> Tables:
    """An image and a box for each name."""
    return make_tables(
        names,
        np.array([[60, 80]] * len(names), dtype=np.int32),
        images=range(len(names)),
        boxes=[[1, 2, 3, 4]] * len(names),
        category_ids=[1] * len(names),
        crowds=[False] * len(names),
        categories={1: "cat"},
        notes=("a note",),
    )


def taken(names: list[str], share: Share = "val") -> list[str]:
    return take_share(tables(names), share, "all").images.names


@pytest.mark.parametrize(("number", "validated"), [(2, 1), (5, 1), (7, 1), (8, 2), (99, 20)])
def test_of_few_images_a_fifth_is_counted_out_and_at_least_one(number: int, validated: int) -> None:
    names = [f"{place}.jpg" for place in range(number)]
    val, train = taken(names), taken(names, "train")
    assert len(val) == validated
    assert sorted([*val, *train]) == sorted(names)


def test_of_many_images_each_is_chosen_by_its_name_alone() -> None:
    names = [f"{place}.jpg" for place in range(1000)]
    by_hand = [name for name in names if int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 5 == 0]
    assert taken(names) == by_hand
    assert 150 < len(by_hand) < 250
    more = [f"new{place}.jpg" for place in range(500)]
    assert [name for name in taken(names + more) if name in set(names)] == by_hand


def test_folders_do_not_matter_and_augmented_copies_stay_together() -> None:
    names = [f"{place}.jpg" for place in range(200)]
    assert [name.removeprefix("images/") for name in taken([f"images/{name}" for name in names])] == taken(names)
    copies = [f"{place % 100}_jpg.rf.{place:032x}.jpg" for place in range(300)]
    val = {name.split(".rf.")[0] for name in taken(copies)}
    assert val and val.isdisjoint(name.split(".rf.")[0] for name in taken(copies, "train"))


@pytest.mark.parametrize(("num_sources", "num_copies"), [(9, 3), (2, 2), (3, 33), (3, 40)])
def test_of_few_sources_all_copies_stay_together_and_both_shares_have_one(num_sources: int, num_copies: int) -> None:
    copies = [f"{3 + place % num_sources}_jpg.rf.{place:032x}.jpg" for place in range(num_sources * num_copies)]
    val, train = ({name.split(".rf.")[0] for name in taken(copies, share)} for share in ("val", "train"))
    assert val.isdisjoint(train)
    assert len(val) == max(1, round(num_sources / 5))


@pytest.mark.parametrize("last", [["rgb.png"], ["left.png", "right.png"], ["frame.jpg"]])
@pytest.mark.parametrize("number", [20, 120, 400])
def test_images_that_share_their_last_names_are_told_apart_by_their_folders(number: int, last: list[str]) -> None:
    names = [f"s{place:03d}/{last[place % len(last)]}" for place in range(number)]
    assert 0.1 < len(taken(names)) / number < 0.3


def test_a_few_images_of_one_last_name_move_no_other() -> None:
    names = [f"a/{place}.jpg" for place in range(300)]
    assert [name for name in taken([*names, "b/0.jpg"]) if name in names] == taken(names)


def test_annotations_go_with_their_images_and_ids_stay() -> None:
    whole = tables([f"{place}.jpg" for place in range(10)])
    val = take_share(whole, "val", "photos")
    assert val.annotations.image_ids.tolist() == val.images.ids.tolist()
    assert val.annotations.ids.tolist() == val.images.ids.tolist() != [1, 2]
    assert val.notes[0] == "a note"
    assert val.notes[1].startswith("val is 2 of the 10 images of 'photos', the fifth that a hash of their names picks")


def test_an_annotation_of_no_image_stays_a_fault_of_both_shares() -> None:
    whole = tables(["1.jpg", "2.jpg"])
    whole.annotations.image_ids[0] = 77
    for share in ("train", "val"):
        assert 77 in take_share(whole, share, "all").annotations.image_ids


@pytest.mark.parametrize("names", [["1.jpg"], ["1_jpg.rf.ab.jpg", "1_jpg.rf.cd.jpg"]])
def test_a_single_image_cannot_be_shared(names: list[str]) -> None:
    with pytest.raises(DataError, match="photos: a single image can be learnt from or validated on, not both"):
        take_share(tables(names), "val", "photos")


def test_a_file_name_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(DataError, match=r"image 'caf\\udce9\.jpg': the name of the file is not UTF-8; rename it"):
        tables(["1.jpg", b"caf\xe9.jpg".decode(errors="surrogateescape"), "\U0001f600.jpg"])
    assert tables(["\U0001f600.jpg"]).images.names == ["\U0001f600.jpg"]
