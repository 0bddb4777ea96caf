"""Texts of tables: how wide they are, where they break, and how they are escaped for screens, GitHub and LaTeX."""

import re
import unicodedata


def width(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    if text.isascii():  # most of what tables of thousands of rows hold
        return len(text)
    # Combining marks take no column, East Asian wide letters two.
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, most: int) -> list[str]:
    """Break a text between words into lines of so many terminal columns; a longer word has a line of its own."""
    lines: list[str] = []
    # Never within a word, and never at a hyphen: "R-CNN" and "1e-4" are words, and a path can be copied.
    for word in text.split():
        if lines and width(f"{lines[-1]} {word}") <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def printable(text: str) -> str:
    """Show as text what a terminal would obey or hide: control characters, and those that turn the order of writing.

    Line ends and tabs stay. Names come from data sets, checkpoints and MLflow, and anybody may have written them.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def sentence(text: str) -> str:
    """End a text as a sentence."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def for_markdown(text: str) -> str:
    """Escape what GitHub would read as markup, as mathematics or as the name of a sign."""
    return re.sub(r"([\\`*_|<>\[\]~$]|&(?=#?\w+;))", r"\\\1", printable(" ".join(text.split())))


def for_latex(text: str) -> str:
    """Escape what LaTeX would read as a command, and write signs that its fonts lack as mathematics."""
    return "".join(_LATEX.get(c, c) for c in printable(" ".join(text.split())))


def for_json(text: str) -> str:
    """Escape in a JSON document what a terminal would obey or hide; JSON's own escapes are read back as it was."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# C0 but tab and line feed, DEL and C1; marks, embeddings and isolates of bidirectional text; other line ends; and the
# halves of characters that stand for bytes which are no UTF-8.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "lambda", "mu", "sigma")
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "\u00a0": "~",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # or it would be an argument of the line break before it
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "\u00d7": r"$\times$",
    "—": "---",
    "Δ": r"$\Delta$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    **{c: rf"$\{name}$" for c, name in zip("\u03b1β\u03b3δελμ\u03c3", _GREEK, strict=True)},
}
