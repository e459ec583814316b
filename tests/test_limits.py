"""Rates by worker and by address: what passes, what is remembered, whose call it is, and what the log says."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from place import Memory

import limits
import tracker
from errors import TrackerError
from limits import AddressRate, Limits, Rate, source_of
from writer import Committer, Tx, Write


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def taken(rate: Rate | AddressRate, source: object, most: int = 1000) -> int:
    """How often a source passes until it has to wait."""
    for count in range(most):
        if rate.delay(source):
            return count
        rate.take(source)
    return most


def test_so_much_passes_at_once_and_then_as_the_rate_says(time: Time) -> None:
    rate = Rate(2, 5, time)
    assert taken(rate, "a") == 10
    assert rate.delay("a") == pytest.approx(0.5)
    time.now += 1
    assert taken(rate, "a") == 2
    time.now += 1000
    assert taken(rate, "a") == 10


def test_each_source_has_its_own(time: Time) -> None:
    rate = Rate(1, 5, time)
    assert (taken(rate, "a"), taken(rate, "b"), taken(rate, "a")) == (5, 5, 0)


def test_what_is_refused_costs_nothing(time: Time) -> None:
    rate = Rate(1, 5, time)
    taken(rate, "a")
    delays = {rate.delay("a") for _ in range(100)}
    assert delays == {1.0}


def test_what_is_remembered_is_bounded_and_a_flood_from_many_addresses_frees_none_that_has_taken_more(
    time: Time,
) -> None:
    rate = Rate(1, 3600, time)
    assert taken(rate, "greedy", 3600) == 3600
    for number in range(3 * limits.MOST_SOURCES):
        rate.take(number)
    assert len(rate._until) <= limits.MOST_SOURCES
    assert rate.delay("greedy") > 0


def test_a_flood_from_many_addresses_takes_little_memory(time: Time) -> None:
    rate = Rate(1, 3600, time)
    tracemalloc.start()
    for number in range(5 * limits.MOST_SOURCES):
        rate.take(f"2001:db8:{number:x}::/64")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 10 * 2**20


# ── Whose call it is ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "headers", "source"),
    [
        ("127.0.0.1", (), ""),
        ("127.8.0.1", (), ""),
        ("::1", (), ""),
        ("::ffff:127.0.0.1", (), ""),
        ("testclient", (), ""),
        ("", (), ""),
        ("127.0.0.1", (b"x-forwarded-for",), "127.0.0.1"),
        ("127.0.0.1", (b"x-forwarded-proto",), "127.0.0.1"),
        ("127.0.0.1", (b"forwarded",), "127.0.0.1"),
        ("127.0.0.1", (b"via",), "127.0.0.1"),
        ("127.0.0.1", (b"x-real-ip",), "127.0.0.1"),
        ("testclient", (b"x-forwarded-for",), "testclient"),
        ("", (b"x-forwarded-for",), "unknown"),
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", (b"x-forwarded-for",), "203.0.113.9"),
        ("::ffff:203.0.113.9", (), "203.0.113.9"),
        ("2001:db8::1", (), "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", (), "2001:db8::/64"),
        ("fe80::1%eth0", (), "fe80::/64"),
        ("64:ff9b::7f00:1", (), "127.0.0.1"),  # it says so, but is not on this machine
    ],
)
def test_whose_address_a_call_counts_to(host: str, headers: tuple[bytes, ...], source: str) -> None:
    client = (host, 1) if host else None
    assert source_of(client, [(b"accept", b"*/*"), *((name, b"x") for name in headers)]) == source


def test_a_customer_with_many_networks_of_ipv6_has_eight_times_as_much(time: Time) -> None:
    rate = AddressRate(1, 5, time)
    assert sum(taken(rate, f"2001:db8:7:{number:x}::/64") for number in range(100)) == 8 * 5
    assert taken(rate, "2001:db8:7:ffff::/64") == 0
    assert (taken(rate, "2001:db8:8:1::/64"), taken(rate, "203.0.113.9"), taken(rate, "203.0.113.10")) == (5, 5, 5)
    time.now += 1
    assert sum(taken(rate, f"2001:db8:7:{number:x}::/64") for number in range(100, 200)) == 8


@pytest.mark.parametrize("what", ["register", "make_without_key", "passes_line"])
def test_each_rate_by_address_has_one_for_the_whole_customer(time: Time, what: str) -> None:
    settings = tracker.Settings(registration_rate=5, keyless_rate=5, address_log_rate=1, worker_log_rate=1000)
    kept = Limits(settings, time)

    def passes(source: str, worker: int) -> bool:
        try:
            return (
                kept.passes_line(worker, source, 12 * 1024)
                if what == "passes_line"
                else not getattr(kept, what)(source)
            )
        except tracker.TrackerError as error:
            assert "from your address" in error.message and error.code == "too_fast"
            return False

    assert sum(passes(f"2001:db8:7:{number:x}::/64", number) for number in range(100) for _ in range(5)) == 8 * 5


# ── What the log says ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_says_once_a_minute_which_limit_was_reached_and_how_often(
    time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tracker")
    kept = Limits(tracker.Settings(), time)
    for _ in range(100):
        kept.beyond("max_logs")
    kept.beyond("max_workers")
    time.now += 61
    kept.beyond("max_logs")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "1 refused or dropped: max_logs is reached",
        "1 refused or dropped: max_workers is reached",
        "100 refused or dropped: max_logs is reached",
    ]
    assert kept.refused == {"max_logs": 101, "max_workers": 1}


def test_a_floor_of_zero_is_none(monkeypatch: pytest.MonkeyPatch, time: Time) -> None:
    class Full:
        total, free = 10**9, 0

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    for floor, low in ((0, False), (1, True)):
        kept = Limits(tracker.Settings(min_free_disk=floor), time)
        kept.look_at_disk(".")
        assert kept.disk_low == low


# ── What is taken in a transaction ────────────────────────────────────────────────────────────────────────────────────


class Full:
    """The writer's thread on a disk that takes no commit."""

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    async def run(self, function: Callable, *args: Any) -> Any:
        if args == ("COMMIT",):
            raise sqlite3.OperationalError("database or disk is full")
        return function(*args)


HERE = "203.0.113.9"


def makes_without_key(tx: Tx) -> None:
    tx.limits.make_without_key(HERE)


def fails_half_way(tx: Tx) -> None:
    tx.execute("INSERT INTO meta VALUES ('half', 1)")
    raise TrackerError("conflict", "no")


@pytest.fixture
def committer() -> Committer:
    """One that lets make two jobs without a key, and commits nothing by itself."""
    memory = Memory()
    passes = Limits(tracker.Settings(keyless_rate=2), memory.clock.uptime)
    return Committer(Full(memory.connection), memory.clock, memory.settings, lambda: 1e9, passes)


def test_a_batch_that_is_carried_out_again_has_taken_once(committer: Committer) -> None:
    batch = [Write(None, function, ()) for function in (makes_without_key, fails_half_way)]
    assert [str(error) for _, (_, error) in committer.run_batch(batch).done] == ["None", "no"]
    assert [committer.limits.keyless.delay(HERE, count) > 0 for count in (1, 2)] == [False, True]


def test_a_batch_that_could_not_be_committed_has_taken_nothing(committer: Committer) -> None:
    with pytest.raises(sqlite3.OperationalError):
        asyncio.run(committer.try_to_commit([Write(None, makes_without_key, ())], on_thread=False))
    assert committer.limits.keyless.delay(HERE, 2) == 0
