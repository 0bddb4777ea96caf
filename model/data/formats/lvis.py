"""Reads LVIS: COCO's JSON, with images named by their address and classes that are annotated on some images only."""

from pathlib import Path
from typing import Any

from model.data.annotations import Tables, parse_json, tables_of
from model.data.layouts.coco import coco_urls_name
from model.data.layouts.files import SplitFiles

NOTE = (
    "LVIS says for each image which classes were looked for (neg_category_ids, not_exhaustive_category_ids); AP here "
    "is COCO's, to which a detection of any other class is wrong, so that it is below LVIS's own, federated AP"
)


def read_lvis(files: SplitFiles) -> Tables:
    """Read an LVIS file; images are named as in COCO's folder, train2017/000000391895.jpg.

    Raises:
        DataError: the file is not JSON, or is not LVIS.
    """
    file = files.annotations[0]
    content = parse_json(file)
    for image in content.get("images") or []:
        if isinstance(image, dict) and isinstance(url := image.get("coco_url"), str):
            image["file_name"] = coco_urls_name(url)
    tables = tables_of(file, content)
    return tables._replace(notes=(*tables.notes, *_frequencies(file, content), NOTE))


def _frequencies(file: Path, content: dict[str, Any]) -> list[str]:
    names = {"r": "rare", "c": "common", "f": "frequent"}
    counts = dict.fromkeys(names, 0)
    for category in content["categories"]:
        frequency = category.get("frequency")
        if isinstance(frequency, str) and frequency in counts:
            counts[frequency] += 1
    if not any(counts.values()):
        return []
    return [f"{', '.join(f'{counts[key]:,} {names[key]}' for key in names)} categories (images of the training split)"]
