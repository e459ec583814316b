"""The crawler of examples/: how it reads links, and whole crawls of a generated site by real processes."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import httpx
import nursery
import pytest

import tracker
import worker as library
from examples import crawl, prove_crawl

PASSWORD = "correct horse"
PAGES = 48  # in the tree; with the special ones below the site has about 60


# ── A site with everything that is awkward ────────────────────────────────────────────────────────────────────────────

HTML = {"Content-Type": "text/html; charset=utf-8"}
SPECIAL = {  # path: status, headers, body; what only a program can answer
    "/robots.txt": (200, {}, "User-agent: *\nDisallow: /site/private/\nDisallow: /site/*.zip$\n"),
    "/site/broken.html": (500, HTML, "broken"),
    "/site/moved.html": (301, {"Location": "p7.html#there"}, ""),
    "/site/moved-away.html": (302, {"Location": "http://127.0.0.1:1/elsewhere.html"}, ""),
    "/site/moved-out.html": (302, {"Location": "/outside.html"}, ""),
    "/site/data.txt": (200, {"Content-Type": "text/plain"}, '<a href="only-in-text.html">not a link</a>'),
    "/site/big.html": (200, HTML, "<a href=p1.html>" + 300_000 * " " + "<a href=behind-the-limit.html>"),
    "/site/latin.html": (200, {"Content-Type": "text/html; charset=iso-8859-1"}, '<a href="caf\xe9.html">'),
    "/site/~user.html": (200, HTML, "home"),
}
SPECIAL_LINKS = """
    <a href="missing.html">gone</a> <a href="broken.html">5xx</a> <a href="flaky.html">5xx once</a>
    <a href="moved.html">on the site</a> <a href="moved-away.html">off the site</a> <a href="moved-out.html">out</a>
    <a href="data.txt">text</a> <a href="big.html">big</a> <a href="slow.html">slow</a> <a href="silent.html">never</a>
    <a href="latin.html">latin</a> <a href="%7Euser.html">home</a> <a href="~user.html">home again</a>
    <a href="private/x.html">forbidden</a> <a href="all.zip">forbidden</a> <a href="../outside.html">above</a>
    <a href="mailto:somebody@example.org">mail</a> <a href="http://127.0.0.1:1/">elsewhere</a>
    <area href="area.html"> <iframe src="frame.html"></iframe> <!-- <a href="commented-out.html"> -->
