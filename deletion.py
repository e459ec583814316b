"""A project that is deleted: from the first commit on it is not there, and what was in it goes in bounded pieces.

    tracker.begin_deletion ─► begin: no row of the project any more, so no door finds it; an operation
    its steps ─► step: uploads, tasks, live jobs (cancelled), what dialects have (project_gone), jobs, the rest

Each step takes the first thing of this order that there still is; nothing new comes, as whatever is stored in a project
looks for it first. A crash loses nothing: the operation goes on at the next start.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

import acts
import tracker
from errors import TrackerError
from writer import Tx

PIECES = 16  # of uploads, which may be large, in one step
MOST_REMEMBERED = 100  # deletions of one manager that have ended
LIVE_JOBS = """
    SELECT * FROM job WHERE project = :project AND state IN ('waiting', 'assigned') ORDER BY id LIMIT :limit
"""
HOURS = """
    WITH RECURSIVE hours (hour) AS (
        SELECT min(hour) FROM tally_hour
        UNION ALL SELECT (SELECT min(t.hour) FROM tally_hour t WHERE t.hour > h.hour) FROM hours h WHERE hour NOT NULL)
    SELECT hour FROM hours
"""
# What is left: a table, what tells its rows apart, and further conditions. History that no index leads to goes by age.
REST = (
    ("snapshot", "project, time_stamp", ""),
    ("log_entry", "id", ""),
    ("push", "id", ""),
    ("assignment", "id", "AND outcome IN ('failed', 'expired')"),
    ("verifier_set", "id", ""),
    ("verifier_block", "project, level, block", "AND level = 0"),
    ("tally_hour", "hour, project, worker", f"AND hour IN ({HOURS})"),
    ("tally", "project, worker", ""),
    ("failure_total", "project", ""),  # as a tally, it may have been counted just now
    ("worker_access", "project, worker", ""),
    ("manager_role", "project, manager", ""),
    ("act", "id", ""),
    ("template", "id", "AND deleted IS NOT NULL"),  # as all of them are
    ("workflow", "id", "AND deleted IS NOT NULL"),
    ("operation", "id", "AND finished IS NOT NULL"),  # an upload that still arrives ends by itself
)


class Gone(msgspec.Struct):
    """What is to be known of a project when it is not there any more."""

    name: str
    size: int  # bytes that it had of the budget, which are free at the end


def may_delete(caller: tracker.Caller, project: sqlite3.Row) -> bool:
    """Whether a manager may delete the project: an admin; with all roles its maker, or where no admin trusts it."""
    own = not project["trusted"] or project["creator"] == caller.manager.id
    return caller.manager.tracker_admin or (own and caller.role(project["id"]) == tracker.ALL_ROLES)


def projects_of(tx: Tx, manager: int) -> list[sqlite3.Row]:
    """The projects that no admin trusts and in which this manager alone has a role."""
    return tx.all(
        "SELECT p.* FROM manager_role r JOIN project p ON p.id = r.project WHERE r.manager = ?1 AND NOT p.trusted"
        " AND NOT EXISTS (SELECT 1 FROM manager_role WHERE project = p.id AND manager <> ?1)",
        (manager,),
    )


def delete_projects_of(tx: Tx, caller: tracker.Caller, manager: int) -> list[int]:
    """Begins to delete the projects that go with a manager. The operations."""
    return [begin(tx, caller, project) for project in projects_of(tx, manager)]


def begin(tx: Tx, caller: tracker.Caller, project: sqlite3.Row) -> int:
    """Takes a project away, and begins to delete what is in it. The operation. 403 for who may not."""
    if not may_delete(caller, project):
        raise TrackerError("forbidden", "Only a tracker admin may delete this project")
    gone = Gone(project["name"], project["size"])
    for table in "template", "workflow":  # their jobs need them until they are gone
        tx.execute(f"UPDATE {table} SET deleted = ? WHERE project = ? AND deleted IS NULL", (tx.time, project["id"]))
    tx.execute("UPDATE project SET chain = NULL WHERE chain = ?", (project["id"],))
    gone.size = tx.one("DELETE FROM project WHERE id = ? RETURNING size", (project["id"],))["size"]
    hold_size(tx, gone.size)
    acts.record(tx, caller.manager.id, "delete_project", None, id=project["id"], name=project["name"])
    tx.ready.append((project["id"], tracker.INT64_MAX))  # who waits for a task of it learns that now
    forget_oldest(tx, caller.manager.id)
    expected = sum(tracker.count_in_state(project, state) for state in tracker.TASK_STATES)
    wanted = tracker.encode(gone).decode()
    return tracker.insert_operation(
        tx, "delete_project", project["id"], caller.manager.id, wanted=wanted, expected=expected
    )


def forget_oldest(tx: Tx, manager: int) -> None:
    """Forgets deletions that have ended, but the manager's last ones: no project is there that they could weigh in."""
    ended = (
        "SELECT id FROM operation WHERE manager = ? AND kind = 'delete_project' AND finished IS NOT NULL"
        " ORDER BY id DESC LIMIT -1 OFFSET ?"
    )
    tx.execute(f"DELETE FROM operation WHERE id IN ({ended})", (manager, MOST_REMEMBERED))


