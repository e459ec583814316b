"""Two life cycles of tasks, interleaved and driven at random, against a model that is simple enough to trust.

The model and the tracker agree after every step: on what each call returns, and on every table that a task touches.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest
from conftest import empty_tracker
from hypothesis import note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from place import StillClock, call

import failures
import pages
import pauses
import retention
import shapes
import tracker
import workers as workers_module
from database import load_seen, load_uptime, save_uptime
from tracker import DELAYED, FAIL, FAILED, NEW, OK, SKIP, TaskAction, TaskFilter

DEFAULT_TIME = 100  # seconds; the max_assign_time of tasks that have none of their own
DEFAULT_LOST = 3  # leases; the max_lost_leases of projects that have none of their own
MOST_FAILURES = 2  # in a row; then a worker is paused
HOUR = 3600
WORKERS, PROJECTS = range(5), range(2)
REASONS = ("", "HTTP 404", "took 5 s", "took 7 s")


# ── The model ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Task:
    """A task that is not closed yet. `number` counts up in the order of submission."""

    number: int
    project: Project
    recipe: str
    priority: int
    max_retries: int
    max_assign_time: int
    verification_count: int
    hash64: int | None
    status: int = NEW
    retries: int = 0
    lost_leases: int = 0
    attempt: int = 0
    not_before: float | None = None  # by the clock, as seconds since its start
    assignee: int | None = None
    assigned: float | None = None  # by the clock, too
    assigned_uptime: float | None = None
    deadline: float | None = None
    reports: dict[int, int] = dataclasses.field(default_factory=dict)  # worker: the hash that it reported
    failure: tuple[int, int, str] | None = None  # the last one: worker, attempt, reason
    changes: int = 0  # how often it has changed state

    def is_ready(self) -> bool:
        return self.status == NEW and self.assignee is None

    def state(self) -> str:
        if self.assignee is not None:
            return "assigned"
        if self.status != NEW:
            return "failed" if self.status == FAILED else "delayed"
        return "awaiting_verification" if self.reports else "waiting"

    def put_back(self) -> None:
        self.assignee = self.assigned = self.assigned_uptime = self.deadline = None
        self.changes += 1

    def delay(self, until: float) -> None:
        self.status, self.not_before = DELAYED, until

    def rest(self, now: float) -> None:
        """After an attempt that came to nothing, which has been counted."""
        if self.project.retry_delay:
            self.delay(now + min(3600, self.project.retry_delay * 2 ** (self.retries + self.lost_leases - 1)))

    def wake(self) -> None:
        self.status, self.not_before = NEW, None
        self.changes += 1


class Past(NamedTuple):
    """An assignment that has ended, by the clock."""

    task: int  # its number
    worker: int
    began: float
    ended: float
    outcome: str


@dataclasses.dataclass
class Tally:
    """What a worker has closed in a project."""

    runtimes: list[float] = dataclasses.field(default_factory=list)
    rolled: int = 0
    hours: Counter[int] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass
class Project:
    id: int
    priority: int = 1
    paused: bool = False
    keep_hashes: bool = False
    retry_delay: float = 0
    max_lost_leases: int | None = None
    chain: Project | None = None
    closed: int = 0
    kept: set[int] = dataclasses.field(default_factory=set)


class Model:
    """The queue as a list in order of submission, and plain loops over it.

    `now` is the uptime, which stands still while the tracker is down: `down` seconds in all.
    """

    def __init__(self) -> None:
        self.down = 0.0
        self.tasks: list[Task] = []
        self.submitted = 0
        self.past: list[Past] = []
        self.tallies: defaultdict[tuple[int, int], Tally] = defaultdict(Tally)  # of each project and worker
        self.failures: Counter[tuple[int, int]] = Counter()  # in a row
        self.pauses: dict[tuple[int, int], float] = {}

    def submit(self, project: Project, recipe: str, now: float, due: float | None = None, **fields: Any) -> bool:
        """Whether the task's hash was free."""
        hash64 = fields["hash64"]
        live = {task.hash64 for task in self.tasks if task.project is project}
        if hash64 is not None and hash64 in live | (project.kept if project.keep_hashes else set()):
            return False
        self.submitted += 1
        task = Task(self.submitted, project, recipe, **fields)
        self.tasks.append(task)
        now += self.down
        if due is not None and (until := now - due if due < 0 else due - StillClock.START) > now:
            task.delay(until)
        return True

    def assign(self, worker: int, projects: list[Project], count: int, now: float) -> list[Task]:
        """Highest project priority, then highest task priority, then oldest. On trial one of a project."""
        able = [
            task
            for task in self.tasks
            if task.is_ready() and task.project in projects and not task.project.paused and worker not in task.reports
        ]
        able.sort(key=lambda task: (-task.project.priority, -task.priority, task.number))
        assigned: list[Task] = []
        for task in able:
            place = task.project.id, worker
            if len(assigned) == count or (self.is_failing(place) and self.pauses[place] > now):
                continue
            if self.is_failing(place):
                self.pauses[place] = now + pauses.PAUSE
            task.assignee, task.assigned, task.assigned_uptime = worker, now + self.down, now
            task.deadline = now + (task.max_assign_time or DEFAULT_TIME)
            task.attempt += 1
            task.changes += 1
            assigned.append(task)
        return assigned

    def is_failing(self, place: tuple[int, int]) -> bool:
        return self.failures[place] >= MOST_FAILURES

    def fail(self, task: Task, now: float) -> None:
        """Its assignee has failed it, or lost its lease."""
        place = task.project.id, task.assignee
        self.failures[place] += 1
        if self.failures[place] == MOST_FAILURES or (self.is_failing(place) and self.pauses[place] <= now):
            self.pauses[place] = now + pauses.PAUSE

    def release(
        self,
        task: Task | None,
        worker: int,
        result: int,
        verification: int,
        now: float,
        delay: float = 0,
        attempt: int = 0,
        reason: str = "",
    ) -> bool:
        """Whether the release changed the task (None: it is closed)."""
        if task is None or task.assignee != worker or attempt not in (0, task.attempt):
            return False
        if result == OK:
            same = sum(report == verification for report in task.reports.values()) + 1
            if same >= task.verification_count:
                self.close(task, now)
                return True
            task.reports[worker] = verification
            self.failures[task.project.id, worker] = 0
        if result == FAIL:
            self.fail(task, now)
            task.failure = worker, task.attempt, reason
            task.retries += 1
            if task.retries >= task.max_retries:
                task.status = FAILED
            else:
                task.rest(now + self.down)
        if result == SKIP and delay:
            task.delay(now + self.down + delay)
        self.end(task, {OK: "verified", FAIL: "failed", SKIP: "skipped"}[result], now)
        return result != OK

    def end(self, task: Task, outcome: str, now: float) -> None:
        """The task is taken from its assignee."""
        self.past.append(Past(task.number, task.assignee, task.assigned, now + self.down, outcome))
        task.put_back()

    def close(self, task: Task, now: float) -> None:
        """Of a task that is closed at the first attempt nothing is left but its worker's tally."""
        self.tasks.remove(task)
        self.failures[task.project.id, task.assignee] = 0
        self.tallies[task.project.id, task.assignee].runtimes.append(now - task.assigned_uptime)
        if any(past.task == task.number for past in self.past):
            self.past.append(Past(task.number, task.assignee, task.assigned, now + self.down, "closed"))
        project = task.project
        project.closed += 1
        if project.keep_hashes and task.hash64 is not None:
            project.kept.add(task.hash64)
        if project.chain:
            names = ("priority", "max_retries", "max_assign_time", "verification_count", "hash64")
            self.submit(project.chain, task.recipe, now, **{name: getattr(task, name) for name in names})

    def expire(self, now: float) -> None:
        """Takes back the tasks whose leases have ended. A task of which too many were lost has failed."""
        for task in [task for task in self.tasks if task.deadline is not None and task.deadline <= now]:
            self.fail(task, now)
            task.lost_leases += 1
            most = DEFAULT_LOST if task.project.max_lost_leases is None else task.project.max_lost_leases
            if most and task.lost_leases >= most:
                task.status = FAILED
                task.failure = task.assignee, task.attempt, failures.LOST_LEASE
            else:
                task.rest(now + self.down)
            self.end(task, "expired", now)

    def wake(self, now: float) -> None:
        for task in self.tasks:
            if task.not_before is not None and task.not_before <= now + self.down:
                task.wake()

    def act(self, action: str, priority: int | None, task: Task, now: float) -> bool:
        """What a manager does to a task. Whether that changed it."""
        if not applies(action, priority, task):
            return False
        if action == "retry":
            task.status, task.retries, task.lost_leases = NEW, 0, 0
        elif action == "make_ready":
            task.wake()
        elif action == "requeue":
            self.end(task, "requeued", now)
        elif action == "set_priority":
            task.priority = priority
        else:
            self.tasks.remove(task)
        task.changes += 1
        return True


