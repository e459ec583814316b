"""The crawler of examples/ on several hosts: which pages are its own, whose turn it is, and what it waits for."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_crawl import get_project, give, read_report, run_crawl, start_crawl, working
from test_crawl_hostile import HTML, RESET, START, HostileSite, answer, page, serving

import tracker
import worker as library
from examples import crawl, prove_crawl


def told_of(worker: crawl.Worker) -> dict[str, Any]:
    """What the report says of the worker's pages."""
    with contextlib.closing(crawl.Index(worker.crawl.records)) as index:
        index.update()
        return crawl.summary(index, worker.crawl.records)


def pages_asked(site: HostileSite) -> list[str]:
    """All that was asked for but robots.txt, which each worker reads for itself."""
    return sorted(target for target in site.asked if target != "/robots.txt")


# ── Scope ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SEED = "https://www.example.co.uk/docs/a.html"
PLACES = {  # a URL, and the kinds of scope around the seed that it belongs to
    "https://www.example.co.uk/docs/b/c": {"prefix", "host", "domain"},
    "https://www.example.co.uk/other": {"host", "domain"},
    "https://www.example.co.uk/docsother": {"host", "domain"},
    "http://www.example.co.uk/docs/a.html": {"domain"},
    "https://www.example.co.uk:8443/docs/": {"domain"},
    "https://static.example.co.uk/": {"domain"},
    "https://example.co.uk/": {"domain"},
    "https://other.co.uk/": set(),
    "https://www.example.co.uk.evil.org/docs/": set(),
    "https://notexample.co.uk/docs/": set(),
}


@pytest.mark.parametrize("kind", ["prefix", "host", "domain"])
@pytest.mark.parametrize(("url", "kinds"), PLACES.items())
def test_a_scope_is_a_directory_a_host_or_a_domain(kind: str, url: str, kinds: set[str]) -> None:
    assert crawl.Scope.around(kind, [SEED]).covers(url) == (kind in kinds)


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.example.co.uk", "example.co.uk"),
        ("me.github.io", "me.github.io"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("localhost", "localhost"),
        ("co.uk", "co.uk"),
        ("www.xn--bcher-kva.de", "xn--bcher-kva.de"),
    ],
)
def test_a_domain_is_what_somebody_has_registered(host: str, domain: str) -> None:
    assert crawl.domain_of(host) == domain


def test_several_seeds_have_the_scope_of_all_of_them() -> None:
    scope = crawl.Scope.around("prefix", ["http://a/x/y.html", "http://b/long/directory/"])
    covered = ["http://a/x/", "http://a/x/z", "http://b/long/directory/1"]
    assert all(map(scope.covers, covered))
    assert not any(map(scope.covers, ["http://a/", "http://b/x/y", "http://b/long/"]))


def test_http_and_https_are_one_site_if_that_is_said() -> None:
    scope = crawl.Scope.around("host", ["https://h/"], one_site=True)
    assert scope.covers("http://h/a") and scope.key("http://h/a") == scope.key("https://h/a")
    assert not crawl.Scope.around("host", ["https://h/"]).covers("http://h/a")


@pytest.mark.parametrize(
    ("pattern", "url", "does"),
    [
        ("http://h/a", "http://h/a", True),
        ("http://h/a", "http://h/ab", False),
        ("*/a", "http://h/a", True),
        ("*/a/*", "http://h/a", False),
        ("http://h/*.zip", "http://h/x/y.zip", True),
        ("*print=1*", "http://h/x?print=1", True),
        ("*a*a*", "http://h/a", False),
        ("*ab*ba", "http://h/aba", False),
        ("*", "", True),
        ("[a]?", "http://h/a", False),
    ],
)
def test_a_pattern_is_the_whole_url_and_a_star_is_anything(pattern: str, url: str, does: bool) -> None:
    assert crawl.matches(pattern, url) == does


LEFT_OUT = {  # what is told, a link and its depth
    "not of --include": ("http://h/a.txt", 1),
    "of --exclude": ("http://h/print/a.html", 1),
    "deeper than --max-depth": ("http://h/a.html", 4),
    "the same directory in itself": ("http://h/x/y/x/z/x/y/x/a.html", 1),
    "out of scope": ("http://other/a.html", 0),
}


@pytest.mark.parametrize(("reason", "link"), LEFT_OUT.items())
def test_a_link_is_left_out_for_a_reason(reason: str, link: tuple[str, int]) -> None:
    patterns = {"include": ("*.html",), "exclude": ("*/print/*",), "max_depth": 3}
    scope = crawl.Scope.around("host", ["http://h/"], **patterns)
    assert scope.against(*link) == reason
    assert scope.against("http://h/x/y/x/z/x/a.html", 3) == ""


def test_what_somebody_has_named_need_be_of_no_pattern() -> None:
    scope = crawl.Scope.around("host", ["http://h/"], include=("*.html",), exclude=("*",))
    assert scope.against("http://h/start", 0) == ""


def test_what_is_left_out_is_counted_and_shown_by_its_reason(tmp_path: Path) -> None:
    html = "<a href=/print/1><a href=/print/2><a href=/x/x/x/x/><a href=http://other/><a href=/b>"
    with serving({"/a": page(html)}) as site, working(site.url, tmp_path, patterns={"exclude": ("*/print/*",)}) as one:
        give(one, f"{site.url}a")
        (_, submitted), *_ = one.calls
        assert [json.loads(task["recipe"])["url"] for task in submitted["requests"]] == [f"{site.url}b"]
        expected = {"of --exclude": 2, "the same directory in itself": 1, "out of scope": 1}
        assert told_of(one)["left_out"] == expected
        assert told_of(one)["left_out_examples"]["of --exclude"] == f"{site.url}print/1"


def test_a_page_that_a_new_pattern_leaves_out_is_not_asked_for_though_it_waits(tmp_path: Path) -> None:
    with serving({"/a": page("")}) as site, working(site.url, tmp_path, patterns={"exclude": ("*/a",)}) as one:
        recipe = json.dumps({"url": f"{site.url}a", "found_on": site.url, "depth": 1})
        assert give(one, "", recipe=recipe)["result"] == library.DONE
        assert site.asked == []
        assert told_of(one)["left_out"] == {"of --exclude": 1}


