"""Doubles of Testflinger's unchanged clients: the command line client and the agent, of both generations in use.

`SClient` and `SAgent` are of the public document's time (2025), `HClient` and `HAgent` of the one after it (2026).
Each sends what the real one sends, byte for byte where that matters (who posts `{}`, who posts nothing; which phase a
piece of output belongs to), and is as strict as the real one: what it did not expect raises `Refused` or fails an
assertion. They know the protocol alone, nothing of the server behind it. Their verbs are those of the real programs.

A real program repeats most of what it has sent and got no answer to (`Repeating`); `losing` is a proxy for that.

A real client looks every few seconds, and a real agent takes hours. Here `poll` and `run` are generators that do one
step at a time, so that a test decides who comes next, and nobody sleeps.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import http.server
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
from conftest import Site, client, serving_in_thread
from doors import House, TestflingerAgent, TestflingerClient, job_of, uuid_of
from doors import Refused as RefusedByDoor
from test_pages import Tab

import tracker

PHASES = ("setup", "provision", "firmware_update", "test", "allocate", "reserve")
ENDED = ("cancelled", "complete", "completed")
KILLED = 143  # what a phase that is stopped exits with
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
TOKEN = r"[\w-]+\.[\w-]+\.[\w-]+"


class Refused(RefusedByDoor):
    """The server answered with a status on which the real program gives up."""

    def __init__(self, response: httpx.Response):
        super().__init__(response)
        self.args, self.text = (f"{response.request.method} {response.request.url}: {self.args[0]}",), response.text


def expect(response: httpx.Response, *statuses: int) -> httpx.Response:
    """The response, if it has one of the statuses (200, unless said otherwise)."""
    if response.status_code not in (statuses or (200,)):
        raise Refused(response)
    return response


def pack(files: dict[str, bytes]) -> bytes:
    """The files as a gzipped tar, as clients pack attachments and agents artifacts."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def unpack(packed: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


def claims(token: str) -> dict[str, Any]:
    """What an access token says."""
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def with_credentials(url: str, credentials: tuple[str, str]) -> str:
    """The URL of a server with who calls it, as an agent's configuration has it."""
    name, key = (quote(part, safe="") for part in credentials)
    return url.replace("://", f"://{name}:{key}@")


def upload(http: httpx.Client, path: str, packed: bytes) -> None:
    expect(http.post(path, files={"file": ("file", io.BytesIO(packed), "application/x-gzip")}))


def download(http: httpx.Client, path: str) -> bytes:
    """The bytes as they came over the wire: what the real programs write into a file."""
    with http.stream("GET", path) as response:
        if response.status_code != 200:
            response.read()
        expect(response)
        assert "Content-Encoding" not in response.headers
        return b"".join(response.iter_raw())


# ── When an answer is lost ──────────────────────────────────────────────────────────────────────────────────────────

ONCE = re.compile(r"GET /v1/job\?.*|POST /v1/job/[^/]+/action|\w+ /v1/result/[^/]+/(serial_)?output")


