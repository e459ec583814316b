#!/usr/bin/env python3
"""Crawl web sites with several worker processes. A model for workers of your own: copy it and change Worker.fetch.

    python examples/crawl.py https://docs.example.org/ --server http://127.0.0.1:3010 --contact me@example.org

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
workers. STATE/hosts.db has what the crew knows of it, also after a restart. One that is too busy (429, 503, 502, 504)
or away (no connection, no name, no answer) is left alone, longer each time, or for as long as it asks; its pages go
back to the tracker with a delay, which costs them no attempt, and other hosts go on. One that stays away
(--host-patience) fails its pages.

Press Ctrl-C, kill a worker, kill the tracker: start again what is gone, with the same command, and the crawl goes on.
While the tracker is away the workers repeat their request with growing pauses; while a disk is full they wait.
Repeating is harmless: a link submitted twice is a duplicate, a release made twice answers `updated: false`.

A page is a URL as browsers make it of a link (the URL standard), without login and fragment, and is fetched as that. It
is the same page as another when they differ only in percent-encodings of unreserved characters (%7E is ~), or in the
name of a session. Else the query stays as it is: only the site knows what it means. A redirect is a page with one link,
its target. Links are those of <a>, <area>, <frame> and <iframe>. Which are followed is said by --scope, --include,
--exclude and --max-depth; what is a trap is not (--max-variants). What was left out is counted, by its reason.

`pip install '.[examples]'` brings httpx, rich, lxml (finds links 8 times faster than html.parser, and no page can make
it slow), protego (robots.txt with wildcards and longest match, which urllib.robotparser does not know), ada-url and
webencodings (URLs and charsets as browsers read them), and publicsuffixlist (what a domain is).
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import collections
import contextlib
import email.utils
import errno
import functools
import getpass
import hashlib
import http.cookiejar
import ipaddress
import json
import logging
import math
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import unquote

import ada_url
import httpx
import publicsuffixlist
import webencodings
from lxml import etree
from protego import Protego
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

import worker as library
from worker import Fail, Halted, Refused, Tracker, Unreachable

T = TypeVar("T")

RESTART_INTERVAL = 5  # seconds at least between two starts of one worker
PLAIN_INTERVAL = 5  # seconds between two lines of progress when there is no terminal
SILENCE = 60  # seconds without a page, though some wait, after which a line says why
ROBOTS_TIMEOUT = 30  # seconds for robots.txt, with all that it redirects to
ROBOTS_AGE = 86400  # seconds after which it is read again
MOST_ROBOTS_KNOWN = 200  # of those of all hosts, that a worker keeps in memory
MOST_SITEMAP = 50 * 2**20  # bytes of a sitemap, unpacked
MOST_LEVELS = 3  # of sitemaps: an index may name others
FIRST_REST, LONGEST_REST = 2, 600  # seconds for which a host that is too busy, and does not say how long, is left alone
SLOWEST, NO_GAP = 10, 0.05  # seconds between two pages after that: no more at first, and below which they are none
PATIENCE = 1  # seconds for which a worker waits with a page in hand for the turn of its host
MOST_PUT_OFF = 5  # times that a page is put off; if its host then answers others, it is the page that is at fault
MOST_SILENT = 5  # pages in a row without an answer, after which it is the host that is away
FULL_DISK_PAUSE = 10  # seconds
HELD = 86400  # seconds for which the lease of a page is extended, at most: for a disk that is full
LONGEST_DELAY = 1e9  # seconds that the tracker takes
NO_ROBOTS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # rules with a colon
MOST_HOPS = 6  # requests for a robots.txt that is elsewhere: after that there is none
MOST_ROBOTS = 2**19  # bytes of it that are read
LONGEST_URL = 4096  # characters; longer links are mistakes or traps
MOST_REPEATED = 3  # times that a path may have the same segment
MOST_SEGMENTS = 50  # of a path
RETRY_DELAY = 2  # seconds for which a page rests after it has failed, twice as long each time
RECORDS, HOSTS = "pages.jsonl", "hosts.db"
LONGEST_LIST = 50  # lines of each kind in the printed report
USER_AGENT = "tracker-crawl/1.0"
# httpx reads a name back by rules that forbid some which are in use (with an emoji, say), even to make a request of a
# redirect that nobody follows; it is asked by the other one.
httpx.URL.host = property(lambda url: url.raw_host.decode("ascii"))
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class CrawlError(Exception):
    """Something that the user has to decide; its text is the whole message."""


class PutOff(Exception):
    """A page is to come back after so many seconds, and to lose no attempt by it."""

    def __init__(self, delay: float, reason: str):
        super().__init__(reason)
        self.delay = min(max(delay, 0.05), LONGEST_DELAY)


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

    ATTRIBUTES: ClassVar = {"a": "href", "area": "href", "frame": "src", "iframe": "src"}

    def __init__(self):
        self.base, self.links, self.encoding = "", {}, None
        self.robots = []  # (whom it is for, what they are told) of each <meta>

    def start(self, tag: str, attributes: dict) -> None:
        if tag == "meta":
            self.encoding = self.encoding or encoding_of_meta(attributes)
            self.robots.append((attributes.get("name", "").strip(), attributes.get("content", "")))
        elif tag == "base":
            self.base = self.base or attributes.get("href", "")
        elif tag in self.ATTRIBUTES and (link := attributes.get(self.ATTRIBUTES[tag])) is not None:
            link = link.partition("#")[0]
            asked_not_to = "nofollow" in attributes.get("rel", "").lower().split()
            # A dict keeps each once, in order; one that may be followed will do.
            self.links[link] = self.links.get(link, True) and asked_not_to

    def close(self) -> _LinkFinder:
        return self


def find_links(
    html: bytes,
    url: str,
    charset: str | None = None,
    default: str = "windows-1252",
    left_out: dict[str, int] | None = None,
    robot: str | None = None,
) -> list[str]:
    """The normalised targets of a page's links, each once, in the order of the page. Counts what is `left_out`.

    With the name of a `robot` those are left out that the page does not want followed (by it, or by any).

    It is decoded as browsers do: what counts is a byte order mark, then `charset` (of the Content-Type header), then
    what the page declares, else `default`; what does not belong there is replaced, and costs no link.
    """
    declared = webencodings.lookup(charset or "") or prescan(html)
    text, encoding = decode(html, declared or webencodings.lookup(default))
    found = read_html(text)
    if not declared and found.encoding not in (None, encoding):  # a declaration after the first bytes
        text, encoding = decode(html, found.encoding)
        found = read_html(text)
    base = normalise(found.base, url) or url
    links, left_out = {}, {} if left_out is None else left_out
    forbidden = robot is not None and any(
        name.lower() in ("robots", product(robot)) and says_nofollow(content) for name, content in found.robots
    )
    for link, asked_not_to in found.links.items():
        target = normalise(encode_query(link, encoding), base)
        reason = "too long" if target and len(target) > LONGEST_URL else ""
        if target and robot is not None and (forbidden or asked_not_to):
            reason = "nofollow"
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        elif target:
            links.setdefault(unique(target), target)
    return list(links.values())


def product(user_agent: str) -> str:
    """The name by which a site speaks to a robot: the first word, without its version."""
    return user_agent.partition("/")[0].strip().lower()


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


def decode(html: bytes, encoding: webencodings.Encoding) -> tuple[str, webencodings.Encoding]:
    """The text, and what it was encoded in. gbk is read as gb18030, which has grown out of it."""
    wider = webencodings.lookup("gb18030") if encoding.name == "gbk" else encoding
    text, used = webencodings.decode(html, wider, "as browsers")
    return text, encoding if used is wider else used


def read_html(text: str) -> _LinkFinder:
    parser = etree.HTMLParser(target=_LinkFinder(), encoding="utf-8", huge_tree=True)
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
    codec = encoding.codec_info
    return f"{path}?" + re.sub(r"[^\x00-\x7f]+", lambda text: _percent(codec.encode(text[0], "as browsers")[0]), query)


def _percent(data: bytes) -> str:
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte not in b"\"#<>'" else f"%{byte:02X}" for byte in data)


def _as_browsers(error: UnicodeError) -> tuple[str | bytes, int]:
    """What the encoding standard puts for what cannot be decoded, or encoded in a query."""
    if isinstance(error, UnicodeEncodeError):
        unknown = error.object[error.start : error.end]
        return "".join(f"%26%23{ord(character)}%3B" for character in unknown).encode(), error.end
    byte = error.object[error.start]
    if (
        error.encoding == "charmap" and 0x80 <= byte < 0xA0
    ):  # the windows encodings have controls where Python's have nothing
        return chr(byte), error.start + 1
    return "\ufffd", error.end


codecs.register_error("as browsers", _as_browsers)


# ── What a crawl covers ───────────────────────────────────────────────────────────────────────────────────────────────

SESSION_NAMES = {"phpsessid", "jsessionid", "sid", "sessid", "session", "sessionid", "session_id", "cfid", "cftoken"}
IN_SESSIONS = frozenset("-_" + string.ascii_letters + string.digits)
DATE = re.compile(r"(?<![0-9])(?:1[5-9]|[2-9][0-9])[0-9]{2}[-/_](?:0?[1-9]|1[0-2])(?![0-9])")  # a year and a month


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


def submit(tracker: Tracker, crawl: Crawl, urls: Iterable[str], found_on: str, depth: int, sitemap: int = 0) -> None:
    """Store the URLs as tasks; the tracker skips those that this project has seen before.

    What is nearer to a seed comes first. sitemap: the URLs are not of pages, but of sitemaps of this level.
    """
    tasks = []
    for url in urls:
        recipe = {"url": url, "found_on": found_on, "depth": depth} | ({"sitemap": sitemap} if sitemap else {})
        key = f"sitemap {url}" if sitemap else crawl.scope.key(url)
        tasks.append({"recipe": json.dumps(recipe), "unique_string": key, "priority": -min(depth, 2**15 - 1)})
    limits = {"max_assign_time": crawl.max_assign_time, "max_retries": crawl.max_retries}
    tracker.submit_few(crawl.project, tasks, **limits)


# ── Sitemaps ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _SitemapFinder:
    """A target of lxml's parser that keeps what <loc> says, directly in <url> and <sitemap>."""

    def __init__(self):
        self.open, self.text, self.found = [], [], {"url": [], "sitemap": []}

    def start(self, tag: str, _attributes: dict) -> None:
        self.open.append(tag.rpartition("}")[2])
        self.text = []

    def data(self, text: str) -> None:
        if self.open and self.open[-1] == "loc" and sum(map(len, self.text)) < LONGEST_URL:
            self.text.append(text)

    def end(self, _tag: str) -> None:
        if self.open.pop() == "loc" and self.open and self.open[-1] in self.found:
            self.found[self.open[-1]].append("".join(self.text))

    def close(self) -> tuple[list[str], list[str]]:
        return self.found["url"], self.found["sitemap"]


