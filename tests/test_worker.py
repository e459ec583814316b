"""worker.py as its users have it: a process of its own, against a tracker on a real socket.

A scripted server stands in for the tracker only where an answer must be lost, late or a refusal to serve.
"""

import gzip
import http.server
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import zipfile
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import nursery
import pytest

import tracker
import worker

WORKER_PY = Path(worker.__file__).resolve()
TRACKER_PY = Path(tracker.__file__).resolve()
PATIENT = 60  # seconds until a test that waits for something is sure that it will not come

posix_only = pytest.mark.skipif(os.name != "posix", reason="file modes, signals and terminals as POSIX has them")


# ── Fixtures and helpers ────────────────────────────────────────────────────────────────────────────────────────────


class Manager:
    """A tracker admin who makes projects and grants access."""

    def __init__(self, url):
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=PATIENT)
        self.call("/register", username="manager", password="correct horse")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.http.close()

    def call(self, path, **body):
        answer = self.http.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json().get("content") if answer.content else None

    def create_project(self, name="crawl", **fields):
        return self.call("/project/create", name=name, **({"public": True} | fields))["id"]

    def update_project(self, project, **fields):
        self.call(f"/project/update/{project}", **fields)

    def accept(self, project, worker_id):
        self.call(f"/project/accept_request/{project}/{worker_id}")

    def project(self, project):
        return self.http.get(f"/project/get/{project}").json()["content"]

    def waiting(self, project):
        return self.project(project)["waiting_task_count"]

    def snapshots(self, project):
        return self.http.get(f"/project/monitoring/{project}").json()["content"]["snapshots"]

    def workers(self):
        return self.http.get("/worker/stats").json()["content"]["stats"]

    def create_worker(self, alias="reader"):
        made = self.call("/worker/create", alias=alias)["worker"]
        return {"X-Worker-ID": str(made["id"]), "X-Secret": made["secret"]}

    def assign_all(self, project):
        """Every waiting task of a public project, in the order of assignment."""
        self.reader = self.create_worker()
        tasks = []
        while True:
            answer = self.http.get(f"/task/get/{project}?count=1000", headers=self.reader).json()
            if not answer["ok"]:
                return tasks
            tasks += answer["content"]["tasks"]

    def release(self, tasks):
        releases = [{"task_id": task["id"], "result": 0} for task in tasks]
        answer = self.http.post("/task/bulk_release", json={"releases": releases}, headers=self.reader).json()
        assert answer["ok"], answer

    def recipes(self, project):
        return [task["recipe"] for task in self.assign_all(project)]


@pytest.fixture
def server():
    with tracker.serving() as url:
        yield url


@pytest.fixture
def manager(server):
    with Manager(server) as manager:
        yield manager


class Client:
    """Runs worker.py with credentials of its own and nothing from our environment that could steer it."""

    def __init__(self, folder):
        self.folder = folder
        self.credentials = folder / "config" / "credentials.json"
        steering = re.compile(r"(?i).*_proxy$|TRACKER_.*|COLUMNS|LINES|FORCE_COLOR|NO_COLOR|PYTHON.*|TTY_.*")
        self.env = {name: value for name, value in os.environ.items() if not steering.match(name)}
        self.env |= {"TRACKER_CREDENTIALS": str(self.credentials), "TERM": "xterm"}

    @contextmanager
    def start(self, *arguments, **options):
        """worker.py as a process, which is killed at the end if it is still there."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with nursery.start(WORKER_PY, arguments, self.folder, self.env, **(pipes | options)) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments, text=None, **options):
        """Runs it to its end; text: its standard input."""
        if text is not None:
            options["stdin"] = subprocess.PIPE
        with self.start(*arguments, **options) as process:
            stdout, stderr = process.communicate(text, timeout=PATIENT)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def submit(self, server, project, text, *options, **popen):
        return self.run(
            "submit", "--server", server, "--project", project, "--no-wait", *options, "-", text=text, **popen
        )

    def stored_credentials(self):
        return json.loads(self.credentials.read_text())["servers"]


@pytest.fixture
def client(tmp_path):
    return Client(tmp_path)


@pytest.fixture
def project(server, manager, client):
    """A public project to which the client may submit."""
    return grant(manager, client, server, manager.create_project())


def serving(folder, **settings):
    """A tracker with other settings than the defaults."""
    return tracker.serving(tracker.Settings(database=f"{folder}/tracker.db", log_file="", **settings))


def grant(manager, client, server, project):
    client.submit(server, project, "asks for access")
    manager.accept(project, client.stored_credentials()[server]["id"])
    return project


def wait_until(condition):
    deadline = time.monotonic() + PATIENT
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return result


def read_until(stream, text):
    """The lines of a stream up to the first that contains the text."""
    seen = ""
    for line in stream:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} never came: {seen}")


def free_port():
    """A port that nobody is given who asks for any: those are above, and one that is let go may soon be another's."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 10_000 + secrets.randbelow(22_000)))
            return probe.getsockname()[1]


@contextmanager
def tracker_process(folder, port):
    """A tracker in a process of its own, so that it can be killed."""
    arguments, pipes = ["--port", port, "--database", folder / "killed.db"], {"stdout": subprocess.PIPE}
    with nursery.start(TRACKER_PY, arguments, folder, dict(os.environ), **pipes, stderr=subprocess.DEVNULL) as process:
        try:
            read_until(process.stdout, "listening")
            yield process
        finally:
            process.kill()


class Script:
    """A server that answers each upload with the next item of its script, and with success when that is over.

    An item is (status, body), or a function of the handler that does as it likes. `stored` has the lines of every
    upload that was received in full and not refused, `operations` how many that were; `registered` counts the workers.
    """

    def __init__(self, *items):
        self.items = list(items)
        self.stored = []
        self.operations = []
        self.look = lambda: None  # what happens before an operation is shown
        self.registered = 0
        self.before_registration = lambda: None

    def answer(self, handler, lines):
        item = self.items.pop(0) if self.items else None
        if isinstance(item, tuple):
            return handler.answer(*item)
        self.stored += lines
        self.operations.append(len(lines))
        if item is None or item(handler) is not False:
            handler.answer(200, {"ok": True, "content": {"operation": len(self.operations)}})
        return None

    def operation(self, number):
        self.look()
        report = {"line_count": 0, "refused_count": 0, "refused": [], "duplicate_count": 0, "duplicates": []}
        return {"id": number, "state": "finished", "affected": self.operations[number - 1], "report": report}


