"""The vocabulary: tags, files and names as MLflow holds them, each spelt here alone."""

from typing import Literal

Kind = Literal["training", "evaluation", "table"]

# Tags of runs. What MLflow itself reads begins with "mlflow.".
KIND = "kind"
KEY: dict[str, str] = {"training": "train_key", "evaluation": "evaluation_key", "table": "table"}
"""The tag that tells the runs of a kind apart."""
TRAIN_KEY, EVALUATION_KEY = KEY["training"], KEY["evaluation"]
SUITE, SEED, SPLIT = "suite", "seed", "split"
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

SUITE_PREFIX = "retinanet-conf/"
"""Begins the names of the MLflow experiments that are suites."""
BEST = "best"
"""The alias of a suite's best detector in the model registry."""


def experiment_name(suite: str) -> str:
    """Return what MLflow's experiment of a suite is called."""
    return f"{SUITE_PREFIX}{suite}"


def model_name(suite: str) -> str:
    """Return the name under which a suite's best detector is registered."""
    return f"retinanet-conf-{suite}"
