"""Who calls, and what a call needs: declared where a function is defined, looked at in the transaction that it is for.

    credentials ─► identify ─► Caller ─► @needs(role, of=Thing): what the call is about, or 401, 404, 403

Nothing here knows a task.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import inspect
import sqlite3
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from acts import note
from errors import TrackerError, shaped
from shapes import Manager
from writer import Tx

READ, EDIT, MANAGE_ACCESS, SECRET, MAINTENANCE = 1, 2, 4, 8, 16
ROLE_NAMES = {READ: "READ", EDIT: "EDIT", MANAGE_ACCESS: "MANAGE_ACCESS", SECRET: "SECRET", MAINTENANCE: "MAINTENANCE"}
ALL_ROLES = sum(ROLE_NAMES)
LOGIN, ADMIN, WORKER, SEES = "login", "admin", "worker", "sees"  # what a call may need that is no role
ASSIGN, SUBMIT = "assign", "submit"  # what a worker may be granted in a project
LAST_SEEN_STEP = 10  # seconds; a coarser last_seen saves a write on nearly every request


def digest(secret: bytes) -> bytes:
    """What is stored of a random secret. Plain SHA-256 is enough for 256 random bits, and fast."""
    return hashlib.sha256(secret).digest()


class WorkerCredentials(NamedTuple):
    """What a worker's headers claim. Without a secret: it has proved who it is in a dialect's own way."""

    id: int
    secret: bytes | None
    secret_hash: bytes | None = None  # of the secret, where it is known already
    source: str = ""  # the address to which its log lines count


class WithSecret(Protocol):
    """What a SELECT has found of a worker that calls, among other things."""

    secret_hash: bytes
    last_seen: int


class KnownWorker(NamedTuple):
    """A worker that has proved who it is."""

    id: int
    secret_hash: bytes
    last_seen: int
    alias: str


class Caller(NamedTuple):
    """Who calls, with today's rights: a manager with its roles, a worker, or nobody.

    Resolved once in a transaction (as_caller), and never taken along into another one.
    """

    manager: Manager | None = None
    roles: Mapping[int, int] = types.MappingProxyType({})  # by project
    worker: KnownWorker | None = None
    source: str = ""  # as with WorkerCredentials

    def role(self, project: int) -> int:
        """The manager's role bits in a project; a tracker admin has them all."""
        if self.manager is not None and self.manager.tracker_admin:
            return ALL_ROLES
        return self.roles.get(project, 0)

    @property
    def by(self) -> dict[str, int]:
        """The caller as a job notes who wanted it: {"worker": id} or {"manager": id}."""
        return {"worker": self.worker.id} if self.worker else {"manager": self.manager.id}

    @property
    def as_values(self) -> dict[str, Any]:
        """The manager as a SELECT asks for it that looks at the roles itself."""
        admin = self.manager is not None and self.manager.tracker_admin
        return {"manager": self.manager and self.manager.id, "admin": admin}


class Newcomer(NamedTuple):
    """A session, if there is one, of somebody who registers, and from where: as with WorkerCredentials."""

    session: bytes | None
    source: str


Credentials = WorkerCredentials | Newcomer | bytes | None  # a worker's, a session's, none

SELECT_MANAGER = """
    SELECT m.id, m.username, m.tracker_admin, m.register_time,
        (SELECT json_group_object(project, role) FROM manager_role WHERE manager = m.id) AS roles
    FROM session s JOIN manager m ON m.id = s.manager WHERE s.id_hash = ? AND s.expires > ?
"""


def as_caller(tx: Tx, function: Callable, credentials: Credentials, *args: Any, **place: Any) -> Any:
    """Calls `function(tx, caller, *args)` for whoever comes with these credentials. 401 for a worker that is none."""
    return function(tx, identify(tx, credentials), *args, **place)


def identify(tx: Tx, credentials: Credentials) -> Caller:
    """Who calls. Nothing about a manager is remembered in a cookie: a session that has ended is nobody's."""
    if isinstance(credentials, WorkerCredentials):
        return Caller(worker=authenticate(tx, credentials), source=credentials.source)
    if isinstance(credentials, Newcomer):
        return identify(tx, credentials.session)._replace(source=credentials.source)
    row = tx.one(SELECT_MANAGER, (digest(credentials), tx.trusted_time)) if credentials is not None else None
    if row is None:
        return Caller()
    return Caller(shaped(Manager, row), msgspec.json.decode(row["roles"], type=dict[int, int]))