def read_sitemap(body: bytes, url: str) -> tuple[list[str], list[str]]:
    """The normalised URLs of pages and of further sitemaps that a sitemap names: XML or lines, also packed by gzip."""
    if body.startswith(b"\x1f\x8b"):
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        with contextlib.suppress(zlib.error):
            body = unpacker.decompress(body, MOST_SITEMAP)
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
    away_since: float = 0  # it has answered no page since, nor said how long that will be
    silent: int = 0  # the last pages in a row that had no answer
    slow: float = 0  # seconds between two pages after a rest
    delay: float = 0  # that its robots.txt asks for
    pages: int = 0
    seconds: float = 0  # for all of them
    pace: float = 0  # seconds for one, lately
    trouble: str = ""

    TIMES: ClassVar = ("next_turn", "busy_until", "asked", "booked", "rests_until", "away_since")

    def heed_clock(self, now: float) -> None:
        """A clock that was set back would let a host rest for ever."""
        if now < self.noted - 1:
            for name in self.TIMES:
                if value := getattr(self, name):
                    setattr(self, name, value - self.noted + now)
        self.noted = now


class Hosts:
    """What the whole crew knows of the hosts that it asks, in a file: who is asked now, and who is left alone."""

    FIELDS = tuple(column.name for column in fields(Host))
    SCHEMA = f"""
        CREATE TABLE IF NOT EXISTS host ({", ".join(FIELDS)}, PRIMARY KEY (name)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS robots (origin PRIMARY KEY, read_at, rules) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS put_off (task INTEGER PRIMARY KEY, times);
        CREATE TABLE IF NOT EXISTS shape (id INTEGER PRIMARY KEY, pages); -- 0: of all
    """

    def __init__(self, file: Path, rate: float = 0, timeout: float = 10, pause: Callable[[float], None] = time.sleep):
        """rate: most pages per second from one host, 0: no limit. timeout: seconds that a page takes at most."""
        self.pause, self.gap, self.timeout = pause, 1 / rate if rate else 0, timeout
        try:
            self.db = sqlite3.connect(file, timeout=60, isolation_level=None)
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")
            self.db.executescript(self.SCHEMA)
        except sqlite3.DatabaseError as error:
            raise CrawlError(f"{file} cannot be used: {error}. Remove it, or choose another --state.") from None

    def close(self) -> None:
        self.db.close()

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
            now, row = time.time(), self.db.execute("SELECT * FROM host WHERE name = ?", (name,)).fetchone()
            host = Host(*row) if row else Host(name)
            host.heed_clock(now)
            result = do(host, now)
            values = [getattr(host, name) for name in self.FIELDS]
            self.db.execute(f"REPLACE INTO host VALUES ({', '.join('?' * len(values))})", values)
            return result

        return self.change(change)

    def read(self, which: str, *values: object) -> list[Host]:
        return [Host(*row) for row in self.db.execute(f"SELECT * FROM host WHERE {which}", values)]

    def gap_of(self, host: Host) -> float:
        """Seconds between two pages."""
        return max(self.gap, host.delay, host.slow)

    def take_turn(self, name: str, has_booked: bool = False) -> float:
        """0.0: nobody else asks the host until leave(). Else the seconds until its turn may come, which is booked."""

        def take(host: Host, now: float) -> float:
            if max(host.next_turn, host.busy_until, host.rests_until) <= now:
                host.asked, host.asker, host.busy_until = now, os.getpid(), now + self.timeout + 5
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

        def leave(host: Host, now: float) -> None:
            seconds = max(0.0, now - host.asked)
            host.next_turn, host.busy_until = now + self.gap_of(host), 0
            host.pages, host.seconds = host.pages + 1, host.seconds + seconds
            host.pace += (seconds - host.pace) * (0.2 if host.pages > 1 else 1)

        self.with_host(name, leave)

    def refuse(self, name: str, seconds: float, trouble: str) -> tuple[bool, bool]:
        """The host is too busy or away, for so many seconds (0: it did not say).

        Whether that is news, and whether it has answered the page before this one.
        """

        def refuse(host: Host, now: float) -> tuple[bool, bool]:
            news, answers = host.rests_until <= now, not host.refusals
            host.refusals += news
            host.away_since = 0 if seconds else host.away_since or now
            rest = seconds or min(FIRST_REST * 2 ** min(host.refusals - 1, 20), LONGEST_REST)
            host.rests_until = max(host.rests_until, now + rest)
            host.slow, host.trouble = max(host.slow, min(rest / 8, SLOWEST)), trouble[:500]
            return news, answers

        return self.with_host(name, refuse)

    def accept(self, name: str) -> None:
        """The host has answered as it should: the next page may come sooner."""

        def accept(host: Host, now: float) -> None:
            host.silent = host.away_since = 0
            if host.rests_until <= now:
                host.refusals, host.slow = 0, host.slow / 2 if host.slow > NO_GAP else 0

        self.with_host(name, accept)

    def is_silent(self, name: str) -> bool:
        """It has not answered a page in time: whether that is about the host by now."""

        def count(host: Host, _now: float) -> bool:
            host.silent += 1
            return host.silent >= MOST_SILENT

        return self.with_host(name, count)

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
    now = unix_time(response.headers.get("Date", "")[:100]) or time.time()
    return min(max(then - now, 0), LONGEST_DELAY)


