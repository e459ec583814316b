"""Bad input on every endpoint: refused with a message that says what is wrong, and nothing half-done."""

from __future__ import annotations

import functools
import hashlib
import hmac
import http.client
import itertools
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import msgspec
import pytest
from conftest import Manager, Site, Worker, wait_until
from hypothesis import assume, given
from hypothesis import strategies as st

import errors
import moving
import shapes
import tracker
from database import connect

# ── A call of every endpoint that is accepted, for bad ones to be made from ───────────────────────────────────────────

ENDPOINTS = [(method, row.path) for row in tracker.API for method in row.methods.split()]
Headers = Callable[[bytes], dict[str, str]]  # of a request with that body


class BulkSubmit(msgspec.Struct):
    """What a bulk submit is, all the way down (the tracker decodes it in two steps)."""

    requests: list[shapes.SubmitBody]


BODIES: dict[tuple[str, str], type] = {
    ("POST", "/task/log"): shapes.TaskLogBody,
    ("POST", "/template/create"): shapes.TemplateBody,
    ("POST", "/template/update/{template}"): shapes.TemplateBody,
    ("POST", "/template/trigger/{template}"): shapes.TriggerBody,
    ("POST", "/workflow/create"): shapes.WorkflowBody,
    ("POST", "/workflow/update/{workflow}"): shapes.WorkflowBody,
    ("POST", "/workflow/trigger/{workflow}"): shapes.TriggerBody,
    ("POST", "/task/release"): shapes.ReleaseBody,
    ("POST", "/task/submit"): shapes.SubmitBody,
    ("POST", "/task/bulk_release"): shapes.BulkReleaseBody,
    ("POST", "/task/extend"): shapes.Extension,
    ("POST", "/task/bulk_submit"): BulkSubmit,
    ("POST", "/log/{level}"): shapes.LogBody,
    ("POST", "/worker/create"): shapes.AliasBody,
    ("POST", "/worker/update"): shapes.AliasBody,
    ("POST", "/worker/rename/{worker}"): shapes.AliasBody,
    ("POST", "/worker/set_paused"): shapes.PauseBody,
    ("POST", "/project/create"): shapes.ProjectBody,
    ("POST", "/project/update/{project}"): shapes.ProjectBody,
    ("POST", "/project/export/{project}"): moving.ExportBody,
    ("POST", "/project/request_access"): shapes.AccessBody,
    ("POST", "/project/notices/{project}"): shapes.NoticesBody,
    ("POST", "/project/set_all_paused"): shapes.PausedBody,
    ("POST", "/project/secret/{project}"): shapes.SecretBody,
    ("POST", "/project/webhook_secret/{project}"): shapes.WebhookSecretBody,
    ("POST", "/git/receivehook"): shapes.PushBody,
    ("POST", "/logs"): shapes.LogsBody,
    ("POST", "/register"): shapes.RegisterBody,
    ("POST", "/login"): shapes.LoginBody,
    ("POST", "/manager/set_role_for_project/{project}"): shapes.RoleBody,
}
SUBMIT_LINES = ("POST", "/task/submit_lines/{project}")  # takes text
IMPORT = ("POST", "/project/import")  # takes a file
LINES_QUERY = {"priority": 1, "max_retries": 3, "max_assign_time": 60, "verification_count": 1, "format": "auto"}
LINES_QUERY |= {"once": True, "token": "mine", "first_line": 1}
OF_STRANGERS = {("POST", "/register"), ("POST", "/login"), ("POST", "/worker/create")}  # their bodies are short
NO_BODY = {  # what is sent to these is not looked at: existing clients send `null`
    ("POST", "/project/accept_request/{project}/{worker}"),
    ("POST", "/project/reject_request/{project}/{worker}"),
    ("POST", "/project/reject_requests/{project}"),
    ("POST", "/project/resume_worker/{project}/{worker}"),
    ("POST", "/project/trust/{project}"),
    ("POST", "/project/delete/{project}"),
    ("POST", "/project/reset_failed_tasks/{project}"),
    ("POST", "/project/reclaim_assigned_tasks/{project}"),
    ("POST", "/project/hard_reset/{project}"),
    ("POST", "/template/delete/{template}"),
    ("POST", "/template/rotate_secret/{template}"),
    ("POST", "/workflow/delete/{workflow}"),
    ("POST", "/workflow/rotate_secret/{workflow}"),
    ("POST", "/job/cancel/{job}"),
    ("POST", "/job/retry/{job}"),
    ("POST", "/logout"),
    ("POST", "/worker/delete/{worker}"),
    ("POST", "/manager/promote/{manager}"),
    ("POST", "/manager/demote/{manager}"),
    ("POST", "/manager/block/{manager}"),
    ("POST", "/manager/unblock/{manager}"),
    ("POST", "/manager/delete/{manager}"),
}


class Example(NamedTuple):
    """A call that is accepted."""

    headers: Headers
    ids: dict[str, Any] | None = None
    body: dict[str, Any] | None = None
    query: dict[str, Any] | None = None


class Answer(NamedTuple):
    status: int
    content: Any  # the JSON, if there is a body

    @property
    def message(self) -> str:
        return self.content["message"]


def as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


