"""Lines of a file as people have it: bytes in, tasks to be out, in bounded memory; no text is refused by its name.

    source ─► refuse_named (what else it is) ─► unpacked (gzip) ─► numbered_lines (CR, LF, CRLF; byte order marks)
                                                                         └─► tasks_of (a recipe, or JSON) ─► tracker.py

Also array_parts: a bulk submit, which is one long line of JSON, in parts that can be decoded one after the other.
Nothing here knows a queue, and nothing is imported from tracker.py.
"""

from __future__ import annotations

import codecs
import re
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from errors import TrackerError, convert, decode, refuse_nul
from shapes import Id, LineDefaults, LinesReport, SubmitBody

HEAD_BYTES = 2**13  # at which a file is recognised
CHUNK_BYTES = 2**18
PACKED_BYTES = 2**11  # that are unpacked at once: a thousand times as much may come out of them
MOST_LINE_BYTES = 2**25  # an exported task with the longest recipe fits in, six bytes for each character of it
GZIP = b"\x1f\x8b"

# How files begin that are taken for text in error. The longer beginning comes first.
BEGINNINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    GZIP: "gzip",
    b"PK\x03\x04": "a zip archive (as .xlsx and .docx are)",
    b"PK\x05\x06": "a zip archive",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress (.Z)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"%PDF-": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF87a": "a GIF picture",
    b"GIF89a": "a GIF picture",
    b"\x7fELF": "a program (ELF)",
    b"SQLite format 3\0": "an SQLite database",
    b"\xd0\xcf\x11\xe0\xa1\xb1": "a document of an old office suite",
}
BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
MULTIPART = re.compile(rb"--[^\r\n]{1,200}\r?\ncontent-(disposition|type):", re.IGNORECASE)


Line = tuple[int, bytes | None]


def numbered_lines(source: BinaryIO, most: int, first: int = 1) -> Iterator[Line | None]:
    """Every line with its number: without its end and the byte order marks before it; None for one that is too long.

    A line ends with CR, LF or both. `most` bytes may come out of a source that is packed. One whose first line is not
    the first of its file is taken as it stands: only a file's beginning says what it is. Refuses what is no text.

    In the place of a line there may be None: there is none yet, and whoever has others waiting need not stay for it.
    """
    begun: list[bytes] = []  # the pieces of a line whose end is still to come
    size, number, after_cr = 0, first, False
    for chunk in text_chunks(source, most) if first == 1 else chunks_of(source):
        text = chunk[1:] if after_cr and chunk.startswith(b"\n") else chunk
        after_cr = text.endswith(b"\r")
        finished = text.splitlines()
        rest = finished.pop() if finished and not text.endswith((b"\r", b"\n")) else b""
        for line in finished:
            if size:
                size += len(line)
                line = b"".join([*begun, line]) if size <= MOST_LINE_BYTES else None
                begun, size = [], 0
            yield number, without_marks(line)
            number += 1
        size += len(rest)
        if size <= MOST_LINE_BYTES:
            begun.append(rest)
        else:
            begun.clear()
        if not finished:
            yield None
    if size:
        yield number, without_marks(b"".join(begun) if size <= MOST_LINE_BYTES else None)


MARKS = re.compile(rb"(?:%b)*" % codecs.BOM_UTF8)


def without_marks(line: bytes | None) -> bytes | None:
    """A line may begin with marks wherever files were put one after the other, some of them empty."""
    return line and line[MARKS.match(line).end() :]


def text_chunks(source: BinaryIO, most: int) -> Iterator[bytes]:
    """The source in chunks, unpacked. Refuses what is no text, before the first chunk."""
    head = source.read(HEAD_BYTES)
    source.seek(0)
    if not head.startswith(GZIP):
        refuse_named(head)
        yield from chunks_of(source)
        return
    size, head = 0, b""
    for chunk in unpacked(source):
        size += len(chunk)
        if size > most:
            raise TrackerError("too_large", f"more than {most // 1024} KiB when unpacked")
        if not head:
            head = chunk[:HEAD_BYTES]
            refuse_named(head)
        yield chunk


