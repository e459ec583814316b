"""What managers do to tasks: to those that they select, and to all that match a list's filter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from place import Queue, StillClock, call, create_worker, finished, new_task, running
from test_background import Prepared

import searching
import shapes
import tracker
from tracker import (
    EDIT,
    FAIL,
    MAINTENANCE,
    MANAGE_ACCESS,
    OK,
    READ,
    SECRET,
    SKIP,
    TASK_STATES,
    TaskAction,
    TaskFilter,
    Tx,
    WorkerCredentials,
)

ACTIONS = ("retry", "requeue", "make_ready", "set_priority", "delete")
STATES = tuple(TASK_STATES)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction of a long operation takes two tasks."""
    monkeypatch.setattr(tracker, "STEP_TASKS", 2)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)


def put_into(queue: Queue, state: str, project: int | None = None, **fields: object) -> int:
    """A new task in this state. To get there it comes before all that wait."""
    needed = {"priority": 0 if state == "waiting" else 9, "verification_count": 2 * (state == "awaiting_verification")}
    fields = {**needed, **fields}
    task = queue.submit(project=project, **fields)
    if state != "waiting":
        assert queue.assign(project=project) == task
    if state == "awaiting_verification":
        queue.release(task, OK)
    if state == "failed":
        queue.release(task, FAIL)
    if state == "delayed":
        queue.release(task, SKIP, delay=1000)
    return task


def one_in_each_state(queue: Queue, project: int | None = None, **fields: object) -> dict[str, int]:
    return {state: put_into(queue, state, project, **fields) for state in STATES}


# ── On selected tasks ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_retrying_makes_failed_tasks_wait_again_with_all_their_retries(queue: Queue) -> None:
    task = queue.submit(max_retries=2)
    for _ in range(2):
        queue.release(queue.assign(), FAIL)
    assert queue.counts() == {"failed": 1}
    assert queue.act("retry", [task]) == 1
    assert queue.counts() == {"waiting": 1}
    queue.release(queue.assign(), FAIL)
    assert queue.counts() == {"waiting": 1}


def test_a_verified_task_that_failed_and_is_retried_awaits_verification(queue: Queue) -> None:
    task, other = queue.submit(verification_count=2), queue.create_worker()
    queue.release(queue.assign(), OK, hash64=7)
    queue.release(queue.assign(other), FAIL, other)
    assert queue.counts() == {"failed": 1}
    assert queue.act("retry", [task]) == 1
    assert queue.counts() == {"awaiting_verification": 1}
    assert queue.do(tracker.assign_tasks, queue.worker, [queue.project]).tasks == []
    assert queue.assign(other) == task
    assert queue.release(task, OK, other, hash64=7)


def test_requeueing_takes_tasks_from_their_workers_and_leaves_their_retries(queue: Queue) -> None:
    task = queue.submit(max_retries=3)
    queue.release(queue.assign(), FAIL)
    queue.assign()
    assert queue.act("requeue", [task]) == 1
    assert queue.counts() == {"waiting": 1}
    assert queue.task(task)["retries"] == 1
    assert queue.values("SELECT held_task_count FROM tally") == [(0,)]
    assert {queue.task(task)[name] for name in ("assignee", "assign_time", "assigned_uptime", "deadline_uptime")} == {
        None
    }


def test_a_priority_that_is_set_decides_what_is_assigned_next(queue: Queue) -> None:
    first, second = queue.submit(), queue.submit()
    assert queue.act("set_priority", [second], 5) == 1
    assert [queue.assign(), queue.assign()] == [second, first]


def test_a_priority_that_is_set_decides_what_is_verified_next(queue: Queue) -> None:
    first, second = (put_into(queue, "awaiting_verification") for _ in range(2))
    queue.act("set_priority", [second], 2**63 - 1)
    other = queue.create_worker()
    assert [queue.assign(other), queue.assign(other)] == [second, first]


def test_a_deleted_task_leaves_nothing_that_counts(queue: Queue) -> None:
    tasks = one_in_each_state(queue)
    assert queue.act("delete", tasks.values()) == 5
    assert queue.counts() == {}
    for table in ("task", "verification", "verifier_set", "verifier"):
        assert queue.rows(f"SELECT * FROM {table}") == []
    assert queue.values("SELECT held_task_count, closed_task_count FROM tally") == [(0, 0)]


