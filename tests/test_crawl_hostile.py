"""The crawler of examples/ on a site of today: one that drips, bans, mislabels, and lies, byte by byte as told."""

from __future__ import annotations

import contextlib
import dataclasses
import http
import itertools
import json
import os
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from test_crawl import PASSWORD, get_project, give, run_crawl
from test_crawl import working as working_at

import tracker
import worker as library
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


RESET = None  # of the connection, in what a site sends


class HostileSite(socketserver.ThreadingTCPServer):
    """Sends what `answers` has for a path: bytes as they are, numbers as seconds of silence; RESET: the connection.

    One request a connection.

    A list of lists is one answer a request, the last one for ever. `asked` has the targets of the requests.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, answers: dict[str, Any], address: tuple[str, int] = ("127.0.0.1", 0)):
        super().__init__(address, None)
        self.answers, self.asked, self.heads = answers, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()  # or it would ask for connections for ever, of a socket that is closed
        super().__exit__(*error)

    def finish_request(self, request: Any, _address: Any) -> None:
        with contextlib.suppress(OSError), request.makefile("rb") as lines:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (line := lines.readline()):
                    return  # a client that goes away before it has asked
                head += line
            head = head.decode("latin-1")
            target = head.split(" ")[1]
            self.asked.append(target)
            self.heads.append(head)
            for piece in self.pieces(target):
                if isinstance(piece, bytes):
                    request.sendall(piece)
                elif piece is RESET:
                    request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(request.detach())
                else:
                    time.sleep(piece)

    def pieces(self, target: str) -> Iterable[bytes | float]:
        found = self.answers.get(target, answer(status=404))
        if found and isinstance(found[0], list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def handle_error(self, *_request: Any) -> None:
        """A client that goes away is nothing to report."""


class LeavingSite(HostileSite):
    """Answers the first request of each connection, and ends it when the second has come."""

    def finish_request(self, request: Any, address: Any) -> None:
        super().finish_request(request, address)
        request.recv(65536)


def serving(answers: dict[str, Any], kind: type[HostileSite] = HostileSite, *address: Any) -> HostileSite:
    return kind(answers, *address)


def working(site: HostileSite, folder: Path, **settings: Any) -> contextlib.AbstractContextManager[crawl.Worker]:
    return working_at(site.url, folder, **settings)


def fetch(answers: dict[str, Any], folder: Path, **settings: Any) -> crawl.Page:
    """What the page /a of a site with these answers comes to."""
    with serving(answers) as site, working(site, folder, **settings) as worker:
        return worker.fetch(f"{site.url}a", found_on="")


def links(answers: dict[str, Any], folder: Path, **settings: Any) -> list[str]:
    """The paths that the page /a of a site with these answers links to."""
    with serving(answers) as site, working(site, folder, **settings) as worker:
        return [link.removeprefix(site.url[:-1]) for link in worker.fetch(f"{site.url}a", found_on="").links]


# ── Connections that are kept ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_that_ends_when_the_next_page_is_asked_for_costs_that_page_nothing(tmp_path: Path) -> None:
    answers = {f"/{name}": page("") for name in "abc"}
    with serving(answers, LeavingSite) as site, working(site, tmp_path) as worker:
        assert [worker.fetch(f"{site.url}{name}", found_on="").outcome for name in "abc"] == ["ok"] * 3
        assert site.asked == ["/a", "/b", "/c"]


def test_a_site_that_ends_each_connection_without_an_answer_is_asked_once(tmp_path: Path) -> None:
    with serving({"/a": []}) as site, working(site, tmp_path) as worker:
        assert worker.fetch(f"{site.url}a", found_on="").outcome == "failed"
        assert site.asked == ["/a"]


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
    found = fetch({"/a": drip}, tmp_path, timeout=0.4)
    assert (found.outcome, found.error) == ("failed", "ReadTimeout the page takes longer than 0.4 s")


def test_how_long_it_takes_to_read_what_has_come_is_not_the_sites_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, deadlines = crawl.find_links, []

    def note(*given: Any) -> list[str]:
        deadlines.append(worker.deadline.when())
        return read(*given)

    monkeypatch.setattr(crawl, "find_links", note)
    with serving({"/a": page("<a href=b>" * 10**5)}) as site, working(site, tmp_path, max_body=1000) as worker:
        found = worker.fetch(f"{site.url}a", "")
    assert (found.outcome, found.truncated, found.links) == ("ok", True, [f"{site.url}b"])
    assert deadlines == [None]


def test_a_worker_goes_on_after_a_page_that_drips(tmp_path: Path) -> None:
    answers = {"/a": DRIPPING["headers"], "/b": page("<a href=c>")}
    with serving(answers) as site, working(site, tmp_path, timeout=0.5) as worker:
        assert give(worker, f"{site.url}a")["result"] == library.FAILED
        worker.crawl = dataclasses.replace(worker.crawl, timeout=30)
        assert worker.fetch(f"{site.url}b", "").links == [f"{site.url}c"]


@pytest.mark.parametrize("drip", ["headers", "a body"])
def test_a_robots_txt_that_drips_is_given_up(drip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "ROBOTS_TIMEOUT", 0.4)
    with serving({"/robots.txt": DRIPPING[drip]}) as site, pytest.raises(crawl.CrawlError, match=r"longer than 0\.4 s"):
        crawl.read_robots(site.url, "tests")


def test_a_robots_txt_without_an_end_is_read_up_to_a_limit() -> None:
    endless = [b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /b\n", *[b"#" * 2**16] * 1000]
    with serving({"/robots.txt": endless}) as site:
        rules = crawl.Protego.parse(crawl.read_robots(site.url, "tests"))
    assert not rules.can_fetch(f"{site.url}b", "tests")


NOBODY = library.Worker(1, "nobody", "secret")
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
        supervisor = crawl.Supervisor(worker.crawl, [NOBODY], PROJECT | {"waiting_task_count": 1})
    told = []
    for now, line in ((0, ""), (59, ""), (61, ""), (62, "a page\n"), (121, ""), (123, ""), (124, ""), (184, "")):
        clock[0] = now
        with open(tmp_path / "pages.jsonl", "a") as records:
            records.write(line)
        supervisor.tell_silence()
        told.append(len(said))
    assert told == [0, 0, 1, 1, 1, 2, 2, 3]


# ── A site that asks for patience ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_host_that_is_too_busy_is_left_alone_by_the_whole_crew_and_no_page_loses_an_attempt(
    status: int, tmp_path: Path
) -> None:
    refusal = answer("wait", "Retry-After: 3600", status=status)
    with serving({"/a": refusal, "/b": page("")}) as site, working(site, tmp_path) as worker:
        first, second = give(worker, f"{site.url}a"), give(worker, f"{site.url}b")
        assert site.asked == ["/a"]
        with contextlib.closing(worker.crawl.hosts()) as of_another_worker:
            assert of_another_worker.take_turn("127.0.0.1") > 3590
    for released in (first, second):
        assert released["result"] == library.SKIPPED
        assert 3590 < released["delay"] < 3610


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": " 2.5 "}, 2.5),
        ({"Retry-After": "9" * 400}, 1e9),
        ({"Retry-After": "Fri, 01 Jan 2021 00:10:00 GMT", "Date": "Fri, 01 Jan 2021 00:00:00 GMT"}, 600),
        ({"Retry-After": "Friday, 01-Jan-21 00:10:00 GMT", "Date": "Fri Jan  1 00:00:00 2021"}, 600),
        ({"Retry-After": "Fri, 01 Jan 2021 00:10:00 GMT"}, 0),
        ({"Retry-After": "Fri, 01 Jan 9999 00:10:00 GMT"}, 1e9),
        ({"Retry-After": "Fri, 99 Jan 99999 00:10:00 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "٣"}, 0),
        ({"Retry-After": ""}, 0),
        ({}, 0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date_of_the_sites_own_clock(
    headers: dict[str, str], seconds: float
) -> None:
    coded = {name: value.encode() for name, value in headers.items()}
    assert crawl.retry_after(crawl.httpx.Response(429, headers=coded)) == seconds


@pytest.mark.parametrize("sitemap", [0, 1])
@pytest.mark.parametrize("status", [403, 408, 413, 425, 500, 501, 507])
def test_whoever_says_when_to_come_again_is_left_alone_until_then(status: int, sitemap: int, tmp_path: Path) -> None:
    sent = {"/a": answer("", "Retry-After: 3600", status=status), "/b": answer(status=status)}
    with serving(sent) as site, working(site, tmp_path) as worker:
        asked, plain = (worker.fetch(f"{site.url}{name}", found_on="", sitemap=sitemap) for name in "ab")
    assert (asked.outcome, asked.retry_after) == ("refused", 3600)
    assert plain.outcome == ("broken" if status in (403, 413) else "failed")


@pytest.mark.parametrize("status", [403, 408, 425, 500])
def test_a_robots_txt_that_is_to_be_had_later_is_asked_for_later(status: int) -> None:
    later = answer("", "Retry-After: 3600", status=status)
    with serving({"/robots.txt": later}) as site, pytest.raises(crawl.RobotsAway) as away:
        crawl.read_robots(site.url, "tests")
    assert away.value.retry_after == 3600


@pytest.mark.parametrize(("asked_for", "delay"), [("60", 60), ("31536000", 86400), ("soon", None)])
@pytest.mark.parametrize("sitemap", [0, 1])
def test_where_a_redirect_leads_is_asked_for_when_it_says(
    asked_for: str, delay: float | None, sitemap: int, tmp_path: Path
) -> None:
    moved = answer("", "Location: b", f"Retry-After: {asked_for}", status=301)
    with serving({"/a": moved}) as site, working(site, tmp_path) as worker:
        worker.crawl_page(f"{site.url}a", found_on="x", sitemap=sitemap)
        [(_, submitted)] = [call for call in worker.calls if call[0] == "/task/bulk_submit"]
    [task] = submitted["requests"]
    assert json.loads(task["recipe"])["url"] == f"{site.url}b"
    assert task.get("delay") == delay


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The crawler's clock, which stands still unless it is moved."""
    clock = [10**9]
    monkeypatch.setattr(crawl.time, "time", lambda: clock[0])
    return clock


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[crawl.Hosts]:
    with contextlib.closing(crawl.Hosts(tmp_path / "hosts.db")) as hosts:
        yield hosts


