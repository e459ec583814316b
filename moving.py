"""A project as one file: one tracker writes it, another one reads it and goes on where the first one was.

    export: begin_export (paused, nobody holds a task) ─► file_lines: a piece in each read ─► the end, with its checksum
    import: the file, all of which has come ─► records, checked ─► staged ─► accept_import: there it is ─► step, step …

The file has a JSON object a line: `header`, `project`, then `access`, `template`, `workflow`, `hashes`, `task` in any
number, and `end` with how many there are of each and the SHA-256 of all lines before. One that is cut, changed or put
together by hand without that is refused, and so is one of a format that is not known. Nothing of an import is there for
anybody before accept_import; what was staged until then is discarded, at the latest when the tracker starts.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import hashlib
import sqlite3
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect
from starlette.responses import Response

import acts
import budgets
import failures
import shapes
import tracker
from callers import ALL_ROLES, EDIT, LOGIN, PROJECT, READ, Caller, logged_in, needs
from errors import TrackerError, convert, encode, refuse_many_parts, refuse_nul, shaped
from lines import MOST_LINE_BYTES, Line, numbered_lines
from shapes import INT64_MAX
from streams import Stream
from tracker import Call, Native, Reply, takes
from writer import Tx

FORMAT = 1
EVERY_ROLE = "A manager with every role in the project."
HASHES = 1000  # of closed tasks in one line, and 20 lines in one read
MOST_CLOSED = 10**15  # tasks: it goes on being counted here, with those of all projects, and an INTEGER must hold that
MOST_ALIKE = 10  # workers of one name for whom access is asked
TASK_COLUMNS = (
    "id, job, priority, recipe, retries, max_retries, max_assign_time, verification_count, hash64, lost_leases,"
    f" not_before, status, assignee, verifiers, {failures.last('reason', 'end_time')}"
)


# ── The file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Record(msgspec.Struct, tag_field="type", tag=lambda name: name.lower(), forbid_unknown_fields=True):
    """A line of the file."""


class Header(Record):
    """The first line: which format it is, and where and when it was written."""

    format: int
    tracker: str
    exported: int


class Project(Record):
    """The project: its settings, its secrets if they were wanted, and what of it is in no other line."""

    settings: dict[str, Any]
    chain: str | None = None  # the name of the project that its closed tasks are submitted to
    closed_task_count: Annotated[int, Meta(ge=0, le=MOST_CLOSED)] = 0
    secret: Annotated[str, Meta(max_length=100_000)] | None = None
    webhook_secret: shapes.ShortText | None = None
    left_out: dict[str, int] = {}


class Access(Record):
    """What a worker may do, or asks for, by its name."""

    alias: shapes.Label
    assign: bool
    submit: bool


class Template(Record):
    """A template, but for its keys."""

    template: dict[str, Any]
    had_key: bool = False
    number: shapes.Natural = 0  # by which workflows name it


class Workflow(Record):
    """A workflow, but for its secret: templates of the project that follow one another, by their numbers."""

    name: shapes.Name
    start: shapes.Id
    edges: Annotated[list[shapes.Edge], Meta(max_length=1000)] = []


class Hashes(Record):
    """Hashes of closed tasks that stay taken."""

    hashes: Annotated[list[shapes.Int64], Meta(max_length=10 * HASHES)]


class Task(Record):
    """A task that is not closed, as it waits for the next attempt, or has failed."""

    recipe: Annotated[str, Meta(min_length=1, max_length=shapes.MOST_TEXT)]
    state: Literal["waiting", "failed", "delayed"] = "waiting"
    priority: shapes.Int16 = 0
    retries: shapes.Natural = 0
    max_retries: shapes.Natural16 = 0
    max_assign_time: shapes.Natural = 0
    verification_count: shapes.Natural16 = 0
    hash64: shapes.Int64 | None = None
    lost_leases: shapes.Natural = 0
    not_before: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    reason: Annotated[str, Meta(max_length=failures.MOST_REASON)] | None = (
        None  # of its last failure, and when that was
    )
    failed: shapes.Id = 0

    @property
    def past(self) -> tuple:
        """What it has been through."""
        return self.retries, self.lost_leases, self.reason, self.failed


class End(Record):
    """The last line: how many lines of each type stand before it, tasks and hashes, and their SHA-256."""

    counts: dict[str, int]
    sha256: str


RECORDS = msgspec.json.Decoder(Header | Project | Access | Template | Workflow | Hashes | Task | End)


class ImportQuery(shapes.Shape):
    """Which name the project gets, and which of a client's imports it is."""

    name: Annotated[
        Annotated[str, Meta(max_length=200)], "The project's name here. Empty: the one that the file says."
    ] = ""
    token: Annotated[
        shapes.Label, "A text of the client's own, unlike that of any other import: a repeated call with it is safe."
    ] = ""


