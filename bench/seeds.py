"""Databases that are filled once and copied per measurement. Each function fills one; its docstring says with what."""

import time

from harness import BULK, Connection, encode
from large import furnish
from queues import fill_queues

MILLION = 1_000_000
QUEUES = [f"queue {number}" for number in range(10)]  # of Testflinger


def small(lab, tracker):
    """10,000 tasks"""
    project = tracker.add_project("main")
    tracker.add_project("other")
    tracker.fill(project, 10_000)


def million(lab, tracker):
    """1,000,000 tasks, and 50,000 in another project"""
    tracker.fill(with_other(lab, tracker), lab.size(MILLION))


def with_other(lab, tracker):
    """A main project, and another with tasks enough for the worker who is timed; returns the main one."""
    project, other = tracker.add_project("main"), tracker.add_project("other")
    tracker.fill(other, 50_000)
    return project


def all_failed(lab, tracker):
    """1,000,000 failed tasks"""
    project = with_other(lab, tracker)
    tracker.fill(project, lab.size(MILLION))
    with tracker.connect(tracker.crew()[0]) as connection:
        tracker.hold(connection, project, lab.size(MILLION), result=1)


def all_assigned(lab, tracker):
    """1,000,000 assigned tasks"""
    project = with_other(lab, tracker)
    tracker.fill(project, lab.size(MILLION))
    with tracker.connect(tracker.crew()[0]) as connection:
        tracker.hold(connection, project, lab.size(MILLION))


def overdue(lab, tracker):
    """100,000 assigned tasks whose time runs out soon after the tracker is started again"""
    project, seconds = with_other(lab, tracker), 20
    tracker.fill(project, lab.size(BULK), max_assign_time=seconds)
    started = time.monotonic()
    with tracker.connect(tracker.crew()[0]) as connection:
        tracker.hold(connection, project, lab.size(BULK))
    # The clock of the deadlines stands still while the tracker is down.
    time.sleep(max(0, started + seconds - 3 - time.monotonic()))


def verified(lab, tracker):
    """200,000 tasks with verification_count 2, the first half verified by one worker"""
    count = lab.size(BULK)
    main, exhausted = tracker.add_project("main"), tracker.add_project("exhausted")
    tracker.fill(tracker.add_project("untouched"), 2 * count, verification_count=2)
    tracker.fill(main, 2 * count, verification_count=2)
    tracker.fill(exhausted, count, verification_count=2)
    with tracker.connect(tracker.crew()[0]) as connection:
        for project in (main, exhausted):
            tracker.hold(connection, project, count, result=0)


def large_tracker(lab, tracker):
    """1,000,000 tasks in mixed states, 10,000 workers, 100,000 snapshots of one of 60 projects, logs and histories"""
    for name in ("main", "other", *(f"small {number:02}" for number in range(58))):
        tracker.add_project(name)
    tracker.crew()
    tracker.stop()  # nobody else may write to its database
    tracker.seed.examples = furnish(tracker.database, tracker.seed.projects, lab.scale)


def ten_million(lab, tracker):
    """10,000,000 tasks in one of 1,000 projects, a tenth of them in mixed states"""
    with_projects(tracker, lab.size(1_000), lab.size(9_100_000), lab.scale)


def ten_thousand(lab, tracker):
    """10,000 tasks in one of 60 projects, a tenth of them in mixed states"""
    with_projects(tracker, 60, 9_100, 0.001)


def with_projects(tracker, projects, plain, scale):
    """So many projects, of which "main" has, besides what furnish() gives it, so many tasks that come first."""
    for name in ("main", "other", "empty"):
        tracker.add_project(name)
    tracker.crew()  # before there are more projects: nobody needs access to all of them
    for number in range(projects - len(tracker.seed.projects)):
        tracker.add_project(f"small {number:03}")
    tracker.stop()  # nobody else may write to its database
    furnished = {name: project for name, project in tracker.seed.projects.items() if name != "empty"}
    tracker.seed.examples = furnish(tracker.database, furnished, scale, plain)


def with_jobs(tracker, ended, waiting):
    """Ten queues with so many jobs, and an ordinary project with tasks."""
    tracker.fill(tracker.add_project("other"), 20_000)
    with Connection(tracker.url) as connection:
        connection.exchange(encode("POST", "/v1/agents/queues", {}, dict.fromkeys(QUEUES, "ten queues")))
    worker = tracker.crew()[0]["id"]
    tracker.stop()  # nobody else may write to its database
    tracker.seed.examples = {"ended": fill_queues(tracker.database, worker, ended, waiting)}


def few_jobs(lab, tracker):
    """100 ended and 10 waiting jobs"""
    with_jobs(tracker, 100, 10)


def many_jobs(lab, tracker):
    """100,000 ended and 10,000 waiting jobs"""
    with_jobs(tracker, lab.size(BULK), lab.size(BULK) // 10)
