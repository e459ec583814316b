"""A task tracker: one HTTP server, one SQLite file, a crowd of workers, and no task lost.

A manager makes a project (a queue); workers submit tasks to it, are assigned tasks from it, and release each one as
done, failed or skipped. What flows where:

    request ─► Endpoint ─► Call (decoded) ─► domain function(tx, …) ─► plain values ─► JSON
                                                   │
                             Database.write: one queue, one thread, one transaction and one fsync for all that wait
                                                   │
                             Waiters: a commit that made tasks ready wakes one waiting worker for each of them

Every state change is a plain function that takes an open transaction `tx` and plain values, and returns plain values
or raises TrackerError. Such functions compose: release calls close, close calls chain-submit. Sections, in the order in
which they depend on each other (search for "# ── "):

    Settings · Errors · Clock, ids and secrets · Database · Dialects · Workers · Projects and access · Managers ·
    Tasks · Jobs and templates · Workflows · Task lists · Long operations · Logs · Monitoring · Waiting workers ·
    Background work · HTTP plumbing · JSON API · Manager pages · Routes and app · In-process · Command line
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import codecs
import contextlib
import difflib
import functools
import getpass
import hashlib
import heapq
import hmac
import importlib
import itertools
import logging
import logging.handlers
import math
import os
import re
import secrets
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, get_args
from urllib.parse import parse_qs, urlsplit

import aiosqlite
import filelock
import itsdangerous
import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles

import openapi
from server import Server, listen, plain_cycle, plain_head, run_loop, url_of, uvicorn_config, write_at_once

__version__ = "1.0.0"

HERE = Path(__file__).resolve().parent
log = logging.getLogger("tracker")

# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
LogLevel = Literal["error", "warn", "info", "debug", "trace"]


def about(kind: Any, description: str, **limits: Any) -> Any:
    """The type of a setting: its kind, its help text, its limits."""
    return Annotated[kind, Meta(description=description, **limits)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting: name, type and range, help, default. tracker.toml lists the same ones (a test compares them)."""

    host: about(str, "Address to listen on. Anything but loopback is reachable from outside: put TLS in front.") = (
        "127.0.0.1"
    )
    port: about(int, "Port to listen on; 0 takes a free one.", ge=0, le=65535) = 3010
    root_path: about(
        str,
        "Path prefix below which a reverse proxy serves the tracker, such as /tracker; no slash at its end.",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
    ) = ""
    trusted_proxies: about(
        str, "Addresses (comma separated) of reverse proxies whose X-Forwarded-For and -Proto headers are believed."
    ) = "127.0.0.1"
    database: about(str, "The SQLite file; a relative path starts at the configuration file's folder.") = "tracker.db"
    synchronous: about(
        Literal["FULL", "NORMAL"],
        "FULL: an answer means it is on disk. NORMAL: faster, and a power cut may undo the last moments.",
    ) = "FULL"
    cache_size: about(int, "Memory for SQLite's page cache, in MiB.", ge=1, le=65536) = 16
    log_file: about(
        str,
        "File that gets every line of POST /log (relative: beside the database), rotated at 10 MiB; empty for none.",
    ) = "tracker.log"
    log_level: about(LogLevel, "Workers' log lines from this level on are also kept in the database.") = "info"
    log_retention: about(Seconds, "Log lines in the database are deleted after this time, in seconds.") = 2_592_000
    public_logs: about(bool, "Whether anybody may read the logs; otherwise only managers.") = False
    access_log: about(bool, "Whether to print a line for each request.") = False
    cookie_name: about(str, "Name of the session cookie.", pattern="^[A-Za-z0-9_-]+$") = "tt"
    session_lifetime: about(Seconds, "A login ends after this time, in seconds.") = 2_592_000
    open_registration: about(
        bool, "Whether anybody may register as a manager (who starts with no rights). The first one always may."
    ) = True
    open_worker_registration: about(
        bool, "Whether anybody may create a worker (which starts with no rights); otherwise only managers."
    ) = True
    default_alias: about(str, "Alias of a worker that did not choose one.", min_length=1, max_length=200) = "worker"
    default_max_assign_time: about(
        int, "A task without a max_assign_time of its own is taken back after this time, in seconds.", ge=1, le=2**31
    ) = 3600
    default_job_timeout: about(Seconds, "A job whose template has no timeout may run for this time, in seconds.") = 600
    job_retention: about(
        Seconds, "An ended job is deleted after this time, in seconds, unless its template says otherwise."
    ) = 2_592_000
    max_job_log: about(Count, "Most log text that is kept of one job, in KiB.") = 16384
    theeye_customer: about(
        str, "The name of the one customer (organisation) that clients of theeye.io name.", pattern="^[A-Za-z0-9_.-]+$"
    ) = "tracker"
    testflinger_anonymous: about(
        Literal["loopback", "always", "never"],
        "Who needs no credentials as Testflinger's client or agent. loopback: programs on the tracker's own machine,"
        " where it listens on no other address and has no root_path. always: everybody who reaches it. never: nobody.",
    ) = "loopback"
    testflinger_version: about(
        Literal["2025", "2026"], "Which Testflinger server to be like where the two in use contradict one another."
    ) = "2025"
    testflinger_retention: about(
        Seconds,
        "Testflinger's ended jobs with their results and files, and silent agents are deleted after this time,"
        " in seconds (jobs at the latest after job_retention).",
    ) = 604_800
    testflinger_max_file: about(Count, "Largest artifact or attachments of a Testflinger job, in MiB.") = 4096
    webhook_networks: about(
        tuple[str, ...],
        "Networks that are not public, such as 10.1.2.0/24, into which the tracker may send webhooks all the same.",
    ) = ()
    max_wait: about(Seconds, "The longest ?wait= for a task that is honoured, in seconds.") = 60
    max_count: about(Count, "The most tasks that one ?count= or one bulk release may take.") = 1000
    max_bulk: about(Count, "The most tasks in one bulk submit.") = 100_000
    max_body: about(Count, "Largest request body, in KiB.") = 1024
    max_bulk_body: about(Count, "Largest body of a bulk submit, in KiB.") = 65536
    request_timeout: about(Seconds, "A client has this long to send its headers, and again to send its body.") = 30
    shutdown_timeout: about(Seconds, "Requests in flight have this long to finish when the tracker stops.") = 10
    history_retention: about(
        Seconds, "A task's past assignments and finished operations are forgotten after this time, in seconds."
    ) = 2_592_000
    snapshot_interval: about(Seconds, "Time between two snapshots of every project's counts, in seconds.") = 60
    snapshot_history: about(Seconds, "Snapshots are deleted after this time, in seconds.") = 7_776_000
    refresh_interval: about(
        Seconds, "An open page of the manager UI fetches what has changed after this time, in seconds."
    ) = 5
    production_branches: about(
        tuple[str, ...], "A push to one of these branches sets a project's version (git webhook)."
    ) = ("main", "master")


FIELDS = {field.name: field for field in msgspec.inspect.type_info(Settings).fields}


def load_settings(path: Path | None = None, **overrides: Any) -> tuple[Settings, dict[str, str]]:
    """Settings from a TOML file and from overrides (None = not given), and where each one came from.

    Refuses (TrackerError) an unreadable file, an unknown key, a wrong type, an impossible value, naming key and file.
    """
    given = _read_toml(path) if path else {}
    sources = dict.fromkeys(FIELDS, "default") | dict.fromkeys(given, str(path))
    for name in given:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise TrackerError("start", f"{path}: unknown setting {name}{hint}")
    for name, value in overrides.items():
        if value is not None:
            given[name], sources[name] = value, "command line"
    try:
        settings = msgspec.convert(given, Settings)
    except msgspec.ValidationError as error:
        name, problem = name_and_problem(error)
        raise TrackerError("start", f"{sources[name.partition('[')[0]]}: {name}: {problem}") from None
    if path and sources["database"] != "command line":
        settings = msgspec.structs.replace(settings, database=str(path.parent / settings.database))
    return settings, sources


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise TrackerError("start", f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrackerError("start", f"{path}: not valid TOML: {error}") from None


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

STATUS = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "conflict": 409,
    "too_large": 413,
    "too_fast": 429,
    "internal": 500,
    "unavailable": 503,
}


class TrackerError(Exception):
    """The one root error: a code of STATUS (or "start": the tracker cannot start), and a message for a person.

    `delay` is the time in seconds after which a refused call may be repeated (too_fast).
    """

    def __init__(self, code: str, message: str, delay: float | None = None):
        super().__init__(message)
        self.code, self.message, self.delay = code, message, delay


class MethodNotAllowed(TrackerError):
    """What is asked for is there, but for other methods."""

    def __init__(self, method: str, allowed: Iterable[str]):
        super().__init__("method_not_allowed", f"{method} is not possible here")
        self.allowed = list(allowed)


def name_and_problem(error: msgspec.ValidationError) -> tuple[str, str]:
    """Splits msgspec's "Expected `int`, got `str` - at `$.requests[3].project`" into field and problem."""
    problem, _, path = str(error).partition(" - at `")
    if missing := re.match(r"Object missing required field `(.*)`", problem):
        problem, path = "is required", f"{path.rstrip('`')}.{missing[1]}" if path else f"$.{missing[1]}"
    name = path.rstrip("`").removeprefix("$").removeprefix(".")
    if name.startswith("["):  # "[...]" is a place in what has no names of its own
        name = "body" if name == "[...]" else f"requests{name}"
    return name or "body", problem.replace("`", "")


def decode(body: bytes, kind: Any) -> Any:
    """The JSON body as `kind`, whatever its content type said. Refuses anything else, naming the field."""
    try:
        value = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise TrackerError("invalid", "{}: {}".format(*name_and_problem(error))) from None
    except RecursionError:
        raise TrackerError("invalid", "body: nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrackerError("invalid", f"body: not valid JSON: {error}") from None
    if b"\\u0000" in body:
        _refuse_nul(value, "")
    return value


MOST_NESTED = 200  # lists and objects in one another that are looked into: far from where Python's stack ends


def _refuse_nul(value: Any, name: str, depth: int = 0) -> None:
    """SQLite's text functions stop at a NUL character; JSON can only carry one as an escape, so this runs rarely."""
    if depth > MOST_NESTED:
        raise TrackerError("invalid", f"{re.split('[.[]', name.lstrip('.'))[0]}: nested too deeply")
    if isinstance(value, str) and "\0" in value:
        raise TrackerError("invalid", f"{name.lstrip('.')}: must not contain a NUL character")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_nul(item, f"{name or 'requests'}[{index}]", depth + 1)
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nul(key, f"{name}: a name" if name else "a name")
            _refuse_nul(item, f"{name}.{key}", depth + 1)
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            _refuse_nul(getattr(value, field), f"{name}.{field}", depth + 1)


def storable(value: Any) -> Any:
    """JSON as it can be stored: without NUL characters, and with a question mark for half of a surrogate pair."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [storable(one) for one in value]
    if isinstance(value, dict):
        return {storable(name): storable(one) for name, one in value.items()}
    return value


# ── Clock, ids and secrets ────────────────────────────────────────────────────────────────────────────────────────────


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

    def uptime(self) -> float:
        return time.monotonic() - self._origin


INT64_MAX = 2**63 - 1
UNLIMITED_RATE = 1.7976931348623157e308  # what existing clients compare with

Int64 = Annotated[int, Meta(ge=-(2**63), le=INT64_MAX)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Id = Annotated[int, Meta(ge=0, le=INT64_MAX)]


def new_secret() -> str:
    """32 random bytes in base64, as workers' secrets look."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def digest(secret: bytes) -> bytes:
    """What is stored of a random secret. Plain SHA-256 is enough for 256 random bits, and fast."""
    return hashlib.sha256(secret).digest()


def to_int64(value: int, name: str) -> int:
    """A 64-bit integer, signed or unsigned, as the signed one with the same bits. Refuses what needs more than 64."""
    if not -(2**63) <= value < 2**64:
        raise TrackerError("invalid", f"{name}: must fit in 64 bits")
    return value - 2**64 if value > INT64_MAX else value


def hash_unique_string(text: str) -> int:
    """A 64-bit hash of a task's unique string. Never 0, which means none."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True) or 1


def retry_pauses() -> Iterator[float]:
    """Growing pauses, in seconds, between attempts at something that keeps failing."""
    return itertools.chain((0.1, 0.5, 1, 2, 5), itertools.repeat(10))


# ── Database ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA_VERSION = 5
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
        ALTER TABLE login_failure RENAME COLUMN free_at TO free_uptime;
        ALTER TABLE login_failure RENAME COLUMN forget_at TO forget_uptime;
        DROP TRIGGER IF EXISTS testflinger_job_made;
        DROP TRIGGER IF EXISTS testflinger_job_moved;
        DROP TRIGGER IF EXISTS testflinger_job_gone;
        """,
        "",
    ),
}
OLDEST_SCHEMA = min(UPGRADES)


class Tx:
    """An open transaction: `execute`, one instant (`time`, `uptime`), the settings, what the commit announces."""

    __slots__ = ("clock", "execute", "executemany", "now", "ready", "seen", "settings", "time", "uptime")

    def __init__(self, connection: sqlite3.Connection, clock: Clock, settings: Settings):
        self.clock = clock
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.now = clock.time()
        self.time = int(self.now)
        self.uptime = clock.uptime()
        self.settings = settings
        self.seen: set[int] = set()  # workers whose last_seen is due
        self.ready: list[tuple[int, int]] = []  # (project, number of its tasks that became ready)

    def spent(self) -> float:
        """How long this transaction has been going on, in seconds: long operations stop in time for others."""
        return self.clock.uptime() - self.uptime

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        return self.execute(sql, parameters).fetchone()

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self.execute(sql, parameters).fetchall()


class ThreadedConnection(aiosqlite.Connection):
    """An SQLite connection with a thread of its own, on which whole functions can be run: one crossing for each."""

    @property
    def connection(self) -> sqlite3.Connection:
        return self._conn

    async def run(self, function: Callable, *args: Any) -> Any:
        return await self._execute(function, *args)


class Write(NamedTuple):
    """A call that waits for the writer."""

    future: asyncio.Future
    function: Callable
    args: tuple


CANNOT_WRITE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
}


def primary_code(error: Exception) -> int:
    """SQLite's primary result code of an error, 0 if it is none of SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Database:
    """The SQLite file: one writer with group commit, read-only readers, and a lock that keeps a second server out."""

    READERS = 2
    MOST_BATCHED = 256
    BATCH_TIME = 0.02  # seconds of the event loop that one batch may take; the rest goes into the next one
    LOCK_PATIENCE = 5.0  # seconds to wait for another program that holds the file (somebody's sqlite3 shell)

    def __init__(self, settings: Settings, clock: Clock, announce: Callable[[int, int], None] = lambda *_: None):
        self.settings, self.clock, self.announce = settings, clock, announce
        self.path = Path(settings.database).resolve()
        self._lock = filelock.FileLock(f"{self.path}.lock", timeout=0)
        self._short: list[Write] = []
        self._long: list[Write] = []
        self._wanted: asyncio.Event | None = None

    async def open(self) -> None:
        """Takes the lock, creates or upgrades the file, starts the threads. Refuses what it cannot use."""
        lock_file(self.path, self._lock)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(self._lock.release)
            prepare_file(self.path, self.settings)
            self._writer = await undo.enter_async_context(ThreadedConnection(self._connect, 64))
            readers = [
                await undo.enter_async_context(ThreadedConnection(self._connect_reader, 64))
                for _ in range(self.READERS)
            ]
            self._readers = itertools.cycle(readers)
            self._wanted = asyncio.Event()
            self._closing = False
            self._task = asyncio.create_task(self._write_batches())
            self.clock.start(await self.write(load_uptime))
            self._uptime_saved = self.clock.uptime()
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
            self._closing = True
            self._wanted.set()
            await self._task
            await self._open.aclose()

    def write(self, function: Callable, *args: Any, long: bool = False) -> asyncio.Future:
        """Runs `function(tx, *args)` on the writer; the result arrives when it is committed, and on disk.

        An exception of the function undoes all that it did and nothing else. A cancelled call that has not begun is
        never run. A `long` one takes milliseconds: it runs by itself and beside the event loop, and the short ones that
        have arrived meanwhile come before the next long one.
        """
        if self._closing:
            raise TrackerError("unavailable", "The tracker is stopping")
        future = asyncio.get_running_loop().create_future()
        (self._long if long else self._short).append(Write(future, function, args))
        self._wanted.set()
        return future

    _closing = True  # until open() has finished
    _uptime_saved = math.inf

    async def read(self, function: Callable, *args: Any) -> Any:
        """Runs `function(tx, *args)` in a read-only transaction that sees one committed state."""
        reader = next(self._readers)
        return await reader.run(self._read, reader.connection, function, args)

    def _read(self, connection: sqlite3.Connection, function: Callable, args: tuple) -> Any:
        connection.execute("BEGIN")
        try:
            return function(Tx(connection, self.clock, self.settings), *args)
        finally:
            connection.execute("COMMIT")  # soon: an open read transaction keeps the WAL from being checkpointed

    async def _write_batches(self) -> None:
        while self._short or self._long or not self._closing:
            await self._wanted.wait()
            self._wanted.clear()
            while self._short or self._long:
                await self._arrivals()
                await self._write_batch(self._take(self._short, self.MOST_BATCHED), on_thread=False)
                await self._write_batch(self._take(self._long, 1), on_thread=True)

    async def _arrivals(self) -> None:
        """Lets the event loop take in what has arrived, until nothing more does: fewer commits serve more calls."""
        waiting = -1
        while waiting < len(self._short) < self.MOST_BATCHED:
            waiting = len(self._short)
            await asyncio.sleep(0)

    def _take(self, calls: list[Write], most: int) -> list[Write]:
        """Removes the first calls from a queue, and returns those whose callers still want them."""
        batch = [call for call in calls[:most] if not call.future.done()]
        del calls[:most]
        return batch

    async def _write_batch(self, batch: list[Write], on_thread: bool) -> None:
        if not batch:
            return
        try:
            outcomes, ready = await self._commit_patiently(batch, on_thread)
        except Exception as error:
            log.error("A transaction could not be committed: %s", error)
            refusal = TrackerError("unavailable", "The database cannot be written to")
            outcomes, ready = [(False, refusal)] * len(batch), []
        self._short[:0] = batch[len(outcomes) :]
        for call, (succeeded, outcome) in zip(batch, outcomes, strict=False):
            if not call.future.done():
                (call.future.set_result if succeeded else call.future.set_exception)(outcome)
        for project, count in ready:
            self.announce(project, count)

    async def _commit_patiently(self, batch: list[Write], on_thread: bool) -> tuple[list, list]:
        """Commits a batch. While another program holds the file, nothing has happened yet and the loop goes on."""
        ends = time.monotonic() + self.LOCK_PATIENCE
        while True:
            try:
                return await self._commit(batch, on_thread)
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                    raise
                await asyncio.sleep(0.05)

    async def _commit(self, batch: list[Write], on_thread: bool) -> tuple[list, list]:
        """Runs a batch in one transaction. Only the COMMIT, with its fsync, always crosses to the writer's thread.

        Short statements take less time than the crossing, and on another thread each of them would wait for the
        interpreter lock while the event loop is busy.
        """
        connection = self._writer.connection
        try:
            if on_thread:
                done = await self._writer.run(self._run_batch, connection, batch)
            else:
                done = self._run_batch(connection, batch)
            await self._writer.run(connection.execute, "COMMIT")
            return done
        except BaseException:
            if connection.in_transaction:
                await self._writer.run(connection.execute, "ROLLBACK")
            raise

    def _run_batch(self, connection: sqlite3.Connection, batch: list[Write]) -> tuple[list, list]:
        """Runs the calls in one transaction. Savepoints cost as much as statements: they wait for the rare failure."""
        return self._run(connection, batch, isolated=False) or self._run(connection, batch, isolated=True)

    def _run(self, connection: sqlite3.Connection, batch: list[Write], isolated: bool) -> tuple[list, list] | None:
        """Runs calls in a new transaction until its time is up. Without isolation, None when one failed half-way."""
        connection.execute("BEGIN IMMEDIATE")
        tx, outcomes = Tx(connection, self.clock, self.settings), []
        for call in batch:
            changes, announced = connection.total_changes, len(tx.ready)
            if isolated:
                connection.execute("SAVEPOINT call")
            try:
                outcomes.append((True, call.function(tx, *call.args)))
            except Exception as error:
                if not connection.in_transaction:
                    raise  # SQLite gave up the whole transaction (disk full, say)
                if primary_code(error) in CANNOT_WRITE:
                    log.error("A write failed: %s", error)
                    error = TrackerError("unavailable", "The database cannot be written to")
                outcomes.append((False, error))
                del tx.ready[announced:]
                if isolated:
                    connection.execute("ROLLBACK TO call")
                elif connection.total_changes != changes:
                    connection.execute("ROLLBACK")
                    return None
            if isolated:
                connection.execute("RELEASE call")
            if tx.spent() > self.BATCH_TIME:
                break
        if tx.seen:  # here, because it must outlast a refusal and must not make a refusal undo the batch
            tx.executemany("UPDATE worker SET last_seen = ? WHERE id = ?", [(tx.time, worker) for worker in tx.seen])
        if tx.uptime - self._uptime_saved >= UPTIME_INTERVAL:  # leases and limiters in this commit rest on it
            save_uptime(tx)
            self._uptime_saved = tx.uptime
        return outcomes, tx.ready


def lock_file(path: Path, lock: filelock.FileLock) -> None:
    """Makes this process the only one that writes to the database. Two that checkpoint one WAL can corrupt it."""
    if not path.parent.is_dir():  # the lock would create the folder: that hides a slip of the pen
        raise TrackerError("start", f"{path}: cannot be opened: there is no such folder")
    try:
        lock.acquire()
    except filelock.Timeout:
        raise TrackerError("start", f"{path}: another tracker is using this database") from None
    except OSError as error:
        raise TrackerError("start", f"{path}: cannot be opened: {error.strerror}") from None


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
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # secrets are inside: nobody else's to read
        with contextlib.closing(connect(path, settings)) as connection:
            upgrade_schema(path, connection)
            if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise TrackerError("start", f"{path}: this file system cannot hold a database in WAL mode")
    except OSError as error:
        raise TrackerError("start", f"{path}: cannot be opened: {error.strerror}") from None
    except sqlite3.Error as error:
        raise TrackerError("start", f"{path}: not a usable SQLite database: {error}") from None


def upgrade_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Brings the schema to SCHEMA_VERSION. Everything or nothing."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = not connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
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
        scripts += [(HERE / "schema.sql").read_text("utf-8")]
        scripts += [after for _, after in steps]
        scripts += [f"PRAGMA application_id = {APPLICATION_ID};", f"PRAGMA user_version = {SCHEMA_VERSION};"]
        script = "\n".join(["BEGIN IMMEDIATE;", *scripts, "COMMIT;"])
        try:
            connection.executescript(script)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def load_meta(tx: Tx, key: str, make: Callable[[], Any]) -> Any:
    """A fact about this file, made when it is asked for the first time."""
    tx.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", (key, make()))
    return tx.one("SELECT value FROM meta WHERE key = ?", (key,))[0]


def load_uptime(tx: Tx) -> float:
    return load_meta(tx, "uptime", float)


def save_uptime(tx: Tx) -> None:
    tx.execute("UPDATE meta SET value = ? WHERE key = 'uptime'", (tx.uptime,))


# ── Dialects ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# Other systems' APIs over the same queue, each a module of dialects/, by the names that people write. The core knows
# none of them but here, and runs without that folder. What a module may have, besides routes(running):
#
#     PAGES                          rows of manager pages, as pages.py has them
#     links(tx, project=None, job=None)    its pages that those of the tracker lead to (pages.Link): from everywhere, or
#                                    from those of a project or of a job
#     job_event(tx, event, job)      follows a job, in the transaction in which something happens to it: "made", a move
#                                    of JOB_MOVES, "set_priority" or "deleted"; the job as it is then, or was
#     async catch_up(running)        at a start, when it may not have seen all that was done to this file
#     check_project(tx, project, fields)   raises why a project cannot be changed to this
#     check_retry(tx, job)           raises why a job that has ended cannot be made again
#     client_of(tx, job)             which of its clients made a job, in words; None: not known
#     async prune(running)           forgets what is old, now and then
#
# templates/NAME_admin.html and NAME_template.html, where there are such, are its parts of the pages of those names.
DIALECTS = {"testflinger": "Testflinger", "otter": "Otter", "theeye": "theeye.io"}


@functools.cache
def installed_dialects() -> list[str]:
    return [name for name in DIALECTS if list((HERE / "dialects").glob(f"{name}*"))]


@functools.cache
def dialects() -> list[Any]:
    """The modules of all dialects that are installed. Imported when somebody asks: they rest on this one."""
    return [importlib.import_module(f"dialects.{name}") for name in installed_dialects()]


def hooks(name: str) -> list[Callable]:
    """What the dialects have of this name."""
    return [getattr(dialect, name) for dialect in dialects() if hasattr(dialect, name)]


def job_happens(tx: Tx, event: str, job: sqlite3.Row) -> None:
    """Something has happened to a job: the dialects that follow jobs do so, in this transaction."""
    for follow in hooks("job_event"):
        follow(tx, event, job)


def known_dialects(tx: Tx) -> list[str]:
    """The dialects that were there whenever a tracker ran on this file. Those that are not here now are so no more."""
    row = tx.one("SELECT value FROM meta WHERE key = 'dialects'")
    known = [name for name in (row["value"].split() if row else ()) if name in installed_dialects()]
    note_dialects(tx, known)
    return known


def note_dialects(tx: Tx, names: Iterable[str]) -> None:
    noted = "INSERT INTO meta VALUES ('dialects', ?) ON CONFLICT DO UPDATE SET value = excluded.value"
    tx.execute(noted + " WHERE value <> excluded.value", (" ".join(names),))


# ── Workers ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LAST_SEEN_STEP = 10  # seconds; a coarser last_seen saves a write on nearly every request


class WorkerCredentials(NamedTuple):
    """What a worker's headers claim. Without a secret: it has proved who it is in a dialect's own way."""

    id: int
    secret: bytes | None


class AliasBody(msgspec.Struct):
    alias: Annotated[str, Meta(max_length=200)] = ""


class PauseBody(msgspec.Struct):
    worker: Id
    paused: bool


class Known(NamedTuple):
    """What is known of a worker that calls."""

    secret_hash: bytes
    last_seen: int
    alias: str


def check_secret(worker: Known | Submitter | Offer | Held | None, caller: WorkerCredentials) -> None:
    """Refuses a caller whose secret is not that of the worker (None: there is none with its id)."""
    known = worker is not None and (
        caller.secret is None or hmac.compare_digest(worker.secret_hash, digest(caller.secret))
    )
    if not known:
        raise TrackerError("unauthorized", "Unknown worker or wrong secret (headers X-Worker-ID and X-Secret)")


def check_worker(tx: Tx, worker: Known | Submitter | Offer | Held | None, caller: WorkerCredentials) -> None:
    """Refuses as check_secret does; notes that the worker was seen."""
    check_secret(worker, caller)
    if abs(tx.time - worker.last_seen) >= LAST_SEEN_STEP:
        tx.seen.add(caller.id)


def find_worker(tx: Tx, worker: int) -> Known | None:
    row = tx.one("SELECT secret_hash, last_seen, alias FROM worker WHERE id = ?", (worker,))
    return row and Known._make(row)


def authenticate(tx: Tx, caller: WorkerCredentials) -> Known:
    """The worker that the caller is. 401 if it is none."""
    worker = find_worker(tx, caller.id)
    check_worker(tx, worker, caller)
    return worker


def may_submit_somewhere(tx: Tx, caller: WorkerCredentials) -> bool:
    """Whether the caller has SUBMIT in any project: a check before a large body is read. 401 if it is no worker."""
    check_secret(find_worker(tx, caller.id), caller)
    return bool(tx.one("SELECT 1 FROM worker_access WHERE worker = ? AND role_submit AND NOT request", (caller.id,)))


def alias_of(tx: Tx, worker: int | None) -> str | None:
    row = tx.one("SELECT alias FROM worker WHERE id = ?", (worker,)) if worker is not None else None
    return row and row["alias"]


def clean_alias(tx: Tx, alias: str) -> str:
    """The alias to store. `unassigned` is reserved: statistics of assignees use it for tasks that nobody holds."""
    alias = alias.strip() or tx.settings.default_alias
    if alias.lower() == "unassigned":
        raise TrackerError("invalid", "alias: 'unassigned' is reserved")
    return alias


def create_worker(tx: Tx, session: bytes | None, body: AliasBody) -> dict[str, Any]:
    """Registers a worker, with no rights yet. Its secret is in the answer and nowhere else."""
    if not tx.settings.open_worker_registration:
        require_manager(tx, session)
    alias = clean_alias(tx, body.alias)
    worker, secret = insert_worker(tx, alias)
    return {"worker": {"id": worker, "created": tx.time, "alias": alias, "secret": secret, "paused": False}}


def insert_worker(tx: Tx, alias: str) -> tuple[int, str]:
    """Stores a worker, whoever wants it. Its id, and its secret, which is stored nowhere."""
    secret = new_secret()
    row = tx.one(
        "INSERT INTO worker (alias, secret_hash, created, last_seen) VALUES (?, ?, ?, ?) RETURNING id",
        (alias, digest(secret.encode()), tx.time, tx.time),
    )
    return row["id"], secret


def get_worker(tx: Tx, session: bytes | None, worker: int) -> dict[str, Any]:
    """A worker as everybody may see it, without its secret."""
    row = tx.one("SELECT id, created, alias, paused FROM worker WHERE id = ?", (worker,))
    if row is None:
        raise TrackerError("not_found", f"No worker {worker}")
    return {"worker": {**row, "paused": bool(row["paused"])}}


def update_worker(tx: Tx, caller: WorkerCredentials, body: AliasBody) -> None:
    """Renames the calling worker."""
    authenticate(tx, caller)
    tx.execute("UPDATE worker SET alias = ? WHERE id = ?", (clean_alias(tx, body.alias), caller.id))


def set_worker_paused(tx: Tx, session: bytes | None, body: PauseBody) -> None:
    """Pauses a worker (it is assigned nothing) or lets it go on. For admins."""
    require_admin(tx, session)
    get_worker(tx, session, body.worker)
    tx.execute("UPDATE worker SET paused = ? WHERE id = ?", (body.paused, body.worker))


def worker_stats(tx: Tx, session: bytes | None) -> dict[str, Any]:
    """Every worker and how many tasks it has closed, the busiest first."""
    rows = tx.all("SELECT id, alias, closed_task_count, paused FROM worker ORDER BY closed_task_count DESC, id")
    return {"stats": [{**row, "paused": bool(row["paused"])} for row in rows]}


# ── Projects and access ───────────────────────────────────────────────────────────────────────────────────────────────

READ, EDIT, MANAGE_ACCESS, SECRET, MAINTENANCE = 1, 2, 4, 8, 16
ROLE_NAMES = {READ: "READ", EDIT: "EDIT", MANAGE_ACCESS: "MANAGE_ACCESS", SECRET: "SECRET", MAINTENANCE: "MAINTENANCE"}
ALL_ROLES = sum(ROLE_NAMES)

COUNT_COLUMNS = (
    "waiting_task_count",
    "assigned_task_count",
    "awaiting_verification_count",
    "failed_task_count",
    "closed_task_count",
)

ShortText = Annotated[str, Meta(max_length=1000)]
Rate = Annotated[float, Meta(ge=0)]


class ProjectBody(msgspec.Struct):
    """A project's fields. Absent ones take their default in a new project, and stay as they are in an update."""

    name: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    priority: Int64 | UnsetType = UNSET
    clone_url: ShortText | UnsetType = UNSET
    git_repo: ShortText | UnsetType = UNSET
    version: ShortText | UnsetType = UNSET
    motd: Annotated[str, Meta(max_length=100_000)] | UnsetType = UNSET
    public: bool | UnsetType = UNSET
    hidden: bool | UnsetType = UNSET
    paused: bool | UnsetType = UNSET
    chain: Id | UnsetType = UNSET
    assign_rate: Rate | UnsetType | None = UNSET
    submit_rate: Rate | UnsetType | None = UNSET
    keep_hashes: bool | UnsetType = UNSET


