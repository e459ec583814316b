"""Faults that other implementations of this API are known for, and that this one does not have: one test for each."""

from pathlib import Path

import httpx
from conftest import Manager, Site, Worker, client

import tracker

BEYOND_32_BITS = [2**31, 2**32, 2**32 + 1, 2**63, 2**64, 10**30]


def assert_alive(site: Site) -> None:
    """The very same tracker goes on working, its writer included."""
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    assert worker.released(worker.assigned(project)["id"])


def bulk(worker: Worker, project: int, names: str) -> httpx.Response:
    return worker.bulk_submit([{"project": project, "recipe": name, "unique_string": name} for name in names])


# ── One request from a guest that kills the process ───────────────────────────────────────────────────────────────────


def test_a_guest_who_promotes_somebody_does_not_kill_the_tracker(site: Site) -> None:
    for call in "promote", "demote":
        answers = [site.guest.request(method, f"/manager/{call}/{site.admin.id}") for method in ("GET", "POST")]
        assert [answer.status_code for answer in answers] == [401, 401]
    assert_alive(site)


def test_a_project_id_beyond_32_bits_does_not_kill_the_tracker(site: Site) -> None:
    worker = site.create_worker()
    statuses = set()
    for id in BEYOND_32_BITS:
        for path in "/project/get/{}", "/project/monitoring/{}", "/project/assignees/{}":
            statuses.add(site.guest.get(path.format(id)).status_code)
        statuses.add(worker.http.get(f"/task/get/{id}").status_code)
    assert statuses == {404}
    # In a query or a body an id beyond 64 bits is no id at all.
    assert {worker.http.get(f"/task/get?project={id}").status_code for id in BEYOND_32_BITS} == {400, 404}
    assert {worker.submit(id).status_code for id in BEYOND_32_BITS} == {400, 404}
    assert {worker.request_access(id).status_code for id in BEYOND_32_BITS} == {400, 404}
    assert_alive(site)


def test_a_worker_id_beyond_32_bits_does_not_kill_the_tracker(site: Site) -> None:
    for id in BEYOND_32_BITS:
        headers = {"X-Worker-ID": str(id), "X-Secret": "x"}
        assert site.guest.get("/task/get/1", headers=headers).status_code == 401
        assert site.guest.post("/task/submit", json={"project": 1, "recipe": "x"}, headers=headers).status_code == 401
        assert site.guest.get(f"/worker/get/{id}").status_code == 404
    assert_alive(site)


def test_an_over_long_secret_does_not_kill_the_tracker(site: Site) -> None:
    worker = site.create_worker()
    for secret in worker.secret + "A", worker.secret * 100, "A" * 50_000:
        headers = {"X-Worker-ID": str(worker.id), "X-Secret": secret}
        assert site.guest.get("/task/get/1", headers=headers).status_code == 401
        assert site.guest.post("/task/release", json={"task_id": 1, "result": 0}, headers=headers).status_code == 401
    assert_alive(site)


def test_a_role_for_a_manager_that_does_not_exist_does_not_kill_the_tracker(site: Site) -> None:
    project = site.admin.create_project()
    path = f"/manager/set_role_for_project/{project}"
    assert site.guest.post(path, json={"manager": 7, "role": 31}).status_code == 401
    assert [site.admin.post(path, {"manager": id, "role": 31}).status_code for id in (0, 7, 2**32)] == [404] * 3
    assert site.admin.post(path, {"manager": 7, "role": 0}).status_code == 404
    listed = site.admin.get(f"/manager/list_for_project/{project}").json()["content"]["managers"]
    assert [one["manager"]["id"] for one in listed] == [site.admin.id]
    assert_alive(site)


# ── Rights ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_guest_cannot_withdraw_access(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    path = f"/project/reject_request/{project}/{worker.id}"
    assert site.guest.post(path).status_code == 401
    assert worker.http.post(path).status_code == 401
    assert site.create_manager().post(path).status_code == 403
    assert worker.submit(project).status_code == 200


def test_a_pending_request_for_access_does_not_read_the_projects_secret(site: Site) -> None:
    project = site.admin.create_project()
    site.admin.post(f"/project/secret/{project}", {"secret": "hush"})
    worker = site.create_worker()
    assert worker.request_access(project).status_code == 200
    answer = worker.http.get(f"/project/secret/{project}")
    assert answer.status_code == 403
    assert "hush" not in answer.text


def test_a_demoted_admin_is_no_admin_with_its_very_next_request(site: Site) -> None:
    hidden = site.admin.create_project(hidden=True)
    other = site.create_manager()
    site.admin.post(f"/manager/promote/{other.id}")
    assert other.get(f"/project/get/{hidden}").status_code == 200
    site.admin.post(f"/manager/demote/{other.id}")
    assert other.get(f"/project/get/{hidden}").status_code == 404
    assert other.post(f"/manager/promote/{site.create_manager().id}").status_code == 403
    assert other.get("/account").json()["content"]["manager"]["tracker_admin"] is False