class ExportBody(shapes.Shape):
    secrets: Annotated[
        bool, "Whether the project's secret and webhook secret are in the file, for whoever gets it to read."
    ] = True


# ── Export ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs(LOGIN, of=PROJECT, says=EVERY_ROLE)
def whole_project(tx: Tx, caller: Caller, project: sqlite3.Row) -> sqlite3.Row:
    """The project, for a manager with every role in it."""
    if caller.role(project["id"]) != ALL_ROLES:
        raise TrackerError("forbidden", f"You have not every role in project {project['id']}")
    return project


def begin_export(tx: Tx, caller: Caller, project: int) -> int:
    """Pauses the project, and begins to take back what workers hold of it: what they release then counts nowhere."""
    row = whole_project(tx, caller, project)
    tracker.pause_project(tx, caller, row, shapes.PausedBody(True))
    acts.record(tx, caller.manager.id, "export_project", row["id"])
    requeue = tracker.TaskAction("requeue"), tracker.TaskFilter("assigned")
    return tracker.begin_action(tx, caller, row, *requeue)


def read_head(tx: Tx, caller: Caller, project: int, secrets: bool) -> tuple[list[Record], int, int]:
    """What the file begins with; how many tasks there are, and the number behind which new ones come."""
    row = whole_project(tx, caller, project)
    settings = {name: row[name] for name in ("name", *tracker.NEW_PROJECT) if name != "chain"}
    settings |= {name: bool(row[name]) for name in ("public", "hidden", "archived", "paused", "keep_hashes")}
    chain = tx.one("SELECT id, name, hidden FROM project WHERE id = ?", (row["chain"],))
    named = chain and (not chain["hidden"] or caller.role(chain["id"]) & READ)  # of a hidden one others know the number
    left_out = {"chain": int(bool(chain and not named))}
    left_out |= {"workflows": tx.one(f"SELECT COUNT(*) {FOREIGN_WORKFLOWS}", (row["id"],))[0]}
    left_out |= {"edges": tx.one(f"SELECT COUNT(*) {FOREIGN_EDGES}", (row["id"],))[0]}
    made = Project(
        settings,
        chain["name"] if named else None,
        row["closed_task_count"],
        left_out={what: count for what, count in left_out.items() if count},
    )
    if secrets:
        made.secret, made.webhook_secret = row["secret"], row["webhook_secret"]
    last = tx.one("SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'task'")[0]
    total = sum(tracker.count_in_state(row, state) for state in tracker.TASK_STATES)
    return [Header(FORMAT, tracker.__version__, tx.time), made], total, last


def read_access(tx: Tx, caller: Caller, project: int, after: int) -> tuple[list[Record], Any]:
    row = whole_project(tx, caller, project)
    found = tx.all(
        "SELECT a.worker, w.alias, a.role_assign, a.role_submit FROM worker_access a JOIN worker w ON w.id = a.worker"
        " WHERE a.project = ? AND a.worker > ? ORDER BY a.worker LIMIT ?",
        (row["id"], after, tracker.PIECE_TASKS),
    )
    lines = [Access(one["alias"], bool(one["role_assign"]), bool(one["role_submit"])) for one in found]
    return lines, found[-1]["worker"] if len(found) == tracker.PIECE_TASKS else None


NOT_MOVED = ("id", "project", "has_key", "created", "updated", "secret")  # of a template


def read_template(tx: Tx, caller: Caller, project: int, after: int) -> tuple[list[Record], Any]:
    """One of them, which may be as long as a script may be. Programs cannot trigger it there before it has a key."""
    row = whole_project(tx, caller, project)
    next_one = "SELECT * FROM template WHERE project = ? AND id > ? AND deleted IS NULL ORDER BY id LIMIT 1"
    found = tx.one(next_one, (row["id"], after))
    if found is None:
        return [], None
    shown = msgspec.json.decode(encode(tracker.template_shown(tx, found)))
    given = {name: value for name, value in shown.items() if name not in NOT_MOVED}
    return [Template(given, found["key_hash"] is not None, found["id"])], found["id"]


# What goes with a project: workflows that start with a template of its own, and edges between such.
OWN = "SELECT id FROM template WHERE project = w.project AND deleted IS NULL"
WORKFLOWS = f"FROM workflow w WHERE w.project = ? AND w.deleted IS NULL AND w.start IN ({OWN})"
FOREIGN_WORKFLOWS = WORKFLOWS.replace("w.start IN", "w.start NOT IN")
OWN_EDGES = f"e.template IN ({OWN}) AND e.target IN ({OWN})"
FOREIGN_EDGES = WORKFLOWS.replace("WHERE", f"JOIN workflow_edge e ON e.workflow = w.id AND NOT ({OWN_EDGES}) WHERE", 1)


