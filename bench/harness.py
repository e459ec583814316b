"""What the benchmarks are driven with: servers as subprocesses, a raw HTTP connection, and wrk.

Lab            the scratch directory, and the databases that were filled once and are copied per measurement
Tracker        a running tracker: its manager, its workers, its projects
EmptyRoute     a running Starlette application with one empty route: the baseline
Connection     one keep-alive connection over a blocking socket, cheap enough to time single requests with
Driver         wrk with one of the Lua scripts: the load of 32 connections (drive: for a fixed time)
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CONNECTIONS = 32
BULK = 100_000
MANAGER = {"username": "bench", "password": "benchmark only"}


def say(text):
    """Progress goes to standard error, so that standard output is the table alone."""
    print(text, file=sys.stderr, flush=True)


def encode(method, path, headers=None, body=None):
    """The bytes of one HTTP/1.1 request; a body that is not bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Connection:
    """One keep-alive connection over a blocking socket."""

    def __init__(self, url, headers=None):
        address = urlsplit(url)
        self.headers = headers or {}
        self.socket = socket.create_connection((address.hostname, address.port), timeout=600)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def encode(self, method, path, body=None):
        return encode(method, path, self.headers, body)

    def send(self, request):
        self.socket.sendall(request)

    def receive(self):
        """Wait for one answer: (status, head, body). The tracker sends Content-Length with a body, or chunks."""
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head, body = data[:end].lower(), data[end + 4 :]
        if b"transfer-encoding: chunked" in head:
            return int(head[9:12]), data[:end], self._chunks(body)
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        parts, have = [body], len(body)
        while have < length:
            parts.append(self._more())
            have += len(parts[-1])
        return int(head[9:12]), data[:end], b"".join(parts)

    def _chunks(self, data):
        """The body that begins with this data: chunks, each after its size, until an empty one."""
        body, at = bytearray(), 0
        while True:
            while (end := data.find(b"\r\n", at)) < 0:
                data, at = data[at:] + self._more(), 0
            size, at = int(data[at:end], 16), end + 2
            parts, have = [data[at:]], len(data) - at
            while have < size + 2:
                parts.append(self._more())
                have += len(parts[-1])
            data, at = b"".join(parts), size + 2
            if not size:
                return bytes(body)
            body += data[:size]

    def _more(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def exchange(self, request):
        """Send an encoded request, return the body of its answer; anything but success is an error."""
        self.send(request)
        status, _, body = self.receive()
        if status not in (200, 204):
            raise RuntimeError(f"{request[:60]!r}… was answered {status}: {body[:300]!r}")
        return body

    def call(self, method, path, body=None):
        """Exchange JSON; returns `content`, or None where the answer has none (as "No task available")."""
        answer = self.exchange(self.encode(method, path, body))
        return json.loads(answer).get("content") if answer else None

    def get(self, path):
        return self.call("GET", path)

    def post(self, path, body=None):
        return self.call("POST", path, body)


class Server:
    """A server in a subprocess: ready once constructed, stopped by a signal at the end of its `with`."""

    stop_signal = signal.SIGTERM

    def __init__(self, command, log, **options):
        self.log = Path(log)
        self.output = self.log.open("ab")
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.output, cwd=self.log.parent, **options
        )
        try:
            self.url = self._listening(command)
            self.start_seconds = time.perf_counter() - started
            self.prepare()
        except BaseException:
            self.stop()
            raise

    def _listening(self, command):
        for line in self.process.stdout:
            if b"http://" in line:
                return "http://" + line.split(b"http://", 1)[1].split()[0].decode()
        raise RuntimeError(f"{' '.join(map(str, command))} did not start:\n{self.log.read_text()[-2000:]}")

    def prepare(self):
        """What is to be done once it listens."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.output.close()

    def cpu_seconds(self):
        """Processor time that the server has used so far; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)])) * 1024


class EmptyRoute(Server):
    """The baseline: one JSON route of Starlette, run as uvicorn by itself runs it. It may store a row in a database."""

    def __init__(self, lab, *database):
        command = [sys.executable, BENCH / "empty.py", str(free_port()), *map(str, database)]
        super().__init__(command, lab.directory / "empty.log")

    def connect(self):
        return Connection(self.url)


@dataclass
class Seed:
    """What a database holds, as far as the benchmarks need to know: kept with it when it is copied.

    `examples` has an id for each placeholder of a page's path.
    """

    workers: list = field(default_factory=list)
    projects: dict = field(default_factory=dict)
    examples: dict = field(default_factory=dict)