def is_of_admin(tx: Tx, session: bytes) -> bool:
    """Whether the session is one of a tracker admin."""
    caller = identify(tx, session)
    return caller.manager is not None and caller.manager.tracker_admin


def check_secret(worker: WithSecret | None, credentials: WorkerCredentials) -> None:
    """Refuses a caller whose secret is not that of the worker (None: there is none with its id)."""
    known = worker is not None and (
        credentials.secret is None
        or hmac.compare_digest(worker.secret_hash, credentials.secret_hash or digest(credentials.secret))
    )
    if not known:
        raise TrackerError("unauthorized", "Unknown worker or wrong secret (headers X-Worker-ID and X-Secret)")


def check_worker(tx: Tx, worker: WithSecret | None, credentials: WorkerCredentials) -> None:
    """Refuses as check_secret does; notes that the worker was seen."""
    check_secret(worker, credentials)
    if abs(tx.time - worker.last_seen) >= LAST_SEEN_STEP:
        tx.seen.add(credentials.id)


def find_worker(tx: Tx, worker: int) -> KnownWorker | None:
    row = tx.one("SELECT id, secret_hash, last_seen, alias FROM worker WHERE id = ?", (worker,))
    return row and KnownWorker._make(row)


def authenticate(tx: Tx, credentials: WorkerCredentials) -> KnownWorker:
    """The worker that the caller is. 401 if it is none."""
    worker = find_worker(tx, credentials.id)
    check_worker(tx, worker, credentials)
    return worker


def logged_in(caller: Caller) -> Manager:
    """The manager that calls. 401 if it is none."""
    if caller.manager is None:
        raise TrackerError("unauthorized", "Please log in")
    return caller.manager


def check_admin(caller: Caller) -> None:
    if not logged_in(caller).tracker_admin:
        raise TrackerError("forbidden", "Only a tracker admin may do this")


class NoAccess(TrackerError):
    """What a worker wants in a project it has not been granted (yet)."""

    def __init__(self, access: str, project: int):
        super().__init__("forbidden", f"You have no {access.upper()} access to project {project}", "project")

    @property
    def message(self) -> str:
        """Without the field: clients that are in use know this text."""
        return self.problem


class Thing(NamedTuple):
    """What a call is about: how it is called, and how it is found by what stands in the path."""

    noun: str
    find: Callable[[Tx, Any], sqlite3.Row | None]

    def missing(self, key: Any) -> TrackerError:
        return TrackerError("not_found", f"No {self.noun} {key}")


class Need(NamedTuple):
    """What a call needs: a role of ROLE_NAMES in the project that its Thing is of, or LOGIN, ADMIN, WORKER, SEES.

    SEES: anybody who may see the project; LOGIN with a Thing: a manager who may. Without one, any manager.
    `worker`: a worker may make the call as well, if it is granted ASSIGN or SUBMIT there.
    """

    role: int | str
    of: Thing | None
    worker: str = ""
    says: str = ""  # who may make the call, where that is not all
    acts: bool = False  # whether it is kept that a manager has done it

    @property
    def name(self) -> str:
        """The role as people write it."""
        return ROLE_NAMES.get(self.role, self.role)


