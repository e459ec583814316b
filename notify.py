"""What the service manager is told (systemd, with Type=notify): that the tracker serves, stops, and is alive.

It is a datagram to NOTIFY_SOCKET, see sd_notify(3). Without one nothing is told to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from errors import TrackerError

log = logging.getLogger("tracker")

PATIENCE = 1.0  # seconds for a manager that does not listen


def tell(state: str) -> None:
    """Tells the manager a state, such as READY=1."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):  # it has a name, and no file
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE)
            sock.sendto(state.encode(), address)
    except (OSError, ValueError) as error:
        log.warning("The service manager could not be told %s: %s", state, error)


def watchdog_interval() -> float | None:
    """Seconds after which the manager is to hear of us again: half of its patience. None: it does not watch us."""
    try:
        patience = int(os.environ.get("WATCHDOG_USEC", ""))
        ours = int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return patience / 2e6 if ours and patience > 0 and os.environ.get("NOTIFY_SOCKET") else None


def follow(server: Any, ask: Callable[[], Awaitable[Any]]) -> None:
    """Tells the manager that the server is ready, and later that it stops; and that it lives, while `ask` returns.

    A refusal is an answer: nothing would be better after a restart.
    """
    stopping = server.say_stopping

    def say_stopping() -> None:
        tell("STOPPING=1")
        stopping()

    async def live(interval: float) -> None:
        while True:
            with contextlib.suppress(TrackerError):
                await ask()
            tell("WATCHDOG=1")
            await asyncio.sleep(interval)

    server.say_stopping = say_stopping
    tell("READY=1")
    if interval := watchdog_interval():
        server.living = asyncio.get_running_loop().create_task(live(interval))
