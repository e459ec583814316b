"""How much there may be of what strangers can make grow. The counts are rows, which triggers keep (schema.sql).

    a log line ─► room_for_line: evicts the oldest of whoever has most, or says no
    what goes into a project that no admin trusts ─► check_room, weigh: all those projects share one budget
    a worker, a manager ─► check_count: where there are too many, the network that has most newcomers makes room
    a request for access ─► make_room_for_request: the same, among those that wait for an answer of one project
    the name of a project, of a template that programs trigger ─► claim_name, claim_api_name

A manager's project is *trusted* when a tracker admin made it, when its maker had a role in a trusted project, or when a
tracker admin says so (or makes it public). What is in the others has a weight in bytes: project.size.

Refusals name the setting; they come before anything is written, as a call that fails after that costs its whole batch.
"""

from __future__ import annotations

import itertools
import math
import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

import pauses
from errors import TrackerError
from limits import LAST_PART
from shapes import Manager, TaskEntry
from writer import Tx

MIB = 2**20


def used(tx: Tx, name: str) -> int:
    """How much there is: bytes, or rows."""
    return tx.one("SELECT used FROM budget WHERE name = ?", (name,))[0]


# Log lines

LINE_SIZE = 100  # bytes that a line takes besides its text, with its five indexes: schema.sql counts the same
MOST_EVICTED = 4000  # lines that go for one: the longest takes the room of fewer, and it is a matter of 10 ms
MOST_EVICTIONS = 8  # workers whose lines go for one

SELECT_SHARE = """
    SELECT NOT EXISTS (SELECT 1 FROM tally t JOIN project p ON p.id = t.project WHERE t.worker = ?1 AND p.trusted)
        AND NOT EXISTS (SELECT 1 FROM worker_access a JOIN project p ON p.id = a.project
            WHERE a.worker = ?1 AND NOT a.request AND p.trusted) AS stranger,
        (SELECT stranger FROM log_share WHERE worker = ?1) AS was_stranger,
        (SELECT used FROM budget WHERE name = 'logs') AS logs
"""
NOTE_SHARE = """
    INSERT INTO log_share (worker, size, stranger) VALUES (?1, 0, ?2)
    ON CONFLICT DO UPDATE SET stranger = excluded.stranger
"""


def line_size(scope: str, message: str) -> int:
    """The bytes that a log line takes."""
    return LINE_SIZE + len(scope.encode()) + len(message.encode())


def room_for_line(tx: Tx, worker: int, size: int) -> bool:
    """Makes room for a worker's line in max_logs, and in max_stranger_logs if it counts there. False: there is none."""
    strange, _, logs = share_of(tx, worker)
    if strange and not make_room(tx, "max_stranger_logs", True, size):
        return tx.limits.beyond("max_stranger_logs")
    if logs + size > MIB * tx.settings.max_logs and not make_room(tx, "max_logs", False, size):
        return tx.limits.beyond("max_logs")
    return True


def share_of(tx: Tx, worker: int) -> sqlite3.Row:
    """Whether the worker has no access and never had a task, whether that was so, and the bytes of all lines.

    Its lines count accordingly from now on.
    """
    row = tx.one(SELECT_SHARE, (worker,))
    if row["stranger"] != row["was_stranger"]:
        tx.execute(NOTE_SHARE, (worker, row["stranger"]))
    return row


def make_room(tx: Tx, setting: str, strangers: bool, size: int) -> bool:
    """Evicts lines, so many at most, until so many bytes have room. Whether they have.

    They do whenever whoever has most has as much.
    """
    most, name = MIB * getattr(tx.settings, setting), setting.removeprefix("max_")
    left = MOST_EVICTED
    for _ in range(MOST_EVICTIONS):
        lacking = used(tx, name) + size - most
        if lacking <= 0:
            return True
        left -= evict_lines(tx, strangers, lacking, left)
    return used(tx, name) + size <= most


