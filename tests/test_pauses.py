"""A worker that fails one task after the other in a project is paused there."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, wait_until
from place import Jobs, StillClock, call, create_worker, new_task, running

import pauses
import shapes
import tracker
import workers
from tracker import FAIL, OK, SKIP

MOST = 3


@pytest.fixture
def queue() -> Jobs:
    queue = Jobs(pause_after_failures=MOST)
    submit(queue, 100)
    return queue


def submit(queue: Jobs, count: int, **fields: Any) -> None:
    for _ in range(count):
        queue.submit(max_retries=1, max_assign_time=10, **fields)


def ask(queue: Jobs, worker: Any = None, count: int = 1, projects: Any = None) -> tracker.Assigned:
    return queue.do(tracker.assign_tasks, worker or queue.worker, projects or [queue.project], count)


def fail(queue: Jobs, count: int = 1, worker: Any = None) -> None:
    for _ in range(count):
        queue.release(queue.assign(worker), FAIL, worker)


def is_paused(queue: Jobs, worker: Any = None) -> bool:
    answer = ask(queue, worker)
    for task in answer.tasks:
        queue.release(task["id"], SKIP, worker)
    return not answer.tasks


# ── When it begins ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_fails_so_many_tasks_in_a_row_gets_none_for_a_while(queue: Jobs) -> None:
    fail(queue, MOST - 1)
    assert not is_paused(queue)
    fail(queue)
    answer = ask(queue)
    assert (answer.tasks, answer.others) == ([], True)
    assert "failed one task after the other" in answer.reason and str(queue.project) in answer.reason


def test_a_worker_that_finds_tasks_to_be_in_vain_is_not_at_fault(queue: Jobs) -> None:
    submit(queue, MOST + 1, priority=1)
    for _ in range(MOST + 1):
        queue.release(queue.assign(), FAIL, for_good=True)
    assert not is_paused(queue)
    fail(queue, MOST - 1)
    queue.release(queue.assign(), FAIL, for_good=True)  # nor is it any the better for it
    fail(queue)
    assert is_paused(queue)


def test_other_workers_and_other_projects_go_on(queue: Jobs) -> None:
    other, second = queue.create_worker(), queue.create_project("second")
    submit(queue, 3, project=second)
    fail(queue, MOST)
    assert not is_paused(queue, other)
    answer = ask(queue, projects=[queue.project, second], count=9)
    assert {task["project"]["id"] for task in answer.tasks} == {second} and len(answer.tasks) == 3


def test_those_that_ask_together_get_what_each_would_get_alone(queue: Jobs) -> None:
    other = queue.create_worker()
    fail(queue, MOST)
    outcomes = queue.do(tracker.assign_together, [(one, [queue.project]) for one in (queue.worker, other)])
    assert outcomes[0] is None and len(outcomes[1].tasks) == 1


def test_a_lost_lease_counts(queue: Jobs) -> None:
    for _ in range(MOST):
        ask(queue)
        queue.clock.now += 10
        queue.do(tracker.expire_tasks)
    assert is_paused(queue)


@pytest.mark.parametrize("result", ["close", "verify"])
def test_closing_or_verifying_a_task_begins_anew(queue: Jobs, result: str) -> None:
    submit(queue, 1, priority=5, verification_count=2 if result == "verify" else 1)
    task = queue.assign()
    fail(queue, MOST - 1)
    queue.release(task, OK, hash64=7)
    fail(queue, MOST - 1)
    assert not is_paused(queue)
    fail(queue)
    assert is_paused(queue)


def test_skipping_changes_nothing(queue: Jobs) -> None:
    fail(queue, MOST - 1)
    queue.release(queue.assign(), SKIP)
    fail(queue)
    assert is_paused(queue)


def test_what_managers_do_changes_nothing(queue: Jobs) -> None:
    fail(queue, MOST - 1)
    queue.act("requeue", [queue.assign()])
    queue.act("delete", [queue.assign()])
    assert queue.values("SELECT failures_in_row FROM tally") == [(MOST - 1,)]


def test_failures_and_closings_of_one_batch_are_counted_in_their_order(queue: Jobs) -> None:
    held = [task["id"] for task in ask(queue, count=6).tasks]

    def release_all(tx: tracker.Tx, results: list[int]) -> None:
        for task, result in zip(held, results, strict=True):
            tracker.release_task(tx, queue.worker, shapes.ReleaseBody(task, result))

    queue.do(release_all, [FAIL, FAIL, FAIL, OK, FAIL, FAIL])
    assert queue.values("SELECT failures_in_row, pause_uptime FROM tally") == [(2, None)]


def test_no_worker_is_paused_where_that_is_switched_off() -> None:
    queue = Jobs(pause_after_failures=0)
    submit(queue, 60)
    fail(queue, 50)
    assert not is_paused(queue)


def test_failed_jobs_pause_nobody(queue: Jobs) -> None:
    template = queue.create_template(priority=9)
    for _ in range(2 * MOST):
        queue.trigger(template)
        queue.finish_job(queue.assigned()["id"], FAIL)
    assert not is_paused(queue)


def test_a_worker_that_does_nothing_but_jobs_is_told_so_too(queue: Jobs) -> None:
    fail(queue, MOST)
    queue.trigger(queue.create_template())
    assert queue.do(tracker.assign_tasks, queue.worker, [queue.project], 1, True).tasks == []


def test_a_paused_worker_may_release_and_extend_what_it_holds(queue: Jobs) -> None:
    kept, also = (task["id"] for task in ask(queue, count=2).tasks)
    fail(queue, MOST)
    (extended,) = queue.do(tracker.extend_tasks, queue.worker, [shapes.Extension(kept, 60)])
    assert extended["held"]
    assert queue.release(also, FAIL) and queue.release(kept, OK)
    assert not is_paused(queue)


def test_it_is_said_in_the_log_once(queue: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    held = [task["id"] for task in ask(queue, count=9).tasks]
    with caplog.at_level(logging.WARNING):
        for task in held:
            queue.release(task, FAIL)
    assert [record.getMessage() for record in caplog.records] == [
        f"Worker {queue.worker.id} fails one task after the other in project {queue.project}:"
        " it gets none there for 10 minutes"
    ]


# ── When it ends ──────────────────────────────────────────────────────────────────────────────────────────────────────


def begin_trial(queue: Jobs) -> int:
    fail(queue, MOST)
    queue.clock.now += pauses.PAUSE
    (task,) = ask(queue, count=5).tasks
    return task["id"]


def test_after_ten_minutes_a_paused_worker_has_one_task_on_trial(queue: Jobs) -> None:
    fail(queue, MOST)
    queue.clock.now += pauses.PAUSE - 1
    assert ask(queue).tasks == []
    queue.clock.now += 1
    assert len(ask(queue, count=5).tasks) == 1
    assert ask(queue).tasks == []


def test_a_trial_that_succeeds_ends_the_pause(queue: Jobs) -> None:
    assert queue.release(begin_trial(queue), OK)
    assert len(ask(queue, count=5).tasks) == 5
    fail(queue, MOST - 1)
    assert not is_paused(queue)


@pytest.mark.parametrize("result", [FAIL, SKIP])
def test_a_trial_that_does_not_succeed_leaves_the_pause(queue: Jobs, result: int) -> None:
    queue.release(begin_trial(queue), result)
    assert is_paused(queue)
    queue.clock.now += pauses.PAUSE
    assert len(ask(queue, count=5).tasks) == 1


def test_a_trial_that_fails_late_begins_the_pause_anew(queue: Jobs) -> None:
    task = begin_trial(queue)
    queue.clock.now += 2 * pauses.PAUSE
    queue.release(task, FAIL)
    queue.clock.now += pauses.PAUSE - 1
    assert is_paused(queue)


def test_two_that_are_on_trial_together_have_one_task_each(queue: Jobs) -> None:
    other = queue.create_worker()
    fail(queue, MOST)
    fail(queue, MOST, other)
    queue.clock.now += pauses.PAUSE
    assert [len(ask(queue, worker, 5).tasks) for worker in (queue.worker, other, queue.worker)] == [1, 1, 0]


def test_a_trial_that_its_worker_never_heard_of_is_still_to_come(queue: Jobs) -> None:
    fail(queue, MOST)
    queue.clock.now += pauses.PAUSE
    for _ in range(2):
        tasks = ask(queue).tasks
        assert queue.do(tracker.take_back, queue.worker.id, [(task["id"], task["attempt"]) for task in tasks]) == 1
    assert len(ask(queue, count=5).tasks) == 1 and is_paused(queue)


def test_what_a_worker_did_not_hear_of_before_its_pause_does_not_end_that(queue: Jobs) -> None:
    unheard = ask(queue).tasks
    queue.clock.now += 1
    fail(queue, MOST)
    assert queue.do(tracker.take_back, queue.worker.id, [(task["id"], task["attempt"]) for task in unheard]) == 1
    assert is_paused(queue)


def test_a_manager_ends_a_pause(queue: Jobs) -> None:
    fail(queue, MOST)
    queue.do(workers.resume_worker, queue.session, queue.project, queue.worker.id)
    assert queue.announced == {queue.project: 1}
    assert len(ask(queue, count=5).tasks) == 5
    assert queue.values("SELECT paused_worker_count FROM project") == [(0,)]
    queue.do(workers.resume_worker, queue.session, queue.project, queue.worker.id)  # a second click
    assert not queue.announced


def test_who_is_paused_is_listed_until_a_manager_ends_it(queue: Jobs) -> None:
    fail(queue, MOST)
    queue.clock.now += 100
    listed = queue.do(workers.list_paused_workers, queue.session, queue.project)
    assert listed == {
        "workers": [
            {"id": queue.worker.id, "alias": "worker", "failures_in_row": MOST, "left": pauses.PAUSE - 100},
        ]
    }
    queue.do(workers.resume_worker, queue.session, queue.project, queue.worker.id)
    assert queue.do(workers.list_paused_workers, queue.session, queue.project) == {"workers": []}


def test_a_worker_that_is_not_there_cannot_be_resumed(queue: Jobs) -> None:
    assert queue.refusal(workers.resume_worker, queue.session, queue.project, 99) == "not_found: No worker 99"


def test_a_manager_without_the_role_ends_none(queue: Jobs) -> None:
    fail(queue, MOST)
    other = queue.create_manager("other", tracker.READ | tracker.EDIT)
    assert queue.refusal(workers.resume_worker, other, queue.project, queue.worker.id).startswith("forbidden")


def test_a_pause_that_is_over_is_forgotten_and_nobody_looks_for_it_any_more(queue: Jobs) -> None:
    other = queue.create_worker()
    fail(queue, MOST, other)
    queue.release(begin_trial(queue), OK)
    queue.do(pauses.forget_pauses)
    assert queue.values("SELECT paused_worker_count FROM project") == [(1,)]
    queue.do(workers.resume_worker, queue.session, queue.project, other.id)
    queue.do(pauses.forget_pauses)
    assert queue.values("SELECT paused_worker_count FROM project") == [(0,)]
    assert queue.values("SELECT DISTINCT pause_uptime FROM tally") == [(None,)]


def test_the_pause_of_a_worker_that_is_gone_is_forgotten(queue: Jobs) -> None:
    fail(queue, MOST)
    queue.connection.execute("DELETE FROM worker")
    queue.do(pauses.forget_pauses)
    assert queue.values("SELECT paused_worker_count FROM project") == [(0,)]


def test_a_pause_outlives_the_tracker(tmp_path: Path) -> None:
    clock = StillClock()

    async def live(step: int) -> int:
        async with running(tmp_path / "x.db", clock) as one:
            if step == 0:
                session = (await one.db.write(tracker.register_manager, "admin", "unused"))[1]
                body = shapes.ProjectBody(name="p", public=True)
                await one.db.write(tracker.as_caller, tracker.create_project, session, body)
                workers.append(await one.db.write(create_worker))
                for _ in range(one.settings.pause_after_failures + 9):
                    await one.db.write(tracker.insert_task, new_task(1), False)
                for _ in range(one.settings.pause_after_failures):
                    (task,) = (await one.db.write(tracker.assign_tasks, workers[0], [1])).tasks
                    await one.db.write(tracker.release_task, workers[0], shapes.ReleaseBody(task.id, FAIL))
            return len((await one.db.write(tracker.assign_tasks, workers[0], [1])).tasks)

    workers: list[Any] = []
    given = []
    for step in range(3):
        given.append(asyncio.run(live(step)))
        clock.now += pauses.PAUSE / 2
    assert given == [0, 0, 1]


# ── What is seen ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def paused(make_site: Any) -> tuple[Site, int, Any]:
    """A tracker with a worker that has failed too much in a project."""
    site = make_site(pause_after_failures=MOST, max_empty_polls=0)
    project = site.admin.create_project()
    worker = site.create_worker(project, alias="clumsy")
    worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(MOST + 5)])
    for _ in range(MOST):
        worker.release(worker.assigned(project)["id"], FAIL)
    return site, project, worker


@pytest.mark.parametrize("query", [{}, {"count": 5}, {"wait": 0.2}])
def test_a_paused_worker_is_told_so_in_the_words_that_clients_know(paused: tuple, query: dict) -> None:
    _, project, worker = paused
    answer = worker.assign(project, **query)
    assert (answer.status_code, answer.json()["message"]) == (200, tracker.NO_TASK)
    assert "failed one task after the other" in answer.json()["reason"]


def test_the_pages_show_who_is_paused_and_end_it_by_one_click(paused: tuple) -> None:
    site, project, worker = paused
    http = site.admin.http
    page = http.get(f"/ui/projects/{project}").text
    assert "Workers that are paused here" in page and "clumsy" in page
    assert f"paused after {MOST} failures" in http.get(f"/ui/workers/{worker.id}").text
    token = page.split('name="token" value="')[1].split('"')[0]
    http.post(f"/ui/projects/{project}/resume/{worker.id}", data={"token": token})
    assert "Workers that are paused here" not in http.get(f"/ui/projects/{project}").text
    assert worker.assigned(project)


def test_a_task_that_a_paused_worker_waits_for_goes_to_one_that_waits_behind_it(paused: tuple) -> None:
    site, project, worker = paused
    other = site.create_worker(project)
    while other.assigned(project):
        pass

    async def main() -> list[Any]:
        async def wait(who: Any) -> Any:
            return await asyncio.to_thread(lambda: who.assign(project, wait=5).json())

        waits = [asyncio.create_task(wait(worker))]
        await asyncio.sleep(0.3)
        waits.append(asyncio.create_task(wait(other)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(other.submit, project)
        return await asyncio.gather(*waits)

    first, second = asyncio.run(main())
    assert not first["ok"] and second["ok"]


def test_who_waits_when_its_pause_ends_gets_its_trial_then(make_site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "PAUSE", 0.5)
    site = make_site(pause_after_failures=1, max_empty_polls=0)
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(2)])
    worker.release(worker.assigned(project)["id"], FAIL)
    assert worker.assign(project, wait=30).json()["ok"]


def test_a_broken_worker_does_not_eat_the_queue(make_site: Any) -> None:
    site = make_site(max_empty_polls=0)
    project = site.admin.create_project()
    broken, good = site.create_worker(project), site.create_worker(project)
    good.bulk_submit([{"project": project, "recipe": str(number)} for number in range(300)])
    while site.admin.counts(project).get("waiting"):
        for _ in range(5):  # it is quicker, as it does nothing
            if task := broken.assigned(project):
                broken.release(task["id"], FAIL)
        if task := good.assigned(project):
            good.release(task["id"], OK)
    wait_until(lambda: site.admin.counts(project) == {"failed": 25, "closed": 275})


def test_a_call_that_is_undone_pauses_nobody(queue: Jobs) -> None:
    fail(queue, MOST - 1)
    task = queue.assign()

    def undone(tx: tracker.Tx) -> None:
        call(tx, tracker.release_task, queue.worker, shapes.ReleaseBody(task, FAIL))
        raise tracker.TrackerError("conflict", "no")

    assert queue.refusal(undone) == "conflict: no"
    assert queue.values("SELECT failures_in_row, pause_uptime FROM tally") == [(MOST - 1, None)]
