"""The clients of the Testflinger dialect: who they are, what they may, what they keep here for their jobs.

A *client* has a name (client_id) and a key. It comes with both (Basic), or with an access token that it got for them: a
JWT, valid for minutes, which some clients renew with a refresh token. What a client may is read from the database at
each request, and never from its token: a change acts at once. Everything here is a function (tx, …) without HTTP.
Sections (search for "# ── "):

    Credentials · Tokens · What a submission needs · Storing clients · For managers · For admin clients · Secrets
"""

from __future__ import annotations

import hmac
import json
import secrets
import sqlite3
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jwt
import msgspec
from msgspec import UNSET, Meta, UnsetType

import errors
import limits
import shapes
import tracker
from dialects.plumbing import basic_credentials
from dialects.testflinger.queues import find_queue, make_queue
from tracker import TrackerError, Tx

# ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────────────────

LAST_USED_STEP = 60  # seconds; a coarser last_used saves a write on nearly every request
ALGORITHM = "HS256"


class Client(NamedTuple):
    """Who calls, with what it may. The limits name a queue, or * for every queue."""

    id: str
    role: Role
    max_priority: dict[str, int]
    allowed_queues: list[str]
    max_reservation_time: dict[str, int]  # seconds
    stale: bool = False  # whether its last_used is due: note_use


def authenticate(tx: Tx, authorization: bytes | None, guesser: tracker.Guesser | None = None) -> Client | None:
    """The client whose Authorization header this is: a JWT (as Bearer or bare), or Basic client_id:client_key.

    None without credentials. Wrong ones are refused: a token that has expired as unauthorized ("expired": clients then
    get a new one), any other token as forbidden, a wrong key as unauthorized, and one after the other as too_fast. Only
    reads.
    """
    kind, _, token = (authorization or b"").strip().partition(b" ")
    if not kind:
        return None
    if kind.lower() == b"basic":
        return client_of(tx, check_key(tx, authorization, guesser))
    if kind.lower() == b"bearer":
        return client_of(tx, check_token(tx, token.strip()))
    if token:
        raise TrackerError("unauthorized", "Authorization: must be Bearer with a token, or Basic client_id:client_key")
    return client_of(tx, check_token(tx, kind))


def client_of(tx: Tx, row: sqlite3.Row) -> Client:
    limits = (msgspec.json.decode(row[name]) for name in LIMITS)
    return Client(row["id"], row["role"], *limits, stale=abs(tx.time - (row["last_used"] or 0)) >= LAST_USED_STEP)


def note_use(tx: Tx, client: str) -> None:
    tx.execute("UPDATE testflinger_client SET last_used = ? WHERE id = ?", (tx.time, client))


def check_key(tx: Tx, authorization: bytes | None, guesser: tracker.Guesser | None) -> sqlite3.Row:
    """The row of the client whose id and key these are. An unknown client takes as long as a wrong key."""
    given = basic_credentials(authorization)
    if given is None:
        raise TrackerError("unauthorized", "client_id and client_key are required: Authorization: Basic, in base64")
    client, key = given
    row = tx.one("SELECT * FROM testflinger_client WHERE id = ?", (client,))
    matches = (
        hmac.compare_digest(tracker.digest(key.encode()), row["key_hash"] if row else bytes(32)) and row is not None
    )
    if guesser:
        guesser.check(f"client {client[:200]}", key, matches, tx.uptime)
    if not matches:
        raise TrackerError("unauthorized", "Invalid client_id or client_key")
    return row


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ACCESS_LIFETIME = 600  # seconds
REFRESH_LIFETIME = 30 * 86400  # seconds
MOST_REFRESH = 1000  # of one client: each machine that logs in keeps one. The oldest goes
PRUNED_TOKENS = 500


@dataclass(frozen=True)
class Tokens:
    """What a client gets for its key, as it is answered."""

    access_token: str
    refresh_token: str | None
    expires_in: int = ACCESS_LIFETIME  # seconds until the access token expires
    token_type: str = "Bearer"


class Permissions(msgspec.Struct):
    client_id: str


class Claims(msgspec.Struct):
    """What a token says that is read again."""

    exp: int
    sub: Literal["access_token"]
    key: str
    permissions: Permissions


