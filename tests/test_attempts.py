"""Attempts at passwords and keys: guessing gets slow, and nobody can keep another out."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import gc
import platform
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Site, client, wait_until
from doors import House
from place import Jobs, template_body
from test_managers import throttle

import attempts
import shapes
import tracker
from attempts import FREE_GUESSES, Guesses

HOUSE = Path(attempts.__file__).parent
HOME, ELSEWHERE = "192.0.2.1", "192.0.2.99"


def login(http: httpx.Client, username: str = "owner", password: str = "password", address: str = HOME) -> int:
    body = {"username": username, "password": password}
    return http.post("/login", json=body, headers={"X-Forwarded-For": address}).status_code


@pytest.fixture
def owner(site: Site) -> httpx.Client:
    """The browser of the manager `owner`, who has registered and then logged out."""
    http = site.create_manager("owner").http
    assert http.post("/logout").status_code == 204
    return http


def strangers() -> Iterator[tuple[str, str]]:
    """Attempts at the owner's account, from another address each time."""
    return (("owner", f"198.51.100.{number}") for number in count())


# ── Logins ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_strangers_failures_keep_no_browser_out_that_has_logged_in_before(site: Site, owner: httpx.Client) -> None:
    throttle(site, strangers())
    assert login(client(site.url), address=ELSEWHERE) == 429
    for number in range(5):
        assert login(owner, address=f"203.0.113.{number}") == 200


def test_not_even_those_from_its_own_address_do(site: Site, owner: httpx.Client) -> None:
    """A proxy that does not say X-Forwarded-For makes all clients one."""
    throttle(site, ((f"user{number}", HOME) for number in count()))
    throttle(site, (("owner", HOME) for _ in count()))
    assert login(client(site.url)) == 429
    assert login(owner) == 200


def test_strangers_failures_keep_no_address_out_from_which_the_manager_has_logged_in(site: Site) -> None:
    """A program has no cookies."""
    site.create_manager("owner")
    assert login(client(site.url)) == 200
    throttle(site, strangers())
    assert (login(client(site.url)), login(client(site.url), address=ELSEWHERE)) == (200, 429)


def test_a_subscriber_with_another_address_of_the_same_network_is_known(site: Site) -> None:
    site.create_manager("owner")
    assert login(client(site.url), address="2001:db8::1") == 200
    throttle(site, strangers())
    assert login(client(site.url), address="2001:db8::2") == 200
    assert login(client(site.url), address="2001:db8:0:1::1") == 429


def test_one_subscriber_is_throttled_as_one_however_many_addresses_it_has(site: Site) -> None:
    throttle(site, ((f"user{number}", f"2001:db8::{number}") for number in range(1, 100)))
    assert login(client(site.url), "admin", address="2001:db8::ffff") == 429


def test_a_customer_with_many_networks_is_throttled_as_one_after_eight_times_as_many(site: Site) -> None:
    throttle(site, ((f"user{number}", f"2001:db8:7:{number:x}::1") for number in range(1, 200)))
    assert login(client(site.url), "admin", address="2001:db8:7:ffff::1") == 429
    assert login(client(site.url), "admin", address="2001:db8:8::1") == 200


def test_the_failures_of_other_networks_keep_no_address_out_from_which_the_manager_has_logged_in(site: Site) -> None:
    assert login(client(site.url), "admin", address="2001:db8:7:ffff::1") == 200
    throttle(site, ((f"user{number}", f"2001:db8:7:{number:x}::1") for number in range(1, 200)))
    assert login(client(site.url), "admin", address="2001:db8:7:ffff::2") == 200


def test_registrations_from_many_networks_of_a_customer_are_throttled(site: Site) -> None:
    body = {"username": "name", "password": "password"}
    for number in range(200):
        headers = {"X-Forwarded-For": f"2001:db8:7:{number:x}::1"}
        answer = site.guest.post("/register", json=body, headers=headers)
        if answer.status_code == 429:
            break
    assert 160 <= number <= 162


