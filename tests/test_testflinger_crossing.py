"""Testflinger's queues and all others: what is done for whom, and what is never handed to an agent of Testflinger."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Site, client, wait_until
from doors import CLIENTS, House, NativeAgent, NativeClient, content, job_of, uuid_of
from test_worker import listening, lose_answer, posix_only, read_until
from test_worker_run import Machine, is_alive, make_runner, python, sh
from testflinger_doubles import create_client, pack, upload

import worker

ELSEWHERE = {name: door for name, door in CLIENTS.items() if name != "testflinger"}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def house(site: Site) -> House:
    """Its project is a queue."""
    return House(site)


@pytest.fixture
def ordinary(house: House) -> House:
    """Its project is none of Testflinger's. It is another one than the house of the queue."""
    house.change_template(name="of the queue", api=False)
    return House(house.site, house.site.admin.create_project("ordinary"))


@pytest.fixture
def lab(house: House) -> Lab:
    return Lab(house)


class Lab:
    """Those who use the queue of a house as Testflinger's, from this machine and so without credentials."""

    def __init__(self, house: House):
        self.queue, self.http = house.QUEUE, client(f"{house.site.url}/v1")

    def submit(self, **fields: Any) -> str:
        """The id of a new job."""
        response = self.http.post("/job", json={"job_queue": self.queue, **fields})
        assert response.status_code == 200, response.text
        return response.json()["job_id"]

    def attach(self, packed: bytes, **fields: Any) -> str:
        """The id of a new job to which this file is attached."""
        job = self.submit(**{"provision_data": {"attachments": [{"local": "x"}]}, **fields})
        upload(self.http, f"/job/{job}/attachments", packed)
        return job

    def poll(self, *queues: str) -> dict[str, Any] | None:
        """What an agent that asks for these queues is given."""
        response = self.http.get("/job", params={"queue": queues})
        assert response.status_code in (200, 204), response.text
        return response.json() if response.status_code == 200 else None

    def report(self, job: str, **fields: Any) -> None:
        response = self.http.post(f"/result/{job}", json=fields)
        assert response.status_code == 200, response.text

    def result(self, job: str) -> dict[str, Any]:
        response = self.http.get(f"/result/{job}")
        assert response.status_code == 200, response.text
        return response.json()

    def output(self, job: str) -> str:
        """What those clients print that ask for output fragments."""
        response = self.http.get(f"/result/{job}/log/output")
        assert response.status_code == 200, response.text
        return response.json()["output"]["test"]["log_data"]

    def jobs_of(self, queue: str) -> list[str]:
        response = self.http.get(f"/queues/{queue}/jobs")
        return [job["job_id"] for job in response.json()] if response.status_code == 200 else []


def admit(machine: Machine, house: House, url: str = "") -> None:
    """Lets the machine's worker.py work for the project, as its manager would; it knows the tracker by that URL."""
    worker = house.site.create_worker(house.project)
    machine.credentials.parent.mkdir()
    known = {"id": worker.id, "alias": worker.alias, "secret": worker.secret}
    machine.credentials.write_text(json.dumps({"servers": {url or house.site.url: known}}))


# ── Jobs from here, done by worker.py ─────────────────────────────────────────────────────────────────────────────────


@posix_only
def test_worker_py_runs_the_test_commands_of_a_job(house: House, lab: Lab, machine: Machine) -> None:
    job = lab.submit(test_data={"test_cmds": "echo one\n[[ two == t* ]] && echo two\necho '[\"42\"]'\n"})
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts")
    said = 'one\ntwo\n["42"]\n'
    result = lab.result(job)
    assert result["job_state"] == "complete"
    assert (result["test_status"], result["output"], result["test_output"]) == (0, ["42"], said)
    assert lab.output(job) == said


@posix_only
def test_the_output_of_worker_py_is_handed_out_once_to_those_who_ask_for_what_is_new(
    house: House, lab: Lab, machine: Machine
) -> None:
    job = lab.submit(test_data={"test_cmds": "echo one\necho two\n"})
    assert lab.http.get(f"/result/{job}/output").status_code == 204
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts")
    assert lab.http.get(f"/result/{job}/output").text == "one\ntwo"
    assert lab.http.get(f"/result/{job}/output").status_code == 204


