"""The page of a public project for volunteers: for everybody, and cheap however many look at it."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import Site, client

import pages


def crowd(site: Site, project: int, **query: Any) -> httpx.Response:
    return site.guest.get(f"/ui/projects/{project}/crowd", params=query)


def test_a_guest_sees_how_far_it_is_and_who_does_most(site: Site) -> None:
    project = site.admin.create_project("a crawl", public=True)
    first, second = site.create_worker(project, alias="first <b>"), site.create_worker(project, alias="second")
    for _ in range(4):
        first.submit(project)
    for worker in (first, second, second):
        worker.released(worker.assigned(project)["id"])
    page = crowd(site, project)
    assert page.status_code == 200
    assert "<title>1 left · a crawl</title>" in page.text and "75.0 % of 4 tasks" in page.text
    board = re.findall(r"<bdi>([^<]*)</bdi></th><td class=\"num\">(\d+)</td>", page.text)
    assert board == [("second", "2"), ("first &lt;b&gt;", "1")]
    assert f"--server {site.url} --project {project}" in page.text
    assert 'name="token"' not in page.text and "set-cookie" not in page.headers


def test_one_task_is_told_as_one(site: Site) -> None:
    project = site.admin.create_project(public=True)
    site.create_worker(project).submit(project)
    assert "% of 1 task<" in crowd(site, project).text


def test_the_time_left_is_rounded_as_on_other_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.admin.create_project(public=True)
    site.create_worker(project).submit(project)
    monkeypatch.setattr(pages, "pace", lambda tx, project: {"rate": 1.0, "eta": 43 * 60 + 7, "left": 1})
    assert "<dd>about 45 min</dd>" in crowd(site, project).text


@pytest.mark.parametrize("fields", [{}, {"hidden": True}])
def test_only_a_public_project_has_one(site: Site, fields: dict[str, Any]) -> None:
    project = site.admin.create_project(**fields)
    assert crowd(site, project).status_code == 404
    assert site.admin.http.get(f"/ui/projects/{project}/crowd").status_code == 404


def test_the_whole_leaderboard_is_there_a_page_after_the_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CROWD_ROWS", 2)
    project = site.admin.create_project(public=True)
    workers = [site.create_worker(project, alias=f"w{number}") for number in range(5)]
    for worker in workers:
        worker.submit(project)
        worker.released(worker.assigned(project)["id"])
    found, page = [], 1
    while True:
        text = crowd(site, project, page=page).text
        found += re.findall(r"<bdi>(w\d)</bdi>", text)
        if "Next" not in text:
            break
        page += 1
    assert found == ["w0", "w1", "w2", "w3", "w4"]
    assert crowd(site, project, page=99).status_code == 200
    assert crowd(site, project, page=0).status_code == 400


def test_all_who_look_share_one_page_and_reload_for_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.admin.create_project(public=True)
    made: list[int] = []
    values = pages.crowd_values
    monkeypatch.setattr(pages, "crowd_values", lambda *args: made.append(1) or values(*args))
    with ThreadPoolExecutor(8) as people:
        answers = list(people.map(lambda _: crowd(site, project), range(40)))
    assert {one.status_code for one in answers} == {200} and len(made) == 1
    etag = answers[0].headers["etag"]
    assert answers[0].headers["cache-control"].startswith("public")
    again = site.guest.get(f"/ui/projects/{project}/crowd", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    packed = site.guest.get(f"/ui/projects/{project}/crowd", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.text == answers[0].text


def test_what_another_visitor_calls_the_tracker_is_on_nobody_elses_page(make_site: Callable[..., Site]) -> None:
    site = make_site(allowed_hosts=("evil.example", "127.0.0.1"))
    project = site.admin.create_project(public=True)
    with client(site.url, headers={"Host": "evil.example"}) as other:
        assert "evil.example" in other.get(f"/ui/projects/{project}/crowd").text
    assert "evil.example" not in crowd(site, project).text


def test_a_refusal_is_not_kept(site: Site) -> None:
    project = site.admin.create_project()
    assert crowd(site, project).status_code == 404
    site.admin.update_project(project, public=True)
    assert crowd(site, project).status_code == 200


def test_the_tab_of_a_project_tells_how_much_is_left(site: Site) -> None:
    project = site.admin.create_project("a crawl")
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": "x"}] * 1200)
    page = site.admin.http.get(f"/ui/projects/{project}").text
    assert "<title>1,200 left · a crawl · Tracker</title>" in page
