"""Experiment files: what they inherit, and how each mistake in them is told."""

from pathlib import Path

import pytest

from model.config import ConfidenceConfig, InferenceConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.load import find_row, load_experiment, load_experiments, load_sound
from orchestrator.experiment.plan import train_key
from orchestrator.experiment.rows import Resources, SeedRule
from orchestrator.report.statistics.resamples import ROWS
from tests.experiment_files import load, mistake, mistakes, write

PAPER = Path(__file__).parents[3] / "experiments" / "paper"
MINIATURE = PAPER.parent / "miniature"
PHOTOS = PAPER.parent / "photos"


def row(settings: str) -> str:
    return f"rows:\n  - {{label: A, {settings}}}\n"


def test_a_file_that_says_nothing_but_a_label_has_the_papers_defaults(tmp_path: Path) -> None:
    experiment = load(tmp_path / "suite", "rows: [{label: A}]")
    assert (experiment.name, experiment.suite, experiment.title) == ("table", "suite", "table")
    assert experiment.columns == ("AP", "AP50", "AP75", "APs", "APm", "APl")
    assert experiment.resources == Resources()
    (only,) = experiment.rows
    assert (only.label, only.train, only.inference) == ("A", TrainConfig(), InferenceConfig())
    assert (only.split, only.seeds, dict(only.paper)) == ("val2017", (0,), {})


def test_a_row_goes_before_the_files_defaults_and_those_before_the_parents(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        defaults: {train: {model: {channels: 64, tower_depth: 1, focal_gamma: 1}}, inference: {nms_iou: 0.3}}
        rows: [{label: A}]
        """,
        "parent.yaml",
    )
    experiment = load(
        tmp_path,
        """
        extends: parent.yaml
        defaults: {train: {model: {tower_depth: 2, focal_gamma: 3}}}
        rows: [{label: B, train: {model: {focal_gamma: 4}}}]
        """,
    )
    (only,) = experiment.rows
    model = only.train.model
    assert (model.channels, model.tower_depth, model.focal_gamma, model.focal_alpha) == (64, 2, 4.0, 0.25)
    assert only.inference.nms_iou == 0.3


def test_a_child_inherits_rows_with_the_papers_numbers_but_not_name_and_suite(tmp_path: Path) -> None:
    text = """
        name: parents
        suite: first
        title: Title
        seeds: [1, 2]
        columns: [AP]
        reference: A
        resources: {num_workers: 8, gpus_per_worker: 1}
        rows: [{label: A, paper: {AP: 35.6}}, {label: B, split: other}]
        """
    write(tmp_path, text, "paper/table.yaml")
    path = write(tmp_path, "extends: ../paper/table.yaml\nresources: {num_workers: 1}", "small/mine.yaml")
    child = load_experiment(path)
    assert (child.name, child.suite, child.title) == ("mine", "small", "Title")
    assert [(r.label, r.seeds, dict(r.paper)) for r in child.rows] == [("A", (1, 2), {"AP": 35.6}), ("B", (1, 2), {})]
    assert (child.columns, child.reference) == (("AP",), "A")
    assert child.resources == Resources(num_workers=1, gpus_per_worker=1.0)


def test_of_several_parents_the_later_counts_and_the_rows_are_those_of_the_last_that_has_some(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        title: Title
        defaults: {train: {model: {channels: 64, tower_depth: 1}}}
        columns: [AP]
        resources: {num_workers: 8, cpus_per_worker: 2}
        rows: [{label: A}]
        """,
        "table.yaml",
    )
    write(
        tmp_path,
        "defaults: {train: {model: {tower_depth: 2}}}\ncolumns: [AP50]\nresources: {num_workers: 1}",
        "_recipe.yaml",
    )
    child = load_experiment(write(tmp_path, "extends: [table.yaml, _recipe.yaml]", "child.yaml"))
    (only,) = child.rows
    assert (only.label, child.title, child.columns) == ("A", "Title", ("AP50",))
    assert (only.train.model.channels, only.train.model.tower_depth) == (64, 2)
    assert child.resources == Resources(num_workers=1, cpus_per_worker=2.0)
    other = load_experiment(write(tmp_path, "extends: [_recipe.yaml, table.yaml]", "child.yaml"))
    assert (other.rows[0].train.model.tower_depth, other.columns) == (1, ("AP",))


def test_a_file_whose_name_begins_with_an_underscore_is_a_part_of_others_and_no_experiment(tmp_path: Path) -> None:
    write(tmp_path, "defaults: {train: {schedule: {epochs: 3}}}", "_part.yaml")
    write(tmp_path, "extends: _part.yaml\nrows: [{label: A, train: {schedule: {lr_drop_epochs: [2]}}}]", "table.yaml")
    write(tmp_path, "claims: []", "claims.yaml")
    for paths in ([tmp_path], sorted(tmp_path.glob("*.yaml"))):  # a folder, or what a shell makes of *.yaml
        (table,) = load_experiments(paths)
        assert table.rows[0].train.schedule.epochs == 3
    with pytest.raises(
        UserError, match=r"_part\.yaml: no experiment, but a part of others; name a file that extends it"
    ):
        load_experiments([tmp_path / "_part.yaml"])
    with pytest.raises(UserError, match=r"claims\.yaml: claims, no experiment; they are judged by"):
        load_experiments([tmp_path / "claims.yaml"])
    assert "there are no rows" in mistake(tmp_path, "extends: _part.yaml")
    write(tmp_path, "defaults: {train: {schedule: {epoch: 3}}}", "_part.yaml")
    with pytest.raises(UserError, match=r"_part\.yaml: defaults\.train\.schedule\.epoch is not a setting"):
        load_experiment(tmp_path / "table.yaml")


