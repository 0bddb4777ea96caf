"""Twelve cells of the fault matrix, on two suites; `make soak` runs all forty, each on a suite of its own."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.__main__ import ATTEMPTS
from tests.faults.cells import FAULTS, JOURNEYS, MATRIX, MOMENTS, Cell
from tests.faults.ordeal import Bench, Missed, Ordeal, Result

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="rnc", dir="/tmp") as folder:  # Ray's sockets allow no long path
        yield Bench.open(Path(folder), rounds=1)


def test_the_journeys_meet_every_fault_and_every_moment():
    cells = [cell for journey in JOURNEYS for cell in journey]
    assert len(MATRIX) == 40 and len(set(cells)) == len(cells) == 12
    assert {cell.fault for cell in cells} == set(FAULTS)
    assert {cell.moment for cell in cells} == set(MOMENTS)


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: f"{len(journey)} faults")
def test_a_suite_that_is_struck_ends_with_the_weights_and_metrics_of_one_that_was_not(
    bench: Bench, journey: Sequence[Cell], capsys: pytest.CaptureFixture[str]
):
    result = ordeal(bench, journey)
    with capsys.disabled():
        print("", *result.blows, sep="\n")
    assert [(blow.fault, blow.moment) for blow in result.blows] == [(cell.fault, cell.moment) for cell in journey]
    assert list(result.wrong) == []


def ordeal(bench: Bench, journey: Sequence[Cell]) -> Result:
    """Try again where a moment was over too soon: what was not struck in its moment shows nothing."""
    for attempt in range(ATTEMPTS):
        one = Ordeal(bench, f"{journey[0].fault}-{attempt}")
        try:
            return one.run(journey)
        except Missed as missed:
            print(missed)
    pytest.fail(f"a moment was missed {ATTEMPTS} times")
