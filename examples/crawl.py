#!/usr/bin/env python3
"""Crawl one web site with several worker processes. A model for workers of your own: copy it and change Worker.fetch.

    python examples/crawl.py https://docs.example.org/guide/ --server http://127.0.0.1:3010 --workers 4 --rate 5

(the first time with `--manager NAME`, on a tracker without managers also `--register`; the password is asked for).

It speaks to the tracker through the public HTTP API alone. The flow:

1. **Set up**, as a manager, once: make the project with `keep_hashes` (closed tasks stay known, so that a URL is handed
   out once for ever) and `assign_rate` (the tracker keeps the whole crew polite), register the workers, grant them
   assign and submit. Their credentials go into STATE/state.json, which only its owner can read; later starts need no
   password.
2. **The seed** becomes the first task.
3. **Each worker** repeats: be assigned a page (a request that waits for one) → fetch it → submit the links on it, with
   `unique_string` = the normalised URL → log what is broken → append a line to STATE/pages.jsonl → release.
   This order makes it safe. A page is released only when its links are stored, so a worker may be killed at any line:
   its page comes back by its deadline (--max-assign-time) and is done again, by somebody.
4. **The supervisor** restarts workers that died and shows the progress. The crawl is finished when no task is waiting,
   assigned or awaiting verification; as links are submitted before their page is released, that is never so too early.

Press Ctrl-C, kill a worker, kill the tracker: start again what is gone, with the same command, and the crawl goes on.
While the tracker is away the workers repeat their request with growing pauses. Repeating is harmless: a link submitted
twice is a duplicate, a release made twice answers `updated: false`.

A page is a URL as browsers make it of a link (the URL standard), without login and fragment, and is fetched as that. It
is the same page as another when they differ only in percent-encodings of unreserved characters (%7E is ~). The query
stays as it is: only the site knows what it means. Links are followed below the seed's directory or (--scope host)
anywhere on its scheme, host, port:

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
webencodings (URLs and charsets as browsers read them), brotli and backports.zstd (it goes without either).
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
import importlib
import io
import itertools
import json
import math
import mimetypes
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import string
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, TypeVar
from urllib.parse import unquote

import ada_url
import httpx
import webencodings
from lxml import etree
from protego import Protego
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OK, FAIL, SKIP = 0, 1, 2  # results of a release
ASSIGN_WAIT = 4  # seconds that the tracker may hold a request for a task; then the worker looks whether it is to stop
LONGEST_PAUSE = 15  # seconds between two attempts to reach a tracker that is away
REFUSED_PAUSE = 10  # seconds until a worker that was refused (paused, access withdrawn) asks again
RESTART_INTERVAL = 5  # seconds at least between two starts of one worker
PLAIN_INTERVAL = 5  # seconds between two lines of progress when there is no terminal
SILENCE = 60  # seconds without a page, though some wait, after which a line says why
ROBOTS_TIMEOUT = 30  # seconds for robots.txt, with all that it redirects to
FIRST_REST, LONGEST_REST = 2, 600  # seconds for which a site that is too busy, and does not say how long, is left alone
SLOWEST, NO_GAP = 10, 0.05  # seconds between two pages after that: no more at first, and below which they are none
PATIENCE = 1  # seconds that a worker waits for its turn before it looks again whether it is to stop
MOST_PUT_OFF = 5  # times that a page is put off; if the site then answers others, it is the page that is at fault
LONGEST_DELAY = 1e9  # seconds that the tracker takes
NO_ROBOTS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # rules with a colon
CODINGS = ("gzip", "deflate", "br", "zstd", "compress")  # of a body; what else its header may name is ignored
MOST_CODINGS, DECODED_AT_ONCE = 3, 4096  # of one body; bytes
MOST_ROBOTS = 2**19  # bytes of it that are read
LONGEST_URL = 4096  # characters; longer links are mistakes or traps
BULK = 500  # links in one request
DEFAULT_RATE = 5.0  # pages per second
UNLIMITED_RATE = sys.float_info.max  # how the API shows that there is no limit
MOST_WARC, OPEN = 10**9, ".open"  # bytes of one file; what the name of one ends in that is being written
NOT_MODIFIED = "http://netpreserve.org/warc/1.1/revisit/server-not-modified"
FULL_DISK_PAUSE = 5  # seconds until a full disk is tried again
LISTED = ("broken", "failed", "truncated")  # fates whose pages the report names
IN_FATES = ("url", "status", "error", "depth", "found_on", "type", "size", "file")  # what is told of each page
MOST_LISTED, MOST_REFERRERS, MOST_HOSTS = 10_000, 20, 10  # of each, in it
RECORDS, REST = "pages.jsonl", "rest.json"
LONGEST_LIST = 50  # lines of each kind in the printed report
USER_AGENT = f"tracker-crawl/1.0 (python-httpx/{httpx.__version__})"
# httpx reads a name back by rules that forbid some which are in use (with an emoji, say); it is asked by the other one.
httpx.URL.host = property(lambda url: url.raw_host.decode("ascii"))
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class CrawlError(Exception):
    """Something that the user has to decide; its text is the whole message."""


class Unreachable(CrawlError):
    """The tracker did not answer, or answered that it cannot now."""


class Refused(CrawlError):
    """The tracker answered no, with this HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Stopped(Exception):
    """The worker was asked to stop while it was waiting."""


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
        rf"[{SPACES}]*+[0-9.]++(?:[{SPACES}]*+[;,]|[{SPACES}])[{SPACES}]*+(?:url[{SPACES}]*+=[{SPACES}]*+)?"
        r"""(?:'([^']*)|"([^"]*)|(.*))""",
        content,
        re.IGNORECASE | re.DOTALL,
    )
    return (found and (found[1] or found[2] or found[3])) or None


def images_of(srcset: str) -> Iterator[str]:
    """The URLs of a srcset: each up to the next space, and after it what tells its size, up to a comma."""
    told = r"(?:[^,(]++|\([^)]*+\)?)*+"
    for url in re.findall(rf"([^{SPACES},][^{SPACES}]*+)(?:(?<=,)|{told})", srcset):
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


# ── The tracker's API ─────────────────────────────────────────────────────────────────────────────────────────────────


