"""The doors to the jobs of one tracker: the native API and each dialect, as adapters with the same verbs.

A `House` has one project and one template. A client door submits that template and asks for its jobs; an agent door is
given the jobs and reports on them. A dialect overrides the verbs that it has; what it lacks is done through the native
API, because a job is the same behind every door. So a new dialect is a subclass of NativeClient (and of NativeAgent,
when it has workers of its own), and an entry in CLIENTS or AGENTS.

What a client door tells the contract tests about itself:

    verbs                 the verbs it has itself: those are tried with unknown ids and wrong credentials
    words                 its name for each state of a job, and for the ways to get there that some doors tell apart
    unknown, forbidden    the status with which it refuses an unknown id, and wrong credentials
"""

from __future__ import annotations

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
    """A tracker with one project and one template, which every door can open. `key` is the template's."""

    NAME, KEY, TIMEOUT = "build", "secure123", 60

    def __init__(self, site: Site, **fields: Any):
        self.site = site
        self.project = site.admin.create_project("house")
        self.template = self.create_template(self.NAME, **{"key": self.KEY, **fields})

    def create_template(self, name: str, **fields: Any) -> dict[str, Any]:
        fields = {"project": self.project, "name": name, "api": True, "timeout": self.TIMEOUT, **fields}
        return content(self.site.admin.post("/template/create", fields))["template"]

    def change_template(self, **fields: Any) -> None:
        content(self.site.admin.post(f"/template/update/{self.template['id']}", fields))

    def reveal(self, path: str, **fields: Any) -> dict[str, str]:
        """Sends the form of a manager's page, and returns what is shown this once, by name."""
        http = self.site.admin.http
        form_token = re.search(r'name="token" value="([^"]+)"', http.get(path).text)[1]
        page = accepted(http.post(path, data={"token": form_token, **fields}))
        return dict(re.findall(r'id="fresh-(\w+)">([^<]+)<', page.text))

    def let_leases_expire(self) -> None:
        self.site.clock.pass_time(self.TIMEOUT + tracker.JOB_GRACE + 1)


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
    unknown, forbidden = 404, 403
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


class OtterClient(NativeClient):
    """A script with curl: three calls, and the template's key."""

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
    unknown, forbidden = 400, 403

    def __init__(self, house: House, key: str = House.KEY):
        super().__init__(house)
        self.http, self.key = client(house.site.url), key

    def stranger(self) -> OtterClient:
        return OtterClient(self.house, "a wrong key")

    def call(self, endpoint: str, **parameters: str) -> str:
        return accepted(self.http.get(f"/api/jobs/{endpoint}", params={**parameters, "key": self.key})).text

    def submit(self) -> str:
        return self.call("trigger", template=self.house.NAME)

    def state(self, job: str) -> str:
        return self.call("status", token=job)

    def log(self, job: str) -> list[str]:
        return [line.partition(": ")[2] for line in self.call("logs", token=job).splitlines()]


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
    unknown, forbidden = 404, 401

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


class TheeyeAgent(NativeAgent):
    """An agent of theeye.io. What it holds is the job; the log goes with the result."""

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
        said = held.get("said", [])
        data = {"code": result, "log": "\n".join(said), "lastline": said[-1] if said else "", "signal": None}
        data |= {"killed": False, "times": {"seconds": 1, "nanoseconds": 0}, "output": output["output"]}
        accepted(self.http.put(f"/job/{held['id']}", json={"result": {"state": output["state"], "data": data}}))


CLIENTS = {"native": NativeClient, "otter": OtterClient, "theeye": TheeyeClient}
AGENTS = {"native": NativeAgent, "theeye": TheeyeAgent}
