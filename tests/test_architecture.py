"""Who may import whom: each outside library stands behind the modules that own it, and nothing goes in circles."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OWNERS = {
    "click": {"orchestrator/cli.py", "orchestrator/options.py"}
    | {f"orchestrator/{verbs}_verbs.py" for verbs in ("experiment", "suite", "checkpoint", "analysis")},
    "matplotlib": {"orchestrator/charts.py", "orchestrator/sweep_picture.py"},
    "pydantic": {"orchestrator/reading.py"},
    "yaml": {"orchestrator/reading.py"},
    "mlflow": {"orchestrator/artifacts.py", "orchestrator/registry.py", "orchestrator/served_model.py"},
    "ray": {
        f"orchestrator/{name}.py"
        for name in (
            "doctor_cluster",
            "gauges",
            "halving",
            "jobs",
            "launch",
            "process_group",
            "trainer",
            "trial",
            "worker",
        )
    },
}
"""The only modules that may import a library, at any level."""

LIGHT = {
    f"orchestrator/{name}.py"
    for name in (
        "errors",
        "settings",
        "reading",
        "keys",
        "resources",
        "row",
        "search",
        "sizes",
        "document",
        "estimate",
        "experiment",
        "grid",
        "plan",
        "plan_table",
        "status",
        "results",
        "table",
        "site",
    )
}
HEAVY = {"torch", "torchvision", "ray", "mlflow", "numpy", "pandas", "rich", "pyarrow", "matplotlib"}
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


def violations(root: Path) -> list[str]:
    """Return a line for each import that breaks a rule."""
    found = []
    for path in sources(root):
        here = path.relative_to(root).as_posix()
        for name, line, at_once in imports(path, root):
            library = name.split(".")[0]
            if library in OWNERS and here not in OWNERS[library]:
                found.append(f"{here}:{line} imports {library}, which belongs to {', '.join(sorted(OWNERS[library]))}")
            if library == "orchestrator" and here.startswith("model/"):
                found.append(f"{here}:{line} imports {name}; model knows nothing of orchestrator")
            if library in HEAVY and at_once and (here in LIGHT or here.endswith("__init__.py")):
                found.append(f"{here}:{line} imports {library} at once; `rnc plan` must stay quick")
    return list(dict.fromkeys(found))


def test_every_library_is_imported_only_by_the_modules_that_own_it() -> None:
    assert violations(ROOT) == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources(ROOT)}
    graph = {name: {other for other, *_ in imports(path, ROOT) if other in names} for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_planning_imports_nothing_heavy() -> None:
    modules = "model, model.config, orchestrator.experiment, orchestrator.plan, "
    modules += "orchestrator.plan_table, orchestrator.status, orchestrator.results, orchestrator.table"
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("model/loss.py", "import ray.train", "model/loss.py:2 imports ray, which belongs to"),
        ("model/loss.py", "from orchestrator import plan", "model/loss.py:2 imports orchestrator;"),
        ("orchestrator/plan.py", "import torch", "orchestrator/plan.py:2 imports torch at once"),
        (
            "orchestrator/launch.py",
            "def f():\n    from mlflow import log_metric",
            "orchestrator/launch.py:3 imports mlflow",
        ),
    ],
)
def test_a_forbidden_import_is_named_by_file_and_line(tmp_path: Path, file: str, line: str, says: str) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(f'"""A module."""\n{line}\n')
    assert [violation[: len(says)] for violation in violations(tmp_path)][:1] == [says]


def test_a_light_module_may_import_heavy_things_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator/site.py").write_text("def f():\n    import torch\n")
    assert violations(tmp_path) == []
