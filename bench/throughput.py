"""How much the tracker does in a second: single calls, batches and bulk submits, against the empty route."""

import contextlib
import json
import shutil
import sqlite3
import statistics
import time

from figures import NOTES, Figure, benchmark
from harness import BULK, CONNECTIONS, ROOT, Driver, EmptyRoute, bulk_body, credentials, drive, recipe
from seeds import MILLION, million, small

BATCH = 50  # tasks


def cycles(lab, tracker, project, seconds=None, meanwhile=None, path="/"):
    """Assign and release over 32 connections for one round, and check that the tasks were really closed.

    With meanwhile(): for as long as that takes. `path` is what the calls are below.
    """
    before = tracker.counts(project)["closed_task_count"]
    crew, seconds = credentials(tracker.crew()), seconds or lab.seconds
    driver = Driver(tracker, "cycle.lua", 3600 if meanwhile else seconds, project, *crew, path=path)
    try:
        if meanwhile:
            meanwhile()
    finally:
        load = driver.stop() if meanwhile else driver.finish()
    check_work("tasks closed", load.released, tracker.counts(project)["closed_task_count"] - before)
    return load


def batches(lab, tracker, project):
    """The same in batches of 50 tasks, each taken with one call and closed with another."""
    before = tracker.counts(project)["closed_task_count"]
    load = drive(tracker, "batch.lua", lab.seconds, project, BATCH, *credentials(tracker.crew()))
    check_work("tasks closed", load.released, tracker.counts(project)["closed_task_count"] - before, BATCH)
    return load


def submits(lab, tracker, project):
    """Submit single tasks over 32 connections for one round, and check that they are there."""
    before = tracker.counts(project)["waiting_task_count"]
    load = drive(tracker, "submit.lua", lab.seconds, project, *credentials(tracker.crew()))
    check_work("tasks stored", load.requests, tracker.counts(project)["waiting_task_count"] - before)
    return load


def check_work(what, answered, done, batch=1):
    """Refuse figures of work that was answered but not done, or done more than once.

    wrk cuts its connections at the end of a round: one request on each may be carried out without being answered,
    and may be so only after the count that the next round starts from.
    """
    if not answered <= done <= answered + 2 * CONNECTIONS * batch:
        raise RuntimeError(f"{what}: {answered} were answered, but the count went up by {done}")


def costs(loads):
    """Microseconds of the server's processor time for one request."""
    return [load.server / load.rate * 1e6 for load in loads]


def note_processors(title, loads, empty=None):
    """Say how busy the generator was, for it must not be what is measured, and what a request costs the server.

    That says more than the rate where other programs use the machine's processors at the same time.
    """
    generator = statistics.median(load.generator for load in loads)
    server = statistics.median(load.server for load in loads)
    note = f"{title}: the generator used {generator:.2f} of a core, the server {server:.2f}"
    note += f", {statistics.median(costs(loads)):.0f} µs a request"
    if empty:
        times = [cost / base for cost, base in zip(costs(loads), costs(empty), strict=True)]
        note += f", {statistics.median(times):.2f} times the empty route's"
    NOTES.append(note)


def rates(loads):
    return [load.rate for load in loads]


def against_empty(lab, label, run):
    """The loads of run() and those of the empty route, turn about."""
    with EmptyRoute(lab) as empty:
        drive(empty, "empty.lua", 1)
        loads = lab.race({"empty": lambda: drive(empty, "empty.lua", lab.seconds), "tracker": run})
    note_processors("empty route", loads["empty"])
    note_processors(label, loads["tracker"], loads["empty"])
    return loads["tracker"], rates(loads["empty"])


def topped_up(lab, tracker, name, waiting, run=cycles, first_guess=12_000, **options):
    """A round of cycles on a project that has `waiting` tasks left at its end, going by the round before.

    The first round goes by the guess of how many tasks are closed in a second. The options are those of run().
    """
    project, spent = tracker.seed.projects[name], [(options.get("seconds") or lab.seconds) * first_guess]

    def round_of_load():
        tracker.fill(project, waiting + spent[-1])
        load = run(lab, tracker, project, **options)
        spent.append(load.released)
        return load

    return round_of_load


@benchmark("assign")
def assign(lab):
    """Assign + release at 32 connections, each a worker of its own, synchronous=FULL."""
    figures = []
    with lab.tracker(million) as tracker:
        for path, label in (("/", f"assign + release, {CONNECTIONS} connections"), ("/api/", "… below /api")):
            run = topped_up(lab, tracker, "other", 10_000, path=path)
            run()
            loads, base = against_empty(lab, label, run)
            figures.append(Figure(label, "requests/s", rates(loads), "empty route", base, (">=", 1.15)))
    return figures


@benchmark("submit")
def submit(lab):
    """Single submits at 32 connections."""
    with lab.tracker(small) as tracker:
        run = lambda: submits(lab, tracker, tracker.seed.projects["main"])  # noqa: E731
        run()
        label = f"single submits, {CONNECTIONS} connections"
        loads, base = against_empty(lab, label, run)
    return [Figure(label, "requests/s", rates(loads), "empty route", base, (">=", 1.25))]


@benchmark("batch")
def batch(lab):
    """Tasks taken and closed in batches of 50 at 32 connections, against the requests of the empty route."""
    with lab.tracker(small) as tracker:
        run = topped_up(lab, tracker, "main", 40_000, run=batches, first_guess=100_000)
        run()
        label = f"assign + release in batches of {BATCH}"
        loads, base = against_empty(lab, label, run)
    tasks = [load.released / load.seconds for load in loads]
    return [Figure(label, "tasks/s", tasks, "empty route", base, (">=", 2.4))]


