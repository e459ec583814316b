"""Hot calls that our server carries out without ASGI: answered as by ASGI, byte for byte, over real sockets."""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import MovedClock, Site, Worker, wait_until

import libraries
import tracker
import writer


class Line:
    """A connection over which a worker sends bytes, and reads whole answers."""

    def __init__(self, url: str, worker: Worker | None = None, alias: str = ""):
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.headers = f"Host: x\r\nX-Worker-ID: {worker.id}\r\nX-Secret: {worker.secret}\r\n" if worker else ""

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: Any) -> None:
        self.socket.close()

    def request(self, method: str, path: str, body: bytes | None = None, *more: str, version: str = "1.1") -> bytes:
        length = [] if body is None or any("ength" in one or "ncoding: ch" in one for one in more) else [len(body)]
        lines = [f"{method} {path} HTTP/{version}\r\n{self.headers}", *(f"{one}\r\n" for one in more)]
        lines += [f"Content-Length: {one}\r\n" for one in length]
        return ("".join(lines) + "\r\n").encode("latin-1") + (body or b"")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, bodies: bool = True) -> bytes:
        """The next answer, or what comes before the connection ends."""
        while b"\r\n\r\n" not in self.received:
            if not self.more():
                return self.rest()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        size = int(length[1]) if length and bodies else 0
        while len(self.received) < size and self.more():
            pass
        body, self.received = self.received[:size], self.received[size:]
        return head + b"\r\n\r\n" + body

    def more(self) -> bool:
        chunk = self.socket.recv(65536)
        self.received += chunk
        return bool(chunk)

    def rest(self) -> bytes:
        while self.more():
            pass
        rest, self.received = self.received, b""
        return rest + b"<end>"


def submit(project: int, **fields: Any) -> bytes:
    return json.dumps({"project": project, "recipe": "recipe", **fields}).encode()


def release(task: int, **fields: Any) -> bytes:
    return json.dumps({"task_id": task, "result": 0, "verification": 0, **fields}).encode()


CHUNKED = "Transfer-Encoding: chunked"


def releases(*tasks: int, result: int = 0) -> bytes:
    return json.dumps({"releases": [{"task_id": task, "result": result, "verification": 0} for task in tasks]}).encode()


