"""`?wait=`: workers that wait for a task are woken by the writer, one for each task."""

import asyncio
import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import place
import pytest
from conftest import Site, Worker, wait_until

import shapes
import tracker
from tracker import Assigned, TrackerError, Waiters


class Waiting:
    """A worker's request that waits in a thread of its own."""

    def __init__(self, worker: Worker, project: int, seconds: float = 60):
        self.answer: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._ask, args=(worker, project, seconds))
        self._thread.start()

    def _ask(self, worker: Worker, project: int, seconds: float) -> None:
        self.answer = worker.assign(project, wait=seconds).json()

    def task(self) -> dict[str, Any] | None:
        self._thread.join(60)
        return self.answer["content"]["task"] if self.answer["ok"] else None


def settle() -> None:
    """Gives requests time to begin waiting. Too short only makes a test weaker, never red."""
    time.sleep(0.4)


def test_a_waiting_worker_is_answered_when_a_task_is_submitted(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    waiting = Waiting(worker, project)
    settle()
    site.create_worker(project).submit(project, "late")
    assert waiting.task()["recipe"] == "late"


def test_without_a_task_the_answer_after_the_wait_is_that_there_is_none(site: Site) -> None:
    project = site.admin.create_project()
    assert Waiting(site.create_worker(project), project, seconds=0.3).task() is None


def test_a_wait_is_no_longer_than_the_setting_allows(make_site: Callable[..., Site]) -> None:
    site = make_site(max_wait=0.2)
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.http.timeout = httpx.Timeout(30)
    assert Waiting(worker, project, seconds=1_000_000).task() is None


def test_ten_tasks_answer_ten_of_twenty_waiting_workers(site: Site) -> None:
    project = site.admin.create_project()
    workers = [site.create_worker(project) for _ in range(20)]
    waiting = [Waiting(worker, project, seconds=2) for worker in workers]
    settle()
    workers[0].bulk_submit([{"project": project, "recipe": str(number)} for number in range(10)])
    recipes = sorted(int(task["recipe"]) for task in (one.task() for one in waiting) if task)
    assert recipes == list(range(10))


def test_a_task_that_the_first_in_line_has_verified_goes_to_the_next(site: Site) -> None:
    project = site.admin.create_project()
    first, holder, second = (site.create_worker(project) for _ in range(3))
    first.submit(project, verification_count=3)
    task = first.assigned(project)
    first.release(task["id"], verification=7)
    holder.assigned(project)
    waiting = [Waiting(first, project, seconds=3)]
    settle()
    waiting.append(Waiting(second, project))
    settle()
    holder.release(task["id"], tracker.SKIP)
    assert waiting[1].task()["id"] == task["id"]
    assert waiting[0].task() is None


@pytest.mark.parametrize("how", ["fail", "skip", "expire", "reclaim", "unpause", "chain"])
def test_whatever_makes_a_task_ready_wakes_a_waiting_worker(site: Site, how: str) -> None:
    project = site.admin.create_project()
    before = site.admin.create_project(chain=project)
    holder, worker = site.create_worker(project), site.create_worker(project)
    site.admin.grant(holder, before)
    source = before if how == "chain" else project
    holder.submit(source, "ready", max_retries=5, max_assign_time=30)
    task = holder.assigned(source)
    if how == "unpause":
        site.admin.post(f"/project/update/{project}", {"paused": True})
        holder.release(task["id"], tracker.SKIP)
    waiting = Waiting(worker, project)
    settle()
    if how in ("fail", "skip", "chain"):
        holder.release(task["id"], {"fail": tracker.FAIL, "skip": tracker.SKIP, "chain": tracker.OK}[how])
    if how == "expire":
        site.clock.pass_time(31)
    if how == "reclaim":
        site.admin.post(f"/project/reclaim_assigned_tasks/{project}")
    if how == "unpause":
        site.admin.post(f"/project/update/{project}", {"paused": False})
    assert waiting.task()["recipe"] == "ready"


def test_workers_that_wait_at_a_rate_limit_are_let_through_one_after_the_other(site: Site) -> None:
    project = site.admin.create_project(assign_rate=5)
    workers = [site.create_worker(project) for _ in range(4)]
    waiting = [Waiting(worker, project) for worker in workers]
    settle()
    workers[0].bulk_submit([{"project": project, "recipe": str(number)} for number in range(4)])
    assert sorted(one.task()["recipe"] for one in waiting) == ["0", "1", "2", "3"]


def test_a_rate_limit_that_outlasts_the_wait_is_said_at_once(site: Site) -> None:
    project = site.admin.create_project(assign_rate=0.001)
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(2)])
    worker.assigned(project)
    response = worker.assign(project, wait=5)
    assert response.status_code == 429
    assert response.json()["rate_limit_delay"] > 900


