#!/usr/bin/env python3
"""The tracker's client: submit tasks from a file, run them, and look at the projects, from any machine. And a library.

Copied alone to another machine it works: it needs Python 3.11, httpx and rich (`pip install httpx rich`, or Debian's
python3-httpx and python3-rich) and nothing else of the tracker. `python3 worker.py --help` is the manual. Who writes a
worker in Python says `import worker` and uses the class *Tracker*: its tasks() hands out one *Task* after the other,
its run() calls a function for each.

How a submit flows: the command line names a file, a server and a project; *Input* cuts the file into parts of some
lines without ever holding it whole; *Submit* sends each part by the *Client*, which alone knows how to wait for a slow
or lost server, asks the tracker what became of its lines, and tells the *Display* how far it is. Who we are to that
server comes from *Credentials*; what we may do there is asked for in *Access*.

How a run flows: the *Taker*, a thread, asks for as many tasks as there is room for; each becomes a *Work*, a thread of
its own: of `worker.py run` an *Execution*, which has the *Terms* say what to start, starts it as a *Process* and judges
its end, and what the process prints goes through its *Streams* into a *TaskLog*; of the library a *Call* of a function.
The *Courier*, a thread, brings logs and results to the tracker, and sends out another one for what a job has to say;
the *Keeper*, a thread, extends leases. The *Runner* holds what they share, and its main thread watches the time limits
and the signals.

How tasks() flows: the caller's thread takes a task and releases it; the *keeper*, a thread, extends leases meanwhile.

Sections: Failures and exit statuses · Interrupts · Display · Client · Credentials · Access · Input · Submit · Status ·
Run (tasks and their commands, processes, what a process prints, one task, delivery, taking tasks, run) · Library ·
Command line.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import dataclasses
import datetime
import email.utils
import enum
import errno
import functools
import getpass
import gzip
import hashlib
import io
import itertools
import json
import logging
import math
import os
import random
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import traceback
import types
import urllib.parse
import urllib.request
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn, Self, TextIO, TypedDict, TypeVar, Unpack

try:
    import httpx
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as missing:
    if __name__ != "__main__" and Path(sys.argv[0]).stem != "tracker-worker":
        raise
    package = (missing.name or "a package").partition(".")[0]
    own = shlex.quote(sys.executable)
    LACKS = f"it needs {package}, which is not installed: {own} -m pip install httpx rich"
    if sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        # Debian's own Python, say: it lets pip install nothing but into an environment
        LACKS = (
            f"it needs {package}, which is not installed: apt install python3-httpx python3-rich, or "
            f"{own} -m venv .venv && .venv/bin/pip install httpx rich (and then .venv/bin/python {sys.argv[0]} …)"
        )
    Console = object  # what follows is read for the help alone
    httpx = types.SimpleNamespace(Timeout=lambda *_, **__: None, Limits=lambda **_: None)
else:
    LACKS = ""  # what is to be installed before more can be done than to show the help

T = TypeVar("T")

# ── Failures and exit statuses ──────────────────────────────────────────────────────────────────────────────────────

EXIT_OK = 0
EXIT_SOME_REFUSED = EXIT_SOME_FAILED = 1
EXIT_FAILED = 2  # usage, permission or server error
EXIT_SIGNAL = 128  # plus the number of the signal: 130 after Ctrl-C


class Fail(Exception):
    """Nothing can go on; the text says what is wrong and what to do about it."""


class Unreachable(Fail):
    """The server gave no answer for as long as we were willing to wait."""


@dataclasses.dataclass(eq=False)
class Refused(Exception):
    """The server answered that it will not do this, and has not done any of it."""

    status: int
    message: str
    code: str = ""  # what kind of refusal it is, for programs; empty from a server that is older than this
    reason: str = ""  # why there is no task

    def __str__(self) -> str:
        return self.message


def printable(text: str, limit: int = 400) -> str:
    """The text on one line without control characters, which could steer a terminal, and not longer than limit."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "…"


# ── Interrupts ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Interrupts:
    """Turns Ctrl-C and SIGTERM into KeyboardInterrupt, but not between a request and the use of its answer.

    An answer that nobody reads leaves open what was stored, so the first signal waits for it; the second does not.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.are_deferred = False

    def install(self) -> None:
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        """Raises KeyboardInterrupt, unless the first signal has to wait."""
        first, self.signal = not self.signal, number
        if not (first and self.are_deferred):
            raise KeyboardInterrupt
        os.write(2, b"\nstopping after the answer in flight (once more: stop at once)\n")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """The first signal during the block takes effect at its end, or in the next sleep()."""
        before, self.are_deferred = self.are_deferred, True
        try:
            yield
        finally:
            self.are_deferred = before
        if not before:
            self.check()

    def check(self) -> None:
        """Raises KeyboardInterrupt when a signal has come, unless it is deferred."""
        if self.signal and not self.are_deferred:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Sleeps until a signal comes, in a deferred block too."""
        before, self.are_deferred = self.are_deferred, False
        try:
            self.check()
            time.sleep(seconds)
        finally:
            self.are_deferred = before


# ── Display ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class QuietConsole(Console):
    """A Console that falls silent when its reader goes, where rich would end the thread that happens to print."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display:
    """Notices and progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

    SECONDS_BETWEEN_LINES = 10

    def __init__(self, doing: str = "submitting", done: str = "submitted") -> None:
        self.console = QuietConsole(stderr=True)
        self.doing, self.done = doing, done
        self.bar: Progress | None = None
        self.total: int | None = None
        self.next_lines: dict[str, float] = {}

    @contextlib.contextmanager
    def progress(self, total: int | None) -> Iterator[None]:
        """Shows how far we are while the block runs; total in bytes, None when nobody can know it."""
        self.total = total
        self.next_lines = {"progress": time.monotonic() + self.SECONDS_BETWEEN_LINES}
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as self.bar:
            self.task = self.bar.add_task(self.doing, total=total, counts="")
            try:
                yield
            finally:
                self.bar.update(self.task, description=self.done)
                self.bar = None

    def advance(self, done: int, counts: str) -> None:
        """done: bytes of the input that are settled; counts: what came of them."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, counts=counts, description=self.doing)
        elif self._due("progress"):
            self.notice(counts + (f" ({done / self.total:.0%})" if self.total else ""))

    def waiting(self, reason: str) -> None:
        """Says why nothing moves just now."""
        if self.bar is not None:
            self.bar.update(self.task, description=printable(reason, 30))
        elif self._due("waiting"):
            self.notice(reason)

    def lost(self, server: str, reason: str) -> None:
        """An outage begins."""
        self.notice(f"no answer from {server} ({reason}); trying until it is back")

    def back(self, server: str, seconds: float) -> None:
        """An outage is over that has lasted so long."""
        self.notice(f"{server} answers again after {duration(seconds)}")

    def notice(self, text: str) -> None:
        """One line that stays."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _due(self, kind: str) -> bool:
        """Whether the time has come for another line of this kind; then the next one has to wait again."""
        now = time.monotonic()
        if now < self.next_lines.get(kind, 0):
            return False
        self.next_lines[kind] = now + self.SECONDS_BETWEEN_LINES
        return True


def fail(text: str) -> None:
    """Prints what is wrong on standard error, one paragraph."""
    with contextlib.suppress(OSError):  # nobody reads it; the exit status tells
        print("worker.py: " + "\n".join(printable(line, 2000) for line in text.split("\n")), file=sys.stderr)


def drop_what_nobody_takes(stream: TextIO | None) -> None:
    """Of a stream that cannot be written: Python would try again at its end, and change the exit status."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fault(error: Exception) -> str:
    """What to say of an error that should not be possible; its traceback goes to standard error."""
    with contextlib.suppress(OSError):
        traceback.print_exc()
    return f"a fault of worker.py: {error!r}"


# ── Client ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Answer:
    """What the server answered with ok: true."""

    content: dict[str, Any]
    server_time: float  # unix seconds by the server's clock, ours when it does not say
    repeated: bool  # an earlier attempt got no answer, and may have been carried out as well


@dataclasses.dataclass(eq=False)
class _Lost(Exception):
    """One attempt got no answer from the tracker."""

    reason: str
    carried_out: bool  # the tracker may have done what we asked
    hopeless: bool = False  # waiting will hardly help


class _Wait:
    """What one request waits for, and until when."""

    due, patience, what = math.inf, 0.0, ""
    is_late = False  # its connection was ended


class _Deadlines:
    """Ends the connections of a client when an answer does not begin, or not end, although bytes may keep coming.

    httpx bounds how long it waits for the next byte, and nothing more: those of headers, of the head of a chunk, or of
    packed nothing bring none of the answer.
    """

    PERIOD = 5.0  # seconds from one look to the next

    def __init__(self) -> None:
        self.sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.waits: set[_Wait] = set()
        self.lock = threading.Lock()
        self.looks = False

    @contextlib.contextmanager
    def watching(self, begins: float, ends: float) -> Iterator[Callable[[str, dict[str, Any]], None]]:
        """What httpx is to tell of a request, whose answer must begin so many seconds after it was sent, and then end.

        It may be shorter than it seems if it does not: httpx.ReadTimeout is raised at the end.
        """
        wait = _Wait()

        def note(event: str, told: dict[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                with self.lock:
                    self.sockets.add(told["return_value"].get_extra_info("socket"))
            elif event.endswith("send_request_headers.started"):  # a proxy may have answered before
                wait.due = math.inf
            elif event.endswith("receive_response_headers.started"):
                self.begin(wait, begins, "begin")
            elif event.endswith("receive_response_headers.complete"):
                self.begin(wait, ends, "end")

        try:
            yield note
        except httpx.RequestError:
            if not wait.is_late:
                raise
        finally:
            with self.lock:
                self.waits.discard(wait)
        if wait.is_late:
            raise httpx.ReadTimeout(f"its answer did not {wait.what} within {duration(wait.patience)}")

    def begin(self, wait: _Wait, patience: float, what: str) -> None:
        """Something is waited for. A thread looks after all that wait, as long as one does."""
        with self.lock:
            wait.due, wait.patience, wait.what = time.monotonic() + patience, patience, what
            self.waits.add(wait)
            if not self.looks:
                self.looks = True
                threading.Thread(target=self.look, name="deadlines", daemon=True).start()

    def look(self) -> None:
        """The body of the thread, which ends when nothing is waited for. Which socket is whose, nobody tells us."""
        while True:
            time.sleep(self.PERIOD)
            with self.lock:
                if not self.waits:
                    self.looks = False
                    return
                late = [wait for wait in self.waits if wait.due < time.monotonic()]
                for wait in late:
                    self.waits.discard(wait)
                    wait.is_late = True
                for one in list(self.sockets) if late else ():
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(one, socket.SHUT_RDWR)  # below TLS, which its thread reads


class Client:
    """Calls to one tracker that wait out a rate limit and a lost server.

    patience: seconds to go on without an answer before Unreachable is raised. None: no limit, except that a server
    that cannot even be connected to at the very first call is taken for a wrong URL.
    """

    TIMEOUT = httpx.Timeout(120, connect=10)
    FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
    INTERNAL_ERRORS_BORNE = 3
    MOST_ANSWER = 2**26  # bytes: more than the largest list of tasks or projects
    LONGEST_READ = 600.0  # seconds from the headers to the end of an answer; to them, beyond how long a byte may take
    OF_TRANSFER = (b"content-encoding", b"transfer-encoding", b"content-length")
    # Shorter than servers keep an idle connection: one that they close as we reuse it looks like a lost answer.
    LIMITS = httpx.Limits(keepalive_expiry=2)

    def __init__(self, server: str, display: Display, interrupts: Interrupts, patience: float | None = None):
        self.server = server
        self.display = display
        self.interrupts = interrupts
        self.patience = patience
        self.worker: Worker | None = None
        self.credentials_file: Path | None = None
        self.reached = False
        self.process = os.getpid()
        self.deadlines = _Deadlines()
        #: The last call may have been carried out although its answer never came.
        self.uncertain = False
        try:
            self.http = httpx.Client(timeout=self.TIMEOUT, limits=self.LIMITS)
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            raise Fail(f"the proxy or certificate settings in the environment do not work: {error}") from None

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Answer:
        """Sends one request (body: bytes as they are, anything else as JSON) until the tracker has answered it.

        Refused: the tracker said no. Fail: there is no sense in going on.
        """
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {**self._headers(), "Content-Type": kind}

        def send() -> httpx.Response:
            with self.interrupts.deferred(), self.stream(method, path, headers, body) as response:
                return self._read(response, path)

        response, repeated = self._answered(send)
        return Answer(self._content(response, path), _server_time(response), repeated)

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Any = None,
        timeout: httpx.Timeout | None = None,
        longest: float | None = None,
    ) -> Iterator[httpx.Response]:
        """Sends a request, and has its answer as soon as it begins. It ends in so many seconds, or is none."""
        timeout, longest = timeout or self.TIMEOUT, longest or self.LONGEST_READ
        with self.deadlines.watching(timeout.read + self.LONGEST_READ, longest) as trace:
            options = {"timeout": timeout, "extensions": {"trace": trace}}
            with self.http.stream(method, self.server + path, content=body, headers=headers, **options) as response:
                yield response

    def _read(self, response: httpx.Response, path: str) -> httpx.Response:
        """Reads the answer. Fail when it is longer than any of a tracker."""
        read = bytearray()  # a list of pieces may take far more room
        for piece in response.iter_bytes():
            read += piece
            if len(read) > self.MOST_ANSWER:
                most = f"{self.MOST_ANSWER // 2**20} MiB"
                raise Fail(f"{self.server}{path} answered with more than {most}: is --server the address of a tracker?")
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in self.OF_TRANSFER]
        return httpx.Response(response.status_code, headers=headers, content=bytes(read))

    def _headers(self) -> dict[str, str]:
        """What every request says of us. Nothing comes packed: a little may unpack to more than there is memory."""
        known = {"X-Worker-ID": str(self.worker.id), "X-Secret": self.worker.secret} if self.worker else {}
        return {"User-Agent": "tracker-worker", "Accept-Encoding": "identity", **known}

    def _answered(self, send: Callable[[], httpx.Response]) -> tuple[httpx.Response, bool]:
        """Has a request sent until it is answered. Whether it may have been carried out before, too."""
        if self.is_inherited():
            raise Fail(f"this process was forked by the one that speaks to {self.server}: open one of its own in it")
        carried_out = self.uncertain = False
        outage = _Outage(self)
        while True:
            self.interrupts.check()
            self.uncertain = True
            try:
                response = self._attempt(send)
            except _Lost as lost:
                carried_out = self.uncertain = carried_out or lost.carried_out
                outage.wait(lost)
                continue
            self.uncertain = carried_out
            outage.over()
            if response.status_code != 429:
                return response, carried_out
            delay = _rate_limit_delay(response)
            self.display.waiting(f"rate limit: waiting {duration(delay)}")
            self.interrupts.sleep(delay)

    def is_inherited(self) -> bool:
        """Whether it was made before a fork, in another process: that has its connections, and what is ours."""
        return os.getpid() != self.process

    def _attempt(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Sends the request once. _Lost when that brings no answer of a tracker."""
        try:
            response = send()
        except httpx.RequestError as error:
            was_connected = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise _Lost(str(error) or type(error).__name__, carried_out=was_connected) from None
        self.reached = True
        if (status := response.status_code) >= 500:
            hopeless = status not in (502, 503, 504)
            raise _Lost(f"status {status}, {_message(response)}", carried_out=status != 503, hopeless=hopeless)
        return response

    def _content(self, response: httpx.Response, path: str) -> dict[str, Any]:
        """What a tracker's answer holds. Refused as it says; Fail when it is none, or says that we are nobody."""
        answer = _json_object(response)
        status = response.status_code
        if 300 <= status < 400:
            raise Fail(f"{self.server} redirects to {response.headers.get('Location')}: give that as --server")
        if status == 401 and self.worker is not None:
            rejected = f"{self.server} rejects worker {self.worker.id} ({self.worker.alias}): {_message(response)}.\n"
            if self.credentials_file is None:
                raise Fail(f"{rejected}Does its secret belong to this tracker, and to the database that it has now?")
            raise Fail(
                f"{rejected}"
                "Is another database behind this URL now than when it was registered? If that is meant to be so,\n"
                f"`worker.py forget --server {self.server}` drops its credentials from {self.credentials_file};\n"
                "the next run registers a new worker, which must be given access again."
            )
        if status == 204:
            return {}
        if "ok" not in answer and status not in (408, 413):
            kind = response.headers.get("Content-Type", "no content type")
            raise Fail(
                f"{self.server}{path} answered {status} with {kind}, which is not a tracker's answer:"
                " is --server the address of a tracker?"
            )
        if status >= 400 or answer.get("ok") is not True:
            code = answer.get("code")
            reason = str(answer.get("reason") or "")
            raise Refused(status, _message(response), code if isinstance(code, str) else "", reason)
        content = answer.get("content")
        return content if isinstance(content, dict) else {}


@dataclasses.dataclass
class _Outage:
    """The time without an answer during one call: growing pauses, and a word when it begins and when it is over."""

    client: Client
    since: float | None = None
    pause: float = Client.FIRST_PAUSE
    internal_errors: int = 0

    def wait(self, lost: _Lost) -> None:
        """Sleeps before the next attempt. Unreachable or Fail when there should be none."""
        client = self.client
        now = time.monotonic()
        self.internal_errors += lost.hopeless
        if self.internal_errors > client.INTERNAL_ERRORS_BORNE:
            raise Fail(f"{client.server} answered {self.internal_errors} times in a row: {lost.reason}")
        if self.since is None:
            self.since = now
            was_never_there = client.patience is None and not client.reached and not lost.carried_out
            if was_never_there or (client.patience is not None and client.patience <= 0):
                raise Unreachable(f"no answer from {client.server}{_through_proxy(client.server)}: {lost.reason}")
            client.display.lost(client.server, lost.reason)
        else:
            client.display.waiting(f"no answer for {duration(now - self.since)}: {lost.reason}")
        # Spread out, so that a crowd of workers does not come back in step.
        pause = self.pause * random.uniform(0.5, 1)
        self.pause = min(self.pause * 2, client.LONGEST_PAUSE)
        if client.patience is not None:
            left = self.since + client.patience - now
            if left <= 0:
                raise Unreachable(f"no answer from {client.server} for {duration(now - self.since)}: {lost.reason}")
            pause = min(pause, left)
        client.interrupts.sleep(pause)

    def over(self) -> None:
        """There was an answer: the next outage of this call begins anew."""
        if self.since is not None:
            self.client.display.back(self.client.server, time.monotonic() - self.since)
            self.since, self.pause, self.internal_errors = None, self.client.FIRST_PAUSE, 0


def _through_proxy(server: str) -> str:
    """What to add to an address that is tried through a proxy: it may be the proxy that is not there."""
    url = httpx.URL(server)
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(url.host):
        return " (through the proxy that the environment names)"
    return ""


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """The object that the body is, empty when it is none."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _message(response: httpx.Response) -> str:
    """What the tracker says of its refusal, or else the name of the status."""
    message = _json_object(response).get("message")
    return message if isinstance(message, str) and message else f"{response.status_code} {response.reason_phrase}"


def _rate_limit_delay(response: httpx.Response) -> float:
    """Seconds to wait, as the body says or else the header; 1 when neither makes sense, never more than an hour."""
    for stated in (_json_object(response).get("rate_limit_delay"), response.headers.get("Retry-After")):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            delay = float(stated)
            if delay > 0 and math.isfinite(delay):
                return min(delay, 3600.0)
    return 1.0


def _server_time(response: httpx.Response) -> float:
    """Unix seconds by the server's clock, by ours when it does not say."""
    try:
        return email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def duration(seconds: float) -> str:
    """A span of time as people say it, in its two largest units."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size:,} {unit} {seconds % size // smaller_size} {smaller}"
    return f"{seconds} s"


def counted(count: int, noun: str) -> str:
    """So many of something: 1 task, 2,000 tasks."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def server_address(text: str) -> str:
    """The address of a tracker as the credentials know it: lower case, no standard port, no slash at the end."""
    if LACKS:  # the help is all that comes
        return text
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL like http://127.0.0.1:3010")
    if url.userinfo or url.query or url.fragment:
        raise argparse.ArgumentTypeError(f"{text!r}: a server has no user name, no ? and no #")
    return str(url).rstrip("/")


