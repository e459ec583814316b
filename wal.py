"""The write-ahead log does not grow for ever: reads end in time, and are held back while it is cut.

    a commit ─► WalKeeper.look: too long? ─► Gate.shut: no read begins, those going on end ─► checkpoint ─► Gate.open

SQLite begins the log anew only at a moment at which nobody reads, and two reads that overlap all the time never leave
one. What other programs read is beyond us: the log names them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from errors import TrackerError

log = logging.getLogger("tracker")

READ_TIME = 5.0  # seconds after which a read is ended
WRITER_TIME = 2.0  # seconds for which reads are held back for the writer's sake, when it does not come to it
LOOK_INTERVAL = 0.02  # seconds from one look at the log's size to the next
PAUSE = 2.0  # seconds until it is tried again, when another program reads
SAY_INTERVAL = 60.0


class TimeLimit:
    """Ends the read of a connection when its time is up, also in the middle of a statement."""

    STEPS = 10_000  # of SQLite's, after which the time is looked at: about a millisecond

    def __init__(self, connection: sqlite3.Connection):
        self.ends = float("inf")
        connection.set_progress_handler(self.passed, self.STEPS)

    def begin(self) -> None:
        self.ends = time.monotonic() + READ_TIME

    def shorten(self, seconds: float) -> None:
        """This read takes no longer than that from now on: what it does then is for it to say."""
        self.ends = min(self.ends, time.monotonic() + seconds)

    def passed(self) -> bool:
        return time.monotonic() > self.ends

    def check(self) -> None:
        """Refuses another statement when the time is up."""
        if self.passed():
            raise too_long()


def too_long() -> TrackerError:
    return TrackerError("unavailable", f"This took more than {READ_TIME:g} seconds to read, and was ended")


class Gate:
    """Lets reads through and counts those going on; while it is shut, they wait."""

    def __init__(self) -> None:
        self.going_on = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()

    async def enter(self) -> None:
        while not self._open.is_set():
            await self._open.wait()
        self.going_on += 1
        self._empty.clear()

    def leave(self) -> None:
        self.going_on -= 1
        if not self.going_on:
            self._empty.set()

    def leave_after(self, read: asyncio.Future) -> None:
        """Called when that read has ended, or is not there to be waited for any more."""
        if not read.cancelled():
            read.exception()
        self.leave()

    async def shut(self, patience: float) -> None:
        """Lets none begin from now on. Returns when none goes on, or when so many seconds have passed."""
        self._open.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), patience)

    def open(self) -> None:
        self._open.set()


def outside(function: Callable) -> Callable:
    """Declares that the function is given the writer's connection, and runs outside of any transaction."""
    function.outside = True
    return function


@outside
def cut(connection: sqlite3.Connection) -> bool:
    """Takes all of the log into the database and cuts it to nothing. Whether nobody stood in the way."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


class WalKeeper:
    """Has the log cut when it is longer than a quarter of the bound; says who reads when it cannot be."""

    def __init__(self, path: Path, bound: int, gate: Gate, run: Callable[[Callable], asyncio.Future]):
        self.path, self.bound, self.gate, self.run = path, bound, gate, run
        self._file = f"{path}-wal"
        self._next_look, self._next_word = 0.0, 0.0
        self._cutting: asyncio.Task | None = None

    def size(self) -> int:
        """Bytes of the log; 0 when there is none."""
        try:
            return os.stat(self._file).st_size
        except OSError:
            return 0

    def look(self) -> None:
        """Called after each commit: begins to cut a log that is too long."""
        now = time.monotonic()
        if now < self._next_look or (self._cutting and not self._cutting.done()):
            return
        self._next_look = now + LOOK_INTERVAL
        if self.size() > self.bound // 4:
            self._cutting = asyncio.create_task(self._cut())

    async def _cut(self) -> None:
        try:
            await self.gate.shut(READ_TIME + 1)
            done = await asyncio.wait_for(self.run(cut), WRITER_TIME)
        except (TrackerError, TimeoutError):  # it cannot be written to; or another program holds the file
            self._next_look = time.monotonic() + PAUSE
            return
        finally:
            self.gate.open()
        if not done:
            self._next_look = time.monotonic() + PAUSE
            self._say()

    def _say(self) -> None:
        if time.monotonic() >= self._next_word and self.size() > self.bound:
            self._next_word = time.monotonic() + SAY_INTERVAL
            log.warning(
                "%s is %d MiB long, and cannot be cut (max_wal: %d) while %s reads the database",
                self._file,
                self.size() >> 20,
                self.bound >> 20,
                readers_of(self.path) or "another program",
            )

    async def close(self) -> None:
        if self._cutting:
            await asyncio.wait([self._cutting])


READ_LOCKS = range(123, 128)  # bytes of the -shm file: SQLite's WAL_READ_LOCK(0) to (4)


def readers_of(path: Path) -> str:
    """Which other processes are in a read transaction of the database, where the system tells (Linux)."""
    found = {}
    try:
        inode = str(os.stat(f"{path}-shm").st_ino)
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            words = line.replace("->", "").split()  # 7: POSIX ADVISORY READ 1234 fe:00:5678 124 124
            if words[1] != "POSIX" or words[5].rpartition(":")[2] != inode or not words[6].isdigit():
                continue
            if int(words[6]) in READ_LOCKS and words[4] != str(os.getpid()):
                name = Path(f"/proc/{words[4]}/comm")
                found[words[4]] = name.read_text("utf-8", "replace").strip() if name.exists() else "a program"
    except (OSError, IndexError, ValueError):
        pass
    return " and ".join(f"{name} (process {process})" for process, name in sorted(found.items()))
