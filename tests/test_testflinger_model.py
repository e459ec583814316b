"""A queue of Testflinger under anything that may happen to its jobs, at this door and at others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from doors import job_of, uuid_of
from msgspec import Raw
from test_job_model import ENDED, Crowd

import tracker
from dialects.testflinger import clients as clients
from dialects.testflinger import domain as domain

SUBMITTER = clients.Client("submitter", "contributor", {"*": 9}, [], {})
NAMES = ("agent-1", "agent-2")


class Lab(Crowd):
    """The crowd's project is a queue, and agents do jobs of it, too. `statuses` is what was last said of each test."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.connection.execute("INSERT INTO testflinger_queue (project) VALUES (?)", (self.project,))
        for name in NAMES:
            self.do(domain.update_agent, name, {"queues": ["first"]})
        self.statuses: dict[str, int] = {}

    def submit_here(self) -> None:
        priority = self.random.choice([0, 0, 5])
        wanted = domain.Submission({"job_queue": "first"}, "first", priority=priority)
        self.states[job_of(self.do(domain.submit_job, SUBMITTER, wanted))] = "waiting"

    def pick_any(self) -> None:
        """An agent is given the best job that waits, whichever door that came through."""
        waiting = self.values(
            "SELECT token, attempts FROM job WHERE state = 'waiting' AND workflow IS NULL AND NOT delayed"
            " ORDER BY priority DESC, id LIMIT 1"
        )
        picked = self.do(domain.pick_job, None, ["unknown", "first"], self.random.choice([*NAMES, None]))
        given = picked and picked.shown
        assert (given and given["job_id"]) == (uuid_of(waiting[0][0]) if waiting else None)
        if given:
            self.move("assign", waiting[0][0])
            if waiting[0][1]:  # what was said of an earlier attempt is forgotten
                self.statuses.pop(given["job_id"], None)

    def report_any(self) -> None:
        """Somebody reports on some job; it moves only if that one holds it."""
        held = self.rows(f"{domain.JOB} WHERE t.agent IS NOT NULL AND j.finished IS NULL")
        rows = self.rows(f"{domain.JOB} ORDER BY t.job DESC LIMIT 20") + 8 * held
        if not rows:
            return
        job = self.random.choice(rows)
        poster = self.random.choice([job["agent"] or None] * 3 + [*NAMES, None])
        state = self.random.choice([None, "setup", "test", "waiting", "cancelled", *3 * domain.ENDED])
        fields: dict[str, Raw] = {}
        holders = NAMES if job["agent"] == "" else (job["agent"],)
        holds = job["state"] == "assigned" and job["agent"] is not None and poster in (None, *holders)
        if self.random.random() < 0.5:
            status = self.random.choice([0, 0, 1])
            fields["test_status"] = Raw(b"%d" % status)
            if holds:
                self.statuses[job["uuid"]] = status
        event = self.event(job, state) if holds else None
        self.do(domain.add_result, None, job["uuid"], poster, fields, state)
        if event:
            self.move(event, job["token"])

    def event(self, job: Any, state: str | None) -> str | None:
        """What the report of the one who holds it means for a job."""
        if state in domain.ENDED:
            return self.failed(self.task(job["task"]), "fail") if self.statuses.get(job["uuid"]) else "close"
        return "cancel" if state == "cancelled" else None

    def step(self) -> None:
        if self.random.random() < 0.5:
            super().step()
        else:
            self.random.choice([self.submit_here, *2 * [self.pick_any], *3 * [self.report_any]])()

    def check(self) -> None:
        super().check()
        shown = "t.priority AS shown_priority, t.delayed AS shown_delayed, t.wait"
        rows = self.rows(f"SELECT {shown}, {domain.JOB.removeprefix('SELECT ')}")
        assert {row["id"] for row in rows} == {id for (id,) in self.values("SELECT id FROM job WHERE workflow IS NULL")}
        workers = dict(self.values("SELECT name, worker FROM testflinger_agent"))
        for row in rows:
            assert row["uuid"] == uuid_of(row["token"]) and row["shown_priority"] == row["priority"]
            assert row["shown_delayed"] == row["delayed"]
            assert row["shown_state"] in shown_as(row["state"])
            assert row["wait"] == (row["started"] and row["started"] - row["created"])
            assert row["agent"] is None or row["state"] != "waiting"
            if row["agent"] and row["state"] == "assigned":
                assert row["assignee"] == workers[row["agent"]]


def shown_as(state: str) -> set[str]:
    """How a job in this state may be shown to Testflinger's clients."""
    if state in ("waiting", "cancelled"):
        return {state}
    return set(domain.ENDED) if state in ENDED else set(domain.STATES) - {"waiting", "cancelled", *domain.ENDED}


def take_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transaction of a long operation does one small piece."""
    monkeypatch.setattr(tracker, "STEP_TASKS", 2)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    monkeypatch.setattr(tracker, "MOST_STEPS", 6)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_to_a_job_all_doors_agree_and_what_has_ended_stays(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_small_steps(monkeypatch)
    lab = Lab(seed)
    for _ in range(400):
        lab.step()
        lab.check()
    states = Counter(lab.values("SELECT state, agent IS NULL FROM testflinger_job"))
    assert {("complete", 0), ("completed", 0), ("complete", 1)} <= states.keys(), "too little happened to say anything"
