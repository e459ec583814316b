"""The space of the file: what each table takes and what bounds it, given back in pieces, and all at once by compact."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MovedClock, Site, dump, wait_until
from place import StillClock, running
from test_pages import Tab

import commands
import database
import space
import tracker
import writer
from settings import FIELDS

MIB = 2**20
TRACKER = Path(tracker.__file__)


def settings_of(path: Path) -> tracker.Settings:
    return tracker.Settings(database=str(path), log_file="")


def make_older(path: Path) -> None:
    """The file as an older tracker has made it: it keeps all space that it ever had."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    connection.close()


def put(tx: tracker.Tx, first: int, count: int) -> None:
    tx.executemany("INSERT INTO meta VALUES (?, randomblob(3000))", [(f"put {first + n}",) for n in range(count)])


def fill_and_empty(path: Path, older: bool = False) -> None:
    """A file in which a lot was and is no more, and in which some is."""

    async def serve() -> None:
        async with running(path, StillClock()) as one:
            for first in range(0, 12_000, 500):
                await one.db.write(put, first, 500)
            await one.db.write(lambda tx: tx.execute("DELETE FROM meta WHERE key LIKE 'put %' AND key > 'put 2'"))

    prepare(path)
    if older:
        make_older(path)
    asyncio.run(serve())


def prepare(path: Path) -> None:
    database.prepare_file(path, settings_of(path))


def pragma(path: Path, name: str) -> int:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]
    finally:
        connection.close()


def free_share(path: Path) -> float:
    return pragma(path, "freelist_count") / pragma(path, "page_count")


# ── In pieces, behind the requests ────────────────────────────────────────────────────────────────────────────────────


def test_a_new_file_gives_free_space_back_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    fill_and_empty(path)
    before, content = path.stat().st_size, dump(path)
    assert free_share(path) > 0.5
    monkeypatch.setattr(space, "REST", 0)
    monkeypatch.setattr(space, "SPARE_PAGES", 10)
    pieces = []
    some = space.give_back_some
    monkeypatch.setattr(space, "give_back_some", lambda tx: pieces.append(1) or some(tx))
    monkeypatch.setattr(writer.Tx, "STEP_SECONDS", 0)  # else all may be done in one

    async def serve() -> None:
        async with running(path, StillClock()) as one:
            await one.db.space.shrink()

    asyncio.run(serve())
    assert free_share(path) <= 0.11
    assert path.stat().st_size < before / 2
    assert len(pieces) > 1
    assert dump(path) == content


def test_a_file_of_which_little_is_free_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    fill_and_empty(path)
    monkeypatch.setattr(space, "SPARE_PAGES", 10**6)

    async def serve() -> bool:
        async with running(path, StillClock()) as one:
            return await one.db.read(space.worth_giving_back)

    assert not asyncio.run(serve())