class House:
    """A tracker with one of everything, and a connection that has to survive every refusal."""

    def __init__(self, site: Site):
        self.site = site
        self.project = site.admin.create_project("house", git_repo="owner/house")
        self.unwanted = site.admin.create_project("unwanted")
        self.worker = site.create_worker(self.project)
        self.candidate = Worker(site.url)
        self.candidate.request_access(self.project)
        self.stranger, self.passing = Worker(site.url), Worker(site.url)
        self.other = site.create_manager("other")
        self.leaver, self.going = site.create_manager("leaver"), site.create_manager("going")
        self.worker.submit(self.project)
        self.task = self.worker.assigned(self.project)["id"]
        self.worker.log("info", "hello")
        self.template, self.spare = (self.create_template(name) for name in ("build", "spare"))
        self.workflow, self.spare_workflow = (self.create_workflow(name) for name in ("builds", "spares"))
        answer = self.worker.http.post(f"/task/submit_lines/{self.project}", content=b"one line")
        self.operation = answer.json()["content"]["operation"]
        wait_until(lambda: site.read("SELECT finished FROM operation") != [(None,)])
        self.live, self.ended = (self.trigger() for _ in range(2))
        site.admin.post(f"/job/cancel/{self.ended}")
        self.file = site.admin.post(f"/project/export/{self.unwanted}", {}).content
        self.webhook_secret = site.admin.get(f"/project/webhook_secret/{self.project}").json()["content"]
        self.connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=60)
        self.watcher = connect(Path(site.settings.database), site.settings, readonly=True)
        self.seen: tuple[int, dict[str, list[tuple]]] = (-1, {})

    def create_template(self, name: str) -> int:
        body = {"project": self.project, "name": name, "arguments": [{"type": "input"}]}
        return self.site.admin.post("/template/create", body).json()["content"]["template"]["id"]

    def create_workflow(self, name: str) -> int:
        body = {"project": self.project, "name": name, "start": self.template}
        return self.site.admin.post("/workflow/create", body).json()["content"]["workflow"]["id"]

    def trigger(self) -> str:
        """The id of a new job."""
        answer = self.site.admin.post(f"/template/trigger/{self.template}", {"arguments": ["x"]})
        return answer.json()["content"]["job"]["id"]

    def as_worker(self, body: bytes) -> dict[str, str]:
        return {"X-Worker-ID": str(self.worker.id), "X-Secret": self.worker.secret}

    def as_stranger(self, body: bytes) -> dict[str, str]:
        return {"X-Worker-ID": str(self.stranger.id), "X-Secret": self.stranger.secret}

    def as_admin(self, body: bytes) -> dict[str, str]:
        return self.cookie(self.site.admin)

    def as_leaver(self, body: bytes) -> dict[str, str]:
        return self.cookie(self.leaver)

    def as_hook(self, body: bytes) -> dict[str, str]:
        key = self.webhook_secret["webhook_secret"].encode()
        return {"X-Hub-Signature-256": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()}

    def as_nobody(self, body: bytes) -> dict[str, str]:
        return {}

    def cookie(self, manager: Manager) -> dict[str, str]:
        return {"Cookie": f"tt={manager.http.cookies['tt']}"}

    def examples(self) -> dict[tuple[str, str], Example]:
        """A call of every endpoint. One after the other, they are all accepted."""
        project, manager = {"project": self.project}, {"manager": self.other.id}
        candidate = {"project": self.project, "worker": self.candidate.id}
        task = {
            **{"project": self.project, "recipe": "do this", "priority": 1, "max_retries": 3, "max_assign_time": 60},
            **{"verification_count": 1, "hash64": -7, "hash_u64": 0, "unique_string": "", "unique_str": ""},
            **{"delay": 0, "not_before": 1},
        }
        release = {"task_id": self.task, "result": 0, "verification": -32315129, "output": {"code": 0}}
        release |= {"delay": 0, "attempt": 0, "error": "", "for_good": False}
        extension = {"task_id": self.task, "seconds": 60, "attempt": 0}
        body = {
            **tracker.NEW_PROJECT,
            "name": "another",
            "clone_url": "http://example.org",
            "motd": "hello",
            "assign_rate": 2,
            "max_lost_leases": 5,
        }
        line = {"scope": "test", "timestamp": 1559393394, "message": "hello", "Message": "hello", "task_id": self.task}
        logs = {"level": 5, "since": 1, "max_level": 7, "before": 1, "limit": 10}
        repository = {"full_name": "owner/house"}
        push = {"ref": "refs/heads/main", "after": "c0ffee", "deleted": False, "repository": repository}
        newcomer = {"username": "newcomer", "password": "password"}
        role = {"manager": self.other.id, "username": "other", "role": 3}
        return {
            **self.job_examples(project),
            ("GET", "/task/get/{project}"): Example(self.as_worker, project, query={"wait": 0.01, "count": 2}),
            ("GET", "/task/get"): Example(self.as_worker, query={"project": self.project, "wait": 0.01, "count": 2}),
            ("POST", "/task/submit"): Example(self.as_worker, body=task),
            ("POST", "/task/bulk_submit"): Example(self.as_worker, body={"requests": [task, {**task, "hash64": 1}]}),
            SUBMIT_LINES: Example(self.as_worker, project, b'a line\n{"recipe": "another"}', LINES_QUERY),
            ("GET", "/operation/{operation}"): Example(self.as_worker, {"operation": self.operation}),
            ("POST", "/task/release"): Example(self.as_worker, body=release),
            ("POST", "/task/bulk_release"): Example(self.as_worker, body={"releases": [release, release]}),
            ("POST", "/task/extend"): Example(self.as_worker, body=extension),
            ("POST", "/log/{level}"): Example(self.as_worker, {"level": "info"}, body=line),
            ("POST", "/worker/create"): Example(self.as_nobody, body={"alias": "some alias"}),
            ("GET", "/worker/get/{worker}"): Example(self.as_nobody, {"worker": self.worker.id}),
            ("POST", "/worker/update"): Example(self.as_worker, body={"alias": "another alias"}),
            ("POST", "/worker/rename/{worker}"): Example(
                self.as_admin, {"worker": self.stranger.id}, {"alias": "a third alias"}
            ),
            ("POST", "/worker/delete/{worker}"): Example(self.as_admin, {"worker": self.passing.id}),
            ("POST", "/worker/set_paused"): Example(self.as_admin, body={"worker": self.worker.id, "paused": False}),
            ("GET", "/worker/stats"): Example(self.as_nobody),
            ("GET", "/project/list"): Example(self.as_nobody),
            ("GET", "/project/get/{project}"): Example(self.as_nobody, project),
            ("POST", "/project/create"): Example(self.as_admin, body=body),
            ("POST", "/project/update/{project}"): Example(
                self.as_admin, project, {**body, "name": "house", "git_repo": "owner/house"}
            ),
            ("GET", "/acts"): Example(self.as_admin, query={"before": 7, "limit": 10}),
            ("GET", "/project/acts/{project}"): Example(self.as_admin, project, query={"before": 7, "limit": 10}),
            ("GET", "/project/monitoring/{project}"): Example(self.as_nobody, project, query={"count": 5}),
            ("GET", "/project/monitoring-between/{project}"): Example(
                self.as_nobody, project, query={"from": 0, "to": 2**40}
            ),
            ("GET", "/project/assignees/{project}"): Example(self.as_nobody, project),
            ("GET", "/project/access_list/{project}"): Example(self.as_admin, project),
            ("POST", "/project/accept_request/{project}/{worker}"): Example(self.as_admin, candidate),
            ("POST", "/project/reject_request/{project}/{worker}"): Example(self.as_admin, candidate),
            ("POST", "/project/reject_requests/{project}"): Example(self.as_admin, project),
            ("POST", "/project/trust/{project}"): Example(self.as_admin, project),
            ("GET", "/project/paused_workers/{project}"): Example(self.as_nobody, project),
            ("POST", "/project/resume_worker/{project}/{worker}"): Example(
                self.as_admin, {**project, "worker": self.worker.id}
            ),
            ("POST", "/project/set_all_paused"): Example(self.as_admin, body={"paused": False}),
            ("GET", "/project/notices/{project}"): Example(self.as_admin, project),
            ("POST", "/project/notices/{project}"): Example(
                self.as_admin,
                project,
                {
                    **{"url": "http://127.0.0.1:1/", "kind": "json", "events": ["finished"]},
                    **{"failing_share": 50, "stalled_minutes": 30},
                },
            ),
            ("POST", "/project/request_access"): Example(
                self.as_stranger, body={**project, "assign": True, "submit": False}
            ),
            ("GET", "/project/secret/{project}"): Example(self.as_worker, project),
            ("POST", "/project/secret/{project}"): Example(self.as_admin, project, {"secret": "{}"}),
            ("GET", "/project/webhook_secret/{project}"): Example(self.as_admin, project),
            ("POST", "/project/webhook_secret/{project}"): Example(self.as_admin, project, self.webhook_secret),
            ("POST", "/project/reset_failed_tasks/{project}"): Example(self.as_admin, project),
            ("POST", "/project/reclaim_assigned_tasks/{project}"): Example(self.as_admin, project),
            ("POST", "/project/hard_reset/{project}"): Example(self.as_admin, project),
            ("POST", "/project/export/{project}"): Example(
                self.as_admin, {"project": self.unwanted}, body={"secrets": False}
            ),
            IMPORT: Example(self.as_admin, body=self.file, query={"name": "moved", "token": "mine"}),
            ("POST", "/project/delete/{project}"): Example(self.as_admin, {"project": self.unwanted}),
            ("POST", "/git/receivehook"): Example(self.as_hook, body=push),
            ("POST", "/logs"): Example(self.as_admin, body=logs),
            ("GET", "/logs"): Example(self.as_admin, query=logs),
            ("POST", "/register"): Example(self.as_nobody, body={**newcomer, "code": ""}),
            ("POST", "/login"): Example(self.as_nobody, body=newcomer),
            ("GET", "/logout"): Example(self.as_leaver),
            ("POST", "/logout"): Example(self.as_leaver),
            ("GET", "/account"): Example(self.as_admin),
            ("GET", "/manager/list"): Example(self.as_admin),
            ("GET", "/manager/list_for_project/{project}"): Example(self.as_admin, project),
            ("GET", "/manager/promote/{manager}"): Example(self.as_admin, manager),
            ("POST", "/manager/promote/{manager}"): Example(self.as_admin, manager),
            ("GET", "/manager/demote/{manager}"): Example(self.as_admin, manager),
            ("POST", "/manager/demote/{manager}"): Example(self.as_admin, manager),
            ("POST", "/manager/block/{manager}"): Example(self.as_admin, {"manager": self.leaver.id}),
            ("POST", "/manager/unblock/{manager}"): Example(self.as_admin, {"manager": self.leaver.id}),
            ("POST", "/manager/delete/{manager}"): Example(self.as_admin, {"manager": self.going.id}),
            ("POST", "/manager/set_role_for_project/{project}"): Example(self.as_admin, project, role),
        }

    def job_examples(self, project: dict[str, int]) -> dict[tuple[str, str], Example]:
        """The calls about jobs, templates and workflows."""
        entry = {"message": "hello", "timestamp": 1559393394, "level": "info", "scope": "test"}
        lines = {"task_id": self.task, "entries": [entry, entry], "first": 0}
        template = {
            **{"project": self.project, "name": "test", "description": "Tests.", "recipe": "test {branch}"},
            **{
                "script": "#!/bin/sh\n",
                "runas": "sh %script%",
                "undeclared": True,
                "env": {"LANG": "C"},
                "timeout": 60,
            },
            **{"max_retries": 1, "priority": 0, "api": True, "key": "any key!", "keep_count": 10, "keep_time": 60},
            "variables": [{"name": "a", "value": "1", "required": True, "allowed": ["1", 2], "description": "One."}],
            "arguments": [{"order": 0, "type": "input", "label": "Branch", "value": "main", "options": ["main"]}],
        }
        edge = {"template": self.template, "ending": "failure", "target": self.template}
        workflow = {"project": self.project, "name": "tests", "start": self.template, "edges": [edge]}
        given = {"variables": {"a": "1", "branch": ["main"]}, "arguments": ["x", None]}
        ids = {"template": self.template, "workflow": self.workflow, "job": self.live}
        spare = {"template": self.spare, "workflow": self.spare_workflow}
        query = {"project": self.project, "template": self.template, "state": "waiting", "from": 0, "to": 2**40}
        query |= {"before": 7, "limit": 10}
        return {
            ("POST", "/task/log"): Example(self.as_worker, body=lines),
            ("GET", "/task/attachments/{task}"): Example(self.as_worker, {"task": self.task}),
            ("POST", "/template/create"): Example(self.as_admin, body=template),
            ("POST", "/template/update/{template}"): Example(self.as_admin, ids, body={**template, "name": "build"}),
            ("POST", "/template/delete/{template}"): Example(self.as_admin, spare),
            ("POST", "/template/rotate_secret/{template}"): Example(self.as_admin, ids),
            ("GET", "/template/get/{template}"): Example(self.as_admin, ids),
            ("GET", "/template/list/{project}"): Example(self.as_admin, project),
            ("POST", "/template/trigger/{template}"): Example(self.as_worker, ids, body=given),
            ("GET", "/job/get/{job}"): Example(self.as_worker, ids),
            ("GET", "/job/log/{job}"): Example(self.as_admin, ids, query={"after": 0, "limit": 10}),
            ("GET", "/job/list"): Example(self.as_admin, query=query),
            ("POST", "/job/cancel/{job}"): Example(self.as_admin, {"job": self.live}),
            ("POST", "/job/retry/{job}"): Example(self.as_admin, {"job": self.ended}),
            ("POST", "/workflow/create"): Example(self.as_admin, body=workflow),
            ("POST", "/workflow/update/{workflow}"): Example(self.as_admin, ids, body={**workflow, "name": "builds"}),
            ("POST", "/workflow/delete/{workflow}"): Example(self.as_admin, spare),
            ("POST", "/workflow/rotate_secret/{workflow}"): Example(self.as_admin, ids),
            ("GET", "/workflow/get/{workflow}"): Example(self.as_admin, ids),
            ("GET", "/workflow/list/{project}"): Example(self.as_admin, project),
            ("POST", "/workflow/trigger/{workflow}"): Example(self.as_worker, ids, body=given),
        }

    def call(
        self,
        endpoint: tuple[str, str],
        body: bytes | None = None,
        ids: dict[str, str] | None = None,
        query: str | None = None,
        headers: dict[str, str | bytes] | None = None,
    ) -> Answer:
        """The endpoint's example with something else in place of its body, its ids, its query or its headers."""
        example = self.examples()[endpoint]
        if body is None:
            body = b"" if example.body is None else as_bytes(example.body)
        path = endpoint[1].format(**{**(example.ids or {}), **(ids or {})})
        query = urlencode(example.query or {}) if query is None else query
        return self.send(endpoint[0], path + "?" * bool(query) + query, body, headers or example.headers(body))

    def send(self, method: str, target: str, body: bytes, headers: dict[str, str | bytes]) -> Answer:
        self.connection.request(method, target, body, headers)
        response = self.connection.getresponse()
        data = response.read()
        assert not response.will_close, "the tracker dropped the connection"
        is_file = "ndjson" in response.getheader("Content-Type", "")
        return Answer(response.status, json.loads(data) if data and not is_file else data or None)

    def refuse(self, name: str, statuses: tuple[int, ...], *args: Any, **changes: Any) -> Answer:
        """Makes a call and checks that it is refused for what `name` says, and that nothing has changed."""
        before = self.rows()
        answer = self.call(*args, **changes)
        what = (args, changes, answer)
        assert answer.status in statuses, what
        assert answer.content["ok"] is False, what
        assert name in answer.message, what
        assert self.rows() == before, what
        return answer

    def rows(self) -> dict[str, list[tuple]]:
        """What the database has in it, read again only when somebody has written to it."""
        version = self.watcher.execute("PRAGMA data_version").fetchone()[0]
        if version != self.seen[0]:
            self.seen = version, self.site.dump()
        return self.seen[1]


