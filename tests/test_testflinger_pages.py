"""The manager pages of the Testflinger dialect, as a browser without scripts sees them.

What holds for every page of the manager UI (headers, tokens, hostile texts, …) is in test_pages.py; what needs a
browser, in test_browser.py.
"""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import Site
from test_pages import Page, Tab, pages_of
from test_query_plans import LONG, SHORT, queue_with
from testflinger_doubles import AGENTS, Agent, HClient, Phase, SAgent, SClient, create_client, pack, unpack

import pages
import tracker
from dialects.testflinger import pages as testflinger_pages
from tracker import ALL_ROLES, EDIT, READ

JOB = {"job_queue": "rack", "name": "boot it", "provision_data": {"url": "noble"}, "test_data": {"test_cmds": "uptime"}}
PHASES = {
    "provision": Phase(output=("flashing …\n", "done\n"), serial=("login:\n",)),
    "test": Phase(3, output=("up 3 days\n",)),
}


class Lab:
    """A tracker with a queue of Testflinger, and an admin who looks at it."""

    def __init__(self, site: Site):
        self.site, self.admin = site, Tab(site.admin.http)
        self.client = SClient(site.url)

    def agent(self, name: str = "rack-1", *queues: str, generation: str = "H") -> Agent:
        return AGENTS[generation](self.site.url, name, *(queues or ("rack",))).register()

    def submit(self, **fields: Any) -> str:
        return self.client.submit({**JOB, **fields})

    def queue(self, name: str = "rack") -> int:
        [(project,)] = self.site.read("SELECT id FROM project WHERE name = ?", name)
        return project

    def manager(self, role: int, queue: str = "rack") -> Tab:
        """A manager with these roles in a queue."""
        manager = self.site.create_manager()
        assert self.site.admin.set_role(self.queue(queue), manager, role).status_code == 200
        return Tab(manager.http)

    def job(self, uuid: str, **query: Any) -> Page:
        page = self.admin.open(f"/ui/testflinger/jobs/{uuid}", **query)
        assert page.status == 200, page.text
        return page

    def file(self, uuid: str, name: str, tab: Tab | None = None, **query: Any) -> httpx.Response:
        return (tab or self.admin).http.get(f"/ui/testflinger/jobs/{uuid}/{name}", params=query)


@pytest.fixture
def lab(site: Site) -> Lab:
    return Lab(site)


def rows_of(page: Page, id: str) -> list[list[str]]:
    """The texts of a table's rows."""
    rows = page.tree.xpath(f"//*[@id='{id}']//tbody/tr")
    return [[" ".join(cell.text_content().split()) for cell in row] for row in rows]


def output_of(page: Page) -> str:
    return "".join(page.tree.xpath("//*[@id='job-output']/pre/*[starts-with(@id, 'piece-')]/text()"))


def texts_of(page: Page) -> dict[str, str]:
    """The pieces of output on a job's page, by id."""
    return {one.get("id"): one.text_content() for one in page.tree.xpath("//pre/*[starts-with(@id, 'piece-')]")}


# ── Who may look ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_queues_and_jobs_are_for_those_who_may_read_the_queue(lab: Lab) -> None:
    uuid = lab.submit()
    paths = [f"/ui/testflinger/queues/{lab.queue()}", f"/ui/testflinger/jobs/{uuid}"]
    paths.append(f"/ui/testflinger/jobs/{uuid}/output.txt")
    reader, other = lab.manager(READ), lab.manager(ALL_ROLES ^ READ)
    for path in paths:
        assert reader.http.get(path).status_code == 200, path
        assert other.http.get(path).status_code == 403, path
        assert lab.site.guest.get(path).status_code == 303, path
    assert rows_of(reader.open("/ui/testflinger/queues"), "queues")[0][0] == "rack"
    assert "None that you may see" in other.open("/ui/testflinger/queues").text


def test_a_hidden_queue_and_its_jobs_do_not_exist_for_others(lab: Lab) -> None:
    uuid = lab.submit()
    lab.agent()
    lab.site.admin.update_project(lab.queue(), hidden=True)
    other = Tab(lab.site.create_manager().http)
    nowhere = "00000000-0000-0000-0000-000000000000"
    for path in ("/ui/testflinger/jobs/{}", "/ui/testflinger/jobs/{}/output.txt", "/ui/testflinger/jobs/{}/artifact"):
        hidden, nothing = other.open(path.format(uuid)), other.open(path.format(nowhere))
        assert (hidden.status, hidden.notice.replace(uuid, nowhere)) == (404, nothing.notice)
    assert other.open(f"/ui/testflinger/queues/{lab.queue()}").status == 404
    assert other.open("/ui/testflinger/agents/1").notice == "No agent 1"


