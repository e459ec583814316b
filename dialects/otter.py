"""The Otter dialect: trigger a job template, ask how its job is doing, read the job's log. Answers are plain text.

    GET or POST /api/jobs/trigger?template=NAME&key=KEY   the new job's token and nothing else, not even a newline
    GET or POST /api/jobs/status?token=TOKEN&key=KEY      Pending, Executing, Succeeded, Warning or Error
    GET or POST /api/jobs/logs?token=TOKEN&key=KEY        one line for each log entry: DEBUG, INFO, WARN or ERROR: text

What flows where:

    request ─► read_parameters (query, form or JSON body, header) ─► trigger | status | logs ─► core functions ─► text

A template is used through this door if it is marked for the API; one with a key wants that key for its jobs, too. The
checks, in their order: a parameter is missing (400), no such template (404) or job (400), the template is not for the
API (403), the key does not match (403), too fast (429), a variable is refused (400). All other parameters of a trigger
are the job's variables. Callers prove themselves by the key alone, never by a cookie: that is why a GET may trigger.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from sqlite3 import Row
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import tracker
from tracker import Call, TrackerError, Tx

METHODS = ("GET", "POST")
NOT_VARIABLES = ("template", "token", "key")
MOST_PARAMETERS = 1000
PAGE_LINES = 500  # log entries that one transaction reads
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

# What this dialect calls a job's state; status_of knows the two finer points.
STATUS = {
    "waiting": "Pending",
    "assigned": "Executing",
    "succeeded": "Succeeded",
    "failed": "Error",
    "timed_out": "Error",
    "cancelled": "Error",
}
PREFIXES = dict.fromkeys(("fatal", "panic", "error"), "ERROR")
PREFIXES |= {"warn": "WARN", "info": "INFO", "debug": "DEBUG", "trace": "DEBUG"}


def routes(running: tracker.Tracker) -> list[Route]:
    """This dialect's routes. They take every method, to refuse the wrong ones in plain text."""
    handlers = {"trigger": trigger, "status": status, "logs": logs}
    return [Route(f"/api/jobs/{name}", TextEndpoint(running, handler)) for name, handler in handlers.items()]


class TextEndpoint(tracker.Endpoint):
    """An endpoint whose handler makes a Response, and whose errors are plain text: the reason, for a person."""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        response = await self.response(Call(scope, receive, self.tracker))
        await response(scope, receive, send)

    async def response(self, call: Call) -> Response:
        method = call.scope["method"]
        try:
            if method not in METHODS:  # HEAD is one of them: it must not trigger anything
                raise TrackerError("method_not_allowed", f"{method} is not possible here: use GET or POST")
            return await self.handler(call)
        except TrackerError as error:
            return refusal(error)
        except Exception:
            tracker.log.exception("%s %s failed", method, call.scope["path"])
            return refusal(TrackerError("internal", "Internal error"))


def refusal(error: TrackerError) -> Response:
    """An error as this dialect shows it, with the status and the Retry-After that it has everywhere."""
    reply = tracker.error_reply(error)
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    if reply.status == 405:
        headers["allow"] = ", ".join(METHODS)
    return PlainTextResponse(error.message, reply.status, {**HEADERS, **headers})


# ── Parameters ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_parameters(call: Call) -> dict[str, Any]:
    """All that a request says, by name. The body wins over the query; the last one of a repeated name counts.

    `key` is the key wherever it was given: in the body, else in the query, else in the header. An empty one is none.
    """
    query, body = read_form(call.scope["query_string"], "query"), await read_body(call)
    header = (call.header(b"x-apikey") or b"").decode(errors="replace")
    return {**query, **body, "key": body.get("key") or query.get("key") or header}


async def read_body(call: Call) -> dict[str, Any]:
    """The parameters in the body: multipart, JSON (so declared, or an object by its looks), and else a form."""
    body = await call.body()
    kind = (call.header(b"content-type") or b"").lower()
    if kind.startswith(b"multipart/form-data"):
        return await read_multipart(call, body)
    if body.lstrip().startswith(b"{") or (body and b"json" in kind):
        return read_json(body)
    return read_form(body, "body")  # whatever it was called: curl -d and scripts say all sorts of things


def read_json(body: bytes) -> dict[str, Any]:
    """The members of a JSON object, with API_Key under the name that the key has elsewhere."""
    try:
        members = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrackerError("invalid", f"body: not valid JSON: {error}") from None
    if not isinstance(members, dict):
        raise TrackerError("invalid", "body: must be a JSON object")
    key = members.pop("API_Key", None) or members.get("key")
    return {**members, "key": key}


