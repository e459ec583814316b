"""Whole runs of Testflinger's unchanged clients and agents, of both generations, also where the two meet."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from conftest import Site, serving_in_thread, wait_until
from testflinger_doubles import (
    AGENTS,
    CLIENTS,
    KILLED,
    PHASES,
    Agent,
    CommandLine,
    HClient,
    Phase,
    Refused,
    SAgent,
    SClient,
    claims,
    create_client,
    losing,
    pack,
    unpack,
    with_credentials,
)

import webhooks

QUEUE = "machines"
KEY = "lp:me"
SHORT_JOB = {"job_queue": QUEUE, "test_data": {"test_cmds": "make check"}}
LONG_JOB = {
    **SHORT_JOB,
    "name": "all that there is",
    "provision_data": {"url": "http://images.example/1"},
    "firmware_update_data": {"version": "latest"},
    "allocate_data": {},
    "reserve_data": {"ssh_keys": [KEY], "timeout": 60},
    "of_the_vendor": {"flux": 1.21, "tags": [None, True]},
}
RUN = (*PHASES, "cleanup")
SAYING = {phase: Phase(0, (f"{phase} begins\n", f"{phase} ends: ünïcode\n"), (f"{phase} boots\n",)) for phase in RUN}
HOUR = 3600
Pair = tuple[CommandLine, Agent]
FAR = {"X-Forwarded-For": "203.0.113.7"}  # as a reverse proxy on this machine says of a client that is elsewhere


@pytest.fixture(params=CLIENTS, ids=lambda name: f"{name} client")
def client(request: pytest.FixtureRequest, site: Site) -> CommandLine:
    return CLIENTS[request.param](site.url)


@pytest.fixture(params=AGENTS, ids=lambda name: f"{name} agent")
def agent(request: pytest.FixtureRequest, site: Site) -> Agent:
    return AGENTS[request.param](site.url, "agent-1", QUEUE).register()


@pytest.fixture(params=CLIENTS)
def pair(request: pytest.FixtureRequest, site: Site) -> Pair:
    """A client and an agent of the same generation, where crossing the two would show nothing more."""
    agent = AGENTS[request.param](site.url, "agent-1", QUEUE).register()
    return CLIENTS[request.param](site.url), agent


def said_by(phases: dict[str, Phase], kind: str) -> list[str]:
    return [piece for phase in RUN if phase in phases for piece in getattr(phases[phase], kind)]


def step_to(run: Iterator[str], phase: str) -> None:
    """Lets the agent go on until it has begun the phase and posted a first piece of its output."""
    assert phase in run
    assert next(run) == phase


def finish(run: Iterator[str]) -> list[str]:
    """Lets the agent go on to its end, and says in which phases it still had to post something."""
    return list(run)


def status_of(call: Callable[..., Any], *args: Any, **options: Any) -> int:
    """The status with which the server refuses the call."""
    with pytest.raises(Refused) as refused:
        call(*args, **options)
    return refused.value.status


# ── A run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_gets_what_the_client_submitted(client: CommandLine, agent: Agent) -> None:
    job = client.submit(LONG_JOB)
    assert client.status(job) == "waiting"
    assert client.position(job) == 0
    held = agent.check_jobs()
    assert held.items() >= {**LONG_JOB, "job_id": job}.items()
    assert client.status(job) == "running"
    assert client.show(job).items() >= {**LONG_JOB, "job_id": job}.items()
    assert agent.check_jobs() is None


@pytest.mark.parametrize("kind", ["output", "serial"])
def test_each_piece_of_output_is_seen_at_once_and_polling_ends_with_the_job(
    client: CommandLine, agent: Agent, kind: str
) -> None:
    job = client.submit(LONG_JOB)
    watch = client.poll(job, kind)
    assert next(watch) == ""
    printed = [next(watch) for _ in agent.run(agent.check_jobs(), SAYING)]
    assert [text for text in printed if text] == said_by(SAYING, kind)
    assert list(watch) == [""]
    assert client.status(job) == "complete"


def test_output_that_came_between_two_looks_is_printed_in_its_order(client: CommandLine, agent: Agent) -> None:
    job = client.submit(LONG_JOB)
    agent.work(SAYING)
    printed = "".join(client.poll(job))
    places = [printed.index(piece) for piece in said_by(SAYING, "output")]
    assert places == sorted(places)


def test_what_one_client_has_read_another_of_the_next_generation_can_still_read(site: Site, agent: Agent) -> None:
    old, new = SClient(site.url), HClient(site.url)
    job = old.submit(SHORT_JOB)
    agent.work({"test": Phase(0, ("one", "two"))})
    assert "".join(old.poll(job)) == "one\ntwo"
    assert "".join(old.poll(job)) == ""
    assert "".join(new.poll(job)) == "".join(new.poll(job)) == "onetwo"


def test_each_state_that_an_agent_posts_is_seen_by_the_client(client: CommandLine, agent: Agent) -> None:
    job = client.submit(SHORT_JOB)
    assert [client.status(job) for _ in agent.run(agent.check_jobs())] == list(PHASES)
    assert client.status(job) == "complete"


def test_results_have_a_status_and_an_output_for_each_phase(client: CommandLine, agent: Agent) -> None:
    job = client.submit(LONG_JOB)
    agent.work({**SAYING, "test": replace(SAYING["test"], status=3)})
    results = client.results(job)
    assert {phase: results[f"{phase}_status"] for phase in RUN} == {**dict.fromkeys(RUN, 0), "test": 3}
    for phase in PHASES:
        assert results[f"{phase}_output"] == "".join(SAYING[phase].output), phase
        assert results[f"{phase}_serial"] == "".join(SAYING[phase].serial), phase
    assert results["device_info"] == agent.device_info


def test_a_phase_that_is_skipped_has_neither_status_nor_output(client: CommandLine, agent: Agent) -> None:
    job = client.submit(SHORT_JOB)
    agent.work({"test": Phase(0, ("tested\n",)), "cleanup": Phase(0, ("swept\n",))})
    results = client.results(job)
    said = {name: text for name, text in results.items() if name.endswith("_output") and text}
    assert said == {"test_output": "tested\n", "cleanup_output": "swept\n"}
    assert {name for name in results if name.endswith("_status")} == {"setup_status", "test_status", "cleanup_status"}


def test_a_run_ends_after_a_phase_that_fails_unless_it_is_the_test(pair: Pair) -> None:
    client, agent = pair
    job = client.submit(LONG_JOB)
    agent.work({"provision": Phase(46, ("no such image\n",))})
    results = client.results(job)
    assert results["provision_status"] == 46
    assert results["cleanup_status"] == 0
    assert "test_status" not in results
    assert list(client.poll(job))


def test_artifacts_come_down_as_they_went_up(client: CommandLine, agent: Agent) -> None:
    job = client.submit(SHORT_JOB)
    artifacts = pack({"artifacts/log.bin": bytes(range(256)) * 5000, "artifacts/empty": b""})
    assert status_of(client.artifacts, job) == 204
    agent.work(artifacts=artifacts)
    assert client.artifacts(job) == artifacts


def test_attachments_of_the_client_reach_the_agent(client: CommandLine, agent: Agent) -> None:
    attachments = [{"local": "config.txt", "agent": "etc/config.txt"}, {"local": "data.bin"}]
    files = {"config.txt": b"answer=42\n", "data.bin": bytes(range(256)) * 1000}
    test_data = {"test_cmds": "make check", "attachments": attachments}
    client.submit({"job_queue": QUEUE, "test_data": test_data}, files)
    agent.work()
    assert agent.attachments == {"test/etc/config.txt": files["config.txt"], "test/data.bin": files["data.bin"]}


# ── Lost answers ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_goes_well_although_the_first_answer_to_each_call_is_lost(
    site: Site, client: CommandLine, agent: Agent
) -> None:
    files, artifacts = {"data.bin": bytes(range(256))}, pack({"artifacts/log": b"all of it"})
    definition = {**LONG_JOB, "test_data": {"test_cmds": "make check", "attachments": [{"local": "data.bin"}]}}
    undisturbed = client.submit(definition, files)
    agent.work(SAYING, artifacts)
    with losing(site.url) as (url, lost):
        own_id = str(uuid.uuid4())
        client, agent = type(client)(url), type(agent)(url, "agent-2", QUEUE).register()
        agent.advertise({QUEUE: {"jammy": "url: http://images.example/jammy"}}, **{QUEUE: "", "other": ""})
        assert client.submit({**definition, "job_id": own_id}, files) == own_id
        assert agent.work(SAYING, artifacts) == own_id
        assert agent.attachments == {"test/data.bin": files["data.bin"]}
        assert client.artifacts(own_id) == artifacts
        printed = "".join(client.poll(own_id))
        agent.advertise(**{QUEUE: "machines"})
        assert client.list_queues() == {QUEUE: "machines", "other": ""}
    assert [printed.count(piece) for piece in said_by(SAYING, "output")] == [1] * 14
    device = {"device_info": {**agent.device_info, "agent_name": "agent-1"}}
    assert {**client_of(site, client).results(own_id), **device} == client_of(site, client).results(undisturbed)
    assert site.read("SELECT COUNT(*) FROM job") == [(2,)]
    assert site.read("SELECT streak_count FROM testflinger_agent") == [(1,), (1,)]
    assert any("attachments" in call for call in lost) and any("provision_logs" in call for call in lost)


def client_of(site: Site, client: CommandLine) -> CommandLine:
    """A client of the same generation, without a proxy."""
    return type(client)(site.url)


# ── What agents say of themselves ───────────────────────────────────────────────────────────────────────────────────


def test_clients_see_the_queues_and_images_that_agents_advertise(pair: Pair) -> None:
    client, agent = pair
    images = {"jammy": "url: http://images.example/jammy", "noble": "url: http://images.example/noble"}
    agent.advertise({QUEUE: images}, **{QUEUE: "machines of the lab"})
    agent.advertise({"other": None}, other=None)
    assert client.list_queues() == {QUEUE: "machines of the lab", "other": ""}
    assert client.list_images(QUEUE) == images
    assert client.list_images("other") == {}


def test_clients_see_an_agent_in_its_state_with_its_job(pair: Pair) -> None:
    client, agent = pair
    job = client.submit(SHORT_JOB)
    agent.advertise(**{QUEUE: ""})
    for phase in agent.run(agent.check_jobs()):
        (shown,) = client.list_agents(QUEUE)
        assert (shown["name"], shown["state"], shown["job_id"]) == ("agent-1", phase, job)
    (shown,) = client.list_agents(QUEUE)
    assert (shown["state"], shown["job_id"], shown["location"]) == ("waiting", "", "lab")


# ── Events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that answers each PUT with `answer`, and keeps what came in `received`."""

    answer: ClassVar[tuple[int, str]] = (200, "thank you")
    received: ClassVar[list[Any]] = []

    def do_PUT(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, text = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def answering(status: int, text: str) -> Iterator[tuple[str, list[Any]]]:
    """A webhook that answers so: its URL, and the list of what it receives."""
    received: list[Any] = []
    with serving_in_thread(type("Hook", (Hook,), {"answer": (status, text), "received": received})) as url:
        yield f"{url}/hook", received


@contextlib.contextmanager
def bound_socket(listen: bool) -> Iterator[str]:
    """The URL of a port that accepts a connection and then says nothing, or that refuses it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if listen:
            bound.listen()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker gives a webhook a tenth of a second instead of three."""
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.1)