def test_agents_are_for_admins_and_for_those_who_may_read_one_of_their_queues(lab: Lab) -> None:
    lab.client.submit({"job_queue": "rack"})
    lab.client.submit({"job_queue": "shelf"})
    lab.agent("rack-1", "rack", "shelf", "not there yet")
    lab.agent("shelf-1", "shelf")
    names = {row[0] for row in rows_of(lab.admin.open("/ui/testflinger/agents"), "agents")}
    assert names == {"rack-1", "shelf-1"}
    reader = lab.manager(READ)
    [row] = rows_of(reader.open("/ui/testflinger/agents"), "agents")
    assert (
        row[0] == "rack-1" and "rack and 2 others" in row and "shelf" not in reader.open("/ui/testflinger/agents").html
    )
    assert [reader.open(f"/ui/testflinger/agents/{agent}").status for agent in (1, 2)] == [200, 404]
    assert "shelf" not in reader.open("/ui/testflinger/agents/1").html
    assert lab.manager(ALL_ROLES ^ READ).open("/ui/testflinger/agents/1").status == 404


def test_an_agent_s_jobs_are_linked_for_those_who_may_read_them(lab: Lab) -> None:
    agent = lab.agent("rack-1", "rack", "shelf")
    lab.submit(job_queue="rack")
    uuid = lab.submit(job_queue="shelf")
    shelf, rack = lab.manager(READ, "shelf"), lab.manager(READ)
    agent.work()
    assert agent.work() == uuid
    agent.register(job_id=uuid)
    link = f"/ui/testflinger/jobs/{uuid}"
    for path in ("/ui/testflinger/agents", "/ui/testflinger/agents/1"):
        assert link in shelf.open(path).links and link not in rack.open(path).links, path


def test_what_a_shared_agent_does_for_another_queue_is_not_told(lab: Lab) -> None:
    agent = lab.agent("rack-1", "rack", "shelf")
    own, other = lab.submit(job_queue="rack"), lab.submit(job_queue="shelf")
    gone = "c0ffee42-0000-4000-8000-000000000000"
    for job in (own, other, gone):
        path = "/v1/agents/provision_logs/rack-1"
        body = {"job_id": job, "exit_code": 1, "detail": f"detail of {job[:8]}"}
        assert agent.http.post(path, json=body).status_code == 200
    agent.log(f"Starting {own}", f"Starting {other}", "\x1b[1mbold\x9b0m\x85")
    agent.register(job_id=other, comment=f"busy with {other}")
    rack = lab.manager(READ)
    for path in ("/ui/testflinger/agents", "/ui/testflinger/agents/1"):
        page = rack.open(path)
        assert other not in page.html and gone not in page.html and "a job of another queue" in page.text
    assert other[:8] not in page.html and gone[:8] not in page.html
    assert f"detail of {own[:8]}" in page.text and f"Starting {own}" in page.text
    assert [row[0] for row in rows_of(page, "agent-provisions")].count(own) == 1
    assert page.tree.xpath("string(//*[@id='agent-log']/pre)").endswith("bold\n")
    seen = lab.admin.open("/ui/testflinger/agents/1")
    assert {f"Starting {other}", f"detail of {gone[:8]}", f"busy with {other}"} <= set(
        re.findall(r"Starting \S{36}|detail of \w{8}|busy with \S{36}", seen.text)
    )


def test_the_pages_of_clients_are_for_admins(lab: Lab) -> None:
    create_client(lab.site, "alice")
    lab.submit()
    reader = lab.manager(ALL_ROLES)
    for path in ("/ui/testflinger/clients", "/ui/testflinger/clients/alice"):
        assert reader.open(path).status == 403
    for path in ("/clients", "/clients/alice", "/clients/alice/rotate", f"/queues/{lab.queue()}/restrict"):
        answer = reader.post(f"/ui/testflinger{path}", {"client_id": "bob", "restricted": "true"})
        assert answer.status_code == 403, path
    assert "/ui/testflinger/clients" not in reader.open("/ui/testflinger/queues").links


def test_only_who_may_edit_is_offered_to_cancel(lab: Lab) -> None:
    uuid = lab.submit()
    assert "Cancel" not in lab.manager(READ).open(f"/ui/testflinger/jobs/{uuid}").buttons
    editor = lab.manager(READ | EDIT)
    page = editor.send(editor.open(f"/ui/testflinger/jobs/{uuid}").form("/cancel"))
    assert page.notice == "The job is cancelled." and page.answer.url.path == f"/ui/testflinger/jobs/{uuid}"
    assert lab.client.status(uuid) == "cancelled"


# ── Queues ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_of_queues_shows_what_waits_runs_and_listens_and_how_long_jobs_waited(lab: Lab) -> None:
    agent = lab.agent()
    agent.advertise(rack="The rack in the cellar")
    for passed in (60, 120, 3600):
        lab.submit()
        lab.site.clock.pass_time(passed)
        assert agent.check_jobs()
    lab.submit()
    [row] = rows_of(lab.admin.open("/ui/testflinger/queues"), "queues")
    assert row[0] == "rackThe rack in the cellar" and row[1:4] == ["1", "3", "1"]
    assert row[6] == "2 min" and row[9] == "all"


def test_queues_are_found_by_name_and_paged(lab: Lab) -> None:
    names = [f"queue-{number:03d}" for number in range(pages.PAGE_ROWS + 3)]
    lab.agent().advertise(**dict.fromkeys(names, ""), other="")
    listed = [
        row[0] for page in pages_of(lab.admin, "/ui/testflinger/queues?text=queue") for row in rows_of(page, "queues")
    ]
    assert listed == names


