"""Workers that wait for a task: each that becomes ready wakes one of them, one that cannot take it wakes the next.

    commit ─► Waiters.announce(project, count) ─► those whose turn it is attempt again; turns go round by worker

Those that had rather ask again and again are made to wait as well: Polls says how long. An attempt is whatever its
caller makes of it; nothing here knows a database.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

from errors import TrackerError
from shapes import Task
from shares import Holding, Shares


class Assigned(NamedTuple):
    """What an attempt to be assigned tasks came to."""

    tasks: list[Task]
    reason: str = ""  # why there is none
    others: bool = False  # whether tasks are ready that this worker may not have
    delay: float = 0  # seconds for which a rate limit now keeps everybody from the next task
    pause: float = 0  # seconds after which this worker, which is paused, may have one


class Waiter:
    """One request that waits for a task of some projects."""

    __slots__ = ("over", "projects", "timer", "turn", "woken", "worker")

    def __init__(self, projects: Sequence[int], worker: Hashable = None):
        self.projects = projects
        self.worker = self if worker is None else worker
        self.woken: asyncio.Future | None = None
        self.timer: asyncio.TimerHandle | None = None  # of a turn of its own
        self.turn = 0  # the last wake-up that it tried and could not use
        self.over = False  # it waits no longer, for others' sake


class Line:
    """The requests that wait for one project, of one worker after the other, each worker's oldest first."""

    def __init__(self) -> None:
        self._workers: dict[Hashable, dict[Waiter, None]] = {}  # whose turn is next comes first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiter]:
        return itertools.chain.from_iterable(self._workers.values())

    def join(self, waiter: Waiter) -> None:
        self._workers.setdefault(waiter.worker, {})[waiter] = None
        self._count += 1

    def leave(self, waiter: Waiter) -> None:
        theirs = self._workers.get(waiter.worker, {})
        if waiter in theirs:
            del theirs[waiter]
            self._count -= 1
            if not theirs:
                del self._workers[waiter.worker]

    def next(self) -> Waiter:
        """The first one of the worker whose turn it is, which then goes behind the others. The line is not empty."""
        worker, theirs = next(iter(self._workers.items()))
        self._workers[worker] = self._workers.pop(worker)
        return next(iter(theirs))


