"""What there may be of what strangers can make grow: counted without scanning, and exactly, whatever is done."""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from conftest import Site, Worker, client, wait_until
from place import OPERATIONS, Jobs, Memory, Place, call, check_counts

import budgets
import callers
import limits
import pages
import tracker
from database import UPGRADES
from limits import LARGEST_FLOOR
from tracker import FAIL, OK, SKIP, shapes
from writer import Committer, Write

MIB = 2**20


# ── The counts are right ──────────────────────────────────────────────────────────────────────────────────────────────

# What weighs in a project, written anew: a SELECT of (project, weight) for each kind.
BYTES = "length(CAST(ifnull({}, '') AS BLOB))"
WEIGHTS = {
    "project": f"SELECT id, {budgets.PROJECT_SIZE} FROM project",
    "task": f"SELECT project, {budgets.TASK_WEIGHT} FROM task",
    "failure": f"SELECT project, 40 + {BYTES.format('reason')} FROM failure",
    "kept_hash": f"SELECT project, {budgets.HASH_SIZE} FROM kept_hash",
    "bulk_piece": "SELECT project, length(tasks) + 12000 FROM bulk_piece JOIN operation ON id = operation",
    "operation": "SELECT project, 400 + length(report) + ifnull(length(wanted), 0) FROM operation",
    "access": f"SELECT project, {budgets.ACCESS_SIZE} FROM worker_access",
    "tally": "SELECT project, 200 FROM tally",
    "script": f"SELECT project, {BYTES.format('source')} FROM script WHERE project IS NOT NULL",
    "template": "SELECT project, 1000 + "
    + " + ".join(map(BYTES.format, ("description", "recipe", "variables", "arguments", "env", "runas")))
    + " FROM template",
    "job": "SELECT project, 1000 + log_size + 150 * line_count + "
    + " + ".join(map(BYTES.format, ("recipe", "recipe", "variables", "arguments", "env", "runas", "result", "output")))
    + " FROM job",
    "workflow": "SELECT project, 1000 FROM workflow",
    "edge": "SELECT project, 100 FROM workflow_edge JOIN workflow ON id = workflow",
}


def sizes(connection: sqlite3.Connection) -> dict[int, int]:
    """What there is in each project that is not trusted, counted anew."""
    every = " UNION ALL ".join(WEIGHTS.values())
    every = f"SELECT 0 AS project, 0 AS weight UNION ALL {every}"
    rows = connection.execute(
        f"SELECT id, (SELECT SUM(weight) FROM ({every}) WHERE project = p.id) FROM project p WHERE NOT trusted"
    )
    return {row[0]: row[1] for row in rows}


REASONS = "SELECT ifnull(SUM(length(CAST(reason AS BLOB))), 0) FROM failure"
BROUGHT = f"""
    SELECT ifnull(SUM(size), 0) FROM (
        SELECT size FROM testflinger_job UNION ALL SELECT 200 + size FROM testflinger_outcome
        UNION ALL SELECT 100 + {BYTES.format("name")} + {BYTES.format("data")} FROM testflinger_image
        UNION ALL SELECT 200 + 2 * {BYTES.format("fields")} FROM testflinger_agent
        UNION ALL SELECT 100 + {BYTES.format("line")} FROM testflinger_agent_line
        UNION ALL SELECT 200 + {BYTES.format("detail")} FROM testflinger_provision)
"""
ACTS = "SELECT ifnull(SUM(200 + length(CAST(details AS BLOB))), 0) FROM act"


def check_budgets(connection: sqlite3.Connection) -> None:
    """Every count is that of what there is."""
    kept = dict(map(tuple, connection.execute("SELECT id, size FROM project WHERE NOT trusted")))
    assert kept == sizes(connection)
    used = dict(map(tuple, connection.execute("SELECT * FROM budget")))
    lines = (
        "SELECT e.worker, SUM(100 + length(CAST(scope AS BLOB)) + length(CAST(message AS BLOB)))"
        " FROM log_entry e GROUP BY e.worker"
    )
    shares = list(map(tuple, connection.execute(lines)))
    assert shares == list(map(tuple, connection.execute("SELECT worker, size FROM log_share ORDER BY worker")))
    going = "SELECT json_extract(wanted, '$.size') FROM operation WHERE kind = 'delete_project' AND finished IS NULL"
    held = [size for (size,) in connection.execute(going)]  # of projects of which there is still something
    strangers = connection.execute("SELECT ifnull(SUM(size), 0) FROM log_share WHERE stranger").fetchone()[0]
    assert used == {
        "logs": sum(size for _, size in shares),
        "stranger_logs": strangers,
        "projects": sum(kept.values()) + sum(held),
        "workers": connection.execute("SELECT COUNT(*) FROM worker").fetchone()[0],
        "managers": connection.execute("SELECT COUNT(*) FROM manager").fetchone()[0],
        "files": connection.execute("SELECT ifnull(SUM(size), 0) FROM testflinger_file").fetchone()[0],
        "reasons": connection.execute(REASONS).fetchone()[0],
        "acts": connection.execute(ACTS).fetchone()[0],
        "testflinger": connection.execute(BROUGHT).fetchone()[0],
    }
    newcomers = (
        "SELECT 'workers', source, COUNT(*) FROM worker WHERE source <> '' GROUP BY source UNION ALL"
        " SELECT 'managers', source, COUNT(*) FROM manager WHERE source <> '' GROUP BY source"
    )
    counted = sorted(map(tuple, connection.execute("SELECT * FROM newcomer")))
    assert counted == sorted(map(tuple, connection.execute(newcomers)))


def distrust(memory: Memory, only: int | None = None) -> None:
    """Makes every project one that no admin trusts, or only this one."""
    memory.connection.execute("UPDATE project SET trusted = 0 WHERE id = ifnull(?, id)", (only,))
    for project, size in sizes(memory.connection).items():
        memory.connection.execute("UPDATE project SET size = ? WHERE id = ?", (size, project))


@pytest.fixture(scope="module")
def furnished() -> tuple[Memory, Place]:
    memory = Memory()
    place = memory.furnish()
    check_budgets(memory.connection)
    distrust(memory)
    check_budgets(memory.connection)
    return memory, place


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_is_done_in_a_project_that_nobody_trusts_is_weighed(
    furnished: tuple[Memory, Place], name: str
) -> None:
    memory, place = furnished
    function, args = OPERATIONS[name](place)
    with memory.connection:
        memory.connection.execute("SAVEPOINT before")
        tx = tracker.Tx(memory.connection, memory.clock, memory.settings)
        call(tx, function, *args)
        check_budgets(memory.connection)
        with contextlib.suppress(tracker.TrackerError, sqlite3.IntegrityError, TypeError):
            call(tx, function, *args)  # once more
        check_budgets(memory.connection)
        memory.connection.execute("ROLLBACK TO before")


def test_what_an_old_file_has_is_counted_at_its_upgrade() -> None:
    memory = Memory()
    memory.furnish()
    old = "name NOT IN ('reasons', 'acts')"  # budgets that such a file has none of: all that is in them is new
    memory.connection.executescript(f"DELETE FROM log_share; UPDATE budget SET used = 0 WHERE {old}")
    filled = UPGRADES[6][1]
    memory.connection.executescript(filled[: filled.index("INSERT INTO verifier_block")])
    memory.connection.execute("INSERT INTO testflinger_file VALUES ('uuid', 'artifact', 'name', 1234, 1)")
    memory.connection.execute("UPDATE budget SET used = 0 WHERE name = 'files'")
    distrust(memory)
    memory.connection.execute("UPDATE project SET size = size - 200 * (SELECT COUNT(*) FROM tally WHERE project = id)")
    memory.connection.executescript(UPGRADES[7][1])
    check_budgets(memory.connection)


def test_a_piece_of_a_bulk_submit_weighs_as_much_as_its_tasks_will() -> None:
    assert tracker.BULK_TASKS * budgets.TASK_SIZE == 12000  # as in schema.sql


# ── Log lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MANY = 10**6  # KiB a second


class Open(Jobs):
    """The queue, and strangers who come to it."""

    def stranger(self) -> tracker.WorkerCredentials:
        worker = self.do(tracker.create_worker, None, shapes.AliasBody("stranger"))["worker"]
        return tracker.WorkerCredentials(worker["id"], worker["secret"].encode())


