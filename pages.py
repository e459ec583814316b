"""What each manager page shows: the functions behind templates/, the forms, and the table of pages.

    request ─► endpoint ─► Visit (a Call with a form) ─► one function of a transaction ─► plain values ─► template
                                         │
                                         └─► an action: form ─► one domain function ─► on to a page, with a message

Values only, no HTML, and no say in the state of a task: what changes something is a function of tracker.py. Loaded by
create_app, as a dialect is. Sections (search for "# ── "):

    Charts and statistics · Visits · Handlers · Overview and projects · Tasks · Submit · Templates and jobs ·
    Workers and access · Logs · Account and administration · The table of pages · Words and templates
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hmac
import inspect
import io
import itertools
import math
import operator
import os
import re
import secrets
import shlex
import sqlite3
import sys
import types
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urlencode

import itsdangerous
import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import UNSET, Meta, UnsetType
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

import browsers
import budgets
import charts
import deletion
import errors
import failures
import forms
import heard
import moving
import names
import notices
import openapi
import packing
import pauses
import projects
import shapes
import tracker
import workers
from database import SCHEMA_VERSION
from errors import TrackerError
from logs import LEVEL_NAMES, LEVELS, READABLE_LINES, act_details, log_reader
from shapes import INT64_MAX, Id, JobState
from streams import Stream
from tracker import ADMIN, EDIT, LOGIN, MAINTENANCE, MANAGE_ACCESS, READ, SECRET, SEES, Call, Caller, Tx, encode

# ── Charts and statistics ─────────────────────────────────────────────────────────────────────────────────────────────

RATE_WINDOW = 300  # seconds over which the present rate is taken


UNDONE = [name for name in tracker.COUNT_COLUMNS if name not in ("failed_task_count", "closed_task_count")]
RANGES = {"1h": 3600, "24h": 86400, "7d": 7 * 86400, "all": None}  # seconds


def pace(tx: Tx, project: sqlite3.Row) -> dict[str, float | None]:
    """Closed tasks per second over the last minutes, the seconds until none is left at that rate, and the share done.

    None: unknown. The share is known when as many tasks as now were there minutes ago, or none is left.
    """
    row = tx.one(
        "SELECT time_stamp, closed_task_count, closed_task_count + new_task_count + awaiting_verification_count"
        " + failed_task_count AS total FROM snapshot WHERE project = ? AND time_stamp BETWEEN ? AND ?"
        " ORDER BY time_stamp LIMIT 1",
        (project["id"], tx.time - max(RATE_WINDOW, 2 * tx.settings.snapshot_interval), tx.time - 5),
    )
    rate = row and max(0, project["closed_task_count"] - row["closed_task_count"]) / (tx.time - row["time_stamp"])
    left = sum(project[name] for name in UNDONE)
    eta = 0 if left == 0 else left / rate if rate and not project["paused"] else None
    total = left + project["closed_task_count"] + project["failed_task_count"]
    known = total and (left == 0 or (row and row["total"] == total))
    share = project["closed_task_count"] / total if known else None
    return {"rate": rate, "eta": eta, "left": left, "total": total, "share": share}


SAMPLED = """
    WITH RECURSIVE moment (t) AS (SELECT :start UNION ALL SELECT t + :step FROM moment WHERE t + :step < :stop)
    SELECT s.* FROM moment CROSS JOIN snapshot s ON s.project = :project AND s.time_stamp = (SELECT max(time_stamp)
        FROM snapshot WHERE project = :project AND time_stamp > t - :step AND time_stamp <= t)
    ORDER BY t
"""


def sampled_snapshots(tx: Tx, project: int, moments: range, sql: str = SAMPLED) -> list[sqlite3.Row]:
    """The last snapshot before each of some evenly spread moments, the oldest first, however many there are between."""
    values = {"project": project, "start": moments.start, "step": moments.step, "stop": moments.stop}
    return tx.all(sql, values)


# One row and not one for each moment: between two rows a reader may have to wait for the interpreter.
SAMPLED_COUNTS = f"SELECT json_group_array(json_array(time_stamp, closed_task_count)) FROM ({SAMPLED})"


def spark(tx: Tx, project: int) -> Any:
    """The throughput of the last hour as a small line."""
    moments = charts.grid(tx.time - RANGES["1h"], tx.time, 60)  # a point a minute
    return drawn_spark(sampled_snapshots(tx, project, moments, SAMPLED_COUNTS)[0][0], moments)


@functools.lru_cache(maxsize=256)
def drawn_spark(counts: str, moments: range) -> Any:
    """Drawn once for all who look at it, for it changes once in a minute."""
    rates = charts.rates(msgspec.json.decode(counts))
    return charts.sparkline(rates, moments[0], moments[-1], label="Throughput of the last hour")


def fitting_range(tx: Tx, project: sqlite3.Row) -> str:
    """The time that a project's charts show unless another one is chosen: as long as it is old, but a day at most.

    All of it, too, when nothing has been done for a day.
    """
    day_old = tx.one(
        "SELECT closed_task_count FROM snapshot WHERE project = ? AND time_stamp <= ? ORDER BY time_stamp DESC LIMIT 1",
        (project["id"], tx.time - RANGES["24h"]),
    )
    return "all" if day_old is None or day_old[0] == project["closed_task_count"] else "24h"


FIRST_SNAPSHOT = "SELECT * FROM snapshot WHERE project = ? ORDER BY time_stamp LIMIT 1"


CHARTS = ("throughput", "backlog")


def project_charts(tx: Tx, project: sqlite3.Row, span: str) -> dict[str, Any]:
    """Throughput and backlog over a time of RANGES."""
    end, began = tx.time, tx.one(FIRST_SNAPSHOT, (project["id"],))
    first = began and began["time_stamp"]
    start = end - RANGES[span] if RANGES[span] else end if first is None else max(0, min(first, end))
    rows = sampled_snapshots(tx, project["id"], charts.grid(start, end))
    if rows and start <= first < rows[0]["time_stamp"]:  # or else what was done in the first step would be lost
        rows.insert(0, began)
    present = {  # what a snapshot would say now: a chart must not end a minute ago
        "time_stamp": end,
        "new_task_count": sum(project[name] for name in UNDONE) - project["awaiting_verification_count"],
        **{name: project[name] for name in tracker.COUNT_COLUMNS},
        "failure_count": failures.count_failures(tx, project["id"]),
    }
    sampled = rows if len(rows) > 1 else [*rows, present]  # the rate of a few seconds is mostly chance
    closed, failing = (
        charts.rates((row["time_stamp"], row[name]) for row in sampled)
        for name in ("closed_task_count", "failure_count")
    )
    for rates in closed, failing:
        if rates and first == sampled[0]["time_stamp"]:  # its first step is drawn from where it began
            rates.insert(0, (first, rates[0][1]))
    rows.append(present)
    left = [(row["time_stamp"], row["new_task_count"] + row["awaiting_verification_count"]) for row in rows]
    failed = [(row["time_stamp"], row["failed_task_count"]) for row in rows]
    throughput = [charts.Series("Closed", closed, "series-1", "area")]
    if present["failure_count"]:
        throughput.append(charts.Series("Failed attempts", failing, "series-bad"))
    backlog = [charts.Series("Left to do", left, "series-2", "area"), charts.Series("Failed", failed, "series-bad")]
    return {
        "throughput": charts.time_chart(throughput, start, end, title="Throughput", per_second=True),
        "backlog": charts.time_chart(backlog, start, end, title="Backlog"),
    }


YOUNG = 600  # seconds: the charts of a project that began so lately are fetched more often
YOUNG_STEP = 10


def charts_version(tx: Tx, project: int, span: str) -> str:
    """Which state of the charts it is: a new one with each snapshot, and of a young project every few seconds."""
    first, last = tx.one(  # none of a future that a wrong clock has shown: that would be the last one for long
        "SELECT (SELECT min(time_stamp) FROM snapshot WHERE project = ?1), max(time_stamp)"
        " FROM snapshot WHERE project = ?1 AND time_stamp <= ?2",
        (project, tx.time),
    )
    young = first is None or tx.time - first < YOUNG
    return f"{span}-{tx.time // YOUNG_STEP if young else last}"


# When who holds a task is free: a job ends at its own limit of time, and may give signs of life until then; the lease
# of a plain task can be extended.
ENDS = "iif(task.job IS NULL, task.deadline_uptime, task.assigned_uptime + task.max_assign_time)"


def holders(tx: Tx, project: int) -> list[sqlite3.Row]:
    """Who holds the most tasks of the project now, since when the oldest of them, and in how many seconds all end.

    Of a hundred, if a worker has more. `plain`: whether a lease among them can be extended.
    """
    held = (
        f"SELECT {{}} FROM (SELECT assign_time, job, {ENDS} AS ends FROM task"
        " WHERE project = t.project AND assignee = t.worker AND assignee IS NOT NULL ORDER BY id LIMIT 100)"
    )
    since, ends, plain = (held.format(f"MAX({one})") for one in ("-assign_time", "ends", "job IS NULL"))
    return tx.all(
        f"SELECT w.id, w.alias, t.held_task_count, -({since}) AS since, ({ends}) - ? AS left, ({plain}) AS plain"
        " FROM (SELECT * FROM tally WHERE project = ? AND held_task_count > 0"
        " ORDER BY held_task_count DESC, worker LIMIT 10) t JOIN worker w ON w.id = t.worker"
        " ORDER BY t.held_task_count DESC, w.id",
        (tx.uptime, project),
    )


HELD = f"""
    SELECT task.id, task.job, task.project, task.assign_time, {ENDS} - :uptime AS left, task.job IS NULL AS plain,
        j.token, j.name, p.name AS project_name
    FROM tally y JOIN task ON task.project = y.project AND task.assignee = y.worker AND task.assignee IS NOT NULL
    JOIN project p ON p.id = task.project LEFT JOIN job j ON j.id = task.job
    WHERE y.worker = :worker AND y.held_task_count > 0 ORDER BY y.project, task.id LIMIT :most
"""


def held_by(tx: Tx, worker: int | None, most: int = 1) -> list[sqlite3.Row]:
    """The first tasks that a worker holds, with the seconds after which each ends."""
    values = {"worker": worker, "uptime": tx.uptime, "most": most}
    return tx.all(HELD, values) if worker is not None else []


LAST_DAY = "t.last_day_task_count + t.closed_task_count - t.rolled_task_count"


def leaders(tx: Tx, project: int, measure: str) -> list[sqlite3.Row]:
    """Who has closed the most tasks of the project: of all time, or of the last 24 full hours and this one."""
    return tx.all(
        f"SELECT w.id, w.alias, {measure} AS closed FROM tally t JOIN worker w ON w.id = t.worker"
        f" WHERE t.project = ? AND {measure} > 0 ORDER BY closed DESC, w.id LIMIT 10",
        (project,),
    )


def runtimes(tx: Tx, project: int) -> sqlite3.Row:
    """The shortest, mean and longest time from assignment to the closing release, in seconds; None without any."""
    return tx.one(
        "SELECT MIN(runtime_min) AS shortest, SUM(runtime_total) / nullif(SUM(closed_task_count), 0) AS mean,"
        " MAX(runtime_max) AS longest FROM tally WHERE project = ?",
        (project,),
    )


def recent_operations(tx: Tx, project: int) -> list[sqlite3.Row]:
    """What managers have lately done to many tasks of the project at once."""
    return tx.all(
        "SELECT o.*, m.username FROM operation o LEFT JOIN manager m ON m.id = o.manager"
        " WHERE o.project = ? AND o.manager IS NOT NULL AND o.accepted ORDER BY o.id DESC LIMIT 5",
        (project,),
    )


def like(text: str) -> str:
    """A pattern for LIKE … ESCAPE '\\' that finds the text anywhere, whatever characters it has."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


def typed_number(text: str) -> int | None:
    """The number that a text is, as pages show it: 1,234 or #12. None: it is no number."""
    digits = text.strip().removeprefix("#").replace(",", "")
    return int(digits) if re.fullmatch(r"-?[0-9]{1,20}", digits, re.ASCII) else None


def typed_id(text: str) -> int | None:
    """The id that a text is. None: it is none."""
    number = typed_number(text)
    return number if number is not None and 0 < number <= INT64_MAX else None


def get_task_history(tx: Tx, caller: Caller, task: int) -> dict[str, Any]:
    """A task, if it is still live, with what is known of its past, the newest first. Needs READ in its project."""
    row = tx.one("SELECT * FROM task WHERE id = ?", (task,))
    newest = "a.task = ? ORDER BY a.id DESC LIMIT 100"
    past, logs, verifications = (
        tx.all(f"SELECT a.*, w.alias FROM {of} a LEFT JOIN worker w ON w.id = a.worker WHERE {which}", (task,))
        for of, which in (("assignment", newest), ("log_entry", newest), ("verification", "a.task = ?"))
    )
    found = next((one["project"] for one in (row, *past, *logs) if one), None)
    missing = TrackerError("not_found", f"No task {task}, or it was closed or deleted and left no history")
    project = None if found is None else tracker.find_project(tx, found)
    tracker.check_access(tx, caller, project, READ, missing)
    return {"id": task, "task": row, "project": project, "past": past, "logs": logs, "verifications": verifications}


@functools.lru_cache(maxsize=4)
def documentation(settings: tracker.Settings, base: str) -> dict[str, Any]:
    """The values of the page about the API, which cost more to make than to show."""
    return openapi.pages(tracker.openapi_document(settings), base)


# ── Visits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


PAGE_ROWS = 50  # rows of a list on one page
MOST_FIELDS = 5000  # of a form: a template may have 200 variables and 200 arguments
FOLDED = 600  # characters of a log line from which most of it is folded away
MOST_SHOWN = 10_000  # characters of a log line on a page, which asks for a hundred of them again and again
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
OPERATION_PATIENCE = 1.0  # seconds that a page waits for a long operation before it shows its progress instead


