"""A project is moved from one tracker to another as one file, and goes on there where it was."""

from __future__ import annotations

import gzip
import hashlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import nursery
import pytest
from conftest import Manager, Site, Worker, wait_until
from test_budgets import check_budgets
from test_pages import Tab
from test_worker import free_port, tracker_process

import budgets
import lines
import moving
import server
import tracker

WORKER = Path(__file__).parent.parent / "worker.py"


@pytest.fixture
def other(make_site: Callable[..., Site], tmp_path: Path) -> Site:
    """The tracker to which projects are moved."""
    return make_site(database=str(tmp_path / "other.db"), log_file=str(tmp_path / "other.log"))


def exported(manager: Manager, project: int, **body: Any) -> bytes:
    answer = manager.post(f"/project/export/{project}", body)
    assert answer.status_code == 200, answer.text
    return answer.content


def send(manager: Manager, file: bytes, **query: Any) -> httpx.Response:
    return manager.http.post("/project/import", content=file, params=query)


def imported(manager: Manager, file: bytes, **query: Any) -> int:
    """The project that the file becomes, when all of it is there."""
    answer = send(manager, file, **query)
    assert answer.status_code == 200, answer.text
    operation = f"/operation/{answer.json()['content']['operation']}"
    wait_until(lambda: manager.get(operation).json()["content"]["operation"]["state"] == "finished")
    return answer.json()["content"]["project"]


def sealed(*lines: dict[str, Any]) -> bytes:
    """A file of these lines, with the end that belongs to it."""
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    counts = Counter()
    for line in lines:
        counts[line["type"]] += len(line.get("hashes", [1]))
    end = {"type": "end", "counts": counts, "sha256": hashlib.sha256(text).hexdigest()}
    return text + json.dumps(end).encode() + b"\n"


HEADER = {"type": "header", "format": 1, "tracker": "1", "exported": 1}
BARE = {"type": "project", "settings": {"name": "bare"}}


def check_file(site: Site) -> None:
    """Nothing of a failed import is left, and the budgets are right."""
    for table in "operation", "bulk_piece":
        assert site.read(f"SELECT * FROM {table} WHERE {'NOT accepted' if table == 'operation' else 'TRUE'}") == []
    with sqlite3.connect(site.settings.database) as connection:
        connection.row_factory = sqlite3.Row
        check_budgets(connection)
    connection.close()