"""


class AwkwardHandler(prove_crawl.RecordingHandler):
    def send_head(self):
        if self.path == "/site/silent.html":
            self.site.go_on.wait(30)
        if self.path == "/site/slow.html":
            time.sleep(0.5)
        if self.path == "/site/flaky.html" and self.site.fetched[self.path] == 1:
            return self.answer(503, HTML, "later")
        if unquote(self.path) in SPECIAL:
            return self.answer(*SPECIAL[unquote(self.path)])
        return super().send_head()

    def answer(self, status, headers, body):
        data = body.encode("iso-8859-1")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def write_site(directory, pages=PAGES, links=""):
    """A tree of pages in a ring, so full of cycles, whose links are spelled in every way that means the same."""
    folder = directory / "site"
    folder.mkdir(parents=True)
    spellings = ("p{}.html", "./p{}.html#part", "../site/p{}.html", "/site/x/../p{}.html", "p{}.html?", "%70{}.html")
    for page in range(pages):
        targets = {2 * page + 1, 2 * page + 2, page - 1, page + 1, 0}
        hrefs = [spellings[(page + target) % 6].format(target) for target in targets if 0 <= target < pages]
        text = "".join(f'<p><a href="{href}">{href}</a></p>' for href in hrefs)
        (folder / f"p{page}.html").write_text(f"<html><body>{text}<a href='index.html'>top</a></body></html>")
    (folder / "index.html").write_text(f"<a href='p0.html'>start</a> {links}")
    for name in ("flaky", "slow", "silent", "area", "frame", "café"):
        (folder / f"{name}.html").write_text(f"<a href='index.html#{name}'>top</a>")
    (directory / "outside.html").write_text("above the seed's directory")
    return directory


@pytest.fixture
def site(tmp_path):
    """A plain site of PAGES pages and an index."""
    with prove_crawl.Site(write_site(tmp_path / "www"), AwkwardHandler) as site:
        yield site


@pytest.fixture
def server():
    with tracker.serving() as url:
        yield url


# ── Running a crawl ───────────────────────────────────────────────────────────────────────────────────────────────────


def start_crawl(site, server, directory, *options, password=True, seeds=("site/index.html",)):
    """Start crawl.py on the site without a limit of its rate, and with short times."""
    arguments = [*(f"{site.url}{seed}" for seed in seeds), "--server", server, "--workers", "2"]
    arguments += ["--rate", "0", "--scope", "prefix", "--timeout", "2", "--max-assign-time", "6", "--max-retries", "2"]
    arguments += ["--state", directory / "state", "--report", directory / "report.json"]
    arguments += ["--manager", "boss", "--register", *options]
    environment = {name: value for name, value in os.environ.items() if name != "TRACKER_PASSWORD"}
    if password:
        environment["TRACKER_PASSWORD"] = PASSWORD
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return nursery.start(Path(crawl.__file__), arguments, directory, environment, **pipes)


def run_crawl(site, server, directory, *options, password=True, **seeds):
    """Exit code, standard output and standard error of a whole run."""
    process = start_crawl(site, server, directory, *options, password=password, **seeds)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def read_records(directory):
    return [json.loads(line) for line in (directory / "state" / "pages.jsonl").read_text().splitlines()]


def read_report(directory):
    return json.loads((directory / "report.json").read_text())


def get_project(server):
    return httpx.get(f"{server}/project/list").json()["content"]["projects"][0]


def register(manager):
    manager.post("/register", json={"username": "boss", "password": PASSWORD}).raise_for_status()


def read_logs(server):
    """The messages of the tracker's warnings and errors."""
    with httpx.Client(base_url=server) as manager:
        manager.post("/login", json={"username": "boss", "password": PASSWORD}).raise_for_status()
        logs = manager.get("/logs", params={"max_level": 4}).json()["content"]["logs"]
    return [entry["message"] for entry in logs]


@pytest.fixture(scope="module")
def crawled(tmp_path_factory):
    """One whole crawl of the awkward site; the tests that follow look at what it left, and change nothing."""
    directory = tmp_path_factory.mktemp("crawled")
    www = write_site(directory / "www", links=SPECIAL_LINKS)
    options = ["--timeout", "1", "--max-assign-time", "3", "--max-body", "200000"]
    with prove_crawl.Site(www, AwkwardHandler) as site, tracker.serving() as server:
        code, output, errors = run_crawl(site, server, directory, *options)
        assert code == 0, errors
        yield {
            "site": site,
            "www": www,
            "fetched": dict(site.fetched),
            "output": output,
            "state": directory / "state",
            "report": read_report(directory),
            "records": {record["url"].removeprefix(site.url): record for record in read_records(directory)},
            "project": get_project(server),
            "logs": read_logs(server),
        }


def fetches(crawled, name):
    return crawled["fetched"].get(f"/site/{name}", 0)


# ── What one crawl leaves ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_pages_fetched_are_those_of_an_independent_walk(crawled):
    with prove_crawl.Site(crawled["www"], AwkwardHandler) as site:
        site.go_on.set()
        prove_crawl.walk(f"{site.url}site/index.html")
        expected = site.pages() - {
            "/outside.html",
            "/site/private/x.html",
            "/site/all.zip",
            "/site/behind-the-limit.html",
        }
    assert len(expected) > PAGES
    assert set(crawled["fetched"]) == expected


def test_each_page_is_fetched_once_except_those_that_are_retried(crawled):
    again = {path: count for path, count in crawled["fetched"].items() if count != 1}
    assert again == {"/site/broken.html": 2, "/site/flaky.html": 2, "/site/silent.html": 2}


def test_a_broken_link_is_reported_with_the_page_that_it_was_found_on(crawled):
    site = crawled["site"]
    broken = {page["url"]: (page["status"], page["found_on"]) for page in crawled["report"]["broken_pages"]}
    assert broken == {f"{site.url}site/missing.html": (404, f"{site.url}site/index.html")}
    assert f"broken: 404 {site.url}site/missing.html (found on {site.url}site/index.html)" in crawled["output"]