@contextmanager
def scripted_server(*items):
    script = Script(*items)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two packets

        def do_GET(self):
            content = {"operation": script.operation(int(self.path.removeprefix("/operation/")))}
            self.answer(200, {"ok": True, "content": content})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/worker/create":
                script.before_registration()
                script.registered += 1
                worker = {
                    "id": 7,
                    "created": 0,
                    "alias": json.loads(body)["alias"],
                    "secret": "c2VjcmV0",
                    "paused": False,
                }
                self.answer(200, {"ok": True, "content": {"worker": worker}})
            else:
                script.answer(self, body.decode().splitlines())

        def answer(self, status, body):
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments):
            pass

    with listening(Handler) as url:
        yield url, script


@contextmanager
def listening(handler):
    """A server with this handler of requests: its address."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None  # a client that was killed, or has given up: that is what many tests are about
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@contextmanager
def losing(server, answers):
    """A proxy in front of a tracker that loses the first so many answers to uploads: its address, and what was sent."""
    uploads = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = httpx.request(self.command, server + self.path, content=body, headers=headers, timeout=PATIENT)
            if "submit_lines" in self.path:
                uploads.append(body.decode().splitlines())
                if len(uploads) <= answers:
                    return lose_answer(self)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            return self.wfile.write(answer.content)

        do_GET = do_POST = forward

        def log_message(self, *arguments):
            pass

    with listening(Handler) as url:
        yield url, uploads


def lose_answer(handler):
    """Closes the connection instead of answering."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return False


