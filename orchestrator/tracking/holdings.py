"""The files that runs should hold: each is noted with its run when it is stored, so that a lost one is missed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.experiment.plan import Ledger, Record
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import upload
from orchestrator.tracking.runs import FILES_TAG, files_of, get_run, write


def store(uri: str, run_id: str, files: Sequence[Path], folder: str) -> None:
    """Store files in a folder of a run's artifacts, and note their sizes with the run."""
    upload(uri, run_id, files, folder)
    sizes = {f"{folder}/{file.name}": file.stat().st_size for file in files}
    write(uri, run_id, tags={FILES_TAG: json.dumps(files_of(get_run(uri, run_id)) | sizes)})


def check_files(uri: str, ledger: Ledger, keys: Iterable[str]) -> Ledger:
    """Look whether the finished runs of these keys still hold their files; those that do not are no longer finished.

    Nothing is written. A question for each folder, several at once: 50 take about 0.2 seconds.
    """
    wanted = set(keys)
    records = {**ledger.trainings, **ledger.evaluations}
    finished = {key: record for key, record in records.items() if key in wanted and record.status == "FINISHED"}
    lost = _lost(uri, finished.values())

    def seen(of_kind: Mapping[str, Record]) -> dict[str, Record]:
        return {
            key: replace(record, status="KILLED", note=_note(lost[record.run_id])) if record.run_id in lost else record
            for key, record in of_kind.items()
        }

    return Ledger(trainings=seen(ledger.trainings), evaluations=seen(ledger.evaluations)) if lost else ledger


def _lost(uri: str, records: Iterable[Record]) -> dict[str, list[str]]:
    """Return, by run, the folders that lack a file or hold one of another size."""
    records = list(records)
    folders = [(r, folder) for r in records for folder in dict.fromkeys(path.rpartition("/")[0] for path in r.files)]
    queries = [{"run_id": record.run_id, "path": folder} for record, folder in folders]
    lost: dict[str, list[str]] = {}
    for (record, folder), answer in zip(folders, rest.get_many(uri, "artifacts/list", queries), strict=True):
        there = {file["path"]: int(file.get("file_size", 0)) for file in answer.get("files", [])}
        noted = {path: size for path, size in record.files.items() if path.rpartition("/")[0] == folder}
        if not noted.items() <= there.items():
            lost.setdefault(record.run_id, []).append(folder)
    return lost


def _note(folders: Sequence[str]) -> str:
    are = "are" if len(folders) > 1 or folders[0].endswith("s") else "is"
    return f"its {' and '.join(folders)} {are} missing"
