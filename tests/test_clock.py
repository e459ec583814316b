"""A clock that was wrong: what is deleted for its age, who stays logged in, and what lists by time show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Site
from place import Jobs, Queue, StillClock, begin_reset, running
from test_pages import Tab

import clock as clock_module
import pages
import shapes
import tracker
from clock import Clock, Seen, read_seen
from database import NOTED, let_age, load_seen, load_set_back, load_uptime, set_back

HOUR, DAY = 3600, 86400
YEAR = 365 * DAY


class LooseClock(StillClock):
    """A clock that is set apart from the time that passes."""

    wall = 0.0

    def time(self) -> float:
        return clock_module.bounded(super().time() + self.wall)


def restarted(clock: LooseClock, wall: float) -> LooseClock:
    """The clock of the next run, which shows something else."""
    after = LooseClock()
    after.now, after.wall = clock.now, clock.wall + wall
    after.start(after.now, read_seen(clock.known()))
    return after


@pytest.fixture
def clock() -> LooseClock:
    clock = LooseClock()
    clock.start(0.0)
    return clock


# ── The uptime after a crash ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_uptime_begins_at_the_latest_assignment_that_the_file_knows() -> None:
    queue = Queue()
    queue.do(load_uptime)
    queue.do(tracker.save_uptime)
    queue.clock.now = 0.9
    queue.submit(max_assign_time=600)
    queue.assign()
    assert queue.do(load_uptime) == 0.9


def test_an_operation_that_a_crash_interrupted_takes_no_task_that_is_assigned_after_it() -> None:
    queue = Queue()
    queue.do(load_uptime)
    queue.do(tracker.save_uptime)
    queue.clock.now = 0.9
    queue.submit()
    queue.assign()
    queue.clock.now = 0.95
    queue.do(begin_reset, queue.project, "reclaim_assigned")
    assert queue.do(load_uptime) == 0.95


# ── Which clock is trusted ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gap", [0, 5, -HOUR, 29 * DAY, 30 * DAY])
def test_a_clock_is_believed_after_a_pause_and_after_a_small_step_back(clock: LooseClock, gap: float) -> None:
    assert restarted(clock, gap).trusted


@pytest.mark.parametrize("gap", [-HOUR - 1, -50 * YEAR, 30 * DAY + 1, 73 * YEAR])
def test_a_clock_that_shows_too_much_is_not_trusted(clock: LooseClock, gap: float) -> None:
    clock = restarted(clock, gap)
    clock.now += 60
    assert not clock.trusted
    assert clock.trusted_unix() == StillClock.START + 60
    assert clock.before(0) == 0


@pytest.mark.parametrize("gap", [-2 * HOUR, 73 * YEAR])
def test_a_clock_that_is_set_while_it_runs_is_watched_as_well(clock: LooseClock, gap: float) -> None:
    clock.wall = gap
    assert not clock.trusted


def test_a_clock_that_is_set_right_is_trusted_at_once(clock: LooseClock) -> None:
    clock = restarted(clock, 73 * YEAR)
    clock.now += HOUR
    clock.wall = 0
    assert clock.trusted
    assert clock.trusted_unix() == clock.time()


def test_a_clock_is_believed_after_seven_days_of_service(clock: LooseClock) -> None:
    clock = restarted(clock, 60 * DAY)
    for _ in range(7):
        assert not clock.trusted
        clock.now += DAY
        clock = restarted(clock, 0)  # a restart does not begin anew
    assert clock.trusted
    assert clock.trusted_unix() == clock.time()


def test_each_start_and_each_hour_says_that_the_clock_is_not_trusted(
    clock: LooseClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock = restarted(clock, 60 * DAY)
    clock = restarted(clock, 0)
    clock.look()
    assert [record.getMessage()[:9] for record in caplog.records] == ["The clock"] * 2
    clock.now += HOUR
    clock.look()
    assert len(caplog.records) == 3


def test_seven_days_begin_anew_with_another_wrong_time(clock: LooseClock) -> None:
    clock = restarted(clock, 60 * DAY)
    clock.now += 6 * DAY
    clock.wall += YEAR
    assert not clock.trusted
    clock.now += 2 * DAY
    assert not clock.trusted


def test_what_a_clock_in_doubt_noted_too_early_is_kept_for_as_long_as_anything(clock: LooseClock) -> None:
    clock = restarted(clock, -YEAR)
    noted = clock.time()
    clock.now += HOUR
    clock.wall = 0
    assert noted >= clock.before(30 * DAY)
    clock.now += 31 * DAY
    assert noted < clock.before(30 * DAY)


def test_what_is_seen_of_the_clock_outlasts_a_crash(tmp_path: Path) -> None:
    async def seen_after(clock: Clock, seconds: float) -> Clock:
        async with running(tmp_path / "x.db", clock) as one:
            clock.now += seconds
            await one.db.write(lambda tx: None)
            return read_seen((await one.db.read(lambda tx: tx.one("SELECT value FROM meta WHERE key = 'clock'")))[0])

    assert asyncio.run(seen_after(StillClock(), 100)).time == StillClock.START + 100


@pytest.mark.parametrize("table", ["snapshot", "log_entry", "worker", "manager"])
def test_a_file_that_knows_nothing_of_the_clock_goes_by_the_latest_time_in_it(table: str) -> None:
    queue = Queue()
    queue.do(tracker.take_snapshots, 0, StillClock.START)
    queue.do(tracker.add_log_entry, queue.worker, "info", shapes.LogBody("s", 1, "m"))
    for other in {"snapshot", "log_entry", "worker", "manager"} - {table}:
        queue.connection.execute(f"DELETE FROM {other}")
    seen = Seen(**queue.do(load_seen))
    queue.clock.start(0.0, seen)
    queue.clock.now += 1
    assert queue.clock.trusted
    wrong = LooseClock()
    wrong.wall = 73 * YEAR
    wrong.start(0.0, seen)
    assert not wrong.trusted


# ── What is deleted for its age ───────────────────────────────────────────────────────────────────────────────────────


class WrongQueue(Jobs):
    """A queue whose clock can be set apart from the time that passes."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.clock = LooseClock()
        self.clock.start(0.0)

    def end_job(self, template: int) -> str:
        job = self.trigger(template)
        self.run()
        return job

    def ids(self) -> set[str]:
        return {token for (token,) in self.values("SELECT token FROM job")}


