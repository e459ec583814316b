"""The crawler of examples/: what it makes of one page, its body, its links, its record."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import brotli
import pytest
from test_crawl_hostile import HTML, answer, fetch, links, page

from examples import crawl

# ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────────

BODY = b"<a href=b>" + bytes(range(32, 127)) * 60  # longer than what is decoded at once, in any code
HALVES = BODY[:2000], BODY[2000:]


def deflated(data: bytes, bits: int = -15) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, bits)
    return coder.compress(data) + coder.flush()


def coded(data: bytes, *codings: str) -> list[bytes]:
    return answer(data, HTML, *(f"Content-Encoding: {coding}" for coding in codings))


ENCODED = {
    "gzip": coded(gzip.compress(BODY), "gzip"),
    "x-gzip": coded(gzip.compress(BODY), "X-GZip"),
    "a second gzip member": coded(b"".join(map(gzip.compress, HALVES)), "gzip"),
    "a member for each byte": coded(b"".join(gzip.compress(bytes([byte])) for byte in BODY), "gzip"),
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


MANY = 10**8
BOMBS = {
    "gzip": gzip.compress(b"<a href=b>" + bytes(MANY)),
    "deflate": deflated(b"<a href=b>" + bytes(MANY)),
    "br": brotli.compress(b"<a href=b>" + bytes(MANY), quality=5),
    "zstd": crawl.zstd.compress(b"<a href=b>" + bytes(MANY)),
}


@pytest.mark.parametrize("coding", BOMBS)
@pytest.mark.parametrize("times", [1, 2])
def test_what_a_small_body_decodes_to_is_bounded(
    coding: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    expand = crawl.expand
    monkeypatch.setattr(crawl, "expand", lambda *told: made.append(expand(*told)) or made[-1])
    bomb = BOMBS[coding] if times == 1 else gzip.compress(BOMBS[coding])
    found = fetch({"/a": coded(bomb, ", ".join([coding, "gzip"][:times]))}, tmp_path, timeout=20)
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
