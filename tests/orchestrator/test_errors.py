"""What is said of a place that cannot be written to; the errors are those of the operating system, or in its words."""

import errno
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import errno_of, free_of, refusal


def said_of(action: object, *arguments: object) -> str:
    with pytest.raises((NotADirectoryError, FileExistsError)) as raised:
        action(*arguments)  # type: ignore[operator]
    return refusal(raised.value) or ""


def test_a_full_disk_without_a_name_is_told_and_other_errors_are_not_taken_for_one() -> None:
    said = refusal(OSError(errno.ENOSPC, "No space left on device"))
    assert said is not None and said.startswith("the disk is full, where the output goes or in one of RNC_HOME")
    assert refusal(OSError(errno.ENOENT, "No such file", "x")) is None


def test_a_full_disk_is_named_with_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(8_000_000_000, 0, 4096))
    said = refusal(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a" / "b")))
    assert said == (
        f"{tmp_path}/a/b: the disk is full (4.1 KB of 8 GB are free); free some, or set RNC_HOME to another place"
    )


def test_several_names_in_one_argument_are_told_as_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as raised:
        (tmp_path / "\n".join(["image.jpg"] * 100)).stat()
    said = refusal(raised.value)
    assert said is not None and "no name can have 1," in said
    assert said.endswith("letters; write several names as several arguments")


def test_a_quota_is_told_from_a_full_disk(tmp_path: Path) -> None:
    said = refusal(OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path)))
    assert said is not None and "the quota of the disk is used up; free some of it" in said


def test_a_file_where_a_folder_is_expected_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    file = tmp_path / "suite"
    file.write_text("")
    expected = f"{file} is a file, expected a folder; move it away, or set RNC_HOME to another place"
    assert said_of((file / "key").mkdir) == expected
    assert said_of((file / "key" / "run.json").write_text, "") == expected
    assert said_of(file.mkdir) == expected


def test_pyarrow_tells_the_number_and_the_place_in_words_alone(tmp_path: Path) -> None:
    from pyarrow.fs import LocalFileSystem

    (tmp_path / "key").write_text("")
    with pytest.raises(OSError, match="Not a directory") as raised:
        LocalFileSystem().create_dir(str(tmp_path / "key" / "epoch-0001"))
    assert errno_of(raised.value) == errno.ENOTDIR
    said = refusal(raised.value)
    assert said is not None and said.startswith(f"{tmp_path}/key is a file, expected a folder")


def test_what_is_free_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    free, _, whole = free_of(tmp_path / "not" / "there").partition(" of ")
    assert free and whole.endswith(" are free")
