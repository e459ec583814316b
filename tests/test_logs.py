"""Logs: lines from workers, in the database and in the log file, and who may read them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Site

import logfile
from tracker import EDIT, READ, Settings, TrackerError

LEVELS = {"error": 3, "warn": 4, "info": 5, "trace": 7}


def entries(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["logs"]


def messages(answer: httpx.Response) -> list[str]:
    return [entry["message"] for entry in entries(answer)]


def posted(site: Site, level: int, since: int = 1) -> list[str]:
    """The messages of one level that a manager reads with POST /logs."""
    return messages(site.admin.post("/logs", {"level": level, "since": since}))


# ── /log/… ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_of_each_level_is_stored_with_its_number(make_site: Callable[..., Site]) -> None:
    site = make_site(log_level="trace")
    worker = site.create_worker()
    answers = [worker.log(level, f"a {level} line") for level in LEVELS]
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 4
    assert {level: posted(site, number) for level, number in LEVELS.items()} == {
        level: [f"a {level} line"] for level in LEVELS
    }


def test_a_line_below_the_configured_level_is_in_the_log_file_only(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = make_site(log_level="warn", log_file=str(tmp_path / "lines.log"))
    worker = site.create_worker(alias="chatty")
    for level in LEVELS:
        assert worker.log(level, f"a {level} line", scope="some scope").status_code == 204
    assert [posted(site, number) for number in LEVELS.values()] == [["a error line"], ["a warn line"], [], []]
    lines = (tmp_path / "lines.log").read_text("utf-8").splitlines()
    assert len(lines) == 4
    for level, line in zip(LEVELS, lines, strict=True):
        assert line.endswith(f"{level.upper()} chatty ({worker.id}) some scope: a {level} line")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_log_file_is_nobody_elses_to_read(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """Nor one of before, nor those that are rotated away."""
    path = tmp_path / "lines.log"
    path.write_bytes(b"x" * (10 * 2**20 - 200))
    path.chmod(0o644)
    worker = make_site(log_file=str(path)).create_worker()
    for number in range(5):
        worker.log("info", f"a line of some length, which is the line number {number}")
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("lines.log*")}
    assert modes == {"lines.log": 0o600, "lines.log.1": 0o600}


def test_one_line_stays_one_line_in_the_log_file(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(log_file=str(tmp_path / "lines.log"))
    forged = "harmless\nERROR admin (1) forged\rERROR: overwritten\x1b[2J\u2028x\x85x"
    assert site.create_worker().log("info", forged).status_code == 204
    [line] = (tmp_path / "lines.log").read_text("utf-8").splitlines()
    assert "harmless" in line
    assert "\x1b" not in line
    assert posted(site, 5) == [forged]


def test_existing_clients_may_spell_the_field_message_with_a_capital(site: Site) -> None:
    body = {"scope": "x", "Message": "capital", "timestamp": 10}
    assert site.create_worker().http.post("/log/info", json=body).status_code == 204
    assert posted(site, 5) == ["capital"]


def test_a_line_is_filed_with_a_task_only_when_the_caller_holds_it(site: Site) -> None:
    project = site.admin.create_project()
    worker, other = site.create_worker(project), site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": "x"}] * 2)
    held, waiting = worker.assigned(project)["id"], 2
    for who, task in [(worker, held), (other, held), (worker, waiting), (worker, 7)]:
        assert who.log("info", "x", task_id=task).status_code == 204
    assert site.read("SELECT worker, task FROM log_entry ORDER BY id") == [
        (worker.id, held),
        (other.id, None),
        (worker.id, None),
        (worker.id, None),
    ]


# ── /logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_logs_are_for_managers_only_unless_they_are_public(site: Site) -> None:
    worker = site.create_worker()
    for http in site.guest, worker.http:
        assert http.post("/logs", json={"level": 5, "since": 1}).status_code == 401
        assert http.get("/logs?level=5&since=1").status_code == 401
    assert site.create_manager().post("/logs", {"level": 5, "since": 1}).status_code == 200


def lines_of_each_kind(site: Site) -> int:
    """Logs a line about an open project, one about a hidden one, and one about none. The open one's number."""
    for name, hidden in (("open", False), ("hidden", True)):
        project = site.admin.create_project(name, hidden=hidden)
        worker = site.create_worker(project)
        worker.submit(project)
        assert worker.assigned(project)
        worker.log("info", name)
    site.create_worker().log("info", "of none")
    return project - 1


def read_by(http: httpx.Client, **query: int) -> list[str]:
    """What somebody reads of the log, by the two calls alike."""
    query = {"max_level": 7, "since": 1, **query}
    read = messages(http.get("/logs", params=query))
    assert messages(http.post("/logs", json=query)) == read
    return sorted(read)


