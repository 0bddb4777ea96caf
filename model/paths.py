"""Names that come from files, archives and servers, as paths: none leads out of the folder that a user named.

The rule is one of text. A name that is absolute, or climbs out by `..`, is refused, whatever lies there. Links are not
looked at: a data set that is a link as a whole, or whose images are links into a store elsewhere, is usual on clusters,
and who made the folder made them. Where `..` follows a folder, the text counts as well: `a/../b` is `b`, even where `a`
is a link.
"""

import os
import re
from pathlib import Path


class OutsideError(ValueError):
    """A name that leads out of the folder that it belongs to."""


def inside(folder: Path, name: str, *others: Path) -> Path:
    """Return the path of what a name means in a folder.

    Args:
        folder: from which the name counts.
        name: of anyone, such as the `file_name` of a data set, or a tag of a server.
        others: folders in which the path may lie as well, such as that of the whole data set.

    Raises:
        OutsideError: the path would be in none of these folders, or no path.
    """
    path = os.path.abspath(folder / name)
    within = [os.path.abspath(place).rstrip("/") + "/" for place in (folder, *others)]
    if os.path.isabs(name) or "\0" in name or not path.startswith(tuple(within)):
        raise OutsideError(f"{name!r} leads out of {folder}")
    return Path(path)


def named_folder(root: Path) -> Path:
    """Return the folder that a user named by it, or by a file in it."""
    return root.parent if root.is_file() else root


def one_name(text: str) -> str:
    """Make one name of a file or folder of a text that may be anything; what is one already stays as it is."""
    name = re.sub(r"[/\\\0-\x1f\x7f]+", "-", text).lstrip(".")
    # Names of most file systems hold 255 bytes; something is put before and behind.
    return name.encode(errors="replace")[:150].decode(errors="ignore") or "-"
