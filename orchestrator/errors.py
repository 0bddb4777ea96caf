"""Errors that a user can fix, the exit code of an interruption, and the type of what prints progress."""

from collections.abc import Callable

Say = Callable[[str], None]
"""Tells a person something beside the output of a command, a line at a time."""
BAD_INPUT = 2
"""The exit code where something that a user can mend stopped a verb before it began."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 and SIGINT's number, 2."""


class UserError(Exception):
    """A mistake in a file, a setting or the surroundings; shown as its message, without a traceback.

    The message names the file, the setting, the value and the way out. Several mistakes stand one to a line.
    """
