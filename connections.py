"""What all connections of a server share: how many there may be, whose turn it is to be read, how they end.

    a new one ─► Crowd.let_in (is there room? or else one that has long been idle makes it, or the new one gets 503)
    an answer that is not taken in ─► Unsent (how long, and how little of it)

Nothing here knows HTTP: server.py does.
"""

from __future__ import annotations

import collections
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from turns import Turns

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None

log = logging.getLogger("tracker")

RESERVED_DESCRIPTORS = 64  # for the database, files that are sent or received, webhooks
MOST_TURNED_AWAY = 32  # connections beyond the limit that are open until they have been told so
LEAST_TAKEN = 48 * 1024  # bytes of an answer that its client takes in within request_timeout
MOST_AHEAD = 128 * 1024  # bytes of an answer that the system takes from us before the client takes them in
MOST_UNSENT = 64 * 2**20  # bytes of answers that wait in memory for their clients to take them in, of all together
STALLED = 5.0  # seconds after which a client that sends or takes in nothing makes room for another one


def room_for(most: int) -> int:
    """How many connections there can be, `most` at the most: each takes a file descriptor.

    Has the system allow as many as it may; what it gives by itself is often 1024, or 256.
    """
    if resource is None:
        return most
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError):  # macOS has a limit of the whole system below what it calls unlimited
            pass
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft - RESERVED_DESCRIPTORS))


class Seldom:
    """A log that says the same thing once a minute, and how often it happened meanwhile."""

    INTERVAL = 60.0  # seconds

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def warning(self, message: str, *args: Any) -> None:
        """`message` tells what happened, without what a stranger chose; `args` are of this one time."""
        since, untold = self._said.get(message, (-self.INTERVAL, 0))
        now = time.monotonic()
        if now - since < self.INTERVAL:
            self._said[message] = since, untold + 1
            return
        self._said[message] = now, 0
        log.warning(message + (f" (and {untold} times more since it was last said)" if untold else ""), *args)


class Connection(Protocol):
    """What is asked here of a connection."""

    def idle_since(self, now: float) -> float | None:
        """Since when nothing has been going on that anybody else would wait for; None if something is."""

    def make_room(self) -> None:
        """Ends it, for another one."""

    def turn_away(self) -> None:
        """Has its first request be answered with 503."""

    def abort(self) -> None:
        """Ends it at once, whatever has not been sent."""

    def unsent_bytes(self) -> int:
        """How much of its answers its client has not taken in."""

    unsent: Unsent


class Crowd:
    """All connections of a server, at most `most`."""

    RESCAN = 0.1  # seconds after which one may be idle where none was

    def __init__(self, most: int, turns: Turns):
        self.most, self.seldom = room_for(most), Seldom()
        self.cause = "max_connections" if self.most == most else "the system's limit of open files"
        self.turns = turns
        self._idle: list[tuple[float, int, Connection]] = []  # the longest idle one last
        self._none_until = 0.0
        self._turned_away: collections.deque[Connection] = collections.deque()
        self._unsent: set[Connection] = set()

    def let_in(self, new: Connection, connections: set[Connection], now: float) -> None:
        """Makes room for a new connection where there is none, or has it be turned away."""
        self.seldom.warning(
            "There are %d connections, as many as there may be (%s): those make room that are idle",
            self.most,
            self.cause,
        )
        if other := self._longest_idle(connections, new, now):
            return other.make_room()
        new.turn_away()
        self._turned_away.append(new)
        if len(self._turned_away) > MOST_TURNED_AWAY:
            oldest = self._turned_away.popleft()
            if oldest in connections:
                oldest.abort()

    def _longest_idle(self, connections: set[Connection], new: Connection, now: float) -> Connection | None:
        """Looks at all of them once for many who come: of those found idle most are so for the next ones, too."""
        for again in (False, True):
            if again:
                if now < self._none_until:
                    return None
                since = [(one.idle_since(now), id(one), one) for one in connections if one is not new]
                self._idle = sorted((one for one in since if one[0] is not None), reverse=True)
            while self._idle:
                since, _, one = self._idle.pop()
                if one in connections and one.idle_since(now) == since:
                    return one
        self._none_until = now + self.RESCAN
        return None

    def check_files(self) -> None:
        """Says so when no file can be opened any more: then new connections are lost without a word."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.seldom.warning("There are too many open files: connections are lost (raise the system's limit)")

    def note_unsent(self, one: Connection) -> None:
        """Its client takes in its answers less fast than they come. Cuts off others that do so least, if need be."""
        self._unsent.add(one)
        left = sum(other.unsent_bytes() for other in self._unsent)
        others = sorted(self._unsent - {one}, key=lambda other: other.unsent.since) if left > MOST_UNSENT else ()
        for other in others:
            left -= other.unsent_bytes()
            self._unsent.discard(other)
            other.abort()
            self.seldom.warning("A client is cut off that does not take in its answer, as too many wait in memory")
            if left <= MOST_UNSENT:
                return

    def forget_unsent(self, one: Connection) -> None:
        """Its client has taken in its answers, or has gone."""
        self._unsent.discard(one)


class Flow(FlowControl):
    """uvicorn's flow control, beside which we stop reading from a connection that has sent much at once.

    `more` is called when uvicorn wants more of what has come already.
    """

    held = False

    def __init__(self, transport: Any, more: Callable[[], None]):
        super().__init__(transport)
        self.more = more

    @property
    def stopped(self) -> bool:
        """Whether what the client sends stays with the system."""
        return self.held or self.read_paused

    def hold(self) -> None:
        if not self.held:
            self.held = True
            if not self.read_paused:
                self._transport.pause_reading()

    def free(self) -> None:
        if self.held:
            self.held = False
            if not self.read_paused and not self._transport.inner.is_closing():
                self._transport.resume_reading()

    def pause_reading(self) -> None:
        if self.held:
            self.read_paused = True
        else:
            super().pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            if self.held:
                self.more()
            else:
                self._transport.resume_reading()


class Unsent:
    """How long a client has been taking in too little of its answers: it is looked at now and then."""

    __slots__ = ("bytes", "since")

    def __init__(self) -> None:
        self.bytes, self.since = 0, 0.0

    def look(self, left: int, now: float) -> None:
        """`left` bytes are still to be sent. The time begins anew whenever LEAST_TAKEN were."""
        if not self.bytes or left <= self.bytes - LEAST_TAKEN:
            self.since = now
            self.bytes = left
        else:  # or it has been given more
            self.bytes = max(left, self.bytes) if left else 0


def limit_unsent(listening: socket.socket) -> None:
    """Lets the system take little of an answer in advance. Or else it takes megabytes, and tells of no progress."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_AHEAD)


READING = "pause_reading", "resume_reading"


class Transport:
    """A connection as uvicorn sees it. What uvicorn closes is ended by `end`: so that its last answer can be read."""

    __slots__ = (
        "closing",
        "end",
        "get_extra_info",
        "get_protocol",
        "inner",
        "pause_reading",
        "resume_reading",
        "write",
    )

    def __init__(self, inner: Any, end: Callable[[], None]):
        self.inner, self.end, self.closing = inner, end, False
        self.write, self.get_extra_info, self.get_protocol = inner.write, inner.get_extra_info, inner.get_protocol
        self.pause_reading, self.resume_reading = inner.pause_reading, inner.resume_reading

    def is_closing(self) -> bool:
        return self.closing or self.inner.is_closing()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.end()
