"""The queues of the Testflinger dialect: functions (tx, …) that know no HTTP.

A queue is a project that this dialect has made. All other projects are closed to it: what anybody may do here must not
feed a project that managers guard.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Row
from typing import Any, Literal

import budgets
import tracker
from limits import LAST_PART
from tracker import Raw, TrackerError, Tx, encode

MOST_QUEUES = 1000
LONG_PIECE = 2**19  # characters of what agents say about queues that are read at once
OF_A_QUEUE = {"hidden": True}  # the settings of its project that are not those of others: managers grant who sees it
QUEUE = "SELECT q.*, p.name, p.paused, p.assign_rate, p.assign_free_uptime FROM project p JOIN testflinger_queue q ON"


class Unprocessable(TrackerError):
    """A value that is well formed and yet cannot be: the field, what is wrong with it, and where. Status 422."""

    def __init__(self, field: str, problem: str, where: Literal["json", "query"] = "json"):
        super().__init__("invalid", problem, field)
        self.where = where


MOST = {"testflinger": "testflinger_max_data", "files": "testflinger_max_files"}  # budgets, and their settings


@contextlib.contextmanager
def counted(tx: Tx, guest: str | None) -> Iterator[None]:
    """What is stored meanwhile counts to this network, for as long as it may be kept. None: to nobody."""
    if guest is None:
        yield
        return
    before, tx.guest = {name: budgets.used(tx, name) for name in MOST}, guest
    try:
        yield
    finally:
        tx.guest = ""
    for name, used in before.items():
        if (more := budgets.used(tx, name) - used) > 0:
            tx.limits.guests[name].take(guest, more)


def room_in(tx: Tx, name: Literal["testflinger", "files"]) -> int:
    """How many bytes more the budget has for who calls.

    The last part is for those with credentials, and for networks of which no more than such a part has come: one
    stranger leaves room for others.
    """
    most = budgets.MIB * getattr(tx.settings, MOST[name])
    kept_for_others = most // LAST_PART if tx.limits.guests[name].delay(tx.guest) > 0 else 0
    return most - kept_for_others - budgets.used(tx, name)


def is_full(tx: Tx) -> bool:
    """Whether what was brought takes as much of the database as it may; that is counted as one more that was not taken.

    Looked at before what comes: so there may be one body too much.
    """
    return room_in(tx, "testflinger") <= 0 and not tx.limits.beyond("testflinger_max_data")


def check_room(tx: Tx) -> None:
    """Refuses (503) what is to be stored when it is full."""
    if is_full(tx):
        problem = "There is no room for more of Testflinger's until older jobs go (setting testflinger_max_data)"
        raise TrackerError("unavailable", problem)


def find_queue(tx: Tx, name: str) -> Row | None:
    """The queue of that name. None also for a project that is no queue."""
    return tx.one(f"{QUEUE} q.project = p.id WHERE p.name = ?", (name,))


def all_queues(tx: Tx) -> list[Row]:
    """Every queue, by name."""
    return tx.all(f"{QUEUE} q.project = p.id ORDER BY p.name")


def make_queue(tx: Tx, name: str, field: str = "job_queue", maker: str | None = None) -> int:
    """The project of the queue, which is made if there is none of that name.

    A contributor may make so many; so may a network (@NETWORK) without credentials, once half of all queues are taken.

    Refuses the name of an ordinary project: what anybody may do here must not feed a project that managers guard. One
    that no admin trusts gives its name up: anybody can have made it, to keep others from the queue.
    """
    old = tx.one(
        "SELECT p.id, p.trusted, q.project FROM project p LEFT JOIN testflinger_queue q ON q.project = p.id"
        " WHERE p.name = ?",
        (name,),
    )
    if old is None or not old["trusted"]:
        if not name.strip() or len(name) > 200:
            raise Unprocessable(field, "the name of a queue has 1 to 200 characters, and not only spaces")
        count = tx.one("SELECT COUNT(*) FROM testflinger_queue")[0]
        if count >= MOST_QUEUES:
            full = f"no queue {name!r}, and no further one: there are {MOST_QUEUES:,} (unused ones go by themselves)"
            raise Unprocessable(field, full)
        most = tx.settings.testflinger_client_queues
        scarce = count >= MOST_QUEUES // 2 or not (maker or "").startswith("@")
        if scarce and tx.one("SELECT COUNT(*) FROM testflinger_queue WHERE client = ?", (maker,))[0] >= most:
            full = f"no queue {name!r}, and no further one of {maker}: it has made {most:,}"
            raise Unprocessable(field, tx.limits.refusal("testflinger_client_queues", full).problem)
        budgets.claim_name(tx, name, trusted=True)
        project = tracker.insert_project(tx, {"name": name, **OF_A_QUEUE})
        tx.execute("INSERT INTO testflinger_queue (project, client) VALUES (?, ?)", (project, maker))
        return project
    if old["project"] is None:
        raise Unprocessable(field, f"{name!r} is the name of a project of the tracker that is no Testflinger queue")
    return old["id"]


def advertise_queues(tx: Tx, queues: dict[str, str], maker: str | None = None) -> None:
    """Notes which queues there are, and what agents say about them. Refuses what cannot be, where all of it cannot."""
    for name, project in made_queues(tx, queues, "queues", maker):
        change = "UPDATE testflinger_queue SET description = ?, advertised = ? WHERE project = ?"
        tx.execute(change, (queues[name], tx.time, project))


def made_queues(tx: Tx, names: Iterable[str], field: str, maker: str | None) -> list[tuple[str, int]]:
    """The queues of these names and their projects, but those that cannot be: one keeps an agent from none of the rest.

    Refuses as make_queue does when there is none.
    """
    found, refusals = [], []
    for name in names:
        try:
            found.append((name, make_queue(tx, name, field, maker)))
        except Unprocessable as refusal:
            refusals.append(refusal)
    if refusals and not found:
        raise refusals[0]
    return found


def advertised_queues(tx: Tx, after: str = "") -> tuple[dict[str, str], str | None]:
    """What agents say about the next queues, by name, and the one after which to go on (None: no more).

    Those of which none has said anything are not among them.
    """
    found: dict[str, str] = {}
    size, last = 0, after
    # By the index of names: sorting would hold all that is said.
    said = (
        "SELECT p.name, q.description FROM project p CROSS JOIN testflinger_queue q ON q.project = p.id"
        " WHERE p.name > ? AND q.description IS NOT NULL ORDER BY p.name"
    )
    for row in tx.execute(said, (after,)):
        if size >= LONG_PIECE:
            return found, last
        last = row["name"]
        found[last] = row["description"]
        size += len(last) + len(row["description"])
    return found, None


def set_images(tx: Tx, images: dict[str, dict[str, Any]], maker: str | None = None) -> None:
    """Replaces the images of these queues. Refuses what cannot be, where all of it cannot."""
    if any(images.values()):
        check_room(tx)
    for name, project in made_queues(tx, images, "images", maker):
        data = images[name]
        tx.execute("DELETE FROM testflinger_image WHERE project = ?", (project,))
        rows = [(project, image, encode(provisioned).decode()) for image, provisioned in data.items()]
        tx.executemany("INSERT INTO testflinger_image VALUES (?, ?, ?)", rows)


def images(tx: Tx, name: str) -> dict[str, Raw]:
    """The queue's images, and what provisions them. Empty for an unknown queue."""
    rows = tx.execute(
        "SELECT i.name, i.data FROM project p JOIN testflinger_image i ON i.project = p.id WHERE p.name = ?"
        " ORDER BY i.name",
        (name,),
    )
    return {row["name"]: Raw(row["data"].encode()) for row in rows}