class House:
    """A tracker with what the battery needs: projects 1 to 4, workers 1 (may all) and 2 (may nothing)."""

    def __init__(self, site: Site):
        self.site, admin = site, site.admin
        self.project, self.hidden, self.slow, self.empty = (
            admin.create_project(name, **fields)
            for name, fields in [
                ("open", {}), ("hidden", {"hidden": True}), ("slow", {"submit_rate": 1e-3}), ("empty", {}),
            ]
        )  # fmt: skip
        self.worker, self.stranger = site.create_worker(), site.create_worker()
        for project in (self.project, self.slow, self.empty):
            admin.grant(self.worker, project)

    def battery(self) -> Iterator[tuple[str, list[bytes], int]]:
        """What is sent over a connection each time, piece by piece, and how many answers come."""
        line = Line(self.site.url, self.worker)
        request, get, post, one = line.request, "GET", "POST", submit(self.project)
        line.socket.close()
        yield "nothing to be had", [request(get, "/task/get/1")], 1
        for path in ("/task/submit", "/api/task/submit", "//task/submit", "/task/submit?x=y", "/task/submit/"):
            yield f"submit to {path}", [request(post, path, one)], 1
        for body in (b"", b"{", b"null", b'"\xff"', b'{"project": 1}', b"\xef\xbb\xbf" + one, b"[" * 100_000):
            yield f"submit of {body[:20]!r}", [request(post, "/task/submit", body)], 1
        yield "nulls", [request(post, "/task/submit", submit(1, priority=None, hash64=None))], 1
        yield "a wrong type", [request(post, "/task/submit", submit(1, priority="high"))], 1
        yield "a NUL", [request(post, "/task/submit", submit(1, recipe="\0"))], 1
        yield "a hash", [request(post, "/task/submit", submit(1, hash64=5))] * 2, 2
        yield "no project", [request(post, "/task/submit", submit(99))], 1
        yield "no access", [request(post, "/task/submit", submit(self.hidden))], 1
        yield "a rate limit", [request(post, "/task/submit", submit(self.slow))] * 2, 2
        yield "a long body", [request(post, "/task/submit", submit(1, recipe="x" * 70_000))], 1
        yield "too long a body", [request(post, "/task/submit", submit(1, recipe="x" * 300_000))], 1
        yield "a length that is none", [request(post, "/task/submit", one, "Content-Length: x")], 1
        yield "a body that is packed", [request(post, "/task/submit", gzip.compress(one), "Content-Encoding: gzip")], 1
        yield (
            "a body in chunks",
            [request(post, "/task/submit", b"%x\r\n%b\r\n0\r\n\r\n" % (len(one), one), CHUNKED)],
            1,
        )
        yield "a body that is awaited", [request(post, "/task/submit", one, "Expect: 100-continue")], 2
        yield "a body in pieces", [request(post, "/task/submit", one)[:-20], one[-20:]], 1
        yield "headers in pieces", [bytes([byte]) for byte in request(post, "/task/submit", one)], 1
        yield "an upgrade", [request(get, "/task/get/4", None, "Connection: upgrade", "Upgrade: h2c")], 1
        yield "a wrong method", [request("PUT", "/task/submit", one), request("DELETE", "/task/get/1")], 2
        yield "a look", [request("HEAD", "/task/get/1")], 1
        yield "the methods", [request("OPTIONS", "/task/get/1")], 1
        for path in ("/task/get/4", "/api/task/get/4", "/task/get//4", "/task/get/x", "/task/get/99", "/task/get/-1"):
            yield f"a task from {path}", [request(get, path)], 1
        for path in ("/task/get/%31", "/task/get/1?count=2", "/task/get/4?wait=x", "/task/get/4?wait=0.1", "/task/get"):
            yield f"a task from {path}", [request(get, path)], 1
        yield "a long query", [request(get, f"/task/get/4?x={'y' * 300}")], 1
        yield "a large number", [request(get, f"/task/get/{'9' * 30}")], 1
        yield "a body where none belongs", [request(get, "/task/get/4", b"xyz"), request(get, "/task/get/4")], 2
        yield "a task", [request(get, "/task/get/1"), request(post, "/task/release", release(3))], 2
        yield "another", [request(get, "/api/task/get/1"), request(post, "/api/task/release", release(4, result=1))], 2
        yield "not held", [request(post, "/task/release", release(5))], 1
        yield "never there", [request(post, "/task/release", release(99))], 1
        more = b'{"task_id": 6, "seconds": 9e8}'
        yield "more time", [request(get, "/task/get/1"), request(post, "/task/extend", more)], 2
        for body in (b'{"extensions": [%b, {"task_id": 99, "seconds": 1}]}' % more, b"{}", b'{"extensions": 1}', b"["):
            yield f"more time by {body[:20]!r}", [request(post, "/task/extend", body)], 1
        few = json.dumps({"requests": [{"project": self.project, "recipe": f"bulk {n}"} for n in range(5)]}).encode()
        bad = few.replace(b"bulk 3", b"bulk\\u0000")
        many = json.dumps([{"project": self.project, "recipe": f"{n}"} for n in range(200)]).encode()
        for body in (few, bad, many, b"[]", b"{", b"", few.replace(b'"project": 1', b'"project": 99', 1)):
            yield f"a bulk of {body[:30]!r} ({len(body)})", [request(post, "/task/bulk_submit", body)], 1
        yield (
            "many tasks",
            [request(get, "/task/get/1?count=3"), request(post, "/task/bulk_release", releases(7, 8))],
            2,
        )
        for body in (releases(9, 99), releases(*range(9, 300)), releases(9, result=9), b"{", b'{"releases": null}'):
            yield f"a release of {body[:40]!r} ({len(body)})", [request(post, "/task/bulk_release", body)], 1
        yield "too many releases", [request(post, "/task/bulk_release", releases(*range(1, 3000)))], 1
        yield "no such result", [request(post, "/task/release", release(1, result=9))], 1
        yield (
            "pipelined",
            [request(post, "/task/submit", one) + request(get, "/worker/stats") + request(get, "/task/get/4")],
            3,
        )
        yield "pipelined the other way", [request(get, "/worker/stats") + request(post, "/task/submit", one) * 3], 4
        yield "the last", [request(post, "/task/submit", one, "Connection: close") + request(get, "/task/get/4")], 2
        yield "an old client's", [request(post, "/task/submit", one, version="1.0")], 2
        yield (
            "an old client's that stays",
            [request(post, "/task/submit", one, "Connection: keep-alive", version="1.0")],
            2,
        )
        yield "no request", [b"\r\n\r\nnonsense\r\n\r\n"], 2
        yield "twice the same header", [request(get, "/task/get/4", None, f"X-Worker-ID: {self.stranger.id}")], 1
        line.headers = f"Host: x\r\nX-Worker-ID: {self.worker.id}\r\nX-Secret: wrong\r\n"
        yield "a wrong secret", [request(post, "/task/submit", one), request(get, "/task/get/1")], 2
        line.headers = f"Host: x\r\nX-Worker-ID: {self.stranger.id}\r\nX-Secret: {self.stranger.secret}\r\n"
        yield "a stranger", [request(get, "/task/get/1"), request(post, "/task/submit", one)], 2
        yield "a stranger's bulk", [request(post, "/task/bulk_submit", few)], 1
        line.headers = "Host: x\r\nX-Worker-ID: 12x\r\n"
        yield (
            "nobody",
            [request(get, "/task/get/1"), request(post, "/task/submit", one), request(post, "/task/release", b"")],
            3,
        )

    def answers(self) -> dict[str, list[bytes]]:
        """What comes back for each of the battery."""
        found = {}
        for name, pieces, count in self.battery():
            with Line(self.site.url) as line:
                for piece in pieces:
                    line.send(piece)
                    if len(pieces) == count:
                        found.setdefault(name, []).append(self.lasting(line.read(bodies=name != "a look")))
                    elif len(piece) > 1:
                        time.sleep(0.02)  # so that it arrives by itself
                if name not in found:
                    found[name] = [self.lasting(line.read()) for _ in range(count)]
        return found

    def lasting(self, answer: bytes) -> bytes:
        """The answer without what the moment says."""
        answer = re.sub(rb"date: [^\r]*", b"date: ...", answer)
        answer = re.sub(rb'"(rate_limit_delay|assign_time|created|left)":[\d.]+', rb'"\1":0', answer)
        varies = b"rate_limit" in answer or b'"left"' in answer
        return re.sub(rb"content-length: \d+", b"content-length: n", answer) if varies else answer


