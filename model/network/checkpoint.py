"""Checkpoints, saved and loaded: a folder with safetensors weights, a JSON card, and the state to resume from."""

import ctypes
import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
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
    resume_sha256: str = ""
    """Of the state to resume from; empty in cards of versions that did not write it."""
    card_sha256: str = ""
    """Of the other fields, as `seal` says; empty in such cards as well."""

    def __post_init__(self) -> None:
        if len(self.category_ids) != len(self.category_names):
            count = len(self.category_names)
            raise ValueError(f"category_ids has {len(self.category_ids)} classes, category_names {count}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A file of a checkpoint that is not what was written."""

    file: Path
    why: str

    def __str__(self) -> str:
        """Name the file from its checkpoint on, and what is wrong with it."""
        return f"{self.file.parent.name}/{self.file.name} {self.why}"


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
    # Tensors and plain Python alone: weights_only=True refuses NumPy's scalars, paths and dataclasses.
    torch.save({"optimizer": optimizer, "epoch": epoch, "step": step}, partial / RESUME)
    card = {
        "config": asdict(config),
        "epoch": epoch,
        "step": step,
        "category_ids": categories[0],
        "category_names": categories[1],
        "data_fingerprint": data_fingerprint,
        "weights_sha256": file_sha256(partial / WEIGHTS),
        "device": device_name(next(iter(weights.values())).device),
        "resume_sha256": file_sha256(partial / RESUME),
    }
    (partial / CARD).write_text(json.dumps(card | {"card_sha256": seal(card)}, indent=2) + "\n")
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


def seal(card: Mapping[str, Any]) -> str:
    """Hex sha256 of what a card says, but for `card_sha256`: of its JSON with sorted names and no spaces."""
    content = {name: value for name, value in card.items() if name != "card_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_edited(card: Mapping[str, Any]) -> bool:
    """Whether a card says other than when it was sealed; of one that never was, nobody knows."""
    return "card_sha256" in card and card["card_sha256"] != seal(card)


def damages(folder: Path, *, with_resume: bool = True) -> Iterator[Damage]:
    """Compare each file of a checkpoint with its digest; nothing is yielded for a sound one.

    Weights and state are read whole: 0.16 s of a core for the 304 MB of a ResNet-50 detector, from memory. A card of a
    version that wrote no digest of the state has the CRC-32 of the state's zip archive looked at instead, which
    torch.load does not do, and is judged itself by whether it can be read.

    Args:
        folder: of the checkpoint.
        with_resume: whether the state to resume from is looked at; scoring needs none.

    Raises:
        ValueError: the card is as it was written, but in a form that is not known here.
        OSError: a file is there and cannot be read, for want of permission, say.
    """
    file = folder / CARD
    if why := _unreadable(file):
        yield Damage(file=file, why=why)
        return
    try:
        written = read_json(file)
        is_sealed = isinstance(written, dict) and "card_sha256" in written
    except ValueError:
        yield Damage(file=file, why="is no JSON")
        return
    if is_sealed and _is_edited(written):
        yield Damage(file=file, why="has other content than its card_sha256 says")
        return
    try:
        card = read_card(folder)
    except ValueError as error:
        if is_sealed:
            raise ValueError(
                f"{error}; it is whole, and of another version: take that version, or move {folder} away"
            ) from error
        yield Damage(file=file, why="is not the card of a checkpoint")
        return
    if why := _unreadable(folder / WEIGHTS) or _differs(folder / WEIGHTS, card.weights_sha256):
        yield Damage(file=folder / WEIGHTS, why=why)
    if with_resume:
        file = folder / RESUME
        differs = _torn_archive if not card.resume_sha256 else lambda file: _differs(file, card.resume_sha256)
        if why := _unreadable(file) or differs(file):
            yield Damage(file=file, why=why)


def read_card(folder: Path) -> Card:
    """What the checkpoint is.

    Raises:
        ValueError: no checkpoint, or one of an unknown form.
    """
    path = folder / CARD
    try:
        return from_dict(Card, read_json(path))
    except (OSError, ValueError, RecursionError) as error:
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
    """The weights, after checking the card against its seal, and them against the card's sha256.

    Raises:
        ValueError: a file is missing or damaged, or the weights belong to another card.
    """
    from safetensors.torch import load_file

    expected = read_card(folder).weights_sha256
    if _is_edited(read_json(folder / CARD)):
        raise ValueError(
            f"{folder / CARD} has other content than its card_sha256 says: it was edited, or damaged; fetch the "
            "checkpoint again"
        )
    try:
        found = file_sha256(folder / WEIGHTS)
    except OSError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error.strerror}); fetch the checkpoint again") from error
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
    way_out = "take data with the classes of the checkpoint, or another checkpoint"
    if sorted(card.category_names) == sorted(categories[1]):
        way_out = "the names are the same under other ids, or in another order: number them as the checkpoint does"
    for label, (old, new) in enumerate(zip_longest(trained, given)):
        if old != new:
            was, now = ("missing" if one is None else f"id {one[0]} {one[1]!r}" for one in (old, new))
            raise ValueError(
                f"{folder} was trained on other classes than {data} has: class {label + 1} of {len(trained)} was "
                f"{was}, now {now}; {way_out}"
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
            f"{folder} belongs to another training ({first_difference(card.config, config)}); remove it to start anew"
        )
    require_categories(folder, categories, f"split {config.data.train_split}")
    if card.data_fingerprint != data_fingerprint:
        raise ValueError(
            f"{folder} was trained on other data (fingerprint {card.data_fingerprint[:12]}, now "
            f"{data_fingerprint[:12]}); bring the old data back, or remove the checkpoint to start anew"
        )
    try:
        why = _unreadable(folder / RESUME) or (card.resume_sha256 and _differs(folder / RESUME, card.resume_sha256))
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    if why:
        # torch.load reads past a flipped byte, and the training would end with other weights.
        raise ValueError(
            f"{folder / RESUME} is no state to resume from (it {why}); remove {folder} to start from an earlier "
            "checkpoint, or anew"
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


def first_difference(first: Any, second: Any, path: str = "train") -> str:
    """Name the first setting in which two configs of one kind differ, and both its values."""
    for name in type(first).__dataclass_fields__:
        left, right = getattr(first, name), getattr(second, name)
        if left != right:
            if type(left) is type(right) and hasattr(left, "__dataclass_fields__"):
                return first_difference(left, right, f"{path}.{name}")
            return f"{path}.{name} was {left!r}, now {right!r}"
    return "no difference"


def _unreadable(file: Path) -> str:
    """Say why a file gives no content, or nothing where it does.

    Raises:
        OSError: it may give it again, once its permissions or its file system are mended.
    """
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except IsADirectoryError:
        return "is a folder"
    except OSError as error:
        if error.errno == errno.EIO:
            return "cannot be read from its disk"
        raise
    return ""


def _differs(file: Path, expected: str) -> str:
    try:
        found = file_sha256(file)
    except OSError as error:
        if error.errno == errno.EIO:
            return "cannot be read from its disk"
        raise
    if found == expected:
        return ""
    return f"({file.stat().st_size} bytes) has sha256 {found[:12]}, its card says {expected[:12]}"


def _torn_archive(file: Path) -> str:
    """Say what is wrong with what torch.save wrote, by the sums within it."""
    try:
        with zipfile.ZipFile(file) as archive:
            torn = archive.testzip()
    # Of an archive that is cut or changed, zipfile believes sizes, offsets and names, whatever they are by now.
    except Exception as error:
        return f"({file.stat().st_size} bytes) is no whole archive ({error})"
    return f"has another CRC-32 in {torn} than when it was written" if torn else ""


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