class Logs(Open):
    """The queue with small budgets for lines, and no rates."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            worker_log_rate=MANY, address_log_rate=MANY, **{"max_logs": 1, "max_stranger_logs": 1, **settings}
        )

    def fill(self, worker: tracker.WorkerCredentials, lines: int, length: int = 1000) -> None:
        def log(tx: tracker.Tx) -> None:
            for _ in range(lines):
                tracker.add_log_entry(tx, worker, "info", shapes.LogBody("s", 1, "x" * length))

        self.do(log)

    def lines(self, worker: tracker.WorkerCredentials) -> int:
        return self.values("SELECT COUNT(*) FROM log_entry WHERE worker = ?", worker.id)[0][0]

    def used(self, name: str) -> int:
        return self.values("SELECT used FROM budget WHERE name = ?", name)[0][0]


def test_stored_lines_stay_within_their_budget() -> None:
    logs = Logs()
    logs.fill(logs.worker, 2000)
    assert 0.9 * MIB < logs.used("logs") <= MIB
    assert logs.values("SELECT MAX(id) FROM log_entry") == [(2000,)]  # the newest are kept
    check_budgets(logs.connection)


def test_whoever_has_most_lines_loses_its_oldest_for_the_next() -> None:
    logs = Logs()
    modest, loud = logs.create_worker(), logs.create_worker()
    logs.fill(modest, 100)
    logs.fill(loud, 3000)
    logs.fill(modest, 100)
    assert logs.lines(modest) == 200
    check_budgets(logs.connection)


def test_strangers_share_a_small_part_and_take_no_line_from_those_who_work() -> None:
    logs = Logs(max_logs=3)
    logs.fill(logs.worker, 1000)
    for _ in range(5):
        logs.fill(logs.stranger(), 600)
    assert logs.used("stranger_logs") <= MIB
    assert logs.lines(logs.worker) == 1000
    check_budgets(logs.connection)


def test_a_worker_that_has_got_access_is_no_stranger_any_more() -> None:
    logs = Logs(max_logs=3)
    worker = logs.stranger()
    logs.fill(worker, 500)
    logs.give_access(worker.id, logs.project)
    logs.fill(worker, 1)
    assert logs.used("stranger_logs") == 0
    logs.fill(logs.stranger(), 1000)
    assert logs.lines(worker) == 501


def test_one_that_has_become_known_since_is_not_evicted_as_a_stranger() -> None:
    logs = Logs(max_logs=3)
    worker = logs.stranger()
    logs.fill(worker, 600)
    logs.give_access(worker.id, logs.project)
    logs.fill(logs.stranger(), 1000)
    assert logs.lines(worker) == 600


def test_a_line_of_a_public_projects_worker_that_has_had_a_task_is_no_strangers() -> None:
    logs = Logs()
    logs.do(tracker.update_project, logs.session, logs.project, shapes.ProjectBody(public=True))
    worker = logs.stranger()
    logs.submit()
    logs.assign(worker)
    logs.fill(worker, 1)
    assert logs.used("stranger_logs") == 0 < logs.used("logs")


def test_lines_with_wide_characters_count_as_many_bytes_as_they_take() -> None:
    logs = Logs()
    logs.do(tracker.add_log_entry, logs.worker, "info", shapes.LogBody("ö", 1, "🙂" * 100))
    assert logs.used("logs") == budgets.LINE_SIZE + 2 + 400


def test_a_long_line_is_kept_while_somebody_has_very_many_short_ones() -> None:
    logs = Logs()
    modest = logs.create_worker()
    logs.fill(logs.worker, 11_000, 1)
    logs.do(tracker.add_log_entry, modest, "info", shapes.LogBody("s" * 1000, 1, "🙂" * 65536))
    assert logs.lines(modest) == 1
    assert 0.99 * MIB < logs.used("logs") <= MIB
    assert logs.values("SELECT MAX(id) - MIN(id) + 1 - COUNT(*) FROM log_entry") == [(0,)]  # the oldest have gone
    check_budgets(logs.connection)


def test_a_long_line_of_a_stranger_is_kept_while_another_has_very_many_short_ones() -> None:
    logs = Logs(max_logs=3)
    loud, modest = logs.stranger(), logs.stranger()
    logs.fill(loud, 11_000, 1)
    logs.fill(modest, 1, 60_000)
    assert logs.lines(modest) == 1 and logs.used("stranger_logs") <= MIB


def test_a_line_makes_room_by_a_bounded_number_of_others_and_is_not_kept_when_that_is_not_enough() -> None:
    logs = Logs(max_logs=2)
    logs.fill(logs.worker, 15_000, 1)
    small = logs.settings = tracker.Settings(**{**msgspec.structs.asdict(logs.settings), "max_logs": 1})
    before = logs.lines(logs.worker)
    logs.fill(logs.worker, 1, 1)
    assert before - logs.lines(logs.worker) == budgets.MOST_EVICTED
    logs.fill(logs.worker, 1, 1)
    assert logs.used("logs") <= MIB * small.max_logs
    check_budgets(logs.connection)


def logged(site: Site, text: str) -> list[tuple]:
    return site.read("SELECT message FROM log_entry WHERE message LIKE ?", f"{text}%")


def test_a_line_beyond_a_workers_rate_is_answered_as_ever_and_goes_to_the_file_only(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site(worker_log_rate=1)
    fast, slow = site.create_worker(), site.create_worker()
    answers = [fast.log("info", f"fast {number} {'x' * 10_000}") for number in range(20)]
    assert {(answer.status_code, answer.content) for answer in answers} == {(204, b"")}
    assert 1 <= len(logged(site, "fast")) < 10
    assert slow.log("info", "slow").status_code == 204 and logged(site, "slow")
    assert sum("fast" in line for line in (tmp_path / "tracker.log").read_text("utf-8").splitlines()) == 20
    site.clock.pass_time(60)
    assert fast.log("info", "later").status_code == 204 and logged(site, "later")


def test_an_address_has_a_rate_for_all_its_workers(make_site: Callable[..., Site]) -> None:
    site = make_site(address_log_rate=1)
    crowd = [site.create_worker() for _ in range(10)]
    for worker in crowd:
        worker.http.headers["X-Forwarded-For"] = "203.0.113.9"
        assert worker.log("info", f"crowd {'x' * 20_000}").status_code == 204
    assert 1 <= len(logged(site, "crowd")) < 6
    crowd[0].http.headers["X-Forwarded-For"] = "203.0.113.10"
    crowd[0].log("info", "from another address")
    assert logged(site, "from another address")


def test_lines_with_a_wrong_secret_use_up_nobodys_rate(make_site: Callable[..., Site]) -> None:
    site = make_site(worker_log_rate=1)
    worker = site.create_worker()
    right = worker.http.headers["X-Secret"]
    worker.http.headers["X-Secret"] = "wrong"
    assert {worker.log("info", "x" * 50_000).status_code for _ in range(5)} == {401}
    worker.http.headers["X-Secret"] = right
    worker.log("info", "mine")
    assert logged(site, "mine")


def test_three_hundred_workers_behind_one_address_may_log_as_workers_do(site: Site) -> None:
    with client(site.url, headers={"X-Forwarded-For": "203.0.113.9"}) as http:
        secrets = [http.post("/worker/create", json={"alias": "w"}).json()["content"]["worker"] for _ in range(300)]
        for number in range(3):
            for one in secrets:
                headers = {"X-Worker-ID": str(one["id"]), "X-Secret": one["secret"]}
                body = {"scope": "s", "message": f"line {number}", "timestamp": 1}
                assert http.post("/log/info", json=body, headers=headers).status_code == 204
    assert len(logged(site, "line")) == 900


# ── Workers and managers ──────────────────────────────────────────────────────────────────────────────────────────────


def trigger_keyless(site: Site, address: str, value: str = "x") -> int:
    """The status of a job that somebody at this address makes of a template that needs no key."""
    headers = {"X-Forwarded-For": address} if address else {}
    body = {"template": "open", "v": value}
    return httpx.post(f"{site.url}/api/jobs/trigger", data=body, headers=headers).status_code


def test_a_template_without_a_key_is_no_way_to_fill_the_disk(make_site: Callable[..., Site]) -> None:
    site = make_site(keyless_rate=3)
    project = site.admin.create_project()
    template = {"project": project, "name": "open", "recipe": "{v}", "api": True, "variables": [{"name": "v"}]}
    assert site.admin.post("/template/create", template).status_code == 200
    assert trigger_keyless(site, "203.0.113.9", "x" * 70_000) == 413
    assert [trigger_keyless(site, "203.0.113.9") for _ in range(4)] == [200, 200, 200, 429]
    assert trigger_keyless(site, "203.0.113.10") == 200
    assert [trigger_keyless(site, "", "x" * 70_000) for _ in range(4)] == [200] * 4  # programs on this machine


@pytest.fixture
def stranger(make_site: Callable[..., Site]) -> Worker:
    """A worker that nobody knows, elsewhere, which holds task 1, a job's; from there come 300 KiB at once at most."""
    return stranger_at(make_site(stranger_job_rate=1))


def stranger_at(site: Site) -> Worker:
    """A worker that nobody knows, elsewhere, which holds task 1, a job's."""
    project = site.admin.create_project(public=True)
    template = {"project": project, "name": "open", "recipe": "{v}", "api": True, "variables": [{"name": "v"}]}
    assert site.admin.post("/template/create", template).status_code == 200
    assert trigger_keyless(site, "203.0.113.9") == 200
    worker = site.create_worker()
    worker.http.headers["X-Forwarded-For"] = "203.0.113.9"
    assert worker.assigned(project)["id"] == 1
    worker.site = site
    return worker


def stored_lines(worker: Worker) -> int:
    """How many of ten lines of 60 KB that are logged to the job are stored."""
    body = {"task_id": 1, "entries": [{"message": "x" * 60_000, "timestamp": 1}]}
    return sum(worker.http.post("/task/log", json=body).json()["content"]["stored"] for _ in range(10))


def test_strangers_do_not_fill_the_disk_with_the_logs_of_jobs(stranger: Worker) -> None:
    assert stored_lines(stranger) == 5
    stranger.site.clock.pass_time(600)
    assert [stranger.log("error", "x" * 60_000, task_id=1).status_code for _ in range(10)] == [204] * 10
    assert stranger.site.read("SELECT COUNT(*) FROM job_line WHERE message LIKE 'xxx%'") == [(10,)]


def log_lines(worker: Worker, *messages: str) -> dict[str, Any]:
    """Logs lines to the job; what is answered."""
    body = {"task_id": 1, "entries": [{"message": message, "timestamp": 1} for message in messages]}
    return worker.http.post("/task/log", json=body).json()["content"]


def told(worker: Worker) -> list[str]:
    """What the job's log tells of lines that were dropped."""
    return [row[0] for row in worker.site.read("SELECT message FROM job_line WHERE message LIKE '%dropped%'")]


def test_a_jobs_log_tells_once_how_many_lines_were_dropped_by_which_setting(stranger: Worker) -> None:
    assert stored_lines(stranger) == 5
    dropped = {"held": True, "stored": 0, "dropped_by": "stranger_job_rate"}
    assert log_lines(stranger, "x" * 60_000, "y") == dropped and told(stranger) == []
    stranger.site.clock.pass_time(600)
    assert [log_lines(stranger, "later"), log_lines(stranger, "last")] == [{"held": True, "stored": 1}] * 2
    assert told(stranger) == ["lines dropped here: 7 (setting stranger_job_rate)"]
    numbers = "SELECT message FROM job_line ORDER BY number DESC LIMIT 3"
    assert stranger.site.read(numbers) == [("last",), ("later",), (told(stranger)[0],)]


def test_a_jobs_log_tells_at_its_end_of_lines_that_were_dropped(stranger: Worker) -> None:
    assert stored_lines(stranger) == 5 and stranger.released(1)
    assert told(stranger) == ["lines dropped here: 5 (setting stranger_job_rate)"]


def test_a_full_log_of_a_stranger_takes_nothing_from_its_rate(make_site: Callable[..., Site]) -> None:
    worker = stranger_at(make_site(stranger_job_rate=1, max_job_log=1))
    assert log_lines(worker, "x" * 2000) == {"held": True, "stored": 1}
    assert [log_lines(worker, "x" * 60_000) for _ in range(10)] == [{"held": True, "stored": 0}] * 10
    assert worker.released(1, output="x" * 200_000)


def test_strangers_do_not_fill_the_disk_with_results_of_jobs_which_wait(stranger: Worker) -> None:
    assert stored_lines(stranger) == 5
    refused = stranger.release(1, output="x" * 20_000)
    assert (
        refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0 and "stranger_job_rate" in refused.text
    )
    stranger.site.clock.pass_time(600)
    assert stranger.released(1, output="x" * 20_000)


