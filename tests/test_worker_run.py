"""`worker.py run` as its users have it: real processes, started by a worker.py of its own, against a real tracker."""

import contextlib
import http.server
import json
import os
import shlex
import signal
import sys
import threading
import time
import types
from pathlib import Path

import httpx
import pytest
from conftest import Manager, Worker, wait_until
from test_worker import PATIENT, Client, free_port, listening, on_terminal, posix_only, read_until, tracker_process

import worker

pytestmark = posix_only


# ── Fixtures and helpers ────────────────────────────────────────────────────────────────────────────────────────────


class Machine(Client):
    """Runs `worker.py run` in a folder of its own."""

    def arguments(self, site, projects, *options):
        projects = [projects] if isinstance(projects, int) else projects
        server = site if isinstance(site, str) else site.url
        return ["run", "--server", server, *(f"--project={project}" for project in projects), "--no-wait", *options]

    def finish(self, site, projects, *options, status=0):
        """Runs until there is no task left; checks the exit status."""
        result = self.run(*self.arguments(site, projects, "--until-empty", *options))
        assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
        return result

    @contextlib.contextmanager
    def working(self, site, projects, *options):
        """A worker that waits for tasks, until the block ends."""
        with self.start(*self.arguments(site, projects, *options)) as process:
            yield process

    def made(self, name):
        """Waits until there is this file."""
        wait_until((self.folder / name).exists)

    def wrote(self, name):
        """The first line of a file, once there is one."""
        self.made(name)
        return wait_until(lambda: (self.folder / name).read_text().partition("\n")[0])

    def go(self):
        (self.folder / "go").touch()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def project(site):
    """A project whose tasks everybody may be assigned."""
    return site.admin.create_project(public=True)


def submit(site, project, *recipes, **fields):
    """The ids of new tasks."""
    submitter = site.create_worker(project)
    for recipe in recipes:
        assert submitter.submit(project, recipe, **fields).json()["ok"]
    return [row[0] for row in site.read("SELECT id FROM task WHERE project = ? ORDER BY id", project)]


def create_template(site, project, **fields):
    answer = site.admin.post("/template/create", {"project": project, "name": "template", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["template"]["id"]


def trigger(site, template, **given):
    """A job of a template; its id."""
    answer = site.admin.post(f"/template/trigger/{template}", given)
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["job"]["id"]


def create_job(site, project, given=None, **fields):
    return trigger(site, create_template(site, project, **fields), **(given or {}))


def job(site, token):
    return site.admin.get(f"/job/get/{token}").json()["content"]["job"]


def entries(site, token):
    """What the worker has logged for a job."""
    lines = site.admin.get(f"/job/log/{token}").json()["content"]["entries"]
    return [(line["level"], line["scope"], line["message"]) for line in lines if line["scope"] != "tracker"]


def messages(site, token):
    return [message for _, _, message in entries(site, token)]


def error_lines(site):
    return [line["message"] for line in site.admin.get("/logs", level=3).json()["content"]["logs"]]


def is_alive(process):
    """Whether the process of this id runs: one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the latter when it ends between being found and being read
        if Path("/proc/self/stat").exists():
            return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    return True


def sh(script):
    """The command line of a shell script, to go after the options."""
    return ["--", "sh", "-c", script]


def python(code, *arguments):
    return ["--", sys.executable, "-c", code, *arguments]


def make_runner(*options):
    """A Runner without a server: a test says what its threads are answered."""
    args = worker.argument_parser().parse_args(["run", "--project", "1", *options, "--", "true"])
    display = worker.RunDisplay("http://tracker")
    client = worker.RunClient("http://tracker", display, worker.Interrupts())
    return worker.Runner(args, client, display, worker.StopSignals())


def hold(runner, *outcomes, **task):
    """Lets the runner have tasks that have ended."""
    for number, outcome in enumerate(outcomes, 1):
        assignment = worker.Assignment({"id": number, "recipe": "a", **task})
        execution = worker.Execution(assignment, runner.terms, lambda: False, runner._ended)
        runner.unsettled[execution] = None
        execution.end(outcome)
    return list(runner.unsettled)


class Tracker:
    """Answers the calls of a Client, and keeps them; a path in `refused` is refused."""

    def __init__(self, client, *refused, **content):
        self.refused, self.content, self.calls = refused, content, []
        client.call = self.call

    def call(self, method, path, body=None):
        body = json.loads(body) if isinstance(body, bytes) else body
        self.calls.append((path, body))
        if path in self.refused:
            raise worker.Refused(400, "no such thing")
        return worker.Answer(self.content, 0.0, repeated=False)

    def paths(self):
        return [path for path, _ in self.calls]


def done():
    return worker.Outcome(worker.DONE, "exit status 0")


# It runs until the test makes a file `go`, or is no more: its folder goes with it.
UNTIL_GO = "touch began; while [ -e began ] && [ ! -e go ]; do sleep 0.02; done"


# ── Access and usage ────────────────────────────────────────────────────────────────────────────────────────────────


def test_first_use_asks_for_access_and_says_who_grants_it(site, machine):
    project = site.admin.create_project()
    result = machine.finish(site, project, "--alias", "box", "--", "true", status=2)
    number = machine.stored_credentials()[site.url]["id"]
    assert f"POST {site.url}/project/accept_request/{project}/{number}" in result.stderr
    asked = site.admin.get(f"/project/access_list/{project}").json()["content"]["accesses"]
    assert [(one["assign"], one["submit"], one["request"]) for one in asked] == [(True, False, True)]


def test_access_is_waited_for(site, machine):
    project = site.admin.create_project()
    submit(site, project, "a")
    options = ("--server", site.url, "--project", project, "--until-empty", "--", "true")
    with machine.start("run", *options) as process:
        read_until(process.stderr, f"on the page {site.url}/ui/projects/{project}/access")
        read_until(process.stderr, "Waiting for that.")
        site.admin.post(f"/project/accept_request/{project}/{machine.stored_credentials()[site.url]['id']}")
        assert process.wait(PATIENT) == 0
    assert site.admin.counts(project) == {"closed": 1}


def test_of_several_projects_access_is_asked_for_the_one_that_is_closed(site, machine):
    """Neither for the public one, nor for the one that was granted."""
    public, granted, closed = (site.admin.create_project(public=each) for each in (True, False, False))
    machine.finish(site, granted, "--", "true", status=2)
    number = machine.stored_credentials()[site.url]["id"]
    site.admin.post(f"/project/accept_request/{granted}/{number}")
    result = machine.finish(site, [public, granted, closed], "--", "true", status=2)
    assert f"POST {site.url}/project/accept_request/{closed}/{number}" in result.stderr
    asked = {one: site.admin.get(f"/project/access_list/{one}").json() for one in (public, granted, closed)}
    assert [len(one["content"]["accesses"]) for one in asked.values()] == [0, 1, 1]


def test_an_unknown_project_is_an_error(site, machine):
    result = machine.finish(site, 12345, "--", "true", status=2)
    assert "No project 12345" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--", "true"], "--project"),
        (["--project", "1"], "no COMMAND"),
        (["--project", "1", "--"], "no COMMAND"),
        (["--project", "1", "--", "no-such-program"], "no-such-program: no such program"),
        (["--project", "1", "--", "{recipe}"], "must not choose the program"),
        (["--project", "1", "--skip-status", "0", "--", "true"], "--skip-status"),
    ],
)
def test_wrong_usage_is_one_clear_error_before_anything_is_done(machine, arguments, complaint):
    result = machine.run("run", *arguments)
    assert result.returncode == 2 and complaint in result.stderr.splitlines()[-1]
    assert not machine.credentials.exists()


def test_help_is_a_manual(machine):
    result = machine.run("run", "--help")
    assert result.returncode == 0 and "--allow-scripts" in result.stdout and "exit status:" in result.stdout


# ── What a command gets ─────────────────────────────────────────────────────────────────────────────────────────────

RECORD = """
import json, os, sys
ours = {name: value for name, value in os.environ.items() if name.startswith("TRACKER_")}
json.dump({"arguments": sys.argv[1:], "environment": ours, "stdin": json.load(sys.stdin)}, open("record", "w"))
"""


def record(machine, site, project, *arguments):
    """What a command got that was run for the project's only task."""
    machine.finish(site, project, *python(RECORD, *arguments))
    return json.loads((machine.folder / "record").read_text())


def test_a_command_gets_the_task_on_standard_input_and_in_its_environment(site, machine, project):
    (task,) = submit(site, project, "https://example.org/é", priority=7)
    got = record(machine, site, project)
    assert got["stdin"]["recipe"] == "https://example.org/é" and got["stdin"]["priority"] == 7
    assert json.loads(got["environment"].pop("TRACKER_TASK")) == got["stdin"]
    del got["environment"]["TRACKER_CREDENTIALS"]
    assert got["environment"] == {
        "TRACKER_SERVER": site.url,
        "TRACKER_TASK_ID": str(task),
        "TRACKER_PROJECT": str(project),
        "TRACKER_RECIPE": "https://example.org/é",
    }


def test_placeholders_are_replaced_once_and_no_shell_sees_them(site, machine, project):
    recipe = "$(touch owned) ; * {id} {recipe} 'x"
    (task,) = submit(site, project, recipe)
    got = record(machine, site, project, "--url={recipe}", "{id}-{project}", "{other}", "{}", "{job}")
    assert got["arguments"] == [f"--url={recipe}", f"{task}-{project}", "{other}", "{}", ""]


def test_a_recipe_that_no_environment_can_hold_is_on_standard_input(site, machine, project):
    submit(site, project, "x" * 200_000)
    got = record(machine, site, project)
    assert got["stdin"]["recipe"] == "x" * 200_000
    assert not {"TRACKER_RECIPE", "TRACKER_TASK"} & set(got["environment"])


def test_a_recipe_that_is_too_long_for_an_argument_fails_with_advice(site, machine, project):
    submit(site, project, "x" * 200_000)
    result = machine.finish(site, project, "--", "true", "{recipe}", status=1)
    assert "leave {recipe} out of the arguments" in result.stderr


def test_a_command_that_does_not_read_its_input_is_fine(site, machine, project):
    submit(site, project, "x" * 200_000)
    machine.finish(site, project, "--", "true")


# ── What becomes of the task ────────────────────────────────────────────────────────────────────────────────────────


def test_every_task_is_run_once_in_order_and_closed(site, machine, project):
    submit(site, project, "a", "b", "c")
    result = machine.finish(site, project, *sh('echo "$TRACKER_RECIPE" >> ran'))
    assert (machine.folder / "ran").read_text() == "a\nb\nc\n"
    assert site.admin.counts(project) == {"closed": 3}
    assert result.stdout == "done 3, failed 0, skipped 0\n"


def test_another_exit_status_fails_the_task_and_logs_what_it_said_last(site, machine, project):
    submit(site, project, "a", "b")
    script = 'test "$TRACKER_RECIPE" = a || { echo no such page >&2; exit 3; }'
    result = machine.finish(site, project, *sh(script), status=1)
    assert result.stdout == "done 1, failed 1, skipped 0\n"
    assert site.admin.counts(project) == {"closed": 1, "failed": 1}
    assert error_lines(site) == ["exit status 3; it said last:\nno such page"]
    assert site.read("SELECT reason FROM failure") == [("exit status 3: no such page",)]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit status 3"),
        ("printf 'first\\n\\nlast \\n\\n' >&2; exit 3", "exit status 3: last"),
        ("kill -9 $$", "killed by SIGKILL"),
    ],
)
def test_a_failed_task_says_why_in_one_line(site, machine, project, script, reason):
    submit(site, project, "a")
    machine.finish(site, project, *sh(script), status=1)
    assert site.read("SELECT reason FROM failure") == [(reason,)]


