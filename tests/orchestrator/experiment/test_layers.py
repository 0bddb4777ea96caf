"""Settings laid over settings: drops that move with the epochs, and what a command line sets."""

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment.layers import lay, moved_drops, parse_overrides
from orchestrator.experiment.load import load_experiment
from orchestrator.experiment.plan import train_key
from tests.experiment_files import load, mistake, write

MODEL = "{backbone_norm: group, frozen_stages: 0}"


def schedule(epochs: int | None = None, drops: list[int] | None = None) -> dict[str, object]:
    settings = {"epochs": epochs, "lr_drop_epochs": drops}
    return {"train": {"schedule": {name: value for name, value in settings.items() if value is not None}}}


@pytest.mark.parametrize(
    ("drops", "before", "epochs", "moved"),
    [
        ([8, 11], 12, 12, [8, 11]),
        ([8, 11], 12, 24, [16, 22]),
        ([16, 22], 24, 12, [8, 11]),
        ([8, 11], 12, 6, [4, 5]),  # 5.5 goes up to 6, which is no epoch of six, counted from 0
        ([8, 11], 12, 3, [2]),
        ([8, 11], 12, 2, [1]),
        ([8, 11], 12, 1, []),
        ([], 12, 100, []),
    ],
)
def test_drops_move_in_proportion(drops: list[int], before: int, epochs: int, moved: list[int]) -> None:
    assert moved_drops(drops, before, epochs) == moved


def test_epochs_alone_move_the_drops_and_drops_that_are_given_rule(tmp_path: Path) -> None:
    write(
        tmp_path, "defaults: {train: {schedule: {epochs: 24, lr_drop_epochs: [16, 22]}}}\nrows: [{label: A}]", "p.yaml"
    )
    text = """
        extends: p.yaml
        defaults: {train: {schedule: {epochs: 12}}}
        rows:
          - {label: inherited}
          - {label: its own, train: {schedule: {epochs: 6}}}
          - {label: explicit, train: {schedule: {epochs: 6, lr_drop_epochs: [3]}}}
    """
    rows = {row.label: row.train.schedule for row in load(tmp_path, text).rows}
    assert [rows[name].lr_drop_epochs for name in rows] == [(8, 11), (4, 5), (3,)]


def test_a_file_that_gives_epochs_alone_has_the_defaults_drops_in_proportion(tmp_path: Path) -> None:
    short = load(tmp_path, "rows: [{label: A, train: {schedule: {epochs: 3}}}]").rows[0].train
    spelt = load(tmp_path, "rows: [{label: A, train: {schedule: {epochs: 3, lr_drop_epochs: [2]}}}]").rows[0].train
    assert short == spelt and train_key(short) == train_key(spelt)
    same = load(tmp_path, "rows: [{label: A, train: {schedule: {epochs: 12}}}]").rows[0].train
    assert train_key(same) == train_key(load(tmp_path, "rows: [{label: A}]").rows[0].train)


def test_drops_that_are_a_mistake_stay_one(tmp_path: Path) -> None:
    for wrong in ("[8, 40]", "[0]", "[2, 1]", "eight"):
        parent = f"defaults: {{train: {{schedule: {{epochs: 24, lr_drop_epochs: {wrong}}}}}}}\nrows: [{{label: A}}]"
        write(tmp_path, parent, "p.yaml")
        assert "lr_drop_epochs" in mistake(tmp_path, "extends: p.yaml\ndefaults: {train: {schedule: {epochs: 12}}}")


def test_other_settings_are_merged_as_ever() -> None:
    assert lay({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert lay(schedule(drops=[1]), schedule(12, [8])) == schedule(12, [1])


def test_a_command_line_rules_over_defaults_and_rows(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        defaults: {train: {schedule: {epochs: 12, lr_drop_epochs: [8, 11]}}}
        rows:
          - {label: A}
          - {label: B, train: {schedule: {epochs: 6, lr_drop_epochs: [5]}, data: {short_edge: 300, long_edge: 999}}}
        """,
        "table.yaml",
    )
    pairs = [
        "train.schedule.epochs=3",
        "train.data.short_edge=320",
        "seeds=[4, 5]",
        "resources.num_workers=2",
        "split=x",
    ]
    experiment = load_experiment(tmp_path / "table.yaml", parse_overrides(pairs))
    a, b = experiment.rows
    assert (a.train.schedule.epochs, a.train.schedule.lr_drop_epochs) == (3, (2,))
    assert (b.train.schedule.epochs, b.train.schedule.lr_drop_epochs) == (3, (2,))
    assert (a.train.data.short_edge, b.train.data.short_edge) == (320, 320)
    assert (a.seeds, a.split, experiment.resources.num_workers) == ((4, 5), "x", 2)


def test_values_are_typed_as_in_a_file() -> None:
    pairs = ["train.schedule.learning_rate=1e-4", "train.model.confidence=null", "suite=mine", "columns=[AP, AP50]"]
    assert parse_overrides(pairs) == {
        "train": {"schedule": {"learning_rate": 1e-4}, "model": {"confidence": None}},
        "suite": "mine",
        "columns": ["AP", "AP50"],
    }


def test_paths_count_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "deep", "data: {root: photos, weights: ../w}\nrows: [{label: A}]", "table.yaml")
    held = load_experiment(tmp_path / "deep" / "table.yaml").data
    assert (held.root, held.weights) == (str(tmp_path / "deep" / "photos"), str(tmp_path / "w"))
    monkeypatch.chdir(tmp_path)
    held = load_experiment("deep/table.yaml", parse_overrides(["data.root=other"])).data
    assert (held.root, held.weights) == (str(tmp_path / "other"), str(tmp_path / "w"))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("train.schedule.epocs=3", "train.schedule.epocs is not a setting; did you mean train.schedule.epochs?"),
        ("epochs=3", "epochs is not a setting; did you mean train.schedule.epochs?"),
        ("loss=l1", "loss is not a setting; expected one of: "),  # several settings end so
        ("trian.seed=3", "trian is not a setting; did you mean train?"),
        ("train.schedule.epochs", "expected a setting and its value"),
        ("seeds=[1, 2", "the value cannot be read"),
        ("=3", "expected a setting and its value"),
    ],
)
def test_a_mistake_of_the_command_line_is_told_as_its_own(pair: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^--set ") as told:
        parse_overrides([pair])
    assert said in str(told.value)


def test_a_value_that_does_not_fit_says_where_it_comes_from(tmp_path: Path) -> None:
    path = write(tmp_path, "rows: [{label: A}]", "table.yaml")
    with pytest.raises(UserError, match=r'epochs is "many", expected a whole number \(by --set\)'):
        load_experiment(path, parse_overrides(["train.schedule.epochs=many"]))