@pytest.fixture
def house(make_site: Callable[..., Site]) -> Iterator[House]:
    house = House(make_site(snapshot_interval=1e6))
    yield house
    house.watcher.close()


def test_there_is_an_example_for_every_endpoint(house: House) -> None:
    assert sorted(house.examples()) == sorted(ENDPOINTS)


def test_every_post_endpoint_is_known_to_take_a_body_or_none() -> None:
    posts = {endpoint for endpoint in ENDPOINTS if endpoint[0] == "POST"}
    assert posts == BODIES.keys() | NO_BODY | {SUBMIT_LINES, IMPORT}
    assert not BODIES.keys() & NO_BODY


def test_every_example_names_every_field_of_its_body(house: House) -> None:
    for endpoint, kind in BODIES.items():
        msgspec.json.decode(json.dumps(house.examples()[endpoint].body), type=kind)
        for field in fields(kind):
            assert value_at(house.examples()[endpoint].body, field.keys) is not None


def test_every_example_is_accepted(house: House) -> None:
    for endpoint in house.examples():
        answer = house.call(endpoint)
        assert answer.status in (200, 204), (endpoint, answer)


def test_unknown_fields_are_ignored(house: House) -> None:
    for endpoint in BODIES:
        body = {**house.examples()[endpoint].body, "unknown": [1, {"deep": None}], "id": "x", "": 1}
        answer = house.call(endpoint, json.dumps(body).encode())
        assert answer.status in (200, 204), (endpoint, answer)


def test_an_endpoint_without_a_body_ignores_what_is_sent(house: House) -> None:
    for endpoint in sorted(NO_BODY):
        assert house.call(endpoint, b"null \xff {").status in (200, 204), endpoint


# ── Fields ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Field(NamedTuple):
    """A field somewhere in a body: how a message names it, where it is, its type."""

    name: str
    keys: tuple[str | int, ...]
    type: Any
    required: bool


def fields(kind: Any, name: str = "", keys: tuple = ()) -> Iterator[Field]:
    """All fields of a body, those of what it contains too."""
    for field in msgspec.inspect.type_info(kind).fields:
        here, there = f"{name}{field.encode_name}", (*keys, field.encode_name)
        yield Field(here, there, field.type, field.required)
        if isinstance(field.type, msgspec.inspect.StructType):
            yield from fields(field.type.cls, f"{here}.", there)
        for part in parts(field.type):
            if isinstance(part, msgspec.inspect.ListType) and isinstance(part.item_type, msgspec.inspect.StructType):
                yield from fields(part.item_type.cls, f"{here}[0].", (*there, 0))


