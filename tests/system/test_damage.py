"""Stored files that are damaged between two starts, through Ray and MLflow: what is said, and the bits at the end."""

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster import connect
from orchestrator.cluster.checkpoints import SNAPSHOT, committed
from orchestrator.driver.repair.verify import verify
from orchestrator.site import Site
from orchestrator.tracking import server
from orchestrator.tracking.recorder import read_journal
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL, Status, epochs_done, last_checkpoint
from orchestrator.worker.training_log import Lost, Start, read_log
from tests.suites import TRAIN, experiment_of, launched, ledger_of, plan_of

pytestmark = pytest.mark.slow

LONG = replace(TRAIN, schedule=replace(TRAIN.schedule, epochs=12))


def weights(site: Site, suite: str, key: str) -> bytes:
    checkpoint = last_checkpoint(site.storage / suite / key)
    assert checkpoint is not None
    return (checkpoint / "model.safetensors").read_bytes()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_training_whose_files_were_damaged_ends_with_the_weights_of_one_that_was_left_alone(site: Site):
    """Twice cut off: its last state is flipped and Ray's snapshot cut, then its last weights are deleted."""
    (straight,) = launched(plan_of(site, "alone", LONG), site).endings
    key = straight.key
    folder = site.storage / "damaged" / key
    stops_at = 3

    def interrupt(statuses: Sequence[Status]) -> None:
        if statuses[0].state == "training" and epochs_done(folder) >= stops_at:
            os.kill(os.getpid(), signal.SIGTERM)

    went_on = []
    for file in ("resume.pt", "model.safetensors"):
        assert launched(plan_of(site, "damaged", LONG), site, interrupt).interrupted
        checkpoint = last_checkpoint(folder)
        assert checkpoint is not None and stops_at <= epochs_done(folder) < 12
        went_on.append(epochs_done(folder) - 1)
        if file == "resume.pt":
            # A cut snapshot does not tell what was on its way to be committed, and whole, from what was.
            for newer in {*folder.glob("epoch-*")} - {*committed(folder)}:
                shutil.rmtree(newer)
            flip(checkpoint / file)
            os.truncate(folder / SNAPSHOT, 50)
        else:
            (checkpoint / file).unlink()
        stops_at = epochs_done(folder) + 2
        connect.start_ray(site)
    (ending,) = launched(plan_of(site, "damaged", LONG), site).endings
    assert ending.state == "finished"
    assert weights(site, "damaged", key) == weights(site, "alone", key)
    events = [entry.event for entry in read_log(folder)]
    lost = [event for event in events if isinstance(event, Lost)]
    assert [event.epoch for event in lost] == went_on
    assert [event.epoch for event in events if isinstance(event, Start)] == [0, *went_on]
    assert lost[0].text.startswith(f"{SNAPSHOT} is no JSON: it was cut or changed; epoch-")
    assert "/resume.pt (" in lost[0].text and "/model.safetensors is missing; set aside as " in lost[1].text
    one, other = (ledger_of(site, suite) for suite in ("alone", "damaged"))
    assert other.trainings[key].status == "FINISHED"
    (evaluation,) = other.evaluations
    assert other.evaluations[evaluation].metrics == one.evaluations[evaluation].metrics


def test_a_lost_database_is_filled_again_from_the_checkpoints_without_training(site: Site):
    (ending,) = launched(plan_of(site, "lost", TRAIN), site).endings
    folder = site.storage / "lost" / ending.key
    before = ledger_of(site, "lost")
    journal, _ = read_journal(folder / JOURNAL)
    server.stop_server(site)
    for file in (site.home / "mlflow").glob("mlflow.db*"):
        file.rename(file.with_name(f"damaged-{file.name}"))
    plan = plan_of(site, "lost", TRAIN)
    assert (set(plan.missing_trainings.values()), set(plan.missing_evaluations.values())) == (
        {"never run"},
        {"waits for its training"},
    )
    assert launched(plan, site).exit_code == 0
    after = ledger_of(site, "lost")
    assert read_journal(folder / JOURNAL)[0] == journal  # an update would have been noted there
    assert after.trainings[ending.key].metrics == before.trainings[ending.key].metrics
    assert {key: record.metrics for key, record in after.evaluations.items()} == {
        key: record.metrics for key, record in before.evaluations.items()
    }


def test_artifacts_that_changed_are_found_and_made_again_and_all_is_as_it_was(site: Site, tmp_path: Path):
    suite = Suite([experiment_of("flipped", TRAIN)], site)
    launched(plan_of(site, "flipped", TRAIN), site)
    suite.connect()
    sound = verify(suite)
    assert (sound.defects, sound.num_unsigned) == ((), 0)
    (evaluation,) = suite.ledger.evaluations.values()
    (training,) = suite.ledger.trainings.values()
    held = [(evaluation.run_id, path) for path in evaluation.files]
    held += [(training.run_id, path) for path in training.files]
    folder = site.home / "mlflow" / "artifacts"
    for run_id, path in held:
        (file,) = (one for one in folder.rglob(path) if run_id in one.parts)
        flip(file)
    defects = verify(suite).defects
    assert len(defects) == 2
    texts = " ".join(defect.text for defect in defects)
    assert all(path in texts for _, path in held)
    for defect in defects:
        assert defect.mend is not None
        defect.mend()
    suite.refresh()
    plan = suite.make_plan()
    assert (len(plan.missing_trainings), len(plan.missing_evaluations)) == (0, 1)
    assert launched(plan, site).exit_code == 0
    suite.refresh()
    assert verify(suite).defects == ()
    assert next(iter(suite.ledger.evaluations.values())).metrics == evaluation.metrics
