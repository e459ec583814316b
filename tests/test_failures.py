"""Why tasks fail: what is kept of a failure, and the groups of those that are FAILED."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Site, Worker
from place import Jobs, Queue, StillClock, check_counts

import budgets
import errors
import failures
import shapes
import tracker
from tracker import FAIL, OK, SKIP, TaskAction, TaskFilter


@pytest.fixture
def queue() -> Queue:
    return Queue()


def fail(queue: Queue, reason: str = "", **fields: object) -> int:
    """A new task that fails at its first attempt, for good unless it has retries."""
    task = queue.submit(**fields)
    while queue.assign() != task:
        pass
    queue.release(task, FAIL, error=reason)
    return task


def groups(queue: Queue) -> dict[str, int]:
    return dict(queue.values("SELECT pattern, failed_task_count FROM cause ORDER BY id"))


def kept(queue: Queue) -> list[tuple]:
    return queue.values("SELECT task, worker, attempt, reason FROM failure ORDER BY task")


def act(queue: Queue, action: str, **wanted: object) -> int:
    """Does something to all that match, as a manager's page does. To how many."""
    operation = queue.do(
        tracker.begin_action, queue.session, queue.project, TaskAction(action), TaskFilter("failed", **wanted)
    )
    while (done := queue.do(tracker.step_operation, operation)) is None:
        pass
    return done


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_failure_of_a_task_is_kept(queue: Queue) -> None:
    task = queue.submit(max_retries=3)
    for number, reason in enumerate(("first", "second")):
        queue.clock.now = number
        queue.assign()
        queue.release(task, FAIL, error=reason)
    assert kept(queue) == [(task, queue.worker.id, 2, "second")]
    assert queue.values("SELECT end_time FROM failure") == [(StillClock.START + 1,)]


def test_a_task_that_never_fails_leaves_nothing(queue: Queue) -> None:
    queue.work(3)
    task = queue.submit()
    queue.release(queue.assign(), SKIP)
    queue.release(queue.assign(), OK)
    assert queue.task(task) is None
    assert (kept(queue), groups(queue)) == ([], {})


def test_a_lost_lease_is_a_failure_when_it_was_one_too_many(queue: Queue) -> None:
    task = queue.submit(max_assign_time=1)
    most = queue.settings.default_max_lost_leases
    for _ in range(most):
        assert kept(queue) == []
        queue.assign()
        queue.clock.now += 2
        queue.do(tracker.expire_tasks)
    assert kept(queue) == [(task, queue.worker.id, most, failures.LOST_LEASE)]
    assert groups(queue) == {failures.LOST_LEASE: 1}


@pytest.mark.parametrize("end", ["close", "delete", "hard reset", "close when its history is forgotten", "close many"])
def test_a_task_that_goes_takes_its_failure_along(queue: Queue, end: str) -> None:
    task = fail(queue, "a reason", max_retries=2)
    if end == "delete":
        queue.do(tracker.act_on_tasks, queue.session, queue.project, TaskAction("delete"), [task])
    elif end == "hard reset":
        operation = queue.do(tracker.begin_reset, queue.session, queue.project, "hard_reset")
        while queue.do(tracker.step_operation, operation) is None:
            pass
    else:
        queue.assign()
        if "forgotten" in end:
            queue.connection.execute("DELETE FROM assignment")
        release = shapes.ReleaseBody(task)
        if end == "close many":
            queue.do(tracker.release_tasks, queue.worker, [release])
        else:
            assert queue.do(tracker.release_together, [(queue.worker, release)]) == [end != "close" or None]
            queue.release(task)
    assert queue.task(task) is None
    assert (kept(queue), groups(queue)) == ([], {})
    assert queue.do(budgets.used, "reasons") == 0


def test_the_colours_of_a_terminal_are_no_part_of_a_reason(queue: Queue) -> None:
    fail(queue, "\x1b[1;31mno page\x1b[0m\x1b[K")
    assert queue.values("SELECT reason FROM failure") == [("no page",)]
    assert queue.values("SELECT pattern FROM cause") == [("no page",)]


def test_a_reason_is_cut(queue: Queue) -> None:
    fail(queue, "é" * 10_000)
    (reason,) = queue.values("SELECT reason FROM failure")[0]
    assert reason == "é" * failures.MOST_REASON
    assert queue.do(budgets.used, "reasons") == 2 * failures.MOST_REASON


def test_reasons_beyond_their_budget_are_not_kept_but_counted() -> None:
    queue = Queue(max_reasons=1)
    queue.connection.execute(f"UPDATE budget SET used = {2**20 - 10} WHERE name = 'reasons'")
    tasks = [fail(queue, "ten bytes."), fail(queue, "one")]
    assert [(task, reason) for task, *_, reason in kept(queue)] == [(tasks[0], "ten bytes."), (tasks[1], "")]
    assert groups(queue) == {"ten bytes.": 1, "one": 1}