@pytest.mark.parametrize(
    ("refusals", "seconds"), [([0], 2), ([0, 0, 0], 8), ([0] * 40, 600), ([0, 90], 90), ([86400 * 30], 86400 * 30)]
)
def test_a_host_that_does_not_say_how_long_rests_longer_each_time(
    refusals: list[float], seconds: float, hosts: crawl.Hosts, clock: list[float]
) -> None:
    for asked_for in refusals:
        clock[0] += hosts.rest("h")
        hosts.refuse("h", asked_for, "busy")
    assert hosts.rest("h") == seconds
    assert hosts.rest("another") == 0


def test_refusals_at_once_count_as_one_and_the_longest_rest_holds(hosts: crawl.Hosts, clock: list[float]) -> None:
    assert [hosts.refuse("h", seconds, "busy")[0] for seconds in (60, 0, 5, 90)] == [True, False, False, False]
    assert hosts.rest("h") == 90


DAY = 86400


@pytest.mark.parametrize(
    ("rests", "granted"),
    [([7 * DAY], 7), ([60, 7 * DAY], 7), ([7 * DAY, 7 * DAY], 7), ([31 * DAY], 0), ([0, 0], 0)],
    ids=["a week", "a minute, then a week", "a week twice", "more than a month", "nothing"],
)
def test_the_longest_rest_that_a_host_asks_for_is_not_taken_from_the_patience_with_it(
    rests: list[float], granted: float, hosts: crawl.Hosts, clock: list[float]
) -> None:
    for seconds in rests:
        hosts.refuse("h", seconds, "busy")
    clock[0] += 10 * DAY
    assert hosts.away("h") == (10 - granted) * DAY
    hosts.accept("h", "http://h/")
    hosts.refuse("h", 5 * DAY, "busy")
    clock[0] += 6 * DAY
    assert hosts.away("h") == DAY


