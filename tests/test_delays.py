"""Delayed tasks: a pause between attempts, and tasks that begin later."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from conftest import Site, wait_until
from doors import AGENTS, CLIENTS, House, NativeAgent, NativeClient
from place import Jobs, StillClock, new_task, running

import pages
import shapes
import tracker
from tracker import FAIL, OK, SKIP, TaskFilter

START = StillClock.START


@pytest.fixture
def queue() -> Jobs:
    return Jobs()


def submit_body(queue: Jobs, **fields: Any) -> tracker.NewTask:
    return tracker.new_task(shapes.SubmitBody(queue.project, "recipe", **fields))


def submit_later(queue: Jobs, seconds: float = 100, **fields: Any) -> int:
    """The id of a new task that is delayed."""
    queue.do(tracker.submit_task, queue.worker, submit_body(queue, delay=seconds, **fields))
    return queue.rows("SELECT MAX(id) FROM task")[0][0]


def let_pass(queue: Jobs, seconds: float) -> None:
    queue.clock.now += seconds
    while queue.do(tracker.expire_tasks) or queue.do(tracker.wake_tasks):
        pass


def assigned(queue: Jobs, worker: Any = None) -> list[int]:
    return [task["id"] for task in queue.do(tracker.assign_tasks, worker or queue.worker, [queue.project], 10).tasks]


# ── From the start ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fields", [{"delay": 60}, {"not_before": START + 60}], ids=str)
def test_a_delayed_task_is_assigned_when_its_time_has_come_and_not_before(queue: Jobs, fields: dict) -> None:
    queue.do(tracker.submit_task, queue.worker, submit_body(queue, **fields))
    let_pass(queue, 59)
    assert (assigned(queue), queue.counts()) == ([], {"delayed": 1})
    let_pass(queue, 1)
    assert queue.counts() == {"waiting": 1}
    assert assigned(queue) == [1]


@pytest.mark.parametrize("fields", [{"delay": 0}, {"not_before": START}, {"not_before": 0}, {"not_before": 1}], ids=str)
def test_a_delay_of_nothing_or_to_a_time_that_has_passed_is_none(queue: Jobs, fields: dict) -> None:
    queue.do(tracker.submit_task, queue.worker, submit_body(queue, **fields))
    assert queue.counts() == {"waiting": 1}


def test_a_task_without_a_delay_is_announced_and_a_delayed_one_when_it_is_ready(queue: Jobs) -> None:
    queue.do(tracker.submit_task, queue.worker, submit_body(queue))
    assert queue.announced == {queue.project: 1}
    submit_later(queue, 5)
    assert not queue.announced
    queue.clock.now += 5
    queue.do(tracker.wake_tasks)
    assert queue.announced == {queue.project: 1}


SUBMITS = {
    "one": lambda worker, task: worker.http.post("/task/submit", json=task),
    "bulk": lambda worker, task: worker.http.post("/task/bulk_submit", json={"requests": [task]}),
    "large bulk": lambda worker, task: worker.http.post("/task/bulk_submit", json={"requests": [task] * 600}),
    "lines": lambda worker, task: worker.http.post(
        f"/task/submit_lines/{task['project']}", content=msgspec.json.encode(task)
    ),
}


@pytest.mark.parametrize("way", SUBMITS)
def test_every_way_to_submit_can_delay(site: Site, way: str) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    task = {"project": project, "recipe": "later", "delay": 1000, "unique_string": "one"}
    assert SUBMITS[way](worker, task).json()["ok"]
    wait_until(lambda: site.admin.counts(project) == {"delayed": 1})
    assert worker.assigned(project) is None


@pytest.mark.parametrize("field", ["delay", "not_before"])
@pytest.mark.parametrize("value", [-1, -0.001, 1e12, "soon", True])
def test_a_delay_that_is_none_is_refused_by_its_name(site: Site, field: str, value: Any) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    for path, body in (
        ("/task/submit", {"project": project, "recipe": "r", field: value}),
        ("/task/bulk_submit", [{"project": project, "recipe": "r", field: value}]),
    ):
        answer = worker.http.post(path, json=body)
        assert (answer.status_code, field in answer.json()["message"]) == (400, True), answer.text


def test_both_spellings_of_a_delay_at_once_are_refused(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    task = {"project": project, "recipe": "r", "delay": 1, "not_before": 1}
    assert worker.http.post("/task/submit", json=task).status_code == 400
    assert worker.http.post("/task/bulk_submit", json=[task]).status_code == 400


def test_the_delay_of_an_upload_is_for_lines_that_say_nothing_of_it(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    lines = 'plain\n{"recipe": "sooner", "delay": 0}\n{"recipe": "past", "not_before": 5}\n{"recipe": "x", "delay": 9}'
    path = f"/task/submit_lines/{project}?delay=1000"
    assert worker.http.post(path, content=lines.encode()).json()["ok"]
    wait_until(lambda: site.admin.counts(project) == {"delayed": 2, "waiting": 2})


def test_a_delayed_task_keeps_its_place_by_priority_and_age(queue: Jobs) -> None:
    first, later = submit_later(queue, 5, priority=1), queue.submit(priority=1)
    lower, higher = queue.submit(), submit_later(queue, 5, priority=2)
    let_pass(queue, 5)
    assert assigned(queue) == [higher, first, later, lower]


def test_the_hash_of_a_delayed_task_is_taken(queue: Jobs) -> None:
    submit_later(queue, hash64=7)
    assert queue.refusal(tracker.submit_task, queue.worker, submit_body(queue, hash64=7)).startswith("conflict")


def test_a_chain_passes_no_delay_on(queue: Jobs) -> None:
    second = queue.create_project("second")
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(chain=second))
    submit_later(queue, 5)
    let_pass(queue, 5)
    queue.release(queue.assign(), OK)
    assert queue.counts(second) == {"waiting": 1}


def test_a_pause_of_the_project_does_not_stop_the_time_of_its_tasks(queue: Jobs) -> None:
    submit_later(queue, 5)
    queue.do(tracker.pause_project, queue.session, queue.project, shapes.PausedBody(True))
    let_pass(queue, 5)
    assert queue.counts() == {"waiting": 1}


def test_tasks_that_are_due_together_are_made_ready_in_small_pieces(
    queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    count = 3 * tracker.STEP_TASKS
    queue.do(tracker.insert_tasks, [new_task(queue.project)._replace(due=-5.0)] * count, queue.project, False)
    queue.clock.now += 5
    assert queue.do(tracker.wake_tasks)
    assert queue.counts() == {"delayed": count - tracker.STEP_TASKS, "waiting": tracker.STEP_TASKS}
    let_pass(queue, 0)
    assert queue.counts() == {"waiting": count}


# ── Put back for a while ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_is_skipped_with_a_delay_rests_for_that_long(queue: Jobs) -> None:
    task = queue.submit()
    assert queue.release(queue.assign(), SKIP, delay=30)
    let_pass(queue, 29)
    assert assigned(queue) == []
    let_pass(queue, 1)
    assert assigned(queue) == [task]
    assert queue.task(task)["retries"] == 0


@pytest.mark.parametrize("kind", ["task", "job"])
def test_nobody_keeps_a_task_from_the_others_for_ever(kind: str) -> None:
    queue = Jobs(max_skip_delay=100)
    queue.trigger(queue.create_template()) if kind == "job" else queue.submit()
    task = queue.assigned()["id"]
    queue.do(tracker.release_task, queue.worker, shapes.ReleaseBody(task, SKIP, delay=1e9))
    let_pass(queue, 99)
    assert assigned(queue) == []
    let_pass(queue, 1)
    assert assigned(queue) == [task]


@pytest.mark.parametrize("result", [OK, FAIL])
def test_a_delay_in_a_release_that_does_not_skip_is_refused_and_changes_nothing(queue: Jobs, result: int) -> None:
    queue.submit()
    task = queue.assign()
    body = shapes.ReleaseBody(task, result, delay=5)
    for call in (tracker.release_task, body), (tracker.release_tasks, [body]):
        assert "delay" in queue.refusal(call[0], queue.worker, call[1])
    assert queue.task(task)["assignee"] == queue.worker.id


def test_a_bulk_release_may_delay(queue: Jobs) -> None:
    for _ in range(3):
        queue.submit()
    held = assigned(queue)
    bodies = [shapes.ReleaseBody(task, SKIP, delay=delay) for task, delay in zip(held, (0, 0, 9), strict=True)]
    assert queue.do(tracker.release_tasks, queue.worker, bodies) == [True, True, True]
    assert queue.counts() == {"waiting": 2, "delayed": 1}


def test_the_pause_between_attempts_doubles_up_to_an_hour_and_is_never_quite_the_same(queue: Jobs) -> None:
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(retry_delay=5))
    task, pauses = queue.submit(max_retries=100), []
    for _ in range(20):
        queue.release(queue.assign(), FAIL)
        pauses.append(queue.task(task)["not_before"] - queue.clock.time())
        let_pass(queue, 4000)
    expected = [min(5 * 2**number, 3600) for number in range(20)]
    assert all(0.9 * due <= pause <= 1.1 * due for due, pause in zip(expected, pauses, strict=True)), pauses
    assert len({round(pause / due, 6) for due, pause in zip(expected, pauses, strict=True)}) > 10


def test_a_task_that_lost_its_lease_rests_as_one_that_failed(queue: Jobs) -> None:
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(retry_delay=50))
    task = queue.submit(max_assign_time=10, max_retries=9)
    queue.assign()
    let_pass(queue, 10)
    assert queue.counts() == {"delayed": 1}
    let_pass(queue, 60)
    queue.release(queue.assign(), FAIL)
    assert 90 <= queue.task(task)["not_before"] - queue.clock.time() <= 110  # it is the second that came to nothing


@pytest.mark.parametrize("way", ["skip", "requeue", "reclaim", "retry", "reset"])
def test_nothing_but_a_failure_or_a_lost_lease_makes_a_task_rest(queue: Jobs, way: str) -> None:
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(retry_delay=50))
    queue.submit()
    task = queue.assign()
    if way in ("retry", "reset"):
        queue.release(task, FAIL)
    if way == "skip":
        queue.release(task, SKIP)
    elif way in ("requeue", "retry"):
        queue.act(way, [task])
    else:
        kind = {"reclaim": "reclaim_assigned", "reset": "reset_failed"}[way]
        queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, kind))
    assert queue.counts() == {"waiting": 1}


def test_a_verified_task_that_rested_awaits_verification_again(queue: Jobs) -> None:
    other, task = queue.create_worker(), queue.submit(verification_count=2)
    queue.release(queue.assign(), OK, hash64=7)
    queue.release(queue.assign(other), SKIP, other, delay=5)
    third = queue.create_worker()
    assert (assigned(queue, third), queue.counts()) == ([], {"delayed": 1})
    let_pass(queue, 5)
    assert queue.counts() == {"awaiting_verification": 1}
    assert assigned(queue) == []  # it has verified it
    assert assigned(queue, third) == [task]


# ── What managers do ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_manager_makes_delayed_tasks_ready_now(queue: Jobs) -> None:
    tasks = [submit_later(queue), submit_later(queue), queue.submit()]
    assert queue.act("make_ready", tasks[1:]) == 1
    assert queue.announced == {queue.project: 1}
    assert queue.counts() == {"delayed": 1, "waiting": 2}
    assert queue.finish(queue.begin("make_ready", TaskFilter("delayed"))) == 1
    assert queue.counts() == {"waiting": 3}


def test_a_priority_set_while_a_task_is_delayed_counts_when_it_is_back(queue: Jobs) -> None:
    first, second = queue.submit(), submit_later(queue, 5)
    assert queue.act("set_priority", [second], 9) == 1
    let_pass(queue, 5)
    assert assigned(queue) == [second, first]


@pytest.mark.parametrize("way", ["delete", "hard_reset"])
def test_a_delayed_task_can_be_deleted(queue: Jobs, way: str) -> None:
    task = submit_later(queue)
    if way == "delete":
        queue.act(way, [task])
    else:
        assert queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, way)) == 1
    assert (queue.counts(), queue.rows("SELECT * FROM task")) == ({}, [])


def test_a_project_is_deleted_with_its_delayed_tasks(queue: Jobs) -> None:
    submit_later(queue)
    queue.trigger(queue.create_template())
    queue.finish_job(queue.assigned()["id"], SKIP, delay=30)
    operation = queue.do(tracker.begin_deletion, queue.session, queue.project)
    queue.finish(operation)
    assert queue.rows("SELECT * FROM task") == queue.rows("SELECT * FROM project") == []


def test_delayed_tasks_are_listed_and_found(queue: Jobs) -> None:
    found, _, _ = submit_later(queue), queue.submit(), submit_later(queue, priority=3)
    for wanted, count in ((TaskFilter("delayed"), 2), (TaskFilter("delayed", "RECIPE", priority=0), 1)):
        rows, _ = queue.do(tracker.list_tasks, queue.session, queue.project, wanted, "", 10)
        assert len(rows) == count
    assert rows[0]["id"] == found


def test_delayed_tasks_count_as_left_to_do(queue: Jobs) -> None:
    submit_later(queue)
    project = queue.do(tracker.get_project, None, queue.project)
    assert (project["delayed_task_count"], project["waiting_task_count"]) == (1, 0)
    (row,) = queue.rows("SELECT * FROM project")
    assert queue.do(lambda tx: pages.pace(tx, row)["left"]) == 1
    queue.do(tracker.take_snapshots, 0, START)
    (snapshot,) = queue.do(tracker.get_snapshots, None, queue.project, shapes.LastSnapshots(1))["snapshots"]
    assert snapshot["new_task_count"] == 1


def test_an_exported_delayed_task_makes_one_that_waits_for_the_same_time(site: Site) -> None:
    project, copy = site.admin.create_project(), site.admin.create_project()
    worker = site.admin.grant(site.create_worker(project), copy)
    worker.http.post("/task/submit", json={"project": project, "recipe": "later", "not_before": 9e9})
    lines = site.admin.http.get(f"/ui/projects/{project}/export?state=delayed").content
    assert msgspec.json.decode(lines)["not_before"] == 9e9
    worker.http.post(f"/task/submit_lines/{copy}", content=lines)
    wait_until(lambda: site.admin.counts(copy) == {"delayed": 1})
    again = msgspec.json.decode(site.admin.http.get(f"/ui/projects/{copy}/export?state=delayed").content)
    assert again["not_before"] == 9e9


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def house(site: Site) -> House:
    return House(site, script="#!/bin/sh\necho done\n")


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("agent", AGENTS)
def test_no_door_hands_out_a_delayed_job_whose_state_stays_waiting(house: House, name: str, agent: str) -> None:
    house.site.admin.update_project(house.project, retry_delay=1000)
    client: NativeClient = CLIENTS[name](house)
    door: NativeAgent = AGENTS[agent](house)
    job = client.submit_with_attempts(2)
    door.fail(door.assign())
    assert all(AGENTS[other](house).assign() is None for other in AGENTS)
    assert NativeClient(house).state(job) == "waiting"
    house.site.clock.pass_time(1200)
    wait_until(lambda: house.site.admin.counts(house.project).get("waiting") == 1)
    door.succeed(door.assign())
    assert NativeClient(house).state(job) == "succeeded"


def test_a_job_that_is_skipped_with_a_delay_waits_for_that_long(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template())
    assert queue.finish_job(queue.assigned()["id"], SKIP, delay=30)
    assert (queue.state(job), assigned(queue)) == ("waiting", [])
    assert queue.do(tracker.assign_tasks, queue.worker, [queue.project], 1, True).tasks == []
    let_pass(queue, 30)
    assert len(assigned(queue)) == 1


@pytest.mark.parametrize("way", ["make_ready", "cancel"])
def test_a_delayed_job_is_made_ready_or_cancelled_with_its_task(queue: Jobs, way: str) -> None:
    job = queue.trigger(queue.create_template())
    task = queue.assigned()["id"]
    queue.finish_job(task, SKIP, delay=30)
    if way == "cancel":
        queue.cancel(job)
        assert (queue.state(job), queue.counts()) == ("cancelled", {})
    else:
        assert queue.act(way, [task]) == 1
        assert assigned(queue) == [task]
    let_pass(queue, 30)
    assert [tuple(row) for row in queue.rows("SELECT delayed FROM job")] == [(0,)]


# ── While it runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_waits_is_woken_by_a_task_whose_time_has_come(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.http.post("/task/submit", json={"project": project, "recipe": "later", "delay": 0.3})
    answer: httpx.Response = worker.http.get(f"/task/get/{project}?wait=20")
    assert answer.json()["content"]["task"]["recipe"] == "later"


def test_a_delay_outlives_the_tracker(tmp_path: Path) -> None:
    clock = StillClock()

    async def live(step: int) -> tuple[int, int]:
        async with running(tmp_path / "x.db", clock) as one:
            if step == 0:
                session = (await one.db.write(tracker.register_manager, "admin", "unused"))[1]
                body = shapes.ProjectBody(name="p")
                project = await one.db.write(tracker.as_caller, tracker.create_project, session, body)
                await one.db.write(tracker.insert_task, new_task(project)._replace(due=-50.0), False)
            await one.expire()
            select = "SELECT waiting_task_count, delayed_task_count FROM project"
            return await one.db.read(lambda tx: tuple(tx.one(select)))

    counts = []
    for step in range(3):
        counts.append(asyncio.run(live(step)))
        clock.now += 25
    assert counts == [(0, 1), (0, 1), (1, 0)]


def test_a_tasks_page_and_list_show_when_it_is_ready(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.http.post("/task/submit", json={"project": project, "recipe": "later", "delay": 7200})
    for path in (f"/ui/projects/{project}/tasks?state=delayed", "/ui/tasks/1"):
        page = site.admin.http.get(path).text
        assert "Make ready" in page and "Ready in" in page and ("1 h 59" in page or "2 h" in page), path


def test_a_jobs_page_shows_when_it_is_ready(house: House) -> None:
    house.site.admin.update_project(house.project, retry_delay=1000)
    client, door = NativeClient(house), NativeAgent(house)
    job = client.submit_with_attempts(2)
    assert "delayed: ready in" not in house.site.admin.http.get(f"/ui/jobs/{job}").text
    door.fail(door.assign())
    assert "delayed: ready in" in house.site.admin.http.get(f"/ui/jobs/{job}").text


def test_the_form_of_a_new_project_proposes_a_pause_between_attempts(site: Site) -> None:
    form = site.admin.http.get("/ui/projects/new").text
    assert 'name="retry_delay" type="number" value="5"' in form
    made = site.admin.project(site.admin.create_project())
    assert (made["retry_delay"], made["max_lost_leases"]) == (0, None)


def test_all_actions_have_words(queue: Jobs) -> None:
    for action, count in itertools.product(tracker.ACTIONS, (1, 2)):
        assert pages.said_of(action, count, 1)
