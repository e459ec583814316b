"""All or nothing in the Testflinger dialect: whatever fails, and wherever, leaves the state before it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec import Raw
from place import Memory, Operation
from test_atomicity import check_all_or_nothing

import tracker
from dialects.testflinger import clients as clients
from dialects.testflinger import domain as domain
from dialects.testflinger import queues as testflinger_queues
from tracker import Tx

QUEUE, AGENT, KEY = "machines", "agent-1", "a key of an admin"
NOBODY = "00000000-0000-0000-0000-000000000000"  # the id of no job


class Lab(NamedTuple):
    """Two queues with jobs in every state, an agent, clients."""

    session: bytes
    project: int
    jobs: dict[str, str]  # their ids
    tokens: clients.Tokens
    basic: bytes
    admin: clients.Client
    user: clients.Client


def submission(queue: str = QUEUE, **fields: Any) -> domain.Submission:
    return domain.Submission({"job_queue": queue, "provision_data": {"url": "http://image"}}, queue, **fields)


def furnish(tx: Tx) -> Lab:
    """Makes a Lab. What is said to be old there is due to be forgotten."""
    session = tracker.register_manager(tx, "admin", "unused")[1]
    body = clients.NewPermissionsBody(client_id="admin", client_secret=KEY, role="admin", max_priority={"*": 9})
    admin = clients.client_of(tx, clients.insert_client(tx, "admin", KEY, None, body))
    body = clients.ClientBody(client_id="user", allowed_queues=[QUEUE])
    user = clients.client_of(tx, clients.insert_client(tx, "user", "a key of a user", None, body))
    clients.put_secret(tx, user, "user", "wifi/password", clients.SecretBody("geheim"))
    basic = b"Basic " + base64.b64encode(f"admin:{KEY}".encode())
    tokens = clients.issue_token(tx, basic, True)
    tx.execute("INSERT INTO testflinger_refresh VALUES (x'00', 'user', 1)")

    testflinger_queues.advertise_queues(tx, {QUEUE: "what there is", "restricted": "for some"})
    clients.add_restricted_queue(tx, admin, "restricted")
    testflinger_queues.set_images(tx, {QUEUE: {"core": "url: http://image", "desktop": "url: http://image"}})
    project = domain.find_queue(tx, QUEUE)["project"]
    for agent in (AGENT, "silent"):
        domain.update_agent(tx, agent, {"queues": [QUEUE, "elsewhere"], "state": "waiting", "log": ["a line"] * 100})
        domain.add_provision_log(tx, None, agent, NOBODY, 0, "")
    tx.execute("UPDATE testflinger_agent SET updated = 1 WHERE name = 'silent'")

    jobs: dict[str, str] = {}
    for name in ("old", "ended", "running"):
        jobs[name] = domain.submit_job(tx, None, submission(tags=["a"], script="echo"))
        domain.pick_job(tx, None, [QUEUE], AGENT)
        domain.add_fragment(tx, None, jobs[name], "output", AGENT, "a line\n")
        domain.add_result(tx, None, jobs[name], AGENT, {"status": Raw(b'{"setup":0}')}, "setup")
        domain.store_file(tx, jobs[name], "artifact", f"artifact of {name}", 1)
    for name in ("old", "ended"):
        domain.add_result(tx, None, jobs[name], AGENT, {}, "complete")
    tx.execute("UPDATE testflinger_job SET finished = 1 WHERE uuid = ?", (jobs["old"],))
    for name in ("held", "forgotten"):
        jobs[name] = domain.submit_job(tx, None, submission(attachments=True))
    tx.execute("UPDATE job SET created = 1 WHERE id = (SELECT MAX(id) FROM job)")
    jobs["waiting"] = domain.submit_job(tx, user, submission(priority=0, tags=["a", "b"], excluded=["silent"]))
    domain.add_result(tx, None, NOBODY, None, {"test_status": Raw(b"0")}, "complete")
    domain.add_fragment(tx, None, NOBODY, "serial", None, "stray")
    domain.store_file(tx, NOBODY, "artifact", "artifact of nobody", 1)
    tx.execute("UPDATE testflinger_outcome SET touched = 1 WHERE uuid = ?", (NOBODY,))
    tx.execute("UPDATE testflinger_file SET stored = 1 WHERE uuid = ?", (NOBODY,))
    return Lab(session, project, jobs, tokens, basic, admin, user)


def report(job: str, state: str | None, agent: str | None = AGENT, **fields: Any) -> Operation:
    return domain.add_result, (
        None,
        job,
        agent,
        {name: Raw(tracker.encode(value)) for name, value in fields.items()},
        state,
    )


# Every operation of the dialect that writes in more than one place, or might one day.
OPERATIONS: dict[str, Callable[[Lab], Operation]] = {
    "submit": lambda lab: (
        domain.submit_job,
        (lab.admin, submission(priority=5, tags=["x", "y"], excluded=["silent"], script="echo", global_timeout=9)),
    ),
    "submit to a new queue": lambda lab: (domain.submit_job, (None, submission("another", uuid=NOBODY))),
    "submit with attachments": lambda lab: (domain.submit_job, (None, submission(attachments=True))),
    "bring attachments": lambda lab: (domain.store_attachments, (None, lab.jobs["held"], "a file", 1)),
    "pick": lambda lab: (domain.pick_job, (None, ["unknown", QUEUE], AGENT)),
    "pick without a name": lambda lab: (domain.pick_job, (None, [QUEUE], None)),
    "cancel": lambda lab: (domain.cancel_job, (lab.jobs["running"], "somebody")),
    "cancel a job that waits for attachments": lambda lab: (domain.cancel_job, (lab.jobs["held"], "somebody")),
    "report a phase": lambda lab: report(lab.jobs["running"], "test", device_info={"ip": "192.0.2.1"}),
    "report the end": lambda lab: report(lab.jobs["running"], "completed", test_status=0, output="done"),
    "report a failure": lambda lab: report(lab.jobs["running"], "complete", status={"setup": 0, "test": 1}),
    "report that it was cancelled": lambda lab: report(lab.jobs["running"], "cancelled", status={"test": 143}),
    "report too late": lambda lab: report(lab.jobs["ended"], "complete", test_status=1, output="more"),
    "report on an unknown job": lambda lab: report(NOBODY, "test", None, setup_status=0, provision_status=0),
    "write output": lambda lab: (
        domain.add_fragment,
        (None, lab.jobs["running"], "output", AGENT, "more\n", "test", 0, 1.0),
    ),
    "write stray output": lambda lab: (domain.add_fragment, (None, NOBODY, "output", None, "more")),
    "take output": lambda lab: (domain.take_output, (lab.jobs["running"], "output")),
    "replace an artifact": lambda lab: (domain.store_file, (lab.jobs["running"], "artifact", "another", 2)),
    "advertise queues": lambda lab: (testflinger_queues.advertise_queues, ({"another": "new", QUEUE: "changed"},)),
    "set images": lambda lab: (
        testflinger_queues.set_images,
        ({QUEUE: {"server": "url: x"}, "another": {"core": "url: x"}},),
    ),
    "tell of a new agent": lambda lab: (domain.update_agent, ("new", {"queues": [QUEUE], "log": ["a", "b"]})),
    "tell of an agent": lambda lab: (domain.update_agent, (AGENT, {"queues": ["another"], "log": ["a", "b"]})),
    "log how provisioning went": lambda lab: (
        domain.add_provision_log,
        (None, AGENT, lab.jobs["running"], 1, "no power"),
    ),
    "issue tokens": lambda lab: (clients.issue_token, (lab.basic, True)),
    "refresh a token": lambda lab: (refresh_later, (lab.tokens.refresh_token,)),
    "revoke a token": lambda lab: (clients.revoke_token, (lab.tokens.refresh_token,)),
    "create a client": lambda lab: (clients.create_client, (lab.session, clients.ClientBody(client_id="new"))),
    "update a client": lambda lab: (clients.update_client, (lab.session, "user", clients.LimitsBody(role="agent"))),
    "rotate a key": lambda lab: (clients.rotate_key, (lab.session, "admin")),
    "delete a client": lambda lab: (clients.delete_client, (lab.session, "user")),
    "restrict a queue": lambda lab: (clients.set_restricted, (lab.session, lab.project, True)),
    "create permissions": lambda lab: (
        clients.create_permissions,
        (lab.admin, clients.NewPermissionsBody(client_id="new", client_secret="a key of a user")),
    ),
    "put permissions": lambda lab: (
        clients.put_permissions,
        (lab.admin, "user", clients.PermissionsBody(client_secret="another key of it", max_priority={"*": 1})),
    ),
    "delete permissions": lambda lab: (clients.delete_permissions, (lab.admin, "user")),
    "add a restricted queue": lambda lab: (clients.add_restricted_queue, (lab.admin, QUEUE)),
    "allow a queue to a client": lambda lab: (clients.add_restricted_queue, (lab.admin, "another", "user")),
    "remove a restricted queue": lambda lab: (clients.remove_restricted_queue, (lab.admin, "restricted")),
    "put a secret": lambda lab: (clients.put_secret, (lab.user, "user", "a/path", clients.SecretBody("value"))),
    "delete a secret": lambda lab: (clients.delete_secret, (lab.user, "user", "wifi/password")),
    "prune jobs": lambda lab: (domain.prune_jobs, ()),
    "cancel what waits for attachments in vain": lambda lab: (domain.cancel_forgotten, ()),
    "prune what was reported for unknown jobs": lambda lab: (domain.prune_outcomes, ()),
    "prune files": lambda lab: (domain.prune_files, ((0, ""),)),
    "prune agents": lambda lab: (domain.prune_agents, ()),
    "prune tokens": lambda lab: (clients.prune_refresh, ()),
}


def refresh_later(tx: Tx, token: str) -> None:
    """Within the same second a use leaves no trace."""
    tx.time += 1
    clients.refresh_token(tx, token)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_exception_at_any_statement_leaves_the_state_before_the_operation(tmp_path: Path, name: str) -> None:
    check_all_or_nothing(tmp_path / "tracker.db", furnish, OPERATIONS[name])


MUCH = Raw(b'"%b"' % (b"x" * domain.MOST_REPORTED))
REFUSED: dict[str, Callable[[Lab], Operation]] = {
    "too much reported": lambda lab: (domain.add_result, (None, NOBODY, None, {"more": MUCH}, None)),
    "too much output": lambda lab: (domain.add_fragment, (None, NOBODY, "output", None, bytes(MUCH).decode())),
    "another key with limits that cannot be": lambda lab: (
        clients.put_permissions,
        (lab.admin, "user", clients.PermissionsBody(client_secret="another key of it", allowed_queues=["*"])),
    ),
    "a queue for an unknown client": lambda lab: (clients.add_restricted_queue, (lab.admin, "another", "nobody")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_written_nothing(name: str) -> None:
    """Else the batch of everybody's calls would run twice for each."""
    memory = Memory()
    function, args = REFUSED[name](memory.do(furnish))
    before = memory.connection.total_changes
    memory.refusal(function, *args)
    assert memory.connection.total_changes == before


def test_a_job_for_an_archived_queue_has_written_nothing() -> None:
    memory = Memory()
    memory.do(furnish)
    memory.connection.execute("UPDATE project SET archived = 1")
    before = memory.connection.total_changes
    assert "is archived" in memory.refusal(domain.submit_job, None, submission(script="echo another"))
    assert memory.connection.total_changes == before
