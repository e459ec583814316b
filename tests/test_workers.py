"""Workers: registration, credentials, names, pauses, statistics."""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import Site, Worker

import tracker


def create(site: Site, body: Any) -> httpx.Response:
    return site.guest.post("/worker/create", json=body)


def shown(site: Site, worker: int) -> dict[str, Any]:
    """The worker as everybody may see it."""
    return site.guest.get(f"/worker/get/{worker}").json()["content"]["worker"]


def paused(site: Site, worker: Worker, value: bool = True) -> httpx.Response:
    return site.admin.post("/worker/set_paused", {"worker": worker.id, "paused": value})


# ── /worker/create ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_guest_creates_a_worker_and_is_told_its_secret_of_32_random_bytes(site: Site) -> None:
    one, other = (create(site, {"alias": "some alias"}).json()["content"]["worker"] for _ in range(2))
    assert set(one) == {"id", "created", "alias", "secret", "paused"}
    assert (one["alias"], one["paused"]) == ("some alias", False)
    assert len(base64.b64decode(one["secret"], validate=True)) == 32
    assert one["secret"] != other["secret"]


def test_the_time_of_creation_is_in_unix_seconds(site: Site) -> None:
    site.clock.wall = 1_000_000_000 - site.clock.time()
    assert 0 <= create(site, {"alias": "x"}).json()["content"]["worker"]["created"] - 1_000_000_000 < 100


def test_an_empty_alias_becomes_the_default_alias(make_site: Callable[..., Site]) -> None:
    site = make_site(default_alias="nameless")
    created = [create(site, body).json()["content"]["worker"] for body in ({"alias": ""}, {"alias": "  "}, {})]
    assert [worker["alias"] for worker in created] == ["nameless"] * 3


