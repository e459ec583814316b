"""Events to webhooks: they arrive, their answers come back, and no URL makes the tracker talk to the inside."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h11
import httpcore
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import tracker
import webhooks
from webhooks import Refused, TimedOut, Unreachable
from webhooks import send as put

LOOPBACK = ("127.0.0.0/8", "::1/128")
EVERYWHERE = ("0.0.0.0/0", "::/0")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nthanks"
PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:4700:4700::1111"
UNTIL_DONE = 60.0  # seconds: for events that are answered, however busy the machine is

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Respond = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine, on each of the event loops that the tracker runs on."""
    loop_factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        yield runner.run


class Hook:
    """A webhook that listens on this machine, notes what it is sent and answers."""

    def __init__(self, respond: bytes | Respond):
        self.respond = respond
        self.port = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            self.requests.append(head + await reader.readexactly(length))
            if isinstance(self.respond, bytes):
                writer.write(self.respond)
            else:
                await self.respond(writer)
        writer.close()

    @property
    def headers(self) -> list[str]:
        """The header lines of the only request, in small letters."""
        (request,) = self.requests
        return request.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")[1:]


@contextlib.asynccontextmanager
async def hooked(respond: bytes | Respond = OK, **options: Any) -> AsyncIterator[Hook]:
    hook = Hook(respond)
    where = options if "sock" in options else {"host": "127.0.0.1", "port": 0, **options}
    server = await asyncio.start_server(hook.serve, **where)
    hook.port = server.sockets[0].getsockname()[1]
    try:
        yield hook
    finally:
        server.close()


