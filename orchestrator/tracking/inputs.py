"""The data set behind a run, as MLflow knows data sets: name, digest, where it lies and how large it is."""

import json
from typing import TYPE_CHECKING, Literal

from orchestrator.tracking import rest
from orchestrator.tracking.runs import pairs

if TYPE_CHECKING:
    from model.data.coco import CocoData

Context = Literal["training", "validation", "evaluation"]
DIGEST_LENGTH = 36  # what MLflow keeps of a digest


def log_input(uri: str, run_id: str, dataset: str, data: "CocoData", context: Context) -> None:
    """Say which split a run has read; saying so twice changes nothing.

    Args:
        uri: of the server.
        run_id: of the run.
        dataset: the name of the whole, as in "shapes".
        data: the split as it was read.
        context: what it was read for.
    """
    entry = {
        "name": f"{dataset} {data.split}",
        "digest": data.fingerprint[:DIGEST_LENGTH],
        "source_type": "local",
        "source": json.dumps({"uri": str(data.root / data.split)}),
        "profile": json.dumps(
            {
                "num_images": len(data),
                "num_boxes": len(data.annotation_ids),
                "num_categories": len(data.category_ids),
                "categories": ", ".join(data.category_names),
                "fingerprint": data.fingerprint,
            }
        ),
    }
    tagged = {"dataset": entry, "tags": pairs({"mlflow.data.context": context})}
    rest.post(uri, "runs/log-inputs", {"run_id": run_id, "datasets": [tagged]})
