"""Attempts at passwords and keys: guessing gets slow, and nobody can keep another out.

Logins are counted in the database, before a password is looked at, by the account and the address together; a browser
or an address that has logged in before is counted apart from strangers. Wrong keys of programs are counted in memory,
by the address and what the key is for.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import hmac
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from errors import TrackerError
from limits import SITE, Gauge, site_of
from turns import FairQueue
from writer import Tx

log = logging.getLogger("tracker")

# ── Passwords ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SCRYPT = {"n": 2**14, "r": 8, "p": 5}  # 16 MiB; one of the settings that OWASP recommends


def hash_password(password: str, salt: bytes | None = None, **cost: int) -> str:
    """scrypt with its parameters in front, so that they can be raised later without locking anybody out."""
    salt, cost = salt or secrets.token_bytes(16), cost or SCRYPT
    key = hashlib.scrypt(password.encode(), salt=salt, maxmem=2**28, dklen=32, **cost)
    return "$".join(["scrypt", str(cost["n"]), str(cost["r"]), str(cost["p"]), salt.hex(), key.hex()])


def password_matches(password: str, stored: str | None) -> bool:
    """Whether the password is the stored one. Takes the same time when nothing is stored (an unknown user)."""
    stored_or_dummy = stored or "$".join(["scrypt", *map(str, SCRYPT.values()), "00" * 16, "00" * 32])
    _, n, r, p, salt, _ = stored_or_dummy.split("$")
    computed = hash_password(password, bytes.fromhex(salt), n=int(n), r=int(r), p=int(p))
    return hmac.compare_digest(computed, stored_or_dummy) and stored is not None


def stamp_of(text: str) -> str:
    """What tells a text from each other one; a stored password also from another of the same words, as salts differ."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ── Logins ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Before the throttle begins: at an account from one address, by one browser, in its own sessions; from one address at
# all accounts; at an account from all addresses that it does not log in from; registrations from one address.
# One customer may have a /48 of IPv6, which is many addresses: it has SITE times as many.
FREE_ATTEMPTS = {"account": 3, "browser": 3, "session": 3, "address": 20, "everywhere": 20, "register": 20}
FREE_ATTEMPTS |= {"site": 20 * SITE, "register-site": 20 * SITE}
LONGEST_THROTTLE = 60.0  # seconds between two attempts: guessing is hopeless, and the owner still gets a turn
THROTTLE_MEMORY = 900.0
MOST_ADDRESSES = 20  # of a manager's logins that are remembered


class Attempt(NamedTuple):
    """Who tries to log in: from where, and the mark of a browser that has done so with this name before, if it has."""

    username: str
    address: str
    browser: str = ""


def count_attempt(tx: Tx, *sources: str) -> None:
    """Counts an attempt with each source, which begins with a name of FREE_ATTEMPTS; 429 while one is throttled.

    All are looked at before any is counted: a refusal that had written would make its whole batch run again.
    """
    failure = "SELECT * FROM login_failure WHERE source = ? AND forget_uptime > ?"
    rows = [tx.one(failure, (source, tx.uptime)) for source in sources]
    if (free := max((row["free_uptime"] for row in rows if row), default=0.0)) > tx.uptime:
        raise TrackerError("too_fast", "Too many attempts; please wait", delay=free - tx.uptime)
    for source, row in zip(sources, rows, strict=True):
        failures, free = row["failures"] + 1 if row else 1, FREE_ATTEMPTS[source.partition(" ")[0]]
        pause = min(2.0 ** (failures - free), LONGEST_THROTTLE) if failures > free else 0.0
        tx.execute(
            "INSERT OR REPLACE INTO login_failure VALUES (?, ?, ?, ?)",
            (source, failures, tx.uptime + pause, tx.uptime + THROTTLE_MEMORY),
        )


def forget_attempts(tx: Tx, source: str) -> None:
    """One has been successful."""
    tx.execute("DELETE FROM login_failure WHERE source = ?", (source,))


def sources_of(tx: Tx, manager: int | None, attempt: Attempt) -> list[str]:
    """With which others an attempt is counted: with no stranger's, if its browser or its address is known.

    From elsewhere an account has a limit of its own: else whoever has many addresses could guess at it.
    """
    if attempt.browser:
        return [f"browser {attempt.browser}"]
    name, known = attempt.username.lower(), "SELECT 1 FROM login_address WHERE manager = ? AND address = ?"
    sources = [f"account {attempt.address} {name}", f"address {attempt.address}"]
    if tx.one(known, (manager, attempt.address)):
        return sources
    site = site_of(attempt.address)
    return [*sources, f"everywhere {name}", *([] if site == attempt.address else [f"site {site}"])]


