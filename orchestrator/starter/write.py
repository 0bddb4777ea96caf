"""Writes the experiment file of a first training on somebody's data: every choice stands in it, with its reason."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import normpath, relpath
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from model.config import HEADS
from model.settings import merge
from orchestrator.errors import Say, UserError
from orchestrator.experiment.layers import lay
from orchestrator.experiment.load import Experiment, load_experiment
from orchestrator.figures.texts import printable
from orchestrator.site import Site
from orchestrator.starter.facts import DataFacts, Machine, data_facts, machine_facts
from orchestrator.starter.recipe import Recipe, Settings, choose
from orchestrator.strict_yaml import write_value

Compare = Literal["heads"]
WIDTH = 78
"""Characters of a line, so that a terminal of 80 shows the file as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What is asked for."""

    root: Path
    """The data set: a folder or a file."""
    output: Path | None = None
    """The file to write; None names it after the data, in the current folder."""
    compare: Compare | None = None
    """heads: RetinaNet, IoU-aware Net and RetinaNet-Conf, instead of RetinaNet-Conf alone."""
    overrides: Settings | None = None
    """Settings that rule over those that are chosen."""

    @property
    def file(self) -> Path:
        """Where the experiment is written."""
        return self.output or Path(f"{suite_name(self.root)}.yaml")


def start(asked: Start, site: Site, environ: Mapping[str, str], say: Say) -> Experiment:
    """Look at the data, choose settings, write the file, and read it back.

    Raises:
        UserError: the data cannot be trained on, a setting is wrong, or the file is there already.
    """
    file = asked.file
    if file.exists():
        raise UserError(
            f"{file}: is there already; submit it (rnc submit {file}), remove it to make it anew, or name another by "
            "--output"
        )
    if not asked.root.exists():
        raise UserError(f"{asked.root.absolute()}: is not there; name the folder or the file of a data set")
    data, machine = data_facts(asked.root.absolute()), machine_facts(site, environ)
    recipe = choose(data, machine, (asked.overrides or {}).get("train"))
    for note in (*data.notes, *recipe.warnings):
        say(note)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = experiment_text(asked, data, machine, recipe)
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
    except OSError as error:
        raise UserError(f"--output: cannot write {file.absolute()} ({error.strerror}); name another file") from error
    try:
        return load_experiment(file)
    except UserError:
        file.unlink()  # a --set was wrong: what is left behind would stand in the way of the next try
        raise


def is_for(file: Path, root: Path) -> bool:
    """Whether an experiment file that is there already reads this data set."""
    named = load_experiment(file).data.root
    return named is not None and Path(named).resolve() == root.resolve()


def suite_name(root: Path) -> str:
    """Return a name for what is trained on a data set, after its folder, or its file's."""
    named = Path(normpath(root.absolute()))  # a link is called as it is, not as where it leads
    name = named.stem if named.is_file() else named.name
    # Some file systems take letters and their accents apart, which are no letters by themselves.
    name = re.sub(r"[^\w.-]+", "-", normalize("NFC", name)).strip("-_.")
    return name or "detector"


def dataset_name(name: str) -> str:
    """Return what tables call the data, which may not be the name of the project's own or of the paper's."""
    return f"my-{name}" if name.lower() in ("coco", "shapes", "shape") else name


def experiment_text(asked: Start, data: DataFacts, machine: Machine, recipe: Recipe) -> str:
    """Return the file, with the reason beside each setting that has one."""
    document = _document(asked, data, machine, recipe)
    rows = document.pop("rows")
    # Below the rows, as all else that is chosen here; what a row says is what it is compared for.
    of_rows = {
        name: value for name, value in (asked.overrides or {}).items() if name in ("train", "inference", "split")
    }
    of_file = {name: value for name, value in (asked.overrides or {}).items() if name not in of_rows}
    document = merge(document, {**of_file, "defaults": lay(of_rows, document["defaults"])})
    kept = {name: why for name, why in recipe.why.items() if _stands(document, recipe, name)}
    # Anybody may have named them, and a line end of YAML's would end the comment.
    classes = ", ".join(printable(" ".join(one.split())) for one in data.classes[:8])
    classes += ", ..." if len(data.classes) > 8 else ""
    head = (
        f"{data.train.num_images:,} images to train on with {data.train.num_boxes:,} boxes, {data.val.num_images:,} to "
        f"validate on; {len(data.classes)} classes: {classes}. Any setting may be changed; `rnc settings` lists them."
    )
    lines = [f"# {line}" for line in textwrap.wrap(head, WIDTH)]
    lines += [f"#   rnc submit {asked.file}", *_lines(document, "", kept), "rows:"]
    return "\n".join([*lines, *(f"  - {write_value(row)}" for row in rows), ""])


def _document(asked: Start, data: DataFacts, machine: Machine, recipe: Recipe) -> Settings:
    name, folder = suite_name(asked.root), asked.file.absolute().parent
    places = {"root": _place(data.root, folder)}
    if machine.weights is not None:
        places["weights"] = _place(machine.weights.absolute().parent, folder)
    train: Settings = {"data": {"dataset": dataset_name(name)}}
    for path, value in recipe.train.items():
        *parents, last = path.split(".")
        inside = train
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = value
    document: Settings = {
        "title": f"{'Three heads' if asked.compare else HEADS['classification']} on {name}",
        "suite": name,
        "data": places,
        "defaults": {"train": train},
        "resources": dict(recipe.resources),
        "rows": [{"label": HEADS["classification"]}],
    }
    if asked.compare:
        document["rows"] = [
            {
                "label": HEADS[None],
                "train": {"model": {"confidence": None}},
                "inference": {"confidence_exponent": 0},
            },
            {"label": HEADS["box"], "train": {"model": {"confidence": {"tower": "box"}}}},
            {"label": HEADS["classification"]},
        ]
        document["reference"] = HEADS[None]
    return document


def _place(path: Path, folder: Path) -> str:
    """A path below the file's own folder is written as counted from there, so that both may be moved together."""
    return relpath(path, folder) if path.is_relative_to(folder) else str(path)


def _stands(document: Settings, recipe: Recipe, name: str) -> bool:
    """Whether a setting is still as it was chosen, so that its reason is true."""
    value: Any = document["defaults"]["train"]
    if name in recipe.resources:
        return bool(document["resources"].get(name) == recipe.resources[name])
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return bool(value == recipe.train.get(name))


def _lines(settings: Settings, prefix: str, why: Mapping[str, str]) -> list[str]:
    indent = "  " * prefix.count(".")
    lines = []
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", *_lines(value, f"{path}.", why)]
        else:
            line = f"{indent}{name}: {write_value(value)}"
            reason = why.get(path.removeprefix("defaults.train.").removeprefix("resources."))
            if reason and len(f"{line}  # {reason}") > WIDTH:
                lines += textwrap.wrap(reason, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            elif reason:
                line += f"  # {reason}"
            lines.append(line)
    return lines
