"""The Otter dialect: trigger a job template, ask how its job is doing, read the job's log. Answers are plain text.

    GET or POST /api/jobs/trigger?template=NAME&key=KEY   the new job's token and nothing else, not even a newline
    GET or POST /api/jobs/status?token=TOKEN&key=KEY      Pending, Executing, Succeeded, Warning or Error
    GET or POST /api/jobs/logs?token=TOKEN&key=KEY        one line for each log entry: DEBUG, INFO, WARN or ERROR: text

What flows where:

    request ─► read_parameters (query, form or JSON body, header) ─► trigger | status | logs ─► core functions ─► text

A template is used through this door if it is marked for the API; one with a key wants that key for its jobs, too. The
checks, in their order: a parameter is missing (400), no such template (404) or job (400), the template is not for the
API (403), the key does not match (403), too fast (429), a variable is refused (400). All other parameters of a trigger
are the job's variables, or its arguments, by their labels. Callers prove themselves by the key alone, never by a
cookie: that is why a GET may trigger. Without a key, no page of another site may.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from sqlite3 import Row
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route

import tracker
from dialects.plumbing import HEADERS, as_text
from errors import form_pairs, refuse_many_parts, unreadable
from logs import LEVEL_NAMES
from streams import Stream
from tracker import STRANGERS_BODY, Call, Guesser, TrackerError, Tx

NOT_VARIABLES = ("template", "token", "key")
MOST_PARAMETERS = 1000
MOST_KEYLESS = 2**16  # bytes of the parameters of a job that needs no key
PAGE_LINES = 500  # log entries that one transaction reads

# What this dialect calls a job's state; status_of knows the two finer points.
STATUS = {"waiting": "Pending", "assigned": "Executing", "succeeded": "Succeeded"}
STATUS |= dict.fromkeys(("failed", "timed_out", "cancelled"), "Error")
PREFIXES = dict.fromkeys(("fatal", "panic", "error"), "ERROR")
PREFIXES |= {"warn": "WARN", "info": "INFO", "debug": "DEBUG", "trace": "DEBUG"}


def routes(running: tracker.Tracker) -> list[Route]:
    """This dialect's routes. They take every method, to refuse the wrong ones in plain text."""
    heads = {trigger: {"HEAD": tracker.looked_at(b"text/plain; charset=utf-8")}}
    endpoints = {
        f"/api/jobs/{handler.__name__}": tracker.by_method({"GET": handler, "POST": handler, **heads.get(handler, {})})
        for handler in (trigger, status, logs)
    }
    return [Route(path, tracker.Endpoint(running, handler, TextCall)) for path, handler in endpoints.items()]


class TextCall(Call):
    """A call of this dialect. Its refusals are plain text: the reason, for a person."""

    door = "otter"
    minds = "nothing"  # but for a template without a key: trigger_template

    async def refuse(self, error: TrackerError) -> Response:
        return as_text(error.message, tracker.STATUS[error.code], tracker.error_headers(error))


# ── Parameters ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_parameters(call: Call, most: int | None = None) -> dict[str, Any]:
    """All that a request says (in KiB at most), by name. The body wins over the query, the last of a name over others.

    `key` is the key wherever it was given: in the body, else in the query, else in the header. An empty one is none.
    """
    query, body = read_form(call.scope["query_string"], "query"), await read_body(call, most)
    header = (call.header(b"x-apikey") or b"").decode(errors="replace")
    return {**query, **body, "key": body.get("key") or query.get("key") or header}


async def read_body(call: Call, most: int | None) -> dict[str, Any]:
    """The parameters in the body: multipart, JSON (so declared, or an object by its looks), and else a form.

    A blank one, or null, is as good as none.
    """
    kind = (call.header(b"content-type") or b"").lower()
    if kind.startswith(b"multipart/form-data"):  # a file is no variable, and refused
        form = await call.multipart(most or call.tracker.settings.max_body, max_files=0, max_fields=MOST_PARAMETERS)
        return {name: values[-1] for name, values in form.items()}
    body = (await call.body(most)).removeprefix(codecs.BOM_UTF8)
    if body.strip() in (b"", b"null"):
        return {}
    if body.lstrip().startswith(b"{") or b"json" in kind:
        return await call.decoded(body, read_json)
    return await call.decoded(body, read_form, "body")  # curl -d and scripts say all sorts of things of what it is


def read_json(body: bytes) -> dict[str, Any]:
    """The members of a JSON object, with API_Key under the name that the key has elsewhere."""
    refuse_many_parts(body)
    try:
        members = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrackerError("invalid", unreadable(body, error), "body") from None
    if not isinstance(members, dict):
        raise TrackerError("invalid", "must be a JSON object", "body")
    key = members.pop("API_Key", None) or members.get("key")
    return {**members, "key": key}


def read_form(text: bytes, place: str) -> dict[str, Any]:
    """The fields of a form or of a query, empty ones too: those are variables with an empty value."""
    try:
        return dict(form_pairs(text, MOST_PARAMETERS))
    except ValueError as error:
        many = "Max number" in str(error)
        problem = f"more than {MOST_PARAMETERS} parameters" if many else "not valid form encoding in UTF-8"
        raise TrackerError("invalid", problem, place) from None


