"""No text from outside costs more than linear time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import io
import re
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import itsdangerous
import pytest
from growth import CONTROLS, FIRST, QUICK, Hostile, cost, crawler, hostile_texts, is_linear, patterns
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import browsers
import errors
import lines
import pages
import protocol
import server
import shapes
import tracker
import webhooks
import worker
from dialects import otter, plumbing, theeye
from dialects.testflinger import api, clients
from dialects.testflinger import pages as testflinger_pages
from errors import TrackerError

PATTERNS = patterns()
Way = Callable[[re.Pattern, Any], Any]
ONCE: list[Way] = [re.Pattern.search, re.Pattern.fullmatch]  # a match is what a search tries first
OFTEN: list[Way] = [lambda pattern, text: deque(pattern.finditer(text), maxlen=0)]  # as to replace and to split do
LOOKED_AT = 12  # of the texts and ways that cost most: what costs less grows no faster


@pytest.mark.timeout(900)  # what a neighbour disturbs is looked at again, for seconds of this thread
@pytest.mark.parametrize("pattern", PATTERNS, ids=PATTERNS.values())
def test_a_pattern_takes_linear_time_over_every_text(pattern: tuple[str | bytes, int]) -> None:
    compiled = re.compile(*pattern)
    plain, led = hostile_texts(*pattern)
    costly = [*costly_ways(compiled, plain, [*ONCE, *OFTEN]), *costly_ways(compiled, led, ONCE)]
    for _, one, way in heapq.nlargest(LOOKED_AT, costly, key=lambda one: one[0] / len(one[1].text(FIRST))):
        made = lambda size, one=one: in_kind(compiled, one.text(size))  # noqa: E731
        assert is_linear(lambda text, way=way: way(compiled, text), made), one


def costly_ways(pattern: re.Pattern, texts: Iterable[Hostile], ways: list[Way]) -> Iterator[tuple[float, Hostile, Way]]:
    """What is not quick: its cost, the text, and the way."""
    for one in texts:
        text = in_kind(pattern, one.text(FIRST))
        for way in ways:
            if (taken := cost(functools.partial(way, pattern), text)) >= QUICK:
                yield taken, one, way


def in_kind(pattern: re.Pattern, text: str) -> str | bytes:
    """The text as the pattern takes it."""
    return text if isinstance(pattern.pattern, str) else text.encode("latin-1")


# ── Loops ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

PRINTED = [*" !\"#%&'()*+,-./0:;<=>?@[\\]^_`{|}~aé", "%41", "a=", "a;", "a,", "1 ", "../"]
UNITS = [*CONTROLS, *PRINTED, "\u0301", "\ufeff", "\r\n"]
SETTINGS = tracker.Settings()
SCOPE = {"type": "http", "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("127.0.0.1", 1)}


def asked(name: bytes, value: str) -> tracker.Call:
    """A call with that header."""
    running = types.SimpleNamespace(settings=SETTINGS, signer=itsdangerous.Signer("key"), named_origins=frozenset())
    scope = {**SCOPE, "method": "GET", "query_string": b"", "path": "/", "headers": [(name, in_latin(value))]}
    return tracker.Call(scope, None, running)


def in_latin(text: str) -> bytes:
    return text.encode("latin-1", "replace")


def answered(name: bytes, value: str) -> httpx.Response:
    return httpx.Response(200, headers=[(name, in_latin(value))])


def in_pieces(text: str) -> list[dict[str, str]]:
    """A long piece of output, many short ones, and the long one again."""
    return [{"text": one, "phase": "test"} for one in (text, *text[:600], text)]


def count(found: Iterable[Any]) -> int:
    return sum(1 for _ in found)


LOOPS: dict[str, Callable[[str], Any]] = {
    "a cookie": lambda text: asked(b"cookie", f"tt={text}").session(),
    "cookies": lambda text: count(asked(b"cookie", text).cookies("a")),
    "an origin": lambda text: browsers.lacks_port({b"origin": in_latin(text)}),
    "a referer": lambda text: browsers.origin_of({b"referer": in_latin(text)}),
    "a name of ours": lambda text: browsers.Hosts(("*.example.org",)).is_ours(in_latin(text)),
    "a browser": lambda text: browsers.is_browser({b"user-agent": in_latin(text)}),
    "what a browser accepts": lambda text: browsers.is_browser({b"accept": in_latin(text)}),
    "a language": lambda text: browsers.is_browser({b"accept-language": in_latin(text)}),
    "an address": lambda text: browsers.network_of(text),
    "an encoding": lambda text: asked(b"content-encoding", text).unpack(64),
    "a host": lambda text: api.from_this_machine(asked(b"host", text)),
    "credentials": lambda text: plumbing.basic_credentials(b"Basic " + text.encode()),
    "a token": lambda text: clients.signed_claims("key", text.encode()),
    "a query": lambda text: tracker.Call({"query_string": text.encode()}, None, None).query(),
    "a form": lambda text: pages.form_fields(text.encode()),
    "a form of Otter's": lambda text: otter.read_form(text.encode(), "body"),
    "a form of theeye's": lambda text: theeye.parameters(text.encode()),
    "typed pairs": lambda text: pages.typed_pairs(f"a={text}", "env"),
    "JSON": lambda text: tracker.decode(f'{{"a": "{text}"}}'.encode(), Any),
    "bare JSON": lambda text: tracker.decode(text.encode(), Any),
    "printed JSON": lambda text: tracker.decode(in_latin(f'{{"scope": "é", "message": "{text}"}}'), shapes.LogBody),
    "loose JSON": lambda text: api.loose_json(text.encode()),
    "a long name of many values": lambda text: errors.refuse_nul({text: [0] * len(text)}),
    "many names": lambda text: errors.refuse_nul({f"{at}{one}": {} for at, one in enumerate(text)}),
    "a time": lambda text: api.unix_time(text, "timestamp", "json"),
    "a duration": lambda text: api.seconds(text),
    "a webhook": lambda text: webhooks.read_url(f"http://{text}"),
    "lines": lambda text: count(lines.numbered_lines(io.BytesIO(b"a" + text.encode()), 2**30)),
    "the marks before a line": lambda text: lines.without_marks(text.encode()),
    "an array": lambda text: count(lines.array_parts(f"[{text}]".encode())),
    "a log's line": lambda text: otter.log_line({"level": 4, "message": text}),
    "a log": lambda text: count(theeye.log_entries(text)),
    "what a terminal gets": testflinger_pages.readable_text,
    "what a terminal gets in pieces": lambda text: testflinger_pages.readable_pieces(in_pieces(text)),
    "a URL in bytes": lambda text: protocol.escaped(text.encode()),
    "a line of worker.py": lambda text: worker.printable(text, len(text)),
    "a date for worker.py": lambda text: worker._server_time(answered(b"date", text)),
    "a link for the crawler": lambda text: crawler().normalise(text, "http://site/"),
    "a page for the crawler": lambda text: crawler().find_links(text.encode(), "http://site/"),
    "a type for the crawler": lambda text: crawler().charset_of(answered(b"content-type", f"text/html;{text}")),
}
REFUSALS = (TrackerError, webhooks.Refused, ValueError, HTTPException)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_takes_linear_time_over_every_text(loop: Callable[[str], Any]) -> None:
    def run(text: str) -> None:
        with contextlib.suppress(*REFUSALS):
            loop(text)

    for unit in costliest(run, lambda unit, size: unit * size, UNITS):
        assert is_linear(run, lambda size, unit=unit: unit * size), unit


def costliest(run: Callable[[Any], Any], make: Callable[[str, int], Any], units: Iterable[str]) -> list[str]:
    """The units that cost most, each character of them, when they are repeated."""
    tried = [(cost(run, make(unit, FIRST)) / len(unit), unit) for unit in units]
    return [unit for _, unit in heapq.nlargest(LOOKED_AT, tried)]


class Door:
    """An application in this thread, whose time is the event loop's."""

    def __init__(self, folder: Path):
        self.loop = asyncio.new_event_loop()
        self.app = tracker.create_app(tracker.Settings(database=str(folder / "tracker.db"), log_file=""))
        self.running: tracker.Tracker = self.app.state.tracker
        self.loop.run_until_complete(self.running.start())
        self.asked: asyncio.Queue[tuple[asyncio.Future, tuple]] = asyncio.Queue()
        self.answering = self.loop.create_task(self.answer())

    async def answer(self) -> None:
        """One task for all that is asked: for each further one Starlette's files would have a thread of their own."""
        while True:
            answered, call = await self.asked.get()
            answered.set_result(await self.app(*call))

    def ask(self, method: str, path: str, *headers: tuple[bytes, bytes]) -> int:
        """The status of the answer."""
        scope = {**SCOPE, "method": method, "path": path, "query_string": b"", "headers": headers}
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        answered = self.loop.create_future()
        self.asked.put_nowait((answered, (scope, receive, send)))
        self.loop.run_until_complete(answered)
        return sent[0]["status"]

    def close(self) -> None:
        self.answering.cancel()
        self.loop.run_until_complete(self.running.stop())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    opened = Door(tmp_path)
    yield opened
    opened.close()