@pytest.fixture
def lab(make_site: Callable[..., Site]) -> Site:
    """A tracker that may send webhooks to this machine."""
    return make_site(webhook_networks=("127.0.0.0/8",))


def run_with_webhook(site: Site, agent_type: type[Agent], url: str) -> Agent:
    """A whole run of a job with that webhook. It must reach its end, whatever becomes of the events."""
    client, agent = SClient(site.url), agent_type(site.url, "agent-1", QUEUE).register()
    job = client.submit({**SHORT_JOB, "job_status_webhook": url})
    assert agent.work({"test": Phase(0, ("done\n",))}) == job
    assert client.status(job) == "complete"
    assert client.results(job)["test_status"] == 0
    return agent


@pytest.mark.parametrize("agent_type", AGENTS.values(), ids=AGENTS)
def test_a_webhook_is_told_of_each_event_in_turn(lab: Site, agent_type: type[Agent]) -> None:
    with answering(200, "thank you") as (url, received):
        agent = run_with_webhook(lab, agent_type, url)
    assert {(answer.status_code, answer.text) for answer in agent.events} == {(200, "thank you")}
    told = [event["event_name"] for body in received for event in body["events"]]
    phases = [f"{phase}_{what}" for phase in ("setup", "test") for what in ("start", "success")]
    assert told == ["job_start", *phases, "cleanup_start", "job_end"]
    assert all(body.keys() == {"agent_id", "job_queue", "events"} for body in received)
    assert received[0]["agent_id"] == "agent-1"
    assert received[0]["job_queue"] == QUEUE