def applies(action: str, priority: int | None, task: Task) -> bool:
    return {
        "retry": task.status == FAILED,
        "requeue": task.assignee is not None,
        "make_ready": task.status == DELAYED,
        "set_priority": task.priority != priority,
    }.get(action, True)


@dataclasses.dataclass
class Operation:
    """A long operation that has begun: the tasks that it must have dealt with when it is over, unless they changed."""

    id: int
    action: str
    project: Project
    last: int  # the number of the last task that it may touch
    began: float
    wanted: TaskFilter | None = None
    priority: int | None = None
    due: list[tuple[Task, int]] = dataclasses.field(default_factory=list)
    affected: int = 0
    pieces: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)

    def concerns(self, task: Task) -> bool:
        """Whether it is to change the task."""
        return (
            task.project is self.project
            and task.number <= self.last
            and (self.wanted is None or self.wanted.state == task.state())
            and (self.wanted is None or self.wanted.priority in (None, task.priority))
            and (self.action != "requeue" or (task.assignee is not None and task.assigned_uptime <= self.began))
            and applies(self.action, self.priority, task)
        )


RESETS = {
    "reset_failed": ("retry", TaskFilter("failed")),
    "reclaim_assigned": ("requeue", TaskFilter("assigned")),
    "hard_reset": ("hard_reset", None),
}


