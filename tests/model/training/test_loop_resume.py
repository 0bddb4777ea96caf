"""A training killed at any moment goes on from its last checkpoint and ends with the bits of one that was not."""

import json
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model.training.loop
from model.config import TrainConfig
from model.data.coco import read_coco
from model.network.checkpoint import load_resume, load_weights, read_card
from model.training.loop import Progress
from tests.processes import start_process
from tests.trainings import CONFIG, LADDER, last, norm, run, same, without_speed

EVERY_EPOCH = replace(CONFIG, schedule=replace(CONFIG.schedule, validate_every=1))
BRIEF = replace(EVERY_EPOCH, precision="bfloat16")
UPDATES_OF_AN_EPOCH = 4


def train_until(
    config: TrainConfig, root: Path, folder: Path, journal: Path, seed: int, moment: tuple[str, int]
) -> None:
    """Train on from the last checkpoint, and die at ("update", its number) or ("save", an operation on its files)."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model.training.loop.LOG_EVERY = 1
    kind, place = moment
    count = 0

    def die_in_its_turn(here: str) -> None:
        nonlocal count
        if here == kind:
            count += 1
            if count == place:
                os.kill(os.getpid(), signal.SIGKILL)

    def see(_: str, arguments: tuple[Any, ...]) -> None:
        if arguments and f"{folder}/.epoch" in str(arguments[0]):
            die_in_its_turn("save")

    def report(progress: Progress) -> None:
        with journal.open("a") as file:
            file.write(json.dumps(without_speed([progress])[0]) + "\n")
        if not progress.end_of_epoch:
            die_in_its_turn("update")

    sys.addaudithook(see)
    resume = max(folder.glob("epoch-*"), default=None)
    model.training.loop.train(config, data_root=root, folder=folder, report=report, resume=resume)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def whole(
    request: pytest.FixtureRequest, shapes_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, Path, list[dict[str, Any]]]:
    """A training in one piece: its config, its folder and what it reported."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    config = BRIEF if request.param == "bfloat16" else EVERY_EPOCH
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.training.loop, "LOG_EVERY", 1)
        reports = run(config, shapes_root, folder)
    return config, folder, json.loads(json.dumps(without_speed(reports)))


def moments(seed: int) -> list[tuple[str, int]]:
    """When to die, life by life: early in an epoch, in a save, beyond an epoch, ... and at last not at all."""
    generator = random.Random(seed)
    lives = [("update", 1, 3), ("save", 1, 8), ("update", 5, 7), ("save", 1, 8), ("update", 1, 3)]
    return [*((kind, generator.randint(low, high)) for kind, low, high in lives), ("never", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_training_killed_again_and_again_ends_with_the_bits_of_one_that_was_not(
    whole: tuple[TrainConfig, Path, list[dict[str, Any]]], shapes_root: Path, tmp_path: Path, seed: int
) -> None:
    config, folder, reports = whole
    journal = tmp_path / "journal.jsonl"
    ends: Counter[int | None] = Counter()
    for number, moment in enumerate(moments(seed)):
        process = start_process(train_until, config, shapes_root, tmp_path, journal, 1000 * seed + number, moment)
        process.join()
        ends[process.exitcode] += 1
        for checkpoint in tmp_path.glob("epoch-*"):  # whatever bears a name is whole
            assert read_card(checkpoint).step == UPDATES_OF_AN_EPOCH * int(checkpoint.name.rpartition("-")[2])
            load_weights(checkpoint)
        if process.exitcode == 0:
            break
    assert ends.keys() == {0, -signal.SIGKILL} and ends[-signal.SIGKILL] >= 4
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == sorted(path.name for path in folder.iterdir())
    data = read_coco(shapes_root, "train", num_images=24)
    categories = data.category_ids, data.category_names
    for epoch in ("epoch-0001", "epoch-0002", "epoch-0003"):
        assert same(load_weights(tmp_path / epoch), load_weights(folder / epoch))
        states = [load_resume(part / epoch, config, categories, data.fingerprint) for part in (tmp_path, folder)]
        assert same(*states) and states[0]["optimizer"]["state"]
    expected = {(report["step"], report["end_of_epoch"]): report for report in reports}
    found = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(found) > len(reports)  # some updates were made more than once, and reported alike each time
    assert all(report == expected[report["step"], report["end_of_epoch"]] for report in found)
    assert {(report["step"], report["end_of_epoch"]) for report in found} == expected.keys()


@pytest.mark.parametrize("name", LADDER)
def test_a_training_of_each_kind_that_goes_on_ends_with_the_bits_of_one_in_one_piece(
    name: str, narrow_root: Path, tmp_path: Path
) -> None:
    config = replace(
        CONFIG,
        model=LADDER[name],
        data=replace(CONFIG.data, num_train_images=8, num_val_images=1),
        schedule=replace(CONFIG.schedule, epochs=2, lr_drop_epochs=(1,), validate_every=2),
    )
    torch.set_num_threads(1)
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    reports = [without_speed(run(config, narrow_root, whole))]
    reports.append(without_speed(run(config, narrow_root, rest, resume=whole / "epoch-0001")))
    assert [report["step"] for report in reports[0]] == [1, 1, 2, 2] and reports[1] == reports[0][2:]
    first, one, other = (load_weights(folder) for folder in (whole / "epoch-0001", last(whole), last(rest)))
    assert same(one, other) and not same(first, one)
    assert all(weight.isfinite().all() for weight in one.values())


def test_the_global_random_generators_have_no_influence(shapes_root: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, schedule=replace(CONFIG.schedule, epochs=1, lr_drop_epochs=()))
    torch.set_num_threads(1)
    weights = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        run(config, shapes_root, tmp_path / str(seed))
        weights.append(load_weights(last(tmp_path / str(seed))))
    assert same(*weights)


def test_bfloat16_stays_finite_and_near_float32(shapes_root: Path, tmp_path: Path) -> None:
    ends, losses = [], []
    for config in (replace(BRIEF, precision="float32"), BRIEF):
        reports = run(config, shapes_root, tmp_path / config.precision)
        losses.append([report.metrics["train/loss"] for report in reports if not report.end_of_epoch])
        ends.append(load_weights(last(tmp_path / config.precision)))
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in ends[1].values())
    assert not same(*ends)  # bfloat16 was used at all
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert norm({name: ends[0][name] - ends[1][name] for name in ends[0]}) <= 1e-2 * norm(ends[0])
