"""Everything around the detector: experiment grids on Ray, recorded in MLflow, rendered as the paper's tables.

From a notebook: `import orchestrator as rnc; suite = rnc.open("experiments/demo")`; orchestrator/api.py says the rest.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.api import OpenSuite


_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _find_model() -> None:
    """See that `model` is the folder beside this one, though PYTHONPATH or a notebook's own folder may hold another."""
    import sys

    there = sys.modules.get("model") or importlib.util.find_spec("model")
    file = getattr(there, "__file__", None) or getattr(there, "origin", None)
    if file and os.path.realpath(os.path.dirname(file)) == os.path.realpath(os.path.join(_ROOT, "model")):
        return
    if "model" in sys.modules:
        raise ImportError(f"another package called model is imported already, from {file}; import orchestrator first")
    # Also for the processes that this one starts: Ray's workers, and what compiles.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, _ROOT)


_find_model()


def open(*experiments: "str | Path", home: "str | Path | None" = None, yes: bool = False) -> "OpenSuite":
    """Open the suite of some experiment files; nothing is started or written.

    Args:
        experiments: YAML files, or folders of them.
        home: where data, records and checkpoints are; None takes RNC_HOME, or ./runs. The other variables of the
            environment (RNC_COCO_ROOT, RNC_WEIGHTS, MLFLOW_TRACKING_URI, RAY_ADDRESS) count as for `rnc`.
        yes: take files of more than 1,000 rows, which may be a slip in a grid, as --yes of `rnc` does.

    Raises:
        UserError: no file is named, a file has mistakes, or the files belong to several suites.
    """
    from orchestrator.addresses import logins_apart
    from orchestrator.api import OpenSuite
    from orchestrator.errors import UserError
    from orchestrator.experiment.load import load_experiments
    from orchestrator.experiment.search import MOST_ROWS, MOST_ROWS_EVER
    from orchestrator.site import site_from_environment

    if not experiments or not all(isinstance(given, str | os.PathLike) for given in experiments):
        raise UserError(
            "rnc.open: name experiment files or folders of them, one by one; those of a list: rnc.open(*files)"
        )
    os.environ.update(logins_apart(os.environ))
    environment = dict(os.environ) if home is None else {**os.environ, "RNC_HOME": str(home)}
    read = load_experiments(experiments, most_rows=MOST_ROWS_EVER if yes else MOST_ROWS)
    return OpenSuite(read, site_from_environment(environment))
