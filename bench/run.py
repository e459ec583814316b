"""Benchmarks of the tracker, each against a baseline that is measured in the same run.

One command starts everything itself: trackers on temporary databases, the baselines, the load. Nothing that is
running already is touched. The table goes to standard output, progress to standard error.

How to read the table. A shared machine is noisy and its speed drifts, so measurement and baseline take turns round
by round, a ratio is formed within each round, and the table shows median, min and max over the rounds. Trust the
ratios; the absolute figures are those of the machine. Targets are printed beside the figures and nothing fails when
one is missed: the exit status is 0 unless a benchmark could not be carried out, because an answer was refused or
work turned out not to have been done.

To add a benchmark, write a function that takes the Lab, returns a list of Figure, and carries @benchmark("name").
Its docstring is the text that --help shows.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import platform
import selectors
import signal
import sqlite3
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness import (
    BULK,
    CONNECTIONS,
    ROOT,
    Connection,
    Driver,
    EmptyRoute,
    Lab,
    bulk_body,
    checkpoint,
    credentials,
    drive,
    encode,
    recipe,
    require_tools,
    say,
)
from large import furnish
from queues import MATCHES, fill_queues

MILLION = 1_000_000
BENCHMARKS = {}
NOTES = []


def benchmark(name):
    """Put a function into the table of benchmarks under this name."""

    def register(function):
        BENCHMARKS[name] = function
        return function

    return register


@dataclass
class Figure:
    """One line of the table: the figure of each round, and what it is compared with.

    The target, as (">=", 0.6), is for the median ratio to `base`, or for the figure itself where there is no base, or
    absolute=True; with judge=max it is for the worst round.
    """

    label: str
    unit: str
    values: list
    against: str = ""
    base: list | None = None
    target: tuple | None = None
    judge: object = statistics.median
    absolute: bool = False

    def ratios(self):
        return [value / base for value, base in zip(self.values, self.base, strict=True)] if self.base else None

    def judged(self):
        """What the target is for."""
        return self.values if self.absolute or not self.base else self.ratios()

    def met(self):
        figure = self.judge(self.judged())
        return figure >= self.target[1] if self.target[0] == ">=" else figure <= self.target[1]


# ── Throughput ───────────────────────────────────────────────────────────────────────────────────────────────


def cycles(lab, tracker, project, seconds=None, meanwhile=None):
    """Assign and release over 32 connections for one round, and check that the tasks were really closed.

    With meanwhile(): for as long as that takes.
    """
    before = tracker.counts(project)["closed_task_count"]
    crew, seconds = credentials(tracker.crew()), seconds or lab.seconds
    driver = Driver(tracker, "cycle.lua", 3600 if meanwhile else seconds, project, *crew)
    try:
        if meanwhile:
            meanwhile()
    finally:
        load = driver.stop() if meanwhile else driver.finish()
    check_work("tasks closed", load.released, tracker.counts(project)["closed_task_count"] - before)
    return load


def submits(lab, tracker, project):
    """Submit single tasks over 32 connections for one round, and check that they are there."""
    before = tracker.counts(project)["waiting_task_count"]
    load = drive(tracker, "submit.lua", lab.seconds, project, *credentials(tracker.crew()))
    check_work("tasks stored", load.requests, tracker.counts(project)["waiting_task_count"] - before)
    return load


def check_work(what, answered, done):
    """Refuse figures of work that was answered but not done, or done more than once.

    wrk cuts its connections at the end of a round: one request on each may be carried out without being answered,
    and may be so only after the count that the next round starts from.
    """
    if not answered <= done <= answered + 2 * CONNECTIONS:
        raise RuntimeError(f"{what}: {answered} requests were answered, but the count went up by {done}")


def note_processors(title, loads):
    """Say how busy the generator was, for it must not be what is measured, and what a request costs the server."""
    generator = statistics.median(load.generator for load in loads)
    server = statistics.median(load.server for load in loads)
    cost = statistics.median(load.server / load.rate * 1e6 for load in loads)
    NOTES.append(
        f"{title}: the generator used {generator:.2f} of a core, the server {server:.2f}, {cost:.0f} µs a request"
    )


def throughput(lab, label, tracker, run):
    """The figure of a load on the tracker against the empty route."""
    with EmptyRoute(lab) as empty:
        drive(empty, "empty.lua", 1)
        loads = lab.race({"empty": lambda: drive(empty, "empty.lua", lab.seconds), "tracker": run})
    for name, title in (("empty", "empty route"), ("tracker", label)):
        note_processors(title, loads[name])
    rates = {name: [load.rate for load in runs] for name, runs in loads.items()}
    return Figure(label, "requests/s", rates["tracker"], "empty route", rates["empty"], (">=", 0.60))


def topped_up(lab, tracker, name, waiting, seconds=None, meanwhile=None):
    """A round of cycles on a project that has `waiting` tasks left at its end, going by the round before."""
    project, spent = tracker.seed.projects[name], [(seconds or lab.seconds) * 6_000]

    def run():
        tracker.fill(project, waiting + spent[-1])
        load = cycles(lab, tracker, project, seconds, meanwhile)
        spent.append(load.released)
        return load

    return run


@benchmark("assign")
def assign(lab):
    """Assign + release at 32 connections, each a worker of its own, synchronous=FULL."""
    with lab.tracker(million) as tracker:
        run = topped_up(lab, tracker, "other", 10_000)
        run()
        return [throughput(lab, "assign + release, 32 connections", tracker, run)]


@benchmark("scale")
def scale(lab):
    """The same with 1,000,000 tasks waiting, in the same project and in one beside it, against 10,000."""
    with lab.tracker(small) as few, lab.tracker(million) as many, lab.tracker(million) as beside:
        contenders = {
            "few": topped_up(lab, few, "main", 10_000),
            "many": topped_up(lab, many, "main", lab.size(MILLION)),
            "beside": topped_up(lab, beside, "other", 10_000),
        }
        for run in contenders.values():
            run()
        rates = {name: [load.rate for load in loads] for name, loads in lab.race(contenders).items()}
    tasks, against, target = f"{lab.size(MILLION):,}", "10,000 waiting", (">=", 0.90)
    return [
        Figure(f"assign + release, {tasks} waiting", "requests/s", rates["many"], against, rates["few"], target),
        Figure(f"… beside a project with {tasks}", "requests/s", rates["beside"], against, rates["few"], target),
    ]


@benchmark("submit")
def submit(lab):
    """Single submits at 32 connections."""
    with lab.tracker(small) as tracker:
        run = lambda: submits(lab, tracker, tracker.seed.projects["main"])  # noqa: E731
        run()
        return [throughput(lab, "single submits, 32 connections", tracker, run)]


@benchmark("versions")
def versions(lab):
    """Assign + release, and single submits, against another checkout: --against DIR."""
    if lab.against is None:
        return []
    with lab.tracker(small) as after, lab.tracker(small, lab.against) as before:
        trackers = {"after": after, "before": before}
        kinds = {
            "assign + release": {name: topped_up(lab, one, "main", 10_000) for name, one in trackers.items()},
            "single submits": {
                name: (lambda one=one: submits(lab, one, one.seed.projects["other"])) for name, one in trackers.items()
            },
        }
        return [figure for label, runs in kinds.items() for figure in both_versions(lab, label, runs)]


def both_versions(lab, label, runs):
    """The figures of a load on two versions: how many requests per second, and what one costs the server."""
    for run in runs.values():
        run()
    loads = lab.race(runs)
    rates = {name: [load.rate for load in of] for name, of in loads.items()}
    costs = {name: [load.server / load.rate * 1e6 for load in of] for name, of in loads.items()}
    return [
        Figure(f"{label}, this version", "requests/s", rates["after"], "the other", rates["before"], (">=", 0.97)),
        Figure("… processor time of one", "µs", costs["after"], "the other", costs["before"], ("<=", 1.03)),
    ]


@benchmark("bulk")
def bulk(lab):
    """One bulk submit of 100,000 tasks, against sqlite3.executemany of the same rows into the same schema."""
    return [bulk_figure(lab, "plain", (">=", 0.35)), bulk_figure(lab, "unique_string")]


def bulk_figure(lab, kind, target=None):
    count, unique = lab.size(BULK), kind == "unique_string"

    def through_tracker():
        with lab.tracker() as tracker:
            project = tracker.add_project("bulk")
            with tracker.connect(tracker.crew()[0]) as connection:
                request = connection.encode("POST", "/task/bulk_submit", bulk_body(project, count, unique=unique))
                started = time.perf_counter()
                answer = json.loads(connection.exchange(request))
                elapsed = time.perf_counter() - started
        if answer["content"]["submitted"] != count:
            raise RuntimeError(f"a bulk submit of {count} tasks was answered {answer}")
        return count / elapsed

    contenders = {"tracker": through_tracker, "executemany": lambda: executemany(lab, count, unique)}
    rates = lab.race(contenders)
    label = f"bulk submit of {count:,}, {kind}"
    return Figure(label, "tasks/s", rates["tracker"], "executemany", rates["executemany"], target)


def executemany(lab, count, unique):
    """Insert the rows of a bulk submit into a fresh file of the tracker's schema in one transaction: tasks/s."""
    with contextlib.closing(sqlite3.connect(lab.path(), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16384")  # as the tracker
        connection.executescript((ROOT / "schema.sql").read_text())
        # The tasks are of a project, as the tracker's are.
        connection.execute(INSERT_PROJECT)
        rows = [(1, 0, 1, 0, 1, hash(recipe(n)) if unique else None, recipe(n)) for n in range(count)]
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT_TASK, rows)
        connection.execute("COMMIT")
        return count / (time.perf_counter() - started)


INSERT_PROJECT = """
    INSERT INTO project (name, priority, clone_url, git_repo, version, motd, public, hidden, paused, keep_hashes,
                         assign_rate, submit_rate, webhook_secret)
    VALUES ('bulk', 0, '', '', '', '', 1, 0, 0, 0, 0, 0, '')"""
INSERT_TASK = """
    INSERT INTO task (project, priority, max_retries, max_assign_time, verification_count, hash64, recipe)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""


# ── Latency ──────────────────────────────────────────────────────────────────────────────────────────────────


def timed(connection, request):
    """Seconds that one exchange took, and its content."""
    started = time.perf_counter()
    answer = connection.exchange(request)
    return time.perf_counter() - started, json.loads(answer).get("content")


def lone_cycles(connection, project, until, result=0):
    """One worker assigns and releases until `until()` says stop; returns the seconds of each assign and release."""
    ask, assigned, released = connection.encode("GET", f"/task/get/{project}"), [], []
    while not until():
        seconds, content = timed(connection, ask)
        assigned.append(seconds)
        if content is None:
            raise RuntimeError(f"project {project} ran out of tasks after {len(assigned)} cycles")
        release = {"task_id": content["task"]["id"], "result": result, "verification": 7}
        seconds, content = timed(connection, connection.encode("POST", "/task/release", release))
        released.append(seconds)
        if not content["updated"]:
            raise RuntimeError(f"the release of {release} changed nothing")
    return assigned, released


def after(seconds):
    """An `until` for lone_cycles."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() > deadline


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def milliseconds(rounds, percent):
    """That percentile of each round, in milliseconds."""
    return [percentile(values, percent) * 1000 for values in rounds]


class Crowd:
    """Workers that wait for a task of a project that has none, each over a connection of its own."""

    def __init__(self, tracker, project, count):
        self.request = f"/task/get/{project}?wait=3600"
        self.connections = [tracker.connect(worker) for worker in tracker.add_workers(count)]
        self.selector = selectors.DefaultSelector()
        for connection in self.connections:
            self.selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(connection.encode("GET", self.request))
        time.sleep(1)
        if self.selector.select(0):
            raise RuntimeError("a waiting worker was answered though there was no task")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.selector.close()
        for connection in self.connections:
            connection.socket.close()

    def woken(self):
        """Wait for the answers that have come in: [(connection, task)]."""
        found = [key.data for key, _ in self.selector.select(10)]
        return [(connection, json.loads(connection.receive()[2])["content"]["task"]) for connection in found]

    def rest(self, connection, task):
        """Have a woken worker release its task and wait again."""
        connection.post("/task/release", {"task_id": task["id"], "result": 0, "verification": 0})
        connection.send(connection.encode("GET", self.request))


@benchmark("latency")
def latency(lab):
    """A lone worker's cycle, assign + release; the same beside 1,000 waiting workers; how soon one of them is woken."""
    crowd_size = 1_000
    with contextlib.ExitStack() as stack:
        alone, crowded, single = (stack.enter_context(lab.tracker(small, max_wait=3600)) for _ in range(3))
        crowd = stack.enter_context(Crowd(crowded, crowded.seed.projects["other"], crowd_size))
        one = stack.enter_context(Crowd(single, single.seed.projects["other"], 1))

        def cycle(tracker):
            tracker.fill(tracker.seed.projects["main"], 10_000)
            with tracker.connect(tracker.crew()[0]) as connection:
                pairs = lone_cycles(connection, tracker.seed.projects["main"], after(lab.seconds))
            return [assigned + released for assigned, released in zip(*pairs, strict=True)]

        rounds = lab.race(
            {
                "alone": lambda: cycle(alone),
                "crowd": lambda: cycle(crowded),
                "commit": lambda: commits(lab),
                "wake one": lambda: wakes(single, one, lab.seconds),
                "wake of many": lambda: wakes(crowded, crowd, lab.seconds),
            }
        )
    base = [2 * figure for figure in milliseconds(rounds["commit"], 50)]
    figures = [Figure("lone cycle, p50", "ms", milliseconds(rounds["alone"], 50), "two bare commits", base)]
    figures += [Figure(f"lone cycle, p{percent}", "ms", milliseconds(rounds["alone"], percent)) for percent in (95, 99)]
    for percent in (50, 95, 99):
        values, base = (milliseconds(rounds[name], percent) for name in ("crowd", "alone"))
        figures.append(Figure(f"… beside {crowd_size:,} waiting workers, p{percent}", "ms", values, "lone cycle", base))
    values, base = (milliseconds(rounds[name], 50) for name in ("wake of many", "wake one"))
    figures.append(Figure(f"submit to wake-up, 1 of {crowd_size:,} waiting, p50", "ms", values, "1 of 1 waiting", base))
    return figures


def wakes(tracker, crowd, seconds):
    """Seconds from sending a submit until exactly one waiting worker has its task, many times over."""
    project, taken, over = tracker.seed.projects["other"], [], after(seconds)
    with tracker.connect(tracker.crew()[0]) as connection:
        request = connection.encode("POST", "/task/submit", {"project": project, "recipe": "wake up"})
        while not over():
            started = time.perf_counter()
            connection.send(request)
            woken = crowd.woken()
            taken.append(time.perf_counter() - started)
            connection.receive()
            if len(woken) != 1:
                raise RuntimeError(f"one task woke {len(woken)} workers")
            crowd.rest(*woken[0])
    return taken


def commits(lab):
    """Seconds of each commit of a single small row by sqlite3 with synchronous=FULL: the floor of every write."""
    taken, over = [], after(lab.seconds / 2)
    with contextlib.closing(sqlite3.connect(lab.path(), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE row (value)")
        while not over():
            started = time.perf_counter()
            connection.execute("INSERT INTO row VALUES (1)")
            taken.append(time.perf_counter() - started)
    return taken


# ── Memory and disk ──────────────────────────────────────────────────────────────────────────────────────────


@benchmark("memory")
def memory(lab):
    """Resident memory with 1,000,000 tasks and 1,000 connections; bytes of database per task beyond its recipe."""
    tasks, connections = lab.size(MILLION), 1_000

    def resident(tracker):
        """Megabytes while 1,000 workers wait, after a round of load over 32 more connections."""
        with Crowd(tracker, tracker.add_project("empty"), connections):
            cycles(lab, tracker, tracker.seed.projects["main"])
            return tracker.resident_bytes() / 1e6

    with lab.tracker(million, max_wait=3600) as tracker:
        started = resident(tracker)
    with lab.tracker(max_wait=3600) as tracker:
        tracker.add_project("main")
        tracker.fill(tracker.seed.projects["main"], tasks, unique=True)
        filled = resident(tracker)

    def bytes_beyond(size, *counts):
        recipes = sum(len(recipe(number)) for count in counts for number in range(count))
        return (size - recipes) / sum(counts)

    plain = bytes_beyond(lab.seeds[million, ROOT].database.stat().st_size, tasks, 10_000)
    unique = bytes_beyond(checkpoint(tracker.database), tasks)
    label = f"resident, {tasks:,} tasks, {connections:,} connections"
    return [
        Figure(label, "MB", [started], target=("<=", 150)),
        Figure("… in the process that took the bulk submits", "MB", [filled], target=("<=", 150)),
        Figure("database per task beyond the recipe", "bytes", [plain], target=("<=", 120)),
        Figure("… with unique_string", "bytes", [unique], target=("<=", 120)),
    ]


# ── Verification ─────────────────────────────────────────────────────────────────────────────────────────────


@benchmark("verification")
def verification(lab):
    """Assignment to a worker that has verified the first 100,000 tasks of a project, against a fresh worker."""
    with lab.tracker(verified) as tracker:
        projects, workers = tracker.seed.projects, tracker.crew()

        def assigns(worker, project):
            # Released as skipped, so that every round finds the same queue.
            with tracker.connect(worker) as connection:
                return lone_cycles(connection, projects[project], after(lab.seconds), result=2)[0]

        def empty_polls(worker):
            taken, over = [], after(lab.seconds)
            with tracker.connect(worker) as connection:
                request = connection.encode("GET", f"/task/get/{projects['exhausted']}")
                while not over():
                    seconds, content = timed(connection, request)
                    taken.append(seconds)
                    if content:
                        raise RuntimeError("a worker was given a task that it had verified")
            return taken

        rounds = lab.race(
            {
                "fresh": lambda: assigns(workers[2], "untouched"),
                "verifier": lambda: assigns(workers[0], "main"),
                "other": lambda: assigns(workers[1], "main"),
                "exhausted": lambda: empty_polls(workers[0]),
            }
        )
    figures = {name: milliseconds(times, 50) for name, times in rounds.items()}
    count, fresh = lab.size(BULK), figures["fresh"]

    def compared(label, name):
        return Figure(f"{label}, p50", "ms", figures[name], "untouched project", fresh)

    return [
        Figure("assign on an untouched project, p50", "ms", fresh),
        compared(f"… to one who has verified its first {count:,}", "verifier"),
        compared("… of a task that somebody else has verified", "other"),
        compared(f"poll by one who has verified all {count:,}", "exhausted"),
    ]


# ── Long operations ──────────────────────────────────────────────────────────────────────────────────────────


def beside(tracker, operation):
    """Assign and release in one project while operation(tracker) runs in another thread, and a second longer.

    Returns the seconds of every assign until the operation ended, of every one after that, and of the operation.
    """
    project, started = tracker.seed.projects["other"], time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(1) as thread, tracker.connect(tracker.crew()[1]) as connection:
        future = thread.submit(operation, tracker)
        during, _ = lone_cycles(connection, project, future.done)
        elapsed = time.perf_counter() - started
        future.result()
        afterwards, _ = lone_cycles(connection, project, after(1))
    return during, afterwards, elapsed


def until(tracker, state, expected):
    """Wait until a live counter of the main project shows the end of an operation."""
    given_up = after(300)
    with tracker.manager() as manager:
        while (count := manager.get(f"/project/get/{tracker.seed.projects['main']}")[state]) != expected:
            if given_up():
                raise RuntimeError(f"after five minutes {state} is {count:,} and not {expected:,}")
            time.sleep(0.05)


def quiet(tracker):
    """The baseline of the long operations: what the machine alone does to a worker's latency."""
    time.sleep(2)


def bulk_submit(tracker):
    """The largest bulk submit, until its last task is in the queue."""
    project = tracker.seed.projects["main"]
    before = tracker.counts(project)["waiting_task_count"]
    with tracker.connect(tracker.crew()[0]) as connection:
        count = connection.post("/task/bulk_submit", tracker.bulk)["submitted"]
    until(tracker, "waiting_task_count", before + count)


def maintenance(action, state):
    """An operation that a manager starts with one request, and that has ended when the counter shows zero."""

    def run(tracker):
        with tracker.manager() as manager:
            manager.post(f"/project/{action}/{tracker.seed.projects['main']}")
        until(tracker, state, 0)

    return run


def expiry(tracker):
    """Wait until every task has been taken back."""
    until(tracker, "assigned_task_count", 0)


@benchmark("long")
def long(lab):
    """The longest that another worker's assignment takes while a long operation runs."""
    tasks, bulk = f"{lab.size(MILLION):,}", f"{lab.size(BULK):,}"
    operations = [
        ("nothing else", million, quiet),
        (f"a bulk submit of {bulk}", million, bulk_submit),
        (f"hard_reset of {tasks}", million, maintenance("hard_reset", "waiting_task_count")),
        (f"reset_failed_tasks of {tasks}", all_failed, maintenance("reset_failed_tasks", "failed_task_count")),
        (f"reclaim of {tasks}", all_assigned, maintenance("reclaim_assigned_tasks", "assigned_task_count")),
        (f"the expiry of {bulk} at once", overdue, expiry),
    ]
    figures = []
    for label, fill, operation in operations:
        outcomes = []
        for _ in range(min(lab.rounds, 3)):
            with lab.tracker(fill) as tracker:
                tracker.bulk = bulk_body(tracker.seed.projects["main"], lab.size(BULK))
                outcomes.append(beside(tracker, operation))
            lab.discard(tracker.database)
        longest = [max(during + afterwards) * 1000 for during, afterwards, _ in outcomes]
        say(f"  {label}: {', '.join(f'{each:.0f} ms' for each in longest)}")
        figures += [
            Figure(f"assign beside {label}, p99", "ms", milliseconds([during for during, _, _ in outcomes], 99)),
            Figure("… longest", "ms", longest, target=("<=", 100), judge=max),
        ]
        NOTES.append(f"{label} took {statistics.median(elapsed for _, _, elapsed in outcomes):.1f} s")
    return figures


# ── Pages ────────────────────────────────────────────────────────────────────────────────────────────────────

# What is asked of a page besides nothing: that which takes it longest. The names stand for ids (Seed.examples).
QUERIES = {
    "/ui/": ["?text=no+such+project", "?after=small+08"],
    "/ui/projects/{project}": ["?range=1h", "?range=7d", "?range=all"],
    "/ui/projects/{project}/tasks": [
        *("?state=assigned", "?state=awaiting_verification", "?state=failed"),
        *("?text=no+such+task", "?state=assigned&text=no+such+task", "?state=failed&text=no+such+task"),
        "?priority=0&after=0:{last_task}",
        "?state=assigned&assignee={worker}",
        "?state=assigned&priority=-1",
    ],
    "/ui/workers": [
        *("?sort=closed_task_count", "?sort=alias", "?sort=alias&text=nobody"),
        "?sort=closed_task_count&after=100:100",
    ],
    "/ui/projects/{project}/access": ["?text=nobody", "?after={last_worker}"],
    "/ui/logs": [
        *("?level=error", "?worker={worker}", "?project={project}", "?before=200"),
        *("?text=no+such+line", "?level=error&project={project}&text=no+such+line"),
    ],
}
MORE_PAGES = ["/ui/projects/{other}", "/ui/projects/{other}/access"]
DOWNLOADS = ["/ui/projects/{project}/export"]
OPEN_PAGES = [
    *("/ui/", "/ui/", "/ui/projects/{project}", "/ui/projects/{project}", "/ui/projects/{project}?range=all"),
    *("/ui/projects/{project}/tasks?state=assigned", "/ui/projects/{project}/tasks?state=failed"),
    *("/ui/workers", "/ui/logs", "/ui/tasks/{task}"),
]
VISITS = 3  # of each page in a round
REFRESH = 5  # seconds, the default refresh_interval


def all_pages():
    """Every page of the manager UI, so that none is forgotten, and each with its QUERIES."""
    sys.path.insert(0, str(ROOT))
    import pages as manager_pages

    table = manager_pages.routes_of(manager_pages.PAGES)
    paths = [path for methods, path, _ in table if "GET" in methods.split() and path not in DOWNLOADS]
    return [path + query for path in paths for query in ("", *QUERIES.get(path, []))] + MORE_PAGES


def visit(connection, address, headers=None):
    """Seconds that it takes to get a page, and the page."""
    request = encode("GET", address, {**connection.headers, **(headers or {})})
    started = time.perf_counter()
    page = connection.exchange(request)
    return time.perf_counter() - started, page


@benchmark("pages")
def pages(lab):
    """Each page of the manager UI with 1,000,000 tasks, 10,000 workers and 100,000 snapshots, alone and under load."""
    with lab.tracker(large_tracker) as tracker, EmptyRoute(lab) as empty:
        addresses = {name: name.format(**tracker.seed.examples) for name in all_pages()}
        tours = {"alone": [], "under load": []}

        def tour(situation):
            with tracker.manager() as connection:
                tours[situation].append({name: waited(connection, addresses[name], VISITS) for name in addresses})

        def empty_route():
            with empty.connect() as connection:
                return waited(connection, "/", 100)

        under_load = topped_up(lab, tracker, "other", 50_000, meanwhile=lambda: tour("under load"))
        tour("alone")  # compiles the templates
        tours["alone"].clear()
        rounds = lab.race({"empty": empty_route, "alone": lambda: tour("alone"), "under load": under_load})
    figures = []
    for name in addresses:
        for situation, label in (("alone", name), ("under load", "… under load")):
            values = [waits[name] for waits in tours[situation]]
            figures.append(Figure(label, "ms", values, "empty route", rounds["empty"], ("<=", 100), absolute=True))
    for situation, visits in tours.items():
        medians = {name: statistics.median(waits[name] for waits in visits) for name in addresses}
        slowest = max(medians, key=medians.get)
        NOTES.append(f"the slowest page {situation}: {slowest}, {medians[slowest]:.0f} ms")
    return figures


def waited(connection, address, visits):
    """The median of the milliseconds that some visits to a page take."""
    return statistics.median(visit(connection, address)[0] for _ in range(visits)) * 1000


class Tab:
    """A browser's tab with an open page: fetches it anew every few seconds, as static/live.js does."""

    SOON = 1.5  # seconds, for a page that asks for it

    def __init__(self, tracker, address, interval, phase):
        self.tracker, self.address, self.interval, self.phase = tracker, address, interval, phase
        self.closed, self.waits = threading.Event(), []

    def run(self):
        with self.tracker.manager() as connection:
            _, page = visit(connection, self.address)
            interval = min(self.interval, self.SOON) if b"data-live-soon" in page else self.interval
            pause = interval * self.phase
            while not self.closed.wait(pause):
                self.waits.append(visit(connection, self.address, {"X-Live": "1"})[0])
                pause = interval


def beside_tabs(tracker, run):
    """What run() returns, done while the OPEN_PAGES are open, and the seconds that each of their refreshes took."""
    addresses = [name.format(**tracker.seed.examples) for name in OPEN_PAGES]
    tabs = [Tab(tracker, address, REFRESH, number / len(addresses)) for number, address in enumerate(addresses)]
    with concurrent.futures.ThreadPoolExecutor(len(tabs)) as threads:
        running = [threads.submit(tab.run) for tab in tabs]
        try:
            outcome = run()
        finally:
            for tab in tabs:
                tab.closed.set()
        for future in running:
            future.result()
    return outcome, [wait for tab in tabs for wait in tab.waits]


@benchmark("open_pages")
def open_pages(lab):
    """Assign + release at 32 connections while 10 pages of the same tracker are open in browsers, against none."""
    with lab.tracker(large_tracker, refresh_interval=REFRESH) as tracker:
        seconds = max(lab.seconds, REFRESH)  # else not every page would be fetched in a round
        load = topped_up(lab, tracker, "other", 6_000 * seconds, seconds)
        load()
        rounds = lab.race(
            {
                "closed": load,
                "open": lambda: beside_tabs(tracker, load),
                "open alone": lambda: beside_tabs(tracker, lambda: busy(tracker, seconds)),
            }
        )
    closed, (opened, waits) = rounds["closed"], zip(*rounds["open"], strict=True)
    label = f"assign + release, {len(OPEN_PAGES)} pages open"
    for title, loads in (("assign + release, no page open", closed), (label, opened)):
        note_processors(title, loads)
    alone = statistics.median(share for share, _ in rounds["open alone"])
    refresh = statistics.median(itertools.chain.from_iterable(waits)) * 1000
    NOTES.append(f"the open pages alone: {alone:.3f} of a core; a refresh beside the load: {refresh:.0f} ms")
    rates, base = ([load.rate for load in loads] for loads in (opened, closed))
    return [Figure(label, "requests/s", rates, "no page open", base, (">=", 0.95))]


def busy(server, seconds):
    """The share of a core that a server uses for some seconds: free of the noise that rates have."""
    time.sleep(1)  # until the tabs have loaded their pages for the first time
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds if before is not None else float("nan")


# ── Testflinger ──────────────────────────────────────────────────────────────────────────────────────────────

QUEUES = [f"queue {number}" for number in range(10)]
ANY_QUEUE = "&".join(f"queue={name.replace(' ', '+')}" for name in QUEUES)
SEARCH = "/v1/job/search?"
LOOKS = {  # what is asked for, and how many jobs that finds: None for those that are as many as there are
    "GET /v1/job of an ended job": ("/v1/job/{ended}", 1),
    "GET /v1/result of an ended job": ("/v1/result/{ended}", 1),
    "wait times of a queue": ("/v1/queues/wait_times?queue=queue+1", 1),
    "wait times of all queues": ("/v1/queues/wait_times", 1),
    "search by a tag": (f"{SEARCH}tags=rare", MATCHES),
    "search by two tags, any": (f"{SEARCH}tags=rare&tags=none", MATCHES),
    "search by two tags, all (one of them is on every job)": (f"{SEARCH}tags=all&tags=rare&match=all", MATCHES),
    "search by state": (f"{SEARCH}state=cancelled", MATCHES),
    "search by tag and state": (f"{SEARCH}tags=rare&state=complete", MATCHES),
    "search for active, for each job": (f"{SEARCH}state=active", None),
    "search without limits, for each job": (SEARCH, None),
}


@benchmark("testflinger")
def testflinger(lab):
    """Testflinger's calls with 100,000 ended and 10,000 waiting jobs on ten queues, against 100 and 10."""
    ended, waiting = lab.size(BULK), lab.size(BULK) // 10
    with lab.tracker(few_jobs) as few, lab.tracker(many_jobs) as many:
        outcomes = lab.race(
            {
                "few": lambda: {**job_cycles(few), **looks(few, 50)},
                "many": lambda: {**job_cycles(many), **looks(many, 5)},
                "quiet": lambda: assigns_beside(many, quiet),
                "search": lambda: assigns_beside(many, search_all),
            }
        )
    figures = []
    for label in outcomes["few"][0]:
        values, base = ([times[label] for times in outcomes[name]] for name in ("many", "few"))
        unit = "µs" if label.endswith("each job") else "ms"
        figures.append(Figure(label, unit, values, "100 + 10 jobs", base))
    for percent in (50, 99):
        values, base = (milliseconds(outcomes[name], percent) for name in ("search", "quiet"))
        label = f"assign beside a search that finds {ended + waiting:,}, p{percent}"
        figures.append(Figure(label, "ms", values, "nothing else", base))
    longest = [max(times) * 1000 for times in outcomes["search"]]
    return [*figures, Figure("… longest", "ms", longest, target=("<=", 100), judge=max)]


def job_cycles(tracker, count=50):
    """A client submits and asks for the position, an agent picks and ends: the median of each, in milliseconds."""
    used = tracker.cpu_seconds() or float("nan")
    taken = {"submit": [], "position of the last in its queue": [], "pick, of ten queues": [], "end a job": []}

    def timed(label, request):
        started = time.perf_counter()
        answer = connection.exchange(request)
        taken[label].append(time.perf_counter() - started)
        return answer

    with Connection(tracker.url) as connection:
        for _ in range(count):
            answer = timed("submit", encode("POST", "/v1/job", {}, {"job_queue": QUEUES[0], "tags": ["new"]}))
            job = json.loads(answer)["job_id"]
            timed("position of the last in its queue", encode("GET", f"/v1/job/{job}/position"))
            job = json.loads(timed("pick, of ten queues", encode("GET", f"/v1/job?{ANY_QUEUE}")))["job_id"]
            timed("end a job", encode("POST", f"/v1/result/{job}", {}, {"job_state": "complete"}))
    figures = {label: statistics.median(seconds) * 1000 for label, seconds in taken.items()}
    return {**figures, "… processor time of these four": ((tracker.cpu_seconds() or 0) - used) / count * 1000}


def looks(tracker, count):
    """The median of each of the LOOKS, in milliseconds; where it grows with what is found, in µs for each job."""
    figures = {}
    with Connection(tracker.url) as connection:
        for label, (address, expected) in LOOKS.items():
            request, taken = encode("GET", address.format(**tracker.seed.examples)), []
            for _ in range(count if expected is None else 20):
                started = time.perf_counter()
                answer = connection.exchange(request)
                taken.append(time.perf_counter() - started)
            found = len(json.loads(answer)) if SEARCH in address else 1
            if expected not in (None, found):
                raise RuntimeError(f"{address} found {found} jobs and not {expected}")
            scale = 1000 if expected is not None else 1e6 / found
            figures[label] = statistics.median(taken) * scale
    return figures


def assigns_beside(tracker, operation):
    """Seconds of each assignment from an ordinary project during the operation."""
    tracker.fill(tracker.seed.projects["other"], 20_000)
    return beside(tracker, operation)[0]


def search_all(tracker):
    """A search that finds all jobs."""
    with Connection(tracker.url) as connection:
        found = connection.exchange(encode("GET", SEARCH)).count(b'"job_id"')
    if found < 1000:
        raise RuntimeError(f"a search for all jobs found {found}")


# ── Seeds: databases that are filled once and copied per measurement ─────────────────────────────────────────


def small(lab, tracker):
    """10,000 tasks"""
    project = tracker.add_project("main")
    tracker.add_project("other")
    tracker.fill(project, 10_000)


def million(lab, tracker):
    """1,000,000 tasks, and 10,000 in another project"""
    project, other = tracker.add_project("main"), tracker.add_project("other")
    tracker.fill(project, lab.size(MILLION))
    tracker.fill(other, 10_000)


def with_other(lab, tracker):
    """A main project, and another with tasks enough for the worker who is timed; returns the main one."""
    project, other = tracker.add_project("main"), tracker.add_project("other")
    tracker.fill(other, 10_000)
    return project


def all_failed(lab, tracker):
    """1,000,000 failed tasks"""
    project = with_other(lab, tracker)
    tracker.fill(project, lab.size(MILLION))
    with tracker.connect(tracker.crew()[0]) as connection:
        tracker.hold(connection, project, lab.size(MILLION), result=1)


def all_assigned(lab, tracker):
    """1,000,000 assigned tasks"""
    project = with_other(lab, tracker)
    tracker.fill(project, lab.size(MILLION))
    with tracker.connect(tracker.crew()[0]) as connection:
        tracker.hold(connection, project, lab.size(MILLION))


def overdue(lab, tracker):
    """100,000 assigned tasks whose time runs out soon after the tracker is started again"""
    project, seconds = with_other(lab, tracker), 20
    tracker.fill(project, lab.size(BULK), max_assign_time=seconds)
    started = time.monotonic()
    with tracker.connect(tracker.crew()[0]) as connection:
        tracker.hold(connection, project, lab.size(BULK))
    # The clock of the deadlines stands still while the tracker is down.
    time.sleep(max(0, started + seconds - 3 - time.monotonic()))


def verified(lab, tracker):
    """200,000 tasks with verification_count 2, the first half verified by one worker"""
    count = lab.size(BULK)
    main, exhausted = tracker.add_project("main"), tracker.add_project("exhausted")
    tracker.fill(tracker.add_project("untouched"), 2 * count, verification_count=2)
    tracker.fill(main, 2 * count, verification_count=2)
    tracker.fill(exhausted, count, verification_count=2)
    with tracker.connect(tracker.crew()[0]) as connection:
        for project in (main, exhausted):
            tracker.hold(connection, project, count, result=0)


def large_tracker(lab, tracker):
    """1,000,000 tasks in mixed states, 10,000 workers, 100,000 snapshots of one of 60 projects, logs and histories"""
    for name in ("main", "other", *(f"small {number:02}" for number in range(58))):
        tracker.add_project(name)
    tracker.crew()
    tracker.stop()  # nobody else may write to its database
    tracker.seed.examples = furnish(tracker.database, tracker.seed.projects, lab.scale)


def with_jobs(tracker, ended, waiting):
    """Ten queues with so many jobs, and an ordinary project with tasks."""
    tracker.fill(tracker.add_project("other"), 20_000)
    with Connection(tracker.url) as connection:
        connection.exchange(encode("POST", "/v1/agents/queues", {}, dict.fromkeys(QUEUES, "ten queues")))
    worker = tracker.crew()[0]["id"]
    tracker.stop()  # nobody else may write to its database
    tracker.seed.examples = {"ended": fill_queues(tracker.database, worker, ended, waiting)}


def few_jobs(lab, tracker):
    """100 ended and 10 waiting jobs"""
    with_jobs(tracker, 100, 10)


def many_jobs(lab, tracker):
    """100,000 ended and 10,000 waiting jobs"""
    with_jobs(tracker, lab.size(BULK), lab.size(BULK) // 10)


# ── The table and the command line ───────────────────────────────────────────────────────────────────────────


def number(value):
    """Three significant digits at least, thousands separated."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def line(figure):
    """The cells of one figure: what, median, min–max, against, ratio, min–max, target, met."""

    def spread(values, show):
        return [show(statistics.median(values)), f"{show(min(values))}–{show(max(values))}" if len(values) > 1 else ""]

    ratios, target, met = figure.ratios(), "", ""
    if figure.target:
        limit = f"{figure.target[1]:.2f}" if figure.judged() == ratios else f"{figure.target[1]} {figure.unit}"
        target = {">=": "≥", "<=": "≤"}[figure.target[0]] + " " + limit
        met = "yes" if figure.met() else "NO"
    median, between = spread(figure.values, number)
    against = f"{figure.against}: {number(statistics.median(figure.base))}" if ratios else ""
    ratio = spread(ratios, "{:.2f}".format) if ratios else ["", ""]
    return [figure.label, f"{median} {figure.unit}", between, against, *ratio, target, met]


def table(rows):
    """Rows of cells as a Markdown table whose columns line up."""
    head = ["measurement", "median", "min–max", "against", "ratio", "min–max", "target", "met"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def row(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([row(head), row(["-" * width for width in widths]), *map(row, rows)])


def machine():
    """One line that says what the figures were measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as info:
        model = next(text.split(":", 1)[1].strip() for text in info if text.startswith("model name"))
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()}, Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}, synchronous=FULL"
    )


def parse_arguments():
    width = max(map(len, BENCHMARKS))
    listing = "\n".join(f"  {name:{width}}  {run.__doc__.splitlines()[0]}" for name, run in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python bench/run.py",
        description=__doc__.split("\n\nTo add")[0],
        epilog=f"benchmarks:\n{listing}\n\nAll of them take some ten minutes and, for a while, some gigabytes of disk.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", metavar="NAME", action="append", choices=BENCHMARKS, help="run this benchmark; may be repeated")
    add("--rounds", metavar="N", type=positive, help="rounds per benchmark (default 7)")
    add("--seconds", metavar="S", type=positive, help="whole seconds per measurement in a round (default 2)")
    add("--quick", action="store_true", help="a tenth of the tasks, 3 rounds of 1 second: a look, not a result")
    add("--dir", metavar="DIR", default=ROOT, help="where the temporary databases go (default: the checkout); "
        "the disk is part of what is measured")  # fmt: skip
    add(
        "--against",
        metavar="DIR",
        type=lambda text: Path(text).resolve(),
        help="another checkout, for the benchmark `versions`",
    )
    arguments = parser.parse_args()
    if arguments.against and not (arguments.against / "tracker.py").exists():
        parser.error(f"--against: there is no tracker.py in {arguments.against}")
    if "versions" in (arguments.only or ()) and not arguments.against:
        parser.error("--only versions: --against DIR must name the other checkout")
    if not os.access(arguments.dir, os.W_OK):
        parser.error(f"--dir: {arguments.dir} is not a directory that can be written to")
    return arguments


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main():
    arguments = parse_arguments()
    require_tools()
    rounds, seconds, scale = (3, 1, 0.1) if arguments.quick else (7, 2, 1)
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    figures, started = [], time.perf_counter()
    with Lab(arguments.dir, rounds, seconds, scale, arguments.against) as lab:
        for name in arguments.only or BENCHMARKS:
            say(f"{name}: {BENCHMARKS[name].__doc__.splitlines()[0]}")
            figures += BENCHMARKS[name](lab)
    print(f"{machine()}; {rounds} rounds of {seconds} s\n")
    print(table([line(figure) for figure in figures]))
    print("\n" + "\n".join(NOTES) if NOTES else "")
    say(f"took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are stopped, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except RuntimeError as error:
        sys.exit(f"bench/run.py: {error}")
