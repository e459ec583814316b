"""The one writer, with group commit: calls wait in a queue, and share a transaction and its fsync.

    WriteQueue.put ─► a batch ─► Committer: BEGIN IMMEDIATE, each call, the counts, COMMIT ─► each caller is told

A call is a function `(tx, *args)` and its arguments; one that fails undoes only what it has done itself. Nothing here
knows a task: the transaction (Tx) has a clock and settings because the functions want them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sqlite3
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import aiosqlite

from clock import BACK
from counts import Counts
from errors import TrackerError
from faults import cannot_write, is_of_the_file, primary_code
from limits import Limits
from meter import Meter
from turns import SHARE, Turns

log = logging.getLogger("tracker")

UPTIME_INTERVAL = 1.0  # seconds; a crash makes leases at most this much longer


def nobody_waits() -> float:
    """For how long others leave a transaction its turn, in seconds."""
    return math.inf  # beside the class: one made in a transaction would know it, and both be garbage in a cycle


class Tx:
    """An open transaction: `execute`, one instant (`time`, `uptime`), the settings, what the commit announces."""

    __slots__ = (
        "clock",
        "counts",
        "execute",
        "executemany",
        "guest",
        "limits",
        "looked",
        "now",
        "ready",
        "seen",
        "settings",
        "time",
        "turn",
        "uptime",
    )

    STEP_SECONDS = 0.01  # then a long operation takes no further step: about as long as an assignment has to wait

    def __init__(self, connection: sqlite3.Connection, clock: Any, settings: Any, limits: Limits | None = None):
        self.clock = clock
        self.limits = limits or Limits(settings, clock.uptime)
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.now = clock.time()
        self.time = int(self.now)
        self.uptime = clock.uptime()
        self.settings = settings
        self.counts = Counts()
        self.guest = ""  # whose network a call is from that counts to its share of a budget
        self.looked = 0  # rows that searches have looked at
        self.seen: set[int] = set()  # workers whose last_seen is due
        self.ready: list[tuple[int, int]] = []  # (project, number of its tasks that became ready)
        self.turn: Callable[[], float] = nobody_waits

    @property
    def trusted_time(self) -> int:
        """The unix time by which a login ends: that of a clock which is wrong ends none, and makes none endless."""
        return int(self.clock.trusted_unix())

    def before(self, seconds: float) -> float:
        """What was noted before this (unix time) is older than so many seconds for certain: retention goes by it."""
        return self.clock.before(seconds)

    @property
    def future(self) -> float:
        """What is noted as of after this was noted by a clock that was wrong; infinite while this one may be."""
        return self.now + BACK if self.clock.trusted else math.inf

    def ages(self, seconds: float) -> dict[str, float]:
        """For a statement: `before`; `certain`, before which no clock in doubt has noted anything since then; `now`."""
        return {"before": self.before(seconds), "certain": self.clock.certain(seconds), "now": self.now}

    def spent(self) -> float:
        """How long this transaction has been going on, in seconds: long operations stop in time for others."""
        return self.clock.uptime() - self.uptime

    def time_is_up(self) -> bool:
        """Whether a long operation takes no further step in this transaction."""
        return self.spent() >= min(self.STEP_SECONDS, self.turn())

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        return self.execute(sql, parameters).fetchone()

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        return self.execute(sql, parameters).fetchall()

    def insert(self, table: str, columns: Mapping[str, Any]) -> sqlite3.Row:
        """Stores a row with these values by the names of their columns. The row as it is then."""
        names, values = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        return self.one(f"INSERT INTO {table} ({names}) VALUES ({values}) RETURNING *", columns)


class ThreadedConnection(aiosqlite.Connection):
    """An SQLite connection with a thread of its own, on which whole functions can be run: one crossing for each."""

    stopped: asyncio.Future | None = None

    async def __aenter__(self) -> aiosqlite.Connection:
        """Opens it. If it cannot be, its thread has ended before that is said: it would tell a loop that is no more."""
        try:
            return await super().__aenter__()
        except BaseException:
            if self.stopped:
                await self.stopped
            raise

    def stop(self) -> asyncio.Future | None:
        self.stopped = super().stop()
        return self.stopped

    @property
    def connection(self) -> sqlite3.Connection:
        return self._conn

    async def run(self, function: Callable, *args: Any) -> Any:
        return await self._execute(function, *args)

    def begin(self, function: Callable, *args: Any) -> asyncio.Future:
        """The same at once, without a task: it is done when the thread has done it. ValueError when that has ended."""
        if not self._running:
            raise ValueError("Connection closed")
        future = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((future, functools.partial(function, *args)))
        return future


# One call


class Told(Protocol):
    """Who is told the outcome of a call: a future, or what answers by itself."""

    def done(self) -> bool:
        """Whether nobody wants it any more."""

    def set_result(self, result: Any) -> None: ...

    def set_exception(self, error: Exception) -> None: ...


class Write(NamedTuple):
    """A call that waits for the writer."""

    told: Told
    function: Callable
    args: tuple
    first: bool = False  # it goes before the others


Outcome = tuple[Any, Exception | None]  # how a call ended: with a result, or with the error that its caller gets


def together(plain: Callable[[Tx, list[tuple]], list]) -> Callable[[Callable], Callable]:
    """Declares that `plain(tx, calls)` carries out several calls of the function in one go: those of a batch.

    It is given the arguments of each, and returns the results of those that are as most are, and None for each that is
    to be carried out by itself: all that will be refused, too.
    """

    def note(function: Callable) -> Callable:
        function.together = plain
        return function

    return note


class HalfDone(Exception):
    """A call has failed after it had changed something, which nothing but the end of the transaction can undo."""

    def __init__(self, kind: Any = None):
        self.kind = kind


def kind_of(call: Write) -> Any:
    """What calls have in common that do the same for different callers: the code of what is called for somebody."""
    function = next(filter(callable, call.args), call.function)
    return getattr(function, "__code__", function)


def run_plainly(tx: Tx, connection: sqlite3.Connection, call: Write) -> Outcome:
    """Runs a call that will succeed, or fail before it has changed (and counted) anything. HalfDone if not so."""
    announced, changes = len(tx.ready), connection.total_changes
    try:
        return call.function(tx, *call.args), None
    except Exception as error:
        outcome = failed(tx, connection, error, announced)
        if connection.total_changes != changes:
            raise HalfDone(kind_of(call)) from None
        return outcome


def run_together(tx: Tx, connection: sqlite3.Connection, plain: Callable, calls: list[Write]) -> list[Any]:
    """The results of those of several calls that could be carried out in one go. HalfDone if that has failed."""
    try:
        return plain(tx, [call.args for call in calls])
    except Exception as error:
        let_go(error)
        if not connection.in_transaction:
            raise  # SQLite gave up (disk full, say)
        raise HalfDone from None


def run_isolated(tx: Tx, connection: sqlite3.Connection, call: Write) -> Outcome:
    """Runs a call of which nothing remains if it fails. The savepoint costs as much as two statements."""
    tx.counts.write(tx)  # those of the calls before it, which stay
    announced = len(tx.ready)
    connection.execute("SAVEPOINT call")
    try:
        outcome = call.function(tx, *call.args), None
        tx.counts.write(tx)
    except Exception as error:
        outcome = failed(tx, connection, error, announced)
        tx.counts.forget()
        connection.execute("ROLLBACK TO call")
    connection.execute("RELEASE call")
    return outcome


def failed(tx: Tx, connection: sqlite3.Connection, error: Exception, announced: int) -> Outcome:
    """How a call ended that has raised: nothing of it is announced. Raises what has ended the whole transaction."""
    let_go(error)
    if not connection.in_transaction:
        raise error  # SQLite gave up (disk full, say)
    del tx.ready[announced:]
    return None, answer_to(error)


def let_go(error: BaseException | None) -> None:
    """Lets go of what the functions hold that an exception has come through.

    A SELECT that was not read to its end keeps a connection in the transaction in which it began, whatever is
    committed, and an exception may keep that for as long as the garbage collector likes: no news would be seen till
    then.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def answer_to(error: Exception) -> Exception:
    """What the caller of a call gets that raised this."""
    if is_of_the_file(error):
        return cannot_write(error)
    if isinstance(error, TrackerError):  # nobody asks where it was raised, which would hold this batch in a circle
        return error.with_traceback(None)
    return RuntimeError("StopIteration") if isinstance(error, StopIteration) else error  # no future takes that one


