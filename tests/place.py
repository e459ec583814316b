"""A place for tests of the domain functions: projects with tasks in every state, and every operation that writes."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tracker
from tracker import FAIL, OK, SKIP, Tx, WorkerCredentials


@dataclass
class Place:
    """Two projects, the first chained to the second, with tasks in every state."""

    session: bytes
    worker: WorkerCredentials
    other: WorkerCredentials
    stranger: WorkerCredentials
    first: int
    second: int
    manager: int
    webhook_secret: str
    held: dict[str, int]
    operations: dict[str, int]


def furnish(tx: Tx) -> Place:
    """Makes a Place. Its worker holds all tasks of `held`."""
    session = tracker.register_manager(tx, "admin", "unused")[1]
    manager = tracker.register_manager(tx, "other", "unused")[0]["manager"]["id"]
    second = tracker.create_project(tx, session, tracker.ProjectBody("second", keep_hashes=True))["id"]
    body = tracker.ProjectBody("first", chain=second, keep_hashes=True, git_repo="owner/first")
    first = tracker.create_project(tx, session, body)["id"]
    worker, other, stranger = (create_worker(tx) for _ in range(3))
    for caller, project in itertools.product((worker, other), (first, second)):
        tracker.request_access(tx, caller, tracker.AccessBody(project, assign=True, submit=True))
        tracker.accept_request(tx, session, project, caller.id)
    tracker.request_access(tx, stranger, tracker.AccessBody(first, assign=True))

    def hold(verification_count: int, verified_by: WorkerCredentials | None = None, **fields: Any) -> int:
        """The id of a new task that the worker holds."""
        task = new_task(first, verification_count=verification_count, **fields)
        tracker.submit_task(tx, worker, task)
        if verified_by:
            (assigned,) = tracker.assign_tasks(tx, verified_by, [first]).tasks
            tracker.release_task(tx, verified_by, tracker.ReleaseBody(assigned["id"], OK, 7))
        (assigned,) = tracker.assign_tasks(tx, worker, [first]).tasks
        return assigned["id"]

    held = {
        "plain": hold(1, hash64=11),
        "to verify": hold(2),
        "verified": hold(2, verified_by=other),
        "verified differently": hold(3, verified_by=other),
        "with one attempt": hold(1, max_retries=1),
        "with two attempts": hold(1, max_retries=2),
        "expired": hold(1),
    }
    tx.execute("UPDATE task SET deadline = 0 WHERE id = ?", (held["expired"],))
    for result in (FAIL, SKIP):
        tracker.release_task(tx, worker, tracker.ReleaseBody(hold(1), result))
    tracker.submit_tasks(tx, worker, [new_task(first, hash64=number) for number in range(1, 4)])
    tracker.submit_task(tx, worker, new_task(second, hash64=5))
    tx.execute("UPDATE project SET assign_rate = 100, submit_rate = 100")
    tx.execute("INSERT INTO kept_hash VALUES (?, 99)", (first,))
    tracker.add_log_entry(tx, worker, "error", tracker.LogBody("old", 1, "old"))
    tx.execute("UPDATE log_entry SET received = 0")
    bulk = tracker.begin_bulk_submit(tx, worker, first)
    tracker.add_bulk_piece(tx, bulk, 1, tracker.encode([new_task(first, hash64=number) for number in range(2, 8)]))
    staged = tracker.begin_bulk_submit(tx, worker, first)
    tracker.add_bulk_piece(tx, staged, 1, tracker.encode([new_task(first)]))
    tx.execute("UPDATE operation SET accepted = 1 WHERE id = ?", (bulk,))
    kinds = ("reset_failed", "reclaim_assigned", "hard_reset")
    operations = {kind: tracker.begin_reset(tx, session, first, kind) for kind in kinds}
    operations |= {"bulk": bulk, "staged": staged}
    secret = tracker.get_webhook_secret(tx, session, first)["webhook_secret"]
    return Place(session, worker, other, stranger, first, second, manager, secret, held, operations)


def create_worker(tx: Tx) -> WorkerCredentials:
    worker = tracker.create_worker(tx, None, tracker.AliasBody("worker"))["worker"]
    return WorkerCredentials(worker["id"], worker["secret"].encode())


def new_task(project: int, recipe: str = "recipe", **fields: Any) -> tracker.NewTask:
    return tracker.new_task(tracker.SubmitBody(project, recipe, **fields))


Operation = tuple[Callable, tuple]


def release(place: Place, name: str, result: int = OK, verification: int = 7) -> Operation:
    body = tracker.ReleaseBody(place.held[name], result, verification)
    return tracker.release_task, (place.worker, body)


def release_many(place: Place) -> Operation:
    bodies = [tracker.ReleaseBody(task, OK, 7) for task in place.held.values()]
    return tracker.release_tasks, (place.worker, bodies)


def push(place: Place) -> Operation:
    body = b'{"ref": "refs/heads/main", "after": "c0ffee", "repository": {"full_name": "owner/first"}}'
    signature = hmac.new(place.webhook_secret.encode(), body, "sha256").hexdigest()
    return tracker.receive_push, (body, {"x-hub-signature-256": signature})


def discard_bulk_submit(tx: Tx, operation: int) -> None:
    while tracker.discard_bulk_pieces(tx, operation):
        pass


# Every operation that writes in more than one place, or might one day.
OPERATIONS: dict[str, Callable[[Place], Operation]] = {
    "submit": lambda p: (tracker.submit_task, (p.worker, new_task(p.first, hash64=50))),
    "submit a unique string": lambda p: (tracker.submit_task, (p.worker, new_task(p.first, unique_string="x"))),
    "submit many": lambda p: (tracker.submit_tasks, (p.worker, [new_task(p.first, hash64=n) for n in range(60, 70)])),
    "assign": lambda p: (tracker.assign_tasks, (p.worker, [p.first])),
    "assign many of two projects": lambda p: (tracker.assign_tasks, (p.worker, [p.second, p.first], 4)),
    "assign one that awaits verification": lambda p: (tracker.assign_tasks, (p.other, [p.first], 5)),
    "close and chain": lambda p: release(p, "plain"),
    "fail at last": lambda p: release(p, "with one attempt", FAIL),
    "fail": lambda p: release(p, "with two attempts", FAIL),
    "skip": lambda p: release(p, "plain", SKIP),
    "verify": lambda p: release(p, "to verify"),
    "verify and close": lambda p: release(p, "verified"),
    "verify differently": lambda p: release(p, "verified differently", verification=8),
    "release many": release_many,
    "expire": lambda p: (tracker.expire_tasks, ()),
    "reset failed": lambda p: (tracker.step_operation, (p.operations["reset_failed"],)),
    "reclaim": lambda p: (tracker.step_operation, (p.operations["reclaim_assigned"],)),
    "hard reset": lambda p: (tracker.step_operation, (p.operations["hard_reset"],)),
    "begin a reset": lambda p: (tracker.begin_reset, (p.session, p.first, "hard_reset")),
    "begin a bulk submit": lambda p: (tracker.begin_bulk_submit, (p.worker, p.first)),
    "stage a piece": lambda p: (tracker.add_bulk_piece, (p.operations["staged"], 2, b"[]")),
    "accept a bulk submit": lambda p: (tracker.accept_bulk_submit, (p.worker, p.operations["staged"], 1)),
    "carry out a bulk submit": lambda p: (tracker.step_operation, (p.operations["bulk"],)),
    "discard a bulk submit": lambda p: (discard_bulk_submit, (p.operations["staged"],)),
    "create a worker": lambda p: (tracker.create_worker, (None, tracker.AliasBody("new"))),
    "rename a worker": lambda p: (tracker.update_worker, (p.worker, tracker.AliasBody("renamed"))),
    "pause a worker": lambda p: (tracker.set_worker_paused, (p.session, tracker.PauseBody(p.worker.id, True))),
    "create a project": lambda p: (tracker.create_project, (p.session, tracker.ProjectBody("new", chain=p.first))),
    "update a project": lambda p: (
        tracker.update_project,
        (p.session, p.first, tracker.ProjectBody(chain=0, motd="x")),
    ),
    "request access": lambda p: (tracker.request_access, (p.stranger, tracker.AccessBody(p.second, submit=True))),
    "accept a request": lambda p: (tracker.accept_request, (p.session, p.first, p.stranger.id)),
    "reject a request": lambda p: (tracker.reject_request, (p.session, p.first, p.stranger.id)),
    "set a secret": lambda p: (tracker.set_secret, (p.session, p.first, tracker.SecretBody("x"))),
    "set a webhook secret": lambda p: (
        tracker.set_webhook_secret,
        (p.session, p.first, tracker.WebhookSecretBody("x")),
    ),
    "receive a push": push,
    "register a manager": lambda p: (tracker.register_manager, ("new", "unused")),
    "begin a login": lambda p: (tracker.begin_login, ("admin", "127.0.0.1")),
    "finish a login": lambda p: (tracker.finish_login, (p.manager, "other", "127.0.0.1")),
    "log out": lambda p: (tracker.logout, (p.session,)),
    "promote": lambda p: (tracker.promote_manager, (p.session, p.manager)),
    "set a role": lambda p: (tracker.set_role, (p.session, p.first, tracker.RoleBody(p.manager, 3))),
    "give an admin a new password": lambda p: (tracker.make_admin, ("admin", "new", True)),
    "log": lambda p: (tracker.add_log_entry, (p.worker, "error", tracker.LogBody("scope", 1, "message"))),
    "prune": lambda p: (tracker.prune, ("log_entry",)),
}
