"""The vocabulary: tags, files and names as MLflow holds them, each spelt here alone, and what it takes of others'."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

Kind = Literal["training", "evaluation", "table"]

# Tags of runs. What MLflow itself reads begins with "mlflow.".
KIND = "kind"
KEY: dict[str, str] = {"training": "train_key", "evaluation": "evaluation_key", "table": "table"}
"""The tag that tells the runs of a kind apart."""
TRAIN_KEY, EVALUATION_KEY = KEY["training"], KEY["evaluation"]
SUITE, SEED, SPLIT = "suite", "seed", "split"
SUPERSEDED = "superseded"
"""The kind of a run that has the key of another one, which counts: set aside, and not looked at any more."""
DRIVER, BEGUN = "driver", "begun"
"""The process that answers for a running run, and when it began, in milliseconds since 1970."""
COMMIT, VERSIONS = "git_commit", "versions"
DEVICE = "device"
"""Of a training: the model of the GPU that its first worker computed on last."""
NUM_WORKERS, GPUS_PER_WORKER = "num_workers", "gpus_per_worker"
NOTE = "note"
"""Why a run did not finish."""
STOP = "stop"
"""Of a training: the note under which its driver was asked to end it; empty where it was not."""
STOP_ASKED = "stop_asked"
"""Of a training: when that was asked for, in milliseconds since 1970."""
STOPPED_EARLY = "stopped_early"
"""Of a training: why its search decided against it."""
PIN = "pin"
"""Of a training, set in MLflow's user interface with any value: its checkpoints stay."""
FILES = "files"
"""What a run's artifacts should be: bytes by path, as JSON."""
FILES_SHA256 = "files_sha256"
"""Their digests by path, as JSON, and those of further files; runs of earlier versions have none."""
WEIGHTS_SHA256, MATCHES_SHA256, LAB_SHA256, CONTENT_SHA256 = (
    "checkpoint_sha256",
    "matches_sha256",
    "lab_sha256",
    "content_sha256",
)
FINGERPRINT = "data_fingerprint"
"""CocoData.fingerprint of the images that a run was trained or scored on."""
DATA_ROOT = "data_root"
"""Of an evaluation: where its data lay; a hint for who scores the checkpoint again, and no part of any identity."""
NO_OBJECTS = "no_objects"
"""Of an evaluation on data without an object to find: that it has no number, and will have none."""
ROW, TABLE, PAPER = "row.", "table.", "paper."
"""Begin the tags of an evaluation's rows by table, of the tables that want a training, and of the paper's numbers."""
SHOWN_TABLES = "mlflow.loggedArtifacts"
"""Of a run: which of its files MLflow's pages show as tables, as JSON."""
RUN_NAME, DESCRIPTION = "mlflow.runName", "mlflow.note.content"

# Tags of a suite's experiment.
CLAIM = "submit"
"""Who runs the suite; see orchestrator.driver.lock."""
PRUNE = "prune"
"""A `Prune`, as JSON: which trainings of which tables are to end."""

# Artifacts: folders, and the files in them.
CHECKPOINT, DETECTIONS, LAB = "checkpoint", "detections", "lab"
CLASSES = "classes"
"""The folder of tables and curves of an evaluation's classes."""
AP_CLASS = "AP_class"
"""Begins the metrics that are AP of a class, and is the section of their charts."""
MISALIGNMENT = "misalignment"
"""Both a folder of an evaluation's files and the beginning of the metrics that are measured from them."""
DETECTIONS_FILE, MATCHES_FILE, LAB_FILE = "detections.parquet", "matches.parquet", "lab.json"

# Paths that our own MLflow server answers beside MLflow's, at a hundredth of their cost.
LISTED_RUNS, LISTED_FILES = "/rnc/runs", "/rnc/files"

SUITE_PREFIX = "retinanet-conf/"
"""Begins the names of the MLflow experiments that are suites."""
BEST = "best"
"""The alias of a suite's best detector in the model registry."""


def experiment_name(suite: str) -> str:
    """Return what MLflow's experiment of a suite is called."""
    return f"{SUITE_PREFIX}{suite}"


def model_name(suite: str) -> str:
    """Return the name under which a suite's best detector is registered; a model's takes neither `/` nor `:`."""
    return f"retinanet-conf-{re.sub('[/:]', '-', suite)}"


MOST_EXPERIMENT_NAME = 256
"""Characters of an experiment's name: MLflow takes more, its databases do not."""
MOST_FOLDER_NAME = 255
"""Bytes of a folder's name; a suite's checkpoints and reports lie in folders of its name."""
MOST_RUN_NAME = 250
MOST_PARAM = 6000
"""Characters of a param's value; MLflow cuts longer ones."""
MOST_TAG = 5000
"""Characters of a tag's value that all stores of MLflow take; some take longer ones."""
MOST_EXPERIMENT_TAG = 20_000
MOST_DATASET_NAME = 500
MOST_TABLE_NAME = 200
"""Characters of a table's name, and nearly bytes: it is part of tags of 250, and of file names of 255."""


def mistakes_of_table(table: str) -> Iterator[str]:
    """Say why MLflow takes no tag of a table, whose name is part of the tag's."""
    refused = sorted(set(re.sub(r"[\w.\- :]", "", table)))
    if refused:
        yield f"has {' '.join(map(repr, refused))}, but MLflow's tags take letters, digits, blanks and _ - . : alone"
    if max(len(table), len(table.encode(errors="replace")) - 20) > MOST_TABLE_NAME:
        yield f"has {len(table)} characters, expected {MOST_TABLE_NAME} at most"


def mistakes_of_suite(suite: str) -> Iterator[str]:
    """Say why MLflow takes no experiment of a suite, or would not find it again."""
    if not suite.strip():
        yield "is empty"
    if shown := unprintable(suite):
        yield f"has {shown}, which no database takes in a name"
    if "'" in suite and '"' in suite:
        yield "has both ' and \", of which a filter of MLflow takes one"
    if len(experiment_name(suite)) > MOST_EXPERIMENT_NAME:
        most = MOST_EXPERIMENT_NAME - len(SUITE_PREFIX)
        yield f"has {len(suite)} characters, expected {most} at most, as MLflow names of experiments have 256"
    elif (count := len(suite.encode(errors="replace"))) > MOST_FOLDER_NAME:
        yield f"has {count} bytes in UTF-8, expected {MOST_FOLDER_NAME} at most, as names of folders have"


def unstorable(text: str) -> str:
    """Name the first character of a text that PostgreSQL or UTF-8 has no room for; empty where there is none."""
    return next((repr(one) for one in text if one == "\0" or unicodedata.category(one) == "Cs"), "")


def unprintable(text: str) -> str:
    """Name the first control character, or half of one, in a text; empty where there is none."""
    return next((repr(one) for one in text if unicodedata.category(one) in ("Cc", "Cs")), "")