# ── Credentials ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Worker:
    """Who we are to one server."""

    id: int
    alias: str
    secret: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Fail when no request could carry the secret: one with the end of its line, for one."""
        if not re.fullmatch(r"[!-~]+", self.secret):
            raise Fail(f"the secret of worker {self.id} ({self.alias}) is none: it has spaces, or what is not ASCII")


class Credentials:
    """The file with our worker of each server: {"servers": {URL: {"id", "alias", "secret"}}}.

    Only its owner can read it, from the first byte on. It is replaced as a whole, so a reader sees the old or the new
    one; who changes it holds FILE.lock, so that two processes do not undo each other's change.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None] | None = None):
        """say: is told what a person should know (default: standard error is)."""
        self.path = path or default_credentials_file()
        self.say = say or fail

    def get(self, server: str) -> Worker | None:
        """Our worker of this server. Fail when the file is damaged."""
        entry = self._read().get(server)
        return None if entry is None else Worker(entry["id"], entry["alias"], entry["secret"])

    def put(self, server: str, worker: Worker | None) -> None:
        """Stores our worker of this server, or drops it; only under locked()."""
        servers = self._read()
        if worker is None:
            servers.pop(server, None)
        else:
            servers[server] = dataclasses.asdict(worker)
        self._write(servers)

    @contextlib.contextmanager
    def locked(self, display: Display) -> Iterator[None]:
        """Holds off every other process that wants to change the file."""
        lock_path = self.path.with_name(self.path.name + ".lock")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Fail(f"cannot keep credentials in {self.path}: {error}; choose a place with --credentials") from None
        try:
            if not self._try_lock(lock):
                display.notice(f"waiting for another worker.py that holds {lock_path}")
                while not self._try_lock(lock):
                    time.sleep(0.05)
            yield
        finally:
            os.close(lock)

    def _try_lock(self, lock: int) -> bool:
        """Whether we hold the lock now, which nobody else does then."""
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise Fail(f"cannot lock {self.path}.lock: {error}; choose a place with --credentials") from None
        return True

    def _read(self) -> dict[str, dict[str, Any]]:
        """The entry of each server; none when there is no file. Fail when it cannot be read or is damaged."""
        try:
            text = self.path.read_bytes()
            self._hide()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:  # no name of a file
            raise Fail(f"cannot read the credentials in {self.path}: {error}") from None
        try:
            servers = json.loads(text)["servers"]
            for entry in servers.values():
                well_formed = type(entry["id"]) is int and isinstance(entry["alias"], str)
                if not (well_formed and re.fullmatch(r"[!-~]+", entry["secret"])):
                    raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise Fail(
                f"the credentials file {self.path} is damaged: mend it, or move it away and a new worker is registered"
            ) from None
        return servers

    def _hide(self) -> None:
        """Takes the file from other users' eyes when somebody has opened it to them (a copy, a restored backup)."""
        if os.name == "posix" and stat.S_IMODE(self.path.stat().st_mode) & 0o077:
            self.say(f"{self.path} was open to other users; making it readable by its owner alone")
            with contextlib.suppress(PermissionError):
                self.path.chmod(0o600)

    def _write(self, servers: dict[str, Any]) -> None:
        """Replaces the file as a whole: once it is written it is on disk."""
        path = Path(os.path.realpath(self.path))  # a link stays a link
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")  # made with mode 0600
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump({"servers": servers}, file, indent=2)
                    file.write("\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise Fail(f"cannot write the credentials to {path}: {error}") from None


def default_credentials_file() -> Path:
    """TRACKER_CREDENTIALS, or tracker/credentials.json where this platform keeps a user's settings."""
    if given := os.environ.get("TRACKER_CREDENTIALS"):
        return Path(given).expanduser()
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("APPDATA") or Path.home() / "AppData/Roaming")
        elif sys.platform == "darwin":
            base = Path.home() / "Library/Application Support"
        else:
            base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    except RuntimeError:
        raise Fail("this user has no home directory to keep credentials in: name a file with --credentials") from None
    return base / "tracker" / "credentials.json"


def sign_in(client: Client, credentials: Credentials, alias: str | None) -> None:
    """Signs in as our worker of this server; registers one when there is none, renames it when alias is another."""
    worker = credentials.get(client.server)
    if worker is None:
        # The lock is held while we register, or two first runs at once would leave a second worker that nobody uses.
        with credentials.locked(client.display), client.interrupts.deferred():
            worker = credentials.get(client.server) or _register(client, credentials, alias or socket.gethostname())
    client.worker, client.credentials_file = worker, credentials.path
    if alias and alias != worker.alias:
        _rename(client, credentials, worker, alias)


def _register(client: Client, credentials: Credentials, alias: str) -> Worker:
    """Registers a new worker of this name and keeps its secret. Fail when the server does not."""
    try:
        made = client.call("POST", "/worker/create", {"alias": alias}).content["worker"]
        worker = Worker(made["id"], made["alias"], made["secret"])
    except Refused as refused:
        if refused.status in (401, 403):
            raise Fail(
                f"{client.server} lets only managers register workers: {refused.message}.\n"
                "Ask a manager for one (POST /worker/create) and write it into the credentials file:\n"
                f'{credentials.path}: {{"servers": {{"{client.server}": {{"id": …, "alias": "…", "secret": "…"}}}}}}'
            ) from None
        raise Fail(f"{client.server} does not register a worker {alias!r} (--alias): {refused.message}") from None
    except (KeyError, TypeError):
        raise Fail(f"{client.server} answered /worker/create with something that is no worker") from None
    credentials.put(client.server, worker)
    client.display.notice(
        f"registered as worker {worker.id} ({worker.alias}) at {client.server}; credentials in {credentials.path}"
    )
    return worker


def _rename(client: Client, credentials: Credentials, worker: Worker, alias: str) -> None:
    """Gives our worker another name there and here. Fail when the server does not."""
    try:
        client.call("POST", "/worker/update", {"alias": alias})
    except Refused as refused:
        raise Fail(f"{client.server} does not rename worker {worker.id} to {alias!r}: {refused.message}") from None
    client.display.notice(f"worker {worker.id} ({worker.alias}) is now called {alias}")
    worker.alias = alias
    with credentials.locked(client.display):
        credentials.put(client.server, worker)


# ── Access ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def request_access(
    client: Client, project: int, refusal: Refused, *, assign: bool, submit: bool
) -> tuple[bool, bool, str]:
    """Asks for access to the project after a refusal: whether it is new that we ask, whether that is waiting for a
    manager now, and who must do what. Fail when the tracker takes no request.
    """
    worker = client.worker
    name = f"worker {worker.id} ({worker.alias})"
    call, then, is_new, is_waiting = "accept", f"accept the request of {name}", False, True
    on_page = on_call = ""
    try:
        client.call("POST", "/project/request_access", {"project": project, "assign": assign, "submit": submit})
        state, is_new = "It has asked for access now.", True
    except Refused as again:
        if again.status != 409:
            raise Fail(f"{client.server} does not take a request for access: {again.message}") from None
        state = f"Its request for access is still pending: {again.message}."
        if again.code == "granted" or (not again.code and "granted" in again.message):
            # One worker has one access per project: only a manager widens it, a request does not.
            state, is_waiting = f"What it may do there is something else: {again.message}.", False
            call, then = "reject", f"give {name} more"
            on_page = f', by its number {worker.id} under "Workers with access"'
            on_call = ", which takes what it has as well: it asks anew then"
    return (
        is_new,
        is_waiting,
        f"{name} may not do this: {refusal.message}. {state}\n"
        f"A manager of project {project} with MANAGE_ACCESS must {then}:\n"
        f"  on the page {client.server}/ui/projects/{project}/access{on_page}\n"
        f"  or by POST {client.server}/project/{call}_request/{project}/{worker.id}{on_call}",
    )


def ask_for_access(client: Client, project: int, refusal: Refused, *, assign: bool, submit: bool) -> NoReturn:
    """Asks for access to the project after a refusal, and raises Fail that says who must grant it and how."""
    *_, text = request_access(client, project, refusal, assign=assign, submit=submit)
    raise Fail(f"{text}\nThen run the same command again.")


def shown(client: Client, kind: str, number: int) -> dict[str, Any]:
    """What the tracker shows of a worker or a project; nothing of what is hidden from us."""
    with contextlib.suppress(Refused):
        return client.call("GET", f"/{kind}/get/{number}").content
    return {}


def is_paused(client: Client) -> bool:
    """Whether a manager has paused our worker."""
    worker = shown(client, "worker", client.worker.id).get("worker")
    return isinstance(worker, dict) and worker.get("paused") is True


def closed_project(client: Client, projects: Sequence[int]) -> int:
    """The first of the projects of which we may not be assigned tasks."""
    return next((project for project in projects if _is_closed_to_us(client, project)), projects[0])


def _is_closed_to_us(client: Client, project: int) -> bool:
    """Whether we may not be assigned the project's tasks: what it keeps for those who may is refused us then."""
    if shown(client, "project", project).get("public") is True:
        return False
    try:
        client.call("GET", f"/project/secret/{project}")
    except Refused as refused:
        return refused.status in (403, 404)  # a hidden one is not there for us
    return False


@dataclasses.dataclass
class Admission:
    """Waits until a manager lets us do what was refused: by granting access, or by ending the pause of our worker."""

    client: Client
    say: Callable[[str], None]
    assign: bool
    submit: bool
    has_asked: bool = False
    widened: set[int] = dataclasses.field(default_factory=set)  # projects that gave it the other access only
    said: str = ""
    pause: float = 1.0

    LONGEST_PAUSE = 10.0
    PAUSED = "a manager has paused this worker; waiting until it may go on"

    def wait(self, refused: Refused, projects: Sequence[int]) -> None:
        """Waits a little before the next attempt, after having asked. Fail when there is nothing to wait for."""
        text = news = self.PAUSED
        if not is_paused(self.client):
            project = closed_project(self.client, projects) if len(projects) > 1 else projects[0]
            both = project in self.widened
            wanted = {"assign": self.assign or both, "submit": self.submit or both}
            is_new, is_waiting, text = request_access(self.client, project, refused, **wanted)
            if is_new and self.has_asked:
                raise Fail(f"a manager has rejected the request; it has been made once more.\n{text}")
            self.has_asked = is_waiting
            if not is_waiting:
                self.widened.add(project)
            text += "\nWaiting for that."
            news = f"{project} {is_waiting}"  # that it has asked, and that this is pending, is one thing to wait for
        if news != self.said:
            self.said = news
            for line in text.split("\n"):
                self.say(line)
        self.client.interrupts.sleep(self.pause)
        self.pause = min(self.pause * 2, self.LONGEST_PAUSE)


# ── Input ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Part:
    """Lines of the input that follow one another, without their ends, and the number of the first."""

    first: int
    lines: list[bytes] = dataclasses.field(default_factory=list)
    size: int = 0

    def __str__(self) -> str:
        return f"line {self.first}" if len(self.lines) == 1 else f"lines {self.first}-{self.next - 1}"

    @property
    def next(self) -> int:
        """The number of the line that follows."""
        return self.first + len(self.lines)

    def add(self, line: bytes) -> None:
        self.lines.append(line)
        self.size += len(line) + 1

    def halves(self) -> list[Part]:
        """Two parts of the same lines; at least two lines are needed for neither to be empty."""
        middle = len(self.lines) // 2
        cut = ((self.first, self.lines[:middle]), (self.first + middle, self.lines[middle:]))
        return [Part(first, lines, sum(map(len, lines)) + len(lines)) for first, lines in cut]


class Input:
    """A file or standard input, read in parts of some lines: memory does not grow with the file."""

    CHUNK = 256 * 1024
    LONGEST_LINE = 32 * 1024 * 1024
    SILENCE = 1.0
    PART_BYTES = 1024 * 1024
    PART_LINES = 1000  # the tracker names so many refused ones

    def __init__(self, name: str):
        """name: a path, or - for standard input. Fail when it cannot be opened."""
        try:
            raw = io.FileIO(0 if name == "-" else name, closefd=name != "-")
            status = os.fstat(raw.fileno())
        except OSError as error:
            raise Fail(f"cannot read {name}: {error.strerror or error}") from None
        self.source = io.BufferedReader(raw)
        self.name = "standard input" if name == "-" else name
        self.is_file = stat.S_ISREG(status.st_mode)
        self.start = raw.tell() if self.is_file else 0
        #: Bytes that are still to come; None when nobody can know.
        self.size = max(0, status.st_size - self.start) if self.is_file else None
        #: A part is not larger, unless its only line is; it may be changed between two parts.
        self.part_bytes = self.PART_BYTES

    def taken(self) -> int:
        """Bytes of a file that have been read."""
        return self.source.raw.tell() - self.start if self.is_file else 0

    def parts(self, start_line: int, most_lines: int) -> Iterator[Part]:
        """The lines from start_line on. A line ends with CR, LF or both.

        A pipe that is silent for a second does not keep back what it has said. A line that is longer than any task can
        be is cut, so that it fits into memory: the tracker refuses what is left of it.
        """
        part, number, tail, after_cr = Part(start_line), 0, b"", False
        for chunk in self._chunks():
            lines = []
            if chunk:
                text = chunk[1:] if after_cr and chunk.startswith(b"\n") else chunk
                after_cr = text.endswith(b"\r")
                *lines, tail = (tail + text + b".").splitlines()
                tail = tail[:-1][: self.LONGEST_LINE]
            for line in lines:
                number += 1
                if number < start_line:
                    continue
                if part.lines and (len(part.lines) == most_lines or part.size + len(line) > self.part_bytes):
                    yield part
                    part = Part(number)
                part.add(line)
            if not chunk and part.lines:
                yield part
                part = Part(part.next)
        if tail and number + 1 >= start_line:
            part.add(tail)
        yield part

    def _chunks(self) -> Iterator[bytes]:
        """What is read, and unpacked if it is gzip's; nothing (an empty one) whenever a pipe has been silent."""
        try:
            is_packed = self.source.peek(2).startswith(b"\x1f\x8b")
            source = gzip.GzipFile(fileobj=self.source, mode="rb") if is_packed else self.source
            while chunk := source.read1(self.CHUNK):
                yield chunk
                # Windows cannot select on a pipe; and of what is packed nobody can tell whether more is there.
                while os.name == "posix" and not (self.is_file or is_packed):
                    if select.select([self.source.raw], [], [], self.SILENCE)[0]:
                        break
                    yield b""
        except (OSError, EOFError, zlib.error) as error:
            raise Fail(f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}") from None


# ── Submit ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Report:
    """What has become of the lines so far."""

    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    refusals: list[tuple[int, str]] = dataclasses.field(default_factory=list)  # the first ones: line and reason
    repeated: list[int] = dataclasses.field(default_factory=list)  # the first lines that were duplicates
    doubt: str = ""  # what is not known of the lines that were sent last
    next_line: int = 1  # every line before it is settled

    LISTED = 20

    def counts(self) -> str:
        return f"stored {self.stored:,}, duplicate {self.duplicates:,}, refused {self.refused:,}"

    def text(self, finished: bool) -> str:
        """The report that ends a run; finished: the whole input has been dealt with."""
        said = [self.counts()]
        said += [f"  line {line}: {reason}" for line, reason in self.refusals]
        if self.refused > self.LISTED:
            said.append(f"  and {self.refused - self.LISTED:,} more; each was named on standard error")
        if self.repeated:
            more = self.duplicates - len(self.repeated)
            numbers = ", ".join(map(str, self.repeated)) + (f" and {more:,} more" if more else "")
            said.append(f"  duplicate: line {numbers}")
        said += [self.doubt] if self.doubt else []
        if not finished:
            after = self.next_line - 1
            said.append(f"not finished: settled up to line {after}; continue with --start-line {self.next_line}")
        return "\n".join(printable(line, 2000) for line in said)


