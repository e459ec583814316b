"""An admin renames workers and deletes them: what they held goes back first, and what they did stays done."""

from __future__ import annotations

import sqlite3

import pytest
from conftest import Site, Worker
from place import check_counts
from test_budgets import check_budgets
from test_pages import Tab

import tracker
import workers


@pytest.fixture
def project(site: Site) -> int:
    return site.admin.create_project("crawl")


@pytest.fixture
def worker(site: Site, project: int) -> Worker:
    return site.create_worker(project, "old")


def deleted(site: Site, worker: Worker) -> int:
    return site.admin.post(f"/worker/delete/{worker.id}").status_code


def check(site: Site) -> None:
    """The counts and budgets are right."""
    with sqlite3.connect(site.settings.database) as connection:
        connection.row_factory = sqlite3.Row
        check_counts(connection)
        check_budgets(connection)
    connection.close()


def test_a_worker_is_renamed(site: Site, worker: Worker) -> None:
    assert site.admin.post(f"/worker/rename/{worker.id}", {"alias": "new"}).json() == {"ok": True}
    assert site.guest.get(f"/worker/get/{worker.id}").json()["content"]["worker"]["alias"] == "new"
    refused = site.admin.post(f"/worker/rename/{worker.id}", {"alias": "unassigned"})
    assert (refused.status_code, refused.json()["field"]) == (400, "alias")
    assert site.admin.post("/worker/rename/99", {"alias": "new"}).status_code == 404


def test_what_it_holds_goes_back_first(site: Site, project: int, worker: Worker) -> None:
    other = site.create_worker(project)
    other.bulk_submit([{"project": project, "recipe": str(number)} for number in range(130)])
    held = worker.assign(project, count=120).json()["content"]["tasks"]
    worker.released(held[0]["id"])
    assert deleted(site, worker) == 204
    assert site.admin.counts(project) == {"waiting": 129, "closed": 1}
    assert site.read("SELECT outcome, COUNT(*) FROM assignment GROUP BY outcome") == [("requeued", 119)]
    assert other.assigned(project)
    check(site)


def test_nobody_can_come_as_it_any_more(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    task = worker.assigned(project)
    assert deleted(site, worker) == 204
    assert worker.assign(project).status_code == 401
    assert worker.release(task["id"]).status_code == 401
    assert deleted(site, worker) == 404


def test_its_lines_stay_and_its_place_in_rankings_goes(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    worker.released(worker.assigned(project)["id"])
    worker.log("info", "I was here")
    assert deleted(site, worker) == 204
    assert site.admin.project(project)["closed_task_count"] == 1
    assert [one["id"] for one in site.guest.get("/worker/stats").json()["content"]["stats"]] == []
    assert "I was here" in Tab(site.admin.http).open("/ui/logs").text
    assert Tab(site.admin.http).open(f"/ui/projects/{project}").status == 200
    assert site.read("SELECT * FROM tally") == site.read("SELECT * FROM worker_access") == []
    check(site)


def test_the_pause_of_a_worker_that_failed_goes_with_it(site: Site, project: int, worker: Worker) -> None:
    most = site.settings.pause_after_failures
    for _ in range(most):
        worker.submit(project)
        worker.release(worker.assigned(project)["id"], tracker.FAIL)
    assert site.read("SELECT paused_worker_count FROM project") == [(1,)]
    assert deleted(site, worker) == 204
    assert site.read("SELECT paused_worker_count FROM project") == [(0,)]


def test_only_an_admin_renames_and_deletes(site: Site, worker: Worker) -> None:
    manager = site.create_manager()
    before = site.dump()
    for http, status in ((manager.http, 403), (site.guest, 401), (worker.http, 401)):
        assert http.post(f"/worker/rename/{worker.id}", json={"alias": "new"}).status_code == status
        assert http.post(f"/worker/delete/{worker.id}").status_code == status
    assert site.dump() == before


def test_a_crash_in_between_leaves_one_that_is_deleted_once_more(
    site: Site, project: int, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> bool:
        raise tracker.TrackerError("unavailable", "as if it had been killed")

    worker.submit(project)
    worker.assigned(project)
    put_back = workers.put_back
    monkeypatch.setattr(workers, "put_back", fail)
    assert deleted(site, worker) == 503
    assert worker.assign(project).status_code == 401
    monkeypatch.setattr(workers, "put_back", put_back)
    assert deleted(site, worker) == 204
    check(site)


def test_its_page_asks_before_it_is_deleted(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    worker.assigned(project)
    tab = Tab(site.admin.http)
    assert tab.open(f"/ui/workers/{worker.id}").form("/rename") is not None
    tab.act(f"/ui/workers/{worker.id}/rename", {"alias": "renamed"})
    asked = tab.act(f"/ui/workers/{worker.id}/delete")
    assert "Delete worker renamed" in asked.text and "The task that it holds goes back" in asked.text
    assert site.read("SELECT COUNT(*) FROM worker") == [(1,)]
    tab.act(f"/ui/workers/{worker.id}/delete", {"confirmed": "yes"})
    assert site.read("SELECT COUNT(*) FROM worker") == [(0,)]
    assert [row[0] for row in site.read("SELECT action FROM act ORDER BY id DESC LIMIT 2")] == [
        "remove_worker",
        "rename_worker",
    ]
