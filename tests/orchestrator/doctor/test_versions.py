"""How installed packages are held against the bounds of pyproject.toml, and how sources are told apart."""

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from orchestrator.doctor.versions import declared, judge_versions, look_at_versions, meets, sources_digest


@pytest.mark.parametrize(
    ("version", "bound", "older"),
    [
        ("2.9.1", "2.10", True),
        ("2.10.0", "2.10", False),
        ("2.10", "2.10", False),
        ("2.15.0+cu132", "2.10", False),
        ("3.17.0rc1", "3.17", False),
        ("3.16.12.dev0", "3.17", True),
        ("10.0", "9.9", False),
    ],
)
def test_versions_are_compared_by_number(version: str, bound: str, older: bool):
    assert meets(version, SpecifierSet(f">={bound}")) is not older


def test_other_sources_have_another_digest(tmp_path: Path):
    for package in ("model", "orchestrator"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("a = 1\n")
    before = sources_digest(tmp_path)
    assert sources_digest(tmp_path) == before
    (tmp_path / "model" / "a.py").write_text("a = 2\n")
    assert sources_digest(tmp_path) != before


def test_what_is_no_version_keeps_within_no_bounds():
    assert not meets("unknown", SpecifierSet(">=1"))


def test_a_release_that_serves_but_is_not_safe_is_red():
    (found,) = judge_versions("driver", {"mlflow": "3.5.0"})
    assert (found.level, found.seen) == ("fail", "mlflow 3.5.0 is not >=3.17,>=3.5")


def test_every_package_of_pyproject_is_looked_at_and_this_environment_keeps_within_the_bounds():
    found = look_at_versions()
    assert declared().keys() <= found.keys()
    assert str(declared()["hotcoco"]) == "<2,>=1.3"
    assert [one.level for one in judge_versions("driver", found)] == ["ok"]


def test_a_release_above_the_bounds_is_red_too():
    (found,) = judge_versions("driver", {"hotcoco": "2.0"})
    assert (found.level, found.seen) == ("fail", "hotcoco 2.0 is not <2,>=1.3")
    assert "pip-audit" in found.way_out
