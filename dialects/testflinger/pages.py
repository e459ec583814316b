"""The manager pages of the Testflinger dialect: its queues, jobs, agents and clients.

A queue is a project, so who may read the project sees the queue, its jobs and the agents that listen to it. Clients,
and which queues are restricted, are for tracker admins. What a job is in every other respect its page in tracker.py
tells, and that is also where it is cancelled; the two lead to each other.
"""

from __future__ import annotations

import functools
import hmac
import itertools
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import joblog
import pages
import tracker
from dialects.testflinger import clients, domain, events, queues
from dialects.testflinger.files import files_of
from pages import PAGE_ROWS, Action, Page
from streams import Stream
from tracker import EDIT, READ, Caller, TrackerError, Tx

MOST_SHOWN = 500  # agents or images of one queue, queues of one agent: nobody has so many
OUTPUT_SHOWN = 20_000  # characters of a job's output on a page, which asks for them again and again
KINDS = {"output": "Output", "serial": "Serial output"}
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
FILES = {"artifact": "Artifact", "attachments": "Attachments"}
READABLE = "(:admin OR EXISTS (SELECT 1 FROM manager_role WHERE project = p.id AND manager = :manager AND role & 1))"


def links(tx: Tx, project: sqlite3.Row | None = None, job: sqlite3.Row | None = None) -> list[pages.Link]:
    """Where the tracker's own pages lead to these: from everywhere, from a project that is a queue, from its jobs."""
    if job is not None:
        row = tx.one("SELECT uuid FROM testflinger_job WHERE job = ?", (job["id"],))
        return [pages.Link("Testflinger job", f"/ui/testflinger/jobs/{row['uuid']}", row["uuid"])] if row else []
    if project is not None:
        queue = f"/ui/testflinger/queues/{project['id']}"
        return [pages.Link("Queue", queue)] if events.is_queue(tx, project["id"]) else []
    any_queue = tx.one("SELECT 1 FROM testflinger_queue LIMIT 1")
    return [pages.Link("Testflinger", "/ui/testflinger/queues")] if any_queue else []


# ── Queues ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class QueuesQuery(pages.ListQuery):
    """Which queues are listed; or the id of a job that is looked for instead."""

    job: Annotated[str, Meta(max_length=200)] = ""


class QueueQuery(msgspec.Struct):
    """Which of a queue's waiting jobs are shown: those after this one, which has this priority (priority:job)."""

    after: str = ""


class RestrictedForm(msgspec.Struct):
    restricted: bool


def queues_page(tx: Tx, caller: Caller, query: QueuesQuery) -> dict[str, Any]:
    """The queues that the manager may read, by name: what waits and runs there, who listens, how long jobs waited."""
    tracker.logged_in(caller)
    rows = tx.all(
        "SELECT p.id, p.name, p.paused, p.waiting_task_count, p.assigned_task_count, q.description, q.restricted,"
        " (SELECT COUNT(*) FROM testflinger_agent_queue WHERE queue = p.name) AS agent_count"
        " FROM testflinger_queue q JOIN project p ON p.id = q.project"
        f" WHERE {READABLE} AND p.name > :after AND p.name LIKE :text ESCAPE '\\' ORDER BY p.name LIMIT :limit",
        {**caller.as_values, "after": query.after, "text": pages.like(query.text), "limit": PAGE_ROWS + 1},
    )
    shown = rows[:PAGE_ROWS]
    return {
        "queues": shown,
        "waits": queues.wait_times(tx, [row["name"] for row in shown]),
        "percentiles": list(map(str, queues.PERCENTILES)),
        "more": shown[-1]["name"] if len(rows) > PAGE_ROWS else "",
        "query": query,
    }


async def show_queues(visit: pages.Visit) -> Response:
    """The list of queues, from which a job's id leads to the page of the job."""
    query = visit.query_as(QueuesQuery)
    if query.job.strip():
        try:
            uuid = await visit.look(job_looked_for, query.job.strip().lower())
            return visit.see(f"/ui/testflinger/jobs/{uuid}")
        except TrackerError as error:
            if error.code == "unauthorized":
                raise
            visit.error = error
    return await visit.render("testflinger_queues.html", await visit.read(queues_page, query))


def job_looked_for(tx: Tx, caller: Caller, uuid: str) -> str:
    """The id of a job that somebody has typed, if that one may be looked at."""
    tracker.logged_in(caller)
    if not re.fullmatch(UUID, uuid):
        example = "1234abcd-12ab-34cd-56ef-123456abcdef"
        raise TrackerError("invalid", f"{uuid[:50]!r} is no job id: one looks like {example}", "job")
    try:
        return readable_job(tx, caller, uuid)["uuid"]
    except TrackerError as error:
        problem = f"there is no job {uuid}, or it is not for you to see"
        raise TrackerError(error.code, problem, "job") from None


