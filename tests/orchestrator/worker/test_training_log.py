"""The log of a training: what is written, what is read back, and how it reads as sentences."""

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.worker.training_log import (
    TRAINING_LOG,
    Again,
    CutOff,
    End,
    EndState,
    Epoch,
    Event,
    Lost,
    Note,
    Scored,
    Scoring,
    ScoringLog,
    Start,
    epoch_reached,
    is_open,
    log_epoch,
    log_start,
    losses_of,
    losses_since,
    output_of,
    read_log,
    scoring_of,
    sentence,
    write_event,
)

START = Start(num_workers=1, process=7, host="node", epoch=0, num_epochs=2)


def said(folder: Path) -> list[str]:
    return [sentence(entry.event) for entry in read_log(folder)]


def test_a_log_has_an_event_for_each_start_epoch_and_end(tmp_path: Path):
    log_start(tmp_path, 2, 0, 12)
    metrics = {"train/loss": 1.23456, "val/AP": 23.45, "perf/images_per_s": 55.55, "train/lr": 0.1}
    log_epoch(tmp_path, 1.0, 12, metrics)
    write_event(tmp_path, End(state="interrupted", reason="interrupted; the next submit\ngoes on"))
    start, epoch, end = said(tmp_path)
    assert start.startswith(f"started on 2 workers, the first as process {os.getpid()} on ")
    assert "begins 12 epochs" in start
    assert epoch == "epoch 1/12, loss 1.235, AP 23.4, 55.5 images/s"
    assert end == "interrupted; the next submit goes on"
    assert not is_open(tmp_path)


def test_a_start_tells_how_many_processes_read_images_for_each_worker():
    assert sentence(replace(START, num_workers=2, num_loaders=7)).startswith(
        "started on 2 workers, the first as process 7 on node, 7 loader processes each; begins"
    )
    assert "1 loader process each" in sentence(replace(START, num_loaders=1))


@pytest.mark.parametrize(
    ("event", "kind", "fields", "text"),
    [
        (
            START,
            "start",
            {
                "num_workers": 1,
                "process": 7,
                "host": "node",
                "epoch": 0,
                "num_epochs": 2,
                "output": "",
                "num_loaders": 0,
            },
            "started on 1 worker, the first as process 7 on node; begins 2 epochs",
        ),
        (CutOff(), "cut_off", {}, "what ran before ended without a word: its process was killed, or its node lost"),
        (Again(num_images=1234), "again", {"num_images": 1234}, "1,234 images are trained again"),
        (
            Epoch(epoch=1, num_epochs=2, loss=0.5),
            "epoch",
            {"epoch": 1, "num_epochs": 2, "loss": 0.5, "ap": None, "images_per_s": None},
            "epoch 1/2, loss 0.500",
        ),
        (
            Scoring(num_done=64, num_images=5000, split="val", num_settings=1),
            "scoring",
            {"num_done": 64, "num_images": 5000, "split": "val", "num_settings": 1},
            "scoring: 64 of 5,000 images of val, 1 setting",
        ),
        (
            Scored(split="val", num_settings=2),
            "scored",
            {"split": "val", "num_settings": 2},
            "scored under 2 settings on val",
        ),
        (End(state="failed", reason="no"), "end", {"state": "failed", "reason": "no"}, "failed: no"),
        (Note(text="by\nthe way"), "note", {"text": "by\nthe way"}, "by the way"),
    ],
)
def test_an_event_is_a_json_object_a_line_and_is_read_back_as_it_was(
    event: Event, kind: str, fields: dict[str, object], text: str, tmp_path: Path
):
    write_event(tmp_path, event)
    (line,) = (tmp_path / TRAINING_LOG).read_text().splitlines()
    written = json.loads(line)
    age = datetime.now(UTC) - datetime.fromisoformat(written.pop("time"))
    assert 0 <= age.total_seconds() < 60
    assert written == {"kind": kind, **fields}
    assert [entry.event for entry in read_log(tmp_path)] == [event]
    assert sentence(event) == text


def test_a_start_after_a_lost_worker_says_so_and_one_after_an_interruption_does_not(tmp_path: Path):
    log_start(tmp_path, 1, 0, 12)
    log_start(tmp_path, 1, 3, 12)
    assert said(tmp_path)[1].startswith("what ran before ended without a word")
    assert "goes on from epoch 3 of 12" in said(tmp_path)[2]
    write_event(tmp_path, End(state="interrupted", reason="interrupted; the next submit goes on from epoch 4"))
    log_start(tmp_path, 1, 4, 12)
    assert len(said(tmp_path)) == 5


@pytest.mark.parametrize("state", ["failed", "cancelled", "stopped", "interrupted", "finished"])
def test_every_way_in_which_a_training_ends_is_known_as_an_end(state: EndState, tmp_path: Path):
    write_event(tmp_path, End(state=state, reason="stopped early by ASHA after epoch 2 (AP 1.0)"))
    assert len(read_log(tmp_path)) == 1 and not is_open(tmp_path)
    write_event(tmp_path, Note(text="nothing for the misalignment lab"))
    assert not is_open(tmp_path)
    log_start(tmp_path, 1, 2, 4)
    assert is_open(tmp_path)
    assert CutOff() not in [entry.event for entry in read_log(tmp_path)]


