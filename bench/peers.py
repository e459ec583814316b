"""The tracker beside what else hands out durable tasks: beanstalkd, Redis, PostgreSQL; who does how many in a second.

The work is the same for all: 32 workers take a task and finish it, each waiting for every answer before it sends the
next request, and nothing counts that is not on disk by the settings of the system at hand. One generator in Python
makes it for all of them, over TCP on loopback; its share of a core is printed, for it must not be the bound. All data
lies in one directory (--dir), whose fdatasync is timed. The systems take turns, only the one that is measured runs,
and each is what its package installs but for the settings named below. Everything is started and stopped here, by an
ordinary user or by root; what is not installed is named and left out.

What one is compared with is not the same in all, and a figure is worth what is promised for it:

beanstalkd     `-f0` syncs its log for every write. Finishing a job is one; taking it is none, for it knows only in
               memory who has it: after a crash all jobs are ready again. It syncs each write for itself. No accounts,
               no access rules, no counts that survive, no HTTP.
Redis          `appendfsync always`: the writes of one turn of its loop share a sync. The reliable queue of its
               documentation: LMOVE from the list of those waiting to the worker's own, LREM from there. A task whose
               worker died stays in that list until the client's own code looks for it: there are no leases, no
               retries, no priorities, and all of it lies in memory.
PostgreSQL     UPDATE … RETURNING of a row that SELECT … FOR UPDATE SKIP LOCKED found, with the worker's lease; then
               DELETE. Each is a transaction, and group commit shares their syncs. By asyncpg with prepared statements.
               Leases that ran out, retries and counts would be the client's own code. VACUUM before each round.
the tracker    GET /task/get, POST /task/release: the worker's secret, its access, the project's rate limits and live
               counts are checked and kept in the same transaction; a lease that runs out is taken back and counted.

To install what it needs, on Debian: apt install beanstalkd redis-server postgresql; pip install asyncpg.
"""

import argparse
import asyncio
import contextlib
import getpass
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import uvloop
from figures import Figure, machine, percentile, positive, table
from harness import CONNECTIONS, ROOT, Lab, Server, encode, free_port, recipe, say

WARM_UP = 0.5  # seconds
LEASE = 3600  # seconds


# ── The generator ────────────────────────────────────────────────────────────────────────────────────────────


class Shift:
    """The time for which the workers work, and what they have done in it."""

    def __init__(self, seconds):
        self.started, self.cycles = time.perf_counter(), 0
        self.ends = self.started + seconds

    def is_over(self):
        return time.perf_counter() >= self.ends


class Wire(asyncio.Protocol):
    """One connection on which a dialogue is held: what it yields is sent, and it is given the answer."""

    def __init__(self, is_complete):
        self.is_complete, self.received = is_complete, b""

    def connection_made(self, transport):
        self.transport = transport

    async def hold(self, dialogue):
        """Hold the dialogue to its end."""
        self.dialogue, self.end = dialogue, asyncio.get_running_loop().create_future()
        self.go_on(None)
        await self.end

    def go_on(self, answer):
        try:
            self.transport.write(self.dialogue.send(answer))
        except StopIteration:
            self.end.set_result(None)
        except Exception as error:
            if not self.end.done():  # another worker has failed before
                self.end.set_exception(error)

    def data_received(self, data):
        # One request at a time is under way, so all that comes is its answer.
        answer = self.received + data
        if self.is_complete(answer):
            self.received = b""
            self.go_on(answer)
        else:
            self.received = answer

    def connection_lost(self, error):
        if not self.end.done():
            self.end.set_exception(error or ConnectionError("the server closed the connection"))


def refuse(answer):
    raise RuntimeError(f"an unexpected answer: {answer[:200]!r}")


