"""What goes on behind the requests: leases, snapshots, pruning, long operations; and time that jumps."""

import asyncio
import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import MovedClock, Site, Worker, wait_until
from place import begin_reset, call

import shapes
import tracker
from database import connect, prepare_file

HOUR = 3600


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_setting_the_clock_ends_no_lease(site: Site, jump: int) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project, max_assign_time=600)
    task = worker.assigned(project)
    site.clock.wall = jump
    asyncio.run(expire(site))
    assert site.admin.counts(project) == {"assigned": 1}
    assert worker.released(task["id"])


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_setting_the_clock_holds_no_task_past_its_lease(site: Site, jump: int) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project, max_assign_time=600)
    worker.assigned(project)
    site.clock.wall = jump
    site.clock.pass_time(601)
    wait_until(lambda: site.admin.counts(project) == {"waiting": 1})


async def expire(site: Site) -> None:
    """Waits for longer than the interval at which leases are looked at."""
    await asyncio.sleep(2 * tracker.EXPIRY_INTERVAL)


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_a_lease_stands_still_while_the_tracker_is_down(tmp_path: Path, jump: int) -> None:
    """And a clock that was set meanwhile makes no difference."""
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="")
    clock = MovedClock()
    with tracker.serving(settings, clock) as url:
        site = Site(url, clock, settings)
        project = site.admin.create_project(public=True)
        worker = site.create_worker(project)
        worker.submit(project, max_assign_time=600)
        worker.assigned(project)
        clock.pass_time(500)
    clock = MovedClock()
    clock.wall = jump
    with tracker.serving(settings, clock) as url:
        worker.http.base_url = url
        asyncio.run(expire(site))
        assert worker.assigned(project) is None
        clock.pass_time(101)
        wait_until(lambda: worker.assigned(project))


def test_a_crash_after_long_idleness_leaves_no_limit_behind(tmp_path: Path) -> None:
    """Rate limits and leases rest on the uptime, which must be as durable as they are."""
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="")
    clock = MovedClock()
    with tracker.serving(settings, clock) as url:
        site = Site(url, clock, settings)
        project = site.admin.create_project(submit_rate=1)
        worker = site.create_worker(project)
        clock.pass_time(10 * 24 * HOUR)
        assert worker.submit(project).status_code == 200
        for name in ("x.db", "x.db-wal"):  # what a SIGKILL would leave
            shutil.copy(tmp_path / name, tmp_path / f"crashed-{name}")
    settings = tracker.Settings(database=str(tmp_path / "crashed-x.db"), log_file="")
    clock = MovedClock()
    with tracker.serving(settings, clock) as url:
        worker.http.base_url = url
        clock.pass_time(2)
        assert worker.submit(project).status_code == 200


def test_a_worker_that_is_refused_has_been_seen_all_the_same(site: Site) -> None:
    project = site.admin.create_project(assign_rate=0.001)
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": "r"}] * 2)
    worker.assigned(project)
    site.clock.pass_time(60)
    assert worker.assign(project).status_code == 429
    [(last_seen,)] = site.read("SELECT last_seen FROM worker WHERE id = ?", worker.id)
    assert last_seen >= site.clock.time() - 10


