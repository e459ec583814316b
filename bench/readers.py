"""The write-ahead log while reads overlap all the time: how long it gets, and who pays for its being cut."""

import threading
import time
from pathlib import Path

from figures import Figure, benchmark
from harness import ROOT
from seeds import small
from throughput import cycles

READERS = 4
MINUTES = 5
SEARCHED = 200_000  # tasks: more than one search has time for
BOUND = 64  # MiB: the default of max_wal


class Loops:
    """So many loops of searches that find nothing, each on a connection of its own, until the end of the block."""

    def __init__(self, tracker, count=READERS):
        self.tracker, self.count = tracker, count
        self.stop = threading.Event()
        self.waits, self.longest = [], 0

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
                began = time.perf_counter()
                connection.exchange(request)
                self.waits.append(time.perf_counter() - began)

    def watch(self):
        file = Path(f"{self.tracker.database}-wal")
        while not self.stop.wait(0.05):
            self.longest = max(self.longest, file.stat().st_size)


def overlapping(lab, root=ROOT, seconds=MINUTES * 60):
    """MiB that the log had at most, seconds of each search, and the assignments and releases a second beside them."""
    with lab.tracker(small, root=root) as tracker:
        project, requests = tracker.seed.projects["main"], []
        tracker.fill(tracker.seed.projects["other"], lab.size(SEARCHED))
        tracker.fill(project, lab.size(SEARCHED))
        loops, ends = Loops(tracker), time.monotonic() + seconds
        with loops:
            while (left := ends - time.monotonic()) > 0:
                tracker.fill(project, lab.size(SEARCHED))
                requests.append(cycles(lab, tracker, project, min(10, int(left) + 1)).rate)
    return loops.longest / 2**20, loops.waits, requests


@benchmark("wal", long=True)
def wal(lab):
    """Four loops of searches beside 32 workers for five minutes: the longest write-ahead log, the slowest search."""
    longest, waits, _ = overlapping(lab)
    label = f"{READERS} loops of searches beside writers, {MINUTES} minutes: the write-ahead log"
    return [
        Figure(label, "MiB", [longest], target=("<=", BOUND)),
        Figure("… the slowest of the searches", "ms", [1000 * max(waits)]),
    ]
