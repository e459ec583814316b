"""What counting for /metrics and notices costs an assignment with its release: CPU of the tracker, and steps of SQLite.

    python bench/counting.py [--rounds 6] [--tasks 4000]

The same tracker with and without what counts (meter.py made to do nothing), in turns; the median of the ratios.

"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from open_pages import ROOT, ask, registered

WITHOUT = """
import meter
class Nothing(dict):
    def __missing__(self, key): return 0
    def __setitem__(self, key, value): pass
class Answers(dict):
    def __missing__(self, key): return Nothing()
plain = meter.Meter.__init__
def begin(self):
    plain(self)
    self.answers = Answers()
meter.Meter.__init__ = begin
meter.Meter.committed = lambda *given: None
import counts
counts.ENDED = frozenset()
"""
MAIN = "import sys; sys.path.insert(0, {root!r})\n{change}\nimport tracker; sys.exit(tracker.main({arguments!r}))"


def cpu_of(process: subprocess.Popen) -> float:
    """Seconds of processor time that a process has taken (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def cycles(url: str, headers: dict[str, str], count: int) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    for _ in range(count):
        connection.request("GET", "/task/get/1", headers=headers)
        task = json.loads(connection.getresponse().read())["content"]["task"]["id"]
        connection.request("POST", "/task/release", json.dumps({"task_id": task, "result": 0}), headers)
        connection.getresponse().read()


def run(change: str, tasks: int) -> float:
    """CPU seconds of a tracker for so many tasks, assigned to and released by 16 workers."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--port", "0", "--database", f"{folder}/tracker.db"]
        program = MAIN.format(root=str(ROOT), change=change, arguments=arguments)
        command = [sys.executable, "-c", program]
        options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(command, **options) as tracker:
            try:
                url = tracker.stdout.readline().split()[3]
                crowd = prepared(url, registered(url), tasks)
                before = cpu_of(tracker)
                threads = [threading.Thread(target=cycles, args=(url, one, tasks // 16)) for one in crowd]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return cpu_of(tracker) - before
            finally:
                tracker.terminate()


def prepared(url: str, cookie: str, tasks: int) -> list[dict[str, str]]:
    ask(f"{url}/project/create", {"name": "one", "public": True}, {"Cookie": cookie})
    crowd = []
    for number in range(16):
        worker = ask(f"{url}/worker/create", {"alias": f"worker {number}"})["content"]["worker"]
        crowd.append({"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]})
    ask(f"{url}/project/request_access", {"project": 1, "submit": True}, crowd[0])
    ask(f"{url}/project/accept_request/1/1", {}, {"Cookie": cookie})
    ask(f"{url}/task/bulk_submit", {"requests": [{"project": 1, "recipe": "x"}] * (tasks + 100)}, crowd[0])
    return crowd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tasks", type=int, default=4000)
    options = parser.parse_args()
    ratios = []
    for number in range(options.rounds):
        order = ("", WITHOUT) if number % 2 else (WITHOUT, "")
        taken = {change: run(change, options.tasks) for change in order}
        ratios.append(taken[""] / taken[WITHOUT])
        micro = [1e6 * taken[change] / options.tasks for change in ("", WITHOUT)]
        print(f"round {number + 1}: {micro[0]:.1f} us with, {micro[1]:.1f} us without: {ratios[-1]:.3f}", flush=True)
    print(f"median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
