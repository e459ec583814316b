"""Where the file's space goes: the size of each table and what bounds it, and how free pages are given back.

A file that is new gives pages back by itself, in small pieces (SQLite's incremental vacuum); an older one does so from
`tracker.py compact` on, which makes it as small as it can be (Database.compact).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import TYPE_CHECKING, NamedTuple

from errors import TrackerError
from faults import primary_code
from writer import Tx

if TYPE_CHECKING:
    from database import Database

# What keeps each table from growing for ever: settings, or in words. Empty: it grows with what people keep in it.
WITH_TASKS, WITH_PROJECTS, WITH_JOBS = "goes with its tasks", "some for each project", "goes with its jobs"
BOUNDS = {
    "task": "",
    "kept_hash": "",
    "meta": "a few facts",
    "budget": "a few counts",
    "newcomer": "max_workers, max_managers",
    "operation": "history_retention",
    "bulk_piece": "goes when its tasks are in the queue",
    "worker": "max_workers",
    "project": "max_untrusted_projects, and those of managers who are trusted",
    "worker_access": "max_workers, max_access_requests for each project",
    "manager": "max_managers",
    "manager_role": "max_managers for each project",
    "session": "session_lifetime, 100 for each manager",
    "login_address": "20 for each manager",
    "login_failure": "forgotten within the day",
    "assignment": "history_retention, and the last million",
    **dict.fromkeys(("verification", "verifier_set", "verifier", "verifier_block"), WITH_TASKS),
    "tally": "max_workers for each project",
    "failure_total": "one for each project",
    "tally_hour": "the last day",
    "script": WITH_JOBS + " and templates",
    "template": "1,000 for each project",
    "job": "job_retention, or as its template says",
    "job_line": "max_job_log for each job; " + WITH_JOBS,
    "workflow": "1,000 for each project",
    "workflow_edge": "goes with its workflow",
    "act": "max_acts, 1,000 for each project",
    "failure": "one for each task that has failed and is not closed; max_reasons",
    "cause": "202 for each project",
    "log_entry": "max_logs, log_retention",
    "log_share": "max_workers",
    "snapshot": "snapshot_history",
    "notice_hook": WITH_PROJECTS,
    "notice": "100 for each project",
    "push": "1,000 for each project",
    "theeye_token": "an admin makes each",
    "theeye_agent": "a manager makes each",
    "theeye_login": "20 for each agent",
    "theeye_host": WITH_PROJECTS,
    "testflinger_queue": "1,000",
    "testflinger_image": "testflinger_max_data; goes with its queue",
    "testflinger_agent": "10,000, testflinger_max_data, testflinger_retention",
    "testflinger_agent_queue": "goes with its agent",
    "testflinger_agent_line": "100 for each agent",
    "testflinger_provision": "100 for each agent",
    **dict.fromkeys(("testflinger_job", "testflinger_tag", "testflinger_exclusion"), WITH_JOBS),
    **dict.fromkeys(("testflinger_outcome", "testflinger_result"), "testflinger_max_data, testflinger_retention"),
    "testflinger_fragment": "testflinger_max_data, testflinger_retention",
    "testflinger_file": "testflinger_max_files",
    "testflinger_client": "1,000",
    "testflinger_refresh": "1,000 for each client",
    "testflinger_secret": "100 for each client",
}


# The size of each table


class TableSize(NamedTuple):
    """What a table takes in the file, with its indexes; None: it was too large to be looked through."""

    table: str
    size: int | None
    bound: str


class Sizes(NamedTuple):
    """The tables, the largest first, and what is free. `rest`: bytes of those together whose own size is not known."""

    tables: list[TableSize]
    free: int
    rest: int


# Looked through last, as they may be large.
LARGE = ("log_entry", "assignment", "testflinger_fragment", "job", "job_line", "kept_hash", "task")
MEASURE_TIME = 1.5  # seconds for all of them: each page of a table has to be looked at
KEPT_TIME = 600.0  # seconds after which they are looked through again


class Space:
    """The space of a database's file: it is asked for the sizes of the tables, and gives back what is free."""

    def __init__(self, db: Database):
        self.db = db
        self._known: Sizes | None = None
        self._known_since = 0.0
        self._asking = asyncio.Lock()

    async def sizes(self) -> Sizes | None:
        """The size of each table, as it was lately. None where SQLite was built without what tells (dbstat)."""
        async with self._asking:
            if not self._known_since or time.monotonic() - self._known_since > KEPT_TIME:
                self._known = await self._measure()
                self._known_since = time.monotonic()
            return self._known

    async def _measure(self) -> Sizes | None:
        """Each part in a read of its own: others take turns, and none is long."""
        trees = await self.db.read(find_trees)
        if trees is None:
            return None
        found: dict[str, int | None] = dict.fromkeys((table for _, table in trees), 0)
        ends = time.monotonic() + MEASURE_TIME
        for name, table in sorted(trees, key=lambda tree: tree[1] in LARGE and 1 + LARGE.index(tree[1])):
            size = await self.db.read(size_of_tree, name, ends - time.monotonic())
            found[table] = None if size is None or found[table] is None else found[table] + size
        total, free = await self.db.read(file_size)
        return summed_up(found, total, free)

    async def shrink(self) -> None:
        """Makes the file smaller, a piece at a time, when more than a quarter of it is free, until a tenth is."""
        more = await self.db.read(worth_giving_back)
        while more:
            began = time.monotonic()
            more = await self.db.write(give_back_some, long=True)
            await asyncio.sleep(REST * (time.monotonic() - began))


