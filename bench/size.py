"""What the number of tasks costs: memory, disk, and everything at once with ten million of them."""

import statistics

from figures import NOTES, Figure, benchmark
from harness import ROOT, checkpoint, forget_cached, recipe
from latency import Crowd
from seeds import MILLION, million, ten_million, ten_thousand
from throughput import cycles, rates
from ui import all_pages, waited

CROWD = 2_000  # waiting workers
KINDS = ["waiting_task_count", "awaiting_verification_count", "assigned_task_count", "failed_task_count"]


def resident(lab, tracker, project="main"):
    """Megabytes while 2,000 workers wait, after a round of load over 32 more connections."""
    with Crowd(tracker, tracker.seed.projects["empty"], CROWD):
        cycles(lab, tracker, tracker.seed.projects[project])
        return tracker.resident_bytes() / 1e6


@benchmark("memory")
def memory(lab):
    """Resident memory with 1,000,000 tasks and 2,000 connections; bytes of database per task beyond its recipe."""
    tasks = lab.size(MILLION)
    with lab.tracker(million, max_wait=3600) as tracker:
        tracker.add_project("empty")
        started = resident(lab, tracker)
    with lab.tracker(max_wait=3600) as tracker:
        for name in ("main", "empty"):
            tracker.add_project(name)
        tracker.fill(tracker.seed.projects["main"], tasks, unique=True)
        filled = resident(lab, tracker)

    def bytes_beyond(size, *counts):
        recipes = sum(len(recipe(number)) for count in counts for number in range(count))
        return (size - recipes) / sum(counts)

    plain = bytes_beyond(lab.seeds[million, ROOT].database.stat().st_size, tasks, 50_000)
    unique = bytes_beyond(checkpoint(tracker.database), tasks)
    label = f"resident, {tasks:,} tasks, {CROWD:,} waiting workers"
    return [
        Figure(label, "MB", [started], target=("<=", 150)),
        Figure("… in the process that took the bulk submits", "MB", [filled], target=("<=", 150)),
        Figure("database per task beyond the recipe", "bytes", [plain], target=("<=", 120)),
        Figure("… with unique_string", "bytes", [unique], target=("<=", 120)),
    ]


def forget_pages(tracker):
    """Have the kernel, and the connections of a running tracker, forget what they have read of its database."""
    with tracker.connect(tracker.crew()[0]) as connection:  # a connection begins anew when another one has written
        connection.post("/task/submit", {"project": tracker.seed.projects["other"], "recipe": "another task"})
    forget_cached(tracker.database)


@benchmark("huge", long=True)
def huge(lab):
    """10,000,000 tasks in one of 1,000 projects, the page cache warm and cold: rate, start, pages, memory."""
    with lab.tracker(ten_thousand) as few, lab.tracker(ten_million) as many:
        tasks = f"{sum(many.counts(many.seed.projects['main'])[count] for count in KINDS):,}"
    addresses = {name: name.format(**many.seed.examples) for name in all_pages()}
    starts, firsts, tours = ({"warm": [], "cold": []} for _ in range(3))
    few_starts = []

    def started(cache):
        if cache == "cold":
            forget_cached(many.database)
        tracker = lab.again(many, max_wait=3600)
        starts[cache].append(tracker.start_seconds)
        return tracker

    def tour(cache):
        with started(cache) as tracker, tracker.manager() as connection:
            for visits in (firsts, tours):  # at its first visit, a page's template is compiled
                visits[cache].append({name: waited(connection, addresses[name], 1) for name in addresses})
                if cache == "cold":
                    forget_pages(tracker)

    def load(tracker):
        with tracker:
            return cycles(lab, tracker, tracker.seed.projects["main"])

    def load_few():
        with lab.again(few) as tracker:
            tracker.fill(tracker.seed.projects["main"], 10_000 + lab.seconds * 12_000, priority=9)
        again = lab.again(few)
        few_starts.append(again.start_seconds)
        return load(again)

    rounds = lab.race(
        {
            "few": load_few,
            "cold": lambda: load(started("cold")),
            "cold tour": lambda: tour("cold"),
            "warm": lambda: load(started("warm")),
            "warm tour": lambda: tour("warm"),
        },
        min(lab.rounds, 5),
    )
    memory = {}
    for cache in starts:
        with started(cache) as tracker:
            memory[cache] = resident(lab, tracker)

    def slowest(visits):
        """The pages and their medians, those that take longest first."""
        medians = {name: statistics.median(pages[name] for pages in visits) for name in addresses}
        return sorted(medians.items(), key=lambda page: -page[1])

    def of_slowest(visits):
        """The milliseconds, in each round, of the page that takes longest."""
        return [pages[slowest(visits)[0][0]] for pages in visits]

    NOTES.append(f"with 10,000 tasks the tracker starts in {statistics.median(few_starts):.2f} s")
    figures, base = [], rates(rounds["few"])
    for cache in starts:
        label = f"{tasks} tasks, {lab.size(1_000):,} projects, page cache {cache}"
        rate = rates(rounds[cache])
        figures += [
            Figure(f"{label}: assign + release", "requests/s", rate, "10,000 tasks", base, (">=", 0.95)),
            Figure("… start", "s", starts[cache], target=("<=", 2), judge=max),
            Figure(f"… slowest of {len(addresses)} pages", "ms", of_slowest(tours[cache]), target=("<=", 100)),
            Figure("… at their first visits after the start", "ms", of_slowest(firsts[cache])),
            Figure(f"… resident, {CROWD:,} waiting workers", "MB", [memory[cache]], target=("<=", 150)),
        ]
        for visits, title in ((firsts, "just started"), (tours, "later")):
            slow = ", ".join(f"{name} {time:.0f} ms" for name, time in slowest(visits[cache])[:3])
            NOTES.append(f"the slowest pages of {tasks} tasks, page cache {cache}, {title}: {slow}")
    return figures