@contextmanager
def on_terminal(client, *arguments):
    """Starts worker.py with its output on a terminal; yields the process and a function that tells what was shown."""
    ours, theirs = os.openpty()
    seen = bytearray()

    def screen():
        if select.select([ours], [], [], 0.1)[0]:
            with suppress(OSError):  # the process has gone, and its end of the terminal with it
                seen.extend(os.read(ours, 65536))
        return seen.decode(errors="replace")

    try:
        with client.start(*arguments, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            yield process, screen
    finally:
        os.close(ours)


# ── A worker, its credentials and its access ────────────────────────────────────────────────────────────────────────


def test_first_use_registers_a_worker_named_after_the_host(server, manager, client):
    client.submit(server, manager.create_project(), "a\n")
    assert [one["alias"] for one in manager.workers()] == [socket.gethostname()]


def test_alias_renames_a_registered_worker(server, manager, client, project):
    client.submit(server, project, "a\n", "--alias", "renamed")
    assert [one["alias"] for one in manager.workers()] == ["renamed"]
    assert client.stored_credentials()[server]["alias"] == "renamed"


def test_a_worker_without_access_asks_for_it_and_says_who_grants_it(server, manager, client):
    project = manager.create_project()
    result = client.submit(server, project, "a\n", "--alias", "box")
    number = client.stored_credentials()[server]["id"]
    assert result.returncode == 2
    assert f"A manager of project {project} with MANAGE_ACCESS must accept the request of worker {number} (box)" in (
        result.stderr
    )
    assert f"POST {server}/project/accept_request/{project}/{number}" in result.stderr
    asked = manager.http.get(f"/project/access_list/{project}").json()["content"]["accesses"]
    assert [(one["submit"], one["assign"], one["request"]) for one in asked] == [(True, False, True)]


def test_a_worker_without_access_waits_for_it(server, manager, client):
    project = manager.create_project()
    with client.start("submit", "--server", server, "--project", project, "-", stdin=subprocess.PIPE) as process:
        process.stdin.write("a\n")
        process.stdin.close()
        read_until(process.stderr, f"on the page {server}/ui/projects/{project}/access")
        read_until(process.stderr, "Waiting for that.")
        manager.accept(project, client.stored_credentials()[server]["id"])
        assert process.wait(PATIENT) == 0


def test_what_is_waited_for_is_said_once_however_often_it_is_asked():
    """That the request is new the first time, and pending afterwards, is no news."""
    said, answers = [], iter([None, worker.Refused(409, "waits already", "conflict")])

    def call(method, path, body=None):
        answer = next(answers) if path == "/project/request_access" else None
        if answer:
            raise answer
        return types.SimpleNamespace(content={})

    interrupts = types.SimpleNamespace(sleep=lambda seconds: None)
    me = types.SimpleNamespace(id=7, alias="box")
    asking = types.SimpleNamespace(call=call, worker=me, server="http://tracker", interrupts=interrupts)
    admission = worker.Admission(asking, said.append, assign=False, submit=True)
    for _ in range(2):
        admission.wait(worker.Refused(403, "You have no SUBMIT access"), [1])
    assert said.count("Waiting for that.") == 1


def test_who_has_the_other_access_asks_for_both_once_it_was_withdrawn(server, manager, client):
    """Else a machine that submits and runs would lose the one by asking for the other, for ever."""
    project = manager.create_project(public=False)
    client.submit(server, project, "a\n")
    mine = client.stored_credentials()[server]["id"]
    manager.accept(project, mine)
    with client.start("run", "--server", server, "--project", project, "--", "true") as process:
        read_until(process.stderr, f'/ui/projects/{project}/access, by its number {mine} under "Workers with access"')
        read_until(process.stderr, "Waiting for that.")
        manager.call(f"/project/reject_request/{project}/{mine}")
        read_until(process.stderr, "Waiting for that.")
        asked = manager.http.get(f"/project/access_list/{project}").json()["content"]["accesses"]
    assert [(one["submit"], one["assign"], one["request"]) for one in asked] == [(True, True, True)]


def test_a_request_that_waits_is_said_to_be_pending(server, manager, client):
    project = manager.create_project()
    client.submit(server, project, "a\n")
    result = client.submit(server, project, "a\n")
    assert result.returncode == 2
    assert "pending" in result.stderr and f"accept_request/{project}/" in result.stderr


def test_a_worker_with_lesser_access_is_told_how_to_get_more(server, manager, client):
    project = manager.create_project()
    client.submit(server, manager.create_project("other"), "registers")
    mine = client.stored_credentials()[server]
    headers = {"X-Worker-ID": str(mine["id"]), "X-Secret": mine["secret"]}
    httpx.post(f"{server}/project/request_access", json={"project": project, "assign": True}, headers=headers)
    manager.accept(project, mine["id"])
    result = client.submit(server, project, "a\n")
    assert result.returncode == 2 and f"/project/reject_request/{project}/{mine['id']}" in result.stderr
    manager.call(f"/project/reject_request/{project}/{mine['id']}")
    assert client.submit(server, project, "a\n").returncode == 2
    manager.accept(project, mine["id"])
    assert client.submit(server, project, "a\n").returncode == 0


@pytest.mark.parametrize(("code", "call"), [("granted", "reject"), ("conflict", "accept")])
def test_a_refusal_is_understood_by_its_code_whatever_words_it_has(client, code, call):
    no_access = (403, {"ok": False, "message": "nein", "code": "forbidden"})
    again = (409, {"ok": False, "message": "not granted, or whatever", "code": code})
    with scripted_server(no_access, again) as (server, _):
        result = client.submit(server, 1, "a\n")
    assert result.returncode == 2 and f"/project/{call}_request/1/7" in result.stderr


@pytest.mark.parametrize(("words", "call"), [("has been granted already", "reject"), ("is waiting", "accept")])
def test_the_words_of_an_older_server_are_understood(client, words, call):
    no_access = (403, {"ok": False, "message": "You have no SUBMIT access to project 1"})
    again = (409, {"ok": False, "message": f"Your access to project 1 {words}"})
    with scripted_server(no_access, again) as (server, _):
        result = client.submit(server, 1, "a\n")
    assert result.returncode == 2 and f"/project/{call}_request/1/7" in result.stderr


def test_an_answer_that_makes_no_sense_is_said_to_be_none(client):
    with scripted_server((200, {"ok": True, "content": {"submitted": 1}})) as (server, _):
        result = client.submit(server, 1, "a\n")
    assert result.returncode == 2 and "no report of submitted lines" in result.stderr
    assert "Traceback" not in result.stderr


def test_closed_registration_is_explained(client, tmp_path):
    with serving(tmp_path, open_worker_registration=False) as server:
        result = client.submit(server, 1, "a\n")
    assert result.returncode == 2
    assert "only managers" in result.stderr and str(client.credentials) in result.stderr


@posix_only
def test_credentials_are_readable_by_their_owner_only(server, manager, client):
    client.submit(server, manager.create_project(), "a\n", preexec_fn=lambda: os.umask(0))
    assert client.credentials.stat().st_mode & 0o777 == 0o600
    assert client.credentials.parent.stat().st_mode & 0o777 == 0o700


@posix_only
def test_credentials_that_others_could_read_are_closed_to_them(server, client, project):
    client.credentials.chmod(0o644)
    result = client.submit(server, project, "a\n")
    assert result.returncode == 0 and "open to other users" in result.stderr
    assert client.credentials.stat().st_mode & 0o777 == 0o600


def test_two_first_uses_at_once_share_one_worker(client):
    arrived, go_on = threading.Event(), threading.Event()
    with scripted_server() as (server, script):
        script.before_registration = lambda: (arrived.set(), go_on.wait(PATIENT))
        arguments = ("submit", "--server", server, "--project", 1, WORKER_PY)
        with client.start(*arguments) as one:
            assert arrived.wait(PATIENT)
            with client.start(*arguments) as two:
                read_until(two.stderr, "waiting for another worker.py")
                go_on.set()
                two.communicate(timeout=PATIENT)
            one.communicate(timeout=PATIENT)
    assert (one.returncode, two.returncode, script.registered) == (0, 0, 1)


def test_two_first_uses_of_different_servers_at_once_keep_both_workers(server, manager, client):
    with tracker.serving() as other, Manager(other) as their_manager:
        project, their_project = manager.create_project(), their_manager.create_project()
        here = client.start("submit", "--server", server, "--project", project, "-")
        there = client.start("submit", "--server", other, "--project", their_project, "-")
        with here as one, there as two:
            one.communicate(timeout=PATIENT)
            two.communicate(timeout=PATIENT)
        assert set(client.stored_credentials()) == {server, other}


@pytest.mark.parametrize("content", ["", "[]", '{"servers": {"x": {"id": "1"}}}', '{"servers": 3}'])
def test_damaged_credentials_are_named_and_left_alone(server, manager, client, content):
    client.credentials.parent.mkdir()
    client.credentials.write_text(content)
    client.credentials.chmod(0o600)
    result = client.submit(server, manager.create_project(), "a\n")
    assert result.returncode == 2
    assert str(client.credentials) in result.stderr and "damaged" in result.stderr
    assert client.credentials.read_text() == content and manager.workers() == []


def test_credentials_option_goes_before_the_environment(server, manager, client, tmp_path):
    elsewhere = tmp_path / "elsewhere.json"
    client.submit(server, manager.create_project(), "a\n", "--credentials", elsewhere)
    assert elsewhere.exists() and not client.credentials.exists()


def test_credentials_are_found_however_the_server_is_spelled(server, manager, client, project):
    assert client.submit(server.replace("http", "HTTP") + "/", project, "a\n").returncode == 0
    assert len(manager.workers()) == 1


def test_credentials_that_the_server_rejects_are_explained_and_can_be_forgotten(server, manager, client):
    project = manager.create_project()
    client.credentials.parent.mkdir()
    of_another_database = {"id": 99, "alias": "box", "secret": "A" * 43 + "="}
    client.credentials.write_text(json.dumps({"servers": {server: of_another_database}}))
    client.credentials.chmod(0o600)
    result = client.submit(server, project, "a\n")
    assert result.returncode == 2 and "another database" in result.stderr
    assert f"worker.py forget --server {server}" in result.stderr
    assert client.run("forget", "--server", server).returncode == 0
    assert "registered as worker" in client.submit(server, project, "a\n").stderr


def test_forgetting_one_server_keeps_the_others(server, client, project):
    servers = client.stored_credentials() | {"http://other:1": {"id": 1, "alias": "a", "secret": "b"}}
    client.credentials.write_text(json.dumps({"servers": servers}))
    assert client.run("forget", "--server", "http://other:1").returncode == 0
    assert set(client.stored_credentials()) == {server}
    assert client.run("forget", "--server", "http://other:1").returncode == 2


# ── Lines and tasks ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_line_of_a_file_becomes_a_task_in_order(server, manager, client, project, tmp_path):
    (tmp_path / "urls.txt").write_text("b\na\nc")
    result = client.run("submit", "--server", server, "--project", project, "urls.txt")
    assert (result.returncode, result.stdout) == (0, "stored 3, duplicate 0, refused 0\n")
    assert manager.recipes(project) == ["b", "a", "c"]


def test_lines_are_taken_as_they_stand_without_byte_order_mark_line_ends_and_blank_lines(
    server, manager, client, project, tmp_path
):
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\r\n   \n\n  indented \xc3\xa9 \r\nlast\r\n")
    assert client.run("submit", "--server", server, "--project", project, "dos.txt").returncode == 0
    assert manager.recipes(project) == ["first", "  indented é ", "last"]


def test_an_empty_input_is_fine(server, client, project):
    result = client.submit(server, project, "\n\n")
    assert (result.returncode, result.stdout) == (0, "stored 0, duplicate 0, refused 0\n")


def test_more_lines_than_a_batch_are_all_stored(server, manager, client, project):
    lines = [f"line {number}" for number in range(1, 2502)]
    result = client.submit(server, project, "\n".join(lines), "--batch", 100)
    assert result.stdout.startswith("stored 2,501,")
    assert manager.recipes(project) == lines


def test_options_are_the_defaults_of_every_line_and_json_fields_go_before_them(server, manager, client, project):
    lines = 'plain\n{"recipe": "own", "priority": 9, "max_assign_time": 70}\n'
    options = ("--priority", 4, "--max-retries", 3, "--max-assign-time", 60, "--verification-count", 2)
    assert client.submit(server, project, lines, *options).returncode == 0
    names = ("recipe", "priority", "max_retries", "max_assign_time", "verification_count")
    tasks = [tuple(task[name] for name in names) for task in manager.assign_all(project)]
    assert tasks == [("own", 9, 3, 70, 2), ("plain", 4, 3, 60, 2)]


def test_format_lines_takes_a_brace_for_a_brace(server, manager, client, project):
    assert client.submit(server, project, '{"recipe": "x"}\n{', "--format", "lines").returncode == 0
    assert manager.recipes(project) == ['{"recipe": "x"}', "{"]


def test_format_json_refuses_a_line_that_is_no_object(server, manager, client, project):
    result = client.submit(server, project, 'plain\n["a"]\n{"recipe": "x"}\n', "--format", "json")
    assert result.returncode == 1
    assert re.findall(r"^  line (\d): body: ", result.stdout, re.MULTILINE) == ["1", "2"]
    assert manager.recipes(project) == ["x"]


BAD_LINES = {
    '{"recipe": "x"': "not valid JSON",
    '{"priority": 3}': "recipe: is required",
    '{"recipe": ""}': "recipe: ",
    '{"recipe": 3}': "recipe: ",
    '{"recipe": "x", "project": 999}': "project: 999, but this is project",
    '{"recipe": "x", "priority": NaN}': "not valid JSON",
    '{"recipe": "\\ud800"}': "not valid JSON",
    '{"recipe": "x", "priority": "high"}': "priority: ",
    '{"recipe": "x", "max_retries": -1}': "max_retries: ",
    '{"recipe": "x", "priority": 99999999999999999999}': "priority: ",
    '{"recipe": "x", "hash64": 1, "unique_string": "u"}': "hash64",
    '{"recipe": "nul \\u0000"}': "NUL",
    '{"recipe": "x", "deep": ' + "[" * 100_000: "nested too deeply",
}


def test_a_bad_line_is_refused_by_number_and_its_neighbours_are_stored(server, manager, client, project):
    count = len(BAD_LINES)
    result = client.submit(server, project, "before\n\n" + "".join(f"{line}\nafter\n" for line in BAD_LINES))
    assert result.returncode == 1
    assert result.stdout.startswith(f"stored {1 + count}, duplicate 0, refused {count}\n")
    for number, reason in zip(range(3, 3 + 2 * count, 2), BAD_LINES.values(), strict=True):
        assert re.search(rf"^  line {number}: .*{re.escape(reason)}", result.stdout, re.MULTILINE), result.stdout
    assert manager.recipes(project) == ["before"] + count * ["after"]


def test_a_line_that_is_not_utf8_is_refused_by_number(server, manager, client, project, tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"fine\ncaf\xe9\nalso fine\n")
    result = client.run("submit", "--server", server, "--project", project, "latin1.txt")
    assert result.returncode == 1 and "line 2: not valid UTF-8" in result.stdout
    assert manager.recipes(project) == ["fine", "also fine"]


def test_a_batch_of_nothing_but_bad_lines_refuses_each(server, manager, client, project):
    result = client.submit(server, project, '{"recipe": "x", "priority": "high"}\n' * 50)
    assert result.returncode == 1 and "refused 50" in result.stdout
    refused = re.findall(r"^line (\d+) refused", result.stderr, re.MULTILINE)
    assert sorted(map(int, refused)) == list(range(1, 51))


def test_many_refused_lines_do_not_swamp_the_report(server, client, project):
    result = client.submit(server, project, "{\n" * 100)
    assert result.stdout.count("\n  line ") == worker.Report.LISTED and "and 80 more" in result.stdout


def test_utf16_is_recognised(server, client, project, tmp_path):
    (tmp_path / "wide.txt").write_text("a\nb\n", encoding="utf-16")
    result = client.run("submit", "--server", server, "--project", project, "wide.txt")
    assert result.returncode == 2 and "UTF-16" in result.stderr


def test_unique_counts_duplicates_within_a_run_and_across_runs(server, manager, client, project):
    assert client.submit(server, project, "a\nb\na\n", "--unique").stdout.startswith("stored 2, duplicate 1,")
    result = client.submit(server, project, 'b\nc\n{"recipe": "a"}\n', "--unique")
    assert result.returncode == 0 and result.stdout.startswith("stored 1, duplicate 2,")
    assert manager.recipes(project) == ["a", "b", "c"]


def test_unique_leaves_a_lines_own_hash_alone(server, manager, client, project):
    lines = (
        '{"recipe": "a", "unique_string": "1"}\n{"recipe": "a", "unique_string": "2"}\n{"recipe": "a", "hash64": 7}\n'
    )
    assert client.submit(server, project, lines, "--unique").stdout.startswith("stored 3,")


def test_without_unique_equal_lines_are_equal_tasks(server, manager, client, project):
    assert client.submit(server, project, "a\na\n").stdout.startswith("stored 2,")


def test_hashes_of_64_bits_cross_exactly(server, client, project):
    lines = "".join(f'{{"recipe": "x", "hash64": {number}}}\n' for number in (2**63 - 1, 2**63 - 2, -(2**63), -1))
    assert client.submit(server, project, lines).stdout.startswith("stored 4,")
    assert client.submit(server, project, lines).stdout.startswith("stored 0, duplicate 4,")


def test_start_line_skips_what_is_before_it(server, manager, client, project):
    result = client.submit(server, project, "a\n{\n\nd\ne\n", "--start-line", 4)
    assert result.returncode == 0
    assert manager.recipes(project) == ["d", "e"]


def test_lines_that_are_too_much_for_one_request_are_sent_in_smaller_ones(client, tmp_path):
    lines = [f"{number} {'x' * 300}" for number in range(40)]
    lines[20] = "y" * 5000
    with serving(tmp_path, max_bulk_body=4, max_body=4) as server, Manager(server) as manager:
        project = grant(manager, client, server, manager.create_project())
        result = client.submit(server, project, "\n".join(lines))
        assert result.returncode == 1 and "\n  line 21: " in result.stdout
        assert manager.recipes(project) == lines[:20] + lines[21:]


def test_a_server_that_takes_smaller_batches_gets_smaller_batches(client, tmp_path):
    lines = [f"line {number}" for number in range(40)]
    with serving(tmp_path, max_bulk=7) as server, Manager(server) as manager:
        project = grant(manager, client, server, manager.create_project())
        assert client.submit(server, project, "\n".join(lines)).returncode == 0
        assert manager.recipes(project) == lines


def test_lines_are_reported_by_their_numbers_in_the_whole_input(server, client, project):
    text = "a\n{\n\nb\na\n{\nb\n"
    result = client.submit(server, project, text, "--batch", 2, "--unique")
    assert result.returncode == 1
    counts, *refused, duplicates = result.stdout.splitlines()
    assert counts == "stored 2, duplicate 2, refused 2"
    assert [line.partition(":")[0] for line in refused] == ["  line 2", "  line 6"]
    assert duplicates == "  duplicate: line 5, 7"
    assert re.findall(r"^line (\d+) refused", result.stderr, re.MULTILINE) == ["2", "6"]


def test_many_duplicates_do_not_swamp_the_report(server, client, project):
    result = client.submit(server, project, "a\n" * 100, "--unique")
    assert result.stdout.endswith(", 20, 21 and 79 more\n")


def test_every_refused_line_is_named_however_large_the_batch(server, client, project):
    result = client.submit(server, project, "{\n" * 2500, "--batch", 100_000)
    named = re.findall(r"^line (\d+) refused", result.stderr, re.MULTILINE)
    assert list(map(int, named)) == list(range(1, 2501))


def test_a_packed_file_goes_on_from_any_of_its_lines(server, manager, client, project, tmp_path):
    (tmp_path / "lines.gz").write_bytes(gzip.compress(b"a\nb\nc") + gzip.compress(b"\nd\n{\n"))
    result = client.run("submit", "--server", server, "--project", project, "--start-line", 3, "lines.gz")
    assert result.returncode == 1 and "\n  line 5: " in result.stdout
    assert manager.recipes(project) == ["c", "d"]


def test_a_packed_pipe_is_unpacked(server, manager, client, project):
    arguments = ("submit", "--server", server, "--project", project, "-")
    with client.start(*arguments, stdin=subprocess.PIPE) as process:
        process.stdin.buffer.write(gzip.compress(b"a\nb"))
        process.communicate(timeout=PATIENT)
    assert process.returncode == 0 and manager.recipes(project) == ["a", "b"]


def test_a_damaged_packed_file_ends_the_run_with_a_report(server, manager, client, project, tmp_path):
    lines = "".join(f"line {number} {secrets.token_hex(50)}\n" for number in range(20_000))
    (tmp_path / "lines.gz").write_bytes(gzip.compress(lines.encode())[:-1000])
    result = client.run("submit", "--server", server, "--project", project, "lines.gz")
    assert result.returncode == 2 and "cannot read lines.gz: Compressed file ended" in result.stderr
    settled = int(re.search(r"settled up to line (\d+);", result.stdout)[1])
    assert manager.waiting(project) == settled > 0


def test_what_is_no_text_is_named_and_nothing_of_it_is_stored(server, manager, client, project, tmp_path):
    with zipfile.ZipFile(tmp_path / "lines.zip", "w") as archive:
        archive.writestr("lines.txt", "a\nb\n")
    result = client.run("submit", "--server", server, "--project", project, "lines.zip")
    assert result.returncode == 2 and "it is a zip archive" in result.stderr
    assert manager.waiting(project) == 0


@posix_only
def test_a_pipe_that_falls_silent_within_a_line_end_counts_its_lines_right(server, manager, client, project):
    arguments = ("submit", "--server", server, "--project", project, "-")
    with client.start(*arguments, stdin=subprocess.PIPE) as process:
        process.stdin.buffer.write(b"first\r")
        process.stdin.buffer.flush()
        wait_until(lambda: manager.waiting(project) == 1)
        process.stdin.buffer.write(b"\n{\r\n")
        stdout, _ = process.communicate(timeout=PATIENT)
    assert "\n  line 2: " in stdout


@posix_only
def test_a_silent_pipe_has_its_lines_submitted(server, manager, client, project):
    arguments = ("submit", "--server", server, "--project", project, "-")
    with client.start(*arguments, stdin=subprocess.PIPE) as process:
        process.stdin.write("said\nhalf")
        process.stdin.flush()
        wait_until(lambda: manager.waiting(project) == 1)
        process.communicate(" and half\n", timeout=PATIENT)
    assert manager.recipes(project) == ["said", "half and half"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_file(client, tmp_path):
    file = tmp_path / "large.txt"
    with file.open("w") as out:
        for number in range(10_000):
            out.write(f"{number:010}" * 1000 + "\n")
    peaks = []

    def measure(handler):
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1]) * 1024)

    with scripted_server(*[measure] * 1000) as (server, _):
        arguments = ("submit", "--server", server, "--project", 1, file)
        with client.start(*arguments) as process:
            process.communicate(timeout=PATIENT)
    assert process.returncode == 0 and len(peaks) > 20
    half = len(peaks) // 2  # by then the allocator keeps as much as it ever will
    assert peaks[-1] - peaks[half] < file.stat().st_size / 2 / 4


