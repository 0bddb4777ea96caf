"""Waiting for a server that is away, with fake actions and short times."""

import pytest

from orchestrator.errors import UserError
from orchestrator.tracking.rest import Refused, ServerAway, retried


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def failing(*errors: UserError):
    """An action that raises these one after the other, and then succeeds."""
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def test_what_passes_is_waited_for():
    away, locked = ServerAway("away"), Refused("locked", "INTERNAL_ERROR")
    lost = Refused("Run with id=1 not found", "RESOURCE_DOES_NOT_EXIST")
    deleted = Refused("must be in the 'active' state. Current state is deleted.", "INVALID_PARAMETER_VALUE")
    assert retried(failing(away, locked, lost, deleted), 60.0) == "done"


def test_what_the_server_refuses_for_good_is_raised_at_once():
    with pytest.raises(Refused, match="too long"):
        retried(failing(Refused("too long", "INVALID_PARAMETER_VALUE")), 60.0)


def test_a_retry_that_is_in_vain_ends_with_how_it_goes_on():
    with pytest.raises(UserError, match=r"took no record for 0 minutes \(away\); .* without training again") as info:
        retried(failing(*[ServerAway("away")] * 100), 0.1)
    assert not isinstance(info.value, ServerAway)  # so that nobody tries again