def hold_until_the_end(stranger: Worker, size: int) -> None:
    """So much as may come at once has come, of lines and of a result of this size; task 2 has ten seconds left."""
    assert stranger.site.admin.post("/template/update/1", {"timeout": 100}).status_code == 200
    assert trigger_keyless(stranger.site, "203.0.113.9") == 200 and stranger.assigned(1)["id"] == 2
    stranger.site.clock.pass_time(105)
    assert stored_lines(stranger) == 5 and stranger.release(1, output="x" * size).status_code == 429


def test_a_result_of_a_stranger_that_would_be_taken_after_its_lease_is_taken_at_once(stranger: Worker) -> None:
    hold_until_the_end(stranger, 150_000)
    assert stranger.released(2, output="x" * 150_000)
    assert stranger.release(1, output="x" * 20_000).status_code == 429


def test_results_of_a_stranger_that_cannot_wait_are_no_more_than_as_much_again(stranger: Worker) -> None:
    assert stranger.site.admin.post("/template/update/1", {"timeout": 100}).status_code == 200
    for number in range(2, 8):
        assert trigger_keyless(stranger.site, "203.0.113.9") == 200 and stranger.assigned(1)["id"] == number
    stranger.site.clock.pass_time(105)
    assert stored_lines(stranger) == 5
    taken = [stranger.release(number, output="x" * 100_000).status_code for number in range(2, 8)]
    assert taken == [200, 200, 200, 429, 429, 429]
    assert stranger.released(5)  # without it at any time


def test_a_result_of_a_stranger_that_is_larger_than_what_may_come_at_once_waits_and_is_taken(stranger: Worker) -> None:
    assert stored_lines(stranger) == 5 and stranger.release(1, output="x" * 400_000).status_code == 429
    stranger.site.clock.pass_time(600)
    assert stranger.released(1, output="x" * 400_000)


def test_what_comes_after_a_result_that_is_larger_than_that_waits_for_all_of_it(stranger: Worker) -> None:
    assert stranger.released(1, output="x" * 600_000)
    assert trigger_keyless(stranger.site, "203.0.113.9") == 200 and stranger.assigned(1)["id"] == 2
    stranger.site.clock.pass_time(250)
    assert stranger.release(2, output="x" * 20_000).status_code == 429
    stranger.site.clock.pass_time(100)
    assert stranger.released(2, output="x" * 20_000)


def release_in_bulk(worker: Worker, size: int) -> httpx.Response:
    """Three tasks, each with a result of so many bytes."""
    releases = [{"task_id": number, "result": 0, "output": "x" * size} for number in (1, 2, 3)]
    return worker.http.post("/task/bulk_release", json={"releases": releases})


@pytest.mark.parametrize("size", [90_000, 150_000], ids=["fit", "are larger than all that may come at once"])
def test_results_of_a_stranger_that_come_together_wait_and_are_taken_together(stranger: Worker, size: int) -> None:
    for number in (2, 3):
        assert trigger_keyless(stranger.site, "203.0.113.9") == 200 and stranger.assigned(1)["id"] == number
    assert stored_lines(stranger) == 5
    stranger.site.clock.pass_time(100)
    refused = release_in_bulk(stranger, size)
    assert refused.status_code == 429 and refused.json()["message"].startswith("Too many log lines")
    stranger.site.clock.pass_time(int(refused.headers["Retry-After"]) + 1)
    assert release_in_bulk(stranger, size).json()["content"] == {"updated": [True] * 3}


def test_results_that_are_refused_for_another_release_with_them_count_once(stranger: Worker) -> None:
    wrong = {"task_id": 2, "result": OK, "delay": 5}
    releases = [{"task_id": 1, "result": OK, "output": "x" * 200_000}, wrong]
    refused = [stranger.http.post("/task/bulk_release", json={"releases": releases}).status_code for _ in range(5)]
    assert refused == [400] * 5
    assert stranger.released(1, output="x" * 200_000)


def test_a_small_result_of_a_stranger_does_not_wait(stranger: Worker) -> None:
    assert stored_lines(stranger) == 5 and stranger.released(1, output="done")


@pytest.mark.parametrize("known", ["by access", "on this machine"])
def test_who_has_access_or_is_on_this_machine_brings_what_a_job_may_have(stranger: Worker, known: str) -> None:
    if known == "by access":
        stranger.site.admin.grant(stranger, 1)
    else:
        del stranger.http.headers["X-Forwarded-For"]
    assert stored_lines(stranger) == 10 and stranger.released(1, output="x" * 100_000)


def create(site: Site, address: str, path: str = "/worker/create", body: Any = None) -> httpx.Response:
    body = body or {"alias": "w"}
    return httpx.post(f"{site.url}{path}", json=body, headers={"X-Forwarded-For": address} if address else {})


def test_an_address_may_register_so_many_in_an_hour(make_site: Callable[..., Site]) -> None:
    site = make_site(registration_rate=10)
    statuses = [create(site, "203.0.113.9").status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    refused = create(site, "203.0.113.9")
    assert refused.json()["ok"] is False and "registration_rate" in refused.json()["message"]
    assert 0 < refused.json()["rate_limit_delay"] <= 360 and int(refused.headers["Retry-After"]) <= 361
    assert create(site, "203.0.113.10").status_code == 200
    site.clock.pass_time(361)
    assert create(site, "203.0.113.9").status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.10", False),
    ],
)
def test_a_network_of_ipv6_is_one_address_and_a_mapped_ipv4_is_that_one(
    make_site: Callable[..., Site], one: str, other: str, together: bool
) -> None:
    site = make_site(registration_rate=1)
    assert create(site, one).status_code == 200
    assert create(site, other).status_code == (429 if together else 200)


def test_what_a_proxy_tells_that_is_no_address_is_kept_in_part(site: Site) -> None:
    assert create(site, "x" * 50_000).status_code == 200
    account = {"username": "somebody", "password": "correct horse"}
    assert create(site, "y" * 50_000, "/register", account).status_code == 200
    kept = site.read("SELECT source FROM newcomer UNION SELECT address FROM login_address")
    assert {text[0] for (text,) in kept} >= {"x", "y"}
    assert max(len(text) for (text,) in kept) <= 100


def test_workers_and_managers_of_an_address_count_together(make_site: Callable[..., Site]) -> None:
    site = make_site(registration_rate=1)
    assert create(site, "203.0.113.9").status_code == 200
    account = {"username": "somebody", "password": "correct horse"}
    assert create(site, "203.0.113.9", "/register", account).status_code == 429


def test_an_admin_creates_workers_however_many_have_registered_from_there(make_site: Callable[..., Site]) -> None:
    site = make_site(registration_rate=1)
    from_there = {"X-Forwarded-For": "203.0.113.9"}
    assert create(site, "203.0.113.9").status_code == 200
    for manager, status in ((site.admin, 200), (site.create_manager(), 429)):
        created = manager.http.post("/worker/create", json={"alias": "w"}, headers=from_there)
        assert created.status_code == status


def test_programs_on_this_machine_may_register_as_many_as_they_like(make_site: Callable[..., Site]) -> None:
    site = make_site(registration_rate=1)
    assert {create(site, "").status_code for _ in range(30)} == {200}
    assert {site.create_manager(f"user{number}").id for number in range(30)}


def test_three_hundred_workers_and_five_managers_behind_one_address_may_register(site: Site) -> None:
    with client(site.url, headers={"X-Forwarded-For": "203.0.113.9"}) as http:
        assert {http.post("/worker/create", json={"alias": "w"}).status_code for _ in range(300)} == {200}
        accounts = [{"username": f"user{number}", "password": "correct horse"} for number in range(5)]
        assert {http.post("/register", json=account).status_code for account in accounts} == {200}


def test_there_are_no_more_workers_than_the_setting_says_but_those_that_an_admin_creates(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_workers=2)
    assert [create(site, "").status_code for _ in range(3)] == [200, 200, 503]
    refused = create(site, "").json()
    assert refused["code"] == "unavailable" and "max_workers" in refused["message"]
    assert site.admin.post("/worker/create", {"alias": "mine"}).status_code == 200
    assert site.create_manager().post("/worker/create", {"alias": "mine"}).status_code == 503


def test_there_are_no_more_managers_than_the_setting_says(make_site: Callable[..., Site]) -> None:
    site = make_site(max_managers=2)  # the first is the admin
    site.create_manager("second")
    account = {"username": "third", "password": "correct horse"}
    refused = httpx.post(f"{site.url}/register", json=account)
    assert refused.status_code == 503 and "max_managers" in refused.json()["message"]


def forget(queue: Jobs, function: Callable) -> int:
    """Forgets whoever is to be. In how many steps."""
    steps, last = 0, 0
    while last is not None:
        steps, last = steps + 1, queue.do(function, last)
    return steps


def test_workers_that_never_did_anything_are_forgotten_while_there_are_very_many() -> None:
    queue = Jobs(max_workers=10)
    silent = [queue.do(tracker.create_worker, None, shapes.AliasBody("s"))["worker"] for _ in range(8)]
    asking = tracker.WorkerCredentials(silent[0]["id"], silent[0]["secret"].encode())
    queue.do(tracker.request_access, asking, shapes.AccessBody(queue.project, assign=True))
    talking = tracker.WorkerCredentials(silent[1]["id"], silent[1]["secret"].encode())
    queue.do(tracker.add_log_entry, talking, "info", shapes.LogBody("s", 1, "here"))
    queue.clock.now += budgets.SILENCE + 1
    queue.connection.execute("UPDATE worker SET last_seen = ? WHERE id = ?", (queue.clock.time(), silent[2]["id"]))
    assert forget(queue, tracker.forget_workers) == 1
    kept = [queue.worker.id, *(one["id"] for one in silent[:3])]
    assert queue.values("SELECT id FROM worker ORDER BY id") == [(worker,) for worker in kept]
    check_budgets(queue.connection)


def test_no_worker_is_forgotten_while_there_are_few() -> None:
    queue = Jobs(max_workers=10)
    for _ in range(4):
        queue.do(tracker.create_worker, None, shapes.AliasBody("s"))
    queue.clock.now += budgets.SILENCE + 1
    forget(queue, tracker.forget_workers)
    assert len(queue.values("SELECT id FROM worker")) == 5


