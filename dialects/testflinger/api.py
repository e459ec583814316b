"""Testflinger's server API over the tracker's queue, for both generations of its clients and agents.

    request ─► by_method ─► entrance (what every request has to pass) ─► handler: decode (Ask) ─► one function of
    domain, queues or clients, in the transaction that looked at the credentials ─► answer

The older generation is that of the public document (2025), the newer one breaks with it in places (2026). Both are
served at once: what a request looks like tells which one it is; where it does not, the setting testflinger_version
does. Sections (search for "# ── "):

    Requests · Who may come in · Jobs · Results and output · Files · Queues and agents · Credentials · Routes ·
    Background work
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote_to_bytes
from uuid import UUID

import msgspec
from msgspec import Meta, Raw
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

import errors
import shapes
import tracker
import webhooks
from browsers import host_of, is_loopback, is_proxied
from database import let_age
from dialects import plumbing
from dialects.plumbing import HEADERS, as_bytes, as_json, as_text, may_be_long, nothing
from dialects.testflinger import clients, domain, queues
from dialects.testflinger.files import Stored, files_of
from dialects.testflinger.queues import Unprocessable
from limits import site_of
from server import LARGE, held
from streams import Stream
from tracker import TrackerError, Tx, encode

# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MOST_FIELDS = 1000  # of one result
MOST_DETAIL = 2**16  # characters that are kept of what an agent says, in which others' output may be
MOST_COMMENT = 10_000  # the same
REPORT_LIMIT = domain.MOST_REPORTED // 1024  # KiB

Text = Annotated[str, Meta(max_length=10_000)]
ShortText = Annotated[str, Meta(max_length=200)]
JobId = Annotated[str, Meta(max_length=100)]
Timeout = Annotated[int, Meta(ge=0, le=10**9)]


class Attachment(msgspec.Struct):
    """A file that an agent needs for a phase. What else it says is the agent's business."""

    local: str | None = None
    agent: str | None = None
    device: str | None = None


class PhaseData(msgspec.Struct, frozen=True):
    """What is looked at of a phase's data."""

    attachments: Annotated[list[Attachment], Meta(max_length=1000)] = []


class TestData(PhaseData, frozen=True):
    __test__ = False

    test_cmds: Any = None
    secrets: Annotated[dict[str, Text], Meta(max_length=100)] = {}


class ReserveData(PhaseData, frozen=True):
    ssh_keys: Annotated[list[str], Meta(max_length=1000)] = []
    timeout: int | str | None = None


class JobBody(msgspec.Struct):
    """The fields of a job that are known. Whatever else there is goes to the agent as it is."""

    job_queue: Annotated[str, Meta(min_length=1, max_length=200)]
    job_id: JobId | None = None
    parent_job_id: JobId = ""
    name: Text = ""
    job_status_webhook: Text = ""
    tags: Annotated[list[ShortText], Meta(max_length=1000)] = []
    global_timeout: Timeout | None = None
    output_timeout: Timeout | None = None
    allocation_timeout: Timeout | None = None
    job_priority: Annotated[int, Meta(ge=-(10**9), le=10**9)] = 0
    provision_data: PhaseData = PhaseData()
    firmware_update_data: PhaseData = PhaseData()
    allocate_data: PhaseData = PhaseData()
    test_data: TestData = TestData()
    reserve_data: ReserveData = ReserveData()
    exclude_agents: Annotated[list[ShortText], Meta(max_length=1000)] = []


class ActionBody(msgspec.Struct):
    action: str


class FragmentBody(msgspec.Struct):
    """A piece of a phase's output, as the newer agents post it."""

    fragment_number: shapes.Natural
    timestamp: str
    phase: str
    log_data: str


class LogQuery(msgspec.Struct):
    phase: str | None = None
    start_fragment: shapes.Natural = 0
    start_timestamp: str | None = None


class AgentBody(msgspec.Struct):
    """The fields of an agent that are known."""

    identifier: Text = ""
    job_id: JobId = ""
    location: Text = ""
    provision_type: Text = ""
    state: ShortText = ""
    comment: str = ""
    queues: Annotated[list[ShortText], Meta(max_length=1000)] = []
    log: list[str] = []


class ProvisionBody(msgspec.Struct):
    job_id: JobId
    exit_code: Annotated[int, Meta(ge=-(2**31), le=2**32)]  # Windows' have no sign
    detail: str = ""


class EventsBody(msgspec.Struct):
    job_status_webhook: str
    agent_id: str = ""
    job_queue: str = ""
    events: list[dict[str, Any]] = []


class RefreshBody(msgspec.Struct):
    refresh_token: str