def count_registering(tx: Tx, address: str) -> None:
    """Counts an attempt to register from an address; 429 while there are too many."""
    site = site_of(address)
    count_attempt(tx, f"register {address}", *([] if site == address else [f"register-site {site}"]))


def accept_attempt(tx: Tx, manager: int, attempt: Attempt) -> None:
    """The password was right: forgets what was counted with it, and knows the address from now on.

    An address keeps its other failures: an own account must not be a way to guess on at others'.
    """
    for source in sources_of(tx, manager, attempt):
        if source.startswith(("address ", "site ")):
            tx.execute("UPDATE login_failure SET failures = failures - 1 WHERE source = ?", (source,))
        else:
            forget_attempts(tx, source)
    note_address(tx, manager, attempt.address)


def note_address(tx: Tx, manager: int, address: str) -> None:
    """Remembers that the manager has logged in from there. Beyond MOST_ADDRESSES the oldest go."""
    tx.execute("INSERT OR REPLACE INTO login_address VALUES (?, ?, ?)", (manager, address, tx.time))
    older = "SELECT address FROM login_address WHERE manager = :manager ORDER BY last_used DESC LIMIT -1 OFFSET :most"
    dropped = f"DELETE FROM login_address WHERE manager = :manager AND address IN ({older})"
    tx.execute(dropped, {"manager": manager, "most": MOST_ADDRESSES})


def may_guess(tx: Tx, manager: int) -> bool:
    """Whether a manager may name another number of somebody whom it does not see. It is counted."""
    known = tx.execute("SELECT address FROM login_address WHERE manager = ? AND address <> ''", (manager,))
    return tx.limits.may_guess(manager, [row["address"] for row in known])


A_TENTH, LAST = 10, 19  # by which a thread is nicer: it has a tenth of a core that others want, or 1.5 %


def give_way(by: int = A_TENTH) -> None:
    """Lets others go before this thread: a password takes a core for a moment, and there may be two cores."""
    if may_give_way():
        nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + by)
        with contextlib.suppress(OSError):  # whoever runs it does without
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