def test_the_alias_unassigned_is_reserved(site: Site) -> None:
    answers = [create(site, {"alias": alias}) for alias in ("unassigned", " Unassigned ")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert all(answer.json()["message"].startswith("alias:") for answer in answers)


def test_registration_of_workers_can_be_closed_to_managers(make_site: Callable[..., Site]) -> None:
    site = make_site(open_worker_registration=False)
    assert create(site, {"alias": "x"}).status_code == 401
    assert site.admin.post("/worker/create", {"alias": "x"}).status_code == 200


# ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────────────────

WORKER_CALLS = [
    ("POST", "/worker/update", {"alias": "x"}),
    ("POST", "/task/submit", {"project": 1, "recipe": "x"}),
    ("POST", "/task/bulk_submit", {"requests": [{"project": 1, "recipe": "x"}]}),
    ("GET", "/task/get/1", None),
    ("GET", "/task/get?project=1", None),
    ("POST", "/task/release", {"task_id": 1, "result": 0}),
    ("POST", "/task/bulk_release", {"releases": [{"task_id": 1, "result": 0}]}),
    ("POST", "/log/info", {"scope": "x", "message": "x", "timestamp": 1}),
    ("POST", "/project/request_access", {"project": 1, "assign": True}),
]


def statuses_of_worker_calls(site: Site, headers: dict[str, str]) -> set[int]:
    """What all of the calls for workers answer to somebody with these headers, who is logged in as admin besides."""
    http = site.admin.http
    answers = [http.request(method, path, json=body, headers=headers) for method, path, body in WORKER_CALLS]
    assert all(answer.json()["ok"] is False and answer.json()["message"] for answer in answers)
    return {answer.status_code for answer in answers}


@pytest.mark.parametrize("name", ["some alias", "1.0", ""])
def test_who_gives_no_number_as_a_workers_is_told_that_it_is_one(site: Site, name: str) -> None:
    answer = site.guest.get("/task/get/1", headers={"X-Worker-ID": name, "X-Secret": "x"})
    assert answer.status_code == 401 and "X-Worker-ID (the worker's number)" in answer.json()["message"]


def test_without_credentials_every_call_for_workers_is_401(site: Site) -> None:
    site.admin.create_project(public=True)
    assert statuses_of_worker_calls(site, {}) == {401}


def test_with_a_wrong_secret_every_call_for_workers_is_401(site: Site) -> None:
    site.admin.create_project(public=True)
    worker, other = site.create_worker(), site.create_worker()
    assert statuses_of_worker_calls(site, {"X-Worker-ID": str(worker.id), "X-Secret": other.secret}) == {401}


def test_the_secret_is_stored_hashed(site: Site) -> None:
    worker = site.create_worker()
    [[stored]] = site.read("SELECT secret_hash FROM worker")
    assert worker.secret.encode() not in stored
    assert base64.b64decode(worker.secret) not in stored


# ── /worker/get, /worker/update, /worker/stats ────────────────────────────────────────────────────────────────────────


def test_anybody_sees_a_worker_but_never_its_secret(site: Site) -> None:
    worker = site.create_worker(alias="visible")
    assert set(shown(site, worker.id)) == {"id", "created", "alias", "paused"}
    assert shown(site, worker.id)["alias"] == "visible"


def test_a_worker_changes_its_own_alias_and_no_other(site: Site) -> None:
    worker, other = site.create_worker(alias="before"), site.create_worker(alias="other")
    assert worker.http.post("/worker/update", json={"alias": "after"}).json() == {"ok": True}
    assert (shown(site, worker.id)["alias"], shown(site, other.id)["alias"]) == ("after", "other")


def test_a_worker_cannot_take_the_reserved_alias_later(site: Site) -> None:
    worker = site.create_worker(alias="before")
    assert worker.http.post("/worker/update", json={"alias": "unassigned"}).status_code == 400
    assert shown(site, worker.id)["alias"] == "before"


def test_the_statistics_count_the_tasks_that_each_worker_closed(site: Site) -> None:
    project = site.admin.create_project()
    idle, busy = site.create_worker(alias="idle"), site.create_worker(project, alias="busy")
    for result in (0, 0, 1, 2):
        busy.submit(project)
        assert busy.released(busy.assigned(project)["id"], result)
    stats = site.guest.get("/worker/stats").json()["content"]["stats"]
    assert stats == [
        {"id": busy.id, "alias": "busy", "closed_task_count": 2, "paused": False},
        {"id": idle.id, "alias": "idle", "closed_task_count": 0, "paused": False},
    ]


# ── /worker/set_paused ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_paused_worker_gets_no_task_and_is_told_why(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    assert paused(site, worker).status_code == 200
    refusal = worker.assign(project)
    assert refusal.status_code == 403
    assert refusal.json() == {"ok": False, "message": "A manager has paused you", "code": "forbidden"}


def test_a_worker_that_is_paused_no_longer_gets_tasks_again(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    paused(site, worker)
    assert shown(site, worker.id)["paused"] is True
    paused(site, worker, False)
    assert shown(site, worker.id)["paused"] is False
    assert worker.assigned(project)


def test_a_paused_worker_may_release_what_it_holds(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    task = worker.assigned(project)
    paused(site, worker)
    assert worker.released(task["id"])


def test_only_an_admin_pauses_a_worker(site: Site) -> None:
    worker = site.create_worker()
    body = {"worker": worker.id, "paused": True}
    assert site.guest.post("/worker/set_paused", json=body).status_code == 401
    assert worker.http.post("/worker/set_paused", json=body).status_code == 401
    assert site.create_manager().post("/worker/set_paused", body).status_code == 403
    assert shown(site, worker.id)["paused"] is False


def test_statistics_show_those_who_have_closed_most_and_say_how_to_go_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = site.admin.create_project()
    workers = [site.create_worker(project) for _ in range(7)]
    for number, worker in enumerate(workers):
        for _ in range(number // 2):
            worker.submit(project)
            worker.release(worker.assigned(project)["id"])
    whole = site.guest.get("/worker/stats").json()["content"]
    assert [one["closed_task_count"] for one in whole["stats"]] == [3, 2, 2, 1, 1, 0, 0] and "more" not in whole
    monkeypatch.setattr(tracker, "MOST_RANKED", 2)
    read: list[dict] = []
    page: dict = {"more": True}
    while page.get("more"):
        after = {"after": read[-1]["id"]} if read else {}
        page = site.guest.get("/worker/stats", params=after).json()["content"]
        assert len(page["stats"]) <= 2
        read += page["stats"]
    assert read == whole["stats"]
