"""How bytes come in: uvicorn with a guard around it, the reading of a request, listening, stopping.

    socket ─► GuardedProtocol (how slowly, how large, how much at once) ─► uvicorn ─► the application
                    │      connections.py: all of them together     write_at_once ◄─┘ a plain answer, in one write
                    │                                               Incoming: its headers, query and body
                    └─► Direct: a request that the application answers without ASGI

Nothing here knows what a task is, and nothing is imported from tracker.py: it is given an application, the settings of
a server, and what to do when it is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from urllib.parse import parse_qs

import msgspec
import uvicorn
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers as HeadersByName
from starlette.formparsers import MultiPartException, MultiPartParser
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

import libraries
import listening
from connections import Crowd
from errors import TrackerError, convert
from limits import Gauge, site_of, source_of
from protocol import Direct, GuardedProtocol, Headers, written
from shares import Holding, Shares
from turns import TURN, FairQueue, Turns

log = logging.getLogger("tracker")

# Seconds for which a connection is kept on which nothing goes on: longer than clients keep theirs (nginx 60, Go 90,
# Caddy 120). If we close it first, a request may be on its way that its client does not send again.
KEPT_IDLE = 150

MOST_COOKIES = 1000  # of one header that are looked at: browsers keep a few hundred of a site
MOST_OF_A_NAME = 16  # of those: cookies of one name differ in their paths


def plain_cycle(send: Callable) -> RequestResponseCycle | None:
    """uvicorn's cycle behind an ASGI `send`, if an answer may be written past it."""
    cycle = getattr(send, "__self__", None) if libraries.HAS_SHORT_WAY else None
    if type(cycle) is not RequestResponseCycle:
        return None
    return cycle if cycle.keep_alive and not cycle.access_log and cycle.scope["method"] != "HEAD" else None


async def write_at_once(
    cycle: RequestResponseCycle,
    status: int,
    common: bytes,
    headers: Headers,
    body: bytes,
    unread: Callable[[], None] | None = None,
) -> None:
    """Sends a plain answer with one write, as uvicorn's cycle does with two and a check of each header.

    Worth its reach into uvicorn: 9 to 17 % more requests per second at 32 connections (bench/run.py, three runs).
    `unread` is called if the client has gone, and does not read it.
    """
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if cycle.disconnected:
        return unread() if unread else None
    cycle.response_started = cycle.response_complete = True
    protocol = protocol_of(cycle.send)
    if protocol and protocol.ended:
        protocol.unread = unread
    # It closes if the server began to stop while the client was slow to take in what came before.
    closes = not cycle.keep_alive
    cycle.transport.write(written(status, common, headers, body, cycle.default_headers, closes))
    cycle.message_event.set()
    if closes:
        cycle.transport.close()
    cycle.on_response()


def cycle_of(channel: Callable) -> Any:
    """What an ASGI `receive` or `send` is of, in uvicorn a cycle."""
    return getattr(getattr(channel, "packed", channel), "__self__", None)


def protocol_of(channel: Callable) -> GuardedProtocol | None:
    """The protocol behind an ASGI `receive` or `send`, if it is ours."""
    cycle = cycle_of(channel)
    if not isinstance(cycle, RequestResponseCycle | Direct):
        return None
    protocol = cycle.transport.get_protocol()
    return protocol if isinstance(protocol, GuardedProtocol) else None


async def hand_out(answer: Callable, unread: Callable[[], Any], scope: dict, receive: Callable, send: Callable) -> None:
    """Sends an answer that gives its client something. `unread` is called if it has gone, where our server can tell."""
    cycle, protocol = cycle_of(receive), protocol_of(receive)  # a connection that is lost has none
    if getattr(cycle, "disconnected", False):
        unread()
    elif protocol is None:
        await answer(scope, receive, send)
    else:
        protocol.unread = unread if protocol.ended else None
        await answer(scope, receive, send)
        if not cycle.response_complete:
            protocol.unread = None
            unread()


