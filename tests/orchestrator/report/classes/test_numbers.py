"""AP of each class with its interval: of drawn scenes by pycocotools and the intervals' own rules, and by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.coco.matches import match
from model.evaluation.coco.metrics import evaluate
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.report.classes.numbers import Classes, measure_classes, of_scoring
from orchestrator.report.results.rows import RowResult, measure
from orchestrator.report.statistics.resamples import ClassSamples, class_samples
from orchestrator.site import Site
from tests.detections import pycocotools_evaluation, random_scene, table, write
from tests.orchestrator.ledgers import experiment, finished, ledger_of

BASE = Row(label="base", seeds=(0,))
OTHER = Row(label="other", seeds=(0,), train=replace(BASE.train, global_batch=8))


def samples_of(aps: Sequence[float], resampled: Sequence[Sequence[float]], **said: object) -> ClassSamples:
    """Classes whose precision is the same at each recall, at 0.5 twice and at 0.75 half of AP."""
    precision = np.array([[2 * ap, ap / 2, ap] for ap in aps]).T[:, None].repeat(101, axis=1) / 100
    counted = np.array([0 if np.isnan(ap) else 20 for ap in aps])
    known = {
        "ids": tuple(range(1, len(aps) + 1)),
        "names": tuple(f"thing {n}" for n in range(1, len(aps) + 1)),
        "num_objects": counted,
        "num_images": counted,
        "precision": precision,
        "resampled": np.array(resampled, np.float32),
    }
    return ClassSamples(**(known | said))  # type: ignore[arg-type]


def measured(rows: Sequence[Row], found: Sequence[Sequence[ClassSamples]], reference: str | None = "base") -> Classes:
    """The classes of rows, of each seed of each row."""
    one = replace(experiment("table", rows), reference=reference)
    results, samples = held(one, found)
    classes = measure_classes(one, results, samples)
    assert classes is not None
    return classes


def held(
    one: Experiment, found: Sequence[Sequence[ClassSamples]]
) -> tuple[tuple[RowResult, ...], dict[str, ClassSamples]]:
    scored: list[tuple[Row, list[Record | None]]] = [(row, [finished(AP=1.0)] * len(row.seeds)) for row in one.rows]
    ledger = ledger_of(*scored)
    pairs = zip(one.rows, found, strict=True)
    samples = {
        key.evaluation_key: of_seed
        for row, of_row in pairs
        for key, of_seed in zip(row_keys(row), of_row, strict=False)
    }
    return measure(one, ledger), samples


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_each_class_is_pycocotools_and_its_mean_over_classes_is_ap(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    data, file = write(tmp_path, annotations, num_images=8)
    classes = of_scoring("a detector", class_samples(match(data, table(found))))
    theirs = pycocotools_evaluation(file, table(found)).eval["precision"][:, :, :, 0, 2]
    (row,) = classes.rows
    for place, one in enumerate(classes.classes):
        numbers = [row.by_class[place].mean(metric) for metric in ("AP", "AP50", "AP75")]
        if place == 3:  # in no image
            assert numbers == [None, None, None] and (one.num_objects, one.num_images) == (0, 0)
            assert classes.estimate(row, place) is None and classes.difference(row, place) is None
            continue
        own = theirs[:, :, place]
        assert numbers == pytest.approx([100 * part.mean() for part in (own, own[0], own[5])], rel=1e-13)
        estimate = classes.estimate(row, place)
        assert estimate is not None and 0.0 <= estimate.low <= estimate.value <= estimate.high <= 100.0
    assert [(one.id, one.name) for one in classes.classes] == [(n, f"thing {n}") for n in (2, 5, 9, 11)]
    assert row.ap == pytest.approx(evaluate(data, table(found))["AP"], rel=1e-13)


def test_the_interval_of_one_seed_is_that_of_the_resamples_around_their_own_mean() -> None:
    """Resamples 28 ... 32 around a value of 31: quantiles 0.025 and 0.975 of -2 ... 2 are -1.9 and 1.9."""
    drawn = [[28.0, 29.0, 30.0, 31.0, 32.0], [50.0, 60.0, 70.0, 80.0, 90.0]]
    classes = measured([BASE], [[samples_of([31.0, 70.0], drawn)]], None)
    found, other = (classes.estimate(classes.rows[0], place) for place in (0, 1))
    assert found is not None and other is not None
    assert (found.value, found.low, found.high) == pytest.approx((31.0, 29.1, 32.9))
    assert (other.value, other.low, other.high) == pytest.approx((70.0, 51.0, 89.0))


def test_an_interval_ends_where_ap_does() -> None:
    classes = measured([BASE], [[samples_of([1.0, 99.0], [[0.0, 0.0, 0.0, 9.0], [100.0, 100.0, 90.0, 100.0]])]], None)
    low, high = (classes.estimate(classes.rows[0], place) for place in (0, 1))
    assert low is not None and high is not None
    assert low.low == 0.0 and high.high == 100.0


def test_a_difference_is_paired_by_the_images_drawn() -> None:
    """What both rows have in common cancels: 10 apart in each resample is 10 without any doubt."""
    drawn = [10.0, 20.0, 30.0, 40.0]
    classes = measured(
        [BASE, OTHER], [[samples_of([25.0], [drawn])], [samples_of([35.0], [[value + 10 for value in drawn]])]]
    )
    gain = classes.difference(classes.rows[1], 0)
    assert gain is not None and (gain.value, gain.low, gain.high) == pytest.approx((10.0, 10.0, 10.0))
    assert classes.difference(classes.rows[0], 0) is None  # the reference itself
    assert [classes.reference_of(row) for row in classes.rows[:2]] == [None, classes.rows[0]]


def test_several_seeds_are_averaged_and_their_scatter_is_in_the_interval() -> None:
    drawn = [29.0, 30.0, 31.0]
    rows = [replace(BASE, seeds=(0, 1))]
    apart = measured(rows, [[samples_of([20.0], [drawn]), samples_of([40.0], [drawn])]], None)
    alike = measured(rows, [[samples_of([30.0], [drawn]), samples_of([30.0], [drawn])]], None)
    wide, narrow = (classes.estimate(classes.rows[0], 0) for classes in (apart, alike))
    assert wide is not None and narrow is not None
    assert (wide.value, narrow.value) == pytest.approx((30.0, 30.0))
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)
    assert apart.rows[0].precision[2, :, 0] == pytest.approx(0.3)


def test_resamples_without_the_class_are_left_out_of_its_interval() -> None:
    drawn = [np.nan, 28.0, 29.0, np.nan, 30.0, 31.0, 32.0]
    classes = measured([BASE], [[samples_of([31.0], [drawn])]], None)
    found = classes.estimate(classes.rows[0], 0)
    assert found is not None and (found.low, found.high) == pytest.approx((29.1, 32.9))


def test_a_class_on_one_image_has_no_interval() -> None:
    alone = samples_of([50.0], [[50.0, 50.0, np.nan]], num_images=np.array([1]))
    classes = measured([BASE, OTHER], [[alone], [alone]])
    assert classes.rows[0].by_class[0].mean("AP") == pytest.approx(50.0)
    assert classes.estimate(classes.rows[0], 0) is None and classes.difference(classes.rows[1], 0) is None


def test_rows_on_other_images_and_rows_with_lost_matches_are_left_out_by_name() -> None:
    one = samples_of([30.0], [[30.0, 31.0]])
    other_images = replace(one, num_objects=np.array([21]))
    third = Row(label="third", train=replace(BASE.train, global_batch=4))
    classes = measured([BASE, OTHER, third], [[one], [other_images], []])
    assert [row.label for row in classes.rows] == ["base"] and classes.left_out == ("other", "third")
    table_of = replace(experiment("table", [BASE]), reference=None)
    results, _ = held(table_of, [[one]])
    assert measure_classes(table_of, results, {}) is None
    assert measure_classes(table_of, measure(table_of, Ledger()), {}) is None


def test_names_that_one_row_recorded_are_those_of_an_older_row() -> None:
    new = samples_of([30.0], [[30.0, 31.0]])
    for found in ([[replace(new, names=(), ids=())], [new]], [[new], [replace(new, names=(), ids=())]]):
        classes = measured([BASE, OTHER], found)
        assert [(one.name, one.id) for one in classes.classes] == [("thing 1", 1)] and len(classes.rows) == 2


def test_names_that_two_classes_share_are_told_apart_by_their_ids() -> None:
    shared = samples_of([30.0] * 3, [[30.0, 31.0]] * 3, names=("a", "b", "a"), ids=(4, 5, 9))
    classes = measured([BASE], [[shared]], None)
    assert [one.name for one in classes.classes] == ["a (id 4)", "b", "a (id 9)"]


def test_names_that_were_not_recorded_are_those_of_the_data_or_numbers(shapes_root: Path, tmp_path: Path) -> None:
    shapes = replace(BASE.train, data=replace(BASE.train.data, dataset="shapes", train_split="train", val_split="val"))
    row = Row(label="base", train=shapes, split="val")
    unnamed = samples_of([30.0] * 6, [[30.0, 31.0]] * 6, names=(), ids=())
    table_of = replace(experiment("table", [row]), reference=None)
    results, samples = held(table_of, [[unnamed]])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(shapes_root)
    found = measure_classes(table_of, results, samples, Site(home=tmp_path))
    gone = measure_classes(table_of, results, samples, Site(home=tmp_path / "nowhere"))
    assert found is not None and gone is not None
    assert [one.name for one in found.classes] == ["disc", "square", "triangle", "ring", "star", "cross"]
    assert [(one.name, one.id) for one in gone.classes[:2]] == [("class 1", None), ("class 2", None)]
