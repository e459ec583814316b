"""The SQLite file: made or upgraded, guarded, one connection that writes and some that read.

    open ─► Guard ─► prepare_file (schema.sql, UPGRADES) ─► write: a WriteQueue; read: short transactions in turn

Nothing here knows a task. The clock is here, because leases rest on the time for which this file has been served.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import names
from errors import TrackerError
from faults import cannot_read, is_of_the_file, primary_code
from guard import Guard
from limits import Limits
from settings import Settings
from turns import Turns
from writer import (
    Committed,
    Committer,
    ThreadedConnection,
    Told,
    Tx,
    Write,
    WriteQueue,
    let_go,
    save_uptime,
)

log = logging.getLogger("tracker")

SCHEMA = Path(__file__).resolve().with_name("schema.sql")


class Clock:
    """The only source of time. `time()` is the wall clock, in unix seconds, for what people read.

    `uptime()` counts the seconds for which this database has been served, over all runs. Leases and rate limits live
    on it: it never jumps when the wall clock is set, and stands still while the tracker is down, when nobody could
    have released anything.
    """

    def __init__(self) -> None:
        self._origin = time.monotonic()

    def start(self, uptime: float) -> None:
        """Goes on from the uptime that an earlier run had reached."""
        self._origin = time.monotonic() - uptime

    def time(self) -> float:
        return time.time()

    def trusted_unix(self) -> float:
        """The unix time by which delays end."""
        return self.time()

    def uptime(self) -> float:
        return time.monotonic() - self._origin


OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
APPLICATION_ID = 0x74726B72  # "trkr": tells this file from any other SQLite file

# From version N to N + 1: a script that makes room, one that fills what schema.sql has made between the two.
UPGRADES: dict[int, tuple[str, str]] = {
    4: (
        """
        ALTER TABLE task RENAME COLUMN assigned_at TO assigned_uptime;
        ALTER TABLE task RENAME COLUMN deadline TO deadline_uptime;
        ALTER TABLE project RENAME COLUMN assign_free_at TO assign_free_uptime;
        ALTER TABLE project RENAME COLUMN submit_free_at TO submit_free_uptime;
        ALTER TABLE operation RENAME COLUMN started_at TO started_uptime;
        ALTER TABLE operation ADD COLUMN worker INTEGER REFERENCES worker;
        ALTER TABLE operation ADD COLUMN token TEXT;
        ALTER TABLE login_failure RENAME COLUMN free_at TO free_uptime;
        ALTER TABLE login_failure RENAME COLUMN forget_at TO forget_uptime;
        DROP TRIGGER IF EXISTS testflinger_job_made;
        DROP TRIGGER IF EXISTS testflinger_job_moved;
        DROP TRIGGER IF EXISTS testflinger_job_gone;
        """,
        "",
    ),
    5: ("ALTER TABLE testflinger_client ADD COLUMN email TEXT; DROP INDEX template_name;", ""),  # it was a unique one
    6: (
        """
        DROP TRIGGER task_inserted;  -- Counts does it now
        DROP TRIGGER task_updated;
        DROP TRIGGER task_deleted;
        ALTER TABLE verifier_set ADD COLUMN large INTEGER NOT NULL DEFAULT 0;
        UPDATE verifier_set SET large = 1 WHERE members LIKE '%,%,%';
        DROP INDEX verifier_set_head;
        DROP TRIGGER task_verifiers_updated;
        DROP TRIGGER task_verifiers_deleted;
        ALTER TABLE session ADD COLUMN created INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE manager ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;
        DROP TRIGGER workflow_deleted;
        DROP INDEX session_manager;
        ALTER TABLE project ADD COLUMN trusted INTEGER NOT NULL DEFAULT 1;
        ALTER TABLE project ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE script ADD COLUMN project INTEGER REFERENCES project;
        ALTER TABLE testflinger_queue ADD COLUMN client TEXT;
        ALTER TABLE manager ADD COLUMN look TEXT NOT NULL DEFAULT '';
        UPDATE manager SET look = look(username);
        ALTER TABLE workflow ADD COLUMN secret_hash BLOB NOT NULL DEFAULT x'';
        UPDATE workflow SET secret_hash = digest(secret);
        ALTER TABLE workflow DROP COLUMN secret;
        ALTER TABLE project ADD COLUMN creator INTEGER;
        UPDATE project SET creator = (
            SELECT manager FROM manager_role WHERE project = project.id GROUP BY project HAVING COUNT(*) = 1);
        """,
        """
        UPDATE budget SET used = (SELECT COUNT(*) FROM worker) WHERE name = 'workers';
        UPDATE budget SET used = (SELECT COUNT(*) FROM manager) WHERE name = 'managers';
        INSERT INTO log_share
        SELECT worker, SUM(100 + length(CAST(scope AS BLOB)) + length(CAST(message AS BLOB))),
            NOT EXISTS (SELECT 1 FROM worker_access a WHERE a.worker = e.worker AND NOT a.request)
            AND NOT EXISTS (SELECT 1 FROM tally t WHERE t.worker = e.worker)
        FROM log_entry e GROUP BY worker;
        INSERT INTO verifier_block
        SELECT project, 0, 32767 - head_priority << 47 | head_task, ',' || members || ','
        FROM verifier_set WHERE large AND head_task IS NOT NULL;
        """,
    ),
    7: (
        """
        DROP TRIGGER IF EXISTS worker_deleted;
        DROP INDEX worker_access_request;
        DROP INDEX template_deleted;
        ALTER TABLE worker_access ADD COLUMN source TEXT NOT NULL DEFAULT '';
        ALTER TABLE worker_access ADD COLUMN requested INTEGER NOT NULL DEFAULT 0;
        """,
        """
        UPDATE budget SET used = (SELECT ifnull(SUM(size), 0) FROM testflinger_file) WHERE name = 'files';
        UPDATE project SET size = size + 200 * (SELECT COUNT(*) FROM tally t WHERE t.project = project.id)
        WHERE NOT trusted;
        """,
    ),
    8: (
        """
        ALTER TABLE project ADD COLUMN retry_delay REAL NOT NULL DEFAULT 0;
        ALTER TABLE project ADD COLUMN max_lost_leases INTEGER;
        ALTER TABLE project ADD COLUMN delayed_task_count INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE project ADD COLUMN paused_worker_count INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE task ADD COLUMN lost_leases INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE task ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE task ADD COLUMN not_before REAL;
        ALTER TABLE tally ADD COLUMN failures_in_row INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE tally ADD COLUMN pause_uptime REAL;
        ALTER TABLE job ADD COLUMN delayed INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE testflinger_job ADD COLUMN delayed INTEGER NOT NULL DEFAULT 0;
        DROP INDEX job_waiting;  -- no door hands out a delayed job
        DROP INDEX testflinger_job_waiting;
        """,
        "",
    ),
}
OLDEST_SCHEMA, SCHEMA_VERSION = min(UPGRADES), max(UPGRADES) + 1


# The file


class Polite:
    """Executes a reader's statements while nothing urgent goes on, if that is not for long.

    Each statement gives the interpreter away and wants it back: one thread that reads makes those of an assignment,
    which are executed on another one, take several times as long.
    """

    PATIENCE = 0.02  # seconds that it waits, of all statements together
    PAUSE = 0.0002

    def __init__(self, execute: Callable[..., sqlite3.Cursor], turns: Turns):
        self.execute, self.turns, self.left = execute, turns, self.PATIENCE

    def __call__(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        while self.turns.urgent and self.left > 0:
            time.sleep(self.PAUSE)
            self.left -= self.PAUSE
        return self.execute(sql, parameters)


class Database:
    """The SQLite file: a writer with group commit, read-only readers, and a lock that keeps a second server out."""

    READERS = 2

    def __init__(self, settings: Settings, clock: Clock, announce: Callable[[int, int], None] = lambda *_: None):
        self.settings, self.clock, self.limits = settings, clock, Limits(settings, clock.uptime)
        self._guard = Guard(settings.database)
        self.path = self._guard.path
        self.turns = Turns()
        self._queue = WriteQueue(announce, self.turns)

    async def open(self) -> None:
        """Takes the lock, creates or upgrades the file, starts the threads. Refuses what it cannot use."""
        self._guard.take()
        try:
            await self._open_file()
        except sqlite3.Error as error:
            raise TrackerError("start", f"{self.path}: {reason(error)}") from None

    async def _open_file(self) -> None:
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(self._guard.release)  # the last thing that is done: see there
            prepare_file(self.path, self.settings)
            self._writer, *readers = [
                await undo.enter_async_context(ThreadedConnection(connector, 64))
                for connector in (self._connect, *[self._connect_reader] * self.READERS)
            ]
            self._readers = itertools.cycle(readers)
            self._committer = Committer(self._writer, self.clock, self.settings, self._queue.turn, self.limits)
            self._queue.begin(self._commit)
            undo.push_async_callback(self._queue.close)
            self.clock.start(await self.write(load_uptime))
            self._committer.uptime_saved = self.clock.uptime()
            self._guard.watch(*await self.write(place_of_meta))
            self._open = undo.pop_all()

    def _connect(self) -> sqlite3.Connection:
        return connect(self.path, self.settings, timeout=0)  # the writer waits by itself, and not on the event loop

    def _connect_reader(self) -> sqlite3.Connection:
        return connect(self.path, self.settings, readonly=True)

    async def close(self) -> None:
        """Commits what was queued, remembers the uptime, closes the file and gives up the lock."""
        try:
            await self.write(save_uptime)
        except TrackerError as error:
            log.error("The uptime could not be saved: %s", error)
        finally:
            await self._queue.close()
            if self._guard.overwritten:  # SQLite copies the write-ahead log into it, unless a reader is the last one
                await self._writer.close()
            elif self._guard.problem:
                await self._empty_wal()
                self._guard.forget_names()
            await self._open.aclose()

    async def _commit(self, batch: list[Write], on_thread: bool) -> Committed:
        """Commits a batch, if what is committed will be found again."""
        if refusal := self._guard.look():
            if not self._guard.overwritten and not self._guard.emptied:
                await self._empty_wal()
            raise refusal
        self._guard.emptied = False
        committed = await self._committer.commit(batch, on_thread)
        if refusal := self._guard.look_into():
            raise refusal
        return committed

    async def _empty_wal(self) -> None:
        """Copies the write-ahead log into the open file, wherever that is, and empties it.

        Where the file was there may be another one, for whose log it would be taken.
        """
        with contextlib.suppress(sqlite3.Error):  # as it is tried again
            busy = await self._writer.run(empty_wal, self._writer.connection)
            self._guard.emptied = not busy

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Done, with the reason, when a fault of ours has ended the writer."""
        return self._queue.failed

    def write(self, function: Callable, *args: Any, long: bool = False) -> asyncio.Future:
        """Runs `function(tx, *args)` on the writer; the result arrives when it is committed, and on disk.

        An exception of the function undoes all that it did and nothing else. A cancelled call that has not begun is
        never run. A `long` one takes milliseconds: it runs by itself and beside the event loop, and the short ones that
        have arrived meanwhile come before the next long one.
        """
        future = asyncio.get_running_loop().create_future()
        self._queue.put(future, function, args, long)
        return future

    def write_for(self, told: Told, function: Callable, args: tuple, first: bool) -> None:
        """The same without a future: somebody else is told. It may go before others."""
        self._queue.put(told, function, args, first=first)

    async def read(self, function: Callable, *args: Any) -> Any:
        """Runs `function(tx, *args)` in a read-only transaction that sees one committed state."""
        reader = next(self._readers)
        result = await reader.run(self._read, reader.connection, function, args)
        await self.turns()
        return result

    def _read(self, connection: sqlite3.Connection, function: Callable, args: tuple) -> Any:
        try:
            connection.execute("BEGIN")
            tx = Tx(connection, self.clock, self.settings, self.limits)
            tx.execute = Polite(connection.execute, self.turns)
            return function(tx, *args)
        except Exception as error:
            let_go(error)
            if is_of_the_file(error) and error.sqlite_errorcode != sqlite3.SQLITE_READONLY:  # that is a fault of ours
                raise cannot_read(error) from None
            raise
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")  # soon: an open read transaction keeps the WAL from being checkpointed