def value_at(body: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        body = body[key]
    return body


def with_text(body: dict[str, Any], field: Field, text: str | bytes) -> bytes:
    """The body as JSON, with this text in place of the field's value."""
    changed = json.loads(json.dumps(body))
    value_at(changed, field.keys[:-1])[field.keys[-1]] = "@@"
    text = text if isinstance(text, bytes) else text.encode()
    return json.dumps(changed).encode().replace(b'"@@"', text, 1)


def without(body: dict[str, Any], field: Field) -> bytes:
    changed = json.loads(json.dumps(body))
    del value_at(changed, field.keys[:-1])[field.keys[-1]]
    return json.dumps(changed).encode()


KINDS = {
    msgspec.inspect.IntType: {"number"},
    msgspec.inspect.FloatType: {"number", "fraction"},
    msgspec.inspect.StrType: {"string"},
    msgspec.inspect.BoolType: {"boolean"},
    msgspec.inspect.NoneType: {"null"},
    msgspec.inspect.ListType: {"array"},
    msgspec.inspect.StructType: {"object"},
    msgspec.inspect.DictType: {"object"},
    msgspec.inspect.AnyType: {"string", "number", "fraction", "boolean", "null", "array", "object"},
    msgspec.inspect.RawType: {"string", "number", "fraction", "boolean", "null", "array", "object"},
}
OF_KIND = {
    **{"string": '"text"', "number": "1", "fraction": "1.5", "boolean": "true", "null": "null", "array": "[[]]"},
    **{"object": "{}"},
}


def parts(kind: Any) -> list[Any]:
    """The types that a field may have, without what is said about it."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return parts(kind.type)
    return (
        [one for part in kind.types for one in parts(part)] if isinstance(kind, msgspec.inspect.UnionType) else [kind]
    )


def of_wrong_type(kind: Any) -> list[str]:
    """One JSON text of each type that the field does not have."""
    right = set().union(*(kinds_of(part) for part in parts(kind)))
    return [text for name, text in OF_KIND.items() if name not in right | {"null"}]


def kinds_of(part: Any) -> set[str]:
    if isinstance(part, msgspec.inspect.LiteralType):
        return {"string"} if isinstance(part.values[0], str) else {"number"}
    return KINDS[type(part)]


def limits(kind: Any) -> tuple[int, int]:
    """The smallest and the largest number that a field takes. Hashes are 64 bits, signed or unsigned."""
    if isinstance(kind, msgspec.inspect.LiteralType):
        return min(kind.values), max(kind.values)
    low, high = kind.ge, kind.lt - 1 if kind.lt is not None else kind.le
    return -(2**63) if low is None else low, 2**64 - 1 if high is None else high


def out_of_range(kind: Any) -> list[str]:
    """JSON texts of the right type whose value is impossible."""
    texts: list[str] = []
    for part in parts(kind):
        if "number" in kinds_of(part) and isinstance(part, msgspec.inspect.IntType | msgspec.inspect.LiteralType):
            low, high = limits(part)
            texts += [str(low - 1), str(high + 1), str(-(2**63) - 1), str(2**64), "-1" + 30 * "0", "9" * 5000, "1e400"]
        if isinstance(part, msgspec.inspect.FloatType):
            texts += ["-1", "-1e-300", "1e400", "-1e400", "9" * 5000]
        if isinstance(part, msgspec.inspect.StrType):
            texts += ['"\\u0000"', '"a\\u0000b"', '"a\0b"'.replace("\0", "\\u0000 \\\\u0000")]
            texts += ['""'] if part.min_length else []
            texts += [too_long(part.max_length)] if part.max_length in range(1, shapes.MOST_TEXT) else []
    return texts


@functools.cache  # they are megabytes
def too_long(most: int) -> str:
    return json.dumps("x" * (most + 1))


def every_field(house: House) -> Iterator[tuple[tuple[str, str], dict[str, Any], Field]]:
    """Every endpoint that takes a body, its example's body, each field in there."""
    for endpoint, kind in BODIES.items():
        for field in fields(kind):
            yield endpoint, house.examples()[endpoint].body, field


def test_a_value_of_the_wrong_type_is_refused_by_the_fields_name(house: House) -> None:
    for endpoint, body, field in every_field(house):
        for text in of_wrong_type(field.type):
            house.refuse(f"{field.name}: must be ", (400,), endpoint, with_text(body, field, text))


def test_an_impossible_value_is_refused_by_the_fields_name(house: House) -> None:
    for endpoint, body, field in every_field(house):
        for text in out_of_range(field.type):
            if not (is_printed(endpoint, field) and "u0000" in text):
                house.refuse(f"{field.name}: ", (400,), endpoint, with_text(body, field, text))


def is_free(field: Field) -> bool:
    """Whether the field has JSON of any form."""
    return any(isinstance(part, msgspec.inspect.RawType) for part in parts(field.type))


def is_printed(endpoint: tuple[str, str], field: Field) -> bool:
    """Whether the field has what a script prints: no text is refused there."""
    of_text = any(isinstance(part, msgspec.inspect.StrType) for part in parts(field.type))
    return getattr(BODIES[endpoint], "as_printed", False) and (of_text or is_free(field))


def test_a_missing_field_is_refused_by_its_name(house: House) -> None:
    for endpoint, body, field in every_field(house):
        if field.required:
            house.refuse(f"{field.name}: is required", (400,), endpoint, without(body, field))


def test_a_field_that_is_optional_elsewhere_is_refused_by_its_name_where_it_is_required(house: House) -> None:
    house.refuse("name: is required", (400,), ("POST", "/project/create"), b"{}")
    house.refuse("message: is required", (400,), ("POST", "/log/{level}"), b'{"scope": "s", "timestamp": 1}')


# ── Nulls ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def has_nulls(field: Field) -> bool:
    return any(type(part) in (msgspec.inspect.AnyType, msgspec.inspect.RawType) for part in parts(field.type))


def test_null_in_an_optional_field_of_any_body_is_as_good_as_nothing(house: House) -> None:
    for endpoint, body, field in every_field(house):
        kind = BODIES[endpoint]
        as_it_is = has_nulls(field) or any(has_nulls(other) for other in fields(kind))
        if not field.required and not as_it_is and not hasattr(kind, "null_means"):
            given = tracker.decode(with_text(body, field, "null"), kind)
            assert repr(given) == repr(tracker.decode(without(body, field), kind)), (endpoint, field.name)


def test_null_in_a_required_field_of_any_body_is_a_missing_one(house: House) -> None:
    for endpoint, body, field in every_field(house):
        if field.required:
            house.refuse(f"{field.name}: is required", (400,), endpoint, with_text(body, field, "null"))


def test_null_in_an_update_sets_the_default(house: House) -> None:
    for endpoint, body, field in every_field(house):
        means = getattr(BODIES[endpoint], "null_means", {})
        if field.name in means and means[field.name] is not msgspec.NODEFAULT:
            given = getattr(tracker.decode(with_text(body, field, "null"), BODIES[endpoint]), field.name)
            assert given == means[field.name] and given is not msgspec.UNSET, (endpoint, field.name)
        elif field.name in means:
            house.refuse(f"{field.name}: is required", (400,), endpoint, with_text(body, field, "null"))


def test_a_body_that_is_null_is_one_without_fields(house: House) -> None:
    assert house.call(("POST", "/worker/create"), b"null").status == 200
    house.refuse("project: is required", (400,), ("POST", "/task/submit"), b" null ")


NO_JSON = ["NaN", "Infinity", "-Infinity", '"\\ud800"', '"\\udc00x"', b'"\xff"', b'"\xed\xa0\x80"', "'x'", "0x1"]


def test_a_value_that_no_json_has_is_refused_in_every_field(house: House) -> None:
    """Python's own decoder would let the first ones pass."""
    for endpoint, body, field in every_field(house):
        printed = is_printed(endpoint, field)
        for text in () if printed and is_free(field) else NO_JSON[:3] if printed else NO_JSON:
            house.refuse(": ", (400,), endpoint, with_text(body, field, text))


def test_a_number_that_no_float_holds_is_refused_in_plain_words(house: House) -> None:
    for number in (b"1e400", b"-1e400"):
        body = b'{"name": "huge", "assign_rate": %b}' % number
        house.refuse("assign_rate: must be closer to 0", (400,), ("POST", "/project/create"), body)


def test_a_text_of_another_pattern_is_refused_in_plain_words() -> None:
    with pytest.raises(errors.TrackerError) as refused:
        errors.decode(b'{"cookie_name": "two words"}', tracker.Settings)
    assert refused.value.message == "cookie_name: must match the pattern '^[A-Za-z0-9_-]+$'"


@pytest.mark.parametrize(
    ("kind", "meta", "value", "words"),
    [
        (float, {"gt": 0}, 0, "must be more than 0"),
        (float, {"lt": 2.5}, 3, "must be less than 2.5"),
        (float, {"ge": 0}, -1, "must be at least 0"),
        (float, {"le": 100}, 101, "must be at most 100"),
        (list, {"min_length": 1}, [], "must not be empty"),
        (list, {"max_length": 1}, [1, 2], "must have at most 1 item"),
    ],
)
def test_a_value_beyond_a_bound_is_refused_in_plain_words(
    kind: type, meta: dict[str, Any], value: Any, words: str
) -> None:
    with pytest.raises(errors.TrackerError) as refused:
        errors.convert({"x": value}, msgspec.defstruct("Bounded", [("x", Annotated[kind, msgspec.Meta(**meta)])]))
    assert refused.value.message == f"x: {words}"


def test_a_bare_array_of_tasks_names_their_fields_as_well(house: House) -> None:
    good = {"project": house.project, "recipe": "x"}
    bad = [{**good, "recipe": ""}, {**good, "priority": "1"}, {"recipe": "x"}, {**good, "unique_str": "\0"}]
    for field, task in zip(("recipe", "priority", "project", "unique_str"), bad, strict=True):
        body = json.dumps([good, task]).encode()
        house.refuse(f"requests[1].{field}: ", (400,), ("POST", "/task/bulk_submit"), body)


def test_one_bad_task_in_a_bulk_of_thousands_leaves_nothing_of_it(house: House) -> None:
    tasks = [{"project": house.project, "recipe": f"task {number}"} for number in range(3000)]
    tasks[2999]["max_retries"] = -1
    body = json.dumps(tasks).encode()
    house.refuse("requests[2999].max_retries: ", (400,), ("POST", "/task/bulk_submit"), body)


def test_one_bad_release_among_good_ones_leaves_nothing_done(house: House) -> None:
    good = {"task_id": house.task, "result": 0}
    body = json.dumps({"releases": [good, {**good, "verification": 2**64}]}).encode()
    house.refuse("verification: ", (400,), ("POST", "/task/bulk_release"), body)


def wrong_texts(kind: Any) -> st.SearchStrategy[str]:
    """Texts that are wrong for the field: of any other type, or beyond its limits."""
    choices = [st.sampled_from(of_wrong_type(kind) + out_of_range(kind))]
    for part in parts(kind):
        if "number" in kinds_of(part) and isinstance(part, msgspec.inspect.IntType | msgspec.inspect.LiteralType):
            low, high = limits(part)
            choices += [st.integers(max_value=low - 1).map(str), st.integers(min_value=high + 1).map(str)]
            choices += [st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x % 1).map(repr)]
        if isinstance(part, msgspec.inspect.StrType):
            choices += [st.tuples(st.text(), st.text()).map("\0".join).map(json.dumps)]
    return st.one_of(choices)


