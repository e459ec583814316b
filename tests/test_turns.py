"""Whose turn it is: workers go first, all others one at a time, and each has a part of the time."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Site, Worker, wait_until
from jinja2.runtime import Context
from test_direct import Line, submit
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

import protocol
import server
import tracker
import turns
import writer
from turns import Turns

CROWD = 40


# ── The turns themselves ──────────────────────────────────────────────────────────────────────────────────────────────


class Rounds:
    """Counts how often the event loop has gone round."""

    def __init__(self) -> None:
        self.count = 0
        asyncio.get_running_loop().call_soon(self.go_round)

    def go_round(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self.go_round)


def played(play: Callable[[Turns, Rounds], Any]) -> None:
    async def run() -> None:
        await play(Turns(), Rounds())

    asyncio.run(run())


def test_each_round_sets_off_one_thing_however_many_wait() -> None:
    async def play(mine: Turns, rounds: Rounds) -> None:
        begun: list[int] = []

        def act(until: float) -> bool:
            begun.append(rounds.count)
            mine.begin()
            return False

        for _ in range(10):
            mine.queue(act)
        while len(begun) < 10:
            await asyncio.sleep(0)
        assert len(set(begun)) == 10

    played(play)


def test_what_has_more_to_do_comes_again_after_the_others() -> None:
    async def play(mine: Turns, rounds: Rounds) -> None:
        order: list[str] = []

        def long(until: float) -> bool:
            order.append("long")
            mine.begin()
            return order.count("long") < 3

        def short(until: float) -> bool:
            order.append("short")
            mine.begin()
            return False

        for act in (short, long, short, short):  # the first one at once
            mine.queue(act)
        while len(order) < 6:
            await asyncio.sleep(0)
        assert order == ["short", "long", "short", "short", "long", "long"]

    played(play)


def test_while_something_urgent_goes_on_the_next_turn_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SHARE", 1e9)

    async def play(mine: Turns, rounds: Rounds) -> None:
        begun: list[int] = []
        for number in range(3):
            mine.queue(lambda until, number=number: bool(begun.append(number)) or mine.begin() or False)
        mine.urgent = True
        await asyncio.sleep(0.05)
        assert begun == [0]
        mine.calm()
        while len(begun) < 3:
            await asyncio.sleep(0)

    played(play)


def test_however_long_something_urgent_goes_on_turns_come_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(mine: Turns, rounds: Rounds) -> None:
        mine.urgent, begun = True, []
        for number in range(3):
            mine.queue(lambda until, number=number: bool(begun.append(number)) or mine.begin() or False)
        async with asyncio.timeout(30):
            while len(begun) < 3:
                await asyncio.sleep(0.001)

    played(play)


class Answers:
    """Is told an outcome, and answers by itself."""

    def __init__(self, told: list[Answers]) -> None:
        self.told = told

    def done(self) -> bool:
        return False

    def set_result(self, result: Any) -> None:
        self.told.append(self)


def test_workers_that_came_together_are_answered_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them waited for a rest of its own, which a crowd that connects again felt for some hundred times."""
    monkeypatch.setattr(turns, "TURN", 10.0)

    async def play(mine: Turns, rounds: Rounds) -> None:
        queue, told = writer.WriteQueue(lambda project, count: None, mine), []
        turns_taken: list[int] = []
        for _ in range(20):
            act = functools.partial(queue.tell_in_turn, Answers(told), None, None)
            mine.queue(lambda until, act=act: bool(turns_taken.append(rounds.count)) or act(until))
        while len(told) < 20:
            await asyncio.sleep(0)
        assert len(set(turns_taken)) <= 2  # the first one came at once

    played(play)


def test_a_turn_that_fails_takes_no_other_ones(caplog: pytest.LogCaptureFixture) -> None:
    async def play(mine: Turns, rounds: Rounds) -> None:
        begun: list[int] = []
        mine.queue(lambda until: bool(1 / 0))
        mine.queue(lambda until: bool(begun.append(1)))
        while not begun:
            await asyncio.sleep(0)

    played(play)
    assert "ZeroDivisionError" in caplog.text