HEADERS = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "authorization",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "forwarded",
    "host",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "origin",
    "range",
    "referer",
    "sec-fetch-site",
    "user-agent",
    "x-apikey",
    "x-forwarded-for",
    "x-secret",
    "x-worker-id",
]
ASKED = [
    ("GET", "/ui/login"),
    ("GET", "/ui/static/style.css"),
    ("GET", "/task/get/1"),
    ("POST", "/v1/job"),
    ("GET", "/"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_takes_linear_time(door: Door, header: str) -> None:
    begins = {"range": "bytes=", "authorization": "Basic ", "if-none-match": '"'}.get(header, "")
    make = lambda unit, size: in_latin(begins + unit * size)  # noqa: E731
    for method, path in ASKED:
        run = lambda value, method=method, path=path: door.ask(method, path, (header.encode(), value))  # noqa: E731
        for unit in costliest(run, make, PRINTED):
            assert is_linear(run, functools.partial(make, unit)), (path, unit)


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize("begins", ["/", "/ui/static/", "/ui/projects/", "/v1/queues/", "/v1/", "/task/", "/api/"])
def test_a_path_takes_linear_time(door: Door, begins: str, method: str) -> None:
    run = functools.partial(door.ask, method)
    make = lambda unit, size: begins + (unit * size)[: protocol.MOST_HEADER_BYTES]  # noqa: E731
    for unit in costliest(run, make, (*PRINTED, "a/", "/agents", "//")):
        assert is_linear(run, functools.partial(make, unit)), unit


def test_a_form_of_twice_as_many_fields_takes_twice_as_long() -> None:
    def run(body: bytes) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        form = asyncio.run(server.Incoming({**SCOPE, "headers": headers}, receive).multipart(2**20, max_fields=10**6))
        assert len(form) == body.count(b"name=")

    def make(size: int) -> bytes:
        part = b'--b\r\ncontent-disposition: form-data; name="%d"\r\n\r\n\r\n'
        return b"".join(part % number for number in range(size)) + b"--b--\r\n"

    assert is_linear(run, make)


def test_a_long_name_of_the_host_is_not_repeated_in_a_document() -> None:
    assert len(asked(b"host", "a" * 60_000).base) < 300


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_no_file_is_looked_for_under_a_name_longer_than_a_file_can_have(
    door: Door, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(StaticFiles, "lookup_path", lambda self, path: looked.append(path) or ("", None))
    assert door.ask(method, "/ui/static/" + 200 * "a/") == 404 and not looked


def test_only_a_few_cookies_of_a_name_are_looked_at() -> None:
    some = asked(b"cookie", "; ".join(f"tt={number}" for number in range(5000)))
    assert [*some.cookies("tt")] == [b"%d" % number for number in range(server.MOST_OF_A_NAME)]


def test_only_the_first_thousand_cookies_are_looked_at() -> None:
    others = "a=b; " * (server.MOST_COOKIES - 1)
    assert [*asked(b"cookie", f"{others}tt=last; c=d").cookies("tt")] == [b"last"]
    assert [*asked(b"cookie", f"{others}a=b; tt=beyond").cookies("tt")] == []
