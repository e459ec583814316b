"""Every curl example of the public API document, run by the real curl, its answer compared with the documented one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, Worker

import tracker

pytestmark = [
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed"),
    pytest.mark.skipif(not shutil.which("sh"), reason="there is no POSIX shell for the documented commands"),
]


@pytest.fixture
def prefix() -> str:
    return ""


DOCUMENTED_SECRET = "ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8="
DONE = """
{
"ok": true,
"message": "(Error message, if applicable)"
}"""
PROJECT = {
    "priority": 999,
    "name": "My project",
    "clone_url": "http://github.com/test/test",
    "git_repo": "myrepo",
    "version": "1.0",
    "motd": "",
    "public": True,
    "hidden": False,
    "chain": 0,
    "paused": False,
    "assign_rate": 2,
    "submit_rate": 2,
}


def run(command: str, site: Site, prefix: str, folder: Path, worker: Worker | None = None) -> str:
    """What the documented command prints. Only the tracker's address and the worker's secret are put in."""
    command = command.replace("http://localhost:3010", site.url + prefix)
    if worker:
        assert worker.id == 1  # as documented
        command = command.replace(DOCUMENTED_SECRET, worker.secret)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "NO_PROXY": "*"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_as_documented(answer: str, documented: str) -> None:
    """The answer has each documented field with its value. More fields are fine."""
    wanted = json.loads(documented)
    assert comparable(json.loads(answer), wanted) == comparable(wanted, wanted)


def comparable(answer: Any, documented: Any) -> Any:
    """The documented fields of an answer: without empty messages, and only the type of what differs each time."""
    if isinstance(answer, dict) and isinstance(documented, dict):
        names = [name for name in documented if name in answer and not says_nothing(name, answer[name])]
        return {name: comparable_field(name, answer[name], documented[name]) for name in names}
    return str(answer) if isinstance(answer, bool) else answer  # True is equal to 1 in Python, and not in JSON


def comparable_field(name: str, value: Any, documented: Any) -> Any:
    return type(value).__name__ if name in ("created", "secret", "assign_time") else comparable(value, documented)


def says_nothing(name: str, value: Any) -> bool:
    return name == "message" and (value == "" or value.endswith("if applicable)"))


def test_worker_create(site: Site, prefix: str, tmp_path: Path) -> None:
    command = """curl -X POST 'http://localhost:3010/worker/create' -d '
{
"alias": "some alias"
}'"""
    documented = """
{
"ok": true,
"content": {
"worker": {
"id": 1,
"created": 1559396382,
"alias": "some alias",
"secret": "ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=",
"paused": false
}
}
}"""
    assert_as_documented(run(command, site, prefix, tmp_path), documented)


def test_worker_update(site: Site, prefix: str, tmp_path: Path) -> None:
    command = """curl -X POST 'http://localhost:3010/worker/update' \\
-H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=' -d '
{
"alias": "another alias"
}'"""
    assert_as_documented(run(command, site, prefix, tmp_path, site.create_worker()), DONE)
    assert site.guest.get("/worker/get/1").json()["content"]["worker"]["alias"] == "another alias"


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_task_submit(site: Site, prefix: str, tmp_path: Path) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    command = """curl -X POST 'http://localhost:3010/task/submit' \\
-H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=' -d '
{
"project": 1,
"max_retries": 3,
"recipe": "test recipe",
"priority": 1,
"max_assign_time": 3600,
"hash64": 0,
"unique_string": "",
"verification_count": 0
}'"""
    assert_as_documented(run(command, site, prefix, tmp_path, worker), DONE)
    task = worker.assigned(project)
    assert (task["recipe"], task["priority"], task["max_retries"], task["max_assign_time"]) == (
        "test recipe",
        1,
        3,
        3600,
    )


def submit_seven(worker: Worker, project: int) -> None:
    """Makes the documented task, number 7, the best one."""
    tasks = [{"project": project, "recipe": "another recipe"}] * 6
    last = {"project": project, "recipe": "test recipe", "priority": 1, "max_retries": 3}
    assert worker.bulk_submit([*tasks, last]).json()["content"]["submitted"] == 7


