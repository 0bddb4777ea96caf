"""RetinaNet-Conf in plain PyTorch: the detector, its data, its training and its scoring."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from model.inference.predictor import Predictor


def load(folder: "str | Path", *, device: str | None = None, **settings: Any) -> "Predictor":
    """Make a function of a checkpoint: `model.load("pulled")(["a.jpg", "b.jpg"])`.

    Files are seen as `rnc predict` sees them: turned as their EXIF orientation says, and boxes count in turned pixels.

    Args:
        folder: with model.safetensors and config.json, as `rnc pull` fetches it.
        device: such as "cuda:1"; None takes the GPU if there is one.
        settings: inference settings to use instead of the checkpoint's own, such as confidence_exponent=0.2.

    Raises:
        ValueError: the checkpoint is damaged, or a setting has no meaning for it.
    """
    from pathlib import Path

    from model.inference.predictor import load as load_predictor

    return load_predictor(Path(folder), device, settings)
