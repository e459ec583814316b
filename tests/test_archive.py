"""An archived project is kept to be read: closed to workers, in no list unless asked for, and it can come back."""

from __future__ import annotations

import json
from pathlib import Path

import nursery
import pytest
from conftest import Site, Worker
from test_pages import Tab

import tracker

WORKER = Path(__file__).parent.parent / "worker.py"


@pytest.fixture
def project(site: Site) -> int:
    return site.admin.create_project("old crawl")


@pytest.fixture
def worker(site: Site, project: int) -> Worker:
    return site.create_worker(project)


def archive(site: Site, project: int, archived: bool = True) -> None:
    answer = site.admin.update_project(project, archived=archived)
    assert answer.status_code == 200, answer.text


def names(site: Site, **query: str) -> list[str]:
    return [one["name"] for one in site.guest.get("/project/list", params=query).json()["content"]["projects"]]


def test_nobody_is_assigned_its_tasks_and_is_told_why(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    archive(site, project)
    answer = worker.assign(project)
    assert (answer.status_code, answer.json()["ok"]) == (200, False)
    assert answer.json()["message"] == tracker.NO_TASK
    assert answer.json()["reason"] == f"A manager has archived project {project}"
    assert site.admin.project(project)["paused"] is True


@pytest.mark.parametrize("way", ["submit", "bulk_submit", "lines", "page", "job"])
def test_nothing_new_goes_into_it(site: Site, project: int, worker: Worker, way: str) -> None:
    template = site.admin.post("/template/create", {"project": project, "name": "build"}).json()["content"]["template"]
    archive(site, project)
    before = site.dump()
    answer = {
        "submit": lambda: worker.submit(project),
        "bulk_submit": lambda: worker.bulk_submit([{"project": project, "recipe": "a"}] * 3),
        "lines": lambda: worker.http.post(f"/task/submit_lines/{project}", content=b"one\ntwo\n"),
        "page": lambda: Tab(site.admin.http).post(f"/ui/projects/{project}/submit", {"recipe": "a"}),
        "job": lambda: site.admin.post(f"/template/trigger/{template['id']}", {}),
    }[way]()
    assert answer.status_code == 423 and f"Project {project} is archived" in answer.text
    assert site.dump() == before


def test_what_workers_hold_of_it_they_may_still_release(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    task = worker.assigned(project)
    archive(site, project)
    assert worker.released(task["id"])
    assert site.admin.counts(project) == {"closed": 1}


def test_it_is_in_no_list_unless_asked_for(site: Site, project: int) -> None:
    site.admin.create_project("other")
    archive(site, project)
    assert names(site) == ["other"]
    assert names(site, archived="true") == ["old crawl"]
    tab = Tab(site.admin.http)
    page = tab.open("/ui/")
    assert "old crawl" not in page.text and "Archived: 1" in page.text
    page = tab.open("/ui/?archived=true")
    assert "old crawl" in page.text and "other</a>" not in page.text
    assert tab.open(f"/ui/projects/{project}").status == 200


def test_it_stays_paused_until_it_is_back(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    archive(site, project)
    refused = site.admin.update_project(project, paused=False)
    assert (refused.status_code, refused.json()["field"]) == (409, "paused")
    archive(site, project, False)
    assert worker.assigned(project) is None  # somebody has to resume it
    site.admin.update_project(project, paused=False)
    assert worker.assigned(project)


def test_a_button_of_its_settings_archives_it_and_takes_it_back(site: Site, project: int) -> None:
    tab = Tab(site.admin.http)
    for archived in "true", "false":
        tab.open(f"/ui/projects/{project}/edit")
        tab.act(f"/ui/projects/{project}/edit/archive", {"archived": archived})
        assert site.read("SELECT archived, paused FROM project") == [(archived == "true", 1)]


def test_worker_py_says_so_and_ends(site: Site, project: int, worker: Worker, tmp_path: Path) -> None:
    """It has no traceback for it, and does not wait for access that it has."""
    archive(site, project)
    credentials = tmp_path / "credentials.json"
    mine = {"id": worker.id, "alias": "a", "secret": worker.secret}
    credentials.write_text(json.dumps({"servers": {site.url: mine}}))
    credentials.chmod(0o600)
    lines = tmp_path / "lines"
    lines.write_text("one\n")
    options = ["--server", site.url, "--project", project, "--credentials", credentials]
    done = nursery.run(WORKER, ["submit", *map(str, options), lines], tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"Project {project} is archived" in done.stderr