@contextlib.contextmanager
def listening(family: int = socket.AF_INET) -> Iterator[socket.socket]:
    """A socket that takes connections and never says a word."""
    with socket.socket(family) as listener:
        try:
            listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        listener.setblocking(False)
        yield listener


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def nobody_came(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


class Names:
    """A resolver: its first answer, then its second, and the last for ever."""

    def __init__(self, *answers: Sequence[str]):
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Closed(httpcore.AsyncNetworkBackend):
    """A network in which every connection is refused; notes where they went."""

    def __init__(self) -> None:
        self.connected: list[str] = []
        self.limits: list[float | None] = []

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        self.connected.append(host)
        self.limits.append(timeout)
        raise httpcore.ConnectError


# ── Events that arrive ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_is_put_as_json_and_what_was_answered_comes_back(run: Run) -> None:
    async def send() -> None:
        async with hooked(b"HTTP/1.1 201 Created\r\nContent-Length: 6\r\n\r\nthanks") as hook:
            answer = await put(
                f"HTTP://127.0.0.1:{hook.port}/a;b/%0d%0a?c=d#e", b'{"x": 1}', LOOPBACK, timeout=UNTIL_DONE
            )
            assert answer == (201, "thanks")
            assert hook.requests[0].startswith(b"PUT /a;b/%0d%0a?c=d HTTP/1.1\r\n")
            assert hook.requests[0].endswith(b'\r\n\r\n{"x": 1}')
            assert f"host: 127.0.0.1:{hook.port}" in hook.headers
            assert "content-type: application/json" in hook.headers

    run(send())


def test_an_event_to_an_ipv6_address_names_it_in_brackets(run: Run) -> None:
    async def send(listener: socket.socket) -> None:
        async with hooked(sock=listener) as hook:
            answer = await put(f"http://[::1]:{hook.port}", b"{}", LOOPBACK, timeout=UNTIL_DONE)
            assert answer == (200, "thanks")
            assert f"host: [::1]:{hook.port}" in hook.headers

    with listening(socket.AF_INET6) as listener:
        run(send(listener))


@pytest.mark.parametrize("status", [204, 304, 599])
def test_an_answer_of_any_final_status_is_an_answer(run: Run, status: int) -> None:
    async def send() -> None:
        async with hooked(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status) as hook:
            assert await put(f"http://127.0.0.1:{hook.port}", b"{}", LOOPBACK, timeout=UNTIL_DONE) == (status, "")

    run(send())


def test_text_that_is_not_utf_8_is_replaced(run: Run) -> None:
    async def send() -> None:
        async with hooked(b"HTTP/1.1 200 OK\r\n\r\nna\xefve \xe2\x82\xac") as hook:
            answer = await put(f"http://127.0.0.1:{hook.port}", b"{}", LOOPBACK, timeout=UNTIL_DONE)
            assert answer.text == "na\ufffdve €"

    run(send())


def test_of_an_endless_answer_the_beginning_is_kept_and_the_connection_closed(run: Run) -> None:
    closed = asyncio.Event()

    async def talk_until_hung_up(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"4\r\nword\r\n" * 1000)
                await writer.drain()
        closed.set()

    async def send() -> None:
        async with hooked(talk_until_hung_up) as hook:
            answer = await put(f"http://127.0.0.1:{hook.port}", b"{}", LOOPBACK, timeout=UNTIL_DONE)
            assert answer == (200, "word" * (2**16 // 4))
            await closed.wait()

    run(send())


def test_interim_answers_without_end_are_given_up_and_meanwhile_others_have_their_turn(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = most = 0
    next_event = h11.Connection.next_event

    def counted(connection: h11.Connection) -> Any:
        nonlocal events, most
        events += 1
        most = max(most, events)
        return next_event(connection)

    async def others() -> None:
        nonlocal events
        while True:
            events = 0
            await asyncio.sleep(0)

    async def flood(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
                await writer.drain()

    async def send() -> None:
        task = asyncio.create_task(others())
        async with hooked(flood) as hook:
            with pytest.raises(webhooks.Unreachable, match="It sends too much"):
                await put(f"http://127.0.0.1:{hook.port}", b"{}", LOOPBACK, timeout=UNTIL_DONE)
        task.cancel()

    monkeypatch.setattr(h11.Connection, "next_event", counted)
    run(send())
    assert 0 < most < 200


def test_events_carry_no_cookies_and_take_no_proxy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(proxy: socket.socket) -> None:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port_of(proxy)}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{port_of(proxy)}")
        async with hooked(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n") as hook:
            for _ in range(2):
                await put(f"http://127.0.0.1:{hook.port}", b"{}", LOOPBACK, timeout=UNTIL_DONE)
            assert len(hook.requests) == 2
            assert b"cookie" not in hook.requests[1].lower()
        assert nobody_came(proxy)

    with listening() as proxy:
        run(send(proxy))


# ── Inside ────────────────────────────────────────────────────────────────────────────────────────────────────────────

INSIDE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.10",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    f"::ffff:{PUBLIC}",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::10.0.0.1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]

# Each reaches a server on this machine's loopback addresses, if nothing keeps it from there.
SPELLINGS = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0x7f000001",
    "017700000001",
    "0177.0.0.01",
    "0",
    "0.0.0.0",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
]


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_resolves_to_the_inside_is_refused(address: str) -> None:
    network = Closed()
    with pytest.raises(Refused, match=r"hook\.test .*webhook_networks in tracker\.toml"):
        asyncio.run(put("http://hook.test/", b"{}", resolve=Names([address]), backend=network))
    assert network.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "100.128.0.1", "172.32.0.1", PUBLIC_6, "2a00:1450::1"])
def test_a_name_that_resolves_to_a_public_address_is_connected_to_exactly_there(address: str) -> None:
    network = Closed()
    with pytest.raises(Unreachable):
        asyncio.run(put("http://hook.test/", b"{}", resolve=Names([address]), backend=network))
    assert network.connected == [address]


@given(st.ip_addresses())
def test_no_public_address_hides_another_one(address: webhooks.Address) -> None:
    hidden = ("ipv4_mapped", "sixtofour", "teredo")
    suspicious = address.is_private or address.is_multicast or address.is_reserved or address.is_unspecified
    if suspicious or any(getattr(address, name, None) for name in hidden):
        assert not webhooks.is_public(address)


@pytest.mark.parametrize("host", SPELLINGS)
def test_however_this_machine_is_spelled_no_connection_arrives(run: Run, host: str) -> None:
    async def send(listener: socket.socket) -> None:
        with pytest.raises(Refused):
            await put(f"http://{host}:{port_of(listener)}/", b"{}", timeout=UNTIL_DONE)
        assert nobody_came(listener)

    with listening(socket.AF_INET6 if host.startswith("[") and "ffff" not in host else socket.AF_INET) as listener:
        run(send(listener))


@pytest.mark.skipif(sys.platform != "linux", reason="Not every system connects to all of these")
@pytest.mark.parametrize("host", SPELLINGS)
def test_each_of_those_spellings_would_arrive(host: str) -> None:
    async def send(listener: socket.socket) -> None:
        async with hooked(sock=listener) as hook:
            await put(f"http://{host}:{hook.port}/", b"{}", EVERYWHERE, timeout=UNTIL_DONE)
            assert len(hook.requests) == 1

    with listening(socket.AF_INET6 if host.startswith("[") and "ffff" not in host else socket.AF_INET) as listener:
        asyncio.run(send(listener))


@pytest.mark.parametrize("addresses", [(PUBLIC, "127.0.0.1"), ("127.0.0.1", PUBLIC), (PUBLIC, "::ffff:127.0.0.1")])
def test_a_name_that_is_both_outside_and_inside_is_refused(addresses: Sequence[str]) -> None:
    network = Closed()
    with pytest.raises(Refused):
        asyncio.run(put("http://hook.test/", b"{}", resolve=Names(addresses), backend=network))
    assert network.connected == []


def test_a_name_that_resolves_differently_the_second_time_is_resolved_once() -> None:
    network, names = Closed(), Names([PUBLIC], ["127.0.0.1"])
    with pytest.raises(Unreachable):
        asyncio.run(put("http://hook.test/", b"{}", resolve=names, backend=network))
    assert (names.asked, network.connected) == (["hook.test"], [PUBLIC])

    with pytest.raises(Refused):
        asyncio.run(put("http://hook.test/", b"{}", resolve=names, backend=network))
    assert network.connected == [PUBLIC]


def test_a_name_that_resolves_differently_the_second_time_does_not_lead_to_the_second_address(run: Run) -> None:
    async def send() -> None:
        async with hooked() as hook:
            # Both are this machine, and only the first is allowed.
            url, names = f"http://hook.test:{hook.port}/", Names(["127.0.0.1"], ["::ffff:127.0.0.1"])
            assert await put(url, b"first", LOOPBACK, UNTIL_DONE, resolve=names) == (200, "thanks")
            with pytest.raises(Refused):
                await put(url, b"second", LOOPBACK, UNTIL_DONE, resolve=names)
            assert [request.rpartition(b"\r\n")[2] for request in hook.requests] == [b"first"]

    run(send())


@pytest.mark.parametrize("status", [301, 308])
def test_a_redirect_is_an_answer_and_nobody_follows_it(run: Run, status: int) -> None:
    async def send(inside: socket.socket) -> None:
        where = b"http://127.0.0.1:%d/" % port_of(inside)
        head = b"HTTP/1.1 %d Elsewhere\r\nLocation: %s\r\nRefresh: 0; url=%s\r\n" % (status, where, where)
        async with hooked(head + b"Content-Length: 5\r\n\r\nthere") as hook:
            answer = await put(f"http://127.0.0.1:{hook.port}/", b"{}", LOOPBACK, timeout=UNTIL_DONE)
            assert answer == (status, "there")
        assert nobody_came(inside)

    with listening() as inside:
        run(send(inside))


def test_the_tracker_knows_its_own_machine() -> None:
    assert webhooks.is_own(ipaddress.ip_address("127.0.0.1"))
    assert not webhooks.is_own(ipaddress.ip_address(PUBLIC))


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EMFILE])
def test_a_machine_that_lacks_a_socket_for_an_address_reaches_nobody_there_and_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lack(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    class Backend(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> Any:
            raise httpcore.ConnectError(os.strerror(number))

    async def send() -> None:
        with monkeypatch.context() as without:
            without.setattr(webhooks.socket, "socket", lack)
            with pytest.raises(Unreachable, match=os.strerror(number)):
                await put(f"http://[{PUBLIC_6}]/", b"{}", resolve=Names([PUBLIC_6]), backend=Backend())

    run(send())


def test_a_public_address_of_the_trackers_own_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "is_own", lambda address: str(address) == PUBLIC)
    network = Closed()
    with pytest.raises(Refused, match="own machine"):
        asyncio.run(put("http://hook.test/", b"{}", resolve=Names([PUBLIC]), backend=network))
    with pytest.raises(Unreachable):
        asyncio.run(put("http://hook.test/", b"{}", [PUBLIC], resolve=Names([PUBLIC]), backend=network))
    assert network.connected == [PUBLIC]


# ── Networks that are allowed ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("address", "network"), [("10.1.2.3", "10.1.2.0/24"), ("10.1.2.3", "10.1.2.3"), ("fd00::1", "fd00::/64")]
)
def test_an_address_in_an_allowed_network_is_connected_to(address: str, network: str) -> None:
    places = Closed()
    with pytest.raises(Unreachable):
        asyncio.run(put("http://hook.test/", b"{}", [network], resolve=Names([address]), backend=places))
    assert places.connected == [address]


