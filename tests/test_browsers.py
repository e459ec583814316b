"""What browsers are let do: which one is one, under which names they are served, whose pages may send what, and who is
the first admin.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Manager, Site, client
from doors import House

import browsers
import commands
import tracker
from settings import load_settings

FIREFOX = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
}
JAVA = "text/html, image/gif, image/jpeg, */*; q=0.2"
PICTURE = {**FIREFOX, "Accept": "image/avif,image/webp,*/*"}
FIRST = {"username": "owner", "password": "correct horse"}
TLS_PROXY = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "Sec-Fetch-Site": "same-origin"}


def raw(headers: dict[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


# ── What a browser is ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        *(FIREFOX, PICTURE, {"Origin": "null"}, {"Sec-GPC": "1"}, {"Sec-Fetch-Site": "none"}),
        *({"Accept-Language": "de"}, {"User-Agent": "Mozilla/4.0"}, {"Accept-Language": ""}),
        *({"Accept": accept, "Accept-Encoding": "gzip"} for accept in ("IMAGE/webp", "application/json, Text/HTML")),
        # A page's fetch in Firefox, with all that a page can set:
        {"User-Agent": "Java/17", "Accept": "*/*", "Accept-Language": "*", "Accept-Encoding": "gzip, deflate"},
        {"User-Agent": "Java/17", "Accept": JAVA, "Accept-Language": "*", "Accept-Encoding": "identity"},  # a Range
    ],
    ids=str,
)
def test_a_browser_is_known_by_any_of_its_headers(headers: dict[str, str]) -> None:
    assert browsers.is_browser(raw(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"User-Agent": "curl/8.5.0", "Accept": "*/*"},
        {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"},
        {"User-Agent": "python-requests/2.32.3", "Accept": "*/*", "Connection": "keep-alive"},
        {"User-Agent": "node", "Accept": "*/*", "Accept-Language": "*", "Sec-Fetch-Mode": "cors"},  # its fetch
        {"User-Agent": "Deno/2.1.4", "Accept": "*/*", "Accept-Language": "*", "Accept-Encoding": "gzip,br"},
        {"User-Agent": "Java/17.0.15", "Accept": JAVA},
        {"User-Agent": "drone/1", "Accept": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"},  # older Java
        {"User-Agent": "Dalvik/2.1.0 (Linux; U; Android 13)", "Accept-Encoding": "gzip"},
        {"User-Agent": "okhttp/4.12.0", "Accept-Encoding": "gzip"},
        {"User-Agent": "Apache-HttpClient/4.5.14 (Java/17.0.15)", "Accept-Encoding": "gzip,deflate"},
        {"User-Agent": "Java-http-client/17.0.15", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAA"},
        {"User-Agent": "Python-urllib/3.13", "Accept-Encoding": "identity"},
        {"User-Agent": "Wget/1.21.3", "Accept": "*/*", "Accept-Encoding": "identity"},
        {"User-Agent": "libwww-perl/6.77", "TE": "deflate,gzip;q=0.3"},
        {"User-Agent": "curl/8.5.0", "Accept": "text/html"},
        {"User-Agent": "Ruby", "Accept": "*/*", "Accept-Encoding": "gzip;q=1.0,deflate;q=0.6,identity;q=0.3"},
        {"User-Agent": "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.1682"},
    ],
    ids=str,
)
def test_a_program_is_no_browser(headers: dict[str, str]) -> None:
    assert not browsers.is_browser(raw(headers))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        *(("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64")),
        *(("fe80::1%eth0", "fe80::/64"), ("testclient", "testclient")),
        *(("2002:c000:201:7::1", "192.0.2.1"), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "192.0.2.45")),
        *(("64:ff9b::192.0.2.1", "192.0.2.1"), ("64:ff9b:1:7::c000:201", "64:ff9b:1:7::c000:201/128")),
    ],
)
def test_attempts_are_counted_by_a_subscribers_network(address: str, network: str) -> None:
    assert browsers.network_of(address) == network


# ── Under which names ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def beyond(make_site: Callable[..., Site]) -> Callable[..., Site]:
    """Starts a tracker that listens beyond loopback."""
    return lambda *hosts, **changes: make_site(host="0.0.0.0", allowed_hosts=hosts, **changes)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:3010", "LocalHost.", "tracker.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]:3010"]
)
def test_on_loopback_a_browser_is_served_under_names_of_its_own_machine(site: Site, host: str) -> None:
    assert site.guest.get("/ui/", headers={**FIREFOX, "Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:3010",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "::1",
        ),
        *("host.docker.internal", "192.0.2.1", "[2001:db8::1]", "localhost@evil.example", "a b", ""),
    ],
)
def test_a_page_whose_name_was_made_to_lead_to_loopback_gets_nothing(site: Site, host: str) -> None:
    headers = {**FIREFOX, "Host": host}
    origin = {**headers, "Origin": f"http://{host}"}
    body = {"username": "stranger", "password": "password"}
    answers = [
        site.guest.get("/ui/", headers=headers),
        site.guest.get("/", headers=headers),
        site.guest.get("/openapi.json", headers=headers),
        site.guest.get("/worker/stats", headers=headers),
        site.admin.http.get("/account", headers=headers),
        site.guest.post("/register", json=body, headers=origin),
        site.guest.post("/worker/create", json={"alias": "x"}, headers=origin),
        site.guest.post("/api/jobs/trigger", data={"template": "x"}, headers=origin),
        site.guest.post("/v1/job", json={"job_queue": "q"}, headers=origin),
        site.guest.post("/tracker/token", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert site.read("SELECT 1 FROM worker UNION ALL SELECT 1 FROM manager WHERE id > 1") == []


def test_a_refusal_has_its_doors_shape_and_says_what_to_write(make_site: Callable[..., Site], caplog: Any) -> None:
    site = make_site(allowed_hosts=("tracker.lan",))
    headers = {**FIREFOX, "Host": "other.lan:3010"}
    line = 'allowed_hosts = ["tracker.lan", "other.lan"] into tracker.toml'
    for _ in range(2):
        said = site.guest.get("/project/list", headers=headers).json()
    assert (said["ok"], said["code"]) == (False, "forbidden") and line in said["message"]
    assert line in site.guest.get("/v1/agents/data", headers=headers).json()["message"]
    assert line in site.guest.get("/api/jobs/status?token=x", headers=headers).text
    assert line in site.guest.get("/tracker/task", headers=headers).json()
    assert "other.lan" in site.guest.get("/ui/", headers=headers).text
    assert caplog.text.count(line) == 1  # once a minute


def test_on_loopback_a_program_may_use_any_name(site: Site) -> None:
    for headers in {"Host": "host.docker.internal:3010"}, {"Host": "tracker", "User-Agent": "curl/8.5.0"}:
        assert site.admin.http.post("/worker/create", json={"alias": "x"}, headers=headers).status_code == 200
        assert site.admin.http.get("/ui/", headers=headers).status_code == 200


def test_a_worker_that_poses_as_a_browser_gets_its_tasks_under_any_name(site: Site) -> None:
    """Crawlers give all their requests the headers of a browser."""
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.http.headers.update({**FIREFOX, "Host": "tracker.example.org", "X-Forwarded-For": "203.0.113.7"})
    assert worker.submit(project).status_code == 200
    assert worker.log("info", "hello").status_code == 204
    assert worker.released(worker.assigned(project)["id"])
    sent_slowly = worker.http.request("GET", f"/task/get/{project}", content=iter([b""]))  # not as a direct call
    assert sent_slowly.json()["message"] == tracker.NO_TASK


def test_a_program_in_java_becomes_a_worker_under_any_name(site: Site) -> None:
    head = (
        "POST /worker/create HTTP/1.1\r\nHost: host.docker.internal\r\nUser-Agent: Java/17.0.15\r\n"
        f"Accept: {JAVA}\r\nContent-Type: application/json\r\nContent-Length: 14\r\nConnection: close\r\n\r\n"
    )
    address, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + b'{"alias": "x"}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_on_loopback_a_browser_comes_through_a_proxy_with_tls_under_any_name(site: Site) -> None:
    headers = {**FIREFOX, "Host": "tracker.example.org", **TLS_PROXY}
    assert site.guest.get("/ui/", headers=headers).status_code == 200
    body = {"username": "somebody", "password": "password"}
    origin = {**headers, "Origin": "https://tracker.example.org"}
    assert site.guest.post("/register", json=body, headers=origin).status_code == 200
    for missing in "Sec-Fetch-Site", "X-Forwarded-For":
        fewer = {name: value for name, value in headers.items() if name != missing and name != "X-Forwarded-Proto"}
        assert site.guest.get("/ui/", headers=fewer).status_code == 403, missing


def test_a_browser_of_a_lan_comes_through_a_proxy_by_number_or_by_a_name_that_is_allowed(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(allowed_hosts=("tracker.lan", "*.lab.example"))
    proxied = {**FIREFOX, "X-Real-IP": "192.168.1.9"}
    for host in "192.168.1.2:8080", "[fd00::2]:8080", "tracker.lan", "Tracker.LAN:8080", "a.lab.example":
        assert site.guest.get("/ui/", headers={**proxied, "Host": host}).status_code == 200, host
    for host in "tracker", "lab.example", "evil-lab.example", "other.lan":
        assert site.guest.get("/ui/", headers={**proxied, "Host": host}).status_code == 403, host


def test_beyond_loopback_any_name_will_do_until_some_are_set(beyond: Callable[..., Site]) -> None:
    site = beyond()
    assert site.guest.get("/ui/", headers={**FIREFOX, "Host": "tracker.lan"}).status_code == 200


def test_beyond_loopback_the_names_hold_for_pages_and_for_whoever_has_a_session(beyond: Callable[..., Site]) -> None:
    site = beyond("tracker.lan")
    other = {"Host": "other.lan"}
    assert site.guest.get("/ui/", headers=other).status_code == 403
    assert site.admin.http.get("/account", headers=other).status_code == 403
    assert site.admin.http.post("/project/create", json={"name": "x"}, headers=other).status_code == 403
    assert site.guest.get("/project/list", headers={**FIREFOX, **other}).status_code == 403
    for host in "tracker.lan:3010", "192.168.1.2", "localhost":
        assert site.admin.http.get("/ui/", headers={**FIREFOX, "Host": host}).status_code == 200
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.http.headers.update(other)
    assert worker.submit(project).status_code == 200
    assert site.guest.get("/project/list", headers=other).status_code == 200


async def asked_in_process(settings: tracker.Settings, client: tuple[str, int], ask: Callable) -> None:
    """Has `ask(http, tracker)` talk to an application without a server, as a client from there."""
    app = tracker.create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app, client=client), base_url="http://testserver") as http,
    ):
        await ask(http, app.state.tracker)


@pytest.mark.parametrize(("allowed", "status"), [((), 200), (("tracker.lan",), 403), (("testserver",), 200)])
def test_without_our_server_only_the_setting_counts(tmp_path: Path, allowed: tuple[str, ...], status: int) -> None:
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="", allowed_hosts=allowed)

    async def ask(http: httpx.AsyncClient, _: Any) -> None:
        assert (await http.get("/ui/", headers=FIREFOX)).status_code == status
        assert (await http.get("/project/list")).status_code == 200

    asyncio.run(asked_in_process(settings, ("testclient", 50000), ask))


def test_a_client_in_the_process_of_a_test_makes_the_first_account(tmp_path: Path) -> None:
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="")

    async def ask(http: httpx.AsyncClient, _: Any) -> None:
        made = await http.post("/register", json=FIRST)
        assert made.json()["content"]["manager"]["tracker_admin"] is True

    asyncio.run(asked_in_process(settings, ("testclient", 50000), ask))


def test_a_monitor_that_poses_as_a_browser_may_look(site: Site) -> None:
    monitor = {"User-Agent": "Mozilla/5.0+(compatible; UptimeRobot/2.0)", "Host": "tracker.example.org"}
    for path in "/", "/ui/", "/v1", "/project/list", "/manager/promote/1":
        assert site.guest.head(path, headers=monitor).status_code < 400, path


@pytest.mark.parametrize("name", ["tracker.lan:3010", "http://tracker.lan", "*", "a*.lan", "[::1]", ""])
def test_what_is_no_name_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    file = tmp_path / "tracker.toml"
    file.write_text(f'allowed_hosts = ["192.168.1.2", "fd00::2", "*.example.org", "{name}"]')
    with pytest.raises(tracker.TrackerError, match=r"allowed_hosts\[3\]: must match"):
        load_settings(file)


# ── Whose pages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def is_admin(manager: Manager) -> bool:
    return manager.get("/account").json()["content"]["manager"]["tracker_admin"]


@pytest.mark.parametrize("path", ["/manager/promote/{}", "/manager/demote/{}", "/logout", "/api/logout"])
@pytest.mark.parametrize(
    "headers", [PICTURE, FIREFOX, {"User-Agent": "Mozilla/5.0"}, {"Accept-Language": "en"}], ids=str
)
def test_a_picture_that_hides_its_page_changes_nothing(site: Site, headers: dict[str, str], path: str) -> None:
    other = site.create_manager()
    refused = site.admin.http.get(path.format(other.id), headers=headers)
    assert refused.status_code == 403
    assert "its Origin or Referer is ''" in refused.json()["message"] and "127.0.0.1" in refused.json()["message"]
    assert (is_admin(site.admin), is_admin(other)) == (True, False)


@pytest.mark.parametrize("proof", [{"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, "Referer", "Origin"])
def test_a_get_that_changes_something_needs_proof_of_a_browser(site: Site, proof: Any) -> None:
    other = site.create_manager()
    headers = {**FIREFOX, **({proof: f"{site.url}/console"} if proof == "Referer" else {})}
    headers |= {proof: site.url} if proof == "Origin" else {} if proof == "Referer" else proof
    assert site.admin.http.get(f"/manager/promote/{other.id}", headers=headers).status_code == 204
    assert is_admin(other)


def test_a_page_without_an_origin_is_never_one_of_ours() -> None:
    for source in "null", "http://", "":
        assert browsers.sent_by(raw({"Origin": source, "Host": ""})) == ("others" if source else "nobody")


def test_another_port_of_the_same_host_is_another_site(site: Site) -> None:
    other = site.create_manager()
    for proof in (
        {"Referer": "http://127.0.0.1:1/page"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        refused = site.admin.http.get(f"/manager/promote/{other.id}", headers={**PICTURE, **proof})
        assert refused.status_code == 403
    assert not is_admin(other)


ELSEWHERE = (
    {"Origin": "https://elsewhere.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Referer": "http://a.example/"},
)


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_a_page_of_another_site_makes_no_worker(site: Site, headers: dict[str, str]) -> None:
    assert site.guest.post("/worker/create", json={"alias": "x"}, headers=headers).status_code == 403
    assert site.read("SELECT 1 FROM worker") == []


@pytest.mark.parametrize("origins", [("https://elsewhere.example",), ("*",)])
def test_a_page_of_one_of_cors_origins_makes_workers_and_triggers_templates(
    make_site: Callable[..., Site], origins: tuple[str, ...]
) -> None:
    site = make_site(cors_origins=origins)
    house = House(site)
    house.create_template("open")
    for origin in ELSEWHERE[0], {**ELSEWHERE[0], **ELSEWHERE[1]}:
        assert site.guest.post("/worker/create", json={"alias": "x"}, headers=origin).status_code == 200
        assert site.guest.post("/api/jobs/trigger", data={"template": "open"}, headers=origin).status_code == 200


@pytest.mark.parametrize("headers", [*ELSEWHERE, PICTURE, FIREFOX], ids=str)
def test_a_template_without_a_key_is_not_for_pages_of_other_sites(site: Site, headers: dict[str, str]) -> None:
    house = House(site)
    house.create_template("open")
    for extra in "", "&key=anything":
        refused = site.guest.get(f"/api/jobs/trigger?template=open{extra}", headers=headers)
        assert refused.status_code == 403 and "caused by another site" in refused.text
    assert site.read("SELECT 1 FROM job") == []
    assert site.guest.get("/api/jobs/trigger?template=open", headers={"User-Agent": "curl/8"}).status_code == 200


@pytest.mark.parametrize("place", ["query", "form", "header"])
def test_a_template_with_a_key_is_for_whoever_has_it(site: Site, place: str) -> None:
    house = House(site)
    key = {"key": house.KEY}
    sent = {"query": {"params": key}, "form": {"data": key}, "header": {"headers": {"X-ApiKey": house.KEY}}}[place]
    headers = {**FIREFOX, "Sec-Fetch-Site": "cross-site", **sent.pop("headers", {})}
    params = {"template": house.NAME, "Size": "1", **sent.pop("params", {})}
    method = "POST" if place == "form" else "GET"
    answer = site.guest.request(method, "/api/jobs/trigger", params=params, headers=headers, **sent)
    assert answer.status_code == 200, answer.text


# ── The first admin ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a tracker without any account: its URL."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> str:
            settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="", **changes)
            return stack.enter_context(tracker.serving(settings))

        yield start


def test_who_reaches_it_through_a_proxy_does_not_become_its_first_admin(fresh: Callable[..., str]) -> None:
    url = fresh()
    for headers in {"X-Forwarded-For": "203.0.113.7"}, {"Via": "1.1 x"}, {"Forwarded": "for=127.0.0.1"}, TLS_PROXY:
        for code in {}, {"code": ""}, {"code": "guessed"}:
            refused = httpx.post(f"{url}/register", json={**FIRST, **code}, headers=headers)
            assert refused.status_code == 403 and refused.json()["field"] == "code"
            assert "own machine" in refused.json()["message"] and "create-admin" in refused.json()["message"]
    made = httpx.post(f"{url}/register", json=FIRST)
    assert made.json()["content"]["manager"]["tracker_admin"] is True
    later = httpx.post(
        f"{url}/register", json={**FIRST, "username": "later"}, headers={"X-Forwarded-For": "203.0.113.7"}
    )
    assert later.json()["content"]["manager"]["tracker_admin"] is False


def test_a_client_from_another_machine_is_no_owner_and_one_without_an_address_is() -> None:
    assert not browsers.is_local(("192.0.2.7", 1), {})
    assert browsers.is_local(("::ffff:127.0.0.1", 1), {}) and browsers.is_local(("::1", 1), {})
    assert browsers.is_local(("testclient", 1), raw(FIREFOX)) and browsers.is_local(None, {})
    assert not browsers.is_local(("garbage", 1), raw({"X-Forwarded-For": "garbage"}))


def test_a_page_whose_name_was_made_to_lead_here_is_no_owner_beyond_loopback_either(fresh: Callable[..., str]) -> None:
    url = fresh(host="0.0.0.0").replace("0.0.0.0", "127.0.0.1")
    rebound = {**FIREFOX, "Host": "evil.example:3010", "Origin": "http://evil.example:3010"}
    assert httpx.post(f"{url}/register", json=FIRST, headers=rebound).status_code == 403
    own = {**FIREFOX, "Host": "localhost:3010", "Origin": "http://localhost:3010"}
    assert httpx.post(f"{url}/register", json=FIRST, headers=own).status_code == 200


def test_the_first_account_is_made_from_elsewhere_with_the_code_once(tmp_path: Path) -> None:
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="")

    async def ask(http: httpx.AsyncClient, running: tracker.Tracker) -> None:
        code = running.code
        assert len(code) >= 16
        assert 'name="code"' in (await http.get("/ui/register")).text
        assert (await http.post("/register", json={**FIRST, "code": code[:-1]})).status_code == 403
        made = await http.post("/register", json={**FIRST, "code": f" {code}\n"})
        assert made.json()["content"]["manager"]["tracker_admin"] is True
        other = await http.post("/register", json={**FIRST, "username": "other", "code": code})
        assert other.json()["content"]["manager"]["tracker_admin"] is False
        assert running.code == "" and 'name="code"' not in (await http.get("/ui/register")).text

    asyncio.run(asked_in_process(settings, ("192.0.2.7", 1), ask))


def test_the_page_asks_for_the_code_only_who_needs_it(fresh: Callable[..., str]) -> None:
    url = fresh()
    assert 'name="code"' not in httpx.get(f"{url}/ui/register", headers=FIREFOX).text
    with client(url, headers={**FIREFOX, "X-Forwarded-For": "203.0.113.7"}) as stranger:
        page = stranger.get("/ui/register").text
        token = re.search('name="token" value="([^"]*)"', page)[1]
        refused = stranger.post("/ui/register", data={"token": token, **FIRST, "code": "guessed"})
    assert 'name="code"' in page
    assert refused.status_code == 403 and 'value="guessed"' in refused.text and "create-admin" in refused.text


def started_and_stopped(settings: tracker.Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """Starts a tracker as the command line does, until it listens: its code."""
    codes, real = [], commands.serve_until_stopped

    def serve(settings: tracker.Settings, ready: Callable) -> Any:
        def stop(url: str, server: Any) -> None:
            ready(url, server)
            codes.append(server.config.app.state.tracker.code)
            server.stop()

        return real(settings, stop)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "serve_until_stopped", serve)
        patch.setattr(commands, "gc", types.SimpleNamespace(freeze=lambda: None, set_threshold=lambda *_: None))
        commands.serve(settings, {}, None)
    return codes[0]


def test_the_command_line_prints_the_code_while_there_is_no_admin(
    tmp_path: Path, capsys: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="", port=0, host="0.0.0.0")
    code, printed = started_and_stopped(settings, monkeypatch), capsys.readouterr().err
    assert code and code in printed and "/ui/register" in printed
    assert "set allowed_hosts" in caplog.text
    with tracker.serving(settings) as url:
        httpx.post(f"{url.replace('0.0.0.0', '127.0.0.1')}/register", json=FIRST).raise_for_status()
    assert started_and_stopped(settings, monkeypatch) == ""
    assert "code" not in capsys.readouterr().err


# ── Cookies under TLS ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_under_tls_no_other_host_can_set_our_cookies(site: Site) -> None:
    with client(site.url, headers={"X-Forwarded-Proto": "https"}) as http:
        http.post("/login", json={"username": "admin", "password": "password"}).raise_for_status()
        assert set(http.cookies) == {"__Host-tt", "__Host-tt-browser"}
        session = http.cookies["__Host-tt"]
        headers = {"Cookie": f"__Host-tt={session}"}
        assert http.get("/account", headers=headers).json()["ok"]
        tossed = client(site.url, headers={"X-Forwarded-Proto": "https", "Cookie": f"tt={session}"})
        assert not tossed.get("/account").json()["ok"]


def test_below_a_path_prefix_cookies_have_their_plain_names(make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="/queue")
    headers = {"X-Forwarded-Proto": "https"}
    answer = site.guest.post("/login", json={"username": "admin", "password": "password"}, headers=headers)
    assert [one.partition("=")[0] for one in answer.headers.get_list("set-cookie")] == ["tt", "tt-browser"]


def test_a_page_under_tls_says_so_when_the_setting_does(make_site: Callable[..., Site]) -> None:
    site = make_site(hsts=1000)
    under_tls = {"X-Forwarded-Proto": "https"}
    for path in "/ui/", "/ui/nowhere", "/ui/login":
        assert site.guest.get(path, headers=under_tls).headers["strict-transport-security"] == "max-age=1000"
        assert "strict-transport-security" not in site.guest.get(path).headers


def test_as_delivered_no_page_asks_for_tls(site: Site) -> None:
    assert "strict-transport-security" not in site.guest.get("/ui/", headers={"X-Forwarded-Proto": "https"}).headers
