"""Who may import whom: each outside library stands behind the modules that own it, and nothing goes in circles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    "cli",
    "api.py",
    "driver starter",
    "checkpoint",
    "report",
    "worker doctor",
    "cluster",
    "tracking",
    "experiment",
    "data",
    "figures mlflow_server",
    "",
)
"""The folders of orchestrator/, from the top, each above what it imports; "" are the modules in none of them."""
MODEL_ORDER = ("training", "evaluation", "inference", "losses", "assignment", "network", "data", "")
"""The folders of model/, likewise."""
MOST_ROOMS = 10

OWNERS = {
    "click": {"orchestrator/cli/"},
    "matplotlib": {"orchestrator/figures/"},
    "jinja2": {"orchestrator/figures/templating.py"},
    "markupsafe": {"orchestrator/figures/templating.py"},
    "yaml": {"orchestrator/strict_yaml.py", "model/data/layouts/yolo.py", "model/foreign.py"},
    "mlflow": {
        "orchestrator/tracking/artifacts.py",
        "orchestrator/mlflow_server/",
        "orchestrator/checkpoint/registry.py",
        "orchestrator/checkpoint/served_model.py",
    },
    "ray": {
        "orchestrator/cluster/",
        "orchestrator/doctor/nodes.py",
        "orchestrator/driver/launch.py",
        "orchestrator/worker/",
    },
}
"""The only places that may import a library, at any level."""

LIGHT = {
    "model/settings.py",
    "orchestrator/errors.py",
    "orchestrator/site.py",
    "orchestrator/experiment/",
    "orchestrator/figures/screen.py",
    "orchestrator/figures/table.py",
    "orchestrator/report/claims/boxes.py",
    "orchestrator/report/plan_table.py",
    "orchestrator/report/results/",
    "orchestrator/report/status_table.py",
}
HEAVY = {"torch", "torchvision", "ray", "mlflow", "numpy", "pandas", "rich", "pyarrow", "matplotlib", "jinja2"}
"""What LIGHT modules, behind `rnc plan` and `rnc --help`, must not import at module level."""


def sources(root: Path) -> list[Path]:
    return sorted(path for package in ("model", "orchestrator") for path in (root / package).rglob("*.py"))


def imports(path: Path, root: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, whether it is imported with the file itself)."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    deferred = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = list(path.relative_to(root).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package[: -node.level] if node.level else []), *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) not in deferred


def is_in(file: str, places: set[str]) -> bool:
    """Say whether a file is one of some places, which are files and folders."""
    return any(file == place or (place.endswith("/") and file.startswith(place)) for place in places)


def climbs(file: Path, name: str) -> bool:
    """Say whether a module imports from a folder that stands above or beside its own."""
    package, *rest = name.split(".")
    if package != file.parts[0] or (len(file.parts) == 2 and file.name == "__init__.py"):  # a package's face sees all
        return False
    order = ORDER if package == "orchestrator" else MODEL_ORDER
    places = {folder: place for place, level in enumerate(order) for folder in level.split() or [""]}
    here = file.parts[1] if file.parts[1] in places else ""
    there = next((one for one in (rest[0], f"{rest[0]}.py") if one in places), "") if rest else ""
    return here != there and places.get(here, 0) >= places[there]


def violations(root: Path) -> list[str]:
    """Return a line for each import that breaks a rule."""
    found = []
    for path in sources(root):
        here = path.relative_to(root).as_posix()
        for name, line, at_once in imports(path, root):
            library = name.split(".")[0]
            if library in OWNERS and not is_in(here, OWNERS[library]):
                found.append(f"{here}:{line} imports {library}, which belongs to {', '.join(sorted(OWNERS[library]))}")
            if library == "orchestrator" and here.startswith("model/"):
                found.append(f"{here}:{line} imports {name}; model knows nothing of orchestrator")
            if climbs(path.relative_to(root), name):
                found.append(f"{here}:{line} imports {name}; folders import downwards alone")
            if library in HEAVY and at_once and (is_in(here, LIGHT) or here.endswith("__init__.py")):
                found.append(f"{here}:{line} imports {library} at once; `rnc plan` must stay quick")
    return list(dict.fromkeys(found))


def test_every_library_is_imported_only_by_the_modules_that_own_it() -> None:
    assert violations(ROOT) == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources(ROOT)}
    graph = {name: {other for other, *_ in imports(path, ROOT) if other in names} for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


@pytest.mark.parametrize("folder", sorted({path.parent for path in sources(ROOT)}), ids=lambda path: path.name)
def test_a_folder_has_few_rooms_and_says_what_it_is_for(folder: Path) -> None:
    rooms = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(rooms) <= MOST_ROOMS
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1 or folder.parent == ROOT


def test_planning_imports_nothing_heavy() -> None:
    modules = "model, model.config, orchestrator.experiment.load, orchestrator.experiment.plan, "
    modules += "orchestrator.report.plan_table, orchestrator.report.results.table, orchestrator.figures.table"
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("model/loss.py", "import ray.train", "model/loss.py:2 imports ray, which belongs to"),
        ("model/loss.py", "from orchestrator import plan", "model/loss.py:2 imports orchestrator;"),
        (
            "orchestrator/report/pages.py",
            "def f():\n    from orchestrator.driver.submit import submit",
            "orchestrator/report/pages.py:3 imports orchestrator.driver.submit; folders import downwards",
        ),
        (
            "orchestrator/worker/run.py",
            "from orchestrator.doctor import probes",
            "orchestrator/worker/run.py:2 imports orchestrator.doctor; folders import downwards",
        ),
        ("model/data/coco.py", "import model.network.anchors", "model/data/coco.py:2 imports model.network.anchors;"),
        ("orchestrator/experiment/plan.py", "import torch", "orchestrator/experiment/plan.py:2 imports torch at once"),
        (
            "orchestrator/driver/launch.py",
            "def f():\n    from mlflow import log_metric",
            "orchestrator/driver/launch.py:3 imports mlflow",
        ),
    ],
)
def test_a_forbidden_import_is_named_by_file_and_line(tmp_path: Path, file: str, line: str, says: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(f'"""A module."""\n{line}\n')
    assert [violation[: len(says)] for violation in violations(tmp_path)][:1] == [says]


def test_a_light_module_may_import_heavy_things_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator/site.py").write_text("def f():\n    import torch\n")
    assert violations(tmp_path) == []


def test_the_image_gets_the_modules_of_every_folder():
    rules = (ROOT / "deploy/docker/Dockerfile.dockerignore").read_text().splitlines()
    folders = {path.parent for package in ("model", "orchestrator") for path in (ROOT / package).rglob("__init__.py")}
    assert {f"!{folder.relative_to(ROOT).as_posix()}/*.py" for folder in folders} <= set(rules)