def test_what_a_host_asks_for_again_and_again_between_pages_is_granted_up_to_a_month_in_all(
    hosts: crawl.Hosts, clock: list[float]
) -> None:
    lost = []
    for _ in range(4):
        hosts.refuse("h", 14 * DAY, "busy")
        clock[0] += 14 * DAY
        lost.append(hosts.away("h") / DAY)
        hosts.accept("h", "http://h/")
    assert lost == [0, 0, 12, 14]


def test_pages_come_back_after_a_rest_that_is_longer_than_the_patience(tmp_path: Path, clock: list[float]) -> None:
    answers = {"/a": [answer("", "Retry-After: 604800", status=429), page("")]}
    with serving(answers) as site, working(site, tmp_path, host_patience=3 * DAY) as worker:
        put_off = give(worker, f"{site.url}a")
        assert (put_off["result"], put_off["delay"]) == (library.SKIPPED, 7 * DAY)
        clock[0] += 4 * DAY
        assert give(worker, f"{site.url}a")["delay"] == 3 * DAY
        clock[0] += 3 * DAY + 1
        worker.hosts.keep_robots(site.url, "")
        assert give(worker, f"{site.url}a")["result"] == library.DONE


def test_after_a_rest_the_rate_begins_low_and_rises_with_each_page(hosts: crawl.Hosts, clock: list[float]) -> None:
    hosts.refuse("h", 80, "busy")
    began = []
    while len(began) < 12:
        if wait := hosts.take_turn("h", has_booked=bool(began)):
            clock[0] += wait
            continue
        began.append(clock[0])
        hosts.accept("h", "http://h/")
        hosts.leave("h")
    gaps = [round(later - earlier, 6) for earlier, later in itertools.pairwise(began)]
    assert began[0] == 10**9 + 80
    assert gaps[:3] == [5, 2.5, 1.25]
    assert gaps[-1] == 0


def test_the_turn_of_a_killed_worker_comes_back_when_its_page_must_have_ended(
    hosts: crawl.Hosts, clock: list[float], tmp_path: Path
) -> None:
    with contextlib.closing(crawl.Hosts(tmp_path / "hosts.db", timeout=10)) as killed:
        assert killed.take_turn("h") == 0
    assert hosts.take_turn("h")
    clock[0] += 14
    assert hosts.take_turn("h")
    clock[0] += 1
    assert hosts.take_turn("h") == 0


def test_a_page_that_is_always_refused_while_others_are_answered_fails_in_the_end(tmp_path: Path) -> None:
    with serving({"/a": answer(status=503), "/b": page("")}) as site, working(site, tmp_path) as worker:
        results = []
        for _ in range(crawl.MOST_PUT_OFF + 1):
            give(worker, f"{site.url}b", id=8)
            results.append(give(worker, f"{site.url}a")["result"])
            worker.hosts.db.execute("UPDATE host SET rests_until = 0, next_turn = 0, slow = 0")
    assert results == [library.SKIPPED] * crawl.MOST_PUT_OFF + [library.FAILED]


def test_a_page_may_be_put_off_for_ever_by_a_host_that_answers_no_other(tmp_path: Path) -> None:
    with serving({"/a": answer(status=503)}) as site, working(site, tmp_path) as worker:
        for _ in range(2 * crawl.MOST_PUT_OFF):
            assert give(worker, f"{site.url}a")["result"] == library.SKIPPED
            worker.hosts.db.execute("UPDATE host SET rests_until = 0, next_turn = 0")


def test_pages_that_are_always_refused_when_no_other_is_left_fail_in_the_end(tmp_path: Path) -> None:
    answers = {"/a": answer(status=503), "/b": page("")}
    with serving(answers) as site, working(site, tmp_path) as worker:
        give(worker, f"{site.url}b")
        results = []
        while library.FAILED not in results and len(results) < 20:
            results.append(give(worker, f"{site.url}a")["result"])
            worker.hosts.db.execute("UPDATE host SET rests_until = 0, next_turn = 0, slow = 0")
        assert results == [library.SKIPPED] * (crawl.MOST_PUT_OFF + 2) + [library.FAILED]
        assert site.asked.count("/b") == 2


def test_the_time_in_which_no_crew_was_there_is_not_taken_from_the_patience_with_a_host(
    hosts: crawl.Hosts, clock: list[float]
) -> None:
    hosts.refuse("h", 0, "gone")
    clock[0] += 2 + 4 * DAY
    hosts.refuse("h", 0, "gone")
    assert hosts.away("h") == 2 + crawl.LONGEST_REST
    hosts.refuse("h", 7 * DAY, "busy")
    clock[0] += 9 * DAY
    hosts.refuse("h", 0, "gone")
    assert hosts.away("h") == 2 + 2 * crawl.LONGEST_REST


def test_a_machine_without_a_clock_that_starts_in_1970_breaks_no_rest_and_gives_up_no_host(
    hosts: crawl.Hosts, clock: list[float]
) -> None:
    hosts.take_turn("h")
    hosts.refuse("h", 3600, "busy")
    clock[0] = 30
    assert hosts.take_turn("h") == 3600
    clock[0] = 10**9 + 60
    assert hosts.take_turn("h") == 0
    assert hosts.away("h") < DAY


def test_a_second_start_goes_on_with_the_rest_that_the_first_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({}) as site, working(site, tmp_path) as worker:
        worker.hosts.refuse("127.0.0.1", 3600, "429 too much")
        second = crawl.Supervisor(worker.crawl, [NOBODY], PROJECT)
    assert re.fullmatch(r"127\.0\.0\.1 is left alone until .* \(429 too much\)", second.rests())


class BanningSite(HostileSite):
    """Bans everybody for two seconds at its 5th request; what comes in that time is counted and answered 429."""

    def __init__(self, answers: dict[str, Any]):
        super().__init__(answers)
        self.banned_until, self.during, self.after = 0.0, 0, []

    def pieces(self, target: str) -> Iterable[bytes | float]:
        now = time.monotonic()
        if target.startswith("/site/") and len(self.asked) == 7:
            self.banned_until = now + 2
        elif now < self.banned_until:
            self.during += 1
        elif self.banned_until:
            self.after.append(target)
            return super().pieces(target)
        if now < self.banned_until:
            return answer("banned", "Retry-After: 2", status=429)
        return super().pieces(target)


