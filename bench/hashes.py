"""Bulk submits with a unique string into files with many hashes, each beside what sqlite3.executemany does there.

    python bench/hashes.py [--long] [--quick] [--rounds 3] [--dir PLACE]

Two files: 8,000,000 waiting tasks that all have a hash, and (a project with keep_hashes) 10,000,000 kept hashes, with
--long 100,000,000. The baseline inserts the same number of rows into the same file by executemany, 500 in each
transaction, with the same pragmas; turn about, each time with a warm page cache (the file has been read) or a cold one
(posix_fadvise; the rows of the rounds before are left in). Beside the second file a bulk submit into an empty one.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import statistics
import sys
import time

from harness import BULK, ROOT, Lab, Tracker, bulk_body, checkpoint, recipe, say

sys.path.insert(0, str(ROOT))
import tracker

PIECE = 500
NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT"
TASKS = f"""
    INSERT INTO task (project, priority, max_retries, max_assign_time, verification_count, hash64, recipe)
    {NUMBERS} 1, 0, 0, 0, 0, random(), 'https://example.org/page/' || i FROM n
"""
HASHES = f"INSERT OR IGNORE INTO kept_hash {NUMBERS} 1, random() FROM n ORDER BY 2"


def prepared(lab, fill, count):
    """The database of a tracker with a project that keeps hashes, and `count` rows that a statement writes into it."""
    with lab.tracker() as running:
        running.add_project("main", keep_hashes=fill is HASHES)
        running.crew()
    say(f"  preparing {count:,} rows")
    with contextlib.closing(sqlite3.connect(running.database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        schema = connection.execute("SELECT type, name FROM sqlite_schema WHERE tbl_name = 'task' AND sql NOT NULL")
        for kind, name in schema.fetchall():  # an index is made much faster when all rows are there
            if kind in ("index", "trigger"):
                connection.execute(f"DROP {kind} {name}")
        connection.execute("BEGIN")
        connection.execute(fill, {"count": count})
        connection.execute("COMMIT")
        connection.executescript((ROOT / "schema.sql").read_text())
    checkpoint(running.database)
    return running


class Bulks:
    """Bulk submits into one file, and the same by executemany. Every one has new rows."""

    begun = 10**9

    def __init__(self, lab, made, count, cold):
        self.lab, self.made, self.count, self.cold = lab, made, count, cold

    def rows(self):
        Bulks.begun += self.count
        return range(Bulks.begun - self.count, Bulks.begun)

    def set_cache(self):
        os.sync()
        with open(self.made.database, "rb") as file:
            if self.cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(2**24):
                    pass

    def through_tracker(self):
        """Tasks/s."""
        numbers = self.rows()
        body, worker = bulk_body(1, self.count, numbers[0], unique=True), self.made.seed.workers[0]
        running = Tracker(self.lab, self.made.database, self.made.seed)
        with running, running.connect(worker) as connection:
            request = connection.encode("POST", "/task/bulk_submit", body)
            self.set_cache()
            started = time.perf_counter()
            answer = json.loads(connection.exchange(request))
            elapsed = time.perf_counter() - started
        if answer["content"]["submitted"] != self.count:
            raise RuntimeError(f"a bulk submit of {self.count} tasks was answered {answer}")
        checkpoint(self.made.database)
        return self.count / elapsed

    def executemany(self):
        """Tasks/s."""
        rows = [(1, recipe(n), 0, 1, 0, 0, tracker.hash_unique_string(recipe(n))) for n in self.rows()]
        with contextlib.closing(sqlite3.connect(self.made.database, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA cache_size = -16384")  # as the tracker
            keeps = connection.execute("SELECT keep_hashes FROM project").fetchone()[0]
            statement = tracker.INSERT_TASK_ONCE if keeps else tracker.INSERT_TASK
            self.set_cache()
            started = time.perf_counter()
            for at in range(0, self.count, PIECE):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(statement, rows[at : at + PIECE])
                connection.execute("COMMIT")
            elapsed = time.perf_counter() - started
        checkpoint(self.made.database)
        return self.count / elapsed


def show(label, rates, goal=""):
    """One line: the medians, and the ratio of each round's two figures with its range."""
    ratios = [ours / bare for ours, bare in zip(rates["tracker"], rates["executemany"], strict=True)]
    ours, bare = (statistics.median(rates[name]) for name in ("tracker", "executemany"))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    print(f"{label:<58} {ours:>9,.0f} tasks/s  executemany {bare:>9,.0f}  ratio {spread}  {goal}", flush=True)


def measure(lab, label, made, count, cold, goal=""):
    bulks = Bulks(lab, made, count, cold)
    show(label, lab.race({"tracker": bulks.through_tracker, "executemany": bulks.executemany}), goal)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="100,000,000 kept hashes")
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything: only to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", default=ROOT, help="where the files are made")
    given = parser.parse_args()
    with Lab(given.dir, given.rounds, 1, 0.01 if given.quick else 1) as lab:
        count, kept = lab.size(BULK), lab.size(100_000_000 if given.long else 10_000_000)
        tasks = lab.size(8_000_000)
        made = prepared(lab, TASKS, tasks)
        measure(lab, f"unique_string, {tasks:,} tasks, warm", made, count, False, "goal 0.8")
        lab.discard(made.database)
        measure(lab, "unique_string, no kept hashes", prepared(lab, HASHES, 0), count, False)
        made = prepared(lab, HASHES, kept)
        measure(lab, f"unique_string, {kept:,} kept hashes, warm", made, count, False)
        measure(lab, f"unique_string, {kept:,} kept hashes, cold", made, count, True, "goal 20,000 tasks/s")


if __name__ == "__main__":
    main()
