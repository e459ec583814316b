"""An upload of tasks, one a line: what becomes of each line, and what a manager is told about it."""

from __future__ import annotations

import asyncio
import bz2
import codecs
import gzip
import io
import itertools
import json
import lzma
import sqlite3
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from place import Queue, call, finished, new_task, running

import failures
import lines
import pages
import shapes
import tracker
import writer
from shapes import LineDefaults, LinesReport
from tracker import EDIT, MAINTENANCE, READ, Tx

MOST = 2**26  # bytes that may be unpacked


@pytest.fixture
def queue() -> Queue:
    return Queue()


def stage(queue: Queue, data: bytes, project: int | None = None, **defaults: Any) -> tuple[int, LinesReport]:
    """Stages an upload: its operation, not accepted yet, and its report."""
    project, report = project or queue.project, LinesReport()
    operation = queue.do(tracker.begin_lines_submit, queue.session, project)
    upload = tracker.Upload(io.BytesIO(data), project, LineDefaults(**defaults), "file")
    pieces = tracker.line_pieces(upload, MOST, report)
    for number, piece in enumerate(filter(None, pieces), 1):
        queue.do(tracker.add_bulk_piece, operation, number, piece)
    return operation, report


def upload(queue: Queue, data: bytes, project: int | None = None, **defaults: Any) -> shapes.LinesReport:
    """Submits the lines, and returns the report as a manager finds it afterwards."""
    operation, report = stage(queue, data, project, **defaults)
    queue.do(tracker.accept_lines_submit, queue.session, operation, report)
    queue.finish(operation)
    row = queue.do(tracker.get_operation, queue.session, operation)
    report = report_of(row)
    assert row["expected"] == report.line_count - report.refused_count
    assert row["affected"] == row["expected"] - report.duplicate_count
    assert queue.rows("SELECT * FROM bulk_piece") == []
    return report


def report_of(operation: sqlite3.Row) -> LinesReport:
    return msgspec.json.decode(operation["report"], type=LinesReport)


def recipes(queue: Queue) -> list[str]:
    return [recipe for (recipe,) in queue.values("SELECT recipe FROM task ORDER BY id")]


def refused(queue: Queue, line: bytes | str, **defaults: Any) -> str:
    """The reason why a line is refused. The lines around it are submitted."""
    data = line if isinstance(line, bytes) else line.encode()
    report = upload(queue, b"before\n" + data + b"\nafter", **defaults)
    assert recipes(queue) == ["before", "after"]
    assert report.refused_count == 1
    [(number, reason)] = report.refused
    assert number == 2
    return reason


