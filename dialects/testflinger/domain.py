"""What the Testflinger dialect keeps and does: functions (tx, …) that know no HTTP.

A queue there is a project that this dialect has made, a job is a job of it, an agent is a worker. Beside every job of
such a project stands a testflinger_job row, whichever door that came through (events). What agents report is kept by
job id, also for ids that nobody knows. Sections (search for "# ── "):

    Jobs submitted · Jobs picked · Jobs looked at · Results · Output · Files · Agents · Forgotten
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from sqlite3 import Row
from typing import Any, NamedTuple

import msgspec

import budgets
import joblog
import shapes
import tracker
from dialects.plumbing import iso
from dialects.testflinger import clients
from dialects.testflinger.files import no_room
from dialects.testflinger.queues import OF_A_QUEUE, Unprocessable, check_room, find_queue, is_full, make_queue, room_in
from limits import Limit
from tracker import Raw, TrackerError, Tx, WorkerCredentials, encode

OLDER = "2025"
PHASES = ("setup", "provision", "firmware_update", "test", "allocate", "reserve", "cleanup")
ENDED = ("complete", "completed")  # two words for the same
STATES = ("waiting", "running", *PHASES[:5], "allocated", *PHASES[5:], *ENDED, "cancelled")
KINDS = ("output", "serial")
VERDICT = {"status", *(f"{phase}_status" for phase in PHASES), "output", "device_info"}  # release_job reads these
MOST_REPORTED = 16 * 2**20  # bytes of results, and of output outside a job's log, for one job id
PICKED_BY = ""  # the field that no agent reports: with whose credentials the job was picked
FIELD_SIZE = 100  # bytes that a field of a result counts besides its name and value: a row takes room, too


# ── Jobs submitted ────────────────────────────────────────────────────────────────────────────────────────────────────

MARGIN = 600  # seconds that an agent may take beyond a job's own times: provisioning, cleaning up, uploading
RESERVATION = 3600  # seconds that agents keep a machine reserved when the job does not say
NEVER = 1e9  # seconds; the lease of a job without a global_timeout: nobody else may run it on other hardware


class Submission(NamedTuple):
    """A job that is wanted. `definition` is what its agent is given: everything that was sent."""

    definition: dict[str, Any]
    queue: str
    uuid: str | None = None
    priority: int = 0
    tags: Sequence[str] = ()
    excluded: Sequence[str] = ()
    attachments: bool = False
    secrets: dict[str, str] | None = None
    global_timeout: int | None = None
    reservation: float | None = None  # seconds
    script: str = ""


def submit_job(tx: Tx, client: clients.Client | None, wanted: Submission, source: str = "") -> str:
    """Stores a job and returns its id. It can be picked at once, unless it waits for its attachments.

    A repeat, which its own job_id tells, is answered as the first time. Refuses (401, 403) what the client may not ask
    for; (Unprocessable) another job's id, a job that no agent may have.
    """
    if wanted.uuid and (job := find_job(tx, wanted.uuid)):
        return repeated(client, job, wanted)
    queue = find_queue(tx, wanted.queue)
    restricted = bool(queue and queue["restricted"])
    clients.check_submission(tx, client, wanted.queue, restricted, wanted.priority, wanted.reservation)
    check_secrets(tx, client, wanted)
    check_agents_left(tx, wanted)
    tx.limits.check_disk()
    check_room(tx)
    project = make_queue(tx, wanted.queue, maker=clients.maker(client, source))
    with tracker.charge_trigger(tx, project):
        job = tracker.insert_job_alone(tx, job_columns(tx, project, wanted))
    attachments, secret = "waiting" if wanted.attachments else "none", bool(wanted.secrets)
    (uuid,) = tx.one(
        "UPDATE testflinger_job SET uuid = ifnull(?, uuid), attachments = ?, client = ?, secret = ? WHERE job = ?"
        " RETURNING uuid",
        (wanted.uuid, attachments, client and client.id, secret, job["id"]),
    )
    tx.executemany("INSERT OR IGNORE INTO testflinger_tag VALUES (?, ?)", [(tag, job["id"]) for tag in wanted.tags])
    excluded = [(job["id"], agent) for agent in wanted.excluded]
    tx.executemany("INSERT OR IGNORE INTO testflinger_exclusion VALUES (?, ?)", excluded)
    if not wanted.attachments:
        tracker.queue_job(tx, job)
    return uuid


def repeated(client: clients.Client | None, job: Row, wanted: Submission) -> str:
    """The id of a job that its client submits once more. Refuses (Unprocessable) what is not the very same."""
    own = job["template"] is None and job["client"] == (client and client.id)
    if not own or msgspec.json.decode(job["recipe"]) != msgspec.json.decode(encode(wanted.definition)):
        raise Unprocessable("job_id", "there is another job with this id already")
    return job["uuid"]


def job_columns(tx: Tx, project: int, wanted: Submission) -> dict[str, Any]:
    name = wanted.definition.get("name")
    return {
        "project": project,
        "name": (name if isinstance(name, str) else "")[:200].strip() or wanted.queue,
        "recipe": encode(wanted.definition).decode(),
        "script": tracker.store_script(tx, wanted.script) if wanted.script else None,
        "runas": "bash %script%" if wanted.script else "",
        "variables": "{}",
        "arguments": "[]",
        "env": "{}",
        "timeout": lease_time(wanted),
        "max_retries": 0,  # no second run on other hardware
        "priority": wanted.priority,
        "origin": "testflinger",
    }


def lease_time(wanted: Submission) -> float:
    """How long the job's agent may give no sign of life, in seconds.

    One of several devices waits for the others, however long their jobs take.
    """
    given = wanted.definition
    if wanted.global_timeout is None or given.get("allocate_data") or given.get("parent_job_id"):
        return NEVER
    reserves = given.get("reserve_data") is not None
    reservation = wanted.reservation if wanted.reservation is not None else RESERVATION * reserves
    return min(wanted.global_timeout + reservation + MARGIN, NEVER)


def check_secrets(tx: Tx, client: clients.Client | None, wanted: Submission) -> None:
    """Refuses secrets that the client has not left here."""
    if wanted.secrets and client is None:
        raise TrackerError("unauthorized", "only a client with credentials has secrets", "test_data.secrets")
    for path in (wanted.secrets or {}).values():
        if clients.secret_value(tx, client.id, path) is None:
            raise Unprocessable("test_data", f"secrets: the client {client.id} has none named {path!r}")


def check_agents_left(tx: Tx, wanted: Submission) -> None:
    """Refuses a job that excludes every agent of its queue."""
    agents = set(names_listening(tx, wanted.queue)) if wanted.excluded else set()
    if agents and agents <= set(wanted.excluded):
        raise Unprocessable("exclude_agents", f"no agent of the queue {wanted.queue!r} is left")


# ── Jobs picked ───────────────────────────────────────────────────────────────────────────────────────────────────────

WAITING = "project = :project AND state = 'waiting' AND attachments <> 'waiting' AND NOT delayed"
FIRST_WAITING = f"""
    SELECT job, priority, project, :rate AS rate, :free AS free FROM testflinger_job t WHERE {WAITING}
    AND NOT EXISTS (SELECT 1 FROM testflinger_exclusion WHERE job = t.job AND agent = :agent)
    AND (:client OR NOT secret) ORDER BY priority DESC, job LIMIT 1
