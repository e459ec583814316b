"""tracker.py backup and restore: beside a running tracker, complete or not there, and put back as it was."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, Worker, client, dump, wait_until
from test_command_line import PROGRAM, refusal, run, started

import backup
import tracker
from errors import TrackerError


@contextlib.contextmanager
def load(site: Site, project: int) -> Iterator[list[int]]:
    """Workers that submit and close tasks until the block ends; the ids of the tasks whose submit was acknowledged."""
    acknowledged: list[int] = []
    ended = threading.Event()

    def submit() -> None:
        worker = site.create_worker(project)
        while not ended.is_set():
            answer = worker.submit(project, "x" * 2000)
            acknowledged.append(answer.json()["content"]["task_id"] if "content" in answer.json() else 0)

    threads = [threading.Thread(target=submit) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def recipes(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT COUNT(*) FROM task").fetchone()[0]


def settings_of(path: Path) -> tracker.Settings:
    return tracker.Settings(database=str(path), log_file="")


def silently(line: str) -> None:
    """Nobody listens."""


def back_up(source: Path, target: Path, keep: int = 0) -> Path:
    return backup.back_up(settings_of(source), target, "1", silently, keep)


@pytest.fixture
def filled(make_site: Callable[..., Site], tmp_path: Path) -> Path:
    """The database of a tracker that has stopped, with a project."""
    with tracker.serving(settings_of(tmp_path / "tracker.db")) as url:
        site = Site(url, None, settings_of(tmp_path / "tracker.db"))
        project = site.admin.create_project("one")
        site.create_worker(project).submit(project)
    return tmp_path / "tracker.db"


def test_a_backup_taken_under_load_has_all_that_was_acknowledged_before_it_began(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "PIECE", 3 * 4096)  # each of many pieces is followed by commits
    pieces: list[int] = []
    monkeypatch.setattr(backup.Progress, "at", lambda self, done, total: pieces.append(done) or time.sleep(0.002))
    project = site.admin.create_project()
    with load(site, project) as acknowledged:
        wait_until(lambda: len(acknowledged) > 100)
        before = len(acknowledged)
        made = back_up(tmp_path / "tracker.db", tmp_path / "copy.db")
        after = len(acknowledged)
    assert after > before
    assert len(pieces) > 20 and pieces == sorted(pieces)  # it did not begin anew
    assert before <= recipes(made) <= after + 3
    restored = tmp_path / "restored.db"
    backup.restore(settings_of(restored), made, silently)
    with tracker.serving(settings_of(restored)) as url, client(url) as admin:
        login = {"username": "admin", "password": "password"}
        assert admin.post("/login", json=login).status_code == 200
        found = admin.get(f"/project/get/{project}").json()["content"]["project"]
    assert found["waiting_task_count"] == recipes(made)


def test_what_is_restored_is_what_was_there(filled: Path, tmp_path: Path) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    backup.restore(settings_of(tmp_path / "new.db"), made, silently)
    assert dump(tmp_path / "new.db") == dump(filled)


def test_a_backup_is_for_its_owner_alone_and_one_plain_file(filled: Path, tmp_path: Path) -> None:
    back_up(filled, tmp_path / "copy.db")
    for name in ("copy.db", "copy.db.manifest.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db", "copy.db.lock", "copy.db.manifest.json"]
    told = json.loads((tmp_path / "copy.db.manifest.json").read_text())
    assert told["sha256"] == hashlib.sha256((tmp_path / "copy.db").read_bytes()).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into Linux's /proc")
def test_a_backup_gets_onto_the_disk_in_pieces_that_hold_up_no_commit(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been written and not synced is all that a commit may have to wait for."""
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("CREATE TABLE large AS SELECT randomblob(30 << 20)")
        connection.execute("INSERT INTO testflinger_file VALUES ('a', 'artifacts', 'a', 30 << 20, 1)")
        connection.commit()
    folder = backup.folder_of(filled)
    folder.mkdir()
    (folder / "a").write_bytes(bytes(30 << 20))
    fsync, sizes = os.fsync, {}

    def record(handle: int) -> None:
        fsync(handle)
        sizes.setdefault(os.readlink(f"/proc/self/fd/{handle}"), [0]).append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", record)
    back_up(filled, tmp_path / "backup.db")
    for name in ("backup.db.part", "backup.db.files/a.part"):
        seen = sizes[str(tmp_path / name)]
        assert seen[-1] >= 30 << 20
        assert max(after - before for before, after in itertools.pairwise(seen)) <= 4 << 20  # SQLite keeps some of it


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot open folders")
def test_a_backup_goes_to_a_share_that_cannot_sync_folders(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", of_files)
    assert recipes(back_up(filled, tmp_path / "backup.db")) == 1


def test_a_killed_trackers_log_is_in_the_backup(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        with client(url) as guest:
            assert guest.post("/worker/create", json={"alias": "w"}).status_code == 200
        process.kill()
        process.wait(timeout=20)
    assert (tmp_path / "tracker.db-wal").stat().st_size
    made = back_up(tmp_path / "tracker.db", tmp_path / "copy.db")
    assert len(dump(made)["worker"]) == 1


# ── What goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def refused(words: str, function: Callable, *args: Any) -> None:
    with pytest.raises(TrackerError, match=words) as raised:
        function(*args)
    assert raised.value.code == "start" and "\n" not in raised.value.message


def test_an_interrupted_backup_leaves_the_one_before_under_its_name(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    before = made.read_bytes()
    for step in ("check_copy", "copy_files", "sync", "write_manifest"):
        monkeypatch.setattr(backup, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            back_up(filled, made)
        monkeypatch.undo()
        assert made.read_bytes() == before
        assert not list(tmp_path.glob("copy.db.part*"))


@pytest.mark.skipif(os.name != "posix", reason="it kills a process")
def test_a_killed_backup_leaves_no_file_under_the_final_name(filled: Path, tmp_path: Path) -> None:
    script = f"""
import os, sys; sys.path.insert(0, {str(PROGRAM.parent)!r})
import backup, tracker
backup.check_copy = lambda *_: os.kill(os.getpid(), 9)
backup.back_up(tracker.Settings(database={str(filled)!r}), backup.Path({str(tmp_path / "copy.db")!r}), "1", print)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == -9
    assert not (tmp_path / "copy.db").exists()
    assert back_up(filled, tmp_path / "copy.db").exists()
    assert not (tmp_path / "copy.db.part").exists()


def test_one_that_was_killed_while_it_got_its_name_can_be_restored(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target == backup.manifest_of(made):
            raise KeyboardInterrupt
        replace(source, target)

    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("INSERT INTO meta VALUES ('another', 1)")
        connection.commit()
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        back_up(filled, made)
    monkeypatch.undo()
    backup.restore(settings_of(tmp_path / "new.db"), made, silently)
    assert ("another", 1) in dump(tmp_path / "new.db")["meta"]
    back_up(filled, made)


@contextlib.contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, end: str, error: type[BaseException]) -> Iterator[None]:
    """A backup ends when what is to get a name with this end would get it."""
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if str(target).endswith(end):
            raise error
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises((error, backup.TrackerError)):
        patch.setattr(os, "replace", interrupted)
        yield


def test_a_backup_that_cannot_get_its_name_leaves_nothing_behind(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(monkeypatch, "copy.db", OSError):
        back_up(filled, tmp_path / "copy.db")
    assert [path.name for path in tmp_path.glob("copy*")] in ([], ["copy.db.lock"])


def test_a_manifest_of_a_backup_that_never_got_its_name_goes_with_the_next(filled: Path, tmp_path: Path) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    part = backup.part_of(backup.manifest_of(made))
    part.write_bytes(backup.manifest_of(made).read_bytes().replace(b'"sha256": "', b'"sha256": "0'))
    (tmp_path / "copy-20200101T000000Z.db.manifest.json.part").write_bytes(b"{")
    (tmp_path / "other.db.manifest.json.part").write_bytes(b"{")
    back_up(filled, made)
    assert [path.name for path in tmp_path.glob("*.part")] == ["other.db.manifest.json.part"]


def test_a_manifest_of_one_of_a_series_that_is_deleted_goes_with_the_next(filled: Path, tmp_path: Path) -> None:
    """As one leaves it that is killed while it deletes an older one."""
    made = back_up(filled, tmp_path / "copy.db", 3)
    shutil.copy(backup.manifest_of(made), tmp_path / "copy-20200101T000000Z.db.manifest.json")
    shutil.copy(backup.manifest_of(made), tmp_path / "other.db.manifest.json")
    back_up(filled, tmp_path / "copy.db", 3)
    assert not (tmp_path / "copy-20200101T000000Z.db.manifest.json").exists()
    assert backup.manifest_of(made).exists() and (tmp_path / "other.db.manifest.json").exists()


def test_a_damaged_database_is_no_backup(filled: Path, tmp_path: Path) -> None:
    pages = filled.read_bytes()
    filled.write_bytes(pages[: len(pages) // 2] + b"\xff" * 4096 + pages[len(pages) // 2 + 4096 :])
    refused(f"^{re.escape(str(filled))}: .*damaged", back_up, filled, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_nothing_but_a_backup_is_written_over(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    refused("no backup", back_up, filled, tmp_path / "letter.txt")
    refused("no backup", back_up, filled, filled)
    refused("no backup", back_up, filled, filled, 3)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_what_cannot_be_backed_up_is_said_in_a_line(filled: Path, tmp_path: Path) -> None:
    refused("no such database", back_up, tmp_path / "nothing.db", tmp_path / "copy.db")
    assert not (tmp_path / "nothing.db").exists()
    refused("in a folder that is there", back_up, filled, tmp_path / "nowhere" / "copy.db")
    refused("name too long", back_up, filled, tmp_path / ("x" * 300))
    refused("name too long", backup.restore, settings_of(tmp_path / "new.db"), tmp_path / ("x" * 300), silently)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE x (y)")
    refused("no database of a tracker", back_up, other, tmp_path / "copy.db")
    (tmp_path / "empty.db").touch()  # as a first start leaves it that failed
    refused("no database of a tracker", back_up, tmp_path / "empty.db", tmp_path / "copy.db")
    with backup.alone(tmp_path / "copy.db"):
        refused("another backup", back_up, filled, tmp_path / "copy.db")


def test_a_database_in_use_is_not_restored_over(site: Site, tmp_path: Path) -> None:
    made = back_up(tmp_path / "tracker.db", tmp_path / "copy.db")
    refused("another tracker is using", backup.restore, settings_of(tmp_path / "tracker.db"), made, silently, True)


def test_a_used_database_is_replaced_only_if_it_is_said_so(filled: Path, tmp_path: Path) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("INSERT INTO meta VALUES ('later', 1)")
        connection.commit()
    refused("--force", backup.restore, settings_of(filled), made, silently)
    assert ("later", 1) in dump(filled)["meta"]
    backup.restore(settings_of(filled), made, silently, True)
    assert ("later", 1) not in dump(filled)["meta"]


def test_an_old_log_is_not_taken_for_the_restored_databases(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        made = back_up(tmp_path / "tracker.db", tmp_path / "copy.db")
        with client(url) as guest:
            assert guest.post("/worker/create", json={"alias": "w"}).status_code == 200
        process.kill()
        process.wait(timeout=20)
    backup.restore(settings_of(tmp_path / "tracker.db"), made, silently, True)
    assert dump(tmp_path / "tracker.db")["worker"] == []


def test_a_damaged_backup_is_refused_and_the_database_stays(filled: Path, tmp_path: Path) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    made.write_bytes(made.read_bytes()[:-1] + b"x")
    before = filled.read_bytes()
    refused("damaged", backup.restore, settings_of(filled), made, silently, True)
    backup.manifest_of(made).unlink()
    made.write_bytes(made.read_bytes()[:-8192])
    refused("damaged", backup.restore, settings_of(tmp_path / "new.db"), made, silently)
    assert filled.read_bytes() == before
    assert not (tmp_path / "new.db").exists() and not list(tmp_path.glob("*.restored*"))


@pytest.mark.parametrize("kind", ["text", "empty", "another program's", "damaged"])
def test_what_cannot_be_restored_is_named_as_it_was_given_and_leaves_nothing(
    filled: Path, tmp_path: Path, kind: str
) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    backup.manifest_of(made).unlink()
    match kind:
        case "text":
            made.write_text("dear")
        case "empty":
            made.write_bytes(b"")
        case "another program's":
            made.unlink()
            with contextlib.closing(sqlite3.connect(made)) as connection:
                connection.execute("CREATE TABLE x (y)")
        case "damaged":
            made.write_bytes(made.read_bytes()[:-8192])
    there = sorted(tmp_path.iterdir())
    refused(f"^{re.escape(str(made))}: ", backup.restore, settings_of(tmp_path / "new.db"), made, silently)
    assert sorted(tmp_path.iterdir()) == there


def test_a_database_whose_last_changes_are_in_its_log_is_no_backup(filled: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE project SET motd = 'not in the file yet'")
        connection.commit()
        refused("-wal alone", backup.restore, settings_of(tmp_path / "new.db"), filled, silently)
    assert not list(tmp_path.glob("new.db*"))


def test_one_of_a_newer_tracker_is_refused(filled: Path, tmp_path: Path) -> None:
    made = back_up(filled, tmp_path / "copy.db")
    backup.manifest_of(made).unlink()
    with contextlib.closing(sqlite3.connect(made)) as connection:
        connection.execute("PRAGMA user_version = 1000")
    refused("newer tracker", backup.restore, settings_of(tmp_path / "new.db"), made, silently)


def test_tasks_made_after_a_restore_have_ids_that_none_had_before(site: Site, tmp_path: Path) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    made = back_up(tmp_path / "tracker.db", tmp_path / "copy.db")
    worker.submit(project)
    held = worker.assigned(project)["id"]
    backup.restore(settings_of(tmp_path / "new.db"), made, silently)
    with tracker.serving(settings_of(tmp_path / "new.db")) as url:
        worker.http = client(url, headers={"X-Worker-ID": str(worker.id), "X-Secret": worker.secret})
        worker.submit(project)
        assert worker.assigned(project)["id"] > held
        assert not worker.released(held)


# ── Files of jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def with_files(filled: Path) -> Path:
    """The same database, with two files of jobs, of which one has gone from the disk."""
    folder = backup.folder_of(filled)
    folder.mkdir()
    (folder / "here").write_bytes(b"content")
    (folder / "unknown").write_bytes(b"an upload that goes on")
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        rows = [("a", "artifacts", "here", 7, 1), ("b", "artifacts", "gone", 3, 1)]
        connection.executemany("INSERT INTO testflinger_file VALUES (?, ?, ?, ?, ?)", rows)
        connection.commit()
    return filled


def test_the_files_of_jobs_are_in_the_backup_and_put_back(with_files: Path, tmp_path: Path) -> None:
    made = back_up(with_files, tmp_path / "copy.db")
    assert [path.name for path in (tmp_path / "copy.db.files").iterdir()] == ["here"]
    (tmp_path / "elsewhere").mkdir()
    assert backup.restore(settings_of(tmp_path / "elsewhere" / "new.db"), made, silently) == 1
    restored = tmp_path / "elsewhere" / "new.db.files" / "here"
    assert restored.read_bytes() == b"content" and stat.S_IMODE(restored.stat().st_mode) == 0o600


def test_who_interrupts_a_restore_when_the_database_is_in_its_place_loses_no_file(
    with_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = back_up(with_files, tmp_path / "copy.db")

    def interrupted(_folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "sync_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backup.restore(settings_of(tmp_path / "new.db"), made, silently)
    assert (tmp_path / "new.db").stat().st_size and (tmp_path / "new.db.files" / "here").read_bytes() == b"content"


def test_a_database_that_comes_between_is_not_restored_over_and_keeps_what_is_beside_it(
    with_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, new = back_up(with_files, tmp_path / "copy.db"), tmp_path / "new.db"
    take = backup.Guard.take

    def take_late(guard: Any) -> None:
        shutil.copy(made, new)
        shutil.copytree(f"{made}.files", f"{new}.files")
        take(guard)

    monkeypatch.setattr(backup.Guard, "take", take_late)
    refused("has something in it", backup.restore, settings_of(new), made, silently)
    assert (tmp_path / "new.db.files" / "here").exists()


def test_a_damaged_file_is_refused(with_files: Path, tmp_path: Path) -> None:
    made = back_up(with_files, tmp_path / "copy.db")
    (tmp_path / "copy.db.files" / "here").write_bytes(b"c0ntent")
    refused("damaged", backup.restore, settings_of(tmp_path / "new.db"), made, silently)
    assert not list(tmp_path.glob("new.db*"))


def test_a_file_that_is_there_already_is_not_copied_again(with_files: Path, tmp_path: Path) -> None:
    back_up(with_files, tmp_path / "copy.db")
    first = (tmp_path / "copy.db.files" / "here").stat().st_ino
    back_up(with_files, tmp_path / "copy.db")
    assert (tmp_path / "copy.db.files" / "here").stat().st_ino == first


def test_files_that_no_backup_knows_go_and_others_are_left_alone(with_files: Path, tmp_path: Path) -> None:
    back_up(with_files, tmp_path / "copy.db")
    with contextlib.closing(sqlite3.connect(with_files)) as connection:
        connection.execute("DELETE FROM testflinger_file")
        connection.commit()
    back_up(with_files, tmp_path / "copy.db")
    assert not list((tmp_path / "copy.db.files").iterdir())
    (tmp_path / "mine.db.files").mkdir()
    (tmp_path / "mine.db.files" / "letter").write_text("dear")
    refused("of no backup", back_up, with_files, tmp_path / "mine.db")
    assert (tmp_path / "mine.db.files" / "letter").exists()


@pytest.mark.parametrize("step", ["sync_folder", "sync", "write_manifest"])
def test_a_first_backup_that_fails_leaves_nothing_that_keeps_the_next_one_from_being_made(
    with_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backup, step, full)
    refused("No space left", back_up, with_files, tmp_path / "copy.db")
    assert not list((tmp_path / "copy.db.files").iterdir())
    monkeypatch.undo()
    assert back_up(with_files, tmp_path / "copy.db").exists()


def test_a_backup_that_fails_leaves_no_manifest_behind(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backup.msgspec.json, "format", full)
    refused("No space left", back_up, filled, tmp_path / "copy.db", 2)
    assert [path.name for path in tmp_path.glob("copy*")] in ([], ["copy.db.lock"])


def test_a_first_backup_that_was_killed_among_the_files_is_made_the_next_time(with_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy.db.files"
    folder.mkdir()
    (folder / "here.part").write_bytes(b"cont")
    (tmp_path / "copy.db.part").write_bytes(b"SQLite format 3")
    back_up(with_files, tmp_path / "copy.db")
    assert [path.name for path in folder.iterdir()] == ["here"]


def test_a_file_named_like_a_path_is_refused(filled: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as connection:
        connection.execute("INSERT INTO testflinger_file VALUES ('a', 'artifacts', '../tracker.db', 7, 1)")
        connection.commit()
    refused("no name of a file", back_up, filled, tmp_path / "copy.db")


# ── A series ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_of_a_series_that_was_killed_while_it_got_its_name_keeps_its_files(
    with_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(monkeypatch, ".manifest.json", KeyboardInterrupt):
        back_up(with_files, tmp_path / "copy.db", 3)
    (first,) = tmp_path.glob("copy-*Z.db")
    with contextlib.closing(sqlite3.connect(with_files, isolation_level=None)) as connection:
        connection.execute("DELETE FROM testflinger_file")  # a further one needs none
    monkeypatch.setattr(backup, "stamped", lambda target, made: tmp_path / "copy-20400101T000000Z.db")
    back_up(with_files, tmp_path / "copy.db", 3)
    assert first in backup.series(tmp_path / "copy.db")
    assert (tmp_path / "copy.db.files" / "here").exists()
    assert not list(tmp_path.glob("*.part"))


def test_of_a_series_the_last_ones_are_kept(with_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "to").mkdir()
    target = tmp_path / "to" / "t.db"
    for day in range(1, 5):
        monkeypatch.setattr(backup.time, "time", lambda day=day: 86400.0 * day)
        made = back_up(with_files, target, keep=2)
    assert made.name == "t-19700105T000000Z.db"
    assert [one.name for one in backup.series(target)] == ["t-19700104T000000Z.db", "t-19700105T000000Z.db"]
    assert len(list((tmp_path / "to").glob("*.manifest.json"))) == 2
    assert (tmp_path / "to" / "t.db.files" / "here").exists()
    assert backup.restore(settings_of(tmp_path / "new.db"), made, silently) == 1


def test_a_backup_that_fails_is_made_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    made: list[int] = []

    def make() -> None:
        made.append(1)
        if len(made) == 1:
            raise TrackerError("start", "the disk is full")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup.repeat(0.01, make, said.append)
    assert len(made) == 2 and said == ["tracker: the disk is full"]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("15m", 900), ("6h", 21600), ("1d", 86400)])
def test_a_time_may_have_a_unit(text: str, seconds: float) -> None:
    assert backup.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1w", "1.5h", "nan", "1e9"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        backup.seconds_of(text)


# ── The command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_copy_and_put_back_beside_a_running_tracker(tmp_path: Path) -> None:
    with started(tmp_path) as (_, url):
        Worker(url)
        made = run(tmp_path, "backup", "copy.db")
        assert (made.returncode, "is a backup of tracker.db" in made.stdout) == (0, True), made.stderr
        assert "another tracker is using" in run(tmp_path, "restore", "copy.db", "--force").stderr
    assert "--force" in run(tmp_path, "restore", "copy.db").stderr
    assert run(tmp_path, "restore", "copy.db", "--force").returncode == 0
    assert len(dump(tmp_path / "tracker.db")["worker"]) == 1


def test_mistakes_in_the_options_of_a_backup_are_said_in_a_line(tmp_path: Path) -> None:
    assert "--every" in refusal(tmp_path, "backup", "x.db", "--every", "soon")
    assert "--keep" in refusal(tmp_path, "backup", "x.db", "--keep", "0")
    assert "no such database" in refusal(tmp_path, "backup", "x.db")


@pytest.mark.parametrize("arguments", [("--data", "x.db"), ("serve", "--conf", "x"), ("backup", "x", "--kee", "1")])
def test_no_option_is_known_by_its_beginning(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refusal(tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="it takes a shell")
@pytest.mark.parametrize("command", ["config", "--help", "--version", "backup --help"])
def test_a_reader_that_goes_early_is_no_fault(tmp_path: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *command.split()],
            cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.stderr == b"" and done.returncode in (0, 141)  # 0: argparse lets nobody know