@dataclasses.dataclass
class Submission:
    """Sends lines to the tracker, which reads them, and keeps the report of what became of each.

    An upload has a token: when its answer is lost it is sent again, and the tracker knows it.
    """

    client: Client
    project: int
    options: dict[str, Any]  # what tasks get that do not say otherwise, and how lines are to be read
    source: Input | Given
    report: Report = dataclasses.field(default_factory=Report)
    admission: Admission | None = None  # waits for access; None: without it nothing goes on

    FIRST_LOOK, LONGEST_LOOK = 0.01, 1.0

    def run(self, start_line: int, most_lines: int) -> None:
        """Deals with every line from start_line on. Whatever ends it early, self.report is true when it does."""
        self.report.next_line = start_line
        for part in self.source.parts(start_line, most_lines):
            self._send(part)
            self.client.display.advance(self.source.taken(), self.report.counts())

    def _send(self, part: Part) -> None:
        """Sends a part, or its halves when it is too much for the server. Fail when it is refused for anything else."""
        try:
            if b"".join(part.lines).replace(b"\xef\xbb\xbf", b"").strip():  # what is blank, or a BOM, is no task
                with self.client.interrupts.deferred():
                    self._follow(part, self._upload(part))
        except Refused as refused:
            if refused.status == 403 and self.admission:
                self.admission.wait(refused, [self.project])
                self._send(part)
                return
            if refused.status == 403:
                ask_for_access(self.client, self.project, refused, assign=False, submit=True)
            if refused.status not in (408, 413):
                raise Fail(f"project {self.project} on {self.client.server}: {refused.message}") from None
            self.source.part_bytes = max(1, part.size // 2)
            if len(part.lines) > 1:
                for half in part.halves():
                    self._send(half)
            else:
                self._refuse(part.first, refused.message)
        except (KeyError, TypeError, ValueError):
            raise Fail(f"{self.client.server} answered with something that is no report of submitted lines") from None
        self.report.next_line = part.next

    def _upload(self, part: Part) -> int:
        """The operation with which the tracker submits the lines."""
        self.report.next_line = part.first
        query = urllib.parse.urlencode({**self.options, "first_line": part.first, "token": secrets.token_hex(16)})
        try:
            path = f"/task/submit_lines/{self.project}?{query}"
            text = b"\n".join([*part.lines, b""])
            answer = self.client.call("POST", path, text, kind="text/plain; charset=utf-8")
        except BaseException:
            if self.client.uncertain:
                self.report.doubt = f"{part}: answer lost, they may or may not be stored"
            raise
        return answer.content["operation"]

    def _follow(self, part: Part, operation: int) -> None:
        """Waits until the tracker has submitted what it has taken, and counts what became of it."""
        self.report.next_line = part.next
        self.report.doubt = f"{part}: taken by the tracker as operation {operation}, not counted here"
        pause = self.FIRST_LOOK
        while True:
            found = self.client.call("GET", f"/operation/{operation}").content["operation"]
            if found["state"] != "running":
                break
            time.sleep(pause)
            pause = min(1.5 * pause, self.LONGEST_LOOK)
        lines = found["report"]
        for line, reason in lines["refused"]:
            self._refuse(line, reason)
        self.report.stored += found["affected"]
        self.report.duplicates += lines["duplicate_count"]
        self.report.repeated = (self.report.repeated + lines["duplicates"])[: Report.LISTED]
        self.report.doubt = ""

    def _refuse(self, line: int, reason: str) -> None:
        """Counts a refused line and names it at once; the first ones are named in the report too."""
        self.report.refused += 1
        if self.report.refused <= Report.LISTED:
            self.report.refusals.append((line, reason))
        self.client.display.notice(f"line {line} refused: {reason}")


def run_submit(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """worker.py submit."""
    source = Input(args.file)
    display = Display()
    client = Client(args.server, display, interrupts, args.patience)
    names = ("priority", "max_retries", "max_assign_time", "verification_count", "delay")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options |= {"format": "text" if args.format == "lines" else args.format, "once": str(args.unique).lower()}
    submission = Submission(client, args.project, options, source)
    if not args.no_wait:
        submission.admission = Admission(client, display.notice, assign=False, submit=True)
    report, finished = submission.report, False
    try:
        sign_in(client, Credentials(args.credentials), args.alias)
        with display.progress(source.size):
            submission.run(args.start_line, min(args.batch, Input.PART_LINES))
        finished = True
    finally:
        if finished or report.stored or report.duplicates or report.refused or report.doubt:
            print(report.text(finished), flush=True)
    return EXIT_SOME_REFUSED if report.refused else EXIT_OK


# ── Status ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Sample:
    """How many tasks a project had closed at a time (unix seconds by the server's clock)."""

    time: float
    closed: int


def closing_rate(samples: list[Sample], now: Sample, window: float) -> float | None:
    """Closed tasks per second from the oldest sample of the last `window` seconds (or the newest before) until now.

    None when there is nothing to go by.
    """
    earlier = sorted((s for s in samples if s.time < now.time and s.closed <= now.closed), key=lambda s: s.time)
    recent = [s for s in earlier if s.time >= now.time - window]
    base = recent[:1] or earlier[-1:]
    return (now.closed - base[0].closed) / (now.time - base[0].time) if base else None


@dataclasses.dataclass
class Overview:
    """The visible projects of a server with their counts and rates. It remembers what it saw, for the next rate."""

    client: Client
    window: float  # seconds
    seen: dict[int, list[Sample]] = dataclasses.field(default_factory=dict)

    UNFINISHED = ("waiting_task_count", "delayed_task_count", "assigned_task_count", "awaiting_verification_count")
    COUNTERS = (*UNFINISHED, "failed_task_count", "closed_task_count")
    SNAPSHOTS = 60

    def projects(self) -> list[dict[str, Any]]:
        """One object per visible project, in the server's order (by name), as --json prints them."""
        try:
            listed = self.client.call("GET", "/project/list")
        except Refused as refused:
            raise Fail(f"{self.client.server} does not list its projects: {refused.message}") from None
        return [self._project(project, listed.server_time) for project in listed.content.get("projects") or []]

    def _project(self, project: dict[str, Any], now: float) -> dict[str, Any]:
        """What --json prints of a project that the tracker listed at this time."""
        counts = {name: project.get(name, 0) for name in self.COUNTERS}
        rate = self._rate(project["id"], Sample(now, counts["closed_task_count"]))
        left = sum(counts[name] for name in self.UNFINISHED)
        eta = left / rate if rate and not project.get("paused") else None
        return {
            "id": project["id"],
            "name": project["name"],
            "priority": project.get("priority", 0),
            "paused": bool(project.get("paused")),
            **counts,
            "closed_per_second": rate,
            "eta_seconds": 0 if left == 0 else eta,
        }

    def _rate(self, project: int, now: Sample) -> float | None:
        """Closed tasks per second, by the tracker's snapshots and by what we have seen ourselves."""
        seen, snapshots = self.seen.get(project, []), []
        with contextlib.suppress(Refused):  # hidden or gone since it was listed
            content = self.client.call("GET", f"/project/monitoring/{project}?count={self.SNAPSHOTS}").content
            snapshots = [Sample(s["time_stamp"], s["closed_task_count"]) for s in content.get("snapshots") or []]
        # Half a window further back than the window itself, or there would be nothing to compare with when it moves on.
        self.seen[project] = [*(s for s in seen if s.time >= now.time - 1.5 * self.window), now]
        return closing_rate(snapshots + seen, now, self.window)


PAUSED_STYLE = "bold white on red"


def status_table(projects: list[dict[str, Any]], server: str) -> Group:
    """The projects as people want to see them; a paused one in reverse, and named above all."""
    if not projects:
        return Group(Text(f"{server} shows no project (hidden ones are shown to their managers only)"))
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("Id", justify="right", no_wrap=True)
    table.add_column("Project", overflow="fold", min_width=8)
    for heading in ("Prio", "Waiting", "Delayed", "Assigned", "Verify", "Failed", "Closed", "Rate", "ETA"):
        table.add_column(heading, justify="right", no_wrap=True)
    for project in projects:
        counts = [f"{project[name]:,}" for name in Overview.COUNTERS]
        name, rate = printable(project["name"], 60), _rate_text(project["closed_per_second"])
        cells = [str(project["id"]), name, str(project["priority"]), *counts, rate, _eta_text(project)]
        table.add_row(*map(Text, cells), style=PAUSED_STYLE if project["paused"] else "")
    # Above the table: the lower end of a long one is what a small terminal does not show.
    paused = ", ".join(f"{printable(p['name'], 60)} ({p['id']})" for p in projects if p["paused"])
    return Group(*([Text(f"PAUSED, no task is handed out: {paused}", style=PAUSED_STYLE)] if paused else []), table)


def _rate_text(rate: float | None) -> str:
    """A rate as people read it, given by the second."""
    if rate is None:
        return "?"
    return f"{rate:,.1f}/s" if rate >= 1 else f"{rate * 60:,.1f}/min"


def _eta_text(project: dict[str, Any]) -> str:
    """How long it will take until nothing is left, or why nobody can tell."""
    if project["paused"]:
        return "PAUSED"
    if project["eta_seconds"] is None:
        return "?" if project["closed_per_second"] is None else "stalled"
    if project["eta_seconds"] == 0:
        return "done" if project["closed_task_count"] else "empty"
    return duration(project["eta_seconds"])


def _status_picture(args: argparse.Namespace, projects: list[dict[str, Any]], trouble: str | None) -> Group:
    """The table of projects, and above it how fresh it is."""
    above = []
    if args.watch is not None:
        above.append(Text(f"{args.server} at {datetime.datetime.now():%H:%M:%S}, every {args.watch:g} s"))
    if trouble:
        above.append(Text(f"OLD FIGURES: {printable(trouble)}", style="bold red"))
    return Group(*above, status_table(projects, args.server))


def _show(
    args: argparse.Namespace, screen: Live | Console, projects: list[dict[str, Any]], trouble: str | None
) -> None:
    """Shows the projects as args ask for it; to a program old ones are not shown again, only their trouble is."""
    if args.json and trouble:
        fail(trouble)
    elif args.json:
        print(json.dumps({"server": args.server, "time": time.time(), "projects": projects}), flush=True)
    elif isinstance(screen, Live):
        screen.update(_status_picture(args, projects, trouble), refresh=True)
    else:
        screen.print(_status_picture(args, projects, trouble))


def run_status(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """worker.py status."""
    overview = Overview(Client(args.server, Display(), interrupts, patience=0), args.window)
    projects, trouble = overview.projects(), None
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # a file has no edge to wrap at
    in_place = args.watch is not None and console.is_terminal and not args.json
    with Live(console=console, auto_refresh=False) if in_place else contextlib.nullcontext() as live:
        while True:
            _show(args, live or console, projects, trouble)
            if args.watch is None:
                return EXIT_OK
            time.sleep(args.watch)
            try:
                projects, trouble = overview.projects(), None
            except Unreachable as unreachable:
                trouble = str(unreachable)


# ── Run: tasks and their commands ───────────────────────────────────────────────────────────────────────────────────

DONE, FAILED, SKIPPED = 0, 1, 2  # results of a release, as the tracker numbers them
RESULTS = ("done", "failed", "skipped")
NO_TASK = "no task available"


def take_tasks(
    client: Client, projects: Sequence[int], count: int, wait: float, takes: str = ""
) -> tuple[list[Assignment], str]:
    """The tasks that the tracker hands out, after so many seconds at the most, and why there is none.

    Refused when it may not hand us any.
    """
    query = "&".join(f"project={project}" for project in projects)
    path = f"/task/get?{query}&count={count}" + (f"&wait={wait}" if wait else "") + (f"&takes={takes}" if takes else "")
    try:
        content = client.call("GET", path).content
    except Refused as refused:
        if refused.status == 200:  # "No task available" is no error
            return [], refused.reason
        raise
    try:
        return [Assignment(task) for task in content["tasks"]], ""
    except (LookupError, TypeError, AttributeError):
        raise Fail(f"{client.server} answered /task/get with something that is no list of tasks") from None


def extend_leases(client: Client, assignments: Sequence[Assignment]) -> list[bool]:
    """Asks for as much time again for each of the tasks. Whether we still hold it. Refused where there is none."""
    wishes = [{"task_id": one.id, "seconds": one.lease, "attempt": one.attempt or 0} for one in assignments]
    now = time.monotonic()
    answers = client.call("POST", "/task/extend", {"extensions": wishes}).content.get("extensions")
    try:
        for assignment, answer in zip(assignments, answers, strict=True):
            assignment.hold_until(now + answer["left"])
        return [answer["held"] for answer in answers]
    except (LookupError, TypeError, ValueError):
        raise Refused(200, "it has answered with something that is no list of leases") from None


def release_body(assignment: Assignment, outcome: Outcome) -> dict[str, Any]:
    """What the tracker is told of a task that has ended."""
    body: dict[str, Any] = {"task_id": assignment.id, "result": outcome.result}
    if assignment.attempt is not None:
        body["attempt"] = assignment.attempt
    if assignment.is_verified:
        body["verification"] = outcome.verification
    if outcome.output is not None:
        body["output"] = outcome.output
    if outcome.delay:
        body["delay"] = outcome.delay
    if outcome.result == FAILED:
        body["error"] = as_text(outcome.error or outcome.reason)[:LONGEST_ERROR]
    if outcome.for_good:
        body["for_good"] = True
    return body


LONGEST_ERROR = 500  # characters of why a task failed: the tracker keeps no more


def as_text(text: str) -> str:
    """The text without what JSON, or the tracker, cannot take."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def are_done(client: Client, projects: Sequence[int]) -> bool:
    """Whether nothing is waiting, delayed, assigned or awaiting verification. Fail when a project is hidden."""
    all_shown = [shown(client, "project", project) for project in projects]
    if not all(all_shown):
        hidden = projects[all_shown.index({})]
        raise Fail(f"{client.server} does not show project {hidden}, so nobody can tell here when it is done")
    return not any(project.get(name) for project in all_shown for name in Overview.UNFINISHED)


def why_nothing(client: Client, projects: Sequence[int], reason: str) -> str:
    """Why there is no task for us, for which the tracker has given this reason."""
    paused = [project for project in projects if shown(client, "project", project).get("paused") is True]
    if paused:
        return f"{NO_TASK}: project {', '.join(map(str, paused))} paused by a manager"
    if "You have failed" in reason:  # or nobody would know why tasks are left
        return f"{NO_TASK}: {printable(reason)}"
    return NO_TASK


class CannotRun(Exception):
    """No process can be started for this task; the text says why. ours: on another machine it may well run."""

    def __init__(self, reason: str, ours: bool = False):
        super().__init__(reason)
        self.ours = ours


class Assignment:
    """A task that is ours until we release it or its lease ends."""

    def __init__(self, task: dict[str, Any]):
        self.task = task
        self.received = time.monotonic()
        self.id: int = task["id"]
        self.recipe: str = task["recipe"]
        project = task.get("project")
        self.project = str(project.get("id", "")) if isinstance(project, dict) else ""
        #: What a task that is a job's brings along; empty for a plain one.
        self.job: dict[str, Any] = task.get("job") or {}
        self.arguments = [_as_text(argument) for argument in self.job.get("arguments") or []]
        #: What people are shown.
        self.name: str = self.job.get("template") or self.recipe
        #: Several workers must report the same.
        self.is_verified = (task.get("verification_count") or 0) > 1
        #: Which assignment of the task it is; None: the tracker does not count them.
        self.attempt: int | None = task.get("attempt")
        #: Whether the tracker can be asked for a longer one; all that tell the lease can.
        self.is_extensible = "lease" in task and not self.job
        self.lease: float = task.get("lease") or task.get("max_assign_time") or math.inf  # seconds
        self.hold_until(self.received + self.lease)

    def hold_until(self, ends: float) -> None:
        """Its lease ends then."""
        self.ends = ends
        #: When it should be released at the latest, a little before the tracker gives it to somebody else.
        self.lease_end = self.ends - min(5, self.lease / 4)

    def time_limit(self, plain: float | None, grace: float) -> float:
        """Seconds that its process may take. A plain task's is `plain`, for which its lease is extended. Where it
        cannot be, or nobody has said how long is long enough, it must be ended before its lease is: the same task would
        hang one worker after the other.
        """
        if self.job:
            return self.job.get("timeout") or math.inf
        if plain and self.is_extensible:
            return plain
        return min(plain or math.inf, max(self.lease - grace - 1, self.lease / 2))


@dataclasses.dataclass
class Invocation:
    """What to start for a task."""

    arguments: list[str]
    environment: dict[str, str]
    stdin: bytes
    is_script: bool
    folder: str | None = None  # in which it is started; ours, unless it is said
    left_out: Sequence[str] = ()  # variables of the job that an environment cannot hold


#: A script that is open for writing cannot be executed, and a process that is just being started holds a copy of every
#: file that is open: so nothing is started while a script is being written.
starting = threading.Lock()


class Terms:
    """What the command line says about every task, and what is started for one: its COMMAND, or the job's script."""

    PLACEHOLDER = re.compile(r"\{(recipe|id|project|job)\}")
    NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
    # One string of an environment may have 128 KiB on Linux; all together have to share 2 MiB with the arguments.
    LONGEST_VALUE, LARGEST_ENVIRONMENT = 100_000, 500_000
    OWN_NAMES = ("TRACKER_TASK", "TRACKER_JOB", "TRACKER_TEMPLATE", "TRACKER_RECIPE", "TRACKER_PROJECT", "TRACKER_VAR_")
    OWN_NAMES += ("TRACKER_ATTACHMENTS",)

    def __init__(self, args: argparse.Namespace, show: Callable[[str], None], client: RunClient):
        """show: with --verbose it gets every line that is printed."""
        self.args = args
        self.show = show
        self.client = client

    @contextlib.contextmanager
    def invocation(self, assignment: Assignment, halt: Halt) -> Iterator[Invocation]:
        """What to start for the task; its script and its attachments are there until the block ends.

        CannotRun says why there is nothing; Halted: halt was set before the attachments had come.
        """
        job, task = assignment.job, json.dumps(assignment.task)
        (environment, left_out), is_script = self._environment(assignment, task), job.get("script") is not None
        if is_script and not self.args.allow_scripts:
            raise CannotRun("this job brings a script, and the worker was started without --allow-scripts")
        command = [] if is_script else self._filled_in(assignment)
        if not is_script and not job.get("attachments"):
            yield Invocation(command, environment, task.encode(), is_script, left_out=left_out)
            return
        try:
            folder = tempfile.TemporaryDirectory(prefix="tracker-", ignore_cleanup_errors=True)
        except OSError as error:
            raise CannotRun(f"no temporary folder for the job: {error}", ours=True) from None
        with folder as path:  # nobody else may look into it
            started_in = None
            if job.get("attachments"):
                attached = Path(path) / "attachments"  # where Testflinger's scripts look for them
                self._fetch(job["attachments"], attached, halt)
                environment["TRACKER_ATTACHMENTS"] = str(attached)
                started_in = path if is_script else None
            if is_script:
                command = self._script(job, Path(path) / "script") + assignment.arguments
            yield Invocation(command, environment, task.encode(), is_script, started_in, left_out)

    def _fetch(self, path: str, folder: Path, halt: Halt) -> None:
        """Unpacks what is attached to a job, which the tracker has at this path, into a new folder."""
        most = self.args.max_attachments * 2**20
        if not path.startswith("/"):
            raise CannotRun(f"its attachments are at no path: {path!r}")
        try:
            folder.mkdir(0o700)
            with tempfile.TemporaryFile(dir=folder.parent) as file:
                self.client.fetch(path, file, most, halt)
                if not file.tell():
                    raise CannotRun("the tracker has none")
                file.seek(0)
                unpack(file, folder, most, halt)
        except Refused as refused:
            raise CannotRun(f"its attachments cannot be fetched: {refused.message}") from None
        except CannotRun as reason:
            raise CannotRun(f"its attachments cannot be had: {reason}", reason.ours) from None
        except OSError as error:
            raise CannotRun(f"its attachments cannot be stored: {error.strerror}", ours=True) from None
        with starting:  # what was being started has held copies of these files, and lets go of them now
            pass

    def _filled_in(self, assignment: Assignment) -> list[str]:
        """The command with the task's values in their places. CannotRun when there is no command."""
        if not self.args.argv:
            raise CannotRun("this task brings no script, and the worker was started without a COMMAND")
        values = {"recipe": assignment.recipe, "id": str(assignment.id), "project": assignment.project}
        values["job"] = assignment.job.get("id", "")
        filled = []
        for argument in self.args.argv:
            if argument == "{arguments}":
                filled += assignment.arguments
            else:
                filled.append(self.PLACEHOLDER.sub(lambda match: values[match[1]], argument))
        return filled

    def _script(self, job: dict[str, Any], path: Path) -> list[str]:
        """Writes the script and returns what runs it, which the job's arguments follow."""
        source = job["script"]["source"]
        try:
            with starting:
                path.write_bytes(source.encode())
                path.chmod(0o700)
        except (OSError, UnicodeEncodeError) as error:
            raise CannotRun(f"the script cannot be written: {error}", ours=isinstance(error, OSError)) from None
        if runas := job.get("runas"):
            try:
                template = shlex.split(runas)
            except ValueError as error:
                raise CannotRun(f"runas {runas!r}: {error}") from None
            return [part.replace("%script%", str(path)) for part in template]
        if os.name != "posix":
            raise CannotRun("a script without a runas template cannot be run on this system", ours=True)
        return [str(path)] if source.startswith("#!") else ["/bin/sh", str(path)]

    def _environment(self, assignment: Assignment, task: str) -> tuple[dict[str, str], list[str]]:
        """Our own environment, but of TRACKER_ what belongs to this task only; the names that do not fit in."""
        job = assignment.job
        ours = {
            "TRACKER_SERVER": self.args.server,
            "TRACKER_TASK_ID": str(assignment.id),
            "TRACKER_PROJECT": assignment.project,
            "TRACKER_RECIPE": assignment.recipe,
            "TRACKER_TASK": task,
        }
        if job:
            ours |= {"TRACKER_JOB": job["id"], "TRACKER_TEMPLATE": job.get("template") or ""}
        # A variable like BASH_ENV or LD_PRELOAD is as good as a script. Ours carry a prefix because anybody who may
        # trigger the template chooses their names.
        prefixes = {"variables": "TRACKER_VAR_"} | ({"env": ""} if self.args.allow_scripts else {})
        given = [(prefix, *pair) for kind, prefix in prefixes.items() for pair in (job.get(kind) or {}).items()]
        ours |= {prefix + name: _as_text(value) for prefix, name, value in given if self.NAME.fullmatch(name)}
        if "THEEYE_JOB" in ours:  # which a script of theeye.io's finds beside this
            ours["THEEYE_API_URL"] = json.dumps(self.args.server)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(self.OWN_NAMES)}
        fitting = self._fitting(ours)
        return inherited | fitting, [name for prefix, name, _ in given if prefix + name not in fitting]

    def _fitting(self, values: dict[str, str]) -> dict[str, str]:
        """Those values that an environment can hold; the others are in the task on standard input only."""
        fitting, size = {}, 0
        for name, value in values.items():
            try:
                length = len(os.fsencode(value))
            except UnicodeEncodeError:
                continue
            if "\0" not in value and length < self.LONGEST_VALUE and size + length < self.LARGEST_ENVIRONMENT:
                fitting[name] = value
                size += length
        return fitting


def _as_text(value: Any) -> str:
    """Text as it is, nothing as an empty text, anything else as JSON."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


class Guarded:
    """What tarfile reads: of a file that may be packed so many bytes in all, and none at once that fill the memory."""

    MOST_AT_ONCE = 2**20  # headers say their own size

    def __init__(self, file: BinaryIO, most: int):
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self.source = gzip.GzipFile(fileobj=file, mode="rb") if packed else file
        self.tell, self.seek, self.left = self.source.tell, self.source.seek, most

    def read(self, size: int) -> bytes:
        piece = self.source.read(min(size, self.left + 1, self.MOST_AT_ONCE + 1))
        self.left -= len(piece)
        if self.left < 0 or len(piece) > self.MOST_AT_ONCE:
            raise CannotRun("unpacked they are too large")
        return piece


MOST_ATTACHED = 100_000  # files
#: What a disk or a system is short of, whatever is in a tar.
SHORTAGES = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def unpack(file: BinaryIO, folder: Path, most: int, halt: Halt) -> None:
    """Unpacks a tar, which gzip may have packed, into a folder, and touches nothing outside of it.

    CannotRun for one that is damaged, that would reach outside (absolute paths, `..`, links, devices), or that is
    larger than so many bytes; Halted when halt was set.
    """
    if not hasattr(tarfile, "data_filter"):
        raise CannotRun("unpacking them safely takes Python 3.11.4 or newer", ours=True)
    try:
        with tarfile.open(fileobj=Guarded(file, most), mode="r:") as tar:
            for number, member in enumerate(tar, 1):
                halt.check()
                if number > MOST_ATTACHED:
                    raise CannotRun(f"more than {MOST_ATTACHED:,} files")
                for name in (member.name, member.linkname if member.islnk() else ""):
                    refuse_links(folder, name)
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, ArithmeticError) as error:
        raise CannotRun(f"not a tar that can be unpacked: {error}") from None
    except OSError as error:
        raise CannotRun(f"{error.strerror}: {error.filename}", ours=error.errno in SHORTAGES) from None


def refuse_links(folder: Path, name: str) -> None:
    """CannotRun when a symbolic link is on the way to what a tar names: no link must lead what is written elsewhere.

    No real tar has that, and there are versions of Python whose filter for tars can be got past by such links.
    """
    place = folder
    for part in name.strip("/").split("/"):
        place /= part
        if place.is_symlink():
            raise CannotRun(f"{printable(name)} is behind a link")


# ── Run: processes ──────────────────────────────────────────────────────────────────────────────────────────────────

# The name of the stream, a line without its end, whether it goes on the last one, whether it had an end.
Take = Callable[[str, str, bool, bool], None]


class Stream(threading.Thread):
    """Reads what a process and its children write to one of its streams, line by line, until it is told to finish.

    The end of a pipe is no sign of the end: a child that has left its group may keep it open for ever. So we keep a
    writing end as well, and finish by writing a mark behind everything that was written so far.
    """

    LONGEST_LINE = 60_000  # bytes; a longer one is taken in pieces

    def __init__(self, name: str, take: Take):
        super().__init__(name=name, daemon=True)
        self.take = take
        self.mark = secrets.token_hex(16).encode()
        self.is_continued = False
        self.reading, self.writing = os.pipe()

    def run(self) -> None:
        """Takes what is written, until the mark comes."""
        begun = mark = b""
        while not mark:
            written, mark, _ = (begun + os.read(self.reading, 65536)).partition(self.mark)
            *lines, begun = written.split(b"\n")
            for line in lines:
                self._end(line)
            begun = self._pieces(begun, self.LONGEST_LINE + len(self.mark))
        if begun:
            self._end(begun, has_end=False)
        self.close()

    def _end(self, line: bytes, has_end: bool = True) -> None:
        """Takes a line, or the rest of one."""
        self._take(self._pieces(line, self.LONGEST_LINE).removesuffix(b"\r"), goes_on=False, has_end=has_end)

    def _pieces(self, line: bytes, most: int) -> bytes:
        """Takes pieces of whole characters from a line, until it has no more bytes than that; returns the rest."""
        while len(line) > most:
            end = self.LONGEST_LINE
            while end > self.LONGEST_LINE - 3 and line[end] & 0xC0 == 0x80:
                end -= 1
            self._take(line[:end], goes_on=True, has_end=False)
            line = line[end:]
        return line

    def _take(self, piece: bytes, goes_on: bool, has_end: bool) -> None:
        """Hands on a piece of a line, which goes on in the next one or ends here."""
        self.take(self.name, piece.decode(errors="replace").replace("\0", "\ufffd"), self.is_continued, has_end)
        self.is_continued = goes_on

    def finish(self) -> None:
        """Returns when everything that was written before this call has been taken."""
        while True:
            try:
                os.write(self.writing, self.mark)
                break
            except BlockingIOError:  # full, and the process has made it non-blocking
                time.sleep(0.01)
        self.join()

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class Orphans:
    """What commands leave behind outside of their process groups (setsid), where the system gives us that (Linux).

    Whose they are is told by the environment with which they were started, so one that has got another goes on.
    """

    PR_SET_CHILD_SUBREAPER = 36
    MOST_ROUNDS = 100  # whoever forks faster than it is killed is left to itself

    are_ours = False
    known: ClassVar[set[int]] = set()  # the processes that others wait for

    @classmethod
    def adopt(cls) -> None:
        """From now on, orphans become our children, and not those of the system's first process."""
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            cls.are_ours = ctypes.CDLL(None).prctl(cls.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    @classmethod
    def end(cls, marks: list[bytes]) -> None:
        """Kills the orphans that have these variables, and theirs; takes notice of those that have ended."""
        for _ in range(cls.MOST_ROUNDS if cls.are_ours else 0):
            with starting:  # else one that is being started is not known yet
                killed = [pid for pid in cls._children() if cls._ended(pid, marks)]
            if not killed:
                return
            time.sleep(0.005)

    @classmethod
    def _children(cls) -> Iterator[int]:
        """Our children that nobody waits for."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
                if int(parent) == os.getpid() and int(folder.name) not in cls.known:
                    yield int(folder.name)

    @classmethod
    def _ended(cls, pid: int, marks: list[bytes]) -> bool:
        """Whether the child was one of these, and had not ended by itself."""
        with contextlib.suppress(OSError):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                return False
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if all(mark in variables for mark in marks):
                os.kill(pid, signal.SIGKILL)
                return True
        return False


class Process:
    """A command in a session and process group of its own, so that it can be ended together with its children."""

    LINGER = 1.0  # seconds that its children may go on without it
    MARKS = ("TRACKER_SERVER", "TRACKER_TASK_ID")
    LACKING = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC))

    def __init__(self, invocation: Invocation, take: Take):
        """Starts it; take is called by other threads. CannotRun when it cannot be started."""
        self.began = time.monotonic()
        self.is_doomed = self.has_exited = self.is_over = False
        self.streams: list[Stream] = []
        try:
            for name in ("stdout", "stderr"):
                self.streams.append(Stream(name, take))
                self.streams[-1].start()
            self.popen = self._start(invocation)
            self.marks = [f"{name}={invocation.environment[name]}".encode() for name in self.MARKS]
        except (OSError, ValueError, IndexError, RuntimeError) as error:
            for stream in self.streams:
                if stream.is_alive():
                    stream.finish()
                else:
                    stream.close()
            raise self._explained(error, invocation) from None

    def _start(self, invocation: Invocation) -> subprocess.Popen:
        """The running process. Raises what subprocess does when there is none."""
        # From a file: a command that does not read all of it, or nothing, neither blocks nor breaks a pipe.
        with tempfile.TemporaryFile() as stdin, starting:
            stdin.write(invocation.stdin)
            stdin.seek(0)
            popen = subprocess.Popen(
                invocation.arguments,
                env=invocation.environment,
                cwd=invocation.folder,
                stdin=stdin,
                stdout=self.streams[0].writing,
                stderr=self.streams[1].writing,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            Orphans.known.add(popen.pid)
            return popen

    def _explained(self, error: Exception, invocation: Invocation) -> CannotRun:
        """Why nothing could be started, and whether another machine might do better."""
        if not isinstance(error, OSError):
            # RuntimeError: no thread is left here; else a NUL or half a character in an argument, or no argument at all
            return CannotRun(f"cannot start the command: {error}", ours=isinstance(error, RuntimeError))
        ours = error.errno in self.LACKING or not (invocation.is_script or error.errno == errno.E2BIG)
        name = printable(invocation.arguments[0])
        return CannotRun(f"cannot start {name}: {error.strerror}{self._hint(error, invocation)}", ours)

    def _hint(self, error: OSError, invocation: Invocation) -> str:
        """What to do about an error that is not clear by itself; empty when it is."""
        if error.errno == errno.E2BIG and invocation.is_script:
            return "; long values reach a script on standard input, where the whole job is, not as its arguments"
        if error.errno == errno.E2BIG:
            return "; leave {recipe} out of the arguments and read standard input"
        program = Path(invocation.arguments[0])
        if error.errno != errno.ENOENT or not program.is_file():
            return ""
        with contextlib.suppress(OSError), program.open("rb") as file:
            line = file.readline(200)
            if line.endswith(b"\r\n"):
                return "; its #! line ends in a carriage return: give the script line ends of \\n instead of \\r\\n"
            return f"; its first line, {printable(line.decode(errors='replace').strip())}, names no program here"
        return ""

    def wait(self) -> int:
        """Waits for its end and ends what it has left behind. The exit status, or minus the number of a signal."""
        code = self.popen.wait()
        self.has_exited = True
        end = time.monotonic() + self.LINGER
        while not self.is_doomed and self._signal(0) and time.monotonic() < end:
            time.sleep(0.02)
        self.kill()
        self.is_over = True
        Orphans.known.discard(self.popen.pid)
        Orphans.end(self.marks)
        for stream in self.streams:
            stream.finish()
        return code

    def terminate(self) -> None:
        """Asks it and its children to end."""
        self.is_doomed = True
        if os.name != "posix":
            self.kill()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and its children."""
        self._signal(getattr(signal, "SIGKILL", 0))
        if os.name != "posix" and self.popen.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.popen.pid)], capture_output=True)

    def _signal(self, number: int) -> bool:
        """Whether there was anybody to get the signal. Without groups (Windows) there never is."""
        if self.is_over or os.name != "posix":  # after its end, the number may be another group's
            return False
        try:
            os.killpg(self.popen.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


# ── Run: what a process prints ──────────────────────────────────────────────────────────────────────────────────────


class Tail:
    """The last lines of something, as many as fit."""

    def __init__(self, size: int):
        self.size = size
        self.lines: collections.deque[str] = collections.deque()
        self.length = 0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.length += len(line) + 1
        while self.length - 1 > self.size and len(self.lines) > 1:
            self.length -= len(self.lines.popleft()) + 1

    def text(self) -> str:
        """What is kept; of a single line that does not fit, its end."""
        return "\n".join(self.lines)[-self.size :]

    def last(self) -> str:
        """The last line that is not blank, without the blanks around it."""
        return next((line.strip() for line in reversed(self.lines) if line.strip()), "")


class TaskLog:
    """The lines of a task that the tracker has not stored yet, numbered from 0 within the assignment.

    Who adds a line to a full one waits until some were sent; which holds up, by its pipe, the command that prints them.
    Only while nothing can be sent, lines are dropped instead, and counted in one that is not.
    """

    MOST = 512 * 1024  # characters that wait, with some for each line
    LINE_COSTS = 100
    BATCH = 500, 80_000  # lines and characters in one request: less than 1 MiB, whatever characters they are
    LOOK = 0.2  # seconds between two looks whether the tracker is away

    def __init__(self, is_away: Callable[[], bool]) -> None:
        self.is_away = is_away
        self.changed = threading.Condition()
        self.entries: collections.deque[dict[str, Any]] = collections.deque()
        self.size = 0
        self.first = 0  # the number of entries[0]
        self.dropped = 0
        self.is_closed = False

    def add(self, level: str, scope: str, message: str) -> None:
        """One more line; waits while there is no room and somebody takes the lines."""
        with self.changed:
            while self._is_full() and not self.is_away():
                self.changed.wait(self.LOOK)
            if self.is_closed:
                return
            if self._is_full():
                self.dropped += 1
                return
            self._say_what_was_dropped()
            self._append(level, scope, message)

    def _is_full(self) -> bool:
        return self.size > self.MOST and not self.is_closed

    def end(self, error: str = "") -> None:
        """No more lines will come but this one, which is never dropped."""
        with self.changed:
            if self.is_closed:
                return
            self._say_what_was_dropped()
            if error:
                self._append("error", "run", error)

    def _say_what_was_dropped(self) -> None:
        if self.dropped:
            self._append("info", "run", f"{self.dropped:,} lines dropped here: the tracker was away for too long")
            self.dropped = 0

    def _append(self, level: str, scope: str, message: str) -> None:
        self.entries.append({"message": message, "timestamp": int(time.time()), "level": level, "scope": scope})
        self.size += len(message) + self.LINE_COSTS

    def batch(self) -> list[dict[str, Any]]:
        """The next entries to send, which stay here until sent() tells that they were stored."""
        lines, size = self.BATCH
        taken = []
        with self.changed:
            for entry in itertools.islice(self.entries, lines):
                size -= len(entry["message"])
                if taken and size < 0:
                    break
                taken.append(entry)
        return taken

    def has_full_batch(self) -> bool:
        """Whether so much waits that it is worth a request at once."""
        lines, size = self.BATCH
        return len(self.entries) >= lines or self.size >= size

    def sent(self, count: int) -> None:
        """Forgets so many lines, which the tracker has stored."""
        with self.changed:
            self.first += count
            for _ in range(min(count, len(self.entries))):  # it may have been closed meanwhile
                self.size -= len(self.entries.popleft()["message"]) + self.LINE_COSTS
            self.changed.notify_all()

    def close(self) -> None:
        """Forgets every line, and those that will come."""
        with self.changed:
            self.is_closed = True
            self.entries.clear()
            self.size = 0
            self.changed.notify_all()


class Printed:
    """Takes the lines of one process: into the job's log, and as tails into the result."""

    LONGEST_LAST_LINE = 512 * 1024  # characters; it may be JSON, which is worth nothing in part
    LONGEST_STATE = 10_000

    def __init__(self, log: TaskLog | None, stderr_level: str, verified: bool, echo: Callable[[str], None] | None):
        self.log = log
        self.levels = {"stdout": "info", "stderr": stderr_level}
        self.echo = echo
        self.lock = threading.Lock()
        self.tail = Tail(64 * 1024)
        self.stderr = Tail(2000)
        self.has_end = False
        self.line = self.last_line = ""  # of standard output
        self.hash = hashlib.sha256() if verified else None

    def take(self, stream: str, line: str, is_continued: bool, has_end: bool) -> None:
        """Takes a line of one of the streams; waits while the log is full."""
        with self.lock:
            self.tail.add(line)
            self.has_end = has_end
            if stream == "stderr":
                self.stderr.add(line)
            else:
                self._take_last_line(line, is_continued)
                if self.hash:
                    self.hash.update(line.encode() + b"\n")
            if self.log is not None:
                self.log.add(self.levels[stream], stream, line)
            if self.echo:
                self.echo(line)

    def _take_last_line(self, line: str, is_continued: bool) -> None:
        """Keeps the line, together with what it goes on; of what gets too long only the last piece."""
        fits = len(self.line) + len(line) <= self.LONGEST_LAST_LINE
        self.line = self.line + line if is_continued and fits else line
        if self.line.strip():
            self.last_line = self.line

    def log_end(self) -> str:
        """The end of all that was printed, as it was printed."""
        return self.tail.text() + "\n" * self.has_end

    def result_line(self) -> str:
        """The last line that is not blank: whole if it may be JSON, else its end."""
        return self.last_line if self.last_line.lstrip()[:1] in ("{", "[") else self.last_line[-Stream.LONGEST_LINE :]

    def state(self) -> str:
        """How a script says that it went, as agents of theeye.io tell it: by its last line, unless that is JSON."""
        line = self.result_line()
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(line), dict | list):
                return ""
        return line[: self.LONGEST_STATE]

    def verification(self) -> int:
        """The hash of standard output, which equal results of different workers have in common."""
        return int.from_bytes(self.hash.digest()[:8], "big") if self.hash else 0