def test_a_plain_task_that_succeeds_logs_nothing(site, machine, project):
    submit(site, project, "a")
    machine.finish(site, project, *sh("echo much; echo more >&2"))
    assert site.read("SELECT count(*) FROM log_entry") == [(0,)]


def test_a_failed_task_is_tried_again_while_it_has_retries(site, machine, project):
    submit(site, project, "a", max_retries=2)
    result = machine.finish(site, project, *sh("test -e once || { touch once; exit 1; }"), status=1)
    assert result.stdout == "done 1, failed 1, skipped 0\n"
    assert site.admin.counts(project) == {"closed": 1}


def test_a_signal_fails_the_task(site, machine, project):
    submit(site, project, "a")
    result = machine.finish(site, project, *sh("kill -KILL $$"), status=1)
    assert "failed: killed by SIGKILL" in result.stderr


def test_a_chosen_status_skips_the_task(site, machine, project):
    submit(site, project, "a")
    result = machine.finish(site, project, "--skip-status", "75", *sh("exit 75"))
    assert result.stdout.startswith("done 0, failed 0, skipped ")
    assert "nothing is left but what was skipped" in result.stderr
    assert site.admin.counts(project) == {"waiting": 1}


SKIP_BAD = ("--skip-status", "75", *sh('test "$TRACKER_RECIPE" = bad && exit 75; exit 0'))


def test_a_skipped_task_lets_the_others_have_their_turn(site, machine, project):
    submit(site, project, "bad", "a", "b")
    with machine.working(site, project, *SKIP_BAD):
        wait_until(lambda: site.admin.counts(project).get("closed") == 2)


def test_until_empty_tries_a_skipped_task_once_and_gives_it_back_at_the_end(site, machine, project):
    submit(site, project, "bad", "a", "b")
    result = machine.finish(site, project, *SKIP_BAD)
    assert result.stdout == "done 2, failed 0, skipped 1\n"
    assert site.admin.counts(project) == {"closed": 2, "waiting": 1}


def test_a_skipped_task_is_given_back_at_a_stop(site, machine, project):
    submit(site, project, "bad")
    with machine.working(site, project, "--verbose", *SKIP_BAD) as process:
        read_until(process.stderr, "skipped: exit status 75")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT) == 0
    assert site.admin.counts(project) == {"waiting": 1}


def test_a_task_is_held_for_longer_after_each_skip_but_not_without_bounds():
    runner = make_runner()
    assignment = worker.Assignment({"id": 1, "recipe": "a", "max_assign_time": 3600})
    first, second = (runner._release_time(assignment) for _ in range(2))
    assert second - first >= worker.Runner.FIRST_HOLD
    runner.skips[1] = 5000
    assert runner._release_time(assignment) < second + worker.Runner.LONGEST_HOLD


@pytest.mark.parametrize("options", [(), ("--until-empty",)])
def test_a_skipped_task_is_not_held_beyond_its_lease(options):
    runner = make_runner(*options)
    runner.skips[1] = 50
    (held,) = hold(runner, worker.Outcome(worker.SKIPPED, "", is_held=True), max_assign_time=4)
    assert held.release_at == held.assignment.received + 3


