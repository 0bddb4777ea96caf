"""The log of a training: its events as JSON lines in its folder, read back as dataclasses, and said in sentences.

The folder is on storage that every node sees. The driver and the first worker append to the log, `rnc logs` prints it
as sentences, and `rnc status`, the live view and Prometheus read its fields. Each line is an object with its `time`
(ISO 8601, UTC), its `kind`, and the fields of that kind.
"""

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from model.names import IMAGES_PER_S, LOSS, VAL
from model.settings import read_settings, to_dict

TRAINING_LOG = "training.jsonl"
LOG_SECONDS = 60.0
"""How long a scoring pass may go on before its progress is logged again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The workers of a training were started."""

    num_workers: int
    process: int
    """Of the first worker, which also writes the log."""
    host: str
    epoch: int
    """From which it goes on; 0 at the beginning."""
    num_epochs: int
    output: str = ""
    """The file that the first worker prints to; empty where it prints to none."""
    num_loaders: int = 0
    """Processes of each worker that read images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOff:
    """The processes of the training ended without an `End`, killed or lost; written by the start that follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """Images that had been trained on after the checkpoint from which a training goes on."""

    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """Checkpoints were damaged or gone when the training was to go on."""

    text: str
    epoch: int
    """From which it goes on; 0 at the beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """An epoch ended."""

    epoch: int
    """The first is 1."""
    num_epochs: int
    loss: float | None = None
    ap: float | None = None
    """Of the last validation, 0 to 100."""
    images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How far the scoring pass over a split is."""

    num_done: int
    num_images: int
    split: str
    num_settings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scoring pass over a split ended, and its numbers are recorded."""

    split: str
    num_settings: int


EndState = Literal["finished", "failed", "interrupted", "cancelled", "stopped"]
"""Cancelled is also what `rnc submit --prune` ends; stopped is what its search decided against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The training ended, of itself or not."""

    state: EndState
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A remark, which leaves the state of the training as it was."""

    text: str


Event = Start | CutOff | Again | Lost | Epoch | Scoring | Scored | End | Note
KINDS: dict[str, type[Event]] = {
    "start": Start,
    "cut_off": CutOff,
    "again": Again,
    "lost": Lost,
    "epoch": Epoch,
    "scoring": Scoring,
    "scored": Scored,
    "end": End,
    "note": Note,
}
"""How a line of the log names its event."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a training's log."""

    time: datetime
    """With a time zone."""
    event: Event


def write_event(folder: Path, event: Event) -> None:
    """Append an event to the log of a training's folder; a full or missing disk must not end a training."""
    (kind,) = (name for name, known in KINDS.items() if type(event) is known)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    # In ASCII, so that no character of a message is a line's end to whoever splits the file into lines.
    line = json.dumps({"time": now, "kind": kind, **to_dict(event)}) + "\n"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / TRAINING_LOG).open("ab+") as file:
            # One write call, since driver and first worker append to the same file; and on a line of its own, since a
            # writer that was killed may have left half of one.
            file.write(b"\n" * _is_torn(file) + line.encode())


def log_start(folder: Path, num_workers: int, epoch: int, num_epochs: int, num_loaders: int = 0) -> None:
    """Log that this process is the first of the workers, and first, if what ran before was cut off, that it was."""
    if is_open(folder):
        write_event(folder, CutOff())
    start = Start(
        num_workers=num_workers,
        process=os.getpid(),
        host=socket.gethostname(),
        epoch=epoch,
        num_epochs=num_epochs,
        output=_output(),
        num_loaders=num_loaders,
    )
    write_event(folder, start)


def log_epoch(folder: Path, epoch: float, num_epochs: int, metrics: Mapping[str, float]) -> None:
    """Log that an epoch ended, with the latest metrics that a reader looks for."""
    named = {"loss": LOSS, "ap": f"{VAL}AP", "images_per_s": IMAGES_PER_S}
    # NaN, as AP is where a split has no boxes, is not JSON.
    numbers = {name: metrics[of] for name, of in named.items() if math.isfinite(metrics.get(of, math.nan))}
    write_event(folder, Epoch(epoch=round(epoch), num_epochs=num_epochs, **numbers))


class ScoringLog:
    """Logs how far a scoring pass is, ten times in all or once a minute."""

    def __init__(self, folder: Path, split: str, num_settings: int) -> None:
        """Begin a pass over a split."""
        self._folder, self._split, self._num_settings = folder, split, num_settings
        self._tenth, self._told = -1, 0.0

    def tell(self, num_done: int, num_images: int) -> None:
        """Log (images done, images in all) if it is time for it."""
        tenth, now = 10 * num_done // max(1, num_images), time.monotonic()
        if tenth > self._tenth or now - self._told > LOG_SECONDS:
            self._tenth, self._told = tenth, now
            event = Scoring(
                num_done=num_done, num_images=num_images, split=self._split, num_settings=self._num_settings
            )
            write_event(self._folder, event)


