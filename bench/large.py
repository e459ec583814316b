"""A large tracker as it may look after months, written straight into the database of one that does not run.

Only the pages of the manager UI need all of this at once; through the API it would take an hour to come about.
"""

import contextlib
import sqlite3
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tracker

WORKERS, SNAPSHOTS, LOG_LINES, MANAGERS, JOBS = 10_000, 100_000, 100_000, 100, 10_000
SERIES = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)"

# Of 20 tasks 13 wait, 2 are assigned, 2 await verification, 3 have failed: that many in each project.
TASKS = f"""
    INSERT INTO task (project, priority, max_retries, max_assign_time, verification_count, hash64, recipe)
    {SERIES} SELECT :project, i % 7, 3, 3600, 0, NULL, 'https://example.org/page/' || i FROM n
"""
PLAIN = TASKS.replace("i % 7", "9")  # are assigned before all others
ASSIGNED = """
    UPDATE task SET assignee = :worker + (id / 20 * 2 + id % 2) % :workers, assign_time = :now - id % 3600,
        assigned_uptime = 0, deadline_uptime = 1e9
    WHERE id > :before AND id % 20 IN (0, 1)
"""
AWAITING = """
    UPDATE task SET verification_count = 2, verifiers = (
        SELECT id FROM verifier_set WHERE project = :project AND members = CAST(:worker + id / 20 % 100 AS TEXT))
    WHERE id > :before AND id % 20 IN (2, 3)
"""
FAILED = "UPDATE task SET status = 2, retries = max_retries WHERE id > :before AND id % 20 IN (4, 5, 6)"

VERIFIER_SETS = f"""
    INSERT INTO verifier_set (project, members) {SERIES.replace(":count", "100")} SELECT :project, :worker + i FROM n
"""
VERIFIERS = """
    INSERT INTO verifier SELECT id, CAST(members AS INTEGER) FROM verifier_set WHERE project = :project
"""
VERIFICATIONS = """
    INSERT INTO verification SELECT t.id, CAST(s.members AS INTEGER), 0
    FROM task t JOIN verifier_set s ON s.id = t.verifiers WHERE t.id > :before
"""
PAST_ASSIGNMENTS = """
    INSERT INTO assignment (task, project, worker, assign_time, end_time, outcome)
    SELECT id, project, :worker + id / 3 % :workers, :now - 90 - id % 86400, :now - id % 86400,
        iif(id % 3, 'failed', 'expired')
    FROM task WHERE id > :before AND status = 2
"""
TALLIES = f"""
    INSERT INTO tally (project, worker, closed_task_count, runtime_total, runtime_min, runtime_max)
    {SERIES.replace(":count", ":workers")} SELECT :project, :worker + i, 100 + i, 10.5 * i, 0.1, 300.5 FROM n WHERE TRUE
    ON CONFLICT DO UPDATE SET closed_task_count = excluded.closed_task_count, runtime_total = excluded.runtime_total,
        runtime_min = excluded.runtime_min, runtime_max = excluded.runtime_max
"""
LAST_DAY = f"""
    INSERT INTO tally_hour SELECT :now / 3600 - hour, :project, worker, 1 + worker % 7
    FROM ({SERIES.replace(":count", "24")} SELECT i AS hour FROM n), tally WHERE project = :project
"""
ROLLED = "UPDATE tally SET rolled_task_count = closed_task_count WHERE project = :project"
ACCESS = f"""
    INSERT OR IGNORE INTO worker_access (project, worker, role_assign, role_submit, request)
    {SERIES.replace(":count", ":workers")} SELECT :project, :worker + i, 1, 1, i < :requests FROM n
"""
PROJECT_SNAPSHOTS = f"""
    INSERT OR REPLACE INTO snapshot
    {SERIES} SELECT :project, :now - 60 * i, 500000 + i, i % 1000, 90000000 - 50 * i - i * i % 40, 10000, i % 3000,
        9000000 - 5 * i
    FROM n
"""
CLOSED = """
    UPDATE project SET closed_task_count = (SELECT MAX(closed_task_count) FROM snapshot WHERE project = :project)
    WHERE id = :project
"""
OPERATIONS = f"""
    INSERT INTO operation (kind, project, manager, wanted, last_task, affected, started, started_uptime, finished)
    {SERIES.replace(":count", "200")} SELECT 'retry', :project, 1, '{{"state":"failed"}}', 0, i, :now - i, 0, :now
    FROM n
"""
ROLES = "INSERT OR IGNORE INTO manager_role SELECT :project, id, 7 FROM manager"

