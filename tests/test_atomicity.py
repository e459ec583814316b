"""All or nothing: whatever fails, and wherever, leaves the state before it; what was acknowledged stays."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import nursery
import pytest
from conftest import MovedClock, Site, Worker, dump, dumping, wait_until
from place import OPERATIONS, Jobs, call, check_counts, create_worker, furnish, new_task, template_body

import attempts
import pages
import shapes
import tracker
import workers
import writer
from database import connect, prepare_file
from dialects import otter, theeye
from tracker import Tx

# ── A database of one's own, and a writer to it ───────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def opened(path: Path, clock: tracker.Clock | None = None) -> AsyncIterator[tracker.Database]:
    database = tracker.Database(tracker.Settings(database=str(path)), clock or tracker.Clock())
    await database.open()
    database._committer.BATCH_TIME = 1e9  # what is queued together is one batch, on a busy machine too
    try:
        yield database
    finally:
        await database.close()


def run_with_database(path: Path, main: Callable[[tracker.Database], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with opened(path) as database:
            await main(database)

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tracker.db"


def put(tx: Tx, key: str) -> None:
    """Writes something that can be told from everything else."""
    tx.execute("INSERT INTO meta VALUES (?, 1)", (f"put {key}",))


def put_and_fail(tx: Tx, key: str) -> None:
    put(tx, key)
    raise tracker.TrackerError("conflict", key)


def were_put(database: tracker.Database) -> set[str]:
    """What others see: on a connection of their own."""
    with contextlib.closing(sqlite3.connect(f"{database.path.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT key FROM meta WHERE key LIKE 'put %'").fetchall()
        return {key.removeprefix("put ") for (key,) in rows}


async def outcomes(*writes: asyncio.Future) -> list[Any]:
    """What each caller got: a value, or the exception that it was answered with."""
    return await asyncio.gather(*writes, return_exceptions=True)


# ── One batch of several callers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_call_that_fails_in_the_middle_of_a_batch_leaves_its_neighbours_untouched(path: Path) -> None:
    async def main(database: tracker.Database) -> None:
        results = await outcomes(
            database.write(put, "first"),
            database.write(put_and_fail, "refused"),
            database.write(put, "second"),
            database.write(put_and_fail, "refused too"),
            database.write(put, "third"),
        )
        assert [getattr(result, "message", result) for result in results] == [
            None,
            "refused",
            None,
            "refused too",
            None,
        ]
        assert were_put(database) == {"first", "second", "third"}

    run_with_database(path, main)


@pytest.mark.parametrize(("raised", "arrives"), [(ValueError, ValueError), (StopIteration, RuntimeError)])
def test_a_call_that_fails_before_it_has_written_leaves_its_neighbours_untouched(
    path: Path, raised: type[Exception], arrives: type[Exception]
) -> None:
    def fail(tx: Tx) -> None:
        raise raised("a mistake in the code")

    async def main(database: tracker.Database) -> None:
        results = await outcomes(database.write(put, "first"), database.write(fail), database.write(put, "second"))
        assert isinstance(results[1], arrives)
        assert were_put(database) == {"first", "second"}

    run_with_database(path, main)


@pytest.mark.parametrize(("raised", "arrives"), [(ValueError, ValueError), (StopIteration, RuntimeError)])
def test_a_read_that_fails_is_told_to_its_caller(path: Path, raised: type[Exception], arrives: type[Exception]) -> None:
    def fail(tx: Tx) -> None:
        raise raised("a mistake in the code")

    async def main(database: tracker.Database) -> None:
        with pytest.raises(arrives):
            await asyncio.wait_for(database.read(fail), 20)

    run_with_database(path, main)


def test_only_what_was_done_is_announced(path: Path) -> None:
    announced: list[tuple[int, int]] = []

    def make_ready(tx: Tx, project: int) -> None:
        tx.ready.append((project, 1))
        put(tx, str(project))
        if project < 0:
            raise ValueError

    async def main(database: tracker.Database) -> None:
        database._queue.announce = lambda project, count: announced.append((project, count))
        await outcomes(*[database.write(make_ready, project) for project in (1, -2, 3, -4)])

    run_with_database(path, main)
    assert announced == [(1, 1), (3, 1)]


def test_no_reader_sees_half_a_batch(path: Path) -> None:
    seen: list[set[str]] = []

    async def main(database: tracker.Database) -> None:
        def look(tx: Tx) -> None:
            seen.append(were_put(database))

        calls = [
            database.write(put, "first"),
            database.write(look),
            database.write(put, "second"),
            database.write(look),
        ]
        await asyncio.gather(*calls)
        seen.append(were_put(database))

    run_with_database(path, main)
    assert seen == [set(), set(), {"first", "second"}]


def test_no_reader_sees_half_a_long_write(path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write_slowly(tx: Tx) -> None:
        put(tx, "first")
        begun.set()
        assert go_on.wait(30)
        put(tx, "second")

    def look(tx: Tx) -> int:
        return tx.one("SELECT COUNT(*) FROM meta WHERE key LIKE 'put %'")[0]

    async def main(database: tracker.Database) -> None:
        writing = database.write(write_slowly, long=True)
        await asyncio.to_thread(begun.wait, 30)
        assert await database.read(look) == 0
        go_on.set()
        await writing
        assert await database.read(look) == 2

    run_with_database(path, main)


def test_a_read_sees_one_state_however_long_it_takes(path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def look_twice(tx: Tx) -> tuple[int, int]:
        count = "SELECT COUNT(*) FROM meta WHERE key LIKE 'put %'"
        before = tx.one(count)[0]
        begun.set()
        assert go_on.wait(30)
        return before, tx.one(count)[0]

    async def main(database: tracker.Database) -> None:
        reading = asyncio.ensure_future(database.read(look_twice))
        await asyncio.to_thread(begun.wait, 30)
        await database.write(put, "meanwhile")
        go_on.set()
        assert await reading == (0, 0)

    run_with_database(path, main)


def test_a_reader_cannot_write(path: Path) -> None:
    async def main(database: tracker.Database) -> None:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await database.read(put, "by a reader")
        assert were_put(database) == set()

    run_with_database(path, main)


def test_cancelled_calls_that_have_not_begun_are_never_run(path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def keep_busy(tx: Tx) -> None:
        begun.set()
        assert go_on.wait(30)

    async def main(database: tracker.Database) -> None:
        busy = database.write(keep_busy, long=True)
        await asyncio.to_thread(begun.wait, 30)
        cancelled = [database.write(put, "cancelled"), database.write(put, "cancelled too", long=True)]
        kept = database.write(put, "kept")
        for one in cancelled:
            one.cancel()
        go_on.set()
        await asyncio.gather(busy, kept)
        await database.write(put, "later", long=True)
        assert were_put(database) == {"kept", "later"}

    run_with_database(path, main)


def test_what_was_queued_when_the_database_closes_is_committed(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as database:
            calls = [database.write(put, str(number), long=number % 2 == 0) for number in range(10)]
        assert all(call.done() for call in calls)
        assert were_put(database) == {str(number) for number in range(10)}

    asyncio.run(main())


# ── A commit that fails ───────────────────────────────────────────────────────────────────────────────────────────────


def refused_as_unavailable(result: Any) -> bool:
    return isinstance(result, tracker.TrackerError) and result.code == "unavailable"


def test_a_commit_that_fails_refuses_every_caller_of_its_batch_and_later_ones_are_served(path: Path) -> None:
    def break_a_promise(tx: Tx) -> None:
        """A reference to nothing, which SQLite looks at when it commits."""
        tx.execute("PRAGMA defer_foreign_keys = ON")
        tx.execute("INSERT INTO bulk_piece VALUES (999, 1, x'00')")

    async def main(database: tracker.Database) -> None:
        await database._committer.writer.execute("PRAGMA foreign_keys = ON")
        before = dump(path)
        results = await outcomes(
            database.write(put, "first"), database.write(break_a_promise), database.write(put, "second")
        )
        assert all(map(refused_as_unavailable, results)), results
        assert dump(path) == before
        await asyncio.gather(database.write(put, "third"), database.write(put, "fourth"))
        assert were_put(database) == {"third", "fourth"}

    run_with_database(path, main)


def put_much(tx: Tx, key: str) -> None:
    put(tx, key)
    tx.execute("INSERT INTO meta VALUES (?, zeroblob(1000000))", (f"much {key}",))


def put_many_tasks(tx: Tx, key: str) -> None:
    """In many statements, of which SQLite undoes no more than the one for which there was no room."""
    put(tx, key)
    tracker.insert_tasks(tx, [new_task(1, 10_000 * "x")] * 100, 1, False)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("function", [put_much, put_many_tasks])
def test_a_full_disk_refuses_what_does_not_fit_and_later_calls_are_served(
    path: Path, function: Callable, long: bool
) -> None:
    async def main(database: tracker.Database) -> None:
        pages = await database.read(lambda tx: tx.one("PRAGMA page_count")[0])
        await database._committer.writer.execute_fetchall(f"PRAGMA max_page_count = {pages + 50}")
        before = dump(path)
        results = await outcomes(*[database.write(function, str(number), long=long) for number in range(3)])
        assert all(map(refused_as_unavailable, results)), results
        assert dump(path) == before
        await database._committer.writer.execute_fetchall(f"PRAGMA max_page_count = {pages + 5000}")
        await asyncio.gather(*[database.write(function, str(number), long=long) for number in range(3)])
        assert were_put(database) == {"0", "1", "2"}

    run_with_database(path, main)


def test_a_commit_is_on_disk_by_default(path: Path) -> None:
    async def main(database: tracker.Database) -> None:
        assert await database.write(lambda tx: tx.one("PRAGMA synchronous")[0]) == 2  # FULL
        assert await database.write(lambda tx: tx.one("PRAGMA journal_mode")[0]) == "wal"

    run_with_database(path, main)


# ── A fault beside the calls ──────────────────────────────────────────────────────────────────────────────────────────


def make_ready(tx: Tx, project: int) -> int:
    put(tx, str(project))
    tx.ready.append((project, 1))
    return project


def test_an_announcement_that_fails_is_logged_and_harms_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    announced: list[int] = []

    def announce(project: int, count: int) -> None:
        if project == 2:
            raise ValueError("a waiter's mistake")
        announced.append(project)

    async def main(database: tracker.Database) -> None:
        database._queue.announce = announce
        assert await outcomes(*[database.write(make_ready, project) for project in (1, 2, 3)]) == [1, 2, 3]
        assert await database.write(make_ready, 4) == 4

    run_with_database(path, main)
    assert announced == [1, 3, 4]
    assert "a waiter's mistake" in caplog.text


@pytest.mark.parametrize("long", [False, True])
def test_a_writer_that_ends_refuses_those_who_wait_for_it(
    path: Path, caplog: pytest.LogCaptureFixture, long: bool
) -> None:
    """The one that it had begun, those in the queues, and every later one."""

    async def main(database: tracker.Database) -> None:
        async def fail(*_: object) -> None:
            raise SystemError("a fault of the writer") from None

        database._queue.arrivals = fail
        waiting = [database.write(put, "first", long=long), database.write(put, "second")]
        assert all(map(refused_as_unavailable, await outcomes(*waiting)))
        with pytest.raises(tracker.TrackerError) as refused:
            await database.write(put, "third")
        assert refused_as_unavailable(refused.value)
        assert isinstance(await database.failed, SystemError)

    run_with_database(path, main)
    assert "a fault of the writer" in caplog.text


def test_a_writer_that_is_cancelled_half_way_refuses_its_callers_and_leaves_nothing_behind(path: Path) -> None:
    async def main(database: tracker.Database) -> None:
        def put_and_cancel(tx: Tx) -> None:
            put(tx, "half")
            raise asyncio.CancelledError

        results = await outcomes(database.write(put, "first"), database.write(put_and_cancel), database.write(put, "x"))
        assert all(map(refused_as_unavailable, results)), results
        assert isinstance(await database.failed, asyncio.CancelledError)
        assert were_put(database) == set()

    run_with_database(path, main)


def doom_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer ends when a worker is created: after the commit, where no caller's mistake can reach."""
    real = writer.WriteQueue.write_batch

    async def write_batch(self: writer.WriteQueue, *args: Any, **options: Any) -> None:
        await real(self, *args, **options)
        if any(tracker.create_worker in (call.function, *call.args) for call in self.in_hand):
            raise SystemError("a fault of the writer")

    monkeypatch.setattr(writer.WriteQueue, "write_batch", write_batch)