NEW_PROJECT = {
    "priority": 1,
    **dict.fromkeys(("clone_url", "git_repo", "version", "motd"), ""),
    **dict.fromkeys(("public", "hidden", "paused", "keep_hashes"), False),
    "chain": None,
    **dict.fromkeys(("assign_rate", "submit_rate"), 0.0),
}


class AccessBody(msgspec.Struct):
    project: Id
    assign: bool = False
    submit: bool = False


class SecretBody(msgspec.Struct):
    secret: Annotated[str, Meta(max_length=100_000)]


class WebhookSecretBody(msgspec.Struct):
    webhook_secret: Annotated[str, Meta(min_length=1, max_length=1000)]


class Project(NamedTuple):
    """A project's fields, as the document shows them (Offer has the same ones)."""

    id: int
    priority: int
    name: str
    clone_url: str
    git_repo: str
    version: str
    motd: str
    public: int
    hidden: int
    chain: int | None
    paused: int
    assign_rate: float
    submit_rate: float
    keep_hashes: int


def project_json(project: Project | Offer) -> dict[str, Any]:
    return {
        "id": project.id,
        "priority": project.priority,
        "name": project.name,
        "clone_url": project.clone_url,
        "git_repo": project.git_repo,
        "version": project.version,
        "motd": project.motd,
        "public": bool(project.public),
        "hidden": bool(project.hidden),
        "chain": project.chain or 0,
        "paused": bool(project.paused),
        "assign_rate": project.assign_rate or UNLIMITED_RATE,
        "submit_rate": project.submit_rate or UNLIMITED_RATE,
        "keep_hashes": bool(project.keep_hashes),
    }


def project_with_counts(row: sqlite3.Row) -> dict[str, Any]:
    project = Project._make(row[name] for name in Project._fields)
    return {**project_json(project), **{name: row[name] for name in COUNT_COLUMNS}}


def find_project(tx: Tx, project: int) -> sqlite3.Row:
    """The project's row. 404 if there is none."""
    row = tx.one("SELECT * FROM project WHERE id = ?", (project,))
    if row is None:
        raise TrackerError("not_found", f"No project {project}")
    return row


def visible_project(tx: Tx, session: bytes | None, project: int) -> sqlite3.Row:
    """The project's row, if the caller may see it. A hidden project is 404 to the rest: it cannot be told from none."""
    row = find_project(tx, project)
    if row["hidden"] and not role_in_project(tx, signed_in(tx, session), project) & READ:
        raise TrackerError("not_found", f"No project {project}")
    return row


def get_project(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """A project with its live counts. A hidden one only for managers with READ; for others it does not exist."""
    return project_with_counts(visible_project(tx, session, project))


def list_projects(tx: Tx, session: bytes | None) -> dict[str, Any]:
    """Every project that the caller may see, by name: hidden ones only with READ."""
    manager = signed_in(tx, session)
    rows = tx.all(
        "SELECT p.* FROM project p LEFT JOIN manager_role r ON r.project = p.id AND r.manager = :manager"
        " WHERE NOT p.hidden OR :admin OR r.role & 1 ORDER BY p.name",
        {"manager": manager and manager["id"], "admin": bool(manager and manager["tracker_admin"])},
    )
    return {"projects": [project_with_counts(row) for row in rows]}


def create_project(tx: Tx, session: bytes | None, body: ProjectBody) -> dict[str, Any]:
    """Makes a project. Its creator gets every role in it; only a tracker admin may make it public."""
    manager = require_manager(tx, session)
    if body.name is UNSET:
        raise TrackerError("invalid", "name: is required")
    fields = checked_fields(tx, manager, None, body)
    project = insert_project(tx, fields)
    tx.execute("INSERT INTO manager_role VALUES (?, ?, ?)", (project, manager["id"], ALL_ROLES))
    return {"id": project}


def insert_project(tx: Tx, fields: dict[str, Any]) -> int:
    """Stores a project with these fields of NEW_PROJECT, and a name that no other one has. Its id."""
    fields = {**NEW_PROJECT, **fields, "webhook_secret": new_secret()}
    columns, values = ", ".join(fields), ", ".join(f":{name}" for name in fields)
    project = tx.one(f"INSERT INTO project ({columns}) VALUES ({values}) RETURNING id", fields)["id"]
    take_snapshots(tx, project - 1, tx.time)  # rates and charts begin here, and not at the next round
    return project


def forget_project(tx: Tx, project: int) -> bool:
    """Deletes a project that has nothing in it, with its history, a piece at a time. Whether that was the last one.

    That nothing refers to it (no task, job, template, workflow, role or access) is for the caller to see to.
    """
    values = {"project": project, "limit": PIECE_TASKS}
    pieces = (
        "DELETE FROM snapshot WHERE project = :project AND time_stamp IN"
        " (SELECT time_stamp FROM snapshot WHERE project = :project LIMIT :limit)",
        "UPDATE log_entry SET project = NULL WHERE id IN"
        " (SELECT id FROM log_entry WHERE project = :project LIMIT :limit)",
    )
    if any(tx.execute(piece, values).rowcount >= PIECE_TASKS for piece in pieces):
        return False
    for table, column in (("operation", "project"), ("tally", "project"), ("project", "id")):
        tx.execute(f"DELETE FROM {table} WHERE {column} = :project", values)
    return True


def update_project(tx: Tx, session: bytes | None, project: int, body: ProjectBody) -> None:
    """Changes a project. Fields that are absent stay as they are. Takes effect with the very next assignment.

    Needs EDIT; making it public needs a tracker admin, and chaining it needs EDIT in the other project too.
    """
    manager = require_role(tx, session, project, EDIT)
    old = find_project(tx, project)
    fields = checked_fields(tx, manager, old, body)
    for kind in ("assign", "submit"):
        if fields[f"{kind}_rate"] != old[f"{kind}_rate"]:
            fields[f"{kind}_free_uptime"] = 0
    changes = ", ".join(f"{name} = :{name}" for name in fields)
    tx.execute(f"UPDATE project SET {changes} WHERE id = :id", {"id": project, **fields})
    tx.ready.append((project, old["waiting_task_count"] + old["awaiting_verification_count"]))  # if it was un-paused


class PausedBody(msgspec.Struct):
    paused: bool


def pause_project(tx: Tx, session: bytes | None, project: int, body: PausedBody) -> None:
    """Stops or resumes assignment from a project. Needs EDIT."""
    update_project(tx, session, project, ProjectBody(paused=body.paused))


def checked_fields(tx: Tx, manager: sqlite3.Row, old: sqlite3.Row | None, body: ProjectBody) -> dict[str, Any]:
    """The columns of a new or changed project, or the reason why it is refused."""
    before = {name: old[name] for name in ("name", *NEW_PROJECT)} if old else NEW_PROJECT
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}
    fields = {**before, **given}
    fields["chain"] = fields["chain"] or None
    for name in ("assign_rate", "submit_rate"):
        rate = fields[name] or 0.0
        fields[name] = 0.0 if rate >= UNLIMITED_RATE else float(rate)
    if not fields["name"].strip():
        raise TrackerError("invalid", "name: must not be blank")
    if fields["public"] and fields["hidden"]:
        raise TrackerError("invalid", "hidden: a project cannot be public and hidden at once")
    if fields["public"] and not before["public"] and not manager["tracker_admin"]:
        raise TrackerError("forbidden", "public: only a tracker admin may make a project public")
    for check in hooks("check_project") if old else ():
        check(tx, old, fields)
    if fields["chain"] != before["chain"]:
        check_chain(tx, manager, old["id"] if old else None, fields["chain"])
    if tx.one("SELECT 1 FROM project WHERE name = ? AND id IS NOT ?", (fields["name"], old and old["id"])):
        raise TrackerError("conflict", f"name: there is a project named {fields['name']!r} already")
    return fields


def check_chain(tx: Tx, manager: sqlite3.Row, project: int | None, target: int | None) -> None:
    """Refuses a chain to nowhere, to a project that the manager cannot edit, to itself, or in a circle."""
    following = target
    while following is not None:
        if following == project:
            raise TrackerError("invalid", "chain: a project cannot be chained to itself, not even in a circle")
        row = tx.one("SELECT chain FROM project WHERE id = ?", (following,))
        if row is None:
            raise TrackerError("not_found", f"chain: no project {following}")
        following = row["chain"]
    if target is not None and not role_in_project(tx, manager, target) & EDIT:
        raise TrackerError("forbidden", f"chain: you have no EDIT role in project {target}")


def request_access(tx: Tx, caller: WorkerCredentials, body: AccessBody) -> None:
    """Asks a project's managers for access. It opens nothing by itself: a manager accepts or rejects it."""
    authenticate(tx, caller)
    find_project(tx, body.project)
    if not (body.assign or body.submit):
        raise TrackerError("invalid", "assign, submit: ask for at least one")
    old = tx.one("SELECT request FROM worker_access WHERE project = ? AND worker = ?", (body.project, caller.id))
    if old:
        state = "is waiting for a manager already" if old["request"] else "has been granted already"
        raise TrackerError("conflict", f"Your access to project {body.project} {state}")
    tx.execute(
        "INSERT INTO worker_access (project, worker, role_assign, role_submit, request) VALUES (?, ?, ?, ?, 1)",
        (body.project, caller.id, body.assign, body.submit),
    )


