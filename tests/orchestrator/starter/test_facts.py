"""Which splits of somebody's data are learnt from and validated on."""

from pathlib import Path

import pytest

from model.data.coco import read_coco
from orchestrator.data.advice import notes
from orchestrator.data.audit import audit
from orchestrator.errors import UserError
from orchestrator.starter.facts import data_facts
from tests.data_folders import coco_json, picture


def split(root: Path, name: str, places: range) -> None:
    for place in places:
        picture(root / name / f"{place}.jpg")
    coco_json(root / "annotations" / f"instances_{name}.json", [f"{place}.jpg" for place in places])


@pytest.mark.parametrize("names", [("train",), ("photos",), ("train", "test")])
def test_without_a_split_to_validate_on_no_image_is_both_learnt_and_validated_on(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for place, name in enumerate(names):
        split(tmp_path, name, range(10 * place, 10 * place + 10))
    facts = data_facts(tmp_path)
    assert (facts.train.num_images, facts.val.num_images) == (8, 2)
    learnt, validated = (set(read_coco(tmp_path, one.name).file_names) for one in (facts.train, facts.val))
    assert sorted(learnt | validated) == [f"{place}.jpg" for place in range(10)]
    assert any("images of" in note and "that a hash of their names picks" in note for note in facts.notes)


def test_splits_by_other_usual_names_are_taken(tmp_path: Path) -> None:
    split(tmp_path, "training", range(3))
    split(tmp_path, "valid", range(3, 5))
    facts = data_facts(tmp_path)
    assert (facts.train.name, facts.val.name) == ("training", "valid")


def test_of_several_splits_called_train_the_ones_left_out_are_told(tmp_path: Path) -> None:
    for place, name in enumerate(("train_part1", "train_part2", "val", "test")):
        split(tmp_path, name, range(2 * place, 2 * place + 2))
    note = (
        "of the splits that are called like train, train_part1 is taken, and train_part2 left out; choose another "
        "with train.data.train_split, or join their files"
    )
    assert [one for one in data_facts(tmp_path).notes if "part2" in one] == [note]
    assert note in notes(audit(tmp_path, (600, 1000), read_images=False))


def test_splits_whose_names_say_nothing_are_named_in_the_refusal(tmp_path: Path) -> None:
    split(tmp_path, "berlin", range(2))
    split(tmp_path, "paris", range(2))
    with pytest.raises(UserError, match="has the splits berlin, paris, but none that is called train"):
        data_facts(tmp_path)


def test_what_a_submit_would_refuse_is_refused_before_a_file_is_written(tmp_path: Path) -> None:
    split(tmp_path, "train", range(3))
    split(tmp_path, "val", range(3, 5))
    annotations = tmp_path / "annotations"
    coco_json(annotations / "instances_val.json", ["3.jpg", "4.jpg"], categories=[{"id": 1, "name": "dog"}])
    with pytest.raises(UserError, match="other categories than split train: 1 is 'cat' in train and 'dog' in val"):
        data_facts(tmp_path)
    coco_json(annotations / "instances_val.json", ["3.jpg", "4.jpg"], annotations=[])
    assert "split val: has no box, so that there is no AP; annotate some of its images" in data_facts(tmp_path).notes
    coco_json(annotations / "instances_train.json", ["0.jpg", "1.jpg", "2.jpg"], annotations=[])
    with pytest.raises(UserError, match="split 'train' has no box to learn: 0 of 0"):
        data_facts(tmp_path)
