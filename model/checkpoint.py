"""A checkpoint is a folder: safetensors weights, a JSON of what they are, and the state to resume from."""

import hashlib
import json
import os
import pickle
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ConfidenceConfig, DataConfig, ModelConfig, ScheduleConfig, TrainConfig

WEIGHTS, CARD, RESUME = "model.safetensors", "config.json", "resume.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a checkpoint says of itself."""

    config: TrainConfig
    epoch: int
    """Epochs finished."""
    step: int
    """Updates made."""
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    data_fingerprint: str
    """CocoData.fingerprint of the training images."""
    weights_sha256: str


def save_checkpoint(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    config: TrainConfig,
    epoch: int,
    step: int,
    categories: tuple[tuple[int, ...], tuple[str, ...]],
    data_fingerprint: str,
    optimizer: dict[str, Any],
) -> Path:
    """Write a checkpoint that is whole or not there; one of the same name is set aside until the new one stands."""
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial / WEIGHTS)
    card = {
        "config": asdict(config),
        "epoch": epoch,
        "step": step,
        "category_ids": categories[0],
        "category_names": categories[1],
        "data_fingerprint": data_fingerprint,
        "weights_sha256": file_sha256(partial / WEIGHTS),
    }
    (partial / CARD).write_text(json.dumps(card, indent=2) + "\n")
    torch.save({"optimizer": optimizer, "epoch": epoch, "step": step}, partial / RESUME)
    for file in partial.iterdir():
        _flush(file)
    if folder.exists():
        old = folder.with_name(f"{partial.name}-old")
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    return folder


def read_card(folder: Path) -> Card:
    """What the checkpoint is.

    Raises:
        ValueError: no checkpoint, or one of an unknown form.
    """
    path = folder / CARD
    try:
        raw = json.loads(path.read_text())
        raw["config"] = _train_config(raw["config"])
        return Card(
            **{**raw, "category_ids": tuple(raw["category_ids"]), "category_names": tuple(raw["category_names"])}
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not the card of a checkpoint ({error!r}); expected a folder with {CARD}"
        ) from error


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights, after checking them against the card's sha256.

    Raises:
        ValueError: the file is damaged or belongs to another card.
    """
    expected, found = read_card(folder).weights_sha256, file_sha256(folder / WEIGHTS)
    if expected != found:
        raise ValueError(
            f"{folder / WEIGHTS} has sha256 {found[:12]}, its card says {expected[:12]}: the file is damaged or was "
            "swapped; fetch the checkpoint again"
        )
    return load_file(folder / WEIGHTS)


def load_resume(folder: Path, config: TrainConfig, data_fingerprint: str) -> dict[str, Any]:
    """The optimizer's state, epoch and step, to go on from.

    Raises:
        ValueError: the checkpoint belongs to another training, or to other data.
    """
    card = read_card(folder)
    if card.config != config:
        raise ValueError(
            f"{folder} belongs to another training ({_first_difference(card.config, config)}); remove it to start anew"
        )
    if card.data_fingerprint != data_fingerprint:
        raise ValueError(
            f"{folder} was trained on other data (fingerprint {card.data_fingerprint[:12]}, now "
            f"{data_fingerprint[:12]}); bring the old data back, or remove the checkpoint to start anew"
        )
    try:
        state: dict[str, Any] = torch.load(folder / RESUME, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{folder / RESUME} is no state to resume from ({type(error).__name__}); remove {folder} to start from an "
            "earlier checkpoint, or anew"
        ) from error
    return state


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _train_config(raw: dict[str, Any]) -> TrainConfig:
    confidence = raw["model"]["confidence"]
    model = {**raw["model"], "confidence": None if confidence is None else ConfidenceConfig(**confidence)}
    schedule = {**raw["schedule"], "lr_drop_epochs": tuple(raw["schedule"]["lr_drop_epochs"])}
    return TrainConfig(
        **{
            **raw,
            "model": ModelConfig(**model),
            "data": DataConfig(**raw["data"]),
            "schedule": ScheduleConfig(**schedule),
        }
    )


def _first_difference(first: Any, second: Any, path: str = "train") -> str:
    for name in type(first).__dataclass_fields__:
        left, right = getattr(first, name), getattr(second, name)
        if left != right:
            if type(left) is type(right) and hasattr(left, "__dataclass_fields__"):
                return _first_difference(left, right, f"{path}.{name}")
            return f"{path}.{name} was {left!r}, now {right!r}"
    return "no difference"