@posix_only
def test_test_commands_that_fail_give_their_exit_status(house: House, lab: Lab, machine: Machine) -> None:
    job = lab.submit(test_data={"test_cmds": "echo no such device\nexit 3\n"})
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts", status=1)
    result = lab.result(job)
    assert (result["job_state"], result["test_status"]) == ("complete", 3)
    assert "no such device" in result["test_output"].splitlines()


@posix_only
def test_worker_py_gives_a_command_the_definition_of_a_job_without_test_commands(
    house: House, lab: Lab, machine: Machine
) -> None:
    job = lab.submit(name="a name", provision_data={"url": "http://image"}, option="foo")
    admit(machine, house)
    code = (
        "import json, sys; wanted = json.loads(sys.argv[1]); print(wanted['provision_data']['url'], wanted['option'])"
    )
    machine.finish(house.site, house.project, *python(code, "{recipe}"))
    assert (lab.result(job)["job_state"], lab.result(job)["test_status"]) == ("complete", 0)
    assert lab.output(job) == "http://image foo\n"


@posix_only
def test_cancelling_a_job_that_worker_py_does_ends_its_command(house: House, lab: Lab, machine: Machine) -> None:
    job = lab.submit()
    admit(machine, house)
    endless = sh("echo $$ > began; exec sleep 600")
    with machine.working(house.site, house.project, "--heartbeat", 0.2, *endless) as process:
        sleeper = machine.wrote("began")
        assert lab.result(job)["job_state"] == "running"
        assert lab.http.post(f"/job/{job}/action", json={"action": "cancel"}).status_code == 200
        read_until(process.stderr, "was taken away")
        assert not is_alive(sleeper)
    assert lab.result(job)["job_state"] == "cancelled"
    assert "test_status" not in lab.result(job)


# ── Jobs from elsewhere in a queue ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_job_from_elsewhere_is_seen_as_a_job_of_its_queue_and_given_to_those_who_ask_for_that(
    house: House, lab: Lab, name: str
) -> None:
    job = ELSEWHERE[name](house).submit()
    lab.http.post("/agents/queues", json={"another queue": "of others"})
    listed = content(house.site.admin.get("/job/list", project=house.project))["jobs"]
    assert [one["id"] for one in listed] == [job]
    assert f"/ui/jobs/{job}" in house.site.admin.get(f"/ui/projects/{house.project}/jobs").text
    assert uuid_of(job) in house.site.admin.get(f"/ui/testflinger/queues/{house.project}").text
    assert lab.jobs_of(house.QUEUE) == [uuid_of(job)]
    assert lab.jobs_of("another queue") == []
    assert lab.poll("another queue", "an unknown queue") is None
    assert lab.result(uuid_of(job)) == {"job_state": "waiting"}
    given = lab.poll("another queue", house.QUEUE)
    assert (given["job_id"], given["job_queue"]) == (uuid_of(job), house.QUEUE)


def test_a_job_of_a_template_reaches_an_agent_with_its_script_as_the_test_commands(house: House, lab: Lab) -> None:
    house.change_template(script="echo built\n", env={"COLOUR": "red"}, variables=[{"name": "page", "value": 3}])
    NativeClient(house).submit()
    given = lab.poll(house.QUEUE)
    assert given["test_data"]["test_cmds"] == "echo built\n"
    assert (given["env"], given["variables"]) == ({"COLOUR": "red"}, {"page": 3})


def test_a_job_that_is_retried_elsewhere_reaches_an_agent_with_its_whole_definition(house: House, lab: Lab) -> None:
    wanted = {"job_queue": house.QUEUE, "provision_data": {"url": "http://image"}, "tags": ["a"], "option": "foo"}
    job = lab.submit(**wanted)
    assert lab.poll(house.QUEUE)["job_id"] == job
    lab.report(job, status={"provision": 1}, job_state="complete")
    again = NativeClient(house).retry(job_of(job))
    given = lab.poll(house.QUEUE)
    assert given["job_id"] == uuid_of(again) != job
    assert {name: given.get(name) for name in wanted} == wanted
    found = lab.http.get("/job/search", params={"tags": "a"}).json()
    assert [one["job_id"] for one in found] == [job, uuid_of(again)]


