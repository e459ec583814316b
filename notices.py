"""Notices: what happens to a project is told to a URL that its managers have named, or to the operator's own command.

    look, every few seconds ─► conditions_of each project with a hook ─► what has begun to be so ─► a notice, stored
    send ─► those that are due, a few at a time ─► 2xx: it goes; else again after a growing pause, for a day

A notice is stored in the transaction that notes that its condition holds, and goes when somebody has taken it: so each
is sent at least once, also over a restart, and carries an id by which a second one is known. Nothing of it is done by
the calls of workers: a look reads the counts that are there. Nothing here has a say in the state of a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta

import budgets
import shapes
import webhooks
from callers import EDIT, Caller, needs
from counts import COUNTED
from errors import TrackerError, given_fields, shaped
from faults import fault
from limits import site_of
from meter import Meter
from pauses import paused_workers
from writer import Tx

log = logging.getLogger("tracker")

INTERVAL = 5.0  # seconds from one look to the next
TIMEOUT = 10.0  # seconds that a receiver, or the command, may take
SENDERS = 4  # notices on their way at the same time
MOST_KEPT = 100  # of a project, that nobody has taken yet
PAUSES = (5, 15, 60, 300, 900, 3600, 7200, 14400, 28800, 28800)  # seconds after each failed attempt: about a day
FEWEST = 20  # ended attempts of which a share is worth telling
ASKING_INTERVAL = 60  # seconds from one notice of those who ask for access to the next
TEST_INTERVAL = 5.0  # seconds from one test to the next
MOST_NAMES = 5  # of workers in one notice

EVENTS: dict[str, str] = {
    "finished": "nothing is left to do",
    "failing": "many of the last 100 attempts have failed",
    "stalled": "tasks wait, and none is closed",
    "worker_paused": "a worker that keeps failing is paused",
    "access_requested": "a worker asks for access",
}
UNDONE = [column for state, column in COUNTED.items() if state not in ("failed", "closed")]


class HookBody(msgspec.Struct):
    """Where a project's notices go, of what kind they are, and which there are."""

    url: Annotated[str, Meta(max_length=webhooks.MAX_URL)] = ""
    kind: shapes.NoticeKind = "json"
    finished: bool = False
    failing: bool = False
    stalled: bool = False
    worker_paused: bool = False
    access_requested: bool = False
    failing_share: Annotated[int, Meta(ge=1, le=100)] = 50
    stalled_minutes: Annotated[int, Meta(ge=1, le=100_000)] = 30

    @property
    def events(self) -> list[str]:
        return [event for event in EVENTS if getattr(self, event)]


class Known(msgspec.Struct):
    """What was so at the last look: what begins to be so after it is worth a notice."""

    left: bool = False  # something, or was closed since the look before
    failing: bool = False
    recent: tuple[int, str] = (0, "")  # the last attempts, as meter.Recent knows them
    stalled: bool = False
    closed: int = -1
    closed_uptime: float = 0.0  # since when no more were closed
    paused: list[int] = []
    asking: list[int] = []
    asked_uptime: float = -1e9


# What is stored

HOOKS = f"""
    SELECT h.*, p.name, p.paused, p.archived, p.closed_task_count, p.waiting_task_count, p.paused_worker_count,
        {" + ".join(f"p.{name}" for name in UNDONE)} AS left FROM notice_hook h JOIN project p ON p.id = h.project
"""


def find_hook(tx: Tx, project: int) -> sqlite3.Row | None:
    """The hook of a project, with how many notices wait to be taken, and whether a tracker admin trusts it."""
    return tx.one(
        "SELECT h.*, p.trusted, (SELECT COUNT(*) FROM notice n WHERE n.project = h.project) AS waiting"
        " FROM notice_hook h JOIN project p ON p.id = h.project WHERE h.project = ?",
        (project,),
    )