# ── Traps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://h/a?sid=0123456789abcdef", "http://h/a"),
        ("http://h/a?x=1&PHPSESSID=0123456789abcdef0123&y=2", "http://h/a?x=1&y=2"),
        ("http://h/a;jsessionid=0123456789ABCDEF", "http://h/a"),
        ("http://h/a;JSessionID=01/b", "http://h/a/b"),
        ("http://h/a?ASPSESSIONIDQQ=ABCDEFGHIJKLMNOPQRST", "http://h/a"),
        ("http://h/(S(lit3py55t21z5v55vlm25s55))/a", "http://h/a"),
        ("http://h/x/(X(1)S(lit3py55t21z5v55vlm25s55))/a?b", "http://h/x/a?b"),
        ("http://h/(see)/a", "http://h/(see)/a"),
        ("http://h/(S(1))", "http://h/(S(1))"),
        ("http://h/a?sid=12/34", "http://h/a?sid=12/34"),
        ("http://h/a?sid=7", "http://h/a?sid=7"),
        ("http://h/a?id=0123456789abcdef", "http://h/a?id=0123456789abcdef"),
    ],
)
def test_the_name_of_a_session_makes_no_other_page(url: str, key: str) -> None:
    assert crawl.Scope.around("host", ["http://h/"]).key(url) == key


def test_pages_that_differ_in_the_query_or_a_date_are_asked_for_up_to_a_limit(tmp_path: Path) -> None:
    paths = [f"/a?n={n}" for n in range(4)] + [f"/cal/{year}-05/1" for year in range(2020, 2024)] + ["/1", "/2", "/3"]
    with serving({path: page("") for path in paths}) as site, working(site.url, tmp_path, max_variants=2) as one:
        for path in paths:
            assert give(one, f"{site.url}{path[1:]}")["result"] == library.DONE
        assert site.asked == ["/a?n=0", "/a?n=1", "/cal/2020-05/1", "/cal/2021-05/1", "/1", "/2", "/3"]
        assert told_of(one)["left_out"] == {"too many that differ in the query or a date": 4}


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("2024-05", "2031-12"),
        ("2024/5/31", "2024/6/1"),
        ("2024.05", "2024.06"),
        ("20240531", "20240601"),
        ("2024-w05", "2025-w06"),
        ("2024/W5", "2024/W6"),
        ("05-2024", "06-2024"),
        ("31.12.2024", "1.1.2025"),
        ("2024/may", "2025/may"),
        ("September-2024", "September-2025"),
        ("may/2024", "may/2025"),
    ],
)
def test_the_pages_of_a_calendar_are_alike(one: str, another: str) -> None:
    shapes = {crawl.shape_of(f"http://h/cal/{date}/all") for date in (one, another)}
    assert len(shapes) == 1 and shapes != {""}


@pytest.mark.parametrize("path", ["7", "1999", "123456", "20241399", "120240531", "5/2024", "mayor/2024", "1-2-3"])
def test_pages_that_only_have_numbers_are_not_alike(path: str) -> None:
    assert crawl.shape_of(f"http://h/item/{path}/all") == ""


def test_hosts_of_a_domain_are_asked_up_to_a_limit_besides_those_that_were_named(tmp_path: Path) -> None:
    with working("http://h.example/", tmp_path, max_variants=2) as one:
        one.crawl = dataclasses.replace(one.crawl, scope=crawl.Scope.around("domain", ["http://h.example/"]))
        reasons = []
        for name in ("h", "a", "b", "c", "a"):
            reasons.append(one.against(f"http://{name}.h.example/", depth=1))
            if not reasons[-1]:
                one.hosts.take_turn(f"{name}.h.example")
        assert reasons == ["", "", "", "too many hosts of a domain", ""]


class Endless(HostileSite):
    """A calendar, directories in themselves, sessions and numbers, all without an end."""

    def pieces(self, target: str) -> Any:
        if target == "/robots.txt":
            return answer(status=404)
        number = len(self.asked)
        calendar = f"/calendar/{2000 + number}-01/"
        session = f"/shop?sid={number:032x}"
        return page(f"<a href='{calendar}'><a href='more/'><a href='{session}'><a href='/count?{number}'>")


def test_a_site_of_traps_is_crawled_to_an_end(tmp_path: Path) -> None:
    site = Endless({})
    with site, tracker.serving() as server:
        code, output, errors = run_crawl(site, server, tmp_path, "--scope", "host", "--max-variants", "5")
    assert code == 0, errors
    assert sum(target.startswith("/shop") for target in site.asked) == 1
    assert sum(target.startswith("/count") for target in site.asked) == 5
    for reason in ("the same directory in itself", "too many that differ in the query or a date"):
        assert f"links, {reason}, as http" in output


# ── Limits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def chain(length: int) -> dict[str, Any]:
    """A site in which each page links to the next one."""
    return {f"/site/{n}.html": page(f"<a href={n + 1}.html>") for n in range(length)} | {
        "/site/index.html": page("<a href=0.html>")
    }


def test_a_crawl_ends_after_so_many_pages_and_a_larger_number_goes_on(tmp_path: Path) -> None:
    with serving(chain(9)) as site, tracker.serving() as server:
        code, output, errors = run_crawl(site, server, tmp_path, "--max-pages", "4")
        assert code == 0, errors
        assert "Ended by --max-pages" in output
        assert len(pages_asked(site)) == 4
        assert run_crawl(site, server, tmp_path, password=False)[0] == 0
    assert sorted(set(site.asked)) == sorted({"/robots.txt", "/site/9.html", *chain(9)})


def test_a_request_that_only_shows_whether_a_host_is_there_counts_as_any_other(tmp_path: Path) -> None:
    answers = {"/a": answer(status=500), "/good": page("")}
    with serving(answers) as site, working(site.url, tmp_path, max_pages=1 + crawl.MOST_SILENT) as one:
        give(one, f"{site.url}good")
        assert give_all(one, site, *"aaaaaa")[-1] == library.SKIPPED
        assert site.asked == ["/good", *["/a"] * crawl.MOST_SILENT]


def test_a_crawl_ends_after_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(crawl.time, "monotonic", lambda: clock[0])
    with working("http://h/", tmp_path) as one:
        supervisor = crawl.Supervisor(one.crawl, [library.Worker(1, "nobody", "secret")], {}, max_time=60)
        limits = []
        for clock[0] in (100, 159, 160):
            limits.append(supervisor.limit())
    assert limits == ["", "", "--max-time"]