# ── Servers that are slow, lost or wrong ────────────────────────────────────────────────────────────────────────────


def test_a_rate_limit_is_waited_for(server, manager, client, project):
    manager.update_project(project, submit_rate=20)
    result = client.submit(server, project, "\n".join("abcdefghi"), "--batch", 3)
    assert result.returncode == 0 and "rate limit: waiting" in result.stderr
    assert manager.recipes(project) == list("abcdefghi")


def test_the_stated_delay_of_a_rate_limit_is_honoured(client):
    times = []
    too_fast = (429, {"ok": False, "message": "Rate limit reached", "rate_limit_delay": 1.5})
    with scripted_server(too_fast) as (server, script):
        answer = script.answer
        script.answer = lambda handler, lines: (times.append(time.monotonic()), answer(handler, lines))
        result = client.submit(server, 1, "a\n")
    assert result.returncode == 0 and script.stored == ["a"]
    assert times[1] - times[0] >= 1.5


def test_a_server_that_shuts_down_is_waited_for_and_nothing_is_doubted(client):
    going = (503, {"ok": False, "message": "The tracker is stopping"})
    with scripted_server(going, going) as (server, script):
        result = client.submit(server, 1, "a\nb\n")
    assert (result.returncode, result.stdout) == (0, "stored 2, duplicate 0, refused 0\n")
    assert "trying until it is back" in result.stderr and "answers again" in result.stderr
    assert script.stored == ["a", "b"]


