"""HTTP as it goes over the wire, where the tracker does what usually a library does."""

import asyncio
import codecs
import contextlib
import gzip
import json
import re
import socket
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from conftest import Site, wait_until
from doors import House, NativeAgent, NativeClient, TestflingerAgent, TheeyeAgent

import attempts
import logs
import server
import tracker
from settings import load_settings


def exchange(site: Site, *requests: str | bytes) -> bytes:
    """Sends raw requests over one connection at once; what comes back until it is closed.

    Or until it is silent for a while after an answer to each of them, none of which has announced the end.
    """
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"".join(one if isinstance(one, bytes) else one.encode() for one in requests))
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
                if received.count(b"HTTP/1.1 ") >= len(requests) and b"connection: close" not in received.lower():
                    connection.settimeout(1)
        except TimeoutError:
            received += b"<kept open>"
        return received


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> str:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""])


def every_path() -> list[str]:
    """The paths of every door, with something in the place of their ids."""
    native = [row.path for row in tracker.API]
    others = [route.path for route in tracker.create_app().routes if hasattr(route, "path")]
    theeye = ["/task", "/tracker/job", "/job/1", "/workflows/1/job/2", "/tracker/agent/x/config", "/token"]
    paths = {*native, *(f"/api{path}" for path in native), *others, *theeye, "/ui/static/style.css"}
    paths -= {"/v1/{path:path}", "/ui/{path:path}", "/ui/static/{path:path}"}
    return sorted({re.sub(r"\{\w+(:path)?\}", "1", path) for path in paths})


def test_a_plain_answer_is_well_formed_and_keeps_the_connection(site: Site) -> None:
    head, _, body = exchange(site, get("/worker/stats")).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    names = [line.split(b":")[0] for line in lines[1:]]
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert {b"content-type", b"content-length", b"date", b"x-content-type-options", b"cache-control"} == set(names)
    assert body.endswith(b"<kept open>")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    assert len(body.removesuffix(b"<kept open>")) == length


def test_pipelined_requests_are_answered_in_their_order(site: Site) -> None:
    received = exchange(site, get("/worker/stats"), get("/nowhere"), get("/project/list"), get("/account"))
    places = [received.find(part) for part in (b'"stats"', b"nothing at /nowhere", b'"projects"', b'"logged_in"')]
    assert places == sorted(places)
    assert -1 not in places


def test_connection_close_is_honoured(site: Site) -> None:
    received = exchange(site, get("/worker/stats", "Connection: close"))
    assert b'"stats"' in received
    assert b"<kept open>" not in received


def test_an_old_client_gets_its_answer_and_the_end_of_the_connection(site: Site) -> None:
    received = exchange(site, get("/worker/stats", version="1.0"))
    assert b'"stats"' in received
    assert b"<kept open>" not in received


def old(site: Site, path: str, *headers: str, method: str = "GET", body: str = "") -> tuple[str, bytes]:
    """The headers of an answer to HTTP/1.0, in lower case, and all that follows them until the connection ends."""
    host = f"Host: {site.url.removeprefix('http://')}"
    received = exchange(site, "\r\n".join([f"{method} {path} HTTP/1.0", host, *headers, "", body]))
    assert not received.endswith(b"<kept open>")
    head, _, content = received.partition(b"\r\n\r\n")
    return head.decode().lower(), content


