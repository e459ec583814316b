"""Answers packed by gzip for those who ask, and not sent again when they are unchanged.

    an answer ─► pack: asked for? long enough? no secret in it? ─► gzip, of a large one beside the event loop
    a page's refresh ─► unchanged: its ETag is what the page has already ─► 304

What somebody else can see of an encrypted connection is how long the answers are, and packing makes that tell of their
content: whoever gets text of his own into an answer finds out, a guess at a time, what else is in it (BREACH). So
nothing is packed that has a secret in it. Of pages, refreshes have no form's token, and the others have one that looks
different each time (Visit.token); one that shows a secret (Visit.secret) is sent as it is, and so are answers to forms
and the calls of SECRET. Hot answers, streams and other systems' APIs are never packed.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import zlib
from typing import Any

from starlette.responses import Response

SHORT = 1024  # bytes: what is shorter fits into one packet all the same
LARGE = 2**14  # bytes that would keep the event loop for longer than an assignment takes
LEVEL = 5  # of zlib
PACKED = re.compile(r"text/(html|plain|css|javascript)|application/(json|javascript)|image/svg")
SECRET = re.compile(r"/(project/(webhook_)?secret|template|workflow|login|register|account)(/|$)")


def header(scope: dict, name: bytes) -> bytes:
    """All that a request says in a header."""
    return b",".join(value for key, value in scope["headers"] if key == name)


@functools.lru_cache(maxsize=256)
def takes_gzip(accepted: bytes) -> bool:
    """Whether a header Accept-Encoding has gzip among what it takes."""
    taken = {}
    for one in accepted[:1000].lower().split(b","):
        name, _, weight = one.replace(b" ", b"").partition(b";")
        taken[name] = not re.fullmatch(rb"q=0(\.0*)?", weight)
    return taken.get(b"gzip", taken.get(b"x-gzip", taken.get(b"*", False)))


def gzipped(body: bytes) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def may_be_packed(scope: dict) -> bool:
    """Whether the request is one whose answer has no secret, unless that says so itself."""
    reads = scope["method"] in ("GET", "HEAD") or scope["path"].endswith("/logs")
    return reads and not (scope["path"].find("/ui/") < 0 and SECRET.search(scope["path"]))


async def pack(answer: Any, scope: dict, common: Any = ()) -> Any:
    """The answer, packed if its client asks for that and it may be. `common`: the headers of a Reply."""
    if not takes_gzip(header(scope, b"accept-encoding")) or not may_be_packed(scope):
        return answer
    body = getattr(answer, "body", None)
    if callable(body):  # a Reply
        written = body()
        if len(written) <= SHORT or answer.unread:
            return answer
        answer = Response(written, answer.status, dict_of([*common, *answer.headers]))
    packed = await pack_response(answer)
    if scope["method"] == "HEAD" and getattr(packed, "masked", False) and "content-encoding" in packed.headers:
        del packed.headers["content-length"]  # a GET's token looks different, and packs to another length
    return packed


def dict_of(headers: Any) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


async def pack_response(answer: Response) -> Response:
    """A response of Starlette's, packed if it is a text that is worth it. A stream is none."""
    body, headers = getattr(answer, "body", None), answer.headers if hasattr(answer, "raw_headers") else {}
    if not isinstance(body, bytes) or len(body) <= SHORT or getattr(answer, "plain", False):
        return answer
    if "content-encoding" in headers or not PACKED.match(headers.get("content-type", "")):
        return answer
    packed = await asyncio.to_thread(gzipped, body) if len(body) > LARGE else gzipped(body)
    answer.body = packed
    headers["content-encoding"], headers["content-length"] = "gzip", str(len(packed))
    headers.add_vary_header("Accept-Encoding")
    return answer


def etag_of(body: str) -> str:
    """What names the content of a page, however it is packed."""
    return f'W/"{hashlib.blake2b(body.encode(), digest_size=12).hexdigest()}"'


def unchanged(scope: dict, etag: str) -> bool:
    """Whether the client has this already."""
    known = header(scope, b"if-none-match")
    return etag.encode() in [one.strip() for one in known[:1000].split(b",")]
