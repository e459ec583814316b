"""worker.py as a library: what a worker of one's own in Python is written with, against a real tracker."""

import gzip
import itertools
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from conftest import Site, wait_until
from test_worker import WORKER_PY, free_port, losing, posix_only, tracker_process

import tracker
import worker
from worker import Fail, Refused, Tracker, Unreachable


@pytest.fixture(autouse=True)
def credentials(tmp_path, monkeypatch):
    """Nobody's own ones."""
    monkeypatch.setenv("TRACKER_CREDENTIALS", str(tmp_path / "credentials.json"))
    return tmp_path / "credentials.json"


@pytest.fixture
def project(site):
    """A project whose tasks everybody may be assigned."""
    return site.admin.create_project(public=True)


@pytest.fixture
def mine(site, project):
    """A worker that may be assigned and submit the project's tasks."""
    with Tracker(site.url, "mine") as mine:
        grant(site, mine, project)
        yield mine


def grant(site: Site, mine: Tracker, project: int) -> None:
    mine.client.call("POST", "/project/request_access", {"project": project, "assign": True, "submit": True})
    accept(site, mine, project)


def accept(site: Site, mine: Tracker, project: int) -> None:
    assert site.admin.post(f"/project/accept_request/{project}/{mine.worker.id}").status_code == 200


def submit(site: Site, project: int, *recipes: str, **fields) -> None:
    submitter = site.create_worker(project)
    for recipe in recipes:
        assert submitter.submit(project, recipe, **fields).json()["ok"]


def counts(site: Site, project: int) -> dict[str, int]:
    return site.admin.counts(project)


def error_lines(site: Site) -> list[str]:
    return [line["message"] for line in site.admin.get("/logs", level=3).json()["content"]["logs"]]


def first(mine: Tracker, project: int, **options) -> worker.Task:
    """A task that nobody has begun."""
    return next(mine.tasks(project, **options))


def job(site: Site, project: int) -> str:
    """A new job; its id."""
    template = site.admin.post("/template/create", {"project": project, "name": "template"}).json()["content"]
    return site.admin.post(f"/template/trigger/{template['template']['id']}", {}).json()["content"]["job"]["id"]


# ── What the README shows ───────────────────────────────────────────────────────────────────────────────────────────


def readme_lines(heading: str) -> str:
    readme = WORKER_PY.with_name("README.md").read_text("utf-8")
    return re.search(rf"## {heading}.*?```python\n(.*?)```", readme, re.DOTALL)[1]


def test_the_worker_in_the_readme_does_a_project_as_it_stands(site, credentials):
    """But for the address, and for what fetches a page."""
    project = site.admin.create_project(public=True, keep_hashes=True)
    assert project == 1
    with Tracker(site.url) as mine:
        grant(site, mine, project)
        mine.submit(project, "a", unique_string="a")
    links = {"a": ["b", "c"], "b": ["a", "c"], "c": []}
    lines = readme_lines("A worker of your own").replace("http://localhost:3010", site.url)
    fetched = []
    exec(compile(lines, "README.md", "exec"), {"fetch": lambda url: fetched.append(url) or links[url]})
    assert sorted(fetched) == ["a", "b", "c"]
    assert counts(site, project) == {"closed": 3}


def test_a_test_of_ones_own_has_a_project_and_a_granted_worker_by_one_call():
    with tracker.serving() as url:
        mine, project = worker.project_for_test(url, keep_hashes=True)
        with mine:
            assert mine.submit(project, "a", unique_string="a")
            for task in mine.tasks(project, until_done=True):
                with task:
                    assert not task.submit("a", unique_string="a")
            assert mine.project(project)["closed_task_count"] == 1


def test_a_second_project_for_a_test_is_another_worker_s():
    with tracker.serving() as url:
        (one, project), (other, another) = worker.project_for_test(url), worker.project_for_test(url)
        with one, other:
            assert project != another
            assert one.worker.id != other.worker.id


# ── Who we are ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_registers_once_and_keeps_its_credentials_where_worker_py_does(site, credentials):
    with Tracker(site.url, "my laptop") as one, Tracker(site.url + "/") as other:
        assert one.worker == other.worker
        assert one.worker.alias == "my laptop"
    stored = json.loads(credentials.read_text())["servers"]
    assert stored[site.url]["id"] == one.worker.id


def test_another_alias_renames_it(site):
    with Tracker(site.url, "old"), Tracker(site.url, "new") as mine:
        assert site.guest.get(f"/worker/get/{mine.worker.id}").json()["content"]["worker"]["alias"] == "new"


def test_a_worker_can_be_given_instead_of_a_file(site, credentials):
    made = site.create_worker()
    with Tracker(site.url, worker=worker.Worker(made.id, made.alias, made.secret)) as mine:
        assert mine.worker.id == made.id
    assert not credentials.exists()


