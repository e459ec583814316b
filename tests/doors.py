"""The doors to the jobs of one tracker: the native API and each dialect, as adapters with the same verbs.

A `House` has one project and one template. A client door submits that template and asks for its jobs; an agent door is
given the jobs and reports on them. A dialect overrides the verbs that it has; what it lacks is done through the native
API, because a job is the same behind every door. So a new dialect is a subclass of NativeClient (and of NativeAgent,
when it has workers of its own), and an entry in CLIENTS or AGENTS.

A job's id is the tracker's own at every door, so that one can be asked about what came through another.

What a door tells the contract tests about itself:

    verbs                 (clients) those it has itself: they are tried with unknown ids and wrong credentials
    words                 (clients) its name for each state of a job, and for the ways there that some doors tell apart
    unknown, forbidden    the status with which it answers an unknown id, and wrong credentials; of a client, `unknown`
                          has the verbs that tell one from a job about which there is nothing to say
    of_template           (clients) whether its jobs are of the house's template: else nobody else has declared them
    sees_all              (clients) whether it knows jobs that are of no template
    keeps_late_reports    (clients) whether it shows what agents report when it no longer matters, beside the outcome
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
from typing import Any, ClassVar

import httpx
from conftest import Site, client

import tracker


class Refused(Exception):
    """A door said no, with this HTTP status."""

    def __init__(self, response: httpx.Response):
        super().__init__(f"{response.status_code}: {response.text}")
        self.status = response.status_code


def accepted(response: httpx.Response) -> httpx.Response:
    if response.status_code >= 400:
        raise Refused(response)
    return response


def content(response: httpx.Response) -> Any:
    """What an accepted native call answers."""
    return accepted(response).json().get("content")


class House:
    """A tracker with one project and one template, which every door can open. `key` is the template's.

    Unless it is given, the project is a queue that an agent of Testflinger has advertised: to others it is a project
    like any, and that dialect is in no other one.
    """

    NAME, KEY, TIMEOUT, QUEUE = "build", "secure123", 60, "house"
    MARGIN = 600  # seconds that jobs of Testflinger have beyond their timeout

    def __init__(self, site: Site, project: int | None = None, **fields: Any):
        self.site = site
        self.project = project or self.advertise_queue()
        self.template = self.create_template(self.NAME, **{"key": self.KEY, **fields})

    def advertise_queue(self) -> int:
        """The id of the queue's project."""
        accepted(client(f"{self.site.url}/v1").post("/agents/queues", json={self.QUEUE: "where all doors lead"}))
        projects = content(self.site.admin.get("/project/list"))["projects"]
        project = next(project["id"] for project in projects if project["name"] == self.QUEUE)
        self.site.admin.update_project(project, hidden=False)  # as others are: strangers are told that it is not theirs
        return project

    def create_template(self, name: str, **fields: Any) -> dict[str, Any]:
        fields = {"project": self.project, "name": name, "api": True, "timeout": self.TIMEOUT, **fields}
        return content(self.site.admin.post("/template/create", fields))["template"]

    def change_template(self, **fields: Any) -> None:
        content(self.site.admin.post(f"/template/update/{self.template['id']}", fields))

    def reveal(self, path: str, **fields: Any) -> dict[str, str]:
        """Sends the form of a manager's page, and returns what is shown this once, by name."""
        http = self.site.admin.http
        form_token = re.search(r'name="token" value="([^"]+)"', http.get(path).text)[1]
        page = accepted(http.post(path, data={"token": form_token, **fields}, follow_redirects=True))
        return dict(re.findall(r'id="fresh-(\w+)">([^<]+)<', page.text))

    def let_leases_expire(self) -> None:
        self.site.clock.pass_time(self.TIMEOUT + self.MARGIN + tracker.JOB_GRACE + 1)