def test_a_cookie_chosen_by_the_client_is_no_session_not_even_after_a_login(site: Site) -> None:
    for chosen in "chosen", "1", "chosen.signature":
        http = client(site.url, headers={"Cookie": f"tt={chosen}"})
        assert http.get("/account").json()["ok"] is False
        answer = http.post("/login", json={"username": "admin", "password": "password"})
        assert answer.status_code == 200
        assert answer.cookies["tt"] != chosen
        victim = client(site.url, headers={"Cookie": f"tt={chosen}"})
        assert victim.get("/account").json()["ok"] is False


def test_a_session_ends_with_the_logout_and_with_its_lifetime(site: Site) -> None:
    first = client(site.url, headers={"Cookie": f"tt={site.admin.http.cookies['tt']}"})
    assert first.get("/manager/list").status_code == 200
    site.admin.post("/logout")
    assert first.get("/manager/list").status_code == 401
    site.admin.post("/login", {"username": "admin", "password": "password"})
    second = client(site.url, headers={"Cookie": f"tt={site.admin.http.cookies['tt']}"})
    assert second.get("/manager/list").status_code == 200
    site.clock.pass_time(site.settings.session_lifetime + 1)
    assert second.get("/manager/list").status_code == 401


def test_the_statistics_of_a_hidden_project_are_hidden(site: Site) -> None:
    project = site.admin.create_project(hidden=True)
    strangers = site.guest, site.create_worker(project).http, site.create_manager().http
    for path in "monitoring/{}", "monitoring-between/{}?from=0&to=9999999999", "assignees/{}":
        assert [http.get("/project/" + path.format(project)).status_code for http in strangers] == [404] * 3
        assert site.admin.http.get("/project/" + path.format(project)).status_code == 200


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bulk_submit_that_contains_a_duplicate_stores_the_rest_and_says_so(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    bulk(worker, project, "b")
    assert bulk(worker, project, "abca").json() == {"ok": True, "content": {"submitted": 2, "duplicates": 2}}
    assert site.admin.counts(project) == {"waiting": 3}


def test_a_bulk_submit_without_access_is_not_answered_with_ok(site: Site) -> None:
    project = site.admin.create_project(public=True)
    answer = bulk(site.create_worker(), project, "abc")
    assert (answer.status_code, answer.json()["ok"]) == (403, False)
    assert site.admin.counts(project) == {}


def test_a_bulk_submit_to_a_rate_limited_project_is_let_through(site: Site) -> None:
    project = site.admin.create_project(submit_rate=0.5)
    worker = site.create_worker(project)
    assert bulk(worker, project, "abcdefghij").json()["content"] == {"submitted": 10, "duplicates": 0}
    site.clock.pass_time(21)
    assert bulk(worker, project, "klm").json()["content"] == {"submitted": 3, "duplicates": 0}


def test_an_empty_poll_does_not_use_up_the_rate(site: Site) -> None:
    project = site.admin.create_project(assign_rate=0.001)
    worker = site.create_worker(project)
    assert worker.assigned(project) is None
    worker.submit(project)
    assert worker.assigned(project)


def test_reclaiming_does_not_count_tasks_that_nobody_held(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    bulk(worker, project, "abcde")
    worker.assigned(project)
    answers = [site.admin.post(f"/project/reclaim_assigned_tasks/{project}").json() for _ in range(2)]
    assert [answer["content"]["affected_tasks"] for answer in answers] == [1, 0]


def test_updating_a_project_that_does_not_exist_is_404(site: Site) -> None:
    answer = site.admin.update_project(7, name="nowhere")
    assert (answer.status_code, answer.json()["ok"]) == (404, False)
    assert site.admin.get("/project/list").json()["content"]["projects"] == []


def test_equal_priorities_are_first_in_first_out(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    names = "qwertyuiopasdfghjklzxcvbnm"
    for name in names[:13]:
        worker.submit(project, name, priority=5)
    bulk(worker, project, names[13:])
    site.clock.wall = -3600  # the clock is set back: order is that of submission, not that of times
    worker.submit(project, "last")
    worker.submit(project, "first of all", priority=9)
    got = [worker.assigned(project)["recipe"] for _ in range(28)]
    assert got == ["first of all", *names, "last"]


# ── A restart ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_does_not_let_paused_workers_go_on(tmp_path: Path) -> None:
    settings = tracker.Settings(database=str(tmp_path / "tracker.db"), log_file="")
    with tracker.serving(settings) as url:
        admin = Manager(url)
        project = admin.create_project()
        worker, other = (admin.grant(Worker(url), project) for _ in range(2))
        worker.submit(project)
        assert admin.post("/worker/set_paused", {"worker": worker.id, "paused": True}).status_code == 200
    with tracker.serving(settings) as url:
        worker.http.base_url = other.http.base_url = url
        assert worker.assign(project).json() == {
            "ok": False,
            "message": "A manager has paused you",
            "code": "forbidden",
        }
        assert other.assigned(project)
