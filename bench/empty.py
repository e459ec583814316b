"""The baseline of the benchmarks: one empty JSON route of Starlette, under the tracker's own uvicorn configuration.

Usage: python bench/empty.py PORT
"""

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import server
import tracker


async def empty(request):
    return JSONResponse({"ok": True})


class Server(uvicorn.Server):
    """Says when it listens, as the tracker does."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(f"Listening on http://127.0.0.1:{self.config.port}", flush=True)


if __name__ == "__main__":
    app = Starlette(routes=[Route("/", empty)])
    Server(server.uvicorn_config(app, tracker.Settings(port=int(sys.argv[1])))).run()