# ── Run: one task ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Outcome:
    """What has become of a task, as it will be released."""

    result: int
    reason: str  # for people
    output: Any = None
    verification: int = 0
    unfit: bool = False  # this worker could not run any other task either
    is_held: bool = False  # skipped, and released later: at once, it would be the next one again
    delay: float = 0.0  # seconds for which nobody is assigned a skipped one
    error: str = ""  # of a failed one: what the tracker is to group it by, if that is not the reason
    for_good: bool = False  # failed, and not to be retried


class Cause(enum.Enum):
    """Why we end a process that has not ended by itself."""

    TIMEOUT = "timed out"
    STOPPED = "stopped together with this worker"
    TAKEN_AWAY = "cancelled, or its lease has ended"


class Work(threading.Thread):
    """One task: a thread that does it, and tells what came of it in `outcome`.

    tick(), which the Runner calls a few times a second, ends one whose time is over or that stop() has doomed.
    """

    DELIVERY = 10.0

    def __init__(
        self, assignment: Assignment, args: argparse.Namespace, is_away: Callable[[], bool], ended: Callable[..., None]
    ):
        """ended: is called with this thread and its outcome, when that was found out."""
        super().__init__(name=f"task {assignment.id}", daemon=True)
        self.assignment = assignment
        self.args = args
        self.ended = ended
        self.outcome: Outcome | None = None
        self.release_at = -math.inf
        self.client: RunClient | None = None  # by which what a job has to say is brought
        self.is_out = False  # somebody is on the way for it
        self.cause: Cause | None = None
        self.began = time.monotonic()
        self.limit = assignment.time_limit(args.timeout, args.kill_grace)
        self.log = TaskLog(is_away)
        #: When the tracker last told that the task is ours.
        self.held_at = assignment.received
        #: Until when we want to hold it: then it is released, also when its process had to be killed.
        self.needed = self.began + self.limit + args.kill_grace + self.DELIVERY if args.timeout else -math.inf

    def end(self, outcome: Outcome) -> None:
        """Tells the outcome. No line is logged after it."""
        self.log.end(self.why(outcome) if outcome.result == FAILED else "")
        self.ended(self, outcome)

    def why(self, outcome: Outcome) -> str:
        """What the tracker is to log of a failure."""
        return outcome.reason

    def has_ended(self) -> bool:
        """Whether it has come to an end by itself, and only that is to be told."""
        return self.outcome is not None

    def stop(self, cause: Cause) -> None:
        """Has it ended; the first cause is the one that counts. What has ended by itself keeps its result."""
        if cause is Cause.TAKEN_AWAY:
            self.log.close()  # nobody takes its lines any more, and its process must not wait for that
        elif self.has_ended():
            return
        self.cause = self.cause or cause

    def wants_time(self, now: float) -> bool:
        """Whether its lease is to be extended: each time that half of it is over, so a lost answer does no harm."""
        assignment = self.assignment
        is_wanted = self.outcome is None or not self.outcome.is_held  # its result may have to wait
        lasts = is_wanted and self.cause is not Cause.TAKEN_AWAY and assignment.ends < self.needed
        return assignment.is_extensible and lasts and assignment.ends - now < assignment.lease / 2

    def keep_to_lease(self) -> None:
        """It gets no more time, so its process must end before its lease does."""
        self.assignment.is_extensible = False
        self.limit = min(self.limit, self.assignment.ends - self.began - self.args.kill_grace - 1)

    def fails_instead(self, refused: Refused) -> bool:
        """Whether it is to be released as failed, as the tracker has refused its release."""
        return False

    def tick(self, now: float) -> None:
        """Ends it when its time has come."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Ends it at once, as we leave."""


class Execution(Work):
    """One task that a process does: starts it, waits for it, and judges its end.

    A process whose time is over is ended kindly first, by force after a grace. Its time is also that in which its
    attachments must come.
    """

    LONGEST_FETCH = 3600.0  # seconds

    def __init__(self, assignment: Assignment, terms: Terms, is_away: Callable[[], bool], ended: Callable[..., None]):
        super().__init__(assignment, terms.args, is_away, ended)
        self.terms = terms
        self.process: Process | None = None
        self.kill_at = math.inf
        self.halt = Halt()  # of what comes before the process
        echo = (lambda line: terms.show(f"{assignment.id}: {line}")) if self.args.verbose else None
        # Who runs a million plain tasks does not want a million lines: of those only a failure is logged.
        log = self.log if assignment.job else None
        self.printed: Printed | None = Printed(log, self.args.stderr_level, assignment.is_verified, echo)

    def run(self) -> None:
        try:
            with self.terms.invocation(self.assignment, self.halt) as invocation:
                if invocation.left_out:
                    names = ", ".join(invocation.left_out)
                    self.log.add("info", "run", f"left out of the environment, which cannot hold them: {names}"[:2000])
                self.process = Process(invocation, self.printed.take)
                code = self.process.wait()
            outcome = self._judged(code, time.monotonic() - self.process.began)
        except CannotRun as reason:
            outcome = Outcome(SKIPPED, str(reason), unfit=True)
            if not reason.ours:
                outcome = Outcome(FAILED, str(reason), self._output(None, 0.0))
        except Halted:
            outcome = Outcome(SKIPPED, self.cause.value)
            if self.cause is Cause.TIMEOUT:
                outcome = Outcome(FAILED, "its attachments did not come in time", self._output(None, 0.0))
        except Fail as failure:
            outcome = Outcome(SKIPPED, str(failure), unfit=True)
        except Exception as error:
            outcome = Outcome(SKIPPED, fault(error), unfit=True)
        self.end(outcome)

    def end(self, outcome: Outcome) -> None:
        super().end(outcome)
        self.printed = None  # it may be long until the release

    def why(self, outcome: Outcome) -> str:
        said = self.printed.stderr.text() or self.printed.last_line[-2000:]
        # What a job has said is in its log already.
        return outcome.reason + (f"; it said last:\n{said}" if said and not self.assignment.job else "")

    def _judged(self, code: int, seconds: float) -> Outcome:
        """What an exit status (or minus the number of a signal), or our having ended it, makes of the task."""
        output = self._output(code, seconds)
        if self.cause is Cause.TIMEOUT:
            return Outcome(FAILED, f"killed after {duration(self.limit)}", output)
        if self.cause is not None:
            return Outcome(SKIPPED, self.cause.value)
        reason = f"killed by {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        if code == 0:
            return Outcome(DONE, reason, output, self.printed.verification())
        if code in (self.args.skip_status or ()):
            return Outcome(SKIPPED, reason, output, is_held=True)
        last = self.printed.stderr.last()
        return Outcome(FAILED, reason, output, error=f"{reason}: {last}" if last else reason)

    def _output(self, code: int | None, seconds: float) -> dict[str, Any] | None:
        """The result of a job."""
        if not self.assignment.job:
            return None
        whole, part = divmod(round(seconds * 1e9), 10**9)
        said = {"state": self.printed.state()} if self.assignment.job.get("script") else {}
        return {
            **said,
            "code": code if code is None or code >= 0 else None,
            "log": self.printed.log_end(),
            "lastline": self.printed.result_line(),
            "signal": _signal_name(-code) if code is not None and code < 0 else None,
            "killed": self.cause is Cause.TIMEOUT,
            "times": {"seconds": whole, "nanoseconds": part},
        }

    def has_ended(self) -> bool:
        return self.process is not None and self.process.has_exited

    def stop(self, cause: Cause) -> None:
        super().stop(cause)
        if self.cause is not None:
            self.halt.set()

    def tick(self, now: float) -> None:
        if self.has_ended():
            return
        limit = min(self.limit, self.LONGEST_FETCH) if self.process is None else self.limit
        if self.cause is None and now - self.began >= limit:
            self.stop(Cause.TIMEOUT)
        if self.process is None:
            return
        if self.cause is not None and self.kill_at == math.inf:
            self.kill_at = now + self.args.kill_grace
            self.process.terminate()
        if now >= self.kill_at:
            self.process.kill()

    def abandon(self) -> None:
        if self.process is not None:
            self.process.kill()


def _signal_name(number: int) -> str:
    """What a signal is called here, or its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ── Run: delivery ───────────────────────────────────────────────────────────────────────────────────────────────────


class Halted(Exception):
    """This thread should end: a signal has come, or there is nothing left to do."""


class Halt(threading.Event):
    """What Interrupts are to the main thread, to another one: its Client waits with it, and set() ends the wait."""

    def deferred(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def check(self) -> None:
        """Raises Halted once set() was called."""
        if self.is_set():
            raise Halted("closed, or told to end")

    def sleep(self, seconds: float) -> None:
        """Sleeps for so long; raises Halted as soon as set() is called."""
        self.wait(seconds)
        self.check()


class Unheard(Display):
    """Says nothing: of an outage the Courier tells, who hears of it as well."""

    def lost(self, server: str, reason: str) -> None:
        pass

    def back(self, server: str, seconds: float) -> None:
        pass

    def waiting(self, reason: str) -> None:
        pass


class RunClient(Client):
    """A Client that several threads may have copies of, each with interrupts of its own."""

    INTERNAL_ERRORS_BORNE = 30  # a result that waits deserves more patience than a file that can be sent again

    AWAY = 10.0  # seconds without an answer after which we do not wait for one before we go on

    calling_since = math.inf

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Answer:
        """As a Client's, and others can tell how long it takes."""
        self.calling_since = time.monotonic()
        try:
            return super().call(method, path, body, kind)
        finally:
            self.calling_since = math.inf
            self.display.answered()

    def fetch(self, path: str, file: BinaryIO, most: int, halt: Halt) -> None:
        """Writes what the tracker has at this path to a file. Waits and raises as call() does, until halt is set.

        CannotRun when it is more than so many bytes.
        """
        quiet = copy.copy(self)
        quiet.interrupts, quiet.display = halt, Unheard()

        def receive() -> httpx.Response:
            file.seek(0)
            file.truncate()
            timeout = httpx.Timeout(30)
            with self.stream("GET", path, self._headers(), timeout=timeout, longest=LONGEST_MOVE) as response:
                for piece in response.iter_bytes() if response.status_code == 200 else ():
                    halt.check()
                    if file.tell() + len(piece) > most:
                        raise CannotRun(f"more than {most:,} bytes")
                    file.write(piece)
                return response if response.status_code == 200 else quiet._read(response, path)

        response, _ = quiet._answered(receive)
        if response.status_code != 200:
            quiet._content(response, path)

    def is_away(self) -> bool:
        """Whether the server has not answered for a while."""
        return time.monotonic() - self.calling_since > self.AWAY

    def copy(self) -> tuple[RunClient, Halt]:
        """A copy for another thread, and what stops it."""
        other = self.another()
        other.interrupts = halt = Halt()
        return other, halt

    def another(self) -> RunClient:
        """A copy for another thread, which the same stops."""
        other = copy.copy(self)  # httpx's own client is made to be shared
        other.calling_since = math.inf
        return other


