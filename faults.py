"""What nobody has foreseen: told to the log, in a line where the machine is at fault, and to whoever has asked.

Disks, descriptors and memory give out, and what comes of it is the same everywhere: 503, and no traceback, of which
there might be thousands. Anything else is a fault of ours: 500, with a traceback.
"""

from __future__ import annotations

import errno
import logging
import sqlite3

from connections import Seldom
from errors import TrackerError

log = logging.getLogger("tracker")

GIVEN_OUT = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.ENOMEM,
    errno.ENOBUFS,
}
CANNOT_WRITE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
}

seldom = Seldom()


def primary_code(error: Exception) -> int:
    """SQLite's primary result code of an error, 0 if it is none of SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_of_the_file(error: Exception) -> bool:
    """Whether the database file, or the disk below it, is at fault."""
    return primary_code(error) in CANNOT_WRITE


class CannotWrite(TrackerError):
    """Something could not be stored. SQLite's words are not for strangers; its primary result code tells the kind."""

    def __init__(self, because: Exception):
        super().__init__("unavailable", "The database cannot be written to")
        self.sqlite_code = primary_code(because)


def cannot_write(because: Exception) -> TrackerError:
    """What is said to a caller whose call could not be stored. The reason goes to the log."""
    seldom.error("A write failed: %s", because)
    return CannotWrite(because)


def cannot_read(because: Exception) -> TrackerError:
    """The same, of who reads."""
    seldom.error("A read failed: %s", because)
    return TrackerError("unavailable", "The database cannot be read")


def fault(error: Exception, what: str) -> TrackerError:
    """What is said to a caller when `what` has failed. To be called while the error is handled."""
    what = "".join(letter if letter.isprintable() else "?" for letter in what)  # a stranger may have chosen it
    if isinstance(error, TrackerError):
        seldom.warning("%s: %s", what, error)
        return error
    if is_of_the_file(error):
        return cannot_read(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in GIVEN_OUT):
        seldom.error("%s could not be done: %s", what, error)
        return TrackerError("unavailable", "The tracker's machine has no room for this: please try again", delay=1.0)
    log.exception("%s failed", what)
    return TrackerError("internal", "Internal error")
