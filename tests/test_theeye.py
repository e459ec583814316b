"""The theeye.io dialect: its clients as the document shows them, its agent as the real one calls, every error."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import functools
import gc
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import lxml.html
import pytest
from conftest import Site, client, wait_until
from test_pages import Page, Tab
from test_worker import posix_only
from test_worker_run import Machine

import errors
import tracker
from dialects import theeye

SCRIPT = "#!/bin/sh\necho one\necho '[\"from the script\"]'\n"
ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
UNKNOWN = "0123456789abcdef01234567"


class Agent:
    """A double of the real agent. Its verbs are the seven calls, with the bodies that the real one sends."""

    def __init__(self, url: str, credentials: tuple[str, str], hostname: str = "web1"):
        self.http, self.credentials, self.hostname = client(url), credentials, hostname

    def log_in(self) -> httpx.Response:
        response = self.http.post("/token", auth=self.credentials)
        if response.status_code == 200:
            self.http.headers["Authorization"] = f"Bearer {response.json()}"
        return response

    def register(self) -> httpx.Response:
        info = {"os_name": "Linux", "os_version": "6.1", "ip": "127.0.0.1"}
        body = {"hostname": self.hostname, "version": "v0.15.2", "info": info}
        return self.http.post("/host", params={"customer": "tracker"}, json=body)

    def config(self) -> httpx.Response:
        return self.http.get(f"/tracker/agent/{self.hostname}/config")

    def keep_alive(self) -> httpx.Response:
        return self.http.put(f"/tracker/agent/{self.hostname}")

    def fetch(self, **query: Any) -> httpx.Response:
        return self.http.get("/tracker/job", params={"hostname": self.hostname, **query})

    def download(self, script: str) -> httpx.Response:
        return self.http.get(f"/tracker/script/{script}/download")

    def report(self, job: str, state: str = "success", **data: Any) -> httpx.Response:
        times = {"seconds": 0, "nanoseconds": 7156981}
        usual = {"code": 0, "log": "\nnormal\n", "lastline": "normal", "signal": None, "killed": False, "times": times}
        return self.http.put(f"/tracker/job/{job}", json={"result": {"state": state, "data": {**usual, **data}}})

    def run(self, folder: Path) -> str | None:
        """Fetches a job and does it as the real one: its last line is the state, its exit status is not looked at.

        The result is sent once, and never again. Returns the job's id; None: there is none.
        """
        job = self.fetched()
        if job is None:
            return None
        script = folder / job["script"]["filename"]
        if not script.exists() or hashlib.md5(script.read_bytes()).hexdigest() != job["script"]["md5"]:
            script.write_bytes(self.download(job["script"]["id"]).content)
            script.chmod(0o755)
        words = [str(script), *map(shlex.quote, job["task_arguments_values"])]
        command = shlex.split(job["script_runas"].replace("%script%", " ".join(words)))
        own = {"THEEYE_JOB": json.dumps(job["id"]), "THEEYE_ORGANIZATION_NAME": json.dumps(job["customer_name"])}
        timeout, env = job["timeout"] / 1000, {**os.environ, **job["env"], **own}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, timeout=timeout)
        log = done.stdout.decode(errors="replace")
        lastline = next((line for line in reversed(log.split("\n")) if line.strip()), "")
        data = {"code": done.returncode, "signal": None}
        if done.returncode < 0:
            data = {"code": None, "signal": signal.Signals(-done.returncode).name}
        assert self.report(job["id"], lastline, log=log, lastline=lastline, **data).status_code == 200
        return job["id"]

    def started(self) -> Agent:
        """The agent after what it does once."""
        for call in (self.log_in, self.register, self.config, self.keep_alive):
            assert call().status_code in (200, 204)
        return self

    def fetched(self) -> dict[str, Any] | None:
        response = self.fetch()
        assert response.status_code == 200, response.text
        return next(iter(response.json()["jobs"]), None)

    def work(self, **outcomes: dict[str, Any]) -> list[str]:
        """Does every job that there is, and says their names. `outcomes` has what a job of some name reports."""
        names = []
        while job := self.fetched():
            names.append(job["name"])
            source = self.download(job["script"]["id"]).content
            assert hashlib.md5(source).hexdigest() == job["script"]["md5"]
            assert self.report(job["id"], **outcomes.get(job["name"], {})).status_code == 200
        return names


class Robot:
    """A double of those programs that nobody looks at: what answers mails, and what hangs behind a button of a page.

    It has secrets, and knows no token and no customer. What it sends has no content type, and null where it knows
    nothing better.
    """

    def __init__(self, url: str):
        self.http = client(url)

    def trigger(self, kind: str, name: str, secret: str, *arguments: Any) -> dict[str, Any]:
        """A new job of a task or workflow."""
        body = json.dumps({"customer": None, "task_arguments": [*arguments, None]})
        response = self.http.post(f"/{kind}/{name}/secret/{secret}/job", content=body.encode())
        assert response.status_code == 200 and "Content-Type" not in response.request.headers, response.text
        return response.json()


class Sdk:
    """A double of the SDK: a program that starts something and waits for its end, which it knows by its texts."""

    def __init__(self, url: str, token: str):
        self.http = client(url, params={"access_token": token})

    def run(self, workflow: str, *arguments: Any) -> dict[str, Any]:
        body = {"task_arguments": list(arguments), "customer": None}
        return self.answer("POST", f"/workflows/{workflow}/job", json=body)

    def steps(self, workflow: str, job: str) -> list[dict[str, Any]]:
        return self.answer("GET", f"/workflows/{workflow}/job/{job}/jobs")

    def outcome(self, workflow: str, job: str) -> tuple[str, list[str]] | None:
        """The state, and the texts that are handed on; None: it is not over."""
        shown = self.answer("GET", f"/workflows/{workflow}/job/{job}")
        if shown["lifecycle"] in ("finished", "terminated", "canceled", "completed", "expired"):
            texts = shown["output"] or []
            assert all(isinstance(text, str) for text in texts)
            assert not texts or json.loads(shown["result"]["output"]) is not None
            return shown["state"], texts
        return None

    def cancel(self, workflow: str, job: str) -> None:
        self.answer("PUT", f"/workflows/{workflow}/job/{job}/cancel")

    def answer(self, method: str, path: str, **options: Any) -> Any:
        response = self.http.request(method, path, **options)
        assert response.status_code in (200, 204), response.text
        return response.json() if response.content else None


class Place:
    """A tracker with a project, both kinds of integration tokens, and an agent: all made on the pages."""

    def __init__(self, site: Site):
        self.site = site
        self.project = site.admin.create_project("websites")

    @functools.cached_property
    def tab(self) -> Tab:
        return Tab(self.site.admin.http)

    @functools.cached_property
    def form_token(self) -> str:
        return self.tab.token

    @functools.cached_property
    def token(self) -> str:
        return self.make_token("reader")

    @functools.cached_property
    def program(self) -> httpx.Client:
        return self.client(self.token)

    @functools.cached_property
    def admin(self) -> httpx.Client:
        return self.client(self.make_token("writer", admin="true"))

    def act(self, path: str, **fields: Any) -> Page:
        """Sends a form of a manager's page."""
        data = {"token": self.form_token, **fields}
        return Page(self.site.admin.http.post(path, data=data, follow_redirects=True))

    def client(self, token: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return client(f"{self.site.url}/tracker", headers=headers)

    def confirm(self, path: str) -> str:
        """What is said after an action that asks first."""
        page = self.act(path)
        assert "?" in page.tree.find(".//h1").text
        return self.tab.send(page.form(path)).notice

    def make_token(self, name: str, **fields: str) -> str:
        page = self.act("/ui/theeye/tokens", name=name, **fields)
        return page.tree.get_element_by_id("fresh-token").text

    def make_agent(self, alias: str = "agent", project: int | None = None) -> tuple[str, str]:
        page = self.act("/ui/theeye/agents", alias=alias, project=project or self.project)
        assert page.status == 200, page.text
        return tuple(page.tree.get_element_by_id(f"fresh-{name}").text for name in ("id", "secret"))

    def agent(self, hostname: str = "web1", project: int | None = None, alias: str = "agent") -> Agent:
        return Agent(self.site.url, self.make_agent(alias, project), hostname).started()

    def make_task(self, name: str = "deploy", **fields: Any) -> dict[str, Any]:
        body = {"name": name, "type": "script", "host": "websites", "script": SCRIPT, **fields}
        response = self.admin.post("/task", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def secret(self, task: dict[str, Any]) -> str:
        return self.program.get(f"/task/{task['id']}/credentials").json()["secret"]

    def trigger(self, task: dict[str, Any], *arguments: Any) -> dict[str, Any]:
        response = self.program.post("/job", json={"task": task["id"], "task_arguments": list(arguments)})
        assert response.status_code == 200, response.text
        return response.json()

    def job(self, job: dict[str, Any]) -> dict[str, Any]:
        response = self.program.get(f"/job/{job['id']}")
        assert response.status_code == 200, response.text
        return response.json()

    def state(self, job: dict[str, Any]) -> tuple[str, str, str | None]:
        shown = self.job(job)
        return shown["lifecycle"], shown["state"], shown["trigger_name"]

    def log(self, job: dict[str, Any]) -> list[str]:
        return [entry["message"] for entry in self.entries(job) if entry["worker"]]

    def tracker_log(self, job: dict[str, Any]) -> list[str]:
        return [entry["message"] for entry in self.entries(job) if not entry["worker"]]

    def entries(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        return self.site.admin.get(f"/job/log/{job['id']}").json()["content"]["entries"]


@pytest.fixture
def place(site: Site) -> Place:
    return Place(site)


def curl(line: str) -> Any:
    """What a line of a shell with curl in it prints, as JSON."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def definition(kind: str = "input", **fields: Any) -> dict[str, Any]:
    return {"order": 0, "type": kind, "label": "an argument", "value": None, "options": [], **fields}


# The document's examples


def test_the_documents_curl_lines_trigger_a_task_by_token_and_by_secret(place: Place):
    task = place.make_task()
    start = f'task_id="{task["id"]}"; access_token="{place.token}"; customer="tracker"; '
    by_token = curl(
        start
        + r"""curl -sS \
  -X POST \
  -H "Accept: application/json" \
  -H "Content-Type: application/json" \
  -d "{\"task\":\"${task_id}\",\"task_arguments\":[]}" \
  """
        + f'"{place.site.url}/job?access_token=${{access_token}}&customer=${{customer}}"'
    )
    by_secret = curl(
        start
        + f'task_secret_key="{place.secret(task)}"; '
        + r"""curl -sS \
      --request POST \
      --header "Accept: application/json" \
      --header "Content-Type: application/json" \
      --data "{\"customer\":\"${customer}\",\"task\":\"${task_id}\",\"task_arguments\":[]}" \
      """
        + f'"{place.site.url}/job/secret/${{task_secret_key}}"'
    )
    assert by_token["lifecycle"] == by_secret["lifecycle"] == "ready"
    assert by_token["task_id"] == by_secret["task_id"] == task["id"] and by_token["id"] != by_secret["id"]
    url, given = place.site.url, f'customer="tracker"; token="{place.token}"; '
    asked = curl(given + f'curl -sS "{url}/$customer/job/{by_token["id"]}?access_token=$token"')
    assert asked["id"] == by_token["id"]
    (listed,) = curl(given + f'curl -sS "{url}/$customer/task?access_token=$token"')
    assert (listed["name"], listed["id"], listed["hostname"]) == ("deploy", task["id"], "websites")


def test_the_documents_button_of_a_task_works_as_a_browser_sends_it(place: Place):
    task = place.make_task(task_arguments=[definition()])
    html = f"""<html>
  <div>
    <form action="http://api.theeye.io/job/secret/{place.secret(task)}" method="POST">
      <input type="hidden" name="customer" value="tracker">
      <input type="hidden" name="task" value="{task["id"]}">
      <input type="hidden" name="task_arguments[]" value="arg1">
      <input type="submit" value="ACEPTO">
    </form>
  </div>
</html>"""
    job = press(place, html)
    assert job.status_code == 200 and job.json()["task_arguments_values"] == ["arg1"]


def press(place: Place, html: str, **options: Any) -> httpx.Response:
    """What a browser sends when the form's button is pressed."""
    (form,) = lxml.html.fromstring(html).forms
    values: dict[str, list[str]] = {}
    for name, value in form.form_values():
        values.setdefault(name, []).append(value)
    address = form.action.replace("http://api.theeye.io", place.site.url)
    return client("").post(address, data=values, headers={"Origin": "null", "Sec-Fetch-Site": "cross-site"}, **options)


def test_a_new_job_is_shown_as_in_the_document(place: Place):
    task = place.make_task()
    job = place.trigger(task)
    host = job["host"]
    assert re.fullmatch(ISO, job["creation_date"]) and re.fullmatch(ISO, job["last_update"])
    assert job == {
        "task_arguments_values": [],
        "_type": "ScriptJob",
        "output": None,
        "result": None,
        "creation_date": job["creation_date"],
        "last_update": job["last_update"],
        "task": {"id": task["id"], "task_arguments": [], "output_parameters": []},
        "task_id": task["id"],
        "host_id": host["id"],
        "host": host,
        "name": "deploy",
        "lifecycle": "ready",
        "state": "in_progress",
        "trigger_name": None,
        "customer_id": job["customer_id"],
        "customer_name": "tracker",
        "user_id": job["user"]["id"],
        "user": {"id": job["user_id"], "username": "admin", "email": ""},
        "notify": True,
        "origin": "user",
        "script_id": task["script_id"],
        "script_runas": "",
        "timeout": 600000,
        "env": {},
        "id": job["id"],
    }
    assert (host["id"], host["_id"], host["hostname"]) == (task["host_id"], task["host_id"], "websites")
    ids = ("id", "task_id", "host_id", "customer_id", "user_id", "script_id")
    assert all(re.fullmatch("[0-9a-f]{24}", job[name]) for name in ids)
    assert place.job(job) == {**job, "host": host["id"]}


def test_a_finished_job_is_shown_as_in_the_document(place: Place):
    job = place.trigger(place.make_task())
    agent = place.agent()
    agent.fetched()
    agent.report(job["id"], "normal")
    shown = place.job(job)
    assert shown["result"] == {
        "code": 0,
        "log": "\nnormal\n",
        "lastline": "normal",
        "signal": None,
        "killed": False,
        "times": {"seconds": 0, "nanoseconds": 7156981},
    }
    assert place.state(job) == ("finished", "normal", "success") and shown["output"] is None


# Tasks


def test_a_task_is_made_read_changed_and_deleted(place: Place):
    made = place.make_task(
        script_runas="sudo -u www %script%",
        timeout=1500,
        env={"COLOUR": "red", "NUMBER": 5},
        task_arguments=[definition("fixed", value="x"), definition("select", order=1, options=["a", "b"])],
        description="what it does",
    )
    assert place.program.get(f"/task/{made['id']}").json() == made
    assert made["type"] == "script" and made["timeout"] == 1500 and made["env"] == {"COLOUR": "red", "NUMBER": "5"}
    assert [one["type"] for one in made["task_arguments"]] == ["fixed", "select"]
    assert made["script"]["md5"] == hashlib.md5(SCRIPT.encode()).hexdigest()
    changed = place.admin.put(f"/task/{made['id']}", json={"name": "renamed", "timeout": None}).json()
    same = {name: value for name, value in made.items() if name not in ("name", "timeout", "last_update", "script")}
    assert (changed["name"], changed["timeout"]) == ("renamed", None)
    assert {name: changed[name] for name in same} == same
    assert place.admin.patch(f"/task/{made['id']}", json={"script": "echo 2"}).json()["script_id"] != made["script_id"]
    deleted = place.admin.delete(f"/task/{made['id']}")
    assert (deleted.status_code, deleted.json()) == (200, {})
    assert place.program.get("/task").json() == []
    assert place.program.get(f"/task/{made['id']}").status_code == 404


def test_a_whole_task_may_be_put_back_as_it_was_read(place: Place):
    made = place.make_task(env={"A": "b"}, task_arguments=[definition("fixed", value=5)])
    put = place.admin.put(f"/task/{made['id']}", json={**made, "name": "other"})
    assert put.status_code == 200, put.text
    assert {**put.json(), "last_update": ""} == {
        **made,
        "name": "other",
        "last_update": "",
        "script": put.json()["script"],
    }
    assert put.json()["script_id"] == made["script_id"]


def test_a_task_is_made_on_a_host_by_its_id_or_name_or_the_projects(place: Place):
    (project,) = place.program.get("/host").json()
    place.agent("web1")
    (host,) = place.program.get("/host").json()
    assert host["id"] == project["id"] and (project["hostname"], host["hostname"]) == ("websites", "web1")
    names = [host["id"], {"id": host["id"]}, "web1", "websites", place.project, str(place.project)]
    tasks = [place.make_task(f"task {number}", host=name) for number, name in enumerate(names)]
    assert {(task["host_id"], task["hostname"]) for task in tasks} == {(host["id"], "web1")}


def test_no_strangers_project_takes_the_place_of_a_host(place: Place):
    """Its ids can be worked out: whoever names a project like one would be given the scripts meant for it."""
    place.agent("web1")
    (host,) = place.program.get("/host").json()
    stranger = place.site.create_manager("stranger")
    for name in (host["id"], host["id"].upper(), str(place.project), "web1", "web9"):
        stranger.create_project(name)
    for name in (host["id"], host["id"].upper(), str(place.project), place.project, "web1"):
        assert place.make_task(f"task {name}", host=name)["host_id"] == host["id"]
    body = {"name": "deploy", "type": "script", "host": "web9", "script": SCRIPT}
    assert place.admin.post("/task", json=body).status_code == 400


def test_tasks_are_filtered_and_limited(place: Place):
    for name in ("one", "two", "three"):
        place.make_task(name, timeout=None if name == "one" else 1000)

    def names(**query: Any) -> list[str]:
        return [task["name"] for task in place.program.get("/task", params=query).json()]

    assert names() == ["one", "two", "three"]
    assert names(limit=2) == ["one", "two"]
    assert names(**{"where[name]": "two"}) == ["two"]
    assert names(**{"where[timeout]": "1000", "where[type]": "script", "limit": 1}) == ["two"]
    assert names(**{"where[timeout]": "null"}) == ["one"]
    assert names(**{"where[nothing]": "null"}) == []


def test_the_secret_of_a_task_is_64_digits_and_is_shown_with_its_credentials_alone(place: Place):
    task = place.make_task()
    credentials = place.program.get(f"/task/{task['id']}/credentials").json()
    assert credentials == {"id": task["id"], "secret": credentials["secret"]}
    assert re.fullmatch("[0-9a-f]{64}", credentials["secret"])
    shown = [place.program.get(path).text for path in ("/task", f"/task/{task['id']}")]
    shown.append(place.admin.put(f"/task/{task['id']}", json={"name": "x"}).text)
    assert not any("secret" in text for text in shown)


@pytest.mark.parametrize("sent", ["f" * 64, "", True])
def test_sending_a_secret_rotates_it(place: Place, sent: Any):
    task = place.make_task()
    old = place.secret(task)
    answer = place.admin.put(f"/task/{task['id']}", json={"secret": sent})
    new = place.secret(task)
    assert answer.status_code == 200 and new != old and re.fullmatch("[0-9a-f]{64}", new)
    assert new == sent if sent == "f" * 64 else new != sent
    body = {"customer": "tracker", "task": task["id"]}
    answers = [client(place.site.url).post(f"/job/secret/{secret}", json=body) for secret in (old, new)]
    assert [answer.status_code for answer in answers] == [403, 200]


BAD_TASKS = (
    ({"name": ""}, [("name", "EREQ")]),
    ({"name": None, "script": None}, [("name", "EREQ"), ("script", "EREQ")]),
    ({"type": "approval"}, [("type", "EVALID")]),
    ({"type": None, "host": None}, [("type", "EREQ"), ("host", "EREQ")]),
    ({"host": "nowhere"}, [("host", "EVALID")]),
    ({"host": ["web1"]}, [("host", "EVALID")]),
    ({"name": 5, "timeout": -1}, [("name", "EVALID"), ("timeout", "EVALID")]),
    ({"name": "x" * 201}, [("name", "EVALID")]),
    ({"name": " "}, [("name", "EVALID")]),
    ({"timeout": "soon"}, [("timeout", "EVALID")]),
    ({"timeout": True}, [("timeout", "EVALID")]),
    ({"timeout": 1e300}, [("timeout", "EVALID")]),
    ({"timeout": "nan"}, [("timeout", "EVALID")]),
    ({"timeout": 0.4}, [("timeout", "EVALID")]),
    ({"timeout": 0.99}, [("timeout", "EVALID")]),
    ({"timeout": 0}, [("timeout", "EVALID")]),
    ({"env": ["A=b"]}, [("env", "EVALID")]),
    ({"env": {"A=": "b"}}, [("env", "EVALID")]),
    ({"script": 5}, [("script", "EVALID")]),
    ({"script": {"id": UNKNOWN}}, [("script", "EVALID")]),
    ({"script_runas": 5}, [("script_runas", "EVALID")]),
    ({"task_arguments": "x"}, [("task_arguments", "EVALID")]),
    ({"task_arguments": [5]}, [("task_arguments", "EVALID")]),
    ({"task_arguments": [{"order": "first"}]}, [("task_arguments", "EVALID")]),
    ({"task_arguments": [{"order": 10**30}]}, [("task_arguments", "EVALID")]),
    ({"task_arguments": [{"type": {}}]}, [("task_arguments", "EVALID")]),
)


def test_a_task_that_cannot_be_is_refused_by_its_fields(place: Place):
    for change, problems in BAD_TASKS:
        body = {"name": "deploy", "type": "script", "host": "websites", "script": SCRIPT, **change}
        answer = place.admin.post("/task", json=body)
        assert answer.status_code == 400
        assert answer.json() == [{"statusCode": 400, "field": field, "code": code} for field, code in problems]


def test_a_change_that_cannot_be_is_refused_by_its_field(place: Place):
    other = place.site.admin.create_project("other")
    task = place.make_task()
    for change, field, code in (
        ({"host": other}, "host", "EVALID"),
        ({"name": ""}, "name", "EREQ"),
        ({"timeout": []}, "timeout", "EVALID"),
        ({"env": 5}, "env", "EVALID"),
    ):
        answer = place.admin.put(f"/task/{task['id']}", json=change)
        assert (answer.status_code, answer.json()) == (400, [{"statusCode": 400, "field": field, "code": code}])
    assert place.program.get(f"/task/{task['id']}").json() == task


def test_tasks_may_have_the_same_name_but_not_two_that_programs_trigger_by_it(place: Place):
    first, second, other = place.make_task(), place.make_task(), place.make_task("other")
    assert place.admin.put(f"/task/{other['id']}", json={"name": "deploy"}).status_code == 200
    listed = place.program.get("/task", params={"where[name]": "deploy"}).json()
    assert [task["id"] for task in listed] == [first["id"], second["id"], other["id"]]
    place.admin.put(f"/task/{other['id']}", json={"name": "other"})
    for (template,) in place.site.read("SELECT id FROM template WHERE token IN (?, ?)", first["id"], other["id"]):
        assert place.site.admin.post(f"/template/update/{template}", {"api": True}).status_code == 200
    refused = place.admin.put(f"/task/{other['id']}", json={"name": "deploy"})
    assert (refused.status_code, refused.json()) == (400, [{"statusCode": 400, "field": "name", "code": "EVALID"}])


def test_a_command_line_without_the_script_gets_it_at_its_end(place: Place):
    assert place.make_task(script_runas="bash -e")["script_runas"] == "bash -e %script%"


def test_only_an_admin_token_writes_tasks(place: Place):
    task = place.make_task()
    for method, path in (
        ("POST", "/task"),
        *((method, f"/task/{task['id']}") for method in ("PUT", "PATCH", "DELETE")),
    ):
        answer = place.program.request(method, path, json={"name": "x"})
        assert (answer.status_code, answer.json()) == (403, "forbidden")
    assert place.program.get("/task").json() == [task]


# Arguments


ARGUMENTS = [
    definition("input", order=2, label="last"),
    definition("fixed", order=1, value="between"),
    definition("select", order=0, label="first", options=["a", "b"]),
]


def test_too_few_arguments_are_refused_and_too_many_ignored(place: Place):
    task = place.make_task(task_arguments=ARGUMENTS)
    words = "Invalid Task Arguments. An array of length 2 is required. Optionals must be null"
    for given in ({}, {"task_arguments": []}, {"task_arguments": ["a"]}, {"task_arguments": "ab"}):
        answer = place.program.post("/job", json={"task": task["id"], **given})
        assert (answer.status_code, answer.json()) == (400, words)
    assert place.program.get("/job").json() == []
    assert place.trigger(task, "a", None, "more")["task_arguments_values"] == ["a", "between", ""]


SPELLINGS = (
    ("task_arguments%5B%5D=a&task_arguments%5B%5D=b", ["a", "b"]),
    ("task_arguments[]=a&task_arguments[]=b", ["a", "b"]),
    ("task_arguments=a&task_arguments=b", ["a", "b"]),
    ("task_arguments[1]=b&task_arguments[0]=a", ["a", "b"]),
    ("task_arguments=%5B%22a%22%2C%22b%22%5D", ["a", "b"]),
    ("task_arguments[]=%C3%A4+%26&task_arguments[]=", ["ä &", ""]),
)


def test_a_form_spells_arguments_in_several_ways(place: Place):
    task = place.make_task(task_arguments=[definition(order=number) for number in range(2)])
    for body, expected in SPELLINGS:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = place.program.post("/job", content=f"task={task['id']}&{body}", headers=headers)
        assert answer.status_code == 200 and answer.json()["task_arguments_values"] == expected


def test_arguments_come_from_the_body_else_the_query_else_a_bare_array(place: Place):
    task = place.make_task(task_arguments=[definition()])
    path = f"/task/{task['id']}/job"
    answers = [
        place.program.post(f"{path}?task_arguments[]=query", json={"task_arguments": ["body"]}),
        place.program.post(f"{path}?task_arguments[]=query", json=["array"]),
        place.program.post(path, json=["array"]),
        place.program.post(f"{path}?task_arguments=query"),
    ]
    assert [answer.json()["task_arguments_values"] for answer in answers] == [["body"], ["query"], ["array"], ["query"]]


def test_an_object_that_is_posted_to_a_task_with_one_argument_is_that(place: Place):
    """So a service's web hook triggers it, which knows nothing of tasks."""
    task, event = place.make_task(task_arguments=[definition()]), {"event": "push", "task": 5, "by": ["ä"]}
    path = f"/task/{task['id']}/secret/{place.secret(task)}/job"
    answers = [
        place.program.post(f"/task/{task['id']}/job", json=event),
        client(f"{place.site.url}/tracker").post(path, json=event),
        place.program.post("/job", json={**event, "task": task["id"], "customer": "tracker"}),
        client(f"{place.site.url}/tracker").post(path, data={"event": "push", "by": "ä"}),
        place.program.post(f"/task/{task['id']}/job", json={**event, "task_arguments": ["a"]}),
    ]
    given = [answer.json()["task_arguments_values"][0] for answer in answers]
    whole = [event, event, {"event": "push", "by": ["ä"]}, {"event": "push", "by": "ä"}]
    assert [json.loads(value) for value in given[:4]] == whole and given[4] == "a"
    for body in ({}, {"customer": "tracker"}, {"task_arguments": [], "event": "push"}):
        assert place.program.post(f"/task/{task['id']}/job", json=body).status_code == 400
    two = place.make_task("two", task_arguments=[definition(), definition(order=1)])
    assert place.program.post(f"/task/{two['id']}/job", json=event).status_code == 400


def test_json_is_understood_with_the_content_type_of_a_form(place: Place):
    task = place.make_task(task_arguments=[definition()])
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = place.program.post(
        "/job", content=json.dumps({"task": task["id"], "task_arguments": ["a"]}), headers=headers
    )
    assert answer.json()["task_arguments_values"] == ["a"]


def test_a_multipart_form_is_understood(place: Place):
    task = place.make_task(task_arguments=[definition()])
    fields = {"customer": "tracker", "task": task["id"], "task_arguments[]": "a"}
    parts = {name: (None, value) for name, value in fields.items()}
    answer = client(place.site.url).post(f"/job/secret/{place.secret(task)}", files=parts)
    assert answer.json()["task_arguments_values"] == ["a"]


# Jobs


@pytest.mark.parametrize(
    "path",
    [
        "/job/secret/{secret}?customer=tracker&task={task}",
        "/tracker/job/secret/{secret}?task={task}",
        "/task/{task}/secret/{secret}/job?customer=tracker",
        "/tracker/task/{task}/secret/{secret}/job",
    ],
)
def test_a_secret_opens_its_own_task_alone(place: Place, path: str):
    task, other = place.make_task(), place.make_task("other")
    stranger = client(place.site.url)
    answer = stranger.post(path.format(task=task["id"], secret=place.secret(task)))
    assert (answer.status_code, answer.json()["task_id"]) == (200, task["id"])
    for secret in (place.secret(other), "f" * 64, "f" * 63, "ä" * 64):
        answer = stranger.post(path.format(task=task["id"], secret=secret))
        assert (answer.status_code, answer.json()) == (403, "invalid secret")
    assert len(place.program.get("/job").json()) == 1


def test_a_secret_is_looked_at_after_the_customer_and_the_task(place: Place):
    task, stranger = place.make_task(), client(place.site.url)
    for path, expected in (
        (f"/job/secret/wrong?task={task['id']}", (403, "organization is required")),
        ("/job/secret/wrong?customer=other", (404, "organization not found")),
        ("/job/secret/wrong?customer=tracker", (400, "task is required")),
        ("/job/secret/wrong?customer=tracker&task=5", (400, "task id is invalid")),
        (f"/job/secret/wrong?customer=tracker&task={UNKNOWN}", (404, "task not found")),
        (f"/job/secret/wrong?customer=tracker&task={task['id']}", (403, "invalid secret")),
    ):
        answer = stranger.post(path)
        assert (answer.status_code, answer.json()) == expected


ADDRESSES = (
    "/job?customer=tracker&task={task}",
    "/tracker/job?task={task}",
    "/tracker/task/{task}/job",
)


def test_a_token_triggers_at_every_address(place: Place):
    task = place.make_task()
    for path in ADDRESSES:
        address = path.format(task=task["id"])
        token = f"{'&' if '?' in path else '?'}access_token={place.token}"
        assert client(place.site.url).post(address + token).json()["task_id"] == task["id"]


REPORTS = (
    ("success", {}, ("finished", "success", "success")),
    ("", {}, ("finished", "success", "success")),
    (None, {}, ("finished", "success", "success")),
    (5, {}, ("finished", "success", "success")),
    ("normal", {"code": 3}, ("finished", "normal", "success")),
    ("failure", {}, ("finished", "failure", "failure")),
    ("", {"lastline": '{"state": "failure", "data": [1]}'}, ("finished", "failure", "failure")),
    ("success", {"killed": True, "signal": "SIGTERM"}, ("terminated", "timeout", "timeout")),
)


def test_what_an_agent_reports_becomes_the_jobs_state(place: Place):
    task, agent = place.make_task(), place.agent()
    for state, data, expected in REPORTS:
        job = place.trigger(task)
        agent.fetched()
        assert agent.report(job["id"], state, **data).status_code == 200
        assert place.state(job) == expected


LAST_LINES = (
    ('["a", {"b": 1}, null]', ["a", '{"b":1}', "null"], '["a",{"b":1},null]'),
    ('{"state": "success", "data": {"c": 2}}', ['{"c":2}'], '{"c":2}'),
    ('{"data": "text"}', ["text"], "text"),
    ('{"data": []}', [], "[]"),
    ("[oops", None, None),
)


def test_a_last_line_that_is_json_gives_the_output(place: Place):
    task, agent = place.make_task(), place.agent()
    for (lastline, output, text), state in itertools.product(LAST_LINES, ("", "the line itself")):
        job = place.trigger(task)
        agent.fetched()
        agent.report(job["id"], state and lastline, lastline=lastline)
        shown = place.job(job)
        assert (shown["output"], shown["result"].get("output")) == (output, text)
        assert shown["result"]["lastline"] == lastline
        assert shown["state"] == ("[oops" if state and output is None else "success")


def test_an_output_that_is_reported_is_shown_as_texts(place: Place):
    task, agent = place.make_task(), place.agent()
    for reported, output, text in (
        (["a", 5, True, ["b"]], ["a", "5", "true", '["b"]'], '["a",5,true,["b"]]'),
        ("text", ["text"], "text"),
        (0, ["0"], "0"),
        ([], [], "[]"),
        (None, None, None),
    ):
        job = place.trigger(task)
        agent.fetched()
        agent.report(job["id"], output=reported)
        assert (place.job(job)["output"], place.job(job)["result"].get("output")) == (output, text)


def test_a_state_is_shown_as_it_was_reported(place: Place):
    task, agent = place.make_task(), place.agent()
    for state, trigger in (("Done: 3 of 3", "success"), ("x" * 3000, "success"), ("FAILURE", "failure")):
        job = place.trigger(task)
        agent.fetched()
        agent.report(job["id"], state)
        assert place.state(job) == ("finished", state, trigger)


def test_a_result_that_is_sent_again_is_answered_as_the_first_time(place: Place):
    agent = place.agent()
    body = {"project": place.project, "name": "twice", "script": SCRIPT, "max_retries": 2}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    for count, data in ((1, {}), (2, {"code": 3})):  # the one ends the job, and after the other it waits again
        job = place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]
        agent.fetched()
        answers = [agent.report(job["id"], "boom", **data) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200] and answers[0].json() == answers[1].json()
        assert len(place.log(job)) == 1 + count, place.log(job)
        assert place.job(job)["lifecycle"] == ("finished" if count == 1 else "ready")


def test_a_job_tells_whether_a_token_or_a_secret_made_it(place: Place):
    task = place.make_task(task_arguments=[definition()])
    workflow, secret = make_workflow(place, "deploy")
    robot = Robot(place.site.url)
    run = robot.trigger("workflows", workflow, secret)
    jobs = [place.trigger(task, "a"), robot.trigger("task", task["id"], place.secret(task)), run]
    (step,) = place.program.get(f"/workflows/{workflow}/job/{run['id']}/jobs").json()
    native = place.site.admin.post("/template/trigger/1", {"arguments": ["a"]}).json()["content"]["job"]
    jobs += [step, place.job(native)]
    assert [job["origin"] for job in jobs] == ["user", "secret", "secret", "workflow", "user"]
    assert place.job(jobs[1])["origin"] == "secret"


def test_jobs_are_listed_newest_first_filtered_and_limited(place: Place):
    task, other = place.make_task(), place.make_task("other")
    first, second, third = place.trigger(task), place.trigger(other), place.trigger(task)
    place.agent().fetched()

    def ids(**query: Any) -> list[str]:
        return [job["id"] for job in place.program.get("/job", params=query).json()]

    assert ids() == [third["id"], second["id"], first["id"]]
    assert ids(limit=1) == [third["id"]]
    assert ids(**{"where[task_id]": task["id"]}) == [third["id"], first["id"]]
    assert ids(**{"where[lifecycle]": "assigned"}) == [first["id"]]
    assert ids(**{"where[lifecycle]": "ready", "where[name]": "other"}) == [second["id"]]
    assert ids(**{"where[task_id]": UNKNOWN}) == ids(**{"where[lifecycle]": "nonsense"}) == []


def test_lists_are_sorted_and_go_on_where_they_are_told_to(place: Place):
    tasks = {name: place.make_task(name, timeout=timeout) for name, timeout in (("b", 20), ("a", None), ("c", 3))}
    jobs = [place.trigger(tasks[name]) for name in ("b", "a", "c")]
    place.site.admin.create_project("another")

    def names(path: str, field: str = "name", **query: Any) -> str:
        answer = place.program.get(
            path, params={name.replace("__", "[") + "]" * ("__" in name): query[name] for name in query}
        )
        assert answer.status_code == 200 and "Warning" not in answer.headers
        return " ".join(one[field] for one in answer.json())

    assert names("/task", skip=1) == "a c" and names("/task", skip=1, limit=1) == "a" and names("/task", skip=3) == ""
    assert names("/task", sort__name=1) == "a b c" and names("/task", sort__name="desc", skip=1) == "b a"
    assert names("/task", sort__timeout=-1) == "b c a" and names("/task", sort__timeout=1, limit=1) == "a"
    assert names("/task", sort__customer_name=1, sort__name=-1) == "c b a"
    assert names("/task", where__timeout="null", skip=1) == ""
    assert names("/job", skip=1) == "a b" and names("/job", sort__creation_date=1) == "b a c"
    assert names("/job", where__lifecycle="ready", skip=1, limit=1) == "a"
    assert names("/job", "id", sort___id=1) == " ".join(sorted(job["id"] for job in jobs))
    assert names("/host", "hostname", sort__hostname=1) == "another websites"


def multiply(place: Place, table: str, columns: str, values: str) -> None:
    """Makes 1500 further rows out of the table's first one."""
    with contextlib.closing(sqlite3.connect(place.site.settings.database)) as connection:
        all_of_them = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        others = ", ".join(name for name in all_of_them if name not in f"id, task, {columns}".split(", "))
        numbers = "WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 1500)"
        rows = f"{numbers} SELECT {values}, {others} FROM count, {table} WHERE id = 1"
        connection.execute(f"INSERT INTO {table} ({columns}, {others}) {rows}")
        connection.commit()


def test_a_list_ends_with_its_last_object_and_not_at_a_thousand(place: Place):
    job = place.trigger(place.make_task())
    multiply(place, "template", "token, name", "printf('%024x', n), 'task ' || n")
    multiply(place, "job", "token, state", "printf('%024x', n), 'succeeded'")
    listed = place.program.get("/task").json()
    assert [task["name"] for task in listed] == ["deploy", *(f"task {number}" for number in range(1, 1501))]
    assert place.program.get("/task", params={"where[name]": "task 1500"}).json() == [listed[-1]]
    assert place.program.get("/task?skip=1499").json() == listed[-2:]
    assert len(place.program.get("/job").json()) == 1501
    assert [one["id"] for one in place.program.get("/job?skip=1500").json()] == [job["id"]]


def test_a_list_that_is_too_long_says_where_it_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch):
    for number in range(4):
        place.make_task(f"task {number}", description="x" * 1000 if number == 1 else "")

    def asked(query: str = "") -> tuple[int, str]:
        answer = place.program.get(f"/task?{query}")
        return len(answer.json()), answer.headers.get("Warning", "")

    monkeypatch.setattr(theeye, "MOST_LISTED", 3)
    assert asked() == (
        3,
        '199 tracker "the list is cut: no more than 3 objects were looked at; it goes on with skip=3"',
    )
    assert asked("skip=3") == asked("limit=1") == (1, "") and asked("skip=1") == (3, "")
    assert "no more than 3" in asked("where[name]=task 3")[1] and "no more than 3" in asked("sort[name]=1")[1]
    monkeypatch.setattr(theeye, "MOST_LIST_BYTES", 2000)
    assert asked()[0] == 2 and "skip=2" in asked()[1]


def test_a_filter_that_cannot_be_is_refused(place: Place):
    filters = ("where[a][b]=1", "where[]=1", "where=1", "where[$ne]=1", "where[a%00]=1", "where[a]=%FF")
    filters += ("skip=-1", "skip=x", "sort=name", "sort[name]=up", "sort[a][b]=1")
    for query in ("limit=abc", "limit=-1", "limit=1.5", *filters):
        for path in ("/job", "/task", "/host"):
            answer = place.program.get(f"{path}?{query}")
            assert answer.status_code == 400 and answer.json()


def test_a_job_whose_agent_vanished_times_out(place: Place):
    job, agent = place.trigger(place.make_task(timeout=30_000)), place.agent()
    assert agent.fetched()["timeout"] == 30_000
    place.site.clock.pass_time(30)
    assert place.state(job)[0] == "assigned"
    place.site.clock.pass_time(20)
    wait_until(lambda: place.state(job)[0] != "assigned")
    assert place.state(job) == ("terminated", "timeout", "timeout")
    result = place.job(job)["result"]
    assert result["killed"] is True and set(result) == set(theeye.NO_RESULT)
    assert any("timed out" in line for line in place.tracker_log(job))
    assert agent.report(job["id"]).status_code == 200
    assert place.state(job) == ("terminated", "timeout", "timeout")


def test_a_job_made_through_the_native_api_is_seen_here(place: Place):
    body = {"project": place.project, "name": "native", "recipe": "do something"}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    job = place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]
    worker = place.site.create_worker(place.project)
    task = worker.assigned(place.project)
    worker.release(task["id"], output="plain text")
    shown = place.job(job)
    assert (shown["lifecycle"], shown["state"], shown["script_id"]) == ("finished", "success", None)
    assert shown["result"] == {**theeye.NO_RESULT, "log": "plain text", "lastline": "plain text"}


