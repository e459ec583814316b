"""How long a single worker waits for an answer: alone, and beside everything else that the tracker may have to do."""

import concurrent.futures
import contextlib
import json
import selectors
import sqlite3
import statistics
import subprocess
import sys
import time

from empty import used_for_a_while
from figures import NOTES, Figure, benchmark, milliseconds
from harness import BULK, ROOT, EmptyRoute, bulk_body, encode, say
from seeds import MILLION, all_assigned, all_failed, million, overdue, small, verified

# ── A lone worker ───────────────────────────────────────────────────────────────────────────────────────────────


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


def lone_requests(tracker, project, until):
    """The seconds of each of a lone worker's requests, assigns and releases."""
    with tracker.connect(tracker.crew()[1]) as connection:
        assigned, released = lone_cycles(connection, tracker.seed.projects[project], until)
    return assigned + released


def empty_requests(empty, until):
    """The same of the empty route: GET and POST in turn."""
    release = {"task_id": 1234567, "result": 0, "verification": 7}
    requests, taken = (encode("GET", "/"), encode("POST", "/", body=release)), []
    with empty.connect() as connection:
        while not until():
            taken += [timed(connection, request)[0] for request in requests]
    return taken


def after(seconds):
    """An `until` for lone_cycles."""
    deadline = time.perf_counter() + seconds
    return lambda: time.perf_counter() > deadline


def compared_to_quiet(label, rounds, quiet):
    """The p99 of requests beside something, which may be three times that of the quiet ones of the same round."""
    values, base = milliseconds(rounds, 99), milliseconds(quiet, 99)
    return Figure(f"a lone worker's request beside {label}, p99", "ms", values, "quiet", base, ("<=", 3.0))


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
    """A lone worker's request, alone and beside 2,000 waiting workers; how soon one of those is woken."""
    crowd_size = 2_000
    with contextlib.ExitStack() as stack:
        alone, crowded, single = (stack.enter_context(lab.tracker(small, max_wait=3600)) for _ in range(3))
        empty, storing = (stack.enter_context(EmptyRoute(lab, *database)) for database in ((), (lab.path(),)))
        crowd = stack.enter_context(Crowd(crowded, crowded.seed.projects["other"], crowd_size))
        one = stack.enter_context(Crowd(single, single.seed.projects["other"], 1))

        def requests(tracker):
            tracker.fill(tracker.seed.projects["main"], 10_000)
            return lone_requests(tracker, "main", after(lab.seconds))

        rounds = lab.race(
            {
                "alone": lambda: requests(alone),
                "crowd": lambda: requests(crowded),
                "commit": lambda: commits(lab),
                "empty": lambda: empty_requests(empty, after(lab.seconds / 2)),
                "stored": lambda: empty_requests(storing, after(lab.seconds / 2)),
                "wake one": lambda: wakes(single, one, lab.seconds),
                "wake of many": lambda: wakes(crowded, crowd, lab.seconds),
            }
        )
    commit, bare = milliseconds(rounds["commit"], 50), milliseconds(rounds["empty"], 50)
    NOTES.append(
        f"a bare commit takes {statistics.median(commit):.3f} ms, a request of the empty route"
        f" {statistics.median(bare):.3f} ms (p50)"
    )
    floor = [sum(both) for both in zip(commit, bare, strict=True)]
    alone, against = milliseconds(rounds["alone"], 50), "commit + empty route"
    figures = [Figure("a lone worker's request, p50", "ms", alone, against, floor, ("<=", 1.3))]
    stored = milliseconds(rounds["stored"], 50)
    figures.append(Figure("… of the empty route that stores a row by aiosqlite", "ms", stored, against, floor))
    figures += [Figure("a lone worker's request, p99", "ms", milliseconds(rounds["alone"], 99))]
    figures.append(compared_to_quiet(f"{crowd_size:,} waiting workers", rounds["crowd"], rounds["alone"]))
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
    taken = []
    with contextlib.closing(sqlite3.connect(lab.path(), isolation_level=None)) as connection:
        used_for_a_while(connection)
        over = after(lab.seconds / 2)
        while not over():
            started = time.perf_counter()
            connection.execute("INSERT INTO row VALUES (1)")
            taken.append(time.perf_counter() - started)
    return taken


