"""What a training's log tells of its scoring."""

from pathlib import Path

from orchestrator.worker.task import TRAINING_LOG, ScoringLog, has_ended, note, scoring_of


def test_a_quick_scoring_is_told_at_each_tenth_and_over_once_another_line_follows(tmp_path: Path) -> None:
    log = ScoringLog(tmp_path, "val", 45)
    for done in range(0, 5001, 10):
        log.tell(done, 5000)
    lines = (tmp_path / TRAINING_LOG).read_text().splitlines()
    assert [line[21:] for line in lines[:2]] == [
        "scoring: 0 of 5,000 images of val, 45 settings",
        "scoring: 500 of 5,000 images of val, 45 settings",
    ]
    assert len(lines) == 11
    assert scoring_of(tmp_path) == "5,000 of 5,000 images of val, 45 settings"
    assert not has_ended(tmp_path)
    note(tmp_path, "scored under 45 settings on val")
    assert scoring_of(tmp_path) == ""
    assert has_ended(tmp_path)