# ── Both of them side by side ─────────────────────────────────────────────────────────────────────────────────────────

new_tasks = st.fixed_dictionaries(
    {
        "priority": st.sampled_from([0, 0, 1, -1, 2**15 - 1, -(2**15)]),
        "max_retries": st.integers(0, 3),
        "max_assign_time": st.sampled_from([0, 10, 50]),
        "verification_count": st.sampled_from([0, 1, 1, 2, 2, 3, 4, 6]),
        "hash64": st.sampled_from([None, *range(1, 20), -(2**63), 2**63 - 1]),
        "due": st.sampled_from(4 * [None] + [-5.0, -60.0, 1.0, StillClock.START + 30.0, StillClock.START + 1000.0]),
    }
)
workers, projects = st.sampled_from(WORKERS), st.sampled_from(PROJECTS)
wanted_projects = st.lists(projects, min_size=1, max_size=2, unique=True)
results = st.sampled_from(6 * [OK] + 2 * [FAIL] + [SKIP])
verifications = st.sampled_from([7, 7, 7, 7, -8])
outcomes = st.lists(st.tuples(results, verifications), min_size=1, max_size=8)
delays = st.sampled_from([0.0, 0.0, 20.0])
actions = st.sampled_from(2 * ["retry", "requeue", "make_ready", "set_priority"] + ["delete"])
states = st.sampled_from(list(tracker.TASK_STATES))
unusual = st.sampled_from([set(), set(), set(), {"paused"}, {"unchained"}, {"forgetful"}])


