"""The log of a job: lines of those who do it, and the tracker's own (worker 0).

    a worker's lines ─► add_job_lines (is there room?) ─► job_line ─► job_log: the next ones, in the order logged
                              └─► counted in the job ─► tell_what_was_dropped, once there is room or something happens

How much may be logged is in budgets.py; what happens to a job, in tracker.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

import budgets
import shapes
from logs import LEVELS, MOST_LOG_TEXT
from writer import Tx

LINE_SIZE = 32  # characters that a line counts besides its text: empty ones take room, too
INSERT_LINE = "INSERT INTO job_line (job, number, time, level, scope, message, worker) VALUES (?, ?, ?, ?, ?, ?, ?)"


def add_job_lines(tx: Tx, job: sqlite3.Row, worker: int, entries: Sequence[shapes.TaskEntry], source: str = "") -> int:
    """Adds a worker's lines to a job's log, whatever their level, until the log is full. How many were stored.

    `source`: the address from which they come, where the worker may be one that nobody has granted access.
    """
    if is_log_full(tx, job) or budgets.drops_job_lines(tx, job, entries, worker, source):
        return 0
    most, size, warned = 1024 * tx.settings.max_job_log, job["log_size"], False
    first = number = tell_what_was_dropped(tx, job) or job["line_count"]
    for entry in entries:
        if size >= most:
            break
        number, size = number + 1, size + len(entry.message) + len(entry.scope) + LINE_SIZE
        level = LEVELS[entry.level]
        warned = warned or level <= LEVELS["warn"]
        line = (job["id"], number, entry.timestamp, level, entry.scope, entry.message, worker)
        tx.execute(INSERT_LINE, line)
    tx.execute(
        "UPDATE job SET line_count = ?, log_size = ?, warned = warned OR ?, updated = ? WHERE id = ?",
        (number, size, warned, tx.now, job["id"]),
    )
    if size >= most > job["log_size"]:
        add_job_line(tx, job["id"], f"the log is full ({most // 1024:,} KiB): further lines are dropped", "error")
    return number - first


def is_log_full(tx: Tx, job: sqlite3.Row) -> bool:
    """Whether no further line of a worker is stored."""
    return job["log_size"] >= 1024 * tx.settings.max_job_log


def what_drops(tx: Tx, job: sqlite3.Row) -> str | UnsetType:
    """The setting by which the last lines of a job, of which none was stored, were dropped though its log has room."""
    return UNSET if is_log_full(tx, job) else tx.one("SELECT dropped_by FROM job WHERE id = ?", (job["id"],))[0]


def tell_what_was_dropped(tx: Tx, job: sqlite3.Row) -> int:
    """Adds a line to a job's log that says how many were dropped there, if some were: its number."""
    if not job["dropped_count"]:
        return 0
    tx.execute("UPDATE job SET dropped_count = 0 WHERE id = ?", (job["id"],))
    dropped = f"lines dropped here: {job['dropped_count']:,} (setting {job['dropped_by']})"
    return add_job_line(tx, job["id"], dropped, "warn")


def add_job_line(tx: Tx, job: int, message: str, level: str = "info") -> int:
    """The tracker's own line in a job's log: its number."""
    row = tx.one(
        "UPDATE job SET line_count = line_count + 1, warned = warned OR ? WHERE id = ? RETURNING line_count",
        (LEVELS[level] <= LEVELS["warn"], job),
    )
    tx.execute(INSERT_LINE, (job, row["line_count"], tx.time, LEVELS[level], "tracker", message, 0))
    return row["line_count"]


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