def unix_time(date: str) -> float | None:
    """Of a date as HTTP writes it. None if it is none."""
    try:
        then = email.utils.parsedate_to_datetime(date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


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
    links: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # links, by the reason
    examples: dict[str, str] = field(default_factory=dict)  # of each reason the first link

    def leave_out(self, reason: str, link: str = "") -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        if link:
            self.examples.setdefault(reason, link)


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
        self.http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=0.9 * crawl.timeout),  # so that a host that is away is told from a page
            headers={"User-Agent": crawl.user_agent},
            auth=self.logins,
            cookies=read_cookies(crawl.cookies),
        )
        self.loop = asyncio.Runner()
        self.records = os.open(crawl.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.torn = b""  # ends a line that was written in part
        self.turn = ""  # the host that we may ask now

    def close(self) -> None:
        self.loop.run(self.http.aclose())
        self.loop.close()
        self.tracker.close()
        self.hosts.close()
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
        """Crawl one page, and say what becomes of its task."""
        try:
            page = self.crawl_in_turn(task.id, **json.loads(task.recipe))
        except PutOff as off:
            return task.skip(off.delay, str(off))
        finally:
            self.leave()
        self.hosts.forget(task.id)
        if page.outcome == "failed":
            task.fail(f"failed: {describe(asdict(page))}")

    def crawl_in_turn(self, task: int, url: str, found_on: str, depth: int = 0, sitemap: int = 0) -> Page:
        """The page, when its host may be asked. PutOff when that is not soon."""
        host = host_of(url)
        if not self.against(url, depth, sitemap):
            if self.hosts.rest(host) and self.is_given_up(host):
                return self.give_up(url, found_on, depth)
            if self.robots_of(url) is None:
                self.take_turn(host)
                try:
                    self.learn_robots(url)
                except RobotsAway as trouble:
                    self.refuse(host, trouble.retry_after, str(trouble))
                    if self.is_given_up(host):
                        return self.give_up(url, found_on, depth)
                    raise PutOff(self.hosts.rest(host), str(trouble)) from None
                self.leave()
            self.take_turn(host)
        return self.crawl_page(url, found_on, depth, sitemap, task)

    def is_given_up(self, host: str) -> bool:
        return self.hosts.away(host) > self.crawl.host_patience

    def give_up(self, url: str, found_on: str, depth: int) -> Page:
        """A page that fails as its host has done."""
        (host,) = self.hosts.read("name = ?", host_of(url))
        error = f"its host has not answered for {time.time() - host.away_since:.0f} s: {host.trouble}"
        page = Page(url, found_on, "failed", error=error, depth=depth)
        self.record(page)
        return page

    def take_turn(self, host: str) -> None:
        """Wait until the host may be asked. PutOff when that is long: a worker that waits could ask another one."""
        ends = time.monotonic() + PATIENCE * min(1, self.crawl.workers / max(1, len(self.rules)))
        due = self.hosts.take_turn(host)
        while due:
            if time.monotonic() + due > ends:
                raise PutOff(due, f"others wait for {host}, too")
            self.wait(due)
            due = self.hosts.take_turn(host, has_booked=True)
        self.turn = host

    def leave(self) -> None:
        """The host has been asked, if one has: others may."""
        if self.turn:
            host, self.turn = self.turn, ""
            self.hosts.leave(host)

    def robots_of(self, url: str) -> Protego | None:
        """The rules of the URL's host, if they are known, and not too old."""
        origin = origin_of(url)
        expires, rules = self.rules.get(origin, (0, None))
        if time.time() < expires:
            self.rules.move_to_end(origin)
            return rules
        kept = self.hosts.robots(origin)
        if not kept or kept[0] + ROBOTS_AGE <= time.time():
            return None
        self.rules[origin] = kept[0] + ROBOTS_AGE, Protego.parse(kept[1])
        if len(self.rules) > MOST_ROBOTS_KNOWN:
            self.rules.popitem(last=False)
        return self.rules[origin][1]

    def learn_robots(self, url: str) -> None:
        """Read the rules of the URL's host. RobotsAway when nobody knows what it allows."""
        origin, host = origin_of(url), host_of(url)
        text = read_robots(url, self.crawl.user_agent, self.logins)
        self.hosts.keep_robots(origin, text)
        rules = self.robots_of(url)
        if self.hosts.ask_slowly(host, delay := delay_of(rules, self.crawl.user_agent)):
            say(f"robots.txt of {host} allows a page in {delay:g} s, which is slower than --rate: it holds.")
        if self.crawl.robots_sitemaps:
            named = [found for link in rules.sitemaps if (found := normalise(link, origin))]
            submit(self.tracker, self.crawl, named, f"{origin}robots.txt", depth=0, sitemap=1)

    def refuse(self, host: str, seconds: float, trouble: str) -> bool:
        """Have the crew leave a host alone. Whether it has answered the page before this one."""
        news, answers = self.hosts.refuse(host, seconds, trouble)
        if news:
            told = f"{host} is left alone until {moment(self.hosts.rest(host))}: {trouble}"
            say(told)
            self.log("warn", told)
        return answers

    def against(self, url: str, depth: int, sitemap: int = 0) -> str:
        """Why a page is not asked for. Empty if it is."""
        reason = "" if sitemap else self.crawl.scope.against(url, depth)
        rules = None if reason else self.robots_of(url)
        if reason or (rules and not rules.can_fetch(url, self.crawl.user_agent)):
            return reason or "forbidden by robots.txt"
        shape = shape_of(url)
        return "too many that differ in the query or a date" if self.are_many(shape) else ""

    def are_many(self, shape: str) -> bool:
        return bool(shape) and self.hosts.pages_like(shape) >= self.crawl.max_variants

    def crawl_page(self, url: str, found_on: str, depth: int = 0, sitemap: int = 0, task: int = 0) -> Page:
        """Fetch, submit, log, record: all that must be done before the page is released. PutOff says that none was."""
        began = time.monotonic()
        page = self.fetch(url, found_on, depth, sitemap)
        self.leave()
        page.seconds = round(time.monotonic() - began, 3)
        self.judge_host(page, task)
        followed = []
        for link in page.links:
            if reason := self.against(link, depth if sitemap else depth + 1):
                page.leave_out(reason, link)
            else:
                followed.append(link)
        submit(self.tracker, self.crawl, followed, url, depth if sitemap else depth + 1)
        submit(self.tracker, self.crawl, page.sitemaps, url, depth, page.sitemap + 1)
        if page.outcome == "broken" or page.truncated:
            self.log("warn", f"{page.outcome}: {describe(asdict(page))}")
        self.record(page)
        return page

    def judge_host(self, page: Page, task: int) -> None:
        """Note what the page tells of its host. PutOff when it came to nothing, and that is the host's fault."""
        host = host_of(page.url)
        if page.outcome == "failed" and page.status is None and page.asked and self.hosts.is_silent(host):
            page.outcome = "refused"
        if page.outcome != "refused":
            if page.asked and page.status is not None:
                self.hosts.accept(host)
            return
        reason = f"{page.error or page.status} {page.url}"
        others_are_answered = self.refuse(host, page.retry_after, reason)
        if (away := self.hosts.away(host)) > self.crawl.host_patience:
            page.outcome, page.error = (
                "failed",
                f"{host} has not answered for {away:.0f} s: {page.error or page.status}",
            )
        elif self.hosts.put_off(task) > MOST_PUT_OFF and others_are_answered:
            page.outcome = "failed"
        else:
            raise PutOff(self.hosts.rest(host), reason)

    def record(self, page: Page) -> None:
        """A line of pages.jsonl: one call a line, so that those of the crew do not mix."""
        known = asdict(page) | {"links": len(page.links), "worker": self.id, "pid": os.getpid(), "time": time.time()}
        del known["sitemaps"], known["asked"]
        line = json.dumps(known).encode() + b"\n"

        def write() -> None:
            written = os.write(self.records, self.torn + line)
            if written < len(self.torn) + len(line):
                self.torn = b"\n" if written else self.torn
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.torn = b""

        despite_full_disk(write, self.wait)

    def fetch(self, url: str, found_on: str, depth: int = 0, sitemap: int = 0) -> Page:
        """Get one page and judge it. Returns whatever the site does, and holds at most `max_body` bytes of it."""
        page = Page(url, found_on, depth=depth, sitemap=sitemap)
        reason = self.against(url, depth, sitemap)  # patterns or robots.txt may have changed since the link was stored
        if reason == "out of scope":  # never done: it may be another crawl's
            page.outcome, page.error = "failed", "out of the crawl's scope"
            return page
        reason = reason or self.hosts.admit(shape_of(url), self.crawl.max_variants, self.crawl.max_pages)
        if reason == "--max-pages":
            self.stop()
            raise PutOff(0, reason)
        if reason:
            page.outcome, page.error = "left out", reason
            page.leave_out(reason, url)
            return page
        page.asked = True
        try:
            self.loop.run(self.get(page))
        except httpx.HTTPError as error:
            is_away = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            page.outcome, page.error = "refused" if is_away else "failed", f"{type(error).__name__} {error}".strip()
        return page

    async def get(self, page: Page) -> None:
        """Fetch within one deadline for all: a site that sends a byte a second passes any bound on single reads."""
        try:
            async with asyncio.timeout(self.crawl.timeout), self.http.stream("GET", **as_it_is(page.url)) as response:
                await (self.read_sitemap if page.sitemap else self.read)(response, page)
        except TimeoutError:
            raise httpx.ReadTimeout(f"the page takes longer than {self.crawl.timeout:g} s") from None

    async def read(self, response: httpx.Response, page: Page) -> None:
        page.status = response.status_code
        page.type = type_of(response)
        if response.has_redirect_location:
            target = normalise(response.headers["Location"], page.url)
            page.links = [target] if target and len(target) <= LONGEST_URL else []
            if not page.found_on and not any(map(self.crawl.covers, page.links)):
                page.outcome, page.error = "broken", f"redirect out of the crawl's scope, to {target}, by"
        elif response.is_success:
            body = await self.read_body(response, page)
            page.type = page.type or (looks_like_html(body) and "text/html") or ""
            if page.type in ("text/html", "application/xhtml+xml"):
                robot = None if self.crawl.ignore_nofollow else self.crawl.user_agent
                default = "utf-8" if page.type == "application/xhtml+xml" else "windows-1252"
                page.links = find_links(body, page.url, charset_of(response), default, page.left_out, robot)
                if robot and header_says_nofollow(response, robot):
                    page.left_out["nofollow"] = page.left_out.get("nofollow", 0) + len(page.links)
                    page.links = []
        elif page.status in (429, 502, 503, 504):
            page.outcome, page.retry_after = "refused", retry_after(response)
        elif page.status == 408 or page.status >= 500:
            page.outcome, page.retry_after = "failed", retry_after(response)
        else:
            page.outcome = "broken"

    async def read_body(self, response: httpx.Response, page: Page) -> bytes:
        body = await read_up_to(self.crawl.max_body + 1, response)
        if len(body) > self.crawl.max_body:
            page.truncated, page.error = True, f"cut off after {self.crawl.max_body} bytes"
            body = body[: self.crawl.max_body]
        page.size = len(body)
        return body

    async def read_sitemap(self, response: httpx.Response, page: Page) -> None:
        """What it names are links: pages of the crawl, and sitemaps of its host."""
        page.status, page.type = response.status_code, type_of(response)
        if response.has_redirect_location:
            target = normalise(response.headers["Location"], page.url)
            page.sitemaps, page.sitemap = [target] if target else [], page.sitemap - 1
        elif response.is_success:
            body = await read_up_to(MOST_SITEMAP, response)
            page.size = len(body)
            page.links, named = read_sitemap(body, page.url)
            if page.sitemap < MOST_LEVELS:
                page.sitemaps = [link for link in named if host_of(link) == host_of(page.url)]
        else:
            page.retry_after = retry_after(response)
            busy, gone = page.status in (429, 502, 503, 504), page.status < 500 and page.status != 408
            page.outcome = "refused" if busy else "broken" if gone else "failed"

    def log(self, level: str, message: str) -> None:
        line = {"scope": self.crawl.name, "message": message, "timestamp": int(time.time())}
        with contextlib.suppress(Refused):  # a line that is not taken is no reason to lose the page
            self.tracker.call("POST", f"/log/{level}", line)


def as_it_is(url: str) -> dict:
    """What makes httpx ask for this URL, and not for one that is quoted in its own way."""
    target = re.sub("^[a-z]+://[^/]*", "", url).encode()
    return {"url": url} if httpx.URL(url).raw_path == target else {"url": url, "extensions": {"target": target}}


async def read_up_to(limit: int, response: httpx.Response) -> bytes:
    """So many bytes of the body, or all of it."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])


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
    worker = Worker(crawl, credentials)
    signal.signal(signal.SIGTERM, worker.stop)
    threading.Thread(target=stop_after_parent, args=(worker,), daemon=True).start()
    with contextlib.closing(worker):
        try:
            worker.run()
        except Fail as failure:
            say(f"Worker {worker.id}: {failure}")
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
        raise CrawlError(f"{file} is of a crawl with {key} {state[key]}, not {crawl[key]}. Choose another --state.")
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
        password = args.password_file.read_text().rstrip("\r\n")
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


class RobotsAway(CrawlError):
    """A robots.txt cannot be read now, so nobody knows what is allowed."""

    def __init__(self, message: str, retry_after: float = 0):
        super().__init__(message)
        self.retry_after = retry_after


def read_robots(url: str, user_agent: str, auth: httpx.Auth | None = None) -> str:
    """The rules of the URL's host. No robots.txt (4xx) allows all; RobotsAway from one that cannot say (5xx, 429)."""
    robots = normalise("/robots.txt", url)
    try:
        response, body = asyncio.run(get_robots(robots, user_agent, auth))
    except TimeoutError:
        raise RobotsAway(f"{robots} cannot be read: it takes longer than {ROBOTS_TIMEOUT} s") from None
    except httpx.HTTPError as error:
        raise RobotsAway(f"{robots} cannot be read: {str(error) or type(error).__name__}") from None
    if response.status_code >= 500 or response.status_code == 429:
        told = f"{robots} answers {response.status_code}, so nobody knows what it allows"
        raise RobotsAway(told, retry_after(response))
    return read_rules(body) if response.is_success else ""


def read_rules(body: bytes) -> str:
    """The text of a robots.txt, in whatever Unicode it is; a byte order mark would cost it its first group."""
    text, _ = webencodings.decode(body, "utf-8", "as browsers")
    return text.lstrip("\ufeff").replace("\0", "")


async def get_robots(url: str, user_agent: str, auth: httpx.Auth | None) -> tuple[httpx.Response, bytes]:
    """The answer, after as many redirects as the standard (RFC 9309) asks for, and its body."""
    client = httpx.AsyncClient(headers={"User-Agent": user_agent}, auth=auth, timeout=None)
    async with asyncio.timeout(ROBOTS_TIMEOUT), client:
        for _ in range(MOST_HOPS):
            async with client.stream("GET", **as_it_is(url)) as response:
                target = response.has_redirect_location and normalise(response.headers["Location"], url)
                if not target:
                    return response, await read_up_to(MOST_ROBOTS, response)
            url = target
        return response, b""


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


# ── The report ────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_report(crawl: Crawl, seeds: list[str], seconds: float, before: dict, after: dict) -> dict:
    """What the crawl came to: pages and rate of this run; counts and lists of all runs."""
    pages = after["closed_task_count"] - before["closed_task_count"]
    problems = read_problems(crawl.records)
    return {
        "finished": not count_undone(after),
        "trouble": find_trouble(crawl, seeds, after["closed_task_count"]),
        "seconds": round(seconds, 2),
        "pages": pages,
        "pages_per_second": round(pages / seconds, 2),
        "done": after["closed_task_count"],
        "waiting": count_undone(after),
        "failed": after["failed_task_count"],
        "broken_pages": [page for page in problems if page["outcome"] == "broken"],
        "failed_pages": [page for page in problems if page["outcome"] == "failed"],
        "left_out": dict(count_left_out(crawl.records)),
        "left_out_examples": left_out_examples(crawl.records),
        "hosts": describe_hosts(crawl),
        "truncated_pages": [page for page in problems if page["outcome"] == "ok"],
        "records": str(crawl.records),
    }


def find_trouble(crawl: Crawl, seeds: list[str], closed: int) -> str:
    """Why the crawl, though it has come to its end, is none: its seeds are broken, or no page was ever fetched.

    Pages that are closed without any record have been fetched by another crew.
    """
    troubles, fetched = dict.fromkeys(map(unique, seeds)), closed and not crawl.records.stat().st_size
    for page in read_records(crawl.records):
        if (seed := unique(page["url"])) in troubles:
            bad = page["outcome"] != "ok"
            troubles[seed] = f"The seed is {page['outcome']}: {page['error'] or page['status']}" if bad else None
        is_page = page["outcome"] == "ok" and not page.get("sitemap")
        fetched = fetched or (is_page and 200 <= (page["status"] or 0) < 300)
    if all(troubles.values()):
        others = f" (and so it is with the other {len(troubles) - 1})" if len(troubles) > 1 else ""
        return next(iter(troubles.values())) + others
    return "" if fetched else "No page was ever fetched"


def left_out_examples(records: Path) -> dict[str, str]:
    """Of each reason a link that was not followed."""
    examples = {}
    for page in read_records(records):
        for reason, link in page.get("examples", {}).items():
            examples.setdefault(reason, link)
    return examples


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
            "away_for": round(now - host.away_since) if host.away_since else 0,
            "rests_for": round(max(0, host.rests_until - now)),
            "trouble": host.trouble,
        }
        for host in known
    ]