def test_reasons_of_a_project_that_nobody_trusts_weigh_in_it(queue: Queue) -> None:
    queue.connection.execute("UPDATE project SET trusted = 0, size = 0")
    task = queue.submit(max_retries=9)
    queue.release(queue.assign(), SKIP)
    empty = queue.values("SELECT size FROM project")
    for reason in ("x" * 100, "y" * 10):
        queue.assign()
        queue.release(task, FAIL, error=reason)
        assert queue.values("SELECT size FROM project") == [(empty[0][0] + 40 + len(reason),)]
    queue.assign()
    queue.release(task, OK)
    assert queue.values("SELECT size FROM project") == [(budgets.ACCESS_SIZE,)]  # of what the worker has closed


def test_reasons_of_a_project_that_nobody_trusts_are_not_kept_where_it_has_no_room() -> None:
    queue = Queue(max_untrusted_projects=0)
    task = queue.submit()
    queue.connection.execute("UPDATE project SET trusted = 0, size = 0")
    queue.assign()
    assert queue.release(task, FAIL, error="a reason")
    assert (kept(queue)[0][3], groups(queue)) == ("", {"a reason": 1})


def test_a_task_that_failed_for_good_is_not_retried(queue: Queue) -> None:
    task = queue.submit(max_retries=9)
    queue.assign()
    assert queue.release(task, FAIL, error="gone", for_good=True)
    assert not queue.do(tracker.assign_tasks, queue.worker, [queue.project]).tasks
    assert groups(queue) == {"gone": 1}


@pytest.mark.parametrize("result", [OK, SKIP])
@pytest.mark.parametrize("given", [{"error": "why"}, {"for_good": True}])
def test_a_reason_is_refused_with_other_results(queue: Queue, result: int, given: dict[str, Any]) -> None:
    task, (field,) = queue.submit(), given
    queue.assign()
    refused = f"invalid: {field}: only a task that is released as failed has one"
    body = shapes.ReleaseBody(task, result, **given)
    assert queue.refusal(tracker.release_task, queue.worker, body) == refused
    assert queue.refusal(tracker.release_tasks, queue.worker, [body]) == refused.replace(
        field, f"releases[0].{field}", 1
    )
    assert queue.do(tracker.release_together, [(queue.worker, body)]) == [None]
    assert queue.release(task, result, error="")


@pytest.mark.parametrize("call", ["release", "bulk_release"])
@pytest.mark.parametrize("text", [b"a\\u0000b", b"a\0b", b"a\xffb", b"a\\udc80b"])
def test_a_task_is_released_whatever_its_script_has_printed(site: Site, call: str, text: bytes) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    body = b'{"task_id": %d, "result": 1, "error": "%b"}' % (task, text)
    whole = body if call == "release" else b'{"releases": [%b]}' % body
    answer = worker.http.post(f"/task/{call}", content=whole)
    assert answer.json().get("content") in ({"updated": True}, {"updated": [True]}), answer.text
    assert "a\ufffdb" in site.admin.http.get(f"/ui/tasks/{task}").text


@pytest.mark.parametrize("call", ["release", "bulk_release"])
@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_task_is_released_whatever_number_its_result_has(site: Site, call: str, number: bytes) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    template = site.admin.post("/template/create", {"project": project, "name": "x", "script": "x"}).json()["content"]
    job = site.admin.post(f"/template/trigger/{template['template']['id']}", {}).json()["content"]["job"]["id"]
    body = b'{"task_id": %d, "result": 0, "output": {"loss": %b}}' % (worker.assigned(project)["id"], number)
    whole = body if call == "release" else b'{"releases": [%b]}' % body
    answer = worker.http.post(f"/task/{call}", content=whole)
    assert answer.json().get("content") in ({"updated": True}, {"updated": [True]}), answer.text
    assert site.admin.get(f"/job/get/{job}").json()["content"]["job"]["result"] == {"loss": None}


@pytest.mark.parametrize("text", [b"a\xffb", b"a\\udc80b", b"a\0b"])
def test_what_a_job_hands_on_is_taken_whatever_its_script_has_printed(text: bytes) -> None:
    body = b'{"task_id": 1, "verification": -9223372036854775808, "output": {"lastline": "%b", "n": 1%b}}'
    body %= (text, b"0" * 30)
    release = errors.decode(body, shapes.ReleaseBody)
    assert (release.task_id, release.verification) == (1, -(2**63))
    assert tracker.read_report(release.output).result == '{"lastline":"a\ufffdb","n":1%s}' % ("0" * 30)