def test_what_is_broken_is_logged_to_the_tracker(crawled):
    site = crawled["site"]
    found_on = f"(found on {site.url}site/index.html)"
    assert f"broken: 404 {site.url}site/missing.html {found_on}" in crawled["logs"]
    assert crawled["logs"].count(f"failed: 500 {site.url}site/broken.html {found_on}") == 2


def test_a_page_that_keeps_answering_5xx_has_failed_after_max_retries(crawled):
    failed = {page["url"].rpartition("/")[2]: page["status"] for page in crawled["report"]["failed_pages"]}
    assert failed["broken.html"] == 500
    assert crawled["project"]["failed_task_count"] == crawled["report"]["failed"] == 2


def test_a_page_that_does_not_answer_in_time_has_failed(crawled):
    failed = {page["url"].rpartition("/")[2]: page["error"] for page in crawled["report"]["failed_pages"]}
    assert failed["silent.html"].startswith("ReadTimeout")


def test_a_page_that_failed_once_is_retried_and_then_fine(crawled):
    assert crawled["records"]["site/flaky.html"]["outcome"] == "ok"
    assert "flaky" not in crawled["output"]


def test_a_redirect_on_the_site_is_a_link_and_its_target_is_fetched_once(crawled):
    assert crawled["records"]["site/moved.html"]["status"] == 301
    assert fetches(crawled, "p7.html") == 1


def test_a_redirect_off_the_site_is_done_and_not_followed(crawled):
    assert crawled["records"]["site/moved-away.html"]["outcome"] == "ok"
    assert not any(url.startswith("http://127.0.0.1:1/") for url in crawled["records"])


def test_nothing_above_the_directory_of_the_seed_is_fetched(crawled):
    assert "/outside.html" not in crawled["fetched"]


def test_what_is_not_html_is_fetched_but_not_read_for_links(crawled):
    record = crawled["records"]["site/data.txt"]
    assert (record["type"], record["links"], fetches(crawled, "only-in-text.html")) == ("text/plain", 0, 0)


def test_a_body_over_the_limit_is_cut_off_and_read_up_to_there(crawled):
    record = crawled["records"]["site/big.html"]
    assert (record["truncated"], record["links"], record["size"]) == (True, 1, 200_000)
    assert fetches(crawled, "behind-the-limit.html") == 0


def test_robots_txt_is_obeyed_with_its_wildcards(crawled):
    assert fetches(crawled, "private/x.html") == fetches(crawled, "all.zip") == 0


def test_the_text_of_a_page_is_read_in_its_own_charset(crawled):
    assert crawled["records"]["site/caf%C3%A9.html"]["outcome"] == "ok"


def test_the_project_keeps_hashes_and_counts_every_page(crawled):
    project, report = crawled["project"], crawled["report"]
    assert project["keep_hashes"]
    assert project["closed_task_count"] == report["done"] == report["pages"] == len(crawled["fetched"]) - 2


def test_only_the_owner_can_read_the_credentials(crawled):
    assert stat.S_IMODE((crawled["state"] / "state.json").stat().st_mode) == 0o600


# ── Going on after an interruption ────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_crawl_started_again_needs_no_password_and_fetches_nothing(site, server, tmp_path):
    assert run_crawl(site, server, tmp_path)[0] == 0
    before = site.fetched.total()
    code, _, errors = run_crawl(site, server, tmp_path, password=False)
    assert code == 0, errors
    assert (site.fetched.total(), read_report(tmp_path)["pages"]) == (before, 0)


def test_ctrl_c_finishes_the_pages_in_hand_and_the_next_start_does_the_rest(site, server, tmp_path):
    first = start_crawl(site, server, tmp_path, "--workers", "1")
    prove_crawl.wait_until(lambda: site.fetched.total() > 10)
    site.hold_next()
    first.send_signal(signal.SIGINT)
    while "Stopping" not in first.stderr.readline():
        pass
    site.go_on.set()
    output, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert "Interrupted" in output
    assert len(read_records(tmp_path)) == site.fetched.total() < PAGES + 1
    assert run_crawl(site, server, tmp_path, "--workers", "1", password=False)[0] == 0
    assert set(site.fetched.values()) == {1}
    assert len(site.fetched) == PAGES + 1