class Tracker:
    """Calls to the tracker. With `stopping` (when to give up) a call is patient: repeated until it is answered."""

    def __init__(self, server: str, credentials: dict | None = None, stopping=None):
        headers = {"X-Worker-ID": str(credentials["id"]), "X-Secret": credentials["secret"]} if credentials else {}
        self.http = httpx.Client(base_url=server, headers=headers, timeout=ASSIGN_WAIT + 10 if stopping else 10)
        self.stopping = stopping

    def call(self, method: str, path: str, body=None, **query):
        """The answer's content, None where there is none. Raises Refused; Unreachable or Stopped when it gives up."""
        pause = 0.5
        while True:
            try:
                response = self.http.request(method, path, json=body, params=query)
                if response.status_code < 500 and response.status_code != 429:
                    return self._content(response)
                trouble, delay = f"it answers {response.status_code} {response.text}", retry_after(response)
            except httpx.TransportError as error:
                trouble, delay = str(error) or type(error).__name__, 0
            if not self.stopping:
                raise Unreachable(f"The tracker at {self.http.base_url} cannot be used now: {trouble}.")
            delay = delay or pause * random.uniform(0.5, 1)  # at random, or the crew would come back in one burst
            self.pause(min(delay, LONGEST_PAUSE))
            pause *= 2

    @staticmethod
    def _content(response: httpx.Response):
        try:
            answer = response.json() if response.content else {}
        except ValueError:
            raise CrawlError(f"{response.url} does not answer like a tracker; is --server right?") from None
        if response.status_code >= 400:
            raise Refused(response.status_code, answer.get("message", f"HTTP status {response.status_code}"))
        return answer.get("content")

    def pause(self, seconds: float) -> None:
        """Sleep, or raise Stopped soon after it is time to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.stopping():
                raise Stopped
            time.sleep(min(left, 0.2))

    def submit(self, crawl: Crawl, urls: list[str], found_on: str) -> None:
        """Store the URLs as tasks; the tracker skips those that this project has seen before."""
        limits = {"max_assign_time": crawl.max_assign_time, "max_retries": crawl.max_retries}
        for start in range(0, len(urls), BULK):
            tasks = [
                {
                    "project": crawl.project,
                    "recipe": json.dumps({"url": url, "found_on": found_on}),
                    "unique_string": unique(url),
                    **limits,
                }
                for url in urls[start : start + BULK]
            ]
            self.call("POST", "/task/bulk_submit", {"requests": tasks})


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


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


T = TypeVar("T")


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
            come = writer.create_revisit_record(
                page.url, page.digest, original["url"], warc_date(original["since"]), answered, told
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

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        began = f"{datetime.now(UTC):%Y%m%d%H%M%S%f}"[:-3]
        self.path = self.folder / f"{self.name}-{began}-{self.serial:05}-{self.worker}-{os.getpid()}.warc.gz"
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
    for open_file in sorted(folder.glob(f"*.warc.gz{OPEN}")):
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
    scope: str  # what every URL of the crawl begins with
    robots: Protego
    user_agent: str
    timeout: float
    max_body: int
    max_assign_time: int
    max_retries: int
    records: Path
    login: tuple[str, str] | None = None  # at the site
    ignore_nofollow: bool = False
    parts: bool = False  # fetch what pages are shown with, too
    warc: Path | None = None  # folders to keep pages in
    save: Path | None = None
    again: Path | None = None  # the records of an earlier crawl

    def keepers(self, worker: int) -> list[Archive | Folder]:
        archive = [Archive(self.warc, self.name, worker, self.user_agent)] if self.warc else []
        return archive + ([Folder(self.save)] if self.save else [])

    def covers(self, url: str) -> bool:
        return unique(url).startswith(unique(self.scope))

    def wants(self, url: str) -> bool:
        return not self.against(url)

    def against(self, url: str) -> str:
        """Why a page is not asked for. Empty if it is."""
        if not self.covers(url):
            return "out of scope"
        return "" if self.robots.can_fetch(url, self.user_agent) else "forbidden by robots.txt"


class Site:
    """What the whole crew knows of its site: until when it is left alone, and how slowly it is asked after that."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.lock, self.state = context.Lock(), context.Array("d", 4, lock=False)

    @contextlib.contextmanager
    def known(self) -> Iterator[SimpleNamespace]:
        """The figures, for one process at a time; times are of the monotonic clock, which all processes share."""
        names = ("rests_until", "next_turn", "gap", "refusals")  # the last ones in a row, none for an answer between
        self.lock.acquire(timeout=1)  # whoever holds it longer than that has been killed
        try:
            known = SimpleNamespace(**dict(zip(names, self.state, strict=True)))
            yield known
            self.state[:] = [getattr(known, name) for name in names]
        finally:
            with contextlib.suppress(ValueError):
                self.lock.release()

    def rest(self) -> float:
        """Seconds for which the site is to be left alone."""
        return max(0.0, self.state[0] - time.monotonic())

    def take_turn(self) -> tuple[bool, float]:
        """Whether there is a turn soon enough to wait for, and after how many seconds it, or a look for one, is due."""
        with self.known() as known:
            now = time.monotonic()
            turn = max(now, known.rests_until, known.next_turn)
            if taken := turn <= now + PATIENCE:
                known.next_turn = turn + known.gap
            return taken, min(turn - now, PATIENCE)

    def refuse(self, seconds: float) -> bool:
        """The site has said that it is too busy, for so many seconds (0: it did not say). True if that is news."""
        with self.known() as known:
            now = time.monotonic()
            news = known.rests_until <= now
            known.refusals += news
            seconds = seconds or min(FIRST_REST * 2 ** min(known.refusals - 1, 20), LONGEST_REST)
            known.rests_until = max(known.rests_until, now + seconds)
            known.gap = max(known.gap, min(seconds / 8, SLOWEST))
            return news

    def accept(self) -> None:
        """The site has answered as it should: the next page may come sooner."""
        with self.known() as known:
            if known.rests_until <= time.monotonic():
                known.refusals, known.gap = 0, known.gap / 2 if known.gap > NO_GAP else 0

    def answers_others(self) -> bool:
        return not self.state[3]