class Clients:
    """Whose a request is where there is no ASGI: what a trusted proxy passes on is its client's, as uvicorn has it."""

    def __init__(self, trusted_proxies: str):
        self.middleware = ProxyHeadersMiddleware(self.nothing, trusted_proxies)
        self.whose_host = functools.lru_cache(maxsize=20_000)(self.find_whose)

    async def nothing(self, *_: Any) -> None:
        """The application behind the middleware."""

    def client_of(self, peer: tuple[str, int] | None, headers: Headers) -> tuple[str, int] | None:
        """The client's address and port, as a scope has it."""
        scope = {"type": "http", "scheme": "http", "client": peer, "headers": headers}
        with contextlib.suppress(StopIteration):
            self.middleware(scope, None, None).send(None)
        return scope["client"]

    def source_of(self, peer: tuple[str, int] | None, headers: Headers) -> str:
        """The address to which a call counts; empty for a program on this machine."""
        return source_of(self.client_of(peer, headers), headers)

    def whose(self, peer: tuple[str, int] | None) -> str:
        """To whom a connection counts, by address; empty for a trusted proxy, and for this machine."""
        return self.whose_host(peer[0]) if peer else ""

    def find_whose(self, host: str) -> str:
        """The same, of an address: a proxy is trusted if what it says of its client is believed."""
        peer = host, 0
        is_proxy = self.client_of(peer, [(b"x-forwarded-for", b"192.0.2.1")]) != peer
        return "" if is_proxy else site_of(source_of(peer, ()))


def keeps_coming(receive: Callable) -> None:
    """Tells GuardedProtocol that enough of a long body has arrived: its time begins anew."""
    protocol = protocol_of(receive)
    if protocol and protocol.began is not None:
        protocol.began = protocol.loop.time()


PACKED_EXTRA = 64  # bytes by which gzip may make a KiB longer, and a whole: else what is packed is as short as it was


class Unpacked:
    """An ASGI `receive` that unpacks what comes through another one, packed by gzip: each message has a piece of it.

    What takes longer than a moment goes on in turns: many small files of gzip's are work, and nearly nothing comes out.
    """

    PIECE = 2**18  # bytes that one message has at the most, however small they were packed
    PACKED = 2**11  # bytes that are looked at at once: a hundred files of nothing

    def __init__(self, packed: Callable, most: float):
        self.packed, self.rest, self.more = packed, b"", True
        self.member: Any = None  # what unpacks the present one of the files of which gzip's may consist
        self.turns: Turns | None = None  # in which it goes on
        self.came, self.most = 0, most  # bytes that were packed, and may be

    async def __call__(self) -> dict[str, Any]:
        """The next message. Refuses (invalid) what is no gzip, or is not complete."""
        piece, more = b"", True
        while more and not piece:
            if not self.rest:
                message = await self.packed()
                if message["type"] == "http.disconnect":
                    return message
                self.rest, self.more = message["body"], message.get("more_body", False)
                self.came += len(self.rest)
                if self.more and not self.rest:  # somebody has been woken
                    return message
            if self.came > self.most:
                raise TrackerError("too_large", f"more than {int(self.most) // 1024} KiB, packed", "body")
            piece = self.unpack(await self.turn())
            more = bool(self.rest) or self.more
        if not more and self.member is not None:
            raise TrackerError("invalid", "it is gzip, but ends too early", "body")
        return {"type": "http.request", "body": piece, "more_body": more}

    async def turn(self) -> float:
        """Lets others have theirs, but for the first piece, which most bodies are. Until when this one lasts."""
        if self.turns:
            return await self.turns()
        if protocol := protocol_of(self.packed):
            self.turns = protocol.turns
        await asyncio.sleep(0)
        return time.monotonic() + TURN

    def unpack(self, until: float) -> bytes:
        """The next piece of what has come, which may be empty; `rest` is what stays packed."""
        piece = bytearray()
        while self.rest and len(piece) < self.PIECE:
            packed, self.rest = self.rest[: self.PACKED], self.rest[self.PACKED :]
            self.rest = self.unpack_into(piece, packed) + self.rest
            if time.monotonic() > until:
                break
        return bytes(piece)

    def unpack_into(self, piece: bytearray, packed: bytes) -> bytes:
        """Unpacks until the piece is full. What stays packed."""
        try:
            while len(piece) < self.PIECE:
                packed = packed if self.member else packed.lstrip(b"\0")  # with which a file may be filled up
                if not packed:
                    break
                self.member = member = self.member or zlib.decompressobj(16 + zlib.MAX_WBITS)
                piece += member.decompress(packed, self.PIECE - len(piece))
                packed = member.unused_data if member.eof else member.unconsumed_tail
                self.member = None if member.eof else member
        except zlib.error as error:
            raise TrackerError(
                "invalid", f"it is said to be gzip, but is not, or is damaged: {error}", "body"
            ) from None
        return packed


