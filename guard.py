"""The database file: held against a second tracker, and watched for as long as it is served.

    take ─► the lock beside the file, and one on the file itself ─► watch ─► look, before each commit

SQLite names the write-ahead log after the path, and goes on in the open file whatever becomes of that. So an
acknowledgement is worth nothing once the path leads elsewhere, or somebody has written over the file: then `look`
refuses. A second descriptor of the file, or of its -shm, is closed after all of SQLite's alone: at its end the system
drops the locks that SQLite has on them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import filelock

from errors import TrackerError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be moved
    fcntl = None

log = logging.getLogger("tracker")

LOOK = (
    0.1  # seconds after which the names of the files are looked up again, at most half a second where nothing goes on
)
LOCKS_FILE = sys.platform == "linux"  # elsewhere flock gets into the way of SQLite's own locks
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"}
PAGE = 4096  # bytes of the file at its beginning and at the root of one table: enough to tell two states apart

Identity = tuple[int, int]  # of a file: its device and its number there

HELD: set[Identity] = set()  # by this process: to open one of those and to close it again would drop its locks
HOLDING = threading.Lock()


class Schema(NamedTuple):
    """What hardly changes in a file: whose it is, the version of its schema with where that ends, and its last page."""

    owner: bytes
    version: bytes
    page: bytes

    def follows(self, before: Schema) -> bool:
        """Whether SQLite may have made this of that."""
        return self.owner == before.owner and (self.version != before.version or self.page == before.page)


class Guard:
    """The right to write to a database file, and whether there still is a point in it."""

    def __init__(self, given: str):
        """Refuses (start) a name that cannot be a file's."""
        if not given or Path(given).name == ":memory:" or given.startswith("file:"):
            raise TrackerError("start", f"{given!r} is no file: a tracker keeps its database in one", "database")
        try:
            self.given = Path(given).absolute()  # it may lead elsewhere later
            self.path = self.given.resolve()
            self.lock = filelock.FileLock(f"{self.path}.lock", timeout=0)
        except (OSError, RuntimeError, ValueError) as error:
            raise TrackerError("start", f"{given!r}: cannot be opened: {reason(error)}", "database") from None
        self.file: int | None = None
        self.wal_index: int | None = None
        self.files: dict[Path, Identity] = {}  # what has to be where
        self.state: tuple[int, int] | None = None
        self.progress: tuple[bytes, bytes, bytes] | None = None
        self.problem = ""
        self.overwritten = False
        self.emptied = False  # since there is a problem nothing is in the write-ahead log that is not in the file
        self.looks_at = 0.0

    # Held

    def take(self) -> None:
        """Makes this process the only one that writes to the file, and makes it if there is none.

        Refuses (start) a file that is in use by whatever name, has several names, or cannot hold a database.
        """
        try:
            if not self.path.parent.is_dir():  # the lock would create the folder: that hides a slip of the pen
                raise TrackerError("start", f"{self.path}: cannot be opened: there is no such folder")
            kind, mounted = file_system_of(self.path)
            if kind in NETWORK:
                raise TrackerError(
                    "start",
                    f"{self.path}: a network share ({kind}) cannot hold a database in WAL mode: it needs a local disk",
                )
            with HOLDING, contextlib.ExitStack() as undo:
                if self.path.exists():
                    self.check(os.stat(self.path))
                self.lock.acquire()
                undo.callback(self.lock.release)
                self.open()
                undo.pop_all()
            if mounted == self.path:
                log.warning(
                    "%s is mounted by itself, and its -wal lies beside it, elsewhere: mount the folder, or what the one"
                    " holds may be missing in the other",
                    self.path,
                )
        except filelock.Timeout:
            raise TrackerError(
                "start", f"{self.path}: another tracker is using this database; stop that one first"
            ) from None
        except (OSError, ValueError) as error:
            raise TrackerError("start", f"{self.path}: cannot be opened: {reason(error)}") from None

    def open(self) -> None:
        """Opens and locks the file, of which is known that this does no harm."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)  # there are secrets in it
        try:
            if LOCKS_FILE and not locked(file):
                raise filelock.Timeout(str(self.path))
            self.check(os.fstat(file))
        except BaseException:
            os.close(file)
            raise
        self.file, self.identity = file, identity(os.fstat(file))
        HELD.add(self.identity)

    def check(self, status: os.stat_result) -> None:
        """Refuses (start) what is no file, is held by this process, or has other names.

        What one name's -wal holds is missing under another one, and is written over what was done there.
        """
        if identity(status) in HELD:
            raise filelock.Timeout(str(self.path))
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
            raise TrackerError("start", f"{self.path}: cannot be opened: it is {what}")
        if status.st_nlink > 1:
            raise TrackerError(
                "start",
                f"{self.path}: the file has {status.st_nlink} names (hard links), and a database must have one: remove"
                f" the others (find / -xdev -inum {status.st_ino}), or make a copy of it",
            )

    def release(self) -> None:
        """Gives the file up. To be called when SQLite has closed it."""
        for file in filter(None, (self.wal_index, self.file)):
            os.close(file)
        if self.file is not None:
            HELD.discard(self.identity)
        self.file = self.wal_index = None
        self.lock.release()

    # Watched

    def watch(self, root: int, page_size: int) -> None:
        """From now on `look` says whether these still are the files. To be called when something has been committed.

        `root`: the page at which a table begins of which something changes all the time.
        """
        with contextlib.suppress(OSError):  # it has just been deleted: the first look will miss it
            self.wal_index = os.open(self.beside("-shm"), os.O_RDONLY) if fcntl else None
        others = ("-wal", "-shm") if LOCKS_FILE else ("-wal", "-shm", ".lock")
        self.files = {self.given: self.identity} | {path: found(path) for path in map(self.beside, others)}
        self.places, self.page_size = (0, (root - 1) * page_size), page_size
        self.written_by_others()

    def beside(self, suffix: str) -> Path:
        """The file that belongs to it and ends in this."""
        return Path(f"{self.path}{suffix}")

    def look(self) -> TrackerError | None:
        """Why nothing may be committed, if so: it would be lost, as the files are not where they were, or damaged.

        The log says so when it begins and ends, and how to save what is in the open file.
        """
        if (now := time.monotonic()) >= self.looks_at and not self.overwritten:
            self.looks_at = now + LOOK
            self.tell(self.misplaced())
        return self.look_into() or (refusal() if self.problem else None)

    def look_into(self) -> TrackerError | None:
        """The same, but only whether somebody has written over the file."""
        if not self.overwritten and self.written_by_others():
            self.overwritten = True
            log.critical(
                "%s has been overwritten while it was in use: nothing is stored any more. Stop the tracker; it begins"
                " with what was copied there",
                self.path,
            )
            self.set_aside()
        return refusal() if self.overwritten else None

    def misplaced(self) -> str:
        """What is not where it was, in words; empty: everything is there."""
        wrong = []
        for path, known in self.files.items():
            with contextlib.suppress(OSError):  # nobody can tell
                if (now := found(path)) is None or now != known:
                    wrong.append(f"{path} {'is another file now' if now else 'has been moved or deleted'}")
        return ", ".join(wrong)

    def tell(self, problem: str) -> None:
        """Says to the log what has changed."""
        if problem and not self.problem:
            log.critical("%s: nothing is stored as long as this is so. %s", problem, self.what_to_do())
        elif self.problem and not problem:
            log.warning("%s is where it was: changes are stored again", self.given)
        self.problem = problem

    def what_to_do(self) -> str:
        """How to save the database that this process has open, where the path does not lead to it any more."""
        if found(self.given) == self.identity:
            return "Start it again: the database has what was acknowledged"
        file = Path(f"/proc/{os.getpid()}/fd/{self.file}")
        copy = f", or save what it has before you stop the tracker: cp {file} saved.db" if file.exists() else ""
        return f"Put it back{copy}"

    def written_by_others(self) -> bool:
        """Whether somebody has written into the file who is not SQLite: it does so at a checkpoint alone.

        Called before and after each commit. What SQLite writes is in the index of the write-ahead log, whichever
        process does it: so much has been copied into the file, and so much is being copied. While it does, a page
        tells that is written only if the schema changes.
        """
        if self.wal_index is None:
            return False
        state, before, self.progress = self.read_state(), self.progress, self.read_progress()
        if state == self.state:
            return False
        _, copied, copying = self.progress
        sample, schema = self.read_sample(), self.read_schema()
        by_sqlite = self.progress != before or copied != copying
        if self.state and ((sample != self.sample and not by_sqlite) or not schema.follows(self.schema)):
            return True
        self.state, self.sample, self.schema = state, sample, schema
        return False

    def read_state(self) -> tuple[int, int]:
        status = os.fstat(self.file)
        return status.st_mtime_ns, status.st_size

    def read_progress(self) -> tuple[bytes, bytes, bytes]:
        """Which write-ahead log it is, how much of it has been copied into the file, and how much was to be.

        See "WAL-Index Header" and "WalCkptInfo" in SQLite's walformat.html and wal.c.
        """
        index = os.pread(self.wal_index, 136, 0)
        return index[32:40], index[96:100], index[128:132]

    def read_sample(self) -> list[bytes]:
        return [os.pread(self.file, PAGE, place) for place in self.places]

    def read_schema(self) -> Schema:
        """See "The Database Header" and "B-tree Pages" in SQLite's fileformat2.html."""
        first = os.pread(self.file, 112, 0)
        last = int.from_bytes(first[108:112])
        page = os.pread(self.file, PAGE, (last - 1) * self.page_size) if last else b""
        return Schema(first[:16] + first[68:72], first[40:44] + first[100:101] + first[108:112], page)

    def set_aside(self) -> None:
        """Has the write-ahead log of a file that was overwritten not be taken for that of what stands there now."""
        for path in (self.beside("-wal"), self.beside("-shm")):
            with contextlib.suppress(OSError):
                if found(path) == self.files[path]:
                    path.rename(self.beside(f".overwritten{path.name[-4:]}"))

    def forget_names(self) -> None:
        """The same when the file has been moved, and its write-ahead log copied into it: SQLite leaves that there."""
        for path in (self.beside("-wal"), self.beside("-shm")):
            with contextlib.suppress(OSError):
                if found(self.path) != self.identity and found(path) == self.files[path]:
                    path.unlink()


def refusal() -> TrackerError:
    """What is said to whoever wants to have something stored."""
    return TrackerError("unavailable", "The database file was moved, replaced or overwritten")


def found(path: Path) -> Identity | None:
    """Which file has this name; None if none has. OSError where nobody can tell."""
    try:
        return identity(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def locked(file: int) -> bool:
    """Whether it could be locked; and so where the file system has no such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def reason(error: Exception) -> str:
    """Why something cannot be opened, without its name."""
    return getattr(error, "strerror", None) or str(error)


def file_system_of(path: Path) -> tuple[str, Path | None]:
    """What the file system is called in which a path lies, and where it is mounted, where Linux says so."""
    kind_found, found_at = "", None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            mount, _, kind = line.partition(" - ")
            point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split()[4]))
            if path.is_relative_to(point) and (found_at is None or point.is_relative_to(found_at)):
                kind_found, found_at = kind.split()[0], point
    return kind_found, found_at
