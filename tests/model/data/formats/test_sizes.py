"""Sizes out of headers: those that the test has written."""

from pathlib import Path

from PIL import Image

from model.data.formats.sizes import NO_SIZE, image_sizes


def test_sizes_are_those_of_the_images_of_the_folder_and_of_none_outside(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for name in ("data/1.png", "data/sub/2.png", "secret.png"):
        Image.new("RGB", (80, 60)).save(tmp_path / name)
    names = ["1.png", "sub/2.png", "sub/../1.png", "none.png", "../secret.png", str(tmp_path / "secret.png")]
    expected = [[60, 80], [60, 80], [60, 80], list(NO_SIZE), list(NO_SIZE), list(NO_SIZE)]
    assert image_sizes(tmp_path / "data", names).tolist() == expected