def test_a_tracker_whose_writer_ends_stops_and_says_so_to_who_runs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(url: str) -> bool:
        try:
            return not httpx.get(url).content
        except httpx.TransportError:
            return True

    doom_writer(monkeypatch)
    with pytest.raises(RuntimeError, match="writer had ended") as raised, tracker.serving() as url:
        httpx.post(f"{url}/worker/create", json={"alias": "the last one"})
        wait_until(lambda: stopped(url))
    assert isinstance(raised.value.__cause__, SystemError)
    assert "The writer has ended" in caplog.text


def test_a_process_whose_writer_ends_exits_with_status_1(tmp_path: Path) -> None:
    script = """
        import sys
        import pytest, test_atomicity, tracker
        test_atomicity.doom_writer(pytest.MonkeyPatch())
        sys.exit(tracker.main(["--port", "0", "--database", sys.argv[1]]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "tracker.db")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), str(HOME / "tests")])}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            httpx.post(f"{url}/worker/create", json={"alias": "the last one"})
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "The writer has ended" in said


# ── A failure at every statement of every operation ───────────────────────────────────────────────────────────────────


class Sabotage(Exception):
    """What goes wrong in these tests."""


def sabotaged(function: Callable, nth: int) -> Callable:
    """The operation, in which the nth statement raises instead of being carried out. If there is none, its end does."""

    def operation(tx: Tx, *args: Any) -> Any:
        statements = itertools.count(1)
        real = tx.execute, tx.executemany

        def failing(statement: Callable) -> Callable:
            def execute(*parameters: Any) -> Any:
                if next(statements) == nth:
                    raise Sabotage(nth)
                return statement(*parameters)

            return execute

        tx.execute, tx.executemany = map(failing, real)
        try:
            call(tx, function, *args)
        finally:
            tx.execute, tx.executemany = real
        raise Sabotage("at the end")

    return operation


def check_all_or_nothing(path: Path, furnishing: Callable, operation: Callable) -> None:
    """Lets each statement of an operation fail in turn, with calls of others before and after it in the same batch."""

    async def main(database: tracker.Database) -> None:
        place = await database.write(furnishing)
        function, args = operation(place)
        with dumping(path) as look:
            await check(database, function, args, look)

    async def check(
        database: tracker.Database, function: Callable, args: tuple, look: Callable[[], dict[str, list[tuple]]]
    ) -> None:
        before = look()
        for nth in itertools.count(1):
            results = await outcomes(
                database.write(put, f"before {nth}"),
                database.write(sabotaged(function, nth), *args),
                database.write(put, f"after {nth}"),
            )
            assert isinstance(results[1], Sabotage), results
            assert results[::2] == [None, None]
            after = look()
            put_now = {("put " + when + f" {nth}", 1) for when in ("before", "after")}
            assert set(after["meta"]) - set(before["meta"]) == put_now
            assert {**after, "meta": None} == {**before, "meta": None}
            before = after
            if results[1].args == ("at the end",):
                break
        assert nth > 1, "the operation executes nothing"
        await database.write(call, function, *args)
        assert {**look(), "meta": None} != {**before, "meta": None}, "the operation changes nothing"
        check_counts(database._committer.connection)

    run_with_database(path, main)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_exception_at_any_statement_leaves_the_state_before_the_operation(path: Path, name: str) -> None:
    check_all_or_nothing(path, furnish, OPERATIONS[name])


# ── Bulk submits ──────────────────────────────────────────────────────────────────────────────────────────────────────

MANY = 1200  # more than one transaction takes


class Withdrawn(tracker.TrackerError):
    """Access is withdrawn in the middle, say: later than the tracker itself looks at it."""


@pytest.mark.parametrize("failing", ["add_bulk_piece", "accept_bulk_submit"])
def test_a_bulk_submit_that_is_refused_half_way_leaves_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    before, real = site.dump(), getattr(tracker, failing)

    def fail_at_last(tx: Tx, *args: Any) -> None:
        real(tx, *args)
        if failing == "accept_bulk_submit" or args[1] == 3:  # the third piece
            raise Withdrawn("forbidden", "You have no SUBMIT access any more")

    monkeypatch.setattr(tracker, failing, fail_at_last)
    answer = worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(MANY)])
    assert (answer.status_code, answer.json()["ok"]) == (403, False)
    assert site.dump() == before


# ── Many clients at once ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("query", [{}, {"count": 3}, {"wait": 0.2}], ids=["one", "several", "waiting"])
def test_thirty_two_clients_that_are_assigned_at_once_never_get_the_same_task(
    site: Site, query: dict[str, Any]
) -> None:
    project = site.admin.create_project(public=True)
    site.create_worker(project).bulk_submit([{"project": project, "recipe": str(number)} for number in range(320)])
    workers, together = [site.create_worker() for _ in range(32)], threading.Barrier(32)

    def assigned_to(worker: Worker) -> list[int]:
        tasks: list[int] = []
        together.wait(60)
        while (content := worker.assign(project, **query).json().get("content")) is not None:
            tasks += [task["id"] for task in content.get("tasks") or [content["task"]]]
        return tasks

    with ThreadPoolExecutor(32) as pool:
        tasks = list(itertools.chain.from_iterable(pool.map(assigned_to, workers)))
    assert sorted(tasks) == sorted(id for (id,) in site.read("SELECT id FROM task"))
    assert site.admin.counts(project) == {"assigned": 320}


def test_of_thirty_two_clients_that_submit_the_same_task_one_succeeds(site: Site) -> None:
    project = site.admin.create_project()
    worker, together = site.create_worker(project), threading.Barrier(32)

    def submit(_: int) -> int:
        with httpx.Client(headers=worker.http.headers, verify=False) as client:
            together.wait(60)
            body = {"project": project, "recipe": "x", "unique_string": "the same"}
            return client.post(f"{site.url}/task/submit", json=body).status_code

    with ThreadPoolExecutor(32) as pool:
        assert sorted(pool.map(submit, range(32))) == [200] + [409] * 31
    assert site.admin.counts(project) == {"waiting": 1}


# ── Real processes that die ───────────────────────────────────────────────────────────────────────────────────────────

HOME = Path(tracker.__file__).parent


@contextlib.contextmanager
def server_process(path: Path) -> Iterator[tuple[nursery.Process, str]]:
    """A tracker in a process of its own, and its URL. Killed at the end, if it has not been before."""
    arguments, program = ["--port", "0", "--database", path], HOME / "tracker.py"
    with open(path.with_suffix(".err"), "a") as errors:
        files = {"stdout": subprocess.PIPE, "stderr": errors}
        process = nursery.start(program, arguments, path.parent, dict(os.environ), **files)
    try:
        line = process.stdout.readline()
        assert "listening" in line, path.with_suffix(".err").read_text()
        yield process, re.search(r"http://\S+", line)[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass
class Acknowledged:
    """What the clients of a tracker were told before it died."""

    submitted: set[str]
    assigned: dict[str, int]  # recipe: worker
    released: set[str]
    tried: set[str]  # to release; whether that arrived nobody knows

    def counts(self) -> tuple[int, int, int]:
        return len(self.submitted), len(self.assigned), len(self.released)


def load(url: str, project: int, worker: Worker, prefix: str, known: Acknowledged) -> None:
    """Submits, is assigned and releases until the tracker is gone."""
    with contextlib.suppress(httpx.TransportError):
        for number in itertools.count():
            recipe = f"{prefix} {number}"
            if worker.submit(project, recipe, unique_string=recipe).status_code == 200:
                known.submitted.add(recipe)
            if (task := worker.assigned(project)) is not None:
                known.assigned[task["recipe"]] = worker.id
                if number % 3:
                    known.tried.add(task["recipe"])
                    if worker.released(task["id"]):
                        known.released.add(task["recipe"])


def test_a_tracker_that_is_killed_under_load_loses_nothing_that_it_acknowledged(path: Path) -> None:
    known = Acknowledged(set(), {}, set(), set())
    with server_process(path) as (process, url):
        site = Site(url, MovedClock(), tracker.Settings(database=str(path)))
        project = site.admin.create_project(keep_hashes=True)
        workers = [site.create_worker(project) for _ in range(8)]
        threads = [
            threading.Thread(target=load, args=(url, project, worker, f"worker {worker.id}", known))
            for worker in workers
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: min(known.counts()) > 100, 60)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
    with server_process(path) as (_, url):
        rows = sqlite3.connect(path).execute("SELECT recipe, assignee FROM task").fetchall()
        kept = {hash64 for (hash64,) in sqlite3.connect(path).execute("SELECT hash64 FROM kept_hash")}
        counts = httpx.get(f"{url}/project/get/{project}").json()["content"]
    assignees = dict(rows)
    assert len(assignees) == len(rows), "a task is there twice"
    closed = {recipe for recipe in known.submitted | known.tried if tracker.hash_unique_string(recipe) in kept}
    assert known.submitted <= assignees.keys() | closed
    assert known.released <= closed <= known.tried
    assert not closed & assignees.keys()
    for recipe, worker in known.assigned.items():
        assert recipe in closed or assignees[recipe] == worker
    assert counts["closed_task_count"] == len(kept) == len(closed)
    assert counts["assigned_task_count"] == sum(assignee is not None for assignee in assignees.values())
    assert counts["waiting_task_count"] == sum(assignee is None for assignee in assignees.values())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process's files is Linux's")
def test_a_tracker_that_can_no_longer_write_refuses_and_goes_on_when_it_can(path: Path) -> None:
    with server_process(path) as (process, url):
        site = Site(url, MovedClock(), tracker.Settings(database=str(path)))
        project = site.admin.create_project()
        worker = site.create_worker(project)
        assert worker.submit(project, "before").status_code == 200
        before = dump(path)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: worker.submit(project, f"refused {number}"), range(8)))
        assert {answer.status_code for answer in answers} == {503}
        assert not any(answer.json()["ok"] for answer in answers)
        bulk = worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(MANY)])
        assert bulk.status_code == 503
        assert site.admin.counts(project) == {"waiting": 1}
        assert dump(path) == before
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert worker.submit(project, "after").status_code == 200
        assert worker.bulk_submit([{"project": project, "recipe": "bulk"}] * MANY).status_code == 200
        assert site.admin.counts(project) == {"waiting": 2 + MANY}


DIE_HALF_WAY = """
    import os, signal, sqlite3, sys
    from pathlib import Path
    import tracker
    from database import connect
    from place import call
    from shapes import *
    from tracker import *

    def write(function, *args):
        connection.execute("BEGIN IMMEDIATE")
        outcome = call(Tx(connection, clock, settings), function, *args)
        connection.execute("COMMIT")
        return outcome

    tracker.Tx.STEP_SECONDS = -1  # every transaction does one piece
    path, kind, steps, accept = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "accepted"
    settings, clock = Settings(database=str(path)), Clock()
    connection = connect(path, settings)
    session = write(register_manager, "admin", "unused")[1]
    if kind == "bulk_submit":
        worker = write(create_worker, None, AliasBody("worker"))["worker"]
        caller = WorkerCredentials(worker["id"], worker["secret"].encode())
        write(request_access, caller, AccessBody(1, submit=True))
        write(accept_request, session, 1, caller.id)
        tasks = [new_task(SubmitBody(1, str(number))) for number in range(1200)]
        pieces = in_pieces((len(task.recipe), task) for task in tasks)
        operation = write(begin_bulk_submit, caller, 1)
        for number, piece in enumerate(pieces, 1):
            write(add_bulk_piece, operation, number, piece)
        if accept:
            write(accept_bulk_submit, caller, operation, 1200)
    else:
        operation = write(begin_deletion if kind == "delete_project" else begin_reset, session, 1, kind)
        write(insert_task, NewTask(1, "later", 0, 0, 0, 0, None), False)
    for _ in range(steps):
        assert write(step_operation, operation) is None
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die_half_way(path: Path, kind: str, steps: int, accept: bool = True) -> None:
    """A process that begins a long operation on project 1 and is killed after a few of its transactions."""
    script, accepted = textwrap.dedent(DIE_HALF_WAY), "accepted" if accept else "staged"
    command = [sys.executable, "-c", script, str(path), kind, str(steps), accepted]
    died = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": f"{HOME}{os.pathsep}{HOME / 'tests'}"}, capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.fixture