def test_a_job_that_is_retried_elsewhere_reaches_an_agent_with_the_secrets_of_its_client(
    house: House, lab: Lab
) -> None:
    lab.http.auth = create_client(house.site, "somebody")
    assert lab.http.put("/secrets/somebody/wifi", json={"value": "geheim"}).status_code == 200
    job = lab.submit(test_data={"test_cmds": "true", "secrets": {"WIFI": "wifi"}})
    lab.http.auth = create_client(house.site, "robot", role="agent")
    assert lab.poll(house.QUEUE)["test_data"]["secrets"] == {"WIFI": "geheim"}
    lab.report(job, test_status=1, job_state="complete")
    NativeClient(house).retry(job_of(job))
    assert lab.poll(house.QUEUE)["test_data"]["secrets"] == {"WIFI": "geheim"}


def test_a_step_of_a_workflow_that_an_agent_does_is_followed_by_the_next_one(house: House, lab: Lab) -> None:
    deploy = house.create_template("deploy", script="echo deployed\n", api=False)
    edges = [{"template": house.template["id"], "ending": "success", "target": deploy["id"]}]
    body = {"project": house.project, "name": "release", "start": house.template["id"], "edges": edges}
    workflow = content(house.site.admin.post("/workflow/create", body))["workflow"]["id"]
    run = content(house.site.admin.post(f"/workflow/trigger/{workflow}", {}))["job"]["id"]
    for name in (house.NAME, "deploy"):
        given = lab.poll(house.QUEUE)
        assert given["name"] == name
        assert lab.poll(house.QUEUE) is None
        lab.report(given["job_id"], status={"test": 0}, job_state="complete")
    assert NativeClient(house).state(run) == "succeeded"
    assert uuid_of(run) not in lab.jobs_of(house.QUEUE)


def test_a_plain_task_in_the_project_of_a_queue_is_not_given_to_agents(house: House, lab: Lab) -> None:
    worker = house.site.create_worker(house.project)
    assert worker.submit(house.project, "a page", priority=9).status_code == 200
    assert lab.poll(house.QUEUE) is None
    job = lab.submit()
    assert lab.jobs_of(house.QUEUE) == [job]
    assert lab.poll(house.QUEUE)["job_id"] == job
    assert lab.poll(house.QUEUE) is None
    assert worker.assigned(house.project)["recipe"] == "a page"


def test_how_a_job_went_that_a_native_worker_did_is_not_for_others_to_say(house: House, lab: Lab) -> None:
    job, worker = lab.submit(), NativeAgent(house)
    held = worker.assign()
    lab.report(job, test_status=1, output="mine", job_state="complete")
    assert lab.result(job)["job_state"] == "running"
    worker.succeed(held, ["answer"])
    result = lab.result(job)
    assert (result["job_state"], result["test_status"], result["output"]) == ("complete", 0, ["answer"])


# ── Attachments ───────────────────────────────────────────────────────────────────────────────────────────────────────

FILES = {"test/data.txt": b"what was attached", "provision/image": b"\0" * 3_000_000}
PACKED = pack(FILES)
SCRIPT = {
    "test_cmds": 'cat attachments/test/data.txt; cmp "$TRACKER_ATTACHMENTS/test/data.txt" attachments/test/data.txt'
}


@pytest.fixture
def temporary(machine: Machine) -> Path:
    """Where the machine has its temporary files."""
    folder = machine.folder / "temporary"
    folder.mkdir()
    machine.env["TMPDIR"] = str(folder)
    return folder


def said(house: House) -> str:
    """The log of the only job."""
    [(token,)] = house.site.read("SELECT token FROM job")
    return "\n".join(NativeClient(house).log(token))


def test_the_holder_of_a_task_gets_what_is_attached_to_its_job_and_nobody_else_does(house: House, lab: Lab) -> None:
    holder, other = (house.site.create_worker(house.project) for _ in range(2))
    lab.attach(PACKED)
    task = holder.assigned(house.project)
    path = task["job"]["attachments"]
    for prefix in "", "/api":
        answer = holder.http.get(prefix + path)
        assert (answer.status_code, answer.content) == (200, PACKED)
        assert answer.headers["content-type"] == "application/gzip"
    assert other.http.get(path).status_code == 403
    assert house.site.guest.get(path).status_code == 401
    holder.release(task["id"])
    assert holder.http.get(path).status_code == 403


