"""No call and no page tells a hidden project from one that is not there to a caller who has no part in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import Manager, Site
from test_bad_input import Answer, Example, House, as_bytes
from test_pages import GETS, Page, Place, Tab

from tracker import EDIT, READ

NOBODYS = 986_123  # a number that nothing has
NAMES = ("project", "template", "workflow", "task", "task_id", "operation", "start", "target", "chain")
MISSING = {**dict.fromkeys(NAMES, NOBODYS), "job": "0123456789abcdef01234567", "full_name": "owner/none"}
TELL_OF_NONE = {  # what these say tells nothing of a project
    *(
        ("POST", "/task/log"),
        ("POST", "/task/release"),
        ("GET", "/task/attachments/{task}"),
    ),  # numbers are given in turn
    *(("POST", "/worker/create"), ("POST", "/register"), ("GET", "/logout"), ("POST", "/logout")),
}


class Hidden(House):
    """The house, whose project has been hidden, and who asks about it: a worker, a manager and somebody."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.known = {endpoint: one for endpoint, one in self.examples().items() if endpoint not in TELL_OF_NONE}
        chained = {"chain": self.project, "name": "chained"}
        nothing = {"project": self.project, "assign": False, "submit": False}
        self.known["POST", "/api/project/request_access"] = Example(self.as_stranger, body=nothing)
        self.known["POST", "/project/delete/{project}"] = Example(self.as_admin, {"project": self.project})
        self.known["POST", "/project/create"] = Example(self.as_admin, body=chained)
        for project in self.project, self.unwanted:
            assert site.admin.post(f"/project/update/{project}", {"hidden": True}).status_code == 200
        manager = self.cookie(self.other)
        self.callers = {"worker": self.as_stranger, "manager": lambda body: manager, "nobody": self.as_nobody}

    def ask(self, caller: str, endpoint: tuple[str, str], example: Example) -> Answer:
        """The example by somebody else."""
        data = b"" if example.body is None else as_bytes(example.body)
        path = endpoint[1].format(**(example.ids or {})) + "?" * bool(example.query) + urlencode(example.query or {})
        return self.send(endpoint[0], path, data, self.callers[caller](data))


def without(value: Any) -> Any:
    """The same with numbers and names that nothing has."""
    if isinstance(value, dict):
        return {key: MISSING[key] if key in MISSING and inner else without(inner) for key, inner in value.items()}
    return [without(inner) for inner in value] if isinstance(value, list) else value


def names(value: Any) -> set[str]:
    """The numbers and names that are replaced."""
    if isinstance(value, dict):
        here = {str(inner) for key, inner in value.items() if key in MISSING and not isinstance(inner, dict)}
        return here.union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def told(answer: Answer, *parts: Any) -> tuple[int, str]:
    """What an answer tells, but for the names of what was asked about."""
    text = str(answer.content)
    for name in sorted(set().union(*map(names, parts)), key=len, reverse=True):
        text = text.replace(name, "N")
    return answer.status, text


@pytest.fixture
def hidden(make_site: Callable[..., Site]) -> Iterator[Hidden]:
    house = Hidden(make_site(snapshot_interval=1e6))
    yield house
    house.watcher.close()


@pytest.mark.parametrize("caller", ["worker", "manager", "nobody"])
def test_no_call_tells_a_hidden_project_from_a_missing_one(hidden: Hidden, caller: str) -> None:
    for endpoint, example in hidden.known.items():
        parts = example.ids, example.query, example.body
        other = Example(example.headers, *map(without, (example.ids, example.body, example.query)))
        there, missing = hidden.ask(caller, endpoint, example), hidden.ask(caller, endpoint, other)
        assert told(there, *parts) == told(missing, *map(without, parts)), endpoint


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

OF_A_PROJECT = ("project", "task", "operation", "template", "job", "workflow")


@pytest.fixture
def place(site: Site) -> Place:
    place = Place(site, "veiled")
    site.admin.post(f"/project/update/{place.project}", {"hidden": True})
    return place


def shown(page: Page, *names: Any) -> tuple[int, str]:
    """What a page shows, but for the names of what was asked for."""
    text = " ".join(page.tree.find(".//main").text_content().split())
    for name in names:
        text = text.replace(str(name), "N")
    return page.status, text


