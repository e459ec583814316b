#!/usr/bin/env python3
"""Prove on a real documentation tree that a crawl fetches every reachable page exactly once, whatever is killed.

    python3 examples/prove_crawl.py /usr/share/doc/python3-doc/html

Serves the tree on loopback and records each request. Walks it independently (html.parser and urllib, and wget where it
is installed), then crawls it with `crawl.py` twice, each time with a new tracker: undisturbed, and with one worker and
the tracker killed by SIGKILL on the way. Prints the figures; ends with exit code 1 when a set differs or a page was
fetched twice that no killed worker had in hand.

    python3 examples/prove_crawl.py --hosts 20 --pages 500 --workers 8

Serves that many hosts, numbers on loopback, of which one is dead, one slow and one bans its visitors for a while, and
crawls them together. Ends with exit code 1 when a host gets two requests at once, or one before its pause is over, or
any during its ban, when a page is not fetched once, or when the others wait for the slow one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag, urljoin

HERE = Path(__file__).resolve().parent
LINKS = {"a": "href", "area": "href", "frame": "src", "iframe": "src"}
LEADING = {"next", "prev", "previous", "canonical", "alternate"}


class RecordingHandler(http.server.SimpleHTTPRequestHandler):
    """Answers with the files of a directory, and tells its site of each request first."""

    protocol_version = "HTTP/1.1"  # keep-alive, as real servers do
    disable_nagle_algorithm = True

    def __init__(self, site: Site, *args, **options):
        self.site = site
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        self.site.record("GET", self.path)
        super().do_GET()

    def do_HEAD(self) -> None:
        self.site.record("HEAD", self.path)
        super().do_HEAD()

    def log_message(self, *_message) -> None:
        pass


class Site(http.server.ThreadingHTTPServer):
    """A directory served on loopback within a with block.

    `fetched` counts the GETs by path, `asked` the GETs and HEADs; robots.txt does not count.
    """

    def __init__(self, directory: Path, handler: type = RecordingHandler):
        super().__init__(("127.0.0.1", 0), functools.partial(handler, self, directory=directory))
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.fetched, self.asked = collections.Counter(), collections.Counter()
        self.lock, self.held, self.go_on = threading.Lock(), None, threading.Event()

    def __enter__(self) -> Site:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.go_on.set()
        self.shutdown()
        self.server_close()

    def record(self, method: str, path: str) -> None:
        if path == "/robots.txt":
            return
        with self.lock:
            self.asked[page_of(path)] += 1
            self.fetched[page_of(path)] += method == "GET"
            if hold := self.held == "next":
                self.held = page_of(path)
        if hold:
            self.go_on.wait()

    def hold_next(self) -> None:
        """Wait for the next request, which is answered only when `go_on` is set; its path is then in `held`."""
        self.held = "next"
        wait_until(lambda: self.held != "next")

    def pages(self) -> set[str]:
        return set(self.asked)

    def handle_error(self, *_request) -> None:
        """A client that goes away is nothing to report: some are killed on purpose."""


def page_of(path: str) -> str:
    """What the spellings of a page have in common."""
    return unquote(path).removesuffix("?")


class _LinkParser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attributes):
        named = dict(reversed(attributes))
        leads = tag == "link" and not LEADING.isdisjoint((named.get("rel") or "").lower().split())
        if leads and (named.get("type") or "text/html") in ("text/html", "application/xhtml+xml"):
            self.links += filter(None, [named.get("href")])
        elif tag == "meta" and (named.get("http-equiv") or "").lower() == "refresh":
            self.links += re.findall(r"url *= *['\"]?([^'\"]+)", named.get("content") or "", re.IGNORECASE)
        self.links += [value for name, value in attributes if value and LINKS.get(tag) == name]


def walk(seed: str) -> None:
    """Visit the seed and every page below its directory, breadth first, each once."""
    queue, seen = collections.deque([seed]), {seed}
    while queue:
        url = queue.popleft()
        try:
            with urllib.request.urlopen(url) as response:
                kind, charset = response.headers.get_content_type(), response.headers.get_content_charset("utf-8")
                html = response.read().decode(charset, "replace") if kind == "text/html" else ""
        except urllib.error.URLError:
            continue
        parser = _LinkParser()
        parser.feed(html)
        for link in parser.links:
            target = quote(urldefrag(urljoin(url, link.strip()))[0], safe=string.printable)
            if target.startswith(urljoin(seed, ".")) and target not in seen:
                seen.add(target)
                queue.append(target)


def walk_with_wget(seed: str) -> None:
    tags = f"--follow-tags={','.join(LINKS)}"
    options = ["--spider", "-r", "-l", "inf", "-np", "-nd", "-q", "-e", "robots=off", tags]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["wget", *options, seed], cwd=scratch, check=False)  # a broken link makes its exit code 8


class TrackerProcess:
    """A tracker in a process of its own, with its database in `directory`; killed, it starts again on the same port."""

    def __init__(self, directory: Path):
        self.directory, self.port = directory, 0
        self.start()

    def start(self) -> None:
        """Return when the tracker listens."""
        command = [sys.executable, HERE.parent / "tracker.py", "--port", str(self.port), "--database", "tracker.db"]
        self.process = subprocess.Popen(command, cwd=self.directory, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if "listening on" in line:
                self.url = re.search(r"http://\S+", line)[0]
                self.port = int(self.url.rpartition(":")[2])
                return
        raise SystemExit("The tracker did not start.")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()


class CrawlProcess:
    """A run of crawl.py against a tracker, as a new project with the files in `directory`."""

    def __init__(self, seed: str, tracker: str, directory: Path, *options: str):
        self.records, self.report_file = directory / "state" / "pages.jsonl", directory / "report.json"
        options = [
            "--server",
            tracker,
            "--rate",
            "0",
            "--state",
            directory / "state",
            "--report",
            self.report_file,
            *options,
        ]
        manager = ["--manager", "prover", "--register"]
        self.process = subprocess.Popen(
            [sys.executable, HERE / "crawl.py", seed, *options, *manager],
            env={**os.environ, "TRACKER_PASSWORD": "prove the crawl"},
            stdout=subprocess.DEVNULL,
        )

    def read_records(self) -> list[dict]:
        """What the workers have written about their pages up to now."""
        try:
            lines = self.records.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def kill_worker_that_holds(self, site: Site, workers: int) -> int:
        """Kill one of the workers while it fetches a page, and tell its process id."""
        wait_until(lambda: len({record["pid"] for record in self.read_records()}) == workers)
        site.hold_next()
        with contextlib.closing(sqlite3.connect(self.records.with_name("hosts.db"))) as hosts:
            ((pid,),) = hosts.execute("SELECT asker FROM host")
        os.kill(pid, signal.SIGKILL)
        site.go_on.set()
        return pid

    def report(self, seconds: float = 24 * 3600) -> dict:
        """Wait for the end, for so long."""
        if self.process.wait(seconds) != 0:
            raise SystemExit(f"crawl.py ended with exit code {self.process.returncode}.")
        return json.loads(self.report_file.read_text())


def wait_until(condition, seconds: float = 300) -> None:
    """Poll until the condition holds; SystemExit when it does not in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("Waited too long.")
        time.sleep(0.01)


