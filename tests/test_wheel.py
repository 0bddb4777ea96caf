"""The installed package, in an empty folder: what a user has who never saw the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    # Of a copy: a build leaves folders in the sources, whose files the next one would pack again.
    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("model", "orchestrator", "experiments"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    done = subprocess.run(build, cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, here: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    settings = {"RNC_HOME": str(here / "runs"), "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW", "RAY_"))
    }
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", *words]
    return subprocess.run(command, cwd=here, env=surroundings | settings, capture_output=True, text=True, timeout=600)


def test_the_papers_files_are_inside(installed: Path, tmp_path: Path) -> None:
    where = "import orchestrator.site, model; print(orchestrator.site.ROOT, model.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", where],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == [str(installed), str(installed / "model" / "__init__.py")], found.stderr
    planned = run(installed, tmp_path, "plan", "experiments/paper", "--gpus", "8")
    assert planned.returncode == 0, planned.stderr
    assert "45 rows of 6 tables: 13 trainings, 36 distinct evaluations." in planned.stdout
    claims = run(installed, tmp_path, "report", "experiments/paper", "--claims")
    assert claims.returncode == 0 and "supported" in claims.stdout, claims.stderr
    (tmp_path / "mine.yaml").write_text("extends: paper/table1_heads.yaml\nonly: [RetinaNet]\n")
    assert "1 row of 1 table" in run(installed, tmp_path, "plan", "mine.yaml").stdout


def test_a_file_is_made_for_data_and_checked(installed: Path, tmp_path: Path, shapes_root: Path) -> None:
    made = run(installed, tmp_path, "init", str(shapes_root), "--compare", "heads")
    assert made.returncode == 0, made.stderr
    planned = run(installed, tmp_path, "plan", "shapes.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "3 rows of 1 table: 3 trainings" in planned.stdout
    assert f"data {shapes_root}, split train: " in planned.stderr


@pytest.mark.slow
def test_one_line_trains_a_detector_the_same_line_goes_on_and_others_use_it(
    installed: Path, tmp_path: Path, shapes_root: Path
) -> None:
    sizes = {"model.backbone": "resnet18_quarter", "model.channels": 16, "model.tower_depth": 1, "data.short_edge": 64}
    sizes |= {"data.long_edge": 64, "schedule.epochs": 1, "data.num_train_images": 8, "data.num_val_images": 4}
    words = [word for name, value in sizes.items() for word in ("--set", f"train.{name}={value}")]
    try:
        trained = run(installed, tmp_path, "train", str(shapes_root), *words)
        assert trained.returncode == 0, trained.stderr
        assert "To do: 1 of 1 trainings, 1 of 1 evaluations." in trained.stderr
        assert "RetinaNet-Conf" in trained.stdout and "Measured on my-shapes val" in trained.stdout
        again = run(installed, tmp_path, "train", str(shapes_root))
        assert again.returncode == 0, again.stderr
        assert "is there already, and taken as it stands" in again.stderr
        assert "Nothing is missing" in again.stderr
        image = min((shapes_root / "val").iterdir())
        drawn = run(installed, tmp_path, "predict", "best", str(image))
        assert drawn.returncode == 0, drawn.stderr
        assert len(list((tmp_path / "runs" / "predictions").rglob(f"{image.stem}.jpg"))) == 1
        scored = run(installed, tmp_path, "evaluate", "best", "--classes")  # finds its data without --data
        assert scored.returncode == 0, scored.stderr
        assert "Equal to MLflow's numbers" in scored.stdout and "disc" in scored.stdout
    finally:
        run(installed, tmp_path, "ui", "--stop")