def set_hook(tx: Tx, project: int, body: HookBody) -> None:
    """Where the project's notices go from now on; without a URL, nowhere. Refuses one to which nothing can be sent."""
    if body.kind == "command":
        if not tx.settings.notice_command:
            raise TrackerError("invalid", "The tracker has no command for notices (setting notice_command)", "kind")
        if not budgets.is_trusted(tx, project):  # anybody may make a project, and have much happen in it
            problem = "The tracker's command is for projects that a tracker admin trusts; one can mark yours as trusted"
            raise TrackerError("forbidden", problem, "kind")
        body.url = ""
    elif body.url:
        try:
            webhooks.read_url(body.url)
        except webhooks.Refused as error:
            raise TrackerError("invalid", str(error), "url") from None
    if not body.url and body.kind != "command":
        tx.execute("DELETE FROM notice_hook WHERE project = ?", (project,))
        tx.execute("DELETE FROM notice WHERE project = ?", (project,))
        return
    old = tx.one("SELECT known FROM notice_hook WHERE project = ?", (project,))
    values = (project, body.url, body.kind, " ".join(body.events), body.failing_share, body.stalled_minutes)
    tx.execute(
        "INSERT INTO notice_hook (project, url, kind, events, failing_share, stalled_minutes, known)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET url = excluded.url, kind = excluded.kind,"
        " events = excluded.events, failing_share = excluded.failing_share, problem = '',"
        " stalled_minutes = excluded.stalled_minutes",
        (*values, old["known"] if old else ""),
    )
    tx.execute("UPDATE notice SET next_uptime = 0 WHERE project = ?", (project,))  # it may lead somewhere now


@needs(EDIT)
def get_notices(tx: Tx, caller: Caller, project: sqlite3.Row) -> shapes.Notices:
    """Where the project's notices go, and which there are."""
    hook = find_hook(tx, project["id"])
    return shaped(shapes.Notices, hook, events=hook["events"].split()) if hook else shapes.Notices()


@needs(EDIT, acts=True)
def set_notices(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.NoticesBody) -> None:
    """Sets where the project's notices go, and which there are. Fields that are absent stay as they are.

    With an empty URL there are none any more, and those that wait are forgotten.
    With a URL, and no kind, the tracker's command is it no more.
    """
    now = msgspec.structs.replace(get_notices(tx, caller, project), **given_fields(body))
    if body.url is not UNSET and body.kind is UNSET and now.kind == "command":
        now.kind = "json"  # who names a URL, or none, does not want the command any more
    if not now.url and body.url is UNSET and now.kind != "command":
        raise TrackerError("invalid", "is required: notices go nowhere yet", "url")
    bounds = {name: getattr(now, name) for name in ("failing_share", "stalled_minutes")}
    set_hook(tx, project["id"], HookBody(now.url, now.kind, **dict.fromkeys(now.events, True), **bounds))


class Condition(NamedTuple):
    """Something that has begun to be so."""

    event: str
    text: str