def test_lines_whose_answer_was_lost_are_sent_again_and_stored_once(server, manager, client):
    with losing(server, answers=2) as (proxy, uploads):
        project = manager.create_project()
        client.submit(server, project, "asks for access")
        stored = client.stored_credentials()
        manager.accept(project, stored[server]["id"])
        client.credentials.write_text(json.dumps({"servers": {proxy: stored[server]}}))
        result = client.submit(proxy, project, "a\nb\nc\nd\ne\n", "--batch", 2)
    assert (result.returncode, result.stdout) == (0, "stored 5, duplicate 0, refused 0\n"), result.stderr
    assert uploads == [["a", "b"], ["a", "b"], ["a", "b"], ["c", "d"], ["e"]]
    assert manager.recipes(project) == ["a", "b", "c", "d", "e"]


def test_a_server_that_keeps_failing_ends_the_run_with_a_report(client):
    broken = (500, {"ok": False, "message": "Internal error"})
    with scripted_server(None, *[broken] * 100) as (server, _):
        result = client.submit(server, 1, "a\nb\n", "--batch", 1)
    assert result.returncode == 2 and "Internal error" in result.stderr
    assert "stored 1," in result.stdout and "--start-line 2" in result.stdout
    assert "line 2: answer lost, they may or may not be stored" in result.stdout


