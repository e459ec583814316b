"""The life of a task: submitted, assigned, released."""

from conftest import Site, wait_until

import tracker


def test_an_assigned_task_carries_its_whole_project(site: Site) -> None:
    project = site.admin.create_project("crawl", clone_url="http://example.org/x", version="1.0", assign_rate=2)
    worker = site.create_worker(project)
    worker.submit(project, "test recipe", max_retries=3, priority=1, max_assign_time=3600)
    task = worker.assigned(project)
    assert task["recipe"] == "test recipe"
    assert task["assignee"] == worker.id
    assert task["project"]["name"] == "crawl"
    assert task["project"]["assign_rate"] == 2


def test_a_task_held_past_its_deadline_goes_to_another_worker(site: Site) -> None:
    project = site.admin.create_project(public=True)
    slow, quick = site.create_worker(project), site.create_worker(project)
    slow.submit(project, max_assign_time=60)
    held = slow.assigned(project)
    assert quick.assigned(project) is None
    site.clock.pass_time(61)
    assert wait_until(lambda: quick.assigned(project))["id"] == held["id"]
    assert not slow.released(held["id"])
    assert quick.released(held["id"], tracker.OK)
    assert site.admin.counts(project) == {"closed": 1}