TEMPLATE = """
    INSERT INTO template (token, project, name, description, recipe, runas, variables, undeclared, arguments, env,
        max_retries, priority, api, secret, created, updated)
    VALUES ('template', :project, 'build', '', 'build', '', '[]', 0, '[]', '{}', 1, 0, 0, '', :now, :now)
"""
WORKFLOW = """
    INSERT INTO workflow (token, project, name, start, created)
    SELECT 'workflow', :project, 'build at night', MAX(id), :now FROM template
"""
ENDED_JOBS = f"""
    INSERT INTO job (token, project, template, name, state, recipe, runas, variables, arguments, env, timeout,
        max_retries, priority, origin, manager, created, started, finished, updated, attempts)
    {SERIES} SELECT printf('%024x', i), :project, (SELECT MAX(id) FROM template), 'build',
        iif(i % 3, 'succeeded', 'failed'), 'build', '', '{{}}', '[]', '{{}}', 600, 1, 0, 'native', 1,
        :now - 60 * (:count - i), :now - 60 * (:count - i) + 5, :now - 60 * (:count - i) + 30, :now, 1
    FROM n
"""

NEW_WORKERS = f"""
    INSERT INTO worker (alias, secret_hash, created, last_seen, paused, closed_task_count)
    {SERIES} SELECT 'crawler ' || (i * 7919 % 10007), randomblob(32), :now - 1000000, :now - i * 7919 % 1000000,
        i % 50 = 0, i
    FROM n
"""
NEW_MANAGERS = f"""
    INSERT INTO manager (username, password_hash, tracker_admin, register_time)
    {SERIES} SELECT 'manager ' || i, '', 0, :now FROM n
"""
LOGS = f"""
    INSERT INTO log_entry (received, time, level, scope, message, worker, task, project)
    {SERIES} SELECT :now - (:count - i) * 5, :now - (:count - i) * 5, 3 + i % 3, 'crawl',
        'https://example.org/page/' || i || ' was answered 503 Service Unavailable; trying again after some seconds',
        :worker + i * 31 % :workers, iif(i % 2, NULL, :task + i % 100), :project
    FROM n
"""


def furnish(database, projects, scale, plain=0):
    """Fill a tracker's database: of `projects`, by name, "main" gets nine tenths of the tasks and of everything else.

    "other" gets the requests for access. `plain` more tasks go to "main", where they wait before all others. The live
    counts come out right; nobody is logged in as the new managers and workers. The deadlines of the
    assigned tasks are far away. Returns ids for the names in pages' paths.
    """
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = -500000")  # KiB: it is one large transaction
        connection.execute("BEGIN IMMEDIATE")
        first = connection.execute("SELECT MAX(id) + 1 FROM worker").fetchone()[0]
        values = {"now": int(time.time()), "worker": first, "workers": int(WORKERS * scale)}

        def run(script, **more):
            return connection.execute(script, {**values, **more})

        run(NEW_WORKERS, count=values["workers"])
        run(NEW_MANAGERS, count=MANAGERS)
        shares, snapshots = {"main": 0.9, "other": 0.05}, int(SNAPSHOTS * scale)
        for name, project in projects.items():
            share = shares.get(name, 0.05 / (len(projects) - len(shares)))
            furnish_project(run, project, int(1_000_000 * scale * share))
            run(PROJECT_SNAPSHOTS, project=project, count=snapshots if name == "main" else snapshots // 50)
            run(CLOSED, project=project)
        main, other = projects["main"], projects["other"]
        if plain:
            run(PLAIN, project=main, count=plain)
        task = connection.execute("SELECT MIN(id) FROM task WHERE project = ? AND status = 2", (main,)).fetchone()[0]
        for script in (TALLIES, LAST_DAY, ROLLED):
            run(script, project=main)
        run(ACCESS, project=main, requests=0)
        run(ACCESS, project=other, requests=values["workers"] // 3)
        run(TEMPLATE, project=main)
        run(WORKFLOW, project=main)
        run(ENDED_JOBS, project=main, count=int(JOBS * scale))
        run(LOGS, project=main, task=task, count=int(LOG_LINES * scale))
        tracker.recount(connection)
        connection.execute("COMMIT")
    return {
        "project": main,
        "other": other,
        "task": task,  # failed, with a history and log lines
        "last_task": int(900_000 * scale) - 1000,
        "worker": first + 1,
        "last_worker": first + values["workers"] - 60,
        "operation": 1,
        "template": 1,
        "workflow": 1,
        "job": f"{1:024x}",
    }


def furnish_project(run, project, tasks):
    before = run("SELECT IFNULL(MAX(id), 0) FROM task").fetchone()[0]  # the project's tasks are those after it
    run(TASKS, project=project, count=tasks)
    for script in (VERIFIER_SETS, VERIFIERS, ASSIGNED, AWAITING, FAILED, VERIFICATIONS, PAST_ASSIGNMENTS):
        run(script, project=project, before=before)
    for script in (OPERATIONS, ROLES):
        run(script, project=project)