@dataclass
class Page:
    """What one fetch came to; a line of pages.jsonl.

    outcome: ok, broken (the site says no), failed (to be retried), refused (by a site that is too busy: put off).
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
    seconds: float = 0
    etag: str = ""
    last_modified: str = ""
    digest: str = ""  # of the body as it came
    unchanged: bool = False  # since an earlier crawl had it
    since: float = 0  # when it was asked for and came whole
    file: str = ""  # in which it is kept
    links: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # links, by the reason
    passed_over: dict[str, list[str]] = field(default_factory=dict)  # which

    def leave_out(self, reason: str, link: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        self.passed_over.setdefault(reason, []).append(link[:LONGEST_URL])


class Worker:
    """One process of the crew: does one page after the other until it is told to stop, or its supervisor is gone."""

    def __init__(self, crawl: Crawl, credentials: dict, site: Site):
        self.crawl, self.id, self.site = crawl, credentials["id"], site
        self.asked_to_stop = False
        self.tracker = Tracker(crawl.server, credentials, self.stopping)
        self.http = httpx.AsyncClient(timeout=None, headers=headers_of(crawl.user_agent), auth=crawl.login)
        self.loop = asyncio.Runner()
        self.records = os.open(crawl.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.torn = b""  # ends a line that was written in part
        self.keepers = crawl.keepers(self.id)
        self.earlier = crawl.again and Index(crawl.again)
        self.exchange, self.original = None, None  # of the page in hand: what is to be kept, and its earlier record

    def close(self) -> None:
        if self.earlier:
            self.earlier.close()
        for keeper in self.keepers:
            keeper.close()
        self.loop.run(self.http.aclose())
        self.loop.close()
        self.tracker.http.close()
        os.close(self.records)

    def stopping(self) -> bool:
        return self.asked_to_stop or not multiprocessing.parent_process().is_alive()

    def stop(self, *_signal) -> None:
        self.asked_to_stop = True

    def run(self) -> None:
        while not self.stopping():
            try:
                self.wait_for_turn()
                if task := self.assign():
                    self.do(task)
            except Refused as refusal:
                say(f"The tracker refuses worker {self.id}: {refusal}. It asks again every {REFUSED_PAUSE} s.")
                self.tracker.pause(REFUSED_PAUSE)

    def wait_for_turn(self) -> None:
        """Until the site may be asked; with no page in hand, which would come back by its deadline meanwhile."""
        taken = False
        while not taken:
            taken, seconds = self.site.take_turn()
            self.tracker.pause(seconds)

    def assign(self) -> dict | None:
        content = self.tracker.call("GET", f"/task/get/{self.crawl.project}", wait=ASSIGN_WAIT)
        return content and content["task"]

    def do(self, task: dict) -> None:
        """Crawl one page and release it. A page that goes wrong as nobody foresaw must not take the worker with it."""
        assigned = time.monotonic()
        if self.site.rest():
            return self.put_off(task)
        try:
            page = self.crawl_page(**json.loads(task["recipe"]), may_put_off=self.may_put_off(task))
        except Exception as error:
            if isinstance(error, Stopped) or (isinstance(error, Refused) and error.status != 400):
                raise
            self.log("error", f"task {task['id']}, {task['recipe']}: {error!r}")
            page = Page("", "", outcome="failed")
        if page.outcome == "refused":
            return self.put_off(task)
        if page.outcome == "failed" and task["retries"] + 1 < self.crawl.max_retries:
            self.pause_before_retry(2.0 ** task["retries"], page, assigned)
        result = FAIL if page.outcome == "failed" else OK
        self.tracker.call("POST", "/task/release", {"task_id": task["id"], "result": result, "verification": 0})

    def put_off(self, task: dict) -> None:
        """Give the page back until the site may be asked again. That costs it no attempt."""
        delay = min(self.site.rest() + 0.1, LONGEST_DELAY)
        self.tracker.call("POST", "/task/release", {"task_id": task["id"], "result": SKIP, "delay": delay})

    def may_put_off(self, task: dict) -> bool:
        """Not a page that a site always refuses while it answers others: the crawl would never end."""
        times = task.get("attempt", 1) - 1 - task["retries"]
        return times < MOST_PUT_OFF or not self.site.answers_others()

    def crawl_page(self, url: str, found_on: str, may_put_off: bool = True) -> Page:
        """Fetch, submit, log, record: all that must be done before the page is released."""
        page = self.fetch(url, found_on)
        if page.outcome == "refused" and may_put_off:
            if self.site.refuse(page.retry_after):
                self.log("warn", f"left alone for {self.site.rest():.0f} s: {describe(asdict(page))}")
            return page
        if page.outcome == "refused":
            page.outcome = "failed"
        elif page.outcome != "failed":
            self.site.accept()
        self.keep(page)
        followed = []
        for link in page.links:
            if reason := self.crawl.against(link):
                page.leave_out(reason, link)
            else:
                followed.append(link)
        self.tracker.submit(self.crawl, followed, found_on=url)
        if page.outcome != "ok" or page.truncated:
            level = "error" if page.outcome == "failed" else "warn"
            self.log(level, f"{page.outcome}: {describe(asdict(page))}")
        self.record(page, followed)
        return page

    def keep(self, page: Page) -> None:
        """Write the page to where it is kept, if it is one that can be."""
        if self.exchange and page.outcome in ("ok", "broken"):
            original = self.original if page.unchanged else None
            for keeper in self.keepers:
                kept = functools.partial(keeper.keep, page, self.exchange, original)
                page.file = despite_full_disk(kept, self.tracker.pause) or page.file

    def record(self, page: Page, followed: list[str]) -> None:
        """A line of pages.jsonl, on the disk: one call a line, so that those of the crew do not mix."""
        known = asdict(page) | {"links": len(page.links), "targets": followed}
        known |= {"worker": self.id, "pid": os.getpid(), "time": time.time()}
        line = json.dumps(known).encode() + b"\n"

        def write() -> None:
            data = self.torn + line
            written = os.write(self.records, data)
            self.torn = b"\n" if written < len(data) else b""
            if self.torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.records)

        despite_full_disk(write, self.tracker.pause)

    def fetch(self, url: str, found_on: str) -> Page:
        """Get one page and judge it. Returns whatever the site does, and holds at most `max_body` bytes of it."""
        page, began = Page(url, found_on), time.monotonic()
        self.exchange = self.original = None
        if not self.crawl.covers(url):  # never done: it may be another crawl's
            page.outcome, page.error = "failed", "out of the crawl's scope"
            return page
        if not self.crawl.wants(url):  # robots.txt may have changed since the link was stored
            page.outcome, page.error = "broken", "forbidden by robots.txt"
            return page
        try:
            self.original = self.find_original(url)
            self.loop.run(self.get(page))
        except httpx.HTTPError as error:
            page.outcome, page.error = "failed", f"{type(error).__name__} {error}".strip()
        page.seconds = round(time.monotonic() - began, 3)
        return page

    def find_original(self, url: str) -> dict | None:
        """What an earlier crawl has recorded of the page: one that came whole and, if we keep pages, was kept."""
        known = self.earlier and self.earlier.find(url)
        whole = known and known["outcome"] == "ok" and known.get("digest") and not known["truncated"]
        return known if whole and (known["file"] or not self.keepers) else None

    async def get(self, page: Page) -> None:
        """Fetch within one deadline for all: a site that sends a byte a second passes any bound on single reads."""
        try:
            asked = as_it_is(page.url) | {"headers": conditions_of(self.original or {})}
            began = datetime.now(UTC)
            page.since = began.timestamp()
            async with asyncio.timeout(self.crawl.timeout), self.http.stream("GET", **asked) as response:
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
            target = normalise(response.headers.get_list("Location")[0], page.url)
            page.links = [target] if target and len(target) <= LONGEST_URL else []
            if not page.found_on and not any(map(self.crawl.wants, page.links)):
                page.outcome, page.error = "broken", f"redirect out of the crawl's scope, to {target}, by"
        elif response.is_success:
            raw, body = await self.read_body(response, page)
            page.type = page.type or (looks_like_html(body) and "text/html") or ""
            page.digest = f"sha1:{base64.b32encode(hashlib.sha1(raw).digest()).decode()}"
            if self.original and self.original["digest"] == page.digest and not page.truncated:
                self.take_over(page)
            else:
                self.read_links(body, response, page)
            return raw, body
        elif page.status in (429, 503):
            page.outcome, page.retry_after = "refused", retry_after(response)
        elif page.status == 408 or page.status >= 500:
            page.outcome, page.retry_after = "failed", retry_after(response)
        else:
            page.outcome = "broken"
        return await read_rest(self.crawl.max_body, response) if self.keepers else b"", b""

    def take_over(self, page: Page) -> None:
        """What the earlier crawl has found on a page that has not changed."""
        known = self.original
        page.unchanged = True
        page.type, page.size, page.digest, page.since = (known[name] for name in ("type", "size", "digest", "since"))
        page.etag, page.last_modified = page.etag or known["etag"], page.last_modified or known["last_modified"]
        page.file, page.links = known["file"], list(known["targets"])
        for reason, links in known["passed_over"].items():
            if reason == "too long" or (reason == "nofollow" and not self.crawl.ignore_nofollow):
                for link in links:
                    page.leave_out(reason, link)
            else:
                page.links += links

    def read_links(self, body: bytes, response: httpx.Response, page: Page) -> None:
        """The page's links, of its headers and, if it is HTML, its text."""
        robot = None if self.crawl.ignore_nofollow else self.crawl.user_agent
        found = [url for link in links_of_header(response) if (url := normalise(link, page.url))]
        if page.type in PAGE_TYPES:
            default = "utf-8" if page.type == "application/xhtml+xml" else "windows-1252"
            charset = charset_of(response)
            found += find_links(body, page.url, charset, default, page.leave_out, robot, self.crawl.parts)
        page.links = list({unique(url): url for url in reversed(found)}.values())[::-1]
        if robot and header_says_nofollow(response, robot):
            for link in page.links:
                page.leave_out("nofollow", link)
            page.links = []

    async def read_body(self, response: httpx.Response, page: Page) -> tuple[bytes, bytes]:
        raw = await read_raw(self.crawl.max_body + 1, response)
        body, page.truncated = decode_body(raw, response, self.crawl.max_body)
        if page.truncated:
            page.error = f"cut off after {self.crawl.max_body} bytes"
        page.size = len(body)
        return raw[: self.crawl.max_body], body

    def pause_before_retry(self, seconds: float, page: Page, assigned: float) -> None:
        """Hold a failed page for a while, but not past its deadline: once released it is first in the queue again."""
        left = 0.8 * self.crawl.max_assign_time - (time.monotonic() - assigned)
        with contextlib.suppress(Stopped):  # then it is released at once and need not wait for its deadline
            self.tracker.pause(min(max(seconds, page.retry_after), left))

    def log(self, level: str, message: str) -> None:
        line = {"scope": self.crawl.name, "message": message, "timestamp": int(time.time())}
        self.tracker.call("POST", f"/log/{level}", line)