async def go_to_queues(visit: pages.Visit) -> Response:
    await visit.look(pages.check_login)
    return visit.see("/ui/testflinger/queues")


@pages.of_project(READ)
def queue_page(tx: Tx, caller: Caller, project: sqlite3.Row, query: QueueQuery) -> dict[str, Any]:
    """A queue: its waiting jobs in their order, those that run, the agents that listen to it."""
    name = project["name"]
    queue = queues.find_queue(tx, name)
    if queue is None:
        raise TrackerError("not_found", f"Project {project['id']} is not a queue of Testflinger")
    rows = waiting_jobs(tx, project["id"], query.after, PAGE_ROWS + 1)
    shown = rows[:PAGE_ROWS]
    images = "SELECT name FROM testflinger_image WHERE project = ? LIMIT ?"
    return {
        "queue": queue,
        "waiting": shown,
        "first": domain.position(tx, shown[0]["uuid"]) if shown else 0,
        "more": f"{shown[-1]['priority']}:{shown[-1]['job']}" if len(rows) > PAGE_ROWS else "",
        "query": query,
        **held_jobs(tx, project["id"]),
        "running": running_jobs(tx, project["id"]),
        "agents": [
            agent_values(tx, domain.known_agent(tx, one)) for one in domain.names_listening(tx, name, most=MOST_SHOWN)
        ],
        "images": tx.all(images, (project["id"], MOST_SHOWN)),
        "waits": queues.wait_times(tx, [name]).get(name),
        "percentiles": list(map(str, queues.PERCENTILES)),
    }


def waiting_jobs(tx: Tx, project: int, after: str, limit: int) -> list[sqlite3.Row]:
    """The next jobs that agents get, after a place (priority:job) in their order."""
    if after and not re.fullmatch(r"-?[0-9]{1,18}:[0-9]{1,18}", after):
        raise TrackerError("invalid", "there is no such place in the list, please begin with its first page", "after")
    priority, job = map(int, after.split(":")) if after else (0, 0)
    # One condition for both would read all jobs of the same priority that come before the place.
    ranges = ("t.priority = :priority AND t.job > :job", "t.priority < :priority") if after else ("TRUE",)
    rows: list[sqlite3.Row] = []
    for condition in ranges:
        rows += tx.all(
            "SELECT t.*, j.token, j.name, j.created FROM testflinger_job t JOIN job j ON j.id = t.job"
            " WHERE t.project = :project AND t.state = 'waiting' AND t.attachments <> 'waiting' AND NOT t.delayed"
            f" AND {condition} ORDER BY t.priority DESC, t.job LIMIT :limit",
            {"project": project, "priority": priority, "job": job, "limit": limit - len(rows)},
        )
    return rows


MOST_HELD = 100
SHOWN_HELD = 5
LOOKED_AT = 1000  # held jobs, of all queues together: the index does not know whose they are


def held_jobs(tx: Tx, project: int) -> dict[str, Any]:
    """The newest jobs of a queue that wait for their attachments, and how many there are, up to MOST_HELD."""
    rows = tx.all(
        "SELECT h.uuid, j.name, j.created FROM (SELECT job, uuid, project FROM testflinger_job"
        " INDEXED BY testflinger_job_held WHERE attachments = 'waiting' AND state = 'waiting' ORDER BY job DESC LIMIT ?"
        ") h CROSS JOIN job j ON j.id = h.job WHERE h.project = ? LIMIT ?",
        (LOOKED_AT, project, MOST_HELD),
    )
    return {"held": rows[:SHOWN_HELD], "held_count": len(rows), "held_more": len(rows) == MOST_HELD}


def running_jobs(tx: Tx, project: int) -> list[sqlite3.Row]:
    """The jobs of a queue that somebody holds, the newest first; at most a page of them."""
    return tx.all(
        "SELECT t.uuid, t.state AS shown_state, t.agent, j.name, j.state, j.started, j.finished, j.assignee,"
        f" a.id AS agent_id, w.alias, {pages.ENDS} - ? AS left FROM job j JOIN testflinger_job t ON t.job = j.id"
        " JOIN task ON task.id = j.task LEFT JOIN testflinger_agent a ON a.name = t.agent"
        " LEFT JOIN worker w ON w.id = j.assignee"
        " WHERE j.project = ? AND j.state = 'assigned' ORDER BY j.id DESC LIMIT ?",
        (tx.uptime, project, PAGE_ROWS),
    )


