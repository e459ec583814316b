"""Access: the document's table of permissions, cell by cell, and how a worker comes to its rights and loses them."""

import httpx
import pytest
from conftest import Manager, Site, Worker
from place import Queue

import shapes
import tracker
from tracker import EDIT, MAINTENANCE, MANAGE_ACCESS, READ, SECRET

VISIBILITY = {
    "public": {"public": True},
    "private": {},
    "hidden": {"hidden": True},
}


def may_assign(worker: Worker, project: int) -> bool:
    """Whether the worker is assigned the task that waits in the project."""
    answer = worker.assign(project).json()
    refused = (f"You have no ASSIGN access to project {project}", f"No project {project}")
    assert answer["ok"] or answer.get("reason", answer["message"]) in refused
    return answer["ok"]


def may_submit(worker: Worker, project: int) -> bool:
    answer = worker.submit(project)
    assert answer.status_code in (200, 403, 404)
    bulk = worker.bulk_submit([{"project": project, "recipe": "x"}])
    assert bulk.status_code == answer.status_code
    return answer.status_code == 200


def may_read(http: httpx.Client, project: int) -> bool:
    """Whether somebody sees the project, alone and in the list alike."""
    answer = http.get(f"/project/get/{project}")
    assert answer.status_code in (200, 404)
    listed = [one["id"] for one in http.get("/project/list").json()["content"]["projects"]]
    assert listed == ([project] if answer.status_code == 200 else [])
    return answer.status_code == 200


def rights(worker: Worker, project: int) -> str:
    """What a worker may do: A = assign, S = submit, R = read, as in the document."""
    letters = "A" if may_assign(worker, project) else ""
    letters += "S" if may_submit(worker, project) else ""
    return letters + ("R" if may_read(worker.http, project) else "")


def project_with_task(site: Site, visibility: str) -> int:
    project = site.admin.create_project(**VISIBILITY[visibility])
    assert site.create_worker(project).submit(project).status_code == 200
    return project


def manager_with(site: Site, project: int, role: int) -> Manager:
    manager = site.create_manager()
    assert site.admin.set_role(project, manager, role).status_code == 200
    return manager


# ── The table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("visibility, allowed", [("public", "AR"), ("private", "R"), ("hidden", "")])
def test_rights_of_a_worker_with_no_role(site: Site, visibility: str, allowed: str) -> None:
    project = project_with_task(site, visibility)
    assert rights(site.create_worker(), project) == allowed


@pytest.mark.parametrize("visibility, allowed", [("public", "AR"), ("private", "AR"), ("hidden", "A")])
def test_rights_of_a_worker_with_assign(site: Site, visibility: str, allowed: str) -> None:
    project = project_with_task(site, visibility)
    assert rights(site.create_worker(project, submit=False), project) == allowed


@pytest.mark.parametrize("visibility, allowed", [("public", "ASR"), ("private", "ASR"), ("hidden", "AS")])
def test_rights_of_a_worker_with_submit_on_top_of_assign(site: Site, visibility: str, allowed: str) -> None:
    project = project_with_task(site, visibility)
    assert rights(site.create_worker(project), project) == allowed


@pytest.mark.parametrize("visibility, allowed", [("public", "ASR"), ("private", "SR"), ("hidden", "S")])
def test_submit_without_assign_opens_no_more_than_submit(site: Site, visibility: str, allowed: str) -> None:
    project = project_with_task(site, visibility)
    assert rights(site.create_worker(project, assign=False), project) == allowed


@pytest.mark.parametrize("visibility", VISIBILITY)
def test_a_manager_with_read_reads_every_project(site: Site, visibility: str) -> None:
    project = project_with_task(site, visibility)
    assert may_read(manager_with(site, project, READ).http, project)


@pytest.mark.parametrize("visibility, allowed", [("public", True), ("private", True), ("hidden", False)])
def test_a_manager_without_read_reads_what_everybody_reads(site: Site, visibility: str, allowed: bool) -> None:
    project = project_with_task(site, visibility)
    assert may_read(site.create_manager().http, project) is allowed
    assert may_read(manager_with(site, project, EDIT | MANAGE_ACCESS | SECRET | MAINTENANCE).http, project) is allowed


@pytest.mark.parametrize("visibility, allowed", [("public", True), ("private", True), ("hidden", False)])
def test_a_guest_reads_what_everybody_reads(site: Site, visibility: str, allowed: bool) -> None:
    project = project_with_task(site, visibility)
    assert may_read(site.guest, project) is allowed


def test_a_managers_roles_let_nobody_assign_or_submit(site: Site) -> None:
    project = project_with_task(site, "public")
    http = site.admin.http
    assert http.get(f"/task/get/{project}").status_code == 401
    assert http.post("/task/submit", json={"project": project, "recipe": "x"}).status_code == 401


@pytest.mark.parametrize("visibility, allowed", [("private", "R")])
def test_a_request_that_waits_opens_nothing(site: Site, visibility: str, allowed: str) -> None:
    project = project_with_task(site, visibility)
    worker = site.create_worker()
    assert worker.request_access(project).status_code == 200
    assert rights(worker, project) == allowed
    assert worker.http.get(f"/project/secret/{project}").status_code == 403


def test_rights_in_one_project_are_none_in_another(site: Site) -> None:
    project, other = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(project)
    assert worker.submit(other).status_code == 403
    assert not may_assign(worker, other)


# ── /project/request_access ───────────────────────────────────────────────────────────────────────────────────────────


def accesses(site: Site, project: int) -> list[dict]:
    return site.admin.get(f"/project/access_list/{project}").json()["content"]["accesses"]