def issue_token(
    tx: Tx, authorization: bytes | None, with_refresh: bool = False, guesser: tracker.Guesser | None = None
) -> Tokens:
    """New tokens for client_id:client_key (Basic, and nothing else). Older clients do not refresh: they get none."""
    row = check_key(tx, authorization, guesser)
    refresh = store_refresh(tx, row["id"]) if with_refresh else None
    return Tokens(access_token(tx, row), refresh)


def refresh_token(tx: Tx, token: str) -> Tokens:
    """A new access token for a refresh token, which stays valid until its own end."""
    row = tx.one(
        "SELECT c.* FROM testflinger_refresh r JOIN testflinger_client c ON c.id = r.client"
        " WHERE r.hash = ? AND r.expires > ?",
        (tracker.digest(token.encode()), tx.trusted_time),
    )
    if row is None:  # as unauthorized, or with the word "expired", clients would try to refresh again, and for ever
        raise TrackerError("invalid", "not valid (any more), authenticate with client_id again", "refresh_token")
    return Tokens(access_token(tx, row), token)


def revoke_token(tx: Tx, token: str) -> None:
    """Ends a refresh token. One that is not valid anyway is no error."""
    tx.execute("DELETE FROM testflinger_refresh WHERE hash = ?", (tracker.digest(token.encode()),))


def prune_refresh(tx: Tx) -> bool:
    """Deletes some refresh tokens that have expired. Whether there may be more."""
    expired = "SELECT hash FROM testflinger_refresh WHERE expires <= ? LIMIT ?"
    deleted = tx.execute(f"DELETE FROM testflinger_refresh WHERE hash IN ({expired})", (tx.before(0), PRUNED_TOKENS))
    return deleted.rowcount == PRUNED_TOKENS


def access_token(tx: Tx, row: sqlite3.Row) -> str:
    """A JWT for the client of this row, valid from now on; and notes that the client was seen."""
    note_use(tx, row["id"])
    signing_key = tracker.load_meta(tx, "testflinger_key", lambda: secrets.token_bytes(32))
    claims = {
        "exp": tx.trusted_time + ACCESS_LIFETIME,
        "iat": tx.trusted_time,
        "sub": "access_token",
        "key": key_mark(signing_key, row),
        "permissions": permissions_json(row),
    }
    return jwt.encode(claims, signing_key, ALGORITHM)


def key_mark(signing_key: bytes, row: sqlite3.Row) -> str:
    """Ties a token to the client's present key: it ends with it, also when another client gets the same name.

    Keyed: whoever reads a token must not be able to try keys against it.
    """
    return hmac.digest(signing_key, row["key_hash"], "sha256")[:16].hex()


def check_token(tx: Tx, token: bytes) -> sqlite3.Row:
    """The row of the client whose access token this is."""
    meta = tx.one("SELECT value FROM meta WHERE key = 'testflinger_key'")  # none: no token was ever issued
    claims = meta and signed_claims(meta[0], token)
    if not claims:
        old = tx.one("SELECT value FROM meta WHERE key = 'testflinger_old_key'")
        if old and signed_claims(old[0], token):
            raise TrackerError("unauthorized", "Token has expired")
        raise TrackerError("forbidden", "Invalid token")
    now = tx.trusted_time
    if not now < claims.exp <= now + ACCESS_LIFETIME:  # one that lives longer is not ours, whoever had the key
        raise TrackerError("unauthorized", "Token has expired")
    row = tx.one("SELECT * FROM testflinger_client WHERE id = ?", (claims.permissions.client_id,))
    if row is None or not hmac.compare_digest(claims.key.encode(), key_mark(meta[0], row).encode()):
        raise TrackerError("forbidden", "Invalid token: its client is gone, or has a new key since")
    return row


def signed_claims(signing_key: bytes, token: bytes) -> Claims | None:
    """What the token says, if this tracker has signed it. Whether it has expired is another question."""
    own_clock = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    try:
        return msgspec.convert(jwt.decode(token, signing_key, algorithms=[ALGORITHM], options=own_clock), Claims)
    except (jwt.InvalidTokenError, msgspec.ValidationError, RecursionError):  # older PyJWT lets a deep header through
        return None


