"""One real MLflow server for all tests that only use it, and one for those that end it."""

import os
from collections.abc import Iterator

import pytest

from orchestrator.site import Site
from orchestrator.tracking.server import stop_server, tracking_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count every test with a real server among the slow ones."""
    for item in items:
        if {"mlflow_uri", "mortal_site"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _no_surroundings() -> Iterator[None]:
    """Keep the MLflow server and the proxies of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MLFLOW_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory, _no_surroundings: None) -> Iterator[str]:
    """The address of an embedded server that nobody may end; tests keep apart by suite."""
    site = Site(home=tmp_path_factory.mktemp("home"))
    yield tracking_server(site)
    stop_server(site)


@pytest.fixture(scope="session")
def mortal_site(tmp_path_factory: pytest.TempPathFactory, _no_surroundings: None) -> Iterator[Site]:
    """A site whose embedded server any test may start and end."""
    site = Site(home=tmp_path_factory.mktemp("a home with spaces, 100% #1?"))
    yield site
    stop_server(site)