def connect(path: Path, settings: Settings, readonly: bool = False, timeout: float = 5.0) -> sqlite3.Connection:
    """A connection with the tracker's pragmas. mmap stays off: a truncated file under a mapping kills the process."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={'ro' if readonly else 'rw'}",
        uri=True,
        isolation_level=None,
        timeout=timeout,
        check_same_thread=False,
        cached_statements=512,
    )
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA cache_size = {-1024 * (4 if readonly else settings.cache_size)}")
    connection.execute("PRAGMA mmap_size = 0")
    if not readonly:
        connection.execute(f"PRAGMA synchronous = {settings.synchronous}")
        connection.execute("PRAGMA fullfsync = ON")  # on macOS a plain fsync leaves the data in the drive's cache
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
    return connection


def prepare_file(path: Path, settings: Settings) -> None:
    """Creates the database or upgrades an older one, in one transaction. Refuses newer ones and other files."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise TrackerError("start", f"SQLite {sqlite3.sqlite_version} is too old: {oldest} is needed")
    try:
        if not path.exists():  # one of ours is not opened and closed: that would drop locks
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # secrets are inside: nobody else's to read
        with contextlib.closing(connect(path, settings)) as connection:
            connection.create_function("look", 1, names.look)
            connection.create_function(
                "digest", 1, lambda text: hashlib.sha256(text.encode()).digest()
            )  # upgrades want it
            upgrade_schema(path, connection)
            if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise TrackerError("start", f"{path}: {NO_WAL}")
            # Which names look alike may be told better than when they were stored.
            connection.execute("UPDATE manager SET look = look(username) WHERE look <> look(username)")
    except OSError as error:
        raise TrackerError("start", f"{path}: cannot be opened: {error.strerror}") from None
    except sqlite3.Error as error:
        raise TrackerError("start", f"{path}: {reason(error)}") from None


