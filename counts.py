"""The live counts: what the calls of a transaction have changed of them, and not written yet.

a function that changes tasks ─► Counts ─► one statement a row of project, tally and worker, for a whole batch
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pauses import pause_failing

COUNTED = {  # the states of tasks that a project counts, and where
    **{state: f"{state}_task_count" for state in ("waiting", "assigned", "failed", "closed", "delayed")},
    "awaiting_verification": "awaiting_verification_count",
}
TOTALS = ("failures", "losses")  # failed attempts and lost leases, of all time
ENDED = {"closed", *TOTALS}  # how attempts at tasks end that count for how well a project does
ADD_TO_TOTAL = """
    INSERT INTO failure_total VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET
        failed_attempt_count = failed_attempt_count + ?2, lost_lease_count = lost_lease_count + ?3
"""
ADD_TO_CAUSE = "UPDATE cause SET failed_task_count = failed_task_count + ? WHERE id = ?"
DROP_CAUSE = "DELETE FROM cause WHERE id = ? AND failed_task_count = 0"
ADD_TO_WORKER = "UPDATE worker SET closed_task_count = closed_task_count + ? WHERE id = ?"
ADD_TO_TALLY = """
    INSERT INTO tally (project, worker, held_task_count, closed_task_count, runtime_total, runtime_min, runtime_max,
        failures_in_row)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO UPDATE SET
        held_task_count = held_task_count + excluded.held_task_count,
        failures_in_row = iif(?9, 0, failures_in_row) + excluded.failures_in_row,
        closed_task_count = closed_task_count + excluded.closed_task_count,
        runtime_total = runtime_total + excluded.runtime_total,
        runtime_min = ifnull(min(runtime_min, excluded.runtime_min), ifnull(runtime_min, excluded.runtime_min)),
        runtime_max = ifnull(max(runtime_max, excluded.runtime_max), ifnull(runtime_max, excluded.runtime_max))
"""


# A worker that is gone has no tally, also while there are leases of its that have to end.
TAKE_FROM_TALLY = ADD_TO_TALLY.replace(
    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (SELECT 1 FROM worker WHERE id = ?2)",
)


@functools.cache
def adding_to_project(states: tuple[str, ...]) -> str:
    """The statement that adds to a project's counts of these states."""
    changes = ", ".join(f"{COUNTED[state]} = {COUNTED[state]} + ?" for state in states)
    return f"UPDATE project SET {changes} WHERE id = ?"


class Counts:
    """What a transaction has changed of the live counts and has not written yet: one statement a row for all its calls.

    Each statement that changes tasks is followed by a note of what it has changed here; nothing else writes the counts.
    States are those of TASK_STATES, "closed", and "gone" for a task that is not there yet, or no more.
    """

    __slots__ = ("causes", "ended", "projects", "tallies")

    MOST = 500  # rows; then they are written before the next call

    def __init__(self) -> None:
        self.ended: dict[int, dict[str, int]] = {}  # by project: attempts by how they ended; no row has them
        self.forget()

    def forget(self) -> None:
        self.projects: dict[int, dict[str, int]] = {}  # tasks by state
        self.causes: dict[int, int] = {}  # failed tasks by their group
        # By project and worker: held, closed, runtime's sum, min, max, failures in a row, whether they begin anew.
        self.tallies: dict[tuple[int, int], list] = {}

    def move(self, project: int, was: str, now: str, count: int = 1) -> None:
        """Tasks of the project have changed their state."""
        counts = self.projects.get(project)
        if counts is None:
            counts = self.projects[project] = {}
        counts[was] = counts.get(was, 0) - count
        counts[now] = counts.get(now, 0) + count

    def total(self, project: int, what: str) -> None:
        """One more of TOTALS has happened in the project."""
        counts = self.projects.setdefault(project, {})
        counts[what] = counts.get(what, 0) + 1

    def blame(self, cause: int, count: int = 1) -> None:
        """So many more tasks of a group have failed; below 0: are failed no more."""
        self.causes[cause] = self.causes.get(cause, 0) + count

    def tally(self, project: int, worker: int) -> list:
        tally = self.tallies.get((project, worker))
        if tally is None:
            tally = self.tallies[project, worker] = [0, 0, 0.0, None, None, 0, False]
        return tally

    def hold(self, project: int, worker: int, count: int) -> None:
        """The worker holds so many more tasks of the project."""
        self.tally(project, worker)[0] += count

    def fail(self, project: int, worker: int) -> None:
        """The worker has failed a plain task of the project, or lost its lease."""
        self.tally(project, worker)[5] += 1

    def succeed(self, project: int, worker: int) -> None:
        """The worker has closed or verified a task of the project: the failures in a row begin anew."""
        self.tally(project, worker)[5:] = 0, True

    def close(self, project: int, worker: int, runtimes: list[float]) -> None:
        """The worker has closed tasks of the project, each of which it had held for so many seconds."""
        self.move(project, "assigned", "closed", len(runtimes))
        self.hold(project, worker, -len(runtimes))
        self.succeed(project, worker)
        tally = self.tallies[project, worker]
        tally[1] += len(runtimes)
        tally[2] += sum(runtimes)
        tally[3] = min(runtimes) if tally[3] is None else min(tally[3], *runtimes)
        tally[4] = max(runtimes) if tally[4] is None else max(tally[4], *runtimes)

    @property
    def many(self) -> bool:
        return len(self.tallies) + len(self.projects) + len(self.causes) > self.MOST

    def write(self, tx: Any) -> None:
        """Adds everything to the rows."""
        for project, counts in self.projects.items():
            counts.pop("gone", None)
            for what in ENDED & counts.keys():
                ended = self.ended.setdefault(project, {})
                ended[what] = ended.get(what, 0) + counts[what]
            total = [counts.pop(what, 0) for what in TOTALS]
            if any(total):
                tx.execute(ADD_TO_TOTAL, (project, *total))
            if counts:
                tx.execute(adding_to_project(tuple(counts)), (*counts.values(), project))
        if self.tallies:
            rows = [(*key, *tally) for key, tally in self.tallies.items()]
            if added := [row for row in rows if row[2] >= 0 or row[3]]:
                tx.executemany(ADD_TO_TALLY, added)
            if len(added) < len(rows):
                tx.executemany(TAKE_FROM_TALLY, [row for row in rows if row[2] < 0 and not row[3]])
            pause_failing(tx, [(*key, tally[5]) for key, tally in self.tallies.items() if tally[5]])
            closed = [(tally[1], worker) for (_, worker), tally in self.tallies.items() if tally[1]]
            tx.executemany(ADD_TO_WORKER, closed)
        if self.causes:
            tx.executemany(ADD_TO_CAUSE, [(count, cause) for cause, count in self.causes.items() if count])
            tx.executemany(DROP_CAUSE, [(cause,) for cause in self.causes])
        self.forget()


def reads_no_counts(function: Callable) -> Callable:
    """Declares that a function reads no live counts: those of the calls before it need not have been written.

    For the hot ones, so that a batch of them writes each count once. (A test looks at what their statements read.)
    """
    function.reads_no_counts = True
    return function