def read_workflows(tx: Tx, caller: Caller, project: int, after: int) -> tuple[list[Record], Any]:
    row, most = whole_project(tx, caller, project), 20
    found = tx.all(f"SELECT w.* {WORKFLOWS} AND w.id > ? ORDER BY w.id LIMIT ?", (row["id"], after, most))
    edges = f"SELECT e.* FROM workflow w JOIN workflow_edge e ON e.workflow = w.id WHERE w.id = ? AND {OWN_EDGES}"
    lines = [
        Workflow(one["name"], one["start"], [shaped(shapes.Edge, edge) for edge in tx.all(edges, (one["id"],))])
        for one in found
    ]
    return lines, found[-1]["id"] if len(found) == most else None


def read_hashes(tx: Tx, caller: Caller, project: int, first: int) -> tuple[list[Record], Any]:
    row = whole_project(tx, caller, project)
    found = tx.all(
        "SELECT hash64 FROM kept_hash WHERE project = ? AND hash64 >= ? ORDER BY hash64 LIMIT ?",
        (row["id"], first, 20 * HASHES),
    )
    hashes = [one["hash64"] for one in found]
    lines = [Hashes(hashes[at : at + HASHES]) for at in range(0, len(hashes), HASHES)]
    return lines, hashes[-1] + 1 if len(hashes) == 20 * HASHES and hashes[-1] < INT64_MAX else None


def read_tasks(
    tx: Tx, caller: Caller, project: int, state: str, last: int, limit: int, after: str
) -> tuple[list[sqlite3.Row], str]:
    """The next tasks in a state, and where those behind them begin ("": nowhere)."""
    row = whole_project(tx, caller, project)
    wanted = tracker.TaskFilter(state)
    return tracker.find_tasks(tx, row["id"], wanted, after, limit, tx.STEP_SECONDS, last, TASK_COLUMNS)


# Delayed ones come first: when the time of one has come meanwhile, it is known among those that wait.
STATES = ("failed", "delayed", "awaiting_verification", "assigned", "waiting")


class Exporting:
    """The lines of a file, a piece at a time, in memory that does not grow with it (but 8 bytes a delayed task)."""

    def __init__(self, look: Callable, project: int, total: int, last: int):
        self.look, self.project, self.total, self.last = look, project, total, last
        self.counts: Counter[str] = Counter()
        self.sha256, self.delayed = hashlib.sha256(), array("q")

    async def lines(self, head: list[Record]) -> AsyncIterator[bytes]:
        """The whole file. Breaks the answer off, so that it has no end, when the project was changed meanwhile."""
        try:
            yield self.piece(head)
            begins = ((read_access, 0), (read_template, 0), (read_workflows, 0), (read_hashes, -INT64_MAX - 1))
            for read, after in begins:
                while after is not None:
                    records, after = await self.look(read, self.project, after)
                    yield self.piece(records)
            for state in STATES:
                async for piece in self.tasks(state):
                    yield piece
            if self.counts["task"] + self.counts["jobs"] != self.total:
                raise TrackerError("conflict", "its tasks were changed meanwhile")
            yield encode(End(dict(self.counts), self.sha256.hexdigest())) + b"\n"
        except TrackerError as error:  # the answer has begun: all that is left is to break it off
            tracker.log.warning("The export of project %d broke off: %s", self.project, error)
            raise ClientDisconnect from error

    async def tasks(self, state: str) -> AsyncIterator[bytes]:
        """The tasks in a state, one in a read when that takes too long."""
        after = ""
        while True:
            read = functools.partial(self.look, read_tasks, self.project, state, self.last)
            try:
                rows, more = await read(tracker.PIECE_TASKS, after)
            except TrackerError:
                rows, more = await read(1, after)
            pieces, rows = [self.piece(list(self.records(state, rows)))], []
            yield pieces.pop()  # of what waits for the client nothing is held here
            if not more:
                return
            after = more

    def records(self, state: str, rows: list[sqlite3.Row]) -> Iterator[Task]:
        """The tasks as the file has them: jobs are left out, and counted. Half a verification is none."""
        for row in rows:
            if state == "delayed":
                self.delayed.append(row["id"])
            elif state == "waiting" and self.was_delayed(row["id"]):
                continue
            if row["job"] is not None:
                self.counts["jobs"] += 1
                continue
            numbers = {name: row[name] for name in ("retries", "lost_leases", "max_assign_time", "hash64", "reason")}
            numbers["failed"] = row["end_time"] or 0
            numbers |= {
                name: tracker.in_16_bits(row[name]) for name in ("priority", "max_retries", "verification_count")
            }
            kept = state if state in ("failed", "delayed") else "waiting"
            yield Task(row["recipe"], kept, **numbers, not_before=row["not_before"] if state == "delayed" else None)

    def was_delayed(self, task: int) -> bool:
        """Whether it is in the file as a delayed one."""
        place = bisect.bisect_left(self.delayed, task)
        return place < len(self.delayed) and self.delayed[place] == task

    def piece(self, records: list[Record]) -> bytes:
        """Some lines, counted."""
        for record in records:
            name = type(record).__name__.lower()
            self.counts[name] += len(record.hashes) if isinstance(record, Hashes) else 1
        text = b"".join(encode(record) + b"\n" for record in records)
        self.sha256.update(text)
        return text