def test_a_full_project_is_refused_with_the_time_to_wait(place: Place):
    task = place.make_task()
    place.site.admin.update_project(place.project, submit_rate=0.01)
    place.trigger(task)
    answer = place.program.post("/job", json={"task": task["id"]})
    assert answer.status_code == 429 and 90 <= int(answer.headers["Retry-After"]) <= 100


# The agent


def test_an_agent_does_a_job_with_its_seven_calls(place: Place):
    agent = Agent(place.site.url, place.make_agent())
    token = agent.log_in()
    assert token.status_code == 200 and isinstance(token.json(), str)
    host = agent.register()
    assert host.status_code == 200 and set(host.json()) == {"host_id", "resource_id", "connection_id"}
    assert (agent.config().status_code, agent.config().json()) == (200, {"workers": []})
    assert agent.keep_alive().status_code == 204
    assert agent.fetch().json() == {"jobs": []}
    task = place.make_task(host=host.json()["host_id"], script_runas="sh %script%", env={"A": "b"}, timeout=5000)
    made = place.trigger(task)
    (job,) = agent.fetch().json()["jobs"]
    script = job["script"]
    assert (job["id"], job["_type"], job["name"]) == (made["id"], "ScriptJob", "deploy")
    assert (job["script_runas"], job["timeout"], job["env"]["A"]) == ("sh %script%", 5000, "b")
    assert set(script) == {"id", "filename", "md5"} and re.fullmatch(r"[\w.-]+", script["filename"])
    download = agent.download(script["id"])
    assert download.content == SCRIPT.encode() and hashlib.md5(download.content).hexdigest() == script["md5"]
    assert agent.report(job["id"], log="one\ntwo\n", lastline="two").status_code == 200
    assert place.state(made) == ("finished", "success", "success")
    assert place.log(made) == ["one", "two"]
    assert agent.fetch().json() == {"jobs": []}