def test_a_killed_worker_and_a_killed_tracker_cost_no_page(tmp_path):
    pages = 6 * PAGES  # enough to be still busy when the last worker has begun
    options = ["--workers", "2", "--timeout", "5", "--max-assign-time", "15"]
    with prove_crawl.Site(write_site(tmp_path / "www", pages)) as site:
        process = prove_crawl.TrackerProcess(tmp_path)
        try:
            crawling = prove_crawl.CrawlProcess(f"{site.url}site/index.html", process.url, tmp_path, *options)
            killed = crawling.kill_worker_that_holds(site, workers=2)
            process.kill()
            process.start()
            report = crawling.report()
        finally:
            process.stop()
    assert len(site.fetched) == report["done"] == pages + 1
    assert site.fetched[site.held] == 2, "the page in the hands of the killed worker was done again"
    assert prove_crawl.refetched(site, crawling.read_records(), killed) == (1, 0)


def test_more_workers_can_be_added_to_a_crawl(site, server, tmp_path):
    assert run_crawl(site, server, tmp_path)[0] == 0
    code, _, errors = run_crawl(site, server, tmp_path, "--workers", "3")
    assert code == 0, errors
    assert len(json.loads((tmp_path / "state" / "state.json").read_text())["workers"]) == 3


# ── One worker and its tracker ────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def working(url, folder, robots="", **settings):
    """A worker in this process, whose calls to the tracker are kept in `calls` and all answered with nothing.

    It knows the robots.txt of the site at the URL, below which everything is the crawl's.
    """
    scope = crawl.Scope.around("prefix", [settings.pop("scope", url)], **settings.pop("patterns", {}))
    known = {"server": "http://127.0.0.1:1", "project": 1, "name": "crawl", "scope": scope, "user_agent": "tests"}
    limits = {"timeout": 9, "max_body": 10**6, "max_assign_time": 6, "max_retries": 2}
    told = crawl.Crawl(**known | limits | {"records": folder / "pages.jsonl"} | settings)
    with contextlib.closing(crawl.Worker(told, library.Worker(1, "one", "secret"))) as worker:
        worker.hosts.keep_robots(crawl.origin_of(url), robots)
        worker.calls = []

        def call(method, path, body=None, **_how):
            worker.calls.append((path, body))
            return library.Answer({}, 0, False)

        worker.tracker.client.call = call
        worker.tracker._finishing = lambda do: do(worker.tracker.client)
        yield worker


def give(worker, url, **content):
    """Have the worker do a task, and tell how it releases it."""
    recipe = {"recipe": json.dumps({"url": url, "found_on": ""})} if url else {}
    task = library.TakenTask(worker.tracker, library.Assignment({"id": 7, **recipe, **content}), 60)
    worker.tracker._held[task] = None
    with task:
        worker.do(task)
    path, released = worker.calls[-1]
    assert path == "/task/release"
    return released


@pytest.fixture
def worker(site, tmp_path):
    with working(site.url, tmp_path) as worker:
        yield worker


def test_the_links_of_a_page_are_submitted_before_it_is_released(worker, site):
    give(worker, f"{site.url}site/index.html")
    (first, submitted), (second, released) = worker.calls
    assert (first, second) == ("/task/bulk_submit", "/task/release")
    assert [request["unique_string"] for request in submitted["requests"]] == [f"{site.url}site/p0.html"]
    assert released == {"task_id": 7, "result": library.DONE}


def test_a_page_that_nobody_can_make_sense_of_is_released_as_failed(worker):
    assert give(worker, "", recipe="no JSON")["result"] == library.FAILED
    assert "/task/log" in [path for path, _ in worker.calls]


