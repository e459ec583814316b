"""Databases for tests that need no file of their own: what SQLite has compiled for one test, it has for the next.

To compile a tracker's statements takes a short test longer than all that it does with them.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import tempfile
import weakref
from typing import Any


class Lender:
    """A connection to a file without a name, which is given other contents while its statements stay compiled.

    They do as the contents have the same schema. Where a test has changed that, SQLite sees it by the schema's cookie.
    """

    changes = itertools.count(2**20, 2**16)  # what SQLite's change counter begins with: greater than any before

    def __init__(self) -> None:
        self.file, path = tempfile.mkstemp(suffix=".db")
        self.connection = sqlite3.connect(
            f"file:{path}?nolock=1", uri=True, isolation_level=None, cached_statements=2000
        )
        self.connection.execute("PRAGMA journal_mode = MEMORY")  # a journal's file would need a name
        self.connection.execute("PRAGMA synchronous = OFF")
        os.unlink(path)
        self.references = sys.getrefcount(self.connection)  # of nobody else

    def lends(self, contents: bytes) -> bool:
        """Gives it the contents of such a file; whether it could, as a test may have kept it, closed it or changed it.

        That they have changed is seen by the change counter (SQLite, "Database File Format", 1.3.7); it stands at 24
        and, as the size in the header counts only where both are the same, at 92.
        """
        if sys.getrefcount(self.connection) > self.references:
            return False
        counter = next(self.changes).to_bytes(4, "big")
        contents = b"".join((contents[:24], counter, contents[28:92], counter, contents[96:]))
        try:
            self.connection.rollback()
            os.pwrite(self.file, contents, 0)
            os.ftruncate(self.file, len(contents))
            self.connection.row_factory = sqlite3.Row
            return self.connection.execute(AS_MADE).fetchone()[0]
        except sqlite3.Error:
            return False

    def __del__(self) -> None:
        os.close(self.file)


AS_MADE = """
    SELECT NOT EXISTS (SELECT 1 FROM sqlite_temp_schema)
        AND NOT EXISTS (SELECT 1 FROM pragma_database_list WHERE (name = 'main') <> (file <> ''))
        AND (SELECT NOT query_only FROM pragma_query_only)
"""
idle: list[Lender] = []


def lend(borrower: Any, contents: bytes) -> sqlite3.Connection:
    """A connection to a database with the contents of such a file, until the borrower is no more."""
    while not (lender := idle.pop() if idle else Lender()).lends(contents):
        continue
    weakref.finalize(borrower, idle.append, lender).atexit = False
    return lender.connection