WAIT = "FROM testflinger_job WHERE project = :project AND wait IS NOT NULL"
PERCENTILES = (5, 10, 50, 90, 95)


def wait_times(tx: Tx, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """How long jobs have waited until they were picked, in seconds: percentiles, by queue. All queues without names.

    Queues of which no job has been started are left out.
    """
    queues = filter(None, (find_queue(tx, name) for name in dict.fromkeys(names))) if names else all_queues(tx)
    counted = ((row, tx.one(f"SELECT COUNT(*) {WAIT}", {"project": row["project"]})[0]) for row in queues)
    return {
        row["name"]: {str(percent): percentile(tx, row["project"], count, percent) for percent in PERCENTILES}
        for row, count in counted
        if count
    }


def percentile(tx: Tx, project: int, count: int, percent: int) -> float:
    """A percentile of `count` waiting times, with linear interpolation. Walks the index from the nearer end."""
    place = (count - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    from_below = place <= count / 2
    order, first = ("ASC", low) if from_below else ("DESC", count - 1 - high)
    waits = [
        max(0.0, row["wait"])  # older ones may be negative
        for row in tx.execute(
            f"SELECT wait {WAIT} ORDER BY wait {order} LIMIT :limit OFFSET :first",
            {"project": project, "limit": high - low + 1, "first": first},
        )
    ]
    below, above = min(waits), max(waits)
    return below + (above - below) * (place - low)