def test_changes_are_laid_over_inherited_rows_by_label(tmp_path: Path) -> None:
    rows = "rows: [{label: A, train: {model: {channels: 64, tower_depth: 1}}}, {label: B, paper: {AP: 30}}]"
    write(tmp_path, rows, "parent.yaml")
    changes = "changes: {A: {train: {model: {tower_depth: 3}}}, B: {paper: {AP50: 40}, seeds: [1]}}"
    first, second = load(tmp_path, f"extends: parent.yaml\n{changes}").rows
    assert (first.train.model.channels, first.train.model.tower_depth) == (64, 3)
    assert (dict(second.paper), second.seeds) == ({"AP": 30.0, "AP50": 40.0}, (1,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("changes: {C: {}}", ": changes names 'C', which is no row; expected one of: A, B"),
        ("changes: {A: {trian: {}}}", ", row 'A': changes: trian is not a setting; did you mean train?"),
        ("changes: {A: {paper: {ap: 1}}}", ", row 'A': changes: paper.ap is no metric; did you mean paper.AP?"),
        ("changes: {A: {label: C}}", ": changes gives row 'A' another label; give the row under rows instead"),
        (
            "rows: [{label: C}]\nchanges: {C: {}}",
            ": changes is laid on inherited rows, but this file gives its own; leave one of them out",
        ),
    ],
)
def test_changes_that_cannot_be_laid_on_a_row_are_refused(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, "rows: [{label: A}, {label: B, split: other}]", "parent.yaml")
    assert mistake(tmp_path, f"extends: parent.yaml\n{text}") == f"table.yaml{says}"


def test_defaults_name_the_split_that_is_scored_and_a_row_may_name_another(tmp_path: Path) -> None:
    rows = "rows: [{label: A}, {label: B, split: other}]"
    experiment = load(tmp_path, f"defaults: {{split: test}}\n{rows}")
    assert [row.split for row in experiment.rows] == ["test", "other"]
    assert mistake(tmp_path, "defaults: {split: 3}\nrows: [{label: A}, {label: B}]").startswith(
        "table.yaml: defaults.split is 3, expected"
    )


def test_cited_rows_are_quoted_with_their_source_and_never_trained(tmp_path: Path) -> None:
    cited = "cited: [{label: Theirs, paper: {AP: 40}, source: Their paper}]"
    experiment = load(tmp_path, f"rows: [{{label: A}}]\n{cited}")
    (line,) = experiment.cited
    assert (line.label, dict(line.paper), line.source) == ("Theirs", {"AP": 40.0}, "Their paper")
    assert [r.label for r in experiment.rows] == ["A"]


@pytest.mark.parametrize(
    ("top", "own", "says"),
    [
        ("reference: A", "C: {reference: D}", "row 'C': reference is 'D', which is no row; "),
        ("reference: A", "C: {reference: C}", "row 'C': reference is 'C', the row itself; name another one"),
        ("reference: A", "A: {reference: B}", "row 'A': reference is 'B', but this row is the reference of the table"),
        (
            "reference: A",
            "B: {reference: A}, C: {reference: B}",
            "row 'C': reference is 'B', which names one itself",
        ),
        ("", "C: {reference: B}", "row 'C': reference is 'B', but the table has none; name its reference at the top"),
    ],
)
def test_a_row_has_a_reference_of_its_own_only_beside_that_of_the_table(
    tmp_path: Path, top: str, own: str, says: str
) -> None:
    (tmp_path / "parent.yaml").write_text(
        "rows: [{label: A}, {label: B, inference: {nms_iou: 0.6}}, {label: C, inference: {nms_iou: 0.7}}]"
    )
    assert says in mistake(tmp_path, f"extends: parent.yaml\n{top}\nchanges: {{{own}}}")
    table = load(tmp_path, "extends: parent.yaml\nreference: A\nchanges: {C: {reference: B}}")
    assert [table.reference_of(row) for row in table.rows] == [None, "A", "B"]


def test_numbers_of_the_paper_on_two_scales_are_refused(tmp_path: Path) -> None:
    rows = "[{label: A, paper: {AP: 0.36}}, {label: B, inference: {nms_iou: 0.6}, paper: {AP: 35.3}}]"
    assert mistake(tmp_path, f"rows: {rows}") == (
        "table.yaml, row 'A': paper.AP is 0.36, beside 35.3 in another row: two scales in one file; write 36, numbers"
        " are 0 to 100"
    )


@pytest.mark.parametrize("numbers", ["{AP: 0.36, AP50: 54.3}", "{AP: 35.3, AP50: 0.54}", "{AP50: 35.3, AP: 54.3}"])
def test_numbers_of_one_row_that_no_detector_has_are_refused(tmp_path: Path, numbers: str) -> None:
    said = mistake(tmp_path, f"rows: [{{label: A, paper: {numbers}}}]")
    assert said.startswith("table.yaml, row 'A': paper.AP is ")
    assert said.endswith(": AP is never above AP50, nor below a tenth of it; write both as numbers of 0 to 100")