def test_the_hash_of_a_deleted_task_is_free_again(queue: Queue) -> None:
    task = queue.submit(hash64=7)
    queue.act("delete", [task])
    assert queue.submit(hash64=7) > task


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_changes_only_tasks_in_the_state_that_it_is_for(queue: Queue, action: str) -> None:
    tasks = one_in_each_state(queue)
    before = {task: queue.task(task) for task in tasks.values()}
    only = {"retry": {"failed"}, "requeue": {"assigned"}, "make_ready": {"delayed"}}
    affected = only.get(action, set(STATES))
    assert queue.act(action, tasks.values(), 5) == len(affected)
    assert {state for state, task in tasks.items() if queue.task(task) != before[task]} == affected


@pytest.mark.parametrize("action", ACTIONS)
def test_tasks_of_another_project_unknown_ones_and_repeated_ones_are_left_alone(queue: Queue, action: str) -> None:
    second = queue.create_project("second")
    own, others = one_in_each_state(queue), one_in_each_state(queue, second)
    before = queue.values("SELECT * FROM task WHERE project = ?", second)
    named = [*others.values(), *own.values(), *own.values(), 999, 0, -1, 2**63 - 1, -(2**63)]
    assert queue.act(action, named, 5) == (1 if action in ("retry", "requeue", "make_ready") else 5)
    assert queue.values("SELECT * FROM task WHERE project = ?", second) == before
    assert len(queue.rows("SELECT * FROM assignment WHERE outcome = 'requeued'")) == (action == "requeue")


@pytest.mark.parametrize("action", ACTIONS)
def test_a_number_that_can_be_no_tasks_is_refused(queue: Queue, action: str) -> None:
    body = TaskAction(action, 5)
    for number in 2**64, -(2**63) - 1, 10**30:
        refusal = queue.refusal(tracker.act_on_tasks, queue.session, queue.project, body, [number])
        assert refusal == "invalid: task: must fit in 64 bits"


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_nothing_does_nothing(queue: Queue, action: str) -> None:
    one_in_each_state(queue)
    assert queue.act(action, [], 5) == 0


def test_an_action_may_name_a_thousand_tasks(queue: Queue) -> None:
    body = TaskAction("delete")
    tasks = [queue.submit() for _ in range(3)]
    assert queue.act("delete", [*tasks, *range(100, 1097)]) == 3
    refusal = queue.refusal(tracker.act_on_tasks, queue.session, queue.project, body, list(range(1001)))
    assert refusal == "invalid: task: at most 1000 at once"


def test_setting_the_priority_that_a_task_has_changes_nothing(queue: Queue) -> None:
    task = queue.submit(priority=5)
    assert queue.act("set_priority", [task], 5) == 0


@pytest.mark.parametrize("priority", [-(2**63), 2**63 - 1])
def test_a_priority_may_be_as_low_or_high_as_one_of_a_submitted_task(queue: Queue, priority: int) -> None:
    task = queue.submit()
    assert queue.act("set_priority", [task], priority) == 1
    assert queue.task(task)["priority"] == priority


def test_tasks_that_become_ready_are_announced(queue: Queue) -> None:
    tasks = [put_into(queue, "failed") for _ in range(3)]
    queue.act("retry", [*tasks, 99])
    assert queue.announced == {queue.project: 3}
    for _ in tasks:
        queue.assign()
    queue.act("requeue", tasks[:2])
    assert queue.announced == {queue.project: 2}


# ── Who may ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("action", ACTIONS)
def test_setting_priorities_needs_edit_and_the_rest_needs_maintenance(queue: Queue, action: str) -> None:
    needed = EDIT if action == "set_priority" else MAINTENANCE
    able, unable = queue.create_manager("able", needed), queue.create_manager("unable", tracker.ALL_ROLES - needed)
    task = one_in_each_state(queue)["failed"]
    body, wanted = TaskAction(action, 5), TaskFilter("failed")
    calls: list[tuple[Callable, object]] = [(tracker.act_on_tasks, [task]), (tracker.begin_action, wanted)]
    before = queue.values("SELECT * FROM task")
    for function, what in calls:
        assert queue.refusal(function, None, queue.project, body, what).startswith("unauthorized")
        refusal = queue.refusal(function, unable, queue.project, body, what)
        assert refusal == f"forbidden: You have no {tracker.ROLE_NAMES[needed]} role in project {queue.project}"
        assert queue.refusal(function, able, 99, body, what).startswith("not_found")
    assert queue.values("SELECT * FROM task") == before
    assert queue.rows("SELECT * FROM operation") == []
    for function, what in calls:
        queue.do(function, able, queue.project, body, what)