def test_pages_beyond_a_depth_are_left_out(tmp_path: Path) -> None:
    with serving(chain(9)) as site, tracker.serving() as server:
        code, _, errors = run_crawl(site, server, tmp_path, "--max-depth", "2")
    assert code == 0, errors
    assert site.asked[1:] == ["/site/index.html", "/site/0.html", "/site/1.html"]
    assert read_report(tmp_path)["left_out"] == {"deeper than --max-depth": 1}


@pytest.mark.parametrize("is_sitemap", [False, True])
def test_redirects_without_an_end_are_followed_up_to_a_limit(is_sitemap: bool, tmp_path: Path) -> None:
    answers = {f"/site/{n}": answer("", f"Location: {n + 1}", status=302) for n in range(50)}
    answers["/site/index.html"] = page("<a href=0>") if not is_sitemap else answer("", "Location: 0", status=301)
    with serving(answers) as site, tracker.serving() as server:
        seeds = {"seeds": []} if is_sitemap else {}
        arguments = ["--sitemap", f"{site.url}site/index.html", "--scope", "host"] if is_sitemap else []
        run_crawl(site, server, tmp_path, *arguments, **seeds)
    assert len(site.asked) == 2 + crawl.MOST_REDIRECTS + (not is_sitemap)
    assert read_report(tmp_path)["left_out"] == {"too many redirects in a row": 1}


# ── Sitemaps ──────────────────────────────────────────────────────────────────────────────────────────────────────────

XMLNS = (
    'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:image="http://www.google.com/schemas/sitemap-image/1.1"'
)


def sitemap(*urls: str, root: str = "urlset", each: str = "url") -> str:
    entries = "".join(f"<{each}><loc>\n {url} </loc></{each}>" for url in urls)
    return f'<?xml version="1.0" encoding="UTF-8"?><{root} {XMLNS}>{entries}</{root}>'


SITEMAPS = {
    "XML": (sitemap("http://h/a", "http://h/b&amp;c"), ["http://h/a", "http://h/b&c"]),
    "without a namespace": ("<urlset><url><loc>http://h/a</loc></url></urlset>", ["http://h/a"]),
    "of images": (
        f"<urlset {XMLNS}><url><loc>http://h/a</loc><image:image><image:loc>http://h/i</image:loc></image:image></url>",
        ["http://h/a"],
    ),
    "CDATA": ("<urlset><url><loc><![CDATA[http://h/a]]></loc></url></urlset>", ["http://h/a"]),
    "cut off": (sitemap("http://h/a", "http://h/b")[:-15], ["http://h/a", "http://h/b"]),
    "lines": ("http://h/a\r\n\nhttp://h/b\nmailto:x\n", ["http://h/a", "http://h/b"]),
    "lines with a BOM": ("\ufeffhttp://h/a\n", ["http://h/a"]),
    "twice the same": (sitemap("http://h/a", "HTTP://H/a"), ["http://h/a"]),
    "nothing": ("", []),
    "what is none": ("<html><a href=x>", []),
    "an entity that grows": (
        '<!DOCTYPE u [<!ENTITY a "xxxxxxxxxx">'
        + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
        + "]><urlset><url><loc>http://h/&j;</loc></url><url><loc>http://h/b</loc></url></urlset>",
        None,
    ),
}


@pytest.mark.parametrize(("text", "urls"), SITEMAPS.values(), ids=SITEMAPS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_sitemap_is_read(text: str, urls: list[str] | None, packed: bool) -> None:
    body = gzip.compress(text.encode()) if packed else text.encode()
    pages, sitemaps = crawl.read_sitemap(body, "http://h/sitemap.xml")
    assert sitemaps == []
    assert sum(map(len, pages)) < 100 if urls is None else pages == urls


def test_a_sitemap_of_one_long_url_of_many_pieces_is_read_in_linear_time() -> None:
    urls = [f"http://h/{n}?{'&' * 4000}" for n in range(300)]
    body = sitemap(*(url.replace("&", "&amp;") for url in urls)).encode()
    began = time.process_time()
    assert crawl.read_sitemap(body, "http://h/sitemap.xml")[0] == urls
    assert time.process_time() - began < 5


LONG = "x" * 5000


@pytest.mark.parametrize(
    "sent",
    [
        answer(sitemap("/a", f"/{LONG}")),
        answer(sitemap("/a").replace("/a ", f"/a </loc></url><url><loc>/{'x&amp;' * 4000}y")),
        answer(f"http://h/a\nhttp://h/{LONG}\n"),
        answer("", f"Location: /{LONG}", status=301),
        answer(sitemap(f"/{LONG}", root="sitemapindex", each="sitemap")),
    ],
    ids=["a page", "in pieces", "a line", "a redirect", "a sitemap"],
)
def test_a_url_that_is_too_long_is_left_out_of_a_sitemap(sent: list[bytes], tmp_path: Path) -> None:
    with serving({"/a": sent}) as site, working(site.url, tmp_path) as one:
        found = one.fetch(f"{site.url}a", "", sitemap=1)
    assert found.left_out == {"too long": 1}
    assert all(len(url) < 100 for url in found.links + found.sitemaps)


def test_a_crawl_begins_at_a_sitemap_and_those_that_it_names(tmp_path: Path) -> None:
    with serving({}) as site, tracker.serving() as server:
        url = site.url
        site.answers |= {
            "/all.xml": answer(
                sitemap(f"{url}1.xml.gz", f"{url}2.txt", "http://other/3.xml", root="sitemapindex", each="sitemap")
            ),
            "/1.xml.gz": answer(gzip.compress(sitemap(f"{url}a", f"{url}b", "http://other/c").encode())),
            "/2.txt": answer(f"{url}b\n{url}c\n"),
            **{f"/{name}": page("") for name in "abc"},
        }
        arguments = ["--sitemap", f"{url}all.xml", "--scope", "host"]
        code, _, errors = run_crawl(site, server, tmp_path, *arguments, seeds=[])
    assert code == 0, errors
    assert pages_asked(site) == sorted(["/all.xml", "/1.xml.gz", "/2.txt", "/a", "/b", "/c"])
    assert read_report(tmp_path)["left_out"] == {"out of scope": 1, crawl.ODD_SITEMAP: 1}


@pytest.mark.parametrize("option", [["--robots-sitemaps"], []])
def test_the_sitemaps_that_robots_txt_names_are_crawled_if_that_is_wanted(option: list[str], tmp_path: Path) -> None:
    with serving({"/site/index.html": page(""), "/site/a": page("")}) as site, tracker.serving() as server:
        site.answers["/robots.txt"] = answer(f"Sitemap: {site.url}site/map.txt\n")
        site.answers["/site/map.txt"] = answer(f"{site.url}site/a")
        code, _, errors = run_crawl(site, server, tmp_path, *option)
    assert code == 0, errors
    assert ("/site/a" in site.asked) == bool(option)


def test_sitemaps_of_robots_txt_are_not_lost_with_a_worker_that_ends_before_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_args: Any, **_how: Any) -> None:
        raise library.Halted

    with serving({}) as site, working(site.url, tmp_path, robots_sitemaps=True) as one:
        site.answers |= {"/a": page(""), "/robots.txt": answer(f"Sitemap: {site.url}map.txt\n")}
        one.hosts.db.execute("DELETE FROM robots")
        with monkeypatch.context() as ended:
            ended.setattr(crawl, "submit", end)
            assert give(one, f"{site.url}a")["result"] == library.SKIPPED
        assert give_all(one, site, "a") == [library.DONE]
        stored = [task["recipe"] for path, told in one.calls if "submit" in path for task in told["requests"]]
        assert [json.loads(recipe)["url"] for recipe in stored] == [f"{site.url}map.txt"]


