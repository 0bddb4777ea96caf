"""What is compiled ahead: all that a scoring pass and its statistics call, and nothing of it a second time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.evaluation.warmup import LAST, is_compiled

SCORE = """
import sys
from pathlib import Path
import numpy as np
import torch
from numba.core.dispatcher import Dispatcher
from model.config import DataConfig, InferenceConfig
from model.data.coco import read_coco
from model.evaluation import counting
from model.evaluation.coco import reweighted
from model.evaluation.coco.matches import match
from model.evaluation.scoring import score
from model.inference.suppression import iou_guided, matrix_nms, nms, soft_nms, voting
from tests.detectors import opinionated
torch.set_num_threads(1)
data = read_coco(Path(sys.argv[1]), "val", num_images=3)
settings = [InferenceConfig(), InferenceConfig(confidence_exponent=0.0)]
scores = score(opinionated(len(data.category_ids)), data, settings, DataConfig(short_edge=256, long_edge=256))
matches = match(data, scores[0].detections)
reweighted.of_classes(matches, np.ones((3, 1000), np.float32)), reweighted.leave_one_out(matches)
functions = [one for module in (nms, counting, reweighted) for one in vars(module).values()]
functions = [one for one in functions if isinstance(one, Dispatcher)]
print(*sorted({one.__name__ for one in functions if sum(one.stats.cache_hits.values())}))
print(*sorted({one.__name__ for one in functions if sum(one.stats.cache_misses.values())}))
others = [one for module in (soft_nms, matrix_nms, iou_guided, voting) for one in vars(module).values()]
others = [one for one in [nms.distance_overlap, *others] if isinstance(one, Dispatcher) and one is not nms.overlap]
print(*(one.__name__ for one in others if one.signatures))
"""


@pytest.mark.slow
def test_after_it_a_scoring_pass_compiles_nothing(shapes_root: Path, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "model.evaluation.warmup"], env=environment, check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(shapes_root)], env=environment, check=True, capture_output=True, text=True
    )
    read, compiled, of_other_kinds = done.stdout.splitlines()[-3:]
    assert read.split() == [
        *("_precision_sums", "_weighted_sum"),
        *("beaten", "best_overlaps", "count_candidates", "count_detections"),
        *("keep", "keep_packed", "largest", "overlaps", "pack"),
    ]
    assert (compiled, of_other_kinds) == ("", "")


def test_it_is_done_when_the_last_functions_of_all_sources_are_kept_and_no_source_is_newer(tmp_path: Path) -> None:
    sources = [tmp_path / source for source in LAST]
    for source in sources:
        (source.parent / "__pycache__").mkdir(parents=True)
        source.touch()
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    kept = [
        source.parent / "__pycache__" / f"{source.stem}.{function}-7.{python}.nbi"
        for source, function in zip(sources, LAST.values(), strict=True)
    ]
    for file in kept:
        assert not is_compiled(tmp_path)
        file.touch()
    assert is_compiled(tmp_path)
    later = kept[1].stat().st_mtime + 1
    os.utime(sources[1], (later, later))
    assert not is_compiled(tmp_path)
