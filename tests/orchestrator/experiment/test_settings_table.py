"""The documentation of the settings: the table, its page, and the verb that prints it."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from model.config import InferenceConfig
from model.settings import flat_differences
from orchestrator.cli.main import cli
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiments
from orchestrator.experiment.rows import Resources
from orchestrator.experiment.settings_table import all_settings, settings_table

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def names(pattern: str) -> list[object]:
    return [row[0] for row in settings_table(pattern).rows]


def test_the_page_says_what_the_code_says() -> None:
    printed = CliRunner().invoke(cli, ["settings", "--format", "markdown"]).stdout
    assert (EXPERIMENTS / "SETTINGS.md").read_text() == printed, (
        "the settings have changed; write the page anew: rnc settings --format markdown > experiments/SETTINGS.md"
    )


def test_a_setting_has_its_type_its_default_its_cost_and_the_text_beneath_it() -> None:
    by_name = {s.name: (s.type, s.default, s.cost, s.meaning) for s in all_settings()}
    assert by_name["train.model.backbone_norm"][:3] == ("one of: frozen_batch, group", "frozen_batch", "train again")
    assert by_name["train.schedule.lr_drop_epochs"][:3] == ("list of whole numbers", "[8, 11]", "train again")
    assert by_name["train.model.confidence"][:3] == ("mapping, or null", "the defaults below", "train again")
    assert by_name["inference.fuse_small_levels"][:3] == ("true or false", "true", "score again")
    assert by_name["resources.num_nodes"] == (
        "whole number, or null",
        "null",
        "free",
        "Nodes over which the workers are spread, at least; null packs them on as few as have room.",
    )
    assert "train.model" not in by_name  # always there, so that nobody can set it as a whole


def test_no_setting_is_left_out_and_each_has_a_meaning() -> None:
    listed = all_settings()
    assert all(setting.meaning for setting in listed)
    found = {setting.name for setting in listed}
    assert {f"inference.{field.name}" for field in fields(InferenceConfig)} <= found
    assert {f"resources.{field.name}" for field in fields(Resources)} <= found
    used = {
        f"train.{name}"
        for experiment in load_experiments([EXPERIMENTS / "paper", EXPERIMENTS / "miniature"])
        for row in experiment.rows
        for name in flat_differences(row.train)
    }
    assert "train.model.confidence.loss" in used and used <= found


def test_a_pattern_is_a_part_of_name_or_meaning_or_a_glob() -> None:
    assert names("NMS_iou") == ["inference.nms_iou"]
    assert names("drops a box that overlaps") == ["inference.nms_iou"]
    assert names("train.schedule.warmup*") == ["train.schedule.warmup_iterations", "train.schedule.warmup_ratio"]
    assert names("train.*.weight_deca?") == ["train.schedule.weight_decay"]
    assert len(names("")) == len(all_settings())
    assert [settings_table("*num_*").rows[place][0] for place in (1, 2)] == [
        "train.data.num_val_images",
        "resources.num_workers",
    ]
    assert settings_table("*num_*").rules_before == (2,)  # between what costs a training and what is free


@pytest.mark.parametrize(
    ("pattern", "way_out"),
    [
        ("nms_iuo", "did you mean nms_iou?"),
        ("inference.nms_iuo", "did you mean inference.nms_iou?"),
        ("zzz", "`rnc settings` lists all"),
    ],
)
def test_a_pattern_that_nothing_fits_is_told_the_way_out(pattern: str, way_out: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_table(pattern)
    assert str(caught.value) == f"no setting has {pattern!r} in its name or meaning; {way_out}"


def test_the_verb_imports_nothing_heavy() -> None:
    """It answers in a fraction of a second, which torch alone would take."""
    heavy = {"torch", "ray", "mlflow", "numpy", "pandas"}
    code = "import sys; from orchestrator.cli.main import cli; cli(['settings', 'nms_iou'], standalone_mode=False); "
    code += f"print('heavy:', *sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inference.nms_iou" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"