def test_a_sitemap_that_is_not_there_is_a_seed_that_is_broken(tmp_path: Path) -> None:
    with serving({}) as site, tracker.serving() as server:
        code, output, _ = run_crawl(site, server, tmp_path, "--sitemap", f"{site.url}no.xml", seeds=[])
    assert code == 1 and "The seed is broken: 404" in output


def test_seeds_come_from_a_file_as_well(tmp_path: Path) -> None:
    with serving({f"/{name}": page("") for name in "abc"}) as site, tracker.serving() as server:
        (tmp_path / "seeds").write_text(f"\ufeff# some\n{site.url}a\n\n  {site.url}b \n{site.url}a#x\n")
        options = ["--seeds", tmp_path / "seeds", "--scope", "host"]
        code, _, errors = run_crawl(site, server, tmp_path, *options, seeds=["c"])
    assert code == 0, errors
    assert pages_asked(site) == ["/a", "/b", "/c"]


# ── Hosts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_that_is_asked_is_asked_by_nobody_else(tmp_path: Path) -> None:
    with contextlib.closing(crawl.Hosts(tmp_path / "h")) as one, contextlib.closing(crawl.Hosts(tmp_path / "h")) as two:
        assert one.take_turn("a") == 0
        assert two.take_turn("a") > 0
        assert two.take_turn("b") == 0
        one.leave("a")
        assert two.take_turn("a") == 0


def test_who_comes_back_late_does_not_end_the_turn_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1e9]
    monkeypatch.setattr(crawl.time, "time", lambda: clock[0])
    with contextlib.closing(crawl.Hosts(tmp_path / "h")) as one, contextlib.closing(crawl.Hosts(tmp_path / "h")) as two:
        assert one.take_turn("a") == 0
        clock[0] += one.timeout + 6
        assert two.take_turn("a") == 0
        one.leave("a")
        assert one.take_turn("a") > 0
        two.leave("a")
        assert one.take_turn("a") == 0


def test_nobody_asks_a_host_whose_robots_txt_is_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [1e9], []

    def read(*_args: object) -> str:
        clock[0] += crawl.ROBOTS_TIMEOUT
        with contextlib.closing(one.crawl.hosts()) as another:
            turns.append(another.take_turn("127.0.0.1"))
        return ""

    with serving({"/a": page("")}) as site, working(site.url, tmp_path) as one:
        one.hosts.db.execute("DELETE FROM robots")
        monkeypatch.setattr(crawl.time, "time", lambda: clock[0])
        monkeypatch.setattr(crawl, "read_robots", read)
        assert give(one, f"{site.url}a")["result"] == library.DONE
    assert turns[0] > 0


def test_turns_that_are_waited_for_are_a_pause_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl.time, "time", lambda: 1e9)
    with contextlib.closing(crawl.Hosts(tmp_path / "h", rate=0.5)) as hosts:
        hosts.take_turn("a")
        hosts.leave("a")
        assert [hosts.take_turn("a") for _ in range(4)] == [2, 4, 6, 8]


def test_a_clock_that_is_set_back_does_not_let_a_host_rest_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(crawl.Hosts(tmp_path / "h")) as hosts:
        monkeypatch.setattr(crawl.time, "time", lambda: 4e9)
        hosts.refuse("a", 60, "busy")
        monkeypatch.setattr(crawl.time, "time", lambda: 1e9)
        assert hosts.take_turn("a") == pytest.approx(60)


def test_the_pages_of_a_host_whose_turn_is_far_go_back_and_cost_no_attempt(tmp_path: Path) -> None:
    with serving({"/a": page("")}) as site, working(site.url, tmp_path, rate=0.01) as one:
        give(one, f"{site.url}a")
        released = [give(one, f"{site.url}b") for _ in range(2)]
    assert [one["result"] for one in released] == [library.SKIPPED] * 2
    assert [round(one["delay"], -1) for one in released] == [100, 200]


AWAY = {
    "nobody listens": ("http://127.0.0.1:1/", "ConnectError"),
    "no such name": ("http://nobody.invalid/", "ConnectError"),
}


