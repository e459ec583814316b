"""What a running tracker counts of itself, in memory: requests, commits, who was seen, how the last tasks ended.

    an answer, of either way ─► Meter.answers      a commit ─► Meter.committed ─► metrics.py, notices.py

Adding one costs a dictionary's look-up, and no step of SQLite. Nothing here knows a request or a task.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

SEEN_TIME = 300.0  # seconds for which a worker that was seen counts as one that is there
RECENT = 100  # ended attempts of a project whose failures are told apart
MOST_MARKS = 1000
MARK_INTERVAL = 10.0  # seconds between two marks, at least


class Distribution:
    """How often a value was at most each of some bounds, and what all of them add up to."""

    def __init__(self, *bounds: float):
        self.bounds, self.sum = bounds, 0.0
        self.counts = [0] * (len(bounds) + 1)  # the last one: beyond all bounds

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> list[tuple[float, int]]:
        """Each bound with how many were no greater; the last bound is infinite."""
        return list(zip((*self.bounds, float("inf")), itertools.accumulate(self.counts), strict=True))


class Recent:
    """The last attempts at a project's tasks that have ended: how many, and how many of those came to nothing."""

    __slots__ = ("bits", "count")

    def __init__(self, count: int = 0, bits: str = "") -> None:
        self.bits, self.count = int(bits or "0", 16), count

    @property
    def known(self) -> tuple[int, str]:
        """As it is kept over a restart."""
        return self.count, f"{self.bits:x}" if self.bits else ""

    def add(self, closed: int, failed: int) -> None:
        closed, failed = min(closed, RECENT), min(failed, RECENT)
        self.bits = ((self.bits << closed + failed) | ((1 << failed) - 1)) & ((1 << RECENT) - 1)
        self.count = min(RECENT, self.count + closed + failed)

    @property
    def failed(self) -> int:
        return self.bits.bit_count()


class Meter:
    """The counts of one tracker since its start."""

    def __init__(self) -> None:
        self.answers: defaultdict[str, Counter[int]] = defaultdict(Counter)  # by route class: by status
        self.commit_seconds = Distribution(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
        self.batch_calls = Distribution(1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.recent: dict[int, Recent] = {}  # of those projects that somebody has watched (notices.py)
        self._seen: dict[int, float] = {}  # workers, the one last that was seen last
        self._marks: list[tuple[int, float]] = []  # the greatest id of a task, and when that was looked up

    def committed(self, seconds: float, calls: int, ended: dict[int, dict[str, int]], seen: Iterable[int]) -> None:
        """A batch of so many calls is on disk, after a COMMIT of so many seconds: what it ended, whom it saw."""
        self.commit_seconds.add(seconds)
        self.batch_calls.add(calls)
        for project, outcomes in ended.items():
            if recent := self.recent.get(project):
                closed = outcomes.get("closed", 0)
                recent.add(closed, sum(outcomes.values()) - closed)
        now = time.monotonic()
        for worker in seen:
            self._seen.pop(worker, None)
            self._seen[worker] = now
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[first := next(iter(self._seen))] < now - SEEN_TIME:
            del self._seen[first]

    @property
    def workers_seen(self) -> int:
        """How many workers were seen in the last minutes."""
        self._forget(time.monotonic())
        return len(self._seen)

    def saw_before(self, ages: dict[int, float]) -> None:
        """These workers were seen so many seconds ago, by the tracker that ran before."""
        now = time.monotonic()
        seen = {worker: now - max(0.0, age) for worker, age in ages.items()} | self._seen
        self._seen = dict(sorted(seen.items(), key=lambda one: one[1]))

    def watch(self, projects: dict[int, tuple[int, str]]) -> None:
        """From now on the last attempts of these projects are told apart, and of no others.

        Of one that is new here, what is known of it from before (Recent.known).
        """
        self.recent = {project: self.recent.get(project) or Recent(*known) for project, known in projects.items()}

    def mark(self, last_task: int) -> None:
        """This is the greatest id of a task so far."""
        now = time.monotonic()
        if not self._marks or now >= self._marks[-1][1] + MARK_INTERVAL:
            self._marks.append((last_task, now))
            if len(self._marks) > 2 * MOST_MARKS:
                del self._marks[1:MOST_MARKS:2]  # of what is long ago, every other one will do

    def age(self, task: int | None) -> float:
        """For how many seconds, at least, there has been a task with this id: as long as marks know it."""
        place = bisect.bisect_left(self._marks, task or 0, key=lambda mark: mark[0])
        return time.monotonic() - self._marks[place][1] if task and place < len(self._marks) else 0.0


def counted(answer: Any) -> int:
    """The status of an answer, to count it: a Reply, a Response of Starlette's, or what sends itself."""
    return getattr(answer, "status", 0) or getattr(answer, "status_code", 200)