@takes(Call.session, ExportBody, who=EVERY_ROLE)
async def export_project(call: Call) -> Response:
    """The whole project as one file, to be imported by another tracker: JSON lines, the last of which says `end`.

    The project is paused for it and stays so, and what workers hold goes back into the queue: what they release of it
    after that counts nowhere. In the file are settings, access (by the workers' names), templates, workflows, kept
    hashes and all tasks but those of jobs; no keys, jobs, roles, logs or history. Whoever has the file can read the
    project's secrets, unless `secrets` is false. A file without its last line is not whole.
    """
    body = await call.json(ExportBody)
    return await exported(call.tracker, call.session(), call.path_id("project"), body.secrets)


async def exported(running: tracker.Tracker, session: bytes | None, project: int, secrets: bool) -> Response:
    """The answer with the file."""
    look = functools.partial(running.db.read, tracker.as_caller)

    async def read(function: Callable, *args: Any) -> Any:
        return await look(function, session, *args)

    await running.begin_operation(await running.db.write(tracker.as_caller, begin_export, session, project))
    head, total, last = await read(read_head, project, secrets)
    headers = {"content-disposition": f'attachment; filename="project-{project}.jsonl"', "cache-control": "no-store"}
    lines = Exporting(read, project, total, last).lines(head)
    return Stream(lines, media_type="application/x-ndjson", headers=headers)


# ── Import ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Coming(msgspec.Struct):
    """What the tracker notes of an import: the bytes of the budget that it holds while nobody can see it."""

    size: int = 0
    trusted: bool = True


def records(source: BinaryIO, most: int) -> Iterator[tuple[int, Record | None]]:
    """The records of a file with their sizes, the end among them, after which nothing may come. Refuses what is none.

    The file may be packed with gzip; `most` bytes may come out of it. None in the place of a record: there is none yet.
    """
    sha256, counts, ended = hashlib.sha256(), Counter(), False
    for found in lines_of(source, most):
        if found is None:
            yield 0, None
            continue
        number, line = found
        if line is None or ended:
            problem = f"longer than {MOST_LINE_BYTES >> 20} MiB" if line is None else "stands behind the end"
            raise TrackerError("invalid", f"line {number} {problem}", "file")
        try:
            refuse_many_parts(line)
            record = RECORDS.decode(line)
        except TrackerError as error:
            raise TrackerError(error.code, f"line {number} has {error.problem}", "file") from None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            problem = f"line {number} is none of an exported project: {error}"
            raise TrackerError("invalid", problem[:300], "file") from None
        if b"\0" in line or b"\\u0000" in line:
            refuse_nul(record, "file")
        if (number == 1) != isinstance(record, Header) or (number == 2) != isinstance(record, Project):
            raise TrackerError("invalid", f"line {number} is not what an exported project has there", "file")
        if isinstance(record, Header) and record.format != FORMAT:
            problem = f"its format is {record.format}, and this tracker knows {FORMAT}"
            raise TrackerError("invalid", problem, "file")
        if ended := isinstance(record, End):
            found = {name: count for name, count in record.counts.items() if name != "jobs"}
            if record.sha256 != sha256.hexdigest() or found != dict(counts):
                raise TrackerError("invalid", "it was changed or damaged: its checksum is another one", "file")
        sha256.update(line + b"\n")
        counts[type(record).__name__.lower()] += len(record.hashes) if isinstance(record, Hashes) else 1
        yield len(line), record
    if not ended:
        raise TrackerError("invalid", "it is cut: its end is missing", "file")


def lines_of(source: BinaryIO, most: int) -> Iterator[Line | None]:
    """The lines with their numbers. A refusal is about the file."""
    try:
        yield from numbered_lines(source, most)
    except TrackerError as error:
        raise TrackerError(error.code, error.problem, "file") from None


