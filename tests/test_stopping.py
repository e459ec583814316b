"""An operation on many tasks can be stopped while it goes on; what was promised as a whole cannot."""

import threading

import pytest
from conftest import Site
from test_pages import Tab

import pages
import tracker


def test_an_action_that_is_going_on_is_stopped_and_what_it_has_done_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = site.admin.create_project()
    tasks = [{"project": project, "recipe": f"task {number}"} for number in range(500)]
    assert site.create_worker(project).bulk_submit(tasks).status_code == 200
    held = threading.Event()
    step = tracker.step_operation

    def one_piece(tx: tracker.Tx, operation: int, *last: int) -> int | None:
        if held.is_set() and tx.one("SELECT finished FROM operation WHERE id = ?", (operation,))[0] is None:
            return None
        held.set()
        monkeypatch.setattr(type(tx), "time_is_up", lambda tx: True)
        return step(tx, operation, *last)

    monkeypatch.setattr(tracker, "step_operation", one_piece)
    monkeypatch.setattr(pages, "OPERATION_PATIENCE", 0.1)
    tab = Tab(site.admin.http)
    fields = {"action": "delete", "which": "all", "confirmed": "yes"}
    page = tab.act(f"/ui/projects/{project}/tasks", fields)
    assert page.answer.url.path.startswith("/ui/operations/")
    stopped = tab.send(page.form("/stop"))
    assert stopped.notice == "Stopped. What was done stays." and "Stop" not in stopped.buttons
    left = site.admin.project(project)["waiting_task_count"]
    assert 0 < left < 500
    assert tab.act(f"{page.answer.url.path}/stop").status == 409


def test_a_submit_that_was_accepted_is_not_stopped(site: Site) -> None:
    project = site.admin.create_project()
    tab = Tab(site.admin.http)
    page = tab.act(f"/ui/projects/{project}/submit/lines", {"lines": "one\ntwo"})
    assert tab.act(f"{page.answer.url.path}/stop").status == 409
