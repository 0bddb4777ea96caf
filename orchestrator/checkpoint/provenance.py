"""The card beside a pulled checkpoint: what it is, where it comes from, and what it reached."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from model.settings import Settings, from_dict

FILE, TEXT = "provenance.json", "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """One evaluation of one training, as MLflow knows it."""

    row: str
    """The label of the row."""
    tables: Mapping[str, str]
    """The label of the row in every table that shows it."""
    suite: str
    seed: int
    split: str
    """The split that was scored."""
    metrics: Mapping[str, float]
    """The twelve numbers, to the last digit; those that the split cannot give are left out."""
    inference: Settings
    """The inference settings behind the numbers."""
    dataset: str
    train_fingerprint: str
    """CocoData.fingerprint of the images that it learnt from."""
    split_fingerprint: str
    """... and of those that it was scored on; empty where it was not recorded."""
    train_key: str
    evaluation_key: str
    git_commit: str
    link: str
    """The evaluation in MLflow's user interface."""
    training_link: str
    weights_sha256: str
    weights_bytes: int
    versions: Mapping[str, str]
    """Of the libraries that trained it."""
    detections: str = ""
    """The file of its detections, beside the checkpoint; empty where MLflow has none."""

    def to_markdown(self) -> str:
        """A page for people."""
        numbers = [f"| {name} | {value:.1f} |" for name, value in self.metrics.items()]
        seen = ", ".join(f"{table} ({label})" for table, label in self.tables.items())
        facts = {
            "suite": self.suite,
            "tables": seen,
            "seed": str(self.seed),
            "data": f"{self.dataset}, scored on {self.split}",
            "data fingerprints": f"training `{self.train_fingerprint[:16]}`, {self.split} "
            f"`{self.split_fingerprint[:16] or 'not recorded'}`",
            "inference": ", ".join(f"{name} {value}" for name, value in self.inference.items()),
            "weights": f"{self.weights_bytes / 1e6:.1f} MB, sha256 `{self.weights_sha256}`",
            "keys": f"training `{self.train_key}`, evaluation `{self.evaluation_key}`",
            "detections": self.detections
            and f"`{self.detections}`; `rnc evaluate --detections` computes the numbers again",
            "git commit": self.git_commit or "not recorded",
            "trained with": ", ".join(f"{name} {version}" for name, version in self.versions.items()) or "not recorded",
            "in MLflow": f"[evaluation]({self.link}), [training]({self.training_link})",
        }
        lines = [f"# {self.row}", "", *(f"- {name}: {text}" for name, text in facts.items() if text), ""]
        lines += [f"| {self.split} | |", "|---|---:|", *numbers, ""]
        lines += ["```python", "import model", "", 'detector = model.load(".")', 'detector("image.jpg")', "```", ""]
        return "\n".join(lines)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Put the card beside a checkpoint, for programs and for people."""
    (folder / FILE).write_text(json.dumps(asdict(provenance), indent=2, ensure_ascii=False) + "\n")
    (folder / TEXT).write_text(provenance.to_markdown())


def read_provenance(folder: Path) -> Provenance | None:
    """Read the card; None where a checkpoint has none.

    Raises:
        ValueError: the file is no such card.
    """
    try:
        return from_dict(Provenance, json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / FILE} is no provenance card ({error}); remove it, or pull again") from error