def headers_of(user_agent: str) -> dict[str, str]:
    return {"User-Agent": user_agent, "Accept-Encoding": ACCEPTED}


def as_it_is(url: str) -> dict:
    """What makes httpx ask for this URL, and not for one that is quoted in its own way."""
    target = re.sub("^[a-z]+://[^/]*", "", url).encode()
    return {"url": url} if httpx.URL(url).raw_path == target else {"url": url, "extensions": {"target": target}}


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


def start_worker(crawl: Crawl, credentials: dict, site: Site) -> None:
    """The body of a worker process, which the supervisor stops with SIGTERM."""
    worker = Worker(crawl, credentials, site)
    signal.signal(signal.SIGTERM, worker.stop)
    with contextlib.closing(worker), contextlib.suppress(Stopped):
        worker.run()


# ── Setting up ────────────────────────────────────────────────────────────────────────────────────────────────────────


def set_up(args: argparse.Namespace, scope: str, robots: Protego) -> tuple[int, list[dict]]:
    """The project's id and the workers' credentials. Signs a manager in only when something is missing or different."""
    file = args.state / "state.json"
    state = load_state(file, {"server": args.server, "seed": args.seed, "scope": scope})
    tracker = Tracker(args.server)
    workers = [worker for worker in state["workers"] if is_accepted(args.server, worker)]
    project = find_project(tracker, args.project)
    known = project and project["id"] == state["project"] and state["ready"] and len(workers) >= args.workers
    if known:
        check_owner(Tracker(args.server, workers[0]), project, args, scope)
    if not known or project["assign_rate"] != polite_rate(args, project, robots):
        sign_in(tracker, args)
        state["project"] = prepare_project(tracker, args, scope, robots, state["project"])
        for number in range(len(workers) + 1, args.workers + 1):
            workers.append(tracker.call("POST", "/worker/create", {"alias": f"{args.project}-{number}"})["worker"])
        write_file(file, state | {"workers": workers, "ready": False})
        for worker in workers:
            grant_access(tracker, args.server, state["project"], worker)
        write_file(file, state | {"workers": workers, "ready": True})
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