def pieces(sized: Iterator[tuple[int, Record | None]], project: int, counts: Counter[str]) -> Iterator[bytes]:
    """Records as pieces to be staged: lists of tasks, in rows as those of a bulk submit begin; others are objects.

    For a None there is an empty piece.
    """
    tasks: list[list] = []
    access: list[Access] = []
    tokens: dict[int, str] = {}  # of the templates to be, by their numbers in the file
    size = 0
    for length, record in sized:
        match record:
            case None:
                yield b""
            case Task():
                counts["tasks"] += 1
                due = record.not_before if record.state == "delayed" else None
                state = "waiting" if record.state == "delayed" and due is None else record.state
                numbers = (record.priority, record.max_retries, record.max_assign_time, record.verification_count)
                tasks.append([project, record.recipe, *numbers, record.hash64, due, state, *record.past])
                size += length
                counts["weight"] += budgets.task_weight(record.recipe, record.verification_count)
            case Access():
                access.append(record)
            case Template():
                token = tokens[record.number] = tracker.new_token()
                yield encode({"template": checked_template(record), "had_key": record.had_key, "token": token})
            case Workflow():
                yield encode({"workflow": checked_workflow(record, tokens)})
            case Hashes():
                counts["weight"] += budgets.HASH_SIZE * len(record.hashes)
                yield encode({"hashes": record.hashes})
        if len(tasks) == tracker.BULK_TASKS or size >= tracker.PIECE_BYTES:
            yield encode(tasks)
            tasks, size = [], 0
        if len(access) == tracker.BULK_TASKS:
            yield encode({"access": access})
            access = []
    if tasks:
        yield encode(tasks)
    if access:
        yield encode({"access": access})


def checked_template(record: Template) -> dict[str, Any]:
    """What makes such a template. Refuses one that cannot be made, but for its place among others.

    One that had a key is not for programs to trigger before it has another.
    """
    given = {**record.template, "api": record.template.get("api", False) and not record.had_key}
    body = convert(given, shapes.TemplateBody)
    tracker.check_declarations(body)
    if body.project is not msgspec.UNSET or not body.name or not body.name.strip():
        raise TrackerError("invalid", "a template has a name, and no project", "file")
    return given


def checked_workflow(record: Workflow, tokens: dict[int, str]) -> dict[str, Any]:
    """The workflow, with the tokens of its templates. Refuses one of templates that are not in the file before it."""
    try:
        edges = [(tokens[edge.template], edge.ending, tokens[edge.target]) for edge in record.edges]
        made = {"name": record.name, "start": tokens[record.start], "edges": edges}
    except KeyError as error:
        problem = f"the workflow {record.name[:100]!r} names template {error}, which is not in it"
        raise TrackerError("invalid", problem, "file") from None
    forks = Counter(edge[:2] for edge in edges)
    if not record.name.strip() or max(forks.values(), default=0) > tracker.MOST_FORKS:
        raise TrackerError("invalid", "a workflow has no name, or too many edges from one template", "file")
    return made


def find_import(tx: Tx, caller: Caller, token: str) -> tuple[sqlite3.Row | None, bool]:
    """The import that the manager has sent with this token before; else whether a large file of its own is read.

    What was accepted is answered as the first time, though there may be no room for another one by now.
    """
    manager = logged_in(caller)
    sent = "SELECT * FROM operation WHERE kind = 'import_project' AND manager = ? AND token = ?"
    row = tx.one(sent, (manager.id, token)) if token else None
    if row and not row["accepted"]:
        raise TrackerError("unavailable", "the import with this token is still being read; try again later", "token")
    if row:
        return row, False
    tx.limits.check_disk()
    return None, budgets.trusts(tx, manager)


def settings_of(tx: Tx, caller: Caller, project: Project, name: str) -> dict[str, Any]:
    """The columns of the project to be: paused, not archived, public only where an admin wants that."""
    given = {**project.settings, "name": name or project.settings.get("name"), "paused": True, "archived": False}
    given["public"] = bool(given.get("public")) and logged_in(caller).tracker_admin
    given.pop("chain", None)
    try:
        return tracker.checked_fields(tx, caller, None, convert(given, shapes.ProjectBody))
    except TrackerError as error:
        raise error.within("file.settings") if error.field != "name" else error from None


def begin_import(tx: Tx, caller: Caller, project: Project, query: ImportQuery) -> int:
    """Opens an import, with a number for the project, which is not there before it is accepted. 409: the name is taken.

    What it stages counts for the budget of projects that no admin trusts, if it is to be one.
    """
    refuse_nul(query)
    trusted = budgets.trusts(tx, logged_in(caller))
    fields = settings_of(tx, caller, project, query.name)
    other = tx.one("SELECT trusted FROM project WHERE name = ?", (fields["name"],))
    if other and (other["trusted"] or not trusted):
        problem = f"there is a project named {fields['name']!r} already; import it under another name"
        raise TrackerError("conflict", problem, "name")
    columns = {"accepted": 0, "token": query.token or None, "wanted": encode(Coming(trusted=trusted)).decode()}
    operation = tracker.insert_operation(tx, "import_project", next_project(tx), caller.manager.id, **columns)
    hold(tx, operation, budgets.PROJECT_SIZE)
    return operation


def next_project(tx: Tx) -> int:
    """A number that no project has had, and none will get."""
    if row := tx.one("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'project' RETURNING seq"):
        return row["seq"]
    tx.execute("INSERT INTO sqlite_sequence VALUES ('project', 1)")
    return 1


