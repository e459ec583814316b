"""Forms of the pages: one that is sent twice is carried out once, and what is shown once is shown by a page.

    answer = await sent.once(key, act)  # a second one with the same key waits for the first, and gets its answer
    path = shown.keep(session, path, value); …; shown.take(session, path)  # once

A browser sends a form twice when its button is pressed twice, and when an answer was lost. Each page has a number of
its own (nonce), which its forms bring along; the key is made of it and of all that the form says. Both are kept in
memory for some minutes, and so many of them at most: after a restart a form that comes again is a new one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

KEPT = 600.0  # seconds
MOST_KEPT = 1000


class Lately(Generic[Answer]):
    """Values by their keys, kept for some time; beyond the most of them the oldest goes."""

    def __init__(self, seconds: float = KEPT, most: int = MOST_KEPT, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.most, self.clock = seconds, most, clock
        self.kept: OrderedDict[bytes, tuple[float, Answer]] = OrderedDict()

    def keep(self, key: bytes, value: Answer) -> None:
        """Keeps a value in place of that which the key has had."""
        self.kept.pop(key, None)
        self.kept[key] = self.clock(), value
        self.forget()

    def forget(self) -> None:
        """Lets go of what is too old, or too much."""
        while self.kept:
            key, (since, _) = next(iter(self.kept.items()))
            if len(self.kept) <= self.most and self.clock() - since <= self.seconds:
                return
            del self.kept[key]

    def get(self, key: bytes) -> Answer | None:
        """The key's value; None if there is none (any more)."""
        self.forget()
        return self.kept[key][1] if key in self.kept else None

    def take(self, key: bytes) -> Answer | None:
        """The key's value, which is not there any more then."""
        value = self.get(key)
        self.kept.pop(key, None)
        return value


class Sent:
    """The forms that were sent lately, and where each of them led to."""

    def __init__(self) -> None:
        self.answers: Lately[asyncio.Future] = Lately()

    async def once(
        self, key: bytes, act: Callable[[], Awaitable[Answer]], counts: Callable[[Answer], bool]
    ) -> tuple[Answer, bool]:
        """The answer of `act()`, and whether it is an earlier one's: one of the same key is carried out once.

        An answer that does not count (the form was refused, or a question comes first) is nobody else's.
        """
        while before := self.answers.get(key):  # of several that wait for one that did not count, one is the next
            if (answer := await asyncio.shield(before)) is not None:
                return answer, True
        done: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self.answers.keep(key, done)
        answer = None
        try:
            answer = await act()
            return answer, False
        finally:
            counted = answer is not None and counts(answer)
            done.set_result(answer if counted else None)
            if not counted and self.answers.get(key) is done:
                self.answers.take(key)


def key_of(*parts: bytes, fields: Mapping[str, Iterable[Any]]) -> bytes:
    """What tells a form that was sent from every other one. A file counts by its name and size."""
    digest = hashlib.sha256()
    texts = [(name, value) for name, values in sorted(fields.items()) for value in values]
    for one in (*parts, *(told for name, value in texts for told in (name.encode(), told_of(value)))):
        digest.update(b"%d:" % len(one) + one)
    return digest.digest()


def told_of(value: Any) -> bytes:
    """A field's text, or which file it is."""
    return value.encode() if isinstance(value, str) else f"\0{value.filename}\0{value.size}".encode()