class Keeper(threading.Thread):
    """Extends the leases of tasks, whatever the Courier waits for meanwhile."""

    PAUSE = 0.25  # seconds between two looks whether a lease is to be extended
    TOGETHER = 500  # tasks in one request; trackers take 1000

    def __init__(self, runner: Runner, client: RunClient):
        super().__init__(name="keeper", daemon=True)
        self.runner = runner
        self.client = client

    def run(self) -> None:
        with self.runner.minding():
            while True:
                self.keep()
                self.client.interrupts.sleep(self.PAUSE)

    def keep(self) -> None:
        """Extends the leases of which half is over."""
        now = time.monotonic()
        with self.runner.changed:
            ending = [execution for execution in self.runner.unsettled if execution.wants_time(now)]
        for start in range(0, len(ending), self.TOGETHER):
            self._extend(ending[start : start + self.TOGETHER])

    def _extend(self, executions: list[Work]) -> None:
        """Asks for more time for these tasks, and heeds what the tracker says of them."""
        now = time.monotonic()
        try:
            answers = extend_leases(self.client, [one.assignment for one in executions])
        except Refused as refused:
            self.runner.display.notice(f"the leases of {len(executions)} tasks are not extended: {refused.message}")
            for execution in executions:
                execution.keep_to_lease()
            return
        for execution, is_held in zip(executions, answers, strict=True):
            execution.held_at = now
            if not is_held:
                execution.stop(Cause.TAKEN_AWAY)


class Courier(threading.Thread):
    """Brings log lines and results to the tracker, and kills what the tracker says is not ours any more.

    There is one, who brings those of plain tasks, many together, and sends out another one for what a job has to say:
    that may be large, and the tracker or a proxy may have it wait, for which no other task is to wait. Only one at a
    time goes for a job, so what a task has to say arrives in the order in which it was said.
    """

    PAUSE = 0.25  # seconds between two batches of the same log, unless the next one is full
    TOGETHER = 500  # tasks in one request; trackers take 1000
    HELD_PER_SECOND = 20  # requests that ask whether held tasks are still ours

    def __init__(self, runner: Runner, client: RunClient, job: Work | None = None):
        """job: for which this one goes, once."""
        super().__init__(name=f"courier of {job.name}" if job else "courier", daemon=True)
        self.runner = runner
        self.client = client
        self.job = job

    def run(self) -> None:
        with self.runner.back_from(self.job), self.runner.minding(hopeless=True):
            try:
                self._deliver_all(self._deliver)
            except (Halted, Fail):
                raise
            except Exception as error:
                self.runner.fail(Fail(fault(error)))
                self._deliver_all(self._deliver_without_logs)

    def _deliver_all(self, deliver: Callable[[list[Work]], None]) -> None:
        """Has everything delivered that there is, again and again; of a job, what there is now."""
        while True:
            self.client.interrupts.check()
            deliver([self.job] if self.job else self.runner.undelivered(self.PAUSE))
            if self.job:
                return

    def _deliver(self, executions: list[Work]) -> None:
        """Brings the lines of these tasks, and the results of those that are due."""
        due = []
        for execution in executions:
            if execution.assignment.job and not self.job and self._goes_for(execution):
                continue
            is_due = self.runner.is_due(execution)  # before the lines: once it has ended, no further line comes
            self._send_log(execution, all_of_it=is_due)
            if is_due:
                due.append(execution)
        self._release_all(due)

    def _goes_for(self, job: Work) -> bool:
        """Whether another one goes for this job, or nobody need. Not if this system has no thread left."""
        if not (self.runner.is_due(job) or job.log.entries or self._is_silent(job)):
            return True
        job.is_out = True
        try:
            Courier(self.runner, job.client or self.client, job).start()
        except RuntimeError:
            job.is_out = False
        return job.is_out

    def _deliver_without_logs(self, executions: list[Work]) -> None:
        """What is left to be done after a fault of ours."""
        for execution in executions:
            execution.log.close()
            if execution.assignment.job and not self.job and self._goes_for(execution):
                continue
            if self.runner.is_due(execution):
                self._release(execution)

    def _send_log(self, execution: Work, all_of_it: bool) -> None:
        """Sends a batch of the task's lines, or all; none at all now and then, to hear whether it is still ours."""
        while execution.cause is not Cause.TAKEN_AWAY:
            entries = execution.log.batch()
            if not entries and (all_of_it or not self._is_silent(execution)):
                return
            try:
                self._post_log(execution, entries)
            except Refused as refused:  # a log that is not taken is no reason to lose the result
                self.runner.display.notice(f"log lines of task {execution.assignment.id} refused: {refused.message}")
                execution.log.close()
                execution.held_at = math.inf
                return
            if not all_of_it:
                return

    def _is_silent(self, execution: Work) -> bool:
        """Whether it is long since the tracker told that the task is ours."""
        many_held = 0 if execution.outcome is None else len(self.runner.held) / self.HELD_PER_SECOND
        silence = max(self.runner.args.heartbeat, many_held)
        return execution.cause is not Cause.TAKEN_AWAY and time.monotonic() - execution.held_at >= silence

    def _post_log(self, execution: Work, entries: list[dict[str, Any]]) -> None:
        """Sends these lines, and heeds what the tracker says of the task. Refused when it does not take them."""
        body = {"task_id": execution.assignment.id, "first": execution.log.first, "entries": entries}
        answer = self.client.call("POST", "/task/log", body)
        execution.held_at = time.monotonic()
        if answer.content.get("held") is False:
            execution.stop(Cause.TAKEN_AWAY)
        elif entries and execution.assignment.job and self._is_full(answer):
            execution.log.close()  # the tracker keeps only so much of a job's log, and has said so there
        elif entries:
            execution.log.sent(len(entries))

    def _is_full(self, answer: Answer) -> bool:
        """Whether no further line of a job's log is stored, and not just those for which there was no room now."""
        return answer.content.get("stored") == 0 and not answer.repeated and not answer.content.get("dropped_by")

    def _release_all(self, due: list[Work]) -> None:
        """Releases these tasks, the plain ones together; one by one those of which the tracker refuses one."""
        plain = [one for one in due if one.outcome.output is None and one.cause is not Cause.TAKEN_AWAY]
        for start in range(0, len(plain), self.TOGETHER):
            several = plain[start : start + self.TOGETHER]
            if len(several) > 1:
                with contextlib.suppress(Refused):
                    self._release_together(several)
        for execution in due:
            if execution in self.runner.unsettled:
                self._release(execution)

    def _release_together(self, executions: list[Work]) -> None:
        """Releases all of them; none when the tracker refuses one, which raises Refused."""
        answer = self.client.call("POST", "/task/bulk_release", {"releases": list(map(self._body, executions))})
        for execution, updated in zip(executions, answer.content["updated"], strict=True):
            self._settle(execution, updated, answer)

    def _release(self, execution: Work) -> None:
        """Releases a task, unless it is not ours any more."""
        if execution.cause is Cause.TAKEN_AWAY:
            self.runner.settle(execution, counted=False)
            return
        try:
            answer = self._post_release(self._body(execution))
        except Refused as refused:
            if execution.fails_instead(refused):
                self._release(execution)
            else:
                self.runner.settle(execution, counted=False, refusal=refused.message)
        else:
            self._settle(execution, bool(answer.content.get("updated")), answer)

    def _settle(self, execution: Work, updated: bool, answer: Answer) -> None:
        """Settles a task whose release the tracker took, and says to have been updated by it."""
        # A release that was sent twice, or waits for other workers' verification, need not have changed anything.
        self.runner.settle(execution, updated or answer.repeated or execution.assignment.is_verified)

    def _body(self, execution: Work) -> dict[str, Any]:
        """What the tracker is told of a task that has ended."""
        return release_body(execution.assignment, execution.outcome)

    def _post_release(self, body: dict[str, Any], may_shorten: tuple[str, ...] = ("log", "lastline")) -> Answer:
        """Releases the task, with less of what it printed if that is too much for the tracker."""
        try:
            return self.client.call("POST", "/task/release", json.dumps(body, ensure_ascii=False).encode())
        except Refused as refused:
            said = body.get("output")
            may_shorten = tuple(name for name in may_shorten if isinstance(said, dict) and name in said)
            if refused.status not in (400, 408, 413) or not may_shorten:
                raise
        name, *others = may_shorten
        shorter = {**body["output"], name: body["output"][name][-2000:]}
        return self._post_release({**body, "output": shorter}, tuple(others))


# ── Run: taking tasks ───────────────────────────────────────────────────────────────────────────────────────────────


def what_is_taken(args: argparse.Namespace) -> str:
    """What `worker.py run` can do, as the tracker names it; nothing is said of a library's function."""
    if not hasattr(args, "argv"):
        return ""
    return ("all" if args.argv else "scripts") if args.allow_scripts else "commands"


class Taker(threading.Thread):
    """Asks the tracker for as many tasks as can be started at once, and never for one more."""

    WAIT = 3  # seconds that a request waits for a task; a stop waits for its answer
    FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
    WAIT_FOR_OURS = 1  # the same while a task of ours may be the last one
    LOOK = 20.0  # seconds between two looks why there is no task

    admission: Admission | None = None  # waits for access; None: without it the run ends
    until_done = False  # end when nothing is left of the projects

    def __init__(self, runner: Runner, client: RunClient):
        super().__init__(name="taker", daemon=True)
        self.runner = runner
        self.client = client
        self.projects: list[int] = runner.args.project
        self.takes = what_is_taken(runner.args)  # which a job that waits tells its manager
        self.until_empty: bool = runner.args.until_empty
        self.wait = 0 if self.until_empty else self.WAIT
        self.reason = ""
        self.is_last = False  # if there is no task now, none will come
        self.pause = self.FIRST_PAUSE
        self.next_look = 0.0

    def run(self) -> None:
        try:
            with self.runner.minding():
                while wanted := self.runner.wanted():
                    self._take(wanted)
        finally:
            with self.runner.changed:
                self.runner.has_taken_all = True
                self.runner.changed.notify_all()

    def _take(self, wanted: int) -> None:
        """Takes so many tasks, or what there is. Halted when there is none and none will come."""
        settled = self.runner.tally.total()
        try:
            tasks, self.reason = take_tasks(self.client, self.projects, wanted, self.wait, self.takes)
        except Refused as refused:
            self._refused(refused)
            return
        self.pause = self.FIRST_PAUSE
        if tasks:
            self.runner.display.state("")
            self.next_look, self.is_last = 0.0, False
            self.wait = 0 if self.until_done else self.wait
            self.runner.start_all(tasks)
        elif self.until_empty and (self.runner.is_busy() or settled != self.runner.tally.total()):
            self.is_last = False
            self.runner.wait_for_settlement(settled)  # a task that fails may be waiting again
        else:
            if time.monotonic() >= self.next_look:
                self.next_look = time.monotonic() + self.LOOK
                self.runner.display.state(self._why_nothing())
            if self.is_last:
                raise Halted
            if self.until_done:
                if are_done(self.client, self.projects):
                    raise Halted
                self.wait = self.WAIT_FOR_OURS if self.runner.is_busy() else self.WAIT
            if self.until_empty:
                self.is_last = not self._are_delayed()
                self.wait = 0 if self.is_last else self.WAIT

    def _are_delayed(self) -> bool:
        """Whether tasks will be ready later by themselves. One that has become so meanwhile is asked for once more."""
        all_shown = [shown(self.client, "project", project) for project in self.projects]
        return any(project.get("delayed_task_count") and not project.get("paused") for project in all_shown)

    def _refused(self, refused: Refused) -> None:
        """Waits while a manager has paused us; asks for access when it is that. Fail when there is nothing to do."""
        if refused.status != 403:
            raise Fail(f"{self.client.server} hands out no tasks: {refused.message}")
        if self.admission:
            self.admission.wait(refused, self.projects)
            return
        if not is_paused(self.client):
            project = closed_project(self.client, self.projects)
            ask_for_access(self.client, project, refused, assign=True, submit=False)
        self.runner.display.state(Admission.PAUSED)
        self.client.interrupts.sleep(self.pause)
        self.pause = min(self.pause * 2, self.LONGEST_PAUSE)

    def _why_nothing(self) -> str:
        """Why there is no task for us."""
        why = why_nothing(self.client, self.projects, self.reason)
        if self.until_empty and self.runner.held and "paused by" not in why:
            return "nothing is left but what was skipped already"
        return why


# ── Run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Phase(enum.IntEnum):
    """How far a stop has got."""

    RUNNING = 0
    FINISHING = 1  # takes no more tasks, lets those that run end
    KILLING = 2  # ends them, and delivers what there is
    LEAVING = 3  # waits for nothing


class StopSignals:
    """Counts the signals that ask us to stop; the first one is remembered."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0

    def install(self) -> None:
        """From now on the signals come here, but those that who started us had ignored."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The same while the block runs, if this is the main thread: others get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: not one of Python's
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.first = self.first or number
        self.count += 1


class Tally(collections.Counter[str]):
    """How many of the tasks that were taken are done, failed, skipped, lost (taken away from us before we had released
    them) or refused (the tracker did not take their release).
    """

    def text(self) -> str:
        """The counts for people; of what is lost or refused only when there is any."""
        lost = f", taken away {self['lost']:,}" if self["lost"] else ""
        refused = f", refused {self['refused']:,}" if self["refused"] else ""
        return f"done {self['done']:,}, failed {self['failed']:,}, skipped {self['skipped']:,}{lost}{refused}"


class Runner:
    """Keeps up to `concurrency` tasks running until it is told to stop, and says how it is getting on.

    The Taker starts tasks, each Execution is a thread of its own, the Courier delivers, the Keeper extends leases; what
    they share is here, and changes under `changed`. The main thread watches the clock and the signals.
    """

    TICK = 0.2
    IN_FLIGHT = 10.0  # seconds to wait, at a stop, for the answer to the last request for a task
    FAREWELL = 10.0  # seconds for the last results to be delivered after a second signal
    FIRST_HOLD, LONGEST_HOLD = 1.0, 30.0  # seconds from a skip to its release: the first of a task, any
    MOST_HELD = 5000

    def __init__(self, args: argparse.Namespace, client: RunClient, display: RunDisplay, signals: StopSignals):
        self.display = display
        self.signals = signals
        self.signals_seen = 0
        self.args = args
        self.count = args.count or math.inf
        self.terms = Terms(args, display.notice, client)
        #: Makes the thread that does a task.
        self.work_on: Callable[[Assignment, Callable[[], bool], Callable[..., None]], Work] = (
            lambda assignment, is_away, ended: Execution(assignment, self.terms, is_away, ended)
        )
        self.changed = threading.Condition()
        self.running: dict[Work, None] = {}
        self.unsettled: dict[Work, None] = {}  # those that run and those that are not delivered
        self.tally = Tally()
        self.taken = 0
        self.has_taken_all = False
        self.held: dict[Work, None] = {}  # of the unsettled: skipped, and not released at once
        self.skips: dict[int, int] = {}  # how often a task was skipped
        self.ends: collections.deque[float] = collections.deque(maxlen=10_000)
        self.phase = Phase.RUNNING
        self.phase_began = time.monotonic()
        self.failure: Fail | None = None
        taking, self.no_more_tasks = client.copy()
        delivering, self.no_more_results = client.copy()
        delivering.reached = True  # it has nothing to say before the other one has heard from the server
        self.taker = Taker(self, taking)
        if not getattr(args, "no_wait", True):
            self.taker.admission = Admission(taking, self.display.notice, assign=True, submit=False)
        self.courier, self.keeper = Courier(self, delivering), Keeper(self, delivering.another())

    # The main thread.

    def run(self) -> None:
        """Returns when nothing is left to be done, or nothing can be."""
        try:
            self.courier.start()
            self.keeper.start()
            self.taker.start()
        except RuntimeError as error:
            raise Fail(f"this system has no thread left for us: {error}") from None
        with self.display.screen():
            while self.phase is not Phase.LEAVING and not self._is_finished():
                self._tick(time.monotonic())
                self.display.show(self)
                with self.changed:
                    self.changed.wait_for(self._is_finished, self.TICK)
        self.no_more_tasks.set()
        self.no_more_results.set()

    def _is_finished(self) -> bool:
        """Whether every task is settled and no other will come."""
        if self.unsettled:
            return False
        # A task that the last request still brings must be given back. A server that does not answer is left alone.
        is_overdue = time.monotonic() - self.phase_began >= self.IN_FLIGHT
        return self.has_taken_all or (self.phase is not Phase.RUNNING and is_overdue)

    def _tick(self, now: float) -> None:
        """Has the signals and the time limits take effect."""
        self._advance(now)
        with self.changed:
            executions = list(self.running)
        for execution in executions:
            if self.phase >= Phase.KILLING:
                execution.stop(Cause.STOPPED)
            execution.tick(now)

    def _advance(self, now: float) -> None:
        """Goes on to the phase that the signals and the time ask for."""
        elapsed = now - self.phase_began
        new, self.signals_seen = self.signals.count - self.signals_seen, self.signals.count
        asked = min(self.phase + new, Phase.LEAVING)
        if self.phase is Phase.FINISHING and self.args.grace is not None and elapsed >= self.args.grace:
            asked = max(asked, Phase.KILLING)
        if self.phase is Phase.KILLING and elapsed >= self.args.kill_grace + self.FAREWELL:
            asked = Phase.LEAVING
        if asked > self.phase:
            self.enter(Phase(asked))

    def enter(self, phase: Phase) -> None:
        """The next phase of a stop; an earlier one changes nothing."""
        with self.changed:
            if phase <= self.phase:
                return
            self.phase, self.phase_began = phase, time.monotonic()
            running, waiting = len(self.running), len(self.unsettled) - len(self.running)
            self.changed.notify_all()
        self.no_more_tasks.set()
        undelivered = f", {waiting} ended and to be delivered" if waiting else ""
        if phase is Phase.FINISHING and running + waiting:
            self.display.notice(f"stopping: {running} running may finish{undelivered} (once more: kill them)")
        elif phase is Phase.FINISHING and self.signals.count and not self.has_taken_all:
            self.display.notice("stopping after the answer in flight, in a few seconds")
        elif phase is Phase.KILLING and running + waiting:
            self.display.notice(
                f"killing {running} running, released as skipped{undelivered} (once more: leave at once)"
            )
        elif phase is Phase.LEAVING:
            for execution in list(self.running):
                execution.abandon()

    def fail(self, failure: Fail, hopeless: bool = False) -> None:
        """Ends the run; hopeless: nothing can be delivered any more."""
        self.failure = self.failure or failure
        if self.running:
            self.display.notice(str(failure).partition("\n")[0])
        self.enter(Phase.LEAVING if hopeless else Phase.FINISHING)

    @contextlib.contextmanager
    def minding(self, hopeless: bool = False) -> Iterator[None]:
        """The body of a thread: Halted ends it alone, any other failure the run, as fail() does."""
        try:
            yield
        except Halted:
            pass
        except Fail as failure:
            self.fail(failure, hopeless)
        except Exception as error:
            self.fail(Fail(fault(error)), hopeless)

    # The Taker.

    def wanted(self) -> int:
        """How many tasks can be started now; waits until it is one at least. 0: no more at all."""
        with self.changed:
            self.changed.wait_for(lambda: self._room() or self._has_enough())
            return 0 if self._has_enough() else int(min(self._room(), self.count - self.taken))

    def _room(self) -> int:
        """How many more tasks we can bear; results that cannot be delivered count too, or they would pile up."""
        undelivered = len(self.unsettled) - len(self.held)
        free = min(self.args.concurrency - len(self.running), 2 * self.args.concurrency - undelivered)
        return max(0, min(free, self.MOST_HELD - len(self.held)))

    def _has_enough(self) -> bool:
        """Whether no more tasks are to be taken."""
        return self.phase is not Phase.RUNNING or self.taken >= self.count

    def start_all(self, assignments: list[Assignment]) -> None:
        """Starts these tasks, or gives them back."""
        for assignment in assignments:
            client = self.courier.client.another() if assignment.job else self.courier.client
            execution = self.work_on(assignment, client.is_away, self._ended)
            execution.client = client
            with self.changed:
                self.taken += 1
                for earlier in self.unsettled:  # its lease has ended, and it must say no more
                    if earlier.assignment.id == assignment.id:
                        earlier.stop(Cause.TAKEN_AWAY)
                self.unsettled[execution] = self.running[execution] = None
            self._start(execution)

    def _start(self, execution: Work) -> None:
        """Starts a task that we have been given, or ends it as skipped."""
        if self.phase is not Phase.RUNNING:
            execution.end(Outcome(SKIPPED, "not started"))
        elif self.args.until_empty and execution.assignment.id in self.skips:  # its lease did not last until the end
            execution.end(Outcome(SKIPPED, "skipped already", is_held=True))
        else:
            try:
                execution.start()
            except RuntimeError as error:
                execution.end(Outcome(SKIPPED, f"this system has no thread left for a task: {error}", unfit=True))

    def is_busy(self) -> bool:
        """Whether a task may yet fail, and be waiting again."""
        return len(self.unsettled) > len(self.held)

    def wait_for_settlement(self, before: int) -> None:
        """Waits until more tasks are settled than before, or none is going to be."""
        with self.changed:
            self.changed.wait_for(lambda: self.tally.total() > before or not self.is_busy() or self._has_enough())

    # The Executions.

    def _ended(self, execution: Work, outcome: Outcome) -> None:
        with self.changed:
            self.running.pop(execution, None)
            if outcome.is_held:
                self.held[execution] = None
                execution.release_at = self._release_time(execution.assignment)
            execution.outcome = outcome
            self.changed.notify_all()
        if outcome.unfit:
            self.fail(Fail(f"{outcome.reason}; its task goes to another worker"))
        elif self.args.until_empty and len(self.held) >= self.MOST_HELD:
            self.fail(Fail(f"stopped: so many tasks as {self.MOST_HELD:,} were skipped"))

    def _release_time(self, assignment: Assignment) -> float:
        """When a skipped task goes back: later each time, or at the end of a run that tries each task once."""
        skips = self.skips[assignment.id] = self.skips.pop(assignment.id, 0) + 1
        if self.args.until_empty:
            return assignment.lease_end
        if len(self.skips) > 2 * self.MOST_HELD:
            del self.skips[next(iter(self.skips))]
        hold = min(self.FIRST_HOLD * 2 ** min(skips - 1, 10), self.LONGEST_HOLD)
        return min(time.monotonic() + hold, assignment.lease_end)

    # The Courier.

    def undelivered(self, seconds: float) -> list[Work]:
        """The tasks that may have something to be delivered: at once when much is, else after the time."""
        with self.changed:
            self.changed.wait_for(lambda: any(map(self._is_urgent, self.unsettled)), seconds)
            return [one for one in self.unsettled if not one.is_out]

    def _is_urgent(self, execution: Work) -> bool:
        """Whether much is to be delivered of a task, or all, and nobody is on the way for it."""
        return not execution.is_out and (self.is_due(execution) or execution.log.has_full_batch())

    @contextlib.contextmanager
    def back_from(self, job: Work | None) -> Iterator[None]:
        """After the block nobody is on the way for this job any more."""
        try:
            yield
        finally:
            if job:
                with self.changed:
                    job.is_out = False
                    self.changed.notify_all()

    def is_due(self, execution: Work) -> bool:
        """Whether the task is to be released now; one that is held is when no other will come."""
        if execution.outcome is None:
            return False
        is_last = self.has_taken_all or self._has_enough()
        return is_last or execution.cause is Cause.TAKEN_AWAY or time.monotonic() >= execution.release_at

    def settle(self, execution: Work, counted: bool, refusal: str = "") -> None:
        """The tracker knows what became of the task, and it was still ours if that counted; or it refuses to know."""
        outcome = execution.outcome
        self._say(execution.assignment, outcome, counted, refusal)  # first: after the last one the process ends
        with self.changed:
            del self.unsettled[execution]
            self.held.pop(execution, None)
            self.tally["refused" if refusal else RESULTS[outcome.result] if counted else "lost"] += 1
            self.ends.append(time.monotonic())
            self.changed.notify_all()

    def _say(self, assignment: Assignment, outcome: Outcome, counted: bool, refusal: str) -> None:
        """Tells what became of a task, if it is remarkable."""
        name = f"task {assignment.id} ({printable(assignment.name, 80)})"
        word = RESULTS[outcome.result]
        if refusal:
            self.display.notice(f"{name} {word}: {outcome.reason}; but the tracker refuses that: {refusal}")
        elif not counted:
            self.display.notice(f"{name} was taken away: cancelled, reset, or held for longer than its lease")
        elif outcome.result == FAILED or self.args.verbose:
            self.display.notice(f"{name} {word}: {outcome.reason}")

    # At the end.

    def status(self) -> int:
        """The exit status of the run. Fail when it ended by a failure, or with results that nobody has got."""
        if self.unsettled:
            ids = ", ".join(str(one.assignment.id) for one in self.unsettled)
            why = f"{self.failure}\n" if self.failure else ""
            raise Fail(f"{why}not released: task {ids}; another worker gets them when their lease ends")
        if self.failure:
            raise self.failure
        if self.tally["refused"]:
            return EXIT_FAILED
        if self.signals.first:
            finished = self.signals.first != signal.SIGINT and self.phase is Phase.FINISHING
            return EXIT_OK if finished else EXIT_SIGNAL + self.signals.first
        return EXIT_SOME_FAILED if self.tally["failed"] else EXIT_OK


