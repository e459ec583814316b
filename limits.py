"""How often anybody may do what a stranger could do without end: rates by worker and by address, kept in memory.

    a call ─► source_of: whose address? ─► Limits, a Rate each ─► passes, or TrackerError that names the setting

Each refusal is counted by the setting that it rests on, for the log (once a minute) and for the page of the settings.
What there may be of something at all is in the database: budgets.py.
"""

from __future__ import annotations

import functools
import logging
import math
import shutil
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import browsers
from errors import TrackerError
from heard import Heard

log = logging.getLogger("tracker")

MIB = 2**20
MOST_SOURCES = 20_000  # workers or addresses that a Rate remembers
LOG_BURST = 60.0  # seconds whose log lines may come at once
NUMBERS = 20  # managers in an hour that one may give roles by number without seeing them; and
TEAM = 3  # times as many may all managers who have logged in from the same address
JOB_BURST = 300.0  # and what strangers bring of jobs
REPEAT_TIME = 5.0  # and in which a call that was refused is there again, when it is time
HOUR = 3600.0
LAST_PART = 4  # the last of so many parts of a budget is for those who have no more than such a part
SITE = 8  # times what an address may do, may those of one /48 of IPv6 together
LARGEST_FLOOR = 20  # the floor of free disk is at most one part in so many of the disk
TELL_INTERVAL = 60.0  # seconds between two lines about the same limit


# Whose call it is