def test_lines_whose_answer_was_lost_are_named_when_access_is_lost_next(client):
    no_access = (403, {"ok": False, "message": "You have no SUBMIT access to project 1"})
    with scripted_server(lose_answer, no_access, no_access) as (server, _):
        result = client.submit(server, 1, "a\nb\n")
    assert result.returncode == 2 and "lines 1-2: answer lost, they may or may not be stored" in result.stdout


def test_a_tracker_that_is_killed_and_comes_back_loses_no_line(client, tmp_path):
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    lines = [f"line {number}" for number in range(20)]
    with ExitStack() as stack:
        with tracker_process(tmp_path, port) as process:
            manager = stack.enter_context(Manager(server))
            project = grant(manager, client, server, manager.create_project())
            arguments = ("submit", "--server", server, "--project", project, "--batch", 5, "--unique", "-")
            submitter = stack.enter_context(client.start(*arguments, stdin=subprocess.PIPE))
            submitter.stdin.write("\n".join(lines[:10]) + "\n")
            submitter.stdin.flush()
            wait_until(lambda: manager.waiting(project) == 10)
            process.send_signal(signal.SIGKILL)
        submitter.stdin.write("\n".join(lines[10:]) + "\n")
        submitter.stdin.close()
        seen = read_until(submitter.stderr, "trying until it is back")
        with tracker_process(tmp_path, port):
            seen += submitter.stderr.read()
            assert submitter.wait(PATIENT) == 0 and "answers again" in seen, seen
            assert sorted(manager.recipes(project)) == sorted(lines)


def test_a_server_that_is_not_there_at_first_is_a_wrong_address(client):
    result = client.submit(f"http://127.0.0.1:{free_port()}", 1, "a\n")
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "no answer from" in result.stderr


def test_a_proxy_that_is_not_there_is_suspected(server, client):
    client.env["http_proxy"] = f"http://127.0.0.1:{free_port()}"
    result = client.run("status", "--server", server)
    assert result.returncode == 2 and "through the proxy that the environment names" in result.stderr


def test_patience_ends(client):
    result = client.submit(f"http://127.0.0.1:{free_port()}", 1, "a\n", "--patience", 1)
    assert result.returncode == 2 and re.search(r"no answer from \S+ for 1\.\d s", result.stderr)


def test_a_server_that_is_no_tracker_is_recognised(client, tmp_path):
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        result = client.run("status", "--server", f"http://127.0.0.1:{httpd.server_port}")
    finally:
        httpd.shutdown()
        httpd.server_close()
    assert result.returncode == 2 and "not a tracker's answer" in result.stderr


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_without_end_is_given_up(client, packed):
    """One of a few megabytes that unpack to gigabytes fills the memory, too, though nobody has asked for it packed."""
    sent, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.headers["Accept-Encoding"])
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            pack = zlib.compressobj(9, zlib.DEFLATED, 31)
            if packed:
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            for _ in range(1024):  # a gigabyte
                piece = b" " * 2**20
                piece = pack.compress(piece) + pack.flush(zlib.Z_SYNC_FLUSH) if packed else piece
                sent.append(len(piece))
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    with listening(Handler) as url:
        result = client.run("status", "--server", url)
    assert result.returncode == 2 and "more than 64 MiB" in result.stderr
    assert asked == ["identity"]
    assert len(sent) < 512


def test_an_unknown_project_is_an_error(server, manager, client):
    result = client.submit(server, 12345, "a\n")
    assert result.returncode == 2 and "12345" in result.stderr and "Traceback" not in result.stderr


def test_the_tracker_is_reached_below_a_path(server, manager, client):
    project = manager.create_project()
    below = f"{server}/api"
    client.submit(below, project, "a\n")
    manager.accept(project, client.stored_credentials()[below]["id"])
    assert client.submit(below, project, "a\n").returncode == 0


