"""Leases that are lost: a plain task that kills its workers does not do so for ever."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Site, wait_until
from place import Jobs, Queue

import failures
import shapes
import tracker
from tracker import FAIL, OK, SKIP

LEASE = 10


@pytest.fixture
def queue() -> Jobs:
    return Jobs()


def limit(queue: Queue, most: int | None, **fields: Any) -> None:
    body = shapes.ProjectBody(max_lost_leases=most, **fields)
    queue.do(tracker.update_project, queue.session, queue.project, body)


def lose(queue: Queue, worker: Any = None) -> int:
    """A worker is assigned the next task, and never heard of again."""
    task = queue.assign(worker)
    queue.clock.now += LEASE
    while queue.do(tracker.expire_tasks):
        pass
    return task


def submit(queue: Queue, **fields: Any) -> int:
    return queue.submit(max_assign_time=LEASE, **fields)


# ── What counts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_has_failed_when_its_lease_was_lost_as_often_as_the_setting_says(queue: Jobs) -> None:
    task = submit(queue, max_retries=100)
    for _ in range(queue.settings.default_max_lost_leases):
        assert queue.counts() == {"waiting": 1}
        lose(queue)
    assert queue.counts() == {"failed": 1}
    assert (queue.task(task)["lost_leases"], queue.task(task)["retries"]) == (5, 0)


@pytest.mark.parametrize("most", [1, 3])
def test_a_project_may_say_how_often(queue: Jobs, most: int) -> None:
    limit(queue, most)
    submit(queue)
    for lost in range(1, most + 1):
        lose(queue)
        assert queue.counts() == ({"failed": 1} if lost == most else {"waiting": 1})


@pytest.mark.parametrize("project", [True, False])
def test_nothing_fails_so_where_it_is_switched_off(project: bool) -> None:
    queue = Jobs(default_max_lost_leases=1 if project else 0)
    if project:
        limit(queue, 0)
    task = submit(queue)
    for _ in range(20):
        lose(queue)
    assert (queue.counts(), queue.task(task)["lost_leases"]) == ({"waiting": 1}, 20)


def test_a_project_that_says_nothing_takes_the_default(queue: Jobs) -> None:
    limit(queue, 1)
    limit(queue, None)
    submit(queue)
    lose(queue)
    assert queue.counts() == {"waiting": 1}


@pytest.mark.parametrize("way", ["retry", "reset"])
def test_who_retries_such_a_task_begins_anew(queue: Jobs, way: str) -> None:
    limit(queue, 2)
    task = submit(queue)
    for _ in range(2):
        for _ in range(2):
            assert queue.counts() == {"waiting": 1}
            lose(queue)
        assert queue.counts() == {"failed": 1}
        if way == "retry":
            assert queue.act("retry", [task]) == 1
        else:
            assert queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, "reset_failed")) == 1
        assert queue.task(task)["lost_leases"] == 0


@pytest.mark.parametrize("way", ["skip", "requeue", "reclaim", "fail", "verify"])
def test_no_other_end_of_an_assignment_counts(queue: Jobs, way: str) -> None:
    limit(queue, 1)
    task = submit(queue, max_retries=9, verification_count=9)
    queue.assign()
    if way == "requeue":
        queue.act("requeue", [task])
    elif way == "reclaim":
        queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, "reclaim_assigned"))
    else:
        queue.release(task, {"skip": SKIP, "fail": FAIL, "verify": OK}[way])
    assert queue.task(task)["lost_leases"] == 0
    assert "failed" not in queue.counts()


def test_a_lease_that_was_lost_is_no_attempt(queue: Jobs) -> None:
    task = submit(queue, max_retries=1)
    lose(queue)
    assert (queue.task(task)["retries"], queue.counts()) == (0, {"waiting": 1})


def test_leases_lost_before_and_after_other_ends_are_counted_together(queue: Jobs) -> None:
    limit(queue, 2)
    submit(queue, max_retries=9)
    lose(queue)
    queue.release(queue.assign(), FAIL)
    queue.release(queue.assign(), SKIP)
    lose(queue)
    assert queue.counts() == {"failed": 1}


def test_a_chained_task_begins_at_none(queue: Jobs) -> None:
    second = queue.create_project("second")
    limit(queue, 2, chain=second)
    submit(queue)
    lose(queue)
    queue.release(queue.assign(), OK)
    assert queue.values("SELECT project, lost_leases FROM task") == [(second, 0)]


def test_a_verified_task_that_fails_so_and_is_retried_awaits_verification(queue: Jobs) -> None:
    limit(queue, 1)
    other, task = queue.create_worker(), submit(queue, verification_count=2)
    queue.release(queue.assign(), OK, hash64=7)
    lose(queue, other)
    assert queue.counts() == {"failed": 1}
    queue.act("retry", [task])
    assert queue.counts() == {"awaiting_verification": 1}


def test_a_jobs_lost_leases_are_its_attempts(queue: Jobs) -> None:
    limit(queue, 1)
    job = queue.trigger(queue.create_template(max_retries=2, timeout=LEASE))
    for state in ("waiting", "timed_out"):
        queue.assigned()
        queue.pass_lease()
        assert queue.state(job) == state


# ── What is told ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_pages_say_why_such_a_task_failed(site: Site) -> None:
    project = site.admin.create_project(max_lost_leases=1)
    worker = site.create_worker(project)
    worker.submit(project, max_assign_time=5)
    worker.submit(project, max_assign_time=5)
    worker.assigned(project)
    worker.released(worker.assigned(project)["id"], FAIL)
    site.clock.pass_time(6)
    wait_until(lambda: site.admin.counts(project) == {"failed": 2})
    lists = site.admin.http.get(f"/ui/projects/{project}/tasks?state=failed").text
    assert failures.LOST_LEASE in lists and "no reason given" in lists
    assert "lost a lease" in site.admin.http.get("/ui/tasks/1").text
    assert "failed once" in site.admin.http.get("/ui/tasks/2").text


def test_a_failed_task_is_exported_with_the_leases_that_it_lost(site: Site) -> None:
    project = site.admin.create_project(max_lost_leases=1)
    worker = site.create_worker(project)
    worker.submit(project, max_assign_time=5)
    worker.assigned(project)
    site.clock.pass_time(6)
    wait_until(lambda: site.admin.counts(project) == {"failed": 1})
    answer = site.admin.http.get(f"/ui/projects/{project}/export?state=failed")
    assert '"lost_leases":1' in answer.text
    worker.http.post(f"/task/submit_lines/{project}", content=answer.content).raise_for_status()
    wait_until(lambda: site.admin.counts(project) == {"failed": 1, "waiting": 1})
    assert site.read("SELECT lost_leases FROM task ORDER BY id") == [(1,), (0,)]


@pytest.mark.parametrize(("typed", "stored"), [("", None), ("0", 0), ("7", 7)])
def test_the_form_of_a_project_sets_it_or_leaves_it_to_the_default(site: Site, typed: str, stored: int | None) -> None:
    project = site.admin.create_project(max_lost_leases=3)
    http, path = site.admin.http, f"/ui/projects/{project}/edit"
    token = http.get(path).text.split('name="token" value="')[1].split('"')[0]
    http.post(path, data={"token": token, "name": "p", "max_lost_leases": typed, "retry_delay": "1.5"})
    assert site.read("SELECT max_lost_leases, retry_delay FROM project") == [(stored, 1.5)]