def filled(path: Path) -> Callable[[str], Path]:
    """Makes a database whose project 1 has MANY tasks in one state."""

    def fill(columns: str) -> Path:
        settings = tracker.Settings(database=str(path))
        prepare_file(path, settings)
        with contextlib.closing(connect(path, settings)) as connection:
            connection.execute(
                "INSERT INTO project (name, priority, clone_url, git_repo, version, motd, public, hidden,"
                " paused, keep_hashes, assign_rate, submit_rate, webhook_secret)"
                " VALUES ('first', 1, '', '', '', '', 0, 0, 0, 1, 0, 0, 'x')"
            )
            connection.execute("BEGIN")
            task = (1, "recipe", 0, 3, 0, 0)
            connection.executemany(
                "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [task] * (MANY if columns else 0),
            )
            if columns:
                connection.execute(f"UPDATE task SET {columns}")
                connection.executemany("INSERT INTO kept_hash VALUES (1, ?)", [(number,) for number in range(MANY)])
            tracker.recount(connection)
            connection.execute("COMMIT")
        return path

    return fill


@contextlib.contextmanager
def restarted(path: Path) -> Iterator[dict[str, int]]:
    """The project's counts, some time after the next start."""
    with tracker.serving(tracker.Settings(database=str(path), log_file="")) as url:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            wait_until(lambda: not connection.execute("SELECT 1 FROM operation WHERE finished IS NULL").fetchone())
        project = httpx.get(f"{url}/project/get/1").json()["content"]
        yield {name: project[name] for name in tracker.COUNT_COLUMNS if project[name]}


