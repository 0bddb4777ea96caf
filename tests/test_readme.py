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
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
RNC = Path(sys.executable).parent / "rnc"


def test_the_two_commands_of_a_newcomer_come_first():
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_every_make_target_exists(command: str):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if "rnc " in command])
def test_every_rnc_command_works(command: str, tmp_path: Path):
    arguments = shlex.split(command)[1:]
    if arguments[0] == "submit":
        arguments[0] = "plan"  # the submit itself needs GPUs and days; its files are read and checked all the same
    environment = os.environ | {"RNC_HOME": str(tmp_path / "home")}
    done = subprocess.run([RNC, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RetinaNet-Conf" in done.stdout


def test_the_demo_submits_what_the_readme_says():
    done = subprocess.run(["make", "demo", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rnc submit experiments/demo" in done.stdout
    demo = load_experiments([ROOT / "experiments" / "demo"])
    printed = README.split("```text\n")[1].split("```")[0]
    tables = [block.strip().splitlines() for block in re.findall(r"─\n((?:.+\n)+)", printed)]
    assert [[row.label for row in table.rows] for table in demo] == [
        [re.split(r"  +", line)[0] for line in lines] for lines in tables
    ]
    heads = re.findall(r"^row +(.+?)  AP over reference$", printed, flags=re.MULTILINE)
    assert [list(table.columns) for table in demo] == [head.split() for head in heads]
    assert {row.seeds for table in demo for row in table.rows} == {(0,)}


def test_every_verb_is_described():
    helped = subprocess.run([RNC, "--help"], capture_output=True, text=True, check=True).stdout
    verbs = re.findall(r"^  (\w+)  ", helped.split("Commands:")[1], flags=re.MULTILINE)
    assert verbs
    for verb in verbs:
        assert f"`rnc {verb}" in README, f"{verb} is not in the README"


def test_every_module_and_folder_that_is_named_exists():
    for name in re.findall(r"\b(?:model|orchestrator)/[\w/]+\.py\b", README):
        assert (ROOT / name).is_file(), name
    tree = README.split("```text\nmodel/ ")[1].split("```")[0]
    assert sorted(re.findall(r"\b(\w+)/", tree.split("orchestrator/")[1].split("experiments/")[0])) == sorted(
        path.name for path in (ROOT / "orchestrator").iterdir() if (path / "__init__.py").is_file()
    )


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
