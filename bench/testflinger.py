"""What the calls of Testflinger cost with many jobs."""

import json
import statistics
import time

from figures import Figure, benchmark, milliseconds
from harness import BULK, Connection, encode
from latency import beside
from queues import MATCHES
from seeds import QUEUES, few_jobs, many_jobs

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
                "search": lambda: beside_search(lab, many),
            }
        )
    figures = []
    for label in outcomes["few"][0]:
        values, base = ([times[label] for times in outcomes[name]] for name in ("many", "few"))
        unit = "µs" if label.endswith("each job") else "ms"
        figures.append(Figure(label, unit, values, "100 + 10 jobs", base))
    before, during = zip(*outcomes["search"], strict=True)
    label = f"a lone worker's request beside a search that finds {ended + waiting:,}"
    for percent in (50, 99):
        values, base = milliseconds(during, percent), milliseconds(before, percent)
        figures.append(Figure(f"{label}, p{percent}", "ms", values, "quiet", base))
    longest = [max(times) * 1000 for times in during]
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


def beside_search(lab, tracker):
    """Seconds of each of a lone worker's requests to an ordinary project before and during a search for all jobs."""
    tracker.fill(tracker.seed.projects["other"], 20_000)
    return beside(lab, tracker, search_all)[:2]


def search_all(tracker):
    """A search that finds all jobs."""
    with Connection(tracker.url) as connection:
        found = connection.exchange(encode("GET", SEARCH)).count(b'"job_id"')
    if found < 1000:
        raise RuntimeError(f"a search for all jobs found {found}")