def test_a_task_to_which_nothing_is_attached_says_so(house: House, lab: Lab) -> None:
    holder = house.site.create_worker(house.project)
    holder.submit(house.project)
    plain, of_job = holder.assigned(house.project), (lab.submit(), holder.assigned(house.project))[1]
    assert "attachments" not in of_job["job"]
    for task in plain, of_job:
        answer = holder.http.get(f"/task/attachments/{task['id']}")
        assert (answer.status_code, answer.content) == (204, b"")


def test_the_attachments_of_a_retried_job_are_those_of_the_first(house: House, lab: Lab) -> None:
    holder = house.site.create_worker(house.project)
    job = lab.attach(PACKED)
    task = holder.assigned(house.project)
    holder.release(task["id"], 1)
    NativeClient(house).retry(job_of(job))
    path = holder.assigned(house.project)["job"]["attachments"]
    assert path != task["job"]["attachments"]
    assert holder.http.get(path).content == PACKED


def test_attachments_that_are_gone_from_the_disk_are_not_taken_for_none(house: House, lab: Lab) -> None:
    holder = house.site.create_worker(house.project)
    lab.attach(PACKED)
    path = holder.assigned(house.project)["job"]["attachments"]
    for file in Path(f"{house.site.settings.database}.files").iterdir():
        file.unlink()
    assert holder.http.get(path).status_code == 404


@posix_only
def test_a_script_finds_what_is_attached_to_its_job_where_testflinger_puts_it(
    house: House, lab: Lab, machine: Machine, temporary: Path
) -> None:
    job = lab.attach(PACKED, test_data=SCRIPT)
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts")
    assert lab.output(job) == "what was attached\n"
    assert list(temporary.iterdir()) == []


@posix_only
def test_a_command_is_told_where_the_attachments_are_and_stays_in_its_folder(
    house: House, lab: Lab, machine: Machine, temporary: Path
) -> None:
    job, plain = lab.attach(PACKED), lab.submit()
    admit(machine, house)
    machine.env["TRACKER_ATTACHMENTS"] = "what somebody has left there"
    script = 'touch here; echo "${TRACKER_ATTACHMENTS-nothing}"; cat "$TRACKER_ATTACHMENTS"/test/data.txt 2>/dev/null'
    machine.finish(house.site, house.project, *sh(script), status=1)
    assert lab.output(job).startswith(str(temporary)) and "\nwhat was attached\n" in lab.output(job)
    assert lab.output(plain).startswith("nothing\n")
    assert (machine.folder / "here").exists()
    assert list(temporary.iterdir()) == []


@posix_only
@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$", "chmod -R 0 attachments; exit 1"])
def test_nothing_is_left_of_attachments_however_the_script_ends(
    house: House, lab: Lab, machine: Machine, temporary: Path, end: str
) -> None:
    lab.attach(PACKED, test_data={"test_cmds": f"touch attachments/new; {end}\n"})
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts", status=1)
    assert list(temporary.iterdir()) == []


@posix_only
def test_nothing_is_left_of_attachments_when_the_worker_is_told_to_stop(
    house: House, lab: Lab, machine: Machine, temporary: Path
) -> None:
    lab.attach(PACKED, test_data={"test_cmds": f"touch {machine.folder}/began; sleep 600\n"})
    admit(machine, house)
    with machine.working(house.site, house.project, "--allow-scripts", "--grace", 0) as process:
        machine.made("began")
        assert list(temporary.iterdir())
        process.terminate()
        process.communicate(timeout=60)
    assert list(temporary.iterdir()) == []


