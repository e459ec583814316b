"""theeye.io's API for tasks and jobs, and the calls of its agent, over the tracker's queue.

What is what: a *task* there is a template here, a *job* is a job, a *host* is a project (so a project has one), an
*agent* is a worker, a *customer* (organisation) is one name in tracker.toml. Other programs come with an integration
token, with a task's or workflow's own secret, or, as agents, with a token that they log in for.

    request ─► Door (is it ours? which route?) ─► Ask (path, query, credentials, body)
                        │
                        └► answer(tx, ask, route): who calls ─► which customer ─► what it may ─► the route's function

A route's function takes `(tx, ask, caller)` and returns what is shown as JSON, bytes that are sent as they are, or None
for an empty answer; or it raises Refusal or TrackerError, which TheEyeCall alone turns into answers. Every path exists
twice: /{customer}/task, and /task with the customer in the body or the query. Sections (search for "# ── "):

    Answers · Requests · Callers · Hosts · Objects · Tasks · Arguments and jobs · Workflows · The agent · Routes ·
    Manager pages
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import hmac
import html
import itertools
import re
import secrets
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, compile_path

import errors
import joblog
import pages
import shapes
import tracker
from callers import LAST_SEEN_STEP
from dialects import plumbing
from dialects.plumbing import as_bytes, as_json, basic_credentials, forgiving_json, may_be_long, nothing
from pages import Action, Page
from shapes import Name, ReleaseBody
from tracker import EDIT, FAIL, OK, TrackerError, Tx, WorkerCredentials

# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Refusal(TrackerError):
    """A code and what is said with it: a text (a JSON string, as everything here), or an object."""

    def __init__(self, code: str, content: Any, **headers: str):
        super().__init__(code, str(content))
        self.content, self.headers = content, headers


class TheEyeCall(tracker.Call):
    """A call of this dialect. The texts of refusals are those of the real system where it has one, else the tracker's.

    `ok` is for a client of the tracker's own API that took a wrong path below /task or /job.
    """

    door = "theeye"
    minds = "nothing"  # all that changes something comes with a token or a secret, also from pages on other sites

    async def refuse(self, error: TrackerError) -> Response:
        """What a Refusal brings along; of any other the text, and of what nobody has foreseen an object."""
        internal = {"code": "InternalError", "message": error.message}
        content = internal if error.code == "internal" else getattr(error, "content", error.message)
        headers = {**tracker.error_headers(error), **getattr(error, "headers", {})}
        return as_json(content, tracker.STATUS[error.code], headers)


def not_content(problem: str) -> Refusal:
    """The refusal of a request that cannot be decoded."""
    return Refusal("invalid", {"code": "InvalidContent", "message": problem})


def invalid_fields(code: str, *fields: str) -> Refusal:
    """The refusal of a task: EREQ for fields that are missing, EVALID for those that cannot be used."""
    return Refusal("invalid", [{"statusCode": 400, "field": field, "code": code} for field in fields])


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


LARGEST = 4  # so many times what is kept of a job's log may come with a result


class Ask(NamedTuple):
    """A request, decoded. `body` is a dict, or the bare array that some clients send."""

    path: dict[str, str]
    query: dict[str, Any]
    body: dict[str, Any] | list[Any]
    bearer: str | None
    basic: tuple[str, str] | None
    base: str  # where the caller sees the tracker
    guesser: tracker.Guesser

    def given(self, name: str) -> Any:
        """A value from the path, else the body, else the query; None when it is nowhere."""
        for source in (self.path, self.body, self.query):
            if isinstance(source, dict) and source.get(name) not in (None, ""):
                return source[name]
        return None

    def fields(self) -> dict[str, Any]:
        """The body where it must be an object."""
        if isinstance(self.body, list):
            raise not_content("The body must be an object")
        return self.body


def read_head(call: tracker.Call, path: dict[str, str]) -> Ask:
    """The request without its body. Refuses a query that cannot be decoded."""
    query, authorization = parameters(call.scope["query_string"]), call.header(b"authorization")
    kind, _, token = (authorization or b"").decode("latin-1").partition(" ")
    bearer = token.strip() if kind.lower() == "bearer" else query.get("access_token")
    return Ask(path, query, {}, bearer or None, basic_credentials(authorization), call.base, call.guesser)


async def read_body(call: tracker.Call, large: bool, most: int | None = None) -> dict[str, Any] | list[Any]:
    """The body (of so many KiB), also as browsers send it: as a form of either kind. Refuses what cannot be decoded."""
    settings = call.tracker.settings
    kind = (call.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind == b"multipart/form-data":
        try:
            return from_pairs(await call.multipart(most or settings.max_body, max_files=0, max_fields=1000))
        except TrackerError as error:
            raise error if error.code != "invalid" else not_content(error.problem) from None
    body = await call.body(LARGEST * max(settings.max_body, settings.max_job_log) if large else most)
    body = body.removeprefix(codecs.BOM_UTF8).strip()
    if kind == b"application/x-www-form-urlencoded" and body[:1] not in (b"{", b"["):  # curl -d sends JSON as a form
        return await call.decoded(body, parameters)
    return await call.decoded(body, json_body, large)


def json_body(body: bytes, from_script: bool) -> dict[str, Any] | list[Any]:
    """An object or an array; nothing at all counts as an empty object.

    What a script wrote may hold what is no text, and its result must not be lost for that.
    """
    try:
        value = tracker.decode(body or b"{}", Any)
    except TrackerError as error:
        if not from_script:
            said = error.problem if error.field == "body" else error.message
            raise not_content(f"Invalid JSON: {said}") from None
        try:
            value = forgiving_json(body)
        except ValueError as error:
            raise not_content(f"Invalid JSON: {error}") from None
    if not isinstance(value, dict | list | None):
        raise not_content("The body must be an object or an array")
    return {} if value is None else value


def parameters(text: bytes) -> dict[str, Any]:
    """A query, or a form as browsers send it."""
    try:
        given = errors.form_pairs(text, 2000)
    except ValueError:
        raise not_content("Neither JSON nor a form") from None
    pairs: dict[str, list[str]] = {}
    for name, value in given:
        pairs.setdefault(name, []).append(value)
    return from_pairs(pairs)


def from_pairs(pairs: dict[str, list[str]]) -> dict[str, Any]:
    """Names with their last value each, and `task_arguments` as a list."""
    if any("\0" in text for name, values in pairs.items() for text in (name, *values)):
        raise not_content("NUL characters are not possible here")
    fields: dict[str, Any] = {name: values[-1] for name, values in pairs.items() if values}
    if (arguments := listed(pairs, "task_arguments")) is not None:
        fields["task_arguments"] = arguments
    return fields


def listed(pairs: dict[str, list[str]], name: str) -> list[Any] | None:
    """The array that a form or a query spells as name[]=a&name[]=b, name=a&name=b, name[0]=a, or name=["a","b"]."""
    values = [value for key in (name, f"{name}[]") for value in pairs.get(key, ())]
    if len(values) == 1 and name in pairs and values[0].lstrip().startswith("["):
        errors.refuse_many_parts(values[0].encode())
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(values[0], type=list)
    numbered = [(int(match[1]), key) for key in pairs if (match := re.fullmatch(rf"{name}\[(\d{{1,6}})\]", key))]
    values += [pairs[key][-1] for _, key in sorted(numbered)]
    return values or None


def customer_id(tx: Tx) -> str:
    return derived_id("customer", tx.settings.theeye_customer)


def derived_id(kind: str, name: Any) -> str:
    """An id for what has none in the database, always the same one."""
    return hashlib.sha256(f"{kind}:{name}".encode()).hexdigest()[:24]


def check_customer(tx: Tx, ask: Ask, implied: bool) -> None:
    """Refuses another customer than the one there is, and none, unless what is asked for tells whose it is."""
    customer = ask.given("customer")
    if customer is None:
        if implied:
            return
        raise Refusal("forbidden", "organization is required")
    if customer not in (tx.settings.theeye_customer, customer_id(tx)):
        raise Refusal("not_found", "organization not found")


def find_script(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM script WHERE token = ?", (token,))


def id_of_attempt(job: sqlite3.Row) -> str:
    """What an agent knows a job by: another id in each attempt, and in the first one the job's own.

    An agent that was thought to be lost may report after it has fetched the job again, and a report may come twice.
    """
    return f"{job['token'][:-2]}{(int(job['token'][-2:], 16) + further_attempts(job)) % 256:02x}"


def further_attempts(job: sqlite3.Row) -> int:
    """How many attempts have followed the first one, as far as ids tell them apart."""
    return min(max(job["attempts"] - 1, 0), 255)


def job_of_attempt(tx: Tx, token: str) -> sqlite3.Row | None:
    """The job of this id, or of which this was the id in an attempt."""
    if (row := tracker.find_job(tx, token)) is not None:
        return row
    row = tx.one("SELECT * FROM job WHERE token BETWEEN ? AND ?", (f"{token[:-2]}00", f"{token[:-2]}ff"))
    number = row and (int(token[-2:], 16) - int(row["token"][-2:], 16)) % 256
    return row if row and number <= further_attempts(row) else None


FINDERS: dict[str, Callable[[Tx, str], sqlite3.Row | None]] = {
    "task": tracker.template_by_token,
    "job": job_of_attempt,
    "workflow": tracker.workflow_by_token,
    "script": find_script,
}


def found(tx: Tx, ask: Ask, what: str) -> sqlite3.Row:
    """The task, job, workflow or script that the request names. Refuses a secret in the path that is not its own."""
    token, secret = ask.given(what), ask.path.get("secret")
    if token is None:
        raise Refusal("invalid", f"{what} is required")
    if not (isinstance(token, str) and re.fullmatch(shapes.TOKEN, token.lower())):
        raise Refusal("invalid", f"{what} id is invalid")
    row = FINDERS[what](tx, token.lower())
    if row is None:
        raise Refusal("not_found", f"{what} not found")
    if secret is not None and not tracker.secret_matches(row, secret):
        raise Refusal("forbidden", "invalid secret")
    return row


# Of one list: so many objects are looked at, and so much JSON is sent. A longer one goes on with `skip`.
MOST_LISTED, MOST_LIST_BYTES = 10_000, 2**24
DIRECTIONS = {"1": False, "asc": False, "ascending": False, "-1": True, "desc": True, "descending": True}


class Wanted(NamedTuple):
    """Which objects of a list are asked for: by their fields' values, in which order, from where on, how many."""

    where: dict[str, str]
    sort: dict[str, bool]  # by the field, whether it is descending
    skip: int
    limit: int | None


