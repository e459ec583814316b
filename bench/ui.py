"""The pages of the manager UI: how long each takes, and what open ones cost the workers."""

import concurrent.futures
import itertools
import statistics
import sys
import threading
import time

from figures import NOTES, Figure, benchmark
from harness import ROOT, EmptyRoute, encode
from latency import after, compared_to_quiet, lone_requests
from seeds import large_tracker
from throughput import note_processors, rates, topped_up

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

        under_load = topped_up(lab, tracker, "other", 300_000, meanwhile=lambda: tour("under load"))
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
    """Assign + release, and a lone worker, while 10 pages of the same tracker are open in browsers, against none."""
    with lab.tracker(large_tracker, refresh_interval=REFRESH) as tracker:
        seconds = max(lab.seconds, REFRESH)  # else not every page would be fetched in a round
        load = topped_up(lab, tracker, "other", 12_000 * seconds, seconds=seconds)
        load()

        def alone():
            return lone_requests(tracker, "other", after(seconds))

        rounds = lab.race(
            {
                "closed": load,
                "open": lambda: beside_tabs(tracker, load),
                "open alone": lambda: beside_tabs(tracker, lambda: busy(tracker, seconds)),
                "lone": alone,
                "lone beside": lambda: beside_tabs(tracker, alone),
            }
        )
    closed, (opened, waits) = rounds["closed"], zip(*rounds["open"], strict=True)
    label = f"assign + release, {len(OPEN_PAGES)} pages open"
    for title, loads in (("assign + release, no page open", closed), (label, opened)):
        note_processors(title, loads)
    share = statistics.median(share for share, _ in rounds["open alone"])
    refresh = statistics.median(itertools.chain.from_iterable(waits)) * 1000
    NOTES.append(f"the open pages alone: {share:.3f} of a core; a refresh beside the load: {refresh:.0f} ms")
    beside = [taken for taken, _ in rounds["lone beside"]]
    return [
        Figure(label, "requests/s", rates(opened), "no page open", rates(closed), (">=", 0.95)),
        compared_to_quiet(f"{len(OPEN_PAGES)} open pages", beside, rounds["lone"]),
    ]


def busy(server, seconds):
    """The share of a core that a server uses for some seconds: free of the noise that rates have."""
    time.sleep(1)  # until the tabs have loaded their pages for the first time
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds if before is not None else float("nan")
