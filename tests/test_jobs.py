"""Jobs and templates: what may happen to a job, what it was given, what its log keeps, and who may do what."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from place import Jobs, StillClock, call, running

import joblog
import shapes
import tracker
from tracker import FAIL, JOB_GRACE, JOB_MOVES, OK, SKIP, TaskFilter, WorkerCredentials

UNKNOWN = "0123456789abcdef01234567"


@pytest.fixture
def queue() -> Jobs:
    return Jobs()


def jobs_with(**settings: Any) -> Jobs:
    return Jobs(**settings)


# ── Moves ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

EVENTS: dict[str, Callable[[Jobs, int], None]] = {  # what brings a job, whose task this is, from one state to the next
    "assign": lambda queue, task: queue.assign() == task,
    "skip": lambda queue, task: queue.finish_job(task, SKIP),
    "requeue": lambda queue, task: queue.act("requeue", [task]),
    "take_back": lambda queue, task: queue.take_back(task),
    "close": lambda queue, task: queue.finish_job(task, OK),
    "fail": lambda queue, task: queue.finish_job(task, FAIL),
    "retry": lambda queue, task: queue.finish_job(task, FAIL),
    "time_out": lambda queue, task: queue.pass_lease(),
    "cancel": lambda queue, task: queue.act("delete", [task]),
}


def job_in_state(queue: Jobs, state: str, **fields: Any) -> tuple[str, int]:
    """A job that has come into this state by itself, and its task."""
    job = queue.trigger(queue.create_template(**fields))
    task = queue.job(job)["task"]
    if state != "waiting":
        queue.assign()
    ways = {"succeeded": "close", "failed": "fail", "timed_out": "time_out", "cancelled": "cancel"}
    if state in ways:
        EVENTS[ways[state]](queue, task)
    assert queue.state(job) == state
    return job, task


def test_every_event_of_the_table_is_tried_here() -> None:
    assert EVENTS.keys() == JOB_MOVES.keys()


@pytest.mark.parametrize(
    ("event", "state"), [(event, state) for event, move in JOB_MOVES.items() for state in move.states]
)
def test_a_job_moves_as_the_table_says(queue: Jobs, event: str, state: str) -> None:
    job, task = job_in_state(queue, state, max_retries=2 if event == "retry" else 0)
    EVENTS[event](queue, task)
    assert queue.state(job) == JOB_MOVES[event].to
    assert bool(queue.task(task)) == (JOB_MOVES[event].to in tracker.LIVE_STATES)
    assert (queue.job(job)["finished"] is None) == (JOB_MOVES[event].to in tracker.LIVE_STATES)


STATES = ("waiting", "assigned", "succeeded", "failed", "timed_out", "cancelled")


@pytest.mark.parametrize(
    ("event", "state"),
    [(event, state) for event, state in itertools.product(JOB_MOVES, STATES) if state not in JOB_MOVES[event].states],
)
def test_no_job_moves_otherwise(queue: Jobs, event: str, state: str) -> None:
    job, _ = job_in_state(queue, state)
    (row,) = queue.rows("SELECT * FROM job WHERE token = ?", job)
    assert queue.refusal(tracker.move_job, row["id"], event, "x").startswith("conflict: job: ")
    assert [tuple(row)] == queue.values("SELECT * FROM job WHERE token = ?", job)


@pytest.mark.parametrize("state", ["succeeded", "failed", "timed_out", "cancelled"])
def test_an_ended_job_never_changes_again_whatever_is_tried(queue: Jobs, state: str) -> None:
    job, task = job_in_state(queue, state)
    before = queue.values("SELECT * FROM job WHERE token = ?", job), queue.said(job)
    for result in (OK, FAIL, SKIP):
        assert not queue.finish_job(task, result, {"state": "failure"})
    assert queue.log(task, "late") == {"held": False, "stored": 0}
    assert queue.act("requeue", [task]) == queue.act("delete", [task]) == 0
    assert queue.refusal(tracker.cancel_job, queue.session, job).startswith(
        "conflict: job: it has ended already, it is "
    )
    queue.pass_lease()
    assert (queue.values("SELECT * FROM job WHERE token = ?", job), queue.said(job)) == before


@pytest.mark.parametrize("state", ["waiting", "assigned"])
def test_a_live_job_cannot_be_retried(queue: Jobs, state: str) -> None:
    job, _ = job_in_state(queue, state)
    assert queue.refusal(tracker.retry_job, queue.session, job) == f"conflict: job: it has not ended yet, it is {state}"


@pytest.mark.parametrize("state", ["succeeded", "failed", "timed_out", "cancelled"])
def test_an_ended_job_is_retried_as_a_new_job_with_all_that_it_was_given(queue: Jobs, state: str) -> None:
    job, _ = job_in_state(queue, state, script="echo", timeout=7, priority=3, variables=[{"name": "a", "value": 1}])
    queue.update_template(queue.job(job)["template"], script="other", timeout=8, priority=4, variables=[])
    new = queue.retry(job)
    assert queue.job(new)["retry_of"] == job
    kept = ("name", "template", "project", "timeout", "variables", "arguments")
    assert [queue.job(new)[name] for name in kept] == [queue.job(job)[name] for name in kept]
    assert queue.assigned()["job"]["script"]["source"] == "echo"
    assert (queue.state(job), queue.state(new)) == (state, "assigned")


# ── Assigned, released ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_assigned_job_tells_its_worker_what_it_needs(queue: Jobs) -> None:
    job = queue.trigger(
        queue.create_template(
            "build",
            recipe="build",
            script="#!/bin/sh\n",
            runas="sh %script%",
            variables=[{"name": "branch", "value": {"deep": ["main"]}}],
            arguments=[{"type": "fixed", "value": "fast"}],
            env={"LANG": "C"},
            timeout=2.5,
        )
    )
    task = queue.assigned()
    assert task["job"] == {
        "id": job,
        "template": "build",
        "script": {"source": "#!/bin/sh\n", "md5": hashlib.md5(b"#!/bin/sh\n").hexdigest()},
        "runas": "sh %script%",
        "arguments": ["fast"],
        "variables": {"branch": {"deep": ["main"]}},
        "env": {"LANG": "C"},
        "timeout": 2.5,
    }
    assert (task["recipe"], task["max_assign_time"]) == ("build", 3 + JOB_GRACE)


def test_a_plain_task_has_no_job_in_its_answer_and_none_in_its_row(queue: Jobs) -> None:
    task = queue.submit()
    assert "job" not in queue.assigned()
    assert queue.task(task)["job"] is None
    assert queue.finish_job(task, OK, {"ignored": True})


def test_a_job_counts_its_attempts_and_remembers_its_first_start(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(max_retries=3))
    assert (queue.job(job)["attempts"], queue.job(job)["started"]) == (0, None)
    queue.run(FAIL)
    started = queue.job(job)["started"]
    queue.clock.now += 5
    queue.run(SKIP)
    shown = queue.job(job)
    assert (shown["attempts"], shown["started"], shown["assignee"]) == (2, started, None)


def test_a_failed_job_waits_again_while_attempts_are_left(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(max_retries=2))
    queue.run(FAIL)
    assert queue.announced == {queue.project: 1}
    assert queue.state(job) == "waiting"
    queue.run(FAIL)
    assert queue.state(job) == "failed"


@pytest.mark.parametrize("max_retries", [0, 1])
def test_a_failed_jobs_task_does_not_stay_in_the_queue(queue: Jobs, max_retries: int) -> None:
    job = queue.trigger(queue.create_template(max_retries=max_retries))
    queue.run(FAIL)
    assert (queue.state(job), queue.counts()) == ("failed", {})


def test_a_job_is_closed_as_other_tasks_are(queue: Jobs) -> None:
    """Counted for its worker, and handed on along the project's chain, as a plain task there."""
    target = queue.create_project("second")
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(chain=target))
    queue.trigger(queue.create_template(recipe="build"))
    queue.run()
    assert (queue.counts(), queue.counts(target)) == ({"closed": 1}, {"waiting": 1})
    assert queue.values("SELECT recipe, job FROM task") == [("build", None)]


