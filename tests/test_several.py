"""Several tasks in one call: as if they were assigned, or released, one after the other."""

from __future__ import annotations

import copy
import random
import sqlite3

import msgspec
import pytest
from place import Jobs, check_counts

import shapes
import tracker
from tracker import FAIL, OK, SKIP, WorkerCredentials

SEEDS = range(30)
UNKNOWN = 10**6  # no task has this number


class Several(Jobs):
    """Two projects with tasks of all kinds in a random order, and three workers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        fields = {"priority": chance.choice([1, 2]), "keep_hashes": seed % 2 == 0}
        self.projects = [self.project, self.create_project("second", **fields)]
        self.crowd = [self.worker, self.create_worker(), self.create_worker()]
        template = self.create_template(project=self.projects[1]) if seed % 3 else None
        if seed % 5 == 1:
            self.do(tracker.update_project, self.session, self.project, shapes.ProjectBody(chain=self.projects[1]))
        for number in range(40):
            if template and chance.random() < 0.1:
                self.trigger(template)
            count, project = chance.choice([0, 1, 1, 2, 3]), chance.choice(self.projects)
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
        other.connection = sqlite3.connect(":memory:", isolation_level=None)
        other.connection.row_factory = sqlite3.Row
        self.connection.backup(other.connection)
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
    apart = together.copy()
    updated = together.do(tracker.release_tasks, worker, releases)
    assert updated == [release_alone(apart, worker, release) for release in releases]
    assert together.contents() == apart.contents()
    check_counts(together.connection)