class Part(NamedTuple):
    """What is shown of a list, and, if that is not all that there is, why."""

    objects: list[dict[str, Any]]
    cut: str | None


def wanted(ask: Ask) -> Wanted:
    """`where[field]=value`, `sort[field]=-1`, `skip` and `limit` of a list's query."""
    where, sort = {}, {}
    for name, value in ask.query.items():
        kind = name.partition("[")[0]
        if kind not in ("where", "sort"):
            continue
        if not (match := re.fullmatch(r"(?:where|sort)\[(\w{1,100})\]", name)):
            raise Refusal("invalid", f"{name[:100]} is invalid: it looks like {kind}[field]=value")
        field = "id" if match[1] == "_id" else match[1]
        if kind == "where":
            where[field] = value
        elif (descending := DIRECTIONS.get(value.lower())) is None:
            raise Refusal("invalid", f"{name} is invalid: it must be 1 or -1")
        else:
            sort[field] = descending
    skip, limit = (whole_number(ask, name) for name in ("skip", "limit"))
    return Wanted(where, sort, skip, limit or None)


def whole_number(ask: Ask, name: str) -> int:
    text = ask.query.get(name) or "0"
    if not (text.isascii() and text.isdigit()):
        raise Refusal("invalid", f"{name} is invalid: it must be a whole number")
    return int(text[:9])


def selected(ask: Ask, rows: Iterable[Any], shown: Callable[[Any], dict[str, Any]]) -> Part:
    """The objects that are asked for, of these rows; no more are made than have to be.

    A field that they do not have matches none, and is no order.
    """
    where, sort, skip, limit = wanted(ask)
    plain, beginning = not where and not sort, 0
    if plain:
        rows, skip, beginning = itertools.islice(rows, skip, None), 0, skip
    end = sys.maxsize if limit is None else skip + limit
    objects, size, cut = [], 0, None
    for number, row in enumerate(rows):
        if number == MOST_LISTED or size > MOST_LIST_BYTES:
            cut = f"no more than {number} objects were looked at"
            cut += f"; it goes on with skip={beginning + number}" if plain else ""
            break
        if matches(one := shown(row), where):
            objects.append(one)
            size += len(tracker.encode(one)) if len(objects) > skip or sort else 0
        if len(objects) == end and not sort:
            break
    for field, descending in reversed(sort.items()):
        objects.sort(key=lambda one, field=field: in_order(one.get(field)), reverse=descending)
    return Part(objects[skip:end], cut)


def in_order(value: Any) -> tuple[int, Any]:
    """What values of all kinds are sorted by: nothing, numbers, texts, and last what is neither."""
    if value is None:
        return 0, 0
    if isinstance(value, int | float):
        return 1, value
    return (2, value) if isinstance(value, str) else (3, tracker.encode(value))


def matches(shown: dict[str, Any], where: dict[str, str]) -> bool:
    """Whether the object's fields have these values, as a query spells them."""
    given = {name: shown[name] for name in where if name in shown}
    return where == {name: one if isinstance(one, str) else tracker.encode(one).decode() for name, one in given.items()}


# ── Callers ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LOGIN_LIFETIME = 86400  # seconds; then an agent logs in again by itself
MOST_LOGINS = 20  # of one agent at a time
LAST_USED_STEP = 60  # seconds; a coarser last_used saves a write on nearly every request


class Caller(NamedTuple):
    """Who calls: an agent with its worker and project, or a program with the integration token that a manager made."""

    kind: str  # token, admin (a token, too) or agent
    id: int
    manager: int | None = None
    worker: WorkerCredentials | None = None
    project: int | None = None
    stale: bool = False  # whether the token's last_used is due


def authenticate(tx: Tx, ask: Ask) -> Caller:
    """Who calls, by its token. Of tokens only hashes are stored, so they are found by those.

    An integration token can do no more than who made it: it ends with that manager's being an admin.
    """
    key = tracker.digest(ask.bearer.encode("utf-8", "replace")) if ask.bearer else None
    row = tx.one(
        "SELECT t.* FROM theeye_token t JOIN manager m ON m.id = t.manager"
        " WHERE t.hash = ? AND t.revoked IS NULL AND m.tracker_admin AND NOT m.blocked",
        (key,),
    )
    if row:
        stale = abs(tx.time - (row["last_used"] or 0)) >= LAST_USED_STEP
        return Caller("admin" if row["admin"] else "token", row["id"], manager=row["manager"], stale=stale)
    row = tx.one(
        "SELECT a.* FROM theeye_login l JOIN theeye_agent a ON a.id = l.agent WHERE l.hash = ? AND l.expires > ?",
        (key, tx.trusted_time),
    )
    if row is None:
        raise Refusal("unauthorized", "Unauthorized", **{"WWW-Authenticate": "Bearer"})
    return Caller("agent", row["id"], worker=WorkerCredentials(row["worker"], None), project=row["project"])


def note_use(tx: Tx, token: int) -> None:
    tx.execute("UPDATE theeye_token SET last_used = ? WHERE id = ?", (tx.time, token))


def log_in(tx: Tx, ask: Ask, caller: None) -> str:
    """POST /token: a token for the agent whose id and secret these are."""
    name, secret = ask.basic or ("", "")
    row = tx.one("SELECT id, secret_hash, worker FROM theeye_agent WHERE token = ?", (name.lower(),))
    given = tracker.digest(secret.encode("utf-8", "replace"))
    right = hmac.compare_digest(given, row["secret_hash"] if row else bytes(32)) and row is not None
    if not ask.guesser.check(f"agent {name.lower()[:200]}", secret, right, tx.uptime):
        raise Refusal("unauthorized", "Unauthorized", **{"WWW-Authenticate": "Basic"})
    token = secrets.token_hex(32)
    tx.execute(
        "DELETE FROM theeye_login WHERE agent = :agent AND (expires <= :now OR hash NOT IN"
        " (SELECT hash FROM theeye_login WHERE agent = :agent ORDER BY expires DESC LIMIT :most))",
        {"agent": row["id"], "now": tx.trusted_time, "most": MOST_LOGINS - 1},
    )
    values = (tracker.digest(token.encode()), row["id"], tx.trusted_time + LOGIN_LIFETIME)
    tx.execute("INSERT INTO theeye_login VALUES (?, ?, ?)", values)
    tx.seen.add(row["worker"])
    return token


# ── Hosts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_INFO = 65536  # bytes of what an agent tells about its machine
iso = functools.partial(plumbing.iso, timespec="milliseconds")  # as JavaScript writes a time


def host_id(project: int) -> str:
    """The id for clients of a project's host; it is the same before there is one, and for the next one."""
    return derived_id("host", project)


def find_host(tx: Tx, project: int) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM theeye_host WHERE project = ?", (project,))


def note_host(tx: Tx, project: int, hostname: Any, version: Any = None, info: Any = None) -> None:
    """The machine on which an agent runs was seen. The first one becomes the project's host."""
    note_seen(tx, checked_host(tx, project, hostname), project, hostname, version, info)


def checked_host(tx: Tx, project: int, hostname: Any) -> sqlite3.Row | None:
    """The project's host, which this machine is, or becomes. Another is refused: it would take the first one's jobs."""
    if not (isinstance(hostname, str) and 0 < len(hostname) <= 253 and hostname.isprintable()):
        raise Refusal("invalid", "hostname is required" if not hostname else "hostname is invalid")
    host = find_host(tx, project)
    if host and host["hostname"] != hostname:
        name = tracker.find_project(tx, project)["name"]
        says = f"project {name} is for the jobs of host {host['hostname']}; each host has a project of its own"
        raise Refusal("forbidden", f"hostname {hostname} is refused: {says}")
    return host


def note_seen(
    tx: Tx, host: sqlite3.Row | None, project: int, hostname: str, version: Any = None, info: Any = None
) -> None:
    """The project's host was seen, if that is news."""
    news = host is None or version is not None or info is not None
    if news or abs(tx.time - host["last_seen"]) >= LAST_SEEN_STEP:
        store_host(tx, project, hostname, version, None if info is None else tracker.encode(info).decode())


def store_host(tx: Tx, project: int, hostname: str, *said: Any) -> None:
    """Notes that the host was seen, and what its agent has said of itself (version, info), if it can be kept."""
    version, info = (text if isinstance(text, str) and len(text) <= MOST_INFO else None for text in said)
    tx.execute(
        "INSERT INTO theeye_host VALUES (:project, :hostname, ifnull(:version, ''), ifnull(:info, '{}'), :now, :now)"
        " ON CONFLICT DO UPDATE SET version = ifnull(:version, version), info = ifnull(:info, info), last_seen = :now",
        {"project": project, "hostname": hostname, "version": version, "info": info, "now": tx.time},
    )


def project_of_host(tx: Tx, host: Any) -> int | None:
    """The project that a client names by a host's id or name, or by its own number or name.

    Names come last, and those that anybody may choose not at all: else a stranger takes another host's place.
    """
    if isinstance(host, dict):
        host = host.get("id") or host.get("_id")
    host = str(host) if type(host) is int else host
    if not isinstance(host, str):
        return None
    if re.fullmatch("[0-9a-f]{24}|[0-9]{1,18}", host.lower()):
        projects = [row["id"] for row in tx.all("SELECT id FROM project")]
        if found := next((one for one in projects if host.lower() in (host_id(one), str(one))), None):
            return found
    rows = tx.all("SELECT project FROM theeye_host WHERE hostname = ?", (host,))
    if len(rows) == 1:
        return rows[0]["project"]
    row = tx.one(
        "SELECT id FROM project p WHERE name = ? AND trusted"
        " AND NOT EXISTS (SELECT 1 FROM testflinger_queue WHERE project = p.id)",
        (host,),
    )
    return row and row["id"]