def test_a_run_goes_on_although_its_webhook_never_answers(lab: Site, impatient: None) -> None:
    with bound_socket(listen=True) as url:
        agent = run_with_webhook(lab, SAgent, url)
    assert {answer.status_code for answer in agent.events} == {504}


def test_a_run_goes_on_although_its_webhook_is_nowhere(lab: Site) -> None:
    agent = run_with_webhook(lab, SAgent, "http://nowhere.invalid/hook")
    assert {answer.status_code for answer in agent.events} == {502}


# ── Cancelling ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_cancelled_in_any_phase_is_stopped_and_cleaned_up_and_stays_cancelled(
    client: CommandLine, agent: Agent
) -> None:
    for phase in PHASES:
        job = client.submit(LONG_JOB)
        watch = client.poll(job)
        next(watch)
        run = agent.run(agent.check_jobs(), {phase: SAYING[phase], "cleanup": Phase(0, ("swept\n",))})
        step_to(run, phase)
        assert next(watch) == SAYING[phase].output[0]
        client.cancel(job)
        assert finish(run) == ["cleanup"]
        assert client.status(job) == "cancelled"
        assert len(list(watch)) == 1
        results = client.results(job)
        assert results[f"{phase}_status"] == KILLED
        assert results["cleanup_status"] == 0
        assert not any(f"{later}_status" in results for later in PHASES[PHASES.index(phase) + 1 :])
    assert agent.check_jobs() is None


