"""What a terminal is shown: tables as wide as it is, colours, one form of errors, and the word after a Ctrl-C."""

import errno
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli
from orchestrator.cli.terminal import MOST_ON_SCREEN, beginning, when_interrupted
from orchestrator.errors import UserError
from orchestrator.figures.table import Column, Table

ROOT = Path(__file__).parents[3]
PAPER = str(ROOT / "experiments" / "paper")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    unset = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "RNC_COCO_ROOT", "RNC_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {"RNC_HOME": str(tmp_path / "home"), "TERM": "xterm"} | more


def on_terminal(arguments: list[str], columns: int, env: dict[str, str]) -> str:
    """What `rnc` writes to a terminal of so many columns."""
    size = (
        f"import fcntl, struct, termios; fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, {columns}, 0, 0))"
    )
    code = f"{size}\nfrom orchestrator.cli.main import main\nmain()"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so that the other end is closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    process.wait()
    return text.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("words", [["plan", "--gpus", "8"], ["status"], ["report"]])
def test_no_line_of_a_table_is_wider_than_the_terminal(words: list[str], columns: int, tmp_path: Path) -> None:
    result = CliRunner(env={"COLUMNS": str(columns), "RNC_HOME": str(tmp_path)}).invoke(cli, [*words, PAPER])
    text = result.stdout
    assert result.exit_code == 0 and "RetinaNet-Conf" in text
    assert [line for line in text.splitlines() if len(line) > columns] == []


def test_a_terminal_has_colours_unless_it_is_told_to_have_none(tmp_path: Path) -> None:
    colored = on_terminal(["plan", PAPER], 80, environment(tmp_path))
    plain = on_terminal(["plan", PAPER], 80, environment(tmp_path, NO_COLOR="1"))
    assert ESCAPE.search(colored) and not ESCAPE.search(plain) and ESCAPE.sub("", colored) == plain
    assert 70 < max(map(len, plain.splitlines())) <= 80
    refused = on_terminal(["plan", str(tmp_path / "a folder" / "nowhere.yaml")], 40, environment(tmp_path))
    assert refused.startswith("\x1b[31merror:\x1b[0m\n  ") and refused.endswith("expected an\n  experiment file\n")
    assert f"{tmp_path}/a" in ESCAPE.sub("", refused).split()  # a path is a word, and is not broken
    assert "\x1b[31merror:" in on_terminal(["plan", "nowhere.yaml"], 100, environment(tmp_path))


