"""The whole way, as a user goes it: a file is submitted, its tables are read, and a second submit has nothing to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.environment import FAST_PATH
from orchestrator.worker.trainer import why_public

ROOT = Path(__file__).parents[2]
RNC = Path(sys.executable).parent / "rnc"
EXPERIMENT = f"""
suite: tiny
extends: {ROOT}/experiments/demo/headline.yaml
only: [RetinaNet, "RetinaNet-Conf, alpha 0.4"]
defaults:
  split: val  # 8 images instead of 2,000
  train:
    data: {{num_train_images: 24, num_val_images: 8}}
    schedule: {{epochs: 2, lr_drop_epochs: [1], validate_every: 1}}
"""
EXPONENTS = """
suite: tiny
extends: heads.yaml
reference: null
columns: [AP, LaECE, oLRP]
rows:
  - {label: by class, inference: {confidence_exponent: 0}}
  - {label: blended, inference: {confidence_exponent: 0.4}}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("submit")
    (folder / "heads.yaml").write_text(EXPERIMENT)
    (folder / "exponents.yaml").write_text(EXPONENTS)
    yield folder
    rnc(folder, "ui", "--stop")


def surroundings() -> dict[str, str]:
    """The environment without what it says of this project, but for the way into Ray Train."""
    foreign = ("RNC_", "MLFLOW_", "RAY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign) or name == FAST_PATH}


def rnc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RNC, *arguments], cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def submitted(folder: Path) -> subprocess.CompletedProcess[str]:
    return rnc(folder, "submit", "heads.yaml", "exponents.yaml", "--format", "json")


def test_a_submit_trains_and_scores_every_row(submitted: subprocess.CompletedProcess[str]):
    assert submitted.returncode == 0, submitted.stderr
    assert ("Trainings take Ray's public trainer" in submitted.stderr) == bool(why_public())
    heads, exponents = json.loads(submitted.stdout)
    assert [row["row"] for row in heads["rows"]] == ["RetinaNet", "RetinaNet-Conf, alpha 0.4"]
    assert [row["row"] for row in exponents["rows"]] == ["by class", "blended"]
    assert all(row["AP"] is not None for table in (heads, exponents) for row in table["rows"])
    assert exponents["rows"][1]["AP"] == heads["rows"][1]["AP"]  # one evaluation in two tables
    assert all(0 < row["oLRP"] <= 100 and "LaECE" in row for row in exponents["rows"])


def test_its_tables_lie_in_files_and_its_links_are_told(folder: Path, submitted: subprocess.CompletedProcess[str]):
    reports = folder / "runs" / "reports" / "tiny"
    assert "| RetinaNet-Conf, alpha 0.4" in (reports / "heads.md").read_text()
    assert "<table" in (reports / "index.html").read_text()
    assert "heads in MLflow: http://127.0.0.1:" in submitted.stderr


@pytest.mark.usefixtures("submitted")
def test_what_scores_say_of_placement_is_recorded_with_every_evaluation(folder: Path):
    report = rnc(folder, "report", "heads.yaml", "--misalignment", "--format", "json")
    (table,) = json.loads(report.stdout)
    always_there = ("oracle AP", "oracle NMS AP", "better dropped", "objects lost, %")  # even where nothing is found
    assert all(row[name] is not None for row in table["rows"] for name in always_there)
    figures = [file.parent.name for file in (folder / "runs" / "mlflow" / "artifacts").rglob("figure1.png")]
    assert figures == ["misalignment"] * 3
    diagrams = (folder / "runs" / "mlflow" / "artifacts").rglob("reliability.png")
    assert [file.parent.name for file in diagrams] == figures
    boxes = [file.name for file in (folder / "runs" / "mlflow" / "artifacts").rglob("misalignment/boxes-*.png")]
    assert len(boxes) == 9 and len(set(boxes)) == 3  # of the same three images each time
    assert "<h2>Misalignment: " in (folder / "runs" / "reports" / "tiny" / "index.html").read_text()


@pytest.mark.usefixtures("submitted")
def test_the_page_shows_the_heads_of_the_first_table_at_work(folder: Path):
    page = (folder / "runs" / "reports" / "tiny" / "index.html").read_text()
    assert '<section id="lab"' in page and page.count('"candidates":[') == 2
    assert '"label":"RetinaNet","has_confidence":false' in page
    assert '"label":"RetinaNet-Conf, alpha 0.4","has_confidence":true' in page


@pytest.mark.usefixtures("submitted")
def test_a_second_submit_has_nothing_to_do(folder: Path):
    again = rnc(folder, "submit", "heads.yaml", "exponents.yaml")
    assert again.returncode == 0, again.stderr
    assert "Nothing is missing: 2 trainings and 3 evaluations stand." in again.stderr
    assert "Ray is up" not in again.stderr


@pytest.mark.usefixtures("submitted")
def test_plan_and_status_say_that_all_is_done(folder: Path):
    plan = json.loads(rnc(folder, "plan", "heads.yaml", "exponents.yaml", "--format", "json").stdout)
    assert plan["missing"] == {"trainings": 0, "evaluations": 0}
    assert rnc(folder, "status", "heads.yaml").stdout.count("finished") == 2


