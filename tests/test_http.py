"""HTTP as it goes over the wire, where the tracker does what usually a library does."""

import contextlib
import re
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Site, wait_until

import tracker


def exchange(site: Site, *requests: str) -> bytes:
    """Sends raw requests over one connection at once; what comes back until it is closed, or silent for a while."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=1) as connection:
        connection.sendall("".join(requests).encode())
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            received += b"<kept open>"
        return received


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> str:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""])


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


@pytest.mark.parametrize("path", ["/task/get/1/extra", "/task/get/", "/task/get/1/", "/api/api/task/get/1", "/apitask"])
def test_what_only_begins_like_a_native_path_is_nothing(site: Site, path: str) -> None:
    worker = site.create_worker(site.admin.create_project())
    for prefix in "", "/api":
        answer = worker.http.get(prefix + path)
        assert (answer.status_code, answer.json()["message"]) == (404, f"There is nothing at {prefix}{path}")


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_a_method_that_a_native_path_does_not_have_is_refused_with_those_that_it_has(site: Site, prefix: str) -> None:
    for path, allowed in ("/task/submit", "POST"), ("/task/get/1", "GET"), ("/logs", "GET, POST"):
        answer = site.guest.put(prefix + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json() == {"ok": False, "message": "PUT is not possible here", "code": "method_not_allowed"}


@pytest.mark.skipif("theeye" not in tracker.installed_dialects(), reason="needs the dialect")
def test_another_systems_call_below_the_same_first_name_reaches_it(site: Site) -> None:
    """Its own refusal tells it: without a token it asks for one."""
    for method, path in ("GET", "/task/1"), ("PUT", f"/job/{24 * 'a'}"), ("POST", "/job"):
        assert "ok" not in site.guest.request(method, path).json()


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
    monkeypatch.setattr(tracker, "MOST_LOG_TEXT", 250)
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
        httpx.post(f"{site.url}/register", json={"username": f"user{number}", "password": "password"}).status_code
        for number in range(tracker.FREE_ATTEMPTS["register"] + 3)
    ]
    assert statuses[0] == 200
    assert statuses[-1] == 429
