"""Experiment files that tests write, and what is said of them."""

from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, load_experiment
from orchestrator.site import ROOT


def write(folder: Path, text: str, name: str = "table.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str) -> Experiment:
    return load_experiment(write(folder, text))


def mistakes(folder: Path, text: str) -> list[str]:
    """Return what is wrong with a file, line by line, without the folder."""
    path = write(folder, text)
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def mistake(folder: Path, text: str) -> str:
    lines = mistakes(folder, text)
    assert len(lines) == 1, lines
    return lines[0]


def one_short_training(suite: str) -> str:
    """The text of a table of a single row, whose training takes seconds."""
    return f"""
suite: {suite}
extends: {ROOT}/experiments/miniature/table1_heads.yaml
only: [RetinaNet]
seeds: [0]
defaults:
  split: val
  train:
    data: {{num_train_images: 24, num_val_images: 8}}
    schedule: {{epochs: 2, lr_drop_epochs: [1], validate_every: 1}}
"""