def test_workers_whom_only_projects_know_that_nobody_trusts_are_forgotten_after_a_long_silence() -> None:
    queue = Open(max_workers=10)
    own = queue.create_project("own")
    queue.submit()
    distrust(queue, own)
    granted, asking, worked, trusted, held, recent = [queue.stranger() for _ in range(6)]
    for worker in granted, worked, held, recent:
        queue.give_access(worker.id, own)
    queue.give_access(trusted.id, queue.project)
    for project in own, queue.project:
        queue.do(tracker.request_access, asking, shapes.AccessBody(project, assign=True))
    for worker in worked, held:
        queue.do(tracker.submit_task, worker, tracker.NewTask(own, "r", 0, 1, 0, 1, None))
        queue.assign(worker, own)
    queue.release(queue.values("SELECT id FROM task WHERE assignee = ?", worked.id)[0][0], worker=worked)
    queue.clock.now += budgets.LONG_SILENCE + 1
    queue.connection.execute("UPDATE worker SET last_seen = ? WHERE id = ?", (queue.clock.time(), recent.id))
    forget(queue, tracker.forget_workers)
    kept = [queue.worker.id, trusted.id, held.id, recent.id]
    assert queue.values("SELECT id FROM worker ORDER BY id") == [(worker,) for worker in kept]
    assert queue.values("SELECT COUNT(*) FROM worker_access WHERE worker IN (?, ?)", asking.id, worked.id) == [(0,)]
    check_budgets(queue.connection)


def test_a_worker_that_has_closed_nothing_of_a_public_project_is_forgotten_after_a_long_silence() -> None:
    queue = Open(max_workers=4)
    queue.connection.execute("UPDATE project SET public = 1")
    gave_back, closed = queue.stranger(), queue.stranger()
    for worker, result in (gave_back, SKIP), (closed, OK):
        queue.submit()
        queue.release(queue.assign(worker), result, worker=worker)
    queue.clock.now += budgets.LONG_SILENCE - 1
    forget(queue, tracker.forget_workers)
    assert queue.values("SELECT COUNT(*) FROM worker") == [(3,)]
    queue.clock.now += 2
    forget(queue, tracker.forget_workers)
    assert queue.values("SELECT id FROM worker ORDER BY id") == [(queue.worker.id,), (closed.id,)]
    check_budgets(queue.connection)


def register_by_itself(queue: Jobs, name: str) -> int:
    manager, _ = queue.do(tracker.register_manager, name, "hash", False, "203.0.113.9")
    queue.connection.execute("DELETE FROM session WHERE manager = ?", (manager.id,))
    return manager.id


def test_managers_who_have_a_part_in_nothing_are_forgotten_while_there_are_very_many() -> None:
    queue = Jobs(max_managers=10)
    empty, reader, maker, lately, blocked, logged_in = [register_by_itself(queue, f"m{n}") for n in range(6)]
    change = queue.connection.execute
    change("INSERT INTO manager_role VALUES (?, ?, 1)", (queue.project, reader))
    own = queue.create_project("own")
    change("UPDATE project SET creator = ? WHERE id = ?", (maker, own))
    distrust(queue, own)
    change("UPDATE manager_role SET manager = ? WHERE project = ?", (maker, own))
    change("INSERT INTO manager_role VALUES (?, ?, 31)", (own, empty))  # a stranger has let in a stranger
    change("UPDATE manager SET blocked = 1 WHERE id = ?", (blocked,))
    queue.clock.now += budgets.LONG_SILENCE + 1
    queue.do(tracker.open_session, logged_in)
    change("UPDATE login_address SET last_used = ? WHERE manager = ?", (queue.clock.time(), lately))
    forget(queue, tracker.forget_managers)
    kept = queue.values("SELECT id FROM manager WHERE NOT tracker_admin ORDER BY id")
    assert kept == [(one,) for one in (reader, maker, lately, blocked, logged_in)]
    assert queue.values("SELECT manager FROM manager_role WHERE project = ?", own) == [(maker,)]
    check_budgets(queue.connection)


def test_no_manager_is_forgotten_while_there_are_few_or_soon_after_the_last_login() -> None:
    few, many = Jobs(max_managers=100), Jobs(max_managers=2)
    for queue, days in (few, 31), (many, 29):
        manager = register_by_itself(queue, "name")
        queue.clock.now += days * 86400
        forget(queue, tracker.forget_managers)
        assert queue.values("SELECT 1 FROM manager WHERE id = ?", manager) == [(1,)]


def test_a_manager_has_a_hundred_sessions_at_most() -> None:
    queue = Jobs()
    (manager,) = queue.values("SELECT id FROM manager")[0]
    sessions = [queue.do(tracker.open_session, manager) for _ in range(tracker.MOST_SESSIONS + 20)]
    assert len(queue.values("SELECT 1 FROM session")) == tracker.MOST_SESSIONS
    assert queue.do(tracker.get_account, sessions[-1])["logged_in"]