def conditions_of(tx: Tx, hook: sqlite3.Row, meter: Meter) -> tuple[list[Condition], Known]:
    """What has begun to be so since the last look at a project, and what is so now."""
    first, wanted = not hook["known"], hook["events"].split()
    known = Known() if first else msgspec.json.decode(hook["known"], type=Known)
    begun: list[Condition] = []
    closed, left = hook["closed_task_count"], bool(hook["left"])
    if left or closed > known.closed >= 0:  # it may all have come and gone since, and go on so
        known.left = True
    elif known.left:
        known.left = False
        begun.append(Condition("finished", f"nothing is left to do; closed: {counted(closed, 'task')}"))
    recent = meter.recent.get(hook["project"])
    if recent:
        known.recent = recent.known
    if recent and recent.count >= FEWEST:  # of less nothing is known
        share = 100 * recent.failed / recent.count
        if share >= hook["failing_share"] and not known.failing:
            known.failing = True
            begun.append(Condition("failing", f"{recent.failed} of the last {recent.count} attempts failed"))
        elif share < 0.8 * hook["failing_share"]:
            known.failing = False
    if closed != known.closed or not hook["waiting_task_count"] or hook["paused"]:
        known.closed, known.closed_uptime, known.stalled = closed, tx.uptime, False
    elif not known.stalled and tx.uptime - known.closed_uptime >= 60 * hook["stalled_minutes"]:
        known.stalled = True
        waiting, minutes = counted(hook["waiting_task_count"], "task"), counted(hook["stalled_minutes"], "minute")
        said = f"still waiting: {waiting}; none was closed for {minutes}"
        begun.append(Condition("stalled", said))
    rows = paused_workers(tx, hook["project"]) if hook["paused_worker_count"] else []
    paused = {row["id"]: row["alias"] for row in rows}
    if new := [alias for worker, alias in paused.items() if worker not in known.paused]:
        begun.append(Condition("worker_paused", f"paused after one failure after the other: {names(new)}"))
    known.paused = list(paused)
    if "access_requested" in wanted and tx.uptime - known.asked_uptime >= ASKING_INTERVAL:
        asking = {row["id"]: row["alias"] for row in tx.all(ASKING, (hook["project"],))}
        if new := [alias for worker, alias in asking.items() if worker not in known.asking]:
            begun.append(Condition("access_requested", f"access is asked for by {names(new)}"))
            known.asked_uptime = tx.uptime
        known.asking = list(asking)
    return [] if first else [one for one in begun if one.event in wanted], known


ASKING = """
    SELECT w.id, w.alias FROM worker_access a JOIN worker w ON w.id = a.worker
    WHERE a.project = ? AND a.request ORDER BY a.worker DESC LIMIT 200
"""


