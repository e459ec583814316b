"""The crawler of examples/: what it makes of one page, its body, its links, its record."""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import brotli
import pytest
import test_crawl_hostile
from test_crawl import give
from test_crawl_hostile import HTML, HostileSite, answer, page, serving
from warcio.archiveiterator import ArchiveIterator

from examples import crawl

PATIENT = {"timeout": 10}  # nothing here is slow
fetch = functools.partial(test_crawl_hostile.fetch, **PATIENT)
links = functools.partial(test_crawl_hostile.links, **PATIENT)
working = functools.partial(test_crawl_hostile.working, **PATIENT)

# ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────────

BODY = b"<a href=b>" + bytes(range(32, 127)) * 60  # longer than what is decoded at once, in any code
HALVES = BODY[:2000], BODY[2000:]


def deflated(data: bytes, bits: int = -15) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, bits)
    return coder.compress(data) + coder.flush()


@functools.cache
def member_of(byte: int) -> bytes:
    return gzip.compress(bytes([byte]))


def coded(data: bytes, *codings: str) -> list[bytes]:
    return answer(data, HTML, *(f"Content-Encoding: {coding}" for coding in codings))


ENCODED = {
    "gzip": coded(gzip.compress(BODY), "gzip"),
    "x-gzip": coded(gzip.compress(BODY), "X-GZip"),
    "a second gzip member": coded(b"".join(map(gzip.compress, HALVES)), "gzip"),
    "a member for each byte": coded(b"".join(map(member_of, BODY)), "gzip"),
    "garbage behind the gzip": coded(gzip.compress(BODY) + b"\0\0\0garbage", "gzip"),
    "deflate as the standard has it": coded(deflated(BODY, 15), "deflate"),
    "deflate as some servers have it": coded(deflated(BODY), "deflate"),
    "brotli": coded(brotli.compress(BODY), "br"),
    "zstd": coded(crawl.zstd.compress(BODY), "zstd"),
    "a second zstd frame": coded(b"".join(map(crawl.zstd.compress, HALVES)), "zstd"),
    "two codings in a header": coded(gzip.compress(deflated(BODY)), "deflate, gzip"),
    "two headers of one coding": coded(gzip.compress(brotli.compress(BODY)), "br", "gzip"),
    "a coding that is none": coded(BODY, "utf-8", "identity", "none"),
}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {  # what is cut off or wrong, and what is said of it
    "a length that is not reached": ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n<a href=b>"], "peer closed"),
    "chunks without an end": ([CHUNKED, b"5\r\n<a hr"], "chunked"),
    "chunks without the last": ([CHUNKED, b"1\r\n \r\n"], "chunked"),
    "two lengths": (answer("<a href=b>", HTML, "Content-Length: 5"), "conflicting"),
    "a length that is none": (answer("<a href=b>", HTML, "Content-Length: -5"), "Content-Length"),
    "gzip cut off": (coded(gzip.compress(BODY)[:-100], "gzip"), "ends in the middle of its gzip"),
    "gzip cut off at the check of its end": (coded(gzip.compress(BODY)[:-2], "gzip"), "ends in the middle of its gzip"),
    "a second member cut off": (coded(gzip.compress(BODY) + gzip.compress(BODY)[:40], "gzip"), "middle of its gzip"),
    "deflate cut off": (coded(deflated(BODY)[:-20], "deflate"), "middle of its deflate"),
    "brotli cut off": (coded(brotli.compress(BODY)[:-20], "br"), "middle of its br"),
    "zstd cut off": (coded(crawl.zstd.compress(BODY)[:-20], "zstd"), "middle of its zstd"),
    "the inner of two cut off": (coded(gzip.compress(deflated(BODY)[:-20]), "deflate, gzip"), "middle of its deflate"),
    "no gzip": (coded(BODY, "gzip"), "no gzip"),
    "gzip with a wrong check": (coded(gzip.compress(BODY)[:-6] + b"123456", "gzip"), "no gzip"),
    "no deflate": (coded(b"\xff" * 99, "deflate"), "no deflate"),
    "no brotli": (coded(b"\xff" * 99, "br"), "no br"),
    "no zstd": (coded(BODY, "zstd"), "no zstd"),
    "what was not asked for": (coded(BODY, "compress"), "compress, which was not asked for"),
    "too many codings": (coded(gzip.compress(BODY), *["gzip"] * 9), "encoded 9 times"),
}


@pytest.mark.parametrize("sent", ENCODED.values(), ids=ENCODED)
def test_a_body_is_read_in_every_coding_that_is_in_use(sent: list[bytes], tmp_path: Path) -> None:
    found = fetch({"/a": sent}, tmp_path)
    assert (found.error, found.size, found.truncated) == ("", len(BODY), False)
    assert [link.rpartition("/")[2] for link in found.links] == ["b"]


@pytest.mark.parametrize(("sent", "said"), BROKEN.values(), ids=BROKEN)
def test_a_body_that_is_cut_off_or_broken_is_a_failure_and_tried_again(
    sent: list[bytes], said: str, tmp_path: Path
) -> None:
    found = fetch({"/a": sent}, tmp_path)
    assert (found.outcome, found.links) == ("failed", [])
    assert said in found.error


def test_an_empty_body_is_whole_in_any_coding(tmp_path: Path) -> None:
    for coding in ("gzip", "deflate", "br", "zstd"):
        assert fetch({"/a": coded(b"", coding)}, tmp_path).outcome == "ok"