@pytest.mark.parametrize("role", [READ, MANAGE_ACCESS, SECRET])
def test_other_roles_allow_no_action(queue: Queue, role: int) -> None:
    session = queue.create_manager("other", role)
    for action in ACTIONS:
        body = TaskAction(action, 5)
        assert queue.refusal(tracker.act_on_tasks, session, queue.project, body, []).startswith("forbidden")


def test_a_role_in_one_project_allows_nothing_in_another(queue: Queue) -> None:
    session = queue.create_manager("other", tracker.ALL_ROLES)
    second = queue.create_project("second")
    task = queue.submit(project=second)
    body = TaskAction("delete")
    assert queue.refusal(tracker.act_on_tasks, session, second, body, [task]).startswith("forbidden")
    assert queue.do(tracker.act_on_tasks, session, queue.project, body, [task]) == 0
    assert queue.tasks("waiting", second) == {task}


def test_a_hidden_project_does_not_exist_for_others(queue: Queue) -> None:
    session = queue.create_manager("stranger")
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(hidden=True))
    body = TaskAction("delete")
    assert queue.refusal(tracker.act_on_tasks, session, queue.project, body, []).startswith("not_found")
    assert queue.refusal(tracker.begin_action, session, queue.project, body, TaskFilter()).startswith("not_found")


def test_setting_a_priority_needs_a_priority(queue: Queue) -> None:
    body = TaskAction("set_priority")
    for function, what in ((tracker.act_on_tasks, []), (tracker.begin_action, TaskFilter())):
        refusal = queue.refusal(function, queue.session, queue.project, body, what)
        assert refusal == "invalid: priority: is required"


# ── On all that match ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("budget", [-1, 1])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("narrower", [{}, {"text": "recipe 1"}, {"priority": 1}, {"text": "10", "priority": 0}])
def test_all_that_match_a_filter_are_deleted_and_no_others(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, state: str, narrower: dict, budget: float
) -> None:
    """Two at a time, each two in a transaction of their own or all in one."""
    monkeypatch.setattr(tracker, "STEP_TASKS", 2)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", budget)
    second = queue.create_project("second")
    for project in queue.project, second:
        for number in range(11):
            task = put_into(queue, state, project, recipe=f"recipe {number}")
            queue.do(
                lambda tx, *values: tx.execute("UPDATE task SET priority = ? WHERE id = ?", values), number % 2, task
            )
        one_in_each_state(queue, project, recipe="another")
    wanted = TaskFilter(state, **narrower)
    before = queue.rows("SELECT * FROM task")
    matching = {
        row["id"]
        for row in before
        if row["project"] == queue.project
        and row["id"] in queue.tasks(state)
        and wanted.text in row["recipe"]
        and wanted.priority in (None, row["priority"])
    }
    assert 0 < len(matching) < len(before)
    assert queue.finish(queue.begin("delete", wanted)) == len(matching)
    assert {row["id"] for row in queue.rows("SELECT id FROM task")} == {row["id"] for row in before} - matching


def test_all_tasks_of_an_assignee_are_requeued(queue: Queue, in_small_pieces: None) -> None:
    other = queue.create_worker()
    held: dict[int, set[int]] = {queue.worker.id: set(), other.id: set()}
    for worker in 3 * (queue.worker, other):
        queue.submit()
        held[worker.id].add(queue.assign(worker))
    assert queue.finish(queue.begin("requeue", TaskFilter("assigned", assignee=other.id))) == 3
    assert queue.tasks("waiting") == held[other.id]
    assert queue.tasks("assigned") == held[queue.worker.id]


