"""Push events of GitHub, Gitea and Gogs: they set the version of the project whose repository was pushed to."""

from __future__ import annotations

import hmac
from typing import Any

from errors import TrackerError, decode
from shapes import Push, PushBody

SIGNATURE_HEADERS = {
    "x-hub-signature-256": "sha256",
    "x-gitea-signature": "sha256",
    "x-gogs-signature": "sha256",
    "x-hub-signature": "sha1",
}


def receive_push(tx: Any, body: bytes, signatures: dict[str, str]) -> Push:
    """Sets the version of the project whose repository was pushed to, if its webhook secret signed the body.

    `signatures` are the request's headers of SIGNATURE_HEADERS. Nothing of the body is believed before it has matched.
    """
    push = decode(body, PushBody)
    rows = tx.all("SELECT * FROM project WHERE git_repo = ? AND git_repo <> ''", (push.repository.full_name,))
    projects = [row for row in rows if signed_with(row["webhook_secret"], body, signatures)]
    if not projects and all(row["hidden"] for row in rows):  # whoever has not its key learns nothing of one
        problem = f"no project has the git_repo {push.repository.full_name!r}"
        raise TrackerError("invalid", problem, "repository.full_name")
    if not projects:
        raise TrackerError("forbidden", "The signature is missing or does not match the project's webhook secret")
    branch = push.ref.removeprefix("refs/heads/")
    if branch not in tx.settings.production_branches:
        raise TrackerError("invalid", f"{push.ref!r} is not one of {', '.join(tx.settings.production_branches)}", "ref")
    if push.deleted:
        raise TrackerError("invalid", "the branch is gone, there is no version to set", "deleted")
    for row in projects:
        tx.execute("UPDATE project SET version = ? WHERE id = ?", (push.after, row["id"]))
    return Push(push.after, [row["id"] for row in projects])


def signed_with(key: str, body: bytes, signatures: dict[str, str]) -> bool:
    """Whether one of the signatures is the HMAC of the raw body under this key. Under an empty one none is."""
    if not key:
        return False
    for header, algorithm in SIGNATURE_HEADERS.items():
        given = signatures.get(header, "").removeprefix(f"{algorithm}=").lower()
        expected = hmac.new(key.encode(), body, algorithm).hexdigest() if given else "none"
        if hmac.compare_digest(expected.encode(), given.encode()):
            return True
    return False