def accept(site: Site, project: int, worker: Worker) -> int:
    return site.admin.post(f"/project/accept_request/{project}/{worker.id}").status_code


def reject(site: Site, project: int, worker: Worker) -> int:
    return site.admin.post(f"/project/reject_request/{project}/{worker.id}").status_code


def test_a_request_asks_for_assign_or_submit_or_both(site: Site) -> None:
    for assign, submit in [(True, False), (False, True), (True, True)]:
        project = site.admin.create_project()
        worker = site.create_worker(alias="asking")
        assert worker.request_access(project, assign, submit).json() == {"ok": True}
        about_worker = {"id": worker.id, "alias": "asking", "paused": False}
        [access] = accesses(site, project)
        assert access.pop("worker").items() >= about_worker.items()
        assert access == {"assign": assign, "submit": submit, "request": True, "project": project}


def test_a_request_for_nothing_is_refused(site: Site) -> None:
    project = site.admin.create_project()
    assert site.create_worker().request_access(project, False, False).status_code == 400
    assert accesses(site, project) == []


def test_a_request_is_refused_while_one_is_pending_or_granted(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker()
    assert worker.request_access(project, submit=False).status_code == 200
    assert worker.request_access(project).status_code == 409
    assert accept(site, project, worker) == 200
    assert worker.request_access(project).status_code == 409
    assert [(one["assign"], one["submit"]) for one in accesses(site, project)] == [(True, False)]


def test_a_request_for_a_project_that_does_not_exist_is_404(site: Site) -> None:
    assert site.create_worker().request_access(7).status_code == 404


# ── Accepting, rejecting, withdrawing ─────────────────────────────────────────────────────────────────────────────────


def test_a_rejected_request_is_gone_and_may_be_made_again(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker()
    worker.request_access(project)
    assert reject(site, project, worker) == 200
    assert accesses(site, project) == []
    assert worker.request_access(project).status_code == 200


def test_rejecting_withdraws_a_granted_access_at_once(site: Site) -> None:
    project = project_with_task(site, "private")
    worker = site.create_worker(project)
    assert reject(site, project, worker) == 200
    assert rights(worker, project) == "R"
    assert worker.http.get(f"/project/secret/{project}").status_code == 403


def test_a_worker_whose_access_was_withdrawn_may_still_release_what_it_holds(site: Site) -> None:
    project = project_with_task(site, "private")
    worker = site.create_worker(project)
    task = worker.assigned(project)
    reject(site, project, worker)
    assert worker.released(task["id"])


def test_accepting_twice_is_409(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker()
    worker.request_access(project)
    assert [accept(site, project, worker), accept(site, project, worker)] == [200, 409]


def test_accepting_or_rejecting_what_nobody_asked_for_is_404(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker()
    assert [accept(site, project, worker), reject(site, project, worker)] == [404, 404]
    assert accesses(site, project) == []


def test_the_access_list_shows_waiting_requests_first_and_never_a_secret(site: Site) -> None:
    project = site.admin.create_project()
    granted = site.create_worker(project, alias="a granted one")
    waiting = site.create_worker(alias="z waiting one")
    waiting.request_access(project)
    listed = accesses(site, project)
    assert [(one["worker"]["alias"], one["request"]) for one in listed] == [
        ("z waiting one", True),
        ("a granted one", False),
    ]
    assert set(listed[0]["worker"]) == {"id", "created", "alias", "paused"}
    assert not any(worker.secret in str(listed) for worker in (granted, waiting))


# ── Access that nobody asked for ──────────────────────────────────────────────────────────────────────────────────────


def access(queue: Queue, worker: int) -> list[tuple]:
    return queue.values("SELECT role_assign, role_submit, request FROM worker_access WHERE worker = ?", worker)


def test_a_manager_gives_a_worker_exactly_this_access_asked_for_or_not() -> None:
    queue = Queue()
    asking, silent = (queue.do(tracker.create_worker, None, shapes.AliasBody())["worker"] for _ in range(2))
    caller = tracker.WorkerCredentials(asking["id"], asking["secret"].encode())
    queue.do(tracker.request_access, caller, shapes.AccessBody(queue.project, assign=True, submit=True))
    for worker in asking["id"], silent["id"]:
        body = shapes.WorkerRolesBody(worker, submit=True)
        queue.do(tracker.set_worker_access, queue.session, queue.project, body)
        assert access(queue, worker) == [(0, 1, 0)]
    queue.submit()
    refusal = queue.refusal(tracker.assign_tasks, caller, [queue.project])
    assert refusal == f"forbidden: You have no ASSIGN access to project {queue.project}"


def test_giving_access_needs_manage_access_a_worker_and_something_to_give() -> None:
    queue = Queue()
    body = shapes.WorkerRolesBody(queue.worker.id, assign=True)
    for role in READ, EDIT, SECRET, MAINTENANCE:
        session = queue.create_manager(f"manager {role}", role)
        assert queue.refusal(tracker.set_worker_access, session, queue.project, body).startswith("forbidden")
    giver, nothing = queue.create_manager("giver", MANAGE_ACCESS), shapes.WorkerRolesBody(queue.worker.id)
    assert queue.refusal(tracker.set_worker_access, giver, queue.project, nothing).startswith("invalid: assign, submit")
    unknown = shapes.WorkerRolesBody(99, assign=True)
    assert queue.refusal(tracker.set_worker_access, giver, queue.project, unknown) == "not_found: No worker 99"
    queue.do(tracker.set_worker_access, giver, queue.project, body)
    assert access(queue, queue.worker.id) == [(1, 0, 0)]