EVICT = f"""
    DELETE FROM log_entry WHERE id IN (
        SELECT id FROM (
            SELECT id, size, SUM(size) OVER (ORDER BY id) AS total FROM (
                SELECT id, {LINE_SIZE} + length(CAST(scope AS BLOB)) + length(CAST(message AS BLOB)) AS size
                FROM log_entry WHERE worker = :worker ORDER BY id LIMIT :most))
        WHERE total - size < :lacking)
"""


def evict_lines(tx: Tx, strangers: bool, lacking: int, most: int) -> int:
    """Deletes the oldest lines of whoever has most, of all or of the strangers: so many bytes. How many lines."""
    among = "WHERE stranger" if strangers else ""
    row = tx.one(f"SELECT worker FROM log_share {among} ORDER BY size DESC LIMIT 1")
    if row is None or (strangers and not share_of(tx, row["worker"])["stranger"]):
        return 0
    return tx.execute(EVICT, {"worker": row["worker"], "lacking": lacking, "most": most}).rowcount


# Projects that are not trusted

PROJECT_SIZE = 4 * MIB  # with the snapshots of 90 days and its texts: schema.sql counts the same
TASK_SIZE = 120  # bytes that a task takes besides its recipe, with its indexes
VERIFICATION_SIZE = 64  # for each worker that is to verify it, too
HASH_SIZE = 60
ACCESS_SIZE = 200  # and so with what a worker holds and has closed there (tally)
OPERATION_SIZE = 400
TASK_WEIGHT = (
    f"iif(job IS NULL, {TASK_SIZE} + length(CAST(recipe AS BLOB)) + {VERIFICATION_SIZE}"
    " * max(verification_count - 1, 0), 0)"  # that of a job is in the job's
)
ADD_TO_SIZE = "UPDATE project SET size = size + ? WHERE id = ? AND NOT trusted"


def task_weight(recipe: str, verification_count: int) -> int:
    """The bytes that a task counts for."""
    return TASK_SIZE + len(recipe.encode()) + VERIFICATION_SIZE * max(verification_count - 1, 0)


def text_size(values: Iterable[Any]) -> int:
    """The bytes of the texts among some values."""
    return sum(len(value.encode()) for value in values if isinstance(value, str))


def trusts(tx: Tx, manager: Manager) -> bool:
    """Whether the manager's new project is trusted. Refuses (503) one that is not where there is no room for it."""
    trusted = "SELECT 1 FROM manager_role r JOIN project p ON p.id = r.project WHERE r.manager = ? AND p.trusted"
    if manager.tracker_admin or tx.one(trusted, (manager.id,)):
        return True
    check_room(tx, PROJECT_SIZE, maker=manager.id)
    return False


def is_trusted(tx: Tx, project: int) -> bool:
    """Whether the project has no part in the budget of those that no admin trusts."""
    row = tx.one("SELECT trusted FROM project WHERE id = ?", (project,))
    return row is None or bool(row["trusted"])


OF_NETWORK = """
    WITH asks AS (SELECT ifnull(:maker, (SELECT creator FROM project WHERE id = :project)) AS manager)
    SELECT ifnull(SUM(p.size), 0) FROM project p JOIN asks WHERE p.size AND (p.creator = asks.manager OR EXISTS (
        SELECT 1 FROM login_address own JOIN login_address other ON other.address = own.address
        WHERE own.manager = asks.manager AND other.manager = p.creator) OR EXISTS (
        SELECT 1 FROM manager own JOIN manager other ON other.source = own.source
        WHERE own.id = asks.manager AND own.source <> '' AND other.id = p.creator))
"""


def has_room(tx: Tx, size: int, project: int | None = None, maker: int | None = None) -> bool:
    """Whether the projects that are not trusted may grow by so many bytes: this one, or a new one of this manager's.

    One stranger, under several names too, leaves room for others: a network (an address, of IPv6 a /64) from which
    the makers of many or large ones have logged in, or a site (a /48) from which they have come, has no share in the
    last part.
    """
    most = MIB * tx.settings.max_untrusted_projects
    left = most - used(tx, "projects") - size
    if left >= most // LAST_PART or left < 0:
        return left >= 0
    return tx.one(OF_NETWORK, {"maker": maker, "project": project})[0] + size <= most // LAST_PART


