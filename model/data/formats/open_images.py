"""Reads Open Images' boxes: rows of a CSV file, in fractions of the image, with a class of a coded name."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from model.data.annotations import Tables
from model.data.faults import DataError
from model.data.formats.sizes import image_sizes
from model.data.formats.tables import make_tables
from model.data.layouts.files import SplitFiles
from model.data.layouts.open_images import COLUMNS, is_boxes

_TYPES = {name: pa.float64() for name in COLUMNS[2:]} | {"ImageID": pa.string(), "LabelName": pa.string()}


def read_open_images(files: SplitFiles) -> Tables:
    """Read the boxes of the images that are there: few people hold all of Open Images.

    Categories are the classes of the CSV files of all splits, numbered from 1 by their described names, sorted.

    Raises:
        DataError: a CSV file is damaged, or has no row of an image that is there.
    """
    file, *others = files.annotations
    codes = {code for one in (file, *others) if is_boxes(one) for code in _codes(one)}
    described = {code: name for one in others if not is_boxes(one) for code, name in _descriptions(one)}
    order = sorted(codes, key=lambda code: (described.get(code, code), code))
    ids = {code: place for place, code in enumerate(order, start=1)}
    listed = list(files.listed or ())
    place_of = _places(files, listed)
    table = _read(file, [*COLUMNS, "IsGroupOf"])
    num_rows = len(table)
    table = table.filter(pc.is_in(table["ImageID"], value_set=pa.array(list(place_of), type=pa.string())))
    if not len(table):
        raise DataError(
            f"{file}: none of its {num_rows:,} rows is of an image in {files.images}; put its images there (an ImageID "
            "is the name of an image without its suffix)"
        )
    images = np.array([place_of[name] for name in table["ImageID"].to_pylist()], dtype=np.int64)
    sizes = image_sizes(files.images, listed)
    scale = sizes[images][:, ::-1].astype(np.float64)
    low, high = (np.array([table[name].to_pylist() for name in names], dtype=np.float64).T for names in _CORNERS)
    if (high > 2).any(axis=1).mean() > 0.5:
        raise DataError(
            f"{file}: {int((high > 2).any(axis=1).sum()):,} of {len(table):,} boxes are far outside of 0 to 1: they "
            "look like pixels; Open Images' boxes are fractions of the image"
        )
    groups = np.array(table["IsGroupOf"].to_pylist(), dtype=np.int64)
    return make_tables(
        listed,
        sizes,
        images=images,
        boxes=np.concatenate([low * scale, (high - low) * scale], axis=1),
        category_ids=[ids[code] for code in table["LabelName"].to_pylist()],
        crowds=groups == 1,  # -1 is unknown
        categories={ids[code]: described.get(code, code) for code in order},
        notes=_notes(num_rows - len(table), num_rows, int((groups == 1).sum()), listed, images),
    )


_CORNERS = (("XMin", "YMin"), ("XMax", "YMax"))


def _places(files: SplitFiles, listed: list[str]) -> dict[str, int]:
    """The place of each image by its id, the name without suffix."""
    places: dict[str, int] = {}
    for place, name in enumerate(listed):
        if (first := places.setdefault(PurePosixPath(name).stem, place)) != place:
            raise DataError(
                f"{files.images}: {listed[first]} and {name} have the same ImageID, so that nobody knows whose the "
                f"boxes are; take one of them away"
            )
    return places


def _codes(file: Path) -> list[str]:
    return [str(code) for code in pc.unique(_read(file, ["LabelName"])["LabelName"]).to_pylist()]


def _read(file: Path, columns: list[str]) -> Any:
    """Columns of a CSV file; IsGroupOf is 0 where the file does not have it."""
    options = csv.ConvertOptions(
        include_columns=columns,
        include_missing_columns=True,
        column_types=_TYPES | {"IsGroupOf": pa.int64()},
        null_values=[],
        strings_can_be_null=False,
    )
    try:
        table = csv.read_csv(file, convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file}: not a CSV file of Open Images ({reason:.120}); mend the file, or fetch it again"
        ) from error
    if "IsGroupOf" in columns:
        groups = pc.fill_null(table["IsGroupOf"], 0)
        table = table.set_column(table.column_names.index("IsGroupOf"), "IsGroupOf", groups)
    return table


def _descriptions(file: Path) -> list[tuple[str, str]]:
    """Code and name of each class."""
    texts = csv.ConvertOptions(column_types={"code": pa.string(), "name": pa.string()})
    try:
        table = csv.read_csv(file, read_options=csv.ReadOptions(column_names=["code", "name"]), convert_options=texts)
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: not a CSV file of codes and names in UTF-8 ({reason:.120}); mend the file") from error
    rows = table.to_pylist()
    return [(str(row["code"]), str(row["name"])) for row in rows]


def _notes(
    num_absent: int, num_rows: int, num_groups: int, listed: list[str], images: NDArray[np.int64]
) -> tuple[str, ...]:
    notes = []
    without = np.setdiff1d(np.arange(len(listed)), images)
    if len(without):
        notes.append(
            f"{len(without):,} of {len(listed):,} images have no row, such as {listed[without[0]]}: they have no "
            "objects"
        )
    if num_absent:
        notes.append(f"{num_absent:,} of {num_rows:,} boxes are of images that are not there, and are left out")
    if num_groups:
        notes.append(f"{num_groups:,} boxes around a group of objects are read as crowds: not learnt, and not scored")
    return tuple(notes)
