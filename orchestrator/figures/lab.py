"""The misalignment lab: a few images and the candidates of several heads, as JSON and as a section of a page."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import InferenceConfig
from orchestrator.figures.page import Section

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from model.config import DataConfig
    from model.data.split import CocoData
    from model.evaluation.candidates import Candidates
    from model.evaluation.misalignment import Misalignment
    from model.network.retinanet import RetinaNetConf

FORMAT = 1
"""Rises whenever a page has to read the JSON in another way."""
NUM_IMAGES = 6
LONGEST = 640
"""Pixels of the longer side of an image on the page."""
HERE = Path(__file__).parent
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
    from model.evaluation.candidates import EXPONENTS, NMS_IOUS, candidates

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
    same = [lab for lab in labs if all(lab.get(name) == first[name] for name in first if name != "heads")]
    return first | {"heads": [head for lab in same for head in lab["heads"]]}


def lab_section(lab: Lab) -> Section:
    """Render the part of a page on which one picks head, image and exponent, and sees the boxes change."""
    data = json.dumps(lab, separators=(",", ":")).replace("<", "\\u003c")
    script = (HERE / "lab.js").read_text(encoding="utf-8")
    style = (HERE / "lab.css").read_text(encoding="utf-8")
    html = (
        f'<section id="lab" class="lab">\n<h2>{TITLE}</h2>\n<p>{CAPTION}</p>\n'
        "<noscript><p>This part of the page needs JavaScript.</p></noscript>\n"
        f"<style>{style}</style>\n"
        f'<script type="application/json">{data}</script>\n{_BODY}\n<script>{script}</script>\n</section>'
    )
    return Section(TITLE, "lab", html)


TITLE = "Misalignment lab"
CAPTION = (
    "What NMS keeps of an image, and what it throws away although it is better placed. NMS ranks boxes by "
    "p<sup>1-e</sup> c<sup>e</sup> with class score p, confidence c and exponent e: a good rank tells well-placed "
    "boxes from others."
)
_BODY = """
<div class="bench" hidden>
<div class="pick">
<fieldset class="segments" data-heads><legend>Head</legend></fieldset>
<label class="slider">Confidence exponent e <output data-of="exponent"></output>
<input type="range" data-setting="exponent" min="0" max="1" step="0.05" value="0.4"></label>
<p class="hint" data-why hidden>This head has no confidence branch: its boxes are ranked by the class score alone.</p>
</div>
<figure class="stage"><svg role="img"></svg>
<figcaption role="status" data-caption></figcaption>
<fieldset class="thumbnails" data-images><legend>Image</legend></fieldset>
</figure>
<div class="more">
<label class="slider">NMS above IoU <output data-of="nms"></output>
<input type="range" data-setting="nms" min="0.3" max="0.9" step="0.1" value="0.5"></label>
<label class="slider">Show the best <output data-of="most"></output>
<input type="range" data-setting="most" min="1" max="100" step="1" value="10"></label>
<label class="slider">From score <output data-of="least"></output>
<input type="range" data-setting="least" min="0" max="0.95" step="0.05" value="0.1"></label>
<fieldset class="layers"><legend>Show</legend>
<label class="truth"><input type="checkbox" data-layer="truth" checked>objects</label>
<label class="kept"><input type="checkbox" data-layer="kept" checked>kept</label>
<label class="dropped"><input type="checkbox" data-layer="dropped" checked>dropped, better placed</label>
</fieldset>
</div>
<div class="list">
<p class="counts" role="status" data-counts></p>
<div class="scroll rows" role="region" aria-label="Boxes that are shown" tabindex="0"><table>
<thead><tr><th scope="col">box</th><th scope="col">class</th><th scope="col" class="number">p</th>
<th scope="col" class="number">c</th><th scope="col" class="number">score</th><th scope="col" class="number">IoU</th>
<th scope="col">beaten by</th></tr></thead>
<tbody data-rows></tbody></table></div>
</div>
</div>"""


def _image(data: "CocoData", index: int) -> dict[str, Any]:
    from model.evaluation.counting import objects_of

    height, width = (int(side) for side in data.sizes[index])
    objects = objects_of(data, index)
    return {
        "id": int(data.image_ids[index]),
        "width": width,
        "height": height,
        "picture": f"data:image/jpeg;base64,{base64.b64encode(_jpeg(data.path(index))).decode()}",
        "boxes": _coded(objects.boxes, "<f4"),
        "labels": _coded(objects.labels, "<u2"),
    }


def _jpeg(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
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
    return base64.b64encode(values.astype(kind).tobytes()).decode()