def test_a_held_task_is_not_due_until_its_time_or_a_stop():
    runner = make_runner()
    (held,) = hold(runner, worker.Outcome(worker.SKIPPED, "", is_held=True), max_assign_time=3600)
    held.release_at = float("inf")
    assert not runner.is_due(held) and runner.wanted() == 1
    runner.enter(worker.Phase.FINISHING)
    assert runner.is_due(held)


def test_workers_that_print_the_same_verify_a_task(site, machine, tmp_path, project):
    submit(site, project, "a", verification_count=2)
    for name, text, closed in (("one", "x", False), ("two", "y", False), ("three", "x", True)):
        credentials = tmp_path / f"{name}.json"
        machine.finish(site, project, "--credentials", credentials, *sh(f"echo {text}"))
        assert (site.admin.counts(project) == {"closed": 1}) == closed


def test_count_stops_after_so_many_tasks(site, machine, project):
    submit(site, project, "a", "b", "c")
    result = machine.run(*machine.arguments(site, project, "--count", 2, "--concurrency", 5, "--", "true"))
    assert (result.returncode, result.stdout) == (0, "done 2, failed 0, skipped 0\n")
    assert site.admin.counts(project) == {"closed": 2, "waiting": 1}


def test_tasks_of_several_projects_are_taken(site, machine, project):
    other = site.admin.create_project(public=True)
    submit(site, project, "a")
    submit(site, other, "b")
    machine.finish(site, [project, other], "--", "true")
    assert site.admin.counts(project) == site.admin.counts(other) == {"closed": 1}


def test_a_waiting_worker_takes_a_task_that_is_submitted_later(site, machine, project):
    with machine.working(site, project, *sh("touch ran")):
        wait_until(machine.credentials.exists)
        submit(site, project, "a")
        machine.made("ran")


def test_tasks_run_at_the_same_time(site, machine, project):
    submit(site, project, "a", "b")
    script = 'touch "$TRACKER_RECIPE"; while [ -d "$PWD" ] && { [ ! -e a ] || [ ! -e b ]; }; do sleep 0.02; done'
    machine.finish(site, project, "--concurrency", 2, "--timeout", 20, *sh(script))


def test_no_more_tasks_are_held_than_are_run(site, machine, project):
    submit(site, project, "a", "b", "c")
    with machine.working(site, project, *sh(UNTIL_GO)):
        machine.made("began")
        assert site.admin.counts(project) == {"assigned": 1, "waiting": 2}
        machine.go()
        wait_until(lambda: site.admin.counts(project) == {"closed": 3})


def test_a_command_that_cannot_be_started_gives_the_task_back_and_ends_the_run(site, machine, project):
    submit(site, project, "a")
    broken = machine.folder / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    result = machine.finish(site, project, "--", broken, status=2)
    assert f"cannot start {broken}" in result.stderr
    assert site.admin.counts(project) == {"waiting": 1}


def test_a_task_that_no_thread_can_be_started_for_is_skipped_and_ends_the_run(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker.Execution, "start", start)
    runner = make_runner()
    runner.start_all([worker.Assignment({"id": 1, "recipe": "a"})])
    (execution,) = runner.unsettled
    assert execution.outcome.result == worker.SKIPPED and not runner.running
    assert "can't start new thread" in str(runner.failure)