def restrict_queue(tx: Tx, caller: Caller, project: int, form: RestrictedForm) -> None:
    clients.set_restricted(tx, caller, project, form.restricted)


def restricted_in_words(result: None, form: RestrictedForm) -> str:
    """What is said when a queue has been restricted, or opened."""
    if form.restricted:
        return "Restricted: only clients that are allowed the queue submit to it."
    return "The queue is open to all who may submit."


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class OutputQuery(msgspec.Struct):
    """Which output of a job is shown: of which kind, of one phase or of all, the last of it before a piece."""

    kind: str = "output"
    phase: Annotated[str, Meta(max_length=100)] = ""
    before: Annotated[int, Meta(ge=1, le=tracker.INT64_MAX)] = tracker.INT64_MAX


QUEUED_JOB = tracker.Thing("job", domain.find_job)


@tracker.needs(READ, QUEUED_JOB)
def readable_job(tx: Tx, caller: Caller, job: sqlite3.Row) -> sqlite3.Row:
    return job


@pages.of_project(READ, QUEUED_JOB)
def job_page(tx: Tx, caller: Caller, job: sqlite3.Row, query: OutputQuery) -> dict[str, Any]:
    """A job: what it was given, its phases, the last of its output, its files."""
    if query.kind not in KINDS:
        raise TrackerError("invalid", f"there is no such choice as {query.kind!r}", "kind")
    uuid, submitted = job["uuid"], job["template"] is None  # as a definition; else the recipe is what its template has
    # Without texts of output: they may be long.
    told = {**domain.foreign_result(tx, job), **domain.reported(tx, uuid, domain.VERDICT - {"output"})}
    parts = output_parts(tx, uuid)
    pieces, older = output_tail(tx, job, parts, query)
    device = pages.in_many_lines(tracker.encode(told["device_info"]).decode()) if "device_info" in told else ""
    return {
        "job": job,
        "live": job["finished"] is None,
        "position": domain.position(tx, uuid),
        "agent": tx.one("SELECT id FROM testflinger_agent WHERE name = ?", (job["agent"],)),
        "alias": tracker.alias_of(tx, job["assignee"]),
        "left": pages.lease_left(tx, job),
        "maker": tracker.maker_of(tx, job),
        "webhook": json_object(job["recipe"]).get("job_status_webhook") if submitted else None,
        "tags": names_of(tx, "tag", "testflinger_tag", job["id"]),
        "excluded": names_of(tx, "agent", "testflinger_exclusion", job["id"]),
        "submitted": submitted,
        "definition": pages.in_many_lines(job["recipe"]) if submitted else job["recipe"],
        "phases": phases_of(job, told, parts),
        "device": device,
        "files": list(filter(None, (domain.find_file(tx, uuid, kind) for kind in FILES))),
        "parts": parts,
        "pieces": readable_pieces(pieces),
        "older": older,
        "newest_place": tracker.INT64_MAX,
        "query": query,
        "kinds": KINDS,
        "file_names": FILES,
    }


def names_of(tx: Tx, column: str, table: str, job_id: int) -> list[str]:
    """What the table has of the job, by name."""
    return [name for (name,) in tx.all(f"SELECT {column} FROM {table} WHERE job = ? ORDER BY 1", (job_id,))]


def json_object(text: str) -> dict[str, Any]:
    """The text as an object; an empty one for what is none."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class Phase(NamedTuple):
    """A phase of a job that has begun. `parts`: the kinds of output that there are of it."""

    name: str
    status: Any  # None: not reported (yet)
    running: bool
    parts: list[str]


def phases_of(job: sqlite3.Row, told: dict[str, Any], parts: Sequence[Part]) -> list[Phase]:
    """The phases that have begun, in their order."""
    statuses = told.get("status") if isinstance(told.get("status"), dict) else {}
    present = {"allocated": "allocate"}.get(job["shown_state"], job["shown_state"])
    phases = (
        Phase(
            name,
            told.get(f"{name}_status", statuses.get(name)),
            job["finished"] is None and name == present,
            [part.kind for part in parts if part.phase == name],
        )
        for name in domain.PHASES
    )
    return [phase for phase in phases if phase.status is not None or phase.running or phase.parts]


# ── Output ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Part(NamedTuple):
    """The output of a kind and a phase. `posted`: it came at the end, with the results, and not while the phase ran."""

    kind: str
    phase: str
    posted: bool


def output_parts(tx: Tx, uuid: str) -> list[Part]:
    """What output there is: of each kind in the order of the phases."""
    written = "SELECT 1 FROM testflinger_fragment WHERE uuid = ? AND kind = ? AND phase = ? LIMIT 1"
    posted = "SELECT 1 FROM testflinger_result WHERE uuid = ? AND name = ?"
    parts = []
    for kind, phase in itertools.product(KINDS, domain.PHASES):
        if tx.one(written, (uuid, kind, phase)):
            parts.append(Part(kind, phase, posted=False))
        elif tx.one(posted, (uuid, f"{phase}_{kind}")):
            parts.append(Part(kind, phase, posted=True))
    return parts


POSTED = """
    SELECT e.key + 1 AS id, e.value AS phase, e.key + 1 AS number, NULL AS timestamp,
        ifnull(json_extract(r.value, '$'), '') AS text
    FROM json_each(:phases) e JOIN testflinger_result r ON r.uuid = :uuid AND r.name = e.value || '_' || :kind