class Visit(Call):
    """A browser's request for a page or an action: a Call with a form, and templates to answer with."""

    door = "page"
    is_page = True
    fields: Mapping[str, list[Any]] = types.MappingProxyType({})  # of the form; each may be there several times
    error: TrackerError | None = None  # why the request is refused
    plain = False  # the page shows a secret
    manager: Any = None  # who is logged in, once that was read
    begun: bytes | None = None  # the session that this very request has begun

    def session(self) -> bytes | None:
        """The session that the caller has, or has just got."""
        return self.begun or super().session()

    def url(self, path: str) -> str:
        """The address of one of our own pages, as the browser has to ask for it: behind the proxy's prefix."""
        return self.scope.get("root_path", "") + path

    def link(self, path: str, query: dict[str, Any], more: dict[str, Any] | None = None) -> str:
        """Such an address with a query; what is empty is left out."""
        given = {name: value for name, value in {**query, **(more or {})}.items() if value not in ("", None)}
        return self.url(path) + ("?" + urlencode(given) if given else "")

    def names(self, field: str) -> bool:
        """Whether the refusal is about this field."""
        return self.error is not None and field in self.error.field.split(", ")

    def shown(self, path: str, values: Any) -> str:
        """What a form has shown (as JSON): these values, or, sent in vain to this path, what it did at first.

        What it was refused for because others have changed it is the new one: sent once more, the form means it.
        """
        if self.here != path or not self.field("shown"):
            return encode(values).decode()
        if self.error is None or self.error.code != "conflict":
            return self.field("shown")
        first, now = (msgspec.json.decode(one) for one in (self.field("shown"), encode(values)))
        return encode(first | {name: now[name] for name in now if self.names(name)}).decode()

    @property
    def reason(self) -> str:
        """Why the request was refused, in words for people who fill in forms."""
        wait = f" {duration(math.ceil(self.error.delay))}" if self.error.delay is not None else ""
        return self.error.message + wait

    @property
    def here(self) -> str:
        """This page, with its query, without the prefix."""
        path, query = self.scope["path"].removeprefix(self.scope.get("root_path", "")), self.scope["query_string"]
        return path + ("?" + query.decode("latin-1") if query else "")

    @functools.cached_property
    def token(self) -> str:
        """Proves that a form came from one of this session's pages, which may have one in each of their rows.

        It looks different in each page, and is in no refresh, which leaves the page's own as they are: see packing.py.
        """
        if self.header(b"x-live"):
            return ""
        proof = self.proof
        mask = secrets.token_bytes(len(proof))
        return base64.urlsafe_b64encode(mask + bytes(map(operator.xor, mask, proof))).decode()

    @property
    def proof(self) -> bytes:
        return self.tracker.form_signer.get_signature(self.session() or b"")

    @functools.cached_property
    def nonce(self) -> str:
        """Which page this is, so that a form of it that is sent twice counts once. A refresh says its page's."""
        said = (self.header(b"x-live") or b"").decode("latin-1")
        return said if re.fullmatch(r"[\w-]{16,64}", said, re.ASCII) else secrets.token_urlsafe(16)

    @functools.cached_property
    def fresh(self) -> Any:
        """What the last action made that is shown this once, on the page to which it led."""
        if self.scope["method"] != "GET" or self.header(b"x-live"):
            return None
        return self.tracker.shown.take(forms.key_of(self.session() or b"", self.here.encode(), fields={}))

    def reveal(self, path: str, fresh: Any) -> Response:
        """After an action: on to a page, which shows this once. It is in no cookie, no address and no database."""
        self.tracker.shown.keep(forms.key_of(self.session() or b"", unquote(path).encode(), fields={}), fresh)
        return self.see(path)

    @property
    def session_mark(self) -> str:
        """Which of the manager's logins this one is."""
        return tracker.digest(self.session() or b"").hex()[:16]

    async def read_form(self) -> None:
        """Takes in a POST's fields."""
        if (self.header(b"content-type") or b"").startswith(b"multipart/form-data"):
            await self.look(check_login)  # it may have a large file: for managers only
            most = self.tracker.settings.max_bulk_body
            self.fields = await self.multipart(most, "file", max_files=1, max_fields=100)
        else:
            self.fields = await self.decoded(await self.body(), form_fields)

    def is_ours(self) -> bool:
        """Whether the form came from a page of this session."""
        try:
            given = base64.urlsafe_b64decode(self.field("token").encode())
        except ValueError:
            return False
        half = len(given) // 2
        return hmac.compare_digest(bytes(map(operator.xor, given[:half], given[half:])), self.proof)

    def secret(self, value: Any) -> Any:
        """A secret that the page shows: it is not packed then."""
        self.plain = True
        return value

    def typed(self) -> dict[str, list[str]]:
        """What a form says that somebody typed or chose: nothing of ours, no password and no file."""
        if "password" in self.fields:  # what it says else is of no use without
            return {}
        texts = {name: [one for one in values if isinstance(one, str)] for name, values in self.fields.items()}
        return {name: values for name, values in texts.items() if values and name not in ("token", "nonce")}

    def field(self, name: str, default: str = "") -> str:
        """The text that a field was sent with, the last one if there are several; a file is none."""
        value = self.fields.get(name, [default])[-1]
        return value if isinstance(value, str) else default

    def texts(self) -> dict[str, str]:
        """All fields of the form, by name."""
        return {name: self.field(name) for name in self.fields}

    def form_as(self, kind: type) -> Any:
        """The form as a struct. A field that is left empty counts as absent, unless it may be a text.

        A list is that of its rows.
        """
        values, fields = {}, msgspec.structs.fields(kind)
        for field in fields:
            name, value = field.encode_name, self.field(field.encode_name)
            if name in self.fields and takes_text(field.type):
                values[name] = value
            elif value.strip():
                values[name] = value.strip()
        body = errors.convert(values, kind, strict=False)
        errors.refuse_nul(body)
        for field in fields:
            if get_origin(field.type) is list:
                setattr(body, field.name, self.form_rows(field.name, *get_args(field.type)))
        return body

    def form_rows(self, name: str, kind: type) -> list[Any]:
        """The rows of a list in the form that say something. A refusal names the field: variables[2].name."""
        made = []
        for number, row in self.rows(name).items():
            try:
                made.append(errors.convert({field: text for field, text in row.items() if text}, kind, strict=False))
            except TrackerError as error:
                raise error.within(f"{name}[{number}]") from None
            errors.refuse_nul(made[-1], f"{name}[{number}]")
        return made

    def rows(self, name: str) -> dict[int, dict[str, str]]:
        """The rows of a list in the form, by number: variables[2].value. One without a text in it does not count."""
        rows: dict[int, dict[str, str]] = {}
        for field in self.fields:
            if match := re.fullmatch(re.escape(name) + r"\[(\d{1,3})\]\.(\w+)", field):
                rows.setdefault(int(match[1]), {})[match[2]] = self.field(field)
        silent = ("order", "required")  # they say something of themselves
        return {
            number: row
            for number, row in sorted(rows.items())
            if any(text.strip() for field, text in row.items() if field not in silent)
        }

    def back(self, default: str) -> str:
        """The page that a form names to go on to: one of ours, or the default."""
        path = self.field("back")
        return path if path.startswith("/ui/") and "\\" not in path and path.isprintable() else default

    def see(self, path: str, message: str = "", *headers: tuple[bytes, bytes]) -> Response:
        """After an action: the browser goes on to a page, which shows the message."""
        response = RedirectResponse(self.url(path), 303)
        if message:
            text = self.tracker.message_signer.sign(base64.urlsafe_b64encode(message.encode())).decode()
            response.raw_headers.append(self.message_cookie(text, 60))
        response.raw_headers.extend(headers)
        return response

    def message_cookie(self, text: str, age: int) -> tuple[bytes, bytes]:
        """The header that sets what the next page is to show, for so many seconds; 0 takes it away."""
        return tracker.cookie_header(self, "-message", text, age)

    def message(self) -> str:
        """What the last action said, for the page that follows it."""
        cookie = next(self.own_cookies("-message"), None)
        if not cookie or self.header(b"x-live") or self.scope["method"] == "HEAD":  # it is for who sees the page
            return ""
        try:
            return base64.urlsafe_b64decode(self.tracker.message_signer.unsign(cookie)).decode()
        except (itsdangerous.BadSignature, ValueError):
            return ""

    async def render(self, name: str, values: dict[str, Any]) -> Response:
        """A page. `values` holds what `framed` read, and what this page is about."""
        message, self.manager = self.message(), values["manager"]
        status = tracker.STATUS[self.error.code] if self.error else 200
        page = await self.written(name, {**values, "visit": self, "message": message, "fresh": self.fresh})
        if self.header(b"x-live") and status == 200:
            etag = packing.etag_of(page)
            same = packing.unchanged(self.scope, etag)
            response = Response(None, 304) if same else HTMLResponse(page)
            response.headers["etag"], response.plain = etag, self.plain
            return response
        response = HTMLResponse(page, status, tracker.error_headers(self.error) if self.error else None)
        response.plain, response.masked = self.plain or self.fresh is not None, "token" in vars(self)
        if message:
            response.raw_headers.append(self.message_cookie("", 0))
        return response

    async def written(self, name: str, values: dict[str, Any]) -> str:
        """The page's text, written in turns. As Template.generate does it, but that nothing of it is left."""
        template = jinja_environment().get_template(name)
        context = template.new_context(values)
        try:
            return await self.tracker.turns.join(template.root_render_func(context))
        except Exception:
            template.environment.handle_exception()  # raises it, with the template's lines
        finally:
            context.vars.clear()  # a template's macros know the context that knows them: a cycle for the collector

    async def refuse(self, error: TrackerError) -> Response:
        """The page of an error. Who has not logged in is asked to, and comes back."""
        if error.code == "unauthorized" and self.scope["method"] != "POST":
            return guarded(self, self.see("/ui/login?" + urlencode({"back": self.here})))
        self.error = error
        try:
            response = await self.render("error.html", await self.read(None))
        except Exception:  # stopping, or what has failed fails here, too: neither frame nor template can be read
            response = Response(error.message, tracker.STATUS[error.code], media_type="text/plain")
        return guarded(self, response)

    async def read(self, function: Callable | None, *args: Any) -> dict[str, Any]:
        """What the function reads, and what every page shows, as of one moment."""
        return await self.tracker.db.read(framed, self.session(), function, args)

    async def look(self, function: Callable, *args: Any) -> Any:
        """What a domain function answers to this caller, who changes nothing by it."""
        return await self.tracker.db.read(tracker.as_caller, function, self.session(), *args)

    async def write(self, function: Callable, *args: Any, long: bool = False) -> Any:
        """What a domain function does for this caller."""
        return await self.tracker.db.write(tracker.as_caller, function, self.session(), *args, long=long)


def check_login(tx: Tx, caller: Caller) -> None:
    """Refuses who is no manager."""
    tracker.logged_in(caller)


def form_fields(body: bytes) -> dict[str, list[str]]:
    """The fields of a form, with the line ends that the rest of the world uses."""
    try:
        pairs = errors.form_pairs(body, MOST_FIELDS)
    except ValueError:
        raise TrackerError("invalid", "not a valid form", "body") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value.replace("\r\n", "\n"))
    return fields


@functools.cache
def takes_text(kind: Any) -> bool:
    """Whether a field of this type may be a text."""
    return "string" in str(msgspec.json.schema(kind))


def framed(tx: Tx, credentials: bytes | None, function: Callable | None, args: tuple) -> dict[str, Any]:
    """What every page shows, and what the function says that this one shows, for one caller as of one moment."""
    caller = tracker.identify(tx, credentials)
    return {
        "now": tx.time,
        "settings": tx.settings,
        "manager": caller.manager,
        "anybody": tracker.any_admin(tx),
        "main_links": links(tx) if caller.manager else [],
        **(function(tx, caller, *args) if function else {}),
    }


class Link(NamedTuple):
    """A page of a dialect, to which pages of the tracker lead."""

    label: str
    path: str
    text: str = ""  # of the link itself, where the label stands before it


def links(tx: Tx, **place: Any) -> list[Link]:
    """The pages of all dialects that those of this place (project=…, job=…, or none) lead to."""
    return [link for links_of in tracker.hooks("links") for link in links_of(tx, **place)]


def endpoint(running: tracker.Tracker, handler: Callable[[Visit], Awaitable[Response]]) -> tracker.Endpoint:
    """A page or an action as the application behind its path."""

    async def handle(visit: Visit) -> Response:
        if visit.scope["method"] == "POST":
            await visit.read_form()
            return guarded(visit, await sent(visit, handler))
        return guarded(visit, await handler(visit))

    handle.methods = getattr(handler, "methods", None)
    return tracker.Endpoint(running, handle, Visit)


ENTRANCES = ("/ui/login", "/ui/register", "/ui/logout")


async def sent(visit: Visit, handler: Callable[[Visit], Awaitable[Response]]) -> Response:
    """What comes of a form: the same for one that is sent twice. One of an ended login waits for the next login."""
    keeps = bool(visit.typed()) and visit.here not in ENTRANCES
    if not visit.is_ours():
        if not keeps or browsers.sent_by(visit.told()) != "us":
            problem = "This form is out of date: please load the page again, and send it once more"
            raise TrackerError("forbidden", problem)
        return await send_again(visit, visit.here, visit.typed())
    if len(visit.field("nonce")) < 16 or visit.here == "/ui/login":
        return await handler(visit)
    key = forms.key_of(visit.session() or b"", visit.here.encode(), fields=visit.fields)
    act = functools.partial(handler, visit)
    try:
        answer, repeated = await visit.tracker.sent.once(key, act, lambda answer: answer.status_code == 303)
    except TrackerError as error:
        if error.code != "unauthorized" or not keeps:
            raise
        return await send_again(visit, visit.here, visit.typed())
    if repeated:
        tracker.log.info("A form that was sent twice counts once: %s", visit.scope["path"])
    return answer


async def send_again(visit: Visit, path: str, typed: dict[str, list[str]], *headers: tuple[bytes, bytes]) -> Response:
    """The page that keeps what was typed while a login ended: first to log in, and then to send it once more."""
    values = await visit.read(None)
    visit.fields, visit.error = {}, None
    template, status = ("send_again.html", 200 if visit.begun else 403) if values["manager"] else ("login.html", 401)
    kept = {"back": path, "kept": typed if values["manager"] else encode(typed).decode()}
    response = await visit.render(template, {**values, **kept})
    response.status_code = status
    response.raw_headers.extend(headers)
    return response


def guarded(visit: Visit, response: Response) -> Response:
    """The answer with the headers that tell a browser what a page may do."""
    if (seconds := visit.tracker.settings.hsts) and visit.scope.get("scheme") == "https":
        response.headers["strict-transport-security"] = f"max-age={seconds}"
    for name, value in PAGE_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


# ── Handlers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Handler = Callable[[Visit], Awaitable[Response]]


class Action(NamedTuple):
    """What a form of a page does: decode the form, call one domain function, go on to a page with a message.

    `function` may also be a handler. `form` is a Struct, or reads one from the visit; it need not be said of a function
    whose `body` is annotated. `to` is the page to go on to, if not the action's own. `shows` answers with the result
    itself, which must not be in an address. `asks` is the page (its template and function) of a question that comes
    first. When it is refused, the page is shown again with the reason and with what was typed, if something was:
    `again` says so of the others, or names the field whose refusal alone is shown so.
    """

    path: str  # below its page's, or a whole one
    function: Callable
    form: type | Callable | None = None
    to: str = ""
    says: str | Callable = ""
    shows: Callable | None = None
    asks: tuple[str, Callable] | None = None
    again: bool | str | None = None


class Page(NamedTuple):
    """A page: one transaction reads its values, a template shows them. `shows` may also be a handler.

    The ids in the path and the query are what the function's annotations say. Its actions follow it in the table, or
    are its own.
    """

    path: str
    shows: str | Handler
    function: Callable | None = None
    actions: Sequence[Action] = ()


hints_of = functools.cache(get_type_hints)  # which takes its time, and a process may make many applications


def with_paths(table: Iterable[Page | Action]) -> Iterator[tuple[Page | Action, str, str]]:
    """Each page and the actions that stand under it, with its path and that of the page."""
    page = ""
    for row in itertools.chain.from_iterable((row, *getattr(row, "actions", ())) for row in table):
        page = row.path if isinstance(row, Page) else page
        yield row, row.path if row.path.startswith("/ui/") else page + row.path, page


def routes_of(table: Iterable[Page | Action]) -> Iterator[tuple[str, str, Handler]]:
    """Method, path and handler of each page, and of the actions that stand under it."""
    for row, path, page in with_paths(table):
        if isinstance(row, Page):
            handler = showing(path, row.shows, row.function)
            yield "GET", path, handler
        else:
            yield "POST", path, acting(row, path, page, handler)


@functools.cache
def action_pages() -> list[tuple[re.Pattern, str]]:
    """The path of each action, as a pattern, and that of its page."""
    rows = itertools.chain.from_iterable(map(with_paths, tables()))
    actions = [(path, page) for row, path, page in rows if isinstance(row, Action)]
    return [(re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/?]+)", path)), page) for path, page in actions]


