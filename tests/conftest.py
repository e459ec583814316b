"""What the tests share: a tracker of its own for each test, a clock that tests move, and the verbs of its users."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import http.server
import importlib
import itertools
import os
import shutil
import signal
import sqlite3
import ssl
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nursery
import pytest
import starlette.routing
from hypothesis import HealthCheck, settings
from wire import Wire

import attempts
import database
import pages
import tracker
import writer
from clock import bounded

# Also for pytest's own processes and those that tests start. What was compiled is kept, even where the environment is
# against it; and who makes an HTTP client reads one certificate, as reading all takes longer than a test's requests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))


def heed_signals() -> None:
    """Whoever starts these tests in the background has them ignore Ctrl-C, which what they start would inherit."""
    for number in signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


heed_signals()
gc.set_threshold(100_000, 50, 1000)  # while tests are collected, hardly anything of it is garbage


def keep_files_in_memory() -> None:
    """Where Linux has a file system in memory with room for them, what tests write goes there, if nobody said where.

    They wait for fsync ten thousand times, which is milliseconds on a disk. It is called all the same, as one of them
    shows; and what a killed process has written is there after it on either.
    """
    memory = "/dev/shm"
    if "TMPDIR" in os.environ or not (os.path.isdir(memory) and os.access(memory, os.W_OK)):
        return
    found = os.statvfs(memory)
    if found.f_bavail * found.f_frsize >= 2**30 and not found.f_flag & os.ST_NOEXEC:  # some tests write programs
        os.environ["TMPDIR"] = memory
        tempfile.tempdir = None  # it is found anew


keep_files_in_memory()

# Bounded and the same every time, so that a run says something about the change and not about its luck.
# Now and then: pytest --hypothesis-profile=thorough
settings.register_profile(
    "quick",
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=3000, derandomize=False)
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """When all tests are run, each of pytest's processes compiles some first, and the others find them compiled."""
    worker = getattr(session.config, "workerinput", None)
    if worker and session.config.args == session.config.getini("testpaths"):
        number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        for file in sorted(Path(__file__).parent.glob("test_*.py"))[number::count]:
            with contextlib.suppress(Exception, pytest.skip.Exception):  # whoever collects it tells why
                importlib.import_module(file.stem)


