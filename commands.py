"""The command line: serve (the default), config, compact, backup, restore, create-admin, and what each takes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import getpass
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import msgspec

import backup
import notify
import shapes
from attempts import give_way, hash_password
from connections import check_descriptors
from database import Clock, Database
from errors import TrackerError, convert
from logfile import let_nobody_wait
from server import Server, run_loop
from settings import FIELDS, Settings, load_settings
from tracker import __version__, make_admin, serve_until_stopped
from turns import TURN
from writer import Tx

log = logging.getLogger("tracker")


def common_options(**settings: Any) -> argparse.ArgumentParser:
    """The options that may stand before or after the command's name."""
    common = argparse.ArgumentParser(add_help=False, **settings)
    common.add_argument("--config", metavar="FILE", type=Path, help="settings (default: tracker.toml here, if any)")
    common.add_argument(
        "--host", action="append", help="address to listen on, may be given several times (default: 127.0.0.1)"
    )
    common.add_argument("--port", type=int, help="port to listen on (default: 3010)")
    common.add_argument("--socket", metavar="PATH", help="unix socket to listen on, then only there but for --host")
    common.add_argument("--database", metavar="FILE", help="the SQLite file (default: tracker.db beside the settings)")
    return common


class Parser(argparse.ArgumentParser):
    """Says of a mistake what it is, and not all that there might have been. No option is known by its beginning."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise TrackerError("start", f"{message} ({self.prog} --help tells more)")


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="tracker.py",
        description="A task tracker: hands out tasks to a crowd of workers and loses none. One process, one file.",
        epilog="Examples:\n"
        "  tracker.py                                   serve on http://127.0.0.1:3010\n"
        "  tracker.py serve --port 8000 --database /var/lib/tracker/tracker.db\n"
        "  tracker.py config                            print every setting in force and what it means\n"
        "  tracker.py create-admin alice                make an account (asks for a password)\n"
        "  tracker.py compact                           make the database's file small\n"
        "  tracker.py backup /backup/tracker.db         copy the database, beside a running tracker\n"
        "  tracker.py restore /backup/tracker.db        put such a copy in its place\n",
        formatter_class=formatter,
        parents=[common_options()],
    )
    top.add_argument("--version", action="version", version=f"tracker {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    later = common_options(argument_default=argparse.SUPPRESS)  # a default would hide what stood before the name
    commands.add_parser(
        "serve",
        parents=[later],
        help="run the tracker (the default)",
        description="Runs the tracker until SIGTERM, SIGHUP or Ctrl-C. Requests in flight finish, queued writes are"
        " committed.",
    )
    commands.add_parser(
        "config",
        parents=[later],
        help="print the settings in force",
        description="Prints every setting in force, where it came from, and what it means.",
    )
    commands.add_parser(
        "compact",
        parents=[later],
        help="make the database's file small",
        description="Makes the database's file as small as it can be, and able to give space back by itself from then"
        " on. The tracker must not be running on it, and the disk needs room for twice of what is in it. Whatever ends"
        " it, nothing is lost.",
    )
    copying = commands.add_parser(
        "backup",
        parents=[later],
        help="copy the database, while a tracker runs or not",
        description="Makes a backup: a checked copy of the database as FILE, beside it a manifest and the files of"
        " Testflinger's jobs. A tracker may run meanwhile. It replaces an earlier backup of that name; what is"
        " interrupted leaves that as it is.",
    )
    copying.add_argument("file", metavar="FILE", type=Path, help="where to; tracker-20261130T101500Z.db with --keep")
    copying.add_argument("--keep", metavar="N", type=number, default=0, help="keep the last N, named after their times")
    copying.add_argument(
        "--every", metavar="TIME", type=backup.seconds_of, help="again and again: 15m, 6h, 1d (keeps 7, or --keep)"
    )
    restoring = commands.add_parser(
        "restore",
        parents=[later],
        help="put a backup in the place of the database",
        description="Puts a backup in the place of the database, with the files of Testflinger's jobs, after it has"
        " been checked. The tracker must not be running on the database.",
    )
    restoring.add_argument("file", metavar="FILE", type=Path, help="the backup")
    restoring.add_argument("--force", action="store_true", help="replace a database that has something in it")
    admin = commands.add_parser(
        "create-admin",
        parents=[later],
        help="make a tracker admin",
        description="Makes a manager account that is tracker admin. The password is asked for, or read from standard"
        " input when that is not a terminal. The tracker must not be running on the database.",
    )
    admin.add_argument("name", metavar="NAME", help="user name, 3 to 16 characters")
    admin.add_argument("--reset", action="store_true", help="give an existing account a new password and make it admin")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after one line that says what the user can mend."""
    open_standard_files()
    try:
        options = parsed(arguments)
        default = Path("tracker.toml")
        path = options.config or (default if default.exists() else None)
        given = {name: getattr(options, name) for name in ("host", "port", "socket", "database")}
        settings, sources = load_settings(path, **given)
        commands = {"config": print_settings, "compact": compact, "create-admin": create_admin}
        commands |= {"backup": make_backup, "restore": restore_backup}
        command = commands.get(options.command, serve)
        command(settings, sources, options)
    except BrokenPipeError:  # whoever read what is printed has gone
        let_go_of(sys.stdout)
        return 141  # as a program that the signal ends
    except TrackerError as error:
        say(f"tracker: {' '.join(error.message.split())}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def open_standard_files() -> None:
    """Makes up for those that are closed: what is opened next would get their numbers, and what is printed."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. What --help prints is printed when this ends."""
    try:
        return parser().parse_args(arguments)
    except SystemExit:
        sys.stdout.flush()
        raise


def say(line: str, stream: TextIO) -> bool:
    """Prints a line, and whether it could: a standard file may be closed or full, and the tracker goes on without."""
    try:
        show(line, stream)
    except (OSError, ValueError):
        let_go_of(stream)
        return False
    return True


def show(line: str, stream: TextIO) -> None:
    """Prints a line. OSError or ValueError where it cannot be."""
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def let_go_of(stream: TextIO) -> None:
    """What is left of it would be printed at the end, in vain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(line: str) -> None:
    """Says how far a command is."""
    say(line, sys.stderr)


def number(text: str) -> int:
    """A number from 1 on. ValueError for anything else."""
    if not 0 < int(text) < 10**6:
        raise ValueError(text)
    return int(text)


M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # of <malloc.h>


def give_memory_back() -> None:
    """What a thread has used for a password or a long body goes back to the system, where the C library is GNU's.

    By itself that would keep an area of 64 MB for each of so many threads, and have them grow by pieces of the size
    of the largest that was ever given back.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        library.mallopt(M_ARENA_MAX, 2)
        library.mallopt(M_MMAP_THRESHOLD, 2**17)  # less than the pieces of long answers, which would leave holes
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = Heap
        threading.Thread(target=empty_holes, args=(library,), name="memory", daemon=True).start()


class Heap(ctypes.Structure):
    """What <malloc.h> says of the heap (struct mallinfo2)."""

    _fields_ = tuple((f"other_{number}", ctypes.c_size_t) for number in range(8))
    _fields_ += (("free", ctypes.c_size_t), ("keepcost", ctypes.c_size_t))  # bytes, be they with the system or not


LOOK, GROWN = 10.0, 2**24  # seconds; bytes


def empty_holes(library: Any) -> None:
    """Whenever more of the heap is free than before, that goes back to the system, also between what is used.

    As after a crowd, whose requests and answers of all lengths have come and gone beside what stays. It is done beside
    the event loop, which waits for it where it wants memory: two milliseconds, and one more for each 7 MB.
    """
    least = library.mallinfo2().free
    while True:
        time.sleep(LOOK)
        least = emptied(least, library)


def emptied(least: int, library: Any) -> int:
    """Gives back what is free if there was `least`, and is much more by now. How much there is since then."""
    free = library.mallinfo2().free
    if free <= least + GROWN:
        return min(least, free)
    library.malloc_trim(0)
    return free


def serve(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    check_descriptors(settings.max_connections)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    give_memory_back()
    logging.raiseExceptions = False  # a line that cannot be written anywhere is none that others are written about
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that is none

    def ready(url: str, server: Server) -> None:
        for name in (None, "uvicorn", "uvicorn.access"):
            let_nobody_wait(logging.getLogger(name))
        gc.freeze()  # what has been loaded stays: looking through it for garbage would stop everybody for a while
        gc.set_threshold(5_000, 10, 20)  # fewer cost assignments 5 %, twice as many stop everybody for ten milliseconds
        # Threads that compute (they read bodies, rows, uploads) keep the interpreter from the event loop for no longer
        # than a turn: with Python's 5 ms eight large forms made workers wait for up to 22 ms, and each commit, too.
        sys.setswitchinterval(TURN)
        places = ", ".join(f"{place}{settings.root_path}" for place in server.places)
        say(f"Tracker listening on {places}  (database {settings.database})", sys.stdout)
        running = server.config.app.state.tracker
        if running.code:
            where = f"{url if url.startswith('http') else ''}{settings.root_path}/ui/register"
            say(f"It has no admin yet: register at {where}, from elsewhere with the code {running.code}", sys.stderr)
        if not (running.hosts.on_loopback or settings.allowed_hosts):
            log.warning("It listens beyond loopback: set allowed_hosts to the names under which browsers may reach it")
        notify.follow(server, lambda: running.db.write(nothing))

    run_loop(serve_until_stopped(settings, ready))


def nothing(tx: Tx) -> None:
    """What the writer is asked to do by whoever wants to know whether it lives."""


def print_settings(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    for name, field in FIELDS.items():
        value = toml_value(settings.shown(name))
        meaning = field.type.extra_json_schema["description"]
        try:
            show(f"# {meaning}\n{name} = {value}  # {sources[name]}\n", sys.stdout)
        except BrokenPipeError:
            raise
        except (OSError, ValueError):
            let_go_of(sys.stdout)
            problem = "the settings cannot be printed: standard output is closed or full"
            raise TrackerError("start", problem) from None


def toml_value(value: Any) -> str:
    """A setting's value as TOML; its strings, numbers, booleans and lists look as in JSON."""
    return msgspec.json.encode(value).decode()


def compact(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    before, after = Database(settings, Clock()).compact()
    say(f"{settings.database} had {before / 2**20:,.1f} MiB, and has {after / 2**20:,.1f} MiB now.", sys.stdout)


def make_backup(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    keep = options.keep or (7 if options.every else 0)
    give_way()

    def make() -> None:
        made = backup.back_up(settings, options.file, __version__, tell, keep)
        say(f"{made} is a backup of {settings.database} ({made.stat().st_size / 2**20:,.1f} MiB).", sys.stdout)

    backup.repeat(options.every, make, tell) if options.every else make()


def restore_backup(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    missing = backup.restore(settings, options.file, tell, options.force)
    say(f"{settings.database} is what {options.file} was.", sys.stdout)
    if missing:
        say(f"{missing} files of Testflinger's jobs were not in the backup, and are missing.", sys.stderr)


def create_admin(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    try:
        password = getpass.getpass(f"Password for {options.name}: ") if sys.stdin.isatty() else sys.stdin.readline()
        body = convert({"username": options.name, "password": password.rstrip("\r\n")}, shapes.RegisterBody)
        password_hash = hash_password(body.password)
        body.username.encode()
    except (EOFError, UnicodeError):
        raise TrackerError("invalid", "must be given, and be valid UTF-8", "name, password") from None

    async def create() -> None:
        database = Database(settings, Clock())
        await database.open()
        try:
            await database.write(make_admin, body.username, password_hash, options.reset)
        finally:
            await database.close()

    asyncio.run(create())
    say(f"{options.name} is a tracker admin now.", sys.stdout)