# Of the process, which has one memory and one disk, however many trackers it serves.
MIB = 2**20
ARRIVING = Shares(256 * MIB)  # bytes of bodies that are held in memory while they arrive, or wait to be read
SPOOLED = Shares(1024 * MIB)  # bytes of bodies that are in temporary files


def bound_bodies(settings: Any) -> None:
    """From now on bodies hold so much at the most, as these settings of a tracker say."""
    ARRIVING.most, SPOOLED.most = settings.max_arriving * MIB, settings.max_spooled * MIB


def hold_file(holding: Holding, size: int) -> None:
    """A file has so much. Refuses (unavailable) who holds most, by address, when all of them together are too much."""
    if not SPOOLED.hold(holding, size) and (holding.lost or SPOOLED.used > size):
        raise too_much("max_spooled", SPOOLED)


SPOOL_BYTES = 2**18  # of a long body that are held in memory, and that must come within request_timeout
SMALL_BLOCK = 2**16  # bytes


def block_size(most: int) -> int:
    """Bytes of a file that are held until they are written: fewer while little more may arrive.

    Whoever holds most is broken off then, and that is no stranger of a crowd if each of them holds less than a block.
    """
    return min(most, SMALL_BLOCK) if ARRIVING.is_scarce() else most


def spool(file: tempfile.SpooledTemporaryFile, block: bytes, more: bool) -> None:
    """Writes a block. That of a body of which more comes is in memory no longer, as nobody counts it there."""
    if more:
        file.rollover()
    file.write(block)


