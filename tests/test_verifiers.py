"""Who is assigned a task that others have verified: as if every ready task were looked at, whatever is kept for it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from place import Queue

import tracker
from tracker import FAIL, OK, SKIP, WorkerCredentials

CROWD = 9
GAPS = (1, 1, 1, 50, 3000, 200_000, 2**20)  # between ids: so that heads are neighbours on each level, and are not


class Crowd(Queue):
    """One project and many workers, whose every assignment is compared with what a look at all tasks would give."""

    def __init__(self) -> None:
        super().__init__(default_max_assign_time=100)
        self.crowd = [self.create_worker() for _ in range(CROWD)]
        self.held: dict[int, WorkerCredentials] = {}
        self.large = 0  # assignments of tasks that three or more had verified

    def submit_after(self, gap: int, **fields: Any) -> int:
        """Submits a task, when so many ids have been used up since the last one."""
        self.connection.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'task'", (gap - 1,))
        return self.submit(max_retries=2, **fields)

    def verifiers(self, task: int) -> set[int]:
        return {worker for (worker,) in self.values("SELECT worker FROM verification WHERE task = ?", task)}

    def best(self, worker: WorkerCredentials) -> int | None:
        """Highest priority, then oldest, of those that the worker has not verified."""
        ready = self.values("SELECT -priority, id FROM task WHERE status = 1 AND assignee IS NULL")
        return next((task for _, task in sorted(ready) if worker.id not in self.verifiers(task)), None)

    def assign_best(self, worker: WorkerCredentials) -> None:
        best = self.best(worker)
        tasks = self.do(tracker.assign_tasks, worker, [self.project]).tasks
        assert [task["id"] for task in tasks] == ([] if best is None else [best])
        if best is not None:
            self.held[best] = worker
            self.large += len(self.verifiers(best)) > 2

    def check(self) -> None:
        """What is kept about large sets is what their heads, one by one, give."""
        places = {
            (32767 - priority) * 2**47 + task: set(map(int, members.split(",")))
            for members, priority, task in self.values(
                "SELECT members, head_priority, head_task FROM verifier_set WHERE head_task IS NOT NULL"
            )
            if members.count(",") > 1
        }
        expected: dict[tuple[int, int], set[int]] = {}
        for (place, members), level in itertools.product(places.items(), range(4)):
            name = level, place // 64**level
            expected[name] = expected.get(name, members) & members
        rows = self.values("SELECT level, block, common FROM verifier_block WHERE project = ?", self.project)
        kept = {(level, block): set(map(int, filter(None, common.split(",")))) for level, block, common in rows}
        assert kept == expected


def live(queue: Crowd, chance: random.Random) -> None:
    """Something happens to the queue."""
    worker, task = chance.choice(queue.crowd), chance.choice([*queue.held, 0])
    what = chance.choices(
        ["submit", "assign", "release", "expire", "set_priority", "requeue", "retry", "delete", "hard_reset"],
        [20, 60, 60, 2, 3, 2, 3, 1, 0.1],
    )[0]
    if what == "submit":
        count = chance.choice([1, 2, 3, 4, 4, 5, 6])
        queue.submit_after(chance.choice(GAPS), verification_count=count, priority=chance.choice([-7, 0, 0, 0, 2]))
    elif what == "assign":
        queue.assign_best(worker)
    elif what == "release" and task:
        result = chance.choices([OK, FAIL, SKIP], [8, 1, 1])[0]
        queue.release(task, result, queue.held.pop(task), chance.choice([7, 7, 7, 7, 8]))
    elif what == "expire":
        queue.clock.now += 60
        while queue.do(tracker.expire_tasks):
            pass
    elif what == "hard_reset":
        queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, "hard_reset"))
    elif what in tracker.ACTIONS:
        tasks = [row[0] for row in queue.values("SELECT id FROM task ORDER BY id")]
        queue.act(what, chance.sample(tasks, min(len(tasks), 3)), chance.choice([-7, 0, 2, 32767, -32768]))
    assigned = {row[0] for row in queue.values("SELECT id FROM task WHERE assignee IS NOT NULL")}
    queue.held = {task: holder for task, holder in queue.held.items() if task in assigned}


@pytest.mark.parametrize("seed", range(4))
def test_whoever_asks_is_assigned_the_first_task_that_it_has_not_verified(seed: int) -> None:
    queue, chance = Crowd(), random.Random(seed)
    for step in range(1000):
        live(queue, chance)
        if step % 20 == 0:
            queue.check()
    assert queue.large > 20
    queue.finish(queue.do(tracker.begin_reset, queue.session, queue.project, "hard_reset"))
    for table in ("verifier_set", "verifier", "verifier_block"):
        assert queue.values(f"SELECT * FROM {table}") == []


def test_who_does_nothing_but_jobs_is_assigned_no_task_that_many_have_verified() -> None:
    queue = Crowd()
    task = queue.submit(verification_count=4)
    for worker in queue.crowd[:3]:
        assert queue.assign(worker) == task
        queue.release(task, OK, worker)
    assert not queue.do(tracker.assign_tasks, queue.worker, [queue.project], 1, True).tasks
    assert queue.assign() == task


def test_a_set_whose_members_have_ids_that_contain_one_another_is_told_from_others() -> None:
    queue = Crowd()
    queue.crowd += [queue.create_worker() for _ in range(30)]
    by_id = {worker.id: worker for worker in (queue.worker, *queue.crowd)}
    task = queue.submit(verification_count=4)
    for number in (11, 12, 21):
        assert queue.assign(by_id[number]) == task
        queue.release(task, OK, by_id[number])
    for number in (1, 2, 11, 12, 21):
        queue.assign_best(by_id[number])
        if number < 10:
            queue.release(task, SKIP, by_id[number])