def test_the_timeout_of_a_job_without_one_in_its_template_is_the_settings() -> None:
    queue = jobs_with(default_job_timeout=90)
    queue.trigger(queue.create_template())
    assert queue.assigned()["job"]["timeout"] == 90


def test_several_releases_with_one_that_is_refused_leave_every_job_as_it_was(queue: Jobs) -> None:
    template = queue.create_template()
    jobs = [queue.trigger(template) for _ in range(2)]
    tasks = [queue.assign() for _ in jobs]
    bad = shapes.ReleaseBody(tasks[1], OK, output=msgspec.Raw(b"[1,]"))
    refusal = queue.refusal(tracker.release_tasks, queue.worker, [shapes.ReleaseBody(tasks[0], OK), bad])
    assert refusal.startswith("invalid: releases[1].output: ")
    assert [queue.state(job) for job in jobs] == ["assigned", "assigned"]
    good = [shapes.ReleaseBody(task, OK) for task in tasks]
    assert queue.do(tracker.release_tasks, queue.worker, good) == [True, True]
    assert [queue.state(job) for job in jobs] == ["succeeded", "succeeded"]


def test_only_the_worker_that_holds_a_job_can_release_it(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    other = queue.create_worker()
    assert not queue.finish_job(task, FAIL, {"state": "failure"}, worker=other)
    assert (queue.state(job), queue.job(job)["result"]) == ("assigned", None)


def test_jobs_only_passes_over_plain_tasks_and_takes_jobs_by_priority_and_age(queue: Jobs) -> None:
    queue.submit(priority=100)
    low, high = queue.create_template("low"), queue.create_template("high", priority=5)
    jobs = [queue.trigger(low), queue.trigger(high), queue.trigger(low), queue.trigger(high)]
    assign = (tracker.assign_tasks, queue.worker, [queue.project], 10, True)
    assert [task["job"]["id"] for task in queue.do(*assign).tasks] == [jobs[1], jobs[3], jobs[0], jobs[2]]
    assert queue.do(*assign).tasks == []
    assert queue.counts() == {"waiting": 1, "assigned": 4}


@pytest.mark.parametrize("priority, held", [(10**9, 2**15 - 1), (-(10**9), -(2**15))])
def test_a_job_of_any_priority_has_a_task_whose_priority_clients_can_hold(
    queue: Jobs, priority: int, held: int
) -> None:
    """Old templates may have any, and so may jobs of other systems."""
    template = queue.create_template()
    queue.connection.execute("UPDATE template SET priority = ?", (priority,))
    job = queue.trigger(template)
    [task] = queue.do(tracker.assign_tasks, queue.worker, [queue.project], 10).tasks
    assert task["priority"] == held and queue.state(job) == "assigned"


def test_a_new_priority_of_a_jobs_task_counts_for_those_who_do_jobs_only(queue: Jobs) -> None:
    template = queue.create_template()
    jobs = [queue.trigger(template) for _ in range(3)]
    queue.act("set_priority", [queue.job(jobs[1])["task"]], 5)
    tasks = queue.do(tracker.assign_tasks, queue.worker, [queue.project], 10, True).tasks
    assert [task["job"]["id"] for task in tasks] == [jobs[1], jobs[0], jobs[2]]


def test_an_answer_with_many_long_scripts_ends_early(queue: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MOST_RECIPES", 1000)
    template = queue.create_template(script="x" * 600)
    for _ in range(5):
        queue.trigger(template)
    assert len(queue.do(tracker.assign_tasks, queue.worker, [queue.project], 5).tasks) == 2


# ── Cancelled, taken back ─────────────────────────────────────────────────────────────────────────────────────────────


def test_cancelling_an_assigned_job_takes_it_from_its_worker(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    queue.cancel(job)
    assert (queue.state(job), queue.counts()) == ("cancelled", {})
    assert not queue.finish_job(task, OK, {"state": "success"})
    assert queue.log(task, "late") == {"held": False, "stored": 0}
    assert queue.job(job)["result"] is None


def test_the_log_tells_who_cancelled(queue: Jobs) -> None:
    template = queue.create_template()
    by_manager, by_worker = queue.trigger(template), queue.trigger(template)
    queue.cancel(by_manager)
    queue.cancel(by_worker, queue.worker)
    assert queue.said(by_manager)[-1] == "cancelled by manager admin"
    assert queue.said(by_worker)[-1] == f"cancelled by worker worker ({queue.worker.id})"


def test_a_job_that_is_not_released_in_time_has_timed_out(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(timeout=60))
    queue.assign()
    queue.pass_lease(60 + JOB_GRACE - 0.5)
    assert queue.state(job) == "assigned"
    queue.pass_lease(1)
    shown = queue.job(job)
    assert (shown["state"], shown["result"]["killed"], queue.counts()) == ("timed_out", True, {})


def test_a_job_that_is_not_released_in_time_waits_again_while_attempts_are_left(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(max_retries=2))
    queue.assign()
    queue.pass_lease()
    assert (queue.state(job), queue.counts()) == ("waiting", {"waiting": 1})
    queue.assign()
    queue.pass_lease()
    assert queue.state(job) == "timed_out"


def test_a_plain_task_that_expires_beside_a_job_waits_again_whatever_its_attempts(queue: Jobs) -> None:
    plain, job = queue.submit(), queue.trigger(queue.create_template())
    for _ in range(2):
        queue.assign()
    queue.clock.now += 1e6
    queue.do(tracker.expire_tasks)
    assert queue.announced == {queue.project: 1}
    assert (queue.tasks("waiting"), queue.state(job)) == ({plain}, "timed_out")


def test_a_requeued_job_goes_to_the_next_worker(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    assert queue.act("requeue", [task]) == 1
    assert (queue.state(job), queue.job(job)["assignee"]) == ("waiting", None)
    assert not queue.finish_job(task)
    other = queue.create_worker()
    assert queue.assigned(other)["job"]["id"] == job
    assert queue.job(job)["attempts"] == 2


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ("reclaim_assigned", ["waiting", "waiting"]),
        ("hard_reset", ["cancelled", "cancelled"]),
        ("reset_failed", ["assigned", "waiting"]),
    ],
)
def test_a_reset_of_the_project_moves_its_jobs(queue: Jobs, kind: str, states: list[str]) -> None:
    template = queue.create_template()
    jobs = [queue.trigger(template) for _ in range(2)]
    queue.submit()
    queue.assign()
    queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, kind))
    assert [queue.state(job) for job in jobs] == states