def check_room(tx: Tx, size: int, project: int | None = None, maker: int | None = None) -> None:
    """Refuses (503) what would make the projects that are not trusted larger than they may be."""
    if not has_room(tx, size, project, maker):
        problem = "The projects that no tracker admin trusts are full; one can mark yours as trusted"
        raise tx.limits.refusal("max_untrusted_projects", problem)


def check_length(tx: Tx, size: int, field: str = "recipe") -> None:
    """Refuses (too_large) so long a task or job of a project that is not trusted.

    Its row is written anew as a whole each time that it moves, and everybody waits for that.
    """
    if size > 1024 * tx.settings.max_untrusted_text:
        problem = (
            f"{size:,} bytes are too many in a project that no tracker admin trusts; one can mark yours as trusted"
        )
        refusal = tx.limits.refusal("max_untrusted_text", problem, "too_large")
        raise TrackerError(refusal.code, refusal.problem, field)


def check_tasks(tx: Tx, tasks: Sequence[Task], project: int) -> None:
    """Refuses tasks of which one is too long, or all together too large, for a project that is not trusted."""
    weights = [task_weight(task.recipe, task.verification_count) for task in tasks]
    check_length(tx, max(weights))
    check_room(tx, sum(weights), project)


def longest_text(pieces: Iterable[bytes]) -> int:
    """The bytes of the longest text in tasks that are to be stored, as they are staged."""
    staged = (msgspec.json.decode(piece) for piece in pieces if piece.startswith(b"["))  # of an import all else is {
    return max((text_size([value]) for tasks in staged for task in tasks for value in task), default=0)


def check_room_in(tx: Tx, project: int, size: int, field: str = "recipe", many: bool = False) -> None:
    """The same for something in a project that may be trusted. 404 for one that was deleted, 423 if it is archived.

    `many`: of whose lengths each has been looked at.
    """
    row = tx.one("SELECT trusted, archived FROM project WHERE id = ?", (project,))
    if row is None:
        raise TrackerError("not_found", f"No project {project}")
    if row["archived"]:
        raise is_archived(project)
    if not row["trusted"]:
        if not many:
            check_length(tx, size, field)
        check_room(tx, size, project)


def check_pieces(tx: Tx, project: int, pieces: Sequence[bytes], size: int) -> None:
    """The same for tasks that are staged in pieces, of so many bytes together."""
    if not is_trusted(tx, project):
        check_length(tx, longest_text(pieces))
    check_room_in(tx, project, size, many=True)


def is_archived(project: int) -> TrackerError:
    """The refusal of what would go into an archived project."""
    return TrackerError("archived", f"Project {project} is archived: it is kept to be read, and takes nothing new")


def make_room_for_operation(tx: Tx, project: int) -> None:
    """An operation is to begin in a project. Where there is no room, the oldest that is finished is forgotten for it.

    It is never refused: it may be what makes room.
    """
    if not is_trusted(tx, project) and not has_room(tx, OPERATION_SIZE, project):
        oldest = "SELECT id FROM operation WHERE project = ? AND finished IS NOT NULL ORDER BY id LIMIT 1"
        tx.execute(f"DELETE FROM operation WHERE id = ({oldest})", (project,))


def drops_job_lines(tx: Tx, job: sqlite3.Row, entries: Sequence[TaskEntry], worker: int, source: str) -> bool:
    """Whether there is no room for these lines of a job's log just now, which is noted: it is to tell of that later."""
    setting = what_drops_job_lines(tx, job["project"], entries, worker, source)
    if setting and entries:
        noted = "UPDATE job SET dropped_count = dropped_count + ?, dropped_by = ? WHERE id = ?"
        tx.execute(noted, (len(entries), setting, job["id"]))
    return setting != ""