def test_the_calls_of_older_agents_are_answered_too(place: Place):
    agent = Agent(place.site.url, place.make_agent())
    agent.log_in()
    answer = agent.http.post("/tracker/host/old1", json={"os_name": "Linux"})
    assert answer.status_code == 200 and answer.json()["host_id"]
    job = place.trigger(place.make_task(host="old1"))
    agent.hostname = "old1"
    assert [one["id"] for one in agent.fetch(process_next=1).json()["jobs"]] == [job["id"]]


def test_a_job_without_a_command_line_is_run_as_the_script_itself(place: Place):
    place.trigger(place.make_task())
    assert place.agent().fetched()["script_runas"] == "%script%"


def test_the_variables_of_a_job_reach_the_agent_in_its_env(place: Place):
    body = {"project": place.project, "name": "native", "script": SCRIPT, "env": {"A": "b", "TRACKER_VAR_own": "env's"}}
    body |= {"variables": [{"name": "who", "value": "world"}], "undeclared": True}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    given = {"number": 5, "list": ["ä"], "none": None, "no name": 1, "own": "ours", "large": "x" * 100_000}
    job = place.site.admin.post(f"/template/trigger/{template}", {"variables": given}).json()["content"]["job"]
    env = place.agent().fetched()["env"]
    assert {name: value for name, value in env.items() if not name.startswith("THEEYE_")} == {
        "A": "b",
        "TRACKER_VAR_own": "env's",
        "TRACKER_VAR_who": "world",
        "TRACKER_VAR_number": "5",
        "TRACKER_VAR_list": '["ä"]',
        "TRACKER_VAR_none": "",
    }
    assert place.job(job)["env"] == body["env"]
    said = "left out of the environment, which cannot hold them: no name, large"
    assert [entry["level"] for entry in place.entries(job) if entry["message"] == said] == ["info"]