def save_uptime(tx: Tx) -> None:
    """Keeps what the next run goes on from: the uptime, and what is known of the clock."""
    tx.execute("UPDATE meta SET value = ? WHERE key = 'uptime'", (tx.uptime,))
    tx.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (tx.clock.known(),))


# One commit


def by_kind(batch: list[Write]) -> dict[Callable | None, list[Write]]:
    """The calls by what carries them out together; None: nothing does."""
    kinds: dict[Callable | None, list[Write]] = {}
    for call in batch:
        kinds.setdefault(getattr(call.function, "together", None), []).append(call)
    return kinds


class Committed(NamedTuple):
    """What became of a batch's calls, those for which there was no time, and what is to be announced."""

    done: list[tuple[Write, Outcome]]
    left: list[Write]
    ready: list[tuple[int, int]]
    tx: Tx | None = None  # in which they were done


class Committer:
    """Carries out batches of calls, each batch in one transaction, on the one connection that writes."""

    BATCH_TIME = 0.02  # seconds of the event loop that one batch may take; the rest goes into the next one
    OTHERS_TIME = 0.001  # the same for a batch of calls that do not go first, while such come
    STILL_COME = 0.1  # seconds after which no other is expected
    FEWEST_TOGETHER = 3  # calls: fewer are quicker one by one
    CAREFUL = 60.0  # seconds for which calls have savepoints of which one has failed half way
    LOCK_PATIENCE = 5.0  # seconds to wait for another program that holds the file (somebody's sqlite3 shell)

    def __init__(
        self,
        writer: ThreadedConnection,
        clock: Any,
        settings: Any,
        turn: Callable[[], float],
        limits: Limits | None = None,
        meter: Meter | None = None,
    ):
        self.meter = meter or Meter()
        self.writer, self.clock, self.settings, self.turn = writer, clock, settings, turn
        self.limits = limits or Limits(settings, clock.uptime)
        self.connection = writer.connection
        self.half_done: dict[Any, float] = {}  # kinds of calls of which one has failed half way: until when it counts
        self.first_came = -math.inf
        self.after_commit: Callable[[], None] = lambda: None
        self.uptime_saved = math.inf  # until it has been loaded

    async def commit(self, batch: list[Write], on_thread: bool) -> Committed:
        """Commits a batch. While another program holds the file, nothing has happened yet, and the loop goes on."""
        if getattr(batch[0].function, "outside", False):
            return await self.run_outside(batch[0])
        ends = time.monotonic() + self.LOCK_PATIENCE
        while True:
            try:
                return await self.try_to_commit(batch, on_thread)
            except sqlite3.OperationalError as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                    raise
                await asyncio.sleep(0.05)

    async def try_to_commit(self, batch: list[Write], on_thread: bool) -> Committed:
        """Runs a batch in one transaction. Only the COMMIT, with its fsync, always crosses to the writer's thread.

        Short statements take less time than the crossing, and on another thread each of them would wait for the
        interpreter lock while the event loop is busy.
        """
        changes = self.connection.total_changes
        try:
            done = await self.writer.run(self.run_batch, batch) if on_thread else self.run_batch(batch)
            began = time.monotonic()
            await self.writer.run(self.connection.execute, "COMMIT")
            if self.connection.total_changes != changes:  # else there was nothing to be stored, and no fsync
                self.meter.committed(time.monotonic() - began, len(done.done), done.tx.counts.ended, done.tx.seen)
            self.limits.taken.clear()
            self.after_commit()
            return done
        except BaseException:
            self.limits.give_back()
            if self.connection.in_transaction:
                await self.writer.run(self.connection.execute, "ROLLBACK")
            raise

    async def run_outside(self, call: Write) -> Committed:
        """Runs a call that is for the file, and not a part of any transaction."""
        try:
            outcome = await self.writer.run(call.function, self.connection, *call.args), None
        except sqlite3.Error as error:
            outcome = None, cannot_write(error)
        return Committed([(call, outcome)], [], [])

    def run_batch(self, batch: list[Write]) -> Committed:
        """Runs a batch in a transaction. Savepoints are for the rare one in which a call fails after it has written.

        Others of its kind have one from the start for a while: whoever makes them fail has a batch run twice but once.
        """
        try:
            return self.run_in_turn(batch, run_plainly)
        except HalfDone as half:
            now = time.monotonic()
            self.half_done = {kind: ends for kind, ends in self.half_done.items() if ends > now}
            if half.kind is not None:
                self.half_done[half.kind] = now + self.CAREFUL
            self.connection.execute("ROLLBACK")
            self.limits.give_back()
            return self.run_in_turn(batch, run_isolated)

    def run_in_turn(self, batch: list[Write], run: Callable) -> Committed:
        """Runs calls in a new transaction until its time is up: first those that go first, then some of the others.

        Those that can be carried out together are: they are concurrent, as no caller has heard of another's outcome.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        self.limits.taken.clear()
        tx = Tx(self.connection, self.clock, self.settings, self.limits)
        committed = Committed([], [], [], tx)
        tx.turn, tx.ready, began = self.turn, committed.ready, time.monotonic()
        if first := [call for call in batch if call.first]:
            self.first_came = began
            self.run_calls(tx, first, run, committed, began + self.BATCH_TIME)
        if len(first) < len(batch):
            now = time.monotonic()
            others = [call for call in batch if not call.first] if first else batch
            self.run_calls(tx, others, run, committed, now + self.time_of_others(bool(first), began, now))
        tx.counts.write(tx)
        self.note_passing(tx)
        return committed

    def time_of_others(self, first: bool, began: float, now: float) -> float:
        """Seconds: a part of what those have taken that went first in this batch; little, while such come."""
        if first:
            return (now - began) / SHARE
        return self.OTHERS_TIME if now < self.first_came + self.STILL_COME else self.BATCH_TIME

    def run_calls(self, tx: Tx, batch: list[Write], run: Callable, committed: Committed, ends: float) -> None:
        """Runs those of a batch, until then; at least one of each kind."""
        for plain, calls in by_kind(batch).items():
            if plain and len(calls) >= self.FEWEST_TOGETHER and run is run_plainly:
                results = run_together(tx, self.connection, plain, calls)
                pairs = list(zip(calls, results, strict=True))
                committed.done.extend((call, (result, None)) for call, result in pairs if result is not None)
                calls = [call for call, result in pairs if result is None]
            for number, call in enumerate(calls):
                if number and time.monotonic() > ends:
                    committed.left.extend(calls[number:])
                    break
                if tx.counts.many or not getattr(call.function, "reads_no_counts", False):
                    tx.counts.write(tx)
                careful = self.half_done and self.half_done.get(kind_of(call), 0.0) > time.monotonic()
                committed.done.append((call, (run_isolated if careful else run)(tx, self.connection, call)))

    def note_passing(self, tx: Tx) -> None:
        """Stores what goes with every transaction: who was seen, and the uptime on which leases and limiters rest.

        Here, because it must outlast a refusal, and must not make a refusal undo the batch.
        """
        if tx.seen:
            tx.executemany("UPDATE worker SET last_seen = ? WHERE id = ?", [(tx.time, worker) for worker in tx.seen])
        if tx.uptime - self.uptime_saved >= UPTIME_INTERVAL:
            save_uptime(tx)
            self.uptime_saved = tx.uptime


# The queue, and what its callers are told


NOT_STARTED = "The tracker has not been started: whatever serves its application must run the lifespan, too"


class WriteQueue:
    """Calls that wait to be committed, in batches, by a task of their own; each caller is told the outcome of its call.

    The task is watched. Should a fault of ours end it, then that is logged, whoever waits for it is refused, and
    `failed` is done: a tracker that only seems to live would be worse than one that stops.
    """

    MOST_BATCHED = 256

    failed: asyncio.Future[BaseException]

    def __init__(self, announce: Callable[[int, int], None], turns: Turns | None = None):
        self.announce, self.turns = announce, turns or Turns()
        self.first: list[Write] = []
        self.short: list[Write] = []
        self.long: list[Write] = []
        self.in_hand: list[Write] = []
        self.short_time = 0.0  # seconds that the last batch of short calls took
        self.wanted = asyncio.Event()
        self.closed, self.refusal = True, NOT_STARTED  # until begin

    def begin(self, commit: Callable[[list[Write], bool], Awaitable[Committed]]) -> None:
        """Takes in calls from now on."""
        self.commit, self.closed, self.refusal = commit, False, "The tracker is stopping"
        self.failed = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self.write_batches())
        self.task.add_done_callback(self.task_ended)

    def put(self, told: Told, function: Callable, args: tuple, long: bool = False, first: bool = False) -> None:
        """Queues a call. One that goes `first` does so before others that are not, and before what is no call."""
        if self.closed:
            raise TrackerError("unavailable", self.refusal)
        if first:
            self.turns.urgent = True
        (self.first if first else self.long if long else self.short).append(Write(told, function, args, first))
        self.wanted.set()

    def put_outside(self, told: Told, function: Callable) -> None:
        """Queues a call of one that runs outside of any transaction (see wal.py): before the other long ones."""
        if self.closed:
            raise TrackerError("unavailable", self.refusal)
        self.long.insert(0, Write(told, function, ()))
        self.wanted.set()

    async def close(self) -> None:
        """Takes in nothing else, and returns when what was queued is committed."""
        self.closed = True
        self.wanted.set()
        await asyncio.wait([self.task])

    async def write_batches(self) -> None:
        """The task: a batch of short calls, then one long call, as long as there are any; then it waits for more."""
        while self.first or self.short or self.long or not self.closed:
            await self.wanted.wait()
            self.wanted.clear()
            while self.first or self.short or self.long:
                await self.arrivals()
                if self.first or self.short:
                    began = time.monotonic()
                    await self.write_batch([*self.take(self.first), *self.take(self.short)])
                    self.short_time = time.monotonic() - began
                await self.write_batch(self.take(self.long, 1), on_thread=True)

    def turn(self) -> float:
        """Seconds that a long call may take: while short ones wait, no more than the last batch of them took.

        So whoever waits for a lone request waits little longer, and under load both kinds have half of the time.
        """
        return self.short_time if self.first or self.short else math.inf

    async def arrivals(self) -> None:
        """Lets the event loop take in what has arrived, until nothing more does: fewer commits serve more calls."""
        waiting = -1
        while waiting < len(self.first) + len(self.short) < self.MOST_BATCHED:
            waiting = len(self.first) + len(self.short)
            await asyncio.sleep(0)

    def take(self, queue: list[Write], most: int = MOST_BATCHED) -> list[Write]:
        """The first calls of a queue, which they leave: of those whose callers still want them."""
        taken = [call for call in queue[:most] if not call.told.done()]
        del queue[:most]
        return taken

    async def write_batch(self, batch: list[Write], on_thread: bool = False) -> None:
        """Commits calls; then says what came of them."""
        if not batch:
            return
        self.in_hand = batch
        try:
            committed = await self.commit(batch, on_thread)
        except Exception as error:
            outcome = None, error if isinstance(error, TrackerError) else cannot_write(error)
            committed = Committed([(call, outcome) for call in batch], [], [])
        if committed.left:
            self.first[:0] = [call for call in committed.left if call.first]
            self.short[:0] = [call for call in committed.left if not call.first]
        for call, outcome in committed.done:
            if call.first:
                self.tell(call.told, *outcome)
            else:
                self.turns.queue(functools.partial(self.tell_in_turn, call.told, *outcome))
        for project, count in committed.ready:
            self.announce_safely(project, count)
        if self.turns.urgent and not self.first:
            self.turns.calm()

    def tell_in_turn(self, told: Told, result: Any, error: Exception | None, until: float) -> bool:
        """A turn. Who awaits it may make anything of it; what answers by itself does no more than that."""
        self.tell(told, result, error)
        if isinstance(told, asyncio.Future):
            self.turns.begin()
        return False

    def tell(self, told: Told, result: Any, error: Exception | None) -> None:
        """It is on disk, or undone, whatever becomes of those who wait for it."""
        if told.done():
            return  # its caller waits no longer
        try:
            told.set_result(result) if error is None else told.set_exception(error)
        except Exception:
            log.exception("The outcome of a call could not be told")

    def announce_safely(self, project: int, count: int) -> None:
        """The tasks are ready and on disk, whatever becomes of those who wait for them."""
        try:
            self.announce(project, count)
        except Exception:
            log.exception("Workers that wait for tasks of project %d could not be told", project)

    def task_ended(self, task: asyncio.Task) -> None:
        """Watches the task: when it has ended otherwise than by a close, nobody may go on waiting for it."""
        if not task.cancelled() and not task.exception():
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        log.critical("The writer has ended: nothing is stored any more", exc_info=error)
        self.closed = True
        for call in (*self.in_hand, *self.first, *self.short, *self.long):
            self.tell(call.told, None, TrackerError("unavailable", "The tracker stops because of a fault"))
        self.failed.set_result(error)