def test_a_command_whose_streams_get_no_thread_is_not_started(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker.Stream, "start", start)
    invocation = worker.Invocation(["sleep", "600"], dict(os.environ), b"", is_script=False)
    monkeypatch.setattr(worker.subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(worker.CannotRun, match="can't start new thread"):
        worker.Process(invocation, lambda *_: None)


def test_a_fault_while_taking_tasks_ends_the_run(capsys):
    runner = make_runner()
    Tracker(runner.taker.client, tasks=[{"id": 1, "recipe": "a"}])
    runner.start_all = None
    runner.taker.run()
    assert runner.has_taken_all
    with pytest.raises(worker.Fail, match="a fault of worker"):
        runner.status()


def test_a_fault_while_delivering_ends_the_run_and_releases_what_can_be(monkeypatch, capsys):
    runner = make_runner()
    hold(runner, done(), done())
    tracker = Tracker(runner.courier.client, updated=True)
    monkeypatch.setattr(runner.courier, "_send_log", lambda *_, **__: 1 // 0)
    settle, halt = runner.settle, runner.no_more_results
    monkeypatch.setattr(runner, "settle", lambda *args, **how: (settle(*args, **how), runner.unsettled or halt.set()))
    runner.courier.run()
    assert [body["task_id"] for path, body in tracker.calls if path == "/task/release"] == [1, 2]
    with pytest.raises(worker.Fail, match="a fault of worker"):
        runner.status()


# ── Processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_timeout_ends_the_process_and_its_children(site, machine, project):
    submit(site, project, "a")
    result = machine.finish(site, project, "--timeout", 0.5, *sh("sleep 600 & echo $! > child; wait"), status=1)
    assert "failed: killed after 0.5 s" in result.stderr
    assert not is_alive((machine.folder / "child").read_text().strip())
    assert site.admin.counts(project) == {"failed": 1}


def test_a_process_that_ignores_the_request_is_killed(site, machine, project):
    submit(site, project, "a")
    script = "trap '' TERM; while :; do sleep 0.05; done"
    machine.finish(site, project, "--timeout", 0.3, "--kill-grace", 0.2, *sh(script), status=1)
    assert site.admin.counts(project) == {"failed": 1}


@pytest.mark.parametrize(
    ("task", "timeout", "limit"),
    [
        ({}, None, float("inf")),
        ({}, 60, 60),
        ({"max_assign_time": 100}, None, 94),
        ({"max_assign_time": 100}, 60, 60),
        ({"max_assign_time": 100}, 1000, 94),
        ({"max_assign_time": 4}, None, 2),
        ({"max_assign_time": 0, "lease": 100}, None, 94),
        ({"max_assign_time": 100, "lease": 100}, 1000, 1000),  # this tracker gives more time
        ({"lease": 45, "job": {"timeout": 30}}, 60, 30),
        ({"job": {"timeout": 30}}, 60, 30),
        ({"max_assign_time": 45, "job": {"timeout": 30}}, 60, 30),
    ],
)
def test_the_time_limit_is_the_jobs_or_the_option_within_the_lease(task, timeout, limit):
    assert worker.Assignment({"id": 1, "recipe": "a", **task}).time_limit(timeout, grace=5) == limit


def test_a_command_that_runs_longer_than_its_lease_keeps_its_task_until_its_timeout(site, machine, project):
    submit(site, project, "a", max_assign_time=2)
    machine.finish(site, project, "--timeout", 60, *sh("sleep 4; echo x >> ran"))
    assert (machine.folder / "ran").read_text() == "x\n"
    assert site.admin.counts(project) == {"closed": 1}
    assert site.read("SELECT outcome FROM assignment") == []


def running(runner, **task):
    """Lets the runner have a task whose process goes on."""
    assignment = worker.Assignment({"id": 1, "recipe": "a", **task})
    execution = worker.Execution(assignment, runner.terms, lambda: False, runner._ended)
    runner.unsettled[execution] = runner.running[execution] = None
    return execution


@pytest.mark.parametrize(
    ("options", "task", "wants"),
    [
        (["--timeout", "1000"], {"lease": 100, "attempt": 3}, True),
        (["--timeout", "50"], {"lease": 100}, False),  # it ends before its lease does
        ([], {"lease": 100}, False),
        (["--timeout", "1000"], {"max_assign_time": 100}, False),  # that tracker knows of no extensions
        (["--timeout", "1000"], {"lease": 45, "job": {"timeout": 30}}, False),
    ],
)
def test_a_lease_is_extended_when_half_of_it_is_over_and_the_command_may_run_on(options, task, wants):
    execution = running(make_runner(*options), **task)
    received = execution.assignment.received
    assert not execution.wants_time(received + 0.4 * task.get("lease", 100))
    assert execution.wants_time(received + 0.6 * task.get("lease", 100)) == wants


def test_what_the_tracker_says_of_an_extension_is_heeded():
    runner = make_runner("--timeout", "1000")
    kept, lost = running(runner, lease=100, attempt=3), running(runner, lease=100)
    for execution in kept, lost:
        execution.assignment.hold_until(time.monotonic() + 10)
    answers = [{"held": True, "left": 100}, {"held": False, "left": 0}]
    tracker = Tracker(runner.keeper.client, extensions=answers, held=True)
    runner.keeper.keep()
    wishes = [{"task_id": 1, "seconds": 100, "attempt": attempt} for attempt in (3, 0)]
    assert tracker.calls[0] == ("/task/extend", {"extensions": wishes})
    assert (kept.cause, lost.cause) == (None, worker.Cause.TAKEN_AWAY)
    assert not kept.wants_time(time.monotonic())


def test_a_command_whose_lease_is_not_extended_ends_before_it():
    runner = make_runner("--timeout", "1000")
    execution = running(runner, lease=100)
    execution.assignment.hold_until(execution.began + 40)
    Tracker(runner.keeper.client, "/task/extend", held=True)
    runner.keeper.keep()
    assert execution.limit == pytest.approx(34) and not execution.wants_time(execution.began + 39)


def test_a_release_says_of_which_assignment_it_speaks():
    runner = make_runner()
    (execution,) = hold(runner, done(), lease=100, attempt=7)
    assert runner.courier._body(execution) == {"task_id": 1, "result": 0, "attempt": 7}


def test_who_is_paused_for_its_failures_is_told_so(site, machine, project):
    submit(site, project, *map(str, range(60)))
    result = machine.finish(site, project, "--concurrency", 5, "--", "false", status=1)
    assert "You have failed one task after the other" in result.stderr
    assert site.admin.counts(project)["waiting"] > 0


def test_until_empty_waits_for_tasks_that_are_delayed(site, machine, project):
    submit(site, project, "a", delay=1.5)
    machine.finish(site, project, "--", "true")
    assert site.admin.counts(project) == {"closed": 1}


def test_until_empty_waits_for_no_delayed_task_of_a_paused_project(site, machine, project):
    submit(site, project, "a", delay=600)
    site.admin.update_project(project, paused=True)
    machine.finish(site, project, "--", "true")
    assert site.admin.counts(project) == {"delayed": 1}


def test_until_empty_tries_a_task_again_that_rests_after_a_failure(site, machine, project):
    site.admin.update_project(project, retry_delay=0.5)
    submit(site, project, "a", max_retries=3)
    machine.finish(site, project, *sh("echo x >> ran; test $(wc -l < ran) -eq 3"), status=1)
    assert site.admin.counts(project) == {"closed": 1}


def test_a_child_that_has_left_the_group_and_holds_the_pipes_keeps_nobody_waiting(site, machine, project):
    submit(site, project, "a")
    leave = (
        "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, env={}).pid,"
        " file=open('c', 'w'))"
    )
    machine.finish(site, project, *python(leave))
    child = int((machine.folder / "c").read_text())
    assert is_alive(child) and site.admin.counts(project) == {"closed": 1}
    os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not give us orphans")
def test_children_that_have_left_the_group_are_killed_with_theirs(site, machine, project):
    """Also while another command runs, which keeps its own."""
    submit(site, project, "a", "b")
    line = """setsid sh -c 'setsid sleep 600 & echo $! > grandchild-{recipe}; sleep 600' & echo $! > child-{recipe}"""
    rest = "while ! test -s grandchild-{recipe}; do sleep 0.05; done; test {recipe} = a || sleep 600"
    with machine.working(site, project, "--concurrency", 2, *sh(f"{line}\n{rest}")):
        left = {name: machine.wrote(name) for name in ("grandchild-b", "child-a", "grandchild-a")}
        wait_until(lambda: not is_alive(left["child-a"]) and not is_alive(left["grandchild-a"]))
        assert is_alive(left["grandchild-b"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(left["grandchild-b"]), signal.SIGKILL)


def test_a_child_that_outlives_its_parent_is_killed(site, machine, project):
    submit(site, project, "a")
    machine.finish(site, project, *sh("sleep 600 & echo $! > child"))
    assert not is_alive((machine.folder / "child").read_text().strip())


def test_a_process_that_has_ended_by_itself_keeps_its_result_at_a_stop():
    (execution,) = hold(make_runner(), done())
    execution.process = types.SimpleNamespace(has_exited=True)
    execution.stop(worker.Cause.STOPPED)
    assert execution.cause is None


def test_little_of_a_line_without_an_end_is_kept_before_it_is_taken(tmp_path):
    stream = worker.Stream("stdout", lambda name, piece, *_: take(piece))
    taken, kept = 0, []

    def take(piece):
        nonlocal taken
        kept.append(os.lseek(stream.reading, 0, os.SEEK_CUR) - taken)
        taken += len(piece)

    written = tmp_path / "written"
    written.write_bytes(b"x" * 3_000_000 + stream.mark)
    with written.open("rb") as file:
        os.dup2(file.fileno(), stream.reading)
    stream.run()
    assert taken == 3_000_000 and max(kept) < 2 * 65536 + len(stream.mark)


# ── Servers that pause, refuse or go away ───────────────────────────────────────────────────────────────────────────


def test_a_paused_worker_says_so_and_goes_on_later(site, machine, project):
    machine.finish(site, project, "--", "true")
    number = machine.stored_credentials()[site.url]["id"]
    site.admin.post("/worker/set_paused", {"worker": number, "paused": True})
    submit(site, project, "a")
    with machine.working(site, project, "--count", 1, "--", "true") as process:
        read_until(process.stderr, "a manager has paused this worker")
        site.admin.post("/worker/set_paused", {"worker": number, "paused": False})
        assert process.wait(PATIENT) == 0
    assert site.admin.counts(project) == {"closed": 1}


def test_a_paused_project_is_named(site, machine, project):
    site.admin.update_project(project, paused=True)
    submit(site, project, "a")
    result = machine.finish(site, project, "--", "true")
    assert f"no task available: project {project} paused by a manager" in result.stderr


def test_withdrawn_access_lets_the_running_task_finish_and_ends_the_run(site, machine):
    project = site.admin.create_project()
    submit(site, project, "a", "b")
    machine.finish(site, project, "--", "true", status=2)
    number = machine.stored_credentials()[site.url]["id"]
    site.admin.post(f"/project/accept_request/{project}/{number}")
    with machine.working(site, project, *sh(UNTIL_GO)) as process:
        machine.made("began")
        site.admin.post(f"/project/reject_request/{project}/{number}")
        machine.go()
        _, stderr = process.communicate(timeout=PATIENT)
    assert process.returncode == 2 and f"/project/accept_request/{project}/{number}" in stderr
    assert site.admin.counts(project) == {"closed": 1, "waiting": 1}


def test_a_task_that_is_taken_back_has_its_process_killed(site, machine, project):
    (task,) = submit(site, project, "a")
    with machine.working(site, project, "--heartbeat", 0.2, *sh("echo $$ > began; sleep 600")) as process:
        shell = machine.wrote("began")
        site.admin.post(f"/project/hard_reset/{project}")
        read_until(process.stderr, f"task {task} (a) was taken away")
        assert not is_alive(shell)


def test_a_task_that_comes_back_after_its_lease_ends_its_earlier_run(site, machine, project, clock):
    submit(site, project, "a", max_assign_time=60)
    options = ("--concurrency", 2, "--heartbeat", 600, "--count", 2, *sh(f"echo $$ >> ran; {UNTIL_GO}"))
    with machine.working(site, project, *options) as process:
        machine.made("began")
        clock.pass_time(61)
        first, second = wait_until(lambda: len(found := (machine.folder / "ran").read_text().split()) == 2 and found)
        wait_until(lambda: not is_alive(first))
        assert is_alive(second)
        machine.go()
        stdout, _ = process.communicate(timeout=PATIENT)
    assert stdout == "done 1, failed 0, skipped 0, taken away 1\n"
    assert site.admin.counts(project) == {"closed": 1}


def test_a_server_that_is_not_there_at_first_is_a_wrong_address(machine, site, project):
    machine.finish(site, project, "--", "true")
    known = machine.stored_credentials()[site.url]
    address = f"http://127.0.0.1:{free_port()}"
    machine.credentials.write_text(json.dumps({"servers": {address: known}}))
    result = machine.finish(address, 1, "--", "true", status=2)
    assert len(result.stderr.splitlines()) == 1 and "no answer from" in result.stderr


def test_an_outage_is_one_line_at_first(capsys):
    display = worker.RunDisplay("http://tracker")
    display.lost("http://tracker", "connection refused")
    display.waiting("no answer for 0.5 s")
    assert capsys.readouterr().err == "no answer from http://tracker (connection refused); trying until it is back\n"


# ── Delivery ────────────────────────────────────────────────────────────────────────────────────────────────────────


def deliver(runner):
    runner.courier._deliver(runner.undelivered(0))


def test_plain_tasks_that_have_ended_are_released_together():
    runner = make_runner()
    hold(runner, done(), worker.Outcome(worker.FAILED, "exit status 1"))
    tracker = Tracker(runner.courier.client, updated=[True, False])
    for execution in runner.unsettled:
        execution.log.close()
    deliver(runner)
    releases = [{"task_id": 1, "result": 0}, {"task_id": 2, "result": 1, "error": "exit status 1"}]
    assert tracker.calls == [("/task/bulk_release", {"releases": releases})]
    assert runner.tally == worker.Tally(done=1, lost=1) and not runner.unsettled


def test_tasks_whose_common_release_is_refused_are_released_one_by_one():
    runner = make_runner()
    hold(runner, done(), done())
    tracker = Tracker(runner.courier.client, "/task/bulk_release", updated=True)
    deliver(runner)
    assert tracker.paths() == ["/task/bulk_release", "/task/release", "/task/release"]
    assert runner.tally == worker.Tally(done=2)


def test_a_refused_result_is_said_once_and_makes_the_exit_status_2(capsys):
    runner = make_runner()
    hold(runner, done())
    Tracker(runner.courier.client, "/task/release")
    deliver(runner)
    assert capsys.readouterr().err == ("task 1 (a) done: exit status 0; but the tracker refuses that: no such thing\n")
    assert runner.status() == 2 and runner.tally.text().endswith("refused 1")


def test_a_log_that_the_tracker_stores_no_more_of_is_not_sent_further():
    runner = make_runner()
    (execution,) = hold(runner, done(), job={"id": "x"})
    execution.log.add("info", "stdout", "one")
    Tracker(runner.courier.client, held=True, stored=0)
    runner.courier._send_log(execution, all_of_it=False)
    assert execution.log.is_closed


def test_a_log_goes_on_after_lines_for_which_there_was_no_room():
    runner = make_runner()
    (execution,) = hold(runner, done(), job={"id": "x"})
    execution.log.add("info", "stdout", "one")
    Tracker(runner.courier.client, held=True, stored=0, dropped_by="stranger_job_rate")
    runner.courier._send_log(execution, all_of_it=False)
    assert not (execution.log.is_closed or execution.log.entries) and execution.log.first == 1


class Hindrance:
    """A proxy in front of a tracker to which something happens to some of the calls that say something of task 1."""

    def __init__(self, server, path, happens):
        self.server, self.path, self.happens = server, path, happens
        self.calls = []  # the paths of all calls
        self.hindered = 0
        self.is_over = threading.Event()

    @contextlib.contextmanager
    def running(self):
        hindrance = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0]
                hindrance.calls.append(path)
                if path == hindrance.path and json.loads(body)["task_id"] == 1:
                    hindrance.hindered += 1
                    return hindrance.happens(self)
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                address = hindrance.server + self.path
                answer = httpx.request(self.command, address, content=body, headers=headers, timeout=PATIENT)
                return self.answer(answer.status_code, answer.content)

            do_GET = do_POST = forward

            def answer(self, status, content, **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        with listening(Handler) as self.url:
            try:
                yield self
            finally:
                self.is_over.set()

    def refuses(self, handler):
        handler.answer(429, b'{"ok": false, "message": "too much", "rate_limit_delay": 600}', Retry_After=600)

    def is_unavailable(self, handler):
        handler.answer(503, b'{"ok": false, "message": "too full"}', Retry_After=600)

    def is_no_gateway(self, handler):
        handler.answer(502, b"<html>Bad Gateway</html>")

    def loses_it(self, handler):
        handler.close_connection = True

    def is_slow(self, handler):
        self.is_over.wait()
        handler.close_connection = True


HINDRANCES = [
    pytest.param(path, getattr(Hindrance, happens), id=f"{path.rpartition('/')[2]} {happens}")
    for path, happens in (
        ("/task/release", "refuses"),
        ("/task/release", "is_unavailable"),
        ("/task/release", "is_no_gateway"),
        ("/task/release", "loses_it"),
        ("/task/release", "is_slow"),
        ("/task/log", "is_no_gateway"),
        ("/task/log", "is_slow"),
    )
]


@contextlib.contextmanager
def hindered(machine, site, project, path, happens):
    """A worker whose first job, which has ended, is hindered, while `go` ends all that it does else."""
    create_job(site, project, recipe="first")
    proxy = Hindrance(site.url, path, lambda handler: happens(proxy, handler))
    script = f'echo said; [ "$TRACKER_RECIPE" = first ] || {{ {UNTIL_GO}; }}'
    options = ("--concurrency", 3, "--timeout", 1000, *sh(script))
    with proxy.running(), machine.working(proxy.url, project, *options):
        wait_until(lambda: proxy.hindered)
        yield proxy


@pytest.mark.parametrize(("path", "happens"), HINDRANCES)
def test_what_one_job_has_to_wait_for_holds_up_no_other(site, machine, project, path, happens):
    with hindered(machine, site, project, path, happens):
        second = trigger(site, create_template(site, project, name="second", recipe="second"))
        wait_until(lambda: messages(site, second) == ["said"])
        machine.go()
        wait_until(lambda: job(site, second)["state"] == "succeeded")


@pytest.mark.parametrize(("path", "happens"), HINDRANCES)
def test_leases_are_extended_and_plain_tasks_released_while_a_job_has_to_wait(site, machine, project, path, happens):
    with hindered(machine, site, project, path, happens) as proxy:
        submit(site, project, "plain", max_assign_time=2)
        machine.made("began")
        wait_until(lambda: proxy.calls.count("/task/extend") >= 3)
        machine.go()
        wait_until(lambda: site.read("SELECT COUNT(*) FROM task WHERE project = ?", project) == [(1,)])


def test_a_task_that_has_ended_is_held_until_it_could_be_released():
    runner = make_runner("--timeout", "1000")
    (execution,) = hold(runner, done(), lease=100)
    assert execution.wants_time(time.monotonic() + 60)
    (_, skipped) = hold(runner, worker.Outcome(worker.SKIPPED, "exit status 3", is_held=True), lease=100)
    assert not skipped.wants_time(time.monotonic() + 60)


def test_what_a_job_says_arrives_in_order_though_others_bring_it(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh("for i in $(seq 300); do echo $i; sleep 0.003; done"))
    assert messages(site, token) == [*map(str, range(1, 301))]


class Elsewhere:
    """A tracker in a process of its own, which can be killed and started again."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def running(self):
        return tracker_process(self.folder, self.port)


@pytest.fixture
def elsewhere(tmp_path):
    return Elsewhere(tmp_path)


def test_result_and_log_are_kept_while_the_server_is_away_and_stored_once(machine, elsewhere):
    script = f"echo 1; {UNTIL_GO}; seq 2 200; touch printed; sleep 0.2; echo end"
    with contextlib.ExitStack() as stack:
        with elsewhere.running() as server:
            admin = Manager(elsewhere.url, "admin")
            elsewhere.admin = admin
            token = create_job(elsewhere, admin.create_project(public=True), recipe="a")
            options = ("--count", 1, *sh(script))
            process = stack.enter_context(machine.working(elsewhere.url, 1, *options))
            wait_until(lambda: messages(elsewhere, token) == ["1"])
            server.send_signal(signal.SIGKILL)
        machine.go()
        read_until(process.stderr, "trying until it is back")
        machine.made("printed")
        with elsewhere.running():
            assert process.wait(PATIENT) == 0
            assert messages(elsewhere, token) == [*map(str, range(1, 201)), "end"]
            assert job(elsewhere, token)["state"] == "succeeded"


def test_a_result_that_cannot_be_delivered_is_named(machine, elsewhere):
    with contextlib.ExitStack() as stack:
        with elsewhere.running() as server:
            admin = Manager(elsewhere.url, "admin")
            project = admin.create_project(public=True)
            admin.grant(Worker(elsewhere.url), project).submit(project, "a")
            process = stack.enter_context(machine.working(elsewhere.url, project, *sh(UNTIL_GO)))
            machine.made("began")
            server.send_signal(signal.SIGKILL)
        machine.go()
        read_until(process.stderr, "trying until it is back")
        for said in ("stopping", "killing"):
            process.send_signal(signal.SIGINT)
            read_until(process.stderr, said)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENT)
    assert process.returncode == 2 and "not released: task 1" in stderr


# ── Stopping ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def one_running_one_waiting(site, machine, project, *options):
    """A worker that runs a task until there is a file `go`, or until it is killed; another task is waiting."""
    submit(site, project, "a", "b")
    with machine.working(site, project, *options, *sh(UNTIL_GO)) as process:
        machine.made("began")
        yield process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_the_first_signal_lets_the_running_task_finish(site, machine, project, number, status):
    with one_running_one_waiting(site, machine, project) as process:
        process.send_signal(number)
        read_until(process.stderr, "stopping: 1 running may finish")
        machine.go()
        stdout, _ = process.communicate(timeout=PATIENT)
    assert (process.returncode, stdout) == (status, "done 1, failed 0, skipped 0\n")
    assert site.admin.counts(project) == {"closed": 1, "waiting": 1}


def test_the_second_signal_kills_the_running_task_and_skips_it(site, machine, project):
    with one_running_one_waiting(site, machine, project) as process:
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "stopping: 1 running may finish")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=PATIENT)
    assert (process.returncode, stdout) == (130, "done 0, failed 0, skipped 1\n")
    assert site.admin.counts(project) == {"waiting": 2}


def test_grace_ends_the_wait_for_the_running_task(site, machine, project):
    with one_running_one_waiting(site, machine, project, "--grace", 0.3) as process:
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=PATIENT)
    assert (process.returncode, stdout) == (143, "done 0, failed 0, skipped 1\n")
    assert site.admin.counts(project) == {"waiting": 2}


def test_a_worker_without_a_task_stops_at_the_first_signal(site, machine, project):
    with machine.working(site, project, "--verbose", "--", "true") as process:
        submit(site, project, "a")
        read_until(process.stderr, "done: exit status 0")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENT) == 130
    submit(site, project, "b")
    assert site.admin.counts(project) == {"closed": 1, "waiting": 1}


def test_a_stop_waits_for_the_answer_that_may_bring_a_task_but_not_for_ever():
    runner = make_runner()
    runner.enter(worker.Phase.FINISHING)
    runner.phase_began -= worker.Taker.WAIT + 1
    assert not runner._is_finished()
    runner.phase_began -= 600
    assert runner._is_finished()


def test_a_task_that_arrives_after_the_signal_is_given_back():
    runner = make_runner()
    runner.enter(worker.Phase.FINISHING)
    runner.start_all([worker.Assignment({"id": 1, "recipe": "a"})])
    (execution,) = runner.unsettled
    assert execution.outcome.result == worker.SKIPPED and runner.is_due(execution)


# ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_command_prints_is_the_log_and_the_result_of_the_job(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh("echo one; echo two >&2; sleep 0.1; printf '\\nthree'"))
    logged = entries(site, token)
    assert [line for line in logged if line[1] == "stdout"] == [
        ("info", "stdout", text) for text in ("one", "", "three")
    ]
    assert [line for line in logged if line[1] == "stderr"] == [("info", "stderr", "two")]
    result = job(site, token)["result"]
    assert sorted(result.pop("log").split("\n")) == ["", "one", "three", "two"]
    assert set(result.pop("times")) == {"seconds", "nanoseconds"}
    assert result == {"code": 0, "lastline": "three", "signal": None, "killed": False}
    assert job(site, token)["state"] == "succeeded"


def test_lines_are_logged_while_the_command_runs(site, machine, project):
    token = create_job(site, project, recipe="a")
    with machine.working(site, project, *sh(f"echo early; {UNTIL_GO}; echo late")):
        wait_until(lambda: messages(site, token) == ["early"])
        machine.go()
        wait_until(lambda: job(site, token)["state"] == "succeeded")
    assert messages(site, token) == ["early", "late"]


def test_lines_that_a_child_prints_after_its_parents_end_are_logged(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh("(sleep 0.2; echo late) & echo early"))
    assert messages(site, token) == ["early", "late"]


def test_a_job_that_fails_says_why_in_its_log_and_result(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh("echo hm; exit 3"), status=1)
    assert entries(site, token) == [("info", "stdout", "hm"), ("error", "run", "exit status 3")]
    assert job(site, token)["state"] == "failed" and job(site, token)["result"]["code"] == 3


def test_the_signal_that_ended_a_job_is_in_its_result(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh("kill -USR1 $$"), status=1)
    result = job(site, token)["result"]
    assert (result["code"], result["signal"], result["killed"]) == (None, "SIGUSR1", False)


def test_a_jobs_timeout_kills_its_process(site, machine, project):
    token = create_job(site, project, recipe="a", timeout=0.5)
    machine.finish(site, project, *sh("echo $$ > began; exec sleep 600"), status=1)
    assert not is_alive((machine.folder / "began").read_text().strip())
    assert job(site, token)["state"] == "timed_out" and job(site, token)["result"]["killed"] is True
    assert entries(site, token) == [("error", "run", "killed after 0.5 s")]


def test_cancelling_a_silent_job_kills_its_process(site, machine, project):
    token = create_job(site, project, recipe="a")
    with machine.working(site, project, "--heartbeat", 0.2, *sh("echo $$ > began; exec sleep 600")) as process:
        sleeper = machine.wrote("began")
        assert site.admin.post(f"/job/cancel/{token}").status_code < 300
        read_until(process.stderr, "was taken away")
        assert not is_alive(sleeper)
    assert job(site, token)["state"] == "cancelled" and job(site, token)["result"] is None


def test_standard_error_has_the_level_that_is_asked_for(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, "--stderr-level", "warn", *sh("echo careful >&2"))
    assert entries(site, token) == [("warn", "stderr", "careful")]
    assert job(site, token)["warned"] is True


def test_bytes_that_are_no_text_do_not_break_the_log(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh(r"printf 'a\377b\000c\r\n'"))
    assert messages(site, token) == ["a\ufffdb\ufffdc"]


def test_a_line_that_is_too_long_for_one_entry_is_several(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *python("print('x' * 150_000, end='')"))
    assert [len(message) for message in messages(site, token)] == [60_000, 60_000, 30_000]


def test_a_large_log_arrives_in_order(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *sh("seq 1 20000"))
    stored = [row[0] for row in site.read("SELECT message FROM job_line WHERE worker <> 0 ORDER BY number")]
    assert stored == [str(number) for number in range(1, 20_001)]
    assert job(site, token)["result"]["lastline"] == "20000" and not job(site, token)["warned"]


ENDLESS = "echo $$ > began; exec yes $(printf %01000d 0)"  # more than a tracker stores


def test_a_timeout_ends_a_command_that_waits_for_its_log(site, machine, project):
    token = create_job(site, project, recipe="a", timeout=0.5)
    machine.finish(site, project, *sh(ENDLESS), status=1)
    assert job(site, token)["state"] == "timed_out"
    scopes = dict(site.read("SELECT scope, count(*) FROM job_line WHERE worker <> 0 GROUP BY scope"))
    assert set(scopes) <= {"stdout", "run"} and scopes.get("run", 0) <= 1  # why it ended, and nothing of dropped lines


def test_cancelling_ends_a_command_that_waits_for_its_log(site, machine, project):
    token = create_job(site, project, recipe="a")
    with machine.working(site, project, *sh(ENDLESS)) as process:
        shell = machine.wrote("began")
        wait_until(lambda: site.read("SELECT count(*) FROM job_line WHERE scope = 'stdout'") > [(500,)])
        assert site.admin.post(f"/job/cancel/{token}").status_code < 300
        read_until(process.stderr, "was taken away")
        assert not is_alive(shell)


@pytest.mark.parametrize("quotes", [False, True])
def test_a_last_line_that_is_json_is_kept_whole(site, machine, project, quotes):
    token = create_job(site, project, recipe="a")
    data = ["xé" * 50_000 + '"' * 100_000 * quotes]
    code = f"""
import json
print("before", json.dumps({{"state": "failure", "data": [1]}}), flush=True)
print(json.dumps({{"state": "failure", "data": ["xé" * 50_000 + '"' * {100_000 * quotes}]}}, ensure_ascii=False))
"""
    machine.finish(site, project, *python(code))
    ended = job(site, token)
    assert (ended["state"], ended["reported"], ended["output"]) == ("failed", "failure", data)


def test_a_long_last_line_that_is_no_json_is_kept_in_part(site, machine, project):
    token = create_job(site, project, recipe="a")
    machine.finish(site, project, *python("print('x' * 200_000)"))
    assert len(job(site, token)["result"]["lastline"]) == worker.Stream.LONGEST_LINE


def test_a_result_that_is_too_large_for_the_tracker_is_shortened(make_site, machine):
    site = make_site(max_body=16)
    token = create_job(site, site.admin.create_project(public=True), recipe="a")
    result = machine.finish(site, 1, *python("print('x' * 50_000)"))
    assert "log lines of task 1 refused" in result.stderr
    assert job(site, token)["state"] == "succeeded" and job(site, token)["result"]["log"] == "x" * 1999 + "\n"


def test_a_command_gets_the_jobs_variables_and_arguments(site, machine, project):
    given = {"variables": {"page": "a b", "depth": 3, "no-name": "x"}, "arguments": ["1 2", "-x"]}
    declared = [{"order": 0, "type": "input"}, {"order": 1, "type": "input"}]
    token = create_job(site, project, given, recipe="a", arguments=declared)
    got = record(machine, site, project, "{job}", "{arguments}", "end")
    assert got["arguments"] == [token, "1 2", "-x", "end"]
    ours = {name: got["environment"][name] for name in got["environment"] if name.startswith("TRACKER_VAR")}
    assert ours == {"TRACKER_VAR_page": "a b", "TRACKER_VAR_depth": "3"}
    assert got["environment"]["TRACKER_JOB"] == token and got["environment"]["TRACKER_TEMPLATE"] == "template"
    assert got["stdin"]["job"]["variables"]["no-name"] == "x"


def test_a_variable_that_no_environment_can_hold_is_named_and_the_job_succeeds(site, machine, project):
    given = {"variables": {"page": "x" * 100_000, "no-name": "x", "depth": 3}}
    token = create_job(site, project, given, recipe="a")
    machine.finish(site, project, *sh('echo "$TRACKER_VAR_depth"'))
    said = "left out of the environment, which cannot hold them: page, no-name"
    assert [entry[::2] for entry in entries(site, token)] == [("info", said), ("info", "3")]
    assert not job(site, token)["warned"]


# ── Scripts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_jobs_script_is_run_with_its_arguments_and_environment(site, machine, project):
    script = '#!/bin/sh\necho "$COLOUR $1"\nls -ld "${0%/*}" "$0" | cut -c1-10\necho "$0" > where\n'
    fields = {"script": script, "env": {"COLOUR": "red"}, "arguments": [{"order": 0, "type": "input"}]}
    token = create_job(site, project, {"arguments": ["x y"]}, **fields)
    machine.finish(site, project, "--allow-scripts")
    assert messages(site, token) == ["red x y", "drwx------", "-rwx------"]
    assert not Path((machine.folder / "where").read_text().strip()).parent.exists()


def test_empty_variables_and_values_are_set_as_empty(site, machine, project):
    machine.env["COLOUR"] = "the worker's own"
    script = 'echo "[${COLOUR-unset}] [${TRACKER_VAR_page-unset}]"'
    token = create_job(site, project, script=script, env={"COLOUR": ""}, variables=[{"name": "page", "value": ""}])
    machine.finish(site, project, "--allow-scripts")
    assert messages(site, token) == ["[] []"]


def test_a_script_is_not_run_unless_that_is_allowed(site, machine, project):
    token = create_job(site, project, script="#!/bin/sh\ntouch ran\n")
    machine.finish(site, project, *sh("touch ran"), status=1)
    assert not (machine.folder / "ran").exists()
    assert job(site, token)["state"] == "failed"
    (line,) = entries(site, token)
    assert line[0] == "error" and "without --allow-scripts" in line[2]


def test_an_environment_from_the_server_is_not_set_unless_scripts_are_allowed(site, machine, project):
    create_job(site, project, recipe="a", env={"BASH_ENV": "$(touch owned)", "TRACKER_OWNED": "x"})
    machine.finish(site, project, *sh('echo "${BASH_ENV-unset} ${TRACKER_OWNED-unset}" > said'))
    assert (machine.folder / "said").read_text() == "unset unset\n"


def test_a_script_without_a_first_line_is_run_by_the_shell(site, machine, project):
    token = create_job(site, project, script="echo shell")
    machine.finish(site, project, "--allow-scripts")
    assert messages(site, token) == ["shell"]


def test_runas_says_how_a_script_is_run(site, machine, project):
    runas = f"{shlex.quote(sys.executable)} -u '%script%' first"
    fields = {"script": "import sys; print(sys.argv[1:])", "runas": runas}
    token = create_job(site, project, {"arguments": ["x"]}, arguments=[{"order": 0, "type": "input"}], **fields)
    machine.finish(site, project, "--allow-scripts")
    assert messages(site, token) == ["['first', 'x']"]


def test_a_script_whose_interpreter_is_missing_fails_and_the_worker_goes_on(site, machine, project):
    token = create_job(site, project, script="#!/no/such/interpreter\n", priority=1)
    submit(site, project, "a")
    machine.finish(site, project, "--allow-scripts", "--", "true", status=1)
    assert job(site, token)["state"] == "failed"
    assert "#!/no/such/interpreter, names no program here" in messages(site, token)[0]
    assert site.admin.counts(project)["closed"] == 1


def test_a_script_with_the_line_ends_of_windows_is_told_so(site, machine, project):
    token = create_job(site, project, script="#!/bin/sh\r\necho a\r\n")
    machine.finish(site, project, "--allow-scripts", status=1)
    assert "its #! line ends in a carriage return" in messages(site, token)[0]


def test_an_argument_that_is_too_long_for_a_script_fails_with_advice(site, machine, project):
    declared = [{"order": 0, "type": "input"}]
    token = create_job(site, project, {"arguments": ["x" * 200_000]}, script="true", arguments=declared)
    machine.finish(site, project, "--allow-scripts", status=1)
    assert "reach a script on standard input" in messages(site, token)[0]


def test_a_task_without_a_script_needs_a_command(site, machine, project):
    submit(site, project, "a")
    machine.finish(site, project, "--allow-scripts", status=1)
    assert "without a COMMAND" in error_lines(site)[0]


# ── What is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_beyond_a_bound_are_dropped_and_counted():
    log = worker.TaskLog(is_away=lambda: True)
    for _ in range(worker.TaskLog.MOST // 1000):
        log.add("info", "stdout", "x" * 1000)
    assert log.dropped > 0
    dropped, kept = log.dropped, len(log.entries)
    log.end("exit status 1")
    assert kept + dropped == worker.TaskLog.MOST // 1000
    note, reason = list(log.entries)[-2:]
    assert note["message"].startswith(f"{dropped} lines dropped") and note["level"] == "info"
    assert reason["message"] == "exit status 1"


def test_a_full_log_has_its_command_wait_until_lines_were_sent():
    log = worker.TaskLog(is_away=lambda: False)
    for _ in range(9):
        log.add("info", "stdout", "x" * 60_000)
    adding = threading.Thread(target=log.add, args=("info", "stdout", "last"), daemon=True)
    adding.start()
    adding.join(0.1)
    assert adding.is_alive()
    log.sent(1)
    adding.join(PATIENT)
    assert log.entries[-1]["message"] == "last" and log.dropped == 0


def test_entries_stay_until_they_are_stored_and_keep_their_numbers():
    log = worker.TaskLog(is_away=lambda: True)
    for number in range(3):
        log.add("info", "stdout", str(number))
    assert [entry["message"] for entry in log.batch()] == ["0", "1", "2"] and log.first == 0
    log.sent(2)
    assert [entry["message"] for entry in log.batch()] == ["2"] and log.first == 2


def test_a_batch_has_a_size_that_a_tracker_takes():
    log = worker.TaskLog(is_away=lambda: True)
    for _ in range(30):
        log.add("info", "stdout", "\U0001f600" * 10_000)
    assert len(log.batch()) >= 1 and len(json.dumps(log.batch())) < 1024 * 1024


def test_a_tail_keeps_the_last_lines_that_fit():
    tail = worker.Tail(10)
    for line in ("one", "two", "three", "four"):
        tail.add(line)
    assert tail.text() == "three\nfour"


# ── What is shown ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_shows_what_runs(site, machine, project):
    submit(site, project, "https://example.org/page")
    arguments = machine.arguments(site, project, "--count", 1, *sh(UNTIL_GO))
    with on_terminal(machine, *arguments) as (process, screen):
        wait_until(lambda: "https://example.org/page" in screen() and "running 1" in screen())
        machine.go()
        wait_until(lambda: "done 1, failed 0" in screen() and process.poll() is not None)
        assert process.returncode == 0


def test_a_long_recipe_leaves_room_for_the_id_and_the_time():
    runner = make_runner()
    assignment = worker.Assignment({"id": 123456, "recipe": "b" * 300})
    runner.running[worker.Execution(assignment, runner.terms, lambda: False, runner._ended)] = None
    console = worker.Console(width=60)
    with console.capture() as shown:
        console.print(runner.display._picture(runner))
    (row,) = [line for line in shown.get().splitlines() if "bbb" in line]
    number, elapsed, unit, recipe = row.split()
    assert (number, unit) == ("123456", "s") and float(elapsed) >= 0 and recipe.startswith("bbb")


def test_a_terminal_that_goes_away_at_the_end_is_no_error(monkeypatch):
    def stop(self):
        raise OSError("Input/output error")

    display = worker.RunDisplay("http://tracker")
    display.console = worker.Console(force_terminal=True, file=open(os.devnull, "w"))  # noqa: SIM115
    monkeypatch.setattr(worker.Live, "stop", stop)
    with display.screen():
        pass
    assert display.live is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that takes nothing")
def test_a_standard_output_that_takes_nothing_is_no_error(site, machine, project):
    submit(site, project, "a")
    with open("/dev/full", "w") as full:
        result = machine.run(*machine.arguments(site, project, "--until-empty", "--", "true"), stdout=full)
    assert result.returncode == 0 and "Traceback" not in result.stderr


def test_a_reader_of_standard_error_that_goes_away_stops_nothing(site, machine, project):
    submit(site, project, "a", "b", "c")
    with machine.working(site, project, "--until-empty", *sh(f"{UNTIL_GO}; exit 1")) as process:
        machine.made("began")
        process.stderr.close()
        machine.go()
        assert process.wait(PATIENT) == 1
    assert site.admin.counts(project) == {"failed": 3}


def test_a_file_gets_plain_lines_only(site, machine, project):
    submit(site, project, "\x1b[2Jname")
    result = machine.finish(site, project, *sh("exit 1"), status=1)
    assert "\x1b" not in result.stdout + result.stderr and "\r" not in result.stderr
    assert "failed: exit status 1" in result.stderr


def test_verbose_shows_every_line_and_every_end(site, machine, project):
    (task,) = submit(site, project, "a")
    result = machine.finish(site, project, "--verbose", *sh("echo hello"))
    assert f"{task}: hello\n" in result.stderr and f"task {task} (a) done: exit status 0\n" in result.stderr
