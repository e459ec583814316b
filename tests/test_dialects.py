"""What dialects are asked: to follow jobs, whether something may be, to catch up with what they missed."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from place import Jobs, Queue, StillClock, running

import tracker
from database import APPLICATION_ID, prepare_file
from tracker import FAIL, SKIP, TrackerError

HOME = Path(tracker.__file__).parent


class Dialect:
    """A dialect that notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.starts = 0

    def job_event(self, tx: tracker.Tx, event: str, job: sqlite3.Row) -> None:
        self.events.append((event, job["state"]))

    async def catch_up(self, one: tracker.Tracker) -> None:
        self.starts += 1

    def heard(self) -> list[tuple[str, str]]:
        """What it was told since it was asked last."""
        events, self.events = self.events, []
        return events


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these the dialects that there are."""

    def do(**dialects: Any) -> None:
        monkeypatch.setattr(tracker, "dialects", lambda: list(dialects.values()))
        monkeypatch.setattr(tracker, "installed_dialects", lambda: list(dialects))

    return do


@pytest.fixture
def dialect(install: Callable[..., None]) -> Dialect:
    dialect = Dialect()
    install(otter=dialect)
    return dialect


def test_a_dialect_hears_of_all_that_happens_to_a_job_and_how_it_is_then(dialect: Dialect) -> None:
    queue = Jobs()
    template = queue.create_template(max_retries=2)
    job = queue.trigger(template)
    assert dialect.heard() == [("made", "waiting")]
    task = queue.assigned()["id"]
    assert dialect.heard() == [("assign", "assigned")]
    queue.finish_job(task, SKIP)
    assert dialect.heard() == [("skip", "waiting")]
    queue.act("set_priority", [task], 5)
    assert dialect.heard() == [("set_priority", "waiting")]
    queue.assigned()
    queue.act("requeue", [task])
    assert dialect.heard() == [("assign", "assigned"), ("requeue", "waiting")]
    queue.run(FAIL)
    assert dialect.heard() == [("assign", "assigned"), ("retry", "waiting")]
    queue.run(FAIL)
    assert dialect.heard() == [("assign", "assigned"), ("fail", "failed")]
    queue.do(tracker.delete_job, queue.rows("SELECT id FROM job WHERE token = ?", job)[0]["id"])
    assert dialect.heard() == [("deleted", "failed")]


def test_a_dialect_hears_how_jobs_end(dialect: Dialect) -> None:
    queue = Jobs()
    template = queue.create_template(timeout=10)
    queue.cancel(queue.trigger(template))
    queue.trigger(template)
    queue.run()
    queue.trigger(template)
    queue.assigned()
    queue.pass_lease()
    ends = [event for event in dialect.heard() if event[0] not in ("made", "assign")]
    assert ends == [("cancel", "cancelled"), ("close", "succeeded"), ("time_out", "timed_out")]


def test_a_dialect_hears_of_the_runs_of_workflows_and_of_their_steps(dialect: Dialect) -> None:
    queue = Jobs()
    queue.start(queue.create_workflow(queue.create_template()))
    queue.run()
    made, began, ended = [("made", "waiting")], [("assign", "assigned")], [("close", "succeeded")]
    assert dialect.heard() == 2 * made + 2 * began + 2 * ended


def test_nobody_is_told_of_plain_tasks(dialect: Dialect) -> None:
    queue = Queue()
    queue.work(3)
    queue.act("set_priority", [queue.submit()], 5)
    queue.finish(queue.begin("delete", tracker.TaskFilter("waiting")))
    assert dialect.heard() == []


def test_what_a_dialect_cannot_follow_does_not_happen(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Jobs()
    job = queue.trigger(queue.create_template())

    def refuse(tx: tracker.Tx, event: str, job: sqlite3.Row) -> None:
        raise TrackerError("conflict", "not now")

    monkeypatch.setattr(dialect, "job_event", refuse)
    assert queue.refusal(tracker.stop_job, queue.rows("SELECT * FROM job")[0], "me") == "conflict: not now"
    assert queue.state(job) == "waiting" and queue.tasks("waiting")


def test_a_dialect_that_was_there_all_the_time_has_nothing_to_catch_up_with(
    install: Callable[..., None], tmp_path: Path
) -> None:
    """It is asked to at the first start, and after a start without it: even if that one was killed at once."""

    async def start() -> None:
        async with running(tmp_path / "x.db", StillClock()):
            pass

    dialect, other = Dialect(), Dialect()
    starts = []
    for present in ({"otter": dialect}, {"otter": dialect}, {}, {"otter": dialect}, {"otter": dialect}):
        install(**present)
        asyncio.run(start())
        starts.append(dialect.starts)
    assert starts == [1, 1, 1, 2, 2]
    install(otter=dialect, theeye=other)
    asyncio.run(start())
    assert other.starts == 1


def test_a_dialect_that_could_not_catch_up_is_asked_again_at_the_next_start(
    dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start() -> None:
        async with running(tmp_path / "x.db", StillClock()):
            pass

    async def fails(one: tracker.Tracker) -> None:
        raise TrackerError("unavailable", "killed")

    with monkeypatch.context() as patch:
        patch.setattr(dialect, "catch_up", fails)
        with pytest.raises(TrackerError):
            asyncio.run(start())
    asyncio.run(start())
    assert dialect.starts == 1


def test_the_triggers_of_version_4_that_followed_jobs_are_gone_after_the_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript((HOME / "tests" / "schema_4.sql").read_text("utf-8"))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 4")
    prepare_file(path, tracker.Settings())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        triggers = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")}
        assert "testflinger_job_deleted" in triggers
        assert not {f"testflinger_job_{what}" for what in ("made", "moved", "gone")} & triggers
