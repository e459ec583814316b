"""How long a worker may hold a task, how it gets more time, and which of its assignments it speaks of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, Worker, wait_until
from place import Jobs, StillClock, create_worker, new_task, running

import shapes
import tracker
from tracker import FAIL, OK, SKIP


@pytest.fixture
def queue() -> Jobs:
    return Jobs(max_extension=500)


def extend(queue: Jobs, task: int, seconds: float, worker: Any = None, **fields: Any) -> tuple[bool, float]:
    body = shapes.Extension(task, seconds, **fields)
    (extended,) = queue.do(tracker.extend_tasks, worker or queue.worker, [body])
    return extended["held"], extended["left"]


def let_pass(queue: Jobs, seconds: float) -> None:
    queue.clock.now += seconds
    while queue.do(tracker.expire_tasks):
        pass


def lost_then_assigned_again(queue: Jobs) -> tuple[int, int]:
    """A task that a worker has lost and holds once more: its id, and the earlier attempt."""
    queue.submit(max_assign_time=10)
    earlier = queue.assigned()
    let_pass(queue, 10)
    assert queue.assigned()["id"] == earlier["id"]
    return earlier["id"], earlier["attempt"]


# ── What is told ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("given", "lease"), [(60, 60), (0, 3600)])
def test_an_assigned_task_tells_its_lease(queue: Jobs, given: int, lease: int) -> None:
    queue.submit(max_assign_time=given)
    task = queue.assigned()
    assert (task["lease"], task["max_assign_time"]) == (lease, given)
    (deadline,) = queue.rows("SELECT deadline_uptime FROM task")[0]
    assert deadline == lease


def test_a_jobs_lease_is_its_timeout_and_its_grace(queue: Jobs) -> None:
    queue.trigger(queue.create_template(timeout=30))
    assert queue.assigned()["lease"] == 30 + tracker.JOB_GRACE


@pytest.mark.parametrize("count", [None, 5])
def test_every_assignment_of_a_task_has_a_number_of_its_own(site: Site, count: int | None) -> None:
    project = site.admin.create_project(retry_delay=0)
    worker = site.create_worker(project)
    worker.submit(project, max_retries=9)
    query = {} if count is None else {"count": count}
    attempts = []
    for result in (FAIL, SKIP, FAIL):
        content = worker.assign(project, **query).json()["content"]
        task = content["task"] if count is None else content["tasks"][0]
        attempts.append(task["attempt"])
        worker.release(task["id"], result)
    assert attempts == [1, 2, 3]


# ── Of which assignment a worker speaks ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("result", [OK, FAIL, SKIP])
def test_the_late_result_of_a_lost_lease_is_not_taken_for_the_new_one(queue: Jobs, result: int) -> None:
    task, earlier = lost_then_assigned_again(queue)
    assert not queue.release(task, result, attempt=earlier)
    assert queue.counts() == {"assigned": 1}
    assert queue.release(task, result, attempt=earlier + 1)


def test_a_bulk_release_looks_at_the_attempts_too(queue: Jobs) -> None:
    task, earlier = lost_then_assigned_again(queue)
    bodies = [shapes.ReleaseBody(task, attempt=attempt) for attempt in (earlier, earlier + 1, earlier + 1)]
    assert queue.do(tracker.release_tasks, queue.worker, bodies) == [False, True, False]


def test_releases_that_are_closed_together_look_at_the_attempts_too(queue: Jobs) -> None:
    task, _ = lost_then_assigned_again(queue)
    other = queue.submit()
    assert queue.assign() == other
    queue.connection.execute("DELETE FROM assignment")  # a task without a past is closed together with others
    calls = [(queue.worker, shapes.ReleaseBody(one, attempt=1)) for one in (task, other)]
    assert queue.do(tracker.release_together, calls) == [None, True]
    assert [row["id"] for row in queue.rows("SELECT id FROM task")] == [task]


def test_a_release_without_an_attempt_is_taken_as_ever(queue: Jobs) -> None:
    task, _ = lost_then_assigned_again(queue)
    assert queue.release(task)


def test_a_late_result_of_a_job_is_not_taken_for_the_new_attempt(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(max_retries=2))
    first = queue.assigned()
    queue.finish_job(first["id"], FAIL)
    second = queue.assigned()
    assert not queue.finish_job(first["id"], OK, attempt=first["attempt"])
    assert queue.state(job) == "assigned"
    assert queue.finish_job(second["id"], OK, attempt=second["attempt"])


def test_what_a_client_left_behind_is_not_taken_from_it_when_it_has_it_anew(tmp_path: Path) -> None:
    """It went away, and the tracker gives its tasks back: only that assignment of them."""

    async def main() -> list[tuple]:
        async with running(tmp_path / "x.db", StillClock()) as one:
            session = (await one.db.write(tracker.register_manager, "admin", "unused"))[1]
            body = shapes.ProjectBody(name="p", public=True)
            project = await one.db.write(tracker.as_caller, tracker.create_project, session, body)
            worker = await one.db.write(create_worker)
            await one.db.write(tracker.insert_task, new_task(project), False)
            (task,) = (await one.db.write(tracker.assign_tasks, worker, [project])).tasks
            given = tracker.attempts_at([task])
            await tracker.give_back(one.db, worker.id, given)
            await one.db.write(tracker.assign_tasks, worker, [project])
            await tracker.give_back(one.db, worker.id, given)
            return await one.db.read(lambda tx: [tuple(row) for row in tx.all("SELECT assignee, attempt FROM task")])

    assert asyncio.run(main()) == [(1, 1)]


# ── More time ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_extended_lease_ends_when_that_was_wished_for(queue: Jobs) -> None:
    queue.submit(max_assign_time=10)
    task = queue.assign()
    queue.clock.now += 5
    assert extend(queue, task, 100) == (True, 100)
    let_pass(queue, 99)
    assert queue.counts() == {"assigned": 1}
    let_pass(queue, 1)
    assert queue.counts() == {"waiting": 1}
    assert queue.task(task)["lost_leases"] == 1


def test_a_lease_never_becomes_shorter(queue: Jobs) -> None:
    queue.submit(max_assign_time=100)
    task = queue.assign()
    assert extend(queue, task, 10) == (True, 100)
    assert extend(queue, task, 0) == (True, 100)


def test_a_lease_is_extended_by_no_more_than_the_setting_says(queue: Jobs) -> None:
    queue.submit(max_assign_time=10)
    assert extend(queue, queue.assign(), 1e6) == (True, 500)


def test_who_does_not_hold_a_task_gets_no_time_for_it(queue: Jobs) -> None:
    other = queue.create_worker()
    queue.submit(), queue.submit()
    held, before = queue.assign(other), queue.rows("SELECT * FROM task")
    for task in (held, held + 1, 999, 0):
        assert extend(queue, task, 100) == (False, 0)
    assert queue.rows("SELECT * FROM task") == before


def test_a_lost_assignment_gets_no_time_for_the_new_one(queue: Jobs) -> None:
    task, earlier = lost_then_assigned_again(queue)
    assert extend(queue, task, 100, attempt=earlier) == (False, 0)
    assert extend(queue, task, 100, attempt=earlier + 1) == (True, 100)


def test_a_lease_that_has_ended_can_be_extended_until_it_is_taken_back(queue: Jobs) -> None:
    queue.submit(max_assign_time=10)
    task = queue.assign()
    queue.clock.now += 60
    assert extend(queue, task, 0) == (True, 0)
    assert extend(queue, task, 5) == (True, 5)
    let_pass(queue, 0)
    assert queue.counts() == {"assigned": 1}
    let_pass(queue, 5)
    assert extend(queue, task, 5) == (False, 0)


@pytest.mark.parametrize("paused", ["worker", "project"])
def test_a_pause_takes_nobody_the_time_for_what_it_holds(queue: Jobs, paused: str) -> None:
    queue.submit(max_assign_time=10)
    task = queue.assign()
    if paused == "worker":
        queue.do(tracker.set_worker_paused, queue.session, shapes.PauseBody(queue.worker.id, True))
    else:
        queue.do(tracker.pause_project, queue.session, queue.project, shapes.PausedBody(True))
    assert extend(queue, task, 100) == (True, 100)


def test_a_job_is_never_held_beyond_its_timeout_and_grace(queue: Jobs) -> None:
    queue.trigger(queue.create_template(timeout=30))
    task = queue.assigned()["id"]
    queue.clock.now += 20
    assert extend(queue, task, 400) == (True, 10 + tracker.JOB_GRACE)


def test_a_job_whose_dialect_gave_it_more_time_keeps_that(queue: Jobs) -> None:
    queue.trigger(queue.create_template(timeout=30))
    task = queue.assigned()["id"]
    queue.clock.now += 20
    (job,) = queue.rows("SELECT * FROM job")
    queue.do(tracker.renew_lease, job)
    assert extend(queue, task, 400) == (True, 30 + tracker.JOB_GRACE)


# ── Through the API ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def worker(site: Site) -> Worker:
    worker = site.create_worker(site.admin.create_project())
    worker.bulk_submit([{"project": 1, "recipe": str(number), "max_assign_time": 100} for number in range(3)])
    assert [worker.assigned(1)["id"] for _ in range(3)] == [1, 2, 3]
    return worker


def post(worker: Worker, body: Any) -> dict[str, Any]:
    return worker.http.post("/task/extend", json=body).json()


def test_one_lease_is_extended(site: Site, worker: Worker) -> None:
    answer = post(worker, {"task_id": 1, "seconds": 600})
    assert answer["ok"] and answer["content"]["held"] and 590 < answer["content"]["left"] <= 600
    site.clock.pass_time(200)
    wait_until(lambda: site.admin.counts(1) == {"waiting": 2, "assigned": 1})
    assert post(worker, {"task_id": 2, "seconds": 600})["content"] == {"held": False, "left": 0}


def test_several_leases_are_extended_by_one_call(worker: Worker) -> None:
    extensions = [{"task_id": task, "seconds": 600, "attempt": attempt} for task, attempt in ((3, 1), (99, 1), (2, 7))]
    content = post(worker, {"extensions": extensions})["content"]
    assert [one["held"] for one in content["extensions"]] == [True, False, False]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "task_id"),
        ({"task_id": 1}, "seconds"),
        ({"seconds": 1}, "task_id"),
        ({"task_id": None, "seconds": 1}, "task_id"),
        ({"task_id": 1, "seconds": -1}, "seconds"),
        ({"task_id": 1, "seconds": "x"}, "seconds"),
        ({"extensions": [{"task_id": 1}]}, "extensions[0].seconds"),
        ({"task_id": 1, "seconds": 1, "extensions": []}, "extensions"),
        ({"extensions": [{"task_id": 1, "seconds": 1}] * 1001}, "extensions"),
        ([], None),
    ],
    ids=str,
)
def test_what_is_no_extension_is_refused_by_its_name(worker: Worker, body: Any, field: str | None) -> None:
    answer = worker.http.post("/task/extend", json=body)
    assert answer.status_code == 400
    assert field is None or answer.json()["message"].startswith(f"{field}: "), answer.text


def test_who_is_no_worker_extends_nothing(site: Site, worker: Worker) -> None:
    headers = {"X-Worker-ID": "1", "X-Secret": "bm9uZQ=="}
    assert site.guest.post("/task/extend", json={"task_id": 1, "seconds": 1}, headers=headers).status_code == 401


def test_more_leases_than_a_short_call_takes_are_extended(worker: Worker) -> None:
    content = post(worker, {"extensions": [{"task_id": 1, "seconds": 600}] * 500})["content"]
    assert [one["held"] for one in content["extensions"]] == [True] * 500