@pytest.mark.parametrize(("url", "error"), AWAY.values(), ids=AWAY)
def test_a_host_that_is_away_is_left_alone_and_its_pages_lose_no_attempt(
    url: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(crawl, "say", said.append)
    with working(url, tmp_path) as one:
        assert [give(one, f"{url}{name}")["result"] for name in "ab"] == [library.SKIPPED] * 2
        assert one.hosts.away(crawl.host_of(url)) > 0
    assert len(said) == 1 and "is left alone until" in said[0] and error in said[0]


def test_names_that_are_looked_up_for_ever_hold_no_worker_that_reads_a_robots_txt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, told = threading.Event(), []

    def look_up(*_args: Any, **_how: Any) -> None:
        told.append(found.wait(5))
        raise socket.gaierror

    monkeypatch.setattr(crawl, "ROBOTS_TIMEOUT", 0.1)
    with working("http://slow.invalid/", tmp_path) as one:
        one.hosts.db.execute("DELETE FROM robots")
        with monkeypatch.context() as slow:
            slow.setattr(socket, "getaddrinfo", look_up)
            assert give(one, "http://slow.invalid/a")["result"] == library.SKIPPED
            assert told == []
            found.set()


def test_a_host_that_speaks_no_tls_is_away(tmp_path: Path) -> None:
    with serving({}) as site:
        url = site.url.replace("http:", "https:")
        with working(url, tmp_path, timeout=1) as one:
            assert give(one, f"{url}a")["result"] == library.SKIPPED
            assert one.hosts.away("127.0.0.1") > 0


FAILURES = {  # how a page fails
    "a reset": [RESET],
    "a reset in the body": [START, b"\r\nx", 0.01, RESET],
    "nothing": [],
    "what is no HTTP": [b"220 smtp.example.org ESMTP\r\n"],
    "half a body": [START, b"Content-Length: 99\r\n\r\nx"],
    "what is no gzip": answer("x", HTML, "Content-Encoding: gzip"),
    "500": answer("", HTML, status=500),
}


def give_all(one: crawl.Worker, site: HostileSite, *paths: str) -> list[int]:
    """How the pages of a site are released, if no time passes for its host."""
    results = []
    for path in paths:
        one.hosts.db.execute("UPDATE host SET rests_until = 0, next_turn = 0")
        results.append(give(one, f"{site.url}{path}")["result"])
    return results


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_host_from_which_nothing_but_failures_comes_is_away_and_its_pages_lose_no_attempt(
    failure: list[Any], tmp_path: Path
) -> None:
    with serving({"/a": failure}) as site, working(site.url, tmp_path, host_patience=3600) as one:
        assert give_all(one, site, *"aaaaa") == [library.FAILED] * (crawl.MOST_SILENT - 1) + [library.SKIPPED]
        assert one.hosts.away("127.0.0.1") > 0
        one.hosts.db.execute("UPDATE host SET away_since = away_since - 3601")
        assert give(one, f"{site.url}b")["result"] == library.FAILED
        assert "/b" not in site.asked


@pytest.mark.parametrize("status", [None, 200], ids=["silence", "a body that drips"])
def test_a_host_from_which_no_page_comes_in_time_is_away(
    status: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(_worker: crawl.Worker, late: crawl.Page) -> None:
        late.status = status
        raise crawl.httpx.ReadTimeout("the page takes longer")

    monkeypatch.setattr(crawl.Worker, "get", get)
    with serving({}) as site, working(site.url, tmp_path) as one:
        assert give_all(one, site, *"aaaaa") == [library.FAILED] * (crawl.MOST_SILENT - 1) + [library.SKIPPED]
        assert one.hosts.away("127.0.0.1") > 0


@pytest.mark.parametrize("failure", [FAILURES["nothing"], FAILURES["500"]], ids=["nothing", "500"])
def test_pages_that_fail_one_after_the_other_fail_for_themselves_while_their_host_answers_for_another(
    failure: list[Any], tmp_path: Path
) -> None:
    with serving({"/a": failure, "/good": page("")}) as site, working(site.url, tmp_path) as one:
        give(one, f"{site.url}good")
        round = [library.FAILED] * (crawl.MOST_SILENT - 1) + [library.SKIPPED] * 2
        assert give_all(one, site, *"aaaaaa" * 2) == round * 2
        assert site.asked == ["/good", *["/a"] * 5, "/good", *["/a"] * 5, "/good"]
        assert one.hosts.away("127.0.0.1") == 0


def test_a_host_that_does_not_even_answer_for_what_it_had_answered_is_away(tmp_path: Path) -> None:
    answers = {"/a": answer(status=500), "/good": [page(""), answer(status=500)]}
    with serving(answers) as site, working(site.url, tmp_path, host_patience=3600) as one:
        give(one, f"{site.url}good")
        assert give_all(one, site, *"aaaaaaaa")[-3:] == [library.SKIPPED] * 3
        assert site.asked[-3:] == ["/good", "/a", "/good"]
        assert one.hosts.away("127.0.0.1") > 0
        one.hosts.db.execute("UPDATE host SET away_since = away_since - 3601")
        assert give_all(one, site, "a") == [library.FAILED]


@pytest.mark.parametrize("failure", [answer(status=500), answer(status=429)], ids=["500", "429"])
def test_a_host_is_not_away_because_the_page_that_it_had_answered_does_not_come_any_more(
    failure: list[Any], tmp_path: Path
) -> None:
    answers = {"/a": failure, "/good": [page(""), failure], "/b": page("")}
    with serving(answers) as site, working(site.url, tmp_path, host_patience=10**6) as one:
        give(one, f"{site.url}good")
        give_all(one, site, *"aaaaaaa")
        assert "/good" in site.asked[1:]
        assert give_all(one, site, *"bb")[-1] == library.DONE
        assert one.hosts.away("127.0.0.1") == 0


def test_a_host_is_not_asked_again_for_what_its_robots_txt_forbids_by_now(tmp_path: Path) -> None:
    answers = {"/a": answer(status=500), "/good": page("")}
    with serving(answers) as site, working(site.url, tmp_path) as one:
        give(one, f"{site.url}good")
        one.hosts.keep_robots(site.url, "User-agent: *\nDisallow: /good")
        one.rules.clear()
        give_all(one, site, *"aaaaaaa")
        assert site.asked == ["/good", *["/a"] * 7]
        assert one.hosts.away("127.0.0.1") > 0


def test_what_an_earlier_version_has_known_of_hosts_is_known(tmp_path: Path) -> None:
    with contextlib.closing(crawl.Hosts(tmp_path / "h")) as hosts:
        hosts.refuse("a", 60, "busy")
        for column in ("good", "granted", "granted_before"):
            hosts.db.execute(f"ALTER TABLE host DROP COLUMN {column}")
    with contextlib.closing(crawl.Hosts(tmp_path / "h")) as hosts:
        assert hosts.rest("a") > 50
        hosts.accept("a", "http://a/")
        assert hosts.read("name = 'a'")[0].good == "http://a/"


def test_what_a_later_version_has_known_of_hosts_is_known_whatever_the_order(tmp_path: Path) -> None:
    columns = ", ".join(["later", *reversed(crawl.Hosts.FIELDS)])
    with contextlib.closing(crawl.sqlite3.connect(tmp_path / "h")) as db:
        db.execute(f"CREATE TABLE host ({columns}, PRIMARY KEY (name)) WITHOUT ROWID")
    with contextlib.closing(crawl.Hosts(tmp_path / "h")) as hosts:
        hosts.refuse("a", 60, "busy")
        assert hosts.rest("a") > 50 and hosts.read("1")[0].trouble == "busy"


def test_a_host_that_stays_away_fails_its_pages_in_the_end(tmp_path: Path) -> None:
    with working("http://127.0.0.1:1/", tmp_path, host_patience=3600) as one:
        give(one, "http://127.0.0.1:1/a")
        one.hosts.db.execute("UPDATE host SET away_since = away_since - 3601")
        resting = give(one, "http://127.0.0.1:1/b")
        one.hosts.db.execute("UPDATE host SET rests_until = 0, next_turn = 0")
        asked = give(one, "http://127.0.0.1:1/b")
        assert [(one["result"], one["for_good"]) for one in (resting, asked)] == [(library.FAILED, True)] * 2
        record, _ = crawl.read_records(one.crawl.records)
    assert "has not answered for 360" in record["error"] and "ConnectError" in record["error"]


def test_a_host_that_asks_for_ever_more_time_fails_its_pages_in_the_end(tmp_path: Path) -> None:
    busy = answer("wait", "Retry-After: 5", status=503)
    with serving({"/a": busy}) as site, working(site.url, tmp_path, host_patience=3600) as one:
        assert give(one, f"{site.url}a")["result"] == library.SKIPPED
        one.hosts.db.execute("UPDATE host SET away_since = away_since - 3606, rests_until = 0, next_turn = 0")
        assert give(one, f"{site.url}a")["result"] == library.FAILED


@pytest.mark.parametrize("robots", [False, True])
def test_a_host_that_asks_for_more_time_than_there_is_patience_is_not_asked_again(robots: bool, tmp_path: Path) -> None:
    busy = answer("wait", "Retry-After: 31536000", status=429)
    with serving({"/a": busy, "/robots.txt": busy}) as site, working(site.url, tmp_path, host_patience=3600) as one:
        if robots:
            one.hosts.db.execute("DELETE FROM robots")
        put_off = [give(one, f"{site.url}{name}") for name in "ab"]
        assert [released["result"] for released in put_off] == [library.SKIPPED] * 2
        assert all(3590 < released["delay"] < 3610 for released in put_off)
        one.hosts.db.execute("UPDATE host SET away_since = away_since - 3601")
        assert [give(one, f"{site.url}{name}")["result"] for name in "ab"] == [library.FAILED] * 2
    assert len(site.asked) == 1


def test_a_host_whose_robots_txt_stays_away_fails_its_pages_in_the_end(tmp_path: Path) -> None:
    with working("http://127.0.0.1:1/", tmp_path, host_patience=3600) as one:
        one.hosts.db.execute("DELETE FROM robots")
        assert give(one, "http://127.0.0.1:1/a")["result"] == library.SKIPPED
        one.hosts.db.execute("UPDATE host SET away_since = away_since - 3601, rests_until = 0, next_turn = 0")
        assert give(one, "http://127.0.0.1:1/a")["result"] == library.FAILED


def test_a_host_that_answers_again_is_not_away_any_more(tmp_path: Path) -> None:
    with serving({"/a": [answer(status=503), page("")]}) as site, working(site.url, tmp_path) as one:
        give(one, f"{site.url}a")
        assert one.hosts.away("127.0.0.1") > 0
        one.hosts.db.execute("UPDATE host SET rests_until = 0")
        give(one, f"{site.url}a")
        assert one.hosts.away("127.0.0.1") == 0


def test_a_robots_txt_may_be_elsewhere_and_one_that_is_nowhere_is_none() -> None:
    moved = {f"/{n}": answer("", f"Location: /{n + 1}", status=301) for n in range(9)}
    with serving(moved | {"/5": answer("User-agent: *\nDisallow: /x")}) as site:
        site.answers["/robots.txt"] = answer("", "Location: 1", status=302)
        assert "/x" in crawl.read_robots(site.url, "tests")
        site.answers["/robots.txt"] = answer("", "Location: robots.txt", status=302)
        assert crawl.read_robots(site.url, "tests") == ""


@contextlib.contextmanager
def robots_elsewhere(folder: Path, **answers: list[bytes]) -> Iterator[tuple[crawl.Worker, HostileSite]]:
    """A worker that knows no robots.txt yet of a site at which that leads to another host."""
    with serving({"/a": page("")} | {f"/{name}": sent for name, sent in answers.items()}) as site:
        elsewhere = site.url.replace("127.0.0.1", "localhost")
        site.answers["/robots.txt"] = answer("", f"Location: {elsewhere}rules", status=301)
        with working(site.url, folder) as one:
            one.hosts.db.execute("DELETE FROM robots")
            yield one, site


def test_a_robots_txt_elsewhere_waits_for_the_turn_of_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "ROBOTS_TIMEOUT", 0.5)
    with robots_elsewhere(tmp_path, rules=answer("")) as (one, site), contextlib.closing(one.crawl.hosts()) as other:
        other.take_turn("localhost", seconds=60)
        assert give(one, f"{site.url}a")["result"] == library.SKIPPED
        assert site.asked == ["/robots.txt"]
        monkeypatch.setattr(crawl, "ROBOTS_TIMEOUT", 9)
        other.leave("localhost")
        assert give_all(one, site, "a") == [library.DONE]
        assert site.asked == ["/robots.txt"] * 2 + ["/rules", "/a"]
        assert other.take_turn("localhost") == 0


def test_nobody_who_waits_for_a_robots_txt_elsewhere_holds_the_turn_of_the_host_that_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def wait(_seconds: float) -> None:
        held.append(other.read("name = '127.0.0.1'")[0].busy_until)
        raise library.Halted

    with robots_elsewhere(tmp_path, rules=answer("")) as (one, site), contextlib.closing(one.crawl.hosts()) as other:
        other.take_turn("localhost", seconds=60)
        monkeypatch.setattr(one, "wait", wait)
        assert give(one, f"{site.url}a")["result"] == library.SKIPPED
    assert held == [0]


def test_both_hosts_rest_when_the_one_that_has_the_robots_txt_of_the_other_asks_for_it(tmp_path: Path) -> None:
    busy = answer("", "Retry-After: 3600", status=503)
    with robots_elsewhere(tmp_path, rules=busy) as (one, site):
        assert give(one, f"{site.url}a")["result"] == library.SKIPPED
        assert min(map(one.hosts.rest, ("127.0.0.1", "localhost"))) > 3590
        assert site.asked == ["/robots.txt", "/rules"]


@pytest.mark.parametrize("failure", [answer(status=500), [], [RESET]], ids=["500", "nothing", "reset"])
def test_no_host_rests_because_the_robots_txt_of_another_one_leads_to_a_page_of_it_that_fails(
    failure: list[Any], tmp_path: Path
) -> None:
    with robots_elsewhere(tmp_path, rules=failure) as (one, site):
        assert give(one, f"{site.url}a")["result"] == library.SKIPPED
        resting = {host: one.hosts.rest(host) > 0 for host in ("127.0.0.1", "localhost")}
        assert resting == {"127.0.0.1": True, "localhost": False}
        assert one.hosts.away("localhost") == 0


def test_a_robots_txt_that_leads_to_what_is_too_long_is_none() -> None:
    with serving({"/robots.txt": answer("", f"Location: /{'x' * 70_000}", status=301)}) as site:
        assert crawl.read_robots(site.url, "tests") == ""


def test_a_host_with_an_odd_name_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *more, **how: look_up("127.0.0.1", *more, **how))
    with serving({"/robots.txt": answer("", "Location: r", status=302), "/r": answer("Disallow: /x")}) as site:
        url = crawl.normalise(site.url.replace("127.0.0.1", "\U0001f4a9.invalid"))
        assert crawl.read_robots(url, "tests") == "Disallow: /x"
    assert all(f"\nHost: {url.split('/')[2]}\r" in head for head in site.heads)