def test_a_manager_reads_the_lines_of_the_projects_that_it_may_read(site: Site) -> None:
    project = lines_of_each_kind(site)
    manager, stranger, other = (site.create_manager() for _ in range(3))
    site.admin.set_role(project, manager, READ)
    site.admin.set_role(project, other, EDIT)
    stranger.create_project("own")
    readers = (site.admin, manager, stranger, other)
    assert [read_by(one.http) for one in readers] == [["hidden", "of none", "open"], ["open"], [], []]
    site.admin.set_role(project + 1, manager, READ | EDIT)
    assert read_by(manager.http) == ["hidden", "open"]
    assert len(read_by(manager.http, limit=1)) == 1


def test_no_page_of_the_log_begins_at_a_line_that_one_may_not_read(site: Site) -> None:
    lines_of_each_kind(site)
    stranger = site.create_manager()
    [(unread,)] = site.read("SELECT id FROM log_entry WHERE message = 'hidden'")
    refusals = [stranger.get("/logs", max_level=7, before=line) for line in (unread, 986_123)]
    assert [one.status_code for one in refusals] == [404, 404]
    assert refusals[0].text.replace(str(unread), "N") == refusals[1].text.replace("986123", "N")
    assert site.admin.get("/logs", max_level=7, before=unread).status_code == 200


def test_public_logs_tell_nothing_of_hidden_projects(make_site: Callable[..., Site]) -> None:
    site = make_site(public_logs=True)
    lines_of_each_kind(site)
    manager = site.create_manager()
    assert read_by(site.guest) == read_by(manager.http) == ["of none", "open"]
    site.admin.set_role(2, manager, READ)
    assert read_by(manager.http) == ["hidden", "of none", "open"]


def test_public_logs_are_for_everybody(make_site: Callable[..., Site]) -> None:
    site = make_site(public_logs=True)
    site.create_worker().log("info", "for all")
    assert messages(site.guest.post("/logs", json={"level": 5, "since": 1})) == ["for all"]
    assert messages(site.guest.get("/logs?level=5&since=1")) == ["for all"]


def test_logs_are_of_exactly_that_level_after_that_time(site: Site) -> None:
    worker = site.create_worker()
    for level in "error", "warn", "info":
        for timestamp in 10, 20, 30:
            worker.log(level, f"{level} {timestamp}", timestamp)
    assert sorted(posted(site, 4, since=10)) == ["warn 20", "warn 30"]
    assert posted(site, 4, since=30) == []
    assert len(posted(site, 5, since=1)) == 3
    assert [posted(site, level) for level in (1, 2, 6, 7)] == [[], [], [], []]


def test_an_entry_carries_its_scope_and_worker_as_a_json_string(site: Site) -> None:
    worker = site.create_worker(alias="the worker")
    worker.log("info", "hello", 1559393394, scope="a scope")
    [entry] = entries(site.admin.post("/logs", {"level": 5, "since": 1}))
    assert isinstance(entry["data"], str)
    data = json.loads(entry["data"])
    assert data["scope"] == "a scope"
    assert "the worker" in data["worker"]
    documented = {name: entry[name] for name in ("message", "timestamp", "level")}
    assert documented == {"message": "hello", "timestamp": 1559393394, "level": 5}


def test_get_takes_the_same_names_in_the_query(site: Site) -> None:
    worker = site.create_worker()
    for timestamp in 10, 20:
        worker.log("info", f"info {timestamp}", timestamp)
    assert messages(site.admin.get("/logs", level=5, since=10)) == ["info 20"]


def test_max_level_shows_every_entry_that_is_at_least_as_grave_the_newest_first(site: Site) -> None:
    worker = site.create_worker()
    for timestamp, level in [(30, "info"), (10, "error"), (20, "warn"), (40, "error")]:
        worker.log(level, f"{level} {timestamp}", timestamp)
    assert messages(site.admin.get("/logs", max_level=4)) == ["error 40", "warn 20", "error 10"]
    assert messages(site.admin.get("/logs", max_level=7)) == ["error 40", "info 30", "warn 20", "error 10"]


def pages(site: Site, **query: Any) -> list[list[str]]:
    """All pages of the log, from the newest to the oldest entry."""
    found = []
    while page := entries(site.admin.get("/logs", **query)):
        found.append([entry["message"] for entry in page])
        query["before"] = page[-1]["id"]
    return found


def test_before_and_limit_page_through_the_log(site: Site) -> None:
    worker = site.create_worker()
    for number in range(5):
        worker.log("info" if number % 2 else "warn", str(number), 100 + number)
    assert pages(site, max_level=7, limit=2) == [["4", "3"], ["2", "1"], ["0"]]


def test_no_entry_is_missing_from_the_pages_when_workers_clocks_differ(site: Site) -> None:
    worker = site.create_worker()
    for timestamp in 300, 100, 200, 100, 500:
        worker.log("info", str(timestamp), timestamp)
    assert pages(site, level=5, limit=2) == [["500", "300"], ["200", "100"], ["100"]]


def test_an_entry_of_the_latest_time_there_is_can_be_read(site: Site) -> None:
    site.create_worker().log("info", "far future", 2**63 - 1)
    assert posted(site, 5) == ["far future"]


