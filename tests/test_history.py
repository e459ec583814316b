"""The history of a task: how its assignments ended, what was logged about it, and how long that is kept."""

from __future__ import annotations

from typing import Any

import pytest
from place import Queue, StillClock

import pages
import retention
import shapes
import tracker
from tracker import EDIT, FAIL, OK, READ, SKIP


@pytest.fixture
def queue() -> Queue:
    return Queue(history_retention=1000)


def past(queue: Queue, task: int) -> list[tuple[str, int, int, int]]:
    """How the assignments of a task ended: outcome, worker, seconds since the start when they began and ended."""
    return queue.values(
        "SELECT outcome, worker, assign_time - ?1, end_time - ?1 FROM assignment WHERE task = ?2 ORDER BY id",
        StillClock.START,
        task,
    )


def outcomes(queue: Queue, task: int) -> list[str]:
    return [outcome for outcome, *_ in past(queue, task)]


# ── Outcomes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("outcome", "result", "fields"),
    [
        ("failed", FAIL, {"max_retries": 3}),
        ("failed", FAIL, {"max_retries": 0}),
        ("skipped", SKIP, {}),
        ("verified", OK, {"verification_count": 2}),
    ],
)
def test_a_released_assignment_is_in_the_history(queue: Queue, outcome: str, result: int, fields: dict) -> None:
    task = queue.submit(**fields)
    queue.clock.now = 10
    queue.assign()
    queue.clock.now = 25
    queue.release(task, result)
    assert past(queue, task) == [(outcome, queue.worker.id, 10, 25)]


def test_an_expired_assignment_is_in_the_history(queue: Queue) -> None:
    task = queue.submit(max_assign_time=60)
    queue.assign()
    queue.clock.now = 60
    queue.do(tracker.expire_tasks)
    assert past(queue, task) == [("expired", queue.worker.id, 0, 60)]


def test_assignments_that_expire_together_are_in_the_history_once_each(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "STEP_TASKS", 3)
    tasks = [queue.submit(max_assign_time=60) for _ in range(10)]
    for _ in tasks:
        queue.assign()
    queue.clock.now = 60
    while queue.do(tracker.expire_tasks):
        pass
    assert [outcomes(queue, task) for task in tasks] == 10 * [["expired"]]
    assert queue.counts() == {"waiting": 10}


def test_a_requeued_assignment_is_in_the_history(queue: Queue) -> None:
    task, waiting = queue.submit(priority=1), queue.submit()
    queue.assign()
    queue.clock.now = 5
    assert queue.act("requeue", [task, waiting]) == 1
    assert past(queue, task) == [("requeued", queue.worker.id, 0, 5)]
    assert past(queue, waiting) == []


def test_a_reclaimed_assignment_is_in_the_history(queue: Queue) -> None:
    task = queue.submit()
    queue.assign()
    queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, "reclaim_assigned"))
    assert outcomes(queue, task) == ["requeued"]


def test_a_task_that_is_closed_at_the_first_attempt_leaves_no_history(queue: Queue) -> None:
    queue.work(count=3)
    assert queue.rows("SELECT * FROM assignment") == []


@pytest.mark.parametrize(
    ("before", "fields"),
    [
        ("failed", {"max_retries": 2}),
        ("skipped", {}),
        ("verified", {"verification_count": 2}),
        ("expired", {"max_assign_time": 60}),
        ("requeued", {}),
    ],
)
def test_closing_a_task_that_has_a_history_is_its_last_entry(queue: Queue, before: str, fields: dict) -> None:
    task, other = queue.submit(**fields), queue.create_worker()
    queue.assign()
    queue.clock.now = 60
    if before == "expired":
        queue.do(tracker.expire_tasks)
    elif before == "requeued":
        queue.act("requeue", [task])
    else:
        queue.release(task, {"failed": FAIL, "skipped": SKIP, "verified": OK}[before])
    queue.clock.now = 70
    queue.assign(other)
    queue.clock.now = 90
    assert queue.release(task, worker=other)
    assert past(queue, task) == [(before, queue.worker.id, 0, 60), ("closed", other.id, 70, 90)]


def test_a_task_that_failed_and_was_retried_keeps_its_history(queue: Queue) -> None:
    task = queue.submit()
    queue.assign()
    queue.release(task, FAIL)
    assert queue.act("retry", [task]) == 1
    queue.assign()
    queue.release(task)
    assert outcomes(queue, task) == ["failed", "closed"]