def test_waiting_jobs_stand_in_their_order_with_their_positions_on_every_page(lab: Lab) -> None:
    client = SClient(lab.site.url, create_client(lab.site, "alice", max_priority={"*": 9}))
    submitted = [client.submit({**JOB, "job_priority": number % 3}) for number in range(pages.PAGE_ROWS + 7)]
    jobs = [job for rest in (2, 1, 0) for job in submitted[rest::3]]
    rows = [
        row for page in pages_of(lab.admin, f"/ui/testflinger/queues/{lab.queue()}") for row in rows_of(page, "waiting")
    ]
    assert [row[1] for row in rows] == [str(number) for number in range(len(jobs))]
    assert [row[0].removeprefix("boot it ") for row in rows] == jobs
    assert rows[0][2:4] == ["2", "alice"]
    assert [client.position(job) for job in (jobs[0], jobs[-1])] == [0, len(jobs) - 1]


def test_jobs_that_wait_for_attachments_are_counted_up_to_a_hundred_and_the_newest_linked(lab: Lab) -> None:
    body = {"test_data": {"attachments": [{"local": "a"}]}}
    lab.client.post_job({**JOB, "job_queue": "shelf", **body})
    held = [lab.client.post_job({**JOB, **body}) for _ in range(testflinger_pages.MOST_HELD - 1)]
    page = lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}")
    assert page.tree.xpath("string(//*[@id='held'])").startswith("99 wait for their attachments")
    assert page.tree.xpath("//*[@id='held']/a/@href") == [f"/ui/testflinger/jobs/{job}" for job in held[:-6:-1]]
    lab.client.post_job({**JOB, **body})
    page = lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}")
    assert page.tree.xpath("string(//*[@id='held'])").startswith("100 or more wait for their attachments")


def test_a_job_s_id_leads_to_its_page(lab: Lab) -> None:
    uuid = lab.submit()
    [form] = lab.admin.open("/ui/testflinger/queues").tree.xpath("//form[.//input[@name='job']]/@action")
    page = lab.admin.open(form, job=f" {uuid.upper()} ")
    assert page.answer.url.path == f"/ui/testflinger/jobs/{uuid}"
    assert lab.admin.open("/ui/testflinger").answer.url.path == "/ui/testflinger/queues"
    assert lab.site.guest.get("/ui/testflinger").headers["location"].startswith("/ui/login?")


@pytest.mark.parametrize(
    ("typed", "status"), [("00000000-0000-0000-0000-000000000000", 404), ("17", 400), ("not mine", 404)]
)
def test_a_job_s_id_that_leads_nowhere_is_told_where_it_was_typed(lab: Lab, typed: str, status: int) -> None:
    uuid = lab.submit()
    lab.submit(job_queue="shelf")
    page = lab.manager(READ, "shelf").open("/ui/testflinger/queues", job=uuid if typed == "not mine" else typed)
    assert page.status == status and "job: " in page.notice, page.notice
    assert page.tree.xpath("//@aria-invalid/../@name") == ["job"]
    assert rows_of(page, "queues")[0][0] == "shelf" and not page.tree.xpath("//@data-live")


@pytest.mark.parametrize("after", ["5", "x:1", f"{'9' * 19}:1", "0:1:2"])
def test_a_place_in_the_queue_that_cannot_be_is_refused(lab: Lab, after: str) -> None:
    lab.submit()
    page = lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}", after=after)
    assert page.status == 400 and page.notice.startswith("Not done. after: there is no such place in the list")


def test_running_jobs_and_agents_stand_on_the_queue_s_page(lab: Lab) -> None:
    agent = lab.agent()
    uuid = lab.submit()
    run = agent.run(agent.check_jobs())
    next(run)
    page = lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}")
    [row] = rows_of(page, "running")
    assert row[0] == f"boot it {uuid}" and row[1:3] == ["setup", "rack-1"]
    [row] = rows_of(page, "agents")
    assert row[:3] == ["rack-1", "setup", "lab"]
    assert {f"/ui/testflinger/jobs/{uuid}", "/ui/testflinger/agents/1"} <= set(page.links)


def test_an_ordinary_project_is_no_queue(lab: Lab) -> None:
    project = lab.site.admin.create_project()
    page = lab.admin.open(f"/ui/testflinger/queues/{project}")
    assert page.status == 404 and "not a queue" in page.notice
    assert f"/ui/testflinger/queues/{project}" not in lab.admin.open(f"/ui/projects/{project}").links
    lab.submit()
    assert f"/ui/testflinger/queues/{lab.queue()}" in lab.admin.open(f"/ui/projects/{lab.queue()}").links


