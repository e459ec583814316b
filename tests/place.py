"""A place for tests of the domain functions: a database in memory, projects with tasks in every state, and every
operation that writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import itertools
import sqlite3
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from conftest import empty_tracker
from lending import lend
from msgspec import UNSET

import shapes
import tracker
from tracker import FAIL, OK, SKIP, TaskAction, TaskFilter, Tx, WorkerCredentials


class StillClock(tracker.Clock):
    """A clock that only a test moves."""

    START = 1_600_000_000

    def __init__(self) -> None:
        super().__init__()
        self.now = self.down = 0.0  # seconds for which the tracker was up, and was not

    def time(self) -> float:
        return self.START + self.now + self.down

    def uptime(self) -> float:
        return self.now


ENVELOPES = {row.function: row.envelope for row in tracker.API}


@functools.cache
def takes_caller(function: Callable) -> bool:
    """Whether the function is called for somebody: the seam resolves who that is, from credentials."""
    _, *second = list(inspect.signature(function).parameters.values())[:2]
    return [str(one.annotation).removeprefix("tracker.") for one in second] == ["Caller"]


def call(tx: Tx, function: Callable, *args: Any) -> Any:
    """Calls a domain function as the seam does: with whoever comes with these credentials; what a client gets.

    All is counted when it begins, and when it has ended.
    """
    tx.counts.write(tx)
    outcome = tracker.as_caller(tx, function, *args) if takes_caller(function) else function(tx, *args)
    tx.counts.write(tx)
    outcome = plain(outcome)
    return {ENVELOPES[function]: outcome} if ENVELOPES.get(function) else outcome


def plain(outcome: Any) -> Any:
    """Structs as JSON shows them."""
    if isinstance(outcome, tracker.Assigned):
        return outcome._replace(tasks=list(map(plain, outcome.tasks)))
    if isinstance(outcome, msgspec.Struct) or (
        isinstance(outcome, list) and isinstance((*outcome, 0)[0], msgspec.Struct)
    ):
        return msgspec.json.decode(tracker.encode(outcome))
    return outcome


def check_counts(connection: sqlite3.Connection) -> None:
    """The live counts are those of the tasks that there are."""
    connection.execute("BEGIN IMMEDIATE")  # a tracker that writes between this reading and writing would refuse it
    counts = [stored_counts(connection), tracker.recount(connection) or stored_counts(connection)]
    connection.execute("ROLLBACK")
    assert counts[0] == counts[1]


def stored_counts(connection: sqlite3.Connection) -> list[tuple]:
    selects = (
        f"SELECT id, {', '.join(tracker.COUNT_COLUMNS)} FROM project",
        "SELECT project, worker, held_task_count FROM tally",
        "SELECT id, project, failed_task_count FROM cause ORDER BY id",
    )
    return [tuple(row) for select in selects for row in connection.execute(select)]


def is_of_a_test(error: Exception) -> bool:
    """Whether a test has raised it itself, which may do so when it likes."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).parent == Path(__file__).parent