# ── Beside long operations ──────────────────────────────────────────────────────────────────────────────────────


def beside(lab, tracker, operation):
    """Assign and release in one project before and while operation(tracker) runs in another thread, and after it.

    Returns the seconds of each request before, while, and after it ran, and of the operation.
    """
    quiet = lone_requests(tracker, "other", after(lab.seconds))
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        future = thread.submit(operation, tracker)
        during = lone_requests(tracker, "other", future.done)
        elapsed = time.perf_counter() - started
        future.result()
    return quiet, during, lone_requests(tracker, "other", after(1)), elapsed


def until(tracker, state, expected):
    """Wait until a live counter of the main project shows the end of an operation."""
    given_up = after(300)
    with tracker.manager() as manager:
        while (count := manager.get(f"/project/get/{tracker.seed.projects['main']}")[state]) != expected:
            if given_up():
                raise RuntimeError(f"after five minutes {state} is {count:,} and not {expected:,}")
            time.sleep(0.05)


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


def vacuum(tracker):
    """Another program that copies the whole file, as fast as it can."""
    copy = tracker.database.with_suffix(".backup")
    with contextlib.closing(sqlite3.connect(f"file:{tracker.database}?mode=ro", uri=True)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    copy.unlink()


def backup(tracker):
    """A backup as docs/operation.md recommends, by a process of its own."""
    copy = tracker.database.with_suffix(".backup")
    command = [sys.executable, ROOT / "tracker.py", "backup", "--database", tracker.database, copy]
    subprocess.run(command, check=True, capture_output=True)
    for made in (copy, copy.with_name(f"{copy.name}.manifest.json")):
        made.unlink()


@benchmark("beside")
def beside_operations(lab):
    """A lone worker's requests while a long operation runs, against those before it; the longest of them."""
    tasks, bulk = f"{lab.size(MILLION):,}", f"{lab.size(BULK):,}"
    operations = [
        (f"a bulk submit of {bulk}", million, bulk_submit),
        (f"hard_reset of {tasks}", million, maintenance("hard_reset", "waiting_task_count")),
        (f"reset_failed_tasks of {tasks}", all_failed, maintenance("reset_failed_tasks", "failed_task_count")),
        (f"reclaim of {tasks}", all_assigned, maintenance("reclaim_assigned_tasks", "assigned_task_count")),
        (f"VACUUM INTO, {tasks} tasks", million, vacuum),
        (f"tracker.py backup, {tasks} tasks", million, backup),
        (f"the expiry of {bulk} at once", overdue, expiry),
    ]
    figures = []
    for label, fill, operation in operations:
        outcomes = []
        for _ in range(min(lab.rounds, 5)):
            with lab.tracker(fill) as tracker:
                tracker.bulk = bulk_body(tracker.seed.projects["main"], lab.size(BULK))
                outcomes.append(beside(lab, tracker, operation))
            lab.discard(tracker.database)
        quiet, during, afterwards, elapsed = zip(*outcomes, strict=True)
        longest = [max(both) * 1000 for both in zip(map(max, during), map(max, afterwards), strict=True)]
        say(f"  {label}: {', '.join(f'{each:.0f} ms' for each in longest)}")
        if operation is not expiry:  # of which a part of the time is waiting for it to begin
            figures.append(compared_to_quiet(label, during, quiet))
        figures.append(Figure(f"longest beside {label}", "ms", longest, target=("<=", 100), judge=max))
        NOTES.append(f"{label} took {statistics.median(elapsed):.1f} s")
    return figures


# ── Verification ────────────────────────────────────────────────────────────────────────────────────────────────


@benchmark("verification")
def verification(lab):
    """Assignment to a worker that has verified the first 100,000 tasks of a project, against a fresh worker."""
    with lab.tracker(verified, max_empty_polls=1_000_000) as tracker:
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
