"""The Testflinger dialect: its document's examples with the real curl, every endpoint, every status and error."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import json
import re
import shutil
import socket
import statistics
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import AtOnce, Site, client, wait_until
from test_pages import Tab

import tracker
import webhooks
from dialects.testflinger import domain as testflinger_domain
from dialects.testflinger import queues as testflinger_queues

NOBODY = "00000000-0000-0000-0000-000000000000"  # the id of no job
PHASES = ("setup", "provision", "firmware_update", "test", "allocate", "reserve", "cleanup")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
DAY = 24 * 3600


def basic(name: str, key: str) -> str:
    return base64.b64encode(f"{name}:{key}".encode()).decode()


def make_client(site: Site, name: str, role: str = "contributor", **limits: Any) -> str:
    """The key of a new client, made by a manager on the page for it."""
    lines = {
        limit: "\n".join(value if isinstance(value, list) else (f"{queue}={most}" for queue, most in value.items()))
        for limit, value in limits.items()
    }
    form = {"client_id": name, "role": role, **lines}
    page = ok(Tab(site.admin.http).post("/ui/testflinger/clients", form, follow_redirects=True)).text
    return re.search(r'id="fresh-key"[^>]*>([^<]+)<', page)[1]


def as_client(site: Site, name: str = "a-client", role: str = "contributor", **limits: Any) -> httpx.Client:
    """The connection of a new client that sends its key each time."""
    return client(site.url, auth=(name, make_client(site, name, role, **limits)))


def claims(token: str) -> dict[str, Any]:
    """What a JWT says."""
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


class Agent:
    """An agent as the server sees it: it tells its name first, and is known by a cookie from then on."""

    def __init__(self, url: str, name: str, **fields: Any):
        self.http, self.name = client(url), name
        self.tell(**fields)

    def tell(self, **fields: Any) -> httpx.Response:
        return ok(self.http.post(f"/v1/agents/data/{self.name}", json=fields))

    def polled(self, *queues: str) -> dict[str, Any] | None:
        """The job that the agent gets from these queues, or None when there is none for it."""
        return polled(self.http, *queues)

    def post_result(self, job: str, **fields: Any) -> httpx.Response:
        return ok(self.http.post(f"/v1/result/{job}", json=fields))

    def finish(self, job: str) -> None:
        self.post_result(job, job_state="complete")


class Lab:
    """A tracker that nobody needs credentials for. The verbs are those of a submitter."""

    def __init__(self, site: Site):
        self.site, self.http = site, client(site.url)

    def agent(self, name: str = "agent-1", **fields: Any) -> Agent:
        return Agent(self.site.url, name, **fields)

    def submit(self, queue: str = "myqueue", **fields: Any) -> str:
        """The id of a new job."""
        return submit(self.http, queue, **fields)

    def get(self, path: str, **query: Any) -> Any:
        """What an endpoint shows."""
        return ok(self.http.get(f"/v1{path}", params=query)).json()

    def post(self, path: str, body: Any) -> httpx.Response:
        return ok(self.http.post(f"/v1{path}", json=body))

    def state(self, job: str) -> str:
        return self.get(f"/result/{job}")["job_state"]

    def cancel(self, job: str) -> httpx.Response:
        return self.http.post(f"/v1/job/{job}/action", json={"action": "cancel"})

    def position(self, job: str) -> int:
        return int(ok(self.http.get(f"/v1/job/{job}/position")).text)

    def found(self, **query: Any) -> set[str]:
        return {job["job_id"] for job in self.get("/job/search", **query)}

    def finished(self, queue: str = "myqueue", **fields: Any) -> str:
        """A job that an agent has done."""
        job, agent = self.submit(queue, **fields), self.agent("finisher")
        assert agent.polled(queue)["job_id"] == job
        agent.finish(job)
        return job

    def jobs(self) -> int:
        return self.site.read("SELECT COUNT(*) FROM job")[0][0]

    def projects(self) -> set[str]:
        return {name for (name,) in self.site.read("SELECT name FROM project")}


@pytest.fixture
def lab(site: Site) -> Lab:
    return Lab(site)


def ok(response: httpx.Response) -> httpx.Response:
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    return response


def done(response: httpx.Response) -> bool:
    """Whether it was answered with the plain OK."""
    assert ok(response).text == "OK"
    assert response.headers["content-type"].startswith("text/plain")
    return True


def empty(response: httpx.Response) -> bool:
    """Whether it was answered that there is nothing, with nothing."""
    assert (response.status_code, response.content) == (204, b""), f"{response.status_code}: {response.text}"
    return True


def refused(response: httpx.Response, code: int, *words: str) -> bool:
    """Whether it was refused with this status, in the form of the dialect, with a reason that has these words."""
    assert response.status_code == code, f"{response.status_code}: {response.text}"
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"message", "detail"}
    assert body["message"] and isinstance(body["message"], str) and isinstance(body["detail"], dict)
    assert all(word in response.text for word in words), response.text
    return True


def wrong(response: httpx.Response, field: str, location: str = "json") -> bool:
    """Whether it was refused because of this one field."""
    assert refused(response, 422), response.text
    ((where, fields),) = response.json()["detail"].items()
    ((name, messages),) = fields.items()
    assert (where, re.split(r"[.[]", name)[0]) == (location, field), response.text
    assert messages and all(isinstance(message, str) for message in messages), response.text
    return True


def submit(http: httpx.Client, queue: str, **fields: Any) -> str:
    body = ok(http.post("/v1/job", json={"job_queue": queue, **fields})).json()
    assert list(body) == ["job_id"] and str(uuid.UUID(body["job_id"])) == body["job_id"]
    return body["job_id"]


def polled(http: httpx.Client, *queues: str) -> dict[str, Any] | None:
    response = http.get("/v1/job", params={"queue": queues})
    return None if response.status_code == 204 else ok(response).json()


def new_id() -> str:
    return str(uuid.uuid4())


# ── The document's examples ───────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES = r"""
## `[POST] /v1/job`
curl http://localhost:8000/v1/job -X POST \
  --header "Content-Type: application/json" \
  --data '{ "job_queue": "myqueue", "option":"foo" }'

## `[GET] /v1/job`
curl http://localhost:8000/v1/job?queue=foo\&queue=bar

## `[GET] /v1/job/search`
curl 'http://localhost:8000/v1/job/search?tags=foo&tags=bar&match=all'

## `[POST] /v1/result/<job_id>`
curl http://localhost:8000/v1/result/00000000-0000-0000-0000-000000000000 \
  -X POST --header "Content-Type: application/json" \
  --data '{ "exit_code": 0, "output":"foo" }'

## `[GET] /v1/result/<job_id>`
curl http://localhost:8000/v1/result/00000000-0000-0000-0000-000000000000 -X GET

## `[POST] /v1/result/<job_id>/artifact`
curl -X POST -F "file=@README.rst" localhost:8000/v1/result/00000000-0000-0000-0000-000000000000/artifact

## `[GET] /v1/result/<job_id>/artifact`
curl http://localhost:8000/v1/result/00000000-0000-0000-0000-000000000000/artifact \
  -X GET -O artifact.tar.gz

## `[POST] /v1/agents/queues`
curl http://localhost:8000/v1/agents/queues \
  -X POST --header "Content-Type: application/json" \
  --data '{ "myqueue": "queue 1", "myqueue2": "queue 2" }'

## `[GET] /v1/agents/queues`
curl http://localhost:8000/v1/agents/queues -X GET

## `[POST] /v1/agents/images`
curl http://localhost:8000/v1/agents/images \
  -X POST --header "Content-Type: application/json" \
  --data '{ "myqueue": { "image1": "url: http://place/imgae1" }}'

## `[GET] /v1/agents/images/<queue>`
curl http://localhost:8000/v1/agents/images/myqueue -X GET

## `[POST] /v1/job/<job_id>/action`
curl http://localhost:8000/v1/job/00000000-0000-0000-0000-000000000000/action \
  -X POST --header "Content-Type: application/json" \
  --data '{ "action":"cancel" }'

## `[GET] /v1/agents/data`
curl -X GET http://localhost:8000/v1/agents/data

## `[POST] /v1/agents/provision_logs/<agent_name>`
curl http://localhost:8000/v1/agents/provision_logs/myagent \
  -X POST --header "Content-Type: application/json" \
  --data '{ "job_id": "00000000-0000-0000-0000-000000000000", \
            "exit_code": 1, "detail":"foo" }'

## `[POST] /v1/job/<job_id>/events`
curl -X POST \
  -H "Content-Type: application/json" \
  -d '{"agent_id": "agent-00", "job_queue": "myqueue", "job_status_webhook": "http://mywebhook", "events": [{"event_name": "started_provisioning", "timestamp": "2024-05-03T19:11:33.541130+00:00", "detail": "my_detailed_message"}]}' http://localhost:8000/v1/job/00000000-0000-0000-0000-000000000000/events

## `[GET] /v1/queues/wait_times`
curl http://localhost:8000/v1/queues/wait_times?queue=foo\&queue=bar

## `[GET] /v1/queues/<queue_name>/agents`
curl http://localhost:8000/v1/queues/foo/agents

## `[POST] /v1/oauth2/token`
curl http://localhost:8000/v1/oauth2/token \
  -X GET --header "Authorization: Basic ABCDEF12345"
