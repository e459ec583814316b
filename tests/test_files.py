"""Files beside the database: what goes up comes down, whole or not at all, and nothing that a client says moves it."""

import asyncio
import contextlib
import errno
import http.client
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import client, wait_until
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

import server
import tracker
from dialects.testflinger import files
from dialects.testflinger.files import BLOCK, ENVELOPE, STEADY, Files, Form, Upload
from limits import Limits
from shares import Shares

LIMIT = 8 * BLOCK
MIB = 2**20
BOUNDARY = b"frontier"
POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows deletes no open file and knows no modes")
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="looks into Linux's /proc")


class Dialect:
    """The smallest dialect that has files: POST /file stores one and says its name, GET /file/NAME brings it back."""

    def __init__(self, limit: int):
        self.limit = limit

    def routes(self, tracker_: tracker.Tracker) -> list[Route]:
        self.tracker = tracker_
        self.files = Files(files.folder_of(tracker_.settings), self.limit)
        return [
            Route("/file", tracker.Endpoint(tracker_, self.store), methods=["POST"]),
            Route("/file/{name}", tracker.Endpoint(tracker_, self.fetch), methods=["GET"]),
        ]

    async def store(self, call: tracker.Call) -> tracker.Reply:
        stored = await self.files.receive(call)
        return tracker.Reply({"name": stored.name, "size": stored.size})

    async def fetch(self, call: tracker.Call) -> Any:
        return await self.files.send(call.scope["path_params"]["name"]) or tracker.Response(status_code=404)


class Store:
    """A tracker with that dialect: its client, where it listens, and the folder of its files."""

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url, folder
        self.http = client(url)

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def upload(self, content: bytes, name: str = "artifact.tar.gz") -> httpx.Response:
        return self.http.post("/file", files={"file": (name, content)})

    def stored(self, content: bytes) -> str:
        """The name under which the content has been stored."""
        answer = self.upload(content)
        assert answer.status_code == 200, answer.text
        return answer.json()["content"]["name"]

    def post(self, body: bytes, content_type: str = "multipart/form-data; boundary=frontier") -> httpx.Response:
        return self.http.post("/file", content=body, headers={"content-type": content_type})

    def names(self) -> list[str]:
        return os.listdir(self.folder) if self.folder.exists() else []


@pytest.fixture
def make_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Store]]:
    """Starts a tracker that stores files."""
    with contextlib.ExitStack() as stack:
        stack.callback(
            shutil.rmtree, tmp_path / "tracker.db.files", ignore_errors=True
        )  # pytest keeps the rest for days

        def make(limit: int = LIMIT, **changes: Any) -> Store:
            monkeypatch.setattr(tracker, "dialects", lambda: [dialect])
            dialect = Dialect(limit)
            settings = tracker.Settings(database=str(tmp_path / "tracker.db"), log_file="", **changes)
            return Store(stack.enter_context(tracker.serving(settings)), tmp_path / "tracker.db.files")

        yield make


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="x"', *headers: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: {disposition}", *headers])
    return b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"
FIELD = part(b"text", 'form-data; name="other"')


