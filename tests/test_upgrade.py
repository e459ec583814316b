"""A file of an older version: everything in it is there after the upgrade, and what was going on goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import client, dump, wait_until
from test_background import Prepared

import pages
import tracker
from tracker import OK, ReleaseBody, WorkerCredentials

HOME = Path(tracker.__file__).parent
UPTIME = 50_000.0
WORKER, OTHER = WorkerCredentials(1, b"secret"), WorkerCredentials(2, b"other secret")
IN_FLIGHT = {"reset_failed": 1, "reclaim_assigned": 2, "hard_reset": 3, "bulk_submit": 4}  # projects
TASK = "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count) VALUES "


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "old.db"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def old(path: Path) -> Path:
    """A file of version 1 with four projects, each with four tasks: waiting, assigned, failed, to be verified."""
    return fill(path, 1)


@pytest.fixture
def old_2(path: Path) -> Path:
    """The same of version 2."""
    fill(path, 2)
    with opened(path) as connection:
        connection.execute("UPDATE task SET assigned_uptime = ? WHERE assignee IS NOT NULL", (UPTIME - 100,))
        connection.execute("INSERT INTO assignment VALUES (NULL, 2, 1, 1, 1, 1, 'skipped')")
        connection.execute(
            "INSERT INTO operation (kind, project, wanted, last_task, cursor, started, started_at)"
            """ VALUES ('retry', 1, '{"state":"failed"}', 16, 0, 1, 1)"""
        )
    return path


@pytest.fixture
def old_3(path: Path) -> Path:
    """The same of version 3, with a template in the first project and jobs that came through three doors."""
    fill(path, 3)
    with opened(path) as connection:
        add_jobs(connection)
    return path


def fill(path: Path, version: int) -> Path:
    with opened(path) as connection:
        connection.executescript((HOME / "tests" / f"schema_{version}.sql").read_text("utf-8"))
        connection.execute("INSERT INTO meta VALUES ('uptime', ?), ('cookie_key', 'a key')", (UPTIME,))
        for worker in WORKER, OTHER:
            values = (worker.id, tracker.digest(worker.secret))
            connection.execute("INSERT INTO worker VALUES (?, 'worker', ?, 1, 1, 0, 7)", values)
        for project in IN_FLIGHT.values():
            add_project(connection, project)
        columns = "id, received, time, level, scope, message, worker, task"
        connection.execute(f"INSERT INTO log_entry ({columns}) VALUES (1, 1, 1, 5, 'scope', 'a line', 1, 2)")
        connection.execute(f"PRAGMA application_id = {tracker.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    return path


def add_project(connection: sqlite3.Connection, project: int) -> None:
    """What version 1 did, for each task: its triggers keep the counts."""
    connection.execute(
        "INSERT INTO project (name, priority, clone_url, git_repo, version, motd, public, hidden, paused, keep_hashes,"
        " assign_rate, submit_rate, webhook_secret) VALUES (?, 1, '', '', '', '', 0, 0, 0, 1, 0, 0, 'x')",
        (f"project {project}",),
    )
    for worker in WORKER, OTHER:
        connection.execute("INSERT INTO worker_access VALUES (?, ?, 1, 1, 0)", (project, worker.id))
    waiting, assigned, failed, to_verify = (
        connection.execute(f"{TASK} (?, ?, 0, 3, 0, 2)", (project, f"{state} {project}")).lastrowid
        for state in ("waiting", "assigned", "failed", "to verify")
    )
    hold = f"UPDATE task SET assignee = 1, assign_time = 1, deadline = {UPTIME + 3500} WHERE id = ?"
    connection.execute(hold, (assigned,))
    connection.execute("UPDATE task SET status = 2, retries = 3 WHERE id = ?", (failed,))
    connection.execute("INSERT INTO verification VALUES (?, 2, 7)", (to_verify,))
    connection.execute("INSERT INTO verifier_set (project, members) VALUES (?, '2')", (project,))
    verifier_set = connection.execute("SELECT MAX(id) FROM verifier_set").fetchone()[0]
    connection.execute("INSERT INTO verifier VALUES (?, 2)", (verifier_set,))
    connection.execute("UPDATE task SET verifiers = ? WHERE id = ?", (verifier_set, to_verify))
    connection.execute("INSERT INTO kept_hash VALUES (?, 99)", (project,))
    connection.execute("UPDATE task SET hash64 = 11 WHERE id = ?", (waiting,))
    connection.execute("UPDATE project SET closed_task_count = 5 WHERE id = ?", (project,))


KEY, LOGIN, TOKEN = b"secure123", b"a login", b"a token"
JOBS = {origin: 24 * digit for origin, digit in {"native": "1", "otter": "2", "theeye": "3", "page": "4"}.items()}


def insert(connection: sqlite3.Connection, table: str, **columns: Any) -> int:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values())).lastrowid


def add_jobs(connection: sqlite3.Connection) -> None:
    """One waits, one is held by a worker, one by an agent of theeye.io, one has ended; and what those doors need."""
    source = "#!/bin/sh\necho built\n"
    script = insert(connection, "script", token=24 * "a", digest=b"a", md5="a", source=source)
    recipe = {"recipe": "make", "script": script, "runas": "", "timeout": 60.0, "max_retries": 2, "priority": 9}
    recipe |= {"project": 1, "name": "build", "env": "{}", "arguments": "[]"}
    template = {"token": 24 * "b", "description": "", "variables": "[]", "undeclared": 1, "api": 1, "secret": "x"}
    template |= {"key_hash": tracker.digest(KEY), "created": 1, "updated": 1}
    insert(connection, "template", **recipe, **template)
    for origin, holder in {"native": None, "otter": WORKER.id, "theeye": OTHER.id, "page": None}.items():
        given = {"token": JOBS[origin], "template": 1, "variables": "{}", "created": 1.0, "updated": 1.0}
        job = insert(connection, "job", **recipe, **given, origin=origin, line_count=1)
        line = {"time": 1, "level": 5, "scope": "tracker", "message": "created", "worker": 0}
        insert(connection, "job_line", job=job, number=1, **line)
        if origin == "page":
            ended = "state = 'succeeded', started = 2, finished = ?, assignee = 1, attempts = 1, output = '[1]'"
            connection.execute(f"UPDATE job SET {ended} WHERE id = ?", (time.time(), job))
            continue
        task = connection.execute(f"{TASK} (1, 'make', 9, 2, 75, 1)").lastrowid
        connection.execute("UPDATE task SET job = ? WHERE id = ?", (job, task))
        connection.execute("UPDATE job SET task = ? WHERE id = ?", (task, job))
        if holder:
            hold = f"UPDATE task SET assignee = ?, assign_time = 1, assigned_uptime = 1, deadline = {UPTIME + 70}"
            connection.execute(f"{hold} WHERE id = ?", (holder, task))
            assign = "UPDATE job SET state = 'assigned', started = 2, assignee = ?, attempts = 1 WHERE id = ?"
            connection.execute(assign, (holder, job))
    agent = {"token": 24 * "c", "secret_hash": b"x", "worker": OTHER.id, "project": 1, "created": 1}
    insert(connection, "theeye_agent", **agent)
    insert(connection, "theeye_login", hash=tracker.digest(LOGIN), agent=1, expires=2**40)
    insert(connection, "manager", username="admin", password_hash="unused", tracker_admin=1, register_time=1)
    insert(connection, "theeye_token", name="a program", hash=tracker.digest(TOKEN), admin=0, manager=1, created=1)


def begin_operations(path: Path) -> None:
    """One of each kind, about half done, as a crash leaves them; and an upload that nobody has been told about."""
    pieces = [[(4, f"bulk {number}", 0, 0, 0, 0, number)] for number in range(3)]
    with opened(path) as connection:
        for kind, project in IN_FLIGHT.items():
            cursor = 0 if kind == "hard_reset" else 1  # the last piece, or the last task
            values = (kind, project, cursor)
            connection.execute("INSERT INTO operation VALUES (NULL, ?, ?, 16, ?, 10, 1)", values)
        connection.execute("INSERT INTO operation VALUES (NULL, 'bulk_submit', 4, 16, 0, 0, 0)")
        for number, piece in enumerate(pieces, 2):
            connection.execute("INSERT INTO bulk_piece VALUES (4, ?, ?)", (number, tracker.encode(piece)))
            connection.execute("INSERT INTO bulk_piece VALUES (5, ?, ?)", (number, tracker.encode(piece)))
        connection.execute(f"{TASK} (3, 'later', 0, 0, 0, 0)")


def counts(path: Path) -> dict[int, tuple]:
    with opened(path) as connection:
        rows = connection.execute(f"SELECT id, {', '.join(tracker.COUNT_COLUMNS)} FROM project")
        return {project: tuple(counts) for project, *counts in rows}


def shape(path: Path) -> dict[tuple[str, str], Any]:
    """What tables, columns, references, indexes and triggers a file has. The order of columns is of no account."""
    with opened(path) as connection:
        shown: dict[tuple[str, str], Any] = {}
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall():
            if kind == "table":
                columns = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
                references = connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()
                options = sql.rpartition(")")[2]
                shown[kind, name] = {column[1:] for column in columns}, references, options
            else:
                shown[kind, name] = sql
        return shown


# ── What was there ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upgraded_file_has_the_tables_indexes_and_triggers_of_a_fresh_one(old: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    for path in old, fresh:
        tracker.prepare_file(path, tracker.Settings())
    assert shape(old) == shape(fresh)
    with opened(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (tracker.SCHEMA_VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_every_row_that_was_there_is_there_after_the_upgrade(old: Path) -> None:
    before, counted = dump(old), counts(old)
    tracker.prepare_file(old, tracker.Settings())
    after = dump(old)
    assert counts(old) == counted
    assert set(after) >= (set(before) - {"holding"}) | {"tally", "tally_hour", "assignment", "job", "template"}
    for table in set(before) - {"holding"}:
        assert len(after[table]) == len(before[table]), table
    for table in ("worker", "project", "worker_access", "kept_hash", "verification", "verifier_set", "verifier"):
        assert after[table] == before[table]


def test_what_workers_hold_is_counted_after_the_upgrade(old: Path) -> None:
    tracker.prepare_file(old, tracker.Settings())
    with opened(old) as connection:
        held = connection.execute("SELECT project, worker, held_task_count FROM tally WHERE held_task_count > 0")
        assert sorted(held) == [(project, WORKER.id, 1) for project in IN_FLIGHT.values()]


def test_a_worker_can_release_what_it_held_before_the_upgrade(old: Path) -> None:
    prepared = Prepared(old)
    prepared.clock.start(UPTIME + 20)
    assert prepared.run(tracker.release_task, WORKER, ReleaseBody(2, tracker.FAIL))
    assert not prepared.run(tracker.release_task, WORKER, ReleaseBody(6, OK, 7))
    (row,) = prepared.run(lambda tx: tx.all("SELECT * FROM project WHERE id = 1"))
    assert (row["assigned_task_count"], row["waiting_task_count"]) == (0, 2)


def test_a_runtime_that_began_before_the_upgrade_is_measured_from_the_lease(old: Path) -> None:
    """It was to end 3500 seconds later, and the default was an hour."""
    with opened(old) as connection:
        connection.execute("UPDATE task SET verification_count = 1")
    prepared = Prepared(old)
    prepared.clock.start(UPTIME + 20)
    assert prepared.run(tracker.release_task, WORKER, ReleaseBody(2, OK))
    assert prepared.run(pages.runtimes, 1)["longest"] == pytest.approx(120, abs=5)


def test_no_assignment_begins_in_the_future_whatever_the_default_lease_was(old: Path) -> None:
    """A task could not be requeued, nor its runtime be measured, before that time has come."""
    with opened(old) as connection:
        connection.execute("UPDATE task SET deadline = ? WHERE assignee IS NOT NULL", (UPTIME + 7 * 86400,))
    tracker.prepare_file(old, tracker.Settings())
    with opened(old) as connection:
        began = connection.execute("SELECT assigned_uptime FROM task WHERE assignee IS NOT NULL").fetchall()
    assert began == 4 * [(UPTIME,)]


# ── From version 2 ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_of_version_2_gets_the_tables_indexes_and_triggers_of_a_fresh_one(old_2: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    for path in old_2, fresh:
        tracker.prepare_file(path, tracker.Settings())
    assert shape(old_2) == shape(fresh)
    with opened(old_2) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_every_row_and_count_of_a_file_of_version_2_is_there_after_the_upgrade(old_2: Path) -> None:
    before, counted = dump(old_2), counts(old_2)
    tracker.prepare_file(old_2, tracker.Settings())
    after = dump(old_2)
    assert counts(old_2) == counted
    for table in set(before) - {"task"}:
        assert after[table] == before[table], table
    assert [sorted(map(str, row)) for row in after["task"]] == [
        sorted([*map(str, row), "None"]) for row in before["task"]
    ]
    with opened(old_2) as connection:
        assert connection.execute("SELECT DISTINCT job FROM task").fetchall() == [(None,)]


def test_what_was_going_on_in_a_file_of_version_2_goes_on(old_2: Path) -> None:
    prepared = Prepared(old_2)
    prepared.clock.start(UPTIME + 20)
    assert prepared.run(tracker.release_task, WORKER, ReleaseBody(2, OK, 7)) is False  # one of two verifications
    assert prepared.run(tracker.release_task, WORKER, ReleaseBody(6, tracker.SKIP))
    [operation] = prepared.run(tracker.unfinished_operations)
    assert finish(prepared, operation) == 1
    assert {project: numbers[:4] for project, numbers in counts(old_2).items() if project < 3} == {
        1: (2, 0, 2, 0),
        2: (2, 0, 1, 1),
    }


@pytest.mark.parametrize("file", ["old", "old_2"])
def test_a_job_can_be_made_and_done_in_an_upgraded_file(file: str, request: pytest.FixtureRequest) -> None:
    prepared = Prepared(request.getfixturevalue(file))
    session = prepared.run(tracker.register_manager, "admin", "unused")[1]
    body = tracker.TemplateBody(project=1, name="build", script="echo", priority=9)
    template = prepared.run(tracker.create_template, session, body)["template"]["id"]
    job = prepared.run(tracker.trigger_template, WORKER, template, tracker.TriggerBody())["job"]["id"]
    [task] = prepared.run(tracker.assign_tasks, WORKER, [1]).tasks
    assert task["job"]["id"] == job
    assert prepared.run(tracker.release_task, WORKER, ReleaseBody(task["id"], OK))
    assert prepared.run(tracker.get_job, session, job)["job"]["state"] == "succeeded"
    assert "job" not in prepared.run(tracker.assign_tasks, WORKER, [1]).tasks[0]


# ── From version 3 ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_of_version_3_gets_the_tables_indexes_and_triggers_of_a_fresh_one(old_3: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    for path in old_3, fresh:
        tracker.prepare_file(path, tracker.Settings())
    assert shape(old_3) == shape(fresh)
    with opened(old_3) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_every_row_and_count_of_a_file_of_version_3_is_there_after_the_upgrade(old_3: Path) -> None:
    before, counted = dump(old_3), counts(old_3)
    tracker.prepare_file(old_3, tracker.Settings())
    after = dump(old_3)
    assert counts(old_3) == counted
    assert {table: after[table] for table in before} == before
    assert not any(rows for table, rows in after.items() if table not in before)


def test_jobs_of_every_origin_in_a_file_of_version_3_go_on(old_3: Path) -> None:
    as_worker = {"X-Worker-ID": "1", "X-Secret": "secret"}
    with tracker.serving(tracker.Settings(database=str(old_3), log_file="")) as url, client(url) as http:

        def states() -> dict[str, str]:
            """As an Otter client is told."""
            asked = {job: {"token": token, "key": KEY.decode()} for job, token in JOBS.items()}
            return {job: http.get("/api/jobs/status", params=fields).text for job, fields in asked.items()}

        def release(job: str) -> None:
            with opened(old_3) as connection:
                [task] = connection.execute("SELECT task FROM job WHERE token = ?", (JOBS[job],)).fetchone()
            answer = http.post("/task/release", json={"task_id": task, "result": OK}, headers=as_worker)
            assert answer.json()["content"]["updated"] is True

        assert states() == {"native": "Pending", "otter": "Executing", "theeye": "Executing", "page": "Succeeded"}
        release("otter")
        result = {"state": "success", "data": {"code": 0, "log": "built", "lastline": "built", "output": ["done"]}}
        as_agent, as_program = ({"Authorization": f"Bearer {token.decode()}"} for token in (LOGIN, TOKEN))
        reported = http.put(f"/tracker/job/{JOBS['theeye']}", json={"result": result}, headers=as_agent)
        assert reported.status_code == 200, reported.text
        task = http.get("/task/get/1", headers=as_worker).json()["content"]["task"]
        assert (task["job"]["id"], task["job"]["script"]["source"]) == (JOBS["native"], "#!/bin/sh\necho built\n")
        release("native")
        assert set(states().values()) == {"Succeeded"}
        shown = http.get(f"/tracker/job/{JOBS['theeye']}", headers=as_program).json()
        assert (shown["lifecycle"], shown["state"]) == ("finished", "success")
        again = http.get("/api/jobs/trigger", params={"template": "build", "key": KEY.decode()}).text
        assert http.get("/task/get/1", headers=as_worker).json()["content"]["task"]["job"]["id"] == again


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_an_upgraded_file_has_queues_of_testflinger_and_its_own_projects_are_none(old_3: Path) -> None:
    with tracker.serving(tracker.Settings(database=str(old_3), log_file="")) as url, client(url) as http:
        job = http.post("/v1/job", json={"job_queue": "machines"}).json()["job_id"]
        refused = http.post("/v1/job", json={"job_queue": "project 1"})
        assert 400 <= refused.status_code < 500, refused.text
        assert http.get("/v1/job", params={"queue": "project 1"}).status_code == 204
        assert http.get("/v1/job", params={"queue": ["project 1", "machines"]}).json()["job_id"] == job
        assert [found["job_id"] for found in http.get("/v1/job/search").json()] == [job]


# ── What was going on ─────────────────────────────────────────────────────────────────────────────────────────────────


def finish(prepared: Prepared, operation: int) -> int:
    steps = (prepared.run(tracker.step_operation, operation) for _ in range(1000))
    return next(affected for affected in steps if affected is not None)


def test_operations_that_were_going_on_are_finished_after_the_upgrade(old: Path) -> None:
    begin_operations(old)
    prepared = Prepared(old)
    affected = {operation: finish(prepared, operation) for operation in prepared.run(tracker.unfinished_operations)}
    assert affected == {1: 11, 2: 11, 3: 14, 4: 13}  # with what version 1 had done
    assert counts(old) == {
        1: (2, 1, 1, 0, 5),
        2: (2, 0, 1, 1, 5),
        3: (1, 0, 0, 0, 5),
        4: (4, 1, 1, 1, 5),
    }
    assert [row["recipe"] for row in prepared.run(lambda tx: tx.all("SELECT * FROM task WHERE project = 3"))] == [
        "later"
    ]
    assert prepared.count("kept_hash") == 3


def test_a_tracker_that_starts_with_an_old_file_finishes_what_was_going_on(old: Path) -> None:
    """And forgets the upload that had not been accepted."""
    begin_operations(old)
    with tracker.serving(tracker.Settings(database=str(old), log_file="")) as url:
        with opened(old) as connection:
            wait_until(lambda: not connection.execute("SELECT 1 FROM operation WHERE finished IS NULL").fetchone())
        with client(url) as http:
            headers = {"X-Worker-ID": "1", "X-Secret": "secret"}
            answer = http.post("/task/release", json={"task_id": 2, "result": tracker.SKIP}, headers=headers)
            assert answer.json()["content"]["updated"] is True
            late = http.post("/task/release", json={"task_id": 6, "result": OK}, headers=headers)
            assert late.json()["content"]["updated"] is False
    assert {project: numbers[:4] for project, numbers in counts(old).items()} == {
        1: (3, 0, 1, 0),
        2: (2, 0, 1, 1),
        3: (1, 0, 0, 0),
        4: (4, 1, 1, 1),
    }
    assert dump(old)["bulk_piece"] == dump(old)["operation"] == []


# ── When it fails ─────────────────────────────────────────────────────────────────────────────────────────────────────

DIE_HALF_WAY = """
    import os, signal, sys
    from pathlib import Path
    import tracker

    class Doomed(tracker.sqlite3.Connection):
        def executescript(self, script):
            statements = 0
            def count(statement):
                nonlocal statements
                statements += not statement.startswith("--")  # those of a trigger
                if statements == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
            self.set_trace_callback(count)
            super().executescript(script)
            print(statements)

    real = tracker.sqlite3.connect
    tracker.sqlite3.connect = lambda *args, **kwargs: real(*args, factory=Doomed, **kwargs)
    tracker.prepare_file(Path(sys.argv[1]), tracker.Settings())
