"""Long answers are in memory a piece at a time, and not at all when their clients have gone."""

from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from conftest import wait_until
from starlette.responses import Response
from test_server import Running, read_all

import streams

LARGE = 2**24  # bytes: more than the systems at both ends take in advance
GET = b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n"


class Piece:
    """Something that lives as long as an answer is being made."""


class Streaming(Running):
    """A server whose answers are made a large piece at a time, or in one; it counts the pieces."""

    made, ended = 0, False

    def __init__(self) -> None:
        self.alive: list[weakref.ref] = []
        super().__init__()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["path"] == "/small":
            return await super().__call__({**scope, "path": "/"}, receive, send)
        answer = Response(self.whole()) if scope["path"] == "/whole" else streams.Stream(self.pieces())
        await answer(scope, receive, send)

    def whole(self) -> bytes:
        self.made += 1
        return bytes(LARGE)

    async def pieces(self) -> AsyncIterator[bytes]:
        piece = Piece()
        self.alive.append(weakref.ref(piece))
        try:
            for _ in range(3):
                yield self.whole()
        finally:
            self.ended = True

    def goes_round(self) -> None:
        """The event loop has done all that it had to do."""
        for _ in range(3):
            with self.connect("/small") as connection:
                assert connection.recv(65536)


@pytest.fixture
def stream() -> Iterator[Streaming]:
    running = Streaming()
    yield running
    for last in running.server.stop, running.server.stop, running.thread.join:
        last()


def length_of(connection: socket.socket, most: int) -> int:
    """How many bytes come, until it is so many."""
    length = 0
    while length < most and (chunk := connection.recv(2**18)):
        length += len(chunk)
    return length


def test_a_piece_is_made_when_the_one_before_has_been_taken_in(stream: Streaming) -> None:
    with stream.connect("/pieces") as connection:
        wait_until(lambda: stream.made)
        stream.goes_round()
        assert stream.made == 1
        assert length_of(connection, 3 * LARGE) >= 3 * LARGE
        assert stream.made == 3


def test_what_is_broken_off_ends_at_once_and_leaves_nothing(stream: Streaming) -> None:
    gc.disable()
    try:
        with stream.connect("/pieces"):
            wait_until(lambda: stream.made)
        wait_until(lambda: stream.ended and not any(one() for one in stream.alive))
    finally:
        gc.enable()
    assert stream.made < 3


def test_a_request_begins_when_the_answer_before_has_been_taken_in(stream: Streaming) -> None:
    with stream.connect("/whole") as connection:
        wait_until(lambda: stream.made)
        connection.sendall(GET)
        stream.goes_round()
        assert stream.made == 1
        assert length_of(connection, 2 * LARGE) >= 2 * LARGE
        assert stream.made == 2


def test_a_request_that_waits_for_the_answer_before_is_forgotten_when_its_client_goes(stream: Streaming) -> None:
    with stream.connect("/whole") as connection:
        wait_until(lambda: stream.made)
        connection.sendall(GET)
        stream.goes_round()
    wait_until(lambda: not stream.server.server_state.connections)
    stream.goes_round()
    assert stream.made == 1


def test_requests_that_wait_for_the_answer_before_are_answered_though_the_server_stops(stream: Streaming) -> None:
    with stream.connect("/whole") as connection:
        wait_until(lambda: stream.made)
        connection.sendall(GET.replace(b"whole", b"small"))
        stream.goes_round()
        stream.server.stop()
        wait_until(lambda: stream.told)
        assert read_all(connection).endswith(b"done")
