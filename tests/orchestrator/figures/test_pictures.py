"""The images that pictures are drawn of, by the ids that a user names."""

import pytest

from orchestrator.errors import UserError
from orchestrator.figures.pictures import parse_image_ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [("42, 57,42", (42, 57)), ("-3,0", (-3, 0)), ("9007199254740993,9007199254740992", (2**53 + 1, 2**53))],
)
def test_ids_are_read_to_their_last_digit(text: str, ids: tuple[int, ...]) -> None:
    assert parse_image_ids(text) == ids


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1.5", "--3", "-"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no image id, expected numbers such as 42,57"):
        parse_image_ids(text)
