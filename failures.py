"""Why tasks fail: the last failure of each, and the groups that the reasons of those that are FAILED fall into.

    fail_task, lose_lease ─► note: a row of failure ─► the task's cause: a group of its project, by the reason's pattern
    fail, retry, delete, reset ─► Counts.blame: how many tasks of a group are FAILED now; one without any goes away

A reason is a worker's own text. What differs from one task to the next is masked in its pattern, so that what fails for
one reason is one group; a project has so many groups at most, and all further reasons share one.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Any

import budgets
from writer import Tx

MOST_REASON = 500  # characters of a reason that are kept
MOST_PATTERN = 200
MOST_CAUSES = 200  # groups of a project, besides those without a reason and for all further ones
OTHER = "…"  # the pattern of what has no group of its own
NOT_FOR_GOOD = -1  # the cause of a task that has failed, and is tried again
LOST_LEASE = "its worker did not release it in time"

# Each is linear over every text. What is alike for everybody stays: "HTTP 404" and "HTTP 503" are two reasons.
MASKED = re.compile(
    r"""(?P<kept>\b(?i:http|status|code|errno|signal)[ :=/#]{1,2}-?\d{1,3}\b(?![.\w]))
    | \b(?i:https?|ftps?|wss?|file|data|mailto):[^\s'"<>]+
    | "[^"\n]*" | “[^“”\n]*” | «[^«»\n]*» | ‘[^‘’\n]*’ | `[^`\n]*` | (?<!\w)'[^'\n]*'(?!\w)
    | \[(?=[^\]:]{0,4}:[^\]:]{0,4}:)(?=[^\]]{0,45}(?:::|[a-fA-F]))[0-9a-fA-F:.]{2,45}(?:%\w{1,16})?\]
    | (?<![\w:.])(?=[0-9a-fA-F:]{0,39}(?:::|[a-fA-F]))(?=[a-fA-F:]{0,39}\d)(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}\b
    | (?<![\w/.])(?:/[\w.~%+@-]+)+/?
    | (?<![\w.@-])[a-z0-9_-]+(?:[.@][a-z0-9_-]+)+\b(?!\.?[A-Z])
    | \b(?:0x)?[0-9a-fA-F]{8,}\b
    | \b[^\W\d]*+\d\w*+""",
    re.VERBOSE,
)
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of a terminal, for which many commands write
REPEATED = re.compile(r"…(?:[ .,:;/()-]?…)+")


def pattern_of(reason: str) -> str:
    """What a reason has in common with others: URLs, quoted text, names of hosts and files, and numbers are masked."""
    masked = MASKED.sub(lambda found: found["kept"] or OTHER, reason[:MOST_REASON])
    return REPEATED.sub(OTHER, " ".join(masked.split()))[:MOST_PATTERN]


NOTE = """
    INSERT INTO failure SELECT id, project, assignee, ?, attempt, ? FROM task WHERE id = ?
    ON CONFLICT DO UPDATE SET worker = excluded.worker, end_time = excluded.end_time, attempt = excluded.attempt,
        reason = excluded.reason
"""


def note(tx: Tx, task: Any, reason: str, for_good: bool = True) -> int:
    """Notes why the attempt of who holds the task now has failed. The task's cause: its group, if it failed for good.

    A reason that has no room counts all the same.
    """
    reason = COLOURS.sub("", reason).strip()
    kept = reason[:MOST_REASON]
    tx.execute(NOTE, (tx.time, kept if room_for(tx, task.project, kept) else "", task.id))
    return join(tx, task.project, pattern_of(reason)) if for_good else NOT_FOR_GOOD


def room_for(tx: Tx, project: int, reason: str) -> bool:
    """Whether a reason may be kept: in the budget of all of them, and in that of projects that nobody trusts."""
    if not reason:
        return True
    size = len(reason.encode())
    if budgets.used(tx, "reasons") + size > budgets.MIB * tx.settings.max_reasons:
        return tx.limits.beyond("max_reasons")
    if budgets.is_trusted(tx, project) or budgets.has_room(tx, size, project):
        return True
    return tx.limits.beyond("max_untrusted_projects")


def join(tx: Tx, project: int, pattern: str) -> int:
    """Counts one more failed task of the project in the group of a pattern, which is made if there is room for it."""
    find = "SELECT id FROM cause WHERE project = ? AND pattern = ?"
    row = tx.one(find, (project, pattern))
    if row is None:
        others = "SELECT COUNT(*) FROM cause WHERE project = ? AND pattern NOT IN ('', ?)"
        if pattern and tx.one(others, (project, OTHER))[0] >= MOST_CAUSES:
            pattern = OTHER
        row = tx.one(find, (project, pattern)) or tx.insert("cause", {"project": project, "pattern": pattern})
    tx.counts.blame(row["id"])
    return row["id"]


def last(*columns: str) -> str:
    """The SELECTed columns of the last failure of a row of `task`: NULL where there is none."""
    return ", ".join(f"(SELECT {name} FROM failure f WHERE f.task = task.id) AS {name}" for name in columns)


AS_JSON = """
    (SELECT json_object('reason', reason, 'time', end_time, 'worker', worker, 'attempt', attempt)
     FROM failure f WHERE f.task = task.id) AS failure"""


def last_failure(tx: Tx, task: int) -> sqlite3.Row | None:
    """The last failure of a task, with the alias of the worker."""
    return tx.one(
        "SELECT f.*, (SELECT alias FROM worker WHERE id = f.worker) AS alias FROM failure f WHERE task = ?", (task,)
    )


def forget(tx: Tx, tasks: Sequence[int]) -> None:
    """Forgets the failures of tasks that are closed or deleted."""
    tx.executemany("DELETE FROM failure WHERE task = ?", [(task,) for task in tasks])


def regroup(tx: Tx) -> None:
    """Counts the failed tasks of the groups anew, for who has written tasks into the file past the tracker."""
    count = "SELECT COUNT(*) FROM task WHERE project = cause.project AND status = 2 AND cause = cause.id"
    tx.execute(f"UPDATE cause SET failed_task_count = ({count})")
    tx.execute("DELETE FROM cause WHERE failed_task_count = 0")


SHOWN = """
    *, failed_task_count || ' × ' || CASE pattern WHEN '' THEN 'no reason given' WHEN '…' THEN 'other reasons'
        ELSE substr(pattern, 1, 80) END AS label"""


def count_failures(tx: Tx, project: int) -> int:
    """How many attempts have failed in a project, and leases were lost, of all time."""
    row = tx.one("SELECT failed_attempt_count + lost_lease_count FROM failure_total WHERE project = ?", (project,))
    return row[0] if row else 0


def causes(tx: Tx, project: int) -> list[sqlite3.Row]:
    """The groups of a project, those with most failed tasks first."""
    return tx.all(f"SELECT {SHOWN} FROM cause WHERE project = ? ORDER BY failed_task_count DESC, id", (project,))


def find_cause(tx: Tx, project: int, cause: int | None) -> sqlite3.Row | None:
    """A group, if it is of this project and any task is in it."""
    return tx.one(f"SELECT {SHOWN} FROM cause WHERE id = ? AND project = ?", (cause, project))
