"""What an operation costs: its statements use indexes and sort nothing, and a long queue makes no more work.

The statements are those that the operations really execute. Work is counted in steps of SQLite's virtual machine, those
of triggers included: a number that is the same on every run and every machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from place import (
    OPERATIONS,
    Memory,
    Operation,
    Place,
    StillClock,
    call,
    create_worker,
    furnish,
    in_memory,
    new_task,
)

import acts
import counts
import failures
import moving
import pages
import pauses
import retention
import searching
import shapes
import tracker
from dialects.testflinger import clients as testflinger_clients
from dialects.testflinger import domain as testflinger
from dialects.testflinger import events
from dialects.testflinger import queues as testflinger_queues
from tracker import OK, SKIP, TaskFilter, Tx, WorkerCredentials

SHORT, LONG = 100, 2000  # tasks in each state; both more than one step of a long operation takes


class Bench(Memory):
    """A database in memory, and what is done to it under observation."""

    def copy(self) -> Bench:
        other = Bench()
        other.connection = in_memory(self.connection)
        other.rows("SELECT 1 FROM sqlite_master")  # else the next statement is charged for reading the schema
        return other

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Tx]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield Tx(self.connection, self.clock, self.settings)
        self.connection.execute("COMMIT")

    def steps(self, function: Callable, *args: Any) -> int:
        """How many steps SQLite takes for an operation, which is then undone."""
        taken = 0

        def count() -> None:
            nonlocal taken
            taken += 1

        with self.transaction() as tx:
            tx.execute("SAVEPOINT operation")
            self.connection.set_progress_handler(count, 1)
            try:
                call(tx, function, *args)
            finally:
                self.connection.set_progress_handler(None, 1)
            tx.execute("ROLLBACK TO operation")
        return taken

    def plans(self, function: Callable, *args: Any) -> Iterator[tuple[str, list[str]]]:
        """Each statement that an operation executes, and how SQLite goes about it. The operation is done."""
        statements: list[tuple[str, Any]] = []
        with self.transaction() as tx:
            execute, executemany = tx.execute, tx.executemany

            def observed(sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                statements.append((sql, parameters))
                return execute(sql, parameters)

            def observed_many(sql: str, many: Any) -> sqlite3.Cursor:
                many = list(many)
                statements.extend((sql, parameters) for parameters in many[:1])
                return executemany(sql, many)

            tx.execute, tx.executemany = observed, observed_many
            call(tx, function, *args)
        assert statements
        for sql, parameters in statements:
            yield sql, [row["detail"] for row in self.connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


@functools.cache
def place_with(count: int) -> tuple[Bench, Place]:
    """A place with so many further tasks in each state, log lines, ended jobs, and snapshots of each project."""
    bench = Bench()
    with bench.transaction() as tx:
        place = furnish(tx)
        tx.execute("UPDATE project SET assign_rate = 0, submit_rate = 0")
        crowd = [create_worker(tx) for _ in range(20)]
        for project, priority in itertools.product((place.first, place.second), (-1, 1)):
            add_tasks(tx, project, count // 2, priority)
            add_tasks(tx, project, count // 2, priority, "status = 2, retries = 1")
            add_tasks(tx, project, count // 2, priority, "status = 3, not_before = 1 + id")  # and due
            for worker, _ in zip(itertools.cycle(crowd), range(count // 2), strict=False):
                change = f"assignee = {worker.id}, assign_time = 1, assigned_uptime = 0, deadline_uptime = 1e9"
                add_tasks(tx, project, 1, priority, change)
            add_verified_tasks(tx, project, count // 2, priority, crowd[:3])
        for number in range(count):
            tracker.take_snapshots(tx, 0, 10_000 + number)
            tracker.add_log_entry(tx, place.worker, "info", shapes.LogBody("test", number, "a line"))
            add_history(tx, place, number)
            tx.execute("INSERT INTO session VALUES (?, ?, 9e9, 0)", (str(number).encode(), place.manager))
            tx.execute("INSERT INTO kept_hash VALUES (?, ?)", (place.second, 1000 + number))
        add_jobs(tx, place, count)
        tx.execute("UPDATE operation SET last_task = (SELECT MAX(id) FROM task)")
        add_jobs_in_every_state(tx, place, count)
        tx.counts.write(tx)
        tracker.recount(tx)
    return bench, place


def add_jobs_in_every_state(tx: Tx, place: Place, count: int) -> None:
    """So many further jobs that wait, that are assigned and that have ended, and so many lines in the log of one."""
    columns = "project, template, name, recipe, script, runas, variables, arguments, env, timeout, max_retries, origin"
    for state, finished, assignee in (("waiting", None, None), ("assigned", None, place.other.id), ("failed", 5e9, 1)):
        for template, priority in ((place.template, 0), (place.other_template, 0), (None, 0)):
            tx.execute(
                f"""WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
                INSERT INTO job ({columns}, template, token, state, priority, created, updated, finished, assignee)
                SELECT {columns}, :template, lower(hex(randomblob(12))), :state, :priority, 1, 1, :finished, :assignee
                FROM job, n WHERE token = :like""".replace("project, template,", "project,"),
                {
                    **{"count": count // 2, "template": template, "state": state, "priority": priority},
                    **{"finished": finished, "assignee": assignee, "like": place.jobs["running"][0]},
                },
            )
    tx.execute(
        "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, job, assignee,"
        " assign_time, assigned_uptime, deadline_uptime) SELECT project, recipe, priority, 0, 60, 1, id, assignee,"
        " iif(state = 'assigned', 1, NULL), iif(state = 'assigned', 0, NULL), iif(state = 'assigned', 1e9, NULL)"
        " FROM job WHERE finished IS NULL AND task IS NULL AND template IS NOT NULL"
    )
    tx.execute(
        "UPDATE job SET task = t.id FROM (SELECT id, job FROM task WHERE job IS NOT NULL) t"
        " WHERE job.id = t.job AND job.task IS NULL"
    )
    lines = [shapes.TaskEntry("line", 1)] * 1000
    for _ in range(max(1, count // 1000)):
        call(tx, tracker.log_to_task, place.worker, shapes.TaskLogBody(place.jobs["running"][1], lines[:count]))


TEMPLATE, JOB = 4, 24 * "0"  # a template of the first project, and its one job with a long log


def add_jobs(tx: Tx, place: Place, count: int) -> None:
    """A template with so many jobs that were cancelled, and one that waits and has so many log lines."""
    body = shapes.TemplateBody(project=place.first, name="template")
    row = tracker.find_template(tx, call(tx, tracker.create_template, place.session, body)["template"]["id"])
    assert row["id"] == TEMPLATE
    for _ in range(count):
        tracker.stop_job(tx, tracker.make_job(tx, row, {}, [], "native"), "nobody")
    job = tracker.make_job(tx, row, {}, [], "native")
    tracker.add_job_lines(tx, job, place.worker.id, [shapes.TaskEntry("line", 1)] * count)
    tx.execute("UPDATE job SET token = ? WHERE id = ?", (JOB, job["id"]))


def add_history(tx: Tx, place: Place, number: int) -> None:
    """An assignment that failed, a log line of a task, and an operation, all of long ago."""
    past = (place.held["plain"], place.first, place.worker.id, 1, 1, "failed")
    tx.execute("INSERT INTO assignment VALUES (NULL, ?, ?, ?, ?, ?, ?)", past)
    tracker.add_log_entry(
        tx, place.worker, "info", shapes.LogBody("test", number, "a line", task_id=place.held["plain"])
    )
    operation = call(tx, tracker.begin_reset, place.session, place.first, "hard_reset")
    tx.execute("UPDATE operation SET finished = 1 WHERE id = ?", (operation,))


def add_tasks(tx: Tx, project: int, count: int, priority: int, change: str = "") -> None:
    """Submits tasks, and brings them into some other state than waiting."""
    last = tx.one("SELECT MAX(id) FROM task")[0]
    tracker.insert_tasks(tx, [new_task(project, priority=priority)] * count, project, False)
    if change:
        tx.execute(f"UPDATE task SET {change} WHERE id > ?", (last,))


def add_verified_tasks(tx: Tx, project: int, count: int, priority: int, verifiers: list[WorkerCredentials]) -> None:
    """Submits tasks each of which has been verified by one of the verifiers and waits for others."""
    body = shapes.SubmitBody(project, "recipe", priority=priority, verification_count=3)
    for verifier, _ in zip(itertools.cycle(verifiers), range(count), strict=False):
        tracker.insert_task(tx, tracker.new_task(body), False)
        (task,) = tx.one("SELECT MAX(id) FROM task")
        verify(tx, verifier, task)


def verify(tx: Tx, worker: WorkerCredentials, task: int) -> None:
    """The worker is assigned this very task, and reports a hash."""
    (project,) = tx.one("SELECT project FROM task WHERE id = ?", (task,))
    tracker.hold(tx, project, "waiting", [(worker.id, task, 1e9)])
    assert not tracker.release_task(tx, worker, shapes.ReleaseBody(task, OK, worker.id))


@pytest.fixture(autouse=True)
def one_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long operation or a search ends after its first piece, a small one, and not when its time is up."""
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    monkeypatch.setattr(tracker, "PIECE_TASKS", 50)
    monkeypatch.setattr(retention, "PIECE_ROWS", 50)
    monkeypatch.setattr(acts, "TRIM_EVERY", 10**9)  # it looks at a thousand, once in a while
    monkeypatch.setattr(tracker, "BULK_TASKS", 50)
    monkeypatch.setattr(tracker, "SEARCH_TIME", -1)
    monkeypatch.setattr(searching, "SCAN", 50)


