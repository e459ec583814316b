"""The write-ahead log while reads overlap all the time: how long it gets, and who pays for its being cut."""

import threading
import time
from pathlib import Path

from figures import Figure, benchmark
from harness import ROOT
from seeds import small

READERS = 4
MINUTES = 5
BOUND = 64  # MiB: the default of max_wal
SEARCHED = 200_000  # tasks: one search takes many reads
RECIPE = 20_000  # bytes of each task that is submitted meanwhile


class Loops:
    """So many loops of searches that find nothing, each on a connection of its own, until the end of the block."""

    def __init__(self, tracker, count=READERS):
        self.tracker, self.count = tracker, count
        self.stop = threading.Event()
        self.searches, self.longest = 0, 0

    def __enter__(self):
        work = [self.search] * self.count + [self.watch]
        self.threads = [threading.Thread(target=one) for one in work]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def search(self):
        with self.tracker.manager() as connection:
            page = f"/ui/projects/{self.tracker.seed.projects['other']}/export?text=nothing"
            request = connection.encode("GET", page)
            while not self.stop.is_set():
                connection.exchange(request)
                self.searches += 1

    def watch(self):
        file = Path(f"{self.tracker.database}-wal")
        while not self.stop.wait(0.02):
            self.longest = max(self.longest, file.stat().st_size)


def overlapping(lab, root=ROOT, seconds=MINUTES * 60):
    """MiB that the log had at most, the number of searches, and the seconds of each submit beside them."""
    with lab.tracker(small, root=root) as tracker:
        tracker.fill(tracker.seed.projects["other"], lab.size(SEARCHED))
        task, waits = {"project": tracker.seed.projects["main"], "recipe": "x" * RECIPE}, []
        with Loops(tracker) as loops, tracker.connect(tracker.crew()[0]) as connection:
            submit, ends = connection.encode("POST", "/task/submit", task), time.monotonic() + seconds
            while time.monotonic() < ends:
                began = time.perf_counter()
                connection.exchange(submit)
                waits.append(time.perf_counter() - began)
    return loops.longest / 2**20, loops.searches, waits


@benchmark("wal", long=True)
def wal(lab):
    """Four loops of searches beside a worker that submits, for five minutes: the longest write-ahead log."""
    longest, searches, waits = overlapping(lab)
    label = f"{READERS} loops of searches beside submits, {MINUTES} minutes: the write-ahead log"
    return [
        Figure(label, "MiB", [longest], target=("<=", BOUND)),
        Figure("… searches", "", [searches]),
        Figure("… the slowest of the submits", "ms", [1000 * max(waits)]),
    ]