def showing(path: str, shows: str | Handler, function: Callable | None) -> Handler:
    """The handler of a page, or of a question that comes before an action."""
    if not isinstance(shows, str):
        return shows
    ids = re.findall(r"{(\w+)}", path)
    hints = hints_of(function) if function else {}
    query = hints.get("query")

    async def handler(visit: Visit) -> Response:
        args: list[Any] = [visit.path_value(name) for name in ids]
        if query is not None:
            args.append(visit.query_as(query))
        values = await visit.read(function, *args)
        return await visit.render(shows, {"query": args[-1], **values} if query else values)

    return handler


def acting(action: Action, path: str, page: str, again: Handler) -> Handler:
    """The handler of an action."""
    ids, asks = re.findall(r"{(\w+)}", path), action.asks and showing(path, *action.asks)
    handles = inspect.iscoroutinefunction(action.function)
    form = action.form or (None if handles else hints_of(action.function).get("body"))
    shown_again = form is not None if action.again is None else action.again

    async def act(visit: Visit) -> Response:
        """Does it, or asks first, and goes on."""
        if asks and visit.field("confirmed") != "yes":
            return await asks(visit)
        if handles:
            return await action.function(visit)
        args = [visit.path_value(name) for name in ids]
        if form is not None:
            args.append(visit.form_as(form) if isinstance(form, type) else form(visit))
        result = await visit.write(action.function, *args)
        if action.shows is not None:
            return await action.shows(visit, result)
        message = action.says(result, args[-1]) if callable(action.says) else action.says
        target = (action.to or page).format(**visit.scope["path_params"], result=result)
        return visit.see(visit.back(target), message)

    async def handler(visit: Visit) -> Response:
        try:
            return await act(visit)
        except TrackerError as error:
            if shown_again not in (True, error.field):
                raise
            visit.error = error
            return await again(visit)

    return handler


def moved_to(path: str) -> Handler:
    """The handler of a page that stands elsewhere now: what was bookmarked leads there."""

    async def handler(visit: Visit) -> Response:
        return RedirectResponse(
            visit.url(path.format(**{name: visit.path_id(name) for name in re.findall(r"{(\w+)}", path)})), 308
        )

    return handler


# ── Overview and projects ─────────────────────────────────────────────────────────────────────────────────────────────


class ListQuery(msgspec.Struct):
    """A page of a list: those with `text` in their name, after a place in it."""

    text: Annotated[str, Meta(max_length=200)] = ""
    after: Annotated[str, Meta(max_length=300)] = ""


def may(role: int) -> str:
    """The condition that the caller (Caller.as_values) has a role in the project p."""
    granted = "SELECT 1 FROM manager_role WHERE project = p.id AND manager = :manager"
    return f"(:admin OR EXISTS ({granted} AND role & {role}))"


VISIBLE = f"(NOT p.hidden OR {may(READ)})"


def list_page(
    tx: Tx, select: str, values: dict[str, Any], query: ListQuery, place: str = "name", order: str = ""
) -> tuple[list[sqlite3.Row], Any]:
    """A page of a list, and where the next one goes on: the column `place` of the last row, or "" at the end.

    The SELECT ends with its conditions, and knows :text and :after.
    """
    values = {"text": like(query.text), "after": query.after, "limit": PAGE_ROWS + 1, **values}
    rows = tx.all(f"{select} ORDER BY {order or place} LIMIT :limit", values)
    return rows[:PAGE_ROWS], rows[PAGE_ROWS - 1][place] if len(rows) > PAGE_ROWS else ""


class OverviewQuery(ListQuery):
    """The same, of the archived projects or of the others."""

    archived: bool = False


def overview(tx: Tx, caller: Caller, query: OverviewQuery) -> dict[str, Any]:
    """The projects that the caller may see, with their counts, and who is waiting for an answer."""
    listed, values = f"FROM project p WHERE {VISIBLE} AND archived", {**caller.as_values, "archived": query.archived}
    found = f"SELECT * {listed} = :archived AND name LIKE :text ESCAPE '\\' AND name > :after"
    rows, more = list_page(tx, found, values, query)
    sums = ", ".join(f"ifnull(SUM({name}), 0) AS {name}" for name in tracker.COUNT_COLUMNS)
    totals = f"SELECT {sums}, COUNT(*) AS project_count {listed} = :archived"
    return {
        "projects": [{**row, **pace(tx, row), "spark": spark(tx, row["id"])} for row in rows],
        "more": more,
        "totals": tx.one(totals, values),
        "archived_count": tx.one(f"SELECT COUNT(*) {listed}", values)[0],
        "requests": waiting_requests(tx, caller) if caller.manager else [],
        "all_at_once": projects.pausable(tx, caller),
    }


def waiting_requests(tx: Tx, caller: Caller) -> list[sqlite3.Row]:
    """The projects in which requests for access wait for an answer of this manager."""
    counts = "SELECT project, COUNT(*) AS request_count FROM worker_access WHERE request GROUP BY project"
    return tx.all(
        f"SELECT p.id, p.name, request_count FROM ({counts}) a JOIN project p ON p.id = a.project"
        f" WHERE {may(MANAGE_ACCESS)} AND NOT p.archived ORDER BY p.name LIMIT 20",
        caller.as_values,
    )


def count_requests(tx: Tx, project: int) -> int:
    """How many workers wait for an answer to their request for access."""
    return tx.one("SELECT COUNT(*) FROM worker_access WHERE project = ? AND request", (project,))[0]


def project_frame(tx: Tx, caller: Caller, project: sqlite3.Row) -> dict[str, Any]:
    """What every page of a project shows: the project, and what the caller may do there."""
    role = caller.role(project["id"])
    return {
        "project": project,
        "may": {name.lower(): bool(role & bit) for bit, name in tracker.ROLE_NAMES.items()},
        "project_links": links(tx, project=project) if role & READ else [],
        "request_count": count_requests(tx, project["id"]) if role & MANAGE_ACCESS else 0,
    }


def of_project(role: int | str, of: tracker.Thing = tracker.PROJECT) -> Callable[[Callable], Callable]:
    """A page's function that needs the role in a project, and shows what every page of a project does."""

    def declare(function: Callable) -> Callable:
        @tracker.needs(role, of)
        @functools.wraps(function)
        def read(tx: Tx, caller: Caller, row: sqlite3.Row, *args: Any) -> dict[str, Any]:
            project = row if of is tracker.PROJECT else tracker.find_project(tx, row["project"])
            return {**project_frame(tx, caller, project), **function(tx, caller, row, *args)}

        return read

    return declare


def nothing_more(tx: Tx, caller: Caller) -> dict[str, Any]:
    """For a page that shows no more than what every page does."""
    return {}


def no_more(tx: Tx, caller: Caller, row: sqlite3.Row) -> dict[str, Any]:
    """For a page that shows no more than what every page of a project does."""
    return {}


class RangeQuery(msgspec.Struct):
    """Which time a chart shows."""

    range: Literal["1h", "24h", "7d", "all"] | None = None  # what fits


@of_project(SEES)
def project_page(
    tx: Tx, caller: Caller, project: sqlite3.Row, query: RangeQuery, known: Collection[str] = ()
) -> dict[str, Any]:
    """A project: its pace and charts, and who works for it; with READ also what went wrong, and what was done.

    `known`: the parts, with their versions, that the page has which is refreshed. They are not made again.
    """
    reads, span = caller.role(project["id"]) & READ, query.range or fitting_range(tx, project)
    version = charts_version(tx, project["id"], span)
    has_charts = all(f"{name}-card={version}" in known for name in CHARTS)
    return {
        **pace(tx, project),
        "span": span,
        "chain": chain_target(tx, caller, project["chain"]) if tracker.sees_chain(tx, caller, project) else None,
        "ranges": RANGES,
        "charts_of": {} if has_charts else project_charts(tx, project, span),
        "charts_version": version,
        "holders": holders(tx, project["id"]),
        "paused_workers": pauses.paused_workers(tx, project["id"]) if project["paused_worker_count"] else [],
        "leaders": leaders(tx, project["id"], "t.closed_task_count"),
        "day_leaders": leaders(tx, project["id"], LAST_DAY),
        "runtime": runtimes(tx, project["id"]),
        "causes": failures.causes(tx, project["id"]) if reads else [],
        "join": joining(tx, caller, project),
        "operations": recent_operations(tx, project["id"]) if reads else [],
    }


async def show_project(visit: Visit) -> Response:
    """The page of a project. A refresh has what has changed of it."""
    query, known = visit.query_as(RangeQuery), (visit.header(b"x-known") or b"").decode("latin-1").split(",")
    values = await visit.read(project_page, visit.path_id("project"), query, known)
    return await visit.render("project.html", {"query": query, **values})


CROWD_TIME = 10.0  # seconds for which all who look at a public project's page for volunteers get the same
CROWD_REFRESH = 30  # seconds from one look of an open one to the next
CROWD_ROWS = 500
MOST_CROWD_PAGES = 2000


class CrowdQuery(msgspec.Struct):
    """A part of the leaderboard."""

    page: Annotated[int, Meta(ge=1, le=MOST_CROWD_PAGES)] = 1


class Made(NamedTuple):
    """A page that is the same for everybody, as it is and packed."""

    plain: bytes
    packed: bytes
    etag: str


@tracker.needs(SEES)
def crowd_values(tx: Tx, caller: Caller, project: sqlite3.Row, query: CrowdQuery) -> dict[str, Any]:
    """A public project as volunteers see it: how far it is, and who has closed the most, of all. 404 for others."""
    if not project["public"]:
        raise tracker.PROJECT.missing(project["id"])
    first = CROWD_ROWS * (query.page - 1)
    rows = tx.all(
        f"SELECT w.id, w.alias, t.closed_task_count AS closed, {LAST_DAY} AS last_day FROM tally t"
        " JOIN worker w ON w.id = t.worker WHERE t.project = ? AND t.closed_task_count > 0"
        " ORDER BY closed DESC, w.id LIMIT ? OFFSET ?",
        (project["id"], CROWD_ROWS + 1, first),
    )
    count = "SELECT COUNT(*) FROM tally WHERE project = ? AND closed_task_count > 0"
    return {
        **pace(tx, project),
        "project": project,
        "kinds": waiting_kinds(tx, project["id"]),
        "leaders": rows[:CROWD_ROWS],
        "more": len(rows) > CROWD_ROWS,
        "first": first,
        "page": query.page,
        "count": tx.one(count, (project["id"],))[0],
        "refresh": CROWD_REFRESH,
    }


async def crowd_page(visit: Visit) -> Response:
    """The page of a public project for volunteers, without a login. Made once for all who look at it meanwhile."""
    project, query, crowds = visit.path_id("project"), visit.query_as(CrowdQuery), visit.tracker.crowds
    key = f"{project} {query.page} {visit.base}".encode()  # what it says of the address is the visitor's own
    making = crowds.get(key)
    if making is None:
        making = asyncio.ensure_future(make_crowd_page(visit, project, query))
        crowds.keep(key, making)
    try:
        made = await asyncio.shield(making)
    except TrackerError as error:
        crowds.take(key)
        raise error.with_traceback(None) from None
    headers = {"etag": made.etag, "cache-control": f"public, max-age={CROWD_TIME:g}", "vary": "Accept-Encoding"}
    if packing.unchanged(visit.scope, made.etag):
        return Response(None, 304, headers)
    if packing.takes_gzip(packing.header(visit.scope, b"accept-encoding")):
        return HTMLResponse(made.packed, headers={**headers, "content-encoding": "gzip"})
    answer = HTMLResponse(made.plain, headers=headers)
    answer.plain = True
    return answer


async def make_crowd_page(visit: Visit, project: int, query: CrowdQuery) -> Made:
    values = await visit.tracker.db.read(tracker.as_caller, crowd_values, None, project, query)
    template = jinja_environment().get_template("crowd.html")
    page = await visit.tracker.turns.join(template.generate(values, visit=visit))
    return Made(page.encode(), await asyncio.to_thread(packing.gzipped, page.encode()), packing.etag_of(page))


# Of the next hundred jobs, and of the next hundred tasks: a worker for the one kind fails those of the other.
WAITING_KINDS = """
    SELECT EXISTS (SELECT 1 FROM (SELECT script FROM job WHERE project = ?1 AND state = 'waiting' AND task IS NOT NULL
        AND NOT delayed ORDER BY priority DESC, task LIMIT 100) WHERE script IS NOT NULL) AS scripts,
    EXISTS (SELECT 1 FROM (SELECT job FROM task WHERE project = ?1 AND status = 1 AND assignee IS NULL
        AND verifiers IS NULL ORDER BY priority DESC, id LIMIT 100) t LEFT JOIN job ON job.id = t.job
        WHERE job.script IS NULL) AS commands
"""


def waiting_kinds(tx: Tx, project: int) -> sqlite3.Row:
    """What a worker must be able to run for what waits now: whether jobs bring scripts, and others need a command."""
    return tx.one(WAITING_KINDS, (project,))


def joining(tx: Tx, caller: Caller, project: sqlite3.Row) -> dict[str, Any] | None:
    """How to work for a project, while tasks wait: for guests, and for all while nobody has been assigned one."""
    waiting = project["waiting_task_count"] + project["delayed_task_count"]
    guest = caller.manager is None and project["public"]
    if not waiting or project["archived"] or (not guest and tx.one(EVER_ASSIGNED, (project["id"],))):
        return None
    return {"guest": guest, "kinds": waiting_kinds(tx, project["id"])}


EVER_ASSIGNED = "SELECT 1 FROM tally WHERE project = ? LIMIT 1"


def chain_target(tx: Tx, caller: Caller, project: int | None) -> dict[str, Any] | None:
    """The project that another one is chained to; of a hidden one others learn the number alone, as in the API."""
    if not project:
        return None
    try:
        return {"id": project, "name": tracker.get_project(tx, caller, project).name, "seen": True}
    except TrackerError:
        return {"id": project, "name": f"project {project}", "seen": False}


def chain_targets(tx: Tx, caller: Caller, project: sqlite3.Row | dict[str, Any]) -> dict[str, Any]:
    """The projects that a project could be chained to, and the one that it is chained to now."""
    rows = tx.all("SELECT id, name FROM project WHERE NOT archived ORDER BY name LIMIT 1000")
    targets = [row for row in rows if row["id"] != project["id"] and caller.role(row["id"]) & EDIT]
    if project["chain"] and project["chain"] not in {row["id"] for row in targets}:
        targets.append(chain_target(tx, caller, project["chain"]))
    return {"project": project, "targets": targets}


class ProjectForm(shapes.ProjectBody):
    """A project as its form has it: what is left empty there is the tracker's default."""

    max_lost_leases: shapes.Natural16 | None = None


class SettingsForm(ProjectForm):
    """The same of a project that there is, with the settings (as JSON) that it had when the form was shown."""

    shown: str = ""


def settings_of(project: sqlite3.Row) -> ProjectForm:
    """What the form of a project shows."""
    values = {name: project[name] for name in shapes.ProjectBody.__struct_fields__}
    return errors.convert({**values, "chain": project["chain"] or 0}, ProjectForm, strict=False)


CHANGED_SINCE = "was changed since this page was shown; sent once more, what stands here takes its place"


