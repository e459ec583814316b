"""Jobs, plain tasks and workflows under anything that may happen to them, and what must hold all the time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from place import Jobs

import shapes
import tracker
from tracker import FAIL, JOB_MOVES, OK, SKIP, TaskFilter

ENDED = {"succeeded", "failed", "timed_out", "cancelled"}
OUTPUTS = [{}, {"state": "failure"}, {"killed": True}, {"state": "warning"}, {"output": ["x"]}, {"lastline": "[1, 2]"}]
LEASE = 10 + tracker.JOB_GRACE


class Crowd(Jobs):
    """A queue to which things happen at random. `states` is what the model says of each job that is no run's."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        super().__init__()
        self.workers = [self.worker, self.create_worker(), self.create_worker()]
        rests = shapes.ProjectBody(retry_delay=self.random.choice([0, 3]))
        self.do(tracker.update_project, self.session, self.project, rests)
        self.templates = [
            self.create_template(f"template {number}", max_retries=number, timeout=10, priority=number % 2)
            for number in range(3)
        ]
        self.templates.append(self.create_template("needs an argument", arguments=[{}], timeout=10))
        first, second, third, needy = self.templates
        edges = [(first, "success", second), (first, "success", needy), (first, "failure", third)]
        self.workflow = self.create_workflow(first, *edges, (third, "success", first), (second, "timeout", third))
        self.operations: list[int] = []
        self.states: dict[str, str] = {}
        self.ended: dict[int, tuple] = {}

    def do(self, function: Callable, *args: Any) -> Any:
        """One transaction. What became ready in it was announced: waiting workers are woken by that alone."""
        before = self.ready()
        outcome = super().do(function, *args)
        appeared = Counter(project for _, project in self.ready() - before)
        assert all(self.announced[project] >= count for project, count in appeared.items()), (function, appeared)
        return outcome

    def ready(self) -> set[tuple]:
        return set(self.values("SELECT id, project FROM task WHERE status = 1 AND assignee IS NULL"))

    # ── What may happen ──

    def trigger_any(self) -> None:
        template = self.random.choice(self.templates[:3])
        self.states[self.trigger(template, caller=self.random.choice([self.session, *self.workers]))] = "waiting"

    def start_a_run(self) -> None:
        self.start(self.workflow)

    def submit_plain(self) -> None:
        self.submit(max_retries=self.random.choice([0, 2]), max_assign_time=20, priority=self.random.choice([0, 1]))

    def assign_some(self) -> None:
        jobs_only, count = self.random.random() < 0.3, self.random.choice([1, 1, 3])
        answer = self.do(tracker.assign_tasks, self.random.choice(self.workers), [self.project], count, jobs_only)
        for task in answer.tasks:
            assert "job" in task or not jobs_only
            if "job" in task:
                self.move("assign", task["job"]["id"])

    def release_any(self) -> None:
        rows = self.rows("SELECT t.*, j.token FROM task t LEFT JOIN job j ON j.id = t.job")
        if not rows:
            return
        row = self.random.choice(rows)
        result, output = self.random.choice([OK, OK, FAIL, SKIP]), self.random.choice(OUTPUTS)
        holders = [worker for worker in self.workers if worker.id == row["assignee"]]
        worker = self.random.choice(self.workers + 4 * holders)
        delay = self.random.choice([0, 0, 20]) if result == SKIP else 0
        updated = self.finish_job(row["id"], result, output, worker, delay=delay)
        assert updated == (row["assignee"] == worker.id)
        if updated and row["token"]:
            event = {OK: "fail" if output.get("state") == "failure" else "close", SKIP: "skip"}.get(result)
            self.move(event or self.failed(row, "time_out" if output.get("killed") else "fail"), row["token"])

    def failed(self, task: Any, event: str) -> str:
        """What a failed attempt means for the job."""
        return "retry" if task["retries"] + 1 < task["max_retries"] else event

    def let_time_pass(self) -> None:
        self.clock.now += self.random.choice([1, 5, LEASE + 1])
        due = self.rows(
            "SELECT t.*, j.token FROM task t LEFT JOIN job j ON j.id = t.job WHERE deadline_uptime <= ?", self.clock.now
        )
        self.pass_lease(0)
        self.do(tracker.wake_tasks)
        for row in due:
            if row["token"]:
                self.move(self.failed(row, "time_out"), row["token"])

    def cancel_any(self) -> None:
        token, state = self.random.choice(self.values("SELECT token, state FROM job") or [(None, None)])
        if state in ENDED:
            assert self.refusal(tracker.cancel_job, self.session, token).startswith("conflict: ")
        elif token:
            self.cancel(token, self.random.choice([self.session, *self.workers]))
            self.move("cancel", token)

    def retry_any(self) -> None:
        row = self.random.choice(self.rows("SELECT token, state, workflow FROM job") or [None])
        if row and row["state"] not in ENDED:
            assert self.refusal(tracker.retry_job, self.session, row["token"]).startswith("conflict: ")
        elif row:
            new = self.retry(row["token"])
            if row["workflow"] is None:
                self.states[new] = "waiting"

    def act_on_some(self) -> None:
        action = self.random.choice(["requeue", "requeue", "delete", "set_priority", "retry", "make_ready"])
        tasks = self.values("SELECT id FROM task")
        chosen = [task for (task,) in self.random.sample(tasks, min(len(tasks), 3))]
        marks = ", ".join(map(str, chosen)) or "NULL"
        jobs = self.rows(f"SELECT j.token, t.assignee FROM task t JOIN job j ON j.id = t.job WHERE t.id IN ({marks})")
        self.act(action, chosen, 1)
        for row in jobs:
            if action == "delete" or (action == "requeue" and row["assignee"] is not None):
                self.move({"delete": "cancel"}.get(action, action), row["token"])

    def begin_something_long(self) -> None:
        begin = [
            lambda: self.do(tracker.begin_reset, self.session, self.project, "hard_reset"),
            lambda: self.do(tracker.begin_reset, self.session, self.project, "reclaim_assigned"),
            lambda: self.begin("delete", TaskFilter(self.random.choice(["waiting", "assigned"]))),
            lambda: self.begin("retry", TaskFilter("failed")),
        ]
        self.operations.append(self.random.choice(begin)())

    def go_on_with_something_long(self) -> None:
        """What it did to the jobs is read from them: which tasks it takes in one step is its own affair."""
        if not self.operations:
            return
        operation = self.random.choice(self.operations)
        if self.do(tracker.step_operation, operation) is not None:
            self.operations.remove(operation)
        for token, state in self.values("SELECT token, state FROM job"):
            if self.states.get(token, state) != state:
                event = "requeue" if state == "waiting" else "cancel"
                self.move(event, token)

    def log_about_any(self) -> None:
        rows = self.rows("SELECT id, assignee FROM task")
        if rows:
            row = self.random.choice(rows)
            answer = self.log(row["id"], "a", "b", first=self.random.choice([None, 0, 1]))
            assert answer["held"] == (row["assignee"] == self.worker.id)

    def move(self, event: str, token: str) -> None:
        """The model's own state of the job, if it follows it."""
        if token in self.states:
            assert self.states[token] in JOB_MOVES[event].states
            self.states[token] = JOB_MOVES[event].to

    def step(self) -> None:
        frequent = [self.trigger_any, self.assign_some, self.assign_some, self.release_any, self.release_any]
        others = [self.start_a_run, self.submit_plain, self.let_time_pass, self.cancel_any, self.retry_any]
        rare = [self.act_on_some, self.begin_something_long, self.go_on_with_something_long, self.log_about_any]
        self.random.choice(4 * frequent + 2 * others + rare)()

    # ── What must hold ──

    def check(self) -> None:
        jobs = {row["id"]: row for row in self.rows("SELECT * FROM job")}
        tasks = {row["id"]: row for row in self.rows("SELECT * FROM task")}
        assert {row["token"]: row["state"] for row in jobs.values() if row["token"] in self.states} == self.states
        for task in tasks.values():
            assert (task["status"] == tracker.DELAYED) == (task["not_before"] is not None)
            if task["job"] is not None:
                job = jobs[task["job"]]
                assert (job["task"], task["status"]) == (task["id"], tracker.DELAYED if job["delayed"] else tracker.NEW)
        for job in jobs.values():
            live = job["state"] in tracker.LIVE_STATES
            assert (job["finished"] is None) == live
            if job["workflow"] is None:
                assert (job["task"] in tasks) == live
                held_by = tasks[job["task"]]["assignee"] if live else None
                assert (job["state"] == "assigned") == (held_by is not None)
                assert not live or job["assignee"] == held_by
            else:
                steps = [step for step in jobs.values() if step["workflow_job"] == job["id"]]
                assert any(step["finished"] is None for step in steps) == live
                assert job["task"] is None
        self.check_ended(jobs)
        self.check_counts(tasks)

    def check_ended(self, jobs: dict[int, Any]) -> None:
        lines = dict(self.values("SELECT job, COUNT(*) FROM job_line GROUP BY job"))
        assert lines == {job["id"]: job["line_count"] for job in jobs.values()}
        ended = {id: tuple(job) for id, job in jobs.items() if job["finished"] is not None}
        assert all(ended[id] == row for id, row in self.ended.items())
        self.ended = ended

    def check_counts(self, tasks: dict[int, Any]) -> None:
        (project,) = self.rows("SELECT * FROM project")
        held = Counter(task["assignee"] for task in tasks.values() if task["assignee"] is not None)
        failed, delayed = (
            sum(task["status"] == status for task in tasks.values()) for status in (tracker.FAILED, tracker.DELAYED)
        )
        assert project["delayed_task_count"] == delayed
        assert project["assigned_task_count"] == held.total()
        assert project["failed_task_count"] == failed
        assert project["waiting_task_count"] == len(tasks) - held.total() - failed - delayed
        rows = self.values("SELECT worker, held_task_count FROM tally WHERE held_task_count > 0")
        assert dict(rows) == held


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_jobs_and_their_tasks_agree_and_what_has_ended_stays(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "STEP_TASKS", 2)  # every transaction of a long operation does one small piece
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    monkeypatch.setattr(tracker, "MOST_STEPS", 6)
    crowd = Crowd(seed)
    for _ in range(400):
        crowd.step()
        crowd.check()
    states = Counter(state for (state,) in crowd.values("SELECT state FROM job"))
    assert len(states.keys() & ENDED) >= 3 and len(crowd.ended) > 20, "too little happened to say anything"
