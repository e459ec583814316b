"""All projects at once: a manager pauses them, and lets them go on.

    pause_some, resume_some: some projects in each transaction, with an act (acts.py) in each of them

Those go on that were stopped together with all the others. What was paused before for a reason of its own, or has been
paused, exported or archived since, stays so: the acts tell. (One whose acts have been forgotten is resumed by itself.)
"""

from __future__ import annotations

from typing import Annotated, Any

import acts
import shapes
import tracker
from callers import EDIT, LOGIN, Caller, needs
from tracker import Call, Native, Reply, takes
from writer import Tx

PIECE = 200  # projects in one transaction
SHOWN = 10  # names in a question

MAY_EDIT = f"(:admin OR id IN (SELECT project FROM manager_role WHERE manager = :manager AND role & {EDIT}))"
GOING_ON = f"FROM project p WHERE NOT paused AND NOT archived AND {MAY_EDIT}"
# An act names the fields that were changed as keys, or where that would be too long in a list. A text may say the same.
CHANGES = " OR ".join(
    f"""details LIKE '%"{name}":%' OR details LIKE '{{"changed":[%"{name}"%'""" for name in ("paused", "archived")
)
STOPPED = f"""
    FROM project p WHERE paused AND NOT archived AND {MAY_EDIT} AND (SELECT action FROM act
        WHERE project = p.id AND (action IN ('pause_all', 'export_project')
            OR (action = 'update_project' AND ({CHANGES})))
        ORDER BY act.id DESC LIMIT 1) = 'pause_all'
"""


def affected(paused: bool) -> str:
    """The projects (FROM … WHERE …) that all of them would be paused with, or resumed."""
    return GOING_ON if paused else STOPPED


@needs(LOGIN)
def set_some_paused(tx: Tx, caller: Caller, body: shapes.PausedBody, after: int) -> list[int]:
    """Pauses the next ones, behind one, of the projects that the manager may edit, or resumes them. Which those are."""
    values = {**caller.as_values, "after": after, "limit": PIECE}
    some = f"SELECT id {affected(body.paused)} AND id > :after ORDER BY id LIMIT :limit"
    ready = tx.all(
        f"UPDATE project SET paused = NOT paused WHERE id IN ({some})"
        " RETURNING id, waiting_task_count + awaiting_verification_count",
        values,
    )
    for project, count in ready:
        acts.record(tx, caller.manager.id, "pause_all" if body.paused else "resume_all", project)
        if not body.paused:
            tx.ready.append((project, count))
    return [project for project, _ in ready]


async def set_paused(running: tracker.Tracker, session: bytes | None, body: shapes.PausedBody) -> int:
    """Pauses all of them, or resumes them. How many those were; a crash in between leaves some as they were.

    Each has its turn once: two managers of whom one pauses all and the other one resumes all would never end else.
    """
    count = last = 0
    while some := await running.db.write(tracker.as_caller, set_some_paused, session, body, last, long=True):
        count, last = count + len(some), max(some)
    return count


@takes(
    Call.session,
    shapes.PausedBody,
    who="Any manager. It is about the projects in which the manager has the role EDIT.",
    answer={"projects": Annotated[int, shapes.about("How many projects those were.", 2)]},
)
async def set_all_paused(call: Call) -> Reply:
    """Pauses all projects, or lets those go on that this has paused.

    A project that was paused before stays paused when all go on, and so does one that somebody has paused, exported or
    archived since. Workers may release what they hold, and submit.
    """
    body = await call.json(shapes.PausedBody)
    return Reply({"projects": await set_paused(call.tracker, call.session(), body)})


@needs(LOGIN)
def find_all(tx: Tx, caller: Caller, paused: bool) -> tuple[int, list[str]]:
    """How many projects there are to be paused, or to go on, and the names of the first ones."""
    some = affected(paused)
    names = tx.all(f"SELECT name {some} ORDER BY priority DESC, name LIMIT {SHOWN}", caller.as_values)
    return tx.one(f"SELECT COUNT(*) {some}", caller.as_values)[0], [row["name"] for row in names]


def pausable(tx: Tx, caller: Caller) -> dict[str, Any]:
    """Whether there are several projects to be paused at once, and any that were."""
    if caller.manager is None:
        return {"pause": False, "resume": False}
    two = tx.one(f"SELECT COUNT(*) FROM (SELECT 1 {GOING_ON} LIMIT 2)", caller.as_values)[0]
    return {"pause": two > 1, "resume": tx.one(f"SELECT 1 {STOPPED} LIMIT 1", caller.as_values) is not None}


tracker.API.append(Native("POST", "/project/set_all_paused", set_all_paused))
