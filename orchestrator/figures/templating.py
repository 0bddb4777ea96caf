"""Fills the templates of pages, drawings and notes, which lie in `templates/`, by jinja2."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def fill(name: str, **values: Any) -> str:
    """Render a template.

    Args:
        name: of its file. In `.html` and `.svg` every value is escaped; in Markdown what goes through the filter `md`.
        values: what it shows; one that it needs and does not get is an error.
    """
    return _environment().get_template(name).render(values)


@cache
def _environment() -> "Environment":
    # Imported here, since tables are on the way of `rnc plan`, which prints no page.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from orchestrator.figures.texts import for_markdown, printable

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith((".html", ".svg")),
        undefined=StrictUndefined,
        # Markup, such as a drawing, is ours; every other text may be a stranger's.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Compact, and in the order given: jinja's default sorts the keys.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    environment.filters["md"] = for_markdown
    environment.filters["tenths"] = lambda number: f"{round(number, 1):g}"
    # Styles and scripts are put in as they are: their braces are not jinja's.
    environment.globals["file"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment
