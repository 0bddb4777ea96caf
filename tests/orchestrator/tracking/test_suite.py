"""Where a suite finds its data and weights."""

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiments
from orchestrator.site import Site
from orchestrator.tracking.suite import Suite
from tests.experiment_files import write

ROW = "rows: [{label: A, train: {model: {backbone_weights: r.pth}}}]"


def suite(folder: Path, **files: str) -> Suite:
    for name, text in files.items():
        write(folder, text, f"{name}.yaml")
    usual = Site(home=folder / "home", coco_root=Path("/usual/data"), weights_root=Path("/usual/weights"))
    return Suite(load_experiments([folder]), usual)


def test_a_file_says_where_its_data_and_weights_are_and_the_environment_where_it_does_not(tmp_path: Path) -> None:
    site = suite(tmp_path, a=f"data: {{root: /my/photos}}\n{ROW}").site
    assert (site.data_root("coco"), site.weights_root) == (Path("/my/photos"), Path("/usual/weights"))
    site = suite(tmp_path, a=f"data: {{weights: /my/weights}}\n{ROW}").site
    assert (site.data_root("coco"), site.weights_root) == (Path("/usual/data"), Path("/my/weights"))


def test_a_suite_has_one_data_set(tmp_path: Path) -> None:
    mine = f"data: {{root: /my/photos}}\n{ROW}"
    with pytest.raises(UserError, match=r"data\.root is .*/my/photos for .*a\.yaml.*/usual/data for .*b\.yaml") as told:
        suite(tmp_path, a=mine, b=ROW.replace("A", "B"))
    assert "suite: NAME" in str(told.value)
    shapes = "rows: [{label: B, train: {data: {dataset: shapes}}}]"
    assert suite(tmp_path, a=mine, b=shapes).site.coco_root == Path("/my/photos")
