"""Rate limits are met, not only kept, and turns at them go round by worker: played on a clock that jumps."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import limits
import tracker
from limits import Limit, Rota
from waiting import Assigned, Line, Waiter, Waiters

RATES = [0.5, 2, 10, 100, 1000]
LATE = 0.008  # seconds that a worker comes later than it was told, at the most


class Play:
    """A rate limit on which workers come when they like to; `passed` has the moments and the workers."""

    def __init__(self, rate: float):
        self.rate, self.free, self.passed = rate, 0.0, list[tuple[float, int]]()
        self.tx: Any = SimpleNamespace(uptime=0.0, limits=SimpleNamespace(rota=Rota()))

    def ask(self, worker: int, now: float, count: int = 1) -> float:
        """Seconds that the worker is told to wait; 0: it has passed, with so many tasks."""
        self.tx.uptime = now
        limit = Limit("assign", 1, self.rate, self.free)
        delay = tracker.delay_at(self.tx, limit, worker)
        if not delay:
            self.tx.limits.rota.took(limit.key, worker)
            self.free = limit.after(now, count)
            self.passed.append((now, worker))
        return delay

    def run(self, workers: list[int], seconds: float, again: Callable[[int, float], float]) -> None:
        """Each of these asks, and again so many seconds after it was told to wait so long: `again`."""
        due = [(0.0, number, worker) for number, worker in enumerate(workers)]
        while due[0][0] < seconds:
            now, number, worker = heapq.heappop(due)
            heapq.heappush(due, (now + again(worker, self.ask(worker, now)), number, worker))

    def shares(self) -> Counter[int]:
        return Counter(worker for _, worker in self.passed)


def polite(worker: int, delay: float) -> float:
    return delay + random.uniform(0.0001, LATE)


@pytest.mark.parametrize("workers", [1, 10])
@pytest.mark.parametrize("rate", RATES)
def test_over_a_minute_a_rate_is_met(rate: float, workers: int) -> None:
    play = Play(rate)
    # One worker that has a hundred answers a second cannot be given a thousand tasks by them.
    play.run(list(range(workers * max(1, int(rate / 50)))), 60, polite)
    assert abs(len(play.passed) - 60 * rate) <= max(1, 0.02 * 60 * rate)


@pytest.mark.parametrize("rate", RATES)
def test_in_no_window_more_than_the_rate_passes(rate: float) -> None:
    play = Play(rate)
    play.run(list(range(20)), 1000 / rate, lambda worker, delay: random.choice([0.0005, delay, delay + 0.2]))
    times = [at for at, _ in play.passed]
    assert len(times) > 50
    for first, began in enumerate(times):
        for last in range(first, min(first + 200, len(times))):
            assert last - first + 1 <= rate * (times[last] - began + limits.RATE_SLACK) + 1 + 1e-6


@pytest.mark.parametrize("rate", RATES)
def test_no_burst_follows_a_pause(rate: float) -> None:
    play = Play(rate)
    play.ask(1, 1.0)
    passed = sum(not play.ask(worker, 1000.0) for worker in range(200))
    assert passed <= rate * limits.RATE_SLACK + 1


def test_several_tasks_of_one_call_pass_as_one_and_are_paid_for() -> None:
    play = Play(10)
    assert play.ask(1, 1.0, count=20) == 0
    assert play.ask(1, 1.1) == pytest.approx(1.85)  # two seconds, of which the slack was over when it came


@pytest.mark.parametrize("rate", RATES[2:])
def test_one_greedy_worker_has_no_more_than_each_polite_one_leaves(rate: float) -> None:
    play, greedy, others = Play(rate), 99, list(range(10))
    play.run([*others, *[greedy] * 32], 20, lambda worker, delay: 0.001 if worker == greedy else polite(worker, delay))
    shares = play.shares()
    assert min(shares[worker] for worker in others) >= len(play.passed) / 11 / 2
    assert len(play.passed) >= 0.97 * 20 * rate or rate == 1000


def test_turns_that_nobody_takes_do_not_lower_the_rate() -> None:
    play, gone = Play(100), iter(range(1000, 10_000))

    def again(worker: int, delay: float) -> float:
        play.ask(next(gone), play.tx.uptime)  # asks once, and never comes again
        return polite(worker, delay)

    play.run(list(range(10)), 20, again)
    assert len(play.passed) >= 0.98 * 20 * 100 and sum(worker < 10 for _, worker in play.passed) > 1000


def test_turns_are_forgotten_and_bounded() -> None:
    rota = Rota()

    def kept(of: dict) -> int:
        return sum(map(len, of.values()))

    for number in range(2 * Rota.MOST):
        for _ in range(2):
            rota.delay(("assign", number // 500), number, 1e6, 1.0, 0.0)
    assert kept(rota._turns) == Rota.MOST
    for limit in range(2 * Rota.MOST_LIMITS):
        rota.delay(("submit", limit), 1, 1e6, 1.0, 0.0)
    for number in range(2 * Rota.MOST_KNOWN):
        rota.delay(("assign", 1), number, 1e6, 1.0, 0.0)
    assert len(rota._known) == Rota.MOST_LIMITS and max(map(len, rota._known.values())) <= Rota.MOST_KNOWN
    assert rota.delay(("assign", 0), 2, 0.0, 1.0, 3e9) == 0 == kept(rota._turns)


# ── Who waits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_those_who_wait_are_woken_by_turns_of_their_workers() -> None:
    line = Line()
    for worker in [1, 1, 1, 2, 2, 3]:
        line.join(Waiter((1,), worker))
    order = []
    while line:
        order.append(line.next())
        line.leave(order[-1])
    assert [waiter.worker for waiter in order] == [1, 2, 3, 1, 2, 1]


def test_a_worker_with_many_requests_that_wait_is_assigned_no_more_than_others() -> None:
    async def play() -> Counter[int]:
        waiters, ready, taken = Waiters(), 0, Counter[int]()

        async def attempt(worker: int) -> Assigned:
            nonlocal ready
            if not ready:
                return Assigned([])
            ready -= 1
            taken[worker] += 1
            return Assigned(["a task"])  # type: ignore[list-item]

        async def wait(worker: int) -> None:
            gone = asyncio.get_running_loop().create_future()
            while True:
                await waiters.assign((1,), lambda: attempt(worker), 60, gone, worker=worker)

        tasks = [asyncio.create_task(wait(worker)) for worker in [*[99] * 32, *range(10)]]
        await asyncio.sleep(0)
        for _ in range(220):
            ready += 1
            waiters.announce(1, 1)
            for _ in range(5):
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return taken

    taken = asyncio.run(play())
    assert sum(taken.values()) == 220 and min(taken[worker] for worker in range(10)) >= 10