def test_a_file_whose_numbers_of_the_paper_are_all_fractions_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path, "rows: [{label: A, paper: {AP: 0.353, AP50: 0.543}}]") == (
        "table.yaml: no number under paper reaches 1, so that they look like fractions; write 35.3 for 0.353"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{label: X, paper: {AP: 40}}", ": cited.0: source is missing"),
        ("{label: X, paper: {AP: 400}, source: S}", ": cited.0: paper.AP is 400.0, expected 0 to 100"),
        ("{label: X, paper: {Ap: 40}, source: S}", ": cited.0: paper.Ap is no metric; did you mean paper.AP?"),
        ("{label: X, papr: {}, paper: {}, source: S}", ": cited.0: papr is not a setting; did you mean paper?"),
        ("{label: ' ', paper: {AP: 40}, source: S}", ": cited.0: label and source must say something"),
        ("{label: A, paper: {AP: 40}, source: S}", ", row 'A': label stands 2 times; give each row its own"),
    ],
)
def test_a_mistake_in_a_cited_row_is_named_by_its_place(tmp_path: Path, line: str, says: str) -> None:
    assert mistake(tmp_path, f"rows: [{{label: A}}]\ncited: [{line}]") == f"table.yaml{says}"


def test_only_keeps_the_named_rows_in_its_own_order(tmp_path: Path) -> None:
    write(tmp_path, "rows: [{label: A}, {label: B, split: b}, {label: C, split: c}]", "parent.yaml")
    assert [r.label for r in load(tmp_path, "extends: parent.yaml\nonly: [C, A]").rows] == ["C", "A"]
    assert mistake(tmp_path, "extends: parent.yaml\nonly: [A, D]") == (
        "table.yaml: only names 'D', which is no row; expected one of: A, B, C"
    )


def test_null_removes_the_confidence_branch_and_a_mapping_brings_it_back_with_its_defaults(tmp_path: Path) -> None:
    experiment = load(
        tmp_path,
        """
        defaults:
          train: {model: {confidence: null}}
          inference: {confidence_exponent: 0}
        rows:
          - {label: without}
          - {label: with, train: {model: {confidence: {tower: box}}}}
        """,
    )
    assert experiment.rows[0].train.model.confidence is None
    assert experiment.rows[1].train.model.confidence == ConfidenceConfig(tower="box")


def test_the_split_follows_the_rows_own_validation_split(tmp_path: Path) -> None:
    experiment = load(
        tmp_path,
        """
        defaults: {train: {data: {val_split: val}}}
        rows: [{label: A}, {label: B, train: {data: {val_split: other}}}, {label: C, split: third}]
        """,
    )
    assert [r.split for r in experiment.rows] == ["val", "other", "third"]


def test_numbers_are_read_as_a_reader_means_them(tmp_path: Path) -> None:
    schedule = (
        load(tmp_path, row("train: {schedule: {weight_decay: 1e-4, learning_rate: 1, lr_drop_epochs: [3, 5]}}"))
        .rows[0]
        .train.schedule
    )
    assert schedule.weight_decay == 0.0001
    assert (schedule.learning_rate, type(schedule.learning_rate)) == (1.0, float)
    assert schedule.lr_drop_epochs == (3, 5)


def test_two_rows_that_are_one_and_the_same_are_refused_with_both_labels(tmp_path: Path) -> None:
    rows = "rows: [{label: A}, {label: B, split: val2017, inference: {confidence_exponent: 0.4}}]"
    assert mistake(tmp_path, rows) == (
        "table.yaml, row 'B': is the same as row 'A'; leave one out, or change a setting of it"
    )
    seeds = "rows: [{label: A, seeds: [0, 1]}, {label: B, seeds: [1, 2]}]"
    assert "row 'B': is the same as row 'A'" in mistake(tmp_path, seeds)
    assert len(load(tmp_path, "rows: [{label: A, seeds: [0]}, {label: B, seeds: [1]}]").rows) == 2


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        (
            "{num_workers: 2, gpus_per_worker: 0.5}",
            "gpus_per_worker is 0.5 for 2 workers, but NCCL takes each worker on a GPU of its own;"
            " set gpus_per_worker: 1, or num_workers: 1",
        ),
        (
            "{cpus_per_worker: 2, loader_processes: 3}",
            "loader_processes is 3, but cpus_per_worker reserves only 2;"
            " raise cpus_per_worker, or lower loader_processes",
        ),
        (
            "{num_workers: 8, local_batch: 3}",
            "local_batch is 3, but a worker's share of an update is 2 (train.global_batch 16 over 8 workers);"
            " leave local_batch out to take it whole",
        ),
        ("{num_workers: 17}", "num_workers is 17, but an update has only 16 images (train.global_batch)"),
        ("{num_workers: 4, num_nodes: 3}", "num_nodes is 3, expected a number that divides num_workers, 4"),
        ("{num_nodes: 0}", "num_nodes is 0, expected a number that divides num_workers, 1"),
        ("{max_concurrent: 0}", "max_concurrent is 0, expected at least 1, or null for no limit"),
    ],
)
def test_resources_that_contradict_each_other_or_the_training_are_refused(
    tmp_path: Path, resources: str, says: str
) -> None:
    assert mistake(tmp_path, f"rows: [{{label: A}}]\nresources: {resources}") == f"table.yaml: resources.{says}"


def test_gradients_are_compressed_between_several_workers_only(tmp_path: Path) -> None:
    text = "rows: [{label: A, train: {gradient_compression: bfloat16}}]\nresources: {num_workers: %d}"
    assert mistake(tmp_path, text % 1) == (
        "table.yaml: resources.num_workers is 1, but train.gradient_compression is for what several workers send each"
        " other; raise num_workers, or leave train.gradient_compression out"
    )
    (row,) = load(tmp_path, text % 2).rows
    assert row.train.gradient_compression == "bfloat16"
    assert train_key(row.train) != train_key(TrainConfig())  # the weights are others