def needs(
    role: int | str,
    of: Thing | None = None,
    worker: str = "",
    by_itself: bool = False,
    says: str = "",
    acts: bool = False,
) -> Callable[[Callable], Callable]:
    """Declares what a function needs, and hands it what it is about: `(tx, caller, row, …)` for a call with an id.

    Refused in this order: 401, 404 (what is not there, or is of a hidden project), 403. A row that was found already is
    not looked up again. A function that finds out `by_itself` what it is about gets nothing. The documentation of the
    API says what is declared here. What changes something on behalf of a manager is an act (acts.py), which is kept.
    """
    if role == ADMIN and of:
        raise TypeError("an admin may have any: what it is about is not looked at, and nobody would check the admin")
    need = Need(role, of or (PROJECT if role == SEES or isinstance(role, int) else None), worker, says, acts)

    def declare(function: Callable) -> Callable:
        names = list(inspect.signature(function).parameters)[3 if need.of else 2 :]

        @functools.wraps(function)
        def checked(tx: Tx, caller: Caller, *args: Any, **place: Any) -> Any:
            if need.of is None:
                check_kind(caller, need.role)
                made = function(tx, caller, *args, **place)
            else:
                found, *args = accessible(tx, caller, need, args[0]), *args[1:]
                made = function(tx, caller, found, *args, **place)
            if acts and caller.manager:
                note(tx, caller.manager.id, function.__name__, names, found if need.of else None, args, made)
            return made

        declared = function if by_itself else checked
        declared.need = need
        return declared

    return declare


def check_kind(caller: Caller, role: str) -> None:
    """Refuses a caller of another kind: LOGIN, ADMIN or WORKER is needed."""
    if role == WORKER:
        if caller.worker is None:
            raise TrackerError("unauthorized", "Headers X-Worker-ID (the worker's number) and X-Secret are required")
    elif role == ADMIN:
        check_admin(caller)
    else:
        logged_in(caller)


def accessible(tx: Tx, caller: Caller, need: Need, key: Any) -> sqlite3.Row:
    """What a call is about, if the caller may have it."""
    if caller.worker is None and need.role != SEES:
        logged_in(caller)
    row = key if isinstance(key, sqlite3.Row) else need.of.find(tx, key)
    missing = need.of.missing(key)
    if row is None:
        raise missing
    project = row if need.of is PROJECT else find_project_row(tx, row["project"])
    check_access(tx, caller, project, need.role, missing, need.worker)
    return row


def check_access(
    tx: Tx,
    caller: Caller,
    project: sqlite3.Row | None,
    role: int | str,
    missing: TrackerError | None = None,
    worker: str = "",
) -> None:
    """Refuses a manager without the role in the project, and a worker without the access. 401, 404, 403.

    `missing` is said when there is no such project, and just so when it is hidden from the manager.
    """
    if caller.worker is None and role != SEES:
        logged_in(caller)
    if project is None:
        raise missing
    if caller.worker is not None:
        return check_granted(tx, caller.worker.id, project, worker, missing)
    roles = caller.role(project["id"])
    if project["hidden"] and not (roles & READ if role in (SEES, LOGIN) else roles):
        raise missing or PROJECT.missing(project["id"])
    if isinstance(role, int) and not roles & role:
        names = " or ".join(name for bit, name in ROLE_NAMES.items() if bit & role)
        raise TrackerError("forbidden", f"You have no {names} role in project {project['id']}")


def check_granted(tx: Tx, worker: int, project: sqlite3.Row, access: str, missing: TrackerError | None = None) -> None:
    """Refuses a worker that was not granted ASSIGN or SUBMIT in the project: a hidden one is not there for it."""
    if is_granted(tx, worker, project["id"], access):
        return
    if project["hidden"]:
        raise missing or PROJECT.missing(project["id"])
    raise NoAccess(access, project["id"])


def is_granted(tx: Tx, worker: int, project: int, access: str) -> bool:
    granted = f"SELECT 1 FROM worker_access WHERE project = ? AND worker = ? AND role_{access} AND NOT request"
    return tx.one(granted, (project, worker)) is not None


def find_project_row(tx: Tx, project: int) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM project WHERE id = ?", (project,))


PROJECT = Thing("project", find_project_row)


def find_project(tx: Tx, project: int) -> sqlite3.Row:
    """The project's row. 404 if there is none."""
    row = find_project_row(tx, project)
    if row is None:
        raise PROJECT.missing(project)
    return row


def sees_chain(tx: Tx, caller: Caller, project: Mapping[str, Any] | sqlite3.Row) -> bool:
    """Whether the caller may know which project this one is (or was) chained to: its columns `id` and `chain`."""
    target = project["chain"] and find_project_row(tx, project["chain"])
    return not target or not target["hidden"] or bool(caller.role(target["id"]) or caller.role(project["id"]) & EDIT)
