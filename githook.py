"""Push events of GitHub, Gitea and Gogs: they set the version of the project whose repository was pushed to."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from errors import TrackerError
from shapes import Push, PushBody

SIGNATURE_HEADERS = {
    "x-hub-signature-256": "sha256",
    "x-gitea-signature": "sha256",
    "x-gogs-signature": "sha256",
    "x-hub-signature": "sha1",
}


MOST_PUSHES = 1000  # that are remembered of a project: years of it
NOT_SIGNED = "The signature is missing or does not match the project's webhook secret"
Keys = dict[int, str]  # of projects, by their ids


def keys_for(tx: Any, push: PushBody) -> tuple[Keys, bool]:
    """The webhook secrets of the projects whose repository was pushed to, and whether one of them is there for all."""
    rows = tx.all("SELECT * FROM project WHERE git_repo = ? AND git_repo <> ''", (push.repository.full_name,))
    return {row["id"]: row["webhook_secret"] for row in rows}, not all(row["hidden"] for row in rows)


def check_signed(signatures: dict[str, str]) -> None:
    """Refuses (403) what nobody has signed: it is not even read."""
    if not any(signatures.values()):
        raise TrackerError("forbidden", NOT_SIGNED)


def check_known(signed: Keys, seen: bool, push: PushBody) -> None:
    """Refuses a push that no project's key has signed. Nothing of it is believed before.

    Whoever has not its key learns nothing of a hidden project.
    """
    if signed:
        return
    if seen:
        raise TrackerError("forbidden", NOT_SIGNED)
    raise TrackerError("invalid", f"no project has the git_repo {push.repository.full_name!r}", "repository.full_name")


def receive_push(tx: Any, push: PushBody, body: bytes, signed: Keys) -> Push:
    """Sets the version of the projects whose secrets, which they still have, signed the push.

    A body that a project has taken already changes nothing there, and is answered as before: hosts send one again whose
    answer was lost, and whoever has kept one can send it years later.
    """
    branch = push.ref.removeprefix("refs/heads/")
    if branch not in tx.settings.production_branches:
        raise TrackerError("invalid", f"{push.ref!r} is not one of {', '.join(tx.settings.production_branches)}", "ref")
    if push.deleted:
        raise TrackerError("invalid", "the branch is gone, there is no version to set", "deleted")
    digest = hashlib.sha256(body).digest()
    for project, key in signed.items():
        secret = tx.one("SELECT webhook_secret FROM project WHERE id = ?", (project,))
        if secret and secret[0] == key and is_new(tx, project, digest):
            tx.execute("UPDATE project SET version = ? WHERE id = ?", (push.after, project))
    return Push(push.after, list(signed))


def is_new(tx: Any, project: int, digest: bytes) -> bool:
    """Whether the project has not taken a push with this digest before, of the last MOST_PUSHES. Now it has."""
    added = "INSERT INTO push (project, digest) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id"
    if tx.one(added, (project, digest)) is None:
        return False
    older = "SELECT id FROM push WHERE project = ?1 ORDER BY id DESC LIMIT -1 OFFSET ?2"
    tx.execute(f"DELETE FROM push WHERE id IN ({older})", (project, MOST_PUSHES))
    return True


def signed_with(key: str, body: bytes, signatures: dict[str, str]) -> bool:
    """Whether one of the signatures is the HMAC of the raw body under this key. Under an empty one none is.

    `signatures` are the request's headers of SIGNATURE_HEADERS. Takes a moment for a large body.
    """
    if not key:
        return False
    given = {name: text for name, text in signatures.items() if text}
    expected = {one: hmac.new(key.encode(), body, one).hexdigest() for one in {*map(SIGNATURE_HEADERS.get, given)}}
    for header, text in given.items():
        algorithm = SIGNATURE_HEADERS[header]
        signature = text.removeprefix(f"{algorithm}=").lower()
        if hmac.compare_digest(expected[algorithm].encode(), signature.encode()):
            return True
    return False
