"""The live counts: folded for a batch of calls, and always those of the tasks that there are."""

from __future__ import annotations

import ast
import copy
import itertools
import math
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from place import OPERATIONS, Memory, Operation, call, check_counts, in_memory, new_task
from test_atomicity import Sabotage, sabotaged

import shapes
import tracker
import writer
from counts import Counts, reads_no_counts
from tracker import FAIL, Tx
from writer import Write

HOME = Path(tracker.__file__).parent


class Batches(Memory):
    """A Place in memory, and a writer to it."""

    def __init__(self) -> None:
        super().__init__()
        self.place = self.furnish()
        self.connection.execute("UPDATE project SET assign_rate = 0, submit_rate = 0")

    def copy(self) -> Batches:
        other = copy.copy(self)
        other.connection = in_memory(self.connection)
        return other

    def commit(self, *calls: Operation, failed_before: Sequence[Operation] = ()) -> list[Any]:
        """Commits calls as one batch: what each has answered, or raised. Some are known to fail half way."""
        committer = writer.Committer(
            SimpleNamespace(connection=self.connection), self.clock, self.settings, lambda: 1e9
        )
        committer.BATCH_TIME = 1e9
        committer.half_done = {writer.kind_of(Write(None, *call)): math.inf for call in failed_before}
        batch = [Write(None, function, args) for function, args in calls]
        outcomes = {id(call): outcome for call, outcome in committer.run_batch(batch).done}
        self.connection.execute("COMMIT")
        check_counts(self.connection)
        return [outcome if error is None else error for outcome, error in (outcomes[id(call)] for call in batch)]

    def contents(self) -> dict[str, list[sqlite3.Row]]:
        """Every row of every table."""
        tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'sqlite_sequence'"
        names = [name for (name,) in self.connection.execute(tables)]
        return {name: self.connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}


FURNISHED = Batches()
HOT = [name for name in OPERATIONS if hasattr(OPERATIONS[name](FURNISHED.place)[0], "reads_no_counts")]


@pytest.fixture
def batches() -> Batches:
    return FURNISHED.copy()


# ── A batch of calls ──────────────────────────────────────────────────────────────────────────────────────────────────