def tar_of(*entries: tuple[str, bytes, str]) -> bytes:
    """A tar of entries of any kind: a name, the kind, and where a link leads, or else what is in the file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, kind, text in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(text) if kind == tarfile.REGTYPE else 0
            entry.linkname = "" if kind == tarfile.REGTYPE else text
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


FILE, LINK, HARD_LINK, FOLDER = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
HOSTILE = {
    "a way up": (tar_of(("../caught", FILE, "x")), "caught"),
    "a link out": (tar_of(("l", LINK, "../..")), "l"),
    "an absolute link": (tar_of(("l", LINK, "/etc/passwd")), "l"),
    "a hard link out": (tar_of(("l", HARD_LINK, "../../caught")), "l"),
    "a file behind a link": (
        tar_of(("d", FOLDER, ""), ("l", LINK, "d"), ("l/caught", FILE, "x")),
        "l/caught is behind",
    ),
    "a file in place of a link": (tar_of(("d", FILE, ""), ("l", LINK, "d"), ("l", FILE, "x")), "l is behind a link"),
    "a hard link behind a link": (
        tar_of(("d", FOLDER, ""), ("d/f", FILE, "x"), ("l", LINK, "d"), ("h", HARD_LINK, "l/f")),
        "l/f is behind a link",
    ),
    "a device": (tar_of(("null", tarfile.CHRTYPE, "")), "null"),
    "a pipe": (tar_of(("pipe", tarfile.FIFOTYPE, "")), "pipe"),
    "no tar": (b"no tar at all", "not a tar"),
    "nothing": (b"\x1f\x8b", "not a tar"),
    "half of one": (pack({"x": random.Random(1).randbytes(5000)})[:3000], "not a tar"),
    "too much": (pack({"zeros": bytes(2**21)}), "too large"),
    "a header of a size that fits nowhere": (
        pack({"x" * 600_000 + "/" + "y" * 600_000: b""}),
        "too large",
    ),
}


@posix_only
@pytest.mark.parametrize("name", HOSTILE)
def test_attachments_that_cannot_be_unpacked_safely_fail_the_attempt(
    house: House, lab: Lab, machine: Machine, temporary: Path, name: str
) -> None:
    packed, reason = HOSTILE[name]
    job = lab.attach(packed, test_data={"test_cmds": f"touch {machine.folder}/ran"})
    admit(machine, house)
    before = sorted(machine.folder.rglob("*"))
    machine.finish(house.site, house.project, "--allow-scripts", "--max-attachments", 1, status=1)
    assert "its attachments cannot be had: " in said(house) and reason in said(house)
    assert lab.result(job)["job_state"] == "complete"
    assert sorted(machine.folder.rglob("*")) == before


@posix_only
def test_a_tar_may_have_links_within_and_rights_of_its_own(
    house: House, lab: Lab, machine: Machine, temporary: Path
) -> None:
    tools = tar_of(
        ("/test/run", FILE, "#!/bin/sh\necho ran\n"), ("test/link", LINK, "run"), ("hard", HARD_LINK, "test/run")
    )
    job = lab.attach(tools, test_data={"test_cmds": "cat attachments/test/link attachments/hard | grep -c ran"})
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts")
    assert lab.output(job) == "2\n"


@contextlib.contextmanager
def breaking(server: str, times: int) -> Iterator[tuple[str, list[str]]]:
    """A proxy in front of a tracker that breaks off the first so many attachments: its address, and what was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = httpx.request(self.command, server + self.path, content=body, headers=headers, timeout=60)
            asked.append(self.path)
            self.send_response(answer.status_code)
            if answer.status_code != 204:
                self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            if "/attachments/" in self.path and sum("/attachments/" in path for path in asked) <= times:
                self.wfile.write(answer.content[: len(answer.content) // 2])
                lose_answer(self)
            else:
                self.wfile.write(answer.content)

        do_GET = do_POST = forward

        def log_message(self, *arguments: Any) -> None:
            pass

    with listening(Handler) as url:
        yield url, asked


@posix_only
def test_attachments_that_break_off_are_fetched_again(
    house: House, lab: Lab, machine: Machine, temporary: Path
) -> None:
    job = lab.attach(PACKED, test_data=SCRIPT)
    with breaking(house.site.url, 2) as (url, asked):
        admit(machine, house, url)
        machine.finish(url, house.project, "--allow-scripts")
    assert len([path for path in asked if "/attachments/" in path]) == 3
    assert lab.output(job) == "what was attached\n"
    assert list(temporary.iterdir()) == []


@posix_only
def test_attachments_that_are_refused_fail_the_attempt(
    house: House, lab: Lab, machine: Machine, temporary: Path
) -> None:
    job = lab.attach(PACKED, test_data=SCRIPT)
    for file in Path(f"{house.site.settings.database}.files").iterdir():
        file.unlink()
    admit(machine, house)
    machine.finish(house.site, house.project, "--allow-scripts", status=1)
    assert "its attachments cannot be fetched: " in said(house)
    assert lab.result(job)["job_state"] == "complete"


class Trickling(http.server.BaseHTTPRequestHandler):
    """Sends a byte now and then, for ever."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.01)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("cause", "result", "reason"),
    [
        (None, worker.FAILED, "its attachments did not come in time"),
        (worker.Cause.TAKEN_AWAY, worker.SKIPPED, "cancelled, or its lease has ended"),
        (worker.Cause.STOPPED, worker.SKIPPED, "stopped together with this worker"),
    ],
)
def test_attachments_that_do_not_come_are_not_waited_for_without_end(
    cause: worker.Cause | None, result: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.Execution, "LONGEST_FETCH", 3600 if cause else 0.1)
    with listening(Trickling) as url:
        runner = make_runner()
        runner.terms.client = worker.RunClient(url, runner.display, worker.Interrupts())
        task = {"id": 1, "recipe": "x", "job": {"id": "1", "attachments": "/task/attachments/1"}}
        execution = worker.Execution(worker.Assignment(task), runner.terms, lambda: False, runner._ended)
        execution.start()
        if cause:
            time.sleep(0.2)
            execution.stop(cause)
        wait_until(lambda: execution.tick(time.monotonic()) or execution.outcome)
    assert (execution.outcome.result, execution.outcome.reason) == (result, reason)


# ── Other projects ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_job_of_an_ordinary_project_is_never_given_to_an_agent_that_asks_for_its_name(
    lab: Lab, ordinary: House, name: str
) -> None:
    door = ELSEWHERE[name](ordinary)
    job = door.submit()
    assert lab.poll("ordinary", lab.queue) is None
    assert door.state(job) == door.words["waiting"]
    held = NativeAgent(ordinary).assign()
    assert held["job"]["id"] == job


def test_a_job_of_an_ordinary_project_is_unknown_to_testflingers_clients(lab: Lab, ordinary: House) -> None:
    job = NativeClient(ordinary).submit()
    uuid = uuid_of(job)
    assert lab.jobs_of("ordinary") == []
    assert lab.http.get("/job/search").json() == []
    for path in (f"/job/{uuid}", f"/result/{uuid}", f"/result/{uuid}/output"):
        assert lab.http.get(path).status_code == 204
    assert lab.http.get(f"/job/{uuid}/position").status_code == 410
    assert lab.http.post(f"/job/{uuid}/action", json={"action": "cancel"}).status_code == 404
    lab.report(uuid, test_status=0, output="mine", job_state="complete")
    assert NativeClient(ordinary).job(job)["state"] == "waiting"


def test_testflingers_clients_and_agents_cannot_feed_an_ordinary_project(lab: Lab, ordinary: House) -> None:
    refused: list[httpx.Response] = [
        lab.http.post("/job", json={"job_queue": "ordinary"}),
        lab.http.post("/agents/queues", json={"ordinary": "mine"}),
        lab.http.post("/agents/images", json={"ordinary": {"image": "url: http://image"}}),
    ]
    assert [response.status_code for response in refused] == [422, 422, 422]
    assert all("ordinary" in response.text for response in refused)
    assert content(ordinary.site.admin.get("/job/list", project=ordinary.project))["jobs"] == []
    assert "a new queue" not in lab.http.get("/agents/queues").json()


def test_a_worker_without_access_to_the_project_of_a_queue_is_not_assigned_its_jobs(house: House, lab: Lab) -> None:
    job = lab.submit()
    assert house.site.create_worker().assigned(house.project) is None
    assert lab.result(job)["job_state"] == "waiting"


def test_what_somebody_else_reports_does_not_hide_the_log_of_a_worker(house: House, lab: Lab) -> None:
    job = lab.submit()
    worker = NativeAgent(house)
    held = worker.assign()
    worker.log(held, "the worker's own")
    assert lab.http.post(f"/result/{job}/output", content="a stranger's").status_code == 200
    assert lab.http.get(f"/result/{job}/output").text == "the worker's own"
    assert lab.http.get(f"/result/{job}/log/output").json()["output"]["test"]["log_data"] == "the worker's own\n"