def test_a_training_that_was_cut_off_is_told_apart_from_one_that_was_interrupted(tmp_path: Path):
    assert losses_of(tmp_path) == (0, 0)
    log_start(tmp_path, 1, 0, 4)
    assert losses_of(tmp_path) == (0, 0)
    log_start(tmp_path, 1, 2, 4)  # after a kill
    write_event(tmp_path, Again(num_images=1200))
    write_event(tmp_path, End(state="interrupted", reason="interrupted; the next submit goes on from epoch 3"))
    log_start(tmp_path, 1, 3, 4)
    write_event(tmp_path, Again(num_images=34))
    write_event(tmp_path, End(state="failed", reason="the server says 5 images are trained again"))
    assert losses_of(tmp_path) == (1, 1234)


def test_what_is_half_written_or_not_ours_is_passed_over_and_takes_nothing_with_it(tmp_path: Path):
    log = tmp_path / TRAINING_LOG
    (tmp_path / "training.log").write_text("2026-01-01 00:00:00  what ran before ended without a word\n")
    write_event(tmp_path, START)
    now = '"time": "2026-01-01T00:00:00+00:00"'
    foreign = [
        "2026-01-01 00:00:00  5 images are trained again",
        "7",
        "[]",
        '{"kind": "again", "num_images": 5}',
        f'{{{now}, "num_images": 5}}',
        f'{{{now}, "kind": "again"}}',
        f'{{{now}, "kind": "again", "num_images": "many"}}',
        f'{{{now}, "kind": "again", "num_images": NaN}}',
        f'{{{now}, "kind": ["again"], "num_images": 5}}',
        f'{{{now}, "kind": "of a later version"}}',
        f'{{{now}, "kind": "end", "state": "eaten", "reason": ""}}',
        '{"time": "noon", "kind": "again", "num_images": 5}',
    ]
    with log.open("a") as file:
        file.write("\n".join([*foreign, f'{{{now}, "kind": "ag']))  # its writer was killed here
    write_event(tmp_path, Again(num_images=3))
    assert [entry.event for entry in read_log(tmp_path)] == [START, Again(num_images=3)]
    assert losses_of(tmp_path) == (0, 3)


def test_a_log_that_cannot_be_written_disturbs_nobody():
    write_event(Path("/proc/nowhere"), Note(text="started"))


def test_an_accuracy_that_does_not_exist_is_left_out(tmp_path: Path):
    log_epoch(tmp_path, 1.0, 2, {"train/loss": 1.0, "val/AP": float("nan")})
    assert said(tmp_path) == ["epoch 1/2, loss 1.000"]
    assert "NaN" not in (tmp_path / TRAINING_LOG).read_text()


def test_the_file_that_a_worker_prints_to_is_found_in_its_log(tmp_path: Path):
    assert output_of(tmp_path) is None
    for output in ("/tmp/old.out", "/tmp/a b.out", ""):
        write_event(tmp_path, Start(num_workers=1, process=7, host="node", epoch=0, num_epochs=2, output=output))
        write_event(tmp_path, Epoch(epoch=1, num_epochs=2))
    assert output_of(tmp_path) == Path("/tmp/a b.out")


def test_a_quick_scoring_is_told_at_each_tenth_and_over_once_another_event_follows(tmp_path: Path) -> None:
    log = ScoringLog(tmp_path, "val", 45)
    for done in range(0, 5001, 10):
        log.tell(done, 5000)
    lines = said(tmp_path)
    assert lines[:2] == [
        "scoring: 0 of 5,000 images of val, 45 settings",
        "scoring: 500 of 5,000 images of val, 45 settings",
    ]
    assert len(lines) == 11
    assert scoring_of(tmp_path) == "5,000 of 5,000 images of val, 45 settings"
    assert is_open(tmp_path)
    write_event(tmp_path, Scored(split="val", num_settings=45))
    assert scoring_of(tmp_path) == ""
    assert not is_open(tmp_path)


def test_losses_of_checkpoints_are_told_since_a_time_and_do_not_open_a_log_that_was_closed(tmp_path: Path):
    write_event(tmp_path, Epoch(epoch=3, num_epochs=9))
    assert epoch_reached(tmp_path) == 3
    write_event(tmp_path, End(state="interrupted", reason="interrupted"))
    write_event(tmp_path, Lost(text="of earlier", epoch=2))
    assert epoch_reached(tmp_path) == 0  # what was lost is said already
    time.sleep(0.01)
    begun = datetime.now(UTC)
    time.sleep(0.01)
    write_event(tmp_path, Lost(text="epoch-0002/resume.pt is missing", epoch=1))
    assert losses_since(tmp_path, begun) == ["epoch-0002/resume.pt is missing"]
    assert not is_open(tmp_path)