class Ask(tracker.Call):
    """A call of this dialect: who makes it, what it says, the way to the database, how it is refused.

    A caller has nothing to show where anonymous use is allowed, else a client's credentials.
    """

    __slots__ = ("needs",)

    door = "testflinger"
    minds = "all"  # who comes without credentials is let in for being where it is, as a browser is, too

    async def refuse(self, error: TrackerError) -> Response:
        """How every error looks: {"message", "detail"}."""
        if isinstance(error, Unprocessable):
            detail = {error.where: {error.field: [error.problem]}}
            return as_json({"message": f"Validation error: {error}", "detail": detail}, 422)
        content = {"message": error.message, "detail": {}}
        return as_json(content, tracker.STATUS[error.code], tracker.error_headers(error))

    def path(self, name: str) -> str:
        """What stands in the path; a job's id as it is stored."""
        value = self.scope["path_params"][name]
        if "\0" in value:
            raise TrackerError("invalid", "must not contain a NUL character", name)
        return stored_uuid(value) if name == "job_id" else value

    def values(self, name: str) -> list[str]:
        """All values of a parameter of the query."""
        values = self.query().get(name, [])
        if any("\0" in value for value in values):
            raise Unprocessable(name, "must not contain a NUL character", "query")
        return values

    @property
    def agent(self) -> str | None:
        """The name that this agent got a cookie for."""
        cookie = next(self.cookies("agent_name"), b"")
        return unquote_to_bytes(cookie).decode(errors="replace").replace("\0", "")[:200] or None

    async def object(
        self, decode: Callable[[bytes], Any] | None = None, limit: int | None = None, empty: bytes = b""
    ) -> dict[str, Any]:
        """The body, which must be a JSON object; refuses (400) what is no JSON, (422) what is no object.

        A blank body is as good as `empty`.
        """
        body = await self.body(limit)
        value = await self.decoded(empty if body.isspace() or not body else body, decode or strict_json)
        if not isinstance(value, dict):
            raise Unprocessable("_schema", "Invalid input type: an object is expected")
        return value

    async def read(self, function: Callable[[Tx, clients.Client | None], Any]) -> Any:
        """What a function reads, which is called with the client."""
        return await self.tracker.db.read(lambda tx: function(tx, self.caller(tx)))

    async def write(self, function: Callable[[Tx, clients.Client | None], Any], long: bool = False) -> Any:
        """What a function returns that writes, which is called with the client."""
        return await self.tracker.db.write(self.admitted, function, long=long)

    def admitted(self, tx: Tx, function: Callable[[Tx, clients.Client | None], Any]) -> Any:
        client = self.caller(tx)
        with queues.counted(tx, clients.guest(client, self.source)):
            done = function(tx, client)
        if client is not None and client.stale:  # noted at last: a refusal that had written makes others run again
            clients.note_use(tx, client.id)
        return done

    async def admit(self) -> None:
        """Refuses who may not come in, whatever the body says."""
        if self.needs == OPEN:
            return
        if self.header(b"authorization"):
            await self.read(lambda tx, _: None)
        else:
            self.check_anonymous()

    def caller(self, tx: Tx) -> clients.Client | None:
        """The client, if there is one. Wrong credentials are refused also where none are needed."""
        if self.needs == OPEN:
            return None
        client = clients.authenticate(tx, self.header(b"authorization"), self.guesser)
        if client is None:
            self.check_anonymous()
        elif self.needs == AGENT and client.role in ("contributor", "manager"):
            raise TrackerError("forbidden", f"The client {client.id} is no agent: its role is {client.role}")
        return client

    def check_anonymous(self) -> None:
        """Refuses (401) who has nothing to show, where that is not enough."""
        wanted = self.tracker.settings.testflinger_anonymous
        if not (wanted == "always" or (wanted == "loopback" and from_this_machine(self))):
            raise TrackerError(
                "unauthorized",
                "Credentials are required: a client's token, or client_id:client_key. (testflinger_anonymous in"
                " tracker.toml says who needs none: as delivered, programs on the tracker's own machine, and nobody"
                " where there is a root_path.)",
            )


Handler = Callable[[Ask], Awaitable[Response]]


def stored_uuid(given: str) -> str:
    """A job's id as it is stored. Refuses (400) what is no UUID."""
    try:
        return str(UUID(given))
    except ValueError:
        raise TrackerError("invalid", "is not a UUID", "job_id") from None


def strict_json(body: bytes) -> Any:
    """JSON that can be stored as it is. The public document has an example with shell's `\\` at the end of a line."""
    try:
        return tracker.decode(body, Any)
    except TrackerError:
        if b"\\\n" not in body:
            raise
        return tracker.decode(body.replace(b"\\\n", b"\n"), Any)


def loose_json(body: bytes) -> Any:
    """JSON whose texts a program wrote that knows nothing of JSON: what no text may have in it is replaced."""
    with contextlib.suppress(TrackerError):
        return strict_json(body)
    try:
        return plumbing.forgiving_json(body)
    except (ValueError, RecursionError) as error:
        raise TrackerError("invalid", errors.unreadable(body, error), "body") from None


def converted(value: Any, kind: Any, name: str = "", where: Literal["json", "query"] = "json") -> Any:
    """The value as that kind; numbers may be texts. Refuses (422) what cannot be, by this name or that of its field."""
    try:
        return errors.convert(value, kind, strict=False)
    except TrackerError as error:
        raise Unprocessable(name or error.field, error.problem, where) from None


def checked(kind: type, values: dict[str, Any], where: Literal["json", "query"] = "json") -> Any:
    """The values as a struct. Refuses (422) a known field that cannot be, naming it. Numbers may be texts.

    Null is as good as absent.
    """
    struct = converted(without_nulls(kind, values), kind, where=where)
    for name, value in values.items():
        number = isinstance(value, str) and type(getattr(struct, name, None)) is int
        if number and not re.fullmatch(r"[+-]?\d{1,18}", value.strip()):  # 1e3 is a number, too, for the library
            raise Unprocessable(name, "Not a valid integer", where)
    return struct


