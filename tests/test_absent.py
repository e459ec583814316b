"""Who went away gets nothing: what was handed out to it is ready again at once, at every door, as if it had never been.

A client that has ended its own side alone still gets its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Site, wait_until
from doors import AGENTS, House, NativeClient
from test_server import read_all

import writer

TASK = "SELECT status, assignee, attempt, retries, lost_leases FROM task"
ASKS = {
    "native": [
        "/task/get/{project}",
        "/api/task/get/{project}?count=3",
        "/task/get?project={project}",
        "/task/get/{project}?wait=5",
    ],
    "theeye": ["/tracker/job?hostname=machine"],
    "testflinger": ["/v1/job?queue=house"],
}
PLACES = [(agent, path) for agent, paths in ASKS.items() for path in paths]


class Absent:
    """An agent's request for work over a bare connection, and a commit that is held up until it has gone."""

    def __init__(self, site: Site, agent: str, path: str, monkeypatch: pytest.MonkeyPatch):
        self.site, self.house = site, House(site)
        self.agent = AGENTS[agent](self.house)
        self.agent.assign()  # what it brings with it (its host, its worker) is there
        self.job = NativeClient(self.house).submit()
        self.path, self.go, self.reached = path.format(project=self.house.project), threading.Event(), threading.Event()
        commit = writer.Committer.try_to_commit

        async def held(committer: Any, batch: list, on_thread: bool) -> Any:
            if self.armed and not self.go.is_set():
                self.reached.set()
                while not self.go.is_set():
                    await asyncio.sleep(0.005)
            return await commit(committer, batch, on_thread)

        self.armed = False
        monkeypatch.setattr(writer.Committer, "try_to_commit", held)

    def ask(self, *headers: str) -> socket.socket:
        """The connection, when the request has reached the writer."""
        given = {
            name: value for name, value in self.agent.http.headers.items() if name.lower().startswith(("x-", "au"))
        }
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.agent.http.cookies.jar)
        lines = [f"{name}: {value}" for name, value in given.items()] + ([f"Cookie: {cookies}"] if cookies else [])
        head = "\r\n".join([f"GET {self.path} HTTP/1.1", "Host: localhost", *lines, *headers])
        host, port = self.site.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        self.armed = True
        connection.sendall(f"{head}\r\n\r\n".encode())
        assert self.reached.wait(30)
        return connection

    def task(self) -> list[tuple]:
        return self.site.read(TASK)


@pytest.fixture
def absent(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Absent]]:
    with contextlib.ExitStack() as stack:

        def make(agent: str, path: str) -> Absent:
            made = Absent(site, agent, path, monkeypatch)
            stack.callback(made.go.set)
            return made

        yield make


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("headers", [[], ["Connection: close"]], ids=["kept", "last"])
@pytest.mark.parametrize(("agent", "path"), PLACES)
def test_what_was_given_to_a_client_that_has_gone_is_ready_at_once(
    absent: Callable[..., Absent], agent: str, path: str, headers: list[str], reset: bool
) -> None:
    one = absent(agent, path)
    before = one.task()
    connection = one.ask(*headers)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    one.go.set()
    wait_until(lambda: one.site.read("SELECT 1 FROM job_line WHERE message LIKE '%had gone%'"))
    assert one.site.read("SELECT state, attempts, started FROM job") == [("waiting", 0, None)]
    assert one.task() == before and one.site.read("SELECT COUNT(*) FROM assignment") == [(0,)]
    assert one.agent.assign()
    assert one.site.read("SELECT state, attempts FROM job") == [("assigned", 1)]


@pytest.mark.parametrize("headers", [[], ["Connection: close"]], ids=["kept", "last"])
@pytest.mark.parametrize(("agent", "path"), [place for place in PLACES if "wait" not in place[1]])
def test_a_client_that_has_ended_its_own_side_alone_gets_its_work(
    absent: Callable[..., Absent], agent: str, path: str, headers: list[str]
) -> None:
    one = absent(agent, path)
    with one.ask(*headers) as connection:
        connection.shutdown(socket.SHUT_WR)
        one.go.set()
        assert b" 200 " in read_all(connection).partition(b"\r\n")[0]
    assert [state for (state,) in one.site.read("SELECT state FROM job")] == ["assigned"]
    assert one.site.read("SELECT assignee IS NULL FROM task") == [(0,)]


def test_a_client_that_has_ended_its_own_side_alone_gets_its_work_though_its_polls_are_held(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(max_empty_polls=1)
    project = site.admin.create_project()
    worker = site.create_worker(project)
    assert worker.assigned(project) is None  # the next poll is held for a second, if there is nothing then
    worker.submit(project)
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = [f"GET /task/get/{project} HTTP/1.1", "Host: localhost"]
        head += [f"{name}: {worker.http.headers[name]}" for name in ("X-Worker-ID", "X-Secret")]
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        connection.shutdown(socket.SHUT_WR)
        assert b'"ok":true' in read_all(connection)
    assert site.read("SELECT assignee, attempt FROM task") == [(worker.id, 1)]