class Memory:
    """A tracker's database in memory. `do` runs a domain function in a transaction of its own."""

    def __init__(self, **settings: Any) -> None:
        self.connection = lend(self, empty_tracker().serialize())
        self.settings, self.clock = tracker.Settings(**settings), StillClock()
        self.announced: Counter[int] = Counter()  # project: how many of its tasks the last transaction said are ready

    def do(self, function: Callable, *args: Any) -> Any:
        """What it returns. What it refuses it has to refuse before it writes: see conftest.refuse_before_writing."""
        self.connection.execute("BEGIN IMMEDIATE")
        tx, changes = Tx(self.connection, self.clock, self.settings), self.connection.total_changes
        try:
            outcome = call(tx, function, *args)
        except BaseException as error:
            self.connection.execute("ROLLBACK")
            refused = isinstance(error, tracker.TrackerError) and not is_of_a_test(error)
            assert not (refused and self.connection.total_changes != changes), f"refused after it had written: {error}"
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

    def furnish(self) -> Place:
        """Makes a Place, in a database that is new: a copy of the first one, at a tenth of the time."""
        first, place = furnished()
        self.connection = lend(self, first)
        return copy.deepcopy(place)

    def rows(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        return self.connection.execute(sql, parameters).fetchall()

    def values(self, sql: str, *parameters: Any) -> list[tuple]:
        return [tuple(row) for row in self.rows(sql, *parameters)]


def in_memory(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A database of its own with the same contents."""
    other = sqlite3.connect(":memory:", isolation_level=None)
    other.row_factory = sqlite3.Row
    connection.backup(other)
    return other


class Queue(Memory):
    """One project with its manager, in memory, and the verbs of those who use it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(session_lifetime=1e9, **settings)
        self.session = self.do(tracker.register_manager, "admin", "unused")[1]
        self.project = self.create_project("first")
        self.worker = self.create_worker()

    def create_project(self, name: str, **fields: Any) -> int:
        """A project to which every worker that there is has access."""
        project = self.do(tracker.create_project, self.session, shapes.ProjectBody(name=name, **fields))["id"]
        for (worker,) in self.values("SELECT id FROM worker"):
            self.give_access(worker, project)
        return project

    def give_access(self, worker: int, project: int) -> None:
        body = shapes.WorkerRolesBody(worker, assign=True, submit=True)
        self.do(tracker.set_worker_access, self.session, project, body)

    def create_manager(self, username: str, role: int = 0) -> bytes:
        """The session of a manager with this role in the project."""
        manager, session = self.do(tracker.register_manager, username, "unused")
        body = shapes.RoleBody(manager=manager.id, role=role)
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

    def release(
        self, task: int, result: int = OK, worker: WorkerCredentials | None = None, hash64: int = 0, **more: Any
    ) -> bool:
        return self.do(tracker.release_task, worker or self.worker, shapes.ReleaseBody(task, result, hash64, **more))

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


class Jobs(Queue):
    """The queue with templates and workflows, and the verbs of those who want jobs done and of those who do them."""

    def create_template(self, name: str = "build", project: int | None = None, **fields: Any) -> int:
        """The id of a new template."""
        body = template_body(project or self.project, name, **fields)
        return self.do(tracker.create_template, self.session, body)["template"]["id"]

    def update_template(self, template: int, **fields: Any) -> None:
        body = msgspec.convert(fields, shapes.TemplateBody)
        self.do(tracker.update_template, self.session, template, body)

    def trigger(
        self, template: int, variables: dict[str, Any] | None = None, arguments: Iterable[Any] = (), caller: Any = None
    ) -> str:
        """The id of a new job."""
        body = shapes.TriggerBody(variables or {}, list(arguments))
        return self.do(tracker.trigger_template, caller or self.session, template, body)["job"]["id"]

    def assigned(self, worker: WorkerCredentials | None = None) -> dict[str, Any]:
        """The task that a worker is assigned, as its answer has it."""
        (task,) = self.do(tracker.assign_tasks, worker or self.worker, [self.project]).tasks
        return msgspec.json.decode(tracker.encode(task))

    def finish_job(self, task: int, result: int = OK, output: Any = UNSET, worker: Any = None, **more: Any) -> bool:
        """A worker releases the task of a job, with its output: whether that changed it."""
        output = output if output is UNSET else msgspec.Raw(tracker.encode(output))
        body = shapes.ReleaseBody(task, result, output=output, **more)
        return self.do(tracker.release_task, worker or self.worker, body)

    def take_back(self, task: int, worker: Any = None) -> int:
        """The worker has gone before it could hear of the task."""
        attempt = self.task(task)["attempt"]
        return self.do(tracker.take_back, (worker or self.worker).id, [(task, attempt)])

    def run(self, result: int = OK, output: Any = UNSET) -> str:
        """A worker is assigned the next task, which is a job's, and releases it: the job's id."""
        task = self.assigned()
        assert self.finish_job(task["id"], result, output)
        return task["job"]["id"]

    def log(self, task: int, *messages: str, first: int | None = None, level: str = "info") -> dict[str, Any]:
        """A worker logs about a task that it holds, or thinks that it does."""
        entries = [shapes.TaskEntry(message, 7, level) for message in messages]
        return self.do(tracker.log_to_task, self.worker, shapes.TaskLogBody(task, entries, first))

    def job(self, job: str) -> dict[str, Any]:
        """The job as the JSON API shows it."""
        shown = self.do(tracker.get_job, self.session, job)
        return msgspec.json.decode(tracker.encode(shown))["job"]

    def state(self, job: str) -> str:
        return self.job(job)["state"]

    def lines(self, job: str, after: int = 0) -> list[str]:
        """The job's log, without the lines of the tracker."""
        entries = self.do(tracker.get_job_log, self.session, job, shapes.LinesQuery(after))["entries"]
        return [entry["message"] for entry in entries if entry["worker"]]

    def said(self, job: str) -> list[str]:
        """What the tracker has to say in the job's log."""
        entries = self.do(tracker.get_job_log, self.session, job, shapes.LinesQuery())["entries"]
        return [entry["message"] for entry in entries if entry["scope"] == "tracker"]

    def cancel(self, job: str, caller: Any = None) -> None:
        self.do(tracker.cancel_job, caller or self.session, job)

    def retry(self, job: str, caller: Any = None) -> str:
        """The id of the new job."""
        return self.do(tracker.retry_job, caller or self.session, job)["job"]["id"]

    def list(self, caller: Any = None, **query: Any) -> list[str]:
        """The ids of the jobs that match, the newest first."""
        found: list[str] = []
        while True:
            answer = self.do(tracker.list_jobs, caller or self.session, shapes.JobsQuery(**query))
            found += [job["id"] for job in answer["jobs"]]
            if answer["before"] is None:
                return found
            query["before"] = answer["before"]

    def pass_lease(self, seconds: float = 1e6) -> None:
        """Time passes, and what is due is taken back."""
        self.clock.now += seconds
        while self.do(tracker.expire_tasks):
            pass

    def prune(self) -> None:
        """What the tracker forgets in the background."""
        template = 0
        while template is not None:
            template = self.do(tracker.prune_jobs, template)
        for table in tracker.PRUNE:
            while self.do(tracker.prune, table):
                pass

    def create_workflow(self, start: int, *edges: tuple[int, str, int], name: str = "release") -> int:
        """The id of a new workflow. An edge: template, ending, target."""
        body = shapes.WorkflowBody(
            project=self.project, name=name, start=start, edges=[shapes.Edge(*edge) for edge in edges]
        )
        return self.do(tracker.create_workflow, self.session, body)["workflow"]["id"]

    def start(self, workflow: int, variables: dict[str, Any] | None = None, arguments: Iterable[Any] = ()) -> str:
        """The id of a new run of the workflow."""
        body = shapes.TriggerBody(variables or {}, list(arguments))
        return self.do(tracker.trigger_workflow, self.session, workflow, body)["job"]["id"]

    def steps(self, run: str) -> dict[str, str]:
        """The steps of a run, by template's name and in their order: their states."""
        rows = self.rows(
            "SELECT s.name, s.state FROM job s JOIN job r ON s.workflow_job = r.id WHERE r.token = ? ORDER BY s.id", run
        )
        return {row["name"]: row["state"] for row in rows}


def template_body(project: int, name: str, **fields: Any) -> shapes.TemplateBody:
    return msgspec.convert({"project": project, "name": name, **fields}, shapes.TemplateBody)


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
        while (row := await one.db.read(tracker.as_caller, tracker.get_operation, session, operation))[
            "finished"
        ] is None:
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
    third: int  # the project of the jobs
    template: int
    other_template: int
    workflow: int
    jobs: dict[str, tuple[str, int | None]]  # their ids, and their tasks; `running` and some others are held


def furnish(tx: Tx) -> Place:
    """Makes a Place. Its worker holds all tasks of `held`."""
    session = tracker.register_manager(tx, "admin", "unused")[1]
    manager = tracker.register_manager(tx, "other", "unused")[0].id
    second = call(tx, tracker.create_project, session, shapes.ProjectBody(name="second", keep_hashes=True))["id"]
    body = shapes.ProjectBody(name="first", chain=second, keep_hashes=True, git_repo="owner/first")
    first = call(tx, tracker.create_project, session, body)["id"]
    worker, other, stranger = (create_worker(tx) for _ in range(3))
    for caller, project in itertools.product((worker, other), (first, second)):
        call(tx, tracker.request_access, caller, shapes.AccessBody(project, assign=True, submit=True))
        call(tx, tracker.accept_request, session, project, caller.id)
    call(tx, tracker.request_access, stranger, shapes.AccessBody(first, assign=True))

    def hold(verification_count: int, verified_by: WorkerCredentials | None = None, **fields: Any) -> int:
        """The id of a new task that the worker holds."""
        task = new_task(first, verification_count=verification_count, **fields)
        tracker.submit_task(tx, worker, task)
        if verified_by:
            (assigned,) = call(tx, tracker.assign_tasks, verified_by, [first]).tasks
            tracker.release_task(tx, verified_by, shapes.ReleaseBody(assigned["id"], OK, 7))
        (assigned,) = call(tx, tracker.assign_tasks, worker, [first]).tasks
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
    crowd = [create_worker(tx) for _ in range(3)]
    for one in crowd:
        call(tx, tracker.set_worker_access, session, first, shapes.WorkerRolesBody(one.id, assign=True))

    def verify_by(verifiers: list[WorkerCredentials], **fields: Any) -> int:
        """The id of a new task that so many have verified and that needs one more."""
        tracker.submit_task(tx, worker, new_task(first, verification_count=len(verifiers) + 1, **fields))
        for one in verifiers:
            (assigned,) = call(tx, tracker.assign_tasks, one, [first]).tasks
            tracker.release_task(tx, one, shapes.ReleaseBody(assigned["id"], OK, 7))
        return assigned["id"]

    held["verified by two"] = verify_by(crowd[:2])
    tx.execute("UPDATE task SET verification_count = 4 WHERE id = ?", (held["verified by two"],))
    call(tx, tracker.assign_tasks, worker, [first])
    verify_by(crowd, priority=-5)
    tx.execute("UPDATE task SET deadline_uptime = 0 WHERE id = ?", (held["expired"],))
    failed = hold(1)
    tracker.release_task(tx, worker, shapes.ReleaseBody(failed, FAIL))
    for result in (OK, SKIP):
        tracker.release_task(tx, worker, shapes.ReleaseBody(hold(1), result))
    tracker.submit_tasks(tx, worker, [new_task(first, hash64=number) for number in range(1, 4)])
    waiting = [row["id"] for row in tx.all("SELECT id FROM task WHERE hash64 BETWEEN 1 AND 3")]
    tracker.submit_task(tx, worker, new_task(second, hash64=5))
    tx.execute("UPDATE project SET assign_rate = 100, submit_rate = 100")
    tx.execute("INSERT INTO kept_hash VALUES (?, 99)", (first,))
    tracker.add_log_entry(tx, worker, "error", shapes.LogBody("old", 1, "old"))
    tx.execute("UPDATE log_entry SET received = 0")
    tx.execute("UPDATE assignment SET end_time = 0")
    tx.execute("INSERT INTO tally_hour VALUES (0, ?, ?, 1)", (first, worker.id))
    operations = begin_operations(tx, session, worker, first)
    secret = call(tx, tracker.get_webhook_secret, session, first)["webhook_secret"]
    return Place(
        *(session, worker, other, stranger, first, second, manager, secret, held, waiting, failed, operations),
        *furnish_jobs(tx, session, worker),
    )


@functools.cache
def furnished() -> tuple[bytes, Place]:
    memory = Memory()
    place = memory.do(furnish)
    return memory.connection.serialize(), place


def furnish_jobs(
    tx: Tx, session: bytes, worker: WorkerCredentials
) -> tuple[int, int, int, int, dict[str, tuple[str, int | None]]]:
    """A project with two templates, a workflow of them, and jobs in every state."""
    project = call(tx, tracker.create_project, session, shapes.ProjectBody(name="third", submit_rate=100))["id"]
    body = shapes.WorkerRolesBody(worker.id, assign=True, submit=True)
    call(tx, tracker.set_worker_access, session, project, body)
    fields = {"api": True, "script": "echo", "variables": [{"name": "a"}], "max_retries": 2, "keep_count": 5}
    template, other, gone = (
        call(tx, tracker.create_template, session, template_body(project, name, **fields))["template"]["id"]
        for name in ("build", "other", "gone")
    )
    for script in ("forgotten", "kept with its template"):
        call(tx, tracker.update_template, session, gone, shapes.TemplateBody(script=script))
    call(tx, tracker.delete_template, session, gone)
    body = shapes.WorkflowBody(
        project=project, name="release", start=template, edges=[shapes.Edge(template, "success", other)]
    )
    workflow = call(tx, tracker.create_workflow, session, body)["workflow"]["id"]
    given = shapes.TriggerBody({"a": 1, "b": 2})
    jobs: dict[str, tuple[str, int | None]] = {}

    def begin(name: str) -> None:
        job = call(tx, tracker.trigger_template, session, template, given)["job"]
        jobs[name] = job["id"], job["task"]
        call(tx, tracker.assign_tasks, worker, [project])

    for name in ("running", "at its last attempt", "expired", "expired at last", "failed", "closed"):
        begin(name)
    tx.execute(
        "UPDATE task SET retries = 1 WHERE id IN (?, ?)", (jobs["at its last attempt"][1], jobs["expired at last"][1])
    )
    tx.execute(
        "UPDATE task SET deadline_uptime = 0 WHERE id IN (?, ?)", (jobs["expired"][1], jobs["expired at last"][1])
    )
    tracker.release_task(tx, worker, shapes.ReleaseBody(jobs["failed"][1], FAIL))
    tracker.release_task(tx, worker, shapes.ReleaseBody(jobs["closed"][1], OK))
    call(tx, tracker.cancel_job, session, jobs["failed"][0])  # which waits again
    for name in ("run", "cancelled run"):
        run = call(tx, tracker.trigger_workflow, session, workflow, given)["job"]["id"]
        step = tx.one("SELECT token, task FROM job WHERE id = (SELECT MAX(id) FROM job)")
        jobs |= {name: (run, None), f"step of the {name}": tuple(step)}
    call(tx, tracker.cancel_job, session, jobs["cancelled run"][0])
    call(tx, tracker.assign_tasks, worker, [project])  # the step of the run
    for name in ("waiting", "the last"):
        job = call(tx, tracker.trigger_template, session, other, given)["job"]
        jobs[name] = job["id"], job["task"]
    call(tx, tracker.log_to_task, worker, shapes.TaskLogBody(jobs["running"][1], [shapes.TaskEntry("line", 1)], 0))
    tx.execute("UPDATE job SET finished = 1 WHERE finished IS NOT NULL")
    return project, template, other, workflow, jobs


def begin_operations(tx: Tx, session: bytes, worker: WorkerCredentials, project: int) -> dict[str, int]:
    """One operation of each kind that has just begun, two uploads that are not accepted yet, one that is long over."""
    kinds = ("reset_failed", "reclaim_assigned", "hard_reset")
    operations = {kind: call(tx, tracker.begin_reset, session, project, kind) for kind in kinds}
    for action, state in (("retry", "failed"), ("requeue", "assigned"), ("set_priority", "waiting")):
        body = TaskAction(action, 5)
        operations[action] = call(
            tx, tracker.begin_action, session, project, body, TaskFilter(state, "recipe", priority=0)
        )
    operations["delete"] = call(
        tx, tracker.begin_action, session, project, TaskAction("delete"), TaskFilter("assigned")
    )
    tasks = [new_task(project, hash64=number) for number in range(2, 8)]
    lines = [[number, *task] for number, task in enumerate(tasks, 1)]
    for name in ("bulk", "staged"):
        operations[name] = tracker.begin_bulk_submit(tx, worker, project)
        tracker.add_bulk_piece(tx, operations[name], 1, tracker.encode(tasks))
    for name in ("lines", "staged lines", "finished"):
        operations[name] = call(tx, tracker.begin_lines_submit, session, project)
        tracker.add_bulk_piece(tx, operations[name], 1, tracker.encode(lines))
    tx.execute("UPDATE operation SET accepted = 1 WHERE id IN (?, ?)", (operations["bulk"], operations["lines"]))
    tx.execute("UPDATE operation SET accepted = 1, finished = 0 WHERE id = ?", (operations["finished"],))
    tx.execute("DELETE FROM bulk_piece WHERE operation = ?", (operations["finished"],))
    return operations


def create_worker(tx: Tx) -> WorkerCredentials:
    worker = call(tx, tracker.create_worker, None, shapes.AliasBody("worker"))["worker"]
    return WorkerCredentials(worker["id"], worker["secret"].encode())


def new_task(project: int, recipe: str = "recipe", **fields: Any) -> tracker.NewTask:
    return tracker.new_task(shapes.SubmitBody(project, recipe, **fields))


def begin_reset(tx: Tx, project: int, kind: str) -> int:
    """Begins a reset, whoever wants it."""
    if kind == "hard_reset":
        return tracker.insert_operation(tx, kind, project)
    action = tracker.RESETS[kind]
    wanted = tracker.encode(TaskFilter(tracker.ACTIONS[action].state)).decode()
    return tracker.insert_operation(tx, action, project, wanted=wanted)


Operation = tuple[Callable, tuple]


def release(place: Place, name: str, result: int = OK, verification: int = 7) -> Operation:
    body = shapes.ReleaseBody(place.held[name], result, verification)
    return tracker.release_task, (place.worker, body)


def release_many(place: Place) -> Operation:
    bodies = [shapes.ReleaseBody(task, OK, 7) for task in place.held.values()]
    return tracker.release_tasks, (place.worker, bodies)


def release_job(place: Place, name: str, result: int = OK, output: Any = UNSET) -> Operation:
    output = output if output is UNSET else msgspec.Raw(tracker.encode(output))
    body = shapes.ReleaseBody(place.jobs[name][1], result, output=output)
    return tracker.release_task, (place.worker, body)


def log_to_job(place: Place) -> Operation:
    entries = [shapes.TaskEntry("a line", 1), shapes.TaskEntry("another", 1, "warn")]
    return tracker.log_to_task, (place.worker, shapes.TaskLogBody(place.jobs["running"][1], entries, 0))


def act(place: Place, action: str, *tasks: int) -> Operation:
    return tracker.act_on_tasks, (place.session, place.first, TaskAction(action, 5), list(tasks))


def step(place: Place, name: str) -> Operation:
    return tracker.step_operation, (place.operations[name],)


def push(place: Place) -> Operation:
    pushed = shapes.PushBody(
        ref="refs/heads/main", after="c0ffee", repository=shapes.Repository(full_name="owner/first")
    )
    return tracker.receive_push, (pushed, b"the body", {place.first: place.webhook_secret})


def discard_bulk_submit(tx: Tx, operation: int) -> None:
    while tracker.discard_bulk_pieces(tx, operation):
        pass


# Every operation that writes in more than one place, or might one day.
OPERATIONS: dict[str, Callable[[Place], Operation]] = {
    "submit": lambda p: (tracker.submit_task, (p.worker, new_task(p.first, hash64=50))),
    "submit a unique string": lambda p: (tracker.submit_task, (p.worker, new_task(p.first, unique_string="x"))),
    "submit a delayed task": lambda p: (tracker.submit_task, (p.worker, new_task(p.first)._replace(due=-60.0))),
    "submit many": lambda p: (tracker.submit_tasks, (p.worker, [new_task(p.first, hash64=n) for n in range(60, 130)])),
    "assign": lambda p: (tracker.assign_tasks, (p.worker, [p.first])),
    "assign many of two projects": lambda p: (tracker.assign_tasks, (p.worker, [p.second, p.first], 4)),
    "assign one that awaits verification": lambda p: (tracker.assign_tasks, (p.other, [p.first], 5)),
    "assign one that three have verified": lambda p: (tracker.assign_tasks, (p.other, [p.first], 9)),
    "close and chain": lambda p: release(p, "plain"),
    "fail at last": lambda p: release(p, "with one attempt", FAIL),
    "fail": lambda p: release(p, "with two attempts", FAIL),
    "skip": lambda p: release(p, "plain", SKIP),
    "skip with a delay": lambda p: (
        tracker.release_task,
        (p.worker, shapes.ReleaseBody(p.held["plain"], SKIP, delay=60)),
    ),
    "extend": lambda p: (tracker.extend_tasks, (p.worker, [shapes.Extension(p.held["plain"], 9e4)])),
    "verify": lambda p: release(p, "to verify"),
    "verify and close": lambda p: release(p, "verified"),
    "verify differently": lambda p: release(p, "verified differently", verification=8),
    "verify as the third": lambda p: release(p, "verified by two"),
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
    "begin a deletion": lambda p: (tracker.begin_deletion, (p.session, p.first)),
    "begin a deletion of a project with jobs": lambda p: (tracker.begin_deletion, (p.session, p.third)),
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
        (p.session, p.operations["staged lines"], shapes.LinesReport(6)),
    ),
    "carry out an upload": lambda p: step(p, "lines"),
    "discard a bulk submit": lambda p: (discard_bulk_submit, (p.operations["staged"],)),
    "create a worker": lambda p: (tracker.create_worker, (None, shapes.AliasBody("new"))),
    "rename a worker": lambda p: (tracker.update_worker, (p.worker, shapes.AliasBody("renamed"))),
    "pause a worker": lambda p: (tracker.set_worker_paused, (p.session, shapes.PauseBody(p.worker.id, True))),
    "create a project": lambda p: (tracker.create_project, (p.session, shapes.ProjectBody(name="new", chain=p.first))),
    "update a project": lambda p: (
        tracker.update_project,
        (p.session, p.first, shapes.ProjectBody(chain=0, motd="x")),
    ),
    "request access": lambda p: (tracker.request_access, (p.stranger, shapes.AccessBody(p.second, submit=True))),
    "accept a request": lambda p: (tracker.accept_request, (p.session, p.first, p.stranger.id)),
    "give a worker access": lambda p: (
        tracker.set_worker_access,
        (p.session, p.first, shapes.WorkerRolesBody(p.stranger.id, submit=True)),
    ),
    "reject a request": lambda p: (tracker.reject_request, (p.session, p.first, p.stranger.id)),
    "reject all requests": lambda p: (tracker.reject_requests, (p.session, p.first)),
    "set a secret": lambda p: (tracker.set_secret, (p.session, p.first, shapes.SecretBody("x"))),
    "set a webhook secret": lambda p: (
        tracker.set_webhook_secret,
        (p.session, p.first, shapes.WebhookSecretBody("x")),
    ),
    "receive a push": push,
    "register a manager": lambda p: (tracker.register_manager, ("new", "unused")),
    "begin a login": lambda p: (tracker.count_login, ("admin", "127.0.0.1")),
    "finish a login": lambda p: (tracker.accept_login, (p.manager, "unused", "other", "127.0.0.1")),
    "log out": lambda p: (tracker.end_session, (p.session,)),
    "promote": lambda p: (tracker.promote_manager, (p.session, p.manager)),
    "set a role": lambda p: (tracker.set_role, (p.session, p.first, shapes.RoleBody(manager=p.manager, role=3))),
    "set the role of a named manager": lambda p: (
        tracker.set_named_role,
        (p.session, p.first, shapes.RoleForm("other", read=True)),
    ),
    "begin a change of the password": lambda p: (tracker.count_password_attempt, (p.session,)),
    "finish a change of the password": lambda p: (
        tracker.store_password,
        (p.session, "new"),
    ),
    "give an admin a new password": lambda p: (tracker.make_admin, ("admin", "new", True)),
    "create a template": lambda p: (
        tracker.create_template,
        (p.session, template_body(p.third, "new", script="new", variables=[{"name": "a"}], key="any key!")),
    ),
    "update a template": lambda p: (
        tracker.update_template,
        (p.session, p.template, shapes.TemplateBody(name="new", script="new", api=True)),
    ),
    "delete a template": lambda p: (tracker.delete_template, (p.session, p.template)),
    "rotate a template's secret": lambda p: (tracker.rotate_template_secret, (p.session, p.template)),
    "trigger as a worker": lambda p: (
        tracker.trigger_template,
        (p.worker, p.template, shapes.TriggerBody({"a": 1})),
    ),
    "trigger as a manager": lambda p: (tracker.trigger_template, (p.session, p.template, shapes.TriggerBody())),
    "assign a job": lambda p: (tracker.assign_tasks, (p.worker, [p.third])),
    "assign several jobs and nothing else": lambda p: (tracker.assign_tasks, (p.worker, [p.third], 2, True)),
    "log about a job": log_to_job,
    "log a line about a job": lambda p: (
        tracker.add_log_entry,
        (p.worker, "error", shapes.LogBody("scope", 1, "message", task_id=p.jobs["running"][1])),
    ),
    "close a job": lambda p: release_job(p, "running", OK, {"state": "warning", "output": [1]}),
    "close a job that reports failure": lambda p: release_job(p, "running", OK, {"state": "failure"}),
    "fail a job": lambda p: release_job(p, "running", FAIL, {"code": 1}),
    "fail a job at last": lambda p: release_job(p, "at its last attempt", FAIL, {"killed": True}),
    "skip a job": lambda p: release_job(p, "running", SKIP),
    "end a step": lambda p: release_job(p, "step of the run", OK, {"output": [1]}),
    "cancel a job": lambda p: (tracker.cancel_job, (p.session, p.jobs["running"][0])),
    "cancel a waiting job": lambda p: (tracker.cancel_job, (p.worker, p.jobs["waiting"][0])),
    "cancel a step": lambda p: (tracker.cancel_job, (p.session, p.jobs["step of the run"][0])),
    "cancel a run": lambda p: (tracker.cancel_job, (p.session, p.jobs["run"][0])),
    "retry a job": lambda p: (tracker.retry_job, (p.worker, p.jobs["closed"][0])),
    "retry a run": lambda p: (tracker.retry_job, (p.session, p.jobs["cancelled run"][0])),
    "requeue a job": lambda p: (
        tracker.act_on_tasks,
        (p.session, p.third, TaskAction("requeue"), [p.jobs["running"][1]]),
    ),
    "delete a job's task": lambda p: (
        tracker.act_on_tasks,
        (p.session, p.third, TaskAction("delete"), [p.jobs["running"][1], p.jobs["step of the run"][1]]),
    ),
    "set the priority of a job's task": lambda p: (
        tracker.act_on_tasks,
        (p.session, p.third, TaskAction("set_priority", 5), [p.jobs["waiting"][1]]),
    ),
    "create a workflow": lambda p: (
        tracker.create_workflow,
        (
            p.session,
            shapes.WorkflowBody(
                project=p.third, name="new", start=p.template, edges=[shapes.Edge(p.template, "failure", p.template)]
            ),
        ),
    ),
    "update a workflow": lambda p: (
        tracker.update_workflow,
        (p.session, p.workflow, shapes.WorkflowBody(name="new", edges=[])),
    ),
    "delete a workflow": lambda p: (tracker.delete_workflow, (p.session, p.workflow)),
    "rotate a workflow's secret": lambda p: (tracker.rotate_workflow_secret, (p.session, p.workflow)),
    "trigger a workflow": lambda p: (tracker.trigger_workflow, (p.worker, p.workflow, shapes.TriggerBody())),
    "log": lambda p: (tracker.add_log_entry, (p.worker, "error", shapes.LogBody("scope", 1, "message"))),
    "roll the tallies": lambda p: (tracker.roll_tallies, ((0, 0), 7)),
    "prune jobs": lambda p: (tracker.prune_jobs, (p.template,)),
    "prune runs": lambda p: (tracker.prune_jobs, (0,)),
    "prune templates": lambda p: (tracker.prune, ("template",)),
    "prune scripts": lambda p: (tracker.prune, ("script",)),
    "prune log lines": lambda p: (tracker.prune, ("log_entry",)),
    "prune assignments": lambda p: (tracker.prune, ("assignment",)),
    "prune operations": lambda p: (tracker.prune, ("operation",)),
    "prune tallies": lambda p: (tracker.prune, ("tally_hour",)),
}
