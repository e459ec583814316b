"""The service manager hears when the tracker serves, that it lives while its writer answers, and that it stops."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nursery
import pytest
from test_command_line import PROGRAM

import notify
from errors import TrackerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is systemd's")


class Manager:
    """A service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.settimeout(20)
        self.environment = {"NOTIFY_SOCKET": address}

    def hear(self) -> str:
        return self.socket.recv(4096).decode()

    def hears_nothing(self, seconds: float) -> bool:
        self.socket.settimeout(seconds)
        try:
            return self.hear() == ""
        except TimeoutError:
            return True


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    one = Manager(f"{tmp_path}/notify" if request.param == "path" else f"@tracker-test-{os.getpid()}-{id(request)}")
    with contextlib.closing(one.socket):
        yield one


@contextlib.contextmanager
def started(tmp_path: Path, **environment: str) -> Iterator[nursery.Process]:
    environment = {**os.environ, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with nursery.start(PROGRAM, ["--port", "0"], tmp_path, environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_says_that_it_serves_and_that_it_stops(tmp_path: Path, manager: Manager) -> None:
    with started(tmp_path, **manager.environment) as process:
        assert manager.hear() == "READY=1"
        assert process.stdout.readline()  # it serves
        process.send_signal(signal.SIGTERM)
        assert manager.hear() == "STOPPING=1"
        assert process.wait(timeout=20) == 0


def test_it_says_that_it_lives_when_it_is_watched(tmp_path: Path, manager: Manager) -> None:
    with started(tmp_path, **manager.environment, WATCHDOG_USEC="200000"):
        assert [manager.hear() for _ in range(4)] == ["READY=1", *["WATCHDOG=1"] * 3]


@pytest.mark.parametrize("watched", [{}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_it_says_so_to_nobody_who_does_not_watch_it(tmp_path: Path, manager: Manager, watched: dict[str, str]) -> None:
    with started(tmp_path, **manager.environment, **watched):
        assert manager.hear() == "READY=1"
        assert manager.hears_nothing(0.5)


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody", "vsock:2:1", "", "/" + "x" * 200])
def test_a_manager_that_is_not_there_is_no_reason_not_to_serve(tmp_path: Path, address: str) -> None:
    with started(tmp_path, NOTIFY_SOCKET=address) as process:
        assert "listening" in process.stdout.readline()


def heard_of(manager: Manager, monkeypatch: pytest.MonkeyPatch, ask: object) -> list[str]:
    """What the manager hears in a while of a tracker whose writer is asked like this."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.environment["NOTIFY_SOCKET"])
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    manager.socket.settimeout(0)

    async def run() -> list[str]:
        notify.follow(SimpleNamespace(say_stopping=lambda: None), ask)
        await asyncio.sleep(0.2)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.hear())
        return heard

    return asyncio.run(run())


def test_a_writer_that_refuses_lives(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> None:
        raise TrackerError("unavailable", "The database cannot be written to")

    assert "WATCHDOG=1" in heard_of(manager, monkeypatch, refuse)


def test_of_a_writer_that_hangs_nothing_is_heard(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard_of(manager, monkeypatch, lambda: asyncio.sleep(60)) == ["READY=1"]