def is_accepted(server: str, worker: dict) -> bool:
    try:
        Tracker(server, worker).call("POST", "/worker/update", {"alias": worker["alias"]})
    except Refused:
        return False
    return True


def find_project(tracker: Tracker, name: str) -> dict | None:
    projects = tracker.call("GET", "/project/list")["projects"]
    return next((project for project in projects if project["name"] == name), None)


def sign_in(tracker: Tracker, args: argparse.Namespace) -> None:
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
    credentials = {"username": name, "password": password}
    try:
        tracker.call("POST", "/login", credentials)
    except Refused as refusal:
        if not args.register:
            raise CrawlError(f"Manager {name}: {refusal}. A new tracker has no manager yet: add --register.") from None
        try:
            tracker.call("POST", "/register", credentials)
        except Refused as second:
            raise CrawlError(f"Manager {name} cannot log in: {refusal}. Nor register: {second}.") from None


def prepare_project(tracker: Tracker, args: argparse.Namespace, scope: str, robots: Protego, before: int) -> int:
    """The id of the project, which is made if there is none, and gets the rate that was asked for.

    It belongs to one crawl, and its secret says to which. One that this crawl has worked on `before` becomes its own.
    """
    project = find_project(tracker, args.project)
    settings = {"name": args.project, "keep_hashes": True, "assign_rate": polite_rate(args, project, robots)}
    if project is None:
        if (args.state / RECORDS).exists():
            raise CrawlError(f"{args.state} is of a crawl that this tracker does not know. Choose another --state.")
        made = tracker.call("POST", "/project/create", settings)["id"]
        tracker.call("POST", f"/project/secret/{made}", {"secret": json.dumps(crawl_of(args, scope))})
        return made
    if not project["keep_hashes"]:
        raise CrawlError(f"Project {args.project} was made without keep_hashes: a crawl would never end there.")
    if not check_owner(tracker, project, args, scope):
        counts = tracker.call("GET", f"/project/get/{project['id']}")
        begun = counts["closed_task_count"] or counts["failed_task_count"] or count_undone(counts)
        if begun and project["id"] != before:
            raise CrawlError(f"Project {args.project} holds tasks of something else. Choose another --project.")
        tracker.call("POST", f"/project/secret/{project['id']}", {"secret": json.dumps(crawl_of(args, scope))})
    tracker.call("POST", f"/project/update/{project['id']}", project | settings)
    return project["id"]


def crawl_of(args: argparse.Namespace, scope: str) -> dict:
    """What makes a crawl that crawl, as its project's secret has it."""
    return {"crawl": {"seed": args.seed, "scope": scope}}


def check_owner(tracker: Tracker, project: dict, args: argparse.Namespace, scope: str) -> bool:
    """Whether the project is known to be of this crawl; False when it is of none. Refuses one of another."""
    text = tracker.call("GET", f"/project/secret/{project['id']}")["secret"]
    if text in ("", "{}"):
        return False
    try:
        owner = json.loads(text)["crawl"]
        seed, of_scope = owner["seed"], owner["scope"]
    except (ValueError, LookupError, TypeError):
        raise CrawlError(f"Project {args.project} has a secret of something else. Choose another --project.") from None
    if (unique(seed), unique(of_scope)) != (unique(args.seed), unique(scope)):
        told = f"Project {args.project} is of the crawl of {seed} with all below {of_scope}"
        raise CrawlError(f"{told}. Choose another --project (and --state).")
    return True


def grant_access(manager: Tracker, server: str, project: int, worker: dict) -> None:
    """Let a worker assign and submit: it asks, the manager accepts. 409 says that this has been done before."""
    wish = {"project": project, "assign": True, "submit": True}
    for tracker, path, body in (
        (Tracker(server, worker), "/project/request_access", wish),
        (manager, f"/project/accept_request/{project}/{worker['id']}", None),
    ):
        try:
            tracker.call("POST", path, body)
        except Refused as refusal:
            if refusal.status != 409:
                raise


def read_robots(seed: str, user_agent: str, login: tuple[str, str] | None = None) -> Protego:
    """The site's rules. No robots.txt (4xx) allows all; a site that cannot say (5xx, no answer) is left alone."""
    url = normalise("/robots.txt", seed)
    try:
        response, body = asyncio.run(get_robots(url, user_agent, login))
    except TimeoutError:
        raise CrawlError(f"{url} cannot be read: it takes longer than {ROBOTS_TIMEOUT} s") from None
    except httpx.HTTPError as error:
        raise CrawlError(f"{url} cannot be read: {str(error) or type(error).__name__}") from None
    if response.status_code >= 500 or response.status_code == 429:
        seconds = retry_after(response)
        later = f"in {seconds:.0f} s" if seconds else "later"
        raise CrawlError(f"{url} answers {response.status_code}, so nobody knows what it allows. Try again {later}.")
    robots = Protego.parse(read_rules(body) if response.is_success else "")
    if not robots.can_fetch(seed, user_agent):
        raise CrawlError(f"{url} forbids {seed} to {user_agent}.")
    return robots


def read_rules(body: bytes) -> str:
    """The text of a robots.txt, in whatever Unicode it is; a byte order mark would cost it its first group."""
    text, _ = webencodings.decode(body, "utf-8", "as browsers")
    return text.lstrip("\ufeff").replace("\0", "")