"""


def some_pieces(
    tx: Tx, job: sqlite3.Row, parts: Sequence[Part], query: OutputQuery, order: str, start: int
) -> sqlite3.Cursor:
    """The pieces of output beyond a place, from there on (ASC) or backwards (DESC), read as they are asked for.

    Of all phases in the order in which the pieces came; of one phase as its agent has numbered them.
    """
    posted = [part.posted for part in parts if part.kind == query.kind and query.phase in ("", part.phase)]
    select = domain.pieces_of(job, query.kind)
    if select == domain.WRITTEN and posted and all(posted):
        select = POSTED
    place, condition = ("number", "phase = :phase AND") if query.phase else ("id", "")
    beyond = {"ASC": ">", "DESC": "<"}[order]
    values = {"job": job["id"], "uuid": job["uuid"], "kind": query.kind, "phase": query.phase, "start": start}
    return tx.execute(
        f"SELECT {place} AS place, phase, timestamp, text FROM ({select})"
        f" WHERE {condition} {place} {beyond} :start ORDER BY {place} {order}",
        {**values, "phases": tracker.encode(domain.PHASES).decode()},
    )


def output_tail(
    tx: Tx, job: sqlite3.Row, parts: Sequence[Part], query: OutputQuery
) -> tuple[list[dict[str, Any]], int | None]:
    """The last pieces of output before a place, in their order, and the place of the first (None: it is the first).

    About OUTPUT_SHOWN characters; of a piece that is longer, its end.
    """
    pieces: list[dict[str, Any]] = []
    size = 0
    for row in some_pieces(tx, job, parts, query, "DESC", query.before):
        if size >= OUTPUT_SHOWN:
            return pieces[::-1], pieces[-1]["place"]
        text = row["text"][-OUTPUT_SHOWN:]
        pieces.append({**dict(row), "text": text, "cut": len(row["text"]) - len(text)})
        size += len(text) + joblog.LINE_SIZE  # empty ones take room, too
    return pieces[::-1], None


CONTROLS = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]|\x1b[@-Z\\^_]|\r(?=\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
# A command with a text, its end if it has one, and where there is no command what else there may be.
ESCAPES = re.compile(rf"(\x1b\]|\x9d)[^\x07\x1b\x9c]*+(\x07|\x1b\\|\x9c)?|{CONTROLS.pattern}")
BEGUN = re.compile(r"(\x1b|(\x1b\[|\x9b)[0-?]{0,100}+[ -/]{0,100}+|(\x1b\]|\x9d)[^\x07\x1b\x9c]{0,500}+\x1b?|\r)\Z")

MOST_BEGUN = 510  # characters that a match of it has, and some more


def readable_text(text: str) -> str:
    """A text without what colours it and moves cursors on a terminal."""
    return ESCAPES.sub(without_controls, text)


def without_controls(match: re.Match) -> str:
    """What stays of a match of ESCAPES: of a command that has no end its text, where none has that begins in there."""
    return CONTROLS.sub("", match[0]) if match[1] and not match[2] else ""


def readable_pieces(pieces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pieces as people read them, and whether one is the first of its phase.

    Each stays by itself: who reads in the midst of a page keeps the place when the first ones leave it. What has begun
    at the end of one (colour, end of line) and ends in the next goes with that.
    """
    shown, begun = [], ""
    for number, piece in enumerate(pieces):
        text = begun + piece["text"]
        end = max(0, len(text) - MOST_BEGUN)
        begun = match[0] if number + 1 < len(pieces) and (match := BEGUN.search(text, end)) else ""
        first = number == 0 or pieces[number - 1]["phase"] != piece["phase"]
        shown.append({**piece, "text": readable_text(text[: len(text) - len(begun)]), "first": first})
    return shown


