"""A place for tests of the domain functions: a database in memory, projects with tasks in every state, and every
operation that writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tracker
from tracker import FAIL, OK, SKIP, TaskAction, TaskFilter, Tx, WorkerCredentials


class StillClock(tracker.Clock):
    """A clock that only a test moves."""

    START = 1_600_000_000

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.START + self.now

    def uptime(self) -> float:
        return self.now


class Memory:
    """A tracker's database in memory. `do` runs a domain function in a transaction of its own."""

    def __init__(self, **settings: Any) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        self.connection.row_factory = sqlite3.Row
        self.settings, self.clock = tracker.Settings(**settings), StillClock()
        self.announced: Counter[int] = Counter()  # project: how many of its tasks the last transaction said are ready
        tracker.upgrade_schema(Path("memory"), self.connection)

    def do(self, function: Callable, *args: Any) -> Any:
        self.connection.execute("BEGIN IMMEDIATE")
        tx = Tx(self.connection, self.clock, self.settings)
        try:
            outcome = function(tx, *args)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        self.announced = Counter()
        for project, count in tx.ready:
            self.announced[project] += count
        return outcome

    def refusal(self, function: Callable, *args: Any) -> str:
        """The code and the message with which a call is refused."""
        try:
            outcome = self.do(function, *args)
        except tracker.TrackerError as error:
            return f"{error.code}: {error.message}"
        raise AssertionError(f"not refused: {outcome}")

    def rows(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        return self.connection.execute(sql, parameters).fetchall()

    def values(self, sql: str, *parameters: Any) -> list[tuple]:
        return [tuple(row) for row in self.rows(sql, *parameters)]


class Queue(Memory):
    """One project with its manager, in memory, and the verbs of those who use it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(session_lifetime=1e9, **settings)
        self.session = self.do(tracker.register_manager, "admin", "unused")[1]
        self.project = self.create_project("first")
        self.worker = self.create_worker()

    def create_project(self, name: str, **fields: Any) -> int:
        """A project to which every worker that there is has access."""
        project = self.do(tracker.create_project, self.session, tracker.ProjectBody(name, **fields))["id"]
        for (worker,) in self.values("SELECT id FROM worker"):
            self.give_access(worker, project)
        return project

    def give_access(self, worker: int, project: int) -> None:
        body = tracker.WorkerRolesBody(worker, assign=True, submit=True)
        self.do(tracker.set_worker_access, self.session, project, body)

    def create_manager(self, username: str, role: int = 0) -> bytes:
        """The session of a manager with this role in the project."""
        content, session = self.do(tracker.register_manager, username, "unused")
        body = tracker.RoleBody(content["manager"]["id"], role)
        self.do(tracker.set_role, self.session, self.project, body)
        return session

    def create_worker(self) -> WorkerCredentials:
        """A worker with access to every project that there is."""
        worker = self.do(create_worker)
        for (project,) in self.values("SELECT id FROM project"):
            self.give_access(worker.id, project)
        return worker

    def submit(self, recipe: str = "recipe", project: int | None = None, **fields: Any) -> int:
        """The id of a new task."""
        task = new_task(project or self.project, recipe, **fields)
        self.do(tracker.submit_task, self.worker, task)
        return self.rows("SELECT MAX(id) FROM task")[0][0]

    def assign(self, worker: WorkerCredentials | None = None, project: int | None = None) -> int:
        """The id of the task that a worker is assigned."""
        (task,) = self.do(tracker.assign_tasks, worker or self.worker, [project or self.project]).tasks
        return task["id"]

    def release(self, task: int, result: int = OK, worker: WorkerCredentials | None = None, hash64: int = 0) -> bool:
        return self.do(tracker.release_task, worker or self.worker, tracker.ReleaseBody(task, result, hash64))

    def work(
        self,
        count: int = 1,
        seconds: float = 0,
        worker: WorkerCredentials | None = None,
        project: int | None = None,
        **fields: Any,
    ) -> None:
        """Submits, is assigned and closes so many tasks, and takes so long for each."""
        for _ in range(count):
            self.submit(project=project, **fields)
            task = self.assign(worker, project)
            self.clock.now += seconds
            assert self.release(task, worker=worker)

    def task(self, task: int) -> sqlite3.Row | None:
        return next(iter(self.rows("SELECT * FROM task WHERE id = ?", task)), None)

    def tasks(self, state: str, project: int | None = None) -> set[int]:
        """The ids of the tasks in a state."""
        condition = tracker.TASK_STATES[state].condition
        rows = self.rows(f"SELECT id FROM task WHERE project = ? AND {condition}", project or self.project)
        return {row["id"] for row in rows}

    def counts(self, project: int | None = None) -> dict[str, int]:
        """The live counts, by state, without zeros."""
        (row,) = self.rows("SELECT * FROM project WHERE id = ?", project or self.project)
        counts = {state: tracker.count_in_state(row, state) for state in (*tracker.TASK_STATES, "closed")}
        return {state: count for state, count in counts.items() if count}

    def act(self, action: str, tasks: Iterable[int], priority: int | None = None) -> int:
        """A manager's action on some tasks: to how many it was done."""
        body = TaskAction(action, priority)
        return self.do(tracker.act_on_tasks, self.session, self.project, body, list(tasks))

    def begin(self, action: str, wanted: TaskFilter, priority: int | None = None) -> int:
        """Begins a manager's action on all tasks that match."""
        return self.do(tracker.begin_action, self.session, self.project, TaskAction(action, priority), wanted)

    def finish(self, operation: int) -> int:
        """Carries out an operation to its end: how many tasks it affected."""
        for _ in range(1000):
            if (affected := self.do(tracker.step_operation, operation)) is not None:
                return affected
        raise AssertionError("the operation does not end")


@contextlib.asynccontextmanager
async def running(path: Path, clock: tracker.Clock) -> AsyncIterator[tracker.Tracker]:
    """A tracker without its HTTP."""
    settings = tracker.Settings(database=str(path), log_file="", session_lifetime=1e9)
    running = tracker.Tracker(settings, clock)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def finished(one: tracker.Tracker, session: bytes, operation: int) -> sqlite3.Row:
    """A manager's operation, as soon as it has finished."""
    async with asyncio.timeout(30):
        while (row := await one.db.read(tracker.get_operation, session, operation))["finished"] is None:
            await asyncio.sleep(0.01)
        return row


@dataclass
class Place:
    """Two projects, the first chained to the second, with tasks in every state."""

    session: bytes
    worker: WorkerCredentials
    other: WorkerCredentials
    stranger: WorkerCredentials
    first: int
    second: int
    manager: int
    webhook_secret: str
    held: dict[str, int]
    waiting: list[int]
    failed: int
    operations: dict[str, int]


def furnish(tx: Tx) -> Place:
    """Makes a Place. Its worker holds all tasks of `held`."""
    session = tracker.register_manager(tx, "admin", "unused")[1]
    manager = tracker.register_manager(tx, "other", "unused")[0]["manager"]["id"]
    second = tracker.create_project(tx, session, tracker.ProjectBody("second", keep_hashes=True))["id"]
    body = tracker.ProjectBody("first", chain=second, keep_hashes=True, git_repo="owner/first")
    first = tracker.create_project(tx, session, body)["id"]
    worker, other, stranger = (create_worker(tx) for _ in range(3))
    for caller, project in itertools.product((worker, other), (first, second)):
        tracker.request_access(tx, caller, tracker.AccessBody(project, assign=True, submit=True))
        tracker.accept_request(tx, session, project, caller.id)
    tracker.request_access(tx, stranger, tracker.AccessBody(first, assign=True))

    def hold(verification_count: int, verified_by: WorkerCredentials | None = None, **fields: Any) -> int:
        """The id of a new task that the worker holds."""
        task = new_task(first, verification_count=verification_count, **fields)
        tracker.submit_task(tx, worker, task)
        if verified_by:
            (assigned,) = tracker.assign_tasks(tx, verified_by, [first]).tasks
            tracker.release_task(tx, verified_by, tracker.ReleaseBody(assigned["id"], OK, 7))
        (assigned,) = tracker.assign_tasks(tx, worker, [first]).tasks
        return assigned["id"]

    held = {
        "plain": hold(1, hash64=11),
        "to verify": hold(2),
        "verified": hold(2, verified_by=other),
        "verified differently": hold(3, verified_by=other),
        "with one attempt": hold(1, max_retries=1),
        "with two attempts": hold(1, max_retries=2),
        "expired": hold(1),
    }
    tx.execute("UPDATE task SET deadline = 0 WHERE id = ?", (held["expired"],))
    failed = hold(1)
    tracker.release_task(tx, worker, tracker.ReleaseBody(failed, FAIL))
    for result in (OK, SKIP):
        tracker.release_task(tx, worker, tracker.ReleaseBody(hold(1), result))
    tracker.submit_tasks(tx, worker, [new_task(first, hash64=number) for number in range(1, 4)])
    waiting = [row["id"] for row in tx.all("SELECT id FROM task WHERE hash64 BETWEEN 1 AND 3")]
    tracker.submit_task(tx, worker, new_task(second, hash64=5))
    tx.execute("UPDATE project SET assign_rate = 100, submit_rate = 100")
    tx.execute("INSERT INTO kept_hash VALUES (?, 99)", (first,))
    tracker.add_log_entry(tx, worker, "error", tracker.LogBody("old", 1, "old"))
    tx.execute("UPDATE log_entry SET received = 0")
    tx.execute("UPDATE assignment SET end_time = 0")
    tx.execute("INSERT INTO tally_hour VALUES (0, ?, ?, 1)", (first, worker.id))
    operations = begin_operations(tx, session, worker, first)
    secret = tracker.get_webhook_secret(tx, session, first)["webhook_secret"]
    return Place(session, worker, other, stranger, first, second, manager, secret, held, waiting, failed, operations)


def begin_operations(tx: Tx, session: bytes, worker: WorkerCredentials, project: int) -> dict[str, int]:
    """One operation of each kind that has just begun, two uploads that are not accepted yet, one that is long over."""
    kinds = ("reset_failed", "reclaim_assigned", "hard_reset")
    operations = {kind: tracker.begin_reset(tx, session, project, kind) for kind in kinds}
    for action, state in (("retry", "failed"), ("requeue", "assigned"), ("set_priority", "waiting")):
        body = TaskAction(action, 5)
        operations[action] = tracker.begin_action(tx, session, project, body, TaskFilter(state, "recipe", priority=0))
    operations["delete"] = tracker.begin_action(tx, session, project, TaskAction("delete"), TaskFilter("assigned"))
    tasks = [new_task(project, hash64=number) for number in range(2, 8)]
    lines = [[number, *task] for number, task in enumerate(tasks, 1)]
    for name in ("bulk", "staged"):
        operations[name] = tracker.begin_bulk_submit(tx, worker, project)
        tracker.add_bulk_piece(tx, operations[name], 1, tracker.encode(tasks))
    for name in ("lines", "staged lines", "finished"):
        operations[name] = tracker.begin_lines_submit(tx, session, project)
        tracker.add_bulk_piece(tx, operations[name], 1, tracker.encode(lines))
    tx.execute("UPDATE operation SET accepted = 1 WHERE id IN (?, ?)", (operations["bulk"], operations["lines"]))
    tx.execute("UPDATE operation SET accepted = 1, finished = 0 WHERE id = ?", (operations["finished"],))
    tx.execute("DELETE FROM bulk_piece WHERE operation = ?", (operations["finished"],))
    return operations


def create_worker(tx: Tx) -> WorkerCredentials:
    worker = tracker.create_worker(tx, None, tracker.AliasBody("worker"))["worker"]
    return WorkerCredentials(worker["id"], worker["secret"].encode())


def new_task(project: int, recipe: str = "recipe", **fields: Any) -> tracker.NewTask:
    return tracker.new_task(tracker.SubmitBody(project, recipe, **fields))


def begin_reset(tx: Tx, project: int, kind: str) -> int:
    """Begins a reset, whoever wants it."""
    if kind == "hard_reset":
        return tracker.insert_operation(tx, kind, project)
    action = tracker.RESETS[kind]
    wanted = tracker.encode(TaskFilter(tracker.ACTIONS[action].state)).decode()
    return tracker.insert_operation(tx, action, project, wanted=wanted)


Operation = tuple[Callable, tuple]


def release(place: Place, name: str, result: int = OK, verification: int = 7) -> Operation:
    body = tracker.ReleaseBody(place.held[name], result, verification)
    return tracker.release_task, (place.worker, body)


def release_many(place: Place) -> Operation:
    bodies = [tracker.ReleaseBody(task, OK, 7) for task in place.held.values()]
    return tracker.release_tasks, (place.worker, bodies)


def act(place: Place, action: str, *tasks: int) -> Operation:
    return tracker.act_on_tasks, (place.session, place.first, TaskAction(action, 5), list(tasks))


def step(place: Place, name: str) -> Operation:
    return tracker.step_operation, (place.operations[name],)


def push(place: Place) -> Operation:
    body = b'{"ref": "refs/heads/main", "after": "c0ffee", "repository": {"full_name": "owner/first"}}'
    signature = hmac.new(place.webhook_secret.encode(), body, "sha256").hexdigest()
    return tracker.receive_push, (body, {"x-hub-signature-256": signature})


def discard_bulk_submit(tx: Tx, operation: int) -> None:
    while tracker.discard_bulk_pieces(tx, operation):
        pass


# Every operation that writes in more than one place, or might one day.
OPERATIONS: dict[str, Callable[[Place], Operation]] = {
    "submit": lambda p: (tracker.submit_task, (p.worker, new_task(p.first, hash64=50))),
    "submit a unique string": lambda p: (tracker.submit_task, (p.worker, new_task(p.first, unique_string="x"))),
    "submit many": lambda p: (tracker.submit_tasks, (p.worker, [new_task(p.first, hash64=n) for n in range(60, 70)])),
    "assign": lambda p: (tracker.assign_tasks, (p.worker, [p.first])),
    "assign many of two projects": lambda p: (tracker.assign_tasks, (p.worker, [p.second, p.first], 4)),
    "assign one that awaits verification": lambda p: (tracker.assign_tasks, (p.other, [p.first], 5)),
    "close and chain": lambda p: release(p, "plain"),
    "fail at last": lambda p: release(p, "with one attempt", FAIL),
    "fail": lambda p: release(p, "with two attempts", FAIL),
    "skip": lambda p: release(p, "plain", SKIP),
    "verify": lambda p: release(p, "to verify"),
    "verify and close": lambda p: release(p, "verified"),
    "verify differently": lambda p: release(p, "verified differently", verification=8),
    "release many": release_many,
    "expire": lambda p: (tracker.expire_tasks, ()),
    "retry some": lambda p: act(p, "retry", p.failed),
    "requeue some": lambda p: act(p, "requeue", *p.held.values()),
    "set the priority of some": lambda p: act(p, "set_priority", *p.waiting),
    "delete some": lambda p: act(p, "delete", *p.held.values(), *p.waiting),
    "begin an action": lambda p: (
        tracker.begin_action,
        (p.session, p.first, TaskAction("delete"), TaskFilter("failed")),
    ),
    "reset failed": lambda p: step(p, "reset_failed"),
    "reclaim": lambda p: step(p, "reclaim_assigned"),
    "hard reset": lambda p: step(p, "hard_reset"),
    "retry all that match": lambda p: step(p, "retry"),
    "requeue all that match": lambda p: step(p, "requeue"),
    "set the priority of all that match": lambda p: step(p, "set_priority"),
    "delete all that match": lambda p: step(p, "delete"),
    "begin a reset": lambda p: (tracker.begin_reset, (p.session, p.first, "hard_reset")),
    "begin a bulk submit": lambda p: (tracker.begin_bulk_submit, (p.worker, p.first)),
    "stage a piece": lambda p: (tracker.add_bulk_piece, (p.operations["staged"], 2, b"[]")),
    "accept a bulk submit": lambda p: (tracker.accept_bulk_submit, (p.worker, p.operations["staged"], 1)),
    "carry out a bulk submit": lambda p: step(p, "bulk"),
    "submit as a manager": lambda p: (
        tracker.submit_as_manager,
        (p.session, p.first, tracker.LineTask(recipe="r", hash64=50)),
    ),
    "begin an upload": lambda p: (tracker.begin_lines_submit, (p.session, p.first)),
    "accept an upload": lambda p: (
        tracker.accept_lines_submit,
        (p.session, p.operations["staged lines"], tracker.LinesReport(6)),
    ),
    "carry out an upload": lambda p: step(p, "lines"),
    "discard a bulk submit": lambda p: (discard_bulk_submit, (p.operations["staged"],)),
    "create a worker": lambda p: (tracker.create_worker, (None, tracker.AliasBody("new"))),
    "rename a worker": lambda p: (tracker.update_worker, (p.worker, tracker.AliasBody("renamed"))),
    "pause a worker": lambda p: (tracker.set_worker_paused, (p.session, tracker.PauseBody(p.worker.id, True))),
    "create a project": lambda p: (tracker.create_project, (p.session, tracker.ProjectBody("new", chain=p.first))),
    "update a project": lambda p: (
        tracker.update_project,
        (p.session, p.first, tracker.ProjectBody(chain=0, motd="x")),
    ),
    "request access": lambda p: (tracker.request_access, (p.stranger, tracker.AccessBody(p.second, submit=True))),
    "accept a request": lambda p: (tracker.accept_request, (p.session, p.first, p.stranger.id)),
    "give a worker access": lambda p: (
        tracker.set_worker_access,
        (p.session, p.first, tracker.WorkerRolesBody(p.stranger.id, submit=True)),
    ),
    "reject a request": lambda p: (tracker.reject_request, (p.session, p.first, p.stranger.id)),
    "set a secret": lambda p: (tracker.set_secret, (p.session, p.first, tracker.SecretBody("x"))),
    "set a webhook secret": lambda p: (
        tracker.set_webhook_secret,
        (p.session, p.first, tracker.WebhookSecretBody("x")),
    ),
    "receive a push": push,
    "register a manager": lambda p: (tracker.register_manager, ("new", "unused")),
    "begin a login": lambda p: (tracker.begin_login, ("admin", "127.0.0.1")),
    "finish a login": lambda p: (tracker.finish_login, (p.manager, "other", "127.0.0.1")),
    "log out": lambda p: (tracker.logout, (p.session,)),
    "promote": lambda p: (tracker.promote_manager, (p.session, p.manager)),
    "set a role": lambda p: (tracker.set_role, (p.session, p.first, tracker.RoleBody(p.manager, 3))),
    "set the role of a named manager": lambda p: (
        tracker.set_named_role,
        (p.session, p.first, tracker.RoleForm("other", read=True)),
    ),
    "begin a change of the password": lambda p: (tracker.begin_password_change, (p.session,)),
    "finish a change of the password": lambda p: (
        tracker.finish_password_change,
        (p.session, "admin", "new"),
    ),
    "give an admin a new password": lambda p: (tracker.make_admin, ("admin", "new", True)),
    "log": lambda p: (tracker.add_log_entry, (p.worker, "error", tracker.LogBody("scope", 1, "message"))),
    "roll the tallies": lambda p: (tracker.roll_tallies, ((0, 0), 7)),
    "prune log lines": lambda p: (tracker.prune, ("log_entry",)),
    "prune assignments": lambda p: (tracker.prune, ("assignment",)),
    "prune operations": lambda p: (tracker.prune, ("operation",)),
    "prune tallies": lambda p: (tracker.prune, ("tally_hour",)),
}
