"""The command in a process of its own, under variables that make Python another than it is tested as."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = (
    "import sys, locale; from orchestrator.cli import main\n"
    "main.cli = lambda **_: print(sys.flags.optimize, sys.warnoptions, "
    "locale.getpreferredencoding(False), sys.argv[1])\n"
    "main.main()"
)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONOPTIMIZE": "2",
            "PYTHONWARNINGS": "error",
        },
    ],
)
def test_the_command_runs_under_the_python_that_it_is_tested_with(variables: dict[str, str]) -> None:
    unset = ("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONUTF8")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", SHOW, "given"]
    done = subprocess.run(command, env=clean | {"LC_ALL": "C.UTF-8"} | variables, capture_output=True, text=True)
    assert done.stdout.lower().split() == ["0", "[]", "utf-8", "given"], done.stderr


def test_a_umask_takes_nothing_from_the_user_himself(tmp_path: Path) -> None:
    code = "import os, sys; from orchestrator.cli import main\n"
    code += "main.cli = lambda **_: os.close(os.open(sys.argv[1], os.O_CREAT, 0o666)); main.main()"
    for mask, mode in ((0o777, 0o600), (0o022, 0o644), (0o077, 0o600)):
        file = tmp_path / f"{mask:o}"
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, umask=mask)
        assert file.stat().st_mode & 0o777 == mode


def test_another_package_called_model_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    code = "import orchestrator, model.config, subprocess, sys\n"
    code += (
        "subprocess.run([sys.executable, '-P', '-c', 'import model.config; print(model.config.__file__)'], check=True)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.endswith("model/config.py\n"), done.stderr
    taken = "import sys, types; sys.modules['model'] = types.ModuleType('model'); import orchestrator"
    done = subprocess.run([sys.executable, "-c", taken], capture_output=True, text=True, check=False)
    assert "another package called model is imported already" in done.stderr.splitlines()[-1]