def uuid_of(visit: pages.Visit) -> str:
    uuid = visit.scope["path_params"]["uuid"].lower()
    if not re.fullmatch(UUID, uuid):
        raise TrackerError("not_found", "There is no such job")
    return uuid


async def show_job(visit: pages.Visit) -> Response:
    values = await visit.read(job_page, uuid_of(visit), visit.query_as(OutputQuery))
    return await visit.render("testflinger_job.html", values)


@tracker.needs(EDIT, QUEUED_JOB)
def retry(tx: Tx, caller: Caller, job: sqlite3.Row) -> str:
    """Makes a new job with all that an ended one was given, and returns its id."""
    token = pages.retry_on_page(tx, caller, job["token"])
    return tx.one("SELECT t.uuid FROM job j JOIN testflinger_job t ON t.job = j.id WHERE j.token = ?", (token,))[0]


@tracker.needs(EDIT, QUEUED_JOB)
def cancel(tx: Tx, caller: Caller, job: sqlite3.Row) -> str:
    """Cancels a job that has not ended."""
    tracker.cancel_job(tx, caller, job)
    return job["uuid"]


# ── Downloads ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = {"output.txt": "output", "serial.txt": "serial"}


def act_on_job(function: Callable, says: str) -> pages.Handler:
    """The handler of what is done to a job: it leads to the page of the job that the function names."""

    async def handler(visit: pages.Visit) -> Response:
        uuid = await visit.write(function, uuid_of(visit))
        return visit.see(f"/ui/testflinger/jobs/{uuid}", says)

    return handler


async def download(visit: pages.Visit) -> Response:
    """GET …/jobs/{uuid}/{file}: its artifact or attachments as uploaded, all of its output, its definition."""
    uuid, file = uuid_of(visit), visit.scope["path_params"]["file"]
    if file in FILES:
        return await send_file(visit, uuid, file)
    if file in TEXTS:
        return await send_output(visit, uuid, TEXTS[file])
    if file == "definition.json":
        text = await visit.look(definition_of, uuid)
        return named(Response(text, media_type="application/json"), f"{uuid}.json")
    raise TrackerError("not_found", f"A job has no file {file!r}")


def named(response: Response, name: str) -> Response:
    """The answer as a file to be kept under this name: never shown, whatever is in it."""
    response.headers["content-disposition"] = f'attachment; filename="{name}"'
    return response


@tracker.needs(READ, QUEUED_JOB)
def stored_file(tx: Tx, caller: Caller, job: sqlite3.Row, kind: str) -> sqlite3.Row:
    """Where a file of the job is."""
    row = domain.find_file(tx, job["uuid"], kind)
    if row is None:
        raise TrackerError("not_found", f"The job {job['uuid']} has no {kind}")
    return row


@tracker.needs(READ, QUEUED_JOB)
def definition_of(tx: Tx, caller: Caller, job: sqlite3.Row) -> str:
    """What was submitted, as JSON."""
    if job["template"] is not None:
        raise TrackerError("not_found", f"The job {job['uuid']} was made of a template, and has no definition")
    return job["recipe"]


@tracker.needs(READ, QUEUED_JOB)
def next_output(tx: Tx, caller: Caller, job: sqlite3.Row, query: OutputQuery, after: int) -> tuple[list[str], int]:
    """The next texts of a job's output, and the place of the last."""
    texts, size = [], 0
    for row in some_pieces(tx, job, output_parts(tx, job["uuid"]), query, "ASC", after):
        texts.append(row["text"])
        size += len(row["text"]) + joblog.LINE_SIZE
        after = row["place"]
        if size >= tracker.PIECE_BYTES:
            break
    return texts, after


async def send_file(visit: pages.Visit, uuid: str, kind: str) -> Response:
    row = await visit.look(stored_file, uuid, kind)
    response = await files_of(visit.tracker.settings).send(row["name"])
    if response is None:
        raise TrackerError("not_found", f"The {kind} of the job {uuid} are not on disk any more")
    return named(response, f"{uuid}-{kind}.tar.gz")


