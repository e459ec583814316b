"""What workers hold and have closed, how long tasks take, and how fast a project goes."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from place import Memory, Queue, StillClock, call, create_worker, new_task, running

import pages
import retention
import shapes
import tracker
from pages import LAST_DAY
from tracker import FAIL, OK, SKIP, Tx, WorkerCredentials

HOUR, DAY = 3600, 86400
ALL_TIME = "t.closed_task_count"


@pytest.fixture
def queue() -> Queue:
    return Queue(default_max_assign_time=7 * DAY)


# ── Runtimes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def runtimes(queue: Queue) -> tuple:
    return tuple(queue.do(pages.runtimes, queue.project))


def test_runtimes_are_from_the_assignment_to_the_release_that_closes(queue: Queue) -> None:
    for seconds, worker in ((10, queue.worker), (40, queue.create_worker()), (70, queue.worker)):
        queue.work(seconds=seconds, worker=worker)
    assert runtimes(queue) == (10, 40, 70)


def test_a_runtime_is_measured_from_the_last_assignment(queue: Queue) -> None:
    task = queue.submit(max_retries=9)
    for result in (FAIL, SKIP, OK):
        queue.clock.now += 100
        queue.assign()
        queue.clock.now += 5
        assert queue.release(task, result)
    assert runtimes(queue) == (5, 5, 5)


def test_a_verification_that_closes_nothing_has_no_runtime(queue: Queue) -> None:
    task, other = queue.submit(verification_count=2), queue.create_worker()
    for worker, seconds in ((queue.worker, 1000), (other, 20)):
        queue.assign(worker)
        queue.clock.now += seconds
        queue.release(task, worker=worker, hash64=7)
    assert runtimes(queue) == (20, 20, 20)


def test_setting_the_clock_changes_no_runtime(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    task = queue.submit()
    queue.assign()
    monkeypatch.setattr(queue.clock, "START", StillClock.START - DAY)
    queue.clock.now += 30
    queue.release(task)
    assert runtimes(queue) == (30, 30, 30)


def test_a_project_in_which_nothing_was_closed_has_no_runtimes(queue: Queue) -> None:
    second = queue.create_project("second")
    queue.work(seconds=5, project=second)
    queue.submit()
    queue.assign()
    assert runtimes(queue) == (None, None, None)


# ── Who holds and who has closed the most ─────────────────────────────────────────────────────────────────────────────


def test_holders_are_shown_with_the_time_since_when_they_hold_their_oldest_task(queue: Queue) -> None:
    other = queue.create_worker()
    for worker, seconds in ((other, 10), (queue.worker, 20), (other, 30)):
        queue.submit()
        queue.clock.now = seconds
        queue.assign(worker)
    second = queue.create_project("second")
    queue.submit(project=second)
    queue.assign(project=second)
    shown = queue.do(pages.holders, queue.project)
    assert [(row["id"], row["held_task_count"], row["since"] - StillClock.START) for row in shown] == [
        (other.id, 2, 10),
        (queue.worker.id, 1, 20),
    ]


def test_who_has_given_back_all_tasks_holds_none(queue: Queue) -> None:
    for end in (lambda task: queue.release(task), lambda task: queue.act("delete", [task])):
        queue.submit()
        end(queue.assign())
    assert queue.do(pages.holders, queue.project) == []


def leaders(queue: Queue, measure: str = ALL_TIME) -> list[tuple[int, int]]:
    return [(row["id"], row["closed"]) for row in queue.do(pages.leaders, queue.project, measure)]


def test_leaders_are_those_who_have_closed_the_most_tasks_of_the_project(queue: Queue) -> None:
    second = queue.create_project("second")
    lazy, idle = queue.create_worker(), queue.create_worker()
    queue.work(2)
    queue.work(1, worker=lazy)
    queue.work(5, worker=lazy, project=second)
    queue.submit()
    queue.release(queue.assign(idle), FAIL, idle)
    assert leaders(queue) == leaders(queue, LAST_DAY) == [(queue.worker.id, 2), (lazy.id, 1)]


def test_of_many_leaders_ten_are_shown_the_older_ones_first(queue: Queue) -> None:
    crowd = [queue.worker, *(queue.create_worker() for _ in range(11))]
    for worker in reversed(crowd):
        queue.work(worker=worker)
    assert leaders(queue) == [(worker.id, 1) for worker in crowd[:10]]


# ── The last day ──────────────────────────────────────────────────────────────────────────────────────────────────────


def roll(queue: Queue) -> None:
    """An hour is over: what was closed in it is added up."""
    after = (0, 0)
    while after is not None:
        after = queue.do(tracker.roll_tallies, after, int(queue.clock.time()) // HOUR)


def prune(queue: Queue) -> None:
    while queue.do(tracker.prune, "tally_hour"):
        pass


def test_the_last_day_has_what_was_closed_in_this_hour_and_in_the_24_before(queue: Queue) -> None:
    """One task in the first hour, two in the second, and so on."""
    seen = []
    for hour in range(40):
        queue.clock.now = hour * HOUR
        prune(queue)
        queue.work(hour + 1)
        seen.append(leaders(queue, LAST_DAY))
        roll(queue)
    assert seen == [[(queue.worker.id, sum(range(max(0, hour - 24) + 1, hour + 2)))] for hour in range(40)]


def test_who_has_closed_nothing_for_a_day_is_no_leader_of_the_day(queue: Queue) -> None:
    queue.work()
    roll(queue)
    queue.clock.now = 26 * HOUR
    prune(queue)
    assert leaders(queue, LAST_DAY) == []
    assert leaders(queue) == [(queue.worker.id, 1)]


@pytest.mark.parametrize("piece", [1, 2, 3, 4, 100])
def test_tallies_are_rolled_in_pieces_that_leave_out_none(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    second = queue.create_project("second")
    crowd = [queue.create_worker() for _ in range(4)]
    for worker, project in itertools.product(crowd, (queue.project, second)):
        queue.work(worker=worker, project=project)
    monkeypatch.setattr(retention, "PIECE_ROWS", piece)
    roll(queue)
    assert queue.values("SELECT COUNT(*), SUM(closed_task_count) FROM tally_hour") == [(8, 8)]
    assert queue.values("SELECT DISTINCT rolled_task_count, last_day_task_count FROM tally WHERE worker > 1") == [
        (1, 1)
    ]


def test_rolling_twice_counts_once(queue: Queue) -> None:
    queue.work(3)
    for _ in range(3):
        roll(queue)
        assert leaders(queue, LAST_DAY) == [(queue.worker.id, 3)]
    queue.work(1)
    roll(queue)
    assert queue.values("SELECT closed_task_count FROM tally_hour") == [(4,)]
    assert leaders(queue, LAST_DAY) == [(queue.worker.id, 4)]


def furnish_project(tx: Tx) -> tuple[int, WorkerCredentials]:
    session = tracker.register_manager(tx, "admin", "unused")[1]
    return call(tx, tracker.create_project, session, shapes.ProjectBody(name="p", public=True))["id"], create_worker(tx)


def close_tasks(tx: Tx, worker: WorkerCredentials, project: int, count: int) -> None:
    for _ in range(count):
        tracker.insert_task(tx, new_task(project), False)
        (task,) = call(tx, tracker.assign_tasks, worker, [project]).tasks
        tracker.release_task(tx, worker, shapes.ReleaseBody(task["id"], OK))


async def last_day(running: tracker.Tracker, project: int) -> int:
    rows = await running.db.read(pages.leaders, project, LAST_DAY)
    return sum(row["closed"] for row in rows)


def test_the_last_day_goes_on_over_restarts(tmp_path: Path) -> None:
    """Three tasks in the tenth minute, and, after a restart in every hour, one in each of the next hours."""

    async def main() -> None:
        clock, path = StillClock(), tmp_path / "x.db"
        clock.now = 600.0
        async with running(path, clock) as first:
            project, worker = await first.db.write(furnish_project)
            await first.db.write(close_tasks, worker, project, 3)
            assert await last_day(first, project) == 3
        for hour in range(1, 27):
            clock.now = hour * HOUR + 600
            async with running(path, clock) as again:
                await again.roll_tallies()
                await again.prune()
                assert await last_day(again, project) == (3 if hour <= 24 else 0) + min(hour - 1, 24)
                await again.db.write(close_tasks, worker, project, 1)

    asyncio.run(main())


def test_the_hours_are_told_apart_while_the_tracker_runs(tmp_path: Path) -> None:
    async def main() -> None:
        clock = StillClock()
        async with running(tmp_path / "x.db", clock) as one:
            project, worker = await one.db.write(furnish_project)
            for hour in range(30):
                clock.now = hour * HOUR + 30.0
                await one.roll_tallies()
                await one.prune()
                assert await last_day(one, project) == min(hour, 24)
                await one.db.write(close_tasks, worker, project, 1)
            hours = await one.db.read(lambda tx: tx.all("SELECT closed_task_count FROM tally_hour"))
            assert [row[0] for row in hours] == 24 * [1]

    asyncio.run(main())


def test_after_a_crash_nothing_is_counted_twice_or_lost(tmp_path: Path) -> None:
    async def main() -> None:
        clock, path, copy = StillClock(), tmp_path / "x.db", tmp_path / "crashed.db"
        async with running(path, clock) as one:
            project, worker = await one.db.write(furnish_project)
            await one.db.write(close_tasks, worker, project, 2)
            clock.now = HOUR
            await one.roll_tallies()
            await one.db.write(close_tasks, worker, project, 3)
            for suffix in ("", "-wal"):  # what a SIGKILL would leave
                Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
        async with running(copy, clock) as again:
            assert await last_day(again, project) == 5
            await again.close_hour()
            assert await last_day(again, project) == 5

    asyncio.run(main())


# ── Pace ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pace(queue: Queue) -> dict[str, Any]:
    return queue.do(lambda tx: pages.pace(tx, tracker.find_project(tx, queue.project)))


def snapshot(queue: Queue) -> None:
    queue.do(tracker.take_snapshots, 0, int(queue.clock.time()))


def test_the_rate_is_what_was_closed_in_the_last_five_minutes(queue: Queue) -> None:
    queue.work(100)
    for minute in range(1, 8):
        queue.clock.now = 60 * minute
        snapshot(queue)
        queue.work(6 * minute)
    for _ in range(54):
        queue.submit()
    found = pace(queue)
    assert (found["rate"], found["eta"], found["left"]) == (sum(range(2, 8)) * 6 / 300, 54 / 0.54, 54)
    assert (found["total"], found["share"]) == (322, None)  # most of them have come since


def test_what_is_assigned_or_awaits_verification_is_left_to_do_and_what_has_failed_is_not(queue: Queue) -> None:
    for fields, result in (({}, None), ({"verification_count": 2}, OK), ({}, FAIL)):
        queue.submit(**fields)
        task = queue.assign()
        if result is not None:
            queue.release(task, result)
    queue.submit()
    assert pace(queue)["left"] == 3


def test_nobody_knows_when_a_project_is_done_that_stands_still(queue: Queue) -> None:
    """Its first snapshot was taken when it was made."""
    queue.clock.now = 60
    queue.work()
    queue.submit()
    assert pace(queue) == {"rate": 1 / 60, "eta": 60, "left": 1, "total": 2, "share": None}
    queue.do(tracker.pause_project, queue.session, queue.project, shapes.PausedBody(True))
    assert pace(queue)["eta"] is None
    queue.clock.now = 120
    snapshot(queue)
    queue.clock.now = 500
    assert pace(queue)["rate"] is None
    snapshot(queue)
    queue.clock.now = 560
    assert (pace(queue)["rate"], pace(queue)["eta"]) == (0, None)


def test_a_project_without_tasks_is_done(queue: Queue) -> None:
    assert pace(queue)["eta"] == 0


@given(
    times=st.sets(st.integers(0, 200)),
    start=st.integers(-50, 250),
    step=st.integers(1, 60),
    steps=st.integers(1, 12),
)
def test_a_sample_is_the_last_snapshot_of_each_step(times: set[int], start: int, step: int, steps: int) -> None:
    memory = Memory()
    for time in times:
        for project in (1, 2):
            memory.do(
                lambda tx, *row: tx.execute("INSERT INTO snapshot VALUES (?, ?, 0, 0, ?, 0, 0, 0)", row),
                project,
                time,
                project,
            )
    moments = range(start, start + step * steps, step)
    rows = memory.do(pages.sampled_snapshots, 1, moments)
    last = [max((time for time in times if moment - step < time <= moment), default=None) for moment in moments]
    assert [row["time_stamp"] for row in rows] == [time for time in last if time is not None]
    assert {row["closed_task_count"] for row in rows} <= {1}