def test_no_page_tells_a_hidden_project_from_a_missing_one(place: Place) -> None:
    stranger = Tab(place.manager.http)
    missing = {name: "0123456789abcdef01234567" if name == "job" else NOBODYS for name in OF_A_PROJECT}
    asked = 0
    for path in GETS:
        if any(f"{{{name}}}" in path for name in OF_A_PROJECT):
            there = stranger.open(place.at(path))
            none = stranger.open(path.format(**{**place.names, **missing}))
            ids = [place.names[name] for name in OF_A_PROJECT if f"{{{name}}}" in path]
            assert shown(there, *ids) == shown(none, *missing.values()), path
            assert there.status == 404, path
            asked += 1
    assert asked > 10


def test_no_page_shows_a_stranger_anything_of_a_hidden_project(place: Place) -> None:
    stranger = Tab(place.manager.http)
    things = ("project", "motd", "recipe", "message", "template", "workflow", "value", "waiting")
    for path in (*GETS, f"/ui/workers/{place.worker.id}", "/ui/workers?sort=last_seen", "/ui/logs?level=debug"):
        text = stranger.open(place.at(path)).answer.text
        assert not [thing for thing in things if f"veiled {thing}" in text], path


def test_a_workers_pages_tell_nothing_of_what_it_does_in_a_hidden_project(site: Site) -> None:
    hidden, other = site.admin.create_project(hidden=True), site.admin.create_project("seen")
    worker, stranger = site.create_worker(hidden), site.create_manager()
    site.admin.grant(worker, other)
    for project in other, hidden, hidden:
        worker.submit(project)
    held = worker.assigned(other)["id"]
    tab, pages = Tab(stranger.http), ("/ui/workers", f"/ui/workers/{worker.id}")
    before = [counts(tab.open(path)) for path in pages]
    worker.released(worker.assigned(hidden)["id"])
    worker.assigned(hidden)
    assert [counts(tab.open(path)) for path in pages] == before
    assert counts(Tab(site.admin.http).open(pages[1]))["Holds"] == "2"
    worker.released(held)
    assert counts(tab.open(pages[1]))["Last 24 h"] == "1"


def counts(page: Page) -> dict[str, str]:
    """The figures of a worker's page, or of the list of workers, but those that the API shows to everybody."""
    assert page.status == 200
    tiles = {one.findtext("dt"): one.find("dd").text_content().strip() for one in page.tree.findall(".//dl/div")}
    cells = {one.get("data-label"): one.text_content().strip() for one in page.tree.findall(".//td[@data-label]")}
    everybodys = ("Last seen", "Created", "Closed")
    return {name: value for name, value in {**cells, **tiles}.items() if name not in everybodys}


# ── What others say of it ─────────────────────────────────────────────────────────────────────────────────────────────


def chain_seen(by: Manager, project: int) -> set[int]:
    """What somebody sees a project chained to, wherever that is said."""
    listed = {one["id"]: one for one in by.get("/project/list").json()["content"]["projects"]}
    return {by.project(project)["chain"], by.get(f"/project/get/{project}").json()["content"]["chain"]} | {
        listed[project]["chain"]
    }


def test_that_a_project_is_chained_to_a_hidden_one_is_seen_by_who_edits_either(site: Site) -> None:
    hidden, seen = site.admin.create_project("veiled", hidden=True), site.admin.create_project()
    project = site.admin.create_project(chain=hidden)
    reader, editor, other = (site.create_manager() for _ in range(3))
    site.admin.set_role(project, reader, READ)
    site.admin.set_role(project, editor, EDIT)
    site.admin.set_role(hidden, other, READ)
    assert [chain_seen(one, project) for one in (reader, editor, other)] == [{0}, {hidden}, {hidden}]
    worker = site.create_worker(project)
    worker.submit(project)
    task = worker.assigned(project)
    assert task["project"]["chain"] == 0
    worker.released(task["id"])
    assert site.admin.counts(hidden) == {"waiting": 1}  # it goes there all the same
    pages = {one: Tab(one.http).open(f"/ui/projects/{project}").answer.text for one in (reader, other)}
    assert [f'/ui/projects/{hidden}"' in page for page in pages.values()] == [False, True]
    site.admin.update_project(project, chain=seen)
    assert chain_seen(reader, project) == {seen}