@pytest.fixture
def wrong() -> WrongQueue:
    return WrongQueue()


def fill(queue: WrongQueue) -> dict[str, int]:
    """Something in each table that retention empties; how many rows there are."""
    queue.end_job(queue.create_template())
    queue.do(tracker.add_log_entry, queue.worker, "info", shapes.LogBody("s", 1, "old"))
    queue.do(tracker.take_snapshots, 0, queue.clock.time())
    queue.submit()
    queue.release(queue.assign(), tracker.SKIP)  # an assignment that has ended
    queue.do(begin_reset, queue.project, "reset_failed")
    queue.do(tracker.open_session, 1)
    return counted(queue)


def counted(queue: WrongQueue) -> dict[str, int]:
    tables = ("job", "log_entry", "snapshot", "assignment", "session")
    return {table: queue.values(f"SELECT COUNT(*) FROM {table}")[0][0] for table in tables}


@pytest.mark.parametrize("gap", [73 * YEAR, -40 * YEAR])
def test_a_clock_that_is_wrong_deletes_nothing(wrong: WrongQueue, gap: float) -> None:
    before = fill(wrong)
    wrong.clock.now += 60
    wrong.clock.wall = gap
    wrong.prune()
    assert counted(wrong) == before
    assert wrong.do(tracker.list_sessions, wrong.session)


def test_what_is_too_old_is_deleted_once_an_admin_has_said_that_the_clock_is_right(wrong: WrongQueue) -> None:
    import pages

    fill(wrong)
    wrong.clock.wall = 73 * YEAR
    wrong.do(pages.trust_clock, wrong.session)
    wrong.prune()
    assert counted(wrong) == dict.fromkeys(counted(wrong), 0) | {"session": counted(wrong)["session"]}


def test_a_job_that_ended_while_the_clock_was_years_behind_is_not_deleted_when_it_is_set_right(
    wrong: WrongQueue,
) -> None:
    wrong.clock.wall = -10 * YEAR
    wrong.clock.look()
    job = wrong.end_job(wrong.create_template())
    wrong.clock.now += HOUR
    wrong.clock.wall = 0
    wrong.prune()
    assert job in wrong.ids()


@pytest.mark.parametrize("gap", [73 * YEAR, -10 * YEAR])
def test_jobs_of_which_few_are_kept_stay_when_the_clock_was_set_meanwhile(wrong: WrongQueue, gap: float) -> None:
    """Those that a wrong clock noted as the newest do not make the others old, nor is what it noted old."""
    template = wrong.create_template(keep_count=2)
    right = [wrong.end_job(template), wrong.end_job(template)]
    wrong.clock.wall = gap
    wrong.clock.look()
    odd = [wrong.end_job(template), wrong.end_job(template)]
    wrong.prune()
    wrong.clock.now += HOUR
    wrong.clock.wall = 0
    last = [wrong.end_job(template), wrong.end_job(template)]
    wrong.prune()
    assert {*last, *odd} <= wrong.ids()
    assert right[0] not in wrong.ids() or gap < 0


