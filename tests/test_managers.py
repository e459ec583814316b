"""Managers: accounts, sessions, throttled logins, admins, roles, and requests that another site caused."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from http.cookies import SimpleCookie
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import httpx
import itsdangerous
import pytest
from conftest import Manager, Site, client
from place import Queue, StillClock, call, running

import attempts
import limits
import shapes
import tracker
from tracker import ALL_ROLES, EDIT, MANAGE_ACCESS, READ, SECRET


def register(site: Site, username: str, password: str = "password") -> httpx.Response:
    return client(site.url).post("/register", json={"username": username, "password": password})


def login(site: Site, username: str, password: str = "password", address: str = "192.0.2.0") -> httpx.Response:
    """A login from a browser at this address that has no cookie yet."""
    headers = {"X-Forwarded-For": address}  # as a reverse proxy on this machine says
    return client(site.url, headers=headers).post("/login", json={"username": username, "password": password})


def cookie_of(answer: httpx.Response) -> Any:
    """The session cookie that an answer sets."""
    [cookie] = SimpleCookie(answer.headers.get_list("Set-Cookie")[0]).values()
    return cookie


def account(site: Site, cookie: str | None = None) -> dict[str, Any]:
    """What /account says to somebody who sends this session cookie."""
    headers = {"Cookie": f"tt={cookie}"} if cookie else {}
    answer = client(site.url).get("/account", headers=headers)
    assert answer.status_code == 200
    return answer.json()


def session_of(manager: Manager) -> str:
    return manager.http.cookies["tt"]


# ── /register ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_manager_becomes_tracker_admin_and_no_later_one(site: Site) -> None:
    later = site.create_manager("later")
    managers = site.admin.get("/manager/list").json()["content"]["managers"]
    assert [(one["username"], one["tracker_admin"]) for one in managers] == [("admin", True), ("later", False)]
    assert [one["id"] for one in managers] == [site.admin.id, later.id]


def test_registration_logs_in(site: Site) -> None:
    answer = register(site, "fresh")
    said = answer.json()["content"]["manager"]
    assert (said["username"], said["tracker_admin"]) == ("fresh", False)
    assert account(site, cookie_of(answer).value)["content"] == {"logged_in": True, "manager": said}


def test_a_username_has_3_to_16_characters_and_a_password_at_least_8(site: Site) -> None:
    names = {"ab": 400, "abc": 200, "x" * 16: 200, "x" * 17: 400, "☃☃☃": 200}
    assert {name: register(site, name).status_code for name in names} == names
    words = {"1234567": 400, "12345678": 200}
    assert {word: register(site, "with" + word, word).status_code for word in words} == words
    assert register(site, "ab").json()["message"].startswith("username:")
    assert register(site, "abcd", "short").json()["message"].startswith("password:")


def test_a_taken_username_is_409_however_its_case_is(site: Site) -> None:
    site.create_manager("somebody")
    assert [register(site, name).status_code for name in ("somebody", "SomeBody")] == [409, 409]


def test_registration_can_be_closed_after_the_first_manager(make_site: Callable[..., Site]) -> None:
    site = make_site(open_registration=False)
    assert site.admin.get("/account").json()["content"]["manager"]["tracker_admin"] is True
    assert register(site, "second").status_code == 403
    assert len(site.admin.get("/manager/list").json()["content"]["managers"]) == 1


def test_the_password_is_stored_with_scrypt_and_its_parameters_and_a_salt_of_its_own(site: Site) -> None:
    site.create_manager("other")
    one, other = (stored for [stored] in site.read("SELECT password_hash FROM manager"))
    assert one.split("$")[:4] == ["scrypt", *map(str, attempts.SCRYPT.values())]
    assert one.split("$")[4:] != other.split("$")[4:]
    assert "password" not in one


def test_a_password_stored_with_other_parameters_still_works(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.create_manager("old")
    monkeypatch.setattr(attempts, "SCRYPT", {"n": 32, "r": 1, "p": 1})
    assert login(site, "old").status_code == 200
    assert login(site, "old", "wrong word").status_code == 401


# ── /login, /logout, /account ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_login_answers_with_the_manager(site: Site) -> None:
    answer = login(site, "admin")
    manager = answer.json()["content"]["manager"]
    assert set(manager) == {"id", "username", "tracker_admin", "register_time"}
    assert (manager["id"], manager["username"], manager["tracker_admin"]) == (site.admin.id, "admin", True)
    assert account(site, cookie_of(answer).value)["ok"] is True


def test_a_wrong_password_and_an_unknown_user_are_refused_in_the_same_words(site: Site) -> None:
    wrong, unknown = login(site, "admin", "not the password"), login(site, "nobody")
    assert (wrong.status_code, unknown.status_code) == (401, 401)
    assert wrong.json() == unknown.json()
    assert "Set-Cookie" not in wrong.headers


def test_a_password_is_looked_at_for_an_unknown_user_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    monkeypatch.setattr(tracker.hashlib, "scrypt", lambda password, **_: looked_at.append(password) or b"")
    assert login(site, "nobody", "some password").status_code == 401
    assert looked_at == [b"some password"]


def test_a_guest_is_not_logged_in(site: Site) -> None:
    assert account(site) == {"ok": False, "content": {"logged_in": False, "manager": None}}


def test_the_session_cookie_is_http_only_same_site_and_has_the_configured_name(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cookie_name="biscuit", session_lifetime=1000)
    for answer in login(site, "admin"), register(site, "other"):
        cookie = cookie_of(answer)
        assert (cookie.key, cookie["httponly"], cookie["samesite"], cookie["path"]) == ("biscuit", True, "Lax", "/")
        assert (cookie["secure"], cookie["domain"], cookie["max-age"]) == ("", "", "1000")


def test_the_session_cookie_is_secure_under_tls(site: Site) -> None:
    headers = {"X-Forwarded-Proto": "https"}  # as a reverse proxy on this machine says
    body = {"username": "admin", "password": "password"}
    assert cookie_of(site.guest.post("/login", json=body, headers=headers))["secure"] is True


def test_each_login_begins_a_new_session(site: Site) -> None:
    before = session_of(site.admin)
    site.admin.post("/login", {"username": "admin", "password": "password"})
    assert session_of(site.admin) != before


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_logout_ends_the_session_and_not_just_in_the_browser(site: Site, method: str) -> None:
    stolen = session_of(site.admin)
    assert account(site, stolen)["ok"] is True
    answer = site.admin.http.request(method, "/logout")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "tt" not in site.admin.http.cookies
    assert account(site, stolen)["ok"] is False
    assert client(site.url).get("/manager/list", headers={"Cookie": f"tt={stolen}"}).status_code == 401


def test_a_logout_ends_no_other_session_of_the_manager(site: Site) -> None:
    elsewhere = cookie_of(login(site, "admin")).value
    site.admin.post("/logout")
    assert account(site, elsewhere)["ok"] is True


def test_a_logout_without_a_session_is_fine(site: Site) -> None:
    assert site.guest.post("/logout").status_code == 204


def test_a_session_ends_after_its_lifetime(make_site: Callable[..., Site]) -> None:
    site = make_site(None, session_lifetime=1000)
    site.clock.pass_time(900)
    assert account(site, session_of(site.admin))["ok"] is True
    site.clock.pass_time(101)
    assert account(site, session_of(site.admin))["ok"] is False


def test_session_ids_are_stored_hashed(site: Site) -> None:
    [[stored]] = site.read("SELECT id_hash FROM session")
    assert session_of(site.admin).encode() not in stored
    assert session_of(site.admin).rpartition(".")[0].encode() not in stored


# ── Throttled logins ──────────────────────────────────────────────────────────────────────────────────────────────────


def guess(site: Site, username: str, times: int) -> list[int]:
    return [login(site, username, f"guess {number}").status_code for number in range(times)]


def throttle(site: Site, attempts: Iterator[tuple[str, str]]) -> list[float]:
    """Fails to log in, waiting when told to, until the pause is longer than any test runs. The pauses on the way.

    An attempt is the name of an account and an address.
    """
    pauses = []
    for username, address in islice(attempts, 200):
        refusal = login(site, username, "a guess", address)
        if refusal.status_code == 429:
            pauses.append(refusal.json()["rate_limit_delay"])
            if pauses[-1] > 30:
                return pauses
            site.clock.pass_time(pauses[-1] + 0.01)
    raise AssertionError("nothing throttled two hundred failures")


def attempts_at(*usernames: str) -> Iterator[tuple[str, str]]:
    """Attempts at one account, from another address each time."""
    return zip(cycle(usernames), (f"198.51.100.{number}" for number in count()), strict=False)


def test_failed_logins_of_an_account_are_throttled_even_with_the_right_password(site: Site) -> None:
    site.create_manager("victim")
    throttle(site, attempts_at("victim"))
    refusal = login(site, "victim")
    assert (refusal.status_code, refusal.json()["ok"]) == (429, False)
    assert 1 <= refusal.json()["rate_limit_delay"] <= int(refusal.headers["Retry-After"])


def test_a_few_failed_logins_cost_nothing(site: Site) -> None:
    assert guess(site, "admin", 3) == [401] * 3
    assert login(site, "admin").status_code == 200
    assert guess(site, "admin", 3) == [401] * 3


def test_the_throttle_grows_with_each_failure_but_locks_nobody_out_for_long(site: Site) -> None:
    pauses = throttle(site, attempts_at("victim"))
    assert len(pauses) > 3
    assert pauses == sorted(pauses)
    for _ in range(3):
        site.clock.pass_time(60)
        assert login(site, "victim", "a guess").status_code == 401


def test_a_throttled_account_may_log_in_after_the_pause_and_starts_afresh(site: Site) -> None:
    site.clock.pass_time(throttle(site, attempts_at("admin"))[-1])
    assert login(site, "admin").status_code == 200
    assert guess(site, "admin", 3) == [401] * 3


def test_an_accounts_throttle_does_not_depend_on_case_and_an_unknown_account_has_one_too(site: Site) -> None:
    throttle(site, attempts_at("nobody", "Nobody", "NOBODY"))
    assert login(site, "nObOdY").status_code == 429


def test_failed_logins_from_one_address_are_throttled_whatever_the_account(site: Site) -> None:
    throttle(site, ((f"user{number}", "192.0.2.1") for number in count()))
    assert login(site, "admin", address="192.0.2.1").status_code == 429
    assert login(site, "admin", address="192.0.2.2").status_code == 200


def test_failures_are_forgotten_in_time(site: Site) -> None:
    throttle(site, attempts_at("admin"))
    site.clock.pass_time(3600)
    assert guess(site, "admin", 4) == [401] * 4


def test_other_accounts_are_not_throttled(site: Site) -> None:
    throttle(site, attempts_at("victim"))
    assert login(site, "admin").status_code == 200


# ── Forged sessions and other sites ───────────────────────────────────────────────────────────────────────────────────


def test_a_cookie_that_this_tracker_did_not_sign_is_no_session(site: Site) -> None:
    good = session_of(site.admin)
    unsigned = good.rpartition(".")[0]
    other_key = itsdangerous.Signer("another key", salt="tracker.session").sign(unsigned).decode()
    forged = ["", "1", "admin", unsigned, good[:-1], good + "x", other_key, "%00", '"', "\\"]
    assert {cookie: account(site, cookie)["ok"] for cookie in forged} == dict.fromkeys(forged, False)


def is_state_change(row: tracker.Native) -> bool:
    """Whether a browser that is logged in could be made to change something by this call."""
    if row.methods == "GET" or row.reads:
        return False
    by_manager = tracker.Call.session, tracker.Call.worker_or_session
    return tracker.takes_of(row).caller in by_manager or row.function in (tracker.register, tracker.login)


IDS = {"manager": "{}", "job": "0" * 24}  # the manager's is filled in later; of everything else the first is asked for
STATE_CHANGES = [
    (method, re.sub(r"\{(\w+)\}", lambda match: IDS.get(match[1], "1"), row.path))
    for row in sorted(tracker.API, key=lambda row: row.path == "/logout")
    for method in row.methods.split()
    if is_state_change(row)
]
BODY = {
    **{"manager": 2, "role": 31, "name": "new", "secret": "x", "webhook_secret": "x", "worker": 1, "paused": True},
    **{"username": "admin", "password": "password"},
}


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Referer": "https://evil.example/page"},
    ],
    ids=str,
)
def test_every_state_change_that_another_site_caused_is_refused(site: Site, headers: dict[str, str]) -> None:
    other, before = site_with_everything(site), everything(site)
    answers = state_changes(site, other, headers)
    assert answers == dict.fromkeys(answers, 403)
    assert everything(site) == before
    assert site.admin.get("/account").json()["ok"] is True


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {}], ids=str)
def test_a_state_change_of_the_own_site_or_of_a_program_is_not_refused(site: Site, headers: dict[str, str]) -> None:
    answers = state_changes(site, site_with_everything(site), headers)
    assert not {401, 403} & set(answers.values()), answers


def test_a_link_that_a_browser_follows_without_telling_its_source_is_refused(site: Site) -> None:
    other = site.create_manager()
    page = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert site.admin.http.get(f"/manager/promote/{other.id}", headers=page).status_code == 403
    assert not is_admin(other)


def test_an_address_that_a_person_typed_is_not_refused(site: Site) -> None:
    other = site.create_manager()
    answer = site.admin.http.get(f"/manager/promote/{other.id}", headers={"Sec-Fetch-Site": "none"})
    assert answer.status_code == 204


def site_with_everything(site: Site) -> Manager:
    """Makes what the state changes need, and another manager."""
    site.create_worker().request_access(site.admin.create_project())
    return site.create_manager()


def state_changes(site: Site, other: Manager, headers: dict[str, str]) -> dict[str, int]:
    """What each state change answers to the admin's browser that sends these headers."""
    cookie = {"Cookie": f"tt={session_of(site.admin)}"}
    return {
        f"{method} {path}": client(site.url)
        .request(method, path.format(other.id), json=BODY, headers=headers | cookie)
        .status_code
        for method, path in STATE_CHANGES
    }


