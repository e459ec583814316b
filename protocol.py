"""How a request is read and answered: uvicorn's protocol with a guard around it, and the calls that need no ASGI.

    bytes ─► GuardedProtocol ─► uvicorn ─► the application
                    └─► Direct: a request that the application answers without ASGI

Nothing here knows what a task is, and nothing is imported from tracker.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

import libraries
import listening
from connections import STALLED, Crowd, Flow, Transport, Unsent
from errors import STATUS, TrackerError, encode
from shares import Holding

log = logging.getLogger("tracker")

MOST_HEADER_BYTES = 2**16  # of a request: its first line, its headers, and the trailers of its body
MOST_HEADERS = 256  # of a request
MOST_PIPELINED = 256  # requests that one connection may send ahead of their answers
PIECE = 2**11  # bytes that are read at once, however many requests, headers or chunks they are
SMALL_PIECE = 2**9  # bytes that are read at once where more has come than PIECE, and requests may be in it
MIDDLE_PIECE = 2**15  # bytes that are read at once if few chunks were in what came before
LARGE_PIECE = 2**17  # bytes that are read at once if few lines are in them
FEW_CHUNKS = 4
MOST_LINES = 64  # in what is read at once, beyond PIECE
SHORT_BODY = 2**16  # bytes of a body whose end is awaited after the answer, to keep the connection
LAST_WORDS = 1.0, 2**20  # seconds that a client has, answered before its end, to read that, and bytes that we hear out


Headers = Sequence[tuple[bytes, bytes]]


def fields(headers: Headers) -> bytes:
    """The headers as an answer has them."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


class Fields:
    """Headers that are the same in many answers, also as they are written."""

    def __init__(self, headers: Headers):
        self.headers, self.written = headers, fields(headers)


DATED = Fields(())  # the server's own headers: the date


def written(status: int, common: bytes, headers: Headers, body: bytes, server_headers: Headers, closes: bool) -> bytes:
    """A whole answer, byte for byte as uvicorn writes it. `common`: its first headers, as they are written."""
    if DATED.headers is not server_headers:  # as a rule once a second
        DATED.headers, DATED.written = server_headers, fields(server_headers)
    more = fields(headers) if headers else b""
    length = b"" if status == 204 else b"content-length: %d\r\n" % len(body)
    end = b"connection: close\r\n\r\n" if closes else b"\r\n"
    return b"".join((STATUS_LINE[status], DATED.written, common, more, length, end, body))


async def until_cut_off(cycle: RequestResponseCycle, app: Callable, *args: Any) -> None:
    """Runs the application for a request. One that a stop has cut off has its answer, and is no fault in the log."""
    try:
        await app(*args)
    except asyncio.CancelledError:
        if not cycle.disconnected:
            raise


def speaks_old(cycle: RequestResponseCycle) -> None:
    """Makes uvicorn's cycle answer a client of HTTP/1.0, who knows neither chunks nor interim answers.

    An answer of unknown length ends with the connection, which uvicorn closes after any answer to such a client; by
    itself it would send chunks, whose lengths the client takes for content.
    """
    endless = False

    async def send(message: dict[str, Any]) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            endless = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            cycle.chunked_encoding = False if endless else None
        elif endless:
            # What is expected is what comes, so uvicorn finds at the end that nothing is missing.
            cycle.expected_content_length = len(message.get("body", b""))
        await RequestResponseCycle.send(cycle, message)

    cycle.send, cycle.waiting_for_100_continue = send, False


def escaped(text: bytes) -> bytes:
    """The text with what is not ASCII in it as a URL spells it."""
    return re.sub(rb"[\x80-\xff]+", lambda some: b"%" + some[0].hex("%").upper().encode(), text)