# ── Interrupts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@posix_only
def test_ctrl_c_reports_and_start_line_goes_on_from_there(server, manager, client, project, tmp_path):
    lines = [f"line {number}" for number in range(1, 31)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    manager.update_project(project, submit_rate=0.001)
    arguments = ("submit", "--server", server, "--project", project, "--batch", 10, "lines.txt")
    with client.start(*arguments) as process:
        read_until(process.stderr, "rate limit")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 130
    assert stdout == (
        "stored 10, duplicate 0, refused 0\nnot finished: settled up to line 10; continue with --start-line 11\n"
    )
    manager.update_project(project, submit_rate=0)
    result = client.run(*arguments[:-1], "--start-line", 11, "lines.txt")
    assert result.returncode == 0
    assert manager.recipes(project) == lines


@contextmanager
def unanswered_submit(client, *options):
    """A submit of three lines whose second batch of one waits for its answer until the yielded event is set."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(handler):
        arrived.set()
        go_on.wait(PATIENT)

    with scripted_server(None, hold) as (server, script):
        arguments = ("submit", "--server", server, "--project", 1, "--batch", 1, "-")
        with client.start(*arguments, stdin=subprocess.PIPE) as process:
            process.stdin.write("a\nb\nc\n")
            process.stdin.close()
            process.stdin = None
            assert arrived.wait(PATIENT)
            try:
                yield process, script, go_on
            finally:
                go_on.set()


@posix_only
def test_ctrl_c_waits_for_the_answer_in_flight(client):
    with unanswered_submit(client) as (process, script, go_on):
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "stopping after the answer in flight")
        go_on.set()
        stdout, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 130
    assert "stored 2," in stdout and "--start-line 3" in stdout and "may or may not" not in stdout
    assert script.stored == ["a", "b"]


@posix_only
def test_a_second_ctrl_c_does_not_wait_and_names_the_doubtful_lines(client):
    with unanswered_submit(client) as (process, _, _go_on):
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "stopping after the answer in flight")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 130
    assert "stored 1," in stdout and "--start-line 2" in stdout
    assert "line 2: answer lost, they may or may not be stored" in stdout


@contextmanager
def unfinished_submit(client):
    """A submit of a line that the tracker has taken, and submits only when the yielded event is set."""
    looked, go_on = threading.Event(), threading.Event()
    with scripted_server() as (server, script):
        script.look = lambda: (looked.set(), go_on.wait(PATIENT))
        with client.start("submit", "--server", server, "--project", 1, "-", stdin=subprocess.PIPE) as process:
            process.stdin.write("a\n")
            process.stdin.close()
            process.stdin = None
            assert looked.wait(PATIENT)
            try:
                process.send_signal(signal.SIGINT)
                read_until(process.stderr, "stopping after the answer in flight")
                yield process, go_on
            finally:
                go_on.set()


@posix_only
def test_ctrl_c_waits_for_what_the_tracker_has_taken(client):
    with unfinished_submit(client) as (process, go_on):
        go_on.set()
        stdout, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 130 and stdout.startswith("stored 1, duplicate 0, refused 0\nnot finished: ")
    assert "--start-line 2" in stdout


@posix_only
def test_a_second_ctrl_c_leaves_what_the_tracker_has_taken_to_it_and_says_so(client):
    with unfinished_submit(client) as (process, _):
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=PATIENT)
    assert process.returncode == 130 and "--start-line 2" in stdout
    assert "line 1: taken by the tracker as operation 1, not counted here" in stdout


# ── What is shown ───────────────────────────────────────────────────────────────────────────────────────────────────


@posix_only
def test_a_terminal_shows_a_progress_bar(server, client, project, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {number}" for number in range(3000)))
    with on_terminal(client, "submit", "--server", server, "--project", project, "lines.txt") as (process, screen):
        wait_until(lambda: "refused 0\r\n" in screen() and process.poll() is not None)
        assert process.returncode == 0
        assert "100%" in screen() and "stored 3,000" in screen()


def test_a_file_gets_plain_lines_only(server, client, project):
    result = client.submit(server, project, "a\n{\nb\n", "--batch", 1)
    assert "\x1b" not in result.stdout + result.stderr and "\r" not in result.stderr
    assert result.stderr.splitlines() == ["line 2 refused: " + result.stdout.splitlines()[1].partition(": ")[2]]


def test_a_line_cannot_steer_the_terminal(server, client, project):
    result = client.submit(server, project, '{"recipe": "x", "project": "\\u001b[2J\\u009b"}\n')
    assert result.returncode == 1 and "\x1b" not in result.stdout + result.stderr
    assert "\x9b" not in result.stdout + result.stderr


@pytest.mark.parametrize("command", [[], ["submit"], ["status"], ["forget"]])
def test_help_is_a_manual(client, command):
    result = client.run(*command, "--help")
    assert result.returncode == 0 and "python3 worker.py" in result.stdout + "python3 worker.py" * (
        command == ["forget"]
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["submit", "-"], "--project"),
        (["submit", "--project", "0", "-"], "--project"),
        (["submit", "--project", "1", "--batch", "0", "-"], "--batch"),
        (["submit", "--project", "1", "--max-retries", "-1", "-"], "--max-retries"),
        (["submit", "--project", "1", "--server", "localhost:3010", "-"], "--server"),
        (["submit", "--project", "1", "--server", "http://h:99999", "-"], "--server"),
        (["submit", "--project", "1", "--server", "http://u:p@h/", "-"], "--server"),
        (["submit", "--project", "1", "missing.txt"], "missing.txt"),
        (["submit", "--project", "1", "."], "cannot read ."),
        (["status", "--watch", "nan"], "--watch"),
        (["status", "--watch", "0"], "--watch"),
    ],
)
def test_wrong_usage_is_one_clear_error(client, arguments, complaint):
    result = client.run(*arguments)
    assert result.returncode == 2
    assert complaint in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def run_without(package: str, *arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """What the program says where this package is not installed; before: what is done before it starts."""
    code = f"import sys, runpy; sys.modules[{package!r}] = None; del sys.argv[0]; {before}; " + (
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, WORKER_PY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENT)


@pytest.mark.parametrize("package", ["httpx", "rich"])
def test_a_missing_package_is_named_in_one_line(package):
    for arguments in ["status"], ["run", "--project", "1", "--", "true", "--help"]:
        result = run_without(package, *arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1 and f"needs {package}," in result.stderr


def test_where_pip_may_not_install_the_lines_that_do_are_said(tmp_path):
    """Debian's own Python refuses pip, but in a virtual environment."""
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    system = f"import sysconfig; sysconfig.get_path = lambda *_: {str(tmp_path)!r}; sys.prefix = sys.base_prefix"
    result = run_without("httpx", "status", before=system)
    assert "apt install python3-httpx python3-rich" in result.stderr
    assert "-m venv .venv && .venv/bin/pip install httpx rich" in result.stderr


@pytest.mark.parametrize("package", ["httpx", "rich"])
def test_the_help_is_shown_without_a_package_that_is_missing(package):
    for arguments in ["--help"], ["run", "-h"], ["status", "--server", "http://h", "--help"]:
        result = run_without(package, *arguments)
        assert result.returncode == 0 and result.stdout.startswith("usage: worker.py")
        assert len(result.stderr.splitlines()) == 1 and f"needs {package}," in result.stderr


def test_a_lone_copy_works(server, manager, client, tmp_path):
    copy = shutil.copy(WORKER_PY, tmp_path / "elsewhere.py")
    manager.create_project()
    command = [sys.executable, "-I", copy, "status", "--server", server]
    result = subprocess.run(command, cwd=tmp_path, env=client.env, capture_output=True, text=True, timeout=PATIENT)
    assert result.returncode == 0 and "crawl" in result.stdout


# ── Status ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def status(client, server, *options):
    result = client.run("status", "--server", server, "--json", *options)
    assert result.returncode == 0, result.stderr
    return {project["name"]: project for project in json.loads(result.stdout)["projects"]}


def test_status_counts_the_tasks_of_each_project(server, manager, client, project):
    client.submit(server, project, "a\nb\nc\nd\n")
    manager.release(manager.assign_all(project)[:1])
    counts = {name: count for name, count in status(client, server)["crawl"].items() if name.endswith("_count")}
    assert counts == {
        "waiting_task_count": 0,
        "delayed_task_count": 0,
        "assigned_task_count": 3,
        "awaiting_verification_count": 0,
        "failed_task_count": 0,
        "closed_task_count": 1,
    }


def test_status_shows_the_rate_of_closing_and_the_time_left(client, tmp_path):
    with serving(tmp_path, snapshot_interval=0.5) as server, Manager(server) as manager:
        project = grant(manager, client, server, manager.create_project())
        client.submit(server, project, "\n".join(map(str, range(100))))
        wait_until(lambda: len(manager.snapshots(project)) > 1)
        manager.release(manager.assign_all(project)[:40])
        shown = wait_until(lambda: (one := status(client, server)["crawl"])["closed_per_second"] and one)
    assert shown["eta_seconds"] == pytest.approx(60 / shown["closed_per_second"])


def test_status_shows_a_table(server, manager, client, project):
    client.submit(server, project, "a\nb\n")
    result = client.run("status", "--server", server)
    heading, row = result.stdout.splitlines()
    assert result.returncode == 0
    assert " ".join(heading.split()) == "Id Project Prio Waiting Delayed Assigned Verify Failed Closed Rate ETA"
    assert row.split()[:9] == [str(project), "crawl", "1", "2", "0", "0", "0", "0", "0"]


def test_a_paused_project_is_impossible_to_overlook(server, manager, client):
    manager.create_project("running")
    number = manager.create_project("stopped", paused=True)
    lines = client.run("status", "--server", server).stdout.splitlines()
    assert lines[0] == f"PAUSED, no task is handed out: stopped ({number})"
    assert [line.endswith("PAUSED ") or line.endswith("PAUSED") for line in lines[2:]] == [False, True]
    assert {name: one["paused"] for name, one in status(client, server).items()} == {"running": False, "stopped": True}


def test_status_needs_no_worker(server, manager, client):
    manager.create_project()
    assert "crawl" in client.run("status", "--server", server).stdout
    assert manager.workers() == [] and not client.credentials.exists()


def test_status_of_a_tracker_without_projects_says_so(server, client):
    assert "shows no project" in client.run("status", "--server", server).stdout


def test_the_name_of_a_project_cannot_steer_the_terminal(server, manager, client):
    manager.create_project("\x1b[2Jname")
    assert "\x1b" not in client.run("status", "--server", server).stdout


def test_a_long_name_in_a_file_is_not_cut(server, manager, client):
    manager.create_project("n" * 60)
    assert "n" * 60 in client.run("status", "--server", server).stdout


@posix_only
def test_watch_prints_json_again_and_again_until_ctrl_c(server, manager, client):
    number = manager.create_project()
    with client.start("status", "--server", server, "--json", "--watch", 0.2) as process:
        assert json.loads(process.stdout.readline())["projects"][0]["paused"] is False
        manager.update_project(number, paused=True)
        read_until(process.stdout, '"paused": true')
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENT)
    assert process.returncode == 130