def test_an_hour_of_the_future_is_no_part_of_a_workers_last_day(wrong: WrongQueue) -> None:
    wrong.work(3)
    hour = int(wrong.clock.time()) // HOUR
    wrong.do(tracker.roll_tallies, (0, 0), hour + 1000 * 24)
    wrong.prune()
    assert wrong.values("SELECT last_day_task_count FROM tally") == [(0,)]


def test_what_a_wrong_clock_noted_as_of_the_future_is_deleted_when_it_is_as_old_as_anything(
    wrong: WrongQueue,
) -> None:
    wrong.clock.wall = 73 * YEAR
    wrong.clock.look()
    odd = fill(wrong)
    wrong.clock.now += HOUR
    wrong.clock.wall = 0
    wrong.prune()
    assert counted(wrong) == odd
    wrong.clock.now += 31 * DAY
    wrong.prune()
    left = counted(wrong)
    assert (left["job"], left["log_entry"], left["assignment"]) == (0, 0, 0)


OUTCOME = "INSERT INTO testflinger_outcome (uuid, touched) VALUES (?, ?)"


def test_a_wrong_clocks_times_are_set_right_a_piece_at_a_time(wrong: WrongQueue) -> None:
    now = int(wrong.clock.time())
    wrong.connection.executemany(OUTCOME, [(str(number), now + YEAR) for number in range(25)])
    wrong.connection.execute(OUTCOME, ("old", now - YEAR))
    more = [wrong.do(let_age, "testflinger_outcome", 10) for _ in range(3)]
    assert more == [True, True, False]
    assert set(wrong.values("SELECT touched FROM testflinger_outcome")) == {(now,), (now - YEAR,)}


@pytest.mark.parametrize("table", NOTED)
def test_whatever_is_deleted_for_its_age_can_be_set_right(wrong: WrongQueue, table: str) -> None:
    assert wrong.do(lambda tx: let_age(tx, table, 10, template=None)) is False


@pytest.mark.parametrize("gap", [73 * YEAR, -40 * YEAR])
def test_a_delay_is_as_long_as_it_was_meant_whatever_the_clock_shows(wrong: WrongQueue, gap: float) -> None:
    task = tracker.new_task(shapes.SubmitBody(wrong.project, "recipe", delay=60))
    wrong.do(tracker.submit_task, wrong.worker, task)
    wrong.clock.wall = gap
    wrong.do(tracker.wake_tasks)
    assert len(wrong.tasks("delayed")) == 1
    wrong.clock.now += 61
    wrong.do(tracker.wake_tasks)
    assert len(wrong.tasks("waiting")) == 1


# ── Logins ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_login_made_under_a_wrong_clock_ends_when_others_do() -> None:
    wrong = WrongQueue()
    lifetime = int(wrong.settings.session_lifetime)
    wrong.clock.wall = 73 * YEAR
    wrong.do(tracker.open_session, 1)
    assert max(end for (end,) in wrong.values("SELECT expires FROM session")) == StillClock.START + lifetime


def test_a_login_that_would_end_in_a_far_future_ends_when_one_of_now_does(wrong: WrongQueue) -> None:
    wrong.connection.execute("UPDATE session SET expires = expires + 1000000000000")
    wrong.prune()
    ends = {end for (end,) in wrong.values("SELECT expires FROM session")}
    assert ends == {int(wrong.clock.time() + wrong.settings.session_lifetime)}


# ── What people and clients see ───────────────────────────────────────────────────────────────────────────────────────


def test_snapshots_of_the_future_are_not_the_newest(wrong: WrongQueue) -> None:
    now = int(wrong.clock.time())
    wrong.do(tracker.take_snapshots, 0, now + 73 * YEAR)
    wrong.do(tracker.take_snapshots, 0, now)
    got = wrong.do(tracker.get_snapshots, wrong.session, wrong.project, shapes.LastSnapshots(10))
    times = [one["time_stamp"] for one in got.get("snapshots", got)]
    assert times[0] == now
    assert max(times) == now


def jobs_between(queue: Queue, **bounds: int) -> list[int]:
    query = shapes.JobsQuery(project=queue.project, **bounds)
    return [row["id"] for row in queue.do(lambda tx: tracker.find_jobs(tx, None, query)[0])]


