"""Expected values follow from the paths that each test makes."""

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.site import Site, site_from_environment


def test_nothing_set_means_runs_in_the_current_folder_and_nothing_is_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = site_from_environment({})
    assert site == Site(home=tmp_path / "runs")
    assert site.storage == tmp_path / "runs" / "ray"
    assert site.data_root("shapes") == tmp_path / "runs" / "data" / "shapes"
    assert list(tmp_path.iterdir()) == []


def test_relative_folders_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("coco", "weights"):
        (tmp_path / name).mkdir()
    site = site_from_environment({"RNC_HOME": "here", "RNC_COCO_ROOT": "coco", "RNC_WEIGHTS": "./weights"})
    assert site.home == tmp_path / "here"
    assert site.data_root("coco") == tmp_path / "coco"
    assert site.weights_root == tmp_path / "weights"


def test_a_tilde_is_the_home_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert site_from_environment({"RNC_HOME": "~/results"}).home == tmp_path / "results"


def test_addresses_are_taken_over_and_empty_ones_are_unset():
    site = site_from_environment({"MLFLOW_TRACKING_URI": "http://mlflow:5000", "RAY_ADDRESS": "ray://head:10001"})
    assert (site.tracking_uri, site.ray_address) == ("http://mlflow:5000", "ray://head:10001")
    empty = site_from_environment({"MLFLOW_TRACKING_URI": "", "RAY_ADDRESS": "", "RNC_COCO_ROOT": ""})
    assert (empty.tracking_uri, empty.ray_address, empty.coco_root) == (None, None, None)


@pytest.mark.parametrize("name", ["RNC_COCO_ROOT", "RNC_WEIGHTS"])
def test_a_folder_that_is_named_and_missing_is_an_error_that_names_both(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}: {tmp_path}/none is no folder"):
        site_from_environment({name: f"{tmp_path}/none"})


def test_a_home_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"RNC_HOME: .*/file is a file"):
        site_from_environment({"RNC_HOME": f"{tmp_path}/file"})


def test_coco_without_its_folder_is_an_error_that_shows_the_layout():
    with pytest.raises(UserError, match=r"RNC_COCO_ROOT is not set.*train2017/ val2017/ annotations/"):
        Site(home=Path("/anywhere")).data_root("coco")


def test_weights_are_looked_up_in_their_folder(tmp_path):
    (tmp_path / "resnet50.pth").touch()
    site = Site(home=tmp_path, weights_root=tmp_path)
    assert site.weights_file("resnet50.pth") == tmp_path / "resnet50.pth"
    assert site.weights_file(None) is None
    with pytest.raises(UserError, match=r"holds no file resnet18\.pth; .*data: \{weights.*RNC_WEIGHTS"):
        site.weights_file("resnet18.pth")
    with pytest.raises(UserError, match=r"RNC_WEIGHTS is not set.* the folder that holds resnet18\.pth"):
        Site(home=tmp_path).weights_file("resnet18.pth")


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "RAY_ADDRESS"])
def test_a_site_holds_no_password_whoever_makes_it(name: str):
    with pytest.raises(UserError, match=f"{name}: the address holds a user or a password") as refused:
        site_from_environment({name: "http://ada:geheim@host:5000"})
    assert "geheim" not in str(refused.value)