LONGEST = {  # functions of tests that take some ten seconds, but for those that share what is made for their module
    "test_a_crawl_waits_for_the_end_of_a_ban_and_loses_no_page",
    "test_a_crawl_whose_workers_are_killed_keeps_every_page_whole_and_another_asks_for_what_has_changed",
    "test_a_kill_at_any_moment_of_a_compact_loses_nothing",
    "test_a_killed_worker_and_a_killed_tracker_cost_no_page",
    "test_a_large_upload_is_not_held_in_memory",
    "test_a_tracker_that_is_away_is_waited_for",
    "test_no_page_has_a_fault_for_anybody_in_any_theme_and_width",
    "test_no_page_of_a_first_visit_has_a_fault",
    "test_several_hosts_are_crawled_politely_by_several_workers_whatever_some_of_them_do",
    "test_the_statuses_of_refusals_are_those_that_are_documented",
    "test_the_tracker_and_a_simple_model_agree_after_every_step",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each of pytest's processes begins with its part of the longest tests: at the end one would wait for another."""
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    long = [item for item in items if getattr(item, "originalname", "") in LONGEST]
    rest = [item for item in items if getattr(item, "originalname", "") not in LONGEST]
    share = -(-len(items) // count)  # what xdist gives each at first
    items.clear()
    for number in range(count):
        mine = long[number::count]
        first = number * len(mine) // count  # another one for each: not all of them drive a browser at once
        items += mine[first:] + mine[:first]
        some = max(0, share - len(mine))
        items += rest[:some]
        del rest[:some]
    items += rest


def pytest_collection_finish(session: pytest.Session) -> None:
    """What has been loaded stays: thousands of tests are looked through for garbage once, and not with each of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)


# The trackers of all tests have the same paths, and what is made of a row of their tables is the same.
starlette.routing.compile_path = functools.cache(starlette.routing.compile_path)
tracker.handler_of = functools.cache(tracker.handler_of)
tables_with = functools.cache(lambda all_pages, *dialects: all_pages())
tracker.all_pages = functools.partial(lambda all_pages: tables_with(all_pages, *tracker.dialects()), tracker.all_pages)
httpx._urls.urlparse = httpx._urlparse.urlparse = functools.lru_cache(1000)(httpx._urlparse.urlparse)  # for any request


def when(needed: Callable[[Any, Any], Any], function: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    return lambda cookies, message: function(cookies, message) if needed(cookies, message) else None


# A fifth of what a request costs its client goes into cookies, which most neither have nor get.
Cookies = httpx.Cookies
Cookies.extract_cookies = when(lambda _, response: "set-cookie" in response.headers, Cookies.extract_cookies)
Cookies.set_cookie_header = when(lambda cookies, _: any(cookies), Cookies.set_cookie_header)

NAMES = (f"{kind}{number}" for number in itertools.count(1) for kind in ("project", "manager"))


class MovedClock(tracker.Clock):
    """The real clock plus what a test moved it by: `wall` like a person who sets it, `pass_time` like waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = 0.0
        self.passed = 0.0

    def pass_time(self, seconds: float) -> None:
        self.passed += seconds

    def time(self) -> float:
        return bounded(super().time() + self.passed + self.wall)

    def uptime(self) -> float:
        return super().uptime() + self.passed


for _wait in "connect", "read", "write", "pool":  # no test is about the five seconds, which pass on a loaded machine
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _wait, 90)


class Client(httpx.Client):
    """Somebody's HTTP client. A copy is of the same one, at the tracker that `memo["url"]` names."""

    def __deepcopy__(self, memo: dict[Any, Any]) -> Client:
        other = client(memo["url"], headers=self.headers)
        for cookie in map(copy.copy, self.cookies.jar):
            cookie.domain = other.base_url.host
            other.cookies.jar.set_cookie(cookie)
        return other


def client(url: str, **options: Any) -> Client:
    """Somebody's HTTP client."""
    return Client(base_url=url, timeout=90, trust_env=False, **{"transport": Wire(), **options})


class Worker:
    """A worker that talks to a tracker over HTTP. Its verbs return the response."""

    def __init__(self, url: str, alias: str = "some alias"):
        self.http = client(url)
        worker = self.http.post("/worker/create", json={"alias": alias}).json()["content"]["worker"]
        self.id, self.secret, self.alias = worker["id"], worker["secret"], alias
        self.http.headers.update({"X-Worker-ID": str(self.id), "X-Secret": self.secret})

    def submit(self, project: int, recipe: str = "recipe", **fields: Any) -> httpx.Response:
        return self.http.post("/task/submit", json={"project": project, "recipe": recipe, **fields})

    def bulk_submit(self, tasks: list[dict[str, Any]]) -> httpx.Response:
        return self.http.post("/task/bulk_submit", json={"requests": tasks})

    def assign(self, project: int, **query: Any) -> httpx.Response:
        return self.http.get(f"/task/get/{project}", params=query)

    def release(self, task: int, result: int = tracker.OK, **fields: Any) -> httpx.Response:
        return self.http.post("/task/release", json={"task_id": task, "result": result, **fields})

    def log(self, level: str, message: str, timestamp: int = 2, **fields: Any) -> httpx.Response:
        body = {"scope": "test", "message": message, "timestamp": timestamp, **fields}
        return self.http.post(f"/log/{level}", json=body)

    def request_access(self, project: int, assign: bool = True, submit: bool = True) -> httpx.Response:
        body = {"project": project, "assign": assign, "submit": submit}
        return self.http.post("/project/request_access", json=body)

    def assigned(self, project: int, **query: Any) -> dict[str, Any] | None:
        """The task that the worker is assigned, or None when there is none for it."""
        response = self.assign(project, **query)
        assert response.status_code == 200, response.text
        return response.json()["content"]["task"] if response.json()["ok"] else None

    def released(self, task: int, result: int = tracker.OK, **fields: Any) -> bool:
        """Whether the release updated the task."""
        response = self.release(task, result, **fields)
        assert response.status_code == 200, response.text
        return response.json()["content"]["updated"]


class Manager:
    """A manager that is logged in, with a browser's cookies. `http` is its client."""

    def __init__(self, url: str, username: str = "manager", password: str = "password", **options: Any):
        self.http = client(url, **options)
        response = self.http.post("/register", json={"username": username, "password": password})
        assert response.status_code == 200, response.text
        self.id = response.json()["content"]["manager"]["id"]
        self.username, self.password = username, password

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.http.get(path, params=query)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.http.post(path, json=body)

    def create_project(self, name: str = "", **fields: Any) -> int:
        response = self.post("/project/create", {"name": name or next(NAMES), **fields})
        assert response.status_code == 200, response.text
        return response.json()["content"]["id"]

    def update_project(self, project: int, **fields: Any) -> httpx.Response:
        return self.post(f"/project/update/{project}", fields)

    def set_role(self, project: int, manager: Manager, role: int) -> httpx.Response:
        return self.post(f"/manager/set_role_for_project/{project}", {"manager": manager.id, "role": role})

    def project(self, project: int) -> dict[str, Any]:
        """The project with its live counts, as the manager sees it."""
        return self.get(f"/project/get/{project}").json()["content"]["project"]

    def counts(self, project: int) -> dict[str, int]:
        """The live counts, without `_task_count` in their names and without zeros."""
        shown = self.project(project)
        names = {name: name.removesuffix("_task_count").removesuffix("_count") for name in tracker.COUNT_COLUMNS}
        return {short: shown[name] for name, short in names.items() if shown[name]}

    def grant(self, worker: Worker, project: int, assign: bool = True, submit: bool = True) -> Worker:
        if worker.request_access(project, assign, submit).status_code == 404:  # it is hidden: it has asked before
            self.update_project(project, hidden=False)
            assert worker.request_access(project, assign, submit).status_code == 200
            self.update_project(project, hidden=True)
        assert self.post(f"/project/accept_request/{project}/{worker.id}").status_code == 200
        return worker


class Site:
    """A running tracker: `admin` is its first manager; `clock` moves its time; `url` is where it listens."""

    def __init__(self, url: str, clock: MovedClock, settings: tracker.Settings):
        self.url, self.clock, self.settings = url, clock, settings
        self.admin = Manager(url, "admin")

    def __deepcopy__(self, memo: dict[Any, Any]) -> Site:
        """The same one at another tracker: see Prepared."""
        other = memo[id(self)] = object.__new__(Site)
        vars(other).update(url=memo["url"], admin=copy.deepcopy(self.admin, memo), **memo["site"])
        return other

    @functools.cached_property
    def guest(self) -> httpx.Client:
        """Somebody who has neither logged in nor registered."""
        return client(self.url)

    def create_manager(self, username: str = "") -> Manager:
        return Manager(self.url, username or next(NAMES))

    def create_worker(self, project: int | None = None, alias: str = "some alias", **roles: bool) -> Worker:
        """A worker, with access to the project if one is given (assign and submit, unless said otherwise)."""
        worker = Worker(self.url, alias)
        return worker if project is None else self.admin.grant(worker, project, **roles)

    def read(self, sql: str, *parameters: Any) -> list[tuple]:
        """Looks into the database directly, on a read-only connection, for what no API shows."""
        connection = database.connect(Path(self.settings.database), self.settings, readonly=True)
        connection.row_factory = None
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()

    def dump(self) -> dict[str, list[tuple]]:
        """Every row (`dump`), when no operation goes on any more: some calls are answered before theirs has ended."""
        wait_until(lambda: not self.read("SELECT 1 FROM operation WHERE accepted AND finished IS NULL"))
        return dump(self.settings.database)


COLUMNS = """
    SELECT found.name, group_concat(info.name) FROM sqlite_schema AS found, pragma_table_info(found.name) AS info
    WHERE found.type = 'table' AND info.name <> 'last_seen' GROUP BY found.name
"""


PASSING = {"meta": "key NOT IN ('uptime', 'clock', 'jobs_set_back')", "snapshot": "0", "sqlite_sequence": "0"}


def dump(path: str | Path) -> dict[str, list[tuple]]:
    """Every row of every table, without what time, a mere visit and a refused duplicate change."""
    with dumping(path) as look:
        return look()


@contextlib.contextmanager
def dumping(path: str | Path) -> Iterator[Callable[[], dict[str, list[tuple]]]]:
    """What dumps a file over and over, on one connection: to open one takes seven times as long as to read all rows."""
    with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        selects = {
            table: f"SELECT {columns} FROM {table} WHERE {PASSING.get(table, 1)}"
            for table, columns in connection.execute(COLUMNS).fetchall()
        }
        yield lambda: {table: sorted(connection.execute(select), key=repr) for table, select in selects.items()}


@contextlib.contextmanager
def serving_in_thread(
    handler: type[http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Somebody else's HTTP server on this machine: its URL."""
    handler = type(handler.__name__, (handler,), {"disable_nagle_algorithm": True})  # or a body waits for its headers
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Returns the condition's first true value; fails when there is none in a time that is generous on any machine."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


class AtOnce:
    """Stands in for a coroutine that takes until a test lets it end (`go_on`): how many of it run, and did at most."""

    def __init__(self, answer: Any):
        self.answer, self.go_on = answer, threading.Event()
        self.running = self.most = 0

    async def wait(self, *args: Any, **options: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        self.running -= 1
        return self.answer


def processor_time(thread: threading.Thread) -> float:
    """Seconds that a thread has worked so far; none of one that has just ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0


def busy(threads: list[threading.Thread], seconds: float) -> list[threading.Thread]:
    """Those that work for most of a while in which nothing is asked of them."""
    before = [processor_time(thread) for thread in threads]
    time.sleep(seconds)
    return [thread for thread, used in zip(threads, before, strict=True) if processor_time(thread) - used > seconds / 5]


@pytest.fixture(scope="session", autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """What tests leave behind waits. A thread that never ended its work once took as much time as 2,000 tests."""
    yield
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for _ in range(5):
        threads = threads and busy(threads, 0.2)
    frames = sys._current_frames()
    assert not threads, [
        (
            thread.name,
            [
                f"{code.co_filename}:{line}"
                for frame, line in traceback.walk_stack(frames.get(thread.ident))
                for code in [frame.f_code]
            ],
        )
        for thread in threads
    ]


@pytest.fixture(scope="session", autouse=True)
def patient_pages() -> Iterator[None]:
    """A page shows all that it looks for, and how an operation ended, however little time a busy machine has for it.

    Tests of what it shows before that take its time away themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "SEARCH_TIME", 60.0)
        patch.setattr(pages, "OPERATION_PATIENCE", 30.0)
        yield


TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def refuse_before_writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test has a tracker in this process refuse, it has written nothing before, but by a test's own function
    or refusal.

    Else anybody could have the batch of everybody's calls run twice.
    """
    late, run_plainly = [], writer.run_plainly

    def watched(*args: Any) -> writer.Outcome:
        try:
            return run_plainly(*args)
        except writer.HalfDone as half:
            error, code = half.__context__, getattr(half.kind, "co_filename", "")
            of_a_test = Path(code).parent == TESTS or type(error).__module__.startswith("test_")
            if isinstance(error, tracker.TrackerError) and not of_a_test:
                late.append(error)
            raise

    monkeypatch.setattr(writer, "run_plainly", watched)
    yield
    assert not late, "refused after it had written"


@functools.cache
def empty_tracker() -> sqlite3.Connection:
    """A database in memory as a new tracker's file is."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    upgrade_schema(Path("memory"), connection)
    return connection


upgrade_schema = database.upgrade_schema


def copy_schema(path: Path, connection: sqlite3.Connection) -> None:
    """A new database is a copy of an empty one: a fifth of the time that its hundred statements take."""
    if connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
        upgrade_schema(path, connection)
    else:
        empty_tracker().backup(connection)


database.upgrade_schema = copy_schema
attempts.SCRYPT = nursery.CHEAP_PASSWORDS


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


class Prepared:
    """What calls have made of a new tracker (`made`), to be copied: that takes less time than the calls.

    The first tracker has the default settings, and its clocks have not got anywhere when the copy starts.
    """

    def __init__(self, folder: Path, make: Callable[[Site], Any]):
        settings = tracker.Settings(database=str(folder / "tracker.db"))
        with tracker.serving(settings, MovedClock()) as url:
            self.made = make(Site(url, MovedClock(), settings))
        with contextlib.closing(sqlite3.connect(settings.database, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("DELETE FROM meta WHERE key IN ('uptime', 'clock', 'jobs_set_back')")
        self.contents, self.files = Path(settings.database).read_bytes(), Path(f"{settings.database}.files")

    def write(self, path: str) -> None:
        """Makes the database; nobody else may read one."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(self.contents)
        if self.files.exists():
            shutil.copytree(self.files, f"{path}.files")

    def copy(self, url: str, **fields: Any) -> Any:
        """What was made, at the tracker that serves a copy; its site gets these fields."""
        return copy.deepcopy(self.made, {"url": url, "site": fields})


@pytest.fixture(scope="session")
def prepared_site(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"), lambda site: site)


@pytest.fixture
def make_site(tmp_path: Path, clock: MovedClock, prepared_site: Prepared) -> Iterator[Callable[..., Any]]:
    """Starts a tracker with some settings changed, in which is what was prepared: an admin, who has registered earlier.

    Without (None) it is a new one, in which the admin registers now.
    """
    with contextlib.ExitStack() as stack:

        def make(prepared: Prepared | None = prepared_site, **changes: Any) -> Any:
            fields = {"database": str(tmp_path / "tracker.db"), "log_file": str(tmp_path / "tracker.log"), **changes}
            settings = tracker.Settings(**fields)
            if prepared:
                prepared.write(settings.database)
            url = stack.enter_context(tracker.serving(settings, clock))
            return prepared.copy(url, clock=clock, settings=settings) if prepared else Site(url, clock, settings)

        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A running tracker with the default settings."""
    return make_site()