def test_a_length_that_is_too_short_ends_the_body_there(tmp_path: Path) -> None:
    sent = [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n<a href=b><a href=c>"]
    assert links({"/a": sent}, tmp_path) == ["/b"]


BOMBS = {
    "gzip": gzip.compress,
    "deflate": deflated,
    "br": functools.partial(brotli.compress, quality=5),
    "zstd": crawl.zstd.compress,
}


@functools.cache
def bomb_of(coding: str) -> bytes:
    """Made when it is wanted: it takes a while, and each of pytest's processes reads this file."""
    return BOMBS[coding](b"<a href=b>" + bytes(10**8))


@pytest.mark.parametrize("coding", BOMBS)
@pytest.mark.parametrize("times", [1, 2])
def test_what_a_small_body_decodes_to_is_bounded(
    coding: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    expand = crawl.expand
    monkeypatch.setattr(crawl, "expand", lambda *told: made.append(expand(*told)) or made[-1])
    bomb = bomb_of(coding) if times == 1 else gzip.compress(bomb_of(coding))
    found = fetch({"/a": coded(bomb, ", ".join([coding, "gzip"][:times]))}, tmp_path)
    assert (found.outcome, found.size, found.truncated, len(found.links)) == ("ok", 10**6, True, 1)
    assert max(len(body) for body, _ in made) == 10**6 + 1


def test_a_coded_body_that_is_longer_than_the_limit_is_read_up_to_there(tmp_path: Path) -> None:
    noise = b"<a href=b>" + bytes(range(256)) * 40
    found = fetch({"/a": coded(gzip.compress(noise, 0), "gzip")}, tmp_path, max_body=5000)
    assert (found.outcome, found.truncated, len(found.links)) == ("ok", True, 1)


def test_only_what_can_be_read_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert crawl.headers_of("tests")["Accept-Encoding"] == "gzip, deflate, br, zstd"
    monkeypatch.setattr(crawl, "ACCEPTED", "gzip, deflate")
    assert crawl.headers_of("tests")["Accept-Encoding"] == "gzip, deflate"
    assert "br, which was not asked for" in fetch({"/a": ENCODED["brotli"]}, tmp_path).error


# ── Links ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

FOLLOWED = {  # the page, headers
    "<a>": ("<a href=b>", []),
    "<a> of SVG": ("<svg><a xlink:href=b></svg>", []),
    "<a> of SVG without a prefix": ("<svg><a href=b></svg>", []),
    "<area>": ("<map><area href=b></map>", []),
    "<frame>": ("<frameset><frame src=b></frameset>", []),
    "<iframe>": ("<iframe src=b></iframe>", []),
    "<base>": ("<base href=/x/><a href=../b>", []),
    "what is in <noscript> and <template>": ("<noscript><a href=b></noscript><template><a href=b></template>", []),
    "meta refresh": ("<meta http-equiv=Refresh content='0; URL=b'>", []),
    "link rel=next": ("<link rel=next href=b>", []),
    "link rel=prev": ("<link rel=PREV href=b>", []),
    "link rel=canonical": ("<link href=b rel='canonical'>", []),
    "link rel=alternate": ("<link rel=alternate hreflang=de href=b type='text/html; charset=utf-8'>", []),
    "Link: rel=next": ("", ["Link: <b>; rel=next"]),
    "Link: among others": ("", ['Link: <x>; rel="preload"; as="a, b; rel=next", <b>;title="x";rel="start next",<y>']),
    "a second Link:": ("", ["Link: <x>;rel=icon", "Link: </b> ; Rel = 'x' ; rel=next, <b>; REL=canonical"]),
    "Refresh:": ("", ["Refresh: 5; url=b"]),
}
OF_PARTS = {
    "<img>": "<img src=b>",
    "<img srcset>": "<img srcset='b 2x'>",
    "<source srcset>": "<picture><source srcset='b'></picture>",
    "<link imagesrcset>": "<link rel=preload as=image imagesrcset='b 100w'>",
    "<link rel=stylesheet>": "<link rel=stylesheet href=b>",
    "<link rel=icon>": "<link rel='shortcut icon' href=b>",
    "<script>": "<script src=b></script>",
    "<video poster>": "<video poster=b></video>",
    "<embed>": "<embed src=b>",
    "<object>": "<object data=b></object>",
    "<use> of SVG": "<svg><use xlink:href='b#x'/></svg>",
    "<image> of SVG": "<svg><image xlink:href='b'/></svg>",
    "<input type=image>": "<input type=image src=b>",
}
NOT_FOLLOWED = {
    "a form": ("<form action=b><button formaction=b></form>", []),
    "ping, cite, longdesc": ("<a ping=b><q cite=b>x</q><img longdesc=b>", []),
    "JavaScript": ("<a href='javascript:go(b)' onclick='go(b)'>", []),
    "link rel=search": ("<link rel=search href=b><link href=b><link rel=dns-prefetch href=b>", []),
    "a feed": ("<link rel=alternate type=application/rss+xml href=b>", []),
    "an alternate style sheet": ("<link rel='alternate stylesheet' href=b>", []),
    "a refresh of itself": ("<meta http-equiv=refresh content=5>", []),
    "a refresh that is none": ("<meta http-equiv=refresh content='url=b'><meta name=refresh content='0;url=b'>", []),
    "Link: to another page's next": ("", ["Link: <b>; rel=next; anchor='/x'"]),
    "Link: that asks not to": ("", ['Link: <b>; rel="next nofollow"']),
    "Link: of no relation": ("", ["Link: <b>, b; rel=next", "Link: <b"]),
}


@pytest.mark.parametrize(("html", "headers"), FOLLOWED.values(), ids=FOLLOWED)
def test_what_is_followed(html: str, headers: list[str], tmp_path: Path) -> None:
    assert links({"/a": page(html, HTML, *headers)}, tmp_path) == ["/b"]


@pytest.mark.parametrize("html", OF_PARTS.values(), ids=OF_PARTS)
def test_what_a_page_is_shown_with_is_followed_only_when_asked_for(html: str, tmp_path: Path) -> None:
    assert links({"/a": page(html)}, tmp_path) == []
    assert links({"/a": page(html)}, tmp_path, parts=True) == ["/b"]


@pytest.mark.parametrize(("html", "headers"), NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_what_is_not_followed(html: str, headers: list[str], tmp_path: Path) -> None:
    assert links({"/a": page(html, HTML, *headers)}, tmp_path) == []


LEADING = {
    "a redirect": (answer("", "Location: b", status=307), ["/b"]),
    "two places": (answer("", "Location: b", "Location: c", status=302), ["/b"]),
    "a place of a page that is there": (page("", HTML, "Location: b"), []),
    "201": (answer("", "Location: b", status=201), []),
    "300": (answer("<a href=b>", "Location: b", HTML, status=300), []),
    "a header of a page that is no HTML": (page("", "Content-Type: text/plain", "Link: <b>; rel=canonical"), ["/b"]),
}


@pytest.mark.parametrize(("sent", "found"), LEADING.values(), ids=LEADING)
def test_where_a_header_leads_to(sent: list[bytes], found: list[str], tmp_path: Path) -> None:
    assert links({"/a": sent}, tmp_path) == found


def test_the_links_of_headers_are_relative_to_the_page_and_obey_it(tmp_path: Path) -> None:
    both = "Link: <b>; rel=next"
    assert links({"/a": page("<base href=/x/><a href=c>", HTML, both)}, tmp_path) == ["/b", "/x/c"]
    assert links({"/a": page("", HTML, both, "X-Robots-Tag: nofollow")}, tmp_path) == []


@pytest.mark.parametrize(
    ("content", "target"),
    [
        ("0;url=b", "b"),
        (" 5.5 , URL = 'b c' x", "b c"),
        ('1 "b', "b"),
        (".;b", "b"),
        ("0; urls", "urls"),
        ("3", None),
        ("3;", None),
        ("3; url=", None),
        ("x;url=b", None),
        ("3x;url=b", None),
        ("", None),
    ],
)
def test_a_refresh_is_read_as_browsers_do(content: str, target: str | None) -> None:
    assert crawl.refresh_target(content) == target


@pytest.mark.parametrize(
    ("srcset", "urls"),
    [
        ("a", ["a"]),
        ("a 1x, b 2x", ["a", "b"]),
        ("a,b 1x,c", ["a,b", "c"]),
        (" ,, a, b,, c", ["a", "b", "c"]),
        ("data:image/png;base64,xx== 1x, a 2x", ["data:image/png;base64,xx==", "a"]),
        ("a (x, y) 1x, b", ["a", "b"]),
        ("a (x, b", ["a"]),
        ("", []),
    ],
)
def test_a_srcset_is_read_as_browsers_do(srcset: str, urls: list[str]) -> None:
    assert list(crawl.images_of(srcset)) == urls


ODD = ["1", "1 ", " ", ";", "1;url ", "(", "a (", ",", "<", "<a>;", '"', '<a>;x="', "a ", "="]


@pytest.mark.parametrize("text", ODD)
def test_what_an_attribute_or_a_header_may_hold_is_read_in_linear_time(text: str) -> None:
    for around in ("{}", "0{}", "0;{}x", "<a>;rel={}", "<a>; {}="):
        crawl.refresh_target(around.format(text * 200_000))
        list(crawl.images_of(around.format(text * 200_000)))
        header = around.format(text * 20_000)
        list(crawl.links_of_header(crawl.httpx.Response(200, headers={"Link": header, "Refresh": header})))


def test_the_manual_names_what_the_table_does() -> None:
    for word in (
        "http-equiv=refresh",
        "rel=next|prev|canonical|alternate",
        "xlink:href",
        "srcset",
        "Location",
        "forms",
    ):
        assert word in crawl.LINKS_FOLLOWED


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


def crawl_pages(answers: dict[str, Any], folder: Path, *names: str, **settings: Any) -> list[crawl.Page]:
    """What these pages of the site come to, in a worker that keeps what it fetches."""
    with serving(answers) as site, working(site, folder, **settings) as worker:
        return [worker.crawl_page(f"{site.url}{name}", found_on="x") for name in names]


def put_off(answers: dict[str, Any], folder: Path, **settings: Any) -> None:
    with pytest.raises(crawl.PutOff):
        crawl_pages(answers, folder, *[name[1:] for name in answers], **settings)


def read_warcs(folder: Path) -> list[dict[str, Any]]:
    """The records of all files, each found whole by warcio's own check."""
    records = []
    for file in sorted(folder.glob("*.warc.gz")):
        checked = subprocess.run(["warcio", "check", file], env=PATH, capture_output=True, text=True, timeout=60)
        assert (checked.returncode, checked.stdout) == (0, "")
        with open(file, "rb") as stream:
            for record in ArchiveIterator(stream, check_digests="raise"):
                kept = {"file": file.name, "type": record.rec_type, "body": record.raw_stream.read()}
                kept["url"] = record.rec_headers["WARC-Target-URI"]
                records.append(kept | {"warc": record.rec_headers, "http": record.http_headers})
    return records


PATH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_a_warc_has_request_and_response_of_each_page_byte_by_byte(tmp_path: Path) -> None:
    coded_body = gzip.compress(BODY)
    answers = {
        "/a": [
            b"HTTP/1.1 200 Fine \xe9\r\nX-ODD: \xc3\xa9\r\ncontent-type: text/html\r\nContent-Encoding: gzip\r\n",
            b"Content-Length: %d\r\n\r\n" % len(coded_body) + coded_body,
        ],
        "/gone": answer("not here", HTML, status=404),
        "/moved": answer("there", "Location: a", status=301),
        "/chunks": [CHUNKED, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"],
    }
    pages = crawl_pages(answers, tmp_path, "a", "gone", "moved", "chunks", warc=tmp_path)
    info, *records = read_warcs(tmp_path)
    assert info["type"] == "warcinfo" and b"software: tests" in info["body"]
    assert [record["type"] for record in records] == ["response", "request"] * 4
    assert [record["body"] for record in records[::2]] == [coded_body, b"not here", b"there", b"abcde"]
    answered, asked = records[:2]
    assert b"\r\n\r\n" + b"".join(answers["/a"]) + b"\r\n\r\n" in gzip.decompress(
        (tmp_path / info["file"]).read_bytes()
    )
    assert asked["http"].to_str().startswith("GET /a HTTP/1.1\r\nHost: 127.0.0.1:")
    assert answered["warc"]["WARC-IP-Address"] == "127.0.0.1"
    assert asked["warc"]["WARC-Concurrent-To"] == answered["warc"]["WARC-Record-ID"]
    assert records[6]["http"]["X-Archive-Orig-Transfer-Encoding"] == "chunked"
    assert {page.file for page in pages} == {info["file"]}


def test_what_is_not_whole_or_put_off_is_in_no_warc_and_what_was_cut_off_says_so(tmp_path: Path) -> None:
    answers = {"/cut": coded(gzip.compress(BODY)[:-9], "gzip"), "/long": page("x" * 9000)}
    crawl_pages(answers, tmp_path, "cut", "long", warc=tmp_path, max_body=8000)
    put_off({"/busy": answer(status=503)}, tmp_path, warc=tmp_path)
    _, answered, asked = read_warcs(tmp_path)
    assert answered["warc"]["WARC-Truncated"] == "length"
    assert (answered["url"].rpartition("/")[2], len(answered["body"]), asked["type"]) == ("long", 8000, "request")


def test_a_warc_does_not_have_what_opens_the_site(tmp_path: Path) -> None:
    (tmp_path / "cookies").write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tkey\tsecret\n")
    settings = {"cookies": tmp_path / "cookies", "warc": tmp_path}
    with serving({"/a": page("")}) as site:
        told = ((crawl.host_of(site.url), "jo", "secret"),)
        with working(site, tmp_path, **settings | {"logins": told}) as worker:
            worker.crawl_page(f"{site.url}a", "x")
    assert "\r\nAuthorization: Basic" in site.heads[0] and "\r\nCookie: key=secret" in site.heads[0]
    for record in read_warcs(tmp_path)[1:]:
        assert "uthorization" not in record["http"].to_str() and "ookie" not in record["http"].to_str()


def test_a_warc_that_is_long_enough_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl, "MOST_WARC", 3000)
    pages = {f"/{number}": page(os.urandom(800)) for number in range(9)}
    crawl_pages(pages, tmp_path, *[name[1:] for name in pages], warc=tmp_path)
    records = read_warcs(tmp_path)
    assert len({record["file"] for record in records}) > 3
    assert len([record for record in records if record["type"] == "response"]) == 9
    assert all(file.stat().st_size <= 3000 for file in tmp_path.glob("*.warc.gz"))
    assert not list(tmp_path.glob("*.open"))


CUT = [1, 30, 300]


@pytest.mark.parametrize("lost", CUT)
def test_a_warc_that_a_killed_worker_has_left_is_whole_up_to_its_last_record(lost: int, tmp_path: Path) -> None:
    with serving({"/a": page("one"), "/b": page("two")}) as site, working(site, tmp_path, warc=tmp_path) as worker:
        for name in "ab":
            worker.crawl_page(f"{site.url}{name}", "x")
        [left] = tmp_path.glob("*.open")
        data = left.read_bytes()
        crawl.mend(tmp_path)
        assert left.exists(), "it is being written"
    [closed] = tmp_path.glob("*.warc.gz")
    closed.unlink()
    left.write_bytes(data[:-lost])
    crawl.mend(tmp_path)
    records = read_warcs(tmp_path)
    assert [record["body"] for record in records if record["type"] == "response"] == [b"one", b"two"]
    assert len(records) == 4 and not left.exists()


class Disk:
    """What the crawler has for the module os, some of whose functions are others."""

    def __init__(self, **functions: Any):
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def test_a_page_is_done_only_when_its_record_is_on_the_disk_and_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, pauses, happened = [], [], []
    room = [0, 20, 10**6]  # bytes that the disk takes of a write, by attempt

    def write_some(file: int, data: bytes) -> int:
        if room[0] == 0:
            room.pop(0)
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = data[: room[0]]
        if len(room) > 1:
            room.pop(0)
        return os.write(file, taken)

    def fsync(file: int) -> None:
        happened.append("on disk")
        os.fsync(file)

    monkeypatch.setattr(crawl, "say", said.append)
    monkeypatch.setattr(crawl, "os", Disk(write=write_some, fsync=fsync))
    with serving({"/a": page("<a href=b>")}) as site, working(site, tmp_path) as worker:
        worker.wait, call = pauses.append, worker.tracker.client.call
        worker.tracker.client.call = lambda method, path, *rest, **how: (
            happened.append(path) or call(method, path, *rest, **how)
        )
        give(worker, f"{site.url}a")
        [record] = crawl.read_records(worker.crawl.records)
    assert happened == ["/task/bulk_submit", "on disk", "/task/release"]
    assert len(pauses) == len(said) == 2 and "No space left" in said[0]
    assert record["targets"] == [f"{site.url}b"]


def test_a_disk_that_is_full_leaves_no_half_of_a_record_in_a_warc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [False, True, True]  # the information at the head is written, the first record is not

    def fail(file: Any) -> None:
        if full and full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.fsync(file)

    monkeypatch.setattr(crawl, "os", Disk(fsync=fail))
    monkeypatch.setattr(crawl, "sync_folder", lambda _folder: None)
    monkeypatch.setattr(crawl, "say", lambda _text: None)
    monkeypatch.setattr(crawl, "FULL_DISK_PAUSE", 0)
    crawl_pages({"/a": page("one"), "/b": page("two")}, tmp_path, "a", "b", warc=tmp_path)
    assert not full
    assert [record["type"] for record in read_warcs(tmp_path)] == ["warcinfo"] + ["response", "request"] * 2


NAMES = [
    "http://s/a",
    "http://s/a/b",
    "http://s/A",
    "http://s/a?x",
    "http://s/",
    "http://s/con",
    "http://s/a/",
    "http://S:8080/a",
]
NAMES += [
    f"http://s/{'x' * 3000}",
    f"http://s/{'x' * 2999}y",
    "http://s/%2e%2e%2f..%5c..",
    "http://s/é/💩",
    "http://[::1]/nul.",
]


def test_every_page_has_a_file_name_of_its_own_that_any_file_system_takes() -> None:
    names = [crawl.file_of(crawl.normalise(url), "text/html") for url in NAMES]
    assert len({name.lower() for name in names}) == len(NAMES)
    for name in names:
        assert re.fullmatch(r"[a-z0-9._-]+/[a-z0-9-]+\.html", name) and len(name) < 200
        assert ".." not in name


def test_what_is_fetched_is_saved_as_files_decoded(tmp_path: Path) -> None:
    answers = {
        "/a": coded(gzip.compress(BODY), "gzip"),
        "/a/b": answer("text", "Content-Type: text/plain"),
        "/c": answer(),
    }
    pages = crawl_pages(answers, tmp_path, "a", "a/b", "c", "gone", save=tmp_path / "kept")
    assert [(tmp_path / "kept" / page.file).read_bytes() for page in pages[:2]] == [BODY, b"text"]
    assert [page.file.rpartition(".")[2] for page in pages] == ["html", "txt", "", ""]
    assert len([file for file in (tmp_path / "kept").rglob("*") if file.is_file()]) == 2


# ── Again ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ChangingSite(HostileSite):
    """Answers 304 to whoever has what it would send, by its ETag or its date."""

    def pieces(self, target: str) -> Iterable[bytes | float]:
        pieces = super().pieces(target)
        for name, condition in ((b"ETag: ", "If-None-Match: "), (b"Last-Modified: ", "If-Modified-Since: ")):
            known = re.search(rb"\r\n" + name + rb"(.*)\r\n", pieces[0])
            if known and f"\r\n{condition}{known[1].decode()}\r\n" in f"{self.heads[-1]}\r\n":
                return answer(status=304)
        return pieces


DATE = "Last-Modified: Fri, 01 Jan 2021 00:10:00 GMT"


def crawl_twice(
    before: dict[str, Any], after: dict[str, Any], folder: Path, sitemap: int = 0, **settings: Any
) -> tuple[Any, Any]:
    """The pages of /a of a crawl and of another one after it, which knows the first one's records."""
    first, second = folder / "first", folder / "second"
    pages = []
    with ChangingSite(before) as site:
        for state, answers in ((first, before), (second, after)):
            state.mkdir()
            site.answers = answers
            again = {"again": first / "pages.jsonl"} if pages else {}
            with working(site, state, **settings, **again) as worker:
                pages.append(worker.crawl_page(f"{site.url}a", found_on="x", sitemap=sitemap))
            with contextlib.closing(crawl.Index(state / "pages.jsonl")) as index:
                index.update()
    return tuple(pages)


SAME = {
    "an ETag": page("<a href=b>", HTML, 'ETag: W/"1"'),
    "a date": page("<a href=b>", HTML, DATE),
    "neither, and the same body": page("<a href=b>"),
}


@pytest.mark.parametrize("sent", SAME.values(), ids=SAME)
def test_a_page_that_has_not_changed_is_not_read_again_and_its_links_are_followed(
    sent: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = crawl_twice({"/a": sent}, {"/a": sent}, tmp_path)
    assert (first.unchanged, second.unchanged) == (False, True)
    assert second.links == first.links and len(first.links) == 1
    for name in ("digest", "etag", "last_modified", "type", "size", "since"):
        assert getattr(second, name) == getattr(first, name)


SITES = "".join(f"<sitemap><loc>{url}</loc></sitemap>" for url in ("/more.xml", "http://elsewhere/x", "/" + "x" * 5000))
INDEX = f"<sitemapindex>{SITES}<url><loc>/b</loc></url></sitemapindex>"


@pytest.mark.parametrize("head", [['ETag: "1"'], [DATE], []], ids=["an ETag", "a date", "neither"])
def test_a_sitemap_that_has_not_changed_is_not_read_again_and_what_it_names_is_followed(
    head: list[str], tmp_path: Path
) -> None:
    sent = {"/a": answer(INDEX, *head)}
    first, second = crawl_twice(sent, sent, tmp_path, sitemap=1, warc=tmp_path / "kept")
    assert (first.unchanged, second.unchanged) == (False, True)
    assert second.status == (304 if head else 200)
    assert [len(second.links), len(second.sitemaps), second.left_out] == [1, 1, {"too long": 1, crawl.ODD_SITEMAP: 1}]
    for name in ("links", "sitemaps", "left_out", "digest", "etag", "last_modified", "since"):
        assert getattr(second, name) == getattr(first, name)
    assert [record["type"] for record in read_warcs(tmp_path / "kept")].count("revisit") == 1


def test_a_sitemap_of_another_level_is_read(tmp_path: Path) -> None:
    sent = {"/a": answer(INDEX, 'ETag: "1"')}
    with ChangingSite(sent) as site, working(site, tmp_path) as worker:
        worker.crawl_page(f"{site.url}a", "x", sitemap=1)
        with contextlib.closing(crawl.Index(worker.crawl.records)) as worker.earlier:
            worker.earlier.update()
            found = worker.crawl_page(f"{site.url}a", "x", sitemap=crawl.MOST_LEVELS)
    assert not found.unchanged and found.sitemaps == []
    assert found.left_out == {"too long": 1, crawl.ODD_SITEMAP: 2}


def test_a_page_that_has_changed_is_read(tmp_path: Path) -> None:
    before, after = page("<a href=b>", HTML, 'ETag: "1"'), page("<a href=c>", HTML, 'ETag: "2"')
    _, second = crawl_twice({"/a": before}, {"/a": after}, tmp_path)
    assert not second.unchanged and second.links[0].endswith("/c")


def test_what_the_first_crawl_left_out_the_second_judges_by_its_own_rules(tmp_path: Path) -> None:
    sent = page("<a href=/out><a href=/d/no rel=nofollow><a href=b>", HTML, 'ETag: "1"')
    with ChangingSite({"/d/a": sent}) as site:
        records = []
        for state, told in (
            ("first", {"scope": f"{site.url}d/"}),
            ("second", {"again": tmp_path / "first/pages.jsonl"}),
        ):
            (tmp_path / state).mkdir()
            with working(site, tmp_path / state, **told) as worker:
                worker.crawl_page(f"{site.url}d/a", "x")
                records += crawl.read_records(worker.crawl.records)
            with contextlib.closing(crawl.Index(tmp_path / state / "pages.jsonl")) as index:
                index.update()
    first, second = records
    nofollow = {"nofollow": [f"{site.url}d/no"]}
    assert (first["targets"], first["passed_over"]) == (
        [f"{site.url}d/b"],
        nofollow | {"out of scope": [f"{site.url}out"]},
    )
    assert (second["targets"], second["passed_over"]) == ([f"{site.url}d/b", f"{site.url}out"], nofollow)


@pytest.mark.parametrize(
    ("sent", "profile"),
    [(page("x", HTML, 'ETag: "1"'), "server-not-modified"), (page("x"), "identical-payload-digest")],
)
def test_a_warc_of_a_second_crawl_refers_to_the_first(sent: list[bytes], profile: str, tmp_path: Path) -> None:
    crawl_twice({"/a": sent}, {"/a": sent}, tmp_path, warc=tmp_path / "kept")
    first, second = (record for record in read_warcs(tmp_path / "kept") if record["type"] in ("response", "revisit"))
    assert second["type"] == "revisit" and second["warc"]["WARC-Profile"].endswith(profile)
    for name, of_first in (("Target-URI", "Target-URI"), ("Date", "Date")):
        assert second["warc"][f"WARC-Refers-To-{name}"] == first["warc"][f"WARC-{of_first}"]
    assert second["warc"]["WARC-Payload-Digest"] == first["warc"]["WARC-Payload-Digest"]


HOW_KEPT = {  # by the first crawl, by the second, and whether the second needs no more than that nothing has changed
    "nowhere, then an archive": ([], ["warc"], False),
    "files, then an archive": (["save"], ["warc"], False),
    "an archive, then files": (["warc"], ["save"], False),
    "an archive, then both": (["warc"], ["warc", "save"], False),
    "both, then an archive": (["warc", "save"], ["warc"], True),
    "both, then both": (["warc", "save"], ["warc", "save"], True),
    "files, then files": (["save"], ["save"], True),
    "both, then nowhere": (["warc", "save"], [], True),
}


@pytest.mark.parametrize(("before", "after", "unchanged"), HOW_KEPT.values(), ids=HOW_KEPT)
def test_a_page_that_the_first_crawl_did_not_keep_likewise_is_fetched_whole_to_be_kept(
    before: list[str], after: list[str], unchanged: bool, tmp_path: Path
) -> None:
    sent, folders = {"/a": page("x", HTML, 'ETag: "1"')}, {"warc": tmp_path / "archive", "save": tmp_path / "files"}
    (tmp_path / "first").mkdir()
    with ChangingSite(sent) as site:
        with working(site, tmp_path / "first", **{name: folders[name] for name in before}) as worker:
            worker.crawl_page(f"{site.url}a", "x")
        with contextlib.closing(crawl.Index(tmp_path / "first" / "pages.jsonl")) as index:
            index.update()
        settings = {"again": tmp_path / "first" / "pages.jsonl"} | {name: folders[name] for name in after}
        with working(site, tmp_path, **settings) as worker:
            found = worker.crawl_page(f"{site.url}a", "x")
    assert found.unchanged == unchanged
    assert bool(found.warc) == ("warc" in after or (not after and "warc" in before))
    if "save" in after:
        assert (folders["save"] / found.file).read_bytes() == b"x"
    if "warc" in after:
        assert "response" in [record["type"] for record in read_warcs(folders["warc"])]


def test_the_file_of_a_page_that_is_gone_is_written_again(tmp_path: Path) -> None:
    sent, kept = {"/a": page("x", HTML, 'ETag: "1"')}, tmp_path / "kept"
    (tmp_path / "first").mkdir()
    with ChangingSite(sent) as site, working(site, tmp_path / "first", save=kept) as worker:
        file = kept / worker.crawl_page(f"{site.url}a", "x").file
        with contextlib.closing(crawl.Index(worker.crawl.records)) as worker.earlier:
            worker.earlier.update()
            assert worker.crawl_page(f"{site.url}a", "x").unchanged
            file.unlink()
            assert not worker.crawl_page(f"{site.url}a", "x").unchanged
    assert file.read_bytes() == b"x"


# ── The report ────────────────────────────────────────────────────────────────────────────────────────────────────────


def record_of(url: str, **told: Any) -> bytes:
    page = asdict(crawl.Page(url, "http://s/", status=200)) | {"links": 0, "targets": [], "time": 1.0}
    return json.dumps(page | told).encode() + b"\n"


def index_of(records: Path, *lines: bytes) -> crawl.Index:
    records.write_bytes(b"".join(lines))
    index = crawl.Index(records)
    index.update()
    return index


@pytest.mark.parametrize("line", [b"null", b"{}", b"[]", b'{"url": 1}', b'{"url": "http://a/", "outcome": "ok"}', b"x"])
def test_a_line_that_is_no_record_is_passed_over(line: bytes) -> None:
    assert crawl.read_record(line) is None


def test_a_record_behind_what_a_full_disk_has_left_of_another_is_read(tmp_path: Path) -> None:
    one, two = record_of("http://s/1"), record_of("http://s/2")
    lines = [one[:40] + two, one[:9], b"\n", two, b"[]\n", one[:-1]]
    (tmp_path / "pages.jsonl").write_bytes(b"".join(lines))
    assert [page["url"] for page in crawl.read_records(tmp_path / "pages.jsonl")] == [
        "http://s/2",
        "http://s/2",
        "http://s/1",
    ]


def test_the_index_grows_with_the_records_and_has_the_last_of_each_page(tmp_path: Path) -> None:
    first = record_of("http://s/1", outcome="failed"), record_of("http://s/2"), record_of("http://s/3")[:30]
    with contextlib.closing(index_of(tmp_path / "pages.jsonl", *first)) as index:
        with open(tmp_path / "pages.jsonl", "ab") as records:
            records.write(record_of("http://s/3")[30:] + record_of("http://s/1"))
        index.update()
        assert index.find("http://s/%31")["outcome"] == "ok"
        assert index.find("http://s/4") is None
        assert dict(index.select("SELECT fate, count(*) FROM page GROUP BY fate")) == {"fetched": 3}


def test_the_index_forgets_records_that_have_been_taken_away(tmp_path: Path) -> None:
    records = tmp_path / "pages.jsonl"
    index_of(records, record_of("http://s/1", outcome="broken"), record_of("http://s/2")).close()
    with contextlib.closing(index_of(records, record_of("http://s/3"))) as index:
        assert crawl.summary(index, records)["by_fate"] == {"fetched": 1}


def test_an_index_waits_while_the_disk_is_full(tmp_path: Path) -> None:
    records, paused = tmp_path / "pages.jsonl", []
    with contextlib.closing(index_of(records)) as index:
        records.write_bytes(b"".join(record_of(f"http://s/{n}") for n in range(500)))
        [most] = index.db.execute("PRAGMA page_count").fetchone()
        index.db.execute(f"PRAGMA max_page_count = {most}")

        def make_room(seconds: float) -> None:
            paused.append(seconds)
            index.db.execute("PRAGMA max_page_count = 1000")

        index.update(make_room)
        assert crawl.summary(index, records)["by_fate"] == {"fetched": 500}
    assert paused == [crawl.FULL_DISK_PAUSE]


def test_an_index_that_is_damaged_is_named(tmp_path: Path) -> None:
    records = tmp_path / "pages.jsonl"
    records.touch()
    records.with_suffix(".index").write_bytes(b"x" * 8192)
    with pytest.raises(crawl.CrawlError, match=r"pages\.index cannot be used: .*\. Remove it: it is made again"):
        crawl.Index(records)


def test_a_broken_link_is_told_with_the_pages_that_link_to_it(tmp_path: Path) -> None:
    lines = [record_of("http://s/gone", outcome="broken", status=404)]
    lines += [record_of(f"http://s/{number}", targets=["http://s/gone"]) for number in range(30)]
    with contextlib.closing(index_of(tmp_path / "pages.jsonl", *lines)) as index:
        [broken] = crawl.summary(index, tmp_path / "pages.jsonl")["broken_pages"]
    assert broken["linked_from"] == [f"http://s/{number}" for number in range(20)]
    assert broken["links_to_it"] == 30
    assert crawl.describe(broken) == "404 http://s/gone (found on http://s/0 and 29 more)"


def test_a_broken_link_is_told_with_the_pages_that_link_to_it_with_a_session(tmp_path: Path) -> None:
    lines = [
        record_of("http://s/gone;jsessionid=1", outcome="broken", status=404),
        record_of("http://s/1", targets=["http://s/gone;jsessionid=1"]),
        record_of("http://s/2", targets=["http://s/gone;jsessionid=2"]),
    ]
    with contextlib.closing(index_of(tmp_path / "pages.jsonl", *lines)) as index:
        [broken] = crawl.summary(index, tmp_path / "pages.jsonl")["broken_pages"]
    assert broken["linked_from"] == ["http://s/1", "http://s/2"]


def test_the_summary_has_fates_statuses_depths_hosts_and_redirects(tmp_path: Path) -> None:
    lines = [
        record_of("http://fast/", seconds=0.1),
        record_of("http://slow/", seconds=2.0, depth=1),
        record_of("http://slow/moved", status=301, targets=["http://slow/"], depth=1, seconds=4.0),
        record_of("http://slow/old", unchanged=True, status=304),
        record_of("http://slow/cut", truncated=True),
        record_of(
            "http://slow/bad", outcome="failed", status=None, left_out={"trap": 2}, passed_over={"trap": ["x", "y"]}
        ),
    ]
    with contextlib.closing(index_of(tmp_path / "pages.jsonl", *lines)) as index:
        told = json.loads(json.dumps(crawl.summary(index, tmp_path / "pages.jsonl")))
    assert told["by_fate"] == {"fetched": 2, "failed": 1, "redirect": 1, "truncated": 1, "unchanged": 1}
    assert told["by_status"] == {"no answer": 1, "200": 3, "301": 1, "304": 1}
    assert told["by_depth"] == {"0": 4, "1": 2}
    assert [host["host"] for host in told["slowest_hosts"]] == ["slow", "fast"]
    assert told["redirects"] == [{"url": "http://slow/moved", "status": 301, "to": "http://slow/"}]
    assert (told["left_out"], told["left_out_examples"]) == ({"trap": 2}, {"trap": "x"})


def test_the_target_of_a_redirect_is_told_also_when_it_is_not_followed(tmp_path: Path) -> None:
    passed_over = {"out of scope": ["http://other/"]}
    lines = [record_of("http://s/1", status=302, passed_over=passed_over), record_of("http://s/2", status=302)]
    with contextlib.closing(index_of(tmp_path / "pages.jsonl", *lines)) as index:
        told = crawl.summary(index, tmp_path / "pages.jsonl")
    assert [redirect["to"] for redirect in told["redirects"]] == ["http://other/", ""]


def test_the_report_command_names_what_has_become_of_every_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = [
        record_of("http://s/1", outcome="failed", error="late"),
        record_of(
            "http://s/1", targets=["http://s/2", "http://s/3"], passed_over={"trap": ["http://s/4", "http://s/3"]}
        ),
        record_of("http://s/2", outcome="broken", status=404),
    ]
    (tmp_path / "pages.jsonl").write_bytes(b"".join(lines))
    assert crawl.report_command([str(tmp_path), "--pages"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "fetched: 200 http://s/1",
        "broken: 404 http://s/2",
        "left out: trap: http://s/4",
        "waiting: http://s/3",
    ]
    assert crawl.report_command([str(tmp_path), "--pages", "--json"]) == 0
    assert [json.loads(line)["fate"] for line in capsys.readouterr().out.splitlines()][1:3] == [
        "broken",
        "left out: trap",
    ]
    assert crawl.report_command([str(tmp_path)]) == 0
    assert "by status: 200: 1, 404: 1" in capsys.readouterr().out
    assert crawl.report_command([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["by_status"] == {"200": 1, "404": 1}


@pytest.mark.parametrize(("one_site", "waiting"), [(True, ["http://s/2"]), (False, ["http://s/2", "https://s/1"])])
def test_a_link_to_a_page_by_another_name_does_not_wait(one_site: bool, waiting: list[str], tmp_path: Path) -> None:
    session = "sid=0123456789abcdef0123456789abcdef"
    targets = ["https://s/1", f"http://s/1?{session}", "http://s/2"]
    lines = [record_of("http://s/1?", targets=targets, one_site=one_site)]
    with contextlib.closing(index_of(tmp_path / "pages.jsonl", *lines)) as index:
        assert sorted(page["url"] for page in crawl.fates(index) if page["fate"] == "waiting") == waiting


def test_the_report_of_a_folder_that_is_no_crawls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(crawl.CrawlError, match="is no crawl's"):
        crawl.report_command([str(tmp_path)])