def head_of(*headers: str) -> bytes:
    lines = ["POST /file HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=frontier", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer_on(connection: socket.socket) -> bytes:
    """What has come when the tracker has closed the connection, or has sent a whole answer."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if length and len(body) >= int(length[1]):
                break
    return received


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# ── There and back ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 65536, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, LIMIT])
def test_a_file_comes_down_as_it_went_up(store: Store, size: int) -> None:
    content = noise(size)
    answer = store.upload(content).json()["content"]
    assert answer["size"] == size
    assert store.names() == [answer["name"]]
    assert store.http.get(f"/file/{answer['name']}").content == content


PIECES = [b"\r", b"\n", b"-", b"--", b"\r\n--", BOUNDARY[:4], BOUNDARY[4:], b"\r\n--frontie", b"x", b"\0", b"--\r\n"]


CONTENTS = st.lists(st.sampled_from(PIECES)).map(b"".join).filter(lambda content: b"--" + BOUNDARY not in content)


@given(CONTENTS, st.lists(st.integers(1, 40), min_size=1))
def test_wherever_the_network_cuts_a_body_the_file_is_the_same(content: bytes, sizes: list[int]) -> None:
    form = Form(BOUNDARY, "file", LIMIT)
    body = FIELD + part(content) + FIELD + END
    while body:
        for size in sizes:
            form.feed(body[:size])
            body = body[size:]
    form.refuse_incomplete()
    assert (bytes(form.data), form.file_size) == (content, len(content))


def test_a_download_says_its_size_and_type_and_nothing_that_would_unpack_it(store: Store) -> None:
    path = f"/file/{store.stored(b'packed')}"
    for answer in store.http.get(path), store.http.head(path):
        assert answer.headers["content-type"] == "application/gzip"
        assert answer.headers["content-length"] == "6"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "content-encoding" not in answer.headers
    assert answer.content == b""
    assert store.http.get(path).content == b"packed"


def test_two_uploads_of_one_name_are_two_files(store: Store) -> None:
    one, other = store.stored(b"one"), store.stored(b"other")
    assert [store.http.get(f"/file/{name}").content for name in (one, other)] == [b"one", b"other"]


def test_other_fields_of_the_form_are_ignored(store: Store) -> None:
    answer = store.post(FIELD + part(b"content", 'form-data; filename=""; name=file') + FIELD + END)
    assert answer.json()["content"]["size"] == 7
    assert store.http.get(f"/file/{answer.json()['content']['name']}").content == b"content"


# ── In constant memory ────────────────────────────────────────────────────────────────────────────────────────────────


def block(number: int, pattern: bytes = noise(MIB - 8)) -> bytes:
    """One MiB of a large file, each different."""
    return number.to_bytes(8) + pattern


@contextlib.contextmanager
def process(database: Path) -> Iterator[tuple[str, int]]:
    """A tracker that stores files, in a process of its own: its URL and process id."""
    path = os.pathsep.join([str(Path(tracker.__file__).parent), str(Path(__file__).parent)])
    command = [sys.executable, __file__, "--database", str(database), "--port", "0"]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    try:
        yield running.stdout.readline().split()[3], running.pid
    finally:
        running.terminate()
        running.communicate(timeout=30)
        shutil.rmtree(
            files.folder_of(tracker.Settings(database=str(database))), ignore_errors=True
        )  # pytest keeps the rest for days


def resident(pid: int, name: str) -> int:
    """Memory of a process in bytes, as the kernel counts it."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])


@LINUX
def test_a_large_file_goes_up_and_comes_down_in_constant_memory(tmp_path: Path) -> None:
    size = 256  # MiB: eight times what the memory may grow by
    with process(tmp_path / "tracker.db") as (url, pid):
        store = Store(url, tmp_path / "tracker.db.files")
        store.http.get(f"/file/{store.stored(block(0))}")  # what the first file costs for ever is not what is asked
        before = resident(pid, "VmRSS")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM, the peak, begins anew

        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
        first, last = part(b"").removesuffix(b"\r\n"), b"\r\n" + END
        length = len(first) + size * MIB + len(last)
        headers = {"Content-Type": "multipart/form-data; boundary=frontier", "Content-Length": str(length)}
        connection.request("POST", "/file", itertools.chain([first], map(block, range(size)), [last]), headers)
        stored = json.load(connection.getresponse())["content"]
        assert stored["size"] == size * MIB

        connection.request("GET", f"/file/{stored['name']}")
        answer = connection.getresponse()
        assert all(answer.read(MIB) == block(number) for number in range(size))
        assert answer.read() == b""
        assert resident(pid, "VmHWM") - before < 32 * MIB


# ── Broken off ────────────────────────────────────────────────────────────────────────────────────────────────────────

HALF = part(bytes(2 * BLOCK))


def begin_upload(store: Store) -> socket.socket:
    """A connection on which half of an upload has been sent, and has been written to disk."""
    connection = store.connect()
    connection.sendall(head_of("Content-Length: 4000000") + HALF)
    assert wait_until(store.names)[0].endswith(".part")
    return connection


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_an_upload_that_is_broken_off_leaves_nothing(store: Store, how: str) -> None:
    with begin_upload(store) as connection:
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half closed":
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.close()
        wait_until(lambda: not store.names())


def test_what_has_come_of_files_and_is_not_on_disk_yet_is_bounded_with_all_that_arrives(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    arriving = Shares(90_000)
    monkeypatch.setattr(server, "ARRIVING", arriving)
    begun = head_of("Content-Length: 4000000") + part(b"x" * 200_000)[:60_000]
    with store.connect() as first, store.connect() as second:
        first.sendall(begun)
        wait_until(lambda: arriving.used > 50_000)
        second.sendall(begun)
        refused = answer_on(second)
        assert refused.startswith(b"HTTP/1.1 503 ") and b"max_arriving" in refused
        first.close()
        wait_until(lambda: arriving.used == 0)


def test_a_file_comes_through_where_a_crowd_holds_nearly_all_that_may_arrive(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the crowd holds less than a block of the file, which was broken off for having most."""
    store = make_store()
    arriving = Shares(10**6)
    monkeypatch.setattr(server, "ARRIVING", arriving)
    begun = head_of("Content-Length: 4000000") + part(b"x" * 100_000)[:50_000]
    with contextlib.ExitStack() as crowd:
        for _ in range(16):
            crowd.enter_context(store.connect()).sendall(begun)
        wait_until(lambda: arriving.used > 780_000)
        content = bytes(4 * MIB)
        assert store.http.get(f"/file/{store.stored(content)}").content == content


def test_an_upload_that_stalls_is_broken_off_by_the_tracker(make_store: Callable[..., Store]) -> None:
    store = make_store(request_timeout=0.5)
    with begin_upload(store) as connection:
        assert answer_on(connection).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: not store.names())


def test_an_upload_that_merely_trickles_is_broken_off_too(make_store: Callable[..., Store]) -> None:
    store = make_store(request_timeout=0.5)

    def refused() -> bool:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x")
        return not store.names()

    with begin_upload(store) as connection:
        wait_until(refused)


def test_a_slow_upload_goes_on_as_long_as_it_goes_on(make_store: Callable[..., Store]) -> None:
    store = make_store(request_timeout=1.5)
    piece, pieces = bytes(STEADY), 16
    with store.connect() as connection:
        connection.sendall(head_of("Transfer-Encoding: chunked") + chunk(part(b"").removesuffix(b"\r\n")))
        for _ in range(pieces):
            time.sleep(0.2)  # twice the timeout in all
            connection.sendall(chunk(piece))
        connection.sendall(chunk(b"\r\n" + END) + chunk(b""))
        assert f'"size":{pieces * STEADY}'.encode() in answer_on(connection)


def test_an_upload_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the tracker stops. The file is not deleted under the thread that writes to it."""
    begun, going_on = threading.Event(), threading.Event()
    write = Upload.write

    def slow_write(upload: Upload, data: bytes) -> None:
        write(upload, data)
        begun.set()
        assert going_on.wait(30)
        assert not upload.file.closed

    async def receive() -> dict:
        return {"type": "http.request", "body": HALF, "more_body": True}

    async def cancel() -> None:
        scope = {"headers": [(b"content-type", b"multipart/form-data; boundary=frontier")]}
        running = SimpleNamespace(limits=Limits(tracker.Settings(), time.monotonic))
        uploading = asyncio.create_task(Files(tmp_path, LIMIT).receive(tracker.Call(scope, receive, running)))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(2):
            uploading.cancel()
            await asyncio.wait([uploading], timeout=0.01)
        assert [name for name in os.listdir(tmp_path) if name.endswith(".part")]
        going_on.set()
        with pytest.raises(asyncio.CancelledError):
            await uploading

    monkeypatch.setattr(Upload, "write", slow_write)
    asyncio.run(cancel())
    assert os.listdir(tmp_path) == []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that have been opened for downloads."""
    handles = []

    class Watched(io.FileIO):
        taken = 0

        def read(self, size: int) -> bytes:
            self.taken += size
            return super().read(size)

    def open_file(path: Path) -> tuple[Watched, int]:
        handles.append(Watched(path))
        return handles[-1], path.stat().st_size

    monkeypatch.setattr(files, "open_file", open_file)
    return handles


def test_a_download_that_is_broken_off_stops_and_closes_its_file(
    make_store: Callable[..., Store], opened: list[Any]
) -> None:
    store = make_store(limit=64 * MIB)
    name = store.stored(bytes(64 * MIB))  # more than the network keeps on its way
    with store.connect() as connection:
        connection.sendall(f"GET /file/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(100)
        assert [file.closed for file in opened] == [False]
    wait_until(lambda: opened[0].closed)
    assert opened[0].taken < 64 * MIB


def test_a_download_that_is_complete_closes_its_file(store: Store, opened: list[Any]) -> None:
    path = f"/file/{store.stored(b'content')}"
    store.http.get(path)
    store.http.head(path)
    assert [file.taken for file in opened] == [7, 0]
    wait_until(lambda: all(file.closed for file in opened))


@POSIX
def test_a_deletion_does_no_harm_to_a_download_under_way(make_store: Callable[..., Store]) -> None:
    store = make_store(limit=64 * MIB)
    content = noise(32) * 2 * MIB
    name = store.stored(content)
    with store.http.stream("GET", f"/file/{name}") as answer:
        asyncio.run(Files(store.folder, LIMIT).delete(name))
        assert store.names() == []
        assert answer.read() == content
    assert store.http.get(f"/file/{name}").status_code == 404


def test_a_file_that_lost_bytes_is_not_taken_for_whole(make_store: Callable[..., Store]) -> None:
    store = make_store(limit=64 * MIB)
    name = store.stored(bytes(64 * MIB))
    with store.http.stream("GET", f"/file/{name}") as answer:
        os.truncate(store.folder / name, 100)
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()


# ── Limits and refusals ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_that_announces_itself_as_too_large_is_refused_before_it_is_sent(store: Store) -> None:
    with store.connect() as connection:
        connection.sendall(head_of(f"Content-Length: {LIMIT + ENVELOPE + 1}", "Expect: 100-continue"))
        answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"file: more than 8 MiB" in answer
    assert not store.folder.exists()


def test_a_body_of_unknown_length_is_refused_as_soon_as_it_is_too_large(store: Store) -> None:
    with store.connect() as connection:
        connection.sendall(head_of("Transfer-Encoding: chunked") + chunk(part(bytes(LIMIT + 1))))  # and never ends
        assert answer_on(connection).startswith(b"HTTP/1.1 413 ")
    assert store.names() == []


def test_one_byte_more_than_the_limit_is_refused(store: Store) -> None:
    assert store.upload(bytes(LIMIT)).status_code == 200
    answer = store.upload(bytes(LIMIT + 1))
    assert (answer.status_code, answer.json()["message"]) == (413, "file: more than 8 MiB")
    assert len(store.names()) == 1


def test_other_fields_count_to_the_limit(store: Store) -> None:
    other = part(bytes(LIMIT + ENVELOPE), 'form-data; name="other"')
    body = iter([part(b"x"), other, END])
    headers = {"content-type": "multipart/form-data; boundary=frontier"}
    assert store.http.post("/file", content=body, headers=headers).status_code == 413
    assert store.names() == []


MULTIPART = "multipart/form-data; boundary=frontier"
MALFORMED = {
    "body: must be multipart/form-data": [("application/json", b"{}"), ("", b"raw"), ("multipart/mixed", b"")],
    "content-type: needs a boundary": [(kind, END) for kind in (MULTIPART[:19], MULTIPART[:29], MULTIPART + "x" * 260)],
    "content-type: more than 1024 bytes": [(MULTIPART + ';"' * 1000, END)],
    "file: is required": [(MULTIPART, END), (MULTIPART, FIELD + END), (MULTIPART, part(b"", "attachment") + END)],
    "file: must be a file": [(MULTIPART, part(b"x.tar.gz", 'form-data; name="file"') + END)],
    "file: given more than once": [(MULTIPART, HALF + part(b"x") + END)],
    "its last boundary is missing": [(MULTIPART, body) for body in (b"", HALF, part(b"x") + END[:-4])],
    "body: not valid multipart/form-data: ": [
        (MULTIPART, b"--frontiex\r\n" + END),
        (MULTIPART, b"raw" + HALF + END),
        (MULTIPART, part(b"x", 'form-data; name="file"; filename="x"', "a b: c") + END),
        (MULTIPART, part(b"x", f'form-data; name="file"; filename="{"x" * 5000}"') + END),
        (MULTIPART, HALF + part(b"x", "form-data", ": nameless") + END),
    ],
    "body: a field's headers have more than 8192 bytes": [
        (MULTIPART, part(b"x", "form-data", *[f"a: {'x' * 3000}"] * 3) + END),
    ],
    "body: more than 100 fields": [(MULTIPART, HALF + FIELD * 100 + END)],
}


@pytest.mark.parametrize("message", MALFORMED)
def test_a_malformed_body_is_refused_with_its_reason_and_leaves_nothing(store: Store, message: str) -> None:
    for content_type, body in MALFORMED[message]:
        answer = store.post(body, content_type)
        assert (answer.status_code, message in answer.json()["message"]) == (400, True), answer.text
        assert store.names() == []


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

PATHS = [
    *("../../escaped", "/escaped", "..", ".", "", "a/b/escaped", "..\\..\\escaped", "C:\\escaped", "CON"),
    *("escaped\0.gz", "~/escaped", "%2e%2e%2fescaped", "file:///escaped", "x" * 3000, "é\u202e", "tracker.db"),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_in_a_file_name_escapes_nowhere(store: Store, tmp_path: Path, path: str) -> None:
    store.stored(b"so that the folder is there")
    before = {found for found in tmp_path.rglob("*") if "tracker.db" not in found.name}
    answer = store.post(part(b"content", f'form-data; name="file"; filename="{path}"') + END)
    name = answer.json()["content"]["name"]
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert {found for found in tmp_path.rglob("*") if "tracker.db" not in found.name} - before == {store.folder / name}
    assert (store.folder / name).read_bytes() == b"content"


def test_only_names_that_were_given_are_read_or_deleted(tmp_path: Path) -> None:
    secret, folder = tmp_path / ("a" * 32), tmp_path / "tracker.db.files"
    secret.write_text("secret")
    folder.mkdir()
    (folder / "foreign").write_text("not ours")
    stored = Files(folder, LIMIT)
    for name in f"../{secret.name}", str(secret), "foreign", "..", "", f"{secret.name}\0", f"{secret.name}\n":
        assert asyncio.run(stored.send(name)) is None
        asyncio.run(stored.delete(name))
    assert secret.exists()
    assert (folder / "foreign").exists()


def test_a_file_that_has_gone_is_not_there_and_may_be_deleted_again(store: Store) -> None:
    name = store.stored(b"content")
    for _ in range(2):
        asyncio.run(Files(store.folder, LIMIT).delete(name))
        assert store.http.get(f"/file/{name}").status_code == 404


def test_each_database_has_a_folder_of_its_own(tmp_path: Path) -> None:
    databases = ("tracker.db", "tracker", "tracker.copy", "tracker.db.files")
    folders = {str(files.folder_of(tracker.Settings(database=str(tmp_path / name)))) for name in databases}
    assert folders == {str(tmp_path.resolve() / f"{name}.files") for name in databases}


def test_a_database_has_one_folder_by_whichever_name_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "tracker.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "tracker.db")
    by_name, by_link = (
        files.folder_of(tracker.Settings(database=str(tmp_path / name))) for name in ("tracker.db", "link.db")
    )
    assert by_name == by_link


def test_leftovers_are_what_was_last_written_before_a_time_and_is_ours(store: Store) -> None:
    old, unfinished, new = store.stored(b"old"), "0" * 32 + ".part", store.stored(b"new")
    for name in old, unfinished, "foreign":
        (store.folder / name).touch()
        os.utime(store.folder / name, (1000, 1000))
    listed = Files(store.folder, LIMIT).leftovers
    assert sorted(asyncio.run(listed(1001))) == sorted([old, unfinished])
    assert asyncio.run(listed(1000)) == []
    assert new in asyncio.run(listed(time.time() + 3600))


def test_an_upload_under_way_is_no_leftover_whatever_the_clock_says(store: Store) -> None:
    with begin_upload(store) as connection:
        [part] = store.names()
        os.utime(store.folder / part, (1000, 1000))
        listed = Files(store.folder, LIMIT).leftovers
        assert asyncio.run(listed(time.time() + 86400)) == []
        connection.close()
        wait_until(lambda: not store.names())
    wait_until(lambda: not files.UNDER_WAY)


def test_without_a_folder_there_are_no_leftovers(tmp_path: Path) -> None:
    assert asyncio.run(Files(tmp_path / "none", LIMIT).leftovers(time.time())) == []


# ── Disks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["write", "fsync", "replace", "sync_folder"])
def test_a_disk_that_fails_refuses_the_upload_and_nothing_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    store.stored(b"so that the folder is there")
    calls, write = [], Upload.write

    def fail(*args: Any) -> None:
        if place == "write" and not calls:
            calls.append(args)
            return write(*args)
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    owner = {"write": Upload, "fsync": os, "replace": Path, "sync_folder": files}[place]
    with monkeypatch.context() as broken:
        broken.setattr(owner, place, fail)
        answer = store.upload(bytes(2 * BLOCK))
    assert answer.status_code == 503
    assert answer.json()["message"] == "file: cannot be stored: No space left on device"
    assert "/secret/path" in caplog.text
    assert len(store.names()) == 1
    assert store.upload(b"there is room again").status_code == 200


def test_a_folder_that_cannot_be_made_refuses_the_upload(store: Store) -> None:
    store.folder.write_text("in the way")
    answer = store.upload(b"content")
    assert (answer.status_code, answer.json()["message"]) == (503, "file: cannot be stored: Not a directory")


def test_a_file_that_cannot_be_read_is_no_missing_file(store: Store) -> None:
    (store.folder / ("a" * 32)).mkdir(parents=True)
    with pytest.raises(tracker.TrackerError, match="The file cannot be read") as refusal:
        asyncio.run(Files(store.folder, LIMIT).send("a" * 32))
    assert refusal.value.code == "unavailable"


@LINUX
def test_a_file_is_on_disk_before_its_name_and_its_name_before_the_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def record(handle: int) -> None:
        fsync(handle)
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), store.names()))

    monkeypatch.setattr(os, "fsync", record)
    name, folder = store.stored(b"content"), str(store.folder)
    assert synced == [
        (str(store.folder.parent), []),
        (f"{folder}/{name}.part", [f"{name}.part"]),
        (folder, [name]),
    ]


@LINUX
def test_a_large_file_gets_onto_the_disk_in_pieces_that_hold_up_no_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, sizes = os.fsync, [0]

    def record(handle: int) -> None:
        fsync(handle)
        sizes.append(os.fstat(handle).st_size)

    assert store.stored(b"so that the folder is there")
    monkeypatch.setattr(os, "fsync", record)
    assert store.stored(bytes(6 * BLOCK))
    *sizes, _ = sizes  # of the folder
    assert sizes[-1] == 6 * BLOCK
    assert max(after - before for before, after in itertools.pairwise(sizes)) <= 2 * BLOCK


@POSIX
def test_nobody_else_on_the_machine_can_read_the_files(store: Store) -> None:
    path = store.folder / store.stored(b"content")
    assert [place.stat().st_mode & 0o777 for place in (store.folder, path)] == [0o700, 0o600]


if __name__ == "__main__":
    tracker.dialects = lambda: [Dialect(2**31)]
    sys.exit(tracker.main())