def refetched(site: Site, records: list[dict], killed: int | None) -> tuple[int, int]:
    """How many pages were fetched more than once, and how many of those no killed worker can explain.

    The killed worker's last fetch has no record, or one with its process id; every other worker records each fetch.
    """
    by_others = collections.Counter(
        page_of(record["url"].removeprefix(site.url[:-1])) for record in records if record["pid"] != killed
    )
    twice = [path for path, count in site.fetched.items() if count > 1]
    explained = [path for path in twice if killed and site.fetched[path] == 2 and by_others[path] <= 1]
    return len(twice), len(twice) - len(explained)


def prove(directory: Path, workers: int, disturb: bool, expected: set[str]) -> bool:
    """One crawl of the tree, its figures on standard output. False when it is not what it should be."""
    killed = None
    with Site(directory) as site, tempfile.TemporaryDirectory() as scratch:
        tracker = TrackerProcess(Path(scratch))
        try:
            options = ["--workers", str(workers), "--timeout", "5", "--max-assign-time", "15"]
            crawl = CrawlProcess(site.url, tracker.url, Path(scratch), *options)
            if disturb:
                wait_until(lambda: site.fetched.total() > len(expected) / 3)
                killed = crawl.kill_worker_that_holds(site, workers)
                wait_until(lambda: site.fetched.total() > len(expected) / 2)
                tracker.kill()
                time.sleep(1)
                tracker.start()
            report = crawl.report()
        finally:
            tracker.stop()
        pages, (twice, unexplained) = site.pages(), refetched(site, crawl.read_records(), killed)
    equal = pages == expected and report["done"] == len(expected)
    print_row(
        "with a worker and the tracker killed" if disturb else "undisturbed",
        len(pages),
        report["seconds"],
        report["pages_per_second"],
        "equal" if equal else "DIFFERENT",
        twice,
        unexplained,
        len(report["broken_pages"]),
    )
    for path in sorted(pages ^ expected)[:10]:
        print(f"    only in {'the crawl' if path in pages else 'the walk'}: {path}")
    return equal and not unexplained