def test_the_mark_of_a_browser_is_for_one_account_and_cannot_be_made_up(site: Site, owner: httpx.Client) -> None:
    throttle(site, strangers())
    mark = owner.cookies["tt-browser"]
    other = client(site.url)
    assert login(other, "admin") == 200
    forged = b"owner".hex() + "." + mark.partition(".")[2]
    for cookie in other.cookies["tt-browser"], mark[:-1], mark + "x", forged[:-1], "", "." * 9:
        with client(site.url, headers={"Cookie": f"tt-browser={cookie}"}) as stranger:
            assert login(stranger, address=ELSEWHERE) == 429, cookie


def test_a_browser_that_was_stolen_guesses_as_slowly_as_others(site: Site, owner: httpx.Client) -> None:
    answers = [login(owner, password=f"guess {number}", address=f"203.0.113.{number}") for number in range(6)]
    assert answers[-1] == 429
    again = client(site.url)
    assert login(again) == 200


def change_password(http: httpx.Client, password: str, new_password: str) -> None:
    token = http.get("/ui/account").text.partition('name="token" value="')[2].partition('"')[0]
    fields = {"token": token, "password": password, "new_password": new_password}
    assert http.post("/ui/account/password", data=fields).status_code == 303


def test_marks_that_were_made_with_an_old_password_are_strangers_after_it_is_changed(
    site: Site, owner: httpx.Client
) -> None:
    """Whoever knew it may have made any number of them, each with guesses of its own."""
    thief = client(site.url)
    assert (login(thief), login(owner)) == (200, 200)
    change_password(owner, "password", "another password")
    throttle(site, strangers())
    assert login(thief, password="guess", address=ELSEWHERE) == 429
    assert login(owner, password="another password", address=ELSEWHERE) == 200  # who has changed it is known


def test_the_mark_of_a_deleted_account_is_not_one_of_the_next_account_with_its_name(
    site: Site, owner: httpx.Client
) -> None:
    [(manager,)] = site.read("SELECT id FROM manager WHERE username = 'owner'")
    assert site.admin.post(f"/manager/delete/{manager}").status_code == 204
    assert client(site.url).post("/register", json={"username": "owner", "password": "password"}).status_code == 200
    throttle(site, strangers())
    assert login(owner, address=ELSEWHERE) == 429


def test_the_mark_stays_the_same_and_survives_the_session(site: Site) -> None:
    http = site.create_manager("owner").http
    mark = http.cookies["tt-browser"]
    assert login(http) == 200 and http.cookies["tt-browser"].partition(".")[2] == mark.partition(".")[2]
    http.post("/logout")
    assert "tt" not in http.cookies and "tt-browser" in http.cookies


def test_a_page_s_login_marks_its_browser_too(site: Site) -> None:
    http = client(site.url)
    token = http.get("/ui/login").text.partition('name="token" value="')[2].partition('"')[0]
    fields = {"token": token, "username": "admin", "password": "password"}
    assert http.post("/ui/login", data=fields).status_code == 303
    assert set(http.cookies) >= {"tt", "tt-browser"}


def test_only_the_latest_addresses_of_a_manager_are_remembered(site: Site) -> None:
    for number in range(attempts.MOST_ADDRESSES + 3):
        site.clock.pass_time(1)
        assert login(client(site.url), "admin", address=f"203.0.113.{number}") == 200
    known = [address for (address,) in site.read("SELECT address FROM login_address ORDER BY last_used DESC")]
    assert known == [f"203.0.113.{number}" for number in reversed(range(3, attempts.MOST_ADDRESSES + 3))]


def test_a_stranger_who_fails_does_not_keep_the_owner_from_changing_the_password(site: Site) -> None:
    manager = site.create_manager("owner")
    throttle(site, strangers())
    token = manager.http.get("/ui/account").text.partition('name="token" value="')[2].partition('"')[0]
    fields = {"token": token, "password": "password", "new_password": "another password"}
    assert manager.http.post("/ui/account/password", data=fields).status_code == 303


def test_five_managers_behind_one_address_who_mistype_all_get_in(site: Site) -> None:
    names = [f"manager{number}" for number in range(5)]
    for name in names:
        site.create_manager(name)
    for name in names:
        http = client(site.url)
        assert [login(http, name, word) for word in ("pasword", "passwrod", "password")] == [401, 401, 200]