# ── Plans ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

READS: dict[str, Callable[[Place], Operation]] = {
    "get a project": lambda p: (tracker.get_project, (p.session, p.first)),
    "get a worker": lambda p: (tracker.get_worker, (None, p.worker.id)),
    "get the secret": lambda p: (tracker.get_secret, (p.worker, p.first)),
    "get the account": lambda p: (tracker.get_account, (p.session,)),
    "may submit somewhere": lambda p: (tracker.may_submit_somewhere, (p.worker,)),
    "last snapshots": lambda p: (tracker.get_snapshots, (p.session, p.first, shapes.LastSnapshots(10))),
    "snapshots between": lambda p: (
        tracker.get_snapshots_between,
        (p.session, p.first, shapes.SnapshotsBetween(10_010, 10_030)),
    ),
    "logs of a level": lambda p: (tracker.query_logs, (p.session, shapes.LogsQuery(level=5, limit=10))),
    "logs down to a level": lambda p: (tracker.query_logs, (p.session, shapes.LogsQuery(max_level=7, limit=10))),
    "older logs": lambda p: (tracker.query_logs, (p.session, shapes.LogsQuery(max_level=7, limit=10, before=50))),
    "any lease": lambda p: (tracker.any_lease, ()),
    "get a job": lambda p: (tracker.get_job, (p.worker, p.jobs["step of the run"][0])),
    "a job's log": lambda p: (tracker.get_job_log, (p.session, p.jobs["running"][0], shapes.LinesQuery(3, 10))),
    "a task that is held": lambda p: (tracker.held_task, (p.worker.id, p.jobs["running"][1])),
    "ask whether a task is held": lambda p: (tracker.log_to_task, (p.worker, shapes.TaskLogBody(p.held["plain"]))),
    "find a template by its name": lambda p: (tracker.api_template, ("build",)),
    "list jobs": lambda p: list_jobs(p),
    "list a project's jobs": lambda p: list_jobs(p, project=p.third),
    "list further jobs": lambda p: list_jobs(p, project=p.third, before=50),
    "list a template's jobs": lambda p: list_jobs(p, template=p.template),
    "list a project's jobs in a state": lambda p: list_jobs(p, project=p.third, state="failed"),
    "list a template's jobs in a state": lambda p: list_jobs(p, template=p.template, state="waiting"),
    "search jobs for a state that there is not": lambda p: list_jobs(p, state="timed_out"),
    "list a project's jobs of a time": lambda p: list_jobs(p, project=p.third, start=0, end=2),
    "list a project's jobs of a time without any": lambda p: list_jobs(p, project=p.third, start=0, end=0),
    **{f"list {state} tasks": lambda p, state=state: list_tasks(p, TaskFilter(state)) for state in tracker.TASK_STATES},
    **{
        f"search {state} tasks": lambda p, state=state: list_tasks(p, TaskFilter(state, "no such recipe"))
        for state in tracker.TASK_STATES
    },
    **{
        f"list {state} tasks of a priority": lambda p, state=state: list_tasks(p, TaskFilter(state, priority=1))
        for state in tracker.TASK_STATES
    },
    "list tasks of an assignee": lambda p: list_tasks(p, TaskFilter("assigned", assignee=p.worker.id)),
    "list tasks of a cause": lambda p: list_tasks(p, TaskFilter("failed", cause=1)),
    "list further tasks": lambda p: list_tasks(p, TaskFilter(), f"1:{p.waiting[0]}"),
    "list further failed tasks": lambda p: list_tasks(p, TaskFilter("failed"), f"0:{p.waiting[0]}"),
    "show the history of a task": lambda p: (pages.get_task_history, (p.session, p.held["plain"])),
    "show an operation": lambda p: (tracker.get_operation, (p.session, p.operations["finished"])),
    "find the first piece of a bulk submit": lambda p: (tracker.first_piece, (p.operations["bulk"],)),
    "look up the hashes of a bulk submit": lambda p: (tracker.warm_pieces, (p.operations["bulk"], 1, 2)),
    "find an upload by its token": lambda p: (tracker.find_lines_submit, (p.worker, p.first, "a token")),
    "find a cause": lambda p: (failures.find_cause, (p.second, 1)),
    "show the last failure of a task": lambda p: (failures.last_failure, (p.waiting[0],)),
    "show the last operations": lambda p: (pages.recent_operations, (p.first,)),
    "show the pace": lambda p: (of_row(pages.pace), (p.first,)),
}


