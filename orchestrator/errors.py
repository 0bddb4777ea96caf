"""The one error that a user can fix, and the exit code of what a user stopped."""

from collections.abc import Callable

INTERRUPTED = 130


class UserError(Exception):
    """A mistake in a file, a setting or the surroundings; shown as its message, without a traceback.

    The message names the file, the setting, the value and the way out. Several mistakes stand one to a line.
    """


Say = Callable[[str], None]
