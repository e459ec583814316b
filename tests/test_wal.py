"""The write-ahead log does not grow for ever: reads end in time, and are held back while it is cut."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Site, wait_until
from place import StillClock, running

import callers
import tracker
import wal
from turns import works_for

MIB = 2**20
ENDLESS = "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number) SELECT max(n) FROM number"


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> int:
    """MiB that the log may have, of trackers that `serve` starts."""
    monkeypatch.setattr(wal, "LOOK_INTERVAL", 0)
    return 32


async def begin(path: Path, bound: int) -> tracker.Tracker:
    one = tracker.Tracker(tracker.Settings(database=str(path), log_file="", max_wal=bound), StillClock())
    await one.start()
    return one


def put(tx: tracker.Tx, number: int) -> None:
    tx.execute("INSERT OR REPLACE INTO meta VALUES (?, randomblob(10000))", (f"put {number % 10}",))


def slowly(tx: tracker.Tx) -> int:
    """A read that begins before the one beside it ends."""
    found = tx.one("SELECT COUNT(*) FROM meta")[0]
    time.sleep(0.01)
    return found


def test_reads_that_overlap_all_the_time_do_not_make_the_log_grow(tmp_path: Path, bound: int) -> None:
    async def serve() -> int:
        one, longest, written = await begin(tmp_path / "x.db", bound), 0, False

        async def read() -> None:
            while not written:
                await one.db.read(slowly)

        readers = [asyncio.create_task(read()) for _ in range(4)]
        for number in range(8000):  # 100 MB
            await one.db.write(put, number)
            longest = max(longest, Path(f"{one.db.path}-wal").stat().st_size)
        written = True
        await asyncio.gather(*readers)
        await one.stop()
        return longest

    assert asyncio.run(serve()) <= bound * MIB


def test_a_log_that_was_long_at_the_start_is_cut(tmp_path: Path, bound: int) -> None:
    async def serve() -> None:
        one = await begin(tmp_path / "x.db", 1000)
        release, began = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def stay(tx: tracker.Tx) -> None:
            tx.one("SELECT 1 FROM meta")
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

        reading = asyncio.create_task(one.db.read(stay))
        await began.wait()
        for number in range(5000):
            await one.db.write(put, number)
        assert one.db.wal.size() > bound * MIB
        release.set()
        await reading
        one.db.wal.bound = bound * MIB
        while one.db.wal.size() > bound * MIB:
            await one.db.write(put, 0)
            await asyncio.sleep(0.01)
        await one.stop()

    asyncio.run(asyncio.wait_for(serve(), 60))


def test_a_read_that_takes_too_long_is_ended_and_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "READ_TIME", 0.2)
    project = site.admin.create_project()

    def endless(tx: tracker.Tx, *args: object) -> object:
        return tx.one(ENDLESS)

    monkeypatch.setattr(callers, "identify", endless)
    answer = httpx.get(f"{site.url}/project/get/{project}", timeout=60)
    monkeypatch.undo()
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert site.admin.project(project)  # the same connections go on


def test_a_read_of_many_short_statements_is_ended_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "READ_TIME", 0.2)

    def many(tx: tracker.Tx) -> None:
        while True:
            tx.one("SELECT 1")

    async def serve() -> None:
        async with running(tmp_path / "x.db", StillClock()) as one:
            with pytest.raises(tracker.TrackerError, match="more than"):
                await one.db.read(many)
            assert await one.db.read(lambda tx: tx.one("SELECT 1")[0]) == 1

    asyncio.run(asyncio.wait_for(serve(), 60))


def test_an_export_of_which_a_read_was_ended_goes_on_in_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": f"recipe {number}"} for number in range(60)])
    ended, list_tasks = [], tracker.list_tasks

    @functools.wraps(list_tasks)
    def slow(
        tx: tracker.Tx, caller: tracker.Caller, project: object, wanted: object, after: str, limit: int, *columns: str
    ) -> object:
        if after and limit > 1:
            ended.append(limit)
            raise wal.too_long()
        return list_tasks(tx, caller, project, wanted, after, limit, *columns)

    monkeypatch.setattr(tracker, "list_tasks", slow)
    monkeypatch.setattr(tracker, "PIECE_TASKS", 50)
    lines = site.admin.get(f"/ui/projects/{project}/export").text.splitlines()
    assert [json.loads(line)["recipe"] for line in lines] == [f"recipe {number}" for number in range(60)]
    assert len(ended) == 10


def test_who_wants_many_reads_makes_others_wait_for_one_of_them(tmp_path: Path) -> None:
    async def serve() -> None:
        async with running(tmp_path / "x.db", StillClock()) as one:
            release, order = threading.Event(), []

            async def read(whose: str, name: str, function: Callable = lambda tx: None) -> None:
                works_for.set(whose)
                await one.db.read(function)
                order.append(name)

            busy = [asyncio.create_task(read("many", "", lambda tx: release.wait(60))) for _ in range(one.db.READERS)]
            await asyncio.sleep(0)
            many = [asyncio.create_task(read("many", f"many {number}")) for number in range(20)]
            await asyncio.sleep(0)
            other = asyncio.create_task(read("one", "one"))
            await asyncio.sleep(0)
            release.set()
            await asyncio.gather(*busy, *many, other)
            assert "one" in [name for name in order if name][: 1 + 2 * one.db.READERS]

    asyncio.run(asyncio.wait_for(serve(), 60))


def test_who_reads_when_all_is_closed_is_told_so_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def serve() -> None:
        async with running(tmp_path / "x.db", StillClock()) as one:
            pass
        for _ in range(10):
            with pytest.raises(ValueError, match=r"closed|no active connection"):
                await asyncio.wait_for(one.db.read(lambda tx: None), 10)

    asyncio.run(serve())


def test_a_read_keeps_no_other_one_waiting_while_a_reader_is_idle(tmp_path: Path) -> None:
    async def serve() -> None:
        async with running(tmp_path / "x.db", StillClock()) as one:
            release = threading.Event()
            long = asyncio.create_task(one.db.read(lambda tx: release.wait(60)))
            await asyncio.sleep(0)
            for _ in range(5):
                await one.db.read(lambda tx: None)
            release.set()
            await long

    asyncio.run(asyncio.wait_for(serve(), 30))


def test_a_read_whose_caller_has_gone_counts_until_it_has_ended(tmp_path: Path) -> None:
    async def serve() -> None:
        async with running(tmp_path / "x.db", StillClock()) as one:
            release, began, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

            def stay(tx: tracker.Tx) -> None:
                loop.call_soon_threadsafe(began.set)
                asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

            reading = asyncio.create_task(one.db.read(stay))
            await began.wait()
            reading.cancel()
            await asyncio.wait([reading])
            assert one.db._gate.going_on
            release.set()
            while one.db._gate.going_on:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(serve(), 60))


def test_reads_that_were_held_back_are_answered(tmp_path: Path, bound: int) -> None:
    """Each read beside a log that is cut again and again sees what was there before it began."""

    async def serve() -> list[int]:
        one = await begin(tmp_path / "x.db", 1)
        seen = []
        for number in range(100):
            await one.db.write(put, number)
            seen.append((await one.db.read(lambda tx: tx.one("SELECT COUNT(*) FROM meta WHERE key LIKE 'put %'")))[0])
        await one.stop()
        return seen

    assert asyncio.run(serve()) == [*range(1, 10), *[10] * 91]


def test_reads_go_on_while_another_program_keeps_the_writer_from_cutting_the_log(
    tmp_path: Path, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "WRITER_TIME", 0.05)

    async def serve() -> None:
        one = await begin(tmp_path / "x.db", 1000)
        for number in range(3000):
            await one.db.write(put, number)
        with contextlib.closing(sqlite3.connect(one.db.path, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            waiting = one.db.write(put, 0)
            await asyncio.sleep(0)
            one.db.wal.bound = MIB
            one.db.wal.look()
            await asyncio.sleep(0.01)
            assert await one.db.read(lambda tx: tx.one("SELECT 1")[0]) == 1
            assert not waiting.done()
            shell.execute("ROLLBACK")
        await waiting
        await one.stop()

    asyncio.run(asyncio.wait_for(serve(), 60))


FOREIGN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT * FROM meta").fetchall()
print("reading", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def foreign() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Begins a read of somebody else's program, which ends when it is given a line."""
    begun: list[subprocess.Popen] = []

    def read(path: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", FOREIGN, str(path)]
        begun.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert begun[0].stdout.readline() == "reading\n"
        return begun[0]

    yield read
    for one in begun:
        one.communicate()


def test_another_program_that_reads_for_long_is_named_and_the_log_is_cut_after_it(
    tmp_path: Path,
    bound: int,
    foreign: Callable[[Path], subprocess.Popen],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wal, "PAUSE", 0.05)

    async def write(one: tracker.Tracker, until: Callable[[], bool]) -> None:
        number = 0
        while not until():
            await one.db.write(put, number := number + 1)

    async def serve() -> None:
        one = await begin(tmp_path / "x.db", bound)
        reader = await asyncio.to_thread(foreign, one.db.path)
        await write(one, lambda: "cannot be cut" in caplog.text)
        reader.stdin.write("\n")
        await asyncio.to_thread(reader.communicate)
        await write(one, lambda: one.db.wal.size() <= bound * MIB)
        await one.stop()
        if sys.platform == "linux":
            assert f"(process {reader.pid})" in caplog.text

    asyncio.run(asyncio.wait_for(serve(), 60))


def test_the_log_is_cut_in_a_running_tracker(make_site: Callable[..., Site]) -> None:
    site = make_site(max_wal=1)
    project = site.admin.create_project()
    worker = site.create_worker(project)
    file = Path(f"{site.settings.database}-wal")
    for _ in range(60):
        worker.submit(project, recipe="x" * 60_000)
    wait_until(lambda: worker.submit(project) and file.stat().st_size <= MIB)