@pytest.fixture
def set_back_jobs(wrong: WrongQueue) -> WrongQueue:
    """Five jobs, an hour apart; before the fourth the clock is set back by three hours."""
    template = wrong.create_template()
    for number in range(5):
        if number == 3:
            wrong.clock.wall -= 3 * HOUR
        wrong.trigger(template)
        wrong.clock.now += HOUR
    return wrong


def test_a_list_by_time_misses_nothing_after_the_clock_was_set_back(set_back_jobs: WrongQueue) -> None:
    made = dict(set_back_jobs.values("SELECT id, created FROM job"))
    for start in sorted(made.values()):
        for end in sorted(made.values()):
            wanted = [job for job in sorted(made, reverse=True) if start <= made[job] < end + 1]
            assert jobs_between(set_back_jobs, start=int(start), end=int(end)) == wanted


def test_a_file_in_which_the_clock_was_set_back_before_that_was_noted_is_looked_through(
    set_back_jobs: WrongQueue,
) -> None:
    assert set_back_jobs.do(set_back) == 2 * HOUR
    set_back_jobs.connection.execute("DELETE FROM meta WHERE key = 'jobs_set_back'")
    set_back_jobs.do(load_set_back)
    assert set_back_jobs.do(set_back) == 2 * HOUR


def test_the_log_and_the_page_say_that_the_clock_is_not_trusted_until_an_admin_says_that_it_is(
    make_site: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()
    tab = Tab(site.admin.http)
    site.clock.wall = 73 * YEAR
    page = tab.open("/ui/admin")  # with the login of before
    assert "The clock is not trusted" in page.text
    assert any("The clock shows" in record.getMessage() for record in caplog.records)
    page = tab.send(page.form("/ui/admin/clock"))
    assert "The clock is trusted now" in page.text
    assert "The clock is not trusted" not in page.text
    assert site.clock.trusted


def test_nobody_but_an_admin_says_that_the_clock_is_right(make_site: Callable[..., Site]) -> None:
    site = make_site()
    tab = Tab(site.create_manager().http)
    site.clock.wall = 73 * YEAR
    assert tab.post("/ui/admin/clock").status_code == 403
    assert not site.clock.trusted


def test_nothing_is_pruned_in_the_first_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = []
    monkeypatch.setattr(tracker, "prune", lambda tx, table: pruned.append(table))

    async def serve() -> None:
        async with running(tmp_path / "x.db", StillClock()):
            await asyncio.sleep(0.2)

    asyncio.run(serve())
    assert pruned == []
    assert tracker.PRUNE_DELAY >= 120


ABSURD = [-(2.0**63), -62_135_596_801.0, -1.0, 2.0**32, 231_800_000_000.0, 253_402_300_800.0, 2.0**63]


@pytest.mark.parametrize("clocks", [ABSURD, ABSURD[::-1]])
def test_pages_and_calls_answer_whatever_the_clock_shows_and_has_shown(site: Site, clocks: list[float]) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    ranges = [f"/ui/projects/{project}?range={name}" for name in pages.RANGES]
    now = StillClock.time(site.clock)
    for time in (*clocks, now):
        site.clock.wall = time - now
        assert worker.submit(project, "a").status_code == 200
        assert worker.release(worker.assigned(project)["id"]).status_code == 200
        for path in ("/ui/", *ranges, "/ui/logs", "/ui/workers", "/ui/admin", f"/project/monitoring/{project}?count=9"):
            assert site.admin.http.get(path).status_code == 200, (time, path)


@pytest.mark.parametrize("clocks", [ABSURD, ABSURD[::-1]])
def test_charts_are_drawn_whatever_the_clock_shows_and_has_shown(wrong: WrongQueue, clocks: list[float]) -> None:
    now = StillClock.time(wrong.clock)
    for time in (*clocks, now):
        wrong.clock.wall = time - now
        wrong.do(tracker.take_snapshots, 0, int(wrong.clock.time()))
        [project] = wrong.rows("SELECT * FROM project")
        for span in pages.RANGES:
            assert wrong.do(pages.project_charts, project, span)["backlog"].time_ticks, (time, span)
        assert wrong.do(pages.spark, wrong.project)


def test_the_clock_is_read_in_one_place() -> None:
    """Beside it and worker.py, which is copied alone, no module asks for the wall clock, and no SQL does."""
    root = Path(clock_module.__file__).parent
    files = [*root.glob("*.py"), *root.glob("dialects/**/*.py"), root / "schema.sql"]
    words = ("time.time()", "datetime.now", "utcnow", "unixepoch", "strftime('%s", "CURRENT_TIME", "julianday")
    found = {
        file.name: word
        for file in files
        if file.name not in ("clock.py", "worker.py")
        for word in words
        if word in file.read_text("utf-8")
    }
    assert found == {}