class PoliteHandler(http.server.BaseHTTPRequestHandler):
    """Answers with generated pages, and notes when each request came and was answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, host: Host, *args):
        self.host = host
        super().__init__(*args)

    def do_GET(self) -> None:
        began = time.monotonic()
        status, headers, body = self.host.answer(self.path, began)
        self.host.visits.append((began, time.monotonic(), self.path, status))
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_message) -> None:
        pass


class Host(http.server.ThreadingHTTPServer):
    """One of several hosts, with pages of which each links to two more. kind: plain, slow, banning or dead."""

    SLOWNESS, MOST_SLOWNESS, BAN = 0.4, 8.0, 5.0  # seconds
    BANS_AFTER = 10  # requests

    def __init__(self, number: int, pages: int, kind: str):
        super().__init__((f"127.0.0.{number}", 0), functools.partial(PoliteHandler, self))
        self.kind, self.pages = kind, pages
        self.url = f"http://127.0.0.{number}:{self.server_port}/"
        self.visits: list[tuple[float, float, str, int]] = []
        self.banned_until = 0.0
        self.ahead: list[Host] = []  # those that are to be quicker
        if kind == "dead":
            self.server_close()

    def answer(self, path: str, now: float) -> tuple[int, dict, bytes]:
        if path == "/robots.txt":
            return 404, {}, b""
        if self.kind == "slow":
            time.sleep(self.SLOWNESS)
            self.let_others_go_ahead()
        if self.kind == "banning" and len(self.visits) == self.BANS_AFTER:
            self.banned_until = now + self.BAN
        if now < self.banned_until:
            return 429, {"Retry-After": f"{self.BAN:.0f}"}, b""
        page = int(path[1:])
        links = [target for target in (2 * page + 1, 2 * page + 2, 0) if target < self.pages]
        return 200, {}, "".join(f"<a href={target}>{target}</a>" for target in links).encode()

    def let_others_go_ahead(self) -> None:
        """Wait for two more pages of each, and not for ever: slower than they it is on a machine that is busy, too."""
        total = sum(host.pages for host in self.ahead)
        goal = min(self.visits_ahead() + 2 * len(self.ahead), total)
        ends = time.monotonic() + self.MOST_SLOWNESS
        while self.visits_ahead() < goal and time.monotonic() < ends:
            time.sleep(0.01)

    def visits_ahead(self) -> int:
        return sum(len(host.visits) for host in self.ahead)

    def serve(self) -> None:
        if self.kind != "dead":
            threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        if self.kind != "dead":
            self.shutdown()
            self.server_close()

    def handle_error(self, *_request) -> None:
        """As a site's."""

    def faults(self, pause: float) -> list[str]:
        """What is wrong with the visits."""
        found, visits = [], sorted(self.visits)
        for (_, answered, path, _), (began, _, after, _) in itertools.pairwise(visits):
            if began < answered + pause:
                kind = "while another was answered" if began < answered else f"{began - answered:.3f} s after another"
                found.append(f"{self.url}: {after} was asked for {kind}, {path}")
        banned = sum(status == 429 for *_, status in visits)
        if banned != (self.kind == "banning"):
            found.append(f"{self.url}: {banned} requests were answered 429")
        fetched = collections.Counter(path for *_, path, status in visits if status == 200)
        expected = {f"/{page}" for page in range(self.pages)} if self.kind != "dead" else set()
        if set(fetched) != expected:
            found.append(f"{self.url}: {len(fetched)} pages of {len(expected)}")
        if twice := [path for path, count in fetched.items() if count > 1]:
            found.append(f"{self.url}: fetched more than once: {twice[:10]}")
        return found