class Tracker(Server):
    """A tracker on its own database file, with a manager who is its admin."""

    def __init__(self, lab, database, seed=None, root=ROOT, **settings):
        self.database = Path(database)
        self.seed = seed or Seed()
        settings = {"port": free_port(), "database": str(database), "synchronous": "FULL", "log_file": ""} | settings
        config = self.database.with_suffix(".toml")
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        command = [sys.executable, root / "tracker.py", "serve", "--config", config]
        self.signs_in = "/login" if seed else "/register"
        super().__init__(command, self.database.with_suffix(".log"))

    def prepare(self):
        """Sign in as the manager, who is the first one of a new database."""
        path = self.signs_in
        with Connection(self.url) as connection:
            connection.send(encode("POST", path, {}, MANAGER))
            status, head, body = connection.receive()
        if status != 200:
            raise RuntimeError(f"POST {path} was answered {status}: {body!r}")
        cookies = [line.split(b":", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(b"set-cookie:")]
        self.headers = {"Cookie": b"; ".join(cookie.split(b";")[0].strip() for cookie in cookies).decode()}

    def manager(self):
        """A connection with the manager's session."""
        return Connection(self.url, self.headers)

    def connect(self, worker):
        """A connection with a worker's credentials."""
        return Connection(self.url, {"X-Worker-ID": worker["id"], "X-Secret": worker["secret"]})

    def add_workers(self, count, projects=()):
        """Create workers, and grant each of them to assign from and submit to these projects."""
        workers = []
        with Connection(self.url) as connection, self.manager() as manager:
            for number in range(count):
                worker = connection.post("/worker/create", {"alias": f"bench {number}"})["worker"]
                workers.append(worker)
                for project in projects:
                    with self.connect(worker) as own:
                        own.post("/project/request_access", {"project": project, "assign": True, "submit": True})
                    manager.post(f"/project/accept_request/{project}/{worker['id']}")
        return workers

    def add_project(self, name, **fields):
        """Create a public project; returns its id, which is kept in `seed.projects` too."""
        with self.manager() as manager:
            project = manager.post("/project/create", {"name": name, "public": True, **fields})["id"]
        self.seed.projects[name] = project
        return project

    def crew(self):
        """The 32 workers of this database, who may submit to every project that existed when they were first needed."""
        if not self.seed.workers:
            self.seed.workers = self.add_workers(CONNECTIONS, self.seed.projects.values())
        return self.seed.workers

    def counts(self, project):
        """The project as the API shows it, live counters included."""
        with self.manager() as manager:
            return manager.get(f"/project/get/{project}")

    def fill(self, project, total, **fields):
        """Submit tasks in bulk until `total` of them wait."""
        waiting = self.counts(project)["waiting_task_count"]
        with self.connect(self.crew()[0]) as connection:
            while (missing := total - waiting) > 0:
                body = bulk_body(project, min(missing, BULK), waiting, **fields)
                waiting += connection.post("/task/bulk_submit", body)["submitted"]

    def hold(self, connection, project, total, result=None, batch=1_000):
        """Have one worker assign `total` tasks in batches, and release them with `result` unless that is None."""
        while total > 0:
            tasks = connection.get(f"/task/get/{project}?count={min(batch, total)}")["tasks"]
            total -= len(tasks)
            if result is not None:
                releases = [{"task_id": task["id"], "result": result, "verification": 7} for task in tasks]
                connection.post("/task/bulk_release", {"releases": releases})


def recipe(number):
    return f"https://example.org/page/{number}"


def bulk_body(project, count, first=0, unique=False, **fields):
    """The body of a bulk submit, numbered from `first`; unique=True gives each task a unique_string."""
    tasks = [{"project": project, "recipe": recipe(n), "max_retries": 1, **fields} for n in range(first, first + count)]
    if unique:
        for task in tasks:
            task["unique_string"] = task["recipe"]
    return json.dumps({"requests": tasks}).encode()


class Lab:
    """A scratch directory that is removed at the end, and the rounds that every benchmark keeps to."""

    def __init__(self, parent, rounds, seconds, scale, against=None):
        self.directory = Path(tempfile.mkdtemp(prefix=".bench-", dir=parent)).resolve()
        self.rounds, self.seconds, self.scale, self.against = rounds, seconds, scale, against
        self.seeds = {}
        self.names = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.directory, ignore_errors=True)

    def size(self, tasks):
        """A number of tasks, smaller under --quick."""
        return int(tasks * self.scale)

    def path(self, suffix=".db"):
        self.names += 1
        return self.directory / f"{self.names}{suffix}"

    def tracker(self, fill=None, root=ROOT, **settings):
        """Start a tracker on an empty database, or on a copy of the one that fill(lab, tracker) made.

        `root` is the checkout that is started: another one makes databases of its own version.
        """
        if fill is None:
            return Tracker(self, self.path(), root=root, **settings)
        if (fill, root) not in self.seeds:
            say(f"  preparing: {fill.__doc__}{'' if self.scale == 1 else f', scaled by {self.scale}'}")
            with Tracker(self, self.path(), root=root) as tracker:
                fill(self, tracker)
                tracker.crew()
            checkpoint(tracker.database)
            self.seeds[fill, root] = tracker
        made = self.seeds[fill, root]
        copy = self.path()
        shutil.copyfile(made.database, copy)
        # Else the kernel writes the copy back in the middle of the measurement, and every fsync waits for it.
        os.sync()
        seed = Seed(list(made.seed.workers), dict(made.seed.projects), dict(made.seed.examples))
        return Tracker(self, copy, seed, root, **settings)

    def again(self, tracker, **settings):
        """Start a tracker that has been stopped again, on the same database."""
        return Tracker(self, tracker.database, tracker.seed, **settings)

    def discard(self, database):
        """Remove a database that is not needed any more, for they are large."""
        for path in database.parent.glob(database.name + "*"):
            path.unlink()

    def race(self, contenders, rounds=None):
        """Run each contender once per round, turn about, and return {name: [figure of each round]}.

        Interleaved, because the speed of a shared machine drifts: a ratio means something only within a round.
        """
        figures = {name: [] for name in contenders}
        rounds = rounds or self.rounds
        order = list(contenders)
        for number in range(rounds):
            for name in order:
                figures[name].append(contenders[name]())
            order.append(order.pop(0))
            say(f"  round {number + 1}/{rounds}")
        return figures


