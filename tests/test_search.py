"""Tasks and jobs are found: at once by what names them, in any state by a text, and without a click for each piece."""

from typing import Any

import pytest
from conftest import Site
from test_pages import Page, Tab

import searching
import tracker


@pytest.fixture
def project(site: Site) -> int:
    return site.admin.create_project(keep_hashes=True)


def search(site: Site, project: int, text: str, **query: str) -> Page:
    page = Tab(site.admin.http).open(f"/ui/projects/{project}/tasks", text=text, **query)
    assert page.status == 200, page.text
    return page


def submitted(site: Site, project: int, recipe: str, **fields: Any) -> int:
    """The id of a new task."""
    site.create_worker(project).submit(project, recipe, **fields)
    return site.read("SELECT MAX(id) FROM task")[0][0]


def known(page: Page) -> list[str]:
    return [" ".join(one.text_content().split()) for one in page.tree.xpath("//*[@id='known']//li")]


def test_a_task_is_found_by_its_number_its_hash_or_its_unique_string_in_whatever_state(
    site: Site, project: int
) -> None:
    worker = site.create_worker(project)
    task = submitted(site, project, "look here", unique_string="https://example.org/ ")
    assert worker.assigned(project)["id"] == task
    for text in (
        str(task),
        f" {task}",
        f"#{task}",
        "https://example.org/ ",
        str(tracker.hash_unique_string("https://example.org/ ")),
    ):
        assert known(search(site, project, text, state="failed")) == [f"Task {task} assigned look here"], text
    other = submitted(site, project, "other", hash64=-5)
    for text in ("-5", str(2**64 - 5)):
        assert known(search(site, project, text)) == [f"Task {other} waiting other"], text
    assert known(search(site, project, "https://example.org/elsewhere")) == []


def test_a_task_that_was_closed_is_said_to_be_done_where_hashes_are_kept(site: Site, project: int) -> None:
    worker = site.create_worker(project)
    submitted(site, project, "x", unique_string="https://example.org/")
    worker.released(worker.assigned(project)["id"])
    assert known(search(site, project, "https://example.org/")) == [
        "Done: a task with this hash or unique string was closed."
    ]
    failed = submitted(site, project, "y")
    worker.released(worker.assigned(project)["id"], tracker.FAIL)
    Tab(site.admin.http).act(f"/ui/projects/{project}/tasks", {"action": "delete", "task": failed, "confirmed": "yes"})
    assert known(search(site, project, str(failed))) == [f"Task {failed}: closed or deleted"]


def test_a_task_of_another_project_is_not_told_of(site: Site, project: int) -> None:
    other = site.admin.create_project()
    worker = site.create_worker(other)
    task = submitted(site, other, "secret", unique_string="u")
    worker.released(worker.assigned(other)["id"], tracker.FAIL)
    for text in (str(task), "u"):
        assert known(search(site, project, text)) == []


def test_one_search_is_over_all_states_and_is_paged(site: Site, project: int) -> None:
    worker = site.create_worker(project)
    for number in range(60):
        worker.submit(project, f"page {number}")
    for _ in range(3):
        worker.assigned(project)
    worker.released(worker.assigned(project)["id"], tracker.FAIL)
    tab, found = Tab(site.admin.http), []
    page = search(site, project, "page", state="all")
    while True:
        found += [row.get("id") for row in page.tree.xpath("//table[@id='tasks']/tbody/tr[@id]")]
        onward = page.tree.xpath("//a[@rel='next']/@href")
        if not onward:
            break
        page = tab.open(onward[0])
    assert len(found) == len(set(found)) == 60
    assert tab.open(f"/ui/projects/{project}/tasks", state="all", after="nowhere/1").status == 400
    acted = tab.act(f"/ui/projects/{project}/tasks?state=all", {"action": "delete", "which": "all", "confirmed": "yes"})
    assert acted.status == 400 and site.admin.project(project)["waiting_task_count"] == 56


def test_a_search_that_takes_long_says_how_many_it_has_looked_at(
    site: Site, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "SEARCH_TIME", 0)
    monkeypatch.setattr(searching, "FIRST", 51)
    worker = site.create_worker(project)
    for number in range(200):
        worker.submit(project, f"page {number}")
    tab, told = Tab(site.admin.http), []
    page = search(site, project, "page 199")
    while page.tree.xpath("//*[@id='search-on']"):
        told.append(page.tree.xpath("string(//*[@id='search-on'])").split(" looked")[0])
        page = tab.open(page.tree.xpath("//*[@id='search-on']/a/@href")[0])
    assert told == ["51 of 200", "102 of 200", "153 of 200"]
    assert page.tree.xpath("//table[@id='tasks']/tbody/tr/@id") == ["task-200"]


def test_jobs_are_found_by_a_text_and_by_their_id(site: Site, project: int) -> None:
    body = {"project": project, "name": "build", "undeclared": True}
    template = site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    jobs = [
        site.admin.post(f"/template/trigger/{template}", {"variables": {"branch": branch}}).json()["content"]["job"][
            "id"
        ]
        for branch in ("main", "topic/Search")
    ]
    tab = Tab(site.admin.http)
    for path in ("/ui/jobs", f"/ui/projects/{project}/jobs"):
        listed = tab.open(path, text="search").tree.xpath("//table[@id='jobs']/tbody/tr/@id")
        assert listed == [f"job-{jobs[1]}"]
        assert tab.open(path, text=jobs[0]).tree.xpath("//*[@id='known']/a/@href") == [f"/ui/jobs/{jobs[0]}"]
    other = site.admin.create_project()
    assert not tab.open(f"/ui/projects/{other}/jobs", text=jobs[0]).tree.xpath("//*[@id='known']")
    stranger = Tab(site.create_manager().http)
    assert not stranger.open("/ui/jobs", text=jobs[0]).tree.xpath("//*[@id='known']")