def test_several_hosts_are_crawled_politely_by_several_workers_whatever_some_of_them_do(tmp_path: Path) -> None:
    assert prove_crawl.prove_hosts(hosts=6, pages=16, workers=4, rate=20, directory=tmp_path, patience=5) == []


# ── Who is asking ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "[2001:db8::1]", "localhost.example.org"])
def test_the_real_web_is_not_crawled_without_a_contact(host: str, tmp_path: Path) -> None:
    seed = SimpleNamespace(url=f"http://{host}/")
    code, _, errors = run_crawl(seed, "http://127.0.0.1:1", tmp_path)
    assert code == 2 and f"{host} is not this machine: say with --contact" in errors
    code, _, errors = run_crawl(seed, "http://127.0.0.1:1", tmp_path, "--contact", "me@example.org")
    assert code == 1 and "no answer from http://127.0.0.1:1" in errors


def test_no_sitemap_and_no_robots_txt_leads_to_the_real_web_without_a_contact(tmp_path: Path) -> None:
    with serving({"/map": answer("", "Location: http://elsewhere.invalid/map", status=301)}) as site:
        site.answers["/robots.txt"] = answer("", "Location: http://elsewhere.invalid/robots.txt", status=301)
        with working(site.url, tmp_path) as one:
            for name in (f"{site.url}map", "http://elsewhere.invalid/map"):
                recipe = json.dumps({"url": name, "found_on": "", "sitemap": 1})
                assert give(one, "", recipe=recipe)["result"] == library.DONE
            one.hosts.db.execute("DELETE FROM robots")
            one.rules.clear()
            assert give(one, f"{site.url}a")["result"] == library.SKIPPED
            assert [host.name for host in one.hosts.read("1")] == ["127.0.0.1"]
            assert "not asked without --contact" in one.hosts.read("1")[0].trouble