# ── Groups ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reasons", "pattern"),
    [
        (["certificate of www.example.org has expired", "certificate of b.example has expired"], None),
        (["certificate of a.example has expired"], "certificate of … has expired"),
        (["timed out after 31 s", "timed out after 4.5 s"], "timed out after … s"),
        (["https://example.org/a?b=1: refused", "http://[::1]:80/: refused"], "… refused"),
        (["[::1]:80 refused", "10.0.0.1 refused", "2001:db8::17 refused", "[fe80::1%eth0]:443 refused"], "… refused"),
        (["std::bad_alloc at Foo::bar"], "std::bad_alloc at Foo::bar"),
        (["[12:30:45] lost", "[7:01:02] lost"], "[…] lost"),
        (["KeyError: 'a b'", "KeyError: 'it'"], "KeyError: …"),
        (['no "x" in “y” or «z»'], "no … in … or …"),
        (["0xdeadbeef", "cafebabe00", "550e8400-e29b-41d4-a716-446655440000"], "…"),
        (["cat: /var/lib/x.txt: No such file", "cat: urls.txt: No such file"], "cat: …: No such file"),
        (["two\n\tlines  here"], "two lines here"),
        (["can't and don't"], "can't and don't"),
        (["httpx.ConnectError: [Errno 111] refused"], "httpx.ConnectError: [Errno 111] refused"),
        (["HTTP 404"], "HTTP 404"),
        (["exit status 2: gone"], "exit status 2: gone"),
        ([""], ""),
    ],
)
def test_what_differs_from_task_to_task_is_masked(reasons: list[str], pattern: str | None) -> None:
    found = {failures.pattern_of(reason) for reason in reasons}
    assert len(found) == 1
    assert pattern is None or found == {pattern}


def test_kinds_that_anybody_knows_by_their_number_are_told_apart() -> None:
    reasons = (
        "HTTP 404",
        "HTTP 503",
        "exit status 1",
        "exit status 2",
        "killed by signal 9",
        "[Errno 2] x",
        "[Errno 13] x",
    )
    assert len(set(map(failures.pattern_of, reasons))) == len(reasons)


def test_failed_tasks_are_counted_by_why_they_failed(queue: Queue) -> None:
    for reason in ("took 5 s", "HTTP 404", "took 7 s", ""):
        fail(queue, reason)
    fail(queue, "took 5 s", max_retries=2)
    assert groups(queue) == {"took … s": 2, "HTTP 404": 1, "": 1}
    check_counts(queue.connection)


@pytest.mark.parametrize("action", ["retry", "delete"])
def test_an_action_on_all_that_match_takes_those_of_one_cause(queue: Queue, action: str) -> None:
    tasks = [fail(queue, reason) for reason in ("took 5 s", "HTTP 404", "took 7 s")]
    cause = queue.task(tasks[0])["cause"]
    assert act(queue, action, cause=cause) == 2
    assert (queue.tasks("failed"), groups(queue)) == ({tasks[1]}, {"HTTP 404": 1})
    check_counts(queue.connection)


def test_a_group_that_is_empty_is_gone_and_comes_back_as_another(queue: Queue) -> None:
    task = fail(queue, "a reason")
    before = queue.task(task)["cause"]
    act(queue, "retry")
    assert groups(queue) == {}
    assert kept(queue)[0][3] == "a reason"
    queue.assign()
    queue.release(task, FAIL, error="a reason")
    assert groups(queue) == {"a reason": 1}
    assert queue.task(task)["cause"] > before