@benchmark("scale")
def scale(lab):
    """Assign + release with 1,000,000 tasks waiting, in the same project and in one beside it, against 10,000."""
    with lab.tracker(small) as few, lab.tracker(million) as many, lab.tracker(million) as beside:
        contenders = {
            "few": topped_up(lab, few, "main", 10_000),
            "many": topped_up(lab, many, "main", lab.size(MILLION)),
            "beside": topped_up(lab, beside, "other", 10_000),
        }
        for run in contenders.values():
            run()
        rate = {name: rates(loads) for name, loads in lab.race(contenders).items()}
    tasks, against, target = f"{lab.size(MILLION):,}", "10,000 waiting", (">=", 0.95)
    return [
        Figure(f"assign + release, {tasks} waiting", "requests/s", rate["many"], against, rate["few"], target),
        Figure(f"… beside a project with {tasks}", "requests/s", rate["beside"], against, rate["few"], target),
    ]


@benchmark("versions")
def versions(lab):
    """Assign + release, and single submits, against another checkout: --against DIR."""
    return side_by_side(lab, lab.against, "the other") if lab.against else []


def side_by_side(lab, root, other):
    """The figures of this checkout and an `other` one, which both serve at the same time."""
    with lab.tracker(small) as after, lab.tracker(small, root) as before:
        trackers = {"after": after, "before": before}
        kinds = {
            "assign + release": {name: topped_up(lab, one, "main", 10_000) for name, one in trackers.items()},
            "single submits": {
                name: (lambda one=one: submits(lab, one, one.seed.projects["other"])) for name, one in trackers.items()
            },
        }
        return [figure for label, runs in kinds.items() for figure in both_versions(lab, label, runs, other)]


MADE_BLIND = {  # what is written below a module so that it counts nothing
    "meter.py": """
class Nowhere(dict):
    def __missing__(self, status): return 0
    def __setitem__(self, status, count): pass
begin = Meter.__init__
def __init__(self):
    begin(self)
    self.answers = defaultdict(Nowhere)
Meter.__init__, Meter.committed = __init__, lambda *given: None
""",
    "counts.py": "\nENDED = frozenset()\n",
}


@benchmark("counting")
def counting(lab):
    """What counting for /metrics and notices costs assign + release, and single submits, against a copy without."""
    blind = lab.path("-without")
    shutil.copytree(ROOT, blind, ignore=shutil.ignore_patterns(".*", "tests", "docs"))
    for name, change in MADE_BLIND.items():
        with open(blind / name, "a") as module:
            module.write(change)
    return side_by_side(lab, blind, "without")


def both_versions(lab, label, runs, other):
    """The figures of a load on two versions: how many requests per second, and what one costs the server."""
    for run in runs.values():
        run()
    loads = lab.race(runs)
    rate = {name: rates(of) for name, of in loads.items()}
    cost = {name: costs(of) for name, of in loads.items()}
    return [
        Figure(f"{label}, this version", "requests/s", rate["after"], other, rate["before"], (">=", 0.97)),
        Figure("… processor time of one", "µs", cost["after"], other, cost["before"], ("<=", 1.03)),
    ]


# ── Bulk submits ─────────────────────────────────────────────────────────────────────────────────────────────


@benchmark("bulk")
def bulk(lab):
    """One bulk submit of 100,000 tasks, against the empty route and sqlite3.executemany with version 6's triggers."""
    figures = []
    with EmptyRoute(lab) as empty:
        drive(empty, "empty.lua", 1)
        for kind, targets in (("plain", ((">=", 6.5), (">=", 0.5))), ("unique_string", (None, None))):
            unique = kind == "unique_string"
            found = lab.race(
                {
                    "empty": lambda: drive(empty, "empty.lua", lab.seconds).rate,
                    "tracker": lambda unique=unique: bulk_submit(lab, unique),
                    "executemany": lambda unique=unique: executemany(lab, unique),
                }
            )
            label = f"bulk submit of {lab.size(BULK):,}, {kind}"
            bases = (("empty route", found["empty"]), ("executemany", found["executemany"]))
            for name, (against, base), target in zip((label, "… the same"), bases, targets, strict=True):
                figures.append(Figure(name, "tasks/s", found["tracker"], against, base, target))
    return figures


def bulk_submit(lab, unique):
    """Submit tasks in bulk through the API of a fresh tracker, with one client: tasks/s until the answer."""
    count = lab.size(BULK)
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


def executemany(lab, unique):
    """Insert the rows of a bulk submit into a fresh file in one transaction, with triggers that count them: tasks/s."""
    count = lab.size(BULK)
    with contextlib.closing(sqlite3.connect(lab.path(), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16384")  # as the tracker
        connection.executescript((ROOT / "tests" / "schema_6.sql").read_text())
        connection.execute(INSERT_PROJECT)
        rows = [(1, 0, 1, 0, 1, hash(recipe(n)) if unique else None, recipe(n)) for n in range(count)]
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT_TASK, rows)
        connection.execute("COMMIT")
        elapsed = time.perf_counter() - started
        if connection.execute("SELECT waiting_task_count FROM project").fetchall() != [(count,)]:
            raise RuntimeError("the triggers of tests/schema_6.sql have not counted")
        return count / elapsed


INSERT_PROJECT = """
    INSERT INTO project (name, priority, clone_url, git_repo, version, motd, public, hidden, paused, keep_hashes,
        assign_rate, submit_rate, webhook_secret)
    VALUES ('bulk', 0, '', '', '', '', 1, 0, 0, 0, 0, 0, '')"""
INSERT_TASK = """
    INSERT INTO task (project, priority, max_retries, max_assign_time, verification_count, hash64, recipe)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
