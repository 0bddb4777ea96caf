"""Rows that a product or a drawing makes, and how a wrong one is told."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.config import ConfidenceConfig
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiment
from orchestrator.experiment.plan import Ledger, make_plan, train_key
from orchestrator.experiment.search import MOST_ROWS_EVER, Asha, grid_rows, read_search
from tests.experiment_files import load, mistake, write


def grid(folder: Path, text: str) -> list[str]:
    return [row.label for row in load(folder, f"grid:\n{text}").rows]


def test_a_grid_is_every_combination_with_a_label_that_tells_it(tmp_path: Path) -> None:
    experiment = load(
        tmp_path,
        """
        grid:
          train.model.confidence.tower: [classification, box]
          inference.confidence_exponent: [0.0, 0.2]
        """,
    )
    assert [row.label for row in experiment.rows] == [
        "tower classification, confidence_exponent 0.0",
        "tower classification, confidence_exponent 0.2",
        "tower box, confidence_exponent 0.0",
        "tower box, confidence_exponent 0.2",
    ]
    last = experiment.rows[-1]
    assert last.train.model.confidence == ConfidenceConfig(tower="box")
    assert last.inference.confidence_exponent == 0.2
    plan = make_plan([experiment], Ledger())
    assert (len(plan.trainings), len(plan.evaluations)) == (2, 4)


def test_a_label_says_absence_lists_and_parts_and_the_whole_name_where_the_last_part_is_shared(tmp_path: Path) -> None:
    assert grid(tmp_path, "  train.schedule.lr_drop_epochs: [[8], [8, 11]]") == [
        "lr_drop_epochs [8]",
        "lr_drop_epochs [8, 11]",
    ]
    parts = "  inference.confidence_exponent: [0]\n  train.model.confidence: [null, {tower: box}]"
    assert grid(tmp_path, parts) == [
        "confidence_exponent 0, confidence none",
        "confidence_exponent 0, confidence {tower: box}",
    ]
    rows, _ = grid_rows({"train.data.num_train_images": [1], "inference.fuse_small_levels": [False]})
    assert rows[0]["label"] == "num_train_images 1, fuse_small_levels false"


def test_a_grid_stands_behind_rows_of_its_file_or_behind_those_that_only_picks(tmp_path: Path) -> None:
    values = "grid: {inference.nms_iou: [0.4, 0.6]}"
    assert [row.label for row in load(tmp_path, f"rows: [{{label: A}}]\n{values}").rows] == [
        "A",
        "nms_iou 0.4",
        "nms_iou 0.6",
    ]
    write(tmp_path, "rows: [{label: A}, {label: B, split: b}]\nreference: null", "parent.yaml")
    alone = load(tmp_path, f"extends: parent.yaml\n{values}")
    assert [row.label for row in alone.rows] == ["nms_iou 0.4", "nms_iou 0.6"]
    picked = load(tmp_path, f"extends: parent.yaml\nonly: [B]\nreference: B\n{values}")
    assert [row.label for row in picked.rows] == ["B", "nms_iou 0.4", "nms_iou 0.6"]
    child = load_experiment(write(tmp_path, "extends: table.yaml\nonly: [nms_iou 0.6]\nreference: null", "child.yaml"))
    assert [row.inference.nms_iou for row in child.rows] == [0.6]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "grid is empty; name a setting and its values, or leave grid out"),
        ("{inference.nms_iou: []}", "grid.inference.nms_iou has no values; list some, or leave it out"),
        ("{inference.nms_iou: 0.5}", "grid.inference.nms_iou is 0.5, expected a list"),
        ("{inference.nms_iou: [0.5, 0.6, 0.5]}", "grid.inference.nms_iou lists 0.5 2 times"),
        (
            "{inference.nms_iuo: [0.5]}",
            "grid.inference.nms_iuo is not a setting; did you mean grid.inference.nms_iou?",
        ),
        (
            "{train.model.confidence: [{towr: box}, {tower: box}]}",
            "grid.train.model.confidence.towr is not a setting; did you mean grid.train.model.confidence.tower?",
        ),
        (
            "{train.model.confidence: [null], train.model.confidence.tower: [box]}",
            "grid.train.model.confidence.tower is a part of train.model.confidence; vary one of them",
        ),
        ("{nms_iou: [0.5]}", "grid.nms_iou is not a setting; did you mean grid.inference.nms_iou?"),
        (
            f"{{train.model.channels: {list(range(40))}, train.model.tower_depth: {list(range(40))}}}",
            "grid makes 1600 rows, at most 1000 are taken without --yes; list fewer values",
        ),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert mistake(tmp_path, f"grid: {text}") == f"table.yaml: {says}"


def test_a_value_out_of_range_is_named_by_the_row_that_the_grid_makes(tmp_path: Path) -> None:
    assert mistake(tmp_path, "grid: {inference.nms_iou: [0.5, 2]}") == (
        "table.yaml, row 'nms_iou 2': inference.nms_iou is 2.0, expected 0 to 1"
    )


DRAWN = [
    "learning_rate 0.04678, tower_depth 4",
    "learning_rate 0.003143, tower_depth 4",
    "learning_rate 0.02283, tower_depth 2",
]
SPACE = """
  space:
    train.schedule.learning_rate: {loguniform: [1e-3, 1e-1]}
    train.model.tower_depth: {choice: [2, 4]}