def hold_size(tx: Tx, size: int) -> None:
    """Projects that nobody trusts count until all of them is gone."""
    tx.execute("UPDATE budget SET used = used + ? WHERE name = 'projects'", (size,))


def step(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    """Deletes some of what is left. How many tasks those were, and None when nothing is left."""
    project = operation["project"]
    if discard_uploads(tx, project):
        return 0, 0
    tasks, more = tracker.step_hard_reset(tx, {**operation, "last_task": tracker.INT64_MAX, "cursor": 0})
    if more is not None:
        return tasks, 0
    if stop_jobs(tx, project) or any(gone(tx, project) for gone in tracker.hooks("project_gone")):
        return 0, 0
    if delete_jobs(tx, project) or delete_rest(tx, project):
        return 0, 0
    hold_size(tx, -msgspec.json.decode(operation["wanted"], type=Gone).size)
    return 0, None


def discard_uploads(tx: Tx, project: int) -> int:
    """Deletes some pieces of bulk submits and uploads, whose operations then find that there is nothing more to do."""
    some = (
        "SELECT b.operation, b.number FROM operation o JOIN bulk_piece b ON b.operation = o.id WHERE o.project = ?"
        " LIMIT ?"
    )
    return tx.execute(f"DELETE FROM bulk_piece WHERE (operation, number) IN ({some})", (project, PIECES)).rowcount


def stop_jobs(tx: Tx, project: int) -> int:
    """Cancels some jobs that have no task: runs of workflows, also those whose steps are elsewhere. How many."""
    rows = tx.all(LIVE_JOBS, {"project": project, "limit": tracker.STEP_TASKS})
    for row in rows:
        job = tracker.find_job(tx, row["token"])
        if job["finished"] is None:  # it may have ended with another one
            tracker.stop_job(tx, job, "the deletion of its project")
    return len(rows)


def delete_jobs(tx: Tx, project: int) -> int:
    """Deletes some jobs that have ended, or some lines of their logs. How many it has looked at."""
    rows = tx.all("SELECT id FROM job WHERE project = ? ORDER BY id LIMIT ?", (project, tracker.STEP_TASKS))
    for number, row in enumerate(rows, 1):
        tracker.delete_job(tx, row["id"])
        if tx.time_is_up():
            return number
    return len(rows)


EDGES = """
    SELECT e.workflow, e.template, e.ending, e.target FROM workflow w JOIN workflow_edge e ON e.workflow = w.id
    WHERE w.project = :project AND w.deleted IS NOT NULL LIMIT :limit
"""


def delete_rest(tx: Tx, project: int) -> int:
    """Deletes some rows of the first table that has any. How many."""
    values = {"project": project, "limit": tracker.PIECE_TASKS}
    edges = tx.execute(f"DELETE FROM workflow_edge WHERE (workflow, template, ending, target) IN ({EDGES})", values)
    if edges.rowcount:  # there may be very many of one workflow
        return edges.rowcount
    for table, key, condition in REST:
        if table == "tally":
            tx.counts.write(tx)  # else they would make it anew
        some = f"SELECT {key} FROM {table} WHERE project = :project {condition} LIMIT :limit"
        if deleted := tx.execute(f"DELETE FROM {table} WHERE ({key}) IN ({some})", values).rowcount:
            return deleted
    return 0