HOST_FACTS = ("ip", "os_name", "os_version", "agent_version")
NO_TUNNEL = {"active": False, "url": "", "last_job": None, "last_job_id": ""}


def host_facts(said: Any) -> dict[str, str]:
    """What an agent tells of its machine: newer ones in `info`, older ones beside the hostname."""
    said = said if isinstance(said, dict) else {}
    said = {**said, **(said["info"] if isinstance(said.get("info"), dict) else {})}
    return {name: said[name] for name in HOST_FACTS if isinstance(said.get(name), str)}


def host_json(tx: Tx, project: int) -> dict[str, Any]:
    """A host as clients know it; a project that no agent has served yet is one with the project's name."""
    host = find_host(tx, project)
    info = host_facts(msgspec.json.decode(host["info"])) if host else {}
    created = iso(host["created"] if host else 0)
    return {
        "enable": True,
        "_id": host_id(project),
        "customer_name": tx.settings.theeye_customer,
        "customer_id": customer_id(tx),
        "creation_date": created,
        "last_update": iso(host["last_seen"] if host else 0),
        "hostname": host["hostname"] if host else tracker.find_project(tx, project)["name"],
        **{name: info.get(name, "") for name in ("ip", "os_name", "os_version")},
        "agent_version": info.get("agent_version") or (host["version"] if host else ""),
        "integrations": {"ngrok": {**NO_TUNNEL, "last_update": created}},
        "id": host_id(project),
    }


def list_hosts(tx: Tx, ask: Ask, caller: Caller) -> Part:
    """GET /host: the hosts on which a task can be made."""
    rows = tx.execute("SELECT id FROM project ORDER BY id")
    return selected(ask, rows, lambda row: host_json(tx, row["id"]))


# ── Objects ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Seen(NamedTuple):
    """How the events of a job are told here."""

    lifecycle: str
    state: str
    trigger_name: str | None


# The state of a job in the tracker, and what it is here; `seen` knows the finer points.
STATES = {
    "waiting": Seen("ready", "in_progress", None),
    "assigned": Seen("assigned", "in_progress", None),
    "succeeded": Seen("finished", "success", "success"),
    "failed": Seen("finished", "failure", "failure"),
    "timed_out": Seen("terminated", "timeout", "timeout"),
    "cancelled": Seen("canceled", "canceled", "canceled"),
}
NO_RESULT = {"code": None, "log": "", "lastline": "", "signal": None, "killed": False}
NO_RESULT |= {"times": {"seconds": 0, "nanoseconds": 0}}
# What an agent runs for a job that is not a script: agents can do nothing else.
NO_SCRIPT = b"""#!/bin/sh
echo "This job has no script, only a recipe: a worker that knows what to do with it has to take it" >&2
exit 1
"""
STUB = {
    "id": derived_id("script", "none"),
    "filename": "no-script",
    "md5": hashlib.md5(NO_SCRIPT, usedforsecurity=False).hexdigest(),
}


def seen(job: sqlite3.Row) -> Seen:
    """What the events of the job are called here. A reported state counts; cancelled while assigned is terminated."""
    event, reported = STATES[job["state"]], job["reported"]
    if job["state"] == "cancelled" and job["assignee"] is not None:
        return event._replace(lifecycle="terminated")
    failed = job["state"] == "failed" and tracker.tells_of(reported, tracker.FAILURES)
    if failed or (job["state"] == "succeeded" and reported):
        return event._replace(state=reported)
    return event


class Objects:
    """Makes the objects of one answer. What several of them need is looked up once."""

    def __init__(self, tx: Tx):
        self.customer = {"customer_id": customer_id(tx), "customer_name": tx.settings.theeye_customer}
        self.one = functools.cache(tx.one)
        self.host = functools.cache(functools.partial(host_json, tx))

    def task(self, row: sqlite3.Row) -> dict[str, Any]:
        """A task: a template, without its secret."""
        host, script = self.host(row["project"]), self.script(row)
        return {
            "id": row["token"],
            "_type": "ScriptTask",
            "type": "script",
            "name": row["name"],
            "description": row["description"],
            "host_id": host["id"],
            "host": host,
            "hostname": host["hostname"],
            "script_id": script and script["id"],
            "script": script,
            "script_runas": row["runas"],
            "task_arguments": tracker.declared_arguments(row),
            "output_parameters": [],
            "timeout": None if row["timeout"] is None else milliseconds(row["timeout"]),
            "env": msgspec.json.decode(row["env"]),
            **self.customer,
            "creation_date": iso(row["created"]),
            "last_update": iso(row["updated"]),
        }

    def script(self, row: sqlite3.Row) -> dict[str, Any] | None:
        """The script of a task or job as agents look for it: they keep a copy of that name, and compare the md5."""
        if row["script"] is None:
            return None
        script = self.one("SELECT token, md5 FROM script WHERE id = ?", (row["script"],))
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", row["name"])[:80].strip("._-") or "script"
        return {"id": script["token"], "filename": f"{plain}-{script['token']}", "md5": script["md5"]}

    def job(self, row: sqlite3.Row) -> dict[str, Any]:
        """A job, as one is shown that was asked for."""
        host, event = self.host(row["project"]), seen(row)
        template = self.one("SELECT * FROM template WHERE id = ?", (row["template"],))
        arguments = template and tracker.declared_arguments(template)
        script, ended = self.script(row), row["finished"] is not None
        output = msgspec.json.decode(row["output"]) if ended and row["output"] else None
        return {
            "id": row["token"],
            "name": row["name"],
            "_type": "ScriptJob",
            "task_id": template and template["token"],
            "task": template and {"id": template["token"], "task_arguments": arguments, "output_parameters": []},
            "host_id": host["id"],
            "host": host["id"],
            **self.customer,
            **self.user(row["manager"]),
            "lifecycle": event.lifecycle,
            "state": event.state,
            "origin": origin_of(row),
            "notify": True,
            "creation_date": iso(row["created"]),
            "last_update": iso(row["updated"]),
            "script_id": script and script["id"],
            "script_runas": row["runas"],
            "task_arguments_values": msgspec.json.decode(row["arguments"]),
            "output": shown_output(output),
            "result": shown_result(msgspec.json.decode(row["result"]), output) if ended and row["result"] else None,
            "trigger_name": event.trigger_name,
            "timeout": milliseconds(row["timeout"]),
            "env": msgspec.json.decode(row["env"]),
            **self.workflow(row),
        }

    def user(self, manager: int | None) -> dict[str, Any]:
        """Who made the job: the manager whose token it was, else the customer."""
        row = self.one("SELECT username FROM manager WHERE id = ?", (manager,))
        name = row["username"] if row else self.customer["customer_name"]
        user = derived_id("manager", manager) if row else derived_id("user", name)
        return {"user_id": user, "user": {"id": user, "username": name, "email": ""}}

    def workflow(self, row: sqlite3.Row) -> dict[str, Any]:
        """What the run of a workflow, and what its steps say of it."""
        if row["workflow"] is not None:
            workflow = self.one("SELECT token FROM workflow WHERE id = ?", (row["workflow"],))
            return {"_type": "WorkflowJob", "workflow_id": workflow["token"], "timeout": None}
        run = self.one(
            "SELECT w.token AS workflow_id, j.token AS workflow_job_id FROM job j JOIN workflow w ON w.id = j.workflow"
            " WHERE j.id = ?",
            (row["workflow_job"],),
        )
        return dict(run or {})

    def fetched_job(self, row: sqlite3.Row, **given: Any) -> dict[str, Any]:
        """A job as an agent needs it, with what it is `given` for this attempt."""
        script = self.script(row) or STUB
        runas = row["runas"] if row["runas"] and row["script"] else "%script%"
        given["timeout"] = min(milliseconds(row["timeout"]), LONGEST_TIMEOUT)
        return {**self.job(row), "script_id": script["id"], "script": script, "script_runas": runas, **given}


LONGEST_TIMEOUT = 2**31 - 1  # milliseconds: at more than that agents, which are made of JavaScript, kill at once
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# One string of an environment may have 128 KiB on Linux; all together have to share 2 MiB with the arguments.
LONGEST_VARIABLE, MOST_VARIABLES = 100_000, 500_000


def job_environment(tx: Tx, job: sqlite3.Row) -> dict[str, str]:
    """What a worker of another kind gives to the script of a job that clients of this system have made."""
    return supervisor_environment(tx, job) if is_ours(tx, job) else {}


def is_ours(tx: Tx, job: sqlite3.Row) -> bool:
    """Whether clients of this system have made a job: it, what it is a retry of, or the run of which it is a step."""
    while job["retry_of"] is not None or job["workflow_job"] is not None:
        job = tx.one("SELECT * FROM job WHERE id = ?", (job["retry_of"] or job["workflow_job"],))
    return job["origin"] == "theeye"


def supervisor_environment(tx: Tx, job: sqlite3.Row) -> dict[str, str]:
    """What scripts that were written for this system look for: JSON, each of them.

    Whoever runs the script adds THEEYE_API_URL, as it knows best where it finds the tracker.
    """
    objects = Objects(tx)
    template = objects.one("SELECT token FROM template WHERE id = ?", (job["template"],))
    workflow = objects.workflow(job)
    values = {
        "THEEYE_JOB": {"id": job["token"], "task_id": template and template["token"]},
        "THEEYE_JOB_USER": objects.user(job["manager"])["user"],
        "THEEYE_JOB_WORKFLOW": workflow and {"job_id": workflow["workflow_job_id"], "id": workflow["workflow_id"]},
        "THEEYE_ORGANIZATION_NAME": tx.settings.theeye_customer,
    }
    return {name: tracker.encode(value).decode() for name, value in values.items()}


