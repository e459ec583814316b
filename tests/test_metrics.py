"""What monitors are told: GET /metrics and GET /health."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Site, wait_until
from place import Memory
from prometheus_client.parser import text_string_to_metric_families
from test_direct import Line
from test_query_plans import Bench, place_with

import backup
import meter
import metrics
import tracker
from tracker import FAIL

TOKEN = "0123456789abcdef"
Sample = tuple[str, frozenset[tuple[str, str]]]


def samples(answer: httpx.Response) -> dict[Sample, float]:
    """Every sample of an answer by its name and labels, as Prometheus' own parser reads it."""
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def sample(site: Site, metric: str, **labels: Any) -> float:
    """The value of the one sample that has these labels, as an admin sees it now."""
    time.sleep(metrics.SHARED_TIME)
    found = samples(site.admin.get("/metrics"))
    wanted = {(label, str(value)) for label, value in labels.items()}
    [value] = [value for (one, given), value in found.items() if one == metric and wanted <= given] or [0.0]
    return value


@pytest.fixture(autouse=True)
def shared_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SHARED_TIME", 0.05)


def test_the_counts_of_a_project_are_told_by_state(site: Site) -> None:
    project = site.admin.create_project('a "name"\n\\')
    worker = site.create_worker(project)
    for _ in range(5):
        worker.submit(project)
    worker.submit(project, max_retries=1)
    for result in (tracker.OK, tracker.OK, FAIL):
        worker.released(worker.assigned(project)["id"], result)
    worker.assigned(project)
    labels = {"project": project, "name": 'a "name"\n\\'}
    for state, count in {"waiting": 2, "assigned": 1, "failed": 1}.items():
        assert sample(site, "tracker_tasks", state=state, **labels) == count
    assert sample(site, "tracker_tasks_closed_total", **labels) == 2
    assert sample(site, "tracker_tasks_failed_total", **labels) == 1


def test_a_lease_that_is_lost_is_counted(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project, max_assign_time=10)
    worker.assigned(project)
    site.clock.pass_time(20)
    wait_until(lambda: sample(site, "tracker_leases_lost_total", project=project) == 1)


def test_what_is_undone_is_not_counted() -> None:
    memory = Memory()
    tx = tracker.Tx(memory.connection, memory.clock, memory.settings)
    tx.counts.total(1, "failures")
    tx.counts.forget()
    tx.counts.total(1, "losses")
    tx.counts.write(tx)
    assert tx.counts.ended == {1: {"losses": 1}}


def test_how_long_the_next_task_has_waited_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MARK_INTERVAL", 0)
    project = site.admin.create_project()
    site.create_worker(project).submit(project)
    assert sample(site, "tracker_waiting_age_seconds", project=project) < 0.05
    assert sample(site, "tracker_waiting_age_seconds", project=project) >= 0.05


def test_marks_of_the_age_of_tasks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MARK_INTERVAL", 0)
    one = meter.Meter()
    for number in range(10_000):
        one.mark(number)
    assert len(one._marks) <= 2 * meter.MOST_MARKS
    assert one._marks[0][0] == 0 and one._marks[-1][0] == 9_999


def test_the_last_attempts_are_told_apart() -> None:
    recent = meter.Recent()
    recent.add(closed=150, failed=0)
    recent.add(closed=0, failed=30)
    recent.add(closed=20, failed=5)
    assert (recent.count, recent.failed) == (100, 35)


# ── Who may see what ──────────────────────────────────────────────────────────────────────────────────────────────────


def projects_in(answer: httpx.Response) -> set[str]:
    return {dict(labels)["name"] for name, labels in samples(answer) if name == "tracker_project_paused"}


def test_a_stranger_is_refused_and_told_how_to_ask(site: Site) -> None:
    answer = site.guest.get("/metrics")
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert "metrics_token" in answer.json()["message"]
    assert site.guest.get("/metrics", headers={"Authorization": "Bearer"}).status_code == 401
    assert site.create_worker().http.get("/metrics").status_code == 401


def test_hidden_projects_are_for_admins_alone(make_site: Callable[..., Site]) -> None:
    site = make_site(metrics_token=TOKEN, public_metrics=True)
    site.admin.create_project("seen")
    site.admin.create_project("hidden", hidden=True)
    bearer = {"Authorization": f"bearer {TOKEN}"}
    assert projects_in(site.admin.get("/metrics")) == {"seen", "hidden"}
    assert projects_in(site.guest.get("/metrics", headers=bearer)) == {"seen"}
    assert projects_in(site.guest.get("/metrics")) == {"seen"}
    assert projects_in(site.create_manager().get("/metrics")) == {"seen"}