class Peer:
    """A system with a queue. One of them runs at a time; its data stays for the next round."""

    title = ""
    most_cycles = 30_000  # in a second: as many tasks wait before each round

    def __init__(self, lab):
        self.lab = lab
        self.directory = lab.path("")
        self.directory.mkdir()
        self.port = free_port()
        self.prepare()

    def prepare(self):
        """What is to be done once."""

    def start(self):
        """Start the server; returns it."""
        raise NotImplementedError

    def daemon(self, command, kind=None, **options):
        return (kind or Daemon)([str(part) for part in command], self, **options)

    def ready(self):
        """Return once the server that listens is ready, too."""

    def waiting(self):
        """How many tasks wait."""
        raise NotImplementedError

    def fill(self, count):
        """Add so many tasks."""
        raise NotImplementedError

    @contextlib.contextmanager
    def filled(self, wanted):
        """The running server with so many tasks waiting."""
        with self.start() as server:
            if (missing := wanted - self.waiting()) > 0:
                self.fill(missing)
            yield server

    async def connect(self, number):
        """The connection of one worker, and how it is closed."""
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(self.is_complete), "127.0.0.1", self.port
        )
        return wire, wire.transport.close

    @staticmethod
    def is_complete(answer):
        """Whether these bytes are a whole answer."""
        raise NotImplementedError

    async def work(self, wire, number, shift):
        """One worker takes and finishes tasks until the shift is over."""
        await wire.hold(self.dialogue(number, shift))

    def dialogue(self, number, shift):
        """The same as requests that are yielded and answers that come back."""
        raise NotImplementedError


class Daemon(Server):
    """A server that does not say when it listens: it does when its port can be connected to."""

    def __init__(self, command, peer, **options):
        self.peer = peer
        super().__init__(command, peer.directory.with_suffix(".log"), **options)

    def _listening(self, command):
        given_up = time.monotonic() + 30
        while time.monotonic() < given_up and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.peer.port), 1):
                return f"tcp://127.0.0.1:{self.peer.port}"
            time.sleep(0.02)
        raise RuntimeError(f"{' '.join(command)} did not start:\n{self.log.read_text()[-2000:]}")

    def prepare(self):
        self.peer.ready()


# ── beanstalkd ───────────────────────────────────────────────────────────────────────────────────────────────


class Beanstalkd(Peer):
    title = "beanstalkd, fsync of each write"
    most_cycles = 100_000

    @staticmethod
    def missing():
        return None if shutil.which("beanstalkd") else "beanstalkd is not installed"

    @staticmethod
    def version():
        return subprocess.check_output(["beanstalkd", "-v"], text=True).strip()

    def start(self, sync="-f0"):
        return self.daemon(["beanstalkd", "-b", self.directory, sync, "-l", "127.0.0.1", "-p", self.port])

    @contextlib.contextmanager
    def filled(self, wanted):
        with self.start("-F"):  # to sync each of them would take minutes
            self.fill(wanted - self.waiting())
        with self.start() as server:
            yield server

    def waiting(self):
        stats = self.ask(b"stats-tube default\r\n")
        return int(stats.split(b"current-jobs-ready:")[1].split()[0])

    def ask(self, request):
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(request)
            return connection.recv(1 << 16)

    def fill(self, count):
        with socket.create_connection(("127.0.0.1", self.port)) as connection, connection.makefile("rb") as answers:
            for first in range(0, count, 500):
                tasks = [recipe(number).encode() for number in range(first, min(first + 500, count))]
                connection.sendall(b"".join(b"put 0 0 %d %d\r\n%b\r\n" % (LEASE, len(task), task) for task in tasks))
                for _ in tasks:
                    if not (answer := answers.readline()).startswith(b"INSERTED"):
                        refuse(answer)

    @staticmethod
    def is_complete(answer):
        if answer.startswith(b"RESERVED"):
            head, _, body = answer.partition(b"\r\n")
            return len(body) == int(head.rsplit(b" ", 1)[1]) + 2
        return answer.endswith(b"\r\n")

    def dialogue(self, number, shift):
        while not shift.is_over():
            answer = yield b"reserve-with-timeout 0\r\n"
            if not answer.startswith(b"RESERVED "):
                refuse(answer)
            answer = yield b"delete %b\r\n" % answer.split(b" ", 2)[1]
            if answer != b"DELETED\r\n":
                refuse(answer)
            shift.cycles += 1


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────


