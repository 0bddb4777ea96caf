"""A process killed at any moment of a save leaves the old checkpoint or the new one, whole, under its name."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch

import model.network.checkpoint
from model.config import TrainConfig
from model.network.checkpoint import load_resume, load_weights, read_card, save_checkpoint
from tests.processes import start_process

CATEGORIES = ((1,), ("cat",))
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}


def save(folder: Path, step: int) -> None:
    save_checkpoint(
        folder,
        weights={"a": torch.full((64, 64), float(step)), "b": torch.full((3,), float(step))},
        config=TrainConfig(),
        epoch=1,
        step=step,
        categories=CATEGORIES,
        data_fingerprint="f",
        optimizer={"momentum": torch.full((64, 64), float(step))},
    )


def whole(folder: Path) -> int:
    """The step of a checkpoint whose every part is of that step."""
    step = read_card(folder).step
    state = load_resume(folder, TrainConfig(), CATEGORIES, "f")
    assert state["step"] == step
    for tensor in (*load_weights(folder).values(), state["optimizer"]["momentum"]):
        assert (tensor == step).all()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "resume.pt"]
    return step


def save_again_and_again(folder: Path, first: int) -> None:
    for step in range(first, first + 1000):
        save(folder, step)


def save_until(folder: Path, step: int, place: int, exchange: bool) -> None:
    """Save once, and die before the operation on files of this place."""
    count, saving = 0, False

    def die(event: str, _: tuple[Any, ...]) -> None:
        nonlocal count
        if saving and event in FILE_EVENTS:
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    if not exchange:
        model.network.checkpoint._exchange = lambda *_: False
    sys.addaudithook(die)
    saving = True
    save(folder, step)
    saving = False


@pytest.fixture
def exchange(tmp_path: Path) -> None:
    """Skip where names cannot be swapped in one step."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    if not model.network.checkpoint._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("neither this system nor this file system can exchange two names")
    for name in ("one", "other"):
        (tmp_path / name).rmdir()


@pytest.fixture
def polled(tmp_path: Path) -> Iterator[list[int]]:
    """Looks for the checkpoint without a pause; gives how often it was [there, missing]."""
    folder, seen, ended = tmp_path / "epoch-0001", [0, 0], Event()
    save(folder, 1)

    def poll() -> None:
        while not ended.is_set():
            seen[not os.path.isdir(folder)] += 1

    thread = Thread(target=poll)
    thread.start()
    yield seen
    ended.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("exchange")
def test_a_save_killed_at_random_leaves_a_whole_checkpoint_that_was_never_missing(
    tmp_path: Path, polled: list[int]
) -> None:
    folder, generator, steps = tmp_path / "epoch-0001", random.Random(0), [1]
    for _ in range(40):
        process = start_process(save_again_and_again, folder, steps[-1] + 1)
        deadline = time.monotonic() + 60
        while read_step(folder) == steps[-1] and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(generator.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        steps.append(whole(folder))
    assert sorted(set(steps)) == steps  # every process got further than the one before
    assert polled[0] > 1000 and polled[1] == 0
    save(folder, steps[-1] + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def read_step(folder: Path) -> int:
    try:
        return read_card(folder).step
    except ValueError:  # the card that was opened has been replaced
        return -1


@pytest.mark.slow
@pytest.mark.usefixtures("exchange")
def test_a_save_killed_before_any_of_its_operations_on_files_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    folder, found = tmp_path / "epoch-0001", []
    save(folder, 1)
    for place in range(200):
        process = start_process(save_until, folder, place + 2, place, True)
        process.join()
        found.append(whole(folder))
        assert found[-1] in {place + 2, found[-2] if place else 1}
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert len(found) > 20 and 1 in found and found[-1] == len(found) + 1  # so both have been seen, and the end
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


@pytest.mark.slow
def test_without_an_exchange_a_kill_between_the_renames_leaves_the_old_one_aside(tmp_path: Path) -> None:
    folder, aside = tmp_path / "epoch-0001", 0
    save(folder, 1)
    for place in range(200):
        before = whole(folder)
        process = start_process(save_until, folder, place + 2, place, False)
        process.join()
        if not folder.exists():
            (old,) = tmp_path.glob(".epoch-0001-????????-old")
            assert whole(old) == before
            aside += 1
            save(folder, place + 2)
        assert whole(folder) in {place + 2, before}
        if process.exitcode == 0:
            break
    assert aside == 1
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_a_save_removes_what_killed_saves_left_behind_and_nothing_else(tmp_path: Path) -> None:
    strangers = [".epoch-0002-01234567", ".epoch-0001-0123456", "epoch-0001-01234567", ".epoch-0001-01234567-older"]
    for name in [*strangers, ".epoch-0001-01234567", ".epoch-0001-89abcdef-old"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half of the wei")
    save(tmp_path / "epoch-0001", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*strangers, "epoch-0001"])