def test_what_the_template_sets_is_left_out_too_if_no_process_can_be_given_it(place: Place):
    job = place.trigger(place.make_task(env={"LARGE": "x" * 100_000, "A": "b"}))
    env = place.agent().fetched()["env"]
    assert env["A"] == "b" and "LARGE" not in env and any("LARGE" in line for line in place.tracker_log(job))


RECIPE = """#!/usr/bin/env python3
import json, os
names = ("JOB", "JOB_USER", "JOB_WORKFLOW", "ORGANIZATION_NAME", "API_URL")
print(json.dumps([json.loads(os.environ[f"THEEYE_{name}"]) for name in names]))
"""


def test_a_script_finds_what_scripts_of_the_real_system_find(place: Place):
    task = place.make_task(env={"THEEYE_JOB": "its own"})
    job, agent = place.trigger(task), place.agent()
    env = {name: value for name, value in agent.fetched()["env"].items() if name.startswith("THEEYE_")}
    user = place.job(job)["user"]
    assert {name: json.loads(value) for name, value in env.items()} == {
        "THEEYE_JOB": {"id": job["id"], "task_id": task["id"]},
        "THEEYE_JOB_USER": user,
        "THEEYE_JOB_WORKFLOW": {},
        "THEEYE_ORGANIZATION_NAME": "tracker",
        "THEEYE_API_URL": place.site.url,
    }
    agent.report(job["id"])
    workflow, secret = make_workflow(place, "deploy")
    run = client(place.site.url).post(f"/tracker/workflows/{workflow}/secret/{secret}/job", json={}).json()
    fetched = agent.fetched()
    env = fetched["env"]
    agent.report(fetched["id"])
    assert json.loads(env["THEEYE_JOB_WORKFLOW"]) == {"job_id": run["id"], "id": workflow}


@posix_only
def test_a_script_that_worker_py_runs_finds_the_same(place: Place, tmp_path: Path):
    task, machine = place.make_task(script=RECIPE), Machine(tmp_path)
    job = place.trigger(task)
    place.site.admin.update_project(place.project, public=True)
    machine.finish(place.site, place.project, "--allow-scripts")
    shown = place.job(job)
    found = [{"id": job["id"], "task_id": task["id"]}, shown["user"], {}, "tracker", place.site.url]
    assert json.loads(shown["result"]["lastline"]) == found
    again = place.site.admin.post(f"/job/retry/{job['id']}").json()["content"]["job"]
    workflow, secret = make_workflow(place, "deploy")
    run = client(place.site.url).post(f"/tracker/workflows/{workflow}/secret/{secret}/job", json={}).json()
    machine.finish(place.site, place.project, "--allow-scripts")
    (step,) = place.program.get(f"/workflows/{workflow}/job/{run['id']}/jobs").json()
    retried, *_ = json.loads(place.job(again)["result"]["lastline"])
    _, _, of, *_ = json.loads(step["result"]["lastline"])
    assert (retried["id"], of) == (again["id"], {"job_id": run["id"], "id": workflow})


def test_a_script_of_no_client_of_this_system_finds_nothing_that_its_template_does_not_say(place: Place):
    body = {"project": place.project, "name": "native", "script": SCRIPT, "env": {"A": "b"}}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    place.site.admin.post(f"/template/trigger/{template}", {})
    assert place.site.create_worker(place.project).assigned(place.project)["job"]["env"] == {"A": "b"}


def test_variables_that_are_too_large_together_are_left_out(place: Place):
    body = {"project": place.project, "name": "native", "script": SCRIPT, "undeclared": True}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    given = {f"v{number}": "x" * 90_000 for number in range(8)}
    place.site.admin.post(f"/template/trigger/{template}", {"variables": given})
    env = place.agent().fetched()["env"]
    assert env and sum(map(len, env.values())) < theeye.MOST_VARIABLES


def test_a_timeout_is_never_told_as_none(place: Place):
    body = {"project": place.project, "name": "native", "script": SCRIPT, "timeout": 0.0001}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    place.site.admin.post(f"/template/trigger/{template}", {})
    assert place.agent().fetched()["timeout"] == 1


def test_a_timeout_is_never_longer_than_an_agent_can_wait(place: Place):
    """Beyond that Node kills at once."""
    job = place.trigger(place.make_task(timeout=2**31))
    assert place.agent().fetched()["timeout"] == 2**31 - 1
    assert place.job(job)["timeout"] == 2**31


@posix_only
def test_a_job_without_a_script_fails_with_a_reason(place: Place, tmp_path: Path):
    body = {"project": place.project, "name": "native", "recipe": "do something", "api": True}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    job = place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]
    place.agent().run(tmp_path)
    assert place.state(job) == ("finished", "failure", "failure") and place.job(job)["result"]["code"] == 1
    assert "no script" in place.log(job)[0]
    assert client(place.site.url).get("/api/jobs/status", params={"token": job["id"]}).text == "Error"


def test_an_agent_that_asks_again_at_once_is_held(make_site: Callable[..., Site]):
    agent = Place(make_site(max_empty_polls=0.01)).agent()
    began = time.monotonic()
    assert [agent.fetch().json() for _ in range(3)] == [{"jobs": []}] * 3
    assert time.monotonic() - began >= 2  # seconds at the least: two polls are held


def test_an_agent_gets_the_jobs_of_its_own_project_alone(place: Place):
    other = place.site.admin.create_project("other")
    stranger = place.agent("web2", other)
    job, agent = place.trigger(place.make_task()), place.agent()
    assert stranger.fetched() is None
    script = agent.fetched()["script"]["id"]
    assert stranger.download(script).status_code == 404
    answer = stranger.report(job["id"])
    assert (answer.status_code, answer.json()) == (404, "job not found")
    assert place.state(job)[0] == "assigned"


def test_each_attempt_of_an_agent_is_in_the_log(place: Place):
    body = {"project": place.project, "name": "native", "script": SCRIPT, "max_retries": 2}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    job = place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]
    agent = place.agent()
    for killed in (True, False):
        agent.report(agent.fetched()["id"], log=f"killed: {killed}\n", killed=killed)
    assert place.log(job) == ["killed: True", "killed: False"] and place.state(job)[0] == "finished"