def hold(tx: Tx, operation: int, size: int, weight: int = 0, some: Sequence[bytes] = ()) -> None:
    """So many bytes more of an import count for the budget of projects that nobody trusts. 503 when it is full.

    And so when it has no room for what becomes of all that has come (`weight`), which may be much more. Refuses, too,
    what is too long for such a project.

    A trigger gives back what an import held that was not accepted.
    """
    row = tx.one("SELECT wanted, manager FROM operation WHERE id = ?", (operation,))
    coming = msgspec.json.decode(row["wanted"], type=Coming)
    if coming.trusted:
        return
    budgets.check_length(tx, budgets.longest_text(some), "file")
    more = max(size, budgets.PROJECT_SIZE + weight - coming.size)
    budgets.check_room(tx, more, maker=row["manager"])
    coming.size += size
    tx.execute("UPDATE operation SET wanted = ? WHERE id = ?", (encode(coming).decode(), operation))
    tx.execute("UPDATE budget SET used = used + ? WHERE name = 'projects'", (size,))


PIECE_WEIGHT = 12_000  # besides its bytes: schema.sql counts the same


def add_pieces(tx: Tx, operation: int, first: int, some: list[bytes], weight: int) -> None:
    """Stages some pieces, the first of which has this number. With those before they will weigh so much."""
    tx.limits.check_disk()
    hold(tx, operation, sum(PIECE_WEIGHT + len(piece) for piece in some), weight, some)
    for number, piece in enumerate(some, first):
        tracker.add_bulk_piece(tx, operation, number, piece)


def accept_import(tx: Tx, caller: Caller, operation: int, project: Project, name: str, tasks: int) -> int:
    """From this commit on the project is there, its maker's, and all that was staged goes into it, crash or not."""
    row = tx.one("SELECT * FROM operation WHERE id = ?", (operation,))
    coming = msgspec.json.decode(row["wanted"], type=Coming)
    fields = settings_of(tx, caller, project, name)
    budgets.claim_name(tx, fields["name"], coming.trusted)
    fields |= {"id": row["project"], "creator": caller.manager.id, "trusted": coming.trusted}
    fields |= {"chain": chain_of(tx, caller, project.chain), "closed_task_count": project.closed_task_count}
    if project.secret is not None:
        fields["secret"] = project.secret
    made = tracker.insert_project(tx, fields)
    if project.webhook_secret is not None:
        tx.execute("UPDATE project SET webhook_secret = ? WHERE id = ?", (project.webhook_secret, made))
    tx.execute("INSERT INTO manager_role VALUES (?, ?, ?)", (made, caller.manager.id, ALL_ROLES))
    if not coming.trusted:  # what was held is the project's own size now
        tx.execute("UPDATE budget SET used = used - ? WHERE name = 'projects'", (coming.size,))
        own = "SELECT ? + 400 + length(report) + length(wanted) FROM operation WHERE id = ?"
        tx.execute(f"UPDATE project SET size = ({own}) WHERE id = ?", (coming.size, operation, made))
    acts.record(tx, caller.manager.id, "import_project", made, tasks=tasks)
    tx.execute("UPDATE operation SET accepted = 1, expected = ? WHERE id = ?", (tasks, operation))
    return made


def chain_of(tx: Tx, caller: Caller, name: str | None) -> int | None:
    """The project of this name, if the manager may chain another one to it."""
    row = name and tx.one("SELECT id FROM project WHERE name = ?", (name,))
    return row["id"] if row and caller.role(row["id"]) & EDIT else None


# ── Its steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────