class Incoming:
    """What comes in of one request: its headers, its query, and its body in whole, in a file or as a form."""

    __slots__ = ("arriving", "patience", "receive", "scope", "woken")

    def __init__(self, scope: dict, receive: Callable):
        self.scope, self.receive = scope, receive
        self.arriving: Holding | None = None  # what is held of a body of which more is to come
        self.woken, self.patience = False, None  # while it waits for a part, if another server brings it

    @property
    def source(self) -> str:
        """The address to which the call counts; empty for a program on this machine."""
        return source_of(self.scope.get("client"), self.scope["headers"])

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return value
        return None

    def cookies(self, name: str) -> Iterator[bytes]:
        """The cookies of that name. Ours are never quoted; the library's unquoting takes minutes over a hostile one."""
        wanted, found = name.encode() + b"=", 0
        for key, value in self.scope["headers"]:
            if key == b"cookie" and wanted in value:
                for cookie in map(bytes.strip, value.split(b";", MOST_COOKIES)[:MOST_COOKIES]):
                    if cookie.startswith(wanted):
                        yield cookie[len(wanted) :]
                        found += 1
                        if found == MOST_OF_A_NAME:
                            return

    def query(self) -> dict[str, list[str]]:
        """The query's parameters, each as often as it is given; 400 for what is none, or for more than 1000."""
        try:
            return parse_qs(self.scope["query_string"].decode(), max_num_fields=1000, errors="strict")
        except ValueError:
            raise TrackerError("invalid", "not a valid query string", "query") from None

    def query_as(self, kind: type, *several: str) -> Any:
        """The query's parameters as a struct; numbers are given as text there. `several` may be given repeatedly."""
        texts = {name: given if name in several else given[-1:] for name, given in self.query().items()}
        values = {name: given if name in several else given[0] for name, given in texts.items()}
        try:
            query = convert(values, kind, strict=False)
        except TrackerError as error:
            raise TrackerError("invalid", error.problem, error.field.partition("[")[0]) from None
        for name, value in msgspec.to_builtins(query).items():
            numbers = value if name in several else [value]
            if name in texts and type(numbers[0]) is int and set(map(str, numbers)) != set(texts[name]):
                raise TrackerError("invalid", "must be a whole number", name)  # msgspec reads 1e3 and 1.0 as well
        return query

    def unpack(self, limit: float) -> bool:
        """From now on the body comes as it was before it was packed (Content-Encoding: gzip). Whether it is.

        So every limit (in KiB) is one of what it unpacks to, and no more than that may come packed. Refuses
        (unsupported) any other packing.
        """
        if self.header(b"content-encoding") is None:
            return False
        named = b",".join(value for name, value in self.scope["headers"] if name == b"content-encoding").lower()
        encodings = [one for one in named.replace(b" ", b"").split(b",") if one not in (b"identity", b"")]
        if not encodings:
            return False
        if encodings not in ([b"gzip"], [b"x-gzip"]):
            said = named.decode("latin-1")[:100]
            raise TrackerError(
                "unsupported", f"{said} is not understood: gzip is, once, or nothing", "Content-Encoding"
            )
        self.receive = Unpacked(self.receive, 1024 * limit + PACKED_EXTRA * (1 + limit))
        return True

    async def read_body(self, limit: int) -> bytes:
        """The whole body. 413 as soon as it is known to exceed the limit (in KiB); 503 while too much is held."""
        self.refuse_longer(limit)
        body, more = bytearray(), True  # a list of parts takes many times the room where each is a few bytes
        try:
            while more:  # GuardedProtocol watches how long it takes: a timer for each would cost more than decoding
                part, more = await self.part(len(body), limit)
                if not body and not more:
                    return part
                body += part
                if more:
                    self.hold(len(body))
        finally:
            self.let_go()
        return bytes(body)

    def hold(self, size: int) -> None:
        """So much is held, and more to come. Refuses (unavailable) who holds most, by address, when it is too much."""
        if self.arriving is None:
            self.arriving = Holding(self.source, self.wake)
        if not ARRIVING.hold(self.arriving, size) and ARRIVING.used > size:  # one alone is as large as it may be
            raise too_much("max_arriving", ARRIVING)

    def let_go(self) -> None:
        """Nothing is held any more."""
        if self.arriving is not None:
            ARRIVING.leave(self.arriving)
            self.arriving = None  # it knows whom to wake: the two would be garbage in a cycle

    def wake(self) -> None:
        """Its body is to be held no more, even if nothing comes any more: `part` is to look."""
        cycle = cycle_of(self.receive)
        if isinstance(cycle, RequestResponseCycle):
            cycle.message_event.set()
        else:
            self.woken = True
            if self.patience:
                self.patience.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def spooled(self, limit: int) -> AsyncIterator[BinaryIO]:
        """The body as a file, which is gone afterwards. 413 as soon as it exceeds the limit (in KiB).

        However long it is, it may take its time as long as blocks keep coming: nobody holds it in memory. 503 for what
        is beyond `max_spooled` of all such files, unless it is the only one.
        """
        self.refuse_longer(limit)
        block, size, steady, more = bytearray(), 0, SPOOL_BYTES, True
        file_size = Holding(self.source, self.wake)
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as file:
            try:
                while more:
                    part, more = await self.part(size, limit)
                    block += part
                    size += len(part)
                    hold_file(file_size, size)
                    if size >= steady:
                        keeps_coming(self.receive)
                        steady = size + SPOOL_BYTES
                    if len(block) >= block_size(SPOOL_BYTES) or not more:
                        await asyncio.to_thread(spool, file, bytes(block), more)
                        block.clear()
                    if more:
                        self.hold(len(block))
                self.let_go()
                file.seek(0)
                yield file
            finally:
                self.let_go()
                SPOOLED.leave(file_size)

    def refuse_longer(self, limit: int) -> None:
        """413 for a body that is said to be longer than the limit (in KiB), before it comes."""
        if self.unpack(limit):
            return
        length = self.header(b"content-length") or b""
        if length.isdigit() and (len(length) > 15 or int(length) > 1024 * limit):
            raise TrackerError("too_large", f"more than {limit} KiB", "body")

    async def part(self, size: int, limit: float, what: str = "body") -> tuple[bytes, bool]:
        """What follows `size` bytes of the body, and whether more does. 413 beyond the limit (KiB), 408 at its loss."""
        ours = isinstance(cycle_of(self.receive), RequestResponseCycle)
        message = await (self.receive() if ours else self.receive_till_woken())
        if self.arriving and self.arriving.lost:
            raise too_much("max_arriving", ARRIVING)
        if message["type"] == "http.disconnect":
            raise TrackerError("timeout", "did not arrive", "body")
        if size + len(message["body"]) > 1024 * limit:
            raise TrackerError("too_large", f"more than {limit} KiB", what)
        return message["body"], message.get("more_body", False)

    async def receive_till_woken(self) -> dict[str, Any]:
        """What another server brings next, which nothing but a part wakes; an empty part when somebody has woken it."""
        try:
            if not self.woken:
                async with asyncio.timeout(None) as self.patience:
                    return await self.receive()
        except TimeoutError:
            if not self.woken:
                raise
        finally:
            self.patience = None
        self.woken = False
        return {"type": "http.request", "body": b"", "more_body": True}

    async def multipart(self, limit: int, what: str = "body", **limits: int) -> dict[str, list[Any]]:
        """The fields of a multipart form: texts and files. 413 as soon as it exceeds the limit (in KiB)."""
        size, file_size = 0, Holding(self.source, self.wake)
        self.unpack(limit)
        if len(self.header(b"content-type") or b"") > 1024:  # the library takes quadratic time to read it
            raise TrackerError("invalid", "its Content-Type is too long", "body")

        async def stream() -> AsyncIterator[bytes]:
            """The parts, counted."""
            nonlocal size
            more = True
            while more:
                part, more = await self.part(size, limit, what)
                size += len(part)
                hold_file(file_size, size)
                yield part
                if more:
                    self.hold(parser.text)

        parser = Form(HeadersByName(scope=self.scope), stream(), max_part_size=1024 * limit, **limits)
        try:
            form = await parser.parse()
        except (MultiPartException, FormParserError) as error:
            raise TrackerError("invalid", str(error), "body") from None
        finally:
            self.let_go()
            SPOOLED.leave(file_size)
        fields: dict[str, list[Any]] = {}
        for name, value in form.multi_items():  # to look each name up goes through all of them
            fields.setdefault(name, []).append(value)
        return fields

    async def gone(self) -> None:
        """Returns when the client has closed the connection, or its side of it."""
        protocol = protocol_of(self.receive)
        while not (protocol and protocol.ended) and (await self.receive())["type"] != "http.disconnect":
            pass