def list_access(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """Who has or wants access, the waiting requests first. Needs MANAGE_ACCESS."""
    require_role(tx, session, project, MANAGE_ACCESS)
    rows = tx.all(
        "SELECT a.*, w.created, w.alias, w.paused FROM worker_access a JOIN worker w ON w.id = a.worker"
        " WHERE a.project = ? ORDER BY a.request DESC, w.alias, w.id",
        (project,),
    )
    return {"accesses": [access_json(row) for row in rows]}


def access_json(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "submit": bool(row["role_submit"]),
        "assign": bool(row["role_assign"]),
        "request": bool(row["request"]),
        "worker": {
            "id": row["worker"],
            "created": row["created"],
            "alias": row["alias"],
            "paused": bool(row["paused"]),
        },
        "project": row["project"],
    }


def find_access(tx: Tx, project: int, worker: int) -> sqlite3.Row:
    row = tx.one("SELECT * FROM worker_access WHERE project = ? AND worker = ?", (project, worker))
    if row is None:
        raise TrackerError("not_found", f"Worker {worker} has neither asked for nor got access to project {project}")
    return row


def accept_request(tx: Tx, session: bytes | None, project: int, worker: int) -> None:
    """Grants what the worker asked for. Needs MANAGE_ACCESS."""
    require_role(tx, session, project, MANAGE_ACCESS)
    if not find_access(tx, project, worker)["request"]:
        raise TrackerError("conflict", f"Worker {worker} has access to project {project} already")
    tx.execute("UPDATE worker_access SET request = 0 WHERE project = ? AND worker = ?", (project, worker))


def reject_request(tx: Tx, session: bytes | None, project: int, worker: int) -> None:
    """Rejects a request, or withdraws what was granted. Needs MANAGE_ACCESS."""
    require_role(tx, session, project, MANAGE_ACCESS)
    find_access(tx, project, worker)
    tx.execute("DELETE FROM worker_access WHERE project = ? AND worker = ?", (project, worker))


class WorkerRolesBody(msgspec.Struct):
    worker: Id
    assign: bool = False
    submit: bool = False


def set_worker_access(tx: Tx, session: bytes | None, project: int, body: WorkerRolesBody) -> None:
    """Gives a worker exactly this access, asked for or not. Needs MANAGE_ACCESS."""
    require_role(tx, session, project, MANAGE_ACCESS)
    get_worker(tx, session, body.worker)
    if not (body.assign or body.submit):
        raise TrackerError("invalid", "assign, submit: choose at least one, or withdraw the access")
    values = (project, body.worker, body.assign, body.submit)
    tx.execute("INSERT OR REPLACE INTO worker_access VALUES (?, ?, ?, ?, 0)", values)


def get_secret(tx: Tx, caller: WorkerCredentials | bytes | None, project: int) -> dict[str, Any]:
    """What workers need to run this project: for a worker with granted ASSIGN, or a manager with SECRET."""
    if isinstance(caller, WorkerCredentials):
        authenticate(tx, caller)
        find_project(tx, project)
        row = tx.one(
            "SELECT 1 FROM worker_access WHERE project = ? AND worker = ? AND role_assign AND NOT request",
            (project, caller.id),
        )
        if row is None:
            raise TrackerError("forbidden", f"You have no ASSIGN access to project {project}")
    else:
        require_role(tx, caller, project, SECRET)
    return {"secret": find_project(tx, project)["secret"]}


def set_secret(tx: Tx, session: bytes | None, project: int, body: SecretBody) -> None:
    """Sets what workers need to run this project. Needs SECRET."""
    require_role(tx, session, project, SECRET)
    tx.execute("UPDATE project SET secret = ? WHERE id = ?", (body.secret, project))


def get_webhook_secret(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """The key with which the project's git host signs its push events. Needs SECRET."""
    require_role(tx, session, project, SECRET)
    return {"webhook_secret": find_project(tx, project)["webhook_secret"]}


def set_webhook_secret(tx: Tx, session: bytes | None, project: int, body: WebhookSecretBody) -> None:
    """Sets the key with which the project's git host signs its push events. Needs SECRET."""
    require_role(tx, session, project, SECRET)
    tx.execute("UPDATE project SET webhook_secret = ? WHERE id = ?", (body.webhook_secret, project))


class Repository(msgspec.Struct):
    """The repository of a push event."""

    full_name: str


class PushBody(msgspec.Struct):
    ref: str
    after: Annotated[str, Meta(min_length=1, max_length=1000)]
    repository: Repository
    deleted: bool = False


SIGNATURE_HEADERS = {
    "x-hub-signature-256": "sha256",
    "x-gitea-signature": "sha256",
    "x-gogs-signature": "sha256",
    "x-hub-signature": "sha1",
}


def receive_push(tx: Tx, body: bytes, signatures: dict[str, str]) -> dict[str, Any]:
    """Sets the version of the project whose repository was pushed to, if its webhook secret signed the body.

    `signatures` are the request's headers of SIGNATURE_HEADERS. Nothing of the body is believed before it has matched.
    """
    push = decode(body, PushBody)
    rows = tx.all("SELECT * FROM project WHERE git_repo = ? AND git_repo <> ''", (push.repository.full_name,))
    if not rows:
        raise TrackerError(
            "invalid", f"repository.full_name: no project has the git_repo {push.repository.full_name!r}"
        )
    projects = [row for row in rows if signed_with(row["webhook_secret"], body, signatures)]
    if not projects:
        raise TrackerError("forbidden", "The signature is missing or does not match the project's webhook secret")
    branch = push.ref.removeprefix("refs/heads/")
    if branch not in tx.settings.production_branches:
        raise TrackerError("invalid", f"ref: {push.ref!r} is not one of {', '.join(tx.settings.production_branches)}")
    if push.deleted:
        raise TrackerError("invalid", "deleted: the branch is gone, there is no version to set")
    for row in projects:
        tx.execute("UPDATE project SET version = ? WHERE id = ?", (push.after, row["id"]))
    return {"version": push.after, "projects": [row["id"] for row in projects]}


def signed_with(key: str, body: bytes, signatures: dict[str, str]) -> bool:
    """Whether one of the signatures is the HMAC of the raw body under this key."""
    for header, algorithm in SIGNATURE_HEADERS.items():
        given = signatures.get(header, "").removeprefix(f"{algorithm}=").lower()
        expected = hmac.new(key.encode(), body, algorithm).hexdigest() if given else "none"
        if hmac.compare_digest(expected.encode(), given.encode()):
            return True
    return False


# ── Managers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

SCRYPT = {"n": 2**14, "r": 8, "p": 5}  # 16 MiB; one of the settings that OWASP recommends
FREE_ATTEMPTS = {"account": 3, "address": 20, "register": 20}  # before the throttle begins
LONGEST_THROTTLE = 60.0  # seconds between two attempts: guessing is hopeless, and the owner still gets a turn
THROTTLE_MEMORY = 900.0


class RegisterBody(msgspec.Struct):
    username: Annotated[str, Meta(min_length=3, max_length=16)]
    password: Annotated[str, Meta(min_length=8, max_length=1000)]


class LoginBody(msgspec.Struct):
    username: Annotated[str, Meta(max_length=1000)]
    password: Annotated[str, Meta(max_length=1000)]


class PasswordForm(msgspec.Struct):
    password: Annotated[str, Meta(max_length=1000)]
    new_password: Annotated[str, Meta(min_length=8, max_length=1000)]


class RoleBody(msgspec.Struct):
    manager: Id
    role: Annotated[int, Meta(ge=0, le=ALL_ROLES)]


def hash_password(password: str, salt: bytes | None = None, **cost: int) -> str:
    """scrypt with its parameters in front, so that they can be raised later without locking anybody out."""
    salt, cost = salt or secrets.token_bytes(16), cost or SCRYPT
    key = hashlib.scrypt(password.encode(), salt=salt, maxmem=2**28, dklen=32, **cost)
    return "$".join(["scrypt", str(cost["n"]), str(cost["r"]), str(cost["p"]), salt.hex(), key.hex()])


def password_matches(password: str, stored: str | None) -> bool:
    """Whether the password is the stored one. Takes the same time when nothing is stored (an unknown user)."""
    stored_or_dummy = stored or "$".join(["scrypt", *map(str, SCRYPT.values()), "00" * 16, "00" * 32])
    _, n, r, p, salt, _ = stored_or_dummy.split("$")
    computed = hash_password(password, bytes.fromhex(salt), n=int(n), r=int(r), p=int(p))
    return hmac.compare_digest(computed, stored_or_dummy) and stored is not None


def signed_in(tx: Tx, session: bytes | None) -> sqlite3.Row | None:
    """The manager whose session this is, with today's rights: nothing about a manager is remembered in a cookie."""
    if session is None:
        return None
    return tx.one(
        "SELECT m.* FROM session s JOIN manager m ON m.id = s.manager WHERE s.id_hash = ? AND s.expires > ?",
        (digest(session), tx.time),
    )


def require_manager(tx: Tx, session: bytes | None) -> sqlite3.Row:
    manager = signed_in(tx, session)
    if manager is None:
        raise TrackerError("unauthorized", "Please log in")
    return manager


def require_admin(tx: Tx, session: bytes | None) -> sqlite3.Row:
    manager = require_manager(tx, session)
    if not manager["tracker_admin"]:
        raise TrackerError("forbidden", "Only a tracker admin may do this")
    return manager


def role_in_project(tx: Tx, manager: sqlite3.Row | None, project: int) -> int:
    """The manager's role bits in a project; an admin has them all."""
    if manager is None:
        return 0
    if manager["tracker_admin"]:
        return ALL_ROLES
    row = tx.one("SELECT role FROM manager_role WHERE project = ? AND manager = ?", (project, manager["id"]))
    return row["role"] if row else 0


def require_role(tx: Tx, session: bytes | None, project: int, role: int, missing: str = "") -> sqlite3.Row:
    """The manager, if it has this role in this project. 401, 403, or 404 for a hidden one, as if nothing were there.

    `missing` is what is said of something else that is not there: it must not tell of a hidden project.
    """
    manager = require_manager(tx, session)
    roles = role_in_project(tx, manager, project)
    if find_project(tx, project)["hidden"] and not roles:
        raise TrackerError("not_found", missing or f"No project {project}")
    if not roles & role:
        raise TrackerError("forbidden", f"You have no {ROLE_NAMES[role]} role in project {project}")
    return manager


def manager_json(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "username": row["username"],
        "tracker_admin": bool(row["tracker_admin"]),
        "register_time": row["register_time"],
    }


def check_registration_open(tx: Tx) -> None:
    if not tx.settings.open_registration and tx.one("SELECT 1 FROM manager"):
        raise TrackerError("forbidden", "Registration is closed; ask a tracker admin")


def begin_registration(tx: Tx, address: str) -> None:
    """Counts an attempt before its password is hashed, which takes a core for a moment: many of them are throttled."""
    check_registration_open(tx)
    count_attempt(tx, f"register {address}", FREE_ATTEMPTS["register"])


def register_manager(tx: Tx, username: str, password_hash: str) -> tuple[dict[str, Any], bytes]:
    """A new manager, logged in: (manager, session). The first one of all becomes tracker admin."""
    check_registration_open(tx)
    first = not tx.one("SELECT 1 FROM manager")
    row = tx.one(
        "INSERT INTO manager (username, password_hash, tracker_admin, register_time) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING *",
        (username, password_hash, first, tx.time),
    )
    if row is None:
        raise TrackerError("conflict", f"username: {username!r} is taken")
    return {"manager": manager_json(row)}, open_session(tx, row["id"])


def open_session(tx: Tx, manager: int) -> bytes:
    """A fresh session id, of which only the hash is stored."""
    session = secrets.token_urlsafe(32).encode()
    expires = tx.time + int(tx.settings.session_lifetime)
    tx.execute("INSERT INTO session VALUES (?, ?, ?)", (digest(session), manager, expires))
    return session


def begin_login(tx: Tx, username: str, address: str) -> tuple[int, str] | None:
    """Counts an attempt, *before* the password is looked at, and returns the manager's id and password hash.

    429 while the account or the address is throttled. Counting first keeps parallel guesses from slipping through.
    """
    for kind, source in (("account", username.lower()), ("address", address)):
        count_attempt(tx, f"{kind} {source}", FREE_ATTEMPTS[kind])
    row = tx.one("SELECT id, password_hash FROM manager WHERE username = ?", (username,))
    return (row["id"], row["password_hash"]) if row else None


def count_attempt(tx: Tx, source: str, free: int) -> None:
    row = tx.one("SELECT * FROM login_failure WHERE source = ? AND forget_uptime > ?", (source, tx.uptime))
    if row and row["free_uptime"] > tx.uptime:
        raise TrackerError("too_fast", "Too many attempts; please wait", row["free_uptime"] - tx.uptime)
    failures = row["failures"] + 1 if row else 1
    pause = min(2.0 ** (failures - free), LONGEST_THROTTLE) if failures > free else 0.0
    tx.execute(
        "INSERT OR REPLACE INTO login_failure VALUES (?, ?, ?, ?)",
        (source, failures, tx.uptime + pause, tx.uptime + THROTTLE_MEMORY),
    )


def finish_login(tx: Tx, manager: int, username: str, address: str) -> tuple[dict[str, Any], bytes]:
    """The password was right: forgets the account's failures, takes this attempt off the address's, opens a session.

    The address keeps its other failures: an own account must not be a way to guess on at others'.
    """
    tx.execute("DELETE FROM login_failure WHERE source = ?", (f"account {username.lower()}",))
    tx.execute("UPDATE login_failure SET failures = failures - 1 WHERE source = ?", (f"address {address}",))
    row = tx.one("SELECT * FROM manager WHERE id = ?", (manager,))
    return {"manager": manager_json(row)}, open_session(tx, manager)


def begin_password_change(tx: Tx, session: bytes | None) -> tuple[str, str]:
    """Counts an attempt to guess the password of a session that was left open. The manager's name and password hash."""
    manager = require_manager(tx, session)
    count_attempt(tx, f"account {manager['username'].lower()}", FREE_ATTEMPTS["account"])
    return manager["username"], manager["password_hash"]


def finish_password_change(tx: Tx, session: bytes | None, username: str, new_hash: str) -> bytes:
    """The old password was right: stores the new one, ends all sessions of the manager, opens a new one.

    Whoever has changed it meanwhile has thereby ended this session: 401.
    """
    manager = require_manager(tx, session)
    tx.execute("DELETE FROM login_failure WHERE source = ?", (f"account {username.lower()}",))
    tx.execute("UPDATE manager SET password_hash = ? WHERE id = ?", (new_hash, manager["id"]))
    tx.execute("DELETE FROM session WHERE manager = ?", (manager["id"],))
    return open_session(tx, manager["id"])


def logout(tx: Tx, session: bytes | None) -> None:
    """Ends the session, for every holder of its cookie."""
    if session is not None:
        tx.execute("DELETE FROM session WHERE id_hash = ?", (digest(session),))


def get_account(tx: Tx, session: bytes | None) -> dict[str, Any]:
    manager = signed_in(tx, session)
    return {"logged_in": manager is not None, "manager": manager and manager_json(manager)}


def list_managers(tx: Tx, session: bytes | None) -> dict[str, Any]:
    """Every manager, in the order of registration. For managers."""
    require_manager(tx, session)
    return {"managers": [manager_json(row) for row in tx.all("SELECT * FROM manager ORDER BY id")]}


def list_project_managers(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """Every manager with a role in the project, and its role bits. For managers who may see the project."""
    require_manager(tx, session)
    visible_project(tx, session, project)
    rows = tx.all(
        "SELECT m.*, r.role FROM manager_role r JOIN manager m ON m.id = r.manager WHERE r.project = ? ORDER BY m.id",
        (project,),
    )
    return {"managers": [{"manager": manager_json(row), "role": row["role"]} for row in rows]}


def promote_manager(tx: Tx, session: bytes | None, manager: int) -> None:
    """Makes another manager a tracker admin. For admins."""
    set_admin(tx, session, manager, True)


def demote_manager(tx: Tx, session: bytes | None, manager: int) -> None:
    """Makes another manager a tracker admin no longer. For admins."""
    set_admin(tx, session, manager, False)


def set_admin(tx: Tx, session: bytes | None, manager: int, admin: bool) -> None:
    if require_admin(tx, session)["id"] == manager:
        raise TrackerError("forbidden", "manager: you cannot promote or demote yourself")
    if not tx.one("UPDATE manager SET tracker_admin = ? WHERE id = ? RETURNING id", (admin, manager)):
        raise TrackerError("not_found", f"No manager {manager}")


def set_role(tx: Tx, session: bytes | None, project: int, body: RoleBody) -> None:
    """Gives a manager exactly these roles in the project. Needs MANAGE_ACCESS; role 0 takes all away."""
    require_role(tx, session, project, MANAGE_ACCESS)
    if not tx.one("SELECT 1 FROM manager WHERE id = ?", (body.manager,)):
        raise TrackerError("not_found", f"manager: no manager {body.manager}")
    if body.role:
        tx.execute("INSERT OR REPLACE INTO manager_role VALUES (?, ?, ?)", (project, body.manager, body.role))
    else:
        tx.execute("DELETE FROM manager_role WHERE project = ? AND manager = ?", (project, body.manager))


class RoleForm(msgspec.Struct):
    """The roles of a manager, a tick box each."""

    username: Annotated[str, Meta(max_length=1000)]
    read: bool = False
    edit: bool = False
    manage_access: bool = False
    secret: bool = False
    maintenance: bool = False


def set_named_role(tx: Tx, session: bytes | None, project: int, body: RoleForm) -> None:
    """Gives a manager exactly these roles. Needs MANAGE_ACCESS."""
    require_role(tx, session, project, MANAGE_ACCESS)
    row = tx.one("SELECT id FROM manager WHERE username = ?", (body.username.strip(),))
    if row is None:
        raise TrackerError("not_found", f"username: there is no manager named {body.username!r}")
    role = sum(bit for bit, name in ROLE_NAMES.items() if getattr(body, name.lower()))
    set_role(tx, session, project, RoleBody(row["id"], role))


def make_admin(tx: Tx, username: str, password_hash: str, reset: bool) -> None:
    """Creates a tracker admin; with `reset`, also takes over an existing account and ends its sessions."""
    row = tx.one("SELECT id FROM manager WHERE username = ?", (username,))
    if row and not reset:
        raise TrackerError(
            "conflict", f"There is a manager named {username!r} already; --reset gives it a new password"
        )
    tx.execute(
        "INSERT INTO manager (username, password_hash, tracker_admin, register_time) VALUES (?, ?, 1, ?)"
        " ON CONFLICT (username) DO UPDATE SET password_hash = excluded.password_hash, tracker_admin = 1",
        (username, password_hash, tx.time),
    )
    if row:
        tx.execute("DELETE FROM session WHERE manager = ?", (row["id"],))


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

NEW, FAILED = 1, 2
OK, FAIL, SKIP = 0, 1, 2
MOST_RECIPES = 2**22  # characters after which an answer with several tasks ends


class SubmitBody(msgspec.Struct):
    """A task to be. `hash_u64` and `unique_str` are other spellings of `hash64` and `unique_string`."""

    project: Id
    recipe: Annotated[str, Meta(min_length=1, max_length=1_000_000)]
    priority: Int64 = 0
    max_retries: Natural = 0
    max_assign_time: Natural = 0
    verification_count: Natural = 0
    hash64: int = 0
    hash_u64: int = 0
    unique_string: str = ""
    unique_str: str = ""


class BulkTask(SubmitBody):
    """A task of a bulk submit."""  # counts itself, so that decoding ends at the limit and not after it

    def __post_init__(self) -> None:
        decoding.left -= 1
        if decoding.left < 0:
            raise TrackerError("invalid", f"requests: at most {decoding.most} tasks in one bulk submit")
        if decoding.left % 64 == 0:
            time.sleep(0)  # lets other threads have the interpreter


decoding = threading.local()


class BulkSubmitBody(msgspec.Struct):
    """`{"requests": [...]}`; the bare array is understood as well."""

    requests: list[BulkTask]


class ReleaseBody(msgspec.Struct):
    """How a worker's hold on a task ends. `output` becomes the result of the task's job, if it has one."""

    task_id: Id
    result: Literal[0, 1, 2]
    verification: int = 0
    output: Raw | UnsetType = UNSET


class BulkReleaseBody(msgspec.Struct):
    releases: list[ReleaseBody]


class NewTask(NamedTuple):
    """The columns of a task to be stored."""

    project: int
    recipe: str
    priority: int
    max_retries: int
    max_assign_time: int
    verification_count: int
    hash64: int | None


class Assigned(NamedTuple):
    """What an attempt to be assigned tasks came to."""

    tasks: list[dict[str, Any]]
    others: bool = False  # whether tasks are ready that this worker may not have
    delay: float = 0  # seconds for which a rate limit now keeps everybody from the next task


def new_task(body: SubmitBody) -> NewTask:
    """Checks what types cannot say, and turns a unique string into its hash."""
    hash64, other = to_int64(body.hash64, "hash64"), to_int64(body.hash_u64, "hash_u64")
    if hash64 and other and hash64 != other:
        raise TrackerError("invalid", "hash64, hash_u64: two spellings of one field, with two values")
    hash64 = hash64 or other
    unique = body.unique_string or body.unique_str
    if hash64 and unique:
        raise TrackerError("invalid", "hash64, unique_string: give one of them, not both")
    if unique:
        hash64 = hash_unique_string(unique)
    return NewTask(
        body.project,
        body.recipe,
        body.priority,
        body.max_retries,
        body.max_assign_time,
        body.verification_count,
        hash64 or None,
    )


def new_tasks(body: bytes, most: int) -> list[NewTask]:
    """The tasks of a bulk submit, all of one project. Takes a while for many: call it on a thread of its own."""
    decoding.left = decoding.most = most
    bare = body.lstrip()[:1] == b"["
    requests = decode(body, list[BulkTask]) if bare else decode(body, BulkSubmitBody).requests
    tasks: list[NewTask] = []
    for number, request in enumerate(requests):
        if number % 64 == 0:
            time.sleep(0)
        try:
            tasks.append(new_task(request))
        except TrackerError as error:
            raise TrackerError("invalid", f"requests[{number}].{error.message}") from None
        if request.project != requests[0].project:
            raise TrackerError("invalid", f"requests[{number}].project: all tasks must be of one project")
    return tasks


class Submitter(NamedTuple):
    """A calling worker and the project that it submits to."""

    id: int | None
    secret_hash: bytes
    last_seen: int
    may_submit: int | None
    submit_rate: float
    submit_free_uptime: float
    keep_hashes: int


SELECT_SUBMITTER = """
    SELECT p.id, w.secret_hash, w.last_seen, a.role_submit AND NOT a.request, p.submit_rate, p.submit_free_uptime,
        p.keep_hashes
    FROM worker w LEFT JOIN project p ON p.id = :project
        LEFT JOIN worker_access a ON a.project = p.id AND a.worker = w.id
    WHERE w.id = :worker
"""


def submitter(tx: Tx, caller: WorkerCredentials, project: int) -> Submitter:
    """The project, if the caller may submit to it now. Refuses with 401, 404, 403 or 429."""
    row = tx.one(SELECT_SUBMITTER, {"worker": caller.id, "project": project})
    found = row and Submitter._make(row)
    check_worker(tx, found, caller)
    if found.id is None:
        raise TrackerError("not_found", f"project: no project {project}")
    if not found.may_submit:
        raise TrackerError("forbidden", f"You have no SUBMIT access to project {project}")
    check_rate(tx, found.submit_free_uptime)
    return found


def check_rate(tx: Tx, free_uptime: float) -> None:
    if free_uptime > tx.uptime:
        raise TrackerError("too_fast", "Rate limit reached; please wait", free_uptime - tx.uptime)


def free_uptime(tx: Tx, rate: float, count: int) -> float:
    """When the rate limiter is free again after `count` tasks have passed it."""
    return tx.uptime + min(count / rate, 1e12)


def submit_task(tx: Tx, caller: WorkerCredentials, task: NewTask) -> None:
    """Adds a task to its project's queue. 409 when a live task of the project has its hash."""
    project = submitter(tx, caller, task.project)
    if not insert_task(tx, task, project.keep_hashes):
        raise TrackerError("conflict", "There is a task with this hash64 or unique_string already")
    charge_submit(tx, project, 1)


def charge_submit(tx: Tx, project: Submitter, count: int) -> None:
    if project.submit_rate:
        at = free_uptime(tx, project.submit_rate, count)
        tx.execute("UPDATE project SET submit_free_uptime = ? WHERE id = ?", (at, project.id))


INSERT_TASK = (
    "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, hash64)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
INSERT_TASK_ONCE = INSERT_TASK.replace(
    "VALUES (?, ?, ?, ?, ?, ?, ?)",
    "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM kept_hash WHERE project = ?1 AND hash64 = ?7)",
)


def insert_task(tx: Tx, task: NewTask, keep_hashes: bool) -> bool:
    """Stores the task and announces it, unless its hash is taken."""
    stored = tx.execute(INSERT_TASK_ONCE if keep_hashes else INSERT_TASK, task).rowcount == 1
    if stored:
        tx.ready.append((task.project, 1))
    return stored


def insert_tasks(tx: Tx, tasks: Sequence[NewTask | list], project: int, keep_hashes: bool) -> int:
    """Stores the tasks of one project whose hashes are free, and says how many those were."""
    stored = tx.executemany(INSERT_TASK_ONCE if keep_hashes else INSERT_TASK, tasks).rowcount
    tx.ready.append((project, stored))
    return stored


def submit_tasks(tx: Tx, caller: WorkerCredentials, tasks: list[NewTask]) -> dict[str, int]:
    """A bulk submit small enough for one transaction. Existing duplicates are skipped, the rest is stored."""
    project = submitter(tx, caller, tasks[0].project)
    stored = insert_tasks(tx, tasks, project.id, project.keep_hashes)
    charge_submit(tx, project, len(tasks))
    return {"submitted": stored, "duplicates": len(tasks) - stored}


class Offer(NamedTuple):
    """A calling worker, a project, and the project's next task for it. A tuple: sqlite3.Row looks names up slowly.

    `task` is the best of those verified by nobody, `head_task` the best of those verified by others but not by it.
    """

    secret_hash: bytes
    last_seen: int
    worker_paused: int
    may_assign: int | None
    id: int | None
    priority: int
    name: str
    clone_url: str
    git_repo: str
    version: str
    motd: str
    public: int
    hidden: int
    chain: int | None
    paused: int
    assign_rate: float
    submit_rate: float
    keep_hashes: int
    assign_free_uptime: float
    awaiting: int
    head_priority: int | None
    head_task: int | None
    task: int | None
    task_priority: int
    retries: int
    max_retries: int
    recipe: str
    max_assign_time: int
    verification_count: int
    job: int | None


SELECT_OFFER = """
    SELECT w.secret_hash, w.last_seen, w.paused, a.role_assign AND NOT a.request, p.id, p.priority, p.name, p.clone_url,
        p.git_repo, p.version, p.motd, p.public, p.hidden, p.chain, p.paused, p.assign_rate, p.submit_rate,
        p.keep_hashes, p.assign_free_uptime, p.awaiting_verification_count, v.head_priority, v.head_task,
        t.id, t.priority, t.retries, t.max_retries, t.recipe, t.max_assign_time, t.verification_count, t.job
    FROM worker w LEFT JOIN project p ON p.id = :project
        LEFT JOIN worker_access a ON a.project = p.id AND a.worker = w.id
        LEFT JOIN task t ON t.id = (
            SELECT id FROM task WHERE project = p.id AND status = 1 AND assignee IS NULL AND verifiers IS NULL
            ORDER BY priority DESC, id LIMIT 1)
        LEFT JOIN verifier_set v ON v.id = (
            SELECT id FROM verifier_set s WHERE s.project = p.id AND s.head_task IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM verifier WHERE verifier_set = s.id AND worker = w.id)
            ORDER BY s.head_priority DESC, s.head_task LIMIT 1)
    WHERE w.id = :worker
"""
SELECT_OFFERED = """
    SELECT id, priority, retries, max_retries, recipe, max_assign_time, verification_count, job FROM task WHERE id = ?
"""
# For those who can do nothing but jobs, which need no verification.
SELECT_JOB_OFFER = re.sub(
    r"SELECT id FROM task.*?LIMIT 1",
    "SELECT task FROM job WHERE project = p.id AND state = 'waiting' AND task IS NOT NULL"
    " ORDER BY priority DESC, task LIMIT 1",
    re.sub(r"v\.id = \(.*?LIMIT 1\)", "v.id = NULL", SELECT_OFFER, flags=re.DOTALL),
    flags=re.DOTALL,
)


def assign_tasks(
    tx: Tx, caller: WorkerCredentials, projects: Sequence[int], count: int = 1, jobs_only: bool = False
) -> Assigned:
    """Assigns to the caller the best `count` tasks of these projects, or as many as there are.

    Best: highest project priority, then highest task priority, then oldest. A worker is never assigned a task that it
    has verified. Refuses with 401, 404, 403, and 429 when nothing but a rate limit is in the way.
    """
    select = SELECT_JOB_OFFER if jobs_only else SELECT_OFFER
    offers = {project: find_offer(tx, caller, project, select) for project in projects}
    tasks: list[dict[str, Any]] = []
    charges: dict[int, tuple[float, int]] = {}
    size = 0
    while offer := best_offer(tx, offers.values(), refuse_limited=not tasks):
        tasks.append(take(tx, offer, caller.id))
        if offer.assign_rate:
            charges[offer.id] = (offer.assign_rate, charges.get(offer.id, (0, 0))[1] + 1)
        if len(tasks) == count:
            break
        size += len(offer.recipe) + (len(encode(tasks[-1]["job"])) if offer.job is not None else 0)
        if size > MOST_RECIPES:
            break
        offers[offer.id] = find_offer(tx, caller, offer.id, select)  # the others have not changed
    others = not tasks and any(offer.task is None and offer.awaiting and not offer.paused for offer in offers.values())
    return Assigned(tasks, others, charge_assign(tx, charges) if charges else 0)


def charge_assign(tx: Tx, charges: dict[int, tuple[float, int]]) -> float:
    """Sets the rate limiters of the projects from which tasks were taken; the shortest time until one is free again."""
    free = {project: free_uptime(tx, rate, taken) for project, (rate, taken) in charges.items()}
    for project, at in free.items():
        tx.execute("UPDATE project SET assign_free_uptime = ? WHERE id = ?", (at, project))
    return min(free.values()) - tx.uptime


def best_offer(tx: Tx, offers: Iterable[Offer], refuse_limited: bool) -> Offer | None:
    """The offer whose task is to be assigned next. 429 if there are only such as a rate limit holds back."""
    best, free = None, math.inf
    for offer in offers:
        if offer.paused or offer.task is None:
            continue
        if offer.assign_free_uptime > tx.uptime:
            free = min(free, offer.assign_free_uptime)
        elif best is None or rank(offer) > rank(best):
            best = offer
    if best is None and free < math.inf and refuse_limited:
        check_rate(tx, free)
    return best


def rank(offer: Offer) -> tuple[int, int, int]:
    return offer.priority, offer.task_priority, -offer.task


def find_offer(tx: Tx, caller: WorkerCredentials, project: int, select: str = SELECT_OFFER) -> Offer:
    """The project's best task for the caller. Refuses a caller that may not be assigned any task of this project."""
    row = tx.one(select, {"worker": caller.id, "project": project})
    offer = row and Offer._make(row)
    check_worker(tx, offer, caller)
    if offer.id is None:
        raise TrackerError("not_found", f"No project {project}")
    if not (offer.public or offer.may_assign):
        raise TrackerError("forbidden", f"You have no ASSIGN access to project {project}")
    if offer.worker_paused:
        raise TrackerError("forbidden", "A manager has paused you")
    return offer if offer.head_task is None else with_first_task(tx, offer)


def with_first_task(tx: Tx, offer: Offer) -> Offer:
    """The offer with whichever of its two candidates comes first as its task."""
    if offer.task and (offer.task_priority, -offer.task) > (offer.head_priority, -offer.head_task):
        return offer
    row = tx.one(SELECT_OFFERED, (offer.head_task,))
    return Offer._make((*offer[: -len(row)], *row))


def take(tx: Tx, offer: Offer, worker: int) -> dict[str, Any]:
    """Makes the worker the task's assignee and returns the task as the document shows it."""
    hold(tx, offer.task, worker, offer.max_assign_time or tx.settings.default_max_assign_time)
    task = {
        "id": offer.task,
        "priority": offer.task_priority,
        "assignee": worker,
        "retries": offer.retries,
        "max_retries": offer.max_retries,
        "status": NEW,
        "recipe": offer.recipe,
        "max_assign_time": offer.max_assign_time,
        "assign_time": tx.time,
        "verification_count": offer.verification_count,
        "project": project_json(offer),
    }
    if offer.job is not None:
        task["job"] = start_job(tx, offer.job, worker)
    return task


def hold(tx: Tx, task: int, worker: int, seconds: float) -> None:
    tx.execute(
        "UPDATE task SET assignee = ?, assign_time = ?, assigned_uptime = ?, deadline_uptime = ? WHERE id = ?",
        (worker, tx.time, tx.uptime, tx.uptime + seconds, task),
    )


class Held(NamedTuple):
    """A calling worker, the task that it wants to release, and what the task's project does with closed ones."""

    secret_hash: bytes
    last_seen: int
    id: int | None
    assignee: int | None
    assigned_uptime: float | None
    project: int
    recipe: str
    priority: int
    retries: int
    max_retries: int
    max_assign_time: int
    verification_count: int
    verifiers: int | None
    hash64: int | None
    chain: int | None
    keep_hashes: int
    job: int | None
    has_past: int


SELECT_HELD = """
    SELECT w.secret_hash, w.last_seen, t.id, t.assignee, t.assigned_uptime, t.project, t.recipe, t.priority, t.retries,
        t.max_retries, t.max_assign_time, t.verification_count, t.verifiers, t.hash64, p.chain, p.keep_hashes, t.job,
        EXISTS (SELECT 1 FROM assignment WHERE task = t.id)
    FROM worker w LEFT JOIN task t ON t.id = :task LEFT JOIN project p ON p.id = t.project
    WHERE w.id = :worker
"""


def release_task(tx: Tx, caller: WorkerCredentials, body: ReleaseBody) -> bool:
    """Ends the caller's hold on a task. True when that changed the task: closed, failed, or skipped.

    False for a result that still needs another worker's verification, and when the caller does not hold the task (any
    more): then nothing changes. 404 for a task that never was.
    """
    verification = to_int64(body.verification, "verification")
    report = NO_REPORT if body.output is UNSET else read_report(body.output)
    row = tx.one(SELECT_HELD, {"worker": caller.id, "task": body.task_id})
    task = row and Held._make(row)
    check_worker(tx, task, caller)
    if task.id is None:
        check_task_existed(tx, body.task_id)
    if task.assignee != caller.id or task.id is None:
        return False
    if task.job is not None:
        return release_job(tx, task, caller.id, body, report)
    if body.result == FAIL:
        return fail_task(tx, task)
    if body.result == SKIP:
        record_end(tx, "skipped", "id = :id", {"id": task.id})
        return put_back(tx, task)
    return verify_task(tx, task, caller.id, verification)


def release_tasks(tx: Tx, caller: WorkerCredentials, releases: list[ReleaseBody]) -> dict[str, list[bool]]:
    """Several releases, all or none."""
    authenticate(tx, caller)
    updated = []
    for number, release in enumerate(releases):
        try:
            updated.append(release_task(tx, caller, release))
        except TrackerError as error:
            raise TrackerError(error.code, f"releases[{number}].{error.message}") from None
    return {"updated": updated}


def check_task_existed(tx: Tx, task: int) -> None:
    """Closed tasks are gone from the table; ids are never used twice, so one up to the last is a closed one's."""
    if not tx.one("SELECT 1 FROM sqlite_sequence WHERE name = 'task' AND seq >= ? AND ? > 0", (task, task)):
        raise TrackerError("not_found", f"task_id: no task {task}")


def put_back(tx: Tx, task: Held, change: str = "", *values: Any) -> bool:
    """Takes the task from its assignee, with a further `change` of columns, and lets others have it."""
    take_away(tx, task, change, *values)
    tx.ready.append((task.project, 1))
    return True


UNASSIGN = "UPDATE task SET assignee = NULL, assign_time = NULL, assigned_uptime = NULL, deadline_uptime = NULL"


def take_away(tx: Tx, task: Held, change: str, *values: Any) -> None:
    tx.execute(f"{UNASSIGN}{change} WHERE id = ?", (*values, task.id))


def record_end(tx: Tx, outcome: str, which: str, values: dict[str, Any]) -> None:
    """Writes into the history that the present assignments of some tasks end now."""
    tx.execute(
        "INSERT INTO assignment (task, project, worker, assign_time, end_time, outcome)"
        f" SELECT id, project, assignee, assign_time, :now, :outcome FROM task WHERE {which}",
        {**values, "now": tx.time, "outcome": outcome},
    )


def fail_task(tx: Tx, task: Held) -> bool:
    """Counts a failed attempt; the last one that is allowed leaves the task FAILED."""
    record_end(tx, "failed", "id = :id", {"id": task.id})
    retries = task.retries + 1
    if retries >= task.max_retries:
        take_away(tx, task, ", retries = ?, status = ?", retries, FAILED)
        return True
    return put_back(tx, task, ", retries = ?", retries)


def verify_task(tx: Tx, task: Held, worker: int, verification: int) -> bool:
    """Closes the task if enough different workers have reported this hash; else records it and waits for others."""
    if task.verification_count > 1:
        same = "SELECT COUNT(*) FROM verification WHERE task = ? AND hash = ?"  # over this task's few rows
        if tx.one(same, (task.id, verification))[0] + 1 < task.verification_count:
            tx.execute("INSERT INTO verification VALUES (?, ?, ?)", (task.id, worker, verification))
            record_end(tx, "verified", "id = :id", {"id": task.id})
            put_back(tx, task, ", verifiers = ?", extended_set(tx, task, worker))
            return False
    close_task(tx, task, worker)
    return True


def extended_set(tx: Tx, task: Held, worker: int) -> int:
    """The id of the verifier_set of those who have verified the task, and this worker."""
    rows = tx.all("SELECT worker FROM verifier WHERE verifier_set = ?", (task.verifiers,))
    members = sorted({worker, *(row["worker"] for row in rows)})
    name = (task.project, ",".join(map(str, members)))
    if row := tx.one("SELECT id FROM verifier_set WHERE project = ? AND members = ?", name):
        return row["id"]
    row = tx.one("INSERT INTO verifier_set (project, members) VALUES (?, ?) RETURNING id", name)
    tx.executemany("INSERT INTO verifier VALUES (?, ?)", [(row["id"], member) for member in members])
    return row["id"]


def close_task(tx: Tx, task: Held, worker: int) -> None:
    """The task is done: it leaves the table, is counted, and is handed on along the project's chain."""
    if task.has_past:
        record_end(tx, "closed", "id = :id", {"id": task.id})
    tx.execute("DELETE FROM task WHERE id = ?", (task.id,))
    tx.execute(COUNT_CLOSED, (max(0.0, tx.uptime - task.assigned_uptime), task.project, worker))
    tx.execute("UPDATE project SET closed_task_count = closed_task_count + 1 WHERE id = ?", (task.project,))
    tx.execute("UPDATE worker SET closed_task_count = closed_task_count + 1 WHERE id = ?", (worker,))
    if task.keep_hashes and task.hash64 is not None:
        tx.execute("INSERT INTO kept_hash VALUES (?, ?) ON CONFLICT DO NOTHING", (task.project, task.hash64))
    if task.chain is not None:
        chain_task(tx, task)


COUNT_CLOSED = """
    UPDATE tally SET closed_task_count = closed_task_count + 1, runtime_total = runtime_total + ?1,
        runtime_min = min(?1, ifnull(runtime_min, ?1)), runtime_max = max(?1, ifnull(runtime_max, ?1))
    WHERE project = ?2 AND worker = ?3
"""


def chain_task(tx: Tx, task: Held) -> None:
    """Submits a closed task to the next project. A duplicate there is simply dropped."""
    row = tx.one("SELECT keep_hashes FROM project WHERE id = ?", (task.chain,))
    values = {name: getattr(task, name) for name in NewTask._fields} | {"project": task.chain}
    insert_task(tx, NewTask(**values), row["keep_hashes"])


def any_lease(tx: Tx) -> bool:
    return tx.one("SELECT 1 FROM task WHERE deadline_uptime IS NOT NULL LIMIT 1") is not None


def expire_tasks(tx: Tx) -> bool:
    """Takes tasks from workers that have held them past the deadline, as many as time allows. Whether more are left."""
    overdue = "id IN (SELECT id FROM task WHERE deadline_uptime <= :uptime ORDER BY deadline_uptime LIMIT :limit)"
    values = {"uptime": tx.uptime, "limit": STEP_TASKS}
    while True:
        record_end(tx, "expired", overdue, values)
        rows = tx.all(f"{UNASSIGN} WHERE {overdue} RETURNING id, project, job, retries, max_retries", values)
        for row in rows:
            if row["job"] is None or expire_job(tx, row):
                tx.ready.append((row["project"], 1))
        if len(rows) < STEP_TASKS or tx.spent() >= STEP_SECONDS:
            return len(rows) == STEP_TASKS


# ── Jobs and templates ────────────────────────────────────────────────────────────────────────────────────────────────

MOST_TEMPLATES = 1000  # of one project, and so with workflows
JOB_GRACE = 15  # seconds that a worker has after a job's timeout to report what it has stopped
TOKEN = "^[0-9a-f]{24}$"

Token = Annotated[str, Meta(pattern=TOKEN)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Move(NamedTuple):
    """What may happen to a job: in which states, and which state follows."""

    states: tuple[str, ...]
    to: str


# Everything that can happen to a job. The states that no move starts from are its end: it never changes again.
JOB_MOVES = {
    "assign": Move(("waiting",), "assigned"),
    "skip": Move(("assigned",), "waiting"),
    "retry": Move(("assigned",), "waiting"),  # an attempt failed or timed out, and is not the last one
    "requeue": Move(("assigned",), "waiting"),
    "close": Move(("assigned",), "succeeded"),
    "fail": Move(("assigned",), "failed"),
    "time_out": Move(("assigned",), "timed_out"),
    "cancel": Move(("waiting", "assigned"), "cancelled"),
}
MOST_ATTEMPTS = 1000  # whose moves are logged: a worker that skips in a circle must not fill the disk
LIVE_STATES = {state for move in JOB_MOVES.values() for state in move.states}
JobState = Literal["waiting", "assigned", "succeeded", "failed", "timed_out", "cancelled"]

# What an action on tasks means for the jobs behind them, and what their logs say.
JOBS_AFTER = {
    "requeue": ("requeue", "taken back by a manager; waiting again"),
    "delete": ("cancel", "its task was deleted by a manager"),
}


Choices = Annotated[list[Any], Meta(max_length=1000)]


class Variable(msgspec.Struct):
    """A variable that a template declares: its value unless the job brings one, and which values it may have."""

    name: Name
    value: Any = None
    required: bool = False
    allowed: Choices = []
    description: str = ""


class Argument(msgspec.Struct):
    """An argument that a template declares. The job brings those that are not fixed, in their order."""

    order: Int64 = 0
    type: Name = "input"
    label: str = ""
    value: Any = None
    options: Choices = []


class TemplateBody(msgspec.Struct):
    """A template, or what is to change of it."""

    project: Id | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    description: Annotated[str, Meta(max_length=10_000)] | UnsetType = UNSET
    recipe: Annotated[str, Meta(max_length=1_000_000)] | UnsetType = UNSET
    script: Annotated[str, Meta(max_length=1_000_000)] | UnsetType = UNSET
    runas: Annotated[str, Meta(max_length=1000)] | UnsetType = UNSET
    variables: Annotated[list[Variable], Meta(max_length=200)] | UnsetType = UNSET
    undeclared: bool | UnsetType = UNSET
    arguments: Annotated[list[Argument], Meta(max_length=200)] | UnsetType = UNSET
    env: dict[str, str] | UnsetType = UNSET
    timeout: Seconds | UnsetType | None = UNSET
    max_retries: Natural | UnsetType = UNSET
    priority: Int64 | UnsetType = UNSET
    api: bool | UnsetType = UNSET
    key: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    keep_count: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    keep_time: Annotated[int, Meta(ge=1, le=10**9)] | UnsetType | None = UNSET


NEW_TEMPLATE: dict[str, Any] = {
    **dict.fromkeys(("description", "recipe", "runas"), ""),
    "script": None,
    **dict.fromkeys(("variables", "arguments"), "[]"),
    "undeclared": True,
    "env": "{}",
    "timeout": None,
    **dict.fromkeys(("max_retries", "priority"), 0),
    "api": False,
    **dict.fromkeys(("key_hash", "keep_count", "keep_time")),
}


class TriggerBody(msgspec.Struct):
    """What a job is given: values of variables, and the arguments that are not fixed."""

    variables: dict[str, Any] = {}
    arguments: list[Any] = []


class JobsQuery(msgspec.Struct, rename={"start": "from", "end": "to"}):
    """Which jobs: of a project or template, in a state, made between two times; further on than `before`."""

    project: Id | None = None
    template: Id | None = None
    state: JobState | None = None
    start: Int64 | None = None
    end: Int64 | None = None
    before: Id = INT64_MAX
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class LinesQuery(msgspec.Struct):
    """Which lines of a job's log: at most `limit` of those after the one with this id."""

    after: Natural = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class TaskEntry(msgspec.Struct):
    """A line for the log of a task."""

    message: Annotated[str, Meta(max_length=65536)]
    timestamp: Int64
    level: LogLevel = "info"
    scope: Annotated[str, Meta(max_length=1000)] = ""


class TaskLogBody(msgspec.Struct):
    """Lines of the caller's present assignment, the first of them with the number `first`, counted from 0."""

    task_id: Id
    entries: Annotated[list[TaskEntry], Meta(max_length=1000)] = []
    first: Natural | None = None


class Report(NamedTuple):
    """What a worker's output says about its job. Texts as they are stored: JSON, but for `state`."""

    result: str | None = None
    state: str | None = None
    output: str | None = None
    killed: bool = False


NO_REPORT = Report()


def new_token() -> str:
    """An id for clients: 96 random bits, in the form that theeye.io's clients expect of an id."""
    return secrets.token_hex(12)


# Templates


def create_template(tx: Tx, session: bytes | None, body: TemplateBody) -> dict[str, Any]:
    """Makes a template. Needs EDIT in its project.

    Its secret, which opens this template alone, is in the answer and is not shown again.
    """
    if body.project is UNSET:
        require_manager(tx, session)
        raise TrackerError("invalid", "project: is required")
    require_role(tx, session, body.project, EDIT)
    row = insert_template(tx, body)
    return {"template": {**template_json(tx, row), "secret": row["secret"]}}


def insert_template(tx: Tx, body: TemplateBody) -> sqlite3.Row:
    """Stores a new template, whoever wants it. Refuses what checked_template refuses."""
    check_room(tx, "template", body.project)
    fields = {"project": body.project, **checked_template(tx, None, body)}
    fields |= {"token": new_token(), "secret": secrets.token_hex(32), "created": tx.time}
    names, values = ", ".join(fields), ", ".join(f":{name}" for name in fields)
    return tx.one(f"INSERT INTO template ({names}) VALUES ({values}) RETURNING *", fields)


def check_room(tx: Tx, table: Literal["template", "workflow"], project: int) -> None:
    """Refuses more of them than a list can show at once."""
    full = f"SELECT 1 FROM {table} WHERE project = ? AND deleted IS NULL LIMIT 1 OFFSET ?"
    if tx.one(full, (project, MOST_TEMPLATES - 1)):
        raise TrackerError("conflict", f"project: it has {MOST_TEMPLATES:,} {table}s already")


def update_template(tx: Tx, session: bytes | None, template: int, body: TemplateBody) -> None:
    """Changes a template. Fields that are absent stay as they are, and so do the jobs that it has made.

    An empty `key` takes the key away. A template stays in its project. Needs EDIT.
    """
    save_template(tx, editable_template(tx, session, template), body)


def save_template(tx: Tx, old: sqlite3.Row, body: TemplateBody) -> sqlite3.Row:
    """Stores what is changed of a template, whoever wants it. Refuses what checked_template refuses."""
    if body.project is not UNSET and body.project != old["project"]:
        raise TrackerError("invalid", "project: a template stays in its project")
    fields = checked_template(tx, old, body)
    changes = ", ".join(f"{name} = :{name}" for name in fields)
    return tx.one(f"UPDATE template SET {changes} WHERE id = :id RETURNING *", {"id": old["id"], **fields})


def checked_template(tx: Tx, old: sqlite3.Row | None, body: TemplateBody) -> dict[str, Any]:
    """The columns of a new or changed template, or the reason why it is refused."""
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}
    project = given.pop("project", None) if old is None else old["project"]
    for name in given.keys() & {"variables", "arguments", "env"}:
        given[name] = encode(given[name]).decode()
    if "script" in given:
        given["script"] = store_script(tx, given["script"]) if given["script"] else None
    if "key" in given:
        key = given.pop("key")
        given["key_hash"] = digest(key.encode()) if key else None
    fields = {**({name: old[name] for name in ("name", *NEW_TEMPLATE)} if old else NEW_TEMPLATE), **given}
    if "name" not in fields:
        raise TrackerError("invalid", "name: is required")
    if not fields["name"].strip():
        raise TrackerError("invalid", "name: must not be blank")
    if fields["runas"] and "%script%" not in fields["runas"]:
        raise TrackerError("invalid", "runas: must contain %script%, which stands for the script's file")
    check_declarations(body)
    check_template_name(tx, old, project, fields)
    return {**fields, "updated": tx.time}


def check_declarations(body: TemplateBody) -> None:
    """Refuses what cannot be meant: a variable declared twice, a value that it does not allow, no name in `env`."""
    for name in body.env or ():
        if not name or "=" in name:
            raise TrackerError("invalid", f"env: {name!r} cannot be the name of a variable of an environment")
    names = set()
    for variable in body.variables or ():
        if not variable.name.strip():
            raise TrackerError("invalid", "variables: a name must not be blank")
        if variable.name in names:
            raise TrackerError("invalid", f"variables: {variable.name} is declared twice")
        names.add(variable.name)
        if variable.allowed and variable.value is not None and variable.value not in variable.allowed:
            raise TrackerError("invalid", f"variables: the value of {variable.name} is none of those that it allows")


def check_template_name(tx: Tx, old: sqlite3.Row | None, project: int, fields: dict[str, Any]) -> None:
    values = {"name": fields["name"], "project": project, "id": old and old["id"]}
    others = "SELECT 1 FROM template WHERE name = :name AND id IS NOT :id AND deleted IS NULL"
    if tx.one(f"{others} AND project = :project", values):
        raise TrackerError("conflict", f"name: the project has a template named {fields['name']!r} already")
    if fields["api"] and tx.one(f"{others} AND api", values):
        raise TrackerError("conflict", f"api: another template named {fields['name']!r} may be triggered by this name")


def store_script(tx: Tx, source: str) -> int:
    """The id of the script with this source."""
    data = source.encode()
    tx.execute(
        "INSERT INTO script (token, digest, md5, source) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        (new_token(), digest(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), source),
    )
    return tx.one("SELECT id FROM script WHERE digest = ?", (digest(data),))["id"]


def delete_template(tx: Tx, session: bytes | None, template: int) -> None:
    """Deletes a template: nothing can be triggered by it any more. Its jobs go on, and stay. Needs EDIT."""
    drop_template(tx, editable_template(tx, session, template))


def drop_template(tx: Tx, template: sqlite3.Row) -> None:
    """Its row stays for its jobs' sake, which its key protects, until the last of them is gone."""
    tx.execute("UPDATE template SET deleted = ? WHERE id = ?", (tx.time, template["id"]))


def get_template(tx: Tx, session: bytes | None, template: int) -> dict[str, Any]:
    """A template with its script. Needs EDIT in its project."""
    return {"template": template_json(tx, editable_template(tx, session, template))}


def list_templates(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """The project's templates, by name, without their scripts and recipes. Needs EDIT."""
    require_role(tx, session, project, EDIT)
    rows = tx.all("SELECT * FROM template WHERE project = ? AND deleted IS NULL ORDER BY name", (project,))
    return {"templates": [template_json(tx, row, whole=False) for row in rows]}


def rotate_template_secret(tx: Tx, session: bytes | None, template: int) -> dict[str, Any]:
    """Gives a template a new secret; the old one opens nothing any more. Needs EDIT."""
    return {"secret": rotate_secret(tx, "template", editable_template(tx, session, template)["id"])}


def rotate_secret(tx: Tx, table: Literal["template", "workflow"], row: int, chosen: str | None = None) -> str:
    """A new secret of 64 hexadecimal digits, whoever wants it; a client that has chosen one has its will."""
    secret = chosen or secrets.token_hex(32)
    tx.execute(f"UPDATE {table} SET secret = ? WHERE id = ?", (secret, row))
    return secret


def editable_template(tx: Tx, session: bytes | None, template: int) -> sqlite3.Row:
    """The template, if the caller has EDIT in its project. 401, 403, 404."""
    return editable(tx, session, find_template(tx, template), f"No template {template}")


def editable(tx: Tx, session: bytes | None, row: sqlite3.Row | None, missing: str) -> sqlite3.Row:
    """The template or workflow, if there is one and the caller has EDIT in its project. 401, 403, 404."""
    require_manager(tx, session)
    if row is None:
        raise TrackerError("not_found", missing)
    require_role(tx, session, row["project"], EDIT, missing)
    return row


def find_template(tx: Tx, template: int) -> sqlite3.Row | None:
    """A template that has not been deleted."""
    return tx.one("SELECT * FROM template WHERE id = ? AND deleted IS NULL", (template,))


def template_of_job(tx: Tx, job: sqlite3.Row) -> sqlite3.Row | None:
    """The template that a job was made of, also when it has been deleted since. A workflow's run has none."""
    return tx.one("SELECT * FROM template WHERE id = ?", (job["template"],))


def template_by_token(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM template WHERE token = ? AND deleted IS NULL", (token,))


def api_template(tx: Tx, name: str) -> sqlite3.Row | None:
    """The template that may be triggered by this name; if there is none, one of that name that may not."""
    named = "SELECT * FROM template WHERE name = ? AND deleted IS NULL"
    return tx.one(f"{named} AND api", (name,)) or tx.one(f"{named} LIMIT 1", (name,))


def key_matches(template: sqlite3.Row, key: str) -> bool:
    """Whether the key is the template's. A template without a key does not look at it."""
    return template["key_hash"] is None or hmac.compare_digest(digest(key.encode()), template["key_hash"])


def secret_matches(row: sqlite3.Row, secret: str) -> bool:
    """Whether this is the secret of the template or workflow."""
    return hmac.compare_digest(row["secret"].encode(), secret.encode())


def template_json(tx: Tx, row: sqlite3.Row, whole: bool = True) -> dict[str, Any]:
    """A template as the JSON API shows it: without its secret, and of its key no more than that it has one."""
    plain = ("id", "project", "name", "description", "runas", "timeout", "max_retries", "priority")
    script = whole and row["script"] and tx.one("SELECT source FROM script WHERE id = ?", (row["script"],))["source"]
    return {
        **{name: row[name] for name in plain},
        **({"recipe": row["recipe"], "script": script or ""} if whole else {}),
        **{name: Raw(row[name].encode()) for name in ("variables", "arguments", "env")},
        **{name: bool(row[name]) for name in ("undeclared", "api")},
        "has_key": row["key_hash"] is not None,
        **{name: row[name] for name in ("keep_count", "keep_time", "created", "updated")},
    }


# A job is made


def trigger_template(
    tx: Tx, caller: WorkerCredentials | bytes | None, template: int, body: TriggerBody
) -> dict[str, Any]:
    """Makes a job of a template. For workers with SUBMIT in its project, and for managers with EDIT.

    A worker passes the project's submit rate limit, as with a task. 400 names the variable or the number of arguments.
    """
    row, missing = find_template(tx, template), f"No template {template}"
    by = allowed_to_submit(tx, caller, row and row["project"], missing)
    if "worker" in by:
        charge_trigger(tx, row["project"])
    return {"job": job_json(tx, make_job(tx, row, body.variables, body.arguments, "native", **by))}


def allowed_to_submit(
    tx: Tx, caller: WorkerCredentials | bytes | None, project: int | None, missing: str, role: int = EDIT
) -> dict[str, int]:
    """The caller as {"worker": id} with SUBMIT, or {"manager": id} with the role. 401, 403, or 404 with `missing`."""
    if isinstance(caller, WorkerCredentials):
        authenticate(tx, caller)
    else:
        require_manager(tx, caller)
    if project is None:
        raise TrackerError("not_found", missing)
    if not isinstance(caller, WorkerCredentials):
        return {"manager": require_role(tx, caller, project, role, missing)["id"]}
    access = "SELECT 1 FROM worker_access WHERE project = ? AND worker = ? AND role_submit AND NOT request"
    if not tx.one(access, (project, caller.id)):
        raise TrackerError("forbidden", f"You have no SUBMIT access to project {project}")
    return {"worker": caller.id}


def charge_trigger(tx: Tx, project: int) -> None:
    """Counts one job against the project's submit rate. 429 when that was reached."""
    row = find_project(tx, project)
    check_rate(tx, row["submit_free_uptime"])
    if row["submit_rate"]:
        at = free_uptime(tx, row["submit_rate"], 1)
        tx.execute("UPDATE project SET submit_free_uptime = ? WHERE id = ?", (at, project))


def make_job(
    tx: Tx, template: sqlite3.Row, variables: dict[str, Any], arguments: list[Any], origin: str, **by: int | None
) -> sqlite3.Row:
    """A job of this template, and its task. Refuses variables and arguments that the template does not take.

    `by` says who wants it (worker, manager) and why (retry_of, workflow_job). What the job needs is copied: it runs
    as the template is now, whatever becomes of that.
    """
    variables = job_variables(template, variables)
    placed = place_arguments(template, arguments)
    copied = ("project", "name", "script", "runas", "env", "max_retries", "priority")
    return insert_job(
        tx,
        {
            **{name: template[name] for name in copied},
            "template": template["id"],
            "recipe": job_recipe(template, variables, placed),
            "variables": encode(variables).decode(),
            "arguments": encode(placed).decode(),
            "timeout": template["timeout"] or float(tx.settings.default_job_timeout),
            "origin": origin,
            **by,
        },
    )


def job_variables(template: sqlite3.Row, given: dict[str, Any]) -> dict[str, Any]:
    """The template's variables, with the values that are given. Refuses what it does not declare or allow."""
    _refuse_nul(given, "variables")
    declared = msgspec.json.decode(template["variables"], type=list[Variable])
    unknown = given.keys() - {variable.name for variable in declared}
    if unknown and not template["undeclared"]:
        raise TrackerError("invalid", f"{min(unknown)}: the template has no such variable")
    values = {variable.name: variable.value for variable in declared if variable.value is not None} | given
    for variable in declared:
        value = values.get(variable.name)
        if variable.required and value in (None, ""):
            raise TrackerError("invalid", f"{variable.name}: is required")
        if variable.allowed and value is not None and value not in variable.allowed:
            raise TrackerError(
                "invalid", f"{variable.name}: must be one of {', '.join(map(as_text, variable.allowed))}"
            )
    return values


def free_arguments(template: sqlite3.Row) -> list[Argument]:
    """The arguments that a job has to bring, in their order."""
    return [argument for argument in declared_arguments(template) if argument.type != "fixed"]


def declared_arguments(template: sqlite3.Row) -> list[Argument]:
    declared = msgspec.json.decode(template["arguments"], type=list[Argument])
    return sorted(declared, key=lambda argument: argument.order)


def declared_variables(template: sqlite3.Row) -> list[Variable]:
    return msgspec.json.decode(template["variables"], type=list[Variable])


def place_arguments(template: sqlite3.Row, given: list[Any]) -> list[str]:
    """The arguments as the script gets them: texts, each in its place. Refuses too few; what is too many is ignored."""
    _refuse_nul(given, "arguments")
    needed = len(free_arguments(template))
    if len(given) < needed:
        raise TrackerError("invalid", f"arguments: an array of length {needed} is required; optional ones must be null")
    values = iter(given)
    declared = declared_arguments(template)
    return [as_text(one.value if one.type == "fixed" else next(values)) for one in declared]


def as_text(value: Any) -> str:
    """A value as a command line or an environment can carry it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else encode(value).decode()


def job_recipe(template: sqlite3.Row, variables: dict[str, Any], arguments: list[str]) -> str:
    """The template's recipe, with {name} replaced by the variable; without a recipe all that the job was given."""
    if not template["recipe"]:
        given = {"template": template["name"], "variables": variables, "arguments": arguments}
        return encode(given).decode()
    texts, size = {name: as_text(value) for name, value in variables.items()}, 0

    def filled_in(match: re.Match) -> str:
        nonlocal size
        text = texts.get(match[1], match[0])
        size += len(text)
        if size > MOST_RECIPES:  # a long value in many places
            raise TrackerError("invalid", "recipe: too long with these values of its variables")
        return text

    return re.sub(r"\{([^{}]+)\}", filled_in, template["recipe"])


def insert_job(tx: Tx, columns: dict[str, Any]) -> sqlite3.Row:
    """Stores a job and its task, and announces it."""
    return queue_job(tx, insert_job_alone(tx, columns))


def queue_job(tx: Tx, row: sqlite3.Row) -> sqlite3.Row:
    """Gives a job that has been stored alone its task: from now on it can be assigned."""
    task = tx.one(
        "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, job)"
        " VALUES (?, ?, ?, ?, ?, 1, ?) RETURNING id",
        (*(row[name] for name in ("project", "recipe", "priority", "max_retries")), lease(row["timeout"]), row["id"]),
    )["id"]
    tx.ready.append((row["project"], 1))
    return tx.one("UPDATE job SET task = ? WHERE id = ? RETURNING *", (task, row["id"]))


def lease(timeout: float) -> int:
    """How long a worker may hold the task of a job with this timeout."""
    return math.ceil(timeout) + JOB_GRACE


def insert_job_alone(tx: Tx, columns: dict[str, Any]) -> sqlite3.Row:
    columns = {**columns, "token": new_token(), "created": tx.now, "updated": tx.now}
    names, values = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    row = tx.one(f"INSERT INTO job ({names}) VALUES ({values}) RETURNING *", columns)
    job_happens(tx, "made", row)
    add_job_line(tx, row["id"], f"created by {maker_of(tx, row)}")
    return row


def maker_of(tx: Tx, job: sqlite3.Row) -> str:
    """Who made the job, in words."""
    if job["worker"] is not None:
        return f"worker {alias_of(tx, job['worker'])} ({job['worker']})"
    if job["manager"] is not None:
        return f"manager {tx.one('SELECT username FROM manager WHERE id = ?', (job['manager'],))['username']}"
    if job["workflow_job"] is not None:
        return "its workflow"
    clients = (client_of(tx, job) for client_of in hooks("client_of"))
    return next(filter(None, clients), f"a client of {DIALECTS.get(job['origin'], job['origin'])}")


def retry_job(tx: Tx, job: sqlite3.Row, origin: str, **by: int | None) -> sqlite3.Row:
    """A new job, with all that an ended one was given. 409 while that is still live."""
    if job["finished"] is None:
        raise TrackerError("conflict", f"job: it has not ended yet, it is {job['state']}")
    if job["workflow"] is not None:
        return retry_workflow(tx, job, origin, **by)
    for check in hooks("check_retry"):
        check(tx, job)
    copied = ("project", "template", "name", "recipe", "script", "runas", "variables", "arguments", "env", "timeout")
    copied = (*copied, "max_retries", "priority")
    return insert_job(tx, {**{name: job[name] for name in copied}, "origin": origin, "retry_of": job["id"], **by})


# What happens to a job


def move_job(
    tx: Tx, job: int, event: str, said: str, level: str = "info", change: str = "", **values: Any
) -> sqlite3.Row:
    """Carries out a move of JOB_MOVES, with a further `change` of columns, and logs what happened.

    Runs in the transaction that changes the task, so the two never disagree.
    """
    states, to = JOB_MOVES[event]
    change += ", assignee = NULL" if to == "waiting" else ""
    change += ", finished = :now" if to not in LIVE_STATES else ""
    row = tx.one(
        f"UPDATE job SET state = :to, updated = :now{change}"
        f" WHERE id = :job AND state IN ({', '.join(map(repr, states))}) RETURNING *",
        {"job": job, "to": to, "now": tx.now, **values},
    )
    if row is None:
        raise TrackerError("conflict", f"job: cannot {event} in its state")
    job_happens(tx, event, row)
    if row["attempts"] <= MOST_ATTEMPTS or row["finished"] is not None:
        add_job_line(tx, job, said, level)
    if row["finished"] is not None and row["workflow_job"] is not None:
        continue_workflow(tx, row)
    return row


def move_jobs(tx: Tx, tasks: Iterable[sqlite3.Row], event: str, said: str) -> None:
    """The same move for the jobs behind some tasks. Plain tasks have none."""
    for row in tasks:
        if row["job"] is not None:
            move_job(tx, row["job"], event, said)


def start_job(tx: Tx, job: int, worker: int) -> dict[str, Any]:
    """Notes that the job's task is assigned, and returns what the worker needs to run it."""
    row = move_job(
        tx,
        job,
        "assign",
        f"assigned to {alias_of(tx, worker)} ({worker})",
        change=", assignee = :worker, attempts = attempts + 1, started = ifnull(started, :now), sent_count = 0",
        worker=worker,
    )
    if row["workflow_job"] is not None:
        start_workflow_job(tx, row)
    script = row["script"] and tx.one("SELECT * FROM script WHERE id = ?", (row["script"],))
    return {
        "id": row["token"],
        "template": row["name"],
        "script": {"source": script["source"], "md5": script["md5"]} if script else None,
        "runas": row["runas"],
        **{name: Raw(row[name].encode()) for name in ("arguments", "variables", "env")},
        "timeout": row["timeout"],
    }


def assign_job(tx: Tx, job: sqlite3.Row, worker: int) -> dict[str, Any]:
    """Assigns one waiting job, for a dialect with an order and with rights of its own: none are looked at here.

    Returns what start_job returns. 409 when the job is not waiting.
    """
    if job["state"] != "waiting" or job["task"] is None:
        raise TrackerError("conflict", f"job: it cannot be assigned, it is {job['state']}")
    hold(tx, job["task"], worker, lease(job["timeout"]))
    tx.seen.add(worker)
    return start_job(tx, job["id"], worker)


def renew_lease(tx: Tx, job: sqlite3.Row) -> None:
    """The lease of an assigned job begins anew, for a dialect whose workers give signs of life."""
    deadline = tx.uptime + lease(job["timeout"])
    tx.execute(
        "UPDATE task SET deadline_uptime = ? WHERE id = ? AND assignee = ?", (deadline, job["task"], job["assignee"])
    )


def release_job(tx: Tx, task: Held, worker: int, body: ReleaseBody, report: Report) -> bool:
    """What a release does to a task that has a job: as to others, but a failed one does not stay in the queue."""
    tx.execute(
        "UPDATE job SET result = ?, reported = ?, output = ?, warned = warned OR ? WHERE id = ?",
        (report.result, report.state, report.output, report.state in WARNINGS, task.job),
    )
    if body.result == SKIP:
        record_end(tx, "skipped", "id = :id", {"id": task.id})
        move_job(tx, task.job, "skip", "released as skipped; waiting again")
        return put_back(tx, task)
    if body.result == FAIL:
        record_end(tx, "failed", "id = :id", {"id": task.id})
        event, said = ("time_out", "stopped at its timeout") if report.killed else ("fail", "released as failed")
        if end_attempt(tx, task.id, task.job, task.retries, task.max_retries, event, said):
            tx.ready.append((task.project, 1))
        return True
    if report.state in FAILURES:  # its work was done, so it is no attempt to be repeated; but nothing follows from it
        record_end(tx, "failed", "id = :id", {"id": task.id})
        tx.execute("DELETE FROM task WHERE id = ?", (task.id,))
        move_job(tx, task.job, "fail", f"released as done, but its result reports {report.state}", "error")
    else:
        close_task(tx, task, worker)
        move_job(tx, task.job, "close", "released as done")
    return True


FAILURES, WARNINGS = {"failure", "failed", "error"}, {"warning", "warn"}  # reported states


def end_attempt(tx: Tx, task: int, job: int, retries: int, max_retries: int, event: str, said: str) -> bool:
    """Counts a failed attempt. Whether there is another one; else the job ends, with the event, and its task goes."""
    retries += 1
    if retries < max_retries:
        tx.execute(f"{UNASSIGN}, retries = ? WHERE id = ?", (retries, task))
        move_job(tx, job, "retry", f"{said}: attempt {retries} of {max_retries}; waiting again", "warn")
        return True
    tx.execute("DELETE FROM task WHERE id = ?", (task,))
    move_job(tx, job, event, said, "error")
    return False


def expire_job(tx: Tx, task: sqlite3.Row) -> bool:
    """The job's worker has not released it in time. Nobody would look at it again, so this is a failed attempt.

    Whether it is waiting again.
    """
    row = tx.one("SELECT timeout FROM job WHERE id = ?", (task["job"],))
    said = f"timed out: not released within {row['timeout']:g} s and {JOB_GRACE} s of grace"
    killed = {"code": None, "log": said, "lastline": said, "signal": None, "killed": True}
    tx.execute(
        "UPDATE job SET result = ?, reported = NULL, output = NULL WHERE id = ?", (encode(killed).decode(), task["job"])
    )
    return end_attempt(tx, task["id"], task["job"], task["retries"], task["max_retries"], "time_out", said)


def cancel_job(tx: Tx, job: sqlite3.Row, by: str) -> None:
    """Ends a job; if its task is assigned, that is taken away from its worker. 409 when it has ended already."""
    if job["finished"] is not None:
        raise TrackerError("conflict", f"job: it has ended already, it is {job['state']}")
    if job["task"] is not None:
        tx.execute("DELETE FROM task WHERE id = ?", (job["task"],))
    move_job(tx, job["id"], "cancel", f"cancelled by {by}")
    if job["workflow"] is not None:
        cancel_steps(tx, job["id"])


def read_report(output: Raw) -> Report:
    """What a worker's output says: a state, and what is handed on; else what its script's last line says, if JSON.

    The rule of theeye.io, which other results simply do not meet: a last line that is an array is the output, one like
    {"state": …, "data": …} gives both.
    """
    try:
        text, result = bytes(output).decode(), msgspec.json.decode(output)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TrackerError("invalid", "output: not valid JSON") from None
    if not isinstance(result, dict):
        return Report(text)
    state, handed_on, killed = result.get("state"), result.get("output"), result.get("killed") is True
    if handed_on is None:
        said = last_line(result.get("lastline"))
        if isinstance(said, list):
            handed_on = said
        elif isinstance(said, dict):
            state, handed_on = state or said.get("state"), said.get("data")
    state = state.strip().lower()[:200] if isinstance(state, str) else ""
    return Report(text, state or None, None if handed_on is None else encode(handed_on).decode(), killed)


def last_line(line: Any) -> Any:
    """The last line of a script's output as the JSON that it may be."""
    try:
        return msgspec.json.decode(line) if isinstance(line, str) else None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


# A job's log


def held_task(tx: Tx, worker: int, task: int) -> sqlite3.Row | None:
    """The task's id, project and job, if this worker holds it."""
    return tx.one("SELECT id, project, job FROM task WHERE id = ? AND assignee = ?", (task, worker))


def log_to_task(tx: Tx, caller: WorkerCredentials, body: TaskLogBody) -> dict[str, Any]:
    """Adds lines to the log of a task that the caller holds; of a task with a job, to the job's.

    `held` is false, and nothing is stored, when the caller does not hold it (any more). A job's lines that are
    numbered, by `first`, are stored once however often they are sent.
    """
    authenticate(tx, caller)
    held = held_task(tx, caller.id, body.task_id)
    if held is None:
        check_task_existed(tx, body.task_id)
        return {"held": False, "stored": 0}
    if held["job"] is None:
        entries = [entry for entry in body.entries if LEVELS[entry.level] <= LEVELS[tx.settings.log_level]]
        for entry in entries:
            store_log_entry(tx, caller.id, entry, held["id"], held["project"])
        return {"held": True, "stored": len(entries)}
    job = tx.one("SELECT * FROM job WHERE id = ?", (held["job"],))
    seen = 0 if body.first is None else max(0, job["sent_count"] - body.first)
    stored = add_job_lines(tx, job, caller.id, body.entries[seen:])
    if body.first is not None:
        sent = max(job["sent_count"], body.first + len(body.entries))
        tx.execute("UPDATE job SET sent_count = ? WHERE id = ?", (sent, job["id"]))
    return {"held": True, "stored": stored}


LINE_SIZE = 32  # characters that a line counts besides its text: empty ones take room, too
INSERT_LINE = "INSERT INTO job_line (job, number, time, level, scope, message, worker) VALUES (?, ?, ?, ?, ?, ?, ?)"


def add_job_lines(tx: Tx, job: sqlite3.Row, worker: int, entries: Sequence[TaskEntry]) -> int:
    """Adds a worker's lines to a job's log, whatever their level, until the log is full. How many were stored."""
    most, size, number, warned = 1024 * tx.settings.max_job_log, job["log_size"], job["line_count"], job["warned"]
    for entry in entries:
        if size >= most:
            break
        number, size = number + 1, size + len(entry.message) + len(entry.scope) + LINE_SIZE
        level = LEVELS[entry.level]
        warned = warned or level <= LEVELS["warn"]
        line = (job["id"], number, entry.timestamp, level, entry.scope, entry.message, worker)
        tx.execute(INSERT_LINE, line)
    tx.execute(
        "UPDATE job SET line_count = ?, log_size = ?, warned = ?, updated = ? WHERE id = ?",
        (number, size, warned, tx.now, job["id"]),
    )
    if size >= most > job["log_size"]:
        add_job_line(tx, job["id"], f"the log is full ({most // 1024:,} KiB): further lines are dropped", "error")
    return number - job["line_count"]


def add_job_line(tx: Tx, job: int, message: str, level: str = "info") -> None:
    """The tracker's own line in a job's log."""
    row = tx.one(
        "UPDATE job SET line_count = line_count + 1, warned = warned OR ? WHERE id = ? RETURNING line_count",
        (LEVELS[level] <= LEVELS["warn"], job),
    )
    tx.execute(INSERT_LINE, (job, row["line_count"], tx.time, LEVELS[level], "tracker", message, 0))


def job_log(tx: Tx, job: int, after: int = 0, limit: int = 1000) -> list[sqlite3.Row]:
    """The next lines of a job's log, in the order logged: at most so many, and about MOST_LOG_TEXT characters."""
    rows, size = [], 0
    for row in tx.execute(
        "SELECT l.number AS id, l.time, l.level, l.scope, l.message, l.worker, w.alias"
        " FROM job_line l LEFT JOIN worker w ON w.id = l.worker WHERE l.job = ? AND l.number > ?"
        " ORDER BY l.number LIMIT ?",
        (job, after, limit),
    ):
        rows.append(row)
        size += len(row["message"])
        if size > MOST_LOG_TEXT:
            break
    return rows


# Jobs looked at


def get_job(tx: Tx, caller: WorkerCredentials | bytes | None, job: str) -> dict[str, Any]:
    """A job: its state, what it was given, its result.

    For workers with SUBMIT in its project, or managers with READ.
    """
    return {"job": job_json(tx, accessible_job(tx, caller, job, READ)[0])}


def get_job_log(tx: Tx, caller: WorkerCredentials | bytes | None, job: str, query: LinesQuery) -> dict[str, Any]:
    """Lines of a job's log, in the order logged, and the tracker's own (scope `tracker`, worker 0) among them.

    The last line's id as `after` continues it. For the same callers as the job.
    """
    row, _ = accessible_job(tx, caller, job, READ)
    names = ("id", "time", "scope", "message", "worker")
    lines = job_log(tx, row["id"], query.after, query.limit)
    return {
        "entries": [{**{name: line[name] for name in names}, "level": LEVEL_NAMES[line["level"]]} for line in lines]
    }


def cancel(tx: Tx, caller: WorkerCredentials | bytes | None, job: str) -> None:
    """Cancels a job that has not ended; its worker's later release answers `updated: false`.

    409 when it has ended. For workers with SUBMIT in its project, or managers with EDIT.
    """
    row, by = accessible_job(tx, caller, job, EDIT)
    cancel_job(tx, row, maker_of(tx, {"worker": None, "manager": None, **by}))


def retry(tx: Tx, caller: WorkerCredentials | bytes | None, job: str) -> dict[str, Any]:
    """Makes a new job with all that an ended one was given. 409 while that is still live. For those who may cancel."""
    row, by = accessible_job(tx, caller, job, EDIT)
    if "worker" in by:
        charge_trigger(tx, row["project"])
    return {"job": job_json(tx, retry_job(tx, row, "native", **by))}


def accessible_job(
    tx: Tx, caller: WorkerCredentials | bytes | None, job: str, role: int
) -> tuple[sqlite3.Row, dict[str, int]]:
    """The job, and the caller as allowed_to_submit has it. 401, 403, 404."""
    row = find_job(tx, job)
    return row, allowed_to_submit(tx, caller, row and row["project"], f"No job {job}", role)


def find_job(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM job WHERE token = ?", (token,))


def token_of_job(tx: Tx, job: int | None) -> str | None:
    row = job is not None and tx.one("SELECT token FROM job WHERE id = ?", (job,))
    return row["token"] if row else None


def list_jobs(tx: Tx, caller: WorkerCredentials | bytes | None, query: JobsQuery) -> dict[str, Any]:
    """Jobs, the newest first, without their results. The answer's `before` continues the list; null at its end.

    For workers with SUBMIT in the project, or managers with READ; without project and template, a manager's jobs of
    all projects. A page may hold fewer jobs than asked for, or none, and yet have a next one.
    """
    project = query.project
    if query.template is not None:
        row = tx.one("SELECT project FROM template WHERE id = ?", (query.template,))
        project = row and row["project"]
        allowed_to_submit(tx, caller, project, f"template: no template {query.template}", READ)
        if query.project not in (None, project):
            raise TrackerError("invalid", "template: it is not of that project")
    elif project is not None:
        row = tx.one("SELECT id FROM project WHERE id = ?", (project,))
        allowed_to_submit(tx, caller, row and row["id"], f"project: no project {project}", READ)
    elif isinstance(caller, WorkerCredentials):
        authenticate(tx, caller)
        raise TrackerError("invalid", "project: is required")
    rows, more = find_jobs(tx, None if project is not None else require_manager(tx, caller), query)
    return {"jobs": [job_json(tx, row, whole=False) for row in rows], "before": more}


# What a list shows of a job; its results may be long.
LISTED_JOB = (
    "id, token, name, template, project, state, task, timeout, origin, attempts, assignee, created, started, finished,"
    " reported, warned, retry_of, workflow, workflow_job"
)


def find_jobs(
    tx: Tx, manager: sqlite3.Row | None, query: JobsQuery, columns: str = LISTED_JOB
) -> tuple[list[sqlite3.Row], int | None]:
    """The jobs of a query, the newest first, and the place before which to go on (None: no more).

    With a manager: of all the projects that it may read. Costs the same however many jobs there are.
    """
    values = msgspec.structs.asdict(query)
    of = [f"{name} = :{name}" for name in ("template", "project") if values[name] is not None]
    where, match = of[:1] or ["TRUE"], ["TRUE", *of[1:]]  # one has an index, the other is looked at
    if query.state is not None:
        (where if of else match).append("state = :state")
    if manager is not None and not manager["tracker_admin"]:
        match.append("project IN (SELECT project FROM manager_role WHERE manager = :manager AND role & 1)")
        values["manager"] = manager["id"]
    last = query.before
    if query.end is not None:
        row = tx.one("SELECT id FROM job WHERE created < :end + 1 ORDER BY created DESC, id DESC LIMIT 1", values)
        last = min(last, row["id"] + 1) if row else 0
        match.append("created < :end + 1")
    if query.start is not None:
        row = tx.one("SELECT id FROM job WHERE created >= :start ORDER BY created, id LIMIT 1", values)
        where.append("id >= :first")
        match.append("created >= :start")
        values["first"] = row["id"] if row else INT64_MAX
    index, matches = " AND ".join(where), " AND ".join(match)
    return search(tx, "job", index, matches, values, last, query.limit, SEARCH_TIME, newest=True, columns=columns)


def job_json(tx: Tx, row: sqlite3.Row, whole: bool = True) -> dict[str, Any]:
    """A job as the JSON API shows it; not the `whole`: as lists do."""
    plain = ("name", "template", "project", "state", "task", "timeout", "origin", "attempts", "assignee")
    texts = ("variables", "arguments", "result", "output") if whole else ()
    return {
        "id": row["token"],
        **{name: row[name] for name in plain},
        **{name: row[name] for name in ("created", "started", "finished", "reported")},
        "warned": bool(row["warned"]),
        "retry_of": token_of_job(tx, row["retry_of"]),
        "workflow_job": token_of_job(tx, row["workflow_job"]),
        **{name: None if row[name] is None else Raw(row[name].encode()) for name in texts},
    }


# Jobs forgotten


def prune_jobs(tx: Tx, template: int) -> int | None:
    """Deletes ended jobs that are too old or too many, template by template (0: those without one), for a while.

    The template to go on with; None after the last one.
    """
    while template is not None:
        row = tx.one("SELECT keep_count, keep_time FROM template WHERE id = ?", (template,))
        keep_count, keep_time = row or (None, None)
        before = tx.now - (keep_time or tx.settings.job_retention)
        values = {"template": template or None, "before": before, "keep": keep_count, "limit": STEP_TASKS}
        due = tx.all(DUE_JOBS, values)
        for job in due:
            delete_job(tx, job["id"])
            if tx.spent() >= STEP_SECONDS:  # after one at least
                return template
        if not due:
            following = tx.one("SELECT id FROM template WHERE id > ? ORDER BY id LIMIT 1", (template,))
            template = following and following["id"]
        if tx.spent() >= STEP_SECONDS:
            break
    return template


DUE_JOBS = """
    SELECT id FROM job WHERE template IS :template AND finished IS NOT NULL AND finished < max(:before, ifnull((
        SELECT finished FROM job WHERE template IS :template AND finished IS NOT NULL AND :keep IS NOT NULL
        ORDER BY finished DESC LIMIT 1 OFFSET ifnull(:keep, 1) - 1), 0))
    ORDER BY finished LIMIT :limit
"""


def delete_job(tx: Tx, job: int) -> None:
    """Deletes an ended job, or, if its log is long, some lines of that."""
    some = "SELECT number FROM job_line WHERE job = ?1 LIMIT ?2"
    lines = f"DELETE FROM job_line WHERE job = ?1 AND number IN ({some})"
    if tx.execute(lines, (job, PIECE_TASKS)).rowcount < PIECE_TASKS:
        for row in tx.all("DELETE FROM job WHERE id = ? RETURNING *", (job,)):
            job_happens(tx, "deleted", row)


# ── Workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_FORKS = 20  # steps that may follow one ending: they are made in the transaction of that
MOST_GIVEN = 2**18  # characters of a run's variables and arguments, which each of them may get
MOST_STEPS = 1000  # of one run: a workflow may go in a circle, but not for ever

# How a step ended, in the word of an edge.
ENDINGS = {"succeeded": "success", "failed": "failure", "timed_out": "timeout", "cancelled": "cancelled"}
ENDS = {move.to: event for event, move in JOB_MOVES.items()}


class Edge(msgspec.Struct):
    """After a step of `template` that ended so follows one of `target`."""

    template: Id
    ending: Literal["success", "failure", "timeout", "cancelled"]
    target: Id


class WorkflowBody(msgspec.Struct):
    """A workflow, or what is to change of it."""

    project: Id | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    start: Id | UnsetType = UNSET
    edges: Annotated[list[Edge], Meta(max_length=1000)] | UnsetType = UNSET


def create_workflow(tx: Tx, session: bytes | None, body: WorkflowBody) -> dict[str, Any]:
    """Makes a workflow of templates. Needs EDIT in its project, and in those of its templates.

    Its secret, which opens this workflow alone, is in the answer and is not shown again.
    """
    manager = require_manager(tx, session)
    for name in ("project", "name", "start"):
        if getattr(body, name) is UNSET:
            raise TrackerError("invalid", f"{name}: is required")
    require_role(tx, session, body.project, EDIT)
    check_workflow(tx, manager, None, body)
    check_room(tx, "workflow", body.project)
    secret = secrets.token_hex(32)
    row = tx.one(
        "INSERT INTO workflow (token, project, name, start, secret, created) VALUES (?, ?, ?, ?, ?, ?) RETURNING *",
        (new_token(), body.project, body.name, body.start, secret, tx.time),
    )
    set_edges(tx, row["id"], body.edges or [])
    return {"workflow": {**workflow_json(tx, row), "secret": secret}}


def update_workflow(tx: Tx, session: bytes | None, workflow: int, body: WorkflowBody) -> None:
    """Changes a workflow. What is absent stays as it is; runs that are going on follow the new edges. Needs EDIT."""
    old = editable_workflow(tx, session, workflow)
    if body.project not in (UNSET, old["project"]):
        raise TrackerError("invalid", "project: a workflow stays in its project")
    check_workflow(tx, require_manager(tx, session), old, body)
    values = {name: old[name] if (given := getattr(body, name)) is UNSET else given for name in ("name", "start")}
    tx.execute("UPDATE workflow SET name = :name, start = :start WHERE id = :id", {**values, "id": workflow})
    if body.edges is not UNSET:
        set_edges(tx, workflow, body.edges)


def check_workflow(tx: Tx, manager: sqlite3.Row, old: sqlite3.Row | None, body: WorkflowBody) -> None:
    """Refuses a name that is taken, and templates that are not there or not the manager's to use."""
    if body.name is not UNSET:
        if not body.name.strip():
            raise TrackerError("invalid", "name: must not be blank")
        values = (old["project"] if old else body.project, body.name, old and old["id"])
        taken = "SELECT 1 FROM workflow WHERE project = ? AND name = ? AND id IS NOT ? AND deleted IS NULL"
        if tx.one(taken, values):
            raise TrackerError("conflict", f"name: the project has a workflow named {body.name!r} already")
    edges = body.edges or []
    forks = Counter((edge.template, edge.ending) for edge in edges)
    if forks and max(forks.values()) > MOST_FORKS:
        raise TrackerError("invalid", f"edges: more than {MOST_FORKS} from one template for one ending")
    named = [("start", body.start)] if body.start is not UNSET else []
    named += [(f"edges[{number}].template", edge.template) for number, edge in enumerate(edges)]
    named += [(f"edges[{number}].target", edge.target) for number, edge in enumerate(edges)]
    for field, template in named:
        row = find_template(tx, template)
        if row is None or not role_in_project(tx, manager, row["project"]) & EDIT:
            raise TrackerError("invalid", f"{field}: no template {template} that you may edit")


def set_edges(tx: Tx, workflow: int, edges: list[Edge]) -> None:
    tx.execute("DELETE FROM workflow_edge WHERE workflow = ?", (workflow,))
    tx.executemany(
        "INSERT INTO workflow_edge VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(workflow, edge.template, edge.ending, edge.target) for edge in edges],
    )


def delete_workflow(tx: Tx, session: bytes | None, workflow: int) -> None:
    """Deletes a workflow: nothing can trigger it any more. What it has begun goes on. Needs EDIT."""
    editable_workflow(tx, session, workflow)
    tx.execute("UPDATE workflow SET deleted = ? WHERE id = ?", (tx.time, workflow))


def get_workflow(tx: Tx, session: bytes | None, workflow: int) -> dict[str, Any]:
    """A workflow with its edges. Needs EDIT in its project."""
    return {"workflow": workflow_json(tx, editable_workflow(tx, session, workflow))}


def list_workflows(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """The project's workflows, by name. Needs EDIT."""
    require_role(tx, session, project, EDIT)
    rows = tx.all("SELECT * FROM workflow WHERE project = ? AND deleted IS NULL ORDER BY name", (project,))
    return {"workflows": [workflow_json(tx, row) for row in rows]}


def rotate_workflow_secret(tx: Tx, session: bytes | None, workflow: int) -> dict[str, Any]:
    """Gives a workflow a new secret; the old one opens nothing any more. Needs EDIT."""
    return {"secret": rotate_secret(tx, "workflow", editable_workflow(tx, session, workflow)["id"])}


def editable_workflow(tx: Tx, session: bytes | None, workflow: int) -> sqlite3.Row:
    """The workflow, if the caller has EDIT in its project. 401, 403, 404."""
    return editable(tx, session, find_workflow(tx, workflow), f"No workflow {workflow}")


def find_workflow(tx: Tx, workflow: int) -> sqlite3.Row | None:
    """A workflow that has not been deleted."""
    return tx.one("SELECT * FROM workflow WHERE id = ? AND deleted IS NULL", (workflow,))


def workflow_by_token(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM workflow WHERE token = ? AND deleted IS NULL", (token,))


def workflow_json(tx: Tx, row: sqlite3.Row) -> dict[str, Any]:
    edges = tx.all("SELECT template, ending, target FROM workflow_edge WHERE workflow = ?", (row["id"],))
    return {
        **{name: row[name] for name in ("id", "project", "name", "start", "created")},
        "edges": [dict(edge) for edge in edges],
    }


def trigger_workflow(
    tx: Tx, caller: WorkerCredentials | bytes | None, workflow: int, body: TriggerBody
) -> dict[str, Any]:
    """Starts a run of a workflow, and its first step with what is given. For those who may trigger a template there."""
    row, missing = find_workflow(tx, workflow), f"No workflow {workflow}"
    by = allowed_to_submit(tx, caller, row and row["project"], missing)
    if "worker" in by:
        charge_trigger(tx, row["project"])
    return {"job": job_json(tx, run_workflow(tx, row, body.variables, body.arguments, "native", **by))}


def run_workflow(
    tx: Tx, workflow: sqlite3.Row, variables: dict[str, Any], arguments: list[Any], origin: str, **by: int | None
) -> sqlite3.Row:
    """A run of this workflow: a job without a task, whose steps are jobs. Refuses what the first step refuses."""
    start = find_template(tx, workflow["start"])
    if start is None:
        raise TrackerError("conflict", "workflow: the template that it starts with was deleted")
    columns = {
        "project": workflow["project"],
        "workflow": workflow["id"],
        "name": workflow["name"],
        **dict.fromkeys(("recipe", "runas"), ""),
        "variables": encode(variables).decode(),
        "arguments": encode(arguments).decode(),
        "env": "{}",
        "timeout": 0,
        **dict.fromkeys(("max_retries", "priority"), 0),
        "origin": origin,
    }
    if len(columns["variables"]) + len(columns["arguments"]) > MOST_GIVEN:
        raise TrackerError(
            "invalid", f"variables, arguments: a workflow takes at most {MOST_GIVEN:,} characters of them"
        )
    run = insert_job_alone(tx, {**columns, **by})
    start_step(tx, run, start, arguments)
    return run


def retry_workflow(tx: Tx, job: sqlite3.Row, origin: str, **by: int | None) -> sqlite3.Row:
    workflow = find_workflow(tx, job["workflow"])
    if workflow is None:
        raise TrackerError("conflict", "job: its workflow was deleted")
    variables, arguments = msgspec.json.decode(job["variables"]), msgspec.json.decode(job["arguments"])
    return run_workflow(tx, workflow, variables, arguments, origin, retry_of=job["id"], **by)


def start_workflow_job(tx: Tx, step: sqlite3.Row) -> None:
    """A step is assigned: so the run is on."""
    run = tx.one("SELECT id, state FROM job WHERE id = ?", (step["workflow_job"],))
    if run["state"] == "waiting":
        move_job(
            tx,
            run["id"],
            "assign",
            f"step {step['name']} has begun",
            change=", assignee = :worker, started = :now",
            worker=step["assignee"],
        )


def continue_workflow(tx: Tx, step: sqlite3.Row) -> None:
    """A step has ended: the steps on its edges follow, with its output as their arguments. After the last one the run
    ends as that did; but when a step could not be started, it has failed."""
    run = tx.one("SELECT * FROM job WHERE id = ?", (step["workflow_job"],))
    if run["finished"] is not None:
        return
    failed = follow_edges(tx, run, step) or run["reported"] is not None
    if tx.one("SELECT 1 FROM job WHERE workflow_job = ? AND finished IS NULL", (run["id"],)):
        return
    move_job(
        tx,
        run["id"],
        "fail" if failed and run["state"] == "assigned" else ENDS[step["state"]],  # one not begun can only be cancelled
        f"ended after step {step['name']}: {step['state'].replace('_', ' ')}",
        change=", result = :result, reported = :reported, output = :output, assignee = :assignee",
        **{name: step[name] for name in ("result", "reported", "output", "assignee")},
    )


def follow_edges(tx: Tx, run: sqlite3.Row, step: sqlite3.Row) -> bool:
    """Starts the steps that follow. Whether one of them could not be started."""
    output = step["output"] and msgspec.json.decode(step["output"])
    arguments = output if isinstance(output, list) else [] if output is None else [output]
    targets = tx.all(
        "SELECT target FROM workflow_edge WHERE workflow = ? AND template = ? AND ending = ? ORDER BY target",
        (run["workflow"], step["template"], ENDINGS.get(step["state"])),
    )
    failed = False
    for row in targets:
        try:
            follow(tx, run, row["target"], arguments)
        except TrackerError as error:
            failed = True
            add_job_line(tx, run["id"], f"step {row['target']} could not be started: {error.message}", "error")
            tx.execute("UPDATE job SET reported = 'failure' WHERE id = ?", (run["id"],))
    return failed


def follow(tx: Tx, run: sqlite3.Row, target: int, arguments: list[Any]) -> None:
    template = find_template(tx, target)
    if template is None:
        raise TrackerError("conflict", "the template was deleted")
    counted = "UPDATE job SET attempts = attempts + 1 WHERE id = ? RETURNING attempts"
    if tx.one(counted, (run["id"],))["attempts"] >= MOST_STEPS:
        raise TrackerError("conflict", f"the run has had {MOST_STEPS:,} steps")
    start_step(tx, run, template, arguments)


def start_step(tx: Tx, run: sqlite3.Row, template: sqlite3.Row, arguments: list[Any]) -> None:
    """A job of the template, with those of the run's variables that it takes."""
    variables = msgspec.json.decode(run["variables"])
    if not template["undeclared"]:
        declared = {variable.name for variable in msgspec.json.decode(template["variables"], type=list[Variable])}
        variables = {name: value for name, value in variables.items() if name in declared}
    make_job(tx, template, variables, arguments, "workflow", workflow_job=run["id"])


def cancel_steps(tx: Tx, run: int) -> None:
    """Cancels what is going on of a run that was cancelled."""
    for step in tx.all("SELECT * FROM job WHERE workflow_job = ? AND finished IS NULL", (run,)):
        cancel_job(tx, step, "its workflow's end")


# ── Task lists ────────────────────────────────────────────────────────────────────────────────────────────────────────

SCAN = 2000  # rows that one step of a search looks at, at most
SEARCH_TIME = 0.03  # seconds after which a page shows what a search has found so far
MOST_SELECTED = 1000  # tasks that one action may name


class TaskState(NamedTuple):
    """A list of tasks: its condition has an index (project, lane, id), and in that order it is shown."""

    condition: str
    lane: str = ""
    descending: bool = False


# A task is in exactly one of these.
TASK_STATES = {
    "waiting": TaskState("status = 1 AND assignee IS NULL AND verifiers IS NULL", "priority", descending=True),
    "assigned": TaskState("assignee IS NOT NULL", "assignee"),
    "awaiting_verification": TaskState("status = 1 AND assignee IS NULL AND verifiers IS NOT NULL"),
    "failed": TaskState("status = 2"),
}


class TaskFilter(msgspec.Struct, omit_defaults=True):
    """Which tasks of a project: those in a state, with `text` in the recipe, of an assignee, with a priority."""

    state: Literal["waiting", "assigned", "awaiting_verification", "failed"] = "waiting"
    text: Annotated[str, Meta(max_length=1000)] = ""
    assignee: Id | None = None
    priority: Int64 | None = None


class TaskAction(msgspec.Struct):
    """What a manager does to tasks. `priority` is for set_priority."""

    action: Literal["retry", "requeue", "set_priority", "delete"]
    priority: Int64 | None = None


def find_tasks(
    tx: Tx,
    project: int,
    wanted: TaskFilter,
    after: str | int,
    limit: int,
    seconds: float,
    last_task: int = INT64_MAX,
    columns: str = "*",
) -> tuple[list[sqlite3.Row], str]:
    """The next tasks of a list, and the place ("" at its end) from which to go on; `after` is such a place.

    Costs the same wherever in the list it is. A search that has taken so many seconds of its transaction ends early:
    with fewer tasks than asked for, perhaps with none, and a place to go on from.
    """
    state, values = TASK_STATES[wanted.state], {"project": project, "last_task": last_task}
    match, values["text"] = "id <= :last_task", wanted.text
    if wanted.text:
        match += f" AND {contains('recipe')}"
    for column in ("assignee", "priority"):
        values[column] = getattr(wanted, column)
        if values[column] is not None:
            match += f" AND {column} IS :{column}"
    found: list[sqlite3.Row] = []
    values["lane"], last = place_of(after) if after else (next_lane(tx, state, wanted, values, None), 0)
    while values["lane"] is not None:
        where = f"project = :project AND {state.condition}" + (f" AND {state.lane} = :lane" if state.lane else "")
        rows, more = search(tx, "task", where, match, values, last, limit - len(found), seconds, columns=columns)
        found += rows
        if more is not None:
            return found, f"{values['lane']}:{more}"
        values["lane"], last = next_lane(tx, state, wanted, values, values["lane"]), 0
        if values["lane"] is not None and tx.spent() > seconds:  # there may be as many lanes as tasks
            return found, f"{values['lane']}:0"
    return found, ""


def place_of(after: str) -> tuple[int, int]:
    lane, _, last = after.partition(":")
    try:
        return to_int64(int(lane), "after"), to_int64(int(last), "after")
    except ValueError:
        raise TrackerError("invalid", f"after: {after!r} is not a place in a list") from None


def next_lane(tx: Tx, state: TaskState, wanted: TaskFilter, values: dict, lane: int | None) -> int | None:
    """The lane after this one (None: the first one). A list without lanes has one, 0."""
    if not state.lane:
        return 0 if lane is None else None
    if (fixed := values[state.lane]) is not None:
        return fixed if lane is None else None
    further, order = ("<", "DESC") if state.descending else (">", "ASC")
    row = tx.one(
        f"SELECT {state.lane} FROM task WHERE project = :project AND {state.condition}"
        + (f" AND {state.lane} {further} :lane" if lane is not None else "")
        + f" ORDER BY {state.lane} {order} LIMIT 1",
        {**values, "lane": lane},
    )
    return row and row[0]


def state_of(task: sqlite3.Row) -> str:
    """The one state of TASK_STATES that the task is in."""
    if task["assignee"] is not None:
        return "assigned"
    if task["status"] == FAILED:
        return "failed"
    return "waiting" if task["verifiers"] is None else "awaiting_verification"


def search(
    tx: Tx,
    table: str,
    where: str,
    match: str,
    values: dict,
    last: int,
    limit: int,
    seconds: float,
    newest: bool = False,
    columns: str = "*",
) -> tuple[list[sqlite3.Row], int | None]:
    """Rows of a range of an index (`where`, by id) that match, and the id after which to go on (None: no more).

    Looks at `limit` rows, then at twice as many, at last at SCAN at a time: so it can end in time however few match.
    """
    scan = limit
    beyond, until, order = ("<", ">=", "DESC") if newest else (">", "<=", "ASC")
    found: list[sqlite3.Row] = []
    while True:
        values = {**values, "last": last, "scan": min(scan, SCAN) - 1, "limit": limit - len(found)}
        bound = tx.one(
            f"SELECT id FROM {table} WHERE {where} AND id {beyond} :last ORDER BY id {order} LIMIT 1 OFFSET :scan",
            values,
        )
        window = f"{where} AND id {beyond} :last" + (f" AND id {until} :bound" if bound else "")
        found += tx.all(
            f"SELECT {columns} FROM {table} WHERE {window} AND {match} ORDER BY id {order} LIMIT :limit",
            {**values, "bound": bound and bound["id"]},
        )
        if len(found) == limit:
            return found, found[-1]["id"]
        if bound is None:
            return found, None
        last, scan = bound["id"], 2 * scan
        if tx.spent() > seconds:
            return found, last


def contains(column: str) -> str:
    """The condition that a column has :text in it. LIKE is quicker, but takes seconds for some very long texts."""
    return f"instr(lower({column}), lower(:text))"


class Action(NamedTuple):
    """What an action changes, and in which of the chosen tasks."""

    change: str
    which: str = "TRUE"
    state: str | None = None


ACTIONS = {
    "retry": Action("UPDATE task SET status = 1, retries = 0", "status = 2", "failed"),
    # A task that was assigned anew while the operation went on stays with its worker.
    "requeue": Action(UNASSIGN, "assignee IS NOT NULL AND assigned_uptime <= :before", "assigned"),
    "set_priority": Action("UPDATE task SET priority = :priority", "priority <> :priority"),
    "delete": Action("DELETE FROM task"),
}


def list_tasks(
    tx: Tx, session: bytes | None, project: int, wanted: TaskFilter, after: str, limit: int, columns: str = "*"
) -> tuple[list[sqlite3.Row], str]:
    """A page of tasks as find_tasks finds them. Needs READ."""
    require_role(tx, session, project, READ)
    rows, more = find_tasks(tx, project, wanted, after, limit + 1, SEARCH_TIME, columns=columns)
    if len(rows) > limit:  # one more than shown, so that no last page is empty
        lane = TASK_STATES[wanted.state].lane
        rows = rows[:limit]
        more = f"{rows[-1][lane] if lane else 0}:{rows[-1]['id']}"
    return rows, more


def act_on_tasks(tx: Tx, session: bytes | None, project: int, body: TaskAction, tasks: list[int]) -> int:
    """Does the same to some tasks of a project, and says to how many: those in a state that the action is for."""
    check_action(tx, session, project, body)
    if len(tasks) > MOST_SELECTED:
        raise TrackerError("invalid", f"task: at most {MOST_SELECTED} at once")
    tasks = [to_int64(task, "task") for task in tasks]
    return apply_action(tx, project, body.action, body.priority, tasks, tx.uptime)


def check_action(tx: Tx, session: bytes | None, project: int, body: TaskAction) -> sqlite3.Row:
    """The manager, if it may do this. set_priority needs EDIT, the rest MAINTENANCE."""
    if body.action == "set_priority" and body.priority is None:
        raise TrackerError("invalid", "priority: is required")
    return require_role(tx, session, project, EDIT if body.action == "set_priority" else MAINTENANCE)


def apply_action(
    tx: Tx, project: int, action: str, priority: int | None, tasks: Sequence[int], assigned_before: float
) -> int:
    """Retries failed tasks, requeues assigned ones, sets priorities or deletes. How many tasks that changed."""
    values = {"tasks": encode(tasks).decode(), "project": project, "before": assigned_before, "priority": priority}
    # With the plus the tasks are looked up one by one. An index of the project would go through all that are assigned.
    which = f"id IN (SELECT value FROM json_each(:tasks)) AND +project = :project AND {ACTIONS[action].which}"
    if action == "requeue":
        record_end(tx, "requeued", which, values)
    rows = tx.all(f"{ACTIONS[action].change} WHERE {which} RETURNING job", values)
    if action in JOBS_AFTER:
        move_jobs(tx, rows, *JOBS_AFTER[action])
    if action == "set_priority":
        for row in rows:
            if row["job"] is not None:
                change = "UPDATE job SET priority = ? WHERE id = ? RETURNING *"
                job_happens(tx, "set_priority", tx.one(change, (priority, row["job"])))
    if action in ("requeue", "retry"):
        tx.ready.append((project, len(rows)))
    return len(rows)


# ── Long operations ───────────────────────────────────────────────────────────────────────────────────────────────────

PIECE_TASKS = 500  # tasks in a piece of a bulk submit
STEP_TASKS = 50  # tasks in one statement of the other operations: their recipes may be long, and are rewritten
STEP_SECONDS = (
    0.01  # seconds after which a transaction takes no further step: about as long as an assignment has to wait
)
PIECE_BYTES = 2**18  # and no step stores more than this at once


RESETS = {"reset_failed": "retry", "reclaim_assigned": "requeue", "hard_reset": "hard_reset"}
MOST_REPORTED = 1000  # lines of an upload that its report names; it counts the others
MOST_REASON = 200  # characters of the reason why a line was refused: it may quote a field's name


class LinesReport(msgspec.Struct):
    """What became of the lines of an upload: how many, and the numbers of the first ones."""

    line_count: int = 0
    refused_count: int = 0
    refused: list[tuple[int, str]] = []
    duplicate_count: int = 0
    duplicates: list[int] = []


def begin_bulk_submit(tx: Tx, caller: WorkerCredentials, project: int) -> int:
    """Opens a bulk submit that is too large for one transaction. Nothing of it counts before it is accepted."""
    submitter(tx, caller, project)
    return insert_operation(tx, "bulk_submit", project, accepted=0)


def add_bulk_piece(tx: Tx, operation: int, number: int, tasks: bytes) -> None:
    tx.execute("INSERT INTO bulk_piece VALUES (?, ?, ?)", (operation, number, tasks))


def accept_bulk_submit(tx: Tx, caller: WorkerCredentials, operation: int, count: int) -> None:
    """From this commit on the whole bulk submit will be carried out, crash or not. The caller is checked once more."""
    project = tx.one("SELECT project FROM operation WHERE id = ?", (operation,))["project"]
    charge_submit(tx, submitter(tx, caller, project), count)
    tx.execute("UPDATE operation SET accepted = 1 WHERE id = ?", (operation,))


def begin_lines_submit(tx: Tx, session: bytes | None, project: int) -> int:
    """Opens a manager's upload of tasks, a line each. Needs EDIT."""
    manager = require_role(tx, session, project, EDIT)
    return insert_operation(tx, "submit_lines", project, manager["id"], accepted=0)


def accept_lines_submit(tx: Tx, session: bytes | None, operation: int, report: LinesReport) -> None:
    """From this commit on all lines that were not refused will be submitted. The caller is checked once more."""
    project = tx.one("SELECT project FROM operation WHERE id = ?", (operation,))["project"]
    require_role(tx, session, project, EDIT)
    tx.execute(
        "UPDATE operation SET accepted = 1, expected = ?, report = ? WHERE id = ?",
        (report.line_count - report.refused_count, encode(report).decode(), operation),
    )


def unaccepted_bulk_submits(tx: Tx) -> list[int]:
    return [row["id"] for row in tx.all("SELECT id FROM operation WHERE finished IS NULL AND NOT accepted")]


def discard_bulk_pieces(tx: Tx, operation: int) -> bool:
    """Forgets some pieces of a bulk submit that nobody was told about, at last the whole. Whether more is left."""
    deleted = tx.execute(
        "DELETE FROM bulk_piece WHERE operation = ?1 AND number IN"
        " (SELECT number FROM bulk_piece WHERE operation = ?1 LIMIT 16)",
        (operation,),
    ).rowcount
    if not deleted:
        tx.execute("DELETE FROM operation WHERE id = ?", (operation,))
    return deleted > 0


def insert_operation(tx: Tx, kind: str, project: int, manager: int | None = None, **columns: Any) -> int:
    """A new operation of a manager, or of a worker (None)."""
    row = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'task'")
    columns |= {"kind": kind, "project": project, "manager": manager, "last_task": row["seq"] if row else 0}
    columns |= {"started": tx.time, "started_uptime": tx.uptime}
    names, values = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    return tx.one(f"INSERT INTO operation ({names}) VALUES ({values}) RETURNING id", columns)["id"]


def begin_reset(tx: Tx, session: bytes | None, project: int, kind: str) -> int:
    """Begins reset_failed, reclaim_assigned or hard_reset of a project. Needs MAINTENANCE."""
    if kind != "hard_reset":
        action = RESETS[kind]
        return begin_action(tx, session, project, TaskAction(action), TaskFilter(ACTIONS[action].state))
    manager = require_role(tx, session, project, MAINTENANCE)
    row = find_project(tx, project)
    expected = sum(count_in_state(row, state) for state in TASK_STATES)
    return insert_operation(tx, kind, project, manager["id"], expected=expected)


def begin_action(tx: Tx, session: bytes | None, project: int, body: TaskAction, wanted: TaskFilter) -> int:
    """Begins to do the same to all tasks that are in a list now."""
    manager = check_action(tx, session, project, body)
    whole = wanted == TaskFilter(wanted.state)
    return insert_operation(
        tx,
        body.action,
        project,
        manager["id"],
        wanted=encode(wanted).decode(),
        priority=body.priority,
        expected=count_in_state(find_project(tx, project), wanted.state) if whole else None,
    )


def count_in_state(project: sqlite3.Row, state: str) -> int:
    return project["awaiting_verification_count" if state == "awaiting_verification" else f"{state}_task_count"]


def get_operation(tx: Tx, session: bytes | None, operation: int) -> sqlite3.Row:
    """A manager's operation, going on or finished. For its own manager, and for those with READ in its project."""
    manager, missing = require_manager(tx, session), f"No operation {operation}, or it is finished and forgotten"
    row = tx.one(
        "SELECT o.*, m.username FROM operation o JOIN manager m ON m.id = o.manager WHERE o.id = ?", (operation,)
    )
    if row is None:
        raise TrackerError("not_found", missing)
    if row["manager"] != manager["id"] or not role_in_project(tx, manager, row["project"]):
        require_role(tx, session, row["project"], READ, missing)
    return row


def unfinished_operations(tx: Tx) -> list[int]:
    return [row["id"] for row in tx.all("SELECT id FROM operation WHERE finished IS NULL AND accepted ORDER BY id")]


def step_operation(tx: Tx, operation: int) -> int | None:
    """Carries out the next pieces of an operation. None: more is left; else how many tasks it affected in all."""
    row = dict(tx.one("SELECT * FROM operation WHERE id = ?", (operation,)))
    while True:
        affected, row["cursor"] = STEPS[row["kind"]](tx, row)
        row["affected"] += affected
        if row["cursor"] is None:
            return finish_operation(tx, row)
        if tx.spent() >= STEP_SECONDS:
            tx.execute("UPDATE operation SET affected = :affected, cursor = :cursor WHERE id = :id", row)
            return None


def finish_operation(tx: Tx, row: dict[str, Any]) -> int:
    """A manager's operation is kept for a while, to be looked at; a worker has its answer."""
    if row["manager"] is None:
        tx.execute("DELETE FROM operation WHERE id = :id", row)
    else:
        finished = "UPDATE operation SET affected = :affected, finished = :now WHERE id = :id"
        tx.execute(finished, {**row, "now": tx.time})
    return row["affected"]


def next_piece(tx: Tx, operation: dict[str, Any]) -> tuple[int, list] | None:
    """Takes the next piece of a bulk submit out of its table."""
    piece = tx.one(
        "SELECT number, tasks FROM bulk_piece WHERE operation = ? AND number > ? ORDER BY number LIMIT 1",
        (operation["id"], operation["cursor"]),
    )
    if piece is None:
        return None
    tx.execute("DELETE FROM bulk_piece WHERE operation = ? AND number = ?", (operation["id"], piece["number"]))
    return piece["number"], msgspec.json.decode(piece["tasks"])


def step_bulk_submit(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    if (piece := next_piece(tx, operation)) is None:
        return 0, None
    number, tasks = piece
    keep_hashes = find_project(tx, operation["project"])["keep_hashes"]
    return insert_tasks(tx, tasks, operation["project"], keep_hashes), number


def step_submit_lines(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    """Like step_bulk_submit, but each task has its line's number in front, and duplicates are reported by it."""
    if (piece := next_piece(tx, operation)) is None:
        return 0, None
    number, lines = piece
    keep_hashes = find_project(tx, operation["project"])["keep_hashes"]
    duplicates = [line for line, *task in lines if not insert_task(tx, NewTask(*task), keep_hashes)]
    if duplicates:
        report = msgspec.json.decode(operation["report"], type=LinesReport)
        report.duplicate_count += len(duplicates)
        report.duplicates = (report.duplicates + duplicates)[:MOST_REPORTED]
        operation["report"] = encode(report).decode()
        tx.execute("UPDATE operation SET report = :report WHERE id = :id", operation)
    return len(lines) - len(duplicates), number


def step_action(tx: Tx, operation: dict[str, Any]) -> tuple[int, str | None]:
    wanted = msgspec.json.decode(operation["wanted"], type=TaskFilter)
    rows, more = find_tasks(
        tx,
        operation["project"],
        wanted,
        operation["cursor"],
        STEP_TASKS,
        STEP_SECONDS,
        operation["last_task"],
        columns="id",
    )
    tasks = [row["id"] for row in rows]
    affected = apply_action(
        tx, operation["project"], operation["kind"], operation["priority"], tasks, operation["started_uptime"]
    )
    return affected, more or None


def step_hard_reset(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    """Deletes some tasks of the project (cursor 0), then, when none is left, some of its kept hashes (cursor 1)."""
    values = {"project": operation["project"], "last": operation["last_task"], "limit": STEP_TASKS}
    for state in () if operation["cursor"] else TASK_STATES.values():
        some = f"SELECT id FROM task WHERE project = :project AND {state.condition} AND id <= :last LIMIT :limit"
        if deleted := tx.all(f"DELETE FROM task WHERE id IN ({some}) RETURNING job", values):
            move_jobs(tx, deleted, *JOBS_AFTER["delete"])
            return len(deleted), 0
    hashes = tx.execute(
        "DELETE FROM kept_hash WHERE project = :project AND hash64 IN"
        " (SELECT hash64 FROM kept_hash WHERE project = :project LIMIT :limit)",
        values,
    ).rowcount
    return 0, 1 if hashes else None


STEPS: dict[str, Callable[[Tx, dict[str, Any]], tuple[int, Any]]] = {
    "bulk_submit": step_bulk_submit,
    "submit_lines": step_submit_lines,
    **dict.fromkeys(("retry", "requeue", "set_priority", "delete"), step_action),
    "hard_reset": step_hard_reset,
}


# ── Submitted lines ───────────────────────────────────────────────────────────────────────────────────────────────────


class LineDefaults(msgspec.Struct):
    """What tasks of an upload get that do not say otherwise. `once`: a task's recipe is its unique string."""

    priority: Int64 = 0
    max_retries: Natural = 0
    max_assign_time: Natural = 0
    verification_count: Natural = 0
    once: bool = False
    format: Literal["auto", "text", "json"] = "auto"


class LineTask(SubmitBody, forbid_unknown_fields=True, kw_only=True):
    """A line of an upload as JSON: like a submitted task, but the project is known."""

    project: Id = 0


def submit_as_manager(tx: Tx, session: bytes | None, project: int, body: LineTask) -> None:
    """Adds a task to the queue. Needs EDIT; the workers' rate limit does not count. 409 for a duplicate."""
    require_role(tx, session, project, EDIT)
    task = new_task(body)._replace(project=project)
    if not insert_task(tx, task, find_project(tx, project)["keep_hashes"]):
        raise TrackerError("conflict", "unique_string: there is such a task already")


async def stage_lines(
    database: Database, operation: int, project: int, source: BinaryIO, defaults: LineDefaults, session: bytes | None
) -> None:
    """Stages the lines in pieces and accepts them together. Refuses an upload in which there is no line."""
    report = LinesReport()
    pieces = line_pieces(source, project, defaults, report)
    for number in itertools.count(1):
        piece = await asyncio.to_thread(next, pieces, None)
        if piece is None:
            break
        await database.write(add_bulk_piece, operation, number, piece, long=True)
    if not report.line_count:
        raise TrackerError("invalid", "file: it has no line that is not blank")
    await database.write(accept_lines_submit, session, operation, report)


def line_pieces(source: BinaryIO, project: int, defaults: LineDefaults, report: LinesReport) -> Iterator[bytes]:
    """The lines as pieces of a bulk submit (JSON), each task with its line's number; refused ones go to the report."""
    piece: list[list] = []
    size = 0
    for number, line in enumerate(source, 1):
        if number % 64 == 0:
            time.sleep(0)  # lets other threads have the interpreter
        if not line.removeprefix(codecs.BOM_UTF8).strip():
            continue
        report.line_count += 1
        try:
            task = task_of_line(line, project, defaults)
        except TrackerError as error:
            report.refused_count += 1
            if len(report.refused) < MOST_REPORTED:
                report.refused.append((number, error.message[:MOST_REASON]))
            continue
        piece.append([number, *task])
        size += len(line)
        if len(piece) == PIECE_TASKS or size >= PIECE_BYTES:
            yield encode(piece)
            piece, size = [], 0
    if piece:
        yield encode(piece)


def task_of_line(line: bytes, project: int, defaults: LineDefaults) -> NewTask:
    """The task of a line: a recipe, or (see `defaults.format`) a JSON object with the fields of a submitted task."""
    try:
        text = line.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise TrackerError("invalid", "not valid UTF-8") from None
    fields: dict[str, Any] = {name: getattr(defaults, name) for name in LINE_DEFAULTS}
    if defaults.format == "json" or (defaults.format == "auto" and text.lstrip().startswith("{")):
        fields |= decode(text.encode(), dict[str, Any])
    else:
        fields["recipe"] = text
    try:
        body = msgspec.convert(fields, LineTask)
    except msgspec.ValidationError as error:
        raise TrackerError("invalid", "{}: {}".format(*name_and_problem(error))) from None
    _refuse_nul(body, "")
    if body.project not in (0, project):
        raise TrackerError("invalid", f"project: {body.project}, but this is project {project}")
    if defaults.once and not (body.hash64 or body.hash_u64 or body.unique_string or body.unique_str):
        body.unique_string = body.recipe
    return new_task(body)._replace(project=project)


LINE_DEFAULTS = ("priority", "max_retries", "max_assign_time", "verification_count")


# ── Logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

LEVELS = {"fatal": 1, "panic": 2, "error": 3, "warn": 4, "info": 5, "debug": 6, "trace": 7}
LEVEL_NAMES = {number: name for name, number in LEVELS.items()}
MOST_LOG_ENTRIES = 1000
MOST_LOG_TEXT = 2**21  # characters after which a page of log entries ends; `before` continues it


class LogBody(msgspec.Struct):
    """A line to log. Existing clients also spell the field `Message`."""

    scope: Annotated[str, Meta(max_length=1000)]
    timestamp: Int64
    message: Annotated[str, Meta(max_length=65536)] | UnsetType = UNSET
    Message: Annotated[str, Meta(max_length=65536)] | UnsetType = UNSET
    task_id: Id | None = None


class LogsBody(msgspec.Struct):
    """Which log entries: of one `level`, or down to `max_level`; logged after `since`; older than entry `before`."""

    level: Annotated[int, Meta(ge=1, le=7)] | None = None
    since: Int64 = 0
    max_level: Annotated[int, Meta(ge=1, le=7)] | None = None
    before: Id | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST_LOG_ENTRIES)] = MOST_LOG_ENTRIES


def add_log_entry(tx: Tx, caller: WorkerCredentials, level: str, body: LogBody) -> str:
    """Stores a worker's line if its level is to be stored. `task_id` counts when the caller holds that task."""
    worker = authenticate(tx, caller)
    message = body.message if body.message is not UNSET else body.Message
    if message is UNSET:
        raise TrackerError("invalid", "message: is required")
    entry = TaskEntry(message, body.timestamp, level, body.scope)
    held = None if body.task_id is None else held_task(tx, caller.id, body.task_id)
    if held and held["job"] is not None:
        add_job_lines(tx, tx.one("SELECT * FROM job WHERE id = ?", (held["job"],)), caller.id, [entry])
    if LEVELS[level] <= LEVELS[tx.settings.log_level]:
        task, project = (held["id"], held["project"]) if held else (None, only_project(tx, caller.id))
        store_log_entry(tx, caller.id, entry, task, project)
    return f"{worker.alias} ({caller.id}) {body.scope}: {message}"


def store_log_entry(tx: Tx, worker: int, entry: TaskEntry, task: int | None, project: int | None) -> None:
    tx.execute(
        "INSERT INTO log_entry (received, time, level, scope, message, worker, task, project)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (tx.time, entry.timestamp, LEVELS[entry.level], entry.scope, entry.message, worker, task, project),
    )


def only_project(tx: Tx, worker: int) -> int | None:
    """The project of a line that names no task: the only one of which the worker holds tasks.

    Most existing clients name none, and their managers want to see a project's log all the same.
    """
    rows = tx.all("SELECT project FROM tally WHERE worker = ? AND held_task_count > 0 LIMIT 2", (worker,))
    return rows[0]["project"] if len(rows) == 1 else None


def list_logs(tx: Tx, session: bytes | None, body: LogsBody) -> dict[str, Any]:
    """Log entries, the newest first. For managers, or for everybody when tracker.toml says so."""
    if not tx.settings.public_logs:
        require_manager(tx, session)
    if body.level is None and body.max_level is None:
        raise TrackerError("invalid", "level: is required")
    levels = [body.level] if body.level else range(1, body.max_level + 1)
    before = (
        tx.one("SELECT time, id FROM log_entry WHERE id = ?", (body.before,)) if body.before else (INT64_MAX, INT64_MAX)
    )
    if before is None:
        raise TrackerError("not_found", f"before: no log entry {body.before}")
    cursors = [  # one index range a level, each in order already
        tx.execute(
            "SELECT e.*, w.alias FROM log_entry e LEFT JOIN worker w ON w.id = e.worker"
            " WHERE e.level = ? AND e.time > ? AND (e.time, e.id) < (?, ?) ORDER BY e.time DESC, e.id DESC LIMIT ?",
            (level, body.since, *before, body.limit),
        )
        for level in levels
    ]
    logs, size = [], 0
    for row in heapq.merge(*cursors, key=lambda row: (row["time"], row["id"]), reverse=True):
        logs.append(log_json(row))
        size += len(row["message"])
        if len(logs) == body.limit or size > MOST_LOG_TEXT:
            break
    return {"logs": logs}


def log_json(row: sqlite3.Row) -> dict[str, Any]:
    data = {"scope": row["scope"], "worker": f"{row['alias']} ({row['worker']})"}
    return {
        "id": row["id"],
        "message": row["message"],
        "timestamp": row["time"],
        "data": msgspec.json.encode(data).decode(),
        "level": row["level"],
    }


# ── Monitoring ────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_LAST_SNAPSHOTS = 1000
MOST_SNAPSHOTS = 10_080  # a week at the default interval
SNAPSHOT_PIECE = 50  # projects per transaction
SNAPSHOT_COLUMNS = (
    "new_task_count",
    "failed_task_count",
    "closed_task_count",
    "worker_access_count",
    "awaiting_verification_count",
    "time_stamp",
)


class LastSnapshots(msgspec.Struct):
    count: Annotated[int, Meta(ge=1, lt=MOST_LAST_SNAPSHOTS)] = 60


class SnapshotsBetween(msgspec.Struct, rename={"start": "from", "end": "to"}):
    start: Int64
    end: Int64


def get_snapshots(tx: Tx, session: bytes | None, project: int, query: LastSnapshots) -> dict[str, Any]:
    """The last snapshots of a project, the newest first."""
    visible_project(tx, session, project)
    rows = tx.all("SELECT * FROM snapshot WHERE project = ? ORDER BY time_stamp DESC LIMIT ?", (project, query.count))
    return {"snapshots": [{name: row[name] for name in SNAPSHOT_COLUMNS} for row in rows]}


def get_snapshots_between(tx: Tx, session: bytes | None, project: int, query: SnapshotsBetween) -> dict[str, Any]:
    """The snapshots of a project between two moments, both included, the newest first. Of many, the newest 10,080."""
    visible_project(tx, session, project)
    rows = tx.all(
        "SELECT * FROM snapshot WHERE project = ? AND time_stamp BETWEEN ? AND ? ORDER BY time_stamp DESC LIMIT ?",
        (project, query.start, query.end, MOST_SNAPSHOTS),
    )
    return {"snapshots": [{name: row[name] for name in SNAPSHOT_COLUMNS} for row in rows]}


def get_assignees(tx: Tx, session: bytes | None, project: int) -> dict[str, Any]:
    """Who holds the most tasks of a project now; those that nobody holds are under `unassigned`."""
    row = visible_project(tx, session, project)
    rows = tx.all(
        "SELECT w.alias AS assignee, t.held_task_count AS task_count FROM tally t JOIN worker w ON w.id = t.worker"
        " WHERE t.project = ? AND t.held_task_count > 0 ORDER BY t.held_task_count DESC, w.id LIMIT 16",
        (project,),
    )
    unassigned = row["waiting_task_count"] + row["awaiting_verification_count"] + row["failed_task_count"]
    assignees = [dict(row) for row in rows]
    if unassigned:
        assignees.append({"assignee": "unassigned", "task_count": unassigned})
    assignees.sort(key=lambda one: -one["task_count"])
    return {"assignees": assignees[:16]}


def take_snapshots(tx: Tx, after: int, time_stamp: int) -> int | None:
    """Snapshots of the next projects after id `after`. The last one's id, or None when there are no more."""
    rows = tx.all(
        "INSERT OR REPLACE INTO snapshot SELECT id, ?, waiting_task_count + assigned_task_count, failed_task_count,"
        " closed_task_count, (SELECT COUNT(*) FROM worker_access a WHERE a.project = p.id AND NOT a.request),"
        " awaiting_verification_count FROM project p WHERE id > ? ORDER BY id LIMIT ? RETURNING project",
        (time_stamp, after, SNAPSHOT_PIECE),
    )
    return max((row["project"] for row in rows), default=None)


TALLY_HOURS = 24
MOST_ASSIGNMENTS = 1_000_000  # ended ones that are kept: a worker that skips in a circle must not fill the disk


def roll_tallies(tx: Tx, after: tuple[int, int], hour: int) -> tuple[int, int] | None:
    """Moves what the next workers have closed since the last time into `hour`. The last tally looked at, or None."""
    rows = tx.all(
        "SELECT project, worker, closed_task_count - rolled_task_count FROM tally WHERE (project, worker) > (?, ?)"
        " ORDER BY project, worker LIMIT ?",
        (*after, PIECE_TASKS),
    )
    tx.executemany(
        "INSERT INTO tally_hour VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET closed_task_count = closed_task_count + excluded.closed_task_count",
        [(hour, *row) for row in rows if row[2]],
    )
    tx.executemany(
        "UPDATE tally SET rolled_task_count = closed_task_count WHERE project = ? AND worker = ?",
        [row[:2] for row in rows if row[2]],
    )
    return rows[-1][:2] if len(rows) == PIECE_TASKS else None


PRUNE = {
    "log_entry": """DELETE FROM log_entry WHERE received < :logs_before AND id IN
        (SELECT id FROM log_entry ORDER BY id LIMIT :limit)""",
    "snapshot": """DELETE FROM snapshot WHERE (project, time_stamp) IN
        (SELECT s.project, s.time_stamp FROM project p CROSS JOIN snapshot s ON s.project = p.id
         AND s.time_stamp < :snapshots_before LIMIT :limit)""",
    "session": """DELETE FROM session WHERE id_hash IN
        (SELECT id_hash FROM session WHERE expires <= :now LIMIT :limit)""",
    "tally_hour": """DELETE FROM tally_hour WHERE (hour, project, worker) IN
        (SELECT hour, project, worker FROM tally_hour WHERE hour < :first_hour LIMIT :limit)""",
    "assignment": """DELETE FROM assignment WHERE id IN (SELECT id FROM assignment ORDER BY id LIMIT :limit)
        AND (end_time < :history_before OR id <= (SELECT MAX(id) FROM assignment) - :most_assignments)""",
    "template": """DELETE FROM template WHERE id IN (SELECT id FROM template t WHERE deleted IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM job WHERE template = t.id) LIMIT :limit)""",
    "script": """DELETE FROM script WHERE id IN (SELECT id FROM script s
        WHERE NOT EXISTS (SELECT 1 FROM template WHERE script = s.id)
        AND NOT EXISTS (SELECT 1 FROM job WHERE script = s.id) LIMIT :limit)""",
    "workflow": """DELETE FROM workflow WHERE id IN (SELECT id FROM workflow w WHERE deleted IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM job WHERE workflow = w.id) LIMIT :limit)""",
    "operation": """DELETE FROM operation WHERE finished < :history_before AND id IN
        (SELECT id FROM operation ORDER BY id LIMIT :limit)""",
    "login_failure": """DELETE FROM login_failure WHERE source IN
        (SELECT source FROM login_failure WHERE forget_uptime <= :uptime LIMIT :limit)""",
}


def prune(tx: Tx, table: str) -> bool:
    """Deletes some rows of the table that are too old or no longer used. Whether there may be more."""
    deleted = tx.execute(
        PRUNE[table],
        {
            "now": tx.time,
            "uptime": tx.uptime,
            "logs_before": tx.time - tx.settings.log_retention,
            "snapshots_before": tx.time - tx.settings.snapshot_history,
            "history_before": tx.time - tx.settings.history_retention,
            "most_assignments": MOST_ASSIGNMENTS,
            "first_hour": tx.time // 3600 - TALLY_HOURS,
            "limit": PIECE_TASKS,
        },
    ).rowcount
    return deleted >= PIECE_TASKS


# ── Waiting workers ───────────────────────────────────────────────────────────────────────────────────────────────────


class Waiter:
    """One request that waits for a task of some projects."""

    __slots__ = ("projects", "turn", "woken")

    def __init__(self, projects: Sequence[int]):
        self.projects = projects
        self.woken: asyncio.Future | None = None
        self.turn = 0  # the last wake-up that it tried and could not use


class Waiters:
    """Who waits for tasks. Each task that becomes ready wakes one worker; one that cannot take it wakes the next.

    A waiter joins before its first attempt, so that a task committed between attempt and wait cannot be missed.
    """

    def __init__(self) -> None:
        self._queues: dict[int, dict[Waiter, None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._turn = 0
        self._closed = False

    def __len__(self) -> int:
        return len({waiter for queue in self._queues.values() for waiter in queue})

    def announce(self, project: int, count: int) -> None:
        """`count` tasks of the project have become ready: wakes as many workers, those first that wait longest."""
        queue = self._queues.get(project)
        if queue:
            self._turn += 1
            for waiter in list(itertools.islice(queue, min(count, len(queue)))):
                self._wake(waiter, self._turn)

    async def assign(
        self, projects: Sequence[int], attempt: Callable[[], Awaitable[Assigned]], seconds: float, gone: asyncio.Future
    ) -> list[dict[str, Any]]:
        """Attempts now and after each wake-up; [] after `seconds`, when the client is `gone`, or at the tracker's stop.

        A refusal of the attempt is raised, but a rate limit that ends in time is waited for.
        """
        loop = asyncio.get_running_loop()
        ends, waiter = loop.time() + seconds, Waiter(projects)
        self._join(waiter)
        try:
            while True:
                outcome = await self._attempt(waiter, attempt, ends - loop.time())
                if outcome.tasks:
                    if len(projects) > 1:  # woken for one project, it may have taken another one's task
                        self._pass_on(waiter)
                    return outcome.tasks
                if outcome.others:
                    self._pass_on(waiter)
                if not await self._woken(waiter, ends - loop.time(), gone):
                    return []
        except BaseException:
            self._pass_on(waiter)  # the wake-up that led to this attempt came to nothing
            raise
        finally:
            self._remove(waiter)
            if waiter.woken.done():
                self._pass_on(waiter)  # one more arrived that no attempt followed

    async def _attempt(self, waiter: Waiter, attempt: Callable, left: float) -> Assigned:
        try:
            outcome = await attempt()
        except TrackerError as error:
            if error.code != "too_fast" or error.delay > left:
                raise
            outcome = Assigned([], others=len(waiter.projects) > 1, delay=error.delay)
        if outcome.delay:
            for project in waiter.projects:
                self._wake_later(project, outcome.delay)
        return outcome

    async def _woken(self, waiter: Waiter, seconds: float, gone: asyncio.Future) -> bool:
        """Waits for the next wake-up. False when there will be none."""
        if self._closed:
            return False
        await asyncio.wait((waiter.woken, gone), timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() or not waiter.woken.done():
            return False
        self._join(waiter)
        return True

    def _join(self, waiter: Waiter) -> None:
        waiter.woken = asyncio.get_running_loop().create_future()
        for project in waiter.projects:
            self._queues.setdefault(project, {})[waiter] = None

    def _remove(self, waiter: Waiter) -> None:
        for project in waiter.projects:
            queue = self._queues.get(project, {})
            queue.pop(waiter, None)
            if not queue:
                self._queues.pop(project, None)

    def _wake(self, waiter: Waiter, turn: int) -> None:
        self._remove(waiter)
        waiter.turn = turn
        waiter.woken.set_result(None)

    def _pass_on(self, waiter: Waiter) -> None:
        """Wakes one worker a project that has not had this turn yet, so that a turn goes round once at the most."""
        if self._closed:
            return
        for project in waiter.projects:
            other = next((one for one in self._queues.get(project, ()) if one.turn < waiter.turn), None)
            if other:
                self._wake(other, waiter.turn)

    def _wake_later(self, project: int, delay: float) -> None:
        """One timer a project: the limiter lets one task through at a time, so one worker is to be woken for it."""
        if project not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[project] = loop.call_later(delay + 0.001, self._limiter_free, project)

    def _limiter_free(self, project: int) -> None:
        self._timers.pop(project, None)
        self.announce(project, 1)

    def close(self) -> None:
        """The tracker stops: nobody waits any longer."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for waiter in {waiter for queue in self._queues.values() for waiter in queue}:
            self._wake(waiter, self._turn)


# ── Background work ───────────────────────────────────────────────────────────────────────────────────────────────────

EXPIRY_INTERVAL = 0.5  # seconds; a task is back well within two seconds of its deadline
UPTIME_INTERVAL = 1.0  # a crash makes leases at most this much longer
TALLY_INTERVAL = 60.0  # so exactly an hour's tasks are told apart from the next one's
PRUNE_INTERVAL = 600.0


class Tracker:
    """A running tracker: its settings, database and waiting workers, and the work that goes on behind the requests."""

    def __init__(self, settings: Settings, clock: Clock | None = None):
        self.settings = settings
        self.clock = clock or Clock()
        self.waiters = Waiters()
        self.db = Database(settings, self.clock, self.waiters.announce)
        self.hashing = asyncio.Semaphore(2)
        self._tasks: set[asyncio.Task] = set()
        self._operations: set[asyncio.Task[int]] = set()
        self._hour = int(self.clock.time()) // 3600
        self._stopping = self._stopped = False

    async def start(self) -> None:
        """Opens the database, finishes what a crash has interrupted, starts the background work."""
        await self.db.open()
        try:
            await self._begin_work()
        except BaseException:
            await self.db.close()
            raise

    async def _begin_work(self) -> None:
        self.log_lines = open_log_file(self.settings)
        key = await self.db.write(load_meta, "cookie_key", new_secret)
        self.signer = itsdangerous.Signer(key, salt="tracker.session")
        self.form_signer = itsdangerous.Signer(key, salt="tracker.form")
        self.message_signer = itsdangerous.Signer(key, salt="tracker.message")
        await self.catch_up()
        for operation in await self.db.read(unaccepted_bulk_submits):
            await discard(self.db, operation)
        for operation in await self.db.read(unfinished_operations):
            self.begin_operation(operation)
        self._repeat(EXPIRY_INTERVAL, self.expire)
        self._repeat(UPTIME_INTERVAL, self.remember_uptime)
        self._repeat(self.settings.snapshot_interval, self.snapshot)
        self._repeat(TALLY_INTERVAL, self.roll_tallies)
        self._repeat(PRUNE_INTERVAL, self.prune)

    async def catch_up(self) -> None:
        """When a dialect was not there while a tracker ran on this file, they learn of what was missed."""
        known = await self.db.write(known_dialects)
        if set(installed_dialects()) - set(known):
            for catch_up in hooks("catch_up"):
                await catch_up(self)
            await self.db.write(note_dialects, installed_dialects())

    def begin_stop(self) -> None:
        """Nobody waits for a task any longer, and long operations end after the piece in hand: requests can finish."""
        self._stopping = True
        self.waiters.close()

    async def stop(self) -> None:
        """Ends the background work between two of its transactions, and closes the database."""
        self.begin_stop()
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._operations, return_exceptions=True)
        with contextlib.suppress(TrackerError):  # else the next start would count this hour's tasks as its own
            await self.close_hour()
        await self.db.close()
        for handler in self.log_lines.handlers:
            handler.close()

    def _repeat(self, interval: float, work: Callable[[], Awaitable[None]]) -> None:
        async def forever() -> None:
            while True:
                try:
                    await work()
                except Exception:
                    log.exception("%s failed; it is tried again", work.__name__)
                await asyncio.sleep(interval)

        self._tasks.add(asyncio.create_task(forever()))

    async def expire(self) -> None:
        while await self.db.write(expire_tasks, long=True):  # costs no fsync when there are none
            pass

    async def remember_uptime(self) -> None:
        if await self.db.read(any_lease):
            await self.db.write(save_uptime)

    async def snapshot(self) -> None:
        time_stamp, last = int(self.clock.time()), 0
        while last is not None:
            last = await self.db.write(take_snapshots, last, time_stamp, long=True)

    async def roll_tallies(self) -> None:
        """When an hour is over, its tasks are moved into tally_hour."""
        hour = int(self.clock.time()) // 3600
        if hour == self._hour:
            return
        await self.close_hour()
        self._hour = hour

    async def close_hour(self) -> None:
        after = (0, 0)
        while after is not None:
            after = await self.db.write(roll_tallies, after, self._hour, long=True)

    async def prune(self) -> None:
        template = 0
        while template is not None:
            template = await self.db.write(prune_jobs, template, long=True)
        for table in PRUNE:
            while await self.db.write(prune, table, long=True):
                pass
        for dialect in dialects():
            if hasattr(dialect, "prune"):
                await dialect.prune(self)

    async def hash(self, function: Callable, *args: Any) -> Any:
        """Runs a password function on a thread, few at a time: each takes a core and 16 MiB for a moment."""
        async with self.hashing:
            return await asyncio.to_thread(function, *args)

    def begin_operation(self, operation: int, answered: bool = False) -> asyncio.Future[int]:
        """Carries out an operation in the background; the future becomes the number of affected tasks.

        Waiting for it may be given up; the operation itself goes on, after a restart too.
        """
        task = asyncio.create_task(self._carry_out(operation, answered))
        self._operations.add(task)
        task.add_done_callback(self._operation_done)
        done = asyncio.shield(task)
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # perhaps nobody looks
        return done

    def _operation_done(self, task: asyncio.Task[int]) -> None:
        self._operations.discard(task)
        if not task.cancelled() and task.exception():
            log.info("%s", task.exception())

    async def _carry_out(self, operation: int, answered: bool) -> int:
        pauses = retry_pauses()
        while not (self._stopped if answered else self._stopping):
            try:
                if (affected := await self.db.write(step_operation, operation, long=True)) is not None:
                    return affected
            except TrackerError as error:
                log.warning("Operation %d has to wait: %s", operation, error)
                await asyncio.sleep(next(pauses))
        raise TrackerError("unavailable", "The tracker is stopping; what it had begun is finished at its next start")


async def discard(db: Database, operation: int) -> None:
    while await db.write(discard_bulk_pieces, operation, long=True):
        pass


def open_log_file(settings: Settings) -> logging.Logger:
    """Where workers' log lines go; a logger of its own, so that two trackers in one process share nothing."""
    logger = logging.Logger("tracker.workers")
    if settings.log_file:
        try:
            handler = logging.handlers.RotatingFileHandler(
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


# ── HTTP plumbing ─────────────────────────────────────────────────────────────────────────────────────────────────────

JSON_HEADERS = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
PLAIN_HEAD = plain_head(JSON_HEADERS)
encode = msgspec.json.Encoder().encode


Answer = Callable[[dict, Callable, Callable], Awaitable[None]]  # it sends itself: a Reply, a Response of Starlette's


class Reply(NamedTuple):
    """An answer: what goes into the envelope, or nothing at all for status 204."""

    content: Any = None
    ok: bool = True
    message: str | None = None
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    delay: float | None = None

    def body(self) -> bytes:
        if self.status == 204:
            return b""
        envelope: dict[str, Any] = {"ok": self.ok}
        if self.message is not None:
            envelope["message"] = self.message
        if self.delay is not None:
            envelope["rate_limit_delay"] = self.delay
        if self.content is not None:
            envelope["content"] = self.content
        return encode(envelope)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Sends it, as an ASGI application."""
        body = self.body()
        if self.status == 200 and not self.headers and (cycle := plain_cycle(send)):
            return await write_at_once(cycle, PLAIN_HEAD, body)
        headers = [*JSON_HEADERS, *self.headers]
        if self.status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def error_headers(error: TrackerError) -> dict[str, str]:
    """What an error says in headers, at every door: when to come again (whole seconds), with which methods."""
    headers = {}
    if error.delay is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.delay)))
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    return headers


def error_reply(error: TrackerError) -> Reply:
    """How every error looks: {"ok": false, "message": …}, and Retry-After where it helps."""
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    return Reply(ok=False, message=error.message, status=STATUS[error.code], headers=headers, delay=error.delay)


class Call:
    """One request, decoded piece by piece as a handler asks for it.

    Each door (the JSON API, the pages, a dialect) has its kind of Call, whose `refuse` is the form of its refusals.
    """

    __slots__ = ("receive", "scope", "tracker")

    def __init__(self, scope: dict, receive: Callable, tracker: Tracker):
        self.scope, self.receive, self.tracker = scope, receive, tracker

    async def refuse(self, error: TrackerError) -> Answer:
        return error_reply(error)

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return value
        return None

    def worker(self) -> WorkerCredentials:
        """The credentials in X-Worker-ID and X-Secret. 401 when they cannot be any worker's."""
        worker, secret = None, None
        for key, value in self.scope["headers"]:
            if key == b"x-worker-id":
                worker = value
            elif key == b"x-secret":
                secret = value
        if worker is None or secret is None or not worker.isdigit() or len(worker) > 18:
            raise TrackerError("unauthorized", "Headers X-Worker-ID and X-Secret are required")
        return WorkerCredentials(int(worker), secret)

    def session(self) -> bytes | None:
        """The session id in the cookie, if this tracker signed it."""
        for cookie in self.cookies(self.tracker.settings.cookie_name):
            with contextlib.suppress(itsdangerous.BadSignature):
                return self.tracker.signer.unsign(cookie)
        return None

    def cookies(self, name: str) -> Iterator[bytes]:
        """The cookies of that name. Ours are never quoted; the library's unquoting takes minutes over a hostile one."""
        for key, value in self.scope["headers"]:
            if key == b"cookie":
                for cookie in value.split(b";"):
                    if cookie.strip().startswith(name.encode() + b"="):
                        yield cookie.strip()[len(name) + 1 :]

    def worker_or_session(self) -> WorkerCredentials | bytes | None:
        return self.worker() if self.header(b"x-worker-id") else self.session()

    def refuse_other_sites(self) -> None:
        """Refuses a request that another site's page made the browser send, with our cookie but against our will."""
        site = self.header(b"sec-fetch-site")
        if site is None:
            source = self.header(b"origin") or self.header(b"referer")
            browses = self.scope["method"] == "GET" and b"text/html" in (self.header(b"accept") or b"")
            same = source is None and not browses  # a followed link may come without any header that tells its source
            with contextlib.suppress(ValueError):  # not a URL
                same = same or urlsplit(source).netloc == (self.header(b"host") or b"")
        else:
            same = site in (b"same-origin", b"none")
        if not same:
            raise TrackerError("forbidden", "Refused: this request was caused by another site")

    @property
    def base(self) -> str:
        """Where the caller sees the tracker: a URL without a slash at its end."""
        host = (self.header(b"host") or b"localhost").decode("latin-1")
        return f"{self.scope['scheme']}://{host}{self.tracker.settings.root_path}"

    def path_id(self, name: str) -> int:
        text = self.scope["path_params"][name]
        if not (text.isascii() and text.isdigit()):
            raise TrackerError("invalid", f"{name}: must be a whole number")
        return int(text) if len(text) < 19 else INT64_MAX  # no id is that large: it will not be found

    def path_value(self, name: str) -> int | str:
        """What stands in the path: a job's token, or else the id of something."""
        if name != "job":
            return self.path_id(name)
        token = self.scope["path_params"][name]
        if not re.fullmatch(TOKEN, token):
            raise TrackerError("not_found", "There is no such job")
        return token

    def query(self) -> dict[str, list[str]]:
        try:
            return parse_qs(self.scope["query_string"].decode(), max_num_fields=1000, errors="strict")
        except ValueError:
            raise TrackerError("invalid", "query: not a valid query string") from None

    def query_as(self, kind: type, *several: str) -> Any:
        """The query's parameters as a struct; numbers are given as text there. `several` may be given repeatedly."""
        texts = {name: given if name in several else given[-1:] for name, given in self.query().items()}
        values = {name: given if name in several else given[0] for name, given in texts.items()}
        try:
            query = msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            name, problem = name_and_problem(error)
            raise TrackerError("invalid", f"{name.partition('[')[0]}: {problem}") from None
        for name, value in msgspec.to_builtins(query).items():
            numbers = value if name in several else [value]
            if name in texts and type(numbers[0]) is int and set(map(str, numbers)) != set(texts[name]):
                raise TrackerError("invalid", f"{name}: must be a whole number")  # msgspec reads 1e3 and 1.0 as well
        return query

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body. 413 as soon as it is known to exceed the limit (in KiB)."""
        most = 1024 * (limit or self.tracker.settings.max_body)
        too_large = TrackerError("too_large", f"body: more than {most // 1024} KiB")
        if (length := self.header(b"content-length")) and length.isdigit() and (len(length) > 15 or int(length) > most):
            raise too_large
        parts, size = [], 0  # joined once: adding to bytes copies all that has arrived
        while True:  # GuardedProtocol watches how long it takes: a timer for each request would cost more than decoding
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise TrackerError("timeout", "body: did not arrive")
            parts.append(message["body"])
            size += len(message["body"])
            if size > most:
                raise too_large
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def multipart(self, limit: int, what: str = "body", **limits: int) -> dict[str, list[Any]]:
        """The fields of a multipart form: texts and files. 413 as soon as it exceeds the limit (in KiB)."""
        most, size = 1024 * limit, 0
        if len(self.header(b"content-type") or b"") > 1024:  # the library takes quadratic time to read it
            raise TrackerError("invalid", "body: its Content-Type is too long")

        async def receive() -> dict:
            nonlocal size
            message = await self.receive()
            size += len(message.get("body", b""))
            if size > most:
                raise TrackerError("too_large", f"{what}: more than {limit} KiB")
            return message

        try:
            form = await Request(self.scope, receive).form(max_part_size=most, **limits)
        except (HTTPException, MultiPartException, FormParserError) as error:
            raise TrackerError("invalid", f"body: {getattr(error, 'detail', error)}") from None
        except ClientDisconnect:
            raise TrackerError("timeout", "body: did not arrive") from None
        return {name: form.getlist(name) for name in form}

    async def json(self, kind: Any) -> Any:
        return decode(await self.body(), kind)

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class Endpoint:
    """An ASGI application around a handler `async (call) -> Answer`. Request and Response objects cost too much.

    It is the same at every door: `kind` is the door's kind of Call. What nobody has foreseen is logged here.
    """

    def __init__(self, tracker: Tracker, handler: Callable[[Call], Awaitable[Answer]], kind: type[Call] = Call):
        self.tracker, self.handler, self.kind = tracker, handler, kind

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        call = self.kind(scope, receive, self.tracker)
        try:
            answer = await self.handler(call)
        except TrackerError as error:
            answer = await call.refuse(error)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            answer = await call.refuse(TrackerError("internal", "Internal error"))
        try:
            await answer(scope, receive, send)
        except ClientDisconnect:  # nobody is there any more, or an answer that has begun must be broken off
            return


def by_method(handlers: dict[str, Callable[[Any], Awaitable[Answer]]]) -> Callable[[Any], Awaitable[Answer]]:
    """The handler of a path that takes every method: each has its own, and the others are refused in the door's form.

    HEAD is one of the others: it must not take, or set off, what a GET does.
    """

    async def handle(call: Call) -> Answer:
        method = call.scope["method"]
        if method not in handlers:
            raise MethodNotAllowed(method, handlers)
        return await handlers[method](call)

    return handle


class Takes(NamedTuple):
    """What a handler decodes from a call. openapi.py documents it."""

    caller: Callable[[Call], Any] | None = None
    body: Any = None
    query: Any = None
    status: int = 200
    path: dict[str, Any] | None = None  # the types of what in the path is no id


def takes(*args: Any, **kwargs: Any) -> Callable[[Callable], Callable]:
    """Notes on a handler what it takes (the fields of Takes)."""

    def note(handler: Callable) -> Callable:
        handler.takes = Takes(*args, **kwargs)
        return handler

    return note


def domain(
    function: Callable,
    *path: str,
    caller: Callable[[Call], Any] = Call.session,
    body: type | None = None,
    query: type | None = None,
    reads: bool = False,
    status: int = 200,
) -> Callable[[Call], Awaitable[Reply]]:
    """The handler that most endpoints need: decode caller, ids in the path, body; call one function; respond."""

    @takes(caller, body, query, status, {"job": Token} if "job" in path else None)
    async def handler(call: Call) -> Reply:
        args = [caller(call), *map(call.path_value, path)]
        if not reads and isinstance(args[0], bytes):
            call.refuse_other_sites()
        if body is not None:
            args.append(await call.json(body))
        if query is not None:
            args.append(call.query_as(query))
        database = call.tracker.db
        return Reply(await (database.read if reads else database.write)(function, *args), status=status)

    handler.__doc__ = function.__doc__
    return handler


# ── JSON API ──────────────────────────────────────────────────────────────────────────────────────────────────────────

NO_TASK = Reply(ok=False, message="No task available")


@takes(Call.worker, SubmitBody)
async def submit(call: Call) -> Reply:
    """Adds a task to a project's queue.

    At once when the project's rate limit allows it. A live task of the project (waiting, assigned or failed) with the
    same hash refuses it; where the project keeps hashes, a closed one does too.
    """
    caller = call.worker()
    await call.tracker.db.write(submit_task, caller, new_task(await call.json(SubmitBody)))
    return Reply()


@takes(Call.worker, BulkSubmitBody | list[BulkTask])
async def bulk_submit(call: Call) -> Reply:
    """Adds many tasks to one project's queue.

    All or none: after a refusal nothing is stored. Duplicates, of live tasks and among each other, are skipped and
    counted. Passes the rate limit when a single task would, and is then charged for every task. The bare array of
    tasks is understood as well.
    """
    # Small ones in one transaction; large ones in pieces that count, all of them, from one commit on.
    caller, tracker = call.worker(), call.tracker
    trusted = await tracker.db.read(may_submit_somewhere, caller)  # strangers may not send large bodies
    body = await call.body(tracker.settings.max_bulk_body if trusted else None)
    tasks = await asyncio.to_thread(new_tasks, body, tracker.settings.max_bulk)
    if not tasks:
        return Reply({"submitted": 0, "duplicates": 0})
    if len(tasks) <= PIECE_TASKS and len(body) <= PIECE_BYTES:
        return Reply(await tracker.db.write(submit_tasks, caller, tasks, long=True))
    pieces = await asyncio.to_thread(split_tasks, tasks)
    stored = await store_pieces(tracker, caller, tasks[0].project, len(tasks), pieces)
    return Reply({"submitted": stored, "duplicates": len(tasks) - stored})


def split_tasks(tasks: list[NewTask]) -> list[bytes]:
    """Tasks as JSON in pieces of at most PIECE_TASKS tasks and about PIECE_BYTES."""
    pieces: list[bytes] = []
    piece: list[NewTask] = []
    size = 0
    for task in tasks:
        piece.append(task)
        size += len(task.recipe)
        if len(piece) == PIECE_TASKS or size >= PIECE_BYTES:
            pieces.append(encode(piece))
            piece, size = [], 0
            time.sleep(0)
    return [*pieces, encode(piece)] if piece else pieces


async def store_pieces(
    tracker: Tracker, caller: WorkerCredentials, project: int, count: int, pieces: list[bytes]
) -> int:
    """Stages the pieces, accepts them together, and waits until they are in the queue. How many tasks were stored."""
    operation = await tracker.db.write(begin_bulk_submit, caller, project)
    try:
        for number, piece in enumerate(pieces, 1):
            await tracker.db.write(add_bulk_piece, operation, number, piece, long=True)
        await tracker.db.write(accept_bulk_submit, caller, operation, count)
    except BaseException:
        with contextlib.suppress(TrackerError):  # stopping: the next start discards it
            await discard(tracker.db, operation)
        raise
    return await tracker.begin_operation(operation, answered=True)


class AssignQuery(msgspec.Struct):
    """How many tasks, and how long to wait for the first one."""

    wait: Annotated[float, Meta(ge=0, le=1e9)] = 0
    count: Natural = 0


class AssignFromQuery(AssignQuery, kw_only=True):
    """The same, of several projects."""

    project: Annotated[set[Id], Meta(min_length=1, max_length=100)]


@takes(Call.worker, query=AssignQuery)
async def get_task(call: Call) -> Reply:
    """Assigns the project's best task to the calling worker.

    The best one has the highest priority, and is the oldest of those. The worker has `max_assign_time` seconds to
    release it, then it goes to somebody else. A worker is never assigned a task that it has verified. "No task
    available" is no error: it is answered with status 200 and `ok` false.
    """
    caller, project = call.worker(), call.path_id("project")
    if call.scope["query_string"]:
        return await assign(call, caller, (project,), call.query_as(AssignQuery))
    tasks = (await call.tracker.db.write(assign_tasks, caller, (project,))).tasks
    return Reply({"task": tasks[0]}) if tasks else NO_TASK


@takes(Call.worker, query=AssignFromQuery)
async def get_task_of_several(call: Call) -> Reply:
    """Assigns the best task of several projects to the calling worker.

    The project with the highest priority comes first, then the task with the highest priority, then the oldest. Access
    to every one of the projects is needed. Otherwise like `GET /task/get/{project}`.
    """
    caller, query = call.worker(), call.query_as(AssignFromQuery, "project")
    return await assign(call, caller, tuple(query.project), query)


async def assign(call: Call, caller: WorkerCredentials, projects: tuple[int, ...], query: AssignQuery) -> Reply:
    settings, database = call.tracker.settings, call.tracker.db
    wait, count = min(query.wait, settings.max_wait), min(query.count, settings.max_count)

    def attempt() -> Awaitable[Assigned]:
        return database.write(assign_tasks, caller, projects, count or 1, long=count + len(projects) > 16)

    tasks = await wait_for_task(call, caller, projects, attempt, wait) if wait else (await attempt()).tasks
    if not tasks:
        return NO_TASK
    return Reply({"tasks": tasks} if count else {"task": tasks[0]})


async def wait_for_task(
    call: Call, caller: WorkerCredentials, projects: Sequence[int], attempt: Callable, wait: float
) -> list[dict]:
    """Waits as long as the client does. What is assigned to one that has gone meanwhile does not wait for its lease."""
    gone = asyncio.ensure_future(call.gone())
    try:
        tasks = await call.tracker.waiters.assign(projects, attempt, wait, gone)
        if tasks and gone.done():
            releases = [ReleaseBody(task["id"], SKIP) for task in tasks]
            await call.tracker.db.write(release_tasks, caller, releases, long=True)
        return tasks
    finally:
        gone.cancel()


@takes(Call.worker, ReleaseBody)
async def release(call: Call) -> Reply:
    """Ends the calling worker's hold on a task: done, failed or skipped.

    `updated` tells whether that changed the task. It is false for a result that still needs another worker's
    verification, and when the worker does not hold the task (any more): then nothing changes.
    """
    caller, body = call.worker(), await call.json(ReleaseBody)
    updated = await call.tracker.db.write(release_task, caller, body)
    message = None if updated else "Not held by you, or not verified by enough workers yet"
    return Reply({"updated": updated}, message=message)


@takes(Call.worker, BulkReleaseBody)
async def bulk_release(call: Call) -> Reply:
    """Releases several tasks, all or none.

    `updated` tells of each one, in their order, what `POST /task/release` would have told.
    """
    caller, most = call.worker(), call.tracker.settings.max_count
    releases = (await call.json(BulkReleaseBody)).releases
    if len(releases) > most:
        raise TrackerError("invalid", f"releases: at most {most} in one request")
    return Reply(await call.tracker.db.write(release_tasks, caller, releases, long=True))


def reset(kind: str, promise: str) -> Callable[[Call], Awaitable[Reply]]:
    """POST /project/…/{project} that changes any number of tasks, a piece at a time. `promise` is its docstring."""

    @takes(Call.session)
    async def handler(call: Call) -> Reply:
        session, project = call.session(), call.path_id("project")
        call.refuse_other_sites()
        operation = await call.tracker.db.write(begin_reset, session, project, kind)
        return Reply({"affected_tasks": await call.tracker.begin_operation(operation)})

    handler.__doc__ = promise
    return handler


@takes(Call.worker, LogBody, status=204, path={"level": LogLevel})
async def add_log(call: Call) -> Reply:
    """Logs a line.

    It always goes to the log file. From the level of the setting `log_level` on it is also kept for `GET /logs`.
    """
    caller, level = call.worker(), call.scope["path_params"]["level"]
    if level not in get_args(LogLevel):
        raise TrackerError("not_found", f"There is no log level {level!r}")
    line = await call.tracker.db.write(add_log_entry, caller, level, await call.json(LogBody))
    call.tracker.log_lines.info("%s %s", level.upper(), in_one_line(line))
    return Reply(status=204)


def in_one_line(text: str) -> str:
    """The text with its control characters and line ends spelled out: nobody can forge a line or paint a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: match[0].encode("unicode_escape").decode(), text)


@takes(None, PushBody)
async def git_receive(call: Call) -> Reply:
    """Takes a push event of GitHub, Gitea or Gogs, and sets the version of the project with that repository.

    Only pushes to a production branch count. The HMAC of the raw body under the project's webhook secret must be in
    one of the headers, with or without `sha256=` or `sha1=` in front.
    """
    signatures = {name: (call.header(name.encode()) or b"").decode("latin-1") for name in SIGNATURE_HEADERS}
    return Reply(await call.tracker.db.write(receive_push, await call.body(), signatures, long=True))


@takes(None, RegisterBody)
async def register(call: Call) -> Reply:
    """Makes a manager's account, and logs it in.

    The first manager becomes tracker admin. The others start with no rights.
    """
    call.refuse_other_sites()
    content, session = await register_account(call, await call.json(RegisterBody))
    return Reply(content, headers=[session_cookie(call, session)])


async def register_account(call: Call, body: RegisterBody) -> tuple[dict[str, Any], bytes]:
    """A new manager and its session. Hashing the password takes a moment, outside of any transaction."""
    if not body.username.isprintable() or body.username != body.username.strip():
        raise TrackerError("invalid", "username: no control characters, and no blanks at its ends")
    await call.tracker.db.write(begin_registration, client_address(call))
    password_hash = await call.tracker.hash(hash_password, body.password)
    return await call.tracker.db.write(register_manager, body.username, password_hash)


def client_address(call: Call) -> str:
    return (call.scope.get("client") or ("unknown", 0))[0]


@takes(None, LoginBody)
async def login(call: Call) -> Reply:
    """Logs a manager in.

    The answer sets the session cookie. Repeated failures make the next attempt wait.
    """
    call.refuse_other_sites()
    content, session = await log_in(call, await call.json(LoginBody))
    return Reply(content, headers=[session_cookie(call, session)])


async def log_in(call: Call, body: LoginBody) -> tuple[dict[str, Any], bytes]:
    """The manager and its new session. 401 for a wrong password or name, 429 after several."""
    address = client_address(call)
    found = await call.tracker.db.write(begin_login, body.username, address)
    if not await call.tracker.hash(password_matches, body.password, found and found[1]):
        raise TrackerError("unauthorized", "Wrong username or password")
    return await call.tracker.db.write(finish_login, found[0], body.username, address)


async def change_password(call: Call, body: PasswordForm) -> bytes:
    """A new session, the only one of the manager that is left. 401 for a wrong password, 429 after several."""
    username, stored = await call.tracker.db.write(begin_password_change, call.session())
    if not await call.tracker.hash(password_matches, body.password, stored):
        raise TrackerError("unauthorized", "password: this is not your present password")
    password_hash = await call.tracker.hash(hash_password, body.new_password)
    return await call.tracker.db.write(finish_password_change, call.session(), username, password_hash)


@takes(Call.session, status=204)
async def log_out(call: Call) -> Reply:
    """Ends the session, for every holder of its cookie."""
    session = call.session()
    call.refuse_other_sites()
    await call.tracker.db.write(logout, session)
    return Reply(status=204, headers=[session_cookie(call, None)])


@takes(Call.session)
async def account(call: Call) -> Reply:
    """Tells who is logged in."""
    content = await call.tracker.db.read(get_account, call.session())
    return Reply(content, ok=content["logged_in"])


def session_cookie(call: Call, session: bytes | None) -> tuple[bytes, bytes]:
    """The Set-Cookie header that begins or (None) ends a session in the browser."""
    settings = call.tracker.settings
    value, age = (call.tracker.signer.sign(session).decode(), int(settings.session_lifetime)) if session else ("", 0)
    return cookie_header(call, settings.cookie_name, value, age)


def cookie_header(call: Call, name: str, value: str, age: int) -> tuple[bytes, bytes]:
    """The Set-Cookie header of a cookie for `age` seconds, for this tracker alone and out of reach of scripts."""
    parts = [f"{name}={value}", f"Path={call.tracker.settings.root_path or '/'}", f"Max-Age={age}"]
    parts += ["HttpOnly", "SameSite=Lax", *(["Secure"] if call.scope.get("scheme") == "https" else [])]
    return b"set-cookie", "; ".join(parts).encode()


# ── Routes and app ────────────────────────────────────────────────────────────────────────────────────────────────────

WORKER, EITHER = Call.worker, Call.worker_or_session

# Method, path, handler. Starlette tries them in order: the ones that matter come first.
API: list[tuple[str, str, Callable[[Call], Awaitable[Reply]]]] = [
    ("GET", "/task/get/{project}", get_task),
    ("POST", "/task/release", release),
    ("POST", "/task/submit", submit),
    ("GET", "/task/get", get_task_of_several),
    ("POST", "/task/bulk_release", bulk_release),
    ("POST", "/task/bulk_submit", bulk_submit),
    ("POST", "/log/{level}", add_log),
    ("POST", "/task/log", domain(log_to_task, caller=WORKER, body=TaskLogBody)),
    ("POST", "/template/create", domain(create_template, body=TemplateBody)),
    ("POST", "/template/update/{template}", domain(update_template, "template", body=TemplateBody)),
    ("POST", "/template/delete/{template}", domain(delete_template, "template")),
    ("GET", "/template/get/{template}", domain(get_template, "template", reads=True)),
    ("GET", "/template/list/{project}", domain(list_templates, "project", reads=True)),
    ("POST", "/template/rotate_secret/{template}", domain(rotate_template_secret, "template")),
    ("POST", "/template/trigger/{template}", domain(trigger_template, "template", caller=EITHER, body=TriggerBody)),
    ("GET", "/job/get/{job}", domain(get_job, "job", caller=EITHER, reads=True)),
    ("GET", "/job/log/{job}", domain(get_job_log, "job", caller=EITHER, query=LinesQuery, reads=True)),
    ("GET", "/job/list", domain(list_jobs, caller=EITHER, query=JobsQuery, reads=True)),
    ("POST", "/job/cancel/{job}", domain(cancel, "job", caller=EITHER)),
    ("POST", "/job/retry/{job}", domain(retry, "job", caller=EITHER)),
    ("POST", "/workflow/create", domain(create_workflow, body=WorkflowBody)),
    ("POST", "/workflow/update/{workflow}", domain(update_workflow, "workflow", body=WorkflowBody)),
    ("POST", "/workflow/delete/{workflow}", domain(delete_workflow, "workflow")),
    ("GET", "/workflow/get/{workflow}", domain(get_workflow, "workflow", reads=True)),
    ("GET", "/workflow/list/{project}", domain(list_workflows, "project", reads=True)),
    ("POST", "/workflow/rotate_secret/{workflow}", domain(rotate_workflow_secret, "workflow")),
    ("POST", "/workflow/trigger/{workflow}", domain(trigger_workflow, "workflow", caller=EITHER, body=TriggerBody)),
    ("POST", "/worker/create", domain(create_worker, body=AliasBody)),
    ("GET", "/worker/get/{worker}", domain(get_worker, "worker", reads=True)),
    ("POST", "/worker/update", domain(update_worker, caller=WORKER, body=AliasBody)),
    ("POST", "/worker/set_paused", domain(set_worker_paused, body=PauseBody)),
    ("GET", "/worker/stats", domain(worker_stats, reads=True)),
    ("GET", "/project/list", domain(list_projects, reads=True)),
    ("GET", "/project/get/{project}", domain(get_project, "project", reads=True)),
    ("POST", "/project/create", domain(create_project, body=ProjectBody)),
    ("POST", "/project/update/{project}", domain(update_project, "project", body=ProjectBody)),
    ("GET", "/project/monitoring/{project}", domain(get_snapshots, "project", query=LastSnapshots, reads=True)),
    (
        "GET",
        "/project/monitoring-between/{project}",
        domain(get_snapshots_between, "project", query=SnapshotsBetween, reads=True),
    ),
    ("GET", "/project/assignees/{project}", domain(get_assignees, "project", reads=True)),
    ("POST", "/project/request_access", domain(request_access, caller=WORKER, body=AccessBody)),
    ("GET", "/project/access_list/{project}", domain(list_access, "project", reads=True)),
    ("POST", "/project/accept_request/{project}/{worker}", domain(accept_request, "project", "worker")),
    ("POST", "/project/reject_request/{project}/{worker}", domain(reject_request, "project", "worker")),
    ("GET", "/project/secret/{project}", domain(get_secret, "project", caller=EITHER)),
    ("POST", "/project/secret/{project}", domain(set_secret, "project", body=SecretBody)),
    ("GET", "/project/webhook_secret/{project}", domain(get_webhook_secret, "project", reads=True)),
    ("POST", "/project/webhook_secret/{project}", domain(set_webhook_secret, "project", body=WebhookSecretBody)),
    (
        "POST",
        "/project/reset_failed_tasks/{project}",
        reset("reset_failed", "Makes every failed task wait again, as if it had never failed."),
    ),
    (
        "POST",
        "/project/reclaim_assigned_tasks/{project}",
        reset("reclaim_assigned", "Takes every assigned task from its worker, and makes it wait again."),
    ),
    (
        "POST",
        "/project/hard_reset/{project}",
        reset("hard_reset", "Deletes every task of the project and its kept hashes. Counts none of them as closed."),
    ),
    ("POST", "/git/receivehook", git_receive),
    ("POST", "/logs", domain(list_logs, body=LogsBody, reads=True)),
    ("GET", "/logs", domain(list_logs, query=LogsBody, reads=True)),
    ("POST", "/register", register),
    ("POST", "/login", login),
    ("GET POST", "/logout", log_out),
    ("GET", "/account", account),
    ("GET", "/manager/list", domain(list_managers, reads=True)),
    ("GET", "/manager/list_for_project/{project}", domain(list_project_managers, "project", reads=True)),
    ("GET POST", "/manager/promote/{manager}", domain(promote_manager, "manager", status=204)),
    ("GET POST", "/manager/demote/{manager}", domain(demote_manager, "manager", status=204)),
    ("POST", "/manager/set_role_for_project/{project}", domain(set_role, "project", body=RoleBody)),
]


def create_app(settings: Settings | None = None, clock: Clock | None = None) -> Starlette:
    """The Starlette application of a tracker of its own. It opens its database when its lifespan begins."""
    tracker = Tracker(settings or Settings(), clock)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        await tracker.start()
        yield
        await tracker.stop()

    native = [Route(path, Endpoint(tracker, handler), methods=methods.split()) for methods, path, handler in API]
    for route in native:
        route.methods.discard("HEAD")  # Starlette adds it to GET: a HEAD must not take a task
    native.append(Route("/openapi.json", functools.partial(openapi_json, tracker), methods=["GET"]))
    import pages  # here, as the dialects are: they rest on this module

    shown = [
        Route(path, pages.endpoint(tracker, handler), methods=methods.split()) for methods, path, handler in all_pages()
    ]
    app = App(
        routes=[
            *native,
            *(route for dialect in dialects() for route in dialect.routes(tracker)),
            Route("/", home_page, methods=["GET"]),
            Route("/ui", ui_without_slash, methods=["GET"]),
            *shown,
            Mount("/ui/static", Static(directory=HERE / "static")),
            Route("/ui/{path:path}", pages.endpoint(tracker, pages.no_page), methods=["GET"]),
            Mount("/api", Router(native, redirect_slashes=False)),
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a client of an API wants an error, not a redirect that loses its body
    app.state.tracker = tracker
    app.get_task = Endpoint(tracker, get_task)
    app.posts = {"/task/release": Endpoint(tracker, release), "/task/submit": Endpoint(tracker, submit)}
    return app


async def openapi_json(tracker: Tracker, request: Request) -> Response:
    """GET /openapi.json: the JSON API as programs read about it."""
    base = Call(request.scope, request.receive, tracker).base
    document = await asyncio.to_thread(lambda: openapi.with_curl(openapi_document(tracker.settings), base))
    return Response(encode(document), media_type="application/json", headers={"X-Content-Type-Options": "nosniff"})


@functools.lru_cache(maxsize=4)
def openapi_document(settings: Settings) -> dict[str, Any]:
    return openapi.document(API, settings, __version__)


class App(Starlette):
    """Starlette with a shortcut: the three calls that make up a worker's life go straight to their endpoint.

    Middleware and the search for a route would cost them as much time as their SQL does.
    """

    get_task: Endpoint
    posts: dict[str, Endpoint]

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and (endpoint := self.hot_endpoint(scope)):
            return await endpoint(scope, receive, send)
        await super().__call__(scope, receive, send)

    def hot_endpoint(self, scope: dict) -> Endpoint | None:
        path = scope["path"]
        if scope["method"] == "POST":
            return self.posts.get(path)
        if scope["method"] == "GET" and path.startswith("/task/get/"):
            scope["path_params"] = {"project": path[10:]}
            return self.get_task
        return None


def all_pages() -> list[tuple[str, str, Callable]]:
    """The tracker's own pages, and those of the dialects that have some."""
    import pages

    return [*pages.PAGES, *(page for dialect in dialects() for page in getattr(dialect, "PAGES", ()))]


async def http_error(request: Request, error: HTTPException) -> Response:
    """Starlette's own refusals (no such path, wrong method), in the tracker's form."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid")
    message = {404: f"There is nothing at {request.url.path}", 405: f"{request.method} is not possible here"}
    reply = error_reply(TrackerError(code, message.get(error.status_code, error.detail)))
    return Response(reply.body(), error.status_code, error.headers, "application/json")


async def home_page(request: Request) -> Response:
    """GET /: JSON for programs, the manager UI for browsers."""
    if "text/html" not in request.headers.get("accept", ""):
        return Response(Reply({"name": "tracker", "version": __version__}).body(), media_type="application/json")
    return RedirectResponse(request.scope.get("root_path", "") + "/ui/", 303)


async def ui_without_slash(request: Request) -> Response:
    return RedirectResponse(request.scope.get("root_path", "") + "/ui/", 308)


class Static(StaticFiles):
    """The stylesheet and the scripts. Their addresses carry the version, so browsers may keep them."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["cache-control"] = "public, max-age=3600"
        return response


def listen_on(settings: Settings) -> socket.socket:
    """The listening socket. Refuses (start) an address or port that cannot be had, saying which."""
    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise TrackerError("start", f"{where}: cannot be listened on: {error.strerror or error}") from None


async def serve_until_stopped(
    settings: Settings, ready: Callable[[str, Server], None], clock: Clock | None = None
) -> None:
    """Runs a tracker until its server is told to stop. `ready(url, server)` is called when it accepts requests."""
    app = create_app(settings, clock)
    tracker = app.state.tracker
    await tracker.start()
    try:
        with listen_on(settings) as sock:
            server = Server(uvicorn_config(app, settings), tracker.begin_stop, settings.request_timeout)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            ready(url_of(sock), server)
            await serving
    finally:
        await tracker.stop()


# ── In-process ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def serving(settings: Settings | None = None, clock: Clock | None = None) -> Iterator[str]:
    """Serves a tracker of its own on a free port, in a background thread, and yields its URL. For tests.

    Unless the settings name a database, it is a temporary one. Their port is ignored: the URL tells which one it is.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = msgspec.structs.replace(settings or Settings(), port=0)
        if settings.database == FIELDS["database"].default:
            settings = msgspec.structs.replace(settings, database=f"{folder}/tracker.db")
        started: list[Any] = []
        signal = threading.Event()

        def ready(url: str, server: Server) -> None:
            started.extend((url, server))
            signal.set()

        def run() -> None:
            try:
                run_loop(serve_until_stopped(settings, ready, clock))
            except BaseException as error:
                started.append(error)
            finally:
                signal.set()

        thread = threading.Thread(target=run, name="tracker", daemon=True)
        thread.start()
        signal.wait()
        if isinstance(started[0], BaseException):
            raise started[0]
        try:
            yield started[0]
        finally:
            started[1].should_exit = True
            thread.join()


# ── Command line ──────────────────────────────────────────────────────────────────────────────────────────────────────


def common_options(**settings: Any) -> argparse.ArgumentParser:
    """The options that may stand before or after the command's name."""
    common = argparse.ArgumentParser(add_help=False, **settings)
    common.add_argument("--config", metavar="FILE", type=Path, help="settings (default: tracker.toml here, if any)")
    common.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    common.add_argument("--port", type=int, help="port to listen on (default: 3010)")
    common.add_argument("--database", metavar="FILE", help="the SQLite file (default: tracker.db beside the settings)")
    return common


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="tracker.py",
        description="A task tracker: hands out tasks to a crowd of workers and loses none. One process, one file.",
        epilog="Examples:\n"
        "  tracker.py                                   serve on http://127.0.0.1:3010\n"
        "  tracker.py serve --port 8000 --database /var/lib/tracker/tracker.db\n"
        "  tracker.py config                            print every setting in force and what it means\n"
        "  tracker.py create-admin alice                make an account (asks for a password)\n",
        formatter_class=formatter,
        parents=[common_options()],
    )
    top.add_argument("--version", action="version", version=f"tracker {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    later = common_options(argument_default=argparse.SUPPRESS)  # a default would hide what stood before the name
    commands.add_parser(
        "serve",
        parents=[later],
        help="run the tracker (the default)",
        description="Runs the tracker until SIGTERM or Ctrl-C. Requests in flight finish, queued writes are committed.",
    )
    commands.add_parser(
        "config",
        parents=[later],
        help="print the settings in force",
        description="Prints every setting in force, where it came from, and what it means.",
    )
    admin = commands.add_parser(
        "create-admin",
        parents=[later],
        help="make a tracker admin",
        description="Makes a manager account that is tracker admin. The password is asked for, or read from standard"
        " input when that is not a terminal. The tracker must not be running on the database.",
    )
    admin.add_argument("name", metavar="NAME", help="user name, 3 to 16 characters")
    admin.add_argument("--reset", action="store_true", help="give an existing account a new password and make it admin")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after one line that says what the user can mend."""
    options = parser().parse_args(arguments)
    default = Path("tracker.toml")
    path = options.config or (default if default.exists() else None)
    try:
        settings, sources = load_settings(path, host=options.host, port=options.port, database=options.database)
        command = {"config": print_settings, "create-admin": create_admin}.get(options.command, serve)
        command(settings, sources, options)
    except TrackerError as error:
        print(f"tracker: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def serve(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)

    def ready(url: str, server: Server) -> None:
        print(f"Tracker listening on {url}{settings.root_path}  (database {settings.database})", flush=True)

    run_loop(serve_until_stopped(settings, ready))


def print_settings(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    for name, field in FIELDS.items():
        print(f"# {field.type.extra_json_schema['description']}")
        print(f"{name} = {toml_value(getattr(settings, name))}  # {sources[name]}\n")


def toml_value(value: Any) -> str:
    """A setting's value as TOML; its strings, numbers, booleans and lists look as in JSON."""
    return msgspec.json.encode(value).decode()


def create_admin(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    try:
        password = getpass.getpass(f"Password for {options.name}: ") if sys.stdin.isatty() else sys.stdin.readline()
        body = msgspec.convert({"username": options.name, "password": password.rstrip("\r\n")}, RegisterBody)
        password_hash = hash_password(body.password)
        body.username.encode()
    except msgspec.ValidationError as error:
        raise TrackerError("invalid", "{}: {}".format(*name_and_problem(error))) from None
    except (EOFError, UnicodeError):
        raise TrackerError("invalid", "name, password: must be given, and be valid UTF-8") from None

    async def create() -> None:
        database = Database(settings, Clock())
        await database.open()
        try:
            await database.write(make_admin, body.username, password_hash, options.reset)
        finally:
            await database.close()

    asyncio.run(create())
    print(f"{options.name} is a tracker admin now.")


if __name__ == "__main__":
    from tracker import main  # the one copy of this module, which dialects import too

    sys.exit(main())
