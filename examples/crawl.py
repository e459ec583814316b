#!/usr/bin/env python3
"""Crawl web sites with several worker processes. A model for workers of your own: copy it and change Worker.fetch.

    python3 examples/crawl.py https://docs.example.org/ --server http://127.0.0.1:3010 --contact me@example.org

(the first time with `--manager NAME`, on a tracker without managers also `--register`; the password is asked for).

It speaks to the tracker through the public HTTP API alone, by the library `worker.py`. The flow:

1. **Set up**, as a manager, once: make the project with `keep_hashes` (closed tasks stay known, so that a URL is handed
   out once for ever) and `retry_delay` (a page that failed rests before it is tried again), register the workers, grant
   them assign and submit. Their credentials go into STATE/state.json, which only its owner can read; later starts need
   no password.
2. **The seeds** become the first tasks: pages, and sitemaps, which are tasks as well.
3. **Each worker** repeats: be assigned a page → wait for its host's turn, or put the page off until that → fetch it →
   submit the links on it, with `unique_string` = the normalised URL → log what is broken → append a line to
   STATE/pages.jsonl → release. This order makes it safe. A page is released only when its links are stored, so a worker
   may be killed at any line: its page comes back by its deadline (--max-assign-time) and is done again, by somebody.
4. **The supervisor** restarts workers that died and shows the progress. The crawl is finished when no task is waiting,
   delayed, assigned or awaiting verification; as links are submitted before their page is released, that is never so
   too early.

**A host** is asked for one page at a time, with a pause (--rate, or what its robots.txt says), whatever the number of
workers. STATE/hosts.db has what the crew knows of it, also after a restart; crawls with another STATE do not, so have
one crawl of all that you want of a host. One that is too busy (429, 502, 503, 504, or an error with Retry-After) or
away (no connection, no name, no TLS) is left alone, longer each time, or for as long as it asks; its pages go back to
the tracker with a delay, which costs them no attempt, and other hosts go on. When five pages in a row have failed
otherwise (silence, drips, resets, garbage, 500), the next thing that the host is asked for is the page that it has
answered last: if that comes, the pages are at fault, and each fails after --max-retries; else the host is away, and
is asked for that page and for others by turns. One that stays away (--host-patience) fails its pages. The longest
rest that it has asked for, of 30 days at most, does not count there, nor does the time in which no crew was there;
asking again and again does.

Press Ctrl-C, kill a worker, kill the tracker: start again what is gone, with the same command, and the crawl goes on.
While the tracker is away the workers repeat their request with growing pauses; while a disk is full they wait.
Repeating is harmless: a link submitted twice is a duplicate, a release made twice answers `updated: false`.

A page is a URL as browsers make it of a link (the URL standard), without login and fragment, and is fetched as that. It
is the same page as another when they differ only in percent-encodings of unreserved characters (%7E is ~), or in the
name of a session. Else the query stays as it is: only the site knows what it means. Which links are followed is said by
--scope, --include, --exclude and --max-depth; what is a trap is not (--max-variants). What was left out is counted, by
its reason, and `crawl.py report DIR --pages` names it. Of links there are

- Followed, relative to <base> if there is one: <a> (also of SVG, with href or xlink:href), <area>, <frame>, <iframe>,
  <meta http-equiv=refresh>, <link rel=next|prev|canonical|alternate> (alternate: in HTML, no feeds and styles); the
  headers Refresh and, with the same relations, Link; and Location of 301, 302, 303, 307 and 308. A redirect is a page
  with one link, its target.
- Followed with --parts alone, what a page is shown with: src, srcset and poster of <img>, <source>, <video>, <audio>,
  <track>, <embed>, <script> and <input>, <object data>, <body background>, <image> and <use> of SVG, <link rel=
  stylesheet|icon|preload|manifest> with href and imagesrcset. Not what a style sheet or a script asks for.
- Not followed: forms, links of JavaScript, other relations of <link>, ping and cite, Location of 201 and 300, and URLs
  in plain text, in comments, or in what is no HTML.

A body is read as gzip, deflate, and, where their libraries are installed, brotli and zstd. One that ends too soon, by
its length, its chunks or its coding, or is broken, makes its page fail, and it is fetched again; --max-body holds for
what comes and for what it decodes to.

`pip install '.[examples]'` brings httpx, rich, lxml (finds links 8 times faster than html.parser, and no page can make
it slow), protego (robots.txt with wildcards and longest match, which urllib.robotparser does not know), ada-url and
webencodings (URLs and charsets as browsers read them), publicsuffixlist (what a domain is), warcio (writes WARC files),
and brotli and backports.zstd (it goes without either).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import codecs
import collections
import contextlib
import email.utils
import errno
import functools
import getpass
import hashlib
import http.cookiejar
import importlib
import io
import ipaddress
import itertools
import json
import logging
import math
import mimetypes
import multiprocessing
import multiprocessing.connection
import netrc
import os
import re
import signal
import sqlite3
import string
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, NoReturn, TypeVar
from urllib.parse import unquote

try:
    import ada_url
    import httpx
    import publicsuffixlist
    import webencodings
    from lxml import etree
    from protego import Protego
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    is_help = bool({"-h", "--help"} & set(sys.argv[1:]))
    if is_help:
        print(__doc__)
    print(f"It needs {missing.name}: {sys.executable} -m pip install -e '.[examples]' in the clone", file=sys.stderr)
    sys.exit(0 if is_help else 2)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import worker as library
from worker import Fail, Halted, Refused, Tracker, Unreachable

T = TypeVar("T")
Add = Callable[..., argparse.Action]  # of an option

RESTART_INTERVAL = 5  # seconds at least between two starts of one worker
PLAIN_INTERVAL = 5  # seconds between two lines of progress when there is no terminal
SILENCE = 60  # seconds without a page, though some wait, after which a line says why
ROBOTS_TIMEOUT = 30  # seconds for robots.txt, with all that it redirects to
ROBOTS_AGE = 86400  # seconds after which it is read again
MOST_ROBOTS_KNOWN, MOST_RULES_KNOWN = 200, 2**20  # of those of all hosts, and bytes of them, that a worker remembers
MOST_RULES_READ = 2**24  # bytes of rules, for each link of a page all that its host has; then links wait for their turn
MOST_PAIRS = 200_000  # of a name and a rule in one robots.txt: each is an object to its parser
MOST_SITEMAP = 50 * 2**20  # bytes of a sitemap, unpacked
MOST_LEVELS, ODD_SITEMAP = 3, "a sitemap elsewhere or too deep"  # an index names others, of its host
FIRST_REST, LONGEST_REST = 2, 600  # seconds for which a host that is too busy, and does not say how long, is left alone
SLOWEST, NO_GAP = 10, 0.05  # seconds between two pages after that: no more at first, and below which they are none
PATIENCE = 1  # seconds for which a worker waits with a page in hand for the turn of its host
MOST_PUT_OFF = 5  # times that a page is put off; if its host then answers others, it is the page that is at fault
MOST_SILENT = 5  # pages in a row that have failed, after which the host is asked for one that it has answered before
MOST_GRANTED = 30 * 86400  # seconds of one rest that a host may ask for before patience with it begins to run
BUSY = (429, 502, 503, 504)  # the host is, whatever page it was asked for
MAY_ASK_FOR_REST = (403, 408, 413, 425)  # as every answer of 500 and more
FULL_DISK_PAUSE = 10  # seconds
HELD = 86400  # seconds for which the lease of a page is extended, at most: for a disk that is full
LONGEST_DELAY = 1e9  # seconds that the tracker takes
NO_ROBOTS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # rules with a colon
CODINGS = ("gzip", "deflate", "br", "zstd", "compress")  # of a body; what else its header may name is ignored
MOST_CODINGS, DECODED_AT_ONCE = 3, 4096  # of one body; bytes
MOST_HOPS = 6  # requests for a robots.txt that is elsewhere: after that there is none
MOST_ROBOTS = 2**19  # bytes of it that are read
LONGEST_URL = 4096  # characters; longer links are mistakes or traps
MOST_REDIRECTS, MOST_REDIRECT_DELAY = 20, 86400  # in a row; seconds that each may ask for
MOST_REPEATED = 3  # times that a path may have the same segment
MOST_SEGMENTS = 50  # of a path
RETRY_DELAY = 2  # seconds for which a page rests after it has failed, twice as long each time
MOST_WARC, WARC, OPEN = 10**9, ".warc.gz", ".open"  # bytes of one file; what its name ends in, and while it is written
NOT_MODIFIED = "http://netpreserve.org/warc/1.1/revisit/server-not-modified"
LISTED = ("broken", "failed", "truncated")  # fates whose pages the report names
IN_FATES = ("url", "status", "error", "depth", "found_on", "type", "size", "file")  # what is told of each page
MOST_HANDLED = 200_000  # links of which is kept in memory that they have been looked up
MOST_LISTED, MOST_REFERRERS, MOST_HOSTS = 10_000, 20, 10  # of each, in it
RECORDS, HOSTS = "pages.jsonl", "hosts.db"
LONGEST_LIST = 50  # lines of each kind in the printed report
USER_AGENT = "tracker-crawl/1.0"
# httpx reads a name back by rules that forbid some which are in use (with an emoji, say); it is asked by the other one.
httpx.URL.host = property(lambda url: url.raw_host.decode("ascii"))
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class CrawlError(Fail):
    """Something that the user has to decide; its text is the whole message."""


class PutOff(Exception):
    """A page is to come back after so many seconds, and to lose no attempt by it."""

    def __init__(self, delay: float, reason: str):
        super().__init__(reason)
        self.delay = min(max(delay, 0.05), LONGEST_DELAY)


class Database(sqlite3.Connection):
    """A file that is named, with what to do about it, when it turns out to be damaged."""

    def __init__(self, file: Path, advice: str):
        self.file, self.advice = file, advice
        with self.named(sqlite3.OperationalError):
            super().__init__(file, timeout=60, isolation_level=None)

    def execute(self, *query) -> sqlite3.Cursor:
        with self.named():
            return super().execute(*query)

    @contextlib.contextmanager
    def named(self, *also: type[sqlite3.Error]) -> Iterator[None]:
        """CrawlError for damage, and for errors that are `also` no reason to wait (a full disk is one)."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not isinstance(error, also):
                raise
            raise CrawlError(f"{self.file} cannot be used: {error}. {self.advice}") from None


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, and where the rest is told: how all is used would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (all options: {self.prog} --help)\n")


# ── URLs and links ────────────────────────────────────────────────────────────────────────────────────────────────────


def resolve(link: str, base: str | None = None) -> ada_url.URL | None:
    """An http(s) link as browsers read it. None for what is no URL, or cannot be fetched (mailto:, say)."""
    try:
        url = ada_url.URL(link.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), base)
    except ValueError:
        return None
    return url if url.protocol in ("http:", "https:") else None


def normalise(link: str, base: str | None = None) -> str | None:
    """What is fetched for a link: its URL without login and fragment. None where `resolve` has none."""
    if url := resolve(link, base):
        url.username = url.password = url.hash = ""
        return url.href
    return None


def unique(url: str) -> str:
    """What a normalised URL has in common with all that name the same page: unreserved characters are plain in it."""
    return re.sub("%[0-9A-Fa-f]{2}|%", _normalise_percent, url.removesuffix("?"))


def _normalise_percent(match: re.Match) -> str:
    if match[0] == "%":
        return "%25"
    character = chr(int(match[0][1:], 16))
    return character if re.match("[A-Za-z0-9._~-]", character) else match[0].upper()


class _LinkFinder:
    """A target of lxml's parser that keeps the links and builds no tree: its time is linear, however deep a page is."""

    PAGES: ClassVar = {"a": ("href", "xlink:href"), "area": ("href",), "frame": ("src",), "iframe": ("src",)}
    PARTS: ClassVar = {
        "img": ("src", "srcset"),
        "source": ("src", "srcset"),
        "link": ("href", "imagesrcset"),
        "script": ("src", "href", "xlink:href"),
        "image": ("href", "xlink:href"),
        "use": ("href", "xlink:href"),
        "video": ("src", "poster"),
        "audio": ("src",),
        "track": ("src",),
        "embed": ("src",),
        "object": ("data",),
        "input": ("src",),
        "body": ("background",),
    }

    def __init__(self, parts: bool = False):
        self.parts = parts
        self.base, self.links, self.encoding = "", {}, None
        self.robots = []  # (whom it is for, what they are told) of each <meta>

    def start(self, tag: str, attributes: dict) -> None:
        rel = attributes.get("rel", "").lower().split()
        if tag == "base":
            self.base = self.base or attributes.get("href", "")
        elif tag == "meta":
            self.encoding = self.encoding or encoding_of_meta(attributes)
            self.robots.append((attributes.get("name", "").strip(), attributes.get("content", "")))
            if attributes.get("http-equiv", "").strip().lower() == "refresh":
                self.add(refresh_target(attributes.get("content", "")), rel)
        elif tag == "link" and leads_to_page(rel, attributes.get("type", "")):
            self.add(attributes.get("href"), rel)
        elif tag in self.PAGES or (self.parts and tag in self.PARTS and is_part(tag, rel)):
            for name in self.PAGES.get(tag) or self.PARTS[tag]:
                value = attributes.get(name)
                for link in images_of(value or "") if name.endswith("srcset") else [value]:
                    self.add(link, rel)

    def add(self, link: str | None, rel: list[str]) -> None:
        """A dict keeps each once, in order; one that may be followed will do."""
        if link is not None:
            link = link.partition("#")[0]
            self.links[link] = self.links.get(link, True) and "nofollow" in rel

    def close(self) -> _LinkFinder:
        return self


LEADING = {"next", "prev", "previous", "canonical", "alternate"}  # relations of a <link> or Link: to another page
PAGE_TYPES = ("text/html", "application/xhtml+xml")
SPACES = "\t\n\f\r "


def leads_to_page(rel: list[str], kind: str) -> bool:
    """Whether a link of these relations and that type (if it has one) is to a page: no feed, and no style sheet."""
    kind = kind.partition(";")[0].strip().lower()
    return not LEADING.isdisjoint(rel) and "stylesheet" not in rel and kind in ("", *PAGE_TYPES)


def is_part(tag: str, rel: list[str]) -> bool:
    return tag != "link" or not {"stylesheet", "icon", "preload", "modulepreload", "manifest"}.isdisjoint(rel)


def refresh_target(content: str) -> str | None:
    """Where a <meta http-equiv=refresh>, or a header of that name, leads: None where the page reloads itself."""
    found = re.match(
        rf"\A[{SPACES}]*+[0-9.]++(?:[{SPACES}]*+[;,]|[{SPACES}])[{SPACES}]*+(?:url[{SPACES}]*+=[{SPACES}]*+)?"
        r"""(?:'([^']*)|"([^"]*)|(.*))""",
        content,
        re.IGNORECASE | re.DOTALL,
    )
    return (found and (found[1] or found[2] or found[3])) or None


TOLD = r"(?:[^,(]++|\([^)]*+\)?)*+"  # of an image in a srcset: its size, up to a comma outside of brackets


def images_of(srcset: str) -> Iterator[str]:
    """The URLs of a srcset: each up to the next space, and after it what tells its size, up to a comma."""
    for url in re.findall(rf"([^{SPACES},][^{SPACES}]*+)(?:(?<=,)|{TOLD})", srcset):
        yield url.rstrip(",")


def links_of_header(response: httpx.Response) -> Iterator[str]:
    """What the headers Link: and Refresh: of an answer lead to, as they have it."""
    for value in response.headers.get_list("Link"):
        for link, parameters in re.findall(r'<([^<>]*)>((?:[^,"<]|"[^"]*")*)', value):
            named = dict(reversed(re.findall(r'[;\s]([\w*]+)\s*+=\s*+("[^"]*"|[^\s;,"]*)', parameters.lower())))
            rel, kind = (named.get(name, "").strip('"') for name in ("rel", "type"))
            if "anchor" not in named and "nofollow" not in rel.split() and leads_to_page(rel.split(), kind):
                yield link
    for value in response.headers.get_list("Refresh")[:1]:
        if link := refresh_target(value):
            yield link


