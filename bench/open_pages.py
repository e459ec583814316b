"""Bytes an hour that each open page of the manager UI takes, in a real browser, while workers work.

    python bench/open_pages.py [--against CHECKOUT] [--seconds 60]

A crawl of 20 workers goes on; each page is open in a tab of its own, and what comes over the wire is counted as the
browser says it. The first load is told apart. `--against`: the same of another checkout, for a ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "/ui/",
    "/ui/projects/1",
    "/ui/projects/1/tasks",
    "/ui/projects/1/tasks?state=failed",
    "/ui/workers",
    "/ui/logs",
)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    ours = measure(ROOT, options.seconds)
    theirs = measure(options.against, options.seconds) if options.against else {}
    print(f"{'page':36}{'first load':>12}{'an hour':>14}" + ("      before: first       an hour" if theirs else ""))
    for path, (first, hourly) in ours.items():
        before = "".join(f"{theirs[path][0] / 1e3:12,.0f} kB{theirs[path][1] / 1e6:10,.1f} MB" if theirs else "")
        print(f"{path:36}{first / 1e3:9,.0f} kB{hourly / 1e6:11,.1f} MB{before}")


if __name__ == "__main__":
    main()
