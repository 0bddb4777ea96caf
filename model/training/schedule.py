"""The learning rate of each update; without PyTorch, as a plan asks for it, too."""

from bisect import bisect_right

from model.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, epoch: int, iteration: int) -> float:
    """The rate of one update: linear warm-up, then a factor for each drop (Section 4.1).

    Args:
        config: rate, warm-up and drops.
        epoch: zero-based epoch of the update.
        iteration: zero-based update, counted over the whole training.
    """
    # bisect_right: the epoch of a drop already has the lower rate.
    rate = config.learning_rate * config.lr_drop_factor ** bisect_right(config.lr_drop_epochs, epoch)
    if iteration >= config.warmup_iterations:
        return rate
    missing = (1 - iteration / config.warmup_iterations) * (1 - config.warmup_ratio)
    return rate * (1 - missing)