def test_a_release_of_somebody_who_does_not_hold_the_task_leaves_no_history(queue: Queue) -> None:
    task, other = queue.submit(), queue.create_worker()
    queue.assign()
    assert not queue.release(task, FAIL, worker=other)
    assert outcomes(queue, task) == []


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def history(queue: Queue, task: int, session: bytes | None = None) -> dict[str, Any]:
    return queue.do(pages.get_task_history, session or queue.session, task)


def log(queue: Queue, message: str, task: int | None = None, worker: Any = None) -> None:
    body = shapes.LogBody("test", 1, message, task_id=task)
    queue.do(tracker.add_log_entry, worker or queue.worker, "info", body)


def test_a_task_is_shown_with_its_past_the_newest_first(queue: Queue) -> None:
    task, other = queue.submit(verification_count=2, max_retries=5), queue.create_worker()
    for worker, result in ((queue.worker, SKIP), (queue.worker, OK), (other, FAIL)):
        queue.assign(worker)
        queue.release(task, result, worker, hash64=7)
    shown = history(queue, task)
    assert (shown["task"]["id"], shown["project"]["id"]) == (task, queue.project)
    assert [row["outcome"] for row in shown["past"]] == ["failed", "verified", "skipped"]
    assert [(row["worker"], row["hash"], row["alias"]) for row in shown["verifications"]] == [
        (queue.worker.id, 7, "worker")
    ]


def test_what_workers_logged_about_a_task_that_they_held_is_shown_with_it(queue: Queue) -> None:
    task, another = queue.submit(priority=1), queue.submit()
    queue.assign()
    log(queue, "of this one", task)
    log(queue, "of one that it does not hold", another)
    log(queue, "of none")
    queue.release(task, SKIP)
    log(queue, "too late", task)
    assert [row["message"] for row in history(queue, task)["logs"]] == ["of this one"]
    assert history(queue, another)["logs"] == []


def test_a_closed_task_is_shown_as_long_as_it_has_a_history(queue: Queue) -> None:
    task = queue.submit()
    for result in (SKIP, OK):
        queue.assign()
        queue.release(task, result)
    shown = history(queue, task)
    assert (shown["task"], shown["project"]["id"]) == (None, queue.project)
    assert [row["outcome"] for row in shown["past"]] == ["closed", "skipped"]


def test_a_task_that_left_nothing_is_not_found(queue: Queue) -> None:
    queue.work()
    for task in 1, 999, 2**63 - 1:
        assert queue.refusal(pages.get_task_history, queue.session, task).startswith(f"not_found: No task {task}")


def test_the_history_of_a_task_needs_read_in_its_project(queue: Queue) -> None:
    task = queue.submit()
    for result in (SKIP, OK):  # live, and closed with a past
        reader, editor = queue.create_manager(f"reader {result}", READ), queue.create_manager(f"editor {result}", EDIT)
        assert history(queue, task, reader)["id"] == task
        assert queue.refusal(pages.get_task_history, editor, task).startswith("forbidden")
        assert queue.refusal(pages.get_task_history, None, task).startswith("unauthorized")
        queue.assign()
        queue.release(task, result)


def test_a_task_of_a_hidden_project_does_not_exist_for_others(queue: Queue) -> None:
    task, stranger = queue.submit(), queue.create_manager("stranger")
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(hidden=True))
    assert queue.refusal(pages.get_task_history, stranger, task).startswith("not_found")


# ── Log lines of a project ────────────────────────────────────────────────────────────────────────────────────────────


def logged(queue: Queue, task: int | None = None) -> tuple[int | None, int | None]:
    """The task and the project of a line that the worker logs now."""
    log(queue, "a line", task)
    return queue.values("SELECT task, project FROM log_entry ORDER BY id DESC LIMIT 1")[0]


def test_a_line_that_names_no_task_is_of_the_only_project_whose_tasks_the_worker_holds(queue: Queue) -> None:
    second = queue.create_project("second")
    queue.work(project=second)
    assert logged(queue) == (None, None)
    queue.submit()
    task = queue.assign()
    assert logged(queue) == (None, queue.project)
    queue.submit(project=second)
    queue.assign(project=second)
    assert logged(queue) == (None, None)
    queue.release(task)
    assert logged(queue) == (None, second)


