"""A task tracker: one HTTP server, one SQLite file, a crowd of workers, and no task lost.

A manager makes a project (a queue); workers submit tasks to it, are assigned tasks from it, and release each one as
done, failed or skipped. What flows where:

    request ─► App (which path?) ─► Endpoint ─► Call (decoded) ─► as_caller(tx, function, …) ─► Structs ─► JSON
                                                                     │
             Database.write: one queue, one connection, one transaction and one fsync for all that wait
                                                                     │
             Waiters: a commit that made tasks ready wakes one waiting worker for each of them

Every state change is a plain function `(tx, caller, …)` that takes an open transaction and plain values, and returns
plain values or raises TrackerError. Such functions compose: release calls close, close calls chain-submit. Who calls is
found out once in a transaction, and what a function needs is declared where it is defined (`@needs`).

Beside this module: errors (what is refused) and faults (what fails), meter (what is counted), shapes (what goes in and
out), callers (who calls, and what they may), settings, server, listening, protocol and connections (how bytes come in),
streams (long answers), turns (who goes first), browsers (what they may do), forms (that are sent once), attempts (at
passwords), pauses (of workers that fail), limits, budgets and shares (how often, how much, and of what all share),
database (the file) with guard (of it) and writer (the one that writes), clock, disk, wal, space and retention (that it
does not grow for ever), counts (the live ones) and warming (what is read for it), searching (of lists), failures (why
tasks fail), lines and githook (uploads, push events), logs (that workers write), logfile, names (that people choose),
waiting (workers that wait), heard (who asks), openapi (the API's document), acts (what managers did), packing (gzip),
notices and webhooks (what others are told), schema.sql; on top of it, and imported when somebody needs them: pages
(the manager UI), metrics (for monitors), dialects/ (other systems' APIs), commands (the command line) with notify
(what the service manager is told) and backup, deletion and moving (of a project), projects (all at once), workers
(renamed and deleted).
Sections, in the order in which they depend on each other (search for "# ── "):

    Ids, secrets and searches · Dialects · Workers · Projects and access · Managers ·
    Tasks · Jobs and templates · Workflows · Task lists · Long operations · Monitoring · Background work ·
    HTTP plumbing · JSON API · Routes and app · In-process · Command line

Nothing refers to a later section but these, as a task, its job and the job's workflow are one state machine:

    Workers: requeue_tasks
    Tasks: expire_job NO_REPORT Report read_report release_job start_job
    Jobs and templates: cancel_steps continue_workflow repeat_workflow start_workflow_job
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import collections
import contextlib
import functools
import hashlib
import hmac
import importlib
import inspect
import itertools
import logging
import logging.handlers
import math
import random
import re
import secrets
import shlex
import sqlite3
import sys
import tempfile
import threading
import time
import typing
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import itsdangerous
import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route

import acts
import browsers
import budgets
import errors
import failures
import forms
import listening
import names
import notices
import openapi
import pauses
import shapes
import webhooks
from attempts import (
    Attempt,
    Guesser,
    Guesses,
    Places,
    accept_attempt,
    count_attempt,
    count_registering,
    forget_attempts,
    hash_password,
    may_guess,
    note_address,
    password_matches,
    sources_of,
    stamp_of,
)
from callers import (
    ADMIN,
    ALL_ROLES,
    ASSIGN,
    EDIT,
    LOGIN,
    MAINTENANCE,
    MANAGE_ACCESS,
    PROJECT,
    READ,
    ROLE_NAMES,
    SECRET,
    SEES,
    SUBMIT,
    WORKER,
    Caller,
    Credentials,
    Need,
    Newcomer,
    NoAccess,
    Thing,
    WorkerCredentials,
    accessible,
    as_caller,
    authenticate,
    check_access,
    check_secret,
    check_worker,
    digest,
    find_project,
    find_project_row,
    find_worker,
    identify,
    is_granted,
    is_of_admin,
    logged_in,
    needs,
    sees_chain,
)
from connections import room_for
from counts import COUNTED, reads_no_counts
from database import NOTE_SET_BACK, Clock, Database, let_age, load_meta, set_back
from errors import STATUS, MethodNotAllowed, TrackerError, as_raw, decode, encode, given_fields, shaped
from faults import fault
from githook import SIGNATURE_HEADERS, check_known, check_signed, keys_for, receive_push, signed_with
from joblog import add_job_line, add_job_lines, job_log, tell_what_was_dropped, what_drops
from limits import Limit, site_of
from lines import MOST_REPORTED, LineTask, Upload, array_parts, take_pieces, tasks_of
from logfile import kept_line, open_log_file
from logs import (
    LEVEL_NAMES,
    LEVELS,
    list_acts,
    list_all_acts,
    list_logs,
    only_project,
    query_logs,
    store_log_entry,
)
from meter import counted
from packing import pack
from protocol import LONGEST_DIRECT, Direct, Fields
from retention import PRUNE, prune, roll_tallies
from searching import MOST_FOUND, contains, few, search, text_size
from server import Aside, Incoming, Server, hand_out, held, plain_cycle, run_loop, uvicorn_config, write_at_once
from settings import FIELDS, Settings
from shapes import COUNT_COLUMNS, INT16_MAX, INT64_MAX, PROJECT_COLUMNS, Id, Manager, Project, Task, about
from streams import Stream
from turns import Turns, works_for
from waiting import Assigned, Polls, Waiters
from warming import Warming
from writer import UPTIME_INTERVAL, Tx, save_uptime, together

__version__ = "1.0.0"

HERE = Path(__file__).resolve().parent
log = logging.getLogger("tracker")


# ── Ids, secrets and searches ─────────────────────────────────────────────────────────────────────────────────────────

UNLIMITED_RATE = 1.7976931348623157e308  # what existing clients compare with


def new_secret() -> str:
    """32 random bytes in base64, as workers' secrets look."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def to_int64(value: int, name: str) -> int:
    """A 64-bit integer, signed or unsigned, as the signed one with the same bits. Refuses what needs more than 64."""
    if not -(2**63) <= value < 2**64:
        raise TrackerError("invalid", "must fit in 64 bits", name)
    return value - 2**64 if value > INT64_MAX else value


def hash_unique_string(text: str) -> int:
    """A 64-bit hash of a task's unique string. Never 0, which means none."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True) or 1


def retry_pauses() -> Iterator[float]:
    """Growing pauses, in seconds, between attempts at something that keeps failing."""
    return itertools.chain((0.1, 0.5, 1, 2, 5), itertools.repeat(10))


# Pieces of long operations
PIECE_TASKS = 500  # rows that one step stores or deletes
BULK_TASKS = 100  # in a piece of a bulk submit: short calls that wait are let in after each
PIECE_BYTES = 2**18  # and no step stores more than this at once
STEP_TASKS = 50  # in one statement of the other operations: their recipes may be long, and are rewritten

# Searches
SEARCH_TIME = 0.03  # seconds; then a page shows what has been found so far


# ── Dialects ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# Other systems' APIs over the same queue, each a module of dialects/, by the names that people write. The core knows
# none of them but here, and runs without that folder. What a module may have, besides routes(running):
#
#     PAGES                          rows of manager pages, as pages.py has them
#     links(tx, project=None, job=None)    its pages that those of the tracker lead to (pages.Link): from everywhere, or
#                                    from those of a project or of a job
#     job_event(tx, event, job)      follows a job, in the transaction in which something happens to it: "made", a move
#                                    of JOB_MOVES, "set_priority" or "deleted"; the job as it is then, or was
#     async catch_up(running)        at a start, when it may not have seen all that was done to this file
#     check_project(tx, project, fields)   raises why a project cannot be changed to this
#     check_retry(tx, job)           raises why a job that has ended cannot be made again
#     client_of(tx, job)             which of its clients made a job, in words; None: not known
#     attachments(tx, job)           how to send what a client has attached to a job: an async function (running) that
#                                    makes the answer, or None when the file has gone; None: nothing is attached
#     forgives(tx, job, report)      whether a job that is released as failed has not, for the client that made it
#     job_environment(tx, job)       what the job's script finds in its environment besides what the template sets
#     async prune(running)           forgets what is old, now and then
#     project_gone(tx, project)      deletes some of what it has of a project that was deleted; whether there is more
#     needed_workers(tx), needed_managers(tx)    the ids of those that it would miss, though they never did anything
#
# templates/NAME_admin.html and NAME_template.html, where there are such, are its parts of the pages of those names.
DIALECTS = {"testflinger": "Testflinger", "otter": "Otter", "theeye": "theeye.io"}


@functools.cache
def installed_dialects() -> list[str]:
    return [name for name in DIALECTS if list((HERE / "dialects").glob(f"{name}*"))]


@functools.cache
def dialects() -> list[Any]:
    """The modules of all dialects that are installed. Imported when somebody asks: they rest on this one."""
    return [importlib.import_module(f"dialects.{name}") for name in installed_dialects()]


def hooks(name: str) -> list[Callable]:
    """What the dialects have of this name."""
    return [getattr(dialect, name) for dialect in dialects() if hasattr(dialect, name)]


deletion = functools.partial(importlib.import_module, "deletion")  # of projects: it rests on this module, too


def job_happens(tx: Tx, event: str, job: sqlite3.Row) -> None:
    """Something has happened to a job: the dialects that follow jobs do so, in this transaction."""
    for listener in hooks("job_event"):
        listener(tx, event, job)


def known_dialects(tx: Tx) -> list[str]:
    """The dialects that were there whenever a tracker ran on this file. Those that are not here now are so no more."""
    row = tx.one("SELECT value FROM meta WHERE key = 'dialects'")
    known = [name for name in (row["value"].split() if row else ()) if name in installed_dialects()]
    note_dialects(tx, known)
    return known


def note_dialects(tx: Tx, names: Iterable[str]) -> None:
    noted = "INSERT INTO meta VALUES ('dialects', ?) ON CONFLICT DO UPDATE SET value = excluded.value"
    tx.execute(noted + " WHERE value <> excluded.value", (" ".join(names),))


# ── Workers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def may_submit_somewhere(tx: Tx, credentials: WorkerCredentials) -> bool:
    """Whether the caller has SUBMIT in a trusted project: asked before a large body is read. 401 if it is no worker."""
    check_secret(find_worker(tx, credentials.id), credentials)
    granted = (
        "SELECT 1 FROM worker_access a JOIN project p ON p.id = a.project"
        " WHERE worker = ? AND role_submit AND NOT request AND trusted"
    )
    return bool(tx.one(granted, (credentials.id,)))


def alias_of(tx: Tx, worker: int | None) -> str | None:
    row = tx.one("SELECT alias FROM worker WHERE id = ?", (worker,)) if worker is not None else None
    return row and row["alias"]


RESERVED_LOOK = names.look("unassigned")


def clean_alias(tx: Tx, alias: str) -> str:
    """The alias to store. `unassigned` is reserved: statistics of assignees use it for tasks that nobody holds."""
    alias = names.seen(alias).strip()
    alias = alias if names.look(alias) else tx.settings.default_alias
    if names.look(alias) == RESERVED_LOOK:
        raise TrackerError("invalid", "'unassigned' is reserved", "alias")
    return alias


def create_worker(tx: Tx, caller: Caller, body: shapes.AliasBody) -> shapes.Worker:
    """Registers a worker, with no rights yet. Its secret is in the answer and nowhere else."""
    if not tx.settings.open_worker_registration:
        logged_in(caller)
    alias = clean_alias(tx, body.alias)
    if newcomer := not (caller.manager and caller.manager.tracker_admin):
        budgets.check_count(tx, "workers", requeue_tasks)
    worker, secret = insert_worker(tx, alias, browsers.site_of(caller.source) if newcomer else "")
    return shapes.Worker(id=worker, created=tx.time, alias=alias, secret=secret, paused=False)


create_worker.registers = True  # an address may make so many of them in an hour


def insert_worker(tx: Tx, alias: str, source: str = "") -> tuple[int, str]:
    """Stores a worker, whoever wants it. Its id, and its secret, which is stored nowhere.

    An agent of another system cannot be refused for what it is called: it has the default alias instead.
    """
    alias, secret = names.seen(alias).strip(), new_secret()
    if names.look(alias) in ("", RESERVED_LOOK):
        alias = tx.settings.default_alias
    row = tx.one(
        "INSERT INTO worker (alias, secret_hash, created, last_seen, source) VALUES (?, ?, ?, ?, ?) RETURNING id",
        (alias, digest(secret.encode()), tx.time, tx.time, source),
    )
    return row["id"], secret


def get_worker(tx: Tx, caller: Caller, worker: int) -> shapes.Worker:
    """A worker as everybody may see it, without its secret."""
    row = tx.one("SELECT id, created, alias, paused FROM worker WHERE id = ?", (worker,))
    if row is None:
        raise TrackerError("not_found", f"No worker {worker}")
    return shaped(shapes.Worker, row)


@needs(WORKER)
def update_worker(tx: Tx, caller: Caller, body: shapes.AliasBody) -> None:
    """Renames the calling worker."""
    tx.execute("UPDATE worker SET alias = ? WHERE id = ?", (clean_alias(tx, body.alias), caller.worker.id))


@needs(ADMIN, acts=True)
def set_worker_paused(tx: Tx, caller: Caller, body: shapes.PauseBody) -> None:
    """Pauses a worker (it is assigned nothing) or lets it go on."""
    get_worker(tx, caller, body.worker)
    tx.execute("UPDATE worker SET paused = ? WHERE id = ?", (body.paused, body.worker))


MOST_RANKED = 1000  # workers in one answer


def worker_stats(tx: Tx, caller: Caller, query: shapes.RankingQuery) -> shapes.Ranking:
    """The workers and how many tasks each has closed, the busiest first: a thousand, and `more` if there are others."""
    last = tx.one("SELECT id, closed_task_count FROM worker WHERE id = ?", (query.after,))
    rows = tx.all(
        "SELECT id, alias, closed_task_count, paused FROM worker WHERE :id IS NULL OR closed_task_count < :closed"
        " OR (closed_task_count = :closed AND id > :id) ORDER BY closed_task_count DESC, id LIMIT :most + 1",
        {"id": last and last["id"], "closed": last and last["closed_task_count"], "most": MOST_RANKED},
    )
    ranked = [shaped(shapes.WorkerStatistics, row) for row in rows[:MOST_RANKED]]
    return shapes.Ranking(ranked, True if len(rows) > MOST_RANKED else UNSET)


# ── Projects and access ───────────────────────────────────────────────────────────────────────────────────────────────


NEW_PROJECT = {
    field.name: field.default
    for field in msgspec.structs.fields(Project)
    if field.default is not UNSET and not field.required
}


@needs(SEES)
def get_project(tx: Tx, caller: Caller, project: sqlite3.Row) -> shapes.ProjectContent:
    """A project with its live counts. A hidden one only for managers with READ; for others it does not exist."""
    shown = project_shown(tx, caller, project)
    return shapes.ProjectContent(**msgspec.structs.asdict(shown), project=shown)


def project_shown(tx: Tx, caller: Caller, row: sqlite3.Row) -> Project:
    """A project with its counts. Who may not edit it does not see that it is chained to a hidden one."""
    columns = project_of(tuple(row[name] for name in PROJECT_COLUMNS))
    chain = columns.chain if sees_chain(tx, caller, row) else 0
    return msgspec.structs.replace(columns, chain=chain, **{name: row[name] for name in COUNT_COLUMNS})


def project_of(columns: tuple) -> Project:
    """The columns of PROJECT_COLUMNS as the document shows them."""
    made = {name: make(value) for (name, make), value in zip(errors.columns_of(Project), columns, strict=False)}
    rates = {name: made[name] or UNLIMITED_RATE for name in ("assign_rate", "submit_rate")}
    return Project(**{**made, **rates, "chain": made["chain"] or 0})


class Part(list):
    """A part of a list, encoded, and where the next one begins: at None there is none."""

    after: Any = None

    def taken(self) -> bytes:
        """Its rows, each behind a comma. It has them no more: it would for as long as they wait to be sent."""
        rows = b"".join(b"," + bytes(row) for row in self)
        self.clear()
        return rows


PART_ROWS, PART_BYTES = 500, 2**16  # a part ends with the row that reaches one of them


def part_of(rows: Iterable[sqlite3.Row], shown: Callable[[sqlite3.Row], Any], place: Callable[[Any], Any]) -> Part:
    """The first of these rows, as they are `shown`. `place` tells of a row where those behind it begin."""
    part, size = Part(), 0
    for row in rows:
        part.append(Raw(encode(shown(row))))
        size += len(part[-1])
        if len(part) == PART_ROWS or size >= PART_BYTES:
            part.after = place(row)
            break
    return part


MOST_LISTED_MOTD = 1000  # characters: strangers' projects must not make everybody's list longer than a client reads


def project_listed(tx: Tx, caller: Caller, row: sqlite3.Row) -> Project:
    """A project as a list of all shows it."""
    shown = project_shown(tx, caller, row)
    own = caller.manager is not None and caller.manager.id == row["creator"]  # a role anybody may give one
    if not (row["trusted"] or own) and len(shown.motd) > MOST_LISTED_MOTD:
        shown.motd = shown.motd[: MOST_LISTED_MOTD - 1] + "…"
    return shown


def list_projects(tx: Tx, caller: Caller, query: shapes.ProjectsQuery, *, after: str = "") -> list[Project]:
    """Every project that the caller may see, by name: hidden ones only with READ. Archived ones are a list apart.

    Who did not make one that no tracker admin trusts sees 1,000 characters of its `motd`.
    """
    rows = tx.execute(
        "SELECT p.* FROM project p LEFT JOIN manager_role r ON r.project = p.id AND r.manager = :manager"
        " WHERE (NOT p.hidden OR :admin OR r.role & 1) AND p.name > :after AND p.archived = :archived ORDER BY p.name",
        {**caller.as_values, "after": after, "archived": query.archived},
    )
    return part_of(rows, functools.partial(project_listed, tx, caller), lambda row: row["name"])


@needs(LOGIN, acts=True)
def create_project(
    tx: Tx, caller: Caller, body: shapes.ProjectBody
) -> Annotated[int, about("The new project's number.", 2)]:
    """Makes a project. Its creator gets every role in it; only a tracker admin may make it public."""
    if body.name is UNSET:
        raise TrackerError("invalid", "is required", "name")
    made_by = {"creator": caller.manager.id, "trusted": budgets.trusts(tx, caller.manager)}
    fields = {**checked_fields(tx, caller, None, body), **made_by}
    budgets.claim_name(tx, fields["name"], fields["trusted"])
    project = insert_project(tx, fields)
    tx.execute("INSERT INTO manager_role VALUES (?, ?, ?)", (project, caller.manager.id, ALL_ROLES))
    return project


@needs(ADMIN, acts=True)
def trust_project(tx: Tx, caller: Caller, project: int) -> None:
    """Takes a project out of the budget that is shared by those of managers whom no tracker admin trusts."""
    tx.execute("UPDATE project SET trusted = 1, size = 0 WHERE id = ?", (find_project(tx, project)["id"],))


SNAPSHOT_PIECE = 50  # projects per transaction


def take_snapshots(tx: Tx, after: int, time_stamp: int) -> int | None:
    """Snapshots of the next projects after id `after`. The last one's id, or None when there are no more."""
    rows = tx.all(
        "INSERT OR REPLACE INTO snapshot SELECT id, ?, waiting_task_count + assigned_task_count + delayed_task_count,"
        " failed_task_count, closed_task_count,"
        " (SELECT COUNT(*) FROM worker_access a WHERE a.project = p.id AND NOT a.request),"
        " awaiting_verification_count, ifnull((SELECT failed_attempt_count + lost_lease_count FROM failure_total"
        " WHERE project = p.id), 0) FROM project p WHERE id > ? ORDER BY id LIMIT ? RETURNING project",
        (time_stamp, after, SNAPSHOT_PIECE),
    )
    return max((row["project"] for row in rows), default=None)


def insert_project(tx: Tx, fields: dict[str, Any]) -> int:
    """Stores a project with these fields of NEW_PROJECT, and a name that no other one has. Its id."""
    fields = {**NEW_PROJECT, **fields, "webhook_secret": new_secret()}
    fields["chain"] = fields["chain"] or None
    project = tx.insert("project", fields)["id"]
    take_snapshots(tx, project - 1, tx.time)  # rates and charts begin here, and not at the next round
    return project


def forget_project(tx: Tx, project: int) -> bool:
    """Deletes a project that has nothing in it, with its history, a piece at a time. Whether that was the last one.

    That nothing refers to it (no task, job, template, workflow, role or access) is for the caller to see to.
    """
    values = {"project": project, "limit": PIECE_TASKS}
    pieces = (
        "DELETE FROM snapshot WHERE project = :project AND time_stamp IN"
        " (SELECT time_stamp FROM snapshot WHERE project = :project LIMIT :limit)",
        "UPDATE log_entry SET project = NULL WHERE id IN"
        " (SELECT id FROM log_entry WHERE project = :project LIMIT :limit)",
    )
    if any(tx.execute(piece, values).rowcount >= PIECE_TASKS for piece in pieces):
        return False
    for table, column in (("operation", "project"), ("tally", "project"), ("act", "project"), ("project", "id")):
        tx.execute(f"DELETE FROM {table} WHERE {column} = :project", values)
    return True


@needs(EDIT, acts=True)
def update_project(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.ProjectBody) -> None:
    """Changes a project. Fields that are absent stay as they are. Takes effect with the very next assignment.

    Making it public needs a tracker admin, and chaining it EDIT in the other project too.
    """
    fields = checked_fields(tx, caller, project, body)
    budgets.claim_name(tx, fields["name"], project["trusted"], project["id"])
    for kind in ("assign", "submit"):
        if fields[f"{kind}_rate"] != project[f"{kind}_rate"]:
            fields[f"{kind}_free_uptime"] = 0
    changes = ", ".join(f"{name} = :{name}" for name in fields)
    tx.execute(f"UPDATE project SET {changes} WHERE id = :id", {"id": project["id"], **fields})
    if fields["public"] and not project["public"]:  # a tracker admin wants that
        trust_project(tx, caller, project["id"])
    ready = project["waiting_task_count"] + project["awaiting_verification_count"]
    tx.ready.append((project["id"], ready))  # if it was un-paused


def pause_project(tx: Tx, caller: Caller, project: int, body: shapes.PausedBody) -> None:
    """Stops or resumes assignment from a project."""
    update_project(tx, caller, project, shapes.ProjectBody(paused=body.paused))


def checked_fields(tx: Tx, caller: Caller, old: sqlite3.Row | None, body: shapes.ProjectBody) -> dict[str, Any]:
    """The columns of a new or changed project, or the reason why it is refused."""
    before = {name: old[name] for name in ("name", *NEW_PROJECT)} if old else {**NEW_PROJECT, "chain": None}
    fields = {**before, **given_fields(body)}
    fields["chain"] = fields["chain"] or None
    for name in ("assign_rate", "submit_rate"):
        rate = fields[name] or 0.0
        fields[name] = 0.0 if rate >= UNLIMITED_RATE else float(rate)
    if not fields["name"].strip():
        raise TrackerError("invalid", "must not be blank", "name")
    if fields["public"] and fields["hidden"]:
        raise TrackerError("invalid", "a project cannot be public and hidden at once", "hidden")
    if fields["public"] and not before["public"] and not caller.manager.tracker_admin:
        raise TrackerError("forbidden", "only a tracker admin may make a project public", "public")
    if fields["archived"] and not fields["paused"]:
        if before["archived"]:
            raise TrackerError("conflict", "an archived project stays paused", "paused")
        fields["paused"] = True
    for check in hooks("check_project") if old else ():
        check(tx, old, fields)
    if fields["chain"] != before["chain"]:
        check_chain(tx, caller, old["id"] if old else None, fields["chain"])
    return fields


def check_chain(tx: Tx, caller: Caller, project: int | None, target: int | None) -> None:
    """Refuses a chain to nowhere, to a project that the manager cannot edit, to itself, or in a circle."""
    following = target
    while following is not None:
        if following == project:
            raise TrackerError("invalid", "a project cannot be chained to itself, not even in a circle", "chain")
        row = tx.one("SELECT chain, hidden FROM project WHERE id = ?", (following,))
        if row is None or (following == target and row["hidden"] and not caller.role(target)):
            raise TrackerError("not_found", f"no project {following}", "chain")
        following = row["chain"]
    if target is not None and not caller.role(target) & EDIT:
        raise TrackerError("forbidden", f"you have no EDIT role in project {target}", "chain")


@needs(WORKER)
def request_access(tx: Tx, caller: Caller, body: shapes.AccessBody) -> None:
    """Asks a project's managers for access. It opens nothing by itself: a manager accepts or rejects it.

    A hidden project is not there for it: its managers add the worker by its number.
    """
    worker, project = caller.worker.id, find_project(tx, body.project)
    old = tx.one("SELECT request FROM worker_access WHERE project = ? AND worker = ?", (body.project, worker))
    if project["hidden"] and not old:
        raise PROJECT.missing(body.project)
    if not (body.assign or body.submit):
        raise TrackerError("invalid", "ask for at least one", "assign, submit")
    if old:
        state = "is waiting for a manager already" if old["request"] else "has been granted already"
        code = "conflict" if old["request"] else "granted"
        raise TrackerError(code, f"Your access to project {body.project} {state}")
    budgets.make_room_for_request(tx, body.project, worker)
    values = (body.project, worker, body.assign, body.submit, browsers.site_of(caller.source), tx.time)
    tx.execute("INSERT INTO worker_access VALUES (?, ?, ?, ?, 1, ?, ?)", values)


@needs(MANAGE_ACCESS)
def list_access(tx: Tx, caller: Caller, project: sqlite3.Row, *, after: tuple = (2, "", 0)) -> list[shapes.Access]:
    """Who has or wants access, the waiting requests first."""
    rows = tx.execute(
        "SELECT a.role_submit AS submit, a.role_assign AS assign, a.request, a.project,"
        " w.id, w.created, w.alias, w.paused FROM worker_access a JOIN worker w ON w.id = a.worker"
        " WHERE a.project = ? AND (-a.request, w.alias, w.id) > (-?, ?, ?) ORDER BY a.request DESC, w.alias, w.id",
        (project["id"], *after),
    )
    return part_of(
        rows,
        lambda row: shaped(shapes.Access, row, worker=shaped(shapes.Worker, row)),
        lambda row: (row["request"], row["alias"], row["id"]),
    )


def find_access(tx: Tx, project: int, worker: int) -> sqlite3.Row:
    row = tx.one("SELECT * FROM worker_access WHERE project = ? AND worker = ?", (project, worker))
    if row is None:
        raise TrackerError("not_found", f"Worker {worker} has neither asked for nor got access to project {project}")
    return row


@needs(MANAGE_ACCESS, acts=True)
def accept_request(tx: Tx, caller: Caller, project: sqlite3.Row, worker: int) -> None:
    """Grants what the worker asked for."""
    if not find_access(tx, project["id"], worker)["request"]:
        raise TrackerError("conflict", f"Worker {worker} has access to project {project['id']} already")
    tx.execute("UPDATE worker_access SET request = 0 WHERE project = ? AND worker = ?", (project["id"], worker))


@needs(MANAGE_ACCESS, acts=True)
def reject_request(tx: Tx, caller: Caller, project: sqlite3.Row, worker: int) -> None:
    """Rejects a request, or withdraws what was granted."""
    find_access(tx, project["id"], worker)
    tx.execute("DELETE FROM worker_access WHERE project = ? AND worker = ?", (project["id"], worker))


@needs(MANAGE_ACCESS, acts=True)
def reject_requests(tx: Tx, caller: Caller, project: sqlite3.Row) -> Annotated[int, about("How many those were.", 60)]:
    """Rejects all requests that wait for an answer."""
    return tx.execute("DELETE FROM worker_access WHERE project = ? AND request", (project["id"],)).rowcount


@needs(MANAGE_ACCESS, acts=True)
def set_worker_access(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.WorkerRolesBody) -> None:
    """Gives a worker exactly this access, asked for or not."""
    get_worker(tx, caller, body.worker)
    if not (body.assign or body.submit):
        raise TrackerError("invalid", "choose at least one, or withdraw the access", "assign, submit")
    budgets.check_room_in(tx, project["id"], budgets.ACCESS_SIZE)
    grant_access(tx, project["id"], body.worker, body.assign, body.submit)


def grant_access(tx: Tx, project: int, worker: int, assign: bool, submit: bool) -> None:
    """Gives a worker exactly this access, whoever wants it."""
    tx.execute(
        "INSERT INTO worker_access (project, worker, role_assign, role_submit, request) VALUES (?, ?, ?, ?, 0)"
        " ON CONFLICT DO UPDATE SET"
        " role_assign = excluded.role_assign, role_submit = excluded.role_submit, request = 0",
        (project, worker, assign, submit),
    )


NO_SECRET = "{}"  # what a project has until somebody sets one


@needs(
    SECRET,
    worker=ASSIGN,
    by_itself=True,
    says="A worker with ASSIGN access to the project, or a manager with the role SECRET in it. Of a public project any"
    " worker, but without access it is answered an empty text for a secret that has been set.",
)
def get_secret(
    tx: Tx, caller: Caller, project: int
) -> Annotated[str, about("The project's secret; {{}} until somebody sets one.", '{"api_key": "1234"}')]:
    """What workers need to run this project."""
    row = find_project_row(tx, project)
    if caller.worker and row and row["public"] and not is_granted(tx, caller.worker.id, project, ASSIGN):
        # Clients in use ask after each assignment, and give up, holding the task, when they are refused.
        return NO_SECRET if row["secret"] == NO_SECRET else ""
    return accessible(tx, caller, get_secret.need, project)["secret"]


@needs(SECRET, acts=True)
def set_secret(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.SecretBody) -> None:
    """Sets what workers need to run this project."""
    tx.execute("UPDATE project SET secret = ? WHERE id = ?", (body.secret, project["id"]))


@needs(SECRET)
def get_webhook_secret(
    tx: Tx, caller: Caller, project: sqlite3.Row
) -> Annotated[str, about("The key; a random one until somebody sets another.", "a long random text")]:
    """The key with which the project's git host signs its push events."""
    return project["webhook_secret"]


@needs(SECRET, acts=True)
def set_webhook_secret(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.WebhookSecretBody) -> None:
    """Sets the key with which the project's git host signs its push events."""
    tx.execute("UPDATE project SET webhook_secret = ? WHERE id = ?", (body.webhook_secret, project["id"]))


# ── Managers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def any_admin(tx: Tx) -> bool:
    return tx.one("SELECT 1 FROM manager WHERE tracker_admin = 1 LIMIT 1") is not None


NO_ADMIN = (
    "This tracker has no admin yet, and its first account becomes one: make it on the tracker's own machine (and not"
    " through a proxy), or with the `code` that the tracker has printed to stderr at its start, or with"
    " `tracker.py create-admin NAME` while it is stopped"
)


def check_registration_open(tx: Tx, owner: bool) -> bool:
    """Whether this account is to be tracker admin: the first one, which `owner` alone may make. Refuses who may not."""
    if not any_admin(tx):
        if owner:
            return True
        raise TrackerError("forbidden", NO_ADMIN, "code")
    if not tx.settings.open_registration:
        raise TrackerError("forbidden", "Registration is closed; ask a tracker admin")
    return False


def count_registration(tx: Tx, address: str, owner: bool = True) -> None:
    """Counts an attempt before its password is hashed, which takes a core for a moment: many of them are throttled."""
    check_registration_open(tx, owner)
    if address:
        count_registering(tx, address)


