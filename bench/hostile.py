"""Ten workers at a hundred tasks a second, quiet first and then while six kinds of strangers press as hard as they can.

    .venv/bin/python bench/hostile.py                # a minute of quiet, half an hour of pressure
    .venv/bin/python bench/hostile.py --pressed 120  # a look

Each kind is a process of its own, with the lowest priority for the processor (theirs are elsewhere), and comes from a
hundred addresses behind a proxy that the tracker trusts: it makes accounts and workers; logs long lines; asks for long
lists and does not read them; opens connections that drip or are idle; guesses the owner's password; looks at pages that
show hostile output. Standard output gets what the workers waited for an answer in both times, the server's memory, and
the size of the database and its log at the end.
"""

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from figures import percentile, positive
from harness import MANAGER, ROOT, Lab, encode, say

ADDRESSES = [f"203.0.113.{number}" for number in range(100)]
WORKERS, TASKS_A_SECOND = 10, 100
TIMES = 3  # what a worker may wait under pressure, in times of the quiet wait (99th percentile)
MOST_MEMORY = 300 * 2**20


# The strangers


class Stranger:
    """Connections of one kind of strangers to a tracker."""

    def __init__(self, url, given):
        self.address, self.given, self.answers = urlsplit(url), given, {}

    async def open(self):
        return await asyncio.open_connection(self.address.hostname, self.address.port, limit=2**22)

    def request(self, method, path, body=None, **headers):
        proxied = {"X-Forwarded-For": random.choice(ADDRESSES), **headers}
        return encode(method, path, {name.replace("_", "-"): value for name, value in proxied.items()}, body)

    async def ask(self, reader, writer, *request, **headers):
        """One exchange: the status and the body."""
        writer.write(self.request(*request, **headers))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        status, length = int(head[9:12]), 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = await asyncio.wait_for(reader.readexactly(length), 60)
        self.answers[status] = self.answers.get(status, 0) + 1
        if b"connection: close" in head.lower():
            raise ConnectionResetError
        return status, body

    async def again(self, act):
        """Does it for ever, on a new connection whenever the old one is cut."""
        while True:
            writer = None
            try:
                reader, writer = await self.open()
                while True:
                    await act(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ValueError):
                await asyncio.sleep(0.05)
            finally:
                if writer:
                    writer.close()

    async def crowd(self, count, act):
        await asyncio.gather(*(self.again(act) for _ in range(count)))

    async def registrations(self):
        async def act(reader, writer):
            if random.random() < 0.8:
                return await self.ask(reader, writer, "POST", "/worker/create", {"alias": "x" * 150})
            body = {"username": f"s{random.randrange(10**12)}", "password": "password"}
            return await self.ask(reader, writer, "POST", "/register", body)

        await self.crowd(16, act)

    async def logs(self):
        reader, writer = await self.open()
        _, body = await self.ask(reader, writer, "POST", "/worker/create", {"alias": "chatty"})
        worker = json.loads(body)["content"]["worker"]
        own = {"X_Worker_ID": worker["id"], "X_Secret": worker["secret"]}
        line = {"scope": "s", "message": "long " * 12_000, "timestamp": 1}
        await self.crowd(16, lambda reader, writer: self.ask(reader, writer, "POST", "/log/error", line, **own))

    async def unread_lists(self):
        async def act(reader, writer):
            writer.transport.pause_reading()
            for _ in range(50):
                writer.write(self.request("GET", random.choice(["/worker/stats", "/project/list", "/openapi.json"])))
            await asyncio.wait_for(writer.drain(), 5)
            await asyncio.sleep(20)

        await self.crowd(200, act)

    async def slow_sockets(self):
        async def act(reader, writer):
            for piece in (
                b"POST /worker/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
                b"X-A: b\r\n" * 20,
            ):
                for place in range(0, len(piece), 7):
                    writer.write(piece[place : place + 7])
                    await writer.drain()
                    await asyncio.sleep(random.choice([0, 0.01, 0.3]))
            writer.write(b"\r\n")
            for _ in range(2000):
                writer.write(b"1\r\n \r\n" * 50)
                await asyncio.wait_for(writer.drain(), 5)
            writer.write(b"0\r\n" + b"X-Trailer: 1\r\n" * 5000)
            await asyncio.wait_for(writer.drain(), 5)

        await self.crowd(400, act)

    async def login_guesses(self):
        async def act(reader, writer):
            body = {"username": MANAGER["username"], "password": f"guess {random.random()}"}
            await self.ask(reader, writer, "POST", "/login", body)

        await self.crowd(16, act)

    async def hostile_output(self):
        pages = ["/ui/logs", *(f"/ui/jobs/{job}" for job in self.given["jobs"]), "/ui/"]

        async def act(reader, writer):
            many = "; ".join(f'c{number}=\x5c"' for number in range(4000))
            cookie = f"{self.given['cookie']}; {many}"
            await self.ask(reader, writer, "GET", random.choice(pages), Cookie=cookie[:60_000], Accept="text/html")

        await self.crowd(8, act)