# ── The queue for passwords ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hashing_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Passwords are not looked at until this is called."""
    go_on, real = threading.Event(), tracker.hash_password

    def slow(*args: Any, **cost: int) -> str:
        go_on.wait(60)
        return real(*args, **cost)

    for module in tracker, attempts:
        monkeypatch.setattr(module, "hash_password", slow)
    yield go_on.set
    go_on.set()


@pytest.mark.parametrize("by", ["browser", "address"])
def test_more_logins_than_places_are_refused_and_who_is_known_still_has_one(
    by: str, make_site: Callable[..., Site], request: pytest.FixtureRequest, caplog: Any
) -> None:
    site = make_site(max_logins=3)
    owner = dict(site.admin.http.cookies)
    go_on = request.getfixturevalue("hashing_waits")

    async def main() -> None:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=site.url, timeout=90) as http:

            def post(path: str, number: int, **options: Any) -> Any:
                body = {"username": f"user{number}", "password": "password"}
                headers = {"X-Forwarded-For": f"198.51.100.{number}"}
                return http.post(path, json=body | options.pop("body", {}), headers=headers, **options)

            waiting = [
                asyncio.create_task(post(path, number)) for number, path in enumerate(("/login", "/login", "/register"))
            ]
            while len(site.read("SELECT 1 FROM login_failure WHERE source LIKE '%198.51.100.%'")) < 5:
                await asyncio.sleep(0.02)
            refused = [await post(path, 9) for path in ("/login", "/register")]
            assert [answer.status_code for answer in refused] == [503, 503]
            assert caplog.text.count("(max_logins)") == 1
            assert "max_logins" in refused[0].json()["message"] and refused[0].headers["Retry-After"] == "3"
            marked = {"Cookie": f"tt-browser={owner['tt-browser']}", "X-Forwarded-For": "203.0.113.9"}
            body = {"username": "admin", "password": "password"}
            headers = marked if by == "browser" else {}  # that of the admin's first login
            known = asyncio.create_task(http.post("/login", json=body, headers=headers))
            await asyncio.sleep(0.2)
            assert not known.done()
            go_on()
            assert (await known).status_code == 200
            assert [(await one).status_code for one in waiting] == [401, 401, 200]
            assert (await post("/login", 9)).status_code == 401

    asyncio.run(main())


def test_a_known_manager_has_few_places_of_its_own() -> None:
    places = attempts.Places(3)
    with places.taken("one"), places.taken("one"), places.taken("one"), places.taken(), places.taken():
        for nobody_else in "one", "":
            with pytest.raises(tracker.TrackerError, match="max_logins"), places.taken(nobody_else):
                pass
        with places.taken("other"):
            pass
    assert not places.taken_by


def test_an_address_has_no_more_of_the_places_than_it_leaves_free() -> None:
    places = attempts.Places(9)
    with contextlib.ExitStack() as taken:

        def many(source: str) -> int:
            for number in range(100):
                try:
                    taken.enter_context(places.taken(source=source))
                except tracker.TrackerError as refused:
                    assert refused.code == "unavailable" and "max_logins" in refused.message
                    return number
            return 100

        counts = [many(f"2001:db8:{number}:{number}::/64") for number in range(3)]
        assert counts == [5, 2, 1]
        assert many("2001:db8:0:1::/64") == 0  # of the same customer as the first
        assert many("") == 1  # a program on this machine takes what is left
    assert not places.taken_by


def test_places_of_managers_own_are_bounded_together_but_for_an_admin() -> None:
    places = attempts.Places(3)
    with contextlib.ExitStack() as taken:
        for number in range(6):  # three of their own, three of all others'
            taken.enter_context(places.taken(f"user{number}"))
        with pytest.raises(tracker.TrackerError, match="max_logins"), places.taken("user6"):
            pass
        for _ in range(2):
            taken.enter_context(places.taken("owner", admin=True))
        with pytest.raises(tracker.TrackerError, match="max_logins"), places.taken("owner", admin=True):
            pass
        assert places.gauge() == (8, 3, 2, False)
    assert not places.taken_by


