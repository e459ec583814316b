"""The database file is guarded: one tracker on it, by whatever name, and no ok once it is not what will be found."""

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Manager, Worker, client, wait_until
from test_command_line import refusal, started

import guard
import tracker
from backup import back_up, restore
from database import Database
from errors import TrackerError
from writer import Committer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere a file that is open cannot be moved")


class Served:
    """A database that is open, in a loop of its own; its verbs are those of whoever writes."""

    def __init__(self, path: Path, run: Callable[[Awaitable], Any]):
        self.path, self.run = path, run
        self.database = Database(tracker.Settings(database=str(path)), tracker.Clock())

    async def _note(self, key: str) -> None:
        await self.database.write(lambda tx: tx.execute("INSERT INTO meta VALUES (?, 1)", (key,)) and None)

    def note(self, key: str) -> None:
        """Stores something. TrackerError: it is refused."""
        self.database._guard.looks_at = 0.0  # as if the time for it had come
        self.run(self._note(key))

    def fill(self) -> None:
        """Writes so much that SQLite copies its write-ahead log into the file, and some more."""

        def write(tx: Any) -> None:
            tx.execute("INSERT INTO meta VALUES (hex(randomblob(8)), zeroblob(6000000))")

        async def fill() -> None:
            await self.database.write(write, long=True)

        self.run(fill())

    def notes(self) -> set[str]:
        async def read() -> set[str]:
            return await self.database.read(lambda tx: {row[0] for row in tx.all("SELECT key FROM meta")})

        return self.run(read())

    def close(self) -> None:
        self.run(self.database.close())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Opens a database of the tracker's; at the end it is closed."""
    loop = asyncio.new_event_loop()
    open_ones: list[Served] = []

    def open_one(name: str = "tracker.db") -> Served:
        one = Served(tmp_path / name, loop.run_until_complete)
        loop.run_until_complete(one.database.open())
        open_ones.append(one)
        return one

    yield open_one
    for one in open_ones:
        with contextlib.suppress(ValueError):  # a test has closed it
            one.close()
    loop.close()


def stored(path: Path) -> set[str]:
    """What a start would find there."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {key for (key,) in connection.execute("SELECT key FROM meta")}


# ── One tracker on it ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_server_on_a_hard_link_to_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with started(tmp_path):
        os.link(tmp_path / "tracker.db", tmp_path / "elsewhere" / "link.db")
        line = refusal(tmp_path, "--port", "0", "--database", "elsewhere/link.db")
        assert "another tracker is using" in line or "has 2 names" in line


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no lock on the file itself leaves SQLite's alone")
def test_a_second_server_is_refused_though_the_lock_file_was_removed(tmp_path: Path) -> None:
    with started(tmp_path):
        (tmp_path / "tracker.db.lock").unlink()
        assert "another tracker is using" in refusal(tmp_path, "--port", "0")


def test_a_second_one_in_the_same_process_leaves_sqlites_locks_alone(serve: Callable[..., Served]) -> None:
    """To open the file once more and to close it would drop them: another process could then change the journal."""
    one = serve()
    (Path(f"{one.path}.lock")).unlink()
    with pytest.raises(TrackerError, match="another tracker is using"):
        serve()
    taking = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
    done = os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", taking, str(one.path))
    assert done == 1  # it is locked


def test_a_file_that_has_two_names_is_not_served(tmp_path: Path, serve: Callable[..., Served]) -> None:
    serve().close()
    os.link(tmp_path / "tracker.db", tmp_path / "other.db")
    for name in ("tracker.db", "other.db"):
        with pytest.raises(TrackerError, match="has 2 names"):
            serve(name)


def test_a_link_that_appears_while_it_is_served_keeps_nobody_from_working(serve: Callable[..., Served]) -> None:
    one = serve()
    os.link(one.path, one.path.with_name("backup.db"))
    one.note("a")


@pytest.mark.parametrize("name", [":memory:", "", "file:x.db?mode=memory", "/dev/null", "folder", "x\0y", "x" * 300])
def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackerError) as raised:
        guard.Guard(name).take()
    assert raised.value.code == "start" and "\n" not in raised.value.message
    assert os.listdir(tmp_path) == ["folder"]


def test_a_pipe_and_a_ring_of_links_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ring").symlink_to("ring")
    for name in ("pipe", "ring"):
        with pytest.raises(TrackerError, match="cannot be opened"):
            guard.Guard(str(tmp_path / name)).take()


USES = {
    "serve": lambda path: guard.Guard(path),
    "back up": lambda path: back_up(tracker.Settings(database=path), Path("b"), "1", print),
    "back up to there": lambda path: back_up(tracker.Settings(database=__file__), Path("b"), "1", print),
    "restore": lambda path: restore(tracker.Settings(database=path), Path("b"), print),
}


@pytest.mark.parametrize("use", USES)
def test_a_folder_that_was_deleted_under_the_shell_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(TrackerError, match="No such file or directory") as raised:
        USES[use]("tracker.db")
    assert raised.value.code == "start"


def test_a_network_share_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "file_system_of", lambda path: ("nfs4", Path("/mnt")))
    with pytest.raises(TrackerError, match=r"network share \(nfs4\)"):
        guard.Guard(str(tmp_path / "tracker.db")).take()


@pytest.mark.skipif(sys.platform != "linux", reason="it rests on /proc")
def test_which_file_system_a_file_is_in_is_known() -> None:
    assert guard.file_system_of(Path("/proc/self/status")) == ("proc", Path("/proc"))


def test_a_file_that_is_mounted_alone_is_warned_of(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container may have it: its -wal goes with the container."""
    monkeypatch.setattr(guard, "file_system_of", lambda path: ("ext4", path))
    serve()
    assert "mount the folder" in caplog.text