def read_log(folder: Path) -> list[Entry]:
    """Return what the log of a training's folder holds, oldest first; nothing where there is none."""
    return entries_of(_lines(folder))


def entries_of(lines: Iterable[str]) -> list[Entry]:
    """Read lines of a log; one that is half written, or of a kind not known here, is passed over."""
    return [entry for line in lines if (entry := _entry(line)) is not None]


def losses_of(folder: Path) -> tuple[int, int]:
    """Return how often a training was cut off and started again, and how many images it was trained on again."""
    events = [entry.event for entry in read_log(folder)]
    num_cut_off = sum(isinstance(event, CutOff) for event in events)
    return num_cut_off, sum(event.num_images for event in events if isinstance(event, Again))


def losses_since(folder: Path, since: datetime) -> list[str]:
    """Return what was lost of a training's checkpoints after a time."""
    return [entry.event.text for entry in read_log(folder) if entry.time > since and isinstance(entry.event, Lost)]


def epoch_reached(folder: Path) -> int:
    """Return the last epoch that ended since the last start; 0 where none did."""
    for entry in reversed(read_log(folder)):
        if isinstance(entry.event, Start | Lost):
            return 0
        if isinstance(entry.event, Epoch):
            return entry.event.epoch
    return 0


def scoring_of(folder: Path) -> str:
    """Say how far the scoring is that a training is in; empty where it is not being scored."""
    last = _last_event(folder)
    return _progress(last) if isinstance(last, Scoring) else ""


def is_open(folder: Path) -> bool:
    """Whether a training was started and, as far as its log tells, has not come to an end of any kind."""
    last = _last_event(folder)
    return last is not None and not isinstance(last, Scored | End)


def ended_early(folder: Path) -> datetime | None:
    """Return when a training ended unfinished; None where its log does not end so."""
    last = _last_entry(folder)
    if last is None or not isinstance(last.event, End) or last.event.state == "finished":
        return None
    return last.time


def output_of(folder: Path) -> Path | None:
    """Return the file that the first worker of the last start prints to."""
    outputs = [entry.event.output for entry in read_log(folder) if isinstance(entry.event, Start)]
    return next((Path(output) for output in reversed(outputs) if output), None)


def sentence(event: Event) -> str:
    """Say in one line what happened."""
    match event:
        case Start():
            whole = event.num_epochs
            begun = f"goes on from epoch {event.epoch} of {whole}" if event.epoch else f"begins {whole} epochs"
            workers = f"{_count(event.num_workers, 'worker')}, the first as process {event.process} on {event.host}"
            if event.num_loaders:
                workers += f", {_count(event.num_loaders, 'loader process', 'loader processes')} each"
            return f"started on {workers}; {begun}" + (f"; output in {event.output}" if event.output else "")
        case CutOff():
            return "what ran before ended without a word: its process was killed, or its node lost"
        case Again():
            return f"{event.num_images:,} images are trained again"
        case Epoch():
            forms = (("loss {:.3f}", event.loss), ("AP {:.1f}", event.ap), ("{:.1f} images/s", event.images_per_s))
            numbers = [form.format(number) for form, number in forms if number is not None]
            return ", ".join([f"epoch {event.epoch}/{event.num_epochs}", *numbers])
        case Scoring():
            return f"scoring: {_progress(event)}"
        case Scored():
            return f"scored under {_count(event.num_settings, 'setting')} on {event.split}"
        case End():
            return " ".join(f"{'failed: ' if event.state == 'failed' else ''}{event.reason}".split())
        case Lost():
            return f"checkpoints were lost: {' '.join(event.text.split())}"
        case Note():
            return " ".join(event.text.split())


def _entry(line: str) -> Entry | None:
    try:
        fields = json.loads(line)
        moment, kind = datetime.fromisoformat(fields.pop("time")), KINDS[fields.pop("kind")]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    event, _ = read_settings(kind, fields)
    return None if event is None else Entry(moment, event)


def _last_event(folder: Path) -> Event | None:
    last = _last_entry(folder)
    return None if last is None else last.event


def _last_entry(folder: Path) -> Entry | None:
    """Return the last event that is no note, nor tells of lost checkpoints, which may be noticed at any time."""
    entries = (_entry(line) for line in reversed(_lines(folder)))
    return next((entry for entry in entries if entry is not None and not isinstance(entry.event, Note | Lost)), None)


def _lines(folder: Path) -> list[str]:
    try:
        # Whatever bytes a torn line holds, the other lines are still read.
        return (folder / TRAINING_LOG).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _is_torn(file: IO[bytes]) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _progress(event: Scoring) -> str:
    settings = _count(event.num_settings, "setting")
    return f"{event.num_done:,} of {event.num_images:,} images of {event.split}, {settings}"


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"1 {noun}" if number == 1 else f"{number:,} {nouns or noun + 's'}"


def _output() -> str:
    """The file that this process prints to, if it is one."""
    with suppress(OSError):
        # Ray points the standard output of a worker to a file of its session.
        path = os.readlink("/proc/self/fd/1")
        return path if path.startswith("/") and Path(path).is_file() else ""
    return ""
