"""Detection on photographs: each is written with its boxes drawn in, and all detections as COCO JSON."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.settings import to_dict
from orchestrator.checkpoint.inputs import CheckpointFolder, no_progress
from orchestrator.errors import Say, UserError
from orchestrator.tracking.artifacts import Progress
from orchestrator.tracking.detections import write_json

if TYPE_CHECKING:
    from model.inference.predictor import Found
    from model.network.checkpoint import Card

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
"""Files of a folder that are taken for images."""
DETECTIONS = "detections.json"


def predict(
    checkpoint: CheckpointFolder,
    images: Sequence[str],
    out: Path,
    score: float,
    say: Say,
    progress: Progress = no_progress,
) -> int:
    """Detect on images, folders of images and globs; returns how many could not be read.

    Args:
        checkpoint: what detects, with its inference settings.
        images: of each, a file, a folder or a pattern.
        out: the folder to write to.
        score: the least that a detection is shown and written with, 0 to 1.
        say: told what is skipped, and what was found.
        progress: of the images.

    Raises:
        UserError: the checkpoint is damaged, or there is nothing to detect on.
    """
    from model.data.files.decoding import upright
    from model.inference.drawing import draw
    from model.inference.predictor import load

    # A file may be named, and lie in a folder that is named, too.
    files = list(dict.fromkeys(file for image in images for file in _files(image)))
    targets = _targets(files, out)
    try:
        predictor = load(checkpoint.path, None, to_dict(checkpoint.inference))
    except ValueError as error:
        raise UserError(str(error)) from error
    found: dict[int, tuple[Path, Found]] = {}
    broken = 0
    for place, (file, target) in enumerate(zip(files, targets, strict=True), start=1):
        try:
            picture = upright(file)
        except ValueError as error:
            say(f"skipped {file}: {error}")
            broken += 1
            continue
        (all_found,) = predictor(picture)
        kept = all_found.above(score)
        try:
            out.mkdir(parents=True, exist_ok=True)
            draw(picture, kept.boxes, kept.labels, kept.scores).save(target)
        except OSError as error:
            raise UserError(f"--out: cannot write {target} ({error.strerror}); name another folder") from error
        found[place] = (file, kept)
        progress(place, len(files))
    write_json(out / DETECTIONS, _coco(checkpoint.card, found))
    count = sum(len(kept.scores) for _, kept in found.values())
    say(f"{count} detections on {len(found)} images: {out / DETECTIONS}")
    return broken


def _files(image: str) -> Iterator[Path]:
    """The files that an argument stands for, by name."""
    path = Path(image)
    if path.is_file():
        yield path
        return
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise UserError(f"{image}: no image in this folder, expected {', '.join(SUFFIXES)}")
        yield from inside
        return
    matches = sorted(Path(match) for match in glob.glob(image, recursive=True) if Path(match).is_file())
    if not matches:
        raise UserError(f"{image}: no such image, folder or pattern")
    yield from matches


def _targets(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each picture goes; files of one name in several folders are numbered."""
    taken: set[str] = set()
    targets = []
    for file in files:
        stem, number = file.stem, 1
        while stem in taken:
            number += 1
            stem = f"{file.stem}-{number}"
        taken.add(stem)
        targets.append(out / f"{stem}.jpg")
    # Found before anything is detected: --out may be the folder of the images.
    sources = {file.resolve() for file in files}
    for target in targets:
        if target.resolve() in sources:
            raise UserError(f"--out {out}: {target} would be overwritten; name another folder")
    return targets


def _coco(card: "Card", found: "dict[int, tuple[Path, Found]]") -> dict[str, Any]:
    """Images by their place among the arguments, from 1, and their detections as annotations with a score."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, (file, kept) in found.items():
        height, width = kept.size
        images.append({"id": place, "file_name": str(file), "height": height, "width": width})
        for record in kept.records():
            left, top, right, bottom = record["box"]
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": place,
                    "category_id": record["category_id"],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": record["score"],
                }
            )
    categories = zip(card.category_ids, card.category_names, strict=True)
    named = [{"id": number, "name": name} for number, name in categories]
    return {"images": images, "annotations": annotations, "categories": named}
