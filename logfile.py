"""Workers' log lines: how much of one is kept, and the file that gets every one of them, rotated.

Nothing here knows a task or the database, which keeps those of some levels.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
from pathlib import Path
from typing import Any

import shapes
from errors import TrackerError
from settings import Settings

MOST_LINE = 2**16  # characters of a line, and of a scope, that are kept
MOST_SCOPE = 1000
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


def open_log_file(settings: Settings) -> logging.Logger:
    """Where workers' log lines go; a logger of its own, so that two trackers in one process share nothing."""
    logger = logging.Logger("tracker.workers")
    if settings.log_file:
        try:
            handler = PrivateFileHandler(
                Path(settings.database).parent / settings.log_file,
                maxBytes=10 * 2**20,
                backupCount=5,
                encoding="utf-8",
                errors="backslashreplace",
            )
        except OSError as error:
            raise TrackerError("start", f"log_file: {settings.log_file}: {error.strerror}") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    return logger