class RunDisplay(Display):
    """One screen of what runs, on a terminal; elsewhere lines of what is remarkable, and a count now and then."""

    RATE_WINDOW = 60.0

    def __init__(self, server: str) -> None:
        super().__init__()
        self.server = server
        self.live: Live | None = None
        self.present = self.trouble = ""
        self.began = time.monotonic()
        self.last_counts = ""
        self.outages = 0  # how many threads wait for the server
        self.outages_lock = threading.Lock()
        self.next_lines["progress"] = self.began + self.SECONDS_BETWEEN_LINES

    @contextlib.contextmanager
    def screen(self) -> Iterator[None]:
        """Shows the picture while the block runs, if there is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        with contextlib.suppress(OSError):  # the terminal may be gone; the tasks are not
            self.live.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.live.stop()
            self.live = None

    def notice(self, text: str) -> None:
        """One line that stays; a terminal that has gone is no reason to stop."""
        with contextlib.suppress(OSError):
            super().notice(text)

    def waiting(self, reason: str) -> None:
        """Says why nothing moves, until answered() takes it back."""
        self.trouble = reason
        if self.live is None:
            super().waiting(reason)

    def answered(self) -> None:
        """The server has answered: what waiting() said is over."""
        self.trouble = ""

    def lost(self, server: str, reason: str) -> None:
        """An outage begins for one of the threads, which is said of the first."""
        with self.outages_lock:
            self.outages += 1
            if self.outages == 1:
                self.next_lines["waiting"] = time.monotonic() + self.SECONDS_BETWEEN_LINES  # this one is enough for now
                super().lost(server, reason)

    def back(self, server: str, seconds: float) -> None:
        """It is over for one of the threads, which is said of the last."""
        with self.outages_lock:
            self.outages -= 1
            if self.outages == 0:
                super().back(server, seconds)

    def state(self, text: str) -> None:
        """What keeps us from taking tasks; empty when nothing does."""
        if text and text != self.present and self.live is None:
            self.notice(text)
        self.present = text

    def show(self, runner: Runner) -> None:
        """The picture of this moment."""
        if self.live is not None:
            with contextlib.suppress(OSError):
                self.live.update(self._picture(runner), refresh=True)
        elif self._due("progress") and (counts := self._counts(runner)) != self.last_counts:
            self.last_counts = counts
            self.notice(f"{counts}, {self._rate(runner)}")

    def _picture(self, runner: Runner) -> Group:
        """What a terminal shows: the server, what runs, and the counts."""
        with runner.changed:
            running = list(runner.running)
        table = Table(box=None, padding=(0, 1), header_style="bold", expand=True)
        table.add_column("Task", justify="right", no_wrap=True)
        table.add_column("Elapsed", justify="right", no_wrap=True)
        table.add_column("Recipe or template", no_wrap=True, overflow="ellipsis", ratio=1)
        shown = running[: max(1, self.console.height - 6)]
        for one in shown:
            elapsed = duration(time.monotonic() - one.assignment.received)
            table.add_row(str(one.assignment.id), elapsed, Text(printable(one.assignment.name, 200)))
        more = [Text(f"and {len(running) - len(shown)} more")] if len(running) > len(shown) else []
        heading = Text(f"{self.server}: {printable(self.trouble or self.present, 200) or 'connected'}", style="bold")
        counts = Text(f"{self._counts(runner)}, {self._rate(runner)}")
        return Group(heading, *([table] if running else []), *more, counts)

    def _counts(self, runner: Runner) -> str:
        held = f", held {len(runner.held):,}" if runner.held else ""
        return f"running {len(runner.running):,}, {runner.tally.text()}{held}"

    def _rate(self, runner: Runner) -> str:
        """How many tasks end in a time, lately."""
        now = time.monotonic()
        window = max(1.0, min(self.RATE_WINDOW, now - self.began))
        return _rate_text(sum(end > now - window for end in list(runner.ends)) / window)


def check_command(args: argparse.Namespace) -> None:
    """Fail when the command is not one that can be run: found now, before a task is taken for nothing."""
    command = args.argv
    if command[:1] == ["--"]:
        del command[0]
    if not command and not args.allow_scripts:
        raise Fail("no COMMAND to run: give one after --, or --allow-scripts to run jobs that bring a script")
    if command and (Terms.PLACEHOLDER.search(command[0]) or command[0] == "{arguments}"):
        raise Fail(f"{command[0]}: a task must not choose the program that is run")
    if command and shutil.which(command[0]) is None:
        raise Fail(f"{command[0]}: no such program that may be executed")


def run_tasks(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """worker.py run."""
    check_command(args)
    known = {"credentials": args.credentials, "patience": args.patience}
    tracker = Tracker(args.server, args.alias, display=RunDisplay(args.server), interrupts=interrupts, **known)
    runner = tracker.runner(args)
    runner.signals.install()
    Orphans.adopt()
    runner.run()
    if runner.taken or runner.failure is None:
        with contextlib.suppress(OSError):  # nobody reads our standard output any more
            print(runner.tally.text(), flush=True)
        drop_what_nobody_takes(sys.stdout)
    return runner.status()


# ── Library ─────────────────────────────────────────────────────────────────────────────────────────────────────────

logger = logging.getLogger("worker")
UNFIT_RESULT = (400, 408, 413)  # how a tracker refuses a result that is none, or too large


class TaskFields(TypedDict, total=False):
    """What a submitted task may have besides its recipe; what is left out is as the tracker has it."""

    priority: int  # higher is assigned first
    max_retries: int  # failed attempts after which it counts as failed
    max_assign_time: int  # seconds that a worker may hold it before it goes to another one
    verification_count: int  # different workers that must report the same verification
    delay: float  # seconds for which nobody is assigned it
    not_before: float  # the same as a moment in unix seconds
    hash64: int  # keeps another task with the same hash out of the project
    unique_string: str  # text from which the hash is made


class Logged(RunDisplay):
    """Says by the logger "worker" what a person at a terminal would be shown."""

    def __init__(self, server: str) -> None:
        super().__init__(server)
        self.console = QuietConsole(file=io.StringIO(), force_terminal=False)

    def notice(self, text: str) -> None:
        logger.warning("%s", "\n".join(printable(line, 2000) for line in text.split("\n")))

    def state(self, text: str) -> None:
        if text and text != self.present:
            logger.log(logging.INFO if text == NO_TASK else logging.WARNING, "%s", text)
        self.present = text

    def show(self, runner: Runner) -> None:
        """The counts now and then: nobody needs to act on them."""
        if self._due("progress") and (counts := self._counts(runner)) != self.last_counts:
            self.last_counts = counts
            logger.info("%s, %s", counts, self._rate(runner))

    def advance(self, done: int, counts: str) -> None:
        if self._due("progress"):
            logger.info("%s", counts)


class Task:
    """A task that is ours. `with task:` does it: it is released as done at the end of the block, as failed when that
    raises an exception, and as skipped when it is interrupted (KeyboardInterrupt); unless skip(), fail() or done() has
    said otherwise. An exception is logged and goes no further; but Fail, after which nothing can go on, puts the task
    back and ends the loop, or the run.

    While the block runs, the task's lease is extended, for `timeout` seconds in all.
    """

    LEVELS = ("error", "warn", "info", "debug", "trace")

    def __init__(self, tracker: Tracker, assignment: Assignment):
        self._tracker = tracker
        self._assignment = assignment
        self._said: Outcome | None = None
        self._is_entered = False
        self._is_lost = False
        #: When the tracker last told whether it is ours.
        self.heard_at = assignment.received
        self._trace = ""
        #: As the tracker has handed it out.
        self.content: dict[str, Any] = assignment.task
        self.id: int = assignment.id
        self.recipe: str = assignment.recipe
        self.project = int(assignment.project or 0)
        #: How often it was assigned, this time included; None: the tracker does not count.
        self.attempt = assignment.attempt
        #: What a task that is a job's brings along (arguments, variables, …); empty for a plain one.
        self.job: dict[str, Any] = assignment.job
        #: 64 bits, which equal results have in common: counts when several workers must report the same.
        self.verification = 0

    def __repr__(self) -> str:
        return f"<Task {self.id} {printable(self.recipe, 80)!r}>"

    @property
    def held(self) -> bool:
        """Whether it is still ours as far as we know: if not, somebody else has it or it was cancelled. Stop then."""
        return not self._is_lost

    def submit(self, recipe: str, *, project: int | None = None, **fields: Unpack[TaskFields]) -> bool:
        """Tracker.submit() to its own project, or another one. It is stored before this task is released."""
        return self._tracker.submit(self.project if project is None else project, recipe, **fields)

    def done(self, verification: int | None = None, output: Any = None) -> None:
        """It is done when the block ends, with this verification and, if it is a job's, this result (any JSON)."""
        if verification is not None:
            self.verification = verification
        json.dumps(output, allow_nan=False, ensure_ascii=False).encode()  # what is no JSON is found out here
        self._said = Outcome(DONE, "done", output)

    def fail(self, reason: str, for_good: bool = False) -> None:
        """It failed, for this reason, which is logged: it is retried as often as its submitter allows.

        for_good: it is not, as that would be in vain; and the worker is not at fault (many failures in a row pause it).
        """
        self._said = Outcome(FAILED, reason or "failed", for_good=for_good)

    def skip(self, delay: float = 1.0, reason: str = "skipped") -> None:
        """It goes back and counts as not tried; nobody is assigned it for so many seconds. 0: it is the next one."""
        if not 0 <= delay <= 1e9:
            raise ValueError(f"a delay of {delay} is not between 0 and 1e9 seconds")
        self._said = Outcome(SKIPPED, reason, delay=delay)

    def extend(self, seconds: float) -> bool:
        """Its lease lasts for so many seconds from now on, if it did not already. Whether the task is still ours.

        A block that ends within `timeout` need not ask.
        """
        wish = {"task_id": self.id, "seconds": seconds, "attempt": self.attempt or 0}
        now = time.monotonic()
        answer = self._tracker.client.call("POST", "/task/extend", wish).content
        self._heed(answer.get("held") is not False)
        self._assignment.hold_until(max(self._assignment.ends, now + (answer.get("left") or 0)))
        return self.held

    def log(self, message: str, level: str = "info", scope: str = "task") -> None:
        """Adds a line to the task's log. level: error, warn, info, debug or trace.

        A line of a task that is no job's may be there twice when the tracker's answer to it was lost.
        """
        if level not in self.LEVELS:
            raise ValueError(f"{level!r} is none of {', '.join(self.LEVELS)}")
        self._log(level, scope, message.replace("\0", "\ufffd"))

    def __enter__(self) -> Self:
        if self._is_entered:
            raise RuntimeError(f"task {self.id} is being done, or was already")
        self._is_entered = True
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if self._tracker.client.is_inherited():
            return False
        self._end(self._judged(error))
        return isinstance(error, Exception) and not isinstance(error, Fail)

    def _judged(self, error: BaseException | None) -> Outcome:
        """What becomes of it, by what was said and by what its block was ended with."""
        said = self._said or Outcome(DONE, "done")
        if isinstance(error, Exception) and not isinstance(error, Fail | Halted):
            self._trace = "".join(traceback.format_exception(error))[-4000:]
            return Outcome(FAILED, "".join(traceback.format_exception_only(error)).strip()[:2000])
        if isinstance(error, Fail):
            return Outcome(SKIPPED, str(error), unfit=True, delay=said.delay)
        if error is not None:
            return said if said.result == SKIPPED else Outcome(SKIPPED, "interrupted")
        is_number = isinstance(self.verification, int) and -(2**63) <= self.verification < 2**64
        if said.result == DONE and not is_number:
            return Outcome(FAILED, f"a verification of {self.verification!r} is no number of 64 bits"[:2000])
        return dataclasses.replace(said, verification=self.verification)

    def _why(self, outcome: Outcome) -> str:
        """What the tracker is to log of its failure."""
        return f"{outcome.reason}\n{self._trace}".rstrip()

    def _heed(self, is_held: bool) -> None:
        self.heard_at = time.monotonic()
        self._is_lost = self._is_lost or not is_held

    def _begin(self) -> None:
        """Its block begins."""

    def _log(self, level: str, scope: str, message: str) -> None:
        raise NotImplementedError

    def _end(self, outcome: Outcome) -> None:
        raise NotImplementedError


class TakenTask(Task):
    """One that Tracker.tasks() has handed out: its caller's thread itself tells the tracker what becomes of it."""

    def __init__(self, tracker: Tracker, assignment: Assignment, timeout: float):
        super().__init__(tracker, assignment)
        self.timeout = timeout
        self.until = math.inf  # then its lease is not extended any more
        self.thread = 0  # that has it in hand
        self.lines = 0
        self.logging = threading.Lock()

    def ends_soon(self, now: float) -> bool:
        """Whether half of its lease is over."""
        return self._assignment.ends - now < self._assignment.lease / 2

    def _begin(self) -> None:
        self.until = time.monotonic() + self.timeout
        self.thread = threading.get_ident()
        self._tracker._keep(self)

    def _log(self, level: str, scope: str, message: str) -> None:
        if not self.held:
            return
        entry = {"message": message, "timestamp": int(time.time()), "level": level, "scope": scope}
        with self.logging:  # they are numbered
            body = {"task_id": self.id, "first": self.lines, "entries": [entry]}
            answer = self._tracker.client.call("POST", "/task/log", body)
            self.lines += 1
        self._heed(answer.content.get("held") is not False)

    def _end(self, outcome: Outcome) -> None:
        self._tracker._end(self, outcome)


class Call(Work):
    """One task that a function does. A thread cannot be ended: one whose time is over is left to itself."""

    def __init__(
        self,
        assignment: Assignment,
        args: argparse.Namespace,
        is_away: Callable[[], bool],
        ended: Callable[..., None],
        tracker: Tracker,
        left: list[Call],
    ):
        """left: those that were left to themselves, this one perhaps."""
        super().__init__(assignment, args, is_away, ended)
        self.limit = min(self.limit, args.timeout)
        self.task = CalledTask(tracker, assignment, self)
        self.left = left
        self.telling = threading.Lock()
        self.is_told = False

    def run(self) -> None:
        with contextlib.suppress(Fail), self.task:  # which ends the run
            try:
                self.args.function(self.task)
            except Exception:
                raise
            except SystemExit as error:
                raise RuntimeError(f"exit({error.code}) was called") from None
            except BaseException as error:  # none is meant for us: the main thread gets the signals
                raise RuntimeError(f"{error!r} was raised") from error

    def end(self, outcome: Outcome) -> None:
        with self.telling:
            is_first, self.is_told = not self.is_told, True
        if is_first:
            super().end(outcome)

    def why(self, outcome: Outcome) -> str:
        return self.task._why(outcome)

    def stop(self, cause: Cause) -> None:
        super().stop(cause)
        self.task._heed(cause is not Cause.TAKEN_AWAY)

    def fails_instead(self, refused: Refused) -> bool:
        if self.outcome.result != DONE or refused.status not in UNFIT_RESULT:
            return False
        self.outcome = Outcome(FAILED, f"its result was refused: {refused.message}")
        return True

    def tick(self, now: float) -> None:
        if self.is_told:
            return
        is_over = now - self.began >= self.limit
        if self.cause is None and is_over:
            self.stop(Cause.TIMEOUT)
        if self.cause is Cause.TIMEOUT:
            self.left[:] = [*(call for call in self.left if call.is_alive()), self]
            are_many = len(self.left) >= self.args.concurrency
            others = f", and so did {len(self.left) - 1} others that have not ended" if self.left[1:] else ""
            reason = f"took longer than {duration(self.limit)}{others}"
            self.end(Outcome(FAILED, reason, unfit=are_many))
        elif self.cause is Cause.STOPPED or (self.cause is Cause.TAKEN_AWAY and is_over):
            self.end(Outcome(SKIPPED, self.cause.value))


class CalledTask(Task):
    """One that a function does: the Courier tells the tracker what becomes of it."""

    def __init__(self, tracker: Tracker, assignment: Assignment, call: Call):
        super().__init__(tracker, assignment)
        self.call = call

    def _log(self, level: str, scope: str, message: str) -> None:
        self.call.log.add(level, scope, message)

    def _end(self, outcome: Outcome) -> None:
        self.call.end(outcome)


