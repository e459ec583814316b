"""The native API's clients that exist, unchanged: their whole lives against this tracker, and what broke them."""

import contextlib
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable

import pytest
from conftest import Site, client
from native_doubles import INT16, Drone, FrontEnd, Submitter

import errors
import tracker
from waiting import LONGEST_HOLD, Polls


def accept(site: Site, worker: int, project: int) -> None:
    assert site.admin.post(f"/project/accept_request/{project}/{worker}").status_code == 200


# ── Drones ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_drone_lives_its_life_from_registration_to_the_last_task(site: Site) -> None:
    project = site.admin.create_project()
    site.admin.post(f"/project/secret/{project}", {"secret": "token"})
    drone = Drone(site.url)
    drone.ask_for_access()
    accept(site, drone.id, project)
    site.create_worker(project).bulk_submit([{"project": project, "recipe": str(number)} for number in range(3)])
    seen = []
    while not drone.step(lambda task: seen.append((task["recipe"], task["secret"])) or "done"):
        pass
    assert seen == [("0", "token"), ("1", "token"), ("2", "token")]
    assert site.admin.counts(project) == {"closed": 3}


def test_a_drone_without_access_pauses_between_its_polls(site: Site) -> None:
    """It pauses on one text alone. One that was told anything else made 29,497 polls in six seconds."""
    for visibility in ({}, {"paused": True, "public": True}, {"public": True}, {"hidden": True}):
        site.admin.create_project(**visibility)
    drone = Drone(site.url)
    drone.ask_for_access()
    assert [drone.step(str) for _ in range(3)] == [True] * 3


def test_a_drone_with_a_request_that_waits_works_for_a_public_project(site: Site) -> None:
    project = site.admin.create_project(public=True)
    site.admin.post(f"/project/secret/{project}", {"secret": "token"})
    site.create_worker(project).submit(project)
    drone = Drone(site.url)
    drone.ask_for_access()
    drone.step(lambda task: "done" + task["secret"])
    assert site.admin.counts(project) == {"closed": 1}


@pytest.mark.parametrize("output", ["x" * 3_000_000, "a\0b", "half \udc80", "\x1b[31mred\r\n"])
def test_a_drone_releases_its_task_whatever_the_script_has_printed(site: Site, output: str) -> None:
    project = site.admin.create_project(public=True)
    site.create_worker(project).submit(project)
    drone = Drone(site.url)
    drone.projects = [project]
    drone.step(lambda task: output)
    assert site.admin.counts(project) == {"closed": 1}


def test_a_recipe_of_four_megabytes_is_taken_and_handed_out(site: Site) -> None:
    project = site.admin.create_project(public=True)
    worker = site.create_worker(project)
    recipe = "x" * (4 * 2**20 - 1000)
    assert worker.submit(project, recipe).status_code == 200
    assert worker.assigned(project)["recipe"] == recipe


def test_a_drone_that_a_manager_has_paused_is_told_so(site: Site) -> None:
    project = site.admin.create_project()  # without access, too
    worker = site.create_worker()
    site.admin.post("/worker/set_paused", {"worker": worker.id, "paused": True})
    answer = worker.assign(project)
    assert (answer.status_code, answer.json()["message"]) == (403, "A manager has paused you")


# ── Numbers that fit ──────────────────────────────────────────────────────────────────────────────────────────────────

TOO_LARGE = [("priority", 2**15), ("priority", -(2**15) - 1), ("max_retries", 2**15), ("verification_count", 2**15)]


@pytest.mark.parametrize("field, value", TOO_LARGE)
def test_a_number_that_clients_cannot_hold_is_refused_in_a_new_task(site: Site, field: str, value: int) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    body = {"project": project, "recipe": "x", field: value}
    answers = worker.submit(project, **{field: value}), worker.bulk_submit([body])
    assert [(answer.status_code, answer.json()["field"]) for answer in answers] == [
        (400, field),
        (400, f"requests[0].{field}"),
    ]
    upload = worker.http.post(f"/task/submit_lines/{project}?{field}={value}", content="x\n")
    assert (upload.status_code, upload.json()["field"]) == (400, field)
    if field != "verification_count":
        template = site.admin.post("/template/create", {"project": project, "name": "build", field: value})
        assert (template.status_code, template.json()["field"]) == (400, field)
    assert site.admin.counts(project) == {}