class Waiters:
    """Who waits for tasks. Each task that becomes ready wakes one worker; one that cannot take it wakes the next.

    A waiter joins before its first attempt, so that a task committed between attempt and wait cannot be missed. At most
    `most` requests wait at the same time: beyond that, who waits longest of the address with most waits makes room.
    """

    def __init__(self, most: float = math.inf) -> None:
        self.most, self.shares = most, Shares(most)
        self._queues: dict[int, Line] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._turn = 0
        self._closed = False
        self._resting, self._rest_shares = set[asyncio.Future](), Shares(most / 10)

    def __len__(self) -> int:
        return len({waiter for queue in self._queues.values() for waiter in queue})

    def announce(self, project: int, count: int) -> None:
        """`count` tasks of the project have become ready: wakes as many requests, of one worker after the other."""
        queue = self._queues.get(project)
        if queue:
            self._turn += 1
            for _ in range(min(count, len(queue))):
                self._wake(queue.next(), self._turn)

    async def assign(
        self,
        projects: Sequence[int],
        attempt: Callable[[], Awaitable[Assigned]],
        seconds: float,
        gone: asyncio.Future,
        least: float = 0.0,
        source: str = "",
        worker: Hashable = None,
    ) -> Assigned:
        """Attempts now and after each wake-up. No tasks: after `seconds`, when the client is `gone`, or at the stop.

        If as many wait as may, after the `least` time, by which polls in vain are slowed, unless more wait at another
        address than at this one (`source`). A refusal of the attempt is raised, but a rate limit that ends in time is
        waited for.
        """
        loop, waiter = asyncio.get_running_loop(), Waiter(projects, worker)
        held = Holding(source, lambda: self._end(waiter))
        if not self.shares.hold(held, 1):
            self.shares.leave(held)
            seconds = least
        ends = loop.time() + seconds
        self._join(waiter)
        try:
            while True:
                outcome = await self._attempt(waiter, attempt, ends - loop.time())
                if outcome.tasks:
                    if len(projects) > 1:  # woken for one project, it may have taken another one's task
                        self._pass_on(waiter)
                    return outcome
                if outcome.others:
                    self._pass_on(waiter)
                if not await self._woken(waiter, ends - loop.time(), gone):
                    return outcome
        except BaseException:
            self._pass_on(waiter)  # the wake-up that led to this attempt came to nothing
            raise
        finally:
            self.shares.leave(held)
            self._remove(waiter)
            if waiter.timer:
                waiter.timer.cancel()
            if waiter.woken.done():
                self._pass_on(waiter)  # one more arrived that no attempt followed

    async def rest(self, seconds: float, gone: asyncio.Future, source: str = "") -> None:
        """Returns after so many seconds, when the client is `gone`, or at the stop.

        So rest those who have no access, and get none by waiting: they share a tenth of the places, and beyond it rest
        for a moment only, lest they ask all the more often.
        """
        if self._closed:
            return
        stop = asyncio.get_running_loop().create_future()
        held = Holding(source, lambda: stop.done() or stop.set_result(None))
        if not self._rest_shares.hold(held, 1):
            self._rest_shares.leave(held)
            seconds = min(seconds, LONGEST_HOLD)
        self._resting.add(stop)
        try:
            await asyncio.wait((stop, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._rest_shares.leave(held)
            self._resting.discard(stop)

    async def _attempt(self, waiter: Waiter, attempt: Callable, left: float) -> Assigned:
        """What came of an attempt. Raises its refusal, unless that is a rate limit which ends within `left` seconds."""
        try:
            outcome = await attempt()
        except TrackerError as error:
            if error.code != "too_fast" or error.delay > left:
                raise
            outcome = Assigned([], error.problem, others=len(waiter.projects) > 1, delay=error.delay)
        if own := outcome.pause or (not outcome.tasks and outcome.delay):
            self._wake_itself(waiter, own)
        if outcome.delay:
            for project in waiter.projects:
                self._wake_later(project, outcome.delay)
        return outcome

    async def _woken(self, waiter: Waiter, seconds: float, gone: asyncio.Future) -> bool:
        """Waits for the next wake-up. False when there will be none."""
        if self._closed or waiter.over:
            return False
        await asyncio.wait((waiter.woken, gone), timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() or not waiter.woken.done() or waiter.over:
            return False
        self._join(waiter)
        return True

    def _join(self, waiter: Waiter) -> None:
        """From now on it is woken, once, behind those that wait already."""
        waiter.woken = asyncio.get_running_loop().create_future()
        for project in waiter.projects:
            self._queues.setdefault(project, Line()).join(waiter)

    def _remove(self, waiter: Waiter) -> None:
        """It is woken no more."""
        for project in waiter.projects:
            if queue := self._queues.get(project):
                queue.leave(waiter)
                if not queue:
                    del self._queues[project]

    def _wake(self, waiter: Waiter, turn: int) -> None:
        """Its turn to attempt. It has to join again to be woken a second time."""
        self._remove(waiter)
        waiter.turn = turn
        waiter.woken.set_result(None)

    def _end(self, waiter: Waiter) -> None:
        """It is answered now."""
        waiter.over = True
        if not waiter.woken.done():
            self._remove(waiter)
            waiter.woken.set_result(None)

    def _pass_on(self, waiter: Waiter) -> None:
        """Wakes one worker a project that has not had this turn yet, so that a turn goes round once at the most."""
        if self._closed:
            return
        for project in waiter.projects:
            other = next((one for one in self._queues.get(project, ()) if one.turn < waiter.turn), None)
            if other:
                self._wake(other, waiter.turn)

    def _wake_itself(self, waiter: Waiter, delay: float) -> None:
        """A turn of its own: the moment that a rate limit has for this one, or the end of its pause."""
        if waiter.timer:
            waiter.timer.cancel()  # or each wake-up of a busy project would leave one
        loop = asyncio.get_running_loop()
        waiter.timer = loop.call_later(delay + 0.001, self._own_turn, waiter, waiter.woken)

    def _own_turn(self, waiter: Waiter, woken: asyncio.Future) -> None:
        if waiter.woken is woken and not woken.done():  # it still waits for it
            self._wake(waiter, self._turn)

    def _wake_later(self, project: int, delay: float) -> None:
        """One timer a project: the limiter lets one task through at a time, so one worker is to be woken for it.

        It may be one that no limit has refused yet, and that therefore has no turn of its own.
        """
        if project not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[project] = loop.call_later(delay + 0.001, self._limiter_free, project)

    def _limiter_free(self, project: int) -> None:
        self._timers.pop(project, None)
        self.announce(project, 1)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """The tracker stops: nobody waits any longer."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for waiter in {waiter for queue in self._queues.values() for waiter in queue}:
            self._wake(waiter, self._turn)
        for stop in self._resting:
            if not stop.done():
                stop.set_result(None)


MOST_POLLED = 10_000  # workers and projects that Polls remembers
LONGEST_HOLD = 1.0  # seconds


class Polls:
    """How often each worker has asked a project in vain lately, and how long its next poll is held therefore.

    A bucket each, which leaks `rate` polls a second and holds as many, but one at least: whoever asks more often is
    answered a little later each time, until its polls come at that rate. Rate 0 holds nobody.
    """

    def __init__(self, rate: float, time: Callable[[], float]):
        self.rate, self.most, self.time = rate, max(rate, 1), time
        self._buckets: dict[tuple[int | str, int | str], tuple[float, float]] = {}  # how full, and when that was

    def hold(self, worker: int | str, projects: Sequence[int | str]) -> float:
        """Seconds for which the worker's poll is to be held."""
        if not self._buckets or not self.rate:
            return 0.0
        fullest = max(self._level((worker, project)) for project in projects)
        return min(max(0.0, (fullest + 1 - self.most) / self.rate), LONGEST_HOLD)

    def in_vain(self, worker: int | str, projects: Sequence[int | str]) -> None:
        """A poll of the worker has found nothing in these projects."""
        if len(self._buckets) > MOST_POLLED:
            self._forget()
        for project in projects:
            level = min(self._level((worker, project)) + 1, self.most + self.rate)
            self._buckets[worker, project] = level, self.time()

    def _level(self, key: tuple[int | str, int | str]) -> float:
        if (bucket := self._buckets.get(key)) is None:
            return 0.0
        level, since = bucket
        return max(0.0, level - (self.time() - since) * self.rate)

    def _forget(self) -> None:
        """Forgets the empty buckets; if too many are left, all: nobody is refused for what is remembered here."""
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if self._level(key)}
        if len(self._buckets) > MOST_POLLED // 2:
            self._buckets = {}
