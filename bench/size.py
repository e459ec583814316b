"""What the number of tasks costs: memory, disk, and everything at once with ten million of them."""

import statistics

from figures import NOTES, Figure, benchmark
from harness import ROOT, checkpoint, forget_cached, recipe
from latency import Crowd
from seeds import MILLION, million, ten_million, ten_thousand
from throughput import cycles, rates, topped_up
from ui import all_pages, waited

CROWD = 2_000  # waiting workers


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


@benchmark("huge", long=True)
def huge(lab):
    """10,000,000 tasks in one of 1,000 projects, the page cache warm and cold: rate, start, pages, memory."""
    with lab.tracker(ten_thousand) as few:
        with lab.tracker(ten_million, max_wait=3600) as tracker:
            project = tracker.seed.projects["main"]
            tasks = f"{tracker.counts(project)['waiting_task_count']:,}"
        addresses = {name: name.format(**tracker.seed.examples) for name in all_pages()}
        starts, tours = {"warm": [], "cold": []}, {"warm": [], "cold": []}

        def started(cache):
            if cache == "cold":
                forget_cached(tracker.database)
            again = lab.again(tracker, max_wait=3600)
            starts[cache].append(again.start_seconds)
            return again

        def tour(cache):
            with started(cache) as again, again.manager() as connection:
                if cache == "warm":
                    each_page(connection)
                tours[cache].append(each_page(connection))

        def each_page(connection):
            return {name: waited(connection, address, 1) for name, address in addresses.items()}

        def load(cache):
            with started(cache) as again:
                return cycles(lab, again, project)

        few_cycles = topped_up(lab, few, "main", 10_000, priority=9)
        few_cycles()
        rounds = lab.race(
            {
                "few": few_cycles,
                "cold": lambda: load("cold"),
                "cold tour": lambda: tour("cold"),
                "warm": lambda: load("warm"),
                "warm tour": lambda: tour("warm"),
            },
            min(lab.rounds, 5),
        )
        memory = {}
        for cache in starts:
            with started(cache) as again:
                memory[cache] = resident(lab, again)
    figures = []
    for cache in starts:
        label = f"{tasks} tasks, {lab.size(1_000):,} projects, page cache {cache}"
        slowest = [max(pages.values()) for pages in tours[cache]]
        figures += [
            Figure(
                f"{label}: assign + release",
                "requests/s",
                rates(rounds[cache]),
                "10,000 tasks",
                rates(rounds["few"]),
                (">=", 0.95),
            ),
            Figure("… start", "s", starts[cache], target=("<=", 2), judge=max),
            Figure(f"… slowest of {len(addresses)} pages", "ms", slowest, target=("<=", 100)),
            Figure(f"… resident, {CROWD:,} waiting workers", "MB", [memory[cache]], target=("<=", 150)),
        ]
        medians = {name: statistics.median(pages[name] for pages in tours[cache]) for name in addresses}
        worst = sorted(medians, key=medians.get)[:-4:-1]
        NOTES.append(f"the slowest pages, {cache}: " + ", ".join(f"{name} {medians[name]:.0f} ms" for name in worst))
    return figures