def command(*words):
    """A command of Redis as it is sent."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Redis(Peer):
    title = "Redis, appendfsync always"
    most_cycles = 100_000

    @staticmethod
    def missing():
        return None if shutil.which("redis-server") else "redis-server is not installed"

    @staticmethod
    def version():
        return " ".join(subprocess.check_output(["redis-server", "--version"], text=True).split()[:3])

    def start(self):
        options = {"bind": "127.0.0.1", "port": self.port, "dir": self.directory, "logfile": "redis.log", "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        return self.daemon(["redis-server", *(part for name in options for part in (f"--{name}", options[name]))])

    def ready(self):
        while self.ask(command("PING")) != b"+PONG\r\n":  # it is still reading its file
            time.sleep(0.02)

    def ask(self, request):
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(request)
            return connection.recv(1 << 16)

    def waiting(self):
        return int(self.ask(command("LLEN", "waiting"))[1:])

    def fill(self, count):
        for first in range(0, count, 1_000):
            # Each task has to be told from all others for LREM.
            tasks = [f"{time.time_ns()} {recipe(number)}" for number in range(first, min(first + 1_000, count))]
            if not (answer := self.ask(command("LPUSH", "waiting", *tasks))).startswith(b":"):
                refuse(answer)

    @staticmethod
    def is_complete(answer):
        if answer.startswith(b"$") and not answer.startswith(b"$-1"):
            head, _, body = answer.partition(b"\r\n")
            return len(body) == int(head[1:]) + 2
        return answer.endswith(b"\r\n")

    def dialogue(self, number, shift):
        take = command("LMOVE", "waiting", f"held:{number}", "RIGHT", "LEFT")
        finish = b"*4\r\n$4\r\nLREM\r\n" + command(f"held:{number}")[4:] + b"$1\r\n1\r\n"
        while not shift.is_over():
            answer = yield take
            if not answer.startswith(b"$") or answer.startswith(b"$-1"):
                refuse(answer)
            answer = yield finish + answer  # an answer and an argument look alike
            if answer != b":1\r\n":
                refuse(answer)
            shift.cycles += 1


# ── PostgreSQL ───────────────────────────────────────────────────────────────────────────────────────────────


def postgresql_programs():
    """The directory with initdb and postgres, or None."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


