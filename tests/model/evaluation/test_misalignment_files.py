"""What a scoring pass counted survives as files."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.evaluation.misalignment import (
    COUNTS,
    DENSITY,
    DROPPED,
    FILES,
    ORACLE,
    Misalignment,
    read_misalignment,
    write_misalignment,
)
from tests.detections import table
from tests.misalignments import dropped, misalignment


def assert_same(ours: object, theirs: object) -> None:
    assert type(ours) is type(theirs)
    for field in fields(ours):  # type: ignore[arg-type]
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other, err_msg=field.name)
        else:
            assert_same(mine, other)


@pytest.mark.parametrize(
    "counted",
    [
        misalignment((3, 0, 1), dropped([2, 5], [1, 4]), table([(1, 2, (0.0, 1.0, 10.0, 20.0), 0.5)])),
        misalignment(()),
    ],
    ids=["some", "none"],
)
def test_what_was_counted_comes_back_from_its_files(tmp_path: Path, counted: Misalignment) -> None:
    files = write_misalignment(tmp_path, counted, {"split": "val"})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES) == sorted(file.name for file in files)
    assert_same(read_misalignment(tmp_path), counted)


def test_the_columns_of_a_file_say_what_is_counted(tmp_path: Path) -> None:
    write_misalignment(tmp_path, misalignment((3, 1)), {})
    counts = pq.read_table(tmp_path / COUNTS).to_pydict()
    assert counts["num_objects"] == [3, 1]
    assert counts["scores_before > 0.05"] == [900, 901] and counts["ious_after > 0.9"] == [10, 11]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_off_or_missing_is_named(tmp_path: Path, name: str) -> None:
    write_misalignment(tmp_path, misalignment(), {})
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=name):
        read_misalignment(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=name):
        read_misalignment(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    write_misalignment(tmp_path, misalignment(), {})
    (tmp_path / DROPPED).write_bytes((tmp_path / COUNTS).read_bytes())
    with pytest.raises(ValueError, match=f"{DROPPED} holds no counts of a scoring pass"):
        read_misalignment(tmp_path)
    write_misalignment(tmp_path, misalignment(), {})
    (tmp_path / ORACLE).write_bytes((tmp_path / DENSITY).read_bytes())
    with pytest.raises(ValueError, match=ORACLE):
        read_misalignment(tmp_path)