def too_much(setting: str, shares: Shares) -> TrackerError:
    """The refusal of a body that is held no longer, as others need the room."""
    problem = f"More than {shares.most // MIB} MiB are being sent at once ({setting}): please try again"
    return TrackerError("unavailable", problem, delay=1.0)


class Form(MultiPartParser):
    """A multipart form: `text` is how many bytes of it are in memory; those of files are not."""

    text = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        super().on_part_data(data, start, end)
        if getattr(getattr(self, "_current_part", None), "file", None) is None:
            self.text += end - start


@contextlib.asynccontextmanager
async def held(source: str, size: int) -> AsyncIterator[None]:
    """So much of a body that has arrived from this address is held meanwhile, in memory.

    Refuses (unavailable) who holds most, by address, when all of it is too much: the block is given up for that.
    """
    now = asyncio.get_running_loop().time
    holding = Holding(source, lambda: patience.reschedule(now()))
    try:
        async with asyncio.timeout(None) as patience:
            if not ARRIVING.hold(holding, size) and ARRIVING.used > size:
                raise too_much("max_arriving", ARRIVING)
            yield
    except TimeoutError:
        if not holding.lost:
            raise
        raise too_much("max_arriving", ARRIVING) from None
    finally:
        ARRIVING.leave(holding)


LARGE = 2**16  # bytes of a body whose decoding would hold up other requests


class Aside:
    """What would hold up the event loop is done beside it: one at a time, in turns by address.

    On several threads each would keep the interpreter from the loop for a moment, one after the other: eight forms at
    once made workers wait fifty times as long, and were not read any sooner. Every second turn is for bodies, if any
    wait: each is done in one turn, and a file takes hundreds.
    """

    BODY, FILE = FairQueue.KNOWN, FairQueue.OTHER

    def __init__(self) -> None:
        self.queue, self.pool = FairQueue(1), ThreadPoolExecutor(1, "aside")

    async def decoded(self, source: str, body: bytes, decode: Callable, *args: Any) -> Any:
        """What the function makes of a body that comes from this address. A small one does not wait."""
        if len(body) <= LARGE:
            return decode(body, *args)
        async with held(source, len(body)):
            return await self.done(source, decode, body, *args)

    async def done(self, source: str, function: Callable, *args: Any) -> Any:
        """What the function returns, which is called for somebody at this address."""
        return await self.queue.run(self.BODY, site_of(source), self.pool, function, *args)

    async def read(self, source: str, function: Callable, *args: Any) -> Any:
        """What the function returns, which reads on for a moment in a file that has come from this address."""
        return await self.queue.run(self.FILE, site_of(source), self.pool, function, *args)

    def close(self) -> None:
        """Does nothing more."""
        self.pool.shutdown(wait=False)


