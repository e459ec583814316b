"""Whom the rules about browsers and attempts let through: the programs that exist, behind a proxy with TLS."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import trustme
from conftest import Site, client, serving_in_thread, wait_until
from doors import House, NativeAgent, NativeClient, OtterClient, TheeyeAgent, TheeyeClient, TheeyeRobot
from native_doubles import Drone
from testflinger_doubles import Agent, CommandLine, DoubleAgent, DoubleClient, HAgent, HClient, SAgent, SClient

import tracker


class TlsProxy(http.server.BaseHTTPRequestHandler):
    """Passes each request on as nginx does with the lines of docs/operation.md, for tracker.example.org under TLS."""

    protocol_version = "HTTP/1.1"
    server_url: ClassVar[str]

    def pass_on(self) -> None:
        headers = {**dict(self.headers), "Host": "tracker.example.org"}
        headers |= {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "Accept-Encoding": "identity"}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with client(self.server_url) as passing:
            answer = passing.request(self.command, self.path, content=body, headers=headers)
        self.send_response(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        if answer.status_code != 204:
            self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do_DELETE = pass_on

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def far(make_site: Callable[..., Site]) -> Iterator[Site]:
    """A tracker on loopback whose clients come through the proxy; its admin does not."""
    site = make_site(testflinger_anonymous="always")
    with serving_in_thread(type("Proxy", (TlsProxy,), {"server_url": site.url})) as site.url:
        yield site


def doubles(command_line: type[CommandLine], agent: type[Agent]) -> tuple[type[DoubleClient], type[DoubleAgent]]:
    """A client and an agent of one generation of Testflinger."""
    return (
        type("Client", (DoubleClient,), {"program": command_line}),
        type("Agent", (DoubleAgent,), {"program": agent}),
    )


PAIRS: dict[str, tuple[type[NativeClient], type]] = {
    "native": (NativeClient, NativeAgent),
    "otter": (OtterClient, NativeAgent),
    "theeye": (TheeyeClient, TheeyeAgent),
    "theeye's robot": (TheeyeRobot, TheeyeAgent),
    "testflinger, older": doubles(SClient, SAgent),
    "testflinger, newer": doubles(HClient, HAgent),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_job_is_wanted_and_done_through_every_door(far: Site, pair: str) -> None:
    house = House(far, script="#!/bin/sh\necho done\n")  # some agents can do nothing else
    wants, does = (one(house) for one in PAIRS[pair])
    job = wants.submit()
    held = does.assign()
    does.log(held, "hello")
    does.succeed(held)
    assert wants.state(job) == wants.words["succeeded"]


def test_ten_drones_at_once_get_their_tasks(far: Site) -> None:
    project = far.admin.create_project(public=True)
    owner = far.create_worker(project)
    owner.bulk_submit([{"project": project, "recipe": f"{number}"} for number in range(20)])
    drones = [Drone(far.url) for _ in range(10)]

    def work(drone: Drone) -> None:
        for _ in range(2):
            task = drone.send("GET", f"task/get/{project}")["content"]["task"]["id"]
            body = {"message": "x", "scope": "x", "timestamp": 1}
            assert drone.send("POST", "log/info", body)["ok"]
            assert drone.send("POST", "task/release", {"task_id": task, "result": 0})["content"]["updated"]

    threads = [threading.Thread(target=work, args=(drone,)) for drone in drones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert far.admin.counts(project) == {"closed": 20}


def test_five_managers_and_many_workers_behind_one_address(site: Site) -> None:
    behind = {"X-Forwarded-For": "203.0.113.7"}
    for number in range(5):
        body = {"username": f"manager{number}", "password": "password"}
        with client(site.url, headers=behind) as http:
            assert http.post("/register", json=body).status_code == 200
            assert http.post("/project/create", json={"name": f"{number}", "public": False}).status_code == 200
            assert http.post("/logout").status_code == 204
            assert http.post("/login", json=body).status_code == 200
    with client(site.url, headers=behind) as http:
        assert {http.post("/worker/create", json={"alias": "x"}).status_code for _ in range(100)} == {200}


def run_worker(url: str, folder: Path, *options: str) -> subprocess.Popen:
    """`worker.py run` on another machine, whose system trusts who has signed the proxy's certificate."""
    command = [
        sys.executable,
        str(Path(tracker.__file__).with_name("worker.py")),
        "run",
        "--server",
        url,
        "--project=1",
    ]
    command += ["--no-wait", "--credentials", str(folder / "credentials.json"), *options]
    command += ["--", "sh", "-c", "echo done: {recipe}; echo {recipe} >> did"]
    environment = {**os.environ, "SSL_CERT_FILE": str(folder / "authority.pem")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


@pytest.mark.skipif(os.name != "posix", reason="runs sh")
def test_worker_py_runs_tasks_through_a_proxy_with_tls(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """It registers, works until nothing is left, and comes again, waits for a task, and is told to stop."""
    site, authority, tls = make_site(), trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    project = site.admin.create_project(public=True)
    owner = site.create_worker(project)
    template = {"project": project, "name": "job", "recipe": "a-job"}
    token = site.admin.post("/template/create", template).json()["content"]["template"]["id"]
    job = site.admin.post(f"/template/trigger/{token}", {}).json()["content"]["job"]["id"]
    for number in range(3):
        owner.submit(project, f"task-{number}")
    with serving_in_thread(type("Proxy", (TlsProxy,), {"server_url": site.url}), tls) as url:
        assert url.startswith("https://")
        with run_worker(url, tmp_path, "--until-empty") as first:
            said = first.communicate(timeout=120)[0]
        assert first.returncode == 0, said
        with run_worker(url, tmp_path) as second:
            owner.submit(project, "later")
            wait_until(lambda: site.admin.counts(project) == {"closed": 5})
            second.terminate()
            said = second.communicate(timeout=120)[0]
    assert sorted((tmp_path / "did").read_text().split()) == ["a-job", "later", "task-0", "task-1", "task-2"], said
    told = site.admin.get(f"/job/log/{job}").json()["content"]["entries"]
    assert "done: a-job" in [line["message"] for line in told]
    assert site.read("SELECT source, COUNT(*) FROM worker WHERE id <> ?", owner.id) == [("203.0.113.7", 1)]


def test_worker_py_speaks_to_it(far: Site) -> None:
    far.admin.create_project("seen by all", public=True)
    command = [sys.executable, str(Path(tracker.__file__).with_name("worker.py")), "status", "--server", far.url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "seen by all" in run.stdout, run.stderr


def test_a_button_of_theeye_on_another_site_starts_its_task(far: Site) -> None:
    """As its documentation has it: a form with the task's secret in its address."""
    house = House(far, script="#!/bin/sh\necho done\n")  # some agents can do nothing else
    robot = TheeyeRobot(house)
    browser = {"User-Agent": "Mozilla/5.0", "Origin": "null", "Sec-Fetch-Site": "cross-site", "Accept": "text/html"}
    for name, value in browser.items():
        robot.http.headers[name] = value
    assert robot.submit()


def test_node_s_fetch_is_no_browser(site: Site) -> None:
    node = {"User-Agent": "node", "Accept": "*/*", "Accept-Language": "*", "Sec-Fetch-Mode": "cors"}
    other = site.create_manager()
    headers = {**node, "Host": "host.docker.internal"}
    assert site.admin.http.get(f"/manager/promote/{other.id}", headers=headers).status_code == 204


def test_readme_s_lines_work_through_a_number_of_a_lan(make_site: Callable[..., Site]) -> None:
    """A container's port mapping: it listens beyond loopback, and is asked for as anything."""
    site = make_site(host="0.0.0.0")
    for host in "192.168.1.2:8080", "nas.lan:8080", "localhost:8080":
        with httpx.Client(base_url=site.url.replace("0.0.0.0", "127.0.0.1"), headers={"Host": host}) as http:
            browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/html"}
            assert http.get("/ui/", headers=browser).status_code == 200
            token = http.get("/ui/login", headers=browser).text.partition('name="token" value="')[2].partition('"')[0]
            fields = {"token": token, "username": "admin", "password": "password"}
            origin = {**browser, "Origin": f"http://{host}"}
            assert http.post("/ui/login", data=fields, headers=origin).status_code == 303
