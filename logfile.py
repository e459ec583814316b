"""Workers' log lines: how much of one is kept, and the file that gets every one of them; and the tracker's own log.

Nothing here knows a task or the database, which keeps those of some levels.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import select
import sys
from pathlib import Path
from typing import Any, TextIO

import shapes
from errors import TrackerError
from settings import Settings

MOST_LINE = 2**16  # characters of a line, and of a scope, that are kept
MOST_SCOPE = 1000
OLDER_FILES = 5  # of the log that are kept beside it
CUT_MARK = " … (cut: it had {:,} characters)"


def kept_line(entry: shapes.TaskEntry) -> shapes.TaskEntry:
    """The line as it is kept. None is refused for its length: clients in use give up their task when one is."""
    return shapes.TaskEntry(shortened(entry.message, MOST_LINE), entry.timestamp, entry.level, entry.scope[:MOST_SCOPE])


def shortened(text: str, most: int) -> str:
    """The text, or so much of its beginning as fits with a mark that says that it was cut."""
    if len(text) <= most:
        return text
    mark = CUT_MARK.format(len(text))
    return text[: most - len(mark)] + mark


class PrivateFileHandler(logging.handlers.RotatingFileHandler):
    """Its files are nobody else's to read: there may be secrets in what workers print."""

    def _open(self) -> Any:
        file = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if os.name == "posix":
                os.fchmod(file, 0o600)  # one of before
        finally:
            os.close(file)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """Raises why a line could not be written: it may be nowhere else, and then nobody is told that it is kept."""
        if not isinstance(error := sys.exc_info()[1], OSError):
            return super().handleError(record)
        raise error

    def close(self) -> None:
        """Closes the file. Lines that it could not take were refused: that they still cannot be written is no news."""
        with contextlib.suppress(OSError):
            super().close()


def open_log_file(settings: Settings) -> logging.Logger:
    """Where workers' log lines go; a logger of its own, so that two trackers in one process share nothing.

    Refuses (start) a path that cannot be opened, or that is one of the database's own files.
    """
    logger = logging.Logger("tracker.workers")
    if settings.log_file:
        path = Path(settings.database).parent / settings.log_file
        try:
            if is_of_database(path, settings.database):
                raise ValueError("this is a file of the database itself")
            handler = PrivateFileHandler(
                path, maxBytes=10 * 2**20, backupCount=OLDER_FILES, encoding="utf-8", errors="backslashreplace"
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise TrackerError("start", f"log_file: {settings.log_file}: {why}") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    return logger


def is_of_database(path: Path, database: str) -> bool:
    """Whether the log, or an older one beside it, would be written over the database or a file that belongs to it."""
    log, own = os.path.realpath(path), os.path.realpath(database)
    logs = {log, *(f"{log}.{number + 1}" for number in range(OLDER_FILES))}
    return not logs.isdisjoint(own + end for end in ("", "-wal", "-shm", "-journal", ".lock"))


class Hasty:
    """A standard stream as a log writes to it: what nobody takes at once is lost, as nobody may wait for it.

    Else a pager that is not read on, or a terminal that was stopped, would stop the tracker.
    """

    PIECE = getattr(select, "PIPE_BUF", 512)  # bytes that a pipe takes at once if it takes any

    def __init__(self, stream: TextIO):
        self.stream, self.lost = stream, 0

    def write(self, text: str) -> None:
        """Writes the text, or so much of it as is taken. OSError: it cannot be written."""
        if self.lost and self.is_open():
            text, self.lost = f"({self.lost} log lines have been lost, which nobody took)\n{text}", 0
        rest = text.encode(errors="backslashreplace")
        while rest:
            if not self.is_open():
                self.lost += 1
                return
            rest = rest[os.write(self.stream.fileno(), rest[: self.PIECE]) :]

    def is_open(self) -> bool:
        """Whether it takes a piece."""
        poll = select.poll()
        poll.register(self.stream, select.POLLOUT)
        return bool(poll.poll(0))

    def flush(self) -> None:
        """Nothing is held back."""


def let_nobody_wait(logger: logging.Logger) -> None:
    """Has the standard streams to which a logger writes be Hasty, where the system can tell."""
    for handler in logger.handlers if hasattr(select, "poll") else ():
        if type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.stderr) and handler.stream:
            handler.setStream(Hasty(handler.stream))
