"""The OpenAPI 3.1 document of the tracker's JSON API, and the values of the page that shows it to people.

What the code says comes from the code: paths, docstrings, what a call takes and answers and who may make it (Takes and
Need in tracker.py) and why others are refused, the meaning of each field (shapes.py). What no type says stands in
NOTES, which the tests compare with a running tracker: why else a call is refused, and an example. The examples
make up a story: pasted one after the other, in the order of the table, they all work.

    document(api, settings, version) ─► with_curl(document, url) ─► /openapi.json
                                                       └─► pages(document, url) ─► templates/docs.html

This module has no say in the tracker's state, and imports nothing from tracker.py.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from shapes import EXAMPLE_JOB, Id

REF = "#/components/schemas/{name}"

# ── What the types do not say ─────────────────────────────────────────────────────────────────────────────────────────

JOB_ID = "The job's id: `id` in the answer to `POST /template/trigger/{template}`. `$JOB` in the examples."
PATH = {"level": "The level.", "job": JOB_ID}  # what is an id of another kind than "The project's number."
THINGS = ("project", "worker", "manager", "level")  # that a call may name, and that may not be there
EXAMPLE_IDS = {"manager": 2, "level": "info", "job": EXAMPLE_JOB}  # others are 1
SECTIONS = {
    "Workers": "Programs that do the work. Any program that sends HTTP is one.",
    "Projects": "A project is a queue of tasks with its settings.",
    "Access": "Which workers may submit to a project and be assigned its tasks. A public one assigns to any worker.",
    "Tasks": "The life of a task: submitted, assigned, released.",
    "Templates": "A template is a named way to make a job: a task that somebody wants to hear back from. A workflow is"
    " templates that follow one another.",
    "Jobs": "What has become of a job, its result and its log.",
    "Logs": "What workers have to say.",
    "Monitoring": "Counts of a project, now and over time. The live counts are also in `GET /project/get/{project}`.",
    "Git": "Follows the version of a project's code.",
    "Maintenance": "Changes to all tasks of a project, a piece at a time: workers go on meanwhile.",
    "Managers": "People. Roles are given per project; a tracker admin has them all.",
}

OTHER_SITE = "or another site's page caused the request."
RATE = "The project's rate limit is reached."
WORKERS_RATE = "A worker calls, and the project's rate limit is reached."
ARCHIVED = "The project is archived."
NO_SUBMIT = {403: "The worker has no SUBMIT access to the project.", 423: ARCHIVED, 429: RATE}
NO_EDIT = {403: "The manager has no EDIT role in the project."}
NAMED_TWICE = {409: "Another template may be triggered by this name."}

PUSH = {"ref": "refs/heads/main", "after": "c0ffee", "repository": {"full_name": "alice/first"}}
WEBHOOK_SECRET = "a long random text"
SIGNATURE = hmac.new(WEBHOOK_SECRET.encode(), json.dumps(PUSH).encode(), hashlib.sha256).hexdigest()
EXAMPLE_HEADERS = {"X-Hub-Signature-256": f"sha256={SIGNATURE}"}
EXPORTED = """{"type":"header","format":1,"tracker":"1.0","exported":1559396382}
{"type":"project","settings":{"name":"moved"}}
{"type":"task","recipe":"https://example.org/"}
"""
ENDED = {"type": "end", "counts": {"header": 1, "project": 1, "task": 1}}
EXPORTED += json.dumps({**ENDED, "sha256": hashlib.sha256(EXPORTED.encode()).hexdigest()}) + "\n"
SIGNATURE_HEADERS = {
    "X-Hub-Signature-256": "HMAC-SHA-256 of the raw body, in hexadecimal (GitHub).",
    "X-Gitea-Signature": "The same (Gitea).",
    "X-Gogs-Signature": "The same (Gogs).",
    "X-Hub-Signature": "HMAC-SHA-1 of the raw body, in hexadecimal (GitHub).",
}


class Note(Struct, frozen=True):
    """What the code does not say of a call."""

    section: str
    errors: dict[int, str] = {}  # besides those that follow from what the call needs; "or …" goes on from there
    setting: str = ""  # which says whether anybody may make it
    path: dict[str, Any] = {}
    query: dict[str, Any] = {}
    body: Any = None
    text: str = ""  # the body, of a call that takes lines of text
    example: dict[str, dict[str, Any]] = {}  # what in the answer is not as the fields' own examples
    in_full: bool = False  # whether what is listed or held has the fields that else only an answer about it has
    headers: dict[str, str] = {}  # that the request may have, and their meaning
    not_ok: str = ""  # when `ok` is false although the status is 200
    empty: bool = False  # whether there is then no content
    message: str = ""  # when there is a message although the status is 200
    reason: str = ""  # what a member `reason` says
    cookie: str = ""  # what the answer does to the session cookie
    file: str = ""  # the type of the file that may be answered, with status 200, instead of nothing


# What a call makes or finds, and where in its answer the id is with which other calls ask for it.
MADE = {
    "POST /worker/create": ("worker", "worker/id"),
    "POST /register": ("manager", "manager/id"),
    "POST /project/create": ("project", "id"),
    "POST /task/submit_lines/{project}": ("operation", "operation"),
    "GET /task/get/{project}": ("task", "task/id"),
    "POST /template/create": ("template", "template/id"),
    "POST /workflow/create": ("workflow", "workflow/id"),
    "POST /template/trigger/{template}": ("job", "job/id"),
    "POST /workflow/trigger/{workflow}": ("job", "job/id"),
    "POST /job/retry/{job}": ("job", "job/id"),
}
TEMPLATE = {
    **{"project": 1, "name": "build", "description": "Builds a branch.", "recipe": "build {branch}"},
    "script": "#!/bin/sh\necho $TRACKER_VAR_branch\n",
    **{"env": {"LANG": "C.UTF-8"}, "timeout": 60, "undeclared": False},
    "variables": [{"name": "branch", "value": "main", "required": True}],
    "arguments": [{"order": 0, "type": "select", "label": "Which tests", "value": "fast", "options": ["fast", "all"]}],
}
WORKFLOW = {"project": 1, "name": "build and try again", "start": 1}
WORKFLOW |= {"edges": [{"template": 1, "ending": "failure", "target": 1}]}
NO_TASK = {"not_ok": "False when there is no task.", "empty": True, "message": "Says that there is no task."}
NO_TASK |= {"reason": "Why there is no task."}
NO_ENTRY = {404: "There is no entry as given in `before`."}
GIVEN = {"variables": {"branch": "main"}, "arguments": ["fast"]}


NOTES: dict[str, Note] = {
    "POST /worker/create": Note(
        "Workers",
        {429: "Too many registrations from this address."},
        setting="open_worker_registration",
        body={"alias": "another laptop"},
        example={
            "worker": {"id": 2, "alias": "another laptop", "secret": "ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8="}
        },
    ),
    "GET /worker/get/{worker}": Note("Workers"),
    "POST /worker/update": Note("Workers", body={"alias": "my old laptop"}),
    "POST /worker/rename/{worker}": Note("Workers", path={"worker": 2}, body={"alias": "my new laptop"}),
    "POST /worker/set_paused": Note("Workers", body={"worker": 2, "paused": True}),
    "GET /worker/stats": Note("Workers"),
    "GET /project/list": Note("Projects", in_full=True),
    "GET /project/get/{project}": Note("Projects", in_full=True),
    "POST /project/create": Note(
        "Projects",
        {
            403: "`public` without being a tracker admin; `chain` to a project without the EDIT role.",
            404: "There is no project as given in `chain`.",
            409: "There is a project with this name.",
        },
        body={"name": "second", "public": True, "priority": 5, "assign_rate": 10},
    ),
    "POST /project/trust/{project}": Note("Projects"),
    "GET /project/notices/{project}": Note("Projects", path={"project": 2}),
    "POST /project/notices/{project}": Note(
        "Projects",
        {403: "No EDIT role in the project, or `kind` is `command` in one that no tracker admin trusts."},
        path={"project": 2},
        body={"url": "https://ntfy.example.org/crawls", "kind": "ntfy", "events": ["finished", "failing"]},
    ),
    "POST /project/set_all_paused": Note("Projects", body={"paused": False}, example={"projects": 0}),
    "POST /project/update/{project}": Note(
        "Projects",
        {
            403: "No EDIT role in the project, or none in the one given in `chain`, `public` without being a tracker"
            " admin.",
            404: "or there is none as given in `chain`.",
            409: "There is a project with this name.",
        },
        body={"git_repo": "alice/first", "motd": "Be polite to the servers.", "paused": False},
    ),
    "POST /project/secret/{project}": Note("Projects", body={"secret": '{"api_key": "1234"}'}),
    "GET /project/secret/{project}": Note("Projects"),
    "POST /project/webhook_secret/{project}": Note("Projects", body={"webhook_secret": WEBHOOK_SECRET}),
    "GET /project/webhook_secret/{project}": Note("Projects"),
    "POST /project/request_access": Note(
        "Access",
        {409: "The worker has access, or has asked for it, already.", 423: ARCHIVED},
        body={"project": 2, "assign": True, "submit": True},
    ),
    "GET /project/access_list/{project}": Note("Access", path={"project": 2}),
    "POST /project/accept_request/{project}/{worker}": Note(
        "Access",
        {404: "or the worker has not asked for access.", 409: "The worker has access already."},
        path={"project": 2},
    ),
    "POST /project/reject_request/{project}/{worker}": Note(
        "Access", {404: "or the worker has neither asked for nor got access."}, path={"project": 2}
    ),
    "POST /project/reject_requests/{project}": Note("Access", path={"project": 2}),
    "POST /task/submit": Note(
        "Tasks",
        {**NO_SUBMIT, 409: "A task with the same hash is in the project."},
        body={
            **{"project": 1, "recipe": "https://example.org/", "priority": 1, "max_retries": 3},
            "unique_string": "https://example.org/",
        },
    ),
    "POST /task/bulk_submit": Note(
        "Tasks",
        {
            **NO_SUBMIT,
            404: "There is no such project.",
            413: "The body is larger than {max_bulk_body: KiB}; for a worker that has no SUBMIT access to any"
            " project, than {max_body: KiB}.",
        },
        body={"requests": [{"project": 1, "recipe": f"https://example.org/{page}"} for page in (1, 2)]},
    ),
    "POST /task/submit_lines/{project}": Note(
        "Tasks",
        {**NO_SUBMIT, 413: "The body, or what it unpacks to, is larger than {max_bulk_body: KiB}."},
        query={"priority": 0, "token": "urls-1"},
        text='https://example.org/one\n{"recipe": "https://example.org/two", "max_retries": 3}\n',
    ),
    "GET /operation/{operation}": Note(
        "Tasks",
        {
            403: "The manager has no READ role in the project.",
            404: "There is no such operation, it is forgotten, it is another worker's, or its project is hidden.",
        },
    ),
    "GET /task/get/{project}": Note(
        "Tasks",
        {
            403: "The worker has no ASSIGN access to the project, or is paused.",
            429: "There is a task, but the project's rate limit is reached.",
        },
        **NO_TASK,
    ),
    "POST /task/release": Note(
        "Tasks",
        {404: "There has never been such a task."},
        body={"task_id": 1, "result": 0, "verification": -32315129},
        message="Says why `updated` is false.",
    ),
    "GET /task/get": Note(
        "Tasks",
        {
            403: "The worker has no ASSIGN access to one of the projects, or is paused.",
            429: "There is a task, but the rate limit of its project is reached.",
        },
        query={"project": [1, 2], "wait": 5, "count": 10},
        **NO_TASK,
    ),
    "GET /task/attachments/{task}": Note(
        "Tasks",
        {403: "The worker does not hold the task.", 404: "There has never been such a task, or the file is gone."},
        path={"task": 2},
        file="application/gzip",
    ),
    "POST /task/log": Note(
        "Tasks",
        {404: "There has never been such a task."},
        body={
            **{"task_id": 2, "first": 0},
            "entries": [
                {"message": "Fetching https://example.org/1", "timestamp": 1559393394},
                {"message": "It takes long", "timestamp": 1559393399, "level": "warn"},
            ],
        },
    ),
    "POST /task/bulk_release": Note(
        "Tasks", body={"releases": [{"task_id": 2, "result": 0}, {"task_id": 3, "result": 2}]}
    ),
    "POST /task/extend": Note("Tasks", body={"task_id": 2, "seconds": 600}, message="Says why no lease was extended."),
    "POST /template/create": Note("Templates", {**NO_EDIT, **NAMED_TWICE}, body=TEMPLATE),
    "POST /template/update/{template}": Note(
        "Templates", NAMED_TWICE, body={"api": True, "key": "secure123", "keep_count": 100, "keep_time": 86400}
    ),
    "GET /template/get/{template}": Note("Templates"),
    "GET /template/list/{project}": Note("Templates"),
    "POST /template/rotate_secret/{template}": Note("Templates"),
    "POST /template/trigger/{template}": Note("Templates", {423: ARCHIVED, 429: WORKERS_RATE}, body=GIVEN),
    "POST /workflow/create": Note(
        "Templates", {**NO_EDIT, 409: "The project has a workflow of this name."}, body=WORKFLOW
    ),
    "POST /workflow/update/{workflow}": Note(
        "Templates", {409: "The project has a workflow of this name."}, body={"name": "build stubbornly"}
    ),
    "GET /workflow/get/{workflow}": Note("Templates"),
    "GET /workflow/list/{project}": Note("Templates"),
    "POST /workflow/rotate_secret/{workflow}": Note("Templates"),
    "POST /workflow/trigger/{workflow}": Note(
        "Templates",
        {409: "The template that it starts with was deleted.", 423: ARCHIVED, 429: WORKERS_RATE},
        body=GIVEN,
    ),
    "POST /workflow/delete/{workflow}": Note("Templates"),
    "POST /template/delete/{template}": Note("Templates"),
    "GET /job/get/{job}": Note("Jobs"),
    "GET /job/log/{job}": Note("Jobs"),
    "GET /job/list": Note(
        "Jobs",
        {404: "There is no such project or template, or it is hidden."},
        query={"project": 1, "state": "waiting", "limit": 2},
    ),
    "POST /job/cancel/{job}": Note("Jobs", {409: "It has ended already."}),
    "POST /job/retry/{job}": Note(
        "Jobs",
        {
            409: "It has not ended yet, or it is the run of a workflow that was deleted.",
            423: ARCHIVED,
            429: WORKERS_RATE,
        },
    ),
    "POST /log/{level}": Note(
        "Logs", body={"scope": "fetch", "message": "Fetched https://example.org/", "timestamp": 1559393394}
    ),
    "GET /project/acts/{project}": Note("Logs", query={"limit": 10}),
    "GET /acts": Note("Logs", query={"limit": 10}),
    "GET /logs": Note("Logs", NO_ENTRY, setting="public_logs", query={"max_level": 5, "limit": 100}),
    "POST /logs": Note("Logs", NO_ENTRY, setting="public_logs", body={"level": 5, "since": 1559390000}),
    "GET /project/monitoring/{project}": Note("Monitoring", query={"count": 60}),
    "GET /project/monitoring-between/{project}": Note("Monitoring", query={"from": 1559390000, "to": 4102444800}),
    "GET /project/assignees/{project}": Note("Monitoring"),
    "POST /git/receivehook": Note(
        "Git",
        {403: "The signature is missing, or does not match the webhook secret."},
        body=PUSH,
        headers=SIGNATURE_HEADERS,
    ),
    "GET /project/paused_workers/{project}": Note("Monitoring"),
    "POST /project/resume_worker/{project}/{worker}": Note(
        "Maintenance", {404: "or there is no such worker."}, path={"worker": 2}
    ),
    "POST /worker/delete/{worker}": Note(
        "Maintenance", {404: "There is no such worker.", 409: "It is an agent of another system."}, path={"worker": 2}
    ),
    "POST /project/export/{project}": Note(
        "Maintenance",
        {403: "The manager has not every role in the project."},
        path={"project": 2},
        body={},
        file="application/x-ndjson",
    ),
    "POST /project/import": Note(
        "Maintenance",
        {
            400: "The file is none of an exported project, is cut or was changed, or is of a format not known here.",
            409: "There is a project with this name: give another one as `name`.",
            413: "The file, or what it unpacks to, is larger than {max_import: MiB}.",
            503: "The projects that no tracker admin trusts are full, or the import with this token is being read.",
        },
        query={"name": "moved"},
        text=EXPORTED,
    ),
    **{
        f"POST /project/{kind}/{{project}}": Note("Maintenance", path={"project": 2})
        for kind in ("reset_failed_tasks", "reclaim_assigned_tasks", "hard_reset", "delete")
    },
    "POST /register": Note(
        "Managers",
        {403: "Registration is closed.", 409: "The username is taken.", 429: "Too many attempts from this address."},
        body={"username": "bob", "password": "battery staple"},
        example={"manager": {"id": 2, "username": "bob", "tracker_admin": False}},
        cookie="Begins a session.",
    ),
    "POST /login": Note(
        "Managers",
        {401: "Wrong username or password.", 429: "Too many attempts for this manager or address."},
        body={"username": "alice", "password": "correct horse"},
        cookie="Begins a session.",
    ),
    "GET /account": Note("Managers", not_ok="False when nobody is logged in."),
    "GET /manager/list": Note("Managers"),
    "GET /manager/list_for_project/{project}": Note("Managers"),
    "POST /manager/set_role_for_project/{project}": Note(
        "Managers",
        {404: "or there is no such manager."},
        body={"username": "bob", "role": 3},
    ),
    **{
        f"{method} /manager/{kind}/{{manager}}": Note(
            "Managers", {403: "The caller is no tracker admin, or is this manager."}
        )
        for kind in ("promote", "demote")
        for method in ("POST", "GET")
    },
    **{
        f"POST /manager/{kind}/{{manager}}": Note(
            "Managers", {403: "The caller is no tracker admin, or is this manager."}, path={"manager": 2}
        )
        for kind in ("block", "unblock", "delete")
    },
    **{f"{method} /logout": Note("Managers", cookie="Ends the session in the browser.") for method in ("POST", "GET")},
}

DESCRIPTION = """\
Hands out tasks to a crowd of workers and loses none.