def test_where_the_file_cannot_be_locked_the_lock_file_is_watched(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LOCKS_FILE", False)
    one = serve()
    one.note("a")
    Path(f"{one.path}.lock").unlink()
    with pytest.raises(TrackerError, match="moved"):
        one.note("b")


# ── It is where it was ────────────────────────────────────────────────────────────────────────────────────────────────


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("happen", [move_away, delete, replace])
def test_once_the_file_is_not_there_any_more_nothing_is_acknowledged(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture, happen: Callable[[Path], None], suffix: str
) -> None:
    one = serve()
    one.note("before")
    happen(Path(f"{one.path}{suffix}"))
    for key in ("a", "b"):
        with pytest.raises(TrackerError, match="moved, replaced or overwritten") as raised:
            one.note(key)
        assert raised.value.code == "unavailable"
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert f"{one.path}{suffix}" in line.getMessage() and "\n" not in line.getMessage()
    assert one.notes() >= {"before"}


def test_a_link_that_leads_to_another_file_now_is_noticed(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "link.db").symlink_to("tracker.db")
    one = serve("link.db")
    (tmp_path / "link.db").unlink()
    (tmp_path / "link.db").symlink_to("other.db")
    with pytest.raises(TrackerError, match="moved"):
        one.note("a")


def test_a_folder_that_is_moved_and_comes_back_is_noticed_both_times(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    (tmp_path / "data").mkdir()
    one = serve("data/tracker.db")
    one.note("before")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(TrackerError, match="moved"):
        one.note("meanwhile")
    (tmp_path / "moved").rename(tmp_path / "data")
    one.note("after")
    one.close()
    assert {"before", "after"} <= stored(one.path)
    assert "meanwhile" not in stored(one.path)


@pytest.mark.skipif(sys.platform != "linux", reason="it rests on /proc")
def test_what_the_log_says_saves_what_is_in_a_deleted_file(
    tmp_path: Path, serve: Callable[..., Served], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = serve()
    one.note("before")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{one.path}{suffix}").unlink()
    with pytest.raises(TrackerError):
        one.note("a")
    saving = caplog.messages[-1].partition("before you stop the tracker: ")[2]
    monkeypatch.chdir(tmp_path)
    assert os.system(saving) == 0
    assert "before" in stored(tmp_path / "saved.db")


@pytest.mark.parametrize("killed", [False, True])
def test_what_has_taken_the_place_of_the_file_is_left_as_it_is(
    tmp_path: Path, serve: Callable[..., Served], killed: bool
) -> None:
    other = serve("other.db")
    other.note("another one's")
    other.close()
    one = serve()
    one.note("before")
    one.path.rename(tmp_path / "moved.db")
    (tmp_path / "other.db").rename(one.path)
    with pytest.raises(TrackerError):
        one.note("a")
    if killed:  # nothing is left to be done
        assert Path(f"{one.path}-wal").stat().st_size == 0
    else:
        one.close()
        assert sorted(os.listdir(tmp_path)) == ["moved.db", "other.db.lock", "tracker.db", "tracker.db.lock"]
        assert stored(one.path) >= {"another one's"}
        assert not {"before", "a"} & stored(one.path)
    assert stored(tmp_path / "moved.db") >= {"before"}


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_journal_that_is_deleted_takes_nothing_with_it(serve: Callable[..., Served], suffix: str) -> None:
    one = serve()
    one.note("before")
    Path(f"{one.path}{suffix}").unlink()
    with pytest.raises(TrackerError):
        one.note("a")
    one.close()
    assert "before" in stored(one.path)
    serve().note("after")


def test_a_journal_that_came_with_another_file_is_left_as_it_is(tmp_path: Path, serve: Callable[..., Served]) -> None:
    one = serve()
    one.note("before")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{one.path}{suffix}").rename(tmp_path / f"moved.db{suffix}")
        Path(f"{one.path}{suffix}").write_text("somebody's")
    with pytest.raises(TrackerError):
        one.note("a")
    one.close()
    assert {Path(f"{one.path}{suffix}").read_text() for suffix in ("", "-wal", "-shm")} == {"somebody's"}
    assert stored(tmp_path / "moved.db") >= {"before"}


# ── It is what it was ─────────────────────────────────────────────────────────────────────────────────────────────────


def backup(one: Served, name: str) -> Path:
    """What a good backup makes."""
    copy = one.path.with_name(name)
    with contextlib.closing(sqlite3.connect(f"file:{one.path}?mode=ro", uri=True)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    return copy


def older(one: Served, name: str) -> Path:
    """A copy of the file as it is without its journal."""
    return Path(shutil.copy(one.path, one.path.with_name(name)))


@pytest.mark.parametrize("copy", [backup, older])
@pytest.mark.parametrize("more", [True, False], ids=["much has been written since", "little has been written since"])
def test_a_file_that_is_copied_over_is_noticed_and_what_was_copied_is_what_the_next_start_finds(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture, copy: Callable[..., Path], more: bool
) -> None:
    one = serve()
    one.note("old")
    one.fill()
    other = copy(one, "copy.db")
    expected = stored(other)
    one.note("new")
    if more:
        one.fill()
    shutil.copyfile(other, one.path)  # the same file: written over
    if more or copy is backup:
        with pytest.raises(TrackerError, match="overwritten"):
            one.note("a")
        assert any("has been overwritten" in message for message in caplog.messages)
        one.close()
        assert stored(one.path) == expected
    else:
        one.note("a")  # what it has been overwritten with is what was there


def test_a_file_that_is_cut_short_is_noticed(serve: Callable[..., Served]) -> None:
    one = serve()
    one.fill()
    os.truncate(one.path, 0)
    with pytest.raises(TrackerError, match="overwritten"):
        one.note("a")


@pytest.mark.parametrize("overwrite", [lambda path: os.truncate(path, 0), lambda path: path.write_text("somebody's")])
def test_a_file_that_is_overwritten_while_sqlite_writes_into_it_is_noticed(
    serve: Callable[..., Served], overwrite: Callable[[Path], Any]
) -> None:
    one = serve()

    async def commit(batch: list, on_thread: bool) -> Any:
        overwrite(one.path)
        return await Committer.commit(one.database._committer, batch, on_thread)

    one.database._committer.commit = commit
    with pytest.raises(TrackerError, match="overwritten"):
        one.fill()


def test_a_schema_that_somebody_adds_to_is_no_damage(serve: Callable[..., Served]) -> None:
    one = serve()
    with contextlib.closing(sqlite3.connect(one.path)) as somebody:
        somebody.execute("CREATE TABLE more AS SELECT zeroblob(9000000)")
        somebody.execute("ANALYZE")
        somebody.commit()
        somebody.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    one.note("a")
    one.fill()
    one.note("b")


def test_what_sqlite_writes_at_its_checkpoints_is_no_damage(serve: Callable[..., Served]) -> None:
    one = serve()
    for number in range(5):
        one.fill()
        one.note(f"{number}")
    with contextlib.closing(sqlite3.connect(one.path)) as somebody:
        somebody.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        one.note("after somebody's checkpoint")
        somebody.execute("INSERT INTO meta VALUES ('somebody', zeroblob(8000000))")
        somebody.commit()
    one.note("after somebody's change")
    one.close()
    assert {"4", "somebody", "after somebody's change"} <= stored(one.path)


def test_a_new_date_is_no_damage(serve: Callable[..., Served]) -> None:
    one = serve()
    one.fill()
    os.utime(one.path)
    one.note("a")
    os.chmod(one.path, 0o640)
    one.note("b")


# ── From outside ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_get_503_and_readers_their_answers_and_the_log_one_line_each(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        admin = Manager(url, "admin")
        project = admin.create_project()
        worker = admin.grant(Worker(url), project)
        assert worker.submit(project, "before").status_code == 200
        lines: list[str] = []
        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        (tmp_path / "tracker.db").rename(tmp_path / "moved.db")
        wait_until(lambda: worker.submit(project, "after").status_code == 503)
        assert worker.assign(project).status_code == 503
        assert client(url).get("/project/list").status_code == 200
        (tmp_path / "moved.db").rename(tmp_path / "tracker.db")
        wait_until(lambda: worker.submit(project, "again").status_code == 200)
        process.terminate()
        assert process.wait(timeout=20) == 0
    wait_until(lambda: any("stored again" in line for line in lines))
    assert sum("CRITICAL" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