NO_WAL = "this file system cannot hold a database in WAL mode (as network shares cannot): it needs a local disk"
NO_SHARED_MEMORY = {  # what a WAL needs beside it
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
}
WHY_NOT = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
    sqlite3.SQLITE_READONLY: "it cannot be written to",
    sqlite3.SQLITE_CANTOPEN: "it, its -wal or its -shm cannot be opened",
    sqlite3.SQLITE_BUSY: "another program is using it",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
}


def reason(error: sqlite3.Error) -> str:
    """Why a database cannot be used, in words, and in SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0)
    why = NO_WAL if code in NO_SHARED_MEMORY else WHY_NOT.get(primary_code(error), "not a usable SQLite database")
    return f"{why}: {error}"


def upgrade_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Brings the schema to SCHEMA_VERSION. Everything or nothing."""
    empty = not connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    version = 0 if empty else connection.execute("PRAGMA user_version").fetchone()[0]
    if not empty and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise TrackerError("start", f"{path}: this is another program's database")
    if version > SCHEMA_VERSION:
        raise TrackerError(
            "start",
            f"{path}: made by a newer tracker (schema {version}, this one knows {SCHEMA_VERSION}); please upgrade",
        )
    if not empty and version < OLDEST_SCHEMA:
        raise TrackerError("start", f"{path}: made before the first release (schema {version}): it cannot be upgraded")
    if version < SCHEMA_VERSION:
        steps = [] if empty else [UPGRADES[step] for step in range(version, SCHEMA_VERSION)]
        scripts = [before for before, _ in steps]
        scripts += [SCHEMA.read_text("utf-8")]
        scripts += [after for _, after in steps]
        scripts += [f"PRAGMA application_id = {APPLICATION_ID};", f"PRAGMA user_version = {SCHEMA_VERSION};"]
        script = "\n".join(["BEGIN IMMEDIATE;", *scripts, "COMMIT;"])
        try:
            connection.executescript(script)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def empty_wal(connection: sqlite3.Connection) -> bool:
    """Whether somebody who reads has kept all of it from being copied."""
    return bool(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])


def load_meta(tx: Tx, key: str, make: Callable[[], Any]) -> Any:
    """A fact about this file, made when it is asked for the first time."""
    tx.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", (key, make()))
    return tx.one("SELECT value FROM meta WHERE key = ?", (key,))[0]


def place_of_meta(tx: Tx) -> tuple[int, int]:
    """The page at which the table meta begins, and the size of a page."""
    return tx.one("SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'meta'")


def load_uptime(tx: Tx) -> float:
    return load_meta(tx, "uptime", float)