def test_any_two_rows_are_compared(folder: Path, submitted: subprocess.CompletedProcess[str]):
    rows = ("--row", "RetinaNet-Conf, alpha 0.4", "--over", "RetinaNet")
    compared = rnc(folder, "compare", "heads.yaml", *rows, "--images", "2", "--format", "json")
    assert compared.returncode == 0, compared.stderr
    (table,) = json.loads(compared.stdout)
    retinanet, conf = (row["AP"] for row in json.loads(submitted.stdout)[0]["rows"])
    assert [row["AP"] for row in table["rows"][:2]] == [conf, retinanet]
    assert table["rows"][0]["AP over RetinaNet"] == pytest.approx(conf - retinanet, abs=1e-9)
    assert len(table["rows"]) <= 4
    without = rnc(folder, "compare", "heads.yaml", *rows, "--images", "0", "--format", "json")
    assert json.loads(without.stdout)[0]["rows"] == table["rows"][:2]


@pytest.mark.usefixtures("submitted")
def test_a_new_exponent_costs_no_training(folder: Path):
    (folder / "more.yaml").write_text(EXPONENTS.replace("0.4", "0.7"))
    plan = json.loads(rnc(folder, "plan", "more.yaml", "--format", "json").stdout)
    assert plan["missing"] == {"trainings": 0, "evaluations": 1}


def test_the_same_row_run_without_ray_and_mlflow_ends_with_the_same_numbers(
    folder: Path, submitted: subprocess.CompletedProcess[str]
):
    alone = rnc(folder, "run", "heads.yaml", "--row", "RetinaNet-Conf, alpha 0.4", "--format", "json")
    assert alone.returncode == 0, alone.stderr
    (table,) = json.loads(alone.stdout)
    through_ray = json.loads(submitted.stdout)[0]["rows"][1]
    assert all(table["rows"][0][name] == through_ray[name] for name in ("AP", "AP50", "AP75", "APs", "APm"))


def test_the_best_checkpoint_is_registered_and_pulled_gives_the_numbers_in_mlflow(
    folder: Path, submitted: subprocess.CompletedProcess[str]
):
    assert "registered model retinanet-conf-tiny version 1, alias best: " in submitted.stderr
    pulled = rnc(folder, "pull", "RetinaNet-Conf, alpha 0.4", "--table", "heads")
    assert pulled.returncode == 0, pulled.stderr
    scored = rnc(folder, "evaluate", pulled.stdout.strip(), "--format", "json")
    assert "Equal to MLflow's numbers, to the last digit." in json.loads(scored.stdout)["notes"]
    assert json.loads(scored.stdout)["rows"][0]["AP"] == json.loads(submitted.stdout)[0]["rows"][1]["AP"]
    detections = Path(pulled.stdout.strip()) / "detections.parquet"
    again = rnc(folder, "evaluate", "--detections", str(detections), "--format", "json")
    assert again.returncode == 0, again.stderr
    assert (
        "Equal to the numbers recorded in detections.parquet, to the last digit." in json.loads(again.stdout)["notes"]
    )
    assert json.loads(again.stdout)["rows"][0].items() >= json.loads(scored.stdout)["rows"][0].items()


def test_seeds_are_added_until_decided_and_a_budget_ends_a_submit_before(folder: Path):
    (folder / "until.yaml").write_text(
        EXPERIMENT.replace("suite: tiny", "suite: until").replace(
            "epochs: 2, lr_drop_epochs: [1]", "epochs: 1, lr_drop_epochs: []"
        )
        + "seeds: {until: decided, at_least: 2, most: 3}\n"
    )
    span = rnc(folder, "plan", "until.yaml").stdout
    assert "Seeds are added until decided, 2 to 3 in until: 4 to 6 trainings are missing; the most if" in span
    stopped = rnc(folder, "submit", "until.yaml", "--budget", "1e-6", "--format", "json")
    assert stopped.returncode == 0, stopped.stderr
    assert "To do: 1 of 4 trainings" in stopped.stderr and "it runs first, and tells" in stopped.stderr
    assert "The budget of 1e-06 CPU-hours reaches no further" in stopped.stderr
    assert "left out are 3 of 4 trainings: RetinaNet, seed 1 (" in stopped.stderr
    (table,) = json.loads(stopped.stdout)
    assert table["rows"][0]["state"].startswith("1 of 2 seeds") and table["rows"][1]["state"] == "not run"
    ended = rnc(folder, "submit", "until.yaml", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    plan = json.loads(rnc(folder, "plan", "until.yaml", "--format", "json").stdout)
    assert plan["missing"] == {"trainings": 0, "evaluations": 0}
    # two detectors that have learned next to nothing differ by what a look can tell, or get the third seed
    is_open = "Added (CPU-hours): seed 2 of " in ended.stderr
    assert plan["trainings"] == (6 if is_open else 4)
    (table,) = json.loads(ended.stdout)
    assert any(f": {2 if is_open else 1} look" in note for note in table["notes"])
    again = rnc(folder, "submit", "until.yaml")
    assert again.returncode == 0 and "Nothing is missing" in again.stderr and "Ray is up" not in again.stderr
