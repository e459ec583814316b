"""What an assignment costs where tasks need four verifications and a worker has verified nearly half of them.

    python bench/verifiers.py

Each of 100,000 tasks has been verified by three of 300 workers, no two by the same three. The worst worker belongs to
all of the first 44,000 of these sets, so that its next task is behind them. The domain functions are called in one
transaction, in turn with those for a project of which nobody has verified anything: processor time, without HTTP and
disk. Each assigned task is released as skipped, so that every round finds the same queue.
"""

import itertools
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import shapes
import tracker
from database import connect, prepare_file

WORKERS, SETS, WORST, CALLS, ROUNDS = 300, 100_000, 44_000, 100, 9
TASKS = """
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO task (project, priority, max_retries, max_assign_time, verification_count, recipe)
    SELECT ?, 0, 3, 3600, 4, 'https://example.org/page/' || i FROM n
"""


def verified_sets():
    """The three workers of each set, in the order of the tasks: worker 1 is the worst one."""
    others, chance = range(2, WORKERS + 1), random.Random(1)
    pairs = list(itertools.combinations(others, 2))
    chance.shuffle(pairs)
    yield from ((1, *pair) for pair in pairs[:WORST])
    sets = set()
    while len(sets) < SETS - WORST:
        sets.add(tuple(sorted(chance.sample(others, 3))))
    yield from sorted(sets, key=hash)


def furnish(tx):
    """A project whose tasks have been verified, and an untouched one: their ids."""
    _, session = tracker.register_manager(tx, "bench", "unused")
    verified, untouched = (
        tracker.as_caller(tx, tracker.create_project, session, shapes.ProjectBody(name=name, public=True))
        for name in ("verified", "untouched")
    )
    for number in range(WORKERS):
        tx.insert("worker", {"alias": str(number), "secret_hash": b"", "created": 0, "last_seen": tx.time})
    tx.execute(TASKS, (SETS, untouched))
    first = tx.one("SELECT MAX(id) + 1 FROM task")[0]
    tx.execute(TASKS, (SETS, verified))
    for task, members in enumerate(verified_sets(), first):
        row = {"project": verified, "members": ",".join(map(str, members)), "large": 1}
        found = tx.insert("verifier_set", row)["id"]
        tx.executemany("INSERT INTO verifier VALUES (?, ?)", [(found, member) for member in members])
        tx.executemany("INSERT INTO verification VALUES (?, ?, 7)", [(task, member) for member in members])
        tx.execute("UPDATE task SET verifiers = ? WHERE id = ?", (found, task))
    return verified, untouched


def cycles(tx, worker, project):
    """Milliseconds of one assignment, and of one release as skipped."""
    caller, assigning, releasing = tracker.WorkerCredentials(worker, None), 0.0, 0.0
    for _ in range(CALLS):
        began = time.process_time()
        (task,) = tracker.assign_tasks(tx, caller, [project]).tasks
        assigned = time.process_time()
        tracker.release_task(tx, caller, shapes.ReleaseBody(task.id, tracker.SKIP, 0))
        assigning, releasing = assigning + assigned - began, releasing + time.process_time() - assigned
    tx.execute("DELETE FROM assignment")
    return 1e3 * assigning / CALLS, 1e3 * releasing / CALLS


def main():
    with tempfile.TemporaryDirectory(dir=".") as directory:
        path, settings = Path(directory).resolve() / "verifiers.db", tracker.Settings()
        prepare_file(path, settings)
        connection = connect(path, settings)
        connection.execute("BEGIN IMMEDIATE")
        tx = tracker.Tx(connection, tracker.Clock(), settings)
        verified, untouched = furnish(tx)
        contenders = {
            "an untouched project": (2, untouched),
            "four verifications, any worker": (WORKERS, verified),
            f"four verifications, who is in the first {WORST:,} sets": (1, verified),
        }
        rounds = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, (worker, project) in contenders.items():
                rounds[name].append(cycles(tx, worker, project))
        connection.execute("ROLLBACK")
        connection.close()
    base = [statistics.median(times) for times in zip(*rounds["an untouched project"], strict=True)]
    print(f"{SETS:,} sets of three of {WORKERS} workers, SQLite {sqlite3.sqlite_version}; goal: at most 2 ms to assign")
    for name, times in rounds.items():
        assign, release = (statistics.median(one) for one in zip(*times, strict=True))
        print(
            f"{name:55} assign {assign:7.3f} ms ({assign / base[0]:5.2f})   skip {release:7.3f} ms"
            f" ({release / base[1]:5.2f})"
        )


if __name__ == "__main__":
    main()
