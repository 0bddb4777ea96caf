"""Pictures of a run that MLflow's user interface shows by step, with a slider.

The file names are those that MLflow's own `log_image` writes, which has no way to leave out a step that is there.
"""

import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from orchestrator.tracking.artifacts import list_files, upload
from orchestrator.tracking.runs import write

FOLDER = "images"
PREVIEW = 1024
"""Pixels of the longer side of what the user interface shows first."""


def store_picture(uri: str, run_id: str, key: str, step: int, draw: Callable[[], Image.Image]) -> bool:
    """Draw a picture and store it with a run, unless that has one of this key and step; says whether it did.

    Raises:
        UserError: the server does not take it.
    """
    start = f"{key.replace('/', '~')}+step+{step}+"
    if any(Path(path).name.startswith(start) for path in list_files(uri, run_id, FOLDER)):
        return False
    name = f"{start}timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"
    with tempfile.TemporaryDirectory() as scratch:
        full, small = Path(scratch) / f"{name}.png", Path(scratch) / f"{name}+compressed.webp"
        picture = draw()
        picture.save(full, compress_level=1)
        preview = picture.copy()
        preview.thumbnail((PREVIEW, PREVIEW))
        preview.save(small, quality=85)
        upload(uri, run_id, [small, full], FOLDER)
    write(uri, run_id, tags={"mlflow.loggedImages": "True"})
    return True