@pytest.mark.parametrize(("action", "state"), [("retry", "failed"), ("requeue", "assigned")])
def test_tasks_that_become_ready_piece_by_piece_are_announced(
    queue: Queue, in_small_pieces: None, action: str, state: str
) -> None:
    for _ in range(5):
        put_into(queue, state)
    operation, announced = queue.begin(action, TaskFilter(state)), []
    while queue.do(tracker.step_operation, operation) is None:
        announced.append(queue.announced[queue.project])
    assert [*announced, queue.announced[queue.project]] == [2, 2, 1]
    assert queue.counts() == {"waiting": 5}


@pytest.mark.parametrize(("action", "state"), [("retry", "waiting"), ("requeue", "failed")])
def test_an_action_on_tasks_that_it_is_not_for_affects_none(queue: Queue, action: str, state: str) -> None:
    tasks = one_in_each_state(queue)
    assert queue.finish(queue.begin(action, TaskFilter(state))) == 0
    assert {state: queue.tasks(state) for state in STATES} == {state: {task} for state, task in tasks.items()}


@pytest.mark.parametrize("action", ACTIONS)
def test_tasks_that_are_submitted_meanwhile_are_left_alone(queue: Queue, in_small_pieces: None, action: str) -> None:
    state = {"retry": "failed", "requeue": "assigned", "make_ready": "delayed"}.get(action, "waiting")
    for _ in range(5):
        put_into(queue, state)
    operation = queue.begin(action, TaskFilter(state), -1)
    assert queue.do(tracker.step_operation, operation) is None
    later = [put_into(queue, state, priority=priority) for priority in (20, 19)]
    before = [tuple(queue.task(task)) for task in later]
    assert queue.finish(operation) == 5
    assert [tuple(queue.task(task)) for task in later] == before


def test_a_task_that_is_assigned_anew_while_all_are_requeued_stays_with_its_worker(
    queue: Queue, in_small_pieces: None
) -> None:
    """Both of a worker that comes later in the list, and of one that has been dealt with."""
    first, second = queue.worker, queue.create_worker()
    for worker in (first, first, second, second, second):
        queue.submit()
        queue.assign(worker)
    operation = queue.begin("requeue", TaskFilter("assigned"))
    queue.clock.now += 1
    assert queue.do(tracker.step_operation, operation) is None
    anew = {queue.assign(first), queue.assign(second)}
    assert queue.finish(operation) == 5
    assert queue.tasks("assigned") == anew
    assert all(queue.release(task, worker=worker) for task, worker in zip(sorted(anew), (first, second), strict=True))


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.integers(-4, 4),
    st.sampled_from([None, 0, 1]),
    st.integers(1, 4),
)
def test_setting_priorities_within_the_list_that_they_order_ends_and_counts_each_task_once(
    priorities: list[int], target: int, of: int | None, step: int
) -> None:
    """Tasks that get a lower priority come up again further down in the list."""
    queue = Queue()
    tasks = [queue.submit(priority=priority) for priority in priorities]
    chosen = [of is None or priority == of for priority in priorities]
    operation, affected, steps = queue.begin("set_priority", TaskFilter(priority=of), target), None, 0
    with mock.patch.object(tracker, "STEP_TASKS", step), mock.patch.object(tracker.Tx, "STEP_SECONDS", -1):
        while affected is None:
            affected, steps = queue.do(tracker.step_operation, operation), steps + 1
            assert steps <= 3 * len(tasks) + 3, "it goes round in a circle"
    assert affected == sum(
        priority != target for priority, is_chosen in zip(priorities, chosen, strict=True) if is_chosen
    )
    assert [queue.task(task)["priority"] for task in tasks] == [
        target if is_chosen else priority for priority, is_chosen in zip(priorities, chosen, strict=True)
    ]


def test_operations_on_the_same_tasks_do_not_disturb_each_other(queue: Queue, in_small_pieces: None) -> None:
    for _ in range(9):
        queue.submit()
    lower, delete = queue.begin("set_priority", TaskFilter(), -1), queue.begin("delete", TaskFilter(priority=0))
    outcomes = {lower: None, delete: None}
    while None in outcomes.values():
        for operation in [operation for operation, affected in outcomes.items() if affected is None]:
            outcomes[operation] = queue.do(tracker.step_operation, operation)
    assert queue.counts() == ({"waiting": left} if (left := 9 - outcomes[delete]) else {})
    assert {row["priority"] for row in queue.rows("SELECT priority FROM task")} <= {-1}
    assert outcomes[lower] >= left


