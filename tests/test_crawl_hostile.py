"""The crawler of examples/ on a site of today: one that drips, bans, mislabels, and lies, byte by byte as told."""

from __future__ import annotations

import contextlib
import http
import json
import socketserver
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import crawl

HTML = "Content-Type: text/html"
DRIP = [b"X-Drip: 1\r\n", 0.05]  # ten of them take longer than a page may


def answer(body: bytes | str = b"", *headers: str, status: int = 200) -> list[bytes]:
    """An answer with a right length."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", f"Content-Length: {len(data)}", *headers]
    return ["".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + data]


def page(body: bytes | str, *headers: str) -> list[bytes]:
    return answer(body, *(headers or (HTML,)))


class HostileSite(socketserver.ThreadingTCPServer):
    """Sends what `answers` has for a path: bytes as they are, numbers as seconds of silence. One request a connection.

    A list of lists is one answer a request, the last one for ever. `asked` has the targets of the requests.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, answers: dict[str, Any]):
        super().__init__(("127.0.0.1", 0), None)
        self.answers, self.asked, self.heads = answers, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def finish_request(self, request: Any, _address: Any) -> None:
        with contextlib.suppress(OSError), request.makefile("rb") as lines:
            head = b"".join(iter(lines.readline, b"\r\n")).decode("latin-1")
            target = head.split(" ")[1]
            self.asked.append(target)
            self.heads.append(head)
            for piece in self.pieces(target):
                if isinstance(piece, bytes):
                    request.sendall(piece)
                else:
                    time.sleep(piece)

    def pieces(self, target: str) -> Iterable[bytes | float]:
        found = self.answers.get(target, answer(status=404))
        if found and isinstance(found[0], list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def handle_error(self, *_request: Any) -> None:
        """A client that goes away is nothing to report."""


@contextlib.contextmanager
def serving(answers: dict[str, Any]) -> Iterator[HostileSite]:
    with HostileSite(answers) as site:
        threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True).start()
        yield site
        site.shutdown()


@contextlib.contextmanager
def working(site: HostileSite, folder: Path, **settings: Any) -> Iterator[crawl.Worker]:
    """A worker in this process, whose calls to the tracker are kept in `calls` and all answered with nothing."""
    known = {"server": "http://127.0.0.1:1", "project": 1, "name": "crawl", "scope": site.url, "user_agent": "tests"}
    limits = {"timeout": 0.4, "max_body": 10**6, "max_assign_time": 6, "max_retries": 2}
    robots = crawl.Protego.parse("")
    records = folder / "pages.jsonl"
    told = crawl.Crawl(**known | limits | {"robots": robots, "records": records} | settings)
    with contextlib.closing(crawl.Worker(told, {"id": 1, "secret": "secret"})) as worker:
        worker.calls = []
        worker.tracker.call = lambda method, path, body=None, **query: worker.calls.append((path, body))
        yield worker


def fetch(answers: dict[str, Any], folder: Path, **settings: Any) -> crawl.Page:
    """What the page /a of a site with these answers comes to."""
    with serving(answers) as site, working(site, folder, **settings) as worker:
        return worker.fetch(f"{site.url}a", found_on="")


def links(answers: dict[str, Any], folder: Path, **settings: Any) -> list[str]:
    """The paths that the page /a of a site with these answers links to."""
    with serving(answers) as site, working(site, folder, **settings) as worker:
        return [link.removeprefix(site.url[:-1]) for link in worker.fetch(f"{site.url}a", found_on="").links]


# ── One deadline for a page ───────────────────────────────────────────────────────────────────────────────────────────

START = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
DRIPPING = {
    "headers": [START, *DRIP * 20, b"\r\n<a href=x>"],
    "one header": [START, b"X: ", *[b"x", 0.05] * 20, b"\r\n\r\n<a href=x>"],
    "answers before the answer": [*[b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.05] * 20, START, b"\r\n<a href=x>"],
    "a body": [START, b"\r\n", *[b"<a href=x>", 0.05] * 20],
    "chunks": [START, b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n", 0.05] * 20, b"0\r\n\r\n"],
    "the size of a chunk": [START, b"Transfer-Encoding: chunked\r\n\r\n1;", *[b"x", 0.05] * 20, b"\r\n \r\n0\r\n\r\n"],
    "trailers": [START, b"Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\n", *DRIP * 20, b"\r\n"],
    "the body of a redirect": [b"HTTP/1.1 302 Found\r\nLocation: b\r\n", *DRIP * 20, b"\r\n"],
}


@pytest.mark.parametrize("drip", DRIPPING.values(), ids=DRIPPING)
def test_a_page_that_drips_has_failed_by_its_timeout(drip: list[Any], tmp_path: Path) -> None:
    found = fetch({"/a": drip}, tmp_path)
    assert (found.outcome, found.error) == ("failed", "ReadTimeout the page takes longer than 0.4 s")


def test_a_worker_goes_on_after_a_page_that_drips(tmp_path: Path) -> None:
    with serving({"/a": DRIPPING["headers"], "/b": page("<a href=c>")}) as site, working(site, tmp_path) as worker:
        worker.do({"id": 7, "retries": 1, "recipe": json.dumps({"url": f"{site.url}a", "found_on": ""})})
        assert worker.calls[-1] == ("/task/release", {"task_id": 7, "result": crawl.FAIL, "verification": 0})
        assert worker.fetch(f"{site.url}b", "").links == [f"{site.url}c"]


@pytest.mark.parametrize("drip", ["headers", "a body"])
def test_a_robots_txt_that_drips_is_given_up(drip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "ROBOTS_TIMEOUT", 0.4)
    with serving({"/robots.txt": DRIPPING[drip]}) as site, pytest.raises(crawl.CrawlError, match="longer than 0.4 s"):
        crawl.read_robots(site.url, "tests")


def test_a_robots_txt_without_an_end_is_read_up_to_a_limit() -> None:
    endless = [b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /b\n", *[b"#" * 2**16] * 1000]
    with serving({"/robots.txt": endless}) as site:
        assert not crawl.read_robots(site.url, "tests").can_fetch(f"{site.url}b", "tests")


PROJECT = {"paused": False, "assign_rate": 5.0, "waiting_task_count": 0, "assigned_task_count": 0}


@pytest.mark.parametrize(
    ("project", "away", "why"),
    [
        ({}, "The tracker is away", "The tracker is away"),
        ({"paused": True}, "", "paused the project"),
        ({"assigned_task_count": 2}, "", "2 in the hands of workers"),
        ({"waiting_task_count": 3, "assign_rate": 0.01}, "", "a page in 100 s"),
        ({"waiting_task_count": 3}, "", "no worker is given one"),
        ({"delayed_task_count": 4}, "", "4 wait for their time"),
    ],
)
def test_a_line_says_why_nothing_is_fetched(project: dict[str, Any], away: str, why: str) -> None:
    assert why in crawl.why_silent(PROJECT | project, away)


def test_a_minute_of_silence_is_told_once_and_after_a_page_only_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, clock = [], [0.0]
    monkeypatch.setattr(crawl, "say", said.append)
    monkeypatch.setattr(crawl.time, "monotonic", lambda: clock[0])
    (tmp_path / "pages.jsonl").touch()
    with serving({}) as site, working(site, tmp_path) as worker:
        supervisor = crawl.Supervisor(worker.crawl, [], PROJECT | {"waiting_task_count": 1})
    told = []
    for now, line in ((0, ""), (59, ""), (61, ""), (62, "a page\n"), (121, ""), (123, ""), (124, ""), (184, "")):
        clock[0] = now
        with open(tmp_path / "pages.jsonl", "a") as records:
            records.write(line)
        supervisor.tell_silence()
        told.append(len(said))
    assert told == [0, 0, 1, 1, 1, 2, 2, 3]