def fields(queue: Queue, line: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The task that a line of JSON becomes."""
    upload(queue, json.dumps(line).encode(), **defaults)
    return dict(queue.rows("SELECT * FROM task ORDER BY id DESC LIMIT 1")[0])


# ── Lines of text ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_line_is_the_recipe_of_a_task(queue: Queue) -> None:
    assert upload(queue, b"first\nsecond\nthird\n") == LinesReport(3)
    assert recipes(queue) == ["first", "second", "third"]
    assert queue.counts() == {"waiting": 3}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\n\r\n  \t\nb", ["a", "b"]),
        (codecs.BOM_UTF8 + b"a\nb", ["a", "b"]),
        (codecs.BOM_UTF8 + b"\na", ["a"]),
        (b"a\rb\r\rc", ["a", "b", "c"]),
        (b"a\nb\r\nc\rd\n\re", ["a", "b", "c", "d", "e"]),
        (b"a\n" + codecs.BOM_UTF8 + b"b\n" + 2 * codecs.BOM_UTF8 + b"c\n" + codecs.BOM_UTF8, ["a", "b", "c"]),
        (b"in\xef\xbb\xbfside\n", ["in\ufeffside"]),
        (b"  spaces stay  \n\ttabs\t\n", ["  spaces stay  ", "\ttabs\t"]),
        ("☃ é 😀\n".encode(), ["☃ é 😀"]),
        (b'[1, 2]\n"text"\n', ["[1, 2]", '"text"']),
        (b"\x0b\x0c\n\xc2\xa0x\n", ["\u00a0x"]),
        (b'it\'s "quoted" \\ %s {} ;--', ['it\'s "quoted" \\ %s {} ;--']),
    ],
)
def test_lines_are_taken_as_they_are_without_their_ends(queue: Queue, data: bytes, expected: list[str]) -> None:
    report = upload(queue, data)
    assert recipes(queue) == expected
    assert (report.line_count, report.refused_count) == (len(expected), 0)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)))
def test_any_lines_arrive_in_their_order(lines: list[str]) -> None:
    queue = Queue()
    expected = [line for line in lines if line.strip("\ufeff") and not line.startswith("\ufeff")]
    upload(queue, "\n".join(expected).encode(), format="text")
    assert recipes(queue) == expected


@given(st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", codecs.BOM_UTF8])), st.integers(1, 5))
def test_lines_and_their_numbers_are_the_same_wherever_a_chunk_ends(pieces: list[bytes], size: int) -> None:
    text = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", size)
        found = list(filter(None, lines.numbered_lines(io.BytesIO(text), MOST)))
    expected = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n").split(b"\n") if text else []
    assert found == [(number, lines.without_marks(line)) for number, line in enumerate(expected, 1)]


def test_a_line_that_is_longer_than_any_task_is_refused_and_the_others_are_not(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 2**20)
    long = (2**20 + 1) * b"x"
    report = upload(queue, b"before\n" + long + b"\nafter\n" + long)
    assert recipes(queue) == ["before", "after"]
    assert report.refused == [(2, "longer than 1 MiB"), (4, "longer than 1 MiB")]


def test_tasks_of_lines_get_the_defaults(queue: Queue) -> None:
    upload(queue, b"recipe", priority=-5, max_retries=3, max_assign_time=60, verification_count=2)
    (row,) = queue.rows("SELECT * FROM task")
    assert (row["priority"], row["max_retries"], row["max_assign_time"], row["verification_count"]) == (-5, 3, 60, 2)
    assert row["hash64"] is None


def test_a_file_may_be_larger_than_a_piece(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "BULK_TASKS", 7)
    lines = [f"line {number}" for number in range(100)]
    assert upload(queue, "\n".join(lines).encode()).line_count == 100
    assert recipes(queue) == lines


def test_long_lines_make_small_pieces(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PIECE_BYTES", 1000)
    stage(queue, b"\n".join([400 * b"x"] * 9))
    assert queue.values("SELECT COUNT(*) FROM bulk_piece") == [(3,)]


# ── Lines of JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_of_json_says_what_it_wants_and_gets_the_defaults_for_the_rest(queue: Queue) -> None:
    task = fields(queue, {"recipe": "r", "priority": 9, "hash64": -7}, priority=1, max_retries=3)
    assert (task["recipe"], task["priority"], task["max_retries"], task["hash64"]) == ("r", 9, 3, -7)


def test_lines_of_json_and_of_text_may_be_mixed(queue: Queue) -> None:
    upload(queue, b'{"recipe": "json"}\r\ntext\r\n  {"recipe": "indented"}\r\n')
    assert recipes(queue) == ["json", "text", "indented"]


def test_a_line_in_braces_is_a_recipe_where_the_format_is_text(queue: Queue) -> None:
    upload(queue, b'{"recipe": "json"}\n{braces}', format="text")
    assert recipes(queue) == ['{"recipe": "json"}', "{braces}"]


def test_the_bom_before_json_is_no_part_of_it(queue: Queue) -> None:
    upload(queue, codecs.BOM_UTF8 + b'{"recipe": "json"}')
    assert recipes(queue) == ["json"]


@pytest.mark.parametrize("name", ["hash_u64", "hash64"])
def test_an_unsigned_hash_is_the_signed_one_with_the_same_bits(queue: Queue, name: str) -> None:
    assert fields(queue, {"recipe": "r", name: 2**64 - 1})["hash64"] == -1


@pytest.mark.parametrize("name", ["unique_string", "unique_str"])
def test_a_unique_string_is_hashed(queue: Queue, name: str) -> None:
    assert fields(queue, {"recipe": "r", name: "x"})["hash64"] == tracker.hash_unique_string("x")


def test_a_line_may_name_the_project_that_it_is_for(queue: Queue) -> None:
    second = queue.create_project("second")
    report = upload(queue, b'{"recipe": "a", "project": 2}\n{"recipe": "b", "project": 1}', second)
    assert recipes(queue) == ["a"]
    assert report.refused == [(2, "project: 1, but this is project 2")]
    assert queue.tasks("waiting", second) == {1}


EVERY_FIELD = {"priority": 2, "max_retries": 3, "max_assign_time": 60, "verification_count": 2, "hash64": -7}


def test_null_is_as_good_as_nothing(queue: Queue) -> None:
    names = (*EVERY_FIELD, "hash_u64", "unique_string", "unique_str", "project")
    task = fields(queue, {"recipe": "r", **dict.fromkeys(names)}, priority=4, max_retries=5)
    assert (task["priority"], task["max_retries"], task["hash64"], task["project"]) == (4, 5, None, queue.project)


def test_an_exported_task_becomes_a_new_one_like_it(queue: Queue) -> None:
    """In whatever state it was: what had become of it is of no account."""
    task = queue.submit(**EVERY_FIELD)
    queue.assign()
    [row] = queue.rows(f"SELECT *, {failures.AS_JSON} FROM task WHERE id = ?", task)
    line = pages.task_line(row)
    assert json.loads(line)["assignee"] and json.loads(line)["state"] == "assigned"
    second = queue.create_project("second")
    assert upload(queue, line, second).refused_count == 0
    [copy] = queue.rows("SELECT * FROM task WHERE project = ?", second)
    assert {name: copy[name] for name in EVERY_FIELD} == EVERY_FIELD
    assert (copy["recipe"], copy["assignee"], copy["retries"]) == ("recipe", None, 0)


# ── What is no text ───────────────────────────────────────────────────────────────────────────────────────────────────

TEXT = "first line\nsecond line\nÄ third one\n"


def packed(module: Any) -> bytes:
    return module.compress(TEXT.encode())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("urls.txt", TEXT)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("urls.txt"))
    return file.getvalue()


NO_TEXT = {
    **{encoding: (TEXT.encode(encoding), "UTF-16") for encoding in ("utf-16", "utf-16-le", "utf-16-be")},
    **{encoding: (TEXT.encode(encoding), "UTF-32") for encoding in ("utf-32", "utf-32-le", "utf-32-be")},
    "with a mark": (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "UTF-16"),
    "zip": (zipped(), "a zip archive"),
    "xz": (packed(lzma), "xz"),
    "bzip2": (packed(bz2), "bzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + 20 * b"x", "zstd"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
    "png": (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    "multipart": (b'--b1\r\nContent-Disposition: form-data; name="f"; filename="u"\r\n\r\na\n\r\n--b1--\r\n', "a form"),
    "tar": (tarred(), "a binary file (it has NUL characters)"),
    "packed xz": (gzip.compress(packed(lzma)), "xz"),
    "packed twice": (gzip.compress(packed(gzip)), "gzip"),
    "packed utf-16": (gzip.compress(TEXT.encode("utf-16")), "UTF-16"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_is_no_text_is_refused_by_its_name_before_anything_counts(queue: Queue, kind: str) -> None:
    data, name = NO_TEXT[kind]
    with pytest.raises(tracker.TrackerError) as refusal:
        stage(queue, data)
    assert refusal.value.code == "invalid" and refusal.value.message.startswith(f"file: it is {name}")
    assert queue.rows("SELECT * FROM bulk_piece") == []


def test_a_packed_text_is_read_as_if_it_were_not_packed(queue: Queue) -> None:
    """Also of several files that were packed one by one, and with padding at the end."""
    report = upload(queue, gzip.compress(b"a\nb") + gzip.compress(b"c\n{\n") + bytes(100))
    assert recipes(queue) == ["a", "bc"]
    assert (report.line_count, [number for number, _ in report.refused]) == (3, [3])


DAMAGED = {"cut": packed(gzip)[:-1], "cut early": packed(gzip)[:12], "with more": packed(gzip) + b"more"}
DAMAGED |= {"only begun": b"\x1f\x8bno gzip"}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_packed_text_is_refused(queue: Queue, how: str) -> None:
    with pytest.raises(tracker.TrackerError, match="file: it is gzip, but damaged: "):
        stage(queue, DAMAGED[how])


def test_a_packed_text_that_would_fill_the_memory_is_refused_before_it_does(queue: Queue) -> None:
    unpacker = zlib.compressobj(wbits=31)
    bomb = b"".join(unpacker.compress(70 * (b"a" * 999 + b"\n")) for _ in range(3000)) + unpacker.flush()
    assert len(bomb) < 2**20 < 2**27 < 3000 * 70 * 1000
    upload = tracker.Upload(io.BytesIO(bomb), queue.project, LineDefaults(), "body")
    tracemalloc.start()
    try:
        with pytest.raises(tracker.TrackerError, match="body: more than 8192 KiB when unpacked") as refusal:
            for _ in tracker.line_pieces(upload, 2**23, LinesReport()):
                pass
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert tracker.STATUS[refusal.value.code] == 413


def test_a_later_part_of_a_file_is_taken_as_it_stands(queue: Queue) -> None:
    """A line may begin like a PDF; only a file's beginning says what the file is."""
    report = LinesReport()
    upload = tracker.Upload(io.BytesIO(b"%PDF-1.7\n\x1f\x8b\nlast"), queue.project, LineDefaults(), "body", 1001)
    [piece] = tracker.line_pieces(upload, MOST, report)
    assert [task[:3] for task in json.loads(piece)] == [[1001, 1, "%PDF-1.7"], [1003, 1, "last"]]
    assert report.refused == [(1002, "not valid UTF-8")]


# ── Refused lines ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "not valid UTF-8"),
        (b"caf\xe9", "not valid UTF-8"),
        (b"a\0b", "recipe: must not contain a NUL character"),
        ('{"recipe": "a\\u0000b"}', "recipe: must not contain a NUL character"),
        ('{"recipe": "r", "unique_string": "\\u0000"}', "unique_string: must not contain a NUL character"),
        ("{", "body: not valid JSON: "),
        ('{"recipe": "r"} x', "body: not valid JSON: "),
        ('{"recipe": "\\ud800"}', "body: not valid JSON: "),
        (100_000 * '{"a":', "body: nested too deeply"),
        ("{}", "recipe: is required"),
        ('{"recipe": ""}', "recipe: must not be empty"),
        ('{"recipe": 7}', "recipe: must be a string"),
        ('{"recipe": null}', "recipe: is required"),
        ('{"recipe": "r", "recipes": "s"}', "body: Object contains unknown field recipes"),
        ('{"recipe": "r", "once": true}', "body: Object contains unknown field once"),
        ('{"recipe": "r", "priority": "high"}', "priority: must be a whole number"),
        ('{"recipe": "r", "priority": 1.5}', "priority: must be a whole number"),
        ('{"recipe": "r", "priority": 9223372036854775808}', "priority: "),
        ('{"recipe": "r", "max_retries": -1}', "max_retries: must be at least 0"),
        ('{"recipe": "r", "hash64": 18446744073709551616}', "hash64: "),
        ('{"recipe": "r", "hash64": 1, "hash_u64": 2}', "hash64, hash_u64: two spellings of one field"),
        ('{"recipe": "r", "hash64": 1, "unique_string": "x"}', "hash64, unique_string: give one of them"),
        ('{"recipe": "r", "project": 99}', "project: 99, but this is project 1"),
        ('{"recipe": "r", "project": -1}', "project: must be at least 0"),
        ('{"recipe": "r", "priority": 32768}', "priority: must be at most 32767"),
        (4_194_305 * "x", "recipe: must have at most 4194304 characters"),
    ],
)
def test_a_line_that_is_no_task_is_refused_with_its_number_and_the_reason(
    queue: Queue, line: bytes | str, reason: str
) -> None:
    assert refused(queue, line).startswith(reason)