def list_tasks(place: Place, wanted: TaskFilter, after: str = "") -> Operation:
    return tracker.list_tasks, (place.session, place.first, wanted, after, 10)


def list_jobs(place: Place, **query: Any) -> Operation:
    return tracker.list_jobs, (place.session, shapes.JobsQuery(**query, limit=10))


def log_page(place: Place, **query: Any) -> Operation:
    return pages.log_page, (place.session, pages.LogQuery(**query))


def of_row(function: Callable) -> Callable:
    return lambda tx, project: function(tx, tracker.find_project(tx, project))


BACKGROUND: dict[str, Callable[[Place], Operation]] = {
    "wake delayed tasks": lambda p: (tracker.wake_tasks, ()),
    "make delayed tasks ready": lambda p: (
        tracker.act_on_tasks,
        (p.session, p.first, tracker.TaskAction("make_ready"), [p.waiting[0]]),
    ),
    "take snapshots": lambda p: (tracker.take_snapshots, (0, 5)),
    "prune jobs": lambda p: (tracker.prune_jobs, (p.template,)),
    "prune runs": lambda p: (tracker.prune_jobs, (0,)),
    "prune templates": lambda p: (tracker.prune, ("template",)),
    "prune scripts": lambda p: (tracker.prune, ("script",)),
    "prune log lines": lambda p: (tracker.prune, ("log_entry",)),
    "prune snapshots": lambda p: (tracker.prune, ("snapshot",)),
    "prune sessions": lambda p: (tracker.prune, ("session",)),
    "prune login failures": lambda p: (tracker.prune, ("login_failure",)),
    "prune assignments": lambda p: (tracker.prune, ("assignment",)),
    "prune operations": lambda p: (tracker.prune, ("operation",)),
    "prune tallies": lambda p: (tracker.prune, ("tally_hour",)),
    "roll the tallies": lambda p: (tracker.roll_tallies, ((0, 0), 7)),
}


def page(function: Callable, place: Place, *args: Any) -> Operation:
    """What a page of the manager UI reads, with what frames every page."""
    return pages.framed, (place.session, function, args)


def jobs_page(place: Place, **query: Any) -> Operation:
    return page(pages.project_jobs, place, place.first, pages.JobListQuery(**query))


# These show or look for people, projects and long operations, of which there are few, and sort them.
# Or, at last, no more of something than fits on a page.
PAGES: dict[str, Callable[[Place], Operation]] = {
    "list the projects": lambda p: (tracker.list_projects, (p.session, shapes.ProjectsQuery())),
    "list the assignees": lambda p: (tracker.get_assignees, (p.session, p.first)),
    "list who has access": lambda p: (tracker.list_access, (p.session, p.first)),
    "list the managers": lambda p: (tracker.list_managers, (p.session,)),
    "list a project's managers": lambda p: (tracker.list_project_managers, (p.session, p.first)),
    "rank the workers": lambda p: (tracker.worker_stats, (None, tracker.shapes.RankingQuery())),
    "show who has closed the most": lambda p: (pages.leaders, (p.first, "t.closed_task_count")),
    "show who has closed the most lately": lambda p: (pages.leaders, (p.first, pages.LAST_DAY)),
    "show how long tasks take": lambda p: (pages.runtimes, (p.first,)),
    "find unfinished operations": lambda p: (tracker.unfinished_operations, ()),
    "find unaccepted bulk submits": lambda p: (tracker.unaccepted_bulk_submits, ()),
    "search the log": lambda p: log_page(p, text="no such line"),
    "search a project's log": lambda p: log_page(p, project=p.second, text="no such line"),
    "search a worker's log": lambda p: log_page(p, worker=p.worker.id, text="no such line"),
    "search the log for errors": lambda p: log_page(p, level="error", text="no such line"),
    "show who holds tasks": lambda p: (pages.holders, (p.first,)),
    "the overview": lambda p: page(pages.overview, p, pages.OverviewQuery()),
    "a project's page": lambda p: page(pages.project_page, p, p.first, pages.RangeQuery("1h")),
    "a list of tasks": lambda p: page(pages.task_list, p, p.first, pages.TaskQuery("assigned")),
    "a task's page": lambda p: page(pages.task_page, p, p.held["plain"]),
    "an operation's page": lambda p: page(pages.operation_page, p, p.operations["finished"]),
    "the list of workers": lambda p: page(pages.worker_list, p, pages.WorkersQuery()),
    "a worker's page": lambda p: page(pages.worker_page, p, p.stranger.id),
    "who has access": lambda p: page(pages.access_page, p, p.first, pages.ListQuery()),
    "the account": lambda p: page(pages.account_page, p),
    "the administration": lambda p: page(pages.admin_page, p),
    "the list of templates": lambda p: page(pages.project_templates, p, p.first, pages.ListQuery()),
    "a template's page": lambda p: page(pages.template_page, p, TEMPLATE),
    "the list of a project's jobs": lambda p: jobs_page(p),
    "the jobs in a state": lambda p: jobs_page(p, state="cancelled"),
    "a search for jobs": lambda p: jobs_page(p, state="failed", template=TEMPLATE),
    "the jobs of a time": lambda p: jobs_page(p, start="2020-01-01T00:00", end="2020-12-31T00:00"),
    "the list of all jobs": lambda p: page(pages.all_jobs, p, pages.JobListQuery()),
    "a job's page": lambda p: page(pages.job_page, p, JOB, pages.JobQuery()),
    "older lines on a job's page": lambda p: page(pages.job_page, p, JOB, pages.JobQuery(before=90)),
    "show a day's snapshots": lambda p: (pages.sampled_snapshots, (p.first, range(10_000, 10_100, 10))),
}
SORTS_A_PAGE = (
    "the overview",
    "a project's page",
    "show who holds tasks",
    "show a day's snapshots",
)
LOOKS_AT_A_HUNDRED = ("a project's page", "show who holds tasks")  # of the tasks of each of ten workers
ALL = {**OPERATIONS, **READS, **BACKGROUND, **PAGES}
FIRST_ROW_ONLY = {
    "SELECT 1 FROM manager",  # is there any?
    "SELECT seq FROM sqlite_sequence WHERE name = 'task'",  # SQLite's own table, with one row for each of ours
    "SELECT 1 FROM sqlite_sequence WHERE name = 'task' AND seq >= ? AND ? > 0",
}


# Constants, the rows of one insert, and what is given as a list: the tasks that an action is about, or some hashes.
SHORT_SCANS = ("SCAN CONSTANT ROW", f"SCAN {tracker.ROWS}", f"SCAN (subquery-{tracker.ROWS})", "SCAN json_each")


def scans(plan: list[str]) -> list[str]:
    return [line for line in plan if line.startswith("SCAN") and not line.startswith(SHORT_SCANS)]


def sorts(plan: list[str]) -> list[str]:
    return [line for line in plan if "TEMP B-TREE" in line]


