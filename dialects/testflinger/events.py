"""How this dialect follows the jobs of its queues, whichever door they came through and go through.

Beside every job of a queue, but for the runs of workflows, stands a row of testflinger_job. `job_event` keeps it in
step, in the transaction in which the core changes the job; `catch_up` makes good what has happened to jobs while the
folder dialects/ was not there. And what of it is the core's business: whose a job is, what must not become of it.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from sqlite3 import Row
from typing import Any

from starlette.responses import Response

import tracker
from dialects.testflinger.domain import LIVE, agent_worker, find_file
from dialects.testflinger.files import files_of
from tracker import JOB_MOVES, TrackerError, Tx

SHOWN = {"waiting": "waiting", "assigned": "running", "cancelled": "cancelled"}  # any other end is complete


def job_event(tx: Tx, event: str, job: Row) -> None:
    """Something has happened to a job. That of an ordinary project costs one look-up."""
    if event == "made":
        note_job(tx, job)
    elif event == "deleted":
        tx.execute("DELETE FROM testflinger_job WHERE job = ?", (job["id"],))
    elif event == "set_priority":
        tx.execute("UPDATE testflinger_job SET priority = ? WHERE job = ?", (job["priority"], job["id"]))
    else:
        if event in JOB_MOVES and JOB_MOVES[event].to == "waiting":
            end_attempt(tx, job["id"])
        follow_state(tx, job)


JOB_SIZE = 1000  # bytes that a job takes besides its definition, with its indexes


def note_job(tx: Tx, job: Row) -> None:
    """A job was made. One that repeats another is for the same agents, with the same attachments and secrets."""
    if job["workflow"] is not None:
        return
    token = job["token"]
    uuid = f"{token[:8]}-{token[8:12]}-4{token[12:15]}-8{token[15:18]}-{token[18:]}000000"
    values = {"job": job["id"], "uuid": uuid, **{name: job[name] for name in ("project", "priority", "retry_of")}}
    values["size"] = JOB_SIZE + 3 * len(job["recipe"].encode())  # its task has it too, and tags are rows
    noted = tx.execute(
        "INSERT INTO testflinger_job (job, uuid, project, priority, size)"
        " SELECT :job, :uuid, project, :priority, :size FROM testflinger_queue WHERE project = :project",
        values,
    )
    if noted.rowcount and job["retry_of"] is not None:
        for copy in COPIES:
            tx.execute(copy, values)


COPIES = (
    """
    UPDATE testflinger_job SET (attachments, attachments_of, client, secret) =
        (iif(o.attachments = 'waiting', 'none', o.attachments), o.attachments_of, o.client, o.secret)
    FROM testflinger_job o WHERE testflinger_job.job = :job AND o.job = :retry_of
    """,
    "INSERT INTO testflinger_tag SELECT tag, :job FROM testflinger_tag WHERE job = :retry_of",
    "INSERT INTO testflinger_exclusion SELECT :job, agent FROM testflinger_exclusion WHERE job = :retry_of",
)


def end_attempt(tx: Tx, job_id: int) -> None:
    """An agent has lost the job. What it reported must neither judge the next attempt nor take the numbers of its
    output.
    """
    lost = "UPDATE testflinger_job SET agent = NULL WHERE job = ? AND agent IS NOT NULL RETURNING uuid"
    for (uuid,) in tx.all(lost, (job_id,)):
        tx.execute("DELETE FROM testflinger_outcome WHERE uuid = ?", (uuid,))


def follow_state(tx: Tx, job: Row, shown: str | None = None) -> None:
    """Shows the state that the job has now, unless another one is `shown` for it: a phase that its agent told."""
    waited = None if job["started"] is None else max(0.0, job["started"] - job["created"])  # the clock may be set back
    # A template says how long its jobs are kept: those have no `finished` here.
    finished = job["finished"] if job["template"] is None else None
    change = "UPDATE testflinger_job SET state = ?, delayed = ?, wait = ifnull(wait, ?), finished = ? WHERE job = ?"
    state = shown or SHOWN.get(job["state"], "complete")
    tx.execute(change, (state, job["delayed"], waited, finished, job["id"]))


# ── What was missed ───────────────────────────────────────────────────────────────────────────────────────────────────

PIECE_ROWS = 500  # that one transaction looks at


async def catch_up(running: tracker.Tracker) -> None:
    """Brings all rows in step with the jobs as they are now."""
    for step in (compare_jobs, note_missed):
        after: int | None = 0
        while after is not None:
            after = await running.db.write(step, after, long=True)


def compare_jobs(tx: Tx, after: int) -> int | None:
    """Looks at the next rows: is the job still there, and what it is shown as? The row after which to go on."""
    rows = tx.all(
        "SELECT t.job, t.state AS shown_state, t.agent, j.id, j.state FROM testflinger_job t"
        " LEFT JOIN job j ON j.id = t.job WHERE t.job > ? ORDER BY t.job LIMIT ?",
        (after, PIECE_ROWS),
    )
    for row in rows:
        if row["id"] is None:
            tx.execute("DELETE FROM testflinger_job WHERE job = ?", (row["job"],))
        elif row["state"] in tracker.LIVE_STATES or row["shown_state"] in LIVE:
            compare(tx, row, tx.one("SELECT * FROM job WHERE id = ?", (row["id"],)))
    return rows[-1]["job"] if len(rows) == PIECE_ROWS else None


def compare(tx: Tx, row: Row, job: Row) -> None:
    """Brings the row of a job in step that is live, or was when it was last looked at."""
    job_event(tx, "set_priority", job)
    same = row["shown_state"] in {"waiting": ("waiting",), "assigned": LIVE - {"waiting"}}.get(job["state"], ())
    # The job's present attempt, or its last one, may be somebody else's; None: the agent has had no worker yet.
    if row["agent"] is not None and (
        job["assignee"] is None or agent_worker(tx, row["agent"] or None) not in (None, job["assignee"])
    ):
        end_attempt(tx, job["id"])
        same = False
    follow_state(tx, job, row["shown_state"] if same else None)


def note_missed(tx: Tx, project: int) -> int | None:
    """Makes rows for jobs that were made meanwhile, of one queue after another. That with which to go on.

    The jobs of a queue that were noted have lower ids than those that were not.
    """
    queue = tx.one("SELECT project FROM testflinger_queue WHERE project >= ? ORDER BY project LIMIT 1", (project,))
    if queue is None:
        return None
    rows = tx.all(
        "SELECT * FROM job WHERE project = ?1 AND workflow IS NULL"
        " AND id > (SELECT ifnull(max(job), 0) FROM testflinger_job WHERE project = ?1) ORDER BY id LIMIT ?2",
        (queue["project"], PIECE_ROWS),
    )
    for job in rows:
        note_job(tx, job)
        follow_state(tx, job)
    return queue["project"] + (len(rows) < PIECE_ROWS)


# ── What the core asks ────────────────────────────────────────────────────────────────────────────────────────────────


def check_project(tx: Tx, project: Row, fields: dict[str, Any]) -> None:
    """Refuses another name for a queue."""
    if fields["name"] != project["name"] and is_queue(tx, project["id"]):
        raise TrackerError(
            "conflict", "a Testflinger queue keeps its name: its agents and clients know it by that", "name"
        )


def is_queue(tx: Tx, project: int) -> bool:
    return tx.one("SELECT 1 FROM testflinger_queue WHERE project = ?", (project,)) is not None


def check_retry(tx: Tx, job: Row) -> None:
    """Refuses to repeat a job that could not even be begun."""
    if tx.one("SELECT 1 FROM testflinger_job WHERE job = ? AND attachments = 'waiting'", (job["id"],)):
        raise TrackerError("conflict", "its attachments have never come; please submit it again", "job")


def attachments(tx: Tx, job: Row) -> Callable[[tracker.Tracker], Awaitable[Response | None]] | None:
    """How to send the job's attachments. None: it has none."""
    row = tx.one("SELECT uuid FROM testflinger_job WHERE job = ? AND attachments = 'complete'", (job["id"],))
    return row and functools.partial(send_attachments, find_file(tx, row["uuid"], "attachments"))


async def send_attachments(file: Row | None, running: tracker.Tracker) -> Response | None:
    return file and await files_of(running.settings).send(file["name"])


def client_of(tx: Tx, job: Row) -> str | None:
    """Which client made the job, where that is known. The job that a manager repeats is the manager's."""
    row = tx.one("SELECT client FROM testflinger_job WHERE job = ?", (job["id"],))
    return f"client {row['client']}" if row and row["client"] else None
