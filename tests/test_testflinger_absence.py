"""Jobs of a queue while the folder dialects/ is not there, and Testflinger's rows when it is there again."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import client
from doors import uuid_of
from test_job_model import ENDED, Crowd
from test_testflinger_model import Lab, take_small_steps

import tracker
from dialects.testflinger import events

HOME = Path(tracker.__file__).parent
PRESENT = tracker.dialects


class Away(Lab):
    """A queue whose dialect is away now and then."""

    def __init__(self, seed: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__(seed)
        self.patch = patch

    def leave(self) -> None:
        self.patch.setattr(tracker, "dialects", lambda: [])

    def come_back(self) -> None:
        self.patch.setattr(tracker, "dialects", PRESENT)
        for step in (events.compare_jobs, events.note_missed):
            after = 0
            while after is not None:
                after = self.do(step, after)

    def go_on_without_it(self) -> None:
        Crowd.step(self)
        Crowd.check(self)
        if self.random.random() < 0.05:
            self.forget_some()

    def forget_some(self) -> None:
        """Jobs that have ended are forgotten."""
        ended = "SELECT id, token FROM job WHERE finished IS NOT NULL AND workflow IS NULL AND workflow_job IS NULL"
        for job_id, token in self.random.sample(rows := self.values(ended), min(len(rows), 3)):
            self.do(tracker.delete_job, job_id)
            self.ended.pop(job_id, None)
            self.states.pop(token, None)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_while_the_dialect_was_away_all_doors_agree_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_small_steps(monkeypatch)
    monkeypatch.setattr(events, "PIECE_ROWS", 3)
    lab = Away(seed, monkeypatch)
    for _ in range(8):
        for _ in range(40):
            lab.step()
            lab.check()
        lab.leave()
        for _ in range(20):
            lab.go_on_without_it()
        lab.come_back()
        lab.check()
    states = Counter(state for (state,) in lab.values("SELECT state FROM job"))
    assert len(states.keys() & ENDED) >= 3, "too little happened to say anything"


def test_a_job_that_is_made_again_while_the_dialect_is_away_does_not_wait_for_attachments_that_never_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Away(0, monkeypatch)
    lab.submit_here()
    (job,) = lab.rows("SELECT * FROM job")
    lab.connection.execute("UPDATE testflinger_job SET attachments = 'waiting'")
    lab.cancel(job["token"])
    assert lab.refusal(tracker.retry_job, lab.session, job["token"]).startswith("conflict: job: its attachments")
    lab.leave()
    again = lab.retry(job["token"])
    lab.come_back()
    lab.states = {job["token"]: "cancelled", again: "waiting"}
    lab.pick_any()
    assert lab.state(again) == "assigned"


# A tracker without the folder, on the same file. A worker takes all that waits and then closes, keeps or skips it; what
# managers and time do besides is done straight.
WITHOUT = """
import contextlib, json, sys
from pathlib import Path
import httpx
import database
import tracker

given = json.loads(sys.argv[1])
assert not tracker.installed_dialects()
settings = tracker.Settings(database=given["database"], log_file="")
made = {}
with tracker.serving(settings) as url, httpx.Client(base_url=url, headers=given["worker"]) as http:
    for name in ("made, done", "made, running", "made"):
        made[name] = http.post("/template/trigger/1", json={}).json()["content"]["job"]["id"]
    names = {token: name for name, token in {**given["jobs"], **made}.items()}
    assert http.post(f"/job/cancel/{given['jobs']['cancelled']}").json()["ok"]
    held = {}
    while (answer := http.get(f"/task/get/{given['project']}").json())["ok"]:
        task = answer["content"]["task"]
        held[names[task["job"]["id"]]] = task["id"]
    for name, task in held.items():
        if "running" not in name:
            body = {"task_id": task, "result": tracker.OK if "done" in name else tracker.SKIP}
            assert http.post("/task/release", json=body).json()["content"]["updated"]