UNDER_A_FILTER = """
import asyncio, ctypes, struct, sys
import attempts

number, action = int(sys.argv[1]), int(sys.argv[2], 16)
# load the number of the call; is it this one? then that; else allow
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
pointer = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
system = ctypes.CDLL(None, use_errno=True)
if system.prctl(38, 1, 0, 0, 0) or system.prctl(22, 2, ctypes.c_char_p(pointer), 0, 0):  # no new privileges, the filter
    sys.exit("no filter")

async def main():
    places = attempts.Places(8)
    for known in ("", "owner"):
        with places.taken(known) as place:
            print(await place.hash(attempts.password_matches, "a password", attempts.hash_password("a password")))
    places.close()

asyncio.run(main())
"""
SETPRIORITY = {"x86_64": 141, "aarch64": 140}.get(platform.machine())


@pytest.mark.skipif(sys.platform != "linux" or not SETPRIORITY, reason="there are no such filters here")
@pytest.mark.parametrize("action", ["0x80000000", "0x00050001"], ids=["kills", "refuses"])
def test_where_no_thread_may_give_way_passwords_are_looked_at_all_the_same(action: str) -> None:
    command = [sys.executable, "-c", UNDER_A_FILTER, str(SETPRIORITY), action]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=HOUSE)
    if done.stderr == "no filter\n":
        pytest.skip("this machine lets nobody set a filter")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"] and done.stderr.count("urgent") == 1


def test_whoever_has_many_passwords_looked_at_has_no_more_turns_than_others() -> None:
    async def main() -> None:
        turns, served = attempts.FairQueue(1), []

        async def look(rank: int, whose: str, number: int = 0) -> None:
            async with turns.turn(rank, whose):
                served.append(f"{whose}{number}")
                await asyncio.sleep(0)

        ranks = attempts.FairQueue
        known = [(ranks.KNOWN, whose, number) for whose in "ab" for number in (1, 2)]
        others = [(ranks.OTHER, "x", number) for number in range(1, 6)] + [(ranks.OTHER, "y", 1)]
        looks = [asyncio.create_task(look(*one)) for one in (*others, *known, (ranks.ADMIN, "owner", 1))]
        await asyncio.sleep(0)
        looks[3].cancel()  # x4 goes
        await asyncio.gather(*looks, return_exceptions=True)
        assert served == ["x1", "owner1", "a1", "x2", "b1", "y1", "a2", "x3", "b2", "x5"]
        assert turns.free == 1 and not any(turns.waiting)

    asyncio.run(main())


def test_a_turn_that_comes_to_who_has_just_gone_goes_on_to_the_next() -> None:
    async def main() -> None:
        turns = attempts.FairQueue(1)
        go = asyncio.Event()

        async def look(wait: bool) -> None:
            async with turns.turn(turns.OTHER, "x"):
                if wait:
                    await go.wait()

        first, second, third = (asyncio.create_task(look(number == 0)) for number in range(3))
        await asyncio.sleep(0)
        go.set()
        first.add_done_callback(lambda _: second.cancel())  # its turn has come, and it has not been told
        await asyncio.wait_for(third, 20)
        assert turns.free == 1

    asyncio.run(main())


def test_whoever_waits_for_a_turn_no_more_leaves_nothing_behind() -> None:
    async def main() -> None:
        turns = attempts.FairQueue(1)

        async def look() -> None:
            async with turns.turn(turns.OTHER, "x"):
                pass

        async with turns.turn(turns.OTHER, "a"):
            looks = [asyncio.create_task(look()) for _ in range(10)]
            await asyncio.sleep(0)
            for one in looks:
                one.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
            assert not any(turns.waiting)
        assert turns.free == 1

    asyncio.run(main())


