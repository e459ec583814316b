"""Monitoring: live counts, snapshots, and who holds how many tasks."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import Site, Worker, wait_until

from tracker import FAIL, OK, SKIP

FIELDS = {
    "new_task_count",
    "failed_task_count",
    "closed_task_count",
    "worker_access_count",
    "awaiting_verification_count",
    "time_stamp",
}


def snapshots(answer: httpx.Response) -> list[dict[str, int]]:
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["snapshots"]


def assignees(site: Site, project: int) -> list[tuple[str, int]]:
    answer = site.guest.get(f"/project/assignees/{project}").json()["content"]["assignees"]
    return [(one["assignee"], one["task_count"]) for one in answer]


def bulk(worker: Worker, project: int, count: int, **fields: Any) -> None:
    tasks = [{"project": project, "recipe": "x", **fields}] * count
    assert worker.bulk_submit(tasks).json()["content"]["submitted"] == count


def hold(worker: Worker, project: int, count: int) -> list[int]:
    """The ids of that many tasks, which the worker now holds."""
    tasks = worker.assign(project, count=count).json()["content"]["tasks"]
    assert len(tasks) == count
    return [task["id"] for task in tasks]


# ── Snapshots ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_snapshot_shows_the_counts_of_its_moment(make_site: Callable[..., Site]) -> None:
    site = make_site(snapshot_interval=0.05)
    site.clock.wall = 1_000_000_000 - site.clock.time()
    project = site.admin.create_project()
    worker = site.create_worker(project)
    site.create_worker(project, submit=False)
    site.create_worker().request_access(project)  # a request is no access yet
    bulk(worker, project, 2, verification_count=2, priority=1)
    bulk(worker, project, 6)
    for task, result in zip(hold(worker, project, 5), (OK, OK, OK, FAIL), strict=False):  # the fifth stays assigned
        worker.released(task, result)
    counts = {"new_task_count": 4, "failed_task_count": 1, "closed_task_count": 1, "awaiting_verification_count": 2}
    before = int(site.clock.time()) + 1
    site.clock.pass_time(2)

    def newest() -> dict[str, int] | None:
        [snapshot] = snapshots(site.guest.get(f"/project/monitoring/{project}?count=1")) or [{"time_stamp": 0}]
        return snapshot if snapshot["time_stamp"] >= before else None

    snapshot = wait_until(newest)
    assert set(snapshot) == FIELDS
    assert 0 <= snapshot.pop("time_stamp") - 1_000_000_000 < 1000
    assert snapshot == {**counts, "worker_access_count": 2}


def site_with_snapshots(make_site: Callable[..., Site], wanted: int) -> tuple[Site, int, list[int]]:
    """A site, a project, and the times of its snapshots: a minute lies between each and the next."""
    site = make_site(snapshot_interval=0.05)
    project = site.admin.create_project()
    for number in range(1, wanted + 1):
        wait_until(lambda number=number: len(times(site, f"monitoring/{project}?count=999")) >= number)
        site.clock.pass_time(60)
    return site, project, times(site, f"monitoring/{project}?count=999")


def times(site: Site, path: str) -> list[int]:
    return [snapshot["time_stamp"] for snapshot in snapshots(site.guest.get(f"/project/{path}"))]


def test_the_last_snapshots_come_newest_first(make_site: Callable[..., Site]) -> None:
    site, project, taken = site_with_snapshots(make_site, 4)
    assert taken == sorted(taken, reverse=True)
    assert taken[-1] + 3 * 60 <= taken[0]
    newest = times(site, f"monitoring/{project}?count=2")
    assert len(newest) == 2
    assert newest[0] > newest[1] >= taken[1]


def test_snapshots_between_two_moments_are_shown_both_included_newest_first(make_site: Callable[..., Site]) -> None:
    site, project, taken = site_with_snapshots(make_site, 4)
    between = times(site, f"monitoring-between/{project}?from={taken[-2]}&to={taken[1]}")
    assert between == taken[1:-1]
    assert times(site, f"monitoring-between/{project}?from=0&to={taken[-1] - 1}") == []
    [snapshot] = snapshots(site.guest.get(f"/project/monitoring-between/{project}?from={taken[-1]}&to={taken[-1]}"))
    assert set(snapshot) == FIELDS


def test_snapshots_of_one_project_are_not_those_of_another(make_site: Callable[..., Site]) -> None:
    site = make_site(snapshot_interval=0.05)
    project, other = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(project)
    bulk(worker, project, 3)
    moment = int(site.clock.time())
    site.clock.pass_time(10)
    wait_until(lambda: [time for time in times(site, f"monitoring/{other}") if time > moment])
    newest = [snapshots(site.guest.get(f"/project/monitoring/{one}"))[0] for one in (project, other)]
    assert [snapshot["new_task_count"] for snapshot in newest] == [3, 0]


def test_snapshots_are_taken_of_every_project_however_many_there_are(make_site: Callable[..., Site]) -> None:
    site = make_site(snapshot_interval=0.05)
    projects = [site.admin.create_project() for _ in range(60)]  # more than one transaction takes
    wait_until(lambda: all(times(site, f"monitoring/{project}") for project in (projects[0], projects[-1])))
    assert len(site.read("SELECT DISTINCT project FROM snapshot")) == 60


def test_old_snapshots_are_pruned(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.PRUNE_INTERVAL", 0.05)
    site = make_site(snapshot_interval=0.05, snapshot_history=1000)
    project = site.admin.create_project()
    [old] = wait_until(lambda: times(site, f"monitoring/{project}"))[-1:]
    site.clock.pass_time(1001)
    wait_until(lambda: old not in times(site, f"monitoring/{project}?count=999"))
    assert wait_until(lambda: times(site, f"monitoring/{project}"))


# ── Assignees ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_assignees_are_shown_with_how_many_tasks_each_holds_and_the_rest_as_unassigned(site: Site) -> None:
    project = site.admin.create_project()
    busy, idle = site.create_worker(project, alias="busy"), site.create_worker(project, alias="less busy")
    bulk(busy, project, 10)
    hold(busy, project, 3)
    hold(idle, project, 1)
    assert assignees(site, project) == [("unassigned", 6), ("busy", 3), ("less busy", 1)]


def test_a_project_without_tasks_has_no_assignees(site: Site) -> None:
    assert assignees(site, site.admin.create_project()) == []


def test_who_holds_no_task_any_more_is_no_assignee(site: Site) -> None:
    project, elsewhere = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(project, alias="worker")
    site.admin.grant(worker, elsewhere)
    bulk(worker, elsewhere, 1)
    hold(worker, elsewhere, 1)
    for ending in OK, FAIL, SKIP:
        bulk(worker, project, 1, max_retries=1)
        [task] = hold(worker, project, 1)
        assert ("worker", 1) in assignees(site, project)
        assert worker.released(task, ending)
        assert "worker" not in dict(assignees(site, project))
    site.admin.post(f"/project/hard_reset/{project}")
    bulk(worker, project, 1, max_assign_time=60)
    hold(worker, project, 1)
    assert assignees(site, project) == [("worker", 1)]
    site.clock.pass_time(61)
    wait_until(lambda: assignees(site, project) == [("unassigned", 1)])
    hold(worker, project, 1)
    site.admin.post(f"/project/reclaim_assigned_tasks/{project}")
    assert assignees(site, project) == [("unassigned", 1)]
    assert assignees(site, elsewhere) == [("worker", 1)]


def test_the_16_assignees_with_the_most_tasks_are_shown(site: Site) -> None:
    project = site.admin.create_project()
    site.create_worker(project)
    for number in range(1, 19):
        worker = site.create_worker(project, alias=f"w{number}")
        bulk(worker, project, number)
        hold(worker, project, number)
    assert assignees(site, project) == [(f"w{number}", number) for number in range(18, 2, -1)]


def test_unassigned_tasks_have_their_place_among_the_16(site: Site) -> None:
    project = site.admin.create_project()
    for number in range(1, 18):
        worker = site.create_worker(project, alias=f"w{number}")
        bulk(worker, project, 2)
        hold(worker, project, 2)
    bulk(worker, project, 3)
    shown = assignees(site, project)
    assert len(shown) == 16
    assert shown[0] == ("unassigned", 3)