def test_a_job_cancelled_before_its_first_phase_is_only_cleaned_up(pair: Pair) -> None:
    client, agent = pair
    job = client.submit(LONG_JOB)
    held = agent.check_jobs()
    client.cancel(job)
    assert finish(agent.run(held, SAYING)) == ["cleanup"] * 3
    assert client.status(job) == "cancelled"
    assert list(client.poll(job))


@pytest.mark.parametrize("artifacts", [b"", pack({"artifacts/log": b"as far as it got"})], ids=["none", "some"])
def test_the_artifacts_of_a_cancelled_run_are_kept(site: Site, agent: Agent, artifacts: bytes) -> None:
    client = SClient(site.url)
    job = client.submit(LONG_JOB)
    held = agent.check_jobs()
    client.cancel(job)
    finish(agent.run(held, artifacts=artifacts))
    if artifacts:
        assert client.artifacts(job) == artifacts
    else:
        assert status_of(client.artifacts, job) == 204


# ── Reservations, priorities, restricted queues ─────────────────────────────────────────────────────────────────────


def test_a_machine_is_reserved_with_an_image_and_ssh_keys(pair: Pair) -> None:
    client, agent = pair
    agent.advertise({QUEUE: {"jammy": "url: http://images.example/jammy"}}, **{QUEUE: ""})
    job = client.reserve(QUEUE, "jammy", KEY, "gh:me", timeout=2 * HOUR)
    held = agent.check_jobs()
    assert held["provision_data"] == {"url": "http://images.example/jammy"}
    assert held["reserve_data"] == {"ssh_keys": [KEY, "gh:me"], "timeout": 2 * HOUR}
    watch = client.poll(job)
    run = agent.run(held, {"reserve": Phase(0, ("reserved: ssh machine\n",))})
    step_to(run, "reserve")
    assert next(watch) == "reserved: ssh machine\n"
    client.cancel(job)
    finish(run)
    assert len(list(watch)) == 1