def test_a_project_has_so_many_groups_at_most(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MOST_CAUSES", 2)
    for reason in ("a", "", "b", "c", "d", "a", "…"):
        fail(queue, reason)
    assert groups(queue) == {"a": 2, "": 1, "b": 1, failures.OTHER: 3}
    second = queue.create_project("second")
    task = queue.submit(project=second)
    queue.assign(project=second)
    queue.release(task, FAIL, error="c")
    assert groups(queue)["c"] == 1


def test_the_groups_of_a_project_are_those_with_most_tasks_first(queue: Queue) -> None:
    for reason in ("a", "b", "b"):
        fail(queue, reason)
    shown = queue.do(failures.causes, queue.project)
    assert [(one["pattern"], one["failed_task_count"]) for one in shown] == [("b", 2), ("a", 1)]


def test_a_list_of_failed_tasks_goes_by_their_causes(queue: Queue) -> None:
    tasks = [fail(queue, reason) for reason in ("a", "b", "a", "b")]
    rows, more = queue.do(tracker.list_tasks, queue.session, queue.project, TaskFilter("failed"), "", 3)
    assert [row["id"] for row in rows] == [tasks[0], tasks[2], tasks[1]]
    rows, more = queue.do(tracker.list_tasks, queue.session, queue.project, TaskFilter("failed"), more, 3)
    assert ([row["id"] for row in rows], more) == ([tasks[3]], "")


# ── Totals and jobs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_failed_attempts_and_lost_leases_are_counted_for_all_time(queue: Queue) -> None:
    fail(queue, max_retries=2)
    queue.submit(max_assign_time=1, priority=9)
    queue.assign()
    queue.clock.now += 2
    queue.do(tracker.expire_tasks)
    assert queue.values("SELECT failed_attempt_count, lost_lease_count FROM failure_total") == [(1, 1)]
    queue.do(tracker.take_snapshots, 0, 123)
    assert queue.values("SELECT failure_count FROM snapshot WHERE time_stamp = 123") == [(2,)]


def test_a_job_tells_in_its_log_why_an_attempt_failed() -> None:
    queue = Jobs()
    queue.trigger(queue.create_template(max_retries=2))
    task = queue.assign()
    queue.release(task, FAIL, error="the disk is full")
    assert kept(queue) == [(task, queue.worker.id, 1, "the disk is full")]
    assert groups(queue) == {}
    queue.assign()
    queue.release(task, FAIL, error="again")
    lines = " ".join(line for (line,) in queue.values("SELECT message FROM job_line"))
    assert "released as failed: the disk is full: attempt 1 of 2" in lines
    assert "released as failed: again" in lines
    assert queue.task(task) is None
    assert kept(queue) == []


# ── Over HTTP, and on the pages ───────────────────────────────────────────────────────────────────────────────────────


def failed(site: Site, worker: Worker, project: int, reason: object, recipe: str = "a recipe") -> int:
    worker.submit(project, recipe)
    task = worker.assigned(project)["id"]
    assert worker.released(task, FAIL, error=reason)
    return task


def test_a_null_is_no_reason_and_a_number_is_refused_by_its_name(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    failed(site, worker, project, None)
    worker.submit(project, "another")
    refused = worker.release(worker.assigned(project)["id"], FAIL, error=7)
    assert (refused.status_code, "error" in refused.json()["message"]) == (400, True)
    assert site.read("SELECT reason FROM failure") == [("",)]


@pytest.mark.parametrize("path", ["/task/release", "/task/bulk_release"])
def test_a_reason_with_another_result_is_refused_in_every_call(site: Site, path: str) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project, "a recipe")
    body = {"task_id": worker.assigned(project)["id"], "result": OK, "error": "why"}
    refused = worker.http.post(path, json={"releases": [body]} if "bulk" in path else body)
    assert (refused.status_code, "error: only a task" in refused.json()["message"]) == (400, True)
    assert site.admin.counts(project) == {"assigned": 1}


def test_the_last_failure_is_on_the_pages_and_in_the_export(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project, "a laptop")
    task = failed(site, worker, project, "took 5 s")
    failed(site, worker, project, "took 7 s")
    failed(site, worker, project, "")
    (cause,) = site.read("SELECT cause FROM task WHERE id = ?", task)[0]
    http = site.admin.http
    overview = http.get(f"/ui/projects/{project}").text
    assert "took … s" in overview and f"state=failed&amp;cause={cause}" in overview and "no reason given" in overview
    listed = http.get(f"/ui/projects/{project}/tasks?state=failed&cause={cause}").text
    assert "took 5 s" in listed and "took 7 s" in listed and "a laptop" in listed
    assert "took 5 s" in http.get(f"/ui/tasks/{task}").text
    lines = http.get(f"/ui/projects/{project}/export?state=failed&cause={cause}").text.splitlines()
    first, second = map(json.loads, lines)
    assert first["failure"] == {
        "reason": "took 5 s",
        "time": first["failure"]["time"],
        "worker": worker.id,
        "attempt": 1,
    }
    assert second["failure"]["reason"] == "took 7 s"


def test_an_export_says_nothing_of_failures_where_there_was_none(site: Site) -> None:
    project = site.admin.create_project()
    site.create_worker(project).submit(project, "a recipe")
    assert json.loads(site.admin.http.get(f"/ui/projects/{project}/export").text)["failure"] is None


def test_failed_attempts_are_a_line_of_the_throughput_chart(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    assert "Failed attempts" not in site.admin.http.get(f"/ui/projects/{project}").text
    failed(site, worker, project, "a reason")
    site.clock.pass_time(60)
    assert "Failed attempts" in site.admin.http.get(f"/ui/projects/{project}").text


def test_the_heading_of_a_project_leads_to_its_log(site: Site) -> None:
    project = site.admin.create_project(public=True)
    address = f'href="/ui/logs?project={project}"'
    assert address in site.admin.http.get(f"/ui/projects/{project}/tasks").text
    assert address not in site.guest.get(f"/ui/projects/{project}").text