def find_links(
    html: bytes,
    url: str,
    charset: str | None = None,
    default: str = "windows-1252",
    leave_out: Callable[[str, str], None] = lambda _reason, _link: None,
    robot: str | None = None,
    parts: bool = False,
) -> list[str]:
    """The normalised targets of a page's links, each once, in the order of the page. Says what is left out, and why.

    With the name of a `robot` those are left out that the page does not want followed (by it, or by any). With
    `parts` there are those, too, of what the page is shown with.

    It is decoded as browsers do: what counts is a byte order mark, then `charset` (of the Content-Type header), then
    what the page declares, else `default`; what does not belong there is replaced, and costs no link.
    """
    declared = webencodings.lookup(charset or "") or prescan(html)
    text, encoding = decode(html, declared or webencodings.lookup(default))
    found = read_html(text, parts)
    if not declared and found.encoding not in (None, encoding):  # a declaration after the first bytes
        text, encoding = decode(html, found.encoding)
        found = read_html(text, parts)
    base = normalise(found.base, url) or url
    links = {}
    forbidden = robot is not None and any(
        name.lower() in ("robots", product(robot)) and says_nofollow(content) for name, content in found.robots
    )
    for link, asked_not_to in found.links.items():
        target = normalise(encode_query(link, encoding), base)
        reason = "too long" if target and len(target) > LONGEST_URL else ""
        if target and robot is not None and (forbidden or asked_not_to):
            reason = "nofollow"
        if reason:
            leave_out(reason, target)
        elif target:
            links.setdefault(unique(target), target)
    return list(links.values())


def product(user_agent: str) -> str:
    """The name by which a site speaks to a robot: the first word, without its version."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0].lower()


def says_nofollow(rules: str) -> bool:
    return not {"nofollow", "none"}.isdisjoint(re.split(r"[\s,]+", rules.lower()))


def header_says_nofollow(response: httpx.Response, user_agent: str) -> bool:
    """Whether an X-Robots-Tag tells this robot, or all, to follow no link. Each header may name whom it is for."""
    for value in response.headers.get_list("X-Robots-Tag"):
        name, colon, rules = value.partition(":")
        named = bool(colon) and "," not in name and name.strip().lower() not in NO_ROBOTS
        if says_nofollow(rules if named else value) and (not named or name.strip().lower() == product(user_agent)):
            return True
    return False


TWINS = {  # characters that Python's codecs put for those of the encoding standard
    **dict.fromkeys(("euc-jp", "iso-2022-jp"), str.maketrans("〜‖¢£¬−", "～∥￠￡￢－")),
    "koi8-u": str.maketrans("╝╬", "ўЎ"),
}


def decode(html: bytes, encoding: webencodings.Encoding) -> tuple[str, webencodings.Encoding]:
    """The text, and what it was encoded in. gbk is read as gb18030, which has grown out of it."""
    wider = webencodings.lookup("gb18030") if encoding.name == "gbk" else encoding
    text, used = webencodings.decode(html, wider, "as browsers")
    return text.translate(TWINS.get(used.name, {})), encoding if used is wider else used


def read_html(text: str, parts: bool = False) -> _LinkFinder:
    parser = etree.HTMLParser(target=_LinkFinder(parts), encoding="utf-8", huge_tree=True)
    return etree.fromstring(text.replace("\0", "\ufffd").encode("utf-8", "replace"), parser)


def prescan(html: bytes) -> webencodings.Encoding | None:
    """What a page declares in its first bytes, none of which is outside ASCII."""
    start = html[:1024]
    for mark, label in ((b"<\0?\0x\0", "utf-16le"), (b"\0<\0?\0x", "utf-16be")):
        if start.startswith(mark):
            return webencodings.lookup(label)
    declared = read_html(start.decode("iso-8859-1")).encoding
    return declared or of_ascii_kind(label_of_xml(start).decode("iso-8859-1"))


def label_of_xml(start: bytes) -> bytes:
    """The encoding that an XML declaration names; empty if there is none."""
    declaration = start.partition(b">")[0] if start.startswith(b"<?xml") else b""
    value = declaration.partition(b"encoding")[2].lstrip()
    quoted = value.removeprefix(b"=").lstrip()
    if not value.startswith(b"=") or quoted[:1] not in (b'"', b"'"):
        return b""
    return quoted[1:].partition(quoted[:1])[0]


def encoding_of_meta(attributes: dict) -> webencodings.Encoding | None:
    """What a <meta charset> or a <meta http-equiv=content-type> declares."""
    label = attributes.get("charset")
    if label is None and attributes.get("http-equiv", "").strip().lower() == "content-type":
        content = attributes.get("content", "")[:1000]
        found = re.search(r"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"']+))", content, re.IGNORECASE)
        label = found and (found[1] or found[2] or found[3])
    return of_ascii_kind(label or "")


def of_ascii_kind(label: str) -> webencodings.Encoding | None:
    """The encoding of that label in a text that could be read as ASCII: UTF-16 it is not, whatever it says."""
    encoding = webencodings.lookup(label)
    names = {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}
    return encoding and webencodings.lookup(names.get(encoding.name, encoding.name))


def encode_query(link: str, encoding: webencodings.Encoding) -> str:
    """The link with its query in the page's encoding, as browsers send it and the site expects it."""
    path, mark, query = link.partition("?")
    if not mark or query.isascii() or encoding.name in ("utf-8", "utf-16le", "utf-16be", "replacement"):
        return link
    return f"{path}?" + re.sub(r"[^\x00-\x7f]+", lambda text: _percent(_encode(text[0], encoding)), query)


def _encode(text: str, encoding: webencodings.Encoding) -> bytes:
    if encoding.name == "euc-jp":
        return b"".join(map(_as_euc_jp, text))
    text = text.translate({twin: ours for ours, twin in TWINS.get(encoding.name, {}).items()})
    codec, others = encoding.codec_info, _others_of_shift_jis() if encoding.name == "shift_jis" else {}
    if others.keys().isdisjoint(text):
        return codec.encode(text, "as browsers")[0]
    return b"".join(others.get(character) or codec.encode(character, "as browsers")[0] for character in text)


def _as_euc_jp(character: str) -> bytes:
    """What browsers put in a query: they know the characters of cp932, and none of those that have three bytes here."""
    data = character.translate({0x2212: "－"}).encode("cp932", "ignore")
    if character.isascii() or character in "¥‾":
        return {"¥": b"\\", "‾": b"~"}.get(character, data)
    if len(data) == 1 and b"\xa1" <= data < b"\xe0":
        return b"\x8e" + data
    if len(data) < 2 or data[0] >= 0xF0 or character in "〜‖¢£¬":
        return f"%26%23{ord(character)}%3B".encode()
    lead, trail = data
    row, cell = divmod((lead - (0x81 if lead < 0xA0 else 0xC1)) * 188 + trail - (0x40 if trail < 0x7F else 0x41), 94)
    return bytes((row + 0xA1, cell + 0xA1))


def _of_jis(row: int, cell: int) -> str:
    """The character of that row and cell, from 0, of the one table for all of Japan: cp932's."""
    lead, trail = divmod(row * 94 + cell, 188)
    shift_jis = lead + (0x81 if lead < 0x1F else 0xC1), trail + (0x40 if trail < 0x3F else 0x41)
    character = bytes(shift_jis).decode("cp932", "replace")
    return character if len(character) == 1 else "\ufffd"


@functools.cache
def _others_of_shift_jis() -> dict[str, bytes]:
    """What browsers put for the characters (of names, many) that it has twice, and of which Python takes the others."""
    known = {}
    for code in itertools.product((0xFA, 0xFB, 0xFC), range(0x40, 0xFD)):
        character = bytes(code).decode("cp932", "ignore")
        if len(character) == 1 and character.encode("cp932")[0] in (0xED, 0xEE):
            known[character] = bytes(code)
    return known


def _percent(data: bytes) -> str:
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte not in b"\"#<>'" else f"%{byte:02X}" for byte in data)


def _as_browsers(error: UnicodeError) -> tuple[str | bytes, int]:
    """What the encoding standard puts for what cannot be decoded, or encoded in a query."""
    if isinstance(error, UnicodeEncodeError):
        unknown = error.object[error.start : error.end]
        return b"".join(_as_unknown(character, error.encoding) for character in unknown), error.end
    byte = error.object[error.start]
    if error.encoding == "charmap" and 0x80 <= byte < 0xA0:
        return chr(byte), error.start + 1
    if error.encoding == "gb18030" and byte == 0x80:
        return "€", error.start + 1
    if first := {"euc_jp": 0xA1, "iso2022_jp": 0x21}.get(error.encoding):
        skipped = int(first == 0xA1 and byte == 0x8F)  # before a pair of another table, of which Python knows all
        pair = [code - first for code in error.object[error.start + skipped : error.start + skipped + 2]]
        if len(pair) == 2 and all(0 <= number < 94 for number in pair):
            return "\ufffd" if skipped else _of_jis(*pair), error.start + skipped + 2
    return "\ufffd", error.end


def _as_unknown(character: str, encoding: str) -> bytes:
    """What browsers put in a query for what Python's codec cannot encode.

    The windows encodings have controls where Python's have nothing; gbk has a euro, and what of gb18030 has two bytes.
    """
    if encoding == "charmap" and "\x80" <= character < "\xa0":
        return bytes([ord(character)])
    if encoding == "gbk" and (character == "€" or len(character.encode("gb18030")) == 2):
        return b"\x80" if character == "€" else character.encode("gb18030")
    return f"%26%23{ord(character)}%3B".encode()


codecs.register_error("as browsers", _as_browsers)


# ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def installed(*names: str):
    """The first of these modules that there is, or None."""
    for name in names:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


brotli = installed("brotli")
brotli = brotli if hasattr(getattr(brotli, "Decompressor", None), "can_accept_more_data") else None  # bounds its output
zstd = installed("compression.zstd", "backports.zstd")
ACCEPTED = ", ".join(["gzip", "deflate"] + ["br"] * bool(brotli) + ["zstd"] * bool(zstd))
DECODER_ERRORS = (zlib.error, getattr(brotli, "error", zlib.error), getattr(zstd, "ZstdError", zlib.error))


class Brotli:
    """brotli's decompressor in the manner of zlib's. It refuses what follows the end."""

    unused_data = unconsumed_tail = b""

    def __init__(self):
        self.decompressor = brotli.Decompressor()

    def decompress(self, data: bytes, most: int) -> bytes:
        return self.decompressor.process(data, output_buffer_limit=most)[:most]

    @property
    def eof(self) -> bool:
        return self.decompressor.is_finished()


def start_decoder(coding: str, data: bytes):
    """What decodes the data, or more of the same kind that follows it; None where nothing of that kind begins."""
    if coding == "gzip":
        return zlib.decompressobj(31) if data.startswith(b"\x1f\x8b") else None
    if coding == "zstd":
        begins = data[:4] == b"\x28\xb5\x2f\xfd" or data[1:4] == b"\x2a\x4d\x18"  # a frame, or one to be skipped
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23}) if begins else None
    if coding == "br":
        return Brotli()
    zlib_header = len(data) > 1 and data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return zlib.decompressobj(15 if zlib_header else -15)


def expand(coding: str, data: bytes, most: int) -> tuple[bytes, bool]:
    """So many bytes at most of what the data are the code of, and whether its end has been reached in them.

    gzip and zstd may be several, one after the other; what follows them and is none is ignored, as browsers do.
    """
    body, position, decoder = bytearray(), 0, None
    while position < len(data) and len(body) < most:
        piece = data[position : position + DECODED_AT_ONCE]  # small: each end copies what is left of it
        decoder = decoder or start_decoder(coding, piece)
        if not decoder and position:
            break
        if not decoder:
            raise httpx.DecodingError(f"the body is no {coding}")
        try:
            body += decoder.decompress(piece, most - len(body))
        except DECODER_ERRORS as error:
            raise httpx.DecodingError(f"the body is no {coding}: {error}") from None
        position += len(piece) - len(decoder.unused_data)
        if decoder.eof:
            decoder = None
            if coding not in ("gzip", "zstd"):
                break
    return bytes(body), not decoder