class Given:
    """Recipes and tasks that somebody has, in parts of some lines, as Submission sends them."""

    size = None

    def __init__(self, tasks: Iterable[str | Mapping[str, Any]]):
        """TypeError when they are one, of which the letters or the names of its fields would be stored."""
        if isinstance(tasks, str | bytes | Mapping):
            raise TypeError(f"one task is no series of tasks: {printable(repr(tasks), 80)}")
        self.tasks = tasks
        self.part_bytes = Input.PART_BYTES

    def taken(self) -> int:
        return 0

    def parts(self, start_line: int, most_lines: int) -> Iterator[Part]:
        """The tasks, each as a line of JSON."""
        part = Part(start_line)
        for task in self.tasks:
            line = json.dumps({"recipe": task} if isinstance(task, str) else dict(task)).encode()
            if part.lines and (len(part.lines) == most_lines or part.size + len(line) > self.part_bytes):
                yield part
                part = Part(part.next)
            part.add(line)
        yield part


class Taking(Iterator[Task]):
    """An iterator that threads may share, unlike a generator."""

    def __init__(self, take: Callable[[], Task | None]):
        """take: brings the next task, and None when there will be none any more."""
        self.take = take

    def __next__(self) -> Task:
        if (task := self.take()) is None:
            raise StopIteration
        return task


class Tracker:
    """One tracker, and who we are to it: what it hands out to us, and what we submit. For any number of threads.

    What a person should know (a manager must grant access, the tracker is away, a task has failed) is said by the
    logger "worker". The end of a `with` block, or close(), puts back what is still ours.
    """

    LOOK = 0.25  # seconds between two looks whether a lease is to be extended
    HEARTBEAT = 5.0  # seconds without a word of the tracker after which it is asked whether a task is still ours
    SILENCE = 20.0  # seconds between two looks why there is no task
    FAREWELL = 10.0  # seconds for what is in flight to come back, and for what is ours to be put back
    FEW = 500  # tasks in one request

    def __init__(
        self,
        server: str,
        alias: str | None = None,
        *,
        credentials: str | os.PathLike[str] | None = None,
        worker: Worker | None = None,
        patience: float | None = None,
        display: RunDisplay | None = None,
        interrupts: Interrupts | None = None,
    ):
        """Registers a worker on first use, and keeps its secret where `worker.py run` does.

        alias: what the worker is called; renames one that is registered already (default: the host's name).
        credentials: the file with the secret. worker: who we are, instead of what such a file says.
        patience: seconds to wait for a tracker that is away (default: for ever, unless it was never there).
        display, interrupts: those of a command line, instead of the logger and of KeyboardInterrupt.
        Fail says why it cannot be used.
        """
        self.server = _address(server)
        self._halt = Halt()
        self._is_ending = False
        self._display = display or Logged(self.server)
        self.client = RunClient(self.server, self._display, interrupts or self._halt, patience)
        self._changed = threading.Condition()
        self._held: dict[TakenTask, None] = {}  # handed out by tasks() and not released
        self._asking = 0  # requests for a task that are in flight
        self._runners: list[Runner] = []  # of the run()s that have not ended
        self._keeper: threading.Thread | None = None
        file = Credentials(Path(credentials) if credentials else None, self._display.notice)
        if worker is not None:
            self.client.worker = worker
        elif interrupts is not None:
            sign_in(self.client, file, alias)
        else:
            self._finishing(lambda client: sign_in(client, file, alias))

    @property
    def worker(self) -> Worker:
        """Who we are to the tracker."""
        return self.client.worker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def end(self) -> None:
        """Has the loops over tasks() end when the block that they are in does. A signal handler may call it."""
        self._is_ending = True

    def close(self) -> None:
        """Puts back every task that is ours, and ends the loops and runs of other threads. It is of no use then.

        Nothing in a process that was forked meanwhile: they are the tasks of the one that forks.
        """
        if self.client.is_inherited():
            return
        self._halt.set()
        for runner in list(self._runners):
            runner.enter(Phase.KILLING)
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._asking or self._runners), self.FAREWELL)
            held, self._held = list(self._held), {}
        client, _ = self.client.copy()
        client.patience = self.FAREWELL
        for start in range(0, len(held), Courier.TOGETHER):
            several = held[start : start + Courier.TOGETHER]
            releases = [release_body(task._assignment, Outcome(SKIPPED, "put back")) for task in several]
            try:
                client.call("POST", "/task/bulk_release", {"releases": releases})
            except (Fail, Refused) as error:
                self._display.notice(f"{len(several)} tasks are ours until their leases end: {error}")
        self.client.http.close()

    # What is submitted.

    def submit(self, project: int, recipe: str, **fields: Unpack[TaskFields]) -> bool:
        """Stores a task; True means that it is on disk. False: the project has one with its unique string or hash.

        It is sent again until it is answered. One with a unique string or a hash is stored once by that, and may be
        called a duplicate of what an earlier attempt has stored; one without may be stored twice when the answer was
        lost (submit_all() does not). Refused says what is wrong with it. Waits for a manager who has to grant access.
        """
        admission = Admission(self.client, self._display.notice, assign=False, submit=True)
        while True:
            try:
                self.client.call("POST", "/task/submit", {"project": project, "recipe": recipe, **fields})
                return True
            except Refused as refused:
                if refused.status == 403:
                    admission.wait(refused, [project])
                elif refused.status == 409:
                    return False
                else:
                    raise

    def submit_all(
        self,
        project: int,
        tasks: Iterable[str | Mapping[str, Any]],
        *,
        unique: bool = False,
        **fields: Unpack[TaskFields],
    ) -> Report:
        """Stores many tasks, each a recipe or a mapping with `recipe` and TaskFields; `fields` are for all of them.

        unique: a recipe is its task's unique string, if that has none and no hash. Nothing is stored twice, whatever
        answers are lost. The report counts what was stored, the duplicates and what was refused, and names the first
        of those by number, from 1. Memory does not grow with the number of tasks.
        """
        options = {**fields, "format": "json", "once": str(unique).lower()}
        if own := options.keys() & {"not_before", "hash64", "unique_string"}:
            raise TypeError(f"{', '.join(sorted(own))}: of each task, not of all")
        submission = Submission(copy.copy(self.client), project, options, Given(tasks))
        submission.admission = Admission(self.client, self._display.notice, assign=False, submit=True)
        submission.run(1, Input.PART_LINES)
        return submission.report

    def submit_few(self, project: int, tasks: Iterable[Mapping[str, Any]], **fields: Unpack[TaskFields]) -> int:
        """Stores some tasks (mappings with `recipe` and TaskFields; `fields` are for all) by one request for 500 each.

        How many were stored; the others are known by their unique string or hash. One that has none may be stored
        twice when an answer was lost. Refused says what is wrong with one of them: of its request none is stored.
        """
        stored, all_tasks = 0, [{"project": project, **fields, **task} for task in tasks]
        for start in range(0, len(all_tasks), self.FEW):
            body = {"requests": all_tasks[start : start + self.FEW]}
            stored += self.call("POST", "/task/bulk_submit", body).get("submitted", 0)
        return stored

    def project(self, number: int) -> dict[str, Any]:
        """A project with its counts, as the tracker shows it; Refused when it does not."""
        return self.call("GET", f"/project/get/{number}")

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What any other call of the tracker's API answers, repeated as all are until it does; Refused, Fail."""
        return self.client.call(method, path, body).content

    # What is done.

    def tasks(
        self, project: int | Sequence[int], *, until_done: bool = False, timeout: float = 3600.0, submit: bool = True
    ) -> Iterator[Task]:
        """Tasks of the project, or of several, the best first; waits for them. Threads may share the iterator.

        until_done: ends when nothing in the projects is waiting, delayed, assigned or awaiting verification.
        timeout: seconds after the beginning of its block from which a task's lease is not extended any more.
        submit: where access must be asked for, to submit as well (one worker has one access per project).
        Waits for a manager who has to grant access or has paused the worker, too, and while the tracker is away.
        A task whose block never begins is ours until its lease ends, or until close(). SIGTERM ends a process as ever:
        have it raise KeyboardInterrupt, or use run(), to put the task back.
        """
        if not timeout > 0:
            raise ValueError(f"a timeout of {timeout} is not more than 0")
        return Taking(functools.partial(self._take, _numbers(project), until_done, timeout, submit))

    def run(
        self,
        project: int | Sequence[int],
        function: Callable[[Task], object],
        *,
        concurrency: int = 1,
        count: int | None = None,
        until_done: bool = False,
        timeout: float = 3600.0,
        grace: float | None = None,
        submit: bool = True,
    ) -> int:
        """Calls the function for each task, in up to `concurrency` threads, each as if it were the task's block.

        Ends as `worker.py run` does, by the same signals (if it was called by the main thread): after the first Ctrl-C
        or SIGTERM those that run may finish (for `grace` seconds), after the second they are put back, after the third
        nothing is waited for. Also after `count` tasks, or `until_done` as in tasks(). Returns the same exit status;
        Fail likewise. A task whose function has not returned after `timeout` seconds fails, and its thread is left to
        itself; when there are as many such threads as may run, the run ends.
        """
        if concurrency < 1 or not timeout > 0 or (count is not None and count < 1):
            raise ValueError("concurrency and count are at least 1, and timeout is more than 0")
        self._halt.check()
        args = argparse.Namespace(project=_numbers(project), function=function, concurrency=concurrency, count=count)
        args.until_empty, args.verbose, args.heartbeat = False, False, self.HEARTBEAT
        args.timeout, args.kill_grace, args.grace = timeout, 0.0, grace
        left: list[Call] = []
        runner = self.runner(args)
        runner.work_on = lambda assignment, is_away, ended: Call(assignment, args, is_away, ended, self, left)
        runner.taker.until_done, runner.taker.wait = until_done, 0 if until_done else Taker.WAIT
        runner.taker.admission = Admission(runner.taker.client, self._display.notice, True, submit)
        try:
            self._runners.append(runner)
            with runner.signals.installed():
                runner.run()
        finally:
            with self._changed:
                self._runners.remove(runner)
                self._changed.notify_all()
        logger.info("%s", runner.tally.text())
        return runner.status()

    def runner(self, args: argparse.Namespace) -> Runner:
        """What does tasks as args say, which are those of `worker.py run`."""
        return Runner(args, self.client, self._display, StopSignals())

    def _finishing(self, call: Callable[[RunClient], T]) -> T:
        """What the call returns. A KeyboardInterrupt meanwhile waits until it has ended, but for some seconds only.

        An answer that nobody reads leaves open what was done. Only the main thread is interrupted.
        """
        if threading.current_thread() is not threading.main_thread():
            return call(self.client)
        client, halt = self.client.copy()
        results: list[T] = []
        errors: list[BaseException] = []
        has_ended = threading.Event()

        def run() -> None:
            try:
                results.append(call(client))
            except BaseException as error:
                errors.append(error)
            finally:
                has_ended.set()

        threading.Thread(target=run, name="request", daemon=True).start()
        try:
            while not has_ended.wait(0.5):
                if self._halt.is_set():
                    halt.set()
        except KeyboardInterrupt:
            halt.set()
            has_ended.wait(self.FAREWELL)
            raise
        self.client.reached = self.client.reached or client.reached
        self.client.worker, self.client.credentials_file = client.worker, client.credentials_file
        if errors:
            raise errors[0]
        return results[0]

    def _take(self, projects: list[int], until_done: bool, timeout: float, submit: bool) -> TakenTask | None:
        """The next task. None when there will be none any more, or we are closed."""
        admission = Admission(self.client, self._display.notice, True, submit)
        next_look, wait = 0.0, 0 if until_done else Taker.WAIT
        while not (self._halt.is_set() or self._is_ending):
            taken: list[TakenTask] = []
            asked = time.monotonic()
            try:
                reason = self._finishing(lambda client: self._ask(client, projects, wait, timeout, taken))  # noqa: B023
                if taken:
                    self._display.state("")
                    taken[0].thread = threading.get_ident()
                    return taken[0]
                if until_done and are_done(self.client, projects):
                    return None
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + self.SILENCE
                    why = why_nothing(self.client, projects, reason)
                    self._display.state(self._why_not_done(projects) if until_done and why == NO_TASK else why)
                if wait:
                    self._halt.sleep(max(0.0, asked + 1 - time.monotonic()))  # trackers need not let us wait
                wait = Taker.WAIT_FOR_OURS if until_done and self._held else Taker.WAIT
            except KeyboardInterrupt:
                self._put_back(taken)
                raise
            except Halted:
                return None
            except Refused as refused:
                if refused.status != 403:
                    raise Fail(f"{self.server} hands out no tasks: {refused.message}") from None
                with contextlib.suppress(Halted):
                    admission.wait(refused, projects)
        return None

    def _why_not_done(self, projects: list[int]) -> str:
        """Why there is no task for a loop until all is done, which is never if its own thread has one in hand."""
        with self._changed:
            mine = [task for task in self._held if task.held and task.thread == threading.get_ident()]
            ours = [task for task in mine if task.project in projects]
        ids = ", ".join(str(task.id) for task in ours)
        return f"{NO_TASK}: this loop waits for what its own thread has in hand, task {ids}" if ours else NO_TASK

    def _ask(self, client: RunClient, projects: list[int], wait: float, timeout: float, taken: list[TakenTask]) -> str:
        """Asks for a task, and notes the one that comes as ours. Why there is none."""
        with self._changed:
            self._asking += 1
        try:
            assignments, reason = take_tasks(client, projects, 1, wait)
            taken += [TakenTask(self, assignment, timeout) for assignment in assignments]
            return reason
        finally:
            with self._changed:
                for earlier in self._held:  # its lease has ended, and it must say no more
                    if earlier.id in [task.id for task in taken]:
                        earlier._heed(False)
                self._held |= dict.fromkeys(taken)
                self._asking -= 1
                self._changed.notify_all()

    def _put_back(self, tasks: list[TakenTask]) -> None:
        """Gives tasks back that were not begun."""
        for task in tasks:
            self._end(task, Outcome(SKIPPED, "not begun"))

    def _end(self, task: TakenTask, outcome: Outcome) -> None:
        """Releases a task, and says what is remarkable about that."""
        name = f"task {task.id} ({printable(task.recipe, 80)})"
        with self._changed:
            if task not in self._held:  # close() has put it back
                return
        try:
            if outcome.result == FAILED:
                self._display.notice(f"{name} failed: {task._why(outcome)}")
                with contextlib.suppress(Refused):  # a log that is not taken is no reason to lose the result
                    task._log("error", "run", task._why(outcome))
            body = release_body(task._assignment, outcome)
            answer = self._finishing(lambda client: client.call("POST", "/task/release", body))
        except Refused as refused:
            self._display.notice(f"{name} {RESULTS[outcome.result]}; but the tracker refuses that: {refused.message}")
            if outcome.result == DONE and refused.status in UNFIT_RESULT:
                self._end(task, Outcome(FAILED, f"its result was refused: {refused.message}"))
                return
        except Halted:
            return  # and close() puts it back
        else:
            counts = answer.content.get("updated") or answer.repeated or task._assignment.is_verified
            if not counts:
                task._heed(False)
                self._display.notice(f"{name} was taken away: cancelled, reset, or held for longer than its lease")
        with self._changed:
            self._held.pop(task, None)

    # The keeper, a thread.

    def _keep(self, task: TakenTask) -> None:
        """Has the leases of tasks extended from now on."""
        with self._changed:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_all, name="keeper", daemon=True)
                self._keeper.start()
            self._changed.notify_all()

    def _keep_all(self) -> None:
        """Until we are closed: extends leases, and asks of which tasks they are still ours."""
        said = ""
        with contextlib.suppress(Halted):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._held or self._halt.is_set())
                    begun = [task for task in self._held if task._is_entered and task.held]
                self._halt.check()
                try:
                    self._look_after(begun)
                except (Refused, Fail) as error:
                    if (why := str(error)) != said:
                        said = why
                        self._display.notice(f"the leases of {len(begun)} tasks cannot be extended: {why}")
                    for task in begun:
                        task.heard_at = time.monotonic()  # or this would be said again at once
                self._halt.sleep(self.LOOK)

    def _look_after(self, begun: list[TakenTask]) -> None:
        """Extends the leases of which half is over, unless their time is, and asks for what was not heard of lately."""
        now = time.monotonic()
        ending = [one for one in begun if one._assignment.is_extensible and one.ends_soon(now)]
        for task in ending:
            if now >= task.until:
                task._assignment.is_extensible = False
                self._display.notice(f"task {task.id} takes long: its lease is not extended any more")
        if extended := [task for task in ending if task._assignment.is_extensible]:
            try:
                answers = extend_leases(self.client, [task._assignment for task in extended])
            except BaseException:
                for task in extended:
                    task._assignment.is_extensible = False
                raise
            for task, is_held in zip(extended, answers, strict=True):
                task._heed(is_held)
        for task in begun:
            if now - task.heard_at >= self.HEARTBEAT:
                try:
                    answer = self.client.call("POST", "/task/log", {"task_id": task.id, "entries": []})
                    task._heed(answer.content.get("held") is not False)
                except Refused:  # the tracker knows no such task any more
                    task._heed(False)


def _address(server: str) -> str:
    """As server_address() has it; Fail when it is none."""
    try:
        return server_address(server)
    except argparse.ArgumentTypeError as error:
        raise Fail(str(error)) from None


def _numbers(project: int | Sequence[int]) -> list[int]:
    """The projects that are meant; ValueError when there is none, or one that is no number."""
    numbers = [project] if isinstance(project, int | str) else list(project)
    if not numbers or not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"name a project by its number, or several: {project!r} is none")
    return numbers


class Manager:
    """A tracker as one of its managers uses it, who makes projects and grants access to workers. Not for threads.

    Registers the manager, if that is asked for and it cannot log in; Refused says why neither can be done.
    patience: seconds to wait for a tracker that is away (default: none).
    """

    def __init__(self, server: str, username: str, password: str, register: bool = False, patience: float = 0):
        address = _address(server)
        self.client = RunClient(address, Logged(address), Halt(), patience)  # which keeps the session's cookie
        credentials = {"username": username, "password": password}
        try:
            self.call("POST", "/login", credentials)
        except Refused as refused:
            if not register:
                raise
            try:
                self.call("POST", "/register", credentials)
            except Refused as second:
                both = f"{refused.message}. Nor can it be registered: {second.message}"
                raise Refused(second.status, both, second.code) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.http.close()

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What any call of the tracker's API answers; Refused, Fail."""
        return self.client.call(method, path, body).content

    def project(self, name: str) -> dict[str, Any] | None:
        """The project of that name, hidden ones included that the manager may see; None when there is none."""
        projects = self.call("GET", "/project/list").get("projects") or []
        return next((project for project in projects if project["name"] == name), None)

    def worker(self, alias: str) -> Worker:
        """A new worker, whose secret nobody else knows."""
        made = self.call("POST", "/worker/create", {"alias": alias})["worker"]
        return Worker(made["id"], made["alias"], made["secret"])

    def grant(self, project: int, worker: Worker, *, assign: bool = True, submit: bool = True) -> None:
        """Lets a worker whose secret we know do this in a project, unless it may already."""
        wish = {"project": project, "assign": assign, "submit": submit}
        asking = Client(self.client.server, self.client.display, Halt(), self.client.patience)
        asking.worker = worker
        with asking.http:
            for client, path, body in (
                (asking, "/project/request_access", wish),
                (self.client, f"/project/accept_request/{project}/{worker.id}", None),
            ):
                try:
                    client.call("POST", path, body)
                except Refused as refused:
                    if refused.status != 409:  # it has asked, or may already
                        raise


def project_for_test(server: str, **fields: Any) -> tuple[Tracker, int]:
    """A new project (`fields`: as in POST /project/create) and a worker that may be assigned and submit its tasks.

    For a test of one's own with `tracker.serving()`: it registers a manager, which a tracker in use may not let it.
    """
    name = f"test-{secrets.token_hex(4)}"
    with Manager(server, name, secrets.token_hex(16), register=True) as manager:
        project = manager.call("POST", "/project/create", {"name": name, **fields})["id"]
        worker = manager.worker(name)
        manager.grant(project, worker)
    return Tracker(server, worker=worker), project


# ── Command line ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_forget(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """worker.py forget."""
    credentials = Credentials(args.credentials)
    worker = credentials.get(args.server)
    if worker is None:
        raise Fail(f"{credentials.path} holds no credentials for {args.server}")
    with credentials.locked(Display()):
        credentials.put(args.server, None)
    print(f"forgot worker {worker.id} ({worker.alias}) of {args.server}; the next run registers a new one")
    return EXIT_OK


# ── Moving a project ────────────────────────────────────────────────────────────────────────────────────────────────

MOVE_CHUNK = 256 * 1024
LONGEST_MOVE = 86400.0  # seconds for which a file may be on its way


@contextlib.contextmanager
def as_manager(client: Client, user: str) -> Iterator[None]:
    """Logged in as a manager, whose password is asked for, or comes from the environment or standard input."""
    password = os.environ.get("TRACKER_PASSWORD")
    if password is None and sys.stdin.isatty():
        password = getpass.getpass(f"Password of {user} at {client.server}: ")
    if password is None:
        password = sys.stdin.readline().rstrip("\r\n")
    try:
        client.call("POST", "/login", {"username": user, "password": password})
    except Refused as refused:
        raise Fail(f"{client.server} does not log {user} in: {refused.message}") from None
    try:
        yield
    except Refused as refused:
        raise Fail(f"{client.server}: {refused.message}") from None
    finally:
        with contextlib.suppress(Fail, Refused):
            client.call("POST", "/logout")


