"""What one connection, and all of them, may cost: framing, headers, answers that nobody reads, how many there are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import gzip
import json
import logging
import re
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Site, wait_until
from test_server import Running, read_all, run

import connections
import notices
import protocol
import server
import tracker
import turns
import webhooks
from shares import Shares
from waiting import Waiters

__all__ = ["run"]  # the fixture

HOME = Path(server.__file__).parent
GET = b"GET /account HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /worker/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def is_done(connection: socket.socket) -> bool:
    """Whether a server that is Running answers on this connection."""
    received = b""
    while not received.endswith(b"done") and (chunk := connection.recv(65536)):
        received += chunk
    return received.endswith(b"done")


def answers(connection: socket.socket) -> list[tuple[int, dict[str, str], Any]]:
    """All that is answered until the connection ends: statuses, headers and JSON."""
    received, found = read_all(connection), []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
        length = int(headers.get("content-length", 0))
        found.append((int(line.split()[1]), headers, json.loads(received[:length] or b"null")))
        received = received[length:]
    return found


def sent(site: Site, data: bytes) -> list[tuple[int, dict[str, str], Any]]:
    """What is answered to this and the end of the client's side."""
    with connect(site.url) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        return answers(connection)


def refused(status: int, code: str, field: str = "") -> Callable[[tuple], bool]:
    """Whether an answer is a whole refusal of the native API's form, and the last one on its connection."""

    def check(answer: tuple[int, dict[str, str], Any]) -> bool:
        assert answer[0] == status
        assert (
            answer[1].items()
            >= {
                "connection": "close",
                "content-type": "application/json",
                "x-content-type-options": "nosniff",
                "cache-control": "no-store",
            }.items()
        )
        assert (answer[2]["ok"], answer[2]["code"], answer[2].get("field", "")) == (False, code, field)
        return True

    return check


# ── Headers and trailers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/account", "/task/get/1"])
@pytest.mark.parametrize("length", [65_000, 66_000, 120_000])
def test_headers_are_bounded_at_the_limit_however_they_come(site: Site, path: str, length: int) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Filler: {'x' * length}\r\n\r\n".encode()
    [answer] = sent(site, head)
    assert refused(400, "invalid", "headers")(answer) if length > 65_536 else answer[0] in (200, 401)


def test_as_many_headers_as_nobody_needs_are_refused(site: Site) -> None:
    head = b"GET /account HTTP/1.1\r\n%b\r\n"
    assert sent(site, head % b"".join(b"h%d:\r\n" % number for number in range(250)))[0][0] == 200
    [answer] = sent(site, head % b"".join(b"h%d:\r\n" % number for number in range(300)))
    assert refused(400, "invalid", "headers")(answer)


