"""Damaged checkpoints of a real training: what is said of them, what Ray takes then, and with which bits it ends.

The uninterrupted training has three epochs; what goes on has the first two of them, as Ray Train keeps them.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from model.network.checkpoint import seal
from orchestrator.cluster import checkpoints
from orchestrator.cluster.checkpoints import FILES, SNAPSHOT, examine, recover
from orchestrator.errors import UserError
from orchestrator.worker.task import epochs_done, take_up
from orchestrator.worker.training_log import Epoch, Lost, Start, read_log, sentence, write_event
from tests.orchestrator.ledgers import write_snapshot
from tests.trainings import CONFIG, run

Harm = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CONFIG trained in one piece."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    run(CONFIG, shapes_root, folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """The storage of a training that was cut off after its second epoch."""
    folder = tmp_path / "storage" / "key"
    for name in ("epoch-0001", "epoch-0002"):
        shutil.copytree(whole / name, folder / name)
    write_snapshot(folder, "epoch-0001", "epoch-0002")
    return folder


def taken_by_ray(folder: Path) -> str | None:
    """The checkpoint from which Ray Train itself starts a run of this folder."""
    storage = StorageContext(storage_path=str(folder.parent), experiment_dir_name=folder.name)
    latest = CheckpointManager(CheckpointConfig(num_to_keep=2), storage).latest_checkpoint_result
    return Path(latest.checkpoint.path).name if latest and latest.checkpoint else None


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 1
    file.write_bytes(content)


def flip_near_the_end(file: Path) -> None:
    flip(file, 0.95)


def flip_a_letter_of_a_name(file: Path) -> None:
    file.write_text(file.read_text().replace('"epoch"', '"epocj"'))


def another_epoch(file: Path) -> None:
    file.write_text(file.read_text().replace('"epoch": 2', '"epoch": 3'))


def other_data(file: Path) -> None:
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"data_fingerprint": "0" + card["data_fingerprint"][1:]}))


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_old(checkpoint: Path) -> None:
    """Take from a card what earlier versions did not write."""
    card = json.loads((checkpoint / "config.json").read_text())
    del card["resume_sha256"], card["card_sha256"]
    (checkpoint / "config.json").write_text(json.dumps(card, indent=2) + "\n")


WEIGHTS, CARD, RESUME = "epoch-0002/model.safetensors", "epoch-0002/config.json", "epoch-0002/resume.pt"
HARM: list[tuple[str, Harm, str]] = [
    (WEIGHTS, cut, rf"{WEIGHTS} \(\d+ bytes\) has sha256 \w{{12}}, its card says \w{{12}}"),
    (WEIGHTS, empty, rf"{WEIGHTS} \(0 bytes\) has sha256"),
    (WEIGHTS, flip, f"{WEIGHTS} .* its card says"),
    (WEIGHTS, delete, f"{WEIGHTS} is missing"),
    (WEIGHTS, make_a_folder, f"{WEIGHTS} is a folder"),
    (RESUME, cut, f"{RESUME} .* its card says"),
    (RESUME, flip, f"{RESUME} .* its card says"),
    (RESUME, flip_near_the_end, f"{RESUME} .* its card says"),
    (RESUME, delete, f"{RESUME} is missing"),
    (CARD, cut, f"{CARD} is no JSON"),
    (CARD, empty, f"{CARD} is no JSON"),
    (CARD, flip_a_letter_of_a_name, f"{CARD} has other content than its card_sha256 says"),
    (CARD, another_epoch, f"{CARD} has other content"),
    (CARD, other_data, f"{CARD} has other content"),
    (CARD, delete, f"{CARD} is missing"),
    ("epoch-0002", delete, "epoch-0002 is gone"),
]


def goes_on(folder: Path, whole: Path, root: Path, scratch: Path) -> bool:
    """Train to the end from what Ray takes, and say whether weights and state are those of a training in one piece."""
    name = taken_by_ray(folder)
    torch.set_num_threads(1)
    run(CONFIG, root, scratch, resume=None if name is None else folder / name)
    files = [(place / "epoch-0003" / file).read_bytes() for place in (scratch, whole) for file in FILES]
    return files[: len(FILES)] == files[len(FILES) :]


@pytest.mark.parametrize(("name", "harm", "said"), HARM, ids=lambda value: getattr(value, "__name__", None))
def test_a_damaged_last_checkpoint_is_told_and_moved_and_ray_takes_the_one_before(
    folder: Path, name: str, harm: Harm, said: str
):
    harm(folder / name)
    text = take_up(folder, CONFIG, is_trained=False)
    assert re.match(said, text)
    assert text.endswith("it goes on from epoch 1")
    assert taken_by_ray(folder) == "epoch-0001"
    assert epochs_done(folder) == 1
    is_there = name != "epoch-0002"
    assert (f"set aside as {folder}/damaged-epoch-0002; " in text) == is_there
    assert (folder / "damaged-epoch-0002").is_dir() == is_there
    assert not (folder / "epoch-0002").exists()
    (entry,) = read_log(folder)
    assert entry.event == Lost(text=text, epoch=1)
    assert sentence(entry.event) == f"checkpoints were lost: {text}"
    assert take_up(folder, CONFIG, is_trained=False) == ""


def test_a_training_that_goes_on_from_an_older_checkpoint_ends_with_the_same_weights(
    folder: Path, whole: Path, shapes_root: Path, tmp_path: Path
):
    flip(folder / RESUME)
    take_up(folder, CONFIG, is_trained=False)
    assert goes_on(folder, whole, shapes_root, tmp_path / "rest")


def test_sound_checkpoints_are_left_as_they_are(folder: Path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert take_up(folder, CONFIG, is_trained=False) == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert taken_by_ray(folder) == "epoch-0002"


def test_an_older_checkpoint_that_is_gone_does_not_keep_ray_from_the_last(folder: Path):
    delete(folder / "epoch-0001")
    with pytest.raises(Exception, match="does not exist anymore"):
        taken_by_ray(folder)
    assert take_up(folder, CONFIG, is_trained=False) == "epoch-0001 is gone; it goes on from epoch 2"
    assert taken_by_ray(folder) == "epoch-0002"


@pytest.mark.parametrize("harm", [flip, delete])
def test_a_training_without_any_sound_checkpoint_begins_anew_and_says_so(
    folder: Path, whole: Path, shapes_root: Path, tmp_path: Path, harm: Harm
):
    harm(folder / "epoch-0001" / "resume.pt")
    harm(folder / WEIGHTS)
    text = take_up(folder, CONFIG, is_trained=False)
    assert text.index("epoch-0002/model.safetensors") < text.index("epoch-0001/resume.pt")
    assert text.endswith("no sound checkpoint is left, so it begins anew")
    assert taken_by_ray(folder) is None
    assert (epochs_done(folder), take_up(folder, CONFIG, is_trained=False)) == (0, "")
    if harm is flip:
        assert goes_on(folder, whole, shapes_root, tmp_path / "rest")


SNAPSHOTS = [
    (b"", "is empty"),
    (b'{"ray_version": "2.60.0", "checkpo', "is no JSON: it was cut or changed"),
    (b"\xff\xfe\x00", "is no JSON"),
    (b"[" * 5000, "is no JSON"),
    (b"[]", "is of another form than Ray writes"),
    (b"7", "is of another form"),
    (b'{"latest_checkpoint_result": {"checkpoint_dir_name": 3}}', "is of another form"),
    (b'{"latest_checkpoint_result": {"checkpoint_dir_name": "../../x"}}', "is of another form"),
    (b'{"latest_checkpoint_result": "epoch-0002"}', "is of another form"),
    (b'{"latest_checkpoint_result": null, "checkpoint_results": 3}', "is of another form"),
    (b'{"latest_checkpoint_result": {"checkpoint_dir_name": "epoch-0002"}}', "is none of this version of Ray's"),
]


@pytest.mark.parametrize(("content", "said"), SNAPSHOTS)
def test_a_damaged_snapshot_of_rays_is_written_again_from_the_checkpoints(folder: Path, content: bytes, said: str):
    (folder / SNAPSHOT).write_bytes(content)
    assert epochs_done(folder) == 2
    with pytest.raises(Exception, match=r"."):
        taken_by_ray(folder)
    text = take_up(folder, CONFIG, is_trained=False)
    assert text.startswith(f"{SNAPSHOT} {said}")
    assert text.endswith("it goes on from epoch 2")
    assert taken_by_ray(folder) == "epoch-0002"
    assert take_up(folder, CONFIG, is_trained=False) == ""


def test_without_a_snapshot_a_whole_checkpoint_is_taken_and_a_half_copied_one_is_not(folder: Path):
    (folder / SNAPSHOT).unlink()
    cut(folder / RESUME)
    text = take_up(folder, CONFIG, is_trained=False)
    assert text.startswith(f"{SNAPSHOT} is missing; {RESUME} ")
    assert taken_by_ray(folder) == "epoch-0001"


def test_a_first_checkpoint_that_was_being_copied_when_all_ended_is_no_loss(folder: Path):
    (folder / SNAPSHOT).unlink()
    delete(folder / "epoch-0002")
    cut(folder / "epoch-0001" / "model.safetensors")
    assert take_up(folder, CONFIG, is_trained=False) == ""
    assert taken_by_ray(folder) is None


def test_what_was_being_copied_beside_a_sound_last_checkpoint_is_not_looked_at(folder: Path, whole: Path):
    shutil.copytree(whole / "epoch-0003", folder / "epoch-0003")
    cut(folder / "epoch-0003" / "resume.pt")
    assert take_up(folder, CONFIG, is_trained=False) == ""
    assert taken_by_ray(folder) == "epoch-0002"


def test_checkpoints_that_are_all_deleted_are_missed_once_by_the_log(folder: Path):
    write_event(folder, Start(num_workers=1, process=1, host="here", epoch=0, num_epochs=3))
    write_event(folder, Epoch(epoch=2, num_epochs=3))
    for path in ("epoch-0001", "epoch-0002", SNAPSHOT):
        delete(folder / path)
    assert take_up(folder, CONFIG, is_trained=True) == ""  # finished: `rnc gc` has freed them
    assert take_up(folder, CONFIG, is_trained=False).startswith(
        "no checkpoint is left, though its log tells of epoch 2"
    )
    assert take_up(folder, CONFIG, is_trained=False) == ""


def test_a_checkpoint_of_an_older_version_is_taken_and_a_flip_in_its_state_is_found_by_the_sums_of_its_archive(
    folder: Path,
):
    make_old(folder / "epoch-0002")
    assert take_up(folder, CONFIG, is_trained=False) == ""
    flip(folder / RESUME)
    assert torch.load(folder / RESUME, weights_only=True)["epoch"] == 2  # torch sees nothing
    text = take_up(folder, CONFIG, is_trained=False)
    assert re.match(rf"{RESUME} has another CRC-32 in \S+ than when it was written; .* from epoch 1$", text)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        (RESUME, cut, rf"{RESUME} \(\d+ bytes\) is no whole archive"),
        (RESUME, empty, rf"{RESUME} \(0 bytes\) is no whole archive"),
        (CARD, flip_a_letter_of_a_name, f"{CARD} is not the card of a checkpoint"),
        (CARD, another_epoch, "epoch-0002 holds the checkpoint of epoch 3"),
    ],
)
def test_a_damaged_checkpoint_of_an_older_version_is_set_aside(folder: Path, name: str, harm: Harm, said: str):
    make_old(folder / "epoch-0002")
    harm(folder / name)
    assert re.match(said, take_up(folder, CONFIG, is_trained=False))
    assert taken_by_ray(folder) == "epoch-0001"


def test_the_last_epochs_state_is_not_asked_for_as_nothing_goes_on_from_it(folder: Path, whole: Path):
    shutil.copytree(whole / "epoch-0003", folder / "epoch-0003")
    write_snapshot(folder, "epoch-0002", "epoch-0003")
    delete(folder / "epoch-0003" / "resume.pt")
    assert take_up(folder, CONFIG, is_trained=False) == ""
    flip(folder / "epoch-0003" / "model.safetensors")
    assert take_up(folder, CONFIG, is_trained=True).endswith("; it is finished, and MLflow has its weights")
    assert taken_by_ray(folder) == "epoch-0002"


def rewrite(card: Path, **changes: Any) -> None:
    content = json.loads(card.read_text()) | changes
    card.write_text(json.dumps(content | {"card_sha256": seal(content)}))


def test_a_whole_card_of_another_version_or_training_stops_and_nothing_is_moved(folder: Path):
    rewrite(folder / CARD, colour="red")
    with pytest.raises(UserError, match=r"colour is not a setting.*it is whole, and of another version"):
        take_up(folder, CONFIG, is_trained=False)
    shutil.copy(folder / "epoch-0001" / "config.json", folder / CARD)
    rewrite(folder / CARD, epoch=2, weights_sha256=json.loads((folder / CARD).read_text())["weights_sha256"])
    with pytest.raises(UserError, match=r"belongs to another training \(train\.seed was 1, now 5\)"):
        take_up(folder.rename(folder.with_name("other")), replace(CONFIG, seed=5), is_trained=False)
    assert not list(folder.parent.rglob("damaged-*"))


def test_what_cannot_be_read_for_now_is_no_damage_and_a_bad_block_is(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(number: int) -> None:
        def opened(path: Path, *words: Any, **named: Any) -> Any:
            if path.name == "resume.pt" and path.parent.name == "epoch-0002":
                raise OSError(number, os.strerror(number), str(path))
            return usual(path, *words, **named)

        monkeypatch.setattr(Path, "open", opened)

    usual = Path.open
    refuse(errno.EACCES)
    with pytest.raises(UserError, match=r"epoch-0002/resume\.pt cannot be read \(Permission denied\); let this user"):
        take_up(folder, CONFIG, is_trained=False)
    assert not list(folder.glob("damaged-*"))
    refuse(errno.EIO)
    assert take_up(folder, CONFIG, is_trained=False).startswith(f"{RESUME} cannot be read from its disk; set aside")


def test_a_folder_that_cannot_be_written_to_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    flip(folder / WEIGHTS)
    found = examine(folder, CONFIG)
    assert found is not None

    def full(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match=r"key cannot be mended \(Operation not permitted\): epoch-0002/model"):
        recover(found)


def test_who_looks_before_ray_is_started_does_not_import_it(folder: Path):
    # Ray reads its variables, that of its token among them, where it is imported first.
    code = (
        "import sys, pathlib; from orchestrator.cluster.checkpoints import examine; from tests.trainings import CONFIG"
    )
    look = f"{code}; print(examine(pathlib.Path({str(folder)!r}), CONFIG)); sys.exit('ray' in sys.modules)"
    looked = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert looked.returncode == 0, looked.stderr


def test_a_snapshot_suits_an_older_ray_that_numbers_no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = pytest.importorskip("ray.train.v2._internal.execution.checkpoint.checkpoint_manager")

    @dataclass
    class State:
        checkpoint_results: list[Any]
        latest_checkpoint_result: Any

    monkeypatch.setattr(manager, "_CheckpointManagerState", State)
    assert checkpoints._suits_ray({"checkpoint_results": [{}], "latest_checkpoint_result": {}})
    assert not checkpoints._suits_ray({"checkpoint_results": [{}]})
