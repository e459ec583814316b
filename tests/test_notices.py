"""Notices: what happens to a project is told to a URL, at least once, and to nobody whom it must not reach."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import AtOnce, MovedClock, Site, serving_in_thread, wait_until
from place import Memory

import backup
import meter
import notices
import shapes
import tracker
import webhooks
from errors import TrackerError
from tracker import FAIL

EVERY = dict.fromkeys(notices.EVENTS, True)
LOOPBACK = ("127.0.0.0/8",)


class Receiver:
    """Somebody's HTTP server: what it was sent, as headers and body; `status` is what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], str]] = []
        self.status = 200

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        with serving_in_thread(Handler) as url:
            yield url

    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    with one.listening() as one.url:
        yield one


@pytest.fixture
def told(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site that looks often, and may send to this machine."""
    monkeypatch.setattr(notices, "INTERVAL", 0.05)
    return make_site(webhook_networks=LOOPBACK)


def form(site: Site, path: str, **fields: Any) -> Any:
    """Sends a form of a page, as its page would; the page that follows."""
    page = site.admin.http.get(re.sub(r"/notices.*", "/edit", path)).text
    token = re.search(r'name="token" value="([^"]+)"', page)[1]
    given = {name: str(value).lower() if isinstance(value, bool) else value for name, value in fields.items()}
    return site.admin.http.post(path, data={"token": token, **given}, follow_redirects=True)


def hook(site: Site, project: int, url: str, kind: str = "json", **fields: Any) -> None:
    """Has the project's notices go there, and waits until it was looked at."""
    answer = form(site, f"/ui/projects/{project}/notices", url=url, kind=kind, **{**EVERY, **fields})
    assert answer.status_code == 200, answer.text
    wait_until(lambda: site.read("SELECT known FROM notice_hook WHERE project = ? AND known <> ''", project))


def looked(site: Site, project: int) -> None:
    """Waits until the counts as they are now have been looked at."""
    closed, left = site.read(
        f"SELECT closed_task_count, {'+'.join(notices.UNDONE)} FROM project WHERE id = ?", project
    )[0]

    def known() -> bool:
        seen = json.loads(site.read("SELECT known FROM notice_hook WHERE project = ?", project)[0][0])
        return seen["left"] == bool(left) and (not left or seen["closed"] == closed)

    wait_until(known)


# ── What is told ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_project_that_is_finished_is_told_once(told: Site, receiver: Receiver) -> None:
    project = told.admin.create_project("a crawl")
    worker = told.create_worker(project)
    hook(told, project, receiver.url)
    worker.submit(project)
    looked(told, project)
    worker.released(worker.assigned(project)["id"])
    wait_until(lambda: receiver.got)
    headers, body = receiver.got[0]
    notice = json.loads(body)
    assert notice["event"] == "finished" and notice["project"] == {"id": project, "name": "a crawl"}
    assert notice["text"] == "a crawl: nothing is left to do; closed: 1 task"
    assert headers["Idempotency-Key"] == notice["id"] and headers["X-Tracker-Event"] == "finished"
    wait_until(lambda: told.read("SELECT sent FROM notice_hook WHERE sent IS NOT NULL"))
    assert receiver.events() == ["finished"] and not told.read("SELECT * FROM notice")


def test_failures_a_pause_and_a_request_are_told(told: Site, receiver: Receiver) -> None:
    project = told.admin.create_project()
    worker = told.create_worker(project, alias="broken")
    worker.bulk_submit([{"project": project, "recipe": "x", "max_retries": 1}] * 40)
    hook(told, project, receiver.url)
    for _ in range(25):
        if not (task := worker.assigned(project)):
            break
        worker.released(task["id"], FAIL)
    told.create_worker(alias="newcomer").request_access(project)
    wait_until(lambda: {"worker_paused", "access_requested"} <= set(receiver.events()))
    texts = " ".join(json.loads(body)["text"] for _, body in receiver.got)
    assert "broken" in texts and "newcomer" in texts


def test_a_share_of_failures_is_told_when_it_is_reached() -> None:
    memory, one = Memory(), meter.Meter()
    prepared(memory, one)
    one.recent[1].add(closed=10, failed=9)
    assert events(memory, one) == []  # of so few nothing is said
    one.recent[1].add(closed=0, failed=20)
    assert events(memory, one) == ["failing"]
    assert events(memory, one) == []
    one.recent[1].add(closed=100, failed=0)
    assert events(memory, one) == []
    one.recent[1].add(closed=0, failed=60)
    assert events(memory, one) == ["failing"]


def test_the_last_attempts_are_known_again_after_a_restart() -> None:
    memory, one = Memory(), meter.Meter()
    project = prepared(memory, one)
    one.recent[project].add(closed=5, failed=12)
    assert events(memory, one) == []
    again = meter.Meter()
    projects, changed = memory.do(notices.find_changes, again)
    again.watch(projects)
    assert not changed and again.recent[project].known == one.recent[project].known
    again.recent[project].add(closed=0, failed=10)
    assert events(memory, again) == ["failing"]


def test_a_project_that_stands_still_is_told_once_and_not_while_it_is_paused() -> None:
    memory, one = Memory(), meter.Meter()
    prepared(memory, one)
    memory.connection.execute("UPDATE project SET waiting_task_count = 5")
    assert events(memory, one) == []
    memory.clock.now += 29 * 60
    assert events(memory, one) == []
    memory.clock.now += 2 * 60
    assert events(memory, one) == ["stalled"]
    memory.clock.now += 120 * 60
    assert events(memory, one) == []
    memory.connection.execute("UPDATE project SET closed_task_count = 1")
    assert events(memory, one) == []
    memory.connection.execute("UPDATE project SET paused = 1")
    memory.clock.now += 120 * 60
    assert events(memory, one) == []


def test_a_project_that_is_finished_from_one_look_to_the_next_is_told() -> None:
    memory, one = Memory(), meter.Meter()
    prepared(memory, one)
    memory.connection.execute("UPDATE project SET closed_task_count = 3")
    assert [events(memory, one) for _ in range(3)] == [[], ["finished"], []]


def test_tasks_that_come_and_are_closed_all_the_time_are_not_told_as_finished_each_time() -> None:
    memory, one = Memory(), meter.Meter()
    prepared(memory, one)
    told = []
    for _ in range(10):
        memory.connection.execute("UPDATE project SET closed_task_count = closed_task_count + 1")
        told += events(memory, one)
    assert told == [] and events(memory, one) == ["finished"]


def test_one_task_and_one_minute_are_told_as_one() -> None:
    memory, one = Memory(), meter.Meter()
    project = prepared(memory, one)
    memory.do(notices.set_hook, project, notices.HookBody("http://example.org/", stalled=True, stalled_minutes=1))
    memory.connection.execute("UPDATE project SET waiting_task_count = 1")
    memory.do(notices.store_changes, one)
    memory.clock.now += 61
    memory.do(notices.store_changes, one)
    [row] = memory.do(lambda tx: tx.all("SELECT text FROM notice"))
    assert row["text"] == "still waiting: 1 task; none was closed for 1 minute"


def prepared(memory: Memory, one: meter.Meter) -> int:
    """A project of which everything is told, and which was looked at."""
    session = memory.do(tracker.register_manager, "admin", "unused")[1]
    body = tracker.shapes.ProjectBody(name="one")
    project = memory.do(tracker.create_project, session, body)["id"]
    memory.do(notices.set_hook, project, notices.HookBody("http://example.org/", **EVERY))
    one.watch({project: (0, "")})
    assert events(memory, one) == []
    return project


def events(memory: Memory, one: meter.Meter) -> list[str]:
    """What a look finds, which is taken at once."""
    memory.do(notices.store_changes, one)
    return [row["event"] for row in memory.do(lambda tx: tx.all("DELETE FROM notice RETURNING event"))]


def test_what_was_so_before_is_no_news(told: Site, receiver: Receiver) -> None:
    project = told.admin.create_project()
    told.create_worker(project)
    told.create_worker().request_access(project)
    hook(told, project, receiver.url)
    told.create_worker(alias="second").request_access(project)
    told.clock.pass_time(notices.ASKING_INTERVAL)
    wait_until(lambda: receiver.got)
    assert [json.loads(body)["text"].partition(": ")[2] for _, body in receiver.got] == [
        "access is asked for by second"
    ]


def test_what_is_not_wanted_is_not_told(told: Site, receiver: Receiver) -> None:
    project = told.admin.create_project()
    worker = told.create_worker(project)
    hook(told, project, receiver.url, finished=False)
    worker.submit(project)
    looked(told, project)
    worker.released(worker.assigned(project)["id"])
    looked(told, project)
    assert not receiver.got and not told.read("SELECT * FROM notice")


# ── In whose words ────────────────────────────────────────────────────────────────────────────────────────────────────


def notice(kind: str, text: str = "<!channel> @everyone & co") -> notices.Notice:
    return notices.Notice(7, "abc", 1, "a crawl", "finished", text, 5, 0, "http://example.org/", kind, 0)


def test_each_kind_is_said_as_its_receiver_wants_it() -> None:
    slack, discord = (json.loads(notices.message_of(notice(kind)).content) for kind in ("slack", "discord"))
    assert slack == {"text": "a crawl: &lt;!channel&gt; @everyone &amp; co"}
    assert discord["content"] == "a crawl: <!channel> @everyone & co" and discord["allowed_mentions"] == {"parse": []}
    ntfy = notices.message_of(notice("ntfy"))
    assert ntfy.content == b"a crawl: <!channel> @everyone & co"
    assert (b"Content-Type", b"text/plain; charset=utf-8") in ntfy.headers
    assert all(
        (b"Idempotency-Key", b"abc") in notices.message_of(notice(kind)).headers for kind in shapes.NoticeKind.__args__
    )


# ── At least once ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_taken_is_sent_again_with_the_same_id_also_after_a_restart(
    told: Site, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "PAUSES", (0.1,) * 10_000)
    receiver.status = 503
    finish(told, receiver.url)
    wait_until(lambda: len(receiver.got) > 1)
    assert "status 503" in told.read("SELECT problem FROM notice_hook")[0][0]
    # As it is on the disk now, another tracker goes on with it.
    made = backup.back_up(told.settings, tmp_path / "copy.db", "1", lambda line: None)
    settings = tracker.Settings(database=str(made), log_file="", webhook_networks=LOOPBACK)
    receiver.got.clear()
    receiver.status = 200
    with tracker.serving(settings, MovedClock()):
        wait_until(lambda: receiver.got)
    ids = {json.loads(body)["id"] for _, body in receiver.got}
    assert len(ids) == 1