class NativeClient:
    """Who wants jobs done, through the native API, as a manager of the project."""

    verbs = ("submit", "state", "log", "result", "cancel", "retry")
    words: ClassVar[dict[str, Any]] = {
        "waiting": "waiting",
        "assigned": "assigned",
        "succeeded": "succeeded",
        "succeeded at the second attempt": "succeeded",
        "failed": "failed",
        "timed_out": "timed_out",
        "cancelled": "cancelled",
        "cancelled while assigned": "cancelled",
    }
    unknown: ClassVar[dict[str, int]] = dict.fromkeys(verbs[1:], 404)
    forbidden = 403
    of_template = sees_all = True
    keeps_late_reports = False
    unknown_id = "0123456789abcdef01234567"

    def __init__(self, house: House):
        self.house, self.native = house, house.site.admin.http
        self.http = self.native

    def stranger(self) -> NativeClient:
        """The same door, tried by somebody without the right credentials."""
        stranger = type(self)(self.house)
        stranger.native = stranger.http = self.house.site.create_manager().http
        return stranger

    def submit(self) -> str:
        """The id of a new job."""
        path = f"/template/trigger/{self.house.template['id']}"
        return content(self.native.post(path, json={}))["job"]["id"]

    def submit_with_attempts(self, count: int) -> str:
        """The id of a new job that is tried so many times, if need be."""
        self.house.change_template(max_retries=count)
        return self.submit()

    def job(self, job: str) -> dict[str, Any]:
        return content(self.native.get(f"/job/get/{job}"))["job"]

    def state(self, job: str) -> Any:
        """The job's state, in the door's own words."""
        return self.job(job)["state"]

    def log(self, job: str) -> list[str]:
        """The messages that were logged, the oldest first."""
        return [entry["message"] for entry in content(self.native.get(f"/job/log/{job}"))["entries"]]

    def result(self, job: str) -> Any:
        """What whoever did the job gave as its output."""
        return self.job(job)["output"]

    def cancel(self, job: str) -> None:
        content(self.native.post(f"/job/cancel/{job}"))

    def retry(self, job: str) -> str:
        """The id of a new job that does the same once more."""
        return content(self.native.post(f"/job/retry/{job}"))["job"]["id"]


class AsTyped(http.client.HTTPConnection):
    """A connection whose URLs go out as they were typed, as those of curl do."""

    def _encode_request(self, request: str) -> bytes:
        return request.encode()


class OtterClient(NativeClient):
    """A script with curl: three calls, and the template's key, which it gives in every way that there is, in turn.

    It pastes the token into its URLs and leaves what is not ASCII in them as it is; its JSON has null members; and it
    knows five texts.
    """

    STATUSES = ("Pending", "Executing", "Succeeded", "Warning", "Error")

    verbs = ("submit", "state", "log")
    words: ClassVar[dict[str, Any]] = {
        "waiting": "Pending",
        "assigned": "Executing",
        "succeeded": "Succeeded",
        "succeeded at the second attempt": "Warning",
        "failed": "Error",
        "timed_out": "Error",
        "cancelled": "Error",
        "cancelled while assigned": "Error",
    }
    unknown: ClassVar[dict[str, int]] = dict.fromkeys(verbs[1:], 400)
    sees_all = False

    def __init__(self, house: House, key: str = House.KEY):
        super().__init__(house)
        self.key = key
        self.ways = itertools.cycle((self.in_query, self.in_form, self.in_header, self.in_json))

    def stranger(self) -> OtterClient:
        return OtterClient(self.house, "a+wrong+key")

    def in_query(self, path: str) -> tuple[str, str, str | None, dict[str, str]]:
        return "GET", f"{path}&key={self.key}", None, {}

    def in_form(self, path: str) -> tuple[str, str, str | None, dict[str, str]]:
        return "POST", path, f"key={self.key}", {"Content-Type": "application/x-www-form-urlencoded"}

    def in_header(self, path: str) -> tuple[str, str, str | None, dict[str, str]]:
        return "GET", path, None, {"X-ApiKey": self.key}

    def in_json(self, path: str) -> tuple[str, str, str | None, dict[str, str]]:
        members = {"API_Key": self.key, "key": None, "comment": None}
        return "POST", path, json.dumps(members), {"Content-Type": "application/json"}

    def call(self, endpoint: str, query: str) -> str:
        method, path, body, headers = next(self.ways)(f"/api/jobs/{endpoint}?{query}")
        connection = AsTyped(self.house.site.url.removeprefix("http://"), timeout=90)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return accepted(httpx.Response(response.status, content=response.read())).text

    def submit(self) -> str:
        return self.call("trigger", f"template={self.house.NAME}&by=Tromsø")

    def state(self, job: str) -> str:
        return self.STATUSES[self.STATUSES.index(self.call("status", f"token={job}"))]

    def log(self, job: str) -> list[str]:
        return [line.partition(": ")[2] for line in self.call("logs", f"token={job}").splitlines()]