class Repeating(httpx.HTTPTransport):
    """A program's way to the server: what got no answer is sent again, but for what does something else each time."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return super().handle_request(request)
        except httpx.RemoteProtocolError:
            if ONCE.fullmatch(f"{request.method} {request.url.raw_path.decode()}"):
                raise
            return super().handle_request(request)


class LosingProxy(http.server.BaseHTTPRequestHandler):
    """Passes each request on, and closes the connection the first time that one which is repeated is answered."""

    protocol_version = "HTTP/1.1"
    server_url: ClassVar[str]
    lost: ClassVar[list[str]]  # of the calls whose answer was lost: what they were

    def pass_on(self) -> None:
        call, body = f"{self.command} {self.path}", self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = httpx.request(self.command, self.server_url + self.path, content=body, headers=dict(self.headers))
        repeated = f"{call} {body!r}"
        if not ONCE.fullmatch(call) and repeated not in self.lost:
            self.lost.append(repeated)
            self.close_connection = True
            return
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name not in ("content-length", "transfer-encoding"):
                self.send_header(name, value)
        if answer.status_code != 204:
            self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do_DELETE = pass_on

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def losing(url: str) -> Iterator[tuple[str, list[str]]]:
    """The URL of a proxy in front of the server that loses the first answer to each call, and the calls so far."""
    lost: list[str] = []
    with serving_in_thread(type("Proxy", (LosingProxy,), {"server_url": url, "lost": lost})) as proxy:
        yield proxy, lost


# ── The command line client ─────────────────────────────────────────────────────────────────────────────────────────


def command(verb: Callable) -> Callable:
    """A command of the command line client: before each, a client may ask the server something."""

    @functools.wraps(verb)
    def run(self: CommandLine, *args: Any, **options: Any) -> Any:
        self.begin()
        return verb(self, *args, **options)

    return run


class CommandLine:
    """What both generations of the command line client have in common. A verb returns what the real one prints.

    With credentials it gets itself a token at its first submission, sends it with each, and gets another one when it
    is told that the token has expired. `refusals` has what the server had to say against it.
    """

    generation: ClassVar[str]

    def __init__(self, url: str, credentials: tuple[str, str] | None = None):
        self.http, self.credentials = client(url, transport=Repeating(verify=False)), credentials
        self.token = ""
        self.refusals: list[Refused] = []

    def begin(self) -> None:
        """What the client does before each command."""

    def authenticate(self) -> str:
        """A new access token for the credentials."""
        raise NotImplementedError

    def authenticate_again(self) -> str:
        """A new access token, when the old one has expired."""
        return self.authenticate()

    def authorization(self) -> dict[str, str]:
        raise NotImplementedError

    def serialised(self, definition: dict[str, Any]) -> dict[str, Any]:
        """The definition as it is sent."""
        return definition

    def new_output(self, job: str, kind: str, seen: dict[str, int]) -> str:
        """The output (or serial output) since the last look. `seen` is what the client remembers between two."""
        raise NotImplementedError

    @command
    def submit(self, definition: dict[str, Any], files: dict[str, bytes] | None = None) -> str:
        """The id of the new job. `files` are the local ones that the definition names as attachments."""
        job = self.post_job(definition)
        if attachments := self.named_attachments(definition, files or {}):
            upload(self.http, f"/v1/job/{job}/attachments", pack(attachments))
        return job

    def named_attachments(self, definition: dict[str, Any], files: dict[str, bytes]) -> dict[str, bytes]:
        """The attachments that the definition names, under the names that the agent looks for."""
        return {
            f"{name.removesuffix('_data')}/{attachment.get('agent', attachment['local'])}": files[attachment["local"]]
            for name, data in definition.items()
            if name.endswith("_data")
            for attachment in (data or {}).get("attachments", ())
        }

    def post_job(self, definition: dict[str, Any]) -> str:
        if self.credentials and not self.token:
            self.token = self.authenticate()
        try:
            return self.try_post_job(definition)
        except Refused as refused:
            self.refusals.append(refused)
            if not (refused.status == 401 and "expired" in refused.text):
                raise
        self.token = self.authenticate_again()
        return self.try_post_job(definition)

    def try_post_job(self, definition: dict[str, Any]) -> str:
        headers = self.authorization() if self.token else {}
        job = expect(self.http.post("/v1/job", json=self.serialised(definition), headers=headers)).json()["job_id"]
        assert re.fullmatch(UUID, job), job
        return job

    @command
    def reserve(self, queue: str, image: str, *ssh_keys: str, **reserve_data: Any) -> str:
        """The id of a job that reserves a machine with one of the queue's images."""
        name, url = self.get_images(queue)[image].split(": ", 1)
        reserve_data = {"ssh_keys": list(ssh_keys), **reserve_data}
        return self.post_job({"job_queue": queue, "provision_data": {name: url}, "reserve_data": reserve_data})

    @command
    def show(self, job: str) -> dict[str, Any]:
        """The job's definition."""
        return expect(self.http.get(f"/v1/job/{job}")).json()

    @command
    def status(self, job: str) -> str:
        return self.get_state(job)

    def get_state(self, job: str) -> str:
        state = expect(self.http.get(f"/v1/result/{job}")).json()["job_state"]
        assert isinstance(state, str)
        return state

    @command
    def position(self, job: str) -> int:
        return self.get_position(job)

    def get_position(self, job: str) -> int:
        text = expect(self.http.get(f"/v1/job/{job}/position")).text
        assert re.fullmatch(r"\d+\s*", text), text
        return int(text)

    @command
    def poll(self, job: str, kind: str = "output") -> Iterator[str]:
        """What it prints of the output (or the serial output), one look at a time, until the job has ended."""
        return self.watch(job, kind)

    def watch(self, job: str, kind: str) -> Iterator[str]:
        seen: dict[str, int] = {}
        state = ""
        while state not in ENDED:
            state = self.get_state(job)
            if state == "waiting":
                with contextlib.suppress(Refused):  # somebody may have taken it in the meantime
                    self.get_position(job)
            yield self.new_output(job, kind, seen)

    @command
    def results(self, job: str) -> dict[str, Any]:
        results = expect(self.http.get(f"/v1/result/{job}")).json()
        assert isinstance(results["job_state"], str)
        for name, value in results.items():
            if re.fullmatch(r"(\w+)_status", name):
                assert type(value) is int, name
            if re.fullmatch(r"(\w+)_(output|serial)", name):
                assert type(value) is str, name
        return results

    @command
    def artifacts(self, job: str) -> bytes:
        return download(self.http, f"/v1/result/{job}/artifact")

    @command
    def cancel(self, job: str) -> None:
        assert expect(self.http.post(f"/v1/job/{job}/action", json={"action": "cancel"})).text == "OK"

    @command
    def list_queues(self) -> dict[str, str]:
        return expect(self.http.get("/v1/agents/queues")).json()

    @command
    def list_images(self, queue: str) -> dict[str, Any]:
        return self.get_images(queue)

    def get_images(self, queue: str) -> dict[str, Any]:
        return expect(self.http.get(f"/v1/agents/images/{queue}")).json()

    @command
    def list_agents(self, queue: str) -> list[dict[str, Any]]:
        agents = expect(self.http.get(f"/v1/queues/{queue}/agents")).json()
        assert all(isinstance(agent["name"], str) and isinstance(agent["queues"], list) for agent in agents)
        return agents

    @command
    def search(self, *tags: str, **query: Any) -> set[str]:
        """The ids of the jobs with these tags. The query is `match` and `state`."""
        jobs = expect(self.http.get("/v1/job/search", params={"tags": tags, **query})).json()
        for job in jobs:
            assert re.fullmatch(UUID, job["job_id"]) and re.fullmatch(TIME, job["created_at"]), job
            assert isinstance(job["job_state"], str)
        found = {job["job_id"] for job in jobs}
        assert len(found) == len(jobs)
        return found