Bodies are JSON whatever their content type says. Unknown fields are ignored. Every answer is an object: `ok`, a
`message` for people where there is something to say, and what was asked for in `content`. Times are unix seconds.
Integers may have 64 bits. An answer with `ok` true means that the change is on disk."""

COMMON_ERRORS = {
    400: "A value is missing, of the wrong type or out of range: `field` is its name, and the message begins with it.",
    401: "X-Worker-ID and X-Secret are not those of a worker, or no manager is logged in.",
    413: "The body is larger than {max_body: KiB}.",
    500: "A fault of the tracker, which its own log tells more about.",
    503: "The tracker is stopping, or cannot write to its database; its disk is nearly full, or a budget of what"
    " anybody may store is used up: `message` names the setting. Try again later.",
}
UNKNOWN_CALLER = {
    "worker": "X-Worker-ID and X-Secret are not those of a worker.",
    "session": "No manager is logged in.",
}


def text_member(description: str, *examples: Any, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "type": kind, "examples": list(examples)}


ERROR = {
    "title": "Error",
    "description": "Why a call was refused. Nothing has changed.",
    "type": "object",
    "properties": {
        "ok": {"const": False},
        "message": text_member("The reason, for people.", "Rate limit reached; please wait"),
        "code": text_member(
            "The reason, for programs: `invalid`, `unauthorized`, `forbidden`, `not_found`, `conflict`, `granted`,"
            " `too_large`, `unsupported`, `too_fast`, `timeout`, `method_not_allowed`, `internal` or `unavailable`.",
            "too_fast",
        ),
        "field": text_member("The field that it is about, where it is about one: `requests[3].priority`.", "priority"),
        "rate_limit_delay": text_member("With status 429: seconds to wait.", 0.5, kind="number"),
    },
    "required": ["ok", "message", "code"],
}

WORKER_HEADERS = [{"worker_id": [], "worker_secret": []}]
SESSION = [{"session": []}]
SECURITY = {None: [], "worker": WORKER_HEADERS, "session": SESSION, "worker_or_session": WORKER_HEADERS + SESSION}

# ── What a call needs, in words ───────────────────────────────────────────────────────────────────────────────────────

WHO = {
    "": "Anybody.",
    "login": "Any manager.",
    "admin": "A tracker admin.",
    "worker": "Any worker.",
    "sees": "Anybody; of a hidden project only managers with the role READ.",
}


def who_may(about: Note, need: Any) -> str:
    """Who may make a call: as it is noted, or as its Need says."""
    if about.setting:
        return f"Anybody, if the setting `{about.setting}` is on; otherwise managers."
    if not isinstance(need, tuple) or need.says:
        return getattr(need, "says", need) or WHO[""]
    if need.role == "login" and need.of:
        return "A manager who may see the project."
    if need.worker and need.role not in WHO:
        worker = f"A worker with {need.worker.upper()} access to the project"
        return f"{worker}, or a manager with the role {need.name} in it."
    return WHO.get(need.role, f"A manager with the role {need.name} in the project.")


def refused_role(need: Any) -> str:
    """Why a call is refused to who may not make it; nothing where that does not follow from what it needs."""
    role = getattr(need, "role", "")
    if role in WHO:
        return "The manager is no tracker admin." if role == "admin" else ""
    if need.worker:
        return f"A worker without {need.worker.upper()} access to the project, a manager without the {need.name} role."
    return f"The manager has no {need.name} role in the project."


def unknown(names: Iterable[str], need: Any, hides: bool) -> str:
    """What is said when that is not there which the call is about, or (`hides`) when it is kept from a manager."""
    if of := getattr(need, "of", None):
        return f"There is no such {of.noun}, or {'it' if of.noun == 'project' else 'its project'} is hidden."
    noun = next((name for name in names if name in THINGS), "")
    return f"There is no such {noun}{', or it is hidden' if hides and noun == 'project' else ''}." if noun else ""


def reasons(about: Note, row: Any, takes: Any, by_manager: bool) -> dict[int, str]:
    """Why a call is refused, by status: what follows from what it needs, and what is noted of it."""
    names = [*ids_in(row.path), *getattr(takes.body or takes.query, "__struct_fields__", ())]
    found = {403: refused_role(takes.who), 404: unknown(names, takes.who, by_manager)}
    other_site = [(403, OTHER_SITE)] if not row.only_reads and (by_manager or about.cookie) else []
    for status, why in (*about.errors.items(), *other_site):
        found[status] = continued(found.get(status, ""), why)
    return {status: why for status, why in found.items() if why}


def continued(sentence: str, more: str) -> str:
    """The sentence with "or …" at its end; any other text stands by itself."""
    if not more.startswith("or "):
        return more
    return f"{sentence[:-1]}, {more}" if sentence else more[3:].capitalize()


# ── The document ──────────────────────────────────────────────────────────────────────────────────────────────────────


def document(api: Iterable[tuple[Any, Any]], settings: Any, version: str) -> dict[str, Any]:
    """The OpenAPI document of these calls, of a tracker with these settings.

    A call: its row of the table of routes (methods, path, a function with its docstring), and what it takes.
    """
    calls = {f"{method} {row.path}": (row, takes) for row, takes in api for method in row.methods.split()}
    schemas = Schemas([takes for _, takes in calls.values()], settings)
    if unknown := sorted(calls.keys() - NOTES.keys()):
        raise LookupError(f"NOTES in openapi.py has no entry for {', '.join(unknown)}")
    paths: dict[str, dict[str, Any]] = {}
    for name in sorted(calls, key=list(NOTES).index):
        method, path = name.split()
        paths.setdefault(path, {})[method.lower()] = operation(name, *calls[name], schemas)
    add_links(paths)
    components = {**schemas.components, **schemas.answered}
    referred = json.dumps([paths, components])
    named = {name: one for name, one in components.items() if f'"{REF.format(name=name)}"' in referred}
    root = settings.root_path
    return {
        "openapi": "3.1.0",
        "info": {"title": "Task tracker", "version": version, "description": DESCRIPTION},
        "servers": [{"url": root or "/"}, {"url": f"{root}/api"}],
        "tags": [{"name": name, "description": description} for name, description in SECTIONS.items()],
        "paths": paths,
        "components": {
            "schemas": {**named, "Error": ERROR},
            "responses": {str(status): refusal(status, why, schemas) for status, why in COMMON_ERRORS.items()},
            "securitySchemes": security_schemes(settings),
        },
    }


def in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)


class Schemas:
    """The JSON schema of every type, with the meaning of each field. `components` are those that have a name."""

    def __init__(self, takes: Iterable[Any], settings: Any):
        """The schemas of what calls take and answer, with the values of the settings in their texts."""
        takes, self.settings = list(takes), settings
        self.words = {name: in_words(getattr(settings, name)) for name in settings.__struct_fields__}
        self.kinds = [Id, *(kind for one in takes for kind in (one.body, one.query, *(one.path or {}).values()))]
        self.kinds += [kind for one in takes for kind in answered_types(one.answer)]
        self.answered: dict[str, Any] = {}
        self.schemas, self.components = msgspec.json.schema_components(self.kinds, ref_template=REF)
        fields = [field for one in self.components.values() for field in one["properties"].values()]
        for one in (*self.schemas, *fields):
            if "description" in one:
                one["description"] = self.said(one["description"])

    def said(self, text: str) -> str:
        """The text with the values of the settings that it names: `{name}`, or `{name:unit}` that says the name too."""
        return re.sub(r"{(\w+):([^{}]*)}", r"{\1}\2 (setting `\1`)", text).format_map(self.words)

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of one of these types."""
        return self.schemas[self.kinds.index(kind)]

    def content(self, answer: Any, new: bool, in_full: bool) -> dict[str, Any]:
        """The schema of an answer: about something `new`, which shows its secret, or of a list of things `in_full`."""
        if isinstance(answer, list):
            return {"anyOf": [self.content(one, new, in_full) for one in answer]}
        if not isinstance(answer, dict):
            return self.shown(self.of(answer), new, True, in_full)
        fields = {name: self.shown(self.of(kind), new, True, in_full) for name, kind in answer.items()}
        return {"type": "object", "properties": fields, "required": list(fields)}

    def shown(self, schema: Any, new: bool = False, whole: bool = False, in_full: bool = False) -> Any:
        """The schema of what is answered, with those optional fields that this answer has.

        They are in what an answer is about (`whole`), and not in what that holds, or what is listed but `in_full`. A
        component of which some are left out, or shown, has a name of its own.
        """
        if isinstance(schema, list):
            return [self.shown(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" not in schema:
            nested = {"items": in_full, "anyOf": False}
            return {key: self.shown(one, whole=nested[key]) if key in nested else one for key, one in schema.items()}
        name = schema["$ref"].rpartition("/")[2]
        component = self.components[name]
        fields, required = component["properties"], component.get("required", ())
        optional = {field for field, one in fields.items() if field not in required and "default" not in one}
        shown = optional - (set() if new else {"secret"}) if whole else optional & MAYBE
        new_name = f"New{name}" if "secret" in shown else f"{name}InFull" if shown - MAYBE else name
        kept = {key: self.shown(one, whole=in_full) for key, one in fields.items() if key not in optional - shown}
        required = [key for key in kept if key in {*required, *shown} - MAYBE]
        self.answered[new_name] = {**component, "title": new_name, "properties": kept, "required": required}
        return {**schema, "$ref": REF.format(name=new_name)}


MAYBE = {"job", "attachments", "more", "dropped_by"}  # only some tasks have one, only a cut list more, few lose lines


def answered_types(answer: Any) -> list[Any]:
    """The types of which an answer is made."""
    if isinstance(answer, list | dict):
        parts = answer if isinstance(answer, list) else answer.values()
        return [kind for one in parts for kind in answered_types(one)]
    return [] if answer is None else [answer]


def operation(name: str, row: Any, takes: Any, schemas: Schemas) -> dict[str, Any]:
    """One call, as an Operation Object."""
    about, need = NOTES[name], takes.who
    summary, description = split_docstring(row.function)
    security = SECURITY[takes.caller and takes.caller.__name__]
    open_to_all = getattr(schemas.settings, about.setting, not need or getattr(need, "role", "") == "sees")
    if security and open_to_all:
        # What comes first is what the example uses: whoever logs out, or asks who is logged in, has a session.
        security = [*security, {}] if about.cookie or about.not_ok else [{}, *security]
    parameters = [
        *(path_parameter(one, about, takes, schemas) for one in ids_in(name)),
        *query_parameters(about, takes, schemas),
        *(parameter("header", one, why, {"type": "string"}, EXAMPLE_HEADERS) for one, why in about.headers.items()),
    ]
    content = {}
    if takes.body is not None:
        content = {"application/json": {"schema": schemas.of(takes.body), "example": about.body}}
    elif about.text:
        content = {"text/plain": {"schema": {"type": "string"}, "example": about.text}}
    # What no id looks like is an unknown one, if ids are texts.
    texts = takes.path or {}
    decodes = bool(content) or any(one["in"] == "query" or one["name"] not in texts for one in parameters)
    return {
        "operationId": re.sub(r"\W+", "_", name.lower()).strip("_"),
        "tags": [about.section],
        "summary": summary,
        "description": description,
        "x-caller": who_may(about, need),
        "security": security,
        "parameters": parameters,
        **({"requestBody": {"required": True, "content": content}} if content else {}),
        "responses": {
            str(takes.status): success(about, takes, schemas, row.path.endswith("/create")),
            **({"200": {"description": "The file.", "content": {about.file: {}}}} if about.file else {}),
            **refusals(about, row, takes, security, decodes, schemas),
        },
    }


def add_links(paths: dict[str, dict[str, Any]]) -> None:
    """Says of each call that makes something which calls are about that, and where they find its id."""
    about: dict[str, list[str]] = {}
    for path, methods in paths.items():
        for name in ids_in(path):
            about.setdefault(name, []).extend(one["operationId"] for one in methods.values())
    for call, (name, place) in MADE.items():
        method, path = call.split()
        id_of_it = {f"path.{name}": f"$response.body#/content/{place}"}
        links = {one: {"operationId": one, "parameters": id_of_it} for one in about[name]}
        next(iter(paths[path][method.lower()]["responses"].values()))["links"] = links


def split_docstring(handler: Callable) -> tuple[str, str]:
    """The first sentence, without its stop, and the rest, one line a paragraph."""
    text = "\n\n".join(" ".join(part.split()) for part in inspect.getdoc(handler).split("\n\n"))
    summary, _, description = text.partition(". ") if ". " in text.split("\n")[0] else text.partition(".\n\n")
    return summary.removesuffix("."), description


def ids_in(path: str) -> list[str]:
    """The names of what stands in braces in a path."""
    return re.findall(r"{(\w+)}", path)


def parameter(
    place: str, name: str, meaning: str, schema: dict[str, Any], examples: dict[str, Any], required: bool = False
) -> dict[str, Any]:
    """What a call may have in its path, its query or its headers, with its example if there is one."""
    example = {"example": examples[name]} if name in examples else {}
    return {"name": name, "in": place, "required": required, "description": meaning, "schema": schema, **example}


def path_parameter(name: str, about: Note, takes: Any, schemas: Schemas) -> dict[str, Any]:
    """What stands for a name in braces in the path."""
    examples = {name: 1, **EXAMPLE_IDS, **about.path}
    schema = schemas.of((takes.path or {}).get(name, Id))
    return parameter("path", name, PATH.get(name, f"The {name}'s number."), schema, examples, required=True)


def query_parameters(about: Note, takes: Any, schemas: Schemas) -> Iterator[dict[str, Any]]:
    """The fields of what the query is decoded as. No query can say null."""
    component = schemas.components[takes.query.__name__] if takes.query else {"properties": {}, "required": []}
    for name, schema in sorted(component["properties"].items(), key=lambda item: item[0] not in component["required"]):
        schema = {key: value for key, value in schema.items() if key != "default" or value is not None}
        if "anyOf" in schema:
            [one] = [one for one in schema.pop("anyOf") if one != {"type": "null"}]
            schema = {**schema, **one}
        meaning = schema.pop("description")
        yield parameter("query", name, meaning, schema, about.query, name in component["required"])


def success(about: Note, takes: Any, schemas: Schemas, new: bool) -> dict[str, Any]:
    """The answer to a call that was accepted."""
    response: dict[str, Any] = {"description": "Done." if takes.answer is None else "The answer."}
    if about.cookie:
        response["headers"] = {"Set-Cookie": {"description": about.cookie, "schema": {"type": "string"}}}
    if takes.status == 204:
        return {**response, "description": "Done. There is no body."}
    ok = {"type": "boolean", "description": about.not_ok} if about.not_ok else {"const": True}
    fields: dict[str, Any] = {"ok": ok}
    if about.message:
        fields["message"] = {"type": "string", "description": about.message}
    if about.reason:
        fields["reason"] = {
            "type": "string",
            "description": about.reason,
            "examples": ["No task is ready in project 1"],
        }
    if takes.answer is not None:
        fields["content"] = schemas.content(takes.answer, new, about.in_full)
    required = [name for name in fields if name == "ok" or (name == "content" and not about.empty)]
    schema = {"type": "object", "properties": fields, "required": required}
    components = {**schemas.components, **schemas.answered}
    example = {name: sample(one, components) for name, one in fields.items() if name not in ("message", "reason")}
    for name, differs in about.example.items():
        example["content"][name] |= differs
    return {**response, "content": {"application/json": {"schema": schema, "example": example}}}


def sample(schema: dict[str, Any], components: dict[str, Any]) -> Any:
    """A value as the schema describes it."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return sample(components[schema["$ref"].rpartition("/")[2]], components)
    if "anyOf" in schema:
        return sample(next(one for one in schema["anyOf"] if one != {"type": "null"}), components)
    if schema.get("type") == "object":
        given = {name: one for name, one in schema["properties"].items() if name in schema["required"]}
        return {name: sample(one, components) for name, one in given.items()}
    if schema.get("type") == "array":
        return [sample(schema["items"], components)]
    return schema.get("const", {"boolean": True, "integer": 1}.get(schema.get("type")))


def refusals(about: Note, row: Any, takes: Any, security: list, decodes: bool, schemas: Schemas) -> dict[str, Any]:
    """The answers to a call that was refused, by status: what every such call may meet, and what this one may."""
    usual = {400: decodes, 401: security and {} not in security, 413: takes.body is not None, 500: True, 503: True}
    found = {status: {"$ref": f"#/components/responses/{status}"} for status, applies in usual.items() if applies}
    if 401 in found and takes.caller.__name__ in UNKNOWN_CALLER:
        found[401] = refusal(401, UNKNOWN_CALLER[takes.caller.__name__], schemas)
    why = reasons(about, row, takes, SESSION[0] in security)
    found |= {status: refusal(status, text, schemas) for status, text in why.items()}
    return {str(status): found[status] for status in sorted(found)}


def refusal(status: int, why: str, schemas: Schemas) -> dict[str, Any]:
    """An answer that refuses a call, as a Response Object."""
    response = {
        "description": schemas.said(why),
        "content": {"application/json": {"schema": {"$ref": REF.format(name="Error")}}},
    }
    if status == 429:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait, rounded up.", "schema": {"type": "integer", "minimum": 1}}
        }
    return response


def security_schemes(settings: Any) -> dict[str, Any]:
    """What a caller shows: a worker's two headers, or a manager's cookie."""
    worker = "The worker's number: `id` in the answer to `POST /worker/create`. `$ID` in the examples."
    secret = "The worker's secret: `secret` in that answer. `$SECRET` in the examples."
    session = "The session that `POST /login` or `POST /register` began. In the examples it is in curl's cookie file"
    places = {
        "worker_id": ("header", "X-Worker-ID", worker),
        "worker_secret": ("header", "X-Secret", secret),
        "session": ("cookie", settings.cookie_name, f"{session} `cookies`. Under TLS its name begins with `__Host-`."),
    }
    return {
        kind: {"type": "apiKey", "in": place, "name": name, "description": description}
        for kind, (place, name, description) in places.items()
    }


# ── Examples for the shell ────────────────────────────────────────────────────────────────────────────────────────────


def with_curl(document: dict[str, Any], url: str) -> dict[str, Any]:
    """The document with a curl example for each call, of a tracker at this URL (without a slash at its end)."""
    shell = {"lang": "Shell", "label": "curl"}
    paths = {
        path: {
            method: {**one, "x-codeSamples": [{**shell, "source": curl(method, path, one, url)}]}
            for method, one in methods.items()
        }
        for path, methods in document["paths"].items()
    }
    return {**document, "paths": paths}


def curl(method: str, path: str, operation: dict[str, Any], url: str) -> str:
    """The command that makes the call of the document's examples."""
    given = [one for one in operation["parameters"] if "example" in one]
    ids = {one["name"]: quote(str(one["example"]), safe="") for one in given if one["in"] == "path"}
    query = urlencode({one["name"]: one["example"] for one in given if one["in"] == "query"}, doseq=True)
    body = operation.get("requestBody")
    words = ["curl", *(["-X", "POST"] if method == "post" and not body else [])]
    security = operation["security"][0] if operation["security"] else {}
    if "session" in security:
        words += ["-b", "cookies"]
    if "Set-Cookie" in next(iter(operation["responses"].values())).get("headers", {}):
        words += ["-c", "cookies"]
    address = shlex.quote(url + path.format(**ids) + "?" * bool(query) + query)
    job = "'\"$JOB\"'" if address.startswith("'") else "$JOB"
    lines = [" ".join([*words, address.replace(EXAMPLE_JOB, job)])]
    if "worker_id" in security:
        lines.append('-H "X-Worker-ID: $ID" -H "X-Secret: $SECRET"')
    lines += [f"-H {shlex.quote(one['name'] + ': ' + one['example'])}" for one in given if one["in"] == "header"]
    for kind, content in body["content"].items() if body else ():
        is_json = kind == "application/json"
        given = json.dumps(content["example"]) if is_json else content["example"]
        lines.append(f"{'-d' if is_json else '--data-binary'} {shlex.quote(given)}")
    return " \\\n  ".join(lines)


def start(url: str) -> str:
    """Commands that make, on a new tracker, what the examples are about: a manager, a project, a worker with access."""
    url = shlex.quote(url)
    return f"""\
curl -c cookies {url}/register -d '{{"username": "alice", "password": "correct horse"}}'
curl -b cookies {url}/project/create -d '{{"name": "first"}}'
WORKER=$(curl -s {url}/worker/create -d '{{"alias": "my laptop"}}')
ID=$(echo "$WORKER" | sed 's/.*"id":\\([0-9]*\\).*/\\1/')
SECRET=$(echo "$WORKER" | sed 's/.*"secret":"\\([^"]*\\)".*/\\1/')
curl -H "X-Worker-ID: $ID" -H "X-Secret: $SECRET" {url}/project/request_access \\
  -d '{{"project": 1, "assign": true, "submit": true}}'
curl -b cookies -X POST {url}/project/accept_request/1/$ID"""


# ── The page ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pages(document: dict[str, Any], url: str) -> dict[str, Any]:
    """What templates/docs.html shows: plain values, made from the document. `url` is where its reader sees the tracker.

    Texts may have `code` in backticks.
    """
    components = document["components"]
    calls: dict[str, dict[str, list]] = {tag["name"]: {} for tag in document["tags"]}
    operations = [(method, path, one) for path, methods in document["paths"].items() for method, one in methods.items()]
    for method, path, one in operations:
        same = path + json.dumps({**one, "operationId": None})  # GET and POST that do the same are shown together
        calls[one["tags"][0]].setdefault(same, []).append((method, path, one))
    sections = [
        {**tag, "calls": [shown_call(same, components, url) for same in calls[tag["name"]].values()]}
        for tag in document["tags"]
    ]
    bodies = json.dumps([one.get("requestBody") for _, _, one in operations])
    shapes = {
        name: rows(schema["properties"], schema["required"] if f'"{REF.format(name=name)}"' in bodies else ())
        for name, schema in components["schemas"].items()
    }
    answers = [call["answer"] for section in sections for call in section["calls"]]
    mentioned = {row["shape"] for table in (*shapes.values(), *answers) for row in table}
    return {
        "description": document["info"]["description"].split("\n\n"),
        "servers": [server["url"] for server in document["servers"]],
        "start": start(url),
        "schemes": list(components["securitySchemes"].values()),
        "error": {
            "rows": rows(ERROR["properties"]),
            "example": pretty(sample(ERROR, {})),
            "common": [
                (status, HTTPStatus(int(status)).phrase, one["description"])
                for status, one in components["responses"].items()
            ],
        },
        "sections": sections,
        "shapes": [
            {"name": name, "description": components["schemas"][name].get("description", ""), "rows": table}
            for name, table in shapes.items()
            if name in mentioned
        ],
    }


def shown_call(same: list[tuple[str, str, dict]], components: dict[str, Any], url: str) -> dict[str, Any]:
    """A call, which may have several methods."""
    _, path, one = same[0]
    status, answer = next(iter(one["responses"].items()))
    shown = answer.get("content", {}).get("application/json")
    fields = {
        place: rows(
            {each["name"]: {**each["schema"], **each} for each in one["parameters"] if each["in"] == place},
            [each["name"] for each in one["parameters"] if each["required"]],
        )
        for place in ("path", "query", "header")
    }
    body = one.get("requestBody", {}).get("content", {}).get("application/json")
    return {
        "anchor": one["operationId"],
        "methods": [method.upper() for method, _, _ in same],
        "path": path,
        "summary": one["summary"],
        "description": one["description"].split("\n\n") if one["description"] else [],
        "caller": one["x-caller"],
        "fields": {**fields, "body": rows(**inlined(body["schema"], components)) if body else []},
        "status": status,
        "answer": rows(answer_fields(shown["schema"], components)) if shown else [],
        "answer_headers": [(name, header["description"]) for name, header in answer.get("headers", {}).items()],
        "answer_example": pretty(shown["example"]) if shown else "",
        "errors": [
            (status, HTTPStatus(int(status)).phrase, resolved(response, components)["description"])
            for status, response in one["responses"].items()
            if "400" <= status < "500"
        ],
        "examples": [curl(method, path, one, url) for method, path, one in same],
    }


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def resolved(value: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    if "$ref" not in value:
        return value
    _, _, kind, name = value["$ref"].split("/")
    return components[kind][name]


def inlined(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """The fields of an object's schema; of alternatives, those of all of them, none of them required."""
    objects = [resolved(one, components) for one in schema.get("anyOf", [schema])]
    objects = [one for one in objects if one["type"] == "object"]
    required = objects[0]["required"] if len(objects) == 1 else ()
    return {
        "fields": {name: field for one in objects for name, field in one["properties"].items()},
        "required": required,
    }


def answer_fields(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """The fields of an answer, those of `content` by their names in there."""
    fields = dict(schema["properties"])
    content = inlined(fields.pop("content"), components)["fields"] if "content" in fields else {}
    return fields | {f"content.{name}": field for name, field in content.items()}


def rows(fields: dict[str, Any], required: Collection[str] = ()) -> list[dict[str, Any]]:
    """The lines of a table of fields; some are `required` of what the tracker decodes."""
    return [
        {
            "name": name,
            "type": type_of(field),
            "shape": shape_of(field),
            "limits": limits(field),
            "required": name in required,
            "default": default_of(field),
            "meaning": field.get("description", ""),
        }
        for name, field in fields.items()
        if "const" not in field  # it says nothing
    ]


def shape_of(schema: dict[str, Any]) -> str | None:
    """The name of the component that the field holds, or holds a list of."""
    for one in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
        if "$ref" in one:
            return one["$ref"].rpartition("/")[2]
    return None


def type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    if schema.get("items"):
        return f"list of {type_of(schema['items'])}"
    return schema.get("type", "any JSON").replace("array", "list")


def limits(schema: dict[str, Any]) -> str:
    """The limits of a value, in words."""
    one = next((one for one in schema.get("anyOf", ()) if one != {"type": "null"}), schema)
    for kind, unit in (("imum", ""), ("Length", " characters"), ("Items", " of them")):
        low, high = one.get(f"min{kind}"), one.get(f"max{kind}")
        if "exclusiveMaximum" in one:
            high = one["exclusiveMaximum"] - 1
        if high in (2**63 - 1, 2**64 - 1) and low != 0:
            return "64 bits"
        if high is not None and high != 2**63 - 1:
            beginning = "at most" if low is None else f"{in_words(low)} to"
            return f"{beginning} {in_words(high)}{unit}"
        if low is not None:
            return f"at least {in_words(low)}{unit}"
    return ""


def default_of(schema: dict[str, Any]) -> str:
    """What an absent field counts as, as JSON; nothing when there is no such value."""
    default = schema.get("default")
    return "" if default is None else f"{default:g}" if isinstance(default, float) else json.dumps(default)