def agents_environment(tx: Tx, job: sqlite3.Row, base: str) -> tuple[dict[str, str], list[str]]:
    """What a job's process finds: what its template sets, what scripts look for, its variables as worker.py names them.

    And the names of those that a process cannot be given.
    """
    env, variables = (msgspec.json.decode(job[name]) for name in ("env", "variables"))
    env |= {**supervisor_environment(tx, job), "THEEYE_API_URL": tracker.encode(base).decode()}
    given = [("", *pair) for pair in env.items()] + [("TRACKER_VAR_", *pair) for pair in variables.items()]
    fitting: dict[str, str] = {}
    left_out, size = [], 0
    for prefix, name, value in given:
        length = len((text := tracker.as_text(value)).encode())
        size += length
        if length >= LONGEST_VARIABLE or size >= MOST_VARIABLES or (prefix and not VARIABLE.fullmatch(name)):
            left_out.append(name)
            size -= length
        else:
            fitting.setdefault(prefix + name, text)  # what the template sets comes first
    return fitting, left_out


def milliseconds(seconds: float) -> int:
    """At least one: 0 would mean that there is no limit."""
    return max(1, round(1000 * seconds))


def origin_of(job: sqlite3.Row) -> str:
    """Who wanted the job, as it is told here. No manager stands behind a secret, but behind every token one does."""
    if job["workflow_job"] is not None:
        return "workflow"
    return "secret" if job["origin"] == "theeye" and job["manager"] is None else "user"


def shown_output(output: Any) -> list[str] | None:
    """What a job hands on, as its clients know it: texts, JSON where it is none."""
    if output is None:
        return None
    values = output if isinstance(output, list) else [output]
    return [value if isinstance(value, str) else tracker.encode(value).decode() for value in values]


def shown_result(result: Any, output: Any) -> dict[str, Any]:
    """A job's result in the form that clients know, whatever a worker of another kind gave; its output as a text."""
    if not isinstance(result, dict):
        text = tracker.as_text(result)
        return {**NO_RESULT, "log": text, "lastline": text.rpartition("\n")[2]}
    kept = {name: value for name, value in result.items() if name not in ("state", "output")}
    return {**NO_RESULT, **kept, **({} if output is None else {"output": tracker.as_text(output)})}


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUIRED = ("name", "type", "host", "script")  # of a new task
# What null means in these fields; in any other it says nothing.
EMPTY = {"timeout": None, "env": {}, "task_arguments": [], "script_runas": "", "description": ""}


def list_tasks(tx: Tx, ask: Ask, caller: Caller) -> Part:
    """GET /task"""
    rows = tx.execute("SELECT * FROM template WHERE deleted IS NULL ORDER BY id")
    return selected(ask, rows, Objects(tx).task)


