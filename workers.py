"""What managers do to workers: an admin's new name for one, and its end; the end of a pause in a project.

    begin_removal (its secret opens nothing any more) ─► put_back, some tasks at a time ─► remove_worker: the row goes

What it has done stays done: the counts of projects, the history of tasks and jobs and its log lines name its number.
Its name, its place in rankings and its access go. A crash in between leaves a paused worker, to be deleted once more.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import pauses
import shapes
import tracker
from callers import ADMIN, MAINTENANCE, SEES, Caller, needs
from errors import TrackerError, encode
from searching import few
from tracker import Call, Native, Reply, takes
from writer import Tx


@needs(ADMIN, acts=True)
def rename_worker(tx: Tx, caller: Caller, worker: int, body: shapes.AliasBody) -> None:
    """Gives a worker another name. (It can do so itself, and `worker.py --alias` does.)"""
    tracker.get_worker(tx, caller, worker)
    tx.execute("UPDATE worker SET alias = ? WHERE id = ?", (tracker.clean_alias(tx, body.alias), worker))


@needs(ADMIN)
def worker_to_delete(tx: Tx, caller: Caller, worker: int) -> sqlite3.Row:
    """The worker. 404 if there is none, 409 for one that another system's agent is."""
    row = tx.one("SELECT id, alias, closed_task_count FROM worker WHERE id = ?", (worker,))
    if row is None:
        raise TrackerError("not_found", f"No worker {worker}")
    if any(worker in needed(tx) for needed in tracker.hooks("needed_workers")):
        raise TrackerError("conflict", f"Worker {worker} is an agent of another system: delete that one", "worker")
    return row


def begin_removal(tx: Tx, caller: Caller, worker: int) -> None:
    """From this commit on nobody can come as the worker, and it is assigned nothing."""
    worker_to_delete(tx, caller, worker)
    tx.execute("UPDATE worker SET paused = 1, secret_hash = randomblob(32) WHERE id = ?", (worker,))


@needs(ADMIN, acts=True)
def remove_worker(tx: Tx, caller: Caller, worker: int) -> None:
    """Deletes a worker that holds nothing."""
    for row in tx.all("SELECT project FROM tally WHERE worker = ? AND pause_uptime IS NOT NULL", (worker,)):
        pauses.end_pause(tx, row["project"], worker)
    tx.execute("DELETE FROM worker WHERE id = ?", (worker,))


def put_back(tx: Tx, caller: Caller, worker: int) -> bool:
    """Puts back some of the tasks that the worker holds. At last it deletes it: whether that is done."""
    row = worker_to_delete(tx, caller, worker)
    held = (
        "SELECT id, recipe FROM task WHERE project = :project AND assignee = :worker AND assignee IS NOT NULL LIMIT 50"
    )
    while not tx.time_is_up():
        tx.counts.write(tx)
        holds = "SELECT project FROM tally WHERE worker = ? AND held_task_count > 0 LIMIT 1"
        if (tally := tx.one(holds, (row["id"],))) is None:
            remove_worker(tx, caller, row["id"])
            return True
        tasks = few(tx, held, {"project": tally["project"], "worker": row["id"]})
        if not tracker.requeue_tasks(tx, tracker.THESE, {"tasks": encode(tasks).decode()}):
            raise TrackerError("internal", f"Worker {worker} holds a task that is not there")
    return False


async def delete(running: tracker.Tracker, session: bytes | None, worker: int) -> None:
    """Deletes a worker. What it holds goes back first."""
    await running.db.write(tracker.as_caller, begin_removal, session, worker)
    while not await running.db.write(tracker.as_caller, put_back, session, worker, long=True):
        pass


@takes(Call.session, status=204, who=worker_to_delete.need)
async def delete_worker(call: Call) -> Reply:
    """Deletes a worker. The tasks that it holds wait for others.

    Its name, access and place in rankings are gone; what it has closed stays closed and counted in the projects, and
    histories and logs go on naming its number.
    """
    await delete(call.tracker, call.session(), call.path_id("worker"))
    return Reply(status=204)


@needs(ADMIN)
def delete_page(tx: Tx, caller: Caller, worker: int) -> dict[str, Any]:
    """What goes with a worker that is deleted."""
    held = "SELECT ifnull(SUM(held_task_count), 0) FROM tally WHERE worker = ?"
    return {"worker": worker_to_delete(tx, caller, worker), "held": tx.one(held, (worker,))[0]}


async def delete_by_form(visit: Any) -> Any:
    """POST …/delete of a worker's page."""
    await delete(visit.tracker, visit.session(), visit.path_id("worker"))
    return visit.see("/ui/workers", "The worker is deleted. What it held waits for others.")


@needs(SEES)
def list_paused_workers(tx: Tx, caller: Caller, project: sqlite3.Row) -> list[shapes.PausedWorker]:
    """Who has failed one task after the other in a project, and gets none there for now: a hundred of them at most."""
    return [tracker.shaped(shapes.PausedWorker, row) for row in pauses.paused_workers(tx, project["id"])]


@needs(MAINTENANCE, acts=True)
def resume_worker(tx: Tx, caller: Caller, project: sqlite3.Row, worker: int) -> None:
    """Ends the pause of a worker that has failed one task after the other in the project. One without is left alone."""
    if not tx.one("SELECT 1 FROM worker WHERE id = ?", (worker,)):
        raise TrackerError("not_found", f"No worker {worker}")
    if pauses.end_pause(tx, project["id"], worker):
        tx.ready.append((project["id"], 1))  # if it waits


tracker.API += [
    Native("GET", "/project/paused_workers/{project}", list_paused_workers, "workers"),
    Native("POST", "/project/resume_worker/{project}/{worker}", resume_worker),
    Native("POST", "/worker/rename/{worker}", rename_worker),
    Native("POST", "/worker/delete/{worker}", delete_worker),
]