@functools.cache
def may_give_way() -> bool:
    """Whether a thread may be nicer than others. Not where it would be the whole process, as elsewhere than on Linux.

    A filter of system calls may kill whoever asks for that (systemd's SystemCallFilter): so another process does.
    """
    if sys.platform != "linux" or not sys.executable:
        return False
    asks = "import os; os.setpriority(os.PRIO_PROCESS, 0, 19)"
    try:
        if re.search(r"^Seccomp:\s*2$", Path("/proc/self/status").read_text(), re.MULTILINE):
            subprocess.run([sys.executable, "-ISc", asks], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        log.warning("Passwords are looked at as if they were urgent: the system keeps threads from giving way")
        return False
    return True


class Place(NamedTuple):
    """One at which passwords are looked at, and whose it is."""

    queue: FairQueue
    pool: ThreadPoolExecutor
    rank: int
    whose: str

    async def hash(self, function: Callable, *args: Any) -> Any:
        """Runs a password function on a thread, few at a time: each takes a core and 16 MiB for a moment."""
        return await self.queue.run(self.rank, self.whose, self.pool, function, *args)


class Places:
    """The places of those whose password is looked at, or waits for it: each takes a core for a moment.

    Beside `most` for all, each manager whose browser or session is known has OWN, and as many from all addresses that
    are known; `most` of them together but for admins: so neither a crowd of strangers nor other managers keep an admin
    out. An address has no more of those for all than it leaves free.

    Strangers' are looked at when nobody else wants the processor: their guesses would make workers wait. Those of
    known managers have a part of it, or a crowd that keeps the only core busy would have each wait for 18 seconds.
    """

    OWN, AT_ONCE = 2, 2
    SAY = 60.0  # seconds between two lines in the log about what is refused

    def __init__(self, most: int):
        self.most, self.said, self.refused = most, -self.SAY, 0
        self.taken_by: collections.Counter[str] = collections.Counter()  # those for all: "", of them by address: "at …"
        self.queue = FairQueue(self.AT_ONCE)
        self.known_pool = ThreadPoolExecutor(self.AT_ONCE, "hash-known", give_way)
        self.pool = ThreadPoolExecutor(self.AT_ONCE, "hash", give_way, (LAST,))

    @contextlib.contextmanager
    def taken(self, known: str = "", source: str = "", admin: bool = False) -> Iterator[Place]:
        """Takes one: one of its own, if it has such. Refuses (unavailable) when there is none.

        `source` is limits.source_of: a program on this machine may take all. `admin`: the known one is.
        """
        own = f"own {known}" if known and self.has_own(known, admin) else ""
        site = "" if own else f"at {site_of(source)}" if source else ""
        if not own:
            free = self.most - self.taken_by[""]
            if free <= 0 or (site and self.taken_by[site] >= free):
                raise self.refusal("" if free <= 0 else " from your address")
        names = {own} if own else {"", site}
        self.taken_by.update(names)
        try:
            rank = FairQueue.OTHER if not own else FairQueue.ADMIN if admin else FairQueue.KNOWN
            yield Place(self.queue, self.known_pool if own else self.pool, rank, own or site)
        finally:
            self.taken_by.subtract(names)
            self.taken_by = +self.taken_by  # without those that have none

    def has_own(self, known: str, admin: bool) -> bool:
        """Whether a known manager has a place of its own that is free."""
        return self.taken_by[f"own {known}"] < self.OWN and (admin or self.owned() < self.most)

    def owned(self) -> int:
        """How many places are taken by those that are known."""
        return sum(count for name, count in self.taken_by.items() if name.startswith("own "))

    def refusal(self, where: str) -> TrackerError:
        """The refusal of one more."""
        self.refused += 1
        if time.monotonic() - self.said >= self.SAY:
            self.said = time.monotonic()
            log.warning("Logins are refused: as many as may have their passwords looked at (max_logins)")
        return TrackerError("unavailable", f"Too many logins at once{where} (max_logins); please try again", delay=3.0)

    def close(self) -> None:
        """Looks at no more passwords."""
        self.known_pool.shutdown(wait=False)
        self.pool.shutdown(wait=False)

    def gauge(self) -> Gauge:
        """How many places are taken."""
        return Gauge(self.taken_by[""] + self.owned(), self.most, self.refused)


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

FREE_GUESSES = 10  # different keys, before the throttle begins
LONGEST_PAUSE = 60.0  # seconds between two guesses
GUESS_MEMORY = 900.0  # seconds after the last one
MOST_REMEMBERED = 64  # wrong keys of one source that are told apart from new ones
MOST_SOURCES = 10_000  # the one that has tried nothing for longest is forgotten


class Tried:
    """What one source has tried."""

    __slots__ = ("count", "forget", "free", "wrong")

    def __init__(self) -> None:
        self.count, self.free, self.forget = 0, 0.0, 0.0
        self.wrong: collections.deque[bytes] = collections.deque(maxlen=MOST_REMEMBERED)


class Guesses:
    """Who has tried which keys, in memory: it is bounded, and a restart forgets it. Called in any thread.

    A key that is wrong again is no further guess: one bad agent does not lock out those that share its address and its
    client or template. What makes others wait is trying one key after the other.
    """

    def __init__(self) -> None:
        self.sources: collections.OrderedDict[str, Tried] = collections.OrderedDict()
        self.lock = threading.Lock()

    def check(self, source: str, key: str, right: bool, now: float, free: int = FREE_GUESSES) -> bool:
        """Whether the key is right. Refuses (too_fast), whether or not it is, a source that has to wait.

        `free` guesses it has before. `now` never goes back. The same call a second time counts once.
        """
        with self.lock:
            tried = self.sources.get(source)
            if tried and tried.forget <= now:
                tried = self.sources.pop(source, None) and None
            if right and tried is None:
                return True
            mark = hashlib.sha256(key.encode("utf-8", "replace")).digest()
            if tried and not right and mark in tried.wrong:
                return False
            if tried and tried.free > now:
                raise TrackerError("too_fast", "Too many wrong keys; please wait", delay=tried.free - now)
            if not right:
                self.note(source, tried or Tried(), mark, now, free)
            return right

    def note(self, source: str, tried: Tried, mark: bytes, now: float, free: int) -> None:
        """Counts a guess."""
        tried.wrong.append(mark)
        tried.count += 1
        late = tried.count - free
        tried.free = now + min(2.0 ** min(late, 10), LONGEST_PAUSE) if late > 0 else now
        tried.forget = tried.free + GUESS_MEMORY
        self.sources[source] = tried
        self.sources.move_to_end(source)
        if len(self.sources) > MOST_SOURCES:
            self.sources.popitem(last=False)


class Guesser(NamedTuple):
    """Who tries a key: from which address."""

    guesses: Guesses
    address: str

    def check(self, what: str, key: str, right: bool, now: float) -> bool:
        """Whether this key of `what`, a template or a client, is right. Refuses who has guessed too often."""
        self.guesses.check(f"{self.address} {what}", key, right, now)
        if (site := site_of(self.address)) != self.address:
            self.guesses.check(f"{site} {what}", key, right, now, SITE * FREE_GUESSES)
        return right