class SClient(CommandLine):
    """The command line client of 2025. Its token is the bare text, and so is what it sends as authorization."""

    generation = "S"
    paths: ClassVar[dict[str, str]] = {"output": "output", "serial": "serial_output"}

    def authenticate(self) -> str:
        token = expect(self.http.post("/v1/oauth2/token", json={}, auth=self.credentials)).text
        assert re.fullmatch(TOKEN, token), token
        return token

    def authorization(self) -> dict[str, str]:
        return {"Authorization": self.token}

    def new_output(self, job: str, kind: str, seen: dict[str, int]) -> str:
        return expect(self.http.get(f"/v1/result/{job}/{self.paths[kind]}"), 200, 204).text


class HClient(CommandLine):
    """The command line client of 2026. It keeps its login in a file, and has one count for the output of all phases."""

    generation = "H"
    refresh_token = ""
    left_out = dict.fromkeys(
        ("name", "tags", "job_status_webhook", "exclude_agents", "provision_data", "output_timeout")
    )

    def begin(self) -> None:
        """Asks whether the server wants a login elsewhere: only 404 lets the client go on by itself.

        Begun anew with a login, it gets a token for that. One that has ended it forgets on 400 alone; with any other
        refusal no command gets any further.
        """
        expect(self.http.post("/oidc/auth-init"), 404)
        if self.refresh_token and not self.token and not self.refresh():
            self.refresh_token = ""

    def begin_anew(self) -> None:
        """Another process of the same user: what was in memory is gone."""
        self.token = ""

    def refresh(self) -> bool:
        response = expect(self.http.post("/v1/oauth2/refresh", json={"refresh_token": self.refresh_token}), 200, 400)
        if response.status_code == 200:
            self.token = response.json()["access_token"]
        return response.status_code == 200

    def serialised(self, definition: dict[str, Any]) -> dict[str, Any]:
        """With null for what the definition does not say."""
        return {**self.left_out, **definition}

    def authenticate(self) -> str:
        answer = expect(self.http.post("/v1/oauth2/token", auth=self.credentials)).json()
        assert answer["token_type"] == "Bearer"
        assert answer["expires_in"] > 0
        self.refresh_token = answer["refresh_token"]
        return answer["access_token"]

    def authenticate_again(self) -> str:
        return self.token if self.refresh() else self.authenticate()

    @command
    def log_out(self) -> None:
        expect(self.http.post("/v1/oauth2/revoke", json={"refresh_token": self.refresh_token}))
        self.token = self.refresh_token = ""

    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def new_output(self, job: str, kind: str, seen: dict[str, int]) -> str:
        logs = self.fragments(job, kind, start_fragment=seen.get("next", 0)).values()
        last = max((logged["last_fragment_number"] for logged in logs), default=-1)
        if last >= 0:
            seen["next"] = last + 1
        return "".join(logged["log_data"] for logged in logs)

    def fragments(self, job: str, kind: str, **query: Any) -> dict[str, dict[str, Any]]:
        """{phase: its last fragment's number, and the text of those asked for}"""
        phases = expect(self.http.get(f"/v1/result/{job}/log/{kind}", params=query)).json()["output"]
        for logged in phases.values():
            assert type(logged["last_fragment_number"]) is int and type(logged["log_data"]) is str, logged
        return phases

    @command
    def queue_status(self, queue: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The queue's agents, and its jobs."""
        agents = expect(self.http.get(f"/v1/queues/{queue}/agents")).json()
        response = expect(self.http.get(f"/v1/queues/{queue}/jobs"), 200, 204)
        jobs = response.json() if response.status_code == 200 else []
        assert all(re.fullmatch(TIME, job["created_at"]) and job["job_queue"] == queue for job in jobs)
        return agents, jobs

    @command
    def agent_status(self, name: str) -> dict[str, Any]:
        return expect(self.http.get(f"/v1/agents/data/{name}")).json()


# ── The agent ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Phase:
    """What running a phase brings: its exit status, and what it prints, piece by piece."""

    status: int = 0
    output: tuple[str, ...] = ()
    serial: tuple[str, ...] = ()


class Agent:
    """What both generations of the agent have in common. It keeps its cookies, as the real one's session does.

    `attachments` are the files that came with the last job; `events` what the server answered to each status event.
    """

    generation: ClassVar[str]

    def __init__(self, url: str, name: str, *queues: str):
        self.http, self.name, self.queues = client(url, transport=Repeating(verify=False)), name, queues
        self.device_info = {"agent_name": name, "device_ip": "192.0.2.1"}
        self.attachments: dict[str, bytes] = {}
        self.events: list[httpx.Response] = []

    def register(self, **fields: Any) -> Agent:
        """Tells the server about itself, as at its start and whenever its state changes."""
        data = {
            "queues": list(self.queues),
            "state": "waiting",
            "job_id": "",
            "location": "lab",
            "comment": "",
            **fields,
        }
        response = expect(
            self.http.post(f"/v1/agents/data/{self.name}", json={"provision_type": "noprovision", **data})
        )
        assert response.json() == {"status": "OK"}
        assert self.http.cookies["agent_name"] == self.name
        return self

    def advertise(self, images: dict[str, dict[str, str] | None] | None = None, **descriptions: str | None) -> None:
        """Makes its queues known, and the images that it can provision; None where its configuration says nothing."""
        expect(self.http.post("/v1/agents/queues", json=descriptions))
        if images:
            expect(self.http.post("/v1/agents/images", json=images))

    def log(self, *lines: str) -> None:
        expect(self.http.post(f"/v1/agents/data/{self.name}", json={"log": list(lines)}))

    def check_jobs(self) -> dict[str, Any] | None:
        """The next job, which is the agent's from now on, or None."""
        response = expect(self.http.get("/v1/job", params={"queue": self.queues}), 200, 204)
        if response.status_code == 204:
            assert response.content == b""
            return None
        job = response.json()
        assert re.fullmatch(UUID, job["job_id"]) and re.fullmatch(TIME, job["started_at"]), job
        return job

    def check_state(self, job: str) -> str | None:
        response = expect(self.http.get(f"/v1/result/{job}"), 200, 204)
        return response.json().get("job_state") if response.status_code == 200 else None

    def post_result(self, job: str, **fields: Any) -> None:
        assert expect(self.http.post(f"/v1/result/{job}", json=fields)).text == "OK"

    def post_output(self, job: str, phase: str, kind: str, text: str) -> None:
        """A piece of a phase's output (or serial output)."""
        raise NotImplementedError

    def outcome(self, done: dict[str, Phase]) -> dict[str, Any]:
        """What the agent has to say of the phases that it ran, in its own shape."""
        raise NotImplementedError

    def work(self, phases: dict[str, Phase] | None = None, artifacts: bytes = b"") -> str | None:
        """Does the next job from its first to its last step. Returns its id, or None if there was none."""
        if (job := self.check_jobs()) is None:
            return None
        for _ in self.run(job, phases, artifacts):
            pass
        return job["job_id"]

    def run(self, job: dict[str, Any], phases: dict[str, Phase] | None = None, artifacts: bytes = b"") -> Iterator[str]:
        """Does the job, in steps: says the phase after its state was posted, and after each piece of its output.

        `phases` has what those phases bring of which there is something to say. The agent asks before and within each
        phase whether the job was cancelled; if so, it cleans up and posts the outcome at once.
        """
        job_id, phases = job["job_id"], phases or {}
        done: dict[str, Phase] = {}
        self.begin_job(job)
        for phase in PHASES:
            if self.check_state(job_id) == "cancelled":
                self.emit(job, "cancelled")
                break
            self.post_result(job_id, job_state=phase)
            self.register(state=phase, job_id=job_id)
            yield phase
            if phase != "setup" and f"{phase}_data" not in job:
                continue
            self.emit(job, f"{phase}_start")
            done[phase] = yield from self.run_phase(job_id, phase, phases.get(phase, Phase()))
            self.emit(job, f"{phase}_{'fail' if done[phase].status else 'success'}")
            if phase == "provision":
                self.post_provision_log(job_id, done[phase].status)
            if done[phase].status and phase != "test":
                break
            if phase == "allocate":  # another job's run may use the machine now
                self.post_result(job_id, device_info=self.device_info, job_state="allocated")
                yield "allocated"
        self.emit(job, "cleanup_start")
        done["cleanup"] = yield from self.run_phase(job_id, "cleanup", phases.get("cleanup", Phase()))
        self.end_job(job, done, artifacts)

    def begin_job(self, job: dict[str, Any]) -> None:
        self.attachments = {}
        self.emit(job, "job_start")
        if job.get("attachments_status") == "complete":
            self.attachments = unpack(download(self.http, f"/v1/job/{job['job_id']}/attachments"))

    def run_phase(self, job: str, phase: str, brings: Phase) -> Iterator[str]:
        """Returns what has come of it; that is less than `brings` when the job is cancelled."""
        said: dict[str, list[str]] = {"output": [], "serial": []}
        for kind, pieces in (("output", brings.output), ("serial", brings.serial)):
            for piece in pieces:
                self.post_output(job, phase, kind, piece)
                said[kind].append(piece)
                yield phase
                if phase != "cleanup" and self.check_state(job) == "cancelled":
                    return Phase(KILLED, tuple(said["output"]), tuple(said["serial"]))
        return brings

    def post_provision_log(self, job: str, status: int, detail: str = "") -> None:
        body = {"job_id": job, "exit_code": status, "detail": detail}
        expect(self.http.post(f"/v1/agents/provision_logs/{self.name}", json=body))

    def emit(self, job: dict[str, Any], event: str, detail: str = "") -> None:
        """Tells the job's webhook, if it has one. Whatever comes of that is none of the job's concern."""
        if webhook := job.get("job_status_webhook"):
            happened = {"event_name": event, "timestamp": datetime.now(UTC).isoformat(), "detail": detail}
            body = {"agent_id": self.name, "job_queue": job["job_queue"], "job_status_webhook": webhook}
            response = self.http.post(f"/v1/job/{job['job_id']}/events", json={**body, "events": [happened]})
            self.events.append(response)

    def end_job(self, job: dict[str, Any], done: dict[str, Phase], artifacts: bytes) -> None:
        if artifacts:
            upload(self.http, f"/v1/result/{job['job_id']}/artifact", artifacts)
        self.emit(job, "job_end")
        self.post_result(job["job_id"], **self.outcome(done), job_state="complete")
        self.register()


class SAgent(Agent):
    """The agent of 2025: raw output, and one field for each status and each output."""

    generation = "S"

    def post_output(self, job: str, phase: str, kind: str, text: str) -> None:
        path = {"output": "output", "serial": "serial_output"}[kind]
        expect(self.http.post(f"/v1/result/{job}/{path}", content=text.encode()))

    def outcome(self, done: dict[str, Phase]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for phase, came in done.items():
            fields[f"{phase}_status"] = came.status
            fields[f"{phase}_output"] = "".join(came.output)
            if came.serial:
                fields[f"{phase}_serial"] = "".join(came.serial)
        return fields


class HAgent(Agent):
    """The agent of 2026: numbered fragments of output, and all statuses in one field."""

    generation = "H"

    def __init__(self, url: str, name: str, *queues: str):
        super().__init__(url, name, *queues)
        self.sent: dict[tuple[str, str], int] = {}

    def register(self, **fields: Any) -> Agent:
        """With null for what its configuration does not say."""
        return super().register(**{"identifier": None, "comment": None, **fields})

    def post_output(self, job: str, phase: str, kind: str, text: str) -> None:
        number = self.sent.get((job, kind), 0)
        self.sent[job, kind] = number + 1
        fragment = {"fragment_number": number, "timestamp": datetime.now(UTC).isoformat(), "phase": phase}
        expect(self.http.post(f"/v1/result/{job}/log/{kind}", json={**fragment, "log_data": text}))

    def outcome(self, done: dict[str, Phase]) -> dict[str, Any]:
        return {"status": {phase: came.status for phase, came in done.items()}, "device_info": None}


CLIENTS = {"S": SClient, "H": HClient}
AGENTS = {"S": SAgent, "H": HAgent}


# ── Doors of the contract ───────────────────────────────────────────────────────────────────────────────────────────


class DoubleClient(TestflingerClient):
    """That door, by one of the command line clients."""

    __test__ = False
    program: ClassVar[type[CommandLine]]

    def __init__(self, house: House):
        super().__init__(house)
        self.double = self.program(house.site.url)

    def stranger(self) -> DoubleClient:
        stranger = type(self)(self.house)
        stranger.double.http.headers["Authorization"] = "Bearer of.no.token"
        return stranger

    def submit(self) -> str:
        timeout, test = self.house.TIMEOUT, {"test_cmds": "echo a test"}
        body = {"job_queue": self.house.QUEUE, "global_timeout": timeout, "test_data": test}
        return job_of(self.double.submit(body))

    def job(self, job: str) -> dict[str, Any]:
        return self.double.results(uuid_of(job))

    def log(self, job: str) -> list[str]:
        return self.double.new_output(uuid_of(job), "output", {}).splitlines()

    def cancel(self, job: str) -> None:
        self.double.cancel(uuid_of(job))


class DoubleAgent(TestflingerAgent):
    """That door, by one of the agents."""

    __test__ = False
    program: ClassVar[type[Agent]]

    def __init__(self, house: House):
        self.house = house
        self.double = self.program(house.site.url, next(self.NAMES), house.QUEUE).register()

    def stranger(self) -> DoubleAgent:
        stranger = type(self)(self.house)
        stranger.double.http.headers["Authorization"] = "Bearer of.no.token"
        return stranger

    def assign(self) -> dict[str, Any] | None:
        return self.double.check_jobs()

    def log(self, held: dict[str, Any], *messages: str) -> None:
        for message in messages:
            self.double.post_output(held["job_id"], "test", "output", f"{message}\n")

    def release(self, held: dict[str, Any], result: int, output: Any) -> None:
        outcome = self.double.outcome({"provision": Phase(), "test": Phase(int(result != tracker.OK))})
        self.double.post_result(held["job_id"], **outcome, output=output["output"], job_state="complete")


# Under the name of the plain door, which they make superfluous there: the newer generation.
CONTRACT_CLIENTS = {
    "testflinger": type("HDoor", (DoubleClient,), {"program": HClient}),
    "testflinger 2025": type("SDoor", (DoubleClient,), {"program": SClient}),
}
CONTRACT_AGENTS = {
    "testflinger": type("HDoor", (DoubleAgent,), {"program": HAgent}),
    "testflinger 2025": type("SDoor", (DoubleAgent,), {"program": SAgent}),
}


# ── Whom the tracker's manager lets do more ─────────────────────────────────────────────────────────────────────────


def send_form(site: Site, path: str, **fields: Any) -> httpx.Response:
    """Sends a form of the manager's pages."""
    data = {"token": Tab(site.admin.http).token, **fields}
    return expect(site.admin.http.post(path, data=data, follow_redirects=True))


def create_client(
    site: Site,
    name: str,
    role: str = "contributor",
    max_priority: dict[str, int] | None = None,
    allowed_queues: Sequence[str] = (),
    max_reservation_time: dict[str, int] | None = None,
) -> tuple[str, str]:
    """The credentials of a new client with these limits."""
    maximums = {"max_priority": max_priority or {}, "max_reservation_time": max_reservation_time or {}}
    lines = {
        field: "\n".join(f"{queue}={most}" for queue, most in limits.items()) for field, limits in maximums.items()
    }
    fields = {"client_id": name, "role": role, "allowed_queues": "\n".join(allowed_queues), **lines}
    page = send_form(site, "/ui/testflinger/clients", **fields)
    return name, html.unescape(re.search(r'id="fresh-key"[^>]*>([^<]+)<', page.text)[1])


def restrict_queue(site: Site, queue: str) -> None:
    """Makes a queue, to which only clients that are allowed it may submit."""
    SAgent(site.url, "whoever", queue).advertise(**{queue: ""})
    ((project,),) = site.read("SELECT id FROM project WHERE name = ?", queue)
    send_form(site, f"/ui/testflinger/queues/{project}/restrict", restricted="true")