@pytest.mark.parametrize("name", [name for name in (*OPERATIONS, *READS) if name not in BACKGROUND])
def test_every_statement_uses_an_index_and_sorts_nothing(name: str) -> None:
    bench, place = place_with(SHORT)
    function, args = ALL[name](place)
    for sql, plan in bench.copy().plans(function, *args):
        if sql not in FIRST_ROW_ONLY:
            assert not scans(plan) and not sorts(plan), (sql, plan)


SMALL = ("theeye_agent",)  # tables that admins alone fill


def test_every_statement_of_a_deletion_uses_an_index_and_sorts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, place = place_with(SHORT)
    bench = bench.copy()
    operations = [bench.do(tracker.begin_deletion, place.session, project) for project in (place.first, place.third)]
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", 60)
    for operation in operations:
        for sql, plan in bench.plans(tracker.step_operation, operation):
            found = [line for line in scans(plan) if not line.endswith(SMALL) and line not in ("SCAN h", "SCAN hours")]
            assert not found and not sorts(plan), (sql, plan)


@pytest.mark.parametrize("name", [*BACKGROUND, *PAGES])
def test_no_statement_of_a_page_or_in_the_background_scans_or_sorts_what_grows_with_the_queue(name: str) -> None:
    bench, place = place_with(SHORT)
    function, args = ALL[name](place)
    for sql, plan in bench.copy().plans(function, *args):
        for table in (
            "task",
            "verification",
            "verifier_set",
            "verifier_block",
            "kept_hash",
            "snapshot",
            "job",
            "job_line",
        ):
            assert not any(f"SCAN {table}" in line for line in plan), (sql, plan)
            assert name in SORTS_A_PAGE or not (f"FROM {table}" in sql and sorts(plan)), (sql, plan)


def plan_of(name: str, part: str) -> str:
    """How SQLite goes about the statement of an operation that contains this part."""
    bench, place = place_with(SHORT)
    function, args = ALL[name](place)
    plans = {sql: plan for sql, plan in bench.copy().plans(function, *args) if part in sql}
    (plan,) = plans.values()
    return "\n".join(plan).replace("COVERING ", "")


def test_workers_are_found_and_listed_by_their_names_through_the_index() -> None:
    bench = Bench()
    session = bench.do(tracker.register_manager, "somebody", "unused")[1]
    for function, args in (
        (pages.worker_list, (session, pages.WorkersQuery(sort="alias"))),
        (moving.request_access, ([moving.Access("a", True, True)], 1)),
    ):
        plans = ["\n".join(plan) for _, plan in bench.plans(function, *args)]
        assert any("worker USING INDEX worker_alias" in plan.replace("COVERING ", "") for plan in plans), plans


def test_a_waiting_task_is_found_through_its_index() -> None:
    assert "SEARCH task USING INDEX task_waiting (project=?)" in plan_of("assign", "FROM worker w")


def test_a_task_that_awaits_verification_is_found_through_the_heads_of_the_verifier_sets() -> None:
    plan = plan_of("assign one that awaits verification", "FROM worker w")
    assert "SEARCH s USING INDEX verifier_set_head (project=?)" in plan


def test_a_task_that_three_have_verified_is_found_through_the_blocks_from_the_top() -> None:
    plan = plan_of("assign one that three have verified", "FROM verifier_block b3")
    assert "SEARCH b3 USING PRIMARY KEY (project=? AND level=?)" in plan
    for lower in ("b2", "b1", "b"):
        assert f"SEARCH {lower} USING PRIMARY KEY (project=? AND level=? AND block>? AND block<?)" in plan


def test_an_expired_task_is_found_through_the_index_on_the_deadline() -> None:
    plan = plan_of("expire", "SELECT id, recipe FROM task")
    assert "SEARCH task USING INDEX task_deadline (deadline_uptime<?)" in plan and "TEMP B-TREE" not in plan


def test_a_delayed_task_is_found_through_the_index_on_its_time() -> None:
    plan = plan_of("wake delayed tasks", "SELECT id, recipe FROM task")
    assert "SEARCH task USING INDEX task_not_before (not_before<?)" in plan and "TEMP B-TREE" not in plan


def test_a_kept_hash_is_found_through_its_key() -> None:
    plan = plan_of("submit a unique string", "INSERT INTO task")
    assert "SEARCH kept_hash USING PRIMARY KEY (project=? AND hash64=?)" in plan


def test_a_job_for_those_who_do_nothing_else_is_found_through_its_index() -> None:
    plan = plan_of("assign several jobs and nothing else", "FROM worker w")
    assert "SEARCH job USING INDEX job_waiting (project=?)" in plan


def test_a_job_that_is_to_be_forgotten_is_found_through_the_index_on_its_end() -> None:
    for name in ("prune jobs", "prune runs"):
        assert "SEARCH job USING INDEX job_finished (template=? AND finished>? AND finished<?)" in plan_of(
            name, "ORDER BY finished LIMIT"
        )


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({"project": 3}, "job_project (project=? AND id"),
        ({"project": 3, "state": "failed"}, "job_project_state (project=? AND state=? AND id"),
        ({"template": 1}, "job_template (template=? AND id"),
        ({"template": 1, "state": "failed"}, "job_template_state (template=? AND state=? AND id"),
    ],
)
def test_a_list_of_jobs_goes_through_the_index_for_it(query: dict[str, Any], index: str) -> None:
    bench, place = place_with(SHORT)
    function, args = list_jobs(place, **query)
    plans = [plan for sql, plan in bench.copy().plans(function, *args) if "ORDER BY id DESC" in sql]
    assert plans and all(
        f"SEARCH job USING INDEX {index}" in "\n".join(plan).replace("COVERING ", "") for plan in plans
    )


# What these execute, besides what a batch counts: a plain task pays nothing for jobs. An assignment pays for tasks that
# three workers have verified, where there are such.
STATEMENTS = {"submit": 3, "assign": 4, "close and chain": 5, "fail": 4, "fail at last": 5, "skip": 3, "verify": 9}
FOLDED = re.compile(
    r"UPDATE project SET \w+_count = |"
    + "|".join(
        map(
            re.escape,
            (
                counts.ADD_TO_TALLY,
                counts.TAKE_FROM_TALLY,
                counts.ADD_TO_WORKER,
                counts.ADD_TO_TOTAL,
                counts.ADD_TO_CAUSE,
                counts.DROP_CAUSE,
                pauses.SELECT_FAILING,
            ),
        )
    )
)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_plain_task_costs_no_statement_more_than_before_there_were_jobs(name: str) -> None:
    bench = Bench()
    function, args = OPERATIONS[name](bench.furnish())
    statements = [sql for sql, _ in bench.plans(function, *args) if not FOLDED.match(sql)]
    assert len(statements) == STATEMENTS[name]
    assert not any(re.search(r"(FROM|JOIN|INTO|UPDATE) (job|job_line|template)\b", sql) for sql in statements)


# ── Work ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in ALL if name not in LOOKS_AT_A_HUNDRED])
def test_an_operation_takes_as_many_steps_in_a_long_queue_as_in_a_short_one(name: str) -> None:
    """Twenty times as many tasks in each state, log lines, jobs, snapshots, sessions and kept hashes."""
    taken = []
    for count in (SHORT, LONG):
        bench, place = place_with(count)
        function, args = ALL[name](place)
        taken.append(bench.copy().steps(function, *args))
    assert 0 < taken[1] <= 1.2 * taken[0] + 20, taken