@pytest.fixture
def hot_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the hot calls that were carried out without ASGI."""
    paths: list[str] = []
    begin = tracker.HotCall.begin

    def note(call: tracker.HotCall) -> None:
        paths.append(call.hot.path)
        begin(call)

    monkeypatch.setattr(tracker.HotCall, "begin", note)
    return paths


def test_a_hot_call_is_answered_as_by_asgi_byte_for_byte(
    tmp_path: Path, make_site: Callable[..., Site], hot_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_body": 128, "max_empty_polls": 0}
    direct = House(make_site(database=str(tmp_path / "direct.db"), **settings)).answers()
    assert len(hot_calls) > 30
    hot_calls.clear()
    monkeypatch.setattr(libraries, "HAS_SHORT_WAY", False)
    by_asgi = House(make_site(database=str(tmp_path / "asgi.db"), **settings)).answers()
    assert hot_calls == []
    for name, answers in direct.items():
        old = "an old client's" in name  # whose answers only the short way mends
        assert answers == by_asgi[name] or old, name
    assert b'"task":{"id":' in direct["a task"][0] and b'"updated":true' in direct["a task"][1]
    assert b'"held":true' in direct["more time"][1]


def test_the_same_work_is_done_without_asgi_and_by_it(
    tmp_path: Path, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(database: str) -> list[tuple]:
        site = make_site(database=str(tmp_path / database), max_body=128, max_empty_polls=0)
        House(site).answers()
        columns = "id, project, recipe, priority, status, retries, assignee, hash64"
        return site.read(f"SELECT {columns} FROM task ORDER BY id")

    direct = work("direct.db")
    monkeypatch.setattr(libraries, "HAS_SHORT_WAY", False)
    assert direct == work("asgi.db") != []


def test_a_cycle_of_a_worker_needs_no_asgi(site: Site, hot_calls: list[str]) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    worker.http.post("/task/extend", json={"task_id": task, "seconds": 1})
    assert worker.released(task)
    assert hot_calls == ["/task/submit", "/task/get/{project}", "/task/extend", "/task/release"]


def test_neither_does_one_in_batches(site: Site, hot_calls: list[str]) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": str(number)} for number in range(50)])
    tasks = worker.assign(project, count=50).json()["content"]["tasks"]
    updated = worker.http.post("/task/bulk_release", content=releases(*(task["id"] for task in tasks)))
    assert updated.json()["content"]["updated"] == [True] * 50
    assert hot_calls == ["/task/bulk_submit", "/task/get/{project}", "/task/bulk_release"]


@pytest.mark.parametrize("settings", [{"access_log": True}, {}])
def test_what_is_logged_of_each_request_goes_through_asgi(
    make_site: Callable[..., Site], hot_calls: list[str], settings: dict[str, Any]
) -> None:
    site = make_site(**settings)
    site.create_worker(project := site.admin.create_project()).submit(project)
    assert hot_calls == ([] if settings else ["/task/submit"])


def test_pages_of_other_origins_may_read_the_answer_of_a_hot_call(
    make_site: Callable[..., Site], hot_calls: list[str]
) -> None:
    site = make_site(cors_origins=("https://app.example.org",))
    worker = site.create_worker(project := site.admin.create_project())
    answer = worker.http.get(f"/task/get/{project}", headers={"Origin": "https://app.example.org"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example.org"
    assert hot_calls == ["/task/get/{project}"]


def test_a_fault_in_a_hot_call_is_logged_and_answered_and_the_next_call_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = site.create_worker(project := site.admin.create_project())
    with monkeypatch.context() as broken:
        broken.setattr(tracker, "why_nothing", None)
        answer = worker.assign(project)
    assert (answer.status_code, answer.json()["message"]) == (500, "Internal error")
    assert "GET /task/get/{project} failed" in caplog.text
    assert worker.assign(project).status_code == 200


def test_a_secret_that_was_right_on_a_connection_is_looked_at_again_each_time(site: Site) -> None:
    worker = site.create_worker(project := site.admin.create_project())
    assert worker.submit(project).status_code == 200
    assert worker.http.get(f"/task/get/{project}", headers={"X-Secret": "x"}).status_code == 401
    site.admin.post(f"/project/reject_request/{project}/{worker.id}")
    assert worker.submit(project).status_code == 403


# ── Clients that go ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The writer commits nothing until this is called."""
    go, commit = [], writer.Committer.try_to_commit

    async def wait(*args: Any) -> Any:
        while not go:
            await tracker.asyncio.sleep(0.005)
        return await commit(*args)

    def hold() -> Callable[[], None]:
        monkeypatch.setattr(writer.Committer, "try_to_commit", wait)
        return lambda: go.append(True)

    return hold


