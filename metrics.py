"""What monitors ask: GET /metrics, in Prometheus' text format, and GET /health.

    GET /metrics ─► who asks? ─► a read of the counts + Meter ─► a registry of its own ─► text, shared for a second
    GET /health  ─► one small write, shared for a second ─► 200, or 503 with the reason

Neither has a say in the state of a task. Loaded by create_app, as the pages are.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from starlette.responses import Response
from starlette.routing import Route

import tracker
from counts import COUNTED
from database import SCHEMA_VERSION, WHY_NOT
from errors import TrackerError
from faults import CannotWrite
from meter import SEEN_TIME, Distribution, Meter
from space import file_size
from tracker import Call, Reply, Tx, error_reply
from writer import save_uptime

MOST_PROJECTS = 1000  # in an answer: more would take longer to write than monitors wait
SHARED_TIME = 1.0  # seconds for which all who ask get the same
HEALTH_PATIENCE = 5.0  # seconds; a write that takes longer is as good as none

Made = TypeVar("Made")


class Shared(Generic[Made]):
    """What is made at most once a second, however many ask for it."""

    def __init__(self, make: Callable[[], Awaitable[Made]]):
        self.make = make
        self._making: asyncio.Task[Made] | None = None
        self._fresh_until = 0.0

    async def __call__(self) -> Made:
        """What has lately been made, or is being made. Whoever waits no longer leaves it to the others."""
        if self._making is None or (self._making.done() and time.monotonic() >= self._fresh_until):
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(self._made)
        return await asyncio.shield(self._making)

    async def _make(self) -> Made:
        made = await self.make()
        self._fresh_until = time.monotonic() + SHARED_TIME  # here: who looks between its end and a callback makes none
        return made

    def _made(self, task: asyncio.Task[Made]) -> None:
        if (task.cancelled() or task.exception()) and self._making is task:
            self._making = None  # who waits is told; who comes later tries again


def routes(running: tracker.Tracker) -> list[Route]:
    """The paths for monitors. Each application has counts of its own."""
    handlers = {"/metrics": Metrics(running).answer, "/health": Health(running).answer}
    return [
        Route(path, tracker.Endpoint(running, handler, MonitorCall), methods=["GET"])
        for path, handler in handlers.items()
    ]


class MonitorCall(Call):
    """A call of a monitor."""

    door = "monitor"

    async def refuse(self, error: TrackerError) -> Reply:
        reply = await super().refuse(error)
        bearer = [(b"www-authenticate", b"Bearer")] if error.code == "unauthorized" else []
        return reply._replace(headers=[*reply.headers, *bearer])


# Health


class Health:
    """Whether writes commit. One is committed for all who ask within a second."""

    def __init__(self, running: tracker.Tracker):
        self.running = running
        self.problem = Shared(self.find_problem)

    async def answer(self, call: Call) -> Reply:
        """GET /health: 200 while what workers and managers do is stored; else 503, and why not."""
        try:
            problem = await asyncio.wait_for(self.problem(), HEALTH_PATIENCE)
        except TimeoutError:
            problem = f"No write has been committed for {HEALTH_PATIENCE:g} seconds"
        if self.running.waiters.closed:
            problem = "The tracker is stopping"
        if problem:
            return error_reply(TrackerError("unavailable", problem))
        low = "The disk is nearly full: tasks, jobs and uploads are refused" if self.running.limits.disk_low else None
        return Reply(message=low)

    async def find_problem(self) -> str:
        """Why nothing can be stored; empty: it can. It stores the uptime, as an empty commit never sees the disk."""
        try:
            await self.running.db.write(save_uptime)
        except CannotWrite as error:
            return f"{error.message}: {WHY_NOT.get(error.sqlite_code, 'the log says why')}"
        except TrackerError as error:
            return error.message
        return ""


# Metrics


class Figures(NamedTuple):
    """What a scrape reads of the database."""

    projects: list[sqlite3.Row]
    workers: int
    last_task: int
    size: int
    free: int


# A project's next task is the first row of an index; all else stands in the project's row, or beside it.
PROJECTS = f"""
    SELECT id, name, paused, {", ".join(COUNTED.values())}, ifnull(f.failed_attempt_count, 0) AS failed_attempt_count,
        ifnull(f.lost_lease_count, 0) AS lost_lease_count,
        (SELECT id FROM task WHERE project = p.id AND status = 1 AND assignee IS NULL AND verifiers IS NULL
         ORDER BY priority DESC, id LIMIT 1) AS next_task
    FROM project p LEFT JOIN failure_total f ON f.project = p.id
    WHERE (:hidden OR NOT hidden) AND NOT archived ORDER BY id LIMIT {MOST_PROJECTS}
