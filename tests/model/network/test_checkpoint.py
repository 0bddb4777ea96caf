"""Checkpoints: what is written comes back, and what was damaged, swapped or forged is refused."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import model.network.checkpoint
from model.config import ConfidenceConfig, DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from model.data.cache import file_sha256
from model.network.checkpoint import (
    Categories,
    damages,
    load_resume,
    load_weights,
    read_card,
    require_categories,
    save_checkpoint,
    seal,
)
from model.network.retinanet import load_detector

CONFIG = TrainConfig(
    model=ModelConfig(channels=32, confidence=ConfidenceConfig(loss="gfocal")),
    data=DataConfig(num_train_images=7),
    schedule=ScheduleConfig(lr_drop_epochs=(3, 5), gradient_clip=2.5),
    seed=4,
)
CATEGORIES = ((1, 5), ("cat", "hund ü"))
WEIGHTS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2, 3])}


def stepped() -> torch.optim.Optimizer:
    """SGD with momentum that has made one update."""
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    return optimizer


def save(folder: Path, weights: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "config": CONFIG,
        "epoch": 2,
        "step": 34,
        "categories": CATEGORIES,
        "data_fingerprint": "f" * 64,
        "optimizer": stepped().state_dict(),
    }
    return save_checkpoint(folder, weights=weights or WEIGHTS, **(settings | changes))


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    folder = save(tmp_path / "runs" / "epoch-0002")
    assert folder == tmp_path / "runs" / "epoch-0002"
    card = read_card(folder)
    assert (card.config, card.epoch, card.step) == (CONFIG, 2, 34)
    assert (card.category_ids, card.category_names) == ((1, 5), ("cat", "hund ü"))
    weights = load_weights(folder)
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in WEIGHTS.items())
    state = load_resume(folder, CONFIG, CATEGORIES, "f" * 64)
    assert (state["epoch"], state["step"]) == (2, 34)
    momentum = state["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, torch.tensor([[1.0, 2.0]]))
    assert [path.name for path in folder.parent.iterdir()] == ["epoch-0002"]


def test_a_config_without_confidence_comes_back(tmp_path: Path) -> None:
    plain = replace(CONFIG, model=replace(CONFIG.model, confidence=None))
    assert read_card(save(tmp_path / "one", config=plain)).config == plain


def test_weights_that_do_not_lie_in_rows_come_back_equal(tmp_path: Path) -> None:
    image_like = torch.arange(48.0).reshape(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    folder = save(tmp_path / "one", weights={"a": image_like, "b": WEIGHTS["a.weight"].t()})
    assert torch.equal(load_weights(folder)["a"], image_like)
    assert torch.equal(load_weights(folder)["b"], WEIGHTS["a.weight"].t())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "one") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors has sha256 \w{12}, its card says \w{12}: .*fetch"):
        load_weights(file.parent)


def test_swapped_weights_are_refused(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one"), save(tmp_path / "other", weights={"a": torch.zeros(3)})
    (other / "model.safetensors").replace(one / "model.safetensors")
    with pytest.raises(ValueError, match="its card says"):
        load_weights(one)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "one")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"one/model\.safetensors cannot be read \(No such file.*fetch"):
        load_weights(folder)


def test_a_card_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "one") / "config.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"epoch": 3}))
    with pytest.raises(ValueError, match=r"one/config\.json has other content than its card_sha256 says.*fetch"):
        load_weights(file.parent)
    del card["card_sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(card))
    assert load_weights(file.parent).keys() == WEIGHTS.keys()


def test_a_card_of_another_detector_than_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one: the weights are of another detector than the card's"):
        load_detector(save(tmp_path / "one"))


@pytest.mark.parametrize("content", [None, "{", "[" * 5000, "[]", "{}", '{"config": {"model": {}}}'])
def test_a_folder_without_a_card_is_no_checkpoint(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is not the card of a checkpoint"):
        read_card(tmp_path)


def test_a_card_with_a_setting_of_another_version_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "one") / "config.json"
    card = json.loads(file.read_text())
    card["config"]["model"]["colour"] = "red"
    file.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="colour"):
        read_card(file.parent)


def test_a_card_whose_classes_have_other_names_than_ids_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "one") / "config.json"
    card = json.loads(file.read_text())
    card["category_names"].append("one more")
    file.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"config\.json .*category_ids has \d+ classes, category_names \d+"):
        read_card(file.parent)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (replace(CONFIG, seed=5), "train.seed was 4, now 5"),
        (
            replace(CONFIG, schedule=replace(CONFIG.schedule, learning_rate=0.02), seed=5),
            "train.schedule.learning_rate was 0.01, now 0.02",
        ),
        (
            replace(CONFIG, model=replace(CONFIG.model, confidence=ConfidenceConfig(loss="l1"))),
            "train.model.confidence.loss was 'gfocal', now 'l1'",
        ),
        (
            replace(CONFIG, model=replace(CONFIG.model, confidence=None)),
            "train.model.confidence was ConfidenceConfig(",
        ),
    ],
)
def test_another_training_cannot_resume_and_the_first_differing_setting_is_named(
    tmp_path: Path, other: TrainConfig, difference: str
) -> None:
    folder = save(tmp_path / "one")
    with pytest.raises(ValueError, match="belongs to another training") as caught:
        load_resume(folder, other, CATEGORIES, "f" * 64)
    assert difference in str(caught.value)


def test_other_data_cannot_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on other data \(fingerprint f{12}, now e{12}\)"):
        load_resume(save(tmp_path / "one"), CONFIG, CATEGORIES, "e" * 64)


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        (((1, 5), ("cat", "dog")), "class 2 of 2 was id 5 'hund ü', now id 5 'dog'; take data with"),
        (((1, 6), ("cat", "hund ü")), "class 2 of 2 was id 5 'hund ü', now id 6 'hund ü'; the names are the same"),
        (((1, 5), ("hund ü", "cat")), "class 1 of 2 was id 1 'cat', now id 1 'hund ü'; the names are the same"),
        (((1,), ("cat",)), "class 2 of 2 was id 5 'hund ü', now missing; take data with"),
        (((1, 5, 7), ("cat", "hund ü", "emu")), "class 3 of 2 was missing, now id 7 'emu'; take data with"),
        (((0, 1, 5), ("emu", "cat", "hund ü")), "class 1 of 2 was id 1 'cat', now id 0 'emu'; take data with"),
    ],
)
def test_a_checkpoint_meets_no_other_classes_and_the_first_that_differs_is_named(
    tmp_path: Path, categories: Categories, difference: str
) -> None:
    folder = save(tmp_path / "one")
    require_categories(folder, CATEGORIES, "split val")
    for refuse in (
        lambda: require_categories(folder, categories, "split train2017"),
        lambda: load_resume(folder, CONFIG, categories, "e" * 64),
    ):
        with pytest.raises(ValueError, match="was trained on other classes than split train2017 has: ") as caught:
            refuse()
        assert f": {difference}" in str(caught.value)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("plain_pickle", [True, False])
def test_a_forged_resume_file_is_refused_and_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    folder, victim = save(tmp_path / "one"), tmp_path / "victim"
    forged = {"optimizer": Malicious(victim), "epoch": 2, "step": 34}
    pickle.loads(pickle.dumps(forged))
    assert victim.exists()  # the forgery works where nobody looks
    victim.unlink()
    if plain_pickle:
        (folder / "resume.pt").write_bytes(pickle.dumps(forged))
    else:
        torch.save(forged, folder / "resume.pt")
    with pytest.raises(ValueError, match=r"resume\.pt is no state to resume from \(it .* its card says .* remove"):
        load_resume(folder, CONFIG, CATEGORIES, "f" * 64)
    card = json.loads((folder / "config.json").read_text())
    for digest in (file_sha256(folder / "resume.pt"), ""):  # whoever forges the one forges the other, too
        (folder / "config.json").write_text(json.dumps(card | {"resume_sha256": digest}))
        with pytest.raises(ValueError, match=r"resume\.pt is no state to resume from \(UnpicklingError\); remove"):
            load_resume(folder, CONFIG, CATEGORIES, "f" * 64)
    assert not victim.exists()


def test_a_flipped_byte_of_the_state_is_refused_though_torch_would_read_it(tmp_path: Path) -> None:
    file = save(tmp_path / "one") / "resume.pt"
    content = bytearray(file.read_bytes())
    place = content.index(torch.tensor([[1.0, 2.0]]).numpy().tobytes())
    content[place + 3] ^= 1
    file.write_bytes(content)
    momentum = torch.load(file, weights_only=True)["optimizer"]["state"][0]["momentum_buffer"]
    assert not torch.equal(momentum, torch.tensor([[1.0, 2.0]]))
    with pytest.raises(
        ValueError, match=r"resume\.pt is no state to resume from \(it .*\d bytes\) has sha256 \w{12}, its"
    ):
        load_resume(file.parent, CONFIG, CATEGORIES, "f" * 64)


def test_a_card_of_an_older_version_without_digests_of_state_and_card_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "one")
    card = json.loads((folder / "config.json").read_text())
    assert card["resume_sha256"] == file_sha256(folder / "resume.pt")
    assert card["card_sha256"] == seal(card)
    old = {name: value for name, value in card.items() if name not in ("resume_sha256", "card_sha256")}
    (folder / "config.json").write_text(json.dumps(old))
    assert (read_card(folder).step, read_card(folder).resume_sha256) == (34, "")
    assert load_resume(folder, CONFIG, CATEGORIES, "f" * 64)["step"] == 34
    assert list(damages(folder)) == []


def test_saving_over_a_checkpoint_leaves_the_new_one_whole(tmp_path: Path) -> None:
    folder = save(tmp_path / "one")
    (folder / "stray.txt").write_text("of the old one")
    save(folder, weights={"c": torch.ones(2)}, step=99)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "resume.pt"]
    assert load_weights(folder)["c"].tolist() == [1, 1]
    assert load_resume(folder, CONFIG, CATEGORIES, "f" * 64)["step"] == read_card(folder).step == 99
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("owner", "name"), [(torch, "save"), (os, "fsync"), (Path, "rename"), (model.network.checkpoint, "_exchange")]
)
def test_a_failure_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    folder = save(tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        if name == "rename":
            patch.setattr(model.network.checkpoint, "_exchange", lambda *_: False)
        with pytest.raises(OSError, match="no space left"):
            save(folder, weights={"c": torch.ones(2)}, step=99)
        if name != "_exchange":
            with pytest.raises(OSError, match="no space left"):
                save(tmp_path / "two")
    assert read_card(folder).step == 34
    assert torch.equal(load_weights(folder)["a.weight"], WEIGHTS["a.weight"])
    assert load_resume(folder, CONFIG, CATEGORIES, "f" * 64)["step"] == 34
    assert not (tmp_path / "two").exists()
    assert save(tmp_path / "two", step=99).is_dir()
    save(folder, step=99)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