def test_an_admin_restricts_a_queue_and_opens_it_again(lab: Lab) -> None:
    lab.submit()
    path = f"/ui/testflinger/queues/{lab.queue()}"
    page = lab.admin.send(lab.admin.open(path).form("/restrict"))
    assert page.notice.startswith("Restricted:") and page.answer.url.path == path
    assert rows_of(lab.admin.open("/ui/testflinger/queues"), "queues")[0][9] == "restricted"
    assert lab.client.http.post("/v1/job", json=JOB).status_code == 401
    assert lab.admin.send(page.form("/restrict")).notice.startswith("The queue is open")
    assert lab.client.http.post("/v1/job", json=JOB).status_code == 200


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("generation", AGENTS)
def test_a_job_s_page_shows_the_phases_and_the_output_of_both_generations(lab: Lab, generation: str) -> None:
    uuid = lab.submit(tags=["nightly"])
    assert lab.agent(generation=generation).work(PHASES) == uuid
    page = lab.job(uuid)
    statuses = {row[0]: row[1] for row in rows_of(page, "job-phases")}
    assert "kind=" not in "".join(link for link in page.links if link.endswith("#job-output") and "serial" not in link)
    assert statuses == {"setup": "0", "provision": "0", "test": "3", "cleanup": "0"}
    assert page.tree.xpath("string(//*[@id='job-state'])").strip() == "failed"
    assert output_of(page) == "flashing …\ndone\nup 3 days\n"
    assert output_of(lab.job(uuid, phase="test")) == "up 3 days\n"
    assert output_of(lab.job(uuid, kind="serial")) == "login:\n"
    assert "nightly" in page.text and "/ui/testflinger/agents/1" in page.links