@pytest.mark.parametrize("name", LOOKS_AT_A_HUNDRED)
def test_showing_who_holds_tasks_takes_as_many_steps_when_they_hold_thousands(name: str) -> None:
    taken = []
    for count in (200, 4000):
        bench = Bench()
        place = bench.furnish()
        with bench.transaction() as tx:
            add_tasks(tx, place.first, count, 0, f"assignee = {place.other.id}, assign_time = 1, assigned_uptime = 0")
            tracker.recount(tx)
        assert bench.do(pages.holders, place.first)[0]["held_task_count"] == count
        function, args = ALL[name](place)
        taken.append(bench.steps(function, *args))
    assert taken[1] <= 1.1 * taken[0], taken


@pytest.mark.parametrize("state", tracker.TASK_STATES)
def test_a_search_ends_in_time_when_every_task_is_of_another_priority_and_assignee(state: str) -> None:
    """A list goes through priorities and assignees one after the other: there may be as many as there are tasks."""
    changes = {
        "waiting": "priority = id",
        "assigned": "assignee = id, assign_time = 1, assigned_uptime = 0",
        "awaiting_verification": "verifiers = 1000 + id",
        "failed": "status = 2",
        "delayed": "status = 3, not_before = id",
    }
    taken = []
    for count in (SHORT, LONG):
        bench = Bench()
        place = bench.furnish()
        with bench.transaction() as tx:
            add_tasks(tx, place.second, count, 0, changes[state])
        wanted = TaskFilter(state, "no such recipe")
        taken.append(bench.steps(tracker.list_tasks, place.session, place.second, wanted, "", 10))
    assert taken[1] <= 1.2 * taken[0] + 20, taken


@pytest.mark.parametrize("name", ["retry all that match", "delete all that match", "reclaim"])
def test_a_step_of_an_operation_costs_the_same_however_many_tasks_were_submitted_later(name: str) -> None:
    taken = []
    for count in (SHORT, LONG):
        bench = Bench()
        place = bench.furnish()
        with bench.transaction() as tx:
            for change in ("", "status = 2", f"assignee = {place.other.id}, assign_time = 1, assigned_uptime = 0"):
                add_tasks(tx, place.first, count, 1, change)
        function, args = OPERATIONS[name](place)
        taken.append(bench.steps(function, *args))
    assert taken[1] <= 1.2 * taken[0] + 20, taken


def bench_for_verifying(
    tasks: int, verification_count: int, workers: int
) -> tuple[Bench, int, list[WorkerCredentials]]:
    """A project with so many tasks to be verified, and workers who may."""
    bench = Bench()
    with bench.transaction() as tx:
        session = tracker.register_manager(tx, "admin", "unused")[1]
        project = call(tx, tracker.create_project, session, shapes.ProjectBody(name="first", public=True))["id"]
        new = [new_task(project, str(number), verification_count=verification_count) for number in range(tasks)]
        tracker.insert_tasks(tx, new, project, False)
        return bench, project, [create_worker(tx) for _ in range(workers)]


def verify_first(bench: Bench, project: int, worker: WorkerCredentials, count: int) -> None:
    """The worker is assigned and verifies the first tasks that there are for it."""
    with bench.transaction() as tx:
        for _ in range(count):
            (task,) = call(tx, tracker.assign_tasks, worker, [project]).tasks
            assert not tracker.release_task(tx, worker, shapes.ReleaseBody(task["id"], OK, worker.id))


def next_recipe(bench: Bench, project: int, worker: WorkerCredentials) -> str:
    (task,) = bench.copy().do(tracker.assign_tasks, worker, [project]).tasks
    return task["recipe"]


def test_a_worker_that_has_verified_the_first_thousands_of_tasks_is_assigned_the_next_with_as_little_work() -> None:
    taken = []
    for verified in (20, 2000):
        bench, project, (worker, _) = bench_for_verifying(verified + 10, 2, 2)
        verify_first(bench, project, worker, verified)
        assert next_recipe(bench, project, worker) == str(verified)
        taken.append(bench.steps(tracker.assign_tasks, worker, [project]))
    assert taken[1] <= 1.1 * taken[0], taken


def test_a_worker_that_has_verified_all_tasks_finds_that_out_with_as_little_work() -> None:
    taken = []
    for verified in (20, 2000):
        bench, project, (worker, _) = bench_for_verifying(verified, 2, 2)
        verify_first(bench, project, worker, verified)
        taken.append(bench.steps(tracker.assign_tasks, worker, [project]))
    assert taken[1] <= 1.1 * taken[0], taken


def bench_with_verifier_sets(tasks: int, others: int) -> tuple[Bench, int, WorkerCredentials]:
    """One worker has verified all but the last of the tasks, and each of the others an equal share of those."""
    bench, project, (worker, *crowd) = bench_for_verifying(tasks + 1, 3, others + 1)
    with bench.transaction() as tx:
        ids = [row["id"] for row in tx.all("SELECT id FROM task ORDER BY id LIMIT ?", (tasks,))]
        for task, other in zip(ids, itertools.cycle(crowd), strict=False):
            verify(tx, worker, task)
            verify(tx, other, task)
        assert len(tx.all("SELECT 1 FROM verifier_set")) == others
    assert next_recipe(bench, project, worker) == str(tasks)
    return bench, project, worker


def test_three_verifications_by_many_workers_cost_no_more_in_a_long_queue() -> None:
    taken = []
    for tasks in (24, 2400):
        bench, project, worker = bench_with_verifier_sets(tasks, others=12)
        taken.append(bench.steps(tracker.assign_tasks, worker, [project]))
    assert taken[1] <= 1.1 * taken[0], taken


def test_three_verifications_cost_a_seek_for_each_other_worker_at_most() -> None:
    taken = []
    for others in (10, 110):
        bench, project, worker = bench_with_verifier_sets(220, others)
        taken.append(bench.steps(tracker.assign_tasks, worker, [project]))
    assert taken[1] - taken[0] <= 100 * 25, taken


def bench_with_large_sets(sets: int) -> tuple[Bench, int, WorkerCredentials]:
    """One worker has verified all but the last of the tasks with two others, and no two tasks with the same ones."""
    bench, project, (worker, *crowd) = bench_for_verifying(sets + 1, 4, 66)
    with bench.transaction() as tx:
        ids = [row["id"] for row in tx.all("SELECT id FROM task ORDER BY id")]
        for task, pair in zip(ids[:-1], itertools.combinations(crowd, 2), strict=False):
            for verifier in (worker, *pair):
                verify(tx, verifier, task)
        for verifier in crowd[:3]:
            verify(tx, verifier, ids[-1])
    assert next_recipe(bench, project, worker) == str(sets)
    return bench, project, worker


