"""The contract that every door to a job keeps: the same tests for the native API and for each dialect.

A job submitted through any door may be done through any other; doors.py has the doors.
"""

from __future__ import annotations

import pytest
from conftest import Site, wait_until
from doors import AGENTS, CLIENTS, House, NativeAgent, NativeClient, Refused
from testflinger_doubles import CONTRACT_AGENTS, CONTRACT_CLIENTS

CLIENTS, AGENTS = {**CLIENTS, **CONTRACT_CLIENTS}, {**AGENTS, **CONTRACT_AGENTS}
CLIENT_VERBS = [(name, verb) for name, door in CLIENTS.items() for verb in door.verbs]
BY_LAST_LINE = [name for name in CLIENTS if name.startswith("theeye")]
BY_EXIT_STATUS = [name for name in CLIENTS if name not in BY_LAST_LINE]
READING = ("state", "log", "result", "cancel", "retry")


@pytest.fixture
def house(site: Site) -> House:
    return House(site, script="#!/bin/sh\necho done\n")  # some agents can do nothing else


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, house: House) -> NativeClient:
    return CLIENTS[request.param](house)


@pytest.fixture(params=AGENTS)
def agent(request: pytest.FixtureRequest, house: House) -> NativeAgent:
    return AGENTS[request.param](house)


def sees(client: NativeClient, job: str, state: str) -> bool:
    return client.state(job) == client.words[state]


def test_a_new_job_waits(client: NativeClient) -> None:
    assert sees(client, client.submit(), "waiting")


