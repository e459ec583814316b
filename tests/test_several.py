"""Several tasks in one call: as if they were assigned, or released, one after the other."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import place
import pytest
from place import Jobs, check_counts, in_memory, new_task
from test_atomicity import sabotaged

import shapes
import tracker
import writer
from tracker import FAIL, OK, SKIP, WorkerCredentials
from writer import Committer, Write

SEEDS = range(30)
UNKNOWN = 10**6  # no task has this number


class Several(Jobs):
    """Two projects with tasks of all kinds in a random order, and three workers."""

    def __init__(self, seed: int, verified: bool = True) -> None:
        super().__init__()
        chance = random.Random(seed)
        fields = {"priority": chance.choice([1, 2]), "keep_hashes": seed % 2 == 0}
        self.projects = [self.project, self.create_project("second", **fields)]
        self.crowd = [self.worker, self.create_worker(), self.create_worker()]
        self.outsiders = [self.do(place.create_worker), self.create_worker()]  # one without access, one paused
        self.do(tracker.set_worker_paused, self.session, shapes.PauseBody(self.outsiders[1].id, True))
        template = self.create_template(project=self.projects[1]) if seed % 3 else None
        if seed % 5 == 1:
            self.do(tracker.update_project, self.session, self.project, shapes.ProjectBody(chain=self.projects[1]))
        for number in range(40):
            if template and chance.random() < 0.2:
                self.trigger(template)
            count, project = chance.choice([0, 1, 1, 2, 3] if verified else [0, 1]), chance.choice(self.projects)
            priority = chance.choice([-1, 0, 0, 0, 1])
            fields = {"priority": priority, "verification_count": count, "max_assign_time": number, "max_retries": 2}
            self.submit(f"recipe {number}", project, unique_string=str(number), **fields)
        for _ in range(8):
            worker, project = chance.choice(self.crowd), chance.choice(self.projects)
            for task in self.do(tracker.assign_tasks, worker, [project], 3).tasks:
                self.release(task["id"], chance.choice([OK, OK, FAIL, SKIP]), worker, 7)
        self.chance = chance

    def copy(self) -> Several:
        other = copy.copy(self)
        other.connection = in_memory(self.connection)
        return other

    def contents(self) -> list[str]:
        return [line for line in self.connection.iterdump() if not line.startswith('INSERT INTO "meta"')]


@pytest.mark.parametrize("seed", SEEDS)
def test_several_are_assigned_as_they_would_be_one_after_the_other(seed: int) -> None:
    together = Several(seed)
    apart, count = together.copy(), together.chance.choice([2, 5, 50])
    asked = together.chance.choice([together.projects, together.projects[:1], together.projects[1:]])
    tasks = together.do(tracker.assign_tasks, together.worker, asked, count).tasks
    one_by_one = [apart.do(tracker.assign_tasks, apart.worker, asked).tasks for _ in range(count)]
    assert tasks == [task for found in one_by_one for task in found]
    assert together.contents() == apart.contents()
    check_counts(together.connection)


def release_alone(several: Several, worker: WorkerCredentials, release: shapes.ReleaseBody) -> bool:
    unknown = release.task_id == UNKNOWN
    return not unknown and several.do(tracker.release_task, worker, release)


@pytest.mark.parametrize("seed", SEEDS)
def test_several_are_released_as_they_would_be_one_after_the_other(seed: int) -> None:
    together = Several(seed)
    chance, worker = together.chance, together.worker
    held = [task["id"] for task in together.do(tracker.assign_tasks, worker, together.projects, 40).tasks]
    others = [task["id"] for task in together.do(tracker.assign_tasks, together.crowd[1], together.projects, 5).tasks]
    asked = [*held, *chance.choices(held, k=3), *others[:2], UNKNOWN]
    chance.shuffle(asked)
    results = [OK, OK, OK, OK, FAIL, SKIP]
    outputs = [msgspec.Raw(b'{"state": "failure"}'), msgspec.UNSET]
    releases = [shapes.ReleaseBody(task, chance.choice(results), 7, chance.choice(outputs)) for task in asked]
    for release in releases:
        release.attempt = chance.choice([0, 0, 0, 1, 2])
        release.delay = chance.choice([0, 60]) if release.result == SKIP else 0
    apart = together.copy()
    updated = together.do(tracker.release_tasks, worker, releases)
    assert updated == [release_alone(apart, worker, release) for release in releases]
    assert together.contents() == apart.contents()
    check_counts(together.connection)


# ── A batch of calls ──────────────────────────────────────────────────────────────────────────────────────────────────


def commit(several: Several, *calls: tuple) -> list[tuple[Write, Any]]:
    """Commits calls as one batch: each, in the order in which they were carried out, and its answer or its refusal."""
    connection = SimpleNamespace(connection=several.connection)
    committer = Committer(connection, several.clock, several.settings, lambda: 1e9)
    committer.BATCH_TIME = 1e9
    batch = [Write(None, function, tuple(args)) for function, *args in calls]
    committed = committer.run_batch(batch)
    several.connection.execute("COMMIT")
    assert not committed.left
    return [(call, outcome if error is None else str(error)) for call, (outcome, error) in committed.done]


def any_call(several: Several, held: list[int]) -> tuple:
    """A call as a batch may have it: an assignment in most cases."""
    chance = several.chance
    worker, project = chance.choice(several.crowd), chance.choice(several.projects)
    kind = chance.choice(["assign"] * 6 + ["release", "release", "submit", "several", "pause", "stranger", "stranger"])
    if kind == "release":
        body = shapes.ReleaseBody(chance.choice([*held, UNKNOWN]), chance.choice([OK, OK, OK, FAIL, SKIP]), 7)
        return tracker.release_task, worker, body
    if kind == "submit":
        task = new_task(project, f"new {chance.random()}")._replace(priority=chance.choice([0, 0, 2]))
        return tracker.submit_task, worker, task
    if kind == "several":
        return tracker.assign_tasks, worker, several.projects, chance.choice([1, 3])
    if kind == "pause":
        body = shapes.PausedBody(chance.random() < 0.3)
        return tracker.as_caller, tracker.pause_project, several.session, project, body
    if kind == "stranger":
        stranger = chance.choice([WorkerCredentials(worker.id, b"wrong"), *several.outsiders])
        return tracker.assign_tasks, stranger, [project]
    return tracker.assign_tasks, worker, [project]


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_of_calls_does_what_they_would_do_one_after_the_other(seed: int, verified: bool) -> None:
    together = Several(seed, verified)
    held = [
        task["id"]
        for one in together.crowd
        for task in together.do(tracker.assign_tasks, one, together.projects, 5).tasks
    ]
    calls = [any_call(together, held) for _ in range(60)]
    apart = together.copy()
    done = commit(together, *calls)
    assert Counter(map(str, calls)) == Counter(str((call.function, *call.args)) for call, _ in done)
    assert done == [pair for call, _ in done for pair in commit(apart, (call.function, *call.args))]
    assert together.contents() == apart.contents()
    check_counts(together.connection)


@pytest.mark.parametrize("nth", range(1, 6))  # more than there are statements: then it fails at its end
@pytest.mark.parametrize("function", [tracker.assign_tasks, tracker.release_task])
def test_what_fails_together_is_carried_out_one_by_one(function: Callable, nth: int) -> None:
    together = Several(2, verified=False)
    calls = [(tracker.assign_tasks, worker, [together.projects[1]]) for worker in together.crowd * 2]
    if function is tracker.release_task:
        held = [(call.args[0], task.id) for call, given in commit(together, *calls) for task in given.tasks]
        calls = [(tracker.release_task, worker, shapes.ReleaseBody(task, OK)) for worker, task in held]
    apart = together.copy()

    @writer.together(sabotaged(function.together, nth))
    def failing(tx: tracker.Tx, *args: Any) -> Any:
        return function(tx, *args)

    done = [answer for _, answer in commit(together, *[(failing, *args) for _, *args in calls])]
    assert done == [answer for call in calls for _, answer in commit(apart, call)]
    assert together.contents() == apart.contents()
    check_counts(together.connection)


def test_tasks_that_are_assigned_in_one_batch_are_looked_for_a_few_times_only() -> None:
    one = Jobs()
    for number in range(40):
        one.submit(f"recipe {number}")
    statements: list[str] = []
    one.connection.set_trace_callback(statements.append)
    answers = commit(one, *[(tracker.assign_tasks, one.worker, [one.project])] * 32)
    assert [answer.tasks[0].recipe for _, answer in answers] == [f"recipe {number}" for number in range(32)]
    assert sum("ORDER BY priority DESC" in statement for statement in statements) == 1
    assert sum("FROM asked" in statement for statement in statements) == 1
