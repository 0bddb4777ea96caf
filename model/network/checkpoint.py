"""Checkpoints, saved and loaded: a folder with safetensors weights, a JSON card, and the state to resume from."""

import ctypes
import errno
import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import InferenceConfig, TrainConfig
from model.data.cache import file_sha256
from model.foreign import read_json
from model.names import CARD, INFERENCE, RESUME, WEIGHTS
from model.settings import from_dict

if TYPE_CHECKING:
    # Only where weights are read: torch takes seconds, and what is wrong with a card is told without.
    import torch
    from torch import Tensor

Categories = tuple[tuple[int, ...], tuple[str, ...]]
"""Ids and names of the classes, in the order of the labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The JSON card of a checkpoint: the config, progress, classes and data behind its weights."""

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
    device: str = ""
    """What it was trained on, as `device_name` says; empty where it was not recorded."""

    def __post_init__(self) -> None:
        if len(self.category_ids) != len(self.category_names):
            count = len(self.category_names)
            raise ValueError(f"category_ids has {len(self.category_ids)} classes, category_names {count}")


def device_name(device: "torch.device") -> str:
    """The model of a GPU, or the kind of any other device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def save_checkpoint(
    folder: Path,
    *,
    weights: "Mapping[str, Tensor]",
    config: TrainConfig,
    epoch: int,
    step: int,
    categories: Categories,
    data_fingerprint: str,
    optimizer: dict[str, Any],
) -> Path:
    """Write a checkpoint that is whole or not there, whenever the process is killed.

    One of the same name is replaced in a single step (Linux: renameat2 with RENAME_EXCHANGE). Where the system or the
    file system has no such step, it is renamed to `.<name>-<8 hex digits>-old` first, and a kill before the next
    rename leaves it there. What earlier saves of this name left behind when they were killed is removed.
    """
    import torch
    from safetensors.torch import save_file

    _sweep(folder, "")
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    # safetensors refuses tensors in channels_last order, in which CUDA trains.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial / WEIGHTS)
    card = {
        "config": asdict(config),
        "epoch": epoch,
        "step": step,
        "category_ids": categories[0],
        "category_names": categories[1],
        "data_fingerprint": data_fingerprint,
        "weights_sha256": file_sha256(partial / WEIGHTS),
        "device": device_name(next(iter(weights.values())).device),
    }
    (partial / CARD).write_text(json.dumps(card, indent=2) + "\n")
    # Tensors and plain Python alone: weights_only=True refuses NumPy's scalars, paths and dataclasses.
    torch.save({"optimizer": optimizer, "epoch": epoch, "step": step}, partial / RESUME)
    # Content before name: after a power cut, no name may stand for half a file.
    for path in (*partial.iterdir(), partial):
        _flush(path)
    if not folder.exists():
        partial.rename(folder)
    elif not _exchange(partial, folder):
        folder.rename(folder.with_name(f"{partial.name}-old"))
        partial.rename(folder)
    _flush(folder.parent)
    _sweep(folder, "")
    _sweep(folder, "-old")
    return folder


def read_card(folder: Path) -> Card:
    """What the checkpoint is.

    Raises:
        ValueError: no checkpoint, or one of an unknown form.
    """
    path = folder / CARD
    try:
        return from_dict(Card, read_json(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not the card of a checkpoint ({error}); expected a folder with {CARD}") from error


def read_inference(folder: Path) -> InferenceConfig:
    """The inference settings beside a checkpoint; the paper's where there are none, less what needs a missing branch.

    Raises:
        ValueError: the file is none of ours.
    """
    file = folder / INFERENCE
    if not file.exists():
        has_branch = read_card(folder).config.model.confidence is not None
        return InferenceConfig() if has_branch else InferenceConfig(confidence_exponent=0.0)
    try:
        return from_dict(InferenceConfig, read_json(file), "inference.")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} holds no inference settings ({error}); fetch the checkpoint again") from error


def load_weights(folder: Path) -> "dict[str, Tensor]":
    """The weights, after checking them against the card's sha256.

    Raises:
        ValueError: the file is damaged or belongs to another card.
    """
    from safetensors.torch import load_file

    expected, found = read_card(folder).weights_sha256, file_sha256(folder / WEIGHTS)
    if expected != found:
        raise ValueError(
            f"{folder / WEIGHTS} has sha256 {found[:12]}, its card says {expected[:12]}: the file is damaged or was "
            "swapped; fetch the checkpoint again"
        )
    return load_file(folder / WEIGHTS)


def require_categories(folder: Path, categories: Categories, data: str) -> None:
    """Let a checkpoint meet only data whose labels mean what its own do; `data` names them in the message.

    Raises:
        ValueError: an id or a name differs; the message tells the first.
    """
    card = read_card(folder)
    trained = list(zip(card.category_ids, card.category_names, strict=True))
    given = list(zip(*categories, strict=True))
    for label, (old, new) in enumerate(zip_longest(trained, given)):
        if old != new:
            was, now = ("missing" if one is None else f"id {one[0]} {one[1]!r}" for one in (old, new))
            raise ValueError(
                f"{folder} was trained on other classes than {data} has: class {label + 1} of {len(trained)} was "
                f"{was}, now {now}; take data with the classes of the checkpoint, or another checkpoint"
            )


def load_resume(folder: Path, config: TrainConfig, categories: Categories, data_fingerprint: str) -> dict[str, Any]:
    """The optimizer's state, epoch and step, to go on from.

    Raises:
        ValueError: the checkpoint belongs to another training, other classes or other data.
    """
    import torch

    card = read_card(folder)
    if card.config != config:
        raise ValueError(
            f"{folder} belongs to another training ({_first_difference(card.config, config)}); remove it to start anew"
        )
    require_categories(folder, categories, f"split {config.data.train_split}")
    if card.data_fingerprint != data_fingerprint:
        raise ValueError(
            f"{folder} was trained on other data (fingerprint {card.data_fingerprint[:12]}, now "
            f"{data_fingerprint[:12]}); bring the old data back, or remove the checkpoint to start anew"
        )
    try:
        # Without weights_only, a pickle may run any code.
        state: dict[str, Any] = torch.load(folder / RESUME, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{folder / RESUME} is no state to resume from ({type(error).__name__}); remove {folder} to start from an "
            "earlier checkpoint, or anew"
        ) from error
    return state


def _flush(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap what two names stand for in one step; False where the system or the file system has none."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _sweep(folder: Path, ending: str) -> None:
    """Remove what saves of this name set aside."""
    name = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{8}}{ending}")
    for path in folder.parent.glob(".*"):
        if name.fullmatch(path.name):
            shutil.rmtree(path)


def _first_difference(first: Any, second: Any, path: str = "train") -> str:
    for name in type(first).__dataclass_fields__:
        left, right = getattr(first, name), getattr(second, name)
        if left != right:
            if type(left) is type(right) and hasattr(left, "__dataclass_fields__"):
                return _first_difference(left, right, f"{path}.{name}")
            return f"{path}.{name} was {left!r}, now {right!r}"
    return "no difference"