def summed_up(found: dict[str, int | None], total: int, free: int) -> Sizes:
    """What is left belongs to the tables that are too large; to one of them, if it is the only one."""
    rest = max(0, total - free - sum(filter(None, found.values())))
    unknown = [table for table, size in found.items() if size is None]
    if len(unknown) < 2:  # where each is known, SQLite keeps some pages for itself
        found, rest = found | dict.fromkeys(unknown, rest), 0
    tables = [TableSize(table, size, BOUNDS.get(table, "SQLite's own")) for table, size in found.items()]
    return Sizes(sorted(tables, key=lambda one: (one.size is not None, -(one.size or 0), one.table)), free, rest)


def find_trees(tx: Tx) -> list[tuple[str, str]] | None:
    """The parts of the file, tables and indexes, each with its table. None where their sizes cannot be told."""
    try:
        tx.one("SELECT 1 FROM dbstat WHERE name = 'meta'")
    except sqlite3.OperationalError:
        return None
    rows = tx.all("SELECT name, tbl_name FROM sqlite_schema WHERE rootpage")
    return [("sqlite_schema", "sqlite_schema"), *map(tuple, rows)]


def size_of_tree(tx: Tx, name: str, seconds: float) -> int | None:
    """Bytes of a table or index; None if that takes longer."""
    tx.execute.limit.shorten(seconds)
    try:
        return tx.one("SELECT ifnull(SUM(pgsize), 0) FROM dbstat WHERE name = ?", (name,))[0]
    except TrackerError:  # it is over before it has begun
        return None
    except sqlite3.OperationalError as error:
        if primary_code(error) != sqlite3.SQLITE_INTERRUPT:
            raise
        return None


def file_size(tx: Tx) -> tuple[int, int]:
    """Bytes of the file, and of its free pages."""
    return tuple(tx.one("SELECT page_count * page_size, freelist_count * page_size FROM" + PAGES))


PAGES = " pragma_page_count, pragma_page_size, pragma_freelist_count"


# Space given back

SPARE_PAGES = 1024  # that stay free whatever the size: what is deleted today makes room for what comes tomorrow
VACUUM_PAGES = 20  # that one statement gives back
REST = 4.0  # times as long as a piece has taken nothing is done


def free_pages(tx: Tx) -> tuple[int, int]:
    """How many pages are free beyond the spare ones, and how many there are."""
    free, count = tx.one("SELECT freelist_count, page_count FROM" + PAGES)
    return free - SPARE_PAGES, count


def worth_giving_back(tx: Tx) -> bool:
    """Whether the file can give space back by itself, and much of it is free."""
    free, count = free_pages(tx)
    return free > count // 4 and tx.one("PRAGMA auto_vacuum")[0] == INCREMENTAL


INCREMENTAL = 2


def give_back_some(tx: Tx) -> bool:
    """Gives back some pages at the end of the file, for a moment. Whether there are more."""
    while True:
        free, count = free_pages(tx)
        if free <= count // 10:
            return False
        tx.all(f"PRAGMA incremental_vacuum({min(VACUUM_PAGES, free)})")
        if tx.time_is_up():
            return True