class NativeAgent:
    """A worker of the native API. What it holds is the task, as it was assigned."""

    unknown, forbidden = 404, 401
    unknown_held: ClassVar[dict[str, Any]] = {"id": 999_999}

    def __init__(self, house: House):
        self.house = house
        self.worker = house.site.create_worker(house.project)
        self.http = self.worker.http

    def stranger(self) -> NativeAgent:
        stranger = NativeAgent(self.house)
        stranger.http.headers["X-Secret"] = "a wrong secret"
        return stranger

    def assign(self) -> dict[str, Any] | None:
        """The next job's task, or None when there is none."""
        answer = accepted(self.http.get(f"/task/get/{self.house.project}")).json()
        return answer["content"]["task"] if answer["ok"] else None

    def log(self, held: dict[str, Any], *messages: str) -> None:
        entries = [{"message": message, "timestamp": 1} for message in messages]
        content(self.http.post("/task/log", json={"task_id": held["id"], "entries": entries}))

    def succeed(self, held: dict[str, Any], output: Any = None) -> None:
        self.release(held, tracker.OK, {"state": "success", "output": output})

    def fail(self, held: dict[str, Any], output: Any = None) -> None:
        self.release(held, tracker.FAIL, {"state": "failure", "output": output})

    def release(self, held: dict[str, Any], result: int, output: Any) -> None:
        body = {"task_id": held["id"], "result": result, "output": output}
        content(self.http.post("/task/release", json=body))

    def end(self, held: dict[str, Any], last: str, code: int, killed: bool = False) -> None:
        """Tells of a script with this last line and exit status, as worker.py does."""
        self.log(held, last)
        output = {"state": last, "code": code, "log": f"{last}\n", "lastline": last, "signal": None, "killed": killed}
        self.release(held, tracker.FAIL if code or killed else tracker.OK, output)


class TheeyeClient(NativeClient):
    """A program with an integration token of theeye.io. It names a state by the job's lifecycle and state."""

    verbs = ("submit", "state", "result", "cancel")
    words: ClassVar[dict[str, Any]] = {
        "waiting": ("ready", "in_progress"),
        "assigned": ("assigned", "in_progress"),
        "succeeded": ("finished", "success"),
        "succeeded at the second attempt": ("finished", "success"),
        "failed": ("finished", "failure"),
        "timed_out": ("terminated", "timeout"),
        "cancelled": ("canceled", "canceled"),
        "cancelled while assigned": ("terminated", "canceled"),
    }
    unknown: ClassVar[dict[str, int]] = dict.fromkeys(verbs[1:], 404)
    forbidden = 401

    def __init__(self, house: House, token: str = ""):
        super().__init__(house)
        token = token or house.reveal("/ui/theeye/tokens", name="a program")["token"]
        self.http = client(f"{house.site.url}/tracker", headers={"Authorization": f"Bearer {token}"})

    def stranger(self) -> TheeyeClient:
        return TheeyeClient(self.house, "a wrong token")

    def submit(self) -> str:
        (task,) = accepted(self.http.get("/task", params={"where[name]": self.house.NAME})).json()
        return accepted(self.http.post(f"/task/{task['id']}/job", json={"task_arguments": []})).json()["id"]

    def job(self, job: str) -> dict[str, Any]:
        return accepted(self.http.get(f"/job/{job}")).json()

    def state(self, job: str) -> tuple[str, str]:
        shown = self.job(job)
        return shown["lifecycle"], shown["state"]

    def cancel(self, job: str) -> None:
        accepted(self.http.put(f"/job/{job}/cancel"))


