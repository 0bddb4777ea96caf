"""Preloaded by the forkserver, so that compiled functions are read once, and not by every process that a test forks.

It must not start a thread, which a fork would lose: no score(), which has pools, and one thread for torch.
"""

import os
import tempfile
from pathlib import Path

import torch

from model.config import InferenceConfig
from model.data.coco import read_coco
from model.data.shapes import draw_shapes
from model.evaluation.batch_scoring import score_batch
from model.inference.predictor import load_batch
from tests.detectors import SIZES, opinionated

torch.set_num_threads(1)
cache = os.environ.get("RNC_CACHE")
os.environ["RNC_CACHE"] = "/dev/null"
with tempfile.TemporaryDirectory() as folder:
    draw_shapes(Path(folder) / "shapes", num_train=1, num_val=1)
    data = read_coco(Path(folder) / "shapes", "val")
    batch = load_batch(data, [0], SIZES)
    list(score_batch(opinionated(len(data.category_ids)), data, batch, [InferenceConfig()], 1, True))
if cache is None:
    del os.environ["RNC_CACHE"]
else:
    os.environ["RNC_CACHE"] = cache