def test_an_action_on_a_list_of_tasks_moves_the_jobs_behind_them(queue: Jobs) -> None:
    template = queue.create_template()
    jobs = [queue.trigger(template) for _ in range(120)]  # more than one step takes
    queue.do(tracker.assign_tasks, queue.worker, [queue.project], 60)
    queue.finish(queue.begin("delete", TaskFilter("waiting")))
    queue.finish(queue.begin("requeue", TaskFilter("assigned")))
    assert [queue.state(job) for job in jobs] == ["waiting"] * 60 + ["cancelled"] * 60


# ── Results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workers_output_is_the_jobs_result(queue: Jobs) -> None:
    for output in (None, 0, "text", [1, {"a": None}], {"code": 0, "log": "x"}, 2**70):
        job = queue.trigger(queue.create_template(f"for {output}"))
        queue.run(OK, output)
        assert queue.job(job)["result"] == output


def test_a_job_that_was_released_without_an_output_has_no_result(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template())
    queue.run()
    assert (queue.job(job)["result"], queue.job(job)["output"], queue.job(job)["reported"]) == (None, None, None)


@pytest.mark.parametrize(
    ("output", "reported", "handed_on"),
    [
        ({"state": "success"}, "success", None),
        ({"state": " Success "}, " Success ", None),
        ({"state": " "}, None, None),
        ({"state": "s" * 5000}, "s" * 5000, None),
        ({"state": "s" * 20_000}, "s" * tracker.MOST_STATE, None),
        ({"state": 5}, None, None),
        ({"state": ""}, None, None),
        ({"output": ["a", 1]}, None, ["a", 1]),
        ({"output": {"a": 1}, "lastline": '["b"]'}, None, {"a": 1}),
        ({"lastline": '["b", null]'}, None, ["b", None]),
        ({"lastline": '{"state": "success", "data": ["c"]}'}, "success", ["c"]),
        ({"lastline": '{"data": 7}', "state": "success"}, "success", 7),
        ({"lastline": '{"state": "done"}', "state": "success"}, "success", None),
        ({"lastline": '["b"]', "state": '["b"]'}, None, ["b"]),
        ({"lastline": '["b"]', "state": '["b"]', "output": ["a"]}, None, ["a"]),
        ({"lastline": '{"state": "done"}', "state": '{"state": "done"}'}, "done", None),
        ({"lastline": '"text"', "state": '"text"'}, '"text"', None),
        ({"lastline": "ok", "state": "ok"}, "ok", None),
        ({"lastline": "ok"}, None, None),
        ({"lastline": "7"}, None, None),
        ({"lastline": '"text"'}, None, None),
        ({"lastline": "[" * 100_000}, None, None),
        ({"lastline": None}, None, None),
        ({"lastline": ["no", "text"]}, None, None),
        (["a list"], None, None),
        ("text", None, None),
    ],
)
def test_what_a_result_says_is_read_from_it(queue: Jobs, output: Any, reported: Any, handed_on: Any) -> None:
    job = queue.trigger(queue.create_template())
    queue.run(OK, output)
    shown = queue.job(job)
    assert (shown["state"], shown["reported"], shown["output"]) == ("succeeded", reported, handed_on)


@pytest.mark.parametrize("reported", ["failure", "error", "failed", " Failure\n"])
def test_a_job_whose_result_reports_failure_has_failed_although_it_was_released_as_done(
    queue: Jobs, reported: str
) -> None:
    job = queue.trigger(queue.create_template())
    queue.run(OK, {"state": reported})
    assert (queue.state(job), queue.counts()) == ("failed", {})


def test_a_job_whose_result_reports_failure_is_not_handed_on_along_the_chain(queue: Jobs) -> None:
    following = queue.create_project("following")
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(chain=following))
    template = queue.create_template()
    for report, handed_on in ({"state": "failure"}, 0), ({"state": "success"}, 1):
        queue.trigger(template)
        queue.run(OK, report)
        assert queue.counts(following).get("waiting", 0) == handed_on