# ── Newcomers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def flood(site: Site, project: int) -> list[int]:
    """Forty workers from each of three addresses register, and ask for access. How that was answered."""
    statuses = []
    for number in range(120):
        with client(site.url, headers={"X-Forwarded-For": f"198.51.100.{number % 3}"}) as http:
            answer = http.post("/worker/create", json={"alias": "x"})
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                worker = answer.json()["content"]["worker"]
                http.headers.update({"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]})
                http.post("/project/request_access", json={"project": project, "assign": True})
    return statuses


def test_who_has_many_addresses_keeps_no_worker_from_registering_and_hides_no_request(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_workers=50)
    project = site.admin.create_project()
    flood(site, project)
    newcomer = create(site, "203.0.113.9")
    assert newcomer.status_code == 200
    worker = newcomer.json()["content"]["worker"]
    headers = {"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"], "X-Forwarded-For": "203.0.113.9"}
    with client(site.url, headers=headers) as http:
        asked = {"project": project, "assign": True}
        assert http.post("/project/request_access", json=asked).status_code == 200
        assert set(flood(site, project)) == {200}  # in the place of its own
        assert http.post("/project/request_access", json=asked).status_code == 409  # as it waits for a manager
    assert site.read("SELECT used FROM budget WHERE name = 'workers'") == [(50,)]


def test_who_has_many_addresses_keeps_no_manager_from_registering(make_site: Callable[..., Site]) -> None:
    site = make_site(max_managers=6)  # the first is the admin

    def register(name: str, address: str) -> int:
        return create(site, address, "/register", {"username": name, "password": "correct horse"}).status_code

    assert {register(f"flood{number}", f"198.51.100.{number % 2}") for number in range(8)} == {200}
    assert register("newcomer", "203.0.113.9") == 200
    assert {register(f"more{number}", f"198.51.100.{number % 2}") for number in range(8)} == {200}
    names = {name for (name,) in site.read("SELECT username FROM manager")}
    assert {"admin", "newcomer", "more7"} < names and len(names) == 6


class Newcomers(Open):
    """A tracker that has room for ten workers, who come from anywhere."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"max_workers": 10, "max_managers": 4, **settings})

    def come(self, address: str = "198.51.100.7", session: bytes | None = None) -> tracker.WorkerCredentials:
        source = limits.source_of((address, 1), [])
        caller = callers.Newcomer(session, source)
        worker = self.do(tracker.create_worker, caller, shapes.AliasBody("x"))["worker"]
        return tracker.WorkerCredentials(worker["id"], worker["secret"].encode())

    def is_there(self, worker: tracker.WorkerCredentials) -> bool:
        return self.values("SELECT COUNT(*) FROM worker WHERE id = ?", worker.id) == [(1,)]

    def press(self, address: str = "198.51.100.7") -> None:
        """Far more come from there than there is room for."""
        for _ in range(30):
            self.come(address)


def test_a_worker_of_use_to_a_project_that_an_admin_trusts_makes_no_room() -> None:
    house = Newcomers()
    house.do(tracker.update_project, house.session, house.project, shapes.ProjectBody(public=True))
    granted, holds, closed, nobody = [house.come() for _ in range(4)]
    house.give_access(granted.id, house.project)
    for _ in range(2):
        house.submit()
    house.assign(holds)
    house.release(house.assign(closed), worker=closed)
    house.press()
    assert [house.is_there(worker) for worker in (granted, holds, closed, nobody)] == [True, True, True, False]
    check_budgets(house.connection)


def test_nothing_that_a_newcomer_does_for_itself_keeps_its_place() -> None:
    house = Newcomers()
    own = house.create_project("own")
    distrust(house, own)
    asks, writes, granted, holds = [house.come() for _ in range(4)]
    house.do(tracker.request_access, asks, shapes.AccessBody(house.project, assign=True))
    house.do(tracker.add_log_entry, writes, "info", shapes.LogBody("s", 1, "here"))
    for worker in granted, holds:
        house.give_access(worker.id, own)
    task = house.submit(project=own)
    assert house.assign(holds, own) == task
    house.press()
    assert not any(map(house.is_there, (asks, writes, granted, holds)))
    assert house.values("SELECT assignee FROM task WHERE id = ?", task) == [(None,)]
    assert house.assign(project=own) == task
    check_budgets(house.connection)
    check_counts(house.connection)


def test_a_newcomer_that_holds_very_many_tasks_makes_room_and_they_wait_for_the_ends_of_their_leases() -> None:
    house = Newcomers()
    own = house.create_project("own")
    distrust(house, own)
    holders = [house.come() for _ in range(2)]
    for holder in holders:
        house.give_access(holder.id, own)
        for _ in range(budgets.MOST_HELD + 1):
            house.submit(project=own)
            house.assign(holder, own)
    house.press()
    assert not any(map(house.is_there, holders))
    count = len(holders) * (budgets.MOST_HELD + 1)
    assert house.values("SELECT assigned_task_count FROM project WHERE id = ?", own) == [(count,)]
    shown = house.do(pages.task_list, house.session, own, pages.TaskQuery(state="assigned"))
    assert {task["alias"] for task in shown["tasks"]} == {None}
    house.clock.now += house.settings.default_max_assign_time + 1
    while house.do(tracker.expire_tasks):
        pass
    assert house.values("SELECT assigned_task_count FROM project WHERE id = ?", own) == [(0,)]
    assert house.values("SELECT worker FROM tally WHERE project = ?", own) == []
    check_budgets(house.connection)
    check_counts(house.connection)


def test_a_task_that_is_held_for_a_moment_keeps_no_newcomer_its_place() -> None:
    house = Newcomers()
    house.do(tracker.update_project, house.session, house.project, shapes.ProjectBody(public=True))
    house.submit()
    for _ in range(5):
        house.come()
    held = house.come()
    task = house.assign(held)
    forget(house, tracker.forget_workers)
    house.release(task, SKIP, worker=held)
    house.press()
    assert not house.is_there(held)


def test_where_the_oldest_newcomers_hold_tasks_of_others_another_one_makes_room() -> None:
    most = budgets.LOOKED_AT
    house = Newcomers(max_workers=4 * most)
    house.do(tracker.update_project, house.session, house.project, shapes.ProjectBody(public=True))
    for _ in range(most):
        house.submit()
        house.assign(house.come())
    while house.values("SELECT used FROM budget WHERE name = 'workers'") < [(4 * most,)]:
        house.come()
    let_in = 0
    for _ in range(50):  # where it looks is chance
        with contextlib.suppress(tracker.TrackerError):
            let_in += house.is_there(house.come())
    assert let_in > 10
    assert house.values("SELECT used FROM budget WHERE name = 'workers'") == [(4 * most,)]
    assert house.values("SELECT SUM(held_task_count) FROM tally") == [(most,)]


def test_the_pause_of_a_newcomer_that_makes_room_is_over() -> None:
    house = Newcomers(pause_after_failures=1)
    house.do(tracker.update_project, house.session, house.project, shapes.ProjectBody(public=True))
    house.submit(max_retries=5)
    broken = house.come()
    house.release(house.assign(broken), FAIL, worker=broken)
    assert house.values("SELECT paused_worker_count FROM project") == [(1,)]
    house.press()
    assert not house.is_there(broken) and house.values("SELECT paused_worker_count FROM project") == [(0,)]


def test_the_network_with_most_newcomers_makes_room_and_others_keep_theirs() -> None:
    house = Newcomers()
    few = [house.come("203.0.113.1"), house.come("203.0.113.1"), house.come("2001:db8:1::1")]
    house.press()
    house.press("2001:db8:2:1::1")
    house.press("2001:db8:2:2::1")  # the same one's
    assert all(map(house.is_there, few))
    assert house.is_there(house.come("127.0.0.1"))
    check_budgets(house.connection)


def test_newcomers_are_refused_where_each_network_has_one() -> None:
    house = Newcomers()
    crowd = [house.come(f"198.51.100.{number}") for number in range(9)]
    with pytest.raises(tracker.TrackerError, match="max_workers"):
        house.come("203.0.113.1")
    assert all(map(house.is_there, crowd))


def test_a_worker_that_an_admin_creates_from_afar_is_no_newcomer() -> None:
    house = Newcomers()
    created = [house.come(session=house.session) for _ in range(2)]
    house.press()
    assert all(map(house.is_there, created))


def test_a_manager_of_use_makes_no_room() -> None:
    house = Newcomers(max_managers=6)

    def register(name: str) -> int:
        return house.do(tracker.register_manager, name, "hash", False, "", "198.51.100.7")[0].id

    reader, maker, admin, demoted = (register(name) for name in ("reader", "maker", "an admin", "demoted"))
    house.do(tracker.set_role, house.session, house.project, shapes.RoleBody(manager=reader, role=1))
    house.connection.execute("UPDATE project SET creator = ?", (maker,))
    house.connection.execute("INSERT INTO manager_role VALUES (?, ?, 31)", (house.project, maker))
    distrust(house)
    house.connection.execute("UPDATE project SET trusted = 1, size = 0 WHERE id <> 1")
    for manager in admin, demoted:
        house.do(tracker.promote_manager, house.session, manager)
    house.do(tracker.demote_manager, house.session, demoted)
    last = [register(f"flood{number}") for number in range(9)][-1]
    kept = [manager for (manager,) in house.values("SELECT id FROM manager ORDER BY id")]
    assert kept == [1, maker, admin, demoted, last - 1, last]  # the reader's project is nobody's that an admin trusts
    check_budgets(house.connection)


def test_who_has_become_of_use_is_no_newcomer_any_more() -> None:
    house = Newcomers()
    known, *others = [house.come() for _ in range(6)]
    house.give_access(known.id, house.project)
    forget(house, tracker.forget_workers)
    count = len(others)
    assert house.values("SELECT * FROM newcomer") == [("workers", "198.51.100.7", count)]
    check_budgets(house.connection)


# ── Requests for access ───────────────────────────────────────────────────────────────────────────────────────────────


def test_so_many_workers_may_wait_for_access_to_a_project(make_site: Callable[..., Site]) -> None:
    site = make_site(max_access_requests=2)
    project, other = site.admin.create_project(), site.admin.create_project()
    workers = [site.create_worker() for _ in range(3)]
    answers = [worker.request_access(project) for worker in workers]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert "max_access_requests" in answers[-1].json()["message"]
    assert workers[2].request_access(other).status_code == 200  # one may ask for each project that it can see
    assert workers[0].request_access(project).status_code == 409  # as ever
    site.admin.post(f"/project/accept_request/{project}/{workers[0].id}")
    assert workers[2].request_access(project).status_code == 200


class Asking(Open):
    """A project of which workers ask for access, from anywhere."""

    def ask(self, address: str, project: int = 0, worker: tracker.WorkerCredentials | None = None) -> int:
        worker = worker or self.stranger()
        source = limits.source_of((address, 1), [])
        body = shapes.AccessBody(project or self.project, assign=True)
        self.do(tracker.request_access, worker._replace(source=source), body)
        self.clock.now += 1
        return worker.id

    @property
    def waiting(self) -> list[int]:
        rows = self.values(
            "SELECT worker FROM worker_access WHERE project = ? AND request ORDER BY worker", self.project
        )
        return [worker for (worker,) in rows]


def test_whoever_fills_the_requests_makes_room_for_others() -> None:
    queue = Asking(max_access_requests=5)
    honest = queue.ask("203.0.113.1")
    flood = [queue.ask("198.51.100.7") for _ in range(9)]
    assert queue.waiting == [honest, *flood[-4:]]
    late = [queue.ask("203.0.113.2"), queue.ask("203.0.113.3")]
    assert queue.waiting == [honest, *flood[-2:], *late]
    check_budgets(queue.connection)


def test_a_site_of_ipv6_is_one_network_to_those_that_fill_the_requests() -> None:
    queue = Asking(max_access_requests=3)
    flood = [queue.ask(f"2001:db8:1:{number}::1") for number in range(6)]
    honest = [queue.ask("2001:db8:2:1::1"), queue.ask("203.0.113.2")]
    assert queue.waiting == [flood[-1], *honest]


def test_a_request_is_refused_where_each_network_has_one_and_nobodys_makes_room() -> None:
    queue = Asking(max_access_requests=3)
    first = [queue.ask(f"203.0.113.{number}") for number in range(3)]
    with pytest.raises(tracker.TrackerError, match="max_access_requests"):
        queue.ask("198.51.100.7")
    assert queue.waiting == first


def test_requests_of_programs_on_this_machine_make_no_room() -> None:
    queue = Asking(max_access_requests=3)
    local = [queue.ask("127.0.0.1") for _ in range(3)]
    with pytest.raises(tracker.TrackerError, match="max_access_requests"):
        queue.ask("198.51.100.7")
    assert queue.waiting == local


def test_a_worker_waits_for_so_many_projects_at_most() -> None:
    queue = Asking()
    projects = [queue.create_project(f"project {number}") for number in range(budgets.MOST_REQUESTS)]
    worker = queue.stranger()
    for project in projects:
        queue.ask("203.0.113.1", project, worker)
    with pytest.raises(tracker.TrackerError, match="20 projects") as refused:
        queue.ask("203.0.113.1", queue.project, worker)
    assert refused.value.code == "unavailable"
    queue.do(tracker.accept_request, queue.session, projects[0], worker.id)
    queue.ask("203.0.113.1", queue.project, worker)


def test_a_request_is_forgotten_that_nobody_answers_when_its_worker_has_gone() -> None:
    queue = Asking()
    other = queue.create_project("other")
    gone, there, asked_again = [queue.ask("203.0.113.1") for _ in range(3)]
    queue.ask("203.0.113.1", other, tracker.WorkerCredentials(gone, None))
    queue.clock.now += budgets.LONG_SILENCE + 5
    queue.connection.execute("UPDATE worker SET last_seen = ? WHERE id = ?", (queue.clock.time(), there))
    queue.connection.execute(
        "UPDATE worker_access SET requested = ? WHERE worker = ?", (queue.clock.time(), asked_again)
    )
    assert forget(queue, budgets.forget_requests) == 3
    assert queue.waiting == [there, asked_again]
    assert queue.values("SELECT 1 FROM worker_access WHERE project = ? AND request", other) == []


def test_all_requests_are_rejected_at_once_and_no_access_is_withdrawn(site: Site) -> None:
    project = site.admin.create_project()
    working, asking = site.create_worker(project), [site.create_worker() for _ in range(3)]
    for worker in asking:
        worker.request_access(project)
    answer = site.admin.post(f"/project/reject_requests/{project}")
    assert answer.json()["content"] == {"rejected": 3}
    rows = site.admin.get(f"/project/access_list/{project}").json()["content"]
    assert [one["worker"]["id"] for one in next(iter(rows.values()))] == [working.id]


def test_the_page_shows_first_who_has_worked_here_and_finds_the_others(site: Site) -> None:
    project, other = site.admin.create_project(), site.admin.create_project()
    for number in range(60):
        Worker(site.url, f"flood {number}").request_access(project)
    known = site.create_worker(other, alias="known")
    known.submit(other)
    known.released(known.assigned(other)["id"])
    known.request_access(project)
    wanted = Worker(site.url, "wanted")
    wanted.request_access(project)
    page = site.admin.http.get(f"/ui/projects/{project}/access").text
    assert f'id="request-{known.id}"' in page and f'id="request-{wanted.id}"' not in page
    assert "all that match (62)" in page
    for text in "wanted", str(wanted.id):
        found = site.admin.http.get(f"/ui/projects/{project}/access", params={"text": text}).text
        assert f'id="request-{wanted.id}"' in found and 'id="request-1"' not in found


def test_the_page_tells_what_a_worker_that_asks_has_closed_and_where_it_is(site: Site) -> None:
    project, other = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(other)
    worker.submit(other)
    worker.released(worker.assigned(other)["id"])
    worker.http.headers["X-Forwarded-For"] = "203.0.113.77"
    worker.request_access(project)
    page = site.admin.http.get(f"/ui/projects/{project}/access").text
    row = page[page.index(f'id="request-{worker.id}"') :]
    assert '<td class="minor">1</td><td class="minor">203.0.113.77</td>' in row[: row.index("</tr>")]
    found = site.admin.http.get(f"/ui/projects/{project}/access", params={"text": "203.0.113.77"}).text
    assert f'id="request-{worker.id}"' in found


# ── Projects that no admin trusts ─────────────────────────────────────────────────────────────────────────────────────


class House:
    """A tracker with a small budget, a manager whom nobody trusts, its project, and its worker, who has done a task."""

    def __init__(self, site: Site):
        self.site = site
        self.owner = site.create_manager("stranger")
        self.project = self.owner.create_project("own")
        self.worker = self.owner.grant(Worker(site.url), self.project)
        self.worker.submit(self.project)
        self.empty()

    @property
    def size(self) -> int:
        return self.site.read("SELECT size FROM project WHERE id = ?", self.project)[0][0]

    @property
    def total(self) -> int:
        return self.site.read("SELECT used FROM budget WHERE name = 'projects'")[0][0]

    def fill(self) -> None:
        """Submits until the budget is full."""
        for _ in range(40):
            if self.worker.submit(self.project, "x" * 100_000).status_code != 200:
                return
        raise AssertionError("it is never full")

    def empty(self) -> None:
        while task := self.worker.assigned(self.project):
            self.worker.released(task["id"])


@pytest.fixture
def house(make_site: Callable[..., Site]) -> House:
    return House(make_site(max_untrusted_projects=8))  # of which one address has six


def check_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["ok"] is False and answer.json()["code"] == "unavailable"
    assert "max_untrusted_projects" in answer.json()["message"]


def test_what_a_manager_whom_nobody_trusts_submits_has_a_budget_and_what_is_done_is_free_again(house: House) -> None:
    before = house.size
    house.fill()
    assert 5 * MIB < house.total <= 6 * MIB
    check_refused(house.worker.submit(house.project, "x" * 200_000))
    house.empty()
    assert house.size == before
    assert house.worker.submit(house.project, "x" * 200_000).status_code == 200


def test_assignment_and_release_go_on_when_the_budget_is_full(house: House) -> None:
    house.fill()
    task = house.worker.assigned(house.project)
    assert house.worker.released(task["id"], FAIL) and house.worker.released(house.worker.assigned(house.project)["id"])


def bulk(house: House) -> httpx.Response:
    return house.worker.bulk_submit([{"project": house.project, "recipe": "x" * 1000}] * 400)


def large_bulk(house: House) -> httpx.Response:
    return house.worker.bulk_submit([{"project": house.project, "recipe": "x" * 100}] * 9000)


def lines(house: House) -> httpx.Response:
    return house.worker.http.post(f"/task/submit_lines/{house.project}", content=b"https://example.org/\n" * 9000)


def as_manager(house: House) -> httpx.Response:
    return house.owner.post("/template/create", {"project": house.project, "name": "t", "script": "#" * 300_000})


def trigger(house: House) -> httpx.Response:
    return house.owner.post("/template/trigger/1", {"variables": {"a": "x" * 120_000}})


def create_another(house: House) -> httpx.Response:
    return house.owner.post("/project/create", {"name": "another"})


@pytest.mark.parametrize("way", [bulk, large_bulk, lines, as_manager, trigger, create_another])
def test_no_other_way_into_the_project_is_larger(house: House, way: Callable[[House], httpx.Response]) -> None:
    template = {"project": house.project, "name": "small", "undeclared": True}
    assert house.owner.post("/template/create", template).status_code == 200
    house.fill()
    before = house.size
    check_refused(way(house))
    assert house.size == before


LONG = "x" * (256 * 1024 + 1)


def submit_in_bulk(house: House, count: int) -> httpx.Response:
    recipes = [*["x"] * (count - 1), LONG]
    return house.worker.bulk_submit([{"project": house.project, "recipe": recipe} for recipe in recipes])


def submit_lines(house: House) -> httpx.Response:
    return house.worker.http.post(f"/task/submit_lines/{house.project}", content=b"x\n" + LONG.encode())


LONG_WAYS: dict[str, Callable[[House], httpx.Response]] = {
    "submit": lambda house: house.worker.submit(house.project, LONG),
    "bulk": lambda house: submit_in_bulk(house, 2),
    "large bulk": lambda house: submit_in_bulk(house, 600),
    "lines": submit_lines,
    "trigger": lambda house: house.owner.post("/template/trigger/1", {"variables": {"a": LONG}}),
}


@pytest.mark.parametrize("way", LONG_WAYS)
def test_a_task_of_a_project_that_nobody_trusts_has_a_length(make_site: Callable[..., Site], way: str) -> None:
    """It is written anew whenever it moves, and every worker waits for that."""
    house = House(make_site())
    template = {"project": house.project, "name": "small", "undeclared": True}
    assert house.owner.post("/template/create", template).status_code == 200
    before = house.size
    answer = LONG_WAYS[way](house)
    assert answer.status_code == 413 and "(setting max_untrusted_text)" in answer.json()["message"], answer.text
    assert answer.json()["field"] == ("job" if way == "trigger" else "recipe") and house.size == before
    house.site.admin.post(f"/project/trust/{house.project}")
    assert LONG_WAYS[way](house).status_code == 200


def test_a_workflow_whose_first_step_is_too_long_is_not_begun(make_site: Callable[..., Site]) -> None:
    house = House(make_site())
    made = {"project": house.project, "name": "long", "variables": [{"name": "a", "value": LONG}]}
    template = house.owner.post("/template/create", made).json()["content"]["template"]["id"]
    body = {"project": house.project, "name": "w", "start": template, "edges": []}
    workflow = house.owner.post("/workflow/create", body).json()["content"]["workflow"]["id"]
    answer = house.owner.post(f"/workflow/trigger/{workflow}", {})
    assert answer.status_code == 413 and "(setting max_untrusted_text)" in answer.json()["message"], answer.text
    assert house.site.read("SELECT * FROM job") == []


def test_a_bulk_submit_of_a_stranger_is_no_larger_than_other_bodies(make_site: Callable[..., Site]) -> None:
    house = House(make_site(max_body=64))
    assert house.worker.bulk_submit([{"project": house.project, "recipe": "x" * 1000}] * 100).status_code == 413
    house.site.admin.post(f"/project/trust/{house.project}")
    assert house.worker.bulk_submit([{"project": house.project, "recipe": "x" * 1000}] * 100).status_code == 200


def test_many_bulk_submits_at_once_are_no_larger_together(house: House) -> None:
    house.fill()
    house.empty()
    tasks = [{"project": house.project, "recipe": "x" * 50}] * 3000
    statuses = {house.worker.bulk_submit(tasks).status_code for _ in range(5)}
    assert statuses == {200, 503}
    assert house.total <= 6 * MIB


def test_results_and_lines_of_jobs_are_dropped_when_the_budget_is_full(house: House) -> None:
    house.owner.post("/template/create", {"project": house.project, "name": "t", "priority": 9})
    job = house.owner.post("/template/trigger/1", {}).json()["content"]["job"]["id"]
    house.fill()
    task = house.worker.assigned(house.project)
    entries = [{"message": "y" * 60_000, "timestamp": 1}] * 10
    logged = house.worker.http.post("/task/log", json={"task_id": task["id"], "entries": entries})
    assert logged.json()["content"] == {"held": True, "stored": 0, "dropped_by": "max_untrusted_projects"}
    before = house.total
    assert house.worker.released(task["id"], OK, output={"data": "z" * 500_000})
    assert house.owner.get(f"/job/get/{job}").json()["content"]["job"]["state"] == "succeeded"
    assert house.total < before + 10_000


def test_what_hashes_and_verifications_take_counts_too(house: House) -> None:
    before = house.size
    house.worker.submit(house.project, "x", verification_count=1001)
    assert house.size - before == budgets.TASK_SIZE + 1 + 1000 * budgets.VERIFICATION_SIZE
    house.owner.update_project(house.project, keep_hashes=True)
    before = house.size
    house.worker.submit(house.project, "x", priority=1, unique_string="u")
    house.worker.released(house.worker.assigned(house.project)["id"])
    assert house.size - before == budgets.HASH_SIZE


def test_what_is_kept_of_workers_counts_when_their_access_is_withdrawn(house: House) -> None:
    before = house.size
    for _ in range(3):
        worker = house.owner.grant(Worker(house.site.url), house.project)
        house.worker.submit(house.project)
        worker.released(worker.assigned(house.project)["id"])
        house.owner.post(f"/project/reject_request/{house.project}/{worker.id}")
    assert house.size == before + 3 * budgets.ACCESS_SIZE


@contextlib.contextmanager
def behind(site: Site, name: str, address: str) -> Iterator[httpx.Client]:
    """A manager who has registered from there."""
    with client(site.url, headers={"X-Forwarded-For": address}) as http:
        assert http.post("/register", json={"username": name, "password": "password"}).status_code == 200
        yield http


def create_until_refused(http: httpx.Client, name: str) -> int:
    """How many projects there could be."""
    for number in range(10):
        if http.post("/project/create", json={"name": f"{name} {number}"}).status_code != 200:
            return number
    raise AssertionError("it is never full")


def test_one_address_leaves_others_room_under_whatever_names_it_makes_projects(make_site: Callable[..., Site]) -> None:
    site = make_site(max_untrusted_projects=32)
    with behind(site, "one", "203.0.113.1") as one, behind(site, "two", "203.0.113.1") as two:
        assert (create_until_refused(one, "one"), create_until_refused(two, "two")) == (6, 0)
        check_refused(two.post("/project/create", json={"name": "last"}))
    with behind(site, "other", "203.0.113.2") as other:
        assert create_until_refused(other, "other") == 2


def test_one_site_of_ipv6_leaves_others_room_from_however_many_of_its_networks_it_comes(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_untrusted_projects=32)
    with behind(site, "one", "2001:db8:1:1::1") as one, behind(site, "two", "2001:db8:1:2::1") as two:
        assert (create_until_refused(one, "one"), create_until_refused(two, "two")) == (6, 0)
    with behind(site, "other", "2001:db8:2:1::1") as other:
        assert create_until_refused(other, "other") == 2


def test_one_address_leaves_others_room_with_whatever_it_fills_its_project(make_site: Callable[..., Site]) -> None:
    house = House(make_site(max_untrusted_projects=24, max_untrusted_text=4096))
    sizes = [2_000_000] * 6 + [1_000_000] * 10
    answers = [house.worker.submit(house.project, "x" * size).status_code for size in sizes]
    assert set(answers) == {200, 503} and 17 * MIB < house.total <= 18 * MIB
    with behind(house.site, "other", "203.0.113.2") as other:
        assert create_until_refused(other, "other") == 1


def test_a_stranger_makes_nobodys_list_of_projects_long(house: House) -> None:
    motd = "\1" * 100_000  # six bytes for each, as JSON
    known = house.site.admin.create_project(motd=motd)
    assert house.owner.post(f"/project/update/{house.project}", {"motd": motd}).status_code == 200
    listed = house.site.guest.get("/project/list").json()["content"]["projects"]
    motds = {one["id"]: one["motd"] for one in listed}
    assert motds == {known: motd, house.project: motd[: tracker.MOST_LISTED_MOTD - 1] + "…"}
    own = house.owner.http.get("/project/list").json()["content"]["projects"]
    assert {one["motd"] for one in own} == {motd}  # who changes it may send all of it back


def test_nor_does_a_stranger_who_gives_one_a_role_in_its_projects(house: House) -> None:
    assert house.owner.post(f"/project/update/{house.project}", {"motd": "x" * 100_000}).status_code == 200
    assert house.owner.set_role(house.project, house.site.admin, tracker.READ | tracker.EDIT).status_code == 200
    [listed] = house.site.admin.get("/project/list").json()["content"]["projects"]
    assert len(listed["motd"]) == tracker.MOST_LISTED_MOTD


def test_an_admins_projects_have_no_such_budget(house: House) -> None:
    house.fill()
    project = house.site.admin.create_project()
    worker = house.site.create_worker(project)
    assert {worker.submit(project, "x" * 100_000).status_code for _ in range(30)} == {200}
    assert house.site.read("SELECT trusted, size FROM project WHERE id = ?", project) == [(1, 0)]


def test_an_admin_may_trust_a_project(house: House) -> None:
    house.fill()
    assert house.owner.post(f"/project/trust/{house.project}").status_code == 403
    assert house.site.admin.post(f"/project/trust/{house.project}").status_code == 200
    assert house.total == 0
    assert house.worker.submit(house.project, "x" * 2_000_000).status_code == 200
    house.empty()
    assert (house.size, house.total) == (0, 0)


def test_a_project_that_an_admin_makes_public_is_trusted(house: House) -> None:
    house.site.admin.update_project(house.project, public=True)
    assert house.total == 0


def test_who_has_got_a_role_in_a_trusted_project_makes_trusted_ones(house: House) -> None:
    house.site.admin.set_role(house.site.admin.create_project(), house.owner, tracker.READ)
    project = house.owner.create_project("mine")
    assert house.site.read("SELECT trusted FROM project WHERE id = ?", project) == [(1,)]


def test_who_has_got_a_role_from_another_stranger_does_not(house: House) -> None:
    friend = house.site.create_manager("friend")
    house.owner.set_role(house.project, friend, tracker.ALL_ROLES)
    check_refused(friend.post("/project/create", {"name": "theirs"}))


def test_the_page_of_the_project_says_so_and_lets_an_admin_trust_it(house: House) -> None:
    path = f"/ui/projects/{house.project}"
    assert "max_untrusted_projects" in house.owner.http.get(path).text
    assert "Trust this project" not in house.owner.http.get(path).text
    assert "Trust this project" in house.site.admin.http.get(path).text


def test_a_script_that_is_replaced_counts_until_it_is_gone(house: House) -> None:
    house.owner.post("/template/create", {"project": house.project, "name": "t"})
    statuses = [
        house.owner.post("/template/update/1", {"script": f"{number} {'#' * 400_000}"}).status_code
        for number in range(8)
    ]
    assert statuses[0] == 200 and statuses[-1] == 503
    assert house.total <= 6 * MIB


def test_operations_are_forgotten_when_the_budget_is_full_and_begin_all_the_same(house: House) -> None:
    resets = [house.owner.post(f"/project/reset_failed_tasks/{house.project}").status_code for _ in range(5)]
    house.fill()
    for size in (10_000, 1000, 100, 1):
        while house.worker.submit(house.project, "x" * size).status_code == 200:
            pass
    before = house.site.read("SELECT COUNT(*) FROM operation")
    resets += [house.owner.post(f"/project/reset_failed_tasks/{house.project}").status_code for _ in range(5)]
    assert set(resets) == {200}
    assert house.site.read("SELECT COUNT(*) FROM operation") == before
    assert house.owner.post(f"/project/hard_reset/{house.project}").status_code == 200
    assert house.worker.submit(house.project).status_code == 200


def test_tasks_that_are_released_at_once_are_weighed() -> None:
    queue = Jobs()
    distrust(queue)
    for number in range(8):
        queue.submit(f"recipe {number}")
    tasks = [queue.assign() for _ in range(8)]
    committer = Committer(SimpleNamespace(connection=queue.connection), queue.clock, queue.settings, lambda: 1e9)
    committer.BATCH_TIME = 60  # however busy the machine is
    releases = [(queue.worker, shapes.ReleaseBody(task, OK)) for task in tasks]
    committer.run_batch([Write(None, tracker.release_task, release) for release in releases])
    queue.connection.execute("COMMIT")
    assert queue.counts()["closed"] == 8
    check_budgets(queue.connection)


def test_a_chain_into_a_project_that_nobody_trusts_is_weighed() -> None:
    queue = Jobs()
    second = queue.create_project("second")
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(chain=second))
    distrust(queue)
    queue.submit("recipe")
    assert queue.release(queue.assign())
    check_budgets(queue.connection)


# ── The disk ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Disk:
    """What the tracker finds when it looks at its disk."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch):
        self.site, self.total, self.free = site, 100 * 1024 * MIB, 1024 * MIB
        monkeypatch.setattr("shutil.disk_usage", lambda _: self)

    def has(self, free: int) -> None:
        """Waits until the tracker has seen that so many bytes are free."""
        self.free = free
        wait_until(lambda: self.shown() == pages.bytes_in_words(free))

    def shown(self) -> str:
        page = self.site.admin.http.get("/ui/admin").text
        return page.partition("Free disk</th><td>")[2].partition("<")[0]


@pytest.fixture
def disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(site, monkeypatch)


def test_below_the_floor_of_free_disk_nothing_is_taken_in_and_work_goes_on(disk: Disk) -> None:
    site = disk.site
    project = site.admin.create_project()
    worker = site.create_worker(project)
    for _ in range(3):
        worker.submit(project)
    site.admin.post("/template/create", {"project": project, "name": "t"})
    disk.has(100 * MIB)
    refused = [
        worker.submit(project),
        worker.bulk_submit([{"project": project, "recipe": "x"}]),
        worker.http.post(f"/task/submit_lines/{project}", content=b"x\n"),
        site.admin.post("/template/trigger/1", {}),
        site.admin.post("/template/create", {"project": project, "name": "u"}),
    ]
    for answer in refused:
        assert answer.status_code == 503 and "min_free_disk" in answer.json()["message"], answer.text
    done, again = worker.assigned(project), worker.assigned(project)
    assert worker.released(done["id"]) and worker.released(again["id"], FAIL)
    disk.has(1000 * MIB)
    assert worker.submit(project).status_code == 200


def test_below_the_floor_log_lines_are_answered_as_ever_dropped_and_counted(disk: Disk, tmp_path: Path) -> None:
    site = disk.site
    worker = site.create_worker()
    disk.has(100 * MIB)
    assert worker.log("error", "dropped").status_code == 204
    assert not logged(site, "dropped") and "dropped" not in (tmp_path / "tracker.log").read_text("utf-8")
    page = site.admin.http.get("/ui/admin").text
    assert "<code>min_free_disk</code>" in page[page.index('id="budgets"') : page.index("Settings in force")]


def test_a_job_tells_of_its_lines_that_were_dropped_while_the_disk_was_nearly_full(disk: Disk) -> None:
    worker = stranger_at(disk.site)
    disk.has(100 * MIB)
    assert log_lines(worker, "a", "b") == {"held": True, "stored": 0, "dropped_by": "min_free_disk"}
    disk.has(1000 * MIB)
    assert log_lines(worker, "c") == {"held": True, "stored": 1}
    assert told(worker) == ["lines dropped here: 2 (setting min_free_disk)"]


def test_on_a_small_disk_the_floor_is_a_part_of_it(disk: Disk) -> None:
    site = disk.site
    project = site.admin.create_project()
    worker = site.create_worker(project)
    disk.total = 64 * MIB
    disk.has(disk.total // LARGEST_FLOOR + MIB)
    assert worker.submit(project).status_code == 200


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_below_the_floor_testflingers_jobs_and_files_are_refused_and_its_results_are_taken(disk: Disk) -> None:
    site = disk.site
    with client(site.url) as http:
        job = http.post("/v1/job", json={"job_queue": "machines"}).json()["job_id"]
        assert http.get("/v1/job", params={"queue": "machines"}).json()["job_id"] == job
        disk.has(100 * MIB)
        for answer in (
            http.post("/v1/job", json={"job_queue": "machines"}),
            http.post(f"/v1/result/{job}/artifact", files={"file": b"x"}),
        ):
            assert answer.status_code == 503 and "min_free_disk" in answer.text
        assert http.post(f"/v1/result/{job}", json={"job_state": "complete"}).status_code == 200


# ── What is said of it ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_of_the_settings_shows_how_full_each_budget_is(house: House) -> None:
    house.fill()
    page = house.site.admin.http.get("/ui/admin").text
    table = page[page.index('id="budgets"') : page.index("Settings in force")]
    for setting in ("max_logs", "max_stranger_logs", "max_untrusted_projects", "max_workers", "max_managers"):
        assert f"<code>{setting}</code>" in table
    assert house.owner.http.get("/ui/admin").status_code == 403


def test_the_page_of_the_settings_shows_which_untrusted_projects_are_the_largest(house: House) -> None:
    small = house.site.admin.create_project("trusted")
    house.fill()
    page = house.site.admin.http.get("/ui/admin").text
    table = page[page.index('id="untrusted"') :]
    table = table[: table.index("</table>")]
    assert f'/ui/projects/{house.project}"' in table and "stranger" in table
    assert f'/ui/projects/{small}"' not in table


def shown(site: Site, name: str) -> list[str]:
    """What the page of the settings says of a budget: used, of, full, reached."""
    page = site.admin.http.get("/ui/admin").text
    row = page.partition(f"<code>{name}</code></th>")[2].partition("</tr>")[0]
    return [re.sub("<.*?>", "", cell) for cell in row.split("</td>")[:-1]]


def test_the_page_of_the_settings_shows_what_is_in_memory(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_waits=10, max_logins=4, max_arriving=1)
    project = site.admin.create_project()
    worker = site.create_worker(project)
    waiting = threading.Thread(target=worker.assign, args=(project,), kwargs={"wait": 60})
    waiting.start()
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as begun:
        body = b"x" * 512 * 1024
        begun.sendall(
            b"POST /git/receivehook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: x\r\nContent-Length: 1000000\r\n\r\n"
            + body
        )
        wait_until(lambda: shown(site, "max_arriving")[2] == "50 %")
    wait_until(lambda: shown(site, "max_waits") == ["1", "10", "10 %", "0"])
    assert shown(site, "max_logins") == ["0", "4", "0 %", "0"]
    wait_until(lambda: int(shown(site, "max_connections")[0]) >= 2)
    assert shown(site, "answers to be taken in")[1:] == ["32.0 MiB", "0 %", "0"]
    worker.submit(project)
    waiting.join()


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_a_contributor_of_testflinger_makes_so_many_queues_at_most() -> None:
    from dialects.testflinger import clients, domain

    house = Jobs(testflinger_client_queues=2)
    guest, agent = (clients.Client(role, role, {}, [], {}) for role in ("contributor", "agent"))

    def submit(client: clients.Client | None, queue: str) -> str:
        wanted = domain.Submission({}, queue)
        try:
            return house.do(domain.submit_job, client, wanted)
        except tracker.TrackerError as error:
            return error.message

    assert not any("testflinger_client_queues" in submit(guest, queue) for queue in ("one", "two", "one"))
    assert "testflinger_client_queues" in submit(guest, "three")
    for other in (agent, None):
        assert not any("testflinger_client_queues" in submit(other, f"{other} {number}") for number in range(3))
    assert "testflinger_client_queues" not in submit(guest, "None 1")  # another's


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_who_shows_nothing_takes_a_share_of_testflingers_queues_where_they_are_scarce(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dialects.testflinger import queues

    monkeypatch.setattr(queues, "MOST_QUEUES", 8)
    site = make_site(testflinger_anonymous="always", testflinger_client_queues=2)

    def status(address: str, queue: str, path: str = "/v1/agents/queues") -> int:
        body = {"job_queue": queue} if path == "/v1/job" else {queue: {} if "images" in path else "what it is"}
        return httpx.post(f"{site.url}{path}", json=body, headers={"X-Forwarded-For": address}).status_code

    assert [status("198.51.100.7", f"flood {number}") for number in range(6)] == [200] * 4 + [422] * 2
    for path in "/v1/job", "/v1/agents/images":
        assert status("198.51.100.7", "one more", path) == 422
        assert status("198.51.100.7", "flood 1", path) == 200  # one that there is
    ways = ("/v1/job", "/v1/agents/images", "/v1/agents/queues")
    assert [status("203.0.113.1", f"mine {number}", path) for number, path in enumerate(ways)] == [200, 200, 422]
    assert [status("2001:db8:1:2::1", "v6"), status("2001:db8:1:3::1", "v6 b")] == [200, 200]
    assert "@2001:db8:1::/48" in {client for (client,) in site.read("SELECT client FROM testflinger_queue")}


def report(site: Site, address: str, number: int, size: int = 100_000) -> int:
    """The status of a result of so many bytes for a job id that nobody knows, from an address, without credentials."""
    headers = {"X-Forwarded-For": address} if address else {}
    path = f"/v1/result/00000000-0000-4000-8000-{number:012}"
    return httpx.post(f"{site.url}{path}", json={"test_output": "x" * size}, headers=headers).status_code


@pytest.fixture
def open_lab(make_site: Callable[..., Site]) -> Site:
    """One that takes a MiB of Testflinger's data from anybody."""
    if "testflinger" not in tracker.installed_dialects():
        pytest.skip("needs the dialect")
    return make_site(testflinger_anonymous="always", testflinger_max_data=1)


def test_one_network_without_credentials_leaves_room_for_others_data_of_testflingers(open_lab: Site) -> None:
    taken = [report(open_lab, "2001:db8:1:2::1", number) for number in range(10)]
    assert taken == [200] * 8 + [503] * 2
    assert report(open_lab, "2001:db8:1:3::1", 10) == 503  # of its /48
    assert [report(open_lab, address, 11) for address in ("203.0.113.1", "")] == [200] * 2


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_one_network_without_credentials_leaves_room_for_others_files(make_site: Callable[..., Site]) -> None:
    site = make_site(testflinger_anonymous="always", testflinger_max_files=1)

    def upload(address: str, number: int) -> int:
        path = f"/v1/result/00000000-0000-4000-8000-{number:012}/artifact"
        file, headers = {"file": b"x" * 150_000}, {"X-Forwarded-For": address}
        return httpx.post(f"{site.url}{path}", files=file, headers=headers).status_code

    assert [upload("198.51.100.7", number) for number in range(7)] == [200] * 5 + [503] * 2
    assert upload("203.0.113.1", 8) == 200


def test_what_a_network_has_brought_again_and_again_counts_once(open_lab: Site) -> None:
    assert [report(open_lab, "198.51.100.7", 1) for _ in range(20)] == [200] * 20
    assert [report(open_lab, "203.0.113.1", number) for number in range(2, 8)] == [200] * 6
    assert report(open_lab, "203.0.113.1", 8) == 200 and report(open_lab, "203.0.113.1", 9) == 503
    assert report(open_lab, "198.51.100.7", 10) == 200


class Lab:
    """A tracker that has room for a MiB of files, and a job that an agent holds."""

    def __init__(self, site: Site):
        self.site = site
        self.http = client(site.url)
        self.job = self.picked("machines")

    def picked(self, queue: str) -> str:
        job = self.http.post("/v1/job", json={"job_queue": queue}).json()["job_id"]
        assert self.http.get("/v1/job", params={"queue": queue}).json()["job_id"] == job
        return job

    def send(self, job: str, size: int, content: Any = None) -> httpx.Response:
        return self.http.post(f"/v1/result/{job}/artifact", files={"file": content or b"x" * size})

    @property
    def used(self) -> int:
        return self.site.read("SELECT used FROM budget WHERE name = 'files'")[0][0]

    def on_disk(self, tmp_path: Path) -> int:
        return sum(file.stat().st_size for folder in tmp_path.glob("*.files") for file in folder.iterdir())


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_the_files_of_testflingers_jobs_have_a_budget_together(make_site: Callable[..., Site], tmp_path: Path) -> None:
    lab = Lab(make_site(testflinger_max_files=1))
    other = lab.picked("machines")
    assert lab.send(lab.job, 600_000).status_code == 200
    refused = lab.send(other, 600_000)
    assert refused.status_code == 503 and "testflinger_max_files" in refused.json()["message"]
    assert lab.send(lab.job, 900_000).status_code == 200  # in the place of the other
    assert lab.used == lab.on_disk(tmp_path) == 900_000
    assert lab.send(other, 100_000).status_code == 200
    assert lab.used == lab.on_disk(tmp_path) == 1_000_000
    assert "testflinger_max_files" in lab.site.admin.http.get("/ui/admin").text


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_a_file_that_does_not_say_how_long_it_is_ends_where_the_room_does(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    lab = Lab(make_site(testflinger_max_files=2))

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 65536
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused = lab.http.post(f"/v1/result/{lab.job}/artifact", content=pieces(), headers=headers)
    assert refused.status_code == 503 and "testflinger_max_files" in refused.json()["message"]
    assert lab.used == lab.on_disk(tmp_path) == 0


def brings(lab: Lab, way: str, number: int) -> httpx.Response:
    """Some 60 KB more, of another kind each time than what there is."""
    text, uuid = f"{number} {'x' * 60_000}", f"00000000-0000-4000-8000-{number:012}"
    if way == "agents":
        lab.http.post(f"/v1/agents/data/agent{number}", json={"log": ["y" * 4000] * 15})
    path, body = {
        "jobs": ("/v1/job", {"job_queue": "machines", "text": text}),
        "images": ("/v1/agents/images", {f"queue{number}": {"image": text}}),
        "agents": (f"/v1/agents/data/agent{number}", {"comment": text[:9000]}),
        "provisioning": ("/v1/agents/provision_logs/agent", {"job_id": uuid, "exit_code": number, "detail": text}),
        "results of no job": (f"/v1/result/{uuid}", {"text": text}),
        "results": (f"/v1/result/{lab.job}", {f"text{number}": text}),
        "output of no job": (f"/v1/result/{uuid}/output", text),
        "output": (f"/v1/result/{lab.job}/output", text),
    }[way]
    return lab.http.post(path, **({"content": body} if isinstance(body, str) else {"json": body}))


WAYS = {
    **dict.fromkeys(("jobs", "images", "results of no job", "results", "agents"), 503),
    **dict.fromkeys(("provisioning", "output of no job", "output"), 200),  # as ever
}
STORED = """
    SELECT (SELECT ifnull(SUM(length(recipe)), 0) FROM job)
        + (SELECT ifnull(SUM(length(data)), 0) FROM testflinger_image)
        + (SELECT ifnull(SUM(length(fields)), 0) FROM testflinger_agent)
        + (SELECT ifnull(SUM(length(line)), 0) FROM testflinger_agent_line)
        + (SELECT ifnull(SUM(length(detail)), 0) FROM testflinger_provision)
        + (SELECT ifnull(SUM(length(value)), 0) FROM testflinger_result)
        + (SELECT ifnull(SUM(length(message)), 0) FROM job_line)
        + (SELECT ifnull(SUM(length(text)), 0) FROM testflinger_fragment)
"""


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
@pytest.mark.parametrize("way", WAYS)
def test_what_testflingers_clients_bring_into_the_database_has_a_budget_together(
    make_site: Callable[..., Site], way: str
) -> None:
    lab = Lab(make_site(testflinger_max_data=1))
    lab.http.post("/v1/agents/data/agent", json={"queues": ["machines"]})
    answers = [brings(lab, way, number) for number in range(30)]
    assert {answers[0].status_code, answers[-1].status_code} == {200, WAYS[way]}
    assert lab.site.read(STORED)[0][0] < 1.2 * MIB
    if WAYS[way] == 503:
        assert "testflinger_max_data" in answers[-1].text
    assert "testflinger_max_data" in lab.site.admin.http.get("/ui/admin").text
    with contextlib.closing(sqlite3.connect(lab.site.settings.database)) as connection:
        check_budgets(connection)


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_where_testflingers_budget_is_used_up_agents_go_on_and_what_goes_is_free_again(
    make_site: Callable[..., Site],
) -> None:
    lab = Lab(make_site(testflinger_max_data=1))
    for number in range(30):
        brings(lab, "images", number)
    assert brings(lab, "jobs", 1).status_code == 503
    assert lab.http.post("/v1/agents/data/agent", json={"queues": ["machines"], "state": "test"}).status_code == 200
    assert lab.http.post(f"/v1/result/{lab.job}", json={"job_state": "complete"}).status_code == 200
    assert lab.http.get(f"/v1/result/{lab.job}").json()["job_state"] == "complete"
    assert lab.http.post("/v1/agents/images", json={f"queue{number}": {} for number in range(9)}).status_code == 200
    assert brings(lab, "jobs", 1).status_code == 200