def test_task_get(site: Site, prefix: str, tmp_path: Path) -> None:
    project = site.admin.create_project(**PROJECT)
    worker = site.create_worker(project)
    submit_seven(worker, project)
    # The published page indents the second line: without the blank the shell would take it for a part of the URL.
    command = """curl -X GET 'http://localhost:3010/task/get/1'\\
 -H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8='"""
    documented = """
{
"ok": true,
"content": {
"task": {
"id": 7,
"priority": 1,
"assignee": 1,
"retries": 0,
"max_retries": 3,
"status": 1,
"recipe": "test recipe",
"max_assign_time": 0,
"assign_time": 1559397394,
"verification_count": 0,
"project": {
"id": 1,
"priority": 999,
"name": "My project",
"clone_url": "http://github.com/test/test",
"git_repo": "myrepo",
"version": "1.0",
"motd": "",
"public": true,
"hidden": false,
"chain": 0,
"paused": false,
"assign_rate": 2,
"submit_rate": 2
}
}
}
}"""
    assert_as_documented(run(command, site, prefix, tmp_path, worker), documented)


def test_task_release(site: Site, prefix: str, tmp_path: Path) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    submit_seven(worker, project)
    assert worker.assigned(project)["id"] == 7
    command = """curl -X POST 'http://localhost:3010/task/release'\\
 -H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=' -d '
{
"task_id": 7,
"result": 0,
"verification": -32315129
}'"""
    documented = """
{
"ok": true,
"message": "(Message, if applicable)",
"content": {
"updated": true
}
}"""
    assert_as_documented(run(command, site, prefix, tmp_path, worker), documented)
    assert site.admin.counts(project) == {"waiting": 6, "closed": 1}


def test_log_answers_204_and_no_body_where_the_document_shows_an_empty_success(
    site: Site, prefix: str, tmp_path: Path
) -> None:
    command = """curl -X POST 'http://localhost:3010/log/info'\\
 -H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=' -d '
{
"scope": "Arbitrary log category",
"message": "message",
"timestamp": 1559393394
}'"""
    show_status = command.replace("curl ", "curl -w '%{http_code}' ", 1)
    assert run(show_status, site, prefix, tmp_path, site.create_worker()) == "204"
    [line] = site.admin.post("/logs", {"level": 5, "since": 1559393393}).json()["content"]["logs"]
    assert (line["message"], line["timestamp"]) == ("message", 1559393394)


def test_project_request_access(site: Site, prefix: str, tmp_path: Path) -> None:
    worker = site.create_worker()
    for _ in range(23):
        project = site.admin.create_project()
    assert project == 23  # as documented
    command = """curl -X POST 'http://localhost:3010/project/request_access'\\
 -H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=' -d '
{
"assign": true,
"submit": true,
"project": 23
}'"""
    assert_as_documented(run(command, site, prefix, tmp_path, worker), DONE)
    [access] = site.admin.get(f"/project/access_list/{project}").json()["content"]["accesses"]
    assert (access["assign"], access["submit"], access["request"]) == (True, True, True)


def test_project_get(site: Site, prefix: str, tmp_path: Path) -> None:
    site.admin.create_project(**PROJECT)
    command = "curl -X GET 'http://localhost:3010/project/get/1'"
    documented = """
{
"ok": true,
"message": "",
"content": {
"id": 1,
"priority": 999,
"name": "My project",
"clone_url": "http://github.com/test/test",
"git_repo": "myrepo",
"version": "1.0",
"motd": "",
"public": true,
"hidden": false,
"chain": 0,
"paused": false,
"assign_rate": 2,
"submit_rate": 2
}
}"""
    assert_as_documented(run(command, site, prefix, tmp_path), documented)


def test_project_list(site: Site, prefix: str, tmp_path: Path) -> None:
    command = "curl -X GET 'http://localhost:3010/project/list'"
    documented = """
{
"ok": true,
"message": "",
"content": {
"projects": []
}
}"""
    assert_as_documented(run(command, site, prefix, tmp_path), documented)


def test_bulk_submit_takes_an_array_of_submit_requests(site: Site, prefix: str, tmp_path: Path) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    command = """curl -X POST 'http://localhost:3010/task/bulk_submit' \\
-H 'X-Worker-ID: 1' -H 'X-Secret: ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=' -d '
[{"project": 1, "recipe": "one"}, {"project": 1, "recipe": "two"}]'"""
    assert_as_documented(run(command, site, prefix, tmp_path, worker), '{"ok": true}')
    assert [worker.assigned(project)["recipe"] for _ in range(2)] == ["one", "two"]


