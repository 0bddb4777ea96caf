"""Values of a setting as one types them, START:STOP:STEP or a list, and the combinations of several settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product

from orchestrator.errors import UserError

MOST = 256
"""Settings of one sweep; every one of them holds its detections of all images in memory."""
FORM = "expected START:STOP:STEP or a list, such as 0:1:0.05 or 0,0.4,0.5"
Combination = tuple[float, ...]
"""A value for each axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """An inference setting and the values that it takes, rising."""

    setting: str
    """Its name in InferenceConfig."""
    option: str
    """What it is called on the command line."""
    values: tuple[float, ...]

    @property
    def label(self) -> str:
        """What it is called in tables and figures."""
        return LABELS.get(self.setting, self.setting.replace("_", " "))

    @property
    def digits(self) -> int:
        """Decimals that tell the values apart, at least one."""
        return max(1, *(-_exponent(Decimal(str(value))) for value in self.values))


LABELS = {"confidence_exponent": "exponent", "nms_iou": "NMS IoU"}


def parse_axis(setting: str, option: str, text: str) -> Axis:
    """Read the values of a setting.

    Raises:
        UserError: it is no range and no list of different numbers, or an empty or an endless one.
    """
    parts = text.split(":")
    if len(parts) == 3:
        values = _range(f"{option} {text}", *(_number(f"{option} {text}", part) for part in parts))
    elif len(parts) == 1:
        values = [_number(f"{option} {text}", part) for part in text.split(",")]
    else:
        raise UserError(f"{option} {text}: {FORM}")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option} {text}: {value} stands twice; leave one out")
    return Axis(setting=setting, option=option, values=tuple(float(value) for value in sorted(values)))


def combinations(axes: Sequence[Axis]) -> list[Combination]:
    """Every value of each axis with every one of the others, the last axis changing first.

    Raises:
        UserError: these are more than MOST, or more than two axes have several values.
    """
    varied = [axis for axis in axes if len(axis.values) > 1]
    if len(varied) > 2:
        raise UserError(
            f"{', '.join(axis.option for axis in varied)} all have several values; vary one for a curve or two for a "
            "grid, and give the others one value"
        )
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST:
        raise UserError(
            f"{' x '.join(axis.option for axis in varied)} are {count} settings, at most {MOST} are scored at once; "
            "take a larger step"
        )
    return list(product(*(axis.values for axis in axes)))


def _range(said: str, start: Decimal, stop: Decimal, step: Decimal) -> list[Decimal]:
    """From START to STOP, both included, in decimal arithmetic: 0:1:0.1 holds 0.3, and not 0.30000000000000004."""
    if step <= 0:
        raise UserError(f"{said}: the step is {step}, expected more than 0")
    if start > stop:
        raise UserError(f"{said}: it begins at {start}, above its end {stop}; swap them")
    if (stop - start) / step >= MOST:
        raise UserError(f"{said}: more than {MOST} values; take a larger step")
    return [start + place * step for place in range(int((stop - start) / step) + 1)]


def _number(said: str, text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise UserError(f"{said}: {text.strip()!r} is no number; {FORM}")
    return number


def _exponent(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent
