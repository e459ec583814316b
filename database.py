"""The SQLite file: made or upgraded, guarded, one connection that writes and some that read.

    open ─► Guard ─► prepare_file (schema.sql, UPGRADES) ─► write: a WriteQueue; read: short transactions in turn

Nothing here knows a task, but that its uptime goes on behind the latest assignment that the file has.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import names
from clock import Clock, Seen, read_seen
from errors import TrackerError
from faults import cannot_read, is_of_the_file, primary_code
from guard import Guard
from limits import Limits
from meter import Meter
from settings import Settings
from space import Space
from turns import FairQueue, Turns, works_for
from wal import Gate, TimeLimit, WalKeeper, too_long
from writer import (
    NOT_STARTED,
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
    9: (
        """
        ALTER TABLE project ADD COLUMN archived INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE snapshot ADD COLUMN failure_count INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE task ADD COLUMN cause INTEGER NOT NULL DEFAULT 0;
        DROP INDEX task_failed;
        DROP INDEX IF EXISTS job_line_tracker;  -- a job's history is its log
        """,
        """
        INSERT INTO cause (project, pattern, failed_task_count)
        SELECT project, '', COUNT(*) FROM task WHERE status = 2 GROUP BY project;
        UPDATE task SET cause = (SELECT id FROM cause c WHERE c.project = task.project) WHERE status = 2;
        UPDATE task SET attempt = 1 WHERE status = 2 AND attempt = 0;  -- else who closes it would not look for failures
        INSERT INTO failure
        SELECT t.id, t.project, a.worker, a.end_time, t.attempt, '' FROM task t JOIN assignment a ON a.id = (
            SELECT MAX(id) FROM assignment WHERE task = t.id AND outcome IN ('failed', 'expired'))
        WHERE t.status = 2;
        """,
    ),
    10: (
        """
        ALTER TABLE worker ADD COLUMN source TEXT NOT NULL DEFAULT '';
        ALTER TABLE manager ADD COLUMN source TEXT NOT NULL DEFAULT '';
        ALTER TABLE testflinger_job ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE job ADD COLUMN dropped_count INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE job ADD COLUMN dropped_by TEXT NOT NULL DEFAULT '';
        DROP TRIGGER IF EXISTS worker_inserted;
        DROP TRIGGER IF EXISTS worker_deleted;
        DROP TRIGGER IF EXISTS manager_inserted;
        DROP TRIGGER IF EXISTS manager_deleted;
        """,
        """
        UPDATE testflinger_job SET size = (
            SELECT 1000 + 3 * length(CAST(j.recipe AS BLOB)) + j.log_size FROM job j WHERE j.id = testflinger_job.job);
        UPDATE budget SET used = (SELECT ifnull(SUM(size), 0) FROM (
            SELECT size FROM testflinger_job
            UNION ALL SELECT 200 + size FROM testflinger_outcome
            UNION ALL SELECT 100 + length(CAST(name AS BLOB)) + length(CAST(data AS BLOB)) FROM testflinger_image
            UNION ALL SELECT 200 + 2 * length(CAST(fields AS BLOB)) FROM testflinger_agent
            UNION ALL SELECT 100 + length(CAST(line AS BLOB)) FROM testflinger_agent_line
            UNION ALL SELECT 200 + length(CAST(detail AS BLOB)) FROM testflinger_provision)) WHERE name = 'testflinger';
        """,
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

    def __init__(self, execute: Callable[..., sqlite3.Cursor], turns: Turns, limit: TimeLimit):
        self.execute, self.turns, self.limit, self.left = execute, turns, limit, self.PATIENCE

    def __call__(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        while self.turns.urgent and self.left > 0:
            time.sleep(self.PAUSE)
            self.left -= self.PAUSE
        self.limit.check()
        return self.execute(sql, parameters)


class Reader:
    """A read-only connection on its thread, with the reads that it has been given."""

    SHORT = 0.001  # seconds that most take

    def __init__(self, thread: ThreadedConnection):
        self.thread, self.limit = thread, TimeLimit(thread.connection)
        self.given, self.since = 0, 0.0  # since when it is at the present one

    def burden(self, now: float) -> float:
        """How long the next one may have to wait, in seconds: who is at a long one already may be so for long."""
        return self.given * self.SHORT + now - self.since if self.given else 0.0

    def begin(self, read: Callable, *args: Any) -> asyncio.Future:
        """Does one more, after those before it."""
        done = self.thread.begin(read, self.thread.connection, self.limit, *args)
        done.add_done_callback(self._end)
        self.given += 1
        self.since = self.since if self.given > 1 else time.monotonic()
        return done

    def _end(self, _: asyncio.Future) -> None:
        self.given, self.since = self.given - 1, time.monotonic()


class Database:
    """The SQLite file: a writer with group commit, read-only readers, and a lock that keeps a second server out."""

    READERS = 2
    AHEAD = 2  # reads that each has been given: it goes on with the next while the event loop has other work

    def __init__(self, settings: Settings, clock: Clock, announce: Callable[[int, int], None] = lambda *_: None):
        self.settings, self.clock, self.limits = settings, clock, Limits(settings, clock.uptime)
        self._guard = Guard(settings.database)
        self.path = self._guard.path
        self.turns, self.meter = Turns(), Meter()
        self._queue = WriteQueue(announce, self.turns)
        self._gate: Gate | None = None

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
            self._readers, self._reading = list(map(Reader, readers)), FairQueue(self.AHEAD * self.READERS)
            self._gate = Gate()
            self._committer = Committer(
                self._writer, self.clock, self.settings, self._queue.turn, self.limits, self.meter
            )
            self._queue.begin(self._commit)
            undo.push_async_callback(self._queue.close)
            self.space = Space(self)
            self.wal = WalKeeper(self.path, self.settings.max_wal << 20, self._gate, self._write_outside)
            self._committer.after_commit = self.wal.look
            undo.push_async_callback(self.wal.close)
            self.clock.start(*await self.write(lambda tx: (load_uptime(tx), load_seen(tx))))
            await self.write(load_set_back)
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

    def compact(self) -> tuple[int, int]:
        """Makes the file as small as it can be, and able to give space back by itself. Bytes before and after.

        Refused while a tracker uses it, and where the disk has no room for twice what is in it. All or nothing: it is
        one transaction, which a crash undoes or leaves complete.
        """
        if not self.path.exists():
            raise TrackerError("start", f"{self.path}: there is no such database")
        self._guard.take()
        try:
            prepare_file(self.path, self.settings)
            before = self.path.stat().st_size
            with contextlib.closing(connect(self.path, self.settings)) as connection:
                vacuum(self.path, connection)
            return before, self.path.stat().st_size
        finally:
            self._guard.release()

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

    def _write_outside(self, function: Callable) -> asyncio.Future:
        """Runs `function(connection)` on the writer, and outside of any transaction: soon, as reads wait for it."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put_outside(future, function)
        return future

    async def read(self, function: Callable, *args: Any) -> Any:
        """Runs `function(tx, *args)` in a read-only transaction that sees one committed state.

        A few at a time, the others in turns by address: who asks for much makes nobody else wait for all of it.
        Refused (503) after READ_TIME: it must not keep the WAL from being checkpointed for ever.
        """
        if self._gate is None:
            raise TrackerError("unavailable", NOT_STARTED)
        await self._reading.come(FairQueue.OTHER, works_for.get())
        try:
            await self._gate.enter()
        except BaseException:
            self._reading.pass_on()
            raise
        now = time.monotonic()
        try:
            read = min(self._readers, key=lambda reader: reader.burden(now)).begin(self._read, function, args)
        except BaseException:  # it is closed
            self._gate.leave()
            self._reading.pass_on()
            raise
        read.add_done_callback(self._has_read)
        result = await asyncio.shield(read)  # it goes on, whether or not anybody waits for it
        await self.turns()
        return result

    def _has_read(self, read: asyncio.Future) -> None:
        """The next one has its turn."""
        self._gate.leave_after(read)
        self._reading.pass_on()

    def _read(self, connection: sqlite3.Connection, limit: TimeLimit, function: Callable, args: tuple) -> Any:
        limit.begin()
        try:
            connection.execute("BEGIN")
            tx = Tx(connection, self.clock, self.settings, self.limits)
            tx.execute = Polite(connection.execute, self.turns, limit)
            return function(tx, *args)
        except Exception as error:
            let_go(error)
            if primary_code(error) == sqlite3.SQLITE_INTERRUPT:
                raise too_long() from None
            if is_of_the_file(error) and error.sqlite_errorcode != sqlite3.SQLITE_READONLY:  # that is a fault of ours
                raise cannot_read(error) from None
            if isinstance(error, StopIteration):  # which no future takes: its caller would wait for ever
                raise RuntimeError("StopIteration") from error
            raise
        finally:
            limit.begin()
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
        connection.execute(f"PRAGMA journal_size_limit = {settings.max_wal << 18}")
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
    sqlite3.SQLITE_IOERR_SHMLOCK,
    sqlite3.SQLITE_IOERR_SHMMAP,
}
WHY_NOT = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
    sqlite3.SQLITE_IOERR_SHMSIZE: "the disk is full, or its -shm cannot be written",
    sqlite3.SQLITE_READONLY: "it cannot be written to",
    sqlite3.SQLITE_CANTOPEN: "it, its -wal or its -shm cannot be opened",
    sqlite3.SQLITE_BUSY: "another program is using it",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
}


def reason(error: sqlite3.Error) -> str:
    """Why a database cannot be used, in words, and in SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0)
    kind = code if code in WHY_NOT else primary_code(error)
    why = NO_WAL if code in NO_SHARED_MEMORY else WHY_NOT.get(kind, "not a usable SQLite database")
    return f"{why}: {error}"


def vacuum(path: Path, connection: sqlite3.Connection) -> None:
    """Writes all that is in the file anew: into a temporary file beside it, from there into the log, and back."""
    needed = 2 * connection.execute(LIVE_BYTES).fetchone()[0]
    if (free := shutil.disk_usage(path.parent).free) < needed:
        problem = f"{needed >> 20:,} MiB of free disk are needed, and there are {free >> 20:,}"
        raise TrackerError("start", f"{path}: cannot be compacted: {problem}")
    os.environ["SQLITE_TMPDIR"] = str(path.parent)  # where the room is; the usual place may be in memory
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise TrackerError("start", f"{path}: could not be compacted, and is as it was: {error}") from None


LIVE_BYTES = """
    SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""


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
    if empty:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # now or never: see space.py
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


LATEST_UPTIME = """
    SELECT max(?, ifnull((SELECT max(assigned_uptime) FROM task WHERE assignee IS NOT NULL), 0),
        ifnull((SELECT max(started_uptime) FROM operation WHERE finished IS NULL), 0))
"""


