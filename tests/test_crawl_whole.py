"""The crawler of examples/ on a whole site that does everything wrong, and on one that it keeps, and crawls again."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_crawl import PAGES, read_report, run_crawl, start_crawl, write_site
from test_crawl_hostile import CHARSETS, DRIP, HTML, START, HostileSite, answer, page
from test_crawl_pages import CHUNKED, read_warcs

import tracker
from examples import crawl, prove_crawl


def fates_of(state: Path) -> dict[str, dict[str, Any]]:
    """What crawl.py report names of each page, by its URL."""
    command = [sys.executable, crawl.__file__, "report", state, "--pages", "--json"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    pages = [json.loads(line) for line in told.splitlines()]
    assert len({page["url"] for page in pages}) == len(pages)
    return {page["url"]: page for page in pages}


# ── A hostile site ────────────────────────────────────────────────────────────────────────────────────────────────────

ROBOTS = b"\xef\xbb\xbfUser-agent: *\nDisallow: /site/forbidden\n"
LONG_LIST = "".join(f"<a href=http://elsewhere.invalid/{number}>" for number in range(25_000))
FATES = {  # of a page below /site/: how it answers, what becomes of it, and with which status
    "headers-drip": ([START, *DRIP * 30], "failed", None),
    "body-drips": ([START, b"\r\n", *[b"<a href=never>", 0.05] * 30], "failed", 200),
    "has-no-end": ("endless", "truncated", 200),
    "moves-to-itself": (answer("", "Location: moves-to-itself", status=301), "redirect", 301),
    "moves-round": (answer("", "Location: moves-round-2", status=302), "redirect", 302),
    "moves-round-2": (answer("", "Location: moves-round", status=307), "redirect", 307),
    "moves-away": (answer("", "Location: http://elsewhere.invalid/x", status=302), "redirect", 302),
    "moves-nowhere": (answer("", status=302), "broken", 302),
    "too-short": (
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 99\r\n\r\n<a href=never>"],
        "failed",
        200,
    ),
    "too-long": (
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nshort<a href=never>"],
        "fetched",
        200,
    ),
    "cut-gzip": (answer(gzip.compress(b"<a href=never>" * 99)[:-9], HTML, "Content-Encoding: gzip"), "failed", 200),
    "cut-chunks": ([CHUNKED, b"e\r\n<a href=never>\r\n"], "failed", 200),
    "bomb": (answer(gzip.compress(bytes(10**7)), HTML, "Content-Encoding: gzip"), "truncated", 200),
    "no-http": ([b"<a href=never>"], "failed", None),
    "gone": (answer("<a href=never>", HTML, status=410), "broken", 410),
    "error": (answer("<a href=never>", HTML, status=500), "failed", 500),
    "links": (page(LONG_LIST), "fetched", 200),
    "nofollow": (page("<a href=never>", HTML, "X-Robots-Tag: nofollow"), "fetched", 200),
    "nofollow-meta": (page("<meta name=robots content=nofollow><a href=never>"), "fetched", 200),
    "ban": ([answer("", "Retry-After: 1", status=429), page("<a href=behind-the-ban>")], "fetched", 200),
    "behind-the-ban": (page(""), "fetched", 200),
    "chain-1": (answer("", "Location: chain-2", status=301), "redirect", 301),
    "chain-2": (answer("", "Location: chain-3", status=308), "redirect", 308),
    "chain-3": (page(""), "fetched", 200),
}
for number, (html, charset, _) in enumerate(CHARSETS.values()):
    declared = f"Content-Type: text/html; charset={charset}" if charset else HTML
    FATES[f"charset-{number}"] = (page(html, declared), "fetched", 200)
TRAPS = ["calendar/2020/1", "deeper/x", "shop?item=1", "visit?any=1"]


class WorstSite(HostileSite):
    """Has all of that, and traps: a calendar, folders in folders, and names for each visit, by cookie and in URLs."""

    def __init__(self):
        links = "".join(f"<a href={name}>" for name in [*FATES, *TRAPS, "forbidden", "never rel=nofollow"])
        answers = {"/robots.txt": answer(ROBOTS), "/site/index.html": page(links)}
        super().__init__(answers | {f"/site/{name}": sent for name, (sent, _, _) in FATES.items()})
        self.visits = itertools.count()

    def pieces(self, target: str) -> Iterable[bytes | float]:
        visit = f"{next(self.visits):032x}"
        if found := re.fullmatch(r"/site/calendar/(\d+)/(\d+)", target):
            months = int(found[1]) * 12 + int(found[2])
            return page(f"<a href=/site/calendar/{months // 12}/{months % 12 + 1}>")
        if target.startswith("/site/deeper/"):
            return page("<a href=x/x>")
        if target.startswith("/site/shop?"):
            return page(f"<a href=shop?item=1&PHPSESSID={visit}>", HTML, f"Set-Cookie: PHPSESSID={visit}")
        if target.startswith("/site/visit?"):
            return page(f"<a href=visit?any={visit}>", HTML, f"Set-Cookie: any={visit}")
        pieces = super().pieces(target)
        return self.without_end() if pieces == "endless" else pieces

    def without_end(self) -> Iterator[bytes]:
        yield START + b"\r\n<a href=chain-1>"
        while True:
            yield bytes(2**14)


@pytest.fixture(scope="module")
def worst(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a crawl of the worst site leaves, which ended by itself."""
    directory = tmp_path_factory.mktemp("worst")
    options = ["--timeout", "1", "--max-assign-time", "3", "--max-body", "1500000", "--max-variants", "5"]
    with WorstSite() as site, tracker.serving() as server:
        code, output, errors = run_crawl(site, server, directory, *options)
    assert code == 0, errors
    yield {
        "site": site,
        "output": output,
        "report": read_report(directory),
        "fates": {url.removeprefix(f"{site.url}site/"): told for url, told in fates_of(directory / "state").items()},
    }


