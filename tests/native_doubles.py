"""Doubles of the native API's clients that exist: what they send, what they compare, where they give up.

They know the protocol alone, nothing of the server behind it, and do one step at a time, so that nobody sleeps. A
base URL that ends in a slash is joined to paths that begin with one, as their own start scripts do. None of them sends
a JSON content type.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
from conftest import client

INT16 = range(-(2**15), 2**15)
PAUSE = "No task available"  # the text on which the drones pause


class GaveUp(Exception):
    """The real client's thread has ended; if it held a task, it holds it still."""


class Drone:
    """A program that asks one project after the other for a task, runs it, logs its output, releases it."""

    def __init__(self, url: str, alias: str = "drone"):
        self.base, self.http, self.projects = f"{url}/", client(url), [0]
        self.polls, self.pauses, self.done = 0, 0, []
        worker = self.send("POST", "/worker/create", {"alias": alias})["content"]["worker"]
        self.id = worker["id"]
        self.http.headers.update({"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]})

    def send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer's JSON. Where there is nothing to say, the body is `null`."""
        content = json.dumps(body) if method == "POST" else None
        answer = self.http.request(method, self.base + path, content=content)
        if answer.status_code == 204:
            return {"ok": True}
        return answer.json()

    def ask_for_access(self) -> None:
        """For every project that it sees. A refusal (it has asked before) is no matter."""
        self.projects = [one["id"] for one in self.send("GET", "/project/list")["content"]["projects"]]
        for project in self.projects:
            self.send("POST", "/project/request_access", {"project": project, "assign": True, "submit": True})

    def step(self, run: Callable[[dict[str, Any]], str]) -> bool:
        """One round over the projects; whether it is to sleep now."""
        idle = True
        for project in self.projects:
            self.polls += 1
            answer = self.send("GET", f"/task/get/{project}")
            if answer["ok"]:
                self.work(answer["content"]["task"], run)
                idle = False
            elif answer["message"] != PAUSE:
                idle = False
        self.pauses += idle
        return idle

    def work(self, task: dict[str, Any], run: Callable[[dict[str, Any]], str]) -> None:
        for name in ("priority", "retries", "max_retries", "status", "verification_count"):
            if task[name] not in INT16:
                raise GaveUp(f"{name} {task[name]} does not fit")
        secret = self.send("GET", f"/project/secret/{task['project']['id']}")
        if not secret["ok"]:
            raise GaveUp(secret["message"])
        output = run({**task, "secret": secret["content"]["secret"]})
        line = {"scope": "drone", "Message": output, "timestamp": 1559393394}
        answer = self.http.post(f"{self.base}/log/info", content=json.dumps(line))
        if answer.status_code != 204:
            raise GaveUp(answer.text)
        released = self.send("POST", "/task/release", {"task_id": task["id"], "result": 0, "verification": None})
        if not released["ok"]:
            raise GaveUp(released["message"])
        self.done.append(task["id"])


class Submitter(Drone):
    """The other language's client: it submits follow-up tasks, and sends null for all that it has not got."""

    FIELDS = ("priority", "max_assign_time", "hash_u64", "unique_str", "verification_count", "max_retries")

    def submit(self, project: int, recipe: str, **given: Any) -> dict[str, Any]:
        body = {**dict.fromkeys(self.FIELDS), "project": project, "recipe": recipe, **given}
        return self.send("POST", "/task/submit", body)

    def bulk_submit(self, project: int, recipes: list[str]) -> dict[str, Any]:
        tasks = [{**dict.fromkeys(self.FIELDS), "project": project, "recipe": recipe} for recipe in recipes]
        return self.send("POST", "/task/bulk_submit", {"requests": tasks})


class FrontEnd:
    """A browser with the system's web console, behind a proxy that tells no port. It knows nothing but its cookie."""

    def __init__(self, url: str, page: str, host: str):
        self.http = client(url, headers={"Host": host, "Origin": page})

    def enter(self, how: str, username: str, password: str) -> httpx.Response:
        return self.http.post(f"/api/{how}", content=json.dumps({"username": username, "password": password}))

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.http.post(f"/api{path}", content=json.dumps(body))

    def project(self, project: int) -> dict[str, Any]:
        """What it shows on a project's page: it reads `content.project`."""
        return self.http.get(f"/api/project/get/{project}").json()["content"]["project"]