def what_drops_job_lines(tx: Tx, project: int, entries: Sequence[TaskEntry], worker: int, source: str) -> str:
    """The setting by which lines of a job's log are dropped; empty: they fit into its project, which may be trusted."""
    size = sum(line_size(entry.scope, entry.message) for entry in entries)
    if tx.limits.drops_line():
        return "min_free_disk"
    try:
        check_stranger(tx, worker, source, {project: size})
    except TrackerError:
        return "stranger_job_rate"
    if is_trusted(tx, project) or has_room(tx, size, project) or tx.limits.beyond("max_untrusted_projects"):
        return ""
    return "max_untrusted_projects"


class Task(Protocol):
    """A task that is to be stored."""

    recipe: str
    verification_count: int


class Bringer(Protocol):
    """A worker that brings something, and the address to which that counts; none: this machine."""

    id: int
    source: str


class HeldJob(Protocol):
    """The task of a job, and when its lease began and how long it is."""

    project: int
    assigned_uptime: float
    max_assign_time: int


SMALL_RESULT = 4096  # bytes, which anybody may bring at the end of a job


def check_results(tx: Tx, worker: Bringer, results: Mapping[int, tuple[HeldJob, Raw | UnsetType]]) -> None:
    """Refuses (429) results of jobs, by task with what is held of it, that are more than a stranger may bring.

    All of them, and then none counts: else of several that are sent again and again the first would spend each time
    what the last wait for. One whose lease would end before it is taken is rather taken now.
    """
    sizes: dict[int, int] = {}
    end = math.inf
    for task, output in results.values():
        size = 0 if output is UNSET else memoryview(output).nbytes
        if size > SMALL_RESULT:
            sizes[task.project] = sizes.get(task.project, 0) + size
            end = min(end, task.assigned_uptime + task.max_assign_time)
    check_stranger(tx, worker.id, worker.source, sizes, end - tx.uptime)


def check_stranger(tx: Tx, worker: int, source: str, sizes: dict[int, int], patience: float = math.inf) -> None:
    """Refuses (429) more bytes of jobs, by project, than workers without access may bring from an address.

    Else one that makes jobs by a template that needs no key, and does them itself, fills the disk. `patience`: the
    seconds for which they can wait.
    """
    granted = "SELECT 1 FROM worker_access WHERE worker = ? AND project = ? AND role_assign AND NOT request"
    if source and (strange := [size for project, size in sizes.items() if not tx.one(granted, (worker, project))]):
        tx.limits.bring_as_stranger(source, sum(strange), patience)


def weigh(tx: Tx, project: int, size: int) -> None:
    """The project has become larger or smaller by so many bytes; nothing happens to a trusted one."""
    tx.execute(ADD_TO_SIZE, (size, project))


def weigh_gone(tx: Tx, rows: Sequence[sqlite3.Row]) -> None:
    """Tasks have gone that had these weights."""
    weights: dict[int, int] = {}
    for row in rows:
        weights[row["project"]] = weights.get(row["project"], 0) - row["weight"]
    tx.executemany(ADD_TO_SIZE, [(weight, project) for project, weight in weights.items() if weight])


def weigh_closed(tx: Tx, task: int, project: int) -> None:
    """A task of a project that is not trusted is about to be closed."""
    tx.execute(
        f"UPDATE project SET size = size - ifnull((SELECT {TASK_WEIGHT} FROM task WHERE id = ?), 0)"
        " WHERE id = ? AND NOT trusted",
        (task, project),
    )


# Names that anybody may take: a trusted project wins over one that is not


def claim_name(tx: Tx, name: str, trusted: bool, project: int | None = None) -> None:
    """Refuses (409) a name that another project has. One that nobody trusts gives it up for one that is trusted."""
    row = tx.one("SELECT id, trusted FROM project WHERE name = ? AND id IS NOT ?", (name, project))
    if row is None:
        return
    if row["trusted"] or not trusted:
        raise TrackerError("conflict", f"there is a project named {name!r} already", "name")
    aside = f"{name[:150]} ({row['id']})"
    while tx.one("SELECT 1 FROM project WHERE name = ?", (aside,)):
        aside += "'"
    tx.execute("UPDATE project SET name = ? WHERE id = ?", (aside, row["id"]))


