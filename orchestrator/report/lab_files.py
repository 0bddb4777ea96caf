"""The lab of each training: stored with its run in MLflow, and gathered for the page of a suite."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from model.data.digest import file_sha256
from orchestrator.errors import UserError
from orchestrator.experiment.keys import row_keys
from orchestrator.experiment.plan import Ledger
from orchestrator.experiment.rows import Row
from orchestrator.figures.lab import FORMAT, Lab, join
from orchestrator.tracking.artifacts import download, upload
from orchestrator.tracking.entries import LAB_TAG
from orchestrator.tracking.runs import get_run, tags_of, write

FOLDER, NAME = "lab", "lab.json"
MOST_HEADS = 6
"""On one page, the first of a table."""


def store_lab(uri: str, run_id: str, make: Callable[[], Lab]) -> bool:
    """Make the lab of a training and store it with its run, unless that has one; says whether it did.

    Raises:
        UserError: the server does not take it.
    """
    if LAB_TAG in tags_of(get_run(uri, run_id)):
        return False
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / NAME
        file.write_text(json.dumps(make(), separators=(",", ":")), encoding="utf-8")
        upload(uri, run_id, [file], FOLDER)
        write(uri, run_id, tags={LAB_TAG: file_sha256(file)})
    return True


def fetch_labs(uri: str, rows: Iterable[Row], ledger: Ledger, folder: Path) -> dict[str, Path]:
    """Return the files of the trainings that have a lab, of each row its first seed, by label; lost ones are left out.

    Args:
        uri: of the server.
        rows: of one table.
        ledger: what MLflow holds.
        folder: keeps the files; it may be deleted at any time.
    """
    files: dict[str, Path] = {}
    for row in rows:
        record = ledger.trainings.get(row_keys(row)[0].train_key)
        if record is None or not record.lab or len(files) == MOST_HEADS:
            continue
        file = folder / f"lab-{record.lab}.json"
        if file not in files.values() and (file.is_file() or _fetch(uri, record.run_id, record.lab, file)):
            files[row.label] = file
    return files


def read_labs(files: Mapping[str, Path]) -> Lab | None:
    """Join what was fetched and can be shown, each head under the label of its row."""
    labs = [(label, json.loads(file.read_text(encoding="utf-8"))) for label, file in files.items()]
    shown = [(label, lab) for label, lab in labs if lab["format"] == FORMAT]
    return join([lab | {"heads": [head | {"label": label} for head in lab["heads"]]} for label, lab in shown])


def _fetch(uri: str, run_id: str, digest: str, file: Path) -> bool:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        try:
            fetched = download(uri, run_id, f"{FOLDER}/{NAME}", Path(scratch))
        except UserError:
            return False
        if file_sha256(fetched) != digest:
            return False
        os.replace(fetched, file)
    return True