def test_the_report_names_the_fate_of_every_page_of_a_hostile_site(worst: dict[str, Any]) -> None:
    told = {name: (worst["fates"][name]["fate"], worst["fates"][name]["status"]) for name in FATES}
    assert told == {name: (fate, status) for name, (_, fate, status) in FATES.items()}


def test_no_page_of_a_hostile_site_is_asked_for_more_often_than_it_may_fail(worst: dict[str, Any]) -> None:
    """When too many in a row have failed, the last comes back, and the host is asked for one that it had answered."""
    asked, often = worst["site"].asked, {"headers-drip", "body-drips", "too-short", "cut-gzip", "cut-chunks", "no-http"}
    often = {f"/site/{name}" for name in (*often, "error", "ban")}
    failed = sum(target in often for target in asked)
    in_vain = failed // crawl.MOST_SILENT
    assert failed - in_vain <= 2 * len(often)
    assert len(asked) - failed <= len(set(asked) - often) + in_vain


def test_what_a_hostile_site_has_behind_its_errors_is_not_followed(worst: dict[str, Any]) -> None:
    assert worst["fates"]["never"]["fate"] == "left out: nofollow"
    assert worst["fates"]["forbidden"]["fate"] == "left out: forbidden by robots.txt"
    assert not {"/site/never", "/site/forbidden"} & set(worst["site"].asked)


def test_a_megabyte_of_links_is_read_and_each_is_named(worst: dict[str, Any]) -> None:
    elsewhere = [told for url, told in worst["fates"].items() if url.startswith("http://elsewhere.invalid/")]
    assert len(elsewhere) == 25_001
    assert {told["fate"] for told in elsewhere} == {"left out: out of scope"}
    assert worst["report"]["left_out"]["out of scope"] >= 25_001


def test_traps_end_and_what_was_left_out_is_told(worst: dict[str, Any]) -> None:
    asked = worst["site"].asked
    for trap in ("calendar/", "deeper/", "visit?"):
        assert 1 < sum(target.startswith(f"/site/{trap}") for target in asked) <= 50
        assert any(url.startswith(trap) and told["fate"].startswith("left out") for url, told in worst["fates"].items())
    assert sum(target.startswith("/site/shop?") for target in asked) <= 2


def test_every_page_that_was_asked_for_is_named_once_and_none_waits(worst: dict[str, Any]) -> None:
    names = {target.removeprefix("/site/") for target in worst["site"].asked} - {"/robots.txt"}
    assert names <= set(worst["fates"])
    assert "waiting" not in {told["fate"] for told in worst["fates"].values()}
    assert worst["report"]["waiting"] == 0


def test_the_printed_report_of_a_hostile_site_is_short_and_names_the_broken_links(worst: dict[str, Any]) -> None:
    assert re.search(r"^broken: 410 \S+/gone \(found on \S+index\.html\)$", worst["output"], re.MULTILINE)
    assert re.search(r"^failed: 500 \S+/error ", worst["output"], re.MULTILINE)
    assert len(worst["output"].splitlines()) < 60 + len(FATES)


# ── A site that is kept, and crawled again ────────────────────────────────────────────────────────────────────────────


def test_a_crawl_whose_workers_are_killed_keeps_every_page_whole_and_another_asks_for_what_has_changed(
    tmp_path: Path,
) -> None:
    www, kept = write_site(tmp_path / "www"), tmp_path / "kept"
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with prove_crawl.Site(www) as site, tracker.serving() as server:
        process = start_crawl(site, server, first, "--warc", kept)
        prove_crawl.wait_until(lambda: site.fetched.total() > 10)
        for number in re.findall(r"is process (\d+)", "".join(itertools.islice(process.stderr, 2))):
            subprocess.run(["kill", "-9", number], check=True)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        pages = site.pages()
        assert len(pages) == PAGES + 1

        site.fetched.clear()
        (www / "site" / "p7.html").write_text("<a href=new.html>")
        (www / "site" / "new.html").write_text("new")
        again = ["--again", first / "state", "--warc", kept, "--project", "again"]
        code, _, errors = run_crawl(site, server, second, *again)
        assert code == 0, errors
        assert set(site.fetched.values()) == {1} and len(site.fetched) == PAGES + 2
        assert read_report(second)["by_fate"] == {"unchanged": PAGES, "fetched": 2}
    records = read_warcs(kept)
    assert not list(kept.glob("*.open"))
    responses = [record["url"] for record in records if record["type"] == "response"]
    assert {prove_crawl.page_of(url.removeprefix(site.url[:-1])) for url in responses} == pages | {"/site/new.html"}
    assert sum(record["type"] == "revisit" for record in records) == PAGES