def test_a_reservation_may_be_given_in_hours_and_minutes(site: Site, agent: Agent) -> None:
    client = HClient(site.url)
    agent.advertise({QUEUE: {"jammy": "url: http://images.example/jammy"}})
    client.reserve(QUEUE, "jammy", KEY, timeout="1h30m")
    assert agent.check_jobs()["reserve_data"]["timeout"] == 5400
    assert status_of(client.reserve, QUEUE, "jammy", KEY, timeout="7h") == 401


def test_an_ssh_key_that_is_nobodys_is_refused(pair: Pair) -> None:
    client, agent = pair
    agent.advertise({QUEUE: {"jammy": "url: http://images.example/jammy"}})
    assert status_of(client.reserve, QUEUE, "jammy", "me") == 422


@pytest.mark.parametrize("client_type", CLIENTS.values(), ids=CLIENTS)
def test_a_client_gets_itself_another_token_when_its_own_has_expired(
    site: Site, client_type: type[CommandLine]
) -> None:
    client = client_type(site.url, create_client(site, "vip", max_priority={"*": 100}))
    urgent = {**SHORT_JOB, "job_priority": 100}
    client.submit(urgent)
    token, said = client.token, claims(client.token)
    assert said["sub"] == "access_token"
    assert said["permissions"].items() >= {"client_id": "vip", "max_priority": {"*": 100}}.items()
    site.clock.pass_time(said["exp"] - said["iat"] + 1)
    assert client.submit(urgent)
    assert [refused.status for refused in client.refusals] == [401]
    assert client.token != token


def test_a_client_that_has_logged_out_must_show_its_key_again(site: Site) -> None:
    client = HClient(site.url, create_client(site, "vip", max_priority={"*": 100}))
    urgent = {**SHORT_JOB, "job_priority": 100}
    client.submit(urgent)
    before = client.refresh_token
    client.log_out()
    assert client.submit(urgent)
    assert client.refresh_token != before


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_client_whose_login_has_ended_elsewhere_forgets_it_and_goes_on(site: Site, end: str) -> None:
    client = HClient(site.url, create_client(site, "vip", max_priority={"*": 100}))
    job = client.submit({**SHORT_JOB, "job_priority": 100})
    before = client.refresh_token
    if end == "revoked":
        client.http.post("/v1/oauth2/revoke", json={"refresh_token": before})
    else:
        site.clock.pass_time(31 * 24 * HOUR)
    client.begin_anew()
    assert client.status(job) == "waiting" and not client.refresh_token
    assert client.submit({**SHORT_JOB, "job_priority": 100})
    assert client.refresh_token not in ("", before)


# ── Agents that vanish, agents that are not wanted ──────────────────────────────────────────────────────────────────