def store_refresh(tx: Tx, client: str) -> str:
    """A new refresh token of the client. Beyond MOST_REFRESH the oldest end."""
    token = secrets.token_urlsafe(32)
    older = "SELECT hash FROM testflinger_refresh WHERE client = ? ORDER BY expires DESC LIMIT -1 OFFSET ?"
    tx.execute(f"DELETE FROM testflinger_refresh WHERE hash IN ({older})", (client, MOST_REFRESH - 1))
    values = (tracker.digest(token.encode()), client, tx.trusted_time + REFRESH_LIFETIME)
    tx.execute("INSERT INTO testflinger_refresh (hash, client, expires) VALUES (?, ?, ?)", values)
    return token


# ── What a submission needs ───────────────────────────────────────────────────────────────────────────────────────────

FREE_RESERVATION = 6 * 3600  # seconds that need no client


def check_submission(
    tx: Tx, client: Client | None, queue: str, restricted: bool, priority: int, reservation: float | None
) -> None:
    """Refuses a job that needs more than its client has: its priority, then its queue, then its reservation (seconds).

    What needs nothing is not looked at. A priority below 0 asks for less than every client has: it needs a client, and
    no maximum.
    """
    if priority:
        most = maximum(needed(client, f"job_priority: {priority}").max_priority, queue)
        if priority > most:
            raise TrackerError("forbidden", f"{priority} is more than {most}, {has(client, queue)}", "job_priority")
    if restricted and queue not in needed(client, f"job_queue: {queue} is restricted and").allowed_queues:
        raise TrackerError("forbidden", f"{queue} is restricted, and client {client.id} is not allowed it", "job_queue")
    if reservation is not None and reservation > FREE_RESERVATION:
        asked = f"reserve_data.timeout: {reservation:.0f} s"
        most = max(FREE_RESERVATION, maximum(needed(client, asked).max_reservation_time, queue))
        if reservation > most:
            raise TrackerError("forbidden", f"{asked} is more than {most} s, {has(client, queue)}")


def maximum(limits: dict[str, int], queue: str) -> int:
    """What the limits allow on the queue: by its name or for every queue, whichever is more. 0 without any."""
    return max(limits.get("*", 0), limits.get(queue, 0))


def needed(client: Client | None, what: str) -> Client:
    """The client. Refuses (401) whoever asks for what needs one and has none."""
    if client is None:
        raise TrackerError("unauthorized", f"{what} needs a client's permission: authenticate with client_id")
    return client


def has(client: Client, queue: str) -> str:
    return f"the most that client {client.id} may ask for on queue {queue}"


# ── Storing clients ───────────────────────────────────────────────────────────────────────────────────────────────────

MOST_CLIENTS = 1000
MOST_LIMITS = 2**14  # characters of all of a client's limits: its token, with them in it, has to fit in a header
LIMITS = ("max_priority", "allowed_queues", "max_reservation_time")

MANAGED = ("contributor", "agent")  # the roles of those whom a manager among the clients administers
Role = Literal["contributor", "agent", "manager", "admin"]
MOST_MAXIMUM = 2**31 - 1
Maximums = dict[str, shapes.Natural]
ClientId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}\Z")]  # in paths, and before a colon
Key = Annotated[str, Meta(min_length=12, max_length=1000)]  # one that a person chose: nobody can guess that many


class LimitsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a client may. Absent fields take their default in a new client, and stay as they are in a change.

    Unknown ones are refused: a slip in a permission must not go unnoticed.
    """

    role: Role | UnsetType = UNSET
    email: Annotated[str, Meta(max_length=320)] | UnsetType = UNSET
    max_priority: Maximums | UnsetType = UNSET
    allowed_queues: list[str] | UnsetType = UNSET
    max_reservation_time: Maximums | UnsetType = UNSET


class ClientBody(LimitsBody, kw_only=True):
    """A new client, as a manager makes it. It gets a key."""

    client_id: ClientId


class PermissionsBody(LimitsBody, kw_only=True):
    """A client, as an admin client puts it below its name."""

    client_id: str | UnsetType = UNSET
    client_secret: Key | UnsetType = UNSET


class NewPermissionsBody(LimitsBody, kw_only=True):
    """A new client, as an admin client makes it, with the key that it chose."""

    client_id: ClientId
    client_secret: Key


def as_body(fields: dict[str, Any], kind: type) -> Any:
    """The fields as a body of that kind. What is none is refused in words for people."""
    try:
        return errors.convert(fields, kind)
    except TrackerError as refused:
        if refused.field != "client_id" or not isinstance(fields.get("client_id"), str):
            raise
        problem = "must have 1 to 200 of the characters A-Z a-z 0-9 _ . @ + -, and begin with a letter, a digit or _"
        raise TrackerError("invalid", problem, "client_id") from None


NEW_CLIENT = Client("", "contributor", {}, [], {})


def find_row(tx: Tx, client: str) -> sqlite3.Row:
    """The client's row. 404: unknown."""
    row = tx.one("SELECT * FROM testflinger_client WHERE id = ?", (client,))
    if row is None:
        raise TrackerError("not_found", f"No client {client[:200]}")
    return row


