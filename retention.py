"""What is kept for a time, and then goes: history, logs, snapshots, sessions, what nobody uses any more.

Tracker.prune ─► prune(tx, table), a piece at a time, while there may be more
Tracker.roll_tallies, each hour ─► roll_tallies: what workers have closed, by hour, of which the last day is kept
"""

from __future__ import annotations

from database import let_age
from writer import Tx

PIECE_ROWS = 500  # that one step deletes or writes
TALLY_HOURS = 24
MOST_ASSIGNMENTS = 1_000_000  # ended ones that are kept: a worker that skips in a circle must not fill the disk
LINES_RETENTION = 86400  # seconds for which their operation is kept at least: its maker may come back the next day


def roll_tallies(tx: Tx, after: tuple[int, int], hour: int) -> tuple[int, int] | None:
    """Moves what the next workers have closed since the last time into `hour`. The last tally looked at, or None."""
    rows = tx.all(
        "SELECT project, worker, closed_task_count - rolled_task_count FROM tally WHERE (project, worker) > (?, ?)"
        " ORDER BY project, worker LIMIT ?",
        (*after, PIECE_ROWS),
    )
    tx.executemany(
        "INSERT INTO tally_hour VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET closed_task_count = closed_task_count + excluded.closed_task_count",
        [(hour, *row) for row in rows if row[2]],
    )
    tx.executemany(
        "UPDATE tally SET rolled_task_count = closed_task_count WHERE project = ? AND worker = ?",
        [row[:2] for row in rows if row[2]],
    )
    return rows[-1][:2] if len(rows) == PIECE_ROWS else None


PRUNE = {
    "log_entry": """DELETE FROM log_entry WHERE received < :logs_before AND id IN
        (SELECT id FROM log_entry ORDER BY id LIMIT :limit)""",
    "snapshot": """DELETE FROM snapshot WHERE (project, time_stamp) IN
        (SELECT s.project, s.time_stamp FROM project p CROSS JOIN snapshot s ON s.project = p.id
         AND s.time_stamp < :snapshots_before LIMIT :limit)""",
    "session": """DELETE FROM session WHERE id_hash IN
        (SELECT id_hash FROM session WHERE expires <= :now LIMIT :limit)""",
    "endless session": "UPDATE session SET expires = :last_end WHERE expires > :last_end",  # the clock was set back
    "tally_hour": """DELETE FROM tally_hour WHERE (hour, project, worker) IN
        (SELECT hour, project, worker FROM tally_hour WHERE hour < :first_hour OR hour > :last_hour LIMIT :limit)""",
    "assignment": """DELETE FROM assignment WHERE id IN (SELECT id FROM assignment ORDER BY id LIMIT :limit)
        AND (end_time < :history_before OR id <= (SELECT MAX(id) FROM assignment) - :most_assignments)""",
    "template": """DELETE FROM template WHERE id IN (SELECT id FROM template t WHERE deleted IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM job WHERE template = t.id) LIMIT :limit)""",
    "script": """DELETE FROM script WHERE id IN (SELECT id FROM script s
        WHERE NOT EXISTS (SELECT 1 FROM template WHERE script = s.id)
        AND NOT EXISTS (SELECT 1 FROM job WHERE script = s.id) LIMIT :limit)""",
    "workflow_edge": """DELETE FROM workflow_edge WHERE (workflow, template, ending, target) IN
        (SELECT workflow, template, ending, target FROM workflow w JOIN workflow_edge ON workflow = w.id
         WHERE w.deleted IS NOT NULL AND NOT EXISTS (SELECT 1 FROM job WHERE workflow = w.id) LIMIT :limit)""",
    "workflow": """DELETE FROM workflow WHERE id IN (SELECT id FROM workflow w WHERE deleted IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM job WHERE workflow = w.id) LIMIT :limit)""",
    "operation": """DELETE FROM operation WHERE id IN
        (SELECT id FROM operation ORDER BY id LIMIT :limit)
        AND finished < CASE kind WHEN 'submit_lines' THEN :lines_before ELSE :history_before END""",
    "login_failure": """DELETE FROM login_failure WHERE source IN
        (SELECT source FROM login_failure WHERE forget_uptime <= :uptime LIMIT :limit)""",
}


def prune(tx: Tx, table: str) -> bool:
    """Deletes some rows of the table that are too old or no longer used. Whether there may be more."""
    let_age(tx, table, limit=PIECE_ROWS)
    deleted = tx.execute(
        PRUNE[table],
        {
            "now": tx.before(0),
            "uptime": tx.uptime,
            "logs_before": tx.before(tx.settings.log_retention),
            "snapshots_before": tx.before(0) - tx.settings.snapshot_history,
            "history_before": tx.before(tx.settings.history_retention),
            "lines_before": tx.before(max(tx.settings.history_retention, LINES_RETENTION)),
            "most_assignments": MOST_ASSIGNMENTS,
            "first_hour": tx.before(0) // 3600 - TALLY_HOURS,
            "last_hour": tx.future / 3600,
            "last_end": tx.trusted_time + tx.settings.session_lifetime,
            "limit": PIECE_ROWS,
        },
    ).rowcount
    return deleted >= PIECE_ROWS