def test_a_job_whose_agent_vanishes_ends_after_its_timeout_or_never_and_nobody_else_gets_it(
    site: Site, pair: Pair
) -> None:
    client, agent = pair
    limited = client.submit({**SHORT_JOB, "global_timeout": 2 * HOUR})
    longer = client.submit({**SHORT_JOB, "global_timeout": 4 * HOUR})
    endless = client.submit(SHORT_JOB)
    watch = client.poll(limited)
    for _ in range(3):
        agent.post_result(agent.check_jobs()["job_id"], job_state="test")
    other = type(agent)(site.url, "agent-2", QUEUE).register()
    site.clock.pass_time(3 * HOUR)
    assert wait_until(lambda: client.status(limited) == "complete")
    assert "".join(watch) == ""
    assert client.status(longer) == client.status(endless) == "test"
    assert agent.work() is other.work() is None
    site.clock.pass_time(24 * HOUR)
    assert wait_until(lambda: client.status(longer) == "complete")
    assert client.status(endless) == "test"
    assert agent.work() is other.work() is None
    client.cancel(endless)
    assert client.status(endless) == "cancelled"


def test_a_run_may_take_a_while_longer_than_its_timeout(site: Site, agent: Agent) -> None:
    client = SClient(site.url)
    short, job = (client.submit({**SHORT_JOB, "global_timeout": timeout}) for timeout in (60, 2 * HOUR))
    agent.check_jobs()
    run = agent.run(agent.check_jobs(), SAYING)
    step_to(run, "test")
    site.clock.pass_time(2 * HOUR + 300)
    assert wait_until(lambda: client.status(short) == "complete")
    finish(run)
    assert client.status(job) == "complete"
    assert site.read("SELECT state FROM job ORDER BY id") == [("timed_out",), ("succeeded",)]


def test_an_agent_that_comes_back_too_late_ends_its_run_and_the_job_stays_timed_out(site: Site, agent: Agent) -> None:
    client = SClient(site.url)
    job = client.submit({**SHORT_JOB, "global_timeout": 60})
    run = agent.run(agent.check_jobs(), SAYING)
    step_to(run, "test")
    site.clock.pass_time(HOUR)
    assert wait_until(lambda: client.status(job) == "complete")
    finish(run)
    assert client.status(job) == "complete"
    assert client.results(job)["test_status"] == 0
    assert site.read("SELECT state FROM job") == [("timed_out",)]


@pytest.mark.parametrize("agent_type", AGENTS.values(), ids=AGENTS)
def test_an_agent_that_is_excluded_is_not_given_the_job(site: Site, agent_type: type[Agent]) -> None:
    client = HClient(site.url)
    unwanted, wanted = (agent_type(site.url, name, QUEUE).register() for name in ("agent-1", "agent-2"))
    job = client.submit({**SHORT_JOB, "exclude_agents": ["agent-1"]})
    plain = client.submit(SHORT_JOB)
    assert unwanted.work() == plain
    assert unwanted.work() is None
    assert wanted.work() == job


# ── Without anonymous use ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("generation", CLIENTS)
def test_a_run_from_elsewhere_with_credentials_in_the_urls(site: Site, generation: str) -> None:
    submitter = with_credentials(site.url, create_client(site, "submitter"))
    runner = with_credentials(site.url, create_client(site, "runner", role="agent"))
    client, agent = CLIENTS[generation](submitter), AGENTS[generation](runner, "agent-1", QUEUE)
    for program in (client, agent):
        program.http.headers.update(FAR)
    agent.register()
    agent.advertise({QUEUE: {"jammy": "url: http://images.example/jammy"}}, **{QUEUE: ""})
    job = client.submit(LONG_JOB)
    artifacts = pack({"artifacts/log": b"all of it"})
    assert agent.work(SAYING, artifacts) == job
    printed = "".join(client.poll(job))
    assert all(piece in printed for piece in said_by(SAYING, "output"))
    assert unpack(client.artifacts(job)) == {"artifacts/log": b"all of it"}
    assert client.results(job)["test_status"] == 0
