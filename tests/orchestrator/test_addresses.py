"""Logins in addresses: expectations are the parts that each address was put together from."""

import json
from urllib.parse import quote

import pytest

from orchestrator.addresses import (
    Address,
    job_headers,
    logins_apart,
    read_address,
    require_bare,
    without_secrets,
)
from orchestrator.errors import UserError

HARD = "p:/@?#%[ w"
"""A password of the characters that end a part of an address."""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", Address("")),
        ("auto", Address("auto")),
        ("head:6379", Address("head:6379")),
        ("[::1]:6379", Address("[::1]:6379")),
        ("ray://head:10001", Address("ray://head:10001")),
        ("https://host/mlflow/", Address("https://host/mlflow/")),
        ("http://ada:pw@host:5000", Address("http://host:5000", "ada", "pw")),
        ("http://ada@host", Address("http://host", "ada", None)),
        ("http://:pw@host", Address("http://host", "", "pw")),
        ("http://ada:p@w@[::1]:5000/x", Address("http://[::1]:5000/x", "ada", "p@w")),
        (f"http://ada:{quote(HARD, safe='')}@host", Address("http://host", "ada", HARD)),
        ("postgresql://ada:pw@host/mlflow", Address("postgresql://host/mlflow", "ada", "pw")),
        ("ada:pw@head:6379", Address("head:6379", "ada", "pw")),
        ("sqlite:///mlflow.db", Address("sqlite:///mlflow.db")),
        ("C:\\mlruns", Address("C:\\mlruns")),
    ],
)
def test_an_address_is_read_in_parts(text: str, parts: Address) -> None:
    assert read_address("X", text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "http://ada:geh/eim@host",
        "http://ada:geh?eim@host",
        "http://ada:geh#eim@host",
        "http://ada:geh\\eim@host",
        "http://ada:geh eim@host",
        "http://ada:geh://eim@host",
        "http://host/mlflow?token=geheim",
        "http://host/?token=ge@heim",
        "http://host/#geheim",
        "http://ada:geheim@host:port",
        "http://ada:geheim@[host",
        "http://ada:geheim@host:99999",
    ],
)
def test_what_may_be_a_password_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(UserError, match=r"^X") as refused:
        read_address("X", text)
    assert not [part for part in ("geh", "eim", "heim") if part in str(refused.value)]


def test_logins_go_to_the_variables_that_clients_take_them_from() -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://ada:p%40w@host:5000"}
    apart = {
        "MLFLOW_TRACKING_URI": "http://host:5000",
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "p@w",
    }
    assert logins_apart(environ) == apart
    assert logins_apart(environ | apart) == {}
    # What somebody has set on purpose counts.
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"):
        assert logins_apart(environ | {name: "own"}) == {"MLFLOW_TRACKING_URI": "http://host:5000"}
    # That of a database is taken out as well, so that the refusal of it does not show it.
    database = logins_apart({"MLFLOW_TRACKING_URI": "postgresql://ada:pw@host/x"})
    assert database == {"MLFLOW_TRACKING_URI": "postgresql://host/x"}
    head = logins_apart({"RAY_ADDRESS": "https://ada:x:y@head:8265"})
    assert head == {
        "RAY_ADDRESS": "https://head:8265",
        "RAY_JOB_HEADERS": '{"Authorization": "Basic YWRhOng6eQ=="}',  # b64(ada:x:y)
    }
    assert job_headers(head) == {"Authorization": "Basic YWRhOng6eQ=="}
    own = {"RAY_JOB_HEADERS": '{"Authorization": "Bearer z", "X-Tenant": "a"}'}
    told = logins_apart({"RAY_ADDRESS": "https://ada:x:y@head:8265"} | own)
    assert json.loads(told["RAY_JOB_HEADERS"]) == json.loads(own["RAY_JOB_HEADERS"])


@pytest.mark.parametrize("address", ["head:6379", "ray://head:10001", "http://head:8265", "auto"])
def test_a_password_is_refused_where_it_would_travel(address: str) -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://ada:geheim@host:5000", "RAY_ADDRESS": address}
    with pytest.raises(UserError, match=r"nodes hold MLFLOW_TRACKING_USERNAME .* give http://host:5000$") as refused:
        logins_apart(environ)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("address", ["ray://ada:geheim@head:10001", "ada:geheim@head:6379"])
def test_a_password_for_a_cluster_that_takes_none_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="takes no user and no password") as refused:
        logins_apart({"RAY_ADDRESS": address})
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"a": 1}'])
def test_headers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="RAY_JOB_HEADERS: expected a JSON object"):
        job_headers({"RAY_JOB_HEADERS": text})


def test_addresses_in_texts_lose_their_logins_and_nothing_else() -> None:
    link = "http://ada:p@w:x@host:5000/#/experiments/1/runs?searchFilter=a%40b"
    assert without_secrets(link) == "http://host:5000/#/experiments/1/runs?searchFilter=a%40b"
    error = "Failed to parse: http://ada:pw@host:x (see https://docs/a@b, me@home)"
    assert without_secrets(error) == "Failed to parse: http://host:x (see https://docs/a@b, me@home)"
    assert without_secrets("p://a:b@c p://d:e@f") == "p://c p://f"


def test_only_a_bare_address_is_passed_around() -> None:
    require_bare("X", None)
    require_bare("X", "http://host:5000/")
    with pytest.raises(UserError, match=r"^X: the address holds a user or a password") as refused:
        require_bare("X", "http://ada:geheim@host")
    assert "geheim" not in str(refused.value)
