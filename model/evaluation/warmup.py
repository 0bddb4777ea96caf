"""Compiles ahead what scoring and its statistics need, by numba, which keeps it: `python -m model.evaluation.warmup`.

It takes 11 s of a core once, and again when their sources change. Trainings side by side would each take them. Kinds of
suppression other than NMS take a second or two each when a setting first asks for them, and are not compiled ahead.
"""

import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
LAST = {
    "inference/suppression/nms.py": "keep",
    "evaluation/counting.py": "beaten",
    "evaluation/coco/reweighted.py": "_precision_sums",
}
"""The function of each source that is compiled last."""


def is_compiled(package: Path = PACKAGE) -> bool:
    """Whether all is compiled, as far as files beside the sources tell; nothing is imported.

    Where numba keeps its files elsewhere, as the sources' folders cannot be written to, this is False.
    """
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return all(
        any(
            kept.stat().st_mtime >= (package / source).stat().st_mtime
            for kept in (package / source).parent.glob(f"__pycache__/{Path(source).stem}.{function}-*.{python}.nbi")
        )
        for source, function in LAST.items()
    )


def compile_functions() -> None:
    """Score a grey image with a detector of random weights and resample it, which compiles all that is not compiled."""
    import numpy as np
    import torch
    from PIL import Image

    from model.config import DataConfig, InferenceConfig, ModelConfig
    from model.data.split import assemble
    from model.evaluation.coco.matches import match
    from model.evaluation.coco.reweighted import of_classes
    from model.evaluation.scoring import score_shards
    from model.network.retinanet import build_detector

    # Of the types that a data set has; numba compiles for types, whatever the values.
    columns = {
        "image_ids": np.array([1], np.int64),
        "names": np.array([b"grey.png"]),
        "sizes": np.array([[64, 64]], np.int32),
        "offsets": np.array([0, 1], np.int64),
        "annotation_ids": np.array([1], np.int64),
        "annotation_boxes": np.array([[8.0, 8.0, 32.0, 32.0]]),
        "annotation_areas": np.array([1024.0]),
        "annotation_labels": np.array([0], np.int16),
        "annotation_crowds": np.array([False]),
    }
    torch.set_num_threads(1)
    detector = build_detector(ModelConfig(backbone="resnet18_quarter", channels=16, tower_depth=1), 1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        data = assemble(Path(folder), "val", Path(folder, "val"), columns, {1: "thing"}, ())
        data.folder.mkdir()
        Image.new("RGB", (64, 64), "grey").save(data.path(0))
        found = score_shards(detector, data, [(0,)], [InferenceConfig()], DataConfig(short_edge=256, long_edge=256))
        for of_shard in found:
            of_classes(match(data, of_shard[0].detections), np.ones((1, 1)))


if __name__ == "__main__":
    compile_functions()