# ── A crawl in the middle ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_crawl_is_moved_in_the_middle_and_each_of_its_pages_is_closed_once(site: Site, other: Site) -> None:
    """Workers hold tasks while it is moved, and find pages anew on either side that are done already."""
    project = site.admin.create_project("crawl", keep_hashes=True)
    workers = [site.create_worker(project, f"crawler {number}") for number in range(3)]
    links = {page: [(page * 3 + 1) % 150, (page * 7 + 2) % 150, page // 2] for page in range(150)}

    def submit(worker: Worker, project: int, page: int) -> None:
        assert worker.submit(project, str(page), unique_string=f"page {page}").status_code in (200, 409)

    def work(worker: Worker, project: int, closed: list[int]) -> bool:
        task = worker.assigned(project)
        if task is None:
            return False
        page = int(task["recipe"])
        for link in links[page]:
            submit(worker, project, link)
        closed += [page] * worker.released(task["id"])
        return True

    first: list[int] = []
    submit(workers[0], project, 0)
    for number in range(40):
        assert work(workers[number % 3], project, first)
    held = [(worker, worker.assigned(project)) for worker in workers]
    left = site.read("SELECT COUNT(*) FROM task WHERE project = ?", project)[0][0]

    file = exported(site.admin, project)
    for worker, task in held:
        assert worker.released(task["id"]) is False  # it goes on elsewhere
        assert worker.assigned(project) is None
    new = imported(other.admin, file)

    movers = [other.create_worker(new, f"crawler {number}") for number in range(3)]
    assert other.admin.project(new)["waiting_task_count"] == left
    assert other.admin.project(new)["closed_task_count"] == len(first) == 40
    assert movers[0].assigned(new) is None  # until somebody resumes it
    other.admin.update_project(new, paused=False)
    second: list[int] = []
    while sum(work(worker, new, second) for worker in movers):
        pass
    reached, todo = set(), {0}
    while todo:
        page = todo.pop()
        reached.add(page)
        todo |= set(links[page]) - reached
    assert Counter(first + second) == Counter(reached)
    assert other.admin.counts(new) == {"closed": len(reached)}


# ── What is moved ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_secrets_templates_and_the_chain_come_along(site: Site, other: Site) -> None:
    chain = site.admin.create_project("the next one")
    fields = {"motd": "Hello\n☃", "priority": 7, "assign_rate": 2.5, "retry_delay": 3.0, "max_lost_leases": 4}
    project = site.admin.create_project("mine", **fields, keep_hashes=True, public=True, chain=chain)
    site.admin.post(f"/project/secret/{project}", {"secret": '{"key": "x"}'})
    site.admin.post(f"/project/webhook_secret/{project}", {"webhook_secret": "hook"})
    template = {"name": "build", "script": "#!/bin/sh\n", "variables": [{"name": "a", "value": 1}], "api": True}
    site.admin.post("/template/create", {"project": project, **template, "key": "a long key"})
    next_one = other.admin.create_project("the next one")
    new = imported(other.admin, exported(site.admin, project))
    shown, before = other.admin.project(new), site.admin.project(project)
    assert {**shown, "id": 0} == {**before, "id": 0, "chain": next_one, "paused": True}
    assert other.admin.get(f"/project/secret/{new}").json()["content"]["secret"] == '{"key": "x"}'
    assert other.admin.get(f"/project/webhook_secret/{new}").json()["content"]["webhook_secret"] == "hook"
    [made] = other.admin.get(f"/template/list/{new}").json()["content"]["templates"]
    whole = other.admin.get(f"/template/get/{made['id']}").json()["content"]["template"]
    assert (whole["script"], whole["variables"][0]["value"]) == ("#!/bin/sh\n", 1)
    assert (whole["api"], whole["has_key"]) == (False, False)  # nobody triggers it without the key that it had


def test_a_file_does_not_name_a_hidden_project_that_one_does_not_see(site: Site) -> None:
    hidden, manager = site.admin.create_project("veiled", hidden=True), site.create_manager()
    project = site.admin.create_project(chain=hidden)
    site.admin.set_role(project, manager, tracker.ALL_ROLES)
    told = [json.loads(exported(one, project).splitlines()[1]) for one in (site.admin, manager)]
    assert [(one["chain"], one["left_out"]) for one in told] == [("veiled", {}), (None, {"chain": 1})]
    site.admin.set_role(hidden, manager, tracker.READ)
    assert json.loads(exported(manager, project).splitlines()[1])["chain"] == "veiled"


def test_secrets_are_left_out_if_that_is_wanted(site: Site) -> None:
    project = site.admin.create_project()
    site.admin.post(f"/project/secret/{project}", {"secret": "classified"})
    hook = site.read("SELECT webhook_secret FROM project")[0][0]
    assert b"classified" in exported(site.admin, project)
    file = exported(site.admin, project, secrets=False)
    assert b"classified" not in file and hook.encode() not in file


def test_tasks_keep_what_they_have_been_through(site: Site, other: Site) -> None:
    """What was held waits, failed ones stay failed, delayed ones keep their time, half a verification is none."""
    project = site.admin.create_project()
    a, b = (site.create_worker(project, name) for name in "ab")
    later = site.clock.time() + 5000.25
    a.submit(project, "failed", priority=9)
    a.release(a.assigned(project)["id"], tracker.FAIL, error="HTTP 404 of page 17")
    a.submit(project, "retried", max_retries=5, priority=8)
    a.release(a.assigned(project)["id"], tracker.FAIL)
    a.submit(project, "held", priority=10)
    assert a.assigned(project)["recipe"] == "held"
    a.submit(project, "verified", verification_count=2, priority=11)
    b.release(b.assigned(project)["id"], verification=5)
    a.submit(project, "delayed", not_before=later, unique_string="x")
    new = imported(other.admin, exported(site.admin, project))
    columns = (
        "recipe, status, retries, max_retries, verification_count, priority, not_before, hash64, assignee, verifiers"
    )
    found = {row[0]: row[1:] for row in other.read(f"SELECT {columns} FROM task WHERE project = ?", new)}
    x = tracker.hash_unique_string("x")
    assert found == {
        "failed": (2, 1, 0, 0, 9, None, None, None, None),
        "retried": (1, 1, 5, 0, 8, None, None, None, None),
        "held": (1, 0, 0, 0, 10, None, None, None, None),
        "verified": (1, 0, 0, 2, 11, None, None, None, None),
        "delayed": (3, 0, 0, 0, 0, later, x, None, None),
    }
    assert other.admin.counts(new) == {"waiting": 3, "failed": 1, "delayed": 1}
    assert other.read("SELECT pattern, failed_task_count FROM cause") == [("HTTP 404 of page …", 1)]
    reasons = "SELECT recipe, reason, end_time > 0 FROM failure f JOIN task ON id = f.task ORDER BY id"
    assert other.read(reasons) == [("failed", "HTTP 404 of page 17", 1), ("retried", "", 1)]


def test_access_that_an_import_asks_for_keeps_no_worker_from_asking_itself(site: Site) -> None:
    """Whoever knows its name may import as many projects as there is room for."""
    stranger, worker = site.create_manager(), Worker(site.url, "well known")
    asks = {"type": "access", "alias": "well known", "assign": True, "submit": True}
    for number in range(budgets.MOST_REQUESTS):
        imported(stranger, sealed(HEADER, BARE, asks), name=f"trap {number}")
    assert len(site.read("SELECT 1 FROM worker_access WHERE request")) == budgets.MOST_REQUESTS
    assert worker.request_access(site.admin.create_project()).status_code == 200


def test_access_is_asked_for_again_by_name(site: Site, other: Site) -> None:
    project = site.admin.create_project()
    site.create_worker(project, "known", submit=False)
    site.create_worker(project, "elsewhere")
    known = other.create_worker(alias="known")
    new = imported(other.admin, exported(site.admin, project))
    rows = other.read("SELECT worker, role_assign, role_submit, request FROM worker_access WHERE project = ?", new)
    assert rows == [(known.id, 1, 0, 1)]


def test_jobs_are_left_out_and_counted(site: Site, other: Site) -> None:
    project = site.admin.create_project()
    template = site.admin.post("/template/create", {"project": project, "name": "t"}).json()["content"]["template"]
    for _ in range(3):
        site.admin.post(f"/template/trigger/{template['id']}", {})
    site.create_worker(project).submit(project, "a task")
    file = exported(site.admin, project)
    assert json.loads(file.splitlines()[-1])["counts"]["jobs"] == 3
    new = imported(other.admin, file)
    assert other.read("SELECT recipe FROM task WHERE project = ?", new) == [("a task",)]


def test_a_copy_of_an_import_is_the_same_file(site: Site, other: Site) -> None:
    project = site.admin.create_project("round", keep_hashes=True)
    worker = site.create_worker(project)
    for number in range(700):
        worker.submit(project, f"recipe {number} ☃\r\n", unique_string=str(number), priority=number % 5)
    for _ in range(20):
        worker.release(worker.assigned(project)["id"])
    file = exported(site.admin, project)
    again = exported(other.admin, imported(other.admin, gzip.compress(file)))
    lines = [[line for line in one.splitlines() if b'"type":"access"' not in line][2:-1] for one in (file, again)]
    assert len(lines[0]) == 681 and sorted(lines[0]) == sorted(lines[1])
    assert [line for line in lines[0] if b"task" in line] == [line for line in lines[1] if b"task" in line]


def test_packed_nothing_in_an_imported_file_keeps_nobody_long_and_is_no_part_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB of packed empty files were a minute of a thread for which others wait."""
    taken, read = [], server.Aside.read
    monkeypatch.setattr(lines, "TAKE_TIME", 0)

    async def noted(aside: server.Aside, source: str, function: Callable, *args: Any) -> Any:
        taken.append(function)
        return await read(aside, source, function, *args)

    monkeypatch.setattr(server.Aside, "read", noted)
    nothing = gzip.compress(b"") * 1000
    file = nothing.join(map(gzip.compress, [b"", *sealed(HEADER, BARE, TASK).splitlines(keepends=True), b""]))
    project = imported(site.admin, file)
    assert site.read("SELECT recipe FROM task WHERE project = ?", project) == [(TASK["recipe"],)]
    assert len(taken) > 20


def test_workflows_go_with_their_templates(site: Site, other: Site) -> None:
    project, elsewhere = site.admin.create_project("flows"), site.admin.create_project("elsewhere")

    def template(name: str, of: int = project) -> int:
        body = {"project": of, "name": name, "recipe": name}
        return site.admin.post("/template/create", body).json()["content"]["template"]["id"]

    def workflow(name: str, start: int, *edges: tuple[int, str, int]) -> None:
        listed = [dict(zip(("template", "ending", "target"), edge, strict=True)) for edge in edges]
        body = {"project": project, "name": name, "start": start, "edges": listed}
        assert site.admin.post("/workflow/create", body).status_code == 200

    template("not in one")
    build, deploy, foreign = template("build"), template("deploy"), template("foreign", elsewhere)
    workflow("release", build, (build, "success", deploy), (deploy, "failure", build), (build, "failure", foreign))
    workflow("begins elsewhere", foreign)
    file = exported(site.admin, project)
    assert json.loads(file.splitlines()[1])["left_out"] == {"workflows": 1, "edges": 1}

    other.admin.create_project("other numbers there")
    new = imported(other.admin, file)
    names = {one["id"]: one["name"] for one in other.admin.get(f"/template/list/{new}").json()["content"]["templates"]}
    [moved] = other.admin.get(f"/workflow/list/{new}").json()["content"]["workflows"]
    edges = {(names[edge["template"]], edge["ending"], names[edge["target"]]) for edge in moved["edges"]}
    assert (moved["name"], names[moved["start"]]) == ("release", "build")
    assert edges == {("build", "success", "deploy"), ("deploy", "failure", "build")}
    other.admin.update_project(new, paused=False)
    worker = other.create_worker(new)
    assert other.admin.post(f"/workflow/trigger/{moved['id']}", {}).status_code == 200
    for recipe in ("build", "deploy"):
        task = worker.assigned(new)
        assert task["recipe"] == recipe and worker.released(task["id"])
    assert exported(other.admin, new).count(b'"type":"workflow"') == 1


def test_no_more_workflows_come_than_a_list_shows(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MOST_TEMPLATES", 2)
    template = {"type": "template", "template": {"name": "x"}, "number": 7}
    flows = [{"type": "workflow", "name": name, "start": 7} for name in ("a", "a", "b", "c")]
    project = imported(site.admin, sealed(HEADER, BARE, template, *flows))
    assert site.read("SELECT name FROM workflow WHERE project = ?", project) == [("a",), ("b",)]


# ── What is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_who_has_every_role_exports_a_project(site: Site) -> None:
    project = site.admin.create_project()
    manager = site.create_manager()
    site.admin.set_role(project, manager, tracker.ALL_ROLES - tracker.SECRET)
    assert manager.post(f"/project/export/{project}", {}).status_code == 403
    assert site.admin.project(project)["paused"] is False
    site.admin.set_role(project, manager, tracker.ALL_ROLES)
    assert exported(manager, project)


def test_the_project_is_paused_by_its_export(site: Site) -> None:
    project = site.admin.create_project()
    exported(site.admin, project)
    assert site.admin.project(project)["paused"] is True


def test_a_name_that_is_taken_is_refused_and_another_one_can_be_given(site: Site) -> None:
    project = site.admin.create_project("mine")
    file = exported(site.admin, project)
    answer = send(site.admin, file)
    assert (answer.status_code, answer.json()["field"]) == (409, "name")
    assert "under another name" in answer.json()["message"]
    check_file(site)
    new = imported(site.admin, file, name="mine again")
    assert site.admin.project(new)["name"] == "mine again"


TASK = {"type": "task", "recipe": "a"}
WRONG = {
    "nothing": b"",
    "no JSON": b"hello\n",
    "an export of tasks": b'{"state":"waiting","recipe":"a"}\n',
    "no end": sealed(HEADER, BARE, TASK).rpartition(b'{"type": "end"')[0],
    "a line less": sealed(HEADER, BARE, TASK, TASK).replace(json.dumps(TASK).encode() + b"\n", b"", 1),
    "a line more": sealed(HEADER, BARE, TASK) + json.dumps(TASK).encode() + b"\n",
    "changed": sealed(HEADER, BARE, TASK).replace(b'"recipe": "a"', b'"recipe": "b"'),
    "another format": sealed({**HEADER, "format": 2}, BARE),
    "no project": sealed(HEADER, TASK),
    "two projects": sealed(HEADER, BARE, BARE),
    "no name": sealed(HEADER, {**BARE, "settings": {}}),
    "unknown settings": sealed(HEADER, {**BARE, "settings": {"name": "x", "priority": "high"}}),
    "half a character": sealed(HEADER, BARE, {**TASK, "recipe": "\ud800"}),
    "a NUL": sealed(HEADER, BARE, {**TASK, "recipe": "a\0b"}),
    "a large number": sealed(HEADER, BARE, {**TASK, "hash64": 2**64}),
    "a priority": sealed(HEADER, BARE, {**TASK, "priority": 2**15}),
    "more closed tasks than can be counted on": sealed(HEADER, {**BARE, "closed_task_count": 2**63 - 1}),
    "more attempts than can be counted on": sealed(HEADER, BARE, {**TASK, "retries": 2**63 - 1}),
    "more lost leases than can be counted on": sealed(HEADER, BARE, {**TASK, "lost_leases": 2**63 - 1}),
    "a bad template": sealed(HEADER, BARE, {"type": "template", "template": {"name": " "}}),
    "a workflow of templates that are not in it": sealed(HEADER, BARE, {"type": "workflow", "name": "x", "start": 1}),
    "a workflow without a name": sealed(
        HEADER,
        BARE,
        {"type": "template", "template": {"name": "x"}, "number": 1},
        {"type": "workflow", "name": " ", "start": 1},
    ),
    "deeply nested": sealed(HEADER, BARE).replace(b'"bare"', b"[" * 100_000 + b"]" * 100_000),
    "gzip that is cut": gzip.compress(sealed(HEADER, BARE))[:-20],
}


MANY = [[]] * 200_000


@pytest.mark.parametrize(
    "line",
    [
        {**BARE, "settings": {"name": "x", "more": MANY}},
        {**BARE, "left_out": {str(number): 1 for number in range(200_000)}},
        {"type": "template", "template": {"name": "x", "variables": MANY}},
    ],
    ids=["settings", "left out", "template"],
)
def test_what_would_become_very_many_objects_is_refused_before_it_does(site: Site, line: dict[str, Any]) -> None:
    """A file of a few KiB, packed, would hold everybody up for seconds, and take much memory."""
    lines = [line] if line["type"] == "project" else [BARE, line]
    answer = send(site.admin, gzip.compress(sealed(HEADER, *lines)))
    assert (answer.status_code, answer.json()["field"]) == (413, "file"), answer.text
    assert "lists, objects and names" in answer.json()["message"]
    check_file(site)


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_is_not_whole_and_right_leaves_nothing(site: Site, kind: str) -> None:
    before = site.dump()
    answer = send(site.admin, WRONG[kind])
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"], answer.text
    assert site.dump() == before
    check_file(site)


def test_a_file_that_is_as_it_should_be_is_taken(site: Site) -> None:
    """What the wrong ones are made of."""
    assert imported(site.admin, sealed(HEADER, BARE, TASK, {"type": "hashes", "hashes": [1, 2]}))


@pytest.mark.parametrize(
    "lines",
    [[{**TASK, "verification_count": 30_000}] * 4, [{"type": "hashes", "hashes": list(range(10_000))}] * 15],
    ids=["verifications", "hashes"],
)
def test_what_nobody_trusts_has_room_for_what_becomes_of_the_file(
    make_site: Callable[..., Site], lines: list[dict[str, Any]]
) -> None:
    """Which may be much more than the file itself: there would be no room for anybody else then."""
    site = make_site(max_untrusted_projects=11)
    answer = send(site.create_manager(), sealed(HEADER, BARE, *lines))
    assert answer.status_code == 503 and "trusts" in answer.text
    check_file(site)
    assert imported(site.admin, sealed(HEADER, BARE, *lines))


def test_what_nobody_trusts_has_no_long_tasks_by_a_file_either(site: Site) -> None:
    file = sealed(HEADER, BARE, TASK, {**TASK, "recipe": "x" * 300_000})
    answer = send(site.create_manager(), file)
    assert answer.status_code == 413 and "(setting max_untrusted_text)" in answer.text
    check_file(site)
    assert imported(site.admin, file)


def test_templates_come_though_the_project_is_archived_meanwhile(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of an import that was accepted comes, as do those where there is no room on the disk any more."""
    go_on = threading.Event()
    step = tracker.STEPS["import_project"]
    monkeypatch.setitem(tracker.STEPS, "import_project", lambda *args: step(*args) if go_on.is_set() else (0, 0))
    template = {"type": "template", "template": {"name": "build", "script": "x"}}
    answer = send(site.admin, sealed(HEADER, BARE, template, TASK)).json()["content"]
    assert site.admin.update_project(answer["project"], archived=True).status_code == 200
    go_on.set()
    wait_until(lambda: site.read("SELECT 1 FROM operation WHERE finished IS NOT NULL"))
    assert site.read("SELECT name FROM template") == [("build",)]
    check_file(site)


def test_nothing_is_left_of_a_project_that_is_deleted_while_it_comes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    step = tracker.STEPS["import_project"]
    monkeypatch.setitem(tracker.STEPS, "import_project", lambda *args: step(*args) if go_on.is_set() else (0, 0))
    template = {"type": "template", "template": {"name": "build", "script": "x"}}
    failed = {**TASK, "recipe": "b", "state": "failed", "reason": "why"}
    file = sealed(HEADER, BARE, template, {"type": "hashes", "hashes": [1]}, TASK, failed)
    answer = send(site.create_manager(), file).json()["content"]
    assert site.admin.post(f"/project/delete/{answer['project']}", {"name": "bare"}).status_code == 200
    go_on.set()
    wait_until(lambda: not site.read("SELECT 1 FROM operation WHERE finished IS NULL"))
    for table in ("task", "template", "kept_hash", "failure", "cause"):
        assert site.read(f"SELECT * FROM {table}") == [], table
    check_file(site)


@pytest.mark.parametrize("field", ["name", "token"])
def test_no_name_has_a_nul_character(site: Site, field: str) -> None:
    """Such a project could be exported, and imported nowhere."""
    answer = send(site.admin, sealed(HEADER, BARE), **{field: "a\0b"})
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert site.read("SELECT name FROM project") == []
    check_file(site)


def test_a_repeated_import_is_answered_as_the_first_time(site: Site) -> None:
    file = sealed(HEADER, BARE, TASK)
    first = send(site.admin, file, token="once").json()
    assert send(site.admin, file, token="once").json() == first
    assert len(site.read("SELECT id FROM project")) == 1


def test_a_repeated_import_is_answered_though_there_is_no_room_for_another_one(make_site: Callable[..., Site]) -> None:
    site, file = make_site(max_untrusted_projects=6), sealed(HEADER, BARE, TASK)
    manager = site.create_manager()
    first = send(manager, file, token="once").json()
    assert send(manager, file, token="another").status_code == 503
    assert send(manager, file, token="once").json() == first


def test_an_import_that_comes_again_while_the_first_is_read_is_answered_as_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client had no answer, and the file of its first call was still on its way."""
    file, find = sealed(HEADER, BARE, TASK), moving.find_import
    first = send(site.admin, file, token="once").json()

    def find_before(*args: Any) -> tuple[None, bool]:
        monkeypatch.setattr(moving, "find_import", find)
        return None, True

    monkeypatch.setattr(moving, "find_import", find_before)
    assert send(site.admin, file, token="once").json() == first
    monkeypatch.setattr(moving, "find_import", find_before)
    assert send(site.admin, file, token="another").status_code == 409


def test_what_was_staged_and_not_accepted_is_gone_at_the_next_start(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise tracker.TrackerError("unavailable", "as if it had been killed")

    site = make_site()
    monkeypatch.setattr(moving, "accept_import", fail)
    assert send(site.admin, sealed(HEADER, BARE, *[TASK] * 300)).status_code == 503
    check_file(site)
    assert site.read("SELECT COUNT(*) FROM task") == [(0,)]


# ── Managers whom nobody trusts ───────────────────────────────────────────────────────────────────────────────────────


def test_an_import_of_a_stranger_counts_for_the_budget(make_site: Callable[..., Site]) -> None:
    site = make_site(max_untrusted_projects=7)
    stranger = site.create_manager()
    new = imported(stranger, sealed(HEADER, BARE, *[TASK] * 300, {"type": "hashes", "hashes": [1, 2]}))
    assert site.read("SELECT trusted FROM project WHERE id = ?", new) == [(0,)]
    check_file(site)
    before = site.dump()
    large = sealed(HEADER, {**BARE, "settings": {"name": "large"}}, *[{**TASK, "recipe": "x" * 1000}] * 2000)
    assert send(stranger, large).status_code == 503
    assert site.dump() == before
    check_file(site)


def test_a_stranger_makes_nothing_public(site: Site) -> None:
    stranger = site.create_manager()
    new = imported(stranger, sealed(HEADER, {**BARE, "settings": {"name": "x", "public": True}}))
    assert stranger.project(new)["public"] is False


def test_nobody_else_imports(site: Site) -> None:
    assert site.guest.post("/project/import", content=sealed(HEADER, BARE)).status_code == 401


# ── By worker.py ──────────────────────────────────────────────────────────────────────────────────────────────────────


def command(site: Site, folder: Path, *words: str, password: str = "password") -> Any:
    """Runs worker.py as admin, with the password on its standard input."""
    name, *rest = words
    return nursery.run(WORKER, [name, "--server", site.url, "--user", "admin", *rest], folder, f"{password}\n")


def test_worker_py_moves_a_project(site: Site, other: Site, tmp_path: Path) -> None:
    project = site.admin.create_project("crawl")
    worker = site.create_worker(project)
    for number in range(20):
        worker.submit(project, f"recipe {number}")
    file = tmp_path / "crawl.jsonl"
    done = command(site, tmp_path, "export", str(project), str(file))
    assert done.returncode == 0, done.stderr
    assert "20 tasks" in done.stdout and file.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))
    done = command(other, tmp_path, "import", str(file), "--name", "moved")
    assert done.returncode == 0, done.stderr
    assert "20 tasks imported" in done.stdout
    assert other.read("SELECT name, waiting_task_count, paused FROM project") == [("moved", 20, 1)]
    assert other.read("SELECT * FROM session WHERE created > 0 AND manager = 1") == other.read(
        "SELECT * FROM session LIMIT 1"
    )  # it has logged out


def test_worker_py_says_what_keeps_it_from_moving_one(site: Site, tmp_path: Path) -> None:
    project = site.admin.create_project("crawl")
    file = tmp_path / "crawl.jsonl"
    wrong = command(site, tmp_path, "export", str(project), str(file), password="wrong password")
    assert wrong.returncode == 2 and "does not log admin in" in wrong.stderr
    missing = command(site, tmp_path, "export", "99", str(file))
    assert missing.returncode == 2 and "No project 99" in missing.stderr
    assert not list(tmp_path.glob("crawl*"))
    assert command(site, tmp_path, "export", str(project), str(file)).returncode == 0
    again = command(site, tmp_path, "export", str(project), str(file))
    assert again.returncode == 2 and "is there already" in again.stderr
    taken = command(site, tmp_path, "import", str(file))
    assert taken.returncode == 2 and "under another name" in taken.stderr
    file.write_bytes(file.read_bytes()[:-10])
    cut = command(site, tmp_path, "import", str(file), "--name", "another")
    assert cut.returncode == 2 and "none of an exported project" in cut.stderr
    for one in wrong, missing, again, taken, cut:
        assert "Traceback" not in one.stderr


def test_an_export_that_breaks_off_leaves_no_file(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that a manager changes meanwhile would be in it twice, or not at all."""
    project = site.admin.create_project()
    site.create_worker(project).submit(project)
    read_head = moving.read_head
    monkeypatch.setattr(moving, "read_head", lambda *args: [read_head(*args)[0], 2, read_head(*args)[2]])
    done = command(site, tmp_path, "export", str(project), str(tmp_path / "file"), "--patience", "1")
    assert done.returncode == 2 and not list(tmp_path.glob("file*"))


# ── On pages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_project_is_exported_and_imported_on_pages(site: Site, other: Site) -> None:
    project = site.admin.create_project("crawl")
    site.create_worker(project).submit(project, "a")
    tab, there = Tab(site.admin.http), Tab(other.admin.http)
    hook = site.read("SELECT webhook_secret FROM project")[0][0]
    assert tab.open(f"/ui/projects/{project}/edit").form("/edit/export") is not None
    assert hook not in tab.post(f"/ui/projects/{project}/edit/export", {"secrets": "false"}).text
    answer = tab.post(f"/ui/projects/{project}/edit/export", {"secrets": "true"})
    assert answer.headers["content-disposition"].startswith("attachment") and hook in answer.text
    files = {"files": {"file": ("crawl.jsonl", answer.content)}}
    assert there.open("/ui/projects/import").form("/ui/projects/import") is not None
    page = there.act("/ui/projects/import", {"name": "moved"}, **files)
    wait_until(lambda: other.read("SELECT waiting_task_count, name FROM project") == [(1, "moved")])
    assert page.status == 200 and "Imported: 1 tasks" not in page.text
    again = there.act("/ui/projects/import", {"name": "moved"}, **files)
    assert again.status == 409 and "under another name" in again.text
    none = there.act("/ui/projects/import", {"name": "x"}, files={"file": ("", b"")})
    assert none.status == 400 and "choose a file" in none.text


def test_a_button_for_the_export_is_for_those_who_may(site: Site) -> None:
    project = site.admin.create_project("crawl")
    manager = site.create_manager()
    site.admin.set_role(project, manager, tracker.EDIT | tracker.READ)
    tab = Tab(manager.http)
    assert "edit/export" not in tab.open(f"/ui/projects/{project}/edit").text
    assert tab.post(f"/ui/projects/{project}/edit/export").status_code == 403


def test_an_import_that_was_accepted_is_finished_after_a_crash(tmp_path: Path) -> None:
    """By a tracker that is run as a program, as it is run for real."""
    port = free_port()
    tasks = [{**TASK, "recipe": str(number)} for number in range(5000)]
    with tracker_process(tmp_path, port):  # which kills it in the end
        admin = Manager(f"http://127.0.0.1:{port}", "admin")
        made = send(admin, sealed(HEADER, BARE, *tasks)).json()["content"]
    with tracker_process(tmp_path, port):
        operation = f"/operation/{made['operation']}"
        wait_until(lambda: admin.get(operation).json()["content"]["operation"]["state"] == "finished", 60)
        assert admin.counts(made["project"]) == {"waiting": len(tasks)}


@pytest.mark.parametrize("state", ["waiting", "failed"])
def test_a_task_that_had_failed_leaves_nothing_behind_when_it_is_closed_here(site: Site, state: str) -> None:
    task = {**TASK, "state": state, "retries": 1, "max_retries": 3, "reason": "HTTP 503", "failed": 7}
    new = imported(site.admin, sealed(HEADER, BARE, task))
    assert site.read("SELECT used FROM budget WHERE name = 'reasons'") == [(8,)]
    site.admin.post(f"/project/reset_failed_tasks/{new}")
    wait_until(lambda: site.admin.counts(new) == {"waiting": 1})
    site.admin.update_project(new, paused=False)
    worker = site.create_worker(new)
    worker.release(worker.assigned(new)["id"])
    assert site.admin.counts(new) == {"closed": 1}
    assert site.read("SELECT * FROM failure") == []
    assert site.read("SELECT used FROM budget WHERE name = 'reasons'") == [(0,)]


def test_failed_tasks_without_a_reason_are_a_group_that_goes_when_they_are_retried(site: Site) -> None:
    tasks = [{**TASK, "recipe": recipe, "state": "failed"} for recipe in "ab"]
    project = imported(site.admin, sealed(HEADER, BARE, *tasks, {**TASK, "recipe": "c", "retries": 2}))
    groups = "SELECT pattern, failed_task_count FROM cause WHERE project = ?"
    assert site.read(groups, project) == [("", 2)]
    failures = Tab(site.admin.http).open(f"/ui/projects/{project}").tree.get_element_by_id("failures")
    assert "no reason given" in failures.text_content()
    site.admin.post(f"/project/reset_failed_tasks/{project}")
    wait_until(lambda: site.admin.counts(project) == {"waiting": 3})
    assert site.read(groups, project) == []


def test_lines_and_files_of_anybody_are_read_one_piece_at_a_time_in_turns(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen uploads at once, on as many threads as there are, made the workers wait ten times as long."""
    threads, take = [], tracker.take_pieces

    def noted(pieces: Any) -> list[bytes]:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return take(pieces)

    monkeypatch.setattr(tracker, "take_pieces", noted)
    project = imported(site.admin, sealed(HEADER, BARE, TASK))
    worker = site.create_worker(project)
    assert worker.http.post(f"/task/submit_lines/{project}", content=b"a\nb\n").status_code == 200
    page = Tab(site.admin.http).act(f"/ui/projects/{project}/submit/lines", {"lines": "c"})
    assert page.status == 200
    assert len(threads) >= 6 and set(threads) == {"aside"}
