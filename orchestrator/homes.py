"""RNC_HOME: makes it, and knows which one a suite was last submitted with.

A submit from another folder would silently begin everything anew.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FILE = Path("retinanet-conf") / "homes.json"


def home_of(environ: Mapping[str, str]) -> Path:
    """Return RNC_HOME as an environment names it, absolute; `runs` in the working folder where it does not."""
    return Path(os.path.expanduser(environ.get("RNC_HOME") or "runs")).absolute()


def make_home(home: Path) -> Path:
    """Make RNC_HOME, which nobody else may look into, and return it; one that is there keeps its mode.

    A group may share one that somebody made for it; what is made in it follows the umask.
    """
    with suppress(OSError):  # who writes there next says what cannot be written, and why
        home.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
    return home


def remember(suite: str, folder: Path, home: Path) -> None:
    """Note that the suite, whose experiment files lie in `folder`, is submitted with this RNC_HOME."""
    file = _file()
    noted = _noted(file) | {_name(suite, folder): str(home)}
    with suppress(OSError):  # a machine without a home directory only goes without the hint
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(noted, indent=1))
        part.replace(file)


def last_home(suite: str, folder: Path) -> Path | None:
    """Return the RNC_HOME that the suite was last submitted with on this machine, by this user."""
    home = _noted(_file()).get(_name(suite, folder))
    return Path(home) if isinstance(home, str) else None


def describe_home(suite: str, folder: Path, home: Path) -> str:
    """Say what RNC_HOME is, whether it is new, and whether the suite was last submitted with another."""
    before = last_home(suite, folder)
    is_new = not home.is_dir() or not any(home.iterdir())
    text = f"RNC_HOME {home}{' is new: nothing is recorded there' if is_new else ''}"
    if before is None or before == home or not before.is_dir():
        return text
    return (
        f"{text}; suite {suite} was last submitted with another, {before}: here it begins anew. To go on there: "
        f"RNC_HOME={before}"
    )


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / FILE


def _noted(file: Path) -> dict[str, object]:
    try:
        noted = json.loads(file.read_bytes())
    except (OSError, ValueError):  # missing or damaged: a hint is lost, and nothing else
        return {}
    return noted if isinstance(noted, dict) else {}


def _name(suite: str, folder: Path) -> str:
    return f"{suite} in {folder.resolve()}"