class TheeyeRobot(TheeyeClient):
    """What answers mails for theeye.io: it has a task's secret, and names neither a customer nor a content type.

    It only triggers; how the job is doing is seen by a program with a token.
    """

    verbs = ("submit",)
    unknown: ClassVar[dict[str, int]] = {}
    forbidden = 403

    def __init__(self, house: House, secret: str = ""):
        super().__init__(house)
        self.robot, self.secret = client(house.site.url), secret

    def stranger(self) -> TheeyeRobot:
        return TheeyeRobot(self.house, "f" * 64)

    def submit(self) -> str:
        (task,) = accepted(self.http.get("/task", params={"where[name]": self.house.NAME})).json()
        secret = self.secret or accepted(self.http.get(f"/task/{task['id']}/credentials")).json()["secret"]
        body = b'{"customer": null, "task_arguments": [null]}'
        return accepted(self.robot.post(f"/task/{task['id']}/secret/{secret}/job", content=body)).json()["id"]


class TheeyeAgent(NativeAgent):
    """An agent of theeye.io. What it holds is the job; the log goes with the result.

    What its script writes last is what it calls the state, whatever that is, and it never looks at the exit status.
    """

    unknown_held: ClassVar[dict[str, Any]] = {"id": NativeClient.unknown_id}

    def __init__(self, house: House):
        self.house = house
        self.http = client(f"{house.site.url}/tracker")
        made = house.reveal("/ui/theeye/agents", alias="an agent", project=house.project)
        login = accepted(self.http.post("/token", auth=(made["id"], made["secret"]))).json()
        self.http.headers["Authorization"] = f"Bearer {login}"

    def stranger(self) -> TheeyeAgent:
        stranger = TheeyeAgent(self.house)
        stranger.http.headers["Authorization"] = "Bearer of nothing"
        return stranger

    def assign(self) -> dict[str, Any] | None:
        jobs = accepted(self.http.get("/job", params={"hostname": "machine"})).json()["jobs"]
        return jobs[0] if jobs else None

    def log(self, held: dict[str, Any], *messages: str) -> None:
        held.setdefault("said", []).extend(messages)

    def release(self, held: dict[str, Any], result: int, output: Any) -> None:
        self.end(held, json.dumps({"state": output["state"], "data": output["output"]}), result)

    def end(self, held: dict[str, Any], last: str, code: int, killed: bool = False) -> None:
        data = {"code": code, "log": "".join(f"{line}\n" for line in (*held.get("said", []), last)), "lastline": last}
        data |= {"signal": None, "killed": killed, "times": {"seconds": 1, "nanoseconds": 0}}
        accepted(self.http.put(f"/job/{held['id']}", json={"result": {"state": last, "data": data}}))


def uuid_of(job: str) -> str:
    """A job's id as Testflinger has it."""
    return f"{job[:8]}-{job[8:12]}-4{job[12:15]}-8{job[15:18]}-{job[18:]}000000"


def job_of(uuid: str) -> str:
    """The job's own id."""
    first, second, third, fourth, fifth = uuid.split("-")
    return first + second + third[1:] + fourth[1:] + fifth.removesuffix("000000")