@pytest.mark.parametrize("state", STATES)
def test_how_many_tasks_are_to_be_expected_is_known_of_a_whole_list(queue: Queue, state: str) -> None:
    tasks = [put_into(queue, state) for _ in range(3)]
    begun = [queue.begin("delete", wanted) for wanted in (TaskFilter(state), TaskFilter(state, "recipe"))]
    shown = [queue.do(tracker.get_operation, queue.session, operation) for operation in begun]
    assert [row["expected"] for row in shown] == [len(tasks), None]


LONG = {  # what changes tasks in pieces, and how many of three it leaves as they were after one
    "hard_reset": (lambda queue: queue.do(tracker.begin_reset, queue.session, queue.project, "hard_reset"), "TRUE"),
    "set_priority": (lambda queue: queue.begin("set_priority", TaskFilter(), 7), "priority <> 7"),
    "expire": (tracker.expire_tasks, "assignee IS NOT NULL"),
    "wake": (tracker.wake_tasks, "status = 3"),
}


@pytest.mark.parametrize("kind", LONG)
def test_of_long_tasks_few_are_changed_in_one_piece(queue: Queue, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each is written anew as a whole, and a worker's call waits for the piece."""
    long = new_task(queue.project, recipe="x" * searching.MOST_FOUND, max_assign_time=5)
    tasks = [long._replace(due=-5.0 if kind == "wake" else None)] * 3
    queue.do(tracker.insert_tasks, tasks, queue.project, False)
    if kind == "expire":
        for _ in tasks:
            queue.assign()
    queue.clock.now += 5
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)  # the time is always up after one piece
    begin, left = LONG[kind]
    more = queue.do(begin) if kind in ("expire", "wake") else queue.do(tracker.step_operation, begin(queue)) is None
    assert more and queue.do(lambda tx: tx.one(f"SELECT COUNT(*) FROM task WHERE {left}")[0]) == 2


def test_a_hard_reset_is_expected_to_take_all_tasks(queue: Queue) -> None:
    one_in_each_state(queue)
    operation = queue.do(tracker.begin_reset, queue.session, queue.project, "hard_reset")
    assert queue.do(tracker.get_operation, queue.session, operation)["expected"] == 5
    assert queue.finish(operation) == 5


def test_an_operation_says_who_began_it_what_it_wants_and_how_far_it_is(queue: Queue, in_small_pieces: None) -> None:
    for _ in range(3):
        queue.submit()
    operation = queue.begin("set_priority", TaskFilter(text="%'"), 7)
    shown = queue.do(tracker.get_operation, queue.session, operation)
    assert (shown["username"], shown["kind"], shown["priority"]) == ("admin", "set_priority", 7)
    assert shown["wanted"] == '{"text":"%\'"}'
    assert queue.finish(operation) == 0
    operation = queue.begin("delete", TaskFilter())
    queue.do(tracker.step_operation, operation)
    shown = queue.do(tracker.get_operation, queue.session, operation)
    assert (shown["affected"], shown["finished"]) == (2, None)


# ── Workers, meanwhile ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("action", ["requeue", "delete"])
@pytest.mark.parametrize("result", [OK, FAIL, SKIP])
def test_a_worker_that_releases_a_task_too_late_changes_nothing(queue: Queue, action: str, result: int) -> None:
    task = queue.submit(max_retries=5)
    queue.assign()
    assert queue.act(action, [task]) == 1
    counts = queue.counts()
    assert not queue.release(task, result)
    assert queue.counts() == counts
    assert queue.values("SELECT outcome FROM assignment") == ([("requeued",)] if action == "requeue" else [])


def test_a_release_that_comes_too_late_does_not_end_another_workers_assignment(queue: Queue) -> None:
    task, other = queue.submit(), queue.create_worker()
    queue.assign()
    queue.act("requeue", [task])
    queue.assign(other)
    assert not queue.release(task)
    assert queue.counts() == {"assigned": 1}
    assert queue.release(task, worker=other)


