"""A project that is deleted is not there for anybody, at once, and nothing of it is left in the end."""

from __future__ import annotations

import sqlite3

import httpx
import pytest
from conftest import Manager, Site, Worker, client, wait_until
from place import OPERATIONS, Jobs, Memory, Place, call, check_counts, discard_bulk_submit
from test_budgets import check_budgets, distrust
from test_waiting import Waiting, settle

import deletion
import tracker
from tracker import ALL_ROLES, EDIT, READ, shapes

# Rows that may name a project that is gone: who began an operation looks at it, and history goes by its age.
KEPT = {"operation", "assignment"}
# Rows of what is gone, in tables that do not say of which project they are.
ORPHANS = {
    "verification": "task NOT IN (SELECT id FROM task)",
    "verifier": "verifier_set NOT IN (SELECT id FROM verifier_set)",
    "bulk_piece": "operation NOT IN (SELECT id FROM operation)",
    "job_line": "job NOT IN (SELECT id FROM job)",
    "workflow_edge": "workflow NOT IN (SELECT id FROM workflow)",
    "theeye_login": "agent NOT IN (SELECT id FROM theeye_agent)",
    "testflinger_tag": "job NOT IN (SELECT job FROM testflinger_job)",
}


def tables_of_projects(connection: sqlite3.Connection) -> list[str]:
    """The tables whose rows say of which project they are."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    columns = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables}
    return [table for table in tables if "project" in columns[table]]


def rows(connection: sqlite3.Connection, condition: str, *values: int) -> dict[str, int]:
    """How many rows there are of some project, or of others, by table."""
    counts = {
        table: connection.execute(f"SELECT COUNT(*) FROM {table} WHERE project {condition}", values).fetchone()[0]
        for table in tables_of_projects(connection)
    }
    return {table: count for table, count in counts.items() if count}


def check_gone(connection: sqlite3.Connection, *projects: int) -> None:
    """Nothing of these projects is left."""
    for project in projects:
        assert rows(connection, "= ?", project).keys() <= KEPT
        assert (
            connection.execute("SELECT 1 FROM project WHERE id = ? OR chain = ?", (project, project)).fetchall() == []
        )
    for table, condition in ORPHANS.items():
        assert connection.execute(f"SELECT * FROM {table} WHERE {condition}").fetchall() == [], table
    check_counts(connection)
    check_budgets(connection)


def begin(memory: Memory, session: bytes, project: int) -> int:
    return memory.do(tracker.begin_deletion, session, project)


def finish(memory: Memory, operation: int) -> int:
    """Carries it out. How many tasks were deleted."""
    while (affected := memory.do(tracker.step_operation, operation)) is None:
        pass
    return affected


@pytest.fixture(params=[True, False], ids=["trusted", "not trusted"])
def memory(request: pytest.FixtureRequest) -> Memory:
    memory = Memory()
    memory.place = memory.furnish()
    if not request.param:
        distrust(memory)
    return memory


def end_others(memory: Memory) -> None:
    """Carries out the other operations, and gives up the uploads that were not accepted."""
    for operation, accepted in memory.values("SELECT id, accepted FROM operation WHERE finished IS NULL"):
        if accepted:
            finish(memory, operation)
        else:
            memory.do(discard_bulk_submit, operation)


# ── Everything goes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_left_of_a_project_and_nothing_of_others_goes(memory: Memory) -> None:
    place: Place = memory.place
    others = rows(memory.connection, "NOT IN (?, ?)", place.first, place.third)
    for project in place.first, place.third:
        finish(memory, begin(memory, place.session, project))
    end_others(memory)
    check_gone(memory.connection, place.first, place.third)
    assert rows(memory.connection, "NOT IN (?, ?)", place.first, place.third) == others


def test_it_costs_steps_that_are_bounded(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    place: Place = memory.place
    memory.connection.executemany(
        "INSERT INTO kept_hash VALUES (?, ?)", [(place.first, number) for number in range(1000, 3000)]
    )
    if memory.values("SELECT 1 FROM project WHERE NOT trusted"):
        distrust(memory)
    edges = [(place.workflow, number, "failure", place.template) for number in range(3000)]
    memory.connection.executemany("INSERT INTO workflow_edge VALUES (?, ?, ?, ?)", edges)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    for project in place.first, place.third:
        operation, changes = begin(memory, place.session, project), []
        while True:
            before = memory.connection.total_changes
            done = memory.do(tracker.step_operation, operation)
            changes.append(memory.connection.total_changes - before)
            if done is not None:
                break
        assert max(changes) <= 20 * tracker.STEP_TASKS
    end_others(memory)
    check_gone(memory.connection, place.first, place.third)


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_is_done_meanwhile_leaves_nothing(memory: Memory, name: str) -> None:
    place: Place = memory.place
    function, args = OPERATIONS[name](place)
    deleted = [begin(memory, place.session, project) for project in (place.first, place.third)]
    with memory.connection:
        memory.connection.execute("SAVEPOINT before")
        tx = tracker.Tx(memory.connection, memory.clock, memory.settings)
        try:
            call(tx, function, *args)
            tx.counts.write(tx)
        except (tracker.TrackerError, sqlite3.IntegrityError, TypeError):
            memory.connection.execute("ROLLBACK TO before")
    for operation in deleted:
        finish(memory, operation)
    end_others(memory)
    check_gone(memory.connection, place.first, place.third)


def test_the_budget_is_free_only_when_all_is_gone() -> None:
    queue = Jobs()
    distrust(queue)
    queue.submit("x" * 5000)
    used = "SELECT used FROM budget WHERE name = 'projects'"
    before = queue.values(used)
    operation = begin(queue, queue.session, queue.project)
    assert queue.values(used) == before
    assert finish(queue, operation) == 1
    assert queue.values(used) == [(0,)]


def test_a_run_in_another_project_ends_whose_step_was_here() -> None:
    queue = Jobs()
    other = queue.create_project("other")
    here, there = queue.create_template("here"), queue.create_template("there", other)
    run = queue.start(queue.create_workflow(there, (there, "success", here)))
    finish(queue, begin(queue, queue.session, other))
    assert queue.state(run) == "cancelled"
    check_gone(queue.connection, other)


def test_a_run_fails_whose_next_step_would_have_been_there() -> None:
    queue = Jobs()
    other = queue.create_project("other")
    here, there = queue.create_template("here"), queue.create_template("there", other)
    run = queue.start(queue.create_workflow(here, (here, "success", there)))
    begin(queue, queue.session, other)
    queue.run()
    assert queue.state(run) == "failed"


def test_a_bulk_submit_that_was_going_on_ends() -> None:
    queue = Jobs()
    operation = queue.do(tracker.begin_bulk_submit, queue.worker, queue.project)
    pieces = [tracker.encode([tracker.NewTask(queue.project, "r", 0, 0, 0, 1, None)] * 3)] * 40
    queue.do(tracker.add_bulk_pieces, operation, 1, pieces)
    queue.do(tracker.accept_bulk_submit, queue.worker, operation, 120)
    deleted = begin(queue, queue.session, queue.project)
    finish(queue, deleted)
    finish(queue, operation)
    check_gone(queue.connection, queue.project)


# ── Through the doors ─────────────────────────────────────────────────────────────────────────────────────────────────


def delete(manager: Manager, project: int) -> httpx.Response:
    return manager.post(f"/project/delete/{project}")


def test_it_is_gone_for_everybody_and_its_name_is_free(site: Site) -> None:
    project = site.admin.create_project("unwanted", public=True)
    chained = site.admin.create_project("chained", chain=project)
    worker = site.create_worker(project)
    for _ in range(3):
        worker.submit(project)
    task = worker.assigned(project)["id"]
    worker.log("error", "a line of it")
    answer = delete(site.admin, project)
    assert (answer.status_code, answer.json()["content"]) == (200, {"affected_tasks": 3})
    assert worker.submit(project).status_code == worker.http.get(f"/task/get/{project}").status_code == 404
    released = worker.http.post("/task/release", json={"task_id": task, "result": 0})
    assert (released.status_code, released.json()["content"]["updated"]) == (200, False)
    assert site.guest.get(f"/project/get/{project}").status_code == 404
    assert site.admin.get(f"/ui/projects/{project}").status_code == 404
    assert delete(site.admin, project).status_code == 404
    assert site.guest.get(f"/project/get/{chained}").json()["content"]["project"]["chain"] == 0
    assert site.admin.create_project("unwanted") > project
    assert site.read("SELECT COUNT(*) FROM log_entry") == [(0,)]


def test_a_worker_that_holds_a_task_of_it_is_told_as_of_a_task_that_is_gone() -> None:
    queue = Jobs()
    for _ in range(2):
        queue.submit()
    job = queue.trigger(queue.create_template())
    first, second, third = (queue.assign() for _ in range(3))
    begin(queue, queue.session, queue.project)
    assert not queue.release(first) and not queue.release(first)
    bodies = [shapes.ReleaseBody(task, 0) for task in (second, third)]
    assert queue.do(tracker.release_tasks, queue.worker, bodies) == [False, False]
    assert queue.log(third, "a line") == {"held": False, "stored": 0}
    assert queue.refusal(tracker.get_job, queue.session, job).startswith("not_found")
    assert queue.values("SELECT closed_task_count FROM worker") == [(0,)]


def test_who_waits_for_a_task_of_it_learns_that_at_once() -> None:
    queue = Jobs()
    begin(queue, queue.session, queue.project)
    assert queue.announced[queue.project] > 10**6


def test_a_request_that_waits_for_a_task_of_it_is_told_that_there_is_no_such_project(site: Site) -> None:
    project = site.admin.create_project()
    waiting = Waiting(site.create_worker(project), project)
    settle()
    delete(site.admin, project)
    waiting.task()
    assert waiting.answer["code"] == "not_found"


def may(site: Site, manager: Manager, project: int) -> bool:
    status = delete(manager, project).status_code
    assert status in (200, 403, 404)
    return status == 200


def test_who_may_delete_a_project(site: Site) -> None:
    owner, friend = site.create_manager("owner"), site.create_manager("friend")
    for trusted, role, other_may in (
        (False, ALL_ROLES, True),
        (True, ALL_ROLES, False),
        (False, ALL_ROLES - READ, False),
    ):
        project = owner.create_project()
        if trusted:
            site.admin.post(f"/project/trust/{project}")
        owner.set_role(project, friend, role)
        assert may(site, friend, project) == other_may
        assert other_may or may(site, owner, project)
    project = site.admin.create_project()
    site.admin.set_role(project, owner, ALL_ROLES)
    assert not may(site, owner, project)
    assert httpx.post(f"{site.url}/project/delete/{project}").status_code == 401
    hidden = site.admin.create_project(hidden=True)
    assert delete(owner, hidden).status_code == 404
    site.admin.set_role(owner.create_project(), owner, EDIT)


def test_who_has_begun_it_sees_what_became_of_it(site: Site) -> None:
    owner, other = site.create_manager("owner"), site.create_manager("other")
    project = owner.create_project()
    delete(owner, project)
    ((operation,),) = site.read("SELECT id FROM operation")
    shown = owner.get(f"/operation/{operation}").json()["content"]["operation"]
    assert (shown["kind"], shown["state"]) == ("delete_project", "finished")
    assert other.get(f"/operation/{operation}").status_code == 404


def test_of_those_that_have_ended_a_managers_last_ones_are_remembered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "MOST_REMEMBERED", 2)
    owner, other = site.create_manager(), site.create_manager()
    delete(other, other.create_project())
    for _ in range(5):
        delete(owner, owner.create_project())
        wait_until(lambda: not site.read("SELECT 1 FROM operation WHERE finished IS NULL"))
    begun = [manager for (manager,) in site.read("SELECT manager FROM operation ORDER BY id")]
    assert begun == [other.id] + [owner.id] * 3


def test_a_deleted_manager_takes_along_what_was_its_own_alone(site: Site) -> None:
    owner, friend = site.create_manager("owner"), site.create_manager("friend")
    own, shared, trusted = (owner.create_project() for _ in range(3))
    owner.set_role(shared, friend, READ)
    site.admin.post(f"/project/trust/{trusted}")
    worker = owner.grant(Worker(site.url), own)
    worker.submit(own)
    assert site.admin.post(f"/manager/delete/{owner.id}").status_code == 204
    wait_until(lambda: site.read("SELECT id FROM task") == [])
    assert {one for (one,) in site.read("SELECT id FROM project")} == {shared, trusted}


def test_the_page_wants_the_name_typed(site: Site) -> None:
    owner, reader = site.create_manager("owner"), site.create_manager("reader")
    project = owner.create_project("unwanted")
    site.admin.set_role(project, reader, READ | EDIT)
    path = f"/ui/projects/{project}/edit"
    assert "Delete the project" in owner.http.get(path).text
    assert "Delete the project" not in reader.http.get(path).text

    def act(name: str) -> httpx.Response:
        token = owner.http.get(path).text.partition('name="token" value="')[2].partition('"')[0]
        data = {"token": token, "confirm": name}
        return owner.http.post(f"{path}/delete", data=data, headers={"Accept": "text/html"}, follow_redirects=True)

    assert "not the project&#39;s name" in act("wanted").text
    assert "is deleted" in act("unwanted").text
    assert site.read("SELECT 1 FROM project WHERE id = ?", project) == []


def test_the_page_of_the_administration_deletes_a_manager_with_what_was_its_own(site: Site) -> None:
    owner = site.create_manager("owner")
    project = owner.create_project("own project")
    token = site.admin.http.get("/ui/admin").text.partition('name="token" value="')[2].partition('"')[0]
    form = {"data": {"token": token}, "follow_redirects": True}
    question = site.admin.http.post(f"/ui/admin/delete/{owner.id}", **form)
    assert "own project" in question.text
    assert site.read("SELECT 1 FROM project WHERE id = ?", project) == [(1,)]
    form["data"]["confirmed"] = "yes"
    answer = site.admin.http.post(f"/ui/admin/delete/{owner.id}", **form)
    assert "The account is deleted." in answer.text
    assert site.read("SELECT 1 FROM project WHERE id = ?", project) == []


@pytest.mark.skipif("testflinger" not in tracker.installed_dialects(), reason="needs the dialect")
def test_a_queue_of_testflinger_goes_with_its_jobs_and_files(site: Site) -> None:
    with client(site.url) as http:
        job = http.post("/v1/job", json={"job_queue": "machines", "tags": ["a"]}).json()["job_id"]
        waiting = http.post("/v1/job", json={"job_queue": "machines"}).json()["job_id"]
        assert http.get("/v1/job", params={"queue": "machines"}).json()["job_id"] == job
        http.post("/v1/agents/images", json={"machines": {"core": "url: http://image"}})
        http.post(f"/v1/result/{job}/output", content=b"some output")
        http.post(f"/v1/result/{job}/artifact", files={"file": b"x" * 5000})
        ((project,),) = site.read("SELECT project FROM testflinger_queue")
        assert delete(site.admin, project).status_code == 200
        for path in f"/v1/job/{job}", f"/v1/result/{waiting}":
            assert http.get(path).status_code in (204, 404)
        assert http.get("/v1/job", params={"queue": "machines"}).status_code == 204
        assert http.post("/v1/job", json={"job_queue": "machines"}).status_code == 200  # another one of this name
    assert site.read("SELECT COUNT(*) FROM testflinger_queue") == [(1,)]
    assert site.read("SELECT COUNT(*) FROM testflinger_fragment") == site.read("SELECT COUNT(*) FROM testflinger_image")
    assert site.read("SELECT 1 FROM testflinger_file WHERE stored > 0") == []  # it goes when old files are looked for


@pytest.mark.skipif("theeye" not in tracker.installed_dialects(), reason="needs the dialect")
def test_the_agents_of_theeye_go_with_their_project() -> None:
    from dialects import theeye

    queue = Jobs()
    queue.do(theeye.create_agent, queue.session, theeye.AgentForm(project=queue.project, alias="agent"))
    ((agent,),) = queue.values("SELECT id FROM theeye_agent")
    queue.connection.execute("INSERT INTO theeye_login VALUES (x'00', ?, 99)", (agent,))
    queue.connection.execute("INSERT INTO theeye_host VALUES (?, 'h', '1', '{}', 1, 1)", (queue.project,))
    finish(queue, begin(queue, queue.session, queue.project))
    check_gone(queue.connection, queue.project)


@pytest.mark.parametrize("table", [table for table, _, _ in deletion.REST])
def test_every_table_is_there(table: str) -> None:
    assert table in tables_of_projects(Memory().connection)