def test_a_hard_reset_that_a_crash_has_interrupted_is_finished_at_the_next_start(filled: Callable[[str], Path]) -> None:
    path = filled("retries = 1")
    die_half_way(path, "hard_reset", 2)
    assert len(dump(path)["task"]) == MANY + 1 - 2 * tracker.STEP_TASKS
    with restarted(path) as counts:
        assert counts == {"waiting_task_count": 1}
    assert [task[-1] for task in dump(path)["task"]] == ["later"]
    assert dump(path)["kept_hash"] == []


def test_a_deletion_of_a_project_that_a_crash_has_interrupted_is_finished_at_the_next_start(
    filled: Callable[[str], Path],
) -> None:
    path = filled("retries = 1")
    die_half_way(path, "delete_project", 2)
    assert len(dump(path)["task"]) == MANY + 1 - 2 * tracker.STEP_TASKS and dump(path)["project"] == []
    with tracker.serving(tracker.Settings(database=str(path), log_file="")):
        wait_until(lambda: dump(path)["operation"][0][-2] is not None)
    assert dump(path)["task"] == dump(path)["kept_hash"] == []


def test_a_reset_of_failed_tasks_that_a_crash_has_interrupted_is_finished_at_the_next_start(
    filled: Callable[[str], Path],
) -> None:
    path = filled("status = 2, retries = 3")
    die_half_way(path, "reset_failed", 2)
    with restarted(path) as counts:
        assert counts == {"waiting_task_count": MANY + 1}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT DISTINCT status, retries FROM task").fetchall() == [(1, 0)]


