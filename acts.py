"""What managers do: kept in the same transaction, to be read by those who may read the project.

    @needs(EDIT, acts=True) ─► the function ─► note ─► record ─► act: who, when, what, with what

Where a function is declared it says that it is an act: that is the one place for the next one. What has no @needs calls
`record` itself. No secret, script or other long text is among what is kept: only that it was changed.

Each project has so many acts, or a few more, and all of them together have so many bytes: beyond, the oldest in
projects that no admin trusts go first, so that nobody pushes out what was done in other people's projects.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from errors import encode
from writer import Tx

MOST_ACTS = 1000  # of one project, and of what is of none
TRIM_EVERY = 32  # acts: the place of the oldest that may stay is found by going through all that do
MOST_TEXT = 100  # characters of a text that are kept
MOST_DETAILS = 1000  # of all that an act was done with
SHOWN_TEXTS = frozenset(
    ("name", "username", "alias", "client", "version", "git_repo", "clone_url", "motd", "action", "kind", "from")
)
KEEP = """
    INSERT INTO act (time, project, manager, username, action, details, stranger)
    SELECT ?, ?, id, username, ?, ?, NOT tracker_admin AND NOT EXISTS (SELECT 1 FROM project WHERE id = ? AND trusted)
    FROM manager WHERE id = ?
"""
FORGET_OF_PROJECT = """
    DELETE FROM act WHERE id IN (
        SELECT id FROM act WHERE project IS ?1 AND (project IS NOT NULL OR stranger = ?2)
        ORDER BY id DESC LIMIT 100 OFFSET ?3)
"""
LAST_PAUSE = """
    SELECT action FROM act WHERE project = ? AND (action = 'pause_all' OR details = '{"paused":true}')
    ORDER BY id DESC LIMIT 1
"""
FORGET_OLDEST = "DELETE FROM act WHERE id IN (SELECT id FROM act {which} ORDER BY id LIMIT 20)"


def record(tx: Tx, manager: int, action: str, project: int | None, /, **details: Any) -> None:
    """Keeps what a manager does: in a project, or (None) of the tracker itself. What is too long is cut."""
    text = encode(details).decode()
    if len(text) > MOST_DETAILS:
        text = encode({"changed": list(details)[:20]}).decode()[:MOST_DETAILS]
    row = tx.execute(KEEP + " RETURNING id, stranger", (tx.time, project, action, text, project, manager)).fetchone()
    if row is None:
        return
    if row["id"] % TRIM_EVERY == 0:
        tx.execute(FORGET_OF_PROJECT, (project, row["stranger"], MOST_ACTS))
    most, used = tx.settings.max_acts << 20, "SELECT used FROM budget WHERE name = 'acts'"
    while tx.one(used)[0] > most:
        if not any(tx.execute(FORGET_OLDEST.format(which=which)).rowcount for which in ("WHERE stranger", "")):
            return


def note(
    tx: Tx, manager: int, action: str, names: Sequence[str], row: sqlite3.Row | None, args: Sequence[Any], made: Any
) -> None:
    """Keeps what a function has done that was declared to be an act: with what it was about, and its arguments."""
    details, project, old = {}, None, {}
    if row is not None:
        is_project = "project" not in row.keys()  # noqa: SIM118 a row has no names otherwise
        project = row["id"] if is_project else row["project"]
        old = row if is_project else {}
        details = {} if is_project else {"id": row["id"], "name": shown("name", row["name"])}
    for name, value in zip(names, args, strict=False):
        details |= given(value, old) if isinstance(value, msgspec.Struct) else {name: shown(name, value)}
    if action == "create_project":
        project = made
    elif project is None and isinstance(details.get("project"), int):
        project = details.pop("project")
    if action == "update_project" and not details and pauses_again(tx, project, *args):
        details = {"paused": True}
    if action != "update_project" or details:  # what was sent as it was is no change
        record(tx, manager, action, project, **details)


def pauses_again(tx: Tx, project: int, body: msgspec.Struct) -> bool:
    """Whether somebody pauses, and does nothing else, what was paused with all others: it does not go on with them."""
    said = {name: getattr(body, name) for name in body.__struct_fields__}
    if {name: value for name, value in said.items() if value is not msgspec.UNSET} != {"paused": True}:
        return False
    last = tx.one(LAST_PAUSE, (project,))
    return last is not None and last["action"] == "pause_all"


def given(body: msgspec.Struct, old: Any) -> dict[str, Any]:
    """What a body says, or of a project (`old`) what it changes."""
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    known = old.keys() if isinstance(old, sqlite3.Row) else ()
    return {
        name: shown(name, value)
        for name, value in fields.items()
        if value is not msgspec.UNSET and not (name in known and (old[name] or None) == (value or None))
    }


def shown(name: str, value: Any) -> Any:
    """What is kept of a value: a number, or a short text that is no secret; of anything else that it was given."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and name in SHOWN_TEXTS:
        return value if len(value) <= MOST_TEXT else value[: MOST_TEXT - 1] + "…"
    return "…" if value else None