async def send_output(visit: pages.Visit, uuid: str, kind: str) -> Response:
    """All of a kind of output, of one phase or of all, as it was reported. Read piece by piece."""
    query = OutputQuery(kind, visit.query_as(OutputQuery).phase)
    read = functools.partial(visit.look, next_output, uuid, query)
    texts, last = await read(-1)  # a refusal comes before the answer

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal texts, last
        while texts:
            yield "".join(texts).encode()
            try:
                texts, last = await read(last)
            except TrackerError as error:  # the answer has begun: all that is left is to break it off
                tracker.log.warning("The download of the output of job %s broke off: %s", uuid, error)
                raise ClientDisconnect from error

    name = "-".join(filter(None, (uuid, re.sub(r"\W", "", query.phase), kind)))
    return named(Stream(pieces(), media_type="text/plain; charset=utf-8"), f"{name}.txt")


# ── Agents ────────────────────────────────────────────────────────────────────────────────────────────────────────────

HEARD = f"""(:admin OR EXISTS (SELECT 1 FROM testflinger_agent_queue l JOIN project p ON p.name = l.queue
    JOIN testflinger_queue q ON q.project = p.id WHERE l.agent = a.id AND {READABLE}))"""


def agents_page(tx: Tx, caller: Caller, query: pages.ListQuery) -> dict[str, Any]:
    """The agents, by name: for admins all, for other managers those that listen to a queue that they may read."""
    tracker.logged_in(caller)
    asking = caller.as_values
    rows = tx.all(
        f"SELECT a.* FROM testflinger_agent a WHERE {HEARD} AND a.name > :after AND a.name LIKE :text ESCAPE '\\'"
        " ORDER BY a.name LIMIT :limit",
        {**asking, "after": query.after, "text": pages.like(query.text), "limit": PAGE_ROWS + 1},
    )
    told = [{**agent_values(tx, row), **agent_queues(tx, row, asking, 5)} for row in rows[:PAGE_ROWS]]
    readable = readable_uuids(tx, asking, [text for one in told for text in (one["job_id"], one["comment"])])
    shown = [{**one, "comment": without_others(one["comment"], readable, asking)} for one in told]
    return {
        "agents": shown,
        "readable": readable,
        "all_readable": asking["admin"],
        "more": shown[-1]["name"] if len(rows) > PAGE_ROWS else "",
        "query": query,
    }


def agent_page(tx: Tx, caller: Caller, agent: int) -> dict[str, Any]:
    """An agent: what it tells of itself, how its provisioning went, the last lines of its log.

    For admins, and for managers with READ in a queue that it listens to; for others there is no such agent.
    """
    tracker.logged_in(caller)
    asking = caller.as_values
    row = tx.one(f"SELECT a.* FROM testflinger_agent a WHERE a.id = :agent AND {HEARD}", {**asking, "agent": agent})
    if row is None:
        raise TrackerError("not_found", f"No agent {agent}")
    values = agent_values(tx, row)
    provisions = tx.all("SELECT * FROM testflinger_provision WHERE agent = ? ORDER BY id DESC", (agent,))
    lines = tx.all("SELECT line FROM testflinger_agent_line WHERE agent = ? ORDER BY id", (agent,))
    said = [readable_text(line) for (line,) in lines]
    named = [values["job_id"], values["comment"], *said, *(one["uuid"] for one in provisions)]
    readable = readable_uuids(tx, asking, named)
    values["comment"] = without_others(values["comment"], readable, asking)
    return {
        "agent": {**values, **agent_queues(tx, row, asking, MOST_SHOWN)},
        # Of a detail, of which 300 characters are shown, no more is looked at than could be needed.
        "provisions": [{**dict(one), "detail": readable_text(one["detail"][: pages.MOST_SHOWN])} for one in provisions],
        "lines": [without_others(line, readable, asking) for line in said],
        "readable": readable,
        "all_readable": asking["admin"],
        "alias": tracker.alias_of(tx, row["worker"]),
    }


def agent_values(tx: Tx, row: sqlite3.Row) -> dict[str, Any]:
    """An agent with the fields that it has sent as texts: they may be anything.

    `heard`: when it gave its last sign of life, in words of its own or in what it reported of the job that it holds.
    `left`: the seconds after which it is free at the latest; None if it holds nothing.
    """
    fields = json_object(row["fields"])
    names = ("state", "job_id", "location", "provision_type", "comment", "identifier")
    texts = {name: readable_text(tracker.as_text(fields.get(name))) for name in names}
    held = next(iter(pages.held_by(tx, row["worker"])), None)
    told = "SELECT max(touched) FROM testflinger_job JOIN testflinger_outcome USING (uuid) WHERE job = ?"
    touched = held and tx.one(told, (held["job"],))[0]
    heard = max(row["updated"], touched or 0)
    return {**dict(row), **texts, "heard": heard, "left": held and held["left"]}


