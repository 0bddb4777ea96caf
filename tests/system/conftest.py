"""Ray's environment, set before any test imports Ray."""

from orchestrator.rayenv import set_ray_environment

set_ray_environment(is_local=True)