def maker(client: Client | None, source: str) -> str | None:
    """To whom a new queue counts: a contributor, or the network of somebody without credentials. None: to nobody.

    (No client's name begins with @.)
    """
    if client is None:
        return guest(client, source)
    return client.id if client.role == "contributor" else None


def guest(client: Client | None, source: str) -> str | None:
    """The network of somebody without credentials. None: it has some, or is on this machine."""
    return f"@{limits.site_of(source)}" if source and client is None else None


def insert_client(tx: Tx, client: str, key: str, manager: int | None, body: LimitsBody) -> sqlite3.Row:
    """Stores a client. Refuses a name that is taken."""
    if tx.one("SELECT 1 FROM testflinger_client WHERE id = ?", (client,)):
        raise TrackerError("conflict", f"there is a client {client} already", "client_id")
    if tx.one("SELECT 1 FROM testflinger_client LIMIT 1 OFFSET ?", (MOST_CLIENTS - 1,)):
        raise TrackerError("conflict", f"there are {MOST_CLIENTS:,} clients already", "client_id")
    fields = checked_limits(NEW_CLIENT, body)
    fields |= {"id": client, "key_hash": tracker.digest(key.encode()), "manager": manager, "created": tx.time}
    return tx.insert("testflinger_client", fields)


def change_limits(tx: Tx, row: sqlite3.Row, body: LimitsBody) -> sqlite3.Row:
    """The client's row with what the body changes. Refuses what checked_limits refuses."""
    fields = checked_limits(client_of(tx, row), body)
    changes = ", ".join(f"{name} = :{name}" for name in fields)
    return tx.one(f"UPDATE testflinger_client SET {changes} WHERE id = :id RETURNING *", {**fields, "id": row["id"]})


def change_key(tx: Tx, client: str, key: str) -> None:
    """Replaces a client's key. All tokens that it got for the old one end."""
    tx.execute("UPDATE testflinger_client SET key_hash = ? WHERE id = ?", (tracker.digest(key.encode()), client))
    tx.execute("DELETE FROM testflinger_refresh WHERE client = ?", (client,))


def drop_client(tx: Tx, client: str) -> None:
    """Deletes a client. Its tokens and secrets end; its jobs go on."""
    tx.execute("DELETE FROM testflinger_client WHERE id = ?", (find_row(tx, client)["id"],))


def checked_limits(old: Client, body: LimitsBody) -> dict[str, str]:
    """The columns of a new or changed client, or the reason why it is refused."""
    given = {name: getattr(body, name) for name in ("role", *LIMITS) if getattr(body, name) is not UNSET}
    new = old._replace(**given)
    for name in LIMITS:
        for queue in getattr(new, name):
            if not queue.strip() or len(queue) > 200:
                raise TrackerError("invalid", "the name of a queue has 1 to 200 characters, and not only spaces", name)
    if "*" in new.allowed_queues:
        raise TrackerError("invalid", "* stands for no queue here, name each one", "allowed_queues")
    new = new._replace(allowed_queues=list(dict.fromkeys(new.allowed_queues)))
    limits = {name: json.dumps(getattr(new, name)) for name in LIMITS}
    if sum(map(len, limits.values())) > MOST_LIMITS:
        most = f"together more than {MOST_LIMITS // 1024} KiB"
        raise TrackerError("invalid", f"{most}, no token could carry them", f"{', '.join(LIMITS)}")
    return {"role": new.role, **limits, **({} if body.email is UNSET else {"email": body.email})}


