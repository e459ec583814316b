"""Pictures of every page of the manager UI: light and dark, narrow and wide.

    python docs/screenshots.py [FOLDER]

starts a tracker of its own on a temporary database with a believable week in it (example_week.py), and another one that
is empty, and writes one PNG of the whole page for each page, theme and width: overview-dark-360.png. It needs
Playwright (pip install playwright) and a Chromium: the one that the variable CHROMIUM names, or an installed one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import example_week

import tracker

THEMES = ("light", "dark")
WIDTHS = (360, 1280)
TALLEST = 16_000  # pixels of a page that are pictured: more is not drawn in time
WIDEST = 2560  # for the pages with the most on them
# The first two have no window to draw, and take half the processor time of those that have one and hide it.
SHELLS = ("chromium-headless-shell", "chrome-headless-shell")
CHROMIUM = (*SHELLS, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    # The first two are pages of their own in each window. The others: what Playwright says in this same option.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,HttpsUpgrades,MediaRouter,OptimizationHints,PaintHolding",
)


def find_chromium() -> str | None:
    """The browser's program: what the variable CHROMIUM names, or the first one that is installed."""
    return next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM") or "", *CHROMIUM))), None)


def launch(playwright, chromium: str):
    """A browser without a window, that talks to nobody but the pages it is sent to."""
    return playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))


def begin_session(page, url: str, username: str) -> None:
    """Logs a manager of the week in, in the page's context."""
    account = {"username": username, "password": example_week.PASSWORD}
    answer = page.context.request.post(f"{url}/login", data=account)
    assert answer.ok, answer.text()


class View(NamedTuple):
    """A page to look at: under which name, where, as whom (empty: not logged in), after doing what on it."""

    name: str
    path: str
    who: str = "alice"
    act: Callable | None = None
    widest: bool = False


def send(form: str, **fields: str) -> Callable:
    """Fills in a form (its selector) and sends it."""

    def act(page) -> None:
        for name, value in fields.items():
            page.locator(f"{form} [name={name}]:not([type=hidden])").fill(value)
        page.locator(f"{form} button").last.click()

    return act


def press(button: str) -> Callable:
    """Presses a button by its label, and waits for the page that follows."""
    return lambda page: page.get_by_role("button", name=button, exact=True).first.click()


def renew_key(page) -> None:
    press("New key")(page)
    press("Make a new key")(page)


def renew_secret(page) -> None:
    press("New secret")(page)
    press("New secret")(page)


def act_on_all(page) -> None:
    page.locator("#f-which").select_option("all")
    page.get_by_role("button", name="Retry", exact=True).click()


def run_without_values(page) -> None:
    """As a browser that does not look for what is required."""
    page.locator("#run").evaluate("(form) => { form.noValidate = true; }")
    page.get_by_role("button", name="Run", exact=True).click()


def show_details(page) -> None:
    for summary in page.locator("summary").all():
        summary.click()


