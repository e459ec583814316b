"""A worker submits a file of lines over HTTP: the same tasks as by every other way in, once, with a report."""

from __future__ import annotations

import codecs
import gzip
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nursery
import pytest
from conftest import Manager, Site, Worker, wait_until
from place import Queue

import tracker
import worker as client
from shapes import LinesReport
from tracker import READ

TRACKER, WORKER = (Path(program.__file__).resolve() for program in (tracker, client))


def send(worker: Worker, project: int, data: bytes, **query: Any) -> httpx.Response:
    return worker.http.post(f"/task/submit_lines/{project}", content=data, params=query)


def begun(worker: Worker, project: int, data: bytes, **query: Any) -> int:
    """The operation that submits the lines."""
    answer = send(worker, project, data, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["operation"]


def shown(http: httpx.Client, operation: int) -> dict[str, Any]:
    answer = http.get(f"/operation/{operation}")
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["operation"]


def finished(http: httpx.Client, operation: int) -> dict[str, Any]:
    """The operation as its maker finds it in the end."""
    return wait_until(lambda: (found := shown(http, operation))["state"] == "finished" and found)


def recipes(site: Site, project: int) -> list[str]:
    return [recipe for (recipe,) in site.read("SELECT recipe FROM task WHERE project = ? ORDER BY id", project)]


@pytest.fixture
def project(site: Site) -> int:
    return site.admin.create_project()


@pytest.fixture
def worker(site: Site, project: int) -> Worker:
    return site.create_worker(project)


# ── By every way in ───────────────────────────────────────────────────────────────────────────────────────────────────

EXPORTED = (
    b'{"state":"failed","id":7,"priority":3,"recipe":"exported","retries":2,"max_retries":2,"max_assign_time":60,'
    b'"verification_count":0,"hash64":-5,"assignee":null,"assign_time":null}\n'
)
MIXED = b'one\r\n\r\n{"recipe": "two", "priority": 9, "hash64": null}\n{"recipe": "two", "hash64": 7}\nthree'
FILES: dict[str, tuple[bytes, dict[str, str]]] = {  # the file, and how it is to be read
    "text": (b"one\ntwo\n", {}),
    "without an end": (b"one\ntwo", {}),
    "CR": (b"one\rtwo\r\rthree", {}),
    "CRLF and others": (b"one\r\ntwo\nthree\rfour\n\rfive", {}),
    "marks": (codecs.BOM_UTF8 + b"one\n" + codecs.BOM_UTF8 + b'{"recipe": "two"}\n' + codecs.BOM_UTF8 + b"\n", {}),
    "blanks": (b"\n  \n one \n\t\n\n", {}),
    "JSON": (MIXED, {"priority": "4", "max_retries": "2"}),
    "JSON alone": (MIXED, {"format": "json"}),
    "no JSON": (MIXED, {"format": "text"}),
    "indented": (b'  {"recipe": "one"}\n', {}),
    "an export": (EXPORTED + EXPORTED.replace(b"-5", b"null"), {}),
    "repeated": (b'one\ntwo\none\n{"recipe": "two"}\n{"recipe": "two", "unique_string": "x"}\n', {"once": "true"}),
    "refused": (b'one\n{\n\n{"recipe": "two", "priority": "high"}\n{"recipe": "three", "project": 99}\nfour\n', {}),
    "UTF-8": ("☃ é 😀\nzwei\n".encode(), {}),
    "no UTF-8": (b"one\ncaf\xe9\ntwo\n", {}),
    "NUL": (b"one\nt\0wo\nthree\n", {}),
    "packed": (gzip.compress(MIXED), {}),
    "packed one by one": (gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree\n"), {}),
}


def by_text_area(site: Site, worker: Worker, project: int, data: bytes, options: dict[str, str], folder: Path) -> None:
    send_form(site, project, {"lines": data.decode(), **options})


def by_page(site: Site, worker: Worker, project: int, data: bytes, options: dict[str, str], folder: Path) -> None:
    send_form(site, project, options, files={"file": ("lines.txt", data)})


def send_form(site: Site, project: int, fields: dict[str, str], **files: Any) -> None:
    page = site.admin.get(f"/ui/projects/{project}/submit").text
    token = re.search(r'name="token" value="([^"]+)"', page)[1]
    options = {"files": {"file": ("", b"")}} | files
    answer = site.admin.http.post(f"/ui/projects/{project}/submit/lines", data={"token": token, **fields}, **options)
    assert answer.status_code == 303, answer.text


def by_call(site: Site, worker: Worker, project: int, data: bytes, options: dict[str, str], folder: Path) -> None:
    begun(worker, project, data, **options)


def by_worker_py(site: Site, worker: Worker, project: int, data: bytes, options: dict[str, str], folder: Path) -> None:
    (folder / "lines").write_bytes(data)
    credentials = folder / "credentials.json"
    mine = {"id": worker.id, "alias": worker.alias, "secret": worker.secret}
    credentials.write_text(json.dumps({"servers": {site.url: mine}}))
    credentials.chmod(0o600)
    given = {name: {"text": "lines"}.get(value, value) for name, value in options.items() if name != "once"}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    arguments = ["submit", "--server", site.url, "--project", str(project), *words]
    arguments += [*(["--unique"] if "once" in options else []), "--credentials", credentials, folder / "lines"]
    done = nursery.run(WORKER, arguments, folder)
    assert done.returncode in (0, 1), done.stderr


WAYS = {"by the page's text": by_text_area, "by the page": by_page, "by the API": by_call, "by worker.py": by_worker_py}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_means_the_same_tasks_by_every_way_in(site: Site, tmp_path: Path, kind: str) -> None:
    data, options = FILES[kind]
    project = site.admin.create_project()
    worker = site.create_worker(project)
    columns = "recipe, priority, max_retries, max_assign_time, verification_count, hash64"
    came = {}
    for way, submit in WAYS.items():
        if submit is by_text_area and kind in ("no UTF-8", "packed", "packed one by one"):
            continue  # nobody can type that
        submit(site, worker, project, data, options, tmp_path)
        [(operation,)] = site.read("SELECT MAX(id) FROM operation")
        assert finished(site.admin.http, operation)["expected"] is not None
        tasks = site.read(f"SELECT {columns} FROM task WHERE project = ? ORDER BY id", project)
        came[way] = tasks, site.read("SELECT report FROM operation WHERE id = ?", operation)
        site.admin.post(f"/project/hard_reset/{project}")
    assert len({repr(one) for one in came.values()}) == 1, came
    tasks, [(report,)] = came["by the API"]
    assert tasks and json.loads(report)["line_count"] == len(tasks) + sum(
        json.loads(report)[name] for name in ("refused_count", "duplicate_count")
    )


def test_what_the_page_exports_can_be_submitted_again(site: Site, project: int, worker: Worker) -> None:
    for number in range(3):
        worker.submit(project, f"recipe {number}", priority=number, max_retries=1, unique_string=str(number))
    worker.release(worker.assigned(project)["id"], tracker.FAIL)
    worker.assigned(project)
    copies = site.admin.create_project()
    site.admin.grant(worker, copies)
    for state in "waiting", "assigned", "failed":
        exported = site.admin.get(f"/ui/projects/{project}/export", state=state).content
        assert exported.count(b"\n") == 1
        found = finished(worker.http, begun(worker, copies, exported))
        assert (found["affected"], found["report"]["refused_count"]) == (1, 0)
    columns = "recipe, priority, max_retries, hash64"
    originals, copied = (
        set(site.read(f"SELECT {columns} FROM task WHERE project = ?", one)) for one in (project, copies)
    )
    assert originals == copied


# ── What is answered ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_answer_names_an_operation_that_tells_what_became_of_each_line(
    site: Site, project: int, worker: Worker
) -> None:
    worker.submit(project, unique_string="taken")
    operation = begun(worker, project, b'one\n\n{\n{"recipe": "two", "unique_string": "taken"}\nthree\n', priority=4)
    found = finished(worker.http, operation)
    [(line, reason)] = found["report"].pop("refused")
    assert line == 3 and reason.startswith("body: not valid JSON")
    assert found["report"] == {"line_count": 4, "refused_count": 1, "duplicate_count": 1, "duplicates": [4]}
    assert (found["kind"], found["project"], found["affected"], found["expected"]) == ("submit_lines", project, 2, 3)
    assert found["finished"] >= found["started"] > 0
    assert site.read("SELECT recipe FROM task WHERE priority = 4 ORDER BY id") == [("one",), ("three",)]


def test_lines_are_numbered_from_where_the_client_says(project: int, worker: Worker) -> None:
    found = finished(worker.http, begun(worker, project, b"a\n{\na\n", first_line=1001, once="true"))
    assert [line for line, _ in found["report"]["refused"]] == [1002]
    assert found["report"]["duplicates"] == [1003]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_submits_a_file(site: Site, project: int, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_bytes(b"one\ntwo\n")
    headers = [f"X-Worker-ID: {worker.id}", f"X-Secret: {worker.secret}"]
    command = ["curl", "-sS", "--noproxy", "*", f"{site.url}/task/submit_lines/{project}", "--data-binary", "@urls.txt"]
    command += [word for header in headers for word in ("-H", header)]
    answer = json.loads(subprocess.check_output(command, cwd=tmp_path, timeout=60))
    assert answer == {"ok": True, "content": {"operation": 1}}
    finished(worker.http, 1)
    assert recipes(site, project) == ["one", "two"]


@pytest.mark.parametrize(
    ("data", "query", "status", "message"),
    [
        (b"", {}, 400, "body: it has no line that is not blank"),
        (b"\n\r\n \n", {}, 400, "body: it has no line that is not blank"),
        ("a\n".encode("utf-16"), {}, 400, "body: it is UTF-16"),
        (b"PK\x03\x04", {}, 400, "body: it is a zip archive"),
        (gzip.compress(bytes(10) + b"x", mtime=0), {}, 400, "body: it is a binary file"),
        (b"x" * 3000, {}, 413, "body: more than 2 KiB"),
        (gzip.compress(3000 * b"x", mtime=0), {}, 413, "body: more than 2 KiB when unpacked"),
        (b"a", {"priority": "high"}, 400, "priority: "),
        (b"a", {"max_retries": -1}, 400, "max_retries: "),
        (b"a", {"format": "xml"}, 400, "format: "),
        (b"a", {"once": "perhaps"}, 400, "once: "),
        (b"a", {"first_line": 0}, 400, "first_line: "),
        (b"a", {"token": 201 * "x"}, 400, "token: "),
    ],
)
def test_an_upload_that_is_refused_as_a_whole_leaves_nothing(
    make_site: Callable[..., Site], data: bytes, query: dict[str, Any], status: int, message: str
) -> None:
    site = make_site(max_bulk_body=2)
    project = site.admin.create_project(submit_rate=0.001)
    worker = site.create_worker(project)
    answer = send(worker, project, data, **query)
    assert answer.status_code == status and answer.json()["message"].startswith(message), answer.text
    assert site.read("SELECT * FROM operation") == site.read("SELECT * FROM bulk_piece") == []
    assert worker.submit(project).status_code == 200  # it did not pay


def test_a_stranger_is_refused_before_its_body_has_come(site: Site, project: int) -> None:
    stranger, other = site.create_worker(), site.admin.create_project()
    site.admin.grant(stranger, other)
    connection = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", f"/task/submit_lines/{project}")
    for name, value in stranger.http.headers.items():
        if name.startswith("x-"):
            connection.putheader(name, value)
    connection.putheader("Content-Length", "1000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["message"]) == (403, f"You have no SUBMIT access to project {project}")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from /proc")
def test_a_large_upload_is_not_held_in_memory(tmp_path: Path) -> None:
    command = [sys.executable, TRACKER, "--port", "0", "--database", tmp_path / "large.db"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[3]
            manager, worker = Manager(url), Worker(url)
            project = manager.create_project()
            manager.grant(worker, project)
            finished(worker.http, begun(worker, project, b"first"))  # what is needed for ever is not what is asked
            before = resident(process.pid, "VmRSS")
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # VmHWM, the peak, begins anew
            line = 999 * b"x" + b"\n"
            answer = worker.http.post(f"/task/submit_lines/{project}", content=(line for _ in range(60_000)))
            assert finished(worker.http, answer.json()["content"]["operation"])["affected"] == 60_000
            assert resident(process.pid, "VmHWM") - before < 36 * 2**20  # of which the page cache is 16
        finally:
            process.kill()


def resident(pid: int, name: str) -> int:
    """Memory of a process in bytes, as the kernel counts it."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1])


# ── Who may read it ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operation_is_shown_to_its_worker_and_to_managers_with_read_and_is_nothing_to_other_workers(
    site: Site, worker: Worker
) -> None:
    project = site.admin.create_project(hidden=True)
    site.admin.grant(worker, project)
    operation = begun(worker, project, b"one\n")
    reader, stranger = site.create_manager(), site.create_manager()
    site.admin.set_role(project, reader, READ)
    for reads in worker.http, site.admin.http, reader.http:
        assert finished(reads, operation)["affected"] == 1
    for reads in site.create_worker(project).http, stranger.http:
        for number in operation, 999:
            answer = reads.get(f"/operation/{number}")
            assert answer.status_code == 404
            assert answer.json()["message"] == f"No operation {number}, or it is finished and forgotten"
    assert site.guest.get(f"/operation/{operation}").status_code == 401
    assert f"worker {worker.id} (some alias)" in site.admin.get(f"/ui/operations/{operation}").text


def test_a_manager_reads_its_own_operations(site: Site, project: int, worker: Worker) -> None:
    worker.submit(project)
    site.admin.post(f"/project/hard_reset/{project}")
    [(operation,)] = site.read("SELECT id FROM operation")
    found = finished(site.admin.http, operation)
    assert (found["kind"], found["affected"], found["report"]) == ("hard_reset", 1, None)
    assert worker.http.get(f"/operation/{operation}").status_code == 404


@pytest.mark.parametrize(("retention", "kept"), [(60, 86400), (200_000, 200_000)])
def test_what_became_of_lines_can_be_read_for_a_day_at_least(retention: float, kept: int) -> None:
    queue = Queue(history_retention=retention)
    operation = queue.do(tracker.begin_lines_submit, queue.worker, queue.project)
    queue.do(tracker.accept_lines_submit, queue.worker, operation, LinesReport())
    queue.finish(operation)
    for later, is_there in ((kept - 1, True), (kept + 1, False)):
        queue.clock.now = later
        queue.do(tracker.prune, "operation")
        assert bool(queue.rows("SELECT * FROM operation")) == is_there


# ── The rate ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_passes_when_a_single_task_would_and_pays_for_all(site: Site, worker: Worker) -> None:
    project = site.admin.create_project(submit_rate=0.1)
    site.admin.grant(worker, project)
    finished(worker.http, begun(worker, project, b"a\nb\n{\nc\n"))
    refused = send(worker, project, b"d\n")
    assert refused.status_code == 429 and 25 < refused.json()["rate_limit_delay"] <= 30  # three tasks, ten seconds each
    assert worker.submit(project).status_code == 429
    site.clock.pass_time(31)
    finished(worker.http, begun(worker, project, b"d\n"))
    assert recipes(site, project) == ["a", "b", "c", "d"]


def test_an_upload_without_a_task_costs_nothing(site: Site, worker: Worker) -> None:
    project = site.admin.create_project(submit_rate=0.1)
    site.admin.grant(worker, project)
    for _ in range(2):
        assert finished(worker.http, begun(worker, project, b"{\n"))["report"]["refused_count"] == 1
    assert worker.submit(project).status_code == 200


# ── Repeated ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repeat_with_the_token_is_answered_as_the_first_time_and_submits_nothing(site: Site, worker: Worker) -> None:
    """Also when the rate limit is reached by the first, and what is repeated is another text."""
    project = site.admin.create_project(submit_rate=0.001)
    site.admin.grant(worker, project)
    first = begun(worker, project, b"a\nb\n", token="mine")
    assert [begun(worker, project, data, token="mine") for data in (b"a\nb\n", b"other\n", b"")] == [first] * 3
    finished(worker.http, first)
    assert begun(worker, project, b"a\nb\n", token="mine") == first
    assert recipes(site, project) == ["a", "b"]


def test_a_repeat_is_answered_after_the_worker_has_lost_its_access(site: Site, project: int, worker: Worker) -> None:
    first = begun(worker, project, b"a\n", token="mine")
    site.admin.post(f"/project/reject_request/{project}/{worker.id}")
    assert begun(worker, project, b"a\n", token="mine") == first
    assert send(worker, project, b"a\n", token="another").status_code == 403


def test_a_token_is_the_workers_own_and_counts_in_its_project(site: Site, project: int, worker: Worker) -> None:
    other, second = site.create_worker(project), site.admin.create_project()
    site.admin.grant(worker, second)
    calls = [(worker, project), (other, project), (worker, second)]
    assert len({begun(who, where, b"a\n", token="mine") for who, where in calls}) == 3
    assert len({begun(worker, project, b"a\n") for _ in range(2)}) == 2


def test_an_upload_that_was_refused_may_be_sent_again_with_its_token(site: Site, project: int, worker: Worker) -> None:
    assert send(worker, project, b"\n", token="mine").status_code == 400
    finished(worker.http, begun(worker, project, b"a\n", token="mine"))
    assert recipes(site, project) == ["a"]


def test_a_repeat_while_the_first_is_still_being_read_is_told_to_come_again() -> None:
    queue = Queue()
    first = queue.do(tracker.begin_lines_submit, queue.worker, queue.project, "mine")
    for function in tracker.find_lines_submit, tracker.begin_lines_submit:
        refusal = queue.refusal(function, queue.worker, queue.project, "mine")
        assert refusal.startswith("unavailable: token: ") and "again" in refusal
    queue.do(tracker.accept_lines_submit, queue.worker, first, LinesReport(1))
    assert queue.do(tracker.find_lines_submit, queue.worker, queue.project, "mine") == first


def test_of_uploads_with_one_token_that_are_read_at_the_same_time_one_is_submitted() -> None:
    """Both were let in before either began."""
    queue = Queue()
    assert [queue.do(tracker.find_lines_submit, queue.worker, queue.project, "mine") for _ in range(2)] == [None, None]
    first = queue.do(tracker.begin_lines_submit, queue.worker, queue.project, "mine")
    queue.do(tracker.accept_lines_submit, queue.worker, first, LinesReport(1))
    refusal = queue.refusal(tracker.begin_lines_submit, queue.worker, queue.project, "mine")
    assert refusal.startswith("unavailable: token: ")
    assert queue.rows("SELECT id FROM operation WHERE accepted")[0]["id"] == first


# ── Broken off ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def restarted(tmp_path: Path) -> Iterator[Callable[[], Site]]:
    """Starts a tracker in a process of its own, with the database of the one before, which is killed."""
    running: list[nursery.Process] = []

    def start() -> str:
        kill()
        arguments = ["--port", "0", "--database", tmp_path / "killed.db"]
        running.append(nursery.start(TRACKER, arguments, tmp_path, dict(os.environ), stdout=subprocess.PIPE))
        return running[-1].stdout.readline().split()[3]

    def kill() -> None:
        for process in running:
            process.kill()
            process.communicate()
        running.clear()

    yield start
    kill()


def test_a_repeat_after_a_crash_finds_what_was_accepted_and_submits_what_was_not(
    restarted: Callable[[], str],
) -> None:
    url = restarted()
    manager, worker = Manager(url), Worker(url)
    project = manager.create_project()
    manager.grant(worker, project)
    lines = b"".join(b"line %d\n" % number for number in range(20_000))
    first = begun(worker, project, lines, token="answered")
    half = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    half.putrequest("POST", f"/task/submit_lines/{project}?token=half")
    for name, value in (("X-Worker-ID", str(worker.id)), ("X-Secret", worker.secret), ("Content-Length", "1000")):
        half.putheader(name, value)
    half.endheaders(b"not the whole\n")
    worker.http.base_url = restarted()
    assert begun(worker, project, lines, token="answered") == first
    assert finished(worker.http, begun(worker, project, b"the whole\n", token="half"))["affected"] == 1
    assert finished(worker.http, first)["affected"] == 20_000
    counts = worker.http.get(f"/project/get/{project}").json()["content"]
    assert counts["waiting_task_count"] == 20_001
