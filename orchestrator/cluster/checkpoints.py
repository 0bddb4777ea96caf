"""The checkpoints that Ray Train keeps of a training: which there are, which are sound, which the next start takes.

Ray Train notes the checkpoints that it has committed in a snapshot, and a run of the same name goes on from the latest
of them. It refuses to start where the snapshot cannot be read or one of them is gone, and takes what it finds in them
for sound. So before each start they are compared with their digests, what is damaged is set aside, and the snapshot is
written again with what is left.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.config import TrainConfig
from model.foreign import parse_json
from model.names import CARD, RESUME, WEIGHTS
from model.network.checkpoint import damages, first_difference, read_card
from orchestrator.errors import UserError

SNAPSHOT = "checkpoint_manager_snapshot.json"
PREFIX = "epoch-"
"""Begins the names of checkpoints; the number of epochs done follows."""
ASIDE = "damaged-"
"""Begins the names that damaged checkpoints get."""
FILES = (WEIGHTS, CARD, RESUME)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """What has to be done before a training can go on, and why."""

    folder: Path
    """Of the training."""
    losses: tuple[str, ...]
    """What is damaged or gone, and how that shows."""
    aside: tuple[str, ...]
    """Damaged checkpoints, which are moved out of the way."""
    kept: tuple[str, ...]
    """Those that stay, oldest first; the training goes on from the last."""

    @property
    def epoch(self) -> int:
        """From which the training goes on; 0 at the beginning."""
        return epoch_of(self.kept[-1]) if self.kept else 0

    def describe(self, *, is_trained: bool = False) -> str:
        """Say what was lost, where it lies then, and what follows for a training that is finished in MLflow or not."""
        moved = ", ".join(f"{self.folder}/{ASIDE}{name}" for name in self.aside)
        if is_trained:
            on = "it is finished, and MLflow has its weights"
        else:
            on = (
                f"it goes on from epoch {self.epoch}" if self.kept else "no sound checkpoint is left, so it begins anew"
            )
        return "; ".join([*self.losses, *([f"set aside as {moved}"] if moved else []), on])


def epoch_of(name: str) -> int:
    """Return how many epochs a checkpoint has done, by its name; 0 for a name that is none of ours."""
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isascii() and number.isdigit() else 0


def last_committed(folder: Path) -> Path | None:
    """Return the newest checkpoint that Ray Train has committed in a training's folder.

    Where its snapshot is damaged, the newest that has all its files. Nothing is compared with a digest.
    """
    try:
        names = _listed(_read_snapshot(folder))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        names = [name for name in _present(folder) if all((folder / name / file).is_file() for file in FILES)]
    return folder / names[-1] if names else None


def committed(folder: Path) -> list[Path]:
    """Return the checkpoints that Ray Train has committed, oldest first; where its snapshot is damaged, all of them."""
    try:
        names = [name for name in _listed(_read_snapshot(folder)) if (folder / name).is_dir()]
    except (OSError, ValueError):
        names = _present(folder)
    return [folder / name for name in names]


def examine(folder: Path, config: TrainConfig | None, *, thorough: bool = False) -> Recovery | None:
    """Find what hinders a training from going on from its last checkpoint; None if nothing does, or it has none.

    That checkpoint is read whole, and older ones where it is damaged, or all of them if `thorough`. Nothing is written.

    Args:
        folder: of the training.
        config: of the training; None where that is not known.
        thorough: whether older checkpoints beside a sound one are looked at.

    Raises:
        UserError: a file cannot be read for now, or is of another version or training.
    """
    losses: list[str] = []
    listed: list[str] = []
    is_noted = (folder / SNAPSHOT).exists()
    try:
        content = _read_snapshot(folder)
        listed = _listed(content)
        if not _suits_ray(content):
            raise ValueError("is none of this version of Ray's")
    except FileNotFoundError:
        losses.append(f"{SNAPSHOT} is missing")
    except ValueError as error:
        losses.append(f"{SNAPSHOT} {error}")
    except OSError as error:
        raise UserError(_cannot_read(folder / SNAPSHOT, error)) from error
    if not losses and not listed:
        return None
    there = _present(folder)
    # With a sound snapshot, what it does not list may be half copied, which is no damage: nobody was told of it.
    known = {*listed} if not losses else {*listed, *there}
    aside: list[str] = []
    sound: list[str] = []
    for name in sorted(known, key=epoch_of, reverse=True):
        if name not in there:
            losses.append(f"{name} is gone")
        elif sound and not thorough:
            sound.append(name)
        elif why := _why_unfit(folder / name, config):
            losses.append(why)
            aside.append(name)
        else:
            sound.append(name)
    if not losses or (not sound and not is_noted):  # a first one was on its way when all ended
        return None
    return Recovery(folder=folder, losses=tuple(losses), aside=tuple(aside), kept=tuple(reversed(sound)))


def recover(recovery: Recovery) -> None:
    """Do what was found to be necessary: move damaged checkpoints away, and tell Ray Train which there are.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = recovery.folder
    try:
        for name in recovery.aside:
            target = folder / f"{ASIDE}{name}"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier time
            (folder / name).rename(target)
        if recovery.kept:
            _write_snapshot(folder, recovery.kept)
        else:
            (folder / SNAPSHOT).unlink(missing_ok=True)
    except OSError as error:
        lost = "; ".join(recovery.losses)
        raise UserError(
            f"{folder} cannot be mended ({error.strerror}): {lost}; let this user write there, or move what is damaged "
            "away"
        ) from error