def test_resources_at_the_limit_are_accepted(tmp_path: Path) -> None:
    text = "{num_workers: 8, num_nodes: 2, local_batch: 2, gpus_per_worker: 1, cpus_per_worker: 3, loader_processes: 3}"
    assert load(tmp_path, f"rows: [{{label: A}}]\nresources: {text}").resources.num_nodes == 2
    uneven = "rows: [{label: A, train: {global_batch: 10}}]\nresources: {num_workers: 4, local_batch: 3}"
    assert load(tmp_path, uneven).resources.local_batch == 3  # 10 = 3 + 3 + 2 + 2


def test_a_misspelt_setting_is_named_with_its_path_and_the_setting_that_was_meant(tmp_path: Path) -> None:
    assert mistake(tmp_path, row("inference: {confidence_exponet: 0.2}")) == (
        "table.yaml, row 'A': inference.confidence_exponet is not a setting;"
        " did you mean inference.confidence_exponent?"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("titel: x\nrows: [{label: A}]", "table.yaml: titel is not a setting; did you mean title?"),
        (row("trian: {}"), "table.yaml, row 'A': trian is not a setting; did you mean train?"),
        (
            row("train: {model: {confidence: {towr: box}}}"),
            "table.yaml, row 'A': train.model.confidence.towr is not a setting;"
            " did you mean train.model.confidence.tower?",
        ),
        (
            "defaults: {train: {data: {short-edge: 1}}}\nrows: [{label: A}]",
            "table.yaml: defaults.train.data.short-edge is not a setting; did you mean defaults.train.data.short_edge?",
        ),
        (
            "resources: {workers: 1}\nrows: [{label: A}]",
            "table.yaml: resources.workers is not a setting; did you mean resources.num_workers?",
        ),
        (row("paper: {AP_50: 1}"), "table.yaml, row 'A': paper.AP_50 is no metric; did you mean paper.AP50?"),
        (
            row("train: {model: {confidence: {zzz: 1}}}"),
            "table.yaml, row 'A': train.model.confidence.zzz is not a setting; expected one of: tower, target, loss, "
            "loss_on, negative_weight, smooth_l1_beta, gfocal_gamma, detach_iou_target, loss_weight",
        ),
        (
            row("paper: {LaECE: 1}"),
            "table.yaml, row 'A': paper.LaECE is measured here alone; numbers of others are those of AP, AP50, AP75,"
            " APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl",
        ),
        ("columns: [LaEC]\nrows: [{label: A}]", "table.yaml: columns: LaEC is no metric; did you mean LaECE?"),
        ("columns: [AP_s]\nrows: [{label: A}]", "table.yaml: columns: AP_s is no metric; did you mean APs?"),
    ],
)
def test_a_misspelling_is_found_at_any_depth(tmp_path: Path, text: str, says: str) -> None:
    assert mistake(tmp_path, text) == says


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("train: {schedule: {epochs: '12'}}", 'train.schedule.epochs is "12", expected a whole number'),
        ("train: {schedule: {epochs: true}}", "train.schedule.epochs is true, expected a whole number"),
        ("train: {schedule: {epochs: 1.5}}", "train.schedule.epochs is 1.5, expected a whole number"),
        ("train: {schedule: {epochs: 012}}", 'train.schedule.epochs is "012", expected a whole number'),
        (
            "train: {schedule: {lr_drop_epochs: [8, x]}}",
            'train.schedule.lr_drop_epochs.1 is "x", expected a whole number',
        ),
        ("train: {schedule: {lr_drop_epochs: 8}}", "train.schedule.lr_drop_epochs is 8, expected a list"),
        ("inference: {nms_iou: yes}", 'inference.nms_iou is "yes", expected a number'),
        ("inference: {nms_iou: .inf}", 'inference.nms_iou is ".inf", expected a number'),
        ("inference: {fuse_small_levels: 1}", "inference.fuse_small_levels is 1, expected true or false"),
        ("inference: {fusion: sum}", "inference.fusion is \"sum\", expected 'power' or 'product'"),
        ("train: {model: null}", "train.model is null, expected a mapping of settings"),
        ("train: {model: 3}", "train.model is 3, expected a mapping of settings"),
        ("split: 2017", "split is 2017, expected text; put it in quotes"),
        ("split: ''", "split is empty; leave it out to score train.data.val_split"),
        ("paper: {AP: high}", 'paper.AP is "high", expected a number'),
        ("paper: {AP: 100.5}", "paper.AP is 100.5, expected 0 to 100"),
        ("paper: {AP: -1}", "paper.AP is -1.0, expected 0 to 100"),
        ("inference: {confidence_exponent: 2}", "inference.confidence_exponent is 2.0, expected 0 to 1"),
        (
            "train: {model: {confidence: {negative_weight: 3}}}",
            "train.model.confidence.negative_weight is 3.0, expected 0 to 1",
        ),
        ("train: {seed: 3}", "train.seed is 3, but seeds decides it; set seeds: [3]"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(tmp_path: Path, settings: str, says: str) -> None:
    assert mistake(tmp_path, row(settings)) == f"table.yaml, row 'A': {says}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows: [{label: A}, {label: A}]", ", row 'A': label stands 2 times; give each row its own"),
        ("rows: [{label: 0.2}]", ", row 1: label is 0.2, expected text; put it in quotes"),
        ("rows: [{split: val}]", ", row 1: label is missing"),
        ("rows: [{label: ' '}]", ", row ' ': label is empty; it names the row in tables"),
        ("rows: []", ": there are no rows; list at least one under rows, or extend a file that has some"),
        ("title: x", ": there are no rows; list at least one under rows, or extend a file that has some"),
        ("rows: 3", ": rows is 3, expected a list"),
        ("rows: [3]", ": rows.0 is 3, expected a mapping of settings"),
        ("defaults: 3\nrows: [{label: A}]", ": defaults is 3, expected a mapping of settings"),
        ("defaults:\n  train:\nrows: [{label: A}]", ": defaults.train is null, expected a mapping of settings"),
        (
            "defaults: {train: {schedule: }}\nrows: [{label: A, train: {schedule: {epochs: 3}}}]",
            ": defaults.train.schedule is null, expected a mapping of settings",
        ),
        (
            'extends: "a\\0.yaml"\nrows: [{label: A}]',
            ": extends holds a NUL, which no name of a file does; write the name again",
        ),
        ("reference: a\nrows: [{label: A}]", ": reference is 'a', which is no row; did you mean A?"),
        (
            "seeds: []\nrows: [{label: A}]",
            ", row 'A': seeds is [], expected different numbers, 0 to 2147483647",
        ),
        (
            "seeds: [1, 1]\nrows: [{label: A}]",
            ", row 'A': seeds is [1, 1], expected different numbers, 0 to 2147483647",
        ),
        ("seeds: ['1']\nrows: [{label: A}]", ': seeds.0 is "1", expected a whole number'),
        (
            "name: a/b\nrows: [{label: A}]",
            ": name is 'a/b', expected a letter or digit, then also '_', '-', '.'",
        ),
        (
            "only: [A]\nrows: [{label: A}]",
            ": only picks among inherited rows, but this file gives its own; leave one of them out",
        ),
        ("resources: {num_workers: 0}\nrows: [{label: A}]", ": resources.num_workers is 0, expected at least 1"),
        (
            "resources: {gpus_per_worker: 1.5}\nrows: [{label: A}]",
            ": resources.gpus_per_worker is 1.5, expected 0 to 1, or a whole number",
        ),
        (
            "resources: {local_batch: 0}\nrows: [{label: A}]",
            ": resources.local_batch is 0, expected at least 1, or null for a worker's whole share",
        ),
        ("", ": is empty; expected title, rows and so on, as in experiments/README.md"),
        ("- 1", ": is a list, expected a mapping: title, rows and so on"),
        ("rows: [{label: A, label: B}]", ", line 1, column 19: label stands twice in one mapping"),
        ("rows:\n  - {label: A\n  - b", ", line 3, column 6: expected ',' or '}', but got '<stream end>'"),
        ("rows: &a [{label: A, train: {model: *a}}]", ", line 1, column 7: found unconstructable recursive node"),
        ("rows: [{label: A, split: 1e999}]", ", line 1, column 26: 1e999 is too large"),
    ],
)
def test_a_mistake_of_the_file_says_the_way_out(tmp_path: Path, text: str, says: str) -> None:
    assert mistake(tmp_path, text) == f"table.yaml{says}"