def claim_api_name(tx: Tx, name: str, project: int, template: int | None) -> None:
    """Refuses (409) to let programs trigger two templates by one name. Else a name may be used again.

    That of a project that nobody trusts gives it up for one of a trusted project.
    """
    others = (
        "SELECT t.id, p.trusted FROM template t JOIN project p ON p.id = t.project"
        " WHERE t.name = ? AND api AND t.id IS NOT ? AND t.deleted IS NULL"
    )
    other = tx.one(others, (name, template))
    if other is None:
        return
    if other["trusted"] or not is_trusted(tx, project):
        raise TrackerError("conflict", f"another template named {name!r} may be triggered by this name", "api")
    tx.execute("UPDATE template SET api = 0 WHERE id = ?", (other["id"],))


# Access

MOST_REQUESTS = 20  # of one worker that wait for an answer

OLDEST_OF_CROWD = """
    DELETE FROM worker_access WHERE project = :project AND request AND worker = (
        SELECT worker FROM worker_access WHERE project = :project AND request AND source = (
            SELECT source FROM worker_access WHERE project = :project AND request AND source <> ''
            GROUP BY source HAVING COUNT(*) > 1 ORDER BY COUNT(*) DESC LIMIT 1)
        ORDER BY requested, worker LIMIT 1)
"""


def make_room_for_request(tx: Tx, project: int, worker: int) -> None:
    """Makes room for another request for access, where it is full by the oldest of the network that has most of them.

    Refuses (503) it where each network has one, and one more of a worker that has very many.
    """
    own = "SELECT COUNT(*) FROM worker_access WHERE worker = ? AND request AND requested > 0"  # not by others for it
    if tx.one(own, (worker,))[0] >= MOST_REQUESTS:
        problem = f"you wait for an answer of {MOST_REQUESTS} projects already, which is as many as a worker may"
        raise TrackerError("unavailable", problem, "project")
    waiting = "SELECT COUNT(*) FROM worker_access WHERE project = ? AND request"
    full = tx.one(waiting, (project,))[0] >= tx.settings.max_access_requests
    if full and not tx.execute(OLDEST_OF_CROWD, {"project": project}).rowcount:
        problem = "Too many workers wait for access to this project already; ask its managers"
        raise tx.limits.refusal("max_access_requests", problem)
    if not full:
        check_room_in(tx, project, ACCESS_SIZE)


def forget_requests(tx: Tx, after: int) -> int | None:
    """Forgets requests of the next project that nobody has answered, and whose workers are gone. The last looked at."""
    row = tx.one("SELECT min(project) FROM worker_access WHERE request AND project > ?", (after,))
    if row[0] is not None:
        tx.execute(
            "DELETE FROM worker_access WHERE project = :project AND request AND requested < :before"
            " AND (SELECT last_seen FROM worker WHERE id = worker_access.worker) < :before",
            {"project": row[0], "before": tx.before(LONG_SILENCE)},
        )
    return row[0]


# Workers and managers that nobody knows

