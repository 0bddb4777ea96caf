"""A scoring pass whose shards are kept on storage: shared out over processes, and gone on with after a kill."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import DataConfig, InferenceConfig
from model.settings import differences, from_dict, inference_key

if TYPE_CHECKING:
    import torch

    from model.data.split import CocoData
    from model.evaluation.scoring import Scores, Shard
    from model.network.retinanet import RetinaNetConf

VISIBLE_SECONDS = 60.0
"""Seconds that network storage may take to show a file that another node has written."""
Todo = list[tuple[int, tuple[int, ...]]]
"""Places of shards, and of the settings that they lack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """The processes that share a pass, as one of them sees it."""

    rank: int = 0
    size: int = 1
    agree: Callable[[Todo], Todo] = lambda todo: todo
    """Called by all; returns what the first of them gave."""
    wait: Callable[[], None] = lambda: None
    """Called by all; returns once all have called it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What is scored: a checkpoint on a data set under any number of settings, and where its shards are kept."""

    detector: "RetinaNetConf"
    """On its device."""
    weights_sha256: str
    data: "CocoData"
    config: DataConfig
    """Input size."""
    settings: Sequence[InferenceConfig]
    keep: Path
    """A folder that all processes see; what different passes keep in it does not mix."""
    num_loader_processes: int = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What a part follows from, beside its images and its setting: the code that scores is one of them."""
        return {
            "weights_sha256": self.weights_sha256,
            "data_fingerprint": self.data.fingerprint,
            "edges": [self.config.short_edge, self.config.long_edge],
            "device": _name(next(self.detector.parameters()).device),
            "code": _code(),
        }

    @property
    def folder(self) -> Path:
        """Where its shards are."""
        return self.keep / _digest(self.identity)


def score_missing(
    work: Pass, team: Team | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Score what is not on the storage, each process its share; returns once all of it is there.

    A shard is written as soon as it is scored, and never scored again for a setting that it has. A file that is cut
    off or damaged does not count.

    Args:
        work: what to score.
        team: the processes that make this very call; None for this one alone.
        progress: called with (images done by all processes, images in all).
    """
    from model.evaluation.parts import write_parts
    from model.evaluation.scoring import score_shards, shards

    team = team or Team()
    everything = shards(work.data, work.config)
    # One list for all: another node may see the storage later, and would deal out other shards.
    todo = team.agree(_missing(work, everything) if team.rank == 0 else [])
    work.folder.mkdir(parents=True, exist_ok=True)
    total, sizes = len(work.data), {place: len(everything[place]) for place, _ in todo}
    others = {
        _file(work, everything[place], wanted): sizes[place]
        for number, (place, wanted) in enumerate(todo)
        if number % team.size != team.rank
    }
    there, theirs = total - sum(sizes.values()), 0

    def tell(done: int, _: int = 0) -> None:
        progress(there + done + theirs, total)

    tell(0)
    # Shards that lack the same settings share a stream, whose loader reads ahead from one into the next.
    for wanted, group in groupby(sorted(todo[team.rank :: team.size], key=_wanted), key=_wanted):
        places = [place for place, _ in group]
        settings = [work.settings[number] for number in wanted]
        results = score_shards(
            work.detector,
            work.data,
            [everything[place] for place in places],
            settings,
            work.config,
            num_loader_processes=work.num_loader_processes,
            progress=tell,
        )
        for place, parts in zip(places, results, strict=True):
            # Written at once: what is killed later has lost only the shard that it was at.
            write_parts(_file(work, everything[place], wanted), parts, _about(work, everything[place], settings))
            theirs = sum(size for file, size in others.items() if file.exists())
        there += sum(sizes[place] for place in places)
    team.wait()
    progress(total, total)


def scores_of(work: Pass, settings: Sequence[InferenceConfig], *, calibrating: bool = True) -> "Iterator[Scores]":
    """Put settings together from their shards, one after the other.

    Args:
        work: what was scored.
        settings: of it.
        calibrating: whether scores are compared with what they estimate, for `Scores.calibration`.

    Raises:
        ValueError: a shard is missing, or damaged.
    """
    from model.evaluation.calibration.errors import calibration
    from model.evaluation.coco.metrics import evaluate
    from model.evaluation.parts import merge, read_part
    from model.evaluation.scoring import Scores, shards

    held = _await(work, [_name_of(work, shard) for shard in shards(work.data, work.config)], settings)
    for setting in settings:
        key = inference_key(setting)
        whole = merge([read_part(*rows[key]) for rows in held.values()])
        yield Scores(
            inference=setting,
            metrics=evaluate(work.data, whole.detections),
            detections=whole.detections,
            misalignment=whole.misalignment,
            calibration=calibration(work.data, whole.detections) if calibrating else {},
        )


