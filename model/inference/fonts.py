"""The font of a text on a picture: Pillow's own for ASCII, and DejaVu Sans for other letters, which Pillow's lacks."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_for(text: str, size: int) -> Font:
    """The font in which a text can be read; Chinese, Japanese and Korean are in neither."""
    return _font(size, text.isascii())


@cache
def _font(size: int, is_ascii: bool) -> Font:
    if not is_ascii:
        try:
            return ImageFont.truetype(_dejavu(), size)
        except OSError:  # neither matplotlib nor the system has it
            pass
    return ImageFont.load_default(size)


def _dejavu() -> str:
    """The file that matplotlib brings, which is not imported for it, or the name by which a system may have it."""
    spec = find_spec("matplotlib")
    name = "DejaVuSans.ttf"
    if spec is None or spec.origin is None:
        return name
    return str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name)
