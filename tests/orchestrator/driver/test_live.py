"""The live view: how much is left in all, and a table that a narrow terminal shows without breaking a number."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator.driver.live import live_table, live_view, remaining_in_all, working
from orchestrator.worker.task import Status

TRAINING = Status(label="RetinaNet", state="training", epoch=2.0, num_epochs=5, remaining_s=90.0)
WAITING = Status(label="RetinaNet-Conf", state="waiting", note="for its turn", num_epochs=5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_left_in_all_counts_what_waits_at_the_pace_of_what_runs() -> None:
    assert remaining_in_all([TRAINING]) == 90.0
    # 30 s an epoch: 90 s, and then 5 epochs of the one that waits
    assert remaining_in_all([TRAINING, WAITING]) == 90.0 + 150.0
    # two at a time, of which the second is twice as slow: 45 s an epoch on average, (90 + 180 + 225) / 2
    slower = replace(TRAINING, remaining_s=180.0)
    assert remaining_in_all([TRAINING, slower, WAITING]) == pytest.approx(247.5)
    # never less than the longest alone
    assert remaining_in_all([TRAINING, replace(slower, remaining_s=900.0)]) == 900.0


@pytest.mark.parametrize("state", ["finished", "failed", "stopped", "cancelled", "interrupted"])
def test_what_has_ended_leaves_nothing(state) -> None:
    assert remaining_in_all([TRAINING, replace(WAITING, state=state)]) == 90.0


def test_without_a_pace_nothing_is_promised() -> None:
    assert remaining_in_all([WAITING]) is None
    assert remaining_in_all([]) is None
    # the last epoch is done: what scores has no pace of training
    assert remaining_in_all([replace(TRAINING, epoch=5.0, remaining_s=0.0)]) is None


def shown(statuses: list[Status], width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(live_table(statuses))
    return stream.getvalue()


def test_a_narrow_terminal_breaks_texts_between_words_and_numbers_nowhere() -> None:
    long = "RetinaNet-Conf, class score alone, at alpha 0.4"
    running = replace(TRAINING, label=long, loss=0.585, ap=23.5, images_per_s=65.9)
    text = shown([running, replace(WAITING, note="for 0.66 CPUs, 0.02 free")], 80)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for word in [*long.split(), "2.0/5", "0.585", "23.5", "65.9", "1:30", "waiting"]:
        assert word in text.split(), word
    assert "about 4:00 of training left in all; scoring comes on top" in text
    assert text.index("RetinaNet-Conf, class") < text.index("waiting")


def test_labels_are_no_markup() -> None:
    assert "loss [red]" in shown([replace(WAITING, label="loss [red]")], 80)


def test_a_line_for_an_epoch_says_what_is_left_in_all_once_it_is_known() -> None:
    stream = io.StringIO()
    with live_view(stream) as show:
        show([TRAINING, WAITING])
    assert stream.getvalue() == "RetinaNet: training, epoch 2/5, left 1:30, 4:00 left in all\n"


def test_a_terminal_shows_what_is_waited_for_and_keeps_nothing_of_it() -> None:
    terminal, file = Terminal(), io.StringIO()
    with working("starting Ray", terminal), working("starting Ray", file):
        assert file.getvalue() == ""
    assert "starting Ray ..." in terminal.getvalue() and terminal.getvalue().endswith("\x1b[2K")
    assert file.getvalue() == ""


def test_of_a_thousand_trainings_those_are_shown_that_run_or_failed_and_the_others_counted() -> None:
    waiting = [replace(WAITING, label=f"waits {place}") for place in range(600)]
    over = [replace(WAITING, label=f"over {place}", state="finished", note="") for place in range(398)]
    failed = replace(WAITING, label="broken", state="failed", note="a mistake")
    text = shown([*over, *waiting, failed, replace(TRAINING, label="runs")], 120)
    lines = text.splitlines()
    assert len(lines) < 50 and text.index("waits 0") < text.index("broken") < text.index("runs")
    assert "waits 37" in text and "waits 38" not in text and "over" not in text
    assert "and 562 more waiting, 398 more finished" in text
    assert "more" not in shown([TRAINING, WAITING], 120)
