"""Fetches the matches of evaluations, resamples them, and keeps the outcome, as it costs about a second a row."""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.digest import file_sha256
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Resamples = NDArray[np.float64]


def resampled(
    ledger: Ledger, keys: Iterable[str], fetch: Callable[[str, Path], Path], folder: Path
) -> Mapping[str, "Resamples"]:
    """Return AP, AP50 and AP75 of each resample, [3, resamples], by evaluation key, but of lost matches.

    Args:
        ledger: says which evaluations are there, and the sha256 of their matches.
        keys: of evaluations.
        fetch: gets the file of matches of a run, into a folder.
        folder: keeps what was resampled, by that sha256; it may be deleted at any time.
    """
    records = {key: ledger.evaluations[key] for key in dict.fromkeys(keys) if key in ledger.evaluations}
    wanted = {key: record for key, record in records.items() if record.status == "FINISHED" and record.matches}
    if not wanted:
        return {}
    import numpy as np

    from orchestrator.report.intervals import NUM_RESAMPLES, SEED

    files = {key: folder / f"{record.matches}-{NUM_RESAMPLES}-{SEED}.npy" for key, record in wanted.items()}
    missing = {files[key]: record for key, record in wanted.items() if not files[key].exists()}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(lambda file: _resample(missing[file], fetch, file), missing))
    return {key: np.load(file) for key, file in files.items() if file.exists()}


def _resample(record: Record, fetch: Callable[[str, Path], Path], file: Path) -> None:
    """Resample an evaluation into a file; none is written where its matches are lost, or not those recorded."""
    import numpy as np

    from model.evaluation.matches import read_matches
    from orchestrator.report.intervals import average_precision

    with tempfile.TemporaryDirectory() as scratch:
        try:
            fetched = fetch(record.run_id, Path(scratch))
        except UserError:
            return
        if file_sha256(fetched) != record.matches:
            return
        matches = read_matches(fetched)
    numbers = average_precision(matches, _weights(matches.num_images))
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        np.save(part, numbers)
    os.replace(part.name, file)


@cache
def _weights(num_images: int) -> "NDArray[np.float32]":
    from orchestrator.report.intervals import resample

    return resample(num_images)