"""


def read_figures(tx: Tx, hidden: bool) -> Figures:
    """The counts as of one moment, of hidden projects only if it is said so. As many steps, however many tasks."""
    workers = tx.one("SELECT used FROM budget WHERE name = 'workers'")[0]
    last = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'task'")
    return Figures(tx.all(PROJECTS, {"hidden": hidden}), workers, last["seq"] if last else 0, *file_size(tx))


def seen_lately(tx: Tx) -> dict[int, float]:
    """The workers that were seen in the last minutes and since they registered, and how many seconds ago."""
    lately = "SELECT id, ? - last_seen FROM worker WHERE last_seen > max(created, ? - ?)"
    return dict(map(tuple, tx.all(lately, (tx.time, tx.time, SEEN_TIME))))


class Metrics:
    """The answers to scrapes: one for those who may see hidden projects, one for the others."""

    def __init__(self, running: tracker.Tracker):
        self.running, self.begun = running, False
        self.written = {hidden: Shared(functools.partial(self.write, hidden)) for hidden in (False, True)}

    async def answer(self, call: Call) -> Response:
        """GET /metrics. Hidden projects are for tracker admins alone. 401 for whoever has neither login nor token."""
        text = await self.written[await self.sees_hidden(call)]()
        return Response(text, headers=HEADERS)

    async def sees_hidden(self, call: Call) -> bool:
        """Whether the caller may see all projects. Refuses who may see none."""
        settings, session = self.running.settings, call.session()
        caller = await self.running.db.read(tracker.identify, session) if session else tracker.Caller()
        if caller.manager is not None:
            return caller.manager.tracker_admin
        if not (settings.public_metrics or is_token(settings.metrics_token, call.header(b"authorization") or b"")):
            raise TrackerError("unauthorized", NOBODY)
        return False

    async def write(self, hidden: bool) -> bytes:
        """The text, made beside the event loop: of a thousand projects it takes its time."""
        meter, db = self.running.meter, self.running.db
        if not self.begun:  # a restart is no reason to believe that everybody has gone
            meter.saw_before(await db.read(seen_lately))
            self.begun = True
        figures = await db.read(read_figures, hidden)
        meter.mark(figures.last_task)
        taken = list(families_of_meter(meter))
        return await asyncio.to_thread(written, [*families_of(figures, meter, db.wal.size()), *taken])


NOBODY = "Log in, or send the setting metrics_token as a bearer token"


def is_token(token: str, authorization: bytes) -> bool:
    """Whether the header has the token, if there is one."""
    scheme, _, given = authorization.partition(b" ")
    return bool(token) and scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


HEADERS = {
    "content-type": "text/plain; version=0.0.4; charset=utf-8",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


class Families:
    """A collector of families that are made already."""

    def __init__(self, families: list[Any]):
        self.families = families

    def collect(self) -> list[Any]:
        return self.families


def written(families: list[Any]) -> bytes:
    """The families in the text format, by a registry that has nothing else."""
    from prometheus_client import CollectorRegistry, generate_latest  # here: most trackers are never asked

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(families))
    return generate_latest(registry)


def core() -> Any:
    """The library's families."""
    import prometheus_client.core

    return prometheus_client.core


def families_of(figures: Figures, meter: Meter, wal_size: int) -> Iterator[Any]:
    """What the database says."""
    gauge, counter = core().GaugeMetricFamily, core().CounterMetricFamily
    of = ["project", "name"]
    tasks = gauge("tracker_tasks", "Tasks of a project that are not closed, by state.", labels=[*of, "state"])
    closed = counter("tracker_tasks_closed", "Tasks of a project that were closed.", labels=of)
    failed = counter("tracker_tasks_failed", "Attempts at tasks of a project that failed.", labels=of)
    lost = counter("tracker_leases_lost", "Leases of tasks that were not released in time.", labels=of)
    age = gauge(
        "tracker_waiting_age_seconds",
        "For how long at least the task that is next to be assigned is there, as far as scrapes since the start tell.",
        labels=of,
    )
    paused = gauge("tracker_project_paused", "Whether a project is paused.", labels=of)
    for row in figures.projects:
        labels = [str(row["id"]), row["name"]]
        for state, column in COUNTED.items():
            if state != "closed":
                tasks.add_metric([*labels, state], row[column])
        closed.add_metric(labels, row["closed_task_count"])
        failed.add_metric(labels, row["failed_attempt_count"])
        lost.add_metric(labels, row["lost_lease_count"])
        age.add_metric(labels, meter.age(row["next_task"]))
        paused.add_metric(labels, row["paused"])
    yield from (tasks, closed, failed, lost, age, paused)
    yield gauge("tracker_workers", "Workers that have registered.", value=figures.workers)
    yield gauge("tracker_database_bytes", "Size of the database file.", value=figures.size)
    yield gauge("tracker_database_free_bytes", "How much of it is free for what comes next.", value=figures.free)
    yield gauge("tracker_wal_bytes", "Size of the write-ahead log beside it.", value=wal_size)


def families_of_meter(meter: Meter) -> Iterator[Any]:
    """What was counted in memory."""
    gauge, counter = core().GaugeMetricFamily, core().CounterMetricFamily
    build = gauge("tracker_build_info", "What runs.", labels=["version", "schema", "python", "sqlite"])
    build.add_metric([tracker.__version__, str(SCHEMA_VERSION), sys.version.split()[0], sqlite3.sqlite_version], 1)
    yield build
    seen = f"Workers that were seen in the last {SEEN_TIME:g} seconds."
    yield gauge("tracker_workers_seen", seen, value=meter.workers_seen)
    requests = counter(
        "tracker_requests",
        "Answers, by the class of their route (hot calls by their path) and status.",
        labels=["route", "status"],
    )
    for route, statuses in sorted(meter.answers.items()):
        for status, count in sorted(statuses.items()):
            requests.add_metric([route, str(status)], count)
    yield requests
    yield histogram("tracker_commit_seconds", "How long commits took, with their fsync.", meter.commit_seconds)
    yield histogram("tracker_batch_calls", "How many calls a commit was for.", meter.batch_calls)


def histogram(name: str, about: str, distribution: Distribution) -> Any:
    from prometheus_client.utils import floatToGoString

    buckets = [(floatToGoString(bound), count) for bound, count in distribution.cumulated()]
    return core().HistogramMetricFamily(name, about, buckets=buckets, sum_value=distribution.sum)