def test_one_that_waits_for_its_turn_may_go_away() -> None:
    async def play(mine: Turns, rounds: Rounds) -> None:
        waiting = [asyncio.ensure_future(mine()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert all(isinstance(outcomes[number], float) for number in (0, 2))

    played(play)


def test_long_work_is_done_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN", -1.0)  # each part takes one

    async def play(mine: Turns, rounds: Rounds) -> None:
        made: list[int] = []

        def parts() -> Iterator[str]:
            for number in range(20):
                made.append(rounds.count)
                yield str(number % 10)

        assert await mine.join(parts()) == "01234567890123456789"
        assert len(set(made)) == 20

    played(play)


# ── The writer ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Batches:
    """A committer over a database in memory, whose calls note that they were carried out."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.connection = writer.sqlite3.connect(":memory:", isolation_level=None)
        self.committer = writer.Committer(
            SimpleNamespace(connection=self.connection), tracker.Clock(), tracker.Settings(), lambda: 1e9
        )
        self.committer.note_passing = lambda tx: None

    def write(self, name: Any, first: bool = False) -> writer.Write:
        return writer.Write(None, lambda tx: self.done.append(name), (), first)

    def run(self, *batch: writer.Write) -> list[writer.Write]:
        """The calls for which there was no time."""
        self.done.clear()
        left = self.committer.run_batch(list(batch)).left
        self.connection.execute("COMMIT")
        return left


@pytest.fixture
def batches() -> Iterator[Batches]:
    made = Batches()
    yield made
    made.connection.close()


def test_in_a_batch_those_go_first_that_may_and_of_the_others_a_part(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARE", 1e9)
    others = [batches.write(number) for number in range(5)]
    left = batches.run(
        others[0], others[1], batches.write("a", first=True), *others[2:], batches.write("b", first=True)
    )
    assert batches.done == ["a", "b", 0] and left == others[1:]


def test_a_batch_without_any_that_go_first_is_short_while_such_come(batches: Batches) -> None:
    others = [batches.write(number) for number in range(5)]
    batches.committer.OTHERS_TIME = -1.0
    assert batches.run(*others) == [] and batches.done == [0, 1, 2, 3, 4]
    batches.run(batches.write("a", first=True))
    batches.committer.STILL_COME = 1e9
    assert batches.run(*others) == others[1:] and batches.done == [0]
    batches.committer.OTHERS_TIME = 1e9
    assert batches.run(*others) == []


def test_no_transaction_is_left_for_the_collector_of_garbage(batches: Batches) -> None:
    gc.collect()
    gc.disable()
    try:
        writer.Tx(batches.connection, tracker.Clock(), tracker.Settings())
        assert not [one for one in gc.get_objects() if isinstance(one, writer.Tx)]
    finally:
        gc.enable()


def test_what_a_batch_had_no_time_for_comes_with_the_next_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.Committer, "BATCH_TIME", 0.0)
    project = site.admin.create_project()
    worker = site.create_worker(project)
    crowd = [threading.Thread(target=worker.submit, args=(project, str(number))) for number in range(10)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert sum(site.admin.counts(project).values()) == 10


# ── All of it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses of all answers, in the order in which they are written."""
    order: list[int] = []

    def noted(status: int, *args: Any) -> bytes:
        order.append(status)
        return protocol_written(status, *args)

    protocol_written = protocol.written
    monkeypatch.setattr(protocol, "written", noted)
    monkeypatch.setattr(server, "written", noted)
    return order


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Callable[[], threading.Event]:
    """Has the next commit hold the whole event loop until the event is set."""

    def begin() -> threading.Event:
        go, commit = threading.Event(), writer.Committer.try_to_commit

        async def wait(*args: Any) -> Any:
            monkeypatch.setattr(writer.Committer, "try_to_commit", commit)
            assert go.wait(30)
            return await commit(*args)

        monkeypatch.setattr(writer.Committer, "try_to_commit", wait)
        return go

    return begin


def known_line(site: Site, project: int, worker: Worker) -> Line:
    line = Line(site.url, worker)
    line.send(line.request("POST", "/task/submit", submit(project)))
    assert b" 200 " in line.read()
    return line


def test_a_known_worker_is_answered_before_a_crowd_that_came_at_the_same_moment(
    site: Site, answered: list[int], standstill: Callable
) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    line, other = known_line(site, project, worker), known_line(site, project, worker)
    crowd = [Line(site.url, worker) for _ in range(CROWD)]
    go = standstill()
    other.send(other.request("POST", "/task/submit", submit(project)))
    wait_until(lambda: writer.Committer.try_to_commit.__name__ == "try_to_commit")  # it stands still
    for one in crowd:
        one.send(one.request("POST", "/log/info", b'{"scope": "s", "message": "line", "timestamp": 1}'))
    line.send(line.request("POST", "/task/submit", submit(project)))
    answered.clear()
    go.set()
    for one in crowd:
        assert b" 204 " in one.read()
    assert b" 200 " in line.read() and answered.count(204) == CROWD
    assert answered[:2] == [200, 200]


@pytest.fixture
def put_first(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each hot call went first."""
    seen: list[bool] = []
    put = writer.WriteQueue.put

    def noted(queue: writer.WriteQueue, told: Any, *args: Any, first: bool = False, **more: Any) -> None:
        seen.extend([first] * isinstance(told, protocol.Direct))  # others write in the background
        put(queue, told, *args, first=first, **more)

    monkeypatch.setattr(writer.WriteQueue, "put", noted)
    return seen


@pytest.mark.parametrize(
    ("path", "body"),
    [("release", {"task_id": 1, "result": 0}), ("bulk_release", {"releases": [{"task_id": 1, "result": 0}]})],
)
def test_whoever_goes_on_releasing_what_it_does_not_hold_goes_first_no_more(
    site: Site, put_first: list[bool], path: str, body: dict
) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    with known_line(site, project, worker) as line:
        put_first.clear()
        for _ in range(protocol.MOST_IN_VAIN + 2):
            line.send(line.request("POST", f"/task/{path}", json.dumps(body).encode()))
            assert b"false" in line.read()
    assert put_first == [True] * protocol.MOST_IN_VAIN + [False] * 2


@pytest.fixture
def firsts(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each submit went first, in their order."""
    seen: list[bool] = []
    put = writer.WriteQueue.put

    def noted(self: writer.WriteQueue, told: Any, function: Callable, *args: Any, **how: bool) -> None:
        if function is tracker.submit_task:
            seen.append(how.get("first", False))
        put(self, told, function, *args, **how)

    monkeypatch.setattr(writer.WriteQueue, "put", noted)
    return seen


def test_what_only_looks_like_a_hot_call_does_not_go_first_again(site: Site, firsts: list[bool]) -> None:
    project = site.admin.create_project()
    line = known_line(site, project, site.create_worker(project))
    for path in ("/task/submit", "/task/submitted", "/task/submit", "/task/submit"):
        line.send(line.request("POST", path, submit(project)))
        line.read()
    assert firsts == [False, True, False, True]


def test_a_worker_that_connects_anew_for_each_call_goes_first_too(site: Site, firsts: list[bool]) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    for _ in range(3):
        with known_line(site, project, worker):
            pass
    assert firsts == [False, True, True]


def test_strangers_at_the_same_address_use_up_what_lets_new_connections_go_first(
    site: Site, firsts: list[bool]
) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    with known_line(site, project, worker):
        for _ in range(2):
            with Line(site.url) as line:
                line.send(line.request("POST", "/task/submit", submit(project)))
                assert b" 200 " not in line.read()
    with known_line(site, project, worker):
        pass
    assert firsts == [False, False]


def test_a_known_worker_goes_first_with_a_whole_batch(site: Site, put_first: list[bool]) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(100)])
    with known_line(site, project, worker) as line:
        put_first.clear()
        line.send(line.request("GET", f"/task/get/{project}?count=100"))
        tasks = json.loads(line.read().partition(b"\r\n\r\n")[2])["content"]["tasks"]
        releases = [{"task_id": task["id"], "result": 0, "verification": 0} for task in tasks]
        line.send(line.request("POST", "/task/bulk_release", json.dumps({"releases": releases}).encode()))
        assert line.read().count(b"true") == 101
    assert put_first == [True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_who_looks_at_passwords_of_strangers_comes_last_and_those_of_known_managers_have_a_part_of_the_processor(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = tracker.password_matches

    def noted(*args: Any) -> bool:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return real(*args)

    monkeypatch.setattr(tracker, "password_matches", noted)
    guess, elsewhere = {"username": "admin", "password": "wrong"}, {"X-Forwarded-For": "198.51.100.1"}
    assert site.guest.post("/login", json=guess, headers=elsewhere).status_code == 401
    login = {"username": "admin", "password": "password"}
    assert site.admin.http.post("/login", json=login).status_code == 200  # from a browser that has logged in before
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert seen == [min(19, ours + 19), min(19, ours + 10)]


def test_a_client_that_goes_while_its_requests_wait_leaves_no_error_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go, lost = threading.Event(), threading.Event()
    commit, connection_lost = writer.Committer.try_to_commit, protocol.GuardedProtocol.connection_lost

    async def wait(*args: Any) -> Any:
        while not go.is_set():
            await asyncio.sleep(0.005)
        return await commit(*args)

    def noted(self: protocol.GuardedProtocol, error: Exception | None) -> None:
        connection_lost(self, error)
        lost.set()

    line = Line(site.url, site.create_worker())
    monkeypatch.setattr(writer.Committer, "try_to_commit", wait)
    monkeypatch.setattr(protocol.GuardedProtocol, "connection_lost", noted)
    said = b'{"scope": "s", "message": "line", "timestamp": 1}'
    line.send(line.request("POST", "/log/error", said) * 3)
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.socket.close()
    assert lost.wait(30)
    go.set()
    wait_until(lambda: site.read("SELECT COUNT(*) FROM log_entry") == [(1,)])
    site.create_worker()  # what was told before this has been answered
    assert "Exception in ASGI application" not in caplog.text


# ── Garbage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


ASKED = {
    "a line for the log": ("POST", "/log/error", {"json": {"scope": "s", "message": "m", "timestamp": 1}}),
    "tasks": ("POST", "/task/bulk_submit", {"json": {"requests": [{"project": 1, "recipe": "r"}] * 20}}),
    "a wrong password": ("POST", "/login", {"json": {"username": "admin", "password": "wrong"}}),
    "no JSON": ("POST", "/project/create", {"content": b"{"}),
    "too much": ("POST", "/login", {"content": b" " * 2_000_000}),
    "no page": ("GET", "/ui/none", {}),
    "a page": ("GET", "/ui/projects/1", {}),
    "a page for who has logged in": ("GET", "/ui/account", {}),
    "a form that is refused": ("POST", "/ui/login", {"data": {"username": "", "password": ""}}),
    "a list": ("GET", "/project/list", {}),
    "the counts": ("GET", "/metrics", {}),
    "a job of Testflinger": ("POST", "/v1/job", {"json": {"job_queue": "none"}}),
    "a job of Otter": ("POST", "/job/none", {"json": {}}),
    "agents of theeye": ("GET", "/agent", {}),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_nothing_of_a_request_is_left_for_the_collector_of_garbage(
    site: Site, asked: tuple[str, str, dict[str, Any]]
) -> None:
    method, path, options = asked
    worker = site.create_worker(site.admin.create_project())
    worker.http.request(method, path, **options)  # what is made once stays
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            worker.http.request(method, path, **options)
        wait_until(lambda: worker.http.get("/health").status_code == 200)  # those before it have ended
        gc.collect()
        left = [one for one in gc.garbage if isinstance(one, RequestResponseCycle | server.Incoming | Context)]
        assert left == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