def test_a_seed_that_redirects_out_of_the_crawl_is_reported_as_broken(worker, site):
    page = worker.crawl_page(f"{site.url}site/moved-away.html", found_on="")
    assert page.outcome == "broken"
    assert "to http://127.0.0.1:1/elsewhere.html" in page.error


# ── What it refuses ───────────────────────────────────────────────────────────────────────────────────────────────────


def refusal(site, server, directory, *options, password=True):
    """The message of a crawl that must not begin."""
    code, _, errors = run_crawl(site, server, directory, *options, password=password)
    assert code not in (0, 130)
    assert "Traceback" not in errors
    assert not site.fetched
    return errors


def test_a_tracker_that_is_not_there_is_named(site, tmp_path):
    assert "no answer from http://127.0.0.1:1" in refusal(site, "http://127.0.0.1:1", tmp_path)


def test_a_server_that_is_no_tracker_is_named(site, tmp_path):
    with prove_crawl.Site(tmp_path) as other:
        assert f"no answer from {other.url[:-1]}: status 501" in refusal(site, other.url, tmp_path)


def test_a_first_start_without_a_password_says_how_to_give_it(site, server, tmp_path):
    assert "TRACKER_PASSWORD" in refusal(site, server, tmp_path, password=False)


def test_a_wrong_password_is_refused_with_the_reason(site, server, tmp_path):
    with httpx.Client(base_url=server) as manager:
        register(manager)
    (tmp_path / "password").write_text("not the right one")
    errors = refusal(site, server, tmp_path, "--password-file", tmp_path / "password")
    assert "Manager boss cannot log in" in errors


def test_a_project_that_forgets_closed_tasks_is_refused(site, server, tmp_path):
    with httpx.Client(base_url=server) as manager:
        register(manager)
        manager.post("/project/create", json={"name": "forgetful"}).raise_for_status()
    assert "without keep_hashes" in refusal(site, server, tmp_path, "--project", "forgetful")


def test_the_state_of_another_crawl_is_refused(site, server, tmp_path):
    assert run_crawl(site, server, tmp_path)[0] == 0
    site.fetched.clear()
    assert "Choose another --project (and --state)" in refusal(site, server, tmp_path, "--scope", "host")


def test_a_state_file_that_is_none_is_refused(site, server, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text("[]")
    assert "cannot be read as the state of a crawl" in refusal(site, server, tmp_path)


def test_a_tracker_that_does_not_know_the_crawl_begun_elsewhere_is_refused(site, server, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "pages.jsonl").write_text("")
    assert "a crawl that this tracker does not know" in refusal(site, server, tmp_path)


def test_a_seed_that_robots_txt_forbids_is_refused(site, server, tmp_path):
    site.url += "site/private/"
    code, output, _ = run_crawl(site, server, tmp_path)
    assert (code, site.fetched.total()) == (1, 0)
    assert "The seed is left out: forbidden by robots.txt" in output


WRONG_WORDS = ["http://h/ --workers x", "", "http://h/ --rate -1", "report", "report x y"]
WRONG_WORDS += [f"http://127.0.0.1/ {one}" for one in ("--report .", "--max-depth -1", "--max-retries 32768")]
WRONG_WORDS += ["http://127.0.0.1/ --max-assign-time 2147483648", "http://127.0.0.1/ --workers 1001"]
WRONG_WORDS += [f"http://127.0.0.1/ --{name} {10**20}" for name in ("max-body", "max-variants")]


@pytest.mark.parametrize("words", WRONG_WORDS)
def test_what_is_wrong_with_a_command_is_told_in_a_line(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["crawl.py", *words.split()])
    monkeypatch.setattr(crawl, "run", lambda _args: 0)
    with pytest.raises(SystemExit) as end:
        crawl.main()
    told = capsys.readouterr().err
    command = "crawl.py report" if words.startswith("report") else "crawl.py"
    assert end.value.code == 2
    assert told.startswith(f"{command}: ") and told.endswith(f" (all options: {command} --help)\n")
    assert told.count("\n") == 1


def test_a_lease_too_short_for_slow_pages_is_refused(site, server, tmp_path):
    assert "at least 3 times --timeout" in refusal(site, server, tmp_path, "--max-assign-time", "5")


# ── Links ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("link", "normal"),
    [
        ("HTTP://Example.ORG", "http://example.org/"),
        ("http://example.org:80/a", "http://example.org/a"),
        ("https://example.org:443/a", "https://example.org/a"),
        ("http://example.org:8080/a", "http://example.org:8080/a"),
        ("http://somebody:secret@example.org/a", "http://example.org/a"),
        ("b.html#part", "http://example.org/docs/b.html"),
        ("#part", "http://example.org/docs/a.html"),
        ("?page=2", "http://example.org/docs/a.html?page=2"),
        ("../x/./y/../z.html", "http://example.org/x/z.html"),
        ("../../../z.html", "http://example.org/z.html"),
        ("//example.org/z", "http://example.org/z"),
        (" \n z\n.html ", "http://example.org/docs/z.html"),
        ("%7euser/%2e%2e/%c3%a9", "http://example.org/docs/%C3%A9"),
        ("caf\u00e9 1.html", "http://example.org/docs/caf%C3%A9%201.html"),
        ("100%.html", "http://example.org/docs/100%25.html"),
        ("a%2Fb?q=a%26b", "http://example.org/docs/a%2Fb?q=a%26b"),
        ("http://b\u00fccher.example/", "http://xn--bcher-kva.example/"),
    ],
)
def test_every_spelling_of_a_url_becomes_the_same_one(link, normal):
    assert crawl.unique(crawl.normalise(link, "http://example.org/docs/a.html")) == normal
    assert crawl.unique(crawl.normalise(normal)) == normal