def everything(site: Site) -> list[list[tuple]]:
    tables = "manager", "manager_role", "session", "project", "worker", "worker_access", "operation"
    return [site.read(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


def test_the_own_origin_is_the_host_with_its_port(site: Site) -> None:
    body = {"username": "admin", "password": "password"}
    host = site.url.removeprefix("http://")
    answers = {
        origin: site.guest.post("/login", json=body, headers={"Origin": origin}).status_code
        for origin in (f"http://{host}", f"https://{host}", "http://127.0.0.1", f"http://{host}.evil.example")
    }
    assert list(answers.values()) == [200, 200, 403, 403]


# ── /manager/… ────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_admin(manager: Manager) -> bool:
    return manager.get("/account").json()["content"]["manager"]["tracker_admin"]


def test_the_list_of_managers_is_for_those_who_may_grant_roles_in_somebody_elses_project(site: Site) -> None:
    names = lambda manager: [  # noqa: E731
        one["username"] for one in manager.get("/manager/list").json()["content"]["managers"]
    ]
    manager = site.create_manager("somebody")
    own, project = manager.create_project("own"), site.admin.create_project()
    assert (names(site.admin), names(manager)) == (["admin", "somebody"], ["somebody"])
    seen = []
    for role in ALL_ROLES - MANAGE_ACCESS, MANAGE_ACCESS:
        site.admin.set_role(project, manager, role)
        seen.append(names(manager))
    assert seen == [["somebody"], ["admin", "somebody"]]
    other = site.create_manager("other")
    manager.set_role(own, other, READ | MANAGE_ACCESS)  # of which a stranger makes as many as it likes
    assert names(other) == ["other"]
    site.admin.post(f"/project/trust/{own}")
    assert names(other) == ["admin", "somebody", "other"]
    assert set(other.get("/manager/list").json()["content"]["managers"][0]) == {
        *("id", "username", "tracker_admin", "register_time")
    }
    assert site.guest.get("/manager/list").status_code == 401


def test_nobody_gives_roles_that_it_has_not_itself(site: Site) -> None:
    project, manager, other = site.admin.create_project(), site.create_manager(), site.create_manager()
    site.admin.set_role(project, manager, READ | MANAGE_ACCESS)
    refused = manager.set_role(project, other, READ | EDIT | SECRET)
    assert (refused.status_code, refused.json()["field"]) == (403, "role")
    assert "EDIT, SECRET" in refused.json()["message"]
    assert manager.set_role(project, other, READ | MANAGE_ACCESS).status_code == 200
    site.admin.set_role(project, other, READ | EDIT)
    assert manager.set_role(project, other, EDIT).status_code == 200  # it keeps what it has
    assert manager.set_role(project, manager, ALL_ROLES).status_code == 403


def give_role(by: Manager, project: int, **body: Any) -> httpx.Response:
    return by.post(f"/manager/set_role_for_project/{project}", {"role": READ, **body})


def test_roles_are_given_by_number_or_by_exact_name(site: Site) -> None:
    maker, other, friend = site.create_manager(), site.create_manager(), site.create_manager("friend")
    project = maker.create_project()
    wanted = [{"manager": other.id}, {"username": "friend"}, {"username": " friend "}]
    assert [give_role(maker, project, **body).status_code for body in wanted] == [200] * 3
    wrong = [{}, {"username": "frien"}, {"manager": other.id, "username": "friend"}, {"manager": 986_123}]
    assert [give_role(maker, project, **body).status_code for body in wrong] == [400, 404, 404, 404]
    assert role_of(site, project, friend) == role_of(site, project, other) == READ


def test_nobody_learns_all_names_by_giving_roles_to_one_number_after_the_other(site: Site) -> None:
    stranger, friend = site.create_manager(), site.create_manager("friend")
    project = stranger.create_project()
    tried = [give_role(stranger, project, manager=10**6 + number).status_code for number in range(limits.NUMBERS + 1)]
    assert set(tried) == {404}
    refused = give_role(stranger, project, manager=friend.id)
    assert refused.status_code == 404 and "username" in refused.text
    assert give_role(stranger, project, username="friend").status_code == 200
    assert give_role(stranger, project, manager=friend.id).status_code == 200  # it sees it now
    site.clock.pass_time(3600)
    assert give_role(stranger, project, manager=site.admin.id).status_code == 200


def test_nobody_learns_all_names_under_many_names_of_its_own(site: Site) -> None:
    def tried(address: str) -> list[int]:
        """How often managers of that address may ask for another number, which nobody has."""
        headers = {"X-Forwarded-For": address}
        return [
            tried_by(Manager(site.url, f"{address} {number}", headers=headers)) for number in range(limits.TEAM + 1)
        ]

    def tried_by(stranger: Manager) -> int:
        project = stranger.create_project()
        refused = (give_role(stranger, project, manager=10**6 + number).text for number in range(limits.NUMBERS + 1))
        return sum("username" not in text for text in refused)

    assert tried("203.0.113.1") == tried("203.0.113.2") == [limits.NUMBERS] * limits.TEAM + [0]


def test_who_sees_all_managers_gives_roles_by_any_number(site: Site) -> None:
    project = site.admin.create_project()
    for number in range(limits.NUMBERS + 1):
        give_role(site.admin, project, manager=10**6 + number)
    assert give_role(site.admin, project, manager=site.create_manager().id).status_code == 200


def role_of(site: Site, project: int, manager: Manager) -> int:
    listed = site.admin.get(f"/manager/list_for_project/{project}").json()["content"]["managers"]
    return next((one["role"] for one in listed if one["manager"]["id"] == manager.id), 0)


@pytest.mark.parametrize("role", [0, READ, READ | MANAGE_ACCESS])
def test_nobody_takes_roles_that_it_could_not_give(site: Site, role: int) -> None:
    project, manager, other = site.admin.create_project(), site.create_manager(), site.create_manager()
    site.admin.set_role(project, manager, READ | MANAGE_ACCESS)
    site.admin.set_role(project, other, ALL_ROLES)
    refused = manager.set_role(project, other, role)
    assert (refused.status_code, refused.json()["field"]) == (403, "role")
    assert "EDIT, SECRET, MAINTENANCE" in refused.json()["message"]
    assert role_of(site, project, other) == ALL_ROLES


def test_roles_are_taken_from_who_made_a_project_by_itself_and_by_an_admin(site: Site) -> None:
    maker, other = site.create_manager(), site.create_manager()
    project = maker.create_project()
    assert maker.set_role(project, other, ALL_ROLES).status_code == 200
    assert other.set_role(project, maker, ALL_ROLES - MANAGE_ACCESS).status_code == 403
    assert other.set_role(project, maker, 0).status_code == 403
    assert other.set_role(project, maker, ALL_ROLES).status_code == 200  # it takes none
    assert maker.set_role(project, maker, ALL_ROLES - SECRET).status_code == 200
    assert site.admin.set_role(project, maker, READ).status_code == 200
    assert role_of(site, project, maker) == READ


def log_in(site: Site, manager: Manager) -> int:
    """The status of another login."""
    with client(site.url) as http:
        return http.post("/login", json={"username": manager.username, "password": manager.password}).status_code


def test_a_blocked_manager_is_logged_out_and_logs_in_no_more_until_it_is_unblocked(site: Site) -> None:
    manager = site.create_manager()
    assert site.admin.post(f"/manager/block/{manager.id}").status_code == 204
    assert manager.get("/account").json()["content"]["logged_in"] is False
    assert log_in(site, manager) == 403
    assert site.admin.post(f"/manager/unblock/{manager.id}").status_code == 204
    assert log_in(site, manager) == 200


def test_an_account_is_deleted_and_what_it_made_stays(site: Site) -> None:
    manager = site.create_manager()
    project = manager.create_project()
    site.admin.post(f"/project/trust/{project}")
    template = manager.post("/template/create", {"project": project, "name": "build"}).json()["content"]["template"]
    job = manager.post(f"/template/trigger/{template['id']}", {}).json()["content"]["job"]["id"]
    manager.post(f"/project/reset_failed_tasks/{project}")
    assert site.admin.post(f"/manager/delete/{manager.id}").status_code == 204
    assert site.admin.post(f"/manager/delete/{manager.id}").status_code == 404
    names = [one["username"] for one in site.admin.get("/manager/list").json()["content"]["managers"]]
    assert (names, log_in(site, manager)) == (["admin"], 401)
    assert site.admin.get(f"/manager/list_for_project/{project}").json()["content"]["managers"] == []
    for page in f"/ui/projects/{project}", f"/ui/jobs/{job}", "/ui/admin", "/ui/jobs":
        assert site.admin.get(page).status_code == 200
    assert site.read("SELECT COUNT(*) FROM session WHERE manager = ?", manager.id) == [(0,)]


def test_blocking_is_for_admins_and_not_of_oneself(site: Site) -> None:
    manager = site.create_manager()
    for what in "block", "unblock", "delete":
        assert manager.post(f"/manager/{what}/{site.admin.id}").status_code == 403
        assert site.admin.post(f"/manager/{what}/{site.admin.id}").status_code == 403
        assert site.admin.post(f"/manager/{what}/99").status_code == 404


def test_a_password_that_the_command_line_gives_unblocks(site: Site) -> None:
    manager = site.create_manager("somebody")
    site.admin.post(f"/manager/block/{manager.id}")
    with contextlib.closing(sqlite3.connect(site.settings.database, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        tx = tracker.Tx(connection, site.clock, site.settings)
        tracker.make_admin(tx, "somebody", tracker.hash_password("password"), reset=True)
    assert log_in(site, manager) == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_admin_promotes_and_demotes_others_at_once(site: Site, method: str) -> None:
    other = site.create_manager()
    assert site.admin.http.request(method, f"/manager/promote/{other.id}").status_code == 204
    assert is_admin(other)
    assert other.post("/worker/set_paused", {"worker": site.create_worker().id, "paused": True}).status_code == 200
    assert site.admin.http.request(method, f"/manager/demote/{other.id}").status_code == 204
    assert not is_admin(other)


def test_an_admin_neither_promotes_nor_demotes_itself(site: Site) -> None:
    answers = [site.admin.get(f"/manager/{call}/{site.admin.id}") for call in ("promote", "demote")]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert is_admin(site.admin)


def test_only_an_admin_promotes_and_demotes(site: Site) -> None:
    manager, other = site.create_manager(), site.create_manager()
    for verb in "promote", "demote":
        assert site.guest.get(f"/manager/{verb}/{other.id}").status_code == 401
        assert manager.get(f"/manager/{verb}/{other.id}").status_code == 403
        assert manager.get(f"/manager/{verb}/{manager.id}").status_code == 403
        assert manager.get(f"/manager/{verb}/{site.admin.id}").status_code == 403
    assert (is_admin(manager), is_admin(other), is_admin(site.admin)) == (False, False, True)


def test_the_managers_of_a_project_are_listed_with_their_roles(site: Site) -> None:
    project = site.admin.create_project()
    other = site.create_manager("other")
    site.admin.set_role(project, other, READ | EDIT)
    manager = site.create_manager()
    assert manager.get(f"/manager/list_for_project/{project}").json()["content"]["managers"] == []
    assert len(other.get(f"/manager/list_for_project/{project}").json()["content"]["managers"]) == 1  # itself
    listed = site.admin.get(f"/manager/list_for_project/{project}").json()["content"]["managers"]
    assert [(one["manager"]["username"], one["role"]) for one in listed] == [("admin", 31), ("other", 3)]
    assert set(listed[0]["manager"]) == {"id", "username", "tracker_admin", "register_time"}
    assert site.guest.get(f"/manager/list_for_project/{project}").status_code == 401


def test_a_role_is_replaced_by_the_next_one_and_0_removes_it(site: Site) -> None:
    project = site.admin.create_project(hidden=True)
    other = site.create_manager()
    seen = []
    for role in READ | EDIT, READ, EDIT, 0:
        assert site.admin.set_role(project, other, role).status_code == 200
        seen.append((other.get(f"/project/get/{project}").status_code, other.update_project(project).status_code))
    assert seen == [(200, 200), (200, 403), (404, 200), (404, 404)]
    managers = site.admin.get(f"/manager/list_for_project/{project}").json()["content"]["managers"]
    assert [one["manager"]["id"] for one in managers] == [site.admin.id]


# ── A new password ────────────────────────────────────────────────────────────────────────────────────────────────────


class Browser:
    """A tracker's browser with a session, as far as a change of the password needs it."""

    def __init__(self, one: tracker.Tracker, session: bytes | None):
        self.tracker, self.session, self.source = one, lambda: session, ""

    async def change(self, password: str, new_password: str) -> bytes:
        return await tracker.change_password(self, shapes.PasswordForm(password, new_password))


def with_account(path: Path, main: Callable[[tracker.Tracker, bytes], Coroutine[Any, Any, None]]) -> None:
    """Runs it with a tracker whose only manager, admin, has the password `password` and a session."""

    async def run() -> None:
        async with running(path, StillClock()) as one:
            _, session = await one.db.write(tracker.register_manager, "Admin", tracker.hash_password("password"))
            await main(one, session)

    asyncio.run(run())


def test_a_new_password_replaces_the_old_one_and_ends_every_other_session(tmp_path: Path) -> None:
    async def main(one: tracker.Tracker, session: bytes) -> None:
        other = await one.db.write(tracker.open_session, 1)
        new = await Browser(one, session).change("password", "another password")
        valid = [(await one.db.read(call, tracker.get_account, each))["logged_in"] for each in (session, other, new)]
        assert valid == [False, False, True]
        _, stored = await one.db.write(tracker.count_login, "admin", "192.0.2.1")
        assert [tracker.password_matches(password, stored) for password in ("password", "another password")] == [
            False,
            True,
        ]

    with_account(tmp_path / "x.db", main)


def test_a_wrong_password_changes_nothing_and_is_throttled(tmp_path: Path) -> None:
    async def main(one: tracker.Tracker, session: bytes) -> None:
        browser, codes = Browser(one, session), []
        for _ in range(attempts.FREE_ATTEMPTS["account"] + 2):
            with pytest.raises(tracker.TrackerError) as refusal:
                await browser.change("wrong", "another password")
            codes.append(refusal.value.code)
        assert codes == [*["unauthorized"] * 4, "too_fast"]
        with pytest.raises(tracker.TrackerError, match="Too many attempts"):
            await browser.change("password", "another password")
        one.clock.now += attempts.LONGEST_THROTTLE
        new = await browser.change("password", "another password")
        await Browser(one, new).change("another password", "password")

    with_account(tmp_path / "x.db", main)


def test_nobody_changes_a_password_without_a_session(tmp_path: Path) -> None:
    async def main(one: tracker.Tracker, session: bytes) -> None:
        await one.db.write(tracker.end_session, session)
        for none in session, None:
            with pytest.raises(tracker.TrackerError, match="Please log in"):
                await Browser(one, none).change("password", "another password")

    with_account(tmp_path / "x.db", main)


def test_of_two_changes_of_a_password_at_once_one_succeeds(tmp_path: Path) -> None:
    async def main(one: tracker.Tracker, session: bytes) -> None:
        browser = Browser(one, session)
        changes = [browser.change("password", f"password {number}") for number in range(2)]
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        assert sorted(isinstance(outcome, bytes) for outcome in outcomes) == [False, True]
        assert await one.db.read(lambda tx: tx.one("SELECT COUNT(*) FROM session")[0]) == 1

    with_account(tmp_path / "x.db", main)


def test_a_login_that_began_before_the_password_was_changed_opens_no_session_afterwards(tmp_path: Path) -> None:
    """Its password waits to be looked at, for long in a crowd, and is the old one."""

    async def main(one: tracker.Tracker, session: bytes) -> None:
        attempt = "admin", "192.0.2.1"
        manager, stored = await one.db.write(tracker.count_login, *attempt)
        assert tracker.password_matches("password", stored)
        await Browser(one, session).change("password", "another password")
        with pytest.raises(tracker.TrackerError, match="Wrong username or password"):
            await one.db.write(tracker.accept_login, manager, stored, *attempt)
        assert await one.db.read(lambda tx: tx.one("SELECT COUNT(*) FROM session")[0]) == 1

    with_account(tmp_path / "x.db", main)


# ── Roles by name ─────────────────────────────────────────────────────────────────────────────────────────────────────


def roles(queue: Queue) -> dict[str, int]:
    listed = queue.do(tracker.list_project_managers, queue.session, queue.project)["managers"]
    return {one["manager"]["username"]: one["role"] for one in listed if one["manager"]["username"] != "admin"}


def test_a_manager_is_given_exactly_the_roles_that_are_ticked() -> None:
    queue = Queue()
    queue.create_manager("other")
    seen = []
    for ticked in {"read": True, "maintenance": True}, {"secret": True}, {}:
        queue.do(tracker.set_named_role, queue.session, queue.project, shapes.RoleForm(" OTHER ", **ticked))
        seen.append(roles(queue))
    assert seen == [{"other": READ | tracker.MAINTENANCE}, {"other": tracker.SECRET}, {}]


def test_giving_roles_by_name_needs_manage_access_and_a_name_that_there_is() -> None:
    queue = Queue()
    giver = queue.create_manager("giver", tracker.ALL_ROLES)
    other = queue.create_manager("other", tracker.ALL_ROLES - MANAGE_ACCESS)
    form = shapes.RoleForm("other", read=True)
    assert queue.refusal(tracker.set_named_role, other, queue.project, form).startswith("forbidden")
    assert queue.refusal(tracker.set_named_role, None, queue.project, form).startswith("unauthorized")
    queue.do(tracker.set_named_role, giver, queue.project, form)
    assert roles(queue)["other"] == READ
    unknown = shapes.RoleForm("nobody", read=True)
    refusal = queue.refusal(tracker.set_named_role, giver, queue.project, unknown)
    assert refusal == "not_found: username: there is no manager named 'nobody'"


def test_a_long_list_of_managers_is_whole_in_parts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(6):
        site.create_manager()
    before = site.admin.get("/manager/list")
    assert len(before.json()["content"]["managers"]) == 7
    monkeypatch.setattr(tracker, "PART_ROWS", 2)
    answer = site.admin.get("/manager/list")
    assert answer.content == before.content and "content-length" not in answer.headers