@functools.cache
def bounded_fields(endpoint: tuple[str, str]) -> list[Field]:
    """Those of its body that can be wrong: one that may be any JSON never is."""
    return [one for one in fields(BODIES[endpoint]) if of_wrong_type(one.type) + out_of_range(one.type)]


@st.composite
def wrong_calls(draw: st.DrawFn) -> tuple[tuple[str, str], Field, str, dict[str, Any]]:
    endpoint = draw(st.sampled_from(sorted(BODIES)))
    field = draw(st.sampled_from(bounded_fields(endpoint)))
    names = st.text(st.characters(codec="utf-8"), min_size=1).map("x-{}".format)
    noise = draw(st.dictionaries(names, JSON, max_size=2))
    return endpoint, field, draw(wrong_texts(field.type)), noise


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from(["", "\0", "\ud800", 2**63, 2**64, -(2**63) - 1, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def test_a_wrong_value_in_any_field_of_any_endpoint_is_refused_by_its_name(house: House) -> None:
    @given(wrong_calls())
    def refuse(call: tuple[tuple[str, str], Field, str, dict[str, Any]]) -> None:
        endpoint, field, text, noise = call
        assume(not is_printed(endpoint, field))
        body = with_text({**noise, **house.examples()[endpoint].body}, field, text)
        unreadable = any(word in json.dumps(noise) for word in ("NaN", "Infinity", "\\ud"))
        house.refuse(": " if unreadable else f"{field.name}: ", (400,), endpoint, body)

    refuse()


def test_a_whole_number_may_be_written_with_a_point(house: House) -> None:
    """As JSON Schema has it, and so the API's document: programs print their numbers like that."""
    body = b'{"project": 1.0, "recipe": "20.0", "priority": -3.0, "max_retries": 2e0, "hash64": 4611686018427387904.0}'
    assert house.call(("POST", "/task/submit"), body).status == 200
    stored = house.site.read("SELECT recipe, priority, max_retries, hash64 FROM task ORDER BY id DESC LIMIT 1")
    assert stored == [("20.0", -3, 2, 2**62)]
    for number in b"1.5", b"1e300", b"-0.1":
        house.refuse("priority: ", (400,), ("POST", "/task/submit"), body.replace(b"-3.0", number))


# ── Bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────────

DEEP = 100_000
UNREADABLE = {
    "empty": b"",
    "blank": b" \r\n",
    "a word": b"hello",
    "a form": b"project=1&recipe=x",
    "NaN": b"NaN",
    "an open object": b"{",
    "an open string": b'{"project',
    "two values": b"{} {}",
    "a comment": b"{} // comment",
    "single quotes": b"{'project': 1}",
    "a trailing comma": b'{"project": 1,}',
    "a NUL": b"\0",
    "a NUL at the end": b"{}\0",
    "no UTF-8": b"\xff\xfe{}",
    "UTF-16": "{}".encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "a number": b"1",
    "a string": b'"x"',
    "an array of nothing": b"[null]",
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep open arrays": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep in an unknown field": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep in tasks": b'{"requests":[' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"]}",
}


def test_a_body_that_is_no_json_object_is_refused_by_every_endpoint(house: House) -> None:
    for endpoint in BODIES:
        for body in UNREADABLE.values():
            if endpoint not in OF_STRANGERS or len(body) < 2**16:
                house.refuse(": ", (400,), endpoint, body)


def test_a_body_that_ends_too_early_is_refused_wherever_it_ends(house: House) -> None:
    @given(st.sampled_from(sorted(BODIES)), st.floats(0, 1, exclude_max=True))
    def refuse(endpoint: tuple[str, str], part: float) -> None:
        body = json.dumps(house.examples()[endpoint].body).encode()
        house.refuse("body: not valid JSON", (400,), endpoint, body[: int(part * len(body))])

    refuse()


WHAT_IT_IS = {
    "it is empty": ["", " \r\n"],
    "it looks like a form": ["project=1&recipe=x", "task_arguments%5B%5D=a", "--b\r\nContent-Disposition: form-data"],
    "it is UTF-16 or the like, and must be UTF-8": ['{"project": 1}'.encode(one) for one in ("utf-16", "utf-16-le")],
    "NaN and Infinity are no numbers there": ['{"alias": NaN}', '{"a": [1, -Infinity]}'],
    "a text in it ends with half of a surrogate pair": ['{"alias": "cut \\ud83d"}', '{"a": ["\\uD83Db"]}'],
    "Input data was truncated": ['{"alias": "', '{"alias": "\\ud83d'],
}


@pytest.mark.parametrize("problem", WHAT_IT_IS)
def test_a_body_that_is_no_json_is_called_what_it_is(site: Site, problem: str) -> None:
    """Libraries that are given fields, and shells that write UTF-16, send such; "invalid character" helps nobody."""
    for body in WHAT_IT_IS[problem]:
        answer = site.guest.post("/worker/create", content=body)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(f"body: not valid JSON: {problem}")


def test_no_body_whatsoever_makes_an_endpoint_fail_or_do_half_of_it(house: House) -> None:
    bodies = st.binary(max_size=100) | JSON.map(json.dumps).map(str.encode)

    @given(st.sampled_from(ENDPOINTS), bodies)
    def answer_properly(endpoint: tuple[str, str], body: bytes) -> None:
        before = house.rows()
        answer = house.call(endpoint, body)
        if answer.status >= 400:
            assert answer.status < 500, (endpoint, body, answer)
            assert not answer.content["ok"] and answer.message
            assert house.rows() == before, (endpoint, body, answer)

    answer_properly()


def test_objects_of_the_right_fields_with_any_values_never_make_an_endpoint_fail(house: House) -> None:
    @st.composite
    def calls(draw: st.DrawFn) -> tuple[tuple[str, str], dict[str, Any]]:
        endpoint = draw(st.sampled_from(sorted(BODIES)))
        body = json.loads(json.dumps(house.examples()[endpoint].body))
        for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=3, unique=True)):
            body[name] = draw(JSON | st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 1e-320, 1e300, "\u202e"]))
        return endpoint, body

    @given(calls())
    def answer_properly(call: tuple[tuple[str, str], dict[str, Any]]) -> None:
        before = house.rows()
        answer = house.call(call[0], json.dumps(call[1]).encode())
        assert answer.status < 500, (call, answer)
        if answer.status in (400, 404, 409):
            assert not answer.content["ok"] and answer.message
            assert house.rows() == before, (call, answer)

    answer_properly()


# ── Bodies over the limit, and slow ones, by hand ─────────────────────────────────────────────────────────────────────


class Raw:
    """A connection on which a client sends what no library would."""

    def __init__(self, site: Site):
        """With a time-out of half a minute, which is for ever on any machine."""
        self.socket = socket.create_connection(site.url.removeprefix("http://").split(":"), timeout=30)

    def send(self, *lines: str | bytes) -> None:
        """Sends a request's head."""
        encoded = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
        self.socket.sendall(b"\r\n".join([*encoded, b"", b""]))

    def answer(self, method: str = "GET") -> Answer:
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        data = response.read()
        try:
            return Answer(response.status, json.loads(data) if data else None)
        except ValueError:
            return Answer(response.status, {"message": data.decode()})

    def is_closed(self) -> bool:
        """Waits until the tracker has closed the connection; fails when it does not."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


def head(house: House, endpoint: tuple[str, str], *more: str) -> list[str]:
    """The lines of a request for the endpoint's example."""
    example = house.examples()[endpoint]
    headers = [f"{name}: {value}" for name, value in example.headers(b"").items()]
    return [f"{endpoint[0]} {endpoint[1].format(**(example.ids or {}))} HTTP/1.1", "Host: tracker", *headers, *more]


def test_a_body_that_is_announced_to_be_too_large_is_refused_before_any_of_it_has_come(house: House) -> None:
    before = house.site.dump()
    for endpoint in [*BODIES, SUBMIT_LINES]:
        raw = Raw(house.site)
        raw.send(*head(house, endpoint, f"Content-Length: {2**60}"))
        answer = raw.answer()
        assert (answer.status, answer.content["ok"]) == (413, False), endpoint
        assert answer.message.startswith("body: more than ")
    assert house.site.dump() == before


def test_a_body_of_unknown_length_is_refused_as_soon_as_it_is_too_large(make_site: Callable[..., Site]) -> None:
    house = House(make_site(max_body=2, max_bulk_body=2))
    for endpoint in [*BODIES, SUBMIT_LINES]:
        raw = Raw(house.site)
        raw.send(*head(house, endpoint, "Transfer-Encoding: chunked"))
        for _ in range(3):  # and never a last chunk
            raw.socket.sendall(b"400\r\n" + b"[" * 1024 + b"\r\n")
        answer = raw.answer()
        assert (answer.status, answer.message) == (413, "body: more than 2 KiB"), endpoint