"""


def upgrade_in_process(path: Path, dies_at: int) -> subprocess.CompletedProcess:
    """A process of its own upgrades the file, and is killed when it begins so many a statement."""
    script, environment = textwrap.dedent(DIE_HALF_WAY), {**os.environ, "PYTHONPATH": str(HOME)}
    command = [sys.executable, "-c", script, str(path), str(dies_at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_crash_in_the_middle_of_an_upgrade_leaves_the_old_file(old: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(old.read_bytes())
    statements = int(upgrade_in_process(copy, 0).stdout)
    before, version = dump(old), shape(old)
    for dies_at in (5, statements // 2, statements):  # the last one is the COMMIT
        died = upgrade_in_process(old, dies_at)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert (dump(old), shape(old)) == (before, version)
        with opened(old) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    tracker.prepare_file(old, tracker.Settings())
    assert counts(old) == counts(copy)


def test_an_upgrade_that_fails_is_refused_with_a_reason_and_leaves_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, (room, fill) = dump(old), tracker.UPGRADES[1]
    monkeypatch.setitem(tracker.UPGRADES, 1, (room, f"{fill}; INSERT INTO nowhere VALUES (1);"))
    with pytest.raises(tracker.TrackerError, match=r"old\.db.*no such table: nowhere"):
        tracker.prepare_file(old, tracker.Settings())
    assert dump(old) == before


def test_an_upgrade_is_done_once(old: Path) -> None:
    tracker.prepare_file(old, tracker.Settings())
    before = dump(old)
    tracker.prepare_file(old, tracker.Settings())
    assert dump(old) == before


def test_a_worker_of_an_old_file_goes_on_as_if_nothing_had_happened(old: Path) -> None:
    headers = {"X-Worker-ID": "1", "X-Secret": "secret"}
    with tracker.serving(tracker.Settings(database=str(old), log_file="")) as url:
        task = httpx.get(f"{url}/task/get/1", headers=headers).json()["content"]["task"]
        assert task["recipe"] == "waiting 1"