"""  # noqa: E501
LINES = dict(re.findall(r"^## `(.*)`\n(curl .*(?:\n.+)*)", EXAMPLES, re.MULTILINE))

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


class Shell:
    """A shell in a folder with a README.rst. What curl does not say by itself comes from its configuration file."""

    def __init__(self, lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.address = folder, "localhost:" + lab.site.url.rpartition(":")[2]
        (folder / "README.rst").write_bytes(b"Read me\n\0\xff")
        # The -O of the document's example takes no name: the name becomes a second address, which must lead nowhere.
        options = 'silent\nnoproxy = "*"\nmax-time = 20\nconnect-to = "artifact.tar.gz:80:127.0.0.1:1"\n'
        (folder / ".curlrc").write_text(options + r'write-out = "|%{http_code}\n"')
        monkeypatch.setenv("CURL_HOME", str(folder))

    def run(self, name: str, **replaced: str) -> tuple[str, int]:
        """What an example prints, and the status. `replaced` has by name what stands instead of a part of it."""
        line = LINES[name].replace("localhost:8000", self.address)
        for old, new in replaced.items():
            assert PARTS[old] in line
            line = line.replace(PARTS[old], new)
        made = subprocess.run(["sh", "-c", line], cwd=self.folder, capture_output=True, text=True, timeout=60)
        body, _, code = made.stdout.split("|000")[0].rpartition("|")
        assert code, (line, made)
        return body, int(code)


PARTS = {
    "job": NOBODY,
    "action": "cancel",
    "queues": "?queue=foo\\&queue=bar",
    "webhook": "http://mywebhook",
    "credentials": "ABCDEF12345",
}


@pytest.fixture
def shell(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    folder = tmp_path / "shell"
    folder.mkdir()
    return Shell(lab, folder, monkeypatch)


def test_there_is_a_curl_line_for_each_of_the_documents_headings() -> None:
    assert len(LINES) == EXAMPLES.count("## ") == EXAMPLES.count("curl ") == 18


@needs_curl
def test_the_documents_job_is_submitted_and_an_agent_gets_all_of_it(lab: Lab, shell: Shell) -> None:
    body, code = shell.run("[POST] /v1/job")
    assert code == 200
    given = lab.agent().polled("myqueue")
    assert given["job_id"] == json.loads(body)["job_id"]
    assert (given["job_queue"], given["option"]) == ("myqueue", "foo")


@needs_curl
def test_the_document_asks_two_queues_for_one_job(lab: Lab, shell: Shell) -> None:
    assert shell.run("[GET] /v1/job") == ("", 204)
    jobs = [lab.submit("bar", name="first"), lab.submit("foo", name="second")]
    for job in jobs:
        body, code = shell.run("[GET] /v1/job")
        assert (code, json.loads(body)["job_id"]) == (200, job)
    assert shell.run("[GET] /v1/job") == ("", 204)
    assert shell.run("[GET] /v1/job", queues="")[1] == 400


@needs_curl
def test_the_documents_search_finds_jobs_with_both_tags(lab: Lab, shell: Shell) -> None:
    job = lab.submit(tags=["foo", "bar"])
    lab.submit(tags=["foo"])
    body, code = shell.run("[GET] /v1/job/search")
    assert (code, [found["job_id"] for found in json.loads(body)]) == (200, [job])


@needs_curl
def test_the_documents_result_is_kept_for_a_job_that_nobody_knows(shell: Shell) -> None:
    assert shell.run("[GET] /v1/result/<job_id>") == ("", 204)
    assert shell.run("[POST] /v1/result/<job_id>") == ("OK", 200)
    body, code = shell.run("[GET] /v1/result/<job_id>")
    assert code == 200
    assert json.loads(body).items() >= {"exit_code": 0, "output": "foo"}.items()


@needs_curl
def test_the_documents_artifact_goes_up_and_comes_down(shell: Shell) -> None:
    assert shell.run("[GET] /v1/result/<job_id>/artifact") == ("", 204)
    assert shell.run("[POST] /v1/result/<job_id>/artifact") == ("OK", 200)
    assert shell.run("[GET] /v1/result/<job_id>/artifact") == ("", 200)
    assert (shell.folder / "artifact").read_bytes() == (shell.folder / "README.rst").read_bytes()


@needs_curl
def test_the_documents_queues_and_images_are_shown_as_posted(shell: Shell) -> None:
    assert shell.run("[POST] /v1/agents/queues")[1] == 200
    body, code = shell.run("[GET] /v1/agents/queues")
    assert (code, json.loads(body)) == (200, {"myqueue": "queue 1", "myqueue2": "queue 2"})
    assert shell.run("[POST] /v1/agents/images")[1] == 200
    body, code = shell.run("[GET] /v1/agents/images/<queue>")
    assert (code, json.loads(body)) == (200, {"image1": "url: http://place/imgae1"})


@needs_curl
def test_the_documents_action_cancels_a_job_once(lab: Lab, shell: Shell) -> None:
    assert shell.run("[POST] /v1/job/<job_id>/action")[1] == 404
    job = lab.submit()
    assert shell.run("[POST] /v1/job/<job_id>/action", job=job, action="lift")[1] == 422
    assert shell.run("[POST] /v1/job/<job_id>/action", job=job) == ("OK", 200)
    assert lab.state(job) == "cancelled"
    assert shell.run("[POST] /v1/job/<job_id>/action", job=job)[1] == 400
    assert shell.run("[POST] /v1/job/<job_id>/action", job=lab.finished())[1] == 400


@needs_curl
def test_the_documents_provision_log_is_read_as_the_shell_sends_it(lab: Lab, shell: Shell) -> None:
    """Between single quotes the backslash at the end of the line is sent, and JSON knows none there."""
    assert shell.run("[GET] /v1/agents/data") == ("[]", 200)
    assert shell.run("[POST] /v1/agents/provision_logs/<agent_name>")[1] == 404
    lab.agent("myagent")
    assert shell.run("[POST] /v1/agents/provision_logs/<agent_name>")[1] == 200
    body, code = shell.run("[GET] /v1/agents/data")
    (agent,) = json.loads(body)
    assert (code, agent["name"]) == (200, "myagent")
    assert (agent["provision_streak_type"], agent["provision_streak_count"]) == ("fail", 1)


@needs_curl
def test_the_documents_wait_times_and_agents_of_a_queue(lab: Lab, shell: Shell) -> None:
    assert shell.run("[GET] /v1/queues/wait_times") == ("{}", 200)
    assert shell.run("[GET] /v1/queues/<queue_name>/agents") == ("[]", 200)
    lab.finished("foo")
    lab.agent("myagent", queues=["foo"])
    body, code = shell.run("[GET] /v1/queues/wait_times")
    assert (code, list(json.loads(body))) == (200, ["foo"])
    body, code = shell.run("[GET] /v1/queues/<queue_name>/agents")
    assert (code, [agent["name"] for agent in json.loads(body)]) == (200, ["myagent"])


@pytest.fixture
def hooked(make_site: Callable[..., Site]) -> Lab:
    """A lab whose tracker may send webhooks to this machine."""
    return Lab(make_site(webhook_networks=("127.0.0.0/8",)))


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes webhooks: keeps what was sent, and answers with a status and a text."""

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"thank you")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[http.server.HTTPServer]:
    """A server that listens from the start, and answers once `serve` was called."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.received, server.status, server.url = [], 200, f"http://127.0.0.1:{server.server_port}/hook"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@needs_curl
def test_the_documents_event_is_passed_on_to_the_webhook(
    hooked: Lab, receiver: http.server.HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(hooked, tmp_path, monkeypatch)
    hooked.submit("myqueue", job_id=NOBODY)
    hooked.agent("agent-00").polled("myqueue")
    assert shell.run("[POST] /v1/job/<job_id>/events", webhook=receiver.url) == ("thank you", 200)
    event = {"event_name": "started_provisioning", "timestamp": "2024-05-03T19:11:33.541130+00:00"}
    events = [{**event, "detail": "my_detailed_message"}]
    assert receiver.received == [("/hook", {"agent_id": "agent-00", "job_queue": "myqueue", "events": events})]
    assert shell.run("[POST] /v1/job/<job_id>/events", webhook="mywebhook")[1] == 400
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        slow = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert shell.run("[POST] /v1/job/<job_id>/events", webhook=slow)[1] == 504


@needs_curl
def test_the_document_gets_a_token_with_get(lab: Lab, shell: Shell) -> None:
    assert shell.run("[POST] /v1/oauth2/token")[1] == 401
    credentials = basic("myclient", make_client(lab.site, "myclient"))
    body, code = shell.run("[POST] /v1/oauth2/token", credentials=credentials)
    assert (code, claims(body)["permissions"]["client_id"]) == (200, "myclient")


# ── Methods, paths and errors ─────────────────────────────────────────────────────────────────────────────────────────

METHODS = {
    "/v1": {"GET"},
    "/v1/": {"GET"},
    "/v1/job": {"GET", "POST"},
    "/v1/job/search": {"GET"},
    f"/v1/job/{NOBODY}": {"GET"},
    f"/v1/job/{NOBODY}/position": {"GET"},
    f"/v1/job/{NOBODY}/action": {"POST"},
    f"/v1/job/{NOBODY}/attachments": {"GET", "POST"},
    f"/v1/job/{NOBODY}/events": {"POST"},
    f"/v1/result/{NOBODY}": {"GET", "POST"},
    f"/v1/result/{NOBODY}/artifact": {"GET", "POST"},
    f"/v1/result/{NOBODY}/output": {"GET", "POST"},
    f"/v1/result/{NOBODY}/serial_output": {"GET", "POST"},
    f"/v1/result/{NOBODY}/log/output": {"GET", "POST"},
    f"/v1/result/{NOBODY}/log/serial": {"GET", "POST"},
    "/v1/agents/queues": {"GET", "POST"},
    "/v1/agents/images": {"POST"},
    "/v1/agents/images/q": {"GET"},
    "/v1/agents/data": {"GET"},
    "/v1/agents/data/a": {"GET", "POST"},
    "/v1/agents/provision_logs/a": {"POST"},
    "/v1/queues/wait_times": {"GET"},
    "/v1/queues/q/agents": {"GET"},
    "/v1/queues/q/jobs": {"GET"},
    "/v1/oauth2/token": {"GET", "POST"},
    "/v1/oauth2/refresh": {"POST"},
    "/v1/oauth2/revoke": {"POST"},
    "/v1/restricted-queues": {"GET"},
    "/v1/restricted-queues/q": {"GET", "POST", "DELETE"},
    "/v1/client-permissions": {"GET", "POST"},
    "/v1/client-permissions/c": {"GET", "PUT", "DELETE"},
    "/v1/secrets/c/path": {"PUT", "DELETE"},
}


def test_the_root_says_that_the_server_is_alive(lab: Lab) -> None:
    for path in ("/v1", "/v1/"):
        response = ok(lab.http.get(path))
        assert response.headers["content-type"].startswith("text/plain") and response.text.strip()


def test_a_method_that_an_endpoint_has_not_is_refused_and_the_others_are_told(lab: Lab) -> None:
    for path, methods in METHODS.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
            response = lab.http.request(method, path)
            assert refused(response, 405), (method, path)
            assert set(re.split(", *", response.headers["allow"])) - {"HEAD", "OPTIONS"} == methods, (method, path)


def test_the_health_check_may_be_a_head(lab: Lab) -> None:
    assert lab.http.head("/v1").status_code == lab.http.head("/v1/").status_code == 200


def test_unknown_paths_are_not_found_in_the_dialects_form(lab: Lab) -> None:
    for path in ("x", "jobs", "jobs/", f"job/{NOBODY}/x", f"result/{NOBODY}/log/x/y", "agents", "oauth2", "queues/q"):
        for method in ("GET", "POST"):
            assert refused(lab.http.request(method, f"/v1/{path}"), 404), path


def test_the_current_client_is_told_that_there_is_no_oidc(lab: Lab) -> None:
    assert lab.http.post("/oidc/auth-init").status_code == 404
    assert lab.http.post("/oidc/auth-init", json={}).status_code == 404


NO_ID = ("1", "x", f"{NOBODY}0", NOBODY[:-1], "é", "'", "%00", "0" * 400)
OF_JOBS = [path.replace(NOBODY, "{}") for path in METHODS if NOBODY in path]


def test_what_is_no_uuid_is_no_jobs_id(lab: Lab) -> None:
    bodies = {
        "action": {"json": {"action": "cancel"}},
        "events": {"json": {"job_status_webhook": "http://x.example"}},
        "artifact": {"files": {"file": b"x"}},
        "attachments": {"files": {"file": b"x"}},
        "log/output": {"json": FRAGMENT},
        "log/serial": {"json": FRAGMENT},
    }
    for path in OF_JOBS:
        for method in METHODS[path.replace("{}", NOBODY)]:
            body = bodies.get(path.partition("{}/")[2], {"json": {}}) if method == "POST" else {}
            for text in NO_ID:
                assert refused(lab.http.request(method, path.format(text), **body), 400), (method, path, text)


FRAGMENT = {"fragment_number": 0, "timestamp": "2026-01-01T00:00:00+00:00", "phase": "test", "log_data": "x"}
NO_TEXT = (7, True, ["x"], {"x": "y"})
NO_NUMBER = ("soon", "1.5", "", [], {}, "1" * 400)
NO_OBJECT = ("x", 7, ["x"])
NO_LIST_OF_TEXT = ("x", 7, {"x": "y"}, [7], [["x"]], [None])

WRONG_FIELDS: dict[str, dict[str, tuple]] = {
    "/v1/job": {
        "job_queue": (*NO_TEXT, None, ""),
        **dict.fromkeys(("job_id", "parent_job_id", "name", "job_status_webhook"), NO_TEXT),
        "tags": NO_LIST_OF_TEXT,
        "exclude_agents": NO_LIST_OF_TEXT,
        **dict.fromkeys(("global_timeout", "output_timeout", "allocation_timeout", "job_priority"), NO_NUMBER),
        **dict.fromkeys(("provision_data", "firmware_update_data", "allocate_data", "test_data"), NO_OBJECT),
        "reserve_data": (
            *NO_OBJECT,
            {"ssh_keys": ["me"]},
            {"ssh_keys": "lp:me"},
            {"ssh_keys": ["lp:me"] * 1001},
            {"timeout": "long"},
        ),
    },
    f"/v1/result/{NOBODY}": {
        **dict.fromkeys((f"{phase}_status" for phase in PHASES), NO_NUMBER[:-1]),
        **dict.fromkeys((f"{phase}_{kind}" for phase in PHASES for kind in ("output", "serial")), NO_TEXT),
        "status": (*NO_OBJECT, {"test": "well"}),
        "device_info": NO_OBJECT,
        "job_state": NO_TEXT,
    },
    f"/v1/result/{NOBODY}/log/output": {
        "fragment_number": (*NO_NUMBER, None),
        "timestamp": (*NO_TEXT, "today", None),
        "phase": (*NO_TEXT, "dance", None),
        "log_data": (*NO_TEXT, None),
    },
    "/v1/agents/data/a": {
        **dict.fromkeys(("identifier", "job_id", "location", "provision_type", "state", "comment"), NO_TEXT),
        **dict.fromkeys(("queues", "log"), NO_LIST_OF_TEXT),
    },
    "/v1/agents/provision_logs/a": {
        "job_id": (*NO_TEXT, None),
        "detail": NO_TEXT,
        "exit_code": (*NO_NUMBER, None),
    },
    f"/v1/job/{NOBODY}/action": {"action": (*NO_TEXT, None, "lift", "")},
}
ACCEPTED: dict[str, dict[str, Any]] = {
    "/v1/job": {"job_queue": "q"},
    f"/v1/result/{NOBODY}/log/output": FRAGMENT,
    "/v1/agents/provision_logs/a": {"job_id": NOBODY, "exit_code": 0, "detail": ""},
    f"/v1/job/{NOBODY}/action": {"action": "cancel"},
    "/v1/client-permissions": {"client_id": "c", "client_secret": "that nobody guesses"},
    "/v1/secrets/c/path": {"value": "x"},
}


@pytest.mark.parametrize("path", WRONG_FIELDS)
def test_a_field_of_the_wrong_type_is_refused_by_its_name_and_nothing_is_done(lab: Lab, path: str) -> None:
    lab.agent("a")
    accepted = ACCEPTED.get(path, {})
    before = lab.site.dump()
    for field, values in WRONG_FIELDS[path].items():
        for value in values:
            assert wrong(lab.http.post(path, json={**accepted, field: value}), field), (field, value)
        if field in accepted and field != "detail":
            without = {name: value for name, value in accepted.items() if name != field}
            assert wrong(lab.http.post(path, json=without), field)
    assert lab.site.dump() == before


TAKE_JSON = [
    "/v1/job",
    f"/v1/job/{NOBODY}/action",
    f"/v1/job/{NOBODY}/events",
    f"/v1/result/{NOBODY}",
    f"/v1/result/{NOBODY}/log/output",
    "/v1/agents/queues",
    "/v1/agents/images",
    "/v1/agents/data/a",
    "/v1/agents/provision_logs/a",
]


def test_a_body_that_is_no_json_object_is_refused(lab: Lab) -> None:
    before = lab.site.dump()
    for path in TAKE_JSON:
        for body in (b"{", b"{]", b'{"job_queue": "q"', b"\xff", b'{"a": 1} x', b'{"job_queue": "q\\\n"}', b"[" * 5000):
            response = lab.http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert refused(response, 400), (path, body)
        for body in (b"[]", b"7", b'"x"'):
            assert refused(lab.http.post(path, content=body), 422, "an object is expected"), (path, body)
    assert lab.site.dump() == before


@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_a_call_that_may_have_no_body_may_have_a_blank_one(lab: Lab, body: bytes) -> None:
    lab.submit("q")
    for method in ("POST", "DELETE"):
        assert refused(lab.http.request(method, "/v1/restricted-queues/q", content=body), 401, "admin client")


def test_json_is_read_whatever_its_content_type(lab: Lab) -> None:
    for content_type in ("application/x-www-form-urlencoded", "text/plain", ""):
        headers = {"Content-Type": content_type} if content_type else {}
        ok(lab.http.post("/v1/job", content=b'{"job_queue": "q"}', headers=headers))
    assert lab.jobs() == 3


def test_an_internal_error_is_not_told_to_the_caller(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(tracker, "insert_job_alone", fail)
    monkeypatch.setattr(tracker, "insert_job", fail)
    response = lab.http.post("/v1/job", json={"job_queue": "q"})
    assert refused(response, 500) and "inside" not in response.text
    assert lab.jobs() == 0


# ── Submission ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_agent_gets_all_that_was_submitted_also_unknown_fields(lab: Lab) -> None:
    fields = {
        "name": "a job",
        "tags": ["x"],
        "parent_job_id": NOBODY,
        "job_status_webhook": "http://hook.example",
        "global_timeout": 60,
        "output_timeout": 30,
        "allocation_timeout": 20,
        "provision_data": {"distro": "noble", "more": [1, {"é": None}]},
        "firmware_update_data": {"version": "latest"},
        "allocate_data": {"allocate": True},
        "test_data": {"test_cmds": "echo hello"},
        "reserve_data": {"ssh_keys": ["lp:me", "gh:you"], "timeout": 60},
        "option": "foo",
        "options": {"deep": [1.5, "2", None, True]},
    }
    job = lab.submit("q", **fields)
    shown = lab.get(f"/job/{job}")
    assert shown.items() >= {"job_id": job, "job_queue": "q", **fields}.items()
    given = lab.agent().polled("q")
    assert given.items() >= {"job_id": job, "job_queue": "q", **fields}.items()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", given["started_at"])
    assert set(given) - set(fields) <= {"job_id", "job_queue", "started_at", "attachments_status"}


def test_integers_may_come_as_numeric_strings(lab: Lab) -> None:
    lab.submit("q", global_timeout="60", output_timeout="30", job_priority="0")
    given = lab.agent().polled("q")
    assert [int(given[name]) for name in ("global_timeout", "output_timeout", "job_priority")] == [60, 30, 0]
    ok(lab.http.post(f"/v1/result/{NOBODY}", json={"test_status": "7"}))
    assert lab.get(f"/result/{NOBODY}") == {"job_state": "waiting", "test_status": 7}


DURATIONS = [
    *(
        (60, 60),
        (60.0, 60),
        ("60", 60),
        (" 60 ", 60),
        ("0", 0),
        ("90s", 90),
        ("30m", 1800),
        ("1h", 3600),
        ("6h", 21600),
    ),
    *(("3s", 3), ("3sec", 3), ("1second", 1), ("3seconds", 3), ("30min", 1800), ("1minute", 60), ("3 minutes", 180)),
    *(("2H", 7200), ("5hour", 18000), ("2hours", 7200), ("1h30m", 5400), ("30m1h", 5400), ("2 Hours 30 MIN", 9000)),
    *(("0d1h", 3600), ("0Day2hours", 7200), ("0days", 0)),
]


def test_a_reservation_may_be_written_as_a_duration_and_reaches_the_agent_in_seconds(lab: Lab) -> None:
    for timeout, seconds in DURATIONS:
        job = lab.submit("q", reserve_data={"ssh_keys": ["gh:me"], "timeout": timeout})
        for given in (lab.get(f"/job/{job}"), polled(lab.http, "q")):
            assert given["reserve_data"] == {"ssh_keys": ["gh:me"], "timeout": seconds}, timeout
            assert type(given["reserve_data"]["timeout"]) is int, timeout
    too_long = "9" * 30 + "d", "1s" * 51
    for timeout in ("h", "1h30", "1 week", "-1h", -1, [], True, "", "1.5h", "1e3", 1.5, "hm", "1 0", *too_long):
        body = {"job_queue": "q", "reserve_data": {"timeout": timeout}}
        assert wrong(lab.http.post("/v1/job", json=body), "reserve_data"), timeout


def test_a_jobs_id_may_be_brought_along_once(lab: Lab) -> None:
    job = new_id()
    assert lab.submit("q", job_id=job) == job
    assert lab.get(f"/job/{job}")["job_id"] == job
    for text in (job, job.upper(), job.replace("-", "")):
        assert wrong(lab.http.post("/v1/job", json={"job_queue": "r", "job_id": text}), "job_id"), text
    for text in ("1", "x" * 36):
        assert refused(lab.http.post("/v1/job", json={"job_queue": "q", "job_id": text}), 400), text
    assert lab.jobs() == 1


def test_a_job_with_its_own_id_that_is_submitted_again_is_the_one_that_there_is(lab: Lab) -> None:
    job = new_id()
    body = {"job_queue": "q", "job_id": job, "global_timeout": "60", "reserve_data": {"timeout": "1h"}, "tags": ["x"]}
    owner, other = as_client(lab.site, "owner"), as_client(lab.site, "other")
    for _ in range(2):
        assert ok(owner.post("/v1/job", json=body)).json() == {"job_id": job}
    for caller in (other, lab.http):
        assert wrong(caller.post("/v1/job", json=body), "job_id")
    for change in ({"tags": ["y"]}, {"global_timeout": 61}, {"name": "x"}):
        assert wrong(owner.post("/v1/job", json={**body, **change}), "job_id"), change
    agent = lab.agent()
    assert agent.polled("q")["job_id"] == job
    for finish in (agent.finish, lambda job: None):
        assert ok(owner.post("/v1/job", json=body)).json() == {"job_id": job}
        finish(job)
    assert (lab.jobs(), agent.polled("q")) == (1, None)


def test_a_job_can_be_asked_for_by_its_id_alone(lab: Lab) -> None:
    job = lab.submit("q", name="x")
    assert lab.get(f"/job/{job}")["name"] == lab.get(f"/job/{job.upper()}")["name"] == "x"
    assert empty(lab.http.get(f"/v1/job/{NOBODY}"))


def test_a_queue_is_made_by_its_first_job_and_its_name_may_be_any_text(lab: Lab) -> None:
    for queue in ("q", "a b/c?&=", "é", "x" * 200, "'\""):
        job = lab.submit(queue)
        given = lab.agent().polled(queue)
        assert (given["job_id"], given["job_queue"]) == (job, queue)


def test_a_name_that_no_queue_can_have_is_refused(lab: Lab) -> None:
    for queue in ("x" * 100_000, " ", "\n"):
        assert wrong(lab.http.post("/v1/job", json={"job_queue": queue}), "job_queue"), queue[:9]
    assert refused(lab.http.post("/v1/job", json={"job_queue": "a\0b"}), 400, "job_queue")
    assert lab.jobs() == 0


def test_a_job_that_is_too_large_is_refused(lab: Lab) -> None:
    assert refused(lab.http.post("/v1/job", json={"job_queue": "q", "option": "x" * 2**22}), 413)
    assert lab.jobs() == 0


def test_beyond_so_many_queues_only_known_ones_take_jobs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testflinger_queues, "MOST_QUEUES", 2)
    lab.submit("a")
    lab.post("/agents/queues", {"b": ""})
    assert wrong(lab.http.post("/v1/job", json={"job_queue": "c"}), "job_queue")
    lab.submit("b")
    assert lab.projects() == {"a", "b"}


def test_a_queue_takes_jobs_as_fast_as_its_managers_allow(lab: Lab) -> None:
    lab.post("/agents/queues", {"q": ""})
    lab.site.admin.update_project(lab.site.read("SELECT id FROM project")[0][0], submit_rate=0.01)
    lab.submit("q")
    response = lab.http.post("/v1/job", json={"job_queue": "q"})
    assert refused(response, 429) and 90 <= int(response.headers["retry-after"]) <= 100
    lab.site.clock.pass_time(101)
    lab.submit("q")


# ── Who gets which job ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_highest_priority_goes_first_and_then_the_oldest_whatever_the_order_of_queues(lab: Lab) -> None:
    http = as_client(lab.site, max_priority={"*": 100})
    jobs = {
        name: submit(http, queue, job_priority=priority)
        for name, queue, priority in (
            ("old", "a", 0),
            ("low", "a", -5),
            ("high", "b", 10),
            ("old too", "b", 0),
            ("higher", "c", 20),
            ("high too", "a", 10),
            ("elsewhere", "d", 100),
        )
    }
    agent = lab.agent()
    got = [agent.polled(*queues)["job_id"] for queues in (("a", "b", "c"), *[("c", "b", "a")] * 5)]
    assert got == [jobs[name] for name in ("higher", "high", "high too", "old", "old too", "low")]
    assert agent.polled("a", "b", "c", "nothing") is None


def test_a_poll_without_a_queue_is_refused(lab: Lab) -> None:
    for query in ("", "?queue=", "?queues=q", "?queue"):
        assert refused(lab.http.get(f"/v1/job{query}"), 400), query


def test_an_agent_need_not_have_told_its_name_to_get_a_job(lab: Lab) -> None:
    job = lab.submit("q")
    assert polled(lab.http, "q")["job_id"] == job
    assert polled(lab.http, "q") is None
    assert lab.state(job) == "running"
    done(lab.http.post(f"/v1/result/{job}", json={"job_state": "complete"}))
    assert lab.state(job) == "complete"


def test_a_job_that_excludes_every_agent_of_its_queue_is_refused(lab: Lab) -> None:
    for name in ("one", "two"):
        lab.agent(name, queues=["q"], state="waiting")
    body = {"job_queue": "q", "exclude_agents": ["two", "one", "other"]}
    assert refused(lab.http.post("/v1/job", json=body), 422)
    lab.submit("q", exclude_agents=["two"])
    lab.submit("unattended", exclude_agents=["two"])


def test_two_polls_at_once_never_get_the_same_job(lab: Lab) -> None:
    jobs = {lab.submit("q") for _ in range(20)}
    got: list[str] = []

    def poll() -> None:
        agent = client(lab.site.url)
        while job := polled(agent, "q"):
            got.append(job["job_id"])

    threads = [threading.Thread(target=poll) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), set(got)) == (20, jobs)


def test_a_job_waits_until_its_attachments_have_come(lab: Lab) -> None:
    attachments = {"attachments": [{"local": "a.txt", "agent": "b.txt"}]}
    for kind in ("provision_data", "firmware_update_data", "test_data"):
        job = lab.submit("q", **{kind: attachments})
        agent = lab.agent()
        assert agent.polled("q") is None
        assert empty(lab.http.get(f"/v1/job/{job}/attachments"))
        assert lab.get(f"/result/{job}")["job_state"] == "waiting"
        ok(lab.http.post(f"/v1/job/{job}/attachments", files={"file": ("attachments.tar.gz", b"\x1f\x8bpacked\0")}))
        given = agent.polled("q")
        assert (given["job_id"], given["attachments_status"]) == (job, "complete")
        down = ok(lab.http.get(f"/v1/job/{job}/attachments"))
        assert (down.content, down.headers["content-type"]) == (b"\x1f\x8bpacked\0", "application/gzip")
        assert refused(lab.http.post(f"/v1/job/{job}/attachments", files={"file": b"more"}), 422)
        assert lab.http.get(f"/v1/job/{job}/attachments").content == b"\x1f\x8bpacked\0"


def test_attachments_that_nobody_expects_are_refused(lab: Lab) -> None:
    plain, pending = lab.submit("q"), lab.submit("q", test_data={"attachments": [{"local": "a"}]})
    for job in (plain, NOBODY):
        assert refused(lab.http.post(f"/v1/job/{job}/attachments", files={"file": b"x"}), 422)
        assert empty(lab.http.get(f"/v1/job/{job}/attachments"))
    for form in ({"files": {"other": b"x"}}, {"data": {"file": "x"}}, {"content": b"x"}, {"json": {}}):
        assert refused(lab.http.post(f"/v1/job/{pending}/attachments", **form), 400), form
    assert lab.cancel(pending).status_code == 200
    assert refused(lab.http.post(f"/v1/job/{pending}/attachments", files={"file": b"x"}), 422)


def test_attachments_that_come_once_more_are_taken_for_a_repeat_and_the_first_stay(lab: Lab) -> None:
    job, agent = lab.submit("q", test_data={"attachments": [{"local": "a"}]}), lab.agent()
    path = f"/v1/job/{job}/attachments"
    for packed in (b"first", b"first", b"another"):
        assert done(lab.http.post(path, files={"file": packed}))
    assert agent.polled("q")["job_id"] == job
    assert done(lab.http.post(path, files={"file": b"first"}))
    assert refused(lab.http.post(path, files={"file": b"another"}), 422)
    agent.finish(job)
    assert done(lab.http.post(path, files={"file": b"first"}))
    assert refused(lab.http.post(path, files={"file": b"another"}), 422)
    assert lab.http.get(path).content == b"first"
    folder = Path(f"{lab.site.settings.database}.files")
    assert [file.read_bytes() for file in folder.iterdir()] == [b"first"]


# ── Asking about jobs ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_position_is_how_many_jobs_of_the_queue_go_first(lab: Lab) -> None:
    http = as_client(lab.site, max_priority={"q": 10})
    first, second = lab.submit("q"), lab.submit("q")
    lab.submit("other")
    urgent = submit(http, "q", job_priority=10)
    held = lab.submit("q", test_data={"attachments": [{"local": "a"}]})
    assert [lab.position(job) for job in (urgent, first, second)] == [0, 1, 2]
    assert ok(lab.http.get(f"/v1/job/{first}/position")).headers["content-type"].startswith("text/plain")
    assert lab.position(held) == 3
    assert polled(lab.http, "q")["job_id"] == urgent
    assert [lab.position(job) for job in (first, second)] == [0, 1]
    done(lab.cancel(first))
    assert lab.position(second) == 0
    for job in (urgent, first, NOBODY):
        assert refused(lab.http.get(f"/v1/job/{job}/position"), 410)


def test_jobs_are_found_by_any_or_all_of_their_tags_and_by_their_states(lab: Lab) -> None:
    completed, running = lab.finished(tags=["a", "b"]), lab.submit(tags=["a"])
    polled(lab.http, "myqueue")
    waiting, cancelled, plain = lab.submit(tags=["b", "é c"]), lab.submit(tags=["a", "b"]), lab.submit()
    lab.cancel(cancelled)
    for query, jobs in (
        ({}, {completed, running, waiting, cancelled, plain}),
        ({"tags": "a"}, {completed, running, cancelled}),
        ({"tags": ["a", "é c"]}, {completed, running, waiting, cancelled}),
        ({"tags": ["a", "b"], "match": "any"}, {completed, running, waiting, cancelled}),
        ({"tags": ["a", "b"], "match": "all"}, {completed, cancelled}),
        ({"tags": ["a", "x"], "match": "all"}, set()),
        ({"tags": "x"}, set()),
        ({"state": "waiting"}, {waiting, plain}),
        ({"state": ["running", "cancelled"]}, {running, cancelled}),
        ({"state": "complete"}, {completed}),
        ({"state": "completed"}, {completed}),
        ({"state": "active"}, {running, waiting, plain}),
        ({"state": "active", "tags": "b"}, {waiting}),
        ({"state": "reserve"}, set()),
    ):
        assert lab.found(**query) == jobs, query
    (found,) = lab.get("/job/search", state="running")
    assert (set(found), found["job_state"]) == ({"job_id", "created_at", "job_state"}, "running")
    assert re.match(TIME[:-1], found["created_at"])


def test_a_search_finds_more_jobs_than_are_looked_at_in_one_piece(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testflinger_domain, "PIECE_JOBS", 2)
    jobs = [lab.submit("q", tags=[tag for tag in "abc" if number % (ord(tag) - 95)]) for number in range(9)]
    for tag, divisor in (("a", 2), ("b", 3), ("c", 4)):
        assert lab.found(tags=tag) == {job for number, job in enumerate(jobs) if number % divisor}
    assert lab.found(tags=["a", "b"], match="all") == {jobs[number] for number in (1, 5, 7)}
    assert lab.found(tags=["a", "b"], state="running") == set()
    assert [job["job_id"] for job in lab.get("/queues/q/jobs")] == jobs
    assert [job["job_id"] for job in lab.get("/job/search", tags=["a", "b", "c"])] == jobs[1:]


def test_a_search_by_something_else_is_refused_by_the_parameters_name(lab: Lab) -> None:
    assert wrong(lab.http.get("/v1/job/search", params={"match": "most"}), "match", "query")
    assert wrong(lab.http.get("/v1/job/search", params={"state": "dancing"}), "state", "query")
    assert wrong(lab.http.get("/v1/job/search", params={"state": ["waiting", "dancing"]}), "state", "query")
    for state in ("waiting", "running", "allocated", "complete", "completed", "cancelled", *PHASES):
        assert lab.get("/job/search", state=state) == []


def test_a_search_finds_a_job_in_the_phase_that_its_agent_told(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    for phase in ("setup", "provision", "firmware_update", "test", "allocate", "allocated", "reserve"):
        agent.post_result(job, job_state=phase)
        assert (lab.state(job), lab.found(state=phase), lab.found(state="active")) == (phase, {job}, {job})
    agent.post_result(job, job_state="completed")
    assert lab.state(job) == "completed"
    assert lab.found(state="completed") == lab.found(state="complete") == {job}
    assert lab.found(state="active") == set()


def test_a_word_that_is_no_state_does_not_hide_a_job(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    for state in ("dancing", "", "waiting"):
        agent.post_result(job, job_state=state, test_status=0)
        assert (lab.state(job), lab.found(state="active")) == ("running", {job})


def test_a_job_that_nobody_knows_is_to_the_newer_generation_one_that_has_ended(make_site: Callable[..., Site]) -> None:
    lab = Lab(make_site(testflinger_version="2026"))
    for job in (NOBODY, lab.finished("q")):
        assert refused(lab.cancel(job), 400, "already completed or cancelled")


def test_a_job_can_be_cancelled_in_every_state_but_once_it_has_ended(lab: Lab) -> None:
    waiting, held = lab.submit("q"), lab.submit("q", test_data={"attachments": [{"local": "a"}]})
    running = lab.submit("r")
    agent = lab.agent()
    agent.polled("r")
    agent.post_result(running, job_state="test")
    for job in (waiting, held, running):
        assert done(lab.cancel(job))
        assert lab.state(job) == "cancelled"
        assert refused(lab.cancel(job), 400)
    assert agent.polled("q") is None
    assert refused(lab.cancel(lab.finished("s")), 400)
    assert refused(lab.cancel(NOBODY), 404)


# ── Results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_says_from_the_start_that_the_job_is_waiting(lab: Lab) -> None:
    job = lab.submit("q")
    assert lab.get(f"/result/{job}") == {"job_state": "waiting"}
    polled(lab.http, "q")
    assert lab.get(f"/result/{job}")["job_state"] == "running"
    assert empty(lab.http.get(f"/v1/result/{NOBODY}"))


def test_a_result_is_merged_field_by_field(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    agent.post_result(job, setup_status=0, setup_output="one", device_info={"a": 1, "b": 2}, exit_code=0)
    agent.post_result(job, test_status=2, test_serial="beep", setup_output="two", device_info={"b": 3})
    assert agent.post_result(job, job_state="test").text == "OK"
    wanted = {"setup_status": 0, "setup_output": "two", "test_status": 2, "test_serial": "beep", "exit_code": 0}
    assert lab.get(f"/result/{job}").items() >= {**wanted, "device_info": {"b": 3}, "job_state": "test"}.items()


def test_the_statuses_of_the_newer_agents_are_replaced_as_a_whole_and_shown_both_ways(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    agent.post_result(job, status={"setup": 0, "provision": 1})
    agent.post_result(job, status={"setup": 0, "test": 2}, device_info={"device": "x"})
    shown = lab.get(f"/result/{job}")
    assert shown.items() >= {"status": {"setup": 0, "test": 2}, "setup_status": 0, "test_status": 2}.items()
    assert "provision_status" not in shown


def test_the_logs_of_the_newer_agents_are_shown_as_the_output_of_each_phase(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    for number, (kind, phase, text) in enumerate(
        (
            ("output", "setup", "one\n"),
            ("output", "test", "two\n"),
            ("output", "test", "three"),
            ("serial", "test", "beep"),
        )
    ):
        post_fragment(agent.http, job, number, text, kind, phase=phase)
    shown = lab.get(f"/result/{job}")
    assert shown.items() >= {"setup_output": "one\n", "test_output": "two\nthree", "test_serial": "beep"}.items()


def test_results_of_a_job_that_nobody_knows_are_kept_but_make_no_job(lab: Lab) -> None:
    job = new_id()
    assert done(lab.http.post(f"/v1/result/{job}", json={"job_state": "test", "test_status": 1}))
    assert lab.get(f"/result/{job}").items() >= {"job_state": "test", "test_status": 1}.items()
    assert empty(lab.http.get(f"/v1/job/{job}"))
    assert lab.found() == set()


def test_what_is_reported_for_a_job_that_nobody_holds_is_kept_and_does_not_judge_its_run(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    told = {"exit_code": 0, "output": "foo", "test_status": 1, "status": {"setup": 1}, "device_info": {"a": 1}}
    assert done(lab.http.post(f"/v1/result/{job}", json=told))
    assert lab.get(f"/result/{job}").items() >= {**told, "setup_status": 1, "job_state": "waiting"}.items()
    agent.polled("q")
    agent.post_result(job, setup_status=0, job_state="complete")
    assert lab.site.read("SELECT state FROM job") == [("succeeded",)]
    shown = lab.get(f"/result/{job}")
    assert (shown["exit_code"], shown["setup_status"]) == (0, 0) and "test_status" not in shown
    cancelled = lab.submit("q")
    assert done(lab.cancel(cancelled)) and done(lab.http.post(f"/v1/result/{cancelled}", json=told))
    assert lab.get(f"/result/{cancelled}").items() >= told.items()


def test_a_result_that_is_too_large_is_refused_and_one_that_is_not_is_kept(lab: Lab) -> None:
    most = 16 * 2**20
    job = new_id()
    assert refused(lab.http.post(f"/v1/result/{job}", json={"test_output": "x" * most}), 413)
    assert empty(lab.http.get(f"/v1/result/{job}"))
    text = "x" * (most - 200)
    assert done(lab.http.post(f"/v1/result/{job}", json={"test_output": text}))
    assert lab.get(f"/result/{job}")["test_output"] == text


def test_the_core_job_ends_as_the_statuses_say(lab: Lab) -> None:
    results = {
        "succeeded": {"setup_status": 0, "test_status": 0},
        "succeeded ": {"status": {"setup": 0, "test": 0}},
        "failed": {"setup_status": 0, "test_status": 3},
        "failed ": {"status": {"provision": 1}},
    }
    agent = lab.agent()
    for state, result in results.items():
        job = lab.submit("q")
        agent.polled("q")
        agent.post_result(job, **result)
        agent.finish(job)
        assert lab.site.read("SELECT state FROM job ORDER BY id DESC LIMIT 1") == [(state.strip(),)], result


# ── Artifacts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_latest_artifact_comes_down_as_it_went_up(lab: Lab) -> None:
    job = lab.submit("q")
    for one in (job, new_id()):
        assert empty(lab.http.get(f"/v1/result/{one}/artifact"))
        for content in (b"\x1f\x8bfirst", b"\x1f\x8b\0second\xff" * 9):
            assert done(lab.http.post(f"/v1/result/{one}/artifact", files={"file": ("x.tar.gz", content)}))
            response = ok(lab.http.get(f"/v1/result/{one}/artifact"))
            assert response.content == content
            assert "content-encoding" not in response.headers
            assert response.headers["content-length"] == str(len(content))


def test_an_upload_that_has_no_file_is_refused(lab: Lab) -> None:
    for form in (
        {"files": {"other": b"x"}},
        {"data": {"file": "x"}},
        {"content": b"x"},
        {"json": {}},
        {"content": b"--y\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"--y\r\n", "headers": {"Content-Type": "multipart/form-data"}},
    ):
        response = lab.http.post(f"/v1/result/{NOBODY}/artifact", **form)
        assert refused(response, 400), form
    assert empty(lab.http.get(f"/v1/result/{NOBODY}/artifact"))


# ── Output ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def post_fragment(
    http: httpx.Client, job: str, number: int, text: str, kind: str = "output", **fields: Any
) -> httpx.Response:
    body = {**FRAGMENT, "fragment_number": number, "log_data": text, **fields}
    return ok(http.post(f"/v1/result/{job}/log/{kind}", json=body))


def fragments(lab: Lab, job: str, phase: str = "test", kind: str = "output", **query: Any) -> tuple[int, str]:
    """The number of the last fragment of a phase, and their texts."""
    shown = lab.get(f"/result/{job}/log/{kind}", phase=phase, **query)[kind]
    assert list(shown) == [phase]
    return shown[phase]["last_fragment_number"], shown[phase]["log_data"]


@pytest.mark.parametrize("kind", ["output", "serial_output"])
def test_raw_output_is_handed_out_once(lab: Lab, kind: str) -> None:
    known = lab.submit("q")
    polled(lab.http, "q")
    for job in (known, new_id()):
        path = f"/v1/result/{job}/{kind}"
        assert empty(lab.http.get(path))
        for text in ("one", "two é"):
            assert done(lab.http.post(path, content=text.encode()))
        response = ok(lab.http.get(path))
        assert (response.text, response.headers["content-type"].startswith("text/plain")) == ("one\ntwo é", True)
        assert empty(lab.http.get(path))
        done(lab.http.post(path, content=b"three\n"))
        assert lab.http.get(path).text == "three\n"
        other = "serial_output" if kind == "output" else "output"
        assert empty(lab.http.get(f"/v1/result/{job}/{other}"))


@pytest.mark.parametrize("kind", ["output", "serial"])
def test_fragments_can_be_read_again_and_posted_again(lab: Lab, kind: str) -> None:
    known = lab.submit("q")
    polled(lab.http, "q")
    for job in (known, new_id()):
        assert fragments(lab, job, kind=kind) == (-1, "")
        for number, text in ((0, "zero "), (1, "one "), (1, "one "), (0, "zero "), (2, "two")):
            assert post_fragment(lab.http, job, number, text, kind).text == "OK"
        for _ in range(2):
            assert fragments(lab, job, kind=kind) == (2, "zero one two")
        assert fragments(lab, job, kind=kind, start_fragment=1) == (2, "one two")
        assert fragments(lab, job, kind=kind, start_fragment=3)[1] == ""
        assert fragments(lab, job, "setup", kind=kind) == (-1, "")


def test_fragments_are_in_the_order_of_their_numbers_and_each_phase_counts_for_itself(lab: Lab) -> None:
    for number, phase in ((1, "test"), (0, "test"), (0, "setup")):
        post_fragment(lab.http, NOBODY, number, f"{phase} {number} ", phase=phase)
    shown = lab.get(f"/result/{NOBODY}/log/output")["output"]
    assert shown["test"] == {"last_fragment_number": 1, "log_data": "test 0 test 1 "}
    assert shown["setup"] == {"last_fragment_number": 0, "log_data": "setup 0 "}
    assert set(shown) <= set(PHASES)


@pytest.mark.parametrize(("raw", "kind"), [("output", "output"), ("serial_output", "serial")])
def test_output_without_numbers_is_numbered_over_all_phases(lab: Lab, raw: str, kind: str) -> None:
    job, agent = lab.submit("q", test_data={"test_cmds": "x"}), lab.agent()
    agent.polled("q")
    for state, text in (("setup", "one "), ("setup", "two "), ("test", "three "), ("reserve", "four")):
        agent.post_result(job, job_state=state)
        done(agent.http.post(f"/v1/result/{job}/{raw}", content=text))
    for start, phases in enumerate(("setup", "setup", "test", "cleanup")):
        assert fragments(lab, job, phases, kind, start_fragment=start)[0] >= start
    shown = lab.get(f"/result/{job}/log/{kind}", start_fragment=2)[kind]
    assert {phase: log for phase, log in shown.items() if log["log_data"]} == {
        "test": {"last_fragment_number": 2, "log_data": "three "},
        "cleanup": {"last_fragment_number": 3, "log_data": "four"},
    }


def test_output_without_a_number_follows_that_of_any_phase_with_one(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    post_fragment(agent.http, job, 7, "seven", phase="setup")
    agent.post_result(job, job_state="test")
    done(agent.http.post(f"/v1/result/{job}/output", content="eight"))
    assert fragments(lab, job, start_fragment=8) == (8, "eight")


@pytest.mark.parametrize("told", [{}, {"cleanup_output": "swept", "test_output": "tested"}])
def test_what_an_agent_writes_when_it_cleans_up_is_no_output_of_the_phase_before(
    lab: Lab, told: dict[str, str]
) -> None:
    fields = {"reserve_data": {"ssh_keys": ["lp:me"]}} if told else {}
    job, agent = lab.submit("q", test_data={"test_cmds": "x"}, **fields), lab.agent()
    agent.polled("q")
    for state, text in (("test", "tested"), ("reserve", "swept")):
        agent.post_result(job, job_state=state)
        done(agent.http.post(f"/v1/result/{job}/output", content=text))
    agent.post_result(job, test_status=0, cleanup_status=0, **told, job_state="complete")
    shown = lab.get(f"/result/{job}")
    written = {name: text for name, text in shown.items() if name.endswith("_output")}
    assert written == {"test_output": "tested", "cleanup_output": "swept"}


def test_output_of_an_agent_that_has_allocated_its_machine_is_of_that_phase(lab: Lab) -> None:
    job, agent = lab.submit("q", allocate_data={}), lab.agent()
    agent.polled("q")
    agent.post_result(job, job_state="allocated")
    done(agent.http.post(f"/v1/result/{job}/output", content="one of two"))
    assert fragments(lab, job, "allocate")[1] == "one of two"


def test_fragments_are_asked_for_from_a_time_on(lab: Lab) -> None:
    for number, minute in enumerate((10, 20, 30)):
        post_fragment(lab.http, NOBODY, number, f"{minute} ", timestamp=f"2026-01-01T12:{minute}:00+00:00")
    for start, text in (
        ("2026-01-01T12:00:00+00:00", "10 20 30 "),
        ("2026-01-01T12:20:00Z", "20 30 "),
        ("2026-01-01T13:25:00+01:00", "30 "),
        ("2026-01-01T12:30:00.5+00:00", ""),
    ):
        assert fragments(lab, NOBODY, start_timestamp=start)[1] == text, start
    assert fragments(lab, NOBODY, start_timestamp="2026-01-01T12:00:00+00:00", start_fragment=2) == (2, "30 ")


def test_logs_that_there_are_not_and_wrong_parameters_are_refused(lab: Lab) -> None:
    path = f"/v1/result/{NOBODY}/log"
    for kind in ("x", "serial_output"):
        assert refused(lab.http.get(f"{path}/{kind}"), 404)
        assert refused(lab.http.post(f"{path}/{kind}", json=FRAGMENT), 404)
    for name, value in {"phase": "dance", "start_fragment": "x", "start_timestamp": "today"}.items():
        assert wrong(lab.http.get(f"{path}/output", params={name: value}), name, "query")


def test_readers_of_both_generations_see_the_output_of_agents_of_both(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent()
    agent.polled("q")
    agent.post_result(job, job_state="setup")
    done(agent.http.post(f"/v1/result/{job}/output", content=b"raw"))
    assert fragments(lab, job, "setup")[1] == "raw"
    agent.post_result(job, job_state="test")
    post_fragment(agent.http, job, 0, "fragment")
    assert lab.http.get(f"/v1/result/{job}/output").text == "raw\nfragment"
    assert fragments(lab, job, "test") == (0, "fragment")


# ── Agents, queues and images ─────────────────────────────────────────────────────────────────────────────────────────


def test_queues_are_advertised_one_by_one(lab: Lab) -> None:
    assert lab.get("/agents/queues") == {}
    lab.post("/agents/queues", {"a": "first", "b": "second"})
    lab.post("/agents/queues", {"b": "changed", "c/d é": ""})
    lab.submit("never advertised")
    assert lab.get("/agents/queues") == {"a": "first", "b": "changed", "c/d é": ""}
    for value in NO_TEXT:
        assert wrong(lab.http.post("/v1/agents/queues", json={"new": "queue", "a": value}), "a")
    assert "new" not in lab.get("/agents/queues")


def test_the_images_of_a_queue_are_replaced_together(lab: Lab) -> None:
    lab.post(
        "/agents/images", {"a": {"x": "url: http://x.example", "y": {"distro": "noble"}}, "b": {"z": "channel: z"}}
    )
    lab.post("/agents/images", {"a": {"y": "changed"}})
    assert lab.get("/agents/images/a") == {"y": "changed"}
    assert lab.get("/agents/images/b") == {"z": "channel: z"}
    assert lab.get("/agents/images/unknown") == {}
    for value in ("x", 7, ["x"]):
        assert wrong(lab.http.post("/v1/agents/images", json={"b": {}, "a": value}), "a")
    assert lab.get("/agents/images/b") == {"z": "channel: z"}
    lab.post("/agents/images", {"a": {}})
    assert lab.get("/agents/images/a") == {}


def test_an_agent_is_known_by_a_cookie_that_no_script_and_no_other_site_gets(lab: Lab) -> None:
    response = ok(lab.http.post("/v1/agents/data/agent-1", json={"state": "waiting"}))
    assert response.json() == {"status": "OK"}
    cookie, *attributes = response.headers["set-cookie"].split("; ")
    assert cookie == "agent_name=agent-1"
    assert {"httponly", "samesite=strict"} <= {attribute.lower() for attribute in attributes}
    odd = lab.agent('é; "x"=,')
    lab.submit("q", exclude_agents=[odd.name])
    assert odd.polled("q") is None
    assert polled(client(lab.site.url), "q")


def test_what_an_agent_tells_is_changed_field_by_field(lab: Lab) -> None:
    fields = {
        "identifier": "id-1",
        "job_id": NOBODY,
        "location": "here",
        "provision_type": "maas",
        "state": "provision",
        "comment": "for repair",
        "queues": ["a", "b"],
    }
    agent = lab.agent(**fields, log=["secret line"], something={"new": True})
    agent.tell(state="waiting", job_id="", queues=["b", "c"])
    shown = lab.get("/agents/data/agent-1")
    changed = {"state": "waiting", "job_id": "", "queues": ["b", "c"]}
    assert shown.items() >= {"name": "agent-1", **fields, **changed}.items()
    assert "log" not in shown
    lab.agent("another one")
    assert {one["name"]: one for one in lab.get("/agents/data")}["agent-1"] == shown
    assert len(lab.get("/agents/data")) == 2
    assert refused(lab.http.get("/v1/agents/data/unknown"), 404)
    assert [len(lab.get(f"/queues/{queue}/agents")) for queue in "abc"] == [0, 1, 1]


def test_it_is_told_when_an_agent_was_last_heard_of(lab: Lab) -> None:
    agent = lab.agent()
    first = lab.get("/agents/data/agent-1")["updated_at"]
    lab.site.clock.pass_time(100)
    agent.tell(state="waiting")
    second = lab.get("/agents/data/agent-1")["updated_at"]
    assert re.fullmatch(TIME, first) and re.fullmatch(TIME, second)
    assert datetime.fromisoformat(second) - datetime.fromisoformat(first) >= timedelta(seconds=100)
    assert abs(datetime.fromisoformat(second).timestamp() - lab.site.clock.time()) < 60


def test_the_last_hundred_lines_of_an_agents_log_are_kept(lab: Lab) -> None:
    agent, other = lab.agent(log=["0"]), lab.agent("other", log=["other"])
    agent.tell(log=[str(number) for number in range(1, 60)])
    agent.tell(log=[str(number) for number in range(60, 130)])
    other.tell(state="waiting")
    kept = "SELECT line FROM testflinger_agent_line l JOIN testflinger_agent a ON a.id = l.agent WHERE a.name = ?"
    assert [line for (line,) in lab.site.read(f"{kept} ORDER BY l.id", "agent-1")] == list(map(str, range(30, 130)))
    assert lab.site.read(kept, "other") == [("other",)]


def test_a_streak_of_provisioning_begins_anew_when_it_turns(lab: Lab) -> None:
    lab.agent("a")
    shown = lab.get("/agents/data/a")
    assert (shown["provision_streak_type"], shown["provision_streak_count"]) == ("", 0)
    for code, streak in ((0, ("pass", 1)), ("0", ("pass", 2)), (46, ("fail", 1)), (-1, ("fail", 2)), (0, ("pass", 1))):
        lab.post("/agents/provision_logs/a", {"job_id": NOBODY, "exit_code": code, "detail": "x"})
        shown = lab.get("/agents/data/a")
        assert (shown["provision_streak_type"], shown["provision_streak_count"]) == streak
    lab.agent("a", state="waiting")
    assert lab.get("/agents/data/a")["provision_streak_count"] == 1
    body = {"job_id": NOBODY, "exit_code": 0, "detail": "x"}
    assert refused(lab.http.post("/v1/agents/provision_logs/unknown", json=body), 404)


def test_a_provision_log_that_comes_again_counts_once(lab: Lab) -> None:
    agent = lab.agent("a")
    for count in (1, 2):
        job = lab.submit("q")
        agent.polled("q")
        for detail in (None, None, "other")[: 4 - count]:
            body = {"job_id": job, "exit_code": 0, **({} if detail is None else {"detail": detail})}
            lab.post("/agents/provision_logs/a", body)
        agent.finish(job)
    assert lab.get("/agents/data/a")["provision_streak_count"] == 3


def test_the_last_hundred_provision_logs_of_an_agent_are_kept_and_its_streak_counts_on(lab: Lab) -> None:
    lab.agent("a")
    for number in range(103):
        lab.post("/agents/provision_logs/a", {"job_id": NOBODY, "exit_code": 1, "detail": str(number)})
    kept = [int(detail) for (detail,) in lab.site.read("SELECT detail FROM testflinger_provision ORDER BY id")]
    assert kept == list(range(3, 103))
    assert lab.get("/agents/data/a")["provision_streak_count"] == 103


def test_the_agents_of_a_queue(lab: Lab) -> None:
    fields = {"state": "waiting", "queues": ["q", "r"], "location": "here", "provision_type": "maas", "comment": "c"}
    lab.agent("one", **fields, job_id="", identifier="i", log=["x"])
    lab.agent("two", queues=["r"])
    (one,) = lab.get("/queues/q/agents")
    assert one == {"name": "one", **fields, "job_id": ""}
    assert {agent["name"] for agent in lab.get("/queues/r/agents")} == {"one", "two"}
    lab.post("/agents/queues", {"empty": ""})
    assert lab.get("/queues/empty/agents") == lab.get("/queues/unknown/agents") == []


def test_the_newer_server_says_that_a_queue_is_unknown(make_site: Callable[..., Site]) -> None:
    lab = Lab(make_site(testflinger_version="2026"))
    assert refused(lab.http.get("/v1/queues/unknown/agents"), 404)
    lab.submit("q")
    assert lab.get("/queues/q/agents") == []
    lab.agent("a", queues=["told"])
    assert [agent["name"] for agent in lab.get("/queues/told/agents")] == ["a"]


def test_the_jobs_of_a_queue(lab: Lab) -> None:
    assert empty(lab.http.get("/v1/queues/unknown/jobs"))
    done_job, job = lab.finished("q"), lab.submit("q", tags=["x"])
    lab.submit("r")
    shown = {one["job_id"]: one for one in lab.get("/queues/q/jobs")}
    assert {job_id: one["job_state"] for job_id, one in shown.items()} == {done_job: "complete", job: "waiting"}
    assert set(shown[job]) == {"job_id", "created_at", "job_state", "job_queue"}
    assert shown[job]["job_queue"] == "q"
    lab.post("/agents/queues", {"empty": ""})
    assert empty(lab.http.get("/v1/queues/empty/jobs"))


def test_waiting_times_are_interpolated_and_days_of_waiting_are_not_lost(lab: Lab) -> None:
    waits = [100, 300, 1000, 5000, 3 * DAY]
    jobs = [lab.submit("q") for _ in waits]
    passed = 0
    for job, wait in zip(jobs, waits, strict=True):
        lab.site.clock.pass_time(wait - passed)
        passed = wait
        assert lab.agent().polled("q")["job_id"] == job
    lab.submit("q")
    lab.finished("r")
    lab.submit("never started")
    shown = lab.get("/queues/wait_times", queue=["q", "unknown", "never started"])
    assert list(shown) == ["q"]
    exact = statistics.quantiles(waits, n=100, method="inclusive")
    assert shown["q"] == {str(part): pytest.approx(exact[part - 1], abs=60) for part in (5, 10, 50, 90, 95)}
    everything = lab.get("/queues/wait_times")
    assert set(everything) == {"q", "r"}
    assert everything["q"] == shown["q"]
    assert len(set(everything["r"].values())) == 1 and everything["r"]["50"] < 60


# ── Webhooks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def send_event(lab: Lab, **fields: Any) -> httpx.Response:
    """Tells an event of a new job that goes on."""
    job, agent = lab.submit("eventful"), lab.agent("teller")
    assert agent.polled("eventful")["job_id"] == job
    return agent.http.post(f"/v1/job/{job}/events", json=fields)


def test_an_event_is_told_of_a_job_that_the_agent_has_or_had_just_now(
    hooked: Lab, receiver: http.server.HTTPServer
) -> None:
    job, agent, other = hooked.submit("q"), hooked.agent("a"), hooked.agent("b")
    event = {"job_status_webhook": receiver.url, "events": []}

    def told(http: httpx.Client, of: str = job) -> int:
        return http.post(f"/v1/job/{of}/events", json=event).status_code

    assert (told(agent.http), told(agent.http, new_id())) == (404, 404)  # it waits; nobody knows it
    agent.polled("q")
    assert (told(agent.http), told(hooked.http), told(other.http)) == (200, 200, 404)  # some have no cookie
    agent.finish(job)
    assert told(agent.http) == 200
    hooked.site.clock.pass_time(3601)
    assert told(agent.http) == 404
    assert len(receiver.received) == 3


def test_an_event_of_a_cancelled_job_is_told_and_of_a_lost_attempt_is_not(
    hooked: Lab, receiver: http.server.HTTPServer
) -> None:
    job, agent = hooked.submit("q"), hooked.agent("a")
    event = {"job_status_webhook": receiver.url, "events": []}
    agent.polled("q")
    hooked.cancel(job)
    assert agent.http.post(f"/v1/job/{job}/events", json=event).status_code == 200
    worker = hooked.site.create_worker(hooked.site.read("SELECT id FROM project")[0][0])
    second = hooked.submit("q")
    assert worker.assigned(hooked.site.read("SELECT id FROM project")[0][0])["job"]
    assert agent.http.post(f"/v1/job/{second}/events", json=event).status_code == 404


def test_the_name_of_an_events_receiver_is_looked_up_apart_if_an_admin_trusts_the_queue(
    hooked: Lab, receiver: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, seen = webhooks.send, []

    async def note(*args: Any, trusted: bool, **options: Any) -> webhooks.Answer:
        seen.append(trusted)
        return await send(*args, **options)

    monkeypatch.setattr(webhooks, "send", note)
    assert send_event(hooked, job_status_webhook=receiver.url).status_code == 200
    [(project, trusted)] = hooked.site.read("SELECT id, trusted FROM project")
    assert hooked.site.admin.post(f"/project/trust/{project}").status_code == 200
    assert send_event(hooked, job_status_webhook=receiver.url).status_code == 200
    assert seen == [bool(trusted), True]


def test_few_events_are_on_their_way_at_once_however_many_are_sent(
    hooked: Lab, receiver: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, agent, sending = hooked.submit("q"), hooked.agent("a"), AtOnce(webhooks.Answer(200, "thanks"))
    monkeypatch.setattr(webhooks, "send", sending.wait)
    monkeypatch.setattr(webhooks, "TIMEOUT", 60.0)
    agent.polled("q")
    path, event = f"/v1/job/{job}/events", {"job_status_webhook": receiver.url, "events": []}
    with ThreadPoolExecutor(webhooks.AT_ONCE + 4) as pool:
        sent = [pool.submit(agent.http.post, path, json=event) for _ in range(webhooks.AT_ONCE + 4)]
        wait_until(lambda: sending.running == webhooks.AT_ONCE)
        sending.go_on.set()
        assert {one.result().status_code for one in sent} == {200}
    assert sending.most == webhooks.AT_ONCE


def test_an_event_of_a_queue_that_an_admin_trusts_waits_for_none_of_the_others_that_wait(
    hooked: Lab, receiver: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, seen = webhooks.Relay.turn, []

    def note(relay: webhooks.Relay, whose: str, timeout: float, trusted: bool = False) -> Any:
        seen.append(trusted)
        return turn(relay, whose, timeout, trusted)

    monkeypatch.setattr(webhooks.Relay, "turn", note)
    assert send_event(hooked, job_status_webhook=receiver.url).status_code == 200
    [(project, trusted)] = hooked.site.read("SELECT id, trusted FROM project")
    assert hooked.site.admin.post(f"/project/trust/{project}").status_code == 200
    assert send_event(hooked, job_status_webhook=receiver.url).status_code == 200
    assert seen == [bool(trusted), True]


def test_an_event_whose_turn_does_not_come_is_answered_like_one_that_nobody_takes(
    hooked: Lab, receiver: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.01)
    monkeypatch.setattr(webhooks.FairQueue, "turn", lambda *_: never())
    response = send_event(hooked, job_status_webhook=receiver.url, events=[])
    assert refused(response, 504) and "at once" in response.text


@contextlib.asynccontextmanager
async def never() -> AsyncIterator[None]:
    await asyncio.sleep(60)
    yield


def test_what_a_webhook_answers_is_passed_on(hooked: Lab, receiver: http.server.HTTPServer) -> None:
    for status in (200, 404, 500):
        receiver.status = status
        response = send_event(hooked, job_status_webhook=receiver.url, agent_id="a", events=[], more={"x": None})
        assert (response.status_code, response.text) == (status, "thank you")
        assert response.headers["content-type"].startswith("text/plain")
        assert receiver.received.pop() == ("/hook", {"agent_id": "a", "events": [], "more": {"x": None}})


def test_a_webhook_that_is_not_there_is_told_from_one_that_is_not_allowed(
    hooked: Lab, receiver: http.server.HTTPServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"http://127.0.0.1:{gone.getsockname()[1]}"
    assert refused(send_event(hooked, job_status_webhook=nobody), 502)
    for url in ("ftp://127.0.0.1", "nothing", "http://", "http://10.1.2.3/", "http://[::1]/", "", None, 7):
        assert refused(send_event(hooked, job_status_webhook=url), 400, "job_status_webhook"), url
    assert refused(send_event(hooked), 400, "job_status_webhook")
    for name, values in {"agent_id": NO_TEXT, "job_queue": NO_TEXT, "events": ("x", 7, {}, ["x"])}.items():
        for value in values:
            response = send_event(hooked, job_status_webhook=receiver.url, **{name: value})
            assert refused(response, 400, name), (name, value)
    assert receiver.received == []


def test_without_the_setting_no_event_reaches_inside(lab: Lab, receiver: http.server.HTTPServer) -> None:
    assert refused(send_event(lab, job_status_webhook=receiver.url), 400)
    assert receiver.received == []


# ── Whose results are taken ───────────────────────────────────────────────────────────────────────────────────────────


def reports(http: httpx.Client, job: str) -> set[int]:
    """The statuses of everything that an agent reports of a job but its end."""
    answers = [
        http.post(f"/v1/result/{job}", json={"test_status": 0}),
        http.post(f"/v1/result/{job}/output", content=b"said"),
        http.post(f"/v1/result/{job}/serial_output", content=b"said"),
        http.post(f"/v1/result/{job}/log/output", json=FRAGMENT),
        http.post(f"/v1/result/{job}/artifact", files={"file": b"x"}),
        http.post("/v1/agents/provision_logs/a", json={"job_id": job, "exit_code": 0, "detail": ""}),
        http.post(f"/v1/job/{job}/events", json={"job_status_webhook": "http://nowhere.invalid", "events": []}),
    ]
    return {answer.status_code for answer in answers} - {502}


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_picked_with_credentials_is_reported_by_that_client_alone(lab: Lab, ended: bool) -> None:
    picker, other = as_client(lab.site, "picker", "agent"), as_client(lab.site, "other", "agent")
    admin, job = as_client(lab.site, "boss", "admin"), lab.submit("q")
    lab.agent("a")
    assert polled(picker, "q")["job_id"] == job
    if ended:
        ok(picker.post(f"/v1/result/{job}", json={"job_state": "complete"}))
    before = lab.site.dump()
    assert [reports(http, job) for http in (lab.http, other, admin)] == [{401}, {403}, {403}]
    assert {**lab.site.dump(), "testflinger_client": None} == {**before, "testflinger_client": None}
    assert reports(picker, job) == {200}
    assert reports(bearer(lab.site, token_of(picker)), job) == {200}
    assert set(lab.get(f"/result/{job}")) >= {"job_state", "test_status"}
    assert "" not in lab.get(f"/result/{job}")


def test_an_agent_reports_on_after_its_token_has_ended_and_its_keys_have_changed(lab: Lab) -> None:
    http, job = as_client(lab.site, "picker", "agent"), lab.submit("q")
    agent = bearer(lab.site, token_of(http))
    assert polled(agent, "q")["job_id"] == job
    lab.site.clock.pass_time(601)
    assert refused(agent.post(f"/v1/result/{job}", json={"job_state": "test"}), 401, "expired")
    agent = bearer(lab.site, token_of(http))  # also one that has begun anew, without its cookie
    assert done(agent.post(f"/v1/result/{job}", json={"job_state": "test"}))
    Tab(lab.site.admin.http).post("/ui/testflinger/clients_key", {"confirmed": "yes"})
    assert refused(agent.post(f"/v1/result/{job}", json={"job_state": "reserve"}), 401, "expired")
    changed = {"client_secret": "that nobody guesses"}
    ok(as_client(lab.site, "boss", "admin").put("/v1/client-permissions/picker", json=changed))
    anew = client(lab.site.url, auth=("picker", changed["client_secret"]))
    assert refused(http.post(f"/v1/result/{job}", json={"job_state": "reserve"}), 401)
    assert done(anew.post(f"/v1/result/{job}", json={"job_state": "complete"}))
    assert lab.state(job) == "complete"


def test_a_job_whose_client_is_gone_is_reported_by_whoever_has_it_now(lab: Lab) -> None:
    admin, job = as_client(lab.site, "boss", "admin"), lab.submit("q")
    assert polled(as_client(lab.site, "picker", "agent"), "q")["job_id"] == job
    ok(admin.delete("/v1/client-permissions/picker"))
    assert done(as_client(lab.site, "other", "agent").post(f"/v1/result/{job}", json={"job_state": "complete"}))
    assert lab.state(job) == "complete"


def test_a_job_picked_with_credentials_is_cancelled_without(lab: Lab) -> None:
    """So does a connector for several devices with its children."""
    job = lab.submit("q")
    assert polled(as_client(lab.site, "picker", "agent"), "q")["job_id"] == job
    assert done(lab.cancel(job))
    assert lab.state(job) == "cancelled"


def test_what_was_picked_without_credentials_and_what_nobody_knows_is_reported_by_anybody(lab: Lab) -> None:
    job, other = lab.submit("q"), as_client(lab.site, "other", "agent")
    lab.agent("a").polled("q")
    for one in lab.http, other:
        assert done(one.post(f"/v1/result/{job}", json={"test_status": 0, "": "other"}))
        assert done(one.post(f"/v1/result/{new_id()}", json={"test_status": 0}))
    assert reports(lab.http, job) == {200}  # nor can anybody name a picker afterwards


def test_nothing_that_a_stranger_has_reported_before_is_left_of_a_job_picked_with_credentials(lab: Lab) -> None:
    job = lab.submit("q")
    lab.agent("a")
    assert reports(lab.http, job) == {200, 404}  # events are told of a job that goes on
    assert polled(as_client(lab.site, "picker", "agent"), "q")["job_id"] == job
    assert lab.get(f"/result/{job}") == {"job_state": "running"}
    for path in ("artifact", "output", "serial_output"):
        assert lab.http.get(f"/v1/result/{job}/{path}").status_code == 204, path


def test_nobody_names_the_client_that_is_to_report_of_a_job_before_it_is_picked(lab: Lab) -> None:
    other, job = as_client(lab.site, "other", "agent"), lab.submit("q")
    assert done(other.post(f"/v1/result/{job}", json={"": "other"}))
    agent = lab.agent("a")
    assert agent.polled("q")["job_id"] == job
    agent.finish(job)
    assert lab.state(job) == "complete"


# ── Clients ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def bearer(site: Site, token: str) -> httpx.Client:
    return client(site.url, headers={"Authorization": f"Bearer {token}"})


def token_of(http: httpx.Client) -> str:
    """The token that a client of the older generation gets."""
    return ok(http.post("/v1/oauth2/token", json={})).text


def test_a_token_is_what_each_generation_of_clients_reads(lab: Lab) -> None:
    limits = {"max_priority": {"*": 5, "q": 10}, "allowed_queues": ["r"], "max_reservation_time": {"q": 9 * 3600}}
    http = as_client(lab.site, **limits)
    older = [http.get("/v1/oauth2/token"), http.post("/v1/oauth2/token", json={})]
    newer = http.post("/v1/oauth2/token")
    assert all(ok(response).headers["content-type"].startswith("text/plain") for response in older)
    pair = ok(newer).json()
    assert set(pair) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert (pair["token_type"], pair["expires_in"] > 0) == ("Bearer", True)
    for token in (*[response.text for response in older], pair["access_token"]):
        said = claims(token)
        assert said["sub"] == "access_token"
        assert said["iat"] <= lab.site.clock.time() + 1 and said["exp"] - said["iat"] == pair["expires_in"]
        assert said["permissions"] == {"client_id": "a-client", "role": "contributor", **limits}
        for value in (f"Bearer {token}", token):
            given = client(lab.site.url, headers={"Authorization": value})
            submit(given, "q", job_priority=10)


def test_a_token_is_given_for_the_right_key_alone(lab: Lab) -> None:
    key = make_client(lab.site, "a-client")
    for header in (
        None,
        "",
        "Basic",
        "Basic x",
        f"Basic {basic('a-client', 'wrong')}",
        f"Basic {basic('other', key)}",
        f"Basic {basic('', '')}",
        f"Bearer {token_of(client(lab.site.url, auth=('a-client', key)))}",
    ):
        headers = {} if header is None else {"Authorization": header}
        for method, body in (("GET", None), ("POST", b""), ("POST", b"{}")):
            response = lab.http.request(method, "/v1/oauth2/token", content=body, headers=headers)
            assert refused(response, 401), (header, method)


def test_wrong_credentials_are_refused_even_where_none_are_needed(lab: Lab) -> None:
    token = token_of(as_client(lab.site))
    head, body, signature = token.split(".")
    other = base64.urlsafe_b64encode(b'{"exp": 9999999999, "sub": "access_token"}').decode().rstrip("=")
    none = base64.urlsafe_b64encode(b'{"alg": "none", "typ": "JWT"}').decode().rstrip("=")
    for wrong_token in (f"{head}.{other}.{signature}", f"{none}.{body}.", f"{head}.{body}.", "x", "x.y.z"):
        assert refused(bearer(lab.site, wrong_token).post("/v1/job", json={"job_queue": "q"}), 403), wrong_token
    wrong_key = client(lab.site.url, auth=("a-client", "wrong"))
    assert refused(wrong_key.post("/v1/job", json={"job_queue": "q"}), 401)
    assert lab.jobs() == 0
    lab.site.clock.pass_time(claims(token)["exp"] - claims(token)["iat"] + 1)
    assert refused(bearer(lab.site, token).post("/v1/job", json={"job_queue": "q"}), 401, "expired")
    ok(client(lab.site.url).get("/v1", headers={"Authorization": "Bearer x"}))


def test_a_refresh_token_gives_new_access_tokens_until_it_is_revoked(lab: Lab) -> None:
    first = ok(as_client(lab.site, max_priority={"*": 1}).post("/v1/oauth2/token")).json()
    lab.site.clock.pass_time(first["expires_in"] + 1)
    assert refused(bearer(lab.site, first["access_token"]).get("/v1/job", params={"queue": "q"}), 401, "expired")
    body = {"refresh_token": first["refresh_token"]}
    for _ in range(2):
        second = ok(lab.http.post("/v1/oauth2/refresh", json=body)).json()
        assert second.items() >= {"token_type": "Bearer", "expires_in": first["expires_in"]}.items()
        submit(bearer(lab.site, second["access_token"]), "q", job_priority=1)
    ok(lab.http.post("/v1/oauth2/revoke", json=body))
    assert refused(lab.http.post("/v1/oauth2/refresh", json=body), 400)
    for wrong_body in ({}, {"refresh_token": 7}, {"refresh_token": None}):
        assert wrong(lab.http.post("/v1/oauth2/revoke", json=wrong_body), "refresh_token")
        assert refused(lab.http.post("/v1/oauth2/refresh", json=wrong_body), 400, "refresh_token")
    for wrong_body in (b"", b"[]", b"null", b"{"):
        assert refused(lab.http.post("/v1/oauth2/refresh", content=wrong_body), 400), wrong_body
    for dead in (first["access_token"], "", "x"):
        assert refused(lab.http.post("/v1/oauth2/refresh", json={"refresh_token": dead}), 400), dead


def test_a_priority_needs_a_client_whose_maximum_for_that_queue_is_high_enough(lab: Lab) -> None:
    http = as_client(lab.site, max_priority={"*": 5, "q": 10})
    plain = as_client(lab.site, "plain")

    def refusal(caller: httpx.Client, queue: str, priority: Any) -> httpx.Response:
        return caller.post("/v1/job", json={"job_queue": queue, "job_priority": priority})

    for queue, priority in (("q", 10), ("q", "10"), ("r", 5), ("r", 0)):
        submit(http, queue, job_priority=priority)
    for queue, priority in (("q", 11), ("r", 6), ("r", "6")):
        assert refused(refusal(http, queue, priority), 403, str(priority))
    assert refused(refusal(plain, "q", 1), 403)
    for priority in (1, -1, "1"):
        assert refused(refusal(lab.http, "q", priority), 401)
    submit(lab.http, "q", job_priority=0)
    submit(plain, "q", job_priority=0)
    assert lab.jobs() == 6


def test_a_long_reservation_needs_a_client_with_a_larger_maximum(lab: Lab) -> None:
    http = as_client(lab.site, max_reservation_time={"q": 9 * 3600})

    def refusal(caller: httpx.Client, queue: str, timeout: Any) -> httpx.Response:
        return caller.post("/v1/job", json={"job_queue": queue, "reserve_data": {"timeout": timeout}})

    for timeout in (6 * 3600, "21600", "6h"):
        submit(lab.http, "q", reserve_data={"timeout": timeout})
    for timeout in (6 * 3600 + 1, "21601", "6h1s", "7h"):
        assert refused(refusal(lab.http, "q", timeout), 401)
    submit(http, "q", reserve_data={"timeout": "9h"})
    assert refused(refusal(http, "q", "9h1m"), 403)
    assert refused(refusal(http, "r", "7h"), 403)


def test_a_restricted_queue_takes_jobs_of_those_who_are_allowed_it(lab: Lab) -> None:
    admin = as_client(lab.site, "boss", "admin")
    owner, other = as_client(lab.site, "owner", allowed_queues=["vip"]), as_client(lab.site, "other")
    restrict(admin, "vip")
    job = submit(owner, "vip")
    assert refused(other.post("/v1/job", json={"job_queue": "vip"}), 403)
    assert refused(lab.http.post("/v1/job", json={"job_queue": "vip"}), 401)
    assert refused(admin.post("/v1/job", json={"job_queue": "vip"}), 403)
    assert lab.agent(queues=["vip", "q"]).polled("vip")["job_id"] == job
    assert lab.get("/agents/data/agent-1")["restricted_to"] == {"vip": ["owner"]}
    assert lab.jobs() == 1


# ── Administration ────────────────────────────────────────────────────────────────────────────────────────────────────


def restrict(admin: httpx.Client, queue: str) -> None:
    assert admin.post(f"/v1/restricted-queues/{queue}").status_code < 300


def test_an_admin_client_restricts_queues_and_frees_them(lab: Lab) -> None:
    admin = as_client(lab.site, "boss", "admin")
    as_client(lab.site, "owner", allowed_queues=["vip"])
    lab.submit("vip")
    assert ok(admin.get("/v1/restricted-queues")).json() == []
    assert refused(admin.get("/v1/restricted-queues/vip"), 404)
    for queue in ("vip", "vip", "not/yet there"):
        restrict(admin, queue)
    shown = {one["name"]: one["owners"] for one in ok(admin.get("/v1/restricted-queues")).json()}
    assert shown == {"vip": ["owner"], "not/yet there": []}
    assert ok(admin.get("/v1/restricted-queues/vip")).json()["owners"] == ["owner"]
    assert refused(lab.http.post("/v1/job", json={"job_queue": "vip"}), 401)
    assert admin.delete("/v1/restricted-queues/vip").status_code < 300
    assert refused(admin.delete("/v1/restricted-queues/vip"), 404)
    lab.submit("vip")


def test_an_admin_client_allows_a_restricted_queue_to_one_client_after_another(lab: Lab) -> None:
    admin, path = as_client(lab.site, "boss", "admin"), "/v1/restricted-queues/vip"
    first, second = as_client(lab.site, "first"), as_client(lab.site, "second", allowed_queues=["other"])

    def allowed() -> list[str]:
        clients = {"first": first, "second": second}
        return [name for name, http in clients.items() if http.post("/v1/job", json={"job_queue": "vip"}).is_success]

    assert refused(admin.post(path, json={"client_id": "nobody"}), 404)
    for body in ({"client_id": None}, {"client_id": 7}):
        assert wrong(admin.post(path, json=body), "client_id")
    assert allowed() == ["first", "second"], "a call that was refused has restricted it"
    for name in ("first", "first", "second"):
        ok(admin.post(path, json={"client_id": name}))
    assert (allowed(), ok(first.get("/v1/restricted-queues")).json()[0]["owners"]) == (["first", "second"],) * 2
    for body in ({"client_id": None}, {"client_id": 7}):
        assert wrong(admin.request("DELETE", path, json=body), "client_id")
    for name in ("first", "first"):
        ok(admin.request("DELETE", path, json={"client_id": name}))
    assert allowed() == ["second"]
    ok(admin.delete(path))
    assert allowed() == ["first", "second"]


def test_a_manager_among_the_clients_is_no_agent(lab: Lab) -> None:
    admin, key = as_client(lab.site, "boss", "admin"), "a key that somebody chose"
    body = {"client_id": "lead", "client_secret": key, "role": "manager", "email": "lead@example.org"}
    ok(admin.post("/v1/client-permissions", json=body))
    manager = client(lab.site.url, auth=("lead", key))
    shown = ok(manager.get("/v1/client-permissions/lead")).json()
    assert (shown["role"], shown["email"]) == ("manager", "lead@example.org")
    assert claims(token_of(manager))["permissions"]["role"] == "manager"
    submit(manager, "q")
    assert refused(manager.get("/v1/job", params={"queue": "q"}), 403)
    page = ok(lab.site.admin.get("/ui/testflinger/clients/lead")).text
    assert "lead@example.org" in page and re.search(r'<option value="manager" selected', page)


def test_an_admin_client_makes_changes_and_deletes_clients(lab: Lab) -> None:
    admin = as_client(lab.site, "boss", "admin")
    path, key = "/v1/client-permissions/new", "a key that somebody chose"
    assert refused(admin.get(path), 404)
    made = {"client_secret": key, "max_priority": {"*": 5}, "max_reservation_time": {"q": 9 * 3600}}
    assert admin.put(path, json=made).status_code < 300
    http = client(lab.site.url, auth=("new", key))
    submit(http, "q", job_priority=5)
    shown = ok(admin.get(path)).json()
    limits = {"max_priority": {"*": 5}, "max_reservation_time": {"q": 9 * 3600}, "allowed_queues": []}
    assert shown == {"client_id": "new", "role": "contributor", **limits}
    assert {one["client_id"]: one for one in ok(admin.get("/v1/client-permissions")).json()}["new"] == shown
    token = token_of(http)
    assert admin.put(path, json={"max_priority": {}}).status_code < 300
    assert ok(admin.get(path)).json() == {**shown, "max_priority": {}}
    assert refused(bearer(lab.site, token).post("/v1/job", json={"job_queue": "q", "job_priority": 5}), 403)
    assert admin.delete(path).status_code < 300
    assert refused(admin.delete(path), 404)
    assert refused(http.get("/v1/job", params={"queue": "q"}), 401)
    assert refused(bearer(lab.site, token).get("/v1/job", params={"queue": "q"}), 403)


def test_wrong_permissions_are_refused_and_change_nothing(lab: Lab) -> None:
    admin = as_client(lab.site, "boss", "admin")
    before = lab.site.dump()
    new = {"client_id": "new", "client_secret": "long enough for that"}
    for change in (
        {"client_secret": "short"},
        {"client_secret": 7},
        {"role": "king"},
        {"max_priority": {"*": "high"}},
        {"max_priority": {"*": -1}},
        {"max_priority": 5},
        {"allowed_queues": "q"},
        {"allowed_queues": [7]},
        {"max_reservation_time": {"*": 1.5}},
        {"max_prioritys": {}},
        {"client_id": "other"},
    ):
        response = admin.put("/v1/client-permissions/new", json={**new, **change})
        assert response.status_code in (400, 422) and refused(response, response.status_code, *change), change
    assert admin.put("/v1/client-permissions/new", json={"role": "agent"}).status_code in (400, 422)
    assert lab.site.dump() == before


def test_administration_is_for_admin_clients(lab: Lab) -> None:
    calls = [
        ("GET", "/v1/restricted-queues/q"),
        ("POST", "/v1/restricted-queues/q"),
        ("DELETE", "/v1/restricted-queues/q"),
        ("GET", "/v1/client-permissions"),
        ("GET", "/v1/client-permissions/boss"),
        ("PUT", "/v1/client-permissions/boss"),
        ("DELETE", "/v1/client-permissions/boss"),
        ("PUT", "/v1/secrets/boss/path"),
        ("DELETE", "/v1/secrets/boss/path"),
    ]
    make_client(lab.site, "boss", "admin")
    callers = {403: [as_client(lab.site, role, role) for role in ("contributor", "agent")], 401: [lab.http]}
    before = lab.site.dump()
    for status, https in callers.items():
        for caller in https:
            for method, path in calls:
                body = {"json": {"value": "x"} if "secrets" in path else {}} if method in ("PUT", "POST") else {}
                assert refused(caller.request(method, path, **body), status), (method, path)
    assert ignoring_use(lab.site.dump()) == ignoring_use(before)


def ignoring_use(tables: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    """Without when a client was last there."""
    return {**tables, "testflinger_client": [row[:-1] for row in tables["testflinger_client"]]}


def test_a_secret_is_put_into_the_job_that_names_it_and_shown_to_its_agent_alone(lab: Lab) -> None:
    http, other = as_client(lab.site, "a-client"), as_client(lab.site, "other")
    path = "/v1/secrets/a-client/some/path"
    for value in ("first", "top secret"):
        assert http.put(path, json={"value": value}).status_code < 300
    data = {"test_cmds": "echo", "secrets": {"PASSWORD": "some/path"}}
    job = submit(http, "q", test_data=data)
    assert "top secret" not in json.dumps(lab.get(f"/job/{job}"))
    assert empty(lab.agent().http.get("/v1/job", params={"queue": "q"})), "who has not proved who it is gets no secrets"
    trusted = as_client(lab.site, "robot", role="agent")
    given = trusted.get("/v1/job", params={"queue": "q"}).json()
    assert given["test_data"]["secrets"] == {"PASSWORD": "top secret"}
    body = {"job_queue": "q", "test_data": data}
    assert refused(other.post("/v1/job", json=body), 422)
    assert refused(lab.http.post("/v1/job", json=body), 401)
    assert refused(other.put(path, json={"value": "x"}), 403)
    assert http.delete(path).status_code < 300
    assert refused(http.delete(path), 404)
    assert refused(http.post("/v1/job", json=body), 422)
    for value in (NO_TEXT[0], None):
        assert wrong(http.put(path, json={"value": value}), "value")


# ── Who may come in ───────────────────────────────────────────────────────────────────────────────────────────────────

REBOUND = {"Host": "lab.example"}  # a name of another site that leads to this machine, as a browser there sends it


def test_a_page_of_another_site_can_neither_submit_nor_read(lab: Lab) -> None:
    job = lab.submit("q")
    callers = (lab.http, as_client(lab.site))
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
    ):
        for caller in callers:
            assert refused(caller.post("/v1/job", json={"job_queue": "q"}, headers=headers), 403)
            assert refused(caller.post(f"/v1/job/{job}/action", json={"action": "cancel"}, headers=headers), 403)
            assert refused(caller.get("/v1/job", params={"queue": "q"}, headers=headers), 403)
    assert (lab.jobs(), lab.state(job)) == (1, "waiting")


def test_a_name_that_was_made_to_lead_here_opens_nothing_without_credentials(lab: Lab) -> None:
    for host, code in (
        ("lab.example", 401),
        ("lab.example:80", 401),
        ("127.0.0.1.lab.example", 401),
        ("localhost", 200),
    ):
        headers = {"Host": host}
        assert lab.http.post("/v1/job", json={"job_queue": "q"}, headers=headers).status_code == code, host
    submit(client(lab.site.url, headers=REBOUND, auth=("a-client", make_client(lab.site, "a-client"))), "q")
    ok(lab.http.get("/v1", headers=REBOUND))
    proxied = lab.http.post("/v1/job", json={"job_queue": "q"}, headers={"X-Forwarded-For": "127.0.0.1"})
    assert refused(proxied, 401)
    assert lab.jobs() == 2


def test_on_an_open_network_everybody_needs_credentials_unless_the_settings_say_otherwise(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    guarded = Lab(make_site(host="0.0.0.0"))
    for path, methods in METHODS.items():
        for method in methods if path.rstrip("/") != "/v1" and "oauth2" not in path else ():
            query = {"queue": "q"} if (method, path) == ("GET", "/v1/job") else {}
            body = ACCEPTED.get(path.replace("serial", "output"), {}) if method in ("POST", "PUT") else None
            assert refused(guarded.http.request(method, path, params=query, json=body), 401), (method, path)
    job = submit(as_client(guarded.site, "submitter"), "q")
    assert polled(as_client(guarded.site, "machine", "agent"), "q")["job_id"] == job
    open_to_all = Lab(make_site(host="0.0.0.0", testflinger_anonymous="always", database=str(tmp_path / "open.db")))
    open_to_all.submit("q")
    ok(open_to_all.http.post("/v1/job", json={"job_queue": "q"}, headers=REBOUND))


def test_who_may_not_come_in_is_told_so_before_anything_of_a_body(make_site: Callable[..., Site]) -> None:
    guarded = Lab(make_site(host="0.0.0.0"))
    for one in (guarded.http, client(guarded.site.url, auth=("nobody", "a wrong key"))):
        for path in TAKE_JSON:
            for body in (b"{", b"[]", b'{"job_queue": 7}', b"x" * 70_000):
                assert refused(one.post(path, content=body), 401), (path, body[:20])
        for path in ("/v1/client-permissions/c", "/v1/secrets/c/path"):
            assert refused(one.put(path, content=b"{"), 401), path


def test_what_needs_no_more_from_anybody_takes_a_small_body(lab: Lab) -> None:
    long = b'{"refresh_token": "%s"}' % (b"x" * 70_000)
    for path in ("/v1/oauth2/token", "/v1/oauth2/refresh", "/v1/oauth2/revoke"):
        assert refused(lab.http.post(path, content=long), 413, "64 KiB"), path


def test_a_contributor_submits_and_reads_and_does_nothing_of_an_agents(make_site: Callable[..., Site]) -> None:
    site = make_site(host="0.0.0.0")
    contributor, agent = as_client(site, "c", "contributor"), as_client(site, "a", "agent")
    job = submit(contributor, "q", test_data={"attachments": [{"local": "x"}]})
    ok(contributor.post(f"/v1/job/{job}/attachments", files={"file": b"x"}))
    for_agents = [
        ("GET", "/v1/job?queue=q", {}),
        ("POST", f"/v1/result/{job}", {"json": {"job_state": "complete"}}),
        ("POST", f"/v1/result/{job}/artifact", {"files": {"file": b"x"}}),
        ("POST", f"/v1/result/{job}/output", {"content": b"x"}),
        ("POST", f"/v1/result/{job}/log/output", {"json": FRAGMENT}),
        ("POST", "/v1/agents/data/a", {"json": {}}),
        ("POST", "/v1/agents/queues", {"json": {"q": "x"}}),
        ("POST", "/v1/agents/images", {"json": {"q": {}}}),
        ("POST", "/v1/agents/provision_logs/a", {"json": {"job_id": job, "exit_code": 0, "detail": ""}}),
    ]
    for method, path, body in for_agents:
        assert refused(contributor.request(method, path, **body), 403), path
    for path in ("", "/position"):
        ok(contributor.get(f"/v1/job/{job}{path}"))
    for path in (
        "/v1/agents/data",
        "/v1/agents/queues",
        "/v1/queues/wait_times",
        "/v1/job/search",
        f"/v1/result/{job}",
    ):
        ok(contributor.get(path))
    ok(agent.post("/v1/agents/data/a", json={}))
    for method, path, body in for_agents:
        ok(agent.request(method, path, **body))


# ── Other projects ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ordinary_project_is_no_queue(lab: Lab) -> None:
    project = lab.site.admin.create_project("guarded", public=True)
    lab.site.create_worker(project).submit(project)
    template = {"project": project, "name": "t", "script": "true", "api": True}
    made = lab.site.admin.post("/template/create", template).json()["content"]["template"]["id"]
    lab.site.admin.post(f"/template/trigger/{made}", {})
    agent = lab.agent(queues=["guarded"])
    before = lab.site.dump()
    assert wrong(lab.http.post("/v1/job", json={"job_queue": "guarded"}), "job_queue")
    for path, value in (("queues", "mine"), ("images", {})):
        response = lab.http.post(f"/v1/agents/{path}", json={"guarded": value})
        assert refused(response, 422, "guarded")
    assert agent.polled("guarded", "q") is None
    assert lab.get("/queues/wait_times") == lab.get("/agents/queues") == lab.get("/agents/images/guarded") == {}
    assert empty(lab.http.get("/v1/queues/guarded/jobs"))
    assert lab.found() == set()
    assert lab.site.dump() == before
    assert lab.projects() == {"guarded"}


def test_a_queue_belongs_to_no_manager_but_the_admins_see_it(lab: Lab) -> None:
    lab.submit("q")
    project = lab.site.read("SELECT id, public FROM project WHERE name = 'q'")[0]
    assert project[1] == 0
    assert lab.site.create_manager().update_project(project[0], paused=True).status_code == 404
    assert lab.site.admin.update_project(project[0], paused=True).status_code == 200
    assert lab.agent().polled("q") is None
    assert lab.site.create_worker().assign(project[0]).status_code == 404


# ── Forgotten ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def files(lab: Lab) -> int:
    """How many files there are beside the database."""
    return sum(path.is_file() for path in Path(lab.site.settings.database).parent.glob("*.files/*"))


def test_what_is_old_is_forgotten_and_what_is_alive_is_kept(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "PRUNE_INTERVAL", 0.1)
    lab = Lab(make_site(testflinger_retention=1000))
    gone, unknown = lab.finished("gone"), new_id()
    packed = {"test_data": {"attachments": [{"local": "x"}]}}
    held, waiting, running = lab.submit("q", **packed), lab.submit("q", **packed), lab.submit("r")
    silent, talking = lab.agent("silent", log=["x"], queues=["q"]), lab.agent("talking")
    assert talking.polled("r")["job_id"] == running
    for job in (gone, unknown, running):
        silent.post_result(job, test_output="x")
        post_fragment(silent.http, job, 0, "text")
        ok(lab.http.post(f"/v1/result/{job}/artifact", files={"file": b"x"}))
    for job in (held, waiting):
        ok(lab.http.post(f"/v1/job/{job}/attachments", files={"file": b"x"}))
    lab.cancel(held)
    assert files(lab) == 5
    lab.site.clock.pass_time(1001)
    talking.tell(state="test")
    recent = lab.finished("recent")
    wait_until(lambda: lab.http.get("/v1/agents/data/silent").status_code == 404 and files(lab) == 2)
    for job in (gone, unknown, held):
        for path in (f"/v1/job/{job}", f"/v1/result/{job}", f"/v1/result/{job}/artifact", f"/v1/job/{job}/attachments"):
            assert empty(lab.http.get(path)), path
        assert fragments(lab, job) == (-1, "")
    assert lab.found() == {waiting, running, recent}
    assert fragments(lab, running) == (0, "text")
    assert ok(lab.http.get(f"/v1/result/{running}/artifact")).content == b"x"
    assert ok(lab.http.get(f"/v1/job/{waiting}/attachments")).content == b"x"
    assert {agent["name"] for agent in lab.get("/agents/data")} == {"talking", "finisher"}
    assert lab.get("/queues/q/agents") == []
    talking.finish(running)
    assert lab.state(running) == "complete"


# ── Odd bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_binary_output_does_no_harm(lab: Lab) -> None:
    job = lab.submit("q")
    polled(lab.http, "q")
    for one in (job, new_id()):
        for kind in ("output", "serial_output"):
            path = f"/v1/result/{one}/{kind}"
            assert done(lab.http.post(path, content=b"before \0\xff\xfe\xed\xa0\x80\x1b[0m after"))
            text = ok(lab.http.get(path)).text
            assert text.startswith("before ") and text.endswith("\x1b[0m after") and "\0" not in text
            assert lab.http.post(path, content=b"").status_code == 200
    assert "before" in lab.site.admin.get(f"/job/log/{lab.site.read('SELECT token FROM job')[0][0]}").text


def test_a_fragment_whose_number_was_taken_is_kept_once_however_often_it_comes(lab: Lab) -> None:
    job = lab.submit("q")
    polled(lab.http, "q")
    for number, text in ((0, "a0 "), (1, "a1 "), (0, "b0 "), (0, "b0 "), (1, "b1 "), (1, "b1 ")):
        body = {**FRAGMENT, "fragment_number": number, "log_data": text}
        ok(lab.http.post(f"/v1/result/{job}/log/output", content=json.dumps(body)))
    assert fragments(lab, job)[1] == "a0 a1 b0 b1 "


@pytest.mark.parametrize("printed", [b"\0", b"\n", b"\x1b", b"\xff", b"\\u0000", b"\\udc80"])
def test_what_an_agent_reports_is_taken_whatever_was_printed(
    hooked: Lab, receiver: http.server.HTTPServer, printed: bytes
) -> None:
    job, agent = hooked.submit("q"), hooked.agent("a")
    agent.polled("q")
    bodies = {
        f"/v1/result/{job}/log/output": json.dumps(FRAGMENT | {"log_data": "a TEXT b"}),
        f"/v1/result/{job}/log/serial": json.dumps(FRAGMENT | {"log_data": "a TEXT b"}),
        f"/v1/job/{job}/events": json.dumps({"job_status_webhook": receiver.url, "events": [{"detail": "a TEXT b"}]}),
        "/v1/agents/data/a": '{"state": "test", "log": ["a TEXT b"], "comment": "a TEXT b"}',
        "/v1/agents/provision_logs/a": json.dumps({"job_id": job, "exit_code": 1, "detail": "a TEXT b"}),
        f"/v1/result/{job}": '{"device_info": {"text": "a TEXT b"}, "output": "a TEXT b", "job_state": "complete"}',
    }
    for path, body in bodies.items():
        ok(agent.http.post(path, content=body.encode().replace(b"TEXT", printed)))
    kept = {b"\n": "a \n b", b"\x1b": "a \x1b b"}.get(printed, "a \ufffd b")
    result = hooked.get(f"/result/{job}")
    assert (result["output"], result["device_info"]["text"], result["job_state"]) == (kept, kept, "complete")
    assert receiver.received[0][1]["events"] == [{"detail": kept}]


def test_of_what_an_agent_says_at_length_the_beginning_is_kept(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent("a")
    agent.polled("q")
    agent.tell(state="offline", comment="c" * 10_001)
    shown = lab.get("/agents/data/a")
    assert (shown["state"], shown["comment"]) == ("offline", "c" * 10_000)
    for _ in range(2):
        lab.post("/agents/provision_logs/a", {"job_id": job, "exit_code": 1, "detail": "d" * 70_000})
    assert lab.site.read("SELECT detail FROM testflinger_provision") == [("d" * 65_536,)]


def test_an_exit_code_may_be_one_of_windows(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent("a")
    agent.polled("q")
    lab.post("/agents/provision_logs/a", {"job_id": job, "exit_code": 0xC0000005, "detail": "access violation"})
    assert lab.site.read("SELECT exit_code FROM testflinger_provision") == [(3221225477,)]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5000])
def test_a_result_with_a_number_that_cannot_be_is_taken_without_it(lab: Lab, number: str) -> None:
    job, agent = lab.submit("q"), lab.agent("a")
    agent.polled("q")
    body = '{"device_info": {"load": NUMBER}, "output": "done", "job_state": "complete"}'.replace("NUMBER", number)
    ok(agent.http.post(f"/v1/result/{job}", content=body))
    assert lab.get(f"/result/{job}") | {"device_info": {"load": None}, "output": "done"} == lab.get(f"/result/{job}")


def test_nul_characters_and_halves_of_surrogates_in_results_do_no_harm(lab: Lab) -> None:
    job = lab.submit("q")
    polled(lab.http, "q")
    lab.agent("a")
    text = rb'"before \u0000\ud800 after"'
    for path, fields in {
        f"/v1/result/{job}": (b"test_output", b"test_serial", b"device_info_text", b"\\u0000"),
        "/v1/agents/data/a": (b"state", b"comment", b"unknown"),
    }.items():
        for field in fields:
            content = b'{"' + field + b'": ' + text + b"}"
            response = lab.http.post(path, content=content)
            assert response.status_code < 500, (field, response.text)
            if response.status_code != 200:
                assert refused(response, response.status_code)
    assert done(lab.http.post(f"/v1/result/{job}", content=b'{"test_output": ' + text + b"}"))
    shown = lab.get(f"/result/{job}")["test_output"]
    assert shown.startswith("before ") and shown.endswith(" after") and "\0" not in shown
    body = json.dumps({**FRAGMENT, "log_data": "before \0 after"})
    ok(lab.http.post(f"/v1/result/{job}/log/output", content=body))
    assert fragments(lab, job)[1] == "before � after"
    ok(lab.http.get("/v1/agents/data"))


def test_a_nul_character_in_a_job_or_in_a_query_is_refused_or_left_out(lab: Lab) -> None:
    for field in ("name", "option", "job_queue"):
        response = lab.http.post("/v1/job", content=b'{"job_queue": "q", "%s": "a\\u0000b"}' % field.encode())
        assert response.status_code in (200, 400, 422), response.text
    while job := polled(lab.http, "q", "ab"):
        assert "\0" not in json.dumps(job)
    for path in ("/v1/job?queue=%00", "/v1/job/search?tags=%00", "/v1/queues/%00/agents", "/v1/agents/data/%00"):
        assert lab.http.get(path).status_code < 500, path
    for path in ("/v1/job?queue=%ff", "/v1/job/search?tags=%ff", "/v1/queues/wait_times?queue=%ff"):
        assert refused(lab.http.get(path), 400), path


# ── As long as it takes, and no longer ────────────────────────────────────────────────────────────────────────────────


def retried(lab: Lab) -> str:
    """Retries the newest job as a manager; the id of the new one."""
    token = lab.site.read("SELECT token FROM job ORDER BY id DESC LIMIT 1")[0][0]
    assert lab.site.admin.post(f"/job/retry/{token}").status_code == 200
    return lab.site.read("SELECT uuid FROM testflinger_job ORDER BY job DESC LIMIT 1")[0][0]


@pytest.mark.parametrize("sign", ["a state", "output", "a fragment", "an artifact"])
def test_a_job_goes_on_as_long_as_its_agent_gives_signs_of_life(lab: Lab, sign: str) -> None:
    job, agent = lab.submit("q", global_timeout=3600), lab.agent()
    agent.polled("q")
    for number in range(3):
        lab.site.clock.pass_time(3600)
        if sign == "a state":
            agent.post_result(job, job_state="test")
        elif sign == "an artifact":
            ok(agent.http.post(f"/v1/result/{job}/artifact", files={"file": b"x"}))
        elif sign == "output":
            ok(agent.http.post(f"/v1/result/{job}/output", content=b"alive"))
        else:
            post_fragment(agent.http, job, number, "alive")
    assert lab.state(job) != "complete"
    lab.site.clock.pass_time(3600 + 1000)
    wait_until(lambda: lab.state(job) == "complete")
    assert lab.get(f"/result/{job}")["test_status"] == 1


def test_one_of_several_devices_waits_for_the_others_however_long(lab: Lab) -> None:
    parent = lab.submit("parents", global_timeout=60)
    of_many = [
        lab.submit("q", global_timeout=60, parent_job_id=parent),
        lab.submit("q", global_timeout=60, allocate_data={"allocate": True}),
    ]
    reserved = lab.submit("q", global_timeout=60, reserve_data={"ssh_keys": ["lp:me"]})
    agent = lab.agent()
    assert [agent.polled("q")["job_id"] for _ in range(3)] == [*of_many, reserved]
    assert agent.polled("parents")["job_id"] == parent
    lab.site.clock.pass_time(1000)
    wait_until(lambda: lab.state(parent) == "complete")
    assert lab.state(reserved) == "running"
    lab.site.clock.pass_time(30 * 86400)
    wait_until(lambda: lab.state(reserved) == "complete")
    assert [lab.state(job) for job in of_many] == ["running", "running"]


def test_the_attachments_of_a_retried_job_are_kept_for_it(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "PRUNE_INTERVAL", 0.1)
    lab = Lab(make_site(testflinger_retention=1000))
    first, agent = lab.submit("q", test_data={"attachments": [{"local": "x"}]}), lab.agent()
    ok(lab.http.post(f"/v1/job/{first}/attachments", files={"file": b"content"}))
    agent.finish(agent.polled("q")["job_id"])
    lab.site.clock.pass_time(900)
    again = retried(lab)
    lab.site.clock.pass_time(200)
    wait_until(lambda: lab.http.get(f"/v1/job/{first}").status_code == 204)
    given = agent.polled("q")
    assert (given["job_id"], given["attachments_status"]) == (again, "complete")
    assert ok(agent.http.get(f"/v1/job/{again}/attachments")).content == b"content"


def test_a_job_whose_attachments_never_came_is_not_retried(lab: Lab) -> None:
    first = lab.submit("q", test_data={"attachments": [{"local": "x"}]})
    lab.cancel(first)
    token = lab.site.read("SELECT token FROM job")[0][0]
    response = lab.site.admin.post(f"/job/retry/{token}")
    assert response.status_code == 409 and "attachments" in response.json()["message"]
    assert lab.jobs() == 1


@pytest.mark.parametrize(
    "data", [{"test_data": {"attachments": []}}, {"cleanup_data": {"attachments": [{"agent": "x"}]}}]
)
def test_any_phase_that_names_attachments_keeps_its_job_back(lab: Lab, data: dict[str, Any]) -> None:
    job = lab.submit("q", **data)
    assert polled(lab.http, "q") is None
    ok(lab.http.post(f"/v1/job/{job}/attachments", files={"file": b"x"}))
    assert polled(lab.http, "q")["job_id"] == job


OPTIONAL = {
    *("job_id", "parent_job_id", "name", "job_status_webhook", "tags", "global_timeout", "output_timeout"),
    *("allocation_timeout", "job_priority", "provision_data", "firmware_update_data", "allocate_data", "test_data"),
    *("reserve_data", "exclude_agents"),
}


def test_a_field_of_a_job_that_was_left_empty_is_not_passed_on_and_unknown_ones_are(lab: Lab) -> None:
    for field in OPTIONAL:
        job = lab.submit("q", **{field: None}, option=None)
        given = polled(lab.http, "q")
        assert given["job_id"] == job and given["option"] is None
        assert field == "job_id" or field not in given
    inner = {"attachments": None, "option": None}
    phases = ("provision_data", "firmware_update_data", "allocate_data", "test_data", "reserve_data")
    more = {"test_data": {"secrets": None, "test_cmds": None}, "reserve_data": {"ssh_keys": None, "timeout": None}}
    lab.submit("q", **{phase: {**inner, **more.get(phase, {})} for phase in phases}, cleanup_data={"attachments": None})
    given = polled(lab.http, "q")
    assert {phase: given[phase] for phase in phases} == {phase: {"option": None} for phase in phases}


def test_what_is_null_and_may_be_absent_is_as_good_as_absent_in_every_other_body(lab: Lab) -> None:
    job, agent = lab.submit("q"), lab.agent("a", location="here", queues=["q"])
    agent.polled("q")
    agent.tell(**dict.fromkeys(("identifier", "job_id", "location", "state", "comment", "queues", "log")))
    assert (lab.get("/agents/data/a")["location"], lab.get("/agents/data/a")["queues"]) == ("here", ["q"])
    agent.post_result(job, status={"setup": 0, "test": None}, test_output="said", device_info={"a": None})
    phases = [f"{phase}_{kind}" for phase in PHASES for kind in ("status", "output", "serial")]
    agent.post_result(job, **dict.fromkeys([*phases, "status", "device_info", "job_state"]))
    shown = lab.get(f"/result/{job}")
    assert (shown["status"], shown["test_output"], shown["device_info"]) == ({"setup": 0}, "said", {"a": None})
    lab.post("/agents/provision_logs/a", {"job_id": job, "exit_code": 0, "detail": None})
    lab.post("/agents/queues", {"q": None})
    lab.post("/agents/images", {"q": None})
    assert (lab.get("/agents/queues"), lab.get("/agents/images/q")) == ({"q": ""}, {})
    event = {"job_status_webhook": "http://nowhere.invalid", **dict.fromkeys(("agent_id", "job_queue", "events"))}
    assert refused(lab.http.post(f"/v1/job/{job}/events", json=event), 502)
    admin, limits = as_client(lab.site, "boss", "admin"), ("max_priority", "allowed_queues", "max_reservation_time")
    left_out = dict.fromkeys((*limits, "role", "email"))
    ok(
        admin.post(
            "/v1/client-permissions", json={"client_id": "c", "client_secret": "long enough for that", **left_out}
        )
    )
    ok(admin.put("/v1/client-permissions/c", json={"max_priority": {"*": 3}}))
    changed = ok(admin.put("/v1/client-permissions/c", json={"client_id": None, "client_secret": None, **left_out}))
    assert (changed.json()["max_priority"], changed.json()["role"]) == ({"*": 3}, "contributor")


# ── One caller and the others ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_statuses_of_one_who_does_not_hold_it_do_not_judge_a_job(lab: Lab) -> None:
    job, holder, other = lab.submit("q"), lab.agent("holder"), lab.agent("other")
    other.post_result(job, provision_status=1)
    holder.polled("q")
    other.post_result(job, test_status=7, status={"setup": 3}, note="kept")
    holder.post_result(job, setup_status=0, job_state="complete")
    assert lab.site.read("SELECT state FROM job") == [("succeeded",)]
    shown = lab.get(f"/result/{job}")
    assert (shown["setup_status"], shown["note"]) == (0, "kept") and "test_status" not in shown


def test_an_attempt_has_nothing_of_the_one_before(lab: Lab) -> None:
    job, first, second = lab.submit("q"), lab.agent("first"), lab.agent("second")
    first.polled("q")
    first.post_result(job, provision_status=1)
    post_fragment(first.http, job, 0, "first")
    project = lab.site.read("SELECT project FROM job")[0][0]
    assert lab.site.admin.post(f"/project/reclaim_assigned_tasks/{project}").status_code == 200
    post_fragment(first.http, job, 1, "late")
    assert second.polled("q")["job_id"] == job
    post_fragment(second.http, job, 0, "second")
    assert fragments(lab, job) == (0, "second")
    first.post_result(job, device_info={"of": "first"}, output="first")
    second.post_result(job, test_status=0, device_info={"of": "second"}, job_state="complete")
    assert lab.site.read("SELECT state, output FROM job") == [("succeeded", '{"of":"second"}')]


def test_another_text_with_a_number_that_is_taken_is_kept(lab: Lab) -> None:
    job = lab.submit("q")
    polled(lab.http, "q")
    for text in ("one\n", "one\n", "other\n"):
        post_fragment(lab.http, job, 4, text)
    assert fragments(lab, job) == (5, "one\nother\n")


def test_only_the_client_of_a_job_with_secrets_brings_its_attachments(lab: Lab) -> None:
    owner, other = as_client(lab.site, "owner"), as_client(lab.site, "other")
    ok(owner.put("/v1/secrets/owner/token", json={"value": "x"}))
    data = {"secrets": {"TOKEN": "token"}, "attachments": [{"local": "x"}]}
    path = f"/v1/job/{submit(owner, 'q', test_data=data)}/attachments"
    assert refused(lab.http.post(path, files={"file": b"evil"}), 401)
    assert refused(other.post(path, files={"file": b"evil"}), 403)
    ok(owner.post(path, files={"file": b"x"}))


def test_a_client_made_anew_under_an_old_name_gives_nothing_to_the_old_ones_jobs(lab: Lab) -> None:
    admin = as_client(lab.site, "boss", role="admin")
    for value in ("old", "new"):
        body = {"client_id": "c", "client_secret": "a long enough key"}
        ok(admin.post("/v1/client-permissions", json=body))
        http = client(lab.site.url, auth=("c", "a long enough key"))
        ok(http.put("/v1/secrets/c/token", json={"value": value}))
        if value == "old":
            submit(http, "q", test_data={"secrets": {"TOKEN": "token"}})
            ok(admin.delete("/v1/client-permissions/c"))
    given = as_client(lab.site, "robot", role="agent").get("/v1/job", params={"queue": "q"}).json()
    assert "new" not in json.dumps(given)


def test_a_queue_keeps_its_name(lab: Lab) -> None:
    lab.submit("q")
    project = lab.site.read("SELECT id FROM project WHERE name = 'q'")[0][0]
    response = lab.site.admin.update_project(project, name="other")
    assert response.status_code == 409 and "name: " in response.json()["message"]
    assert lab.site.admin.update_project(project, name="q", motd="hello").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"X-Real-IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"CF-Connecting-IP": "192.0.2.1"},
        {"Host": "192.0.2.1"},
        {"Host": "lab.example:80@localhost"},
        {"Host": "[::1"},
        {"Host": ""},
    ],
)
def test_what_a_proxy_or_another_name_brought_needs_credentials(lab: Lab, headers: dict[str, str]) -> None:
    assert lab.http.get("/v1/agents/data", headers=headers).status_code in (400, 401)


def test_below_a_path_prefix_there_is_a_proxy(make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="/tracker")
    assert refused(client(site.url).get("/v1/agents/data"), 401)


def test_a_picture_in_a_page_takes_no_job_and_no_output(lab: Lab) -> None:
    job, browser = lab.submit("q"), {"User-Agent": "Mozilla/5.0", "Accept": "image/*"}
    ok(lab.http.post(f"/v1/result/{job}/output", content=b"said"))
    for path in ("/v1/job?queue=q", f"/v1/result/{job}/output"):
        assert refused(lab.http.get(path, headers=browser), 403)
    assert lab.state(job) == "waiting"
    assert ok(lab.http.get(f"/v1/result/{job}/output")).text == "said"
    powershell = {"User-Agent": "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.1682"}
    assert ok(lab.http.get("/v1/job?queue=q", headers=powershell)).json()["job_id"] == job


def test_what_an_agent_tells_of_itself_is_bounded_and_its_name_is_its_own(lab: Lab) -> None:
    agent = lab.agent("a", identifier=None, queues=["q"], log=["x" * 10_000])
    lab.post("/agents/data/a", {"name": "fake"})
    assert refused(agent.http.post("/v1/agents/data/a", json={"more": "x" * 2**18}), 413)
    shown = lab.get("/agents/data/a")
    assert (shown["name"], shown["state"], shown["queues"]) == ("a", "", ["q"])
    assert "identifier" not in shown
    (listening,) = lab.get("/queues/q/agents")
    assert listening == {"name": "a", "queues": ["q"]} | dict.fromkeys(
        ("state", "location", "provision_type", "job_id", "comment"), ""
    )
    assert lab.site.read("SELECT max(length(line)) FROM testflinger_agent_line")[0][0] < 10_000


def test_an_agent_that_a_manager_has_paused_stays_paused_however_silent_it_is(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "PRUNE_INTERVAL", 0.1)
    lab = Lab(make_site(testflinger_retention=1000))
    paused, silent = lab.agent("paused"), lab.agent("silent")
    lab.submit("q")
    paused.finish(paused.polled("q")["job_id"])
    worker = lab.site.read("SELECT worker FROM testflinger_agent WHERE name = 'paused'")[0][0]
    assert lab.site.admin.post("/worker/set_paused", {"worker": worker, "paused": True}).status_code == 200
    lab.submit("q")
    lab.site.clock.pass_time(1001)
    wait_until(lambda: lab.http.get("/v1/agents/data/silent").status_code == 404)
    assert paused.polled("q") is None
    silent.tell()
    assert silent.polled("q") is not None


def test_an_agent_that_only_its_cookie_names_has_one_worker(lab: Lab) -> None:
    http = client(lab.site.url, cookies={"agent_name": "ghost"})
    for _ in range(3):
        lab.submit("q")
        assert polled(http, "q")
    assert lab.site.read("SELECT COUNT(*) FROM worker WHERE alias = 'ghost'") == [(1,)]


def test_a_result_has_a_thousand_fields_at_most(lab: Lab) -> None:
    job = new_id()
    assert refused(lab.http.post(f"/v1/result/{job}", json={f"f{n}": 0 for n in range(1001)}), 422)
    assert empty(lab.http.get(f"/v1/result/{job}"))
    ok(lab.http.post(f"/v1/result/{job}", json={f"f{n}": 0 for n in range(1000)}))


def test_a_queue_that_nobody_uses_goes_and_gives_its_name_back(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "PRUNE_INTERVAL", 0.1)
    lab = Lab(make_site(testflinger_retention=1000))
    lab.cancel(lab.submit("slip-of-the-pen"))
    lab.finished("served")
    lab.submit("waiting")
    paused = lab.submit("paused") and lab.site.read("SELECT id FROM project WHERE name = 'paused'")[0][0]
    lab.cancel(lab.site.read("SELECT uuid FROM testflinger_job ORDER BY job DESC")[0][0])
    assert lab.site.admin.update_project(paused, paused=True).status_code == 200
    lab.post("/agents/queues", {"old": "", "listened": ""})
    lab.post("/agents/images", {"imaged": {"a": "b"}})
    granted = lab.finished("granted") and lab.site.read("SELECT id FROM project WHERE name = 'granted'")[0][0]
    assert lab.site.admin.set_role(granted, lab.site.create_manager(), 1).status_code == 200
    lab.site.clock.pass_time(1001)
    lab.agent(queues=["listened"])
    lab.post("/agents/queues", {"new": ""})
    kept = {"served", "waiting", "paused", "listened", "imaged", "granted", "new"}
    wait_until(lambda: lab.projects() == kept)
    lab.site.clock.pass_time(100)
    assert lab.site.admin.create_project("slip-of-the-pen")
    assert lab.get("/agents/queues").keys() == {"listened", "new"}
    assert lab.site.read("SELECT COUNT(*) FROM snapshot WHERE project NOT IN (SELECT id FROM project)") == [(0,)]


def test_output_that_a_full_log_has_no_room_for_is_told_of(make_site: Callable[..., Site]) -> None:
    lab = Lab(make_site(max_job_log=1))
    job = lab.submit("q")
    polled(lab.http, "q")
    for number in range(6):
        ok(lab.http.post(f"/v1/result/{job}/output", content=b"x" * 500))
        post_fragment(lab.http, job, number, "y" * 500, kind="serial")
    said = ok(lab.http.get(f"/v1/result/{job}/output")).text
    assert said.count("the log is full") == 1 and said.rstrip().endswith("further output is dropped]")
    assert lab.get(f"/result/{job}")["test_serial"].count("the log is full") == 1


def test_a_queue_is_shown_to_admins_and_to_whom_they_grant_it(lab: Lab) -> None:
    lab.submit("secret-lab")
    project = lab.site.read("SELECT id FROM project")[0][0]
    manager = lab.site.create_manager()
    assert "secret-lab" not in lab.site.guest.get("/project/list").text + manager.get("/project/list").text
    assert lab.site.admin.set_role(project, manager, 1).status_code == 200
    assert "secret-lab" in manager.get("/project/list").text


# ── Long answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

ODD_TEXT = 'é"\\\n\t\u2028😀'


@pytest.mark.parametrize("pause", [1, 7, 10_000])
def test_a_long_result_and_a_long_log_are_streamed_and_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch, pause: int
) -> None:
    http = site.guest
    job = http.post("/v1/job", json={"job_queue": "q"}).json()["job_id"]
    report = {"test_output": ODD_TEXT * 9, "test_status": 0, "device_info": {"odd": ODD_TEXT}, "status": {"setup": 1}}
    assert http.post(f"/v1/result/{job}", json=report).status_code == 200
    for number in range(5):
        piece = {
            "fragment_number": number,
            "timestamp": "2025-01-01T00:00:00",
            "phase": "test",
            "log_data": ODD_TEXT * 3,
        }
        assert http.post(f"/v1/result/{job}/log/serial", json=piece).status_code == 200
    paths = [f"/v1/result/{job}", f"/v1/result/{job}/log/serial", f"/v1/result/{job}/log/serial?start_fragment=2"]
    whole = [http.get(path) for path in paths]
    assert all("content-length" in answer.headers for answer in whole)
    monkeypatch.setattr(testflinger_domain, "MOST_AT_ONCE", 20)
    monkeypatch.setattr(testflinger_domain, "LONG_PIECE", pause)
    for path, before in zip(paths, whole, strict=True):
        answer = http.get(path)
        assert "content-length" not in answer.headers
        assert answer.content == before.content
        assert answer.headers["content-type"] == before.headers["content-type"]


@pytest.mark.parametrize("path", ["/v1/agents/data", "/v1/queues/q/agents"])
def test_a_list_of_agents_is_sent_a_piece_at_a_time(site: Site, path: str) -> None:
    for number in range(8):
        told = {"queues": ["q"], "comment": f"agent {number}", "other": "x" * 200_000}
        assert site.guest.post(f"/v1/agents/data/agent-{number}", json=told).status_code == 200
    answer = site.guest.get(path)
    assert "content-length" not in answer.headers
    listed = answer.json()
    assert [agent["name"] for agent in listed] == [f"agent-{number}" for number in range(8)]
    assert listed[7]["comment"] == "agent 7"


def test_what_agents_say_about_queues_is_sent_a_piece_at_a_time(site: Site) -> None:
    said = {f"queue {number:03}": f"{number:03}" + "x" * 9_000 for number in range(150)}
    assert site.guest.post("/v1/agents/queues", json=said).status_code == 200
    answer = site.guest.get("/v1/agents/queues")
    assert "content-length" not in answer.headers
    assert answer.json() == said


def test_what_is_short_beside_a_long_text_of_a_result_is_sent_at_once(site: Site) -> None:
    job = site.guest.post("/v1/job", json={"job_queue": "q"}).json()["job_id"]
    report = {"test_output": "x" * 300_000, "status": {f"phase {number}": 0 for number in range(1000)}}
    site.guest.post(f"/v1/result/{job}", json=report)
    with site.guest.stream("GET", f"/v1/result/{job}") as answer:
        assert sum(len(piece) > 0 for piece in answer.iter_raw()) < 100


def test_a_result_that_changes_while_it_is_sent_is_broken_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    http = site.guest
    job = http.post("/v1/job", json={"job_queue": "q"}).json()["job_id"]
    http.post(f"/v1/result/{job}", json={"test_output": "x" * 3_000_000})
    monkeypatch.setattr(testflinger_domain, "MOST_AT_ONCE", 20)
    with http.stream("GET", f"/v1/result/{job}") as answer:
        pieces = answer.iter_bytes(1000)
        next(pieces)
        http.post(f"/v1/result/{job}", json={"test_output": "y"})
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