def without_nulls(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values without those fields that are null and may be absent: a program's None means just that."""
    optional = optional_fields(kind)
    kept = {name: value for name, value in values.items() if value is not None or name not in optional}
    for name, inner in optional.items():
        if inner and isinstance(kept.get(name), dict):
            kept[name] = without_nulls(inner, kept[name])
    return kept


@functools.cache
def optional_fields(kind: type) -> dict[str, type | None]:
    """The fields of a struct that may be absent, and for each the struct that it is, if it is one."""
    fields = [field for field in msgspec.structs.fields(kind) if not field.required]
    return {one.name: one.type if isinstance(one.type, type(msgspec.Struct)) else None for one in fields}


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # in seconds, by the first letter of each of their names
LONGEST_TIME = 100  # characters
PART = r"([0-9]{1,10})\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)\s*"


def seconds(value: int | str) -> int:
    """A time given in seconds, or like 30m, 1h30m or 2 Days. Refuses what is neither."""
    text = f"{value}".strip().lower()
    if len(text) > LONGEST_TIME:
        raise Unprocessable("reserve_data.timeout", f"has more than {LONGEST_TIME} characters")
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        number = int(text)
    elif re.fullmatch(f"({PART})+", text):
        number = sum(int(count) * UNITS[unit[0]] for count, unit in re.findall(PART, text))
    else:
        raise Unprocessable("reserve_data.timeout", "must be seconds, or a time like 30m or 1h30m")
    if not 0 <= number <= 10**9:
        raise Unprocessable("reserve_data.timeout", "must be between 0 and 1,000,000,000 seconds")
    return number


def unix_time(given: str | None, field: str, where: Literal["json", "query"]) -> float | None:
    """A time in ISO 8601 as unix seconds; without a zone it is UTC."""
    try:
        return given if given is None else plumbing.unix_time(given)
    except (ValueError, OverflowError):
        raise Unprocessable(field, "Not a valid datetime: ISO 8601 is expected", where) from None


# ── Who may come in ───────────────────────────────────────────────────────────────────────────────────────────────────


def from_this_machine(call: tracker.Call) -> bool:
    """Whether the tracker listens on loopback only, and this request comes from there, and nobody's proxy sent it.

    The Host must not be a name: a page of any site can make its own name resolve to this machine, and so talk to us
    as the same origin.
    """
    settings, client = call.tracker.settings, call.scope.get("client")
    if not all(map(is_loopback, settings.hosts)) or settings.root_path or not client or not is_loopback(client[0]):
        return False
    return not is_proxied(call.told()) and is_loopback(host_of(call.header(b"host") or b""))


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


Decode = Callable[[Ask], Awaitable[tuple]]


def calls(function: Callable, *path: str, given: type | Decode | None = None, long: bool = False) -> Handler:
    """The handler of a call that is one function (tx, …). It is given the `caller` if it names one, then what is in the
    path, then the body as that struct, or what else is decoded, and the `maker` of queues. With a GET it only reads,
    and has nothing to show if it returns None.
    """
    names = inspect.signature(function).parameters
    named, makes = "caller" in names, "maker" in names

    async def handle(ask: Ask) -> Response:
        """Decodes, calls the function, and answers with what it returns."""
        told: tuple = ()
        if isinstance(given, type):
            told = (checked(given, await ask.object()),)
        elif given is not None:
            told = await given(ask)

        def run(tx: Tx, caller: clients.Client | None) -> list[bytes | domain.Long] | None:
            """The content, encoded here, beside the event loop: it may be long."""
            maker = {"maker": clients.maker(caller, ask.source)} if makes else {}
            content = function(tx, *[caller][:named], *map(ask.path, path), *told, **maker)
            return None if content is None else list(joined(json_pieces(content)))

        reads = ask.scope["method"] in ("GET", "HEAD")
        content = await (ask.read(run) if reads else ask.write(run, long))
        if content is None:
            return nothing() if reads else as_text("OK")
        if len(content) == 1:
            return as_bytes(content[0], "application/json")
        return Stream(read_on(ask, content), 200, HEADERS, "application/json")

    return handle


def json_pieces(content: Any) -> Iterator[bytes | domain.Long]:
    """The content as JSON: in one piece, or before, between and behind what is too long to be held."""
    if isinstance(content, domain.Long):
        yield content
    elif not is_long(content):
        yield encode(content)
    else:
        before = b"{"
        for name, value in content.items():
            yield before + encode(name) + b":"
            yield from json_pieces(value)
            before = b","
        yield b"}"


def joined(pieces: Iterable[bytes | domain.Long]) -> Iterator[bytes | domain.Long]:
    """The same, those that follow one another in one: to send each of 100,000 small ones holds the event loop."""
    for kind, some in itertools.groupby(pieces, type):
        if kind is bytes:
            yield b"".join(some)
        else:
            yield from some


def is_long(content: Any) -> bool:
    """Whether something in these objects is too long to be held."""
    inside = content.values() if isinstance(content, dict) else ()
    return any(isinstance(one, domain.Long) or is_long(one) for one in inside)


async def read_on(ask: Ask, pieces: list[bytes | domain.Long]) -> AsyncIterator[bytes]:
    """The pieces; what is long is read when what comes before has been sent."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        place: int | None = 0
        while place is not None:
            try:
                part, place = await ask.tracker.db.read(piece.read, place)
            except TrackerError:
                raise ClientDisconnect from None  # what has changed cannot be continued: it is broken off
            yield part


async def health(ask: Ask) -> Response:
    return as_text(f"Testflinger's API, version 1, by the tracker {tracker.__version__}\n")


async def submit_job(ask: Ask) -> Response:
    wanted = submission(await ask.object())
    uuid = await ask.write(lambda tx, client: domain.submit_job(tx, client, wanted, ask.source))
    return as_json({"job_id": uuid})


def submission(given: dict[str, Any]) -> domain.Submission:
    """The job that is wanted: known fields checked, and everything kept for its agent."""
    given = without_nulls(JobBody, given)  # agents that find a null there fail
    body = checked(JobBody, given)
    if not body.job_queue.strip():
        raise Unprocessable("job_queue", "must not be blank")
    if any(not re.fullmatch(r"(lp|gh):\S+", key) for key in body.reserve_data.ssh_keys):
        raise Unprocessable("reserve_data.ssh_keys", "each must be lp:NAME or gh:NAME")
    phases = (data for name, data in given.items() if name.endswith("_data") and isinstance(data, dict))  # known or not
    script, reservation = body.test_data.test_cmds, body.reserve_data.timeout
    return domain.Submission(
        definition=kept_definition(given, body),
        queue=body.job_queue,
        uuid=stored_uuid(body.job_id) if body.job_id else None,
        priority=body.job_priority,
        tags=body.tags,
        excluded=body.exclude_agents,
        attachments=any(data.get("attachments") is not None for data in phases),
        secrets=body.test_data.secrets,
        global_timeout=body.global_timeout,
        reservation=None if reservation is None else seconds(reservation),
        script=script if isinstance(script, str) and script.strip() else "",
    )


NUMBERS = ("global_timeout", "output_timeout", "allocation_timeout", "job_priority")


def kept_definition(given: dict[str, Any], body: JobBody) -> dict[str, Any]:
    """What the agent is given: all that was sent, with numbers as integers, and a time in seconds."""
    kept = {name: value for name, value in given.items() if name not in ("job_id", "started_at")}
    kept |= {name: getattr(body, name) for name in NUMBERS if name in kept}
    if body.reserve_data.timeout is not None:
        kept["reserve_data"] = {**kept["reserve_data"], "timeout": seconds(body.reserve_data.timeout)}
    return kept


async def pick_job(ask: Ask) -> Response:
    """The best job of the queues that the agent names, which is now its own; nothing where there is none."""
    ask.refuse_other_sites()  # it takes something away, though it is a GET
    names = ask.values("queue")
    if not names:
        raise TrackerError("invalid", "is required: at least one queue that the agent listens to", "queue")
    # Mostly there is none: no reason to write, and to hold up those who do.
    if await ask.read(lambda tx, client: domain.best_job(tx, client, names, ask.agent)) is None:
        await tracker.hold_poll(ask, tracker.client_address(ask), ("testflinger",))  # an agent need not say who it is
        return nothing()
    many = len(names) > 100
    job = await ask.write(lambda tx, client: domain.pick_job(tx, client, names, ask.agent), long=many)
    if job is None:
        return nothing()
    return tracker.HandedOut(as_json(job.shown), ask.tracker.db, job.worker, [job.task])


async def get_position(ask: Ask) -> Response:
    place = await ask.read(lambda tx, _: domain.position(tx, ask.path("job_id")))
    if place is None:
        return as_json({"message": "The job is not waiting, or not known", "detail": {}}, 410)
    return as_text(str(place))


async def search_jobs(ask: Ask) -> Response:
    """The jobs with one or all of some tags, in one of some states. Refuses (422) other words, and too many tags."""
    match = ask.values("match") or ["any"]
    if match[-1] not in ("any", "all"):
        raise Unprocessable("match", "must be any or all", "query")
    tags = list(dict.fromkeys(ask.values("tags")))
    if len(tags) > domain.MOST_TAGS:
        raise Unprocessable("tags", f"at most {domain.MOST_TAGS} tags can be searched for at once", "query")
    wanted = domain.Search(tags, match[-1] == "all", searched_states(ask.values("state")))
    return await jobs_found(ask, wanted)


def searched_states(given: list[str]) -> list[str]:
    """The states, in all their words. None at all for any state."""
    states: list[str] = []
    for state in given:
        if state == "active":
            states += [one for one in domain.STATES if one in domain.LIVE]
        elif state in domain.ENDED:
            states += domain.ENDED
        elif state in domain.STATES:
            states.append(state)
        else:
            raise Unprocessable("state", f"must be one of active, {', '.join(domain.STATES)}", "query")
    return list(dict.fromkeys(states))


async def jobs_found(ask: Ask, wanted: domain.Search, **more: str) -> Response:
    """The array of the jobs found, however many. Each piece of it is read when the one before has been sent."""

    def read(tx: Tx, after: int) -> tuple[list[dict[str, Any]], int | None]:
        jobs, following = domain.search_jobs(tx, wanted, after)
        return [{**job, **more} for job in jobs], following

    pieces = pieces_of(ask, read, 0)
    first = await anext(pieces, b"")  # a refusal comes before the answer
    return nothing() if more and not first else array(first, pieces)


async def pieces_of(ask: Ask, read: Callable[[Tx, Any], tuple[list | dict, Any]], after: Any) -> AsyncIterator[bytes]:
    """What stands in a JSON array, or object, a piece at a time; none is empty.

    `read(tx, after)` gives what comes next, and after what to go on (None: no more).
    """
    while after is not None:
        found, after = await ask.read(lambda tx, _, after=after: read(tx, after))
        if found:
            yield encode(found)[1:-1]


def array(first: bytes, pieces: AsyncIterator[bytes], begin: bytes = b"[", end: bytes = b"]") -> Stream:
    """The answer with a JSON array of any length; or, between braces, with an object."""

    async def whole() -> AsyncIterator[bytes]:
        """What stands between them, and they."""
        yield begin + first
        async for piece in pieces:
            yield b"," + piece
        yield end

    return Stream(whole(), 200, HEADERS, "application/json")


async def act_on_job(ask: Ask) -> Response:
    """Cancels a job. Refuses (422) every other action."""
    if checked(ActionBody, await ask.object()).action.lower() != "cancel":
        raise Unprocessable("action", "must be cancel")
    by = "a Testflinger client"
    await ask.write(
        lambda tx, client: domain.cancel_job(tx, ask.path("job_id"), f"client {client.id}" if client else by)
    )
    return as_text("OK")


async def send_events(ask: Ask) -> Response:
    """Passes an agent's events on to the job's webhook, and its answer back."""
    uuid, given = ask.path("job_id"), await ask.object(loose_json)
    try:
        target = checked(EventsBody, given).job_status_webhook
    except Unprocessable as error:
        raise TrackerError("invalid", str(error)) from None
    trusted = await ask.read(lambda tx, client: domain.check_events(tx, client, uuid, ask.agent))
    event = encode({name: value for name, value in given.items() if name != "job_status_webhook"})
    try:
        networks, turn = ask.tracker.settings.webhook_networks, ask.tracker.relay.turn
        async with held(ask.source, len(event)), turn(site_of(ask.source), webhooks.TIMEOUT, trusted):
            answer = await webhooks.send(target, event, networks, webhooks.TIMEOUT, trusted=trusted)
    except webhooks.Refused as error:
        raise TrackerError("invalid", f"{error}", "job_status_webhook") from None
    except (webhooks.TimedOut, webhooks.Unreachable) as error:
        return as_json({"message": str(error), "detail": {}}, 504 if isinstance(error, webhooks.TimedOut) else 502)
    return nothing() if answer.status in (204, 205, 304) else as_text(answer.text, answer.status)


# ── Results and output ────────────────────────────────────────────────────────────────────────────────────────────────


async def add_result(ask: Ask) -> Response:
    uuid, given = ask.path("job_id"), await ask.object(loose_json, REPORT_LIMIT)
    if len(given) > MOST_FIELDS:
        raise Unprocessable("_schema", f"More than {MOST_FIELDS:,} fields")
    given = {name: value for name, value in given.items() if value is not None or name not in RESULT_FIELDS}
    given.pop(domain.PICKED_BY, None)
    for name in given.keys() & RESULT_FIELDS.keys():
        given[name] = converted(given[name], RESULT_FIELDS[name], name)
    if "status" in given:
        given["status"] = {phase: status for phase, status in given["status"].items() if status is not None}
    state = given.pop("job_state", None)
    fields = {name: Raw(encode(value)) for name, value in given.items()}
    large = sum(map(len, fields.values())) > LARGE
    await ask.write(lambda tx, client: domain.add_result(tx, client, uuid, ask.agent, fields, state), long=large)
    return as_text("OK")


RESULT_FIELDS: dict[str, Any] = {
    **{f"{phase}_status": int for phase in domain.PHASES},
    **{f"{phase}_{kind}": str for phase in domain.PHASES for kind in domain.KINDS},
    "status": dict[str, int | None],
    "device_info": dict[str, Any],
    "job_state": ShortText,
}


async def add_output(kind: str, ask: Ask) -> Response:
    """POST of raw output, as the older generation has it."""
    uuid = ask.path("job_id")
    said = (await ask.body(REPORT_LIMIT)).decode(errors="replace").replace("\0", "�")
    if said:
        add = partial(domain.add_fragment, uuid=uuid, kind=kind, agent=ask.agent, text=said)
        await ask.write(add, long=len(said) > LARGE)
    return as_text("OK")


async def take_output(kind: str, ask: Ask) -> Response:
    """GET of raw output: what has come since the last one."""
    ask.refuse_other_sites()  # it takes something away, though it is a GET
    uuid = ask.path("job_id")
    if not await ask.read(lambda tx, _: domain.has_output(tx, uuid, kind)):  # mostly: no reason to write
        return nothing()
    said = await ask.write(lambda tx, _: domain.take_output(tx, uuid, kind), long=True)
    return nothing() if said is None else as_text(said)


def log_kind(ask: Ask) -> str:
    """Which log the path names. 404: there is none of that name."""
    kind = ask.path("kind")
    if kind not in domain.KINDS:
        raise TrackerError("not_found", f"There is no log {kind!r}: there are {' and '.join(domain.KINDS)}")
    return kind


def checked_phase(phase: str, where: Literal["json", "query"]) -> str:
    """The phase, if it is one of PHASES. Refuses (422) another word."""
    if phase not in domain.PHASES:
        raise Unprocessable("phase", f"must be one of {', '.join(domain.PHASES)}", where)
    return phase


async def fragment(ask: Ask) -> tuple:
    """A piece of a phase's output, as domain.add_fragment takes it."""
    uuid, kind = ask.path("job_id"), log_kind(ask)
    piece = checked(FragmentBody, await ask.object(loose_json, REPORT_LIMIT))
    phase, time = checked_phase(piece.phase, "json"), unix_time(piece.timestamp, "timestamp", "json")
    return uuid, kind, ask.agent, piece.log_data, phase, piece.fragment_number, time


async def wanted_logs(ask: Ask) -> tuple:
    """Which output is wanted, as domain.get_logs takes it."""
    uuid, kind = ask.path("job_id"), log_kind(ask)
    query = checked(LogQuery, {name: values[-1] for name, values in ask.query().items()}, "query")
    phase = query.phase and checked_phase(query.phase, "query")
    return uuid, kind, phase, query.start_fragment, unix_time(query.start_timestamp, "start_timestamp", "query")


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def add_artifact(ask: Ask) -> Response:
    uuid = ask.path("job_id")

    def begin(tx: Tx, client: clients.Client | None) -> int:  # before gigabytes are taken in
        domain.note_life(tx, client, uuid, ask.agent)
        return domain.room_for_file(tx, uuid, "artifact")

    room = await ask.write(begin)
    await receive_file(ask, room, lambda tx, client, stored: domain.store_artifact(tx, client, uuid, *stored))
    return as_text("OK")


async def add_attachments(ask: Ask) -> Response:
    uuid = ask.path("job_id")

    def begin(tx: Tx, client: clients.Client | None) -> int:
        domain.check_attachments_wanted(tx, client, uuid)
        with queues.counted(tx, clients.guest(client, ask.source)):
            return domain.room_for_file(tx, uuid, "attachments")

    room = await ask.read(begin)
    await receive_file(ask, room, lambda tx, client, stored: domain.store_attachments(tx, client, uuid, *stored))
    return as_text("OK")


async def receive_file(ask: Ask, room: int, store: Callable[[Tx, clients.Client | None, Stored], str | None]) -> None:
    """Takes in a file for which there is so much room, and notes it. What it replaces, or could not be noted, goes."""
    folder = files_of(ask.tracker.settings)
    stored = await folder.receive(ask, room)
    try:
        replaced = await ask.write(lambda tx, client: store(tx, client, stored))
    except Exception:
        await folder.delete(stored.name)
        raise
    # Without FULL a power cut may bring back who knows it, and prune has time.
    if replaced and ask.tracker.settings.synchronous == "FULL":
        await folder.delete(replaced)


async def get_file(kind: str, ask: Ask) -> Response:
    """The job's artifact or attachments; nothing where there are none."""
    for _ in range(20):  # a new upload may replace the file just after we have read its name
        row = await ask.read(lambda tx, _: domain.find_file(tx, ask.path("job_id"), kind))
        if row and (response := await files_of(ask.tracker.settings).send(row["name"])):
            return response
    return nothing()


# ── Queues and agents ─────────────────────────────────────────────────────────────────────────────────────────────────


async def of_queues(kind: Any, empty: Any, ask: Ask) -> tuple[dict[str, Any]]:
    """The body, which has something of this kind for each of some queues. Refuses (422) what is not, by its queue.

    Null, as an agent sends for what its configuration leaves out, is an empty one.
    """
    given = {queue: empty if value is None else value for queue, value in (await ask.object()).items()}
    if len(given) > queues.MOST_QUEUES:
        raise Unprocessable("_schema", f"Expected at most {queues.MOST_QUEUES:,} queues")
    for queue, value in given.items():
        converted(value, kind, queue[:200])
    return (given,)


described_queues = partial(of_queues, Text, "")
images_of_queues = partial(of_queues, Annotated[dict[Text, Any], Meta(max_length=10_000)], {})


async def update_agent(ask: Ask) -> Response:
    """Notes what an agent tells of itself, and gives it the cookie by which it is known from then on."""
    name, given = ask.path("name"), await ask.object(loose_json)
    if not name.strip() or len(name) > 200:
        raise TrackerError("invalid", "an agent's name has 1 to 200 characters", "name")
    told = without_nulls(AgentBody, given)
    if comment := checked(AgentBody, told).comment:  # why it is offline, say: with what a program has printed
        told["comment"] = comment[:MOST_COMMENT]
    await ask.write(lambda tx, _: domain.update_agent(tx, name, dict(told)))
    cookie = f"agent_name={quote(name, safe='')}; Path=/; HttpOnly; SameSite=Strict"
    return as_json({"status": "OK"}, headers={"set-cookie": cookie})


async def provisioning(ask: Ask) -> tuple[str, str, int, str]:
    """An agent's name, and how it went when it provisioned a job."""
    told = checked(ProvisionBody, await ask.object(loose_json))
    return ask.path("name"), told.job_id, told.exit_code, told.detail[:MOST_DETAIL]


async def wanted_queues(ask: Ask) -> tuple[list[str]]:
    """The queues that the query names."""
    return (ask.values("queue"),)


async def list_queues(ask: Ask) -> Response:
    """What agents say about their queues, however much."""
    pieces = pieces_of(ask, queues.advertised_queues, "")
    return array(await anext(pieces, b""), pieces, b"{", b"}")


async def list_agents(ask: Ask) -> Response:
    """All agents, however many and however much they have told."""
    pieces = pieces_of(ask, domain.list_agents, "")
    return array(await anext(pieces, b""), pieces)


async def queue_agents(ask: Ask) -> Response:
    """The agents that listen to the queue. Of one that does not exist: none, or (404) for the newer generation."""
    queue = ask.path("queue")
    pieces = pieces_of(ask, lambda tx, after: domain.queue_agents(tx, queue, after), "")
    first = await anext(pieces, b"")
    newer = ask.tracker.settings.testflinger_version != domain.OLDER
    if newer and not first and await ask.read(lambda tx, _: queues.find_queue(tx, queue)) is None:
        raise TrackerError("not_found", f"There is no queue {queue!r}")
    return array(first, pieces)


async def get_queue_jobs(ask: Ask) -> Response:
    name = ask.path("queue")
    queue = await ask.read(lambda tx, _: queues.find_queue(tx, name))
    if queue is None:
        return nothing()
    return await jobs_found(ask, domain.Search(project=queue["project"]), job_queue=name)


# ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def get_token(ask: Ask) -> Response:
    """An access token: bare for the older clients (they send {} or use GET), in JSON for the newer (an empty body)."""
    newer = ask.scope["method"] == "POST" and not (await ask.body(tracker.STRANGERS_BODY)).strip()
    tokens = await ask.write(lambda tx, _: clients.issue_token(tx, ask.header(b"authorization"), newer, ask.guesser))
    return as_json(tokens) if newer else as_text(tokens.access_token)


async def token_in_body(ask: Ask) -> tuple[str]:
    """The refresh token that is to be revoked."""
    return (checked(RefreshBody, await ask.object(limit=tracker.STRANGERS_BODY)).refresh_token,)


async def token_to_refresh(ask: Ask) -> tuple[str]:
    """The one that is to be used. What is none is refused with 400, on which alone a client forgets it and goes on."""
    try:
        return await token_in_body(ask)
    except Unprocessable as error:
        raise TrackerError("invalid", error.problem, error.field) from None


async def named_client(ask: Ask) -> tuple[str | None]:
    """The client that a call about a restricted queue names, None without one. Refuses (422) null: it would be all."""
    given = await ask.object(empty=b"{}")
    return (converted(given["client_id"], str, "client_id") if "client_id" in given else None,)


# ── Routes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class NameConvertor(PathConvertor):
    """What may have slashes, one at its end as well, and is not empty: the path without it is another one."""

    regex = ".+"


register_url_convertor("name", NameConvertor())
ONE_CLIENT, ONE_QUEUE = "/v1/client-permissions/{client_id}", "/v1/restricted-queues/{queue:name}"
ONE_SECRET = "/v1/secrets/{client_id}/{path:name}"

# Method, path, handler, and whether agents alone may come in; OPEN: everybody, as the handler looks at the credentials.
ANY, AGENT, OPEN = "any", "agent", "open"
TEXT_LOOKED_AT = tracker.looked_at(b"text/plain; charset=utf-8")
ROUTES: list[tuple[str, str, Handler, str]] = [
    ("GET", "/v1/job", pick_job, AGENT),
    ("HEAD", "/v1/job", tracker.looked_at(), AGENT),
    ("POST", "/v1/job", submit_job, ANY),
    ("GET", "/v1/job/search", search_jobs, ANY),
    ("GET", "/v1/job/{job_id}", calls(domain.get_job, "job_id"), ANY),
    ("GET", "/v1/job/{job_id}/position", get_position, ANY),
    ("POST", "/v1/job/{job_id}/action", act_on_job, ANY),
    ("POST", "/v1/job/{job_id}/events", send_events, AGENT),
    ("POST", "/v1/job/{job_id}/attachments", add_attachments, ANY),
    ("GET", "/v1/job/{job_id}/attachments", partial(get_file, "attachments"), ANY),
    ("POST", "/v1/result/{job_id}", add_result, AGENT),
    ("GET", "/v1/result/{job_id}", calls(domain.get_result, "job_id"), ANY),
    ("POST", "/v1/result/{job_id}/artifact", add_artifact, AGENT),
    ("GET", "/v1/result/{job_id}/artifact", partial(get_file, "artifact"), ANY),
    ("POST", "/v1/result/{job_id}/output", partial(add_output, "output"), AGENT),
    ("GET", "/v1/result/{job_id}/output", partial(take_output, "output"), ANY),
    ("HEAD", "/v1/result/{job_id}/output", TEXT_LOOKED_AT, ANY),
    ("POST", "/v1/result/{job_id}/serial_output", partial(add_output, "serial"), AGENT),
    ("GET", "/v1/result/{job_id}/serial_output", partial(take_output, "serial"), ANY),
    ("HEAD", "/v1/result/{job_id}/serial_output", TEXT_LOOKED_AT, ANY),
    ("POST", "/v1/result/{job_id}/log/{kind}", calls(domain.add_fragment, given=fragment), AGENT),
    ("GET", "/v1/result/{job_id}/log/{kind}", calls(domain.get_logs, given=wanted_logs), ANY),
    ("POST", "/v1/agents/queues", calls(queues.advertise_queues, given=described_queues, long=True), AGENT),
    ("GET", "/v1/agents/queues", list_queues, ANY),
    ("POST", "/v1/agents/images", calls(queues.set_images, given=images_of_queues, long=True), AGENT),
    ("GET", "/v1/agents/images/{queue:name}", calls(queues.images, "queue"), ANY),
    ("GET", "/v1/agents/data", list_agents, ANY),
    ("POST", "/v1/agents/data/{name}", update_agent, AGENT),
    ("GET", "/v1/agents/data/{name}", calls(domain.get_agent, "name"), ANY),
    ("POST", "/v1/agents/provision_logs/{name}", calls(domain.add_provision_log, given=provisioning), AGENT),
    ("GET", "/v1/queues/wait_times", calls(queues.wait_times, given=wanted_queues), ANY),
    ("GET", "/v1/queues/{queue:name}/agents", queue_agents, ANY),
    ("GET", "/v1/queues/{queue:name}/jobs", get_queue_jobs, ANY),
    ("POST", "/v1/oauth2/token", get_token, OPEN),
    ("GET", "/v1/oauth2/token", get_token, OPEN),
    ("HEAD", "/v1/oauth2/token", TEXT_LOOKED_AT, OPEN),
    ("POST", "/v1/oauth2/refresh", calls(clients.refresh_token, given=token_to_refresh), OPEN),
    ("POST", "/v1/oauth2/revoke", calls(clients.revoke_token, given=token_in_body), OPEN),
    ("GET", "/v1/restricted-queues", calls(clients.list_restricted_queues), ANY),
    ("GET", ONE_QUEUE, calls(clients.get_restricted_queue, "queue"), ANY),
    ("POST", ONE_QUEUE, calls(clients.add_restricted_queue, "queue", given=named_client), ANY),
    ("DELETE", ONE_QUEUE, calls(clients.remove_restricted_queue, "queue", given=named_client), ANY),
    ("GET", "/v1/client-permissions", calls(clients.list_permissions), ANY),
    ("POST", "/v1/client-permissions", calls(clients.create_permissions, given=clients.NewPermissionsBody), ANY),
    ("GET", ONE_CLIENT, calls(clients.get_permissions, "client_id"), ANY),
    ("PUT", ONE_CLIENT, calls(clients.put_permissions, "client_id", given=clients.PermissionsBody), ANY),
    ("DELETE", ONE_CLIENT, calls(clients.delete_permissions, "client_id"), ANY),
    ("PUT", ONE_SECRET, calls(clients.put_secret, "client_id", "path", given=clients.SecretBody), ANY),
    ("DELETE", ONE_SECRET, calls(clients.delete_secret, "client_id", "path"), ANY),
    ("GET", "/v1", health, OPEN),
]


def entrance(handler: Handler, needs: str) -> Handler:
    """The handler behind what every request has to pass before it is looked at."""

    async def handle(ask: Ask) -> Response:
        ask.needs = needs
        if may_be_long(ask) or not ask.header(b"authorization"):
            await ask.admit()
        try:
            return await handler(ask)
        except TrackerError as error:
            if error.code not in ("unauthorized", "forbidden", "too_fast"):
                await ask.admit()  # what is wrong with a body is not for everybody to know
            raise

    return handle


async def nowhere(ask: Ask) -> Response:
    raise TrackerError("not_found", f"There is nothing at {ask.scope['path'][:1000]}")


nowhere.methods = ()


def routes(running: tracker.Tracker) -> list[Route]:
    """All of this dialect's paths. Refuses (start) networks in webhook_networks that are none."""
    webhooks.read_networks(running.settings.webhook_networks)
    paths: dict[str, dict[str, Handler]] = {}
    for method, path, handler, needs in ROUTES:
        paths.setdefault(path, {})[method] = entrance(handler, needs)
    handlers = {**{path: tracker.by_method(methods) for path, methods in paths.items()}, "/v1/{path:path}": nowhere}
    return [Route(path, tracker.Endpoint(running, handler, Ask)) for path, handler in handlers.items()]


# ── Background work ───────────────────────────────────────────────────────────────────────────────────────────────────

ABANDONED = 3600  # seconds after which a file in the folder that belongs to nothing is not an upload under way


async def prune(running: tracker.Tracker) -> None:
    """Deletes what is older than testflinger_retention, in small steps, and files that belong to nothing."""
    db, store = running.db, files_of(running.settings)
    for table in ("testflinger_job", "testflinger_outcome", "testflinger_agent", "testflinger_file"):
        while await db.write(let_age, table, domain.PRUNED_ROWS, long=True):
            pass
    for step in (
        domain.cancel_forgotten,
        domain.prune_jobs,
        domain.prune_outcomes,
        domain.prune_agents,
        domain.prune_queues,
        clients.prune_refresh,
    ):
        while await db.write(step, long=True):
            pass
    after: tuple[int, str] | None = (0, "")
    while after is not None:
        names, after = await db.write(domain.prune_files, after, long=True)
        for name in names:
            await store.delete(name)
    leftovers = await store.leftovers(running.clock.before(ABANDONED))
    for name in await db.read(domain.unknown_files, leftovers):
        await store.delete(name)
