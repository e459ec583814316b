"""The baseline of the benchmarks: one route of Starlette that does nothing, run as uvicorn by itself would run it.

Nothing of the tracker is imported: it is what the stack can do, one process with one event loop, uvicorn's own
protocol class (httptools) on uvloop, keep-alive, no access log. A request's body is read and not looked at.

Usage: python bench/empty.py PORT
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route


async def empty(request):
    await request.body()
    return JSONResponse({"ok": True})


class Server(uvicorn.Server):
    """Says when it listens, as the tracker does."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f"Listening on http://127.0.0.1:{self.config.port}", flush=True)


if __name__ == "__main__":
    app = Starlette(routes=[Route("/", empty, methods=["GET", "POST"])])
    port, quiet = int(sys.argv[1]), {"access_log": False, "log_level": "warning"}
    Server(uvicorn.Config(app, port=port, loop="uvloop", http="httptools", **quiet)).run()
