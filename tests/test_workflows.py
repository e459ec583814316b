"""Workflows: what follows when a step ends, what it is given, and how a run ends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from place import Jobs

import retention
import shapes
import tracker
from shapes import Edge, TriggerBody, WorkflowBody
from tracker import FAIL, OK, SKIP


@pytest.fixture
def queue() -> Jobs:
    return Jobs()


@pytest.fixture
def build(queue: Jobs) -> int:
    return queue.create_template("build")


def three(queue: Jobs, **fields: Any) -> str:
    """A run of a workflow that deploys what it could build, and else reports."""
    build, deploy, report = (queue.create_template(name, **fields) for name in ("build", "deploy", "report"))
    return queue.start(queue.create_workflow(build, (build, "success", deploy), (build, "failure", report)))


def said(queue: Jobs, run: str) -> str:
    return "\n".join(queue.said(run))


# ── What follows ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_on_from_its_first_assignment_until_its_last_step_has_ended(queue: Jobs) -> None:
    run = three(queue)
    assert (queue.state(run), queue.steps(run)) == ("waiting", {"build": "waiting"})
    task = queue.assigned()
    assert queue.state(run) == "assigned"
    queue.finish_job(task["id"])
    assert (queue.state(run), queue.steps(run)) == ("assigned", {"build": "succeeded", "deploy": "waiting"})
    queue.run()
    assert (queue.state(run), queue.steps(run)) == ("succeeded", {"build": "succeeded", "deploy": "succeeded"})


def test_a_failed_step_takes_the_branch_of_failure(queue: Jobs) -> None:
    run = three(queue)
    queue.run(FAIL)
    queue.run(OK)
    assert (queue.state(run), queue.steps(run)) == ("succeeded", {"build": "failed", "report": "succeeded"})


def test_a_step_whose_result_reports_failure_takes_the_branch_of_failure(queue: Jobs) -> None:
    run = three(queue)
    queue.run(OK, {"state": "failure"})
    assert queue.steps(run) == {"build": "failed", "report": "waiting"}


def test_a_step_that_timed_out_takes_the_branch_of_its_own(queue: Jobs, build: int) -> None:
    clean = queue.create_template("clean")
    run = queue.start(queue.create_workflow(build, (build, "timeout", clean)))
    queue.assign()
    queue.pass_lease()
    assert queue.steps(run) == {"build": "timed_out", "clean": "waiting"}


def test_a_step_that_was_cancelled_takes_the_branch_of_its_own(queue: Jobs, build: int) -> None:
    clean = queue.create_template("clean")
    run = queue.start(queue.create_workflow(build, (build, "cancelled", clean)))
    (step,) = queue.values("SELECT token FROM job WHERE workflow_job IS NOT NULL")
    queue.cancel(step[0])
    assert queue.steps(run) == {"build": "cancelled", "clean": "waiting"}


def test_a_run_that_has_not_begun_ends_with_its_cancelled_step_also_when_the_next_cannot_be_started(
    queue: Jobs, build: int
) -> None:
    clean = queue.create_template("clean")
    run = queue.start(queue.create_workflow(build, (build, "cancelled", clean)))
    queue.do(tracker.delete_template, queue.session, clean)
    (step,) = queue.values("SELECT token FROM job WHERE workflow_job IS NOT NULL")
    queue.cancel(step[0])
    assert (queue.state(run), queue.steps(run)) == ("cancelled", {"build": "cancelled"})
    assert "could not be started: the template was deleted" in said(queue, run)


def test_a_run_that_is_cancelled_follows_no_branch(queue: Jobs, build: int) -> None:
    clean = queue.create_template("clean")
    run = queue.start(queue.create_workflow(build, (build, "cancelled", clean)))
    queue.cancel(run)
    assert (queue.state(run), queue.steps(run)) == ("cancelled", {"build": "cancelled"})


def test_no_more_steps_follow_one_ending_than_fit_into_a_transaction(queue: Jobs, build: int) -> None:
    targets = [queue.create_template(f"target {number}") for number in range(tracker.MOST_FORKS + 1)]
    edges = [Edge(build, "success", target) for target in targets]
    body = WorkflowBody(queue.project, "fork", build, edges)
    refusal = queue.refusal(tracker.create_workflow, queue.session, body)
    assert refusal == f"invalid: edges: more than {tracker.MOST_FORKS} from one template for one ending"


def test_what_all_steps_of_a_run_are_given_is_bounded(queue: Jobs, build: int) -> None:
    workflow = queue.create_workflow(build)
    given = TriggerBody({"large": "x" * tracker.MOST_GIVEN})
    refusal = queue.refusal(tracker.trigger_workflow, queue.session, workflow, given)
    assert refusal.startswith("invalid: variables, arguments: a workflow takes at most 262,144 characters")


@pytest.mark.parametrize(("result", "state"), [(OK, "succeeded"), (FAIL, "failed")])
def test_a_run_without_a_next_step_ends_as_its_last_one(queue: Jobs, build: int, result: int, state: str) -> None:
    run = queue.start(queue.create_workflow(build))
    queue.run(result, {"state": "odd", "output": [1]})
    shown = queue.job(run)
    assert (shown["state"], shown["result"]) == (state, {"state": "odd", "output": [1]})
    assert (shown["reported"], shown["output"]) == ("odd", [1])
    assert said(queue, run).endswith(f"ended after step build: {state}")


def test_a_step_that_timed_out_ends_a_run_that_has_no_edge_for_it(queue: Jobs) -> None:
    run = three(queue)
    queue.assign()
    queue.pass_lease()
    assert (queue.state(run), queue.steps(run)) == ("timed_out", {"build": "timed_out"})


def test_a_failed_attempt_is_no_end_of_a_step(queue: Jobs) -> None:
    run = three(queue, max_retries=2)
    for result in (SKIP, FAIL):
        queue.run(result)
        assert (queue.state(run), queue.steps(run)) == ("assigned", {"build": "waiting"})
    queue.run(FAIL)
    assert queue.steps(run) == {"build": "failed", "report": "waiting"}


def test_the_next_step_is_announced_to_waiting_workers(queue: Jobs) -> None:
    three(queue)
    task = queue.assign()
    queue.finish_job(task)
    assert queue.announced == {queue.project: 1}


def test_a_next_step_may_be_in_another_project(queue: Jobs, build: int) -> None:
    second = queue.create_project("second")
    deploy = queue.create_template("deploy", project=second)
    run = queue.start(queue.create_workflow(build, (build, "success", deploy)))
    queue.finish_job(queue.assign())
    assert queue.announced == {second: 1}
    queue.finish_job(queue.assign(project=second))
    assert queue.state(run) == "succeeded"


def test_a_run_is_a_job_without_a_task_and_its_steps_name_it(queue: Jobs) -> None:
    run = three(queue)
    shown = queue.job(run)
    assert (shown["task"], shown["template"], shown["name"], shown["workflow_job"]) == (None, None, "release", None)
    step = queue.job(queue.list()[0])
    assert (step["workflow_job"], step["origin"], step["name"]) == (run, "workflow", "build")


def test_runs_that_follow_changed_edges_follow_the_new_ones(queue: Jobs, build: int) -> None:
    deploy = queue.create_template("deploy")
    workflow = queue.create_workflow(build)
    run = queue.start(workflow)
    body = WorkflowBody(edges=[Edge(build, "success", deploy)])
    queue.do(tracker.update_workflow, queue.session, workflow, body)
    queue.run()
    assert queue.steps(run) == {"build": "succeeded", "deploy": "waiting"}


# ── What a step is given ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("output", "arguments"),
    [
        ({"output": ["a", "b", "too many"]}, ["a", "b"]),
        ({"lastline": '["a", null]'}, ["a", ""]),
        ({"lastline": '{"state": "success", "data": ["a", {"b": 1}]}'}, ["a", '{"b":1}']),
    ],
)
def test_the_output_of_a_step_is_the_arguments_of_the_next(
    queue: Jobs, build: int, output: Any, arguments: list[str]
) -> None:
    deploy = queue.create_template("deploy", arguments=[{}, {}])
    queue.start(queue.create_workflow(build, (build, "success", deploy)))
    queue.run(OK, output)
    assert queue.assigned()["job"]["arguments"] == arguments


def test_an_output_that_is_no_list_is_one_argument(queue: Jobs, build: int) -> None:
    deploy = queue.create_template("deploy", arguments=[{}])
    queue.start(queue.create_workflow(build, (build, "success", deploy)))
    queue.run(OK, {"output": {"version": 3}})
    assert queue.assigned()["job"]["arguments"] == ['{"version":3}']


def test_a_run_gives_its_first_step_what_it_was_given_and_later_ones_the_variables_that_they_declare(
    queue: Jobs, build: int
) -> None:
    declared = queue.create_template("deploy", variables=[{"name": "where"}], undeclared=False)
    run = queue.start(queue.create_workflow(build, (build, "success", declared)), {"where": "here", "what": 1}, ["x"])
    assert (queue.job(run)["variables"], queue.job(run)["arguments"]) == ({"where": "here", "what": 1}, ["x"])
    task = queue.assigned()
    assert task["job"]["variables"] == {"where": "here", "what": 1}
    queue.finish_job(task["id"])
    assert queue.assigned()["job"]["variables"] == {"where": "here"}


def test_what_the_first_step_refuses_refuses_the_run(queue: Jobs) -> None:
    template = queue.create_template(arguments=[{}])
    workflow = queue.create_workflow(template)
    refusal = queue.refusal(tracker.trigger_workflow, queue.session, workflow, TriggerBody())
    assert refusal.startswith("invalid: arguments: an array of length 1 is required")
    assert queue.values("SELECT * FROM job") == []


# ── What cannot follow ────────────────────────────────────────────────────────────────────────────────────────────────


def test_too_few_arguments_for_a_step_end_the_run_as_failed_with_a_line_that_says_so(queue: Jobs, build: int) -> None:
    deploy = queue.create_template("deploy", arguments=[{}, {}])
    run = queue.start(queue.create_workflow(build, (build, "success", deploy)))
    queue.run(OK, {"output": ["one"]})
    assert (queue.state(run), queue.steps(run)) == ("failed", {"build": "succeeded"})
    assert f"step {deploy} could not be started: arguments: an array of length 2 is required" in said(queue, run)


def test_a_template_that_was_deleted_ends_the_run_as_failed(queue: Jobs, build: int) -> None:
    deploy = queue.create_template("deploy")
    run = queue.start(queue.create_workflow(build, (build, "success", deploy)))
    queue.do(tracker.delete_template, queue.session, deploy)
    queue.run()
    assert queue.state(run) == "failed"
    assert f"step {deploy} could not be started: the template was deleted" in said(queue, run)


def test_a_circle_goes_round_until_the_run_has_had_its_most_steps(
    queue: Jobs, build: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "MOST_STEPS", 5)
    run = queue.start(queue.create_workflow(build, (build, "success", build)))
    for _ in range(5):
        assert queue.state(run) != "failed"
        queue.run()
    assert (queue.state(run), queue.counts()) == ("failed", {"closed": 5})
    assert "the run has had 5 steps" in said(queue, run)


def test_a_workflow_whose_start_was_deleted_cannot_be_triggered(queue: Jobs, build: int) -> None:
    workflow = queue.create_workflow(build)
    queue.do(tracker.delete_template, queue.session, build)
    refusal = queue.refusal(tracker.trigger_workflow, queue.session, workflow, TriggerBody())
    assert refusal == "conflict: workflow: the template that it starts with was deleted"


# ── Steps at the same time ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fork(queue: Jobs, build: int) -> str:
    """A run whose first step has ended, and left, right wait."""
    left, right = queue.create_template("left"), queue.create_template("right")
    run = queue.start(queue.create_workflow(build, (build, "success", left), (build, "success", right)))
    queue.finish_job(queue.assign())
    assert queue.announced == {queue.project: 2}
    return run


def test_two_edges_for_the_same_ending_start_two_steps_and_the_run_ends_with_the_last(queue: Jobs, fork: str) -> None:
    left, right = queue.assign(), queue.assign()
    queue.finish_job(right, FAIL)
    assert queue.state(fork) == "assigned"
    queue.finish_job(left)
    assert (queue.state(fork), queue.steps(fork)["right"]) == ("succeeded", "failed")


def test_a_step_that_could_not_be_started_fails_the_run_also_when_another_one_ends_later(
    queue: Jobs, build: int
) -> None:
    needy, other = queue.create_template("needy", arguments=[{}]), queue.create_template("other")
    run = queue.start(queue.create_workflow(build, (build, "success", needy), (build, "success", other)))
    queue.run()
    assert queue.steps(run) == {"build": "succeeded", "other": "waiting"}
    queue.run()
    assert queue.state(run) == "failed"


def test_deleting_the_tasks_of_all_steps_at_once_cancels_the_run(queue: Jobs, fork: str) -> None:
    assert queue.act("delete", queue.tasks("waiting")) == 2
    assert queue.state(fork) == "cancelled"
    assert set(queue.steps(fork).values()) == {"succeeded", "cancelled"}


def test_cancelling_a_run_cancels_every_step_that_is_going_on(queue: Jobs, fork: str) -> None:
    task = queue.assign()
    queue.cancel(fork)
    assert (queue.state(fork), queue.counts()) == ("cancelled", {"closed": 1})
    assert queue.steps(fork) == {"build": "succeeded", "left": "cancelled", "right": "cancelled"}
    assert not queue.finish_job(task)


# ── Cancelled, retried ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("assigned", [False, True])
def test_a_run_can_be_cancelled_before_and_after_it_is_on(queue: Jobs, assigned: bool) -> None:
    run = three(queue)
    if assigned:
        queue.assign()
    queue.cancel(run)
    assert (queue.state(run), queue.steps(run), queue.counts()) == ("cancelled", {"build": "cancelled"}, {})
    assert queue.refusal(tracker.cancel_job, queue.session, run).startswith("conflict: ")


@pytest.mark.parametrize("assigned", [False, True])
def test_a_cancelled_step_leads_nowhere_and_ends_the_run(queue: Jobs, assigned: bool) -> None:
    run = three(queue)
    if assigned:
        queue.assign()
    queue.cancel(queue.list()[0])
    assert (queue.state(run), queue.steps(run)) == ("cancelled", {"build": "cancelled"})


def test_a_hard_reset_cancels_the_runs_of_the_project(queue: Jobs) -> None:
    run = three(queue)
    queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, "hard_reset"))
    assert (queue.state(run), queue.steps(run)) == ("cancelled", {"build": "cancelled"})


def test_a_run_is_retried_from_its_start_with_what_it_was_given(queue: Jobs, build: int) -> None:
    run = queue.start(queue.create_workflow(build), {"a": 1}, ["x"])
    assert queue.refusal(tracker.retry_job, queue.session, run).startswith("conflict: job: it has not ended yet")
    queue.run(FAIL)
    new = queue.retry(run)
    shown = queue.job(new)
    assert (shown["retry_of"], shown["variables"], shown["arguments"]) == (run, {"a": 1}, ["x"])
    queue.run()
    assert (queue.state(new), queue.state(run)) == ("succeeded", "failed")


def test_a_run_of_a_deleted_workflow_cannot_be_retried(queue: Jobs, build: int) -> None:
    workflow = queue.create_workflow(build)
    run = queue.start(workflow)
    queue.do(tracker.delete_workflow, queue.session, workflow)
    queue.run()
    assert queue.state(run) == "succeeded"
    assert queue.refusal(tracker.retry_job, queue.session, run) == "conflict: job: its workflow was deleted"


def test_the_retry_of_a_step_is_a_job_of_its_own(queue: Jobs) -> None:
    run = three(queue)
    step = queue.run(FAIL)
    queue.run()
    new = queue.retry(step)
    assert queue.job(new)["workflow_job"] is None
    queue.run()
    assert queue.steps(run) == {"build": "failed", "report": "succeeded"}


# ── One transaction ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_ends_and_the_next_one_begins_in_one_transaction_or_not_at_all(
    queue: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = three(queue)
    task = queue.assign()
    before = list(queue.connection.iterdump())

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a mistake in the code")

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "job_recipe", fail)  # of the second step
        with pytest.raises(ValueError, match="a mistake"):
            queue.finish_job(task)
    assert list(queue.connection.iterdump()) == before
    queue.finish_job(task)
    assert queue.steps(run) == {"build": "succeeded", "deploy": "waiting"}


# ── Workflows themselves ──────────────────────────────────────────────────────────────────────────────────────────────


def shown(queue: Jobs, workflow: int) -> dict[str, Any]:
    return queue.do(tracker.get_workflow, queue.session, workflow)["workflow"]


def test_a_workflow_is_made_changed_listed_and_deleted(queue: Jobs, build: int) -> None:
    edge = {"template": build, "ending": "failure", "target": build}
    workflow = queue.create_workflow(build, (build, "failure", build), (build, "failure", build))
    common = {"id": workflow, "project": queue.project, "created": queue.clock.START}
    assert shown(queue, workflow) == {**common, "name": "release", "start": build, "edges": [edge]}
    other = queue.create_template("other")
    queue.do(tracker.update_workflow, queue.session, workflow, WorkflowBody(start=other, name="new"))
    assert shown(queue, workflow) == {**common, "name": "new", "start": other, "edges": [edge]}
    queue.do(tracker.update_workflow, queue.session, workflow, WorkflowBody(edges=[]))
    listed = queue.do(tracker.list_workflows, queue.session, queue.project)["workflows"]
    assert [msgspec.json.decode(one) for one in listed] == [{**common, "name": "new", "start": other, "edges": []}]
    queue.do(tracker.delete_workflow, queue.session, workflow)
    assert queue.do(tracker.list_workflows, queue.session, queue.project) == {"workflows": []}
    refusal = queue.refusal(tracker.trigger_workflow, queue.session, workflow, TriggerBody())
    assert refusal == f"not_found: No workflow {workflow}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": " "}, "invalid: name: must not be blank"),
        ({"name": "release"}, "conflict: name: the project has a workflow named 'release' already"),
        ({"start": 999}, "invalid: start: no template 999 that you may edit"),
        ({"edges": [Edge(1, "success", 999)]}, "invalid: edges[0].target: no template 999 that you may edit"),
        ({"edges": [Edge(999, "success", 1)]}, "invalid: edges[0].template: no template 999 that you may edit"),
        ({"project": 2}, "invalid: project: a workflow stays in its project"),
    ],
)
def test_a_workflow_that_cannot_be_is_refused(queue: Jobs, build: int, change: dict[str, Any], reason: str) -> None:
    queue.create_workflow(build)
    other = queue.create_workflow(build, name="other")
    before = shown(queue, other)
    assert queue.refusal(tracker.update_workflow, queue.session, other, WorkflowBody(**change)) == reason
    assert shown(queue, other) == before
    if "project" not in change:
        body = WorkflowBody(**{"project": queue.project, "name": "third", "start": build, **change})
        assert queue.refusal(tracker.create_workflow, queue.session, body) == reason


@pytest.mark.parametrize("missing", ["project", "name", "start"])
def test_a_new_workflow_needs_a_project_a_name_and_a_start(queue: Jobs, build: int, missing: str) -> None:
    fields = {"project": queue.project, "name": "x", "start": build}
    del fields[missing]
    refusal = queue.refusal(tracker.create_workflow, queue.session, WorkflowBody(**fields))
    assert refusal == f"invalid: {missing}: is required"


def test_a_template_that_its_manager_may_not_edit_is_refused_as_one_that_is_not_there(queue: Jobs, build: int) -> None:
    foreign = queue.create_template("foreign", project=queue.create_project("second"))
    editor = queue.create_manager("editor", tracker.EDIT)
    for template in (foreign, 999):
        body = WorkflowBody(queue.project, "x", build, [Edge(build, "success", template)])
        refusal = queue.refusal(tracker.create_workflow, editor, body)
        assert refusal == f"invalid: edges[0].target: no template {template} that you may edit"


def test_a_rotated_secret_of_a_workflow_replaces_the_old_one(queue: Jobs, build: int) -> None:
    body = WorkflowBody(queue.project, "x", build)
    created = queue.do(tracker.create_workflow, queue.session, body)["workflow"]
    new = queue.do(tracker.rotate_workflow_secret, queue.session, created["id"])["secret"]
    (row,) = queue.rows("SELECT * FROM workflow")
    assert tracker.secret_matches(row, new) and not tracker.secret_matches(row, created["secret"])


@pytest.mark.parametrize(
    ("role", "hidden", "code"), [(tracker.READ, False, "forbidden"), (0, False, "forbidden"), (0, True, "not_found")]
)
def test_a_manager_without_edit_can_do_nothing_with_a_workflow(
    queue: Jobs, build: int, role: int, hidden: bool, code: str
) -> None:
    workflow = queue.create_workflow(build)
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(hidden=hidden))
    manager = queue.create_manager("other", role)
    for caller, refused in ((manager, code), (None, "unauthorized")):
        for function, *args in (
            (tracker.get_workflow, workflow),
            (tracker.update_workflow, workflow, WorkflowBody()),
            (tracker.delete_workflow, workflow),
            (tracker.rotate_workflow_secret, workflow),
            (tracker.list_workflows, queue.project),
            (tracker.trigger_workflow, workflow, TriggerBody()),
            (tracker.create_workflow, WorkflowBody(queue.project, "x", build)),
        ):
            assert queue.refusal(function, caller, *args).partition(":")[0] == refused


def test_a_worker_with_submit_may_start_a_run_and_passes_the_rate_limit(queue: Jobs, build: int) -> None:
    workflow = queue.create_workflow(build)
    queue.do(tracker.update_project, queue.session, queue.project, shapes.ProjectBody(submit_rate=0.1))
    queue.do(tracker.trigger_workflow, queue.worker, workflow, TriggerBody())
    refusal = queue.refusal(tracker.trigger_workflow, queue.worker, workflow, TriggerBody())
    assert refusal.startswith("too_fast: ")


def test_a_run_is_forgotten_after_the_settings_time() -> None:
    queue = Jobs(job_retention=100)
    build = queue.create_template(keep_time=10_000)
    run = queue.start(queue.create_workflow(build))
    step = queue.run()
    queue.clock.now += 200
    queue.prune()
    assert queue.list() == [step]
    assert queue.job(step)["workflow_job"] is None
    assert queue.refusal(tracker.get_job, queue.session, run).startswith("not_found: ")


def test_edges_of_deleted_workflows_go_in_pieces(queue: Jobs, build: int) -> None:
    workflow = queue.create_workflow(build)
    edges = [(workflow, number, "failure", build) for number in range(1200)]
    queue.connection.executemany("INSERT INTO workflow_edge VALUES (?, ?, ?, ?)", edges)
    queue.do(tracker.delete_workflow, queue.session, workflow)
    changes = []
    for table in tracker.PRUNE:
        more = True
        while more:
            before = queue.connection.total_changes
            more = queue.do(tracker.prune, table)
            changes.append(queue.connection.total_changes - before)
    assert queue.values("SELECT 1 FROM workflow UNION ALL SELECT 1 FROM workflow_edge") == []
    assert max(changes) <= 3 * retention.PIECE_ROWS