def test_a_token_lets_in_and_another_one_does_not(make_site: Callable[..., Site]) -> None:
    site = make_site(metrics_token=TOKEN)
    for given, status in ((f"Bearer {TOKEN}", 200), (f"Bearer {TOKEN}x", 401), (TOKEN, 401), ("Bearer é", 401)):
        answer = site.guest.get("/metrics", headers={"Authorization": given.encode("latin-1")})
        assert answer.status_code == status, given


def test_the_token_is_shown_nowhere(make_site: Callable[..., Site]) -> None:
    site = make_site(metrics_token=TOKEN)
    assert TOKEN not in site.admin.get("/ui/admin").text
    assert "set, and not shown" in site.admin.get("/ui/admin").text


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hot_calls_are_counted_alike_with_and_without_asgi(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    path = f"/task/get/{project}"
    with Line(site.url, worker) as line:
        for version in ("1.1", "1.1", "1.0"):  # the last one goes by way of ASGI
            line.send(line.request("GET", path, version=version))
            assert line.read().startswith(b"HTTP/1.1 200")
    assert sample(site, "tracker_requests_total", route="/task/get", status=200) == 3


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/project/list", "api", 200),
        ("GET", "/project/get/99", "api", 404),
        ("GET", "/ui/login", "page", 200),
        ("GET", "/ui/static/style.css", "static", 200),
        ("GET", "/nowhere", "none", 404),
        ("DELETE", "/task/submit", "none", 405),
        ("OPTIONS", "/task/submit", "none", 204),
        ("GET", "/v1/agents/queues", "testflinger", 200),
        ("GET", "/api/jobs/status", "otter", 400),
    ],
)
def test_every_answer_is_counted_by_the_class_of_its_route(
    site: Site, method: str, path: str, route: str, status: int
) -> None:
    before = sample(site, "tracker_requests_total", route=route, status=status)
    assert site.guest.request(method, path).status_code == status
    assert sample(site, "tracker_requests_total", route=route, status=status) == before + 1


def test_what_is_refused_before_it_is_complete_is_counted(site: Site) -> None:
    with Line(site.url) as line:
        line.send(b"this is no request\r\n\r\n")
        assert line.read().startswith(b"HTTP/1.1 400")
    assert sample(site, "tracker_requests_total", route="refused", status=400) == 1


def test_commits_are_told_with_their_batches(site: Site) -> None:
    before = sample(site, "tracker_batch_calls_count")
    site.admin.create_project()
    assert sample(site, "tracker_batch_calls_count") > before
    assert sample(site, "tracker_batch_calls_sum") >= sample(site, "tracker_batch_calls_count")
    assert sample(site, "tracker_commit_seconds_sum") > 0
    assert sample(site, "tracker_wal_bytes") > 0 and sample(site, "tracker_database_bytes") > 0


def test_who_was_seen_is_counted_for_a_while(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    site.create_worker()
    site.clock.pass_time(60)
    worker.assign(project)
    assert sample(site, "tracker_workers_seen") == 1 and sample(site, "tracker_workers") == 2


def test_who_was_seen_is_known_again_after_a_restart(site: Site, tmp_path: Path) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    site.create_worker()
    site.clock.pass_time(60)
    worker.assign(project)
    made = backup.back_up(site.settings, tmp_path / "copy.db", "1", lambda line: None)  # as another one would find it
    with tracker.serving(tracker.Settings(database=str(made), log_file="", public_metrics=True), site.clock) as url:
        assert "tracker_workers_seen 1.0" in httpx.get(f"{url}/metrics", trust_env=False).text


# ── What a scrape costs ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scrape_takes_as_many_steps_however_many_tasks_there_are() -> None:
    def steps(count: int) -> int:
        bench = place_with(count)[0].copy()
        return bench.steps(metrics.read_figures, True)

    assert steps(10) == steps(400)


def test_a_scrape_reads_by_indexes_alone() -> None:
    bench: Bench = place_with(10)[0].copy()
    for sql, plan in bench.plans(metrics.read_figures, True):
        assert not any(re.match(r"SCAN task|.*TEMP B-TREE", step) for step in plan), (sql, plan)


def test_those_who_ask_at_once_share_a_scrape(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SHARED_TIME", 60)
    read: list[bool] = []
    figures = metrics.read_figures
    monkeypatch.setattr(metrics, "read_figures", lambda tx, hidden: read.append(hidden) or figures(tx, hidden))
    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda _: site.admin.get("/metrics").status_code, range(40)))
    assert set(answers) == {200} and read == [True]


