"""How bytes come in and how that ends: a server of its own around a small application, and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import wait_until

import libraries
import listening
import server
import tracker
from errors import TrackerError
from shares import Holding, Shares

HOME = Path(server.__file__).parent


class Running:
    """A server in a thread, and its application. `/slow` is answered when a test lets it: `begun`, then `go`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = tracker.Settings(port=0, **settings)
        self.url, self.told = "", 0
        self.begun, self.go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=lambda: server.run_loop(self.run()), daemon=True)
        self.thread.start()
        wait_until(lambda: self.url)

    async def run(self) -> None:
        with listening.listen(("127.0.0.1", 0)) as sock:
            self.server = server.Server(
                server.uvicorn_config(self, self.settings),
                self.settings.request_timeout,
                started=lambda: setattr(self, "url", listening.url_of(sock)),
                stopping=lambda: setattr(self, "told", self.told + 1),
            )
            await self.server.serve(sockets=[sock])

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["path"] == "/slow":
            self.begun.set()
            await asyncio.to_thread(self.go.wait, 60)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})

    def connect(self, path: str = "/") -> socket.socket:
        """A connection that has asked for something, and does not ask to have it closed afterwards."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return connection

    def ended(self) -> bool:
        self.thread.join(30)
        return not self.thread.is_alive()


def reset(connection: socket.socket) -> None:
    """Has the connection end as that of a client which was killed with an answer unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts a server; at the end all are stopped."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Running:
            running = Running(**settings)
            for last in running.thread.join, running.server.stop, running.server.stop, running.go.set:
                stack.callback(last)
            return running

        yield start


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


# ── Stopping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_neither_a_start_nor_a_stop_sleeps(run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(seconds: float, result: Any = None) -> None:
        raise AssertionError("slept")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    running = run()
    running.server.stop()
    assert running.ended()
    assert running.told == 1