SILENCE = 3600  # seconds after which a worker is forgotten that never did anything
LONG_SILENCE = 30 * 86400  # and one that no project needs that an admin trusts; a manager; a request
LOOKED_AT = 100  # in one step: each of them may have access to many projects
NOBODY = {  # no project needs it that an admin trusts
    "workers": """
        NOT EXISTS (SELECT 1 FROM worker_access a JOIN project p ON p.id = a.project
            WHERE a.worker = w.id AND NOT a.request AND p.trusted)
        AND NOT EXISTS (SELECT 1 FROM tally t JOIN project p ON p.id = t.project
            WHERE t.worker = w.id AND p.trusted AND t.closed_task_count > 0)
    """,
    "managers": """
        NOT tracker_admin AND NOT blocked
        AND NOT EXISTS (SELECT 1 FROM manager_role r JOIN project p ON p.id = r.project
            WHERE r.manager = m.id AND (p.trusted OR p.creator = m.id))
    """,
}
FORGET = {
    "workers": f"""
        DELETE FROM worker WHERE id IN (
            SELECT id FROM worker w WHERE id > :after AND id <= :last AND last_seen < :before
                AND NOT EXISTS (SELECT 1 FROM log_share WHERE worker = w.id)
                AND (last_seen < :long_before OR closed_task_count = 0
                    AND NOT EXISTS (SELECT 1 FROM worker_access WHERE worker = w.id)
                    AND NOT EXISTS (SELECT 1 FROM tally WHERE worker = w.id))
                AND NOT EXISTS (SELECT 1 FROM tally WHERE worker = w.id AND held_task_count > 0)
                AND {NOBODY["workers"]}
                AND id NOT IN (SELECT value FROM json_each(:needed)))
    """,
    "managers": f"""
        DELETE FROM manager WHERE id IN (
            SELECT id FROM manager m WHERE id > :after AND id <= :last AND register_time < :long_before
                AND NOT EXISTS (SELECT 1 FROM session WHERE manager = m.id AND expires > :now)
                AND NOT EXISTS (SELECT 1 FROM login_address WHERE manager = m.id AND last_used >= :long_before)
                AND {NOBODY["managers"]}
                AND id NOT IN (SELECT value FROM json_each(:needed)))
    """,
}
KNOWN = {
    name: f"""
        UPDATE {table} SET source = '' WHERE id IN (
            SELECT id FROM {table} {short} WHERE id > :after AND id <= :last AND source <> ''
                AND (NOT ({NOBODY[name]}) OR id IN (SELECT value FROM json_each(:needed))))
    """
    for name, table, short in (("workers", "worker", "w"), ("managers", "manager", "m"))
}


Requeue = Callable[[Tx, str, dict[str, int]], int]  # puts tasks back


def check_count(tx: Tx, name: str, requeue: Requeue | None = None) -> None:
    """Refuses (503) one more when there are as many as the setting max_NAME allows, and no nobody makes room."""
    if used(tx, name) >= getattr(tx.settings, f"max_{name}") and not forget_nobody(tx, name, requeue):
        raise tx.limits.refusal(f"max_{name}", f"There are too many {name} already; ask a tracker admin")


LARGEST_NETWORKS = "SELECT source FROM newcomer WHERE kind = ? AND count > 1 ORDER BY count DESC LIMIT 8"
MOST_HELD = 100  # tasks that go back at once for one worker's sake: a matter of milliseconds
OF_NETWORK_FROM = f"source = ? AND source <> '' AND id >= ? ORDER BY id LIMIT {LOOKED_AT // 2}"
OLDEST_NOBODY = {
    "workers": f"""
        SELECT id FROM (SELECT id FROM worker WHERE {OF_NETWORK_FROM}) w
        WHERE {NOBODY["workers"]} AND NOT EXISTS (SELECT 1 FROM tally t JOIN project p ON p.id = t.project
            WHERE t.worker = w.id AND p.trusted AND t.held_task_count > 0)
        ORDER BY id LIMIT 1
    """,
    "managers": f"""
        SELECT id FROM (SELECT * FROM manager WHERE {OF_NETWORK_FROM}) m
        WHERE {NOBODY["managers"]} ORDER BY id LIMIT 1
    """,
}