async def get_robots(url: str, user_agent: str, login: tuple[str, str] | None) -> tuple[httpx.Response, bytes]:
    client = httpx.AsyncClient(headers=headers_of(user_agent), auth=login, follow_redirects=True, timeout=None)
    async with asyncio.timeout(ROBOTS_TIMEOUT), client, client.stream("GET", url) as response:
        return response, await read_up_to(MOST_ROBOTS, response)


def polite_rate(args: argparse.Namespace, project: dict | None, robots: Protego) -> float:
    """Pages per second: as asked for, else as the project has it; at most what robots.txt allows, as a line says."""
    rate = args.rate if args.rate is not None else project["assign_rate"] if project else DEFAULT_RATE
    rate, allowed = rate or UNLIMITED_RATE, allowed_rate(robots, args.user_agent)
    if allowed < rate and (args.rate is not None or not project):
        say(f"robots.txt allows a page in {1 / allowed:g} s, which is slower than --rate: it holds.")
    return min(rate, allowed)


def allowed_rate(robots: Protego, user_agent: str) -> float:
    """Pages per second that the site's Crawl-delay and Request-rate allow."""
    gaps = [robots.crawl_delay(user_agent) or 0]
    if rate := robots.request_rate(user_agent):
        gaps.append(rate.seconds / rate.requests if rate.requests > 0 else 0)
    gap = max(gaps)
    return 1 / gap if 0 < gap < math.inf else UNLIMITED_RATE


# ── The supervisor ────────────────────────────────────────────────────────────────────────────────────────────────────


def say(text: str) -> None:
    console.print(text)


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

    credentials: dict
    process: multiprocessing.Process | None = None
    started: float = -math.inf


class Supervisor:
    """Keeps the crew complete and shows the progress, until nothing is left to do or it is told to stop."""

    def __init__(self, crawl: Crawl, workers: list[dict], project: dict):
        self.crawl, self.crew = crawl, [Place(credentials) for credentials in workers]
        self.site, self.rest_file = Site(), crawl.records.with_name(REST)
        self.project = project  # with its live counts, as last heard from the tracker
        self.context = multiprocessing.get_context("spawn")  # the same on every platform, and inherits no connection
        self.tracker, self.display = Tracker(crawl.server), Display()
        self.asked_to_stop = False
        self.noted = 0.0  # until when the site rests, as noted in its file
        self.away = ""  # why the tracker does not answer
        self.size, self.moved = -1, 0.0  # of the records; when they have grown, or a line has said why they do not

    def run(self) -> dict:
        """The project at the end, whether the crawl is finished or was interrupted."""
        signal.signal(signal.SIGINT, self.stop)
        signal.signal(signal.SIGTERM, self.stop)
        self.recall_rest()
        try:
            with self.display.live:
                while not self.asked_to_stop:
                    self.complete_crew()
                    self.note_rest()
                    if self.is_finished():
                        break
                    self.tell_silence()
                    time.sleep(0.5)
        finally:
            self.dismiss_crew(0 if not count_undone(self.project) else self.crawl.max_assign_time)
        self.is_finished()  # counts what was in hand, too
        self.note_rest()
        return self.project

    def recall_rest(self) -> None:
        """What an earlier start has noted: a site that asked for an hour is not asked sooner by a second start."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            left = json.loads(self.rest_file.read_text())["until"] - time.time()
            if left > 0:
                self.site.refuse(left)
                self.noted = self.site.state[0]
                say(f"{self.crawl.scope} has asked to be left alone: until {self.rest_end()}.")

    def note_rest(self) -> None:
        """Keep what the site has asked for, and say so."""
        if self.site.state[0] == self.noted or not (left := self.site.rest()):
            return
        self.noted = self.site.state[0]
        write_file(self.rest_file, {"until": time.time() + left})
        say(f"{self.crawl.scope} is too busy or asks for patience: it is left alone until {self.rest_end()}.")

    def rest_end(self) -> str:
        try:
            return f"{datetime.fromtimestamp(time.time() + self.site.rest()):%Y-%m-%d %H:%M:%S}"
        except (ValueError, OverflowError, OSError):
            return "the end of time"

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
            self.project, self.away = self.tracker.call("GET", f"/project/get/{self.crawl.project}"), ""
        except Unreachable as trouble:
            self.away = str(trouble).rstrip(".")
            self.display.line(f"{trouble} The crawl goes on when it is back.")
            return False
        self.display.show(self.project)
        return not count_undone(self.project)

    def tell_silence(self) -> None:
        """Say why, when nothing has been fetched for a minute although pages wait, and again each minute."""
        size, now = self.crawl.records.stat().st_size, time.monotonic()
        if size == self.size and now < self.moved + SILENCE:
            return
        if size == self.size:
            rest = self.site.rest() and f"{self.crawl.scope} is left alone, as it asked, until {self.rest_end()}"
            say(f"Nothing has been fetched for a minute: {why_silent(self.project, self.away or rest or '')}.")
        self.size, self.moved = size, now

    def complete_crew(self) -> None:
        for place in self.crew:
            alive = place.process and place.process.is_alive()
            if alive or time.monotonic() < place.started + RESTART_INTERVAL:
                continue
            if place.process:
                say(f"Worker {place.credentials['id']} died with exit code {place.process.exitcode}.")
            process = self.context.Process(
                target=start_worker, args=(self.crawl, place.credentials, self.site), daemon=True
            )
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C reaches all processes, one heeds it
            process.start()
            signal.signal(signal.SIGINT, self.stop)
            place.process, place.started = process, time.monotonic()
            say(f"Worker {place.credentials['id']} is process {process.pid}.")

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


def read_record(line: bytes) -> dict | None:
    """Of a line of pages.jsonl. Before it there may be what a power cut or a full disk has left of another."""
    for start in (0, line.rfind(b'{"url": "')):
        with contextlib.suppress(ValueError):
            record = json.loads(line[start:]) if start >= 0 else None
            return record if isinstance(record, dict) else None
    return None


def read_records(records: Path) -> Iterator[dict]:
    with open(records, "rb") as lines:
        yield from filter(None, map(read_record, lines))


class Index:
    """What is recorded last of each page, found by its URL. Made of pages.jsonl, and grown with it by `update`."""

    SCHEMA = """
        CREATE TABLE IF NOT EXISTS page (
            key INTEGER PRIMARY KEY, place INTEGER, fate TEXT, status INTEGER, depth INTEGER, host TEXT, seconds REAL
        );
        CREATE INDEX IF NOT EXISTS page_fate ON page (fate);
        CREATE TABLE IF NOT EXISTS left_out (reason TEXT PRIMARY KEY, links INTEGER, example TEXT);
        CREATE TABLE IF NOT EXISTS read (up_to INTEGER);
    """

    def __init__(self, records: Path):
        self.records = open(records, "rb")  # noqa: SIM115 (closed by close)
        self.db = sqlite3.connect(records.with_suffix(".index"), timeout=60, isolation_level=None)
        self.db.executescript(self.SCHEMA)

    def close(self) -> None:
        self.records.close()
        self.db.close()

    def update(self) -> None:
        """Read what has been recorded since the last time."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            [place] = self.db.execute("SELECT coalesce(max(up_to), 0) FROM read").fetchone()
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
        row += ada_url.URL(record["url"]).host, record.get("seconds", 0)
        self.db.execute("INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?, ?, ?, ?)", row)
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
        return record if unique(record.get("url", "")) == unique(url) else None

    def pages(self, fate: str, most: int = -1) -> Iterator[dict]:
        """The last records of the pages of that fate, in the order in which they came."""
        rows = self.db.execute("SELECT place FROM page WHERE fate = ? ORDER BY place LIMIT ?", (fate, most))
        return (self.read(place) for [place] in rows.fetchall())

    def select(self, query: str) -> list[tuple]:
        return self.db.execute(query).fetchall()