def get_task(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """GET /task/{task}"""
    return Objects(tx).task(found(tx, ask, "task"))


def get_credentials(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """GET /task/{task}/credentials: the secret that opens this task alone."""
    task = found(tx, ask, "task")
    return {"id": task["token"], "secret": task["secret"]}


def create_task(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """POST /task"""
    return Objects(tx).task(store_task(tx, ask, None))


def update_task(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """PUT or PATCH /task/{task}: what is absent stays as it is, and a task stays on its host. `secret` rotates it.

    A whole task as GET shows it is understood, too.
    """
    task = found(tx, ask, "task")
    row, secret = store_task(tx, ask, task), ask.fields().get("secret")
    if secret is not None:  # anything but another 64 hexadecimal digits means: make one
        chosen = isinstance(secret, str) and re.fullmatch("[0-9a-f]{64}", secret) and secret != task["secret"]
        tracker.rotate_secret(tx, "template", task["id"], secret if chosen else None)
    return Objects(tx).task(row)


def delete_task(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """DELETE /task/{task}: its jobs go on, and stay."""
    tracker.mark_template_deleted(tx, found(tx, ask, "task"))
    return {}


def store_task(tx: Tx, ask: Ask, old: sqlite3.Row | None) -> sqlite3.Row:
    """A new task, or the old one with its changes, as stored. Names the fields that are missing or cannot be used."""
    fields = task_fields(ask)
    if missing := [name for name in REQUIRED if fields.get(name) == "" or (old is None and name not in fields)]:
        raise invalid_fields("EREQ", *missing)
    project = project_of_host(tx, fields["host"]) if "host" in fields else old["project"]
    if project is None or (old is not None and project != old["project"]):
        raise invalid_fields("EVALID", "host")
    if "script" in fields:
        fields["script"] = script_source(tx, fields["script"])
    body = template_body(fields)
    body.project = project
    try:
        return tracker.insert_template(tx, body) if old is None else tracker.save_template(tx, old, body)
    except TrackerError as error:
        if error.code not in ("invalid", "conflict"):
            raise
        column = re.split(r"[.\[]", error.field)[0]
        raise invalid_fields("EVALID", FIELD_NAMES.get(column, column)) from None


def task_fields(ask: Ask) -> dict[str, Any]:
    """The fields that are given; of a host or a script that is there a client may give the id alone."""
    given = {name: EMPTY.get(name) if value is None else value for name, value in ask.fields().items()}
    fields = {name: value for name, value in given.items() if value is not None or name in EMPTY}
    ids = {name: {"id": fields[f"{name}_id"]} for name in ("host", "script") if f"{name}_id" in fields}
    return {**ids, **fields}


def template_body(fields: dict[str, Any]) -> shapes.TemplateBody:
    """The fields of a task as those of a template. Names the fields that cannot be used, all of them."""
    values: dict[str, Any] = {}
    bad = []
    for name, (column, convert) in TASK_FIELDS.items():
        if name in fields:
            try:
                values[column] = convert(fields[name])
                msgspec.convert({column: values[column]}, shapes.TemplateBody)
            except (msgspec.ValidationError, ValueError, TypeError):
                bad.append(name)
    if bad:
        raise invalid_fields("EVALID", *bad)
    return msgspec.convert(values, shapes.TemplateBody)


def script_source(tx: Tx, value: Any) -> Any:
    """The script's source, given as that, or as an object with a source or with the id of one that is there.

    None when there is no such script; anything else stays as it is, for a check to find.
    """
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("source"), str):
        return value["source"]
    row = find_script(tx, str(value.get("id")).lower())
    return row and row["source"]


def with_script(value: Any) -> Any:
    """The command line that runs the script; one that does not say where the script goes ends with it."""
    if not isinstance(value, str) or not value.strip() or "%script%" in value:
        return value
    return f"{value.rstrip()} %script%"


def argument_definitions(value: Any) -> list[dict[str, Any]]:
    """Definitions of arguments. Old clients send a bare text for one that is fixed."""
    definitions = []
    for number, given in enumerate(msgspec.convert(value, list[str | dict[str, Any]])):
        said = {"type": "fixed", "value": given} if isinstance(given, str) else given
        kept = {"order": number, **{name: one for name, one in said.items() if one is not None}}
        kept["order"] = int(kept["order"][:18]) if isinstance(kept["order"], str) else kept["order"]
        definitions.append(kept)
    return definitions


def seconds(value: Any) -> float | None:
    """Milliseconds, at least one, also as text; null or nothing: the default."""
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not (given := float(value)) >= 1:  # nor is NaN
        raise ValueError(value)
    return given / 1000


def environment(value: Any) -> dict[str, str]:
    """Names and values; numbers and the like as they would be written."""
    values = {name: tracker.as_text(given) for name, given in msgspec.convert(value, dict[str, Any]).items()}
    if any(not name or "=" in name for name in values):
        raise ValueError(value)
    return values


# A task's fields: the template's column, and how the value becomes the column's.
# Tasks of other types (listeners, approvals, …) are none that a worker could run.
TASK_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("name", errors.unchanged),
    "type": ("type", functools.partial(msgspec.convert, type=Literal["script"])),
    "description": ("description", errors.unchanged),
    "script": ("script", errors.unchanged),
    "script_runas": ("runas", with_script),
    "task_arguments": ("arguments", argument_definitions),
    "timeout": ("timeout", seconds),
    "env": ("env", environment),
}
FIELD_NAMES = {column: name for name, (column, _) in TASK_FIELDS.items()} | {"project": "host", "api": "name"}


# ── Arguments and jobs ────────────────────────────────────────────────────────────────────────────────────────────────


def arguments_for(ask: Ask, template: sqlite3.Row | None) -> list[Any]:
    """The values for those arguments of the task that are not fixed, in their order.

    They are `task_arguments` in the body, else in the query, else a body that is itself an array; and what a service
    posts that knows nothing of tasks, an object, is the one argument of a task that takes one.
    """
    bare = isinstance(ask.body, list)
    values = None if bare else ask.body.get("task_arguments")
    if values is None:
        values = ask.query.get("task_arguments", ask.body if bare else None)
    needed = len(tracker.free_arguments(template)) if template else 0
    if values is None:
        values = [posted] if needed == 1 and (posted := payload(ask)) else []
    if not isinstance(values, list) or len(values) < needed:
        words = f"An array of length {needed} is required. Optionals must be null"
        raise Refusal("invalid", f"Invalid Task Arguments. {words}")
    return values


NAMING = {"task_arguments", "customer", "task"}  # members of a body that are none of a payload


def payload(ask: Ask) -> dict[str, Any]:
    """A body that is an object, without those members that say what is to be done with it."""
    ours = {"task_arguments", "customer"} if "task" in ask.path or "workflow" in ask.path else NAMING
    return {} if isinstance(ask.body, list) else {name: one for name, one in ask.body.items() if name not in ours}


def create_job(tx: Tx, ask: Ask, caller: Caller | None) -> dict[str, Any]:
    """POST /job, /task/{task}/job; with its secret: /job/secret/{secret}, /task/{task}/secret/{secret}/job"""
    task = found(tx, ask, "task")
    return triggered(tx, ask, caller, tracker.make_job, task, task)


def triggered(
    tx: Tx, ask: Ask, caller: Caller | None, make: Callable, of: sqlite3.Row, task: sqlite3.Row | None
) -> dict[str, Any]:
    """A new job of this task or workflow (which begins with the task), as its maker sees it: with its whole host."""
    arguments, objects = arguments_for(ask, task), Objects(tx)
    with tracker.charge_trigger(tx, of["project"]):
        job = make(tx, of, {}, arguments, "theeye", manager=caller and caller.manager)
    return {**objects.job(job), "host": objects.host(job["project"])}


def find_job(tx: Tx, ask: Ask) -> sqlite3.Row:
    """The job that the request names; below a workflow, the run of that one."""
    workflow = found(tx, ask, "workflow") if "workflow" in ask.path else None
    job = found(tx, ask, "job")
    if workflow is not None and job["workflow"] != workflow["id"]:
        raise Refusal("not_found", "job not found")
    return job


def get_job(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """GET /job/{job}, /workflows/{workflow}/job/{job}"""
    return Objects(tx).job(find_job(tx, ask))


def get_lifecycle(tx: Tx, ask: Ask, caller: Caller) -> str:
    """GET /job/{job}/lifecycle"""
    return seen(find_job(tx, ask)).lifecycle


def list_jobs(tx: Tx, ask: Ask, caller: Caller) -> Part:
    """GET /job: the newest first."""
    if caller.kind == "agent":
        raise Refusal("invalid", "hostname is required")
    return selected(ask, newest_jobs(tx, wanted(ask).where), Objects(tx).job)


def newest_jobs(tx: Tx, where: dict[str, str]) -> Iterator[sqlite3.Row]:
    """The jobs among which to look, by an index where there is one for a filter."""
    query = shapes.JobsQuery(limit=500)
    if "task_id" in where:
        row = tx.one("SELECT id FROM template WHERE token = ?", (where["task_id"].lower(),))
        query.template = row["id"] if row else 0
    live = {STATES[state].lifecycle: state for state in tracker.LIVE_STATES}  # the only ones with a state of their own
    query.state = live.get(where.get("lifecycle"))
    while True:
        rows, more = tracker.find_jobs(tx, None, query, "*")
        yield from rows
        if more is None:
            break
        query.before = more


def cancel_job(tx: Tx, ask: Ask, caller: Caller) -> None:
    """PUT /job/{job}/cancel, /workflows/{workflow}/job/{job}/cancel"""
    job = find_job(tx, ask)
    if job["finished"] is not None:
        raise Refusal("invalid", f"The job cannot be canceled: its lifecycle is {seen(job).lifecycle}")
    row = tx.one("SELECT name FROM theeye_token WHERE id = ?", (caller.id,))
    tracker.stop_job(tx, job, f"integration token {row['name']}")


# ── Workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_workflow(tx: Tx, ask: Ask, caller: Caller | None) -> dict[str, Any]:
    """POST /workflows/{workflow}/job; with its secret: /workflows/{workflow}/secret/{secret}, and /job below it.

    The start task has the given arguments.
    """
    workflow = found(tx, ask, "workflow")
    start = tracker.find_template(tx, workflow["start"])
    return triggered(tx, ask, caller, tracker.run_workflow, workflow, start)


def list_steps(tx: Tx, ask: Ask, caller: Caller) -> Part:
    """GET /workflows/{workflow}/job/{job}/jobs: the children, in the order in which they were started."""
    steps = "SELECT * FROM job WHERE workflow_job = ? ORDER BY id LIMIT ?"
    rows = tx.all(steps, (find_job(tx, ask)["id"], tracker.MOST_STEPS))
    return selected(ask, rows, Objects(tx).job)


# ── The agent ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_ENTRIES = 10_000  # of a job's log that a result's becomes; then several lines share one
LONGEST_ENTRY = 2**16  # characters
MOST_RESULT_LOG = 2**16  # characters of it, and of the last line, that stay in the result


def register_host(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """POST /host, /host/{hostname}: an agent tells on which machine it runs."""
    fields = ask.fields()
    note_host(tx, caller.project, ask.given("hostname"), fields.get("version"), host_facts(fields) or None)
    host = host_id(caller.project)
    connection = derived_id("connection", f"{caller.id} {host}")
    return {"host_id": host, "resource_id": derived_id("resource", host), "connection_id": connection}


def get_config(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """GET /agent/{hostname}/config: monitors for the agent to run. There are none: the tracker has jobs alone."""
    return {"workers": []}


def keep_alive(tx: Tx, ask: Ask, caller: Caller) -> None:
    """PUT /agent/{hostname}: every few seconds. A host that was deleted comes back by it."""
    tracker.authenticate(tx, caller.worker)  # it was seen, too
    note_host(tx, caller.project, ask.path["hostname"])


class Fetched(NamedTuple):
    """The jobs that an agent is given, and their tasks."""

    jobs: list[dict[str, Any]]
    tasks: list[tracker.Task]


def fetch_job(tx: Tx, ask: Ask, caller: Caller) -> Fetched:
    """GET /job?hostname=: the next job for the agent, assigned to its worker.

    A rate limit or a pause is no error to an agent: there is no job for it now. What is one leaves nothing noted.
    """
    hostname = ask.given("hostname")
    host = checked_host(tx, caller.project, hostname)
    tracker.authenticate(tx, caller.worker)
    tasks, objects = [], Objects(tx)
    if not tx.one("SELECT paused FROM worker WHERE id = ?", (caller.worker.id,))["paused"]:
        try:
            tasks = tracker.assign_tasks(tx, caller.worker, [caller.project], jobs_only=True).tasks
        except TrackerError as error:
            if error.code != "too_fast":
                raise
    note_seen(tx, host, caller.project, hostname)
    return Fetched([fetched_job(tx, ask, objects, tracker.find_job(tx, task.job.id)) for task in tasks], tasks)


NOTHING_FETCHED = Fetched([], [])


def fetched_job(tx: Tx, ask: Ask, objects: Objects, job: sqlite3.Row) -> dict[str, Any]:
    """A job as its agent gets it. What its environment cannot hold is named in its log, at INFO: that is no warning."""
    env, left_out = agents_environment(tx, job, ask.base)
    if left_out:
        said = f"left out of the environment, which cannot hold them: {', '.join(left_out)}"
        tracker.add_job_line(tx, job["id"], said[:2000])
    return objects.fetched_job(job, id=id_of_attempt(job), env=env)


def download_script(tx: Tx, ask: Ask, caller: Caller) -> bytes:
    """GET /script/{script}/download: its bytes. For an agent, only what its project's jobs are made of."""
    if ask.path["script"] == STUB["id"]:
        return NO_SCRIPT
    row = found(tx, ask, "script")
    uses = "SELECT 1 FROM {} WHERE script = :script AND project = :project LIMIT 1"
    values = {"script": row["id"], "project": caller.project}
    if caller.kind == "agent" and not any(tx.one(uses.format(table), values) for table in ("template", "job")):
        raise Refusal("not_found", "script not found")
    return row["source"].encode()


def put_result(tx: Tx, ask: Ask, caller: Caller) -> dict[str, Any]:
    """PUT /job/{job}: how it went. Ignored when the job is not assigned to this agent (any more)."""
    job = find_job(tx, ask)
    if job["project"] != caller.project:
        raise Refusal("not_found", "job not found")
    result = read_result(ask.fields())
    tracker.authenticate(tx, caller.worker)
    if is_awaited(ask, caller, job):
        wrong = went_wrong(job, result)
        log_result(tx, job, caller.worker.id, result.get("log"), wrong)
        looked_at = {name: result.get(name) for name in ("state", "output", "lastline", "killed")}
        report = tracker.read_report(msgspec.Raw(tracker.encode(looked_at)))  # of which not all may be kept
        failed = wrong or report.killed or tracker.tells_of(report.state, tracker.FAILURES)
        outcome = FAIL if failed else OK
        release = ReleaseBody(job["task"], outcome, output=stored_result(tx, job, result, report))
        tracker.release_task(tx, caller.worker, release)
    return Objects(tx).job(tracker.find_job(tx, job["token"]))


def is_awaited(ask: Ask, caller: Caller, job: sqlite3.Row) -> bool:
    """Whether the job is assigned to this agent, in the attempt of which it reports."""
    held = job["state"] == "assigned" and job["assignee"] == caller.worker.id and job["task"] is not None
    return held and ask.path["job"].lower() == id_of_attempt(job)


def read_result(fields: dict[str, Any]) -> dict[str, Any]:
    """The result as workers give it: the state beside the rest. What a script wrote is a text, whatever it seems."""
    result = fields.get("result")
    if result is None:
        raise Refusal("invalid", "result is required")
    data = result.get("data") if isinstance(result, dict) else result
    if not (isinstance(result, dict) and isinstance(data, dict | None)):
        raise Refusal("invalid", "result is invalid: it looks like {state, data}")
    texts = {
        name: tracker.as_text(said) for name in ("log", "lastline") if (said := (data or {}).get(name)) is not None
    }
    return {**(data or {}), **texts, "state": result.get("state")}


def went_wrong(job: sqlite3.Row, result: dict[str, Any]) -> str:
    """Why the job has failed, whatever its last line says; agents look at nothing else. Empty: it has not."""
    if job["script"] is None:
        return "it has no script, and agents of theeye.io can run nothing else"
    if signal := result.get("signal"):
        return f"killed by {tracker.as_text(signal)[:100]}"
    code = result.get("code")
    return "" if code in (None, "", 0, "0") else f"exit status {tracker.as_text(code)[:100]}"


def forgives(tx: Tx, job: int, report: tracker.Report) -> bool:
    """Whether a job that is released as failed has not, for clients of this system, if one of these made it.

    They go by what the script says, and never by its exit status. That it ran at all is to be seen from its result.
    """
    row = tx.one("SELECT * FROM job WHERE id = ?", (job,))
    if row["script"] is None or report.result is None or not is_ours(tx, row):
        return False
    result = msgspec.json.decode(report.result)
    ended = isinstance(result, dict) and (result.get("code") or result.get("signal"))
    return bool(ended) and not report.killed and not tracker.tells_of(report.state, tracker.FAILURES)


def stored_result(tx: Tx, job: sqlite3.Row, result: dict[str, Any], report: tracker.Report) -> msgspec.Raw:
    """What is kept as the job's result. What is left out because it is too large never changes the job's state.

    The end of a long log is enough here: all of it is in the job's log, where it is also told what is left out.
    """
    most, lost = 1024 * tx.settings.max_body, ""
    end = min(MOST_RESULT_LOG, most // 16)
    ends = {name: text[-end:] for name in ("log", "lastline") if isinstance(text := result.get(name), str)}
    if ends.get("log") != result.get("log"):
        ends["log"] = with_note(tx, job, ends["log"])
    said = {"state": report.state or "success", "killed": report.killed}
    kept = {**result, **ends}
    if kept.get("lastline") != result.get("lastline"):  # it was read as a whole
        kept |= {**said, "output": report.output and msgspec.Raw(report.output.encode())}
    if len(encoded := tracker.encode(kept)) > most:
        others = {name: value for name, value in kept.items() if name != "output"}
        encoded, lost = tracker.encode({**others, **said}), "its output is"
    if len(encoded) > most:
        encoded, lost = tracker.encode({**ends, **said}), "all but its state and the end of its log is"
    if lost:
        message = f"the result is larger than {tx.settings.max_body:,} KiB: {lost} left out"
        tracker.add_job_line(tx, job["id"], message, "warn")
    return msgspec.Raw(encoded)


def with_note(tx: Tx, job: sqlite3.Row, end: str) -> str:
    """The end of a log that is cut, with where its beginning is in place of some of it."""
    place = f"{tx.settings.root_path}/ui/jobs/{job['token']}"
    note = f"[this is the end of the log; the job's log, at {place} and /job/log/{job['token']}, has more]\n"
    return note + end[len(note) :]


def log_result(tx: Tx, job: sqlite3.Row, worker: int, text: Any, wrong: str) -> None:
    """An agent sends what its script wrote with the result; so it becomes the log, with what went wrong behind it."""
    entries = []
    if isinstance(text, str) and text:
        entries = [shapes.TaskEntry(lines, tx.time, "info", "script") for lines in log_entries(text.removesuffix("\n"))]
    if wrong:
        entries.append(shapes.TaskEntry(wrong, tx.time, "error", "script"))
    if entries:
        if lost := len(entries) - fitting(tx, job, entries):
            said = f"the log is larger than {tx.settings.max_job_log:,} KiB: its first {lost:,} entries are left out"
            tracker.add_job_line(tx, job["id"], said)
            job = tracker.find_job(tx, job["token"])
        tracker.add_job_lines(tx, job, worker, entries[lost:])


def fitting(tx: Tx, job: sqlite3.Row, entries: list[shapes.TaskEntry]) -> int:
    """How many of the entries, from the last one on, there is room for in the job's log."""
    room = 1024 * tx.settings.max_job_log - job["log_size"]
    sizes = (len(entry.message) + len(entry.scope) + joblog.LINE_SIZE for entry in reversed(entries))
    return sum(size < room for size in itertools.accumulate(sizes))


def log_entries(text: str) -> Iterator[str]:
    """The lines of a log; when they are very many, several at a time. Longer ones than an entry can be are split."""
    least = len(text) // MOST_ENTRIES if text.count("\n") >= MOST_ENTRIES else 0
    start = 0
    while start <= len(text):
        end = text.find("\n", start + least, start + LONGEST_ENTRY)
        end = min(len(text) if end < 0 else end, start + LONGEST_ENTRY)
        yield text[start:end]
        start = end if text[end : end + 1] not in ("", "\n") else end + 1


# ── Routes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TOKEN, ADMIN, AGENT = frozenset({"token", "admin"}), frozenset({"admin"}), frozenset({"agent"})
ANYBODY = frozenset()  # the secret in the path, or the password, says who may


class Entry(NamedTuple):
    """A route: its method, its path after the customer, its function, and whose call it is."""

    method: str
    path: str
    function: Callable[[Tx, Ask, Any], Any]
    who: frozenset[str]
    reads: bool = False
    large: bool = False  # its body may be as large as a job's log
    implied: bool = False  # the customer is that of the task, workflow or token, if none is named


ROUTES = (
    Entry("GET", "/task", list_tasks, TOKEN, reads=True),
    Entry("POST", "/task", create_task, ADMIN),
    Entry("GET", "/task/{task}", get_task, TOKEN, reads=True),
    Entry("PUT", "/task/{task}", update_task, ADMIN),
    Entry("PATCH", "/task/{task}", update_task, ADMIN),
    Entry("DELETE", "/task/{task}", delete_task, ADMIN),
    Entry("GET", "/task/{task}/credentials", get_credentials, TOKEN, reads=True),
    Entry("POST", "/task/{task}/job", create_job, TOKEN),
    Entry("POST", "/task/{task}/secret/{secret}/job", create_job, ANYBODY, implied=True),
    Entry("POST", "/job", create_job, TOKEN),
    Entry("POST", "/job/secret/{secret}", create_job, ANYBODY),
    Entry("GET", "/job", list_jobs, TOKEN | AGENT, reads=True),
    Entry("GET", "/job?hostname", fetch_job, AGENT),  # the one route that needs a look at the query
    Entry("GET", "/job/{job}", get_job, TOKEN, reads=True),
    Entry("PUT", "/job/{job}", put_result, AGENT, large=True),
    Entry("GET", "/job/{job}/lifecycle", get_lifecycle, TOKEN, reads=True),
    Entry("PUT", "/job/{job}/cancel", cancel_job, TOKEN),
    Entry("POST", "/workflows/{workflow}/job", run_workflow, TOKEN, implied=True),
    Entry("POST", "/workflows/{workflow}/secret/{secret}/job", run_workflow, ANYBODY, implied=True),
    Entry("POST", "/workflows/{workflow}/secret/{secret}", run_workflow, ANYBODY, implied=True),
    Entry("GET", "/workflows/{workflow}/job/{job}", get_job, TOKEN, reads=True, implied=True),
    Entry("GET", "/workflows/{workflow}/job/{job}/jobs", list_steps, TOKEN, reads=True, implied=True),
    Entry("PUT", "/workflows/{workflow}/job/{job}/cancel", cancel_job, TOKEN, implied=True),
    Entry("GET", "/host", list_hosts, TOKEN, reads=True),
    Entry("POST", "/token", log_in, ANYBODY),
    Entry("POST", "/host", register_host, AGENT),
    Entry("POST", "/host/{hostname}", register_host, AGENT),
    Entry("GET", "/agent/{hostname}/config", get_config, AGENT, reads=True),
    Entry("PUT", "/agent/{hostname}", keep_alive, AGENT),
    Entry("GET", "/script/{script}/download", download_script, TOKEN | AGENT, reads=True),
)
PATTERNS = {entry.path: compile_path(entry.path)[0] for entry in ROUTES}
ROOTS = {entry.path.split("/")[1].partition("?")[0] for entry in ROUTES}
LOOKED_AT = tracker.looked_at()


def answer(tx: Tx, ask: Ask, entry: Entry) -> tuple[Any, Caller | None]:
    """What is answered, and to whom. Checked in this order: who calls, the customer, what the caller may."""
    caller = authenticate(tx, ask) if entry.who else None
    if entry.function is not log_in:
        check_customer(tx, ask, entry.implied)
    check_kind(caller, entry)
    return entry.function(tx, ask, caller), caller


def check_kind(caller: Caller | None, entry: Entry) -> None:
    """Refuses an agent what is for programs, and the other way round."""
    if caller and caller.kind not in entry.who:
        raise Refusal("forbidden", "forbidden")


class Door(BaseRoute):
    """The paths of this dialect, of which those that it does not know are refused in its own way.

    What the tracker itself or its pages have below the same first names stays theirs.
    """

    def __init__(self, running: tracker.Tracker):
        self.handle = tracker.Endpoint(running, self.reply, TheEyeCall)
        self.customer = running.settings.theeye_customer
        paths = [row.path.split("/")[1:] for row in tracker.API]
        self.native = {tuple(parts[:2]) for parts in paths}
        self.taken = {parts[0] for parts in paths if parts[0] not in ROOTS} | {
            "api",
            "ui",
            "v1",
            "openapi.json",
            "metrics",
            "health",
        }
        if self.customer in self.taken | ROOTS:
            raise TrackerError("start", f"theeye_customer: {self.customer} is the beginning of paths of other kinds")

    def matches(self, scope: dict) -> tuple[Match, dict]:
        if scope["type"] != "http":
            return Match.NONE, {}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        first, second, *_ = [*path.split("/")[1:], "", ""]
        if first in ROOTS:
            ours = (first, second) not in self.native
        else:
            ours = first == self.customer or (first not in self.taken and first and second in ROOTS)
        return Match.FULL if ours else Match.NONE, {}

    async def reply(self, call: TheEyeCall) -> Response:
        """What the route's function returns. A body that may be large is taken in only from those who may send it."""
        (entry, path), db = self.find(call.scope), call.tracker.db
        if call.scope["method"] == "HEAD" and not entry.reads:
            return await LOOKED_AT(call)
        ask = read_head(call, path)
        if entry.large:
            check_kind(await db.read(authenticate, ask), entry)
        try:
            ask = ask._replace(body=await self.read_body(call, ask, entry))
            content, caller = await (db.read if entry.reads else db.write)(answer, ask, entry)
            if content == NOTHING_FETCHED:
                await tracker.hold_poll(call, caller.worker.id, (caller.project,))
            if caller and caller.stale:
                await db.write(note_use, caller.id)
            if content is None:
                return nothing()
            if isinstance(content, Fetched):
                fetched = as_json({"jobs": content.jobs})
                return tracker.HandedOut(fetched, db, caller.worker.id, tracker.attempts_at(content.tasks))
            if isinstance(content, Part):
                headers = {"Warning": f'199 tracker "the list is cut: {content.cut}"'} if content.cut else {}
                return as_json(content.objects, headers=headers)
            return as_bytes(content, "application/octet-stream") if isinstance(content, bytes) else as_json(content)
        except RecursionError:
            raise not_content("Nested too deeply") from None

    async def read_body(self, call: TheEyeCall, ask: Ask, entry: Entry) -> dict[str, Any] | list[Any]:
        """The body. A result that is too large is refused, and ends its attempt: agents send it once.

        Who has no token is told so before what is wrong with it.
        """
        if entry.who and may_be_long(call):
            await call.tracker.db.read(authenticate, ask)
        try:
            return await read_body(call, entry.large, tracker.STRANGERS_BODY if entry.function is log_in else None)
        except TrackerError as error:
            if entry.who:
                await call.tracker.db.read(authenticate, ask)
            if entry.large and error.code == "too_large":
                said = {"log": f"the result is refused: {error.message}", "lastline": "the result is too large"}
                ask = ask._replace(body={"result": {"state": "failure", "data": said}})
                await call.tracker.db.write(answer, ask, entry)
            raise

    def find(self, scope: dict) -> tuple[Entry, dict[str, str]]:
        """The route, and what is in its path; of HEAD that of GET. Refuses what there is none for."""
        fitting, method = self.methods_at(scope), scope["method"]
        if not fitting:
            missing = f"{scope['path'].removeprefix(scope.get('root_path', ''))[:1000]} does not exist"
            raise Refusal("not_found", {"code": "ResourceNotFound", "message": missing, "ok": False})
        if (found := fitting.get("GET" if method == "HEAD" else method)) is None:
            content = {"code": "MethodNotAllowed", "message": f"{method} is not allowed", "ok": False}
            raise Refusal("method_not_allowed", content, allow=tracker.allowing(fitting))
        return found

    def methods_at(self, scope: dict) -> dict[str, tuple[Entry, dict[str, str]]]:
        """By the methods of a path its routes, each with what is in the path."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        first, named = path.split("/")[1], {}
        if first not in ROOTS:
            named, path = {"customer": first}, path[len(first) + 1 :]
        gets = scope["method"] in ("GET", "HEAD")
        if gets and path == "/job" and re.search(rb"(^|&)hostname=", scope["query_string"]):
            path = "/job?hostname"
        fitting = ((entry, PATTERNS[entry.path].fullmatch(path)) for entry in ROUTES)
        return {entry.method: (entry, {**match.groupdict(), **named}) for entry, match in fitting if match}


def routes(running: tracker.Tracker) -> list[BaseRoute]:
    """All of this dialect's paths."""
    return [Door(running)]


# ── Manager pages ─────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_SHOWN = 500  # tokens, agents or hosts on one page; nobody has so many


class TokenForm(msgspec.Struct):
    name: Name
    admin: bool = False


class AgentForm(msgspec.Struct):
    project: tracker.Id
    alias: Name


@tracker.needs(tracker.ADMIN)
def tokens_page(tx: Tx, caller: tracker.Caller) -> dict[str, Any]:
    """The integration tokens."""
    rows = tx.all(
        "SELECT t.*, m.username, m.tracker_admin FROM theeye_token t JOIN manager m ON m.id = t.manager"
        f" ORDER BY t.revoked IS NOT NULL, t.id DESC LIMIT {MOST_SHOWN}"
    )
    return {"tokens": rows}


def project_gone(tx: Tx, project: int) -> bool:
    """Deletes the agents and the host of a project that was deleted. False: that was all."""
    tx.execute("DELETE FROM theeye_login WHERE agent IN (SELECT id FROM theeye_agent WHERE project = ?)", (project,))
    for table in "theeye_agent", "theeye_host":
        tx.execute(f"DELETE FROM {table} WHERE project = ?", (project,))
    return False


def needed_workers(tx: Tx) -> list[int]:
    """The workers of agents."""
    return [row["worker"] for row in tx.all("SELECT worker FROM theeye_agent")]


def needed_managers(tx: Tx) -> list[int]:
    """The managers who have made tokens that are in use: those would go with them."""
    return [row["manager"] for row in tx.all("SELECT DISTINCT manager FROM theeye_token WHERE revoked IS NULL")]


@tracker.needs(tracker.ADMIN, acts=True)
def create_token(tx: Tx, caller: tracker.Caller, body: TokenForm) -> dict[str, Any]:
    """A new integration token. It is in the answer and nowhere else."""
    token = secrets.token_hex(32)
    tx.execute(
        "INSERT INTO theeye_token (name, hash, admin, manager, created) VALUES (?, ?, ?, ?, ?)",
        (body.name, tracker.digest(token.encode()), body.admin, caller.manager.id, tx.time),
    )
    return {"name": body.name, "token": token}


@tracker.needs(tracker.ADMIN, acts=True)
def revoke_token(tx: Tx, caller: tracker.Caller, token: int) -> None:
    """Ends an integration token at once."""
    changed = "UPDATE theeye_token SET revoked = ? WHERE id = ? AND revoked IS NULL"
    if not tx.execute(changed, (tx.time, token)).rowcount:
        raise TrackerError("not_found", f"No valid integration token {token}")


@tracker.needs(tracker.ADMIN)
def agents_page(tx: Tx, caller: tracker.Caller) -> dict[str, Any]:
    """The agents, and the hosts on which they run."""
    agents = tx.all(
        "SELECT a.*, w.alias, w.last_seen, w.paused, p.name AS project_name FROM theeye_agent a"
        " JOIN worker w ON w.id = a.worker JOIN project p ON p.id = a.project"
        f" ORDER BY a.id DESC LIMIT {MOST_SHOWN}"
    )
    return {
        "agents": [{**one, "held": next(iter(pages.held_by(tx, one["worker"])), None)} for one in agents],
        "hosts": tx.all(
            "SELECT h.*, p.name AS project_name FROM theeye_host h JOIN project p ON p.id = h.project"
            f" ORDER BY h.last_seen DESC, h.project LIMIT {MOST_SHOWN}"
        ),
        "host_id": host_id,
        "projects": tx.all("SELECT id, name FROM project ORDER BY name LIMIT 1000"),
    }


@tracker.needs(tracker.ADMIN, acts=True)
def create_agent(tx: Tx, caller: tracker.Caller, body: AgentForm) -> dict[str, Any]:
    """A new agent for the jobs of a project, and its worker. Its secret is in the answer and nowhere else."""
    project = tracker.find_project(tx, body.project)
    worker, _ = tracker.insert_worker(tx, tracker.clean_alias(tx, body.alias))
    tracker.grant_access(tx, body.project, worker, assign=True, submit=False)
    token, secret = tracker.new_token(), secrets.token_hex(32)
    tx.execute(
        "INSERT INTO theeye_agent (token, secret_hash, worker, project, created) VALUES (?, ?, ?, ?, ?)",
        (token, tracker.digest(secret.encode()), worker, body.project, tx.time),
    )
    return {"alias": body.alias, "token": token, "secret": secret, "project": project["name"]}


@tracker.needs(tracker.ADMIN, acts=True)
def delete_agent(tx: Tx, caller: tracker.Caller, agent: int) -> None:
    """Deletes an agent: it is logged out, and its worker has no access any more."""
    row = tx.one("DELETE FROM theeye_agent WHERE id = ? RETURNING worker, project", (agent,))
    if row is None:
        raise TrackerError("not_found", f"No agent {agent}")
    tx.execute("DELETE FROM theeye_login WHERE agent = ?", (agent,))
    tx.execute("DELETE FROM worker_access WHERE worker = ? AND project = ?", tuple(row))


@tracker.needs(tracker.ADMIN, acts=True)
def delete_host(tx: Tx, caller: tracker.Caller, project: int) -> None:
    """Deletes the host of a project: the next that is heard of takes its place."""
    if not tx.execute("DELETE FROM theeye_host WHERE project = ?", (project,)).rowcount:
        raise TrackerError("not_found", f"Project {project} has no host")


def workflow_frame(tx: Tx, caller: tracker.Caller, project: int) -> dict[str, Any]:
    """What a workflow can be made of: the templates that the manager may edit, those of the project first."""
    rows = tx.all(
        "SELECT t.id, t.name, t.project, p.name AS project_name FROM template t JOIN project p ON p.id = t.project"
        " WHERE t.deleted IS NULL ORDER BY t.project <> ?, p.name, t.name LIMIT 2000",
        (project,),
    )
    return {
        "templates": {
            row["id"]: row["name"] if row["project"] == project else f"{row['name']} ({row['project_name']})"
            for row in pages.told_apart(rows)
            if caller.role(row["project"]) & EDIT
        },
        "endings": [(ending, STATES[state].trigger_name) for state, ending in tracker.ENDINGS.items()],
        "empty_rows": 3,  # of the form, for further edges
    }


@pages.of_project(EDIT)
def new_workflow_page(tx: Tx, caller: tracker.Caller, project: sqlite3.Row) -> dict[str, Any]:
    """The form of a new workflow."""
    return workflow_frame(tx, caller, project["id"])


@pages.of_project(EDIT, tracker.WORKFLOW)
def workflow_page(tx: Tx, caller: tracker.Caller, workflow: sqlite3.Row) -> dict[str, Any]:
    """A workflow: its edges, how it is triggered, its last runs."""
    start = tracker.find_template(tx, workflow["start"])
    frame = workflow_frame(tx, caller, workflow["project"])
    shown = tracker.workflow_shown(tx, workflow)
    for template in {shown.start, *(end for edge in shown.edges for end in (edge.template, edge.target))}:
        frame["templates"].setdefault(template, f"template {template}, deleted or not yours")
    runs = f"SELECT {tracker.LISTED_JOB} FROM job WHERE workflow = ? ORDER BY id DESC LIMIT 20"
    return {
        **frame,
        "workflow": workflow,
        "edges": shown.edges,
        "shown": workflow_form_of(shown),
        "arguments": tracker.free_arguments(start) if start else [],
        "runs": tx.all(runs, (workflow["id"],)),
    }


def typed_edges(visit: pages.Visit) -> list[dict[str, str]]:
    """The rows of a workflow's form, also those in which something is left open."""
    names = ("template", "ending", "target")
    columns = [visit.fields.get(f"edge_{name}", []) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=False)]


def begun(edge: dict[str, str]) -> bool:
    """Whether the row says something: every one has an ending."""
    return bool(edge["template"] or edge["target"])


def workflow_form_of(workflow: shapes.Workflow) -> shapes.WorkflowBody:
    """What the form of a workflow shows."""
    return shapes.WorkflowBody(name=workflow.name, start=workflow.start, edges=workflow.edges)


class WorkflowForm(shapes.WorkflowBody):
    """A workflow that there is, with what of it (as JSON) its form showed."""

    shown: str = ""


@tracker.needs(EDIT, tracker.WORKFLOW)
def save_workflow(tx: Tx, caller: tracker.Caller, workflow: sqlite3.Row, body: WorkflowForm) -> None:
    """Changes what was changed in the form; the edges are one thing."""
    changed = pages.changed_fields(body, shapes.WorkflowBody, workflow_form_of(tracker.workflow_shown(tx, workflow)))
    tracker.update_workflow(tx, caller, workflow, shapes.WorkflowBody(**changed))


def workflow_form(visit: pages.Visit, kind: type = shapes.WorkflowBody) -> shapes.WorkflowBody:
    """The form of a workflow. A row of which something is left open is no edge yet, but it is no slip to be ignored."""
    edges = typed_edges(visit)
    for number, edge in enumerate(edges, 1):
        if begun(edge) and not all(edge.values()):
            raise TrackerError("invalid", f"row {number} needs a template and what follows it", "edges")
    fields = {"name": visit.field("name"), "start": visit.field("start"), "edges": list(filter(begun, edges))}
    shown = {"shown": visit.field("shown")} if kind is WorkflowForm else {}
    return errors.convert({**fields, **shown}, kind, strict=False)


async def show_new_workflow(visit: pages.Visit) -> Response:
    """The form of a new workflow, with the edges that were typed when it is refused."""
    values, typed = await visit.read(new_workflow_page, visit.path_id("project")), typed_edges(visit)
    return await visit.render("theeye_workflow_new.html", {**values, "edges": list(filter(begun, typed))})


async def show_workflow(visit: pages.Visit) -> Response:
    """The page of a workflow, once with its new secret; or with the edges that were typed into a refused form."""
    values, fresh = await visit.read(workflow_page, visit.path_id("workflow")), visit.fresh
    if typed := typed_edges(visit):
        values["edges"] = list(filter(begun, typed))
    path = f"/workflows/{values['workflow']['token']}/secret/{fresh or 'SECRET'}/job"
    paste = ready_to_paste(visit, path, values["workflow"]["name"], values["arguments"])
    return await visit.render("theeye_workflow.html", {**values, "paste": paste})


def ready_to_paste(visit: pages.Visit, path: str, label: str, arguments: list[shapes.Argument]) -> dict[str, str]:
    """A curl line and an HTML button that trigger what is at the path, with the arguments' labels as their values."""
    given = [one.label or f"argument {number}" for number, one in enumerate(arguments, 1)]
    customer, address = visit.tracker.settings.theeye_customer, visit.base + path
    body = tracker.encode({"customer": customer, "task_arguments": given}).decode()
    pairs = [("customer", customer), *(("task_arguments[]", value) for value in given)]
    form = [
        f'<form action="{html.escape(address)}" method="POST">',
        *(f'  <input type="hidden" name="{name}" value="{html.escape(value)}">' for name, value in pairs),
        f'  <input type="submit" value="{html.escape(label)}">',
        "</form>",
    ]
    curl = f"curl -sS -X POST -H 'Content-Type: application/json' -d {shlex.quote(body)} {shlex.quote(address)}"
    return {"curl": curl, "button": "\n".join(form)}


@tracker.needs(EDIT)
def create_workflow(tx: Tx, caller: tracker.Caller, project: sqlite3.Row, body: shapes.WorkflowBody) -> shapes.Workflow:
    body.project = project["id"]
    return tracker.create_workflow(tx, caller, body)


async def show_made_workflow(visit: pages.Visit, created: shapes.Workflow) -> Response:
    """On to its page, which shows its secret this once."""
    return visit.reveal(f"/ui/workflows/{created.id}", created.secret)


async def show_rotated_secret(visit: pages.Visit, secret: str) -> Response:
    """The same, with the new secret."""
    return visit.reveal(f"/ui/workflows/{visit.path_id('workflow')}", secret)


def run_form(visit: pages.Visit) -> shapes.TriggerBody:
    """The arguments that were typed, those left empty being null."""
    return shapes.TriggerBody(arguments=[value or None for value in visit.fields.get("argument", [])])


async def reveal(visit: pages.Visit, fresh: Any) -> Response:
    """Shows the result of an action this once, on the page whose form it was."""
    return visit.reveal(visit.here, fresh)


@tracker.needs(tracker.ADMIN)
def about_token(tx: Tx, caller: tracker.Caller, token: int) -> dict[str, Any]:
    row = tx.one("SELECT name FROM theeye_token WHERE id = ? AND revoked IS NULL", (token,))
    if row is None:
        raise TrackerError("not_found", f"No valid integration token {token}")
    says = "Programs that come with it are refused from now on. What they have triggered goes on."
    return pages.question(f"Revoke the token {row['name']}?", says, "Revoke", "/ui/theeye/tokens")


@tracker.needs(tracker.ADMIN)
def about_agent(tx: Tx, caller: tracker.Caller, agent: int) -> dict[str, Any]:
    row = tx.one("SELECT alias FROM theeye_agent a JOIN worker w ON w.id = a.worker WHERE a.id = ?", (agent,))
    if row is None:
        raise TrackerError("not_found", f"No agent {agent}")
    says = (
        "It is logged out, and gets no job any more. A job that it is doing times out. Its worker stays in the lists."
    )
    return pages.question(f"Delete the agent {row['alias']}?", says, "Delete", "/ui/theeye/agents")


@tracker.needs(tracker.ADMIN)
def about_host(tx: Tx, caller: tracker.Caller, project: int) -> dict[str, Any]:
    row = tx.one("SELECT hostname FROM theeye_host WHERE project = ?", (project,))
    if row is None:
        raise TrackerError("not_found", f"No host of project {project}")
    says = "Then the project belongs to the next host that its agents tell of. Stop the agents of this one first."
    return pages.question(f"Delete the host {row['hostname']}?", says, "Delete", "/ui/theeye/agents")


@tracker.needs(EDIT, tracker.WORKFLOW)
def about_workflow_secret(tx: Tx, caller: tracker.Caller, workflow: sqlite3.Row) -> dict[str, Any]:
    says = "The present one opens nothing any more, wherever it is in use: in buttons, scripts and mails."
    here = f"/ui/workflows/{workflow['id']}"
    return pages.question(f"A new secret for the workflow {workflow['name']}?", says, "New secret", here)


@tracker.needs(EDIT, tracker.WORKFLOW)
def about_workflow(tx: Tx, caller: tracker.Caller, workflow: sqlite3.Row) -> dict[str, Any]:
    says = "Nothing can trigger it any more, and its secret is lost. What it has begun ends with the steps of now."
    then, cancel = f"/ui/projects/{workflow['project']}/templates", f"/ui/workflows/{workflow['id']}"
    return pages.question(f"Delete the workflow {workflow['name']}?", says, "Delete", then, cancel)


PAGES = [
    Page(
        "/ui/theeye/tokens",
        "theeye_tokens.html",
        tokens_page,
        [
            Action("", create_token, TokenForm, shows=reveal),
            Action("/{token}/revoke", revoke_token, says="The token is revoked.", asks=(pages.QUESTION, about_token)),
        ],
    ),
    Page(
        "/ui/theeye/agents",
        "theeye_agents.html",
        agents_page,
        [
            Action("", create_agent, AgentForm, shows=reveal),
            Action("/{agent}/delete", delete_agent, says="The agent is deleted.", asks=(pages.QUESTION, about_agent)),
            Action(
                "/ui/theeye/hosts/{project}/delete",
                delete_host,
                says="The host is deleted.",
                asks=(pages.QUESTION, about_host),
            ),
        ],
    ),
    Page("/ui/projects/{project}/workflows", pages.moved_to("/ui/projects/{project}/templates#workflows")),
    Page(
        "/ui/projects/{project}/workflows/new",
        show_new_workflow,
        actions=[Action("", create_workflow, workflow_form, shows=show_made_workflow)],
    ),
    Page(
        "/ui/workflows/{workflow}",
        show_workflow,
        actions=[
            Action("", save_workflow, functools.partial(workflow_form, kind=WorkflowForm), says="Saved."),
            Action(
                "/rotate",
                tracker.rotate_workflow_secret,
                shows=show_rotated_secret,
                asks=(pages.QUESTION, about_workflow_secret),
            ),
            Action("/run", tracker.trigger_workflow, run_form, says="The workflow has begun."),
            Action(
                "/delete",
                tracker.delete_workflow,
                to="/ui/",
                says="The workflow is deleted.",
                asks=(pages.QUESTION, about_workflow),
            ),
        ],
    ),
]