def load_uptime(tx: Tx) -> float:
    """The uptime that the last run had reached. After a crash, it had saved one from up to a second before.

    It is no earlier than the latest assignment: what is done to all tasks that are assigned would miss some, and what
    an operation of then is done to would have those that are assigned from now on among it.
    """
    return tx.one(LATEST_UPTIME, (load_meta(tx, "uptime", float),))[0]


def load_seen(tx: Tx) -> Seen | None:
    """What the last run knew of the clock. Of one that kept nothing of that: the latest time that it noted."""
    if row := tx.one("SELECT value FROM meta WHERE key = 'clock'"):
        return read_seen(row["value"])
    latest = tx.one(LATEST_TIME)[0]
    return Seen(time=latest, uptime=load_uptime(tx)) if latest else None


LATEST_TIME = """
    SELECT max(ifnull((SELECT max((SELECT max(time_stamp) FROM snapshot WHERE project = p.id)) FROM project p), 0),
        ifnull((SELECT received FROM log_entry ORDER BY id DESC LIMIT 1), 0),
        ifnull((SELECT max(last_seen) FROM worker), 0), ifnull((SELECT max(register_time) FROM manager), 0))
"""


# By how many seconds at the most a job was noted to be made before one with a smaller id: the clock was set back.
NOTE_SET_BACK = """
    INSERT INTO meta SELECT 'jobs_set_back', created - ?1 FROM job
    WHERE id = (SELECT id FROM job WHERE created > ?1 ORDER BY created DESC LIMIT 1)
    ON CONFLICT DO UPDATE SET value = max(value, excluded.value)
"""


def load_set_back(tx: Tx) -> None:
    """Has a file of before it was noted looked through once."""
    if tx.one("SELECT value FROM meta WHERE key = 'jobs_set_back'") is None:
        latest = "SELECT created, max(created) OVER (ORDER BY id) AS latest FROM job"
        tx.execute(f"INSERT INTO meta SELECT 'jobs_set_back', ifnull(max(latest - created), 0.0) FROM ({latest})")


def set_back(tx: Tx) -> float:
    """Of two jobs, the one with the greater id was noted to be made at most so many seconds before the other one.

    So a list by time finds where to begin among the ids, and misses nothing.
    """
    row = tx.one("SELECT value FROM meta WHERE key = 'jobs_set_back'")
    return row["value"] if row else 0.0


# What is deleted for its age: when that was noted, and which rows of the future would stay, or keep others from going.
OLDEST = "id IN (SELECT id FROM {table} ORDER BY id LIMIT :limit) AND {column} > :future"
SOME = "{key} IN (SELECT {key} FROM {table} WHERE {column} > :future LIMIT :limit)"
NOTED = {
    "log_entry": ("received", OLDEST, "id"),
    "assignment": ("end_time", OLDEST, "id"),
    "operation": ("finished", OLDEST, "id"),
    "job": ("finished", SOME.replace("WHERE", "WHERE template IS :template AND finished IS NOT NULL AND"), "id"),
    "testflinger_job": ("finished", SOME, "job"),
    "testflinger_outcome": ("touched", SOME, "uuid"),
    "testflinger_agent": ("updated", SOME, "id"),
    "testflinger_file": ("stored", SOME, "name"),
}


def let_age(tx: Tx, table: str, limit: int, **values: Any) -> bool:
    """Some rows that a wrong clock has noted as of the future are of when it was set right: else they stay till then.

    Whether there may be more.
    """
    if table not in NOTED or tx.future == math.inf:
        return False
    column, which, key = NOTED[table]
    change = f"UPDATE {table} SET {column} = :settled WHERE {which.format(table=table, column=column, key=key)}"
    values |= {"settled": int(tx.clock.settled), "future": tx.future, "limit": limit}
    return tx.execute(change, values).rowcount == limit