@pytest.mark.parametrize(
    ("inference", "reads"),
    [
        ("{}", "inference.confidence_exponent is 0.4"),
        ("{fusion: product}", "inference.fusion is product"),
        ("{confidence_exponent: 0, min_confidence: 0.5}", "inference.min_confidence is 0.5"),
    ],
)
def test_a_score_that_reads_a_branch_the_model_has_not_is_refused(tmp_path: Path, inference: str, reads: str) -> None:
    assert mistake(tmp_path, row(f"train: {{model: {{confidence: null}}}}, inference: {inference}")) == (
        f"table.yaml, row 'A': {reads}, but a RetinaNet has no confidence branch (train.model.confidence is null);"
        " set inference.confidence_exponent: 0 and leave inference.fusion and inference.min_confidence out, or take a"
        " head that has one: train.model.confidence: {tower: box} for IoU-aware Net or {tower: classification}"
        " for RetinaNet-Conf"
    )


def test_a_branch_that_learns_nothing_is_refused_whether_a_score_reads_it_or_not(tmp_path: Path) -> None:
    """One that learns and is not read is table 1 of the paper: it teaches the towers."""
    for exponent in ("0", "0.4"):
        settings = (
            f"train: {{model: {{confidence: {{loss_weight: 0}}}}}}, inference: {{confidence_exponent: {exponent}}}"
        )
        assert mistake(tmp_path, row(settings)) == (
            "table.yaml, row 'A': train.model.confidence.loss_weight is 0, so that the branch learns nothing, and a"
            " score that reads it is made of chance; leave loss_weight out, or set train.model.confidence: null and"
            " inference.confidence_exponent: 0"
        )
    load(tmp_path, row("inference: {confidence_exponent: 0}"))


def test_a_combination_that_means_nothing_is_named_by_its_row_and_setting(tmp_path: Path) -> None:
    assert mistake(tmp_path, row("train: {model: {box: {bins: 4}}}")) == (
        "table.yaml, row 'A': train.model.box.bins is 4, whose edges reach 384 pixels on the coarsest level, less than"
        " data.long_edge, 1000; set bins to at least 9"
    )
    assert mistake(tmp_path, row("train: {model: {assignment: {kind: paa, ota_radius: 1}}}")) == (
        "table.yaml, row 'A': train.model.assignment.ota_radius has no meaning for kind 'paa'; it belongs to 'sim_ota':"
        " leave it at 2.5, or take another kind"
    )


