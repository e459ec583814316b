"""The command line: serve (the default), config, compact, create-admin, with the settings that each takes."""

from __future__ import annotations

import argparse
import asyncio
import gc
import getpass
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import shapes
from attempts import hash_password
from database import Clock, Database
from errors import TrackerError, convert
from server import Server, run_loop
from settings import FIELDS, Settings, load_settings
from tracker import __version__, make_admin, serve_until_stopped

log = logging.getLogger("tracker")


def common_options(**settings: Any) -> argparse.ArgumentParser:
    """The options that may stand before or after the command's name."""
    common = argparse.ArgumentParser(add_help=False, **settings)
    common.add_argument("--config", metavar="FILE", type=Path, help="settings (default: tracker.toml here, if any)")
    common.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    common.add_argument("--port", type=int, help="port to listen on (default: 3010)")
    common.add_argument("--database", metavar="FILE", help="the SQLite file (default: tracker.db beside the settings)")
    return common


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="tracker.py",
        description="A task tracker: hands out tasks to a crowd of workers and loses none. One process, one file.",
        epilog="Examples:\n"
        "  tracker.py                                   serve on http://127.0.0.1:3010\n"
        "  tracker.py serve --port 8000 --database /var/lib/tracker/tracker.db\n"
        "  tracker.py config                            print every setting in force and what it means\n"
        "  tracker.py create-admin alice                make an account (asks for a password)\n"
        "  tracker.py compact                           make the database's file small\n",
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
        description="Runs the tracker until SIGTERM or Ctrl-C. Requests in flight finish, queued writes are committed.",
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
    options = parser().parse_args(arguments)
    default = Path("tracker.toml")
    path = options.config or (default if default.exists() else None)
    try:
        settings, sources = load_settings(path, host=options.host, port=options.port, database=options.database)
        commands = {"config": print_settings, "compact": compact, "create-admin": create_admin}
        command = commands.get(options.command, serve)
        command(settings, sources, options)
    except TrackerError as error:
        print(f"tracker: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def serve(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that is none

    def ready(url: str, server: Server) -> None:
        gc.freeze()  # what has been loaded stays: looking through it for garbage would stop everybody for a while
        gc.set_threshold(5_000, 10, 20)  # fewer cost assignments 5 %, twice as many stop everybody for ten milliseconds
        print(f"Tracker listening on {url}{settings.root_path}  (database {settings.database})", flush=True)
        running = server.config.app.state.tracker
        if running.code:
            where = f"{url}{settings.root_path}/ui/register"
            print(
                f"It has no admin yet: register at {where}, from elsewhere with the code {running.code}",
                file=sys.stderr,
            )
        if not (running.hosts.on_loopback or settings.allowed_hosts):
            log.warning("It listens beyond loopback: set allowed_hosts to the names under which browsers may reach it")

    run_loop(serve_until_stopped(settings, ready))


def print_settings(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    for name, field in FIELDS.items():
        print(f"# {field.type.extra_json_schema['description']}")
        print(f"{name} = {toml_value(getattr(settings, name))}  # {sources[name]}\n")


def toml_value(value: Any) -> str:
    """A setting's value as TOML; its strings, numbers, booleans and lists look as in JSON."""
    return msgspec.json.encode(value).decode()


def compact(settings: Settings, sources: dict[str, str], options: argparse.Namespace) -> None:
    before, after = Database(settings, Clock()).compact()
    print(f"{settings.database} had {before / 2**20:,.1f} MiB, and has {after / 2**20:,.1f} MiB now.")


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
    print(f"{options.name} is a tracker admin now.")