def test_a_reclaim_that_a_crash_has_interrupted_is_finished_at_the_next_start(filled: Callable[[str], Path]) -> None:
    path = filled("assignee = 1, assign_time = 1, assigned_uptime = 0, deadline_uptime = 1e9")
    die_half_way(path, "reclaim_assigned", 1)
    with restarted(path) as counts:
        assert counts == {"waiting_task_count": MANY + 1}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT DISTINCT assignee, deadline_uptime FROM task").fetchall() == [(None, None)]


def test_a_bulk_submit_that_a_crash_has_interrupted_before_it_was_accepted_leaves_nothing(
    filled: Callable[[str], Path],
) -> None:
    path = filled("")
    die_half_way(path, "bulk_submit", 0, accept=False)
    assert dump(path)["bulk_piece"]
    with restarted(path) as counts:
        assert counts == {}
    assert dump(path)["bulk_piece"] == dump(path)["task"] == []


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_bulk_submit_that_a_crash_has_interrupted_after_it_was_accepted_is_all_there_after_the_next_start(
    filled: Callable[[str], Path], steps: int
) -> None:
    path = filled("")
    die_half_way(path, "bulk_submit", steps)
    assert dump(path)["bulk_piece"]
    with restarted(path) as counts:
        assert counts == {"waiting_task_count": MANY}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        recipes = [int(recipe) for (recipe,) in connection.execute("SELECT recipe FROM task ORDER BY id")]
    assert recipes == list(range(MANY))
    assert dump(path)["bulk_piece"] == []