def test_a_priority_that_clients_cannot_hold_is_not_set_by_a_manager_either(site: Site) -> None:
    with pytest.raises(tracker.TrackerError, match="priority"):
        errors.convert({"action": "set_priority", "priority": INT16.stop}, tracker.TaskAction)


def test_a_task_from_before_with_a_larger_number_is_chained_with_the_largest_that_fits(site: Site) -> None:
    end = site.admin.create_project(public=True)
    start = site.admin.create_project(public=True, chain=end)
    worker = site.create_worker(start)
    worker.submit(start)
    with contextlib.closing(sqlite3.connect(site.settings.database)) as connection, connection:
        connection.execute("UPDATE task SET priority = 100000, max_retries = 70000")
    worker.released(worker.assigned(start)["id"])
    chained = worker.assigned(end)
    assert (chained["priority"], chained["max_retries"]) == (INT16.stop - 1, INT16.stop - 1)


def test_the_largest_numbers_reach_the_drone(site: Site) -> None:
    project = site.admin.create_project(public=True)
    largest = INT16.stop - 1
    fields = {"priority": largest, "max_retries": largest, "verification_count": largest}
    site.create_worker(project).submit(project, **fields)
    drone = Drone(site.url)
    drone.projects = [project]
    drone.step(lambda task: "done")
    assert len(drone.done) == 1


# ── Submitters ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_that_sends_null_for_what_it_has_not_got_loses_no_task(site: Site) -> None:
    project = site.admin.create_project()
    submitter = Submitter(site.url)
    submitter.ask_for_access()
    accept(site, submitter.id, project)
    assert submitter.submit(project, "first") == {"ok": True}
    assert submitter.submit(project, "second", unique_str="once") == {"ok": True}
    assert submitter.bulk_submit(project, ["third", "fourth"])["content"] == {"submitted": 2, "duplicates": 0}
    seen = []
    while not submitter.step(lambda task: seen.append(task["recipe"]) or "done"):
        pass
    assert seen == ["first", "second", "third", "fourth"]


def test_a_null_where_something_is_required_is_a_missing_field(site: Site) -> None:
    assert Submitter(site.url).submit(None, "x")["message"] == "project: is required"


# ── Slashes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

DOUBLED = ["//worker/stats", "/api//worker/stats", "//api///project//list", "//ui//login", "//ui/static/style.css"]
DOUBLED += ["//v1/agents/queues", "/v1//agents/data", "//api/jobs/status", "//openapi.json"]


@pytest.mark.parametrize("path", DOUBLED)
def test_repeated_slashes_are_one_at_every_door(site: Site, path: str) -> None:
    single = path
    while "//" in single:
        single = single.replace("//", "/")
    doubled, plain = (site.guest.get(site.url + one) for one in (path, single))
    assert doubled.status_code == plain.status_code != 404
    assert lasting(doubled.text) == lasting(plain.text)


def lasting(page: str) -> str:
    """A page without what each page has of its own: its forms' token, which is masked anew, and its number."""
    return re.sub(r'(name="(?:token|nonce)" value|data-nonce)="[^"]+"', r"\1", page)


def test_repeated_slashes_are_one_below_a_root_path(make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="/prefix")
    assert site.guest.get(f"{site.url}//worker/stats").status_code == 200


ENDED = ["/worker/stats/", "/api/project/list/", "//worker/stats//", "/project/list/?x=1"]


@pytest.mark.parametrize("path", ENDED)
def test_a_path_that_ends_in_a_slash_is_the_one_without(site: Site, path: str) -> None:
    """Some write all their URLs so, and a redirect would lose what they send."""
    assert site.guest.get(site.url + path).json()["ok"]