def run_export(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """worker.py export."""
    path, part = Path(args.file), Path(f"{args.file}.part")
    if path.exists():
        raise Fail(f"{path} is there already")
    display = Display("exporting", "exported")
    client = Client(args.server, display, interrupts, args.patience)
    body = json.dumps({"secrets": not args.without_secrets}).encode()
    try:
        with (
            as_manager(client, args.user),
            open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as file,  # secrets are inside
            display.progress(None),
        ):
            fetch_project(client, args.project, body, file)
            counts = check_project_file(file)
        os.replace(part, path)
    except OSError as error:
        raise Fail(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    jobs = f"; left out: {counted(counts['jobs'], 'job')}" if counts.get("jobs") else ""
    tasks, hashes = counted(counts.get("task", 0), "task"), counts.get("hashes", 0)
    print(f"{path}: {tasks}; hashes of closed ones: {hashes:,}{jobs}.")
    print(f"Project {args.project} is paused now at {args.server}. Archive or delete it there when it has moved.")
    return EXIT_OK


def fetch_project(client: Client, project: int, body: bytes, file: BinaryIO) -> None:
    """Has the project exported into the file, from the beginning again whenever the answer breaks off."""
    path, ends = f"/project/export/{project}", time.monotonic() + LONGEST_MOVE

    def receive() -> httpx.Response:
        file.seek(0)
        file.truncate()
        headers = {**client._headers(), "Content-Type": "application/json"}
        with client.stream("POST", path, headers, body, longest=LONGEST_MOVE) as response:
            if response.status_code != 200 or "ndjson" not in response.headers.get("Content-Type", ""):
                return client._read(response, path)
            for piece in response.iter_bytes():
                file.write(piece)
                client.display.advance(file.tell(), f"{file.tell():,} bytes")
                if time.monotonic() > ends:
                    raise Fail(f"{client.server}{path} has not ended within {duration(LONGEST_MOVE)}")
            return response

    response, _ = client._answered(receive)
    if response.status_code != 200 or not file.tell():
        client._content(response, path)


def check_project_file(file: BinaryIO) -> dict[str, int]:
    """What is in the file of a project, by its last line. Fail when it is not whole."""
    sha256, before = hashlib.sha256(), b""
    file.seek(0)
    for line in file:
        sha256.update(before)
        before = line
    with contextlib.suppress(ValueError, TypeError, KeyError):
        end = json.loads(before)
        if end["type"] == "end" and end["sha256"] == sha256.hexdigest():
            return end["counts"]
    raise Fail("the file that came is not whole; run the same command again")


def run_import(args: argparse.Namespace, interrupts: Interrupts) -> int:
    """worker.py import."""
    try:
        file = open(args.file, "rb")  # noqa: SIM115
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Fail(f"cannot read {args.file}: {error.strerror or error}") from None
    display = Display("importing", "imported")
    client = Client(args.server, display, interrupts, args.patience)
    with file, as_manager(client, args.user):
        with display.progress(size):
            made = send_project(client, file, size, args.name or "")
        operation = f"/operation/{made['operation']}"
        while True:
            found = client.call("GET", operation).content["operation"]
            if found["state"] != "running":
                break
            display.waiting(f"{found['affected']:,} of {found['expected'] or 0:,} tasks are there")
            interrupts.sleep(0.5)
    page = f"{args.server}/ui/projects/{made['project']}"
    tasks = counted(found["affected"], "task")
    print(f"Project {made['project']}: {tasks} imported. It is paused: resume it at {page}")
    print(f"Workers that are known there by the same names wait for access at {page}/access; others ask by themselves.")
    return EXIT_OK


def send_project(client: Client, file: BinaryIO, size: int, name: str) -> dict[str, Any]:
    """Has the file imported: the project and the operation. What is sent again has the same token."""
    path = "/project/import?" + urllib.parse.urlencode({"name": name, "token": secrets.token_hex(16)})

    def chunks() -> Iterator[bytes]:
        file.seek(0)
        while chunk := file.read(MOVE_CHUNK):
            yield chunk
            client.display.advance(file.tell(), f"{file.tell():,} bytes")

    def send() -> httpx.Response:
        headers = {**client._headers(), "Content-Type": "application/x-ndjson", "Content-Length": str(size)}
        patient = httpx.Timeout(120, connect=10, read=3600)  # it is answered when all of it is staged
        with client.stream("POST", path, headers, chunks(), patient) as response:
            return client._read(response, path)

    response, _ = client._answered(send)
    return client._content(response, path)


def number(kind: Callable[[str], float], name: str, lowest: float, highest: float, said: str) -> Callable[[str], Any]:
    """An argparse type: a number of this kind and name between two bounds; said: what is said of one that is not."""

    def convert(text: str) -> float:
        """The number that the text is; ArgumentTypeError says why it is none that will do."""
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {name}") from None
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(said.format(text=text, value=value, lowest=lowest, highest=highest))
        return value

    return convert


Option = tuple[str, dict[str, Any]]  # a name, and what argparse is told of it


def option(name: str, about: str, **more: Any) -> Option:
    """An option whose name is followed by the name of its value; without one and anything else it is a flag."""
    name, _, metavar = name.partition(" ")
    if metavar:
        more["metavar"] = metavar
    if "default" in more and "(default" not in about:
        about += " (default: %(default)s)"
    return name, {"help": about} | (more or {"action": "store_true"})


def whole(name: str, lowest: int, about: str, highest: int = 2**63 - 1, **more: Any) -> Option:
    """An option that is a whole number between two bounds."""
    said = "{value} is not between {lowest} and {highest}"
    return option(name, about, type=number(int, "whole number", lowest, highest, said), **more)


def seconds(name: str, lowest: float, about: str, **more: Any) -> Option:
    """An option that is a number of seconds, not below the lowest."""
    said = "{text} is not between {lowest:g} and 1e9 seconds"
    return option(f"{name} SECONDS", about, type=number(float, "number of seconds", lowest, 1e9, said), **more)


MANUAL = """\
The client of a task tracker: it sends tasks to a project, runs a command for each task of a project, and shows how the
projects are getting on.

first use:
  python3 worker.py submit --server http://tracker.example:3010 --project 3 urls.txt
      registers this machine as a worker, asks for access to project 3, says on which page a manager grants it, waits
      for that, and submits the file
  python3 worker.py run --server http://tracker.example:3010 --project 3 -- wget -- {recipe}
      likewise; takes the tasks and runs wget for each
  python3 worker.py status --server http://tracker.example:3010

environment:
  TRACKER_SERVER        the server when --server is not given
  TRACKER_CREDENTIALS   the credentials file when --credentials is not given

exit status:
  0    everything was done
  1    some lines were refused (submit), some tasks failed (run)
  2    wrong usage, no permission, or the server failed
  130  stopped by Ctrl-C

`worker.py COMMAND --help` tells the rest."""

SUBMIT_MANUAL = """\
Submits the lines of FILE (or of standard input, -) as tasks of one project. A line is a recipe as it stands; a line
that starts with { is a JSON submit object with any of the fields
  recipe, priority, max_retries, max_assign_time, verification_count, delay, not_before, hash64, unique_string
and what it does not say is taken from the options here, or else from the tracker. Blank lines are skipped. The tracker
reads the lines: UTF-8, with any line ends, also what its pages have exported. The file may be packed by gzip, and
larger than the memory. A pipe that is silent for a second has its lines submitted before the batch is full.

The report at the end counts the lines that were stored, those that were duplicates (the tracker had a task with the
same hash or unique string), and names the refused ones by line number with the reason. A refused line never keeps
another one from being stored.

A rate limit is waited for, and so is a server that goes away, for as long as it takes (see --patience). What was sent
without an answer is sent again; the tracker knows it, and stores nothing twice.

Ctrl-C waits for the answer in flight, reports, and names the --start-line to go on with. Pressed twice, it does not
wait."""

SUBMIT_EXAMPLES = """\
examples:
  python3 worker.py submit --project 3 urls.txt
  python3 worker.py submit --project 3 --unique --max-retries 5 urls.txt
  zcat urls.gz | python3 worker.py submit --project 3 --priority 10 -
  echo '{"recipe": "page 7", "priority": 2}' | python3 worker.py submit --project 3 -
  python3 worker.py submit --project 3 --start-line 120001 urls.txt

exit status: 0 all fine, 1 some lines refused, 2 usage, permission or server error, 130 stopped by Ctrl-C"""

EXPORT_MANUAL = """\
Writes a whole project into FILE, for another tracker to import: settings, access, templates, kept hashes and tasks; no
jobs, roles, keys or history. You need every role in the project. It is paused for it and stays so; what
workers hold of it goes back into the queue, and what they release of it afterwards counts nowhere. The file holds the
project's secrets: only you may read it. It appears when all of it is there."""

EXPORT_EXAMPLES = """\
examples:
  python3 worker.py export --server http://old.example:3010 --user alice 3 crawl.jsonl
  python3 worker.py import --server http://new.example:3010 --user alice crawl.jsonl"""

IMPORT_MANUAL = """\
Makes a project of a FILE that `worker.py export` has written. It is there when all of the file has been read and
checked, or not at all; then it is paused, and yours with every role. Access is asked for again, for workers that are
known there by the same names; others ask by themselves."""

STATUS_MANUAL = """\
Prints a table of the projects that everybody may see: tasks waiting, delayed, assigned, awaiting verification (Verify),
failed and closed, the rate of closing them, and the time until nothing is left at that rate. Needs no registration.
A paused project, which hands out no tasks, is shown in reverse and named in capitals above the table.

ETA: "stalled" when nothing was closed lately, "?" when there is nothing to go by yet."""

STATUS_EXAMPLES = """\
examples:
  python3 worker.py status --server http://tracker.example:3010
  python3 worker.py status --watch 5
  python3 worker.py status --json | jq '.projects[] | select(.paused)'

--json prints one object: server, time, and projects, each with id, name, priority, paused, waiting_task_count,
delayed_task_count, assigned_task_count, awaiting_verification_count, failed_task_count, closed_task_count,
closed_per_second and eta_seconds (both null when unknown). With --watch it prints one such line every so often."""

RUN_MANUAL = """\
Takes tasks of the projects and runs COMMAND once for each, up to --concurrency at a time, until it is stopped. COMMAND
is a program with its arguments; no shell looks at them. In each argument {recipe}, {id}, {project} and {job} are
replaced; an argument {arguments} becomes the arguments of the job. A recipe that begins with - looks like an option:
write -- before it, or read it from the environment or from standard input.

What COMMAND gets, besides the environment of this worker:
  standard input    the task as one JSON object, as the tracker gave it out
  TRACKER_TASK      the same
  TRACKER_RECIPE    the recipe
  TRACKER_TASK_ID, TRACKER_PROJECT, TRACKER_SERVER
  TRACKER_JOB, TRACKER_TEMPLATE, TRACKER_VAR_name
                    of a job: its id, the name of its template, and each variable (JSON unless it is text)
  TRACKER_ATTACHMENTS
                    of a job to which a client has attached files: the folder in which they are, unpacked, until
                    COMMAND ends. A script is started in the folder above, where they are attachments/…
A value of 100 KB or more is on standard input only; a job's log names the variables of which that is true.

What becomes of the task:
  exit status 0     done
  --skip-status     skipped: it goes back for this and other workers after a pause, which is longer each time (1 to 30
                    s, within its lease), and meanwhile the other tasks have their turn; with --until-empty it goes back
                    when no other task is left
  anything else     failed, also a signal, a timeout, or a script that must not run here
A task that is verified by several workers is verified by the hash of what COMMAND prints on standard output.

A job gets the lines of standard output and standard error as its log while they are printed (scopes stdout and stderr,
both of level info, see --stderr-level), an error line that says why it failed, and a result: code, log (the last 64 KB
of both), lastline (of standard output; up to 512 KB if it is JSON), signal, killed and times; a script's also has its
last line as state. A command that prints faster than the tracker stores has to wait; a line beyond 60,000 bytes is
several. Of a plain task nothing is logged unless it fails: then one error line with the last that it said. When the
tracker says that a task is not ours any more, because it was cancelled or its lease has ended, its process is killed;
--heartbeat is how often a silent one is asked for.

COMMAND runs in a process group of its own. At its time limit the whole group gets SIGTERM, and SIGKILL after
--kill-grace. The limit is the job's own, for plain tasks --timeout; the lease of such a task is extended as long as it
runs. Without --timeout a plain task's is shortly before its lease ends.
Children that outlive COMMAND have a second to end, then they are killed; on Linux also those that have left the group
(setsid), unless they have got another environment.

Scripts: a job may bring its own script. It is run instead of COMMAND, with the arguments of the job, by its #! line (by
/bin/sh if it has none) or by the runas template, and in the environment that the template sets; but only with
--allow-scripts, which lets everybody who may edit a template of these projects run any program as this user. Without
it such a job fails, with a line in its log that says why, and no environment variable of a template is set.

Stopping: after the first Ctrl-C or SIGTERM no more tasks are taken (the answer in flight, of 3 seconds at the most, is
waited for), and the running ones may finish (for --grace seconds at the most); the second kills them and releases them
as skipped; the third leaves at once. After SIGKILL of this worker its commands run on. A server that goes away is
waited for, with pauses of up to half a minute; results, and up to 512 KB of each log, are kept meanwhile."""

RUN_EXAMPLES = """\
examples:
  python3 worker.py run --project 3 --concurrency 8 --timeout 60 -- wget -q -- {recipe}
  python3 worker.py run --project 3 --skip-status 75 -- ./fetch.py
  python3 worker.py run --project 3 --until-empty -- sh -c 'convert "$TRACKER_RECIPE" "out/$TRACKER_TASK_ID.png"'
  python3 worker.py run --project 3 --project 7 --allow-scripts --grace 60
  python3 worker.py run --project 3 --count 1 --verbose -- cat

exit status: 0 all fine, also after SIGTERM when every running task could finish; 1 some task failed (with --count or
--until-empty); 2 usage, permission or server error, or a result that could not be delivered; 130 stopped by Ctrl-C;
143 stopped by SIGTERM and something had to be killed"""

FORGET_MANUAL = """\
Drops the credentials of one server, for instance when another database is behind its URL now. The next command that
needs a worker there registers a new one, which must be given access again. The tracker keeps the old worker."""


CREDENTIALS = option(
    "--credentials FILE",
    "who we are to each server (default: TRACKER_CREDENTIALS from the environment, or else"
    " tracker/credentials.json in this user's configuration folder)",
    type=lambda text: Path(text).expanduser(),
)
ALIAS = option(
    "--alias NAME", "what this worker is called; renames one that is registered already (default: the host name)"
)
PATIENCE = seconds(
    "--patience",
    0,
    "give up when the server does not answer for so long (default: never, but at once when it cannot be"
    " connected to at the very beginning)",
)
NO_WAIT = option("--no-wait", "leave with status 2 where access is to be granted first (default: wait for it)")
SUBMIT_OPTIONS = (
    CREDENTIALS,
    ALIAS,
    NO_WAIT,
    option("file FILE", "one recipe or JSON object per line, UTF-8; - reads standard input"),
    whole("--project N", 1, "id of the project to submit to (see status)", required=True),
    option(
        "--format",
        "auto: a line that starts with { is JSON; lines: every line is a recipe; json: every line is JSON",
        choices=("auto", "lines", "json"),
        default="auto",
    ),
    option(
        "--unique",
        "use the recipe as unique_string of each task that brings no hash or unique string: one that is waiting,"
        " assigned or failed is not stored a second time",
    ),
    whole("--priority N", -(2**63), "higher is assigned first (default: 0)"),
    whole("--max-retries N", 0, "a task that fails this often is FAILED (default: 0)"),
    whole("--max-assign-time SECONDS", 0, "a task held for longer goes to another worker (default: the tracker's)"),
    whole("--verification-count N", 0, "how many different workers must report the same result (default: 1)"),
    seconds("--delay", 0, "nobody is assigned the tasks before (default: at once)"),
    whole(
        "--batch N",
        1,
        "lines per request (default: %(default)s, which is also the most: more counts as that)",
        100_000,
        default=Input.PART_LINES,
    ),
    whole("--start-line N", 1, "skip the lines before this one: go on where an earlier run stopped", default=1),
    PATIENCE,
)
RUN_OPTIONS = (
    CREDENTIALS,
    ALIAS,
    NO_WAIT,
    option("argv COMMAND", "the program and its arguments", nargs=argparse.REMAINDER),
    whole(
        "--project N",
        1,
        "id of a project to take tasks from; may be given several times: the best task of them all comes first",
        action="append",
        required=True,
    ),
    whole("--concurrency K", 1, "tasks that run at a time", 1000, default=1),
    whole("--count N", 1, "stop after so many tasks"),
    option("--until-empty", "stop when no task is left but those that were skipped; each is tried once"),
    seconds("--timeout", 0.1, "a plain task fails when its command takes longer (default: as long as its lease)"),
    seconds(
        "--kill-grace",
        0,
        "time between SIGTERM and SIGKILL (default: %(default)s; the lease of a job ends 15 s after its time limit)",
        default=5,
    ),
    whole(
        "--skip-status STATUS",
        1,
        "exit status that means: not done, let another worker try; may be given several times",
        highest=255,
        action="append",
    ),
    option(
        "--allow-scripts",
        "run the scripts that jobs bring, in their templates' environment: trust everybody who may edit those",
    ),
    whole(
        "--max-attachments MIB", 1, "MiB that the attachments of a job may take (default: %(default)s)", default=1024
    ),
    option(
        "--stderr-level",
        "level of the log lines from standard error; warn makes a job that prints any show a warning",
        choices=("trace", "info", "warn", "error"),
        default="info",
    ),
    seconds("--heartbeat", 0.1, "ask so often whether a silent task is still ours", default=5),
    seconds("--grace", 0, "how long running tasks may go on after the first signal (default: until they end)"),
    PATIENCE,
    option("--verbose", "show every line that is printed, and every task that ends"),
)
STATUS_OPTIONS = (
    seconds("--watch", 0.1, "show it again, in place, every so often until Ctrl-C"),
    option("--json", "for programs"),
    seconds("--window", 1, "take the rate over the last so many seconds", default=600),
)

USER = option("--user NAME", "the manager; the password is asked for, or is TRACKER_PASSWORD", required=True)
EXPORT_OPTIONS = (
    ("project", {"metavar": "PROJECT", "type": int, "help": "its number"}),
    ("file", {"metavar": "FILE", "help": "where to, a file that is not there yet"}),
    USER,
    option("--without-secrets", "leave out the project's secret and webhook secret"),
    PATIENCE,
)
IMPORT_OPTIONS = (
    ("file", {"metavar": "FILE", "help": "what export has written; gzip may have packed it"}),
    USER,
    option("--name NAME", "how the project is called there (default: as it was)"),
    PATIENCE,
)

#: Of every command its function, what `--help` says of it, and the options it has besides --server.
COMMANDS = {
    "submit": (run_submit, "submit tasks from a file", SUBMIT_MANUAL, SUBMIT_EXAMPLES, SUBMIT_OPTIONS),
    "run": (run_tasks, "run a command for each task", RUN_MANUAL, RUN_EXAMPLES, RUN_OPTIONS),
    "status": (run_status, "show the projects and how far they are", STATUS_MANUAL, STATUS_EXAMPLES, STATUS_OPTIONS),
    "export": (run_export, "write a whole project into a file", EXPORT_MANUAL, EXPORT_EXAMPLES, EXPORT_OPTIONS),
    "import": (run_import, "make a project of such a file", IMPORT_MANUAL, "", IMPORT_OPTIONS),
    "forget": (run_forget, "drop the credentials of a server", FORGET_MANUAL, "", (CREDENTIALS,)),
}
USAGES = {"run": "worker.py run [option ...] --project N [--project N ...] -- COMMAND ..."}


def argument_parser() -> argparse.ArgumentParser:
    """Every command with its options; each names its function as `run`."""
    manual = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="worker.py", description=MANUAL, **manual)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    server = option(
        "--server URL",
        "the tracker, with the path under which it is served if there is one (default: TRACKER_SERVER from the"
        " environment, or else http://127.0.0.1:3010)",
        type=server_address,
        default=os.environ.get("TRACKER_SERVER") or "http://127.0.0.1:3010",
    )
    for name, (run, summary, description, examples, options) in COMMANDS.items():
        about = {"help": summary, "description": description, "epilog": examples, "usage": USAGES.get(name)}
        command = commands.add_parser(name, **about, **manual)
        command.set_defaults(run=run)
        for flag, settings in (server, *options):
            command.add_argument(flag, **settings)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed by who started us
        stream.reconfigure(errors="backslashreplace")  # what the terminal cannot show must not end the run
    if LACKS:
        fail(LACKS)
        if not {"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments):
            return EXIT_FAILED
    args = argument_parser().parse_args(arguments)
    if LACKS:  # the help was a task's command's
        return EXIT_FAILED
    interrupts = Interrupts()
    interrupts.install()
    try:
        return args.run(args, interrupts)
    except KeyboardInterrupt:
        return EXIT_SIGNAL + interrupts.signal
    except BrokenPipeError:  # who read our output has gone
        drop_what_nobody_takes(sys.stdout)
        return EXIT_FAILED
    except Fail as failure:
        fail(str(failure))
        return EXIT_FAILED
    finally:
        drop_what_nobody_takes(sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
