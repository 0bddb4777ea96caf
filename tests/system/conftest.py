"""Ray's environment, set before any test imports Ray, and a site with one Ray for each file."""

from collections.abc import Iterator

import pytest

from orchestrator.rayenv import set_ray_environment

set_ray_environment(is_local=True)

from model.shapes import draw_shapes  # noqa: E402
from orchestrator import launch, server  # noqa: E402
from orchestrator.site import Site  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Drawn scenes of 64 pixels, 32 to train on and 8 to validate on, a Ray of two CPUs, and an MLflow server."""
    site = Site(home=tmp_path_factory.mktemp("home"))
    draw_shapes(site.data_root("shapes"), num_train=32, num_val=8, image_size=64)
    starting = server.begin_tracking_server(site)
    launch.start_ray(site)
    starting.wait()
    yield site
    launch.stop_ray()
    server.stop_server(site)