NEED_ASGI = frozenset({b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"})
LONGEST_DIRECT_URL = 200  # bytes: the application may remember it
LONGEST_DIRECT = 2**16  # bytes of the body of a direct call, at most
FEW_HEADS = 4  # in what goes first and is longer than PIECE: as a rule one, of a batch
MOST_IN_VAIN = 4  # calls go first after one that has succeeded: a release that others have to verify, an empty queue


class NoEvent:
    """What uvicorn sets for a cycle that waits for nothing."""

    def set(self) -> None:
        """Nothing."""


NO_EVENT = NoEvent()


class Direct:
    """A request that the application answers without ASGI. To uvicorn it looks like a cycle.

    The protocol calls `begin` when its body is complete and those before it on the connection are answered; the
    application calls `answer`, then or later.
    """

    raw_body = b""
    body_complete = disconnected = response_complete = turn = False
    succeeded = True  # it has changed something, or the status says that it has not
    message_event: Any = NO_EVENT

    def __init__(self, protocol: GuardedProtocol, headers: dict[bytes, bytes], keep_alive: bool):
        self.protocol, self.transport, self.headers, self.keep_alive = protocol, protocol.transport, headers, keep_alive

    def begin(self) -> None:
        raise NotImplementedError

    def go_on(self) -> None:
        """Begins if nothing is missing any more, and the client has taken in what came before."""
        if not (self.turn and self.body_complete) or self.disconnected:
            return
        if self.protocol.flow.write_paused:
            self.protocol.held = self.go_on  # else a client that never reads would have its answers pile up here
        else:
            self.begin()

    async def receive(self) -> dict[str, Any]:
        """What ASGI tells an application that has read the body: nothing but that the client has gone."""
        if self.message_event is NO_EVENT:
            self.message_event = asyncio.Event()
        while not (self.disconnected or self.response_complete or self.protocol.ended):
            await self.message_event.wait()
        return {"type": "http.disconnect"}

    def answer(
        self, status: int, common: bytes, headers: Headers, body: bytes, unread: Callable[[], None] | None = None
    ) -> None:
        """Sends the answer, in one write. `unread` is called if the client has gone, and does not read it."""
        if self.disconnected or self.transport.is_closing():  # uvicorn tells the latest request alone that it is lost
            return unread() if unread else None
        self.response_complete = True
        protocol, closes = self.protocol, not self.keep_alive
        if status < 400 and self.succeeded:
            if protocol.known < MOST_IN_VAIN:
                protocol.turns.credit.give(protocol.address)
            protocol.known = MOST_IN_VAIN
        else:
            protocol.known = max(0, protocol.known - 1) if status < 400 else 0
        if protocol.ended:
            protocol.unread = unread
        server_headers = protocol.server_state.default_headers
        self.transport.write(written(status, common, headers, body, server_headers, closes))
        if closes:
            self.transport.close()
        protocol.on_response_complete()


def do_nothing() -> None:
    """What is called of a connection that has gone."""


class Refused(Exception):
    """What comes in is refused before the application sees it."""

    def __init__(self, error: TrackerError):
        super().__init__(str(error))
        self.error = error


TOO_LONG = TrackerError("invalid", f"more than {MOST_HEADER_BYTES // 1024} KiB", "headers")
TOO_MANY = TrackerError("invalid", f"more than {MOST_HEADERS}", "headers")
TWO_HOSTS = TrackerError("invalid", "is given more than once", "Host")
NO_HTTP = TrackerError("invalid", "This is no valid HTTP request")
TOO_SLOW = TrackerError("timeout", "did not arrive in time (request_timeout)", "request")
TOO_MUCH = TrackerError("unavailable", "Too much is being sent at once: please try again", delay=1.0)
CROWDED = TrackerError("unavailable", "There are as many connections as there may be: please try again", delay=1.0)

STOPS = TrackerError("unavailable", "The tracker is stopping: please try again", delay=1.0)


def refusal(error: TrackerError, head: bool = False) -> bytes:
    """A whole answer of the form that the native API's refusals have, and the last one on its connection.

    `head`: it answers HEAD, and has no body.
    """
    field = {"field": error.field} if error.field else {}
    delay = {} if error.delay is None else {"rate_limit_delay": error.delay}
    body = encode({"ok": False, "message": error.message, **delay, "code": error.code, **field})
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *([] if error.delay is None else [(b"retry-after", b"%d" % max(1, error.delay))]),
    ]
    answer = written(STATUS[error.code], b"", headers, body, DATED.headers, closes=True)
    return answer.removesuffix(body) if head else answer


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with a limit to how slowly a client may send and read, how long its headers may be, and
    how much it may make the parser do at once.

    A URL with UTF-8 in it is taken as curl and Go send it: as it is. The parser below refuses that. A client that has
    ended its side gets the answers to what it has sent. One that is answered before it has sent all is heard out for a
    moment before its connection is closed.
    """

    LINGER = (0.05, 1.0)  # seconds after which the machine of a client that had gone may have said so

    began: float | None = None  # when the client began to send what is still incomplete: the headers, then the body
    idle = 0.0  # since when nothing has been going on, if nothing is
    in_head = False  # a request has begun, and its headers are incomplete
    unused = 0  # bytes that have come since something came of some
    body_left = 0  # bytes of the body that are still to come, if its length is known
    keeps_alive: bool | None = None  # whether it goes on if a body, which may be long, ends before the answer begins
    at_request_line = True  # what comes next begins a request, or goes on with its first line
    chunks = 0  # of a body that were in the last piece
    rest, at, piece = b"", 0, PIECE  # what has come and is not read yet, from where on, and how much is read at once
    deaf: int | None = None  # bytes that have come, and were not read, since the last answer
    refusing: TrackerError | None = None  # what is answered after the requests before
    turned_away = False
    running: RequestResponseCycle | None = None  # the latest request that the application has been given
    queued = in_turn = False  # it waits for its turn, or has it
    begun = False  # in this turn, the application has been given something to do
    known = 0  # so many hot calls go first, as one has succeeded lately, here or (Credit) from the same address
    remembered: Any = None  # what the application wants to know again when the next request comes
    held: Callable[[], None] | None = None  # what begins when the client has taken in the answers before it
    ended = False  # the client has ended its side, and waits for answers
    unread: Callable[[], None] | None = None  # what is to be called when the last answer turns out to be read by nobody
    lost: asyncio.Future | None = None  # who stops the server waits for it
    unread_part: Holding | None = None  # what has come and is not read yet, if it is much
    part: Holding | None = None  # what is held of headers, or of a direct call's body, of which more is to come

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        self.access_log = config.access_log  # uvicorn asks whether somebody listens, as test tools do to all loggers
        able = libraries.HAS_SHORT_WAY and not self.access_log
        self.find_direct = getattr(config.app, "direct", None) if able else None
        self.longest_direct = getattr(config.app, "longest_direct", 0)
        self.hot_lines: tuple[bytes, ...] = getattr(config.app, "hot_lines", ())
        self.refusals: Counter[int] = getattr(config.app, "refusals", Counter())  # by status
        self.crowd: Crowd = config.crowd
        self.turns, self.arriving, self.clients = self.crowd.turns, config.arriving, config.clients

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(Transport(transport, self.end))
        if listening.in_file_system(transport.get_extra_info("socket")):
            self.app, self.clients = self.config.socket_app, self.config.socket_clients
            self.client, self.server = ("127.0.0.1", 0), ("localhost", 80)  # a proxy, or else a program on this machine
        elif self.client and self.client[0].startswith("::ffff:"):  # IPv4, where it listens for both
            self.client = self.client[0].removeprefix("::ffff:"), self.client[1]
        self.flow = Flow(self.transport, self.queue)
        self.unsent = Unsent()
        self.address = self.client[0] if self.client else ""
        self.began = self.loop.time()
        if len(self.connections) > self.crowd.most:
            self.crowd.let_in(self, self.connections, self.began)

    def connection_lost(self, exc: Exception | None) -> None:
        self.flow.held, self.transport.closing = False, True
        self.drop_rest()
        self.let_go()
        self.crowd.forget_unsent(self)
        if self.running and not self.running.response_complete:  # uvicorn tells the latest request, which may wait yet
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)
        if self.unread:
            self.unread()
            self.unread = None
        if self.lost and not self.lost.done():
            self.lost.set_result(None)
        self.let_go_of_all()

    def let_go_of_all(self) -> None:
        """Leaves nothing in circles, of which the garbage collector would take its time: it can be 100 KB."""
        self.pipeline.clear()
        self.headers, self.held, self.running, self.cycle = [], None, None, None
        self.transport.end = self.flow.more = do_nothing

    def eof_received(self) -> bool:
        """Whether the connection stays open: the client may wait for an answer all the same."""
        if self.began is not None or self.cycle is None or self.cycle.response_complete:
            return False
        self.ended = True
        self.cycle.message_event.set()
        return True

    # ── What comes in ─────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Reads it: at once what a known worker asks, and what sets nothing off; the rest when its turn has come."""
        if self.deaf is not None:
            self.deaf += len(data)
            if self.deaf > LAST_WORDS[1]:
                self.flow.pause_reading()  # a reset now may overtake the answer: Go's client looks at its write first
        elif self.flow.held:
            self.rest += data
            self.note_unread()
        elif ((self.known or self.cycle is None) and self.goes_first(data)) or (
            len(data) < self.body_left and not self.in_head
        ):
            self.read(data)
        else:
            self.rest, self.at = data, 0
            self.flow.hold()
            self.note_unread()
            self.queue()

    def goes_first(self, data: bytes) -> bool:
        """Whether it is a hot call, or the end of its body, over a known connection; a new one may be taken for one."""
        if not self.at_request_line:
            return self.known > 0 and isinstance(self.cycle, Direct) and len(data) <= max(PIECE, self.body_left)
        if not data.startswith(self.hot_lines) or (len(data) > PIECE and data.count(b"\r\n\r\n") > FEW_HEADS):
            return False
        if not self.known:
            self.known = self.turns.credit.take(self.address)
        return self.known > 0

    def queue(self) -> None:
        if not self.queued:
            self.queued = True
            self.turns.queue(self.take_turn)

    def take_turn(self, until: float) -> bool:
        """Reads on of what has come until then, or until uvicorn has enough; it goes on after others."""
        self.queued, self.in_turn, more = False, True, False
        try:
            more = self.read_on(until)
        except Exception:
            log.exception("What a client has sent cannot be read")
            self.abort()
        self.in_turn = False
        if more:
            self.queue()
        return False

    def read_on(self, until: float) -> bool:
        """Whether more has come than there was time for."""
        self.begun = False
        while self.at < len(self.rest) and self.deaf is None and self.parser:
            if self.flow.read_paused:
                self.check_pipelined()
                return False  # the flow says when it goes on
            size = self.next_piece()
            piece, self.at = self.rest[self.at : self.at + size], self.at + size
            self.read(piece)
            if self.begun or time.monotonic() > until:
                break
        if self.at < len(self.rest) and self.deaf is None and self.parser:
            return True
        self.drop_rest()
        self.flow.free()
        return False

    def note_unread(self) -> None:
        """What waits to be read counts, if it is much: whoever has most of it is refused when all have too much."""
        if len(self.rest) > PIECE:
            if self.unread_part is None:
                self.unread_part = Holding(self.crowd.whose(self.client), lambda: self.refuse(TOO_MUCH))
            if not self.crowd.unread.hold(self.unread_part, len(self.rest)):
                self.refuse(TOO_MUCH)

    def drop_rest(self) -> None:
        """All that has come is read, or will not be."""
        self.rest = b""
        if self.unread_part is not None:
            self.crowd.unread.leave(self.unread_part)
            self.unread_part = None

    def check_pipelined(self) -> None:
        """Closes a connection on which too many requests wait for their answers, read or not.

        uvicorn reads on after each answer, and would collect them for ever.
        """
        more = self.rest.count(b"\r\n\r\n", self.at) if len(self.rest) - self.at > PIECE else 0
        if len(self.pipeline) + more > MOST_PIPELINED:
            self.transport.inner.close()
            self.deaf = 0
            self.drop_rest()

    def next_piece(self) -> int:
        """How many bytes are read next: many of a body, fewer of what is many lines, and so much work."""
        if self.in_head or self.at_request_line:
            return SMALL_PIECE
        if self.body_left > 0:
            return self.body_left
        size, sure = min(4 * self.piece, LARGE_PIECE), PIECE
        if self.chunks <= FEW_CHUNKS:  # the lines in the last one were content
            sure = min(size, MIDDLE_PIECE)
        self.chunks = 0
        while size > sure and self.rest.count(b"\n", self.at, self.at + size) > MOST_LINES:
            size //= 4
        self.piece = size
        return size

    def read(self, data: bytes) -> None:
        """Has the parser read it. Refuses what is none, and headers that are too long."""
        if self.at_request_line and not data.isascii():
            line, *rest = data.partition(b"\n")
            data = b"".join((escaped(line), *rest))
        self.unused += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:  # which nobody does: the connection goes on as it is
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            cause = error.__context__
            return self.refuse(cause.error if isinstance(cause, Refused) else NO_HTTP)
        if self.in_head or self.body_left > 0 or self.part is not None:
            self.note_rest(data)
        if self.unused > MOST_HEADER_BYTES:
            self.refuse(TOO_LONG)

    def note_rest(self, data: bytes) -> None:
        """More is to come of a request, or was: what is held of it counts."""
        if self.in_head:
            self.at_request_line &= b"\n" not in data
            self.hold(self.unused, self.crowd.whose(self.client))
        else:
            self.let_go()
        if self.body_left > 0 and isinstance(self.cycle, Direct):
            self.hold(len(self.cycle.raw_body), None)

    def hold(self, size: int, whose: str | None) -> None:
        """So much is held of what has come, as more is to come, by this address; None: by that of the direct call."""
        if self.part is None:
            source = self.clients.source_of(self.client, self.headers) if whose is None else whose
            self.part = Holding(source, lambda: self.refuse(TOO_MUCH))
        if not self.arriving.hold(self.part, size) and self.arriving.used > size:
            self.refuse(TOO_MUCH)

    def let_go(self) -> None:
        """Nothing is held any more."""
        if self.part is not None:
            self.arriving.leave(self.part)
            self.part = None

    def check_headers(self, trailers: bool = False) -> None:
        """Refuses headers, with the trailers that have come, which are too long or too many."""
        if len(self.headers) > MOST_HEADERS:
            raise Refused(TOO_MANY)
        if trailers or self.unused > MOST_HEADER_BYTES:  # as a rule because the body's beginning came with them
            lengths = sum(len(name) + len(value) + 4 for name, value in self.headers)
            if len(self.url) + lengths > MOST_HEADER_BYTES:
                raise Refused(TOO_LONG)

    def on_message_begin(self) -> None:
        """The time of the headers begins."""
        self.url, self.headers = b"", []
        self.began = self.loop.time()
        self.in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))  # the parser takes off blanks before it alone

    def on_headers_complete(self) -> None:
        """The time of the body begins. Closes a connection on which too many requests wait for their answers."""
        self.began, self.at_request_line, self.body_left = self.loop.time(), False, 0
        if self.find_direct and (call := self.direct_call()):
            self.take_in(call)
        else:
            self.begin_asgi()
        self.in_head, self.unused = False, 0
        if len(self.pipeline) > MOST_PIPELINED:
            self.check_pipelined()

    def begin_asgi(self) -> None:
        """Has uvicorn do with a request, whose headers are here, what it does."""
        if self.turned_away:
            raise Refused(CROWDED)
        if not self.in_turn:
            self.known = 0  # it only looked like a hot call
        self.check_headers()
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise Refused(TWO_HOSTS)
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for header in headers:
            super().on_header(*header)
        super().on_headers_complete()
        self.set_off()
        self.headers = headers  # trailers are put into these, which the application does not see
        if libraries.HAS_SHORT_WAY and self.scope["http_version"] in ("1.0", "0.9"):
            speaks_old(self.cycle)
        named = dict(headers)
        length = named.get(b"content-length", b"")
        self.body_left = int(length) if length.isdigit() else 0
        if b"transfer-encoding" in named or self.body_left > SHORT_BODY or self.expect_100_continue:
            # Answered before its end, it may go on for ever: so that answer says that it is the last one.
            self.keeps_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def direct_call(self) -> Direct | None:
        """The request as a direct call, if it is one, and as plain as most."""
        if len(self.url) > LONGEST_DIRECT_URL:
            return None
        make = self.find_direct(self.parser.get_method(), self.url)
        if not make or self.parser.get_http_version() != "1.1":
            return None
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"0")
        if not NEED_ASGI.isdisjoint(headers) or len(length) > 6 or int(length) > self.longest_direct:
            return None
        if len(headers) != len(self.headers) or (self.unused > PIECE and self.check_headers()):
            return None  # one is given twice
        self.body_left = int(length)
        return make(self, headers, self.parser.should_keep_alive())

    def take_in(self, call: Direct) -> None:
        """Its turn is now, or after those that have come before it."""
        before, self.cycle = self.cycle, call
        if before is None or before.response_complete:
            call.turn = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((call, None))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Direct):
            cycle.turn = True
            cycle.go_on()
        elif self.flow.write_paused:  # else its answer, which may be long, would be made and wait as well
            self.held = functools.partial(self._start_asgi_task, cycle, app)
        else:
            self.running = cycle
            super()._start_asgi_task(cycle, functools.partial(until_cut_off, cycle, app))

    def on_body(self, body: bytes) -> None:
        self.unused = 0
        self.body_left -= len(body)
        if isinstance(self.cycle, Direct):
            self.cycle.raw_body += body
        else:
            self.chunks += 1
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, Direct):
            self.began, self.at_request_line, self.unused = None, True, 0
            self.cycle.body_complete = True
            self.cycle.go_on()
            return
        if self.keeps_alive is not None:
            self.check_headers(trailers=True)
            if not self.cycle.response_started:
                self.cycle.keep_alive = self.keeps_alive
            self.keeps_alive = None
        self.began, self.at_request_line, self.unused = None, True, 0
        super().on_message_complete()
        self.set_off()

    def set_off(self) -> None:
        """The application has something to do: nobody else's has, in this turn."""
        self.begun = True
        self.turns.begin()

    # ── What goes out ─────────────────────────────────────────────────────────────────────────────────────────────────

    def on_response_complete(self) -> None:
        """The next request has its turn. (uvicorn arms a timer here when there is none: Server looks now and then.)"""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if len(self.pipeline) < 2:  # else some would come for each that is answered, and each takes 4 KB
            self.flow.resume_reading()
        self.idle = self.loop.time()
        if self.pipeline:
            if self.known and isinstance(self.pipeline[-1][0], Direct):
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self.turns.queue(self.begin_next)
        elif self.refusing:
            self.answer_refusal()
        elif self.ended:
            self.linger(*(self.LINGER if self.unread else ()))
        elif self.began is not None and not self.in_head and self.cycle.response_complete:
            self.loop.call_later(LAST_WORDS[0], self.hear_out, self.cycle)

    def begin_next(self, until: float) -> bool:
        """The turn of a request that has waited for the answers to those before it."""
        if self.transport.is_closing():
            return False
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self.turns.begin()
        elif self.refusing:  # meanwhile, the rest of it has come, which was none
            self.answer_refusal()
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unsent.look(self.unsent_bytes(), self.loop.time())
        self.crowd.note_unsent(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unsent.bytes = 0
        self.crowd.forget_unsent(self)
        held, self.held = self.held, None
        if held:
            held()

    def refuse(self, error: TrackerError) -> None:
        """Answers what comes in with the refusal, after the requests before it, and reads nothing more."""
        if self.transport.is_closing() or self.refusing:
            return
        self.crowd.seldom.warning("A request is refused before it is complete: " + error.message)
        self.refusing = error
        self.drop_rest()
        in_body = self.began is not None and not self.in_head
        self.deaf, self.began = 0, None
        if self.pipeline or not (in_body or self.cycle is None or self.cycle.response_complete):
            self.flow.hold()
            if in_body:  # the application has not heard of it
                self.pipeline.popleft()
        elif in_body and self.cycle is not None and self.is_answered():
            self.transport.inner.close()
        else:
            self.answer_refusal()

    def is_answered(self) -> bool:
        """Whether the answer to the request whose body is coming has begun. From now on its client is gone."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return getattr(self.cycle, "response_started", False)

    def answer_refusal(self) -> None:
        self.refusals[STATUS[self.refusing.code]] += 1
        self.transport.write(refusal(self.refusing, self.parser.get_method() == b"HEAD"))
        self.transport.close()

    def end(self) -> None:
        """Closes the connection; that of a client which is still sending a moment later, or its answer would be lost.

        What has not been read when a connection is closed makes the system reset it.
        """
        in_body = self.began is not None and not self.in_head and self.cycle is not None
        if self.ended and self.unread:
            return self.linger(*self.LINGER)
        if self.ended or not (in_body or self.deaf is not None):
            return self.transport.inner.close()
        self.deaf, self.began, self.idle = 0, None, self.loop.time()
        self.drop_rest()
        with contextlib.suppress(OSError, RuntimeError):  # the client has gone
            self.transport.inner.write_eof()
            self.flow.read_paused = False
            self.flow.hold()
            self.flow.free()
        self.loop.call_later(LAST_WORDS[0], self.transport.inner.close)

    def hear_out(self, cycle: Any) -> None:
        """Closes the connection if the end of a body has not come a moment after the answer."""
        if self.cycle is cycle and self.began is not None and not self.in_head:
            self.transport.inner.close()

    def linger(self, *pauses: float) -> None:
        """Closes the connection of a client that has ended its side; after these pauses, if it may turn out to be gone.

        Whether it had closed both, TCP tells no sooner than when something has been sent to it.
        """
        if self.unread and self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.unread()
            pauses = ()
        if pauses:
            self.loop.call_later(pauses[0], self.linger, *pauses[1:])
        else:
            self.unread = None
            self.transport.closing = True
            self.transport.inner.close()

    # ── How long it stays ─────────────────────────────────────────────────────────────────────────────────────────────

    def close_if_slow(self, now: float, patience: float, idle: float) -> None:
        """Called now and then for every connection, which costs less than a timer for every request.

        Closes one on which something has been coming in for longer than `patience` (seconds), whose client has been
        taking in too little of its answer for so long, or on which nothing has been going on for `idle` seconds.
        """
        self.unsent.look(self.unsent_bytes(), now)
        if self.unsent.bytes and self.unsent.since < now - patience:
            self.crowd.seldom.warning("A client is cut off that takes in its answer too slowly (request_timeout)")
            self.transport.inner.abort()
        elif self.transport.is_closing():
            return
        elif self.began is None:
            if (self.cycle is None or self.cycle.response_complete) and self.idle < now - idle:
                self.transport.close()
        elif self.flow.stopped:
            self.began = now  # it is our turn, and not the client's
        elif self.began < now - patience:
            if self.cycle is None and not self.in_head:  # it has never sent anything
                self.transport.close()
            else:
                self.refuse(TOO_SLOW)

    def idle_since(self, now: float, patience: float = STALLED) -> float | None:
        """Since when nothing has been going on but what the client alone holds up; None if something is."""
        if self.turned_away or self.flow.held:
            return None
        if self.deaf is not None:
            return self.idle
        if self.cycle is None or self.cycle.response_complete:
            return self.idle if self.began is None else self.began
        if self.began is not None and not self.flow.read_paused and self.began <= now - patience:
            return self.began
        if self.flow.write_paused and self.unsent.bytes and self.unsent.since <= now - patience:
            return self.unsent.since
        return None

    def make_room(self) -> None:
        """Closes the connection for another one, at once; who has begun a request is told."""
        in_body = self.began is not None and not self.in_head and self.cycle is not None
        if self.in_head or (in_body and not self.is_answered()):
            self.transport.inner.write(refusal(CROWDED))
        self.deaf, self.transport.closing = 0, True
        if self.flow.write_paused:
            self.transport.inner.abort()
        elif self.unread:  # who has ended its own side alone may have read its answer
            self.linger()
        else:
            self.transport.inner.close()

    def cut_off(self) -> None:
        """Ends it, as the server stops: whoever waits for an answer that has not begun is told so, in JSON."""
        cycle = self.running if self.running and not self.running.response_complete else self.cycle
        if cycle is None or cycle.response_complete or self.transport.is_closing():
            return
        cycle.disconnected = True
        cycle.message_event.set()
        if getattr(cycle, "response_started", False):
            self.transport.inner.close()
        else:
            self.refusing = STOPS
            self.answer_refusal()

    def turn_away(self) -> None:
        """Has the first request be refused: before it, a client would not understand an answer."""
        self.turned_away, self.find_direct = True, None

    def unsent_bytes(self) -> int:
        return self.transport.inner.get_write_buffer_size()

    def abort(self) -> None:
        self.transport.inner.abort()

    def close_when_idle(self) -> asyncio.Future:
        """Closes the connection: now, or after the answer that is due. The future is done when it is closed."""
        self.lost = self.lost or self.loop.create_future()
        self.keeps_alive = None if self.keeps_alive is None else False
        self.shutdown()
        return self.lost
