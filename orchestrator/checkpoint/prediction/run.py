"""The pass over photographs and videos: each is written with its boxes drawn in, on all cores."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.inference.video import Frame, PicturesWriter, VideoWriter, Writer
from model.settings import to_dict
from orchestrator.checkpoint.prediction.files import DETECTIONS, Job, Source
from orchestrator.checkpoint.prediction.record import Record
from orchestrator.errors import Say, UserError
from orchestrator.process import interruptible
from orchestrator.tracking.artifacts import Progress

if TYPE_CHECKING:
    from PIL import Image

    from model.inference.predictor import Found, Predictor
    from orchestrator.checkpoint.inputs import CheckpointFolder


WRITE_SECONDS = 30.0
"""How often detections are written while there are more to come."""


def predict(checkpoint: "CheckpointFolder", job: Job, say: Say, progress: Progress = lambda done, total: None) -> int:
    """Detect, on as many images at a time as there are cores; returns how many files could not be read.

    Interrupted, also by SIGTERM, it writes the detections of what is drawn by then, and goes on from there when it is
    called again; a film that was not ended is begun anew. Killed, it has those of half a minute before.

    Args:
        checkpoint: what detects, with its inference settings.
        job: on what.
        say: told what is skipped, and what was found.
        progress: of the images and frames.

    Raises:
        UserError: the checkpoint is damaged or says NaN, or the disk is full.
    """
    from model.inference.predictor import load
    from model.network.finite import NonFiniteError

    record = Record(job, checkpoint)
    before = record.num_images
    left = [source for source in job.sources if source.place not in record.done]
    if len(left) < len(job.sources):
        say(f"{len(job.sources) - len(left)} of {len(job.sources)} files were done before, and are kept")
    if record.num_replaced:
        others = f"{record.num_replaced} other file{'s' * (record.num_replaced != 1)}"
        say(f"the results of {others} in {job.out / DETECTIONS} are replaced; --out names another folder")
    try:
        predictor = load(checkpoint.path, None, to_dict(checkpoint.inference))
    except ValueError as error:
        raise UserError(str(error)) from error
    run = _Run(job, predictor, record)
    if not (job.out / DETECTIONS).exists():
        record.write()  # by which the folder is known as this job's, should nothing else ever be written
    begin = time.perf_counter()
    next_write = time.monotonic() + WRITE_SECONDS
    try:
        with interruptible(), closing(run.through(left, say)) as steps:
            for done in steps:
                progress(before + done, max(before + done, job.num_images))
                if (now := time.monotonic()) >= next_write:
                    record.write()
                    took = time.monotonic() - now
                    next_write = now + max(WRITE_SECONDS, 20 * took)  # at most a twentieth of the time
    except BaseException as error:  # Ctrl-C, a full disk: what is drawn is kept with its boxes
        if record.images:
            record.write()
            say(f"{len(record.done)} of {len(job.sources)} files are done: {job.out / DETECTIONS}")
        if isinstance(error, NonFiniteError):
            raise UserError(str(error)) from error
        raise
    speed = f", {run.num_images / (time.perf_counter() - begin):.1f} images/s" if run.num_images else ""
    record.write()
    images = f"{record.num_images} image{'s' * (record.num_images != 1)}"
    say(f"{record.num_detections} detections on {images}{speed}: {job.out / DETECTIONS}")
    if run.best_scores and not record.num_detections:
        best = max(run.best_scores)
        say(
            f"no score reaches {job.score:g}; the best is {best:.2f}: --score {math.floor(best * 10) / 10:g} shows more"
        )
    return run.broken


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Item:
    """One image on its way through the threads: a file, a frame, or the end of a film."""

    source: Source
    frame: Frame | None = None
    failure: str = ""
    """Why there are no more frames."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """One image with what was found on it."""

    found: "Found"
    drawn: "Image.Image | None"
    """None where it is written already."""


class _Run:
    """One pass over the sources: threads decode, detect, draw and write pictures; films are written by the caller."""

    def __init__(self, job: Job, predictor: "Predictor", record: "Record") -> None:
        self.job, self.predictor, self.record = job, predictor, record
        self.num_images = self.broken = 0
        self.best_scores: list[float] = []
        self.writer: Writer | None = None
        self.given_up: set[int] = set()
        """The places of films that cannot be written any further."""

    def through(self, sources: Sequence[Source], say: Say) -> Generator[int, None, None]:
        """Yield the number of images done, after each."""
        with closing(self.predictor.in_parallel(self._look, self._items(sources))) as results:
            try:
                for item, outcome in results:
                    if item.source.place in self.given_up:
                        continue
                    if item.source.film is not None:
                        outcome = self._append(item, outcome)
                    if isinstance(outcome, str):
                        self.broken += 1
                        frames = len(self.record.images.get(item.source.place, ()))
                        what = f"the rest of {item.source.path} after {frames} frames" if frames else item.source.path
                        say(f"skipped {what}: {outcome}")
                    if isinstance(outcome, _Seen):
                        self.num_images += 1
                        yield self.num_images
            finally:
                if self.writer is not None:  # the film is whole up to here, and can be looked at
                    self.writer.close()

    def _items(self, sources: Sequence[Source]) -> Iterator[_Item]:
        """Yield pictures undecoded, as threads do that, and frames, which only one thread can decode."""
        for source in sources:
            failure = source.problem
            if source.film is not None:
                try:
                    for frame in source.film.frames(self.job.every):
                        yield _Item(source=source, frame=frame)
                except ValueError as error:
                    failure = str(error)
            yield _Item(source=source, failure=failure)

    def _look(self, item: _Item) -> "tuple[_Item, _Seen | str | None]":
        """Detect and draw; a text says why that cannot be done, None stands for the end of a film."""
        from model.data.files.decoding import upright
        from model.inference.drawing import draw

        source = item.source
        if item.failure or (source.film is not None and item.frame is None):
            return item, item.failure or None
        try:
            picture = item.frame.picture if item.frame else upright(source.path)
        except ValueError as error:
            return item, str(error)
        found = self.predictor.detect(picture)
        self.best_scores.extend(found.scores[:1].tolist())
        found = found.above(self.job.score)
        classes = self.predictor.card.category_names
        drawn = draw(picture, found.boxes, found.labels, found.scores, classes=classes)
        if item.frame is not None:
            return item, _Seen(found=found, drawn=drawn)
        target = self.job.out / source.target
        partial = target.with_name(f".{source.place}.partial")  # which is no longer than a name may be
        with _writing(target):
            drawn.save(partial, format="JPEG", quality=90)
            partial.replace(target)
        self.record.add(source, found)
        self.record.end(source)
        return item, _Seen(found=found, drawn=None)

    def _append(self, item: _Item, outcome: "_Seen | str | None") -> "_Seen | str | None":
        """Take the next frame of a film, or its end; returns the outcome, or why the film cannot be written on."""
        source, target = item.source, self.job.out / item.source.target
        try:
            with _writing(target):
                if isinstance(outcome, _Seen) and outcome.drawn and item.frame and source.film:
                    if self.writer is None:
                        rate = source.film.frames_per_s / self.job.every
                        self.writer = VideoWriter(target, rate) if target.suffix else PicturesWriter(target)
                    self.writer.add(outcome.drawn, item.frame)
                    self.record.add(source, outcome.found, item.frame)
                elif self.writer is not None:
                    writer, self.writer = self.writer, None
                    writer.close()
                    if outcome is None:
                        self.record.end(source)
        except ValueError as error:
            self.given_up.add(source.place)
            with suppress(ValueError), _writing(target):
                if self.writer is not None:
                    self.writer.close()
            self.writer = None
            return str(error)
        return outcome


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Say of an error of the disk which file it is about."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}); name another folder with --out") from error