class Memory(threading.Thread):
    """Looks now and then how much memory a crew and its tracker take, and how far the crawl is (on Linux)."""

    def __init__(self, tracker: TrackerProcess, crawl: CrawlProcess, sites: list[Host]):
        super().__init__(daemon=True)
        self.tracker, self.crawl, self.sites = tracker, crawl, sites
        self.seen: list[tuple[int, int, int]] = []  # visits, and bytes of the crew and of the tracker

    def run(self) -> None:
        while self.crawl.process.poll() is None and Path("/proc/self/statm").exists():
            crew = [self.crawl.process.pid, *children(self.crawl.process.pid)]
            visits = sum(len(site.visits) for site in self.sites)
            self.seen.append((visits, sum(map(resident, crew)), resident(self.tracker.process.pid)))
            time.sleep(2)

    def growth(self) -> str:
        """From when half of the visits were made up to the end of the last: what is left of the crew then is less."""
        last = next((number for number, (visits, *_) in enumerate(self.seen) if visits == self.seen[-1][0]), 0)
        half = next((number for number, (visits, *_) in enumerate(self.seen) if visits > self.seen[-1][0] / 2), last)
        told = []
        for name, column in (("crew", 1), ("tracker", 2)):
            before, after = (self.seen[number][column] / 2**20 if self.seen else 0 for number in (half, last))
            told.append(f"{name} {before:.0f} to {after:.0f} MiB ({after / before - 1 if before else 0:+.1%})")
        return f"memory in the second half: {', '.join(told)}"


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def resident(pid: int) -> int:
    """Bytes of memory that a process takes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def prove_hosts(hosts: int, pages: int, workers: int, rate: float, directory: Path, patience: float = 20) -> list[str]:
    """What is wrong with a crawl of that many hosts. Its figures go to standard output."""
    kinds = ["dead", "slow", "banning"] + ["plain"] * (hosts - 3)
    sites = [Host(number, pages, kind) for number, kind in enumerate(kinds, 2)]
    plain = [site for site in sites if site.kind == "plain"]
    slow = next(site for site in sites if site.kind == "slow")
    slow.ahead = plain
    tracker = TrackerProcess(directory)
    try:
        for site in sites:
            site.serve()
        options = ["--workers", str(workers), "--rate", str(rate), "--host-patience", str(patience)]
        seeds = directory / "seeds"
        seeds.write_text("\n".join(f"{site.url}0" for site in sites))
        crawl = CrawlProcess(f"--seeds={seeds}", tracker.url, directory, *options)
        memory = Memory(tracker, crawl, sites)
        memory.start()
        report = crawl.report()
    finally:
        tracker.stop()
        for site in sites:
            site.close()
    faults = [fault for site in sites for fault in site.faults(1 / rate)]
    ends = {site.url: max(answered for _, answered, *_ in site.visits) for site in plain}
    left = sum(began > max(ends.values()) for began, *_ in slow.visits)
    if left < pages / 10:
        faults.append(f"the others have waited for the slow host, which had {left} pages left when they were done")
    dead = [page for page in report["failed_pages"] if page["url"].startswith(sites[0].url)]
    if len(dead) != 1 or report["failed"] != 1:
        faults.append(f"{len(dead)} pages of the dead host have failed, and {report['failed']} of all")
    begin = min(began for site in sites for began, *_ in site.visits)
    print(f"{hosts} hosts of {pages} pages, {workers} workers, {1 / rate:g} s between two pages of a host:")
    print(f"  {report['done']} pages in {report['seconds']} s; the plain hosts were done after")
    print(
        f"  {min(ends.values()) - begin:.1f} to {max(ends.values()) - begin:.1f} s, when the slow had {left} pages left"
    )
    print(f"  {memory.growth()}")
    for fault in faults[:20]:
        print(f"  WRONG: {fault}")
    return faults


def print_row(name: str, *figures) -> None:
    print(f"{name:38}", *(f"{figure:>11}" for figure in figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, nargs="?", help="a tree of HTML files with an index.html")
    parser.add_argument("--workers", type=int, default=4, help="of the crawler (default: %(default)s)")
    parser.add_argument("--hosts", type=int, help="crawl so many hosts instead, 4 or more")
    parser.add_argument("--pages", type=int, default=500, help="of each (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=20, help="pages per second of each, at most (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.hosts:
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(1 if prove_hosts(args.hosts, args.pages, args.workers, args.rate, Path(scratch)) else 0)
    if not args.directory:
        parser.error("name a directory, or --hosts")
    walks = {}
    for name, visit in {"html.parser": walk, "wget": walk_with_wget}.items():
        if name != "wget" or shutil.which("wget"):
            with Site(args.directory) as site:
                visit(site.url)
                walks[name] = site.pages()
    expected = walks["html.parser"]
    print(f"{args.directory}, {args.workers} workers; independent walks: {', '.join(walks)}")
    same = all(pages == expected for pages in walks.values())
    if not same:
        print(f"The walks differ: {sorted(walks['wget'] ^ expected)[:10]}")
    print_row("crawl", "pages", "seconds", "pages/s", "sets", "refetched", "unexplained", "broken")
    results = [prove(args.directory, args.workers, disturb, expected) for disturb in (False, True)]
    sys.exit(0 if same and all(results) else 1)


if __name__ == "__main__":
    main()
