"""What all doors have in common below their vocabularies: refusals, credentials, times."""

from __future__ import annotations

import base64
import logging
from contextvars import ContextVar
from typing import Any

import pytest
from conftest import Site

import tracker
from dialects import plumbing
from tracker import MethodNotAllowed, TrackerError

# A path of each door that reads, and what it says when something has gone wrong that nobody has foreseen.
DOORS = {
    "native": ("/worker/get/1", '{"ok":false,"message":"Internal error","code":"internal"}'),
    "pages": ("/ui/", "Internal error"),
    "otter": ("/api/jobs/status?token=x", "Internal error"),
    "testflinger": ("/v1/agents/data", '{"message":"Internal error","detail":{}}'),
    "theeye": ("/tracker/task", '{"code":"InternalError","message":"Internal error"}'),
}
# A request of each door for a method that its path does not have, the ones that it has, and what is said.
WRONG_METHODS = {
    "native": ("PUT", "/worker/get/1", {"GET"}, "PUT is not possible here: use GET"),
    "otter": ("PUT", "/api/jobs/trigger", {"GET", "POST"}, "PUT is not possible here: use GET or POST"),
    "testflinger": ("DELETE", "/v1/job", {"GET", "POST"}, "DELETE is not possible here: use GET or POST"),
    "theeye": ("POST", "/tracker/host/x/y", None, "does not exist"),
    "theeye, too": ("DELETE", "/tracker/host", {"GET", "POST"}, "DELETE is not allowed"),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_nobody_has_foreseen_is_logged_once_and_told_in_the_doors_form(
    site: Site, door: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, said = DOORS[door]
    read, serve, requests = tracker.Database.read, tracker.Endpoint.__call__, ContextVar("requests", default=())

    async def serves(endpoint: tracker.Endpoint, *args: Any) -> None:
        requests.set(["this one"])
        await serve(endpoint, *args)

    async def breaks_once(database: tracker.Database, *args: Any) -> Any:
        if requests.get():  # and not what goes on in the background
            requests.get().pop()
            raise ZeroDivisionError("nobody has foreseen this")
        return await read(database, *args)

    with caplog.at_level(logging.ERROR, "tracker"):
        monkeypatch.setattr(tracker.Endpoint, "__call__", serves)
        monkeypatch.setattr(tracker.Database, "read", breaks_once)
        answer = site.guest.get(path)
    assert answer.status_code == 500 and said in answer.text
    assert [(one.getMessage(), one.exc_info[0]) for one in caplog.records] == [
        (f"GET {path.partition('?')[0]} failed", ZeroDivisionError)
    ]


@pytest.mark.parametrize("door", WRONG_METHODS)
def test_a_wrong_method_is_refused_with_those_that_there_are(site: Site, door: str) -> None:
    method, path, allowed, said = WRONG_METHODS[door]
    answer = site.guest.request(method, path)
    assert answer.status_code == (404 if allowed is None else 405) and said in answer.text
    assert allowed is None or set(answer.headers["allow"].split(", ")) == {*allowed, "HEAD", "OPTIONS"}


@pytest.mark.parametrize(("delay", "stated"), [(0, "1"), (0.2, "1"), (1, "1"), (1.2, "2"), (99.999, "100")])
def test_who_is_too_fast_is_told_to_come_again_after_the_next_whole_second(delay: float, stated: str) -> None:
    assert tracker.error_headers(TrackerError("too_fast", "", delay=delay)) == {"retry-after": stated}


def test_the_methods_that_are_allowed_are_a_header_of_the_refusal() -> None:
    assert tracker.error_headers(MethodNotAllowed("PUT", ["GET", "POST"])) == {"allow": "GET, HEAD, OPTIONS, POST"}


def basic(text: bytes) -> bytes:
    return b"Basic " + base64.b64encode(text)


@pytest.mark.parametrize(
    ("authorization", "found"),
    [
        (basic(b"name:password"), ("name", "password")),
        (basic(b"name:pass:word").replace(b"Basic", b" bAsIc "), ("name", "pass:word")),
        (basic(b":"), ("", "")),
        (basic("ü:ß".encode()), ("ü", "ß")),
        (basic(b"no colon"), None),
        (basic(b"\xff:x"), None),
        (b"Basic !", None),
        (b"Basic \xfc", None),
        (basic(b"a:b").replace(b"Basic", b"Bearer"), None),
        (b"", None),
        (None, None),
    ],
)
def test_basic_credentials_are_a_name_and_a_password_or_none(
    authorization: bytes | None, found: tuple[str, str] | None
) -> None:
    assert plumbing.basic_credentials(authorization) == found


def test_an_agent_whose_credentials_are_no_base64_is_unauthorized(site: Site) -> None:
    answer = site.guest.post("/token?customer=tracker", headers={"authorization": b"Basic \xfc"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Basic")


def test_a_time_that_was_written_is_read_again() -> None:
    assert plumbing.iso(1557937436.393) == "2019-05-15T16:23:56Z"
    assert plumbing.iso(1557937436.393, "milliseconds") == "2019-05-15T16:23:56.393Z"
    assert plumbing.unix_time("2019-05-15T16:23:56.393Z") == plumbing.unix_time("2019-05-15T16:23:56.393")
    assert plumbing.unix_time("2019-05-15T18:23:56+02:00") == 1557937436
