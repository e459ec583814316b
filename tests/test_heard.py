"""What a job waits for: who has asked for tasks of its project lately, and what they take."""

from __future__ import annotations

import pytest
from conftest import Site

import heard
from heard import Heard, Takes


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def signs(time: Time) -> Heard:
    return Heard(time, lately=30)


def test_a_worker_is_heard_of_until_it_has_not_asked_for_a_while(signs: Heard, time: Time) -> None:
    signs.note(1, [7, 8], "commands")
    signs.note(2, [7], "scripts")
    assert (signs.takes(7), signs.takes(8), signs.takes(9)) == (["commands", "scripts"], ["commands"], [])
    time.now = 100
    signs.note(1, [7], "all")
    time.now = 200
    assert (signs.takes(7), signs.takes(8)) == (["all"], [])


def test_it_knows_so_many_and_the_oldest_make_room(signs: Heard) -> None:
    for worker in range(heard.MOST_WORKERS + 5):
        signs.note(worker, [1], "all" if worker < 5 else "scripts")
    assert signs.takes(1) == ["scripts"] * heard.MOST_WORKERS
    signs.note(1, range(2, heard.MOST_PROJECTS + 2), "")
    assert (signs.takes(1), len(signs._signs)) == ([], heard.MOST_PROJECTS)


@pytest.mark.parametrize(
    ("takes", "needs", "said"),
    [
        ([], "scripts", "none has asked"),
        (["commands"], "scripts", "--allow-scripts"),
        (["scripts"], "commands", "runs a command"),
        (["commands", "all"], "scripts", "its turn: a worker asks"),
        (["", "scripts"], "scripts", "its turn: 2 workers ask"),
    ],
)
def test_what_a_job_waits_for_is_said_in_words(takes: list[Takes], needs: Takes, said: str) -> None:
    assert said in heard.waits_for(takes, needs)


def job_of(site: Site, project: int, **fields: str) -> str:
    """A new job that waits; its id."""
    made = site.admin.post("/template/create", {"project": project, "name": "build", **fields}).json()["content"]
    return site.admin.post(f"/template/trigger/{made['template']['id']}", {}).json()["content"]["job"]["id"]


@pytest.mark.parametrize("path", ["/task/get/{}?takes={}", "/task/get?project={}&takes={}"])
def test_a_job_that_waits_says_what_for(site: Site, path: str) -> None:
    project = site.admin.create_project()
    first, job = (job_of(site, project, script="echo hi") for _ in range(2))

    def page() -> str:
        return site.admin.http.get(f"/ui/jobs/{job}").text

    assert "none has asked for tasks of this project lately" in page()
    worker = site.create_worker(project)
    assert worker.http.get(path.format(project, "commands")).json()["ok"]
    assert "started without --allow-scripts" in page()
    site.create_worker(project).http.get(path.format(project, "all"))
    assert "Waits for" not in page()
    assert "Waits for" not in site.admin.http.get(f"/ui/jobs/{first}").text


def test_a_job_waits_for_the_end_of_a_pause(site: Site) -> None:
    project = site.admin.create_project()
    job = job_of(site, project)
    site.admin.update_project(project, paused=True)
    assert "the end of the project&#39;s pause" in site.admin.http.get(f"/ui/jobs/{job}").text


def test_nobody_is_heard_of_who_was_not_let_in(site: Site) -> None:
    project = site.admin.create_project()
    job = job_of(site, project)
    site.create_worker().http.get(f"/task/get/{project}?takes=all")
    assert "none has asked" in site.admin.http.get(f"/ui/jobs/{job}").text
    refused = site.create_worker(project).http.get(f"/task/get/{project}?takes=everything")
    assert (refused.status_code, "takes" in refused.json()["message"]) == (400, True)
