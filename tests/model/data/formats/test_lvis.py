"""LVIS: COCO's JSON with addresses instead of file names."""

import json
from pathlib import Path

from model.data.coco import read_coco
from model.data.formats.reading import read_split
from model.data.layout import find_layout, split_files
from tests.data_folders import coco_json, picture

URL = "http://images.cocodataset.org/{}"


def test_images_are_found_by_their_addresses_and_ap_is_told_to_be_cocos(tmp_path: Path) -> None:
    names = {"train": ["train2017/000000000001.jpg", "val2017/000000000002.jpg"], "val": ["val2017/000000000003.jpg"]}
    for split, files in names.items():
        file = coco_json(tmp_path / "annotations" / f"lvis_v1_{split}.json", files)
        content = json.loads(file.read_text())
        for image in content["images"]:
            image |= {"coco_url": URL.format(image.pop("file_name")), "neg_category_ids": [1]}
            image |= {"not_exhaustive_category_ids": []}
        content["categories"] = [{"id": 1, "name": "cat", "synset": "cat.n.01", "frequency": "r"}]
        file.write_text(json.dumps(content))
        for name in files:
            picture(tmp_path / name)
    assert {name: split.format for name, split in find_layout(tmp_path).splits.items()} == {
        "train": "lvis",
        "val": "lvis",
    }
    data = read_coco(tmp_path, "train")
    assert (data.folder, data.file_names) == (tmp_path, names["train"])
    assert data.annotation_boxes.tolist() == [[1, 2, 20, 30], [2, 2, 20, 30]]
    notes = read_split(split_files(tmp_path, "train")).notes
    assert notes[0] == "1 rare, 0 common, 0 frequent categories (images of the training split)"
    assert "AP here is COCO's" in notes[1]
