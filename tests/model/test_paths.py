"""Names as paths: expectations follow from what the kernel would open under each."""

from pathlib import Path

import pytest

from model.paths import OutsideError, inside, named_folder, one_name


@pytest.mark.parametrize(
    ("name", "path"),
    [("a.png", "a.png"), ("./b/a.png", "b/a.png"), ("b/../a.png", "a.png"), ("..a/...", "..a/..."), ("a\\b", "a\\b")],
)
def test_a_name_below_a_folder_is_its_path(tmp_path: Path, name: str, path: str) -> None:
    assert inside(tmp_path, name) == tmp_path / path
    assert inside(tmp_path / "train", f"../val/{name}", tmp_path) == tmp_path / "val" / path


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "b/../../a", "/etc/passwd", "//etc/passwd", "a\0b", "../{name}-2/a", "b/../../{name}2/a"],
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutsideError, match="leads out of"):
        inside(tmp_path, name.format(name=tmp_path.name))


def test_an_absolute_name_is_refused_even_where_it_leads_back(tmp_path: Path) -> None:
    with pytest.raises(OutsideError):
        inside(tmp_path, f"{tmp_path}/a.png")


def test_links_are_their_owners_affair(tmp_path: Path) -> None:
    store, data = tmp_path / "store", tmp_path / "data"
    (store / "train").mkdir(parents=True)
    (store / "train" / "a.png").touch()
    data.symlink_to(store)
    assert inside(data, "train/a.png") == data / "train" / "a.png"
    (store / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert inside(data, "link.png") == data / "link.png"
    # The kernel would climb from where the link leads.
    (store / "sub").symlink_to(tmp_path / "far" / "away")
    assert inside(data, "sub/../a.png") == data / "a.png"


def test_a_file_stands_for_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "data.v2").mkdir()
    (tmp_path / "data.v2" / "x.json").touch()
    assert named_folder(tmp_path / "data.v2") == named_folder(tmp_path / "data.v2" / "x.json") == tmp_path / "data.v2"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("heads-row-1-abc123", "heads-row-1-abc123"),
        ("Größe 2 (é)", "Größe 2 (é)"),
        ("../../x", "-..-x"),
        ("/", "-"),
        ("..", "-"),
        ("", "-"),
        ("a\\b\0c\x1b[31m", "a-b-c-[31m"),
        ("é" * 200, "é" * 75),
    ],
)
def test_any_text_makes_one_name(tmp_path: Path, text: str, name: str) -> None:
    assert one_name(text) == name
    assert inside(tmp_path, one_name(text)).parent == tmp_path