"""


def best_job(tx: Tx, client: clients.Client | None, queues: Iterable[str], agent: str | None) -> Row | None:
    """The job that the agent would be given, with the rate of its queue. A manager may have paused queue or agent.

    Secrets are for agents alone that have proved who they are.
    """
    worker = agent_worker(tx, agent)
    if worker is not None and tx.one("SELECT paused FROM worker WHERE id = ?", (worker,))["paused"]:
        return None
    values, firsts = {"agent": agent or "", "client": client is not None}, []
    for name in dict.fromkeys(queues):
        queue = find_queue(tx, name)
        if queue and not queue["paused"] and queue["assign_free_uptime"] <= tx.uptime:
            values |= {"project": queue["project"], "rate": queue["assign_rate"]}
            values["free"] = queue["assign_free_uptime"]
            firsts.append(tx.one(FIRST_WAITING, values))
    return max(filter(None, firsts), key=lambda row: (row["priority"], -row["job"]), default=None)


class Picked(NamedTuple):
    """The job as its agent is given it, who that is to the tracker, and the task with its attempt."""

    shown: dict[str, Any]
    worker: int
    task: tuple[int, int]


def pick_job(tx: Tx, client: clients.Client | None, queues: Iterable[str], agent: str | None) -> Picked | None:
    """Assigns to the agent the best job of these queues: the highest priority, then the oldest. None: there is none.

    Nobody else gets the job, ever.
    """
    best = best_job(tx, client, queues, agent)
    if best is None:
        return None
    job, worker = tx.one(f"{JOB} WHERE t.job = ?", (best["job"],)), agent_worker(tx, agent)
    worker = worker or make_agent_worker(tx, agent)
    if best["rate"]:
        limit = Limit("assign", best["project"], best["rate"], best["free"])
        tracker.charge_assign(tx, Counter({limit: 1}), worker)
    tracker.assign_job(tx, job, worker)
    tx.execute("UPDATE testflinger_job SET agent = ? WHERE job = ?", (agent or "", job["id"]))
    forget_reports(tx, job, client)
    attempt = tx.one("SELECT attempt FROM task WHERE id = ?", (job["task"],))["attempt"]
    return Picked(picked_json(tx, job), worker, (job["task"], attempt))


def forget_reports(tx: Tx, job: Row, client: clients.Client | None) -> None:
    """The job is about to be run: nobody can have told how that goes, and with credentials that client alone does."""
    uuid = job["uuid"]
    if job["attempts"] or client is not None:  # what the one before reported after it lost the job, or a stranger
        tx.execute("DELETE FROM testflinger_outcome WHERE uuid = ?", (uuid,))
    else:
        told = "DELETE FROM testflinger_result WHERE uuid = ? AND name IN (SELECT value FROM json_each(?))"
        tx.execute(told, (uuid, encode({*VERDICT, PICKED_BY}).decode()))
    if client is not None:
        tx.execute("DELETE FROM testflinger_file WHERE uuid = ? AND kind = 'artifact'", (uuid,))
        grow(tx, uuid)
        store_field(tx, uuid, PICKED_BY, Raw(encode(client.id)))


def picked_json(tx: Tx, job: Row) -> dict[str, Any]:
    """The job as its agent is given it."""
    shown = {**definition(tx, job), "job_id": job["uuid"], "started_at": iso(tx.now)}
    if job["attachments"] != "none":
        shown["attachments_status"] = job["attachments"]
    return with_secrets(tx, shown, job["client"])


def definition(tx: Tx, job: Row) -> dict[str, Any]:
    """What was submitted. Of a job that came through another door: the same as a definition, a script as test_cmds."""
    if job["template"] is None:
        return msgspec.json.decode(job["recipe"])
    script = tx.one("SELECT source FROM script WHERE id = ?", (job["script"],))
    queue = tx.one("SELECT name FROM project WHERE id = ?", (job["project"],))["name"]
    return {
        "job_queue": queue,
        "name": job["name"],
        "job_priority": job["priority"],
        "test_data": {"test_cmds": script["source"] if script else job["recipe"]},
        **{name: Raw(job[name].encode()) for name in ("variables", "arguments", "env")},
    }


def with_secrets(tx: Tx, shown: dict[str, Any], client: str | None) -> dict[str, Any]:
    """The definition with the values of the secrets that it names. One that is gone meanwhile is empty."""
    data = shown.get("test_data")
    if client is None or not isinstance(data, dict) or not isinstance(data.get("secrets"), dict):
        return shown
    values = {name: clients.secret_value(tx, client, path) or "" for name, path in data["secrets"].items()}
    return {**shown, "test_data": {**data, "secrets": values}}


# ── Jobs looked at ────────────────────────────────────────────────────────────────────────────────────────────────────

JOB = (
    "SELECT j.*, t.uuid, t.state AS shown_state, t.attachments, t.agent, t.client, t.secret"
    " FROM testflinger_job t JOIN job j ON j.id = t.job"
)


def find_job(tx: Tx, uuid: str) -> Row | None:
    """A job of a queue by its id, with `shown_state`, `attachments` and the `agent` that picked it."""
    return tx.one(f"{JOB} WHERE t.uuid = ?", (uuid,))


def get_job(tx: Tx, uuid: str) -> dict[str, Any] | None:
    """What was submitted, and the job's id. None for an unknown job."""
    job = find_job(tx, uuid)
    return job and {**definition(tx, job), "job_id": uuid}


def position(tx: Tx, uuid: str) -> int | None:
    """How many jobs of its queue come before this one. None unless it is waiting."""
    row = tx.one("SELECT job, project, priority, state FROM testflinger_job WHERE uuid = ?", (uuid,))
    if row is None or row["state"] != "waiting":
        return None
    ahead = f"SELECT COUNT(*) FROM testflinger_job WHERE {WAITING} AND"  # one condition for both would read more
    counts = f"SELECT ({ahead} priority > :priority) + ({ahead} priority = :priority AND job < :job)"
    return tx.one(counts, dict(row))[0]


def cancel_job(tx: Tx, uuid: str, by: str) -> None:
    """Cancels a job that has not ended; its agent sees that and stops. 400 when it has ended.

    404 for an unknown job, which to the newer generation is one that has ended.
    """
    job = find_job(tx, uuid)
    if job is None and tx.settings.testflinger_version == OLDER:
        raise TrackerError("not_found", f"There is no job {uuid}")
    if job is None or job["finished"] is not None:
        state = job["shown_state"] if job else "unknown"
        raise TrackerError("invalid", f"The job is already completed or cancelled: it is {state}")
    tracker.stop_job(tx, job, by)


class Search(NamedTuple):
    """Which jobs: with one or all of the tags (none: any job), in one of the states (none: any), of a queue."""

    tags: Sequence[str] = ()
    every_tag: bool = False
    states: Sequence[str] = ()
    project: int | None = None