def test_a_list_of_workflows_does_not_name_a_template_of_a_hidden_project(site: Site) -> None:
    hidden, project = site.admin.create_project(hidden=True), site.admin.create_project()
    made = site.admin.post("/template/create", {"project": hidden, "name": "veiled"}).json()["content"]
    body = {"project": project, "name": "builds", "start": made["template"]["id"], "edges": []}
    assert site.admin.post("/workflow/create", body).status_code == 200
    editor, other = site.create_manager(), site.create_manager()
    for manager in editor, other:
        site.admin.set_role(project, manager, EDIT)
    site.admin.set_role(hidden, other, READ)
    pages = [Tab(one.http).open(f"/ui/projects/{project}/templates").text for one in (editor, other, site.admin)]
    assert [("builds" in page, "veiled" in page) for page in pages] == [(True, False), (True, True), (True, True)]


def test_what_was_done_to_a_project_tells_of_a_hidden_one_to_who_edits_either(site: Site) -> None:
    hidden = site.admin.create_project("veiled", hidden=True)
    project = site.admin.create_project(chain=hidden)
    site.admin.update_project(project, chain=0)
    site.admin.update_project(project, chain=hidden, priority=5)
    reader, editor, other = (site.create_manager() for _ in range(3))
    for manager, role in (reader, READ), (editor, READ | EDIT), (other, READ):
        site.admin.set_role(project, manager, role)
    site.admin.set_role(hidden, other, READ)
    told = []
    for one in reader, editor, other:
        acts = one.get(f"/project/acts/{project}").json()["content"]["acts"]
        told.append([act["details"]["chain"] for act in acts if "chain" in act["details"]])
        page = Tab(one.http).open(f"/ui/projects/{project}/acts").text
        assert (f"chain: {hidden}" in page, "priority: 5" in page) == (one is not reader, True)
    assert told == [["…", 0, "…"], [hidden, 0, hidden], [hidden, 0, hidden]]


def test_a_step_tells_of_its_run_only_who_may_know_of_it(site: Site) -> None:
    hidden, project = site.admin.create_project(hidden=True), site.admin.create_project()
    made = site.admin.post("/template/create", {"project": project, "name": "t"}).json()["content"]
    body = {"project": hidden, "name": "veiled", "start": made["template"]["id"], "edges": []}
    workflow = site.admin.post("/workflow/create", body).json()["content"]["workflow"]["id"]
    run = site.admin.post(f"/workflow/trigger/{workflow}", {}).json()["content"]["job"]["id"]
    [(step,)] = site.read("SELECT token FROM job WHERE workflow_job IS NOT NULL")
    reader = site.create_manager()
    site.admin.set_role(project, reader, READ)
    page = Tab(reader.http).open(f"/ui/jobs/{step}").answer
    assert (page.status_code, run in page.text, "veiled" in page.text) == (200, False, False)
    listed = reader.get("/job/list", project=project).json()["content"]["jobs"]
    alone = reader.get(f"/job/get/{step}").json()["content"]["job"]
    assert [one["workflow_job"] for one in (*listed, alone)] == [None, None]
    assert site.admin.get(f"/job/get/{step}").json()["content"]["job"]["workflow_job"] == run
    assert f"/ui/jobs/{run}" in Tab(site.admin.http).open(f"/ui/jobs/{step}").answer.text


def test_the_name_of_a_hidden_project_is_no_queues_as_that_of_any_project_is_none(site: Site) -> None:
    site.admin.create_project("veiled", hidden=True)
    site.admin.create_project("seen")
    calls = [
        *[("POST", "/v1/job", {"job_queue": "NAME"}), ("POST", "/v1/agents/queues", {"NAME": "said"})],
        *[("POST", "/v1/agents/images", {"NAME": {}}), ("GET", "/v1/queues/NAME/agents", None)],
        *[("GET", "/v1/queues/NAME/jobs", None), ("GET", "/v1/agents/images/NAME", None)],
        ("GET", "/v1/queues/wait_times?queue=NAME", None),
    ]
    for method, path, body in calls:
        told_of = []
        for name in "veiled", "seen":
            content = body and json.dumps(body).replace("NAME", name)
            answer = site.guest.request(method, path.replace("NAME", name), content=content)
            told_of.append((answer.status_code, answer.text.replace(name, "NAME")))
        assert told_of[0] == told_of[1], path
