"""Lines that workers log: which are kept, and which a caller may read. Also what managers did (acts.py), to be read.

    a worker's line ─► store_log_entry (has it room?) ─► log_entry ─► query_logs: those that the caller may read

Nothing here knows a task. The lines of jobs are jobs' own.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

import budgets
import shapes
from callers import ADMIN, READ, Caller, logged_in, needs, sees_chain
from errors import TrackerError, encode, shaped
from shapes import INT64_MAX
from writer import Tx

LEVELS = {"fatal": 1, "panic": 2, "error": 3, "warn": 4, "info": 5, "debug": 6, "trace": 7}
LEVEL_NAMES = {number: name for name, number in LEVELS.items()}
MOST_LOG_ENTRIES = 1000
MOST_LOG_TEXT = 2**21  # characters after which a page of log entries ends; `before` continues it


def store_log_entry(
    tx: Tx, worker: int, source: str, entry: shapes.TaskEntry, task: int | None, project: int | None
) -> bool:
    """Stores a worker's line, unless too many have come from there, or there is no room for it. Whether it did."""
    size = budgets.line_size(entry.scope, entry.message)
    if not tx.limits.passes_line(worker, source, size) or not budgets.room_for_line(tx, worker, size):
        return False
    tx.execute(
        "INSERT INTO log_entry (received, time, level, scope, message, worker, task, project)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (tx.time, entry.timestamp, LEVELS[entry.level], entry.scope, entry.message, worker, task, project),
    )
    return True


def only_project(tx: Tx, worker: int) -> int | None:
    """The project of a line that names no task: the only one of which the worker holds tasks.

    Most existing clients name none, and their managers want to see a project's log all the same.
    """
    rows = tx.all("SELECT project FROM tally WHERE worker = ? AND held_task_count > 0 LIMIT 2", (worker,))
    return rows[0]["project"] if len(rows) == 1 else None


# The lines that the caller may read: a manager those of the projects in which it has READ; with public_logs everybody
# all but those of hidden projects. Lines of no project are for admins otherwise.
READABLE_LINES = """(:admin OR project IN (SELECT project FROM manager_role WHERE manager = :manager AND role & 1)
    OR :public AND NOT EXISTS (SELECT 1 FROM project p WHERE p.id = log_entry.project AND p.hidden))"""


def log_reader(tx: Tx, caller: Caller) -> dict[str, Any]:
    """The parameters of READABLE_LINES. 401 for somebody who is not logged in, unless the settings open the logs."""
    if not tx.settings.public_logs:
        logged_in(caller)
    return {**caller.as_values, "public": tx.settings.public_logs}


def list_logs(tx: Tx, caller: Caller, body: shapes.LogsBody) -> list[shapes.LogEntry]:
    """Log entries that the caller may read, the newest first."""
    return query_logs(tx, caller, body)


def query_logs(tx: Tx, caller: Caller, body: shapes.LogsQuery) -> list[shapes.LogEntry]:
    """Log entries that the caller may read, the newest first."""
    reader = log_reader(tx, caller)
    if body.level is None and body.max_level is None:
        raise TrackerError("invalid", "is required", "level")
    levels = [body.level] if body.level else range(1, 1 + (body.max_level or 0))
    # Where a line stands that the caller may not read tells when it was logged.
    place = f"SELECT time, id FROM log_entry WHERE id = :before AND {READABLE_LINES}"
    before = tx.one(place, {**reader, "before": body.before}) if body.before else (INT64_MAX, INT64_MAX)
    if before is None:
        raise TrackerError("not_found", f"no log entry {body.before}", "before")
    bounds = {"since": body.since or 0, "time": before[0], "id": before[1], "limit": body.limit}
    cursors = newest_lines(tx, reader, levels, bounds)
    logs, size = [], 0
    for row in heapq.merge(*cursors, key=lambda row: (row["time"], row["id"]), reverse=True):
        data = {"scope": row["scope"], "worker": f"{row['alias']} ({row['worker']})"}
        logs.append(shaped(shapes.LogEntry, row, timestamp=row["time"], data=encode(data).decode()))
        size += len(row["message"])
        if len(logs) == body.limit or size > MOST_LOG_TEXT:
            break
    return logs


def newest_lines(
    tx: Tx, reader: dict[str, Any], levels: Iterable[int], bounds: dict[str, int]
) -> list[Iterator[sqlite3.Row]]:
    """The lines that the reader may see: several ranges of an index, each in order already, and bounded."""
    select = (
        "SELECT log_entry.*, (SELECT alias FROM worker WHERE id = log_entry.worker) AS alias FROM log_entry"
        " WHERE {} AND level = :level AND time > :since AND (time, id) < (:time, :id)"
        " ORDER BY time DESC, id DESC LIMIT :limit"
    )
    if reader["admin"] or reader["public"]:
        return [tx.execute(select.format(READABLE_LINES), {**reader, **bounds, "level": level}) for level in levels]
    own = "SELECT project FROM manager_role WHERE manager = :manager AND role & 1"
    return [
        tx.execute(select.format("project = :project"), {**bounds, "project": row["project"], "level": level})
        for row in tx.all(own, reader)
        for level in levels
    ]


# What managers did

ACTS = "SELECT * FROM act WHERE {of} AND id < ? ORDER BY id DESC LIMIT ?"


@needs(READ)
def list_acts(tx: Tx, caller: Caller, project: sqlite3.Row, query: shapes.ActsQuery) -> list[shapes.Act]:
    """What managers did in the project, the newest first."""
    return acts_of(tx, caller, tx.all(ACTS.format(of="project = ?"), (project["id"], query.before, query.limit)))


@needs(ADMIN)
def list_all_acts(tx: Tx, caller: Caller, query: shapes.ActsQuery) -> list[shapes.Act]:
    """What managers did in all projects, also in those that are gone, and to the tracker itself: the newest first."""
    return acts_of(tx, caller, tx.all(ACTS.format(of="TRUE"), (query.before, query.limit)))


def acts_of(tx: Tx, caller: Caller, rows: Iterable[sqlite3.Row]) -> list[shapes.Act]:
    return [shaped(shapes.Act, row, details=act_details(tx, caller, row)) for row in rows]


def act_details(tx: Tx, caller: Caller, act: sqlite3.Row) -> dict[str, Any]:
    """With what it was done, as the caller may know it: to which hidden project one was chained is not for all."""
    details = msgspec.json.decode(act["details"])
    of = {"id": act["project"], "chain": details.get("chain")}
    return details if sees_chain(tx, caller, of) else {**details, "chain": "…"}