def permissions_json(row: sqlite3.Row) -> dict[str, Any]:
    """What a client may, as its token says it."""
    limits = {name: msgspec.json.decode(row[name]) for name in LIMITS}
    return {"client_id": row["id"], **limits, "role": row["role"]}


def shown_json(row: sqlite3.Row) -> dict[str, Any]:
    """A client as the API shows it: what it may, and whom to ask about it if that is known."""
    return {**permissions_json(row), **({"email": row["email"]} if row["email"] else {})}


# ── For managers ──────────────────────────────────────────────────────────────────────────────────────────────────────

LISTED_CLIENT = """
    SELECT c.*, m.username, (SELECT COUNT(*) FROM testflinger_secret WHERE client = c.id) AS secret_count
    FROM testflinger_client c LEFT JOIN manager m ON m.id = c.manager"""


def client_json(row: sqlite3.Row) -> dict[str, Any]:
    """A client as managers see it. `username` is who made it; None: an admin client has."""
    more = ("created", "last_used", "username", "secret_count")
    return {**shown_json(row), **{name: row[name] for name in more}}


@tracker.needs(tracker.ADMIN)
def list_clients(tx: Tx, caller: tracker.Caller) -> list[dict[str, Any]]:
    """All clients by name."""
    return [client_json(row) for row in tx.all(f"{LISTED_CLIENT} ORDER BY c.id")]


@tracker.needs(tracker.ADMIN)
def find_client(tx: Tx, caller: tracker.Caller, client: str) -> dict[str, Any]:
    """One client."""
    return client_json(tx.one(f"{LISTED_CLIENT} WHERE c.id = ?", (find_row(tx, client)["id"],)))


@tracker.needs(tracker.ADMIN, acts=True)
def create_client(tx: Tx, caller: tracker.Caller, body: ClientBody) -> tuple[dict[str, Any], str]:
    """A new client, and its key, which is in the answer and nowhere else."""
    key = secrets.token_urlsafe(32)
    insert_client(tx, body.client_id, key, caller.manager.id, body)
    return find_client(tx, caller, body.client_id), key


@tracker.needs(tracker.ADMIN, acts=True)
def update_client(tx: Tx, caller: tracker.Caller, client: str, body: LimitsBody) -> None:
    """Changes a client's role and limits. Takes effect with its very next request."""
    change_limits(tx, find_row(tx, client), body)


@tracker.needs(tracker.ADMIN)
def key_hash(tx: Tx, caller: tracker.Caller, client: str) -> bytes:
    """The hash of a client's present key."""
    return find_row(tx, client)["key_hash"]


@tracker.needs(tracker.ADMIN, acts=True)
def rotate_signing_key(tx: Tx, caller: tracker.Caller) -> None:
    """From now on another key signs tokens. Those of the old one are as if they had expired: clients renew them."""
    if (old := tx.one("SELECT value FROM meta WHERE key = 'testflinger_key'")) is not None:
        tx.execute("INSERT OR REPLACE INTO meta VALUES ('testflinger_old_key', ?)", (old[0],))
    tx.execute("INSERT OR REPLACE INTO meta VALUES ('testflinger_key', ?)", (secrets.token_bytes(32),))


@tracker.needs(tracker.ADMIN, acts=True)
def rotate_key(tx: Tx, caller: tracker.Caller, client: str, old: bytes | None = None) -> str:
    """A client's new key, which is in the answer and nowhere else. The old one and its tokens end.

    With the hash of the key that it is to replace, refuses when that has been replaced already.
    """
    if old not in (None, key_hash(tx, caller, client)):
        raise TrackerError("conflict", f"The client {client} has got another key meanwhile")
    key = secrets.token_urlsafe(32)
    change_key(tx, find_row(tx, client)["id"], key)
    return key


@tracker.needs(tracker.ADMIN, acts=True)
def delete_client(tx: Tx, caller: tracker.Caller, client: str) -> None:
    """Deletes a client. Its tokens and secrets end; its jobs go on."""
    drop_client(tx, client)


@tracker.needs(tracker.ADMIN, acts=True)
def set_restricted(tx: Tx, caller: tracker.Caller, project: int, restricted: bool) -> None:
    """Whether only clients that are allowed the queue may submit to it."""
    restrict(tx, project, restricted)