INSERT_TASK = """
    INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, hash64, not_before,
        status, retries, lost_leases, cause, attempt)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
STATUS = {"waiting": tracker.NEW, "failed": tracker.FAILED, "delayed": tracker.DELAYED}


def step(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    """Takes the next piece into the project: how many tasks that were, and its number; None: there is none."""
    row = tx.one(tracker.TAKE_PIECE, operation)
    if row is None:
        return 0, None
    piece = msgspec.json.decode(row["tasks"])
    if isinstance(piece, list):
        return insert_tasks(tx, piece, operation["project"], row["trusted"]), row["number"]
    if "hashes" in piece:
        keep_hashes(tx, piece["hashes"], operation["project"])
    if "access" in piece:
        request_access(tx, convert(piece["access"], list[Access]), operation["project"])
    if "template" in piece and row["trusted"] is not None:  # else the project was deleted
        make_template(tx, piece["template"], operation["project"], piece["token"])
    if "workflow" in piece and row["trusted"] is not None:
        make_workflow(tx, piece["workflow"], operation["project"])
    return 0, row["number"]


def insert_tasks(tx: Tx, rows: list[list], project: int, trusted: bool) -> int:
    """Stores tasks that are ready, have failed, or wait for their time, if that is still to come. How many."""
    stored, now = 0, tx.clock.trusted_unix()
    for *columns, due, state, retries, lost_leases, reason, failed in rows:
        state = "waiting" if state == "delayed" and due <= now else state
        due = due if state == "delayed" else None
        cause = 0 if reason is None else failures.NOT_FOR_GOOD
        attempt = int(reason is not None)  # whoever closes it is not the first one: its failure is forgotten then
        task = tx.execute(INSERT_TASK, (*columns, due, STATUS[state], retries, lost_leases, cause, attempt))
        if not task.rowcount:
            continue
        stored += 1
        if reason is not None:
            note_failure(tx, task.lastrowid, project, reason, failed)
        if state == "failed":
            group = failures.join(tx, project, failures.pattern_of(reason or ""))
            tx.execute("UPDATE task SET cause = ? WHERE id = ?", (group, task.lastrowid))
        tx.counts.move(project, "gone", state)
        if state == "waiting":
            tx.ready.append((project, 1))
        if not trusted:
            budgets.weigh(tx, project, budgets.task_weight(columns[1], columns[5]))
    return stored


def note_failure(tx: Tx, task: int, project: int, reason: str, when: int) -> None:
    """Notes why a task has failed last, of which nobody here was the worker."""
    kept = reason if failures.room_for(tx, project, reason) else ""
    tx.execute("INSERT INTO failure VALUES (?, ?, 0, ?, 0, ?)", (task, project, when, kept))


def keep_hashes(tx: Tx, hashes: list[int], project: int) -> None:
    keep = "INSERT INTO kept_hash SELECT ?, value FROM json_each(?) WHERE TRUE ON CONFLICT DO NOTHING"
    kept = tx.execute(keep, (project, encode(hashes).decode())).rowcount
    budgets.weigh(tx, project, budgets.HASH_SIZE * kept)


def request_access(tx: Tx, access: list[Access], project: int) -> None:
    """Asks for what workers of these names had: there it is for a manager to grant, as a name proves nothing.

    Of many with one name for some, those seen last; not for more than may wait for an answer. Who is not here yet asks
    by itself. None of it counts among the requests that a worker has made: else who imports could keep it from asking.
    """
    found = tx.all(
        "SELECT id, alias FROM (SELECT id, alias, row_number() OVER (PARTITION BY alias ORDER BY last_seen DESC, id)"
        " AS place FROM worker WHERE alias IN (SELECT value FROM json_each(?))) WHERE place <= ?",
        (encode([one.alias for one in access]).decode(), MOST_ALIKE),
    )
    workers: dict[str, list[int]] = {}
    for row in found:
        workers.setdefault(row["alias"], []).append(row["id"])
    waiting = tx.one("SELECT COUNT(*) FROM worker_access WHERE project = ? AND request", (project,))[0]
    for one in access:
        for worker in workers.get(one.alias, ()) if one.assign or one.submit else ():
            if waiting >= tx.settings.max_access_requests:
                return
            ask = "INSERT INTO worker_access VALUES (?, ?, ?, ?, 1, '', 0) ON CONFLICT DO NOTHING"
            waiting += tx.execute(ask, (project, worker, one.assign, one.submit)).rowcount


def make_template(tx: Tx, given: dict[str, Any], project: int, token: str) -> None:
    """Makes a template. Where another one is triggered by its name already, no program can trigger this one by it."""
    body = convert({**given, "project": project}, shapes.TemplateBody)
    try:
        made = tracker.insert_template(tx, body, promised=True)
    except TrackerError as error:
        if error.field == "api":
            return make_template(tx, {**given, "api": False}, project, token)
        tracker.log.warning("A template of the imported project %d was left out: %s", project, error)
    else:
        tx.execute("UPDATE template SET token = ? WHERE id = ?", (token, made["id"]))
    return None


def make_workflow(tx: Tx, given: dict[str, Any], project: int) -> None:
    """Makes a workflow of templates that are there, and whose secret nobody knows before it gets a new one."""
    found = "SELECT token, id FROM template WHERE project = ? AND token IN (SELECT value FROM json_each(?))"
    tokens = {given["start"], *(token for first, _, last in given["edges"] for token in (first, last))}
    ids = dict(map(tuple, tx.all(found, (project, encode(sorted(tokens)).decode()))))
    taken = "SELECT 1 FROM workflow WHERE project = ? AND name = ? AND deleted IS NULL"
    try:
        tracker.check_room(tx, "workflow", project)
        if given["start"] not in ids or tx.one(taken, (project, given["name"])):
            raise TrackerError("conflict", "its first template is missing, or its name is taken")
    except TrackerError as error:
        tracker.log.warning("A workflow of the imported project %d was left out: %s", project, error)
        return
    columns = {"token": tracker.new_token(), "project": project, "name": given["name"], "start": ids[given["start"]]}
    made = tx.insert(
        "workflow", {**columns, "secret_hash": tracker.digest(tracker.new_secret().encode()), "created": tx.time}
    )
    edges = [(ids[one], ending, ids[other]) for one, ending, other in given["edges"] if one in ids and other in ids]
    tracker.set_edges(tx, made["id"], [shapes.Edge(*edge) for edge in edges])


# ── The calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@takes(
    Call.session,
    query=ImportQuery,
    who="Any manager.",
    answer={
        "project": Annotated[int, shapes.about("The new project's number.", 2)],
        "operation": Annotated[int, shapes.about("The number of the operation that fills it.", 1)],
    },
)
async def import_project(call: Call) -> Reply:
    """Makes a project of a file that `POST /project/export` gave, which gzip may have packed.

    The whole file is read and checked before anything of it is there. Then the project is there, paused, with every
    role for the caller; its tasks come into it by and by, as `GET /operation/{operation}` tells. Tasks that a worker
    had held or verified by halves begin anew; failed ones stay failed, and delayed ones keep their time. Access is
    asked for again, for workers of the same names, and a manager grants it. A chain is found by the name of its
    project, if the caller may edit that. It becomes public only if a tracker admin imports it.

    A `token` makes it safe to repeat the call when no answer came.
    """
    session, query = call.session(), call.query_as(ImportQuery)
    found, trusted = await call.tracker.db.read(tracker.as_caller, find_import, session, query.token)
    if found is not None:
        return Reply({"project": found["project"], "operation": found["id"]})
    most = most_bytes(call.tracker, trusted)
    try:
        async with call.spooled(most >> 10) as file:
            project, operation, _ = await imported(call, session, file, query, most)
    except TrackerError as error:
        if error.code != "conflict" or not query.token:
            raise
        # The first call with this token may have gone on while this one came: then the name is its own.
        found, _ = await call.tracker.db.read(tracker.as_caller, find_import, session, query.token)
        if found is None:
            raise
        project, operation = found["project"], found["id"]
    return Reply({"project": project, "operation": operation})


def most_bytes(running: tracker.Tracker, trusted: bool) -> int:
    """The bytes of the largest file, unpacked, that a manager may import: a trusted one, or another one."""
    settings = running.settings
    return settings.max_import << 20 if trusted else min(settings.max_bulk_body << 10, settings.max_import << 20)


async def imported(
    call: Call, session: bytes | None, file: BinaryIO, query: ImportQuery, most: int
) -> tuple[int, int, asyncio.Future[int]]:
    """Imports a file that is there: the project, the operation that fills it, and its end. Else nothing is left."""
    running, lines = call.tracker, records(file, most)
    write, aside = (
        functools.partial(running.db.write, tracker.as_caller),
        functools.partial(running.aside.read, call.source),
    )
    begins: list[Record] = []
    while len(begins) < 2:
        begins += filter(None, await aside(lambda: next(lines)[1:]))
    project = begins[1]
    counts: Counter[str] = Counter()
    async with tracker.staged(running, tracker.as_caller, begin_import, session, project, query) as operation:
        number = (await running.db.read(operation_project, operation))["project"]
        staging = pieces(lines, number, counts)
        first = 1
        while some := await aside(tracker.take_pieces, staging):
            some = list(filter(None, some))
            await running.db.write(add_pieces, operation, first, some, counts["weight"], long=True)
            first += len(some)
        accepted = (operation, project, query.name, counts["tasks"])
        await write(accept_import, session, *accepted)
    return number, operation, running.begin_operation(operation)


async def export_by_form(visit: Any) -> Response:
    """POST …/export of a page: the file, as a download."""
    secrets = visit.field("secrets") == "true"
    return await exported(visit.tracker, visit.session(), visit.path_id("project"), secrets)


async def import_by_form(visit: Any) -> Response:
    """POST /ui/projects/import: goes on to the project, or to the operation that still fills it."""
    file = visit.fields.get("file", [""])[-1]
    if isinstance(file, str) or not file.filename:
        raise TrackerError("invalid", "choose a file", "file")
    query, session = ImportQuery(visit.field("name").strip()), visit.session()
    _, trusted = await visit.look(find_import, "")
    most = most_bytes(visit.tracker, trusted)
    project, operation, done = await imported(visit, session, file.file, query, most)
    finished, _ = await asyncio.wait((done,), timeout=1)
    if not finished:
        return visit.see(f"/ui/operations/{operation}")
    tasks = f"{done.result():,} task" + "s" * (done.result() != 1)
    return visit.see(f"/ui/projects/{project}", f"Imported: {tasks}. The project is paused.")


def operation_project(tx: Tx, operation: int) -> sqlite3.Row:
    return tx.one("SELECT project FROM operation WHERE id = ?", (operation,))


tracker.STEPS["import_project"] = step
tracker.API += [
    Native("POST", "/project/export/{project}", export_project),
    Native("POST", "/project/import", import_project),
]
