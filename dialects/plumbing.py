"""What the dialects have in common below their vocabularies: answers, credentials, times, JSON written by hand.

A dialect's door is a kind of tracker.Call with `refuse`; what tracker.py needs of plumbing itself stands there.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from errors import forgiven
from tracker import STRANGERS_BODY, Call, encode

MOST_DIGITS = 4000  # of a whole number: Python reads no more than 4300
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return as_bytes(encode(content), "application/json", status, headers)


def as_text(content: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return as_bytes(content.encode(), "text/plain", status, headers)


def as_bytes(content: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer that nobody keeps, and that no browser takes for another kind than it is."""
    return Response(content, status, {**HEADERS, **(headers or {})}, kind)


def nothing() -> Response:
    return Response(status_code=204, headers=HEADERS)


def basic_credentials(authorization: bytes | None) -> tuple[str, str] | None:
    """Name and password of an Authorization header. None: it is not of the kind Basic, or not well formed."""
    kind, _, encoded = (authorization or b"").strip().partition(b" ")
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:  # neither base64 nor UTF-8
        return None
    return (name, password) if colon and kind.lower() == b"basic" else None


def may_be_long(call: Call) -> bool:
    """Whether more may follow the headers than is read of somebody unknown: who sends it must be known before."""
    length = call.header(b"content-length") or b"0"
    packed = call.header(b"transfer-encoding") or call.header(b"content-encoding")
    return packed is not None or len(length) > 10 or int(length) > 1024 * STRANGERS_BODY


def iso(time: float, timespec: str = "seconds") -> str:
    """A unix time in ISO 8601, as the world outside of Python writes UTC: 2019-05-15T16:23:56Z."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def unix_time(text: str) -> float:
    """A time in ISO 8601 as unix seconds; without a zone it is UTC. ValueError, OverflowError: it is none."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def forgiving_json(body: bytes) -> Any:
    """JSON that a program wrote which knows nothing of JSON. ValueError, RecursionError: it is none even so.

    What is no UTF-8 in it, and what cannot be stored, becomes U+FFFD; a number of thousands of digits becomes null.
    """
    return forgiven(body, parse_int=lambda digits: int(digits) if len(digits) < MOST_DIGITS else None)
