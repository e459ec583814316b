"""A file of an older version: everything in it is there after the upgrade, and what was going on goes on.

Such a file is made of one of today: the old schema, as it was released, takes its rows.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import client, wait_until
from place import OPERATIONS, Memory, Place, StillClock, furnish

import tracker
from database import APPLICATION_ID, OLDEST_SCHEMA, SCHEMA_VERSION, UPGRADES, connect, prepare_file

HOME = Path(tracker.__file__).parent
OLDEST = OLDEST_SCHEMA


def renamed_since(version: int) -> dict[tuple[str, str], str]:
    """The names that columns had in that version, by table and present name."""
    steps = [before for step, (before, _) in UPGRADES.items() if step >= version]
    renamings = re.findall(r"ALTER TABLE (\w+) RENAME COLUMN (\w+) TO (\w+)", "\n".join(steps))
    return {(table, new): old for table, old, new in renamings}


class File(Memory):
    """A file of today's version, and the same verb."""

    def __init__(self, path: Path):
        self.path, self.settings, self.clock = path, tracker.Settings(database=str(path), log_file=""), StillClock()
        prepare_file(path, self.settings)
        self.connection = connect(path, self.settings)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@functools.cache
def furnished() -> tuple[bytes, Place]:
    """A file with tasks, jobs and operations in every state, and what is where in it: each test has a copy."""
    with tempfile.TemporaryDirectory() as folder:
        file = File(Path(folder) / "today.db")
        with contextlib.closing(file.connection):
            place = file.do(furnish)
            client = {"id": "client", "key_hash": b"hash", "role": "agent", "created": 1}
            file.do(lambda tx: tx.insert("testflinger_client", client) and None)
            file.do(lambda tx: tx.execute("UPDATE session SET created = 0") and None)
            file.do(lambda tx: tx.execute("DELETE FROM act") and None)
            file.do(lambda tx: tx.execute("DELETE FROM sqlite_sequence WHERE name = 'act'") and None)
            file.do(lambda tx: tx.execute("UPDATE worker_access SET requested = 0") and None)
            tried = "UPDATE task SET attempt = (status = 2), cause = iif(status = 2, cause, 0)"
            file.do(lambda tx: tx.execute(tried) and None)
            file.do(
                lambda tx: (
                    tx.execute("DELETE FROM failure WHERE task IN (SELECT id FROM task WHERE status <> 2)") and None
                )
            )
            file.do(lambda tx: tx.execute(f"UPDATE failure SET attempt = 1, end_time = ({ENDED})") and None)
            file.do(lambda tx: tx.execute("DELETE FROM failure_total") and None)
            file.do(lambda tx: tx.execute("DELETE FROM act") and None)
            file.do(lambda tx: tx.execute("DELETE FROM sqlite_sequence WHERE name = 'act'") and None)
            file.do(lambda tx: tx.execute("UPDATE snapshot SET failure_count = 0") and None)
            file.do(lambda tx: tx.execute("UPDATE tally SET failures_in_row = 0") and None)
            kept = (tracker.digest(SECRET.encode()),)
            file.do(lambda tx: tx.execute("UPDATE workflow SET secret_hash = ?", kept) and None)
        return file.path.read_bytes(), place


@pytest.fixture
def today(tmp_path: Path) -> Iterator[File]:
    """A file of today's version with tasks, jobs and operations in every state (`place`)."""
    path = tmp_path / "today.db"
    contents, place = furnished()
    path.write_bytes(contents)
    file = File(path)
    file.place = place
    with contextlib.closing(file.connection):
        yield file


ENDED = "SELECT MAX(end_time) FROM assignment a WHERE a.task = failure.task AND outcome IN ('failed', 'expired')"


@functools.cache
def furnished_of(version: int) -> bytes:
    """The same of an old version."""
    with tempfile.TemporaryDirectory() as folder:
        today = Path(folder) / "today.db"
        today.write_bytes(furnished()[0])
        return made_old(today, Path(folder) / "old.db", version).read_bytes()


