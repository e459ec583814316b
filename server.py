"""How bytes come in: uvicorn with a guard around it, listening, stopping.

    socket ─► GuardedProtocol (how slowly, how large, how many at once) ─► uvicorn ─► the application
                                                                    write_at_once ◄─┘ a plain answer, in one write

Nothing here knows what a task is, and nothing is imported from tracker.py: it is given an application, the settings of
a server, and what to do when it is told to stop.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEADER_BYTES = 2**16


MOST_PIPELINED = 256  # requests that one connection may send ahead of their answers


def writes_plainly(cycle: RequestResponseCycle) -> bool:
    return cycle.keep_alive and not cycle.access_log and cycle.scope["method"] != "HEAD"


def plain_cycle(send: Callable) -> RequestResponseCycle | None:
    """uvicorn's cycle behind an ASGI `send`, if an answer may be written past it."""
    cycle = getattr(send, "__self__", None)
    return cycle if type(cycle) is RequestResponseCycle and writes_plainly(cycle) else None


def plain_head(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """What begins a plain answer with status 200 and these headers, for write_at_once."""
    return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % header for header in headers)


async def write_at_once(cycle: RequestResponseCycle, head: bytes, body: bytes) -> None:
    """Sends a plain answer with one write, as uvicorn's cycle does with two and a check of each header.

    Worth its reach into uvicorn: 9 to 17 % more requests per second at 32 connections (bench/run.py, three runs).
    """
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if cycle.disconnected:
        return
    cycle.response_started = cycle.response_complete = True
    more = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
    cycle.transport.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (head, more, len(body), body))
    cycle.message_event.set()
    cycle.on_response()


def keeps_coming(receive: Callable) -> None:
    """Tells GuardedProtocol that enough of a long body has arrived: its time begins anew."""
    cycle = getattr(receive, "__self__", None)
    if type(cycle) is RequestResponseCycle:
        protocol = cycle.transport.get_protocol()
        if getattr(protocol, "began", None) is not None:
            protocol.began = protocol.loop.time()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with a limit to how slowly a client may send, and how long its headers may be."""

    began: float | None = None  # when the client began to send what is still incomplete: the headers, then the body
    headers_pending = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.began = self.loop.time()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.began = self.loop.time()
        self.headers_pending = 1

    def on_headers_complete(self) -> None:
        self.began, self.headers_pending = self.loop.time(), 0
        super().on_headers_complete()
        if len(self.pipeline) > MOST_PIPELINED:  # uvicorn reads on after each answer, and would collect them for ever
            self.transport.close()

    def on_message_complete(self) -> None:
        self.began = None
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.began is None and self.cycle and self.cycle.response_complete:
            self.began = self.loop.time()  # stray line ends after an answer: uvicorn has stopped its keep-alive timer
        if self.headers_pending:
            self.headers_pending += len(data)
            if self.headers_pending > MOST_HEADER_BYTES:
                self.send_400_response("The request's headers are too large")

    def close_if_slow(self, oldest: float) -> None:
        """Called now and then for every connection, which costs less than a timer for every request."""
        if self.began is not None and self.began < oldest:
            self.began = None
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server: lets waiting workers go before it waits for requests to finish, and exits with status 0."""

    def __init__(self, config: uvicorn.Config, begin_stop: Callable[[], None], request_timeout: float):
        super().__init__(config)
        self.begin_stop, self.request_timeout = begin_stop, request_timeout

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Asked to stop: do. Asked twice: at once. (The original one raises the signal again at the end.)"""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.begin_stop()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            oldest = asyncio.get_running_loop().time() - self.request_timeout
            for connection in list(self.server_state.connections):
                connection.close_if_slow(oldest)
        return await super().on_tick(counter)


def uvicorn_config(app: Any, settings: Any) -> uvicorn.Config:
    """How uvicorn runs the tracker (and the benchmark's baseline), with these of the tracker's settings."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_level="info" if settings.access_log else "warning",
        access_log=settings.access_log,
        root_path=settings.root_path,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout),
        server_header=False,
        backlog=2048,
    )


def listen(host: str, port: int) -> socket.socket:
    """The listening socket. OSError for an address or port that cannot be had."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=2048)


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_loop(coroutine: Any) -> None:
    """Runs a coroutine on uvloop where there is one."""
    factory = uvicorn.Config(None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)
