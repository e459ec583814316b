"""Queues of Testflinger with many jobs, written straight into the database of a tracker that does not run.

The dialect catches up with each state that the jobs go through, as it does with what was done while it was away.
"""

import contextlib
import sqlite3
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tracker
from dialects.testflinger import events

# Every job has a tag that all have, one of its hundred, and MATCHES jobs have a rare one. Submitted one per second.
JOBS = """
    INSERT INTO job (token, project, name, recipe, runas, variables, arguments, env, timeout, max_retries, priority,
        origin, created, updated)
    WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
    SELECT lower(hex(randomblob(12))), :project + i % :queues, 'job',
        json_object('job_queue', 'queue ' || (i % :queues), 'name', 'job ' || i,
        'provision_data', json_object('distro', 'jammy'), 'test_data', json_object('test_cmds', 'make check')),
        '', '{}', '[]', '{}', 1e9, 0, 0, 'testflinger', :now - :count + i, :now FROM n
"""
TASKS = """
    INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count, job)
    SELECT project, recipe, priority, 0, 1000000000, 1, id FROM job WHERE id > :ended
"""
QUEUED = "UPDATE job SET task = (SELECT id FROM task WHERE job = job.id) WHERE id > :ended"
TAGS = """
    INSERT INTO testflinger_tag SELECT 'all', job FROM testflinger_job UNION ALL
    SELECT 'hundred ' || (job / 100), job FROM testflinger_job UNION ALL
    SELECT * FROM (SELECT 'rare', job FROM testflinger_job ORDER BY job LIMIT :matches)
"""
STARTED = """
    UPDATE job SET state = 'assigned', started = created + id * 7919 % 3600, assignee = :worker WHERE id <= :ended
"""
AGENTS = "UPDATE testflinger_job SET agent = 'bench' WHERE job <= :ended"
ENDED = """
    UPDATE job SET state = iif(id > :ended - :matches, 'cancelled', 'succeeded'), finished = :now WHERE id <= :ended
"""
OUTCOMES = "INSERT INTO testflinger_outcome (uuid, touched) SELECT uuid, :now FROM testflinger_job WHERE job <= :ended"
RESULTS = """
    INSERT INTO testflinger_result SELECT uuid, 'status', '{"setup":0,"provision":0,"test":0}' FROM testflinger_outcome
"""
LINES = """
    INSERT INTO job_line SELECT id, number, :now, 5, 'test', 'make: Nothing to be done for check', :worker
    FROM job, (SELECT 1 AS number UNION ALL SELECT 2 UNION ALL SELECT 3) WHERE id <= :ended
"""
FRAGMENTS = """
    INSERT INTO testflinger_fragment SELECT uuid, 'output', number, 'test', number - 1, time, number, NULL
    FROM job_line l JOIN testflinger_job t ON t.job = l.job
"""
MATCHES = 10  # jobs that the searches for a few find


def catch_up(connection):
    connection.row_factory = sqlite3.Row
    tx = tracker.Tx(connection, tracker.Clock(), tracker.Settings())
    for step in (events.compare_jobs, events.note_missed):
        after = 0
        while after is not None:
            after = step(tx, after)


def fill_queues(database, worker, finished, waiting):
    """Fill the queues, which have been made one after the other, with jobs; returns the id of one that has ended."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        first, queues = connection.execute("SELECT MIN(project), COUNT(*) FROM testflinger_queue").fetchone()
        values = {"worker": worker, "project": first, "queues": queues, "count": finished + waiting}
        values |= {"ended": finished, "matches": MATCHES, "now": int(time.time())}
        for script in (JOBS, TASKS, QUEUED, TAGS, STARTED, AGENTS, ENDED, OUTCOMES, RESULTS, LINES, FRAGMENTS):
            connection.execute(script, values)
            if script in (JOBS, STARTED, ENDED):
                catch_up(connection)
        tracker.recount(connection)
        counted = dict(connection.execute("SELECT state, COUNT(*) FROM testflinger_job GROUP BY state"))
        if counted != {"waiting": waiting, "complete": finished - MATCHES, "cancelled": MATCHES}:
            raise RuntimeError(f"the queues were to have {finished} ended and {waiting} waiting jobs: {counted}")
        chosen = "SELECT uuid FROM testflinger_job WHERE job = ?"
        example = connection.execute(chosen, (finished // 2,)).fetchone()[0]
        connection.execute("COMMIT")
    return example