def decode_body(raw: bytes, response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """The body without its content codings, so many bytes of it at most, and whether that is not all of it.

    `raw` has a byte more than the limit when there is more. Raises DecodingError for what is broken, or ends too soon.
    """
    named = [name.strip().lower() for name in response.headers.get_list("Content-Encoding", split_commas=True)]
    codings = [name.removeprefix("x-") for name in named if name.removeprefix("x-") in CODINGS]
    body, cut = raw, len(raw) > limit
    if len(codings) > MOST_CODINGS:
        raise httpx.DecodingError(f"the body is encoded {len(codings)} times")
    for coding in reversed(codings if raw else []):
        if coding not in ACCEPTED.split(", "):
            raise httpx.DecodingError(f"the body is encoded as {coding}, which was not asked for")
        body, whole = expand(coding, body, limit + 1)
        if not whole and not cut and len(body) <= limit:
            raise httpx.DecodingError(f"the body ends in the middle of its {coding}")
        cut = cut or not whole
    return body[:limit], cut or len(body) > limit


async def read_raw(limit: int, response: httpx.Response) -> bytes:
    """So many bytes of the body as it comes, or all of it."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])


async def read_rest(limit: int, response: httpx.Response) -> bytes:
    """The body of an answer that is not read for itself: what can be had of it."""
    try:
        return await read_raw(limit, response)
    except httpx.HTTPError:
        return b""


def conditions_of(known: dict) -> dict[str, str]:
    """The headers that ask for a page only if it is not what is known."""
    headers = {"If-None-Match": known.get("etag"), "If-Modified-Since": known.get("last_modified")}
    return {name: value for name, value in headers.items() if value and value.isascii()}


def address_of(response: httpx.Response) -> str:
    """Of the server that answers; empty when it is not known."""
    stream = response.extensions.get("network_stream")
    return ((stream and stream.get_extra_info("server_addr")) or ("",))[0]


async def read_up_to(limit: int, response: httpx.Response) -> bytes:
    """So many bytes of the decoded body, or all of it."""
    return decode_body(await read_raw(limit + 1, response), response, limit)[0]


# ── What a crawl covers ───────────────────────────────────────────────────────────────────────────────────────────────

SESSION_NAMES = {"phpsessid", "jsessionid", "sid", "sessid", "session", "sessionid", "session_id", "cfid", "cftoken"}
IN_SESSIONS = frozenset("-_" + string.ascii_letters + string.digits)
YEAR = "(?:1[5-9]|[2-9][0-9])[0-9]{2}"
NAMED = "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
NAMED += "|(?:nov|dec)(?:ember)?)"
DATE = re.compile(  # a year and a month or week, a month and a year, or a day in eight digits
    rf"(?<![0-9]){YEAR}(?:[-/_.](?:0?[1-9]|1[0-2])(?![0-9])|[-/_.](?:w[0-5]?[0-9]|{NAMED})(?![0-9a-z])"
    r"|(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?![0-9]))"
    rf"|(?<![0-9a-z])(?:(?:0?[1-9]|1[0-2])[-_.]|{NAMED}[-/_.]){YEAR}(?![0-9])",
    re.IGNORECASE,
)


def host_of(url: str) -> str:
    """The host of a normalised URL, without its port."""
    return re.sub(":[0-9]*$", "", url.split("/", 3)[2])


def origin_of(url: str) -> str:
    return "/".join([*url.split("/", 3)[:3], ""])


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def may_be_asked(host: str, user_agent: str) -> bool:
    """Whether the host is of this machine, or is told how to reach whoever asks it."""
    return is_loopback(host) or bool(re.search(r"@|https?://", user_agent))


@functools.cache
def public_suffixes() -> publicsuffixlist.PublicSuffixList:
    return publicsuffixlist.PublicSuffixList()


def domain_of(host: str) -> str:
    """What somebody has registered: example.co.uk of www.example.co.uk. The host where there is no such thing."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return public_suffixes().privatesuffix(host) or host
    return host


def without_session(url: str) -> str:
    """The URL without what names a visit to the site, and no page of it."""
    path, mark, query = url.partition("?")
    path = re.sub("(?i);jsessionid=[^/;]*", "", path)
    path = re.sub(r"/\((?:[A-Z]\([^()/]*+\))++\)(?=/)", "", path)  # of ASP.NET: /(S(0123456789abcdefghijklmn))/
    kept = "&".join(part for part in query.split("&") if not _is_session(part))
    return f"{path}{mark}{kept}"


def _is_session(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    known = name.lower() in SESSION_NAMES or name.lower().startswith("aspsessionid")
    return known and len(value) >= 16 and IN_SESSIONS.issuperset(value)


def shape_of(url: str) -> str:
    """What pages have in common of which there may be ever more: all but the query, or the date in a path. Else empty.

    The numbers of a path with a date are none of it: a calendar has a page for each day.
    """
    path, mark, _ = url.partition("?")
    if mark:
        return path + mark
    return re.sub("[0-9]+", "0", path) if DATE.search(path) else ""


def matches(pattern: str, url: str) -> bool:
    """Whether the pattern is the URL, in which * stands for anything. In linear time, for which no re is the tool."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == url
    if not url.startswith(first):
        return False
    at, last = len(first), rest.pop()
    for piece in rest:
        at = url.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return len(url) - len(last) >= at and url.endswith(last)


@dataclass(frozen=True)
class Scope:
    """Which pages are the crawl's. `places`: directories, hosts (with scheme and port) or domains, by `kind`."""

    kind: str
    places: frozenset[str]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    one_site: bool = False  # http and https are the same
    max_depth: float = math.inf

    @classmethod
    def around(cls, kind: str, seeds: Iterable[str], one_site: bool = False, **settings) -> Scope:
        """The one of these seeds."""
        scope = cls(kind, frozenset(), one_site=one_site, **settings)
        places = {normalise(".", seed) if kind == "prefix" else seed for seed in seeds}
        return cls(kind, frozenset(map(scope.place_of, places)), one_site=one_site, **settings)

    def key(self, url: str) -> str:
        """What all URLs of the same page have in common."""
        key = unique(without_session(url))
        return re.sub("^https:", "http:", key) if self.one_site else key

    def place_of(self, url: str) -> str:
        if self.kind == "domain":
            return domain_of(host_of(url))
        return self.key(url) if self.kind == "prefix" else origin_of(self.key(url))

    @functools.cached_property
    def lengths(self) -> list[int]:
        return sorted({len(place) for place in self.places})

    def covers(self, url: str) -> bool:
        if self.kind != "prefix":
            return self.place_of(url) in self.places
        key = self.key(url)
        return any(key[:length] in self.places for length in self.lengths)

    def against(self, url: str, depth: int) -> str:
        """Why a link is not followed. Empty if it is. What somebody has named (depth 0) need only be covered."""
        if not self.covers(url):
            return "out of scope"
        if depth == 0:
            return ""
        if depth > self.max_depth:
            return "deeper than --max-depth"
        if self.include and not any(matches(pattern, url) for pattern in self.include):
            return "not of --include"
        if any(matches(pattern, url) for pattern in self.exclude):
            return "of --exclude"
        segments = [segment for segment in url.partition("?")[0].split("/")[3:] if segment]
        if len(segments) > MOST_SEGMENTS or max(collections.Counter(segments).values(), default=0) > MOST_REPEATED:
            return "the same directory in itself"
        return ""


def submit(
    tracker: Tracker,
    crawl: Crawl,
    urls: Iterable[str],
    found_on: str,
    depth: int,
    sitemap: int = 0,
    hops: int = 0,
    delay: float = 0,
) -> None:
    """Store the URLs as tasks; the tracker skips those that this project has seen before.

    What is nearer to a seed comes first. sitemap: the URLs are not of pages, but of sitemaps of this level. hops: the
    redirects in a row that have led to them. delay: seconds for which nobody asks for them.
    """
    tasks = []
    for url in urls:
        recipe = {"url": url, "found_on": found_on, "depth": depth} | ({"sitemap": sitemap} if sitemap else {})
        recipe |= {"hops": hops} if hops else {}
        key = f"sitemap {url}" if sitemap else crawl.scope.key(url)
        tasks.append({"recipe": json.dumps(recipe), "unique_string": key, "priority": -min(depth, 2**15 - 1)})
    limits = {"max_assign_time": crawl.max_assign_time, "max_retries": crawl.max_retries}
    limits |= {"delay": delay} if delay else {}
    tracker.submit_few(crawl.project, tasks, **limits)


# ── Sitemaps ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _SitemapFinder:
    """A target of lxml's parser that keeps what <loc> says, directly in <url> and <sitemap>."""

    def __init__(self):
        self.open, self.text, self.length, self.found = [], [], 0, {"url": [], "sitemap": []}

    def start(self, tag: str, _attributes: dict) -> None:
        self.open.append(tag.rpartition("}")[2])
        self.text, self.length = [], 0

    def data(self, text: str) -> None:
        if self.open and self.open[-1] == "loc" and self.length <= LONGEST_URL:
            self.text.append(text)
            self.length += len(text)

    def end(self, _tag: str) -> None:
        if self.open.pop() == "loc" and self.open and self.open[-1] in self.found:
            self.found[self.open[-1]].append("".join(self.text))

    def close(self) -> tuple[list[str], list[str]]:
        return self.found["url"], self.found["sitemap"]


def read_sitemap(body: bytes, url: str) -> tuple[list[str], list[str]]:
    """The normalised URLs of pages and of further sitemaps that a sitemap names: XML or lines, also packed by gzip."""
    if body.startswith(b"\x1f\x8b"):
        with contextlib.suppress(httpx.DecodingError):
            body, _ = expand("gzip", body, MOST_SITEMAP)
    if b"<" in body[:1000]:
        parser = etree.XMLParser(target=_SitemapFinder(), recover=True, resolve_entities=False, huge_tree=True)
        try:
            pages, sitemaps = etree.fromstring(body, parser)
        except etree.XMLSyntaxError:
            pages, sitemaps = [], []
    else:
        pages, sitemaps = webencodings.decode(body, "utf-8", "replace")[0].split("\n"), []
    return tuple(
        list(dict.fromkeys(found for link in links if link.strip() and (found := normalise(link.strip(), url))))
        for links in (pages, sitemaps)
    )


# ── Hosts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def despite_full_disk(write: Callable[[], T], pause: Callable[[float], None]) -> T:
    """What `write` returns, which writes to a disk. Says that the disk is full, and tries again until it is not."""
    while True:
        try:
            return write()
        except (OSError, sqlite3.OperationalError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            if not full and getattr(error, "sqlite_errorname", "") not in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
                raise
            say(f"The disk is full: {error}. The crawl goes on when it is not.")
        pause(FULL_DISK_PAUSE)


def count_of(text: str) -> int:
    """A number for a text, as short as a key can be."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


@dataclass
class Host:
    """What is known of one host: a row of its table. Times are of this machine's clock, others in seconds."""

    name: str
    noted: float = 0  # when this was written
    next_turn: float = 0  # after the pause that follows a page
    busy_until: float = 0  # then whoever asks it now has given it up, or was killed; 0: nobody does
    asked: float = 0  # when it was asked last
    asker: int = 0  # the process that did
    booked: float = 0  # until when its turns are spoken for
    rests_until: float = 0
    refusals: int = 0  # the last ones in a row, none for an answer between
    away_since: float = 0  # it has answered no page since
    silent: int = 0  # the last pages in a row that failed
    slow: float = 0  # seconds between two pages after a rest
    delay: float = 0  # that its robots.txt asks for
    pages: int = 0
    seconds: float = 0  # for all of them
    pace: float = 0  # seconds for one, lately
    trouble: str = ""
    good: str = ""  # the page that it has answered last
    granted: float = 0  # the longest rest that it has asked for, and got, since then
    granted_before: float = 0  # of all times when it was away before

    TIMES: ClassVar = ("next_turn", "busy_until", "asked", "booked", "rests_until", "away_since")

    def heed_clock(self, now: float) -> None:
        """A clock that was set back would let a host rest for ever, and one set forward would have it away for long.

        So would a crew that was not there: the time in which nobody has looked for a host is not taken from the
        patience with it.
        """
        if now < self.noted - 1:
            for name in self.TIMES:
                if value := getattr(self, name):
                    setattr(self, name, value - self.noted + now)
        unseen = now - max(self.noted, self.rests_until) - LONGEST_REST
        if self.away_since and unseen > 0:
            self.away_since += unseen
        self.noted = now


class Hosts:
    """What the whole crew knows of the hosts that it asks, in a file: who is asked now, and who is left alone."""

    FIELDS = tuple(column.name for column in fields(Host))
    COLUMNS = ", ".join(FIELDS)
    SCHEMA = f"""
        CREATE TABLE IF NOT EXISTS host ({COLUMNS}, PRIMARY KEY (name)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS robots (origin PRIMARY KEY, read_at, rules) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS put_off (task INTEGER PRIMARY KEY, times);
        CREATE TABLE IF NOT EXISTS shape (id INTEGER PRIMARY KEY, pages); -- 0: of all
    """

    def __init__(self, file: Path, rate: float = 0, timeout: float = 10, pause: Callable[[float], None] = time.sleep):
        """rate: most pages per second from one host, 0: no limit. timeout: seconds that a page takes at most."""
        self.pause, self.gap, self.timeout = pause, 1 / rate if rate else 0, timeout
        self.turns = {}  # when each of ours began
        self.db = Database(file, "Remove it, or choose another --state.")
        with self.db.named(sqlite3.OperationalError):
            self.db.execute("PRAGMA journal_mode = TRUNCATE")  # several write: SQLite < 3.51.3 may damage a WAL
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.executescript(self.SCHEMA)
            self.add_columns()

    def close(self) -> None:
        self.db.close()

    def add_columns(self) -> None:
        """What is known of hosts may be of an earlier version of this program."""
        known = {row[1] for row in self.db.execute("PRAGMA table_info(host)")}
        for column in fields(Host):
            if column.name not in known:
                self.db.execute(f"ALTER TABLE host ADD COLUMN {column.name} DEFAULT {column.default!r}")

    def change(self, do: Callable[[], T]) -> T:
        """What `do` returns, all of whose changes are made, or none."""

        def write() -> T:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                result = do()
                self.db.execute("COMMIT")
                return result
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

        return despite_full_disk(write, self.pause)

    def with_host(self, name: str, do: Callable[[Host, float], T]) -> T:
        """What `do` makes of the host and of what time it is; its changes to the host are kept."""

        def change() -> T:
            now, [host] = time.time(), self.read("name = ?", name) or [Host(name)]
            host.heed_clock(now)
            result = do(host, now)
            values = [getattr(host, name) for name in self.FIELDS]
            self.db.execute(f"REPLACE INTO host ({self.COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)
            return result

        return self.change(change)

    def read(self, which: str, *values: object) -> list[Host]:
        return [Host(*row) for row in self.db.execute(f"SELECT {self.COLUMNS} FROM host WHERE {which}", values)]

    def are_more_than(self, most: int) -> bool:
        """Whether so many hosts are known, or more."""
        return most < 1 or bool(self.db.execute("SELECT 1 FROM host LIMIT 1 OFFSET ?", (most - 1,)).fetchone())

    def gap_of(self, host: Host) -> float:
        """Seconds between two pages."""
        return max(self.gap, host.delay, host.slow)

    def take_turn(self, name: str, has_booked: bool = False, seconds: float = 0) -> float:
        """0.0: nobody else asks the host until leave(), or for so many seconds (0: that a page takes at most).

        Else the seconds until its turn may come, which is booked.
        """

        def take(host: Host, now: float) -> float:
            if max(host.next_turn, host.busy_until, host.rests_until) <= now:
                host.asked, host.asker, host.busy_until = now, os.getpid(), now + (seconds or self.timeout) + 5
                self.turns[name] = now
                return 0.0
            free = max(host.next_turn, now + 0.01)
            if host.busy_until > now:
                free = max(now + 0.02, host.asked + host.pace + self.gap_of(host))
            due = max(free, host.rests_until)
            if not has_booked:
                due = max(due, host.booked)
                host.booked = due + max(self.gap_of(host) + host.pace, 0.01)
            return due - now

        return self.with_host(name, take)

    def leave(self, name: str) -> None:
        """The host has been asked: others may, after a pause."""
        began = self.turns.pop(name, 0)

        def leave(host: Host, now: float) -> None:
            host.next_turn, host.pages = now + self.gap_of(host), host.pages + 1
            if host.asked != began:  # ours has ended, and it is another's turn
                return
            seconds, host.busy_until = max(0.0, now - host.asked), 0
            host.seconds += seconds
            host.pace += (seconds - host.pace) * (0.2 if host.pages > 1 else 1)

        self.with_host(name, leave)

    def refuse(self, name: str, seconds: float, trouble: str) -> tuple[bool, bool]:
        """The host is too busy or away, for so many seconds (0: it did not say).

        Whether that is news, and whether it has answered the page before this one. Patience with it does not
        run for as long as the longest rest is that it has asked for, up to MOST_GRANTED in the whole crawl: else a
        host that answers one page in between would hold a crawl for ever.
        """

        def refuse(host: Host, now: float) -> tuple[bool, bool]:
            news, answers = host.rests_until <= now, not host.refusals
            host.refusals += news
            rest = seconds or min(FIRST_REST * 2 ** min(host.refusals - 1, 20), LONGEST_REST)
            asked_for = seconds if seconds <= MOST_GRANTED else 0
            longer = max(0, min(asked_for, MOST_GRANTED - host.granted_before) - host.granted)
            host.away_since, host.granted = (host.away_since or now) + longer, host.granted + longer
            host.rests_until = max(host.rests_until, now + rest)
            host.slow, host.trouble = max(host.slow, min(rest / 8, SLOWEST)), trouble[:500]
            return news, answers

        return self.with_host(name, refuse)

    def accept(self, name: str, url: str) -> None:
        """The host has answered for this page as it should: the next one may come sooner."""

        def accept(host: Host, now: float) -> None:
            host.granted_before += host.granted
            host.silent = host.away_since = host.granted = 0
            host.good = url
            if host.rests_until <= now:
                host.refusals, host.slow = 0, host.slow / 2 if host.slow > NO_GAP else 0

        self.with_host(name, accept)

    def count_failure(self, name: str) -> int:
        """A page of the host has failed, or did not come in time. How many have in a row."""

        def count(host: Host, _now: float) -> int:
            host.silent += 1
            return host.silent

        return self.with_host(name, count)

    def doubted(self, name: str) -> str:
        """The page that the host has answered last, if so many have failed, or been refused, since. Else empty.

        When that does not come either, another page has the turn after it: the one page may be gone for good.
        """
        which = "name = ? AND refusals % 2 = 0 AND (silent >= ? OR refusals > ?)"
        doubted = self.read(which, name, MOST_SILENT, MOST_PUT_OFF)
        return doubted[0].good if doubted else ""

    def rest(self, name: str) -> float:
        """Seconds for which the host is to be left alone."""
        return max([0.0, *(host.rests_until - time.time() for host in self.read("name = ?", name))])

    def away(self, name: str) -> float:
        """Seconds for which it has not answered."""
        return max([0.0, *(time.time() - host.away_since for host in self.read("name = ? AND away_since", name))])

    def ask_slowly(self, name: str, delay: float) -> bool:
        """Its robots.txt wants so many seconds between two pages. Whether that is news, and slower than it was."""

        def slow(host: Host, _now: float) -> bool:
            before, host.delay = host.delay, delay
            return delay != before and delay > self.gap

        return self.with_host(name, slow)

    def robots(self, origin: str) -> tuple[float, str] | None:
        """When its robots.txt was read, and what it says."""
        return self.db.execute("SELECT read_at, rules FROM robots WHERE origin = ?", (origin,)).fetchone()

    def keep_robots(self, origin: str, rules: str) -> None:
        row = origin, time.time(), rules
        self.change(lambda: self.db.execute("REPLACE INTO robots VALUES (?, ?, ?)", row))

    def put_off(self, task: int) -> int:
        """Count that the host has refused this very page. How often it has by now."""
        count = "INSERT INTO put_off VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"
        return self.change(lambda: self.db.execute(count, (task,)).fetchall()[0][0])

    def forget(self, task: int) -> None:
        if self.db.execute("SELECT 1 FROM put_off WHERE task = ?", (task,)).fetchone():
            self.change(lambda: self.db.execute("DELETE FROM put_off WHERE task = ?", (task,)))

    def pages_like(self, shape: str) -> int:
        """How many pages have been asked for that have this in common; the empty shape is all pages'."""
        found = self.db.execute("SELECT pages FROM shape WHERE id = ?", (count_of(shape) if shape else 0,)).fetchone()
        return found[0] if found else 0

    def admit(self, shape: str, most_alike: float, most: float) -> str:
        """Count a page that is to be asked for. Why it is not: there are too many."""
        keys = [0, count_of(shape)] if shape else [0]

        def admit() -> str:
            if shape and self.pages_like(shape) >= most_alike:
                return "too many that differ in the query or a date"
            if self.pages_like("") >= most:
                return "--max-pages"
            count = "INSERT INTO shape VALUES (?, 1) ON CONFLICT DO UPDATE SET pages = pages + 1"
            self.db.executemany(count, [(key,) for key in keys])
            return ""

        return self.change(admit)


def retry_after(response: httpx.Response) -> float:
    """Seconds that a server asks for before the next attempt; 0 when it says nothing that can be understood.

    A date is one of its own clock, whose time is in the answer, too.
    """
    value = "".join(response.headers.get_list("Retry-After")[:1])[:100].strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value):
        return min(float(value), LONGEST_DELAY)
    if not (then := unix_time(value)):
        return 0
    now = unix_time("".join(response.headers.get_list("Date")[:1])[:100]) or time.time()
    return min(max(then - now, 0), LONGEST_DELAY)


def outcome_of(response: httpx.Response) -> tuple[str, float]:
    """What becomes of a page by an answer that is neither it nor a redirect, and the rest that its host asks for.

    Whoever says when to come again has refused for now, whatever the reason (RFC 9110, 10.2.3 and 15.5.14; RFC 6585).
    """
    status, rest = response.status_code, retry_after(response)
    if status in BUSY or (rest and (status >= 500 or status in MAY_ASK_FOR_REST)):
        return "refused", rest
    return "failed" if status >= 500 or status in (408, 425) else "broken", 0


def is_away(error: httpx.HTTPError) -> bool:
    """Whether it is the host that is not there, whatever it was asked for."""
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)


def unix_time(date: str) -> float | None:
    """Of a date as HTTP writes it. None if it is none."""
    try:
        then = email.utils.parsedate_to_datetime(date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Exchange:
    """A request, what was answered to it, and when it began. The body as it came, and as it is read."""

    response: httpx.Response
    raw: bytes
    body: bytes
    began: datetime
    address: str  # of the server; empty when it is not known


class Headers(StatusAndHeaders):
    """A first line and headers as they are; warcio would quote what is not ASCII."""

    def compute_headers_buffer(self, header_filter=None) -> None:
        self.headers_buff = self.to_bytes(header_filter, "iso-8859-1")


class Archive:
    """WARC files of one process in a folder that others write to as well. A file that is being written ends in .open.

    Each record is a gzip member of its own, and on the disk when `keep` returns. A file that a killed process has left
    is cut after its last whole record by `mend`.
    """

    def __init__(self, folder: Path, name: str, worker: int, software: str):
        self.folder, self.name, self.worker = folder, re.sub(r"[^\w.-]", "_", name)[:100], worker
        self.about = {"software": software, "format": "WARC File Format 1.1", "isPartOf": name}
        self.file, self.size, self.serial = None, 0, 0

    def keep(self, page: Page, exchange: Exchange, original: dict | None = None) -> str:
        """Write the records of an exchange; of a page that has not changed one that refers to its `original`.

        Returns the file's name. Raises OSError, having written nothing.
        """
        out = io.BytesIO()
        writer = WARCWriter(out, gzip=True, warc_version="WARC/1.1")
        told = {"WARC-Date": warc_date(exchange.began.timestamp())}
        if exchange.address:
            told["WARC-IP-Address"] = exchange.address
        asked = writer.create_warc_record(page.url, "request", http_headers=asked_of(exchange.response))
        answered = answered_of(exchange.response)
        if original:
            # A replay takes the headers that it finds, so it gets those of the page, not those of "not modified".
            new_headers = None if page.status == 304 else answered
            come = writer.create_revisit_record(
                page.url, page.digest, original["url"], warc_date(original["since"]), new_headers, told
            )
            if page.status == 304:
                come.rec_headers.replace_header("WARC-Profile", NOT_MODIFIED)
        else:
            told |= {"WARC-Truncated": "length"} if page.truncated else {}
            come = writer.create_warc_record(
                page.url, "response", io.BytesIO(exchange.raw), len(exchange.raw), "", told, http_headers=answered
            )
        writer.write_request_response_pair(asked, come)
        data = out.getvalue()
        if self.file and self.size + len(data) > MOST_WARC:
            self.close()
        if not self.file:
            self.start()
        self.append(data)
        return self.path.name

    def has(self, known: dict) -> bool:
        """Whether an archive, this one or an earlier, has the page of a record."""
        return bool(known.get("warc")) or known["file"].endswith(WARC)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        began = f"{datetime.now(UTC):%Y%m%d%H%M%S%f}"[:-3]
        self.path = self.folder / f"{self.name}-{began}-{self.serial:05}-{self.worker}-{os.getpid()}{WARC}"
        self.file, self.size = open(f"{self.path}{OPEN}", "xb", buffering=0), 0  # noqa: SIM115 (closed by close)
        self.serial += 1
        try_to_lock(self.file)
        out = io.BytesIO()
        writer = WARCWriter(out, gzip=True, warc_version="WARC/1.1")
        writer.write_record(writer.create_warcinfo_record(self.path.name, self.about))
        try:
            self.append(out.getvalue())
        except OSError:
            self.file.close()
            self.file = None
            os.unlink(f"{self.path}{OPEN}")
            raise
        sync_folder(self.folder)

    def append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self.file.write(left) :]
            os.fsync(self.file.fileno())
        except OSError:
            self.file.truncate(self.size)
            self.file.seek(self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None
            os.replace(f"{self.path}{OPEN}", self.path)


def asked_of(response: httpx.Response) -> Headers:
    """The request's first line and headers, without what would open the site to others."""
    request = response.request
    target = request.extensions.get("target", request.url.raw_path).decode("iso-8859-1")
    secrets = (b"authorization", b"proxy-authorization", b"cookie")
    headers = [(name, value) for name, value in request.headers.raw if name.lower() not in secrets]
    return Headers(f"{target} HTTP/1.1", headers, protocol=request.method)


def answered_of(response: httpx.Response) -> Headers:
    """The answer's first line and headers. The one that names chunks, which the body no longer has, by another name."""
    renamed = {b"transfer-encoding": b"X-Archive-Orig-Transfer-Encoding"}
    headers = [(renamed.get(name.lower(), name), value) for name, value in response.headers.raw]
    reason = response.extensions.get("reason_phrase", b"").decode("iso-8859-1")
    return Headers(f"{response.status_code} {reason}", headers, protocol=response.http_version)


def warc_date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def mend(folder: Path) -> None:
    """Close the files that killed processes have left open there: after the last whole record of each."""
    for open_file in sorted(folder.glob(f"*{WARC}{OPEN}")):
        with contextlib.suppress(OSError), open(open_file, "r+b") as file:
            if try_to_lock(file):
                file.truncate(whole_members(file))
                os.fsync(file.fileno())
                os.replace(open_file, str(open_file).removesuffix(OPEN))


def try_to_lock(file) -> bool:
    """Whether nobody else writes to it. (Windows lets no file be renamed that is open.)"""
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def whole_members(file) -> int:
    """Where the last whole gzip member of the file ends."""
    end, left, decoder = 0, b"", zlib.decompressobj(31)
    while left or (left := file.read(2**16)):
        try:
            decoder.decompress(left, 2**20)
        except zlib.error:
            break
        left = decoder.unconsumed_tail
        if decoder.eof:
            left, decoder = decoder.unused_data, zlib.decompressobj(31)
            end = file.tell() - len(left)
    return end


class Folder:
    """Bodies as files, in a folder that others write to as well. Their names are safe on any file system.

    HOST/NAME-HASH.TYPE: the readable end of the URL, and what makes the name that of no other, in whatever case.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def keep(self, page: Page, exchange: Exchange, original: dict | None = None) -> str:
        """Write the body, if it is new, and return the file's name. Raises OSError, having written nothing."""
        if original or page.outcome != "ok" or not exchange.body:
            return (original or {}).get("file", "")
        path = self.folder / file_of(page.url, page.type)
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(new, "wb") as file:
                file.write(exchange.body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        return path.relative_to(self.folder).as_posix()

    def has(self, known: dict) -> bool:
        """Whether the file of a record is there: an earlier crawl may have kept it elsewhere, or in an archive."""
        return bool(known["file"]) and (self.folder / known["file"]).is_file()

    def close(self) -> None:
        """Each file is closed already."""


def file_of(url: str, kind: str) -> str:
    """The name of the file for a page, relative to its folder, with a slash."""
    parts = ada_url.URL(url)
    host = re.sub(r"[^a-z0-9.-]", "_", f"{parts.hostname}_{parts.port or parts.protocol[:-1]}")[-150:]
    words = re.sub(r"[^a-z0-9]+", "-", f"{parts.pathname}{parts.search}".lower()).strip("-")[-60:].strip("-")
    key = hashlib.sha256(unique(url).encode()).hexdigest()[:20]
    known = {"text/html": ".html", "application/xhtml+xml": ".xhtml", "text/plain": ".txt"}
    suffix = known.get(kind) or mimetypes.guess_extension(kind, strict=False) or ".bin"
    return f"{host}/{words}{'-' * bool(words)}{key}{suffix}"


def sync_folder(folder: Path) -> None:
    """Make the names in it outlive a power cut, where a folder can be opened."""
    with contextlib.suppress(OSError):
        known = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(known)
        finally:
            os.close(known)


# ── A worker ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Crawl:
    """What every worker process has to know. Times in seconds, sizes in bytes."""

    server: str
    project: int
    name: str
    scope: Scope
    user_agent: str
    timeout: float
    max_body: int
    max_assign_time: int
    max_retries: int
    records: Path
    rate: float = 0  # pages per second from one host, 0: no limit
    workers: int = 1
    logins: tuple[tuple[str, str, str], ...] = ()  # host, name and password
    cookies: Path | None = None  # a file of them
    ignore_nofollow: bool = False
    robots_sitemaps: bool = False  # those that robots.txt names are crawled, too
    host_patience: float = math.inf  # for a host that is away
    max_pages: float = math.inf
    max_variants: float = math.inf  # of pages that differ in the query or a date
    parts: bool = False  # fetch what pages are shown with, too
    warc: Path | None = None  # folders to keep pages in
    save: Path | None = None
    again: Path | None = None  # the records of an earlier crawl

    def keepers(self, worker: int) -> list[Archive | Folder]:
        archive = [Archive(self.warc, self.name, worker, self.user_agent)] if self.warc else []
        return archive + ([Folder(self.save)] if self.save else [])

    def covers(self, url: str) -> bool:
        return self.scope.covers(url)

    def hosts(self, pause: Callable[[float], None] = time.sleep) -> Hosts:
        return Hosts(self.records.with_name(HOSTS), self.rate, self.timeout, pause)


@dataclass
class Page:
    """What one fetch came to; a line of pages.jsonl.

    outcome: ok, broken (the site says no), failed (to be retried), refused (by a host that is too busy or away: put
    off), left out (not asked for).
    """

    url: str
    found_on: str
    outcome: str = "ok"
    status: int | None = None
    type: str = ""
    size: int = 0
    truncated: bool = False
    error: str = ""
    retry_after: float = 0
    depth: int = 0  # links from a seed
    sitemap: int = 0  # it is none but a sitemap, of this level
    seconds: float = 0
    asked: bool = False  # the site was
    for_good: bool = False  # failed, as it would at every further attempt
    etag: str = ""
    last_modified: str = ""
    digest: str = ""  # of the body as it came
    unchanged: bool = False  # since an earlier crawl had it
    since: float = 0  # when it was asked for and came whole
    file: str = ""  # in which it is kept
    warc: str = ""  # in which it is kept, too
    links: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # links, by the reason
    passed_over: dict[str, list[str]] = field(default_factory=dict)  # which

    def leave_out(self, reason: str, link: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        self.passed_over.setdefault(reason, []).append(link[:LONGEST_URL])

    def of_fair_length(self, links: Iterable[str]) -> list[str]:
        """Those that are not too long. The others are left out."""
        fair = []
        for link in links:
            if len(link) <= LONGEST_URL:
                fair.append(link)
            else:
                self.leave_out("too long", link)
        return fair


class Logins(httpx.Auth):
    """Names and passwords by host: no other host gets them."""

    def __init__(self, logins: Iterable[tuple[str, str, str]]):
        self.known = {host: httpx.BasicAuth(name, password) for host, name, password in logins}

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        if known := self.known.get(host_of(f"http://{request.headers['Host']}/")):
            yield from known.auth_flow(request)
        else:
            yield request


class Cookies(http.cookiejar.MozillaCookieJar):
    """The cookies of a file, in the format that Netscape began. Those that sites set are not kept: they may be many."""

    def extract_cookies(self, _response: object, _request: object) -> None:
        pass


def read_cookies(file: Path | None) -> Cookies:
    jar = Cookies(file)
    try:
        if file:
            jar.load(ignore_discard=True, ignore_expires=True)
            for cookie in jar:
                cookie.expires = cookie.expires or None  # 0 is how curl writes that it ends with the session
    except (OSError, http.cookiejar.LoadError, UnicodeDecodeError) as error:
        raise CrawlError(f"{file} cannot be read as a file of cookies: {error}") from None
    return jar


class Worker:
    """One process of the crew: does one page after the other until it is told to stop, or its supervisor is gone."""

    def __init__(self, crawl: Crawl, credentials: library.Worker):
        self.crawl, self.id = crawl, credentials.id
        self.asked_to_stop = False
        self.tracker = Tracker(crawl.server, worker=credentials, patience=math.inf)
        self.hosts, self.rules = crawl.hosts(self.wait), collections.OrderedDict()
        self.logins = Logins(crawl.logins)
        self.http = Client(
            timeout=httpx.Timeout(None, connect=0.9 * crawl.timeout),  # so that a host that is away is told from a page
            headers=headers_of(crawl.user_agent),
            auth=self.logins,
            cookies=read_cookies(crawl.cookies),
        )
        self.loop = asyncio.Runner()
        self.records = os.open(crawl.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.torn = b""  # ends a line that was written in part
        self.turns = []  # the hosts that we may ask now: one at most
        self.keepers = crawl.keepers(self.id)
        self.earlier = crawl.again and Index(crawl.again)
        self.exchange, self.original = None, None  # of the page in hand: what is to be kept, and its earlier record

    def close(self) -> None:
        self.loop.run(self.http.aclose())
        self.loop.close()
        self.tracker.close()
        self.hosts.close()
        for open_one in filter(None, (*self.keepers, self.earlier)):
            open_one.close()
        os.close(self.records)

    def stop(self, *_signal) -> None:
        self.asked_to_stop = True
        self.tracker.end()

    def run(self) -> None:
        for task in self.tracker.tasks(self.crawl.project, timeout=HELD):
            with task:
                self.do(task)

    def wait(self, seconds: float) -> None:
        """Sleep. Raises Halted, which puts the page back, soon after it is time to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.asked_to_stop:
                raise Halted
            time.sleep(min(left, 0.2))

    def do(self, task: library.Task) -> None:
        """Crawl one page, and say what becomes of its task. What the crawler itself fails at is recorded, too."""
        known = json.loads(task.recipe)
        try:
            page = self.crawl_in_turn(task.id, **known)
        except PutOff as off:
            return task.skip(off.delay, str(off))
        except (Fail, Halted):
            raise
        except Exception as error:
            self.record(Page(known["url"], known["found_on"], "failed", error=repr(error), depth=known.get("depth", 0)))
            raise
        finally:
            self.leave()
        self.hosts.forget(task.id)
        if page.outcome == "failed":
            task.fail(f"failed: {describe(asdict(page))}", for_good=page.for_good)

    def crawl_in_turn(
        self, task: int, url: str, found_on: str, depth: int = 0, sitemap: int = 0, hops: int = 0
    ) -> Page:
        """The page, when its host may be asked. PutOff when that is not soon."""
        host = host_of(url)
        if not self.against(url, depth, sitemap):
            if self.hosts.rest(host) and self.is_given_up(host):
                return self.give_up(url, found_on, depth)
            if self.robots_of(url) is None:
                self.take_turn(host, ROBOTS_TIMEOUT)
                try:
                    self.learn_robots(url)
                except RobotsAway as trouble:
                    for away in dict.fromkeys((host, trouble.host)):
                        self.refuse(away, trouble.retry_after, str(trouble))
                    return self.put_off(url, found_on, depth, str(trouble))
                self.leave()
            self.take_turn(host)
            if good := self.proof_of(host):
                return self.put_off(url, found_on, depth, self.try_host(host, good))
        return self.crawl_page(url, found_on, depth, sitemap, task, hops)

    def is_given_up(self, host: str) -> bool:
        return self.hosts.away(host) > self.crawl.host_patience

    def until_asked(self, host: str, due: float) -> float:
        """Seconds until a page of the host is to come back, which may be asked after so many: or is then given up."""
        away = self.hosts.away(host)
        return min(due, max(0, self.crawl.host_patience - away) + 1) if away else due

    def put_off(self, url: str, found_on: str, depth: int, reason: str) -> Page:
        """The page, given up as its host is. PutOff while there is patience with that."""
        host = host_of(url)
        if self.is_given_up(host):
            return self.give_up(url, found_on, depth)
        raise PutOff(self.until_asked(host, self.hosts.rest(host)), reason)

    def give_up(self, url: str, found_on: str, depth: int) -> Page:
        """A page that fails as its host has done."""
        (host,) = self.hosts.read("name = ?", host_of(url))
        error = f"its host has not answered for {self.hosts.away(host.name):.0f} s: {host.trouble}"
        page = Page(url, found_on, "failed", error=error, depth=depth, for_good=True)
        self.record(page)
        return page

    def proof_of(self, host: str) -> str:
        """The page that has to show that a host is there, from which nothing else comes. Empty if there is none."""
        good = self.hosts.doubted(host)
        return good if good and not self.is_forbidden(good) else ""

    def try_host(self, host: str, good: str) -> str:
        """Ask a host, from which nothing else comes, for a page that it has answered. What that has shown.

        Pages that never come are told from a host that is away by this: they cost it no rest, and it costs them no
        attempt.
        """
        self.count_request()
        page, self.original = Page(good, ""), None
        self.ask(page)
        self.leave()
        if page.outcome in ("ok", "broken"):
            self.hosts.accept(host, good)
            return f"{host} answers: it is its pages that do not come"
        trouble = f"{page.error or page.status} {good}"
        self.refuse(host, page.retry_after, trouble)
        return trouble

    def take_turn(self, host: str, seconds: float = 0, patience: float = 0) -> None:
        """Wait until the host may be asked, for so many seconds (0: that a page takes at most).

        PutOff when that is long, by default so long that a worker that waits could ask another one.
        """
        patience = patience or PATIENCE * min(1, self.crawl.workers / max(1, len(self.rules)))
        ends = time.monotonic() + patience
        due = self.hosts.take_turn(host, seconds=seconds)
        while due:
            if time.monotonic() + due > ends:
                raise PutOff(self.until_asked(host, due), f"others wait for {host}, too")
            self.wait(due)
            due = self.hosts.take_turn(host, has_booked=True, seconds=seconds)
        self.turns.append(host)

    def leave(self) -> None:
        """The host has been asked, if one has: others may."""
        while self.turns:
            self.hosts.leave(self.turns.pop())

    def take_turn_for_robots(self, owner: str, host: str) -> None:
        """Wait until a host may be asked to which the owner's robots.txt leads. RobotsAway when that is long.

        Nobody waits there with a turn in hand: two hosts may lead to one another.
        """
        if not may_be_asked(host, self.crawl.user_agent):
            raise RobotsAway(f"its robots.txt is at {host}, which is not asked without --contact", owner)
        if host in self.turns:
            return
        self.leave()
        try:
            self.take_turn(host, ROBOTS_TIMEOUT, patience=ROBOTS_TIMEOUT)
        except PutOff as off:
            raise RobotsAway(f"its robots.txt is at {host}: {off}", owner, off.delay) from None

    def robots_of(self, url: str) -> Protego | None:
        """The rules of the URL's host, if they are known, and not too old."""
        origin = origin_of(url)
        if origin in self.rules and self.rules[origin].is_fresh():
            self.rules.move_to_end(origin)
            return self.rules[origin].rules
        kept = self.hosts.robots(origin)
        known = kept and Robots(*kept, self.crawl.user_agent)
        return self.remember(origin, known) if known and known.is_fresh() else None

    def remember(self, origin: str, known: Robots) -> Protego:
        self.rules[origin] = known
        while len(self.rules) > 1 and self.are_too_many_rules():
            self.rules.popitem(last=False)
        return known.rules

    def are_too_many_rules(self) -> bool:
        return len(self.rules) > MOST_ROBOTS_KNOWN or sum(one.size for one in self.rules.values()) > MOST_RULES_KNOWN

    def learn_robots(self, url: str) -> None:
        """Read the rules of the URL's host. RobotsAway when nobody knows what it allows."""
        origin, host = origin_of(url), host_of(url)
        take_turn = functools.partial(self.take_turn_for_robots, host)
        text = read_robots(url, self.crawl.user_agent, self.logins, take_turn, self.loop.run)
        known = Robots(time.time(), text, self.crawl.user_agent)
        if self.crawl.robots_sitemaps:  # before anybody knows the rules, and reads them no more
            named = [found for link in known.rules.sitemaps if (found := normalise(link, origin))]
            submit(self.tracker, self.crawl, named, f"{origin}robots.txt", depth=0, sitemap=1)
        self.hosts.keep_robots(origin, text)
        rules = self.remember(origin, known)
        if self.hosts.ask_slowly(host, delay := delay_of(rules, self.crawl.user_agent)):
            say(f"robots.txt of {host} allows a page in {delay:g} s, which is slower than --rate: it holds.")

    def refuse(self, host: str, seconds: float, trouble: str) -> bool:
        """Have the crew leave a host alone. Whether it has answered the page before this one."""
        news, answers = self.hosts.refuse(host, seconds, trouble)
        if news:
            told = f"{host} is left alone until {moment(self.hosts.rest(host))}: {trouble}"
            say(told)
            self.log("warn", told)
        return answers

    def against(self, url: str, depth: int, sitemap: int = 0, heeds_robots: bool = True) -> str:
        """Why a page is not asked for. Empty if it is."""
        reason = "" if sitemap else self.crawl.scope.against(url, depth)
        if sitemap and not may_be_asked(host_of(url), self.crawl.user_agent):
            reason = "a sitemap of a host that is not asked without --contact"
        if not reason and depth and self.crawl.scope.kind == "domain" and self.is_host_too_many(host_of(url)):
            reason = "too many hosts of a domain"
        if reason or (heeds_robots and self.is_forbidden(url)):
            return reason or "forbidden by robots.txt"
        shape = shape_of(url)
        return "too many that differ in the query or a date" if self.are_many(shape) else ""

    def is_host_too_many(self, host: str) -> bool:
        """Whether it would be one more than --max-variants, besides those of the seeds: names may be of any number."""
        most = self.crawl.max_variants + len(self.crawl.scope.places)
        return most < math.inf and not self.hosts.read("name = ?", host) and self.hosts.are_more_than(int(most))

    def is_forbidden(self, url: str) -> bool:
        rules = self.robots_of(url)
        return bool(rules) and not rules.can_fetch(url, self.crawl.user_agent)

    def are_many(self, shape: str) -> bool:
        return bool(shape) and self.hosts.pages_like(shape) >= self.crawl.max_variants

    def crawl_page(
        self, url: str, found_on: str, depth: int = 0, sitemap: int = 0, task: int = 0, hops: int = 0
    ) -> Page:
        """Fetch, submit, log, record: all that must be done before the page is released. PutOff says that none was."""
        began = time.monotonic()
        page = self.fetch(url, found_on, depth, sitemap)
        self.leave()
        page.seconds = round(time.monotonic() - began, 3)
        self.judge_host(page, task)
        self.keep(page)
        hops = hops + 1 if fate_of(vars(page)) == "redirect" else 0
        if hops > MOST_REDIRECTS:
            for link in page.links + page.sitemaps:
                page.leave_out("too many redirects in a row", link)
            page.links, page.sitemaps = [], []
        followed, left = [], MOST_RULES_READ
        for link in page.links:
            if reason := self.against(link, depth if sitemap else depth + 1, heeds_robots=left > 0):
                page.leave_out(reason, link)
            else:
                followed.append(link)
            if known := self.rules.get(origin_of(link)):
                left -= known.size
        redirect = {"hops": hops, "delay": min(page.retry_after, MOST_REDIRECT_DELAY) if hops else 0}
        submit(self.tracker, self.crawl, followed, url, depth if sitemap else depth + 1, **redirect)
        submit(self.tracker, self.crawl, page.sitemaps, url, depth, page.sitemap + 1, **redirect)
        if page.outcome == "broken" or page.truncated:
            self.log("warn", f"{page.outcome}: {describe(asdict(page))}")
        self.record(page, followed + page.sitemaps)
        return page

    def judge_host(self, page: Page, task: int) -> None:
        """Note what the page tells of its host. PutOff when it came to nothing, and that is the host's fault."""
        host = host_of(page.url)
        if page.outcome == "failed" and page.asked:
            in_a_row = self.hosts.count_failure(host)
            if in_a_row >= MOST_SILENT and self.proof_of(host):
                raise PutOff(0, f"{in_a_row} pages of {host} have failed in a row: what it has answered is next")
            page.outcome = "refused" if in_a_row >= MOST_SILENT else "failed"
        if page.outcome != "refused":
            if page.outcome in ("ok", "broken") and page.asked:
                self.hosts.accept(host, page.url)
            return
        reason = f"{page.error or page.status} {page.url}"
        others_are_answered = self.refuse(host, page.retry_after, reason)
        if self.is_given_up(host):
            page.outcome, page.for_good = "failed", True
            page.error = f"its host has not answered for {self.hosts.away(host):.0f} s: {page.error or page.status}"
        elif self.hosts.put_off(task) > MOST_PUT_OFF and others_are_answered:
            page.outcome = "failed"
        else:
            raise PutOff(self.until_asked(host, self.hosts.rest(host)), reason)

    def keep(self, page: Page) -> None:
        """Write the page to where it is kept, if it is one that can be."""
        if self.exchange and page.outcome in ("ok", "broken"):
            original = self.original if page.unchanged else None
            for keeper in self.keepers:
                kept = functools.partial(keeper.keep, page, self.exchange, original)
                page.file = despite_full_disk(kept, self.wait) or page.file
                page.warc = page.file if isinstance(keeper, Archive) else page.warc

    def record(self, page: Page, followed: Iterable[str] = ()) -> None:
        """A line of pages.jsonl, on the disk: one call a line, so that those of the crew do not mix."""
        known = asdict(page) | {"links": len(page.links), "targets": list(followed)}
        known |= {"worker": self.id, "pid": os.getpid(), "time": time.time()}
        known |= {"one_site": True} if self.crawl.scope.one_site else {}
        del known["asked"], known["for_good"]
        line = json.dumps(known).encode() + b"\n"

        def write() -> None:
            data = self.torn + line
            written = os.write(self.records, data)
            self.torn = b"\n" if written < len(data) else b""
            if self.torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.records)

        despite_full_disk(write, self.wait)

    def fetch(self, url: str, found_on: str, depth: int = 0, sitemap: int = 0) -> Page:
        """Get one page and judge it. Returns whatever the site does, and holds at most `max_body` bytes of it."""
        page = Page(url, found_on, depth=depth, sitemap=sitemap)
        self.exchange = self.original = None
        reason = self.against(url, depth, sitemap)  # patterns or robots.txt may have changed since the link was stored
        if reason == "out of scope":  # never done: it may be another crawl's
            page.outcome, page.error, page.for_good = "failed", "out of the crawl's scope", True
            return page
        if reason := reason or self.count_request(shape_of(url)):
            page.outcome, page.error = "left out", reason
            page.leave_out(reason, url)
            return page
        self.original = self.find_original(page)
        self.ask(page)
        return page

    def count_request(self, shape: str = "") -> str:
        """Why a page of that shape is not asked for. Empty if it is. PutOff, and the worker's end, for --max-pages."""
        reason = self.hosts.admit(shape, self.crawl.max_variants, self.crawl.max_pages)
        if reason == "--max-pages":
            self.stop()
            raise PutOff(0, reason)
        return reason

    def ask(self, page: Page) -> None:
        """Send the request, and judge what comes of it."""
        page.asked = True
        try:
            self.loop.run(self.get(page))
        except httpx.HTTPError as error:
            page.outcome = "refused" if is_away(error) else "failed"
            page.error = f"{type(error).__name__} {error}".strip()
        except httpx.InvalidURL as error:  # a seed, of more than 64 KiB
            page.outcome, page.error, page.for_good, page.asked = "failed", f"InvalidURL {error}", True, False

    def find_original(self, page: Page) -> dict | None:
        """What an earlier crawl has recorded of the page: one that came whole and, if we keep pages, was kept."""
        known = self.earlier and self.earlier.find(page.url)
        known = known if known and known.get("sitemap", 0) == page.sitemap else None
        whole = known and known["outcome"] == "ok" and known.get("digest") and not known["truncated"]
        return known if whole and all(keeper.has(known) for keeper in self.keepers) else None

    async def get(self, page: Page) -> None:
        """Fetch within one deadline for all: a site that sends a byte a second passes any bound on single reads.

        How long it takes to read what has come is not the site's fault.
        """
        try:
            conditions = conditions_of(self.original or {})
            began = datetime.now(UTC)
            page.since = began.timestamp()
            self.deadline = asyncio.timeout(self.crawl.timeout)
            async with self.deadline, asked(self.http, page.url, conditions) as response:
                address = address_of(response)  # while there is a connection
                raw, body = await self.read(response, page)
                self.exchange = Exchange(response, raw, body, began, address)
        except TimeoutError:
            raise httpx.ReadTimeout(f"the page takes longer than {self.crawl.timeout:g} s") from None

    async def read(self, response: httpx.Response, page: Page) -> tuple[bytes, bytes]:
        """Judge the answer, and find its links. Returns the body as it came and as it is read, where that matters."""
        page.status, page.type = response.status_code, type_of(response)
        page.etag, page.last_modified = (response.headers.get(name, "")[:1000] for name in ("ETag", "Last-Modified"))
        if page.status == 304 and self.original:
            self.take_over(page)
        elif response.has_redirect_location:
            self.read_redirect(response, page)
        elif response.is_success:
            return await (self.read_sitemap if page.sitemap else self.read_page)(response, page)
        else:
            page.outcome, page.retry_after = outcome_of(response)
        return await read_rest(self.crawl.max_body, response) if self.keepers else b"", b""

    def read_redirect(self, response: httpx.Response, page: Page) -> None:
        target = normalise(response.headers.get_list("Location")[0], page.url)
        targets, page.retry_after = page.of_fair_length([target] if target else []), retry_after(response)
        if page.sitemap:
            page.sitemaps, page.sitemap = targets, page.sitemap - 1
            return
        page.links = targets
        if not page.found_on and not any(map(self.crawl.covers, targets)):
            page.outcome, page.error = "broken", f"redirect out of the crawl's scope, to {target}, by"

    async def read_page(self, response: httpx.Response, page: Page) -> tuple[bytes, bytes]:
        raw, body = await self.read_body(response, page, self.crawl.max_body)
        page.type = page.type or (looks_like_html(body) and "text/html") or ""
        if self.is_unchanged(page):
            self.take_over(page)
        else:
            self.read_links(body, response, page)
        return raw, body

    async def read_sitemap(self, response: httpx.Response, page: Page) -> tuple[bytes, bytes]:
        """What it names are links: pages of the crawl, and sitemaps of its host."""
        raw, body = await self.read_body(response, page, MOST_SITEMAP)
        if self.is_unchanged(page):
            self.take_over(page)
            return raw, body
        page.links, named = map(page.of_fair_length, read_sitemap(body, page.url))
        for link in named:
            if page.sitemap < MOST_LEVELS and host_of(link) == host_of(page.url):
                page.sitemaps.append(link)
            else:
                page.leave_out(ODD_SITEMAP, link)
        return raw, body

    async def read_body(self, response: httpx.Response, page: Page, limit: int) -> tuple[bytes, bytes]:
        raw = await read_raw(limit + 1, response)
        self.deadline.reschedule(None)
        body, page.truncated = decode_body(raw, response, limit)
        if page.truncated:
            page.error = f"cut off after {limit} bytes"
        page.size = len(body)
        page.digest = f"sha1:{base64.b32encode(hashlib.sha1(raw[:limit]).digest()).decode()}"
        return raw[:limit], body

    def is_unchanged(self, page: Page) -> bool:
        """Whether it has come as it was, though its site did not say so."""
        return bool(self.original) and self.original["digest"] == page.digest and not page.truncated

    def take_over(self, page: Page) -> None:
        """What the earlier crawl has found on a page that has not changed."""
        known = self.original
        page.unchanged = True
        page.type, page.size, page.digest, page.since = (known[name] for name in ("type", "size", "digest", "since"))
        page.etag, page.last_modified = page.etag or known["etag"], page.last_modified or known["last_modified"]
        page.file, page.warc, page.sitemaps = known["file"], known.get("warc", ""), list(known.get("sitemaps", ()))
        page.links = known["targets"][: len(known["targets"]) - len(page.sitemaps)]
        for reason, links in known["passed_over"].items():
            if reason in ("too long", ODD_SITEMAP) or (reason == "nofollow" and not self.crawl.ignore_nofollow):
                for link in links:
                    page.leave_out(reason, link)
            else:
                page.links += links

    def read_links(self, body: bytes, response: httpx.Response, page: Page) -> None:
        """The page's links, of its headers and, if it is HTML, its text."""
        robot = None if self.crawl.ignore_nofollow else self.crawl.user_agent
        found = [url for link in links_of_header(response) if (url := normalise(link, page.url))]
        found = page.of_fair_length(found)
        if page.type in PAGE_TYPES:
            default = "utf-8" if page.type == "application/xhtml+xml" else "windows-1252"
            charset = charset_of(response)
            found += find_links(body, page.url, charset, default, page.leave_out, robot, self.crawl.parts)
        page.links = list({unique(url): url for url in reversed(found)}.values())[::-1]
        if robot and header_says_nofollow(response, robot):
            for link in page.links:
                page.leave_out("nofollow", link)
            page.links = []

    def log(self, level: str, message: str) -> None:
        line = {"scope": self.crawl.name, "message": message, "timestamp": int(time.time())}
        with contextlib.suppress(Refused):  # a line that is not taken is no reason to lose the page
            self.tracker.call("POST", f"/log/{level}", line)


def headers_of(user_agent: str) -> dict[str, str]:
    return {"User-Agent": user_agent, "Accept-Encoding": ACCEPTED}


class Client(httpx.AsyncClient):
    """Leaves redirects to us: it would refuse an answer for a Location that is no URL to it."""

    def _build_redirect_request(self, request: httpx.Request, response: httpx.Response) -> httpx.Request:
        return request


@contextlib.asynccontextmanager
async def asked(
    client: httpx.AsyncClient, url: str, headers: dict[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """The answer to a GET of this URL, whose body is to be read.

    A site may end a connection that was kept at any time (RFC 9112, 9.3.1), also just when we ask: then we ask over
    another, and the page has not failed.
    """
    is_new = False

    async def trace(event: str, _about: dict) -> None:
        nonlocal is_new
        is_new = is_new or event.endswith((".connect_tcp.started", ".connect_unix_socket.started"))  # a proxy's, too

    request = client.build_request("GET", url, headers=headers, extensions={"trace": trace} | as_it_is(url))
    response = None
    while response is None:
        try:
            response = await client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if is_new:
                raise
    try:
        yield response
    finally:
        await response.aclose()


def as_it_is(url: str) -> dict[str, bytes]:
    """What makes httpx ask for this URL, and not for one that is quoted in its own way."""
    target = re.sub("^[a-z]+://[^/]*", "", url).encode()
    return {} if httpx.URL(url).raw_path == target else {"target": target}


IN_TYPES = frozenset("!#$%&'*+.^_`|~-" + string.digits + string.ascii_lowercase)


def type_of(response: httpx.Response) -> str:
    """The media type as browsers extract it: the last that is one, of all headers and their parts. Else empty."""
    for value in reversed(response.headers.get_list("Content-Type", split_commas=True)):
        kind = value.partition(";")[0].strip().lower()
        first, _, second = kind.partition("/")
        if first and second and IN_TYPES.issuperset(first + second) and kind != "*/*":
            return kind
    return ""


PAGE_STARTS = re.compile(
    rb"<(!--|(!doctype html|html|head|body|script|iframe|h1|div|font|table|a|style|title|b|br|p)[ >])", re.IGNORECASE
)


def looks_like_html(body: bytes) -> bool:
    """What browsers take for a page when nobody says what it is."""
    return bool(PAGE_STARTS.match(re.sub(rb"^(\xef\xbb\xbf)?[\t\n\f\r ]*", b"", body[:1000])))


def charset_of(response: httpx.Response) -> str | None:
    """The charset that the site names. A Content-Type that is too long to be one takes long to read, and has none."""
    return response.charset_encoding if len(response.headers.get("Content-Type", "")) <= 1000 else None


class WorkersSayings(logging.Handler):
    """Shows what the library has to say, but for pages that failed as pages do, which the report names."""

    def emit(self, record: logging.LogRecord) -> None:
        if ") failed: failed: " not in (text := record.getMessage()):
            say(text)


def start_worker(crawl: Crawl, credentials: library.Worker) -> None:
    """The body of a worker process, which the supervisor stops with SIGTERM."""
    logging.getLogger("worker").addHandler(WorkersSayings(logging.WARNING))
    try:
        with contextlib.closing(Worker(crawl, credentials)) as worker:
            signal.signal(signal.SIGTERM, worker.stop)
            threading.Thread(target=stop_after_parent, args=(worker,), daemon=True).start()
            worker.run()
    except Fail as failure:
        say(f"Worker {credentials.id}: {failure}")
        sys.exit(1)


def stop_after_parent(worker: Worker) -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    worker.stop()


# ── Setting up ────────────────────────────────────────────────────────────────────────────────────────────────────────


def set_up(args: argparse.Namespace) -> tuple[int, list[library.Worker]]:
    """The project's id and the workers. Signs a manager in only when something is missing."""
    file = args.state / "state.json"
    state = load_state(file, {"server": args.server, **crawl_of(args)})
    workers = [known for worker in state["workers"] if is_accepted(args.server, known := library.Worker(**worker))]
    if state["ready"] and len(workers) >= args.workers:
        with Tracker(args.server, worker=workers[0], patience=0) as tracker:
            projects = tracker.call("GET", "/project/list").get("projects") or []
            project = next((project for project in projects if project["name"] == args.project), None)
            if project and project["id"] == state["project"]:
                check_owner(tracker, project, args)
                return project["id"], workers[: args.workers]
    with sign_in(args) as manager:
        state["project"] = prepare_project(manager, args, state["project"])
        for number in range(len(workers) + 1, args.workers + 1):
            workers.append(manager.worker(f"{args.project}-{number}"))
        state["workers"] = [asdict(worker) for worker in workers]
        write_file(file, state | {"ready": False})
        for worker in workers:
            manager.grant(state["project"], worker)
        write_file(file, state | {"ready": True})
    return state["project"], workers[: args.workers]


def load_state(file: Path, crawl: dict) -> dict:
    """What an earlier start of the same crawl has left in the file, or an empty state. Refuses another crawl's."""
    empty = crawl | {"project": 0, "workers": [], "ready": False}
    try:
        state = json.loads(file.read_text()) if file.exists() else empty
        different = [key for key in crawl if state[key] != crawl[key]]
    except (OSError, ValueError, LookupError, TypeError):
        raise CrawlError(
            f"{file} cannot be read as the state of a crawl. Remove it, or choose another --state."
        ) from None
    for key in different:
        raise CrawlError(
            f"{file} is of a crawl with {key} {state[key]}, not {crawl[key]}. Choose another --project (and --state)."
        )
    return empty | state


def write_file(file: Path, state: dict) -> None:
    """Replace the file in one step. It may hold secrets: only its owner may read it, from its first moment on."""
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(state, out, indent=1)
    os.replace(new, file)


def is_accepted(server: str, worker: library.Worker) -> bool:
    try:
        with Tracker(server, worker=worker, patience=0) as tracker:
            tracker.call("POST", "/worker/update", {"alias": worker.alias})
    except Unreachable:
        raise
    except (Refused, Fail):
        return False
    return True


def sign_in(args: argparse.Namespace) -> library.Manager:
    """Log in as the manager; with --register, make it if it cannot."""
    terminal = sys.stdin.isatty()
    name = args.manager or (terminal and input("Manager: "))
    if not name:
        raise CrawlError("A manager has to set the crawl up: name one with --manager.")
    if args.password_file:
        password = read_text(args.password_file).rstrip("\r\n")
    else:
        password = os.environ.get("TRACKER_PASSWORD") or (terminal and getpass.getpass(f"Password of {name}: "))
    if not password:
        raise CrawlError(f"Give the password of manager {name} in TRACKER_PASSWORD or with --password-file.")
    try:
        return library.Manager(args.server, name, password, args.register)
    except Refused as refusal:
        hint = "" if args.register else " A new tracker has no manager yet: add --register."
        raise CrawlError(f"Manager {name} cannot log in: {refusal}.{hint}") from None


def prepare_project(manager: library.Manager, args: argparse.Namespace, before: int) -> int:
    """The id of the project, which is made if there is none.

    It belongs to one crawl, and its secret says to which. One that this crawl has worked on `before` becomes its own.
    """
    project, secret = manager.project(args.project), {"secret": json.dumps({"crawl": crawl_of(args)})}
    if project is None:
        if (args.state / RECORDS).exists():
            raise CrawlError(f"{args.state} is of a crawl that this tracker does not know. Choose another --state.")
        settings = {"name": args.project, "keep_hashes": True, "retry_delay": RETRY_DELAY}
        made = manager.call("POST", "/project/create", settings)["id"]
        manager.call("POST", f"/project/secret/{made}", secret)
        return made
    if not project["keep_hashes"]:
        raise CrawlError(f"Project {args.project} was made without keep_hashes: a crawl would never end there.")
    if not check_owner(manager, project, args):
        counts = manager.call("GET", f"/project/get/{project['id']}")
        begun = counts["closed_task_count"] or counts["failed_task_count"] or count_undone(counts)
        if begun and project["id"] != before:
            raise CrawlError(f"Project {args.project} holds tasks of something else. Choose another --project.")
        manager.call("POST", f"/project/secret/{project['id']}", secret)
    return project["id"]


def crawl_of(args: argparse.Namespace) -> dict:
    """What makes a crawl that crawl, as its state and its project's secret have it: one seed, and a digest of all."""
    named = sorted({*map(unique, args.seeds), *(f"sitemap {url}" for url in args.sitemap)})
    digest = hashlib.sha256("\n".join(named).encode()).hexdigest()
    return {"seed": (args.seeds or args.sitemap)[0], "seeds": digest, "scope": args.scope}


def check_owner(tracker: Tracker | library.Manager, project: dict, args: argparse.Namespace) -> bool:
    """Whether the project is known to be of this crawl; False when it is of none. Refuses one of another."""
    text = tracker.call("GET", f"/project/secret/{project['id']}")["secret"]
    if text in ("", "{}"):
        return False
    try:
        owner = json.loads(text)["crawl"]
        seed, seeds, scope = owner["seed"], owner["seeds"], owner["scope"]
    except (ValueError, LookupError, TypeError):
        raise CrawlError(f"Project {args.project} has a secret of something else. Choose another --project.") from None
    if (seeds, scope) != (crawl_of(args)["seeds"], args.scope):
        told = f"Project {args.project} is of the crawl of {seed}, of other seeds or with another --scope ({scope})"
        raise CrawlError(f"{told}. Choose another --project (and --state).")
    return True


class Robots:
    """What a host's robots.txt says to us, and when it was read."""

    def __init__(self, read_at: float, text: str, user_agent: str):
        self.read_at, self.text, self.user_agent = read_at, text, user_agent
        self.size = len(text)

    def is_fresh(self) -> bool:
        """Whether it need not be read again. What was read in the future was so by another clock."""
        return -ROBOTS_AGE < time.time() - self.read_at < ROBOTS_AGE

    @functools.cached_property
    def rules(self) -> Protego:
        text, self.text = self.text, ""
        return Protego.parse(rules_for(self.user_agent, text))


class RobotsAway(CrawlError):
    """A robots.txt cannot be read now, so nobody knows what is allowed.

    The host that is to rest for it, besides the one whose pages it is about, and for how many seconds if it says so:
    where it is elsewhere, a host is not left alone because one of its pages fails.
    """

    def __init__(self, message: str, host: str, retry_after: float = 0):
        super().__init__(message)
        self.host, self.retry_after = host, retry_after


def read_robots(
    url: str,
    user_agent: str,
    auth: httpx.Auth | None = None,
    take_turn: Callable[[str], None] = lambda _host: None,
    run: Callable[[Coroutine], tuple[httpx.Response, bytes]] = asyncio.run,
) -> str:
    """The rules of the URL's host. No robots.txt (4xx) allows all; RobotsAway from one that cannot say (5xx, 429).

    It is followed where it leads, as often as the standard (RFC 9309) asks for; `take_turn` waits for the host there.
    `run` runs what asks for it; that of a loop that goes on does not wait for names that are being looked up for ever.
    """
    robots, left = normalise("/robots.txt", url), ROBOTS_TIMEOUT
    for _ in range(MOST_HOPS):
        began = time.monotonic()
        try:
            response, body = run(get_robots(robots, user_agent, auth, left))
        except TimeoutError:
            told = f"{robots} cannot be read: it takes longer than {ROBOTS_TIMEOUT} s"
            raise RobotsAway(told, host_of(url)) from None
        except httpx.HTTPError as error:
            told = f"{robots} cannot be read: {str(error) or type(error).__name__}"
            raise RobotsAway(told, host_of(robots if is_away(error) else url)) from None
        left -= time.monotonic() - began
        target = response.has_redirect_location and normalise(response.headers.get_list("Location")[0], robots)
        if not target or len(target) > LONGEST_URL:
            break
        take_turn(host_of(target))
        robots = target
    if response.is_success:
        return read_rules(body)
    outcome, rest = outcome_of(response)
    if outcome != "broken":
        told = f"{robots} answers {response.status_code}, so nobody knows what it allows"
        raise RobotsAway(told, host_of(robots if outcome == "refused" else url), rest)
    return ""


def read_rules(body: bytes) -> str:
    """The text of a robots.txt, in whatever Unicode it is; a byte order mark would cost it its first group."""
    text, _ = webencodings.decode(body, "utf-8", "as browsers")
    return text.lstrip("\ufeff").replace("\0", "")


NAMES, OF_ALL = ("user-agent", "useragent", "user agent"), ("sitemap", "sitemaps", "site-map", "host")
OF_ROBOT = ("allow", "disallow", "crawl-delay", "request-rate", "visit-time")


def rules_for(user_agent: str, text: str) -> str:
    """A robots.txt. Of one that gives many robots many rules no more than what is said to this one.

    Its parser makes a rule for each robot of a group: tens of millions, of half a million bytes.
    """
    lines = [(line, *directive_of(line)) for line in text.splitlines()]
    names = [value for _, kind, value in lines if kind in NAMES]
    if len(names) * len(lines) <= MOST_PAIRS:
        return text
    ours = max(dict.fromkeys(names), key=functools.partial(fit_of, user_agent.lower()), default="")
    fits = fit_of(user_agent.lower(), ours)
    kept, is_ours, was_name = [], False, False
    for line, kind, value in lines:
        if kind in NAMES:
            is_ours = value == ours or (is_ours and was_name)
        elif kind in OF_ALL:
            kept.append(line)
        elif is_ours and fits and kind:
            kept += [f"User-agent: {ours}"] * was_name + [line]
        was_name = kind in NAMES or (was_name and (not kind or kind in OF_ALL))
    return "\n".join(kept)


def directive_of(line: str) -> tuple[str, str]:
    """What a line of a robots.txt is about, and its value, in small letters; empty when it says nothing."""
    line = line.partition("#")[0].strip().lower()
    kind, found, value = line.partition(":")
    if not found:
        kind, _, value = line.partition(" ")
        kind = kind if kind in (*NAMES, *OF_ALL, *OF_ROBOT) else ""
    kind, value = kind.strip(), value.strip()
    return kind, value.replace("*", "") or value[:1] if kind in NAMES else value


def fit_of(robot: str, name: str) -> int:
    """How well a name in a robots.txt is the robot's, as its parser has it; 0: it is not."""
    if name == "*" or name not in robot:
        return int(name == "*")
    return len(name) if re.search(rf"(?<![\w-]){re.escape(name)}", robot) else 0


async def get_robots(
    url: str, user_agent: str, auth: httpx.Auth | None, seconds: float
) -> tuple[httpx.Response, bytes]:
    """The answer and its body, if that is no redirect's."""
    client = Client(headers=headers_of(user_agent), auth=auth, timeout=None)
    async with asyncio.timeout(seconds), client, asked(client, url) as response:
        return response, b"" if response.has_redirect_location else await read_up_to(MOST_ROBOTS, response)


def delay_of(robots: Protego, user_agent: str) -> float:
    """Seconds between two pages that the host's Crawl-delay and Request-rate ask for."""
    gaps = [robots.crawl_delay(user_agent) or 0]
    if rate := robots.request_rate(user_agent):
        gaps.append(rate.seconds / rate.requests if rate.requests > 0 else 0)
    gap = max(gaps)
    return gap if 0 < gap < math.inf else 0


# ── The supervisor ────────────────────────────────────────────────────────────────────────────────────────────────────


def say(text: str) -> None:
    console.print(text)


def moment(seconds: float) -> str:
    """The time of day that it is after so many seconds."""
    try:
        return f"{datetime.fromtimestamp(time.time() + seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "the end of time"


def count_undone(project: dict) -> int:
    """How many tasks are waiting for somebody or for their time, or in somebody's hands."""
    counts = ("waiting_task_count", "delayed_task_count", "assigned_task_count", "awaiting_verification_count")
    return sum(project.get(count, 0) for count in counts)


def why_silent(project: dict, known: str) -> str:
    """What keeps the pages that wait: what is known already, or what the project's counts tell."""
    waiting, delayed, held = (project.get(f"{kind}_task_count", 0) for kind in ("waiting", "delayed", "assigned"))
    if known:
        return known
    if project["paused"]:
        return "a manager has paused the project"
    if held:
        return f"{held} in the hands of workers have not been answered, or their workers are gone"
    if waiting and 0 < project["assign_rate"] < 1 / SILENCE:
        return f"the rate is a page in {1 / project['assign_rate']:.0f} s"
    if waiting:
        return f"{waiting} wait, but no worker is given one: see what the workers say above"
    return f"{delayed} wait for their time, after attempts that failed"


class Display:
    """Shows the progress: in place with a bar on a terminal, else as a plain line every few seconds."""

    def __init__(self):
        columns = BarColumn(20), TextColumn("{task.description}", markup=False)
        self.live = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bar = self.live.add_task("")
        self.next_line = 0.0
        self.samples = collections.deque()  # (time, done, known) of the last half minute: rate and ETA come from these

    def show(self, project: dict) -> None:
        """The project's live counts, the rate, and the time that the pages known by now will take."""
        closed, failed, undone = project["closed_task_count"], project["failed_task_count"], count_undone(project)
        assigned, done, now = project["assigned_task_count"], closed + failed, time.monotonic()
        self.samples.append((now, done, done + undone))
        while self.samples[0][0] < now - 30:
            self.samples.popleft()
        start, done_before, known_before = self.samples[0]
        rate = (done - done_before) / (now - start) if now > start else 0
        eta = f"ETA {timedelta(seconds=math.ceil(undone / rate))}" if rate else "ETA unknown"
        if done + undone > known_before:
            eta += " or later: still finding pages"
        if project["paused"]:
            eta = "paused by a manager"
        self.live.update(self.bar, completed=done, total=done + undone)
        counts = f"done {closed}, waiting {undone - assigned}, assigned {assigned}, failed {failed}"
        self.line(f"{counts}, {rate:.1f}/s, {eta}")

    def line(self, text: str) -> None:
        self.live.update(self.bar, description=text)
        if not console.is_terminal and time.monotonic() >= self.next_line:
            say(text)
            self.next_line = time.monotonic() + PLAIN_INTERVAL


@dataclass
class Place:
    """A place in the crew: a worker's credentials, and the process that works with them now."""

    credentials: library.Worker
    process: multiprocessing.Process | None = None
    started: float = -math.inf


class Supervisor:
    """Keeps the crew complete and shows the progress, until nothing is left to do or it is told to stop."""

    def __init__(self, crawl: Crawl, workers: list[library.Worker], project: dict, max_time: float = math.inf):
        self.crawl, self.crew = crawl, [Place(credentials) for credentials in workers]
        self.project = project  # with its live counts, as last heard from the tracker
        self.context = multiprocessing.get_context("spawn")  # the same on every platform, and inherits no connection
        self.tracker = Tracker(crawl.server, worker=workers[0], patience=0)
        self.hosts, self.display = crawl.hosts(), Display()
        self.ends, self.ended_by = time.monotonic() + max_time, ""
        self.asked_to_stop = False
        self.away = ""  # why the tracker does not answer
        self.size, self.moved = -1, 0.0  # of the records; when they have grown, or a line has said why they do not

    def run(self) -> dict:
        """The project at the end, whether the crawl is finished or was interrupted."""
        signal.signal(signal.SIGINT, self.stop)
        signal.signal(signal.SIGTERM, self.stop)
        if resting := self.rests():
            say(f"{resting[0].upper()}{resting[1:]}, as an earlier start was asked.")
        try:
            with self.display.live:
                while not self.asked_to_stop:
                    if limit := self.limit():
                        self.ended_by = limit
                        break
                    self.complete_crew()
                    if self.is_finished():
                        break
                    self.tell_silence()
                    time.sleep(0.5)
        finally:
            self.dismiss_crew(0 if not count_undone(self.project) else self.crawl.timeout + 5)
        self.is_finished()  # counts what was in hand, too
        return self.project

    def limit(self) -> str:
        """The option that ends the crawl now, though pages are left."""
        if self.hosts.pages_like("") >= self.crawl.max_pages:
            return "--max-pages"
        return "--max-time" if time.monotonic() >= self.ends else ""

    def rests(self) -> str:
        """Which hosts are left alone now."""
        resting = self.hosts.read("rests_until > ? ORDER BY rests_until DESC LIMIT 101", time.time())
        if not resting:
            return ""
        first = f"{resting[0].name} is left alone until {moment(resting[0].rests_until - time.time())}"
        more = f", and so are {'more than 99' if len(resting) > 100 else len(resting) - 1} others, for less long"
        return f"{first} ({resting[0].trouble})" + (more if resting[1:] else "")

    def stop(self, *_signal) -> None:
        if self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True
        for place in self.crew:
            if place.process:
                place.process.terminate()
        say("Stopping as soon as the pages in hand are finished (again: at once).")

    def is_finished(self) -> bool:
        try:
            self.project, self.away = self.tracker.project(self.crawl.project), ""
        except (Fail, Refused) as trouble:
            if not self.away:
                self.display.next_line = 0.0  # that it has gone is told at once, however lately a line was
            self.away = str(trouble).rstrip(".")
            self.display.line(f"{self.away}. The crawl goes on when the tracker is back.")
            return False
        self.display.show(self.project)
        return not count_undone(self.project)

    def tell_silence(self) -> None:
        """Say why, when nothing has been fetched for a minute although pages wait, and again each minute."""
        size, now = self.crawl.records.stat().st_size, time.monotonic()
        if size == self.size and now < self.moved + SILENCE:
            return
        if size == self.size:
            say(f"Nothing has been fetched for a minute: {why_silent(self.project, self.away or self.rests())}.")
        self.size, self.moved = size, now

    def complete_crew(self) -> None:
        for place in self.crew:
            alive = place.process and place.process.is_alive()
            if alive or time.monotonic() < place.started + RESTART_INTERVAL:
                continue
            if place.process:
                say(f"Worker {place.credentials.id} died with exit code {place.process.exitcode}.")
            process = self.context.Process(target=start_worker, args=(self.crawl, place.credentials), daemon=True)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C reaches all processes, one heeds it
            process.start()
            signal.signal(signal.SIGINT, self.stop)
            place.process, place.started = process, time.monotonic()
            say(f"Worker {place.credentials.id} is process {process.pid}.")

    def dismiss_crew(self, patience: float) -> None:
        """Let the workers finish their pages, for so many seconds."""
        processes = [place.process for place in self.crew if place.process]
        end = time.monotonic() + patience
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(max(0, end - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join(5)  # until then what it was writing is locked


# ── The report ────────────────────────────────────────────────────────────────────────────────────────────────────────


NEEDED = {"url", "found_on", "outcome", "status", "error", "truncated", "size", "links", "left_out"}  # in every record


def read_record(line: bytes) -> dict | None:
    """Of a line of pages.jsonl. Before it there may be what a power cut or a full disk has left of another.

    None of what this program has not written.
    """
    for start in (0, line.rfind(b'{"url": "')):
        with contextlib.suppress(ValueError):
            record = json.loads(line[start:]) if start >= 0 else None
            whole = isinstance(record, dict) and record.keys() >= NEEDED and ada_url.check_url(str(record["url"]))
            return record if whole else None
    return None


def read_records(records: Path) -> Iterator[dict]:
    with open(records, "rb") as lines:
        yield from filter(None, map(read_record, lines))


class Index:
    """What is recorded last of each page, found by its URL. Made of pages.jsonl, and grown with it by `update`."""

    SCHEMA = """
        CREATE TABLE IF NOT EXISTS page (
            key INTEGER PRIMARY KEY, place INTEGER, fate TEXT, status INTEGER, depth INTEGER, host TEXT,
            seconds REAL, sitemap INTEGER
        );
        CREATE INDEX IF NOT EXISTS page_fate ON page (fate);
        CREATE TABLE IF NOT EXISTS left_out (reason TEXT PRIMARY KEY, links INTEGER, example TEXT);
        CREATE TABLE IF NOT EXISTS read (up_to INTEGER);
    """

    def __init__(self, records: Path):
        self.records = open(records, "rb")  # noqa: SIM115 (closed by close)
        self.db = Database(records.with_suffix(".index"), "Remove it: it is made again.")
        with self.db.named(sqlite3.OperationalError):
            self.db.executescript(self.SCHEMA)

    def close(self) -> None:
        self.records.close()
        self.db.close()

    def update(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Read what has been recorded since the last time."""
        despite_full_disk(self.read_on, pause)

    def read_on(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            [place] = self.db.execute("SELECT coalesce(max(up_to), 0) FROM read").fetchone()
            if place > os.fstat(self.records.fileno()).st_size:  # of records that somebody has taken away
                self.db.execute("DELETE FROM page")
                self.db.execute("DELETE FROM left_out")
                place = 0
            self.records.seek(place)
            while (line := self.records.readline()).endswith(b"\n"):
                if record := read_record(line):
                    self.add(record, place)
                place += len(line)
            self.db.execute("DELETE FROM read")
            self.db.execute("INSERT INTO read VALUES (?)", (place,))
            self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def add(self, record: dict, place: int) -> None:
        row = key_of(record["url"]), place, fate_of(record), record["status"], record.get("depth", 0)
        row += ada_url.URL(record["url"]).host, record.get("seconds", 0), record.get("sitemap", 0)
        self.db.execute("INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        for reason, count in record["left_out"].items():
            example = "".join(record.get("passed_over", {}).get(reason, [])[:1])
            self.db.execute(
                "INSERT INTO left_out VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET links = links + excluded.links",
                (reason, count, example),
            )

    def walk(self) -> Iterator[tuple[dict, bool]]:
        """The records, and of each whether it is the last of its page."""
        place = 0
        with open(self.records.name, "rb") as lines:
            for line in lines:
                if record := read_record(line):
                    row = self.db.execute("SELECT place FROM page WHERE key = ?", (key_of(record["url"]),)).fetchone()
                    yield record, row == (place,)
                place += len(line)

    def read(self, place: int) -> dict:
        self.records.seek(place)
        return read_record(self.records.readline()) or {}

    def find(self, url: str) -> dict | None:
        """The last record of the page, None where there is none."""
        row = self.db.execute("SELECT place FROM page WHERE key = ?", (key_of(url),)).fetchone()
        record = self.read(row[0]) if row else {}
        return record if record and name_of(record["url"]) == name_of(url) else None

    def pages(self, fate: str, most: int = -1) -> Iterator[dict]:
        """The last records of the pages of that fate, in the order in which they came."""
        rows = self.db.execute("SELECT place FROM page WHERE fate = ? ORDER BY place LIMIT ?", (fate, most))
        return (self.read(place) for [place] in rows.fetchall())

    def select(self, query: str) -> list[tuple]:
        return self.db.execute(query).fetchall()


def name_of(url: str) -> str:
    return unique(without_session(url))


def key_of(url: str) -> int:
    return count_of(name_of(url))


def twin_of(url: str) -> str:
    """The URL with the other scheme."""
    return re.sub("^http(s?):", lambda scheme: "http:" if scheme[1] else "https:", url)


def fate_of(record: dict) -> str:
    """What has become of a page, in a word or two."""
    if record["outcome"] != "ok":
        return record["outcome"]
    if record["truncated"]:
        return "truncated"
    if record.get("unchanged"):
        return "unchanged"
    return "redirect" if 300 <= (record["status"] or 0) < 400 else "fetched"


def others_at(state: Path, seeds: Iterable[str]) -> Iterator[str]:
    """What there is to say of crawls whose states lie beside this one, and which ask the seeds' hosts as well."""
    hosts, lately = {host_of(seed) for seed in seeds}, time.time() - SILENCE
    for file in itertools.islice(state.absolute().parent.glob(f"*/{HOSTS}"), 100):
        if file.parent == state.absolute():
            continue
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=1)) as db:
            for [name] in db.execute("SELECT name FROM host WHERE asked > ?", (lately,)):
                if name in hosts:
                    yield f"{name} is asked by the crawl of {file.parent} as well, and gets the requests of both"


def make_report(crawl: Crawl, seeds: list[str], seconds: float, before: dict, after: dict) -> dict:
    """What the crawl came to: pages and rate of this run; counts and lists of all runs."""
    pages = after["closed_task_count"] - before["closed_task_count"]
    with contextlib.closing(Index(crawl.records)) as index:
        index.update()
        return {
            "finished": not count_undone(after),
            "trouble": find_trouble(index, seeds, after["closed_task_count"]),
            "seconds": round(seconds, 2),
            "pages": pages,
            "pages_per_second": round(pages / seconds, 2),
            "done": after["closed_task_count"],
            "waiting": count_undone(after),
            "failed": after["failed_task_count"],
            "hosts": describe_hosts(crawl),
        } | summary(index, crawl.records)


def summary(index: Index, records: Path) -> dict:
    """What the records tell. Lists have at most MOST_LISTED pages; `crawl.py report --pages` has all."""
    lists = {f"{fate}_pages": list(map(without_links, index.pages(fate, MOST_LISTED))) for fate in LISTED}
    add_referrers([page for pages in lists.values() for page in pages], records)
    hosts = index.select(
        "SELECT host, count(*), round(avg(seconds), 3), max(seconds) FROM page WHERE seconds > 0"
        f" GROUP BY host ORDER BY avg(seconds) DESC LIMIT {MOST_HOSTS}"
    )
    redirects = index.pages("redirect", MOST_LISTED)
    return lists | {
        "by_fate": dict(index.select("SELECT fate, count(*) FROM page GROUP BY fate ORDER BY count(*) DESC")),
        "by_status": dict(
            index.select("SELECT coalesce(status, 'no answer'), count(*) FROM page GROUP BY status ORDER BY status")
        ),
        "by_depth": dict(index.select("SELECT depth, count(*) FROM page GROUP BY depth ORDER BY depth")),
        "slowest_hosts": [dict(zip(("host", "pages", "seconds", "slowest"), host, strict=True)) for host in hosts],
        "redirects": [{"url": page["url"], "status": page["status"], "to": target_of(page)} for page in redirects],
        "left_out": dict(index.select("SELECT reason, links FROM left_out ORDER BY links DESC")),
        "left_out_examples": dict(index.select("SELECT reason, example FROM left_out ORDER BY links DESC")),
        "records": str(records),
    }


def target_of(page: dict) -> str:
    """Where a redirect leads, also when that is not followed."""
    left_out = itertools.chain(*page.get("passed_over", {}).values())
    return next(itertools.chain(page.get("targets", ()), left_out), "")


def without_links(page: dict) -> dict:
    return {name: value for name, value in page.items() if name not in ("targets", "left_out")}


def add_referrers(pages: list[dict], records: Path) -> None:
    """To each page `linked_from`: the first pages that link to it, and `links_to_it`: how many do."""
    wanted = {}
    for page in pages:
        page["linked_from"], page["links_to_it"] = [], 0
        wanted[name_of(page["url"])] = page
    for record in read_records(records) if wanted else ():
        for link in record.get("targets", ()):
            page = wanted.get(name_of(link) if not {"%", "?", ";"}.isdisjoint(link) else link)
            if page and record["url"] not in page["linked_from"]:
                page["links_to_it"] += 1
                if len(page["linked_from"]) < MOST_REFERRERS:
                    page["linked_from"].append(record["url"])


def find_trouble(index: Index, seeds: list[str], closed: int) -> str:
    """Why the crawl, though it has come to its end, is none: its seeds are broken, or no page was ever fetched.

    Pages that are closed without any record have been fetched by another crew.
    """
    bad = [page for page in map(index.find, seeds) if page and page["outcome"] != "ok"]
    if len(bad) == len(seeds):
        others = f" (and so it is with the other {len(seeds) - 1})" if len(seeds) > 1 else ""
        return f"The seed is {bad[0]['outcome']}: {bad[0]['error'] or bad[0]['status']}{others}"
    [[records, fetched]] = index.select(
        "SELECT count(*), total(fate IN ('fetched', 'truncated', 'unchanged') AND NOT sitemap) FROM page"
    )
    return "" if fetched or (closed and not records) else "No page was ever fetched"


def describe_hosts(crawl: Crawl) -> list[dict]:
    """The hosts that were asked, those that take the longest first."""
    with contextlib.closing(crawl.hosts()) as hosts:
        known = hosts.read("1 ORDER BY away_since = 0, seconds / max(pages, 1) DESC LIMIT 1000")
    now = time.time()
    return [
        {
            "host": host.name,
            "pages": host.pages,
            "seconds_per_page": round(host.seconds / max(host.pages, 1), 3),
            "away_for": round(max(0, now - host.away_since)) if host.away_since else 0,
            "rests_for": round(max(0, host.rests_until - now)),
            "trouble": host.trouble,
        }
        for host in known
    ]


def fates(index: Index) -> Iterator[dict]:
    """Every page that is known, once: those fetched or tried, those that wait, and those that all left out."""
    index.db.execute("CREATE TEMP TABLE other (key INTEGER PRIMARY KEY, fate TEXT, url TEXT, found_on TEXT)")
    handled = set()  # most links are on many pages
    for record, is_last in index.walk():
        twin = twin_of if record.get("one_site") else str
        if is_last:
            yield {"fate": fate_of(record)} | {name: record.get(name) for name in IN_FATES}
        waiting = [(link, "waiting") for link in record.get("targets", ())]
        passed = record.get("passed_over", {}).items()
        left_out = [(link, f"left out: {reason}") for reason, links in passed for link in links]
        if len(handled) > MOST_HANDLED:
            handled.clear()
        for how, named in (("REPLACE", waiting), ("IGNORE", left_out)):
            links = [link for link in named if link not in handled]
            handled.update(links)
            index.db.executemany(
                f"INSERT OR {how} INTO other SELECT :key, :fate, :url, :page"
                " WHERE NOT EXISTS (SELECT 1 FROM page WHERE key IN (:key, :twin))",
                (
                    {"key": key_of(link), "twin": key_of(twin(link)), "fate": fate, "url": link, "page": record["url"]}
                    for link, fate in links
                ),
            )
    for fate, url, found_on in index.db.execute("SELECT fate, url, found_on FROM other ORDER BY fate, url"):
        yield {"fate": fate, "url": url, "found_on": found_on}


def describe(page: dict) -> str:
    origins = page.get("linked_from") or [page["found_on"]]
    others = page.get("links_to_it", 0) - 1
    more = f" and {others} more" if others > 0 else ""
    return f"{page['error'] or page['status']} {page['url']} (found on {origins[0] or 'no page: the seed'}{more})"


def print_report(report: dict, project: int) -> None:
    limit = report["ended_by"]
    ended = f"Ended by {limit}; the same command with more of it" if limit else "Interrupted; the same command"
    print("Finished." if report["finished"] else f"{ended} goes on with it.")
    if report["finished"] and report["trouble"]:
        print(f"{report['trouble']}.")
    print(f"{report['pages']} pages in {report['seconds']} s, {report['pages_per_second']} pages/s")
    print(f"All runs: {report['done']} done, {report['waiting']} left, {report['failed']} failed")
    print_summary(report)
    for host in report["hosts"]:
        if host["away_for"] or host["rests_for"]:
            state = f"away for {host['away_for']} s" if host["away_for"] else f"rests for {host['rests_for']} s"
            print(f"host: {host['host']} {state}: {host['trouble']}")
    if report["failed"]:
        print(f"To try failed pages again: POST /project/reset_failed_tasks/{project} as a manager, then this command.")
    print(f"Every page: {report['records']}")


def print_summary(report: dict) -> None:
    for name, counts in (
        ("by fate", report["by_fate"]),
        ("by status", report["by_status"]),
        ("by depth", report["by_depth"]),
    ):
        print(f"{name}: {', '.join(f'{kind}: {count}' for kind, count in counts.items())}")
    for host in report["slowest_hosts"]:
        print(f"host: {host['host']} {host['seconds']} s a page, {host['slowest']} s at most, {host['pages']} pages")
    for fate in LISTED:
        print_list(fate, map(describe, report[f"{fate}_pages"]), report["by_fate"].get(fate, 0))
    redirects = (f"{page['url']} to {page['to'] or 'nowhere'}" for page in report["redirects"])
    print_list("redirect", redirects, report["by_fate"].get("redirect", 0))
    for reason, count in report["left_out"].items():
        example = report["left_out_examples"].get(reason)
        print(f"left out: {count} links, {reason}" + (f", as {example}" if example else ""))


def print_list(kind: str, lines: Iterator[str], count: int) -> None:
    for line in itertools.islice(lines, LONGEST_LIST):
        print(f"{kind}: {line}")
    if count > LONGEST_LIST:
        print(f"{kind}: and {count - LONGEST_LIST} more")


def report_command(words: list[str]) -> int:
    """crawl.py report: what the records of a crawl tell, also while it goes on."""
    parser = Parser(prog="crawl.py report", description="Tell what a crawl has come to by now.")
    parser.add_argument("state", metavar="DIR", type=Path, help="the crawl's --state")
    parser.add_argument("--json", action="store_true", help="as JSON; with --pages a line a page")
    parser.add_argument("--pages", action="store_true", help="what has become of every page that is known")
    args = parser.parse_args(words)
    records = args.state / RECORDS
    if not records.exists():
        raise CrawlError(f"{args.state} is no crawl's: it has no {RECORDS}")
    with contextlib.closing(Index(records)) as index:
        index.update()
        if not args.pages:
            told = summary(index, records)
            print(json.dumps(told, indent=1)) if args.json else print_summary(told)
        for page in fates(index) if args.pages else ():
            why = page.get("error") or page.get("status")
            print(json.dumps(page) if args.json else f"{page['fate']}: {f'{why} ' if why else ''}{page['url']}")
    return 0


# ── Command line ──────────────────────────────────────────────────────────────────────────────────────────────────────


LINKS_FOLLOWED = "A page is a URL" + (__doc__ or "").partition("\nA page is a URL")[2].partition("\n`pip")[0]


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="crawl.py",
        usage="crawl.py SEED_URL... [OPTION...]\n       crawl.py report DIR [--json] [--pages]",
        description="Crawl web sites with several workers that share the work through a task tracker.",
        epilog="The same command goes on with a crawl that was interrupted.\n\n" + LINKS_FOLLOWED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, add_options in OPTIONS.items():
        add_options(parser.add_argument_group(title).add_argument)
    args = parser.parse_args()
    try:
        check_arguments(args)
    except (ValueError, OSError, CrawlError) as error:
        parser.error(str(error))
    return args


def add_seeds(add: Add) -> None:
    add("seeds", metavar="SEED_URL", nargs="*", help="a first page; several may be given")
    add("--seeds", metavar="FILE", type=Path, dest="seeds_file", help="with more of them, one a line; # is a comment")
    add(
        "--sitemap",
        metavar="URL",
        action="append",
        default=[],
        help="a sitemap (or an index of some, or lines of URLs)",
    )
    add("--robots-sitemaps", action="store_true", help="crawl the sitemaps that robots.txt names, too")
    add(
        "--again", metavar="DIR", type=Path, help="the --state of an earlier crawl: ask only for what has changed since"
    )


def add_scope(add: Add) -> None:
    add(
        "--scope",
        choices=("host", "domain", "prefix"),
        default="host",
        help="follow links to the seeds' hosts (default), to their domains (example.co.uk of www.example.co.uk),"
        " or below the seeds' directories",
    )
    add("--one-site", action="store_true", help="http and https are one site: a page that has both is fetched once")
    add(
        "--include",
        metavar="PATTERN",
        action="append",
        default=[],
        help="follow no links but those whose whole URL is the pattern, in which * is anything; may be repeated",
    )
    add("--exclude", metavar="PATTERN", action="append", default=[], help="follow none of these, likewise")
    add("--ignore-nofollow", action="store_true", help="follow links that the site wants followed by no robot")
    add("--parts", action="store_true", help="fetch what pages are shown with, too: images, scripts, style sheets, …")


def add_limits(add: Add) -> None:
    add("--max-depth", metavar="N", type=int, default=math.inf, help="links between a seed and a page, at most")
    add(
        "--max-pages", metavar="N", type=int, default=math.inf, help="end after so many requests for pages, of all runs"
    )
    add("--max-time", metavar="SECONDS", type=float, default=math.inf, help="end this run after so long")
    add(
        "--max-variants",
        metavar="N",
        type=int,
        default=10_000,
        help="pages that differ in nothing but their query, or the date in their path, and hosts of --scope domain;"
        " more are a trap, and left out (default: %(default)s)",
    )
    add("--max-body", metavar="BYTES", type=int, default=10 * 2**20, help="of one page, the rest is cut off (10 MiB)")


def add_politeness(add: Add) -> None:
    add(
        "--rate",
        metavar="PAGES_PER_SECOND",
        type=float,
        default=5.0,
        help="most from one host, which is asked for one page at a time, with this pause between; 0: without a pause."
        " Crawls with another --state know nothing of it (default: %(default)s)",
    )
    add("--contact", metavar="TEXT", help="an address or a URL by which a site can reach you; needed on the real web")
    add(
        "--user-agent",
        metavar="TEXT",
        help=f"what the crawler calls itself, before the contact (default: {USER_AGENT})",
    )
    add(
        "--login",
        metavar="FILE",
        type=Path,
        help="names and passwords of hosts, as in a .netrc file; a seed may have one in its URL instead",
    )
    add(
        "--cookies",
        metavar="FILE",
        type=Path,
        help="cookies to send, as browsers and curl write them (Netscape's format)",
    )


def add_patience(add: Add) -> None:
    add("--timeout", metavar="SECONDS", type=float, default=10, help="for one page (default: %(default)s)")
    add("--max-retries", metavar="N", type=int, default=4, help="attempts at a page that does not answer (default: 4)")
    add("--max-assign-time", metavar="SECONDS", type=int, default=30, help="then a lost page comes back (default: 30)")
    add(
        "--host-patience",
        metavar="SECONDS",
        type=float,
        default=3 * 86400,
        help="for a host that does not answer, whose pages then fail; a rest that it asks for, of 30 days at most,"
        " comes on top (default: 3 days)",
    )


def add_tracker(add: Add) -> None:
    add("--server", metavar="URL", default="http://127.0.0.1:3010", help="the tracker (default: %(default)s)")
    add("--workers", metavar="N", type=int, default=4, help="worker processes (default: %(default)s)")
    add("--project", metavar="NAME", help="the tracker's project, made if needed (default: crawl-HOST)")
    add("--manager", metavar="NAME", help="the manager that sets the crawl up; needed once")
    add("--password-file", metavar="FILE", type=Path, help="with its password (else TRACKER_PASSWORD or a prompt)")
    add("--register", action="store_true", help="make this manager if it cannot log in: for a new tracker")


def add_output(add: Add) -> None:
    add("--state", metavar="DIR", type=Path, help="for credentials and records (default: the project's name)")
    add("--report", metavar="FILE", type=Path, help="write the report as JSON, too")
    add("--warc", metavar="DIR", type=Path, help="keep what is fetched there, as WARC 1.1")
    add("--save", metavar="DIR", type=Path, help="keep what is fetched there, as files")


OPTIONS = {
    "where it begins": add_seeds,
    "what it follows": add_scope,
    "how much": add_limits,
    "to the hosts": add_politeness,
    "when there is no answer": add_patience,
    "the tracker": add_tracker,
    "what it writes": add_output,
}


MOST_GIVEN = {"workers": 1000, "max_assign_time": 2**31 - 1, "max_retries": 2**15 - 1}  # these two by the tracker
MOST_GIVEN |= {"max_body": 2**31, "max_variants": 2**31}


def check_arguments(args: argparse.Namespace) -> None:
    """Put what was given into its final form; ValueError and OSError say what is wrong with it."""
    numbers = ["workers", "timeout", "max_body", "max_assign_time", "max_retries", "host_patience"]
    for name in [*numbers, "max_pages", "max_time", "max_variants"]:
        if not 0 < getattr(args, name) <= math.inf:
            raise ValueError(f"argument --{name.replace('_', '-')}: must be more than 0")
    for name, most in MOST_GIVEN.items():
        if getattr(args, name) > most:
            raise ValueError(f"argument --{name.replace('_', '-')}: must be at most {most}")
    if not 0 <= args.rate < math.inf:
        raise ValueError("argument --rate: must be 0 or more")
    if not args.max_depth >= 0:
        raise ValueError("argument --max-depth: must be 0 or more")
    if args.max_assign_time < 3 * args.timeout:
        raise ValueError("--max-assign-time must be at least 3 times --timeout, or slow pages are assigned twice")
    if args.seeds_file:
        lines = read_text(args.seeds_file).splitlines()
        args.seeds += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not args.seeds and not args.sitemap:
        raise ValueError("name a SEED_URL, or --seeds, or --sitemap")
    if args.report and not args.report.absolute().parent.is_dir():
        raise ValueError(f"argument --report: there is no folder {args.report.parent}")
    if args.report and args.report.is_dir():  # else that would be told when all is crawled
        raise ValueError(f"argument --report: {args.report} is a folder")
    args.logins = read_logins(args)
    for name in ("seeds", "sitemap"):
        setattr(args, name, list(dict.fromkeys(normalise(http_url(url).href) for url in getattr(args, name))))
    args.server = normalise(http_url(args.server).href)
    if args.again and not (args.again / RECORDS).exists():
        raise ValueError(f"argument --again: {args.again} has no {RECORDS}")
    host = host_of((args.seeds or args.sitemap)[0])
    args.project = args.project or f"crawl-{host}{'-again' * bool(args.again)}"
    args.state = args.state or Path(re.sub(r"[^\w.-]", "_", args.project))
    if args.again and args.again.resolve() == args.state.resolve():
        raise ValueError("argument --again: it is a crawl of its own. Choose another --project (and --state)")
    args.user_agent = args.user_agent or USER_AGENT
    if args.contact:
        args.user_agent += f" ({args.contact})"
    for host in map(host_of, args.seeds + args.sitemap):
        if not may_be_asked(host, args.user_agent):
            raise ValueError(f"{host} is not this machine: say with --contact how its owners can reach you")
    if not (args.user_agent.isascii() and args.user_agent.isprintable()):
        raise ValueError("--user-agent and --contact: must be ASCII")


def read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise CrawlError(f"{file} is no text in UTF-8") from None


def http_url(text: str) -> ada_url.URL:
    if not (url := resolve(text)):
        raise ValueError(f"{text} is not an http or https URL")
    return url


def read_logins(args: argparse.Namespace) -> tuple[tuple[str, str, str], ...]:
    """Host, name and password, as --login and the seeds say."""
    logins = []
    if args.login:
        try:
            logins = [(host, name, password) for host, (name, _, password) in netrc.netrc(args.login).hosts.items()]
        except (netrc.NetrcParseError, UnicodeDecodeError) as error:
            raise ValueError(f"argument --login: {args.login}: {error}") from None
    for url in map(http_url, args.seeds + args.sitemap):
        if url.username or url.password:
            logins.append((host_of(normalise(url.href)), unquote(url.username), unquote(url.password)))
    return tuple(logins)


def run(args: argparse.Namespace) -> int:
    """Set up, crawl, report. The exit status: 0 finished or at a limit, 1 without a page or a seed, 130 interrupted."""
    patterns = {"include": tuple(args.include), "exclude": tuple(args.exclude), "max_depth": args.max_depth}
    scope = Scope.around(args.scope, args.seeds or args.sitemap, args.one_site, **patterns)
    read_cookies(args.cookies)  # what is wrong with it is told now
    args.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    project, workers = set_up(args)
    records = args.state / RECORDS
    records.touch(0o600)
    given = {name: getattr(args, name) for name in [one.name for one in fields(Crawl)] if hasattr(args, name)}
    crawl = Crawl(
        **given
        | {"project": project, "name": args.project, "scope": scope, "records": records, "workers": args.workers}
        | {"again": args.again and args.again / RECORDS}
    )
    for folder in filter(None, (args.warc, args.save)):
        folder.mkdir(parents=True, exist_ok=True)
    if crawl.again:
        with contextlib.closing(Index(crawl.again)) as earlier:
            earlier.update()
    if args.warc:
        mend(args.warc)
    for told in others_at(args.state, args.seeds + args.sitemap):
        say(f"{told}: they share no pause.")
    with Tracker(args.server, worker=workers[0], patience=0) as tracker:
        started, before = time.monotonic(), tracker.project(project)
        submit(tracker, crawl, args.seeds, found_on="", depth=0)
        submit(tracker, crawl, args.sitemap, found_on="", depth=0, sitemap=1)
    supervisor = Supervisor(crawl, workers, before, args.max_time)
    after = supervisor.run()
    if args.warc:
        mend(args.warc)
    report = make_report(crawl, args.seeds + args.sitemap, time.monotonic() - started, before, after)
    report["ended_by"] = supervisor.ended_by
    print_report(report, project)
    if args.report:
        args.report.write_text(json.dumps(report, indent=1))
    if not (report["finished"] or supervisor.ended_by):
        return 130
    return 1 if report["trouble"] else 0


def main() -> None:
    try:
        status = report_command(sys.argv[2:]) if sys.argv[1:2] == ["report"] else run(parse_arguments())
    except (Fail, Refused, OSError, sqlite3.Error) as error:
        sys.exit(f"crawl.py: {error}")
    except (KeyboardInterrupt, EOFError):  # Ctrl-C, or Ctrl-D at a prompt
        sys.exit(130)
    sys.exit(status)


if __name__ == "__main__":
    main()
