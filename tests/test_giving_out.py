"""What the machine withholds is called by its name: 503 and one line in the log, and no traceback."""

import contextlib
import errno
import logging
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jinja2
import pytest
from conftest import Site, Worker, client, wait_until
from test_command_line import refusal, started

import database
import faults
import logfile
import pages
import tracker
from connections import Seldom

DISK_ERROR = sqlite3.SQLITE_IOERR_READ


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "seldom", Seldom())


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("in SQLite's words")
    error.sqlite_errorcode = code
    return error


class Failing(database.Polite):
    """A reader whose disk fails."""

    code = DISK_ERROR

    def __call__(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        raise sqlite_error(self.code)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of it: without a traceback, each in one line."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(record.exc_info or "\n" in record.getMessage() for record in records)
    return [record.getMessage() for record in records]


# ── The database ──────────────────────────────────────────────────────────────────────────────────────────────────────


BEHIND = ": The database cannot be read"  # after the name of what goes on in the background


@pytest.mark.parametrize("code", ["IOERR_READ", "CORRUPT", "NOTADB", "CANTOPEN", "FULL", "PROTOCOL"])
@pytest.mark.parametrize("path", ["/project/list", "/ui/", "/ui/login", "/v1/agents/data", "/api/jobs/status?token=x"])
def test_a_read_that_the_disk_refuses_is_503_at_every_door(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, code: str
) -> None:
    monkeypatch.setattr(Failing, "code", getattr(sqlite3, f"SQLITE_{code}"))
    monkeypatch.setattr(database, "Polite", Failing)
    for _ in range(3):
        assert client(site.url).get(path).status_code == 503
    assert [line for line in lines_of(caplog) if not line.endswith(BEHIND)] == ["A read failed: in SQLite's words"]


def test_pages_that_were_overwritten_are_503_and_not_a_traceback(tmp_path: Path) -> None:
    """All but the beginning of the file is garbage, which is found when it is read."""
    with started(tmp_path) as (process, url):
        worker = Worker(url)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    file = tmp_path / "tracker.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'worker' AND rootpage")
        places = [(root - 1) * 4096 for (root,) in roots]
    with open(file, "r+b") as stream:
        for place in places:
            stream.seek(place)
            stream.write(b"\xff" * 4096)
    with started(tmp_path) as (process, url):
        lines: list[str] = []
        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        http = client(url, headers=worker.http.headers)
        assert http.get(f"/worker/get/{worker.id}").status_code == 503
        assert http.post("/log/info", json={"scope": "s", "message": "m", "timestamp": 1}).status_code == 503
        assert http.get("/task/get/1").status_code == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    wait_until(lambda: any("A read failed: " in line for line in lines))
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("version", [-1, -(2**31), 3])
def test_a_version_that_no_release_had_is_said_in_one_line(tmp_path: Path, version: int) -> None:
    database.prepare_file(tmp_path / "tracker.db", tracker.Settings())
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    assert "cannot be upgraded" in refusal(tmp_path, "--port", "0")


@pytest.mark.parametrize("version", [-1, 8, 99])
def test_an_empty_database_is_made_ours_whatever_version_it_says(tmp_path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with started(tmp_path) as (_, url):
        assert Worker(url).id


# ── Descriptors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def none_is_left(*_: Any, **__: Any) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("path", ["/ui/nowhere", "/ui/login"])
def test_a_page_that_cannot_be_read_for_want_of_descriptors_is_told_without_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    monkeypatch.setattr(jinja2.FileSystemLoader, "get_source", none_is_left)
    pages.jinja_environment.cache_clear()
    try:
        answer = client(site.url).get(path)
    finally:
        pages.jinja_environment.cache_clear()
    assert answer.status_code == (404 if path == "/ui/nowhere" else 503)
    assert "There is nothing" in answer.text or "no room" in answer.text
    lines_of(caplog)


@pytest.mark.parametrize(
    ("failing", "accepted"),
    [
        ("starlette.staticfiles.os.stat", "gzip"),
        ("starlette.responses.anyio.open_file", "identity"),
        ("pages.Path.read_bytes", "gzip"),
    ],
)
def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_no_traceback(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str, accepted: str
) -> None:
    page = client(site.url).get("/ui/login").text
    style = re.search(r'href="(/ui/static/[^"]+css[^"]*)"', page)[1]
    pages.packed_content.cache_clear()
    monkeypatch.setattr(failing, none_is_left)
    with contextlib.suppress(httpx.TransportError):  # an answer that has begun is broken off
        assert client(site.url).get(style, headers={"Accept-Encoding": accepted}).status_code == 503
    monkeypatch.undo()
    lines_of(caplog)


def test_a_line_of_the_log_is_one_whatever_a_stranger_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults.fault(OSError(errno.EMFILE, "Too many open files"), "GET /a\nCRITICAL tracker: b")
    lines_of(caplog)


# ── The log file ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def full_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker of a tracker whose log file takes nothing any more."""

    def emit(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logging.handlers.RotatingFileHandler, "shouldRollover", emit)
    yield Worker(site.url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no file that is full")
def test_a_tracker_stops_in_order_whose_log_file_is_on_a_full_disk(tmp_path: Path) -> None:
    log = logfile.open_log_file(tracker.Settings(database=str(tmp_path / "tracker.db")))
    (handler,) = log.handlers
    handler.setStream(open("/dev/full", "w", encoding="utf-8"))  # noqa: SIM115
    with pytest.raises(OSError, match="No space"):
        log.info("a line")
    handler.close()


@pytest.mark.parametrize(("level", "status"), [("info", 204), ("debug", 503), ("trace", 503)])
def test_a_line_that_could_be_written_nowhere_is_not_acknowledged(
    full_log: Worker, caplog: pytest.LogCaptureFixture, level: str, status: int
) -> None:
    """From the level `info` on it is in the database, too."""
    for _ in range(3):
        assert full_log.log(level, "a line").status_code == status
    assert len(lines_of(caplog)) == 1


# ── Signals ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="it is POSIX's")
def test_a_hangup_is_a_graceful_stop(tmp_path: Path) -> None:
    with started(tmp_path) as (process, url):
        worker = Worker(url)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=20) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "tracker.db")) as connection:
        assert connection.execute("SELECT id FROM worker").fetchall() == [(worker.id,)]
    assert not (tmp_path / "tracker.db-wal").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="it is POSIX's")
def test_who_was_started_to_outlive_a_hangup_does(tmp_path: Path) -> None:
    """As nohup does."""
    ignored = Path(sys.executable), tracker.HERE / "tracker.py"
    program = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )

    command = [sys.executable, "-c", program, *map(str, ignored), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            process.send_signal(signal.SIGHUP)
            assert Worker(url).id
            process.terminate()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


# ── Clients that go ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("request_line", ["GET /ui/login", "GET /project/list", "GET /task/get/1?wait=0.2", "GET /x"])
def test_a_client_that_drops_what_it_has_sent_ahead_is_no_traceback(
    site: Site, caplog: pytest.LogCaptureFixture, request_line: str
) -> None:
    worker = Worker(site.url)
    credentials = f"X-Worker-ID: {worker.id}\r\nX-Secret: {worker.secret}\r\n"
    sent = f"{request_line} HTTP/1.1\r\nHost: localhost\r\n{credentials}\r\n".encode() * 40
    address = urlsplit(site.url)
    for end in (len(sent), len(sent) - 5, 3):
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(sent[:end])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets it
    assert client(site.url).get("/").status_code == 200
    lines_of(caplog)
