"""What managers did is kept, in the same transaction, and shown to who may read the project."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from conftest import Site
from place import OPERATIONS, Memory
from test_pages import Tab

import acts
import pages
import shapes
import tracker
from dialects import theeye
from tracker import Call

# What a manager does that is no act: it changes nothing of anybody's, or is kept elsewhere.
NO_ACT = {
    "trigger as a manager": "the log of the job says who made it",
    "run a workflow": "the log of the run says so",
    "cancel a job": "the log of the job says so",
    "cancel a run": "so with the run of a workflow",
    "cancel a step": "so with a step of it",
    "retry a job": "the log of the new one says so",
    "retry a run": "so with that of a workflow",
    "begin an upload": "it is one when it is accepted",
    "submit as a manager": "a task more",
    "log out": "only a login ends",
    "begin a change of the password": "counts an attempt",
}


def done_by_a_manager(place: Any) -> list[str]:
    """The operations whose first argument is the session of a manager."""
    return [name for name, make in OPERATIONS.items() if (args := make(place)[1]) and args[0] == place.session]


def kept(memory: Memory) -> list[tuple]:
    return memory.values("SELECT id, username, action, project, details FROM act ORDER BY id")


def test_whatever_a_manager_does_is_kept() -> None:
    names = []
    first = Memory()
    for name in done_by_a_manager(first.furnish()):
        memory = Memory()
        place = memory.furnish()
        before = len(kept(memory))
        function, args = OPERATIONS[name](place)
        memory.do(function, *args)
        names += [name] if len(kept(memory)) == before else []
    assert sorted(names) == sorted(name for name in names if name in NO_ACT), set(names) ^ NO_ACT.keys()


def declared(function: Any) -> bool:
    """Whether it is declared to be an act, or what it calls is."""
    need = getattr(function, "need", None)
    if need is not None and need.acts:
        return True
    source = inspect.getsource(inspect.unwrap(function))
    acting = [name for name, one in ACTING.items() if one is not function and f"{name}(" in source]
    return bool(acting) or "acts.record(" in source or "begin_operation(" in source or "watch_operation(" in source


ACTING = {
    name: function
    for module in (tracker, theeye)
    for name, function in vars(module).items()
    if getattr(getattr(function, "need", None), "acts", False)
}
# Calls and forms that are no acts, or whose acts are kept by what they call.
OTHERS = {
    "act_on_list", "answer_on_list", "cancel_job", "change_password_page", "create_worker",
    "delete_by_form", "delete_project", "delete_worker",
    "export_by_form", "export_project", "get_secret", "handler", "import_by_form", "import_project", "log_out_page",
    "logout", "pause_all", "reset_project", "retry_job", "retry_on_page", "run_template",
    "save_notices", "save_roles", "set_all_paused",
    "submit_as_manager", "submit_lines", "test_hook", "trigger_template", "trigger_workflow",
}  # fmt: skip


def test_every_call_and_form_of_a_manager_is_declared_an_act_or_known_to_be_none() -> None:
    forgotten = []
    for row in tracker.API:
        takes = tracker.takes_of(row)
        if not row.only_reads and takes.caller in (Call.session, Call.worker_or_session):
            forgotten += [row.function] if not declared(row.function) else []
    for row in pages.PAGES:
        for one in [row, *getattr(row, "actions", ())]:
            forgotten += [one.function] if isinstance(one, pages.Action) and not declared(one.function) else []
    assert {function.__name__ for function in forgotten} - OTHERS == set()


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


def told(http: Any, path: str, **query: Any) -> list[dict[str, Any]]:
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["acts"]


def test_an_act_says_who_when_what_and_with_what(site: Site) -> None:
    project = site.admin.create_project("crawl")
    worker = site.create_worker(project)
    site.admin.update_project(project, priority=7, motd="Hello", name="crawl")
    site.admin.update_project(project, priority=7)  # as it is
    site.admin.post(f"/project/reject_request/{project}/{worker.id}")
    site.admin.post(f"/project/hard_reset/{project}")
    found = told(site.admin.http, f"/project/acts/{project}")
    assert [(one["action"], one["manager"], one["username"], one["project"]) for one in found] == [
        (action, 1, "admin", project)
        for action in ("hard_reset", "reject_request", "update_project", "accept_request", "create_project")
    ]
    assert found[1]["details"] == {"worker": worker.id}
    assert found[2]["details"] == {"priority": 7, "motd": "Hello"}
    assert all(abs(one["time"] - site.clock.time()) < 60 for one in found)


def test_no_secret_is_kept(site: Site) -> None:
    project = site.admin.create_project("crawl")
    site.admin.post(f"/project/secret/{project}", {"secret": "classified"})
    site.admin.post(f"/project/webhook_secret/{project}", {"webhook_secret": "classified"})
    body = {"project": project, "name": "t", "script": "classified", "key": "classified", "env": {"A": "classified"}}
    template = site.admin.post("/template/create", body).json()["content"]["template"]
    site.admin.post(f"/template/update/{template['id']}", {"key": "classified", "recipe": "classified"})
    rows = site.read("SELECT action, details FROM act")
    assert len(rows) == 5 and "classified" not in json.dumps(rows)
    assert json.loads(rows[-1][1])["key"] == "…"


def test_who_sets_where_notices_go_is_kept_but_not_the_address(site: Site) -> None:
    project = site.admin.create_project("crawl")
    form = {"url": "http://example.org/classified", "kind": "json", "finished": "true"}
    form |= {"failing_share": "50", "stalled_minutes": "30"}
    Tab(site.admin.http).act(f"/ui/projects/{project}/notices", form)
    newest = told(site.admin.http, f"/project/acts/{project}")[0]
    assert newest["action"] == "set_hook" and newest["details"]["kind"] == "json"
    assert "classified" not in json.dumps(site.read("SELECT details FROM act"))


def test_what_was_refused_is_not_kept(site: Site) -> None:
    project = site.admin.create_project("crawl")
    before = site.read("SELECT * FROM act")
    assert site.admin.update_project(project, public=True, hidden=True).status_code == 400
    assert site.create_manager().update_project(project, priority=3).status_code == 403
    assert site.read("SELECT * FROM act") == before


def test_a_deletion_is_told_to_admins_when_the_project_is_gone(site: Site) -> None:
    project = site.admin.create_project("gone")
    site.admin.post(f"/project/delete/{project}")
    found = told(site.admin.http, "/acts")
    assert (found[0]["action"], found[0]["project"]) == ("delete_project", None)
    assert found[0]["details"] == {"id": project, "name": "gone"}
    assert [one for one in found if one["project"] == project] == []


def test_who_may_read_the_project_reads_what_was_done(site: Site) -> None:
    project = site.admin.create_project("crawl", hidden=True)
    reader, other = site.create_manager(), site.create_manager()
    site.admin.set_role(project, reader, tracker.READ)
    assert told(reader.http, f"/project/acts/{project}")[0]["action"] == "set_role"
    assert other.get(f"/project/acts/{project}").status_code == 404
    assert other.get("/acts").status_code == 403
    assert site.guest.get("/acts").status_code == 401


def test_older_ones_are_a_page_away(site: Site) -> None:
    project = site.admin.create_project()
    for priority in range(2, 9):
        site.admin.update_project(project, priority=priority)
    first = told(site.admin.http, f"/project/acts/{project}", limit=5)
    rest = told(site.admin.http, f"/project/acts/{project}", limit=5, before=first[-1]["id"])
    assert [one["details"].get("priority") for one in first + rest] == [8, 7, 6, 5, 4, 3, 2, None]


@pytest.mark.parametrize("text", ["plain", "<b>&amp;</b>"])
def test_pages_show_them(site: Site, text: str) -> None:
    project = site.admin.create_project("crawl")
    site.admin.update_project(project, motd=text)
    tab = Tab(site.admin.http)
    page = tab.open(f"/ui/projects/{project}/acts")
    assert page.status == 200 and text in page.tree.text_content()
    assert f"/ui/projects/{project}/acts" in tab.open(f"/ui/projects/{project}/edit").links
    assert text in tab.open("/ui/acts").tree.text_content()
    assert "/ui/acts" in tab.open("/ui/admin").links


# ── How much ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def manager_in(memory: Memory, name: str) -> bytes:
    return memory.do(tracker.register_manager, name, "unused")[1]


def test_a_project_has_so_many_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "MOST_ACTS", 5)
    monkeypatch.setattr(acts, "TRIM_EVERY", 1)
    memory = Memory(session_lifetime=1e9)
    session = manager_in(memory, "admin")
    one, two = (memory.do(tracker.create_project, session, shapes.ProjectBody(name=name))["id"] for name in ("a", "b"))
    for priority in range(20):
        memory.do(tracker.update_project, session, one, shapes.ProjectBody(priority=priority))
    assert memory.values(
        "SELECT COUNT(*), min(json_extract(details, '$.priority')) FROM act WHERE project = ?", one
    ) == [(5, 15)]
    assert memory.values("SELECT action FROM act WHERE project = ?", two) == [("create_project",)]


def test_strangers_push_out_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(session_lifetime=1e9, max_acts=1)
    monkeypatch.setattr(acts, "MOST_ACTS", 10**6)
    admin, stranger = manager_in(memory, "admin"), manager_in(memory, "stranger")
    ours = memory.do(tracker.create_project, admin, shapes.ProjectBody(name="ours"))["id"]
    theirs = memory.do(tracker.create_project, stranger, shapes.ProjectBody(name="theirs"))["id"]
    for number in range(4000):
        body = shapes.ProjectBody(motd=f"{number}" * 20, version="x" * 90 + str(number))
        memory.do(tracker.update_project, stranger, theirs, body)
    [(used,)] = memory.values("SELECT used FROM budget WHERE name = 'acts'")
    assert 2**19 < used <= 2**20
    sums = "SELECT SUM(200 + length(CAST(details AS BLOB))) FROM act"
    assert memory.values(sums) == [(used,)]
    assert memory.values("SELECT action FROM act WHERE project = ?", ours) == [("create_project",)]
    assert memory.values("SELECT COUNT(*) FROM act WHERE project = ?", theirs)[0][0] < 4000