def read_problems(records: Path) -> list[dict]:
    """The last record of each page that did not end well: one that failed at first and was done later is fine."""
    problems = {}
    for page in read_records(records):
        problems.pop(page["url"], None)
        if page["outcome"] != "ok" or page["truncated"]:
            problems[page["url"]] = page
    return list(problems.values())


def read_records(records: Path) -> Iterator[dict]:
    with open(records, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # torn by a power cut
                yield json.loads(line)


def count_left_out(records: Path) -> collections.Counter:
    """The links of all pages that were not followed though they may be pages, by the reason."""
    counts = collections.Counter()
    for page in read_records(records):
        counts.update(page.get("left_out", {}))
    return counts


def describe(page: dict) -> str:
    return f"{page['error'] or page['status']} {page['url']} (found on {page['found_on'] or 'no page: the seed'})"


def print_report(report: dict, project: int) -> None:
    limit = report["ended_by"]
    ended = f"Ended by {limit}; the same command with more of it" if limit else "Interrupted; the same command"
    print("Finished." if report["finished"] else f"{ended} goes on with it.")
    if report["finished"] and report["trouble"]:
        print(f"{report['trouble']}.")
    print(f"{report['pages']} pages in {report['seconds']} s, {report['pages_per_second']} pages/s")
    print(f"All runs: {report['done']} done, {report['waiting']} left, {report['failed']} failed")
    for kind in ("broken", "failed", "truncated"):
        pages = report[f"{kind}_pages"]
        for page in pages[:LONGEST_LIST]:
            print(f"{kind}: {describe(page)}")
        if len(pages) > LONGEST_LIST:
            print(f"{kind}: and {len(pages) - LONGEST_LIST} more")
    for reason, count in report["left_out"].items():
        example = report["left_out_examples"].get(reason)
        print(f"left out: {count} links, {reason}" + (f", as {example}" if example else ""))
    for host in report["hosts"]:
        if host["away_for"] or host["rests_for"]:
            state = f"away for {host['away_for']} s" if host["away_for"] else f"rests for {host['rests_for']} s"
            print(f"host: {host['host']} {state}: {host['trouble']}")
    if report["failed"]:
        print(f"To try failed pages again: POST /project/reset_failed_tasks/{project} as a manager, then this command.")
    print(f"Every page: {report['records']}")


# ── Command line ──────────────────────────────────────────────────────────────────────────────────────────────────────


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Crawl web sites with several workers that share the work through a task tracker.",
        epilog="The same command goes on with a crawl that was interrupted. How it works: see the top of the file.",
    )
    add = parser.add_argument
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
    add("--server", metavar="URL", default="http://127.0.0.1:3010", help="the tracker (default: %(default)s)")
    add("--workers", metavar="N", type=int, default=4, help="worker processes (default: %(default)s)")
    add(
        "--rate",
        metavar="PAGES_PER_SECOND",
        type=float,
        default=5.0,
        help="most from one host, which is asked for one page at a time, with this pause between; 0: without a pause"
        " (default: %(default)s)",
    )
    add("--contact", metavar="TEXT", help="an address or a URL by which a site can reach you; needed on the real web")
    add("--user-agent", metavar="TEXT", help=f"what the crawler calls itself (default: {USER_AGENT} and the contact)")
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
        help="pages that differ in nothing but their query, or the date in their path; more are a trap, and left out"
        " (default: %(default)s)",
    )
    add("--project", metavar="NAME", help="the tracker's project, made if needed (default: crawl-HOST)")
    add("--manager", metavar="NAME", help="the manager that sets the crawl up; needed once")
    add("--password-file", metavar="FILE", type=Path, help="with its password (else TRACKER_PASSWORD or a prompt)")
    add("--register", action="store_true", help="make this manager if it cannot log in: for a new tracker")
    add("--state", metavar="DIR", type=Path, help="for credentials and records (default: the project's name)")
    add("--report", metavar="FILE", type=Path, help="write the report as JSON, too")
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
    add("--ignore-nofollow", action="store_true", help="follow links that the site wants followed by no robot")
    add("--timeout", metavar="SECONDS", type=float, default=10, help="for one page (default: %(default)s)")
    add(
        "--host-patience",
        metavar="SECONDS",
        type=float,
        default=3 * 86400,
        help="for a host that does not answer, whose pages then fail (default: 3 days)",
    )
    add("--max-body", metavar="BYTES", type=int, default=10 * 2**20, help="of one page, the rest is cut off (10 MiB)")
    add("--max-assign-time", metavar="SECONDS", type=int, default=30, help="then a lost page comes back (default: 30)")
    add("--max-retries", metavar="N", type=int, default=4, help="attempts at a page that does not answer (default: 4)")
    args = parser.parse_args()
    try:
        check_arguments(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Put what was given into its final form; ValueError and OSError say what is wrong with it."""
    numbers = ["workers", "timeout", "max_body", "max_assign_time", "max_retries", "host_patience"]
    for name in [*numbers, "max_pages", "max_time", "max_variants"]:
        if not 0 < getattr(args, name) <= math.inf:
            raise ValueError(f"argument --{name.replace('_', '-')}: must be more than 0")
    if not 0 <= args.rate < math.inf:
        raise ValueError("argument --rate: must be 0 or more")
    if args.max_assign_time < 3 * args.timeout:
        raise ValueError("--max-assign-time must be at least 3 times --timeout, or slow pages are assigned twice")
    if args.seeds_file:
        lines = args.seeds_file.read_text("utf-8-sig").splitlines()
        args.seeds += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not args.seeds and not args.sitemap:
        raise ValueError("name a SEED_URL, or --seeds, or --sitemap")
    args.logins = read_logins(args)
    for name in ("seeds", "sitemap"):
        setattr(args, name, list(dict.fromkeys(normalise(http_url(url).href) for url in getattr(args, name))))
    args.server = normalise(http_url(args.server).href)
    args.project = args.project or f"crawl-{host_of((args.seeds or args.sitemap)[0])}"
    args.state = args.state or Path(re.sub(r"[^\w.-]", "_", args.project))
    args.user_agent = (
        args.user_agent or f"{USER_AGENT} ({args.contact})" if args.contact else args.user_agent or USER_AGENT
    )
    if not re.search(r"@|https?://", args.user_agent):
        for host in map(host_of, args.seeds + args.sitemap):
            if not is_loopback(host):
                raise ValueError(f"{host} is not this machine: say with --contact how its owners can reach you")
    if not (args.user_agent.isascii() and args.user_agent.isprintable()):
        raise ValueError("--user-agent and --contact: must be ASCII")


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
        except netrc.NetrcParseError as error:
            raise ValueError(f"argument --login: {error}") from None
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
    )
    with Tracker(args.server, worker=workers[0], patience=0) as tracker:
        started, before = time.monotonic(), tracker.project(project)
        submit(tracker, crawl, args.seeds, found_on="", depth=0)
        submit(tracker, crawl, args.sitemap, found_on="", depth=0, sitemap=1)
    supervisor = Supervisor(crawl, workers, before, args.max_time)
    after = supervisor.run()
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
        status = run(parse_arguments())
    except (CrawlError, Fail, Refused, OSError) as error:
        sys.exit(f"crawl.py: {error}")
    except (KeyboardInterrupt, EOFError):  # Ctrl-C, or Ctrl-D at a prompt
        sys.exit(130)
    sys.exit(status)


if __name__ == "__main__":
    main()