def forget_cached(path):
    """Have the kernel drop what it keeps of a file in memory, as after a start of the machine."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def checkpoint(database):
    """Bring everything into the one database file, when its server has been stopped; returns its size in bytes."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(database).stat().st_size


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Load:
    """What wrk did in one run. Processor use is in cores: 0.25 is a quarter of one."""

    requests: int
    seconds: float
    rate: float
    released: int
    generator: float
    server: float


class Driver:
    """wrk at work over 32 connections, for some seconds unless it is stopped before."""

    def __init__(self, server, script, seconds, *arguments, path="/"):
        options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", BENCH / script]
        command = ["wrk", *options, server.url + path, "--", *arguments]
        self.server, self.script = server, script
        self.used_before = self._used()
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def stop(self):
        """End the load now."""
        self.process.send_signal(signal.SIGINT)
        return self.finish()

    def finish(self):
        """Wait for the end; a refused or lost answer ends the benchmark."""
        output, complaints = self.process.communicate()
        elapsed = time.perf_counter() - self.started
        generator, busy = (
            (after - before) / elapsed for before, after in zip(self.used_before, self._used(), strict=True)
        )
        if self.process.returncode:
            raise RuntimeError(f"wrk failed: {complaints}")
        outcome = json.loads(output.splitlines()[-1])
        if outcome["refused"] or outcome["lost"]:
            raise RuntimeError(
                f"{self.script}: {outcome['refused']} answers were not ok, {outcome['lost']} lost\n{complaints}"
            )
        rate = outcome["requests"] / outcome["seconds"]
        return Load(outcome["requests"], outcome["seconds"], rate, outcome["released"], generator, busy)

    def _used(self):
        """Processor time that generators, and this server, have used so far."""
        times = os.times()
        return times.children_user + times.children_system, self.server.cpu_seconds() or float("nan")


def drive(server, script, seconds, *arguments):
    """Load a server over 32 connections for some seconds."""
    return Driver(server, script, seconds, *arguments).finish()


def credentials(workers):
    """Workers as the Lua scripts take them."""
    return [f"{worker['id']}:{worker['secret']}" for worker in workers]


def require_tools():
    """Refuse to start without what the load needs, rather than fail half-way."""
    if not shutil.which("wrk"):
        raise SystemExit("wrk is needed to generate load: apt install wrk, brew install wrk")
    with contextlib.suppress(ImportError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
