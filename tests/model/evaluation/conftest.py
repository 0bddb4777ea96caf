"""What tests of the scoring pass share."""

import pytest
from torch.utils.data import DataLoader

import model.evaluation.scoring


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score as where the detector is on a GPU, but for the streams and page-locked memory."""
    monkeypatch.setattr(model.evaluation.scoring, "_on_cuda", lambda _: True)
    monkeypatch.setattr(model.evaluation.scoring, "DataLoader", lambda *a, pin_memory, **k: DataLoader(*a, **k))