def counting(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each write of the counts changes, from now on."""
    written: list[int] = []
    real = Counts.write

    def write(counts: Counts, tx: Tx) -> None:
        before = batches.connection.total_changes
        real(counts, tx)
        if batches.connection.total_changes > before:
            written.append(batches.connection.total_changes - before)

    monkeypatch.setattr(Counts, "write", write)
    return written


def test_a_batch_of_submits_counts_once(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    written = counting(batches, monkeypatch)
    task = new_task(batches.place.second)
    assert batches.commit(*[(tracker.submit_task, (batches.place.worker, task))] * 20) == [None] * 20
    assert written == [1]


def waiting(tx: Tx, project: int) -> int:
    return tracker.find_project(tx, project)["waiting_task_count"]


def test_a_call_sees_the_counts_of_those_before_it_in_its_batch(batches: Batches) -> None:
    place = batches.place
    submit, look = (tracker.submit_task, (place.worker, new_task(place.second))), (waiting, (place.second,))
    first, _, second, _, _, third = batches.commit(look, submit, look, submit, submit, look)
    assert (second, third) == (first + 1, first + 3)


def test_counts_of_very_many_rows_are_written_before_a_batch_ends(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counts, "MOST", 1)
    written = counting(batches, monkeypatch)
    place = batches.place
    submits = [(tracker.submit_task, (place.worker, new_task(project))) for project in (place.first, place.second) * 3]
    batches.commit(*submits)
    assert written == [2, 2, 2]


@reads_no_counts
def submit_and_fail(tx: Tx, *args: Any) -> None:
    tracker.submit_task(tx, *args)
    raise Sabotage("at the end")


@pytest.mark.parametrize("name", HOT)
def test_what_is_undone_is_not_counted_and_what_is_done_beside_it_is(name: str) -> None:
    """Each statement fails in turn, between calls that succeed, that fail at once, and that fail after a change.

    Half of the time it is known that those do, and they have savepoints among others without.
    """
    place = FURNISHED.place
    function, args = OPERATIONS[name](place)
    done = [
        (tracker.submit_task, (place.worker, new_task(place.second, "before"))),
        (tracker.release_task, (place.worker, shapes.ReleaseBody(place.held["with one attempt"], FAIL))),
        (tracker.assign_tasks, (place.other, [place.second], 2)),
    ]
    refused = (tracker.submit_task, (place.stranger, new_task(place.second)))
    undone = (submit_and_fail, (place.worker, new_task(place.second, "undone")))
    alone = FURNISHED.copy()
    alone.commit(*done)
    expected = alone.contents()
    for nth in itertools.count(1):
        batches, failing = FURNISHED.copy(), reads_no_counts(sabotaged(function, nth))
        known = [(failing, args), undone] if nth % 2 else []
        outcomes = batches.commit(done[0], refused, done[1], (failing, args), undone, done[2], failed_before=known)
        assert isinstance(outcomes[1], tracker.NoAccess)
        assert all(isinstance(outcome, Sabotage) for outcome in outcomes[3:5])
        assert batches.contents() == expected
        if outcomes[3].args == ("at the end",):
            break


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_done_is_counted(batches: Batches, name: str) -> None:
    function, args = OPERATIONS[name](batches.place)
    submit = (tracker.submit_task, (batches.place.worker, new_task(batches.place.first)))
    batches.commit(submit, (call, (function, *args)), submit)


# ── No path around ────────────────────────────────────────────────────────────────────────────────────────────────────

CHANGES_TASKS = re.compile(r"\b(INSERT (OR \w+ )?INTO|REPLACE INTO|UPDATE( OR \w+)?|DELETE FROM) task\b")
COUNTING = {  # the functions that change tasks, each of which counts that, or changes no state
    *(
        "INSERT_TASK",
        "queue_job",
        "hold",
        "take_away",
        "delete_tasks",
        "close_tasks",
        "close_plain_tasks",
        "DELAY_TASK",
        "make_ready",
    ),
    *("set_priorities", "extend_lease"),
    "UPGRADES",
    "insert_tasks",  # of moving.py
}


def test_tasks_are_changed_by_a_few_functions_which_count_that() -> None:
    found = set()
    for file in (*HOME.glob("*.py"), *HOME.glob("dialects/**/*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if CHANGES_TASKS.search(" ".join(text for text in texts if isinstance(text, str))):
                found.add(getattr(node, "name", None) or (getattr(node, "targets", None) or [node.target])[0].id)
    assert found == COUNTING


COUNT_READERS = {"project": set(tracker.COUNT_COLUMNS), "worker": {"closed_task_count"}}
COUNT_READERS["tally"] = {"held_task_count", "closed_task_count", "runtime_total", "runtime_min", "runtime_max"}


@pytest.mark.parametrize("name", HOT)
def test_a_function_that_is_said_to_read_no_counts_reads_none(batches: Batches, name: str) -> None:
    function, args = OPERATIONS[name](batches.place)
    statements: set[str] = set()
    batches.connection.execute("BEGIN")
    batches.connection.set_trace_callback(statements.add)
    function(Tx(batches.connection, batches.clock, batches.settings), *args)
    batches.connection.set_trace_callback(None)
    read: set[tuple[str, str]] = set()

    def note(action: int, table: str | None, column: str | None, *_: Any) -> int:
        if action == sqlite3.SQLITE_READ and column in COUNT_READERS.get(table, ()):
            read.add((table, column))
        return sqlite3.SQLITE_OK

    batches.connection.set_authorizer(note)
    for sql in statements:
        if not sql.startswith("--"):  # those are a trigger's
            batches.connection.execute(f"EXPLAIN {sql}")
    assert not read