def test_sites_are_told_whom_to_write_to(tmp_path: Path) -> None:
    with serving({"/site/index.html": page("")}) as site, tracker.serving() as server:
        assert run_crawl(site, server, tmp_path, "--contact", "me@example.org")[0] == 0
    assert all("\nUser-Agent: tracker-crawl/1.0 (me@example.org)\r" in head for head in site.heads)


CALLED = {  # what a crawler is called, by its options
    "tracker-crawl/1.0": [],
    "tracker-crawl/1.0 (me@example.org)": ["--contact", "me@example.org"],
    "mine/2": ["--user-agent", "mine/2"],
    "mine/2 (me@example.org)": ["--user-agent", "mine/2", "--contact", "me@example.org"],
}


@pytest.mark.parametrize(("called", "options"), CALLED.items())
def test_a_crawler_has_the_name_and_the_contact_that_it_is_given(
    called: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["crawl.py", "http://127.0.0.1/", *options])
    assert crawl.parse_arguments().user_agent == called


def test_a_login_is_for_its_host_alone(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login jo password secret\n")
    with serving({"/site/index.html": page("")}) as site, tracker.serving() as server:
        assert run_crawl(site, server, tmp_path, "--login", tmp_path / "netrc")[0] == 0
        assert all("Authorization: Basic am86c2VjcmV0" in head for head in site.heads)
        logins = crawl.Logins([("example.org", "jo", "secret")])
        response = crawl.httpx.Client(auth=logins).get(site.url)
    assert "Authorization" not in response.request.headers


def test_cookies_come_from_a_file_and_those_that_the_site_sets_are_not_kept(tmp_path: Path) -> None:
    lines = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tlogin\tsecret\n"
    (tmp_path / "cookies").write_text(lines)
    answers = {
        "/site/index.html": page("<a href=b>", "Content-Type: text/html", "Set-Cookie: more=1"),
        "/site/b": page(""),
    }
    with serving(answers) as site, tracker.serving() as server:
        assert run_crawl(site, server, tmp_path, "--cookies", tmp_path / "cookies", "--workers", "1")[0] == 0
    pages = [head for head in site.heads if "robots" not in head]
    assert len(pages) == 2 and all("\nCookie: login=secret\r" in head for head in pages)


# ── A month unattended ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_is_waited_for_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, room = [], [0, 5, 4096]  # bytes that a write finds
    monkeypatch.setattr(crawl, "say", said.append)
    monkeypatch.setattr(crawl, "FULL_DISK_PAUSE", 0.01)
    write = os.write

    def write_some(file: int, data: bytes) -> int:
        if not (bytes_left := room.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:bytes_left])

    with serving({"/a": page("")}) as site, working(site.url, tmp_path) as one:
        with monkeypatch.context() as full:
            full.setattr(crawl.os, "write", write_some)
            assert give(one, f"{site.url}a")["result"] == library.DONE
        (record,) = crawl.read_records(one.crawl.records)
    assert record["url"] == f"{site.url}a"
    assert len(said) == 2 and all("The disk is full" in line for line in said)