def test_four_verifications_cost_no_seek_for_each_set_that_a_worker_belongs_to() -> None:
    taken = []
    for sets in (64, 2000):
        bench, project, worker = bench_with_large_sets(sets)
        taken.append(bench.steps(tracker.assign_tasks, worker, [project]))
    assert taken[1] - taken[0] <= 64 * 15, taken  # as many neighbours as a block of the next level has


def test_a_task_of_a_large_set_is_put_back_with_as_little_work_however_many_sets_there_are() -> None:
    taken = []
    for sets in (64, 2000):
        bench, project, worker = bench_with_large_sets(sets)
        (task,) = bench.do(tracker.assign_tasks, worker, [project]).tasks
        taken.append(bench.steps(tracker.release_task, worker, shapes.ReleaseBody(task["id"], SKIP)))
    assert taken[1] - taken[0] <= 64 * 15, taken


def test_releasing_a_verified_task_costs_no_more_when_thousands_are_verified_by_the_same_workers() -> None:
    taken = []
    for verified in (20, 2000):
        bench, project, (first, second) = bench_for_verifying(verified, 3, 2)
        verify_first(bench, project, first, verified)
        verify_first(bench, project, second, verified // 2)
        (task,) = bench.do(tracker.assign_tasks, second, [project]).tasks
        taken.append(bench.steps(tracker.release_task, second, shapes.ReleaseBody(task["id"], OK, 7)))
    assert taken[1] <= 1.1 * taken[0], taken


def test_a_step_of_a_hard_reset_of_verified_tasks_costs_the_same_however_many_there_are() -> None:
    taken = []
    for verified in (SHORT, LONG):
        bench, project, (worker,) = bench_for_verifying(verified, 2, 1)
        verify_first(bench, project, worker, verified)
        operation = bench.do(tracker.insert_operation, "hard_reset", project)
        taken.append(bench.steps(tracker.step_operation, operation))
    assert taken[1] <= 1.2 * taken[0], taken


# ── Testflinger ───────────────────────────────────────────────────────────────────────────────────────────────────────

OLD, RECENT = 1, StillClock.START  # when things ended: long before the retention, and just now
DUE = 60  # jobs, outcomes, files that are to be forgotten: more than one step takes
Call = tuple[Callable, tuple]


@functools.cache
def queue_with(count: int) -> Bench:
    """A queue with so many jobs in each situation; the ids of some: `next`, `last`, `held`, `run`, `ended`."""
    bench = Bench()
    with bench.transaction() as tx:
        project = testflinger.make_queue(tx, "queue")
        body = shapes.TemplateBody(project=project, name="template")
        session = tracker.register_manager(tx, "admin", "unused")[1]
        assert create_worker(tx).id == 1
        template = call(tx, tracker.create_template, session, body)["template"]["id"]
        tx.execute(f"UPDATE template SET keep_time = {2 * RECENT} WHERE id = ?", (template,))
        add_queued_jobs(tx, project, count, "given up with attachments missing", held=True, state="cancelled")
        add_queued_jobs(tx, project, DUE, "forgotten", held=True, created=OLD)
        add_queued_jobs(tx, project, count, "awaits attachments", held=True)
        add_queued_jobs(tx, project, count, "kept by its template", state="succeeded", finished=OLD, template=template)
        add_queued_jobs(tx, project, DUE, "due", state="succeeded", finished=OLD + 1)
        add_queued_jobs(tx, project, count, "succeeded", state="succeeded")
        add_queued_jobs(tx, project, count, "assigned", state="assigned")
        add_queued_jobs(tx, project, count, "waiting")
        name_examples(tx)
        add_reports(tx)
        for number in range(120):
            queues = ["queue", str(number)]
            testflinger.update_agent(tx, f"agent {number}", {"queues": queues, "log": ["line"] * 100})
            testflinger.add_provision_log(tx, None, "agent 0", str(number), 0, "")
        for number in range(count):
            testflinger.add_fragment(tx, None, "run", "output", None, "text", "setup", number)
    return bench


def add_queued_jobs(tx: Tx, project: int, count: int, name: str, **fields: Any) -> None:
    """So many jobs with this name and tag, which took 0, 1, 2, … seconds until somebody got them."""
    state, held = fields.get("state", "waiting"), fields.get("held", False)
    values = {
        "project": project,
        "count": count,
        "name": name,
        "created": fields.get("created", RECENT),
        "template": fields.get("template"),
    }
    (last,) = tx.one("SELECT ifnull(MAX(id), 0) FROM job")
    tx.execute(
        """INSERT INTO job (token, project, template, name, recipe, runas, variables, arguments, env, timeout,
            max_retries, priority, origin, created, updated)
        WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
        SELECT lower(hex(randomblob(12))), :project, :template, :name, '{}', '', '{}', '[]', '{}', 60, 0, 0,
            'testflinger', :created, :created FROM n""",
        values,
    )
    follow_jobs(tx)
    tx.execute("UPDATE testflinger_job SET attachments = ? WHERE job > ?", ("waiting" if held else "none", last))
    tx.execute("INSERT INTO testflinger_tag SELECT 'all', job FROM testflinger_job WHERE job > ?", (last,))
    tx.execute("INSERT INTO testflinger_tag SELECT ?, job FROM testflinger_job WHERE job > ?", (name, last))
    if not held and state in ("waiting", "assigned"):
        tx.execute(
            "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, job)"
            " SELECT project, recipe, priority, 0, 60, 1, id FROM job WHERE id > ?",
            (last,),
        )
        tx.execute(
            "UPDATE job SET task = (SELECT MAX(id) FROM task) - (SELECT MAX(id) FROM job) + id WHERE id > ?", (last,)
        )
    if state != "waiting":
        started, finished = "created + id - :last", "NULL" if state == "assigned" else ":finished"
        tx.execute(
            f"UPDATE job SET state = :state, started = {started}, finished = {finished}, assignee = 1 WHERE id > :last",
            {"state": state, "last": last, "finished": fields.get("finished", RECENT)},
        )
        follow_jobs(tx)
        tx.execute("UPDATE testflinger_job SET agent = '' WHERE job > ?", (last,))


def follow_jobs(tx: Tx) -> None:
    """What was written past the core is made good by what the dialect does that was not there."""
    for step in (events.compare_jobs, events.note_missed):
        after = 0
        while after is not None:
            after = step(tx, after)


def add_reports(tx: Tx) -> None:
    """A result and a file for every job, and older ones for ids that nobody knows."""
    tx.execute("INSERT INTO testflinger_outcome (uuid, touched) SELECT uuid, ? FROM testflinger_job", (OLD,))
    tx.execute("""INSERT INTO testflinger_result SELECT uuid, 'status', '{"test":0}' FROM testflinger_job""")
    tx.execute("INSERT INTO testflinger_file SELECT uuid, 'artifact', uuid, 1, ? FROM testflinger_job", (OLD,))
    unknown = [(f"unknown {number}",) for number in range(DUE)]
    tx.executemany(f"INSERT INTO testflinger_outcome (uuid, touched) VALUES (?, {OLD + 1})", unknown)
    tx.executemany(f"INSERT INTO testflinger_file VALUES (?1, 'artifact', ?1, 1, {OLD + 1})", unknown)


def name_examples(tx: Tx) -> None:
    """Gives a job of each kind an id that can be guessed, and one of them a tag that no other has."""
    examples = {
        "next": "MIN(id) FROM job WHERE name = 'waiting'",
        "last": "MAX(id) FROM job WHERE name = 'waiting'",
        "held": "MIN(id) FROM job WHERE name = 'awaits attachments'",
        "run": "MAX(id) FROM job WHERE name = 'assigned'",
        "ended": "MAX(id) FROM job WHERE name = 'succeeded'",
    }
    for uuid, chosen in examples.items():
        tx.execute(f"UPDATE testflinger_job SET uuid = ? WHERE job = (SELECT {chosen})", (uuid,))
    tx.execute("INSERT INTO testflinger_tag SELECT 'rare', job FROM testflinger_job WHERE uuid = 'last'")


def search_for(*tags: str, **wanted: Any) -> Call:
    return testflinger.search_jobs, (testflinger.Search(tags, **wanted),)


LIVE_STATES = tuple(testflinger.LIVE)
SEARCHES: dict[str, Call] = {
    "search for all": search_for(),
    "search on": (testflinger.search_jobs, (testflinger.Search(), 50)),
    "search for a tag": search_for("all"),
    "search for a rare tag": search_for("rare"),
    "search for a tag that there is not": search_for("none"),
    "search for one of two tags": search_for("rare", "all"),
    "search for one of many tags": search_for(*map(str, range(100))),
    "search for two tags": search_for("all", "rare", every_tag=True),
    "search for a state": search_for(states=("complete", "completed")),
    "search for what is alive": search_for(states=LIVE_STATES),
    "search for a tag in a state": search_for("rare", states=("cancelled",)),
    "search for a tag among what is alive": search_for("rare", "none", states=LIVE_STATES),
    "search for two tags in a state": search_for("all", "due", every_tag=True, states=("complete",)),
    "search in a queue": search_for(project=1),
}
QUEUE_CALLS: dict[str, Call] = {
    "submit": (testflinger.submit_job, (None, testflinger.Submission({}, "queue", tags=("a", "b")))),
    "submit with everything": (
        testflinger.submit_job,
        (None, testflinger.Submission({}, "queue", uuid="new", excluded=("agent 1",), attachments=True, script="x")),
    ),
    "pick": (testflinger.pick_job, (None, ["queue", "other"], "agent 1")),
    "pick without a name": (testflinger.pick_job, (None, ["queue"], None)),
    "get a job": (testflinger.get_job, ("ended",)),
    "position of the next": (testflinger.position, ("next",)),
    "cancel": (testflinger.cancel_job, ("run", "nobody")),
    "cancel a waiting job": (testflinger.cancel_job, ("last", "nobody")),
    "add a result": (testflinger.add_result, (None, "run", None, {"device_info": msgspec.Raw(b"{}")}, "test")),
    "end a job": (testflinger.add_result, (None, "run", None, {}, "complete")),
    "get a result": (testflinger.get_result, ("ended",)),
    "add a fragment": (testflinger.add_fragment, (None, "run", "output", None, "text", "setup", 10**6)),
    "add raw output": (testflinger.add_fragment, (None, "run", "output", None, "text")),
    "add output of an ended job": (testflinger.add_fragment, (None, "ended", "serial", None, "text")),
    "find a file": (testflinger.find_file, ("ended", "artifact")),
    "find attachments": (testflinger.find_file, ("ended", "attachments")),
    "store an artifact": (testflinger.store_file, ("ended", "artifact", "new", 1)),
    "store attachments": (testflinger.store_attachments, (None, "held", "new", 1)),
    "find files that belong to nothing": (testflinger.unknown_files, (["ended", "none"],)),
    "update an agent": (testflinger.update_agent, ("agent 0", {"queues": ["queue", "other"], "log": ["x"] * 50})),
    "add a provision log": (testflinger.add_provision_log, (None, "agent 0", "run", 1, "")),
    "who listens": (testflinger.queue_agents, ("queue",)),
    "images": (testflinger_queues.images, ("queue",)),
}
FORGETTING: dict[str, Call] = {
    "cancel the forgotten": (testflinger.cancel_forgotten, ()),
    "forget jobs": (testflinger.prune_jobs, ()),
    "forget outcomes": (testflinger.prune_outcomes, ()),
    "forget files": (testflinger.prune_files, ((0, ""),)),
    "forget agents": (testflinger.prune_agents, ()),
    "forget queues": (testflinger.prune_queues, ()),
    "forget refresh tokens": (testflinger_clients.prune_refresh, ()),
}
CATCHING_UP: dict[str, Call] = {
    "compare the first jobs": (events.compare_jobs, (0,)),
    "compare further jobs": (events.compare_jobs, (DUE,)),
    "look for missed jobs": (events.note_missed, (0,)),
}
COUNTING: dict[str, Call] = {
    "position of the last": (testflinger.position, ("last",)),
    "wait times": (testflinger_queues.wait_times, (["queue"],)),
}
OF_TESTFLINGER = {**SEARCHES, **QUEUE_CALLS, **FORGETTING, **CATCHING_UP, **COUNTING}
SORTS_A_PIECE = (*SEARCHES, "who listens", "submit with everything")  # of candidates; the agents of a queue
# The candidates of a search, and the head of an index: LIMIT ends both.
SHORT_SCANS_OF_TESTFLINGER = (
    "SCAN (subquery-",
    "SCAN candidate",
    "SCAN testflinger_job USING INDEX testflinger_job_held",
    "SCAN p",  # of queues and other projects there are not many
    "SCAN project",
)


@pytest.fixture
def small_pieces_of_testflinger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testflinger, "PIECE_JOBS", 50)
    monkeypatch.setattr(testflinger, "PRUNED_ROWS", 50)
    monkeypatch.setattr(events, "PIECE_ROWS", 50)