def test_a_submit_and_a_poll_may_end_in_a_slash(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    assert worker.http.post("/task/submit/", json={"project": project, "recipe": "r"}).json()["ok"]
    assert worker.http.get(f"/task/get/{project}/").json()["content"]["task"]["recipe"] == "r"
    assert worker.http.put("/task/submit/").headers["allow"] == "OPTIONS, POST"


DIALECTS = ["/v1", "/v1/agents/data", "/v1/restricted-queues", "/v1/agents/images", "/v1/queues/q/jobs", "/v1/result/x"]
DIALECTS += ["/api/jobs/status", "/api/jobs/trigger?template=x", "/job", "/job?hostname=x", "/task/5/credentials"]
DIALECTS += ["/acme/task/5", "/token", "/openapi.json", "/api/openapi.json", "/metrics", "/health"]


@pytest.mark.parametrize("root_path", ["", "/prefix"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS"])
def test_a_path_of_any_door_that_ends_in_a_slash_is_the_one_without(
    make_site: Callable[..., Site], method: str, root_path: str
) -> None:
    site = make_site(root_path=root_path)
    for path in DIALECTS:
        bare, mark, query = path.partition("?")
        plain, ended = (site.guest.request(method, one + mark + query) for one in (bare, bare + "/"))
        assert (ended.status_code, ended.headers.get("allow"), ended.headers.get("content-type"), ended.text) == (
            plain.status_code,
            plain.headers.get("allow"),
            plain.headers.get("content-type"),
            plain.text,
        ), path
        assert "There is nothing" not in plain.text, path


def test_a_slash_at_the_end_of_nothing_is_told_as_it_was_sent(site: Site) -> None:
    for path in ("/v1/nothing/", "/nothing/", "/job/1/nothing/", "/api/jobs/nothing/"):
        answer = site.guest.get(path)
        assert answer.status_code == 404 and path in answer.text


def test_the_name_of_a_testflinger_secret_may_end_in_a_slash(site: Site) -> None:
    """There the path is what is named."""
    answer = site.guest.get("/v1/secrets/client/ssh/key/")
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"DELETE", "OPTIONS", "PUT"})


# ── Polls ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watch:
    """A clock for Polls."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def poll(polls: Polls, watch: Watch, pause: float, project: int = 1) -> float:
    """A poll that finds nothing, by a client that asks again after `pause` seconds. How long it was held."""
    held = polls.hold(7, (project,))
    watch.now += held
    polls.in_vain(7, (project,))
    watch.now += pause
    return held


def test_a_client_that_asks_again_at_once_is_slowed_to_the_rate_of_the_setting() -> None:
    polls = Polls(10, watch := Watch())
    held = [poll(polls, watch, 0.0002) for _ in range(200)]
    assert held[:9] == [0] * 9
    assert sorted(held[:20]) == held[:20]
    assert 18 < watch.now < 20


def test_a_client_that_asks_less_often_is_never_held() -> None:
    polls = Polls(10, watch := Watch())
    assert [poll(polls, watch, 0.11) for _ in range(200)] == [0] * 200


def test_many_polls_at_once_are_held_for_a_second_at_most() -> None:
    polls = Polls(10, watch := Watch())
    for _ in range(1000):
        polls.in_vain(7, (1,))
    assert polls.hold(7, (1,)) == LONGEST_HOLD
    watch.now += 3
    assert polls.hold(7, (1,)) == 0


def test_neither_another_project_nor_another_worker_is_held_for_it() -> None:
    polls = Polls(10, Watch())
    for _ in range(50):
        polls.in_vain(7, (1, 2))
    assert [polls.hold(7, (2,)) > 0, polls.hold(7, (3,)), polls.hold(8, (1,))] == [True, 0, 0]


def test_what_is_remembered_of_polls_is_bounded() -> None:
    polls = Polls(10, Watch())
    for number in range(100_000):
        polls.in_vain(number, (1,))
    assert len(polls._buckets) < 20_000


def test_no_setting_no_hold() -> None:
    polls = Polls(0, Watch())
    for _ in range(50):
        polls.in_vain(7, (1,))
    assert polls.hold(7, (1,)) == 0


@pytest.mark.parametrize("visibility, status", [({"public": True}, 200), ({}, 200), (None, 404), ({"rate": 1}, 429)])
def test_polls_that_find_nothing_count_whatever_they_are_answered(
    make_site: Callable[..., Site], visibility: dict | None, status: int
) -> None:
    site = make_site(max_empty_polls=0.01)  # one, and then one in a hundred seconds
    project, worker = 99, site.create_worker()
    if visibility == {"rate": 1}:
        project = site.admin.create_project(public=True, assign_rate=0.001)
        site.create_worker(project).bulk_submit([{"project": project, "recipe": "x"}] * 2)
        assert worker.assigned(project)
    elif visibility is not None:
        project = site.admin.create_project(**visibility)
    began = time.monotonic()
    assert [worker.assign(project).status_code for _ in range(3)] == [status] * 3
    assert time.monotonic() - began >= 2 * LONGEST_HOLD  # a least time: no machine is too slow for it


def test_a_task_that_becomes_ready_while_a_poll_is_held_is_given(make_site: Callable[..., Site]) -> None:
    site = make_site(max_empty_polls=0.001)
    project = site.admin.create_project(public=True)
    worker, owner = site.create_worker(), site.create_worker(project)
    while True:  # until the task comes into the second in which a poll is held
        assert worker.assigned(project) is None
        later = threading.Timer(LONGEST_HOLD / 2, owner.submit, (project,))
        later.start()
        task = worker.assigned(project)
        later.join()
        if task:
            return
        worker.release(worker.assigned(project)["id"])


def test_a_stranger_with_a_workers_number_does_not_hold_the_worker(make_site: Callable[..., Site]) -> None:
    site = make_site(max_empty_polls=0.001)
    project = site.admin.create_project(public=True)
    worker = site.create_worker()
    stranger = client(site.url, headers={"X-Worker-ID": str(worker.id), "X-Secret": "guessed"})
    for _ in range(2):
        assert stranger.get(f"/task/get/{project}").status_code == 401
    owner = site.create_worker(project)
    owner.submit(project)
    assert worker.assigned(project)


# ── Front ends ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def lan(make_site: Callable[..., Site]) -> Site:
    """A tracker behind a proxy without TLS, which has been told the names under which browsers reach it."""
    return make_site(allowed_hosts=("tracker.example", "other.example"))


def test_a_front_end_behind_a_proxy_that_tells_no_port_logs_in_and_works(lan: Site) -> None:
    browser = FrontEnd(lan.url, "http://tracker.example:8080", "tracker.example")
    assert browser.enter("register", "somebody", "password").status_code == 200
    browser.http.cookies.clear()
    assert browser.enter("login", "somebody", "password").status_code == 200
    made = browser.post("/project/create", {"name": "mine", "chain": None})
    assert made.status_code == 200
    assert browser.project(made.json()["content"]["id"])["name"] == "mine"
    assert browser.http.get("/api/logout", headers={"Accept": "application/json"}).status_code == 204


def test_a_session_made_there_is_not_for_pages_on_another_port(lan: Site) -> None:
    browser = FrontEnd(lan.url, "http://tracker.example:8080", "tracker.example")
    browser.enter("register", "somebody", "password")
    body = json.dumps({"name": "mine"})
    for origin in ("http://tracker.example:9000", "http://evil.example:8080", "https://tracker.example:8080", "null"):
        refused = browser.http.post("/project/create", content=body, headers={"Origin": origin})
        assert refused.status_code == 403
        assert origin in refused.json()["message"] and "tracker.example" in refused.json()["message"]
    referer = {"Origin": "", "Referer": "http://tracker.example:9000/page"}
    del browser.http.headers["Origin"]
    assert (
        browser.http.post("/project/create", content=body, headers={"Referer": referer["Referer"]}).status_code == 403
    )
    same = {"Referer": "http://tracker.example:8080/page?x=1"}
    assert browser.http.post("/project/create", content=body, headers=same).status_code == 200


@pytest.mark.parametrize("host", ["tracker.example", "tracker.example:9000", "other.example"])
def test_a_session_made_with_the_port_in_host_is_for_no_other_origin(lan: Site, host: str) -> None:
    browser = FrontEnd(lan.url, "http://tracker.example:8080", "tracker.example:8080")
    assert browser.enter("register", "somebody", "password").status_code == 200
    assert browser.post("/project/create", {"name": "first"}).status_code == 200
    browser.http.headers["Host"] = host
    assert browser.post("/project/create", {"name": "second"}).status_code == 403


@pytest.mark.parametrize(
    "origin, host",
    [("http://tracker.example", "tracker.example:80"), ("https://tracker.example", "Tracker.example:443")],
)
def test_a_proxy_may_name_the_port_that_goes_without_saying(lan: Site, origin: str, host: str) -> None:
    browser = FrontEnd(lan.url, origin, host)
    assert browser.enter("register", "somebody", "password").status_code == 200
    assert browser.post("/project/create", {"name": "mine"}).status_code == 200


def test_a_picture_on_another_site_changes_nothing_where_sessions_are_shared(make_site: Callable[..., Site]) -> None:
    """Browsers that tell no Sec-Fetch-Site may send it without a word of where it is."""
    site = make_site(cors_origins=("https://app.example.org",))
    other = site.create_manager()
    picture = site.admin.http.get(f"/manager/promote/{other.id}", headers={"Accept": "image/webp,*/*"})
    assert picture.status_code == 403
    assert other.get("/account").json()["content"]["manager"]["tracker_admin"] is False


def test_nobody_logs_in_from_another_site(lan: Site) -> None:
    for origin, host in [
        ("http://evil.example:8080", "tracker.example"),
        ("http://tracker.example:8080", "tracker.example:9000"),
        ("http://tracker.example.evil.example:8080", "tracker.example"),
        ("http://evil.example@tracker.example:8080", "tracker.example"),
    ]:
        assert FrontEnd(lan.url, origin, host).enter("login", "admin", "password").status_code == 403


def test_a_person_logs_in_on_the_page_behind_a_proxy_that_tells_no_port(lan: Site) -> None:
    browser = FrontEnd(lan.url, "http://tracker.example:8080", "tracker.example").http
    form_token = browser.get("/ui/login").text.partition('name="token" value="')[2].partition('"')[0]
    fields = {"token": form_token, "username": "admin", "password": "password"}
    assert browser.post("/ui/login", data=fields).status_code == 303
    page = browser.get("/ui/projects/new")
    form_token = page.text.partition('name="token" value="')[2].partition('"')[0]
    assert browser.post("/ui/projects/new", data={"token": form_token, "name": "mine"}).status_code == 303


def test_the_cookie_of_a_bound_session_is_still_signed(lan: Site) -> None:
    browser = FrontEnd(lan.url, "http://tracker.example:8080", "tracker.example")
    browser.enter("register", "somebody", "password")
    name, value = "tt", browser.http.cookies["tt"]
    assert "tracker.example:8080" in value
    browser.http.cookies.set(name, value.replace("8080", "9000"))
    assert client(lan.url, cookies={name: value.replace("8080", "9000")}).get("/account").json()["ok"] is False


def test_an_agent_of_another_system_that_asks_again_at_once_is_held_too(make_site: Callable[..., Site]) -> None:
    site = make_site(max_empty_polls=0.01)
    began = time.monotonic()
    assert [site.guest.get("/v1/job?queue=lab").status_code for _ in range(3)] == [204] * 3
    assert time.monotonic() - began >= 2 * LONGEST_HOLD