def test_output_that_came_with_the_results_alone_is_shown(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    agent.post_result(uuid, setup_output="ready\n", test_output="up\n", test_serial="login:\n", test_status=0)
    assert output_of(lab.job(uuid)) == "ready\nup\n"
    assert output_of(lab.job(uuid, phase="test")) == "up\n"
    assert output_of(lab.job(uuid, phase="test", kind="serial")) == "login:\n"
    assert lab.file(uuid, "output.txt").text == "ready\nup\n"


def test_the_log_of_another_kind_of_worker_is_the_output_of_its_test(lab: Lab) -> None:
    uuid = lab.submit()
    worker = lab.site.create_worker(lab.queue())
    task = worker.assigned(lab.queue())
    entries = [{"message": message, "timestamp": 1} for message in ("one", "two")]
    assert worker.http.post("/task/log", json={"task_id": task["id"], "entries": entries}).status_code == 200
    worker.release(task["id"], output={"code": 0})
    page = lab.job(uuid)
    assert output_of(page) == "one\ntwo\n" == lab.file(uuid, "output.txt").text
    assert rows_of(page, "job-phases")[0][:2] == ["test", "0"]


def test_long_output_is_read_from_its_end_page_by_page(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    pieces = [f"{number}: {'x' * 9000}\n" for number in range(7)]
    for piece in pieces:
        agent.post_output(uuid, "test", "output", piece)
    for query in ("", "?phase=test"):
        page, seen = lab.admin.open(f"/ui/testflinger/jobs/{uuid}{query}"), []
        while True:
            seen.insert(0, output_of(page))
            earlier = page.tree.xpath("//a[@rel='prev']/@href")
            if not earlier:
                break
            page = lab.admin.open(earlier[0])
        assert len(seen) == 3 and "".join(seen) == "".join(pieces), query


def test_a_very_long_piece_of_output_shows_its_end_and_says_so(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    agent.post_output(uuid, "test", "output", "a" * 30_000 + "the end\n")
    page = lab.job(uuid)
    assert output_of(page).endswith("athe end\n") and len(output_of(page)) == 20_000
    assert "The first 10,008 characters" in page.text
    assert lab.file(uuid, "output.txt").text == "a" * 30_000 + "the end\n"


def test_what_colours_a_terminal_is_left_out_on_the_page_and_kept_in_the_download(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    said = "\x1b[1;32mok\x1b[0m \x1b]0;title\x07done\r\n\x08next\n"
    agent.post_output(uuid, "test", "serial", said)
    assert output_of(lab.job(uuid, kind="serial")) == "ok done\nnext\n"
    answer = lab.file(uuid, "serial.txt", phase="test")
    assert answer.content == said.encode()
    assert answer.headers["content-disposition"] == f'attachment; filename="{uuid}-test-serial.txt"'
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_download_of_much_output_is_all_of_it(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    pieces = [f"{number}{'y' * 60_000}" for number in range(12)]
    for piece in pieces:
        agent.post_output(uuid, "provision", "output", piece)
    agent.post_output(uuid, "test", "output", "last")
    assert lab.file(uuid, "output.txt").text == "".join(pieces) + "last"
    assert lab.file(uuid, "output.txt", phase="provision").text == "".join(pieces)


def test_files_and_the_definition_are_downloaded_as_they_were_sent(lab: Lab) -> None:
    given = {"test_data": {"test_cmds": "uptime", "attachments": [{"local": "a", "agent": "b"}]}}
    uuid = lab.client.submit({**JOB, **given}, {"a": b"needed"})
    made = pack({"result.xml": b"<r/>" * 1000})
    lab.agent().work(PHASES, made)
    page = lab.job(uuid)
    assert {f"/ui/testflinger/jobs/{uuid}/{name}" for name in ("artifact", "attachments")} <= set(page.links)
    answer = lab.file(uuid, "artifact")
    assert answer.content == made and "content-encoding" not in answer.headers
    assert answer.headers["content-disposition"] == f'attachment; filename="{uuid}-artifact.tar.gz"'
    assert answer.headers["content-type"] == "application/gzip"
    assert unpack(lab.file(uuid, "attachments").content) == {"test/b": b"needed"}
    assert lab.file(uuid, "definition.json").json() == {**JOB, **given}


def test_a_job_that_waits_for_its_attachments_says_so(lab: Lab) -> None:
    uuid = lab.client.post_job({**JOB, "test_data": {"attachments": [{"local": "a"}]}})
    page = lab.job(uuid)
    assert "no agent gets it before they are uploaded" in page.text and "Position" not in page.text
    queue = lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}")
    assert rows_of(queue, "waiting") == []
    assert queue.tree.xpath("string(//*[@id='held'])").startswith("1 waits for its attachments")
    assert f"/ui/testflinger/jobs/{uuid}" in queue.links


def test_a_job_of_a_template_shows_its_recipe_and_to_readers_no_script(lab: Lab) -> None:
    lab.submit()
    fields = {"name": "sweep", "recipe": "no JSON: {size}", "undeclared": True, "script": "echo top secret"}
    body = {"project": lab.queue(), "variables": [{"name": "size", "value": "big", "required": False}], **fields}
    template = lab.site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    token = lab.site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]["id"]
    [link] = [link for link in lab.admin.open(f"/ui/jobs/{token}").links if link.startswith("/ui/testflinger/jobs/")]
    page = lab.manager(READ).open(link)
    assert page.status == 200 and "no JSON: big" in page.text and "top secret" not in page.html
    assert lab.admin.open(f"{link}/definition.json").status == 404


def test_a_retried_job_is_shown_on_the_page_of_its_kind(lab: Lab) -> None:
    uuid = lab.submit()
    assert lab.admin.send(lab.job(uuid).form("/retry")).status == 409
    lab.agent().work()
    page = lab.admin.send(lab.job(uuid).form("/retry"))
    [new] = lab.site.read("SELECT uuid FROM testflinger_job WHERE uuid <> ?", uuid)
    assert page.notice.startswith("This is the new job") and page.answer.url.path == f"/ui/testflinger/jobs/{new[0]}"
    assert "Made bymanager admin" in page.text


def test_both_pages_of_a_job_say_who_made_it_and_no_timeout_that_is_none(lab: Lab) -> None:
    named = SClient(lab.site.url, create_client(lab.site, "alice")).submit(JOB)
    for uuid, maker in ((named, "Made byclient alice"), (lab.submit(), "Made bya client of Testflinger")):
        page = lab.job(uuid)
        [core] = [link for link in page.links if re.fullmatch(r"/ui/jobs/\w{24}", link)]
        text = lab.admin.open(core).text
        assert maker in page.text and maker in text and "Timeout" not in text
    with_end = lab.job(lab.submit(global_timeout=60))
    [core] = [link for link in with_end.links if re.fullmatch(r"/ui/jobs/\w{24}", link)]
    assert "Timeout11 min" in lab.admin.open(core).text


def test_a_job_in_hand_is_running_on_the_pages_of_this_dialect(lab: Lab) -> None:
    uuid = lab.submit()
    lab.agent().check_jobs()
    [row] = rows_of(lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}"), "running")
    state = lab.job(uuid).tree.xpath("string(//*[@id='job-state'])")
    assert lab.client.status(uuid) == state.strip() == row[1] == "running"


def test_pieces_keep_their_places_when_the_first_ones_leave_the_page(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    seen = []
    for number in range(7):
        agent.post_output(uuid, "test", "output", f"{number}: {'x' * 5000}\n")
        seen.append(texts_of(lab.job(uuid)))
    assert "piece-1" not in seen[-1] and len(seen[-1]) >= 3
    for id, text in seen[-1].items():
        assert all(page[id] == text for page in seen if id in page)


def test_a_sequence_of_a_terminal_may_begin_in_one_piece_and_end_in_the_next(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    for said in ("one\x1b", "[1;3", "2mtwo\r", "\nthree\x9b1m\x85\x1b]0;ti", "tle\x07four\n"):
        agent.post_output(uuid, "test", "serial", said)
    assert output_of(lab.job(uuid, kind="serial")).replace("\r", "") == "onetwo\nthreefour\n"


def test_earlier_output_says_that_it_stands_still_and_leads_to_the_newest(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    agent.post_output(uuid, "test", "output", "up\n")
    assert "stands still" not in lab.job(uuid).text
    for before in (1, 2):  # from here on there is nothing, and something
        page = lab.job(uuid, before=before)
        assert "stands still" in page.text
        assert page.tree.xpath("//a[.='Newest output']/@href") == [f"/ui/testflinger/jobs/{uuid}#job-output"]


def test_a_job_s_two_pages_lead_to_each_other(lab: Lab) -> None:
    uuid = lab.submit()
    [core] = [link for link in lab.job(uuid).links if re.fullmatch(r"/ui/jobs/\w{24}", link)]
    assert f"/ui/testflinger/jobs/{uuid}" in lab.admin.open(core).links
    assert lab.job(uuid.upper()).text == lab.job(uuid).text


@pytest.mark.parametrize(
    ("query", "field"), [({"kind": "smoke"}, "kind"), ({"before": "0"}, "before"), ({"phase": "x" * 200}, "phase")]
)
def test_output_that_cannot_be_is_refused(lab: Lab, query: dict[str, str], field: str) -> None:
    page = lab.admin.open(f"/ui/testflinger/jobs/{lab.submit()}", **query)
    assert page.status == 400 and page.notice.startswith(f"Not done. {field}: ")


@pytest.mark.parametrize("name", ["artifact", "attachments", "secret.txt", "..%2f..%2ftracker.db"])
def test_a_file_that_is_not_there_is_a_page_that_says_so(lab: Lab, name: str) -> None:
    answer = lab.file(lab.submit(), name)
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/html")


def test_an_artifact_that_has_gone_from_the_disk_is_a_page_that_says_so(lab: Lab, tmp_path: Any) -> None:
    uuid = lab.submit()
    lab.agent().work({}, pack({"a": b"b"}))
    for file in (tmp_path / "tracker.db.files").iterdir():
        file.unlink()
    page = lab.admin.open(f"/ui/testflinger/jobs/{uuid}/artifact")
    assert page.status == 404 and "not on disk any more" in page.notice


# ── Agents ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_s_page_tells_its_state_its_streak_and_its_log(lab: Lab) -> None:
    agent = lab.agent()
    for status in (1, 0, 0):
        lab.submit()
        agent.work({"provision": Phase(status)})
    agent.log("first", "<b>second</b>")
    agent.register(state="maintenance", comment="fan is loud", provision_type="zapper")
    lab.site.clock.pass_time(7200)
    page = lab.admin.open("/ui/testflinger/agents/1")
    assert page.tree.xpath("string(//*[@id='agent-state'])").strip() == "maintenance"
    for words in ("2 passed in a row", "fan is loud", "zapper", "2 h ago", "first <b>second</b>"):
        assert words in page.text, words
    assert [row[1] for row in rows_of(page, "agent-provisions")] == ["0", "0", "1"]
    [row] = rows_of(lab.admin.open("/ui/testflinger/agents"), "agents")
    assert {"maintenance", "zapper", "2 passed in a row", "2 h ago"} <= set(row)


def test_it_is_told_when_each_agent_is_free_at_the_latest_and_by_what_it_is_known_to_live(lab: Lab) -> None:
    busy, idle, endless = (lab.agent(name) for name in ("busy", "idle", "endless"))
    uuid = lab.submit(global_timeout=7240)
    busy.check_jobs()
    lab.submit(name="for ever")
    endless.check_jobs()
    idle.register()
    lab.site.clock.pass_time(1800)
    busy.post_output(uuid, "test", "output", "still here")
    lab.site.clock.pass_time(600)
    free = {"busy": "in 1 h 30 min at the latest", "endless": "no time limit", "idle": "now"}
    signs = {"busy": "10 min ago", "endless": "40 min ago", "idle": "40 min ago"}
    for path, table, column in (("agents", "agents", 3), (f"queues/{lab.queue()}", "agents", 4)):
        rows = rows_of(lab.admin.open(f"/ui/testflinger/{path}"), table)
        assert {row[0]: row[column] for row in rows} == free
        assert {row[0]: row[-1] for row in rows} == signs
    running = rows_of(lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}"), "running")
    assert {row[2]: row[-1] for row in running} == {name: free[name] for name in ("busy", "endless")}
    [agent] = lab.site.read("SELECT id, worker FROM testflinger_agent WHERE name = 'busy'")
    [token] = lab.site.read("SELECT token FROM job JOIN testflinger_job ON job = id WHERE uuid = ?", uuid)
    paths = (f"testflinger/agents/{agent[0]}", f"testflinger/jobs/{uuid}", f"workers/{agent[1]}", f"jobs/{token[0]}")
    for path in paths:
        assert free["busy"] in lab.admin.open(f"/ui/{path}").text, path


def test_agents_are_found_by_name_and_paged(lab: Lab) -> None:
    names = [f"rack-{number:03d}" for number in range(pages.PAGE_ROWS + 2)]
    for name in (*names, "shelf-1"):
        lab.agent(name)
    listed = [
        row[0] for page in pages_of(lab.admin, "/ui/testflinger/agents?text=rack") for row in rows_of(page, "agents")
    ]
    assert listed == names


# ── Clients ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_s_key_is_shown_once_and_opens_what_its_limits_say(lab: Lab) -> None:
    credentials = create_client(lab.site, "alice", max_priority={"rack": 5}, allowed_queues=["rack"])
    assert credentials[1] not in lab.admin.open("/ui/testflinger/clients/alice").html
    client = HClient(lab.site.url, credentials)
    client.submit({**JOB, "job_priority": 5})
    assert client.http.post("/v1/job", json={**JOB, "job_priority": 6}, auth=credentials).status_code == 403
    page = lab.admin.open("/ui/testflinger/clients/alice")
    assert (page.typed("max_priority"), page.typed("allowed_queues")) == ("rack=5", "rack")
    saved = lab.admin.send(page.form("/clients/alice"), max_priority="rack=6\n*=1", max_reservation_time="a=b=86400")
    assert saved.notice.startswith("Saved.")
    assert saved.typed("max_priority") == "rack=6\n*=1" and saved.typed("max_reservation_time") == "a=b=86400"
    assert client.http.post("/v1/job", json={**JOB, "job_priority": 6}, auth=credentials).status_code == 200


def test_a_client_saved_from_an_old_page_leaves_what_others_have_taken_from_it_until_sent_once_more(lab: Lab) -> None:
    create_client(lab.site, "alice", max_priority={"rack": 5}, allowed_queues=["rack"])
    path = "/ui/testflinger/clients/alice"
    old = lab.admin.open(path).form(path)
    lab.admin.send(lab.admin.open(path).form(path), allowed_queues="", max_priority="rack=1")
    assert lab.admin.send(old, max_reservation_time="a=86400").notice.startswith("Saved.")
    page = lab.admin.open(path)
    assert [page.typed(name) for name in ("allowed_queues", "max_priority")] == ["", "rack=1"]
    refused = lab.admin.send(old, max_priority="rack=9", max_reservation_time="a=86400")
    assert refused.status == 409 and "max_priority: was changed since this page was shown" in refused.notice
    assert lab.admin.send(refused.form(path)).notice.startswith("Saved.")
    page = lab.admin.open(path)
    assert [page.typed(name) for name in ("allowed_queues", "max_priority")] == ["", "rack=9"]


def test_a_new_key_ends_the_old_one(lab: Lab) -> None:
    credentials = create_client(lab.site, "alice")
    question = lab.admin.send(lab.admin.open("/ui/testflinger/clients/alice").form("/rotate"))
    page = lab.admin.send(question.form("/rotate"))
    fresh = page.tree.xpath("string(//*[@id='fresh-key'])")
    assert "it is shown this once" in page.text
    assert page.tree.xpath("//body/@data-refresh") == []
    codes = [
        lab.client.http.get("/v1/oauth2/token", auth=("alice", key)).status_code for key in (credentials[1], fresh)
    ]
    assert codes == [401, 200]


def test_a_new_key_is_made_once_for_each_time_that_it_was_asked(lab: Lab) -> None:
    credentials = create_client(lab.site, "alice")
    question = lab.admin.send(lab.admin.open("/ui/testflinger/clients/alice").form("/rotate"))
    assert "A new key for the client alice?" in question.text
    assert lab.client.http.get("/v1/oauth2/token", auth=credentials).status_code == 200
    fresh = lab.admin.send(question.form("/rotate")).tree.xpath("string(//*[@id='fresh-key'])")
    fields = {name: text for name, text in question.form("/rotate").fields.items() if name != "nonce"}
    reloaded = lab.admin.act("/ui/testflinger/clients/alice/rotate", fields)
    assert "It has got a new key already" in reloaded.text and "fresh-key" not in reloaded.html
    assert lab.client.http.get("/v1/oauth2/token", auth=("alice", fresh)).status_code == 200


def test_a_new_signing_key_asks_first_and_ends_the_tokens_that_are_out(lab: Lab) -> None:
    credentials = create_client(lab.site, "alice")
    old = {"Authorization": lab.client.http.get("/v1/oauth2/token", auth=credentials).text}
    question = lab.admin.send(lab.admin.open("/ui/testflinger/clients").form("/clients_key"))
    assert "A new key to sign tokens with?" in question.text
    assert lab.client.http.get("/v1/agents/data", headers=old).status_code == 200
    assert "signed with a new key" in lab.admin.send(question.form("/clients_key")).notice
    ended = lab.client.http.get("/v1/agents/data", headers=old)
    assert (ended.status_code, ended.json()["message"]) == (401, "Token has expired")  # on which clients renew it
    new = {"Authorization": lab.client.http.get("/v1/oauth2/token", auth=credentials).text}
    assert lab.client.http.get("/v1/agents/data", headers=new).status_code == 200


def test_deleting_a_client_asks_first(lab: Lab) -> None:
    credentials = create_client(lab.site, "alice@lab.example+1")
    path = "/ui/testflinger/clients/alice@lab.example+1"
    [link] = [link for link in lab.admin.open("/ui/testflinger/clients").links if "alice" in link]
    question = lab.admin.send(lab.admin.open(link).form("/delete"))
    assert "Delete the client alice@lab.example+1?" in question.text
    assert lab.client.http.get("/v1/oauth2/token", auth=credentials).status_code == 200
    gone = lab.admin.send(question.form("/delete"))
    assert gone.notice == "The client alice@lab.example+1 is deleted."
    assert lab.client.http.get("/v1/oauth2/token", auth=credentials).status_code == 401
    assert lab.admin.open(path).status == 404


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("client_id", "not possible"),
        ("client_id", ""),
        ("role", "emperor"),
        ("max_priority", "rack"),
        ("max_priority", "rack=high"),
        ("max_priority", "rack=1\nrack=2"),
        ("allowed_queues", "*"),
        ("max_reservation_time", "rack=-1"),
        ("max_reservation_time", "rack=1" + "0" * 15),
        ("max_priority", "*=" + "9" * 5000),
    ],
)
def test_a_refused_form_of_a_client_keeps_what_was_typed_and_names_the_field(lab: Lab, field: str, text: str) -> None:
    fields = {"client_id": "alice", "role": "agent", "max_priority": "*=3", field: text}
    page = lab.admin.act("/ui/testflinger/clients", fields)
    assert page.status == 400 and page.notice.startswith(f"Not done. {field}: "), page.notice
    assert page.tree.xpath("//@aria-invalid/../@name") == [field]
    for name, typed in fields.items():
        assert name == "role" or page.typed(name, "/clients") == typed
    assert lab.site.read("SELECT count(*) FROM testflinger_client") == [(0,)]


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("client_id", "Zoë", "client_id: must have 1 to 200 of the characters A-Z a-z 0-9 _ . @ + -"),
        ("max_priority", "*=99999999999999999", "in line 1 the number is too large, it must be at most 2,147,483,647"),
        ("max_reservation_time", "a=1\nb=2147483648", "in line 2 the number is too large"),
    ],
)
def test_a_refusal_says_what_would_be_right(lab: Lab, field: str, text: str, words: str) -> None:
    page = lab.admin.act("/ui/testflinger/clients", {"client_id": "alice", "role": "agent", field: text})
    assert page.status == 400 and words in page.notice, page.notice


def test_a_name_that_is_taken_is_refused(lab: Lab) -> None:
    credentials = create_client(lab.site, "alice")
    page = lab.admin.act("/ui/testflinger/clients", {"client_id": "alice"})
    assert page.status == 409 and page.notice.startswith("Not done. client_id: ")
    assert lab.client.http.get("/v1/oauth2/token", auth=credentials).status_code == 200


# ── What it costs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lists_and_jobs_refresh_themselves_unless_they_show_older_ones(lab: Lab) -> None:
    uuid = lab.submit()
    agent = lab.agent()
    agent.check_jobs()
    agent.post_output(uuid, "test", "output", "up\n")
    paths = {
        "/ui/testflinger/queues": "queues",
        f"/ui/testflinger/queues/{lab.queue()}": "waiting",
        "/ui/testflinger/agents": "agents",
        "/ui/testflinger/agents/1": "agent-log",
        f"/ui/testflinger/jobs/{uuid}": "job-output",
    }
    for path, id in paths.items():
        assert lab.admin.open(path).tree.xpath(f"//*[@id='{id}'][@data-live]"), path
    assert not lab.job(uuid, before=9).tree.xpath("//*[@id='job-output'][@data-live]")
    older = lab.admin.open(f"/ui/testflinger/queues/{lab.queue()}", after="0:1")
    assert not older.tree.xpath("//*[@id='waiting'][@data-live]")


def test_an_agent_of_the_older_generation_without_a_name_has_no_page_but_its_worker(lab: Lab) -> None:
    uuid = lab.submit()
    agent: Callable[..., Agent] = SAgent
    nameless = agent(lab.site.url, "nobody", "rack")
    assert nameless.check_jobs()["job_id"] == uuid
    page = lab.job(uuid)
    assert "Testflinger agent without a name" in page.text
    assert not any(link.startswith("/ui/testflinger/agents/") for link in page.links)


PAGES_OF_THE_QUEUE = {
    "queues": (testflinger_pages.queues_page, pages.ListQuery()),
    "queue": (testflinger_pages.queue_page, 1, testflinger_pages.QueueQuery()),
    "queue, further on": (testflinger_pages.queue_page, 1, testflinger_pages.QueueQuery("0:1")),
    "running job": (testflinger_pages.job_page, "run", testflinger_pages.OutputQuery()),
    "phase of a running job": (testflinger_pages.job_page, "run", testflinger_pages.OutputQuery("output", "setup")),
    "earlier output": (testflinger_pages.job_page, "run", testflinger_pages.OutputQuery("output", "setup", 60)),
    "waiting job": (testflinger_pages.job_page, "next", testflinger_pages.OutputQuery()),
    "ended job": (testflinger_pages.job_page, "ended", testflinger_pages.OutputQuery()),
    "agents": (testflinger_pages.agents_page, pages.ListQuery()),
    "agent": (testflinger_pages.agent_page, 7),
}


@pytest.mark.parametrize("name", PAGES_OF_THE_QUEUE)
def test_a_page_costs_the_same_however_many_jobs_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the two figures that count jobs, which are the API's own."""
    monkeypatch.setattr(testflinger_pages.queues, "wait_times", lambda tx, names: {})
    monkeypatch.setattr(testflinger_pages.domain, "position", lambda tx, uuid: 0)
    monkeypatch.setattr(testflinger_pages, "OUTPUT_SHOWN", 500)
    function, *args = PAGES_OF_THE_QUEUE[name]
    taken = []
    for count in (SHORT, LONG):
        bench = queue_with(count).copy()
        session = bench.do(tracker.register_manager, "somebody", "unused")[1]
        bench.do(lambda tx: tx.execute("UPDATE manager SET tracker_admin = 1"))
        taken.append(bench.steps(function, session, *args))
    assert taken[1] <= 1.2 * taken[0], taken