@pytest.mark.usefixtures("small_pieces_of_testflinger")
@pytest.mark.parametrize("name", OF_TESTFLINGER)
def test_every_statement_of_testflinger_uses_an_index_and_sorts_nothing_but_a_piece(name: str) -> None:
    function, args = OF_TESTFLINGER[name]
    for sql, plan in queue_with(SHORT).copy().plans(function, *args):
        long_scans = [line for line in scans(plan) if not line.startswith(SHORT_SCANS_OF_TESTFLINGER)]
        assert not long_scans and (name in SORTS_A_PIECE or not sorts(plan)), (sql, plan)


@pytest.mark.usefixtures("small_pieces_of_testflinger")
@pytest.mark.parametrize("name", [name for name in OF_TESTFLINGER if name not in COUNTING])
def test_testflinger_takes_as_many_steps_with_many_jobs_as_with_few(name: str) -> None:
    """Twenty times as many of each kind: waiting, held, ended, kept by a template, with results, output and files."""
    function, args = OF_TESTFLINGER[name]
    taken = [queue_with(count).copy().steps(function, *args) for count in (SHORT, LONG)]
    assert 0 < taken[1] <= 1.2 * taken[0] + 20, taken


@pytest.mark.parametrize(("name", "kinds"), [("position of the last", 1), ("wait times", 3)])
def test_what_counts_jobs_takes_a_few_steps_for_each(name: str, kinds: int) -> None:
    """They are counted in an index: none of them is read. Jobs of three kinds have been started."""
    function, args = COUNTING[name]
    taken = [queue_with(count).copy().steps(function, *args) for count in (SHORT, LONG)]
    assert taken[1] - taken[0] <= 8 * kinds * (LONG - SHORT), taken


