"""Which label file of YOLO is an image's, and the split of images with theirs."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from model.data.faults import DataError
from model.data.file_names import find_renamed
from model.data.layouts.files import SplitFiles, is_image

CLASS_FILES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt", "_darknet.labels")


def labelled(
    name: str,
    images: Sequence[str],
    describing: tuple[Path, ...],
    *,
    optional: bool,
    whole_folders: bool = False,
) -> dict[str, SplitFiles]:
    """The split of these images, with the label files that are there; none where it has no image or no label.

    Args:
        name: of the split.
        images: paths.
        describing: the files that name classes and images.
        optional: whether a split without labels is no split, rather than a mistake.
        whole_folders: whether a label file in their folders belongs to one of these images.
    """
    if not images:
        return {}
    label_of = LabelFiles()
    files, found = (dict(zip(images, images, strict=True)), ()) if whole_folders else _renamed(images)
    pairs = sorted({file: label_of(file) or label_of(image) for image, file in files.items()}.items())
    labels = tuple(label for _, label in pairs)
    if not any(labels):
        if optional:
            return {}
        first = pairs[0][0]
        raise DataError(
            f"{describing[0]}: {name} has {len(pairs):,} images and no label file; expected that of {first} at "
            f"{label_file(first)}, or beside it; put them there"
        )
    notes = list(found)
    if left := label_of.left() if whole_folders else []:
        notes.append(f"{len(left):,} label files of {name} have no image, such as {left[0]}{_unread(images, left)}")
    times = Counter(label for label in labels if label is not None)
    shared = [(image, label) for image, label in pairs if label is not None and times[label] > 1]
    if shared:
        notes.append(
            f"{len(shared):,} images of {name} share a label file with another of the same name, such as "
            f"{shared[0][0]} and {shared[1][0]} ({shared[0][1]}): its boxes count in each"
        )
    folder = _common(image for image, _ in pairs)
    start = len(str(folder).rstrip("/")) + 1
    split = SplitFiles(
        name=name,
        format="yolo",
        images=folder,
        annotations=(*describing, *(label for label in labels if label is not None)),
        listed=tuple(image[start:] for image, _ in pairs),
        labels=labels,
        notes=tuple(notes),
    )
    return {name: split}


def label_file(image: str) -> str:
    """Where an image's labels are, by Ultralytics' rule: the last images/ of the path becomes labels/."""
    head, images, tail = image.rpartition("/images/")
    return os.path.splitext(f"{head}/labels/{tail}" if images else image)[0] + ".txt"


class LabelFiles:
    """Where an image's labels are: in labels/ for images/, beside it, or in labels/ there; lists each folder once."""

    def __init__(self) -> None:
        self._listings: dict[str, dict[str, str]] = {}
        """By folder, the names there by their plain form."""
        self._found: dict[str, set[str]] = {}

    def __call__(self, image: str) -> Path | None:
        """The label file of an image, by its path; None where there is none."""
        folder, _, name = os.path.splitext(image)[0].rpartition("/")
        name = _plain(f"{name}.txt")
        for place in dict.fromkeys((label_file(image).rpartition("/")[0], folder, f"{folder}/labels")):
            if place not in self._listings:
                names = os.listdir(place) if os.path.isdir(place) else ()
                self._listings[place] = {_plain(name): name for name in names}
            if (there := self._listings[place].get(name)) is not None:
                self._found.setdefault(place, set()).add(name)
                return Path(f"{place}/{there}")
        return None

    def left(self) -> list[str]:
        """The label files in folders called labels that are no image's."""
        return sorted(
            f"{place}/{name}"
            for place, found in self._found.items()
            if "labels" in place.split("/")
            for name in self._listings[place].keys() - found
            if name.endswith(".txt") and name not in CLASS_FILES
        )


def _unread(images: Iterable[str], labels: Iterable[str]) -> str:
    """Say which files beside the images have these labels and are of a kind that is not read, such as HEIC."""
    stems = {Path(label).stem for label in labels}
    places = sorted({os.path.dirname(image) for image in images})
    files = (f"{place}/{name}" for place in places for name in sorted(os.listdir(place)))
    kinds = [file for file in files if Path(file).stem in stems and not is_image(file) and not file.endswith(".txt")]
    return f"; files of other kinds have their names, such as {kinds[0]}: save pictures as JPEG" if kinds else ""


def _renamed(images: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The file of each image of a list, which may lie under another name, and what to tell of it.

    Found before its size and its labels are looked for under the name.
    """
    folder = _common(images)
    names = [os.path.relpath(image, folder) for image in images]
    found = find_renamed(folder, folder, names)
    files = {
        image: f"{folder}/{found.names[place]}" if place in found.names else image for place, image in enumerate(images)
    }
    return files, found.notes


def _common(images: Iterable[str]) -> Path:
    return Path(os.path.commonpath({os.path.dirname(image) for image in images}))


def _plain(name: str) -> str:
    """A name with its suffix in small letters, and letters with accents as one character: macOS writes two."""
    stem, suffix = os.path.splitext(name)
    return (stem if stem.isascii() else unicodedata.normalize("NFC", stem)) + suffix.lower()
