"""Reads Open Images' boxes: rows of a CSV file, in fractions of the image, with a class of a coded name."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    place_of = {PurePosixPath(name).stem: place for place, name in enumerate(listed)}
    table = _read(file, [*COLUMNS, "IsGroupOf"])
    num_rows = len(table)
    table = table.filter(pc.is_in(table["ImageID"], value_set=pa.array(list(place_of), type=pa.string())))
    if not len(table):
        raise DataError(f"{file}: none of its {num_rows:,} rows is of an image in {files.images}; put its images there")
    images = np.array([place_of[name] for name in table["ImageID"].to_pylist()], dtype=np.int64)
    sizes = image_sizes(files.images, listed)
    scale = sizes[images][:, ::-1].astype(np.float64)
    low, high = (np.array([table[name].to_pylist() for name in names], dtype=np.float64).T for names in _CORNERS)
    groups = np.array(table["IsGroupOf"].to_pylist(), dtype=np.int64)
    return make_tables(
        listed,
        sizes,
        images=images,
        boxes=np.concatenate([low * scale, (high - low) * scale], axis=1),
        category_ids=[ids[code] for code in table["LabelName"].to_pylist()],
        crowds=groups == 1,  # -1 is unknown
        categories={ids[code]: described.get(code, code) for code in order},
        notes=_notes(num_rows - len(table), num_rows, int((groups == 1).sum())),
    )


_CORNERS = (("XMin", "YMin"), ("XMax", "YMax"))


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
        raise DataError(f"{file}: not a CSV file of Open Images ({reason:.120}); fetch the file again") from error
    if "IsGroupOf" in columns:
        groups = pc.fill_null(table["IsGroupOf"], 0)
        table = table.set_column(table.column_names.index("IsGroupOf"), "IsGroupOf", groups)
    return table


def _descriptions(file: Path) -> list[tuple[str, str]]:
    """Code and name of each class."""
    rows = csv.read_csv(file, read_options=csv.ReadOptions(column_names=["code", "name"])).to_pylist()
    return [(str(row["code"]), str(row["name"])) for row in rows]


def _notes(num_absent: int, num_rows: int, num_groups: int) -> tuple[str, ...]:
    notes = []
    if num_absent:
        notes.append(f"{num_absent:,} of {num_rows:,} boxes are of images that are not there, and are left out")
    if num_groups:
        notes.append(f"{num_groups:,} boxes around a group of objects are read as crowds: not learnt, and not scored")
    return tuple(notes)
