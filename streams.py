"""Answers of any length, in the memory of one piece: the next is made when the client has taken in the one before."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import StreamingResponse
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server import cycle_of


class Stream(StreamingResponse):
    """Starlette's, but that nothing waits in memory besides what is in the connection's buffer, where it is counted.

    Starlette makes a piece while the one before is unsent, holds it twice, and watches in a task of its own whether
    the client has gone: what is left of a broken answer goes round in a circle, and stays for the garbage collector.
    """

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Sends the answer, or as much of it as there is somebody to take in."""
        cycle = cycle_of(receive)
        if not isinstance(cycle, RequestResponseCycle):  # as under a test client
            return await super().__call__(scope, receive, send)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while not has_gone(cycle) and (piece := await anext(self.body_iterator, None)) is not None:
                body = piece.encode(self.charset) if isinstance(piece, str) else piece
                await send({"type": "http.response.body", "body": body, "more_body": True})
                del piece, body
                await cycle.flow.drain()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self.body_iterator.aclose()


def has_gone(cycle: RequestResponseCycle) -> bool:
    """Whether nobody is there any more. What waits for a client is dropped before the application is told."""
    cycle.disconnected |= cycle.transport.is_closing()
    return cycle.disconnected