# {names} stand for what is in the week. Views that change something come last.
VIEWS = [
    View("overview", "/ui/", widest=True),
    View("overview-guest", "/ui/", ""),
    View("overview-search", "/ui/?text=nothing+like+this"),
    View("project", "/ui/projects/{wiki}", widest=True),
    View("project-hour", "/ui/projects/{wiki}?range=1h"),
    View("project-week", "/ui/projects/{wiki}?range=7d"),
    View("project-reader", "/ui/projects/{wiki}", "maximiliane.long"),
    View("project-guest", "/ui/projects/{news}", ""),
    View("project-for-volunteers", "/ui/projects/{news}/crowd", ""),
    View("project-paused", "/ui/projects/{forum}", "bob"),
    View("project-done", "/ui/projects/{catalogue}?range=all"),
    View("project-empty", "/ui/projects/{empty}"),
    View("project-long-name", "/ui/projects/{parliaments}", act=show_details),
    View("new-project", "/ui/projects/new"),
    View("project-settings", "/ui/projects/{wiki}/edit", act=show_details),
    View(
        "project-settings-refused", "/ui/projects/{wiki}/edit", act=send("form[action$='/edit']", name="forum-images")
    ),
    View("tasks-waiting", "/ui/projects/{wiki}/tasks", widest=True),
    View("tasks-assigned", "/ui/projects/{wiki}/tasks?state=assigned"),
    View("tasks-failed", "/ui/projects/{wiki}/tasks?state=failed", "bob"),
    View("tasks-found", "/ui/projects/{parliaments}/tasks?text=viaduct&priority=0"),
    View("tasks-none", "/ui/projects/{catalogue}/tasks?state=assigned"),
    View("tasks-refused", "/ui/projects/{wiki}/tasks?state=failed", act=press("Retry")),
    View("tasks-confirm", "/ui/projects/{wiki}/tasks?state=failed&text=https", act=act_on_all),
    View("task-waiting", "/ui/tasks/{task_waiting}"),
    View("task-assigned", "/ui/tasks/{task_assigned}"),
    View("task-awaiting", "/ui/tasks/{task_awaiting}"),
    View("task-failed", "/ui/tasks/{task_failed}"),
    View("task-closed", "/ui/tasks/{task_closed}"),
    View("submit", "/ui/projects/{wiki}/submit"),
    View("submit-refused", "/ui/projects/{wiki}/submit", act=send("form[enctype]", lines="", priority="3")),
    View("templates", "/ui/projects/{website}/templates"),
    View("templates-none", "/ui/projects/{empty}/templates"),
    View("template", "/ui/templates/{template_deploy}"),
    View("template-arguments", "/ui/templates/{template_check}", act=show_details),
    View("template-run-refused", "/ui/templates/{template_report}", act=run_without_values),
    View("new-template", "/ui/projects/{website}/templates/new", act=show_details),
    View("template-settings", "/ui/templates/{template_check}/edit"),
    View(
        "template-settings-refused",
        "/ui/templates/{template_deploy}/edit",
        act=send("main form.form", runas="bash", name="check all links"),
    ),
    View("template-delete", "/ui/templates/{template_check}", act=press("Delete")),
    View("jobs", "/ui/projects/{website}/jobs", widest=True),
    View("jobs-of-all-projects", "/ui/jobs"),
    View("jobs-found", "/ui/projects/{website}/jobs?state=failed&template={template_check}&from=2026-06-01T00:00"),
    View("jobs-none", "/ui/projects/{empty}/jobs"),
    View("job-succeeded", "/ui/jobs/{job_succeeded}", act=show_details, widest=True),
    View("job-assigned", "/ui/jobs/{job_assigned}"),
    View("job-failed", "/ui/jobs/{job_failed}"),
    View("job-waiting", "/ui/jobs/{job_waiting}"),
    View("workflow-run", "/ui/jobs/{job_run}"),
    View("new-workflow", "/ui/projects/{website}/workflows/new"),
    View("workflow", "/ui/workflows/{workflow}", act=show_details),
    View("workflow-refused", "/ui/projects/{website}/workflows/new", act=send("main form.form", name=" ")),
    View("workflow-delete", "/ui/workflows/{workflow}", act=press("Delete the workflow")),
    View("tokens", "/ui/theeye/tokens"),
    View("token-revoke", "/ui/theeye/tokens", act=press("Revoke")),
    View("agents", "/ui/theeye/agents"),
    View("testflinger-queues", "/ui/testflinger/queues", widest=True),
    View("testflinger-queues-reader", "/ui/testflinger/queues", "carol"),
    View("testflinger-queue", "/ui/testflinger/queues/{queue_rpi4}"),
    View("testflinger-job-running", "/ui/testflinger/jobs/{lab_job_running}"),
    View("testflinger-job-ended", "/ui/testflinger/jobs/{lab_job_ended}?phase=provision"),
    View("testflinger-job-waiting", "/ui/testflinger/jobs/{lab_job_waiting}"),
    View("testflinger-agents", "/ui/testflinger/agents", widest=True),
    View("testflinger-agent", "/ui/testflinger/agents/{agent_rpi4-002}"),
    View("testflinger-clients", "/ui/testflinger/clients"),
    View(
        "testflinger-clients-refused",
        "/ui/testflinger/clients",
        act=send("main form.form", client_id="new", max_priority="rpi4=high"),
    ),
    View("testflinger-client", "/ui/testflinger/clients/{lab_client}"),
    View("testflinger-client-delete", "/ui/testflinger/clients/{lab_client}", act=press("Delete the client")),
    View("upload-report", "/ui/operations/{operation_upload}"),
    View("upload-going-on", "/ui/operations/{operation_upload-going-on}"),
    View("access", "/ui/projects/{parliaments}/access"),
    View("acts", "/ui/projects/{parliaments}/acts"),
    View("acts-of-all-projects", "/ui/acts"),
    View("import", "/ui/projects/import"),
    View("workers", "/ui/workers"),
    View("workers-manager", "/ui/workers?sort=alias", "carol"),
    View("worker", "/ui/workers/{worker}"),
    View("logs", "/ui/logs"),
    View("logs-filtered", "/ui/logs?level=warn&project={wiki}"),
    View("account", "/ui/account"),
    View("account-manager", "/ui/account", "bob"),
    View("administration", "/ui/admin"),
    View("login", "/ui/login", ""),
    View("login-refused", "/ui/login", "", send("main form", username="alice", password="wrong horse")),
    View("register", "/ui/register", ""),
    View("register-refused", "/ui/register", "", send("main form", username="alice", password="correct horse")),
    View("error-not-found", "/ui/projects/4711"),
    View("error-forbidden", "/ui/projects/{wiki}/access", "carol"),
    View("docs", "/ui/docs", ""),
    View("action-done", "/ui/projects/{tiles}", act=press("Retry all failed")),
    View("token-made", "/ui/theeye/tokens", act=send("main form.filters", name="chat bot")),
    View("agent-made", "/ui/theeye/agents", act=send("main form.filters", alias="web-3")),
    View("workflow-secret", "/ui/workflows/{workflow}", act=renew_secret),
    View("testflinger-client-rotate", "/ui/testflinger/clients/{lab_client}", act=press("New key")),
    View("testflinger-key", "/ui/testflinger/clients/{lab_client}", act=renew_key),
    View("template-secret", "/ui/templates/{template_deploy}", act=renew_secret),
]
# On a tracker in which nothing has happened yet. The first to register is the manager of the views after it.
FIRST_VIEWS = [
    View("first-visit", "/ui/", ""),
    View("first-account", "/ui/register", ""),
    View("first-login", "/ui/register", "", send("main form", username="alice", password=example_week.PASSWORD)),
    View("first-project", "/ui/projects/new", "alice", send("main form", name="wiki-2026")),
    View("first-workers", "/ui/workers"),
    View("first-logs", "/ui/logs"),
]


