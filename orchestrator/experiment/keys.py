"""Content keys: what a training and an evaluation are, whatever their name, their place and their machine."""

import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

from model.config import InferenceConfig, TrainConfig
from model.settings import Settings, differences
from orchestrator.experiment.rows import Row


class RowKeys(NamedTuple):
    """What one row is for one seed."""

    seed: int
    train_key: str
    evaluation_key: str


def train_key(config: TrainConfig) -> str:
    """Return the identity of a training: a hash over the settings that differ from the defaults."""
    return _key("TrainConfig", differences(config))


def evaluation_key(train_key: str, inference: InferenceConfig, split: str) -> str:
    """Return the identity of an evaluation: its training, how it is scored, and on which split."""
    return _key("InferenceConfig", differences(inference), train_key, split)


def inference_key(inference: InferenceConfig) -> str:
    """Return the identity of an inference setting, whatever is scored by it."""
    return _key("InferenceConfig", differences(inference))


def row_keys(row: Row) -> tuple[RowKeys, ...]:
    """Return the identities of a row's training and evaluation for each seed."""
    return tuple(
        RowKeys(seed, key, evaluation_key(key, row.inference, row.split))
        for seed in row.seeds
        for key in [train_key(replace(row.train, seed=seed))]
    )


def _key(kind: str, settings: Settings, *rest: str) -> str:
    content = json.dumps([kind, settings, *rest], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