def required(parameters: dict[str, Any], name: str) -> str:
    if text := tracker.as_text(parameters.get(name)):
        return text
    raise TrackerError("invalid", "is required", name)


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def trigger(call: Call) -> Response:
    """Makes a job of a template."""
    parameters = await read_parameters(call)
    who = call.guesser, call.source, call.other_site()
    return as_text(await call.tracker.db.write(trigger_template, parameters, *who))


def trigger_template(
    tx: Tx, parameters: dict[str, Any], guesser: Guesser, source: str, elsewhere: TrackerError | None
) -> str:
    """The token of a new job of the template that the parameters name, with all other parameters as variables.

    `elsewhere` is said when another site's page has caused this, and shows no key.
    """
    name = required(parameters, "template")
    template = tracker.api_template(tx, name)
    if template is None:
        raise TrackerError("not_found", f"there is no template {name[:100]!r}", "template")
    refuse_strangers(tx, template, parameters, guesser)
    if template["key_hash"] is None:
        if elsewhere:
            raise elsewhere
        check_keyless(tx, parameters, source)
    given = {name: value for name, value in parameters.items() if name not in NOT_VARIABLES}
    variables, arguments = divided(template, given)
    with tracker.charge_trigger(tx, template["project"]):
        return tracker.make_job(tx, template, variables, arguments, "otter")["token"]


def check_keyless(tx: Tx, parameters: dict[str, Any], source: str) -> None:
    """Bounds what somebody may have done who shows no key: how large it is, and how often."""
    if source and len(tracker.encode(parameters)) > MOST_KEYLESS:
        raise TrackerError("too_large", f"more than {MOST_KEYLESS // 1024} KiB of variables take a key", "body")
    tx.limits.make_without_key(source)


def divided(template: Row, given: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The variables and the arguments of a job: whoever calls here knows of variables only, so both go by their names.

    An argument that is not given has the value that a form would offer. Refuses one that has none.
    """
    variables, arguments = dict(given), []
    declared = {variable.name for variable in tracker.declared_variables(template)}
    names = zip(tracker.argument_names(template), tracker.free_arguments(template), strict=True)
    for number, (label, argument) in enumerate(names, 1):
        place = f"argument {number}"
        name = place if label in NOT_VARIABLES or place in given else label
        if name not in given and argument.value is None:
            raise TrackerError("invalid", "is required", name)
        arguments.append(given.get(name, argument.value))
        if name not in declared:
            variables.pop(name, None)
    return variables, arguments


def refuse_strangers(tx: Tx, template: Row, parameters: dict[str, Any], guesser: Guesser) -> None:
    """Refuses those for whom the template's jobs are not: everybody, or those who do not have its key."""
    if not template["api"]:
        raise TrackerError("forbidden", "is not usable through the API", "template")
    key = tracker.as_text(parameters["key"])
    if template["key_hash"] is not None and not key:
        raise TrackerError("forbidden", "is required", "key")
    if not guesser.check(f"template {template['id']}", key, tracker.key_matches(template, key), tx.uptime):
        raise TrackerError("forbidden", "does not match the template's", "key")


async def status(call: Call) -> Response:
    """Tells how a job is doing."""
    job = await call.tracker.db.read(job_asked_for, await read_parameters(call, STRANGERS_BODY), call.guesser)
    return as_text(status_of(job))


def job_asked_for(tx: Tx, parameters: dict[str, Any], guesser: Guesser) -> Row:
    """The job that the parameters name, whoever made it, if its template lets this caller see it."""
    job = tracker.find_job(tx, required(parameters, "token"))
    template = job and tracker.template_of_job(tx, job)
    if template is None:
        raise TrackerError("invalid", "there is no such job", "token")
    refuse_strangers(tx, template, parameters, guesser)
    return job


def status_of(job: Row) -> str:
    if job["state"] == "waiting" and job["started"] is not None:
        return STATUS["assigned"]  # back in the queue, for another attempt
    if job["state"] == "succeeded" and job["warned"]:
        return "Warning"
    return STATUS[job["state"]]


async def logs(call: Call) -> Response:
    """Sends a job's log, as it is read: a long one is held neither in memory nor in one transaction."""
    parameters = await read_parameters(call, STRANGERS_BODY)
    job_id, entries = await call.tracker.db.read(begin_log, parameters, call.guesser)
    return Stream(log_lines(call.tracker.db, job_id, entries), media_type="text/plain", headers=HEADERS)


def begin_log(tx: Tx, parameters: dict[str, Any], guesser: Guesser) -> tuple[int, list[Row]]:
    """The id of the job that the parameters name, and the first entries of its log."""
    job_id = job_asked_for(tx, parameters, guesser)["id"]
    return job_id, tracker.job_log(tx, job_id, 0, PAGE_LINES)


async def log_lines(db: tracker.Database, job_id: int, entries: list[Row]) -> AsyncIterator[str]:
    """The lines of a job's log from these entries on, a transaction's share of them at a time."""
    while entries:
        yield "".join(map(log_line, entries))
        entries = await db.read(tracker.job_log, job_id, entries[-1]["id"], PAGE_LINES)


def log_line(entry: Row) -> str:
    """An entry, or as many as its message has lines, of whatever ends: each with its level, so that none can pose.

    Control characters are spelled out, and tabs stay.
    """
    prefix = PREFIXES[LEVEL_NAMES[entry["level"]]]
    lines = (line.split("\t") for line in entry["message"].splitlines() or [""])
    return "".join(prefix + ": " + "\t".join(map(tracker.in_one_line, parts)) + "\n" for parts in lines)