@pytest.mark.parametrize("line", ["[1]", '"text"', "7", "text"])
def test_a_line_that_is_no_object_is_refused_where_the_format_is_json(queue: Queue, line: str) -> None:
    report = upload(queue, f'{{"recipe": "r"}}\n{line}'.encode(), format="json")
    assert recipes(queue) == ["r"]
    assert [number for number, _ in report.refused] == [2]
    assert report.refused[0][1].startswith("body: ")


def test_line_numbers_count_blank_lines_too(queue: Queue) -> None:
    report = upload(queue, b"\n\na\n\n{\n\r\n{")
    assert [number for number, _ in report.refused] == [5, 7]
    assert (report.line_count, report.refused_count) == (3, 2)


def test_the_report_names_a_limited_number_of_refused_lines_and_counts_all(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_REPORTED", 3)
    report = upload(queue, 10 * b"{\n" + b"last")
    assert (report.line_count, report.refused_count) == (11, 10)
    assert [number for number, _ in report.refused] == [1, 2, 3]


def test_a_reason_does_not_repeat_all_of_a_long_line(queue: Queue) -> None:
    """A thousand of them would make a report that nobody can load."""
    reason = refused(queue, json.dumps({"recipe": "r", 100_000 * "x": 1}))
    assert reason.startswith("body: Object contains unknown field xxx")
    assert len(reason) == lines.MOST_REASON


def test_an_upload_of_which_all_lines_are_refused_submits_nothing_and_says_why(queue: Queue) -> None:
    report = upload(queue, b"{\n{")
    assert (report.line_count, report.refused_count, len(report.refused)) == (2, 2, 2)
    assert queue.counts() == {}


# ── Duplicates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_duplicates_in_the_file_and_in_the_queue_are_reported_by_their_numbers(queue: Queue) -> None:
    queue.submit(hash64=7)
    lines = [{"recipe": "a", "hash64": 7}, {"recipe": "b", "hash64": 8}, {"recipe": "c"}, {"recipe": "d", "hash64": 8}]
    report = upload(queue, b"\n" + "\n\n".join(map(json.dumps, lines)).encode())
    assert (report.duplicate_count, report.duplicates) == (2, [2, 8])
    assert recipes(queue) == ["recipe", "b", "c"]


def test_the_hash_of_another_projects_task_is_no_duplicate(queue: Queue) -> None:
    second = queue.create_project("second")
    queue.submit(project=second, hash64=7)
    assert upload(queue, b'{"recipe": "a", "hash64": 7}').duplicate_count == 0


def test_a_kept_hash_of_a_closed_task_is_a_duplicate(queue: Queue) -> None:
    project = queue.create_project("second", keep_hashes=True)
    queue.work(project=project, hash64=7)
    report = upload(queue, b'{"recipe": "a", "hash64": 7}\n{"recipe": "b", "hash64": 8}', project)
    assert report.duplicates == [1]


def test_where_each_recipe_is_to_be_there_once_a_repeated_line_is_a_duplicate(queue: Queue) -> None:
    report = upload(queue, b'a\nb\na\n{"recipe": "b"}\n{"recipe": "b", "unique_string": "x"}\n', once=True)
    assert report.duplicates == [3, 4]
    assert recipes(queue) == ["a", "b", "b"]
    assert upload(queue, b"a\nb\n", once=True).duplicates == [1, 2]
    assert upload(queue, b"a\nb\n").duplicate_count == 0


def test_the_report_names_a_limited_number_of_duplicates_and_counts_all(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several pieces, of which one is full of them."""
    monkeypatch.setattr(tracker, "MOST_REPORTED", 3)
    monkeypatch.setattr(tracker, "BULK_TASKS", 2)
    report = upload(queue, b"a\nb\nb\nc\na\na\na\nd\nd\n", once=True)
    assert (report.duplicate_count, report.duplicates) == (5, [3, 5, 6])


# ── Who may, and when it counts ───────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_needs_edit(queue: Queue) -> None:
    editor, other = queue.create_manager("editor", EDIT), queue.create_manager("other", READ | MAINTENANCE)
    operation = queue.do(tracker.begin_lines_submit, editor, queue.project)
    for session, code in ((other, "forbidden"), (None, "unauthorized")):
        assert queue.refusal(tracker.begin_lines_submit, session, queue.project).startswith(code)
        assert queue.refusal(tracker.accept_lines_submit, session, operation, LinesReport(1)).startswith(code)
    queue.do(tracker.accept_lines_submit, editor, operation, LinesReport(1))


def test_a_manager_submits_one_task_as_many_do(queue: Queue) -> None:
    line = tracker.LineTask(recipe="r", priority=3, unique_string="x")
    queue.do(tracker.submit_as_manager, queue.session, queue.project, line)
    assert queue.announced == {queue.project: 1}
    assert queue.refusal(tracker.submit_as_manager, queue.session, queue.project, line).startswith("conflict")
    other = queue.create_manager("other", READ)
    assert queue.refusal(tracker.submit_as_manager, other, queue.project, line).startswith("forbidden")
    assert queue.counts() == {"waiting": 1}


def test_an_upload_is_not_held_back_by_the_workers_rate_limit_and_does_not_use_it_up(queue: Queue) -> None:
    project = queue.create_project("second", submit_rate=0.001)
    queue.submit(project=project)
    assert upload(queue, b"a\nb\n", project).line_count == 2
    assert queue.refusal(tracker.submit_task, queue.worker, new_task(project)).startswith("too_fast")
    queue.clock.now += 1000
    queue.submit(project=project)


def test_every_task_of_an_upload_is_announced(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, report = stage(queue, b"a\nb\na\n{\n", once=True)
    queue.do(tracker.accept_lines_submit, queue.session, operation, report)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    assert queue.do(tracker.step_operation, operation) is None
    assert queue.announced == {queue.project: 2}


def test_a_long_operation_takes_one_piece_at_a_time_while_somebody_waits(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "BULK_TASKS", 2)
    operation, report = stage(queue, b"a\nb\nc\nd\ne\n")
    queue.do(tracker.accept_lines_submit, queue.session, operation, report)

    def step_in_demand(tx: Tx) -> int | None:
        tx.turn = lambda: 0.0
        return tracker.step_operation(tx, operation)

    assert queue.do(step_in_demand) is None
    assert recipes(queue) == ["a", "b"]
    assert queue.do(tracker.step_operation, operation) == 5  # nobody waits any more
    assert recipes(queue) == ["a", "b", "c", "d", "e"]


def test_a_long_call_has_as_much_time_as_the_short_ones_that_wait_beside_it_took() -> None:
    writes = writer.WriteQueue(lambda *_: None)
    writes.short_time = 0.003
    assert writes.turn() > 1e9
    writes.short.append(None)
    assert writes.turn() == 0.003


def test_nothing_counts_before_the_upload_is_accepted(queue: Queue) -> None:
    operation, report = stage(queue, b"a\nb\n")
    assert queue.counts() == {}
    assert queue.do(tracker.unfinished_operations) == []
    assert queue.do(tracker.unaccepted_bulk_submits) == [operation]
    queue.do(tracker.accept_lines_submit, queue.session, operation, report)
    assert queue.do(tracker.unfinished_operations) == [operation]
    assert queue.do(tracker.unaccepted_bulk_submits) == []


def found(tx: Tx) -> tuple[bytes, int]:
    """A manager and its project."""
    session = tracker.register_manager(tx, "admin", "unused")[1]
    return session, call(tx, tracker.create_project, session, shapes.ProjectBody(name="p"))["id"]


def waiting(tx: Tx) -> int:
    return tx.one("SELECT waiting_task_count FROM project")[0]


def upload_of(source: io.BytesIO, project: int) -> tracker.Upload:
    return tracker.Upload(source, project, LineDefaults(), "file")


async def stage_in(one: tracker.Tracker, session: bytes, project: int, source: io.BytesIO) -> int:
    operation = await one.db.write(tracker.begin_lines_submit, session, project)
    await tracker.stage_lines(one, "", operation, upload_of(source, project), session)
    return operation


MANY = b"\n".join(b"line %d" % number for number in range(2000))


def test_an_upload_that_a_crash_has_interrupted_before_it_was_accepted_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path / "x.db", tracker.Clock()) as one:
            session, project = await one.db.write(found)
            operation = await one.db.write(tracker.begin_lines_submit, session, project)
            pieces = tracker.line_pieces(upload_of(io.BytesIO(MANY), project), MOST, LinesReport())
            for number, piece in enumerate(filter(None, pieces), 1):
                await one.db.write(tracker.add_bulk_piece, operation, number, piece)
        async with running(tmp_path / "x.db", tracker.Clock()) as again:
            for table in "operation", "bulk_piece", "task":
                assert await again.db.read(lambda tx, table: tx.all(f"SELECT * FROM {table}"), table) == []

    asyncio.run(main())


def test_an_upload_that_a_crash_has_interrupted_after_it_was_accepted_is_finished_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line once, those before the crash included; and the report is whole."""
    lines = MANY + b'\n{"recipe": "twice", "hash64": 7}\n{"recipe": "twice", "hash64": 7}\n{'

    async def main() -> None:
        async with running(tmp_path / "x.db", tracker.Clock()) as one:
            session, project = await one.db.write(found)
            operation = await stage_in(one, session, project, io.BytesIO(lines))
            with monkeypatch.context() as patch:
                patch.setattr(tracker.Tx, "STEP_SECONDS", -1)
                for _ in range(2):
                    assert await one.db.write(tracker.step_operation, operation) is None
            assert await one.db.read(waiting) == 2 * tracker.BULK_TASKS
        async with running(tmp_path / "x.db", tracker.Clock()) as again:
            row = await finished(again, session, operation)
            assert (row["affected"], await again.db.read(waiting)) == (2001, 2001)
            report = report_of(row)
            assert (report.line_count, report.refused_count, report.duplicates) == (2003, 1, [2002])
            assert await again.db.read(lambda tx: tx.all("SELECT * FROM bulk_piece")) == []

    asyncio.run(main())


def test_an_upload_whose_manager_loses_the_role_meanwhile_is_refused_at_its_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path / "x.db", tracker.Clock()) as one:
            admin, project = await one.db.write(found)
            content, session = await one.db.write(tracker.register_manager, "other", "unused")
            other = content.id
            await one.db.write(call, tracker.set_role, admin, project, shapes.RoleBody(manager=other, role=EDIT))
            operation = await one.db.write(call, tracker.begin_lines_submit, session, project)
            await one.db.write(call, tracker.set_role, admin, project, shapes.RoleBody(manager=other, role=READ))
            with pytest.raises(tracker.TrackerError, match="You have no EDIT role"):
                await tracker.stage_lines(one, "", operation, upload_of(io.BytesIO(MANY), project), session)
            assert await one.db.read(tracker.unaccepted_bulk_submits) == [operation]
            await tracker.discard(one.db, operation)
            assert await one.db.read(waiting) == 0

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"", b"\n\r\n  \n", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"\r\n"])
def test_an_upload_without_a_line_is_refused(tmp_path: Path, data: bytes) -> None:
    async def main() -> None:
        async with running(tmp_path / "x.db", tracker.Clock()) as one:
            session, project = await one.db.write(found)
            with pytest.raises(tracker.TrackerError, match="it has no line that is not blank"):
                await stage_in(one, session, project, io.BytesIO(data))
            assert await one.db.read(tracker.unfinished_operations) == []

    asyncio.run(main())