def test_what_a_thread_raises_for_somebody_who_has_gone_is_no_fault() -> None:
    """Else whoever leaves while a body is read that is refused would write a traceback into the log."""
    faults: list[dict[str, Any]] = []

    async def main() -> None:
        loop, go_on = asyncio.get_running_loop(), threading.Event()
        loop.set_exception_handler(lambda _, fault: faults.append(fault))
        turns = attempts.FairQueue(1)

        def refuse() -> None:
            go_on.wait(60)
            raise ValueError

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            leaving = asyncio.create_task(turns.run(turns.OTHER, "a", pool, refuse))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
            go_on.set()
            await turns.run(turns.OTHER, "b", pool, int)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert faults == []


def test_an_admin_s_login_waits_for_none_of_a_crowd_of_others(
    make_site: Callable[..., Site], request: pytest.FixtureRequest
) -> None:
    site = make_site()
    owner = dict(site.admin.http.cookies)
    crowd = [dict(site.create_manager(f"user{number}").http.cookies) for number in range(10)]
    hashed: list[str] = []
    real, go_on = tracker.password_matches, threading.Event()

    def slow(password: str, stored: str | None) -> bool:
        go_on.wait(60)
        hashed.append(password)
        return real(password, stored)

    request.getfixturevalue("monkeypatch").setattr(tracker, "password_matches", slow)

    async def main() -> None:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=site.url, timeout=90) as http:

            def log_in(name: str, address: str, password: str, cookies: dict[str, str]) -> asyncio.Task:
                headers = {"X-Forwarded-For": address, "Cookie": f"tt-browser={cookies.get('tt-browser', '')}"}
                body = {"username": name, "password": password}
                return asyncio.create_task(http.post("/login", json=body, headers=headers))

            tried = [
                log_in(f"user{number}", f"198.51.100.{number + 10 * again}", "crowd", cookies)
                for number, cookies in enumerate(crowd)
                for again in range(4)
            ]
            while len(site.read("SELECT 1 FROM login_failure WHERE source LIKE 'browser %'")) < 10:
                await asyncio.sleep(0.02)
            known = log_in("Admin", "203.0.113.9", "password", owner)
            await asyncio.sleep(0.3)
            go_on.set()
            assert (await known).status_code == 200
            await asyncio.gather(*tried)

    asyncio.run(main())
    assert hashed.index("password") <= 3  # two were being looked at, and one more may end at the same moment


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fails(guesses: Guesses, source: str, key: str, now: float = 0.0) -> bool:
    """Whether a wrong key is refused as one; False: as one too many."""
    try:
        assert guesses.check(source, key, False, now) is False
    except tracker.TrackerError as refusal:
        assert refusal.code == "too_fast" and 0 < refusal.delay <= 60
        return False
    return True


def test_who_tries_one_key_after_the_other_has_to_wait_longer_and_longer() -> None:
    guesses, now, pauses = Guesses(), 0.0, []
    for number in range(FREE_GUESSES + 8):
        while not fails(guesses, "a", f"key {number}", now):
            now += 1
        pauses.append(now - sum(pauses))
    assert pauses == [0] * (FREE_GUESSES + 1) + [2, 4, 8, 16, 32, 60, 60]
    with pytest.raises(tracker.TrackerError, match="Too many wrong keys"):
        guesses.check("a", "the right one", True, now)
    assert guesses.check("b", "the right one", True, now)
    assert guesses.check("a", "the right one", True, now + 1000)


def test_a_key_that_is_wrong_again_is_no_further_guess() -> None:
    guesses = Guesses()
    assert all(fails(guesses, "a", "outdated") for _ in range(1000))
    assert guesses.check("a", "the right one", True, 0.0)


def test_no_more_sources_are_remembered_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_SOURCES", 10)
    guesses = Guesses()
    for number in range(100):
        assert fails(guesses, f"source {number}", "wrong")
    assert list(guesses.sources) == [f"source {number}" for number in range(90, 100)]


def test_one_key_after_the_other_from_many_networks_of_a_customer_is_slowed_down() -> None:
    guesses, number = Guesses(), 0
    with pytest.raises(tracker.TrackerError, match="Too many wrong keys"):
        for number in range(1000):
            attempts.Guesser(guesses, f"2001:db8:7:{number:x}::/64").check("template", f"key {number}", False, 0.0)
    assert number == 8 * FREE_GUESSES + 1
    assert attempts.Guesser(guesses, "2001:db8:8:1::/64").check("template", "the right one", True, 0.0)


