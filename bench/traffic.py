"""What an open page of the manager UI takes over the wire, in a real browser."""

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from figures import Figure, benchmark
from harness import ROOT

PAGES = (
    "/ui/",
    "/ui/projects/1",
    "/ui/projects/1/tasks",
    "/ui/projects/1/tasks?state=failed",
    "/ui/workers",
    "/ui/logs",
)


@benchmark("traffic", long=True)
def traffic(lab):
    """Bytes an hour of each open page, in Chromium, while 20 workers work, and of its first load; --against DIR."""
    checkouts = [ROOT, *([lab.against] if lab.against else [])]
    rounds = [[measure(root, max(30, lab.seconds)) for root in checkouts] for _ in range(max(1, lab.rounds // 3))]
    figures = []
    for path in PAGES:
        for label, unit, what in ((path, "MB an hour", 1), ("… its first load", "MB", 0)):
            ours, *theirs = [[found[place][path][what] / 1e6 for found in rounds] for place in range(len(checkouts))]
            figures.append(Figure(label, unit, ours, *(("the other", theirs[0]) if theirs else ())))
    return figures


def ask(url: str, body: object = None, headers: dict[str, str] | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
        return json.loads(answer.read() or b"{}")


def work(url: str, headers: dict[str, str], ended: threading.Event) -> None:
    """A worker: a task every half second, of which every twentieth fails; it logs a line for each."""
    number = 0
    while not ended.wait(0.5):
        number += 1
        task = ask(f"{url}/task/get/1", None, headers).get("content", {}).get("task")
        if task:
            line = {"scope": "bench", "message": f"fetched page {number} of this site", "timestamp": int(time.time())}
            ask(f"{url}/log/info", line, headers)
            ask(f"{url}/task/release", {"task_id": task["id"], "result": int(number % 20 == 0)}, headers)


def fill(url: str, cookie: str) -> list[dict[str, str]]:
    """A project with 20,000 tasks and 20 workers: the headers of those."""
    ask(f"{url}/project/create", {"name": "a crawl", "public": True}, {"Cookie": cookie})
    workers = []
    for number in range(20):
        worker = ask(f"{url}/worker/create", {"alias": f"worker {number}"})["content"]["worker"]
        headers = {"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]}
        ask(f"{url}/project/request_access", {"project": 1, "assign": True, "submit": True}, headers)
        ask(f"{url}/project/accept_request/1/{worker['id']}", {}, {"Cookie": cookie})
        workers.append(headers)
    tasks = [{"project": 1, "recipe": f"https://example.org/path/{number}"} for number in range(20_000)]
    ask(f"{url}/task/bulk_submit", {"requests": tasks}, workers[0])
    return workers


def registered(url: str) -> str:
    body = json.dumps({"username": "bench", "password": "password"}).encode()
    with urllib.request.urlopen(f"{url}/register", body, timeout=60) as answer:
        return answer.headers["Set-Cookie"].partition(";")[0]


def measure(root: Path, seconds: float) -> dict[str, tuple[int, float]]:
    """Of each page: bytes of the first load, and bytes an hour from then on."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tracker.toml"
        config.write_text("port = 0\nsnapshot_interval = 10\n")
        command = [sys.executable, str(root / "tracker.py"), "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tracker:
            try:
                url = tracker.stdout.readline().split()[3]
                cookie = registered(url)
                workers, ended = fill(url, cookie), threading.Event()
                crowd = [threading.Thread(target=work, args=(url, one, ended)) for one in workers]
                for one in crowd:
                    one.start()
                try:
                    return watch(url, cookie, seconds)
                finally:
                    ended.set()
                    for one in crowd:
                        one.join()
            finally:
                tracker.terminate()


def watch(url: str, cookie: str, seconds: float) -> dict[str, tuple[int, float]]:
    name, _, value = cookie.partition("=")
    found = {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context()
        context.add_cookies([{"name": name, "value": value, "url": url}])
        taken = {}
        for path in PAGES:
            page, taken[path] = context.new_page(), [0]
            session = context.new_cdp_session(page)
            session.send("Network.enable")
            session.on("Network.loadingFinished", lambda event, sum=taken[path]: add(sum, event))
            page.goto(url + path)
            page.wait_for_timeout(1000)
            found[path] = (taken[path][0], taken[path][0], time.monotonic())
        page.wait_for_timeout(1000 * seconds)
        now = time.monotonic()
        rates = {
            path: (first, (taken[path][0] - first) * 3600 / (now - since)) for path, (first, _, since) in found.items()
        }
        browser.close()
        return rates


def add(sum: list[int], event: dict) -> None:
    sum[0] += int(event["encodedDataLength"])