@pytest.mark.parametrize("line", [b"X: %b\r\n" % (b"x" * 1000), b"x" * 1000, b"X: x\r\n" * 200])
def test_trailers_count_as_headers(site: Site, line: bytes) -> None:
    with connect(site.url) as connection:
        connection.sendall(CHUNKED + b"\r\n2\r\n{}\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1100):
                connection.sendall(line)
        assert refused(400, "invalid", "headers")(answers(connection)[0])


def test_headers_and_trailers_together_are_bounded_exactly(site: Site) -> None:
    filler = b"X-Filler: " + b"x" * 40_000 + b"\r\n"
    body = b"\r\n2\r\n{}\r\n0\r\n"
    assert sent(site, CHUNKED + body + filler + b"\r\n")[0][0] == 200
    assert sent(site, CHUNKED + filler + body + b"\r\n")[0][0] == 200
    assert refused(400, "invalid", "headers")(sent(site, CHUNKED + filler + body + filler + b"\r\n")[0])


def test_a_trailer_is_no_header(site: Site) -> None:
    worker = site.create_worker()
    credentials = f"X-Worker-ID: {worker.id}\r\nX-Secret: {worker.secret}\r\n\r\n".encode()
    head = b"POST /worker/update HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    body = b'\r\nf\r\n{"alias":"mine"}\r\n0\r\n'
    assert [status for status, *_ in sent(site, head + body + credentials)] != [200]


@pytest.mark.parametrize("chunk", [b"0" * 1000, b"1;" + b"x" * 1000, b"\r\n" * 500])
def test_what_leads_to_nothing_is_bounded(site: Site, chunk: bytes) -> None:
    """A chunk's length without end, its extension without end, empty lines in the place of a request."""
    with connect(site.url) as connection:
        with contextlib.suppress(ConnectionError):
            if chunk != b"\r\n" * 500:
                connection.sendall(CHUNKED + b"\r\n")
            for _ in range(1100):
                connection.sendall(chunk)
                chunk = chunk.removeprefix(b"1;")
        assert answers(connection)[0][0] == 400


@pytest.mark.parametrize("path", ["/account", "/task/get/1"])
def test_two_hosts_are_refused(site: Site, path: str) -> None:
    [answer] = sent(site, f"GET {path} HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n".encode())
    assert refused(400, "invalid", "Host")(answer)


def test_what_is_refused_is_answered_after_the_requests_before_it(site: Site) -> None:
    first, second, third = sent(site, GET * 2 + b"nonsense\r\n\r\n" + GET)
    assert first[0] == second[0] == 200
    assert refused(400, "invalid")(third)


def test_a_body_that_breaks_off_is_refused_after_the_requests_before_it(site: Site) -> None:
    first, second = sent(site, GET + CHUNKED + b"\r\nzz\r\n")
    assert first[0] == 200
    assert refused(400, "invalid")(second)


def test_a_body_that_breaks_off_while_its_request_waits_for_its_turn_is_refused(site: Site) -> None:
    begun, end = GET + CHUNKED + b"X-Pad: ", b"\r\n\r\n"
    padding = b"x" * (protocol.SMALL_PIECE - len(begun + end))  # so much is read at once
    first, second = sent(site, begun + padding + end + b"zz\r\n" * 50)
    assert first[0] == 200
    assert refused(400, "invalid")(second)


def test_an_upgrade_that_nobody_does_leaves_the_connection_as_it_is(site: Site) -> None:
    upgrade = b"GET /account HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert [status for status, *_ in sent(site, upgrade + GET + upgrade + GET)] == [200] * 4


def test_bad_requests_are_logged_once_in_a_while(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        sent(site, b"nonsense\r\n\r\n")
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1 and "no valid HTTP" in lines[0].getMessage()


# ── Framing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Wire(asyncio.Transport):
    """A connection without a network."""

    closing, reading = False, True

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def write_eof(self) -> None:
        """Nothing."""

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_protocol(self) -> Any:
        return self.protocol


HEAVY = {
    "chunks of one byte": CHUNKED + b"\r\n" + b"1\r\nx\r\n" * 40_000,
    "requests": b"GET / HTTP/1.1\r\n\r\n" * 14_000,
    "headers": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 16_000,
    "trailers": CHUNKED + b"\r\n0\r\n" + b"a:\r\n" * 16_000,
}


@pytest.mark.parametrize("what", HEAVY)
def test_what_is_much_work_for_its_length_is_read_in_small_pieces(what: str) -> None:
    """Counted are the parser's calls while others wait for the event loop."""
    calls = 0

    def counted(method: Callable) -> Callable:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return method(*args)

        return call

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        await asyncio.sleep(3600)

    async def feed() -> int:
        config = server.uvicorn_config(app, tracker.Settings())
        config.load()
        names = ("on_header", "on_body", "on_message_begin")
        watched = {name: counted(getattr(protocol.GuardedProtocol, name)) for name in names}
        kind = type("Watched", (protocol.GuardedProtocol,), watched)
        one = kind(config, server.uvicorn.server.ServerState(), {})
        wire = Wire()
        wire.protocol = one
        one.connection_made(wire)
        one.data_received(HEAVY[what])
        read_at_once = calls
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return read_at_once

    kept = turns.TURN
    try:
        turns.TURN = 0  # a turn is one piece
        assert asyncio.run(feed()) <= 600
    finally:
        turns.TURN = kept


def test_a_long_body_of_small_chunks_is_understood(site: Site) -> None:
    body = json.dumps({"alias": "x" * 150}).encode() + b" " * 20_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    created, after = sent(site, CHUNKED + b"\r\n" + chunks + GET)
    assert created[2]["content"]["worker"]["alias"] == "x" * 150
    assert after[0] == 200


def test_many_pipelined_requests_are_answered_in_their_order(site: Site) -> None:
    paths = [f"/nothing/{number}" for number in range(200)]
    data = b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\nX: {'x' * 50}\r\n\r\n".encode() for path in paths)
    assert [body["message"].removeprefix("There is nothing at ") for *_, body in sent(site, data)] == paths


def test_few_requests_are_read_ahead_of_their_answers(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, begin_next = [], protocol.GuardedProtocol.begin_next

    def noted(self: protocol.GuardedProtocol, until: float) -> bool:
        counts.append(len(self.pipeline))
        return begin_next(self, until)

    monkeypatch.setattr(protocol.GuardedProtocol, "begin_next", noted)
    with run().connect() as connection:
        connection.sendall(GET * 200)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).count(b"done") == 201
    assert max(counts) <= protocol.SMALL_PIECE // len(GET) + 2


def test_requests_that_wait_unread_count_as_pipelined_ones(run: Callable[..., Running]) -> None:
    with run().connect("/slow") as connection:
        connection.sendall(GET * 2 * protocol.MOST_PIPELINED)
        assert read_all(connection) == b""  # at once: nobody asks so much in advance


def test_what_waits_to_be_read_is_bounded_on_all_connections_together(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_UNREAD", 250_000)
    running = run()
    unread = running.server.config.crowd.unread
    long = GET.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * 20_000 + b"\r\n\r\n") * 5
    many = []
    for number in range(1, 4):
        many.append(running.connect("/slow"))
        assert running.begun.wait(30)
        running.begun.clear()
        many[-1].sendall(long)
        wait_until(lambda number=number: unread.used > 90_000 * number or unread.reached)
    assert 0 < unread.used < 250_000
    running.go.set()
    assert read_all(many[-1]).count(b" 503 ") == 1  # after what came before
    for connection in many:
        connection.close()
    wait_until(lambda: unread.used == 0)


@pytest.mark.parametrize(
    "asked",
    [
        [GET],
        [GET * 20],
        [b"GET /task/get/1 HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"GET /task/get/1 HTTP/1.1\r\nHost: x\r\nX-Worker-ID: 1\r\nX-Secret: x\r\n\r\n" * 5],
        [CHUNKED + b"\r\n4\r\n"],
        [b"nonsense\r\n\r\n"],
        [GET[:9]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("ends", [True, False])
def test_nothing_of_a_connection_stays_when_it_has_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch, asked: list[bytes], ends: bool
) -> None:
    """The garbage collector looks at what is old once in a long while: four thousand of them were 70 MB."""
    seen: list[weakref.ref] = []
    made = protocol.GuardedProtocol.connection_made

    def noted(self: protocol.GuardedProtocol, transport: Any) -> None:
        seen.append(weakref.ref(self))
        made(self, transport)

    monkeypatch.setattr(protocol.GuardedProtocol, "connection_made", noted)
    gc.disable()
    try:
        for _ in range(3):
            with connect(site.url) as connection:
                connection.sendall(asked[0])
                if ends:
                    connection.shutdown(socket.SHUT_WR)
                    read_all(connection)
        wait_until(lambda: len(seen) == 3 and not any(one() for one in seen))
    finally:
        gc.enable()


# ── Answered before the end ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_before_the_bodys_end_can_be_read_by_who_goes_on_sending_a_little(make_site: Callable) -> None:
    site = make_site(max_body=1)
    with connect(site.url) as connection:
        connection.sendall(CHUNKED + b"\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n" * 1 + b"400\r\n" + b" " * 1024)
        time.sleep(0.2)  # it is answered meanwhile
        for _ in range(8):
            connection.sendall(b" " * 65536)
        [answer] = answers(connection)
        assert refused(413, "too_large", "body")(answer)


def test_who_goes_on_sending_for_ever_after_a_refusal_is_cut_off(make_site: Callable) -> None:
    site, count = make_site(max_body=1), 0
    with connect(site.url) as connection:
        connection.sendall(CHUNKED + b"\r\n")
        with contextlib.suppress(ConnectionError):
            for count in range(2000):  # noqa: B007
                connection.sendall(b"8000\r\n" + b" " * 32768 + b"\r\n")
    assert count < 1000


def test_who_goes_on_sending_for_ever_can_read_the_refusal_first(
    make_site: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go's client looks whether it could send before it looks at what has come: a reset hid the answer from it."""
    monkeypatch.setattr(protocol, "LAST_WORDS", (10.0, 2**20))
    site = make_site(max_body=1)
    with connect(site.url) as connection:
        connection.sendall(CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: 1000000000") + b"\r\n")
        while select.select([], [connection], [], 1)[1]:  # until nothing more is taken in
            connection.send(b" " * 65536)
        [answer] = answers(connection)
        assert refused(413, "too_large", "body")(answer)


def test_a_short_body_that_nobody_reads_leaves_the_connection_as_it_is(site: Site) -> None:
    with connect(site.url) as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        received = b""
        while b"There is nothing" not in received:
            received += connection.recv(65536)
        connection.sendall(b" " * 1000 + GET)
        assert b"200 OK" in connection.recv(65536)


def test_a_request_that_comes_too_slowly_is_answered(make_site: Callable) -> None:
    site = make_site(request_timeout=0.5)
    heads = (
        b"GET /account HTTP/1.1\r\nHost",
        CHUNKED + b"\r\n2\r\n{",
        b"POST /task/submit HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    )
    for begun in heads:
        with connect(site.url) as connection:
            connection.sendall(begun)
            assert refused(408, "timeout", "request")(answers(connection)[0])


FORM = "Content-Type: multipart/form-data; boundary=b\r\n"


SIGNED = "X-Hub-Signature-256: sha256=x\r\n"


def begun_at(address: str, path: str = "/worker/create", more: str = "") -> bytes:
    """The beginning of a request that comes from there, through a proxy, and 64 KiB of its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    told = f"X-Forwarded-For: {address}\r\n" if address else ""
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' * (more == FORM)
    body = b"%x\r\n%b\r\n" % (len(part), part) * bool(part) + b"10000\r\n" + b"a" * 65536 + b"\r\n"
    return f"{head}{told}{more}\r\n".encode() + body


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> Shares:
    """What is held of bodies: 300 KB at the most."""
    monkeypatch.setattr(server, "bound_bodies", lambda settings: None)
    monkeypatch.setattr(server, "ARRIVING", Shares(300_000))
    return server.ARRIVING


def hold(site: Site, shares: Shares, addresses: list[str], *request: str) -> list[socket.socket]:
    """Connections from these addresses, each of which has begun to send a body."""
    held = []
    for address in addresses:
        held.append(connect(site.url))
        before = shares.used
        held[-1].sendall(begun_at(address, *request))
        wait_until(lambda before=before: shares.used == before + 65536)
    return held


def test_bodies_that_never_arrive_in_whole_are_bounded_in_memory(site: Site, arriving: Shares) -> None:
    held = hold(site, arriving, [""] * 4)
    with connect(site.url) as one_more:
        one_more.sendall(begun_at(""))
        answer = answers(one_more)[0]
        assert refused(503, "unavailable")(answer)
        assert "(max_arriving)" in answer[2]["message"]
    assert sent(site, CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n")[0][0] == 200
    for connection in held:
        connection.close()
    wait_until(lambda: arriving.used == 0)


def test_bulks_that_are_not_stored_yet_are_bounded_in_memory(
    site: Site, arriving: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, stage = threading.Event(), tracker.stage
    project = site.admin.create_project()
    worker = site.create_worker(project)

    async def wait(*args: Any) -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        await stage(*args)

    def submit(number: int) -> httpx.Response:
        return worker.bulk_submit([{"project": project, "recipe": f"{number} {n} {'x' * 300}"} for n in range(600)])

    monkeypatch.setattr(tracker, "stage", wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(submit, 1)
        wait_until(lambda: arriving.used > 180_000 and site.read("SELECT 1 FROM operation"))
        answer = submit(2)
        assert answer.status_code == 503 and "(max_arriving)" in answer.json()["message"]
        go_on.set()
        assert first.result().json()["content"]["submitted"] == 600
    assert arriving.used == 0
    assert submit(2).json()["content"]["submitted"] == 600


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (("/worker/create",), "application/json"),
        (("/git/receivehook", SIGNED), "application/json"),
        (("/log/info", "X-Worker-ID: 1\r\nX-Secret: x\r\n"), "application/json"),
        (("/ui/login",), "text/html"),
        (("/v1/job",), "application/json"),
        (("/tracker/token",), "application/json"),
        (("/api/jobs/trigger",), "text/plain"),
        (("/api/jobs/trigger", FORM), "text/plain"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_an_address_whose_bodies_never_arrive_makes_room_for_others(
    make_site: Callable[..., Site], arriving: Shares, request_: tuple[str, ...], kind: str
) -> None:
    site = make_site(testflinger_anonymous="always")
    many = [f"2001:db8:7:{number}::1" for number in range(4)]
    held = hold(site, arriving, many, *request_)
    with connect(site.url) as other:
        other.sendall(begun_at("203.0.113.9"))
        head = held[0].recv(65536)
        assert b" 503 " in head and f"content-type: {kind}".encode() in head.lower()
        assert b"\r\nretry-after: 1\r\n" in head.lower()
        wait_until(lambda: arriving.used == 4 * 65536)  # all that it has begun has come
        other.sendall(b"0\r\n\r\n")
        assert b"400 Bad Request" in other.recv(65536)  # all of it has come, and it is no JSON
    with connect(site.url) as again:
        again.sendall(begun_at(many[0], "/git/receivehook", SIGNED))
        wait_until(lambda: arriving.used == 4 * 65536)
        again.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
        assert refused(503, "unavailable")(answers(again)[0])  # of an address that holds most none is let in
    for connection in held:
        connection.close()
    wait_until(lambda: arriving.used == 0)


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /task/submit HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %b\r\nContent-Length: 65000\r\n\r\n"
        + b" " * 62_000,
        b"GET / HTTP/1.1\r\nX-Forwarded-For: %b\r\nX: " + b"x" * 62_000,
    ],
    ids=["a direct call", "headers"],
)
def test_what_is_held_before_an_application_sees_it_is_counted(arriving: Shares, site: Site, begun: bytes) -> None:
    many = []
    for number in range(4):
        many.append(connect(site.url))
        many[-1].sendall(begun % b"2001:db8:7:%d::1" % number)
        wait_until(lambda number=number: arriving.used >= 62_000 * (number + 1))
    with connect(site.url) as other:
        other.sendall(begun % b"203.0.113.9")
        if begun.startswith(b"POST"):  # by headers that have not come in whole nobody can be told from others
            wait_until(lambda: b" 503 " in many[0].recv(65536))
        else:
            assert refused(503, "unavailable")(answers(other)[0])
    for one in many:
        one.close()
    wait_until(lambda: arriving.used == 0)


def test_what_is_packed_counts_as_what_it_unpacks_to(site: Site, arriving: Shares) -> None:
    packed = gzip.compress(b"a" * 290_000)[:-8]
    with connect(site.url) as one, connect(site.url) as other:
        head = b"X-Forwarded-For: 203.0.113.9\r\nContent-Encoding: gzip\r\n" + SIGNED.encode()
        hook = CHUNKED.replace(b"/worker/create", b"/git/receivehook")
        one.sendall(hook + head + b"\r\n%x\r\n%b\r\n" % (len(packed), packed))
        wait_until(lambda: arriving.used > 280_000)
        other.sendall(begun_at("203.0.113.8"))
        assert b"503 Service Unavailable" in one.recv(65536)


def test_the_file_of_a_form_is_not_in_memory(site: Site, arriving: Shares) -> None:
    field = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n'
    session = site.admin.http.cookies["tt"]
    project = site.admin.create_project()
    with connect(site.url) as one:
        path = f"POST /ui/projects/{project}/submit/lines HTTP/1.1\r\nHost: x\r\nCookie: tt={session}\r\n"
        body = field % (b"lines", b"") + b"a" * 1000 + b"\r\n" + field % (b"file", b'; filename="f"') + b"b" * 290_000
        one.sendall(f"{path}{FORM}Content-Length: 1000000\r\n\r\n".encode() + body)
        wait_until(lambda: arriving.used == 1000)


def test_the_bodies_of_one_address_are_all_let_in_while_there_is_room(site: Site, arriving: Shares) -> None:
    held = hold(site, arriving, ["203.0.113.9"] * 4)
    for connection in held:
        connection.sendall(b"0\r\n\r\n")
        assert b"400 Bad Request" in connection.recv(65536)
        connection.close()


WORKER_HEADERS = "X-Worker-ID", "X-Secret"


def test_bodies_in_temporary_files_are_bounded_together(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SPOOLED", Shares(300_000))
    project = site.admin.create_project()
    worker = site.create_worker(project)
    headers = b"".join(b"%s: %s\r\n" % (name.encode(), worker.http.headers[name].encode()) for name in WORKER_HEADERS)
    head = b"POST /task/submit_lines/%d HTTP/1.1\r\nHost: x\r\n%s" % (project, headers)
    begun = head + b"Transfer-Encoding: chunked\r\n\r\n10000\r\n" + b"x" * 65536 + b"\r\n"
    held = [connect(site.url) for _ in range(4)]
    for number, connection in enumerate(held, 1):
        connection.sendall(begun)
        wait_until(lambda number=number: server.SPOOLED.used == number * 65536)
    with connect(site.url) as one_more:
        one_more.sendall(begun)
        assert refused(503, "unavailable")(answers(one_more)[0])
    assert sent(site, head + b"Content-Length: 2\r\n\r\nx\n")[0][0] == 200
    for connection in held:
        connection.close()
    wait_until(lambda: server.SPOOLED.used == 0)


# ── Answers that nobody reads ─────────────────────────────────────────────────────────────────────────────────────────


class Talking(Running):
    """A server whose answers are long: in one piece, or in many."""

    LENGTH, PIECES = 2**20, 20

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        length = self.LENGTH * self.PIECES
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]})
        if scope["path"] == "/whole":
            return await send({"type": "http.response.body", "body": bytes(length)})
        for left in reversed(range(self.PIECES)):
            await send({"type": "http.response.body", "body": bytes(self.LENGTH), "more_body": left > 0})


@pytest.fixture
def talk() -> Iterator[Callable[..., Talking]]:
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Talking:
            running = Talking(**settings)
            for last in running.thread.join, running.server.stop, running.server.stop:
                stack.callback(last)
            return running

        yield start


@pytest.mark.parametrize("path", ["/whole", "/pieces"])
def test_a_client_that_does_not_read_its_answer_is_cut_off(talk: Callable[..., Talking], path: str) -> None:
    running = talk(request_timeout=0.5)
    with running.connect(path):
        wait_until(lambda: running.server.server_state.connections)
        wait_until(lambda: not running.server.server_state.connections)


@pytest.mark.parametrize("path", ["/whole", "/pieces"])
def test_a_client_that_reads_slowly_but_steadily_gets_all_of_its_answer(
    talk: Callable[..., Talking], path: str
) -> None:
    running = talk(request_timeout=1)
    with running.connect(path) as connection:
        connection.settimeout(30)
        began, size = time.monotonic(), 0
        while chunk := connection.recv(2**18):
            size += len(chunk)
            if time.monotonic() - began < 4:
                time.sleep(0.1)
            if size >= Talking.LENGTH * Talking.PIECES:
                break
    assert size >= Talking.LENGTH * Talking.PIECES


def test_answers_that_nobody_reads_are_bounded_in_memory(talk: Callable[..., Talking]) -> None:
    running = talk()
    unread = [running.connect("/whole") for _ in range(20)]  # 400 MB
    open_ones = running.server.server_state.connections

    def bounded() -> bool:
        return sum(one.unsent_bytes() for one in list(open_ones)) <= connections.MOST_UNSENT and len(open_ones) < 10

    wait_until(bounded)
    with running.connect("/pieces") as reading:
        size = 0
        while size < Talking.LENGTH * Talking.PIECES and (chunk := reading.recv(2**18)):
            size += len(chunk)
    assert size >= Talking.LENGTH * Talking.PIECES
    for one in unread:
        one.close()


class Reader:
    """A connection that has so much of its answer to take in, and has taken in something at a time."""

    def __init__(self, host: str, size: int, since: float):
        self.client, self.size, self.unsent, self.cut = (host, 1), size, connections.Unsent(), False
        self.unsent.since = since

    def unsent_bytes(self) -> int:
        return self.size

    def abort(self) -> None:
        self.cut = True


def test_an_address_that_leaves_most_answers_unread_is_cut_off_first() -> None:
    crowd = connections.Crowd(100, turns.Turns(), lambda client: client[0])
    part = connections.MOST_UNSENT // 64
    many = [Reader("203.0.113.9", 3 * part, float(number)) for number in range(1, 21)]
    other = Reader("203.0.113.8", 8 * part, 0.0)
    for one in other, *many:
        crowd.note_unsent(one)
    assert [one.cut for one in (other, *many)] == [False, True, True, *[False] * 18]


def test_a_client_that_asks_and_never_reads_is_cut_off(make_site: Callable) -> None:
    site = make_site(request_timeout=0.5)
    with connect(site.url) as connection:
        connection.settimeout(15)
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


# ── How many there are ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_connection_that_has_been_idle_longest_makes_room(run: Callable[..., Running]) -> None:
    running = run(max_connections=3)
    first, second, third = (running.connect() for _ in range(3))
    again = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for one in first, second, third:
        assert is_done(one)
    for one in second, third, first:
        time.sleep(0.01)  # the loop's clock counts milliseconds
        one.sendall(again)
        assert is_done(one)
    with running.connect() as new:
        assert is_done(new)
    assert second.recv(65536) == b""
    for one in first, third:
        one.sendall(again)
        assert is_done(one)
    for one in first, second, third:
        one.close()


def test_an_idle_connection_is_left_to_its_client_to_close(run: Callable[..., Running]) -> None:
    """Go and Caddy send no POST again that met a closed connection: they keep idle ones for 90 and 120 seconds."""
    running, looked = run(), threading.Event()
    with running.connect() as connection:
        assert is_done(connection)
        [ours] = running.server.server_state.connections
        look = ours.close_if_slow
        ours.close_if_slow = lambda *args: (look(*args), looked.set())
        ours.idle -= 121
        looked.clear()
        assert looked.wait(60)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert is_done(connection)


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_who_has_asked_for_nothing_makes_room(run: Callable[..., Running], begun: bytes) -> None:
    running = run(max_connections=3)
    silent = [connect(running.url) for _ in range(3)]
    for one in silent:
        one.sendall(begun)
    wait_until(lambda: len(running.server.server_state.connections) == 3)
    time.sleep(0.1)
    with running.connect() as new:
        assert is_done(new)
    for one in silent:
        one.close()


def test_when_none_is_idle_a_new_connection_is_told_so(run: Callable[..., Running]) -> None:
    running = run(max_connections=2)
    busy = [running.connect("/slow") for _ in range(2)]
    wait_until(lambda: len(running.server.server_state.tasks) == 2)
    with running.connect() as new:
        [answer] = answers(new)
        assert refused(503, "unavailable")(answer)
        assert answer[1]["retry-after"] == "1"
    running.go.set()
    for one in busy:
        assert is_done(one)
        one.close()
    wait_until(lambda: not running.server.server_state.connections)
    with running.connect() as new:
        assert is_done(new)


def test_connections_that_are_turned_away_do_not_pile_up(run: Callable[..., Running]) -> None:
    running = run(max_connections=1)
    with running.connect("/slow"):
        assert running.begun.wait(30)
        silent = [connect(running.url) for _ in range(100)]
        wait_until(lambda: len(running.server.server_state.connections) <= 1 + connections.MOST_TURNED_AWAY)
        for one in silent:
            one.close()
        running.go.set()


def address_all(running: Running) -> Callable[[str, bytes], socket.socket]:
    """A function that connects from an address, as the server is to see it, and sends something."""
    addresses: dict[int, str] = {}
    running.server.config.crowd.whose = lambda client: addresses.get(client[1], "")
    host, port = running.url.removeprefix("http://").split(":")

    def come_from(address: str, data: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> socket.socket:
        one = socket.socket()
        one.settimeout(30)
        one.bind(("127.0.0.1", 0))
        addresses[one.getsockname()[1]] = address
        one.connect((host, int(port)))
        one.sendall(data)
        return one

    return come_from


def test_an_address_with_a_large_part_of_all_connections_makes_room_first(run: Callable[..., Running]) -> None:
    running = run(max_connections=8)
    come_from = address_all(running)
    idle = []
    for address in *(f"203.0.113.{number}" for number in range(3)), *["203.0.113.9"] * 5:
        idle.append(come_from(address))
        assert is_done(idle[-1])
        time.sleep(0.01)  # the loop's clock counts milliseconds
    others, many = idle[:3], idle[3:]
    new = [running.connect() for _ in range(3)]
    assert all(map(is_done, new))
    assert [read_all(one) for one in many[:3]] == [b""] * 3
    for one in *others, *many[3:], *new:
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert is_done(one)
        time.sleep(0.01)
    with running.connect() as one_more:  # none has more than a quarter any more: who has been idle longest
        assert is_done(one_more)
    assert read_all(others[0]) == b""
    for one in *others, *many, *new:
        one.close()


def test_an_address_that_comes_to_have_a_large_part_closes_few_of_others(run: Callable[..., Running]) -> None:
    running = run(max_connections=40)
    come_from = address_all(running)
    others = [come_from(f"203.0.113.{number}") for number in range(40)]
    assert all(map(is_done, others))
    many = []
    for _ in range(100):
        many.append(come_from("2001:db8:7::/48"))
        assert is_done(many[-1])
        time.sleep(0.002)  # all are looked at again
    open_ports = {one.client[1] for one in list(running.server.server_state.connections)}
    assert sum(one.getsockname()[1] in open_ports for one in others) >= 28
    for one in *others, *many:
        one.close()


def test_what_an_address_with_a_large_part_of_all_is_about_to_send_keeps_nobody_out(
    run: Callable[..., Running],
) -> None:
    running = run(max_connections=4)
    come_from = address_all(running)
    begun = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"
    many = []
    for number in range(4):
        many.append(come_from("203.0.113.9", begun))
        wait_until(lambda number=number: len(running.server.server_state.tasks) == number + 1)
        time.sleep(0.01)
    with running.connect() as new:
        assert is_done(new)
    assert refused(503, "unavailable")(answers(many[0])[0])
    running.go.set()
    for one in many:
        one.close()


def test_whose_a_connection_is() -> None:
    clients = server.Clients("192.0.2.0/24, 203.0.113.1")
    told = [(b"x-forwarded-for", b"198.51.100.1, 198.51.100.2")]
    whose = {host: clients.whose((host, 1)) for host in ("192.0.2.7", "127.0.0.1", "203.0.113.2", "2001:db8:7:8::1")}
    assert whose == {
        "192.0.2.7": "",
        "127.0.0.1": "",
        "203.0.113.2": "203.0.113.2",
        "2001:db8:7:8::1": "2001:db8:7::/48",
    }
    assert clients.whose(None) == ""
    assert clients.client_of(("192.0.2.7", 1), told) == ("198.51.100.2", 0)
    assert clients.client_of(("203.0.113.2", 1), told) == ("203.0.113.2", 1)


def test_what_else_takes_descriptors_has_its_own() -> None:
    sent = webhooks.AT_ONCE + 2 * notices.SENDERS  # events, notices, tests of receivers
    assert connections.MOST_TURNED_AWAY + sent + connections.LEAST_DESCRIPTORS <= connections.RESERVED_DESCRIPTORS


IDLE_CROWD = """
    import resource, socket, sys
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    sys.path.insert(0, "{home}")
    import tracker
    with tracker.serving(tracker.Settings(log_file="")) as url:
        sys.stdout.write(url + "\\n"); sys.stdout.flush()
        sys.stdin.readline()
"""


@pytest.mark.skipif(connections.resource is None, reason="needs a limit of open files")
def test_more_idle_connections_than_files_may_be_open_keep_nobody_out() -> None:
    script = "\n".join(line[4:] for line in IDLE_CROWD.format(home=HOME).split("\n"))
    running = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = running.stdout.readline().strip()
        idle = [connect(url) for _ in range(300)]
        for _ in range(10):
            with connect(url) as one:
                one.sendall(GET)
                assert b"200 OK" in one.recv(65536)
        for one in idle:
            one.close()
    finally:
        said = running.communicate("\n", timeout=60)[1]
    assert "the system's limit of open files" in said


def test_the_system_is_asked_for_as_many_open_files_as_there_may_be_connections() -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1000))
import connections
print(connections.room_for(500), connections.room_for(10_000), resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[0] == "500 904 (1000, 1000)", done.stderr


@pytest.mark.skipif(connections.resource is None, reason="needs a limit of open files")
@pytest.mark.parametrize(("soft", "hard", "serves"), [(12, 12, False), (31, 31, False), (12, 64, True), (32, 32, True)])
def test_a_tracker_that_may_open_too_few_files_says_so_in_one_line(
    tmp_path: Path, soft: int, hard: int, serves: bool
) -> None:
    command = f"ulimit -Sn {soft}; ulimit -Hn {hard}; exec {sys.executable} {HOME}/tracker.py --port 0 2>&1"
    with subprocess.Popen(["sh", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        line = running.stdout.readline()
        running.terminate()
        left = running.stdout.read()
    assert line.startswith(
        "Tracker listening" if serves else f"tracker: The system allows {hard} open files (ulimit -n)"
    )
    assert serves or (left, list(tmp_path.iterdir())) == ("", [])


def test_running_out_of_open_files_is_logged(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(number: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    run()
    monkeypatch.setattr(connections.os, "dup", none_left)
    wait_until(lambda: "too many open files" in caplog.text)


def test_a_client_that_goes_while_what_it_sent_waits_to_be_read_holds_up_nobody(site: Site) -> None:
    for _ in range(20):
        with connect(site.url) as connection:
            connection.sendall(CHUNKED + b"\r\n" + b"1\r\n \r\n" * 30_000)
    [answer] = sent(site, CHUNKED + b"\r\n" + b"1\r\n \r\n" * 5_000 + b"2\r\n{}\r\n0\r\n\r\n")
    assert answer[0] == 200


def test_a_fault_in_reading_ends_that_connection_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(protocol.GuardedProtocol, "next_piece", None)
        with connect(site.url) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(CHUNKED + b"\r\n" + b"1\r\n \r\n" * 5_000)
            assert connection.recv(1) == b""
    assert sent(site, CHUNKED + b"\r\n" + b"1\r\n \r\n" * 5_000 + b"2\r\n{}\r\n0\r\n\r\n")[0][0] == 200


# ── Waits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_beyond_the_limit_is_answered_at_once(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tracker.Waiters] = []
    monkeypatch.setattr(tracker, "Waiters", lambda most: made.append(Waiters(most)) or made[0])
    site = make_site(max_waits=2)
    project = site.admin.create_project()
    workers = [site.create_worker(project) for _ in range(3)]
    threads = [threading.Thread(target=one.assign, args=(project,), kwargs={"wait": 30}) for one in workers[:2]]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(made[0]) == 2)
    last = workers[2]
    began = time.monotonic()
    assert last.assign(project, wait=60).json()["ok"] is False
    assert time.monotonic() - began < 30
    for _ in threads:
        last.submit(project)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_waits_leave_room_for_other_connections() -> None:
    made = tracker.Tracker(tracker.Settings(max_connections=100, max_waits=5000))
    assert made.waiters.most == 75


def test_two_thousand_may_wait_as_delivered() -> None:
    assert tracker.Settings().max_waits >= 2000 <= tracker.Settings().max_connections * 3 // 4
    assert re.search("^max_waits = 5000$", (HOME / "tracker.toml").read_text("utf-8"), re.MULTILINE)
