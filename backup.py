"""Backups of a database, taken beside a running tracker, and put back.

    back_up ─► one read transaction of the file ─► FILE.part ─► integrity_check ─► files of jobs ─► manifest ─► FILE
    restore ─► the right to write (guard.py) ─► a checked copy beside the database ─► in its place

A backup is three things that lie together: FILE, the database; FILE.manifest.json, what it has and its checksums; and a
folder with the files of Testflinger's jobs, which a series of backups shares, as such files never change. FILE is
there when all of it is. It only reads: another program that wrote to the database, or checkpointed it, could damage it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import msgspec

from clock import Clock
from database import APPLICATION_ID, SCHEMA_VERSION, connect, reason
from disk import PIECE, sync_folder, sync_piece
from errors import TrackerError
from guard import Guard, found
from settings import Settings

SAY_INTERVAL = 5.0  # seconds
SKIPPED_IDS = 100_000_000  # of tasks: more than may have been submitted since the backup

Say = Callable[[str], None]


class StoredFile(msgspec.Struct):
    """A file of a job: its name in the folder, its size in bytes, its checksum (None: it had gone when it was due)."""

    name: str
    size: int
    sha256: str | None


class Manifest(msgspec.Struct):
    """What a backup has."""

    tracker: str
    schema: int
    sqlite: str
    made: float  # unix time: all that was acknowledged before is in it
    sha256: str  # of the database
    size: int
    folder: str  # of the files, beside the backup
    files: list[StoredFile]


def manifest_of(backup: Path) -> Path:
    return backup.with_name(f"{backup.name}.manifest.json")


def folder_of(database: Path) -> Path:
    """The files of a database, or of a series of backups. (As Testflinger's dialect has it, which may be absent.)"""
    return database.with_name(f"{database.name}.files")


def refusal(place: Path, problem: str) -> TrackerError:
    return TrackerError("start", f"{place}: {problem}")


@contextlib.contextmanager
def refusals(place: Path) -> Iterator[None]:
    """What the disk or SQLite refuses within is said in one line."""
    try:
        yield
    except sqlite3.Error as error:
        raise refusal(place, reason(error)) from None
    except OSError as error:
        raise refusal(place, error.strerror or str(error)) from None


class Progress:
    """Says how far something is, now and then."""

    def __init__(self, say: Say, what: str):
        self.say, self.what, self.said = say, what, time.monotonic()

    def at(self, done: int, total: int) -> None:
        if time.monotonic() >= self.said + SAY_INTERVAL:
            self.said = time.monotonic()
            self.say(f"{self.what}: {100 * done // max(1, total)} % of {total / 2**20:,.0f} MiB")


# Backup


def back_up(settings: Settings, target: Path, version: str, say: Say, keep: int = 0) -> Path:
    """Makes a backup, and where it is. `keep`: it is one of a series, named after the time, and older ones go.

    Refuses (start) what is no database of a tracker, a target that is none of its backups, and a disk that is full.
    Whatever ends it, what had the final name before still has it.
    """
    source = Path(settings.database)
    with refusals(source):
        source = source.resolve()
        if not source.is_file():
            raise refusal(source, "there is no such database")
    with refusals(target):
        target = target.absolute()
        if not target.parent.is_dir() or target.is_dir():
            raise refusal(target, "it names a file, in a folder that is there")
    with refusals(target), alone(target):
        made = Clock().time()
        final = stamped(target, made) if keep else target
        settle(target)
        check_target(target, source)
        part = part_of(target)  # one name for all of a series: the next one clears it away
        try:
            with refusals(source):
                copy_database(source, settings, part, Progress(say, "Copied"))
            say("Checking the copy")
            schema, names = check_copy(part, source)
            files = copy_files(folder_of(source), folder_of(target), names, known_files(target), Progress(say, "Files"))
            size, digest = sync(part)
            manifest = Manifest(
                version, schema, sqlite3.sqlite_version, made, digest, size, folder_of(target).name, files
            )
            described = write_manifest(manifest_of(final), manifest)
            os.replace(part, final)
            os.replace(described, manifest_of(final))
            sync_folder(final.parent)
        except BaseException:
            if part.exists():  # else it has its name, and its files are of use
                part_of(manifest_of(final)).unlink(missing_ok=True)
                forget_files(target)  # they would keep the disk full, and be nobody's to the next one
            raise
        finally:
            for suffix in ("", "-journal"):
                part.with_name(part.name + suffix).unlink(missing_ok=True)
        if keep:
            forget_older(target, keep)
        forget_files(target)
    return final


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """One backup at a time to a place."""
    try:
        with filelock.FileLock(f"{target}.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise refusal(target, "another backup is being made there") from None


def stamped(target: Path, made: float) -> Path:
    """tracker-20261130T101500Z.db for tracker.db."""
    stamp = datetime.datetime.fromtimestamp(made, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return target.with_name(f"{target.stem}-{stamp}{target.suffix}")


def of_series(target: Path, path: Path) -> bool:
    """Whether it has the name of a backup of this series."""
    return re.fullmatch(re.escape(target.stem) + r"-\d{8}T\d{6}Z" + re.escape(target.suffix), path.name) is not None


def series(target: Path) -> list[Path]:
    """The complete backups of a series, the oldest first."""
    return sorted(one for one in target.parent.iterdir() if of_series(target, one) and manifest_of(one).is_file())


def settle(target: Path) -> None:
    """Ends what an earlier backup to this place was killed in: what has got its name gets its manifest.

    Else its files would be nobody's, and go. The manifest of what has got no name goes, and that of an older one of a
    series which is deleted.
    """
    manifest = manifest_of(target).name.removeprefix(target.name)
    for made in backups_with(target, f"{manifest}.part"):
        part = part_of(manifest_of(made))
        if is_described(made, part):
            os.replace(part, manifest_of(made))
        else:
            part.unlink()
    for made in backups_with(target, manifest):
        if of_series(target, made) and not made.exists():
            manifest_of(made).unlink()


def backups_with(target: Path, end: str) -> list[Path]:
    """The places of this backup and of its series beside which is a file whose name is longer by this end."""
    made = [one.with_name(one.name.removesuffix(end)) for one in target.parent.iterdir() if one.name.endswith(end)]
    return [one for one in made if one.name == target.name or of_series(target, one)]


def is_described(backup: Path, manifest: Path) -> bool:
    """Whether the manifest is that of the backup, which may not be there."""
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError), backup.open("rb") as file:
        described = msgspec.json.decode(manifest.read_bytes(), type=Manifest)
        return described.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    return False


def check_target(target: Path, source: Path) -> None:
    """Refuses to write over anything but a backup, and to use a folder of files that are of none.

    A first one that a crash has ended has left files there, and its part.
    """
    if target.exists() and (target.samefile(source) or not manifests(target)):
        raise refusal(target, "it is there already, and is no backup that this program has made")
    folder = folder_of(target)
    if folder.exists() and any(folder.iterdir()) and not known_files(target) and not part_of(target).exists():
        raise refusal(folder, "it has files that are of no backup here")


def copy_database(source: Path, settings: Settings, part: Path, progress: Progress) -> None:
    """Copies one state of the database. Nothing that the tracker does meanwhile makes it begin anew, or is held up.

    One read transaction lasts as long as the copying: another program's, which no bound on reads ends. The write-ahead
    log grows meanwhile. What has been committed before it began is in the copy.
    """
    part.unlink(missing_ok=True)
    with (
        open(part, "xb", opener=for_owner) as file,  # secrets are inside
        contextlib.closing(connect(source, settings, readonly=True)) as connection,
        contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        check_owner(connection, source)
        page = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
        copy.execute("PRAGMA synchronous = OFF")  # it is synced piece by piece, and before it gets its name

        def copied(_: int, left: int, pages: int) -> None:
            sync_piece(file.fileno())
            progress.at((pages - left) * page, pages * page)

        connection.backup(copy, pages=max(1, PIECE // page), progress=copied)
        connection.execute("COMMIT")
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # one plain file, without a log beside it


def check_copy(part: Path, source: Path) -> tuple[int, list[tuple[str, int]]]:
    """The version of the copy's schema, and the names and sizes of the files it knows. Refuses one that is damaged.

    What it is a copy of, and was given by its user, is what a refusal names.
    """
    with contextlib.closing(sqlite3.connect(f"{part.as_uri()}?mode=ro&immutable=1", uri=True)) as copy:
        try:
            found = [row[0] for row in copy.execute("PRAGMA integrity_check(3)")]
        except sqlite3.DatabaseError as error:
            found = [str(error)]
        if found != ["ok"]:
            raise refusal(source, f"the database is damaged: {'; '.join(found)}")
        check_owner(copy, source)
        version = copy.execute("PRAGMA user_version").fetchone()[0]
        known = copy.execute("SELECT 1 FROM sqlite_schema WHERE name = 'testflinger_file'").fetchone()
        return version, copy.execute("SELECT name, size FROM testflinger_file").fetchall() if known else []


def check_owner(connection: sqlite3.Connection, source: Path) -> None:
    """Refuses another program's database, and a file in which nothing is yet."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise refusal(source, "this is no database of a tracker")


def known_files(target: Path) -> dict[str, StoredFile]:
    """The files of the backups that are there, whose checksums are known."""
    made = [*series(target), target]
    return {file.name: file for one in made for manifest in manifests(one) for file in manifest.files}


def copy_files(
    source: Path, folder: Path, names: list[tuple[str, int]], known: dict[str, StoredFile], progress: Progress
) -> list[StoredFile]:
    """Copies those files that the folder does not have yet. One that has gone meanwhile is noted as such."""
    if names and not folder.exists():
        folder.mkdir(mode=0o700)
    files, done, total = [], 0, sum(size for _, size in names)
    for name, size in names:
        check_name(name)
        copied = known.get(name)
        if copied is None or not copied.sha256 or not is_of_size(folder / name, size):
            copied = StoredFile(name, size, copy_file(source / name, folder / name))
        files.append(copied)
        done += size
        progress.at(done, total)
    if folder.exists():
        sync_folder(folder)
    return files


def check_name(name: str) -> None:
    if Path(name).name != name or name in (".", ".."):
        raise TrackerError("start", f"{name!r} is no name of a file")


def is_of_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def copy_file(source: Path, target: Path) -> str | None:
    """Copies a file, for its owner alone, and its checksum; None when it is not there."""
    part = part_of(target)
    try:
        with source.open("rb") as given, open(part, "wb", opener=for_owner) as taken:
            digest = hashlib.sha256()
            while block := given.read(PIECE):
                digest.update(block)
                taken.write(block)
                taken.flush()
                sync_piece(taken.fileno())
        os.replace(part, target)
    except FileNotFoundError:
        return None
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync(path: Path) -> tuple[int, str]:
    """Has the file on the disk: its size and checksum."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return file.tell(), digest


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Has the manifest on the disk, under the name that this returns."""
    part = part_of(path)
    try:
        with open(part, "wb", opener=for_owner) as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def manifests(backup: Path) -> list[Manifest]:
    """What may be the manifest of a backup: when one was interrupted as it got its name, the right one of two.

    Refuses one that cannot be read.
    """
    found = []
    for path in (manifest_of(backup), part_of(manifest_of(backup))):
        with contextlib.suppress(FileNotFoundError):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Manifest))
            except msgspec.DecodeError as error:
                if path == manifest_of(backup):
                    raise refusal(path, f"it cannot be read: {error}") from None
    return found


def forget_older(target: Path, keep: int) -> None:
    """Deletes the backups of a series but for the last ones."""
    for old in series(target)[:-keep]:
        old.unlink()
        manifest_of(old).unlink()


def forget_files(target: Path) -> None:
    """Deletes the files that no backup of this place knows any more."""
    known, folder = known_files(target), folder_of(target)
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name not in known:
            file.unlink()


# Restore


def restore(settings: Settings, backup: Path, say: Say, force: bool = False) -> int:
    """Puts a backup in the place of the database. How many of its files are missing.

    Refuses (start) a backup that is damaged or made by a newer tracker, a database that a tracker uses, and one that
    has something in it unless `force` is said. The database is replaced when all of the backup is there, at once.
    """
    with refusals(backup):
        backup = backup.absolute()
    check_backup(backup)
    guard = Guard(settings.database)
    beside = guard.beside(".lock"), folder_of(guard.path)
    was_there, new = guard.path.exists(), [path for path in beside if not path.exists()]
    guard.take()
    try:
        if not force and is_used(guard.path):
            raise refusal(guard.path, "it has something in it, which --force replaces (make a backup of it first)")
        return put_back(backup, guard.path, settings, say)
    except BaseException:
        is_ours = found(guard.path) == guard.identity and (was_there or not guard.path.stat().st_size)
        for path in new if is_ours else ():  # else what is there by now belongs to the database that is
            remove(path)
        if is_ours and not was_there:
            guard.path.unlink()  # it was made to be locked
        raise
    finally:
        guard.release()


def check_backup(backup: Path) -> None:
    """Refuses what cannot be one, before anything is made of it."""
    with refusals(backup):
        if not backup.is_file():
            raise refusal(backup, "there is no such backup")
        log = backup.with_name(f"{backup.name}-wal")
        if log.is_file() and log.stat().st_size:
            problem = (
                f"it is a database in use, or was: some of it is in {log.name} alone. The command backup copies all"
            )
            raise refusal(backup, problem)
        with contextlib.closing(sqlite3.connect(f"{backup.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            check_owner(connection, backup)


def remove(path: Path) -> None:
    """Deletes a file, or a folder of files, that is of no use any more."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_used(path: Path) -> bool:
    """Whether there is anything in a database that somebody might miss: at least what is none of a tracker's."""
    if not path.stat().st_size:
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            tables = ("manager", "project", "worker", "job")
            return any(connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables)
    except sqlite3.Error:
        return True


def put_back(backup: Path, path: Path, settings: Settings, say: Say) -> int:
    part = path.with_name(f"{path.name}.restored")
    with refusals(path):
        try:
            say("Checking the backup")
            checksum, described = copy_file(backup, part), manifests(backup)
            manifest = next((one for one in described if one.sha256 == checksum), None)
            if described and not manifest:
                raise refusal(backup, f"it is damaged: it is not what {manifest_of(backup).name} says")
            version, names = check_copy(part, backup)
            if version > SCHEMA_VERSION:
                raise refusal(backup, f"made by a newer tracker (schema {version}, this one knows {SCHEMA_VERSION})")
            folder = backup.with_name(manifest.folder) if manifest else folder_of(backup)
            known = {file.name: file for file in manifest.files} if manifest else {}
            missing = put_files_back(folder, folder_of(path), names, known, Progress(say, "Files"))
            skip_ids(part)
            sync(part)
            give_to_owner(part, path)
            empty_log(path, settings)
            os.replace(part, path)
            sync_folder(path.parent)
            return missing
        finally:
            for suffix in ("", "-journal"):
                part.with_name(part.name + suffix).unlink(missing_ok=True)


def put_files_back(
    source: Path, folder: Path, names: list[tuple[str, int]], known: dict[str, StoredFile], progress: Progress
) -> int:
    """Copies the files of jobs. How many are not there; refuses one that is damaged."""
    if names and not folder.exists():
        folder.mkdir(mode=0o700)
        give_to_owner(folder, folder.parent)
    missing, done, total = 0, 0, sum(size for _, size in names)
    for name, size in names:
        check_name(name)
        checksum = copy_file(source / name, folder / name)
        expected = known[name].sha256 if name in known else checksum
        if checksum is None:
            missing += 1
        elif checksum != expected:
            raise refusal(source / name, "it is damaged: it is not what the manifest says")
        else:
            give_to_owner(folder / name, folder)
        done += size
        progress.at(done, total)
    return missing


def skip_ids(part: Path) -> None:
    """Tasks get ids from now on that none had since the backup: who held such a one would release another task."""
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
        if not copy.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'task'", (SKIPPED_IDS,)).rowcount:
            copy.execute("INSERT INTO sqlite_sequence VALUES ('task', ?)", (SKIPPED_IDS,))


def give_to_owner(path: Path, like: Path) -> None:
    """What root puts back belongs to whom the database, or its folder, belongs."""
    if getattr(os, "geteuid", lambda: 1)() == 0:
        owner = (like if like.exists() else like.parent).stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def empty_log(path: Path, settings: Settings) -> None:
    """Leaves no write-ahead log of the old database, which would be taken for that of the new one."""
    if path.stat().st_size:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(path, settings)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # it may be damaged, and this the remedy
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


# The command line


def seconds_of(text: str) -> float:
    """A time such as 90, 15m, 6h or 1d. ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if not match or not int(match[1]):
        raise ValueError(text)
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def repeat(interval: float, make: Callable[[], Any], say: Say) -> None:
    """Makes a backup now, and again and again; one that fails is made the next time."""
    following = time.monotonic()
    while True:
        try:
            make()
        except TrackerError as error:
            say(f"tracker: {error.message}")
        following = max(following + interval, time.monotonic())
        time.sleep(max(0.0, following - time.monotonic()))