def restrict(tx: Tx, project: int, restricted: bool) -> None:
    """Restricts a queue, or opens it. 404: the project is none."""
    if not tx.execute("UPDATE testflinger_queue SET restricted = ? WHERE project = ?", (restricted, project)).rowcount:
        raise TrackerError("not_found", f"Project {project} is no queue of Testflinger's")


# ── For admin clients ─────────────────────────────────────────────────────────────────────────────────────────────────


def require_admin_client(caller: Client | None) -> Client:
    """Refuses everybody but admin clients, also where anybody may submit."""
    if caller is None:
        raise TrackerError("unauthorized", "This needs an admin client: authenticate with client_id")
    if caller.role != "admin":
        raise TrackerError("forbidden", f"Only an admin client may do this, and {caller.id} has the role {caller.role}")
    return caller


def require_manager_client(caller: Client | None, *roles: str | UnsetType) -> None:
    """Refuses everybody but admin clients and managers. Where other managers or admins are concerned, managers too."""
    if caller is None or caller.role != "manager" or not set(roles) <= {*MANAGED, UNSET}:
        require_admin_client(caller)


def list_permissions(tx: Tx, caller: Client | None) -> list[dict[str, Any]]:
    """What each client may, by name. For admin clients and managers."""
    require_manager_client(caller)
    return [shown_json(row) for row in tx.all("SELECT * FROM testflinger_client ORDER BY id")]


def get_permissions(tx: Tx, caller: Client | None, client: str) -> dict[str, Any]:
    """What a client may. For admin clients and managers."""
    require_manager_client(caller)
    return shown_json(find_row(tx, client))


def create_permissions(tx: Tx, caller: Client | None, body: NewPermissionsBody) -> dict[str, Any]:
    """A new client with a key that the caller chose. The same again is a repeat. For admin clients and managers."""
    require_manager_client(caller, body.role)
    row = tx.one("SELECT * FROM testflinger_client WHERE id = ?", (body.client_id,))
    made = {"key_hash": tracker.digest(body.client_secret.encode()), **checked_limits(NEW_CLIENT, body)}
    if row is None or any(row[name] != value for name, value in made.items()):
        row = insert_client(tx, body.client_id, body.client_secret, None, body)
    return shown_json(row)


def put_permissions(tx: Tx, caller: Client | None, client: str, body: PermissionsBody) -> dict[str, Any]:
    """Changes what a client may, and its key if there is a client_secret; a client that is unknown is made with it.

    For admin clients and managers.
    """
    require_manager_client(caller, body.role)
    if body.client_id not in (UNSET, client):
        raise TrackerError("invalid", f"must be {client[:200]}, as in the path", "client_id")
    row = tx.one("SELECT * FROM testflinger_client WHERE id = ?", (client,))
    if row is None:
        fields = {**errors.given_fields(body), "client_id": client}
        return create_permissions(tx, caller, as_body(fields, NewPermissionsBody))
    require_manager_client(caller, row["role"])
    changed = change_limits(tx, row, body)
    if body.client_secret is not UNSET:
        change_key(tx, client, body.client_secret)
    return shown_json(changed)


def delete_permissions(tx: Tx, caller: Client | None, client: str) -> None:
    """Deletes a client. Its tokens and secrets end; its jobs go on. For admin clients and managers."""
    require_manager_client(caller)
    require_manager_client(caller, find_row(tx, client)["role"])
    drop_client(tx, client)


def list_restricted_queues(tx: Tx, caller: Client | None) -> list[dict[str, Any]]:
    """The restricted queues by name, each with its owners: the clients that are allowed it.

    For admin clients, managers and contributors.
    """
    if caller is None or caller.role != "contributor":
        require_manager_client(caller)
    return [restricted_queue_json(queue, owners) for queue, owners in restricted_owners(tx).items()]


def restricted_owners(tx: Tx) -> dict[str, list[str]]:
    """The restricted queues by name, and the clients that are allowed each."""
    restricted = tx.all(
        "SELECT p.name FROM testflinger_queue q JOIN project p ON p.id = q.project WHERE q.restricted ORDER BY p.name"
    )
    owners: dict[str, list[str]] = {name: [] for (name,) in restricted}
    if owners:
        for queue, client in tx.execute(
            "SELECT q.value, c.id FROM testflinger_client c JOIN json_each(c.allowed_queues) q ORDER BY c.id"
        ):
            if queue in owners:
                owners[queue].append(client)
    return owners


