"""What the README tells a newcomer to type exists and works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.experiment.load import load_experiments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "experiments" / "GUIDE.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
OWN_DATA = [command for command in COMMANDS if re.match(r"rnc (data|train|predict|evaluate) ", command)]
"""What needs somebody's data, or a detector trained on them."""
RNC = Path(sys.executable).parent / "rnc"


def test_the_two_commands_of_a_newcomer_come_first():
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_every_make_target_exists(command: str):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if "rnc " in command and command not in OWN_DATA])
def test_every_rnc_command_works(command: str, tmp_path: Path):
    arguments = shlex.split(command)[1:]
    if arguments[0] == "submit":
        # The submit itself needs GPUs and days; its files are read and checked all the same.
        arguments = ["plan", *arguments[1:], "--gpus", "8"]
    environment = os.environ | {"RNC_HOME": str(tmp_path / "home")}
    done = subprocess.run([RNC, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RetinaNet-Conf" in done.stdout


def test_what_the_readme_does_with_own_data_works(tmp_path: Path, shapes_root: Path):
    """Up to the training, which tests/test_wheel.py does, with what comes after it."""
    (tmp_path / "photos").symlink_to(shapes_root)
    environment = os.environ | {"RNC_HOME": str(tmp_path / "home")}
    looked, trained, *after = map(shlex.split, OWN_DATA)
    assert [words[:3] for words in after] == [["rnc", "predict", "best"], ["rnc", "evaluate", "best"]]
    assert trained == ["rnc", "train", "photos"]
    for words, said in (
        (looked[1:], "6 classes"),
        (["init", "photos", "--compare", "heads"], ""),
        (["plan", "photos.yaml"], "3 rows of 1 table"),
    ):
        done = subprocess.run([RNC, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_the_demo_submits_what_the_readme_says():
    done = subprocess.run(["make", "demo", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rnc submit experiments/demo" in done.stdout
    first, *others = load_experiments([ROOT / "experiments" / "demo"])
    printed = README.split("```text\n")[1].split("```")[0]
    lines = re.findall(r"─\n((?:.+\n)+)", printed)[0].strip().splitlines()
    ours = [line for line in lines if not line.startswith(" ")]  # the paper's stand below, indented
    assert [row.label for row in first.rows] == [re.split(r"  +", line)[0] for line in ours]
    assert len(lines) == 2 * len(ours)
    (head,) = re.findall(r"^row +(.+?)  AP over reference$", printed, flags=re.MULTILINE)
    assert list(first.columns) == head.split()
    number = len(first.rows) + sum(len(table.rows) for table in others)
    assert f"scores {number} rows of two tables" in README and len(others) == 1
    assert {row.seeds for table in (first, *others) for row in table.rows} == {(0,)}


def test_the_experiments_that_the_readme_shows_can_be_planned(tmp_path: Path):
    own_data, own_grid = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "paper").symlink_to(ROOT / "experiments" / "paper")
    (tmp_path / "mine.yaml").write_text(own_data)
    (tmp_path / "grid.yaml").write_text(own_grid)
    data, grid = load_experiments([tmp_path / "mine.yaml", tmp_path / "grid.yaml"])
    assert {row.train.data.dataset for row in data.rows} == {"photos"}
    assert data.data.root == str(tmp_path / "photos")
    assert len(grid.rows) == 1 + 2 * 2


def test_the_notebook_that_the_readme_shows_names_a_table_and_rows_that_are_there():
    (lines,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (opened,), (table,) = re.findall(r'rnc\.open\("(.+?)"\)', lines), re.findall(r'\.table\("(.+?)"\)', lines)
    ((row, over),) = re.findall(r'\.compare\("(.+?)", "(.+?)"\)', lines)
    tables = {one.name: one for one in load_experiments([ROOT / opened])}
    assert {row, over} <= {one.label for one in tables[table].rows}


def test_a_checkpoint_is_pulled_out_of_a_table_of_the_files_submitted_before():
    text = (ROOT / "deploy" / "README.md").read_text()
    pulls = [*re.finditer(r"rnc pull best --table (\w+)", text)]
    assert pulls
    for one in pulls:
        folder = re.findall(r"rnc (?:submit|report) /?(?:app/)?(experiments/\w+)", text[: one.start()])[-1]
        found = [table.name for table in load_experiments([ROOT / folder]) if table.name.startswith(one[1])]
        assert len(found) == 1, (folder, one[0])


def test_every_verb_is_described():
    helped = subprocess.run([RNC, "--help"], capture_output=True, text=True, check=True).stdout
    verbs = re.findall(r"^  (\w+)  ", helped.split("Commands:")[1], flags=re.MULTILINE)
    assert verbs
    for verb in verbs:
        assert f"`rnc {verb}`" in README, f"{verb} is not in the README"
        assert f"| `rnc {verb}" in GUIDE, f"{verb} is not in experiments/GUIDE.md"


def test_every_module_and_folder_that_is_named_exists():
    for name in re.findall(r"\b(?:model|orchestrator)/[\w/]+\.py\b", README):
        assert (ROOT / name).is_file(), name
    folders = README.split("downwards only:")[1].split("\n\n")[0]
    assert sorted(re.findall(r"\b(\w+)/", folders)) == sorted(
        path.parent.name for path in (ROOT / "orchestrator").glob("*/__init__.py")
    )


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md", "experiments/GUIDE.md", "deploy/README.md"])
def test_every_link_to_a_file_leads_somewhere(page: str):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target
