"""Dockerfiles and shell scripts of deploy/, as hadolint and shellcheck see them, and our own rules for Dockerfiles."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.programs import program

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").rglob("Dockerfile"))
LAUNCHER = ROOT / "deploy" / "ray-up" / "Dockerfile"
"""Of the image that adds to one of ours; it copies nothing of the project."""
SCRIPTS = sorted(
    [*(ROOT / "deploy").rglob("*.sh"), *(ROOT / "deploy").rglob("*.sbatch"), *ROOT.glob("tests/deploy/*.sh")]
)


def named(path):
    return str(path.relative_to(ROOT))


def hadolint(path):
    return subprocess.run([program("hadolint"), "--no-color", path], capture_output=True, text=True, timeout=60)


def shellcheck(path):
    return subprocess.run([program("shellcheck"), path], capture_output=True, text=True, timeout=60)


def complaints(text):
    """Return what our own rules say against a Dockerfile."""
    found = []
    if not re.search(r"^ARG BASE_IMAGE=\S+\n(ENV|\n?FROM \$\{BASE_IMAGE\})", text, re.M):
        found.append("the base cannot be chosen")
    if re.findall(r"^USER (.+)$", text, re.M)[-1:] != ["10001:10001"]:
        found.append("does not end as user 10001")
    for line in re.findall(r"pip(?: --python \S+)? install .*", text):
        if "--require-hashes" not in line and "--no-deps" not in line:
            found.append("installs what no hash vouches for")
    if re.search(r"^(ARG|ENV) \w*(PASSWORD|SECRET|TOKEN|KEY)\w*", text, re.M):
        found.append("a secret would stay in a layer")
    if re.search(r"https?://", text.replace("http://127.0.0.1", "")):
        found.append("names a place to download from")
    return found


def order_complaints(text):
    """Return what is wrong with the order of a Dockerfile that copies the project."""
    sources = [
        match.start() for match in re.finditer(r"^COPY (model|orchestrator|experiments|.*serve\.py)", text, re.M)
    ]
    if not sources or min(sources) < text.find("requirements.lock\n", text.find("--require-hashes --requirement /opt")):
        return ["a change of the sources installs everything anew"]
    return []


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_a_dockerfile_is_right(path):
    done = hadolint(path)
    assert done.returncode == 0, done.stdout
    assert complaints(path.read_text()) + order_complaints(path.read_text()) == []


def test_the_launchers_dockerfile_is_right():
    done = hadolint(LAUNCHER)
    assert done.returncode == 0, done.stdout
    assert complaints(LAUNCHER.read_text()) == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("USER 10001:10001\n", "", "user 10001"),
        ("FROM ${BASE_IMAGE}", "FROM retinanet-conf", "base cannot be chosen"),
        ("--require-hashes --no-deps", "--upgrade", "no hash"),
        ("FROM ${BASE_IMAGE}\n", "FROM ${BASE_IMAGE}\nARG RAY_AUTH_TOKEN\n", "stay in a layer"),
    ],
)
def test_a_mistake_planted_in_the_launchers_dockerfile_is_found(right, wrong, complaint):
    text = LAUNCHER.read_text()
    assert right in text
    assert complaint in "\n".join(complaints(text.replace(right, wrong)))


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_a_dockerfile_has_a_list_of_what_it_may_see(path):
    lines = path.with_name("Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not [rule for rule in rules if re.fullmatch(r"!(\*\*?/?|deploy/?|\.git.*|runs.*)", rule)]


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_is_right(path):
    done = shellcheck(path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^set -.*u", path.read_text(), re.M), "goes on with variables that are not set"


DOCKERFILE_MISTAKES = {
    "root": ("USER 10001:10001\n", "USER root\n", "user 10001"),
    "nobody": ("USER 10001:10001\n", "", "user 10001"),
    "fixed-base": ("FROM ${BASE_IMAGE}", "FROM python:3.11", "base cannot be chosen"),
    "no-hashes": ("--compile-bytecode --require-hashes", "--compile-bytecode", "no hash"),
    "secret": ("ARG VERSION=0.1.0", "ARG VERSION=0.1.0\nARG RAY_AUTH_TOKEN", "stay in a layer"),
    "index": ("--link-mode copy", "--link-mode copy --index https://example.org/simple", "download from"),
}


@pytest.mark.parametrize("mistake", DOCKERFILE_MISTAKES)
@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_a_mistake_planted_in_a_dockerfile_is_found(path, mistake):
    right, wrong, complaint = DOCKERFILE_MISTAKES[mistake]
    text = path.read_text()
    assert right in text
    assert complaint in "\n".join(complaints(text.replace(right, wrong)))


def test_sources_before_the_environment_are_found():
    text = (ROOT / "deploy/docker/Dockerfile").read_text()
    moved = text.replace("COPY model model\n", "").replace(
        "COPY requirements.lock", "COPY model model\nCOPY requirements.lock"
    )
    assert order_complaints(moved) == ["a change of the sources installs everything anew"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_hadolint_finds_a_planted_mistake(path, tmp_path):
    planted = tmp_path / "Dockerfile"
    planted.write_text(path.read_text().replace("WORKDIR /app", "WORKDIR app\nADD https://example.org/x.tar /x"))
    done = hadolint(planted)
    assert done.returncode != 0 and "DL3000" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_shellcheck_finds_a_planted_mistake(path, tmp_path):
    planted = shutil.copy(path, tmp_path / path.name)
    with planted.open("a") as file:
        file.write("\nfolder=$1\nrm -rf $folder/*\n")
    done = shellcheck(planted)
    assert done.returncode != 0 and "SC2086" in done.stdout