def test_a_line_that_names_a_task_which_the_worker_holds_is_of_its_project(queue: Queue) -> None:
    second = queue.create_project("second")
    queue.submit()
    queue.submit(project=second)
    first_task, second_task = queue.assign(), queue.assign(project=second)
    assert logged(queue, first_task) == (first_task, queue.project)
    assert logged(queue, second_task) == (second_task, second)
    assert logged(queue, 999) == (None, None)


# ── Forgetting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def prune(queue: Queue, table: str) -> None:
    while queue.do(tracker.prune, table):
        pass


def skip(queue: Queue, task: int, times: int = 1) -> None:
    for _ in range(times):
        assert queue.assign() == task
        queue.release(task, SKIP)


@pytest.mark.parametrize("piece", [2, 500])
def test_past_assignments_are_forgotten_after_the_retention_time(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(retention, "PIECE_ROWS", piece)
    task = queue.submit()
    skip(queue, task, 5)
    queue.clock.now = 600
    skip(queue, task, 3)
    prune(queue, "assignment")
    assert len(outcomes(queue, task)) == 8
    queue.clock.now = 1001
    prune(queue, "assignment")
    assert len(outcomes(queue, task)) == 3


@pytest.mark.parametrize("piece", [2, 500])
def test_a_worker_that_skips_in_a_circle_does_not_fill_the_disk(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(retention, "PIECE_ROWS", piece)
    monkeypatch.setattr(retention, "MOST_ASSIGNMENTS", 4)
    task = queue.submit()
    skip(queue, task, 10)
    prune(queue, "assignment")
    assert [id for (id,) in queue.values("SELECT id FROM assignment ORDER BY id")] == [7, 8, 9, 10]


def test_a_task_whose_history_was_forgotten_can_be_closed(queue: Queue) -> None:
    task = queue.submit(max_retries=5)
    queue.assign()
    queue.release(task, FAIL)
    queue.clock.now = 1001
    prune(queue, "assignment")
    queue.assign()
    assert queue.release(task)
    assert outcomes(queue, task) == []


def test_a_managers_operation_is_kept_for_a_while_after_it_has_finished(queue: Queue) -> None:
    queue.submit()
    operation = queue.begin("delete", tracker.TaskFilter())
    going_on = queue.begin("delete", tracker.TaskFilter("failed"))
    queue.finish(operation)
    queue.clock.now = 999
    prune(queue, "operation")
    shown = queue.do(tracker.get_operation, queue.session, operation)
    assert (shown["affected"], shown["finished"], shown["username"]) == (1, StillClock.START, "admin")
    queue.clock.now = 1001
    prune(queue, "operation")
    refusal = queue.refusal(tracker.get_operation, queue.session, operation)
    assert refusal == f"not_found: No operation {operation}, or it is finished and forgotten"
    assert queue.do(tracker.get_operation, queue.session, going_on)["finished"] is None


def test_a_workers_operation_is_forgotten_when_it_has_finished(queue: Queue) -> None:
    operation = queue.do(tracker.begin_bulk_submit, queue.worker, queue.project)
    queue.do(tracker.accept_bulk_submit, queue.worker, operation, 0)
    queue.finish(operation)
    assert queue.rows("SELECT * FROM operation") == []


def test_an_operation_is_shown_to_managers_with_read(queue: Queue) -> None:
    operation = queue.begin("delete", tracker.TaskFilter())
    reader, stranger = queue.create_manager("reader", READ), queue.create_manager("stranger")
    assert queue.do(tracker.get_operation, reader, operation)["kind"] == "delete"
    assert queue.refusal(tracker.get_operation, stranger, operation).startswith("forbidden")
    assert queue.refusal(tracker.get_operation, None, operation).startswith("unauthorized")
    assert queue.refusal(tracker.get_operation, None, 999).startswith("unauthorized")


def test_the_last_operations_of_a_project_are_those_of_managers(queue: Queue) -> None:
    queue.do(tracker.begin_bulk_submit, queue.worker, queue.project)
    queue.do(tracker.begin_lines_submit, queue.session, queue.project)  # not accepted yet
    begun = [queue.begin("delete", tracker.TaskFilter("failed")) for _ in range(7)]
    assert [row["id"] for row in queue.do(pages.recent_operations, queue.project)] == begun[:1:-1]