def finish(site: Site, url: str, project: int = 0) -> int:
    """Has a project, as a rule a new one, finish, of which is told at the URL."""
    project = project or site.admin.create_project()
    worker = site.create_worker(project)
    hook(site, project, url)
    worker.submit(project)
    looked(site, project)
    worker.released(worker.assigned(project)["id"])
    return project


@pytest.mark.parametrize("status", [200, 500])
def test_what_was_sent_while_the_disk_was_full_is_not_sent_again_and_again(
    told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    tried: list[str] = []

    def refuse(tx: tracker.Tx, notice: notices.Notice, problem: str) -> None:
        tried.append(problem)
        raise TrackerError("unavailable", "The database cannot be written to")

    receiver.status = status
    with monkeypatch.context() as full:
        full.setattr(notices, "note_sent", refuse)
        finish(told, receiver.url)
        wait_until(lambda: len(tried) > 5)
    wait_until(lambda: told.read("SELECT 1 FROM notice_hook WHERE sent IS NOT NULL OR problem <> ''"))
    assert receiver.events() == ["finished"] and len(set(tried)) == 1


def test_a_fault_at_one_projects_notice_holds_up_no_other_one(
    told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = webhooks.send

    async def fail(url: str, *args: Any, **options: Any) -> webhooks.Answer:
        if "broken" in url:
            raise ValueError("nobody has foreseen this")
        return await send(url, *args, **options)

    monkeypatch.setattr(webhooks, "send", fail)
    broken = finish(told, "http://broken.example.org/")
    finish(told, receiver.url)
    wait_until(lambda: told.read("SELECT 1 FROM notice_hook WHERE sent IS NOT NULL"))
    problem = "SELECT problem FROM notice_hook WHERE project = ?"
    assert wait_until(lambda: told.read(problem, broken)[0][0]) == "Internal error"
    assert receiver.events() == ["finished"]


def test_what_was_taken_is_known_while_another_receiver_takes_its_time(
    told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = webhooks.send

    async def never(url: str, *args: Any, **options: Any) -> webhooks.Answer:
        return await (asyncio.Event().wait() if "slow" in url else send(url, *args, **options))

    monkeypatch.setattr(webhooks, "send", never)
    with monkeypatch.context() as still:
        still.setattr(notices, "due_notices", lambda tx, most: [])
        finish(told, "http://slow.example.org/")
        finish(told, receiver.url)
        wait_until(lambda: len(told.read("SELECT 1 FROM notice")) == 2)
    wait_until(lambda: told.read("SELECT 1 FROM notice_hook WHERE sent IS NOT NULL"))


def test_the_names_of_receivers_are_looked_up_apart_for_projects_that_an_admin_trusts(
    told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, seen = webhooks.send, {}

    async def note(url: str, *args: Any, trusted: bool, **options: Any) -> webhooks.Answer:
        seen.setdefault(url, set()).add(trusted)
        return await send(url, *args, **options)

    monkeypatch.setattr(webhooks, "send", note)
    monkeypatch.setattr(notices, "TEST_INTERVAL", 0.0)
    for project in told.create_manager().create_project(), told.admin.create_project():
        url = f"{receiver.url}/{project}"
        finish(told, url, project)
        wait_until(lambda: receiver.got)
        form(told, f"/ui/projects/{project}/notices/test")
        assert receiver.events() == ["finished", "test"]
        receiver.got.clear()
        [trusted] = told.read("SELECT trusted FROM project WHERE id = ?", project)[0]
        assert seen[url] == {bool(trusted)}
    assert seen.popitem()[1] != seen.popitem()[1]


def test_pauses_grow_and_a_notice_is_forgotten_in_the_end() -> None:
    memory, one = Memory(), meter.Meter()
    project = prepared(memory, one)
    insert = "INSERT INTO notice (token, project, event, text, made) VALUES ('t', ?, 'finished', 'x', 1)"
    memory.connection.execute(insert, (project,))
    waits = []
    while due := memory.do(notices.due_notices, 4):
        memory.do(notices.note_sent, due[0], "nobody is there")
        if row := memory.connection.execute("SELECT next_uptime FROM notice").fetchone():
            waits.append(row[0] - memory.clock.now)
            memory.clock.now = row[0]
    assert waits == list(notices.PAUSES) == sorted(waits)
    assert 18 * 3600 < sum(waits) < 36 * 3600
    assert memory.connection.execute("SELECT problem FROM notice_hook").fetchone()[0] == "nobody is there"


def test_what_fails_at_a_place_where_notices_go_no_more_is_due_at_the_new_one() -> None:
    memory, one = Memory(), meter.Meter()
    project = prepared(memory, one)
    insert = "INSERT INTO notice (token, project, event, text, made, attempts) VALUES ('t', ?, 'finished', 'x', 1, ?)"
    memory.connection.execute(insert, (project, len(notices.PAUSES)))
    [sent] = memory.do(notices.due_notices, 4)
    memory.do(notices.set_hook, project, notices.HookBody("http://new.example/", finished=True))
    memory.do(notices.note_sent, sent, "nobody is there")
    assert [notice.url for notice in memory.do(notices.due_notices, 4)] == ["http://new.example/"]
    assert memory.connection.execute("SELECT problem FROM notice_hook").fetchone()[0] == ""


def test_what_nobody_takes_is_bounded_and_the_latest_stays() -> None:
    memory, one = Memory(), meter.Meter()
    project = prepared(memory, one)
    for number in range(150):
        memory.connection.execute("UPDATE project SET closed_task_count = ?", (number + 1,))
        for _ in "busy", "finished":
            memory.do(notices.store_changes, one)
    rows = memory.connection.execute("SELECT text FROM notice ORDER BY id").fetchall()
    assert len(rows) == notices.MOST_KEPT and "150 tasks" in rows[-1]["text"]
    memory.connection.execute("DELETE FROM project WHERE id = ?", (project,))
    assert not memory.connection.execute("SELECT 1 FROM notice UNION SELECT 1 FROM notice_hook").fetchall()


# ── Settings and the test ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_test_says_what_came_of_it(told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "TEST_INTERVAL", 0.0)
    project = told.admin.create_project("a crawl")
    hook(told, project, receiver.url)
    path = f"/ui/projects/{project}/notices/test"
    assert "The test was taken." in form(told, path).text
    assert json.loads(receiver.got[0][1])["text"] == "a crawl: this is a test"
    receiver.status = 404
    refused = form(told, path)
    assert refused.status_code == 503 and "status 404" in refused.text
    monkeypatch.setattr(notices, "TEST_INTERVAL", 60.0)
    form(told, path)
    assert form(told, path).status_code == 429


def test_a_test_that_is_taken_sends_what_waits_and_takes_back_what_was_wrong(
    told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "PAUSES", (28800,) * 10)
    receiver.status = 503
    project = finish(told, receiver.url)
    wait_until(lambda: told.read("SELECT problem FROM notice_hook WHERE problem <> ''"))
    page = told.admin.http.get(f"/ui/projects/{project}/edit").text
    assert "1 notice waits to be taken." in page
    assert "The last one was not taken. The receiver answered with status 503." in page
    receiver.status = 200
    form(told, f"/ui/projects/{project}/notices/test")
    wait_until(lambda: receiver.events()[-1] == "finished" and not told.read("SELECT * FROM notice"))
    assert "not taken" not in told.admin.http.get(f"/ui/projects/{project}/edit").text


def test_a_receiver_that_redirects_is_said_not_to_be_followed() -> None:
    assert notices.problem_of(204) == ""
    assert notices.problem_of(404) == "The receiver answered with status 404"
    assert notices.problem_of(302).startswith(
        "The receiver answered with status 302"
    ) and "redirect" in notices.problem_of(302)


def test_few_tests_are_on_their_way_at_once_however_many_projects_send_one(
    told: Site, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = AtOnce("")
    projects = [told.admin.create_project(f"project {number}") for number in range(notices.SENDERS + 2)]
    for project in projects:
        assert form(told, f"/ui/projects/{project}/notices", url=receiver.url, kind="json").status_code == 200

    monkeypatch.setattr(notices, "TIMEOUT", 60.0)
    monkeypatch.setattr(notices.Notices, "send", sending.wait)
    with ThreadPoolExecutor(len(projects)) as pool:
        sent = [pool.submit(form, told, f"/ui/projects/{project}/notices/test") for project in projects]
        wait_until(lambda: sending.running == notices.SENDERS)
        sending.go_on.set()
        assert all("The test was taken." in one.result().text for one in sent)
    assert sending.most == notices.SENDERS


def test_tests_have_turns_by_address_and_one_of_a_trusted_project_waits_for_none_that_have_waited() -> None:
    begun: list[str] = []

    async def main() -> None:
        go_on = asyncio.Event()

        async def send(notice: notices.Notice) -> str:
            begun.append(notice.name)
            await go_on.wait()
            return ""

        async def write(*_: Any) -> None:
            """Nothing is stored here."""

        told = notices.Notices(SimpleNamespace(settings=None, clock=SimpleNamespace(time=lambda: 0), write=write))
        told.send = send
        crowd = [("203.0.113.1", f"crowd {number}", 0) for number in range(notices.SENDERS + 2)]
        tests = [*crowd, ("203.0.113.2", "other", 0), ("203.0.113.3", "trusted", 1)]
        sent = [
            asyncio.create_task(told.test(source, number, name, {"url": "", "kind": "json", "trusted": trusted}))
            for number, (source, name, trusted) in enumerate(tests)
        ]
        await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(*sent)

    asyncio.run(main())
    assert begun[notices.SENDERS :] == ["trusted", "crowd 4", "other", "crowd 5"]


@pytest.mark.parametrize(
    "url", ["ftp://example.org/", "http://", "http://user:pass@example.org/", "no url", "http://x/\n"]
)
def test_a_url_that_is_none_is_refused(told: Site, url: str) -> None:
    project = told.admin.create_project()
    answer = form(told, f"/ui/projects/{project}/notices", url=url, kind="json")
    assert answer.status_code == 400
    assert not told.read("SELECT * FROM notice_hook")


def test_nothing_is_sent_to_the_trackers_own_machine(make_site: Callable[..., Site], receiver: Receiver) -> None:
    site = make_site()
    project = site.admin.create_project()
    hook(site, project, receiver.url)
    refused = form(site, f"/ui/projects/{project}/notices/test")
    assert refused.status_code == 503 and "webhook_networks" in refused.text
    assert not receiver.got


def test_who_may_not_edit_neither_sees_nor_sets_where_notices_go(told: Site, receiver: Receiver) -> None:
    project = told.admin.create_project()
    hook(told, project, receiver.url)
    other = told.create_manager()
    told.admin.set_role(project, other, tracker.READ | tracker.SECRET)
    page = other.http.get(f"/ui/projects/{project}/edit")
    assert receiver.url not in page.text
    token = re.search(r'name="token" value="([^"]+)"', page.text)[1]
    for path in ("notices", "notices/test"):
        fields = {"token": token, "url": "http://example.org/", "kind": "json"}
        assert other.http.post(f"/ui/projects/{project}/{path}", data=fields).status_code == 403


def test_without_a_url_there_are_no_notices_any_more(told: Site, receiver: Receiver) -> None:
    project = told.admin.create_project()
    hook(told, project, receiver.url)
    assert form(told, f"/ui/projects/{project}/notices", url="", kind="json").status_code == 200
    assert not told.read("SELECT * FROM notice_hook")


def test_where_notices_go_is_set_and_shown_by_the_api(site: Site) -> None:
    project = site.admin.create_project()
    path = f"/project/notices/{project}"

    def shown() -> dict[str, Any]:
        return site.admin.get(path).json()["content"]["notices"]

    assert (shown()["url"], shown()["events"], shown()["failing_share"]) == ("", [], 50)
    url = "https://ntfy.example.org/crawls"
    answer = site.admin.post(path, {"url": url, "kind": "ntfy", "events": ["stalled", "finished", "stalled"]})
    assert answer.json() == {"ok": True}, answer.text
    assert (shown()["url"], shown()["kind"], shown()["events"]) == (url, "ntfy", ["finished", "stalled"])
    assert site.admin.post(path, {"failing_share": 20}).status_code == 200
    assert site.admin.post(path, {"events": ["failing"]}).status_code == 200
    assert shown() | {"url": url, "kind": "ntfy", "events": ["failing"], "failing_share": 20} == shown()
    assert site.admin.post(path, {"events": None, "failing_share": None}).status_code == 200
    assert (shown()["events"], shown()["failing_share"]) == ([], 50)
    assert site.admin.post(path, {"url": ""}).status_code == 200 and shown()["url"] == ""
    assert not site.read("SELECT * FROM notice_hook")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": ["finished"]}, "url"),
        ({"kind": "slack"}, "url"),
        ({"url": "ftp://example.org/"}, "url"),
        ({"url": "http://example.org/", "kind": "pigeon"}, "kind"),
        ({"url": "http://example.org/", "events": ["finished", "pigeon"]}, "events"),
        ({"url": "http://example.org/", "failing_share": 0}, "failing_share"),
        ({"kind": "command"}, "kind"),
    ],
)
def test_what_the_api_refuses_of_a_hook_is_named_and_changes_nothing(site: Site, body: Any, field: str) -> None:
    project = site.admin.create_project()
    answer = site.admin.post(f"/project/notices/{project}", body)
    assert answer.status_code == 400 and answer.json()["field"].startswith(field), answer.text
    assert not site.read("SELECT * FROM notice_hook")


def test_who_may_not_edit_neither_reads_nor_sets_a_hook_by_the_api(site: Site) -> None:
    project = site.admin.create_project()
    path, body = f"/project/notices/{project}", {"url": "http://example.org/classified"}
    assert site.admin.post(path, body).status_code == 200
    other = site.create_manager()
    site.admin.set_role(project, other, tracker.ALL_ROLES - tracker.EDIT)
    for answer in (other.get(path), other.post(path, body), site.guest.get(path), site.guest.post(path, json=body)):
        assert answer.status_code in (401, 403) and "classified" not in answer.text
    assert "classified" not in json.dumps(site.read("SELECT details FROM act"))


@pytest.mark.parametrize("url", ["", "https://example.org/crawls"])
def test_who_names_a_url_or_none_by_the_api_has_the_command_no_more(make_site: Callable[..., Site], url: str) -> None:
    site = make_site(notice_command=("/bin/true",))
    project = site.admin.create_project()
    path = f"/project/notices/{project}"
    assert site.admin.post(path, {"kind": "command", "events": ["finished"]}).status_code == 200
    as_it_is = site.admin.get(path).json()["content"]["notices"]
    assert site.admin.post(path, as_it_is).status_code == 200
    assert site.admin.get(path).json()["content"]["notices"] == as_it_is
    assert site.admin.post(path, {"url": url}).status_code == 200
    now = site.admin.get(path).json()["content"]["notices"]
    assert (now["kind"], now["url"]) == ("json", url)


def test_a_command_of_the_operator_gets_the_notice_on_its_standard_input(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    script = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    site = make_site(notice_command=(sys.executable, "-c", script, str(tmp_path / "told")))
    project = site.admin.create_project()
    hook(site, project, "", "command")
    assert "The test was taken." in form(site, f"/ui/projects/{project}/notices/test").text
    assert json.loads((tmp_path / "told").read_text())["event"] == "test"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(("code", "said"), [(0, ""), (3, "The command ended with status 3")])
def test_a_command_need_not_read_what_it_is_told(
    monkeypatch: pytest.MonkeyPatch, loop: str, code: int, said: str
) -> None:
    start = asyncio.create_subprocess_exec

    async def start_and_end(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*command, **options)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_and_end)
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(notices.run_command([sys.executable, "-c", f"raise SystemExit({code})"], b"{}")) == said


def test_a_command_is_for_those_alone_who_run_the_tracker(told: Site) -> None:
    project = told.admin.create_project()
    assert "this tracker</option>" not in told.admin.http.get(f"/ui/projects/{project}/edit").text
    answer = form(told, f"/ui/projects/{project}/notices", kind="command", url="/bin/true")
    assert answer.status_code == 400 and "notice_command" in answer.text


def test_strangers_do_not_set_off_the_command_of_the_operator(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """It may write mails, and anybody may make a project in which something begins and ends all the time."""
    script = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    site = make_site(notice_command=(sys.executable, "-c", script, str(tmp_path / "told")))
    stranger = site.create_manager()
    project = stranger.create_project()
    path = f"/ui/projects/{project}/notices"
    site.admin.set_role(project, stranger, tracker.ALL_ROLES)
    answer = form(site, path, url="", kind="command", failing_share="50", stalled_minutes="30")
    assert answer.status_code == 403 and "trusts" in answer.text
    assert "this tracker</option>" not in stranger.http.get(f"/ui/projects/{project}/edit").text
    assert not site.read("SELECT * FROM notice_hook")
    site.admin.post(f"/project/trust/{project}")
    hook(site, project, "", "command")
    assert "The test was taken." in form(site, f"{path}/test").text


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("/nowhere/at/all",), "cannot be run"),
        ((sys.executable, "-c", "import sys; sys.exit(3)"), "status 3"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "did not end"),
    ],
)
def test_a_command_that_fails_is_tried_again(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(notices, "TIMEOUT", 1.0)
    site = make_site(notice_command=command)
    project = site.admin.create_project()
    hook(site, project, "", "command")
    refused = form(site, f"/ui/projects/{project}/notices/test")
    assert refused.status_code == 503 and said in refused.text


def test_a_refusal_of_a_hook_names_its_field() -> None:
    memory, one = Memory(), meter.Meter()
    project = prepared(memory, one)
    with pytest.raises(TrackerError) as raised:
        memory.do(notices.set_hook, project, notices.HookBody("http://[bad/"))
    assert raised.value.field == "url"