@pytest.mark.parametrize(
    ("name", "part", "index"),
    [
        ("pick", "FROM testflinger_job t WHERE", "SEARCH t USING INDEX testflinger_job_waiting (project=?)"),
        ("pick", "FROM testflinger_job t WHERE", "SEARCH testflinger_exclusion USING PRIMARY KEY (job=? AND agent=?)"),
        ("position of the last", "COUNT", "testflinger_job_waiting (project=? AND priority>?)"),
        ("position of the last", "COUNT", "testflinger_job_waiting (project=? AND priority=? AND job<?)"),
        ("wait times", "COUNT", "USING COVERING INDEX testflinger_job_wait (project=? AND wait>?)"),
        ("wait times", "ORDER BY wait", "USING COVERING INDEX testflinger_job_wait (project=? AND wait>?)"),
        ("get a job", "t.uuid = ?", "sqlite_autoindex_testflinger_job_1 (uuid=?)"),
        ("search for all", "candidate", "SEARCH testflinger_job USING INTEGER PRIMARY KEY (rowid>?)"),
        ("search for a tag", "candidate", "SEARCH testflinger_tag USING PRIMARY KEY (tag=? AND job>?)"),
        ("search for a state", "candidate", "testflinger_job_state (state=? AND job>?)"),
        ("search for two tags", "candidate", "testflinger_tag_job (job=? AND tag=?)"),
        ("search in a queue", "candidate", "testflinger_job_project (project=? AND job>?)"),
        (
            "get a result",
            "testflinger_fragment",
            "testflinger_fragment_number (uuid=? AND kind=? AND phase=? AND number>?)",
        ),
        ("get a result", "testflinger_fragment", "SEARCH l USING PRIMARY KEY (job=? AND number=?)"),
        ("add raw output", "max(number)", "testflinger_fragment_number (uuid=? AND kind=? AND phase=?)"),
        ("find a file", "testflinger_file", "SEARCH testflinger_file USING PRIMARY KEY (uuid=? AND kind=?)"),
        ("who listens", "testflinger_agent_queue", "SEARCH l USING PRIMARY KEY (queue=?)"),
        ("cancel the forgotten", "attachments = 'waiting'", "INDEX testflinger_job_held"),
        ("forget jobs", "ORDER BY finished", "testflinger_job_finished (finished<?)"),
        ("forget outcomes", "ORDER BY touched", "testflinger_outcome_touched (touched<?)"),
        ("forget files", "ORDER BY stored", "testflinger_file_stored ((stored,name)>(?,?) AND stored<?)"),
        ("forget agents", "testflinger_agent", "testflinger_agent_updated (updated<?)"),
        ("compare the first jobs", "LEFT JOIN job", "SEARCH t USING INTEGER PRIMARY KEY (rowid>?)"),
        ("compare the first jobs", "LEFT JOIN job", "SEARCH j USING INTEGER PRIMARY KEY (rowid=?)"),
        ("look for missed jobs", "max(job)", "SEARCH job USING INDEX job_project (project=? AND id>?)"),
        ("look for missed jobs", "max(job)", "USING COVERING INDEX testflinger_job_project (project=?)"),
    ],
)
def test_testflinger_finds_through_the_index_for_it(name: str, part: str, index: str) -> None:
    function, args = OF_TESTFLINGER[name]
    plans = ["\n".join(plan) for sql, plan in queue_with(SHORT).copy().plans(function, *args) if part in sql]
    assert plans and all(index in plan for plan in plans), plans


def trigger_statements() -> Iterator[tuple[str, str]]:
    """The statements of this dialect's triggers, with parameters for NEW and OLD: by the name of their trigger."""
    rows = Memory().rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'testflinger%'")
    for row in rows:
        body = row["sql"][row["sql"].index("BEGIN") + 5 : row["sql"].rindex("END")]
        for statement in filter(None, map(str.strip, body.split(";"))):
            yield row["name"], re.sub(r"\b(NEW|OLD)\.(\w+)", r":\1_\2", statement)


@pytest.mark.parametrize(("trigger", "statement"), list(trigger_statements()))
def test_every_statement_of_testflingers_triggers_uses_an_index(trigger: str, statement: str) -> None:
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
    plan = [
        row["detail"] for row in queue_with(SHORT).connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
    ]
    assert not scans(plan) and not sorts(plan), plan


def without_triggers_of_testflinger(bench: Bench) -> Bench:
    other = bench.copy()
    for row in other.rows("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'testflinger%'"):
        other.connection.execute(f"DROP TRIGGER {row['name']}")
    return other


ABOUT_JOBS = [name for name in OPERATIONS if re.search(r"job|run|step|trigger|workflow", name)]


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ABOUT_JOBS and name != "expire"])
def test_a_task_without_a_job_costs_no_step_more_for_the_sake_of_testflinger(name: str) -> None:
    bench, place = place_with(SHORT)
    function, args = OPERATIONS[name](place)
    assert bench.copy().steps(function, *args) == without_triggers_of_testflinger(bench).steps(function, *args)


@pytest.mark.parametrize(
    "name",
    ["trigger as a worker", "assign a job", "close a job", "fail a job at last", "cancel a job", "log about a job"],
)
def test_a_job_of_an_ordinary_project_costs_a_look_at_testflinger_for_each_change(name: str) -> None:
    bench, place = place_with(SHORT)
    function, args = OPERATIONS[name](place)
    more = bench.copy().steps(function, *args) - without_triggers_of_testflinger(bench).steps(function, *args)
    assert more <= 30, more


def test_jobs_that_their_templates_keep_are_not_forgotten_with_those_of_testflinger() -> None:
    bench = queue_with(SHORT).copy()
    while bench.do(testflinger.prune_jobs):
        pass
    names = {row["name"] for row in bench.rows("SELECT DISTINCT name FROM job")}
    assert "kept by its template" in names and "due" not in names


def test_what_was_reported_for_known_jobs_is_kept_as_long_as_they_are() -> None:
    bench = queue_with(SHORT).copy()
    while bench.do(testflinger.prune_outcomes):
        pass
    gone, after = [], (0, "")
    while after is not None:
        names, after = bench.do(testflinger.prune_files, after)
        gone += names
    assert sorted(gone) == sorted(f"unknown {number}" for number in range(DUE))
    for table in ("testflinger_outcome", "testflinger_file"):
        assert not bench.rows(f"SELECT 1 FROM {table} WHERE uuid LIKE 'unknown%'")
        assert len(bench.rows(f"SELECT 1 FROM {table}")) == len(bench.rows("SELECT 1 FROM testflinger_job"))