def source_of(client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The address to which a call counts; empty for a program on this machine, which no rate by address holds.

    A network of IPv6 (/64) is one address, for whoever has one has it whole. A client without an address (a unix
    socket, a test's client in this process) is on this machine too; one that a proxy brings along never is.
    """
    host = client[0][: browsers.LONGEST_ADDRESS] if client else ""
    local, source = _place_of(host)
    if local and not any(browsers.PROXIED.fullmatch(name) for name, _ in headers):
        return ""
    return source or "unknown"


@functools.lru_cache(maxsize=4096)
def _place_of(host: str) -> tuple[bool, str]:
    """Whether this may be on this machine, and whose address it is."""
    number = browsers.number_of(host)
    return number is None or number.is_loopback, browsers.network_of(host)


site_of = functools.lru_cache(maxsize=4096)(browsers.site_of)


# How often


class Rate:
    """So much a second for each source, of which what `seconds` bring may come at once.

    Remembers of each source the moment at which it will be as good as new, and forgets those that are. When too many
    are left, those go that are nearest to it: whoever floods from many addresses frees none that has taken more.
    """

    def __init__(self, rate: float, seconds: float, time: Callable[[], float], taken: Taken | None = None):
        """taken: notes what is taken in a transaction, which may come to nothing."""
        self.rate, self.seconds, self.time, self.taken = rate, seconds, time, taken
        self._until: dict[Any, float] = {}

    def delay(self, source: Any, amount: float = 1.0) -> float:
        """Seconds after which so much may pass; 0: it may now."""
        now = self.time()
        return max(0.0, max(self._until.get(source, now), now) + amount / self.rate - now - self.seconds)

    def take(self, source: Any, amount: float = 1.0) -> None:
        """So much has passed."""
        now = self.time()
        if len(self._until) >= MOST_SOURCES and source not in self._until:
            self._forget(now)
        self._until[source] = max(self._until.get(source, now), now) + amount / self.rate
        if self.taken is not None:
            self.taken.append((self, source, amount))

    def give_back(self, source: Any, amount: float) -> None:
        """So much has not passed after all."""
        if source in self._until:
            self._until[source] -= amount / self.rate

    def _forget(self, now: float) -> None:
        kept = [(until, source) for source, until in self._until.items() if until > now]
        if len(kept) > MOST_SOURCES // 2:
            kept = sorted(kept, key=lambda one: one[0])[-MOST_SOURCES // 2 :]
        self._until = {source: until for until, source in kept}


Taken = list[tuple[Rate, Any, float]]  # of which rate, by whom, how much


class AddressRate:
    """A Rate of addresses, beside which a /48 of IPv6, which one customer may have, has SITE times as much."""

    def __init__(self, rate: float, seconds: float, time: Callable[[], float], taken: Taken | None = None):
        self.networks, self.sites = Rate(rate, seconds, time, taken), Rate(SITE * rate, seconds, time, taken)

    def delay(self, source: str, amount: float = 1.0) -> float:
        """Seconds after which so much may pass; 0: it may now."""
        delay, site = self.networks.delay(source, amount), site_of(source)
        return delay if site == source else max(delay, self.sites.delay(site, amount))

    def take(self, source: str, amount: float = 1.0) -> None:
        """So much has passed."""
        self.networks.take(source, amount)
        if (site := site_of(source)) != source:
            self.sites.take(site, amount)


RATE_SLACK = 0.05  # seconds by which one may come late and still be as good as in time
LONGEST_INTERVAL = 1e12  # seconds


class Limit(NamedTuple):
    """A project's rate limit: of what, so many a second (not 0), and when it was or will be free."""

    kind: str
    project: int
    rate: float
    free: float

    @property
    def key(self) -> tuple[str, int]:
        return self.kind, self.project

    @property
    def interval(self) -> float:
        """Seconds between two that pass: a number, however low the rate is."""
        return min(1 / self.rate, LONGEST_INTERVAL)

    def after(self, uptime: float, count: int) -> float:
        """When it is free again after `count` tasks have passed it.

        What came a little late is caught up on, or all such delays would lower the rate: in w seconds
        rate * (w + RATE_SLACK) + 1 pass at the most. What nobody used for longer is lost, so no burst follows a pause.
        """
        return max(self.free, uptime - RATE_SLACK) + min(count / self.rate, LONGEST_INTERVAL)


class Rota:
    """Whose turn it is where a rate limit lets one through at a time: it goes round by worker.

    Whoever was refused has a moment of its own, which it is told, and which others leave to it: else one with many
    connections would have most of the rate. Only who has come back before has one kept, or those who ask once would
    waste the rate. In memory: after a restart all begin anew.
    """

    PATIENCE = 1.0  # seconds for which a turn is kept for a worker that does not come
    MOST = 10_000  # turns that are kept, of all limits together
    MOST_KNOWN = 1_000  # workers that have come back, of each limit
    MOST_LIMITS = 1_000  # of which those are known

    def __init__(self) -> None:
        self._turns: dict[Hashable, dict[int, float]] = {}  # by the limit: when each worker's turn is
        self._known: dict[Hashable, dict[int, None]] = {}  # who has come before, the one last who came last
        self._kept = 0

    def delay(self, limit: Hashable, worker: int, free: float, interval: float, now: float) -> float:
        """Seconds after which the worker may pass the limit, which is free from `free` on; 0: it may now.

        `interval`: between two that pass. What is said is kept for a worker that is known, until `took`.
        """
        self._forget(limit, now)
        turns = self._turns.get(limit, {})
        own = turns.get(worker)
        last = free + len(turns) * interval
        at = last if own is None else max(min(own, last), free)  # a higher rate brings turns forward
        if at <= now:
            return 0.0
        if own is not None:
            turns[worker] = at
        elif self._comes_again(limit, worker) and self._kept < self.MOST:
            self._turns.setdefault(limit, turns)[worker] = at
            self._kept += 1
        return at - now

    def took(self, limit: Hashable, worker: int) -> None:
        """The worker has had its turn."""
        self._comes_again(limit, worker)
        if self._turns.get(limit, {}).pop(worker, None) is not None:
            self._kept -= 1

    def _comes_again(self, limit: Hashable, worker: int) -> bool:
        """Whether the worker was known already."""
        if limit not in self._known and len(self._known) >= self.MOST_LIMITS:
            del self._known[next(iter(self._known))]
        known = self._known.setdefault(limit, {})
        before = worker in known
        known.pop(worker, None)
        known[worker] = None
        if len(known) > self.MOST_KNOWN:
            del known[next(iter(known))]
        return before

    def _forget(self, limit: Hashable, now: float) -> None:
        """Lets go of turns that nobody took, and of who did not: at this limit; at all, when too many are kept."""
        for one in [limit] if self._kept < self.MOST else list(self._turns):
            turns = self._turns.get(one, {})
            while turns and next(iter(turns.values())) <= now - self.PATIENCE:
                worker = next(iter(turns))
                del turns[worker]
                self._kept -= 1
                self._known.get(one, {}).pop(worker, None)
            if not turns:
                self._turns.pop(one, None)


class Gauge(NamedTuple):
    """How much there is of something in memory, how much there may be, and how often that was reached."""

    used: int
    most: int
    refused: int
    bytes: bool = False


class Limits:
    """What a running tracker lets pass, and whether its disk is nearly full."""

    def __init__(self, settings: Any, time: Callable[[], float]):
        self.settings, self.time = settings, time
        self.registrations = AddressRate(settings.registration_rate / HOUR, HOUR, time)
        self.taken: Taken = []  # in the transaction that is open
        self.keyless = AddressRate(settings.keyless_rate / HOUR, HOUR, time, self.taken)
        self.worker_logs = Rate(1024 * settings.worker_log_rate, LOG_BURST, time, self.taken)
        self.address_logs = AddressRate(1024 * settings.address_log_rate, LOG_BURST, time, self.taken)
        self.stranger_jobs = AddressRate(1024 * settings.stranger_job_rate, JOB_BURST, time, self.taken)
        self.numbers = Rate(NUMBERS / HOUR, HOUR, time, self.taken)
        self.network_numbers = AddressRate(TEAM * NUMBERS / HOUR, HOUR, time, self.taken)
        kept, most = max(1.0, settings.testflinger_retention), {"testflinger": settings.testflinger_max_data}
        most["files"] = settings.testflinger_max_files  # bytes of Testflinger's guests, each of whom may have a part
        self.guests = {name: Rate(MIB * one / LAST_PART / kept, kept, time, self.taken) for name, one in most.items()}
        self.rota = Rota()
        self.heard = Heard(time, settings.max_wait)
        self.free_disk: int | None = None  # bytes, when it was last looked at
        self.disk_low = False
        self.refused: Counter[str] = Counter()  # by the setting, since the start
        self.gauges: dict[str, Callable[[], Gauge]] = {}  # of what is in memory, by the setting or in words
        self._told: dict[str, tuple[float, int]] = {}  # when, and how many there were

    def give_back(self) -> None:
        """The transaction is undone: nothing of what was taken in it has passed."""
        for rate, source, amount in self.taken:
            rate.give_back(source, amount)
        self.taken.clear()

    def register(self, source: str) -> None:
        """A worker or a manager wants to register from this address. 429 when too many have."""
        self._pass(self.registrations, "registration_rate", "registrations", source)

    def make_without_key(self, source: str) -> None:
        """Somebody at this address wants a job that everybody may have. 429 when too many were made from there."""
        self._pass(self.keyless, "keyless_rate", "jobs without a key", source)

    def _pass(self, rate: AddressRate, setting: str, what: str, source: str, amount: float = 1.0) -> None:
        """So much more from this address; from this machine as much as it likes."""
        if source:
            if delay := rate.delay(source, amount):
                problem = f"Too many {what} from your address; please wait"
                raise self.refusal(setting, problem, "too_fast", delay)
            rate.take(source, amount)

    def passes_line(self, worker: int, source: str, size: int) -> bool:
        """Whether a log line of so many bytes is to be kept; else it is counted as one that was not."""
        if self.drops_line():
            return False
        if self.worker_logs.delay(worker, size):
            return self.beyond("worker_log_rate")
        if source and self.address_logs.delay(source, size):
            return self.beyond("address_log_rate")
        self.worker_logs.take(worker, size)
        if source:
            self.address_logs.take(source, size)
        return True

    def may_guess(self, manager: int, networks: Sequence[str]) -> bool:
        """Whether a manager who has logged in from there may name another number of somebody whom it does not see.

        It is counted, as of the manager, so of those: whoever registers under many names would have as much for each.
        """
        if self.numbers.delay(manager) or any(map(self.network_numbers.delay, networks)):
            return False
        self.numbers.take(manager)
        for network in networks:
            self.network_numbers.take(network)
        return True

    def bring_as_stranger(self, source: str, size: int, patience: float = math.inf) -> None:
        """A worker without access brings so many bytes of a job from this address. 429 when too much was brought.

        What is larger than all that may come at once is taken when nothing else was: else it would be refused for
        ever. What comes next waits until all of it is made up for. So it does after what is lost unless it is taken
        within `patience` (seconds), which has as much again for itself.
        """
        most = int(0.99 * 1024 * self.settings.stranger_job_rate * JOB_BURST)
        delay = self.stranger_jobs.delay(source, min(size, most)) if source else 0.0
        if delay > JOB_BURST or 0.0 < delay < patience - REPEAT_TIME:
            problem = "Too many log lines and results of jobs from your address; please wait"
            raise self.refusal("stranger_job_rate", problem, "too_fast", delay)
        if source:
            self.stranger_jobs.take(source, size)

    def drops_line(self) -> bool:
        """Whether log lines are dropped, and this one counted, because the disk is nearly full."""
        return self.disk_low and not self.beyond("min_free_disk")

    def check_disk(self) -> None:
        """Refuses what brings something to be stored while the disk is nearly full: 503."""
        if self.disk_low:
            raise self.refusal("min_free_disk", "The disk is nearly full; please try again later")

    def look_at_disk(self, folder: Path) -> None:
        """Notes how much of the disk is free. (Blocks for as long as the disk takes to say so.)"""
        try:
            disk = shutil.disk_usage(folder)
        except OSError:  # it was moved, say: there is nothing to be said of the disk
            return
        floor = min(MIB * self.settings.min_free_disk, disk.total // LARGEST_FLOOR)
        self.free_disk = disk.free
        if self.disk_low != (disk.free < floor):
            self.disk_low = disk.free < floor
            log.warning("%d MiB of disk are free: %s", disk.free // MIB, ABOUT_DISK[self.disk_low])

    def refusal(
        self, setting: str, problem: str, code: str = "unavailable", delay: float | None = None
    ) -> TrackerError:
        """The refusal of what is beyond a setting, which it names."""
        self.beyond(setting)
        return TrackerError(code, f"{problem} (setting {setting})", delay=delay)

    def beyond(self, setting: str) -> bool:
        """Counts something that was beyond a setting. False."""
        self.refused[setting] += 1
        at, count = self._told.get(setting, (-TELL_INTERVAL, 0))
        if self.time() - at >= TELL_INTERVAL:
            log.warning("%d refused or dropped: %s is reached", self.refused[setting] - count, setting)
            self._told[setting] = self.time(), self.refused[setting]
        return False


ABOUT_DISK = {
    True: "tasks, jobs and uploads are refused, and log lines dropped, until there are more (min_free_disk)",
    False: "tasks, jobs and uploads are taken again",
}