def test_all_mistakes_of_a_file_are_told_together(tmp_path: Path) -> None:
    text = """
        titel: x
        reference: C
        rows:
          - {label: A, train: {modl: {}, schedule: {epochs: x}}}
          - {label: B, inference: {nms_iou: 2}, train: {data: {short_edge: 1}, global_batch: 0.5}}
          - {label: D, train: {model: {confidence: null}}}
        resources: {num_workers: 0}
        """
    told = mistakes(tmp_path, text)
    expected = (
        "titel is",
        "train.modl is",
        "epochs is",
        "nms_iou is",
        "short_edge is",
        "global_batch is",
        "row 'D': inference.confidence_exponent is",
        "reference is",
        "num_workers is",
    )
    assert [sum(part in line for line in told) for part in expected] == [1] * len(expected)
    assert len(told) == len(expected)


def test_a_wrong_default_is_told_once_and_not_for_every_row(tmp_path: Path) -> None:
    text = "defaults: {train: {schedule: {epochs: x}}}\nrows: [{label: A}, {label: B}]"
    assert mistake(tmp_path, text) == 'table.yaml: defaults.train.schedule.epochs is "x", expected a whole number'
    assert mistake(tmp_path, "seeds: [-1]\nrows: [{label: A}, {label: B}]") == (
        "table.yaml: seeds is [-1], expected different numbers, 0 to 2147483647"
    )


def test_a_mistake_of_the_parent_is_told_with_the_parents_name(tmp_path: Path) -> None:
    write(tmp_path, "rows: [{label: A, trian: {}}]", "paper/parent.yaml")
    write(tmp_path, "extends: ../paper/parent.yaml", "small/child.yaml")
    with pytest.raises(UserError) as caught:
        load_experiment(tmp_path / "small/child.yaml")
    parent = tmp_path / "paper" / "parent.yaml"
    assert str(caught.value) == f"{parent}, row 'A': trian is not a setting; did you mean train?"


def test_a_file_that_is_missing_is_named_with_the_file_that_extends_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read: no such file"):
        load_experiment(tmp_path / "nothing.yaml")
    assert "cannot be read, named by extends in table.yaml: no such file" in mistake(tmp_path, "extends: nothing.yaml")
    assert "cannot be read, named by extends in table.yaml: file name too" in mistake(tmp_path, f"extends: {'x' * 300}")


def test_extending_in_a_circle_is_refused_and_the_circle_shown(tmp_path: Path) -> None:
    write(tmp_path, "extends: table.yaml", "other.yaml")
    assert mistake(tmp_path, "extends: other.yaml") == (
        "table.yaml: extends goes in a circle: table.yaml -> other.yaml -> table.yaml"
    )


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.yaml").symlink_to("table.yaml")
    with pytest.raises(UserError, match=r"table\.yaml: cannot be read: too many levels of symbolic links"):
        load_experiment(tmp_path / "table.yaml")


def test_the_home_of_somebody_unknown_stays_as_it_is_written(tmp_path: Path) -> None:
    found = load(tmp_path, "data: {root: ~nobody-is-called-so/x}\nrows: [{label: A}]")
    assert found.data.root == str(tmp_path / "~nobody-is-called-so" / "x")


def test_a_folder_stands_for_its_files_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "rows: [{label: A}]", "a.yaml")
    write(tmp_path, "rows: [{label: A}]", "b.yaml")
    assert [e.name for e in load_experiments([tmp_path, tmp_path / "b.yaml"])] == ["a", "b"]
    write(tmp_path, "name: a\nrows: [{label: A}]", "b.yaml")
    with pytest.raises(UserError, match=r"b\.yaml: name is 'a', as in .*a\.yaml; rename one of them"):
        load_experiments([tmp_path])


def test_files_with_mistakes_are_named_all_at_once_and_the_sound_ones_as_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, "rows: [{label: A}]", "a.yaml")
    write(tmp_path, "rowz: []", "b.yaml")
    write(tmp_path, "extends: b.yaml", "c.yaml")
    write(tmp_path, "rows: [{label: D}]", "d.yaml")
    (tmp_path / "e.yaml").write_bytes(b"\xff\xfe")
    sound, mistakes = load_sound([tmp_path])
    assert [experiment.name for experiment in sound] == ["a", "d"]
    assert [line.removeprefix(f"{tmp_path}/").partition(": ")[0] for line in mistakes] == ["b.yaml", "b.yaml", "e.yaml"]
    assert "did you mean rows?" in mistakes[0]
    with pytest.raises(UserError) as refused:
        load_experiments([tmp_path])
    *told, way = str(refused.value).splitlines()
    assert told == mistakes
    assert way == f"To go on without them, name the sound files alone: {tmp_path}/a.yaml {tmp_path}/d.yaml"
    with pytest.raises(UserError, match="did you mean rows"):  # where nothing is sound, there is nothing to go on with
        load_sound([tmp_path / "b.yaml"])


def test_the_tables_in_miniature_have_the_rows_of_the_paper() -> None:
    tables = zip(load_experiments([PAPER]), load_experiments([MINIATURE]), strict=True)
    for paper, miniature in tables:
        assert miniature.name == paper.name
        assert [(r.label, r.inference) for r in miniature.rows] == [(r.label, r.inference) for r in paper.rows]
        assert [r.train.model.confidence for r in miniature.rows] == [r.train.model.confidence for r in paper.rows]
        assert {(r.train.data.dataset, r.split) for r in miniature.rows} == {("shapes", "test")}
        assert {r.seeds for r in miniature.rows} == {(0, 1, 2) if paper.name == "table1_heads" else (0,)}