def test_a_crawl_waits_for_the_end_of_a_ban_and_loses_no_page(tmp_path: Path) -> None:
    answers = {f"/site/p{number}.html": page("") for number in range(30)}
    answers["/site/index.html"] = page("".join(f"<a href=p{number}.html>" for number in range(30)))
    site = BanningSite(answers)
    with site, tracker.serving() as server:
        code, _, errors = run_crawl(site, server, tmp_path, "--max-retries", "1")
        project = get_project(server)
    assert code == 0, errors
    assert "left alone until" in errors
    assert (project["closed_task_count"], project["failed_task_count"]) == (31, 0)
    assert site.during <= 1, "what was on its way when the ban began"
    assert set(site.after) > {f"/site/p{number}.html" for number in range(10, 30)}


# ── Charsets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CHARSETS = {  # the page, the charset of the header, the targets of its links
    "one GBK character in gb2312": (b"<a href=a><p>\x96\x9f<a href=b>", "gb2312", ["a", "b"]),
    "four bytes of gb18030 in gbk": (b"<a href=\x81\x30\x81\x30><a href=b>", "gbk", ["%C2%80", "b"]),
    "a stray byte in us-ascii": (b"<a href=a><p>\xe9<a href=b>", "us-ascii", ["a", "b"]),
    "a stray byte in euc-jp": (b"<a href=a><p>\xff<a href=b>", "euc-jp", ["a", "b"]),
    "a stray byte in utf-8": (b"<a href=a><p>\xff<a href=b>", "utf-8", ["a", "b"]),
    "a stray lead byte before a tag": (b"<a href=a>\x81<a href=b>", "big5", ["a", "b"]),
    "half a character at the end": (b"<a href=a>\xe3\x81", "utf-8", ["a"]),
    "ks_c_5601-1987": (b"<a href=\xb0\xa1>", "ks_c_5601-1987", ["%EA%B0%80"]),
    "cp949 beyond euc-kr": (b"<a href=\x81\x41>", "euc-kr", ["%EA%B0%82"]),
    "windows-31j in Shift_JIS": (b"<a href=~u/\x87\x40>", "Shift_JIS", ["~u/%E2%91%A0"]),
    "NEC's and IBM's characters in euc-jp": (
        b"<a href=\xad\xa1\xf9\xa1\xa1\xc1>",
        "euc-jp",
        ["%E2%91%A0%E7%BA%8A%EF%BD%9E"],
    ),
    "what euc-jp has not": (b"<a href=\xa9\xa1\x8f\xa1\xa1>", "euc-jp", ["%EF%BF%BD%EF%BF%BD"]),
    "NEC's characters in iso-2022-jp": (b"<a href=\x1b$B-!!A\x1b(B>", "iso-2022-jp", ["%E2%91%A0%EF%BD%9E"]),
    "letters of Belarus in koi8-u": (b"<a href=\xae?q=\xbe>", "koi8-u", ["%D1%9E?q=%BE"]),
    "a label in quotes and capitals": (b"<a href=\xc3\xa9>", " UTF8 ", ["%C3%A9"]),
    "a label of nothing, and a meta": (b"<meta charset=koi8-r><a href=\xc1>", "x-none", ["%D0%B0"]),
    "utf-7 is none": (b"<a href=+AGE-><a href=\xe9>", "utf-7", ["+AGE-", "%C3%A9"]),
    "a hole in windows-1252": (b"<a href=\x81>", "iso-8859-1", ["%C2%81"]),
    "a meta of utf-16": (b"<meta charset=utf-16><a href=\xc3\xa9>", None, ["%C3%A9"]),
    "a meta of x-user-defined": (b"<meta charset=x-user-defined><a href=\xe9>", None, ["%C3%A9"]),
    "a meta in a comment": (b"<!--<meta charset=koi8-r>--><a href=\xe9>", None, ["%C3%A9"]),
    "a meta http-equiv": (
        b"<META content='text/html; CHARSET = \"koi8-r\"' http-equiv=Content-Type><a href=\xc1>",
        None,
        ["%D0%B0"],
    ),
    "a meta far down": (b"<title>" + b"x" * 3000 + b"</title><meta charset=koi8-r><a href=\xc1>", None, ["%D0%B0"]),
    "an XML declaration": (b"<?xml version='1.0' encoding='koi8-r'?><a href=\xc1>", None, ["%D0%B0"]),
    "an XML declaration that lies": (b"<?xml version='1.0' encoding='utf-16'?><a href=\xc3\xa9>", None, ["%C3%A9"]),
    "utf-16 by its header": ("<meta charset=koi8-r><a href=é>".encode("utf-16-le"), "utf-16", ["%C3%A9"]),
    "utf-16 by its XML declaration": ("<?xml version='1.0'?><a href=é>".encode("utf-16-be"), None, ["%C3%A9"]),
    "a BOM against the header": (b"\xef\xbb\xbf<a href=\xc3\xa9>", "iso-8859-1", ["%C3%A9"]),
    "a BOM of utf-16 against all": (b"\xfe\xff" + "<a href=é>".encode("utf-16-be"), "utf-8", ["%C3%A9"]),
    "NUL": (b"<a href=a\0b>\0<a href=b>", None, ["a%EF%BF%BDb", "b"]),
    "a replaced encoding": (b"<a href=a>", "hz-gb-2312", []),
    "a query in Shift_JIS": (b"<a href='\x95\x5c?q=\x95\x5c&r=a#\x95\x5c'>", "Shift_JIS", ["%E8%A1%A8?q=%95\\&r=a"]),
    "a query in windows-1251": (b"<a href=?q=\xe0>", "windows-1251", ["?q=%E0"]),
    "a query in what is UTF-8 and does not say so": (b"<a href=?q=\xd1\x81\xc3\x8d>", None, ["?q=%D1%81%C3%8D"]),
    "a query of a hole in windows-874": (b"<a href=?q=\xa1\x9f>", "windows-874", ["?q=%A1%9F"]),
    "a query in gb18030 that is called gbk": (
        b"<a href=?q=\xa8\xbf\x96\x87\xad\xe6>",
        "gbk",
        ["?q=%A8%BF%96%87%AD%E6"],
    ),
    "a query of four bytes of gb18030 in gbk": (b"<a href=?q=\x81\x30\x81\x30>", "gbk", ["?q=%26%23128%3B"]),
    "a query with a euro in gbk": (b"<a href=\x80?q=\x80>", "gbk", ["%E2%82%AC?q=%80"]),
    "a query with a name in Shift_JIS": (b"<a href=?q=\xfb\xfc\x8b\xb4\xed\x95>", "sjis", ["?q=%FB%FC%8B%B4%FA%B1"]),
    "a query in euc-jp": (
        b"<a href=?q=a\xad\xa1\xf9\xa1\xa1\xc1\x8e\xb1&#8722;&#165;&#8254;>",
        "euc-jp",
        ["?q=a%AD%A1%F9%A1%A1%C1%8E%B1%A1%DD\\~"],
    ),
    "a query that euc-jp lacks": (
        b"<a href=?q=\x8f\xa2\xf1&#169;&#162;>",
        "euc-jp",
        ["?q=%AD%E2%26%23169%3B%26%23162%3B"],
    ),
    "a query that its charset lacks": (b"<a href=?q=&#30000;>", "windows-1251", ["?q=%26%2330000%3B"]),
    "a query in utf-16": ("<a href=?q=é>".encode("utf-16-le"), "utf-16", ["?q=%C3%A9"]),
}