# ── What fails half way ───────────────────────────────────────────────────────────────────────────────────────────────


def test_who_makes_calls_fail_half_way_has_others_run_again_once(path: Path) -> None:
    """Whoever it is that is called for: a stranger needs no account to have a call refused after it has written."""
    ran = []

    def look(tx: Tx) -> None:
        ran.append(len(ran))

    async def main(database: tracker.Database) -> None:
        for key in "abcd":
            writes = (look,), (tracker.as_caller, lambda tx, caller: put_and_fail(tx, "no"), None), (put, key)
            results = await outcomes(*[database.write(*write) for write in writes])
            assert [getattr(result, "message", result) for result in results] == [None, "no", None]
        assert were_put(database) == set("abcd")

    run_with_database(path, main)
    assert len(ran) == 4 + 1


def test_what_failed_half_way_long_ago_is_trusted_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A savepoint costs two statements: a disk that was full once must not cost them for ever."""
    monkeypatch.setattr("writer.Committer.CAREFUL", 0.0)
    ran = []

    async def main(database: tracker.Database) -> None:
        for _ in range(3):
            await outcomes(database.write(ran.append), database.write(put_and_fail, "no"))

    run_with_database(path, main)
    assert len(ran) == 3 * 2


# ── Nothing is written before a refusal ───────────────────────────────────────────────────────────────────────────────


def write_nothing(queue: Jobs, function: Callable, *args: Any) -> bool:
    """Whether a call is refused before it writes: else the batch of everybody's calls would run twice for each."""
    before = queue.connection.total_changes
    queue.refusal(function, *args)
    return queue.connection.total_changes == before


