"""A site with one Ray for each file of tests."""

from collections.abc import Iterator

import pytest

from model.data.shapes import draw_shapes
from orchestrator.cluster import connect
from orchestrator.site import Site
from orchestrator.tracking import server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Drawn scenes of 64 pixels, 32 to train on and 8 to validate on, a Ray of two CPUs, and an MLflow server."""
    site = Site(home=tmp_path_factory.mktemp("home"))
    draw_shapes(site.data_root("shapes"), num_train=32, num_val=8, image_size=64)
    starting = server.begin_tracking_server(site)
    connect.start_ray(site)
    starting.wait()
    yield site
    connect.stop_ray()
    server.stop_server(site)