class TestflingerClient(NativeClient):
    """Somebody with a command line client of Testflinger, who needs no credentials on this machine.

    Its jobs have one attempt and say themselves what is to be done. It does not tell why a job is complete, but for
    the statuses of the job's phases; and it shows all that was ever reported.
    """

    __test__ = False  # whatever its name looks like

    verbs = ("submit", "state", "log", "result", "cancel")
    words: ClassVar[dict[str, Any]] = {
        "waiting": "waiting",
        "assigned": "running",
        "succeeded": "complete",
        "succeeded at the second attempt": "complete",
        "failed": "complete, but a phase failed",
        "timed_out": "complete, but a phase failed",
        "cancelled": "cancelled",
        "cancelled while assigned": "cancelled",
    }
    unknown: ClassVar[dict[str, int]] = {"state": 204, "result": 204, "cancel": 404}
    of_template, keeps_late_reports = False, True

    def __init__(self, house: House):
        super().__init__(house)
        self.http = client(f"{house.site.url}/v1")

    def stranger(self) -> TestflingerClient:
        stranger = TestflingerClient(self.house)
        stranger.http.headers["Authorization"] = "Bearer of.no.token"
        return stranger

    def answer(self, path: str) -> Any:
        response = accepted(self.http.get(path))
        if response.status_code == 204:
            raise Refused(response)
        return response.json()

    def submit(self) -> str:
        test = {"test_cmds": "echo a test"}
        body = {"job_queue": self.house.QUEUE, "global_timeout": self.house.TIMEOUT, "test_data": test}
        return job_of(accepted(self.http.post("/job", json=body)).json()["job_id"])

    def submit_with_attempts(self, count: int) -> str:
        return NativeClient(self.house).submit_with_attempts(count)

    def job(self, job: str) -> dict[str, Any]:
        return self.answer(f"/result/{uuid_of(job)}")

    def state(self, job: str) -> str:
        shown = self.job(job)
        failed = any(shown[name] for name in shown if name.endswith("_status"))
        return shown["job_state"] + ", but a phase failed" * failed

    def log(self, job: str) -> list[str]:
        phases = self.answer(f"/result/{uuid_of(job)}/log/output")["output"].values()
        return [line for phase in phases for line in phase["log_data"].splitlines()]

    def result(self, job: str) -> Any:
        return self.job(job).get("output")

    def cancel(self, job: str) -> None:
        accepted(self.http.post(f"/job/{uuid_of(job)}/action", json={"action": "cancel"}))


class TestflingerAgent(NativeAgent):
    """An agent of Testflinger. What it holds is the job, of which it does the test; each message is a fragment.

    A result for an unknown job is accepted and kept: nothing else comes of it.
    """

    __test__ = False

    unknown, forbidden = 200, 403
    unknown_held: ClassVar[dict[str, Any]] = {"job_id": uuid_of(NativeClient.unknown_id)}
    NAMES = (f"agent-{number}" for number in itertools.count(1))

    def __init__(self, house: House):
        self.house = house
        self.http = client(f"{house.site.url}/v1")
        known = {"state": "waiting", "queues": [house.QUEUE]}
        accepted(self.http.post(f"/agents/data/{next(self.NAMES)}", json=known))  # its cookie says who it is

    def stranger(self) -> TestflingerAgent:
        stranger = TestflingerAgent(self.house)
        stranger.http.headers["Authorization"] = "Bearer of.no.token"
        return stranger

    def assign(self) -> dict[str, Any] | None:
        response = accepted(self.http.get("/job", params={"queue": self.house.QUEUE}))
        return response.json() if response.status_code == 200 else None

    def log(self, held: dict[str, Any], *messages: str) -> None:
        said = held.setdefault("said", itertools.count())
        for message in messages:
            fragment = {"fragment_number": next(said), "timestamp": "2025-01-01T00:00:00Z", "phase": "test"}
            path = f"/result/{held['job_id']}/log/output"
            accepted(self.http.post(path, json={**fragment, "log_data": f"{message}\n"}))

    def end(self, held: dict[str, Any], last: str, code: int, killed: bool = False) -> None:
        self.log(held, last)
        self.release(held, 143 if killed else code, {"output": None})

    def release(self, held: dict[str, Any], result: int, output: Any) -> None:
        report = {"status": {"provision": 0, "test": result}, "output": output["output"]}
        accepted(self.http.post(f"/result/{held['job_id']}", json={**report, "job_state": "complete"}))


CLIENTS = {"native": NativeClient, "otter": OtterClient, "theeye": TheeyeClient, "theeye-robot": TheeyeRobot}
CLIENTS |= {"testflinger": TestflingerClient}
AGENTS = {"native": NativeAgent, "theeye": TheeyeAgent, "testflinger": TestflingerAgent}