def test_a_full_disk_is_waited_for_by_what_is_known_of_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paused = []
    with contextlib.closing(crawl.Hosts(tmp_path / "h", pause=paused.append)) as hosts:
        (most,) = hosts.db.execute("PRAGMA page_count").fetchone()
        hosts.db.execute(f"PRAGMA max_page_count = {most}")

        def make_room(seconds: float) -> None:
            paused.append(seconds)
            hosts.db.execute("PRAGMA max_page_count = 1000")

        hosts.pause = make_room
        hosts.keep_robots("http://h/", "x" * 100_000)
        assert hosts.robots("http://h/")[1] == "x" * 100_000
    assert paused == [crawl.FULL_DISK_PAUSE]


def test_a_page_at_which_the_crawler_itself_fails_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_page: Any) -> None:
        raise ZeroDivisionError("of the crawler's own")

    with serving({"/a": page("")}) as site, working(site.url, tmp_path) as one:
        monkeypatch.setattr(one, "fetch", fail)
        assert give(one, f"{site.url}a")["result"] == library.FAILED
        (record,) = crawl.read_records(one.crawl.records)
    assert (record["url"], record["outcome"]) == (f"{site.url}a", "failed")
    assert "of the crawler's own" in record["error"]


def test_a_file_of_hosts_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts.db").write_text("no database, but long enough for one " * 100)
    with pytest.raises(crawl.CrawlError, match=r"hosts\.db cannot be used"):
        crawl.Hosts(tmp_path / "hosts.db")


def test_a_file_of_hosts_that_is_damaged_while_it_is_used_costs_no_page_an_attempt(tmp_path: Path) -> None:
    with serving({"/a": page("")}) as site, working(site.url, tmp_path) as one:
        (tmp_path / "hosts.db").write_bytes(b"x" * 8192)
        with pytest.raises(library.Fail, match=r"hosts\.db cannot be used: file is not a database\. Remove it"):
            give(one, f"{site.url}a")
        assert one.calls[-1][1]["result"] == library.SKIPPED


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(chain(1000)) as site, tracker.serving() as server:
        process = start_crawl(site, server, tmp_path, "--rate", "20")
        prove_crawl.wait_until(lambda: len(site.asked) > 3, 60)
        process.kill()
        process.communicate(timeout=60)
        held = lambda: get_project(server)["assigned_task_count"]  # noqa: E731
        prove_crawl.wait_until(lambda: not held(), 30)
        asked = len(site.asked)
        time.sleep(1)
        assert len(site.asked) <= asked + 1
        code, _, errors = run_crawl(site, server, tmp_path, "--max-pages", "15", password=False)
    assert code == 0, errors


def test_sigterm_ends_a_crawl_as_ctrl_c_does(tmp_path: Path) -> None:
    with serving(chain(1000)) as site, tracker.serving() as server:
        process = start_crawl(site, server, tmp_path, "--rate", "20")
        prove_crawl.wait_until(lambda: len(site.asked) > 3, 60)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "Interrupted" in output, errors
        assert get_project(server)["assigned_task_count"] == 0


def test_a_host_that_moves_to_another_address_is_asked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses, look_up = ["127.0.0.1"], socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *more, **how: look_up(addresses[0], *more, **how))
    with serving({"/a": page("")}) as old:
        url, port = old.url.replace("127.0.0.1", "moving.invalid"), old.server_address[1]
        with working(url, tmp_path) as one:
            assert give(one, f"{url}a")["result"] == library.DONE
            old.shutdown()
            old.server_close()
            assert give(one, f"{url}b")["result"] == library.SKIPPED
            addresses[:] = ["127.0.0.2"]
            with serving({"/b": page("")}, HostileSite, ("127.0.0.2", port)):
                one.hosts.db.execute("UPDATE host SET rests_until = 0, next_turn = 0")
                assert give(one, f"{url}b")["result"] == library.DONE
            assert one.hosts.away("moving.invalid") == 0


def test_an_hour_without_the_tracker_is_waited_for_by_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [0.0], []

    def send(_method: str, url: str, **_how: Any) -> Any:
        asked.append(clock[0])
        if clock[0] < 3600:
            raise crawl.httpx.ConnectError("gone")
        return contextlib.nullcontext(crawl.httpx.Response(200, json={"ok": True, "content": {"submitted": 1}}))

    monkeypatch.setattr(library.time, "monotonic", lambda: clock[0])
    with working("http://h/", tmp_path) as one:
        client = library.Tracker("http://127.0.0.1:1", worker=library.Worker(1, "one", "secret"), patience=math.inf)
        monkeypatch.setattr(client.client.http, "stream", send)
        monkeypatch.setattr(client.client.interrupts, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
        crawl.submit(client, one.crawl, ["http://h/a"], "http://h/", depth=1)
    assert 3600 <= asked[-1] < 3660 and len(asked) < 400


def test_who_crawls_a_host_that_another_crawl_beside_this_one_asks_is_told(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with contextlib.closing(crawl.Hosts(tmp_path / "one" / crawl.HOSTS)) as hosts:
        hosts.take_turn("h")
        seeds = ["http://h/a", "https://h/b", "http://other/"]
        [told] = crawl.others_at(tmp_path / "two", seeds)
        assert told.startswith(f"h is asked by the crawl of {tmp_path / 'one'}")
        assert not list(crawl.others_at(tmp_path / "one", seeds))
        hosts.db.execute("UPDATE host SET asked = asked - 120")
        assert not list(crawl.others_at(tmp_path / "two", seeds))


def test_a_tracker_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with serving(chain(20)) as site:
        process = prove_crawl.TrackerProcess(tmp_path)
        try:
            crawling = start_crawl(site, process.url, tmp_path, "--rate", "20")
            prove_crawl.wait_until(lambda: len(site.asked) > 3, 60)
            process.kill()
            time.sleep(3)
            process.start()
            _, errors = crawling.communicate(timeout=120)
        finally:
            process.stop()
    assert crawling.returncode == 0, errors
    assert "The crawl goes on when the tracker is back" in errors
    assert set(site.asked) == {"/robots.txt", "/site/20.html", *chain(20)}