class Server(uvicorn.Server):
    """uvicorn's server, which waits for what is to happen; the original looks ten times a second whether it has.

    It says when it listens (`started`), at which `places`, and when it has been told to stop (`stopping`), before it
    waits for the requests in flight. Told to by a signal, it exits with status 0.
    """

    TICK = 1.0  # seconds: how old the date in an answer is at the most, and how late a slow client is cut off

    def gauges(self) -> dict[str, Callable[[], Gauge]]:
        """What is in memory for connections, by the setting that bounds it, or in words."""
        crowd = self.config.crowd
        return {
            "max_connections": crowd.gauge,
            "max_arriving": lambda: ARRIVING.gauge(in_bytes=True),
            "max_spooled": lambda: SPOOLED.gauge(in_bytes=True),
            "requests to be read": lambda: crowd.unread.gauge(in_bytes=True),
            "answers to be taken in": crowd.unsent_gauge,
        }

    def __init__(
        self,
        config: uvicorn.Config,
        request_timeout: float,
        started: Callable[[], None] = lambda: None,
        stopping: Callable[[], None] = lambda: None,
    ):
        super().__init__(config)
        self.request_timeout, self.say_started, self.say_stopping = request_timeout, started, stopping
        self.loop = asyncio.get_running_loop()
        self.stop_asked, self.stop_forced = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Tells the server to stop; told twice, it waits for nobody. May be called in any thread."""
        self.force_exit, self.should_exit = self.should_exit, True
        with contextlib.suppress(RuntimeError):  # its loop is closed: it has stopped
            self.loop.call_soon_threadsafe((self.stop_forced if self.force_exit else self.stop_asked).set)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A hangup, too, tells it to stop, as when its terminal closes; not who was started to outlive that (nohup)."""
        hangup = getattr(signal, "SIGHUP", None)
        with super().capture_signals():
            ours = hangup and signal.getsignal(hangup) == signal.SIG_DFL
            if ours := ours and threading.current_thread() is threading.main_thread():
                signal.signal(hangup, self.handle_exit)
            try:
                yield
            finally:
                if ours:
                    signal.signal(hangup, signal.SIG_IGN)  # it stops

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal tells it to stop. (The original one raises the signal again at the end.)"""
        self.stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.places = list(map(listening.url_of, sockets or ()))
        self.say_started()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0: a tick at which the date is set
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.TICK):
                    await self.stop_asked.wait()

    async def on_tick(self, counter: int) -> bool:
        now = self.loop.time()
        self.config.crowd.check_files()
        self.config.crowd.look(len(self.server_state.connections))
        for connection in list(self.server_state.connections):
            connection.close_if_slow(now, self.request_timeout, self.config.timeout_keep_alive)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes in nobody else, and lets the requests in flight finish: as long as they may, or until told twice."""
        self.say_stopping()
        for one in (*self.servers, *(sockets or ())):
            one.close()
        ends = [asyncio.create_task(wait()) for wait in (self.finish_requests, self.stop_forced.wait)]
        timeout = self.config.timeout_graceful_shutdown
        await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        unfinished = [task for task in self.server_state.tasks if not task.done()]
        for connection in list(self.server_state.connections):
            connection.cut_off()
        if unfinished:
            log.warning("The server stops: %d requests have not finished, and are cut off", len(unfinished))
            await asyncio.wait(unfinished, timeout=0.1)  # who waited for more of a body ends by itself
        for task in (*ends, *unfinished):
            task.cancel("The server stops")

    async def finish_requests(self) -> None:
        """Returns when no connection is open any more, and nobody works on a request."""
        while open_ones := [connection.close_when_idle() for connection in list(self.server_state.connections)]:
            await asyncio.wait(open_ones)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks)
        for server in self.servers:
            await server.wait_closed()


def uvicorn_config(app: Any, settings: Any) -> uvicorn.Config:
    """How uvicorn runs the tracker (and the benchmark's baseline), with these of the tracker's settings."""
    bound_bodies(settings)
    config = uvicorn.Config(
        app,
        host=next(iter(settings.hosts), ""),
        port=settings.port,
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_level="info" if settings.access_log else "warning",
        access_log=settings.access_log,
        root_path=settings.root_path,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=KEPT_IDLE,
        timeout_graceful_shutdown=settings.shutdown_timeout,
        server_header=False,
        backlog=2048,
    )
    config.clients, config.arriving = Clients(settings.trusted_proxies), ARRIVING
    proxies = f"{settings.trusted_proxies},127.0.0.1" if settings.trusted_proxies != "*" else "*"
    config.socket_clients, config.socket_app = Clients(proxies), ProxyHeadersMiddleware(app, proxies)
    turns = getattr(app, "turns", None) or Turns()
    config.crowd = Crowd(settings.max_connections, turns, config.clients.whose)
    return config


def run_loop(coroutine: Any) -> None:
    """Runs a coroutine on uvloop where there is one."""
    factory = uvicorn.Config(None, log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)
