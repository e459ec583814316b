"""What the readers do for a bulk submit ahead of the writer: they bring what it will need into the memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from shapes import INT64_MAX


class Warming:
    """Has the readers look up a bulk submit's hashes ahead of the writer, which would hold everybody up with it.

    A hash may be anywhere in a file that is larger than the memory. Now and then the writer is left alone: it could
    not begin its log anew if there were always a reader.
    """

    MOST_AHEAD = 8  # times in a row that the readers go on while the writer is at work

    def __init__(self, db: Any, operation: int, first_piece: Callable, warm_pieces: Callable):
        self.db, self.operation, self.first_piece, self.warm_pieces = db, operation, first_piece, warm_pieces
        self.places: list[int] = []  # the piece that each reader is to look at next
        self.rounds = 0
        self.ahead: asyncio.Future[int] | None = None

    async def last(self) -> int:
        """Returns when more pieces have been looked up: the number of the last one. The next ones are begun with."""
        reading = self.ahead or asyncio.ensure_future(self.read())
        self.ahead = None
        try:
            last = await reading
        except sqlite3.Error:
            return INT64_MAX  # the writer will see for itself
        self.rounds += 1
        if last < INT64_MAX - 1 and self.rounds % self.MOST_AHEAD:
            self.ahead = asyncio.ensure_future(self.read())
        return last

    async def read(self) -> int:
        if not self.places:
            first = await self.db.read(self.first_piece, self.operation) or INT64_MAX
            self.places = [first + number for number in range(self.db.READERS)]
        if min(self.places) < INT64_MAX:
            reads = (self.db.read(self.warm_pieces, self.operation, place, len(self.places)) for place in self.places)
            self.places = await asyncio.gather(*reads)
        return min(self.places) - 1

    def close(self) -> None:
        if self.ahead:
            self.ahead.cancel()
