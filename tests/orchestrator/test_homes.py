"""RNC_HOME is made for its owner alone; and the note of which one a suite was last submitted with."""

import os
import stat
from pathlib import Path

import pytest

from orchestrator.homes import describe_home, last_home, make_home, remember


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_suite_is_known_by_its_name_and_folder(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    remember("mine", tmp_path / "a", first)
    remember("mine", tmp_path / "b", second)
    assert last_home("mine", tmp_path / "a") == first
    assert last_home("mine", tmp_path / "b") == second
    assert last_home("other", tmp_path / "a") is None


def test_another_home_than_last_time_is_told_with_the_way_back(tmp_path: Path) -> None:
    before, here = tmp_path / "before", tmp_path / "here"
    before.mkdir()
    remember("mine", tmp_path, before)
    told = describe_home("mine", tmp_path, here)
    assert f"RNC_HOME {here} is new" in told and f"last submitted with another, {before}" in told
    assert told.endswith(f"RNC_HOME={before}")
    assert describe_home("mine", tmp_path, before) == f"RNC_HOME {before} is new: nothing is recorded there"
    (before / "mlflow").mkdir()
    assert describe_home("mine", tmp_path, before) == f"RNC_HOME {before}"


def test_a_home_that_is_gone_is_no_way_back(tmp_path: Path) -> None:
    remember("mine", tmp_path, tmp_path / "gone")
    assert "another" not in describe_home("mine", tmp_path, tmp_path / "here")


@pytest.mark.parametrize("content", ["{", "[]", '{"mine": 3}'])
def test_a_damaged_note_is_as_none(tmp_path: Path, content: str) -> None:
    remember("mine", tmp_path, tmp_path / "home")
    (tmp_path / "state" / "retinanet-conf" / "homes.json").write_text(content)
    assert last_home("mine", tmp_path) is None
    remember("mine", tmp_path, tmp_path / "home")
    assert last_home("mine", tmp_path) == tmp_path / "home"


def test_a_home_directory_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember("mine", tmp_path, tmp_path / "home")
    assert last_home("mine", tmp_path) is None


def test_a_home_that_is_made_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    def mode(folder: Path) -> int:
        return stat.S_IMODE(folder.stat().st_mode)

    before = os.umask(0o002)
    try:
        assert make_home(tmp_path / "parent" / "new") == tmp_path / "parent" / "new"
        assert (mode(tmp_path / "parent" / "new"), mode(tmp_path / "parent")) == (0o700, 0o775)
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o2770)
        make_home(shared)
        assert mode(shared) == 0o2770
    finally:
        os.umask(before)
    (tmp_path / "file").touch()
    make_home(tmp_path / "file" / "home")  # who writes there says why that does not go