PIECE_JOBS = 250  # jobs that one transaction looks at: meanwhile other requests get less of the processor
MOST_TAGS = 100  # in one search
MOST_SORTED = 10_000  # candidates of all the words of a search
LIVE = set(STATES) - {*ENDED, "cancelled"}


def search_jobs(tx: Tx, wanted: Search, after: int = 0) -> tuple[list[dict[str, Any]], int | None]:
    """The next jobs of a search, by age, and the one after which to go on (None: no more).

    Looks at a bounded number, so a piece may be empty and yet have a next one.
    """
    sql, values = search_sql(wanted, *way_to(tx, wanted, after))
    rows = tx.all(sql, {**values, "after": after})
    jobs = [
        {"job_id": row["uuid"], "created_at": iso(row["created"]), "job_state": row["state"]}
        for row in rows
        if row["matches"]
    ]
    return jobs, rows[-1]["job"] if len(rows) == values["piece"] else None


def way_to(tx: Tx, wanted: Search, after: int) -> tuple[str, Sequence[Any]]:
    """The column by whose index the candidates are found, and its values: those that leave the fewest."""
    if wanted.project is not None:
        return "project", [wanted.project]
    ways = [("tag", [tag]) for tag in wanted.tags] if wanted.every_tag else [("tag", wanted.tags)]
    # Where a piece is not enough to tell, the first one is taken: most jobs have ended.
    ways.insert(0 if set(wanted.states) <= LIVE else len(ways), ("state", wanted.states))
    ways = [(column, words) for column, words in ways if words]
    if not ways:
        return "TRUE", [1]
    return min(ways, key=lambda way: candidates(tx, *way, after)) if len(ways) > 1 else ways[0]


def candidates(tx: Tx, column: str, words: Sequence[str], after: int) -> int:
    """How many jobs there are to look at; not more than a piece is counted of each word."""
    some = f"SELECT 1 FROM {table_of(column)} WHERE {column} = ? AND job > ? LIMIT ?"
    return sum(tx.one(f"SELECT COUNT(*) FROM ({some})", (word, after, PIECE_JOBS))[0] for word in words)


def table_of(column: str) -> str:
    """Where a column stands by which jobs are searched."""
    return "testflinger_tag" if column == "tag" else "testflinger_job"