@pytest.mark.parametrize("line", [b"\n", b"{\n"], ids=["blank", "refused"])
def test_lines_that_make_no_task_keep_nobody_long(monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """64 MiB of them are minutes of a thread for which others wait."""
    monkeypatch.setattr(lines, "TAKE_TIME", 0, raising=False)
    report = LinesReport()
    pieces = tracker.line_pieces(upload_of(io.BytesIO(line * 5000 + b"a\n"), 1), 2**20, report)
    taken = list(iter(lambda: tracker.take_pieces(pieces), []))
    assert len(taken) > 4
    assert len(list(filter(None, itertools.chain(*taken)))) == 1


NOTHING = {"zeros": b"\0" * 2**16, "empty files": gzip.compress(b"") * 5000, "a long line": gzip.compress(b"x") * 5000}


@pytest.mark.parametrize("kind", NOTHING)
def test_what_unpacks_to_no_line_keeps_nobody_long(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """64 MiB of empty files were a minute of a thread for which others wait."""
    monkeypatch.setattr(lines, "TAKE_TIME", 0)
    report = LinesReport()
    given = io.BytesIO(gzip.compress(b"a\n") + NOTHING[kind])
    pieces = tracker.line_pieces(upload_of(given, 1), 2**20, report)
    taken = list(iter(lambda: tracker.take_pieces(pieces), []))
    assert len(taken) > 10
    assert report.line_count == 1 + (kind == "a long line")


def test_files_packed_one_after_the_other_are_one_text(queue: Queue) -> None:
    """As of a log to which each line was appended, wherever one ends in what is read at once."""
    wanted = [f"line {number} " + "." * (number % 50) for number in range(2000)]
    stage_of = b"".join(gzip.compress(f"{line}\n".encode()) + b"\0" * (len(line) % 3) for line in wanted)
    upload(queue, stage_of)
    assert recipes(queue) == wanted