def test_another_programs_write_lock_is_waited_for_while_others_are_served(site: Site) -> None:
    worker = Worker(site.url)
    with contextlib.closing(sqlite3.connect(site.settings.database, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        renamed: list[httpx.Response] = []
        body = {"alias": "renamed"}
        thread = threading.Thread(target=lambda: renamed.append(worker.http.post("/worker/update", json=body)))
        thread.start()
        assert httpx.get(f"{site.url}/worker/get/{worker.id}").json()["content"]["worker"]["alias"] == "some alias"
        assert not renamed
        shell.execute("ROLLBACK")
        thread.join()
    assert renamed[0].status_code == 200


def test_thousands_of_leases_that_end_together_are_all_taken_back(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": str(number), "max_assign_time": 60} for number in range(3000)])
    for _ in range(3):
        worker.assign(project, count=1000)
    assert site.admin.counts(project) == {"assigned": 3000}
    site.clock.pass_time(61)
    wait_until(lambda: site.admin.counts(project) == {"waiting": 3000})


def in_transaction(site: Site, function: Callable, *args: object) -> object:
    """Runs a domain function on the database of a site that is not running."""
    path = Path(site.settings.database)
    connection = connect(path, site.settings)
    try:
        connection.execute("BEGIN")
        result = call(tracker.Tx(connection, site.clock, site.settings), function, *args)
        connection.execute("COMMIT")
        return result
    finally:
        connection.close()


class Prepared:
    """A database without a server: what background functions do to it is seen directly."""

    def __init__(self, path: Path, **changes: object):
        self.settings = tracker.Settings(database=str(path), log_file="", **changes)
        self.clock = MovedClock()
        prepare_file(path, self.settings)

    def run(self, function: Callable, *args: object) -> object:
        return in_transaction(self, function, *args)

    def count(self, table: str) -> int:
        return self.run(lambda tx: tx.one(f"SELECT COUNT(*) FROM {table}")[0])


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path / "x.db", snapshot_history=1000, log_retention=1000)


def add_project(tx: tracker.Tx, name: str = "p") -> int:
    body = shapes.ProjectBody(name=name)
    admin = tx.one("SELECT * FROM manager") or None
    if admin is None:
        _, session = tracker.register_manager(tx, "admin", "hash")
    else:
        session = tracker.open_session(tx, admin["id"])
    return call(tx, tracker.create_project, session, body)["id"]


def test_log_lines_are_deleted_after_the_retention_time(prepared: Prepared) -> None:
    worker = prepared.run(tracker.create_worker, None, shapes.AliasBody("w"))["worker"]
    caller = tracker.WorkerCredentials(worker["id"], worker["secret"].encode())
    for _ in range(3):
        prepared.run(tracker.add_log_entry, caller, "info", shapes.LogBody("s", 1, "old"))
    prepared.clock.pass_time(1001)
    prepared.run(tracker.add_log_entry, caller, "info", shapes.LogBody("s", 1, "new"))
    while prepared.run(tracker.prune, "log_entry"):
        pass
    assert prepared.count("log_entry") == 1


def test_ended_sessions_are_deleted(prepared: Prepared) -> None:
    prepared.run(tracker.register_manager, "admin", "hash")
    prepared.clock.pass_time(prepared.settings.session_lifetime + 1)
    prepared.run(tracker.prune, "session")
    assert prepared.count("session") == 0


@pytest.mark.parametrize("kind", ["hard_reset", "reset_failed", "reclaim_assigned"])
def test_a_long_operation_takes_a_bounded_number_of_tasks_at_a_time(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    project = prepared.run(add_project)
    tasks = [tracker.NewTask(project, "r", 0, 0, 0, 0, None)] * (3 * tracker.STEP_TASKS)
    prepared.run(tracker.insert_tasks, tasks, project, False)
    states = {
        "hard_reset": "priority = 1",
        "reset_failed": "status = 2",
        "reclaim_assigned": "assignee = 1, assign_time = 1, assigned_uptime = 0",
    }
    prepared.run(lambda tx: tx.execute(f"UPDATE task SET {states[kind]}"))
    prepared.run(tracker.recount)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)  # the time is always up after one piece
    operation = prepared.run(begin_reset, project, kind)
    assert prepared.run(tracker.step_operation, operation) is None
    affected = prepared.run(lambda tx: tx.one("SELECT affected FROM operation")["affected"])
    assert affected == tracker.STEP_TASKS
    results = [prepared.run(tracker.step_operation, operation) for _ in range(3)]
    assert results == [None, None, 3 * tracker.STEP_TASKS]


def test_assignments_are_answered_while_a_long_operation_runs(site: Site) -> None:
    """While a project of 50,000 tasks is reset, a worker of another one goes through whole cycles."""
    big, other = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(big)
    site.admin.grant(worker, other)
    worker.bulk_submit([{"project": big, "recipe": "r"}] * 50_000)
    worker.bulk_submit([{"project": other, "recipe": "r"}] * 1000)
    done = threading.Event()

    def reset() -> None:
        site.admin.post(f"/project/hard_reset/{big}")
        done.set()

    thread = threading.Thread(target=reset)
    thread.start()
    cycles = 0
    while not done.is_set():
        assert worker.released(worker.assigned(other)["id"])
        cycles += 1
    thread.join()
    assert cycles >= 2
    assert site.admin.counts(big) == {}


def test_a_request_that_fails_inside_is_answered_and_the_tracker_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = site.create_worker()
    monkeypatch.setattr(tracker, "task_row", None)  # a fault of ours, of any kind
    response = worker.submit(1)
    assert (response.status_code, response.json()) == (
        500,
        {"ok": False, "message": "Internal error", "code": "internal"},
    )
    assert httpx.get(site.url).status_code == 200
    assert Worker(site.url).id > worker.id