@pytest.mark.parametrize(
    ("folder", "edge"), [("aquarium", 480), ("blood", 480), ("aquarium_cpu", 192), ("blood_cpu", 160)]
)
def test_the_tables_on_photographs_have_the_rows_of_the_paper_but_for_those_of_table_6(folder: str, edge: int) -> None:
    """On two CPU cores tables 2 and 3 are left out as well, and two seeds."""
    on_cpu = folder.endswith("_cpu")
    numbers, seeds, gpus = ("145", (0,), 0) if on_cpu else ("12345", (0, 1, 2), 0.33)
    tables = load_experiments([PHOTOS / folder])
    printed = [table for table in load_experiments([PAPER]) if table.name[len("table")] in numbers]
    for paper, photos in zip(printed, tables, strict=True):
        assert (photos.suite, photos.name, photos.reference) == (folder, paper.name, paper.reference)
        assert [(r.label, r.inference, r.paper) for r in photos.rows] == [
            (r.label, r.inference, r.paper) for r in paper.rows
        ]
        assert [r.train.model.confidence for r in photos.rows] == [r.train.model.confidence for r in paper.rows]
        assert {(r.seeds, r.split, r.train.data.train_split, r.train.data.short_edge) for r in photos.rows} == {
            (seeds, "val", "train", edge)
        }
        assert {(r.train.model.backbone, r.train.model.backbone_stride) for r in photos.rows} == {("resnet50", "1x1")}
        assert photos.resources.gpus_per_worker == gpus


def test_the_deeper_backbone_and_the_longer_training_are_told_apart_in_miniature_as_well() -> None:
    """The baseline has both once, R101 another backbone, and 2x that backbone with twice the epochs."""
    for folder in (PAPER, MINIATURE):
        rows = {r.label: r.train for r in load_experiment(folder / "table6_detectors.yaml").rows}
        r50, r101, long = (rows[f"RetinaNet-Conf, {kind}"] for kind in ("R50, 1x", "R101, 1x", "R101, 2x"))
        assert r50.model.backbone != r101.model.backbone == long.model.backbone
        assert r50.schedule == r101.schedule
        assert long.schedule.epochs == 2 * r101.schedule.epochs
    assert (r50.model.backbone, r101.model.backbone) == ("resnet18_quarter", "resnet18_half")


def test_the_papers_table_1_differs_from_the_defaults_only_where_the_files_say_so() -> None:
    retinanet, iou_aware, ours = load_experiment(PAPER / "table1_heads.yaml").rows
    assert retinanet.train.model.confidence is None
    assert iou_aware.train.model.confidence == ConfidenceConfig(tower="box")
    assert ours.train.model.confidence == ConfidenceConfig()
    assert (retinanet.inference.confidence_exponent, ours.inference.confidence_exponent) == (0.0, 0.0)
    assert ours.train.schedule == TrainConfig().schedule


def test_coco_in_small_starts_from_caffe_weights_with_the_stride_that_belongs_to_them() -> None:
    experiment = load_experiment(PAPER.parent / "coco-subset.yaml")
    assert experiment.suite == "coco-subset"
    assert {r.train.model.backbone_stride for r in experiment.rows} == {"1x1"}


UNTIL = """
columns: [AP]
reference: base
seeds: {until: decided, at_least: 2, most: 4}
rows:
  - {label: base, train: {model: {confidence: null}}, inference: {confidence_exponent: 0}}
  - {label: ours}
"""


def test_seeds_until_decided_begin_with_the_least_and_are_inherited(tmp_path: Path) -> None:
    parent = load(tmp_path, UNTIL)
    assert parent.seed_rule == SeedRule(until="decided", at_least=2, most=4)
    assert [row.seeds for row in parent.rows] == [(0, 1), (0, 1)]
    child = load_experiment(write(tmp_path, "extends: table.yaml", "child.yaml"))
    assert (child.seed_rule, child.rows) == (parent.seed_rule, parent.rows)
    listed = load_experiment(write(tmp_path, "extends: table.yaml\nseeds: [3]", "listed.yaml"))
    assert listed.seed_rule is None and [row.seeds for row in listed.rows] == [(3,), (3,)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("reference: base", "", "table.yaml: seeds are added until decided, but against what? name a row as reference"),
        ("at_least: 2", "at_least: 1", "table.yaml: seeds.at_least is 1, expected at least 2"),
        ("at_least: 2", "at_least: 5", "table.yaml: seeds.most is 4, expected 5, which is at_least, to 100"),
        ("most: 4", "most: 1000", "table.yaml: seeds.most is 1000, expected 2, which is at_least, to 100"),
        ("most: 4", "most: many", 'table.yaml: seeds.most is "many", expected a whole number'),
        ("most: 4", "mots: 4", "table.yaml: seeds.mots is not a setting; did you mean seeds.most?"),
        ("until: decided, ", "", "table.yaml: seeds.until is missing"),
        ("until: decided", "until: tired", "table.yaml: seeds.until is \"tired\", expected 'decided'"),
        ("[AP]", "[AR1, AP]", "but the first of columns is AR1, which has no interval; begin with one of: AP, AP50"),
        (
            "{until: decided, at_least: 2, most: 4}",
            "decided",
            'seeds is "decided", expected a list, such as [0, 1, 2], or {until: decided, at_least: 2, most: 8}',
        ),
        ("{label: ours}", "{label: ours, seeds: [7]}", "row 'ours': seeds is [7], but the file adds them, from 0 on"),
        ("  - {label: ours}\n", "", "table.yaml: seeds are added until decided, but 'base' is the only row"),
        (
            "{label: ours}",
            "{label: ours, seeds: {until: decided}}",
            "row 'ours': seeds is a rule, which counts for all rows of a file; set it at the top, or list seeds here",
        ),
    ],
)
def test_a_rule_for_seeds_that_cannot_be_meant_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in UNTIL
    assert said in mistake(tmp_path, UNTIL.replace(old, new))