"""


def test_a_search_draws_explicit_rows_that_stay_what_they_are(tmp_path: Path) -> None:
    """Written down once: keys, resubmits and what MLflow holds rest on these draws."""
    experiment = load(tmp_path, f"search:{SPACE}  num_samples: 3\n  scheduler: {{asha: {{grace_epochs: 2}}}}")
    assert [row.label for row in experiment.rows] == DRAWN
    assert experiment.search is not None
    assert experiment.search.labels == tuple(DRAWN)
    assert (experiment.search.metric, experiment.search.asha) == ("AP", Asha(grace_epochs=2, reduction_factor=3.0))
    first = experiment.rows[0].train
    assert DRAWN[0] == f"learning_rate {first.schedule.learning_rate}, tower_depth {first.model.tower_depth}"


def test_more_samples_begin_with_the_same_rows_and_another_seed_draws_others(tmp_path: Path) -> None:
    few, many, other = (
        [row.label for row in load(tmp_path, f"search:{SPACE}  num_samples: {number}\n  seed: {seed}").rows]
        for number, seed in ((3, 0), (9, 0), (3, 1))
    )
    assert few == many[:3] and len(many) == 9
    assert not set(few) & set(other)


@pytest.mark.parametrize(
    ("distribution", "allowed"),
    [
        ({"uniform": [0.2, 0.6]}, lambda x: 0.2 <= x <= 0.6),
        ({"loguniform": [1e-4, 1e-1]}, lambda x: 1e-4 <= x <= 1e-1),
        ({"quniform": [0.1, 0.5, 0.1]}, lambda x: x in (0.1, 0.2, 0.3, 0.4, 0.5)),
        ({"randint": [1, 4]}, lambda x: x in (1, 2, 3) and isinstance(x, int)),
        ({"choice": ["a", None]}, lambda x: x in ("a", None)),
    ],
)
def test_draws_keep_within_their_distribution_and_reach_all_of_it(
    distribution: dict[str, list[Any]], allowed: Callable[[Any], bool]
) -> None:
    _, rows, problems = read_search({"space": {"train.precision": distribution}, "num_samples": 300})
    values = [row["train"]["precision"] for row in rows]
    assert not problems and all(map(allowed, values))
    ((name, arguments),) = distribution.items()
    if name in ("uniform", "loguniform"):
        middle = sum(arguments) / 2 if name == "uniform" else (arguments[0] * arguments[1]) ** 0.5
        assert 0.4 < sum(value < middle for value in values) / len(values) < 0.6
    else:
        assert len(values) == {"quniform": 5, "randint": 3, "choice": 2}[name]  # each once: a repeated draw is no row


def test_a_search_is_inherited_with_the_rows_that_it_drew_and_gone_without_them(tmp_path: Path) -> None:
    write(tmp_path, f"search:{SPACE}  num_samples: 3", "parent.yaml")
    child = load(tmp_path, f"extends: parent.yaml\nonly: ['{DRAWN[1]}']")
    assert child.search is not None and child.search.labels == (DRAWN[1],)
    assert load(tmp_path, "extends: parent.yaml\nrows: [{label: A}]").search is None


def test_only_a_training_that_nobody_else_needs_may_be_stopped_by_its_search(tmp_path: Path) -> None:
    space = "{space: {train.model.tower_depth: {choice: [2, 3]}}, num_samples: 9}"
    experiment = load(
        tmp_path / "suite", f"rows: [{{label: A, train: {{model: {{tower_depth: 3}}}}}}]\nsearch: {space}"
    )
    assert sorted(row.label for row in experiment.rows) == ["A", "tower_depth 2", "tower_depth 3"]
    plan = make_plan([experiment], Ledger())
    allowed = {row.label: plan.search_of(train_key(row.train)) for row in experiment.rows}
    assert allowed == {"A": None, "tower_depth 3": None, "tower_depth 2": experiment.search}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            "{space: {train.schedule.learning_rat: {uniform: [0, 1]}}, num_samples: 2}",
            "search.space.train.schedule.learning_rat is not a setting;"
            " did you mean search.space.train.schedule.learning_rate?",
        ),
        ("{space: {}, num_samples: 2}", "search.space is empty; name a setting and its distribution"),
        ("{num_samples: 2}", "search.space is missing"),
        ("{space: {inference.nms_iou: {uniform: [0, 1]}}}", "search.num_samples is missing"),
        (
            "{space: {inference.nms_iou: {uniform: [0, 1]}}, num_samples: 0}",
            "search.num_samples is 0, expected 1 to 1000",
        ),
        (
            "{space: {inference.nms_iou: {unifrom: [0, 1]}}, num_samples: 2}",
            "search.space.inference.nms_iou.unifrom is no distribution; did you mean uniform?",
        ),
        (
            "{space: {inference.nms_iou: {uniform: [0]}}, num_samples: 2}",
            "search.space.inference.nms_iou.uniform is [0], expected [low, high] in numbers",
        ),
        (
            "{space: {inference.nms_iou: {uniform: [1, 0]}}, num_samples: 2}",
            "search.space.inference.nms_iou.uniform is [1, 0], expected the lower limit first",
        ),
        (
            "{space: {inference.nms_iou: {loguniform: [0, 1]}}, num_samples: 2}",
            "search.space.inference.nms_iou.loguniform is [0, 1], expected limits above 0",
        ),
        (
            "{space: {inference.nms_pre: {randint: [1.5, 3]}}, num_samples: 2}",
            "search.space.inference.nms_pre.randint is [1.5, 3],"
            " expected whole numbers, of which the upper is never drawn",
        ),
        (
            "{space: {inference.nms_iou: {quniform: [0, 1, 0]}}, num_samples: 2}",
            "search.space.inference.nms_iou.quniform is [0, 1, 0], expected a step above 0",
        ),
        (
            "{space: {inference.nms_iou: {quniform: [0.1, 0.2, 1.0e-320]}}, num_samples: 2}",
            "search.space.inference.nms_iou.quniform is [0.1, 0.2, 1e-320], expected a larger step",
        ),
        (
            "{space: {inference.nms_iou: {choice: []}}, num_samples: 2}",
            "search.space.inference.nms_iou.choice has no values; list some",
        ),
        (
            "{space: {inference.nms_iou: {choice: [0.5], uniform: [0, 1]}}, num_samples: 2}",
            "search.space.inference.nms_iou has 2 distributions,"
            " expected one of: uniform, loguniform, quniform, randint, choice",
        ),
        (
            "{space: {inference.nms_iou: {uniform: [0, 1]}}, num_samples: 2, scheduler: {asha: {}}}",
            "search.scheduler.asha stops trainings early, but search.space varies no setting of train; leave it out",
        ),
        (
            "{space: {inference.nms_iou: {uniform: [0, 1]}}, num_samples: 2, scheduler: {asah: {}}}",
            "search.scheduler.asah is not a setting; did you mean search.scheduler.asha?",
        ),
        (
            "{space: {inference.nms_iou: {uniform: [0, 1]}}, num_samples: 2, metric: ap}",
            "search.metric: ap is no metric; did you mean AP?",
        ),
        (
            "{space: {inference.nms_iou: {uniform: [0, 1]}}, num_samples: 2, metric: oLRP}",
            "search.metric is oLRP, of which the least is the best, and which is measured after a training alone; a"
            " search makes large what its trainings report: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm,"
            " ARl",
        ),
        (
            "{space: {train.global_batch: {choice: [8]}}, num_samples: 2, scheduler: {asha: {grace_epochs: 12}}}",
            "search.scheduler.asha.grace_epochs is 12, but a training has only 12 epochs; nothing would stop early",
        ),
        (
            "{space: {train.global_batch: {choice: [8]}}, num_samples: 2, scheduler: {asha: {reduction_factor: 1}}}",
            "search.scheduler.asha.reduction_factor is 1.0, expected more than 1",
        ),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(tmp_path: Path, settings: str, says: str) -> None:
    assert mistake(tmp_path, f"search: {settings}") == f"table.yaml: {says}"


def test_thousands_of_rows_are_taken_where_they_are_meant_and_a_million_never(tmp_path: Path) -> None:
    file, rates = tmp_path / "table.yaml", [place / 1000 for place in range(1, 401)]
    file.write_text(f"grid: {{train.model.tower_depth: [1, 2, 3], train.schedule.learning_rate: {rates}}}")
    with pytest.raises(UserError, match="grid makes 1200 rows, at most 1000 are taken without --yes"):
        load_experiment(file)
    assert len(load_experiment(file, most_rows=MOST_ROWS_EVER).rows) == 1200
    file.write_text("".join(f"- {{label: {place}}}\n" for place in range(1001)).join(("rows:\n", "")))
    with pytest.raises(UserError, match="there are 1001 rows, at most 1000 are taken without --yes; list fewer"):
        load_experiment(file)
    file.write_text(f"grid: {{train.model.tower_depth: {list(range(2500))}, train.schedule.learning_rate: {rates}}}")
    began = time.process_time()
    with pytest.raises(UserError, match="grid makes 1000000 rows, at most 100000 are taken; list fewer values"):
        load_experiment(file, most_rows=MOST_ROWS_EVER)
    assert time.process_time() - began < 5.0  # told before they are made