def register_manager(
    tx: Tx, username: str, password_hash: str, owner: bool = True, address: str = "", source: str = ""
) -> tuple[Manager, bytes]:
    """A new manager, logged in: (manager, session). The first one of all, who is the `owner`, becomes tracker admin."""
    first = check_registration_open(tx, owner)
    look = names.look(username)
    if tx.one("SELECT 1 FROM manager WHERE look = ? OR username = ?", (look, username)):
        raise TrackerError("conflict", f"{username!r} is taken, or looks like one that is", "username")
    budgets.check_count(tx, "managers")
    columns = {"username": username, "look": look, "password_hash": password_hash, "source": browsers.site_of(source)}
    row = tx.insert("manager", {**columns, "tracker_admin": first, "register_time": tx.time})
    if address:
        note_address(tx, row["id"], address)
    return shaped(Manager, row), open_session(tx, row["id"])


MOST_SESSIONS = 100  # of one manager
WRONG_LOGIN = "Wrong username or password"


def open_session(tx: Tx, manager: int) -> bytes:
    """A fresh session id, of which only the hash is stored. Beyond MOST_SESSIONS of a manager the oldest ends."""
    session = secrets.token_urlsafe(32).encode()
    older = "SELECT id_hash FROM session WHERE manager = ? ORDER BY expires DESC LIMIT 2 OFFSET ?"
    tx.execute(f"DELETE FROM session WHERE id_hash IN ({older})", (manager, MOST_SESSIONS - 1))
    expires = tx.trusted_time + int(tx.settings.session_lifetime)
    tx.execute("INSERT INTO session VALUES (?, ?, ?, ?)", (digest(session), manager, expires, tx.time))
    return session


def count_login(tx: Tx, *attempt: str) -> tuple[int, str] | None:
    """Counts an attempt, *before* the password is looked at, and returns the manager's id and password hash.

    429 while it is throttled. Counting first keeps parallel guesses from slipping through.
    """
    made = Attempt(*attempt)
    row = tx.one("SELECT id, password_hash FROM manager WHERE username = ?", (made.username,))
    count_attempt(tx, *sources_of(tx, row and row["id"], made))
    return (row["id"], row["password_hash"]) if row else None


def find_known(tx: Tx, username: str, mark: str, address: str) -> tuple[bool, str, bool]:
    """Whether a browser's mark is good, whose places for passwords may be taken, and whether a tracker admin is meant.

    A mark is good while the account has the password it was made with. Who is known by the address alone has places
    apart: others may be behind it. A stranger has none, and means no admin.
    """
    row = tx.one("SELECT id, password_hash, tracker_admin FROM manager WHERE username = ?", (username,))
    if row is None:
        return False, "", False
    if mark and mark.partition(".")[2] == stamp_of(row["password_hash"]):
        return True, username.lower(), bool(row["tracker_admin"])
    if tx.one("SELECT 1 FROM login_address WHERE manager = ? AND address = ?", (row["id"], address)):
        return False, f"{username.lower()} by address", bool(row["tracker_admin"])
    return False, "", False


def find_stamp(tx: Tx, session: bytes) -> tuple[str, str] | None:
    """The name of the manager whose session this is, and the stamp of its password; None: it has ended."""
    whose = "SELECT username, password_hash FROM manager WHERE id = (SELECT manager FROM session WHERE id_hash = ?)"
    row = tx.one(whose, (digest(session),))
    return row and (row["username"], stamp_of(row["password_hash"]))


def accept_login(tx: Tx, manager: int, stored: str, *attempt: str) -> tuple[Manager, bytes]:
    """The password was right by the `stored` hash: opens a session, unless that has been changed meanwhile (401).

    Nor (403) if an admin has blocked or deleted the account: a password may wait for long to be looked at.
    """
    row = tx.one("SELECT * FROM manager WHERE id = ?", (manager,))
    if row is None or row["blocked"]:
        raise TrackerError("forbidden", "An admin has blocked this account", "username")
    if row["password_hash"] != stored:
        raise TrackerError("unauthorized", WRONG_LOGIN)
    accept_attempt(tx, manager, Attempt(*attempt))
    return shaped(Manager, row), open_session(tx, manager)


@needs(LOGIN)
def count_password_attempt(tx: Tx, caller: Caller) -> str:
    """Counts an attempt to guess the password of a session that was left open. The manager's password hash."""
    count_attempt(tx, f"session {caller.manager.id}")
    return tx.one("SELECT password_hash FROM manager WHERE id = ?", (caller.manager.id,))["password_hash"]


@needs(LOGIN, acts=True)
def store_password(tx: Tx, caller: Caller, new_hash: str) -> bytes:
    """The old password was right: stores the new one, ends all sessions of the manager, opens a new one.

    Whoever has changed it meanwhile has thereby ended this session: 401.
    """
    manager = caller.manager
    forget_attempts(tx, f"session {manager.id}")
    tx.execute("UPDATE manager SET password_hash = ? WHERE id = ?", (new_hash, manager.id))
    tx.execute("DELETE FROM session WHERE manager = ?", (manager.id,))
    return open_session(tx, manager.id)


def get_account(tx: Tx, caller: Caller) -> shapes.Account:
    """Tells who is logged in."""
    return shapes.Account(caller.manager is not None, caller.manager)


def end_session(tx: Tx, session: bytes | None) -> None:
    """Ends the session, for every holder of its cookie."""
    if session is not None:
        tx.execute("DELETE FROM session WHERE id_hash = ?", (digest(session),))


@needs(ADMIN, acts=True)
def promote_manager(tx: Tx, caller: Caller, manager: int) -> None:
    """Makes another manager a tracker admin."""
    set_admin(tx, caller, manager, True)


@needs(ADMIN, acts=True)
def demote_manager(tx: Tx, caller: Caller, manager: int) -> None:
    """Makes another manager a tracker admin no longer."""
    set_admin(tx, caller, manager, False)


def set_admin(tx: Tx, caller: Caller, manager: int, admin: bool) -> None:
    check_other(tx, caller, manager, "promote or demote")
    tx.execute("UPDATE manager SET tracker_admin = ?, source = '' WHERE id = ?", (admin, manager))


def check_other(tx: Tx, caller: Caller, manager: int, what: str) -> None:
    """Refuses what an admin does to itself, lest none be left, and to nobody."""
    if caller.manager.id == manager:
        raise TrackerError("forbidden", f"you cannot {what} yourself", "manager")
    if not tx.one("SELECT 1 FROM manager WHERE id = ?", (manager,)):
        raise TrackerError("not_found", f"No manager {manager}")


@needs(ADMIN, acts=True)
def block_manager(tx: Tx, caller: Caller, manager: int) -> None:
    """Ends all logins of another manager, and lets it log in no more. Its tokens open nothing meanwhile."""
    check_other(tx, caller, manager, "block")
    tx.execute("UPDATE manager SET blocked = 1 WHERE id = ?", (manager,))
    tx.execute("DELETE FROM session WHERE manager = ?", (manager,))


@needs(ADMIN, acts=True)
def unblock_manager(tx: Tx, caller: Caller, manager: int) -> None:
    """Lets a blocked manager log in again."""
    check_other(tx, caller, manager, "unblock")
    tx.execute("UPDATE manager SET blocked = 0 WHERE id = ?", (manager,))


@needs(ADMIN, acts=True)
def delete_manager(tx: Tx, caller: Caller, manager: int) -> list[int]:
    """Deletes the account of another manager, with its roles, logins and tokens. The operations that this begins.

    What it has made stays, but for projects that no admin trusts and in which nobody else has a role.
    """
    check_other(tx, caller, manager, "delete")
    begun = deletion().delete_projects_of(tx, caller, manager)
    tx.execute("DELETE FROM manager WHERE id = ?", (manager,))
    return begun


@needs(LOGIN)
def list_sessions(tx: Tx, caller: Caller) -> list[sqlite3.Row]:
    """The caller's logins, the newest first, each with a mark (the beginning of its hash)."""
    return tx.all(
        "SELECT lower(substr(hex(id_hash), 1, 16)) AS mark, created, expires FROM session"
        " WHERE manager = ? AND expires > ? ORDER BY created DESC, mark LIMIT 100",
        (caller.manager.id, tx.trusted_time),
    )


@needs(LOGIN, acts=True)
def end_sessions(tx: Tx, caller: Caller, body: shapes.SessionsForm) -> int:
    """Ends the caller's login with this mark, or all but the one to keep. How many those were."""
    if not (body.mark or body.keep):
        raise TrackerError("invalid", "say which", "mark")
    which, mark = ("=", body.mark) if body.mark else ("<>", body.keep)
    ends = f"DELETE FROM session WHERE manager = ? AND lower(substr(hex(id_hash), 1, 16)) {which} ?"
    return tx.execute(ends, (caller.manager.id, mark)).rowcount


@needs(
    LOGIN, says="An admin, or a manager with the role MANAGE_ACCESS in somebody else's project: others see themselves."
)
def list_managers(tx: Tx, caller: Caller, *, after: int = 0) -> list[Manager]:
    """The managers, in the order of registration: all of them for those who may grant roles in others' projects."""
    if not sees_managers(tx, caller):
        return [caller.manager]
    rows = tx.execute("SELECT * FROM manager WHERE id > ? ORDER BY id", (after,))
    return part_of(rows, lambda row: shaped(Manager, row), lambda row: row["id"])


def sees_managers(tx: Tx, caller: Caller) -> bool:
    """Whether the manager that calls may see all others."""
    grants = (
        "SELECT 1 FROM manager_role r JOIN project p ON p.id = r.project"
        " WHERE r.manager = ? AND r.role & 4 AND p.creator IS NOT r.manager AND p.trusted"
    )
    return caller.manager.tracker_admin or tx.one(grants, (caller.manager.id,)) is not None


@needs(LOGIN, of=PROJECT, says="A manager with the role MANAGE_ACCESS in the project: others see themselves.")
def list_project_managers(tx: Tx, caller: Caller, project: sqlite3.Row) -> list[shapes.ProjectManager]:
    """The managers with a role in the project, and their role bits."""
    rows = tx.all(
        "SELECT m.*, r.role FROM manager_role r JOIN manager m ON m.id = r.manager"
        " WHERE r.project = :project AND (:all OR m.id = :manager) ORDER BY m.id",
        {**caller.as_values, "project": project["id"], "all": caller.role(project["id"]) & MANAGE_ACCESS},
    )
    return [shapes.ProjectManager(shaped(Manager, row), row["role"]) for row in rows]


@needs(MANAGE_ACCESS, acts=True)
def set_role(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.RoleBody) -> None:
    """Gives a manager exactly these roles in the project; none is given or taken that the caller has not itself.

    Nobody but a tracker admin takes any from who made the project. Role 0 takes all away.
    """
    manager = grantee(tx, caller, project["id"], body)
    row = tx.one("SELECT role FROM manager_role WHERE project = ? AND manager = ?", (project["id"], manager))
    had = row["role"] if row else 0
    if beyond := (body.role ^ had) & ~caller.role(project["id"]):
        names = ", ".join(name for bit, name in ROLE_NAMES.items() if bit & beyond)
        raise TrackerError("forbidden", f"you have no {names} role in project {project['id']} to give or take", "role")
    maker = project["creator"] == manager != caller.manager.id
    if maker and had & ~body.role and not caller.manager.tracker_admin:
        raise TrackerError("forbidden", "only a tracker admin takes roles from who made the project", "role")
    if body.role:
        tx.execute("INSERT OR REPLACE INTO manager_role VALUES (?, ?, ?)", (project["id"], manager, body.role))
    else:
        tx.execute("DELETE FROM manager_role WHERE project = ? AND manager = ?", (project["id"], manager))


def grantee(tx: Tx, caller: Caller, project: int, body: shapes.RoleBody) -> int:
    """The manager that is to have the roles, by its exact name or its number.

    Who does not see it gives roles by number seldom: else whoever makes a project reads all names in its list.
    """
    if body.username is not UNSET:
        row = tx.one("SELECT id FROM manager WHERE username = ?", (body.username.strip(),))
        if row is None or body.manager not in (UNSET, row["id"]):
            raise TrackerError("not_found", f"there is no manager named {body.username!r}", "username")
        return row["id"]
    if body.manager is UNSET:
        raise TrackerError("invalid", "is required, or `username`", "manager")
    here = "SELECT 1 FROM manager_role WHERE manager = ? AND project = ?"
    known = body.manager == caller.manager.id or tx.one(here, (body.manager, project)) or sees_managers(tx, caller)
    if not known and not may_guess(tx, caller.manager.id):
        raise TrackerError("not_found", "too many numbers of managers whom you do not see: say `username`", "manager")
    if not tx.one("SELECT 1 FROM manager WHERE id = ?", (body.manager,)):
        raise TrackerError("not_found", f"no manager {body.manager}", "manager")
    return body.manager


@needs(MANAGE_ACCESS)
def set_named_role(tx: Tx, caller: Caller, project: sqlite3.Row, body: shapes.RoleForm) -> None:
    """Gives a manager exactly these roles."""
    role = sum(bit for bit, name in ROLE_NAMES.items() if getattr(body, name.lower()))
    set_role(tx, caller, project, shapes.RoleBody(username=body.username, role=role))


def make_admin(tx: Tx, username: str, password_hash: str, reset: bool) -> None:
    """Creates a tracker admin; with `reset`, also takes over an existing account and ends its sessions."""
    row = tx.one("SELECT id FROM manager WHERE username = ?", (username,))
    if row and not reset:
        raise TrackerError(
            "conflict", f"There is a manager named {username!r} already; --reset gives it a new password"
        )
    tx.execute(
        "INSERT INTO manager (username, look, password_hash, tracker_admin, register_time) VALUES (?, ?, ?, 1, ?)"
        " ON CONFLICT (username) DO UPDATE SET password_hash = excluded.password_hash, tracker_admin = 1, blocked = 0",
        (username, names.look(username), password_hash, tx.time),
    )
    if row:
        tx.execute("DELETE FROM session WHERE manager = ?", (row["id"],))


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

NEW, FAILED, DELAYED = 1, 2, 3
OK, FAIL, SKIP = 0, 1, 2
MOST_RECIPES = 2**22  # characters after which an answer with several tasks ends


class TaskState(NamedTuple):
    """A list of tasks: its condition has an index (project, lane, id), and in that order it is shown."""

    condition: str
    lane: str = ""
    descending: bool = False


# A task is in exactly one of these.
TASK_STATES = {
    "waiting": TaskState("status = 1 AND assignee IS NULL AND verifiers IS NULL", "priority", descending=True),
    "assigned": TaskState("assignee IS NOT NULL", "assignee"),
    "awaiting_verification": TaskState("status = 1 AND assignee IS NULL AND verifiers IS NOT NULL"),
    "failed": TaskState("status = 2", "cause"),
    "delayed": TaskState("status = 3"),
}
STATE = f"CASE {' '.join(f'WHEN {state.condition} THEN {name!r}' for name, state in TASK_STATES.items())} END AS state"


def recount(tx: Tx) -> None:
    """Counts the tasks anew, for who has written them into the file past the tracker, by hand or for a test."""
    for state, in_it in TASK_STATES.items():
        count = f"SELECT COUNT(*) FROM task WHERE project = project.id AND {in_it.condition}"
        tx.execute(f"UPDATE project SET {COUNTED[state]} = ({count})")
    failures.regroup(tx)
    tx.execute("UPDATE tally SET held_task_count = 0")
    tx.execute(
        "INSERT INTO tally (project, worker, held_task_count) SELECT project, assignee, COUNT(*) FROM task"
        " WHERE assignee IS NOT NULL GROUP BY project, assignee"
        " ON CONFLICT DO UPDATE SET held_task_count = excluded.held_task_count"
    )


class BulkTask(shapes.SubmitBody):
    """A task of a bulk submit."""  # counts itself, so that decoding ends at the limit and not after it

    def __post_init__(self) -> None:
        decoding.left -= 1
        if decoding.left < 0:
            raise TrackerError("invalid", f"at most {decoding.most} tasks in one bulk submit", "requests")
        if decoding.left % 64 == 0:
            time.sleep(0)  # lets other threads have the interpreter


decoding = threading.local()


class BulkSubmitBody(msgspec.Struct):
    """`{"requests": [...]}`; the bare array is understood as well."""

    requests: Annotated[
        list[BulkTask], about("The tasks, all of one project, at most {max_bulk} (setting `max_bulk`).")
    ]


class NewTask(NamedTuple):
    """The columns of a task to be stored."""

    project: int
    recipe: str
    priority: int
    max_retries: int
    max_assign_time: int
    verification_count: int
    hash64: int | None
    due: float | None = None  # it is delayed until this time; below 0: for so many seconds


def in_16_bits(number: int) -> int:
    """The nearest number that clients in use can hold: an old task, or another system's job, may have any."""
    return max(-INT16_MAX - 1, min(number, INT16_MAX))


def new_task(body: shapes.SubmitBody) -> NewTask:
    """Checks what types cannot say, and turns a unique string into its hash."""
    return NewTask(*task_row(body))


def task_row(body: shapes.SubmitBody) -> tuple:
    """A NewTask as a plain tuple: of a hundred thousand, the names would cost as much as all the rest."""
    row = (
        body.project,
        body.recipe,
        body.priority,
        body.max_retries,
        body.max_assign_time,
        body.verification_count,
        given_hash(body) if body.hash64 or body.hash_u64 or body.unique_string or body.unique_str else None,
    )
    if body.delay and body.not_before:
        raise TrackerError("invalid", "give one of them, not both", "delay, not_before")
    return (*row, body.not_before or -body.delay) if body.delay or body.not_before else row


def given_hash(body: shapes.SubmitBody) -> int:
    """The hash of a task that brings one, or a text to make it of."""
    hash64, other = to_int64(body.hash64, "hash64"), to_int64(body.hash_u64, "hash_u64")
    if hash64 and other and hash64 != other:
        raise TrackerError("invalid", "two spellings of one field, with two values", "hash64, hash_u64")
    hash64 = hash64 or other
    unique = body.unique_string or body.unique_str
    if unique != (body.unique_str or unique):
        raise TrackerError("invalid", "two spellings of one field, with two values", "unique_string, unique_str")
    if hash64 and unique:
        raise TrackerError("invalid", "give one of them, not both", "hash64, unique_string")
    return hash64 or hash_unique_string(unique)


class Submitter(NamedTuple):
    """A calling worker and the project that it submits to."""

    id: int | None
    secret_hash: bytes
    last_seen: int
    may_submit: int | None
    submit_rate: float
    submit_free_uptime: float
    keep_hashes: int
    trusted: int
    archived: int


SELECT_SUBMITTER = """
    SELECT p.id, w.secret_hash, w.last_seen, a.role_submit AND NOT a.request, p.submit_rate, p.submit_free_uptime,
        p.keep_hashes, p.trusted, p.archived
    FROM worker w LEFT JOIN project p ON p.id = ?1
        LEFT JOIN worker_access a ON a.project = p.id AND a.worker = w.id
    WHERE w.id = ?2
"""


def no_project(project: int) -> TrackerError:
    return TrackerError("not_found", f"no project {project}", "project")


def submitter(tx: Tx, credentials: WorkerCredentials, project: int) -> Submitter:
    """The project, if the caller may submit to it now. Refuses with 401, 404, 403, 429 or 503."""
    row = tx.one(SELECT_SUBMITTER, (project, credentials.id))
    found = row and Submitter._make(row)
    check_worker(tx, found, credentials)
    if found.id is None:
        raise no_project(project)
    if not found.may_submit:
        stranger = found.may_submit is None and tx.one("SELECT 1 FROM project WHERE id = ? AND hidden", (project,))
        raise no_project(project) if stranger else NoAccess(SUBMIT, project)
    if found.archived:
        raise budgets.is_archived(project)
    if found.submit_rate:
        limit = Limit("submit", project, found.submit_rate, found.submit_free_uptime)
        check_rate(delay_at(tx, limit, credentials.id))
        tx.limits.rota.took(limit.key, credentials.id)
    if tx.limits.disk_low:
        tx.limits.check_disk()
    return found


def delay_at(tx: Tx, limit: Limit, worker: int) -> float:
    """Seconds until the worker's turn at the limit; 0: it is now."""
    return tx.limits.rota.delay(limit.key, worker, limit.free, limit.interval, tx.uptime)


def check_rate(delay: float) -> None:
    if delay > 0:
        raise TrackerError("too_fast", "Rate limit reached; please wait", delay=delay)


@reads_no_counts
def submit_task(tx: Tx, credentials: WorkerCredentials, task: NewTask) -> None:
    """Adds a task to its project's queue. 409 when a live task of the project has its hash."""
    project = submitter(tx, credentials, task.project)
    if not project.trusted:
        budgets.check_tasks(tx, [task], project.id)
    if not insert_task(tx, task, project.keep_hashes, project.trusted):
        raise TrackerError("conflict", "There is a task with this hash64 or unique_string already")
    charge_submit(tx, project, 1)


def charge_submit(tx: Tx, project: Submitter, count: int) -> None:
    if project.submit_rate:
        limit = Limit("submit", project.id, project.submit_rate, project.submit_free_uptime)
        tx.execute(
            "UPDATE project SET submit_free_uptime = ? WHERE id = ?", (limit.after(tx.uptime, count), project.id)
        )