def counted(count: int, noun: str) -> str:
    """So many of something: 1 task, 2,000 tasks."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def names(aliases: Sequence[str]) -> str:
    """The first ones of these, and how many more there are."""
    shown = ", ".join(alias[:50] for alias in aliases[:MOST_NAMES])
    return shown if len(aliases) <= MOST_NAMES else f"{shown} and {len(aliases) - MOST_NAMES} more"


def find_changes(tx: Tx, meter: Meter) -> tuple[dict[int, tuple[int, str]], bool]:
    """The projects with a hook, with their last attempts, and whether there is anything to be stored."""
    hooks = tx.all(f"{HOOKS} WHERE NOT p.archived")
    known = {hook["project"]: conditions_of(tx, hook, meter)[1] for hook in hooks}
    changed = any(encoded(known[hook["project"]]) != hook["known"] for hook in hooks)
    return {project: one.recent for project, one in known.items()}, changed


def store_changes(tx: Tx, meter: Meter) -> int:
    """Notes what is so now, and stores a notice for each thing that has begun to be so. How many."""
    stored = 0
    for hook in tx.all(f"{HOOKS} WHERE NOT p.archived"):
        begun, known = conditions_of(tx, hook, meter)
        for condition in begun:
            stored += 1
            tx.execute(
                "INSERT INTO notice (token, project, event, text, made) VALUES (?, ?, ?, ?, ?)",
                (secrets.token_hex(12), hook["project"], condition.event, condition.text, tx.time),
            )
        if encoded(known) != hook["known"]:
            change = "UPDATE notice_hook SET known = ? WHERE project = ?"
            tx.execute(change, (encoded(known), hook["project"]))
        if begun:
            oldest = "SELECT id FROM notice WHERE project = ? ORDER BY id DESC LIMIT -1 OFFSET ?"
            tx.execute(f"DELETE FROM notice WHERE id IN ({oldest})", (hook["project"], MOST_KEPT))
    return stored


def encoded(known: Known) -> str:
    """As it is stored."""
    return msgspec.json.encode(known).decode()


class Notice(NamedTuple):
    """A notice that is due, and where it goes."""

    id: int
    token: str
    project: int
    name: str
    event: str
    text: str
    made: int
    attempts: int
    url: str
    kind: str
    trusted: int  # the project is


def due_notices(tx: Tx, most: int) -> list[Notice]:
    """Notices whose time has come, of each project the oldest one: a receiver gets them in their order.

    Those of projects that an admin trusts come first, and to the operator's command go no others.
    """
    rows = tx.all(
        "SELECT n.id, n.token, n.project, p.name, n.event, n.text, n.made, n.attempts, h.url, h.kind, p.trusted"
        " FROM notice_hook h JOIN project p ON p.id = h.project"
        " JOIN notice n ON n.id = (SELECT MIN(id) FROM notice WHERE project = h.project)"
        " WHERE n.next_uptime <= ? AND (p.trusted OR h.kind <> 'command')"
        " ORDER BY p.trusted DESC, n.next_uptime, n.id LIMIT ?",
        (tx.uptime, most),
    )
    return [Notice(*row) for row in rows]


def note_sent(tx: Tx, notice: Notice, problem: str) -> None:
    """It was taken, or not (why): then it is sent again after a pause, and forgotten after a day of that.

    One that nobody has taken at a place where notices go no more is due at the new one: nothing is noted of it.
    """
    now = tx.one("SELECT url, kind FROM notice_hook WHERE project = ?", (notice.project,))
    if problem and now and (now["url"], now["kind"]) != (notice.url, notice.kind):
        return
    tx.execute(
        "UPDATE notice_hook SET problem = ?1, sent = iif(?1 = '', ?2, sent) WHERE project = ?3",
        (problem, tx.time, notice.project),
    )
    if problem and notice.attempts < len(PAUSES):
        change = "UPDATE notice SET attempts = attempts + 1, next_uptime = ? WHERE id = ?"
        tx.execute(change, (tx.uptime + PAUSES[notice.attempts], notice.id))
    else:
        tx.execute("DELETE FROM notice WHERE id = ?", (notice.id,))


def note_test_taken(tx: Tx, project: int) -> None:
    """A test was taken: so what was wrong is right again, and notices that wait need not do so for hours more."""
    tx.execute("UPDATE notice_hook SET problem = '' WHERE project = ?", (project,))
    tx.execute("UPDATE notice SET next_uptime = 0 WHERE project = ?", (project,))


# What is sent


class Message(NamedTuple):
    """A notice as its receiver gets it."""

    content: bytes
    headers: list[tuple[bytes, bytes]]


def message_of(notice: Notice) -> Message:
    """The notice in its receiver's words. Names that others chose mention nobody there."""
    text = f"{notice.name}: {notice.text}"
    mark = [(b"Idempotency-Key", notice.token.encode()), (b"X-Tracker-Event", notice.event.encode())]
    if notice.kind == "ntfy":
        return Message(text.encode(), [(b"Content-Type", b"text/plain; charset=utf-8"), *mark])
    if notice.kind == "slack":
        plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        body: dict[str, Any] = {"text": plain}
    elif notice.kind == "discord":
        body = {"content": text[:2000], "allowed_mentions": {"parse": []}}
    else:
        body = {
            "id": notice.token,
            "event": notice.event,
            "project": {"id": notice.project, "name": notice.name},
            "text": text,
            "time": notice.made,
            "path": f"/ui/projects/{notice.project}",
        }
    return Message(msgspec.json.encode(body), [*webhooks.JSON, *mark])


def problem_of(status: int) -> str:
    """Why a receiver that answered with this status has not taken a notice; empty: it has."""
    if 200 <= status < 300:
        return ""
    led = ", which leads elsewhere: no redirect is followed" if 300 <= status < 400 else ""
    return f"The receiver answered with status {status}{led}"


async def run_command(command: Sequence[str], content: bytes) -> str:
    """Runs the operator's command with the notice as its standard input. Why it has failed; empty: it has not."""
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=nothing, stderr=nothing)
    except OSError as error:
        return f"The command cannot be run: {error.strerror}"
    try:
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):  # uvloop's: it was closed
                await process.communicate(content)
            await process.wait()  # who has not read it may be at work all the same
    except TimeoutError:
        return f"The command did not end within {TIMEOUT:g} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return "" if process.returncode == 0 else f"The command ended with status {process.returncode}"