def test_a_bulk_release_of_which_one_is_refused_has_written_nothing() -> None:
    queue = Jobs()
    releases = [shapes.ReleaseBody(queue.submit(), tracker.FAIL), shapes.ReleaseBody(1, tracker.OK, delay=5.0)]
    queue.assign()
    assert write_nothing(queue, tracker.release_tasks, queue.worker, releases)


def test_the_end_of_a_pause_of_a_worker_that_is_none_has_written_nothing() -> None:
    queue = Jobs()
    assert write_nothing(queue, workers.resume_worker, queue.session, queue.project, 999)


def limited(queue: Jobs) -> None:
    """What the project's workers submit has a rate, so that a job of theirs is counted."""
    queue.connection.execute("UPDATE project SET submit_rate = 100")


def asked_for_access(queue: Jobs) -> tuple:
    queue.do(tracker.request_access, queue.do(create_worker), shapes.AccessBody(queue.project, submit=True))
    return pages.answer_requests, queue.session, queue.project, pages.Answer("accept", "all", most=0), []


def blocked(queue: Jobs) -> tuple:
    queue.create_manager("other")
    queue.connection.execute("UPDATE manager SET blocked = 1 WHERE id = 2")
    queue.do(tracker.count_login, "other", "192.0.2.1", "")
    return tracker.accept_login, 2, "unused", "other", "192.0.2.1", ""