KINDS = ["registrations", "logs", "unread_lists", "slow_sockets", "login_guesses", "hostile_output"]


def press(kind, url, given):
    """The main function of a process of strangers, until it is killed: then what it was answered stands on stderr."""
    stranger = Stranger(url, given)

    async def run():
        begun = asyncio.create_task(getattr(stranger, kind)())
        while not begun.done():
            await asyncio.sleep(5)
            print(json.dumps(stranger.answers), flush=True)
        begun.result()

    asyncio.run(run())


# The workers


class Worker(threading.Thread):
    """A worker that submits, is assigned and releases ten tasks a second, and notes how long each answer took."""

    def __init__(self, tracker, project, credentials):
        super().__init__(daemon=True)
        self.tracker, self.project, self.credentials = tracker, project, credentials
        self.times, self.done, self.lost, self.stop = [], 0, [], threading.Event()

    def run(self):
        pace = WORKERS / TASKS_A_SECOND
        due = time.monotonic() + random.random() * pace
        connection = self.tracker.connect(self.credentials)
        while not self.stop.wait(max(0, due - time.monotonic())):
            due = max(due + pace, time.monotonic() - 1)
            try:
                self.timed(connection.post, "/task/submit", {"project": self.project, "recipe": "a page"})
                task = self.timed(connection.get, f"/task/get/{self.project}")["task"]["id"]
                self.timed(connection.post, "/task/release", {"task_id": task, "result": 0})
                self.done += 1
            except Exception as error:
                self.lost.append(str(error)[:200])
                with contextlib.suppress(OSError):
                    connection = self.tracker.connect(self.credentials)
                time.sleep(0.1)

    def timed(self, call, *args):
        began = time.perf_counter()
        answer = call(*args)
        self.times.append(time.perf_counter() - began)
        return answer


def work(tracker, project, crew, seconds, meanwhile=lambda: None):
    """The crew works for so long: all waits, tasks done, and what went wrong."""
    workers = [Worker(tracker, project, one) for one in crew]
    for worker in workers:
        worker.start()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(1)
        meanwhile()
    for worker in workers:
        worker.stop.set()
    for worker in workers:
        worker.join(120)
    times, done = [one for worker in workers for one in worker.times], sum(worker.done for worker in workers)
    return times, done / seconds, [one for worker in workers for one in worker.lost]