def test_a_result_that_is_no_utf_8_is_kept_with_question_marks(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    body = b'{"result": {"state": "success", "data": {"log": "caf\xe9", "lastline": "caf\xe9"}}}'
    assert agent.http.put(f"/tracker/job/{job['id']}", content=body).status_code == 200
    assert place.log(job) == ["caf\ufffd"] and place.state(job) == ("finished", "success", "success")


def test_a_result_with_characters_that_cannot_be_stored_is_kept_without_them(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    body = b'{"result": {"state": "success", "data": {"log": "a\\u0000b\\\\u0000c\\ud83d", "lastline": "\\u0000"}}}'
    assert agent.http.put(f"/tracker/job/{job['id']}", content=body).status_code == 200
    assert place.log(job) == ["a\ufffdb\\u0000c\ufffd"] and place.state(job)[0] == "finished"


@pytest.mark.parametrize(("printed", "kept"), [(b"\0", "\ufffd"), (b"\x1b", "\x1b"), (b"\t", "\t"), (b"\x07", "\x07")])
def test_a_result_with_control_characters_as_they_are_is_taken(place: Place, printed: bytes, kept: str):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    body = b'{"result": {"state": "success", "data": {"log": "aTEXTb", "lastline": "aTEXTb"}}}'.replace(
        b"TEXT", printed
    )
    assert agent.http.put(f"/tracker/job/{job['id']}", content=body).status_code == 200
    assert place.log(job) == [f"a{kept}b"] and place.state(job) == ("finished", "success", "success")


@pytest.mark.parametrize("number", ["NaN", "1e999", "9" * 5000])
def test_a_result_with_a_number_that_cannot_be_is_taken_without_it(place: Place, number: str):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    body = '{"result": {"state": "success", "data": {"code": 0, "log": "x", "load": NUMBER}}}'.replace("NUMBER", number)
    assert agent.http.put(f"/tracker/job/{job['id']}", content=body).status_code == 200
    assert place.state(job) == ("finished", "success", "success")


@pytest.mark.parametrize(
    ("said", "text"), [(5, "5"), (["a", 1], '["a",1]'), ({"a": None}, '{"a":null}'), (False, "false")]
)
def test_a_log_that_is_no_text_is_kept_as_the_text_that_it_looks_like(place: Place, said: Any, text: str):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    assert agent.report(job["id"], log=said, lastline=said).status_code == 200
    assert place.log(job) == [text] and place.state(job) == ("finished", "success", "success")
    result = place.program.get(f"/job/{job['id']}").json()["result"]
    assert (result["log"], result["lastline"]) == (text, text)


def test_a_long_log_becomes_the_jobs_log_and_its_end_stays_in_the_result(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    lines = [f"{number} {'x' * 200}" for number in range(9000)]
    assert agent.report(job["id"], log="\n".join(lines)).status_code == 200
    shown = place.job(job)
    assert place.site.read("SELECT COUNT(*) FROM job_line WHERE worker") == [(9000,)]
    kept = shown["result"]["log"]
    note, _, rest = kept.partition("\n")
    assert len(kept) == theeye.MOST_RESULT_LOG and kept.endswith(lines[-1]) and lines[-2] in rest
    assert f"/ui/jobs/{job['id']}" in note and f"/job/log/{job['id']}" in note


def test_a_large_last_line_is_read_and_its_end_stays_in_the_result(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    line = json.dumps({"state": "failure", "data": ["y" * 400_000]})
    assert agent.report(job["id"], "", log=line, lastline=line).status_code == 200
    shown = place.job(job)
    assert place.state(job) == ("finished", "failure", "failure") and shown["output"] == ["y" * 400_000]
    assert shown["result"]["lastline"] == line[-theeye.MOST_RESULT_LOG :]
    assert "".join(place.log(job)) == line


def test_an_output_that_is_too_large_is_left_out_with_a_warning_and_the_state_counts(place: Place):
    task, agent = place.make_task(), place.agent()
    large = "y" * 4_300_000
    for state, data, expected in (
        ("failure", {"output": [large]}, "failure"),
        ("normal", {"lastline": json.dumps([large])}, "normal"),
        ("", {"lastline": json.dumps({"state": "error", "data": large})}, "error"),
        ("", {"output": large, "lastline": '{"state": "failure"}'}, "success"),
    ):
        job = place.trigger(task)
        agent.fetched()
        assert agent.report(job["id"], state, **data).status_code == 200
        assert place.job(job)["state"] == expected and place.job(job)["output"] is None
        (warning,) = (entry for entry in place.entries(job) if entry["level"] == "warn")
        assert warning["message"] == "the result is larger than 4,096 KiB: its output is left out"
        assert place.job(job)["result"]["code"] == 0


def test_a_result_that_is_too_large_without_its_output_too_keeps_its_state(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    assert agent.report(job["id"], killed=True, signal="x" * 4_300_000).status_code == 200
    assert place.state(job) == ("terminated", "timeout", "timeout")
    result = place.job(job)["result"]
    assert (result["log"], result["killed"], result["signal"]) == ("\nnormal\n", True, None)
    assert any("all but its state" in line for line in place.tracker_log(job))


def test_a_result_that_is_larger_than_a_jobs_log_keeps_its_state_and_its_end(make_site: Callable[..., Site]):
    place = Place(make_site(max_job_log=1500))
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    lines = [f"{number} {'x' * 10_000}" for number in range(400)]
    assert agent.report(job["id"], "normal", log="\n".join(lines), lastline="the end").status_code == 200
    shown = place.job(job)
    assert (shown["lifecycle"], shown["state"]) == ("finished", "normal")
    assert shown["result"]["log"].endswith(lines[-1]) and shown["result"]["lastline"] == "the end"
    kept = place.log(job)
    assert kept == lines[-len(kept) :] and 1_400_000 < sum(map(len, kept)) < 1_536_000
    (said,) = (one for one in place.entries(job) if "larger than" in one["message"])
    assert said["message"] == f"the log is larger than 1,500 KiB: its first {400 - len(kept)} entries are left out"
    assert said["level"] == "info"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_result_that_is_too_large_even_so_ends_the_job_at_once(make_site: Callable[..., Site], chunked: bool):
    place = Place(make_site(max_job_log=1024, max_body=1024))
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    data = json.dumps({"result": {"state": "success", "data": {"log": "x" * 4 * 1024 * 1024}}}).encode()
    answer = agent.http.put(f"/tracker/job/{job['id']}", content=iter([data]) if chunked else data)
    assert answer.status_code == 413
    assert place.state(job) == ("finished", "failure", "failure")
    assert any("4096 KiB" in line for line in place.log(job)) and "4096 KiB" in place.job(job)["result"]["log"]
    again = place.trigger(place.make_task("other"))
    assert agent.http.put(f"/tracker/job/{again['id']}", content=data).status_code == 413
    assert place.state(again)[0] == "ready"  # it is nobody's yet


def test_a_late_report_is_not_taken_for_that_of_the_next_attempt(place: Place):
    body = {"project": place.project, "name": "native", "script": SCRIPT, "max_retries": 4, "timeout": 60}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    job = place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]
    agent = place.agent()
    names = []
    for taken_back in (False, True, None):
        names.append(agent.fetched()["id"])
        if taken_back is False:
            place.site.clock.pass_time(60 + tracker.JOB_GRACE + 1)
        elif taken_back:
            assert place.site.admin.post(f"/project/reclaim_assigned_tasks/{place.project}").status_code == 200
        if taken_back is not None:
            wait_until(lambda: place.state(job)[0] == "ready")
    assert len(set(names)) == 3 and names[0] == job["id"]
    for late in names[:2]:
        answer = agent.report(late, "failure")
        assert (answer.status_code, answer.json()["id"]) == (200, job["id"])
        assert place.state(job)[0] == "assigned" and place.log(job) == []
    assert agent.report(names[2], "success").status_code == 200
    assert place.state(job) == ("finished", "success", "success")
    assert agent.report(names[2], "failure").status_code == 200
    assert place.state(job) == ("finished", "success", "success")


def test_a_report_that_comes_twice_counts_for_its_own_attempt_alone(place: Place):
    """A proxy may repeat a PUT whose answer it has lost."""
    body = {"project": place.project, "name": "native", "script": SCRIPT, "max_retries": 3}
    template = place.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    job = place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]
    agent = place.agent()
    first = agent.fetched()["id"]
    assert first == job["id"]
    assert agent.report(first, killed=True).status_code == 200
    second = agent.fetched()["id"]
    assert agent.report(first, killed=True).status_code == 200
    assert place.state(job)[0] == "assigned"
    assert agent.report(second).status_code == 200
    assert place.state(job) == ("finished", "success", "success")
    assert agent.report("f" * 24).status_code == 404


def test_a_retry_is_judged_as_the_job_that_it_repeats(place: Place):
    agent, job = place.agent(), place.trigger(place.make_task())
    agent.fetched()
    agent.report(job["id"], "failure", code=1)
    again = place.site.admin.post(f"/job/retry/{job['id']}").json()["content"]["job"]
    agent.fetched()
    agent.report(again["id"], "boom", code=3)
    assert place.state(again) == ("finished", "boom", "success")


@pytest.mark.parametrize("path", ["/task?limit=-1", "/host?skip=x", "/job?sort[name]=up"])
def test_a_list_that_is_refused_keeps_nobody_from_the_news(place: Place, path: str):
    """Its reader would stay in the past till the garbage collector ran."""
    gc.disable()
    try:
        for _ in range(4):
            assert place.program.get(path).status_code == 400
        for _ in range(4):
            job = place.trigger(place.make_task())
            assert [place.program.get(f"/job/{job['id']}").status_code for _ in range(4)] == [200] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "line", ['{"state": "failure", "data": ["a', '["a", {"b', '["\ud83d', '{"state": "failure"} x']
)
def test_a_last_line_that_is_cut_json_is_a_text(place: Place, line: str):
    """Agents take it for the state, as any text."""
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    body = {"result": {"state": line, "data": {"code": 0, "log": f"{line}\n", "lastline": line}}}
    assert agent.http.put(f"/tracker/job/{job['id']}", content=json.dumps(body).encode()).status_code == 200
    shown = place.job(job)
    assert (shown["lifecycle"], shown["trigger_name"], shown["output"]) == ("finished", "success", None)
    assert shown["result"]["lastline"] == line.replace("\ud83d", "\ufffd") == place.log(job)[0]


def test_a_log_of_very_many_lines_is_kept_whole_in_fewer_entries(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    text = "\n".join(f"line {number}" for number in range(3 * theeye.MOST_ENTRIES))
    assert agent.report(job["id"], log=text).status_code == 200
    rows = place.site.read("SELECT message FROM job_line WHERE worker ORDER BY number")
    assert "\n".join(row[0] for row in rows) == text and len(rows) <= theeye.MOST_ENTRIES


LOGS = (
    ("a", ["a"]),
    ("a\n\nb", ["a", "", "b"]),
    ("x" * theeye.LONGEST_ENTRY, ["x" * theeye.LONGEST_ENTRY]),
    ("x" * theeye.LONGEST_ENTRY + "\ny", ["x" * theeye.LONGEST_ENTRY, "y"]),
    ("x" * theeye.LONGEST_ENTRY + "y\n\nz", ["x" * theeye.LONGEST_ENTRY, "y", "", "z"]),
)


def test_a_line_that_is_longer_than_an_entry_becomes_several():
    for text, entries in LOGS:
        assert list(theeye.log_entries(text)) == entries


def test_a_large_body_is_decoded_beside_the_event_loop(place: Place, monkeypatch: pytest.MonkeyPatch):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    threads = []
    decode = theeye.json_body
    monkeypatch.setattr(theeye, "json_body", lambda *args: (threads.append(threading.get_ident()), decode(*args))[1])
    agent.register()
    agent.report(job["id"], log="x" * 1_000_000)
    assert len(set(threads)) == 2 and place.state(job)[0] == "finished"


def test_a_proper_result_is_not_looked_through_for_what_cannot_be_stored(place: Place, monkeypatch: pytest.MonkeyPatch):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    monkeypatch.delattr(errors, "storable")
    assert agent.report(job["id"]).status_code == 200 and place.state(job)[0] == "finished"


BAD_RESULTS = (
    {},
    {"result": None},
    {"result": 5},
    {"result": {"data": "text"}},
    [],
    {"result": []},
)


def test_a_result_that_cannot_be_is_refused_and_the_job_goes_on(place: Place):
    job, agent = place.trigger(place.make_task()), place.agent()
    agent.fetched()
    for body in BAD_RESULTS:
        assert agent.http.put(f"/tracker/job/{job['id']}", json=body).status_code == 400
    assert place.state(job)[0] == "assigned"


def test_an_agent_logs_in_again_after_a_day(place: Place):
    agent = place.agent()
    assert agent.keep_alive().status_code == 204
    place.site.clock.pass_time(theeye.LOGIN_LIFETIME + 1)
    answer = agent.keep_alive()
    assert (answer.status_code, answer.json()) == (401, "Unauthorized")
    agent.log_in()
    assert agent.keep_alive().status_code == 204


def test_an_agent_may_log_in_often_and_its_oldest_logins_end(place: Place):
    agent = place.agent()
    first = agent.http.headers["Authorization"]
    for _ in range(theeye.MOST_LOGINS):
        place.site.clock.pass_time(1)
        assert agent.log_in().status_code == 200
    assert place.site.read("SELECT COUNT(*) FROM theeye_login") == [(theeye.MOST_LOGINS,)]
    assert agent.keep_alive().status_code == 204
    agent.http.headers["Authorization"] = first
    assert agent.keep_alive().status_code == 401


def test_only_the_right_secret_logs_an_agent_in(place: Place):
    name, secret = place.make_agent()
    for credentials in ((name, "wrong"), (UNKNOWN, secret), ("", ""), (secret, name), ("ä", "ö")):
        answer = Agent(place.site.url, credentials).log_in()
        assert (answer.status_code, answer.json()) == (401, "Unauthorized")
    for header in ("Basic", "Basic %%%", "Basic " + base64.b64encode(b"\xff\xfe").decode(), "Bearer x", ""):
        answer = client(place.site.url).post("/token", headers={"Authorization": header})
        assert (answer.status_code, answer.json()) == (401, "Unauthorized")


def test_no_secret_of_an_agent_or_token_is_in_the_database(place: Place):
    agent = place.agent()
    login = agent.http.headers["Authorization"].split()[1]
    place.site.admin.http.get("/project/list")
    data = b"".join(path.read_bytes() for path in Path(place.site.settings.database).parent.glob("tracker.db*"))
    hidden = (agent.credentials[1], login, place.token)
    assert agent.credentials[0].encode() in data
    assert not any(secret.encode() in data for secret in hidden)


def test_a_poll_without_a_hostname_is_refused(place: Place):
    agent = place.agent()
    for query in ("", "?hostname=", "?process_next=1"):
        answer = agent.http.get(f"/tracker/job{query}")
        assert (answer.status_code, answer.json()) == (400, "hostname is required")


def test_a_rate_limit_leaves_an_agent_without_a_job_and_without_an_error(place: Place):
    task, agent = place.make_task(), place.agent()
    place.trigger(task), place.trigger(task)
    place.site.admin.update_project(place.project, assign_rate=0.01)
    assert agent.fetched() and agent.fetched() is None


def test_a_pause_leaves_an_agent_without_a_job_and_without_an_error(place: Place):
    place.trigger(place.make_task())
    agent = place.agent()
    (worker,) = place.site.read("SELECT worker FROM theeye_agent")
    for path, body in (
        ("/worker/set_paused", {"worker": worker[0]}),
        (f"/project/update/{place.project}", {}),
    ):
        place.site.admin.post(path, {**body, "paused": True})
        assert agent.fetched() is None
        place.site.admin.post(path, {**body, "paused": False})
    assert agent.fetched()


def test_an_agent_is_not_given_plain_tasks(place: Place):
    place.site.create_worker(place.project).submit(place.project)
    assert place.agent().fetched() is None


def test_the_last_call_of_a_host_is_kept(place: Place):
    agent = place.agent("web1")
    place.site.clock.pass_time(100)
    before = place.program.get("/host").json()[0]["last_update"]
    agent.keep_alive()
    (host,) = place.program.get("/host").json()
    assert host["last_update"] > before
    shown = (host["hostname"], host["agent_version"], host["os_name"], host["ip"])
    assert shown == ("web1", "v0.15.2", "Linux", "127.0.0.1")


FACTS = {"ip": "10.0.0.7", "os_name": "Linux", "os_version": "6.1"}
BODIES = (
    ("/host?customer=tracker", {"hostname": "web1", "version": "v1", "info": FACTS}),
    ("/host?customer=tracker", {"hostname": "web1", "agent_version": "v1", **FACTS}),
    ("/tracker/host/web1", {"agent_version": "v1", **FACTS}),
    ("/tracker/host/web1", {"info": {"agent_version": "v1", **FACTS}}),
)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_host_shows_what_its_agent_says_of_it_in_either_shape(place: Place, path: str, body: dict[str, Any]):
    agent = Agent(place.site.url, place.make_agent())
    agent.log_in()
    (before,) = place.program.get("/host").json()
    assert (before["ip"], before["integrations"]["ngrok"]["active"]) == ("", False)
    for said in (body, {"hostname": "web1", "info": None}):  # the last says nothing new
        assert agent.http.post(path, json=said).status_code == 200
        (host,) = place.program.get("/host").json()
        assert {name: host[name] for name in FACTS} == FACTS and host["agent_version"] == "v1"
    ngrok = {"active": False, "url": "", "last_job": None, "last_job_id": "", "last_update": host["creation_date"]}
    assert host["integrations"] == {"ngrok": ngrok}
    assert place.trigger(place.make_task(host="web1"))["host"]["ip"] == "10.0.0.7"


def test_a_project_has_one_host_and_agents_of_another_are_refused(place: Place):
    agent, other = place.agent("web1"), Agent(place.site.url, place.make_agent("other"), "web2")
    other.log_in()
    job = place.trigger(place.make_task())
    older = other.http.post("/tracker/host/web2", json={})
    for answer in (other.register(), older, other.keep_alive(), other.fetch(), other.fetch(process_next=1)):
        assert answer.status_code == 403
        assert all(word in answer.json() for word in ("websites", "web1", "each host has a project of its own"))
    assert [host["hostname"] for host in place.program.get("/host").json()] == ["web1"]
    assert place.state(job)[0] == "ready" and agent.fetched()["id"] == job["id"]


def test_several_agents_of_one_host_share_its_jobs(place: Place):
    task, agents = place.make_task(), [place.agent(), place.agent(alias="second")]
    jobs = {place.trigger(task)["id"] for _ in agents}
    assert {agent.fetched()["id"] for agent in agents} == jobs
    assert len(place.program.get("/host").json()) == 1


def test_a_fetch_makes_its_host_the_projects(place: Place):
    agent = Agent(place.site.url, place.make_agent(), "web1")
    agent.log_in()
    assert agent.fetched() is None
    assert place.program.get("/host").json()[0]["hostname"] == "web1"


def test_one_host_may_serve_several_projects(place: Place):
    other = place.site.admin.create_project("other")
    first, second = place.agent(), place.agent("web1", other, "second")
    job = place.trigger(place.make_task(host="other"))
    assert first.fetched() is None and second.fetched()["id"] == job["id"]
    answer = place.admin.post("/task", json={"name": "x", "type": "script", "host": "web1", "script": SCRIPT})
    assert (answer.status_code, answer.json()[0]["field"]) == (400, "host")


BAD_HOSTNAMES = (
    "",
    None,
    5,
    "x" * 300,
    "a\nb",
    ["web1"],
)


def test_a_host_without_a_proper_name_is_refused(place: Place):
    agent = place.agent()
    for hostname in BAD_HOSTNAMES:
        answer = agent.http.post("/host?customer=tracker", json={"hostname": hostname})
        assert answer.status_code == 400 and "hostname" in answer.json()


def test_an_agent_has_no_business_with_tasks(place: Place):
    agent, task = place.agent(), place.make_task()
    for method, path in (
        ("GET", "/task"),
        ("POST", "/job"),
        ("GET", f"/task/{task['id']}/credentials"),
        ("POST", "/task"),
    ):
        answer = agent.http.request(method, f"/tracker{path}", json={"task": task["id"]} if method == "POST" else None)
        assert (answer.status_code, answer.json()) == (403, "forbidden")


def test_a_token_does_no_agents_work(place: Place):
    job = place.trigger(place.make_task())
    for method, path in (
        ("POST", "/host"),
        ("GET", "/agent/web1/config"),
        ("PUT", "/agent/web1"),
        ("GET", "/job?hostname=web1"),
        ("PUT", f"/job/{job['id']}"),
    ):
        answer = place.admin.request(method, path)
        assert (answer.status_code, answer.json()) == (403, "forbidden")


# Errors


def test_without_a_token_nothing_is_done(place: Place):
    job = place.trigger(place.make_task())
    for entry in theeye.ROUTES:
        if entry.who:
            path = entry.path.format(task=UNKNOWN, job=job["id"], workflow=UNKNOWN, hostname="web1", script=UNKNOWN)
            path = path.replace("?hostname", "?hostname=web1")
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {place.token}"}):
                answer = client(place.site.url).request(entry.method, f"/tracker{path}", headers=headers)
                assert (answer.status_code, answer.json()) == (401, "Unauthorized"), path
    assert place.state(job)[0] == "ready"


def test_a_revoked_token_opens_nothing(place: Place):
    assert place.program.get("/task").status_code == 200
    (token,) = place.site.read("SELECT id FROM theeye_token WHERE name = 'reader'")
    assert place.confirm(f"/ui/theeye/tokens/{token[0]}/revoke") == "The token is revoked."
    answer = place.program.get("/task")
    assert (answer.status_code, answer.json()) == (401, "Unauthorized")
    assert place.admin.get("/task").status_code == 200


def test_a_token_ends_when_who_made_it_is_no_admin_any_more(place: Place):
    boss = place.site.create_manager("boss")
    ((manager,),) = place.site.read("SELECT id FROM manager WHERE username = 'boss'")
    place.site.admin.post(f"/manager/promote/{manager}")
    tab = Tab(boss.http)
    page = tab.send(tab.open("/ui/theeye/tokens").form("/ui/theeye/tokens"), name="a program", admin="true")
    program = place.client(page.tree.get_element_by_id("fresh-token").text)
    assert program.get("/task").status_code == 200
    place.site.admin.post(f"/manager/demote/{manager}")
    for answer in (program.get("/task"), program.post("/task", json={"name": "x"})):
        assert (answer.status_code, answer.json()) == (401, "Unauthorized")
    assert place.tab.open("/ui/theeye/tokens").tree.get_element_by_id("token-1").text_content().endswith("invalid")


def test_the_customer_is_asked_for_in_the_path_then_the_body_then_the_query(place: Place):
    task = place.make_task()
    http = client(place.site.url, headers={"Authorization": f"Bearer {place.token}"})
    missing, unknown = (403, "organization is required"), (404, "organization not found")

    def post(path: str, **body: Any) -> Any:
        answer = http.post(path, json={"task": task["id"], **body})
        return answer.status_code if answer.status_code == 200 else (answer.status_code, answer.json())

    assert post("/job") == missing
    assert post("/job?customer=") == missing
    assert post("/job?customer=other") == unknown
    assert post("/job", customer="other") == unknown
    assert post("/job", customer=5) == post("/job", customer=["tracker"]) == unknown
    assert post("/other/job") == unknown
    assert post("/other/job?customer=tracker", customer="tracker") == unknown
    assert post("/job?customer=tracker", customer="other") == unknown
    assert post("/tracker/job?customer=other", customer="other") == 200
    assert post("/job?customer=other", customer="tracker") == 200
    assert post("/job?customer=tracker") == 200
    assert http.get("/task").json() == "organization is required"
    assert len(http.get("/task?customer=tracker").json()) == 1


NAMED = (
    ("task", "GET", "/task/{}"),
    ("task", "GET", "/task/{}/credentials"),
    ("task", "PUT", "/task/{}"),
    ("task", "DELETE", "/task/{}"),
    ("task", "POST", "/task/{}/job"),
    ("task", "POST", "/job?task={}"),
    ("job", "GET", "/job/{}"),
    ("job", "GET", "/job/{}/lifecycle"),
    ("job", "PUT", "/job/{}/cancel"),
    ("workflow", "POST", "/workflows/{}/job"),
    ("workflow", "GET", f"/workflows/{{}}/job/{UNKNOWN}/jobs"),
)


def test_an_id_that_is_malformed_or_unknown_is_refused(place: Place):
    for what, method, path in NAMED:
        for malformed in ("5", UNKNOWN[1:], UNKNOWN + "0", "g" * 24, "%01" * 24, "ä" * 24, "9" * 5000):
            answer = place.admin.request(method, path.format(malformed))
            assert (answer.status_code, answer.json()) == (400, f"{what} id is invalid")
        for unknown in (UNKNOWN, UNKNOWN.upper()):
            answer = place.admin.request(method, path.format(unknown))
            assert (answer.status_code, answer.json()) == (404, f"{what} not found")


def test_a_task_that_is_not_named_is_asked_for(place: Place):
    for body in ({}, {"task": ""}, {"task": None}, []):
        answer = place.program.post("/job", json=body)
        assert (answer.status_code, answer.json()) == (400, "task is required")
    for task in (5, {}, ["x"], True):
        answer = place.program.post("/job", json={"task": task})
        assert (answer.status_code, answer.json()) == (400, "task id is invalid")


UNKNOWN_PATHS = (
    "/tracker/nothing",
    "/tracker",
    "/tracker/",
    "/task/x/y/z",
    "/job/a/b/c",
    "/workflows",
    "/other/task/x/y/z",
    "/host/a/b",
)


def test_an_unknown_path_is_refused_in_the_words_of_the_real_system(place: Place):
    for path in UNKNOWN_PATHS:
        answer = client(place.site.url).get(path)
        assert answer.status_code == 404
        assert answer.json() == {"code": "ResourceNotFound", "message": f"{path} does not exist", "ok": False}


METHODS = (
    ("GET", "/token", "OPTIONS, POST"),
    ("DELETE", "/tracker/task", "GET, HEAD, OPTIONS, POST"),
    ("POST", f"/task/{UNKNOWN}", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
    ("HEAD", f"/tracker/job/{UNKNOWN}/cancel", "OPTIONS, PUT"),
    ("DELETE", f"/job/{UNKNOWN}", "GET, HEAD, OPTIONS, PUT"),
)


def test_a_wrong_method_is_told_the_right_ones(place: Place):
    for method, path, allowed in METHODS:
        answer = client(place.site.url).request(method, path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


BAD_BODIES = (
    b"{",
    b"nonsense",
    b'"text"',
    b"5",
    b"\xff",
    b"[" * 100_000,
    b'{"task": "\\u0000"}',
)


def test_a_body_that_is_no_json_is_refused(place: Place):
    for body in BAD_BODIES:
        answer = place.program.post("/job", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidContent")


def test_a_form_that_cannot_be_read_is_refused(place: Place):
    kinds = ("application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x")
    bodies = (b"task=%FF", b"\xff", b"task=%00", b"--x\r\nnonsense", b"&".join([b"a=b"] * 5000))
    for kind, body in itertools.product(kinds, bodies):
        answer = place.program.post("/job", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400


def test_what_is_the_trackers_own_stays_its_own(place: Place):
    guest = client(place.site.url)
    for method, path in (
        ("GET", "/job/list"),
        ("GET", f"/job/get/{UNKNOWN}"),
        ("GET", "/task/submit"),
        ("POST", "/task/get/1"),
        ("GET", "/worker/job"),
        ("GET", "/project/task"),
        ("GET", "/nothing"),
        ("GET", "/nothing/else"),
        ("POST", "/task/release"),
    ):
        answer = guest.request(method, path)
        assert answer.status_code in (401, 404, 405) and answer.json()["ok"] is False, path
    assert guest.get("/ui/").status_code == 200 and guest.get("/ui/task").status_code == 404
    assert guest.get("/").json()["content"]["name"] == "tracker"
    assert place.site.admin.get(f"/project/get/{place.project}").status_code == 200


def test_the_customer_is_a_setting_that_must_not_hide_other_paths(make_site: Callable[..., Site]):
    site = make_site(theeye_customer="acme")
    place = Place(site)
    http = client(site.url, headers={"Authorization": f"Bearer {place.token}"})
    assert http.get("/acme/task").json() == http.get("/task?customer=acme").json() == []
    assert http.get("/tracker/task").json() == "organization not found"
    assert http.get("/acme/nothing").json()["message"] == "/acme/nothing does not exist"
    for name in ("ui", "api", "task", "project", "v1"):
        with pytest.raises(tracker.TrackerError, match=f"theeye_customer: {name} "):
            tracker.create_app(tracker.Settings(theeye_customer=name))


def test_the_paths_are_the_same_behind_a_proxy_with_a_prefix(make_site: Callable[..., Site]):
    http = client(make_site(root_path="/prefix").url)
    assert http.get("/tracker/task").json() == "Unauthorized"
    assert http.post(f"/job/secret/x?customer=tracker&task={UNKNOWN}").json() == "task not found"
    assert http.get("/tracker/nothing").json()["message"] == "/tracker/nothing does not exist"


def test_no_name_that_a_stranger_may_choose_is_a_hosts(place: Place) -> None:
    place.site.create_manager().create_project("theirs")
    assert place.site.guest.post("/v1/job", json={"job_queue": "a queue"}).status_code == 200
    body = {"name": "deploy", "type": "script", "script": SCRIPT}
    for host in "theirs", "a queue":
        answer = place.admin.post("/task", json={**body, "host": host})
        assert (answer.status_code, answer.json()[0]["field"]) == (400, "host"), host
        [(number,)] = place.site.read("SELECT id FROM project WHERE name = ?", host)
        assert place.admin.post("/task", json={**body, "host": str(number)}).status_code == 200


def test_who_has_no_token_is_told_so_before_anything_of_a_body(place: Place) -> None:
    calls = [("POST", "/task"), ("PUT", "/task/0"), ("POST", "/job"), ("PUT", f"/job/{'0' * 24}"), ("POST", "/host")]
    for method, path in calls:
        for body in (b"{", b"7", b"x" * (5 * 2**20)):
            answer = place.client("no token").request(method, path, content=body)
            assert (answer.status_code, answer.json()) == (401, "Unauthorized"), (path, body[:10])
    assert place.program.post("/job", content=b"{").status_code == 400


def test_a_login_takes_a_small_body(place: Place) -> None:
    answer = client(place.site.url).post("/token", content=b"{%s}" % (b" " * 70_000), auth=place.make_agent())
    assert answer.status_code == 413


def test_nothing_that_is_sent_is_an_internal_error(place: Place):
    task, job = place.make_task(), place.trigger(place.make_task("other"))
    agent = place.agent()
    odd = [None, True, 5, -(10**30), 1.5, "", "x" * 300, "ä\\u2028", [], [[]], {}, {"id": {}}]
    fields = ("name", "type", "host", "script", "script_runas", "task_arguments", "timeout", "env", "task", "secret")
    paths = [("POST", "/task"), ("PUT", f"/task/{task['id']}"), ("POST", "/job"), ("PUT", f"/job/{job['id']}")]
    for (method, path), field, value in itertools.product(paths, fields, odd):
        http = agent.http if path.startswith("/job/") else place.admin
        base = {"name": "n", "type": "script", "host": "websites", "script": "x", "task": task["id"]}
        answer = http.request(
            method, f"{place.site.url}/tracker{path}", json={**base, field: value, "result": {"state": value}}
        )
        assert answer.status_code < 500, (method, path, field, value, answer.text)


def test_ten_clients_trigger_and_poll_at_once(place: Place):
    task, agent, token = place.make_task(task_arguments=[definition()]), place.agent(), place.token

    def use(number: int) -> tuple[str, str, str | None]:
        with place.client(token) as http:  # from Python 3.12 on a property is made by each of several threads at once
            job = http.post("/job", json={"task": task["id"], "task_arguments": [number]}).json()
            wait_until(lambda: http.get(f"/job/{job['id']}/lifecycle").json() == "finished")
            shown = http.get(f"/job/{job['id']}").json()
            return shown["task_arguments_values"][0], shown["output"]

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        uses = [pool.submit(use, number) for number in range(10)]
        done = 0
        while done < 10:
            if job := agent.fetched():
                agent.report(job["id"], output=job["task_arguments_values"])
                done += 1
        outcomes = [one.result() for one in uses]
    assert outcomes == [(str(number), [str(number)]) for number in range(10)]


# Workflows


def make_workflow(place: Place, start: str, *edges: tuple[str, str, str]) -> tuple[str, str]:
    """A workflow of tasks, by their names, made on its page: its id and its secret."""
    answer = place.site.admin.get(f"/template/list/{place.project}").json()["content"]["templates"]
    numbers = {template["name"]: template["id"] for template in answer}
    fields = {
        "edge_template": [numbers[edge[0]] for edge in edges] + [""],
        "edge_ending": [edge[1] for edge in edges] + ["success"],
        "edge_target": [numbers[edge[2]] for edge in edges] + [""],
    }
    page = place.act(f"/ui/projects/{place.project}/workflows/new", name="release", start=numbers[start], **fields)
    assert page.status == 200, page.text
    secret = page.tree.get_element_by_id("fresh-secret").text
    return re.search(r"/workflows/([0-9a-f]{24})/secret/", page.tree.get_element_by_id("curl").text)[1], secret


BUILD = """#!/bin/sh
echo "building $1"
[ "$1" = good ] && echo '["the artifact"]' || echo '{"state": "failure", "data": ["the reason"]}'
"""
PASS_ON = """#!/bin/sh
echo "got $1"
echo "[\\"done with $1\\"]"
"""


def make_release(place: Place) -> tuple[str, str]:
    """Three tasks: what is built is published, or else repaired."""
    for name, source in (("build", BUILD), ("publish", PASS_ON), ("repair", PASS_ON)):
        place.make_task(name, script=source, script_runas="sh %script%", task_arguments=[definition(label="what")])
    return make_workflow(place, "build", ("build", "success", "publish"), ("build", "failure", "repair"))


def steps(place: Place, workflow: str, run: dict[str, Any]) -> list[tuple[str, list[str], str, str | None]]:
    children = place.program.get(f"/workflows/{workflow}/job/{run['id']}/jobs").json()
    assert all((one["workflow_id"], one["workflow_job_id"]) == (workflow, run["id"]) for one in children)
    return [(one["name"], one["task_arguments_values"], one["state"], one["trigger_name"]) for one in children]


def test_a_workflow_branches_on_failure_and_an_agent_does_its_steps(place: Place):
    workflow, secret = make_release(place)
    agent = place.agent()
    body = {"customer": "tracker", "task_arguments": ["bad"]}
    run = client(place.site.url).post(f"/workflows/{workflow}/secret/{secret}/job", json=body).json()
    assert (run["_type"], run["lifecycle"], run["workflow_id"]) == ("WorkflowJob", "ready", workflow)
    job = agent.fetched()
    assert (job["name"], job["task_arguments_values"]) == ("build", ["bad"])
    assert place.state(run)[0] == "assigned"
    agent.report(job["id"], "failure", output=["the reason"])
    assert place.state(run)[0] == "assigned"
    assert agent.work(repair={"output": ["repaired"]}) == ["repair"]
    assert steps(place, workflow, run) == [
        ("build", ["bad"], "failure", "failure"),
        ("repair", ["the reason"], "success", "success"),
    ]
    assert place.state(run) == ("finished", "success", "success") and place.job(run)["output"] == ["repaired"]


def test_a_workflow_takes_the_end_of_its_last_step(place: Place):
    workflow, _ = make_release(place)
    agent = place.agent()
    run = place.program.post(f"/workflows/{workflow}/job", json={"task_arguments": ["good"]}).json()
    assert agent.work(build={"output": ["it"]}, publish={"killed": True}) == ["build", "publish"]
    assert [step[0] for step in steps(place, workflow, run)] == ["build", "publish"]
    assert place.state(run) == ("terminated", "timeout", "timeout")


def test_the_documents_curl_line_and_button_of_a_workflow_work(place: Place):
    workflow, secret = make_release(place)
    line = (
        f'workflow_id="{workflow}"; workflow_secret_key="{secret}"; customer="tracker"; '
        + r"""curl -sS \
   --request POST \
   --header "Accept: application/json" \
   --header "Content-Type: application/json" \
   --data "{\"customer\":\"${customer}\",\"task_arguments\":[\"good\"]}" \
   """
        + f'"{place.site.url}/workflows/${{workflow_id}}/secret/${{workflow_secret_key}}/job"'
    )
    assert curl(line)["_type"] == "WorkflowJob"
    html = f"""<html>
<div>
 <form action="http://api.theeye.io/workflows/{workflow}/secret/{secret}" method="POST">
   <input type="hidden" name="customer" value="tracker">
   <input type="hidden" name="task_arguments[]" value="arg1">
   <input type="submit" value="ACEPTO">
 </form>
</div>
</html>"""
    assert press(place, html).json()["_type"] == "WorkflowJob"
    started = place.program.get("/job", params={"where[name]": "build"}).json()
    assert [job["task_arguments_values"] for job in started] == [["arg1"], ["good"]]


def test_a_workflow_is_cancelled_with_its_steps(place: Place):
    workflow, _ = make_release(place)
    agent = place.agent()
    path = f"/workflows/{workflow}/job"
    ready, assigned, ended = (place.program.post(path, json={"task_arguments": ["bad"]}).json() for _ in range(3))
    assert place.program.put(f"{path}/{ready['id']}/cancel").status_code == 204
    job = agent.fetched()
    assert place.program.put(f"{path}/{assigned['id']}/cancel").status_code == 204
    assert agent.report(job["id"]).status_code == 200
    agent.work()
    assert place.state(ready) == ("canceled", "canceled", "canceled")
    assert place.state(assigned) == ("terminated", "canceled", "canceled")
    assert [one["lifecycle"] for one in place.program.get(f"{path}/{assigned['id']}/jobs").json()] == ["terminated"]
    answer = place.program.put(f"{path}/{ended['id']}/cancel")
    assert answer.status_code == 400 and "finished" in answer.json()


def test_a_cancelled_step_is_followed_by_the_edge_for_that(place: Place):
    for name in ("build", "clean up"):
        place.make_task(name)
    workflow, _ = make_workflow(place, "build", ("build", "cancelled", "clean up"))
    page = place.tab.open("/ui/workflows/1")
    select = page.form("/ui/workflows/1").xpath(".//select[@name='edge_ending']")[0]
    assert select.xpath("option[@selected]")[0].text == "canceled"
    run = place.program.post(f"/workflows/{workflow}/job").json()
    (step,) = place.program.get(f"/workflows/{workflow}/job/{run['id']}/jobs").json()
    assert place.program.put(f"/job/{step['id']}/cancel").status_code == 204
    assert place.agent().work() == ["clean up"]
    assert steps(place, workflow, run) == [
        ("build", [], "canceled", "canceled"),
        ("clean up", [], "success", "success"),
    ]
    assert place.state(run) == ("finished", "success", "success")


def test_a_workflow_is_refused_as_a_task_is(place: Place):
    workflow, secret = make_release(place)
    stranger, words = client(place.site.url), "Invalid Task Arguments. An array of length 1 is required."
    for path, expected in (
        (f"/workflows/{workflow}/secret/{secret}/job?customer=other", (404, "organization not found")),
        (f"/workflows/{workflow}/secret/{'f' * 64}/job?customer=other", (404, "organization not found")),
        (f"/workflows/{UNKNOWN}/secret/{secret}/job", (404, "workflow not found")),
        (f"/workflows/{workflow}/secret/{'f' * 64}/job", (403, "invalid secret")),
        (f"/workflows/{workflow}/secret/{secret}/job", (400, f"{words} Optionals must be null")),
        (f"/workflows/{workflow}/job", (401, "Unauthorized")),
        (f"/workflows/{UNKNOWN}/secret/{secret}/job?customer=tracker", (404, "workflow not found")),
        (f"/workflows/{workflow}/secret/{'f' * 64}/job?customer=tracker", (403, "invalid secret")),
        (f"/workflows/{workflow}/secret/{secret[1:]}?customer=tracker", (403, "invalid secret")),
        (f"/workflows/{workflow}/secret/{secret}?customer=tracker", (400, f"{words} Optionals must be null")),
        (f"/workflows/{workflow}/job?customer=tracker", (401, "Unauthorized")),
    ):
        answer = stranger.post(path)
        assert (answer.status_code, answer.json()) == expected
    assert place.program.get("/job").json() == []


def test_only_the_runs_of_a_workflow_are_looked_for_below_it(place: Place):
    workflow, _ = make_release(place)
    job = place.trigger(place.make_task())
    for method, path in (("GET", "jobs"), ("PUT", "cancel")):
        answer = place.program.request(method, f"/workflows/{workflow}/job/{job['id']}/{path}")
        assert (answer.status_code, answer.json()) == (404, "job not found")


@posix_only
def test_a_workflow_and_a_task_are_run_by_worker_py_too(place: Place, tmp_path: Path):
    workflow, _ = make_release(place)
    run = place.program.post(f"/workflows/{workflow}/job", json={"task_arguments": ["bad"]}).json()
    job = place.trigger(place.make_task(script='#!/bin/sh\necho "$COLOUR"\nexit 3\n', env={"COLOUR": "red"}))
    place.site.admin.update_project(place.project, public=True)
    machine = Machine(tmp_path)
    machine.finish(place.site, place.project, "--allow-scripts", status=1)
    assert steps(place, workflow, run) == [
        ("build", ["bad"], "failure", "failure"),
        ("repair", ["the reason"], "success", "success"),
    ]
    assert place.state(run) == ("finished", "success", "success")
    assert place.job(run)["output"] == ["done with the reason"]
    assert place.state(job) == ("finished", "red", "success")
    assert place.job(job)["result"]["code"] == 3 and place.log(job) == ["red", "exit status 3"]


# What scripts come to, whoever runs them


SCRIPTS = {
    "fails": "echo boom; exit 3",
    "says that it failed": "echo one; echo Failure",
    "says that it failed, as JSON": """echo '{"state": "failure", "data": ["why", 1]}'; exit 1""",
    "hands on": """echo; echo '["a", {"b": 1}]'""",
    "hands on, and fails": """echo '["a"]'; exit 1""",
    "warns": "echo warning",
    "writes an odd line": "echo '[oops'; echo",
    "writes no end": "echo one; printf two",
    "writes nothing": "exit 0",
    "writes nothing, and fails": "exit 7",
    "writes an end": "echo",
    "is killed": "echo dying; kill -9 $$",
}
# What becomes of them for Otter and the native API, and for theeye.io's clients.
SEEN = {
    "fails": ("Error", "failed", "boom", "success"),
    "says that it failed": ("Error", "failed", "Failure", "failure"),
    "hands on": ("Succeeded", "succeeded", "success", "success"),
    "warns": ("Warning", "succeeded", "warning", "success"),
    "writes nothing": ("Succeeded", "succeeded", "success", "success"),
    "writes nothing, and fails": ("Error", "failed", "success", "success"),
    "is killed": ("Error", "failed", "dying", "success"),
}


@posix_only
@pytest.mark.parametrize("door", ["native", "otter", "theeye"])
def test_a_script_comes_to_the_same_whether_an_agent_or_worker_py_runs_it(place: Place, tmp_path: Path, door: str):
    place.site.admin.update_project(place.project, public=True)
    for name, source in SCRIPTS.items():
        body = {"project": place.project, "name": name, "script": f"#!/bin/sh\n{source}\n", "api": True}
        assert place.site.admin.post("/template/create", body).status_code == 200
    ran = []
    for run in (run_by_agent, run_by_worker_py):
        jobs = {name: trigger_through(place, door, number, name) for number, name in enumerate(SCRIPTS, 1)}
        run(place, tmp_path)
        ran.append({name: everything_of(place, job) for name, job in jobs.items()})
    assert ran[0] == ran[1]
    for name, (otter, native, state, trigger) in SEEN.items():
        told = ran[0][name]
        if door == "theeye":
            assert told["theeye"] == ("finished", state, trigger)
        else:
            assert (told["otter"], told["native"][0]) == (otter, native)


def trigger_through(place: Place, door: str, template: int, name: str) -> str:
    """The id of a new job that came in through that door."""
    if door == "native":
        return place.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]["id"]
    if door == "otter":
        return client(place.site.url).get("/api/jobs/trigger", params={"template": name}).text
    (task,) = place.program.get("/task", params={"where[name]": name}).json()
    return place.trigger(task)["id"]


def run_by_agent(place: Place, folder: Path) -> None:
    agent = place.agent()
    while agent.run(folder):
        pass


def run_by_worker_py(place: Place, folder: Path) -> None:
    Machine(folder).finish(place.site, place.project, "--allow-scripts", status=1)


def everything_of(place: Place, job: str) -> dict[str, Any]:
    """What is told of a job through each door, but for times."""
    native, shown = place.site.admin.get(f"/job/get/{job}").json()["content"]["job"], place.job({"id": job})
    result = {name: value for name, value in shown["result"].items() if name != "times"}
    return {
        "native": (native["state"], native["reported"], native["output"], native["warned"], native["attempts"]),
        "otter": client(place.site.url).get("/api/jobs/status", params={"token": job}).text,
        "theeye": place.state(shown),
        "output": shown["output"],
        "result": result,
        "log": [(entry["level"], entry["message"]) for entry in place.entries(shown) if entry["worker"]],
    }


@posix_only
@pytest.mark.parametrize("run", [run_by_agent, run_by_worker_py])
def test_a_workflow_goes_by_the_exit_status_of_its_steps_unless_clients_of_theeye_started_it(
    place: Place, tmp_path: Path, run: Callable
):
    for name, source in (("build", "echo boom; exit 3"), ("publish", "exit 0"), ("repair", "exit 0")):
        place.make_task(name, script=f"#!/bin/sh\n{source}\n")
    workflow, _ = make_workflow(place, "build", ("build", "success", "publish"), ("build", "failure", "repair"))
    place.site.admin.update_project(place.project, public=True)
    of_theeye = place.program.post(f"/workflows/{workflow}/job").json()
    native = place.site.admin.post("/workflow/trigger/1", {}).json()["content"]["job"]
    run(place, tmp_path)
    assert [step[0] for step in steps(place, workflow, of_theeye)] == ["build", "publish"]
    assert [step[0] for step in steps(place, workflow, native)] == ["build", "repair"]


@posix_only
def test_a_job_that_worker_py_may_not_run_fails_for_clients_of_theeye_too(place: Place, tmp_path: Path):
    job = place.trigger(place.make_task())
    place.site.admin.update_project(place.project, public=True)
    Machine(tmp_path).finish(place.site, place.project, "--", "true", status=1)
    assert place.state(job) == ("finished", "failure", "failure")


# The clients, each for its whole life


def test_the_sdk_follows_a_workflow_to_its_end_without_naming_a_customer(place: Place, tmp_path: Path):
    workflow, _ = make_release(place)
    sdk, agent = Sdk(place.site.url, place.token), place.agent()
    run = sdk.run(workflow, "good")["id"]
    assert sdk.outcome(workflow, run) is None and len(sdk.steps(workflow, run)) == 1
    while agent.run(tmp_path):
        pass
    assert [step["state"] for step in sdk.steps(workflow, run)] == ["success", "success"]
    assert sdk.outcome(workflow, run) == ("success", ["done with the artifact"])
    run = sdk.run(workflow, "good")["id"]
    sdk.cancel(workflow, run)
    assert sdk.outcome(workflow, run) == ("canceled", [])


def test_a_robot_triggers_a_task_and_a_workflow_without_naming_a_customer(place: Place, tmp_path: Path):
    workflow, secret = make_release(place)
    task = place.make_task(script='#!/bin/sh\necho "[\\"$1\\"]"\n', task_arguments=[definition()])
    robot, agent = Robot(place.site.url), place.agent()
    job = robot.trigger("task", task["id"], place.secret(task), "from a mail")
    run = robot.trigger("workflows", workflow, secret, "good")
    while agent.run(tmp_path):
        pass
    assert place.state(job) == place.state(run) == ("finished", "success", "success")
    assert (place.job(job)["output"], place.job(run)["output"]) == (["from a mail"], ["done with the artifact"])


def test_a_button_that_names_no_customer_works_as_a_browser_sends_it(place: Place):
    workflow, secret = make_release(place)
    task = place.make_task(task_arguments=[definition()])
    for path, customer, status in (
        (f"/task/{task['id']}/secret/{place.secret(task)}/job", "", 200),
        (f"/workflows/{workflow}/secret/{secret}", "", 200),
        (f"/workflows/{workflow}/secret/{secret}/job", "", 200),
        (f"/task/{task['id']}/secret/{place.secret(task)}/job", "other", 404),
        (f"/workflows/{workflow}/secret/{secret}", "other", 404),
    ):
        fields = f'<input name="customer" value="{customer}"><input name="task_arguments[]" value="a">'
        html = f'<form action="http://api.theeye.io{path}" method="POST">{fields}</form>'
        assert press(place, html).status_code == status


def test_a_token_names_the_customer_below_workflows_alone(place: Place):
    workflow, _ = make_release(place)
    sdk, task = Sdk(place.site.url, place.token), place.make_task()
    run = sdk.run(workflow, "good")["id"]
    for method, path in (("GET", f"{run}/jobs"), ("GET", run), ("PUT", f"{run}/cancel")):
        answer = sdk.http.request(method, f"/workflows/{workflow}/job/{path}", params={"customer": "other"})
        assert (answer.status_code, answer.json()) == (404, "organization not found")
    for method, path in (("GET", "/job"), ("GET", "/task"), ("GET", f"/job/{run}"), ("POST", "/job")):
        answer = sdk.http.request(method, path, params={"task": task["id"]})
        assert (answer.status_code, answer.json()) == (403, "organization is required")


# Manager pages


def test_the_pages_are_for_administrators(place: Place):
    manager = Tab(place.site.create_manager().http)
    guest = Tab(client(place.site.url))
    for path in ("/ui/theeye/tokens", "/ui/theeye/agents"):
        assert place.tab.open(path).status == 200
        assert manager.open(path).status == 403
        assert guest.open(path).answer.url.path == "/ui/login"
    for path, fields in (
        ("/ui/theeye/tokens", {"name": "x"}),
        ("/ui/theeye/tokens/1/revoke", {}),
        ("/ui/theeye/agents", {"alias": "x", "project": place.project}),
        ("/ui/theeye/agents/1/delete", {}),
        ("/ui/theeye/hosts/1/delete", {}),
    ):
        assert manager.post(path, fields).status_code == 403
        assert guest.post(path, fields).status_code == 401
    tables = ("token", "agent", "host")
    assert [place.site.read(f"SELECT COUNT(*) FROM theeye_{table}") for table in tables] == [[(0,)]] * 3


def test_a_token_is_shown_once_and_its_use_is_noted(place: Place):
    page = place.act("/ui/theeye/tokens", name="<b>reader")
    token = page.tree.get_element_by_id("fresh-token").text
    line = next(pre.text for pre in page.tree.iter("pre") if pre.text.startswith("curl"))
    assert curl(line) == []
    again = place.tab.open("/ui/theeye/tokens")
    assert "<b>reader" in again.text and token not in again.html and "just now" in again.text
    assert "never" not in again.text


def test_a_token_without_a_name_is_refused(place: Place):
    page = place.act("/ui/theeye/tokens", name="")
    assert page.status == 400 and "name: must not be empty" in page.notice


def test_an_agent_that_is_deleted_is_logged_out_and_its_worker_loses_access(place: Place):
    agent = place.agent()
    (number,) = place.site.read("SELECT id FROM theeye_agent")
    assert place.confirm(f"/ui/theeye/agents/{number[0]}/delete") == "The agent is deleted."
    assert agent.keep_alive().status_code == agent.log_in().status_code == 401
    assert place.site.read("SELECT COUNT(*) FROM worker_access") == [(0,)]
    assert place.act(f"/ui/theeye/agents/{number[0]}/delete").status == 404


def test_the_list_of_agents_tells_what_each_holds_and_when_that_ends(place: Place):
    place.agent(alias="idle")
    job = place.trigger(place.make_task(name="nightly"))
    place.agent(alias="busy").fetched()
    rows = place.tab.open("/ui/theeye/agents").tree.xpath("//*[@id='agents']/tbody/tr")
    busy, idle = ([cell.text_content() for cell in row][-3:-1] for row in rows)
    assert busy[0] == "nightly" and busy[1].endswith("at the latest") and idle == ["–", "–"]
    assert f"/ui/jobs/{job['id']}" in rows[0].xpath(".//a/@href")


def test_deleting_a_host_frees_its_place(place: Place):
    place.agent("web1")
    page = place.tab.open("/ui/theeye/agents")
    host = page.tree.get_element_by_id("hosts").text_content()
    assert "web1" in host and "Each host has a project of its own" in host
    assert place.program.get("/host").json()[0]["id"] in host
    other = Agent(place.site.url, place.make_agent("other"), "web2")
    other.log_in()
    assert other.register().status_code == 403
    assert place.confirm(f"/ui/theeye/hosts/{place.project}/delete") == "The host is deleted."
    page = place.tab.open("/ui/theeye/agents")
    assert "web1" not in page.tree.get_element_by_id("hosts").text_content()
    assert place.act(f"/ui/theeye/hosts/{place.project}/delete").status == 404
    assert other.register().status_code == 200
    assert "web2" in place.tab.open("/ui/theeye/agents").tree.get_element_by_id("hosts").text_content()


def test_a_host_that_is_deleted_comes_back_with_its_agent(place: Place):
    agent = place.agent("web1")
    place.act(f"/ui/theeye/hosts/{place.project}/delete")
    agent.keep_alive()
    assert [host["hostname"] for host in place.program.get("/host").json()] == ["web1"]


def test_an_agent_needs_a_project_that_there_is(place: Place):
    assert place.act("/ui/theeye/agents", alias="x", project=99).status == 404
    assert place.act("/ui/theeye/agents", alias="x", project="").status == 400
    assert place.act("/ui/theeye/agents", alias="unassigned", project=place.project).status == 400
    assert place.site.read("SELECT COUNT(*) FROM worker") == [(0,)]


def test_what_a_workflows_page_offers_to_paste_works(place: Place):
    make_release(place)
    page = place.act("/ui/workflows/1/rotate", confirmed="yes")
    job = curl(page.tree.get_element_by_id("curl").text)
    assert job["_type"] == "WorkflowJob"
    button = page.tree.get_element_by_id("button").text
    (form,) = lxml.html.fromstring(button).forms
    assert form.action.startswith(place.site.url) and press(place, button).json()["_type"] == "WorkflowJob"
    started = place.program.get("/job", params={"where[name]": "build"}).json()
    assert [job["task_arguments_values"] for job in started] == [["what"], ["what"]]
    assert "SECRET" in place.tab.open("/ui/workflows/1").tree.get_element_by_id("curl").text


def test_tasks_of_the_same_name_are_told_apart_where_one_is_chosen(place: Place):
    for name in ("deploy", "deploy", "other"):
        place.make_task(name)
    names = ["deploy (1)", "deploy (2)", "other"]
    for path in (f"/ui/projects/{place.project}/workflows/new", f"/ui/projects/{place.project}/jobs"):
        options = Page(place.site.admin.get(path)).tree.xpath("//option/text()")
        assert [option for option in dict.fromkeys(options) if option in names] == names and "deploy" not in options


def test_a_workflow_is_changed_run_and_deleted_on_its_page(place: Place):
    workflow, secret = make_release(place)
    page = place.tab.open("/ui/workflows/1")
    form = page.form("/ui/workflows/1")
    assert [select.value for select in form.xpath(".//select[@name='edge_ending']")][:2] == ["failure", "success"]
    form.xpath(".//select[@name='edge_template']")[1].value = ""
    form.xpath(".//select[@name='edge_target']")[1].value = ""
    assert place.tab.send(form, name="renamed").notice == "Saved."
    assert "renamed" in place.tab.open(f"/ui/projects/{place.project}/workflows").text
    assert place.site.read("SELECT ending FROM workflow_edge") == [("failure",)]
    page = place.act("/ui/workflows/1/run", argument="typed")
    assert page.notice == "The workflow has begun."
    (job,) = place.program.get("/job", params={"where[_type]": "WorkflowJob"}).json()
    assert job["id"] in page.text and place.program.get("/job").json()[0]["task_arguments_values"] == ["typed"]
    assert place.confirm("/ui/workflows/1/delete") == "The workflow is deleted."
    assert client(place.site.url).post(f"/workflows/{workflow}/secret/{secret}?customer=tracker").status_code == 404


def test_a_workflow_that_cannot_be_is_refused_with_what_was_typed(place: Place):
    make_release(place)
    path = f"/ui/projects/{place.project}/workflows/new"
    edges = {"edge_template": ["1", "2"], "edge_ending": ["failure", "success"], "edge_target": ["2", ""]}
    page = place.act(path, name="other", start="1", **edges)
    assert page.status == 400 and "edges: row 2" in page.notice
    form = page.form("/workflows/new")
    assert form.fields["name"] == "other"
    assert [select.value for select in form.xpath(".//select[@name='edge_template']")][:3] == ["1", "2", ""]
    assert place.act(path, name="release", start="1").status == 409
    assert place.act(path, name="x", start="99").status == 400
    assert place.act(path, name="x", start="one").status == 400
    assert place.act("/ui/workflows/1", name="", start="1").status == 400
    assert place.act("/ui/workflows/99", name="x", start="1").status == 404


def test_workflows_are_for_those_who_may_edit_their_project(place: Place):
    make_release(place)
    manager = Tab(place.site.create_manager().http)
    for path in (f"/ui/projects/{place.project}/workflows/new", "/ui/workflows/1"):
        assert manager.open(path).status == 403
        assert manager.post(path, {"name": "x", "start": "1"}).status_code == 403
    for path in ("rotate", "run", "delete"):
        assert manager.post(f"/ui/workflows/1/{path}").status_code == 403