def search_sql(wanted: Search, column: str, words: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """The jobs that have one of the words in the column, in the order of their ids, and whether they match.

    One LIMIT for each word and one for all: so nothing but a piece of each is ever sorted.
    """
    words = list(dict.fromkeys(words))
    ranges = [
        f"SELECT job FROM (SELECT job FROM {table_of(column)} WHERE {column} = :word{number}"
        " AND job > :after ORDER BY job LIMIT :piece)"
        for number in range(len(words))
    ]
    conditions = ["TRUE"]
    if wanted.states and column != "state":
        conditions.append("t.state IN (SELECT value FROM json_each(:states))")
    if wanted.tags and (column != "tag" or wanted.every_tag):
        conditions.append(
            "(SELECT COUNT(*) FROM testflinger_tag WHERE job = t.job AND tag IN (SELECT value FROM json_each(:tags)))"
            " >= :least"
        )
    sql = (
        f"SELECT t.job, t.uuid, t.state, j.created, {' AND '.join(conditions)} AS matches FROM"
        f" (SELECT job FROM ({' UNION '.join(ranges)}) ORDER BY job LIMIT :piece) AS candidate"
        " CROSS JOIN testflinger_job t ON t.job = candidate.job CROSS JOIN job j ON j.id = t.job ORDER BY t.job"
    )
    return sql, {
        **{f"word{number}": word for number, word in enumerate(words)},
        "piece": min(PIECE_JOBS, MOST_SORTED // len(words)),
        "states": encode(wanted.states).decode(),
        "tags": encode(wanted.tags).decode(),
        "least": len(set(wanted.tags)) if wanted.every_tag else 1,
    }


# ── Results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_reporter(tx: Tx, client: clients.Client | None, uuid: str) -> None:
    """Refuses (401, 403) what anybody reports of a job but the client with whose credentials it was picked.

    Of a job that was picked without any, or whose client is gone, and of an unknown one, anybody may report.
    """
    row = tx.one("SELECT value FROM testflinger_result WHERE uuid = ? AND name = ?", (uuid, PICKED_BY))
    picked_by = row and msgspec.json.decode(row["value"])
    if not isinstance(picked_by, str) or (client is not None and client.id == picked_by):
        return
    if tx.one("SELECT 1 FROM testflinger_client WHERE id = ?", (picked_by,)):
        code = "unauthorized" if client is None else "forbidden"
        raise TrackerError(code, f"The job {uuid} was picked by another client, which alone reports of it")


EVENTS_AFTER = 3600  # seconds after its end in which a job's agent may still tell of it: it cleans up first


def check_events(tx: Tx, client: clients.Client | None, uuid: str, agent: str | None) -> bool:
    """Refuses (404, 401, 403) an event of anything but a job that this agent has, or had until a short time ago.

    Whether a tracker admin trusts its queue.
    """
    job = find_job(tx, uuid)
    ended = job is not None and job["finished"] is not None and job["finished"] < tx.now - EVENTS_AFTER
    if job is None or job["agent"] is None or ended or agent not in (None, job["agent"] or agent):
        raise TrackerError("not_found", f"There is no job {uuid} of this agent's, nor was there one just now")
    check_reporter(tx, client, uuid)
    return budgets.is_trusted(tx, job["project"])


def get_result(tx: Tx, uuid: str) -> dict[str, Any] | None:
    """All that has been reported for a job id, merged, and the job's state. None: nothing is known of it."""
    rows = tx.all(
        "SELECT name, length(CAST(value AS BLOB)) AS size,"
        " iif(name = 'status' OR length(value) <= ?, value, NULL) AS value FROM testflinger_result WHERE uuid = ?"
        " AND name <> ?",
        (MOST_AT_ONCE, uuid, PICKED_BY),
    )
    job = find_job(tx, uuid)
    unheard = VERDICT if is_foreign(job) else ()  # of another kind of worker's job nobody who reports here knows better
    shown: dict[str, Any] = {row["name"]: reported_value(uuid, row) for row in rows if row["name"] not in unheard}
    texts = written_output(tx, uuid, job, shown)
    if job is None and not shown and not texts:
        return None
    statuses = msgspec.json.decode(shown["status"]) if "status" in shown else {}
    if isinstance(statuses, dict):
        shown = {**{f"{phase}_status": status for phase, status in statuses.items()}, **shown}
    shown = {"job_state": "waiting", **texts, **shown}
    if job is not None:
        told = foreign_result(tx, job)
        shown = {**shown, **told} if job["agent"] is None else {**told, **shown}
        shown["job_state"] = job["shown_state"]
    return shown


MOST_AT_ONCE = 2**18  # characters of one text of an answer; a longer one is read piece by piece, as it is sent
LONG_PIECE = 2**19  # bytes, or characters, of it that are read at once


class Long(NamedTuple):
    """A value that is too long to be held: `read(tx, place)` gives a piece of its JSON, and the next place or None."""

    read: Callable[[Tx, int], tuple[bytes, int | None]]


def reported_value(uuid: str, row: Row) -> Raw | Long:
    """A field of a result, as it is stored."""
    if row["value"] is not None:
        return Raw(row["value"].encode())
    name, size = row["name"], row["size"]

    def read(tx: Tx, place: int) -> tuple[bytes, int | None]:
        piece = tx.one(
            "SELECT substr(CAST(value AS BLOB), ?, ?) FROM testflinger_result"
            " WHERE uuid = ? AND name = ? AND length(CAST(value AS BLOB)) = ?",
            (place + 1, LONG_PIECE, uuid, name, size),
        )
        if piece is None:
            raise TrackerError("conflict", f"{name} has changed while it was sent")
        end = place + LONG_PIECE
        return piece[0], end if end < size else None

    return Long(read)


def written_output(tx: Tx, uuid: str, job: Row | None, told: Container[str]) -> dict[str, str | Long]:
    """What phases have written, as {phase}_output and {phase}_serial.

    An agent that tells this itself, at the end of its run, knows better which phase it was.
    """
    kinds = [kind for kind in KINDS if is_foreign(job) or not any(f"{phase}_{kind}" in told for phase in PHASES)]
    found = {f"{phase}_{kind}": phase_log(tx, uuid, job, kind, phase) for kind in kinds for phase in PHASES}
    return {name: log["log_data"] for name, log in found.items() if log["last_fragment_number"] >= 0}


def foreign_result(tx: Tx, job: Row) -> dict[str, Any]:
    """What is to be told of a job whose worker has not reported here."""
    if job["finished"] is None or job["state"] == "cancelled":
        return {}
    if job["agent"] is not None:  # which has said itself how it went, unless it has vanished
        return {"test_status": 1} if job["state"] == "timed_out" else {}
    result = msgspec.json.decode(job["result"]) if job["result"] else None
    code = result.get("code") if isinstance(result, dict) else None
    failed = job["state"] != "succeeded"
    told: dict[str, Any] = {"test_status": code if isinstance(code, int) and bool(code) == failed else int(failed)}
    if job["output"] is not None:
        told["output"] = Raw(job["output"].encode())
    return told


def add_result(
    tx: Tx, client: clients.Client | None, uuid: str, agent: str | None, fields: dict[str, Raw], state: str | None
) -> None:
    """Merges what is reported for a job id, field by field; a state moves the job, if the poster may.

    While somebody holds the job, what decides how it ends counts from that one alone. Refuses (too_large) more than
    MOST_REPORTED for one id, and then changes nothing.
    """
    check_reporter(tx, client, uuid)
    job = find_job(tx, uuid)
    if job is None and state is not None:
        fields = {**fields, "job_state": Raw(encode(state))}
    if job is not None and job["state"] == "assigned" and not holds(job, agent):
        fields = {name: value for name, value in fields.items() if name not in VERDICT}
    if not holds(job, agent) or sum(map(len, fields.values())) > budgets.SMALL_RESULT:
        check_room(tx)
    more = 0
    for name, value in fields.items():
        old = tx.one("SELECT value FROM testflinger_result WHERE uuid = ? AND name = ?", (uuid, name))
        more += len(value) - (len(old["value"].encode()) if old else -len(name.encode()) - FIELD_SIZE)
    grow(tx, uuid, more)
    for name, value in fields.items():
        store_field(tx, uuid, name, value)
    if holds(job, agent):
        tracker.renew_lease(tx, job)
        if state is not None:
            move_job(tx, job, state)


def store_field(tx: Tx, uuid: str, name: str, value: Raw) -> None:
    stored = "INSERT INTO testflinger_result VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
    tx.execute(stored, (uuid, name, bytes(value).decode()))


def grow(tx: Tx, uuid: str, more: int = 0) -> None:
    """Notes that something is reported for a job id, by so many bytes more. Refuses (too_large) above MOST_REPORTED.

    Nothing is written before that: the refusal would have its whole batch run again, and anybody can bring it about.
    """
    row = tx.one("SELECT size FROM testflinger_outcome WHERE uuid = ?", (uuid,)) if more > 0 else None
    if (row["size"] if row else 0) + more > MOST_REPORTED:
        raise TrackerError("too_large", f"More than {MOST_REPORTED // 2**20} MiB have been reported for {uuid}")
    tx.execute(
        "INSERT INTO testflinger_outcome (uuid, touched, size) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET touched = excluded.touched, size = size + excluded.size",
        (uuid, tx.time, more),
    )


def note_life(tx: Tx, client: clients.Client | None, uuid: str, agent: str | None) -> None:
    """The job's agent is about something that takes long."""
    check_reporter(tx, client, uuid)
    job = find_job(tx, uuid)
    if holds(job, agent):
        tracker.renew_lease(tx, job)


def holds(job: Row | None, agent: str | None) -> bool:
    """Whether this poster speaks for the job's agent. One that does not say who it is is believed to."""
    held = job is not None and job["state"] == "assigned" and job["agent"] is not None
    return held and (agent is None or job["agent"] in ("", agent))


def move_job(tx: Tx, job: Row, state: str) -> None:
    """What an assigned job's agent says about its state."""
    if state in ENDED:
        release_job(tx, job)
        known = "UPDATE testflinger_job SET state = ? WHERE job = ? AND state = 'complete'"  # not if it is tried again
        tx.execute(known, (state, job["id"]))
    elif state == "cancelled":
        tracker.stop_job(tx, job, "its agent")
    elif state in LIVE and state != "waiting":  # other words would hide it from who looks for what goes on
        tx.execute("UPDATE testflinger_job SET state = ? WHERE job = ?", (state, job["id"]))


def release_job(tx: Tx, job: Row) -> None:
    """Ends a job: as failed if one of its phases has ended with another status than 0."""
    told = reported(tx, job["uuid"], VERDICT)
    statuses = told["status"] if isinstance(told.get("status"), dict) else {}
    statuses |= {name.removesuffix("_status"): status for name, status in told.items() if name.endswith("_status")}
    failed = any(statuses.values())
    output = told.get("output", told.get("device_info", statuses))
    report = {"state": "failure" if failed else "success", "statuses": statuses, "output": output}
    tracker.release_task(
        tx,
        WorkerCredentials(job["assignee"], None),
        shapes.ReleaseBody(job["task"], tracker.FAIL if failed else tracker.OK, output=Raw(encode(report))),
    )


def reported(tx: Tx, uuid: str, names: set[str]) -> dict[str, Any]:
    """Those of the fields that were reported for a job id."""
    sql = "SELECT name, value FROM testflinger_result WHERE uuid = ? AND name IN (SELECT value FROM json_each(?))"
    return {name: msgspec.json.decode(value) for name, value in tx.execute(sql, (uuid, encode(names).decode()))}


# ── Output ────────────────────────────────────────────────────────────────────────────────────────────────────────────


# Pieces of output: `id` is their place among all of a kind, `number` what the agent has counted: over all phases.
WRITTEN = """
    SELECT f.id, f.phase, f.number, f.timestamp, ifnull(l.message, '') || ifnull(f.text, '') AS text
    FROM testflinger_fragment f LEFT JOIN job_line l ON l.job = :job AND l.number = f.line
    WHERE f.uuid = :uuid AND f.kind = :kind
"""
LAST_NUMBERS = " UNION ALL ".join(  # of each phase, by the index: not through all the pieces there are for each new one
    f"SELECT max(number) AS last FROM testflinger_fragment WHERE uuid = :uuid AND kind = :kind AND phase = '{phase}'"
    for phase in PHASES
)
POSTED_BEFORE = f"""
    SELECT 1 FROM ({WRITTEN}) WHERE phase = :phase AND number >= :number AND text = :text
        AND (number = :number OR timestamp = :timestamp) LIMIT 1
"""  # beyond its own number, where that was taken
NUMBER_TAKEN = f"SELECT 1 FROM ({WRITTEN}) WHERE phase = :phase AND number = :number"
LOGGED = """
    SELECT number AS id, 'test' AS phase, number, time AS timestamp, message || char(10) AS text
    FROM job_line WHERE job = :job AND worker <> 0
"""


def add_fragment(
    tx: Tx,
    caller: clients.Client | None,
    uuid: str,
    kind: str,
    agent: str | None,
    text: str,
    phase: str | None = None,
    number: int | None = None,
    timestamp: float | None = None,
) -> None:
    """Keeps a piece of output: in the log of its job, while that goes on. What is posted again is not kept again.

    Without phase and number it follows what there is of any phase, in the phase in which the job is; so does another
    text with a number that is taken.
    """
    check_reporter(tx, caller, uuid)
    job = find_job(tx, uuid)
    if is_full(tx):
        if holds(job, agent):
            tracker.renew_lease(tx, job)
        return
    phase, timestamp = phase or present_phase(tx, job), tx.now if timestamp is None else timestamp
    piece = {"uuid": uuid, "kind": kind, "phase": phase, "number": number, "timestamp": timestamp}
    piece |= {"job": job and job["id"], "line": None, "text": text}
    if tx.one(POSTED_BEFORE, piece):
        return grow(tx, uuid)
    if tx.one(NUMBER_TAKEN, piece):
        piece["number"] = None
    if holds(job, agent):
        grow(tx, uuid)
        tracker.renew_lease(tx, job)
        if not add_to_log(tx, job, piece):
            return None
    else:
        grow(tx, uuid, len(text.encode()) + joblog.LINE_SIZE)  # an empty one is a row, too
    tx.execute(
        "INSERT INTO testflinger_fragment (uuid, kind, id, phase, number, timestamp, line, text) VALUES (:uuid, :kind,"
        " (SELECT ifnull(max(id), 0) + 1 FROM testflinger_fragment WHERE uuid = :uuid AND kind = :kind), :phase,"
        f" ifnull(:number, (SELECT ifnull(max(last), -1) + 1 FROM ({LAST_NUMBERS}))), :timestamp, :line, :text)",
        piece,
    )


FULL = "\n[the log is full (max_job_log): further output is dropped]\n"
DROPPED = "\n[output is dropped here: there is no room for it now]\n"


def present_phase(tx: Tx, job: Row | None) -> str:
    """The phase whose output this must be, when the agent does not say."""
    if job is None:
        return "test"
    state = job["shown_state"]
    # Such an agent tells of the last phase also where it skips it, and nothing of the cleanup that follows.
    skipped = state == "reserve" and "reserve_data" not in definition(tx, job)
    if job["finished"] is not None or skipped:
        return "cleanup"
    return state if state in PHASES else "allocate" if state == "allocated" else "setup"


def add_to_log(tx: Tx, job: Row, piece: dict[str, Any]) -> bool:
    """Makes the text of a piece a line of its job's log, or has the piece say why it is none. False: one has."""
    said = piece["text"].removesuffix("\n")  # other doors end a line themselves
    scope = piece["phase"] if piece["kind"] == "output" else f"{piece['phase']} serial"
    entry = shapes.TaskEntry(said, int(piece["timestamp"]), scope=scope)
    if tracker.add_job_lines(tx, job, job["assignee"], [entry]):
        kept = len(said.encode()) + len(scope) + joblog.LINE_SIZE
        tx.execute("UPDATE testflinger_job SET size = size + ? WHERE job = ?", (kept, job["id"]))
        told = bool(job["dropped_count"])  # by a line before it
        piece |= {"line": job["line_count"] + 1 + told, "text": piece["text"][len(said) :]}
        return True
    last = "SELECT text FROM testflinger_fragment WHERE uuid = :uuid AND kind = :kind ORDER BY id DESC LIMIT 1"
    before = tx.one(last, piece)
    piece |= {"text": FULL if joblog.is_log_full(tx, job) else DROPPED, "number": None}
    return before is None or before["text"] != piece["text"]


def unread(tx: Tx, uuid: str, job: Row | None, kind: str, limit: int = -1) -> list[Row]:
    """The pieces that take_output has not handed out, in the order in which they came; all of them, or so many."""
    last = tx.one(f"SELECT {kind}_read FROM testflinger_outcome WHERE uuid = ?", (uuid,))
    values = {"uuid": uuid, "kind": kind, "after": last[0] if last else 0, "job": job and job["id"], "limit": limit}
    return tx.all(f"SELECT id, text FROM ({pieces_of(job, kind)}) WHERE id > :after ORDER BY id LIMIT :limit", values)


def pieces_of(job: Row | None, kind: str) -> str:
    """The SELECT of the pieces of a job's output.

    Those of a job that a worker of another kind does are the lines that it logs, as output of the phase test: what
    somebody else reports must not hide them.
    """
    return LOGGED if kind == "output" and is_foreign(job) else WRITTEN


def is_foreign(job: Row | None) -> bool:
    """Whether a worker of another kind does the job, or has done it."""
    return job is not None and job["agent"] is None and job["assignee"] is not None


def has_output(tx: Tx, uuid: str, kind: str) -> bool:
    """Whether take_output has something to hand out."""
    return bool(unread(tx, uuid, find_job(tx, uuid), kind, limit=1))


def take_output(tx: Tx, uuid: str, kind: str) -> str | None:
    """The output since the last call, joined by newlines. None: there is none. What is taken stays for others."""
    job = find_job(tx, uuid)
    found = unread(tx, uuid, job, kind)
    if not found:
        return None
    grow(tx, uuid)
    tx.execute(f"UPDATE testflinger_outcome SET {kind}_read = ? WHERE uuid = ?", (found[-1]["id"], uuid))
    ends = "\n" if is_foreign(job) else ""  # a line's, not to be doubled by the one that joins
    return "\n".join(piece["text"].removesuffix(ends) for piece in found)


def get_logs(tx: Tx, uuid: str, kind: str, phase: str | None, first: int, since: float | None) -> dict[str, Any]:
    """What the phases have written, from a fragment or a time on: {kind: {phase: {last_fragment_number, log_data}}}.

    Without a phase: all of them. -1 where there is nothing. Clients of the serial log, too, look for "output".
    """
    job = find_job(tx, uuid)
    logs = {name: phase_log(tx, uuid, job, kind, name, first, since) for name in ([phase] if phase else PHASES)}
    return {"output": logs, kind: logs}


def phase_log(
    tx: Tx, uuid: str, job: Row | None, kind: str, phase: str, first: int = 0, since: float | None = None
) -> dict[str, Any]:
    """The number of the last piece of a phase's output (-1: there is none), and the text of all from the first on."""
    values = {"uuid": uuid, "job": job and job["id"], "kind": kind, "phase": phase, "first": first, "since": since}
    pieces = (
        f"SELECT number, text FROM ({pieces_of(job, kind)}) WHERE phase = :phase AND number >= :first"
        " AND timestamp >= ifnull(:since, timestamp) ORDER BY number"
    )
    # One row with all the text: a long log has a hundred thousand pieces.
    row = tx.one(
        "SELECT ifnull(max(number), -1) AS last, ifnull(sum(length(text)), 0) <= :most AS is_short,"
        f" ifnull(group_concat(text, ''), '') AS text FROM ({pieces})",
        {**values, "most": MOST_AT_ONCE},
    )
    text = row["text"] if row["is_short"] else Long(functools.partial(read_log, pieces, values))
    return {"last_fragment_number": row["last"], "log_data": text}


def read_log(pieces: str, values: dict[str, Any], tx: Tx, first: int) -> tuple[bytes, int | None]:
    """What begins with this fragment of a phase's output, of those that are wanted, as a piece of JSON's text."""
    texts, size = [], 0
    rows = tx.execute(pieces, {**values, "first": max(first, values["first"])})
    for row in rows:
        texts.append(row["text"])
        size += len(row["text"])
        if size >= LONG_PIECE:
            break
    following = rows.fetchone()
    begin, end = b"" if first else b'"', b"" if following else b'"'
    return begin + encode("".join(texts))[1:-1] + end, following and following["number"]


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_file(tx: Tx, uuid: str, kind: str) -> Row | None:
    """The job's artifact or attachments. A retried job has the attachments of the one that it repeats."""
    if kind == "attachments":
        row = tx.one("SELECT attachments_of FROM testflinger_job WHERE uuid = ?", (uuid,))
        uuid = (row and row["attachments_of"]) or uuid
    return tx.one("SELECT * FROM testflinger_file WHERE uuid = ? AND kind = ?", (uuid, kind))


def store_artifact(tx: Tx, client: clients.Client | None, uuid: str, name: str, size: int) -> str | None:
    """Notes what an agent has made of a job. The name of the file that it replaces."""
    check_reporter(tx, client, uuid)
    return store_file(tx, uuid, "artifact", name, size)


def store_file(tx: Tx, uuid: str, kind: str, name: str, size: int) -> str | None:
    """Notes a file that has been received. The name of the one that it replaces. Refuses (503) what has no room."""
    if room_for_file(tx, uuid, kind) < size:
        raise no_room(tx.limits)
    old = tx.one("SELECT name FROM testflinger_file WHERE uuid = ? AND kind = ?", (uuid, kind))
    tx.execute(
        "INSERT INTO testflinger_file VALUES (?, ?, ?, ?, ?) ON CONFLICT (uuid, kind)"
        " DO UPDATE SET name = excluded.name, size = excluded.size, stored = excluded.stored",
        (uuid, kind, name, size, tx.time),
    )
    return old and old["name"]


def room_for_file(tx: Tx, uuid: str, kind: str) -> int:
    """How many bytes a file may have that is in the place of the one that there is, if there is one."""
    old = tx.one("SELECT size FROM testflinger_file WHERE uuid = ? AND kind = ?", (uuid, kind))
    return room_in(tx, "files") + (old["size"] if old else 0)


def check_attachments_wanted(tx: Tx, client: clients.Client | None, uuid: str, size: int | None = None) -> Row:
    """The job, if it waits for its attachments, or has got these: their sender repeats what had no answer.

    Those of a job with secrets come from the client that submitted it: they would be run with its secrets.
    """
    job = find_job(tx, uuid)
    awaited = job is not None and job["finished"] is None and job["attachments"] == "waiting"
    if job is None or not (awaited or repeats_attachments(tx, job, size)):
        raise Unprocessable("file", "the job does not wait for attachments")
    if job["secret"] and (client is None or client.id != job["client"]):
        problem = "the job has secrets: only the client that submitted it may give it attachments"
        raise TrackerError("unauthorized" if client is None else "forbidden", problem)
    return job


def repeats_attachments(tx: Tx, job: Row, size: int | None) -> bool:
    """Whether attachments of this size (None: who knows yet) are those that the job has got. While it waits: any."""
    own = tx.one("SELECT size FROM testflinger_file WHERE uuid = ? AND kind = 'attachments'", (job["uuid"],))
    return own is not None and (job["state"] == "waiting" or size in (None, own["size"]))


def store_attachments(tx: Tx, client: clients.Client | None, uuid: str, name: str, size: int) -> str | None:
    """Notes a job's attachments: now it can be picked. The name of those that are not wanted: the first ones stay."""
    job = check_attachments_wanted(tx, client, uuid, size)
    if job["attachments"] != "waiting":
        return name
    store_file(tx, uuid, "attachments", name, size)
    change = "UPDATE testflinger_job SET attachments = 'complete', attachments_of = uuid WHERE job = ?"
    tx.execute(change, (job["id"],))
    tracker.queue_job(tx, job)
    return None


# ── Agents ────────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_AGENTS = 10_000
MOST_TOLD = 2**18  # bytes of what an agent tells of itself
SHORT_AGENT = 500  # bytes of an agent that tells nothing, in a list
MOST_LINE = 4096  # characters of a line of its log
KEPT_LINES = 100  # of an agent's log, and of its provision log
NAMELESS = "testflinger_worker"  # the key in meta of the worker that stands for agents without a name


def find_agent(tx: Tx, name: str) -> Row | None:
    """The agent's row. None: nobody has told of such a one, and it has had no job."""
    return tx.one("SELECT * FROM testflinger_agent WHERE name = ?", (name,))


def known_agent(tx: Tx, name: str) -> Row:
    """The agent's row. 404: unknown."""
    agent = find_agent(tx, name)
    if agent is None:
        raise TrackerError("not_found", f"There is no agent {name!r}")
    return agent


def update_agent(tx: Tx, name: str, fields: dict[str, Any]) -> None:
    """Notes what an agent tells of itself, field by field; the lines of its log are added to those there are."""
    lines = fields.pop("log", ())
    old = find_agent(tx, name)
    if old is None and tx.one("SELECT COUNT(*) FROM testflinger_agent")[0] >= MOST_AGENTS:
        raise Unprocessable("name", f"no further agent: there are {MOST_AGENTS:,}")
    told = {**(msgspec.json.decode(old["fields"]) if old else {}), **fields}
    small = len(encode(told)) <= max(budgets.SMALL_RESULT, len(old["fields"].encode()) if old else 0)
    if not small:
        check_room(tx)
    if lines and is_full(tx):
        lines = ()
    if len(encode(told)) > MOST_TOLD:
        raise TrackerError("too_large", f"More than {MOST_TOLD // 1024} KiB about the agent {name!r}")
    agent = tx.one(
        "INSERT INTO testflinger_agent (name, fields, updated) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET fields = excluded.fields, updated = excluded.updated RETURNING id",
        (name, encode(told).decode(), tx.time),
    )["id"]
    if "queues" in fields:
        tx.execute("DELETE FROM testflinger_agent_queue WHERE agent = ?", (agent,))
        listened = [(queue, agent) for queue in dict.fromkeys(fields["queues"])]
        tx.executemany("INSERT INTO testflinger_agent_queue VALUES (?, ?)", listened)
    newest = [(agent, line[:MOST_LINE]) for line in lines[-KEPT_LINES:]]
    tx.executemany("INSERT INTO testflinger_agent_line (agent, line) VALUES (?, ?)", newest)
    forget_beyond(tx, "testflinger_agent_line", agent)


def forget_beyond(tx: Tx, table: str, agent: int) -> None:
    """Keeps the newest of an agent's lines."""
    tx.execute(
        f"DELETE FROM {table} WHERE agent = :agent AND id <="
        f" (SELECT id FROM {table} WHERE agent = :agent ORDER BY id DESC LIMIT 1 OFFSET {KEPT_LINES})",
        {"agent": agent},
    )


def add_provision_log(tx: Tx, caller: clients.Client | None, name: str, uuid: str, exit_code: int, detail: str) -> None:
    """Notes how provisioning a job went; a streak of passes or fails grows, or begins anew. 404: unknown agent.

    A run provisions once: the same again is a repeat, and counts as nothing.
    """
    check_reporter(tx, caller, uuid)
    agent, job = known_agent(tx, name)["id"], find_job(tx, uuid)
    last = tx.one("SELECT * FROM testflinger_provision WHERE agent = ? ORDER BY id DESC LIMIT 1", (agent,))
    same = last and (last["uuid"], last["exit_code"], last["detail"]) == (uuid, exit_code, detail)
    if same and job is not None and job["attempts"] == 1:
        return
    detail = "" if detail and is_full(tx) else detail
    noted = "INSERT INTO testflinger_provision (agent, uuid, exit_code, detail, time) VALUES (?, ?, ?, ?, ?)"
    tx.execute(noted, (agent, uuid, exit_code, detail, tx.time))
    forget_beyond(tx, "testflinger_provision", agent)
    tx.execute(
        "UPDATE testflinger_agent SET streak_count = iif(streak_type IS ?1, streak_count, 0) + 1, streak_type = ?1"
        " WHERE id = ?2",
        ("fail" if exit_code else "pass", agent),
    )


def list_agents(tx: Tx, after: str = "") -> tuple[list[dict[str, Any]], str | None]:
    """The next agents, by name, without their logs, and the one after which to go on (None: no more)."""
    allowed, size = clients.restricted_owners(tx), 0
    agents: list[dict[str, Any]] = []
    for row in tx.execute("SELECT * FROM testflinger_agent WHERE name > ? ORDER BY name", (after,)):
        if size >= LONG_PIECE:
            return agents, agents[-1]["name"]
        agents.append(agent_json(row, allowed))
        size += len(row["fields"]) + SHORT_AGENT
    return agents, None


def get_agent(tx: Tx, name: str) -> dict[str, Any]:
    """One agent. 404: unknown."""
    return agent_json(known_agent(tx, name), clients.restricted_owners(tx))


def agent_json(row: Row, allowed: dict[str, list[str]]) -> dict[str, Any]:
    fields = msgspec.json.decode(row["fields"])
    return {
        "state": "",
        "queues": [],
        **fields,
        "name": row["name"],
        "updated_at": iso(row["updated"]),
        "provision_streak_type": row["streak_type"] or "",
        "provision_streak_count": row["streak_count"],
        "restricted_to": {queue: allowed[queue] for queue in fields.get("queues", ()) if queue in allowed},
    }


def names_listening(tx: Tx, queue: str, after: str = "", most: int = -1) -> list[str]:
    """The names of the agents that listen to the queue, in their order; so many. What each tells may be long."""
    rows = tx.execute(
        "SELECT a.name FROM testflinger_agent_queue l JOIN testflinger_agent a ON a.id = l.agent WHERE l.queue = ?"
        " AND a.name > ? ORDER BY a.name LIMIT ?",
        (queue, after, most),
    )
    return [row["name"] for row in rows]


def queue_agents(tx: Tx, queue: str, after: str = "") -> tuple[list[dict[str, Any]], str | None]:
    """The next agents that listen to the queue, as that call shows them, and the one after which to go on, or None."""
    empty = {"state": "", "queues": [], **dict.fromkeys(("location", "provision_type", "job_id", "comment"), "")}
    agents: list[dict[str, Any]] = []
    size = 0
    for name in names_listening(tx, queue, after):
        if size >= LONG_PIECE:
            return agents, agents[-1]["name"]
        text = known_agent(tx, name)["fields"]
        fields = msgspec.json.decode(text)
        agents.append({"name": name, **empty, **{key: fields[key] for key in empty if key in fields}})
        size += len(text) + SHORT_AGENT
    return agents, None


def agent_worker(tx: Tx, agent: str | None) -> int | None:
    """The worker that holds an agent's jobs. None: it has had none yet."""
    if agent is None:
        row = tx.one("SELECT value FROM meta WHERE key = ?", (NAMELESS,))
        return row and row["value"]
    row = find_agent(tx, agent)
    return row and row["worker"]


def needed_workers(tx: Tx) -> list[int]:
    """The workers of agents, whether they have had a task yet or not."""
    rows = tx.all("SELECT worker FROM testflinger_agent WHERE worker IS NOT NULL")
    nameless = agent_worker(tx, None)
    return [row["worker"] for row in rows] + ([nameless] if nameless else [])


def make_agent_worker(tx: Tx, agent: str | None) -> int:
    """Makes the worker of an agent that is about to get its first job."""
    worker, _ = tracker.insert_worker(tx, agent or "Testflinger agent without a name")
    if agent is None:
        return tracker.load_meta(tx, NAMELESS, lambda: worker)
    tx.execute(
        "INSERT INTO testflinger_agent (name, worker, updated) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET worker = excluded.worker",
        (agent, worker, tx.time),
    )
    return worker


# ── Forgotten ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PRUNED_ROWS = 100  # rows that one transaction deletes


def prune_jobs(tx: Tx) -> bool:
    """Deletes ended jobs that are too old, with all that was reported for them. Whether there may be more."""
    # Jobs that came through other doors are kept as their templates say: they have no `finished` here.
    sql = "SELECT job, uuid FROM testflinger_job WHERE finished < ? ORDER BY finished LIMIT ?"
    due = tx.all(sql, (tx.before(tx.settings.testflinger_retention), PRUNED_ROWS))
    for row in in_time(tx, due):
        if not delete_fragments(tx, row["uuid"]):
            tracker.delete_job(tx, row["job"])
    return bool(due)


def in_time(tx: Tx, rows: Iterable[Row]) -> Iterator[Row]:
    """Those of the rows for which a step has time: one at least."""
    for row in rows:
        yield row
        if tx.time_is_up():
            return


def delete_fragments(tx: Tx, uuid: str) -> bool:
    """Deletes some of the pieces of output of a job id. Whether there may be more."""
    some = "SELECT id FROM testflinger_fragment WHERE uuid = ?1 AND kind = ?2 LIMIT ?3"
    sql = f"DELETE FROM testflinger_fragment WHERE uuid = ?1 AND kind = ?2 AND id IN ({some})"
    return any(tx.execute(sql, (uuid, kind, PIECE_JOBS)).rowcount == PIECE_JOBS for kind in KINDS)


def cancel_forgotten(tx: Tx) -> bool:
    """Cancels jobs whose attachments have never come. Whether there may be more."""
    due = tx.all(
        f"{JOB} WHERE t.job IN (SELECT job FROM testflinger_job INDEXED BY testflinger_job_held"
        " WHERE attachments = 'waiting' AND state = 'waiting' ORDER BY job LIMIT ?) AND j.created < ?",
        (PRUNED_ROWS, tx.before(tx.settings.testflinger_retention)),
    )
    for job in due:
        tracker.stop_job(tx, job, "the tracker: its attachments have not come")
    return bool(due)


def prune_outcomes(tx: Tx) -> bool:
    """Deletes what was reported for job ids that nobody knows. Whether there may be more.

    That of known jobs goes with them: it is not looked at again for as long.
    """
    due = tx.all(
        "SELECT uuid, EXISTS (SELECT 1 FROM testflinger_job WHERE uuid = o.uuid) AS known"
        " FROM testflinger_outcome o WHERE touched < ? ORDER BY touched LIMIT ?",
        (tx.before(tx.settings.testflinger_retention), PRUNED_ROWS),
    )
    for row in in_time(tx, due):
        if row["known"]:
            grow(tx, row["uuid"])
        elif not delete_fragments(tx, row["uuid"]):
            tx.execute("DELETE FROM testflinger_outcome WHERE uuid = ?", (row["uuid"],))
    return bool(due)


def prune_files(tx: Tx, after: tuple[int, str]) -> tuple[list[str], tuple[int, str] | None]:
    """Forgets some files of jobs that are gone. Their names: they can be deleted once this is committed.

    And the place (stored, name) after which to go on; None after the last one.
    """
    rows = tx.all(
        "SELECT name, stored, EXISTS (SELECT 1 FROM testflinger_job WHERE uuid = f.uuid)"
        " OR EXISTS (SELECT 1 FROM testflinger_job WHERE attachments_of = f.uuid) AS known FROM testflinger_file f"
        " WHERE stored < ? AND (stored, name) > (?, ?) ORDER BY stored, name LIMIT ?",
        (tx.before(tx.settings.testflinger_retention), *after, PRUNED_ROWS),
    )
    gone = [row["name"] for row in rows if not row["known"]]
    tx.executemany("DELETE FROM testflinger_file WHERE name = ?", [(name,) for name in gone])
    return gone, (rows[-1]["stored"], rows[-1]["name"]) if len(rows) == PRUNED_ROWS else None


def unknown_files(tx: Tx, names: Sequence[str]) -> list[str]:
    """Those of the files in the folder that belong to nothing: a crash has left them."""
    return [name for name in names if not tx.one("SELECT 1 FROM testflinger_file WHERE name = ?", (name,))]


def prune_queues(tx: Tx) -> bool:
    """Deletes a queue by which nothing was ever done, and which nobody has a part in: a slip of the pen makes one.

    Whether there may be more.
    """
    row = tx.one(UNUSED_QUEUE, {**UNTOUCHED, "before": tx.before(tx.settings.testflinger_retention)})
    if row and tracker.forget_project(tx, row["project"]):
        tx.execute("DELETE FROM testflinger_queue WHERE project = ?", (row["project"],))
    return row is not None


def project_gone(tx: Tx, project: int) -> bool:
    """Deletes some of what there is of a queue whose project was deleted, and of its jobs. Whether there is more.

    Their files go when files that no job has are looked for next.
    """
    jobs = tx.all("SELECT job, uuid FROM testflinger_job WHERE project = ? LIMIT ?", (project, PRUNED_ROWS))
    for row in in_time(tx, jobs):
        if not delete_fragments(tx, row["uuid"]):
            tx.execute("UPDATE testflinger_file SET stored = 0 WHERE uuid = ?", (row["uuid"],))
            tx.execute("DELETE FROM testflinger_job WHERE job = ?", (row["job"],))
    some = "SELECT name FROM testflinger_image WHERE project = ?1 LIMIT ?2"
    images = f"DELETE FROM testflinger_image WHERE project = ?1 AND name IN ({some})"
    if jobs or tx.execute(images, (project, PRUNED_ROWS)).rowcount:
        return True
    tx.execute("DELETE FROM testflinger_queue WHERE project = ?", (project,))
    return False


USED_BY = (
    *("job WHERE project = q.project", "template WHERE project = q.project AND deleted IS NULL"),
    *("workflow WHERE project = q.project AND deleted IS NULL", "manager_role WHERE project = q.project"),
    *("worker_access WHERE project = q.project", "testflinger_image WHERE project = q.project"),
    *("testflinger_agent_queue WHERE queue = p.name", "theeye_host WHERE project = q.project"),
    "operation WHERE project = q.project AND finished IS NULL",
)
UNTOUCHED = {**tracker.NEW_PROJECT, "chain": None, **OF_A_QUEUE}  # the settings with which a queue begins
COUNTS = " + ".join(tracker.COUNT_COLUMNS)  # of tasks: to look for them would go through all there are
UNUSED_QUEUE = f"""
    SELECT q.project FROM testflinger_queue q JOIN project p ON p.id = q.project
    WHERE NOT q.restricted AND (q.advertised IS NULL OR q.advertised < :before) AND {COUNTS} = 0
    AND p.secret = '{{}}' AND {" AND ".join(f"p.{name} IS :{name}" for name in UNTOUCHED)}
    {" ".join(f"AND NOT EXISTS (SELECT 1 FROM {place})" for place in USED_BY)}
    AND NOT EXISTS (SELECT 1 FROM project WHERE chain = q.project) LIMIT 1
"""


def prune_agents(tx: Tx) -> bool:
    """Deletes agents that have been silent for long. Whether there may be more."""
    deleted = tx.execute(
        "DELETE FROM testflinger_agent WHERE id IN (SELECT id FROM testflinger_agent a WHERE updated < ? AND NOT"
        " EXISTS (SELECT 1 FROM worker WHERE id = a.worker AND paused) LIMIT ?)",
        (tx.before(tx.settings.testflinger_retention), PRUNED_ROWS),
    )
    return deleted.rowcount == PRUNED_ROWS