def test_a_worker_may_wait_for_several_projects_at_once(site: Site) -> None:
    projects = [site.admin.create_project() for _ in range(2)]
    worker = site.create_worker(projects[0])
    site.admin.grant(worker, projects[1])
    answers: list[dict] = []
    query = [("project", project) for project in projects] + [("wait", 60)]
    thread = threading.Thread(target=lambda: answers.append(worker.http.get("/task/get", params=query).json()))
    thread.start()
    settle()
    worker.submit(projects[1], "in the second")
    thread.join()
    assert answers[0]["content"]["task"]["recipe"] == "in the second"


def test_who_waits_for_several_projects_leaves_the_others_task_to_the_others(site: Site) -> None:
    """Two tasks in one commit: the first in line, woken for one project, may take the other one's."""
    one, other = (site.admin.create_project(priority=priority) for priority in (2, 1))
    both, single = site.create_worker(one), site.create_worker(other)
    site.admin.grant(both, other)
    submitters = [site.create_worker(project) for project in (other, one)]
    answers: list[dict] = []
    query = [("project", one), ("project", other), ("wait", 60)]
    thread = threading.Thread(target=lambda: answers.append(both.http.get("/task/get", params=query).json()))
    thread.start()
    settle()
    single_waiting = Waiting(single, other)
    settle()
    with contextlib.closing(sqlite3.connect(site.settings.database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")  # what is sent meanwhile goes into one commit
        calls = [threading.Thread(target=site.create_worker)]
        for worker, project in zip(submitters, (other, one), strict=True):
            calls.append(threading.Thread(target=worker.submit, args=(project, f"of {project}")))
        for call in calls:
            call.start()
            settle()
        holder.execute("ROLLBACK")
    thread.join()
    assert {answers[0]["content"]["task"]["recipe"], single_waiting.task()["recipe"]} == {f"of {one}", f"of {other}"}


def test_a_client_that_goes_away_while_waiting_takes_no_task(site: Site) -> None:
    project = site.admin.create_project()
    gone, worker = site.create_worker(project), site.create_worker(project)
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        headers = f"Host: x\r\nX-Worker-ID: {gone.id}\r\nX-Secret: {gone.secret}\r\n"
        connection.sendall(f"GET /task/get/{project}?wait=60 HTTP/1.1\r\n{headers}\r\n".encode())
        settle()
    settle()
    worker.submit(project, "for those who are here")
    assert worker.assigned(project)["recipe"] == "for those who are here"


def test_a_worker_without_access_waits_as_any_other_and_may_get_it_meanwhile(site: Site) -> None:
    """Else a drone that waits politely would ask all the time."""
    project = site.admin.create_project()
    site.create_worker(project).submit(project)
    worker = site.create_worker()
    began = time.monotonic()
    assert worker.assign(project, wait=1).json()["message"] == "No task available"
    assert time.monotonic() - began >= 1
    later = threading.Timer(0.2, site.admin.grant, (worker, project))
    later.start()
    assert worker.assigned(project, wait=2)
    later.join()


def test_a_call_for_several_projects_without_access_is_refused_at_once(site: Site) -> None:
    project = site.admin.create_project()
    assert site.create_worker().http.get(f"/task/get?project={project}&wait=60").status_code == 403


def test_a_stop_lets_those_go_who_wait_without_access() -> None:
    async def story() -> None:
        waiters, loop = tracker.Waiters(), asyncio.get_running_loop()
        resting = [asyncio.ensure_future(waiters.rest(600, loop.create_future())) for _ in range(3)]
        await asyncio.sleep(0)
        waiters.close()
        await asyncio.wait_for(asyncio.gather(*resting), 20)
        await waiters.rest(600, loop.create_future())

    asyncio.run(story())


# ── The queue of waiting workers by itself ────────────────────────────────────────────────────────────────────────────


class Crowd:
    """Waiters whose attempts are counted and answered by the test."""

    def __init__(self) -> None:
        self.waiters = Waiters()
        self.attempts: list[str] = []
        self.ready = 0
        self.tasks: list[asyncio.Task] = []
        self.gone: dict[str, asyncio.Future] = {}

    async def attempt(self, name: str) -> Assigned:
        self.attempts.append(name)
        await asyncio.sleep(0)
        if self.ready == 0:
            return Assigned([])
        if name.startswith("unsuitable"):
            return Assigned([], others=True)
        self.ready -= 1
        return Assigned([{"for": name}])

    async def wait(self, *names: str) -> None:
        for name in names:
            self.gone[name] = asyncio.get_running_loop().create_future()
            attempt = lambda name=name: self.attempt(name)  # noqa: E731
            self.tasks.append(asyncio.ensure_future(self.waiters.assign((1,), attempt, 60, self.gone[name])))
        await self.rest()
        self.attempts.clear()

    async def rest(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def announce(self, count: int) -> None:
        self.ready += count
        self.waiters.announce(1, count)
        await self.rest()

    async def end(self) -> None:
        self.waiters.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def in_a_crowd(story: Callable[[Crowd], Any]) -> None:
    async def run() -> None:
        crowd = Crowd()
        await story(crowd)
        await crowd.end()

    asyncio.run(run())


def test_one_task_wakes_one_of_a_hundred_workers() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait(*(f"worker{number}" for number in range(100)))
        await crowd.announce(1)
        assert crowd.attempts == ["worker0"]
        assert len(crowd.waiters) == 99

    in_a_crowd(story)


def test_a_wake_up_for_one_project_that_led_to_anothers_task_goes_on_to_the_next() -> None:
    async def story(crowd: Crowd) -> None:
        loop, tasks = asyncio.get_running_loop(), {1: 0, 2: 0}

        async def attempt(projects: tuple[int, ...]) -> Assigned:
            for project in projects:
                if tasks[project]:
                    tasks[project] -= 1
                    return Assigned([{"of": project}])
            return Assigned([])

        waits = [
            asyncio.ensure_future(
                crowd.waiters.assign(projects, lambda projects=projects: attempt(projects), 60, loop.create_future())
            )
            for projects in ((1, 2), (2,))
        ]
        await crowd.rest()
        tasks.update({1: 1, 2: 1})
        crowd.waiters.announce(2, 1)  # wakes the first, which then takes the task of project 1
        crowd.waiters.announce(1, 1)
        assert [one.tasks for one in await asyncio.gather(*waits)] == [[{"of": 1}], [{"of": 2}]]

    in_a_crowd(story)


def test_a_task_that_was_assigned_to_a_client_that_has_gone_meanwhile_waits_again(tmp_path: Path) -> None:
    """Else it would wait for the lease of an assignment that nobody knows of."""

    async def story() -> None:
        async with place.running(tmp_path / "tracker.db", place.StillClock()) as one:
            _, session = await one.db.write(tracker.register_manager, "admin", "unused")
            body = shapes.ProjectBody(name="first")
            project = (await one.db.write(place.call, tracker.create_project, session, body))["id"]
            worker = await one.db.write(place.create_worker)
            body = shapes.WorkerRolesBody(worker.id, assign=True, submit=True)
            await one.db.write(place.call, tracker.set_worker_access, session, project, body)
            await one.db.write(tracker.submit_task, worker, place.new_task(project, "recipe"))
            answers = asyncio.Event()

            async def gone() -> None:
                await answers.wait()

            async def attempt() -> Assigned:
                outcome = await one.db.write(tracker.assign_tasks, worker, [project])
                answers.set()  # the client goes while the assignment is being written
                await asyncio.sleep(0.01)
                return outcome

            call = SimpleNamespace(tracker=one, gone=gone, waits_at="")
            assert (await tracker.wait_for_task(call, worker, [project], attempt, 60)).tasks == []
            row = await one.db.read(place.call, tracker.get_project, session, project)
            assert (row["assigned_task_count"], row["waiting_task_count"]) == (0, 1)

    asyncio.run(story())


def test_those_who_wait_longest_are_woken_first() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("a", "b", "c")
        await crowd.announce(1)
        await crowd.announce(1)
        assert crowd.attempts == ["a", "b"]

    in_a_crowd(story)


def test_an_unsuitable_worker_passes_the_wake_up_on() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("unsuitable1", "unsuitable2", "suitable")
        await crowd.announce(1)
        assert crowd.attempts == ["unsuitable1", "unsuitable2", "suitable"]
        assert crowd.ready == 0

    in_a_crowd(story)


def test_a_wake_up_that_nobody_can_use_goes_round_once() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("unsuitable1", "unsuitable2")
        await crowd.announce(1)
        assert crowd.attempts == ["unsuitable1", "unsuitable2"]

    in_a_crowd(story)


def test_a_wake_up_that_finds_nothing_left_is_not_passed_on_to_the_whole_crowd() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait(*(f"worker{number}" for number in range(100)))
        crowd.waiters.announce(1, 1)  # but somebody who did not wait was quicker
        await crowd.rest()
        assert len(crowd.attempts) == 1

    in_a_crowd(story)


def test_a_wake_up_for_a_client_that_has_gone_goes_to_the_next() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("gone", "here")
        crowd.ready = 1
        crowd.waiters.announce(1, 1)
        crowd.gone["gone"].set_result(None)
        await crowd.rest()
        assert crowd.attempts == ["here"]

    in_a_crowd(story)


def test_a_wake_up_whose_attempt_is_refused_goes_to_the_next() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("refused", "allowed")
        original = crowd.attempt

        async def attempt(name: str) -> Assigned:
            if name == "refused":
                raise TrackerError("forbidden", "A manager has paused you")
            return await original(name)

        crowd.attempt = attempt
        await crowd.announce(1)
        assert crowd.attempts == ["allowed"]

    in_a_crowd(story)


def test_nobody_who_has_gone_is_remembered() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("a", "b")
        for gone in crowd.gone.values():
            gone.set_result(None)
        await crowd.rest()
        assert len(crowd.waiters) == 0
        assert crowd.waiters._queues == {}

    in_a_crowd(story)


def test_a_stop_lets_everybody_go_and_nobody_wait_any_more() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("a", "b")
        crowd.waiters.close()
        assert [one.tasks for one in await asyncio.gather(*crowd.tasks)] == [[], []]
        late = await crowd.waiters.assign((1,), lambda: crowd.attempt("late"), 60, asyncio.Future())
        assert late.tasks == []

    in_a_crowd(story)


def test_a_task_is_not_missed_between_attempt_and_wait(site: Site) -> None:
    """Workers wait and submit by turns, so that many submits fall into the moment in which a wait begins."""
    project = site.admin.create_project()
    worker, submitter = site.create_worker(project), site.create_worker(project)
    for number in range(40):
        waiting = Waiting(worker, project, seconds=30)
        submitter.submit(project, str(number))
        assert waiting.task()["recipe"] == str(number)
    wait_until(lambda: site.admin.counts(project) == {"assigned": 40})


def test_who_has_no_access_takes_no_place_of_those_who_wait_and_polls_no_faster_when_all_are_taken() -> None:
    async def main() -> None:
        waiters, loop, gone = (
            tracker.Waiters(10),
            asyncio.get_running_loop(),
            asyncio.get_running_loop().create_future(),
        )
        resting = [asyncio.create_task(waiters.rest(60, gone)) for _ in range(3)]
        await asyncio.sleep(0)
        while sum(one.done() for one in resting) < 2:  # a tenth may rest for long
            await asyncio.sleep(0.05)
        assert not resting[0].done()

        async def nothing() -> Assigned:
            return Assigned([])

        waiting = [asyncio.create_task(waiters.assign([1], nothing, 60, gone)) for _ in range(10)]
        await asyncio.sleep(0)
        began = loop.time()
        await waiters.assign([1], nothing, 60, gone, 0.2)  # an eleventh: for as long as it is slowed anyway
        assert loop.time() - began >= 0.2 and not any(one.done() for one in waiting)
        waiters.close()
        await asyncio.gather(*resting, *waiting)

    asyncio.run(main())


# ── Whose waits make room for others' ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["?wait=60", "?wait=60&count=3"])
def test_an_address_that_takes_all_waits_keeps_no_other_one_from_waiting(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    made: list[Waiters] = []
    monkeypatch.setattr(tracker, "Waiters", lambda most: made.append(Waiters(most)) or made[0])
    site = make_site(max_waits=4)
    project, [waiters] = site.admin.create_project(), made
    many = [site.create_worker(project) for _ in range(5)]
    for number, worker in enumerate(many[:4], 1):
        worker.http.headers["X-Forwarded-For"] = f"2001:db8:7:{number}::1"
        threading.Thread(target=worker.http.get, args=(f"/task/get/{project}{door}",)).start()
        wait_until(lambda number=number: waiters.shares.used == number)
    one = site.create_worker(project)
    one.http.headers["X-Forwarded-For"] = "203.0.113.9"
    waiting = Waiting(one, project)
    wait_until(lambda: [len(theirs) for theirs in waiters.shares._of.values()] == [3, 1])
    many[4].http.headers["X-Forwarded-For"] = "2001:db8:7:5::1"
    assert many[4].assign(project, wait=60).json()["ok"] is False  # at once
    assert waiting.answer is None and waiters.shares.used == 4


def test_three_hundred_workers_behind_one_address_wait_as_long_as_there_is_room() -> None:
    async def story() -> None:
        waiters, loop = Waiters(300), asyncio.get_running_loop()

        async def nothing() -> Assigned:
            return Assigned([])

        waits = [
            asyncio.ensure_future(waiters.assign((1,), nothing, 60, loop.create_future(), 0, "203.0.113.9"))
            for _ in range(300)
        ]
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(waiters) == 300
        waiters.close()
        await asyncio.gather(*waits)

    asyncio.run(story())


def test_a_wait_that_makes_room_leaves_its_wake_up_to_the_next() -> None:
    async def story(crowd: Crowd) -> None:
        await crowd.wait("a", "b")
        first, second = crowd.waiters._queues[1]
        crowd.ready = 1
        crowd.waiters.announce(1, 1)  # wakes a, which is to make room before it attempts
        crowd.waiters._end(first)
        await crowd.rest()
        assert crowd.attempts == ["b"] and not second.over
        assert [one.result().tasks for one in crowd.tasks] == [[], [{"for": "b"}]]

    in_a_crowd(story)


def test_who_has_no_access_and_rests_makes_room_for_those_of_other_addresses() -> None:
    async def main() -> None:
        loop, waiters = asyncio.get_running_loop(), Waiters(30)
        gone = loop.create_future()
        many = [asyncio.create_task(waiters.rest(60, gone, "203.0.113.9")) for _ in range(3)]
        await asyncio.sleep(0)
        other = asyncio.create_task(waiters.rest(60, gone, "203.0.113.8"))
        await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert [one.done() for one in many] == [True, False, False] and not other.done()
        waiters.close()
        await asyncio.gather(other, *many)

    asyncio.run(main())