def read_form(text: bytes, place: str) -> dict[str, Any]:
    """The fields of a form or of a query, empty ones too: those are variables with an empty value."""
    try:
        return dict(parse_qsl(text.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS))
    except ValueError as error:
        many = "Max number" in str(error)
        problem = f"more than {MOST_PARAMETERS} parameters" if many else "not valid form encoding in UTF-8"
        raise TrackerError("invalid", f"{place}: {problem}") from None


async def read_multipart(call: Call, body: bytes) -> dict[str, Any]:
    """The fields of a multipart form. A file is no variable, and refused."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    limits = {"max_files": 0, "max_fields": MOST_PARAMETERS, "max_part_size": len(body)}
    try:
        form = await MultiPartParser(Headers(raw=call.scope["headers"]), stream(), **limits).parse()
    except (MultiPartException, FormParserError) as error:
        raise TrackerError("invalid", f"body: {error}") from None
    return dict(form.multi_items())


def required(parameters: dict[str, Any], name: str) -> str:
    if text := tracker.as_text(parameters.get(name)):
        return text
    raise TrackerError("invalid", f"{name}: is required")


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def trigger(call: Call) -> Response:
    """Makes a job of a template."""
    parameters = await read_parameters(call)
    return PlainTextResponse(await call.tracker.db.write(trigger_template, parameters), headers=HEADERS)


def trigger_template(tx: Tx, parameters: dict[str, Any]) -> str:
    """The token of a new job of the template that the parameters name, with all other parameters as variables."""
    name = required(parameters, "template")
    template = tracker.api_template(tx, name)
    if template is None:
        raise TrackerError("not_found", f"template: there is no template {name[:100]!r}")
    refuse_strangers(template, parameters)
    tracker.charge_trigger(tx, template["project"])
    variables = {name: value for name, value in parameters.items() if name not in NOT_VARIABLES}
    return tracker.make_job(tx, template, variables, [], "otter")["token"]


def refuse_strangers(template: Row, parameters: dict[str, Any]) -> None:
    """Refuses those for whom the template's jobs are not: everybody, or those who do not have its key."""
    if not template["api"]:
        raise TrackerError("forbidden", "template: is not usable through the API")
    key = tracker.as_text(parameters["key"])
    if not tracker.key_matches(template, key):
        raise TrackerError("forbidden", "key: does not match the template's" if key else "key: is required")


async def status(call: Call) -> Response:
    """Tells how a job is doing."""
    job = await call.tracker.db.read(job_asked_for, await read_parameters(call))
    return PlainTextResponse(status_of(job), headers=HEADERS)


def job_asked_for(tx: Tx, parameters: dict[str, Any]) -> Row:
    """The job that the parameters name, whoever made it, if its template lets this caller see it."""
    job = tracker.find_job(tx, required(parameters, "token"))
    template = job and tracker.template_of_job(tx, job)
    if template is None:
        raise TrackerError("invalid", "token: there is no such job")
    refuse_strangers(template, parameters)
    return job


def status_of(job: Row) -> str:
    if job["state"] == "waiting" and job["started"] is not None:
        return STATUS["assigned"]  # back in the queue, for another attempt
    if job["state"] == "succeeded" and job["warned"]:
        return "Warning"
    return STATUS[job["state"]]


async def logs(call: Call) -> Response:
    """Sends a job's log, as it is read: a long one is held neither in memory nor in one transaction."""
    job, entries = await call.tracker.db.read(begin_log, await read_parameters(call))
    return StreamingResponse(log_lines(call.tracker.db, job, entries), media_type="text/plain", headers=HEADERS)


def begin_log(tx: Tx, parameters: dict[str, Any]) -> tuple[int, list[Row]]:
    """The job that the parameters name, and the first entries of its log."""
    job = job_asked_for(tx, parameters)["id"]
    return job, tracker.job_log(tx, job, 0, PAGE_LINES)


async def log_lines(db: tracker.Database, job: int, entries: list[Row]) -> AsyncIterator[str]:
    while entries:
        yield "".join(map(log_line, entries))
        entries = await db.read(tracker.job_log, job, entries[-1]["id"], PAGE_LINES)


def log_line(entry: Row) -> str:
    r"""One line, also of a message with several: its line ends are spelled \n, so that it cannot pose as more entries.

    Other control characters are spelled out, too, and tabs stay.
    """
    prefix = PREFIXES[tracker.LEVEL_NAMES[entry["level"]]]
    message = "\t".join(map(tracker.in_one_line, entry["message"].split("\t")))
    return f"{prefix}: {message}\n"