def test_a_post_without_a_level_shows_no_lines(site: Site) -> None:
    """What the system that the document describes answers; its clients' own tests ask for it."""
    site.create_worker().log("info", "a line", 10)
    for body in ({"since": 1}, {"since": 1, "level": 0}, {"since": 1, "level": None}):
        assert entries(site.admin.post("/logs", body)) == []


def test_a_get_without_a_level_is_refused(site: Site) -> None:
    answer = site.admin.get("/logs")
    assert (answer.status_code, answer.json()["message"]) == (400, "level: is required")


@pytest.mark.parametrize("since", [0, -1])
def test_entries_since_no_time_are_refused(site: Site, since: int) -> None:
    for answer in (
        site.admin.post("/logs", {"level": 5, "since": since}),
        site.admin.get("/logs", level=5, since=since),
    ):
        assert (answer.status_code, answer.json()["field"]) == (400, "since")


@pytest.mark.parametrize("field, value", [("scope", ""), ("message", ""), ("timestamp", 0), ("timestamp", -1)])
def test_a_line_without_scope_message_or_time_is_refused(site: Site, field: str, value: Any) -> None:
    answer = site.create_worker().http.post(
        "/log/info", json={"scope": "s", "message": "m", "timestamp": 1, field: value}
    )
    assert (answer.status_code, answer.json()["field"]) == (400, field)


# ── Lines as scripts print them ───────────────────────────────────────────────────────────────────────────────────────


def test_a_line_beyond_the_limit_is_cut_and_says_so(site: Site) -> None:
    assert site.create_worker().log("info", "x" * 65536, 10).status_code == 204
    assert site.create_worker().log("info", "y" * 3_000_000, 11).status_code == 204
    cut, whole = posted(site, 5)
    assert whole == "x" * 65536
    assert len(cut) == 65536
    assert cut.startswith("yyy") and cut.endswith("(cut: it had 3,000,000 characters)")


@pytest.mark.parametrize(
    "text, kept",
    [
        (b'"a\\u0000b"', "a\ufffdb"),
        (b'"a\0b"', "a\ufffdb"),
        (b'"a\nb\tc"', "a\nb\tc"),
        (b'"a\xffb"', "a\ufffdb"),
        (b'"a\\udc80b"', "a\ufffdb"),
    ],
    ids=["NUL", "raw NUL", "raw line end", "no UTF-8", "half of a surrogate pair"],
)
def test_a_line_is_taken_whatever_a_script_has_printed(site: Site, text: bytes, kept: str) -> None:
    body = b'{"scope": "s", "timestamp": 10, "message": %b}' % text
    assert site.create_worker().http.post("/log/info", content=body).status_code == 204
    assert posted(site, 5) == [kept]


@pytest.mark.parametrize("depth", [150, 400, 600, 5000])
def test_a_line_with_something_deep_beside_it_is_taken_or_refused(site: Site, depth: int) -> None:
    body = b'{"scope": "s", "timestamp": 10, "message": "a\\u0000b", "more": %b}' % (b"[" * depth + b"]" * depth)
    assert site.create_worker().http.post("/log/info", content=body).status_code in (204, 400)


def test_a_long_scope_is_cut(site: Site) -> None:
    assert site.create_worker().log("info", "a line", 10, scope="s" * 5000).status_code == 204
    [entry] = entries(site.admin.get("/logs", level=5))
    assert json.loads(entry["data"])["scope"] == "s" * 1000


def test_lines_of_a_task_are_taken_whatever_a_script_has_printed(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    lines = b'[{"message": "a\\u0000b", "timestamp": 10}, {"message": "%b", "timestamp": 11}]' % (b"y" * 70_000)
    answer = worker.http.post("/task/log", content=b'{"task_id": %d, "entries": %b}' % (task, lines))
    assert answer.json()["content"] == {"held": True, "stored": 2}
    cut, other = posted(site, 5)
    assert other == "a\ufffdb" and cut.endswith("(cut: it had 70,000 characters)")


@pytest.mark.parametrize("log", ["x.db", "x.db-wal", "./x.db.lock", "sub/../x.db-shm", "link", "x"])
def test_a_log_file_is_never_written_over_the_database(tmp_path: Path, log: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "x.db")
    name = "x.2" if log == "x" else "x.db"  # an older log would have that name
    with pytest.raises(TrackerError, match=f"log_file: {log}: this is a file of the database") as raised:
        logfile.open_log_file(Settings(database=str(tmp_path / name), log_file=log))
    assert raised.value.code == "start" and os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("log", ["nowhere/x.log", ".", "a\0b", "x" * 300])
def test_a_log_file_that_cannot_be_opened_is_refused_by_its_name(tmp_path: Path, log: str) -> None:
    with pytest.raises(TrackerError, match="log_file: ") as raised:
        logfile.open_log_file(Settings(database=str(tmp_path / "x.db"), log_file=log))
    assert raised.value.code == "start"
