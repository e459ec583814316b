"""How the tests' HTTP clients reach a tracker: what httpx's own transport does, at a fraction of its CPU time.

That one parses in Python, which takes longer than the tracker's answer; here it is the parser of Node.js, as strict.
Connections are kept, and one that has ended while it was kept is not used. Errors are httpx's.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import httptools
import httpx

PIECE = 1 << 16  # bytes


class Answer(httpx.SyncByteStream):
    """An answer as httptools tells of it: its head, and its body as it comes."""

    def __init__(self, wire: Wire, connection: socket.socket, request: httpx.Request, sent: bool):
        self.wire, self.connection, self.sent = wire, connection, sent
        self.bodiless = request.method == "HEAD"
        self.parser = httptools.HttpResponseParser(self)
        self.headed = self.ended = self.closed = self.lasting = False
        while not self.headed:
            self.receive()

    def on_message_begin(self) -> None:
        if self.ended:
            raise ValueError("an answer that nobody has asked for")
        self.reason, self.headers, self.parts = b"", [], []

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headed:  # else it is a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.headed = self.parser.get_status_code() >= 200  # else it only announces the answer
        self.ended = self.headed and self.bodiless
        self.lasting = self.parser.should_keep_alive()

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.ended = self.headed

    def receive(self) -> None:
        """Reads once. What ends the answer, whether it is whole or not, ends the waiting for it as well."""
        try:
            data = self.connection.recv(PIECE)
            self.parser.feed_data(data) if data else self.end_early()
        except TimeoutError as error:
            self.close()
            raise httpx.ReadTimeout("timed out") from error
        except OSError as error:
            self.close()
            raise httpx.ReadError(str(error)) from error
        except httptools.HttpParserError as error:
            self.close()
            raise httpx.RemoteProtocolError(str(error)) from error

    def end_early(self) -> None:
        """The other side has ended the connection: that is how an answer of no known length ends."""
        self.lasting = False
        self.close()
        if not self.headed:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        if {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in self.headers}:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
        self.ended = True

    def __iter__(self) -> Iterator[bytes]:
        while True:
            parts, self.parts = self.parts, []
            yield from parts
            if self.ended:
                break
            self.receive()
        self.close()

    def close(self) -> None:
        """The connection is kept, if the answer was read and neither side wants it closed."""
        if self.closed:
            return
        self.closed = True
        if self.ended and self.sent and self.lasting:
            self.wire.kept.append(self.connection)
        else:
            self.connection.close()


class Wire(httpx.BaseTransport):
    """The connections of one client to one tracker; it may be used by several threads."""

    def __init__(self) -> None:
        self.kept: list[socket.socket] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        connection = self.connect(request)
        sent = False
        with contextlib.suppress(ConnectionError):  # it is answered already: what is too long is not read to its end
            for part in written(request):
                connection.sendall(part)
            sent = request.headers.get("connection", "").lower() != "close"
        answer = Answer(self, connection, request, sent)
        said = {"http_version": b"HTTP/" + answer.parser.get_http_version().encode(), "reason_phrase": answer.reason}
        return httpx.Response(
            answer.parser.get_status_code(), headers=answer.headers, stream=answer, extensions=said, request=request
        )

    def connect(self, request: httpx.Request) -> socket.socket:
        """A kept connection on which there is nothing to read, not even an end; or a new one."""
        while True:
            try:
                connection = self.kept.pop()
            except IndexError:
                break
            if not select.select([connection], [], [], 0)[0]:
                return connection
            connection.close()
        timeout = request.extensions.get("timeout", {}).get("read")
        try:
            connection = socket.create_connection((request.url.host, request.url.port or 80), timeout)
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        while self.kept:
            self.kept.pop().close()


def written(request: httpx.Request) -> Iterator[bytes]:
    """The request in pieces: a short one is one."""
    head = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    head += [b"%b: %b" % header for header in request.headers.raw]
    begun = b"\r\n".join([*head, b"", b""])
    chunked = "transfer-encoding" in request.headers
    for part in request.stream:
        part = b"%x\r\n%b\r\n" % (len(part), part) if chunked and part else part
        if len(begun) + len(part) <= PIECE:
            begun += part
        else:
            yield begun
            begun = part
        if chunked and begun:  # whoever makes a body by and by wants it sent so
            yield begun
            begun = b""
    yield begun + (b"0\r\n\r\n" if chunked else b"")
