"""What all share and one address could take whole: whoever holds most of it makes room, and only when there is no more.

    a body that arrives, a wait ─► Holding ─► Shares.hold ─► full? those give up a holding who hold most

Nobody is refused anything while there is enough, so it does not matter how many work behind one address.
"""

from __future__ import annotations

from collections.abc import Callable

from limits import Gauge, site_of


class Holding:
    """What one request holds. `give_up` is called when it is to end for others' sake; then it is `lost`."""

    __slots__ = ("amount", "give_up", "lost", "whose")

    def __init__(self, source: str, give_up: Callable[[], None]):
        self.whose, self.give_up, self.amount, self.lost = site_of(source), give_up, 0, False


class Shares:
    """So much of something, and who holds it: by address, of IPv6 by /48 (limits.site_of).

    What programs on this machine hold (those that limits.source_of gives no address) is never given up for others.
    """

    def __init__(self, most: float):
        self.most, self.used, self.reached = most, 0, 0
        self._of: dict[str, dict[Holding, None]] = {}  # the oldest first
        self._amounts: dict[str, int] = {}

    def hold(self, holding: Holding, amount: int) -> bool:
        """It holds so much from now on. False: that is too much, and nobody holds more than its own address does."""
        if holding.lost:
            return False
        self._set(holding, amount)
        if not amount:
            return True  # also when one alone has more than there may be
        self.reached += self.used > self.most
        while self.used > self.most:
            if (other := self._of_most(holding)) is None:
                return False
            other.lost = True
            self._set(other, 0)
            other.give_up()
        return True

    def leave(self, holding: Holding) -> None:
        """It holds nothing any more."""
        self._set(holding, 0)

    def is_scarce(self) -> bool:
        """Whether little more can be held: who can do with less does."""
        return 4 * self.used > 3 * self.most

    def gauge(self, in_bytes: bool = False) -> Gauge:
        """How much is held."""
        return Gauge(self.used, self.most, self.reached, in_bytes)

    def _set(self, holding: Holding, amount: int) -> None:
        change, whose = amount - holding.amount, holding.whose
        holding.amount = amount
        self.used += change
        if not whose:
            return
        self._amounts[whose] = self._amounts.get(whose, 0) + change
        theirs = self._of.setdefault(whose, {})
        if amount:
            theirs[holding] = None
        else:
            theirs.pop(holding, None)
            if not theirs:
                del self._of[whose], self._amounts[whose]

    def _of_most(self, holding: Holding) -> Holding | None:
        """The oldest holding of the address that holds most, if that is more than the address of this one."""
        most = max(self._amounts, key=self._amounts.__getitem__, default=holding.whose)
        own = self._amounts[holding.whose] if holding.whose else holding.amount
        return next(iter(self._of[most])) if most != holding.whose and self._amounts[most] > own else None