METHODS = {
    "/worker/create": "POST",
    "/worker/get/1": "GET",
    "/worker/update": "POST",
    "/worker/set_paused": "POST",
    "/worker/stats": "GET",
    "/task/submit": "POST",
    "/task/bulk_submit": "POST",
    "/task/submit_lines/1": "POST",
    "/operation/1": "GET",
    "/task/get/1": "GET",
    "/task/get": "GET",
    "/task/release": "POST",
    "/task/bulk_release": "POST",
    "/task/extend": "POST",
    "/task/log": "POST",
    "/task/attachments/1": "GET",
    "/template/create": "POST",
    "/template/update/1": "POST",
    "/template/delete/1": "POST",
    "/template/get/1": "GET",
    "/template/list/1": "GET",
    "/template/rotate_secret/1": "POST",
    "/template/trigger/1": "POST",
    "/job/get/0123456789abcdef01234567": "GET",
    "/job/log/0123456789abcdef01234567": "GET",
    "/job/list": "GET",
    "/job/cancel/0123456789abcdef01234567": "POST",
    "/job/retry/0123456789abcdef01234567": "POST",
    "/workflow/create": "POST",
    "/workflow/update/1": "POST",
    "/workflow/delete/1": "POST",
    "/workflow/get/1": "GET",
    "/workflow/list/1": "GET",
    "/workflow/rotate_secret/1": "POST",
    "/workflow/trigger/1": "POST",
    "/log/trace": "POST",
    "/log/info": "POST",
    "/log/warn": "POST",
    "/log/error": "POST",
    "/logs": "GET POST",
    "/project/create": "POST",
    "/project/update/1": "POST",
    "/project/get/1": "GET",
    "/project/list": "GET",
    "/project/monitoring/1": "GET",
    "/project/monitoring-between/1": "GET",
    "/project/assignees/1": "GET",
    "/project/paused_workers/1": "GET",
    "/project/resume_worker/1/1": "POST",
    "/project/set_all_paused": "POST",
    "/project/notices/1": "GET POST",
    "/project/request_access": "POST",
    "/project/access_list/1": "GET",
    "/project/accept_request/1/1": "POST",
    "/project/reject_request/1/1": "POST",
    "/project/reject_requests/1": "POST",
    "/project/trust/1": "POST",
    "/project/delete/1": "POST",
    "/project/export/1": "POST",
    "/project/acts/1": "GET",
    "/worker/rename/1": "POST",
    "/worker/delete/1": "POST",
    "/acts": "GET",
    "/project/import": "POST",
    "/project/secret/1": "GET POST",
    "/project/webhook_secret/1": "GET POST",
    "/project/reset_failed_tasks/1": "POST",
    "/project/reclaim_assigned_tasks/1": "POST",
    "/project/hard_reset/1": "POST",
    "/git/receivehook": "POST",
    "/register": "POST",
    "/login": "POST",
    "/logout": "GET POST",
    "/account": "GET",
    "/manager/list": "GET",
    "/manager/list_for_project/1": "GET",
    "/manager/promote/1": "GET POST",
    "/manager/demote/1": "GET POST",
    "/manager/block/1": "POST",
    "/manager/unblock/1": "POST",
    "/manager/delete/1": "POST",
    "/manager/set_role_for_project/1": "POST",
}


def test_the_paths_above_are_all_of_the_api() -> None:
    methods: dict[str, set[str]] = {}
    for row in tracker.API:
        ids = {"level": "info", "job": "0123456789abcdef01234567"}
        path = re.sub(r"\{(\w+)\}", lambda match, ids=ids: ids.get(match[1], "1"), row.path)
        methods.setdefault(path, set()).update(row.methods.split())
    known = {path: set(methods.split()) for path, methods in METHODS.items()}
    assert {path: those for path, those in methods.items() if known.get(path) != those} == {}


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_every_path_of_the_api_is_served_with_its_methods_and_any_other_is_405(site: Site, prefix: str) -> None:
    for path, methods in METHODS.items():
        answers = {one: site.guest.request(one, prefix + path) for one in ("GET", "POST", "PUT", "DELETE", "PATCH")}
        served = [one for one, answer in answers.items() if answer.status_code != 405]
        assert (path, " ".join(served)) == (path, methods)
        refusals = [answer for answer in answers.values() if answer.status_code == 405]
        assert all(refusal.json()["ok"] is False and refusal.json()["message"] for refusal in refusals)
        assert all(set(refusal.headers["Allow"].split(", ")) & set(served) for refusal in refusals)


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_any_other_path_is_404_in_the_form_of_every_refusal(site: Site, prefix: str) -> None:
    answer = site.guest.get(f"{prefix}/task/steal/1")
    assert (answer.status_code, answer.json()["ok"]) == (404, False)
    assert answer.json()["message"]
