"""deploy/ray-up: validated by Ray's own launcher, which needs no cloud for that, and by rules of ours."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.programs import program
from tests.deploy.ray_up_rules import launcher_complaints, up_complaints

ROOT = Path(__file__).parents[2] / "deploy" / "ray-up"
FILES = ("aws.yaml", "gcp.yaml", "onprem.yaml")
MISTAKES = [
    (file, *mistake)
    for file, mistakes in yaml.safe_load(Path(__file__).with_name("ray_up_mistakes.yaml").read_text()).items()
    for mistake in mistakes
]


def complaints(text: str) -> list[str]:
    config = yaml.safe_load(text)
    return list(launcher_complaints(config)) or list(up_complaints(config, text))


@pytest.mark.parametrize("file", FILES)
def test_ray_takes_a_cluster_file_and_it_keeps_to_our_rules(file: str):
    assert complaints((ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"), MISTAKES, ids=[f"{m[0]}-{m[2][:25].strip()}" for m in MISTAKES]
)
def test_a_mistake_in_a_cluster_file_is_told(file: str, old: str, new: str, said: str):
    text = (ROOT / file).read_text()
    assert old in text, f"{file} holds no {old!r} to be spoilt"
    told = complaints(text.replace(old, new, 1))
    assert any(said in one for one in told), told


@pytest.mark.parametrize("file", FILES)
def test_the_launcher_gives_each_node_what_its_machine_has(file: str):
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(yaml.safe_load((ROOT / file).read_text()))
    assert prepared["max_workers"] == 2
    if file == "onprem.yaml":
        assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == 2
        return
    types = prepared["available_node_types"]
    assert types["head"]["max_workers"] == 0 and types["head"]["resources"] == {"CPU": 0}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 2)
    assert 2 * types["gpu"]["resources"]["GPU"] == 8


def test_the_commands_of_a_cluster_file_are_sound_shell(tmp_path: Path):
    shellcheck = program("shellcheck")
    for file in FILES:
        config = yaml.safe_load((ROOT / file).read_text())
        for kind in (
            "initialization_commands",
            "head_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        ):
            script = tmp_path / f"{file}-{kind}.sh"
            script.write_text("\n".join(["#!/bin/bash", *config[kind], ""]))
            subprocess.run([shellcheck, "--exclude=SC2154,SC2086", str(script)], check=True, timeout=60)


def test_the_image_of_the_launcher_is_sound():
    subprocess.run([program("hadolint"), str(ROOT / "Dockerfile")], check=True, timeout=60)
