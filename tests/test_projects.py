"""Projects: creation, changes, visibility, secrets, and who may do all that."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import Manager, Site, Worker
from test_pages import Tab

import projects
import shapes
import tracker
from tracker import EDIT, MAINTENANCE, MANAGE_ACCESS, NEW_PROJECT, READ, SECRET

UNLIMITED = 1.7976931348623157e308  # what existing clients compare with
EVERY_ROLE = READ | EDIT | MANAGE_ACCESS | SECRET | MAINTENANCE
COUNTS = dict.fromkeys(shapes.COUNT_COLUMNS, 0)


def create(manager: Manager, **fields: Any) -> httpx.Response:
    return manager.post("/project/create", fields)


def other_values(**given: Any) -> dict[str, Any]:
    """The fields of a project: as given, or else with values that are not their defaults."""
    other = {bool: True, str: "other", int: 7, float: 0.25, type(None): 3}
    return {name: other[type(default)] for name, default in NEW_PROJECT.items()} | given


def manager_with(site: Site, project: int, role: int) -> Manager:
    """A manager who has exactly this role in the project."""
    manager = site.create_manager()
    assert site.admin.set_role(project, manager, role).status_code == 200
    return manager


def listed(http: httpx.Client) -> list[str]:
    """The names of the projects that somebody sees, in the order of the list."""
    return [project["name"] for project in http.get("/project/list").json()["content"]["projects"]]


def message(answer: httpx.Response) -> str:
    return answer.json()["message"]


# ── /project/create ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_project_is_created_with_all_its_fields(site: Site) -> None:
    target = site.admin.create_project()
    motd = "Hello\nworld ☃"
    fields = other_values(name="My project", priority=999, motd=motd, hidden=False, chain=target)
    answer = create(site.admin, **fields)
    assert answer.json() == {"ok": True, "content": {"id": target + 1}}
    assert site.admin.project(target + 1) == {"id": target + 1, **fields, **COUNTS}


def test_a_project_needs_nothing_but_a_name(site: Site) -> None:
    project = site.admin.project(create(site.admin, name="bare").json()["content"]["id"])
    assert project == {
        **NEW_PROJECT,
        **{"id": 1, "priority": 1, "name": "bare", "chain": 0},
        **dict.fromkeys(["public", "hidden", "archived", "paused", "keep_hashes"], False),
        **dict.fromkeys(["assign_rate", "submit_rate"], UNLIMITED),
        **COUNTS,
    }


def test_a_second_project_of_the_same_name_is_409(site: Site) -> None:
    assert [create(site.admin, name="twice").status_code for _ in range(2)] == [200, 409]
    assert listed(site.guest) == ["twice"]


def test_public_and_hidden_at_once_is_refused(site: Site) -> None:
    assert create(site.admin, name="both", public=True, hidden=True).status_code == 400
    project = site.admin.create_project("hidden", hidden=True)
    assert site.admin.update_project(project, public=True).status_code == 400
    assert site.admin.project(project)["public"] is False


def test_only_an_admin_creates_a_public_project(site: Site) -> None:
    manager = site.create_manager()
    assert create(manager, name="public", public=True).status_code == 403
    assert create(manager, name="private").status_code == 200
    assert listed(site.guest) == ["private"]


def test_the_creator_of_a_project_gets_every_role(site: Site) -> None:
    manager = site.create_manager()
    project = manager.create_project(hidden=True)
    roles = manager.get(f"/manager/list_for_project/{project}").json()["content"]["managers"]
    assert [(one["manager"]["id"], one["role"]) for one in roles] == [(manager.id, EVERY_ROLE)]


# ── /project/update ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_manager_with_edit_changes_every_field(site: Site) -> None:
    target = site.admin.create_project()
    project = site.admin.create_project(keep_hashes=True, paused=True)
    fields = other_values(
        name="renamed", priority=5, public=False, chain=target, keep_hashes=False, paused=False, archived=False
    )
    site.admin.set_role(target, editor := manager_with(site, project, EDIT), EDIT)
    assert editor.update_project(project, **fields).json() == {"ok": True}
    assert site.admin.project(project) == {"id": project, **fields, **COUNTS}


def test_fields_that_an_update_does_not_name_stay_as_they_are(site: Site) -> None:
    project = site.admin.create_project("same", motd="same", assign_rate=2, priority=7)
    before = site.admin.project(project)
    assert site.admin.update_project(project, motd="new").status_code == 200
    assert site.admin.project(project) == {**before, "motd": "new"}


def test_a_project_as_it_is_shown_can_be_sent_back(site: Site) -> None:
    project = site.admin.create_project("round trip", public=True)
    before = site.admin.project(project)
    assert site.admin.update_project(project, **before).status_code == 200
    assert site.admin.project(project) == before


def test_an_update_may_keep_the_name_but_not_take_anothers(site: Site) -> None:
    site.admin.create_project("taken")
    project = site.admin.create_project("own")
    assert site.admin.update_project(project, name="own").status_code == 200
    assert site.admin.update_project(project, name="taken").status_code == 409


def test_making_a_project_public_needs_an_admin(site: Site) -> None:
    manager = site.create_manager()
    project = manager.create_project()
    assert manager.update_project(project, public=True).status_code == 403
    assert site.admin.update_project(project, public=True).status_code == 200


def test_a_project_that_is_public_already_may_be_edited_by_its_manager(site: Site) -> None:
    manager = site.create_manager()
    project = manager.create_project()
    site.admin.update_project(project, public=True)
    assert manager.update_project(project, motd="new", public=True).status_code == 200


def test_a_change_of_visibility_or_rate_counts_for_the_very_next_request(site: Site) -> None:
    project = site.admin.create_project(public=True, assign_rate=0.001)
    worker, owner = site.create_worker(), site.create_worker(project)
    owner.bulk_submit([{"project": project, "recipe": "x"}] * 4)
    assert worker.assign(project).status_code == 200
    assert worker.assign(project).status_code == 429
    site.admin.update_project(project, assign_rate=0)
    assert worker.assign(project).status_code == 200
    site.admin.update_project(project, public=False)
    assert worker.assign(project).json()["reason"] == f"You have no ASSIGN access to project {project}"


# ── Chains ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chain_needs_edit_on_the_target(site: Site) -> None:
    target = site.admin.create_project()
    manager = manager_with(site, target, EVERY_ROLE - EDIT)
    project = manager.create_project()
    assert create(manager, name="chained", chain=target).status_code == 403
    assert manager.update_project(project, chain=target).status_code == 403
    site.admin.set_role(target, manager, EDIT)
    assert create(manager, name="chained", chain=target).status_code == 200
    assert manager.update_project(project, chain=target).status_code == 200


def test_a_chain_that_stays_as_it_is_needs_no_right_on_its_target(site: Site) -> None:
    target = site.admin.create_project()
    project = site.admin.create_project(chain=target)
    editor = manager_with(site, project, EDIT)
    assert editor.update_project(project, motd="new", chain=target).status_code == 200


def test_a_project_is_not_chained_to_itself_nor_in_a_circle(site: Site) -> None:
    first = site.admin.create_project()
    second = site.admin.create_project(chain=first)
    third = site.admin.create_project(chain=second)
    answers = [site.admin.update_project(first, chain=chain) for chain in (first, second, third)]
    assert [answer.status_code for answer in answers] == [400, 400, 400]
    assert all(message(answer).startswith("chain:") for answer in answers)
    assert site.admin.project(first)["chain"] == 0


def test_a_chain_to_a_project_that_does_not_exist_is_404(site: Site) -> None:
    project = site.admin.create_project("only")
    assert create(site.admin, name="chained", chain=7).status_code == 404
    assert site.admin.update_project(project, chain=7).status_code == 404
    assert listed(site.guest) == ["only"]


def test_a_chain_of_0_is_none(site: Site) -> None:
    project = site.admin.create_project(chain=site.admin.create_project())
    assert site.admin.update_project(project, chain=0).status_code == 200
    assert site.admin.project(project)["chain"] == 0


# ── /project/get, /project/list ───────────────────────────────────────────────────────────────────────────────────────


def test_projects_are_listed_by_name(site: Site) -> None:
    for name in "middle", "zebra", "ant":
        site.admin.create_project(name)
    assert listed(site.guest) == ["ant", "middle", "zebra"]


def test_the_list_shows_each_project_as_it_is_got_alone(site: Site) -> None:
    project = site.admin.create_project(motd="x")
    worker = site.create_worker(project)
    worker.submit(project)
    [shown] = site.guest.get("/project/list").json()["content"]["projects"]
    assert shown == site.guest.get(f"/project/get/{project}").json()["content"]["project"]
    assert (shown["id"], shown["motd"], shown["waiting_task_count"]) == (project, "x", 1)


def test_a_hidden_project_is_listed_for_admins_and_managers_with_read_only(site: Site) -> None:
    project = site.admin.create_project("hidden", hidden=True)
    site.admin.create_project("open")
    others = {
        "guest": site.guest,
        "worker": site.create_worker(project).http,
        "manager": site.create_manager().http,
        "manager without READ": manager_with(site, project, EVERY_ROLE - READ).http,
    }
    assert {who: listed(http) for who, http in others.items()} == {who: ["open"] for who in others}
    assert listed(site.admin.http) == ["hidden", "open"]
    assert listed(manager_with(site, project, READ).http) == ["hidden", "open"]


PROJECT_READS = [
    "/project/get/{}",
    "/project/monitoring/{}",
    "/project/monitoring-between/{}?from=0&to=9999999999",
    "/project/assignees/{}",
    "/manager/list_for_project/{}",
]


def statuses_of_reads(http: httpx.Client, project: int) -> dict[str, int]:
    return {path: http.get(path.format(project)).status_code for path in PROJECT_READS}


def test_a_hidden_project_is_404_everywhere_without_read_as_if_there_were_none(site: Site) -> None:
    project = site.admin.create_project(hidden=True)
    stranger, lacking = site.create_manager(), manager_with(site, project, EVERY_ROLE - READ)
    for manager in stranger, lacking:
        assert statuses_of_reads(manager.http, project) == dict.fromkeys(PROJECT_READS, 404)
        hidden, none = manager.get(f"/project/get/{project}"), manager.get("/project/get/7")
        assert message(hidden).replace(str(project), "7") == message(none)


def test_a_hidden_project_is_seen_everywhere_by_admins_and_managers_with_read(site: Site) -> None:
    project = site.admin.create_project(hidden=True)
    for manager in site.admin, manager_with(site, project, READ):
        assert statuses_of_reads(manager.http, project) == dict.fromkeys(PROJECT_READS, 200)


def test_everything_about_a_private_project_is_seen_by_everybody(site: Site) -> None:
    project = site.admin.create_project()
    reads = [path.format(project) for path in PROJECT_READS if "manager" not in path]
    assert [site.guest.get(path).status_code for path in reads] == [200] * 4


# ── Who may do what ───────────────────────────────────────────────────────────────────────────────────────────────────

NEEDED_ROLES = [
    (READ, "GET", "/project/acts/{}", None),
    (EDIT, "POST", "/project/update/{}", {"motd": "x"}),
    (EDIT, "GET", "/project/notices/{}", None),
    (EDIT, "POST", "/project/notices/{}", {"url": ""}),
    (MANAGE_ACCESS, "GET", "/project/access_list/{}", None),
    (MANAGE_ACCESS, "POST", "/project/accept_request/{}/1", None),
    (MANAGE_ACCESS, "POST", "/project/reject_request/{}/1", None),
    (MANAGE_ACCESS, "POST", "/project/reject_requests/{}", None),
    (MANAGE_ACCESS, "POST", "/manager/set_role_for_project/{}", {"manager": 1, "role": 31}),
    (SECRET, "GET", "/project/secret/{}", None),
    (SECRET, "POST", "/project/secret/{}", {"secret": "x"}),
    (SECRET, "GET", "/project/webhook_secret/{}", None),
    (SECRET, "POST", "/project/webhook_secret/{}", {"webhook_secret": "x"}),
    (MAINTENANCE, "POST", "/project/resume_worker/{}/1", None),
    (MAINTENANCE, "POST", "/project/reset_failed_tasks/{}", None),
    (MAINTENANCE, "POST", "/project/reclaim_assigned_tasks/{}", None),
    (MAINTENANCE, "POST", "/project/hard_reset/{}", None),
]


def test_the_calls_above_are_all_that_need_a_role_in_the_project_in_their_path() -> None:
    ids = {"project": "{}", "worker": "1", "manager": "1"}
    needed = {
        (tracker.takes_of(row).who.role, row.methods, re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], row.path))
        for row in tracker.API
        if row.path.startswith(("/project/", "/manager/")) and isinstance(tracker.takes_of(row).who, tracker.Need)
    }
    assert {one for one in needed if isinstance(one[0], int)} == {tuple(one[:3]) for one in NEEDED_ROLES}


def statuses(http: httpx.Client, project: int) -> dict[str, int]:
    """What each call that needs a role answers to somebody."""
    return {f"{method} {path}": call(http, method, path, project, body) for _, method, path, body in NEEDED_ROLES}


def call(http: httpx.Client, method: str, path: str, project: int, body: Any) -> int:
    return http.request(method, path.format(project), json=body).status_code


def expected(status: int) -> dict[str, int]:
    return {f"{method} {path}": status for _, method, path, _ in NEEDED_ROLES}


def project_with_request(site: Site, **fields: Any) -> int:
    """A project to which worker 1 has asked for access."""
    project = site.admin.create_project()
    worker = site.create_worker()
    assert (worker.id, worker.request_access(project).status_code) == (1, 200)
    site.admin.update_project(project, **fields)
    return project


def test_a_manager_with_every_other_role_is_403_at_every_call_that_needs_one(site: Site) -> None:
    project = project_with_request(site, public=True)
    for role in READ, EDIT, MANAGE_ACCESS, SECRET, MAINTENANCE:
        http = manager_with(site, project, EVERY_ROLE - role).http
        needing = [one for one in NEEDED_ROLES if one[0] == role]
        assert [call(http, method, path, project, body) for _, method, path, body in needing] == [403] * len(needing)


def test_a_manager_with_the_one_role_that_a_call_needs_is_let_in(site: Site) -> None:
    project = project_with_request(site)
    for role in READ, EDIT, MANAGE_ACCESS, SECRET, MAINTENANCE:
        http = manager_with(site, project, role).http
        needing = [one for one in NEEDED_ROLES if one[0] == role]
        assert [call(http, method, path, project, body) for _, method, path, body in needing] == [200] * len(needing)


def test_an_admin_needs_no_role(site: Site) -> None:
    manager = site.create_manager()
    project = manager.create_project()
    site.create_worker().request_access(project)
    manager.update_project(project, hidden=True)
    assert statuses(site.admin.http, project) == expected(200)


def test_a_manager_without_any_role_in_a_hidden_project_gets_404_as_if_there_were_none(site: Site) -> None:
    project = project_with_request(site, hidden=True)
    assert statuses(site.create_manager().http, project) == expected(404)


# ── Secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_project_has_an_empty_secret_at_first(site: Site) -> None:
    project = site.admin.create_project()
    assert site.admin.get(f"/project/secret/{project}").json() == {"ok": True, "content": {"secret": "{}"}}


def test_a_worker_with_granted_assign_reads_the_secret(site: Site) -> None:
    project = site.admin.create_project()
    secret = '{"token": "naïve ☃"}'
    assert site.admin.post(f"/project/secret/{project}", {"secret": secret}).json() == {"ok": True}
    worker = site.create_worker(project, submit=False)
    assert worker.http.get(f"/project/secret/{project}").json()["content"] == {"secret": secret}


def workers_without_assign(site: Site, project: int) -> list[Worker]:
    """A stranger, one whose request waits, and one that may only submit."""
    waiting = site.create_worker()
    waiting.request_access(project)
    return [site.create_worker(), waiting, site.create_worker(project, assign=False)]


def test_a_worker_without_granted_assign_is_shown_an_empty_secret_of_a_public_project(site: Site) -> None:
    """Clients in use ask for it after each assignment, and keep the task for ever when they are refused."""
    project = site.admin.create_project(public=True)
    workers = workers_without_assign(site, project)
    ask = lambda worker: worker.http.get(f"/project/secret/{project}").json()  # noqa: E731
    assert [ask(worker) for worker in workers] == [{"ok": True, "content": {"secret": "{}"}}] * 3
    site.admin.post(f"/project/secret/{project}", {"secret": "hush"})
    assert [ask(worker) for worker in workers] == [{"ok": True, "content": {"secret": ""}}] * 3


@pytest.mark.parametrize("visibility, status", [({}, 403), ({"hidden": True}, 404)], ids=["private", "hidden"])
def test_a_worker_without_granted_assign_is_refused_the_secret_of_any_other_project(
    site: Site, visibility: dict, status: int
) -> None:
    project = site.admin.create_project(**visibility)
    for worker in workers_without_assign(site, project):
        answer = worker.http.get(f"/project/secret/{project}")
        assert (answer.status_code, str(project) in answer.json()["message"]) == (status, True)


@pytest.mark.parametrize("secret", ["secret", "webhook_secret"])
def test_a_secret_posted_as_an_empty_object_is_emptied(site: Site, secret: str) -> None:
    project = site.admin.create_project()
    path = f"/project/{secret}/{project}"
    for body in ({}, {secret: None}, {secret: ""}):
        assert site.admin.post(path, {secret: "set"}).status_code == 200
        assert site.admin.post(path, body).status_code == 200
        assert site.admin.get(path).json()["content"] == {secret: ""}


def test_a_project_is_shown_flat_as_in_the_document_and_once_more_as_front_ends_read_it(site: Site) -> None:
    shown = site.guest.get(f"/project/get/{site.admin.create_project('first')}").json()["content"]
    nested = shown.pop("project")
    assert shown == nested and shown["name"] == "first"


def test_a_negative_priority_is_refused_for_a_new_project_and_in_an_update(site: Site) -> None:
    project = site.admin.create_project()
    answers = create(site.admin, name="other", priority=-1), site.admin.update_project(project, priority=-1)
    assert [(answer.status_code, answer.json()["field"]) for answer in answers] == [(400, "priority")] * 2


def test_null_in_an_update_of_a_project_sets_the_default_and_absent_fields_stay(site: Site) -> None:
    project = site.admin.create_project(motd="hello", priority=7, assign_rate=2, version="1.0")
    assert site.admin.update_project(project, motd=None, priority=None, assign_rate=None).status_code == 200
    shown = site.admin.project(project)
    assert (shown["motd"], shown["priority"], shown["assign_rate"]) == ("", 1, UNLIMITED)
    assert shown["version"] == "1.0"


def test_a_worker_does_not_change_the_secret(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    assert worker.http.post(f"/project/secret/{project}", json={"secret": "x"}).status_code == 401
    assert site.admin.get(f"/project/secret/{project}").json()["content"] == {"secret": "{}"}


def test_a_worker_does_not_read_the_webhook_secret(site: Site) -> None:
    project = site.admin.create_project()
    assert site.create_worker(project).http.get(f"/project/webhook_secret/{project}").status_code == 401


def test_a_fresh_webhook_secret_is_made_with_each_project(site: Site) -> None:
    projects = [site.admin.create_project() for _ in range(2)]
    one, other = (site.admin.get(f"/project/webhook_secret/{project}").json()["content"] for project in projects)
    assert len(one["webhook_secret"]) >= 32
    assert one != other


def test_a_webhook_secret_can_be_set(site: Site) -> None:
    project = site.admin.create_project()
    path = f"/project/webhook_secret/{project}"
    assert site.admin.post(path, {"webhook_secret": "chosen"}).json() == {"ok": True}
    assert site.admin.get(path).json()["content"] == {"webhook_secret": "chosen"}


def test_no_secret_is_shown_with_a_project(site: Site) -> None:
    project = site.admin.create_project()
    site.admin.post(f"/project/secret/{project}", {"secret": "hush-1"})
    site.admin.post(f"/project/webhook_secret/{project}", {"webhook_secret": "hush-2"})
    worker = site.create_worker(project)
    worker.submit(project)
    answers = [site.admin.get(f"/project/get/{project}"), site.admin.get("/project/list"), worker.assign(project)]
    assert not any("hush" in answer.text for answer in answers)


def test_a_long_list_of_projects_is_read_in_parts_and_whole_for_who_asks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        site.admin.create_project(f"{number:02}", motd="x" * 100, hidden=number % 5 == 0)
    short = [http.get("/project/list") for http in (site.guest, site.admin.http)]
    read: list[int] = []
    part_of = tracker.part_of
    monkeypatch.setattr(tracker, "part_of", lambda *args: read.append(len(part := part_of(*args))) or part)
    for name, most in ("PART_ROWS", 3), ("PART_BYTES", 1500):
        with monkeypatch.context() as smaller:
            smaller.setattr(tracker, name, most)
            for before, http in zip(short, (site.guest, site.admin.http), strict=True):
                answer = http.get("/project/list")
                assert answer.content == before.content
                names = "content-type", "cache-control", "x-content-type-options"
                assert [answer.headers[one] for one in names] == [before.headers[one] for one in names]
    assert len(read) > 8 and max(read) <= 4


def test_a_long_list_of_who_has_access_is_whole_in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.admin.create_project()
    for number in range(9):
        worker = site.create_worker(project if number % 2 else None, alias=f"worker {number % 3}")
        if not number % 2:
            worker.request_access(project)
    before = site.admin.get(f"/project/access_list/{project}")
    assert len(before.json()["content"]["accesses"]) == 9
    monkeypatch.setattr(tracker, "PART_ROWS", 2)
    assert site.admin.get(f"/project/access_list/{project}").content == before.content


@pytest.mark.parametrize("kind", ["template", "workflow"])
def test_a_long_list_of_templates_or_workflows_is_whole_in_parts(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    project = site.admin.create_project()
    names = [f"{number % 3} {'' if kind == 'template' else number}" for number in range(9)]  # some templates share one
    made = {"project": project, "name": "first", "description": "x" * 1000}
    start = site.admin.post("/template/create", made).json()["content"]["template"]["id"]
    rest = {"description": "x" * 1000} if kind == "template" else {"start": start, "edges": []}
    for name in names:
        assert site.admin.post(f"/{kind}/create", {"project": project, "name": name, **rest}).status_code == 200
    before = site.admin.get(f"/{kind}/list/{project}")
    assert [one["name"] for one in before.json()["content"][f"{kind}s"] if one["name"] != "first"] == sorted(names)
    read: list[int] = []
    part_of = tracker.part_of
    monkeypatch.setattr(tracker, "part_of", lambda *args: read.append(len(part := part_of(*args))) or part)
    monkeypatch.setattr(tracker, "PART_ROWS", 2)
    assert site.admin.get(f"/{kind}/list/{project}").content == before.content
    assert len(read) >= 5 and max(read) == 2


# ── All projects at once ──────────────────────────────────────────────────────────────────────────────────────────────


def pause_all(manager: Manager, paused: bool = True) -> int:
    """How many projects that pauses, or lets go on."""
    answer = manager.post("/project/set_all_paused", {"paused": paused})
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["projects"]


def paused(site: Site) -> list[int]:
    return [row[0] for row in site.read("SELECT id FROM project WHERE paused ORDER BY id")]


def acts_of(site: Site, project: int) -> list[str]:
    return [row[0] for row in site.read("SELECT action FROM act WHERE project = ? ORDER BY id", project)]


def test_all_projects_are_paused_and_go_on_together(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects, "PIECE", 2)
    made = [site.admin.create_project() for _ in range(5)]
    worker = site.create_worker(made[0])
    worker.submit(made[0])
    assert pause_all(site.admin) == 5 and paused(site) == made
    assert worker.assigned(made[0]) is None
    assert pause_all(site.admin) == 0
    assert pause_all(site.admin, False) == 5 and paused(site) == []
    assert worker.assigned(made[0])
    assert acts_of(site, made[3]) == ["create_project", "pause_all", "resume_all"]


def test_what_was_paused_before_or_since_by_itself_stays_so_when_all_go_on(site: Site) -> None:
    before, since, archived, exported, own, other = (site.admin.create_project() for _ in range(6))
    site.admin.update_project(before, paused=True)
    pause_all(site.admin)
    for change in (False, True):
        site.admin.update_project(since, paused=change)
    site.admin.update_project(archived, archived=True)
    site.admin.update_project(archived, archived=False)
    assert site.admin.post(f"/project/export/{exported}", {}).status_code == 200
    site.admin.update_project(own, motd="Back soon.")
    assert pause_all(site.admin, False) == 2
    assert paused(site) == [before, since, archived, exported]
    assert not {own, other} & set(paused(site))


def test_what_somebody_pauses_that_was_paused_with_all_stays_so(site: Site) -> None:
    own, sent_back, resumed = (site.admin.create_project() for _ in range(3))
    pause_all(site.admin)
    for _ in range(2):
        site.admin.update_project(own, paused=True)
    site.admin.update_project(sent_back, **site.admin.project(sent_back))
    site.admin.update_project(resumed, paused=False)
    site.admin.update_project(resumed, paused=False)
    assert pause_all(site.admin, False) == 1 and paused(site) == [own]
    assert acts_of(site, own) == ["create_project", "pause_all", "update_project"]


def test_a_waiting_worker_gets_a_task_when_all_go_on(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    pause_all(site.admin)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.assigned, project, wait=20)
        pause_all(site.admin, False)
        assert waiting.result(60)


def test_a_manager_pauses_the_projects_alone_that_it_may_edit(site: Site) -> None:
    own, read, hidden = (site.admin.create_project(hidden=number == 2) for number in range(3))
    manager = manager_with(site, own, EDIT)
    site.admin.set_role(read, manager, EVERY_ROLE - EDIT)
    assert pause_all(manager) == 1 and paused(site) == [own]
    assert pause_all(site.admin) == 2
    assert pause_all(manager, False) == 1 and paused(site) == [read, hidden]
    assert site.guest.post("/project/set_all_paused", json={"paused": True}).status_code == 401
    worker = site.create_worker(own)
    assert worker.http.post("/project/set_all_paused", json={"paused": True}).status_code == 401


def test_the_list_of_projects_asks_before_it_pauses_all_and_names_them(site: Site) -> None:
    tab = Tab(site.admin.http)
    for number in range(12):
        site.admin.create_project(f"crawl {number:02}")
    asked = tab.send(tab.open("/ui/").form("/ui/projects/pause"))
    assert "Pause all 12 projects?" in asked.text and "crawl 00, crawl 01" in asked.text
    assert "crawl 09 and 2 more" in asked.text and paused(site) == []
    done = tab.send(asked.form("/ui/projects/pause"))
    assert done.notice == "12 projects are paused." and len(paused(site)) == 12
    assert "Pause all" not in done.buttons
    asked = tab.send(done.form("/ui/projects/pause"))
    assert "Resume all 12 projects that were paused together?" in asked.text
    assert tab.send(asked.form("/ui/projects/pause")).notice == "12 projects are resumed."
    assert (
        "Pause all" not in Tab(site.guest).open("/ui/").buttons | Tab(site.create_manager().http).open("/ui/").buttons
    )


def test_the_list_of_projects_asks_again_when_somebody_has_paused_all_since_it_asked(site: Site) -> None:
    tab, held = Tab(site.admin.http), site.admin.create_project()
    site.admin.create_project()
    pause_all(site.admin)
    site.admin.update_project(held, paused=False)
    asked = tab.act("/ui/projects/pause", {"paused": "false"})
    assert "Resume the project that was paused with all?" in asked.text
    pause_all(site.admin)
    again = tab.send(asked.form("/ui/projects/pause"))
    assert "Resume all 2 projects that were paused together?" in again.text and len(paused(site)) == 2
    assert tab.send(again.form("/ui/projects/pause")).notice == "2 projects are resumed."


def test_two_managers_of_whom_one_pauses_all_and_one_resumes_all_come_to_an_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [site.admin.create_project() for _ in range(4)]
    monkeypatch.setattr(projects, "PIECE", 2)
    undone: list[int] = []
    record = projects.acts.record

    def undo_at_once(tx: Any, manager: int, action: str, project: int) -> None:
        """The other manager is as quick: what has just been paused goes on again."""
        record(tx, manager, action, project)
        undone.append(project)
        assert len(undone) <= len(made)
        tx.execute("UPDATE project SET paused = 0 WHERE id = ?", (project,))

    monkeypatch.setattr(projects.acts, "record", undo_at_once)
    assert pause_all(site.admin) == 4 and undone == made


def test_a_text_that_says_paused_is_no_pause_of_its_own(site: Site) -> None:
    named, told, long = (site.admin.create_project() for _ in range(3))
    pause_all(site.admin)
    site.admin.update_project(named, name="paused")
    site.admin.update_project(told, motd="archived")
    texts = dict.fromkeys(("motd", "version", "clone_url"), '"' * 1000)
    site.admin.update_project(long, **texts, paused=False)
    site.admin.update_project(long, **dict.fromkeys(texts, "\\" * 1000), paused=True)
    assert pause_all(site.admin, False) == 2 and paused(site) == [long]
