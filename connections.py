"""What all connections of a server share: how many there may be, whose turn it is to be read, how they end.

    a new one ─► Crowd.let_in (is there room? or else one that has long been idle makes it, or the new one gets 503)
    an answer that is not taken in ─► Unsent (how long, and how little of it)

Nothing here knows HTTP: server.py does.
"""

from __future__ import annotations

import collections
import errno
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from errors import TrackerError
from limits import Gauge
from shares import Shares
from turns import Turns

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None

log = logging.getLogger("tracker")

RESERVED_DESCRIPTORS = 96  # for the database, files that are sent or received, webhooks, those who are turned away
MOST_TURNED_AWAY = 32  # connections beyond the limit that are open until they have been told so
LEAST_TAKEN = 48 * 1024  # bytes of an answer that its client takes in within request_timeout
MOST_AHEAD = 128 * 1024  # bytes of an answer that the system takes from us before the client takes them in
MOST_UNREAD = 32 * 2**20  # bytes that have come and wait to be read, on all connections together
MOST_UNSENT = 32 * 2**20  # bytes of answers that wait in memory for their clients to take them in, of all together
STALLED = 5.0  # seconds after which a client that sends or takes in nothing makes room for another one
PART = 4  # whoever has more than one part in so many of what there may be makes room before others do


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


LEAST_DESCRIPTORS = 32  # it listens with 26


def check_descriptors(most: int) -> None:
    """Refuses to start where the system allows so few open files that nobody could be served: each part would fail."""
    room_for(most)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else math.inf
    if 0 <= soft < LEAST_DESCRIPTORS:
        problem = f"The system allows {soft} open files (ulimit -n), of which each connection takes one"
        raise TrackerError("start", f"{problem}: a tracker needs {LEAST_DESCRIPTORS}")


class Seldom:
    """A log that says the same thing once a minute, and how often it happened meanwhile."""

    INTERVAL = 60.0  # seconds

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def warning(self, message: str, *args: Any) -> None:
        """`message` tells what happened, without what a stranger chose; `args` are of this one time."""
        self.say(logging.WARNING, message, *args)

    def error(self, message: str, *args: Any) -> None:
        """The same of what somebody has to mend."""
        self.say(logging.ERROR, message, *args)

    def say(self, level: int, message: str, *args: Any) -> None:
        since, untold = self._said.get(message, (-self.INTERVAL, 0))
        now = time.monotonic()
        if now - since < self.INTERVAL:
            self._said[message] = since, untold + 1
            return
        self._said[message] = now, 0
        log.log(level, message + (f" (and {untold} times more since it was last said)" if untold else ""), *args)


class Connection(Protocol):
    """What is asked here of a connection."""

    client: tuple[str, int] | None  # the other end's address and port

    def idle_since(self, now: float, patience: float = STALLED) -> float | None:
        """Since when nothing has been going on that anybody else would wait for; None if something is.

        Who is in the middle of sending or taking in something has `patience` (seconds).
        """

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
    """All connections of a server, at most `most`. `whose` says by address to whom one counts; empty: to nobody."""

    RESCAN = 0.1  # seconds after which one may be idle where none was
    LOOK = 1e-5  # seconds for each connection after which all may be looked at again, which takes a tenth of it

    def __init__(self, most: int, turns: Turns, whose: Callable[[tuple[str, int] | None], str] = lambda client: ""):
        self.most, self.seldom, self.whose = room_for(most), Seldom(), whose
        self.open = self.unsent = self.reached = self.cut = 0  # the first two as of the last look
        self.cause = "max_connections" if self.most == most else "the system's limit of open files"
        self.turns = turns
        self.unread = Shares(MOST_UNREAD)
        self._idle: list[tuple[bool, bool, float, int, Connection]] = []  # the longest idle one last, of who has most
        self._counts: collections.Counter[str] = collections.Counter()  # of connections, when they were looked at
        self._none_until = self._looked = 0.0
        self._turned_away: collections.deque[Connection] = collections.deque()
        self._unsent: set[Connection] = set()

    def let_in(self, new: Connection, connections: set[Connection], now: float) -> None:
        """Makes room for a new connection where there is none, or has it be turned away."""
        self.reached += 1
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
        """Looks at all of them once for many who come: of those found idle most are so for the next ones, too.

        An address that has a large part of all makes room first, also with what it is in the middle of sending: else
        it could open new ones until those of others were closed, or none was idle.
        """
        comes_from = self.whose(new.client)
        self._counts[comes_from] += 1
        had_fewer = self._has_most(comes_from) and self._idle and self._idle[-1][0]  # at the last look
        if had_fewer and now > self._looked + self.LOOK * len(connections):
            self._idle = []
        for again in (False, True):
            if again:
                if now < self._none_until:
                    return None
                self._idle, self._looked = self._all_idle(connections, new, now), now
            while self._idle:
                others, _, since, _, one = self._idle.pop()
                if one not in connections or one.idle_since(now, STALLED * others) != since:
                    continue
                whose = self.whose(one.client)
                if others or self._has_most(whose):
                    self._counts[whose] -= 1
                    return one
        self._none_until = now + self.RESCAN
        return None

    def _all_idle(
        self, connections: set[Connection], new: Connection, now: float
    ) -> list[tuple[bool, bool, float, int, Connection]]:
        """Those that can make room, the first one last."""
        owners = [(self.whose(one.client), one) for one in connections]
        self._counts = collections.Counter(whose for whose, _ in owners)
        large = {whose for whose in self._counts if self._has_most(whose)}
        found = []
        for whose, one in owners:
            others = whose not in large
            if one is not new and (since := one.idle_since(now, STALLED * others)) is not None:
                in_the_middle = not others and one.idle_since(now) is None
                found.append((others, in_the_middle, since, id(one), one))
        return sorted(found, reverse=True)

    def _has_most(self, whose: str) -> bool:
        """Whether an address has a large part of all connections."""
        return whose != "" and self._counts[whose] > self.most / PART

    def look(self, connections: int) -> None:
        """Notes how many there are, and how much they have not taken in. Called now and then."""
        self.open, self.unsent = connections, sum(one.unsent_bytes() for one in self._unsent)

    def gauge(self) -> Gauge:
        """How many connections there are."""
        return Gauge(self.open, self.most, self.reached)

    def unsent_gauge(self) -> Gauge:
        """How much of the answers their clients have not taken in."""
        return Gauge(self.unsent, MOST_UNSENT, self.cut, True)

    def check_files(self) -> None:
        """Says so when no file can be opened any more: then new connections are lost without a word."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.seldom.warning("There are too many open files: connections are lost (raise the system's limit)")

    def note_unsent(self, one: Connection) -> None:
        """Its client takes in its answers less fast than they come. Cuts off others that do so least, if need be.

        Those of an address that has a large part of all come first.
        """
        self._unsent.add(one)
        amounts = {other: other.unsent_bytes() for other in self._unsent}
        if (left := sum(amounts.values())) <= MOST_UNSENT:
            return
        theirs: collections.Counter[str] = collections.Counter()
        for other, amount in amounts.items():
            theirs[self.whose(other.client)] += amount
        theirs[""] = 0

        def turn(other: Connection) -> tuple[bool, float]:
            return theirs[self.whose(other.client)] <= MOST_UNSENT / PART, other.unsent.since

        for other in sorted(self._unsent - {one}, key=turn):
            left -= amounts[other]
            self._unsent.discard(other)
            other.abort()
            self.cut += 1
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