def get_restricted_queue(tx: Tx, caller: Client | None, queue: str) -> dict[str, Any]:
    """A restricted queue with its owners. For admin clients and managers."""
    require_manager_client(caller)
    owners = restricted_owners(tx).get(queue)
    if owners is None:
        raise TrackerError("not_found", f"No restricted queue {queue[:200]}")
    return restricted_queue_json(queue, owners)


def restricted_queue_json(queue: str, owners: list[str]) -> dict[str, Any]:
    return {"name": queue, "queue": queue, "owners": owners}


def add_restricted_queue(tx: Tx, caller: Client | None, queue: str, client: str | None = None) -> dict[str, Any]:
    """Restricts a queue, which need not exist yet, and allows it to the client if one is named (404: unknown).

    One that is restricted already stays so. For admin clients and managers.
    """
    require_manager_client(caller)
    if client is not None:
        find_row(tx, client)
    restrict(tx, make_queue(tx, queue, "queue"), True)
    if client is not None:
        allow_queue(tx, client, queue, True)
    return get_restricted_queue(tx, caller, queue)


def remove_restricted_queue(tx: Tx, caller: Client | None, queue: str, client: str | None = None) -> None:
    """Lets everybody who may submit submit to the queue again; or takes it away from the client, if one is named.

    For admin clients and managers.
    """
    get_restricted_queue(tx, caller, queue)
    if client is not None:
        allow_queue(tx, client, queue, False)
    else:
        restrict(tx, find_queue(tx, queue)["project"], False)


def allow_queue(tx: Tx, client: str, queue: str, allowed: bool) -> None:
    """Whether the client may submit to the queue although it is restricted. 404: unknown client."""
    row = find_row(tx, client)
    others = [one for one in client_of(tx, row).allowed_queues if one != queue]
    change_limits(tx, row, LimitsBody(allowed_queues=[*others, *[queue] * allowed]))


# ── Secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_SECRETS = 100  # of one client
MOST_PATH = 500  # characters
MOST_SECRET = 2**16  # bytes


class SecretBody(msgspec.Struct):
    value: str


def put_secret(tx: Tx, caller: Client | None, client: str, path: str, body: SecretBody) -> None:
    """Keeps a secret for the jobs of a client, or replaces it. For that client and for admin clients.

    A path may have slashes. Refuses what is too large or too much, and NUL characters.
    """
    require_self(caller, client)
    find_row(tx, client)
    if not 1 <= len(path) <= MOST_PATH or not path.isprintable():
        raise TrackerError("invalid", f"must have 1 to {MOST_PATH} printable characters", "path")
    if "\0" in body.value:
        raise TrackerError("invalid", "must not contain a NUL character", "value")
    if len(body.value.encode()) > MOST_SECRET:
        raise TrackerError("too_large", f"more than {MOST_SECRET // 1024} KiB", "value")
    others = "SELECT 1 FROM testflinger_secret WHERE client = ? AND path <> ? LIMIT 1 OFFSET ?"
    if tx.one(others, (client, path, MOST_SECRETS - 1)):
        raise TrackerError("conflict", f"client {client} has {MOST_SECRETS} secrets already", "path")
    stored = "INSERT OR REPLACE INTO testflinger_secret (client, path, value) VALUES (?, ?, ?)"
    tx.execute(stored, (client, path, body.value))


def delete_secret(tx: Tx, caller: Client | None, client: str, path: str) -> None:
    """Forgets a secret. For that client and for admin clients."""
    require_self(caller, client)
    if not tx.execute("DELETE FROM testflinger_secret WHERE client = ? AND path = ?", (client, path)).rowcount:
        raise TrackerError("not_found", f"No secret {path[:MOST_PATH]}")


def secret_value(tx: Tx, client: str | None, path: str) -> str | None:
    """The secret that a job of this client names. None: there is none."""
    row = tx.one("SELECT value FROM testflinger_secret WHERE client = ? AND path = ?", (client, path))
    return row and row["value"]


def require_self(caller: Client | None, client: str) -> None:
    """Refuses everybody but the client itself and admin clients."""
    if caller is None or caller.id != client:
        require_admin_client(caller)