def free(work: Pass, is_recorded: Callable[[InferenceConfig], bool]) -> None:
    """Delete the shards of a pass, but for those with a setting whose scores are not recorded elsewhere."""
    from model.evaluation.parts import read_about

    for file in work.folder.glob("*.parquet"):
        if all(is_recorded(from_dict(InferenceConfig, setting)) for setting in read_about(file)["inference"]):
            file.unlink()
    if not any(work.folder.glob("*.parquet")):
        shutil.rmtree(work.folder, ignore_errors=True)


def _missing(work: Pass, everything: "Sequence[Shard]") -> Todo:
    """The largest first, so that shares differ little."""
    held = _held(work.folder, whole=True)
    keys = [inference_key(setting) for setting in work.settings]
    todo = []
    for place, shard in enumerate(everything):
        there = held.get(_name_of(work, shard), {})
        if wanted := tuple(number for number, key in enumerate(keys) if key not in there):
            todo.append((place, wanted))
    return sorted(todo, key=lambda one: -len(everything[one[0]]))


def _wanted(one: tuple[int, tuple[int, ...]]) -> tuple[int, ...]:
    return one[1]


def _about(work: Pass, shard: "Shard", settings: Sequence[InferenceConfig]) -> dict[str, Any]:
    """The metadata of a shard's file."""
    return work.identity | {
        "shard": _name_of(work, shard),
        "images": _image_ids(work, shard),
        "settings": [inference_key(setting) for setting in settings],
        "inference": [differences(setting) for setting in settings],
    }


def _held(folder: Path, *, whole: bool = False) -> dict[str, dict[str, tuple[Path, int]]]:
    """Find file and row by shard and setting; with `whole`, files are read in full and damaged ones deleted."""
    from model.evaluation.parts import read_about

    # Settings of one shard may stand in several files, as they may have been asked for at different times.
    found: dict[str, dict[str, tuple[Path, int]]] = {}
    for file in sorted(folder.glob("*.parquet")):
        try:
            about = read_about(file, whole=whole)
        except ValueError:
            if whole:
                file.unlink(missing_ok=True)
            continue
        rows = found.setdefault(about["shard"], {})
        rows |= {key: (file, row) for row, key in enumerate(about["settings"])}
    return found


def _await(
    work: Pass, names: Sequence[str], settings: Sequence[InferenceConfig]
) -> dict[str, dict[str, tuple[Path, int]]]:
    # Network storage shows a file of another node late; with a barrier alone, this node would miss some.
    deadline, keys = time.monotonic() + VISIBLE_SECONDS, set(map(inference_key, settings))
    while True:
        held = _held(work.folder)
        absent = [name for name in names if not keys <= held.get(name, {}).keys()]
        if not absent:
            return {name: held[name] for name in names}
        if time.monotonic() > deadline:
            raise ValueError(
                f"{work.folder} lacks {len(absent)} of {len(names)} scored shards; do all nodes see this storage, or "
                "was something deleted there? What is there stays, and the next try goes on from it"
            )
        time.sleep(0.5)


def _file(work: Pass, shard: "Shard", wanted: Sequence[int]) -> Path:
    keys = sorted(inference_key(work.settings[place]) for place in wanted)
    return work.folder / f"{_name_of(work, shard)}-{_digest(keys)}.parquet"


def _name_of(work: Pass, shard: "Shard") -> str:
    return _digest(_image_ids(work, shard))


def _image_ids(work: Pass, shard: "Shard") -> list[int]:
    ids: list[int] = work.data.image_ids[list(shard)].tolist()
    return ids


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """sha256 of all sources of `model`: other code may find something else under the same settings."""
    import model

    sources = sorted(Path(model.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def _name(device: "torch.device") -> str:
    import torch

    from model.network.checkpoint import device_name

    return f"{device_name(device)}, torch {torch.__version__}"