class PostgreSQL(Peer):
    title = "PostgreSQL, FOR UPDATE SKIP LOCKED"

    TABLE = "CREATE TABLE task (id bigserial PRIMARY KEY, recipe text NOT NULL, worker integer, lease timestamptz)"
    INDEX = "CREATE INDEX task_waiting ON task (id) WHERE worker IS NULL"
    FILL = "INSERT INTO task (recipe) SELECT 'https://example.org/page/' || i FROM generate_series(1, $1::integer) i"
    TAKE = """
        UPDATE task SET worker = $1, lease = now() + make_interval(secs => $2) WHERE id = (
            SELECT id FROM task WHERE worker IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id, recipe
    """
    FINISH = "DELETE FROM task WHERE id = $1 AND worker = $2 RETURNING id"

    @staticmethod
    def missing():
        try:
            import asyncpg  # noqa: F401
        except ImportError:
            return "asyncpg is not installed"
        return None if postgresql_programs() else "PostgreSQL (initdb, postgres) is not installed"

    @staticmethod
    def version():
        return subprocess.check_output([postgresql_programs() / "postgres", "--version"], text=True).strip()

    def prepare(self):
        self.options = {}
        if os.geteuid() == 0:  # whom PostgreSQL refuses
            user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
            self.options = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
            shutil.chown(self.directory, user)
            self.lab.directory.chmod(0o711)
        command = [postgresql_programs() / "initdb", "-D", self.directory / "data", "-U", "bench", "-A", "trust"]
        command += ["-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(command, capture_output=True, text=True, cwd=self.directory, **self.options)
        if made.returncode:
            raise RuntimeError(f"initdb failed, as {self.options.get('user', getpass.getuser())}: {made.stderr}")
        with self.start():
            self.do(self.TABLE)
            self.do(self.INDEX)

    def start(self):
        command = [postgresql_programs() / "postgres", "-D", self.directory / "data", "-p", self.port]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        return self.daemon(command, Postmaster, **self.options)

    def ready(self):
        asyncio.run(self.started())

    async def started(self):
        """Wait until it has started up, which it may not have done when it listens."""
        import asyncpg

        while True:
            try:
                return await (await self.open()).close()
            except asyncpg.CannotConnectNowError:
                await asyncio.sleep(0.02)

    def open(self):
        import asyncpg

        return asyncpg.connect(host="127.0.0.1", port=self.port, user="bench", database="postgres")

    def do(self, statement, *values):
        """Carry out one statement; returns the first value of its first row."""

        async def run():
            connection = await self.open()
            try:
                return await connection.fetchval(statement, *values)
            finally:
                await connection.close()

        return asyncio.run(run())

    def waiting(self):
        return self.do("SELECT COUNT(*) FROM task WHERE worker IS NULL")

    def fill(self, count):
        self.do(self.FILL, count)
        self.do("VACUUM ANALYZE task")

    async def connect(self, number):
        connection = await self.open()
        return (await connection.prepare(self.TAKE), await connection.prepare(self.FINISH)), connection.terminate

    async def work(self, statements, number, shift):
        take, finish = statements
        while not shift.is_over():
            task = await take.fetchrow(number, LEASE)
            if task is None or await finish.fetchval(task["id"], number) is None:
                refuse(b"no row")
            shift.cycles += 1


class Postmaster(Daemon):
    """PostgreSQL, which does its work in processes of its own."""

    stop_signal = signal.SIGINT  # SIGTERM would wait for the clients to leave

    def cpu_seconds(self):
        used = [0, 0]
        for place in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = place.read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == self.process.pid:  # its parent
                    used[0] += int(fields[11]) + int(fields[12])
                elif place.parent.name == str(self.process.pid):
                    used[1] += sum(map(int, fields[11:15]))  # those that have ended, too
        return sum(used) / os.sysconf("SC_CLK_TCK")


# ── The tracker ──────────────────────────────────────────────────────────────────────────────────────────────


class TaskTracker(Peer):
    title = "the tracker"

    @staticmethod
    def missing():
        return None

    @staticmethod
    def version():
        return "the tracker, synchronous=FULL"

    def prepare(self):
        with self.lab.tracker() as self.tracker:
            self.project = self.tracker.add_project("main")
            self.tracker.crew()

    def start(self):
        self.tracker = self.lab.again(self.tracker)
        self.port = int(self.tracker.url.rsplit(":", 1)[1])
        return self.tracker

    def waiting(self):
        return self.tracker.counts(self.project)["waiting_task_count"]

    def fill(self, count):
        self.tracker.fill(self.project, self.waiting() + count)

    @staticmethod
    def is_complete(answer):
        end, at = answer.find(b"\r\n\r\n"), answer.find(b"content-length: ")
        return 0 < at < end and len(answer) == end + 4 + int(answer[at + 16 : answer.find(b"\r", at)])

    def dialogue(self, number, shift):
        worker = self.tracker.crew()[number]
        headers = {"X-Worker-ID": worker["id"], "X-Secret": worker["secret"]}
        take = encode("GET", f"/task/get/{self.project}", headers)
        finish = encode("POST", "/task/release", headers).removesuffix(b"\r\n") + b"Content-Length: %d\r\n\r\n%b"
        while not shift.is_over():
            answer = yield take
            at = answer.find(b'"task":{"id":')
            if at < 0:
                refuse(answer)
            body = b'{"task_id":%b,"result":0,"verification":0}' % answer[at + 13 : answer.find(b",", at)]
            answer = yield finish % (len(body), body)
            if not answer.endswith(b'"updated":true}}'):
                refuse(answer)
            shift.cycles += 1


# ── Rounds, the table and the command line ───────────────────────────────────────────────────────────────────

PEERS = {"beanstalkd": Beanstalkd, "redis": Redis, "postgresql": PostgreSQL, "tracker": TaskTracker}


def measure(peer, seconds):
    """One round: cycles in a second, and the share of a core that the generator and the server used."""
    wanted = int(peer.most_cycles * (seconds + WARM_UP))
    with peer.filled(wanted) as server:
        before = peer.waiting()
        os.sync()  # what was filled in is not to be written in the middle of the measurement
        outcome = uvloop.run(work(peer, server, seconds))
        done = before - peer.waiting()
    if done != outcome["cycles"]:
        raise RuntimeError(f"{peer.title}: {outcome['cycles']} tasks were finished, but {done} are gone")
    return outcome


async def work(peer, server, seconds):
    """32 workers at work, the first half second of it without being counted."""
    connections = [await peer.connect(number) for number in range(CONNECTIONS)]

    async def shift(seconds):
        shift = Shift(seconds)
        await asyncio.gather(*(peer.work(one, number, shift) for number, (one, _) in enumerate(connections)))
        return shift.cycles, time.perf_counter() - shift.started

    warm, _ = await shift(WARM_UP)
    used = time.process_time(), server.cpu_seconds() or float("nan")
    cycles, elapsed = await shift(seconds)
    generator, busy = time.process_time() - used[0], (server.cpu_seconds() or float("nan")) - used[1]
    for _, close in connections:
        close()
    return {
        "cycles": warm + cycles,
        "rate": cycles / elapsed,
        "generator": generator / elapsed,
        "server": busy / elapsed,
        "cost": busy / cycles * 1e6,
    }


def sync_times(lab, count=300):
    """Seconds of each write of 4 KiB at the end of a file with fdatasync, in the directory that all data is in."""
    path, taken = lab.path(".sync"), []
    with open(path, "wb", buffering=0) as file:
        for _ in range(count):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return taken


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python bench/peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", metavar="NAME", action="append", choices=PEERS, help="measure this one; may be repeated")
    add("--rounds", metavar="N", type=positive, help="rounds (default 7)")
    add("--seconds", metavar="S", type=positive, help="whole seconds per measurement in a round (default 3)")
    add("--quick", action="store_true", help="3 rounds of 1 second: a look, not a result")
    add("--dir", metavar="DIR", default=ROOT, help="where all data goes (default: the checkout)")
    arguments = parser.parse_args()
    if not os.access(arguments.dir, os.W_OK):
        parser.error(f"--dir: {arguments.dir} is not a directory that can be written to")
    return arguments


def main():
    arguments = parse_arguments()
    rounds, seconds = (3, 1) if arguments.quick else (7, 3)
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    notes, kinds = [], {}
    for name in arguments.only or PEERS:
        if missing := PEERS[name].missing():
            notes.append(f"{PEERS[name].title}: not measured, {missing}")
            say(notes[-1])
        else:
            kinds[name] = PEERS[name]
    with Lab(arguments.dir, rounds, seconds, 1) as lab:
        peers = {name: kind(lab) for name, kind in kinds.items()}
        contenders = {name: lambda peer=peer: measure(peer, seconds) for name, peer in peers.items()}
        outcomes = lab.race({"disk": lambda: sync_times(lab), **contenders})
    syncs = outcomes.pop("disk")
    rates = {name: [outcome["rate"] for outcome in found] for name, found in outcomes.items()}
    figures, base = [], rates.get("beanstalkd")
    for name, peer in peers.items():
        compared = ("beanstalkd", base) if base and name != "beanstalkd" else ()
        target = (">=", 1.2) if compared and name == "tracker" else None
        figures.append(Figure(peer.title, "cycles/s", rates[name], *compared, target=target))
        generator, server, cost = (
            statistics.median(outcome[key] for outcome in outcomes[name]) for key in ("generator", "server", "cost")
        )
        bound = ": it is what bounds this figure" if generator > 0.95 else ""
        notes.append(
            f"{peer.version()}: the server used {server:.2f} of a core, {cost:.0f} µs a cycle; the generator"
            f" {generator:.2f}{bound}"
        )
    times = [percentile(taken, 50) * 1000 for taken in syncs]
    print(f"{machine()}; {rounds} rounds of {seconds} s; {CONNECTIONS} connections; {Path(arguments.dir).resolve()}:")
    print(f"fdatasync of 4 KiB p50 {statistics.median(times):.3f} ms ({min(times):.3f}–{max(times):.3f})\n")
    print(table(figures))
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are stopped, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except RuntimeError as error:
        sys.exit(f"bench/peers.py: {error}")
