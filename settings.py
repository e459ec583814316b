"""What can be set: every setting with its type, range, help and default, and where each value came from."""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

import shapes
from errors import TrackerError, convert


class Settings(shapes.Shape, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting: name, type and range, help, default. tracker.toml lists the same ones (a test compares them)."""

    host: Annotated[
        str | tuple[str, ...],
        'Address to listen on, or a list of them; "::" is every one of both families. Anything but loopback is'
        " reachable from outside: put TLS in front.",
    ] = "127.0.0.1"
    port: Annotated[int, "Port to listen on; 0 takes a free one.", Meta(ge=0, le=65535)] = 3010
    socket: Annotated[
        str,
        "Path of a unix socket to listen on, for its owner and group, whose other end is a proxy; then also on `host`,"
        " if that is given.",
    ] = ""
    root_path: Annotated[
        str,
        "Path prefix below which a reverse proxy serves the tracker, such as /tracker; no slash at its end.",
        Meta(pattern=r"^(/[A-Za-z0-9._~-]+)*$"),
    ] = ""
    trusted_proxies: Annotated[
        str,
        "Addresses and networks (comma separated) of reverse proxies whose X-Forwarded-For and -Proto headers are"
        " believed; * is all.",
    ] = "127.0.0.1, ::1"
    cors_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/?#@,\sA-Z]+)$")], ...],
        "Origins of other sites' pages that may use the API, such as https://app.example.org, and with a manager's"
        ' login; "*" is all others, without logins.',
    ] = ()
    allowed_hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^((\*\.)?[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+)$")], ...],
        "Names, without a port, under which browsers may reach the tracker, such as tracker.example.org or"
        " *.example.org. Empty: any; but where it listens on loopback, those of its own machine and that of a proxy"
        " with TLS.",
    ] = ()
    database: Annotated[str, "The SQLite file; a relative path starts at the configuration file's folder."] = (
        "tracker.db"
    )
    synchronous: Annotated[
        Literal["FULL", "NORMAL"],
        "FULL: an answer means it is on disk. NORMAL: faster, and a power cut may undo the last moments.",
    ] = "FULL"
    max_wal: Annotated[
        int,
        "The write-ahead log beside the database is cut before it is longer than this, in MiB, for which reads wait a"
        " moment. Another program that reads for long keeps it from that: the log names it.",
        Meta(ge=1, le=65536),
    ] = 64
    cache_size: Annotated[int, "Memory for SQLite's page cache, in MiB.", Meta(ge=1, le=65536)] = 16
    log_file: Annotated[
        str,
        "File that gets every line of POST /log (relative: beside the database), rotated at 10 MiB; empty for none.",
    ] = "tracker.log"
    log_level: Annotated[shapes.LogLevel, "Workers' log lines from this level on are also kept in the database."] = (
        "info"
    )
    log_retention: Annotated[shapes.Seconds, "Log lines in the database are deleted after this time, in seconds."] = (
        2_592_000
    )
    max_logs: Annotated[
        shapes.Count,
        "Most log lines that are kept in the database, in MiB; whoever has most of them loses its oldest for the next."
        " Jobs have max_job_log.",
    ] = 256
    max_stranger_logs: Annotated[
        shapes.Count, "How much of max_logs those workers share that have no access and never had a task, in MiB."
    ] = 4
    max_reasons: Annotated[
        shapes.Count,
        "The reasons of failures that are kept in the database, in MiB; beyond it failed tasks are still counted by"
        " what they failed for.",
    ] = 256
    worker_log_rate: Annotated[
        shapes.Count,
        "Log lines of one worker that are kept, in KiB a second over a minute; more go to the log file only.",
    ] = 256
    address_log_rate: Annotated[
        shapes.Count,
        "The same of all workers behind one address (IPv6: /64, and eight times as much of a /48), but for programs on"
        " the tracker's own machine.",
    ] = 4096
    min_free_disk: Annotated[
        int,
        "With less free disk than this, in MiB (or than a twentieth of the disk, if that is less), tasks, jobs and"
        " uploads are refused, and log lines are dropped. 0 for no such floor.",
        Meta(ge=0, le=2**31),
    ] = 256
    registration_rate: Annotated[
        shapes.Count,
        "How many workers and managers may register from one address (IPv6: /64, and eight times as many from a /48) in"
        " an hour, but for programs on the tracker's own machine.",
    ] = 600
    keyless_rate: Annotated[
        shapes.Count,
        "How many jobs of Otter's templates that need no key one address (IPv6: /64, and eight times as many a /48) may"
        " make in an hour, but for programs on the tracker's own machine.",
    ] = 600
    max_workers: Annotated[
        shapes.Count,
        "Most workers. Beyond half of them, those that never had a task or asked for access are forgotten after an"
        " hour's silence, and after 30 days' those that have closed nothing and have no access but in projects"
        " that no tracker admin trusts. Beyond all, the oldest of those makes room at once, of the network that has"
        " most.",
    ] = 100_000
    max_managers: Annotated[
        shapes.Count,
        "Most managers who may register by themselves. Beyond half of them, those without a part in any project are"
        " forgotten who have not logged in for 30 days. Beyond all, the oldest of those makes room at once, of the"
        " network that has most.",
    ] = 10_000
    max_access_requests: Annotated[
        shapes.Count,
        "Most workers that may wait for an answer to their request for access to one project. Beyond, the oldest"
        " request of the network makes room that has most of them.",
    ] = 1000
    max_untrusted_projects: Annotated[
        shapes.Count,
        "Most that all projects hold together that managers made whom no tracker admin trusts, in MiB, with 4 MiB for"
        " each; the last quarter is for addresses whose managers' projects are no larger together.",
    ] = 1024
    max_untrusted_text: Annotated[
        shapes.Count,
        "Longest task, and most that a job is given, in projects that no tracker admin trusts, in KiB: each is written"
        " anew whenever it moves, and everybody waits for that.",
    ] = 256
    public_logs: Annotated[
        bool,
        "Whether anybody may read the logs, but for lines of hidden projects. Otherwise managers do in whose projects"
        " they were written (READ), and admins.",
    ] = False
    access_log: Annotated[bool, "Whether to print a line for each request."] = False
    cookie_name: Annotated[str, "Name of the session cookie.", Meta(pattern="^[A-Za-z0-9_-]+$")] = "tt"
    session_lifetime: Annotated[shapes.Seconds, "A login ends after this time, in seconds."] = 2_592_000
    max_logins: Annotated[
        shapes.Count,
        "So many logins and registrations at once may have their passwords looked at, or wait for it, from one address"
        " no more than it leaves free; more are refused (503). A manager whose browser has logged in before has two of"
        " its own, and so has one at an address from which it has.",
    ] = 32
    hsts: Annotated[
        int,
        "For how long, in seconds, browsers that have seen a page under TLS are to ask for nothing else on this host"
        " (Strict-Transport-Security); 0 does not say so.",
        Meta(ge=0, le=2**31),
    ] = 0
    open_registration: Annotated[
        bool,
        "Whether anybody may register as a manager (who starts with no rights). The first one, the owner, always may.",
    ] = True
    open_worker_registration: Annotated[
        bool, "Whether anybody may create a worker (which starts with no rights); otherwise only managers."
    ] = True
    default_alias: Annotated[str, "Alias of a worker that did not choose one.", Meta(min_length=1, max_length=200)] = (
        "worker"
    )
    default_max_assign_time: Annotated[
        int,
        "A task without a max_assign_time of its own is taken back after this time, in seconds.",
        Meta(ge=1, le=2**31),
    ] = 3600
    max_extension: Annotated[
        shapes.Seconds, "A worker may extend a lease so that it ends at most so many seconds from then on."
    ] = 86400
    max_skip_delay: Annotated[
        shapes.Seconds,
        "A worker that skips a task may keep it from everybody for so many seconds at most; more counts as that.",
    ] = 2_592_000
    default_max_lost_leases: Annotated[
        int,
        "A plain task fails when so many leases of it are lost, if its project says nothing else. 0 for never.",
        Meta(ge=0, le=shapes.INT16_MAX),
    ] = 5
    pause_after_failures: Annotated[
        int,
        "A worker that fails so many plain tasks of a project in a row is paused there for ten minutes. 0 for never.",
        Meta(ge=0, le=1_000_000),
    ] = 25
    default_job_timeout: Annotated[
        shapes.Seconds, "A job whose template has no timeout may run for this time, in seconds."
    ] = 600
    job_retention: Annotated[
        shapes.Seconds, "An ended job is deleted after this time, in seconds, unless its template says otherwise."
    ] = 2_592_000
    max_job_log: Annotated[shapes.Count, "Most log text that is kept of one job, in KiB."] = 16384
    stranger_job_rate: Annotated[
        shapes.Count,
        "Lines, results and output of jobs that workers without access do in public projects and bring from one address"
        " (IPv6: /64, and eight times as much of a /48), in KiB a second over five minutes, but for programs on the"
        " tracker's own machine.",
    ] = 64
    theeye_customer: Annotated[
        str,
        "The name of the one customer (organisation) that clients of theeye.io name.",
        Meta(pattern="^[A-Za-z0-9_.-]+$"),
    ] = "tracker"
    testflinger_anonymous: Annotated[
        Literal["loopback", "always", "never"],
        "Who needs no credentials as Testflinger's client or agent. loopback: programs on the tracker's own"
        " machine, where it listens on no other address and has no root_path. always: everybody who reaches it."
        " never: nobody.",
    ] = "loopback"
    testflinger_version: Annotated[
        Literal["2025", "2026"], "Which Testflinger server to be like where the two in use contradict one another."
    ] = "2025"
    testflinger_retention: Annotated[
        shapes.Seconds,
        "Testflinger's ended jobs with their results and files, and silent agents are deleted after this time, in"
        " seconds (jobs at the latest after job_retention).",
    ] = 604_800
    testflinger_max_file: Annotated[shapes.Count, "Largest artifact or attachments of a Testflinger job, in MiB."] = (
        4096
    )
    testflinger_max_files: Annotated[
        shapes.Count,
        "Most that all artifacts and attachments of Testflinger's jobs take on the disk together, in MiB; more are"
        " refused (503) until older ones go.",
    ] = 65536
    testflinger_max_data: Annotated[
        shapes.Count,
        "Most that Testflinger's jobs, what is reported of them with their output, agents and the images of queues take"
        " in the database together, in MiB. Beyond, more jobs, images and results are refused (503), and output is"
        " dropped, until older ones go.",
    ] = 16384
    testflinger_client_queues: Annotated[
        shapes.Count,
        "Most of Testflinger's queues that one client with the role contributor may have made, and, where half of the"
        " thousand are taken, all clients without credentials of one network.",
    ] = 100
    public_metrics: Annotated[
        bool, "Whether everybody may see GET /metrics: how much all projects do that are not hidden, and the machine."
    ] = False
    metrics_token: Annotated[
        str,
        "What a monitor sends to GET /metrics (Authorization: Bearer …), of 16 characters or more. Empty: only managers"
        " may see it, or with public_metrics everybody.",
        Meta(pattern=r"^([!-~]{16,})?$"),
    ] = ""
    webhook_networks: Annotated[
        tuple[str, ...],
        "Networks that are not public, such as 10.1.2.0/24, into which the tracker may send webhooks all the same.",
    ] = ()
    notice_command: Annotated[
        tuple[str, ...],
        'A program and its arguments, such as ["/usr/local/bin/tell-us"], to which projects that an admin trusts may'
        " have their notices given instead of a URL: as JSON on standard input. Empty: none.",
    ] = ()
    max_wait: Annotated[shapes.Seconds, "The longest ?wait= for a task that is honoured, in seconds."] = 60
    max_count: Annotated[shapes.Count, "The most tasks that one ?count= or one bulk release may take."] = 1000
    max_bulk: Annotated[shapes.Count, "The most tasks in one bulk submit."] = 100_000
    max_waits: Annotated[
        shapes.Count,
        "How many requests may wait for a task at the same time, beyond which one is answered at once, of the address"
        " that has most; no more than three quarters of the connections that there may be.",
    ] = 5000
    max_empty_polls: Annotated[
        float,
        "How often a second a worker may ask a project that has no task for it; who asks more often is answered later"
        " each time, at most by a second. 0 for as often as it likes.",
        Meta(ge=0, le=1e6),
    ] = 10.0
    max_body: Annotated[shapes.Count, "Largest request body, in KiB."] = 4096
    max_bulk_body: Annotated[shapes.Count, "Largest body of a bulk submit, in KiB."] = 65536
    max_acts: Annotated[
        shapes.Count,
        "How much is kept of what managers did, in MiB: a thousand acts of each project, and beyond this the oldest go,"
        " first those in projects that no admin trusts.",
    ] = 64
    max_import: Annotated[
        shapes.Count,
        "Largest file of a project that a manager whom an admin trusts may import, unpacked, in MiB; of others it is"
        " as large as a bulk submit at most.",
    ] = 4096
    request_timeout: Annotated[
        shapes.Seconds,
        "A client has this long to send its headers, again to send its body (or each 256 KiB of an upload), and again"
        " to take in each 48 KiB of an answer.",
    ] = 30
    max_connections: Annotated[
        shapes.Count,
        "How many connections there may be, or as many as the system lets files be open. Beyond, the one makes room"
        " that has been idle longest, first of an address that has more than a quarter of all.",
    ] = 10_000
    max_arriving: Annotated[
        shapes.Count,
        "Memory for requests that have not arrived in whole, or wait to be read or stored, unpacked, in MiB, of the"
        " whole process. Beyond, those of the address that holds most are refused (503), but one alone may be as large"
        " as its call allows.",
    ] = 256
    max_spooled: Annotated[
        shapes.Count, "The same of uploads that are in temporary files (in TMPDIR) until they are stored, in MiB."
    ] = 1024
    shutdown_timeout: Annotated[
        shapes.Seconds,
        "Requests in flight have this long to finish when the tracker stops."
        " Containers are killed after 10, by default.",
    ] = 8
    history_retention: Annotated[
        shapes.Seconds,
        "A task's past assignments and finished operations (submitted lines after a day at the earliest) are"
        " forgotten after this time, in seconds.",
    ] = 2_592_000
    snapshot_interval: Annotated[
        shapes.Seconds, "Time between two snapshots of every project's counts, in seconds."
    ] = 60
    snapshot_history: Annotated[shapes.Seconds, "Snapshots are deleted after this time, in seconds."] = 7_776_000
    refresh_interval: Annotated[
        shapes.Seconds, "An open page of the manager UI fetches what has changed after this time, in seconds."
    ] = 5
    production_branches: Annotated[
        tuple[str, ...], "A push to one of these branches sets a project's version (git webhook)."
    ] = ("main", "master")

    def shown(self, name: str) -> Any:
        """The value of a setting where people read it: that of a secret is that there is one."""
        value = getattr(self, name)
        return "set, and not shown" if value and name in SECRET else value

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on, each once, without the brackets that a URL has."""
        given = (self.host,) if isinstance(self.host, str) else self.host
        return tuple(dict.fromkeys(re.sub(r"^\[(.*)\]$", r"\1", host) for host in given))


SECRET = {"metrics_token"}
FIELDS = {field.name: field for field in msgspec.inspect.type_info(Settings).fields}


def load_settings(path: Path | None = None, **overrides: Any) -> tuple[Settings, dict[str, str]]:
    """Settings from a TOML file and from overrides (None = not given), and where each one came from.

    Refuses (TrackerError) an unreadable file, an unknown key, a wrong type, an impossible value, naming key and file.
    """
    given = _read_toml(path) if path else {}
    sources = dict.fromkeys(FIELDS, "default") | dict.fromkeys(given, str(path))
    for name in given:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise TrackerError("start", f"{path}: unknown setting {name}{hint}")
    for name, value in overrides.items():
        if value is not None:
            given[name], sources[name] = value, "command line"
    try:
        settings = convert(given, Settings)
    except TrackerError as error:
        raise TrackerError("start", f"{sources[error.field.partition('[')[0]]}: {error.message}") from None
    check_proxies(settings.trusted_proxies, sources["trusted_proxies"])
    changed: dict[str, Any] = {}
    for name in ("database", "socket"):
        if path and sources[name] != "command line" and (given_path := getattr(settings, name)):
            changed[name] = str(path.parent / given_path)
    if settings.socket and sources["host"] == "default":
        changed["host"], sources["host"] = (), "none, as there is a socket"
    return msgspec.structs.replace(settings, **changed), sources


def check_proxies(given: str, source: str) -> None:
    """Refuses (TrackerError) what would trust nobody without a word, as uvicorn takes it for the name of a socket."""
    if given.strip() == "*":
        return
    for one in filter(None, map(str.strip, given.split(","))):
        try:
            ipaddress.ip_network(one)  # an address is a network of one
        except ValueError as error:
            why = f"{one!r} is neither an address nor a network such as 10.0.0.0/8 ({error}), nor * alone, for all"
            raise TrackerError("start", f"{source}: trusted_proxies: {why}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # some editors write a BOM
    except OSError as error:
        raise TrackerError("start", f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrackerError("start", f"{path}: not valid TOML: {error}") from None
