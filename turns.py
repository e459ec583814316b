"""Whose turn it is: what known workers are assigned, submit and release goes first, all else takes turns.

    a hot call over a connection on which one has succeeded ─► at once
    all else that comes in, and each moment of long work ─► Turns: one each time that the event loop goes round

So what a worker waits for, while any number of others want something, is one turn of them. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from typing import Any

log = logging.getLogger("tracker")

TURN = 0.0005  # seconds for which one goes on
SHARE = 4  # times as long as a turn took do the urgent ones have before the next one,
LEAST_REST = 0.005  # or so many seconds: most have ended by then


class Credit:
    """How many new connections of an address may go first: two for each that then turned out to be a worker's.

    For clients that connect anew for each call. Strangers behind the same proxy can use it up; then all take turns.
    """

    MOST = 64  # connections of one address
    ADDRESSES = 4096

    def __init__(self) -> None:
        self._left: collections.OrderedDict[str, int] = collections.OrderedDict()

    def give(self, address: str) -> None:
        """A hot call has succeeded over a connection that had not been known."""
        self._left[address] = min(self._left.get(address, 0) + 2, self.MOST)
        self._left.move_to_end(address)
        if len(self._left) > self.ADDRESSES:
            self._left.popitem(last=False)

    def take(self, address: str) -> bool:
        """Whether there is some left, of which a connection now uses one."""
        left = self._left.get(address, 0)
        if left:
            self._left[address] = left - 1
        return left > 0


class Turns:
    """The event loop's time for what is not urgent. A turn comes at once if nothing is against it.

    While something urgent goes on (`urgent`), the next turn comes after a rest (SHARE, LEAST_REST), or when it has
    ended (`calm`): so each has a part of the time, whatever the other does.
    """

    urgent = False

    def __init__(self) -> None:
        self.credit = Credit()
        self._waiting: collections.deque[Callable[[float], bool]] = collections.deque()
        self._running = self._begun = False
        self._began = self._rests_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def queue(self, act: Callable[[float], bool]) -> None:
        """Calls `act(until)` when its turn has come, and again as long as it says that there is more to do.

        It is to return at about that moment (time.monotonic()).
        """
        self._waiting.append(act)
        if not self._running:
            self._running = True
            self._take()

    def begin(self) -> None:
        """A turn has set off other work, which comes when the loop goes round: no other does so in this turn."""
        self._begun = True

    async def __call__(self) -> float:
        """Waits for a turn. Until when it lasts."""
        done = asyncio.get_running_loop().create_future()
        self.queue(lambda until: self._give(done))
        await done
        return time.monotonic() + TURN

    def _give(self, done: asyncio.Future) -> bool:
        if not done.done():
            done.set_result(None)
            self.begin()
        return False

    async def join(self, parts: Iterable[str]) -> str:
        """The text of all these parts, whose making takes a turn after the other."""
        joined, until = [], await self()
        for part in parts:
            joined.append(part)
            if time.monotonic() > until:
                until = await self()
        return "".join(joined)

    def calm(self) -> None:
        """Nothing urgent goes on any more."""
        self.urgent = False
        if self._timer:
            self._timer.cancel()
            self._timer = None
            asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        """The turns of one round of the loop, after what was set off in the round before."""
        self._timer, now = None, time.monotonic()
        if not self._waiting:
            self._running = False
            return
        if self._began:
            self._rests_until, self._began = now + max(SHARE * (now - self._began), LEAST_REST), 0.0
        if self.urgent and now < self._rests_until:
            self._timer = asyncio.get_running_loop().call_later(self._rests_until - now, self._take)
            return
        self._note(now)
        while self._waiting:
            act = self._waiting.popleft()
            try:
                again = act(now + TURN)
            except Exception:
                log.exception("What had its turn has failed")
            else:
                self._waiting.extend([act] * again)
            if self._begun or time.monotonic() >= now + TURN:
                break
        # What was set off comes in the next round; until the one after it the loop sees what has arrived meanwhile.
        asyncio.get_running_loop().call_soon(self._go_round if self._begun else self._take)

    def _go_round(self) -> None:
        asyncio.get_running_loop().call_soon(self._take)

    def _note(self, now: float) -> None:
        self._began, self._begun = now, False


# Whom the present task works for: an address, as limits.site_of has it; empty for the tracker itself, and for programs
# on its machine.
works_for: contextvars.ContextVar[str] = contextvars.ContextVar("works_for", default="")


class FairQueue:
    """A few at a time, the others in turns: whoever has many that wait is served no more often than who has one.

    Admins that are known come first, then by turns one of the others that are known and one of all others.
    """

    RANKS = ADMIN, KNOWN, OTHER = range(3)

    def __init__(self, free: int):
        self.free = free
        # By whose they are. In order, and yet one leaves at once that is given up: else those would pile up.
        self.waiting: list[dict[str, collections.OrderedDict[asyncio.Future, None]]] = [{} for _ in self.RANKS]
        self.next_rank = self.KNOWN

    @contextlib.asynccontextmanager
    async def turn(self, rank: int, whose: str) -> AsyncIterator[None]:
        """For as long as it is somebody's turn."""
        await self.come(rank, whose)
        try:
            yield
        finally:
            self.pass_on()

    async def run(self, rank: int, whose: str, pool: Executor, function: Callable, *args: Any) -> Any:
        """What the function returns, which is called on a thread. The turn lasts as long as that works, wanted or not.

        Else what nobody wants any more would wait for the thread, with all that it was given, as often as it is tried.
        """
        await self.come(rank, whose)
        try:
            work = asyncio.get_running_loop().run_in_executor(pool, function, *args)
        except BaseException:
            self.pass_on()
            raise
        work.add_done_callback(self.end)
        return await asyncio.shield(work)

    def end(self, work: asyncio.Future) -> None:
        """It is done. What it has raised, if nobody waits for it any more, is nothing for the log."""
        if not work.cancelled():
            work.exception()
        self.pass_on()

    async def come(self, rank: int, whose: str) -> None:
        """Returns when it is somebody's turn, who then has to pass it on."""
        if self.free:
            self.free -= 1
        else:
            mine = asyncio.get_running_loop().create_future()
            self.waiting[rank].setdefault(whose, collections.OrderedDict())[mine] = None
            try:
                await mine
            except asyncio.CancelledError:
                self.give_up(rank, whose, mine)
                raise

    def give_up(self, rank: int, whose: str, mine: asyncio.Future) -> None:
        """Nobody waits for it any more. If its turn has come meanwhile, that is the next one's."""
        ring = self.waiting[rank]
        if mine in ring.get(whose, ()):
            del ring[whose][mine]
            if not ring[whose]:
                del ring[whose]
        elif not mine.cancelled():
            self.pass_on()

    def pass_on(self) -> None:
        """The next one has its turn."""
        for rank in (self.ADMIN, self.next_rank, self.KNOWN + self.OTHER - self.next_rank):
            while ring := self.waiting[rank]:
                whose = next(iter(ring))
                queue = ring.pop(whose)
                one, _ = queue.popitem(last=False)
                if queue:
                    ring[whose] = queue  # behind the others
                if not one.done():  # it has been given up
                    one.set_result(None)
                    self.next_rank = self.KNOWN + self.OTHER - rank if rank else self.next_rank
                    return
        self.free += 1