INSERT_TASK = (
    "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, hash64)"
    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
INSERT_TASK_ONCE = INSERT_TASK.replace(
    "VALUES (?, ?, ?, ?, ?, ?, ?)",
    "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM kept_hash WHERE project = ?1 AND hash64 = ?7)",
)
DELAY_TASK = "UPDATE task SET status = 3, not_before = ? WHERE id = ?"
DUE = NewTask._fields.index("due")  # the columns that are stored as they are come before it
ROWS = 50  # of one statement: executemany gives up the interpreter and takes it back for each of them
_VALUES = "VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * ROWS)
INSERT_TASKS = INSERT_TASK.replace("VALUES (?, ?, ?, ?, ?, ?, ?)", _VALUES)
INSERT_TASKS_ONCE = INSERT_TASKS.replace(
    _VALUES,
    f"SELECT * FROM ({_VALUES})"
    " WHERE NOT EXISTS (SELECT 1 FROM kept_hash WHERE project = column1 AND hash64 = column7)",
)


def insert_task(tx: Tx, task: NewTask, keep_hashes: bool, trusted: bool = True) -> bool:
    """Stores the task and announces it, unless its hash is taken. Its project may be one that is not trusted."""
    stored = tx.execute(INSERT_TASK_ONCE if keep_hashes else INSERT_TASK, task[:DUE])
    if stored.rowcount != 1:
        return False
    if task.due is not None and delay_task(tx, stored.lastrowid, task.due):
        tx.counts.move(task.project, "gone", "delayed")
    else:
        tx.counts.move(task.project, "gone", "waiting")
        tx.ready.append((task.project, 1))
    if not trusted:
        budgets.weigh(tx, task.project, budgets.task_weight(task.recipe, task.verification_count))
    return True


def delay_task(tx: Tx, task: int, due: float) -> bool:
    """Delays a new task, unless its time has come already. Whether it did."""
    now = tx.clock.trusted_unix()
    until = due if due >= 0 else now - due
    return until > now and bool(tx.execute(DELAY_TASK, (until, task)).rowcount)


def insert_tasks(tx: Tx, tasks: Sequence[NewTask | list], project: int, keep_hashes: bool, trusted: bool = True) -> int:
    """Stores the tasks of one project whose hashes are free, and says how many those were."""
    if not trusted or any(len(task) > DUE and task[DUE] is not None for task in tasks):
        return sum(insert_task(tx, NewTask(*task), keep_hashes, trusted) for task in tasks)
    tasks = [task[:DUE] for task in tasks]
    one, many = (INSERT_TASK_ONCE, INSERT_TASKS_ONCE) if keep_hashes else (INSERT_TASK, INSERT_TASKS)
    stored, rest = 0, len(tasks) % ROWS
    for at in range(0, len(tasks) - rest, ROWS):
        stored += tx.execute(many, list(itertools.chain.from_iterable(tasks[at : at + ROWS]))).rowcount
    if rest:
        stored += tx.executemany(one, tasks[-rest:]).rowcount
    tx.counts.move(project, "gone", "waiting", stored)
    tx.ready.append((project, stored))
    return stored


@reads_no_counts
def submit_tasks(tx: Tx, credentials: WorkerCredentials, tasks: list[NewTask]) -> shapes.BulkSubmitted:
    """A bulk submit small enough for one transaction. Existing duplicates are skipped, the rest is stored."""
    project = submitter(tx, credentials, tasks[0].project)
    if not project.trusted:
        budgets.check_tasks(tx, tasks, project.id)
    stored = insert_tasks(tx, tasks, project.id, project.keep_hashes, project.trusted)
    charge_submit(tx, project, len(tasks))
    return shapes.BulkSubmitted(stored, len(tasks) - stored)


@needs(EDIT)
def submit_as_manager(tx: Tx, caller: Caller, project: sqlite3.Row, body: LineTask) -> None:
    """Adds a task to the queue; the workers' rate limit does not count. 409 for a duplicate."""
    task = new_task(body)._replace(project=project["id"])
    tx.limits.check_disk()
    budgets.check_room_in(tx, project["id"], budgets.task_weight(task.recipe, task.verification_count))
    if not insert_task(tx, task, project["keep_hashes"], project["trusted"]):
        raise TrackerError("conflict", "there is such a task already", "unique_string")


class Asker(NamedTuple):
    """A worker that asks a project for a task, and what it finds there."""

    secret_hash: bytes
    last_seen: int
    paused: int
    may_assign: int | None
    assign_free_uptime: float
    awaiting: int | None  # whether there are tasks that somebody has verified; looked at when there are no others
    head_priority: int | None
    head_task: int | None  # the best of those that one or two others have verified and it has not
    large_sets: int  # whether there are any that more have verified
    paused_workers: int  # how many have a pause in the project


class Candidate(NamedTuple):
    """A task that may be assigned."""

    id: int
    priority: int
    retries: int
    max_retries: int
    recipe: str
    max_assign_time: int
    verification_count: int
    job: int | None
    attempt: int


ProjectRow = collections.namedtuple("ProjectRow", PROJECT_COLUMNS)  # a project's columns as they are stored


class Offer(NamedTuple):
    """A calling worker, a project, and the project's best task for it. Tuples: sqlite3.Row looks names up slowly."""

    caller: Asker
    project: ProjectRow
    task: Candidate | None
    pause: float | None = None  # the caller's own in this project: see pause_of


def columns_for(table: str, kind: type) -> str:
    """The columns of a table, or of an alias for it, that a NamedTuple takes."""
    return ", ".join(f"{table}.{name}" for name in kind._fields)


ASKER_COLUMNS = """
    w.secret_hash, w.last_seen, w.paused, a.role_assign AND NOT a.request, p.assign_free_uptime, CASE
        WHEN t.id IS NULL THEN EXISTS (SELECT 1 FROM verifier_set WHERE project = p.id AND head_task IS NOT NULL
            AND NOT large) OR EXISTS (SELECT 1 FROM verifier_block WHERE project = p.id) END"""
# A worker learns nothing of a hidden project to which this one is chained.
PROJECT_SEEN = columns_for("p", ProjectRow).replace(
    "p.chain", "(SELECT id FROM project WHERE id = p.chain AND NOT hidden)"
)
PROJECT_AT = len(Asker._fields)
TASK_AT = PROJECT_AT + len(PROJECT_COLUMNS)

SELECT_OFFER = f"""
    SELECT {ASKER_COLUMNS}, v.head_priority, v.head_task, EXISTS (SELECT 1 FROM verifier_block WHERE project = p.id),
        p.paused_worker_count, {PROJECT_SEEN}, {columns_for("t", Candidate)}
    FROM worker w LEFT JOIN project p ON p.id = ?1
        LEFT JOIN worker_access a ON a.project = p.id AND a.worker = w.id
        LEFT JOIN task t ON t.id = (
            SELECT id FROM task WHERE project = p.id AND status = 1 AND assignee IS NULL AND verifiers IS NULL
            ORDER BY priority DESC, id LIMIT 1)
        LEFT JOIN verifier_set v ON v.id = (
            SELECT id FROM verifier_set s WHERE s.project = p.id AND s.head_task IS NOT NULL AND NOT s.large
                AND NOT EXISTS (SELECT 1 FROM verifier WHERE verifier_set = s.id AND worker = w.id)
            ORDER BY s.head_priority DESC, s.head_task LIMIT 1)
    WHERE w.id = ?2
"""
# For those who can do nothing but jobs, which need no verification.
SELECT_JOB_OFFER = f"""
    SELECT {ASKER_COLUMNS}, NULL, NULL, 0, p.paused_worker_count, {PROJECT_SEEN}, {columns_for("t", Candidate)}
    FROM worker w LEFT JOIN project p ON p.id = ?1
        LEFT JOIN worker_access a ON a.project = p.id AND a.worker = w.id
        LEFT JOIN task t ON t.id = (
            SELECT task FROM job WHERE project = p.id AND state = 'waiting' AND task IS NOT NULL AND NOT delayed
            ORDER BY priority DESC, task LIMIT 1)
    WHERE w.id = ?2
"""
SELECT_CANDIDATE = f"SELECT {columns_for('t', Candidate)} FROM task t WHERE id = ?"
# The best task that three or more have verified, and the caller not: from the first stretch that has one downwards.
SELECT_LARGE_HEAD = """
    SELECT t.priority, t.id
    FROM verifier_block b3 CROSS JOIN verifier_block b2 CROSS JOIN verifier_block b1 CROSS JOIN verifier_block b
        CROSS JOIN task t
    WHERE b3.project = :project AND b3.level = 3 AND NOT instr(b3.common, ',' || :worker || ',')
        AND b2.project = :project AND b2.level = 2 AND b2.block BETWEEN b3.block << 6 AND b3.block << 6 | 63
        AND NOT instr(b2.common, ',' || :worker || ',')
        AND b1.project = :project AND b1.level = 1 AND b1.block BETWEEN b2.block << 6 AND b2.block << 6 | 63
        AND NOT instr(b1.common, ',' || :worker || ',')
        AND b.project = :project AND b.level = 0 AND b.block BETWEEN b1.block << 6 AND b1.block << 6 | 63
        AND NOT instr(b.common, ',' || :worker || ',')
        AND t.id = b.block & 0x7FFFFFFFFFFF
    ORDER BY b3.block, b2.block, b1.block, b.block LIMIT 1
"""


# While every caller would be assigned the same task: no task awaits verification, no rate limit holds.
SELECT_SAME_FOR_ALL = f"""
    SELECT {PROJECT_SEEN}, paused_worker_count FROM project p WHERE id = ?1 AND NOT paused AND NOT assign_rate
        AND NOT EXISTS (SELECT 1 FROM verifier_set WHERE project = ?1 AND head_task IS NOT NULL AND NOT large)
        AND NOT EXISTS (SELECT 1 FROM verifier_block WHERE project = ?1)
"""
SELECT_ASSIGNEES = """
    SELECT asked.number, w.secret_hash, w.last_seen, w.paused, a.role_assign AND NOT a.request
    FROM asked CROSS JOIN worker w ON w.id = asked.worker
        LEFT JOIN worker_access a ON a.project = ? AND a.worker = w.id
"""
MOST_TOGETHER = 64  # calls of which one statement asks


class Assignee(NamedTuple):
    """A worker that asks a project for a task."""

    secret_hash: bytes
    last_seen: int
    paused: int
    may_assign: int | None


@functools.cache
def asking(select: str, columns: str, count: int) -> str:
    """The SELECT with a table `asked` of so many rows: a number, and parameters as its other columns."""
    row = ", ".join("?" for _ in columns.split(", "))
    rows = ", ".join(f"({number}, {row})" for number in range(count))
    return f"WITH asked (number, {columns}) AS (VALUES {rows}) {select}"


def padded(values: Sequence, width: int = 1) -> list:
    """The values with NULLs after them, so that there are few different statements to be prepared."""
    return [*values, *[None] * (-len(values) % (8 * width))]


def assign_together(tx: Tx, calls: list[tuple]) -> list[Assigned | None]:
    """What the callers are assigned who ask for one task of one project; None: who is to be asked for by itself."""
    assigned: list[Assigned | None] = [None] * len(calls)
    alike: dict[int, list[int]] = {}
    for number, (_, projects, *more) in enumerate(calls):
        if len(projects) == 1 and more in ([], [1]):
            alike.setdefault(projects[0], []).append(number)
    for project, numbers in alike.items():
        for first in range(0, len(numbers), MOST_TOGETHER):
            some = numbers[first : first + MOST_TOGETHER]
            for number, one in assign_next(tx, project, [calls[number][0] for number in some]).items():
                assigned[some[number]] = one
    return assigned


def assign_next(tx: Tx, project: int, callers: list[WorkerCredentials]) -> dict[int, Assigned]:
    """Assigns the next tasks of a project to those of the callers who may have them, one each: by their numbers."""
    row = tx.one(SELECT_SAME_FOR_ALL, (project,))
    if row is None:
        return {}
    found = ProjectRow._make(row[:-1])
    allowed = may_assign(tx, callers, found)
    if row["paused_worker_count"]:
        allowed = [number for number in allowed if pauses.pause_of(tx, project, callers[number].id) is None]
    lot = list(zip(allowed, next_plain_tasks(tx, project, len(allowed)), strict=False))
    default, encoded = tx.settings.default_max_assign_time, encoded_project(found)
    held = [(callers[number].id, task.id, task.max_assign_time or default) for number, task in lot]
    hold(tx, project, "waiting", held)
    return {number: Assigned([assigned_task(tx, task, callers[number].id, encoded)]) for number, task in lot}


def may_assign(tx: Tx, callers: list[WorkerCredentials], project: ProjectRow) -> list[int]:
    """The numbers of the callers who may be assigned tasks of the project."""
    asked = padded([caller.id for caller in callers])
    allowed = []
    for number, *columns in tx.execute(asking(SELECT_ASSIGNEES, "worker", len(asked)), (*asked, project.id)):
        caller = Assignee._make(columns)
        with contextlib.suppress(TrackerError):
            check_worker(tx, caller, callers[number])
            check_may_assign(caller, project)
            allowed.append(number)
    return sorted(allowed)


def next_plain_tasks(tx: Tx, project: int, count: int) -> list[Candidate]:
    """The next tasks that wait, as many as are wanted, up to the next job; not many whose recipes are long."""
    size, tasks = 0, []
    with contextlib.closing(tx.execute(SELECT_NEXT, (project, count))) as rows:
        for task in map(Candidate._make, rows):
            if task.job is not None or size > MOST_RECIPES:
                break
            tasks.append(task)
            size += len(task.recipe)
    return tasks


@together(assign_together)
@reads_no_counts
def assign_tasks(
    tx: Tx, credentials: WorkerCredentials, projects: Sequence[int], count: int = 1, jobs_only: bool = False
) -> Assigned:
    """Assigns to the caller the best `count` tasks of these projects, or as many as there are.

    Best: highest project priority, then highest task priority, then oldest. A worker is never assigned a task that it
    has verified. Refuses with 401, 404, 403, and 429 when nothing but a rate limit is in the way.
    """
    select = SELECT_JOB_OFFER if jobs_only else SELECT_OFFER
    offers = {project: find_offer(tx, credentials, project, select) for project in projects}
    tasks: list[Task] = []
    charges: Counter[Limit] = Counter()
    size = 0
    while best := best_offers(tx, offers.values(), credentials.id, refuse_limited=not tasks):
        project, lot = best[0].project, next_tasks(tx, best, count - len(tasks), size)
        taken = take(tx, best[0], lot, credentials.id)
        if best[0].pause is not None:  # it has this one on trial
            pauses.begin_pause(tx, project.id, credentials.id)
        tasks += taken
        if project.assign_rate:
            charges[limit_of(best[0])] += len(lot)
        if len(tasks) == count:
            break
        size += sum(len(task.recipe) + (0 if task.job is UNSET else len(encode(task.job))) for task in taken)
        if size > MOST_RECIPES:
            break
        offers[project.id] = find_offer(tx, credentials, project.id, select)  # the others have not changed
    if not tasks:
        reasons = map(why_nothing, itertools.islice(offers.values(), MOST_REASONS))
        pause = min((offer.pause - tx.uptime for offer in offers.values() if offer.pause is not None), default=0)
        return Assigned([], "; ".join(reasons), any(awaits_others(offer) for offer in offers.values()), pause=pause)
    return Assigned(tasks, delay=charge_assign(tx, charges, credentials.id) if charges else 0)


MOST_REASONS = 10  # projects of which an answer without a task says why


def why_nothing(offer: Offer) -> str:
    """Why the project has no task for the caller."""
    if offer.project.paused:
        return f"A manager has {'archived' if offer.project.archived else 'paused'} project {offer.project.id}"
    if offer.pause is not None:
        return f"You have failed one task after the other and are paused in project {offer.project.id}"
    if awaits_others(offer):
        return f"You have verified every task that is ready in project {offer.project.id}"
    return f"No task is ready in project {offer.project.id}"


def awaits_others(offer: Offer) -> bool:
    """Whether the project may have tasks for others: the caller has verified them, or is paused there."""
    others = offer.caller.awaiting or offer.pause is not None
    return offer.task is None and bool(others) and not offer.project.paused


def limit_of(offer: Offer) -> Limit:
    return Limit("assign", offer.project.id, offer.project.assign_rate, offer.caller.assign_free_uptime)


def charge_assign(tx: Tx, charges: Counter[Limit], worker: int) -> float:
    """Sets the rate limiters from which the worker was given so many tasks; seconds until one is free again."""
    free = {limit: limit.after(tx.uptime, taken) for limit, taken in charges.items()}
    for limit, at in free.items():
        tx.limits.rota.took(limit.key, worker)
        tx.execute("UPDATE project SET assign_free_uptime = ? WHERE id = ?", (at, limit.project))
    return max(min(free.values()) - tx.uptime, LEAST_DELAY)


LEAST_DELAY = 1e-6  # seconds: a limit that is free already, as it has to be caught up on


def best_offers(tx: Tx, offers: Iterable[Offer], worker: int, refuse_limited: bool) -> list[Offer]:
    """The offers whose tasks may be assigned, the best first. 429 if there are only such as a rate limit holds back."""
    offers = [offer for offer in offers if offer.task is not None and not offer.project.paused]
    delays = [delay_at(tx, limit_of(one), worker) if one.project.assign_rate else 0.0 for one in offers]
    free = [offer for offer, delay in zip(offers, delays, strict=True) if not delay]
    if offers and not free and refuse_limited:
        check_rate(min(delays))
    return sorted(free, key=lambda offer: rank(offer.project, offer.task), reverse=True)


def rank(project: ProjectRow, task: Candidate) -> tuple[int, int, int]:
    return project.priority, task.priority, -task.id


SELECT_NEXT = f"""
    SELECT {columns_for("t", Candidate)} FROM task t
    WHERE project = ? AND status = 1 AND assignee IS NULL AND verifiers IS NULL ORDER BY priority DESC, id LIMIT ?
"""


def next_tasks(tx: Tx, best: list[Offer], count: int, size: int) -> list[Candidate]:
    """The task of the best offer, and up to `count` with those that come next whatever becomes of it.

    A job is taken by itself, for it counts for the size of the answer with all that it brings along. So is one that
    awaits verification: the next of those may be another set's; and one on trial.
    """
    offer = best[0]
    caller, project = offer.caller, offer.project
    if count == 1 or offer.task.job is not None or is_head(offer) or offer.pause is not None:
        return [offer.task]
    rivals = [rank(other.project, other.task) for other in best[1:2]]
    if caller.head_task is not None:
        rivals.append((project.priority, caller.head_priority, -caller.head_task))
    lot: list[Candidate] = []
    with contextlib.closing(tx.execute(SELECT_NEXT, (project.id, count))) as rows:
        for task in map(Candidate._make, rows):
            if task.job is not None or size > MOST_RECIPES or (rivals and rank(project, task) < max(rivals)):
                break
            lot.append(task)
            size += len(task.recipe)
    return lot


def is_head(offer: Offer) -> bool:
    """Whether the task is one that others have verified."""
    return offer.task.id == offer.caller.head_task


def find_offer(tx: Tx, credentials: WorkerCredentials, project: int, select: str = SELECT_OFFER) -> Offer:
    """The project's best task for the caller. Refuses a caller that may not be assigned any task of this project."""
    row = tx.one(select, (project, credentials.id))
    asker = row and Asker._make(row[:PROJECT_AT])
    check_worker(tx, asker, credentials)
    found = ProjectRow._make(row[PROJECT_AT:TASK_AT])
    if found.id is None:
        raise TrackerError("not_found", f"No project {project}")
    check_may_assign(asker, found)
    pause = pauses.pause_of(tx, project, credentials.id) if asker.paused_workers else None
    if pause is not None and pause > tx.uptime:
        return Offer(asker, found, None, pause)
    task = None if row[TASK_AT] is None else Candidate._make(row[TASK_AT:])
    if asker.large_sets:
        asker = with_large_head(tx, asker, credentials.id, project)
    if asker.head_task is not None:
        task = better(tx, task, asker)
    return Offer(asker, found, task, pause)


def check_may_assign(caller: Asker | Assignee, project: ProjectRow) -> None:
    """Refuses a worker that is paused, or was not granted access to the project where it needs that.

    A hidden project is not there for one that has no part in it, and a pause does not tell of it.
    """
    granted = project.public or caller.may_assign
    if caller.may_assign is None and project.hidden:
        raise PROJECT.missing(project.id)
    if caller.paused:
        raise TrackerError("forbidden", "A manager has paused you")
    if not granted:
        raise NoAccess(ASSIGN, project.id)


def with_large_head(tx: Tx, asker: Asker, worker: int, project: int) -> Asker:
    """The asker with the best of all tasks that others have verified and it has not, however many those are."""
    head = tx.one(SELECT_LARGE_HEAD, {"worker": worker, "project": project})
    if head and (asker.head_task is None or (head[0], -head[1]) > (asker.head_priority, -asker.head_task)):
        return asker._replace(head_priority=head[0], head_task=head[1])
    return asker


def better(tx: Tx, task: Candidate | None, asker: Asker) -> Candidate:
    """Whichever comes first: the best task that nobody has verified, or the best that others have."""
    if task and (task.priority, -task.id) > (asker.head_priority, -asker.head_task):
        return task
    return Candidate._make(tx.one(SELECT_CANDIDATE, (asker.head_task,)))


def take(tx: Tx, offer: Offer, lot: list[Candidate], worker: int) -> list[Task]:
    """Makes the worker the assignee of the offered task and those taken with it: as the document shows them."""
    default, project = tx.settings.default_max_assign_time, encoded_project(offer.project)
    state = "awaiting_verification" if is_head(offer) else "waiting"
    hold(tx, offer.project.id, state, [(worker, task.id, task.max_assign_time or default) for task in lot])
    return [assigned_task(tx, task, worker, project) for task in lot]


def assigned_task(tx: Tx, task: Candidate, worker: int, project: Raw) -> Task:
    """A task that the worker has just been assigned, as the document shows it. Its job begins."""
    return Task(
        id=task.id,
        priority=task.priority,
        assignee=worker,
        retries=task.retries,
        max_retries=task.max_retries,
        status=NEW,
        recipe=task.recipe,
        max_assign_time=task.max_assign_time,
        assign_time=tx.time,
        verification_count=task.verification_count,
        lease=task.max_assign_time or tx.settings.default_max_assign_time,
        attempt=task.attempt + 1,
        project=project,
        job=UNSET if task.job is None else start_job(tx, task.job, worker),
    )


@functools.lru_cache(maxsize=64)
def encoded_project(columns: ProjectRow) -> Raw:
    """The project as JSON, remembered: each assigned task shows it."""
    return Raw(encode(project_of(columns)))


def hold(tx: Tx, project: int, state: str, holds: Sequence[tuple[int, int, float]]) -> None:
    """Makes workers the assignees of tasks that are in this state: who, which task, for so many seconds."""
    tx.executemany(
        "UPDATE task SET assignee = ?, assign_time = ?, assigned_uptime = ?, deadline_uptime = ?, attempt = attempt + 1"
        " WHERE id = ?",
        [(worker, tx.time, tx.uptime, tx.uptime + seconds, task) for worker, task, seconds in holds],
    )
    tx.counts.move(project, state, "assigned", len(holds))
    for worker, _, _ in holds:
        tx.counts.hold(project, worker, 1)


class Held(NamedTuple):
    """A calling worker, the task that it wants to release, and what the task's project does with closed ones."""

    secret_hash: bytes
    last_seen: int
    id: int | None
    assignee: int | None
    assigned_uptime: float | None
    project: int
    recipe: str
    priority: int
    retries: int
    max_retries: int
    max_assign_time: int
    verification_count: int
    verifiers: int | None
    hash64: int | None
    chain: int | None
    keep_hashes: int
    job: int | None
    has_past: int
    trusted: int | None
    lost_leases: int
    attempt: int
    retry_delay: float | None


HELD_COLUMNS = """
    w.secret_hash, w.last_seen, t.id, t.assignee, t.assigned_uptime, t.project, t.recipe, t.priority, t.retries,
    t.max_retries, t.max_assign_time, t.verification_count, t.verifiers, t.hash64, p.chain, p.keep_hashes, t.job,
    EXISTS (SELECT 1 FROM assignment WHERE task = t.id), p.trusted, t.lost_leases,
    t.attempt, p.retry_delay"""
SELECT_HELD = f"""
    SELECT {HELD_COLUMNS} FROM worker w LEFT JOIN task t ON t.id = ?1 LEFT JOIN project p ON p.id = t.project
    WHERE w.id = ?2
"""
# Of those asked for that it holds, but without their recipes, which may be long.
SELECT_HELD_TASKS = f"""
    SELECT {HELD_COLUMNS.replace("t.recipe", "''")}
    FROM worker w CROSS JOIN json_each(?1) CROSS JOIN task t ON t.id = json_each.value AND t.assignee = w.id
        JOIN project p ON p.id = t.project
    WHERE w.id = ?2
"""


# Those that nothing is to be done with but to close them.
SELECT_PLAINLY_HELD = """
    SELECT asked.number, w.secret_hash, w.last_seen, t.project, t.assigned_uptime, t.attempt
    FROM asked CROSS JOIN worker w ON w.id = asked.worker CROSS JOIN task t ON t.id = asked.task
        CROSS JOIN project p ON p.id = t.project
    WHERE t.assignee = w.id AND t.job IS NULL AND t.verification_count <= 1 AND p.chain IS NULL AND p.trusted
        AND NOT (p.keep_hashes AND t.hash64 IS NOT NULL) AND NOT EXISTS (SELECT 1 FROM assignment WHERE task = t.id)
"""


class PlainlyHeld(NamedTuple):
    """A calling worker, and the task that it holds."""

    secret_hash: bytes
    last_seen: int
    project: int
    assigned_uptime: float
    attempt: int


def release_together(tx: Tx, calls: list[tuple[WorkerCredentials, shapes.ReleaseBody]]) -> list[bool | None]:
    """Closes the tasks that are plainly done. None: a release that is to be looked at by itself."""
    updated: list[bool | None] = [None] * len(calls)
    done = {body.task_id: number for number, (_, body) in enumerate(calls) if is_plainly_done(body)}
    numbers = list(done.values())  # a task that several release is closed by the last of them, if at all
    for first in range(0, len(numbers), MOST_TOGETHER):
        some = numbers[first : first + MOST_TOGETHER]
        for number in close_plain_tasks(tx, [calls[number] for number in some]):
            updated[some[number]] = True
    return updated


def is_plainly_done(body: shapes.ReleaseBody) -> bool:
    plain = body.result == OK and body.output is UNSET and not (body.delay or body.error or body.for_good)
    return plain and -(2**63) <= body.verification < 2**64


def close_plain_tasks(tx: Tx, releases: list[tuple[WorkerCredentials, shapes.ReleaseBody]]) -> list[int]:
    """Closes those of the tasks that the caller holds plainly: the numbers of their releases."""
    asked = padded([part for caller, body in releases for part in (body.task_id, caller.id)], 2)
    closed = []
    for number, *columns in tx.execute(asking(SELECT_PLAINLY_HELD, "task, worker", len(asked) // 2), asked):
        task, (credentials, body) = PlainlyHeld._make(columns), releases[number]
        if not is_of(body, task.attempt):
            continue
        with contextlib.suppress(TrackerError):
            check_worker(tx, task, credentials)
            closed.append(number)
            if task.attempt > 1:  # it may have failed so long ago that its history is forgotten
                failures.forget(tx, [body.task_id])
            tx.counts.close(task.project, credentials.id, [max(0.0, tx.uptime - task.assigned_uptime)])
    ids = padded([releases[number][1].task_id for number in closed])
    tx.execute(f"DELETE FROM task WHERE id IN ({', '.join('?' * len(ids))})", ids)
    return closed


@together(release_together)
@reads_no_counts
def release_task(
    tx: Tx, credentials: WorkerCredentials, body: shapes.ReleaseBody, read: tuple[int, Report] | None = None
) -> bool:
    """Ends the caller's hold on a task. True when that changed the task: closed, failed, or skipped.

    False for a result that still needs another worker's verification, and when the caller does not hold the task (any
    more): then nothing changes. 404 for a task that never was.
    """
    verification, report = read or read_release(body)
    row = tx.one(SELECT_HELD, (body.task_id, credentials.id))
    task = row and Held._make(row)
    check_worker(tx, task, credentials)
    if task.id is None:
        check_task_existed(tx, body.task_id)
    if task.assignee != credentials.id or task.id is None or task.trusted is None:  # its project was deleted
        return False
    if not is_of(body, task.attempt):
        return False
    if is_done(task, body):
        close_tasks(tx, [task], credentials.id)
        return True
    if task.job is not None:
        return release_job(tx, task, credentials, body, report)
    if body.result == FAIL:
        return fail_task(tx, task, body.error, body.for_good)
    if body.result == SKIP:
        record_end(tx, "skipped", "id = :id", {"id": task.id})
        return put_back(tx, task, delay=min(body.delay, tx.settings.max_skip_delay))
    return verify_task(tx, task, credentials.id, verification)


@reads_no_counts
def release_tasks(tx: Tx, credentials: WorkerCredentials, releases: list[shapes.ReleaseBody]) -> list[bool]:
    """Several releases: what each would have told. An unknown task counts as one that the caller does not hold.

    A worker may hold tasks of which a tracker that was restored from a backup knows nothing. All are read before any
    is carried out or counts: one that is refused has changed nothing, as each batch with it would run again.
    """
    authenticate(tx, credentials)
    read = []
    for number, release in enumerate(releases):
        try:
            read.append(read_release(release))
        except TrackerError as error:
            raise error.within(f"releases[{number}]") from None
    asked = encode([release.task_id for release in releases]).decode()
    held = {task.id: task for task in map(Held._make, tx.execute(SELECT_HELD_TASKS, (asked, credentials.id)))}
    found = [(held.get(release.task_id), release.output) for release in releases if credentials.source]
    budgets.check_results(tx, credentials, {task.id: (task, out) for task, out in found if task and task.job})
    credentials = credentials._replace(source="")  # of which each would count again
    updated: list[bool] = []
    done: list[Held] = []  # to be closed together, before anything else happens
    for number, release in enumerate(releases):
        task = held.get(release.task_id)
        if task is not None and is_of(release, task.attempt):
            del held[release.task_id]  # a second release of it finds that it is not held any more
        else:
            task = None
        if task is None or is_done(task, release):
            updated.append(task is not None)
            done += [task] if task else []
        else:
            close_tasks(tx, done, credentials.id)
            done = []
            updated.append(release_task(tx, credentials, release, read[number]))
    close_tasks(tx, done, credentials.id)
    return updated


def read_release(body: shapes.ReleaseBody) -> tuple[int, Report]:
    if body.delay and body.result != SKIP:
        raise TrackerError("invalid", "only a task that is released as skipped has one", "delay")
    for field in ("error", "for_good") if body.result != FAIL else ():
        if getattr(body, field):
            raise TrackerError("invalid", "only a task that is released as failed has one", field)
    return to_int64(body.verification, "verification"), NO_REPORT if body.output is UNSET else read_report(body.output)


def is_of(told: shapes.ReleaseBody | shapes.Extension, attempt: int) -> bool:
    """Whether a worker speaks of this assignment of the task, and not of an earlier one to the same worker."""
    return told.attempt in (0, attempt)


def is_done(task: Held, release: shapes.ReleaseBody) -> bool:
    """Whether the release does nothing but close the task."""
    return release.result == OK and task.job is None and task.verification_count <= 1 and task.chain is None


def check_task_existed(tx: Tx, task: int) -> None:
    """Closed tasks are gone from the table; ids are never used twice, so one up to the last is a closed one's."""
    if not tx.one("SELECT 1 FROM sqlite_sequence WHERE name = 'task' AND seq >= ? AND ? > 0", (task, task)):
        raise TrackerError("not_found", f"no task {task}", "task_id")


class Assignment(NamedTuple):
    """A task that somebody holds, and what is to be known of it when that is to end."""

    id: int
    project: int
    assignee: int
    job: int | None
    retries: int
    max_retries: int
    lost_leases: int
    retry_delay: float | None  # of its project, if there is one
    max_lost_leases: int | None


OF_PROJECT = ", ".join(
    f"(SELECT {name} FROM project p WHERE p.id = task.project)" for name in ("retry_delay", "max_lost_leases")
)


def find_assignments(tx: Tx, which: str, values: dict[str, Any], of_project: str = "NULL, NULL") -> list[Assignment]:
    columns = f"id, project, assignee, job, retries, max_retries, lost_leases, {of_project}"
    return list(map(Assignment._make, tx.all(f"SELECT {columns} FROM task WHERE {which}", values)))


def put_back(tx: Tx, task: Held | Assignment, change: str = "", *values: Any, delay: float = 0.0) -> bool:
    """Takes the task from its assignee, with a further `change` of columns, and lets others have it.

    At once, or after so many seconds: wake_tasks makes it ready then. It is what every end of an assignment comes to
    that leaves the task in the queue.
    """
    if delay:
        change, values = f"{change}, status = 3, not_before = ?", (*values, tx.clock.trusted_unix() + delay)
    else:
        tx.ready.append((task.project, 1))
    take_away(tx, task, change, *values)
    if delay and task.job is not None:
        tx.execute("UPDATE job SET delayed = 1 WHERE id = ?", (task.job,))
    return True


LONGEST_REST = 3600  # seconds


def rest(task: Held | Assignment) -> float:
    """Seconds that the task rests after a further attempt that came to nothing.

    Not quite the same for each: tasks that failed together are not to come back together.
    """
    before = min(task.retries + task.lost_leases, 99)
    return min((task.retry_delay or 0) * 2.0**before, LONGEST_REST) * random.uniform(0.9, 1.1)


def make_ready(tx: Tx, which: str, values: dict[str, Any], was: str, change: str = "") -> int:
    """Makes tasks ready that nobody holds, with a further `change` of columns; all of them failed, or delayed."""
    ready = f"UPDATE task SET status = 1, not_before = NULL{change} WHERE {which}"
    rows = tx.all(f"{ready} RETURNING project, job, cause, {STATE}", values)
    for row in rows:
        if was == "failed":
            tx.counts.blame(row["cause"], -1)
        tx.counts.move(row["project"], was, row["state"])
        tx.ready.append((row["project"], 1))
        if row["job"] is not None:
            job_happens(tx, "wake", tx.one("UPDATE job SET delayed = 0 WHERE id = ? RETURNING *", (row["job"],)))
    return len(rows)


def take_away(tx: Tx, task: Held | Assignment, change: str = "", *values: Any) -> None:
    """Takes the task from its assignee, with a further `change` of columns."""
    unassigned = "assignee = NULL, assign_time = NULL, assigned_uptime = NULL, deadline_uptime = NULL"
    row = tx.one(f"UPDATE task SET {unassigned}{change} WHERE id = ? RETURNING {STATE}", (*values, task.id))
    tx.counts.move(task.project, "assigned", row["state"])
    tx.counts.hold(task.project, task.assignee, -1)


def delete_tasks(tx: Tx, which: str, values: dict[str, Any]) -> list[sqlite3.Row]:
    """Deletes tasks that are not closed, whoever holds them. Their rows, as they were."""
    weight = f"{budgets.TASK_WEIGHT} AS weight"
    returned = f"id, project, assignee, job, cause, {weight}, {STATE}"
    rows = tx.all(f"DELETE FROM task WHERE {which} RETURNING {returned}", values)
    budgets.weigh_gone(tx, rows)
    failures.forget(tx, [row["id"] for row in rows if row["cause"]])
    for row in rows:
        if row["state"] == "failed":
            tx.counts.blame(row["cause"], -1)
        tx.counts.move(row["project"], row["state"], "gone")
        if row["assignee"] is not None:
            tx.counts.hold(row["project"], row["assignee"], -1)
    return rows


def record_end(tx: Tx, outcome: str, which: str, values: dict[str, Any]) -> None:
    """Writes into the history that the present assignments of some tasks end now."""
    tx.execute(
        "INSERT INTO assignment (task, project, worker, assign_time, end_time, outcome)"
        f" SELECT id, project, assignee, assign_time, :now, :outcome FROM task WHERE {which}",
        {**values, "now": tx.time, "outcome": outcome},
    )


def fail_task(tx: Tx, task: Held, reason: str = "", for_good: bool = False) -> bool:
    """Counts a failed attempt; the last one that is allowed, or one for good, leaves the task FAILED."""
    record_end(tx, "failed", "id = :id", {"id": task.id})
    if not for_good:  # else the worker has found out what is wrong with the task, and is not at fault
        tx.counts.fail(task.project, task.assignee)
    tx.counts.total(task.project, "failures")
    retries = task.retries + 1
    cause = failures.note(tx, task, reason, for_good or retries >= task.max_retries)
    if cause != failures.NOT_FOR_GOOD:
        take_away(tx, task, ", retries = ?, cause = ?, status = ?", retries, cause, FAILED)
        return True
    return put_back(tx, task, ", retries = ?, cause = ?", retries, cause, delay=rest(task))


def verify_task(tx: Tx, task: Held, worker: int, verification: int) -> bool:
    """Closes the task if enough different workers have reported this hash; else records it and waits for others."""
    if task.verification_count > 1:
        same = "SELECT COUNT(*) FROM verification WHERE task = ? AND hash = ?"  # over this task's few rows
        if tx.one(same, (task.id, verification))[0] + 1 < task.verification_count:
            tx.execute("INSERT INTO verification VALUES (?, ?, ?)", (task.id, worker, verification))
            record_end(tx, "verified", "id = :id", {"id": task.id})
            tx.counts.succeed(task.project, worker)
            put_back(tx, task, ", verifiers = ?", extended_set(tx, task, worker))
            return False
    close_tasks(tx, [task], worker)
    return True


def extended_set(tx: Tx, task: Held, worker: int) -> int:
    """The id of the verifier_set of those who have verified the task, and this worker."""
    rows = tx.all("SELECT worker FROM verifier WHERE verifier_set = ?", (task.verifiers,))
    members = sorted({worker, *(row["worker"] for row in rows)})
    name = (task.project, ",".join(map(str, members)))
    if row := tx.one("SELECT id FROM verifier_set WHERE project = ? AND members = ?", name):
        return row["id"]
    large = len(members) > 2
    row = tx.one("INSERT INTO verifier_set (project, members, large) VALUES (?, ?, ?) RETURNING id", (*name, large))
    tx.executemany("INSERT INTO verifier VALUES (?, ?)", [(row["id"], member) for member in members])
    return row["id"]


def close_tasks(tx: Tx, tasks: Sequence[Held], worker: int) -> None:
    """The tasks are done: they leave the table, are counted, and are handed on along their projects' chains."""
    for task in tasks:
        if task.has_past:
            record_end(tx, "closed", "id = :id", {"id": task.id})
        if task.attempt > 1:
            failures.forget(tx, [task.id])
        if not task.trusted:
            budgets.weigh_closed(tx, task.id, task.project)
    tx.executemany("DELETE FROM task WHERE id = ?", [(task.id,) for task in tasks])
    runtimes: dict[int, list[float]] = {}
    for task in tasks:
        runtimes.setdefault(task.project, []).append(max(0.0, tx.uptime - task.assigned_uptime))
    for project, closed in runtimes.items():
        tx.counts.close(project, worker, closed)
    for task in tasks:
        if task.keep_hashes and task.hash64 is not None:
            kept = "INSERT INTO kept_hash VALUES (?, ?) ON CONFLICT DO NOTHING"
            if tx.execute(kept, (task.project, task.hash64)).rowcount and not task.trusted:
                budgets.weigh(tx, task.project, budgets.HASH_SIZE)
        if task.chain is not None:
            chain_task(tx, task)


def chain_task(tx: Tx, task: Held) -> None:
    """Submits a closed task to the next project. A duplicate there is simply dropped."""
    row = tx.one("SELECT keep_hashes, trusted FROM project WHERE id = ?", (task.chain,))
    values = {name: getattr(task, name) for name in NewTask._fields[:DUE]} | {"project": task.chain}
    values |= {name: in_16_bits(values[name]) for name in ("priority", "max_retries", "verification_count")}
    insert_task(tx, NewTask(**values), row["keep_hashes"], row["trusted"])


@reads_no_counts
def extend_tasks(
    tx: Tx, credentials: WorkerCredentials, extensions: Sequence[shapes.Extension]
) -> list[shapes.Extended]:
    """Lets the caller hold tasks for longer, also when nothing is assigned to it or from their project now.

    Until the lease is taken back, also beyond its end; but nobody holds a job beyond its timeout and grace.
    """
    authenticate(tx, credentials)
    return [extend_task(tx, credentials.id, extension) for extension in extensions]


def extend_task(tx: Tx, worker: int, extension: shapes.Extension) -> shapes.Extended:
    task = tx.one(
        "SELECT t.id, attempt, deadline_uptime, assigned_uptime + max_assign_time AS end_uptime, job FROM task t"
        " JOIN project p ON p.id = project WHERE t.id = ? AND assignee = ?",
        (extension.task_id, worker),
    )
    if task is None or not is_of(extension, task["attempt"]):
        return shapes.Extended(False)
    until = tx.uptime + min(extension.seconds, tx.settings.max_extension)
    return shapes.Extended(True, extend_lease(tx, task, min(until, task["end_uptime"]) if task["job"] else until))


def extend_lease(tx: Tx, task: sqlite3.Row, until: float) -> float:
    """The task is held until then, if that is later than it was. The seconds that this leaves."""
    if until > task["deadline_uptime"]:
        tx.execute("UPDATE task SET deadline_uptime = ? WHERE id = ?", (until, task["id"]))
    return max(until, task["deadline_uptime"], tx.uptime) - tx.uptime


def any_lease(tx: Tx) -> bool:
    return tx.one("SELECT 1 FROM task WHERE deadline_uptime IS NOT NULL LIMIT 1") is not None


@reads_no_counts
def expire_tasks(tx: Tx) -> bool:
    """Takes tasks from workers that have held them past the deadline, as many as time allows. Whether more are left."""
    overdue = "SELECT id, recipe FROM task WHERE deadline_uptime <= :uptime ORDER BY deadline_uptime LIMIT :limit"
    while tasks := few(tx, overdue, {"uptime": tx.uptime, "limit": STEP_TASKS}):
        values = {"tasks": encode(tasks).decode()}
        record_end(tx, "expired", THESE, values)
        for task in find_assignments(tx, THESE, values, OF_PROJECT):
            lose_lease(tx, task) if task.job is None else expire_job(tx, task)
        if tx.time_is_up():
            return True
    return False


THESE = "id IN (SELECT value FROM json_each(:tasks))"


def lose_lease(tx: Tx, task: Assignment) -> None:
    """Counts a lease that a worker has lost: no failed attempt, but what kills its workers must not do so for ever."""
    tx.counts.fail(task.project, task.assignee)
    tx.counts.total(task.project, "losses")
    lost, most = task.lost_leases + 1, task.max_lost_leases
    if 0 < (tx.settings.default_max_lost_leases if most is None else most) <= lost:
        cause = failures.note(tx, task, failures.LOST_LEASE)
        take_away(tx, task, ", lost_leases = ?, cause = ?, status = ?", lost, cause, FAILED)
    else:
        put_back(tx, task, ", lost_leases = ?", lost, delay=rest(task))


@reads_no_counts
def wake_tasks(tx: Tx) -> bool:
    """Makes delayed tasks ready whose time has come, as many as time allows. Whether more are left."""
    due = "SELECT id, recipe FROM task WHERE status = 3 AND not_before <= :now ORDER BY not_before LIMIT :limit"
    while tasks := few(tx, due, {"now": tx.clock.trusted_unix(), "limit": STEP_TASKS}):
        make_ready(tx, THESE, {"tasks": encode(tasks).decode()}, "delayed")
        if tx.time_is_up():
            return True
    return False


# ── Jobs and templates ────────────────────────────────────────────────────────────────────────────────────────────────

NewSecret = Annotated[str, about("The new secret, shown only this once.", "c0ffee")]
MOST_TEMPLATES = 1000  # of one project, and so with workflows
JOB_GRACE = 15  # seconds that a worker has after a job's timeout to report what it has stopped


class Move(NamedTuple):
    """What may happen to a job: in which states, and which state follows."""

    states: tuple[str, ...]
    to: str


# Everything that can happen to a job. The states that no move starts from are its end: it never changes again.
JOB_MOVES = {
    "assign": Move(("waiting",), "assigned"),
    "skip": Move(("assigned",), "waiting"),
    "retry": Move(("assigned",), "waiting"),  # an attempt failed or timed out, and is not the last one
    "requeue": Move(("assigned",), "waiting"),
    "take_back": Move(("assigned",), "waiting"),  # nobody has heard of the assignment
    "close": Move(("assigned",), "succeeded"),
    "fail": Move(("assigned",), "failed"),
    "time_out": Move(("assigned",), "timed_out"),
    "cancel": Move(("waiting", "assigned"), "cancelled"),
}
MOST_ATTEMPTS = 1000  # whose moves are logged: a worker that skips in a circle must not fill the disk
LIVE_STATES = {state for move in JOB_MOVES.values() for state in move.states}


def column_default(field: msgspec.structs.FieldInfo) -> Any:
    """What a column gets of which a body says nothing: JSON as text."""
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return encode(value).decode() if isinstance(value, list | dict) else value


NEW_TEMPLATE: dict[str, Any] = {
    **{
        field.name: column_default(field)
        for field in msgspec.structs.fields(shapes.Template)
        if not field.required and field.name != "secret"
    },
    **{"recipe": "", "script": None, "key_hash": None},
}


class Report(NamedTuple):
    """What a worker's output says about its job. Texts as they are stored: JSON, but for `state`, told as it came."""

    result: str | None = None
    state: str | None = None
    output: str | None = None
    killed: bool = False


NO_REPORT = Report()


def new_token() -> str:
    """An id for clients: 96 random bits, in the form that theeye.io's clients expect of an id."""
    return secrets.token_hex(12)


# Templates


def find_template(tx: Tx, template: int) -> sqlite3.Row | None:
    """A template that has not been deleted."""
    return tx.one("SELECT * FROM template WHERE id = ? AND deleted IS NULL", (template,))


TEMPLATE = Thing("template", find_template)


def template_of_job(tx: Tx, job: sqlite3.Row) -> sqlite3.Row | None:
    """The template that a job was made of, also when it has been deleted since. A workflow's run has none."""
    return tx.one("SELECT * FROM template WHERE id = ?", (job["template"],))


def template_by_token(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM template WHERE token = ? AND deleted IS NULL", (token,))


def api_template(tx: Tx, name: str) -> sqlite3.Row | None:
    """The template that may be triggered by this name; if there is none, one of that name that may not."""
    named = "SELECT * FROM template WHERE name = ? AND deleted IS NULL"
    return tx.one(f"{named} AND api", (name,)) or tx.one(f"{named} LIMIT 1", (name,))


def template_shown(tx: Tx, row: sqlite3.Row, whole: bool = True, secret: str | UnsetType = UNSET) -> shapes.Template:
    """A template as the JSON API shows it: of its key no more than that it has one."""
    given = {"has_key": row["key_hash"] is not None, "secret": secret}
    if whole:
        script = row["script"] and tx.one("SELECT source FROM script WHERE id = ?", (row["script"],))["source"]
        given |= {"recipe": row["recipe"], "script": script or ""}
    return shaped(shapes.Template, row, **given)


@needs(LOGIN, acts=True)
def create_template(tx: Tx, caller: Caller, body: shapes.TemplateBody) -> shapes.Template:
    """Makes a template, of a project in which the manager has EDIT.

    Its secret, which opens this template alone, is in the answer and is not shown again.
    """
    if body.project is UNSET:
        raise TrackerError("invalid", "is required", "project")
    check_access(tx, caller, find_project(tx, body.project), EDIT)
    row = insert_template(tx, body)
    return template_shown(tx, row, secret=row["secret"])


def insert_template(tx: Tx, body: shapes.TemplateBody, promised: bool = False) -> sqlite3.Row:
    """Stores a new template, whoever wants it. Refuses what checked_template refuses."""
    check_room(tx, "template", body.project)
    fields = {"project": body.project, **checked_template(tx, None, body, body.project, promised)}
    fields |= {"token": new_token(), "secret": secrets.token_hex(32), "created": tx.time}
    return tx.insert("template", fields)


def check_room(tx: Tx, table: Literal["template", "workflow"], project: int) -> None:
    """Refuses more of them than a list can show at once."""
    full = f"SELECT 1 FROM {table} WHERE project = ? AND deleted IS NULL LIMIT 1 OFFSET ?"
    if tx.one(full, (project, MOST_TEMPLATES - 1)):
        raise TrackerError("conflict", f"it has {MOST_TEMPLATES:,} {table}s already", "project")


@needs(EDIT, TEMPLATE, acts=True)
def update_template(tx: Tx, caller: Caller, template: sqlite3.Row, body: shapes.TemplateBody) -> None:
    """Changes a template. Fields that are absent stay as they are, and so do the jobs that it has made.

    An empty `key` takes the key away. A template stays in its project.
    """
    save_template(tx, template, body)


def save_template(tx: Tx, old: sqlite3.Row, body: shapes.TemplateBody) -> sqlite3.Row:
    """Stores what is changed of a template, whoever wants it. Refuses what checked_template refuses."""
    if body.project is not UNSET and body.project != old["project"]:
        raise TrackerError("invalid", "a template stays in its project", "project")
    fields = checked_template(tx, old, body, old["project"])
    changes = ", ".join(f"{name} = :{name}" for name in fields)
    return tx.one(f"UPDATE template SET {changes} WHERE id = :id RETURNING *", {"id": old["id"], **fields})


def checked_template(
    tx: Tx, old: sqlite3.Row | None, body: shapes.TemplateBody, project: int, promised: bool = False
) -> dict[str, Any]:
    """The columns of a new or changed template of the project, or the reason why it is refused.

    `promised`: it was accepted before, when there was room for it.
    """
    if not promised:
        tx.limits.check_disk()
        budgets.check_room_in(tx, project, len(encode(body)), many=True)  # its script is stored apart
    given = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}
    given.pop("project", None)
    for name in given.keys() & {"variables", "arguments", "env"}:
        given[name] = encode(given[name]).decode()
    key = given.pop("key", None)
    fields = {**({name: old[name] for name in ("name", *NEW_TEMPLATE)} if old else NEW_TEMPLATE), **given}
    if "name" not in fields:
        raise TrackerError("invalid", "is required", "name")
    if not fields["name"].strip():
        raise TrackerError("invalid", "must not be blank", "name")
    if fields["runas"] and "%script%" not in fields["runas"]:
        raise TrackerError("invalid", "must contain %script%, which stands for the script's file", "runas")
    if key is not None:
        fields["key_hash"] = hash_of_key(key, old and old["key_hash"])
    check_declarations(body)
    if fields["api"]:
        budgets.claim_api_name(tx, fields["name"], project, old and old["id"])
    if "script" in given:  # at last: a refusal that had written would make others run again
        fields["script"] = store_script(tx, given["script"], project) if given["script"] else None
    return {**fields, "updated": tx.time}


def hash_of_key(key: str, old: bytes | None) -> bytes | None:
    """What is stored of a key that somebody has chosen: None of an empty one. Refuses a new one that can be guessed."""
    hashed = digest(key.encode()) if key else None
    if 0 < len(key) < shapes.LEAST_KEY and hashed != old:
        raise TrackerError("invalid", f"must have at least {shapes.LEAST_KEY} characters", "key")
    return hashed


def check_declarations(body: shapes.TemplateBody) -> None:
    """Refuses what cannot be meant: a variable declared twice, a value that it does not allow, no name in `env`."""
    for name in body.env or ():
        if not name or "=" in name:
            raise TrackerError("invalid", f"{name!r} cannot be the name of a variable of an environment", "env")
    names = set()
    for variable in body.variables or ():
        if not variable.name.strip():
            raise TrackerError("invalid", "a name must not be blank", "variables")
        if variable.name in names:
            raise TrackerError("invalid", f"{variable.name} is declared twice", "variables")
        names.add(variable.name)
        if variable.allowed and variable.value is not None and variable.value not in variable.allowed:
            raise TrackerError("invalid", f"the value of {variable.name} is none of those that it allows", "variables")


def store_script(tx: Tx, source: str, project: int | None = None) -> int:
    """The id of the script with this source. A project that is the first to have it bears its size."""
    data = source.encode()
    tx.execute(
        "INSERT INTO script (token, digest, md5, source, project) VALUES (?, ?, ?, ?,"
        " (SELECT id FROM project WHERE id = ? AND NOT trusted)) ON CONFLICT (digest) DO NOTHING",
        (new_token(), digest(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), source, project),
    )
    return tx.one("SELECT id FROM script WHERE digest = ?", (digest(data),))["id"]


@needs(EDIT, TEMPLATE, acts=True)
def delete_template(tx: Tx, caller: Caller, template: sqlite3.Row) -> None:
    """Deletes a template: nothing can be triggered by it any more. Its jobs go on, and stay."""
    mark_template_deleted(tx, template)


@needs(EDIT, TEMPLATE)
def get_template(tx: Tx, caller: Caller, template: sqlite3.Row) -> shapes.Template:
    """A template with its script."""
    return template_shown(tx, template)


@needs(EDIT)
def list_templates(tx: Tx, caller: Caller, project: sqlite3.Row, *, after: tuple = ("", 0)) -> list[shapes.Template]:
    """The project's templates, by name, without their scripts and recipes."""
    left = "project = ? AND deleted IS NULL AND (name, id) > (?, ?)"
    rows = tx.execute(f"SELECT * FROM template WHERE {left} ORDER BY name, id", (project["id"], *after))
    return part_of(rows, lambda row: template_shown(tx, row, whole=False), lambda row: (row["name"], row["id"]))


@needs(EDIT, TEMPLATE, acts=True)
def rotate_template_secret(tx: Tx, caller: Caller, template: sqlite3.Row) -> NewSecret:
    """Gives a template a new secret; the old one opens nothing any more."""
    return rotate_secret(tx, "template", template["id"])


def rotate_secret(tx: Tx, table: Literal["template", "workflow"], row: int, chosen: str | None = None) -> str:
    """A new secret of 64 hexadecimal digits, whoever wants it; a client that has chosen one has its will."""
    secret = chosen or secrets.token_hex(32)
    if table == "workflow":
        tx.execute("UPDATE workflow SET secret_hash = ? WHERE id = ?", (digest(secret.encode()), row))
    else:  # a documented call of theeye.io reads it back
        tx.execute("UPDATE template SET secret = ? WHERE id = ?", (secret, row))
    return secret


def mark_template_deleted(tx: Tx, template: sqlite3.Row) -> None:
    """Its row stays for its jobs' sake, which its key protects, until the last of them is gone."""
    tx.execute("UPDATE template SET deleted = ? WHERE id = ?", (tx.time, template["id"]))


def key_matches(template: sqlite3.Row, key: str) -> bool:
    """Whether the key is the template's. A template without a key does not look at it."""
    return template["key_hash"] is None or hmac.compare_digest(digest(key.encode()), template["key_hash"])


def secret_matches(row: sqlite3.Row, secret: str) -> bool:
    """Whether this is the secret of the template or workflow."""
    if "secret_hash" in row.keys():  # noqa: SIM118 - `in` a row looks at its values
        return hmac.compare_digest(row["secret_hash"], digest(secret.encode()))
    return hmac.compare_digest(row["secret"].encode(), secret.encode())


# A job is made


def find_job(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM job WHERE token = ?", (token,))


JOB = Thing("job", find_job)


def token_of_job(tx: Tx, job: int | None) -> str | None:
    row = job is not None and tx.one("SELECT token FROM job WHERE id = ?", (job,))
    return row["token"] if row else None


def run_of(tx: Tx, caller: Caller, job: sqlite3.Row) -> sqlite3.Row | None:
    """The run of which a job is a step. None also if it is one of a hidden project that the caller must not see."""
    runs = "SELECT j.token, j.name, j.project, p.hidden FROM job j JOIN project p ON p.id = j.project WHERE j.id = ?"
    run = tx.one(runs, (job["workflow_job"],)) if job["workflow_job"] is not None else None
    return run if run and (not run["hidden"] or caller.role(run["project"]) & READ) else None


def job_shown(tx: Tx, caller: Caller, row: sqlite3.Row, whole: bool = True) -> shapes.Job:
    """A job as the JSON API shows it; not the `whole`: as lists do."""
    texts = ("variables", "arguments", "result", "output") if whole else ()
    run = run_of(tx, caller, row)
    return shaped(
        shapes.Job,
        row,
        id=row["token"],
        retry_of=token_of_job(tx, row["retry_of"]),
        workflow_job=run and run["token"],
        **{name: as_raw(row[name]) for name in texts},
    )


@needs(EDIT, TEMPLATE, worker=SUBMIT)
def trigger_template(tx: Tx, caller: Caller, template: sqlite3.Row, body: shapes.TriggerBody) -> shapes.Job:
    """Makes a job of a template.

    A worker passes the project's submit rate limit, as with a task. 400 names the variable or the number of arguments.
    """
    with charge_worker(tx, caller, template["project"]):
        job = make_job(tx, template, body.variables, body.arguments, "native", **caller.by)
    return job_shown(tx, caller, job)


@contextlib.contextmanager
def charge_trigger(tx: Tx, project: int) -> Iterator[None]:
    """Counts the job that is made meanwhile against the project's submit rate. 429 when that was reached.

    Whatever refuses the job does so before anything is written, which would make others run again.
    """
    row = find_project(tx, project)
    if row["archived"]:
        raise budgets.is_archived(project)
    check_rate(row["submit_free_uptime"] - tx.uptime)
    yield
    if row["submit_rate"]:
        limit = Limit("submit", project, row["submit_rate"], row["submit_free_uptime"])
        tx.execute("UPDATE project SET submit_free_uptime = ? WHERE id = ?", (limit.after(tx.uptime, 1), project))


def charge_worker(tx: Tx, caller: Caller, project: int) -> contextlib.AbstractContextManager:
    """A worker's job passes the project's submit rate limit; a manager's does not."""
    return charge_trigger(tx, project) if caller.worker is not None else contextlib.nullcontext()


def make_job(
    tx: Tx, template: sqlite3.Row, variables: dict[str, Any], arguments: list[Any], origin: str, **by: int | None
) -> sqlite3.Row:
    """A job of this template, and its task. Refuses variables and arguments that the template does not take.

    `by` says who wants it (worker, manager) and why (retry_of).
    """
    return insert_job(tx, {**job_columns(tx, template, variables, arguments, origin), **by})


def job_columns(
    tx: Tx, template: sqlite3.Row, variables: dict[str, Any], arguments: list[Any], origin: str
) -> dict[str, Any]:
    """A job of this template, before it is stored. Refuses variables and arguments that the template does not take.

    What it needs is copied: it runs as the template is now, whatever becomes of that.
    """
    variables = job_variables(template, variables)
    placed = place_arguments(template, arguments)
    copied = ("project", "name", "script", "runas", "env", "max_retries", "priority")
    return {
        **{name: template[name] for name in copied},
        "template": template["id"],
        "recipe": job_recipe(template, variables, placed),
        "variables": encode(variables).decode(),
        "arguments": encode(placed).decode(),
        "timeout": template["timeout"] or float(tx.settings.default_job_timeout),
        "origin": origin,
    }


def job_variables(template: sqlite3.Row, given: dict[str, Any]) -> dict[str, Any]:
    """The template's variables, with the values that are given. Refuses what it does not declare or allow."""
    errors.refuse_nul(given, "variables")
    declared = declared_variables(template)
    unknown = given.keys() - {variable.name for variable in declared}
    if unknown and not template["undeclared"]:
        raise TrackerError("invalid", "the template has no such variable", f"{min(unknown)}")
    values = {variable.name: variable.value for variable in declared if variable.value is not None} | given
    for variable in declared:
        value = values.get(variable.name)
        if variable.required and value in (None, ""):
            raise TrackerError("invalid", "is required", f"{variable.name}")
        if variable.allowed and value is not None and value not in variable.allowed:
            raise TrackerError(
                "invalid", f"must be one of {', '.join(map(as_text, variable.allowed))}", f"{variable.name}"
            )
    return values


def free_arguments(template: sqlite3.Row) -> list[shapes.Argument]:
    """The arguments that a job has to bring, in their order."""
    return [argument for argument in declared_arguments(template) if argument.type != "fixed"]


def argument_names(template: sqlite3.Row) -> list[str]:
    """What the free arguments are called where they go by names: by their labels, or else by their places."""
    labels = [argument.label for argument in free_arguments(template)]
    return [
        label if label and labels.count(label) == 1 else f"argument {number}" for number, label in enumerate(labels, 1)
    ]


def declared_arguments(template: sqlite3.Row) -> list[shapes.Argument]:
    declared = msgspec.json.decode(template["arguments"], type=list[shapes.Argument])
    return sorted(declared, key=lambda argument: argument.order)


def declared_variables(template: sqlite3.Row) -> list[shapes.Variable]:
    return msgspec.json.decode(template["variables"], type=list[shapes.Variable])


def place_arguments(template: sqlite3.Row, given: list[Any]) -> list[str]:
    """The arguments as the script gets them: texts, each in its place. Refuses too few; what is too many is ignored."""
    errors.refuse_nul(given, "arguments")
    needed = len(free_arguments(template))
    if len(given) < needed:
        raise TrackerError(
            "invalid", f"an array of length {needed} is required; optional ones must be null", "arguments"
        )
    values = iter(given)
    declared = declared_arguments(template)
    return [as_text(one.value if one.type == "fixed" else next(values)) for one in declared]


def as_text(value: Any) -> str:
    """A value as a command line or an environment can carry it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else encode(value).decode()


def job_recipe(template: sqlite3.Row, variables: dict[str, Any], arguments: list[str]) -> str:
    """The template's recipe, with {name} replaced by the variable; without a recipe all that the job was given."""
    if not template["recipe"]:
        given = {"template": template["name"], "variables": variables, "arguments": arguments}
        return encode(given).decode()
    texts, size = {name: as_text(value) for name, value in variables.items()}, 0

    def filled_in(match: re.Match) -> str:
        nonlocal size
        text = texts.get(match[1], match[0])
        size += len(text)
        if size > MOST_RECIPES:  # a long value in many places
            raise TrackerError("invalid", "too long with these values of its variables", "recipe")
        return text

    return re.sub(r"\{([^{}]+)\}", filled_in, template["recipe"])


def insert_job(tx: Tx, columns: dict[str, Any]) -> sqlite3.Row:
    """Stores a job and its task, and announces it."""
    return queue_job(tx, insert_job_alone(tx, columns))


def queue_job(tx: Tx, row: sqlite3.Row) -> sqlite3.Row:
    """Gives a job that has been stored alone its task: from now on it can be assigned.

    Other systems' priorities may be any number, and so may those of old templates: the task gets the nearest one that
    clients can hold, and the job keeps its own.
    """
    priority, max_retries = in_16_bits(row["priority"]), in_16_bits(row["max_retries"])
    task = tx.one(
        "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, job)"
        " VALUES (?, ?, ?, ?, ?, 1, ?) RETURNING id",
        (row["project"], row["recipe"], priority, max_retries, lease(row["timeout"]), row["id"]),
    )["id"]
    tx.counts.move(row["project"], "gone", "waiting")
    tx.ready.append((row["project"], 1))
    return tx.one("UPDATE job SET task = ? WHERE id = ? RETURNING *", (task, row["id"]))


def lease(timeout: float) -> int:
    """How long a worker may hold the task of a job with this timeout."""
    return math.ceil(timeout) + JOB_GRACE


def insert_job_alone(tx: Tx, columns: dict[str, Any]) -> sqlite3.Row:
    """Stores a job that has no task. Of all jobs only a workflow's steps are taken when the disk is nearly full."""
    if columns.get("workflow_job") is None:
        tx.limits.check_disk()
    budgets.check_room_in(tx, columns["project"], budgets.text_size(columns.values()), "job")
    tx.execute(NOTE_SET_BACK, (tx.now,))
    row = tx.insert("job", {**columns, "token": new_token(), "created": tx.now, "updated": tx.now})
    job_happens(tx, "made", row)
    add_job_line(tx, row["id"], f"created by {maker_of(tx, row)}")
    return row


def maker_of(tx: Tx, job: sqlite3.Row) -> str:
    """Who made the job, in words."""
    if job["worker"] is not None:
        return f"worker {alias_of(tx, job['worker'])} ({job['worker']})"
    if job["manager"] is not None:
        row = tx.one("SELECT username FROM manager WHERE id = ?", (job["manager"],))
        return f"manager {row['username']}" if row else "a manager whose account was deleted"
    if job["workflow_job"] is not None:
        return "its workflow"
    clients = (client_of(tx, job) for client_of in hooks("client_of"))
    return next(filter(None, clients), f"a client of {DIALECTS.get(job['origin'], job['origin'])}")


def repeat_job(tx: Tx, job: sqlite3.Row, origin: str, **by: int | None) -> sqlite3.Row:
    """A new job, with all that an ended one was given. 409 while that is still live."""
    if job["finished"] is None:
        raise TrackerError("conflict", f"it has not ended yet, it is {job['state']}", "job")
    if job["workflow"] is not None:
        return repeat_workflow(tx, job, origin, **by)
    for check in hooks("check_retry"):
        check(tx, job)
    copied = ("project", "template", "name", "recipe", "script", "runas", "variables", "arguments", "env", "timeout")
    copied = (*copied, "max_retries", "priority")
    return insert_job(tx, {**{name: job[name] for name in copied}, "origin": origin, "retry_of": job["id"], **by})


# What happens to a job


def move_job(
    tx: Tx, job: int, event: str, said: str, level: str = "info", change: str = "", **values: Any
) -> sqlite3.Row:
    """Carries out a move of JOB_MOVES, with a further `change` of columns, and logs what happened.

    Runs in the transaction that changes the task, so the two never disagree.
    """
    states, to = JOB_MOVES[event]
    change += ", assignee = NULL" if to == "waiting" else ""
    change += ", finished = :now, delayed = 0" if to not in LIVE_STATES else ""
    row = tx.one(
        f"UPDATE job SET state = :to, updated = :now{change}"
        f" WHERE id = :job AND state IN ({', '.join(map(repr, states))}) RETURNING *",
        {"job": job, "to": to, "now": tx.now, **values},
    )
    if row is None:
        raise TrackerError("conflict", f"cannot {event} in its state", "job")
    job_happens(tx, event, row)
    tell_what_was_dropped(tx, row)
    if row["attempts"] <= MOST_ATTEMPTS or row["finished"] is not None:
        add_job_line(tx, job, said, level)
    if row["finished"] is not None and row["workflow_job"] is not None:
        continue_workflow(tx, row)
    return row


def start_job(tx: Tx, job: int, worker: int) -> shapes.TaskJob:
    """Notes that the job's task is assigned, and returns what the worker needs to run it."""
    row = move_job(
        tx,
        job,
        "assign",
        f"assigned to {alias_of(tx, worker)} ({worker})",
        change=", assignee = :worker, attempts = attempts + 1, started = ifnull(started, :now), sent_count = 0",
        worker=worker,
    )
    if row["workflow_job"] is not None:
        start_workflow_job(tx, row)
    script = row["script"] and tx.one("SELECT * FROM script WHERE id = ?", (row["script"],))
    return shapes.TaskJob(
        id=row["token"],
        template=row["name"],
        script=shapes.Script(script["source"], script["md5"]) if script else None,
        runas=row["runas"],
        env=as_raw(job_environment(tx, row)),
        **{name: as_raw(row[name]) for name in ("arguments", "variables")},
        timeout=row["timeout"],
        attachments=f"/task/attachments/{row['task']}" if attachments_of(tx, row) else UNSET,
    )


def attachments_of(tx: Tx, job: sqlite3.Row) -> Callable[..., Awaitable[Any]] | None:
    """How to send what a client has attached to a job, as a dialect says; None: nothing is."""
    return next(filter(None, (attachments(tx, job) for attachments in hooks("attachments"))), None)


def job_environment(tx: Tx, job: sqlite3.Row) -> str:
    """What the job's template sets, and what scripts of other systems look for, as JSON."""
    if job["script"] is None:
        return job["env"]
    env = msgspec.json.decode(job["env"])
    for environment in hooks("job_environment"):
        env |= environment(tx, job)
    return encode(env).decode()


def assign_job(tx: Tx, job: sqlite3.Row, worker: int) -> shapes.TaskJob:
    """Assigns one waiting job, for a dialect with an order and with rights of its own: none are looked at here.

    Returns what start_job returns. 409 when the job is not waiting.
    """
    if job["state"] != "waiting" or job["task"] is None or job["delayed"]:
        state = "delayed" if job["delayed"] else job["state"]
        raise TrackerError("conflict", f"it cannot be assigned, it is {state}", "job")
    hold(tx, job["project"], "waiting", [(worker, job["task"], lease(job["timeout"]))])
    tx.seen.add(worker)
    return start_job(tx, job["id"], worker)


def renew_lease(tx: Tx, job: sqlite3.Row) -> None:
    """The lease of an assigned job begins anew, for a dialect whose workers give signs of life."""
    held = "SELECT id, deadline_uptime FROM task WHERE id = ? AND assignee = ?"
    if task := tx.one(held, (job["task"], job["assignee"])):
        extend_lease(tx, task, tx.uptime + lease(job["timeout"]))


def release_job(tx: Tx, task: Held, credentials: WorkerCredentials, body: shapes.ReleaseBody, report: Report) -> bool:
    """What a release does to a task that has a job: as to others, but a failed one does not stay in the queue."""
    budgets.check_results(tx, credentials, {task.id: (task, body.output)})
    if not task.trusted and not budgets.has_room(tx, budgets.text_size(report), task.project):
        tx.limits.beyond("max_untrusted_projects")
        report = report._replace(result=None, output=None)
    tx.execute(
        "UPDATE job SET result = ?, reported = ?, output = ?, warned = warned OR ? WHERE id = ?",
        (report.result, report.state, report.output, tells_of(report.state, WARNINGS), task.job),
    )
    if body.result == SKIP:
        record_end(tx, "skipped", "id = :id", {"id": task.id})
        delay = min(body.delay, tx.settings.max_skip_delay)
        put_back(tx, task, delay=delay)
        again = f"; waiting again, in {delay:g} s" if delay else "; waiting again"
        move_job(tx, task.job, "skip", f"released as skipped{again}")
        return True
    forgiven = body.result == FAIL and any(forgives(tx, task.job, report) for forgives in hooks("forgives"))
    if body.result == FAIL and not forgiven:
        record_end(tx, "failed", "id = :id", {"id": task.id})
        event, said = ("time_out", "stopped at its timeout") if report.killed else ("fail", "released as failed")
        end_attempt(tx, task, event, said, body.error)
        return True
    if tells_of(report.state, FAILURES):  # the work was done, so it is not repeated; but nothing follows from it
        record_end(tx, "failed", "id = :id", {"id": task.id})
        delete_tasks(tx, "id = :id", {"id": task.id})
        move_job(tx, task.job, "fail", f"released as done, but its result reports {report.state}", "error")
    else:
        close_tasks(tx, [task], credentials.id)
        said = "released as failed, which does not count for its client" if forgiven else "released as done"
        move_job(tx, task.job, "close", said)
    return True


FAILURES, WARNINGS = {"failure", "failed", "error"}, {"warning", "warn"}  # reported states
MOST_STATE = 10_000  # characters of one


def tells_of(reported: str | None, states: set[str]) -> bool:
    """Whether the state that was reported is one of these, in whatever letters."""
    return reported is not None and reported.strip().lower() in states


def end_attempt(tx: Tx, task: Held | Assignment, event: str, said: str, reason: str = "") -> None:
    """Counts a failed attempt. If it was the last one, the job ends, with the event, and its task goes."""
    retries = task.retries + 1
    tx.counts.total(task.project, "failures")
    said += f": {reason.strip()[: failures.MOST_REASON]}" if reason.strip() else ""
    if retries < task.max_retries:
        cause = failures.note(tx, task, reason or said, for_good=False)
        put_back(tx, task, ", retries = ?, cause = ?", retries, cause, delay=rest(task))
        said = f"{said}: attempt {retries} of {task.max_retries}; waiting again"
        move_job(tx, task.job, "retry", said, "warn")
    else:
        delete_tasks(tx, "id = :id", {"id": task.id})
        move_job(tx, task.job, event, said, "error")


def expire_job(tx: Tx, task: Assignment) -> None:
    """The job's worker has not released it in time. Nobody would look at it again, so this is a failed attempt."""
    row = tx.one("SELECT timeout FROM job WHERE id = ?", (task.job,))
    said = f"timed out: not released within {row['timeout']:g} s and {JOB_GRACE} s of grace"
    killed = {"code": None, "log": said, "lastline": said, "signal": None, "killed": True}
    change = "UPDATE job SET result = ?, reported = NULL, output = NULL WHERE id = ?"
    tx.execute(change, (encode(killed).decode(), task.job))
    end_attempt(tx, task, "time_out", said)


def stop_job(tx: Tx, job: sqlite3.Row, by: str) -> None:
    """Ends a job; if its task is assigned, that is taken away from its worker. 409 when it has ended already."""
    if job["finished"] is not None:
        raise TrackerError("conflict", f"it has ended already, it is {job['state']}", "job")
    if job["task"] is not None:
        delete_tasks(tx, "id = :id", {"id": job["task"]})
    move_job(tx, job["id"], "cancel", f"cancelled by {by}")
    if job["workflow"] is not None:
        cancel_steps(tx, job["id"])


def read_report(output: Raw) -> Report:
    """What a worker's output says: a state, and what is handed on; else what its script's last line says, if JSON.

    The rule of theeye.io, which other results simply do not meet: a last line that is an array is the output, one like
    {"state": …, "data": …} gives both.
    """
    text, result = errors.read_printed(output, "output")
    if not isinstance(result, dict):
        return Report(text)
    state, handed_on, killed = result.get("state"), result.get("output"), result.get("killed") is True
    line = result.get("lastline")
    said = last_line(line) if handed_on is None or state == line else None
    if isinstance(said, list | dict) and state == line:  # agents take it for the state, whatever it is
        state = None
    if isinstance(said, list):
        said = {"data": said}
    if isinstance(said, dict):
        state, handed_on = state or said.get("state"), said.get("data") if handed_on is None else handed_on
    state = state[:MOST_STATE] if isinstance(state, str) and state.strip() else None
    return Report(text, state, None if handed_on is None else encode(handed_on).decode(), killed)


def last_line(line: Any) -> Any:
    """The last line of a script's output as the JSON that it may be."""
    try:
        return msgspec.json.decode(line) if isinstance(line, str) else None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


# A job's log


def held_task(tx: Tx, worker: int, task: int) -> sqlite3.Row | None:
    """The task's id, project and job, if this worker holds it. A project that was deleted has none."""
    held = "SELECT t.id, project, job FROM task t JOIN project p ON p.id = project WHERE t.id = ? AND assignee = ?"
    return tx.one(held, (task, worker))


@needs(WORKER)
def find_attachments(tx: Tx, caller: Caller, task: int) -> Callable[..., Awaitable[Any]] | None:
    """How to send what is attached to the job of a task; None: nothing is. 403 when the caller does not hold it."""
    held = held_task(tx, caller.worker.id, task)
    if held is None:
        check_task_existed(tx, task)
        raise TrackerError("forbidden", "You do not hold this task", "task")
    job = held["job"] and tx.one("SELECT * FROM job WHERE id = ?", (held["job"],))
    return attachments_of(tx, job) if job else None


@needs(WORKER)
def log_to_task(tx: Tx, caller: Caller, body: shapes.TaskLogBody) -> shapes.TaskLogged:
    """Adds lines to the log of a task that the caller holds; of a task with a job, to the job's.

    `held` is false, and nothing is stored, when the caller does not hold it (any more). A job's lines that are
    numbered, by `first`, are stored once however often they are sent.
    """
    worker = caller.worker.id
    held = held_task(tx, worker, body.task_id)
    if held is None:
        check_task_existed(tx, body.task_id)
        return shapes.TaskLogged(False, 0)
    lines = [kept_line(entry) for entry in body.entries]
    if held["job"] is None:
        entries = [entry for entry in lines if LEVELS[entry.level] <= LEVELS[tx.settings.log_level]]
        kept = [store_log_entry(tx, worker, caller.source, entry, held["id"], held["project"]) for entry in entries]
        return shapes.TaskLogged(True, sum(kept))
    job = tx.one("SELECT * FROM job WHERE id = ?", (held["job"],))
    seen = 0 if body.first is None else max(0, job["sent_count"] - body.first)
    stored = add_job_lines(tx, job, worker, lines[seen:], caller.source)
    dropped_by = UNSET if stored or not lines[seen:] else what_drops(tx, job)
    if body.first is not None:
        sent = max(job["sent_count"], body.first + len(body.entries))
        tx.execute("UPDATE job SET sent_count = ? WHERE id = ?", (sent, job["id"]))
    return shapes.TaskLogged(True, stored, dropped_by)


def add_log_entry(tx: Tx, credentials: WorkerCredentials, level: str, body: shapes.LogBody) -> tuple[bool, str]:
    """Stores a worker's line if its level is to be stored. `task_id` counts when the caller holds that task.

    Whether it was stored, and the line for the log file.
    """
    worker = authenticate(tx, credentials)
    message = body.message or body.Message
    if not message:
        raise TrackerError("invalid", "is required, and must not be empty", "message")
    entry = kept_line(shapes.TaskEntry(message, body.timestamp, level, body.scope))
    held, stored = None if body.task_id is None else held_task(tx, credentials.id, body.task_id), 0
    if held and held["job"] is not None:
        job = tx.one("SELECT * FROM job WHERE id = ?", (held["job"],))
        stored += add_job_lines(tx, job, credentials.id, [entry], credentials.source)
    if LEVELS[level] <= LEVELS[tx.settings.log_level]:
        task, project = (held["id"], held["project"]) if held else (None, only_project(tx, credentials.id))
        stored += store_log_entry(tx, credentials.id, credentials.source, entry, task, project)
    return stored > 0, f"{worker.alias} ({credentials.id}) {entry.scope}: {entry.message}"


# Jobs looked at


@needs(READ, JOB, worker=SUBMIT)
def get_job(tx: Tx, caller: Caller, job: sqlite3.Row) -> shapes.Job:
    """A job: its state, what it was given, its result."""
    return job_shown(tx, caller, job)


@needs(READ, JOB, worker=SUBMIT)
def get_job_log(tx: Tx, caller: Caller, job: sqlite3.Row, query: shapes.LinesQuery) -> list[shapes.JobEntry]:
    """Lines of a job's log, in the order logged, and the tracker's own (scope `tracker`, worker 0) among them.

    The last line's id as `after` continues it.
    """
    lines = job_log(tx, job["id"], query.after, query.limit)
    return [shaped(shapes.JobEntry, line, level=LEVEL_NAMES[line["level"]]) for line in lines]


@needs(EDIT, JOB, worker=SUBMIT)
def cancel_job(tx: Tx, caller: Caller, job: sqlite3.Row) -> None:
    """Cancels a job that has not ended; its worker's later release answers `updated: false`.

    409 when it has ended.
    """
    stop_job(tx, job, maker_of(tx, {"worker": None, "manager": None, **caller.by}))


@needs(EDIT, JOB, worker=SUBMIT)
def retry_job(tx: Tx, caller: Caller, job: sqlite3.Row) -> shapes.Job:
    """Makes a new job with all that an ended one was given. 409 while that is still live."""
    with charge_worker(tx, caller, job["project"]):
        again = repeat_job(tx, job, "native", **caller.by)
    return job_shown(tx, caller, again)


@needs(READ, PROJECT, worker=SUBMIT, by_itself=True)
def list_jobs(tx: Tx, caller: Caller, query: shapes.JobsQuery) -> shapes.JobPage:
    """Jobs, the newest first, without their results. The answer's `before` continues the list; null at its end.

    Without project and template, a manager's jobs of all projects. A page may hold fewer jobs than asked for, or none,
    and yet have a next one.
    """
    project = query.project
    if query.template is not None:
        row = tx.one("SELECT p.* FROM template t JOIN project p ON p.id = t.project WHERE t.id = ?", (query.template,))
        missing = TrackerError("not_found", f"no template {query.template}", "template")
        check_access(tx, caller, row, READ, missing, SUBMIT)
        if query.project not in (None, row["id"]):
            raise TrackerError("invalid", "it is not of that project", "template")
        project = row["id"]
    elif project is not None:
        missing = TrackerError("not_found", f"no project {project}", "project")
        check_access(tx, caller, find_project_row(tx, project), READ, missing, SUBMIT)
    elif caller.worker is not None:
        raise TrackerError("invalid", "is required", "project")
    else:
        logged_in(caller)
    rows, more = find_jobs(tx, None if project is not None else caller, query)
    return shapes.JobPage([job_shown(tx, caller, row, whole=False) for row in rows], more)


# What a list shows of a job; its results may be long.
LISTED_JOB = (
    "id, token, name, template, project, state, task, timeout, origin, attempts, assignee, created, started, finished,"
    " substr(reported, 1, 200) AS reported, warned, retry_of, workflow, workflow_job"
)


def find_jobs(
    tx: Tx, caller: Caller | None, query: shapes.JobsQuery, columns: str = LISTED_JOB
) -> tuple[list[sqlite3.Row], int | None]:
    """The jobs of a query, the newest first, and the place before which to go on (None: no more).

    With a caller: of all the projects that this manager may read. Costs the same however many jobs there are.
    """
    values = msgspec.structs.asdict(query) | {"set_back": set_back(tx)}
    of = [f"{name} = :{name}" for name in ("template", "project") if values[name] is not None]
    where, match = of[:1] or ["TRUE"], ["TRUE", *of[1:]]  # one has an index, the other is looked at
    if query.state is not None:
        (where if of else match).append("state = :state")
    if caller is not None and not caller.manager.tracker_admin:
        match.append("project IN (SELECT project FROM manager_role WHERE manager = :manager AND role & 1)")
        values["manager"] = caller.manager.id
    last = query.before
    if query.end is not None:
        later = "SELECT id FROM job WHERE created >= :end + 1 + :set_back ORDER BY created, id LIMIT 1"
        last = min(last, *(row["id"] for row in tx.execute(later, values)), INT64_MAX)
        match.append("created < :end + 1")
    if query.start is not None:
        earlier = "SELECT id FROM job WHERE created < :start - :set_back ORDER BY created DESC, id DESC LIMIT 1"
        where.append("id > :first")
        match.append("created >= :start")
        values["first"] = max((row["id"] for row in tx.execute(earlier, values)), default=0)
    if query.text:
        match.append(contains("name || ' ' || token || ' ' || variables || ' ' || arguments"))
    index, matches = " AND ".join(where), " AND ".join(match)
    return search(tx, "job", index, matches, values, last, query.limit, SEARCH_TIME, newest=True, columns=columns)


# Jobs forgotten


def prune_jobs(tx: Tx, template: int) -> int | None:
    """Deletes ended jobs that are too old or too many, template by template (0: those without one), for a while.

    The template to go on with; None after the last one.
    """
    while template is not None:
        row = tx.one("SELECT keep_count, keep_time FROM template WHERE id = ?", (template,))
        keep_count, keep_time = row or (None, None)
        age = keep_time or tx.settings.job_retention
        let_age(tx, "job", limit=STEP_TASKS, template=template or None)
        values = {**tx.ages(age), "template": template or None, "keep": keep_count, "limit": STEP_TASKS}
        due = tx.all(DUE_JOBS, values)
        for job in due:
            delete_job(tx, job["id"])
            if tx.time_is_up():  # after one at least
                return template
        if not due:
            following = tx.one("SELECT id FROM template WHERE id > ? ORDER BY id LIMIT 1", (template,))
            template = following and following["id"]
        if tx.time_is_up():
            break
    return template


DUE_JOBS = """
    SELECT id FROM job WHERE template IS :template AND finished IS NOT NULL
        AND finished < min(:certain, max(:before, ifnull((
            SELECT finished FROM job WHERE template IS :template AND finished IS NOT NULL AND finished <= :now
                AND :keep IS NOT NULL ORDER BY finished DESC LIMIT 1 OFFSET ifnull(:keep, 1) - 1), 0)))
    ORDER BY finished LIMIT :limit
"""


def delete_job(tx: Tx, job: int) -> None:
    """Deletes an ended job, or, if its log is long, some lines of that."""
    some = "SELECT number FROM job_line WHERE job = ?1 LIMIT ?2"
    lines = f"DELETE FROM job_line WHERE job = ?1 AND number IN ({some})"
    if tx.execute(lines, (job, PIECE_TASKS)).rowcount < PIECE_TASKS:
        for row in tx.all("DELETE FROM job WHERE id = ? RETURNING *", (job,)):
            job_happens(tx, "deleted", row)


# ── Workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_FORKS = 20  # steps that may follow one ending: they are made in the transaction of that
MOST_GIVEN = 2**18  # characters of a run's variables and arguments, which each of them may get
MOST_STEPS = 1000  # of one run: a workflow may go in a circle, but not for ever

# How a step ended, in the word of an edge.
ENDINGS = {"succeeded": "success", "failed": "failure", "timed_out": "timeout", "cancelled": "cancelled"}
ENDS = {move.to: event for event, move in JOB_MOVES.items()}


def find_workflow(tx: Tx, workflow: int) -> sqlite3.Row | None:
    """A workflow that has not been deleted."""
    return tx.one("SELECT * FROM workflow WHERE id = ? AND deleted IS NULL", (workflow,))


WORKFLOW = Thing("workflow", find_workflow)


def workflow_by_token(tx: Tx, token: str) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM workflow WHERE token = ? AND deleted IS NULL", (token,))


def workflow_shown(tx: Tx, row: sqlite3.Row, secret: str | UnsetType = UNSET) -> shapes.Workflow:
    edges = tx.all("SELECT template, ending, target FROM workflow_edge WHERE workflow = ?", (row["id"],))
    return shaped(shapes.Workflow, row, edges=[shaped(shapes.Edge, edge) for edge in edges], secret=secret)


@needs(LOGIN, acts=True)
def create_workflow(tx: Tx, caller: Caller, body: shapes.WorkflowBody) -> shapes.Workflow:
    """Makes a workflow of templates. The manager has EDIT in its project, and in those of its templates.

    Its secret, which opens this workflow alone, is in the answer and is not shown again.
    """
    for name in ("project", "name", "start"):
        if getattr(body, name) is UNSET:
            raise TrackerError("invalid", "is required", name)
    check_access(tx, caller, find_project(tx, body.project), EDIT)
    check_workflow(tx, caller, None, body)
    check_room(tx, "workflow", body.project)
    secret = secrets.token_hex(32)
    row = tx.one(
        "INSERT INTO workflow (token, project, name, start, secret_hash, created) VALUES (?, ?, ?, ?, ?, ?)"
        " RETURNING *",
        (new_token(), body.project, body.name, body.start, digest(secret.encode()), tx.time),
    )
    set_edges(tx, row["id"], body.edges or [])
    return workflow_shown(tx, row, secret=secret)


@needs(EDIT, WORKFLOW, acts=True)
def update_workflow(tx: Tx, caller: Caller, workflow: sqlite3.Row, body: shapes.WorkflowBody) -> None:
    """Changes a workflow. What is absent stays as it is; runs that are going on follow the new edges."""
    if body.project not in (UNSET, workflow["project"]):
        raise TrackerError("invalid", "a workflow stays in its project", "project")
    check_workflow(tx, caller, workflow, body)
    kept = {name: workflow[name] for name in ("id", "name", "start")}
    tx.execute("UPDATE workflow SET name = :name, start = :start WHERE id = :id", {**kept, **given_fields(body)})
    if body.edges is not UNSET:
        set_edges(tx, workflow["id"], body.edges)


def check_workflow(tx: Tx, caller: Caller, old: sqlite3.Row | None, body: shapes.WorkflowBody) -> None:
    """Refuses a name that is taken, and templates that are not there or not the manager's to use."""
    if body.name is not UNSET:
        if not body.name.strip():
            raise TrackerError("invalid", "must not be blank", "name")
        values = (old["project"] if old else body.project, body.name, old and old["id"])
        taken = "SELECT 1 FROM workflow WHERE project = ? AND name = ? AND id IS NOT ? AND deleted IS NULL"
        if tx.one(taken, values):
            raise TrackerError("conflict", f"the project has a workflow named {body.name!r} already", "name")
    edges = body.edges or []
    forks = Counter((edge.template, edge.ending) for edge in edges)
    if forks and max(forks.values()) > MOST_FORKS:
        raise TrackerError("invalid", f"more than {MOST_FORKS} from one template for one ending", "edges")
    named = [("start", body.start)] if body.start is not UNSET else []
    named += [(f"edges[{number}].template", edge.template) for number, edge in enumerate(edges)]
    named += [(f"edges[{number}].target", edge.target) for number, edge in enumerate(edges)]
    for field, template in named:
        row = find_template(tx, template)
        if row is None or not caller.role(row["project"]) & EDIT:
            raise TrackerError("invalid", f"no template {template} that you may edit", field)


def set_edges(tx: Tx, workflow: int, edges: list[shapes.Edge]) -> None:
    tx.execute("DELETE FROM workflow_edge WHERE workflow = ?", (workflow,))
    tx.executemany(
        "INSERT INTO workflow_edge VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(workflow, edge.template, edge.ending, edge.target) for edge in edges],
    )


@needs(EDIT, WORKFLOW, acts=True)
def delete_workflow(tx: Tx, caller: Caller, workflow: sqlite3.Row) -> None:
    """Deletes a workflow: nothing can trigger it any more. What it has begun goes on."""
    tx.execute("UPDATE workflow SET deleted = ? WHERE id = ?", (tx.time, workflow["id"]))


@needs(EDIT, WORKFLOW)
def get_workflow(tx: Tx, caller: Caller, workflow: sqlite3.Row) -> shapes.Workflow:
    """A workflow with its edges."""
    return workflow_shown(tx, workflow)


@needs(EDIT)
def list_workflows(tx: Tx, caller: Caller, project: sqlite3.Row, *, after: str = "") -> list[shapes.Workflow]:
    """The project's workflows, by name."""
    left = "project = ? AND deleted IS NULL AND name > ?"
    rows = tx.execute(f"SELECT * FROM workflow WHERE {left} ORDER BY name", (project["id"], after))
    return part_of(rows, functools.partial(workflow_shown, tx), lambda row: row["name"])


@needs(EDIT, WORKFLOW, acts=True)
def rotate_workflow_secret(tx: Tx, caller: Caller, workflow: sqlite3.Row) -> NewSecret:
    """Gives a workflow a new secret; the old one opens nothing any more."""
    return rotate_secret(tx, "workflow", workflow["id"])


@needs(EDIT, WORKFLOW, worker=SUBMIT)
def trigger_workflow(tx: Tx, caller: Caller, workflow: sqlite3.Row, body: shapes.TriggerBody) -> shapes.Job:
    """Starts a run of a workflow, and its first step with what is given."""
    with charge_worker(tx, caller, workflow["project"]):
        run = run_workflow(tx, workflow, body.variables, body.arguments, "native", **caller.by)
    return job_shown(tx, caller, run)


def run_workflow(
    tx: Tx, workflow: sqlite3.Row, variables: dict[str, Any], arguments: list[Any], origin: str, **by: int | None
) -> sqlite3.Row:
    """A run of this workflow: a job without a task, whose steps are jobs. Refuses what the first step refuses."""
    start = find_template(tx, workflow["start"])
    if start is None:
        raise TrackerError("conflict", "the template that it starts with was deleted", "workflow")
    columns = {
        "project": workflow["project"],
        "workflow": workflow["id"],
        "name": workflow["name"],
        **dict.fromkeys(("recipe", "runas"), ""),
        "variables": encode(variables).decode(),
        "arguments": encode(arguments).decode(),
        "env": "{}",
        "timeout": 0,
        **dict.fromkeys(("max_retries", "priority"), 0),
        "origin": origin,
    }
    if len(columns["variables"]) + len(columns["arguments"]) > MOST_GIVEN:
        raise TrackerError(
            "invalid", f"a workflow takes at most {MOST_GIVEN:,} characters of them", "variables, arguments"
        )
    step = step_columns(tx, start, columns["variables"], arguments)
    budgets.check_room_in(tx, step["project"], budgets.text_size(step.values()), "job")
    budgets.check_room_in(tx, step["project"], budgets.text_size([*columns.values(), *step.values()]), many=True)
    run = insert_job_alone(tx, {**columns, **by})
    insert_job(tx, {**step, "workflow_job": run["id"]})
    return run


def repeat_workflow(tx: Tx, job: sqlite3.Row, origin: str, **by: int | None) -> sqlite3.Row:
    workflow = find_workflow(tx, job["workflow"])
    if workflow is None:
        raise TrackerError("conflict", "its workflow was deleted", "job")
    variables, arguments = msgspec.json.decode(job["variables"]), msgspec.json.decode(job["arguments"])
    return run_workflow(tx, workflow, variables, arguments, origin, retry_of=job["id"], **by)


def start_workflow_job(tx: Tx, step: sqlite3.Row) -> None:
    """A step is assigned: so the run is on."""
    run = tx.one("SELECT id, state FROM job WHERE id = ?", (step["workflow_job"],))
    if run["state"] == "waiting":
        move_job(
            tx,
            run["id"],
            "assign",
            f"step {step['name']} has begun",
            change=", assignee = :worker, started = :now",
            worker=step["assignee"],
        )


def continue_workflow(tx: Tx, step: sqlite3.Row) -> None:
    """A step has ended: the steps on its edges follow, with its output as their arguments. After the last one the run
    ends as that did; but when a step could not be started, it has failed."""
    run = tx.one("SELECT * FROM job WHERE id = ?", (step["workflow_job"],))
    if run["finished"] is not None:
        return
    failed = follow_edges(tx, run, step) or run["reported"] is not None
    if tx.one("SELECT 1 FROM job WHERE workflow_job = ? AND finished IS NULL", (run["id"],)):
        return
    move_job(
        tx,
        run["id"],
        "fail" if failed and run["state"] == "assigned" else ENDS[step["state"]],  # one not begun can only be cancelled
        f"ended after step {step['name']}: {step['state'].replace('_', ' ')}",
        change=", result = :result, reported = :reported, output = :output, assignee = :assignee",
        **{name: step[name] for name in ("result", "reported", "output", "assignee")},
    )


def follow_edges(tx: Tx, run: sqlite3.Row, step: sqlite3.Row) -> bool:
    """Starts the steps that follow. Whether one of them could not be started."""
    output = step["output"] and msgspec.json.decode(step["output"])
    arguments = output if isinstance(output, list) else [] if output is None else [output]
    targets = tx.all(
        "SELECT target FROM workflow_edge WHERE workflow = ? AND template = ? AND ending = ? ORDER BY target",
        (run["workflow"], step["template"], ENDINGS.get(step["state"])),
    )
    failed = False
    for row in targets:
        try:
            start_following(tx, run, row["target"], arguments)
        except TrackerError as error:
            failed = True
            add_job_line(tx, run["id"], f"step {row['target']} could not be started: {error.message}", "error")
            tx.execute("UPDATE job SET reported = 'failure' WHERE id = ?", (run["id"],))
    return failed


def start_following(tx: Tx, run: sqlite3.Row, target: int, arguments: list[Any]) -> None:
    template = find_template(tx, target)
    if template is None:
        raise TrackerError("conflict", "the template was deleted")
    counted = "UPDATE job SET attempts = attempts + 1 WHERE id = ? RETURNING attempts"
    if tx.one(counted, (run["id"],))["attempts"] >= MOST_STEPS:
        raise TrackerError("conflict", f"the run has had {MOST_STEPS:,} steps")
    insert_job(tx, {**step_columns(tx, template, run["variables"], arguments), "workflow_job": run["id"]})


def step_columns(tx: Tx, template: sqlite3.Row, of_run: str, arguments: list[Any]) -> dict[str, Any]:
    """A job of the template, with those of the run's variables (JSON) that it takes."""
    variables = msgspec.json.decode(of_run)
    if not template["undeclared"]:
        declared = {variable.name for variable in declared_variables(template)}
        variables = {name: value for name, value in variables.items() if name in declared}
    return job_columns(tx, template, variables, arguments, "workflow")


def cancel_steps(tx: Tx, run: int) -> None:
    """Cancels what is going on of a run that was cancelled."""
    for step in tx.all("SELECT * FROM job WHERE workflow_job = ? AND finished IS NULL", (run,)):
        stop_job(tx, step, "its workflow's end")


# ── Task lists ────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_SELECTED = 1000  # tasks that one action may name


class TaskFilter(msgspec.Struct, omit_defaults=True):
    """Which tasks of a project: those in a state, with `text` in the recipe, of an assignee, a priority, a cause."""

    state: Literal["waiting", "assigned", "awaiting_verification", "failed", "delayed"] = "waiting"
    text: Annotated[str, Meta(max_length=1000)] = ""
    assignee: Id | None = None
    priority: shapes.Int64 | None = None
    cause: Id | None = None  # of a failed one: see failures


class TaskAction(msgspec.Struct):
    """What a manager does to tasks. `priority` is for set_priority."""

    action: Literal["retry", "requeue", "make_ready", "set_priority", "delete"]
    priority: shapes.Int16 | None = None


def find_tasks(
    tx: Tx,
    project: int,
    wanted: TaskFilter,
    after: str | int,
    limit: int,
    seconds: float,
    last_task: int = INT64_MAX,
    columns: str = "*",
) -> tuple[list[sqlite3.Row], str]:
    """The next tasks of a list, and the place ("" at its end) from which to go on; `after` is such a place.

    Costs the same wherever in the list it is. A search that has taken so many seconds of its transaction ends early:
    with fewer tasks than asked for, perhaps with none, and a place to go on from. So does one that has found much text.
    """
    state, values = TASK_STATES[wanted.state], {"project": project, "last_task": last_task}
    match, values["text"] = "id <= :last_task", wanted.text
    if wanted.text:
        match += f" AND {contains('recipe')}"
    for column in ("assignee", "priority", "cause"):
        values[column] = getattr(wanted, column)
        if values[column] is not None:
            match += f" AND {column} IS :{column}"
    found: list[sqlite3.Row] = []
    room = MOST_FOUND
    values["lane"], last = place_of(after) if after else (next_lane(tx, state, wanted, values, None), 0)
    while values["lane"] is not None:
        where = f"project = :project AND {state.condition}" + (f" AND {state.lane} = :lane" if state.lane else "")
        rows, more = search(tx, "task", where, match, values, last, limit - len(found), seconds, False, columns, room)
        found += rows
        if more is not None:
            return found, f"{values['lane']}:{more}"
        room -= sum(map(text_size, rows))
        values["lane"], last = next_lane(tx, state, wanted, values, values["lane"]), 0
        if values["lane"] is not None and tx.spent() > seconds:  # there may be as many lanes as tasks
            return found, f"{values['lane']}:0"
    return found, ""


def place_of(after: str) -> tuple[int, int]:
    lane, _, last = after.partition(":")
    try:
        return to_int64(int(lane), "after"), to_int64(int(last), "after")
    except ValueError:
        raise TrackerError("invalid", f"{after!r} is not a place in a list", "after") from None


def next_lane(tx: Tx, state: TaskState, wanted: TaskFilter, values: dict, lane: int | None) -> int | None:
    """The lane after this one (None: the first one). A list without lanes has one, 0."""
    if not state.lane:
        return 0 if lane is None else None
    if (fixed := values[state.lane]) is not None:
        return fixed if lane is None else None
    further, order = ("<", "DESC") if state.descending else (">", "ASC")
    row = tx.one(
        f"SELECT {state.lane} FROM task WHERE project = :project AND {state.condition}"
        + (f" AND {state.lane} {further} :lane" if lane is not None else "")
        + f" ORDER BY {state.lane} {order} LIMIT 1",
        {**values, "lane": lane},
    )
    return row and row[0]


def state_of(task: sqlite3.Row) -> str:
    """The one state of TASK_STATES that the task is in."""
    if task["assignee"] is not None:
        return "assigned"
    if task["status"] != NEW:
        return "failed" if task["status"] == FAILED else "delayed"
    return "waiting" if task["verifiers"] is None else "awaiting_verification"


def retry_tasks(tx: Tx, which: str, values: dict[str, Any]) -> int:
    return make_ready(tx, which, values, "failed", ", retries = 0, lost_leases = 0")


def requeue_tasks(tx: Tx, which: str, values: dict[str, Any]) -> int:
    record_end(tx, "requeued", which, values)
    tasks = find_assignments(tx, which, values)
    for task in tasks:
        put_back(tx, task)
        if task.job is not None:
            move_job(tx, task.job, "requeue", "taken back by a manager; waiting again")
    return len(tasks)


def take_back(tx: Tx, worker: int, tasks: Sequence[tuple[int, int]]) -> int:
    """Makes tasks (ids and attempts) ready that the worker holds and has not heard of, as if it had never held them.

    How many. What a rate limit counted stays counted.
    """
    held = "id = :id AND attempt = :attempt AND assignee = :worker"
    values = ({"id": task, "attempt": attempt, "worker": worker} for task, attempt in tasks)
    found = [task for each in values for task in find_assignments(tx, held, each)]
    for task in found:
        pauses.give_trial_back(tx, task.project, worker, task.id)
        put_back(tx, task, ", attempt = attempt - 1")
        if task.job is not None:
            change = ", started = iif(attempts > 1, started, NULL), attempts = attempts - 1"
            said = "its worker had gone before it could hear of it; waiting again"
            move_job(tx, task.job, "take_back", said, change=change)
    return len(found)


def set_priorities(tx: Tx, which: str, values: dict[str, Any]) -> int:
    rows = tx.all(f"UPDATE task SET priority = :priority WHERE {which} RETURNING job", values)
    for row in rows:
        if row["job"] is not None:
            change = "UPDATE job SET priority = ? WHERE id = ? RETURNING *"
            job_happens(tx, "set_priority", tx.one(change, (values["priority"], row["job"])))
    return len(rows)


def delete_and_cancel(tx: Tx, which: str, values: dict[str, Any]) -> int:
    rows = delete_tasks(tx, which, values)
    for row in rows:
        if row["job"] is not None:
            move_job(tx, row["job"], "cancel", "its task was deleted by a manager")
    return len(rows)


class Action(NamedTuple):
    """What is done to those of the chosen tasks for which it is meant."""

    function: Callable[[Tx, str, dict[str, Any]], int]
    which: str = "TRUE"
    state: str | None = None


ACTIONS = {
    "retry": Action(retry_tasks, "status = 2", "failed"),
    # A task that was assigned anew while the operation went on stays with its worker.
    "requeue": Action(requeue_tasks, "assignee IS NOT NULL AND assigned_uptime <= :before", "assigned"),
    "make_ready": Action(functools.partial(make_ready, was="delayed"), "status = 3", "delayed"),
    "set_priority": Action(set_priorities, "priority <> :priority"),
    "delete": Action(delete_and_cancel),
}


MAINTAINS = Need(MAINTENANCE, PROJECT)
ACTION_NEEDS = {"set_priority": Need(EDIT, PROJECT)}


@needs(READ)
def list_tasks(
    tx: Tx, caller: Caller, project: sqlite3.Row, wanted: TaskFilter, after: str, limit: int, columns: str = "*"
) -> tuple[list[sqlite3.Row], str]:
    """A page of tasks as find_tasks finds them."""
    rows, more = find_tasks(tx, project["id"], wanted, after, limit + 1, SEARCH_TIME, columns=columns)
    if len(rows) > limit:  # one more than shown, so that no last page is empty
        lane = TASK_STATES[wanted.state].lane
        rows = rows[:limit]
        more = f"{rows[-1][lane] if lane else 0}:{rows[-1]['id']}"
    return rows, more


def act_on_tasks(tx: Tx, caller: Caller, project: int, body: TaskAction, tasks: list[int]) -> int:
    """Does the same to some tasks of a project, and says to how many: those in a state that the action is for."""
    check_action(tx, caller, project, body)
    if len(tasks) > MOST_SELECTED:
        raise TrackerError("invalid", f"at most {MOST_SELECTED} at once", "task")
    tasks = [to_int64(task, "task") for task in tasks]
    acts.record(tx, caller.manager.id, body.action, project, tasks=len(tasks), priority=body.priority)
    return apply_action(tx, project, body.action, body.priority, tasks, tx.uptime)


def check_action(tx: Tx, caller: Caller, project: int, body: TaskAction) -> sqlite3.Row:
    """The project, if the manager may do this. set_priority needs EDIT, the rest MAINTENANCE."""
    if body.action == "set_priority" and body.priority is None:
        raise TrackerError("invalid", "is required", "priority")
    return accessible(tx, caller, ACTION_NEEDS.get(body.action, MAINTAINS), project)


def apply_action(
    tx: Tx, project: int, action: str, priority: int | None, tasks: Sequence[int], assigned_before: float
) -> int:
    """Does what ACTIONS says to those of the tasks that it is meant for. How many tasks that changed."""
    values = {"tasks": encode(tasks).decode(), "project": project, "before": assigned_before, "priority": priority}
    # With the plus the tasks are looked up one by one. An index of the project would go through all that are assigned.
    which = f"{THESE} AND +project = :project AND {ACTIONS[action].which}"
    return ACTIONS[action].function(tx, which, values)


# ── Long operations ───────────────────────────────────────────────────────────────────────────────────────────────────


RESETS = {"reset_failed": "retry", "reclaim_assigned": "requeue", "hard_reset": "hard_reset"}


class Bulk(NamedTuple):
    """The tasks of a bulk submit, all of one project, checked and in pieces."""

    project: int
    count: int
    pieces: list[bytes]


def read_bulk(body: bytes, most: int) -> Bulk:
    """The bulk submit that a body says. Takes a while for a large one: call it on a thread of its own."""
    try:
        return bulk_of(itertools.chain.from_iterable(map(decode_tasks, array_parts(body))), most)
    except TrackerError:
        return bulk_of(decode_bulk(body, most), most)  # only the whole knows what is wrong, and where


def decode_tasks(array: bytes) -> list[shapes.SubmitBody]:
    return decode(array, list[shapes.SubmitBody])


def decode_bulk(body: bytes, most: int) -> list[BulkTask]:
    decoding.left = decoding.most = most
    bare = body.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    return decode(body, list[BulkTask]) if bare else decode(body, BulkSubmitBody).requests


def bulk_of(requests: Iterable[shapes.SubmitBody], most: int) -> Bulk:
    """The bulk submit of these tasks. Refuses none, more than `most`, and tasks of several projects."""
    project = count = 0

    def rows() -> Iterator[tuple[int, tuple]]:
        nonlocal project, count
        for count, request in enumerate(requests, 1):
            project = project or request.project
            try:
                row = task_row(request)
            except TrackerError as error:
                raise error.within(f"requests[{count - 1}]") from None
            if request.project != project:
                raise TrackerError("invalid", "all tasks must be of one project", f"requests[{count - 1}].project")
            if count > most:
                raise TrackerError("invalid", "too many", "requests")
            yield len(request.recipe), row

    pieces = list(in_pieces(rows()))
    if not pieces:
        raise TrackerError("invalid", "there is no task in it", "requests")
    return Bulk(project, count, pieces)


def in_pieces(sized: Iterable[tuple[int, Any]]) -> Iterator[bytes]:
    """Tasks, each with its size in bytes, as JSON in pieces of at most BULK_TASKS and about PIECE_BYTES.

    A None in the place of a task is handed on as an empty piece: there is nothing more yet.
    """
    piece: list[Any] = []
    size = 0
    for length, task in sized:
        if task is None:
            yield b""
            continue
        piece.append(task)
        size += length
        if len(piece) == BULK_TASKS or size >= PIECE_BYTES:
            yield encode(piece)
            piece, size = [], 0
            time.sleep(0)  # lets other threads have the interpreter
    if piece:
        yield encode(piece)


def begin_bulk_submit(tx: Tx, credentials: WorkerCredentials, project: int) -> int:
    """Opens a bulk submit that is too large for one transaction. Nothing of it counts before it is accepted."""
    submitter(tx, credentials, project)
    return insert_operation(tx, "bulk_submit", project, accepted=0)


@reads_no_counts
def add_bulk_piece(tx: Tx, operation: int, number: int, tasks: bytes) -> None:
    tx.execute("INSERT INTO bulk_piece VALUES (?, ?, ?)", (operation, number, tasks))


def add_bulk_pieces(tx: Tx, operation: int, first: int, pieces: list[bytes]) -> None:
    row = tx.one("SELECT project FROM operation WHERE id = ?", (operation,))
    budgets.check_pieces(tx, row["project"], pieces, sum(BULK_TASKS * budgets.TASK_SIZE + len(one) for one in pieces))
    for number, tasks in enumerate(pieces, first):
        add_bulk_piece(tx, operation, number, tasks)


def accept_bulk_submit(tx: Tx, credentials: WorkerCredentials, operation: int, count: int) -> None:
    """From this commit on the whole bulk submit will be carried out, crash or not. The caller is checked once more."""
    project = tx.one("SELECT project FROM operation WHERE id = ?", (operation,))["project"]
    charge_submit(tx, submitter(tx, credentials, project), count)
    tx.execute("UPDATE operation SET accepted = 1 WHERE id = ?", (operation,))


def find_lines_submit(tx: Tx, credentials: WorkerCredentials, project: int, token: str) -> int | None:
    """The upload that the worker has sent with this token before; None: it may send it now.

    What was accepted is answered as the first time, whatever keeps the worker from another upload by now.
    """
    worker = authenticate(tx, credentials).id
    sent = "SELECT id, accepted FROM operation WHERE worker = ? AND project = ? AND token = ?"
    row = tx.one(sent, (worker, project, token))
    if row is None:
        submitter(tx, credentials, project)
        return None
    if not row["accepted"]:
        raise TrackerError("unavailable", "the upload with this token is still being read; try again later", "token")
    return row["id"]


def begin_lines_submit(tx: Tx, credentials: Credentials, project: int, token: str = "") -> int:
    """Opens an upload of tasks, a line each, of a worker with SUBMIT or a manager with EDIT.

    A worker's token is taken from here on: 503 for an upload that was read at the same time as the first with it.
    """
    if not isinstance(credentials, WorkerCredentials):
        return insert_operation(tx, "submit_lines", project, editor(tx, credentials, project).id, accepted=0)
    if find_lines_submit(tx, credentials, project, token) is not None:
        raise TrackerError("unavailable", "an upload with this token was accepted meanwhile; ask again for it", "token")
    return insert_operation(tx, "submit_lines", project, worker=credentials.id, token=token or None, accepted=0)


def editor(tx: Tx, credentials: Credentials, project: int) -> Manager:
    """The manager that comes with these credentials, if it has EDIT in the project. 401, 404, 403."""
    caller = identify(tx, credentials)
    check_access(tx, caller, find_project(tx, project), EDIT)
    tx.limits.check_disk()
    return caller.manager


def accept_lines_submit(tx: Tx, credentials: Credentials, operation: int, report: shapes.LinesReport) -> None:
    """From this commit on all lines that were not refused will be submitted. The caller is checked once more.

    A worker pays the project's submit rate for all these tasks, and may begin when a single one would be let through.
    """
    project = tx.one("SELECT project FROM operation WHERE id = ?", (operation,))["project"]
    count = report.line_count - report.refused_count
    if isinstance(credentials, WorkerCredentials):
        charge_submit(tx, submitter(tx, credentials, project), count)
    else:
        acts.record(tx, editor(tx, credentials, project).id, "submit_lines", project, tasks=count)
    tx.execute(
        "UPDATE operation SET accepted = 1, expected = ?, report = ? WHERE id = ?",
        (count, encode(report).decode(), operation),
    )


def unaccepted_bulk_submits(tx: Tx) -> list[int]:
    return [row["id"] for row in tx.all("SELECT id FROM operation WHERE finished IS NULL AND NOT accepted")]


def discard_bulk_pieces(tx: Tx, operation: int) -> bool:
    """Forgets some pieces of a bulk submit that nobody was told about, at last the whole. Whether more is left."""
    deleted = tx.execute(
        "DELETE FROM bulk_piece WHERE operation = ?1 AND number IN"
        " (SELECT number FROM bulk_piece WHERE operation = ?1 LIMIT 16)",
        (operation,),
    ).rowcount
    if not deleted:
        tx.execute("DELETE FROM operation WHERE id = ?", (operation,))
    return deleted > 0


def insert_operation(tx: Tx, kind: str, project: int, manager: int | None = None, **columns: Any) -> int:
    """A new operation of a manager, or of a worker (None), which is named where it may ask for it later."""
    if kind in ("bulk_submit", "submit_lines"):
        budgets.check_room_in(tx, project, budgets.OPERATION_SIZE)
    else:
        budgets.make_room_for_operation(tx, project)
    if manager and columns.get("accepted", 1) and kind != "delete_project":  # those are noted elsewhere
        acts.record(tx, manager, kind, project, which=columns.get("wanted"))
    row = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'task'")
    columns |= {"kind": kind, "project": project, "manager": manager, "last_task": row["seq"] if row else 0}
    columns |= {"started": tx.time, "started_uptime": tx.uptime}
    return tx.insert("operation", columns)["id"]


@needs(MAINTENANCE)
def begin_reset(tx: Tx, caller: Caller, project: sqlite3.Row, kind: str) -> int:
    """Begins reset_failed, reclaim_assigned or hard_reset of a project."""
    if kind != "hard_reset":
        action = RESETS[kind]
        return begin_action(tx, caller, project, TaskAction(action), TaskFilter(ACTIONS[action].state))
    expected = sum(count_in_state(project, state) for state in TASK_STATES)
    return insert_operation(tx, kind, project["id"], caller.manager.id, expected=expected)


@needs(LOGIN, of=PROJECT, says="An admin; a manager with all roles in a project that it made, or that no admin trusts.")
def begin_deletion(tx: Tx, caller: Caller, project: sqlite3.Row, kind: str = "") -> int:
    """Takes a project away from everybody, and begins to delete what is in it."""
    return deletion().begin(tx, caller, project)


def begin_action(tx: Tx, caller: Caller, project: int, body: TaskAction, wanted: TaskFilter) -> int:
    """Begins to do the same to all tasks that are in a list now."""
    row = check_action(tx, caller, project, body)
    whole = wanted == TaskFilter(wanted.state)
    return insert_operation(
        tx,
        body.action,
        row["id"],
        caller.manager.id,
        wanted=encode(wanted).decode(),
        priority=body.priority,
        expected=count_in_state(row, wanted.state) if whole else None,
    )


def count_in_state(project: sqlite3.Row, state: str) -> int:
    return project[COUNTED[state]]


def get_operation(tx: Tx, caller: Caller, operation: int) -> sqlite3.Row:
    """An operation, going on or finished. For who has begun it, and for managers with READ in its project."""
    if caller.worker is None:
        logged_in(caller)
    missing = TrackerError("not_found", f"No operation {operation}, or it is finished and forgotten")
    row = tx.one(
        "SELECT o.*, m.username, coalesce(m.username, 'worker ' || w.id || ' (' || w.alias || ')') AS maker"
        " FROM operation o LEFT JOIN manager m ON m.id = o.manager LEFT JOIN worker w ON w.id = o.worker"
        " WHERE o.id = ?",
        (operation,),
    )
    if row is None or row["maker"] is None or (caller.worker and row["worker"] != caller.worker.id):
        raise missing
    theirs = caller.role(row["project"]) or row["kind"] == "delete_project"
    if caller.manager and (row["manager"] != caller.manager.id or not theirs):
        check_access(tx, caller, find_project_row(tx, row["project"]), READ, missing)
    return row


@needs(LOGIN, worker=SUBMIT, by_itself=True, says="The worker or manager that began it; managers with READ there.")
def show_operation(tx: Tx, caller: Caller, operation: int) -> shapes.LongOperation:
    """How far a long operation is, and what has become of it.

    It is kept after its end for the time of the setting `history_retention`; that of submitted lines, for a day at
    least.
    """
    row = get_operation(tx, caller, operation)
    state = "running" if row["finished"] is None else "finished"
    report = as_raw(row["report"]) if row["kind"] == "submit_lines" else None
    return shaped(shapes.LongOperation, row, state=state, report=report)


def unfinished_operations(tx: Tx) -> list[int]:
    return [row["id"] for row in tx.all("SELECT id FROM operation WHERE finished IS NULL AND accepted ORDER BY id")]


FAR = 4e-5  # seconds to look up a hash: in memory it takes less, on a disk more
LOOK_UP_HASHES = """
    SELECT count(kept.hash64), count(task.id)
    FROM json_each(:hashes) LEFT JOIN kept_hash AS kept ON kept.project = :project AND kept.hash64 = value
        LEFT JOIN task ON task.project = :project AND task.hash64 = value
"""


def first_piece(tx: Tx, operation: int) -> int | None:
    return tx.one("SELECT min(number) FROM bulk_piece WHERE operation = ?", (operation,))[0]


def warm_pieces(tx: Tx, operation: int, number: int, every: int) -> int:
    """Looks up the hashes of some pieces of a bulk submit, from `number` on: the writer then finds them in memory.

    The number of the piece that is next; a very high one when there is none. Where a few are found quickly, or there
    are none, the next pieces are passed over.
    """
    find = "SELECT tasks, project FROM bulk_piece JOIN operation ON id = operation WHERE operation = ? AND number = ?"
    while row := tx.one(find, (operation, number)):
        number += every
        hashes = hashes_of(row["tasks"])
        if not are_far(tx, row["project"], hashes[:10]):
            number += 10 * every
        else:
            are_far(tx, row["project"], hashes[10:])
        if tx.spent() >= tx.STEP_SECONDS:
            return number
    return INT64_MAX


def hashes_of(tasks: bytes) -> list[int]:
    """The hashes of the tasks of a piece."""
    if tasks.startswith(b"{"):
        return []  # of an imported project, and none of its tasks
    if tasks.count(b",null]") > tasks.count(b"],["):
        return []  # none has one: this is seen much quicker than they are decoded
    found = (
        row[DUE - 1 if isinstance(row[1], str) else DUE] for row in msgspec.json.decode(tasks)
    )  # after line's number
    return [hash64 for hash64 in found if hash64 is not None]


def are_far(tx: Tx, project: int, hashes: list[int]) -> bool:
    """Looks up hashes. Whether that took longer than it does in memory."""
    began = tx.spent()
    tx.one(LOOK_UP_HASHES, {"hashes": encode(hashes).decode(), "project": project})
    return bool(hashes) and tx.spent() - began > FAR * len(hashes)


@reads_no_counts
def step_operation(tx: Tx, operation: int, last: int = INT64_MAX) -> int | None:
    """Carries out the next pieces of an operation. None: more is left; else how many tasks it affected in all.

    Of a bulk submit none that follows the piece `last`.
    """
    row = dict(tx.one("SELECT * FROM operation WHERE id = ?", (operation,)))
    while row["finished"] is None:
        affected, row["cursor"] = STEPS[row["kind"]](tx, row)
        row["affected"] += affected
        if row["cursor"] is None:
            return finish_operation(tx, row)
        if row["cursor"] == last or tx.time_is_up():
            tx.execute("UPDATE operation SET affected = :affected, cursor = :cursor WHERE id = :id", row)
            return None
    return row["affected"]  # it was stopped


def stop_operation(tx: Tx, caller: Caller, operation: int) -> None:
    """Ends an action on many tasks: what it has done stays. Anything else that is going on was promised as a whole."""
    row = get_operation(tx, caller, operation)
    check_access(tx, caller, find_project_row(tx, row["project"]), ACTION_NEEDS.get(row["kind"], MAINTAINS).role)
    if row["kind"] not in ACTIONS or row["finished"] is not None:
        raise TrackerError("conflict", "it has ended already, or cannot be stopped half-way", "operation")
    acts.record(tx, caller.manager.id, "stop_operation", row["project"], id=operation, kind=row["kind"])
    finish_operation(tx, dict(row))


def finish_operation(tx: Tx, row: dict[str, Any]) -> int:
    """An operation is kept for a while, to be looked at; who began a bulk submit has its answer."""
    if row["manager"] is None and row["worker"] is None:
        tx.execute("DELETE FROM operation WHERE id = :id", row)
    else:
        finished = "UPDATE operation SET affected = :affected, finished = :now WHERE id = :id"
        tx.execute(finished, {**row, "now": tx.time})
    return row["affected"]


TAKE_PIECE = """
    DELETE FROM bulk_piece
    WHERE operation = :id AND number = (SELECT min(number) FROM bulk_piece WHERE operation = :id)
    RETURNING number, tasks, (SELECT keep_hashes FROM project WHERE id = :project) AS keep_hashes,
        (SELECT trusted FROM project WHERE id = :project) AS trusted
"""


def next_piece(tx: Tx, operation: dict[str, Any]) -> tuple[int, list, tuple[bool, bool]] | None:
    """Takes the next piece of a bulk submit: its number, tasks, whether their project keeps hashes and is trusted."""
    row = tx.one(TAKE_PIECE, operation)
    return row and (row["number"], msgspec.json.decode(row["tasks"]), (row["keep_hashes"], row["trusted"]))


def step_bulk_submit(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    if (piece := next_piece(tx, operation)) is None:
        return 0, None
    number, tasks, kind = piece
    return insert_tasks(tx, tasks, operation["project"], *kind), number


def step_submit_lines(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    """Like step_bulk_submit, but each task has its line's number in front, and duplicates are reported by it."""
    if (piece := next_piece(tx, operation)) is None:
        return 0, None
    number, lines, kind = piece
    if all(task[DUE] is None for task in lines):  # without a hash none is a duplicate: one statement stores them all
        return insert_tasks(tx, [task for _, *task in lines], operation["project"], *kind), number
    duplicates = [line for line, *task in lines if not insert_task(tx, NewTask(*task), *kind)]
    if duplicates:
        report = msgspec.json.decode(operation["report"], type=shapes.LinesReport)
        report.duplicate_count += len(duplicates)
        report.duplicates = (report.duplicates + duplicates)[:MOST_REPORTED]
        operation["report"] = encode(report).decode()
        tx.execute("UPDATE operation SET report = :report WHERE id = :id", operation)
    return len(lines) - len(duplicates), number


def step_action(tx: Tx, operation: dict[str, Any]) -> tuple[int, str | None]:
    wanted = msgspec.json.decode(operation["wanted"], type=TaskFilter)
    rows, more = find_tasks(
        tx,
        operation["project"],
        wanted,
        operation["cursor"],
        STEP_TASKS,
        tx.STEP_SECONDS,
        operation["last_task"],
        columns="id, recipe",  # of long ones that are few: see searching.few
    )
    tasks = [row["id"] for row in rows]
    affected = apply_action(
        tx, operation["project"], operation["kind"], operation["priority"], tasks, operation["started_uptime"]
    )
    return affected, more or None


def step_hard_reset(tx: Tx, operation: dict[str, Any]) -> tuple[int, int | None]:
    """Deletes some tasks of the project (cursor 0), then, when none is left, some of its kept hashes (cursor 1)."""
    values = {"project": operation["project"], "last": operation["last_task"], "limit": STEP_TASKS}
    for state in () if operation["cursor"] else TASK_STATES.values():
        where = f"project = :project AND {state.condition} AND id <= :last"
        left = f"SELECT id, recipe FROM task WHERE {where} LIMIT :limit"
        if tasks := few(tx, left, values):
            return delete_and_cancel(tx, THESE, {"tasks": encode(tasks).decode()}), 0
    hashes = tx.execute(
        "DELETE FROM kept_hash WHERE project = :project AND hash64 IN"
        " (SELECT hash64 FROM kept_hash WHERE project = :project LIMIT :limit)",
        values,
    ).rowcount
    budgets.weigh(tx, operation["project"], -budgets.HASH_SIZE * hashes)
    return 0, 1 if hashes else None


STEPS: dict[str, Callable[[Tx, dict[str, Any]], tuple[int, Any]]] = {
    "bulk_submit": step_bulk_submit,
    "submit_lines": step_submit_lines,
    **dict.fromkeys(ACTIONS, step_action),
    "hard_reset": step_hard_reset,
    "delete_project": lambda tx, operation: deletion().step(tx, operation),
}


async def discard(db: Database, operation: int) -> None:
    while await db.write(discard_bulk_pieces, operation, long=True):
        pass


# ── Monitoring ────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_LAST_SNAPSHOTS = 1000
MOST_SNAPSHOTS = 10_080  # a week at the default interval


@needs(SEES)
def get_snapshots(tx: Tx, caller: Caller, project: sqlite3.Row, query: shapes.LastSnapshots) -> list[shapes.Snapshot]:
    """The last snapshots of a project, the newest first."""
    newest = "SELECT * FROM snapshot WHERE project = ? AND time_stamp <= ? ORDER BY time_stamp DESC LIMIT ?"
    return [shaped(shapes.Snapshot, row) for row in tx.all(newest, (project["id"], tx.time, query.count))]


@needs(SEES)
def get_snapshots_between(
    tx: Tx, caller: Caller, project: sqlite3.Row, query: shapes.SnapshotsBetween
) -> list[shapes.Snapshot]:
    """The snapshots of a project between two moments, both included, the newest first. Of many, the newest 10,080."""
    rows = tx.all(
        "SELECT * FROM snapshot WHERE project = ? AND time_stamp BETWEEN ? AND ? ORDER BY time_stamp DESC LIMIT ?",
        (project["id"], query.start, query.end, MOST_SNAPSHOTS),
    )
    return [shaped(shapes.Snapshot, row) for row in rows]


@needs(SEES)
def get_assignees(tx: Tx, caller: Caller, project: sqlite3.Row) -> list[shapes.Assignee]:
    """Who holds the most tasks of a project now; those that nobody holds are under `unassigned`."""
    rows = tx.all(
        "SELECT w.alias AS assignee, t.held_task_count AS task_count FROM tally t JOIN worker w ON w.id = t.worker"
        " WHERE t.project = ? AND t.held_task_count > 0 ORDER BY t.held_task_count DESC, w.id LIMIT 16",
        (project["id"],),
    )
    assignees = [shaped(shapes.Assignee, row) for row in rows]
    if unassigned := sum(
        project[name] for name in COUNT_COLUMNS if name not in ("assigned_task_count", "closed_task_count")
    ):
        assignees.append(shapes.Assignee("unassigned", unassigned))
    return sorted(assignees, key=lambda one: -one.task_count)[:16]


def forget_nobodies(tx: Tx, after: int, what: str) -> int | None:
    """Forgets some of the workers, or managers, after this one that have no part in anything, while there are many."""
    needed = [one for needed in hooks(f"needed_{what}") for one in needed(tx)]
    return budgets.forget(tx, what, after, encode(needed).decode())


forget_workers, forget_managers = (functools.partial(forget_nobodies, what=what) for what in ("workers", "managers"))


# ── Background work ───────────────────────────────────────────────────────────────────────────────────────────────────

EXPIRY_INTERVAL = 0.5  # seconds; a task is back well within two seconds of its deadline
TALLY_INTERVAL = 60.0  # so exactly an hour's tasks are told apart from the next one's
PRUNE_INTERVAL = 600.0
SPACE_INTERVAL = 60.0
PRUNE_DELAY = 300.0  # after the start: a clock may be set right, or somebody may see that it is not
DISK_INTERVAL = 1.0


class Tracker:
    """A running tracker: its settings, database and waiting workers, and the work that goes on behind the requests."""

    def __init__(self, settings: Settings, clock: Clock | None = None):
        self.settings = settings
        self.clock = clock or Clock()
        self.named_origins = frozenset(self.settings.cors_origins) - {"*"}
        self.waiters = Waiters(min(settings.max_waits, room_for(settings.max_connections) * 3 // 4))
        self.polls = Polls(settings.max_empty_polls, time.monotonic)
        self.db = Database(settings, self.clock, self.waiters.announce)
        self.limits, self.turns, self.meter = self.db.limits, self.db.turns, self.db.meter
        self.hosts = browsers.Hosts(settings.allowed_hosts)
        self.guesses = Guesses()
        self.sent, self.shown = forms.Sent(), forms.Lately(60.0)
        self.crowds = forms.Lately(10.0)  # pages of public projects for volunteers
        self.logins, self.aside, self.relay = Places(settings.max_logins), Aside(), webhooks.Relay()
        self.limits.gauges |= {"max_waits": self.waiters.shares.gauge, "max_logins": self.logins.gauge}
        self.code = ""  # with which the first account may be made from anywhere
        self._tasks: set[asyncio.Task] = set()
        self._operations: set[asyncio.Task[int]] = set()
        self._hour = int(self.clock.time()) // 3600
        self._stopping = self._stopped = False

    async def start(self) -> None:
        """Opens the database, finishes what a crash has interrupted, starts the background work."""
        await self.db.open()
        try:
            await self._begin_work()
        except BaseException:
            await self.db.close()
            raise

    async def _begin_work(self) -> None:
        self.log_lines = open_log_file(self.settings)
        key = await self.db.write(load_meta, "cookie_key", new_secret)
        self.signer = itsdangerous.Signer(key, salt="tracker.session")
        self.form_signer = itsdangerous.Signer(key, salt="tracker.form")
        self.message_signer = itsdangerous.Signer(key, salt="tracker.message")
        self.browser_signer = itsdangerous.Signer(key, salt="tracker.browser")
        self.code = "" if await self.db.read(any_admin) else secrets.token_urlsafe(12)
        await self.catch_up()
        for operation in await self.db.read(unaccepted_bulk_submits):
            await discard(self.db, operation)
        for operation in await self.db.read(unfinished_operations):
            self.begin_operation(operation)
        self.notices = notices.Notices(self.db)
        self._repeat(notices.INTERVAL, self.notices.look)
        self._repeat(DISK_INTERVAL, self.look_at_disk)
        self._repeat(EXPIRY_INTERVAL, self.expire)
        self._repeat(UPTIME_INTERVAL, self.remember_uptime)
        self._repeat(self.settings.snapshot_interval, self.snapshot)
        self._repeat(TALLY_INTERVAL, self.roll_tallies)
        self._repeat(TALLY_INTERVAL, self.forget_pauses)
        self._repeat(SPACE_INTERVAL, self.db.space.shrink)
        self._repeat(PRUNE_INTERVAL, self.prune, min(PRUNE_DELAY, PRUNE_INTERVAL))

    async def catch_up(self) -> None:
        """When a dialect was not there while a tracker ran on this file, they learn of what was missed."""
        known = await self.db.write(known_dialects)
        if set(installed_dialects()) - set(known):
            for catch_up in hooks("catch_up"):
                await catch_up(self)
            await self.db.write(note_dialects, installed_dialects())

    def begin_stop(self) -> None:
        """Nobody waits for a task any longer, and long operations end after the piece in hand: requests can finish."""
        self._stopping = True
        self.waiters.close()

    async def stop(self) -> None:
        """Ends the background work between two of its transactions, and closes the database."""
        self.begin_stop()
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._operations, return_exceptions=True)
        with contextlib.suppress(TrackerError):  # else the next start would count this hour's tasks as its own
            await self.close_hour()
        await self.db.close()
        self.logins.close()
        self.aside.close()
        for handler in self.log_lines.handlers:
            handler.close()

    def _repeat(self, interval: float, work: Callable[[], Awaitable[None]], delay: float = 0) -> None:
        async def forever() -> None:
            await asyncio.sleep(delay)
            while True:
                try:
                    await work()
                except Exception as error:  # it is tried again
                    fault(error, work.__name__)
                await asyncio.sleep(interval)

        self._tasks.add(asyncio.create_task(forever()))

    async def expire(self) -> None:
        for sweep in (expire_tasks, wake_tasks):
            while await self.db.write(sweep, long=True):  # costs no fsync when there are none
                pass

    async def remember_uptime(self) -> None:
        if await self.db.read(any_lease):
            await self.db.write(save_uptime)

    async def look_at_disk(self) -> None:
        await asyncio.to_thread(self.limits.look_at_disk, self.db.path.parent)

    async def snapshot(self) -> None:
        time_stamp, last = int(self.clock.time()), 0
        while last is not None:
            last = await self.db.write(take_snapshots, last, time_stamp, long=True)

    async def roll_tallies(self) -> None:
        """When an hour is over, its tasks are moved into tally_hour."""
        hour = int(self.clock.time()) // 3600
        if hour == self._hour:
            return
        await self.close_hour()
        self._hour = hour

    async def forget_pauses(self) -> None:
        await self.db.write(pauses.forget_pauses, long=True)

    async def close_hour(self) -> None:
        after = (0, 0)
        while after is not None:
            after = await self.db.write(roll_tallies, after, self._hour, long=True)

    async def prune(self) -> None:
        for forget in (prune_jobs, budgets.forget_requests, forget_workers, forget_managers):
            last = 0
            while last is not None:
                last = await self.db.write(forget, last, long=True)
        for table in PRUNE:
            while await self.db.write(prune, table, long=True):
                pass
        for dialect in dialects():
            if hasattr(dialect, "prune"):
                await dialect.prune(self)

    def begin_operation(self, operation: int, answered: bool = False) -> asyncio.Future[int]:
        """Carries out an operation in the background; the future becomes the number of affected tasks.

        Waiting for it may be given up; the operation itself goes on, after a restart too.
        """
        task = asyncio.create_task(self._carry_out(operation, answered))
        self._operations.add(task)
        task.add_done_callback(self._operation_done)
        done = asyncio.shield(task)
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # perhaps nobody looks
        return done

    def _operation_done(self, task: asyncio.Task[int]) -> None:
        self._operations.discard(task)
        if not task.cancelled() and task.exception():
            log.info("%s", task.exception())

    async def _carry_out(self, operation: int, answered: bool) -> int:
        pauses = retry_pauses()
        with contextlib.closing(Warming(self.db, operation, first_piece, warm_pieces)) as warming:
            while not (self._stopped if answered else self._stopping):
                try:
                    last = await warming.last()
                    if (affected := await self.db.write(step_operation, operation, last, long=True)) is not None:
                        return affected
                except TrackerError as error:
                    log.warning("Operation %d has to wait: %s", operation, error)
                    await asyncio.sleep(next(pauses))
        raise TrackerError("unavailable", "The tracker is stopping; what it had begun is finished at its next start")


# ── HTTP plumbing ─────────────────────────────────────────────────────────────────────────────────────────────────────

JSON_HEADERS = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
JSON_FIELDS = Fields(JSON_HEADERS)


Answer = Callable[[dict, Callable, Callable], Awaitable[None]]  # it sends itself: a Reply, a Response of Starlette's


class Reply(NamedTuple):
    """An answer: what goes into the envelope, or nothing at all for status 204."""

    content: Any = None
    ok: bool = True
    message: str | None = None
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ()
    error: TrackerError | None = None
    reason: str = ""
    unread: Callable[[], None] | None = None  # is called if the client has gone, where our own server can tell
    in_vain: bool = False  # it has changed nothing, though nothing was wrong

    def body(self) -> bytes:
        if self.status == 204:
            return b""
        envelope: dict[str, Any] = {"ok": self.ok}
        if self.message is not None:
            envelope["message"] = self.message
        if self.error is not None:
            envelope |= refusal_members(self.error)
        if self.reason:
            envelope["reason"] = self.reason
        if self.content is not None:
            envelope["content"] = self.content
        return encode(envelope)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Sends it, as an ASGI application."""
        body = self.body()
        if cycle := plain_cycle(send):
            return await write_at_once(cycle, self.status, JSON_FIELDS.written, self.headers, body, self.unread)
        if self.unread:
            return await hand_out(self._replace(unread=None), self.unread, scope, receive, send)
        headers = [*JSON_HEADERS, *self.headers]
        if self.status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def refusal_members(error: TrackerError) -> dict[str, Any]:
    """What a program reads of a refusal: its code, the field that it is about, and when to come again."""
    delay = {} if error.delay is None else {"rate_limit_delay": error.delay}
    return {**delay, "code": error.code, **({"field": error.field} if error.field else {})}


def error_headers(error: TrackerError) -> dict[str, str]:
    """What an error says in headers, at every door: when to come again (in whole seconds), or how to ask."""
    headers = {}
    if error.delay is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.delay)))
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = allowing(error.allowed)
    if error.code == "unsupported":
        headers["accept-encoding"] = "gzip, identity"
    return headers


def allowing(methods: Iterable[str]) -> str:
    """The header Allow of a path that has these methods: what can be got, HEAD looks at; OPTIONS asks for this."""
    methods = {"OPTIONS", *methods}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def error_reply(error: TrackerError) -> Reply:
    """How every error looks: {"ok": false, "message": …, "code": …}, and Retry-After where it helps."""
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    return Reply(ok=False, message=error.message, status=STATUS[error.code], headers=headers, error=error)


def client_address(call: Call) -> str:
    return (call.scope.get("client") or ("unknown", 0))[0]


ENTRANCES = ("/login", "/register")


class Call(Incoming):
    """One request, decoded piece by piece as a handler asks for it.

    Each door (the JSON API, the pages, a dialect) has its kind of Call, whose `refuse` is the form of its refusals.
    """

    __slots__ = ("tracker",)

    door = "api"  # what its kind of requests is called where they are counted
    is_page = False  # for people who have logged in
    minds: Literal["changes", "all", "nothing"] = "changes"  # which requests no other site's page may cause

    def __init__(self, scope: dict, receive: Callable, tracker: Tracker):
        super().__init__(scope, receive)
        self.tracker = tracker

    async def refuse(self, error: TrackerError) -> Answer:
        return error_reply(error)

    def worker(self) -> WorkerCredentials:
        """The credentials in X-Worker-ID and X-Secret. 401 when they cannot be any worker's."""
        worker, secret = None, None
        for key, value in self.scope["headers"]:
            if key == b"x-worker-id":
                worker = value
            elif key == b"x-secret":
                secret = value
        if worker is None or secret is None or not worker.isdigit() or len(worker) > 18:
            raise TrackerError("unauthorized", "Headers X-Worker-ID (the worker's number) and X-Secret are required")
        return WorkerCredentials(int(worker), secret, None, self.source)

    @property
    def waits_at(self) -> str:
        """The address to which its wait counts."""
        return self.source

    def session(self) -> bytes | None:
        """The session id in the cookie, if this tracker signed it."""
        return self.session_and_origin()[0]

    def session_and_origin(self) -> tuple[bytes | None, bytes]:
        """The same, and the origin that the session is bound to; as a rule none."""
        for cookie in self.own_cookies():
            with contextlib.suppress(itsdangerous.BadSignature):
                session, _, origin = self.tracker.signer.unsign(cookie).partition(b"@")
                return session, origin
        return None, b""

    def cookie_name(self, of: str = "") -> str:
        """What our cookie is called. Under TLS no other host or path can set one of such a name."""
        settings = self.tracker.settings
        alone = self.scope.get("scheme") == "https" and not settings.root_path
        return ("__Host-" if alone else "") + settings.cookie_name + of

    def own_cookies(self, of: str = "") -> Iterator[bytes]:
        return self.cookies(self.cookie_name(of))

    def worker_or_session(self) -> WorkerCredentials | bytes | None:
        return self.worker() if self.header(b"x-worker-id") else self.session()

    def told(self) -> dict[bytes, bytes]:
        """The headers by their names."""
        return dict(self.scope["headers"])

    def guard(self, reads: bool) -> None:
        """Refuses what no page may make a browser do here. Called for each request, before anything is done."""
        hosts = self.tracker.hosts
        if self.scope["method"] != "HEAD" and not hosts.serve(self.header(b"host") or b""):  # monitors may look
            hosts.check(self.told(), by_session=self.is_page or next(self.own_cookies(), None) is not None)
        if self.minds == "all" or (self.minds == "changes" and not reads):
            self.refuse_other_sites(reads)

    def refuse_other_sites(self, reads: bool = False) -> None:
        """Refuses a request that another site's page made the browser send, with our cookie but against our will."""
        if refusal := self.other_site(reads):
            raise refusal

    def other_site(self, reads: bool = False) -> TrackerError | None:
        """Why that is refused, if it is such a request.

        Where nothing tells whose page it was, a browser may read, or send a form: those of pages have a token.
        """
        headers = self.told()
        sender = browsers.sent_by(headers)
        silent = sender == "nobody" and (reads or self.scope["method"] != "GET" or not browsers.is_browser(headers))
        if sender == "us" or silent or self.may_come_from(browsers.origin_of(headers) or b"", headers):
            return None
        return browsers.caused_by_another_site(headers)

    def may_come_from(self, source: bytes, headers: browsers.Headers) -> bool:
        """Whether pages of this origin may cause the request, although it is not that of Host.

        Those of cors_origins may; that from which the session comes, by way of a proxy that drops the port; and with
        `"*"`, or a worker's credentials, any where no login is used.
        """
        entering = self.scope["path"].endswith(ENTRANCES)
        through_proxy = (entering and browsers.lacks_port(headers)) or self.session_and_origin()[1] == source != b""
        if source.decode("latin-1") in self.tracker.named_origins:
            return True
        if through_proxy and b"sec-fetch-site" not in headers:
            return True
        with_login = self.minds == "changes" and (entering or next(self.own_cookies(), None) is not None)
        if with_login or self.minds == "all":
            return False
        return "*" in self.tracker.settings.cors_origins or b"x-worker-id" in headers

    def comes_from_named_origin(self) -> bool:
        """Whether a page of one of cors_origins sent the request."""
        return (self.header(b"origin") or b"").decode("latin-1") in self.tracker.named_origins

    def is_owner(self, code: str) -> bool:
        """Whether the tracker's owner is likely to have sent the request: from its own machine, or with the code."""
        right = self.tracker.code and hmac.compare_digest(code.strip().encode(), self.tracker.code.encode())
        return bool(right) or self.is_local

    @property
    def is_local(self) -> bool:
        return browsers.is_local(self.scope.get("client"), self.told())

    def known_browser(self, username: str) -> str:
        """The mark of a browser that has logged in with this name before, a dot, and the stamp of the password then.

        Empty: it has not.
        """
        for cookie in itertools.islice(self.own_cookies("-browser"), 5):
            with contextlib.suppress(itsdangerous.BadSignature):
                name, _, mark = self.tracker.browser_signer.unsign(cookie).partition(b".")
                if name == username.lower().encode().hex().encode():
                    return mark.decode()
        return ""

    @property
    def guesser(self) -> Guesser:
        """Who tries secrets, if it is one who guesses."""
        return Guesser(self.tracker.guesses, browsers.network_of(client_address(self)))

    @property
    def base(self) -> str:
        """Where the caller sees the tracker: a URL without a slash at its end. What is no host is not repeated."""
        host = (self.header(b"host") or b"").decode("latin-1")
        host = host if len(host) < 260 and re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", host) else "localhost"
        return f"{self.scope['scheme']}://{host}{self.tracker.settings.root_path}"

    def path_id(self, name: str) -> int:
        text = self.scope["path_params"][name]
        if not (text.isascii() and text.isdigit()):
            raise TrackerError("invalid", "must be a whole number", name)
        if len(digits := text.lstrip("0")) > 18:  # no id is that large
            raise TrackerError("not_found", f"No {name} {digits[:40]}")
        return int(digits or 0)

    def path_value(self, name: str) -> int | str:
        """What stands in the path: a job's token, or else the id of something."""
        if name != "job":
            return self.path_id(name)
        token = self.scope["path_params"][name]
        if not re.fullmatch(shapes.TOKEN, token):
            raise TrackerError("not_found", "There is no such job")
        return token

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body. 413 as soon as it is known to exceed the limit (in KiB; as a rule the setting max_body)."""
        return await self.read_body(limit or self.tracker.settings.max_body)

    async def decoded(self, body: bytes, decode: Callable, *args: Any) -> Any:
        """What the function makes of the body."""
        return await self.tracker.aside.decoded(self.source, body, decode, *args)

    async def json(self, kind: Any, limit: int | None = None) -> Any:
        most = self.tracker.settings.max_body
        return await self.decoded(await self.body(min(limit or most, most)), decode, kind)

    async def rest(self, seconds: float) -> None:
        """Returns after so many seconds, or when the client has gone, or the tracker stops."""
        if seconds > 0:
            gone = asyncio.ensure_future(self.gone())
            await self.tracker.waiters.rest(seconds, gone, self.waits_at)
            gone.cancel()


class Endpoint:
    """An ASGI application around a handler `async (call) -> Answer`. Request and Response objects cost too much.

    It is the same at every door: `kind` is the door's kind of Call. What nobody has foreseen is logged here. `reads`:
    it changes nothing, as a rule what a GET does; `by_secret`: it is for whoever has a secret, be it a page; `route` is
    what its answers are counted as.
    """

    def __init__(
        self,
        tracker: Tracker,
        handler: Callable[[Call], Awaitable[Answer]],
        kind: type[Call] = Call,
        reads: bool | None = None,
        by_secret: bool = False,
        route: str = "",
    ):
        self.tracker, self.handler, self.kind, self.reads, self.by_secret = tracker, handler, kind, reads, by_secret
        self.answers = tracker.meter.answers[route or kind.door]
        self.packs = kind.door in ("api", "page", "monitor") and not route

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        call = self.kind(scope, receive, self.tracker)
        works_for.set(site_of(call.source))
        try:
            if not self.by_secret:
                call.guard(scope["method"] in ("GET", "HEAD") if self.reads is None else self.reads)
            answer = await self.handler(call)
        except TrackerError as error:
            answer = await call.refuse(error)
            error.__traceback__ = None  # what it came through holds the answer, which holds it: only for the collector
        except Exception as error:
            answer = await call.refuse(fault(error, f"{scope['method']} {scope['path']}"))
        if scope["method"] == "HEAD" and isinstance(answer, Stream):
            answer.body_iterator = no_body()
        self.answers[counted(answer)] += 1
        if self.packs:
            answer = await pack(answer, scope, JSON_HEADERS)
        try:
            await answer(scope, receive, send)
        except ClientDisconnect:  # nobody is there any more, or an answer that has begun must be broken off
            return
        except (TrackerError, OSError, sqlite3.Error) as error:  # the same
            fault(error, f"{scope['method']} {scope['path']}")

    def methods_at(self, scope: dict) -> Iterable[str] | None:
        """The methods of this path, where its handler says them."""
        return getattr(self.handler, "methods", None)


async def no_body() -> AsyncIterator[bytes]:
    """What follows the head of an answer to HEAD, however long it is for a GET."""
    return
    yield


def by_method(handlers: dict[str, Callable[[Any], Awaitable[Answer]]]) -> Callable[[Any], Awaitable[Answer]]:
    """The handler of a path that takes every method: each has its own, and the others are refused in the door's form.

    HEAD is answered like GET. Where a GET takes something, or sets it off, it needs a handler of its own: `looked_at`.
    """
    known = {"HEAD": handlers["GET"], **handlers} if "GET" in handlers else handlers

    async def handle(call: Call) -> Answer:
        method = call.scope["method"]
        if method not in known:
            raise MethodNotAllowed(method, handlers)
        return await known[method](call)

    handle.methods = tuple(handlers)
    return handle


def looked_at(content_type: bytes = b"application/json") -> Callable[[Call], Awaitable[Answer]]:
    """The handler of HEAD where a GET takes something, or sets it off: it tells that it is there, and nothing happens.

    Nobody's credentials are looked at, as nobody learns or changes anything.
    """

    async def answer(scope: dict, receive: Callable, send: Callable) -> None:
        headers = [(b"content-type", content_type), *JSON_HEADERS[1:]]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    async def handler(call: Call) -> Answer:
        return answer

    return handler


Steps = Generator[Any, Any, "Reply"]


def direct(function: Callable[[Call, bytes], Steps]) -> Callable[[Call], Awaitable[Reply]]:
    """The handler of a hot call, which our own server also carries out without ASGI, by HotCall.

    `function(call, body)` yields what is to be done, and gets what came of it: `(function, *args)` for the writer, or
    anything to be awaited. It returns the answer.
    """

    @functools.wraps(function)
    async def handler(call: Call) -> Reply:
        steps = function(call, await call.body() if call.scope["method"] == "POST" else b"")
        advance, value = steps.send, None
        while True:
            try:
                step = advance(value)
            except StopIteration as end:
                return end.value
            try:
                value = await (call.tracker.db.write(*step) if type(step) is tuple else step)
                advance = steps.send
            except Exception as error:
                advance, value = steps.throw, error

    handler.steps = function
    return handler


class HotPath(NamedTuple):
    """A path of a hot call: the name of the id at its end, its steps, who takes them, and what else answers say.

    `shared` has the headers for pages of other origins, of what was asked and answered; None where there are no such.
    """

    method: str
    path: str
    name: str
    steps: Callable[[Call, bytes], Steps]
    tracker: Tracker
    shared: Callable[[dict, dict], Sequence[tuple[bytes, bytes]]] | None
    answers: Counter[int]


class HotCall(Direct, Call):
    """A hot call that is carried out without ASGI: the writer tells it, in the place of a future, what it has done."""

    source = ""  # none of them logs or registers

    def __init__(self, hot: HotPath, ids: dict[str, str], query: bytes, *request: Any):
        Direct.__init__(self, *request)
        self.hot, self.tracker = hot, hot.tracker
        headers = self.protocol.headers
        self.scope = {"method": hot.method, "headers": headers, "query_string": query, "path_params": ids}

    @property
    def waits_at(self) -> str:
        return self.protocol.clients.source_of(self.protocol.client, self.scope["headers"])

    def worker(self) -> WorkerCredentials:
        """The connection remembers the last credentials: most have one worker behind them."""
        given = self.headers.get(b"x-worker-id"), self.headers.get(b"x-secret")
        known = self.protocol.remembered
        if known is None or known[0] != given:
            credentials = super().worker()
            known = given, credentials._replace(secret_hash=digest(credentials.secret))
            self.protocol.remembered = known
        return known[1]

    def begin(self) -> None:
        self.steps = self.hot.steps(self, self.raw_body)
        self.take_step(self.steps.send, None)

    def done(self) -> bool:
        """What it wants is done also when its client has gone: a release, say."""
        return False

    def set_result(self, result: Any) -> None:
        self.take_step(self.steps.send, result)

    def set_exception(self, error: BaseException) -> None:
        self.take_step(self.steps.throw, error)

    def take_step(self, advance: Callable, value: Any) -> None:
        """Goes on with what came of the last step, to the next one or to the answer."""
        try:
            step = advance(value)
        except StopIteration as end:
            self.reply(end.value)
        except TrackerError as error:
            value = None  # that is it, as a rule, and holds on to this frame
            self.reply(error_reply(error))
        except Exception as error:
            self.reply(error_reply(fault(error, f"{self.hot.method} {self.hot.path}")))
        else:
            if type(step) is tuple:
                self.write(*step)
            else:
                self.await_step(step)

    def write(self, function: Callable, *args: Any) -> None:
        try:
            self.tracker.db.write_for(self, function, args, self.protocol.known > 0)
        except TrackerError as error:
            self.set_exception(error)

    def await_step(self, step: Awaitable) -> None:
        """Takes the next step when what this one waits for has come; the stop of the server waits for it as well."""
        task = asyncio.ensure_future(step)
        self.protocol.tasks.add(task)
        task.add_done_callback(self.protocol.tasks.discard)
        task.add_done_callback(self.step_ended)

    def step_ended(self, task: asyncio.Future) -> None:
        if task.cancelled():
            self.transport.close()
        elif error := task.exception():
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def reply(self, reply: Reply) -> None:
        headers = reply.headers
        if self.hot.shared:
            headers = [*headers, *self.hot.shared(self.headers, dict(headers))]
        self.succeeded = reply.ok and not reply.in_vain
        self.hot.answers[reply.status] += 1
        self.answer(reply.status, JSON_FIELDS.written, headers, reply.body(), reply.unread)


class Takes(NamedTuple):
    """What a handler decodes from a call, who may make it, and what is answered. openapi.py documents it."""

    caller: Callable[[Call], Any] | None = None
    body: Any = None
    query: Any = None
    status: int = 200
    path: dict[str, Any] | None = None  # the types of what in the path is no id
    who: Need | str = ""  # in words where no Need says it
    answer: Any = None  # the type of the content, or of its parts


def takes(*args: Any, **kwargs: Any) -> Callable[[Callable], Callable]:
    """Notes on a handler what it takes (the fields of Takes)."""

    def note(handler: Callable) -> Callable:
        handler.takes = Takes(*args, **kwargs)
        return handler

    return note


# ── JSON API ──────────────────────────────────────────────────────────────────────────────────────────────────────────

NO_TASK = "No task available"  # clients in use compare this text, and pause only on it
SHORT = 128  # tasks of one call: about as many as take a millisecond
FEW_BYTES = 2**14  # of a body whose tasks are read while others wait


UPLOADED = about("The number of the operation that submits the lines.", 1)
SUBMITTER = "A worker with SUBMIT access to the project."
ASSIGNEE = "A worker with ASSIGN access to the project; any worker if the project is public."
ASSIGNEE_OF_ALL = "A worker with ASSIGN access to each of the projects that is not public."
REGISTERING = (
    "Anybody, if the setting `open_registration` is on; the first manager in any case, from the tracker's own machine"
    " or with the code that it prints."
)
HOLDER = "The worker that holds the task; for others nothing changes."
UPDATED = about("Whether the task was closed, failed or skipped.", True)
ALL_UPDATED = about("Whether each task was closed, failed or skipped.", [True, True])


@takes(Call.worker, shapes.SubmitBody, who=SUBMITTER)
@direct
def submit_one(call: Call, body: bytes) -> Steps:
    """Adds a task to a project's queue.

    At once when the project's rate limit allows it. A live task of the project (waiting, assigned or failed) with the
    same hash refuses it; where the project keeps hashes, a closed one does too. So with a `unique_string` the call may
    be repeated when no answer came (`conflict` says that the task is there); without one that makes a second task.
    """
    yield submit_task, call.worker(), new_task(decode(body, shapes.SubmitBody))
    return Reply()


class Native(NamedTuple):
    """A call of the native API: methods, path, and a domain function, or a handler that decodes by itself.

    What the row does not say is derived: ids stand in the path, a GET reads, the body (of a GET: the query), who calls
    and what is answered are the function's annotations. `envelope` is the name of what is answered within `content`.
    """

    methods: str
    path: str
    function: Callable
    envelope: str = ""
    status: int = 200
    reads: bool | None = None

    @property
    def only_reads(self) -> bool:
        return self.methods == "GET" if self.reads is None else self.reads


@functools.cache
def takes_of(row: Native) -> Takes:
    """What the call takes."""
    if inspect.iscoroutinefunction(row.function):
        return row.function.takes
    hints, need = typing.get_type_hints(row.function, include_extras=True), getattr(row.function, "need", None)
    hints.pop("after", None)  # of a list that is read in parts
    ids = re.findall(r"{(\w+)}", row.path)
    [given] = list(hints.items())[2 + len(ids) : -1] or [(None, None)]
    worker = need is not None and (need.role == WORKER, bool(need.worker))
    caller = {(True, False): Call.worker, (False, True): Call.worker_or_session}.get(worker, Call.session)
    content = hints["return"]
    return Takes(
        caller=caller,
        body=given[1] if row.methods != "GET" else None,
        query=given[1] if row.methods == "GET" else None,
        status=row.status,
        path={"job": shapes.Token} if "job" in ids else None,
        who=need or "",
        answer=None if content is type(None) else {row.envelope: content} if row.envelope else content,
    )


STRANGERS_BODY = 64  # KiB: of whom nobody knows yet


def handler_of(row: Native) -> Callable[[Call], Awaitable[Reply]]:
    """The handler that most calls need: decode caller, ids in the path, body; call one function; respond."""
    if inspect.iscoroutinefunction(row.function):
        return row.function
    takes, ids = takes_of(row), re.findall(r"{(\w+)}", row.path)
    reads, registers = row.only_reads, hasattr(row.function, "registers")

    async def handler(call: Call) -> Reply:
        args = [takes.caller(call), *map(call.path_value, ids)]
        if takes.body is not None:
            args.append(await call.json(takes.body, STRANGERS_BODY if registers else None))
        if takes.query is not None:
            args.append(call.query_as(takes.query))
        if registers:
            if args[0] is None or not await call.tracker.db.read(is_of_admin, args[0]):
                call.tracker.limits.register(call.source)
            args[0] = Newcomer(args[0], call.source)
        database = call.tracker.db
        content = await (database.read if reads else database.write)(as_caller, row.function, *args)
        if isinstance(content, Part) and content.after is not None:
            return in_parts(database, row, args, content)
        return Reply({row.envelope: content} if row.envelope else content, status=row.status)

    return handler


def in_parts(database: Database, row: Native, args: list, part: Part) -> Stream:
    """The answer with a long list. Each part of it is read when the one before has been sent."""

    async def parts(part: Part) -> AsyncIterator[bytes]:
        yield b'{"ok":true,"content":{"%b":[' % row.envelope.encode() + part.taken()[1:]
        while part.after is not None:
            part = await database.read(functools.partial(as_caller, after=part.after), row.function, *args)
            yield part.taken()
        yield b"]}}"

    headers = {name.decode(): value.decode() for name, value in JSON_HEADERS}
    return Stream(parts(part), headers=headers)


@takes(Call.worker, BulkSubmitBody | list[BulkTask], who=SUBMITTER, answer=shapes.BulkSubmitted)
async def bulk_submit(call: Call) -> Reply:
    """Adds many tasks to one project's queue.

    All or none: after a refusal nothing is stored. Duplicates, of live tasks and among each other, are skipped and
    counted: so with a `unique_string` for each the call may be repeated when no answer came. Passes the rate limit
    when a single task would, and is then charged for every task. The bare array of tasks is understood as well.
    """
    credentials, tracker = call.worker(), call.tracker
    trusted = await tracker.db.read(may_submit_somewhere, credentials)  # strangers may not send large bodies
    return await store_bulk(call, credentials, await call.body(tracker.settings.max_bulk_body if trusted else None))


async def store_bulk(call: Call, credentials: WorkerCredentials, body: bytes) -> Reply:
    """Small ones in one transaction; large ones in pieces that count, all of them, from one commit on."""
    tracker, size = call.tracker, len(body)
    async with held(call.source, size):
        if size > 1024 * tracker.settings.max_body:  # only who may submit sends so much, and others need not wait
            bulk = await asyncio.to_thread(read_bulk, body, tracker.settings.max_bulk)
        else:
            bulk = await tracker.aside.done(call.source, read_bulk, body, tracker.settings.max_bulk)
    if bulk.count <= PIECE_TASKS and size <= PIECE_BYTES:
        return Reply(await tracker.db.write(submit_tasks, credentials, tasks_in(bulk), long=True))
    del body  # its tasks are in the pieces
    stored = await store_pieces(tracker, credentials, bulk, held(call.source, size))
    return Reply(shapes.BulkSubmitted(stored, bulk.count - stored))


def tasks_in(bulk: Bulk) -> list[NewTask]:
    return [NewTask(*row) for piece in bulk.pieces for row in msgspec.json.decode(piece)]


def submit_few(call: Call, body: bytes) -> Steps:
    """A bulk submit without ASGI: one of a few tasks is as quick as single ones."""
    credentials = call.worker()
    if len(body) > FEW_BYTES:
        return (yield store_bulk(call, credentials, body))
    tasks = tasks_in(read_bulk(body, call.tracker.settings.max_bulk))
    step = submit_tasks, credentials, tasks
    return Reply((yield step if len(tasks) <= SHORT else call.tracker.db.write(*step, long=True)))


bulk_submit.steps = submit_few


def line_pieces(upload: Upload, most: int, report: shapes.LinesReport) -> Iterator[bytes]:
    """The lines as pieces of a bulk submit, each task with its line's number; refused ones go to the report."""

    def make(body: LineTask) -> tuple:
        return upload.project, *task_row(body)[1:]

    return in_pieces((size, task and [number, *task]) for number, size, task in tasks_of(upload, most, report, make))


@contextlib.asynccontextmanager
async def staged(tracker: Tracker, *begin: Any) -> AsyncIterator[int]:
    """A new operation (`begin` makes it), whose pieces the block stages and accepts together. Else nothing is left."""
    operation = await tracker.db.write(*begin)
    try:
        yield operation
    except BaseException:
        with contextlib.suppress(TrackerError):  # stopping: the next start discards it
            await discard(tracker.db, operation)
        raise


async def store_pieces(tracker: Tracker, credentials: WorkerCredentials, bulk: Bulk, room: Any) -> int:
    """Stages the pieces, accepts them together, and waits until they are in the queue. How many tasks were stored.

    They are in memory, where `room` holds them, until all are staged.
    """
    async with staged(tracker, begin_bulk_submit, credentials, bulk.project) as operation:
        async with room:
            await stage(tracker.db, operation, functools.partial(asyncio.to_thread, take_pieces, iter(bulk.pieces)))
            bulk.pieces.clear()
        await tracker.db.write(accept_bulk_submit, credentials, operation, bulk.count)
    return await tracker.begin_operation(operation, answered=True)


async def stage(database: Database, operation: int, take: Callable[[], Awaitable[list[bytes]]]) -> None:
    """Stages the pieces, some in each transaction; the next ones are made (`take`) while those are committed."""
    number, staging = 1, None
    while some := await take():
        if staging:
            await staging
        some = list(filter(None, some))
        staging = database.write(add_bulk_pieces, operation, number, some, long=True)
        number += len(some)
    if staging:
        await staging


async def submit_upload(
    call: Call, credentials: Credentials, upload: Upload, token: str = ""
) -> tuple[int, asyncio.Future[int]]:
    """Begins to submit the lines, all of which have been read: the operation, and its end. Else nothing is left."""
    async with staged(call.tracker, begin_lines_submit, credentials, upload.project, token) as operation:
        await stage_lines(call.tracker, call.source, operation, upload, credentials)
    return operation, call.tracker.begin_operation(operation)


async def stage_lines(tracker: Tracker, source: str, operation: int, upload: Upload, credentials: Credentials) -> None:
    """Stages the lines in pieces and accepts them together. Refuses an upload in which there is no line."""
    report = shapes.LinesReport()
    pieces = line_pieces(upload, 1024 * tracker.settings.max_bulk_body, report)
    await stage(tracker.db, operation, functools.partial(tracker.aside.read, source, take_pieces, pieces))
    if not report.line_count:
        raise TrackerError("invalid", "it has no line that is not blank", upload.field)
    await tracker.db.write(accept_lines_submit, credentials, operation, report)


@takes(Call.worker, query=shapes.UploadQuery, who=SUBMITTER, answer={"operation": Annotated[int, UPLOADED]})
async def submit_lines(call: Call) -> Reply:
    """Adds the lines of a text to a project's queue, a task each, however many they are.

    The body is the text, in UTF-8 (`curl --data-binary @FILE`), which gzip may have packed: a recipe a line, or a JSON
    object with the fields of `POST /task/submit`, such as the manager's pages export. Blank lines are skipped. When
    all of it has been read, the answer names the operation that submits them, and `GET /operation/{operation}` tells
    what became of each line. A refused line or a duplicate keeps no other one out. Passes the rate limit when a single
    task would, and is then charged for every task.

    A `token` of the client's own makes it safe to repeat the call when no answer came: the first operation with it is
    answered again, and nothing is submitted twice. While the first call with it is still being read, that is 503.
    """
    credentials, project, query = call.worker(), call.path_id("project"), call.query_as(shapes.UploadQuery)
    database, most = call.tracker.db, call.tracker.settings.max_bulk_body
    operation = await database.read(find_lines_submit, credentials, project, query.token)  # before a large body is read
    if operation is None:
        async with call.spooled(most) as file:
            upload = Upload(file, project, query, "body", query.first_line)
            operation, _ = await submit_upload(call, credentials, upload, query.token)
    return Reply({"operation": operation})


@takes(Call.worker, query=shapes.AssignQuery, who=ASSIGNEE, answer=[{"task": Task}, {"tasks": list[Task]}])
@direct
def get_task(call: Call, body: bytes) -> Steps:
    """Assigns the project's best task to the calling worker.

    The best one has the highest priority, and is the oldest of those. The worker has `max_assign_time` seconds to
    release it, then it goes to somebody else, as does one of an answer that was lost. A worker is never assigned a
    task that it has verified. "No task available" is no error: it is answered with status 200 and `ok` false.
    """
    caller, project, query = call.worker(), call.path_id("project"), ONE_NOW
    if call.scope["query_string"]:
        query = call.query_as(shapes.AssignQuery)
    try:
        return (yield from answer_with_tasks(call, caller, (project,), query))
    except NoAccess as refused:
        reason = refused.problem
    if query.wait:  # it may get access meanwhile
        yield call.rest(min(query.wait, call.tracker.settings.max_wait))
        with contextlib.suppress(NoAccess):
            return (yield from answer_with_tasks(call, caller, (project,), msgspec.structs.replace(query, wait=0)))
    return Reply(ok=False, message=NO_TASK, reason=reason)


ONE_NOW = shapes.AssignQuery()


@takes(Call.worker, query=shapes.AssignFromQuery, who=ASSIGNEE_OF_ALL, answer=[{"tasks": list[Task]}, {"task": Task}])
@direct
def get_task_of_several(call: Call, body: bytes) -> Steps:
    """Assigns the best task of several projects to the calling worker.

    The project with the highest priority comes first, then the task with the highest priority, then the oldest. Access
    to every one of the projects is needed. Otherwise like `GET /task/get/{project}`.
    """
    caller, query = call.worker(), call.query_as(shapes.AssignFromQuery, "project")
    return (yield from answer_with_tasks(call, caller, tuple(query.project), query))


def answer_with_tasks(
    call: Call, credentials: WorkerCredentials, projects: tuple[int, ...], query: shapes.AssignQuery
) -> Steps:
    """What is assigned, after so long a wait as is wished; or one that the caller has brought upon itself (Polls)."""
    settings, database, polls = call.tracker.settings, call.tracker.db, call.tracker.polls
    wait, count = polls.hold(credentials.id, projects), 0
    if query is not ONE_NOW:
        wait, count = max(wait, min(query.wait, settings.max_wait)), min(query.count, settings.max_count)
    long = count + len(projects) > SHORT
    step = (assign_tasks, credentials, projects, count or 1)
    try:
        if wait or long:
            attempt = functools.partial(database.write, *step, long=long)
            wished = query.wait > 0
            assigned = yield wait_for_task(call, credentials, projects, attempt, wait, wished) if wait else attempt()
        else:
            assigned = yield step
    except TrackerError as error:
        # Whoever has not proved to be the worker is counted apart from it.
        worker = credentials.id if error.code != "unauthorized" else -1 - credentials.id
        yield hold_poll(call, worker, projects)
        raise
    call.tracker.limits.heard.note(credentials.id, projects, query.takes)
    if not assigned.tasks:
        polls.in_vain(credentials.id, projects)
        return Reply(ok=False, message=NO_TASK, reason=assigned.reason)
    content = {"tasks": assigned.tasks} if count else {"task": assigned.tasks[0]}
    return Reply(content, unread=functools.partial(give_back, database, credentials.id, attempts_at(assigned.tasks)))


def give_back(database: Database, worker: int, tasks: list[tuple[int, int]]) -> asyncio.Future:
    """Makes tasks (ids and attempts) ready again at once whose assignee has gone before it could hear of them.

    Empties the list: what is told twice is done once, as by then the worker may hold the same attempt anew.
    """
    back, tasks[:] = tuple(tasks), []
    done = database.write(take_back, worker, back, long=True)
    done.add_done_callback(lambda future: future.cancelled() or future.exception())  # perhaps nobody looks
    return done


def attempts_at(tasks: Iterable[Task]) -> list[tuple[int, int]]:
    return [(task.id, task.attempt) for task in tasks]


class HandedOut(NamedTuple):
    """A dialect's answer that gives its worker these tasks; they are given back if it has gone and does not read it."""

    answer: Answer
    database: Database
    worker: int
    tasks: list[tuple[int, int]]

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        back = functools.partial(give_back, self.database, self.worker, self.tasks)
        await hand_out(self.answer, back, scope, receive, send)


async def hold_poll(call: Call, worker: int | str, projects: Sequence[int | str]) -> None:
    """Counts a poll that is refused, or finds nothing at another system's door, and holds it if they come too often."""
    polls = call.tracker.polls
    await call.rest(polls.hold(worker, projects))
    polls.in_vain(worker, projects)


async def wait_for_task(
    call: Call,
    credentials: WorkerCredentials,
    projects: Sequence[int],
    attempt: Callable,
    wait: float,
    wished: bool = True,
) -> Assigned:
    """Waits as long as the client does. What is assigned to one that has gone meanwhile does not wait for its lease.

    One that wished for no wait may have ended its own side alone, and reads its answer.
    """
    gone = asyncio.ensure_future(call.gone())
    try:
        least = call.tracker.polls.hold(credentials.id, projects)
        assigned = await call.tracker.waiters.assign(
            projects, attempt, wait, gone, least, call.waits_at, credentials.id
        )
        if assigned.tasks and wished and gone.done():
            await give_back(call.tracker.db, credentials.id, attempts_at(assigned.tasks))
            return Assigned([], "You had gone")
        return assigned
    finally:
        gone.cancel()


@takes(Call.worker, shapes.ReleaseBody, who=HOLDER, answer={"updated": Annotated[bool, UPDATED]})
@direct
def release_one(call: Call, body: bytes) -> Steps:
    """Ends the calling worker's hold on a task: done, failed or skipped.

    `updated` tells whether that changed the task. It is false for a result that still needs another worker's
    verification, and when the worker does not hold the task (any more): then nothing changes. So the call may be
    repeated when no answer came, and false is then no sign that the first one came to nothing.
    """
    credentials, kind = bringer(call, body), shapes.ReleaseBody
    release = decode(body, kind) if len(body) <= FEW_BYTES else (yield call.decoded(body, decode, kind))
    updated = yield release_task, credentials, release
    message = None if updated else "Not held by you, or not verified by enough workers yet"
    return Reply({"updated": updated}, message=message, in_vain=not updated)


def bringer(call: Call, body: bytes) -> WorkerCredentials:
    """The worker that calls, with the address to which what it brings counts, if that is much."""
    worker = call.worker()
    return worker._replace(source=call.waits_at) if len(body) > budgets.SMALL_RESULT else worker


EXTENDED = [shapes.Extended, {"extensions": list[shapes.Extended]}]


@takes(Call.worker, shapes.ExtendBody, who=HOLDER, answer=EXTENDED)
@direct
def extend(call: Call, body: bytes) -> Steps:
    """Lets the calling worker hold a task for longer: for so many seconds from now on, if that is more than is left.

    With `extensions` several tasks, and as many answers in their order. A job is never held beyond its timeout and
    15 seconds. Works until the tracker has taken the task back, and while worker or project are paused.
    """
    credentials, most = call.worker(), call.tracker.settings.max_count
    fields = given_fields(decode(body, shapes.ExtendBody))
    if (extensions := fields.pop("extensions", None)) is None:
        [extended] = yield extend_tasks, credentials, [errors.convert(fields, shapes.Extension)]
        return Reply(extended, message=None if extended.held else "Not held by you")
    if fields:
        raise TrackerError("invalid", "give this alone, or one extension", "extensions")
    if len(extensions) > most:
        raise TrackerError("invalid", f"at most {most} in one request", "extensions")
    step = extend_tasks, credentials, extensions
    extended = yield call.tracker.db.write(*step, long=True) if len(extensions) > SHORT else step
    return Reply({"extensions": extended}, message=None if any(one.held for one in extended) else "None held by you")


@takes(Call.worker, shapes.BulkReleaseBody, who=HOLDER, answer={"updated": Annotated[list[bool], ALL_UPDATED]})
@direct
def bulk_release(call: Call, body: bytes) -> Steps:
    """Releases several tasks.

    `updated` tells of each one, in their order, whether that closed, failed or skipped it; false for one that the
    worker does not hold (any more) or that is unknown, which keeps none of the others from being released.
    """
    credentials, most, kind = bringer(call, body), call.tracker.settings.max_count, shapes.BulkReleaseBody
    releases = (decode(body, kind) if len(body) <= FEW_BYTES else (yield call.decoded(body, decode, kind))).releases
    if len(releases) > most:
        raise TrackerError("invalid", f"at most {most} in one request", "releases")
    step = release_tasks, credentials, releases
    updated = yield step if len(releases) <= SHORT else call.tracker.db.write(*step, long=True)
    return Reply({"updated": updated}, in_vain=not any(updated))


@takes(Call.worker, status=204, who="The worker that holds the task.")
async def get_attachments(call: Call) -> Answer:
    """Sends what a client has attached to the job of a task: a tar that gzip has packed.

    Status 200 with the file, or 204 when nothing is attached. The `job` of a task to which something is attached has
    this call's path as its `attachments`.
    """
    credentials, task = call.worker(), call.path_id("task")
    send = await call.tracker.db.read(as_caller, find_attachments, credentials, task)
    if send is None:
        return Reply(status=204)
    if (answer := await send(call.tracker)) is None:
        raise TrackerError("not_found", "What was attached to this task's job is gone")
    return answer


def resetting(kind: str, promise: str, begin: Callable = begin_reset) -> Callable[[Call], Awaitable[Reply]]:
    """POST /project/…/{project} that changes any number of tasks, a piece at a time. `promise` is its docstring."""

    @takes(Call.session, who=begin.need, answer={"affected_tasks": Annotated[int, about("Tasks changed.", 12)]})
    async def handler(call: Call) -> Reply:
        session, project = call.session(), call.path_id("project")
        operation = await call.tracker.db.write(as_caller, begin, session, project, kind)
        return Reply({"affected_tasks": await call.tracker.begin_operation(operation)})

    handler.__doc__ = promise
    return handler


reset_failed_tasks = resetting("reset_failed", "Makes every failed task wait again, as if it had never failed.")
reclaim_assigned_tasks = resetting(
    "reclaim_assigned", "Takes every assigned task from its worker, and makes it wait again."
)
hard_reset = resetting(
    "hard_reset", "Deletes every task of the project and its kept hashes. Counts none of them as closed."
)
delete_project = resetting("delete_project", "Deletes the project and everything in it, for good.", begin_deletion)


@takes(Call.worker, shapes.LogBody, status=204, path={"level": shapes.LogLevel}, who="Any worker.")
async def add_log(call: Call) -> Reply:
    """Logs a line.

    It always goes to the log file. From the level of the setting `log_level` on it is also kept for `GET /logs`.
    """
    caller, level = call.worker(), call.scope["path_params"]["level"]
    if level not in get_args(shapes.LogLevel):
        raise TrackerError("not_found", f"There is no log level {level!r}")
    stored, line = await call.tracker.db.write(add_log_entry, caller, level, await call.json(shapes.LogBody))
    if not call.tracker.limits.disk_low:
        try:
            call.tracker.log_lines.info("%s %s", level.upper(), in_one_line(line))
        except OSError as error:
            refusal = fault(error, "A line for the log file")
            if not stored:
                raise refusal from None
    return Reply(status=204)


def in_one_line(text: str) -> str:
    """The text with its control characters and line ends spelled out: nobody can forge a line or paint a terminal."""
    if text.isprintable():  # in a tenth of the time
        return text
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", lambda match: match[0].encode("unicode_escape").decode(), text)


@takes(None, shapes.PushBody, who="The git host that knows the project's webhook secret.", answer=shapes.Push)
async def git_receive(call: Call) -> Reply:
    """Takes a push event of GitHub, Gitea or Gogs, and sets the version of the project with that repository.

    Only pushes to a production branch count. The HMAC of the raw body under the project's webhook secret must be in
    one of the headers, with or without `sha256=` or `sha1=` in front. The same body again changes nothing.
    """
    signatures = {name: (call.header(name.encode()) or b"").decode("latin-1") for name in SIGNATURE_HEADERS}
    check_signed(signatures)
    body = await call.body()
    push = await call.decoded(body, decode, shapes.PushBody)
    keys, seen = await call.tracker.db.read(keys_for, push)
    aside = functools.partial(call.tracker.aside.done, call.source, signed_with)
    async with held(call.source, len(body)):
        signed = {one: key for one, key in keys.items() if await aside(key, body, signatures)}  # anybody may add one
    check_known(signed, seen, push)
    return Reply(await call.tracker.db.write(receive_push, push, body, signed))


@takes(None, shapes.RegisterBody, who=REGISTERING, answer={"manager": Manager})
async def register(call: Call) -> Reply:
    """Makes a manager's account, and logs it in.

    The first manager becomes tracker admin. The others start with no rights. Who got no answer logs in, as a repeat
    finds the name taken.
    """
    manager, session = await make_account(call, await call.json(shapes.RegisterBody, STRANGERS_BODY))
    return Reply({"manager": manager}, headers=await login_cookies(call, session))


async def make_account(call: Call, body: shapes.RegisterBody) -> tuple[Manager, bytes]:
    """A new manager and its session. Hashing the password takes a moment, outside of any transaction."""
    names.check_new_name(body.username)
    address, owner = browsers.network_of(client_address(call)), call.is_owner(body.code)
    call.tracker.limits.register(call.source)
    with call.tracker.logins.taken(source=call.source) as place:
        await call.tracker.db.write(count_registration, call.source, owner)
        password_hash = await place.hash(hash_password, body.password)
    made = await call.tracker.db.write(register_manager, body.username, password_hash, owner, address, call.source)
    call.tracker.code = ""
    return made


@takes(Call.session, status=204, who=delete_manager.need)
async def remove_manager(call: Call) -> Reply:
    """Deletes the account of another manager, with its roles, logins and tokens.

    What it has made stays, but for projects that no admin trusts and in which nobody else has a role.
    """
    write = call.tracker.db.write
    for operation in await write(as_caller, delete_manager, call.session(), call.path_id("manager"), long=True):
        call.tracker.begin_operation(operation)
    return Reply(status=204)


@takes(None, shapes.LoginBody, answer={"manager": Manager})
async def login(call: Call) -> Reply:
    """Logs a manager in.

    The answer sets the session cookie, and another one by which the browser is known at its next login. Repeated
    failures make the next attempt wait; those of strangers do not count for a browser or an address that is known.
    """
    manager, session = await authenticate_manager(call, await call.json(shapes.LoginBody, STRANGERS_BODY))
    return Reply({"manager": manager}, headers=await login_cookies(call, session))


async def authenticate_manager(call: Call, body: shapes.LoginBody) -> tuple[Manager, bytes]:
    """The manager and its new session. 401 for a wrong password or name, 429 after several, 503 where many come."""
    address = browsers.network_of(client_address(call))
    mark = call.known_browser(body.username)
    marked, known, admin = await call.tracker.db.read(find_known, body.username, mark, address)
    attempt = Attempt(body.username, address, mark if marked else "")
    with call.tracker.logins.taken(known, call.source, admin) as place:
        found = await call.tracker.db.write(count_login, *attempt)
        if not await place.hash(password_matches, body.password, found and found[1]):
            raise TrackerError("unauthorized", WRONG_LOGIN)
    return await call.tracker.db.write(accept_login, *found, *attempt)


async def change_password(call: Call, body: shapes.PasswordForm) -> bytes:
    """A new session, the only one of the manager that is left. 401 for a wrong password, 429 after several."""
    write, session = call.tracker.db.write, call.session()
    manager = logged_in(await call.tracker.db.read(identify, session))
    with call.tracker.logins.taken(manager.username.lower(), call.source, manager.tracker_admin) as place:
        stored = await write(as_caller, count_password_attempt, session)
        if not await place.hash(password_matches, body.password, stored):
            raise TrackerError("unauthorized", "this is not your present password", "password")
        password_hash = await place.hash(hash_password, body.new_password)
    return await write(as_caller, store_password, session, password_hash)


@takes(Call.session, status=204)
async def logout(call: Call) -> Reply:
    """Ends the session, for every holder of its cookie."""
    await call.tracker.db.write(end_session, call.session())
    return Reply(status=204, headers=[session_cookie(call, None)])


@takes(Call.session, answer=shapes.Account)
async def account(call: Call) -> Reply:
    """Tells who is logged in."""
    content = await call.tracker.db.read(as_caller, get_account, call.session())
    return Reply(content, ok=content.logged_in)


def session_cookie(call: Call, session: bytes | None) -> tuple[bytes, bytes]:
    """The Set-Cookie header that begins or (None) ends a session in the browser.

    One that begins where Host lacks the port is bound to the origin: nothing else tells its pages from another port's.
    """
    settings = call.tracker.settings
    headers = call.told()
    bound = b"@" + browsers.origin_of(headers) if browsers.lacks_port(headers) else b""
    value, age = "", 0
    if session:
        value, age = call.tracker.signer.sign(session + bound).decode(), int(settings.session_lifetime)
    return cookie_header(call, "", value, age)


KNOWN_BROWSER = 86400 * 365  # seconds


async def login_cookies(call: Call, session: bytes) -> list[tuple[bytes, bytes]]:
    """What a login sets: the session, and a mark by which the browser is known afterwards, whoever else guesses.

    It is known as long as the account has this password: whoever knew an old one may have made any number of marks.
    """
    cookies = [session_cookie(call, session)]
    if (found := await call.tracker.db.read(find_stamp, session)) is None:
        return cookies
    username, stamp = found
    mark = call.known_browser(username).partition(".")[0] or secrets.token_hex(16)
    value = call.tracker.browser_signer.sign(f"{username.lower().encode().hex()}.{mark}.{stamp}").decode()
    return [*cookies, cookie_header(call, "-browser", value, KNOWN_BROWSER)]


def cookie_header(call: Call, of: str, value: str, age: int) -> tuple[bytes, bytes]:
    """The Set-Cookie header of a cookie for `age` seconds, for this tracker alone and out of reach of scripts.

    Given to a page of one of cors_origins, it comes along with that page's requests: browsers want TLS for it.
    """
    parts = [
        f"{call.cookie_name(of)}={value}",
        f"Path={call.tracker.settings.root_path or '/'}",
        f"Max-Age={age}",
        "HttpOnly",
    ]
    secure, shared = call.scope.get("scheme") == "https", call.comes_from_named_origin()
    parts += ["SameSite=None" if secure and shared else "SameSite=Lax", *(["Secure"] if secure else [])]
    return b"set-cookie", "; ".join(parts).encode()


# ── Routes and app ────────────────────────────────────────────────────────────────────────────────────────────────────


# A path is literal segments, then the ids of what it is about; App finds it in a dictionary.
API: list[Native] = [
    Native("GET", "/task/get/{project}", get_task, reads=False),
    Native("POST", "/task/release", release_one),
    Native("POST", "/task/submit", submit_one),
    Native("GET", "/task/get", get_task_of_several, reads=False),
    Native("POST", "/task/bulk_release", bulk_release),
    Native("POST", "/task/extend", extend),
    Native("POST", "/task/bulk_submit", bulk_submit),
    Native("POST", "/task/submit_lines/{project}", submit_lines),
    Native("GET", "/operation/{operation}", show_operation, "operation"),
    Native("POST", "/log/{level}", add_log),
    Native("POST", "/task/log", log_to_task),
    Native("GET", "/task/attachments/{task}", get_attachments),
    Native("POST", "/template/create", create_template, "template"),
    Native("POST", "/template/update/{template}", update_template),
    Native("POST", "/template/delete/{template}", delete_template),
    Native("GET", "/template/get/{template}", get_template, "template"),
    Native("GET", "/template/list/{project}", list_templates, "templates"),
    Native("POST", "/template/rotate_secret/{template}", rotate_template_secret, "secret"),
    Native("POST", "/template/trigger/{template}", trigger_template, "job"),
    Native("GET", "/job/get/{job}", get_job, "job"),
    Native("GET", "/job/log/{job}", get_job_log, "entries"),
    Native("GET", "/job/list", list_jobs),
    Native("POST", "/job/cancel/{job}", cancel_job),
    Native("POST", "/job/retry/{job}", retry_job, "job"),
    Native("POST", "/workflow/create", create_workflow, "workflow"),
    Native("POST", "/workflow/update/{workflow}", update_workflow),
    Native("POST", "/workflow/delete/{workflow}", delete_workflow),
    Native("GET", "/workflow/get/{workflow}", get_workflow, "workflow"),
    Native("GET", "/workflow/list/{project}", list_workflows, "workflows"),
    Native("POST", "/workflow/rotate_secret/{workflow}", rotate_workflow_secret, "secret"),
    Native("POST", "/workflow/trigger/{workflow}", trigger_workflow, "job"),
    Native("POST", "/worker/create", create_worker, "worker"),
    Native("GET", "/worker/get/{worker}", get_worker, "worker"),
    Native("POST", "/worker/update", update_worker),
    Native("POST", "/worker/set_paused", set_worker_paused),
    Native("GET", "/worker/stats", worker_stats),
    Native("GET", "/project/list", list_projects, "projects"),
    Native("GET", "/project/get/{project}", get_project),
    Native("POST", "/project/create", create_project, "id"),
    Native("POST", "/project/update/{project}", update_project),
    Native("POST", "/project/trust/{project}", trust_project),
    Native("GET", "/project/monitoring/{project}", get_snapshots, "snapshots"),
    Native("GET", "/project/monitoring-between/{project}", get_snapshots_between, "snapshots"),
    Native("GET", "/project/assignees/{project}", get_assignees, "assignees"),
    Native("POST", "/project/request_access", request_access),
    Native("GET", "/project/access_list/{project}", list_access, "accesses"),
    Native("POST", "/project/accept_request/{project}/{worker}", accept_request),
    Native("POST", "/project/reject_request/{project}/{worker}", reject_request),
    Native("POST", "/project/reject_requests/{project}", reject_requests, "rejected"),
    Native("GET", "/project/secret/{project}", get_secret, "secret", reads=False),  # a worker that asks was seen
    Native("POST", "/project/secret/{project}", set_secret),
    Native("GET", "/project/webhook_secret/{project}", get_webhook_secret, "webhook_secret"),
    Native("POST", "/project/webhook_secret/{project}", set_webhook_secret),
    Native("POST", "/project/reset_failed_tasks/{project}", reset_failed_tasks),
    Native("POST", "/project/reclaim_assigned_tasks/{project}", reclaim_assigned_tasks),
    Native("POST", "/project/hard_reset/{project}", hard_reset),
    Native("POST", "/project/delete/{project}", delete_project),
    Native("POST", "/git/receivehook", git_receive),
    Native("POST", "/logs", list_logs, "logs", reads=True),
    Native("GET", "/logs", query_logs, "logs"),
    Native("GET", "/project/notices/{project}", notices.get_notices, "notices"),
    Native("POST", "/project/notices/{project}", notices.set_notices),
    Native("GET", "/project/acts/{project}", list_acts, "acts"),
    Native("GET", "/acts", list_all_acts, "acts"),
    Native("POST", "/register", register),
    Native("POST", "/login", login),
    Native("GET POST", "/logout", logout),
    Native("GET", "/account", account),
    Native("GET", "/manager/list", list_managers, "managers"),
    Native("GET", "/manager/list_for_project/{project}", list_project_managers, "managers"),
    Native("GET POST", "/manager/promote/{manager}", promote_manager, status=204),
    Native("GET POST", "/manager/demote/{manager}", demote_manager, status=204),
    Native("POST", "/manager/block/{manager}", block_manager, status=204),
    Native("POST", "/manager/unblock/{manager}", unblock_manager, status=204),
    Native("POST", "/manager/delete/{manager}", remove_manager),
    Native("POST", "/manager/set_role_for_project/{project}", set_role),
]


sys.modules.setdefault("tracker", sys.modules[__name__])  # the one copy, also when it is run as a program
for _module in "moving", "workers", "projects":  # they have calls, and rest on this one
    importlib.import_module(_module)


def create_app(settings: Settings | None = None, clock: Clock | None = None) -> Starlette:
    """The Starlette application of a tracker of its own. It opens its database when its lifespan begins."""
    tracker = Tracker(settings or Settings(), clock)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        await tracker.start()
        yield
        await tracker.stop()

    import metrics  # here, as the dialects are: they rest on this module
    import pages

    shown = [
        Route(path, pages.endpoint(tracker, handler), methods=methods.split()) for methods, path, handler in all_pages()
    ]
    app = (SharedApp if tracker.settings.cors_origins else App)(
        routes=[
            *(Route(path, Endpoint(tracker, openapi_json), methods=["GET"]) for path in OPENAPI_PATHS),
            *metrics.routes(tracker),
            *(route for dialect in dialects() for route in dialect.routes(tracker)),
            Route("/", Endpoint(tracker, home_page), methods=["GET"]),
            Route("/ui", Endpoint(tracker, ui_without_slash), methods=["GET"]),
            *shown,
            Route("/ui/static/{path:path}", pages.Static(directory=HERE / "static")),
            Route("/ui/{path:path}", pages.endpoint(tracker, pages.no_page), methods=["GET"]),
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a client of an API wants an error, not a redirect that loses its body
    app.router.default = app.nothing_there
    app.native = native_paths(tracker)
    app.hot = hot_paths(tracker, getattr(app, "shared_with", None))
    app.direct = functools.lru_cache(maxsize=1024)(app.find_direct)  # the same few URLs come all the time
    app.hot_lines = tuple(method + b" " + path for method, path in app.hot)
    app.turns, app.refusals = tracker.turns, tracker.meter.answers["refused"]
    app.longest_direct = min(LONGEST_DIRECT, 1024 * tracker.settings.max_body)
    app.state.tracker = tracker
    return app


MOST_PATH_IDS = 2


class NativePath(NamedTuple):
    """A path of the native API: what the ids at its end are called, the last one first, and an endpoint a method."""

    ids: list[str]
    endpoints: dict[str, Endpoint]


def native_paths(tracker: Tracker) -> list[dict[str, NativePath]]:
    """The table API to look paths up in: for each number of ids, the paths with so many by what stands before them."""
    found: list[dict[str, NativePath]] = [{} for _ in range(1 + MOST_PATH_IDS)]
    for row in API:
        literal, ids = row.path.partition("/{")[0], re.findall(r"\{(\w+)\}", row.path)
        known = found[len(ids)].setdefault(literal, NativePath(ids[::-1], {}))
        by_secret = takes_of(row).caller is Call.worker
        route = literal if hasattr(row.function, "steps") else ""
        endpoint = Endpoint(tracker, handler_of(row), Call, row.only_reads, by_secret, route)
        known.endpoints.update(dict.fromkeys(row.methods.split(), endpoint))
        if "GET" in row.methods:
            known.endpoints["HEAD"] = endpoint if row.only_reads else Endpoint(tracker, looked_at())
    return found


def hot_paths(tracker: Tracker, shared: Callable | None) -> dict[tuple[bytes, bytes], HotPath]:
    """The hot calls by their methods and paths, up to the id, as they come in: at the root and below /api."""
    rows = [(row, *row.path.partition("{")[::2]) for row in API if hasattr(row.function, "steps")]
    answers = tracker.meter.answers
    return {
        (row.methods.encode(), f"{prefix}{path}".encode()): HotPath(
            row.methods, row.path, name.rstrip("}"), row.function.steps, tracker, shared, answers[path.rstrip("/")]
        )
        for row, path, name in rows
        for prefix in ("", "/api")
    }


OPENAPI_PATHS = ("/openapi.json", "/api/openapi.json")


async def openapi_json(call: Call) -> Response:
    """GET /openapi.json: the JSON API as programs read about it."""
    base = call.base
    written_for = SOME_BASE if shlex.quote(base) == base else SOME_QUOTED_BASE
    body = await asyncio.to_thread(document_at, call.tracker.settings, written_for, base)
    return Response(body, media_type="application/json", headers={"X-Content-Type-Options": "nosniff"})


SOME_BASE, SOME_QUOTED_BASE = "http://tracker.invalid", "http://[tracker.invalid]"  # as a shell has to read it


@functools.lru_cache(maxsize=4)
def document_at(settings: Settings, written_for: str, base: str) -> bytes:
    """The document for those who ask at this URL: however many do not take it in, it is in memory once."""
    return written_document(settings, written_for).replace(written_for.encode(), base.encode())


@functools.lru_cache(maxsize=8)
def written_document(settings: Settings, base: str) -> bytes:
    """The document as it is sent, of a tracker at this URL: it takes long to write, and anybody may ask for it."""
    return encode(openapi.with_curl(openapi_document(settings), base))


@functools.lru_cache(maxsize=4)
def openapi_document(settings: Settings) -> dict[str, Any]:
    return openapi.document([(row, takes_of(row)) for row in API], settings, __version__)


class App(Starlette):
    """Starlette, before which the native API's paths are looked up: at the root and below /api, whatever root_path is.

    Middleware and the search for a route would cost these calls as much time as their SQL does. A call with a method
    that its path does not have is left to that search: another system may answer it.
    """

    native: list[dict[str, NativePath]]
    hot: dict[tuple[bytes, bytes], HotPath]
    hot_lines: tuple[bytes, ...]  # with which a hot call begins
    longest_direct: int  # bytes of the body of a hot call
    turns: Turns

    def find_direct(self, method: bytes, url: bytes) -> Callable[..., Direct] | None:
        """What makes a request with this URL a hot call, if it is one. What is written otherwise is left to ASGI."""
        path, _, query = url.partition(b"?")
        end = path.rfind(b"/") + 1
        last = path[end:]
        if last.isdigit() and (hot := self.hot.get((method, path[:end]))):
            return functools.partial(HotCall, hot, {hot.name: last.decode()}, query)
        hot = self.hot.get((method, path))
        return functools.partial(HotCall, hot, {}, query) if hot and not hot.name else None

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if "//" in scope.get("path", ""):  # of a client whose base URL ends in a slash
            scope["path"] = re.sub("/{2,}", "/", scope["path"])
        if scope["type"] == "http" and (found := self.find(scope)):
            endpoints, ids = found
            if endpoint := endpoints.get(scope["method"]):
                scope["path_params"] = ids
                return await endpoint(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].endswith("/"):
            self.drop_slash(scope)
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and (methods := self.methods_at(scope)):
            answer = Response(status_code=204, headers={"allow": allowing(methods)})
            self.state.tracker.meter.answers["none"][204] += 1
            return await answer(scope, receive, send)
        await super().__call__(scope, receive, send)

    def drop_slash(self, scope: dict) -> None:
        """Takes the slash off the end of a path that is one only without it, at whatever door. Pages redirect."""
        page, shorter = path_below(scope["path"], scope.get("root_path", "")).startswith("/ui/"), scope["path"][:-1]
        if not page and not self.methods_at(scope) and self.methods_at({**scope, "path": shorter}):
            scope["path"] = shorter

    def methods_at(self, scope: dict) -> set[str]:
        """The methods of a path, at whatever doors; none where there is nothing. Of `*`: those that any path has."""
        if scope["path"] == scope.get("root_path", "") + "*":
            return {"GET", "POST", "PUT", "PATCH", "DELETE"}
        found = self.find(scope)
        methods = set(found[0] if found else ())
        for route in self.routes:
            match, child = route.matches(scope)
            if match is not Match.NONE:
                methods.update(methods_of(route, {**scope, **child}))
        return methods

    def find(self, scope: dict) -> tuple[dict[str, Endpoint], dict[str, str]] | None:
        """The endpoints of a native path by their methods, and the ids in it."""
        head, ids = scope["path"].rstrip("/"), []  # as some write all their URLs
        if root_path := scope.get("root_path"):
            head = path_below(head, root_path)
        if head.startswith("/api/"):
            head = head[4:]
        for paths in self.native:
            if head in paths:
                known = paths[head]
                return known.endpoints, dict(zip(known.ids, ids, strict=True)) if ids else {}
            head, _, last = head.rpartition("/")
            if not last:
                return None
            ids.append(last)
        return None

    async def nothing_there(self, scope: dict, receive: Callable, send: Callable) -> None:
        """What the search for a route ends with: 405 for a native path, 404 for any other."""
        if scope["type"] == "http" and self.find(scope):
            raise HTTPException(405)
        await self.router.not_found(scope, receive, send)


class SharedApp(App):
    """The application where pages of other origins may use the API (the setting cors_origins).

    Starlette's CORSMiddleware takes logins from all of them or from none, allows methods that a path does not have, and
    would stand before the hot calls also where there are no such origins.
    """

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http":
            send = functools.partial(self.send_shared, send, dict(scope["headers"]))
        await super().__call__(scope, receive, send)

    async def send_shared(self, send: Callable, asked: dict[bytes, bytes], message: dict) -> None:
        """Sends a part of an answer; its head tells a browser, too, which page may read it, and ask for more."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            message = {**message, "headers": headers + self.shared_with(asked, dict(headers))}
        await send(message)

    def shared_with(self, asked: dict[bytes, bytes], answered: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers that share an answer with the origin that asked for it."""
        named, origin = self.state.tracker.named_origins, asked.get(b"origin", b"")
        vary = (b"vary", b"Origin")
        if origin.decode("latin-1") in named:
            headers = [vary, (b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
        elif origin and "*" in self.state.tracker.settings.cors_origins:
            headers = [vary, (b"access-control-allow-origin", b"*")]
        else:
            return [vary]
        if b"access-control-request-method" not in asked:  # a page reads no other headers than these and some harmless
            return [*headers, (b"access-control-expose-headers", b"Allow, Content-Disposition, Retry-After")]
        wanted = b", ".join(re.findall(rb"[\w-]+", asked.get(b"access-control-request-headers", b"")))
        headers += [(b"access-control-allow-methods", answered.get(b"allow", b""))]
        return [*headers, (b"access-control-allow-headers", wanted), (b"access-control-max-age", b"600")]


def methods_of(route: BaseRoute, scope: dict) -> Iterable[str]:
    """The methods that a route has at this path: it, or the application behind it, says so, or else Starlette knows."""
    says = getattr(route, "methods_at", None) or getattr(getattr(route, "app", None), "methods_at", None)
    methods = says(scope) if says else None
    return route.methods if methods is None else methods


def path_below(path: str, prefix: str) -> str:
    """The path without its prefix, if it is below that."""
    return path[len(prefix) :] if path.startswith("/", len(prefix)) and path.startswith(prefix) else path


def all_pages() -> list[tuple[str, str, Callable]]:
    """Method, path and handler of each page and action."""
    import pages

    return [route for table in pages.tables() for route in pages.routes_of(table)]


async def http_error(request: Request, error: HTTPException) -> Answer:
    """Starlette's own refusals (no such path, wrong method), in the tracker's form."""
    status, refusal = error.status_code, TrackerError("invalid", error.detail)
    if status == 405 and (methods := request.app.methods_at(request.scope)):
        refusal = MethodNotAllowed(request.method, methods)
    elif status in (404, 405):  # 405: what is there for GET alone says that there is nothing
        status, refusal = 404, TrackerError("not_found", f"There is nothing at {request.url.path}")
    request.app.state.tracker.meter.answers["none"][status] += 1
    return error_reply(refusal)._replace(status=status)


async def home_page(call: Call) -> Answer:
    """GET /: JSON for programs, the manager UI for browsers."""
    if b"text/html" not in (call.header(b"accept") or b""):
        return Reply({"name": "tracker", "version": __version__})
    return RedirectResponse(call.scope.get("root_path", "") + "/ui/", 303)


async def ui_without_slash(call: Call) -> Response:
    return RedirectResponse(call.scope.get("root_path", "") + "/ui/", 308)


async def serve_until_stopped(
    settings: Settings, ready: Callable[[str, Server], None], clock: Clock | None = None
) -> None:
    """Runs a tracker until its server is told to stop. `ready(url, server)` is called when it accepts requests.

    It listens before all else: who comes while the rest is loaded, and the file opened, waits and is not refused.
    RuntimeError when it has stopped by itself, as the writer had ended.
    """
    with listening.listeners(settings) as sockets:
        app = create_app(settings, clock)
        tracker = app.state.tracker
        await tracker.start()
        try:
            tracker.hosts = browsers.Hosts(settings.allowed_hosts, all(map(listening.is_local, sockets)))
            server = Server(
                uvicorn_config(app, settings),
                settings.request_timeout,
                started=lambda: ready(server.places[0], server),
                stopping=tracker.begin_stop,
            )
            tracker.limits.gauges |= server.gauges()
            tracker.db.failed.add_done_callback(lambda _: server.stop())
            await server.serve(sockets=sockets)
        finally:
            await tracker.stop()
    if tracker.db.failed.done():
        raise RuntimeError("The tracker has stopped because its writer had ended") from tracker.db.failed.result()


# ── In-process ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def serving(settings: Settings | None = None, clock: Clock | None = None) -> Iterator[str]:
    """Serves a tracker of its own on a free port, in a background thread, and yields its URL. For tests.

    Unless the settings name a database, it is a temporary one. Their port is ignored: the URL tells which one it is.
    Raises why it could not start, and at the end of the block, should it have stopped by itself, why.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = msgspec.structs.replace(settings or Settings(), port=0)
        if settings.database == FIELDS["database"].default:
            settings = msgspec.structs.replace(settings, database=f"{folder}/tracker.db")
        started: list[Any] = []
        ended: list[BaseException] = []
        signal = threading.Event()

        def ready(url: str, server: Server) -> None:
            started.extend((url, server))
            signal.set()

        def run() -> None:
            try:
                run_loop(serve_until_stopped(settings, ready, clock))
            except BaseException as error:
                ended.append(error)
            finally:
                signal.set()

        thread = threading.Thread(target=run, name="tracker", daemon=True)
        thread.start()
        signal.wait()
        if not started:
            raise ended[0]
        url, server = started
        try:
            yield url
        finally:
            server.stop()
            thread.join()
        if ended:
            raise ended[0]


# ── Command line ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (commands.py). Returns the exit status."""
    import commands  # which is made of what stands here

    return commands.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