def test_a_file_of_credentials_that_others_could_read_is_told_by_the_logger(site, credentials, caplog, capfd):
    credentials.write_text('{"servers": {}}')
    credentials.chmod(0o644)
    Tracker(site.url).close()
    assert "was open to other users" in caplog.text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_what_is_no_name_of_a_file_keeps_no_credentials(site, name):
    with pytest.raises(Fail, match="cannot read the credentials"):
        Tracker(site.url, credentials=name)


@pytest.mark.parametrize("secret", ["secret\n", "s\xe9cret", ""])
def test_a_secret_that_no_request_could_carry_is_refused(secret):
    with pytest.raises(Fail, match="the secret of worker 1"):
        worker.Worker(1, "mine", secret)


def test_a_worker_that_was_given_and_is_rejected_is_not_said_to_be_in_a_file(site):
    stranger = worker.Worker(1, "mine", "none")
    with pytest.raises(Fail, match="Does its secret belong"), Tracker(site.url, worker=stranger) as mine:
        mine.call("GET", "/task/get?project=1")


def test_what_is_no_address_is_said_to_be_none():
    with pytest.raises(Fail, match="is no URL"):
        Tracker("localhost")


def test_a_tracker_that_was_never_there_is_unreachable():
    with pytest.raises(Unreachable):
        Tracker(f"http://127.0.0.1:{free_port()}")


# ── What becomes of a task ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_is_done_when_its_block_ends(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        assert (task.recipe, task.project, task.attempt, task.held) == ("a", project, 1, True)
        assert counts(site, project) == {"assigned": 1}
    assert counts(site, project) == {"closed": 1}