def places(week: example_week.Week) -> dict[str, Any]:
    """What the names in the views' paths stand for."""
    return {
        **week.projects,
        **{f"task_{name}": id for name, id in week.tasks.items()},
        **{f"operation_{name}": id for name, id in week.operations.items()},
        **{f"template_{name}": id for name, id in week.templates.items()},
        **{f"job_{name}": token for name, token in week.jobs.items()},
        **{f"queue_{name}": id for name, id in week.queues.items()},
        **{f"agent_{name}": id for name, id in week.agents.items()},
        **{f"lab_job_{name}": uuid for name, uuid in week.lab_jobs.items()},
        "lab_client": "nightly",
        "workflow": week.workflow,
        "worker": week.workers["rack-1"],
    }


@contextlib.contextmanager
def held_back(operation: int) -> Iterator[None]:
    """Keeps an operation from being finished after its first steps, so that it can be looked at."""
    step, left = tracker.step_operation, itertools.count(2, -1)

    def some_steps(tx: tracker.Tx, id: int, *last: Any) -> int | None:
        if id == operation and next(left) <= 0:
            raise tracker.TrackerError("unavailable", "held back for its picture")
        return step(tx, id, *last)

    tracker.step_operation = some_steps
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        tracker.step_operation = step


class Studio:
    """A browser with a session for each manager, on one tracker."""

    def __init__(self, browser, url: str) -> None:
        self.browser, self.url = browser, url
        self.pages: dict[str, object] = {}

    def new_page(self):
        return self.browser.new_context(reduced_motion="reduce").new_page()

    def page(self, who: str):
        """A tab in which this manager is logged in."""
        if who not in self.pages:
            page = self.new_page()
            if who:
                begin_session(page, self.url, who)
            self.pages[who] = page
        return self.pages[who]

    def show(self, view: View, places: dict[str, Any]):
        """The tab in which the view is to be seen."""
        page = self.page(view.who)
        page.set_viewport_size({"width": WIDTHS[-1], "height": 900})
        page.goto(self.url + view.path.format_map(places))
        if view.act:
            view.act(page)
            page.wait_for_load_state()
        return page

    def photograph(self, view: View, places: dict[str, Any], folder: Path) -> int:
        """Writes the pictures of one view, and says how many."""
        page, count = self.show(view, places), 0
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            for width in (*WIDTHS, WIDEST) if view.widest else WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
                page.set_viewport_size({"width": width, "height": height})  # what sticks to the bottom is at the end
                page.screenshot(path=folder / f"{view.name}-{theme}-{width}.png", full_page=height < TALLEST)
                count += 1
        return count


def photograph_all(browser, folder: Path, only: str) -> int:
    """The pictures of all views with `only` in their name, and how many they are."""
    count = 0
    first = [view for view in FIRST_VIEWS if not only or only.startswith("first")]
    views = [view for view in VIEWS if only in view.name]
    with tempfile.TemporaryDirectory() as temporary:
        if first:
            settings = tracker.Settings(database=f"{temporary}/empty.db", refresh_interval=3600)
            with tracker.serving(settings) as url:
                studio = Studio(browser, url)
                for view in first:
                    count += studio.photograph(view, {}, folder)
                    print(f"  {view.name}", flush=True)
        if views:
            began = time.monotonic()
            print("Telling the week …", flush=True)
            week = example_week.fill(Path(temporary) / "week.db")
            print(f"… in {time.monotonic() - began:.1f} s.", flush=True)
            with held_back(week.operations["upload-going-on"]), tracker.serving(week.settings, week.clock()) as url:
                studio = Studio(browser, url)
                for view in views:
                    count += studio.photograph(view, places(week), folder)
                    print(f"  {view.name}", flush=True)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("screenshots"), help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the pages with this in their name")
    options = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        parser.error("Playwright is not installed: pip install playwright")
    if (chromium := find_chromium()) is None:
        parser.error("no Chromium found: install one, or set CHROMIUM to its path")
    options.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, contextlib.closing(launch(playwright, chromium)) as browser:
        print(f"Photographing with Chromium {browser.version} into {options.folder}:", flush=True)
        count = photograph_all(browser, options.folder, options.only)
    print(f"{count} pictures in {options.folder}.")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
