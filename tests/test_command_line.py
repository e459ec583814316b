"""The command line: real processes, their output, their exit status."""

import asyncio
import contextlib
import ctypes
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nursery
import pytest
from conftest import Manager, Worker, wait_until

import commands
import database
import tracker
from database import SCHEMA_VERSION, prepare_file

PROGRAM = Path(tracker.__file__).resolve()


def run(tmp_path: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    return nursery.run(PROGRAM, [*arguments], tmp_path, stdin)


@contextlib.contextmanager
def started(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A tracker in a process of its own, on a free port: (process, url)."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with nursery.start(PROGRAM, ["--port", "0", *arguments], tmp_path, dict(os.environ), **pipes) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            yield process, url
        finally:
            process.kill()


def refusal(tmp_path: Path, *arguments: str, stdin: str = "") -> str:
    """The one line that a user's mistake is answered with."""
    done = run(tmp_path, *arguments, stdin=stdin)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"tracker: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_without_arguments_it_serves_with_the_defaults_and_prints_its_url(tmp_path: Path) -> None:
    with started(tmp_path) as (_, url):
        assert httpx.get(url).json()["ok"]
        assert url.startswith("http://127.0.0.1:")
        assert (tmp_path / "tracker.db").exists()


def test_the_log_file_lies_beside_the_database(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with started(tmp_path, "--database", "data/x.db"):
        assert (tmp_path / "data" / "tracker.log").exists()


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_text('log_file = "nowhere/x.log"')
    assert "log_file: nowhere/x.log" in refusal(tmp_path, "--port", "0")


def test_tracker_toml_in_the_current_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_text('database = "other.db"')
    with started(tmp_path):
        assert (tmp_path / "other.db").exists()


def test_options_may_stand_before_or_after_the_command(tmp_path: Path) -> None:
    assert "port = 4001" in run(tmp_path, "--port", "4001", "config").stdout
    assert "port = 4001" in run(tmp_path, "config", "--port", "4001").stdout


def test_config_prints_every_setting_its_source_and_its_meaning(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_text("max_wait = 5")
    printed = run(tmp_path, "config").stdout
    for name, field in tracker.FIELDS.items():
        assert re.search(rf"^{name} = .*  # ", printed, re.MULTILINE)
        assert field.type.extra_json_schema["description"] in printed
    assert "max_wait = 5.0  # tracker.toml" in printed


def test_version_is_printed(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"tracker {tracker.__version__}\n"


@pytest.mark.parametrize("command", [(), ("serve",), ("config",), ("create-admin",)])
def test_help_explains_each_command(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run(tmp_path, *command, "--help")
    assert done.returncode == 0
    assert "usage: tracker.py" in done.stdout and "--database FILE" in done.stdout


def test_create_admin_takes_the_password_from_standard_input(tmp_path: Path) -> None:
    assert run(tmp_path, "create-admin", "alice", stdin="password\n").returncode == 0
    with started(tmp_path) as (_, url):
        answer = httpx.post(f"{url}/login", json={"username": "alice", "password": "password"}).json()
        assert answer["content"]["manager"]["tracker_admin"]


def test_create_admin_gives_a_forgotten_account_a_new_password_only_when_told_to(tmp_path: Path) -> None:
    run(tmp_path, "create-admin", "alice", stdin="password\n")
    assert "--reset" in refusal(tmp_path, "create-admin", "alice", stdin="other password\n")
    assert run(tmp_path, "create-admin", "alice", "--reset", stdin="other password\n").returncode == 0
    with started(tmp_path) as (_, url):
        body = {"username": "alice", "password": "other password"}
        assert httpx.post(f"{url}/login", json=body).status_code == 200


def test_create_admin_refuses_a_short_password_by_name(tmp_path: Path) -> None:
    assert "password: " in refusal(tmp_path, "create-admin", "alice", stdin="short\n")


def test_create_admin_without_a_password_says_so(tmp_path: Path) -> None:
    assert "password: " in refusal(tmp_path, "create-admin", "alice", stdin="")


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_create_admin_refuses_a_name_that_is_no_text(tmp_path: Path) -> None:
    command = [sys.executable.encode(), os.fsencode(PROGRAM), b"create-admin", b"al\xffce"]
    done = subprocess.run(command, cwd=tmp_path, input=b"password\n", capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_create_admin_leaves_a_database_in_use_alone(tmp_path: Path) -> None:
    with started(tmp_path):
        line = refusal(tmp_path, "create-admin", "alice", stdin="password\n")
        assert "another tracker is using this database; stop that one first" in line


def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path) -> None:
    with started(tmp_path):
        assert "another tracker is using this database" in refusal(tmp_path, "--port", "0")


@pytest.mark.skipif(os.name != "posix", reason="links need a privilege elsewhere")
def test_a_second_server_on_the_same_file_by_another_name_is_refused(tmp_path: Path) -> None:
    with started(tmp_path):
        (tmp_path / "link.db").symlink_to(tmp_path / "tracker.db")
        assert "another tracker is using" in refusal(tmp_path, "--port", "0", "--database", "link.db")


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot be listened on" in refusal(tmp_path, "--port", str(port))


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    assert "192.0.2.1:0: cannot be listened on" in refusal(tmp_path, "--host", "192.0.2.1", "--port", "0")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all, " * 100)
    assert "text.db: not a usable SQLite database" in refusal(tmp_path, "--database", "text.db")


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE precious (x)")
    before = (tmp_path / "other.db").read_bytes()
    assert "another program's database" in refusal(tmp_path, "--database", "other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_database_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "create-admin", "alice", stdin="password\n")
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    assert "made by a newer tracker" in refusal(tmp_path, "--port", "0")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "tracker.db: cannot be opened" in refusal(tmp_path, "--port", "0", "--database", "nowhere/tracker.db")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(tmp_path: Path, sent: signal.Signals) -> None:
    with started(tmp_path) as (process, _):
        process.send_signal(sent)
        assert process.wait(timeout=20) == 0


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_what_was_answered_before_a_signal_is_in_the_database(tmp_path: Path) -> None:
    """Workers submit as fast as they can while SIGTERM arrives: each answered submit is there, none is half there."""
    with started(tmp_path) as (process, url):
        admin = Manager(url, "admin")
        project = admin.create_project()
        workers = [admin.grant(Worker(url), project) for _ in range(4)]
        answered: list[str] = []

        def submit_many(worker: Worker) -> None:
            with contextlib.suppress(httpx.TransportError):
                for number in range(100_000):
                    if worker.submit(project, recipe := f"{worker.id}-{number}").status_code != 200:
                        return
                    answered.append(recipe)

        threads = [threading.Thread(target=submit_many, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answered) > 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        for thread in threads:
            thread.join()
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        stored = {recipe for (recipe,) in connection.execute("SELECT recipe FROM task")}
    assert set(answered) <= stored


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_signal_lets_waiting_workers_go_at_once(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        admin = Manager(url, "admin")
        project = admin.create_project()
        worker = admin.grant(Worker(url), project)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(worker.assign(project, wait=60)))
        thread.start()
        time.sleep(0.5)  # it has certainly begun to wait
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        thread.join()
        assert answers[0].json()["message"] == "No task available"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_signal_interrupts_a_long_reset_which_the_next_start_finishes(tmp_path: Path) -> None:
    account = {"username": "admin", "password": "password"}
    with started(tmp_path) as (process, url):
        admin = Manager(url, **account)
        project = admin.create_project()
        worker = admin.grant(Worker(url), project)
        worker.bulk_submit([{"project": project, "recipe": "r"}] * 100_000)
        answers: list[httpx.Response] = []
        reset = threading.Thread(target=lambda: answers.append(admin.post(f"/project/hard_reset/{project}")))
        reset.start()
        wait_until(lambda: admin.counts(project)["waiting"] < 100_000)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        reset.join()
        assert answers[0].status_code == 503
        assert "finished at its next start" in answers[0].json()["message"]
    with started(tmp_path) as (_, url):
        admin = httpx.Client(base_url=url)
        admin.post("/login", json=account)
        wait_until(lambda: admin.get(f"/project/get/{project}").json()["content"]["waiting_task_count"] == 0)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_bulk_submit_that_was_accepted_is_answered_before_the_end(tmp_path: Path) -> None:
    """Refused, its sender would send it again, and have its tasks twice."""
    with started(tmp_path) as (process, url):
        admin = Manager(url, "admin")
        project = admin.create_project()
        worker = admin.grant(Worker(url), project)
        answers: list[httpx.Response] = []
        tasks = [{"project": project, "recipe": "r"}] * 50_000
        bulk = threading.Thread(target=lambda: answers.append(worker.bulk_submit(tasks)))
        bulk.start()
        wait_until(lambda: admin.counts(project))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        bulk.join()
    assert answers[0].json()["content"] == {"submitted": 50_000, "duplicates": 0}
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM task").fetchone() == (50_000,)


def test_a_new_database_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    prepare_file(tmp_path / "tracker.db", tracker.Settings())
    if os.name == "posix":
        assert (tmp_path / "tracker.db").stat().st_mode & 0o077 == 0


def test_forms_that_are_none_are_not_each_told_to_the_log(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        job = httpx.post(f"{url}/v1/job", json={"job_queue": "q"}).json()["job_id"]
        form = {"content": b"none", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
        assert httpx.post(f"{url}/v1/result/{job}/artifact", **form).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert "multipart" not in process.communicate(timeout=30)[1]


THREADS = """
import os, resource, threading, commands
from attempts import hash_password

def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def work():
    for _ in range(2):
        hash_password("a password")
        kept.append(bytearray(200_000))
        [bytes(3_000_000) for _ in range(5)]

commands.give_memory_back()
before, kept = used(), []
for _ in range(2):
    threads = [threading.Thread(target=work) for _ in range(8)]
    [one.start() for one in threads], [one.join() for one in threads]
print((used() - before) // 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="it is the GNU C library's")
def test_what_threads_have_used_for_passwords_and_bodies_goes_back() -> None:
    """They keep 6 MB; it was 212."""
    command = [sys.executable, "-c", THREADS]
    ended = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=170, check=True)
    assert int(ended.stdout) < 60


HOLES = """
import ctypes, resource, commands

def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

library = ctypes.CDLL(None)
library.mallinfo2.restype = commands.Heap
many = [b"x" * 20_000 for _ in range(4_000)]
least, before = library.mallinfo2().free, used()
del many[::2]
least = commands.emptied(least, library)
print((before - used()) // 2**20, least // 2**20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="it is the GNU C library's")
def test_what_becomes_free_between_what_is_used_goes_back() -> None:
    command = [sys.executable, "-c", HOLES]
    ended = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=60, check=True)
    gone, free = map(int, ended.stdout.split())
    assert gone > 20 < free  # of 38


class Library:
    """A C library that has so much free, and counts how often it is to give that back."""

    def __init__(self) -> None:
        self.free, self.trims = 0, 0

    def mallinfo2(self) -> commands.Heap:
        return commands.Heap(free=self.free)

    def malloc_trim(self, pad: int) -> None:
        self.trims += 1


def test_nothing_goes_back_until_much_more_is_free_than_there_was() -> None:
    library, least, trims = Library(), 2 * commands.GROWN, []
    for library.free in (2, 3, 1, 2, 3, 4, 4.5):
        library.free = int(library.free * commands.GROWN)
        least = commands.emptied(least, library)
        trims.append(library.trims)
    assert trims == [0, 0, 0, 0, 1, 1, 2]


# ── What a start says ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_configuration_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_bytes(b"\xef\xbb\xbfport = 4001")
    assert "port = 4001" in run(tmp_path, "config").stdout


@pytest.mark.parametrize("mistake", [("--port", "abc"), ("--bogus",), ("bogus",), ("create-admin",), ("--host",)])
def test_a_mistake_on_the_command_line_is_said_in_one_line(tmp_path: Path, mistake: tuple[str, ...]) -> None:
    assert "--help" in refusal(tmp_path, *mistake)


@pytest.mark.parametrize("database", [":memory:", "", "file:x.db?mode=memory", ".", "/dev/null", "x" * 300])
def test_a_database_that_is_no_file_is_said_in_one_line(tmp_path: Path, database: str) -> None:
    refusal(tmp_path, "--port", "0", "--database", database)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_FULL", "the disk is full"),
        ("SQLITE_IOERR_READ", "the disk cannot be read or written"),
        ("SQLITE_IOERR_SHMSIZE", "the disk is full, or its -shm cannot be written"),
        ("SQLITE_IOERR_SHMMAP", "this file system cannot hold a database in WAL mode"),
        ("SQLITE_READONLY", "it cannot be written to"),
        ("SQLITE_BUSY", "another program is using it"),
        ("SQLITE_CORRUPT", "it is damaged"),
        ("SQLITE_NOTADB", "not a usable SQLite database"),
    ],
)
@pytest.mark.parametrize("where", [(database, "upgrade_schema"), (database.Database, "_connect_reader")])
def test_why_a_database_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str, where: tuple
) -> None:
    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("in SQLite's words")
        error.sqlite_errorcode = getattr(sqlite3, name)
        raise error

    monkeypatch.setattr(*where, fail)
    with pytest.raises(tracker.TrackerError, match=said) as raised:
        asyncio.run(database.Database(tracker.Settings(database=str(tmp_path / "x.db")), tracker.Clock()).open())
    assert raised.value.code == "start"
    assert "\n" not in raised.value.message


def by_shell(tmp_path: Path, redirected: str, *arguments: str) -> subprocess.Popen:
    """A tracker whose standard files a shell has redirected."""
    command = shlex.join([sys.executable, str(PROGRAM), *arguments])
    return subprocess.Popen(["sh", "-c", f"exec {command} {redirected}"], cwd=tmp_path, stdout=subprocess.PIPE)


@pytest.mark.skipif(os.name != "posix", reason="it takes a shell")
@pytest.mark.parametrize(
    "redirected",
    ["<&- >&- 2>&-", ">&-", "2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "| true", "2>&1 | true"],
)
def test_a_tracker_serves_whatever_its_standard_files_are(tmp_path: Path, redirected: str) -> None:
    if "full" in redirected and not os.path.exists("/dev/full"):
        pytest.skip("there is no such file here")
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    if "|" in redirected:
        redirected = redirected.replace("| true", "> fifo")
        os.mkfifo(tmp_path / "fifo")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        threading.Timer(0.1, os.close, [reader]).start()
    process = by_shell(tmp_path, redirected, "--port", str(port))
    try:
        wait_until(lambda: answers(port), seconds=20)
        assert httpx.post(f"http://127.0.0.1:{port}/worker/create", json={"alias": "w"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(os.name != "posix", reason="it takes a shell")
def test_create_admin_without_standard_files_says_nothing_and_has_no_password(tmp_path: Path) -> None:
    assert by_shell(tmp_path, "<&- >&- 2>&-", "create-admin", "alice").wait(timeout=60) == 2


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_name_that_is_no_text_is_printed_as_well_as_can_be(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    process = by_shell(tmp_path, "2>&1", "--port", "0", "--database", "\udcff/tracker.db")
    try:
        assert b"listening on http://" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it takes a file that is full")
def test_settings_that_cannot_be_printed_are_said_in_one_line(tmp_path: Path) -> None:
    command = f"{shlex.join([sys.executable, str(PROGRAM), 'config'])} > /dev/full"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="a pipe that can be asked")
def test_a_log_that_nobody_reads_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A pager that is not read on, say: a pipe takes 64 KiB, and these are more."""
    (tmp_path / "tracker.toml").write_text("access_log = true")
    with started(tmp_path) as (process, url), httpx.Client(base_url=url, timeout=10) as http:
        for number in range(1000):
            assert http.get(f"/{'x' * 200}{number}").status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