def test_a_client_that_goes_on_sending_a_refused_body_can_read_the_refusal(house: House) -> None:
    raw, chunk = Raw(house.site), b"10000\r\n" + b" " * 65536 + b"\r\n"
    raw.send(*head(house, ("POST", "/task/submit"), "Transfer-Encoding: chunked"))
    for _ in range(70):  # a little more than may come
        raw.socket.sendall(chunk)
    assert raw.answer().status == 413
    assert raw.is_closed()


def test_slow_clients_are_closed_while_others_are_served(make_site: Callable[..., Site]) -> None:
    house = House(make_site(request_timeout=0.5))
    silent, half_head, half_body, half_chunk = (Raw(house.site) for _ in range(4))
    half_head.socket.sendall(b"GET /project/list HTTP/1.1\r\nHost: trac")
    half_body.send(*head(house, ("POST", "/task/submit"), "Content-Length: 100"))
    half_body.socket.sendall(b'{"project": 1')
    half_chunk.send(*head(house, ("POST", "/task/bulk_submit"), "Transfer-Encoding: chunked"))
    half_chunk.socket.sendall(b"a\r\n[{")
    before = house.site.dump()
    assert house.call(("GET", "/project/list")).status == 200
    assert all(raw.is_closed() for raw in (silent, half_head, half_body, half_chunk))
    assert house.site.dump() == before
    assert house.worker.submit(house.project).status_code == 200


def test_a_client_that_sends_a_byte_now_and_then_is_closed_as_well(make_site: Callable[..., Site]) -> None:
    house = House(make_site(request_timeout=0.5))
    raw = Raw(house.site)
    raw.send(*head(house, ("POST", "/task/submit"), "Content-Length: 100000"))

    def refused() -> bool:
        try:
            raw.socket.sendall(b" ")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    wait_until(refused)


def test_an_idle_connection_is_kept_between_its_requests(make_site: Callable[..., Site]) -> None:
    house = House(make_site(request_timeout=0.5))
    raw = Raw(house.site)
    raw.send(*head(house, ("GET", "/account")))
    assert raw.answer().status == 200
    slow = Raw(house.site)
    slow.socket.sendall(b"GET")
    assert slow.is_closed()
    raw.send(*head(house, ("GET", "/account")))
    assert raw.answer().status == 200


# ── Bodies that are much work for their length ────────────────────────────────────────────────────────────────────────

FEW, MANY = errors.MOST_PARTS // 3, errors.MOST_PARTS + 1
DEEP = b"[" * 100 + b"]" * 100