def test_what_a_block_submits_is_stored_before_its_task_is_released(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        assert task.submit("b", unique_string="b", priority=3)
        assert not task.submit("b", unique_string="b")
        assert counts(site, project) == {"assigned": 1, "waiting": 1}


def test_an_exception_fails_the_task_is_logged_and_the_loop_goes_on(site, project, mine, caplog):
    submit(site, project, "bad", "good")
    seen = []
    for task in mine.tasks(project, until_done=True):
        with task:
            seen.append(task.recipe)
            if task.recipe == "bad":
                raise ValueError("no such page")
    assert seen == ["bad", "good"]
    assert counts(site, project) == {"failed": 1, "closed": 1}
    [line] = error_lines(site)
    assert line.startswith("ValueError: no such page") and __file__ in line
    assert site.read("SELECT reason FROM failure") == [("ValueError: no such page",)]
    assert "no such page" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_meant_for_the_process_puts_the_task_back_and_ends_the_loop(site, project, mine, error):
    submit(site, project, "a")
    with pytest.raises(error):
        for task in mine.tasks(project):
            with task:
                raise error
    assert counts(site, project) == {"waiting": 1}


def test_a_task_that_is_failed_says_why_in_its_log(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.fail("the page is empty")
    assert counts(site, project) == {"failed": 1}
    assert error_lines(site) == ["the page is empty"]
    assert site.read("SELECT reason FROM failure") == [("the page is empty",)]


@pytest.mark.parametrize(("reason", "kept"), [("a\ud800b\0c", "a?b\ufffdc"), ("x" * 9999, "x" * 500), ("", "failed")])
def test_whatever_is_said_of_a_failure_its_release_is_not_refused(site, project, mine, reason, kept):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.fail(reason)
    assert counts(site, project) == {"failed": 1}
    assert site.read("SELECT reason FROM failure") == [(kept,)]


def test_a_skipped_task_rests_for_its_delay(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.skip(delay=60)
    assert counts(site, project) == {"delayed": 1}
    site.clock.pass_time(61)
    assert first(mine, project).recipe == "a"


def test_a_task_that_is_skipped_without_a_delay_is_not_the_next_one_at_once(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.skip()
    assert counts(site, project) == {"delayed": 1}


def test_a_skip_stands_when_its_block_is_interrupted(site, project, mine):
    submit(site, project, "a")
    with pytest.raises(KeyboardInterrupt), first(mine, project) as task:
        task.skip(delay=60)
        raise KeyboardInterrupt
    assert counts(site, project) == {"delayed": 1}


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, 1e10])
def test_a_delay_that_is_none_is_refused_where_it_is_given(site, project, mine, delay):
    submit(site, project, "a")
    with first(mine, project) as task:
        with pytest.raises(ValueError, match="delay"):
            task.skip(delay)
        task.fail("")


def test_a_task_is_done_once(site, project, mine):
    submit(site, project, "a")
    task = first(mine, project)
    with task:
        pass
    with pytest.raises(RuntimeError, match="already"), task:
        pass


def test_equal_verifications_of_two_workers_close_a_task(site, project, mine):
    submit(site, project, "a", verification_count=2)
    other, _ = worker.project_for_test(site.url)
    for one in (mine, other):
        with first(one, project) as task:
            task.verification = 2**64 - 7
    assert counts(site, project) == {"closed": 1}
    other.close()


@pytest.mark.parametrize("verification", [2**64, "a", None])
def test_a_verification_that_is_no_number_of_64_bits_fails_the_task(site, project, mine, verification):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.verification = verification
    assert counts(site, project) == {"failed": 1}


def test_lines_are_logged_for_the_task(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.log("half-way", "warn", scope="fetch")
        with pytest.raises(ValueError, match="'loud' is none of"):
            task.log("x", "loud")
    [line] = site.admin.get("/logs", level=4).json()["content"]["logs"]
    assert line["message"] == "half-way" and json.loads(line["data"])["scope"] == "fetch"


def test_a_job_gets_its_result_and_its_lines(site, project, mine):
    token = job(site, project)
    with first(mine, project) as task:
        assert task.job["id"] == token
        task.log("one")
        task.log("two")
        task.done(output={"state": "success", "output": [1, 2]})
    found = site.admin.get(f"/job/get/{token}").json()["content"]["job"]
    assert (found["state"], found["output"]) == ("finished", [1, 2]) or found["result"]
    lines = site.admin.get(f"/job/log/{token}").json()["content"]["entries"]
    assert [line["message"] for line in lines if line["scope"] == "task"] == ["one", "two"]


@pytest.mark.parametrize("in_run", [False, True])
def test_a_result_that_the_tracker_refuses_fails_the_task(site, project, mine, in_run):
    submit(site, project, "a")

    def finish(task: worker.Task) -> None:
        task.done(output="x" * 5_000_000)

    if in_run:
        assert mine.run(project, finish, until_done=True) == 1
    else:
        with first(mine, project) as task:
            finish(task)
    assert counts(site, project) == {"failed": 1}


@pytest.mark.parametrize("output", [{1, 2}, math.nan, "\udc80"])
def test_a_result_that_is_no_json_fails_the_block_that_gives_it(site, project, mine, output):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.done(output=output)
    assert re.match("TypeError|ValueError|UnicodeEncodeError", error_lines(site)[0])


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_exception_that_cannot_be_printed_fails_the_task_as_any_other(site, project, mine):
    submit(site, project, "a")
    with first(mine, project):
        raise Unspeakable
    assert counts(site, project) == {"failed": 1}


# ── Leases ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lease_is_extended_while_the_block_runs(site, project, mine):
    submit(site, project, "a", max_assign_time=1)
    with first(mine, project) as task:
        time.sleep(2.5)
        assert task.held
        assert counts(site, project) == {"assigned": 1}
    assert counts(site, project) == {"closed": 1}


def test_a_lease_that_cannot_be_extended_is_told_once(site, project, mine, monkeypatch, caplog):
    submit(site, project, "a")
    looks = []

    def look(tracker, begun):
        looks.extend(begun)
        raise Fail("who are you?")

    monkeypatch.setattr(Tracker, "LOOK", 0.01)
    monkeypatch.setattr(Tracker, "_look_after", look)
    with first(mine, project):
        wait_until(lambda: len(looks) > 2)
    assert caplog.text.count("who are you?") == 1


def test_a_block_that_hangs_does_not_keep_its_task_for_ever(site, project, mine, caplog):
    submit(site, project, "a", max_assign_time=1)
    other = site.create_worker(project)
    with first(mine, project, timeout=0.2) as task:
        wait_until(lambda: other.assigned(project))
        wait_until(lambda: not task.held)
    assert "not extended any more" in caplog.text and "was taken away" in caplog.text
    assert "closed" not in counts(site, project)


def test_a_block_can_ask_for_more_time(site, project, mine):
    submit(site, project, "a", max_assign_time=5)
    with first(mine, project) as task:
        assert task.extend(1000)
        site.clock.pass_time(900)
        assert task.extend(1)
    assert counts(site, project) == {"closed": 1}


def test_a_block_learns_that_its_task_was_taken_away(site, project, mine, monkeypatch):
    monkeypatch.setattr(Tracker, "HEARTBEAT", 0.2)
    submit(site, project, "a")
    with first(mine, project) as task:
        site.admin.post(f"/project/reclaim_assigned_tasks/{project}")
        wait_until(lambda: not task.held)
    assert counts(site, project) == {"waiting": 1}


def test_a_job_that_is_cancelled_is_not_held_any_more(site, project, mine, monkeypatch):
    monkeypatch.setattr(Tracker, "HEARTBEAT", 0.2)
    token = job(site, project)
    with first(mine, project) as task:
        assert site.admin.post(f"/job/cancel/{token}").status_code < 300
        wait_until(lambda: not task.held)


def test_a_block_whose_task_came_to_us_once_more_says_no_more(site, project, mine):
    submit(site, project, "a")
    tasks = mine.tasks(project)
    with next(tasks) as old:
        site.admin.post(f"/project/reclaim_assigned_tasks/{project}")
        with next(tasks) as new:
            assert (old.id, old.held, new.held) == (new.id, False, True)
            old.log("I am late", "error")
        assert counts(site, project) == {"closed": 1}
    assert error_lines(site) == []


def test_a_run_of_a_tracker_that_is_closed_is_refused_like_all_else():
    with tracker.serving() as url:
        mine, project = worker.project_for_test(url)
        mine.close()
        with pytest.raises(worker.Halted, match="closed"):
            mine.run(project, print)


def test_closing_puts_back_what_is_ours(site, project):
    submit(site, project, "a", "b")
    with Tracker(site.url) as mine:
        tasks = mine.tasks(project)
        begun, unbegun = next(tasks), next(tasks)
        begun.__enter__()
        assert counts(site, project) == {"assigned": 2}
    assert counts(site, project) == {"waiting": 2}
    assert unbegun.held


# ── Submitting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_is_none_is_refused(site, project, mine):
    with pytest.raises(Refused, match="recipe"):
        mine.submit(project, "")
    with pytest.raises(Refused, match="99"):
        mine.submit(99, "a")


def test_a_refused_submit_fails_the_task_that_makes_it(site, project, mine):
    submit(site, project, "a")
    with first(mine, project) as task:
        task.submit("b", priority=10**6)
    assert counts(site, project) == {"failed": 1}
    assert "priority" in error_lines(site)[0]


def test_many_are_submitted_and_what_became_of_each_is_told(site, project, mine):
    given = ["a", "{b", "c\nd", {"recipe": "e", "priority": 3}, "a", "", {"priority": 1}, *map(str, range(2000))]
    report = mine.submit_all(project, iter(given), unique=True, max_retries=4)
    assert (report.stored, report.duplicates, report.refused) == (2004, 1, 2)
    assert [line for line, _ in report.refusals] == [6, 7] and report.repeated == [5]
    assert site.read("SELECT recipe, priority, max_retries FROM task ORDER BY id LIMIT 4") == [
        ("a", 0, 4),
        ("{b", 0, 4),
        ("c\nd", 0, 4),
        ("e", 3, 4),
    ]


def test_a_few_are_submitted_by_one_request_and_those_that_were_stored_are_counted(site, project, mine):
    tasks = [{"recipe": name, "unique_string": name} for name in ("a", "b", "a")]
    assert mine.submit_few(project, tasks, max_retries=3) == 2
    assert mine.submit_few(project, [*tasks, {"recipe": "c", "priority": 1}]) == 1
    handed_out = mine.tasks(project)
    assert [(task.recipe, task.content["max_retries"]) for task in (next(handed_out) for _ in "abc")] == [
        ("c", 0),
        ("a", 3),
        ("b", 3),
    ]


def test_a_few_that_are_more_than_one_request_takes_are_several(project, mine, monkeypatch):
    monkeypatch.setattr(Tracker, "FEW", 2)
    assert mine.submit_few(project, ({"recipe": str(number)} for number in range(5))) == 5
    assert mine.project(project)["waiting_task_count"] == 5


def test_of_a_few_with_one_that_is_none_no_task_is_stored(site, project, mine):
    with pytest.raises(Refused, match="recipe"):
        mine.submit_few(project, [{"recipe": "a"}, {"recipe": ""}])
    assert mine.project(project)["waiting_task_count"] == 0


@pytest.mark.parametrize("register", [True, False])
def test_a_manager_makes_a_project_and_a_worker_that_may_use_it(site, register):
    if not register:
        site.guest.post("/register", json={"username": "boss", "password": "correct horse"})
    with worker.Manager(site.url, "boss", "correct horse", register=register) as manager:
        made = manager.call("POST", "/project/create", {"name": "its own"})["id"]
        assert manager.project("its own")["id"] == made and manager.project("another") is None
        one = manager.worker("helper")
        for _ in range(2):  # what was granted may be granted again
            manager.grant(made, one)
    with Tracker(site.url, worker=one) as mine:
        assert mine.submit(made, "x") and first(mine, made).recipe == "x"


@pytest.mark.parametrize(("register", "said"), [(False, "password"), (True, "Nor can it be registered")])
def test_a_manager_that_cannot_log_in_is_refused(site, register, said):
    with worker.Manager(site.url, "boss", "correct horse", register=True):
        pass
    with pytest.raises(Refused, match=said):
        worker.Manager(site.url, "boss", "wrong horse", register=register)


@pytest.mark.parametrize("task", ["abc", b"abc", {"recipe": "abc"}])
def test_one_task_is_not_taken_for_many(site, project, mine, task):
    with pytest.raises(TypeError, match="one task is no series"):
        mine.submit_all(project, task)
    assert counts(site, project) == {}


def test_no_task_is_an_empty_report(project, mine):
    assert mine.submit_all(project, []).stored == 0


def test_what_only_one_task_can_have_is_not_given_for_all(project, mine):
    with pytest.raises(TypeError, match="unique_string"):
        mine.submit_all(project, ["a"], unique_string="x")


def test_many_are_stored_once_though_answers_are_lost(site, project, credentials):
    with losing(site.url, 2) as (url, uploads), Tracker(url) as mine:
        grant(site, mine, project)
        assert mine.submit_all(project, ["a", "b"]).stored == 2
        assert len(uploads) == 3
    assert counts(site, project) == {"waiting": 2}


# ── Access ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def in_thread(function):
    """Runs the function meanwhile; what it raises is raised at the end of the block."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def asked(site, project):
    """The requests for access that wait."""
    accesses = site.admin.get(f"/project/access_list/{project}").json()["content"]["accesses"]
    return [(one["assign"], one["submit"]) for one in accesses if one["request"]]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda mine, project: first(mine, project).recipe, (True, True)),
        (lambda mine, project: first(mine, project, submit=False).recipe, (True, False)),
        (lambda mine, project: mine.submit(project, "b"), (False, True)),
        (lambda mine, project: mine.submit_all(project, ["b"]), (False, True)),
        (lambda mine, project: mine.run(project, lambda task: None, count=1), (True, True)),
    ],
)
def test_access_is_asked_for_and_waited_for(site, caplog, call, wanted):
    project = site.admin.create_project()
    submit(site, project, "a")
    with Tracker(site.url) as mine:
        with in_thread(lambda: call(mine, project)):
            wait_until(lambda: asked(site, project))
            assert asked(site, project) == [wanted]
            accept(site, mine, project)
        assert f"POST {site.url}/project/accept_request/{project}/{mine.worker.id}" in caplog.text


def test_access_that_is_rejected_is_not_waited_for(site):
    project = site.admin.create_project()
    with (
        Tracker(site.url) as mine,
        pytest.raises(Fail, match="rejected"),
        in_thread(lambda: mine.submit(project, "a")),
    ):
        wait_until(lambda: asked(site, project))
        site.admin.post(f"/project/reject_request/{project}/{mine.worker.id}")


def test_lesser_access_is_waited_for_to_be_withdrawn_and_more_is_asked_for(site, caplog):
    project = site.admin.create_project()
    with Tracker(site.url) as mine:
        mine.client.call("POST", "/project/request_access", {"project": project, "assign": True, "submit": False})
        accept(site, mine, project)
        with in_thread(lambda: mine.submit(project, "a")):
            wait_until(lambda: "must give" in caplog.text)
            site.admin.post(f"/project/reject_request/{project}/{mine.worker.id}")
            wait_until(lambda: asked(site, project))
            accept(site, mine, project)
    assert counts(site, project) == {"waiting": 1}


def test_a_paused_worker_waits_until_it_may_go_on(site, project, mine, caplog):
    submit(site, project, "a")
    site.admin.post("/worker/set_paused", {"worker": mine.worker.id, "paused": True})
    with in_thread(lambda: first(mine, project)):
        wait_until(lambda: "has paused this worker" in caplog.text)
        site.admin.post("/worker/set_paused", {"worker": mine.worker.id, "paused": False})


@pytest.mark.parametrize("take", [first, lambda mine, project: mine.run(project, lambda task: None, count=1)])
def test_a_paused_project_is_named_and_waited_for(site, project, mine, caplog, take):
    submit(site, project, "a")
    site.admin.update_project(project, paused=True)
    with in_thread(lambda: take(mine, project)):
        wait_until(lambda: f"project {project} paused by a manager" in caplog.text)
        site.admin.update_project(project, paused=False)


def test_who_is_paused_for_its_failures_is_told_so(site, project, mine, caplog):
    submit(site, project, *map(str, range(60)))

    def fail_all():
        for task in mine.tasks(project):
            with task:
                task.fail("never")

    with in_thread(fail_all):
        wait_until(lambda: "You have failed one task after the other" in caplog.text)
        mine.close()
    assert counts(site, project)["waiting"] > 0


@pytest.mark.parametrize("timeout", [0, math.nan])
def test_a_timeout_that_is_none_is_refused_before_a_task_is_taken(site, project, mine, timeout):
    submit(site, project, "a")
    for take in (mine.tasks, lambda *its, **options: mine.run(*its, print, **options)):
        with pytest.raises(ValueError, match="timeout"):
            take(project, timeout=timeout)
    assert counts(site, project) == {"waiting": 1}


@pytest.mark.parametrize("projects", ["12", ["1"], [], [None]])
def test_what_is_no_number_of_a_project_is_refused(mine, projects):
    with pytest.raises(ValueError, match="by its number"):
        next(mine.tasks(projects))


def test_an_unknown_project_ends_the_loop(site, mine):
    with pytest.raises(Fail, match="No project 99"):
        first(mine, 99)


def test_of_a_hidden_project_nobody_can_tell_when_it_is_done(site, mine):
    project = site.admin.create_project()
    grant(site, mine, project)
    site.admin.update_project(project, hidden=True)
    with pytest.raises(Fail, match="does not show project"):
        first(mine, project, until_done=True)


# ── Several threads, and the end ────────────────────────────────────────────────────────────────────────────────────


def test_threads_share_a_tracker_and_each_task_is_done_once(site, project, mine):
    report = mine.submit_all(project, map(str, range(60)))
    assert report.stored == 60
    done = []

    def work():
        for task in mine.tasks(project, until_done=True):
            with task:
                done.append(task.recipe)

    with in_thread(work), in_thread(work), in_thread(work):
        pass
    assert sorted(done, key=int) == [str(number) for number in range(60)]
    assert counts(site, project) == {"closed": 60}


def test_threads_share_a_loop(site, project, mine):
    submit(site, project, *"abcdefgh")
    done, ended, taking = [], [], mine.tasks(project, until_done=True)

    def work():
        for task in taking:
            with task:
                done.append(task.recipe)
        ended.append(True)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (sorted(done), len(ended)) == ([*"abcdefgh"], 3)


def test_a_loop_until_it_is_done_that_waits_for_its_own_thread_says_so(site, project, mine, caplog):
    submit(site, project, "a")
    task = first(mine, project)

    def work():
        with task:
            list(mine.tasks(project, until_done=True))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: f"its own thread has in hand, task {task.id}" in caplog.text)
    mine.end()
    thread.join(20)
    assert counts(site, project) == {"closed": 1}


def test_a_loop_until_it_is_done_waits_for_what_others_hold_and_for_what_is_delayed(site, project, mine):
    submit(site, project, "a", delay=2)
    done = []
    for task in mine.tasks(project, until_done=True):
        with task:
            done.append(task.recipe)
    assert done == ["a"]


def test_a_loop_that_is_to_end_does_so_when_its_block_does(site, project, mine):
    submit(site, project, "a", "b")
    for task in mine.tasks(project):
        with task:
            mine.end()
            assert task.submit("c")
    project_now = mine.project(project)
    assert (project_now["waiting_task_count"], project_now["closed_task_count"]) == (2, 1)


def test_a_process_that_was_forked_meanwhile_leaves_everything_to_the_one_that_forked(site, project, mine, monkeypatch):
    submit(site, project, "a")
    task = first(mine, project)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        with pytest.raises(SystemExit), mine, task:
            sys.exit()
        with pytest.raises(Fail, match="forked"):
            task.submit("b")
    assert counts(site, project) == {"assigned": 1}
    mine.close()
    assert counts(site, project) == {"waiting": 1}


def test_closing_ends_the_loops_of_other_threads(site, project):
    mine = Tracker(site.url)
    with in_thread(lambda: list(mine.tasks(project))):
        time.sleep(0.2)  # it waits for a task
        mine.close()


def test_closing_ends_the_runs_of_other_threads(site, project):
    mine = Tracker(site.url)
    submit(site, project, "a")
    begun, go = threading.Event(), threading.Event()
    with in_thread(lambda: mine.run(project, lambda task: begun.set() or go.wait(60))):
        assert begun.wait(30)
        mine.close()
    assert counts(site, project) == {"waiting": 1}
    go.set()


def test_tasks_of_several_projects_come_by_priority(site, mine):
    projects = [site.admin.create_project(public=True) for _ in range(2)]
    submit(site, projects[0], "low")
    submit(site, projects[1], "high", priority=5)
    tasks = mine.tasks(projects)
    assert [next(tasks).recipe, next(tasks).recipe] == ["high", "low"]


# ── Running a function ──────────────────────────────────────────────────────────────────────────────────────────────


def test_run_calls_the_function_for_every_task_also_for_those_that_it_submits(site, project, mine):
    submit(site, project, "3", "3")

    def count_down(task: worker.Task) -> None:
        if number := int(task.recipe):
            task.submit(str(number - 1))

    assert mine.run(project, count_down, concurrency=4, until_done=True) == 0
    assert counts(site, project) == {"closed": 8}


def test_run_tells_by_its_status_that_a_task_has_failed(site, project, mine):
    submit(site, project, "good", "bad")

    def work(task: worker.Task) -> None:
        task.log("begun", "warn")
        if task.recipe == "bad":
            sys.exit(3)

    assert mine.run(project, work, until_done=True) == 1
    assert counts(site, project) == {"closed": 1, "failed": 1}
    assert error_lines(site)[0].startswith("RuntimeError: exit(3) was called")
    assert len(site.admin.get("/logs", level=4).json()["content"]["logs"]) == 2


def test_run_calls_as_many_at_a_time_as_it_may(site, project, mine):
    submit(site, project, "a", "b", "c")
    together = threading.Barrier(3)
    assert mine.run(project, lambda task: together.wait(30), concurrency=3, count=3) == 0


def test_a_run_after_whose_task_nothing_can_go_on_ends_and_says_why(site, project, mine):
    submit(site, project, "a", "b")

    def fail(task):
        raise Fail("no access")

    with pytest.raises(Fail, match="no access"):
        mine.run(project, fail, concurrency=2)
    assert counts(site, project) == {"waiting": 2}


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_what_a_function_raises_that_is_meant_for_a_process_fails_its_task(site, project, mine, error):
    submit(site, project, "a", max_retries=0)

    def interrupt(task):
        raise error

    assert mine.run(project, interrupt, count=1) == 1
    assert counts(site, project) == {"failed": 1}


def test_run_skips_with_a_delay(site, project, mine):
    submit(site, project, "a")
    assert mine.run(project, lambda task: task.skip(delay=60), count=1) == 0
    assert counts(site, project) == {"delayed": 1}


def test_a_function_that_hangs_fails_its_task_and_too_many_end_the_run(site, project, mine):
    submit(site, project, "hangs", "hangs", "good")
    go = threading.Event()
    with pytest.raises(Fail, match="took longer than"):
        mine.run(project, lambda task: task.recipe == "hangs" and go.wait(60), concurrency=2, timeout=0.3)
    assert counts(site, project)["failed"] == 2
    go.set()


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"count": 0}, {"timeout": 0}])
def test_what_would_run_nothing_or_for_ever_is_refused(project, mine, options):
    with pytest.raises(ValueError, match="at least 1"):
        mine.run(project, lambda task: None, **options)


def test_run_leaves_the_handlers_of_signals_as_they_were(site, project, mine):
    before = signal.getsignal(signal.SIGINT)
    mine.run(project, lambda task: None, until_done=True)
    assert signal.getsignal(signal.SIGINT) is before


PROGRAM = """
import sys, time, worker
mine = worker.Tracker(sys.argv[1])
def work(task):
    print("begun", flush=True)
    time.sleep(float(task.recipe))
    print("ended", flush=True)
def loop():
    for task in mine.tasks(int(sys.argv[2])):
        with task:
            work(task)
with mine:
    sys.exit(mine.run(int(sys.argv[2]), work) if sys.argv[3] == "run" else loop())
"""


@contextmanager
def program(site: Site, project: int, way: str):
    """A process of somebody's that works for the project."""
    command = [sys.executable, "-c", PROGRAM, site.url, str(project), way]
    env = os.environ | {"PYTHONPATH": str(WORKER_PY.parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@posix_only
@pytest.mark.parametrize(
    ("recipe", "signals", "status", "becomes"),
    [
        ("0.5", [signal.SIGTERM], 0, {"closed": 1}),
        ("0.5", [signal.SIGINT], 130, {"closed": 1}),
        ("60", [signal.SIGTERM, signal.SIGTERM], 143, {"waiting": 1}),
        ("60", [signal.SIGINT, signal.SIGINT], 130, {"waiting": 1}),
    ],
)
def test_signals_end_a_run_as_they_end_worker_py_run(site, project, recipe, signals, status, becomes):
    submit(site, project, recipe)
    with program(site, project, "run") as process:
        assert process.stdout.readline() == "begun\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.5)
        assert process.wait(30) == status
    assert counts(site, project) == becomes


@posix_only
@pytest.mark.parametrize("has_begun", [True, False])
def test_ctrl_c_ends_a_loop_and_puts_its_task_back(site, project, has_begun):
    """Also one that the request in flight brings."""
    if has_begun:
        submit(site, project, "60")
    with program(site, project, "loop") as process:
        if has_begun:
            assert process.stdout.readline() == "begun\n"
        else:
            time.sleep(2)
        process.send_signal(signal.SIGINT)
        if not has_begun:
            submit(site, project, "60")
        assert process.wait(30) != 0
    assert counts(site, project) == {"waiting": 1}


# ── A tracker that goes away ────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_of_the_tracker_is_waited_for_and_nothing_is_done_twice(tmp_path, caplog):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tracker_process(tmp_path, port) as process:
        mine, project = worker.project_for_test(url)
        mine.submit_all(project, ["a", "b"])
        tasks = mine.tasks(project, until_done=True)
        begun = next(tasks).__enter__()
        process.kill()
    done = []

    def work():
        begun.submit("c", unique_string="c")
        begun.__exit__(None, None, None)
        for task in tasks:
            with task:
                done.append(task.recipe)

    with in_thread(work):
        wait_until(lambda: "no answer from" in caplog.text)
        with tracker_process(tmp_path, port):
            wait_until(lambda: len(done) == 2 and mine.project(project)["closed_task_count"] == 3)
            mine.close()
    assert done == ["b", "c"]


def test_a_loop_whose_tracker_is_away_can_be_left(tmp_path, caplog, monkeypatch):
    """What is still ours is put back if the tracker comes back in time, and else is said to be ours."""
    monkeypatch.setattr(Tracker, "FAREWELL", 0.5)
    port = free_port()
    with tracker_process(tmp_path, port):
        mine, project = worker.project_for_test(f"http://127.0.0.1:{port}")
        mine.submit_all(project, ["a", "b"])
        tasks = mine.tasks(project)
        next(tasks), next(tasks)
    with in_thread(lambda: list(tasks)):
        wait_until(lambda: "no answer from" in caplog.text)
        mine.close()
    assert "2 tasks are ours until their leases end" in caplog.text


MALFORMED = [{"id": 1}, {"id": 1, "recipe": "a", "lease": "long"}, {"id": 1, "recipe": "a", "job": "b"}, "a"]


@pytest.mark.parametrize("task", MALFORMED)
def test_what_is_no_task_is_said_not_to_be_a_tracker_s_answer(mine, monkeypatch, task):
    answer = worker.Answer({"tasks": [task]}, 0, False)
    monkeypatch.setattr(worker.RunClient, "call", lambda *_: answer)
    with pytest.raises(Fail, match="answered /task/get with something that is no list of tasks"):
        first(mine, 1)


@pytest.mark.parametrize("content", [{}, {"extensions": []}, {"extensions": [{"left": None}]}])
def test_leases_that_are_none_are_refusals(mine, monkeypatch, content):
    monkeypatch.setattr(worker.RunClient, "call", lambda *_: worker.Answer(content, 0, False))
    with pytest.raises(Refused, match="no list of leases"):
        worker.extend_leases(mine.client, [worker.Assignment({"id": 1, "recipe": "a", "lease": 9})])


def test_patience_ends_and_says_so():
    with pytest.raises(Unreachable, match=r"for 0\.\d s"):
        Tracker(f"http://127.0.0.1:{free_port()}", patience=0.2)


# ── As a module ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_package_is_an_exception_to_who_imports_it(tmp_path):
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('none', name='rich')")
    code = "import sys\ntry:\n    import worker\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{WORKER_PY.parent}"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert result.stdout == "rich\n", result.stderr


def test_what_is_said_goes_to_a_logger_on_lines_that_cannot_steer_a_terminal(site, project, mine, caplog):
    submit(site, project, "\x1b[2J")
    with caplog.at_level(logging.WARNING), first(mine, project) as task:
        task.fail("\x1b[2J")
    assert "\x1b" not in caplog.text and "\\x1b" in caplog.text


# ── An answer that never ends ─────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def dripping(begin: bytes, drip: bytes):
    """The URL of a tracker whose first answer begins so, and goes on so without an end; the next one is whole."""
    body = b'{"ok": true, "content": {"whole": 1}}'
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    ended = threading.Event()

    def answer(number: int, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(whole if number else begin)
            while not number and not ended.wait(0.05):
                connection.sendall(drip)

    def serve() -> None:
        for number in itertools.count():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(number, connection), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY_GZIP = gzip.compress(b"")[:10]  # its header


@posix_only
@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"b"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b" "),
        (b"HTTP/1.0 200 OK\r\n\r\n", b" "),
        (CHUNKED, b"1\r\n \r\n"),
        (CHUNKED + b"5;", b"a"),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-A: b\r\n"),
        (CHUNKED + b"2\r\n{}\r\n0\r\nX-A:", b"b"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + EMPTY_GZIP, b"\0\0\0\xff\xff"),
    ],
    ids=[
        "headers",
        "a header",
        "announcements",
        "a body",
        "a body without length",
        "chunks",
        "the head of a chunk",
        "trailers",
        "a trailer",
        "packed nothing",
    ],
)
def test_an_answer_that_drips_for_ever_is_given_up_and_asked_for_again(begin, drip, monkeypatch, caplog):
    monkeypatch.setattr(worker.Client, "TIMEOUT", httpx.Timeout(1, connect=10))
    monkeypatch.setattr(worker.Client, "LONGEST_READ", 0.5)
    monkeypatch.setattr(worker._Deadlines, "PERIOD", 0.1)
    with dripping(begin, drip) as url, Tracker(url, worker=worker.Worker(1, "mine", "s" * 43)) as mine:
        assert mine.client.call("GET", "/project/list").content == {"whole": 1}
    assert "its answer did not " in caplog.text


def test_no_connection_is_ended_while_each_answer_begins_in_time(site, mine, project, monkeypatch):
    monkeypatch.setattr(worker._Deadlines, "PERIOD", 0.01)
    ended = []
    monkeypatch.setattr(socket.socket, "shutdown", lambda *told: ended.append(told))
    for _ in range(20):
        mine.client.call("GET", "/project/list")
    assert not ended and not mine.client.deadlines.waits


@posix_only
@pytest.mark.parametrize("what", ["what is attached to a job", "an exported project"])
def test_a_file_that_drips_for_ever_is_given_up_and_asked_for_again(what, monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "LONGEST_MOVE", 0.5)
    monkeypatch.setattr(worker._Deadlines, "PERIOD", 0.1)
    begin = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Type: application/x-ndjson\r\n\r\n") + b"5;"
    with dripping(begin, b"a") as url, open(tmp_path / "file", "w+b") as file:
        client = worker.RunClient(url, worker.Unheard("", ""), worker.Halt())
        if what == "an exported project":
            with suppress(worker.Fail):  # the next answer is no project
                worker.fetch_project(client, 1, b"{}", file)
            assert client.reached
        else:
            client.fetch("/task/attachments/1", file, 1000, worker.Halt())
            assert file.tell() > 30