def test_who_has_to_wait_counts_no_more_for_the_whole_customer() -> None:
    guesses = Guesses()
    one = attempts.Guesser(guesses, "2001:db8:7:1::/64")
    for number in range(1000):
        with contextlib.suppress(tracker.TrackerError):
            one.check("template", f"key {number}", False, 0.0)
    assert attempts.Guesser(guesses, "2001:db8:7:2::/64").check("template", "the right one", True, 0.0)


Try = Callable[[str, str], httpx.Response]


def otter(site: Site) -> tuple[Try, str]:
    house = House(site)

    def attempt(key: str, address: str) -> httpx.Response:
        params = {"template": house.NAME, "Size": "1", "key": key}
        return site.guest.get("/api/jobs/trigger", params=params, headers={"X-Forwarded-For": address})

    return attempt, house.KEY


def otter_status(site: Site) -> tuple[Try, str]:
    house = House(site)
    params = {"template": house.NAME, "Size": "1", "key": house.KEY}
    token = site.guest.get("/api/jobs/trigger", params=params).text

    def attempt(key: str, address: str) -> httpx.Response:
        headers = {"X-Forwarded-For": address, "X-ApiKey": key}
        return site.guest.get("/api/jobs/status", params={"token": token}, headers=headers)

    return attempt, house.KEY


def lab(site: Site, path: str = "/v1/oauth2/token") -> tuple[Try, str]:
    page = site.admin.http.get("/ui/testflinger/clients").text
    token = page.partition('name="token" value="')[2].partition('"')[0]
    fields = {"token": token, "client_id": "alice", "role": "agent"}
    made = site.admin.http.post("/ui/testflinger/clients", data=fields, follow_redirects=True).text
    key = made.partition('id="fresh-key"')[2].partition(">")[2].partition("<")[0]

    def attempt(key: str, address: str) -> httpx.Response:
        return site.guest.get(path, auth=("alice", key), headers={"X-Forwarded-For": address})

    return attempt, key