@pytest.mark.parametrize(
    "link",
    ["mailto:a@example.org", "javascript:x()", "http://h:x/", "http://", "http://\ud800/", "http://a b/"],
)
def test_what_cannot_be_fetched_is_no_link(link):
    assert crawl.normalise(link, "http://example.org/") is None


def test_links_are_resolved_against_the_base_of_the_page():
    html = b'<base href="/other/"><a href="x.html">x</a>'
    assert crawl.find_links(html, "http://example.org/docs/") == ["http://example.org/other/x.html"]


def test_a_link_is_found_once_however_often_and_differently_it_is_spelled():
    html = b'<a href="x.html">1</a> <A HREF=./x.html#2>2</A> <area href="/%78.html">'
    assert crawl.find_links(html, "http://example.org/") == ["http://example.org/x.html"]


@pytest.mark.parametrize("element", ["title", "textarea", "script", "style"])
def test_what_only_looks_like_a_link_in_text_is_none(element):
    html = f"<{element}><a href=no.html></{element}><!-- <a href=no.html> --><a href=yes.html>".encode()
    assert crawl.find_links(html, "http://example.org/") == ["http://example.org/yes.html"]


@pytest.mark.parametrize("filler", ["<div>", "<", "<a ", "<!--x-->", "&", "<table><tr><td>", "<p><b>", "x=1 "])
def test_a_page_of_two_hundred_thousand_odd_pieces_is_read_to_its_end(filler):
    html = f"<a href=first.html>{filler * 200_000}<a href=last.html>".encode()
    assert crawl.find_links(html, "http://example.org/")[-1] == "http://example.org/last.html"


@pytest.mark.parametrize("html", [b"", b"\0", b"text", b"<", b"<a href", b"\xff\xfe<"])
def test_a_page_without_links_has_none(html):
    assert crawl.find_links(html, "http://example.org/") == []


@pytest.mark.parametrize(
    ("html", "charset"),
    [
        (b"<a href='caf\xe9'>", "iso-8859-1"),
        (b"<meta charset=iso-8859-1><a href='caf\xe9'>", None),
        (b"<a href='caf\xe9'>", None),
        (b"<meta charset=iso-8859-1><a href='caf\xc3\xa9'>", "utf-8"),
        (b"<meta charset=utf-8><a href='caf\xc3\xa9'>", "x-unheard-of"),
    ],
)
def test_links_are_read_in_the_charset_of_the_header_or_else_of_the_page(html, charset):
    assert crawl.find_links(html, "http://example.org/", charset) == ["http://example.org/caf%C3%A9"]