def test_a_pipe_gets_what_a_file_gets_unless_it_asks_for_a_width_or_for_colours(tmp_path: Path) -> None:
    def piped(**more: str) -> str:
        arguments = [sys.executable, "-m", "orchestrator.cli.main", "plan", PAPER, "--gpus", "8"]
        env = environment(tmp_path, **more)
        return subprocess.run(arguments, env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "8 workers, 1 GPU each" in piped() and not ESCAPE.search(piped())
    assert max(map(len, piped(COLUMNS="80").splitlines())) <= 80
    assert ESCAPE.search(piped(COLUMNS="80", FORCE_COLOR="1"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", PAPER, "--frmat", "json"], "no such option '--frmat'; did you mean "),
        (["--colour"], "no such option '--colour'; `rnc --help` says what it takes"),
        (["paln", PAPER], "no such command 'paln'"),
        (["predict"], "missing argument 'CHECKPOINT'; `rnc predict --help` says what it takes"),
        (["plan", PAPER, "--gpus", "0"], "invalid value for '--gpus': 0 is not in the range x>=1;"),
        (["plan", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_every_mistake_in_a_call_is_one_line_of_one_form(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, arguments, prog_name="rnc")
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


def test_mistakes_about_a_checkpoint_are_told_without_torch(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = str(tmp_path / "empty")
    calls = [
        ["predict", folder, "photo.jpg", "--out", "out"],
        ["evaluate", folder, "--set", "inference.nms=1"],
        ["evaluate", folder, "--exponent", "3"],
        ["sweep", folder, "--exponents", "0:1:0.5"],
        ["misalignment", folder],
        ["evaluate", "best", "--set", "nms=1"],
        ["sweep", "best", "--exponents", "half"],
        ["sweep", "best", "--exponents", "0:1:0.5", "--set", "nms=1"],
        ["misalignment", "best", "--image-ids", "first"],
        ["report", PAPER, "--classes", "--row", "nowhere"],
        ["run", PAPER, "--row", "nowhere"],
        ["run", f"{PAPER}/table1_heads.yaml", "--row", "RetinaNet"],
    ]
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from orchestrator.cli.main import cli\n"
        f"for arguments in {calls!r}:\n"
        "    result = CliRunner().invoke(cli, arguments)\n"
        "    assert result.exit_code == 2 and result.stderr.startswith('error: '), (arguments, result.output)\n"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])\n"
    )
    env = environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("number", "place", "said"),
    [
        (
            errno.EACCES,
            "home/x",
            "no access (Permission denied); change its permissions, or set RNC_HOME to another place",
        ),
        (
            errno.EROFS,
            "me/x",
            "no access (Read-only file system); change its permissions, or set HOME to another place",
        ),
        (errno.ENOSPC, "t/part", "the disk is full (4 KB of 8 GB are free); free some, or set TMPDIR to another place"),
        (errno.EACCES, "photos/1.jpg", "no access (Permission denied); change its permissions"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_with_what_moves_it(
    number: int, place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    monkeypatch.setattr("orchestrator.errors.free_of", lambda _: "4 KB of 8 GB are free")
    path = str(tmp_path / place)

    def broken(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("orchestrator.worker.local.run_row", broken)
    result = CliRunner().invoke(cli, ["run", PAPER, "--row", "RetinaNet"])
    assert (result.exit_code, result.stderr) == (2, f"error: {path}: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        (
            ["run", PAPER, "--row", "RetinaNet"],
            "Interrupted. What is recorded stays; the same command goes on from there.",
        ),
        (["plan", PAPER], "Interrupted."),
    ],
)
def test_only_a_verb_that_goes_on_says_so_after_ctrl_c(
    arguments: list[str], ends: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    monkeypatch.setattr("orchestrator.worker.local.run_row", interrupted)
    monkeypatch.setattr("orchestrator.report.plan_table.plan_table", interrupted)
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stderr) == (130, f"{ends}\n")


def test_a_verb_of_a_group_has_its_own_word_after_ctrl_c() -> None:
    @click.command()
    @when_interrupted("Half of it is there.")
    def half() -> None:
        raise KeyboardInterrupt

    @click.group()
    def inner() -> None:
        pass

    inner.add_command(half)
    outer = type(cli)("outer")
    outer.add_command(inner)
    result = CliRunner().invoke(outer, ["inner", "half"])
    assert (result.exit_code, result.stderr) == (130, "Interrupted. Half of it is there.\n")


def test_an_error_that_nobody_can_mend_is_still_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "x")

    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    monkeypatch.setattr("orchestrator.worker.local.run_row", broken)
    result = CliRunner().invoke(cli, ["run", PAPER, "--row", "RetinaNet"])
    assert isinstance(result.exception, OSError) and not isinstance(result.exception, UserError)


def test_a_reader_that_goes_away_ends_the_output_without_a_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "orchestrator.cli.main", "settings", "--format", "json"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            arguments, env=environment(tmp_path), cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1 and done.stderr == ""


def test_names_with_control_characters_are_shown_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b]0;owned\x07b"
    folder.mkdir()
    (folder / "one.yaml").write_text('titel: "\\e[31m"\n')
    run = CliRunner().invoke(cli, ["plan", str(folder)])
    assert run.exit_code == 2
    assert "\x1b" not in run.output and "\x07" not in run.output
    assert r"\x1b]0;owned\x07b" in run.output


def test_a_terminal_is_shown_the_first_rows_of_thousands_and_how_to_see_the_others(tmp_path: Path) -> None:
    columns = (Column("row"), Column("of", numeric=False))
    table = Table(
        title="Many",
        columns=columns,
        rows=tuple((n, "x") for n in range(5000)),
        rules_before=(0, 400, 4000),
        notes=("n",),
    )
    shown = beginning(table)
    assert len(shown.rows) == MOST_ON_SCREEN and shown.rules_before == (0, 400)
    assert shown.notes[0].startswith(f"{5000 - MOST_ON_SCREEN} rows more: all are printed into a file or a pipe")
    assert shown.notes[1:] == ("n",)
    few = replace(table, rows=table.rows[:MOST_ON_SCREEN], rules_before=())
    assert beginning(few) is few


def test_an_output_that_the_shell_closed_is_no_screen() -> None:
    closed = subprocess.run(
        ["sh", "-c", '"$0" -m orchestrator.cli.main settings bins >&-', sys.executable],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in closed.stderr