@pytest.mark.parametrize("address", ["10.1.3.1", "127.0.0.1", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "::10.1.2.3"])
def test_an_allowed_network_allows_nothing_beside_it_nor_other_forms_of_its_addresses(address: str) -> None:
    places = Closed()
    with pytest.raises(Refused):
        asyncio.run(put("http://hook.test/", b"{}", ["10.1.2.0/24"], resolve=Names([address]), backend=places))
    assert places.connected == []


@pytest.mark.parametrize("entry", ["", "localhost", "10.1.2.3/24", "10.0.0.0/33", "10.1.2", "10.1.2.0-10.1.2.9"])
def test_a_network_that_is_none_is_named_before_the_tracker_starts(entry: str) -> None:
    with pytest.raises(tracker.TrackerError, match="webhook_networks") as error:
        webhooks.read_networks(["10.1.2.0/24", entry])
    assert error.value.code == "start"
    assert repr(entry) in error.value.message


# ── URLs that cannot be used ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with http"),
        ("mywebhook", "must begin with http"),
        ("//hook.test/", "must begin with http"),
        ("ftp://hook.test/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("gopher://hook.test/", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"),
        ("http:", "no host name"),
        ("http://", "no host name"),
        ("http:///path", "no host name"),
        ("http:hook.test", "no host name"),
        ("http://:80/", "no host name"),
        ("http://user@hook.test/", "user name"),
        ("http://user:password@hook.test/", "user name"),
        ("http://hook.test:80@127.0.0.1/", "user name"),
        ("http://@hook.test/", "user name"),
        ("http://hook.test:0/", "port 0"),
        ("http://hook.test:65536/", "no URL"),
        ("http://hook.test:http/", "no URL"),
        ("http://hook.test:80:80/", "no URL"),
        ("http://::1/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://[::1]hook.test/", "no "),
        ("http://[hook.test]/", "no "),
        ("http://[fe80::1%eth0]/", "no IPv6 address"),
        ("http://[fe80::1%25eth0]/", "no IPv6 address"),
        ("http://127.0.0.1%2f/", "no host name"),
        ("http://hook..test/", "no host name"),
        ("http://.hook.test/", "no host name"),
        ("http://hook,test/", "no host name"),
        (f"http://{'a' * 64}.test/", "no host name"),
        (f"http://{'a.' * 130}test/", "no host name"),
        ("http://hook.test/\r\nX-Header: value", r"contains '\\r'"),
        ("http://hook.test\r\nX-Header: value/", r"contains '\\r'"),
        ("http://hook.test/\tx", r"contains '\\t'"),
        ("http://hook.test/\0", r"contains '\\x00'"),
        (" http://hook.test/", "contains ' '"),
        ("http://hook.test/a b", "contains ' '"),
        ("http://hook.test\\@127.0.0.1/", "contains"),
        ("http://h\u00f6ok.test/", "xn--"),
        ("http://hook.test/\u20ac", "%XX"),
        ("http://127\u30020.0.1/", "xn--"),
        ("http://\uff11\uff12\uff17.0.0.1/", "xn--"),
        ("http://hook.test/\ud800", "contains"),
        (f"http://hook.test/{'a' * 5000}", "longer than 4096"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_the_problem_named(url: str, problem: str) -> None:
    network, names = Closed(), Names([PUBLIC])
    with pytest.raises(Refused, match=problem):
        asyncio.run(put(url, b"{}", EVERYWHERE, resolve=names, backend=network))
    assert (names.asked, network.connected) == ([], [])


# ── Webhooks that are slow, refusing, absent, or something else ───────────────────────────────────────────────────────


async def say_nothing(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def drip_interim_answers(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("respond", [say_nothing, drip, drip_interim_answers])
def test_a_slow_answer_times_out_also_while_it_goes_on(run: Run, respond: Respond) -> None:
    async def send() -> None:
        async with hooked(respond) as hook:
            with pytest.raises(TimedOut, match=r"127\.0\.0\.1 did not answer within 0\.2 s"):
                await put(f"http://127.0.0.1:{hook.port}/", b"{}", LOOPBACK, timeout=0.2)

    run(send())


@pytest.mark.parametrize(("scheme", "size"), [("http", 2**25), ("https", 2)])
def test_a_webhook_that_reads_nothing_times_out(run: Run, scheme: str, size: int) -> None:
    with listening() as listener, pytest.raises(TimedOut):
        run(put(f"{scheme}://127.0.0.1:{port_of(listener)}/", b"x" * size, LOOPBACK, timeout=0.2))


def test_a_slow_name_times_out(run: Run) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TimedOut):
        run(put("http://hook.test/", b"{}", timeout=0.05, resolve=resolve))


def test_a_slow_connection_times_out(run: Run) -> None:
    class Far(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> Any:
            await asyncio.Event().wait()

    with pytest.raises(TimedOut):
        run(put("http://hook.test/", b"{}", timeout=0.05, resolve=Names([PUBLIC]), backend=Far()))


def test_all_addresses_of_a_name_are_tried_each_with_its_share_of_the_time() -> None:
    network = Closed()
    with pytest.raises(Unreachable):
        asyncio.run(put("http://hook.test/", b"{}", timeout=3, resolve=Names([PUBLIC_6, PUBLIC]), backend=network))
    assert (network.connected, network.limits) == ([PUBLIC_6, PUBLIC], [1.5, 1.5])


def test_of_a_name_with_very_many_addresses_few_are_tried() -> None:
    network, many = Closed(), [f"93.184.216.{number}" for number in range(1, 200)]
    with pytest.raises(Unreachable):
        asyncio.run(put("http://hook.test/", b"{}", resolve=Names(many), backend=network))
    assert network.connected == many[: webhooks.ATTEMPTS]


def test_a_webhook_that_refuses_connections_is_unreachable(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1 cannot be reached: .*refused"):
            run(put(f"http://127.0.0.1:{port_of(taken)}/", b"{}", LOOPBACK, timeout=UNTIL_DONE))


def test_the_second_address_serves_when_the_first_refuses(run: Run) -> None:
    async def send() -> None:
        async with hooked() as hook:
            names = Names(["::1", "127.0.0.1"])
            url = f"http://hook.test:{hook.port}/"
            assert await put(url, b"{}", LOOPBACK, UNTIL_DONE, resolve=names) == (200, "thanks")

    run(send())


def test_a_name_that_does_not_exist_is_unreachable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(Unreachable, match=r"hook\.test cannot be found: Name or service not known"):
            run(put("http://hook.test/", b"{}", timeout=UNTIL_DONE))


def test_a_name_without_addresses_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"hook\.test has no address"):
        asyncio.run(put("http://hook.test/", b"{}", resolve=Names([])))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nless",
        b"HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**18,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_answer_counts_as_unreachable(run: Run, answer: bytes) -> None:
    async def send() -> None:
        async with hooked(answer) as hook:
            with pytest.raises(Unreachable, match=r"127\.0\.0\.1 cannot be reached: \w"):
                await put(f"http://127.0.0.1:{hook.port}/", b"{}", LOOPBACK, timeout=UNTIL_DONE)

    run(send())


def test_why_it_is_unreachable_quotes_little_of_what_came(run: Run) -> None:
    async def send() -> None:
        async with hooked(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 60_000 + b"\r\n") as hook:
            with pytest.raises(Unreachable, match="illegal chunk header") as caught:
                await put(f"http://127.0.0.1:{hook.port}/", b"{}", LOOPBACK, timeout=UNTIL_DONE)
        assert len(str(caught.value)) < 300

    run(send())


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system trusts the authority."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    webhooks.tls_context.cache_clear()
    yield
    webhooks.tls_context.cache_clear()


def certified(authority: trustme.CA, name: str, asked: list[str | None]) -> ssl.SSLContext:
    """A server's context with a certificate for a name; notes the names that it is asked for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda connection, asked_for, context: asked.append(asked_for)
    return context


def test_tls_is_verified_by_the_name_and_not_by_the_address(run: Run, authority: trustme.CA, trusted: None) -> None:
    async def send() -> None:
        asked: list[str | None] = []
        async with hooked(ssl=certified(authority, "hook.test", asked)) as hook:
            url, names = f"https://hook.test:{hook.port}/", Names(["127.0.0.1"])
            assert await put(url, b"{}", LOOPBACK, UNTIL_DONE, resolve=names) == (200, "thanks")
            assert asked == ["hook.test"]

    run(send())


def test_a_certificate_for_another_name_makes_a_webhook_unreachable(
    run: Run, authority: trustme.CA, trusted: None
) -> None:
    async def send() -> None:
        async with hooked(ssl=certified(authority, "other.test", [])) as hook:
            url, names = f"https://hook.test:{hook.port}/", Names(["127.0.0.1"])
            with pytest.raises(Unreachable, match="certificate is not valid: Hostname mismatch"):
                await put(url, b"{}", LOOPBACK, UNTIL_DONE, resolve=names)
            assert hook.requests == []

    run(send())


def test_a_certificate_of_an_unknown_authority_makes_a_webhook_unreachable(run: Run, authority: trustme.CA) -> None:
    async def send() -> None:
        async with hooked(ssl=certified(authority, "hook.test", [])) as hook:
            url, names = f"https://hook.test:{hook.port}/", Names(["127.0.0.1"])
            with pytest.raises(Unreachable, match="certificate is not valid"):
                await put(url, b"{}", LOOPBACK, UNTIL_DONE, resolve=names)
            assert hook.requests == []

    run(send())


def test_https_to_what_speaks_no_tls_is_unreachable(run: Run) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    async def send() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        with pytest.raises(Unreachable, match="TLS failed"):
            await put(f"https://127.0.0.1:{port_of(server.sockets[0])}/", b"{}", LOOPBACK, timeout=UNTIL_DONE)
        server.close()

    run(send())


async def break_tls(writer: asyncio.StreamWriter) -> None:
    """Sends a record that nobody has encrypted, beside the TLS of which it seems to be a part."""
    plain = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
    with plain:
        plain.send(b"\x17\x03\x03\x00\x20" + bytes(32))


def test_tls_that_breaks_after_its_beginning_is_unreachable(run: Run, authority: trustme.CA, trusted: None) -> None:
    async def send() -> None:
        async with hooked(break_tls, ssl=certified(authority, "hook.test", [])) as hook:
            url, names = f"https://hook.test:{hook.port}/", Names(["127.0.0.1"])
            with pytest.raises(Unreachable, match="TLS failed"):
                await put(url, b"{}", LOOPBACK, UNTIL_DONE, resolve=names)

    run(send())


# ── Names that hang ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_that_hang_hold_up_only_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    release, looked_up = threading.Event(), []

    def hang(host: str, *args: Any, **options: Any) -> Any:
        looked_up.append(host)
        release.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]

    async def send() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        hosts = [f"http://hook{number}.test/" for number in range(2 * webhooks.LOOKUPS)]
        ends = await asyncio.gather(*(put(url, b"{}", timeout=0.3) for url in hosts), return_exceptions=True)
        assert {type(end) for end in ends} == {TimedOut}
        assert await asyncio.to_thread(lambda: "a password") == "a password"
        release.set()
        with pytest.raises(Refused):
            await put("http://last.test/", b"{}", timeout=UNTIL_DONE)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", hang)
        try:
            run(send())
        finally:
            release.set()
    # Nobody waited any more for the second half of the names.
    assert looked_up[-1] == "last.test"
    assert len(looked_up) <= webhooks.LOOKUPS + 1


def test_names_of_strangers_that_hang_hold_up_no_name_of_those_who_are_trusted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, all_hang = threading.Event(), threading.Semaphore(0)

    def hang(host: str, *args: Any, **options: Any) -> Any:
        if host != "known.test":
            all_hang.release()
            release.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]

    async def send() -> None:
        hosts = [f"http://hook{number}.test/" for number in range(webhooks.LOOKUPS)]
        strangers = [asyncio.ensure_future(put(url, b"{}", timeout=UNTIL_DONE)) for url in hosts]
        try:
            await asyncio.to_thread(lambda: [all_hang.acquire() for _ in hosts])
            with pytest.raises(Refused):
                await put("http://known.test/", b"{}", timeout=UNTIL_DONE, trusted=True)
        finally:
            release.set()
            await asyncio.gather(*strangers, return_exceptions=True)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", hang)
        run(send())


def test_names_of_a_domain_that_hang_hold_up_no_other_stranger_s_for_long(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many names whoever has the domain makes up, once one of them has taken too long."""
    release, hang_now = threading.Event(), threading.Semaphore(0)

    def hang(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".hostile.test"):
            hang_now.release()
            release.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]

    async def send() -> None:
        hosts = [f"http://hook{number}.hostile.test/" for number in range(webhooks.LOOKUPS)]
        strangers = [asyncio.ensure_future(put(hosts[0], b"{}", timeout=UNTIL_DONE))]
        try:
            await asyncio.to_thread(hang_now.acquire)
            strangers += [asyncio.ensure_future(put(url, b"{}", timeout=UNTIL_DONE)) for url in hosts]
            await asyncio.to_thread(lambda: [hang_now.acquire() for _ in hosts[1:]])
            with pytest.raises(Refused):
                await put("http://hook.harmless.test/", b"{}", timeout=UNTIL_DONE)
        finally:
            release.set()
            await asyncio.gather(*strangers, return_exceptions=True)

    with monkeypatch.context() as patched:
        patched.setattr(webhooks, "SLOW_DOMAINS", slow := webhooks.SlowDomains())
        patched.setattr(slow, "LONG", 0.0)
        patched.setattr(socket, "getaddrinfo", hang)
        run(send())
        assert slow.has("another.HOSTILE.test.") and not slow.has("test")


def test_no_more_than_some_slow_domains_are_remembered_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = webhooks.SlowDomains()
    monkeypatch.setattr(slow, "LONG", 0.0)
    for number in range(slow.MOST + 10):
        with slow.timed(f"hook.domain{number}.test"):
            assert slow.has(f"other.domain{number}.test")
    assert len(slow.since) == slow.MOST and not slow.running
    assert slow.has(f"domain{slow.MOST + 9}.test") and not slow.has("domain1.test")


def test_a_name_that_hangs_does_not_keep_the_tracker_from_ending() -> None:
    program = """
import asyncio, socket, threading
import webhooks

socket.getaddrinfo = lambda *args, **options: threading.Event().wait()
try:
    asyncio.run(webhooks.send("http://hook.test/", b"{}", timeout=0.05))
except webhooks.TimedOut:
    print("timed out")
"""
    folder = Path(webhooks.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "timed out\n"