QUERIES = ["", "?count=1", "?count=20", "?wait=30"]


def with_one_task(site: Site) -> tuple[int, Worker]:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    return project, worker


def gone(line: Line, how: str) -> None:
    """The client is killed: its machine says that it has ended, or that the connection is void."""
    if how == "reset":
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.socket.close()


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("query", QUERIES)
def test_what_is_assigned_to_a_client_that_has_gone_is_ready_again_at_once(
    site: Site, held_back: Callable, query: str, how: str
) -> None:
    project, worker = with_one_task(site)
    go = held_back()
    line = Line(site.url, worker)
    line.send(line.request("GET", f"/task/get/{project}{query}"))
    time.sleep(0.1)  # it has come in
    gone(line, how)
    time.sleep(0.1)
    go()
    assert httpx.get(f"{site.url}/worker/stats").status_code == 200
    wait_until(lambda: site.read("SELECT COUNT(*) FROM task WHERE assignee IS NULL") == [(1,)])
    wait_until(lambda: worker.assigned(project))


@pytest.mark.parametrize("query", QUERIES[:3])
def test_a_client_that_has_ended_only_its_own_side_gets_its_task(site: Site, held_back: Callable, query: str) -> None:
    project, worker = with_one_task(site)
    go = held_back()
    with Line(site.url, worker) as line:
        line.send(line.request("GET", f"/task/get/{project}{query}"))
        line.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        go()
        answer = line.read()
        assert b'"recipe":"recipe"' in answer
        assert line.rest() == b"<end>"
    time.sleep(1.2)  # longer than the server lingers
    assert site.read("SELECT COUNT(*) FROM task WHERE assignee IS NOT NULL") == [(1,)]


