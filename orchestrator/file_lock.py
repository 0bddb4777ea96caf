"""Locks files below RNC_HOME, by which processes take turns; the kernel frees a lock when its last holder has ended."""

import errno
import fcntl
from typing import IO

from orchestrator.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a storage answers that keeps none: Lustre without `-o flock`, NFS without its lock service."""


def lock(file: IO[str], *, waits: bool = False, shared: bool = False) -> bool:
    """Lock an open file until it is closed; return False if somebody else has locked it.

    Args:
        file: below RNC_HOME.
        waits: until nobody else has it.
        shared: with others who share it.

    Raises:
        UserError: the storage keeps no locks.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if waits else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"RNC_HOME: {file.name} cannot be locked ({error.strerror}), as its storage keeps no locks, by which "
            "submits take turns; mount it with them (Lustre: -o flock), or set RNC_HOME to another place"
        ) from error
    return True