def agent_queues(tx: Tx, agent: sqlite3.Row, asking: dict[str, Any], most: int) -> dict[str, Any]:
    """The first queues that an agent listens to and the manager may read, and how many others there are."""
    rows = tx.all(
        "SELECT l.queue AS name, p.id FROM testflinger_agent_queue l LEFT JOIN project p ON p.name = l.queue"
        " AND EXISTS (SELECT 1 FROM testflinger_queue WHERE project = p.id)"
        f" WHERE l.agent = :agent AND {READABLE} ORDER BY l.queue LIMIT :most",
        {**asking, "agent": agent["id"], "most": most},
    )
    count = tx.one("SELECT COUNT(*) FROM testflinger_agent_queue WHERE agent = ?", (agent["id"],))[0]
    return {"queues": rows, "other_queues": count - len(rows)}


def readable_uuids(tx: Tx, asking: dict[str, Any], texts: Iterable[str]) -> set[str]:
    """Which of the jobs that these texts name exist and may be looked at."""
    uuids = {match[0] for text in texts for match in re.finditer(UUID, text)}
    rows = tx.all(
        "SELECT t.uuid FROM testflinger_job t JOIN project p ON p.id = t.project"
        f" WHERE t.uuid IN (SELECT value FROM json_each(:uuids)) AND {READABLE}",
        {**asking, "uuids": tracker.encode(sorted(uuids)).decode()},
    )
    return {row["uuid"] for row in rows}


def without_others(text: str, readable: set[str], asking: dict[str, Any]) -> str:
    """What an agent says, without the ids of jobs that are not for the one who asks: an id is all that a client needs.

    An agent may listen to the queues of several groups.
    """
    if asking["admin"]:
        return text
    return re.sub(UUID, lambda match: match[0] if match[0] in readable else "(a job of another queue)", text)


# ── Clients ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clients_page(tx: Tx, caller: Caller, query: pages.ListQuery) -> dict[str, Any]:
    """The clients by name."""
    found = [
        one
        for one in clients.list_clients(tx, caller)
        if one["client_id"] > query.after and query.text.lower() in one["client_id"].lower()
    ]
    return {
        "clients": found[:PAGE_ROWS],
        "more": found[PAGE_ROWS - 1]["client_id"] if len(found) > PAGE_ROWS else "",
        "query": query,
        "roles": ROLES,
        "anonymous": tx.settings.testflinger_anonymous,  # loopback, always or never
    }


def client_page(tx: Tx, caller: Caller, client: str) -> dict[str, Any]:
    """A client with its limits as its form has them."""
    row = clients.find_client(tx, caller, client)
    lines = {name: limit_lines(row[name]) for name in clients.LIMITS}
    return {"client": {**row, **lines}, "shown": limits_shown(row), "roles": ROLES}


class LimitsForm(clients.LimitsBody, kw_only=True):
    """What a client may, with what of it (as JSON) the form showed."""

    shown: str = ""


def limits_shown(client: dict[str, Any]) -> clients.LimitsBody:
    """What the form of a client shows."""
    return clients.LimitsBody(**{name: client[name] for name in ("role", *clients.LIMITS)})


def save_client(tx: Tx, caller: Caller, client: str, body: LimitsForm) -> None:
    """Changes what was changed in the form."""
    now = limits_shown(clients.find_client(tx, caller, client))
    changed = pages.changed_fields(body, clients.LimitsBody, now)
    clients.update_client(tx, caller, client, clients.LimitsBody(**changed))


ROLES = [
    ("contributor", "contributor: submits jobs, and reads"),
    ("agent", "agent: does all that agents and contributors do"),
    ("manager", "manager: also administers contributors, agents and restricted queues, through the API"),
    ("admin", "admin: also administers clients and restricted queues, through the API"),
]


def limit_lines(limits: dict[str, int] | list[str]) -> str:
    """Limits as their form has them: a queue a line, with its maximum if it has one."""
    return "\n".join(limits if isinstance(limits, list) else (f"{queue}={most}" for queue, most in limits.items()))


@tracker.needs(tracker.ADMIN)
def signing_key_page(tx: Tx, caller: Caller) -> dict[str, Any]:
    """The question that comes before a new signing key."""
    return {}