@posix_only
def test_watch_redraws_in_place_on_a_terminal(server, manager, client):
    number = manager.create_project("before")
    with on_terminal(client, "status", "--server", server, "--watch", 0.2) as (process, screen):
        wait_until(lambda: "before" in screen())
        manager.update_project(number, name="after")
        wait_until(lambda: "after" in screen())
        process.send_signal(signal.SIGINT)
        wait_until(lambda: screen() and process.poll() is not None)
        assert process.returncode == 130
        one_line_up, erase = "\x1b[1A", "\x1b[2K"
        assert one_line_up in screen() and erase in screen()


def test_watch_outlives_the_server_and_says_that_the_figures_are_old(client, tmp_path):
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        with tracker_process(tmp_path, port), Manager(server) as manager:
            manager.create_project()
            watcher = stack.enter_context(client.start("status", "--server", server, "--watch", 0.2))
            read_until(watcher.stdout, "crawl")
        read_until(watcher.stdout, "OLD FIGURES")
        read_until(watcher.stdout, "crawl")
        with tracker_process(tmp_path, port):
            wait_until(lambda: "OLD" not in read_until(watcher.stdout, "crawl"))


def test_the_rate_is_taken_over_the_window():
    now = worker.Sample(1000, 500)
    samples = [worker.Sample(950, 450), worker.Sample(900, 300), worker.Sample(400, 0)]
    assert worker.closing_rate(samples, now, window=100) == 2.0


def test_the_rate_goes_by_an_older_snapshot_when_the_window_has_none():
    samples = [worker.Sample(500, 250), worker.Sample(0, 0)]
    assert worker.closing_rate(samples, worker.Sample(1000, 500), window=100) == 0.5


def test_there_is_no_rate_without_an_earlier_count():
    assert worker.closing_rate([worker.Sample(1000, 500)], worker.Sample(1000, 500), window=100) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.26, "0.3 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (3700, "1 h 1 min"), (200000, "2 d 7 h")],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds, said):
    assert worker.duration(seconds) == said