def test_a_stop_closes_the_connections_that_are_kept_alive(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect() as used, socket.create_connection(used.getpeername()) as unused:
        assert used.recv(65536).endswith(b"done")
        running.server.stop()
        assert read_all(used) == read_all(unused) == b""
    assert running.ended()


def test_a_request_in_flight_is_answered_before_the_stop(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect("/slow") as connection:
        assert running.begun.wait(30)
        running.server.stop()
        wait_until(lambda: running.told)
        assert running.thread.is_alive()
        running.go.set()
        assert read_all(connection).endswith(b"connection: close\r\n\r\ndone")
    assert running.ended()


def test_a_request_whose_client_has_gone_is_finished_before_the_stop(run: Callable[..., Running]) -> None:
    running = run()
    with running.connect("/slow") as connection:
        assert running.begun.wait(30)
        reset(connection)
    wait_until(lambda: not running.server.server_state.connections)
    running.server.stop()
    wait_until(lambda: running.told)
    assert running.thread.is_alive()
    running.go.set()
    assert running.ended()


def test_a_request_that_outlasts_the_shutdown_is_cut_off(run: Callable[..., Running]) -> None:
    running = run(shutdown_timeout=0.1)
    with running.connect("/slow") as connection:
        assert running.begun.wait(30)
        running.server.stop()
        assert not read_all(connection).endswith(b"done")
    running.go.set()  # the thread that waits for it is joined at the end of the loop
    assert running.ended()


def test_who_is_cut_off_by_the_stop_is_told_so_in_json(run: Callable[..., Running]) -> None:
    """Programs that read nothing else ended at a plain "Internal Server Error"."""
    running = run(shutdown_timeout=0.1)
    with running.connect("/slow") as connection:
        assert running.begun.wait(30)
        running.server.stop()
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert b" 503 " in head and b"retry-after: 1" in head
        assert json.loads(body)["code"] == "unavailable"
    running.go.set()
    assert running.ended()


class Endless(Running):
    """Its application waits for what does not come."""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        self.begun.set()
        await asyncio.Event().wait()


def test_who_is_cut_off_by_the_stop_is_no_fault_in_the_log(capfd: pytest.CaptureFixture) -> None:
    """Of a hundred logins that waited each had a traceback."""
    running = Endless(shutdown_timeout=0.1)
    with running.connect() as connection:
        assert running.begun.wait(30)
        running.server.stop()
        assert b" 503 " in read_all(connection)
    assert running.ended()
    assert "Traceback" not in capfd.readouterr().err


class Reading(Running):
    """Its application waits for more of a body."""

    told_last = ""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        self.begun.set()
        while self.told_last != "http.disconnect":
            self.told_last = (await receive())["type"]


def test_a_body_that_outlasts_the_stop_is_one_that_does_not_come() -> None:
    """It was an exception in the log before, as if the application had failed."""
    running = Reading(shutdown_timeout=0.1)
    with running.connect("/ HTTP/1.1\r\nContent-Length: 100\r\nX: ") as connection:
        assert running.begun.wait(30)
        running.server.stop()
        assert b'"code":"unavailable"' in read_all(connection)
    assert running.ended()
    assert running.told_last == "http.disconnect"


def test_a_server_that_is_told_twice_to_stop_waits_for_nobody(run: Callable[..., Running]) -> None:
    running = run(shutdown_timeout=3600)
    with running.connect("/slow") as connection:
        assert running.begun.wait(30)
        running.server.stop()
        wait_until(lambda: running.told)
        running.server.stop()
        assert not read_all(connection).endswith(b"done")
    running.go.set()
    assert running.ended()


def test_a_server_that_has_stopped_may_be_told_again(run: Callable[..., Running]) -> None:
    running = run()
    running.server.stop()
    assert running.ended()
    running.server.stop()


def test_the_date_of_answers_goes_on_while_the_server_waits(run: Callable[..., Running]) -> None:
    running = run()
    first = httpx.get(running.url).headers["date"]
    wait_until(lambda: httpx.get(running.url).headers["date"] != first)


# ── What other libraries do not promise ───────────────────────────────────────────────────────────────────────────────


def python(script: str) -> subprocess.CompletedProcess:
    """What a program of its own says that runs beside the tracker's files."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60)


def test_everything_that_is_used_beyond_promises_is_there() -> None:
    assert libraries.missing(libraries.NEEDED) == libraries.missing(libraries.SHORT_WAY) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("del protocols.HttpToolsProtocol.shutdown", "HttpToolsProtocol has no shutdown"),
        ("del protocols.RequestResponseCycle", "no attribute 'RequestResponseCycle'"),
        ("sys.modules[protocols.__name__] = None", "httptools_impl"),
    ],
)
def test_a_library_without_what_is_needed_is_refused_in_one_line(change: str, named: str) -> None:
    done = python(f"""
        import sys
        import uvicorn.protocols.http.httptools_impl as protocols
        {change}
        try:
            import libraries
        except ImportError as error:
            print(error)
    """)
    assert done.stdout.startswith("This tracker cannot use uvicorn "), done.stderr
    assert done.stdout.count("\n") == 1
    assert named in done.stdout


def test_without_the_short_way_answers_are_the_same(
    make_site: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    monkeypatch.setattr(server, "write_at_once", None)
    monkeypatch.setattr(libraries, "HAS_SHORT_WAY", False)
    answer = site.guest.get("/worker/stats")
    assert (answer.status_code, answer.json()["ok"]) == (200, True)


def test_a_body_in_small_pieces_takes_no_more_room_than_it_is_long() -> None:
    """Strangers send them so: a list of such pieces takes twenty times the room, which no limit counts."""
    coming = iter([b"ab"] * 200_000)

    async def receive() -> dict[str, Any]:
        piece = next(coming, b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    incoming = server.Incoming({"type": "http", "client": ("127.0.0.1", 1), "headers": []}, receive)
    tracemalloc.start()
    try:
        body = asyncio.run(incoming.read_body(2**20))
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body) == 4 * 400_000
    finally:
        tracemalloc.stop()


HOSTS = ["203.0.113.1"] * 3 + ["203.0.113.2", "2001:db8:1:1::/64", "2001:db8:1:2::/64"]  # the last two are one site


def test_large_bodies_are_read_one_at_a_time_and_in_turns_by_address() -> None:
    read: list[str] = []
    at_once, most = 0, 0

    def decode(body: bytes, whose: str) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        read.append(whose)
        at_once -= 1

    async def main() -> None:
        aside = server.Aside()
        large = [aside.decoded(host, bytes(2**17), decode, host) for host in HOSTS]
        await asyncio.gather(*large)
        aside.close()

    asyncio.run(main())
    assert most == 1
    assert [HOSTS.index(whose) for whose in read] == [0, 0, 3, 4, 0, 5]


def test_large_bodies_that_wait_to_be_read_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ARRIVING", Shares(300_000))

    async def main() -> None:
        aside, go_on = server.Aside(), threading.Event()

        def read(host: str) -> asyncio.Future:
            return asyncio.ensure_future(aside.decoded(host, bytes(2**17), lambda body: go_on.wait(30)))

        first, second, third = (read(HOSTS[0]) for _ in range(3))
        with pytest.raises(TrackerError, match="max_arriving"):
            await third
        other = read(HOSTS[3])
        with pytest.raises(TrackerError, match="max_arriving"):  # whoever holds most makes room
            await first
        go_on.set()
        assert await asyncio.gather(second, other) == [True, True]
        assert server.ARRIVING.used == 0
        aside.close()

    asyncio.run(main())


class Body(bytearray):
    """One of which can be told whether somebody has it."""


def test_a_body_that_nobody_wants_any_more_waits_for_no_thread() -> None:
    go_on = threading.Event()

    async def main() -> None:
        aside = server.Aside()

        def read() -> tuple[weakref.ref, asyncio.Task]:
            body = Body(2**17)
            coming = aside.decoded(HOSTS[0], body, lambda body: go_on.wait(30))
            return weakref.ref(body), asyncio.create_task(coming)

        reads = [read() for _ in range(3)]
        for _, reading in reads:
            await asyncio.sleep(0.01)
            reading.cancel()
        await asyncio.gather(*(reading for _, reading in reads), return_exceptions=True)
        bodies = [body for body, _ in reads]
        del reads, reading
        await asyncio.sleep(0)  # lets go of what came of those
        gc.collect()
        assert [body() is None for body in bodies] == [False, True, True]
        go_on.set()
        assert await aside.done(HOSTS[0], int) == 0
        aside.close()

    asyncio.run(main())


def test_a_body_waits_for_the_files_of_no_crowd() -> None:
    """Each of forty files may take its fifty milliseconds hundreds of times; a bulk submit comes after one of them."""
    done: list[str] = []

    async def main() -> None:
        aside = server.Aside()
        files = [aside.read(f"198.51.100.{number}", done.append, "file") for number in range(20)]
        async with asyncio.TaskGroup() as group:
            for one in (*files, aside.done("203.0.113.1", done.append, "body")):
                group.create_task(one)
        aside.close()

    asyncio.run(main())
    assert "body" in done[:3] and len(done) == 21


def test_whoever_holds_nothing_yet_is_let_in_while_one_alone_holds_more_than_all_may() -> None:
    shares = Shares(10)
    large, new = Holding("203.0.113.1", lambda: None), Holding("203.0.113.2", lambda: None)
    assert not shares.hold(large, 11)
    assert shares.hold(new, 0) and not large.lost
    assert shares.hold(new, 1) and large.lost


async def read_whole(call: server.Incoming) -> None:
    await call.read_body(1000)


async def read_into_a_file(call: server.Incoming) -> None:
    async with call.spooled(1000):
        """It never comes in whole."""


def test_a_body_for_a_file_comes_through_where_a_crowd_holds_nearly_all_that_may_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of the crowd holds less than a block of the file, which was broken off for having most."""
    monkeypatch.setattr(server, "ARRIVING", Shares(10**6))
    for number in range(16):
        server.ARRIVING.hold(Holding(f"203.0.113.{number}", lambda: None), 50_000)
    content, size = bytes(2**20), 2**14
    parts = [content[at : at + size] for at in range(0, len(content), size)]

    async def receive() -> dict:
        return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

    async def main() -> None:
        async with server.Incoming({"client": (HOSTS[3], 1), "headers": []}, receive).spooled(10_000) as file:
            assert file.read() == content

    asyncio.run(main())


@pytest.mark.parametrize(("shares", "read"), [("ARRIVING", read_whole), ("SPOOLED", read_into_a_file)])
def test_a_body_that_another_server_brings_makes_room_though_nothing_more_comes_of_it(
    monkeypatch: pytest.MonkeyPatch, shares: str, read: Callable
) -> None:
    monkeypatch.setattr(server, shares, Shares(300_000))

    async def main() -> None:
        begun: list[str] = []

        def sent_from(host: str, size: int) -> asyncio.Task:
            parts = [{"type": "http.request", "body": bytes(size), "more_body": True}]

            async def receive() -> dict:
                if not parts:
                    begun.append(host)
                    await asyncio.sleep(3600)
                return parts.pop()

            return asyncio.create_task(read(server.Incoming({"client": (host, 1), "headers": []}, receive)))

        first = sent_from(HOSTS[0], 200_000)
        await asyncio.to_thread(wait_until, lambda: begun)
        second = sent_from(HOSTS[3], 150_000)
        async with asyncio.timeout(20):
            with pytest.raises(TrackerError, match=f"max_{shares.lower()}"):
                await first
        assert getattr(server, shares).used == 150_000 and not second.done()
        second.cancel()

    asyncio.run(main())
