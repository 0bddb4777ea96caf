"""A detector as MLflow loads and serves it; MLflow stores this file with the model and runs it: nothing is pickled."""

import base64
import binascii
import io
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class ServedDetector(PythonModel):
    """Images as base64 text in, boxes with labels and scores out."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint with its own inference settings; MLflow has put our package `model` on the path."""
        import model

        self.predictor = model.load(context.artifacts["checkpoint"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Detect on each image.

        Args:
            context: MLflow's.
            model_input: one JPEG or PNG a row, as base64 text in the first column, whatever its name.
            params: `score`, the least score that is returned.

        Returns:
            One record an image: boxes (xyxy pixels of the upright image), labels, category_ids, scores.
        """
        least = float((params or {}).get("score", 0.0))
        photos = [_decoded(place, text) for place, text in enumerate(model_input.iloc[:, 0])]
        found = [one.above(least) for one in self.predictor(photos)]
        return [
            {
                "boxes": one.boxes.tolist(),
                "labels": list(one.labels),
                "category_ids": list(one.category_ids),
                "scores": one.scores.tolist(),
            }
            for one in found
        ]


def _decoded(place: int, text: str) -> Any:
    from model.data.files.decoding import upright

    try:
        # Strict, as b64decode skips what is no base64 by default, and would decode another image.
        return upright(io.BytesIO(base64.b64decode(text, validate=True)))
    except (ValueError, TypeError, binascii.Error) as error:
        raise MlflowException.invalid_parameter_value(f"image {place} is no JPEG or PNG in base64 ({error})") from error


set_model(ServedDetector())
