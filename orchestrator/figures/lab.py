"""The misalignment lab: a few images and the candidates of several heads, as JSON and as a section of a page."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model.config import InferenceConfig
from orchestrator.figures.page import Section
from orchestrator.figures.templating import fill

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from model.config import DataConfig
    from model.data.split import CocoData
    from model.evaluation.examples.candidates import Candidates
    from model.evaluation.misalignment import Misalignment
    from model.network.retinanet import RetinaNetConf

FORMAT = 1
"""Rises whenever a page has to read the JSON in another way."""
NUM_IMAGES = 6
LONGEST = 640
"""Pixels of the longer side of an image on the page."""
MOST_CLASSES = 2**16
TITLE = "Misalignment lab"
Lab = dict[str, Any]
"""What the page reads: `images` with their objects, and `heads` with the candidates of each image."""


def make_lab(
    label: str, detector: "RetinaNetConf", data: "CocoData", indices: Sequence[int], config: "DataConfig"
) -> Lab:
    """Gather all that the page shows of one head.

    Args:
        label: of the head.
        detector: on its device.
        data: the images; their categories must be the detector's.
        indices: of those that are shown, by their places in the data set.
        config: input size.
    """
    from model.evaluation.examples.candidates import EXPONENTS, NMS_IOUS, candidates

    if len(data.category_names) > MOST_CLASSES:
        raise ValueError(f"the page shows {MOST_CLASSES} classes at most, and these are {len(data.category_names)}")
    found = candidates(detector, data, indices, config)
    has_confidence = detector.config.confidence is not None
    return {
        "format": FORMAT,
        "fingerprint": data.fingerprint,
        "categories": list(data.category_names),
        "exponents": EXPONENTS,
        "nms_ious": NMS_IOUS,
        "max_detections": InferenceConfig().max_detections,
        "images": [_image(data, index) for index in indices],
        "heads": [
            {"label": label, "has_confidence": has_confidence, "candidates": [_columns(of_image) for of_image in found]}
        ],
    }


def instructive_indices(data: "CocoData", counts: "Sequence[Misalignment]") -> list[int]:
    """Pick images on which NMS dropped the most better boxes, and where these are few, others with objects."""
    import numpy as np

    from orchestrator.figures.pictures import example_indices

    images = np.concatenate([one.dropped.image_ids for one in counts])
    dropped = np.bincount(np.searchsorted(data.image_ids, images), minlength=len(data))
    most = [int(index) for index in np.argsort(-dropped, kind="stable") if dropped[index]]
    return sorted(list(dict.fromkeys([*most, *example_indices(data, NUM_IMAGES)]))[:NUM_IMAGES])


def join(labs: Sequence[Lab]) -> Lab | None:
    """Put the heads of several labs side by side; those that show other images than the first are left out."""
    if not labs:
        return None
    first = labs[0]
    # The page has one set of images and controls for all heads.
    same = [lab for lab in labs if all(lab.get(name) == first[name] for name in first if name != "heads")]
    return first | {"heads": [head for lab in same for head in lab["heads"]]}


def lab_section(lab: Lab) -> Section:
    """Render the part of a page on which one picks head, image and exponent, and sees the boxes change."""
    return Section(TITLE, "lab", fill("lab.html", title=TITLE, lab=lab))


def _image(data: "CocoData", index: int) -> dict[str, Any]:
    from model.evaluation.counting import objects_of

    height, width = (int(side) for side in data.sizes[index])
    objects, image_id = objects_of(data, index), int(data.image_ids[index])
    return {
        # JavaScript's numbers are floats of 64 bits, so that the last digits of a larger one would be lost.
        "id": image_id if abs(image_id) < 2**53 else str(image_id),
        "width": width,
        "height": height,
        "picture": f"data:image/jpeg;base64,{base64.b64encode(_jpeg(data, index)).decode()}",
        "boxes": _coded(objects.boxes, "<f4"),
        "labels": _coded(objects.labels, "<u2"),
    }


def _jpeg(data: "CocoData", index: int) -> bytes:
    from model.data.files.decoding import decode_image

    small = decode_image(data, index)
    small.thumbnail((LONGEST, LONGEST))
    coded = io.BytesIO()
    small.save(coded, "JPEG", quality=85)
    return coded.getvalue()


def _columns(found: "Candidates") -> dict[str, str]:
    return {
        "anchors": _coded(found.anchors, "<u4"),
        "labels": _coded(found.labels, "<u2"),
        "levels": _coded(found.levels, "u1"),
        "boxes": _coded(found.boxes, "<f4"),
        "class_scores": _coded(found.class_scores, "<f4"),
        "confidences": _coded(found.confidences, "<f4"),
        "exponents": _coded(found.exponents, "<u4"),
    }


def _coded(values: "NDArray[Any]", kind: "DTypeLike") -> str:
    # Little-endian (<), as JavaScript's typed arrays are on x86 and ARM.
    return base64.b64encode(values.astype(kind).tobytes()).decode()