def _present(folder: Path) -> list[str]:
    """Return the folders of checkpoints, oldest first."""
    names = [path.name for path in folder.glob(f"{PREFIX}*") if epoch_of(path.name) and path.is_dir()]
    return sorted(names, key=epoch_of)


def _why_unfit(checkpoint: Path, config: TrainConfig | None) -> str:
    """Say why a training cannot go on from a checkpoint, nor be scored by its last one; empty where it can."""
    epoch = epoch_of(checkpoint.name)
    try:
        # Nothing goes on from the last one; it is scored.
        damage = next(damages(checkpoint, with_resume=epoch < _num_epochs(checkpoint, config)), None)
    except OSError as error:
        raise UserError(_cannot_read(checkpoint, error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    if damage is not None:
        return str(damage)
    card = read_card(checkpoint)
    if card.epoch != epoch:
        return f"{checkpoint.name} holds the checkpoint of epoch {card.epoch}"
    if config is not None and card.config != config:
        if card.card_sha256:
            raise UserError(
                f"{checkpoint} belongs to another training ({first_difference(card.config, config)}); move "
                f"{checkpoint.parent} away to start anew"
            )
        return f"{checkpoint.name}/{CARD} is of another training ({first_difference(card.config, config)})"
    return ""


def _num_epochs(checkpoint: Path, config: TrainConfig | None) -> float:
    """Return after how many epochs a training ends; where its config is not known, its card says so."""
    if config is None:
        try:
            config = read_card(checkpoint).config
        except ValueError:  # damage, which is found next
            return math.inf
    return config.schedule.epochs


def _cannot_read(path: Path, error: OSError) -> str:
    return (
        f"{error.filename or path} cannot be read ({error.strerror}); let this user read it, or move {path} away to go "
        "on without it"
    )


def _read_snapshot(folder: Path) -> dict[str, Any]:
    """Read what Ray Train has noted.

    Raises:
        ValueError: it is none of Ray's; the message says why, after the file's name.
        OSError: there is none, or it cannot be read.
    """
    try:
        content = parse_json((folder / SNAPSHOT).read_bytes())
    except ValueError:
        is_empty = (folder / SNAPSHOT).stat().st_size == 0
        raise ValueError("is empty" if is_empty else "is no JSON: it was cut or changed") from None
    if not isinstance(content, dict):
        raise ValueError("is of another form than Ray writes")
    return content


def _listed(content: dict[str, Any]) -> list[str]:
    """Return the names of checkpoints in a snapshot, oldest first.

    Raises:
        ValueError: it is of another form.
    """
    try:
        latest = content["latest_checkpoint_result"]
        results = [*content.get("checkpoint_results", []), *([latest] if latest else [])]
        names = {result["checkpoint_dir_name"] for result in results}
        is_known = all(isinstance(name, str) and epoch_of(name) for name in names)
    except (KeyError, TypeError, AttributeError):
        is_known = False
    if not is_known:
        raise ValueError("is of another form than Ray writes")
    return sorted(names, key=epoch_of)


def _suits_ray(content: dict[str, Any]) -> bool:
    """Say whether Ray Train would take a snapshot, as far as its own description of one tells."""
    if "ray" not in sys.modules:
        # Ray reads its variables where it is imported first, and those of a Ray of our own are set right before it is
        # started; besides, it takes seconds. The trial, which has it, looks again.
        return True
    try:
        from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState
    except ImportError:  # a Ray whose inner parts lie elsewhere
        return True
    try:
        state = _CheckpointManagerState(**content)
    except Exception:
        return False
    # Ray 2.52 knows no indices.
    return len(state.checkpoint_results) == len(getattr(state, "checkpoint_report_indices", state.checkpoint_results))


def _write_snapshot(folder: Path, names: Sequence[str]) -> None:
    """Tell Ray Train which checkpoints there are, in its own form, whole or not at all."""
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    content = {
        "ray_version": version("ray"),
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "current_report_index": len(results),
        # Validation that Ray would do beside the training; there is none.
        "pending_training_results": [],
        "pending_validation_specs": [],
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    draft = folder / f"{SNAPSHOT}.new"
    with draft.open("w") as file:
        file.write(json.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / SNAPSHOT)
