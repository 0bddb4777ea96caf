"""What is sent to a cluster, from a small repository that each test makes."""

import json
import subprocess
from pathlib import Path

import pytest

from orchestrator.cluster import package
from orchestrator.cluster.package import Package, build_package
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiment

REPOSITORY = Path(__file__).parents[3]
HEADS = REPOSITORY / "experiments" / "miniature" / "table1_heads.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a few tracked files, an untracked module, and secrets that nobody tracks."""
    root = tmp_path / "checkout"
    for name in ("model/a.py", "orchestrator/cli/main.py", "pyproject.toml", "experiments/paper/one.yaml", "README.md"):
        write(root / name, name)
    write(root / "experiments/paper/one.yaml", "rows: []\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    write(root / "model/new.py", "untracked")
    write(root / ".env", "SECRET=1")
    write(root / "orchestrator/credentials.json", "secret")
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def built(root: Path, folder: Path, *files: Path) -> tuple[Package, dict[str, str]]:
    made = build_package(files, folder, root)
    return made, {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_only_tracked_sources_are_sent_as_they_are_now_with_package_data_and_untracked_modules_are_named(
    root: Path, tmp_path: Path
):
    write(root / "model/a.py", "changed")
    write(root / "orchestrator/figures/templates/page.html", "<p>")
    git(root, "add", "orchestrator/figures/templates/page.html")
    (root / "orchestrator/link.py").symlink_to(root / ".env")
    git(root, "add", "orchestrator/link.py")
    made, content = built(root, tmp_path / "package", root / "experiments/paper/one.yaml")
    assert content == {
        "model/a.py": "changed",
        "orchestrator/cli/main.py": "orchestrator/cli/main.py",
        "orchestrator/figures/templates/page.html": "<p>",
        "pyproject.toml": "pyproject.toml",
        "experiments/paper/one.yaml": "rows: []\n",
    }
    assert made.experiments == ("experiments/paper/one.yaml",)
    assert (made.num_files, made.num_bytes) == (5, sum(map(len, content.values())))
    assert made.left_out == ("model/new.py",)


def test_files_from_elsewhere_are_sent_with_all_that_they_extend(root: Path, tmp_path: Path):
    mine = write(tmp_path / "mine" / "top.yaml", f"extends: [base.yaml, {root}/experiments/paper/one.yaml]\n")
    write(tmp_path / "mine" / "base.yaml", "extends: ../other/base.yaml\n")
    write(tmp_path / "other" / "base.yaml", "title: Other\nseeds: [0, 1]\n")
    made, content = built(root, tmp_path / "package", mine)
    assert made.experiments == ("submitted/0/mine/top.yaml",)
    assert json.loads(content["submitted/0/mine/top.yaml"])["extends"] == [
        "base.yaml",
        "../../../experiments/paper/one.yaml",
    ]
    assert json.loads(content["submitted/0/mine/base.yaml"])["extends"] == "../../1/other/base.yaml"
    assert content["submitted/1/other/base.yaml"] == "title: Other\nseeds: [0, 1]\n"
    assert not any(str(tmp_path) in text for text in content.values())


def test_an_experiment_reads_the_same_in_the_package(tmp_path: Path):
    mine = write(
        tmp_path / "mine" / "top.yaml",
        f"extends: {HEADS}\nonly: [RetinaNet, RetinaNet-Conf]\n"
        "defaults: {train: {schedule: {learning_rate: 1e-5}}}\n",
    )
    (name,) = build_package([mine], tmp_path / "package").experiments
    here, there = load_experiment(mine), load_experiment(tmp_path / "package" / name)
    assert (there.rows, there.suite, there.name) == (here.rows, here.suite, here.name)


def test_the_digest_depends_on_names_and_content_alone(root: Path, tmp_path: Path):
    file = root / "experiments/paper/one.yaml"
    first, same = (build_package([file], tmp_path / name, root).digest for name in ("1", "2"))
    write(root / "model/a.py", "changed")
    assert first == same != build_package([file], tmp_path / "3", root).digest


def test_a_package_that_is_too_large_is_refused_with_its_largest_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(package, "MAX_BYTES", 1_000_000)
    write(root / "model/weights.bin", "0" * 1_500_000)
    git(root, "add", "model/weights.bin")
    with pytest.raises(UserError, match=r"at most 1 MB .* model/weights\.bin \(1\.5 MB\)"):
        build_package([root / "experiments/paper/one.yaml"], tmp_path / "package", root)


def test_what_is_no_checkout_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="git"):
        build_package([HEADS], tmp_path / "package", tmp_path)