def theeye(site: Site) -> tuple[Try, str]:
    project = site.admin.create_project()
    token = site.admin.http.get("/ui/theeye/agents").text.partition('name="token" value="')[2].partition('"')[0]
    fields = {"token": token, "project": project, "alias": "agent"}
    made = site.admin.http.post("/ui/theeye/agents", data=fields, follow_redirects=True).text
    found = made.replace("<", " ").replace(">", " ").replace('"', " ").replace("'", " ").split()
    name = next(word for word in found if len(word) == 24 and set(word) <= set("0123456789abcdef"))
    secret = next(word for word in found if len(word) == 64 and set(word) <= set("0123456789abcdef"))

    def attempt(key: str, address: str) -> httpx.Response:
        basic = base64.b64encode(f"{name}:{key}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "X-Forwarded-For": address}
        return site.guest.post("/token", headers=headers)

    return attempt, secret


DOORS = {
    "otter": (otter, 403),
    "otter's status": (otter_status, 403),
    "testflinger's token": (lab, 401),
    "testflinger": (lambda site: lab(site, "/v1/agents/data"), 401),
    "theeye": (theeye, 401),
}


@pytest.mark.parametrize("door", DOORS)
def test_one_key_after_the_other_is_slowed_down_by_address_and_what_it_is_for(site: Site, door: str) -> None:
    make, wrong = DOORS[door]
    attempt, key = make(site)
    statuses = [attempt(f"guess {number}", ELSEWHERE).status_code for number in range(FREE_GUESSES + 3)]
    assert (statuses[0], statuses[-1]) == (wrong, 429)
    refused = attempt(key, ELSEWHERE)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
    assert attempt(key, HOME).status_code == 200
    site.clock.pass_time(61)
    assert attempt(key, ELSEWHERE).status_code == 200


@pytest.mark.parametrize("door", DOORS)
def test_an_agent_with_an_outdated_key_does_not_lock_out_those_behind_its_address(site: Site, door: str) -> None:
    make, wrong = DOORS[door]
    attempt, key = make(site)
    for _ in range(3 * FREE_GUESSES):
        assert attempt("outdated key", ELSEWHERE).status_code == wrong
    assert attempt(key, ELSEWHERE).status_code == 200


def test_a_guesser_at_one_template_does_not_slow_down_another(site: Site) -> None:
    attempt, _ = otter(site)
    assert [attempt(f"guess {number}", ELSEWHERE).status_code for number in range(FREE_GUESSES + 3)][-1] == 429
    other = {"project": site.admin.create_project(), "name": "other", "api": True, "key": "other key", "script": "x"}
    assert site.admin.post("/template/create", other).status_code == 200
    headers = {"X-Forwarded-For": ELSEWHERE}
    assert site.guest.get("/api/jobs/trigger?template=other&key=other+key", headers=headers).status_code == 200


def test_a_key_that_is_chosen_has_8_characters_and_an_older_one_stays() -> None:
    jobs = Jobs()
    short = "invalid: key: must have at least 8 characters"
    body = template_body(jobs.project, "new", key="1234567")
    assert jobs.refusal(tracker.create_template, jobs.session, body) == short
    template = jobs.create_template(key="12345678")
    jobs.connection.execute("UPDATE template SET key_hash = ?", (tracker.digest(b"old"),))  # as it was stored once
    jobs.update_template(template, timeout=7)
    jobs.update_template(template, key="old")
    [row] = jobs.rows("SELECT * FROM template")
    assert tracker.key_matches(row, "old") and row["timeout"] == 7
    changed = shapes.TemplateBody(key="other")
    assert jobs.refusal(tracker.update_template, jobs.session, template, changed) == short
    jobs.update_template(template, key="")


@pytest.mark.parametrize(
    ("count_one", "addresses"),
    [
        (lambda jobs, address: jobs.refusal(tracker.count_login, "admin", address), "203.0.113.{}"),
        (lambda jobs, address: jobs.refusal(tracker.count_login, "nobody", address), "2001:db8:1:{}::/64"),
        (lambda jobs, address: jobs.refusal(tracker.count_registration, address), "2001:db8:1:{}::/64"),
    ],
    ids=["a name", "a site", "accounts of a site"],
)
def test_an_attempt_that_one_of_several_limits_refuses_has_written_nothing(
    count_one: Callable[[Jobs, str], str], addresses: str
) -> None:
    """Else the batch of everybody's calls would run twice for each."""
    jobs, refused = Jobs(), []
    for number in range(1, 200):
        before = jobs.connection.total_changes
        try:
            count_one(jobs, addresses.format(number))
        except AssertionError:  # not refused: counted
            continue
        refused.append(jobs.connection.total_changes - before)
    assert len(refused) > 30 and set(refused) == {0}


def test_logins_that_wait_while_the_tracker_stops_are_told_so_and_are_no_faults(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether a thread looks at their passwords just now, or they wait for one."""
    go_on = threading.Event()
    monkeypatch.setattr(tracker, "password_matches", lambda *_: go_on.wait(60))
    settings = tracker.Settings(database=str(tmp_path / "tracker.db"), shutdown_timeout=0.1)

    def log_in(number: int) -> str:
        headers = {"X-Forwarded-For": f"198.51.100.{number}"}
        body = {"username": f"user{number}", "password": "password"}
        return client(url).post("/login", json=body, headers=headers).json()["code"]

    with concurrent.futures.ThreadPoolExecutor(6) as crowd:
        with tracker.serving(settings) as url, contextlib.closing(sqlite3.connect(settings.database)) as look:
            tried = [crowd.submit(log_in, number) for number in range(6)]
            counted = "SELECT count(*) FROM login_failure WHERE source LIKE 'address 198.51.100.%'"
            wait_until(lambda: look.execute(counted).fetchone() >= (6,))
        go_on.set()
        assert {one.result() for one in tried} == {"unavailable"}
    logged = caplog.text + capsys.readouterr().err  # uvicorn writes for itself
    assert "cut off" in logged and "Traceback" not in logged