def test_an_older_file_is_left_alone_until_it_is_compacted(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    fill_and_empty(path, older=True)
    assert pragma(path, "auto_vacuum") == 0

    async def worth() -> bool:
        async with running(path, StillClock()) as one:
            return await one.db.read(space.worth_giving_back)

    assert not asyncio.run(worth())


# ── tracker.py compact ────────────────────────────────────────────────────────────────────────────────────────────────


def compact(path: Path) -> int:
    return commands.main(["compact", "--database", str(path)])


@pytest.mark.parametrize("older", [False, True])
def test_compact_gives_all_free_space_back_and_keeps_what_there_is(
    tmp_path: Path, older: bool, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "x.db"
    fill_and_empty(path, older)
    before, content, inode = path.stat().st_size, dump(path), path.stat().st_ino
    assert compact(path) == 0
    assert path.stat().st_size < before / 2
    assert (pragma(path, "freelist_count"), pragma(path, "auto_vacuum")) == (0, space.INCREMENTAL)
    assert dump(path) == content
    assert path.stat().st_ino == inode
    assert pragma(path, "application_id") == database.APPLICATION_ID
    assert re.search(r"had [\d.]+ MiB, and has [\d.]+ MiB now", capsys.readouterr().out)


def test_compact_is_refused_while_a_tracker_uses_the_file(site: Site, capsys: pytest.CaptureFixture) -> None:
    assert compact(Path(site.settings.database)) == 2
    assert "another tracker is using this database" in capsys.readouterr().err
    assert site.admin.create_project()


def test_compact_makes_no_database(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert compact(tmp_path / "none.db") == 2
    assert "there is no such database" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_compact_is_refused_where_the_disk_has_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "x.db"
    prepare(path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    before = path.read_bytes()
    assert compact(path) == 2
    assert "MiB of free disk are needed" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_compact_changes_no_other_programs_database(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    before = hashlib.sha256(path.read_bytes()).digest()
    assert compact(path) == 2
    assert "another program's database" in capsys.readouterr().err
    assert hashlib.sha256(path.read_bytes()).digest() == before


LITTLE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
import commands
sys.exit(commands.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_compact_for_which_there_is_no_room_after_all_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    fill_and_empty(path, older=True)
    content, inside = dump(path), set(os.listdir(tmp_path))
    command = [sys.executable, "-c", LITTLE, "compact", "--database", str(path)]
    ended = subprocess.run(command, cwd=TRACKER.parent, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "could not be compacted, and is as it was" in ended.stderr
    assert dump(path) == content
    assert set(os.listdir(tmp_path)) - inside <= {"x.db-wal", "x.db-shm", "x.db.lock"}


def test_a_kill_at_any_moment_of_a_compact_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    fill_and_empty(path, older=True)
    content, inside = dump(path), set(os.listdir(tmp_path))
    command = [sys.executable, str(TRACKER), "compact", "--database", str(path)]
    finished = 0
    for number in range(15):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda one=process: Path(f"{path}-wal").exists() or one.poll() is not None)
        time.sleep(0.01 * number)
        process.send_signal(signal.SIGKILL)
        finished += process.wait() == 0
        assert set(os.listdir(tmp_path)) - inside <= {"x.db-wal", "x.db-shm", "x.db.lock"}
        assert dump(path) == content
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.close()  # as the last one it takes the log away
    assert finished < 15
    subprocess.run(command, check=True, capture_output=True)
    assert dump(path) == content


# ── The page ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_what_each_table_takes_and_what_may_grow(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": "x" * 1000}] * 3000)
    text = Tab(site.admin.http).open("/ui/admin").text
    shown = text[text.index("The database's space") :]
    assert re.search(r"task\s*[234]\.\d MiB\s*nothing: it may grow", shown)
    assert re.search(r"kept_hash\s*\d\S* \w+\s*nothing: it may grow", shown)
    assert re.search(r"log_entry\s*\d\S* \w+\s*max_logs, log_retention", shown)


def test_every_table_says_what_bounds_it_and_names_settings_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    prepare(path)
    connection = sqlite3.connect(path)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    connection.close()
    assert {table for table in tables if not table.startswith("sqlite_")} == space.BOUNDS.keys()
    assert [table for table, bound in space.BOUNDS.items() if not bound] == ["task", "kept_hash"]
    named = {word for bound in space.BOUNDS.values() for word in re.findall(r"[a-z]+_[a-z_]+", bound)}
    assert named <= FIELDS.keys()


def test_what_is_too_large_to_be_looked_through_has_the_rest() -> None:
    sizes = space.summed_up({"task": None, "job": 100, "meta": 0}, total=1000, free=50)
    assert [(one.table, one.size) for one in sizes.tables] == [("task", 850), ("job", 100), ("meta", 0)]
    sizes = space.summed_up({"task": 800, "job": 100}, total=1000, free=50)
    assert sizes.rest == 0
    sizes = space.summed_up({"task": None, "job": None, "meta": 10}, total=1000, free=50)
    assert ([one.size for one in sizes.tables], sizes.rest) == ([None, None, 10], 940)


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_the_page_is_there_however_long_it_would_take_to_look(
    site: Site, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(space, "MEASURE_TIME", seconds)
    assert "the large ones together" in Tab(site.admin.http).open("/ui/admin").text


def test_the_page_is_there_where_sqlite_cannot_tell(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "find_trees", lambda tx: None)
    assert "built without dbstat" in Tab(site.admin.http).open("/ui/admin").text


def test_the_background_work_gives_space_back(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, clock: MovedClock
) -> None:
    monkeypatch.setattr(tracker, "SPACE_INTERVAL", 0.05)
    monkeypatch.setattr(space, "SPARE_PAGES", 10)
    site = make_site()
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.bulk_submit([{"project": project, "recipe": "x" * 3000}] * 1000)
    [(before,)] = site.read("PRAGMA page_count")
    site.admin.post(f"/project/hard_reset/{project}")
    wait_until(lambda: site.read("PRAGMA page_count")[0][0] < before / 2)