with contextlib.closing(database.connect(Path(given["database"]), settings)) as connection:
    tx = tracker.Tx(connection, tracker.Clock(), settings)
    raised, forgotten = (
        tx.one("SELECT * FROM job WHERE token = ?", (given["jobs"][name],)) for name in ("raised", "forgotten")
    )
    assert tracker.apply_action(tx, raised["project"], "set_priority", 7, [raised["task"]], 0) == 1
    tracker.delete_job(tx, forgotten["id"])
print(json.dumps(made))
"""


def run_without_dialects(folder: Path, given: dict[str, Any]) -> dict[str, str]:
    """What a tracker in a folder of its own, that has no dialects/, has made of the file."""
    for file in (*HOME.glob("*.py"), HOME / "schema.sql"):
        shutil.copy(file, folder)
    for name in ("templates", "static"):
        shutil.copytree(HOME / name, folder / name)
    command = [sys.executable, "-c", WITHOUT, json.dumps(given)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@contextlib.contextmanager
def served(database: Path) -> Iterator[httpx.Client]:
    with tracker.serving(tracker.Settings(database=str(database), log_file="")) as url, client(url) as http:
        yield http


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["content"]


def prepare(http: httpx.Client) -> dict[str, Any]:
    """A queue with a template, a worker that may do all in it, and jobs of Testflinger's, by what will become of them.

    One has been picked by an agent, and another one has ended.
    """
    names = ("picked", "done", "running", "raised", "skipped", "cancelled", "forgotten")
    uuids = {name: http.post("/v1/job", json={"job_queue": "rack"}).json()["job_id"] for name in names}
    assert http.get("/v1/job", params={"queue": "rack"}).json()["job_id"] == uuids["picked"]
    http.post(f"/v1/result/{uuids['picked']}", json={"job_state": "provision"})
    http.post(f"/v1/job/{uuids['forgotten']}/action", json={"action": "cancel"})
    ok(http.post("/register", json={"username": "admin", "password": "password"}))
    (project,) = ok(http.get("/project/list"))["projects"]
    worker = ok(http.post("/worker/create", json={"alias": "native"}))["worker"]
    headers = {"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]}
    access = {"project": project["id"], "assign": True, "submit": True}
    for hidden in False, True:  # while it is, nobody may ask
        assert http.post(f"/project/update/{project['id']}", json={"hidden": hidden}).status_code == 200
        asked = http.post("/project/request_access", json=access, headers=headers).status_code
        assert asked == (409 if hidden else 200)
    assert http.post(f"/project/accept_request/{project['id']}/{worker['id']}").status_code == 200
    ok(http.post("/template/create", json={"project": project["id"], "name": "build"}))
    tokens = [job["id"] for job in ok(http.get("/job/list", params={"project": project["id"]}))["jobs"]]
    jobs = {name: next(token for token in tokens if uuid_of(token) == uuid) for name, uuid in uuids.items()}
    return {"jobs": jobs, "project": project["id"], "worker": headers}


BECOME = {
    "picked": "provision",  # its agent goes on
    "done": "complete",
    "running": "running",
    "raised": "waiting",
    "skipped": "waiting",
    "cancelled": "cancelled",
    "made, done": "complete",
    "made, running": "running",
    "made": "waiting",
}


def test_testflingers_rows_agree_after_a_tracker_without_the_folder_has_run_jobs(tmp_path: Path) -> None:
    database, folder = tmp_path / "x.db", tmp_path / "without"
    folder.mkdir()
    with served(database) as http:
        given = {**prepare(http), "database": str(database)}
    jobs = {**given["jobs"], **run_without_dialects(folder, given)}
    with served(database) as http:
        results = {name: http.get(f"/v1/result/{uuid_of(jobs[name])}") for name in jobs}
        assert results.pop("forgotten").status_code == 204
        assert {name: result.json()["job_state"] for name, result in results.items()} == BECOME
        picked = [http.get("/v1/job", params={"queue": "rack"}).json()["job_id"] for _ in range(3)]
        assert picked == [uuid_of(jobs[name]) for name in ("raised", "skipped", "made")]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = set(connection.execute("SELECT job, priority FROM testflinger_job"))
        assert rows == set(connection.execute("SELECT id, priority FROM job"))
