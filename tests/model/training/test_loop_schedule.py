"""The learning rate; expected numbers are worked out by hand."""

import pytest

from model.config import ScheduleConfig
from model.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("epoch", "iteration", "by_hand"),
    [
        (0, 0, 0.01 * 0.001),
        (0, 250, 0.01 * (1 - 0.5 * 0.999)),
        (1, 499, 0.01 * (1 - 0.002 * 0.999)),
        (1, 500, 0.01),
        (7, 9999, 0.01),
        (8, 10000, 0.001),
        (10, 10000, 0.001),
        (11, 10000, 0.0001),
        (8, 250, 0.001 * (1 - 0.5 * 0.999)),
    ],
)
def test_the_rate_warms_up_over_500_updates_and_drops_from_the_9th_and_12th_epoch(
    epoch: int, iteration: int, by_hand: float
) -> None:
    assert learning_rate(ScheduleConfig(), epoch, iteration) == pytest.approx(by_hand, rel=1e-12)


def test_without_warmup_the_first_update_has_the_full_rate() -> None:
    config = ScheduleConfig(learning_rate=0.5, warmup_iterations=0, lr_drop_epochs=(), epochs=3)
    assert [learning_rate(config, epoch, epoch) for epoch in range(3)] == [0.5] * 3


def test_each_drop_multiplies_by_its_factor() -> None:
    config = ScheduleConfig(learning_rate=1.0, warmup_iterations=0, lr_drop_epochs=(1, 2, 4), lr_drop_factor=0.5)
    assert [learning_rate(config, epoch, 0) for epoch in range(5)] == [1.0, 0.5, 0.25, 0.25, 0.125]