def key_of(url: str) -> int:
    return int.from_bytes(hashlib.blake2b(unique(url).encode(), digest_size=8).digest(), "big", signed=True)


def fate_of(record: dict) -> str:
    """What has become of a page, in a word or two."""
    if record["outcome"] != "ok":
        return record["outcome"]
    if record["truncated"]:
        return "truncated"
    if record.get("unchanged"):
        return "unchanged"
    return "redirect" if 300 <= (record["status"] or 0) < 400 else "fetched"


def make_report(crawl: Crawl, seed: str, seconds: float, before: dict, after: dict) -> dict:
    """What the crawl came to: pages and rate of this run; counts and lists of all runs."""
    pages = after["closed_task_count"] - before["closed_task_count"]
    with contextlib.closing(Index(crawl.records)) as index:
        index.update()
        return {
            "finished": not count_undone(after),
            "trouble": find_trouble(index, seed, after["closed_task_count"]),
            "seconds": round(seconds, 2),
            "pages": pages,
            "pages_per_second": round(pages / seconds, 2),
            "done": after["closed_task_count"],
            "waiting": count_undone(after),
            "failed": after["failed_task_count"],
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
        "redirects": [
            {"url": page["url"], "status": page["status"], "to": "".join(page.get("targets", [])[:1])}
            for page in redirects
        ],
        "left_out": dict(index.select("SELECT reason, links FROM left_out ORDER BY links DESC")),
        "left_out_examples": dict(index.select("SELECT reason, example FROM left_out ORDER BY links DESC")),
        "records": str(records),
    }


def without_links(page: dict) -> dict:
    return {name: value for name, value in page.items() if name not in ("targets", "left_out")}


def add_referrers(pages: list[dict], records: Path) -> None:
    """To each page `linked_from`: the first pages that link to it, and `links_to_it`: how many do."""
    wanted = {}
    for page in pages:
        page["linked_from"], page["links_to_it"] = [], 0
        wanted[unique(page["url"])] = page
    for record in read_records(records) if wanted else ():
        for link in record.get("targets", ()):
            page = wanted.get(unique(link) if "%" in link or "?" in link else link)
            if page and record["url"] not in page["linked_from"]:
                page["links_to_it"] += 1
                if len(page["linked_from"]) < MOST_REFERRERS:
                    page["linked_from"].append(record["url"])


def find_trouble(index: Index, seed: str, closed: int) -> str:
    """Why the crawl, though it has come to its end, is none: its seed is broken, or no page was ever fetched.

    Pages that are closed without any record have been fetched by another crew.
    """
    last = index.find(seed)
    if last and last["outcome"] != "ok":
        return f"The seed is {last['outcome']}: {last['error'] or last['status']}"
    [[records, fetched]] = index.select(
        "SELECT count(*), total(fate IN ('fetched', 'truncated', 'unchanged')) FROM page"
    )
    return "" if fetched or (closed and not records) else "No page was ever fetched"


def fates(index: Index) -> Iterator[dict]:
    """Every page that is known, once: those fetched or tried, those that wait, and those that all left out."""
    index.db.execute("CREATE TEMP TABLE other (key INTEGER PRIMARY KEY, fate TEXT, url TEXT, found_on TEXT)")
    for record, is_last in index.walk():
        if is_last:
            yield {"fate": fate_of(record)} | {name: record.get(name) for name in IN_FATES}
        waiting = [(link, "waiting") for link in record.get("targets", ())]
        passed = record.get("passed_over", {}).items()
        left_out = [(link, f"left out: {reason}") for reason, links in passed for link in links]
        for how, links in (("REPLACE", waiting), ("IGNORE", left_out)):
            index.db.executemany(
                f"INSERT OR {how} INTO other SELECT :key, :fate, :url, :page"
                " WHERE NOT EXISTS (SELECT 1 FROM page WHERE key = :key)",
                ({"key": key_of(link), "fate": fate, "url": link, "page": record["url"]} for link, fate in links),
            )
    for fate, url, found_on in index.db.execute("SELECT fate, url, found_on FROM other ORDER BY fate, url"):
        yield {"fate": fate, "url": url, "found_on": found_on}


def describe(page: dict) -> str:
    origins = page.get("linked_from") or [page["found_on"]]
    others = page.get("links_to_it", 0) - 1
    more = f" and {others} more" if others > 0 else ""
    return f"{page['error'] or page['status']} {page['url']} (found on {origins[0] or 'no page: the seed'}{more})"