def test_the_release_of_a_task_whose_priority_was_set_closes_it(queue: Queue) -> None:
    task = queue.submit()
    queue.assign()
    assert queue.act("set_priority", [task], 3) == 1
    assert queue.release(task)


def fill(tx: Tx, state: str, count: int) -> tuple[bytes, int, WorkerCredentials]:
    """A project with so many tasks in a state, its manager, and a worker."""
    session = tracker.register_manager(tx, "admin", "unused")[1]
    project = call(tx, tracker.create_project, session, shapes.ProjectBody(name="p", public=True))["id"]
    worker = create_worker(tx)
    for number in range(count):
        tracker.insert_task(tx, new_task(project, str(number)), False)
        if state != "waiting":
            (task,) = call(tx, tracker.assign_tasks, worker, [project]).tasks
        if state == "failed":
            tracker.release_task(tx, worker, shapes.ReleaseBody(task["id"], FAIL))
        if state == "delayed":
            tracker.release_task(tx, worker, shapes.ReleaseBody(task["id"], SKIP, delay=1000))
    return session, project, worker


@pytest.mark.parametrize("wholesale", [False, True])
@pytest.mark.parametrize(("action", "state"), [("retry", "failed"), ("requeue", "assigned"), ("make_ready", "delayed")])
def test_workers_that_wait_for_a_task_are_woken(tmp_path: Path, action: str, state: str, wholesale: bool) -> None:
    """Three of them, for three tasks."""

    async def main() -> None:
        async with running(tmp_path / "x.db", tracker.Clock()) as one:
            session, project, _ = await one.db.write(fill, state, 3)
            crowd = [await one.db.write(create_worker) for _ in range(3)]

            def wait(worker: WorkerCredentials) -> asyncio.Task:
                never = asyncio.get_running_loop().create_future()
                attempt = lambda: one.db.write(call, tracker.assign_tasks, worker, [project])  # noqa: E731
                return asyncio.create_task(one.waiters.assign([project], attempt, 30, never))

            waiting = [wait(worker) for worker in crowd]
            async with asyncio.timeout(30):
                while len(one.waiters) < 3:
                    await asyncio.sleep(0.01)
            if wholesale:
                operation = await one.db.write(
                    call, tracker.begin_action, session, project, TaskAction(action), TaskFilter(state)
                )
                assert await one.begin_operation(operation) == 3
            else:
                assert (
                    await one.db.write(call, tracker.act_on_tasks, session, project, TaskAction(action), [1, 2, 3]) == 3
                )
            answers = await asyncio.wait_for(asyncio.gather(*waiting), 20)
            assert sorted(task["id"] for answer in answers for task in answer.tasks) == [1, 2, 3]

    asyncio.run(main())


# ── A crash ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_that_a_crash_has_interrupted_is_finished_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Once and for all: the next start has nothing left to do."""
    state = {"retry": "failed", "requeue": "assigned", "make_ready": "delayed"}.get(action, "waiting")
    prepared = Prepared(tmp_path / "x.db")
    session, project, _ = prepared.run(fill, state, 10)
    prepared.clock.pass_time(1)
    operation = prepared.run(tracker.begin_action, session, project, TaskAction(action, 5), TaskFilter(state))
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "STEP_TASKS", 2)
        patch.setattr(tracker.Tx, "STEP_SECONDS", -1)
        for _ in range(3):
            assert prepared.run(tracker.step_operation, operation) is None
    prepared.run(lambda tx: tracker.insert_task(tx, new_task(project, "later"), False))

    async def main() -> None:
        async with running(tmp_path / "x.db", StillClock()) as again:
            assert (await finished(again, session, operation))["affected"] == 10

    for _ in range(2):
        asyncio.run(main())
    counts = prepared.run(lambda tx: tx.one("SELECT waiting_task_count, assigned_task_count FROM project"))
    assert tuple(counts) == (1 if action == "delete" else 11, 0)
    assert len(prepared.run(lambda tx: tx.all("SELECT * FROM assignment WHERE outcome = 'requeued'"))) == (
        10 if action == "requeue" else 0
    )
    if action == "set_priority":
        priorities = prepared.run(lambda tx: tx.all("SELECT priority FROM task ORDER BY id"))
        assert [row["priority"] for row in priorities] == [*10 * [5], 0]
