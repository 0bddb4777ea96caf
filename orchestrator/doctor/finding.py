"""Findings of `rnc doctor`: what was seen of one thing, its colour, the way out, and the table that shows them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.figures.table import Cell, Column, Table, Tone

Level = Literal["ok", "warn", "fail"]
# From good to bad, by which findings are sorted.
COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}
TONES: Mapping[Level, Tone] = {"ok": "good", "warn": "warn", "fail": "bad"}
DRIVER = "driver"
"""Where a finding belongs that is about the machine that asks."""
EVERYWHERE = "all"
"""Where a finding belongs that is about all machines together."""
SEEN_WIDTH, SEEN_BROKEN = 80, 240
"""Characters of what was seen that the table has in one line, and where a screen breaks it between words."""
MOST_NAMED = 4
"""Machines that are named where more were seen alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was seen of one thing on one machine, and the way out if it is not right."""

    check: str
    where: str
    level: Level
    seen: str
    way_out: str = ""

    def __post_init__(self) -> None:
        if self.level != "ok" and not self.way_out:
            raise ValueError(f"{self.check}, {self.where}: {self.seen!r} is {self.level} without a way out")


def finding(check: str, where: str, level: Level, seen: str, way_out: str = "") -> Finding:
    """Return a finding; what is right drops its way out, so that a judgement can name one for all levels."""
    return Finding(check=check, where=where, level=level, seen=seen, way_out="" if level == "ok" else way_out)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if anything is red, else 0."""
    return int(any(one.level == "fail" for one in findings))


def findings_table(findings: Sequence[Finding], *, for_people: bool, most: int = SEEN_WIDTH) -> Table:
    """For people what is alike stands once, and the ways out stand below; for programs every finding is a row.

    Of what was seen people are shown so many characters, and the rest with the way out.
    """
    columns = [Column(name, numeric=False) for name in ("check", "where", "state", "seen")]
    title = f"rnc doctor: {_counted(findings)}"
    if not for_people:
        rows = tuple((one.check, one.where, COLORS[one.level], one.seen, one.way_out or None) for one in findings)
        return Table(title=title, columns=(*columns, Column("way out", numeric=False)), rows=rows)
    shown = merged(findings)
    ways = [one for level in ("fail", "warn") for one in shown if one.level == level]
    return Table(
        title=title,
        columns=tuple(columns),
        rows=tuple((one.check, one.where, _colored(one.level), _short(one.seen, most)) for one in shown),
        notes=tuple(_note(one, most) for one in ways),
    )


def _colored(level: Level) -> Cell:
    return Cell(COLORS[level], tone=TONES[level])


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Join what was seen alike on several machines; checks stay in order, the worst of each comes first."""
    alike: dict[tuple[str, Level, str, str], list[str]] = {}
    for one in findings:
        alike.setdefault((one.check, one.level, one.seen, one.way_out), []).append(one.where)
    checks = list(dict.fromkeys(one.check for one in findings))
    worst = list(COLORS)[::-1]
    joined = [
        finding(check, _named(list(dict.fromkeys(where))), level, seen, way_out)
        for (check, level, seen, way_out), where in alike.items()
    ]
    return sorted(joined, key=lambda one: (checks.index(one.check), worst.index(one.level)))


def _named(where: Sequence[str]) -> str:
    if len(where) <= MOST_NAMED:
        return ", ".join(where)
    return f"{', '.join(where[: MOST_NAMED - 1])} and {len(where) - MOST_NAMED + 1} others"


def _note(one: Finding, most: int) -> str:
    whole = f"{one.seen}\n    " if one.seen != _short(one.seen, most) else ""
    return f"{COLORS[one.level]}: {one.check}, {one.where}: {whole}{one.way_out}"


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    # Between words, as far as there are any.
    whole, space, _ = line[: most - 1].rpartition(" ")
    return f"{whole if space else line[: most - 2]} …"


def _counted(findings: Sequence[Finding]) -> str:
    numbers = {color: sum(one.level == level for one in findings) for level, color in COLORS.items()}
    return ", ".join(f"{number} {color}" for color, number in numbers.items() if number) or "nothing was looked at"