def forget_nobody(tx: Tx, name: str, requeue: Requeue | None) -> bool:
    """Forgets the oldest nobody of the network from which most newcomers are, of one that has several. Whether of any.

    Whatever those did to look like more than that: asked for access, wrote a line, came by each hour, took a task in a
    project of their own (`requeue` puts it back). So who has a hundred networks keeps nobody out who has another one.
    Where the oldest are of use just now, as each holds a task of a project of others, it is one of those after another.
    """
    table = name.removesuffix("s")
    somewhere = random.randint(0, tx.one(f"SELECT ifnull(max(id), 0) FROM {table}")[0])
    networks = tx.all(LARGEST_NETWORKS, (name,))
    for network, after in itertools.product(networks, (0, somewhere)):
        if (row := tx.one(OLDEST_NOBODY[name], (network["source"], after))) is not None:
            if requeue is not None:
                let_go(tx, row["id"], requeue)
            tx.execute(f"DELETE FROM {table} WHERE id = ?", (row["id"],))
            return True
    return False


def let_go(tx: Tx, worker: int, requeue: Requeue) -> None:
    """Puts back what the worker holds, or leaves very much to the ends of its leases; ends its pauses."""
    held = "SELECT project FROM tally WHERE worker = ? AND held_task_count > 0"
    if tx.one("SELECT ifnull(SUM(held_task_count), 0) FROM tally WHERE worker = ?", (worker,))[0] <= MOST_HELD:
        for tally in tx.all(held, (worker,)):
            its = "project = :project AND assignee = :worker AND assignee IS NOT NULL"
            requeue(tx, its, {"project": tally["project"], "worker": worker})
    for tally in tx.all("SELECT project FROM tally WHERE worker = ? AND pause_uptime IS NOT NULL", (worker,)):
        pauses.end_pause(tx, tally["project"], worker)


def forget(tx: Tx, name: str, after: int, needed: str) -> int | None:
    """While there are many workers (or managers), deletes some of those after this one that nobody knows.

    Those of use are no newcomers any more.

    The last looked at. None: these were the last, or there are not so many. Those that are `needed` (JSON: ids) stay.
    """
    if used(tx, name) <= getattr(tx.settings, f"max_{name}") // 2:
        return None
    following = f"SELECT id FROM {name.removesuffix('s')} WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
    row = tx.one(following, (after, LOOKED_AT - 1))
    last = row["id"] if row else 2**63 - 1
    times = {"now": tx.trusted_time, "before": tx.before(SILENCE), "long_before": tx.before(LONG_SILENCE)}
    if name == "workers" and tx.future < math.inf:  # a wrong clock has seen them: they are of now
        seen = "UPDATE worker SET last_seen = ? WHERE id > ? AND id <= ? AND last_seen > ?"
        tx.execute(seen, (tx.time, after, last, tx.future))
    tx.execute(FORGET[name], {"after": after, "last": last, "needed": needed, **times})
    tx.execute(KNOWN[name], {"after": after, "last": last, "needed": needed})
    return last if row else None


# How full they are

FULLNESS = (  # the settings, what counts them, in which unit they are
    ("max_logs", "logs", MIB),
    ("max_stranger_logs", "stranger_logs", MIB),
    ("max_reasons", "reasons", MIB),
    ("max_acts", "acts", MIB),
    ("max_untrusted_projects", "projects", MIB),
    ("max_workers", "workers", 1),
    ("max_managers", "managers", 1),
    ("testflinger_max_files", "files", MIB),
    ("testflinger_max_data", "testflinger", MIB),
)


def fullness(tx: Tx) -> list[dict[str, Any]]:
    """How full each budget is, also what is in memory, and how often each limit was reached since the start."""
    counts = {row["name"]: row["used"] for row in tx.execute("SELECT * FROM budget")}
    rows = [
        {"setting": setting, "used": counts[name], "most": unit * getattr(tx.settings, setting), "bytes": unit > 1}
        for setting, name, unit in FULLNESS
    ]
    budgets = {row["setting"] for row in rows}
    others = sorted(tx.limits.refused.keys() - budgets)
    rows += [{"setting": setting, "used": None, "most": None, "bytes": False} for setting in others]
    rows = [{**row, "refused": tx.limits.refused[row["setting"]]} for row in rows]
    return rows + [{"setting": name, **gauge()._asdict()} for name, gauge in tx.limits.gauges.items()]