def chunks_of(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def unpacked(source: BinaryIO) -> Iterator[bytes]:
    """What gzip has packed, which may be several files one after the other, with zeros behind them.

    A chunk for each piece of it that is read, which is empty where nothing comes out: files of nothing may be millions.
    """
    member = zlib.decompressobj(UNPACK)
    try:
        while piece := source.read(PACKED_BYTES):
            chunk = []
            while piece := piece.lstrip(b"\0") if member.eof else piece:
                member = zlib.decompressobj(UNPACK) if member.eof else member
                chunk.append(member.decompress(piece))
                piece = member.unused_data
            yield b"".join(chunk)
    except zlib.error as error:
        raise TrackerError("invalid", f"it is gzip, but damaged: {error}") from None
    if not member.eof:
        raise TrackerError("invalid", "it is gzip, but damaged: its end is missing")


UNPACK = zlib.MAX_WBITS + 16  # with gzip's head and checksum


def refuse_named(head: bytes) -> None:
    """Refuses a file by the name of what it is, if that is not lines of text; `head` is how it begins."""
    if name := name_of(head):
        readable = "what is read is lines of text in UTF-8, which gzip may have packed (once)"
        raise TrackerError("invalid", f"it is {name}; {readable}")


def name_of(head: bytes) -> str | None:
    """What a file is that begins so, if that is no text."""
    for beginning, name in BEGINNINGS.items():
        if head.startswith(beginning):
            return name
    if BZIP2.match(head):
        return "bzip2"
    if MULTIPART.match(head):
        return "a form with files (`curl -F`; `curl --data-binary @FILE` sends the file itself)"
    zeros = [head[place::4].count(0) for place in range(4)]
    if sum(zeros) < 2:  # one is a slip, in one line
        return None
    if 4 * sum(zeros) >= len(head) and (not zeros[0] + zeros[2] or not zeros[1] + zeros[3]):
        return "UTF-16"
    high, low = max(zeros[0], zeros[3]), min(zeros[0], zeros[3])
    if high >= len(head) // 4 > 2 * low:
        return "UTF-32"
    return "a binary file (it has NUL characters)"


MOST_REPORTED = 1000  # lines of an upload that its report names; it counts the others
MOST_REASON = 200  # characters of the reason why a line was refused: it may quote a field's name
LINE_DEFAULTS = [name for name in LineDefaults.__struct_fields__ if name in SubmitBody.__struct_fields__]
# Of an exported task, and of no account in a new one.
EXPORTED_STATE = frozenset(("id", "state", "retries", "assignee", "assign_time", "lost_leases", "failure"))


class LineTask(SubmitBody, forbid_unknown_fields=True, kw_only=True):
    """A line of an upload as JSON: like a submitted task, but the project is known."""

    project: Id = 0


class Upload(NamedTuple):
    """Lines that are to become tasks of a project, and the name by which who sends them knows them."""

    source: BinaryIO
    project: int
    defaults: LineDefaults
    field: str
    first_line: int = 1  # above 1: it is a later part of a file


def tasks_of(
    upload: Upload, most: int, report: LinesReport, make: Callable[[LineTask], Any]
) -> Iterator[tuple[int, int, Any]]:
    """What `make` makes of each line: its number, its size in bytes, the task. Refused ones go to the report.

    Now and then there is no task: however many lines make none, whoever reads them is not kept long.
    """
    for found in read_lines(upload, most):
        if found is None or found[0] % 1024 == 0:
            yield 0, 0, None
        if found is None:
            continue
        number, line = found
        if number % 64 == 0:
            time.sleep(0)  # lets other threads have the interpreter
        if line is not None and not line.strip():
            continue
        report.line_count += 1
        try:
            task = make(task_of_line(line, upload))
        except TrackerError as error:
            report.refused_count += 1
            if len(report.refused) < MOST_REPORTED:
                report.refused.append((number, error.message[:MOST_REASON]))
            continue
        yield number, len(line), task


STAGE_BYTES = 2**17  # of pieces that one transaction stages
TAKE_TIME = 0.05  # seconds that one thread takes for them: others wait


def take_pieces(pieces: Iterator[bytes]) -> list[bytes]:
    """The next pieces, as many as one transaction stores, or as there are after a moment: some may be empty."""
    taken: list[bytes] = []
    size, until = 0, time.monotonic() + TAKE_TIME
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size >= STAGE_BYTES or time.monotonic() > until:
            break
    return taken


def read_lines(upload: Upload, most: int) -> Iterator[Line | None]:
    """The numbered lines. Refuses what is no text, or unpacks to more than `most` bytes."""
    try:
        yield from numbered_lines(upload.source, most, upload.first_line)
    except TrackerError as error:
        raise TrackerError(error.code, error.problem, upload.field) from None


def task_of_line(line: bytes | None, upload: Upload) -> LineTask:
    """The task of a line: a recipe, or (see LineDefaults.format) a JSON object with the fields of a submitted task.

    Of an exported task that is what makes a new one like it. A null is as good as nothing.
    """
    if line is None:
        raise TrackerError("invalid", f"longer than {MOST_LINE_BYTES // 2**20} MiB")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise TrackerError("invalid", "not valid UTF-8") from None
    defaults = upload.defaults
    fields: dict[str, Any] = {name: getattr(defaults, name) for name in LINE_DEFAULTS}
    if defaults.format == "json" or (defaults.format == "auto" and text.lstrip().startswith("{")):
        given = decode(line, dict[str, Any])
        given = {name: value for name, value in given.items() if value is not None and name not in EXPORTED_STATE}
        fields |= {"delay": 0, **given} if "not_before" in given else given
    else:
        fields["recipe"] = text
    body = convert(fields, LineTask)
    if b"\0" in line:  # decode() finds those that JSON spells; to look into every task takes half of the time
        refuse_nul(body)
    if body.project not in (0, upload.project):
        raise TrackerError("invalid", f"{body.project}, but this is project {upload.project}", "project")
    if defaults.once and not (body.hash64 or body.hash_u64 or body.unique_string or body.unique_str):
        body.unique_string = body.recipe
    return body


PART_BYTES = 2**14  # of a bulk submit that are decoded before other threads have the interpreter again
SPACE = rb"[ \t\r\n]{0,64}+"
ARRAY_BEGINS = re.compile(rb'_(\{_"requests"_:_)?\['.replace(b"_", SPACE))
ARRAY_ENDS = re.compile(rb"\]_(\}_)?\Z".replace(b"_", SPACE))
BETWEEN_TASKS = re.compile(rb'\}_,_(?=\{_")'.replace(b"_", SPACE))


def array_parts(body: bytes) -> Iterator[bytes]:
    """The array of a bulk submit in smaller arrays, cut where it seems that one task ends and the next begins.

    A cut that was wrong (in a text, say) leaves no JSON on its left side. Refuses what is not as programs write it.
    """
    begins, ends = ARRAY_BEGINS.match(body), ARRAY_ENDS.search(body, len(body) - 200)
    if not begins or not ends or bool(begins[1]) != bool(ends[1]):
        raise TrackerError("invalid", "is not an array", "requests")
    at = begins.end()
    while at is not None:
        cut, tried = None, at
        while cut is None and (tried := tried + PART_BYTES) < ends.start():
            cut = BETWEEN_TASKS.search(body, tried, tried + PART_BYTES)
        yield b"[%b]" % body[at : cut.start() + 1 if cut else ends.start()]
        at = cut and cut.end()