@pytest.mark.parametrize(("html", "charset", "expected"), CHARSETS.values(), ids=CHARSETS)
def test_links_are_read_in_the_charset_that_browsers_would_use(
    html: bytes, charset: str | None, expected: list[str]
) -> None:
    assert crawl.find_links(html, "http://site/", charset) == [f"http://site/{target}" for target in expected]


def test_xhtml_is_utf_8_unless_it_says_otherwise(tmp_path: Path) -> None:
    xhtml = "Content-Type: application/xhtml+xml"
    assert links({"/a": page(b"<a href='\xc3\xa9'/>", xhtml)}, tmp_path) == ["/%C3%A9"]


def test_every_label_of_the_standard_is_read() -> None:
    for label in crawl.webencodings.LABELS:
        if crawl.webencodings.lookup(label).name not in ("replacement", "utf-16le", "utf-16be"):
            assert crawl.find_links(b"<a href=a>\xff\x81<p><a href=b>", "http://s/", label)[1:] == ["http://s/b"], label


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

# A link, the page that it is on, and the URL, null where there is none or it is not http(s): after the list of the URL
# standard's own tests. The URLs are those of jsdom's whatwg-url, which shares no code with what the crawler uses.
URLS = json.loads((Path(__file__).parent / "urls.json").read_text())


def test_the_table_of_urls_is_whole() -> None:
    assert (len(URLS), sum(url is None for _, _, url in URLS)) == (241, 66)


@pytest.mark.parametrize(("link", "base", "url"), URLS)
def test_a_url_is_what_browsers_make_of_it(link: str, base: str | None, url: str | None) -> None:
    found = crawl.resolve(link, base)
    assert (found and found.href) == url


@pytest.mark.parametrize(("link", "base", "url"), [row for row in URLS if row[2]])
def test_what_is_fetched_is_the_url_without_its_login_and_fragment_and_stays_as_it_is(
    link: str, base: str | None, url: str
) -> None:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("#")[0].partition("/")
    fetched = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    assert crawl.normalise(link, base) == fetched
    assert crawl.normalise(fetched) == fetched
    target = crawl.as_it_is(fetched).get("target", crawl.httpx.URL(fetched).raw_path)
    assert target.decode() == slash + path


ODD = [
    "/x//y",
    "/web/2020/http://example.org//a",
    "/a|b^[c]",
    "/%7Eu/%7eu",
    "/a?",
    "/a?b='c'&%zz",
    "/a?x=[1]|{2}",
    "/%",
]


@pytest.mark.parametrize("path", ODD)
def test_a_path_goes_to_the_site_as_browsers_send_it(path: str, tmp_path: Path) -> None:
    with serving({}) as site, working(site, tmp_path) as worker:
        url = crawl.normalise(path, site.url)
        worker.fetch(url, "")
        assert site.asked == [url.removeprefix(site.url[:-1])]


@pytest.mark.parametrize("host", ["\U0001f4a9.invalid", "fée_bü.invalid", "a_b.invalid", "！.invalid", "xn--a.invalid"])
def test_a_host_of_any_kind_is_asked_for(host: str, tmp_path: Path) -> None:
    url = crawl.normalise(f"http://{host}/")
    with serving({}) as site, working(site, tmp_path, scope=url) as worker:
        found = worker.fetch(url, "")
    assert found.error.startswith("ConnectError")


def test_pages_that_differ_in_an_unreserved_character_only_are_one() -> None:
    html = b"<a href=/%7eu/><a href=/~u/><a href=/%7Eu/><a href=/%7Eu/?><a href=/a//b><a href=/a/b>"
    assert crawl.find_links(html, "http://s/") == ["http://s/%7eu/", "http://s/a//b", "http://s/a/b"]


def test_a_seed_with_a_doubled_slash_is_in_its_own_scope(tmp_path: Path) -> None:
    answers = {"/site//b/": page("<a href=c>"), "/site//b/c": page("")}
    with serving(answers) as site, tracker.serving() as server:
        seed = SimpleNamespace(url=f"{site.url}site//b/#")
        code, _, errors = run_crawl(seed, server, tmp_path)
    assert code == 0, errors
    assert {"/site//b/", "/site//b/c"} <= set(site.asked)


@pytest.mark.parametrize(
    "sent",
    [
        page("", HTML, f"Link: </{'x' * 5000}>; rel=next"),
        page("", HTML, f"Refresh: 0; url=/{'x' * 5000}"),
        answer("", f"Location: /{'x' * 5000}", status=302),
    ],
    ids=["Link", "Refresh", "Location"],
)
def test_a_link_of_a_header_that_is_too_long_is_left_out(sent: list[bytes], tmp_path: Path) -> None:
    with serving({"/a": sent}) as site, working(site, tmp_path) as worker:
        found = worker.fetch(f"{site.url}a", "")
    assert (found.links, found.left_out) == ([], {"too long": 1})