class Notices:
    """The notices of a running tracker."""

    def __init__(self, db: Any):
        self.db, self.settings = db, db.settings
        self._tested: dict[int, float] = {}  # when a project's hook was tried
        self._unnoted: list[tuple[Notice, str]] = []  # what was sent, and came of it, and is not stored yet
        self.tests = webhooks.Relay(SENDERS)

    async def look(self) -> None:
        """Stores notices of what has begun to be so, and sends those that are due."""
        projects, changed = await self.db.read(find_changes, self.db.meter)
        self.db.meter.watch(projects)
        if changed:
            await self.db.write(store_changes, self.db.meter)
        if projects:
            await self.send_due()

    async def send_due(self) -> None:
        """Sends what is due, some at a time, as long as that is not for long: then comes the next look.

        What cannot be noted now is noted before anything else is sent: else it would be sent again at each look.
        """
        while self._unnoted:
            await self.note(*self._unnoted[-1])
            self._unnoted.pop()
        ends = time.monotonic() + TIMEOUT
        while not self._unnoted and time.monotonic() < ends and (due := await self.db.read(due_notices, SENDERS)):
            await asyncio.gather(*map(self.deliver, due))

    async def deliver(self, notice: Notice) -> None:
        """Sends a notice, and notes what came of it as soon as that is known: others may take long."""
        try:
            problem = await self.send(notice)
        except Exception as error:  # of one project, which is to hold up no other one
            problem = fault(error, "A notice").message
        try:
            await self.note(notice, problem)
        except TrackerError:  # the disk is full, say
            self._unnoted.append((notice, problem))

    async def note(self, notice: Notice, problem: str) -> None:
        """Stores whether it was taken."""
        await self.db.write(note_sent, notice, problem)
        if problem and notice.attempts >= len(PAUSES):
            log.warning("A notice of project %d was never taken: %s", notice.project, problem)

    async def send(self, notice: Notice) -> str:
        """Sends a notice. Why nobody has taken it, in words for its project's managers; empty: somebody has."""
        message = message_of(notice)
        if notice.kind == "command":
            return await run_command(self.settings.notice_command, message.content)
        try:
            answer = await webhooks.send(
                notice.url,
                message.content,
                self.settings.webhook_networks,
                TIMEOUT,
                method="POST",
                headers=message.headers,
                trusted=bool(notice.trusted),
            )
        except (webhooks.Refused, webhooks.TimedOut, webhooks.Unreachable) as error:
            return str(error)
        return problem_of(answer.status)

    async def test(self, source: str, project: int, name: str, hook: sqlite3.Row) -> None:
        """Sends a notice now that says that it is a test, for somebody at this address; taken, those that wait follow.

        Refuses (unavailable), and says why, if nobody takes it.
        """
        now = time.monotonic()
        if now < self._tested.get(project, -TEST_INTERVAL) + TEST_INTERVAL:
            raise TrackerError("too_fast", "A test was sent a moment ago", delay=TEST_INTERVAL)
        self._tested = {one: at for one, at in self._tested.items() if now < at + TEST_INTERVAL} | {project: now}
        token, made = secrets.token_hex(12), int(self.db.clock.time())
        where = hook["url"], hook["kind"], hook["trusted"]
        notice = Notice(0, token, project, name, "test", "this is a test", made, 0, *where)
        try:
            async with self.tests.turn(site_of(source), TIMEOUT + TEST_INTERVAL, bool(hook["trusted"])):
                problem = await self.send(notice)
        except webhooks.TimedOut as error:
            problem = str(error)
        if problem:
            raise TrackerError("unavailable", problem)
        await self.db.write(note_test_taken, project)