def changed_fields(body: Any, kind: type, now: Any) -> dict[str, Any]:
    """What was changed in a form since it was shown, when it was a struct of this kind; all of one that does not tell.

    The rest is not set: somebody else may have changed it meanwhile. Refuses (conflict) to change what is `now` neither
    what was shown nor what is wanted, until the form has told of it.
    """
    given = {name: value for name, value in errors.given_fields(body).items() if name != "shown"}
    if not body.shown:
        return given
    shown, now = (errors.given_fields(one) for one in (errors.decode(body.shown.encode(), kind), now))
    left_alone = left(given, shown, AREAS)
    changed = {name: value for name, value in given.items() if name not in shown or left_alone[name] != shown[name]}
    if others := [name for name in changed if name in shown and now.get(name) not in (shown[name], changed[name])]:
        raise TrackerError("conflict", CHANGED_SINCE, ", ".join(others))
    return changed


@tracker.needs(EDIT)
def save_settings(tx: Tx, caller: Caller, project: sqlite3.Row, body: SettingsForm) -> None:
    """Changes what was changed in the form. What somebody has set since it was shown stays: a pause, a version."""
    changed = changed_fields(body, ProjectForm, settings_of(project))
    tracker.update_project(tx, caller, project, shapes.ProjectBody(**changed))


class SecretForm(shapes.SecretBody):
    """A project's secret, with the stamp of the one that the form showed."""

    shown: str = ""


class WebhookSecretForm(shapes.WebhookSecretBody):
    """The same of its webhook secret."""

    shown: str = ""


def refuse_changed(shown: str, now: str, wanted: str, field: str) -> None:
    """Refuses (conflict) to take the place of a text whose stamp is not the one that was shown, if one was."""
    if shown and shown != tracker.stamp_of(now) and wanted != now:
        raise TrackerError("conflict", CHANGED_SINCE, field)


@tracker.needs(SECRET)
def save_secret(tx: Tx, caller: Caller, project: sqlite3.Row, body: SecretForm) -> None:
    """Sets the secret; the first time not if others have since it was shown."""
    refuse_changed(body.shown, project["secret"], body.secret, "secret")
    tracker.set_secret(tx, caller, project, body)


@tracker.needs(SECRET)
def save_webhook_secret(tx: Tx, caller: Caller, project: sqlite3.Row, body: WebhookSecretForm) -> None:
    """The same of the webhook secret."""
    refuse_changed(body.shown, project["webhook_secret"], body.webhook_secret, "webhook_secret")
    tracker.set_webhook_secret(tx, caller, project, body)


class NoticesForm(notices.HookBody):
    """Where notices go, and which, with what of it (as JSON) the form showed."""

    shown: str = ""


def hook_shown(hook: sqlite3.Row | None) -> notices.HookBody:
    """What the form for notices shows."""
    if hook is None:
        return notices.HookBody(finished=True, failing=True, stalled=True)
    ticked = dict.fromkeys(hook["events"].split(), True)
    return notices.HookBody(hook["url"], hook["kind"], **ticked, **{name: hook[name] for name in HOOK_NUMBERS})


HOOK_NUMBERS = ("failing_share", "stalled_minutes")


@tracker.needs(EDIT)
def save_notices(tx: Tx, caller: Caller, project: sqlite3.Row, body: NoticesForm) -> None:
    """Sets what was changed in the form; where notices go and of what kind they are is one thing."""
    now = hook_shown(notices.find_hook(tx, project["id"]))
    changed = changed_fields(body, notices.HookBody, now)
    if {"url", "kind"} & changed.keys():
        changed |= {"url": body.url, "kind": body.kind}
    set_hook(tx, caller, project, msgspec.structs.replace(now, **changed))


@of_project(EDIT | SECRET)
def edit_values(tx: Tx, caller: Caller, project: sqlite3.Row) -> dict[str, Any]:
    """The form of a project and its secrets, each for who has the role, and whether the manager may delete it."""
    hook = notices.find_hook(tx, project["id"])
    return {
        **chain_targets(tx, caller, project),
        "shown": settings_of(project),
        "may_delete": deletion.may_delete(caller, project),
        "hook": hook,
        "hook_shown": hook_shown(hook),
        "stamp_of": tracker.stamp_of,
    }


@tracker.needs(EDIT, acts=True)
def set_hook(tx: Tx, caller: Caller, project: sqlite3.Row, body: notices.HookBody) -> None:
    """Sets where the project's notices go."""
    notices.set_hook(tx, project["id"], body)


@tracker.needs(EDIT)
def hook_of(tx: Tx, caller: Caller, project: sqlite3.Row) -> tuple[int, str, sqlite3.Row]:
    """The project, its name and its hook."""
    hook = notices.find_hook(tx, project["id"])
    if hook is None:
        raise TrackerError("invalid", "Say first where notices go, and save that")
    if hook["kind"] == "command" and not project["trusted"]:
        raise TrackerError("forbidden", "The tracker's command is for projects that a tracker admin trusts")
    return project["id"], project["name"], hook


async def test_hook(visit: Visit) -> Response:
    """Sends a notice that says that it is a test, and says what came of it."""
    project = visit.path_id("project")
    await visit.tracker.notices.test(visit.source, *await visit.look(hook_of, project))
    return visit.see(NOTICES.format(project=project), "The test was taken.")


@tracker.needs(LOGIN)
def new_project_values(tx: Tx, caller: Caller) -> dict[str, Any]:
    """The form of a new project, with what it has by default."""
    return chain_targets(tx, caller, {"id": None, "name": "", **tracker.NEW_PROJECT, "chain": None})


class RateForm(msgspec.Struct):
    """How many tasks a second are assigned at most; 0: as many as are asked for."""

    assign_rate: Annotated[float, Meta(ge=0)]


def set_rate(tx: Tx, caller: Caller, project: int, body: RateForm) -> None:
    """Sets how fast a project's tasks are assigned."""
    tracker.update_project(tx, caller, project, shapes.ProjectBody(assign_rate=body.assign_rate))


def archive_project(tx: Tx, caller: Caller, project: int, body: shapes.ArchivedBody) -> None:
    """Archives a project, or takes it out of the archive: it then stays paused until somebody resumes it."""
    tracker.update_project(tx, caller, project, shapes.ProjectBody(archived=body.archived))


def archived_in_words(result: None, body: shapes.ArchivedBody) -> str:
    """What archiving, or its end, has done."""
    return "Archived." if body.archived else "The project is back from the archive, and still paused."


def paused_in_words(result: None, body: shapes.PausedBody | shapes.PauseBody) -> str:
    """What a pause or its end has done."""
    return "Paused: nothing more is assigned." if body.paused else "Resumed."