@pytest.mark.parametrize("location", ["x" * 70_000, "http://[", "http://h:99999/", "http://%/", "//", "\x7f://"])
def test_a_redirect_to_what_is_no_url_is_one_to_nowhere(location: str, tmp_path: Path) -> None:
    sent = answer("", f"Location: {location}", status=302)
    with serving({"/a": sent, "/robots.txt": sent}) as site, working(site, tmp_path) as worker:
        found = worker.fetch(f"{site.url}a", "x")
        assert (found.outcome, found.status) == ("ok", 302)
        assert not any(len(link) > crawl.LONGEST_URL for link in found.links)
        assert crawl.read_robots(site.url, "tests") == ""


def test_a_seed_that_cannot_be_asked_for_has_failed_and_is_in_the_records(tmp_path: Path) -> None:
    with serving({}) as site, working(site, tmp_path) as worker:
        released = give(worker, f"{site.url}{'x' * 70000}")
        [record] = crawl.read_records(worker.crawl.records)
    assert (released["result"], released["for_good"]) == (library.FAILED, True)
    assert record["outcome"] == "failed" and "too long" in record["error"]


def test_a_link_that_is_too_long_is_counted_and_told(tmp_path: Path) -> None:
    html = f"<a href={'x' * 5000}><a href={'y' * 5000}><a href=b>"
    with serving({"/a": page(html), "/b": page("")}) as site, working(site, tmp_path) as worker:
        assert worker.crawl_page(f"{site.url}a", "").links == [f"{site.url}b"]
        worker.crawl_page(f"{site.url}b", "")
    with contextlib.closing(crawl.Index(worker.crawl.records)) as index:
        index.update()
        assert crawl.summary(index, worker.crawl.records)["left_out"] == {"too long": 2}


def test_the_login_of_the_seed_opens_the_site_and_is_written_nowhere(tmp_path: Path) -> None:
    with serving({"/robots.txt": answer(), "/site/index.html": page("<a href=b.html>")}) as site:
        seed = SimpleNamespace(url=site.url.replace("//", "//jo:p%40ss@"))
        with tracker.serving() as server:
            assert run_crawl(seed, server, tmp_path)[0] == 0
    assert len(site.heads) == 3
    assert all("Authorization: Basic am86cEBzcw==" in head for head in site.heads)
    for file in (tmp_path / "state").iterdir():
        assert b"p@ss" not in file.read_bytes() and b"p%40ss" not in file.read_bytes()


# ── Robots ────────────────────────────────────────────────────────────────────────────────────────────────────────────

RULES = "User-agent: *\nDisallow: /b\n"
ENCODED = {
    "plain": RULES.encode(),
    "with a BOM": RULES.encode("utf-8-sig"),
    "with two": RULES.encode("utf-8-sig").replace(b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2),
    "UTF-16": RULES.encode("utf-16"),
    "UTF-16, the other way": b"\xfe\xff" + RULES.encode("utf-16-be"),
    "odd bytes": b"# \xff\0\n" + RULES.encode(),
    "ends of line of old": RULES.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("rules", ENCODED.values(), ids=ENCODED)
def test_a_robots_txt_is_read_in_whatever_unicode_it_is(rules: bytes) -> None:
    with serving({"/robots.txt": answer(rules)}) as site:
        robots = crawl.Protego.parse(crawl.read_robots(site.url, "tests"))
    assert robots.can_fetch(f"{site.url}a", "tests") and not robots.can_fetch(f"{site.url}b", "tests")


@pytest.mark.parametrize(
    ("robots", "seconds"),
    [(answer("", "Retry-After: 90", status=429), 90), (answer(status=429), 2), (answer(status=503), 2), ([], 2)],
)
def test_a_robots_txt_that_cannot_be_had_now_has_its_host_left_alone(
    robots: list[bytes], seconds: float, tmp_path: Path
) -> None:
    with serving({"/robots.txt": robots, "/a": page("")}) as site, working(site, tmp_path) as worker:
        worker.hosts.db.execute("DELETE FROM robots")
        released = give(worker, f"{site.url}a")
        assert site.asked == ["/robots.txt"]
    assert released["result"] == library.SKIPPED
    assert released["delay"] == pytest.approx(seconds, abs=1)


def test_a_robots_txt_is_read_when_its_host_is_first_met_and_after_a_day_again(tmp_path: Path) -> None:
    answers = {"/robots.txt": answer(RULES), "/a": page(""), "/b": page("")}
    with serving(answers) as site, working(site, tmp_path) as worker:
        worker.hosts.db.execute("UPDATE robots SET read_at = read_at - 86401")
        for path in ("a", "b", "a"):
            assert give(worker, f"{site.url}{path}")["result"] == library.DONE
        assert site.asked == ["/robots.txt", "/a", "/a"]
        worker.rules.clear()
        worker.hosts.db.execute("UPDATE robots SET read_at = read_at - 86401")
        give(worker, f"{site.url}a")
        assert site.asked[3:] == ["/robots.txt", "/a"]


AGENT = "tests/1.0 (me@example.org)"
GROUPS = {  # a robots.txt and the paths that it forbids
    "ours": "User-agent: tests\nDisallow: /a\nUser-agent: *\nDisallow: /b",
    "of all": "User-agent: *\nDisallow: /b\nUser-agent: other\nDisallow: /a",
    "of several": "User-agent: other\n\nSitemap: http://h/s\nUser-agent: TESTS # us\nDisallow: /a",
    "ours twice": "User-agent: tests\nDisallow: /a\nUser-agent: other\nDisallow: /c\nUser-agent: tests*\nDisallow: /b",
    "of none": "Disallow: /a\nUser-agent:\nDisallow: /b\nUser-agent: attests\nDisallow: /c",
    "the better name": "User-agent: tests/1\nAllow: /a\nUser-agent: tests\nDisallow: /a",
    "without colons": "User-agent tests\nwhat is this\nUser-agent other\nDisallow /a\nCrawl-delay 4",
    "nothing": "",
}


@pytest.mark.parametrize("text", GROUPS.values(), ids=GROUPS)
def test_what_a_robots_txt_says_to_others_may_be_left_out(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = crawl.Protego.parse(text)
    monkeypatch.setattr(crawl, "MOST_PAIRS", -1)
    ours = crawl.Protego.parse(crawl.rules_for(AGENT, text))
    for path in "abcd":
        assert ours.can_fetch(f"http://h/{path}", AGENT) == whole.can_fetch(f"http://h/{path}", AGENT)
    assert ours.crawl_delay(AGENT) == whole.crawl_delay(AGENT)
    assert list(ours.sitemaps) == list(whole.sitemaps)


def test_a_robots_txt_of_many_names_with_many_rules_is_read_as_what_it_says_to_us() -> None:
    names, rules = ("".join(f"{kind}: x{number}\n" for number in range(9000)) for kind in ("User-agent", "Disallow"))
    known = crawl.Robots(time.time(), f"User-agent: tests\n{names}{rules}Disallow: /a", AGENT)
    assert len(known.rules._user_agents) == 1
    assert not known.rules.can_fetch("http://h/a", AGENT)


def test_links_beyond_those_that_many_rules_are_read_for_wait_for_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crawl, "MOST_RULES_READ", 2 * len(RULES))
    html = "".join(f"<a href=/b{number}>" for number in range(4))
    with serving({"/a": page(html)}) as site, working(site, tmp_path, robots=RULES) as worker:
        found = worker.crawl_page(f"{site.url}a", "x")
        assert found.left_out == {"forbidden by robots.txt": 2}
        assert give(worker, f"{site.url}b3")["result"] == library.DONE
        assert site.asked == ["/a"]


def test_of_long_rules_few_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "MOST_RULES_KNOWN", 2 * len(RULES))
    with serving({}) as site, working(site, tmp_path) as worker:
        for number in range(4):
            worker.hosts.keep_robots(f"http://h{number}/", RULES)
            assert worker.robots_of(f"http://h{number}/b")
        assert list(worker.rules) == ["http://h2/", "http://h3/"]


