"""The baseline of the benchmarks: one route of Starlette that does nothing, run as uvicorn by itself would run it.

Nothing of the tracker is imported: it is what the stack can do, one process with one event loop, uvicorn's own
protocol class (httptools) on uvloop, keep-alive, no access log. A request's body is read and not looked at.

With a database it is the least that a durable answer takes on this stack: before the route answers, one row is stored
on aiosqlite's thread, and nothing else.

Usage: python bench/empty.py PORT [DATABASE]
"""

import contextlib
import sys

import aiosqlite
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


async def empty(request):
    await request.body()
    return JSONResponse({"ok": True})


def storing(path):
    """The same route, which stores a row."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with aiosqlite.connect(path, isolation_level=None) as app.state.database:
            await app.state.database._execute(used_for_a_while, app.state.database._conn)
            yield

    async def store(request):
        await request.body()
        database = request.app.state.database
        await database._execute(database._conn.execute, "INSERT INTO row VALUES (1)")
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/", store, methods=["GET", "POST"])], lifespan=lifespan)


def used_for_a_while(connection):
    """A file with a table `row`, whose log is written over and does not grow; each commit is on the disk."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE row (value)")
    connection.execute("PRAGMA synchronous = OFF")
    for _ in range(1_000):
        connection.execute("INSERT INTO row VALUES (1)")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_checkpoint(RESTART)")


class Server(uvicorn.Server):
    """Says when it listens, as the tracker does."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f"Listening on http://127.0.0.1:{self.config.port}", flush=True)


if __name__ == "__main__":
    app = storing(sys.argv[2]) if sys.argv[2:] else Starlette(routes=[Route("/", empty, methods=["GET", "POST"])])
    port, quiet = int(sys.argv[1]), {"access_log": False, "log_level": "warning"}
    Server(uvicorn.Config(app, port=port, loop="uvloop", http="httptools", **quiet)).run()