def test_an_old_client_is_never_sent_chunks(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": f"task {number}"} for number in range(2000)])
    cookie = f"Cookie: tt={site.admin.http.cookies['tt']}"
    head, body = old(site, f"/ui/projects/{project}/export", cookie)
    assert "200 ok" in head and "transfer-encoding" not in head and "content-length" not in head
    assert "connection: close" in head
    assert [json.loads(line)["recipe"] for line in body.splitlines()] == [f"task {number}" for number in range(2000)]


def test_an_old_client_gets_what_every_other_gets(site: Site) -> None:
    job = NativeClient(house := House(site)).submit()
    site.guest.post("/v1/job", json={"job_queue": house.QUEUE})
    streamed = f"/api/jobs/logs?token={job}&key={house.KEY}", f"/v1/queues/{house.QUEUE}/jobs"
    for path in *every_path(), *streamed:
        (head, body), newer = old(site, path), site.guest.get(path)
        assert "transfer-encoding" not in head and f" {newer.status_code} " in head, path
        if "text/html" not in head:  # which says how long ago something was
            assert body == newer.content, path


def test_an_old_client_that_looks_at_an_answer_of_any_length_gets_its_headers(site: Site) -> None:
    project, cookie = site.admin.create_project(), f"Cookie: tt={site.admin.http.cookies['tt']}"
    head, body = old(site, f"/ui/projects/{project}/export", cookie, method="HEAD")
    assert "200 ok" in head and "transfer-encoding" not in head and body == b""


def test_an_old_client_is_sent_no_interim_answer(site: Site) -> None:
    head, body = old(site, "/worker/create", "Content-Length: 2", "Expect: 100-continue", method="POST", body="{}")
    assert head.startswith("http/1.1 200 ok") and json.loads(body)["ok"]


@pytest.mark.parametrize("root", ["", "/queue"])
def test_every_native_call_is_answered_alike_at_the_root_and_below_api(
    make_site: Callable[..., Site], root: str
) -> None:
    site = make_site(root_path=root)  # which uvicorn puts before every path
    for methods, path, *_ in tracker.API:
        for method in methods.split():
            asked = re.sub(r"\{\w+\}", "1", path)
            answer, below = (site.guest.request(method, prefix + asked) for prefix in ("", "/api"))
            assert answer.status_code == below.status_code != 405, (method, path)
            assert answer.json() == below.json() if answer.content else not below.content, (method, path)
            assert "There is nothing at" not in answer.text


def test_the_ids_in_a_native_path_arrive_by_their_names(tmp_path: Path) -> None:
    app = tracker.create_app(tracker.Settings(database=str(tmp_path / "x.db")))
    for methods, path, *_ in tracker.API:
        names = re.findall(r"\{(\w+)\}", path)
        for prefix in "", "/api", "/queue", "/queue/api":
            asked = prefix + path.replace("{", "").replace("}", "")
            endpoints, ids = app.find({"path": asked, "root_path": "/queue" if "queue" in prefix else ""})
            assert ids == {name: name for name in names}
            assert set(methods.split()) <= set(endpoints)


@pytest.mark.parametrize("path", ["/task/get/1/extra", "/task/get/1/x/", "/api/api/task/get/1", "/apitask"])
def test_what_only_begins_like_a_native_path_is_nothing(site: Site, path: str) -> None:
    worker = site.create_worker(site.admin.create_project())
    for prefix in "", "/api":
        answer = worker.http.get(prefix + path)
        assert (answer.status_code, answer.json()["message"]) == (404, f"There is nothing at {prefix}{path}")


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_method_that_a_native_path_does_not_have_is_refused_with_those_that_it_has(site: Site, prefix: str) -> None:
    both = "GET, HEAD, OPTIONS, POST"
    for path, allowed in ("/task/submit", "OPTIONS, POST"), ("/task/get/1", "GET, HEAD, OPTIONS"), ("/logs", both):
        answer = site.guest.put(prefix + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json()["message"].startswith("PUT is not possible here: use ")


def test_every_path_says_which_methods_it_has_and_refuses_the_others_with_the_same_words(site: Site) -> None:
    for path in every_path():
        asked = site.guest.options(path)
        allowed = asked.headers["allow"].split(", ")
        assert (asked.status_code, asked.content) == (204, b""), path
        assert ("GET" in allowed) == ("HEAD" in allowed) and "OPTIONS" in allowed and len(allowed) > 1
        for method in "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE":
            answer = site.guest.request(method, path)
            led_on = method in ("GET", "HEAD") and path.startswith("/ui/") and answer.status_code == 303  # to its page
            refused = answer.status_code in (404, 405) or led_on
            assert answer.status_code != 405 if method in allowed else refused, (method, path)
            assert answer.status_code != 405 or answer.headers["allow"] == asked.headers["allow"], (method, path)


def test_every_refusal_is_kept_by_nobody_and_taken_for_nothing_else(site: Site) -> None:
    for path in *every_path(), "/nothing", "/v1/nothing", "/ui/nothing", "/ui/static/nothing", "/a/b/c":
        for method in "GET", "POST", "PUT", "DELETE":
            answer = site.guest.request(method, path)
            kept = {name: answer.headers.get(name) for name in ("x-content-type-options", "cache-control")}
            if answer.status_code >= 400:
                assert kept == {"x-content-type-options": "nosniff", "cache-control": "no-store"}, (method, path)


@pytest.mark.parametrize("path", ["/nothing", "/api/nothing", "/v1/nothing", "/ui/nothing", "/ui/static/nothing"])
def test_what_methods_there_are_at_a_path_that_is_nothing_is_404(site: Site, path: str) -> None:
    for method in "OPTIONS", "PUT":
        answer = site.guest.request(method, path)
        assert (answer.status_code, answer.headers.get("allow")) == (404, None)


def test_the_whole_server_can_be_asked_for_its_methods(site: Site) -> None:
    assert b"204 No Content" in (answer := exchange(site, get("*", method="OPTIONS")))
    assert b"allow: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT" in answer


# Without /api: what a GET of these takes, or sets off.
ACTING = {"/task/get", "/task/get/1", "/project/secret/1", "/logout", "/manager/promote/1", "/manager/demote/1"}
ACTING |= {"/jobs/trigger", "/v1/job", "/v1/result/1/output", "/v1/result/1/serial_output", "/v1/oauth2/token"}


def lasting(answer: httpx.Response) -> dict[str, str]:
    """The headers that are the same a moment later; a page says how long ago something was."""
    page = answer.headers.get("content-type", "").startswith("text/html")
    passing = {"date", "transfer-encoding", "content-length" if page else ""}
    return {name: value for name, value in answer.headers.items() if name not in passing}


def test_what_a_get_reads_a_head_answers_alike_without_a_body(site: Site) -> None:
    house = House(site)
    site.create_worker(house.project).submit(house.project)
    for path in every_path():
        reads = path.removeprefix("/api") not in ACTING and "GET" in site.guest.options(path).headers["allow"]
        for http in (site.guest, site.admin.http) if reads else ():
            got, looked_at = http.get(path), http.head(path)
            assert (looked_at.status_code, looked_at.content) == (got.status_code, b""), path
            assert lasting(looked_at) == lasting(got), path


def test_looking_at_what_a_get_takes_or_sets_off_changes_nothing(site: Site) -> None:
    house, other = House(site), site.create_manager()
    job = site.guest.post("/v1/job", json={"job_queue": house.QUEUE}).json()["job_id"]
    tester = TestflingerAgent(house)
    tester.http.get("/job", params={"queue": house.QUEUE})
    tester.http.post(f"/result/{job}/output", content=b"said")
    site.guest.post("/v1/job", json={"job_queue": house.QUEUE})
    native, theeye, admin = NativeAgent(house).worker.http, TheeyeAgent(house), site.admin.http
    for _ in range(2):
        NativeClient(house).submit()
        native.post("/task/submit", json={"project": house.project, "recipe": "x"})
    acting = [
        (native, f"/task/get/{house.project}"),
        (native, f"/api/task/get?project={house.project}"),
        (tester.http, f"/job?queue={house.QUEUE}"),
        (tester.http, f"/result/{job}/output"),
        (site.guest, f"/api/jobs/trigger?template={house.NAME}&key={house.KEY}"),
        (theeye.http, "/job?hostname=machine"),
        (admin, f"/manager/promote/{other.id}"),
        (admin, f"/api/manager/demote/{other.id}"),
        (admin, "/logout"),
    ]
    before = site.dump()
    for http, path in acting:
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert site.dump() == before, path
    for http, path in acting:
        http.get(path)
        assert site.dump() != before, path
        before = site.dump()


def test_looking_at_a_page_leaves_what_the_last_action_said_for_who_sees_it(site: Site) -> None:
    http = site.admin.http
    form_token = re.search(r'name="token" value="([^"]+)"', http.get("/ui/projects/new").text)[1]
    http.post("/ui/projects/new", data={"token": form_token, "name": "seen"})
    http.head("/ui/")
    assert "tt-message" in http.cookies
    http.get("/ui/")
    assert "tt-message" not in http.cookies


def test_looking_at_an_answer_of_any_length_reads_none_of_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project, read = site.admin.create_project(), []
    site.create_worker(project).submit(project)
    monkeypatch.setattr("pages.task_line", lambda task: read.append(task) or b"")
    for ask, lines in (site.admin.http.head, 0), (site.admin.http.get, 1):
        answer = ask(f"/ui/projects/{project}/export")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert len(read) == lines


def test_an_answer_to_head_ends_with_its_headers(site: Site) -> None:
    received = exchange(site, get("/task/get/1", method="HEAD"), get("/ui/login", method="HEAD"), get("/worker/stats"))
    assert [part.split()[1] for part in re.findall(rb"HTTP/1.1 \d+", received)] == [b"200"] * 3
    assert len(received.split(b"\r\n\r\n")) == 4


@pytest.mark.skipif("theeye" not in tracker.installed_dialects(), reason="needs the dialect")
def test_another_systems_call_below_the_same_first_name_reaches_it(site: Site) -> None:
    """Its own refusal tells it: without a token it asks for one."""
    for method, path in ("GET", "/task/1"), ("PUT", f"/job/{24 * 'a'}"), ("POST", "/job"):
        assert "ok" not in site.guest.request(method, path).json()


RAW_TARGETS = (
    ("/nowhere/blåbær", "There is nothing at /nowhere/blåbær"),
    ("http://x/nowhere/blåbær", "There is nothing at /nowhere/blåbær"),
    ("/api/project/get/å", "must be a whole number"),
    ("/worker/stats?x=å", '"stats"'),
    ("/ui/å", "404 Not Found"),
    ("/ui/login?next=/ui/å", "200 OK"),
    ("/api/jobs/trigger?template=blåbær", "there is no template 'blåbær'"),
    ("/tracker/nowhere/å", "/tracker/nowhere/å does not exist"),
    ("/å/task", "Unauthorized"),
    ("/v1/job?queue=å", "204 No Content"),
)


@pytest.mark.parametrize(("target", "answer"), RAW_TARGETS)
def test_utf_8_in_a_url_is_understood_as_if_it_were_escaped(site: Site, target: str, answer: str) -> None:
    """curl and Go send it as it is."""
    for spelled in target, quote(target, "/?=:"):
        request = get(spelled, "Connection: close").replace("Host: x", "Host: localhost")
        assert answer in exchange(site, request).decode()


@pytest.mark.parametrize("pause", [1, 9, 22, 23, 30, 60])
def test_utf_8_in_a_url_may_come_in_pieces_and_bodies_and_headers_stay_as_they_are(site: Site, pause: int) -> None:
    worker = site.create_worker(site.admin.create_project())
    body = json.dumps({"message": "å\nGET /å HTTP/1.1\n", "timestamp": 1, "scope": "å"}, ensure_ascii=False)
    headers = (
        f"X-Worker-ID: {worker.id}",
        f"X-Secret: {worker.secret}",
        "X-Other: å",
        f"Content-Length: {len(body.encode())}",
    )
    request = (get("/log/warn?blåbær=å", *headers, method="POST") + body).encode()
    with socket.create_connection(tuple(httpx.URL(site.url).netloc.decode().split(":")), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # and the connection goes on
            connection.sendall(request[:pause])
            time.sleep(0.05)
            connection.sendall(request[pause:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 204")
    entries = site.admin.get("/logs", level=4).json()["content"]["logs"]
    assert [entry["message"] for entry in entries] == 2 * ["å\nGET /å HTTP/1.1\n"]


def test_a_url_that_is_no_utf_8_is_refused(site: Site) -> None:
    target = get("/api/jobs/trigger?template=\xff", "Connection: close").encode("latin-1")
    assert b"not valid form encoding in UTF-8" in exchange(site, target)


def test_an_answer_without_content_has_no_length_either(site: Site) -> None:
    response = site.create_worker().log("info", "message")
    assert response.status_code == 204
    assert "content-length" not in response.headers


def test_a_client_that_does_not_wait_for_its_answer_hurts_nobody(site: Site) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    for _ in range(20):
        connection = socket.create_connection((host, int(port)))
        connection.sendall(get("/worker/stats").encode() * 50)
        connection.close()
    assert httpx.get(f"{site.url}/worker/stats").status_code == 200


def test_a_client_that_sends_for_ever_and_never_reads_is_cut_off(site: Site) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(get("/worker/stats").encode() * 1000)
            raise AssertionError("ten million requests were taken in")
    assert httpx.get(f"{site.url}/worker/stats").status_code == 200


def test_the_access_log_names_plain_answers_too(
    make_site: Callable[..., Site], capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site(access_log=True)
    httpx.get(f"{site.url}/worker/stats")
    printed: list[str] = []
    wait_until(lambda: printed.append(capsys.readouterr().out) or "GET /worker/stats" in "".join(printed))


def test_a_login_below_api_holds_everywhere(site: Site) -> None:
    body = {"username": "admin", "password": "password"}
    answer = httpx.post(f"{site.url}/api/login", json=body)
    assert "Path=/;" in answer.headers["set-cookie"]


def test_a_page_of_long_log_lines_is_cut_and_can_be_continued(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_LOG_TEXT", 250)
    worker = site.create_worker()
    for number in range(7):
        worker.log("info", f"{number}" * 100, number + 1)
    read: list[str] = []
    query: dict = {}
    while page := site.admin.get("/logs", level=5, **query).json()["content"]["logs"]:
        assert len(page) <= 3
        read += [entry["message"][0] for entry in page]
        query = {"before": page[-1]["id"]}
    assert read == list("6543210")


def test_registrations_from_one_address_are_throttled(site: Site) -> None:
    statuses = [
        httpx.post(
            f"{site.url}/register",
            json={"username": f"user{number}", "password": "password"},
            headers={"X-Forwarded-For": "203.0.113.9"},
        ).status_code
        for number in range(attempts.FREE_ATTEMPTS["register"] + 3)
    ]
    assert statuses[0] == 200
    assert statuses[-1] == 429


# ── Bodies: packed, and begun with a mark ─────────────────────────────────────────────────────────────────────────────

GZIP, JSON = {"Content-Encoding": "gzip"}, {"Content-Type": "application/json"}


def to_every_door(house: House) -> list[tuple[httpx.Client, str, str, bytes, dict[str, str]]]:
    """A call with a body of each door: who sends it, method, path, body, headers; all are accepted."""
    site, admin = house.site, house.site.admin.http
    worker = site.create_worker(house.project).http
    task = json.dumps({"project": house.project, "recipe": "x"}).encode()
    run = json.dumps({"template": house.NAME, "key": house.KEY}).encode()
    form_token = re.search(r'name="token" value="([^"]+)"', admin.get("/ui/projects/new").text)[1]
    form = urllib.parse.urlencode({"token": form_token, "name": "of a form"}).encode()
    parts = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    lines = (
        parts % (b"token", b"", form_token.encode()) + parts % (b"file", b'; filename="a"', b"one\ntwo") + b"--b--\r\n"
    )
    artifact = parts % (b"file", b'; filename="a"', b"content") + b"--b--\r\n"
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    job = site.guest.post("/v1/job", json={"job_queue": "other"}).json()["job_id"]
    return [
        (worker, "POST", "/task/submit", task, JSON),
        (worker, "POST", "/api/task/bulk_submit", b"[" + task + b"]", {}),
        (worker, "POST", f"/task/submit_lines/{house.project}", b"three\nfour", {}),
        (site.guest, "POST", "/worker/create", b'{"alias": "packed"}', JSON),
        (admin, "POST", "/project/create", b'{"name": "packed"}', JSON),
        (site.guest, "POST", "/v1/job", b'{"job_queue": "other"}', JSON),
        (site.guest, "POST", f"/v1/result/{job}", b'{"job_state": "test"}', JSON),
        (site.guest, "POST", f"/v1/result/{job}/output", b"said", {}),
        (site.guest, "POST", f"/v1/result/{job}/artifact", artifact, multipart),
        (site.guest, "POST", "/api/jobs/trigger", run, JSON),
        (site.guest, "POST", "/api/jobs/trigger", f"template={house.NAME}&key={house.KEY}".encode(), {}),
        (TheeyeAgent(house).http, "POST", "/host/machine", b'{"info": {"platform": "linux"}}', JSON),
        (admin, "POST", "/ui/projects/new", form, {"Content-Type": "application/x-www-form-urlencoded"}),
        (admin, "POST", f"/ui/projects/{house.project}/submit/lines", lines, multipart),
    ]


def test_a_packed_body_is_understood_at_every_door(site: Site) -> None:
    for http, method, path, body, headers in to_every_door(House(site)):
        answer = http.request(method, path, content=gzip.compress(body), headers=headers | GZIP)
        assert answer.status_code in (200, 204, 303), (path, answer.text)
    named = {name for (name,) in site.read("SELECT name FROM project")}
    assert {"packed", "of a form", "other"} <= named
    recipes = "SELECT COUNT(*) FROM task WHERE recipe IN ('one', 'two', 'three', 'four', 'x')"
    wait_until(lambda: site.read(recipes) == [(6,)])


@pytest.mark.parametrize(
    ("spoil", "encoding", "status"),
    [
        (lambda packed: packed[:-1], "gzip", 400),
        (lambda packed: packed[:12] + bytes([packed[12] ^ 255]) + packed[13:], "gzip", 400),
        (lambda packed: gzip.decompress(packed), "gzip", 400),
        (lambda packed: packed + b"more", "gzip", 400),
        (lambda packed: packed, "br", 415),
        (lambda packed: packed, "gzip, gzip", 415),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_refused_at_every_door(
    site: Site, spoil: Callable[[bytes], bytes], encoding: str, status: int
) -> None:
    requests = to_every_door(House(site))
    before = site.dump()
    for http, method, path, body, headers in requests:
        content = spoil(gzip.compress(body))
        answer = http.request(method, path, content=content, headers=headers | {"Content-Encoding": encoding})
        assert answer.status_code == status, (path, answer.text)
        assert status == 400 or answer.headers["accept-encoding"] == "gzip, identity"
    assert site.dump() == before


def test_a_small_body_that_unpacks_to_more_than_the_limit_is_refused_at_every_door_as_soon_as_it_does(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(max_body=64, max_bulk_body=256, testflinger_max_file=1, max_job_log=64)
    monkeypatch.setattr("dialects.testflinger.api.REPORT_LIMIT", 256)
    bomb = gzip.compress(bytes(2**28))
    unpacked: list[int] = []
    unpack = server.Unpacked.unpack

    def counted(body: server.Unpacked, until: float) -> bytes:
        unpacked.append(len(piece := unpack(body, until)))
        return piece

    monkeypatch.setattr(server.Unpacked, "unpack", counted)
    for http, method, path, body, headers in to_every_door(House(site)):
        content = gzip.compress(body.removesuffix(b"--b--\r\n")[:-2]) + bomb
        answer = http.request(method, path, content=content, headers=headers | GZIP)
        assert answer.status_code == 413, (path, answer.text)
        assert sum(unpacked) < 2**22, path
        unpacked.clear()


def test_what_gzip_packed_in_several_pieces_and_filled_up_is_one_body(site: Site) -> None:
    content = gzip.compress(b'{"alias"') + gzip.compress(b"") + gzip.compress(b': "whole"}') + bytes(100)
    for encoding in "gzip", "x-gzip", "GZIP", "identity, gzip":
        answer = site.guest.post("/worker/create", content=content, headers={"Content-Encoding": encoding})
        assert answer.json()["content"]["worker"]["alias"] == "whole"


def test_many_small_files_of_gzips_are_one_body_that_is_unpacked_in_few_rounds_of_the_loop() -> None:
    """A round for each of them kept the loop busy for minutes after those who had sent them were gone."""
    content = gzip.compress(b"") * 20_000 + b"".join(gzip.compress(b"%c" % byte) for byte in b'{"alias": "w"}')
    rounds = []

    async def receive() -> dict:
        return {"type": "http.request", "body": content, "more_body": False}

    async def count() -> None:
        while True:
            rounds.append(None)
            await asyncio.sleep(0)

    async def unpack() -> bytes:
        counting = asyncio.create_task(count())
        unpacked, body, more = server.Unpacked(receive, 2**20), b"", True
        while more:
            message = await unpacked()
            body, more = body + message["body"], message["more_body"]
        counting.cancel()
        return body

    assert asyncio.run(unpack()) == b'{"alias": "w"}'
    assert len(rounds) < 1000


def test_a_body_is_no_longer_packed_than_it_may_be_unpacked(site: Site) -> None:
    """Whoever packs nothing, over and over, brings a body without an end."""
    for content in gzip.compress(b"") * 4000, gzip.compress(b"") * 4000 + gzip.compress(b"{}"):
        answer = site.guest.post("/worker/create", content=content, headers=GZIP)
        assert answer.status_code == 413 and answer.json()["field"] == "body"
    blanks = gzip.compress(b"{}" + b" " * (2**16 - 2), compresslevel=0)
    assert len(blanks) > 2**16
    assert site.guest.post("/worker/create", content=blanks, headers=GZIP).status_code == 200


def test_a_body_that_says_it_is_not_packed_is_read_as_it_is(site: Site) -> None:
    answer = site.guest.post("/worker/create", content=b"{}", headers={"Content-Encoding": "identity"})
    assert answer.status_code == 200


def test_json_may_begin_with_a_byte_order_mark_at_every_door(site: Site) -> None:
    for http, method, path, body, headers in to_every_door(House(site)):
        if body[:1] in b"{[":
            answer = http.request(method, path, content=codecs.BOM_UTF8 + body, headers=headers)
            assert answer.status_code in (200, 204), (path, answer.text)
            answer = http.request(method, path, content=codecs.BOM_UTF8 + body)  # whatever it is called
            assert answer.status_code != 400, (path, answer.text)


# ── Pages of other origins ────────────────────────────────────────────────────────────────────────────────────────────

APP, OTHER = "https://app.example.org", "https://other.example.org"


def sharing(answer: httpx.Response) -> dict[str, str]:
    """What an answer says about who may read it, without the common beginning of the names."""
    start = "access-control-"
    shared = {name.removeprefix(start): value for name, value in answer.headers.items() if name.startswith(start)}
    return {name: value for name, value in shared.items() if name != "expose-headers"}


def varied_by(answer: httpx.Response) -> set[str]:
    """The headers of a request by which the answer differs, as it says."""
    return set(re.findall(r"[\w-]+", answer.headers.get("vary", "")))


def preflight(site: Site, path: str, origin: str, method: str, *headers: str) -> dict[str, str]:
    """What a browser is told before it sends what a page of that origin asks for."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    asked |= {"Access-Control-Request-Headers": ",".join(headers)} if headers else {}
    answer = site.guest.options(path, headers=asked)
    assert answer.status_code == 204
    return sharing(answer)


def test_pages_of_other_origins_may_read_nothing_as_delivered(site: Site) -> None:
    for path in "/worker/stats", "/v1/job/search", "/ui/static/style.css", "/nothing":
        answer = site.guest.get(path, headers={"Origin": APP})
        assert not sharing(answer) and "Origin" not in varied_by(answer)
    assert not preflight(site, "/task/submit", APP, "POST", "x-secret")


def test_a_page_of_a_named_origin_may_read_and_use_a_login(make_site: Callable[..., Site]) -> None:
    site = make_site(cors_origins=(APP,))
    for path in *every_path(), "/nothing":
        answer = site.guest.head(path, headers={"Origin": APP})
        assert sharing(answer) == {"allow-origin": APP, "allow-credentials": "true"}, path
        assert "Origin" in varied_by(answer) <= {"Origin", "Accept-Encoding"}, path
    for origin in OTHER, "null", "*", APP.upper(), f"{APP}.example":
        answer = site.guest.get("/worker/stats", headers={"Origin": origin})
        assert (sharing(answer), varied_by(answer)) == ({}, {"Origin"})


def test_a_browser_is_told_before_a_request_what_a_page_of_a_named_origin_may_send(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cors_origins=(APP,))
    headers = "x-worker-id", "x-secret", "content-type", "authorization"
    for path, methods in ("/api/task/submit", "OPTIONS, POST"), ("/v1/job", "GET, HEAD, OPTIONS, POST"):
        told = preflight(site, path, APP, "POST", *headers)
        assert told.pop("allow-headers").split(", ") == [*headers]
        assert told.pop("max-age")
        assert told == {"allow-origin": APP, "allow-credentials": "true", "allow-methods": methods}
    assert not preflight(site, "/task/submit", OTHER, "POST", *headers)


@pytest.mark.parametrize("path", ["/ui/", "/ui/login", "/ui/projects/new"])
def test_a_page_that_is_looked_at_is_as_long_as_when_it_is_got(site: Site, path: str) -> None:
    plain = {"Accept-Encoding": "identity"}
    looked = site.admin.http.head(path, headers=plain)
    assert looked.headers["content-length"] == site.admin.http.get(path, headers=plain).headers["content-length"]


@pytest.mark.parametrize("path", ["/ui/", "/ui/login", "/ui/projects/new"])
def test_a_packed_page_whose_token_looks_different_each_time_promises_no_length(site: Site, path: str) -> None:
    site.admin.http.headers["Accept-Encoding"] = "gzip"
    looked, got = site.admin.http.head(path), site.admin.http.get(path)
    assert "content-length" not in looked.headers and "transfer-encoding" not in looked.headers and not looked.content
    assert "content-length" in got.headers
    told = ("content-encoding", "content-type", "vary", "cache-control")
    assert [looked.headers[name] for name in told] == [got.headers[name] for name in told]


@pytest.mark.parametrize(
    "origin, scheme, same_site", [(APP, "https", "None"), (APP, "http", "Lax"), (OTHER, "https", "Lax")]
)
def test_a_login_through_a_named_origin_and_tls_has_a_cookie_that_its_pages_send(
    make_site: Callable[..., Site], origin: str, scheme: str, same_site: str
) -> None:
    site = make_site(cors_origins=(APP,))
    headers = {"X-Forwarded-Proto": scheme, "Origin": origin if origin == APP else "", "Sec-Fetch-Site": "same-origin"}
    body = {"username": "admin", "password": "password"}
    answer = site.guest.post("/api/login", json=body, headers=headers)
    assert answer.status_code == 200
    assert f"SameSite={same_site}" in answer.headers["set-cookie"]
    assert ("Secure" in answer.headers["set-cookie"]) is (scheme == "https")


def test_a_page_of_a_named_origin_may_change_things_with_a_login(make_site: Callable[..., Site]) -> None:
    site = make_site(cors_origins=("*", APP))
    for headers in {"Origin": APP}, {"Origin": APP, "Sec-Fetch-Site": "same-site"}:
        body = {"username": "admin", "password": "password"}
        assert site.guest.post("/login", json=body, headers=headers).status_code == 200
        answer = site.guest.post("/project/create", json={"name": str(headers)}, headers=headers)
        assert answer.status_code == 200
        assert site.guest.post("/v1/job", json={"job_queue": "q"}, headers=headers).status_code == 200
        assert site.guest.post("/logout", headers=headers).status_code == 204


def test_a_page_of_any_other_origin_may_read_and_change_what_needs_no_login(make_site: Callable[..., Site]) -> None:
    site = make_site(cors_origins=("*", APP))
    project = site.admin.create_project()
    worker = site.create_worker(project)
    assert preflight(site, "/task/submit", OTHER, "POST", "x-secret")["allow-origin"] == "*"
    for headers in {"Origin": OTHER}, {"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}:
        body = {"project": project, "recipe": "x"}
        answer = worker.http.post("/task/submit", json=body, headers=headers)
        assert (answer.status_code, sharing(answer)) == (200, {"allow-origin": "*"})
        for path, body in ("/project/create", {"name": "y"}), ("/login", {"username": "admin", "password": "password"}):
            answer = site.admin.http.post(path, json=body, headers=headers)
            assert (answer.status_code, sharing(answer)) == (403, {"allow-origin": "*"})
        assert site.guest.post("/v1/job", json={"job_queue": "q"}, headers=headers).status_code == 403


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://A.example", "null", "https://", "**"])
def test_what_is_no_origin_is_refused_at_the_start(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "tracker.toml"
    file.write_text(f'cors_origins = ["https://fine.example:8443", "{origin}"]')
    with pytest.raises(tracker.TrackerError, match=r"cors_origins\[1\]: must match"):
        load_settings(file)


@pytest.mark.parametrize("path", ["/login", "/register", "/worker/create"])
def test_a_body_of_somebody_unknown_is_short_however_it_is_packed(site: Site, path: str) -> None:
    """Or else a few connections with little in them fill what all bodies that arrive may take."""
    body = gzip.compress(b'{"x": "%b"}' % (b" " * 2**17))
    answer = site.guest.post(path, content=body, headers={"Content-Encoding": "gzip"})
    assert len(body) < 1000 and answer.status_code == 413
    assert answer.json()["field"] == "body"


@pytest.mark.parametrize("blanks", [" ", "\t", "  \t "])
def test_blanks_after_a_header_are_no_part_of_it(site: Site, blanks: str) -> None:
    """RFC 9110, 5.5. They come from a line that was pasted, at calls that need ASGI and at those that need none."""
    project = site.admin.create_project()
    worker = site.create_worker(project)
    me = (f"X-Worker-ID: {worker.id}{blanks}", f"X-Secret: {worker.secret}{blanks}")
    for path in f"/task/get/{project}", f"/project/secret/{project}":
        assert b" 200 OK" in exchange(site, get(path, *me))
