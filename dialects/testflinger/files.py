"""Files beside the database: an upload is streamed into one, a download out of it, in constant memory.

    a multipart body ─► Form (takes one field's bytes out of it) ─► Upload (NAME.part ─► fsync ─► NAME)
    NAME ─► Download

A file's name is random and has nothing to do with what a client called it. What a file is, whose it is and how long it
stays is for the caller's tables: no SQL here. What no table knows, such as what a crash left, `leftovers` lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import math
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.responses import Response

import server
from dialects.plumbing import HEADERS
from disk import PIECE, sync_folder, sync_piece
from limits import Limits
from streams import Stream
from tracker import Call, Settings, TrackerError

log = logging.getLogger("tracker")

BLOCK = PIECE  # bytes that are read or written at once
STEADY = 2**18  # bytes that must arrive within request_timeout, for an upload to go on
ENVELOPE = 2**16  # bytes of a body that are not the file: boundaries, headers, other fields
MAX_PARTS = 100
MAX_PART_HEADERS = 2**13  # bytes of one part's headers, its file's name included
MAX_CONTENT_TYPE = 2**10
MAX_BOUNDARY = 256
NAME = re.compile(r"[0-9a-f]{32}(\.part)?")
UNDER_WAY: dict[str, int] = {}  # uploads and how many bytes of them have come: no clock makes one look left over


class Stored(NamedTuple):
    """A file that is on disk: its name in the folder, its size in bytes."""

    name: str
    size: int


def folder_of(settings: Settings) -> Path:
    """The folder of a database's files: tracker.db.files beside tracker.db.

    The whole name, and of the file itself where that is a link: another database must not share, and tidy up, this
    one's files.
    """
    database = Path(settings.database).resolve()
    return database.with_name(f"{database.name}.files")


def files_of(settings: Settings) -> Files:
    """The files of a database, as large as its settings allow."""
    return Files(folder_of(settings), settings.testflinger_max_file * 2**20)


class Files:
    """The files in a folder, which is made when the first one comes; `limit` is the largest one's size in bytes."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit

    async def receive(self, call: Call, room: float = math.inf, field: str = "file") -> Stored:
        """Stores the file in that field of a multipart body, and returns when it is on disk under its name.

        There is `room` for so many bytes of all that are under way.

        Refuses (invalid) a body that is not multipart, is malformed or incomplete, or has no such file or two of them;
        (too_large) more than the limit, as soon as that is known; (timeout) a client that broke off; (unavailable) when
        the disk is nearly full, also in between, or broken, or there is no room. Then, and when it is cancelled,
        nothing is left of it.
        """
        call.tracker.limits.check_disk()
        form = Form(boundary_of(call), field, self.limit)
        if not call.unpack((self.limit + ENVELOPE) / 1024):
            form.refuse_announced(call, room)
        upload = Upload(self.folder)
        try:
            await transfer(call, form, upload, room)
            await in_thread(upload.finish)
        except BaseException as error:
            await in_thread(upload.discard)
            if isinstance(error, OSError):
                raise unavailable(f"{field}: cannot be stored", error) from None
            raise
        finally:
            call.let_go()
            UNDER_WAY.pop(upload.name, None)
        return Stored(upload.name, form.file_size)

    async def send(self, name: str) -> Response | None:
        """The answer that streams a file; None when there is none of that name.

        The file is open from now on, so that its deletion meanwhile does no harm. Refuses (unavailable) when the disk
        cannot be read.
        """
        if not NAME.fullmatch(name):
            return None
        try:
            file, size = await in_thread(open_file, self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unavailable("The file cannot be read", error) from None
        return Download(file, size)

    async def delete(self, name: str) -> None:
        """Deletes a file. One that has gone is fine; one that the platform does not let go yet becomes a leftover."""
        if NAME.fullmatch(name):
            await in_thread(unlink, self.folder / name)

    async def leftovers(self, older_than: float) -> list[str]:
        """The names of files, finished or not, that were last written before that unix time (in seconds).

        An upload under way is not among them, and a finished one is soon in its table: with a time that is some minutes
        ago, those of them that no table knows can be deleted. Files that are not ours are not listed.
        """
        return await in_thread(list_older, self.folder, older_than)


def unavailable(message: str, error: OSError) -> TrackerError:
    """A disk's error for the client: without the path, which the log has."""
    log.error("%s: %s", message, error)
    return TrackerError("unavailable", f"{message}: {error.strerror or type(error).__name__}")


async def in_thread(function: Callable, *args: Any) -> Any:
    """What a blocking function returns. Also when cancelled it ends only after the function has.

    A file must not be closed or deleted while another thread is still opening it or writing to it.
    """
    running = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


# ── Up ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def no_room(limits: Limits) -> TrackerError:
    """The refusal of a file where there are as many as may be."""
    return limits.refusal("testflinger_max_files", "There is no room for further files of jobs until older ones go")


async def transfer(call: Call, form: Form, upload: Upload, room: float) -> None:
    """Moves the file in a call's body to disk. While a block is written, uvicorn lets the sender wait."""
    steady = STEADY
    more = True
    while more:
        part, more = await call.part(form.size, math.inf)
        form.feed(part)
        if form.size >= steady:
            server.keeps_coming(call.receive)
            steady = form.size + STEADY
        if len(form.data) >= server.block_size(BLOCK):
            call.tracker.limits.check_disk()
            UNDER_WAY[upload.name] = form.file_size
            if sum(UNDER_WAY.values()) > room:
                raise no_room(call.tracker.limits)
            await in_thread(upload.write, form.data)
            form.data.clear()
        if more:
            call.hold(len(form.data))
    form.refuse_incomplete()
    await in_thread(upload.write, form.data)


def boundary_of(call: Call) -> bytes:
    """What separates the parts of a call's body. Refuses one that is not multipart."""
    content_type = call.header(b"content-type") or b""
    if len(content_type) > MAX_CONTENT_TYPE:  # decoding takes a time that is quadratic in its length
        raise TrackerError("invalid", f"more than {MAX_CONTENT_TYPE} bytes", "content-type")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise TrackerError("invalid", "must be multipart/form-data (such as curl -F file=@FILE sends)", "body")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        raise TrackerError("invalid", f"needs a boundary of 1 to {MAX_BOUNDARY} bytes", "content-type")
    return boundary


class Form:
    """Takes the file of one field out of a multipart body, piece by piece: `data` is what has not been written yet.

    Other fields are ignored, but for their size.
    """

    def __init__(self, boundary: bytes, field: str, limit: int):
        self.field, self.limit = field, limit
        self.data = bytearray()
        self.size = self.file_size = 0  # bytes so far, of the body and of the file
        self.found = self.in_file = self.ended = False
        self.parts = self.header_size = 0
        self.header_name, self.header_value, self.disposition = bytearray(), bytearray(), b""
        names = "part_begin", "header_end", "headers_finished", "part_data", "end"
        callbacks = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        callbacks["on_header_field"] = functools.partial(self._header, self.header_name)
        callbacks["on_header_value"] = functools.partial(self._header, self.header_value)
        self.parser = MultipartParser(boundary, callbacks)

    @property
    def too_large(self) -> TrackerError:
        """The refusal of a file, or of a body, that has more than the limit."""
        return TrackerError("too_large", f"more than {self.limit / 2**20:g} MiB", f"{self.field}")

    def refuse_announced(self, call: Call, room: float) -> None:
        """Refuses a body that says by itself that it will be too large, or larger than the room that there is."""
        length = call.header(b"content-length") or b""
        if length.isdigit() and (len(length) > 15 or int(length) > self.limit + ENVELOPE):
            raise self.too_large
        if length.isdigit() and int(length) > room + ENVELOPE:
            raise no_room(call.tracker.limits)

    def feed(self, piece: bytes) -> None:
        """Takes the next piece of the body. Refuses what is malformed or too large."""
        self.size += len(piece)
        if self.size > self.limit + ENVELOPE:
            raise self.too_large
        try:
            self.parser.write(piece)
        except FormParserError as error:
            raise TrackerError("invalid", f"not valid multipart/form-data: {error}", "body") from None

    def refuse_incomplete(self) -> None:
        """At the body's end: refuses one that has not come to its last boundary, or had no file in it."""
        if not self.ended:
            raise TrackerError("invalid", "not valid multipart/form-data: its last boundary is missing", "body")
        if not self.found:
            raise TrackerError("invalid", "is required", f"{self.field}")

    def _part_begin(self) -> None:
        """Counts the part, and forgets the one before. Refuses more than MAX_PARTS."""
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise TrackerError("invalid", f"more than {MAX_PARTS} fields", "body")
        self.in_file, self.header_size, self.disposition = False, 0, b""

    def _header(self, into: bytearray, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name or value. Refuses too many bytes of all the headers of one part."""
        self.header_size += end - start
        if self.header_size > MAX_PART_HEADERS:
            raise TrackerError("invalid", f"a field's headers have more than {MAX_PART_HEADERS} bytes", "body")
        into += data[start:end]

    def _header_end(self) -> None:
        """Keeps the one header that says what the part is."""
        if self.header_name.lower() == b"content-disposition":
            self.disposition = bytes(self.header_value)
        self.header_name.clear()
        self.header_value.clear()

    def _headers_finished(self) -> None:
        """Whether this part is the file. Refuses a text in its place, and a second file."""
        _, options = parse_options_header(self.disposition)
        if options.get(b"name") != self.field.encode():
            return
        if not re.search(rb";\s*filename\*?\s*=", self.disposition, re.IGNORECASE):  # curl -F file=x, without its @
            raise TrackerError("invalid", "must be a file with a name, not a text", f"{self.field}")
        if self.found:
            raise TrackerError("invalid", "given more than once", f"{self.field}")
        self.found = self.in_file = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        """Takes the bytes of the file. Refuses more than the limit."""
        if self.in_file:
            self.file_size += end - start
            if self.file_size > self.limit:
                raise self.too_large
            self.data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.ended = True


class Upload:
    """A file that is being written, under a temporary name until it is complete. Its methods block."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, secrets.token_hex(16)
        self.path = folder / f"{self.name}.part"
        UNDER_WAY[self.name] = 0
        self.file: io.BufferedWriter | None = None

    def write(self, data: bytes | bytearray) -> None:
        """Appends to the file, which the first call makes: a block, but for the last time."""
        if self.file is None:
            make_folder(self.folder)
            raw = io.FileIO(self.path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))
            self.file = io.BufferedWriter(raw)  # which, unlike the raw one, goes on until all is written
        else:
            self.file.flush()
            sync_piece(self.file.fileno())
        self.file.write(data)

    def finish(self) -> None:
        """Returns when the file is on disk under its name, also if the power fails now."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.path = self.path.replace(self.folder / self.name)
        sync_folder(self.folder)

    def discard(self) -> None:
        """Leaves nothing of the file, however far it came."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # what is still in its buffer may not fit on the disk
                self.file.close()
            unlink(self.path)


def make_folder(folder: Path) -> None:
    """Makes the folder, for nobody else to read, so that it survives a power failure. One that is there is fine."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(folder.parent)


def unlink(path: Path) -> None:
    """Deletes a file, or logs why that is not possible now."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # on Windows: it is still open
        log.warning("A file cannot be deleted now: %s", error)


def list_older(folder: Path, older_than: float) -> list[str]:
    """What of ours in the folder was last written before that unix time. Empty without a folder."""
    names = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                ours = NAME.fullmatch(entry.name) and entry.name.removesuffix(".part") not in UNDER_WAY
                if ours and entry.stat(follow_symlinks=False).st_mtime < older_than:
                    names.append(entry.name)
    return names


# ── Down ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_file(path: Path) -> tuple[io.FileIO, int]:
    """The open file, and its size in bytes."""
    file = io.FileIO(path)
    return file, os.fstat(file.fileno()).st_size


class Download(Stream):
    """An answer that streams an open file, and closes it whatever happens."""

    media_type = "application/gzip"

    def __init__(self, file: io.FileIO, size: int):
        super().__init__(self.blocks(), headers={**HEADERS, "content-length": str(size)})
        self.file, self.size = file, size

    async def blocks(self) -> AsyncIterator[bytes]:
        """The file, a block at a time. OSError when it has fewer bytes than it had."""
        left = self.size
        while left:
            block = await in_thread(self.file.read, min(BLOCK, left))
            if not block:
                raise OSError(f"{left} of {self.size} bytes are missing")
            left -= len(block)
            yield block

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Sends the file."""
        try:
            await super().__call__(scope, receive, send)
        except OSError as error:  # the answer has begun: returning now makes uvicorn break it off
            log.error("A download broke off: %s", error)
        finally:
            await in_thread(self.file.close)