def made_with(queue: Jobs, **fields: Any) -> tuple:
    return (
        tracker.create_template,
        queue.session,
        template_body(queue.project, **{"name": "new", "script": "echo new", **fields}),
    )


def triggered(queue: Jobs, **body: Any) -> tuple:
    limited(queue)
    template = queue.create_template(arguments=[{"type": "input"}], undeclared=False)
    return tracker.trigger_template, queue.worker, template, shapes.TriggerBody(**body)


def tried_again(queue: Jobs) -> tuple:
    limited(queue)
    return tracker.retry_job, queue.worker, queue.trigger(queue.create_template())


def started(queue: Jobs, **fields: Any) -> tuple:
    workflow = queue.create_workflow(queue.create_template(**fields))
    return tracker.trigger_workflow, queue.session, workflow, shapes.TriggerBody({"a": 2})


def started_elsewhere(queue: Jobs) -> tuple:
    other = queue.create_project("other")
    workflow = queue.create_workflow(queue.create_template(project=other))
    queue.connection.execute("UPDATE project SET archived = 1 WHERE id = ?", (other,))
    return tracker.trigger_workflow, queue.session, workflow, shapes.TriggerBody()


def through_otter(queue: Jobs) -> tuple:
    limited(queue)
    queue.create_template("build", api=True, undeclared=False)
    guesser = attempts.Guesser(attempts.Guesses(), "192.0.2.1")
    return otter.trigger_template, {"template": "build", "key": "", "unknown": 1}, guesser, "", None


def through_theeye(queue: Jobs) -> tuple:
    limited(queue)
    (template,) = queue.rows(
        "SELECT * FROM template WHERE id = ?", queue.create_template(arguments=[{"type": "input"}])
    )
    ask = SimpleNamespace(body={"task_arguments": ["\0"]}, query={}, path={})
    return theeye.triggered, ask, None, tracker.make_job, template, template


def fetched_without_access(queue: Jobs) -> tuple:
    queue.connection.execute("DELETE FROM worker_access")
    ask = SimpleNamespace(given={"hostname": "machine"}.get)
    return theeye.fetch_job, ask, SimpleNamespace(project=queue.project, worker=queue.worker)


REFUSED: dict[str, Callable[[Jobs], tuple]] = {
    "a template with a blank name": lambda queue: made_with(queue, name=" "),
    "a template with a short key": lambda queue: made_with(queue, key="short"),
    "a template that declares a variable twice": lambda queue: made_with(queue, variables=[{"name": "a"}] * 2),
    "a template whose name is one for programs already": lambda queue: (
        queue.create_template("new", api=True) and made_with(queue, api=True)
    ),
    "a worker's job without its arguments": triggered,
    "a worker's job with a variable too many": lambda queue: triggered(queue, variables={"x": 1}, arguments=[1]),
    "another try of a job that has not ended": tried_again,
    "a run whose first step has no arguments": lambda queue: started(queue, arguments=[{"type": "input"}]),
    "a run whose first step is not allowed its variable": lambda queue: started(
        queue, variables=[{"name": "a", "allowed": [1]}]
    ),
    "a run whose first step is in an archived project": started_elsewhere,
    "a job for Otter with a variable too many": through_otter,
    "a job for theeye.io with arguments that cannot be": through_theeye,
    "a theeye.io agent without access": fetched_without_access,
    "the login of a blocked manager": blocked,
    "an answer to more requests than were asked about": asked_for_access,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_written_nothing(name: str) -> None:
    queue = Jobs()
    assert write_nothing(queue, *REFUSED[name](queue))
