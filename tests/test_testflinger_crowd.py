"""Thirty agents of Testflinger on ten queues, three hundred jobs of mixed priorities: each is run once, in its turn."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from conftest import Site
from doors import uuid_of
from testflinger_doubles import Agent, HAgent, Phase, SAgent, SClient, create_client

QUEUES = [f"queue-{number}" for number in range(10)]
BUSY = QUEUES[5:]  # to which jobs are submitted while agents work, too
BEFORE, MEANWHILE = 18, 24  # jobs of each queue
JOBS = BEFORE * len(QUEUES) + MEANWHILE * len(BUSY)
HIGHEST = 9


class Wanted(NamedTuple):
    """A job as it was submitted."""

    queue: str
    priority: int


class Run(NamedTuple):
    """What became of a job. `turn` sorts the jobs that wait for the same agent: the priority, then the age."""

    queue: str
    turn: tuple[int, int]
    listened: frozenset[str]  # to which queues its agent listens
    created: float
    started: float

    def passed_over(self, other: Run) -> bool:
        """Whether the other was handed out although this one waited, was to come first, and suited that agent."""
        waited = self.created < other.started < self.started
        return waited and self.turn < other.turn and self.queue in other.listened

    def overtook(self, other: Run) -> bool:
        return self.queue == other.queue and self.created > other.created and self.started < other.started


def make_agents(url: str) -> list[Agent]:
    """Ten for each shift of three queues, of both generations."""
    shifts = [tuple(QUEUES[(number + step) % 10] for step in (0, 3, 7)) for number in range(30)]
    return [(SAgent, HAgent)[number % 2](url, f"agent-{number}", *queues) for number, queues in enumerate(shifts)]


def submit_many(client: SClient, queue: str, priorities: Sequence[int]) -> dict[str, Wanted]:
    """The new jobs, by their ids."""
    wanted = [Wanted(queue, priority) for priority in priorities]
    return {client.submit({"job_queue": one.queue, "job_priority": one.priority}): one for one in wanted}


def work(agent: Agent, begun: threading.Event, over: threading.Event) -> list[str]:
    """Does jobs until there is none and none will come. Their ids."""
    agent.register()
    done: list[str] = []
    while True:
        last = over.is_set()
        job = agent.check_jobs()
        if job is not None:
            done.append(job["job_id"])
            begun.set()
            agent.post_result(job["job_id"], **agent.outcome({"test": Phase()}), job_state="complete")
        elif last:
            return done
        else:
            time.sleep(0.1)  # so many that look for work would keep those from it who have some


def mixed(count: int) -> list[int]:
    """So many priorities, in no order; the first one is the highest."""
    return [HIGHEST, *random.Random(count).choices(range(HIGHEST + 1), k=count - 1)]


def run_crowd(site: Site) -> tuple[dict[str, Wanted], dict[str, Agent], Counter[str]]:
    """The jobs, the agents that did them, and how many times each was done."""
    credentials = create_client(site, "submitter", max_priority={"*": HIGHEST})
    clients = [SClient(site.url, credentials) for _ in QUEUES]
    begun, over = threading.Event(), threading.Event()
    jobs: dict[str, Wanted] = {}

    def submit_meanwhile(client: SClient, queue: str) -> dict[str, Wanted]:
        assert begun.wait(30)
        return submit_many(client, queue, mixed(MEANWHILE))

    with ThreadPoolExecutor(40) as pool:
        for submitted in pool.map(submit_many, clients, QUEUES, [mixed(BEFORE)] * len(QUEUES)):
            jobs |= submitted
        working: dict[Future[list[str]], Agent] = {
            pool.submit(work, agent, begun, over): agent for agent in make_agents(site.url)
        }
        try:
            for submitted in pool.map(submit_meanwhile, clients, BUSY):
                jobs |= submitted
        finally:
            over.set()
        done = {job: agent for ended, agent in working.items() for job in ended.result()}
        return jobs, done, Counter(job for ended in working for job in ended.result())


def list_jobs(site: Site) -> list[dict[str, Any]]:
    """All jobs of the tracker, by age."""
    jobs, before = [], None
    while True:
        query = {"before": before} if before else {}
        answer = site.admin.get("/job/list", limit=1000, **query).json()["content"]
        jobs += answer["jobs"]
        before = answer["before"]
        if before is None:
            return jobs[::-1]


def test_thirty_agents_run_three_hundred_jobs_of_ten_queues_once_each_and_in_their_turn(site: Site) -> None:
    jobs, agents, times = run_crowd(site)
    assert len(jobs) == JOBS == 300 and times == Counter(jobs.keys())
    listed = {uuid_of(job["id"]): job for job in list_jobs(site)}
    assert listed.keys() == jobs.keys()
    assert {(job["state"], job["attempts"]) for job in listed.values()} == {("succeeded", 1)}
    assert len({agent.name for agent in agents.values()}) == 30

    runs = [
        Run(
            queue=jobs[job].queue,
            turn=(-jobs[job].priority, age),
            listened=frozenset(agents[job].queues),
            created=shown["created"],
            started=shown["started"],
        )
        for age, (job, shown) in enumerate(listed.items())
    ]
    assert all(run.queue in run.listened for run in runs)
    for queue in set(QUEUES) - set(BUSY):  # all of its jobs waited when the first one was handed out
        handed_out = sorted((run for run in runs if run.queue == queue), key=lambda run: (run.started, run.turn))
        assert handed_out == sorted(handed_out, key=lambda run: run.turn)
    assert [(run, other) for other in runs for run in runs if run.passed_over(other)] == []
    begun = min(run.started for run in runs)
    late = [run for run in runs if run.created > begun]
    assert len(late) == MEANWHILE * len(BUSY)
    assert any(run.overtook(other) for run in late for other in runs), "too little happened to say anything"