def typed_maximums(visit: pages.Visit, name: str) -> dict[str, int]:
    """What was typed as QUEUE=NUMBER, one a line. A queue's name may have an = in it."""
    found: dict[str, int] = {}
    for number, line in enumerate(visit.field(name).split("\n"), 1):
        if not line.strip():
            continue
        queue, equals, most = map(str.strip, line.rpartition("="))
        if not equals or not queue or not re.fullmatch("[0-9]+", most):
            raise TrackerError("invalid", f"line {number} is not of the form QUEUE=NUMBER, or *=NUMBER", name)
        if len(most) > 15 or int(most) > clients.MOST_MAXIMUM:
            problem = f"in line {number} the number is too large, it must be at most {clients.MOST_MAXIMUM:,}"
            raise TrackerError("invalid", problem, name)
        if queue in found:
            raise TrackerError("invalid", f"line {number} gives {queue} a second time", name)
        found[queue] = int(most)
    return found


def limits_form(visit: pages.Visit) -> dict[str, Any]:
    return {
        "role": visit.field("role", "contributor"),
        "max_priority": typed_maximums(visit, "max_priority"),
        "allowed_queues": [line.strip() for line in visit.field("allowed_queues").split("\n") if line.strip()],
        "max_reservation_time": typed_maximums(visit, "max_reservation_time"),
    }


async def show_client(visit: pages.Visit) -> Response:
    """The page of a client; once with its new key."""
    values = await visit.read(client_page, visit.scope["path_params"]["client"])
    return await visit.render("testflinger_client.html", values)


async def create_client(visit: pages.Visit) -> Response:
    body = clients.as_body({"client_id": visit.field("client_id").strip(), **limits_form(visit)}, clients.ClientBody)
    made, key = await visit.write(clients.create_client, body)
    return visit.reveal(f"/ui/testflinger/clients/{quote(made['client_id'])}", key)


async def update_client(visit: pages.Visit) -> Response:
    client = visit.scope["path_params"]["client"]
    body = clients.as_body({**limits_form(visit), "shown": visit.field("shown")}, LimitsForm)
    await visit.write(save_client, client, body)
    return visit.see(f"/ui/testflinger/clients/{quote(client)}", "Saved. It counts from the client's next request on.")


async def rotate_key(visit: pages.Visit) -> Response:
    """POST …/rotate: asks first, and again when the answer is reloaded: by then there is another key."""
    client = visit.scope["path_params"]["client"]
    old = await visit.look(clients.key_hash, client)
    mark = visit.tracker.form_signer.get_signature(b"key " + old).decode()
    if not hmac.compare_digest(visit.field("confirmed").encode(), mark.encode()):
        values = await visit.read(client_page, client)
        renewed = bool(visit.field("confirmed"))
        return await visit.render("testflinger_client_rotate.html", {**values, "mark": mark, "renewed": renewed})
    key = await visit.write(clients.rotate_key, client, old)
    return visit.reveal(f"/ui/testflinger/clients/{quote(client)}", key)


async def delete_client(visit: pages.Visit) -> Response:
    """POST …/delete: asks first."""
    client = visit.scope["path_params"]["client"]
    if visit.field("confirmed") != "yes":
        return await visit.render("testflinger_client_delete.html", await visit.read(client_page, client))
    await visit.write(clients.delete_client, client)
    return visit.see("/ui/testflinger/clients", f"The client {client} is deleted.")


PAGES = [
    Page("/ui/testflinger", go_to_queues),
    Page("/ui/testflinger/queues", show_queues),
    Page(
        "/ui/testflinger/queues/{queue}",
        "testflinger_queue.html",
        queue_page,
        [Action("/restrict", restrict_queue, RestrictedForm, says=restricted_in_words, again=False)],
    ),
    Page(
        "/ui/testflinger/jobs/{uuid}",
        show_job,
        actions=[
            Action("/cancel", act_on_job(cancel, "The job is cancelled."), again=True),
            Action("/retry", act_on_job(retry, pages.JOB_RETRIED), again=True),
        ],
    ),
    Page("/ui/testflinger/jobs/{uuid}/{file}", download),
    Page("/ui/testflinger/agents", "testflinger_agents.html", agents_page),
    Page("/ui/testflinger/agents/{agent}", "testflinger_agent.html", agent_page),
    Page("/ui/testflinger/clients", "testflinger_clients.html", clients_page, [Action("", create_client, again=True)]),
    Action(
        "/ui/testflinger/clients_key",
        clients.rotate_signing_key,
        to="/ui/testflinger/clients",
        says="Tokens are signed with a new key. Clients get new ones by themselves.",
        asks=("testflinger_clients_key.html", signing_key_page),
    ),
    Page(
        "/ui/testflinger/clients/{client}",
        show_client,
        actions=[
            Action("", update_client, again=True),
            Action("/rotate", rotate_key),
            Action("/delete", delete_client),
        ],
    ),
]