def test_a_release_counts_whose_client_does_not_wait_for_the_answer(site: Site, held_back: Callable) -> None:
    project, worker = with_one_task(site)
    task, go = worker.assigned(project)["id"], held_back()
    line = Line(site.url, worker)
    line.send(line.request("POST", "/task/release", release(task)))
    time.sleep(0.1)
    gone(line, "reset")
    go()
    wait_until(lambda: site.read("SELECT COUNT(*) FROM task") == [(0,)])


def test_a_client_that_ends_its_side_in_the_middle_of_a_request_is_let_go(site: Site) -> None:
    _, worker = with_one_task(site)
    with Line(site.url, worker) as line:
        line.send(line.request("POST", "/task/submit", submit(1))[:-5])
        line.socket.shutdown(socket.SHUT_WR)
        assert line.rest() == b"<end>"
    assert site.read("SELECT COUNT(*) FROM task") == [(1,)]


def test_a_client_that_reads_late_gets_all_its_answers_in_their_order(make_site: Callable[..., Site]) -> None:
    site = make_site(max_empty_polls=0)
    _, worker = with_one_task(site)
    with Line(site.url, worker) as line:
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        long = line.request("POST", "/task/submit", submit(1, recipe="x" * 30_000))
        line.send(long + line.request("GET", "/task/get/1"))
        assert b'"ok":true' in line.read() and b'"recipe":"recipe"' in line.read()
        line.send(line.request("GET", "/task/get/1?count=1") * 200)
        time.sleep(0.5)
        answers = [line.read() for _ in range(200)]
        assert len(answers[0]) > 30_000 and all(b"No task" in answer for answer in answers[1:])


def test_an_idle_connection_is_closed_after_a_while(make_site: Callable[..., Site], monkeypatch: Any) -> None:
    monkeypatch.setattr(tracker, "uvicorn_config", with_keep_alive(1))
    site = make_site()
    project, worker = with_one_task(site)
    with Line(site.url, worker) as line:
        line.send(line.request("GET", f"/task/get/{project}"))
        assert b"recipe" in line.read()
        assert line.rest() == b"<end>"


def with_keep_alive(seconds: int) -> Callable:
    make = tracker.uvicorn_config

    def config(*args: Any) -> Any:
        made = make(*args)
        made.timeout_keep_alive = seconds
        return made

    return config


# ── Nothing is answered before it is on disk ──────────────────────────────────────────────────────────────────────────


STRACE = ["strace", "-f", "-y", "-e", "trace=fdatasync,fsync,write,writev,sendto,sendmsg", "-s", "40"]


@pytest.mark.skipif(sys.platform != "linux", reason="strace is Linux's")
def test_no_byte_of_an_ok_leaves_before_its_commit_is_on_disk(tmp_path: Path) -> None:
    if not libraries_found():
        pytest.skip("strace is not installed, or may not be used")
    config = tmp_path / "tracker.toml"
    config.write_text("port = 0\nopen_registration = true\n")
    command = [sys.executable, str(tracker.HERE / "tracker.py"), "serve", "--config", str(config)]
    trace = tmp_path / "trace"
    process = subprocess.Popen([*STRACE, "-o", str(trace), *command], stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", next(line for line in process.stdout if "http://" in line))[0]
        site = Site(url, MovedClock(), tracker.Settings(database=str(tmp_path / "tracker.db")))
        project = site.admin.create_project()
        worker = site.create_worker(project)
        for number in range(5):
            assert worker.submit(project, f"recipe {number}").status_code == 200
            assert worker.released(worker.assigned(project)["id"])
    finally:
        subprocess.run(["pkill", "-TERM", "-P", str(process.pid)], check=False)
        process.wait(30)
    synced, answers = False, 0
    for line in trace.read_text(errors="replace").splitlines():
        if re.search(r"pwrite64|wal>", line) and "sync" in line:
            synced = True
        if "socket" in line.lower() and "HTTP/1.1 200" in line:
            assert synced, line
            synced, answers = False, answers + 1
    assert answers >= 15


def libraries_found() -> bool:
    try:
        return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False