def print_report(report: dict, project: int) -> None:
    print("Finished." if report["finished"] else "Interrupted; the same command goes on with it.")
    if report["finished"] and report["trouble"]:
        print(f"{report['trouble']}.")
    print(f"{report['pages']} pages in {report['seconds']} s, {report['pages_per_second']} pages/s")
    print(f"All runs: {report['done']} done, {report['waiting']} left, {report['failed']} failed")
    print_summary(report)
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
    parser = argparse.ArgumentParser(prog="crawl.py report", description="Tell what a crawl has come to by now.")
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
    parser = argparse.ArgumentParser(
        description="Crawl one web site with several workers that share the work through a task tracker.",
        epilog="The same command goes on with a crawl that was interrupted.\n\n" + LINKS_FOLLOWED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("seed", metavar="SEED_URL", help="the first page")
    add("--server", metavar="URL", default="http://127.0.0.1:3010", help="the tracker (default: %(default)s)")
    add("--workers", metavar="N", type=int, default=4, help="worker processes (default: %(default)s)")
    add("--rate", metavar="PAGES_PER_SECOND", type=float, help="of all workers, 0: no limit (default: 5, or as it was)")
    add(
        "--scope",
        choices=("prefix", "host"),
        default="prefix",
        help="the seed's directory (default), or its whole host",
    )
    add("--project", metavar="NAME", help="the tracker's project, made if needed (default: crawl-HOST)")
    add("--manager", metavar="NAME", help="the manager that sets the crawl up; needed once")
    add("--password-file", metavar="FILE", type=Path, help="with its password (else TRACKER_PASSWORD or a prompt)")
    add("--register", action="store_true", help="make this manager if it cannot log in: for a new tracker")
    add("--state", metavar="DIR", type=Path, help="for credentials and records (default: the project's name)")
    add("--report", metavar="FILE", type=Path, help="write the report as JSON, too")
    add("--user-agent", metavar="TEXT", default=USER_AGENT, help="say how to reach you (default: %(default)s)")
    add("--ignore-nofollow", action="store_true", help="follow links that the site wants followed by no robot")
    add("--warc", metavar="DIR", type=Path, help="keep what is fetched there, as WARC 1.1")
    add("--save", metavar="DIR", type=Path, help="keep what is fetched there, as files")
    add(
        "--again", metavar="DIR", type=Path, help="the --state of an earlier crawl: ask only for what has changed since"
    )
    add("--parts", action="store_true", help="fetch what pages are shown with, too: images, scripts, style sheets, …")
    add("--timeout", metavar="SECONDS", type=float, default=10, help="for one page (default: %(default)s)")
    add("--max-body", metavar="BYTES", type=int, default=10 * 2**20, help="of one page, the rest is cut off (10 MiB)")
    add("--max-assign-time", metavar="SECONDS", type=int, default=30, help="then a lost page comes back (default: 30)")
    add("--max-retries", metavar="N", type=int, default=4, help="attempts at a page that does not answer (default: 4)")
    args = parser.parse_args()
    for name in ("workers", "timeout", "max_body", "max_assign_time", "max_retries"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"argument --{name.replace('_', '-')}: must be more than 0")
    if args.rate is not None and not 0 <= args.rate < math.inf:
        parser.error("argument --rate: must be 0 or more")
    if args.max_assign_time < 3 * args.timeout:
        parser.error("argument --max-assign-time: must be at least 3 times --timeout, or slow pages are assigned twice")
    for name in ("server", "seed"):
        url = resolve(getattr(args, name)) or parser.error(f"{getattr(args, name)} is not an http or https URL")
        setattr(args, name, normalise(url.href))
        args.login = (unquote(url.username), unquote(url.password)) if url.username or url.password else None
    if args.again and not (args.again / RECORDS).exists():
        parser.error(f"argument --again: {args.again} has no {RECORDS}")
    args.project = args.project or f"crawl-{url.host}{'-again' * bool(args.again)}"
    args.state = args.state or Path(re.sub(r"[^\w.-]", "_", args.project))
    if args.again and args.again.resolve() == args.state.resolve():
        parser.error("argument --again: it is a crawl of its own. Choose another --project (and --state)")
    return args


def run(args: argparse.Namespace) -> int:
    """Set up, crawl, report. The exit status: 0 finished, 1 finished without a page, or its seed, 130 interrupted."""
    scope = normalise("/" if args.scope == "host" else ".", args.seed)
    robots = read_robots(args.seed, args.user_agent, args.login)
    args.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    project, workers = set_up(args, scope, robots)
    names = (
        "server",
        "user_agent",
        "login",
        "ignore_nofollow",
        "parts",
        "warc",
        "save",
        "timeout",
        "max_body",
        "max_assign_time",
        "max_retries",
    )
    records = args.state / RECORDS
    records.touch(0o600)
    crawl = Crawl(
        project=project,
        name=args.project,
        scope=scope,
        robots=robots,
        records=records,
        again=args.again and args.again / RECORDS,
        **{name: getattr(args, name) for name in names},
    )

    tracker, started = Tracker(args.server, workers[0]), time.monotonic()
    before = tracker.call("GET", f"/project/get/{project}")
    tracker.submit(crawl, [args.seed], found_on="")
    for folder in filter(None, (args.warc, args.save)):
        folder.mkdir(parents=True, exist_ok=True)
    if crawl.again:
        with contextlib.closing(Index(crawl.again)) as earlier:
            earlier.update()
    if args.warc:
        mend(args.warc)
    after = Supervisor(crawl, workers, before).run()
    if args.warc:
        mend(args.warc)
    report = make_report(crawl, args.seed, time.monotonic() - started, before, after)
    print_report(report, project)
    if args.report:
        args.report.write_text(json.dumps(report, indent=1))
    return 130 if not report["finished"] else 1 if report["trouble"] else 0


def main() -> None:
    try:
        status = report_command(sys.argv[2:]) if sys.argv[1:2] == ["report"] else run(parse_arguments())
    except (CrawlError, OSError) as error:
        sys.exit(f"crawl.py: {error}")
    except (KeyboardInterrupt, EOFError):  # Ctrl-C, or Ctrl-D at a prompt
        sys.exit(130)
    sys.exit(status)


if __name__ == "__main__":
    main()