def test_a_robots_txt_that_another_clock_has_read_in_the_future_is_read_again(tmp_path: Path) -> None:
    with serving({"/robots.txt": answer(RULES)}) as site, working(site, tmp_path) as worker:
        worker.hosts.db.execute("UPDATE robots SET read_at = read_at + 90000")
        assert give(worker, f"{site.url}b")["result"] == library.DONE
        assert site.asked == ["/robots.txt"]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_no_robots_txt_allows_everything(status: int) -> None:
    with serving({"/robots.txt": answer(RULES, status=status)}) as site:
        assert crawl.read_robots(site.url, "tests") == ""


@pytest.mark.parametrize(
    ("rules", "rate", "gap", "told"),
    [
        ("Crawl-delay: 4", 5, 4, True),
        ("Crawl-delay: 4", 0.1, 10, False),
        ("Crawl-delay: 0", 5, 0.2, False),
        ("Crawl-delay: 4", 0, 4, True),
        ("Request-rate: 1/10", 5, 10, True),
        ("Request-rate: 0/10", 5, 0.2, False),
        ("Crawl-delay: nan", 5, 0.2, False),
        ("Crawl-delay: inf", 5, 0.2, False),
    ],
)
def test_the_slower_of_rate_and_crawl_delay_holds_and_one_line_says_so(
    rules: str, rate: float, gap: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(crawl, "say", said.append)
    answers = {"/robots.txt": answer(f"User-agent: *\n{rules}")}
    with serving(answers) as site, working(site, tmp_path, rate=rate) as worker:
        for _ in range(2):
            worker.learn_robots(site.url)
        (host,) = worker.hosts.read("1")
        assert worker.hosts.gap_of(host) == gap
    assert len(said) == told


NOT_FOLLOWED = {  # headers and page
    "a header": (["X-Robots-Tag: noindex, nofollow"], ""),
    "a header that says none": (["X-Robots-Tag: NONE"], ""),
    "the second of two headers": (["X-Robots-Tag: noindex", "X-Robots-Tag: nofollow"], ""),
    "a header for this robot": (["X-Robots-Tag: tests: nofollow"], ""),
    "a header with a date": (["X-Robots-Tag: unavailable_after: 25 Jun 2010 15:00:00 PST, nofollow"], ""),
    "a meta": ([], "<META NAME=Robots CONTENT='noindex,NOFOLLOW'>"),
    "a meta that says none": ([], "<meta name=robots content=none>"),
    "a meta for this robot": ([], "<meta name=Tests content=nofollow>"),
    "a meta behind the links": ([], "<a href=z><meta name=robots content=nofollow>"),
}
FOLLOWED = {
    "a header for another": (["X-Robots-Tag: googlebot: nofollow"], ""),
    "a header that allows it": (["X-Robots-Tag: noindex, follow"], ""),
    "a meta for another": ([], "<meta name=googlebot content=nofollow>"),
    "a meta of another kind": ([], "<meta name=keywords content=nofollow>"),
}


@pytest.mark.parametrize(("headers", "html"), NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_the_links_of_a_page_that_does_not_want_it_are_not_followed(
    headers: list[str], html: str, tmp_path: Path
) -> None:
    answers = {"/a": page(f"{html}<a href=b>", HTML, *headers)}
    assert links(answers, tmp_path, user_agent="Tests/1.0 (me)") == []
    assert links(answers, tmp_path, user_agent="Tests (me@example.org)") == []
    assert "/b" in links(answers, tmp_path, user_agent="Tests/1.0 (me)", ignore_nofollow=True)


@pytest.mark.parametrize(("headers", "html"), FOLLOWED.values(), ids=FOLLOWED)
def test_what_is_said_to_other_robots_does_not_matter(headers: list[str], html: str, tmp_path: Path) -> None:
    assert links({"/a": page(f"{html}<a href=b>", HTML, *headers)}, tmp_path) == ["/b"]


def test_a_link_that_asks_not_to_be_followed_is_counted_unless_another_to_it_does_not(tmp_path: Path) -> None:
    html = "<a href=b rel='external NoFollow'><a href=c rel=nofollow><a href=c#x><a href=d rel=nofollower>"
    with serving({"/a": page(html)}) as site, working(site, tmp_path) as worker:
        found = worker.fetch(f"{site.url}a", "")
    assert (found.links, found.left_out) == ([f"{site.url}c", f"{site.url}d"], {"nofollow": 1})


# ── How it ends ───────────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN_SEEDS = {
    "a seed that is not there": ({}, "The seed is broken: 404"),
    "a seed that is always refused": ({"/site/index.html": answer(status=500)}, "The seed is failed: 500"),
    "a seed that leads out": (
        {"/site/index.html": answer("", "Location: /away", status=302)},
        "The seed is broken: redirect out of the crawl's scope",
    ),
    "a seed that leads to itself": (
        {"/site/index.html": answer("", "Location: index.html", status=302)},
        "No page was ever fetched",
    ),
    "a seed that leads to nothing": (
        {"/site/index.html": answer("", "Location: gone.html", status=302)},
        "No page was ever fetched",
    ),
}


@pytest.mark.parametrize(("answers", "said"), BROKEN_SEEDS.values(), ids=BROKEN_SEEDS)
def test_a_crawl_without_a_page_ends_with_a_status_of_its_own(
    answers: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with serving(answers) as site, tracker.serving() as server:
        for password in (True, False):  # started again it is none the better
            code, output, errors = run_crawl(site, server, tmp_path, password=password)
            assert (code, said in output) == (1, True), output + errors


# ── A project is of one crawl ─────────────────────────────────────────────────────────────────────────────────────────

TWO = {"/site/index.html": page("<a href=b>"), "/site/b": page(""), "/other/site/index.html": page("")}


@contextlib.contextmanager
def managing(server: str) -> Iterator[crawl.httpx.Client]:
    with crawl.httpx.Client(base_url=server) as manager:
        login = {"username": "boss", "password": PASSWORD}
        if manager.post("/login", json=login).is_error:
            manager.post("/register", json=login).raise_for_status()
        yield manager


def test_a_second_crawl_of_a_host_is_refused_the_project_of_the_first(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    with serving(TWO) as site, tracker.serving() as server:
        other = SimpleNamespace(url=f"{site.url}other/")
        assert run_crawl(site, server, tmp_path / "first")[0] == 0
        code, _, errors = run_crawl(other, server, tmp_path / "second")
        assert code == 1 and f"is of the crawl of {site.url}site/index.html" in errors and "--project" in errors
        code, _, errors = run_crawl(other, server, tmp_path / "second", "--project", "other")
        assert code == 0, errors


def test_a_second_crew_may_join_a_crawl(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    with serving(TWO) as site, tracker.serving() as server:
        assert run_crawl(site, server, tmp_path / "first")[0] == 0
        code, _, errors = run_crawl(site, server, tmp_path / "second")
    assert code == 0, errors
    assert site.asked.count("/site/b") == 1


def test_a_project_with_tasks_or_a_secret_of_something_else_is_refused(tmp_path: Path) -> None:
    with serving(TWO) as site, tracker.serving() as server:
        with managing(server) as manager:
            for name in ("tasks", "a secret"):
                manager.post("/project/create", json={"name": name, "keep_hashes": True}).raise_for_status()
            manager.post("/project/secret/2", json={"secret": "key"}).raise_for_status()
            worker = manager.post("/worker/create", json={"alias": "me"}).json()["content"]["worker"]
            headers = {"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]}
            wish = {"project": 1, "submit": True}
            manager.post("/project/request_access", json=wish, headers=headers).raise_for_status()
            manager.post(f"/project/accept_request/1/{worker['id']}").raise_for_status()
            task = {"project": 1, "recipe": "x"}
            manager.post("/task/submit", json=task, headers=headers).raise_for_status()
        for name in ("tasks", "a secret"):
            code, _, errors = run_crawl(site, server, tmp_path, "--project", name)
            assert code == 1 and f"Project {name} h" in errors and "of something else" in errors
    assert not [target for target in site.asked if "robots" not in target]


def test_a_crawl_begun_before_projects_knew_theirs_goes_on(tmp_path: Path) -> None:
    with serving(TWO) as site, tracker.serving() as server:
        assert run_crawl(site, server, tmp_path)[0] == 0
        with managing(server) as manager:
            manager.post("/project/secret/1", json={"secret": "{}"}).raise_for_status()
        assert run_crawl(site, server, tmp_path, password=False)[0] == 0
        assert run_crawl(site, server, tmp_path, "--workers", "3")[0] == 0
        with managing(server) as manager:
            secret = json.loads(manager.get("/project/secret/1").json()["content"]["secret"])
    assert (secret["crawl"]["seed"], secret["crawl"]["scope"]) == (f"{site.url}site/index.html", "prefix")


def test_a_page_out_of_scope_fails_and_is_never_done(tmp_path: Path) -> None:
    with serving({"/b": page("")}) as site, working(site, tmp_path, scope=f"{site.url}docs/") as worker:
        assert give(worker, f"{site.url}b")["result"] == library.FAILED
        assert site.asked == []


# ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TYPES = {
    "none": [],
    "two": ["Content-Type: text/plain", "Content-Type: text/html"],
    "a comma for a semicolon": ["Content-Type: text/html,charset=utf-8"],
    "one that is none": ["Content-Type: ;;;text/html"],
    "an empty one": ["Content-Type: "],
}


@pytest.mark.parametrize("headers", TYPES.values(), ids=TYPES)
def test_a_page_is_one_however_badly_its_type_is_told(headers: list[str], tmp_path: Path) -> None:
    assert links({"/a": answer("\n<!DOCTYPE html><a href=b>", *headers)}, tmp_path) == ["/b"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [("text <a href=b>", []), ("<abbr><a href=b>", []), ("<a href=b>", ["Content-Type: text/html, text/plain"])],
)
def test_what_is_no_page_is_not_read_for_links(body: str, headers: list[str], tmp_path: Path) -> None:
    assert links({"/a": answer(body, *headers)}, tmp_path) == []