@pytest.mark.parametrize("part", [b"[]", b"{}", DEEP], ids=["lists", "objects", "nested"])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/template/trigger/1", 413),
        ("/template/create", 413),
        ("/task/submit", 413),
        *((f"/{path}", 413) for path in ("api/jobs/trigger", "v1/job") if len(tracker.installed_dialects()) == 3),
    ],
)
def test_json_of_very_many_parts_is_refused_before_anything_is_made_of_it(
    make_site: Callable[..., Site], path: str, status: int, part: bytes
) -> None:
    site = make_site(testflinger_anonymous="always")
    many = b",".join([part] * (MANY // part.count(b"[" if b"[" in part else b"{") + 1))
    headers = dict(site.create_worker().http.headers) if path == "/task/submit" else {}
    body = b'{"project":1.0,"recipe":"x","job_queue":"x","variables":{"x":[%b]}}' % many  # 1.0: a whole number
    answer = site.guest.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert f"more than {errors.MOST_PARTS} lists, objects and names" in answer.text


def test_very_many_parts_that_are_nested_too_deeply_are_said_to_be_so() -> None:
    for first in b"", b"[],":
        with pytest.raises(tracker.TrackerError, match="body: nested too deeply"):
            errors.refuse_many_parts(b"[" + first * MANY + b"[" * MANY)


def test_names_count_as_parts_and_texts_do_not() -> None:
    text = b'"' + b'[{:\\"' * MANY + b'"'
    errors.refuse_many_parts(b'{"text":%b,"more":[%b]}' % (text, b",".join([b"[]"] * FEW)))
    for body in (
        b'{"text":%b,"more":[%b]}' % (text, b",".join([b'{"":0}'] * MANY)),
        b'{"text":%b,"x":' % text + b"[]," * MANY,
    ):
        with pytest.raises(tracker.TrackerError, match="lists, objects and names"):
            errors.refuse_many_parts(body)


@pytest.mark.parametrize("message", [b'"[{:"', b'"\\u0000[{:"', b'"\x01[{:\xff"'], ids=["plain", "NUL", "not JSON"])
def test_a_printed_text_may_look_like_very_many_parts(site: Site, message: bytes) -> None:
    worker = site.create_worker()
    body = b'{"scope":"x","timestamp":1,"message":%b}' % message.replace(b"[{:", b"[{:" * MANY)
    assert worker.http.post("/log/info", content=body).status_code == 204
    body = b'{"scope":"\x01","timestamp":1,"message":"x","more":[%b]}' % b",".join([b"[]"] * MANY)
    assert worker.http.post("/log/info", content=body).status_code == 400


def test_what_is_printed_as_json_is_not_made_into_anything_to_see_whether_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errors, "mended", None)
    body = b'{"scope":"x","timestamp":1,"message":"x","more":[%b]}' % b",".join([b"[]"] * MANY)
    assert errors.decode(body, shapes.LogBody).message == "x"


def as_urllib(form: bytes) -> list[tuple[str, str]] | None:
    try:
        return parse_qsl(form.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        return None


def as_form(form: bytes) -> list[tuple[str, str]] | None:
    try:
        return errors.form_pairs(form, 1000)
    except ValueError:
        return None


@given(
    st.lists(
        st.sampled_from([b"a", b"%", b"%4", b"%41", b"%C3%A9", b"%ff", b"+", b"&", b"=", b";", b"\r\n", "é".encode()])
    )
)
def test_a_form_is_read_as_by_urllib(parts: list[bytes]) -> None:
    assert as_form(b"".join(parts)) == as_urllib(b"".join(parts))


@pytest.mark.parametrize("part", [b"%41", b"%C3%A9", b"%", b"%4", b"x%zz", "é".encode()])
def test_a_long_form_is_read_as_by_urllib(part: bytes) -> None:
    for shift in range(6):
        form = b"a=" + b"x" * shift + part * (errors.FORM_PIECE // 2)
        assert as_form(form) == as_urllib(form)


def test_a_form_has_so_many_fields_at_most() -> None:
    assert len(errors.form_pairs(b"&".join([b"a=1"] * 10), 10)) == 10
    with pytest.raises(ValueError, match="Max number"):
        errors.form_pairs(b"&".join([b"a=1"] * 11), 10)


# ── Paths and ids ─────────────────────────────────────────────────────────────────────────────────────────────────────

NO_ID = ["-1", "+1", "1.0", "1e3", "x", "null", "NaN", "0x1", "1_0", " 1", "1 ", "1,2", "[1]"]
NO_ID += ["٣", "¹", "\0", "1\0", "\ud800"]
UNKNOWN_ID = [*map(str, (0, 999, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**64 + 1)), "1" * 5000]
WITH_IDS = [
    (endpoint, name)
    for endpoint in ENDPOINTS
    for name in ("project", "worker", "manager", "template", "workflow", "operation")
    if f"{{{name}}}" in endpoint[1]
]


def test_what_is_no_number_is_refused_by_the_ids_name(house: House) -> None:
    for endpoint, name in WITH_IDS:
        for text in NO_ID:
            ids = {name: quote(text, safe="", errors="surrogatepass")}
            house.refuse(f"{name}: must be a whole number", (400,), endpoint, ids=ids, query="")


def test_an_id_that_nothing_has_is_not_found_however_large(house: House) -> None:
    for endpoint, name in WITH_IDS:
        for number in UNKNOWN_ID:
            answer = house.refuse("", (404,), endpoint, ids={name: number})
            assert name in answer.message.lower()


@pytest.mark.parametrize(
    ("number", "named"), [(str(2**63), str(2**63)), ("9" * 20, "9" * 20), ("0" * 30 + "98765", "98765")]
)
def test_an_id_that_nothing_has_is_named_as_it_was_given(house: House, number: str, named: str) -> None:
    for endpoint, name in WITH_IDS:
        answer = house.refuse("", (404,), endpoint, ids={name: number})
        assert re.search(rf"\b{named}\b", answer.message), answer.message
    for path in ("projects", "tasks", "templates", "workflows", "workers", "operations", "testflinger/queues"):
        assert re.search(rf"\b{named}\b", house.site.admin.http.get(f"/ui/{path}/{number}").text), path


def test_an_id_of_thousands_of_digits_is_named_in_part(house: House) -> None:
    number = "1" * 5000
    for path in (f"/project/get/{number}", f"/ui/projects/{number}"):
        answer = house.site.admin.http.get(path, follow_redirects=True)
        assert answer.status_code == 404 and f"No project {'1' * 40}" in answer.text and len(answer.text) < 12_000, path


def test_an_id_may_begin_with_zeros(site: Site) -> None:
    project = site.admin.create_project()
    assert site.admin.get(f"/project/get/{project:030}").json()["content"]["project"]["id"] == project


def test_what_is_no_jobs_id_is_not_found(house: House) -> None:
    for endpoint in ENDPOINTS:
        if "{job}" in endpoint[1]:
            for text in (*NO_ID, "0" * 23, "0" * 25, "F" * 24, "0" * 23 + "g", "0" * 24, "0" * 24 + "\n"):
                ids = {"job": quote(text, safe="", errors="surrogatepass")}
                answer = house.refuse("", (404,), endpoint, ids=ids)
                assert "job" in answer.message


def test_a_log_level_that_there_is_not_is_refused(house: House) -> None:
    for level in ("", "fatal", "INFO", "\0", "٣", "info/x", "%69nfo", "\ud800"):
        house.refuse("", (404,), ("POST", "/log/{level}"), ids={"level": quote(level, errors="surrogatepass")})


ODD_PATHS = [
    *["/", "//", "/task/get//", "/task/get/1/2", "/task/get/1%2F2", "/TASK/GET/1", "/task/submit/x/"],
    *["/task/submit/x", "/api", "/api/", "/api/api/account", "/project/get", "/project/get/"],
    *["/project/get/1/2", "/project/get/1%2F2", "/project/get/%2F"],
    *["/%00", "/%ff%fe", "/%F0%9F%98%80", "/%", "/%zz", "/*", "/;", "/?%00", "/account%20", "/account.", "/a:b@c"],
    *["/%2e%2e/%2e%2e/etc/passwd", "/../tracker.toml", "/" + "a" * 50_000, "/" + "a/" * 20_000],
    *["/project/get/" + "1/" * 9999 + "x"],
]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_odd_path_is_refused_in_the_trackers_form(house: House, method: str) -> None:
    for path in ODD_PATHS:
        answer = house.send(method, path, b"", house.as_worker(b""))
        if method == "GET" and path in ("/", "//", "/?%00"):  # the front page
            assert answer.status in (200, 404)
        else:
            assert answer.status in (400, 404, 405), (path[:50], answer)
            assert answer.content["ok"] is False and answer.message


def test_a_method_that_an_endpoint_has_not_is_refused(house: House) -> None:
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "BREW", "get"):
        for path in ("/task/get/1", "/task/submit", "/account", "/project/get/1"):
            raw = Raw(house.site)
            raw.send(f"{method} {path} HTTP/1.1", "Host: tracker")
            answer = raw.answer()
            assert answer.status in (400, 405), (method, path, answer)
            assert answer.message


def test_looking_at_the_head_of_an_assignment_takes_no_task(house: House) -> None:
    """The answer to HEAD has no body: the task in it would be lost until its deadline."""
    house.worker.submit(house.project)
    before = house.site.admin.counts(house.project)
    for path in (f"/task/get/{house.project}", f"/api/task/get/{house.project}", f"/task/get?project={house.project}"):
        house.worker.http.head(path)
    assert house.site.admin.counts(house.project) == before


# ── Queries ───────────────────────────────────────────────────────────────────────────────────────────────────────────

TASKS, MONITORING, BETWEEN, LOGS = (
    ("GET", "/task/get/{project}"),
    ("GET", "/project/monitoring/{project}"),
    ("GET", "/project/monitoring-between/{project}"),
    ("GET", "/logs"),
)
HUGE = "9" * 5000
JOBS, LINES = ("GET", "/job/list"), ("GET", "/job/log/{job}")
ODD_QUERIES = [
    *[(TASKS, f"wait={text}", "wait") for text in ("-1", "-0.1", "nan", "NaN", "-inf", "inf", "1e400")],
    *[(TASKS, f"wait={text}", "wait") for text in ("x", "%00", "1s", "%D9%A3", "1_0")],
    *[(TASKS, f"count={text}", "count") for text in ("-1", "nan", "inf", "1e400", "1.5", "x", "%00", "0x1", HUGE)],
    *[(TASKS, f"count={text}", "count") for text in ("%D9%A3", "1_0", "%C2%B9")],
    (TASKS, "count=1&count=x", "count"),
    (TASKS, "wait=1&wait=-1", "wait"),
    *[(("GET", "/task/get"), query, "project") for query in ("", "project=", "wait=1", "count=2", "Project=1")],
    *[(("GET", "/task/get"), f"project={text}", "project") for text in ("-1", "x", "1.0", "%D9%A3", "%00", "1,2")],
    (("GET", "/task/get"), "project=1&project=x", "project"),
    (("GET", "/task/get"), "&".join(f"project={number}" for number in range(101)), "project"),
    *[(MONITORING, f"count={text}", "count") for text in ("0", "-1", "1000", "nan", "1e400", "x", "%00", HUGE)],
    *[(MONITORING, f"count={text}", "count") for text in ("%D9%A3", "1_0")],
    *[(BETWEEN, query, "from") for query in ("", "to=1", "from=&to=1")],
    *[(BETWEEN, query, "to") for query in ("from=1", "from=1&to=")],
    *[(BETWEEN, f"from=1&to={text}", "to") for text in ("x", "nan", "1e400", str(2**63), HUGE, "%00", "1.5")],
    *[(BETWEEN, f"to=1&from={text}", "from") for text in ("x", "nan", "1e400", str(-(2**63) - 1), HUGE, "%00")],
    *[(LOGS, f"level={text}", "level") for text in ("0", "8", "-1", "x", "", "nan", "1e400", HUGE, "%00", "info")],
    *[(LOGS, f"level=1&limit={text}", "limit") for text in ("0", "1001", "-1", "x", "nan", "1e400", HUGE)],
    *[(LOGS, f"level=1&before={text}", "before") for text in ("-1", "x", str(2**63), HUGE)],
    *[(LOGS, f"level=1&since={text}", "since") for text in ("x", str(2**63), HUGE, "nan")],
    *[(LOGS, f"max_level={text}", "max_level") for text in ("0", "8", "x")],
    *[(JOBS, f"{name}={text}", name) for name in ("project", "template") for text in ("-1", "x", "1.0", HUGE, "%00")],
    *[(JOBS, f"{name}={text}", name) for name in ("from", "to") for text in ("x", "nan", str(2**63), HUGE, "1.5")],
    *[(JOBS, f"state={text}", "state") for text in ("x", "done", "WAITING", "%00")],
    *[(JOBS, f"before={text}", "before") for text in ("-1", "x", "0" * 25, "F" * 24, HUGE, "%00")],
    *[(JOBS, f"limit={text}", "limit") for text in ("0", "1001", "-1", "x", HUGE)],
    *[(LINES, f"after={text}", "after") for text in ("-1", "x", "1.0", str(2**31), HUGE, "%00")],
    *[(LINES, f"limit={text}", "limit") for text in ("0", "1001", "x", HUGE)],
    *[
        (endpoint, query, "query")
        for endpoint in (TASKS, MONITORING, BETWEEN, LOGS, JOBS, LINES)
        for query in ("%ff=1", "count=%ff", "&".join(["a=1"] * 2000), "%F0%9F=1")
    ],
]


def test_an_odd_query_is_refused_by_the_parameters_name(house: House) -> None:
    for endpoint, query, name in ODD_QUERIES:
        house.refuse(f"{name}: ", (400,), endpoint, query=query)


def test_no_query_whatsoever_makes_an_endpoint_fail(house: House) -> None:
    names = st.sampled_from(["wait", "count", "project", "from", "to", "level", "since", "limit", "before"]) | st.text()
    values = st.text(st.characters(codec="utf-8")) | st.integers().map(str) | st.floats(max_value=0.001).map(str)
    gets = [endpoint for endpoint in ENDPOINTS if endpoint[0] == "GET" and endpoint[1] != "/logout"]

    @given(st.sampled_from(gets), st.lists(st.tuples(names, values), max_size=4))
    def answer_properly(endpoint: tuple[str, str], query: list[tuple[str, str]]) -> None:
        answer = house.call(endpoint, query=urlencode(query, errors="replace"))
        assert answer.status in (200, 204, 400, 401, 403, 404), answer

    answer_properly()


# ── Headers ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ODD_CREDENTIALS = {
    "no headers": [],
    "no secret": ["X-Worker-ID: 1"],
    "no id": ["X-Secret: x"],
    "an empty id": ["X-Worker-ID:", "X-Secret: x"],
    "a negative id": ["X-Worker-ID: -1", "X-Secret: x"],
    "a fraction": ["X-Worker-ID: 1.0", "X-Secret: x"],
    "a word": ["X-Worker-ID: me", "X-Secret: x"],
    "an id of other digits": ["X-Worker-ID: ٣".encode(), "X-Secret: x"],
    "an id in Latin-1": [b"X-Worker-ID: \xb9", "X-Secret: x"],
    "an unknown id": ["X-Worker-ID: 999", "X-Secret: x"],
    "an id beyond 32 bits": ["X-Worker-ID: 4294967297", "X-Secret: x"],
    "an id beyond 64 bits": ["X-Worker-ID: 18446744073709551617", "X-Secret: x"],
    "an id of 5000 digits": ["X-Worker-ID: " + "1" * 5000, "X-Secret: x"],
    "a wrong secret": ["X-Worker-ID: 1", "X-Secret: AAAA"],
    "an empty secret": ["X-Worker-ID: 1", "X-Secret:"],
    "a secret that is no text": ["X-Worker-ID: 1", b"X-Secret: \xff\xfe\x80"],
    "a secret of 50 KB": ["X-Worker-ID: 1", "X-Secret: " + "A" * 50_000],
}
OF_WORKERS = [
    *[("GET", "/task/get/{project}"), ("GET", "/task/get"), ("POST", "/task/submit"), ("POST", "/task/bulk_submit")],
    *[("GET", "/task/attachments/{task}"), ("POST", "/task/extend")],
    *[("POST", "/task/release"), ("POST", "/task/bulk_release"), ("POST", "/log/{level}"), ("POST", "/worker/update")],
    *[("POST", "/project/request_access"), ("GET", "/project/secret/{project}"), ("POST", "/task/log"), SUBMIT_LINES],
    *[("GET", "/operation/{operation}")],
    *[("POST", "/template/trigger/{template}"), ("POST", "/workflow/trigger/{workflow}"), ("GET", "/job/get/{job}")],
]
ALSO_OF_MANAGERS = {("GET", "/project/secret/{project}"), *OF_WORKERS[-4:]}


def test_the_list_of_workers_endpoints_is_complete(house: House) -> None:
    mine = {"as_worker", "as_stranger"}
    assert {endpoint for endpoint, one in house.examples().items() if one.headers.__name__ in mine} == set(OF_WORKERS)


def test_odd_credentials_are_refused_by_every_endpoint_of_workers(house: House) -> None:
    before = house.site.dump()
    for endpoint, headers in itertools.product(OF_WORKERS, ODD_CREDENTIALS.values()):
        body = as_bytes(house.examples()[endpoint].body)
        ids = {"template": house.template, "workflow": house.workflow, "job": house.live, "operation": house.operation}
        ids["task"] = house.task
        path = endpoint[1].format(project=house.project, level="info", **ids) + "?project=1"
        raw = Raw(house.site)
        raw.send(f"{endpoint[0]} {path} HTTP/1.1", f"Content-Length: {len(body)}", *headers)
        raw.socket.sendall(body)
        answer = raw.answer()
        assert answer.status == 401, (endpoint, headers, answer)
        if endpoint not in ALSO_OF_MANAGERS:
            assert "X-Worker-ID" in answer.message and "X-Secret" in answer.message
    assert house.site.dump() == before


ODD_COOKIES = {
    "nothing": b"",
    "no value": b"tt",
    "an empty value": b"tt=",
    "a guess": b"tt=admin",
    "a forged signature": b"tt=admin.AAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "only dots": b"tt=" + b"." * 1000,
    "no text": b"tt=\xff\xfe\x00"[:-1],
    "quotes": b'tt="\\303\\251\\000"',
    "an open quote": b'tt="',
    "separators": b";;;==;,;",
    "40 KB": b"tt=" + b"A" * 40_000,
    "a thousand cookies": b"; ".join(b"c%d=x" % number for number in range(1000)),
}


def test_a_garbage_cookie_is_no_session(house: House) -> None:
    for endpoint, example in house.examples().items():
        if example.headers.__name__ == "as_admin" and endpoint[1] != "/account":
            for cookie in ODD_COOKIES.values():
                house.refuse("log in", (401,), endpoint, headers={"Cookie": cookie})


def test_a_good_cookie_among_garbage_is_a_session(house: House) -> None:
    good = house.as_admin(b"")["Cookie"].encode()
    for cookie in (b"a=b; " + good, good + b"; a=b", b"x=\xc3\xa9; " + good, good + b"; =; ;x", b'q="1; 2"; ' + good):
        answer = house.call(("GET", "/account"), headers={"Cookie": cookie})
        assert answer.content["ok"], cookie


def test_a_cookie_that_is_hard_to_read_keeps_nobody_waiting(house: House) -> None:
    """Python's own way to read a quoted cookie takes seconds for 60 KB of backslashes: here, two minutes for all."""
    attackers = [Raw(house.site) for _ in range(16)]
    for raw in attackers:
        raw.send("GET /account HTTP/1.1", "Host: tracker", 'Cookie: tt="' + 60_000 * "\\" + '"')
    somebody = Raw(house.site)
    somebody.send("GET /account HTTP/1.1", "Host: tracker")
    assert somebody.answer().status == 200


ODD_ORIGINS = [
    *["Origin: http://[", "Origin: null", "Origin: \xff", "Origin: http://evil.example", "Origin: http://"],
    *["Referer: http://[::1", "Referer: //", "Sec-Fetch-Site: \xff", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site:"],
]


def test_an_odd_origin_is_another_site(house: House) -> None:
    before = house.site.dump()
    for endpoint, example in house.examples().items():
        if endpoint[0] == "POST" and example.headers.__name__ == "as_admin" and endpoint != ("POST", "/logs"):
            for header in ODD_ORIGINS:
                raw, body = Raw(house.site), as_bytes(example.body)
                raw.send(*head(house, endpoint, header, f"Content-Length: {len(body)}"))
                raw.socket.sendall(body)
                answer = raw.answer()
                assert (answer.status, answer.content["ok"]) == (403, False), (endpoint, header, answer)
    assert house.site.dump() == before


def test_an_odd_host_makes_no_endpoint_fail(house: House) -> None:
    for host in ("[", "\xff", "", "a b", "x:y:z", "[::1", "/", "a" * 50_000):
        for path, status in (("/account", 200), ("/nothing", 404), ("/project/list", 200)):
            raw = Raw(house.site)
            raw.send(f"GET {path} HTTP/1.1", f"Host: {host}")
            assert raw.answer().status == status, (host, path)


def test_sixty_kilobytes_of_headers_are_read(house: House) -> None:
    raw = Raw(house.site)
    raw.send(*head(house, ("GET", "/account")), *[f"X-Filler-{number}: {'x' * 1000}" for number in range(58)])
    answer = raw.answer()
    assert (answer.status, answer.content["content"]["logged_in"]) == (200, True)


def test_a_flood_of_headers_is_cut_off_while_others_are_served(house: House) -> None:
    raw = Raw(house.site)
    raw.socket.sendall(b"GET /account HTTP/1.1\r\n")
    sent = 0

    def cut_off() -> bool:
        nonlocal sent
        try:
            raw.socket.sendall(b"X-Filler: " + b"x" * 9990 + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            return True
        sent += 10_002
        return False

    while sent < 100_000_000 and not cut_off():
        pass
    assert sent < 100_000_000
    assert house.call(("GET", "/account")).status == 200


def test_of_headers_sent_twice_one_counts(house: House) -> None:
    mine, wrong = house.as_worker(b""), {"X-Worker-ID": "999", "X-Secret": "x"}
    for first, second in ((mine, wrong), (wrong, mine)):
        raw = Raw(house.site)
        lines = [f"{name}: {value}" for given in (first, second) for name, value in given.items()]
        raw.send(f"GET /task/get/{house.project} HTTP/1.1", "Host: tracker", *lines)
        assert raw.answer().status in (200, 401)


NO_HTTP = [
    b"GARBAGE\r\n\r\n",
    b"\r\n\r\n\0\0\0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET account HTTP/1.1\r\n\r\n",
    b"GET /account HTTP/9.9\r\n\r\n",
    b"GET /account HTTP/1.1\r\nNo colon\r\n\r\n",
    b"GET /account HTTP/1.1\r\nX: \0\r\n\r\n",
    b"POST /login HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /login HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST /login HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    b"POST /login HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /login HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST /login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


def test_what_is_no_http_is_answered_400(house: House) -> None:
    before = house.site.dump()
    for request in NO_HTTP:
        raw = Raw(house.site)
        raw.socket.sendall(request)
        assert raw.answer().status == 400, request
    assert house.site.dump() == before
    assert house.call(("GET", "/account")).status == 200


def test_a_client_that_goes_away_in_the_middle_of_its_body_leaves_nothing(house: House) -> None:
    before = house.site.dump()
    for endpoint in [*BODIES, SUBMIT_LINES]:
        raw, body = Raw(house.site), as_bytes(house.examples()[endpoint].body)
        raw.send(*head(house, endpoint, f"Content-Length: {len(body) + 1}"))
        raw.socket.sendall(body)
        raw.socket.close()
    assert house.call(("GET", "/account")).status == 200
    assert house.site.dump() == before