def test_the_answer_is_bounded_however_many_projects_there_are(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PROJECTS", metrics.PROJECTS.replace("LIMIT 1000", "LIMIT 2"))
    for _ in range(3):
        site.admin.create_project()
    assert len(projects_in(site.admin.get("/metrics"))) == 2


def test_two_trackers_in_one_process_count_apart(make_site: Callable[..., Site], tmp_path: Path) -> None:
    first, second = make_site(), make_site(database=str(tmp_path / "second.db"), log_file="")
    first.admin.create_project("mine")
    assert projects_in(second.admin.get("/metrics")) == set()
    assert sample(second, "tracker_requests_total", route="api", status=200) < 3


# ── The dashboard ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_metric_of_the_dashboard_exists(site: Site) -> None:
    project = site.admin.create_project()
    site.create_worker(project).submit(project)
    known = {name for name, _ in samples(site.admin.get("/metrics"))}
    dashboard = json.loads((Path(tracker.__file__).parent / "docs" / "grafana.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    named = {name for query in queries for name in re.findall(r"\btracker_\w+", query)}
    assert named and named <= known
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known}
    assert families - {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named} == set()


# ── Health ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_well_while_writes_commit(site: Site) -> None:
    answer = site.guest.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    head = site.guest.head("/health")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("code", "words"),
    [("SQLITE_FULL", "the disk is full"), ("SQLITE_READONLY", "cannot be written to"), ("SQLITE_CORRUPT", "damaged")],
)
def test_why_writes_do_not_commit_is_told(site: Site, monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    def fail(tx: Any) -> None:
        error = sqlite3.OperationalError("said by SQLite")
        error.sqlite_errorcode = getattr(sqlite3, code)
        raise error

    monkeypatch.setattr(metrics, "save_uptime", fail)
    answer = site.guest.get("/health")
    assert answer.status_code == 503 and words in answer.json()["message"]
    assert "said by SQLite" not in answer.text
    assert site.guest.head("/health").status_code == 503
    monkeypatch.undo()
    time.sleep(1.1)
    assert site.guest.get("/health").status_code == 200


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a file that is open cannot be moved")
def test_a_database_that_was_moved_away_is_told(site: Site, tmp_path: Path) -> None:
    (tmp_path / "tracker.db").rename(tmp_path / "elsewhere.db")
    answer = wait_until(lambda: (got := site.guest.get("/health")).status_code == 503 and got)
    assert "moved" in answer.json()["message"]
    (tmp_path / "elsewhere.db").rename(tmp_path / "tracker.db")


def with_tracker(tmp_path: Path, use: Callable[[tracker.Tracker, metrics.Health], Any]) -> Any:
    """What an async function does with a running tracker in this process."""

    async def run() -> Any:
        running = tracker.Tracker(tracker.Settings(database=str(tmp_path / "t.db"), log_file=""))
        await running.start()
        try:
            return await asyncio.wait_for(use(running, metrics.Health(running)), 30)
        finally:
            await running.stop()

    return asyncio.run(run())


def test_a_tracker_that_stops_says_so(tmp_path: Path) -> None:
    async def use(running: tracker.Tracker, health: metrics.Health) -> tracker.Reply:
        running.begin_stop()
        return await health.answer(None)

    reply = with_tracker(tmp_path, use)
    assert reply.status == 503 and "stopping" in reply.message


def test_a_write_that_does_not_end_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "HEALTH_PATIENCE", 0.05)

    async def use(running: tracker.Tracker, health: metrics.Health) -> tracker.Reply:
        async def never() -> str:
            await asyncio.Event().wait()

        health.problem = metrics.Shared(never)
        reply = await health.answer(None)
        health.problem._making.cancel()
        return reply

    reply = with_tracker(tmp_path, use)
    assert reply.status == 503 and "No write has been committed" in reply.message


def test_a_disk_that_is_nearly_full_is_told_while_writes_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(running: tracker.Tracker, health: metrics.Health) -> tracker.Reply:
        monkeypatch.setattr(running.limits, "look_at_disk", lambda folder: None)
        running.limits.disk_low = True
        return await health.answer(None)

    reply = with_tracker(tmp_path, use)
    assert reply.status == 200 and "nearly full" in reply.message


def test_all_who_ask_share_one_commit_a_second(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SHARED_TIME", 60)
    commits: list[int] = []
    save = metrics.save_uptime
    monkeypatch.setattr(metrics, "save_uptime", lambda tx: commits.append(1) or save(tx))
    with ThreadPoolExecutor(8) as crowd:
        asked = [(site.guest.get, site.guest.head)[number % 2] for number in range(60)]
        assert {one.status_code for one in crowd.map(lambda ask: ask("/health"), asked)} == {200}
    assert len(commits) == 1