def test_a_worker_that_skips_in_a_circle_does_not_fill_the_log(queue: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MOST_ATTEMPTS", 3)
    job = queue.trigger(queue.create_template())
    for _ in range(10):
        queue.run(SKIP)
    assert len(queue.said(job)) == 1 + 2 * 3
    queue.cancel(job)
    assert queue.said(job)[-1].startswith("cancelled by")


@pytest.mark.parametrize("name", [" ", "\t"])
def test_a_variable_without_a_name_is_refused(queue: Jobs, name: str) -> None:
    body = shapes.TemplateBody(project=queue.project, name="x", variables=[shapes.Variable(name, "1")])
    refusal = queue.refusal(tracker.create_template, queue.session, body)
    assert refusal == "invalid: variables: a name must not be blank"


def test_a_project_has_no_more_templates_than_a_list_can_show(queue: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MOST_TEMPLATES", 2)
    for name in "ab":
        queue.create_template(name)
    body = shapes.TemplateBody(project=queue.project, name="c")
    refusal = queue.refusal(tracker.create_template, queue.session, body)
    assert refusal == "conflict: project: it has 2 templates already"
    queue.do(tracker.delete_template, queue.session, 1)
    queue.create_template("c")


def test_a_killed_job_that_was_released_as_failed_has_timed_out(queue: Jobs) -> None:
    killed, failed = queue.trigger(queue.create_template()), queue.trigger(queue.create_template("other"))
    queue.run(FAIL, {"killed": True})
    queue.run(FAIL, {"killed": "yes"})
    assert (queue.state(killed), queue.state(failed)) == ("timed_out", "failed")


def test_the_result_is_that_of_the_last_attempt(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(max_retries=2))
    queue.run(FAIL, {"state": "failure", "output": ["first"]})
    assert queue.job(job)["output"] == ["first"]
    queue.run(OK, {"code": 0})
    shown = queue.job(job)
    assert (shown["state"], shown["result"], shown["reported"], shown["output"]) == (
        "succeeded",
        {"code": 0},
        None,
        None,
    )


@pytest.mark.parametrize("output", [b"'x'", b"[1,]", b"[" * 100_000 + b"]" * 100_000])
def test_an_output_that_no_json_has_is_refused_by_its_name_and_changes_nothing(queue: Jobs, output: bytes) -> None:
    job, task = job_in_state(queue, "assigned")
    body = shapes.ReleaseBody(task, OK, output=msgspec.Raw(output))
    assert queue.refusal(tracker.release_task, queue.worker, body).startswith("invalid: output: ")
    assert queue.state(job) == "assigned"


def test_an_output_may_have_a_nul_character_as_scripts_print_anything(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template())
    queue.run(OK, {"log": "a\0b", "lastline": "\0"})
    assert queue.job(job)["result"]["log"] == "a\0b"


# ── The log ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_worker_logs_about_a_job_is_kept_in_order_whatever_its_level(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    assert queue.log(task, "one", "two") == {"held": True, "stored": 2}
    assert queue.log(task, "three", level="trace") == {"held": True, "stored": 1}
    assert queue.lines(job) == ["one", "two", "three"]


def test_lines_that_are_sent_again_are_stored_once(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    assert queue.log(task, "a", "b", first=0)["stored"] == 2
    assert queue.log(task, "a", "b", first=0)["stored"] == 0
    assert queue.log(task, "b", "c", "d", first=1)["stored"] == 2
    assert queue.log(task, "e", first=4)["stored"] == 1
    assert queue.lines(job) == ["a", "b", "c", "d", "e"]


def test_the_numbers_of_lines_begin_anew_with_every_assignment(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    queue.log(task, "first attempt", first=0)
    queue.finish_job(task, SKIP)
    queue.assign()
    assert queue.log(task, "second attempt", first=0)["stored"] == 1
    assert queue.lines(job) == ["first attempt", "second attempt"]


def test_no_lines_at_all_ask_whether_the_task_is_still_held(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    assert queue.log(task) == {"held": True, "stored": 0}
    queue.cancel(job)
    assert queue.log(task) == {"held": False, "stored": 0}


def test_a_line_of_another_worker_is_not_stored(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    body = shapes.TaskLogBody(task, [shapes.TaskEntry("mine?", 1)])
    assert queue.do(tracker.log_to_task, queue.create_worker(), body) == {"held": False, "stored": 0}
    assert queue.lines(job) == []


def test_a_task_that_never_was_has_no_log(queue: Jobs) -> None:
    body = shapes.TaskLogBody(999)
    assert queue.refusal(tracker.log_to_task, queue.worker, body) == "not_found: task_id: no task 999"


def test_lines_about_a_plain_task_go_into_the_workers_log(queue: Jobs) -> None:
    queue.submit()
    task = queue.assign()
    assert queue.log(task, "plain") == {"held": True, "stored": 1}
    assert queue.values("SELECT message, task, project FROM log_entry") == [("plain", task, queue.project)]
    assert queue.values("SELECT * FROM job_line") == []


def test_a_line_of_the_workers_log_that_names_a_jobs_task_is_in_both(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    body = shapes.LogBody("fetch", 1, "hello", task_id=task)
    queue.do(tracker.add_log_entry, queue.worker, "debug", body)
    queue.do(tracker.add_log_entry, queue.worker, "info", body)
    assert queue.lines(job) == ["hello", "hello"]
    assert queue.values("SELECT message, task FROM log_entry") == [("hello", task)]


@pytest.mark.parametrize(("level", "warned"), [("trace", False), ("info", False), ("warn", True), ("error", True)])
def test_a_job_is_marked_when_a_line_warns(queue: Jobs, level: str, warned: bool) -> None:
    job, task = job_in_state(queue, "assigned")
    queue.log(task, "line", level=level)
    queue.log(task, "another")
    queue.finish_job(task)
    assert (queue.state(job), queue.job(job)["warned"]) == ("succeeded", warned)


@pytest.mark.parametrize("output", [{"state": "WARN"}, {"lastline": '{"state": "Warning"}'}])
def test_a_job_is_marked_when_its_result_reports_a_warning(queue: Jobs, output: Any) -> None:
    job = queue.trigger(queue.create_template())
    queue.run(OK, output)
    assert (queue.state(job), queue.job(job)["warned"]) == ("succeeded", True)


def test_a_full_log_says_so_once_and_takes_no_more() -> None:
    queue = jobs_with(max_job_log=1)
    job, task = job_in_state(queue, "assigned")
    queue.log(task, "a" * 500, "b" * 600, "dropped")
    queue.log(task, "dropped too")
    assert [line[0] for line in queue.lines(job)] == ["a", "b"]
    queue.finish_job(task)
    full = [said for said in queue.said(job) if "the log is full (1 KiB)" in said]
    assert len(full) == 1 and queue.said(job)[-1] == "released as done"
    assert queue.job(job)["warned"]


def test_empty_lines_fill_a_log_as_well() -> None:
    queue = jobs_with(max_job_log=1)
    job, task = job_in_state(queue, "assigned")
    for _ in range(3):
        queue.log(task, *[""] * 1000)
    assert len(queue.lines(job)) <= 1024


def test_the_tracker_tells_the_whole_story_of_a_job(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(max_retries=2, timeout=60))
    who = f"worker ({queue.worker.id})"
    task = queue.job(job)["task"]
    for result in (SKIP, FAIL):
        queue.run(result)
    queue.assign()
    queue.act("requeue", [task])
    queue.assign()
    queue.pass_lease()
    assert queue.said(job) == [
        "created by manager admin",
        f"assigned to {who}",
        "released as skipped; waiting again",
        f"assigned to {who}",
        "released as failed: attempt 1 of 2; waiting again",
        f"assigned to {who}",
        "taken back by a manager; waiting again",
        f"assigned to {who}",
        "timed out: not released within 60 s and 15 s of grace",
    ]


def test_a_log_is_read_page_by_page(queue: Jobs) -> None:
    job, task = job_in_state(queue, "assigned")
    queue.log(task, *map(str, range(7)))
    read: list[dict[str, Any]] = []
    while page := queue.do(tracker.get_job_log, queue.session, job, shapes.LinesQuery(len(read), 4))["entries"]:
        read += page
    assert [line["id"] for line in read] == list(range(1, 10))
    assert [line["message"] for line in read[2:]] == list(map(str, range(7)))
    assert read[-1] == {"id": 9, "time": 7, "level": "info", "scope": "", "message": "6", "worker": queue.worker.id}


def test_a_page_of_very_long_lines_ends_early(queue: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job, task = job_in_state(queue, "assigned")
    queue.log(task, *["x" * 1000] * 10)
    monkeypatch.setattr(joblog, "MOST_LOG_TEXT", 2500)
    assert len(queue.do(tracker.get_job_log, queue.session, job, shapes.LinesQuery(2))["entries"]) == 3


# ── Variables, arguments, recipe ──────────────────────────────────────────────────────────────────────────────────────


def refused_trigger(queue: Jobs, template: int, variables: dict | None = None, arguments: Iterable[Any] = ()) -> str:
    body = shapes.TriggerBody(variables or {}, list(arguments))
    before = queue.values("SELECT COUNT(*) FROM job")
    refusal = queue.refusal(tracker.trigger_template, queue.session, template, body)
    assert queue.values("SELECT COUNT(*) FROM job") == before
    return refusal


def test_a_variable_has_the_templates_value_unless_the_job_brings_one(queue: Jobs) -> None:
    template = queue.create_template(variables=[{"name": "a", "value": 1}, {"name": "b", "value": 2}, {"name": "c"}])
    assert queue.job(queue.trigger(template, {"b": [3]}))["variables"] == {"a": 1, "b": [3]}


@pytest.mark.parametrize("given", [{}, {"a": None}, {"a": ""}])
def test_a_required_variable_without_a_value_is_refused_by_its_name(queue: Jobs, given: dict[str, Any]) -> None:
    template = queue.create_template(variables=[{"name": "a", "required": True}])
    assert refused_trigger(queue, template, given) == "invalid: a: is required"
    assert queue.job(queue.trigger(template, {"a": 0}))["variables"] == {"a": 0}


def test_the_templates_own_value_is_enough_for_a_required_variable(queue: Jobs) -> None:
    template = queue.create_template(variables=[{"name": "a", "required": True, "value": "x"}])
    assert queue.job(queue.trigger(template))["variables"] == {"a": "x"}


def test_a_value_that_a_variable_does_not_allow_is_refused_with_those_that_it_does(queue: Jobs) -> None:
    template = queue.create_template(variables=[{"name": "a", "allowed": ["x", 2]}])
    assert refused_trigger(queue, template, {"a": "z"}) == "invalid: a: must be one of x, 2"
    assert queue.job(queue.trigger(template, {"a": 2}))["variables"] == {"a": 2}
    assert queue.job(queue.trigger(template))["variables"] == {}


def test_a_variable_that_is_not_declared_is_taken_only_if_the_template_says_so(queue: Jobs) -> None:
    open_one = queue.create_template("open")
    closed = queue.create_template("closed", undeclared=False)
    assert queue.job(queue.trigger(open_one, {"other": 1}))["variables"] == {"other": 1}
    assert refused_trigger(queue, closed, {"other": 1}) == "invalid: other: the template has no such variable"


@pytest.mark.parametrize("variables", [{"a": "x\0"}, {"a\0": "x"}, {"a": [{"b": "\0"}]}])
def test_a_nul_character_is_refused_in_a_variable(queue: Jobs, variables: dict[str, Any]) -> None:
    assert "must not contain a NUL" in refused_trigger(queue, queue.create_template(), variables)


def test_a_nul_character_is_refused_in_an_argument(queue: Jobs) -> None:
    template = queue.create_template(arguments=[{}])
    assert refused_trigger(queue, template, arguments=["\0"]).startswith(
        "invalid: arguments[0]: must not contain a NUL"
    )


@pytest.mark.parametrize("depth", [300, 900, 970, 980, 990])
def test_what_is_nested_too_deeply_is_refused_wherever_pythons_stack_ends(queue: Jobs, depth: int) -> None:
    template, deep = queue.create_template(arguments=[{}]), 1
    for _ in range(depth):
        deep = [deep]
    assert refused_trigger(queue, template, {"a": deep}, [1]) == "invalid: variables: nested too deeply"
    assert refused_trigger(queue, template, {}, [deep]) == "invalid: arguments: nested too deeply"


def test_arguments_are_placed_in_the_templates_order_around_the_fixed_ones(queue: Jobs) -> None:
    template = queue.create_template(
        arguments=[
            {"order": 3, "label": "last"},
            {"order": 1, "type": "fixed", "value": "--fixed"},
            {"order": 2, "type": "select", "options": ["a"]},
        ]
    )
    assert queue.job(queue.trigger(template, arguments=["one", "two"]))["arguments"] == ["--fixed", "one", "two"]


def test_an_argument_is_given_as_text_and_null_as_an_empty_one(queue: Jobs) -> None:
    template = queue.create_template(arguments=[{}] * 5)
    given = [None, 1.5, True, {"a": [1]}, "text"]
    assert queue.job(queue.trigger(template, arguments=given))["arguments"] == ["", "1.5", "true", '{"a":[1]}', "text"]


def test_too_few_arguments_are_refused_with_their_number(queue: Jobs) -> None:
    template = queue.create_template(arguments=[{}, {"type": "fixed", "value": 1}, {}])
    refusal = "invalid: arguments: an array of length 2 is required; optional ones must be null"
    assert refused_trigger(queue, template, arguments=["one"]) == refusal
    assert queue.job(queue.trigger(template, arguments=["one", None]))["arguments"] == ["one", "1", ""]


def test_arguments_that_are_too_many_are_ignored(queue: Jobs) -> None:
    template = queue.create_template(arguments=[{}])
    assert queue.job(queue.trigger(template, arguments=["one", "two"]))["arguments"] == ["one"]


def test_a_recipe_is_filled_in_with_the_variables(queue: Jobs) -> None:
    queue.trigger(queue.create_template(recipe="{a} {b} {c} {{a}} {} {a"), {"a": "x{b}", "b": [1]})
    assert queue.assigned()["recipe"] == "x{b} [1] {c} {x{b}} {} {a"


def test_a_template_without_a_recipe_makes_one_of_all_that_the_job_was_given(queue: Jobs) -> None:
    queue.trigger(queue.create_template(arguments=[{}]), {"a": 1}, ["x"])
    recipe = {"template": "build", "variables": {"a": 1}, "arguments": ["x"]}
    assert msgspec.json.decode(queue.assigned()["recipe"]) == recipe


def test_a_long_value_in_very_many_places_of_a_recipe_is_refused(queue: Jobs) -> None:
    template = queue.create_template(recipe="{a}" * 300_000)
    assert refused_trigger(queue, template, {"a": "x" * 1_000_000}).startswith("invalid: recipe: too long")


def test_a_job_runs_as_the_template_was_when_it_was_triggered(queue: Jobs) -> None:
    template = queue.create_template("old", script="old", recipe="old", env={"A": "old"}, timeout=1)
    queue.trigger(template)
    queue.update_template(template, name="new", script="new", recipe="new", env={}, timeout=2)
    task = queue.assigned()
    assert (task["recipe"], task["job"]["template"], task["job"]["script"]["source"]) == ("old", "old", "old")
    assert (task["job"]["env"], task["job"]["timeout"]) == ({"A": "old"}, 1)


# ── Templates ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(queue: Jobs, template: int) -> dict[str, Any]:
    answer = queue.do(tracker.get_template, queue.session, template)
    return msgspec.json.decode(tracker.encode(answer))["template"]


def row_of(queue: Jobs, template: int) -> sqlite3.Row:
    (row,) = queue.rows("SELECT * FROM template WHERE id = ?", template)
    return row


def body_of(queue: Jobs, **fields: Any) -> shapes.TemplateBody:
    return msgspec.convert({"project": queue.project, "name": "x", **fields}, shapes.TemplateBody)


def refused_template(queue: Jobs, **fields: Any) -> str:
    return queue.refusal(tracker.create_template, queue.session, body_of(queue, **fields))


def test_a_new_template_has_what_it_was_given_and_defaults(queue: Jobs) -> None:
    template = queue.create_template("build", script="echo", variables=[{"name": "a"}])
    time = queue.clock.START
    assert shown(queue, template) == {
        **{"id": template, "project": queue.project, "name": "build", "description": "", "recipe": "", "runas": ""},
        **{"timeout": None, "max_retries": 0, "priority": 0, "script": "echo", "arguments": [], "env": {}},
        "variables": [{"name": "a", "value": None, "required": False, "allowed": [], "description": ""}],
        **{"undeclared": True, "api": False, "has_key": False, "keep_count": None, "keep_time": None},
        **{"created": time, "updated": time},
    }


def test_a_change_of_a_template_leaves_what_it_does_not_name(queue: Jobs) -> None:
    template = queue.create_template(script="echo", env={"A": "b"}, key="secret key", timeout=5)
    before = shown(queue, template)
    queue.clock.now += 10
    queue.update_template(template, description="new", timeout=None)
    changed = {"description": "new", "timeout": None, "updated": before["updated"] + 10}
    assert shown(queue, template) == {**before, **changed}


def test_an_empty_script_takes_the_script_away(queue: Jobs) -> None:
    template = queue.create_template(script="echo")
    queue.update_template(template, script="")
    queue.trigger(template)
    assert queue.assigned()["job"]["script"] is None


def test_equal_scripts_are_stored_once(queue: Jobs) -> None:
    templates = [queue.create_template(name, script="echo") for name in "ab"]
    assert row_of(queue, templates[0])["script"] == row_of(queue, templates[1])["script"]


def test_templates_are_listed_by_name_without_those_that_were_deleted(queue: Jobs) -> None:
    second, first, gone = (queue.create_template(name) for name in ("b", "a", "c"))
    queue.do(tracker.delete_template, queue.session, gone)
    listed = queue.do(tracker.list_templates, queue.session, queue.project)["templates"]
    assert [msgspec.json.decode(template)["id"] for template in listed] == [first, second]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": " "}, "name: must not be blank"),
        ({"runas": "sh"}, "runas: must contain %script%"),
        ({"variables": [{"name": "a"}, {"name": "a"}]}, "variables: a is declared twice"),
        ({"variables": [{"name": "a", "value": 1, "allowed": [2]}]}, "variables: the value of a is none of those"),
        ({"env": {"A=B": "x"}}, "env: 'A=B' cannot be the name"),
        ({"env": {"": "x"}}, "env: '' cannot be the name"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(queue: Jobs, fields: dict[str, Any], reason: str) -> None:
    assert refused_template(queue, **fields).startswith(f"invalid: {reason}")
    assert queue.values("SELECT * FROM template") == []


@pytest.mark.parametrize("missing", ["project", "name"])
def test_a_new_template_needs_a_project_and_a_name(queue: Jobs, missing: str) -> None:
    body = body_of(queue)
    setattr(body, missing, msgspec.UNSET)
    refusal = queue.refusal(tracker.create_template, queue.session, body)
    assert refusal == f"invalid: {missing}: is required"


def test_templates_may_have_the_same_name(queue: Jobs) -> None:
    first, other = queue.create_template("x"), queue.create_template("y")
    second = queue.create_template("x", api=True)
    queue.update_template(other, name="x")
    listed = queue.do(tracker.list_templates, queue.session, queue.project)["templates"]
    assert [msgspec.json.decode(template)["id"] for template in listed] == [first, other, second]
    assert queue.do(tracker.api_template, "x")["id"] == second


def test_a_name_by_which_programs_trigger_is_taken_once_of_all_projects(queue: Jobs) -> None:
    second = queue.create_project("second")
    queue.create_template("x", project=second, api=True)
    taken = "conflict: api: another template named 'x' may be triggered by this name"
    assert refused_template(queue, api=True) == taken
    plain = queue.create_template("x")
    assert queue.refusal(tracker.update_template, queue.session, plain, shapes.TemplateBody(api=True)) == taken
    assert queue.do(tracker.api_template, "x")["project"] == second


def test_a_template_stays_in_its_project(queue: Jobs) -> None:
    template, second = queue.create_template(), queue.create_project("second")
    body = shapes.TemplateBody(project=second)
    assert queue.refusal(tracker.update_template, queue.session, template, body).startswith("invalid: project: ")


def test_a_key_is_never_shown_and_goes_when_it_is_emptied(queue: Jobs) -> None:
    template = queue.create_template(key="hunter22")
    assert shown(queue, template)["has_key"] and "hunter22" not in str(shown(queue, template))
    matches = {key: tracker.key_matches(row_of(queue, template), key) for key in ("hunter22", "", "HUNTER22")}
    assert matches == {"hunter22": True, "": False, "HUNTER22": False}
    queue.update_template(template, key="")
    assert not shown(queue, template)["has_key"] and tracker.key_matches(row_of(queue, template), "anything")


def test_a_rotated_secret_replaces_the_old_one(queue: Jobs) -> None:
    created = queue.do(tracker.create_template, queue.session, body_of(queue))["template"]
    assert tracker.secret_matches(row_of(queue, created["id"]), created["secret"])
    new = queue.do(tracker.rotate_template_secret, queue.session, created["id"])["secret"]
    row = row_of(queue, created["id"])
    assert tracker.secret_matches(row, new) and not tracker.secret_matches(row, created["secret"])
    assert "secret" not in shown(queue, created["id"])


def test_a_deleted_template_keeps_its_jobs_and_makes_no_more(queue: Jobs) -> None:
    template = queue.create_template()
    job = queue.trigger(template)
    queue.do(tracker.delete_template, queue.session, template)
    for function, *args in (
        (tracker.get_template,),
        (tracker.delete_template,),
        (tracker.rotate_template_secret,),
        (tracker.update_template, shapes.TemplateBody()),
        (tracker.trigger_template, shapes.TriggerBody()),
    ):
        assert queue.refusal(function, queue.session, template, *args) == f"not_found: No template {template}"
    assert queue.run() == job
    assert queue.list(template=template) == [job]
    assert queue.job(queue.retry(job))["template"] == template


# ── Who may do what ───────────────────────────────────────────────────────────────────────────────────────────────────

BY_JOB: dict[str, Callable] = {
    "see": lambda queue, caller, job: (tracker.get_job, caller, job),
    "read the log": lambda queue, caller, job: (tracker.get_job_log, caller, job, shapes.LinesQuery()),
    "list": lambda queue, caller, job: (tracker.list_jobs, caller, shapes.JobsQuery(project=queue.project)),
    "list by template": lambda queue, caller, job: (tracker.list_jobs, caller, shapes.JobsQuery(template=1)),
    "retry": lambda queue, caller, job: (tracker.retry_job, caller, job),
    "trigger": lambda queue, caller, job: (tracker.trigger_template, caller, 1, shapes.TriggerBody()),
    "edit": lambda queue, caller, job: (tracker.update_template, caller, 1, shapes.TemplateBody()),
    "show": lambda queue, caller, job: (tracker.get_template, caller, 1),
    "rotate": lambda queue, caller, job: (tracker.rotate_template_secret, caller, 1),
    "list templates": lambda queue, caller, job: (tracker.list_templates, caller, queue.project),
    "delete": lambda queue, caller, job: (tracker.delete_template, caller, 1),
}
READS = {"see", "read the log", "list", "list by template"}
OF_WORKERS = {*READS, "retry", "trigger"}


def codes(queue: Jobs, caller: Any, what: Iterable[str] = BY_JOB) -> dict[str, str]:
    """With what each call is refused; "" when it is not."""
    job = queue.trigger(queue.create_template())
    queue.cancel(job)
    found = {}
    for name in what:
        try:
            queue.do(*BY_JOB[name](queue, caller, job))
            found[name] = ""
        except tracker.TrackerError as error:
            found[name] = error.code
    return found


def test_nobody_may_do_anything(queue: Jobs) -> None:
    assert set(codes(queue, None).values()) == {"unauthorized"}


def test_a_manager_with_edit_may_do_everything(queue: Jobs) -> None:
    manager = queue.create_manager("editor", tracker.READ | tracker.EDIT)
    assert set(codes(queue, manager).values()) == {""}


def test_a_manager_with_read_may_look_at_jobs(queue: Jobs) -> None:
    manager = queue.create_manager("reader", tracker.READ)
    assert codes(queue, manager) == {name: "" if name in READS else "forbidden" for name in BY_JOB}


def test_a_manager_without_a_role_may_do_nothing(queue: Jobs) -> None:
    assert set(codes(queue, queue.create_manager("stranger")).values()) == {"forbidden"}


def test_to_a_manager_without_a_role_a_hidden_project_and_its_jobs_are_not_there(queue: Jobs) -> None:
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(hidden=True))
    stranger = queue.create_manager("stranger")
    assert set(codes(queue, stranger).values()) == {"not_found"}


def test_what_is_hidden_is_refused_in_the_words_of_what_is_not_there(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template())
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(hidden=True))
    stranger, no_job = queue.create_manager("stranger"), UNKNOWN
    for hidden, missing in (
        (BY_JOB["see"](queue, stranger, job), (tracker.get_job, stranger, no_job)),
        (BY_JOB["show"](queue, stranger, job), (tracker.get_template, stranger, 999)),
        (BY_JOB["list"](queue, stranger, job), (tracker.list_jobs, stranger, shapes.JobsQuery(project=999))),
        (
            BY_JOB["list by template"](queue, stranger, job),
            (tracker.list_jobs, stranger, shapes.JobsQuery(template=999)),
        ),
    ):
        words = [queue.refusal(*call) for call in (hidden, missing)]
        assert words[0].replace(job, "X").replace("1", "X") == words[1].replace(no_job, "X").replace("999", "X")


def test_a_worker_with_submit_may_trigger_and_follow_jobs(queue: Jobs) -> None:
    assert set(codes(queue, queue.worker, OF_WORKERS).values()) == {""}


@pytest.mark.parametrize("access", ["none", "assign only", "asked for"])
def test_a_worker_without_submit_may_do_nothing(queue: Jobs, access: str) -> None:
    worker = Jobs.create_worker(queue)
    queue.do(lambda tx: tx.execute("DELETE FROM worker_access WHERE worker = ?", (worker.id,)))
    if access == "assign only":
        body = shapes.WorkerRolesBody(worker.id, assign=True)
        queue.do(tracker.set_worker_access, queue.session, queue.project, body)
    elif access == "asked for":
        queue.do(tracker.request_access, worker, shapes.AccessBody(queue.project, submit=True))
    assert set(codes(queue, worker, OF_WORKERS).values()) == {"forbidden"}


def test_a_worker_with_a_wrong_secret_may_do_nothing(queue: Jobs) -> None:
    wrong = WorkerCredentials(queue.worker.id, b"wrong")
    assert set(codes(queue, wrong, OF_WORKERS).values()) == {"unauthorized"}


def test_a_worker_that_a_dialect_has_recognised_needs_no_secret(queue: Jobs) -> None:
    queue.trigger(queue.create_template())
    known = WorkerCredentials(queue.worker.id, None)
    task = queue.assign(known)
    assert queue.finish_job(task, worker=known)
    assert queue.refusal(tracker.authenticate, WorkerCredentials(999, None)).startswith("unauthorized: ")


def test_cancelling_needs_submit_or_edit(queue: Jobs) -> None:
    template = queue.create_template()
    for caller in (queue.worker, queue.create_manager("editor", tracker.EDIT)):
        queue.cancel(queue.trigger(template), caller)
    reader, job = queue.create_manager("reader", tracker.READ), queue.trigger(template)
    assert queue.refusal(tracker.cancel_job, reader, job).startswith("forbidden: ")


@pytest.mark.parametrize("name", ["see", "read the log", "retry"])
def test_a_job_that_there_is_not_is_not_found(queue: Jobs, name: str) -> None:
    for caller in (queue.session, queue.worker):
        assert queue.refusal(*BY_JOB[name](queue, caller, UNKNOWN)) == f"not_found: No job {UNKNOWN}"


def test_a_worker_that_triggers_passes_the_rate_limit_and_a_manager_does_not(queue: Jobs) -> None:
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(submit_rate=0.1))
    template = queue.create_template()
    queue.cancel(queue.trigger(template, caller=queue.worker))
    body = shapes.TriggerBody()
    assert queue.refusal(tracker.trigger_template, queue.worker, template, body).startswith("too_fast: ")
    assert queue.refusal(tracker.retry_job, queue.worker, queue.list()[0]).startswith("too_fast: ")
    queue.trigger(template)
    queue.clock.now += 11
    queue.trigger(template, caller=queue.worker)


def test_a_trigger_that_is_refused_is_not_charged(queue: Jobs) -> None:
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(submit_rate=0.1))
    template = queue.create_template(variables=[{"name": "a", "required": True}])
    assert queue.refusal(tracker.trigger_template, queue.worker, template, shapes.TriggerBody()).startswith("invalid")
    queue.trigger(template, {"a": 1}, caller=queue.worker)


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_are_listed_by_project_template_and_state_the_newest_first(queue: Jobs) -> None:
    second = queue.create_project("second")
    templates = {"a": queue.create_template("a"), "b": queue.create_template("b", project=second)}
    a1, b1, a2, b2 = (queue.trigger(templates[name]) for name in "abab")
    queue.cancel(a1)
    assert queue.list() == [b2, a2, b1, a1]
    assert queue.list(project=queue.project) == [a2, a1]
    assert queue.list(template=templates["b"]) == [b2, b1]
    assert queue.list(state="cancelled") == [a1]
    assert queue.list(project=queue.project, state="waiting") == [a2]
    assert queue.list(template=templates["a"], state="waiting") == [a2]
    assert queue.list(project=second, template=templates["b"], state="failed") == []


def test_a_list_in_pages_has_every_job_once(queue: Jobs) -> None:
    template = queue.create_template()
    jobs = [queue.trigger(template) for _ in range(10)]
    for limit in (1, 3, 10, 11):
        assert queue.list(limit=limit) == jobs[::-1]
        assert queue.list(limit=limit, template=template, state="waiting") == jobs[::-1]


def test_a_search_that_runs_out_of_time_goes_on_where_it_ended(queue: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "SEARCH_TIME", -1)
    template = queue.create_template()
    jobs = [queue.trigger(template) for _ in range(30)]
    queue.cancel(jobs[3])
    assert queue.list(state="cancelled", limit=2) == [jobs[3]]


def test_jobs_are_listed_by_the_time_when_they_were_made(queue: Jobs) -> None:
    template, jobs = queue.create_template(), []
    for _ in range(5):
        jobs.append(queue.trigger(template))
        queue.clock.now += 10
    start = queue.clock.START
    assert queue.list(start=start + 10) == jobs[:0:-1]
    assert queue.list(end=start + 20) == jobs[2::-1]
    assert queue.list(start=start + 5, end=start + 25) == [jobs[2], jobs[1]]
    assert queue.list(start=start + 100) == queue.list(end=start - 1) == []


def test_a_clock_that_was_set_back_shows_no_job_of_before_the_time_that_was_asked_for(queue: Jobs) -> None:
    template = queue.create_template()
    queue.clock.now += 100
    late = queue.trigger(template)
    queue.clock.now -= 90
    queue.trigger(template)
    assert queue.list(start=queue.clock.START + 50) == [late]


def test_a_list_of_all_projects_has_only_those_that_the_manager_may_read(queue: Jobs) -> None:
    queue.trigger(queue.create_template("x", project=queue.create_project("second")))
    job = queue.trigger(queue.create_template())
    assert queue.list(queue.create_manager("reader", tracker.READ)) == [job]
    assert queue.list(queue.create_manager("stranger")) == []


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"project": 999}, "not_found: project: no project 999"),
        ({"template": 999}, "not_found: template: no template 999"),
        ({"project": 2, "template": 1}, "invalid: template: it is not of that project"),
    ],
)
def test_a_list_of_what_there_is_not_is_refused(queue: Jobs, query: dict[str, Any], reason: str) -> None:
    queue.create_template()
    queue.create_project("second")
    assert queue.refusal(tracker.list_jobs, queue.session, shapes.JobsQuery(**query)) == reason


def test_jobs_of_another_projects_template_are_not_a_projects(queue: Jobs) -> None:
    foreign = queue.create_template("foreign", project=queue.create_project("second"))
    queue.trigger(foreign)
    query = shapes.JobsQuery(project=queue.project, template=foreign)
    assert queue.do(tracker.find_jobs, None, query) == ([], None)


def test_a_worker_has_to_name_a_project_or_template(queue: Jobs) -> None:
    refusal = queue.refusal(tracker.list_jobs, queue.worker, shapes.JobsQuery())
    assert refusal == "invalid: project: is required"


# ── Forgotten ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_jobs(queue: Jobs, template: int, count: int) -> list[str]:
    """Jobs that ended one second after the other."""
    jobs = []
    for _ in range(count):
        jobs.append(queue.trigger(template))
        queue.run()
        queue.clock.now += 1
    return jobs


def test_only_the_newest_ended_jobs_of_a_template_are_kept(queue: Jobs) -> None:
    template, other = queue.create_template(keep_count=2), queue.create_template("other")
    jobs, others = run_jobs(queue, template, 5), run_jobs(queue, other, 3)
    live = [queue.trigger(template) for _ in range(3)]
    queue.prune()
    assert queue.list(template=template) == [*live[::-1], jobs[4], jobs[3]]
    assert queue.list(template=other) == others[::-1]


def test_ended_jobs_are_kept_for_the_templates_time_or_else_for_the_settings() -> None:
    queue = jobs_with(job_retention=1000)
    short, default = queue.create_template("short", keep_time=100), queue.create_template("default")
    old = [run_jobs(queue, template, 1) for template in (short, default)]
    queue.clock.now += 200
    new = run_jobs(queue, short, 1)
    queue.prune()
    assert (queue.list(template=short), queue.list(template=default)) == (new, old[1])
    queue.clock.now += 1000
    queue.prune()
    assert queue.list() == []


def test_a_live_job_is_never_forgotten(queue: Jobs) -> None:
    job = queue.trigger(queue.create_template(keep_time=1, keep_count=1))
    queue.clock.now += 1e8
    queue.prune()
    assert queue.list() == [job]


def test_a_jobs_log_goes_with_it_also_a_long_one(queue: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PIECE_TASKS", 10)
    kept, _ = job_in_state(queue, "waiting")
    _, task = job_in_state(queue, "assigned", name="other", keep_time=1, priority=1)
    queue.log(task, *map(str, range(35)))
    queue.finish_job(task)
    queue.clock.now += 2
    queue.prune()
    assert queue.list() == [kept]
    assert queue.values("SELECT DISTINCT job FROM job_line") == [(1,)]


def test_a_deleted_template_and_scripts_go_when_no_job_has_them_any_more(queue: Jobs) -> None:
    template = queue.create_template(script="first", keep_time=100)
    queue.update_template(template, script="never used")
    queue.update_template(template, script="second")
    run_jobs(queue, template, 1)
    queue.do(tracker.delete_template, queue.session, template)
    queue.prune()
    assert queue.values("SELECT id FROM template") == [(template,)]
    assert queue.values("SELECT source FROM script") == [("second",)]
    queue.clock.now += 200
    queue.prune()
    assert queue.values("SELECT * FROM template") == queue.values("SELECT * FROM script") == []


def test_a_script_that_a_live_template_has_is_kept(queue: Jobs) -> None:
    queue.create_template(script="kept")
    queue.prune()
    assert queue.values("SELECT source FROM script") == [("kept",)]


def test_a_retry_outlives_the_job_that_it_repeats(queue: Jobs) -> None:
    template = queue.create_template(keep_time=10)
    (job,) = run_jobs(queue, template, 1)
    new = queue.retry(job)
    queue.clock.now += 100
    queue.prune()
    assert queue.job(new)["retry_of"] is None


def test_a_running_tracker_forgets_them_in_the_background(tmp_path: Path) -> None:
    async def story() -> None:
        clock = StillClock()
        async with running(tmp_path / "tracker.db", clock) as one:
            _, session = await one.db.write(tracker.register_manager, "admin", "unused")
            project = (await one.db.write(call, tracker.create_project, session, shapes.ProjectBody(name="first")))[
                "id"
            ]
            body = shapes.TemplateBody(project=project, name="build", script="ls", keep_time=60)
            template = (await one.db.write(call, tracker.create_template, session, body))["template"]["id"]
            given = (session, template, shapes.TriggerBody())
            old, live = [(await one.db.write(call, tracker.trigger_template, *given))["job"]["id"] for _ in range(2)]
            await one.db.write(call, tracker.cancel_job, session, old)
            clock.now += 61
            await one.prune()
            assert await one.db.read(tracker.find_job, old) is None
            assert (await one.db.read(tracker.find_job, live))["state"] == "waiting"

    asyncio.run(story())