def question(
    text: str, consequence: str, button: str, then: str, cancel: str = "", kept: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the page of a question shows (question.html), and where its answer leads: to `then`, or if it is no back.

    `kept`: the fields of the form that has asked, which are sent again with the answer.
    """
    kept = {"confirmed": "yes", "back": then, **(kept or {})}
    return {"question": text, "consequence": consequence, "button": button, "kept": kept, "cancel": cancel or then}


def in_short(names: list[str], count: int) -> str:
    """The first ones of so many names, and how many more there are."""
    return ", ".join(names) + (f" and {count - len(names):,} more" if count > len(names) else "")


class PauseForm(msgspec.Struct):
    """Whether all projects are paused, or go on; and how many the question was about."""

    paused: bool
    most: Annotated[int, Meta(ge=0, le=INT64_MAX)] = INT64_MAX


async def pause_all(visit: Visit) -> Response:
    """POST /ui/projects/pause: all projects are paused, or those go on that were.

    Asks first, and again when it is about more by the time of the answer: somebody else may have paused all meanwhile.
    """
    form = visit.form_as(PauseForm)
    values = await visit.read(tracker.needs(LOGIN)(about_all), form.paused)
    if not values["kept"]["most"]:  # somebody else was faster
        return visit.see("/ui/", f"There is no project to {'pause' if form.paused else 'resume'} any more.")
    if visit.field("confirmed") != "yes" or values["kept"]["most"] > form.most:
        return await visit.render(QUESTION, values)
    count = await projects.set_paused(visit.tracker, visit.session(), shapes.PausedBody(form.paused))
    said = ("1 project is" if count == 1 else f"{count:,} projects are") + (" paused." if form.paused else " resumed.")
    return visit.see("/ui/", said)


def about_all(tx: Tx, caller: Caller, paused: bool) -> dict[str, Any]:
    """The question before all projects are paused, or go on: which ones those are."""
    count, names = projects.find_all(tx, caller, paused)
    which, listed = "the one project" if count == 1 else f"all {count:,} projects", in_short(names, count)
    if paused:
        text, says = (
            f"Pause {which}?",
            "Nothing more is assigned from {}. Workers may release what they hold, and submit.",
        )
    else:
        text = (
            f"Resume {which} that were paused together?"
            if count != 1
            else "Resume the project that was paused with all?"
        )
        says = "Tasks are assigned again from {}. What was paused by itself stays so."
    button = "Pause all" if paused else "Resume all"
    kept = {"paused": "true" if paused else "false", "most": count}
    return question(text, says.format(listed or "none"), button, "/ui/", kept=kept)


@tracker.needs(MAINTENANCE)
def about_requeue(tx: Tx, caller: Caller, project: sqlite3.Row, then: str) -> dict[str, Any]:
    """The question before all tasks are taken from their workers."""
    count = project["assigned_task_count"]
    says = (
        "The workers that hold them lose what they have done so far: their releases change nothing any more."
        " Leases of workers that are gone end by themselves."
    )
    return question(f"Requeue {tasks_in_words(count, 'assigned ')}?", says, "Requeue all", then)


def tasks_in_words(count: int, kind: str = "") -> str:
    """So many tasks: the one …, all 12 …"""
    return f"the one {kind}task" if count == 1 else f"all {count:,} {kind}tasks"


async def typed_name(visit: Visit, project: int) -> str:
    """The project's name, which a form has to repeat before what cannot be undone."""
    name = (await visit.look(tracker.get_project, project)).name
    if visit.field("confirm").split() != name.split():  # as it is seen: nobody can type a line end
        raise TrackerError("invalid", "this is not the project's name; nothing was deleted", "confirm")
    return name


async def reset_project(visit: Visit) -> Response:
    """POST …/reset/{kind}. A question comes before tasks are taken from workers; a hard reset wants the name typed."""
    project, kind = visit.path_id("project"), visit.scope["path_params"]["kind"]
    if kind not in tracker.RESETS:
        raise TrackerError("not_found", f"There is no reset {kind!r}")
    if kind == "hard_reset":
        await typed_name(visit, project)
    if kind == "reclaim_assigned" and visit.field("confirmed") != "yes":
        values = await visit.read(about_requeue, project, visit.back(f"/ui/projects/{project}"))
        return await visit.render(QUESTION, values)
    operation = await visit.write(tracker.begin_reset, project, kind)
    return await watch_operation(visit, operation, tracker.RESETS[kind], f"/ui/projects/{project}")


async def delete_project(visit: Visit) -> Response:
    """POST …/delete. Wants the project's name typed."""
    project = visit.path_id("project")
    name = await typed_name(visit, project)
    done = visit.tracker.begin_operation(await visit.write(tracker.begin_deletion, project))
    finished, _ = await asyncio.wait((done,), timeout=OPERATION_PATIENCE)
    return visit.see("/ui/", f"The project {name} is deleted." + " What was in it goes by and by." * (not finished))


@tracker.needs(ADMIN)
def about_promotion(tx: Tx, caller: Caller, manager: int) -> dict[str, Any]:
    """The question before a manager becomes a tracker admin."""
    row = tx.one("SELECT username FROM manager WHERE id = ?", (manager,))
    if row is None:
        raise TrackerError("not_found", f"No manager {manager}")
    says = "A tracker admin has every role in every project, sees the hidden ones, and can block and delete accounts."
    return question(f"Make {row['username']} a tracker admin?", says, "Promote", "/ui/admin")


@tracker.needs(ADMIN)
def manager_delete_page(tx: Tx, caller: Caller, manager: int) -> dict[str, Any]:
    """What goes with a manager who is deleted."""
    tracker.check_other(tx, caller, manager, "delete")
    one = tx.one("SELECT id, username FROM manager WHERE id = ?", (manager,))
    return {"one": one, "projects": deletion.projects_of(tx, manager)}


async def delete_manager(visit: Visit) -> Response:
    """POST …/delete/{manager}: the account goes, and projects that were its own alone."""
    for operation in await visit.write(tracker.delete_manager, visit.path_id("manager"), long=True):
        visit.tracker.begin_operation(operation)
    return visit.see("/ui/admin", "The account is deleted.")


def said_of(kind: str, count: int, priority: int | None = None) -> str:
    """What an action or an operation has done, in words."""
    tasks, are, were = ("task", "is", "was") if count == 1 else ("tasks", "are", "were")
    return {
        "retry": f"{count:,} failed {tasks} {are} waiting again.",
        "requeue": f"{count:,} assigned {tasks} {are} waiting again.",
        "make_ready": f"{count:,} delayed {tasks} {are} ready.",
        "set_priority": f"{count:,} {tasks} got priority {priority}.",
        "delete": f"{count:,} {tasks} {were} deleted.",
        "hard_reset": f"The project was reset: {count:,} {tasks} deleted, hashes forgotten.",
        "submit_lines": f"{count:,} {tasks} {were} submitted.",
        "import_project": f"{count:,} {tasks} {were} imported.",
    }[kind]


async def watch_operation(visit: Visit, operation: int, kind: str, to: str, priority: int | None = None) -> Response:
    """Goes on with what an operation has done, or, if it takes long, to the page that shows its progress."""
    done = visit.tracker.begin_operation(operation)
    finished, _ = await asyncio.wait((done,), timeout=OPERATION_PATIENCE)
    if not finished:
        return visit.see(f"/ui/operations/{operation}")
    return visit.see(visit.back(to), said_of(kind, done.result(), priority))


def operation_page(tx: Tx, caller: Caller, operation: int) -> dict[str, Any]:
    """An operation on many tasks: how far it is, or what it has done."""
    row = tracker.get_operation(tx, caller, operation)
    return {
        **project_frame(tx, caller, tracker.find_project(tx, row["project"])),
        "operation": row,
        "may_stop": row["finished"] is None
        and row["kind"] in tracker.ACTIONS
        and caller.role(row["project"]) & tracker.ACTION_NEEDS.get(row["kind"], tracker.MAINTAINS).role,
        "done": said_of(row["kind"], row["affected"], row["priority"]),
        "report": msgspec.json.decode(row["report"], type=shapes.LinesReport),
    }


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class TaskQuery(tracker.TaskFilter):
    """A list of tasks, from a place in it on: of a state, or of all of them. `looked`: at how many on the way there."""

    state: Literal["waiting", "assigned", "awaiting_verification", "failed", "delayed", "all"] = "waiting"
    looked: Annotated[int, Meta(ge=0, le=INT64_MAX // 2)] = 0
    after: Annotated[str, Meta(max_length=50)] = ""


def filter_of(query: TaskQuery) -> tracker.TaskFilter:
    """The list that it is a place in. Refuses all states at once, which are to be looked at only."""
    if query.state == "all":
        raise TrackerError("invalid", "choose one state", "state")
    return tracker.TaskFilter(query.state, query.text, query.assignee, query.priority, query.cause)


LISTED = (
    "id, priority, retries, max_retries, lost_leases, not_before, assignee, assign_time,"
    " substr(recipe, 1, 301) AS recipe, (SELECT alias FROM worker WHERE id = task.assignee) AS alias"
)

FAILED = (
    f"cause, {failures.last('reason', 'end_time', 'worker', 'attempt')}, (SELECT w.alias FROM failure f"
    " JOIN worker w ON w.id = f.worker WHERE f.task = task.id) AS worker_alias"
)


@of_project(READ)
def task_list(tx: Tx, caller: Caller, project: sqlite3.Row, query: TaskQuery) -> dict[str, Any]:
    """A page of a project's tasks in one state or in any, those that match; and that which the text is the name of."""
    if query.state == "all":
        wanted = {"state": "all", "text": query.text}
        rows, more = find_in_all_states(tx, project["id"], query)
    else:
        columns = f"{LISTED}, {FAILED}" if query.state == "failed" else LISTED
        rows, more = tracker.list_tasks(tx, caller, project, filter_of(query), query.after, PAGE_ROWS, columns)
        wanted = msgspec.to_builtins(filter_of(query))
    counts = {state: tracker.count_in_state(project, state) for state in tracker.TASK_STATES}
    total = counts.get(query.state, sum(counts.values()))
    return {
        "tasks": rows,
        "more": more,
        "wanted": wanted,
        "counts": counts,
        "looked": min(query.looked + tx.looked, total),
        "total": total,
        "causes": failures.causes(tx, project["id"]) if query.state == "failed" else [],
        "known": known_by(tx, project["id"], query.text) if query.text and not query.after else None,
    }


def find_in_all_states(tx: Tx, project: int, query: TaskQuery) -> tuple[list[sqlite3.Row], str]:
    """A page of tasks with the text, state by state, and the place from which to go on."""
    begun, _, place = query.after.partition("/")
    states = list(tracker.TASK_STATES)
    if query.after and begun not in states:
        raise TrackerError("invalid", f"{query.after!r} is not a place in a list", "after")
    found: list[sqlite3.Row] = []
    for number, state in enumerate(states[states.index(begun) if begun else 0 :]):
        if number and (len(found) >= PAGE_ROWS or tx.spent() > tracker.SEARCH_TIME):
            return found, f"{state}/"
        wanted, most = tracker.TaskFilter(state, query.text), PAGE_ROWS - len(found)
        columns = f"{LISTED}, status, verifiers"
        rows, place = tracker.find_tasks(tx, project, wanted, place, most, tracker.SEARCH_TIME, columns=columns)
        found += rows
        if place:
            return found, f"{state}/{place}"
    return found, ""


def known_by(tx: Tx, project: int, text: str) -> dict[str, Any]:
    """The tasks of a project whose id, hash or unique string the text is, in whatever state; without a scan.

    `past`: the id of one that is not live any more and has left a history; `done`: one of this hash was closed.
    """
    number = typed_number(text)
    numbers = [] if number is None else [number]
    hashes = {tracker.hash_unique_string(one) for one in (text, text.strip())}
    hashes |= {one - 2**64 if one > INT64_MAX else one for one in numbers if -(2**63) <= one < 2**64}
    ids = [one for one in numbers if 0 < one <= INT64_MAX]
    marks = ", ".join("?" * len(hashes))
    tasks = {
        row["id"]: row
        for which, values in ((f"hash64 IN ({marks})", hashes), ("id = ?", ids))
        if values
        for row in tx.all(
            f"SELECT {LISTED}, status, verifiers FROM task WHERE project = ? AND {which}", (project, *values)
        )
    }
    past = "SELECT task FROM assignment WHERE task = ? AND project = ? LIMIT 1"
    kept = f"SELECT 1 FROM kept_hash WHERE project = ? AND hash64 IN ({marks}) LIMIT 1"
    return {
        "tasks": list(tasks.values()),
        "past": next((one for one in ids if one not in tasks and tx.one(past, (one, project))), None),
        "done": tx.one(kept, (project, *hashes)) is not None,
    }


def task_page(tx: Tx, caller: Caller, task: int) -> dict[str, Any]:
    """A task with its history, also when it is gone. Refuses what get_task_history refuses."""
    history = get_task_history(tx, caller, task)
    row = history["task"]
    return {
        **history,
        **project_frame(tx, caller, history["project"]),
        "state": row and tracker.state_of(row),
        "alias": row and tracker.alias_of(tx, row["assignee"]),
        "failure": row and failures.last_failure(tx, task),
        "left": row and row["deadline_uptime"] is not None and row["deadline_uptime"] - tx.uptime,
        "job": tracker.token_of_job(tx, row and row["job"]),
    }


async def act_on_list(visit: Visit) -> Response:
    """POST …/tasks: an action on the selected tasks, or on all that match the list's filter.

    A question comes before something is done to all that match, or some are deleted.
    """
    project, wanted = visit.path_id("project"), filter_of(visit.query_as(TaskQuery))
    body = visit.form_as(tracker.TaskAction)
    tasks = None if visit.field("which") == "all" else selected(visit, "task", "task")
    if visit.field("confirmed") != "yes" and (tasks is None or body.action == "delete"):
        values = await visit.read(expected, project, wanted)
        await visit.look(tracker.check_action, project, body)  # what would be refused after the question is so now
        return await visit.render("confirm.html", values | {"body": body, "wanted": wanted, "tasks": tasks or []})
    if tasks is None:
        operation = await visit.write(tracker.begin_action, project, body, wanted)
        return await watch_operation(visit, operation, body.action, visit.here, body.priority)
    count = await visit.write(tracker.act_on_tasks, project, body, tasks, long=len(tasks) > 10)
    to = visit.here if body.action == "delete" else visit.back(visit.here)  # a deleted task has no page any more
    return visit.see(to, said_of(body.action, count, body.priority))


@of_project(READ)
def expected(tx: Tx, caller: Caller, project: sqlite3.Row, wanted: tracker.TaskFilter) -> dict[str, Any]:
    """How many tasks are in a state now, or failed for one cause, and that cause."""
    cause = failures.find_cause(tx, project["id"], wanted.cause)
    count = cause["failed_task_count"] if cause else 0
    return {"cause": cause, "count": tracker.count_in_state(project, wanted.state) if wanted.cause is None else count}


def selected(visit: Visit, field: str, what: str) -> list[int]:
    """The numbers that are ticked in a list. Refuses none at all, and what is no number."""
    try:
        numbers = [tracker.to_int64(int(text), field) for text in visit.fields.get(field, ())]
    except ValueError:
        raise TrackerError("invalid", "must be whole numbers", field) from None
    if not numbers:
        raise TrackerError("invalid", f"select at least one {what}, or choose “all that match”", field)
    return numbers


async def export_tasks(visit: Visit) -> Response:
    """GET …/export: the tasks of a list as JSON lines. Read piece by piece, so it is no snapshot of one moment."""
    project, wanted = visit.path_id("project"), filter_of(visit.query_as(TaskQuery))
    read = functools.partial(visit.look, tracker.list_tasks, project, wanted)
    columns = f"*, {failures.AS_JSON}"
    rows, more = await read("", tracker.PIECE_TASKS, columns)  # a refusal comes before the answer

    async def lines() -> AsyncIterator[bytes]:
        """The tasks, a piece of some at a time. Breaks the answer off when one cannot be read."""
        nonlocal rows, more
        while rows or more:
            pieces, rows = [b"".join(map(task_line, rows))], []
            yield pieces.pop()  # of what waits for the client nothing is held here
            try:
                rows, more = await next_rows() if more else ([], "")
            except TrackerError as error:  # the answer has begun: all that is left is to break it off
                tracker.log.warning("An export of project %d broke off: %s", project, error)
                raise ClientDisconnect from error

    async def next_rows() -> tuple[list[sqlite3.Row], str]:
        """The next tasks; what takes too long to read is read one by one."""
        try:
            return await read(more, tracker.PIECE_TASKS, columns)
        except TrackerError:
            return await read(more, 1, columns)

    headers = {"content-disposition": f'attachment; filename="project-{project}-{wanted.state}.jsonl"'}
    return Stream(lines(), media_type="application/x-ndjson", headers=headers)


EXPORTED = (
    *("id", "priority", "recipe", "retries", "max_retries", "max_assign_time", "verification_count", "hash64"),
    *("assignee", "assign_time", "lost_leases", "not_before"),
)


def task_line(task: sqlite3.Row) -> bytes:
    """A task as the export has it: submitted again it makes one like it, so old numbers are what clients can hold."""
    numbers = {name: tracker.in_16_bits(task[name]) for name in ("priority", "max_retries", "verification_count")}
    shown = {name: task[name] for name in EXPORTED} | numbers
    failure = errors.as_raw(task["failure"])
    return encode({"state": tracker.state_of(task), **shown, "failure": failure}) + b"\n"


# ── Submit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def submit_lines(visit: Visit) -> Response:
    """POST …/submit/lines: many tasks from a text area or a file. All lines are read before any of them counts."""
    project, defaults = visit.path_id("project"), visit.form_as(shapes.LineDefaults)
    file, typed = visit.fields.get("file", [""])[-1], visit.field("lines")
    uploaded = not isinstance(file, str) and file.filename
    if not uploaded and not typed.strip():
        raise TrackerError("invalid", "type at least one line, or choose a file", "lines")
    source, field = (file.file, "file") if uploaded else (io.BytesIO(typed.encode()), "lines")
    upload = tracker.Upload(source, project, defaults, field)
    operation, done = await tracker.submit_upload(visit, visit.session(), upload)
    await asyncio.wait((done,), timeout=OPERATION_PATIENCE)
    return visit.see(f"/ui/operations/{operation}")


# ── Templates and jobs ────────────────────────────────────────────────────────────────────────────────────────────────

LOG_LINES_SHOWN = 100  # of a job's log on one page


class VariableRow(shapes.Variable):
    """A row of a template's form: a variable. What is JSON in the template is text here, `allowed` one value a line."""

    value: str = ""
    allowed: str = ""

    def __post_init__(self) -> None:
        """Blanks around its name do not count."""
        self.name = self.name.strip()


class ArgumentRow(shapes.Argument, kw_only=True):
    """A row of a template's form: an argument. `options` are one a line."""

    type: shapes.Name
    value: str = ""
    options: str = ""


class TemplateForm(shapes.TemplateBody):
    """A template as its form has it: texts, and rows of them. An empty key leaves the key as it is."""

    description: Annotated[str, Meta(max_length=10_000)] = ""
    variables: list[VariableRow] = []  # noqa: RUF012
    arguments: list[ArgumentRow] = []  # noqa: RUF012
    env: str = ""
    timeout: shapes.Seconds | None = None
    remove_key: bool = False
    keep_count: shapes.Count | None = None
    keep_days: Annotated[float, Meta(gt=0, le=11_575)] | None = None
    shown: str = ""  # state_of_template, as it was then


def by_text(values: Sequence[Any]) -> dict[str, Any]:
    """Values by the texts that a form brings back of them; of several with the same text the first one."""
    return {unix_lines(tracker.as_text(value)): value for value in reversed(values) if value is not None}


def meant(text: str, known: Sequence[Any]) -> Any:
    """The one of the known values that reads like this text, so that a number stays a number; else the text."""
    return by_text(known).get(text, text)


def meant_lines(text: str, known: list[Any]) -> list[Any]:
    """Values that were typed one a line, as `meant` has them; the known ones when nothing was changed."""
    if text == in_lines(known):
        return known
    lines, values = map(str.strip, text.split("\n")), by_text(known)
    return [values.get(line, line) for line in lines if line]


def unix_lines(text: str) -> str:
    """The text with the line ends that a form brings back."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def brought_back(value: Any, area: bool = False) -> Any:
    """A value as its field of a form brings it back; without any line end, if that is not an area."""
    return value if not isinstance(value, str) else unix_lines(value) if area else re.sub("[\r\n]", "", value)


def left(fields: dict[str, Any], old: dict[str, Any], areas: Container[str] = ()) -> dict[str, Any]:
    """The fields of a form; those that bring back an old text are that text. `areas` may have several lines."""
    texts = [(name, was) for name, was in old.items() if name in fields and isinstance(was, str)]
    return fields | {name: was for name, was in texts if fields[name] == brought_back(was, name in areas)}


def in_lines(values: Iterable[Any]) -> str:
    """Values as a form shows them, one a line."""
    return unix_lines("\n".join(map(tracker.as_text, values)))


def pairs_in_lines(pairs: dict[str, Any]) -> str:
    """NAME=value, one a line."""
    return in_lines(f"{name}={tracker.as_text(value)}" for name, value in pairs.items())


def typed_pairs(text: str, field: str) -> dict[str, str]:
    """What was typed as NAME=value, one a line."""
    errors.refuse_nul(text, field)
    pairs: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise TrackerError("invalid", f"line {number} is not of the form NAME=value", field)
        if name.strip() in pairs:
            raise TrackerError("invalid", f"line {number} gives {name.strip()} a second time", field)
        pairs[name.strip()] = value
    return pairs


def script_of(tx: Tx, row: sqlite3.Row) -> str | None:
    """The source of a template's or a job's script, if it has one."""
    return row["script"] and tx.one("SELECT source FROM script WHERE id = ?", (row["script"],))["source"]


AREAS = ("description", "motd", "recipe", "script")  # fields of one value that may have several lines


def template_of_form(
    form: TemplateForm, old: sqlite3.Row | dict[str, Any], project: int | UnsetType = UNSET
) -> shapes.TemplateBody:
    """The template that a form means. What it shows of the old one as text, and was not changed, stays what it was."""
    variables = {brought_back(one.name).strip(): one for one in tracker.declared_variables(old)}
    arguments = tracker.declared_arguments(old)[: len(form.arguments)]
    env = msgspec.json.decode(old["env"])
    if form.env != pairs_in_lines(env):
        if any("\n" in value for value in env.values()):
            problem = "it has a value of several lines, which no form can show; change it by the API"
            raise TrackerError("invalid", problem, "env")
        env = typed_pairs(form.env, "env")
    body = left({name: getattr(form, name) for name in shapes.TemplateBody.__struct_fields__}, dict(old), AREAS)
    body |= {"project": project, "env": env, "key": "" if form.remove_key else form.key or UNSET}
    body["variables"] = [declared(row, variables.get(row.name, shapes.Variable(row.name))) for row in form.variables]
    body["arguments"] = [
        declared(row, argument or shapes.Argument())
        for row, argument in itertools.zip_longest(form.arguments, arguments)
    ]
    body["keep_time"] = None if form.keep_days is None else max(1, round(form.keep_days * 86400))
    return shapes.TemplateBody(**body)


def declared(
    row: VariableRow | ArgumentRow, old: shapes.Variable | shapes.Argument
) -> shapes.Variable | shapes.Argument:
    """What a row declares in place of the old one."""
    choices = "allowed" if isinstance(old, shapes.Variable) else "options"
    known = meant_lines(getattr(row, choices), getattr(old, choices))
    value = meant(row.value, [old.value, *known]) if row.value or old.value == "" else None
    body = left(msgspec.structs.asdict(row), msgspec.structs.asdict(old), ["type"]) | {choices: known, "value": value}
    return type(old)(**body | ({"name": old.name} if isinstance(old, shapes.Variable) else {}))


@tracker.needs(EDIT)
def create_template_by_form(tx: Tx, caller: Caller, project: sqlite3.Row, body: TemplateForm) -> shapes.Template:
    """Makes a template. Its secret is in the answer."""
    return tracker.create_template(tx, caller, template_of_form(body, tracker.NEW_TEMPLATE, project["id"]))


def state_of_template(template: sqlite3.Row | dict[str, Any]) -> str:
    """What tells a template as it is now from what it was, or becomes; of its key and secret it tells nothing."""
    told = [template[name] for name in ("name", *tracker.NEW_TEMPLATE) if name != "key_hash"]
    return tracker.stamp_of(repr(told))


@tracker.needs(EDIT, tracker.TEMPLATE)
def update_template_by_form(tx: Tx, caller: Caller, template: sqlite3.Row, body: TemplateForm) -> None:
    """Changes a template to what the form says; the first time not if it has changed since it was shown."""
    if body.shown and body.shown != state_of_template(template):
        problem = "The template was changed since this page was shown; sent once more, what stands here takes its place"
        raise TrackerError("conflict", problem)
    old = {**template, "script": script_of(tx, template)}
    tracker.update_template(tx, caller, template, template_of_form(body, old))


@tracker.needs(EDIT, tracker.TEMPLATE)
def remove_template(tx: Tx, caller: Caller, template: sqlite3.Row) -> int:
    """Deletes a template, and says of which project it was."""
    tracker.delete_template(tx, caller, template)
    return template["project"]


@tracker.needs(EDIT, tracker.TEMPLATE)
def run_template(tx: Tx, caller: Caller, template: sqlite3.Row, texts: dict[str, str]) -> str:
    """Makes a job of a template, and returns the path of its page; of the template's for who may not read jobs.

    What is left empty is not given. But a variable that has a value in the template is given as it was typed, also as
    an empty text.
    """
    variables = typed_pairs(texts.get("more", ""), "more")
    for variable in tracker.declared_variables(template):
        text = texts.get(f"variable:{variable.name}")
        if text or (text is not None and variable.value is not None):
            variables[variable.name] = meant(text, [variable.value, *variable.allowed])
    free = {f"argument:{number}": one for number, one in enumerate(tracker.free_arguments(template), 1)}
    arguments = [
        meant(texts[name], [one.value, *one.options]) if texts[name] else None
        for name, one in free.items()
        if name in texts
    ]
    job = tracker.make_job(tx, template, variables, arguments, "page", **caller.by)
    return f"/ui/jobs/{job['token']}" if caller.role(job["project"]) & READ else f"/ui/templates/{template['id']}"


@tracker.needs(EDIT, tracker.JOB)
def retry_on_page(tx: Tx, caller: Caller, job: sqlite3.Row) -> str:
    """Makes a new job with all that an ended one was given, and returns its token."""
    return tracker.repeat_job(tx, job, "page", **caller.by)["token"]


@of_project(EDIT)
def project_templates(tx: Tx, caller: Caller, project: sqlite3.Row, query: ListQuery) -> dict[str, Any]:
    """A page of a project's templates, by name, with their last jobs."""
    found = (
        "SELECT id, name, description, api, key_hash FROM template"  # what else there is may be megabytes
        " WHERE project = :project AND deleted IS NULL AND name LIKE :text ESCAPE '\\'"
        " AND (:after = '' OR (name, id) > (SELECT name, id FROM template WHERE id = :after))"
    )
    rows, more = list_page(tx, found, {"project": project["id"]}, query, "id", "name, id")
    return {
        "templates": [{**row, "jobs": last_jobs(tx, row["id"], 3)} for row in rows],
        "more": more,
        "workflows": workflows_of(tx, caller, project["id"]) if has_workflows() else None,
    }


def has_workflows() -> bool:
    """Whether workflows have pages: they are a dialect's."""
    return "/ui/workflows/{workflow}" in jinja_environment().globals["page_paths"]


def workflows_of(tx: Tx, caller: Caller, project: int) -> list[sqlite3.Row]:
    """The workflows of a project, by name. A template that they start with has none for whom its project is hidden."""
    named = f"SELECT iif({VISIBLE}, t.name, 'template ' || t.id) FROM template t JOIN project p ON p.id = t.project"
    return tx.all(
        f"SELECT id, name, created, ({named} WHERE t.id = w.start AND t.deleted IS NULL) AS start_name,"
        " (SELECT COUNT(*) FROM workflow_edge WHERE workflow = w.id) AS edge_count FROM workflow w"
        " WHERE project = :project AND deleted IS NULL ORDER BY name, id LIMIT 1000",
        {"project": project, **caller.as_values},
    )


JOB_ROW = (
    f"{tracker.LISTED_JOB}, (SELECT alias FROM worker WHERE id = job.assignee) AS alias,"
    " (SELECT name FROM project WHERE id = job.project) AS project_name"
)


def last_jobs(tx: Tx, template: int, count: int) -> list[sqlite3.Row]:
    """The last jobs of a template, the newest first."""
    return tracker.find_jobs(tx, None, shapes.JobsQuery(template=template, limit=count), JOB_ROW)[0]


def template_values(tx: Tx, caller: Caller, template: sqlite3.Row | dict[str, Any]) -> dict[str, Any]:
    """A template as the pages show it. Its secret is not among it."""
    script = script_of(tx, template)
    return {
        "template": {name: template[name] for name in ("id", "name", *tracker.NEW_TEMPLATE)},
        "script": script or "",
        "variables": [declared_in_words(one, one.allowed) for one in tracker.declared_variables(template)],
        "arguments": [declared_in_words(one, one.options) for one in tracker.declared_arguments(template)],
        "env": pairs_in_lines(msgspec.json.decode(template["env"])),
        "shown": state_of_template(template),
    }


def declared_in_words(one: shapes.Variable | shapes.Argument, known: list[Any]) -> dict[str, Any]:
    """A declared variable or argument with its values as text: a line each, and as the choices of a form."""
    text, texts = tracker.as_text(one.value), list(map(tracker.as_text, known))
    none = [] if text in texts else [("", "– none –")]
    choices = none + [(choice, choice) for choice in texts] if texts else []
    return {**msgspec.structs.asdict(one), "text": text, "lines": in_lines(known), "choices": choices}


@of_project(EDIT)
def new_template_values(tx: Tx, caller: Caller, project: sqlite3.Row) -> dict[str, Any]:
    """The form of a new template, with what it has by default."""
    return template_values(tx, caller, {"id": None, "name": "", **tracker.NEW_TEMPLATE})


edit_template_page = of_project(EDIT, tracker.TEMPLATE)(template_values)


@of_project(EDIT, tracker.TEMPLATE)
def template_page(tx: Tx, caller: Caller, template: sqlite3.Row) -> dict[str, Any]:
    """A template: what it is, its last jobs, and how others trigger it."""
    required = [one for one in tracker.declared_variables(template) if one.required]
    return {
        **template_values(tx, caller, template),
        "given": [(one.name, tracker.as_text(one.value) or "VALUE") for one in required],
        "samples": [f"argument {number + 1}" for number in range(len(tracker.free_arguments(template)))],
        "given_arguments": [
            (name, tracker.as_text(one.value) or next(map(tracker.as_text, one.options), "VALUE"))
            for name, one in zip(tracker.argument_names(template), tracker.free_arguments(template), strict=True)
        ],
        "token": template["token"],
        "kinds": waiting_kinds(tx, template["project"]),
        "jobs": last_jobs(tx, template["id"], 10),
    }


@tracker.needs(EDIT, tracker.TEMPLATE)
def about_new_secret(tx: Tx, caller: Caller, template: sqlite3.Row) -> dict[str, Any]:
    """The question before a template's new secret."""
    says = "The present one opens nothing any more, wherever it is in use: in buttons, scripts and mails."
    return question(f"A new secret for {template['name']}?", says, "New secret", f"/ui/templates/{template['id']}")


@of_project(EDIT, tracker.TEMPLATE)
def template_delete_page(tx: Tx, caller: Caller, template: sqlite3.Row) -> dict[str, Any]:
    """What goes with a template when it is deleted: the workflows of which it is a step."""
    steps = "SELECT workflow FROM workflow_edge WHERE :id IN (template, target)"
    return {
        **template_values(tx, caller, template),
        "workflows": tx.all(
            f"SELECT name FROM workflow WHERE (start = :id OR id IN ({steps})) AND deleted IS NULL ORDER BY name",
            {"id": template["id"]},
        ),
    }


async def show_secret(visit: Visit, made: shapes.Template | str) -> Response:
    """On to the template's page, which shows its new secret."""
    new = isinstance(made, shapes.Template)
    template, secret = (made.id, made.secret) if new else (visit.path_id("template"), made)
    return visit.reveal(f"/ui/templates/{template}", secret)


class JobListQuery(msgspec.Struct, rename={"start": "from", "end": "to"}):
    """Which jobs a list shows: made between two times (to the minute, UTC), after the place `before`."""

    state: JobState | None = None
    template: Id | None = None
    text: Annotated[str, Meta(max_length=200)] = ""
    start: Annotated[str, Meta(max_length=40)] = ""
    end: Annotated[str, Meta(max_length=40)] = ""
    before: Id = INT64_MAX


def typed_time(text: str, field: str, second: int = 0) -> int | None:
    """The time that a field of a form names, in UTC unless it says otherwise; this second of a whole minute."""
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise TrackerError("invalid", "must be a time like 2026-06-01T07:30", field) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int(when.timestamp()) + (second if when.second == 0 else 0)


def told_apart(rows: list[sqlite3.Row]) -> list[dict[str, Any]]:
    """Rows with ids and names, of which those that several have are told with their numbers."""
    often = Counter(row["name"] for row in rows)
    return [{**row, "name": row["name"] + f" ({row['id']})" * (often[row["name"]] > 1)} for row in rows]


@of_project(READ)
def project_jobs(tx: Tx, caller: Caller, project: sqlite3.Row, query: JobListQuery) -> dict[str, Any]:
    """A page of a project's jobs, the newest first."""
    listed = "SELECT id, name, deleted FROM template WHERE project = ? ORDER BY name LIMIT 1000"
    templates = tx.all(listed, (project["id"],))
    of_project = "SELECT 1 FROM template WHERE id = ? AND project = ?"
    if query.template is not None and not tx.one(of_project, (query.template, project["id"])):
        raise TrackerError("invalid", f"the project has no template {query.template}", "template")
    return {**job_list(tx, None, project["id"], query), "templates": told_apart(templates)}


@tracker.needs(LOGIN)
def all_jobs(tx: Tx, caller: Caller, query: JobListQuery) -> dict[str, Any]:
    """A page of the jobs of all projects that the manager may read, the newest first."""
    templates = tx.all(
        "SELECT t.id, p.name || ': ' || t.name AS name, t.deleted FROM template t JOIN project p ON p.id = t.project"
        f" WHERE {may(READ)} ORDER BY p.name, t.name LIMIT 1000",
        caller.as_values,
    )
    return {**job_list(tx, caller, None, query), "templates": told_apart(templates), "project": None}


def job_list(tx: Tx, caller: Caller | None, project: int | None, query: JobListQuery) -> dict[str, Any]:
    """The jobs that match, of a project or of all that a caller may read."""
    start, end = typed_time(query.start, "from"), typed_time(query.end, "to", 59)
    text = query.text.strip()
    wanted = shapes.JobsQuery(project, query.template, query.state, start, end, query.before, PAGE_ROWS, text)
    rows, more = tracker.find_jobs(tx, caller, wanted, JOB_ROW)
    return {
        "jobs": rows,
        "more": more,
        "wanted": {"template": query.template, "text": query.text, "from": query.start, "to": query.end},
        "known": known_job(tx, caller, project, text),
        "states": get_args(JobState),
    }


def known_job(tx: Tx, caller: Caller | None, project: int | None, text: str) -> sqlite3.Row | None:
    """The job whose id the text is, of the project or of any that the caller may read."""
    job = tracker.find_job(tx, text) if re.fullmatch("[0-9a-f]{24}", text) else None
    seen = job and (job["project"] == project if caller is None else caller.role(job["project"]) & READ)
    return job if seen else None


class JobQuery(msgspec.Struct):
    """Which lines of its log a job's page shows: the last ones, or the last ones before another one."""

    before: Annotated[int, Meta(ge=1, le=INT64_MAX)] = INT64_MAX


@of_project(READ, tracker.JOB)
def job_page(tx: Tx, caller: Caller, job: sqlite3.Row, query: JobQuery) -> dict[str, Any]:
    """A job, with what was made of it and with the last lines of its log."""
    edits = caller.role(job["project"]) & EDIT
    lines = last_lines(tx, job, query.before)
    template = tracker.template_of_job(tx, job)
    script = script_of(tx, job)
    variables = msgspec.json.decode(job["variables"])
    return {
        "job": job,
        "not_before": job["delayed"] and tx.one("SELECT not_before FROM task WHERE id = ?", (job["task"],))[0],
        "live": job["finished"] is None,
        "maker": tracker.maker_of(tx, job),
        "alias": tracker.alias_of(tx, job["assignee"]),
        "template": template if template and template["deleted"] is None else None,
        "variables": {name: tracker.as_text(value) for name, value in variables.items()},
        "arguments": [tracker.as_text(value) for value in msgspec.json.decode(job["arguments"])],
        "script": script if edits else None,  # like the environment, it may hold what is not for all to read
        "env": pairs_in_lines(msgspec.json.decode(job["env"])) if edits else "",
        "result": in_many_lines(job["result"]),
        "output": in_many_lines(job["output"]),
        "lines": lines,
        "older": lines[0]["id"] if lines and lines[0]["id"] > 1 else None,
        "newest": query.before > job["line_count"],
        "retry_of": tracker.token_of_job(tx, job["retry_of"]),
        "workflow": job["workflow"] and tracker.find_workflow(tx, job["workflow"]),
        "run": readable_run(tx, caller, job),
        "steps": visible_steps(tx, caller, job["id"]),
        "job_links": links(tx, job=job),
        "waits_for": job_waits_for(tx, job),
        "left": lease_left(tx, job),
    }


def lease_left(tx: Tx, job: sqlite3.Row) -> float | None:
    """The seconds after which a job ends at the latest. None: nobody holds it."""
    row = tx.one(f"SELECT {ENDS} - ? AS left FROM task WHERE id = ? AND assignee IS NOT NULL", (tx.uptime, job["task"]))
    return row and row["left"]


SEEN = """
    SELECT COUNT(*) FROM (SELECT worker FROM tally WHERE project = ? LIMIT 1000) t JOIN worker w ON w.id = t.worker
    WHERE w.last_seen > ?
"""


def job_waits_for(tx: Tx, job: sqlite3.Row) -> str:
    """What a job waits for that could be done now; "" of another one.

    Other systems' agents ask at doors of their own: they are known by what they have done here.
    """
    if job["state"] != "waiting" or job["delayed"] or job["task"] is None:
        return ""
    if tracker.find_project(tx, job["project"])["paused"]:
        return "the end of the project's pause"
    known = tx.limits.heard.takes(job["project"])
    if not known and tx.one(SEEN, (job["project"], tx.time - tx.limits.heard.lately))[0]:
        known = [""]
    return heard.waits_for(known, "commands" if job["script"] is None else "scripts")


def readable_run(tx: Tx, caller: Caller, job: sqlite3.Row) -> sqlite3.Row | None:
    """The run of which the job is a step, if the caller may read it."""
    run = tracker.run_of(tx, caller, job)
    return run if run and caller.role(run["project"]) & READ else None


def visible_steps(tx: Tx, caller: Caller, run: int) -> list[sqlite3.Row]:
    """The last steps of a workflow's run. One may be of a project that the caller must not see."""
    steps = f"SELECT {tracker.LISTED_JOB} FROM job WHERE workflow_job = ? ORDER BY id DESC LIMIT ?"
    return [row for row in tx.all(steps, (run, PAGE_ROWS)) if caller.role(row["project"]) & READ]


def in_many_lines(text: str | None) -> str | None:
    """JSON as people read it. A long one stays as it is: deeply nested, it would become a thousand times as long."""
    return text if text is None or len(text) > MOST_SHOWN else msgspec.json.format(text, indent=2)


def last_lines(tx: Tx, job: sqlite3.Row, before: int) -> list[sqlite3.Row]:
    """The last lines of a job's log before this one, as many as a page shows, in the order logged."""
    last = min(before - 1, job["line_count"])
    after = max(0, last - LOG_LINES_SHOWN)
    lines: list[sqlite3.Row] = []
    while after < last and (piece := tracker.job_log(tx, job["id"], after, last - after)):
        lines += piece
        after = piece[-1]["id"]
    return lines


# ── Workers and access ────────────────────────────────────────────────────────────────────────────────────────────────


class WorkersQuery(ListQuery):
    sort: Literal["last_seen", "closed_task_count", "alias"] = "last_seen"


@tracker.needs(LOGIN)
def worker_list(tx: Tx, caller: Caller, query: WorkersQuery) -> dict[str, Any]:
    """A page of all workers."""
    by_name = query.sort == "alias"
    beyond, order = (">", "ASC") if by_name else ("<", "DESC")
    found = f"SELECT *, {query.sort} || ':' || id AS place FROM worker WHERE (alias LIKE :text ESCAPE '\\' OR id = :id)"
    values: dict[str, Any] = {"id": typed_id(query.text)}
    if query.after:
        found += f" AND ({query.sort}, id) {beyond} (:value, :last)"
        name, _, last = query.after.rpartition(":")
        number, values["last"] = tracker.place_of(f"0:{last}" if by_name else query.after)
        values["value"] = name if by_name else number
    rows, more = list_page(tx, found, values, query, "place", f"{query.sort} {order}, id {order}")
    return {"workers": [{**row, **worker_pace(tx, caller, row["id"])} for row in rows], "more": more}


def worker_pace(tx: Tx, caller: Caller, worker: int) -> dict[str, Any]:
    """What a worker holds, has closed in the last day, and closes an hour, over all projects that the caller sees."""
    hour = tx.time // 3600
    row = tx.one(
        f"SELECT ifnull(SUM(t.held_task_count), 0) AS held, ifnull(SUM({LAST_DAY}), 0) AS day,"
        " ifnull(SUM(t.closed_task_count - t.rolled_task_count + ifnull(h.closed_task_count, 0)), 0) AS recent"
        " FROM tally t JOIN project p ON p.id = t.project"
        " LEFT JOIN tally_hour h ON h.hour = :hour AND h.project = t.project AND h.worker = t.worker"
        f" WHERE t.worker = :worker AND {VISIBLE}",
        {"hour": hour - 1, "worker": worker, **caller.as_values},
    )
    return {"held": row["held"], "day": row["day"], "rate": row["recent"] / (3600 + tx.time % 3600)}


@tracker.needs(LOGIN)
def worker_page(tx: Tx, caller: Caller, worker: int) -> dict[str, Any]:
    """A worker with its projects: those that the caller may see."""
    row = tx.one("SELECT * FROM worker WHERE id = ?", (worker,))
    if row is None:
        raise TrackerError("not_found", f"No worker {worker}")
    projects = tx.all(
        f"SELECT p.id, p.name, p.public, {may(READ)} AS readable, a.role_assign, a.role_submit, a.request,"
        " t.held_task_count,"
        " t.pause_uptime IS NOT NULL AND t.failures_in_row >= :most AS is_paused, t.failures_in_row,"
        f" t.closed_task_count, {LAST_DAY} AS day, t.runtime_min, t.runtime_max,"
        " t.runtime_total / nullif(t.closed_task_count, 0) AS runtime_avg FROM project p"
        " LEFT JOIN worker_access a ON a.project = p.id AND a.worker = :worker"
        " LEFT JOIN tally t ON t.project = p.id AND t.worker = :worker"
        f" WHERE (a.worker IS NOT NULL OR t.worker IS NOT NULL) AND {VISIBLE} ORDER BY p.name LIMIT 100",
        {"worker": worker, "most": tx.settings.pause_after_failures or pauses.NEVER, **caller.as_values},
    )
    values = {"worker": worker, **caller.as_values, "public": tx.settings.public_logs}
    now, match = tracker.SEARCH_TIME, READABLE_LINES
    logs, _ = tracker.search(tx, "log_entry", "worker = :worker", match, values, INT64_MAX, 20, now, newest=True)
    held = [one for one in held_by(tx, worker, 20) if caller.role(one["project"]) & READ]
    return {"worker": {**row, **worker_pace(tx, caller, worker)}, "projects": projects, "held": held, "logs": logs}


@of_project(MANAGE_ACCESS)
def access_page(tx: Tx, caller: Caller, project: sqlite3.Row, query: ListQuery) -> dict[str, Any]:
    """Requests for access (of workers that have worked here first), who has it, and the managers' roles."""
    of_workers = (
        "SELECT a.*, w.alias, w.created, w.last_seen, w.paused, w.closed_task_count FROM worker_access a"
        " JOIN worker w ON w.id = a.worker WHERE a.project = :project AND"
    )
    after = int(query.after) if query.after.isdecimal() and len(query.after) < 19 else 0
    values = {"project": project["id"], "after": after, "most": PAGE_ROWS, "number": typed_id(query.text)}
    found = f"{of_workers} NOT a.request AND a.worker > :after AND {ACCESS_MATCHES}"
    rows, more = list_page(tx, found, values, query, "worker")
    asking = f"{of_workers} a.request AND {ACCESS_MATCHES} ORDER BY w.closed_task_count = 0, a.worker"
    return {
        "requests": tx.all(f"{asking} LIMIT :most", {**values, "text": like(query.text)}),
        "accesses": rows,
        "more": more,
        "roles": tx.all(
            "SELECT r.role, m.id, m.username, m.tracker_admin FROM manager_role r JOIN manager m ON m.id = r.manager"
            " WHERE r.project = ? ORDER BY m.username LIMIT 200",
            (project["id"],),
        ),
        "roles_shown": roles_shown,
    }


class RolesForm(shapes.RoleForm):
    """The roles of a manager, with those (as JSON) that the form showed."""

    shown: str = ""


def roles_shown(username: str, role: int) -> shapes.RoleForm:
    """What the form for a manager's roles shows."""
    return shapes.RoleForm(username, **{name.lower(): bool(role & bit) for bit, name in tracker.ROLE_NAMES.items()})


def save_roles(tx: Tx, caller: Caller, project: int, body: RolesForm) -> None:
    """Gives and takes the roles that were changed in the form; exactly these by one that was for nobody yet."""
    had = "SELECT r.role FROM manager_role r JOIN manager m ON m.id = r.manager WHERE r.project = ? AND m.username = ?"
    row = tx.one(had, (project, body.username.strip()))
    now = roles_shown(body.username, row["role"] if row else 0)
    changed = changed_fields(body, shapes.RoleForm, now)
    tracker.set_named_role(tx, caller, project, msgspec.structs.replace(now, **changed))


ACCESS_MATCHES = "(w.alias LIKE :text ESCAPE '\\' OR a.source LIKE :text ESCAPE '\\' OR a.worker = :number)"


class Answer(msgspec.Struct):
    """What a manager answers requests for access: the selected, or all with `text` in the alias or the address.

    `until`: the time of the last one that the question about all was about, and `most`, how many those were: others may
    have come in since, by a clock that had been ahead even with an earlier time.
    """

    answer: Literal["accept", "reject"]
    which: Literal["selected", "all"] = "selected"
    text: Annotated[str, Meta(max_length=200)] = ""
    until: Annotated[int, Meta(ge=0, le=INT64_MAX)] = INT64_MAX
    most: Annotated[int, Meta(ge=0, le=INT64_MAX)] = INT64_MAX


ANSWERED = f"""
    FROM worker_access a JOIN worker w ON w.id = a.worker WHERE a.project = :project AND a.request
        AND iif(:all, a.requested <= :until AND {ACCESS_MATCHES}, a.worker IN (SELECT value FROM json_each(:workers)))
"""


def answered_values(project: sqlite3.Row, body: Answer, workers: list[int]) -> dict[str, Any]:
    """The values of ANSWERED."""
    values = {"project": project["id"], "all": body.which == "all", "workers": encode(workers).decode()}
    return {**values, "text": like(body.text), "number": typed_id(body.text), "until": body.until}


@tracker.needs(MANAGE_ACCESS, acts=True)
def answer_requests(tx: Tx, caller: Caller, project: sqlite3.Row, body: Answer, workers: list[int]) -> int:
    """Answers those of the requests that still wait. How many those were. Refuses when they are more by now."""
    values = answered_values(project, body, workers)
    if tx.one(f"SELECT COUNT(*) {ANSWERED}", values)[0] > body.most:
        raise TrackerError("conflict", "Others have asked for access meanwhile: look at the list again")
    change = "UPDATE worker_access SET request = 0" if body.answer == "accept" else "DELETE FROM worker_access"
    sql = f"{change} WHERE project = :project AND worker IN (SELECT a.worker {ANSWERED})"
    return tx.execute(sql, values).rowcount


@tracker.needs(MANAGE_ACCESS)
def about_requests(tx: Tx, caller: Caller, project: sqlite3.Row, body: Answer, workers: list[int]) -> dict[str, Any]:
    """The question before many requests are answered: of how many workers, and what that gives them."""
    values = answered_values(project, body, workers)
    sums = "COUNT(*), ifnull(MAX(requested), 0), SUM(role_assign), SUM(role_submit)"
    count, until, assign, submit = tx.one(f"SELECT {sums} {ANSWERED}", values)
    names = tx.all(f"SELECT w.alias {ANSWERED} ORDER BY a.worker LIMIT 10", values)
    listed = in_short([row["alias"][:50] for row in names], count)
    if not count:
        says = "None of them waits for an answer any more."
    elif body.answer == "accept":
        says = f"Tasks are assigned to {assign:,} of them, and {submit:,} may submit: {listed}."
    else:
        says = f"They may ask again: {listed}."
    requests = "the one request" if count == 1 else f"{count:,} requests"
    then = f"/ui/projects/{project['id']}/access"
    kept = {"answer": body.answer, "which": body.which, "text": body.text, "worker": workers, "until": until}
    kept["most"] = count
    return question(
        f"{body.answer.capitalize()} {requests}?", says, f"{body.answer.capitalize()} them", then, kept=kept
    )


async def answer_on_list(visit: Visit) -> Response:
    """POST …/access/answer: accepts or rejects the selected requests, or all that match what was searched for.

    Asks first. Who has asked for access meanwhile is not among all that match.
    """
    project, body = visit.path_id("project"), visit.form_as(Answer)
    workers = [] if body.which == "all" else selected(visit, "worker", "request")
    to = visit.back(f"/ui/projects/{project}/access")
    if visit.field("confirmed") != "yes":
        values = await visit.read(about_requests, project, body, workers)
        values["kept"]["back"] = values["cancel"] = to
        return await visit.render(QUESTION, values)
    count = await visit.write(answer_requests, project, body, workers)
    said = f"{count:,} {'request is' if count == 1 else 'requests are'} {body.answer}ed."
    return visit.see(to, said)


# ── Logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class LogQuery(msgspec.Struct):
    """Which log lines: from a level up to the gravest, of a worker, of a project, with a text; older than `before`."""

    level: shapes.LogLevel = "trace"
    worker: Id | None = None
    project: Id | None = None
    text: Annotated[str, Meta(max_length=200)] = ""
    before: Id = INT64_MAX


def log_page(tx: Tx, caller: Caller, query: LogQuery) -> dict[str, Any]:
    """Workers' log lines that the caller may read, as they came in, the newest first."""
    reader = log_reader(tx, caller)
    wanted = {"level": query.level, "worker": query.worker, "project": query.project, "text": query.text}
    values = {**wanted, **reader, "level": LEVELS[query.level]}
    if query.project is not None:
        tracker.get_project(tx, caller, query.project)  # a hidden one's log must not tell that it exists
    of = [f"{name} = :{name}" for name in ("worker", "project") if wanted[name] is not None]
    where, *match = of or ["level <= 4" if values["level"] <= 4 else "TRUE"]  # one has an index, the other is looked at
    match = " AND ".join(
        [*match, "level <= :level", READABLE_LINES, *([tracker.contains("message")] if query.text else [])]
    )
    now, columns = tracker.SEARCH_TIME, "*, (SELECT alias FROM worker WHERE id = log_entry.worker) AS alias"
    rows, more = tracker.search(tx, "log_entry", where, match, values, query.before, 100, now, True, columns)
    visible = f"SELECT id, name FROM project p WHERE {VISIBLE} ORDER BY name LIMIT 1000"
    return {"logs": rows, "more": more, "projects": tx.all(visible, caller.as_values), "filter": wanted}


ALL_ACTS = "SELECT a.*, p.name AS project_name FROM act a LEFT JOIN project p ON p.id = a.project WHERE"


def act_rows(tx: Tx, caller: Caller, where: str, values: dict[str, Any], query: shapes.ActsQuery) -> dict[str, Any]:
    """A page of what managers did, and where the next one goes on."""
    values |= {"before": query.before, "limit": PAGE_ROWS + 1}
    rows = tx.all(f"{ALL_ACTS} {where} AND a.id < :before ORDER BY a.id DESC LIMIT :limit", values)
    more = rows[PAGE_ROWS - 1]["id"] if len(rows) > PAGE_ROWS else None
    return {"acts": [{**row, "details": act_details(tx, caller, row)} for row in rows[:PAGE_ROWS]], "more": more}


@of_project(READ)
def project_acts(tx: Tx, caller: Caller, project: sqlite3.Row, query: shapes.ActsQuery) -> dict[str, Any]:
    """A page of what managers did in a project."""
    return act_rows(tx, caller, "a.project = :project", {"project": project["id"]}, query)


@tracker.needs(ADMIN)
def all_acts(tx: Tx, caller: Caller, query: shapes.ActsQuery) -> dict[str, Any]:
    """A page of what managers did, wherever that was."""
    return {**act_rows(tx, caller, "TRUE", {}, query), "project": None}


# ── Account and administration ────────────────────────────────────────────────────────────────────────────────────────


def entering(enter: Callable, form: type, says: str) -> Handler:
    """POST of the login or register page."""

    async def handler(visit: Visit) -> Response:
        kept = kept_fields(visit.field("kept"))
        manager, session = await enter(visit, visit.form_as(form))
        cookies = await tracker.login_cookies(visit, session)
        if kept:
            visit.begun = session
            visit.__dict__.pop("token", None)
            return await send_again(visit, visit.back("/ui/"), kept, *cookies)
        return visit.see(visit.back("/ui/"), says.format(username=manager.username), *cookies)

    return handler


def kept_fields(text: str) -> dict[str, list[str]]:
    """What was typed before a login, as its page has kept it."""
    errors.refuse_many_parts(text.encode())  # it comes from anybody
    return errors.decode(text.encode(), dict[str, list[str]]) if text else {}


async def log_out_page(visit: Visit) -> Response:
    """Ends the session, for every holder of its cookie."""
    await visit.tracker.db.write(tracker.end_session, visit.session())
    return visit.see("/ui/", "You are logged out.", tracker.session_cookie(visit, None))


@tracker.needs(LOGIN)
def account_page(tx: Tx, caller: Caller) -> dict[str, Any]:
    """The manager's own account: its roles, and its logins."""
    values = {"manager": caller.manager.id}
    roles = (
        "SELECT p.id, p.name, r.role FROM manager_role r JOIN project p ON p.id = r.project"
        " WHERE r.manager = :manager ORDER BY p.name LIMIT 200"
    )
    return {"sessions": tracker.list_sessions(tx, caller), "roles": tx.all(roles, values)}


async def change_password_page(visit: Visit) -> Response:
    """Goes on with the only session that is left."""
    session = await tracker.change_password(visit, visit.form_as(shapes.PasswordForm))
    message = "The password is changed; all other logins are ended."
    return visit.see("/ui/account", message, *await tracker.login_cookies(visit, session))


@tracker.needs(ADMIN, acts=True)
def trust_clock(tx: Tx, caller: Caller) -> None:
    """The clock is right as it stands: retention and due times go by it again."""
    tx.clock.believe()
    tracker.save_uptime(tx)


@tracker.needs(ADMIN)
def admin_page(tx: Tx, caller: Caller) -> dict[str, Any]:
    """The managers, the settings in force and the state of the database."""
    return {
        "managers": tx.all("SELECT * FROM manager ORDER BY username LIMIT 1000"),
        "fields": tracker.FIELDS,
        "doubt": tx.clock.doubt(),
        "budgets": budgets.fullness(tx),
        "untrusted": tx.all(
            "SELECT p.id, p.name, p.size, m.username FROM project p LEFT JOIN manager m ON m.id = p.creator"
            " WHERE NOT p.trusted ORDER BY p.size DESC LIMIT 20"
        ),
        "facts": {
            "Tracker": tracker.__version__,
            "Python": sys.version.split()[0],
            "SQLite": sqlite3.sqlite_version,
            "Schema version": SCHEMA_VERSION,
            "Database file": str(Path(tx.settings.database).resolve()),
            "Served for": tx.uptime,
            "Database size": tx.one("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")[0],
            "Write-ahead log": wal_size(tx.settings),
            "Free disk": tx.limits.free_disk or 0,
            "Workers": tx.one("SELECT COUNT(*) FROM worker")[0],
            "Tasks": tx.one(f"SELECT ifnull(SUM(failed_task_count + {' + '.join(UNDONE)}), 0) FROM project")[0],
        },
    }


async def administration(visit: Visit) -> Response:
    """The page, with the sizes of the tables, which take a moment to find out."""
    values = await visit.read(admin_page)
    return await visit.render("admin.html", {**values, "space": await visit.tracker.db.space.sizes()})


def wal_size(settings: tracker.Settings) -> int:
    """Bytes of the write-ahead log; 0 when there is none."""
    with contextlib.suppress(OSError):
        return Path(f"{Path(settings.database).resolve()}-wal").stat().st_size
    return 0


async def docs_page(visit: Visit) -> Response:
    """The API, as people read about it."""
    values = await visit.read(None)
    docs = await asyncio.to_thread(documentation, visit.tracker.settings, visit.base)
    return await visit.render("docs.html", {**values, "docs": docs})


# ── The table of pages ────────────────────────────────────────────────────────────────────────────────────────────────

ONE_PROJECT = "/ui/projects/{project}"
NOTICES = ONE_PROJECT + "/edit#notices"
ONE_TEMPLATE = "/ui/templates/{template}"


JOB_RETRIED = "This is the new job, with all that the other one was given."


QUESTION = "question.html"

# Each page, and after it the actions that stand under it.
PAGES = [
    Page("/ui/", "overview.html", overview),
    Page("/ui/projects/new", "project_edit.html", new_project_values),
    Action(
        "",
        tracker.create_project,
        ProjectForm,
        "/ui/projects/{result}",
        "The project is there. Workers may ask for access now.",
    ),
    Page("/ui/projects/import", "project_import.html", tracker.needs(LOGIN)(nothing_more)),
    Action("", moving.import_by_form, again=True),
    Action("/ui/projects/pause", pause_all),
    Page(ONE_PROJECT, show_project),
    Action("/pause", tracker.pause_project, says=paused_in_words, again=False),
    Action("/rate", set_rate, RateForm, says="The rate is set.", again=False),
    Action("/reset/{kind}", reset_project, again="confirm"),
    Action("/resume/{worker}", workers.resume_worker, says="The worker gets tasks of this project again."),
    Action("/trust", tracker.trust_project, says="The project is trusted now."),
    Page(ONE_PROJECT + "/crowd", crowd_page),
    Page(ONE_PROJECT + "/edit", "project_edit.html", edit_values),
    Action("", save_settings, SettingsForm, to=ONE_PROJECT, says="Saved."),
    Action("/export", moving.export_by_form),
    Action("/archive", archive_project, says=archived_in_words, again=False),
    Action("/delete", delete_project, again="confirm"),
    Action(ONE_PROJECT + "/secret", save_secret, says="The secret is saved."),
    Action(ONE_PROJECT + "/webhook_secret", save_webhook_secret, says="The webhook secret is saved."),
    Action(ONE_PROJECT + "/notices", save_notices, NoticesForm, to=NOTICES, says="Saved.", again=True),
    Action(ONE_PROJECT + "/notices/test", test_hook, again=True),
    Page(ONE_PROJECT + "/secrets", moved_to(ONE_PROJECT + "/edit#secrets")),
    Page(ONE_PROJECT + "/acts", "acts.html", project_acts),
    Page("/ui/acts", "acts.html", all_acts),
    Page("/ui/operations/{operation}", "operation.html", operation_page),
    Action("/stop", tracker.stop_operation, says="Stopped. What was done stays.", again=False),
    Page(ONE_PROJECT + "/tasks", "tasks.html", task_list),
    Action("", act_on_list, again=True),
    Page(ONE_PROJECT + "/export", export_tasks),
    Page(ONE_PROJECT + "/submit", "submit.html", of_project(EDIT)(no_more)),
    Action("", tracker.submit_as_manager, says="The task is submitted."),
    Action("/lines", submit_lines, again=True),
    Page("/ui/tasks/{task}", "task.html", task_page),
    Page(ONE_PROJECT + "/templates", "templates.html", project_templates),
    Page(ONE_PROJECT + "/templates/new", "template_edit.html", new_template_values),
    Action("", create_template_by_form, shows=show_secret),
    Page(ONE_TEMPLATE, "template.html", template_page),
    Action("/run", run_template, Visit.texts, "{result}", "The job is made."),
    Action("/rotate_secret", tracker.rotate_template_secret, shows=show_secret, asks=(QUESTION, about_new_secret)),
    Action(
        "/delete",
        remove_template,
        to="/ui/projects/{result}/templates",
        says="The template is deleted. Its jobs go on, and stay.",
        asks=("template_delete.html", template_delete_page),
    ),
    Page(ONE_TEMPLATE + "/edit", "template_edit.html", edit_template_page),
    Action("", update_template_by_form, to=ONE_TEMPLATE, says="Saved. Jobs that were made before stay as they are."),
    Page(ONE_PROJECT + "/jobs", "jobs.html", project_jobs),
    Page("/ui/jobs", "jobs.html", all_jobs),
    Page("/ui/jobs/{job}", "job.html", job_page),
    Action("/cancel", tracker.cancel_job, says="The job is cancelled.", again=True),
    Action("/retry", retry_on_page, to="/ui/jobs/{result}", says=JOB_RETRIED, again=True),
    Page(ONE_PROJECT + "/access", "access.html", access_page),
    Action("/accept/{worker}", tracker.accept_request, says="The worker has access now."),
    Action("/reject/{worker}", tracker.reject_request, says="The worker has no access (any more)."),
    Action("/answer", answer_on_list),
    Action("/set", tracker.set_worker_access, says="The worker's access is set."),
    Action("/role", save_roles, RolesForm, says="The manager's roles are set."),
    Page("/ui/workers", "workers.html", worker_list),
    Action("/pause", tracker.set_worker_paused, says=paused_in_words, again=False),
    Page("/ui/workers/{worker}", "worker.html", worker_page),
    Action("/rename", workers.rename_worker, says="The worker has another name.", again=True),
    Action("/delete", workers.delete_by_form, asks=("worker_delete.html", workers.delete_page)),
    Page("/ui/logs", "logs.html", log_page),
    Page("/ui/docs", docs_page),
    Page("/ui/login", "login.html"),
    Action("", entering(tracker.authenticate_manager, shapes.LoginBody, "Welcome back, {username}."), again=True),
    Action("/ui/logout", log_out_page),
    Page("/ui/register", "register.html"),
    Action("", entering(tracker.make_account, shapes.RegisterBody, "Welcome, {username}."), again=True),
    Page("/ui/account", "account.html", account_page),
    Action("/password", change_password_page, again=True),
    Action("/sessions", tracker.end_sessions, to="/ui/account", says="Ended: {result:,}.", again=False),
    Page("/ui/admin", administration),
    Action(
        "/promote/{manager}",
        tracker.promote_manager,
        says="The manager is a tracker admin now.",
        asks=(QUESTION, about_promotion),
    ),
    Action("/clock", trust_clock, to="/ui/admin", says="The clock is trusted now."),
    Action("/demote/{manager}", tracker.demote_manager, says="The manager is no tracker admin any more."),
    Action("/block/{manager}", tracker.block_manager, says="The manager is logged out, and cannot log in any more."),
    Action("/unblock/{manager}", tracker.unblock_manager, says="The manager may log in again."),
    Action("/delete/{manager}", delete_manager, asks=("manager_delete.html", manager_delete_page)),
]


def tables() -> list[Iterable[Page | Action]]:
    """The tracker's own pages, and those of the dialects that have some."""
    return [PAGES, *(getattr(dialect, "PAGES", ()) for dialect in tracker.dialects())]


async def no_page(visit: Visit) -> Response:
    """What is no page at all. 404. One that ends in a slash, as some write addresses, is looked for without it.

    What an action answers stands at its address, which a browser may ask for as for a page: that leads to its own.
    """
    path, mark, query = visit.here.partition("?")
    for action, page in action_pages():
        if visit.scope["method"] in ("GET", "HEAD") and (match := action.fullmatch(path)):
            return RedirectResponse(visit.url(page.format(**match.groupdict())), 303)
    if path.endswith("/") and path.isascii() and path.isprintable():
        return RedirectResponse(visit.url(path.rstrip("/")) + mark + query, 308)
    raise TrackerError("not_found", f"There is nothing at {visit.here}")


no_page.methods = ()


def packed_file(response: FileResponse) -> Response:
    """The same file, packed if it is a text."""
    path, status = response.path, response.stat_result
    if not packing.PACKED.match(response.headers["content-type"]) or status.st_size > MOST_PACKED:
        return response
    packed = Response(packed_content(str(path), status.st_mtime_ns))
    for name in ("content-type", "etag", "last-modified"):
        packed.headers[name] = response.headers[name]
    packed.headers["content-encoding"] = "gzip"
    packed.headers["vary"] = "Accept-Encoding"
    return packed


MOST_PACKED = 2**20  # bytes of a file that is held in memory


@functools.lru_cache(maxsize=32)
def packed_content(path: str, changed: int) -> bytes:
    return packing.gzipped(Path(path).read_bytes())


class Static(StaticFiles):
    """The stylesheet and the scripts. Their addresses carry the version, so browsers may keep them."""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        begun = False

        async def send_on(message: dict[str, Any]) -> None:
            nonlocal begun
            if not begun:
                scope["app"].state.tracker.meter.answers["static"][message["status"]] += 1
            begun = True
            await send(message)

        try:
            await super().__call__(scope, receive, send_on)
        except OSError as error:
            refusal = tracker.fault(error, f"{scope['method']} {scope['path']}")
            if not begun:  # or else it is broken off
                answer = Response(refusal.message, tracker.STATUS[refusal.code], media_type="text/plain")
                await answer(scope, receive, send)

    def get_path(self, scope: dict) -> str:
        path = scope["path_params"]["path"]
        if len(path) > 255:  # to look for it costs a time that is quadratic in its parts
            raise HTTPException(404)
        return os.path.normpath(path)

    def methods_at(self, scope: dict) -> Iterable[str]:
        with contextlib.suppress(OSError, ValueError, HTTPException):  # a name that no file can have
            return ("GET",) if os.path.isfile(self.lookup_path(self.get_path(scope))[0]) else ()
        return ()

    def file_response(self, *args: Any, **options: Any) -> Response:
        """The file, of which what is text is packed once, for those who ask."""
        response, scope = super().file_response(*args, **options), args[2]
        if isinstance(response, FileResponse) and packing.takes_gzip(packing.header(scope, b"accept-encoding")):
            response = packed_file(response)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["cache-control"] = "public, max-age=3600"
        return response


# ── Words and templates ───────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def jinja_environment() -> Environment:
    """What renders templates/, with the words and filters that they know. None is read a second time."""
    environment = Environment(
        loader=FileSystemLoader(tracker.HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(
        dialects=tracker.installed_dialects(),
        page_paths={path for _, path, _ in tracker.all_pages()},
        version=tracker.__version__,
        PAGE_ROWS=PAGE_ROWS,
        MOST_SHOWN=MOST_SHOWN,
        FOLDED=FOLDED,
        level_names=LEVEL_NAMES,
        notice_events=notices.EVENTS,
        role_names=tracker.ROLE_NAMES,
        state_of=tracker.state_of,
        OTHER=failures.OTHER,
        shell_word=shlex.quote,
    )
    environment.filters.update(
        number=lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.15g}",
        moment=moment,
        ago=ago,
        duration=duration,
        roughly=roughly,
        rate=lambda rate: "–" if rate is None else charts.rate_text(rate),
        bytes=bytes_in_words,
        has=lambda role, bit: bool(role & bit),
        seen=names.seen,
        poses=poses_as_tracker,
        json=lambda value: encode(value).decode(),
        values_of=lambda row, *names: tuple(row[name] for name in names),
    )
    return environment


@functools.lru_cache(maxsize=1024)
def poses_as_tracker(scope: str) -> bool:
    """Whether the scope of a worker's line looks like that of the tracker's own lines in a job's log."""
    return names.look(names.seen(scope)) == names.look("tracker")


def moment(time_stamp: float) -> str:
    """A time for people who want it exactly."""
    if not 0 <= time_stamp < 1e11:  # what a worker claims may be anything
        return str(time_stamp)
    return datetime.fromtimestamp(time_stamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float | None) -> str:
    """A time span with its two largest units: 3 d 4 h, 5 min, 2.5 s. A clock that was set back gives none."""
    if seconds is None or seconds < 0:
        return "–"
    if 0 < seconds < 0.05:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    for (name, size), smaller in itertools.zip_longest(UNITS, UNITS[1:]):
        if seconds >= size:
            rest = int(seconds % size // smaller[1]) if smaller else 0
            return f"{int(seconds // size)} {name}" + (f" {rest} {smaller[0]}" if rest else "")
    return "0 s"


def roughly(seconds: float | None) -> str:
    """A time that is guessed, as a person would say it: about 8 h, about 25 min, under a minute."""
    if seconds is None or seconds < 0:
        return "–"
    if seconds < 60:
        return "under a minute"
    for name, size, most in (("min", 60, 90), ("h", 3600, 36), ("days", 86400, 60), ("months", 2_629_746, 24)):
        if seconds < size * most:
            count = seconds / size
            return f"about {max(1, 5 * round(count / 5) if count > 12.5 else round(count))} {name}"
    return f"about {round(seconds / 31_556_952):,} years"


def ago(time_stamp: float, now: float) -> str:
    """How long ago that was, in the largest unit."""
    seconds = now - time_stamp
    if not -1 <= seconds <= 1e11:
        return moment(time_stamp)
    if seconds < 5:
        return "just now"
    name, size = next(unit for unit in UNITS if seconds >= unit[1])
    return f"{int(seconds // size)} {name} ago"


def bytes_in_words(size: int) -> str:
    """A size in its largest unit up to GiB: 2.5 MiB."""
    power = min(max(size.bit_length() - 1, 0) // 10, 3)
    return f"{size / 1024**power:,.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
