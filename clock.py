"""The one clock: what people read, what leases rest on, and which time is trusted to delete things by.

A clock may be wrong: a battery is empty, a year is mistyped. So the time that was seen last is kept in the database
(as `Seen`), with the uptime at which it was; the clock is trusted as long as it agrees with that and with what has
passed since. While it does not, times are still noted as it shows them, but nothing is deleted for its age.
"""

from __future__ import annotations

import logging
import threading
import time

import msgspec

log = logging.getLogger("tracker")

AHEAD = 30 * 86400  # seconds by which it may have gone on: a laptop was off, nobody served the database
BACK = 3600  # and by which it may have been set back
SAY_INTERVAL = 3600.0  # seconds from one line in the log to the next
ENOUGH = 7 * 86400  # seconds of service after which a clock is believed that nobody has set right
LATEST = 253_370_764_800  # the year 9999, the last that a date can be written in: what ends in a month has one as well


class Seen(msgspec.Struct, kw_only=True):
    """What is known of the clock: the time that was seen last, and since when another one has been shown."""

    time: float  # the last that was trusted
    uptime: float  # when it was seen
    doubted: float | None = None  # the uptime since which the clock shows something else; None: it is trusted
    other_time: float = 0.0  # what it showed last, while it is in doubt
    other_uptime: float = 0.0
    # While it was in doubt, things may have been noted with times that are much too early, from this one on: retention
    # leaves them alone for as long as it would have those of the moment at which the clock was trusted again.
    earliest: float | None = None
    settled: float = 0.0


class Clock:
    """The only source of time. `time()` is the wall clock, in unix seconds, for what people read.

    `uptime()` counts the seconds for which this database has been served, over all runs. Leases and rate limits live
    on it: it never jumps when the wall clock is set, and stands still while the tracker is down, when nobody could
    have released anything.

    `trusted_unix()` is the wall clock while that is trusted, and goes on from the time seen last while it is not. What
    has a due time, or ends a login, goes by it; `before()` is what retention goes by.
    """

    def __init__(self) -> None:
        self._origin = time.monotonic()
        self._seen: Seen | None = None  # nothing is known: it is trusted
        self._say_at = 0.0  # the uptime at which it is said again that it is in doubt
        self._looking = threading.RLock()  # readers have threads of their own

    def start(self, uptime: float, seen: Seen | None = None) -> None:
        """Goes on from the uptime that an earlier run had reached, and compares the clock with what that had seen."""
        self._origin = time.monotonic() - uptime
        self._seen = seen or Seen(time=self.time(), uptime=uptime)
        self.look()

    def time(self) -> float:
        return bounded(time.time())

    def uptime(self) -> float:
        return time.monotonic() - self._origin

    @property
    def trusted(self) -> bool:
        """Whether the wall clock agrees with what is known, or has been believed."""
        seen = self.look()
        return seen is None or seen.doubted is None

    def trusted_unix(self) -> float:
        """The unix time, as far as it can be trusted: due times and the ends of logins go by it."""
        seen = self.look()
        if seen is None or seen.doubted is None:
            return self.time()
        return seen.time + self.uptime() - seen.uptime

    def before(self, seconds: float) -> float:
        """What was noted before this (unix time) is older than so many seconds for certain. 0 while nothing is."""
        return min(self.certain(seconds), self.time() - seconds)

    def certain(self, seconds: float) -> float:
        """What was noted before this (unix time) was not noted in the last so many seconds by a clock in doubt."""
        seen, now = self.look(), self.time()
        if seen is None or (seen.doubted is None and (seen.earliest is None or now - seconds >= seen.settled)):
            return now
        return 0.0 if seen.doubted is not None else seen.earliest

    @property
    def settled(self) -> float:
        """When it was set right for the last time; now, where that is not known."""
        return (self._seen and self._seen.settled) or self.time()

    def look(self) -> Seen | None:
        """Compares the clock with what it should show. What is known of it now; None before `start`."""
        with self._looking:
            if (seen := self._seen) is not None:
                now, uptime = self.time(), self.uptime()
                if agrees(now - seen.time, uptime - seen.uptime):
                    self._trust(seen, now, uptime)
                else:
                    self._doubt(seen, now, uptime)
            return seen

    def believe(self) -> None:
        """The clock is right as it stands: somebody says so, or it has been shown for long."""
        with self._looking:
            if self._seen is not None:
                self._trust(self._seen, self.time(), self.uptime())

    def _trust(self, seen: Seen, now: float, uptime: float) -> None:
        self._say_at = 0.0
        if seen.doubted is not None:
            seen.doubted, seen.settled = None, now
            if seen.earliest is not None and seen.earliest > now - BACK:
                seen.earliest = None  # nothing was noted with a time that is too early
            log.warning("The clock is trusted from now on; it shows %s", as_utc(now))
        seen.time, seen.uptime = now, uptime

    def _doubt(self, seen: Seen, now: float, uptime: float) -> None:
        another = seen.doubted is not None and not agrees(now - seen.other_time, uptime - seen.other_uptime)
        if seen.doubted is None or another:
            seen.doubted = uptime
            seen.earliest = now if seen.earliest is None else min(now, seen.earliest)
        seen.other_time, seen.other_uptime = now, uptime
        if uptime - seen.doubted >= ENOUGH:
            self._trust(seen, now, uptime)
        elif uptime >= self._say_at:
            self._say_at = uptime + SAY_INTERVAL
            log.warning("%s", self.doubt())

    def doubt(self) -> str:
        """Why the clock is not trusted, and what ends that, in a sentence; empty while it is."""
        seen = self._seen
        if seen is None or seen.doubted is None:
            return ""
        expected = seen.time + self.uptime() - seen.uptime
        days = max(0.0, ENOUGH - (self.uptime() - seen.doubted)) / 86400
        return (
            f"The clock shows {as_utc(self.time())}, and by what this database has seen it should be"
            f" {as_utc(expected)} or soon after: nothing is deleted for its age until the clock is set right, an admin"
            f" says on the page Administration that it is right, or {days:.1f} more days of service have passed"
        )

    def known(self) -> str:
        """What is known of the clock, to be kept in the database (JSON)."""
        seen = self.look() or Seen(time=self.time(), uptime=self.uptime())
        return msgspec.json.encode(seen).decode()


def bounded(time_stamp: float) -> float:
    """The time that is reckoned with when a clock shows this: one that can be written as a date, from 1970 on."""
    return min(max(0.0, time_stamp), LATEST)


def read_seen(text: str) -> Seen:
    """What `known` has written."""
    return msgspec.json.decode(text, type=Seen)


def agrees(passed: float, served: float) -> bool:
    """Whether so much can have passed on the clock while the database was served for so long, in seconds."""
    return -BACK <= passed - served <= AHEAD


def as_utc(time_stamp: float) -> str:
    """A time as people read it, however far off."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_stamp))
    except (OverflowError, ValueError, OSError):
        return f"{time_stamp:.0f} (unix time)"
