"""What is said of a damaged database of the embedded server, before the server starts and while it runs."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator.errors import UserError
from orchestrator.site import Site
from orchestrator.tracking import rest, server
from orchestrator.tracking.database import require_sound_database
from orchestrator.tracking.rest import Refused
from orchestrator.tracking.server import begin_tracking_server, running_server, stop_server, tracking_server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An RNC_HOME with a database of some pages, and an artifact."""
    folder = tmp_path / "mlflow"
    (folder / "artifacts" / "1").mkdir(parents=True)
    connection = sqlite3.connect(folder / "mlflow.db")
    connection.execute("CREATE TABLE runs (name TEXT)")
    connection.executemany("INSERT INTO runs VALUES (?)", [("x" * 1000,)] * 100)
    connection.commit()
    connection.close()
    return tmp_path


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_within_the_header(file: Path) -> None:
    os.truncate(file, 60)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def overwrite(file: Path) -> None:
    file.write_text("a letter to somebody")


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "database disk image is malformed; it has "),
        (cut_within_the_header, "database disk image is malformed; it has 60 bytes"),
        (empty, "it is empty"),
        (overwrite, "it is no SQLite database, but 20 bytes of something else"),
        (make_a_folder, "it is a folder"),
    ],
)
def test_a_damaged_database_is_one_line_with_the_way_out_and_no_server_starts(
    home: Path, harm: Callable[[Path], None], said: str
):
    file = home / "mlflow" / "mlflow.db"
    harm(file)
    (home / "mlflow" / "mlflow.db-journal").touch()
    with pytest.raises(UserError) as caught:
        begin_tracking_server(Site(home=home))
    text = str(caught.value)
    assert text.startswith(f"{file} is damaged ({said}")
    assert f"mkdir -p {home}/mlflow/damaged && mv {file} {file}-journal {home}/mlflow/damaged." in text
    assert f"again from the checkpoints in {home}/ray, and trains only what has none there" in text
    assert "\n" not in text
    assert running_server(Site(home=home)) is None
    assert not (home / "mlflow" / "server.log").exists()


def test_a_sound_database_passes_and_so_does_one_that_was_only_just_begun(home: Path, tmp_path: Path):
    require_sound_database(home / "mlflow")
    shutil.rmtree(home / "mlflow" / "artifacts")
    empty(home / "mlflow" / "mlflow.db")
    require_sound_database(home / "mlflow")
    require_sound_database(tmp_path / "nothing")


def test_a_database_with_a_transaction_to_undo_is_left_to_the_server(home: Path):
    file = home / "mlflow" / "mlflow.db"
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("PRAGMA cache_spill = 1")
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("UPDATE runs SET name = 'y'")
    for path in (file, home / "mlflow" / "mlflow.db-journal"):  # as a kill would leave them
        shutil.copy(path, path.with_name(f"copy{path.name.removeprefix('mlflow')}"))
    writer.close()
    (home / "killed").mkdir()
    for path in (home / "mlflow").glob("copy*"):
        path.rename(home / "killed" / f"mlflow{path.name.removeprefix('copy')}")
    require_sound_database(home / "killed")


def test_a_database_that_this_user_may_not_read_is_named(home: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"mlflow\.db cannot be read and written \(Permission denied\); give this user"):
        require_sound_database(home / "mlflow")


def test_a_server_whose_database_is_damaged_while_it_runs_says_so_at_once(monkeypatch: pytest.MonkeyPatch):
    answer = requests.Response()
    answer.status_code = 500
    said = "(sqlite3.DatabaseError) database disk image is malformed\\n[SQL: SELECT experiments.experiment_id AS ..."
    answer._content = f'{{"error_code": "INTERNAL_ERROR", "message": "{said}"}}'.encode()
    monkeypatch.setattr(requests.Session, "post", lambda *_, **named: answer)
    with pytest.raises(
        Refused, match=r"cannot read its database, which is damaged; .*rnc ui --stop.*records"
    ) as caught:
        rest.retried(lambda: rest.post("http://127.0.0.1:5000", "experiments/search", {}))
    assert "SELECT" not in str(caught.value)


def test_what_an_earlier_server_logged_of_its_database_is_not_said_of_this_one(tmp_path: Path):
    old, new = "database disk image is malformed\n", "something else\n"
    (tmp_path / "server.log").write_text(old + new)
    server._write_state(tmp_path, port=1, logged=len(old))
    with pytest.raises(UserError, match=r"does not answer .*server\.log ends with\nsomething else$"):
        server._make_database("http://127.0.0.1:1", tmp_path)
    server._write_state(tmp_path, port=1, logged=0)
    with pytest.raises(UserError, match="SQLite calls it malformed"):
        server._make_database("http://127.0.0.1:1", tmp_path)


@pytest.mark.slow
def test_a_page_of_the_schema_that_changed_is_told_in_the_same_words(tmp_path: Path):
    """The server starts, and finds it at the first question."""
    site = Site(home=tmp_path)
    tracking_server(site)
    stop_server(site)
    file = tmp_path / "mlflow" / "mlflow.db"
    content = bytearray(file.read_bytes())
    content[100:4096] = bytes(3996)
    file.write_bytes(content)
    try:
        with pytest.raises(UserError, match=r"mlflow\.db is damaged \(.*malformed.*\): it holds all") as caught:
            tracking_server(site)
        assert "\n" not in str(caught.value)
    finally:
        stop_server(site)
