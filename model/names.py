"""The names of a training's files and metrics, each spelt once; light enough to be imported anywhere."""

WEIGHTS, CARD, RESUME = "model.safetensors", "config.json", "resume.pt"
"""The files of a checkpoint: weights, what they are, and what a training goes on from."""
INFERENCE = "inference.json"
"""Beside a pulled checkpoint: the settings that it is best used with."""

LOSS, LOSS_CLASS, LOSS_BOX, LOSS_CONFIDENCE = (
    "train/loss",
    "train/loss_class",
    "train/loss_box",
    "train/loss_confidence",
)
LEARNING_RATE = "train/lr"
EPOCH = "train/epoch"
"""Epochs done, with the part of the current one."""
IMAGES_PER_S, ETA_S, STARTUP_S = "perf/images_per_s", "perf/eta_s", "perf/startup_s"
PEAK_MEMORY_MIB = "perf/peak_memory_mib"
"""The most memory that torch has held for the first process on its GPU; what others hold is no part of it."""
VAL = "val/"
"""Begins the names of what is measured on the validation split, as `val/AP`, 0 to 100."""