def test_columns_may_be_what_every_evaluation_says_of_its_scores(tmp_path: Path) -> None:
    held = load(tmp_path, "columns: [AP, LaECE, LaACE, D-ECE, LRP, oLRP]\nrows: [{label: A}]")
    assert held.columns == ("AP", "LaECE", "LaACE", "D-ECE", "LRP", "oLRP")


@pytest.mark.parametrize("metric", sorted({*ROWS} - {"num_images", "num_with_objects"}))
def test_seeds_may_be_added_until_any_metric_with_an_interval_is_decided(tmp_path: Path, metric: str) -> None:
    assert load(tmp_path, UNTIL.replace("[AP]", f"[{metric}]")).seed_rule is not None


def test_a_seed_that_may_still_be_added_is_one_of_the_row(tmp_path: Path) -> None:
    found = [load(tmp_path, UNTIL)]
    assert find_row(found, "ours", 3)[1].label == "ours"
    with pytest.raises(UserError, match="--seed 4 is none of its seeds"):
        find_row(found, "ours", 4)


def test_a_seed_as_status_shows_it_is_answered_with_its_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a seed of a row; name it by --row 'Conf R50' --seed 1"):
        find_row([load(tmp_path, "rows: [{label: Conf R50, seeds: [0, 1]}]")], "Conf R50, seed 1")
    with pytest.raises(UserError, match="is no row"):
        find_row([load(tmp_path, "rows: [{label: Conf R50}]")], "Other, seed 1")


@pytest.mark.parametrize("stem", ["a(1)", "it's", "a, b", "50%", "a\nb", "a\udcff", "é" * 111, "x" * 201])
def test_a_file_whose_name_no_tag_of_mlflow_may_have_is_refused_before_it_trains(tmp_path: Path, stem: str) -> None:
    path = write(tmp_path / "suite", "rows: [{label: A}]", f"{stem}.yaml")
    with pytest.raises(UserError, match=r"name is .*, after the file, which has .*; set name: NAME"):
        load_experiment(path)
    path.write_text("name: other\nrows: [{label: A}]", encoding="utf-8")
    assert load_experiment(path).name == "other"


@pytest.mark.parametrize("stem", ["my table", "Tabelle ü-1", "a:b", "x" * 200, ".a"])
def test_a_file_whose_name_mlflow_takes_is_taken(tmp_path: Path, stem: str) -> None:
    assert load_experiment(write(tmp_path / "suite", "rows: [{label: A}]", f"{stem}.yaml")).name == stem


def test_a_file_may_call_itself_and_its_suite_as_a_folder_may_be_called_in_letters_of_any_script(
    tmp_path: Path,
) -> None:
    assert load(tmp_path / "тест", "rows: [{label: A}]").suite == "тест"
    named = load(tmp_path, "{name: Tablé, suite: тест, rows: [{label: A}]}")
    assert (named.name, named.suite) == ("Tablé", "тест")
    assert "suite is '-ж', expected a letter" in mistake(tmp_path, "{suite: -ж, rows: [{label: A}]}")
    # Two bytes each: no folder of that name could be made for its checkpoints.
    assert "has 256 bytes in UTF-8, expected 255" in mistake(tmp_path, f"{{suite: {'ж' * 128}, rows: [{{label: A}}]}}")


def test_a_folder_that_no_experiment_of_mlflow_can_be_called_after_is_refused(tmp_path: Path) -> None:
    for folder, says in (("y" * 242, "242 characters, expected 241 at most"), ('it\'s "x"', "both ' and \"")):
        path = write(tmp_path / folder, "rows: [{label: A}]")
        with pytest.raises(
            UserError, match=f"table.yaml: suite is .*, after the folder, which has {says}.*; set suite"
        ):
            load_experiment(path)
        assert load_experiment(path, {"suite": "other"}).suite == "other"
    for folder in ("y" * 241, "it's", "p(1), 100% #?"):
        assert load_experiment(write(tmp_path / folder, "rows: [{label: A}]")).suite == folder


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (f"label: {'q' * 243}", "label has 243 characters, expected 242 at most, as it names runs of MLflow"),
        (f"label: {'q' * 242}, seeds: [0, 10]", "label has 242 characters, expected 241 at most"),
        ('label: "a\\0b"', r"label has '\x00', which MLflow's database does not take; leave it out"),
        ('label: a, split: "a\\0b"', r"split is 'a\x00b', which has '\x00'"),
        (f"label: a, train: {{data: {{dataset: {'d' * 500}}}}}", "train.data.dataset and train.data.train_split have"),
        (
            f"label: a, train: {{model: {{backbone_weights: {'w' * 6001}}}}}",
            "train.model.backbone_weights has 6001 characters, MLflow keeps 6000 of them; shorten it",
        ),
    ],
)
def test_what_mlflow_would_cut_or_refuse_is_named_with_its_row_and_limit(tmp_path: Path, row: str, says: str) -> None:
    told = mistakes(tmp_path, f"rows: [{{{row}}}]")[0]
    assert told.startswith("table.yaml, row '")
    assert f": {says}" in told
    assert len(told) < 300