@pytest.fixture(params=sorted(UPGRADES))
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What `today` is, of each version that can be upgraded."""
    path = tmp_path / "old.db"
    path.write_bytes(furnished_of(request.param))
    return path


def made_old(today: Path, path: Path, version: int = OLDEST) -> Path:
    """Writes the rows of a file of today into one of an old version, whose schema is kept beside these tests."""
    with opened(path) as connection:
        connection.executescript((HOME / "tests" / f"schema_{version}.sql").read_text("utf-8"))
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:  # what they count is in the rows
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("ATTACH ? AS today", (str(today),))
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in sorted(tables, key="sqlite_sequence".__eq__):  # which has followed the others
            copy_rows(connection, table, renamed_since(version))
        for _, sql in triggers:
            connection.execute(sql)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    return path


SECRET = "a secret that was kept as it is"
GONE = {("workflow", "secret"): f"'{SECRET}'"}  # columns of before, and what was in them


def copy_rows(connection: sqlite3.Connection, table: str, renamed: dict[tuple[str, str], str]) -> None:
    """Writes the rows of a table of today into the old one, as far as that has their columns."""
    old, new = (
        [name for _, name, *_ in connection.execute(f"PRAGMA {schema}.table_info({table})")]
        for schema in ("main", "today")
    )
    pairs = [(renamed.get((table, name), name), name) for name in new]
    pairs += [(name, value) for (of, name), value in GONE.items() if of == table]
    names, values = zip(*[pair for pair in pairs if pair[0] in old], strict=True)
    connection.execute(f"DELETE FROM main.{table}")
    connection.execute(f"INSERT INTO main.{table} ({', '.join(names)}) SELECT {', '.join(values)} FROM today.{table}")
    connection.execute("DELETE FROM main.sqlite_sequence WHERE name NOT IN (SELECT name FROM main.sqlite_schema)")


def contents(path: Path) -> dict[str, list[list[tuple[str, Any]]]]:
    """Every row of every table, with the names of its columns, whose order is of no account."""
    with opened(path) as connection:
        connection.row_factory = sqlite3.Row
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    return {
        table: sorted([sorted(zip(row.keys(), row, strict=True)) for row in rows[table]], key=repr) for table in rows
    }


def shape(path: Path) -> dict[tuple[str, str], Any]:
    """What tables, columns, references, indexes and triggers a file has. The order of columns is of no account."""
    with opened(path) as connection:
        shown: dict[tuple[str, str], Any] = {}
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall():
            if kind == "table":
                columns = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
                references = connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()
                options = sql.rpartition(")")[2]
                shown[kind, name] = {column[1:] for column in columns}, references, options
            else:
                shown[kind, name] = sql
        return shown


def test_the_schema_of_this_version_is_the_one_that_files_have() -> None:
    """Files of it are out there: a change needs a new step in UPGRADES.

    The schema as it was goes into schema_N.sql beside these tests, which then upgrade such a file too, and the new
    version and digest go here.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript((HOME / "schema.sql").read_text("utf-8"))
        made = sorted(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    plain = re.sub(r"\s+", " ", re.sub(r"--.*", "", "\n".join(made)))
    assert (SCHEMA_VERSION, hashlib.sha256(plain.encode()).hexdigest()[:16]) == (11, "7cdeff437928c77d")


# ── What was there ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_old_file_is_an_old_one(old: Path, today: File) -> None:
    """Or else these tests would tell nothing."""
    assert shape(old) != shape(today.path)


def test_an_upgraded_file_has_the_tables_indexes_and_triggers_of_a_fresh_one(old: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    for path in old, fresh:
        prepare_file(path, tracker.Settings())
    assert shape(old) == shape(fresh)
    with opened(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_every_row_and_every_count_is_there_after_the_upgrade(old: Path, today: File) -> None:
    prepare_file(old, tracker.Settings())
    assert contents(old) == contents(today.path)


def test_whoever_closes_a_task_that_had_failed_before_the_upgrade_looks_for_its_failure(old: Path) -> None:
    """Only a task that was assigned before has one: else it would stay, and count, when the task is gone."""
    prepare_file(old, tracker.Settings())
    with opened(old) as connection:
        found = connection.execute("SELECT task.attempt FROM task JOIN failure ON task = id").fetchall()
    assert found and all(attempt > 0 for (attempt,) in found)


def test_an_upgrade_is_done_once(old: Path) -> None:
    prepare_file(old, tracker.Settings())
    before = contents(old)
    prepare_file(old, tracker.Settings())
    assert contents(old) == before


# ── What was going on ─────────────────────────────────────────────────────────────────────────────────────────────────

GOING_ON = (
    *("assign", "assign one that awaits verification", "assign one that three have verified", "close and chain"),
    *("verify", "verify as the third", "verify and close", "fail at last"),
    *("skip", "expire", "reset failed", "reclaim", "hard reset", "retry all that match", "carry out a bulk submit"),
    *("carry out an upload", "accept an upload", "assign a job", "log about a job", "close a job", "fail a job"),
    *("end a step", "cancel a run", "submit", "begin a login", "roll the tallies"),
)


@pytest.mark.parametrize("name", GOING_ON)
def test_what_was_going_on_goes_on(old: Path, today: File, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the answer and the effects that it would have had without the upgrade."""
    function, args = OPERATIONS[name](today.place)
    upgraded, answers = File(old), []
    with contextlib.closing(upgraded.connection):
        for file in today, upgraded:
            file.clock.now = 30
            tokens = (f"{number:024x}" for number in itertools.count(1))
            monkeypatch.setattr(tracker, "new_token", functools.partial(next, tokens))
            answers.append(file.do(function, *args))
    assert answers[0] == answers[1]
    assert contents(old) == contents(today.path)


def test_a_tracker_that_starts_with_an_old_file_finishes_the_operations_in_it(old: Path) -> None:
    with (
        tracker.serving(tracker.Settings(database=str(old), log_file="")),
        contextlib.closing(sqlite3.connect(f"{old.as_uri()}?mode=ro", uri=True)) as reader,
    ):
        unfinished = "SELECT 1 FROM operation WHERE accepted AND finished IS NULL"
        wait_until(lambda: not reader.execute(unfinished).fetchone())
    assert contents(old)["bulk_piece"] == []  # and forgets the uploads that had not been accepted


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_a_job_that_an_agent_of_another_system_holds_can_be_finished_after_the_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "today.db"
    with tracker.serving(tracker.Settings(database=str(path), log_file="")) as url, client(url) as http:
        job = http.post("/v1/job", json={"job_queue": "machines"}).json()["job_id"]
        http.post("/v1/agents/data/agent", json={"queues": ["machines"]})
        agent = dict(http.cookies)
        assert http.get("/v1/job", params={"queue": "machines"}).json()["job_id"] == job
        later = http.post("/v1/job", json={"job_queue": "machines"}).json()["job_id"]
    old = made_old(path, tmp_path / "old.db")
    with tracker.serving(tracker.Settings(database=str(old), log_file="")) as url, client(url, cookies=agent) as http:
        http.post(f"/v1/result/{job}", json={"job_state": "complete"}).raise_for_status()
        assert http.get(f"/v1/result/{job}").json()["job_state"] == "complete"
        assert http.get("/v1/job", params={"queue": "machines"}).json()["job_id"] == later
    with opened(old) as connection:
        assert connection.execute("SELECT state FROM job ORDER BY id").fetchall() == [("succeeded",), ("assigned",)]


# ── When it fails ─────────────────────────────────────────────────────────────────────────────────────────────────────

DIE_HALF_WAY = """
    import os, signal, sqlite3, sys
    from pathlib import Path
    import tracker
    from database import prepare_file

    class Doomed(sqlite3.Connection):
        def executescript(self, script):
            statements = 0
            def count(statement):
                nonlocal statements
                statements += not statement.startswith("--")  # those of a trigger
                if statements == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
            self.set_trace_callback(count)
            super().executescript(script)
            print(statements)

    real = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: real(*args, factory=Doomed, **kwargs)
    prepare_file(Path(sys.argv[1]), tracker.Settings())
"""


def upgrade_in_process(path: Path, dies_at: int) -> subprocess.CompletedProcess:
    """A process of its own upgrades the file, and is killed when it begins so many a statement."""
    script, environment = textwrap.dedent(DIE_HALF_WAY), {**os.environ, "PYTHONPATH": str(HOME)}
    command = [sys.executable, "-c", script, str(path), str(dies_at)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_crash_in_the_middle_of_an_upgrade_leaves_the_old_file(old: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(old.read_bytes())
    statements = int(upgrade_in_process(copy, 0).stdout)
    before = contents(old), shape(old)
    for dies_at in (5, statements // 2, statements):  # the last one is the COMMIT
        died = upgrade_in_process(old, dies_at)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert (contents(old), shape(old)) == before
        with opened(old) as connection:
            assert connection.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION
    prepare_file(old, tracker.Settings())
    assert contents(old) == contents(copy)


def test_an_upgrade_that_fails_is_refused_with_a_reason_and_leaves_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, last = contents(old), max(UPGRADES)
    room, fill = UPGRADES[last]
    monkeypatch.setitem(UPGRADES, last, (room, f"{fill}; INSERT INTO nowhere VALUES (1);"))
    with pytest.raises(tracker.TrackerError, match=r"old\.db.*no such table: nowhere"):
        prepare_file(old, tracker.Settings())
    assert contents(old) == before


@pytest.mark.parametrize(
    ("version", "why"),
    [
        *((version, "made before the first release") for version in range(1, OLDEST)),
        (SCHEMA_VERSION + 1, "made by a newer tracker"),
    ],
)
def test_a_version_that_there_is_no_way_from_is_refused_in_one_line(old: Path, version: int, why: str) -> None:
    with opened(old) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = contents(old)
    with pytest.raises(tracker.TrackerError) as refused:
        prepare_file(old, tracker.Settings())
    assert re.fullmatch(rf"\S+old\.db: {why} \(schema {version}\b[^\n]*", refused.value.message)
    assert contents(old) == before