class LifeCycles(RuleBasedStateMachine):
    """Each rule does one thing to the tracker and to the model, and compares what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(tracker, "STEP_TASKS", 2), mock.patch.object(tracker.Tx, "STEP_SECONDS", -1)]
        self.patches.append(mock.patch.object(tracker.random, "uniform", lambda low, high: (low + high) / 2))
        for patch in self.patches:  # every transaction of a long operation does one small piece
            patch.start()
        self.clock = StillClock()
        defaults = {"default_max_assign_time": DEFAULT_TIME, "default_max_lost_leases": DEFAULT_LOST}
        defaults |= {"pause_after_failures": MOST_FAILURES, "max_extension": 200}
        self.settings = tracker.Settings(session_lifetime=1e9, **defaults)
        self.connection = self.connect()
        empty_tracker().backup(self.connection)
        self.write(load_uptime)
        self.model, self.operations, self.recipes = Model(), [], 0
        self.ids: dict[int, int] = {}  # number of a task: its id
        self.paused_workers: set[int] = set()
        _, self.session = self.write(tracker.register_manager, "admin", "unused")
        self.projects = [Project(self.create_project(name)) for name in ("first", "second")]
        self.callers = [self.create_worker() for _ in WORKERS]
        self.workers = {caller.id: worker for worker, caller in enumerate(self.callers)}

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        connection.row_factory = sqlite3.Row
        return connection

    def create_project(self, name: str) -> int:
        return self.write(tracker.create_project, self.session, shapes.ProjectBody(name=name))["id"]

    def create_worker(self) -> tracker.WorkerCredentials:
        worker = self.write(tracker.create_worker, None, shapes.AliasBody())["worker"]
        caller = tracker.WorkerCredentials(worker["id"], worker["secret"].encode())
        for project in self.projects:
            body = shapes.AccessBody(project.id, assign=True, submit=True)
            self.write(tracker.request_access, caller, body)
            self.write(tracker.accept_request, self.session, project.id, caller.id)
        return caller

    def write(self, function: Callable, *args: Any) -> Any:
        """One transaction. Checks that every task that became ready in it was announced."""
        ready = self.ready_tasks()
        self.connection.execute("BEGIN IMMEDIATE")
        tx = tracker.Tx(self.connection, self.clock, self.settings)
        try:
            outcome = call(tx, function, *args)
        except tracker.TrackerError:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        announced: Counter[int] = Counter()
        for project, count in tx.ready:
            announced[project] += count
        appeared = Counter(project for _, project in self.ready_tasks() - ready)
        assert all(announced[project] >= count for project, count in appeared.items()), (appeared, announced)
        return outcome

    def ready_tasks(self) -> set[tuple[int, int]]:
        rows = self.rows("SELECT id, project FROM task WHERE status = 1 AND assignee IS NULL")
        return {(row["id"], row["project"]) for row in rows}

    def refusal(self, function: Callable, *args: Any) -> str | None:
        """The code with which the tracker refuses this, or None."""
        try:
            self.write(function, *args)
        except tracker.TrackerError as error:
            return error.code
        return None

    def rows(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        return self.connection.execute(sql, parameters).fetchall()

    def teardown(self) -> None:
        self.connection.close()
        for patch in self.patches:
            patch.stop()

    def remember_ids(self) -> None:
        """Tasks are submitted in the order of their ids: so the new rows are the model's new tasks, in order."""
        new = [task for task in self.model.tasks if task.number not in self.ids]
        rows = self.rows("SELECT id FROM task WHERE id > ? ORDER BY id", max(self.ids.values(), default=0))
        assert len(new) == len(rows)
        self.ids |= {task.number: row["id"] for task, row in zip(new, rows, strict=True)}

    def new_task(self, project: Project, fields: dict[str, Any]) -> tracker.NewTask:
        """What a worker submits. No two have the same recipe."""
        self.recipes += 1
        return tracker.NewTask(project=project.id, recipe=f"task {self.recipes}", **fields)

    def submit_to_model(self, project: Project, tasks: list[tracker.NewTask]) -> int:
        """How many of them the model has taken."""
        taken = 0
        for task in tasks:
            fields = {name: value for name, value in task._asdict().items() if name != "project"}
            taken += self.model.submit(project, now=self.clock.uptime(), **fields)
        return taken

    # ── Submit ──

    @rule(worker=workers, project=projects, fields=new_tasks)
    def submit(self, worker: int, project: int, fields: dict[str, Any]) -> None:
        task = self.new_task(self.projects[project], fields)
        taken = self.submit_to_model(self.projects[project], [task])
        assert self.refusal(tracker.submit_task, self.callers[worker], task) == (None if taken else "conflict")

    @rule(worker=workers, project=projects, many=st.lists(new_tasks, min_size=2, max_size=8))
    def submit_many(self, worker: int, project: int, many: list[dict[str, Any]]) -> None:
        tasks = [self.new_task(self.projects[project], fields) for fields in many]
        answer = self.write(tracker.submit_tasks, self.callers[worker], tasks)
        taken = self.submit_to_model(self.projects[project], tasks)
        assert answer == {"submitted": taken, "duplicates": len(many) - taken}

    @rule(worker=workers, project=projects, many=st.lists(new_tasks, min_size=1, max_size=6), accept=st.booleans())
    def begin_bulk_submit(self, worker: int, project: int, many: list[dict[str, Any]], accept: bool) -> None:
        """In pieces of two, which get into the queue later. Or a crash comes first, and the next start discards it."""
        caller, project = self.callers[worker], self.projects[project]
        tasks = [self.new_task(project, fields) for fields in many]
        pieces = [tasks[start : start + 2] for start in range(0, len(tasks), 2)]
        operation = self.write(tracker.begin_bulk_submit, caller, project.id)
        for number, piece in enumerate(pieces, 1):
            self.write(tracker.add_bulk_piece, operation, number, tracker.encode(piece))
        if accept:
            self.write(tracker.accept_bulk_submit, caller, operation, len(tasks))
            self.operations.append(Operation(operation, "bulk_submit", project, 0, 0, pieces=pieces))
        else:
            assert self.write(tracker.unaccepted_bulk_submits) == [operation]
            while self.write(tracker.discard_bulk_pieces, operation):
                pass

    # ── Assign and release ──

    @rule(worker=workers, wanted=wanted_projects, count=st.integers(1, 6))
    def assign(self, worker: int, wanted: list[int], count: int) -> None:
        self.assigned(worker, wanted, count)

    def assigned(self, worker: int, wanted: list[int], count: int) -> list[Task]:
        caller, wanted = self.callers[worker], [self.projects[project] for project in wanted]
        call = (tracker.assign_tasks, caller, [project.id for project in wanted], count)
        if worker in self.paused_workers:
            assert self.refusal(*call) == "forbidden"
            return []
        running = [project for project in wanted if not project.paused]
        others = any(task.is_ready() and task.project in running for task in self.model.tasks)
        others |= any(self.model.is_failing((project.id, worker)) for project in running)
        tasks = self.model.assign(worker, wanted, count, self.clock.uptime())
        answer = self.write(*call)
        assert [task["id"] for task in answer.tasks] == [self.ids[task.number] for task in tasks]
        for task, shown in zip(tasks, answer.tasks, strict=True):
            assert shown["project"]["id"] == task.project.id
            for name in ("recipe", "priority", "retries", "max_retries", "max_assign_time", "verification_count"):
                assert shown[name] == getattr(task, name)
            assert (shown["attempt"], shown["lease"]) == (task.attempt, task.deadline - self.clock.uptime())
            assert (shown["assignee"], shown["status"]) == (caller.id, NEW)
        assert answer.others == (others and not tasks)
        return tasks

    @rule(worker=workers, wanted=wanted_projects, outcomes=outcomes)
    def work(self, worker: int, wanted: list[int], outcomes: list[tuple[int, int]]) -> None:
        """Is assigned one task after the other, and releases each at once."""
        for result, verification in outcomes:
            tasks = self.assigned(worker, wanted, 1)
            if not tasks:
                break
            self.release_as(worker, tasks[0].number, result, verification)
            self.the_tasks_are_the_same()

    @precondition(lambda self: any(task.assignee is not None for task in self.model.tasks))
    @rule(data=st.data(), result=results, verification=verifications, delay=delays, late=st.sampled_from([0, 0, 1]))
    def release(self, data: st.DataObject, result: int, verification: int, delay: float, late: int) -> None:
        """Some tell their attempt, or an earlier one."""
        held = [task for task in self.model.tasks if task.assignee is not None]
        task = data.draw(st.sampled_from(held))
        attempt = data.draw(st.sampled_from([0, task.attempt - late]))
        self.release_as(task.assignee, task.number, result, verification, delay if result == SKIP else 0, attempt)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), worker=workers, seconds=st.sampled_from([0, 30, 150, 1000]))
    def extend(self, data: st.DataObject, worker: int, seconds: int) -> None:
        """Tasks held by the worker, most of the time, or by another one, waiting, or closed long ago."""
        held = [task.number for task in self.model.tasks if task.assignee == worker]
        numbers = data.draw(st.lists(st.sampled_from(4 * held + sorted(self.ids)), min_size=1, max_size=3))
        now, expected = self.clock.uptime(), []
        for number in numbers:
            task = next((task for task in self.model.tasks if task.number == number), None)
            held = task is not None and task.assignee == worker
            if held:
                task.deadline = max(task.deadline, now + min(seconds, self.settings.max_extension))
            expected.append({"held": held, "left": max(task.deadline - now, 0) if held else 0})
        wishes = [shapes.Extension(self.ids[number], seconds) for number in numbers]
        assert self.write(tracker.extend_tasks, self.callers[worker], wishes) == expected

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), worker=workers, result=results)
    def release_anything(self, data: st.DataObject, worker: int, result: int) -> None:
        """Held by the worker or by another one, waiting, or closed long ago."""
        self.release_as(worker, data.draw(st.sampled_from(sorted(self.ids))), result, 7)

    def release_as(
        self, worker: int, number: int, result: int, verification: int, delay: float = 0, attempt: int = 0
    ) -> None:
        task = next((task for task in self.model.tasks if task.number == number), None)
        reason = REASONS[verification % len(REASONS)] if result == FAIL else ""
        expected = self.model.release(task, worker, result, verification, self.clock.uptime(), delay, attempt, reason)
        body = shapes.ReleaseBody(self.ids[number], result, verification, delay=delay, attempt=attempt, error=reason)
        note(f"worker {worker} releases {task or number}: {result}")
        assert self.write(tracker.release_task, self.callers[worker], body) == expected

    @rule(seconds=st.sampled_from([1, 10, 50, 100, 1000]), noticed=st.booleans())
    def pass_time(self, seconds: int, noticed: bool) -> None:
        """Expiry comes a little later than the deadline, and until then the assignee may still release its task."""
        self.clock.now += seconds
        if noticed:
            for sweep in (tracker.expire_tasks, tracker.wake_tasks):
                while self.write(sweep):
                    pass
            self.model.expire(self.clock.uptime())
            self.model.wake(self.clock.uptime())

    @rule(hours=st.sampled_from([0, 0, 1, 5, 25]), piece=st.sampled_from([1, 2, 100]))
    def pass_hours(self, hours: int, piece: int) -> None:
        """Hours end, and what has been closed in them is added up. What is more than a day old is forgotten."""
        with mock.patch.object(retention, "PIECE_ROWS", piece):
            after = (0, 0)
            while after is not None:
                after = self.write(tracker.roll_tallies, after, self.hour())
            for tally in self.model.tallies.values():
                tally.hours[self.hour()] += len(tally.runtimes) - tally.rolled
                tally.rolled = len(tally.runtimes)
            self.clock.now += hours * HOUR
            while self.write(tracker.prune, "tally_hour"):
                pass
            self.write(pauses.forget_pauses)
        for tally in self.model.tallies.values():
            tally.hours = Counter({hour: count for hour, count in tally.hours.items() if hour >= self.hour() - 24})

    def hour(self) -> int:
        return int(self.clock.time()) // HOUR

    @rule(down=st.sampled_from([0, 5, 100, HOUR]))
    def restart(self, down: int) -> None:
        """Killed, and started again later: all that it knows then is in the file. Leases go on; due times have come."""
        self.write(save_uptime)  # as it does each second
        file = self.connection.serialize()
        self.connection.close()
        self.connection = self.connect()
        self.connection.deserialize(file)
        tx = tracker.Tx(self.connection, self.clock, self.settings)
        assert load_uptime(tx) == self.clock.now
        self.clock.down = self.model.down = self.clock.down + down
        self.clock.start(self.clock.now, load_seen(tx))
        assert self.write(tracker.unfinished_operations) == [operation.id for operation in self.operations]

    # ── What managers do ──

    @rule(
        project=projects,
        priority=st.integers(0, 2),
        unusual=unusual,
        rest=st.sampled_from([0, 0, 7.0, 3000.0]),
        lost=st.sampled_from([None, None, 0, 1]),
    )
    def update_project(self, project: int, priority: int, unusual: set[str], rest: float, lost: int | None) -> None:
        """The first project is chained to the second one, most of the time, and both keep their hashes."""
        chain = self.projects[1] if project == 0 and "unchained" not in unusual else None
        changes = {"paused": "paused" in unusual, "keep_hashes": "forgetful" not in unusual}
        changes |= {"retry_delay": rest, "max_lost_leases": lost}
        self.update(project, priority=priority, chain=chain, **changes)

    @rule(worker=workers, unusual=unusual)
    def pause_or_resume_worker(self, worker: int, unusual: set[str]) -> None:
        self.paused_workers = self.paused_workers | {worker} if "paused" in unusual else self.paused_workers - {worker}
        body = shapes.PauseBody(self.callers[worker].id, worker in self.paused_workers)
        self.write(tracker.set_worker_paused, self.session, body)

    @rule(project=projects, worker=workers)
    def resume_worker_in_project(self, project: int, worker: int) -> None:
        place = self.projects[project].id, worker
        self.write(workers_module.resume_worker, self.session, place[0], self.callers[worker].id)
        if self.model.is_failing(place):
            self.model.failures[place] = 0
        else:
            self.read_failures(place)

    def read_failures(self, place: tuple[int, int]) -> None:
        """A pause that is over, but not forgotten yet, is ended like any other."""
        select = "SELECT failures_in_row FROM tally WHERE project = ? AND worker = ?"
        for row in self.rows(select, place[0], self.callers[place[1]].id):
            assert row["failures_in_row"] in (0, self.model.failures[place])
            self.model.failures[place] = row["failures_in_row"]

    @initialize(step=st.sampled_from([1, 1, 2, 3]))
    def begin(self, step: int) -> None:
        tracker.STEP_TASKS = step
        self.update(0, chain=self.projects[1], keep_hashes=True)
        self.update(1, keep_hashes=True)

    def update(self, project: int, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.projects[project], name, value)
        if "chain" in changes:
            changes["chain"] = changes["chain"].id if changes["chain"] else 0
        body = msgspec.convert(changes, shapes.ProjectBody)
        self.write(tracker.update_project, self.session, self.projects[project].id, body)

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data(), project=projects, action=actions, priority=st.integers(-1, 2))
    def act_on_some(self, data: st.DataObject, project: int, action: str, priority: int) -> None:
        """On selected tasks, some of them long closed or of another project."""
        project, numbers = self.projects[project], data.draw(st.lists(st.sampled_from(sorted(self.ids)), max_size=8))
        chosen = [task for task in self.model.tasks if task.project is project and task.number in numbers]
        changed = sum(self.model.act(action, priority, task, self.clock.uptime()) for task in chosen)
        tasks = [self.ids[number] for number in numbers]
        body = TaskAction(action, priority)
        assert self.write(tracker.act_on_tasks, self.session, project.id, body, tasks) == changed

    # ── Long operations, a piece at a time ──

    @rule(project=projects, kind=st.sampled_from(2 * ["reset_failed", "reclaim_assigned"] + ["hard_reset"]))
    def begin_reset(self, project: int, kind: str) -> None:
        project, (action, wanted) = self.projects[project], RESETS[kind]
        operation = self.write(tracker.begin_reset, self.session, project.id, kind)
        self.begin_operation(operation, action, project, wanted)

    @rule(project=projects, action=actions, state=states, of=st.sampled_from([None, None, 0, 1]), to=st.integers(-1, 2))
    def begin_action(self, project: int, action: str, state: str, of: int | None, to: int) -> None:
        """On all tasks in a state, or on those of a priority."""
        project, wanted = self.projects[project], TaskFilter(state, priority=of)
        operation = self.write(tracker.begin_action, self.session, project.id, TaskAction(action, to), wanted)
        self.begin_operation(operation, action, project, wanted, to)

    def begin_operation(
        self, operation: int, action: str, project: Project, wanted: TaskFilter | None, priority: int | None = None
    ) -> None:
        begun = Operation(operation, action, project, self.model.submitted, self.clock.uptime(), wanted, priority)
        begun.due = [(task, task.changes) for task in self.model.tasks if begun.concerns(task)]
        self.operations.append(begun)

    @precondition(lambda self: self.operations)
    @rule(data=st.data(), steps=st.sampled_from([1, 2, 1000]))
    def continue_operation(self, data: st.DataObject, steps: int) -> None:
        operation = data.draw(st.sampled_from(self.operations))
        while steps and operation in self.operations:
            self.step(operation)
            steps -= 1

    def step(self, operation: Operation) -> None:
        step = self.step_bulk_submit if operation.action == "bulk_submit" else self.step_action
        step(operation)

    def step_bulk_submit(self, operation: Operation) -> None:
        affected = self.write(tracker.step_operation, operation.id)
        if operation.pieces:
            operation.affected += self.submit_to_model(operation.project, operation.pieces.pop(0))
            assert affected is None
        else:
            assert affected == operation.affected
            self.operations.remove(operation)

    def step_action(self, operation: Operation) -> None:
        """Which tasks come first is the tracker's business; that it takes the right ones, and all of them, is not."""
        before = {row["id"]: row for row in self.rows("SELECT * FROM task")}
        affected = self.write(tracker.step_operation, operation.id)
        after = {row["id"]: row for row in self.rows("SELECT * FROM task")}
        numbers = {self.ids[task.number]: task for task in self.model.tasks}
        for task in [numbers[id] for id, row in before.items() if after.get(id) != row]:
            assert operation.concerns(task)
            self.model.act(operation.action, operation.priority, task, self.clock.uptime())
            operation.affected += 1
        if affected is not None:
            assert affected == operation.affected
            for task, changes in operation.due:
                assert task not in self.model.tasks or task.changes > changes
            if operation.action == "hard_reset":
                operation.project.kept.clear()
            self.operations.remove(operation)
        elif operation.action == "hard_reset":
            operation.project.kept &= self.kept_hashes(operation.project)

    # ── What holds after every step ──

    @invariant()
    def the_tasks_are_the_same(self) -> None:
        self.remember_ids()
        stored = self.rows(
            "SELECT id, project, recipe, priority, status, retries, lost_leases, attempt, max_retries, max_assign_time,"
            " verification_count, hash64, assignee, deadline_uptime, not_before FROM task ORDER BY id"
        )
        assert [tuple(row) for row in stored] == [
            (
                *(self.ids[task.number], task.project.id, task.recipe, task.priority, task.status, task.retries),
                *(
                    task.lost_leases,
                    task.attempt,
                    task.max_retries,
                    task.max_assign_time,
                    task.verification_count,
                    task.hash64,
                ),
                None if task.assignee is None else self.callers[task.assignee].id,
                task.deadline,
                task.not_before and task.not_before + StillClock.START,
            )
            for task in self.model.tasks
        ]

    @invariant()
    def the_live_counts_are_the_real_counts(self) -> None:
        for project in self.projects:
            tasks = [task for task in self.model.tasks if task.project is project]
            (row,) = self.rows("SELECT * FROM project WHERE id = ?", project.id)
            assert {name: row[name] for name in tracker.COUNT_COLUMNS} == {
                "waiting_task_count": sum(task.is_ready() and not task.reports for task in tasks),
                "awaiting_verification_count": sum(task.is_ready() and bool(task.reports) for task in tasks),
                "assigned_task_count": sum(task.assignee is not None for task in tasks),
                "failed_task_count": sum(task.status == FAILED for task in tasks),
                "closed_task_count": project.closed,
                "delayed_task_count": sum(task.status == DELAYED for task in tasks),
            }

    @invariant()
    def the_last_failures_are_the_same(self) -> None:
        rows = self.rows("SELECT task, worker, attempt, reason FROM failure")
        assert {row["task"]: (self.workers[row["worker"]], *tuple(row)[2:]) for row in rows} == {
            self.ids[task.number]: task.failure for task in self.model.tasks if task.failure
        }

    @invariant()
    def the_failed_tasks_of_each_cause_are_counted(self) -> None:
        failed = [task for task in self.model.tasks if task.status == FAILED]
        counted = Counter((task.project.id, failures.pattern_of(task.failure[2])) for task in failed)
        rows = self.rows("SELECT id, project, pattern, failed_task_count FROM cause")
        assert {tuple(row)[1:3]: row["failed_task_count"] for row in rows} == counted
        causes = {row["id"]: row["pattern"] for row in rows}
        for task in failed:
            (cause,) = self.rows("SELECT cause FROM task WHERE id = ?", self.ids[task.number])[0]
            assert causes[cause] == failures.pattern_of(task.failure[2])

    @invariant()
    def what_workers_hold_is_counted(self) -> None:
        held = Counter((task.project.id, task.assignee) for task in self.model.tasks if task.assignee is not None)
        rows = self.rows("SELECT project, worker, held_task_count FROM tally WHERE held_task_count <> 0")
        assert {(row["project"], self.workers[row["worker"]]): row["held_task_count"] for row in rows} == held

    @invariant()
    def failures_in_a_row_are_counted_and_pause(self) -> None:
        rows = self.rows("SELECT project, worker, failures_in_row, pause_uptime FROM tally")
        stored = {(row["project"], self.workers[row["worker"]]): tuple(row)[2:] for row in rows}
        failures = {place: count for place, (count, _) in stored.items() if count}
        assert failures == +self.model.failures
        paused = Counter(place[0] for place in failures if self.model.is_failing(place))
        assert all(stored[place][1] == self.model.pauses[place] for place in failures if self.model.is_failing(place))
        for project in self.projects:
            (count,) = self.rows("SELECT paused_worker_count FROM project WHERE id = ?", project.id)[0]
            assert count >= paused[project.id]

    @invariant()
    def what_workers_closed_is_counted(self) -> None:
        closed: Counter[int] = Counter()
        for (_, worker), tally in self.model.tallies.items():
            closed[worker] += len(tally.runtimes)
        rows = self.rows("SELECT id, closed_task_count FROM worker WHERE closed_task_count > 0")
        assert {self.workers[row["id"]]: row["closed_task_count"] for row in rows} == +closed

    @invariant()
    def what_workers_closed_in_each_project_is_counted(self) -> None:
        rows = self.rows(
            f"SELECT project, worker, closed_task_count, {pages.LAST_DAY} AS last_day, runtime_total, runtime_min,"
            " runtime_max FROM tally t WHERE closed_task_count > 0"
        )
        assert {(row["project"], self.workers[row["worker"]]): tuple(row)[2:] for row in rows} == {
            name: (
                *(len(tally.runtimes), tally.hours.total() + len(tally.runtimes) - tally.rolled),
                *(sum(tally.runtimes), min(tally.runtimes), max(tally.runtimes)),
            )
            for name, tally in self.model.tallies.items()
        }

    @invariant()
    def the_past_assignments_are_the_same(self) -> None:
        """Those that ended together may come in any order."""
        rows = self.rows("SELECT task, worker, assign_time, end_time, outcome FROM assignment ORDER BY id")
        start = StillClock.START
        stored = [(*row[:2], row[2] - start, row[3] - start, row[4]) for row in map(tuple, rows)]
        assert sorted(stored) == sorted(
            (self.ids[past.task], self.callers[past.worker].id, *past[2:]) for past in self.model.past
        )
        assert [row[3] for row in stored] == [past.ended for past in self.model.past]

    @invariant()
    def the_kept_hashes_are_the_same(self) -> None:
        for project in self.projects:
            assert self.kept_hashes(project) == project.kept

    def kept_hashes(self, project: Project) -> set[int]:
        return {row["hash64"] for row in self.rows("SELECT hash64 FROM kept_hash WHERE project = ?", project.id)}

    @invariant()
    def the_verifications_are_the_same(self) -> None:
        rows = self.rows("SELECT * FROM verification")
        assert {(row["task"], self.workers[row["worker"]], row["hash"]) for row in rows} == {
            (self.ids[task.number], worker, report)
            for task in self.model.tasks
            for worker, report in task.reports.items()
        }

    @invariant()
    def the_verifier_sets_are_those_of_the_tasks(self) -> None:
        expected: dict[tuple[int, tuple[int, ...]], list[Task]] = {}
        for task in self.model.tasks:
            if task.reports:
                members = tuple(sorted(self.callers[worker].id for worker in task.reports))
                expected.setdefault((task.project.id, members), []).append(task)
        rows = self.rows("SELECT * FROM verifier_set")
        stored = {(row["project"], tuple(map(int, row["members"].split(",")))): row for row in rows}
        assert stored.keys() == expected.keys()
        for name, tasks in expected.items():
            row = stored[name]
            ready = sorted((-task.priority, task.number) for task in tasks if task.is_ready())
            head = (-ready[0][0], self.ids[ready[0][1]]) if ready else (None, None)
            assert (row["head_priority"], row["head_task"], row["large"]) == (*head, len(name[1]) > 2)
            members = self.rows("SELECT worker FROM verifier WHERE verifier_set = ? ORDER BY worker", row["id"])
            assert tuple(member["worker"] for member in members) == name[1]
            in_it = {member["id"] for member in self.rows("SELECT id FROM task WHERE verifiers = ?", row["id"])}
            assert in_it == {self.ids[task.number] for task in tasks}
        (count,) = self.rows("SELECT COUNT(DISTINCT verifier_set) FROM verifier")[0]
        assert count == len(expected)


PARTS = 4  # so that several processes can share the steps


@pytest.mark.parametrize("part", range(PARTS))
def test_the_tracker_and_a_simple_model_agree_after_every_step(part: int) -> None:
    lives = seed(part)(type("LifeCyclesOfPart", (LifeCycles,), {}))
    examples = settings.default.max_examples // PARTS
    run_state_machine_as_test(lives, settings=settings(stateful_step_count=100, max_examples=examples))
