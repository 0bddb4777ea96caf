"""What was detected, as COCO JSON that says by what: the same checkpoint and settings go on from it."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from model.inference.video import Frame
from model.settings import to_dict
from orchestrator.checkpoint.prediction.files import DETECTIONS, MADE_BY, Job, Source, read_results
from orchestrator.tracking.evaluations.detections import write_json

if TYPE_CHECKING:
    from model.inference.predictor import Found
    from orchestrator.checkpoint.inputs import CheckpointFolder


class Record:
    """What was found on which file, by this run or by an earlier one of the same checkpoint and settings."""

    def __init__(self, job: Job, checkpoint: "CheckpointFolder") -> None:
        self.job, self.card = job, checkpoint.card
        settings = {
            "weights_sha256": checkpoint.card.weights_sha256,
            "inference": to_dict(checkpoint.inference),
            "score": job.score,
            "every": job.every,
        }
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read back
        self.images: dict[int, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
        """By the place of the source: images, or frames, each with its annotations; their ids come when written."""
        self.done: dict[int, dict[str, Any]] = {}
        """By the place of the source: what tells whether file and picture are still the same."""
        self.num_replaced = 0
        """Files beside those of the job of which an earlier run has results here."""
        with suppress(AttributeError, KeyError, TypeError):  # a file that somebody edited: all is done again
            self._take_over(read_results(job.out))

    @property
    def num_images(self) -> int:
        """Pictures and frames."""
        return sum(len(images) for images in self.images.values())

    @property
    def num_detections(self) -> int:
        """On all of them."""
        return sum(len(annotations) for images in self.images.values() for _, annotations in images)

    def add(self, source: Source, found: "Found", frame: Frame | None = None) -> None:
        """Add an image; several threads may, of different sources."""
        height, width = found.size
        image: dict[str, Any] = {"file_name": str(source.path), "height": height, "width": width}
        if frame is not None:
            image |= {"frame": frame.number, "seconds": round(frame.seconds, 4)}
        annotations = []
        for one in found.records():
            left, top, right, bottom = one["box"]
            box = [left, top, right - left, bottom - top]
            area = box[2] * box[3]
            annotations.append(
                {"category_id": one["category_id"], "bbox": box, "area": area, "iscrowd": 0, "score": one["score"]}
            )
        self.images.setdefault(source.place, []).append((image, annotations))

    def end(self, source: Source) -> None:
        """Note that a source is done; one that was removed meanwhile cannot be known again, and keeps its boxes."""
        if state := _state(source):
            self.done[source.place] = state

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        write_json(self.job.out / DETECTIONS, self._to_coco())

    def _to_coco(self) -> dict[str, Any]:
        """Images have their places among the files as ids, from 1, frames the numbers behind those."""
        # First, as other threads go on: what is done by now has all of its images, which are looked at below.
        files = {str(source.path): self.done[source.place] for source in self.job.sources if source.place in self.done}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        videos: list[dict[str, Any]] = []
        next_id = len(self.job.sources) + 1
        for source in self.job.sources:
            if source.film is not None and source.place in self.images:
                complete = str(source.path) in files
                videos.append({"id": source.place, "file_name": str(source.path), "complete": complete})
            for image, found in self.images.get(source.place, ()):
                number = source.place
                if source.film is not None:
                    number, next_id = next_id, next_id + 1
                    image = {**image, "video_id": source.place}
                images.append({"id": number, **image})
                for one in found:
                    annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
        categories = zip(self.card.category_ids, self.card.category_names, strict=True)
        named = [{"id": number, "name": name} for number, name in categories]
        info = {"made_by": MADE_BY, **self.settings, "arguments": list(self.job.arguments), "files": files}
        content = {"info": info, "images": images, "annotations": annotations, "categories": named}
        return content | ({"videos": videos} if videos else {})

    def _take_over(self, earlier: dict[str, Any]) -> None:
        """Keep what an earlier run has done by the same settings, of files and pictures that are still the same."""
        info = earlier.get("info", {})
        files = info.get("files", {})
        self.num_replaced = len(files.keys() - {str(source.path) for source in self.job.sources})
        if any(info.get(name) != value for name, value in self.settings.items()):
            return
        found: dict[int, list[dict[str, Any]]] = {}
        for one in earlier["annotations"]:
            found.setdefault(one["image_id"], []).append(_without(one, "id", "image_id"))
        images: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
        for image in earlier["images"]:
            kept = _without(image, "id", "video_id"), found.get(image["id"], [])
            images.setdefault(image["file_name"], []).append(kept)
        for source in self.job.sources:
            state = _state(source)
            if state and files.get(str(source.path)) == state and (self.job.out / source.target).exists():
                self.images[source.place] = images[str(source.path)]
                self.done[source.place] = state


def _state(source: Source) -> dict[str, Any] | None:
    """What changes with a file and with where its picture goes; None where the file is gone."""
    try:
        stat = source.path.stat()
    except OSError:
        return None
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "drawn": source.target}


def _without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
