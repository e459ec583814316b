"""Workers that fail one task after the other in a project are paused there, lest a broken one eat the queue.

    Counts.write ─► pause_failing: as many failures in a row as pause_after_failures ─► tally.pause_uptime
    assign ─► pause_of ─► nothing until then; afterwards one task on trial, which begins the pause anew
    a task that is closed or verified ─► no failures in a row: the pause is over

The project counts those that have a pause: where there is none, an assignment does not look for it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from typing import Any

log = logging.getLogger("tracker")

PAUSE = 600.0  # seconds
NEVER = 2**62  # failures

SELECT_FAILING = """
    SELECT failures_in_row, pause_uptime FROM tally WHERE project = ? AND worker = ? AND failures_in_row >= ?
"""
COUNT_PAUSED = """
    UPDATE project SET paused_worker_count =
        (SELECT COUNT(*) FROM tally t WHERE t.project = project.id AND pause_uptime IS NOT NULL)
"""


def pause_failing(tx: Any, failed: Iterable[tuple[int, int, int]]) -> None:
    """Pauses those who have failed too many tasks in a row by now: of a project, a worker, so many just now."""
    most = tx.settings.pause_after_failures
    for project, worker, count in failed if most else ():
        row = tx.one(SELECT_FAILING, (project, worker, most))
        # When it has come to that just now, or what it had on trial has failed.
        if row and (row["failures_in_row"] - count < most or (row["pause_uptime"] or 0) <= tx.uptime):
            begin_pause(tx, project, worker)
            tx.execute(f"{COUNT_PAUSED} WHERE id = ?", (project,))
            said = "Worker %d fails one task after the other in project %d: it gets none there for %d minutes"
            log.warning(said, worker, project, PAUSE // 60)


def begin_pause(tx: Any, project: int, worker: int) -> None:
    change = "UPDATE tally SET pause_uptime = ? WHERE project = ? AND worker = ?"
    tx.execute(change, (tx.uptime + PAUSE, project, worker))


def pause_of(tx: Any, project: int, worker: int) -> float | None:
    """The uptime until which the worker is paused in the project: one that has passed lets it have a task on trial."""
    row = tx.one(SELECT_FAILING, (project, worker, tx.settings.pause_after_failures or NEVER))
    return row and row["pause_uptime"]


def give_trial_back(tx: Any, project: int, worker: int, task: int) -> None:
    """The worker has not heard of a task that it holds: if it has it on trial, its trial is still to come."""
    trial = "pause_uptime = (SELECT assigned_uptime + ? FROM task WHERE id = ?)"
    change = f"UPDATE tally SET pause_uptime = ? WHERE project = ? AND worker = ? AND {trial}"
    tx.execute(change, (tx.uptime, project, worker, PAUSE, task))


def end_pause(tx: Any, project: int, worker: int) -> bool:
    """The worker gets tasks again as if it had failed none. Whether it was paused."""
    change = "UPDATE tally SET failures_in_row = 0, pause_uptime = NULL WHERE project = ? AND worker = ?"
    ended = tx.execute(f"{change} AND pause_uptime IS NOT NULL", (project, worker)).rowcount
    tx.execute(f"{COUNT_PAUSED} WHERE id = ?", (project,))
    return bool(ended)


def forget_pauses(tx: Any) -> None:
    """Forgets the pauses that are over, and those of workers that are gone."""
    over = "UPDATE tally SET pause_uptime = NULL WHERE pause_uptime IS NOT NULL AND failures_in_row < ?"
    some = "SELECT id FROM project WHERE paused_worker_count > 0"
    tx.execute(f"{over} AND project IN ({some})", (tx.settings.pause_after_failures or NEVER,))
    tx.execute(f"{COUNT_PAUSED} WHERE paused_worker_count > 0")


def paused_workers(tx: Any, project: int) -> list[sqlite3.Row]:
    """Who is paused in a project: alias, failures in a row, and until when; at most a hundred."""
    return tx.all(
        "SELECT w.id, w.alias, t.failures_in_row, max(0, t.pause_uptime - ?) AS left FROM tally t"
        " JOIN worker w ON w.id = t.worker"
        " WHERE t.project = ? AND t.pause_uptime IS NOT NULL AND t.failures_in_row >= ? ORDER BY t.worker LIMIT 100",
        (tx.uptime, project, tx.settings.pause_after_failures or NEVER),
    )