def test_a_job_is_assigned_and_succeeds(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    held = agent.assign()
    assert sees(client, job, "assigned")
    agent.succeed(held)
    assert sees(client, job, "succeeded")


def test_the_log_is_read_in_the_order_in_which_it_was_written(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    held = agent.assign()
    agent.log(held, "one", "two")
    agent.log(held, "three")
    agent.succeed(held)
    said = ["one", "two", "three"]
    assert [message for message in client.log(job) if message in said] == said


def test_the_result_is_what_the_agent_gave(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    agent.succeed(agent.assign(), ["answer", "42"])
    assert client.result(job) == ["answer", "42"]


def test_a_job_that_fails_is_seen_as_failed(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    agent.fail(agent.assign(), ["why"])
    assert sees(client, job, "failed")
    assert client.result(job) == ["why"]


@pytest.mark.parametrize("client", BY_EXIT_STATUS, indirect=True)
@pytest.mark.parametrize(("code", "state"), [(3, "failed"), (0, "succeeded")])
def test_a_script_is_judged_by_its_exit_status_whoever_ran_it(
    client: NativeClient, agent: NativeAgent, code: int, state: str
) -> None:
    job = client.submit()
    agent.end(agent.assign(), "boom", code)
    assert sees(client, job, state)


@pytest.mark.parametrize("client", BY_EXIT_STATUS, indirect=True)
def test_a_script_that_was_killed_is_seen_as_failed_or_timed_out_whoever_ran_it(
    client: NativeClient, agent: NativeAgent
) -> None:
    job = client.submit()
    agent.end(agent.assign(), "boom", 0, killed=True)
    assert sees(client, job, "failed") or sees(client, job, "timed_out")


@pytest.mark.parametrize("client", BY_LAST_LINE, indirect=True)
@pytest.mark.parametrize("agent", ["native", "theeye"], indirect=True)
@pytest.mark.parametrize(("last", "trigger"), [("boom", "success"), ("Failure", "failure")])
@pytest.mark.parametrize("code", [0, 3])
def test_for_clients_of_theeye_a_script_is_judged_by_its_last_line_alone(
    client: NativeClient, agent: NativeAgent, last: str, trigger: str, code: int
) -> None:
    job = client.submit()
    agent.end(agent.assign(), last, code)
    assert client.state(job) == ("finished", last)
    assert client.job(job)["trigger_name"] == trigger


@pytest.mark.parametrize("client", [name for name, door in CLIENTS.items() if door.of_template], indirect=True)
@pytest.mark.parametrize("agent", ["theeye"], indirect=True)
@pytest.mark.parametrize(
    ("last", "code"),
    [("This job has no script", 1), ("/bin/sh: 1: /var/scripts/no-script: Text file busy", 126), ("", 0)],
)
def test_a_job_without_a_script_fails_at_an_agent_that_can_run_nothing_else(
    house: House, client: NativeClient, agent: NativeAgent, last: str, code: int
) -> None:
    house.change_template(script="")
    job = client.submit()
    agent.end(agent.assign(), last, code)
    doors = [door(house) for door in CLIENTS.values() if door.of_template]
    assert all(sees(door, job, "failed") for door in doors)
    assert any("no script" in line for line in client.log(job))


@pytest.mark.parametrize("client", ["native", "testflinger"], indirect=True)
def test_a_job_that_failed_is_not_assigned_again(client: NativeClient, agent: NativeAgent) -> None:
    client.submit()
    agent.fail(agent.assign())
    assert agent.assign() is None


def test_a_job_with_attempts_left_is_tried_again(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit_with_attempts(2)
    agent.fail(agent.assign())
    agent.succeed(agent.assign())
    assert sees(client, job, "succeeded at the second attempt")


@pytest.mark.parametrize("client", ["native", "testflinger"], indirect=True)
def test_jobs_are_done_in_the_order_in_which_they_came(client: NativeClient, agent: NativeAgent) -> None:
    first, second = client.submit(), client.submit()
    agent.assign()
    assert sees(client, first, "assigned")
    assert sees(client, second, "waiting")


@pytest.mark.parametrize("agent", ["native"], indirect=True)
def test_retrying_makes_a_new_job(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    agent.fail(agent.assign())
    again = client.retry(job)
    assert sees(client, again, "waiting")
    agent.succeed(agent.assign())
    assert sees(client, again, "succeeded")
    assert sees(client, job, "failed")


@pytest.mark.parametrize("agent", ["native"], indirect=True)
def test_a_job_cancelled_while_it_waits_is_never_assigned(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    client.cancel(job)
    assert agent.assign() is None
    assert sees(client, job, "cancelled")


def test_a_job_cancelled_while_assigned_stays_so_whatever_its_agent_says(
    house: House, client: NativeClient, agent: NativeAgent
) -> None:
    job = client.submit()
    held = agent.assign()
    client.cancel(job)
    assert sees(client, job, "cancelled while assigned")
    agent.succeed(held, ["too late"])
    assert sees(client, job, "cancelled while assigned")
    assert client.keeps_late_reports or client.result(job) != ["too late"]
    assert NativeClient(house).result(job) != ["too late"]


@pytest.mark.parametrize("agent", ["native"], indirect=True)
def test_a_job_that_has_ended_cannot_be_cancelled(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    agent.succeed(agent.assign())
    with pytest.raises(Refused):
        client.cancel(job)
    assert sees(client, job, "succeeded")


def test_a_cancelled_job_cannot_be_cancelled_again(client: NativeClient) -> None:
    job = client.submit()
    client.cancel(job)
    with pytest.raises(Refused):
        client.cancel(job)


def test_a_job_whose_agent_vanished_times_out(house: House, client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    held = agent.assign()
    house.let_leases_expire()
    wait_until(lambda: sees(client, job, "timed_out"))
    agent.succeed(held, ["too late"])
    assert client.keeps_late_reports or sees(client, job, "timed_out")
    assert NativeClient(house).state(job) == "timed_out"


@pytest.mark.parametrize("agent", ["native"], indirect=True)
def test_a_job_waits_for_an_agent_as_long_as_it_takes(house: House, client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    house.let_leases_expire()
    assert agent.assign() is not None
    assert sees(client, job, "assigned")


@pytest.mark.parametrize(("name", "verb"), [pair for pair in CLIENT_VERBS if pair[1] in CLIENTS[pair[0]].unknown])
def test_an_unknown_job_is_refused(house: House, name: str, verb: str) -> None:
    client = CLIENTS[name](house)
    client.submit()
    with pytest.raises(Refused) as refused:
        getattr(client, verb)(client.unknown_id)
    assert refused.value.status == client.unknown[verb]


@pytest.mark.parametrize(("name", "verb"), CLIENT_VERBS)
def test_who_has_the_wrong_credentials_is_refused(house: House, name: str, verb: str) -> None:
    client = CLIENTS[name](house)
    job = client.submit()
    with pytest.raises(Refused) as refused:
        getattr(client.stranger(), verb)(*[job] * (verb in READING))
    assert refused.value.status == client.forbidden
    assert sees(client, job, "waiting")


@pytest.mark.parametrize("client", ["native"], indirect=True)
def test_an_agent_with_the_wrong_credentials_is_given_nothing(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    with pytest.raises(Refused) as refused:
        agent.stranger().assign()
    assert refused.value.status == agent.forbidden
    assert sees(client, job, "waiting")


@pytest.mark.parametrize("client", ["native"], indirect=True)
def test_an_agent_with_the_wrong_credentials_cannot_end_a_job(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    held = agent.assign()
    with pytest.raises(Refused) as refused:
        agent.stranger().succeed(held)
    assert refused.value.status == agent.forbidden
    assert sees(client, job, "assigned")


@pytest.mark.parametrize("client", ["native", "testflinger"], indirect=True)
def test_an_agent_cannot_end_what_another_one_holds(house: House, client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    held = agent.assign()
    type(agent)(house).succeed(held, ["not mine"])
    assert sees(client, job, "assigned")
    agent.succeed(held, ["mine"])
    assert client.result(job) == ["mine"]


@pytest.mark.parametrize("client", ["native"], indirect=True)
def test_an_agent_cannot_end_an_unknown_job(client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    if agent.unknown == 200:
        agent.succeed(agent.unknown_held)
    else:
        with pytest.raises(Refused) as refused:
            agent.succeed(agent.unknown_held)
        assert refused.value.status == agent.unknown
    assert sees(client, job, "waiting")


def test_a_job_is_seen_alike_through_every_door(house: House, client: NativeClient, agent: NativeAgent) -> None:
    job = client.submit()
    doors = [door(house) for door in CLIENTS.values() if door.sees_all or client.of_template]
    assert all(sees(door, job, "waiting") for door in doors)
    held = agent.assign()
    assert all(sees(door, job, "assigned") for door in doors)
    agent.succeed(held, ["done"])
    assert all(sees(door, job, "succeeded") and door.result(job) == ["done"] for door in doors)