def hostile_jobs(tracker):
    """Jobs whose output is as hard to show as can be, made by a manager without rights: its cookie, and their ids."""
    with tracker.manager() as connection:
        connection.send(encode("POST", "/register", {}, {"username": "stranger", "password": "password"}))
        _, head, _ = connection.receive()
    line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"set-cookie:"))
    cookie = line.split(b":", 1)[1].split(b";")[0].strip().decode()
    jobs = []
    with tracker.manager() as own:
        own.headers = {"Cookie": cookie}
        project = own.post("/project/create", {"name": "hostile"})["id"]
        template = own.post("/template/create", {"project": project, "name": "t", "recipe": "r"})["template"]["id"]
        [worker] = tracker.add_workers(1)
        with tracker.connect(worker) as theirs, tracker.manager() as admin:
            theirs.post("/project/request_access", {"project": project, "assign": True, "submit": True})
            admin.post(f"/project/accept_request/{project}/{worker['id']}")
            for text in ("\x9d", "\x1b[", "\x1b]0;", "\x1b[38;5;", "<b>", "\r"):
                jobs.append(own.post(f"/template/trigger/{template}", {})["job"]["id"])
                task = theirs.get(f"/task/get/{project}")["task"]["id"]
                entries = [{"message": text * (20_000 // len(text)), "timestamp": 1}] * 20
                theirs.post("/task/log", {"task_id": task, "entries": entries})
    return {"cookie": cookie, "jobs": jobs}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", metavar="S", type=positive, default=60, help="seconds of quiet (default 60)")
    parser.add_argument(
        "--pressed", metavar="S", type=positive, default=1800, help="seconds of pressure (default 1800)"
    )
    parser.add_argument("--only", metavar="KIND", action="append", choices=KINDS, help="press with this kind alone")
    parser.add_argument("--dir", metavar="DIR", default=ROOT, help="where the database goes (default: the checkout)")
    parser.add_argument("--press", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.press:
        kind, url, given = arguments.press
        return press(kind, url, json.loads(given))
    with Lab(arguments.dir, 1, 1, 1) as lab, lab.tracker(log_file="lines.log") as tracker:
        report(*measured(arguments, lab, tracker))


def measured(arguments, lab, tracker):
    """The quiet time, and the pressed one: (waits, tasks a second, losses) each, memory's peak, strangers' answers."""
    project = tracker.add_project("crawl")
    crew = tracker.add_workers(WORKERS, [project])
    given = json.dumps(hostile_jobs(tracker))
    work(tracker, project, crew, 5)
    quiet = work(tracker, project, crew, arguments.quiet)
    peak, strangers = [tracker.resident_bytes()], {}
    for kind in arguments.only or KINDS:
        command = ["nice", "-n", "19", sys.executable, __file__, "--press", kind, tracker.url, given]
        log = (lab.directory / f"{kind}.txt").open("wb")
        strangers[kind] = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        pressed = work(
            tracker, project, crew, arguments.pressed, lambda: peak.append(max(peak[0], tracker.resident_bytes()))
        )
    finally:
        for process in strangers.values():
            process.kill()
            process.wait()
    answers = {kind: (lab.directory / f"{kind}.txt").read_text().strip().split("\n")[-1] for kind in strangers}
    sizes = {path.name: path.stat().st_size for path in Path(tracker.database).parent.iterdir() if path.is_file()}
    return quiet, pressed, max(peak), answers, sizes


def report(quiet, pressed, peak, answers, sizes):
    for name, (times, rate, lost) in (("quiet", quiet), ("pressed", pressed)):
        waits = ", ".join(f"p{part} {percentile(times, part) * 1000:.1f} ms" for part in (50, 95, 99))
        waits += f", longest {max(times) * 1000:.0f} ms"
        say(f"{name}: {rate:.1f} tasks a second, {waits}, {len(lost)} lost {lost[:3]}")
    ratio = percentile(pressed[0], 99) / percentile(quiet[0], 99)
    met = {True: "met", False: "MISSED"}
    print(f"p99 under pressure: {ratio:.2f} of the quiet one (at most {TIMES}: {met[ratio <= TIMES]})")
    print(f"memory: {peak / 2**20:.0f} MB (at most {MOST_MEMORY / 2**20:.0f}: {met[peak <= MOST_MEMORY]})")
    print(f"files: {', '.join(f'{name} {size / 2**20:.1f} MB' for name, size in sorted(sizes.items()))}")
    for kind, said in answers.items():
        print(f"{kind}: answers by status {said}")


if __name__ == "__main__":
    main()
