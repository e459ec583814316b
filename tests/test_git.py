"""The git webhook: a signed push to a production branch sets a project's version."""

import hmac
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import Site
from place import Queue

import githook
import shapes
from githook import receive_push

KEY = "the webhook secret"
COMMIT = "a10867b14bb761a232cd80139fbd4c0d33264240"


def create_project(site: Site, git_repo: str = "owner/name", key: str = KEY) -> int:
    project = site.admin.create_project(git_repo=git_repo, version="before")
    site.admin.post(f"/project/webhook_secret/{project}", {"webhook_secret": key})
    return project


def version(site: Site, project: int) -> str:
    return site.admin.project(project)["version"]


def event(full_name: str = "owner/name", ref: str = "refs/heads/master", **more: Any) -> bytes:
    """The body of a push event, laid out as no JSON encoder of ours would: the signature is of the raw body."""
    repository = {"id": 17, "full_name": full_name, "private": False}
    body = {"ref": ref, "before": "0" * 40, "after": COMMIT, "repository": repository, "commits": [], **more}
    return json.dumps(body, indent=3).encode() + b"\n"


def signature(body: bytes, algorithm: str = "sha256", key: str = KEY) -> str:
    return hmac.new(key.encode(), body, algorithm).hexdigest()


def push(site: Site, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Sends a push event, signed as GitHub does unless other headers are given."""
    if headers is None:
        headers = {"X-Hub-Signature-256": f"sha256={signature(body)}"}
    return site.guest.post("/git/receivehook", content=body, headers={"Content-Type": "application/json", **headers})


def refused(answer: httpx.Response, status: int) -> str:
    """Why an event was refused with this status."""
    assert (answer.status_code, answer.json()["ok"]) == (status, False), answer.text
    return answer.json()["message"]


def test_a_push_sets_the_version_to_its_last_commit(site: Site) -> None:
    project, other = create_project(site), create_project(site, "owner/other")
    answer = push(site, event())
    assert (answer.status_code, answer.json()["ok"]) == (200, True)
    assert (version(site, project), version(site, other)) == (COMMIT, "before")


SIGNATURE_HEADERS = {
    "X-Hub-Signature-256": "sha256",
    "X-Gitea-Signature": "sha256",
    "X-Gogs-Signature": "sha256",
    "X-Hub-Signature": "sha1",
}


def test_each_signature_header_counts_with_or_without_prefix(site: Site) -> None:
    project = create_project(site)
    for header, algorithm in SIGNATURE_HEADERS.items():
        for prefix in "", f"{algorithm}=":
            body = event(compare=f"{header} {prefix}")
            site.admin.update_project(project, version="before")
            assert push(site, body, {header: prefix + signature(body, algorithm)}).status_code == 200, (header, prefix)
            assert version(site, project) == COMMIT


def test_an_event_that_comes_again_changes_nothing_and_is_answered_as_before(site: Site) -> None:
    project = create_project(site)
    first = push(site, event())
    assert push(site, event(after="b" * 40)).status_code == 200
    again = push(site, event())
    assert (again.status_code, again.json()) == (200, first.json())
    assert version(site, project) == "b" * 40
    site.admin.update_project(project, version="chosen by hand")
    push(site, event(after="b" * 40))
    assert version(site, project) == "chosen by hand"


def test_an_event_of_several_projects_is_new_to_a_project_that_has_not_taken_it(site: Site) -> None:
    one = create_project(site)
    push(site, event())
    other = create_project(site)
    site.admin.update_project(one, version="chosen by hand")
    assert push(site, event()).json()["content"]["projects"] == [one, other]
    assert (version(site, one), version(site, other)) == ("chosen by hand", COMMIT)


def test_the_last_events_are_remembered_and_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(githook, "MOST_PUSHES", 3)
    project = create_project(site)
    for number in range(5):
        push(site, event(after=f"{number:040}"))
    assert site.read("SELECT COUNT(*) FROM push") == [(3,)]
    for number, taken in (4, False), (2, False), (0, True):
        site.admin.update_project(project, version="before")
        push(site, event(after=f"{number:040}"))
        assert (version(site, project) != "before") == taken


def test_a_wrong_or_missing_signature_is_403(site: Site) -> None:
    project, body = create_project(site), event()
    good = signature(body)
    wrong = {
        "none": {},
        "empty": {"X-Hub-Signature-256": ""},
        "prefix only": {"X-Hub-Signature-256": "sha256="},
        "another key": {"X-Hub-Signature-256": signature(body, key="another")},
        "another body": {"X-Hub-Signature-256": signature(body + b" ")},
        "another algorithm": {"X-Hub-Signature-256": signature(body, "sha1")},
        "sha1 in a header for sha256": {"X-Gitea-Signature": f"sha1={signature(body, 'sha1')}"},
        "cut off": {"X-Hub-Signature-256": good[:-1]},
        "too long": {"X-Hub-Signature-256": good + "0"},
        "an empty key": {"X-Hub-Signature-256": signature(body, key="")},
        "another header": {"X-Signature": good},
    }
    answers = {why: push(site, body, headers).status_code for why, headers in wrong.items()}
    assert answers == dict.fromkeys(wrong, 403)
    assert version(site, project) == "before"


def test_what_nobody_has_signed_is_refused_before_it_is_read(site: Site) -> None:
    create_project(site)
    for body in b"{", b"[]", event("owner/unknown"), b"x" * (5 * 2**20):
        assert push(site, body, {}).status_code == 403, body[:10]
    assert push(site, b"{").status_code == 400


def test_a_key_that_was_changed_meanwhile_sets_no_version() -> None:
    """It was looked at outside of the transaction."""
    queue = Queue()
    pushed = shapes.PushBody(ref="refs/heads/main", after=COMMIT, repository=shapes.Repository(full_name="owner/name"))
    queue.do(receive_push, pushed, b"", {queue.project: "the key of before"})
    assert queue.values("SELECT version FROM project") != [(COMMIT,)]


def test_the_signature_of_another_project_does_not_count(site: Site) -> None:
    project = create_project(site)
    create_project(site, "owner/other", key="another key")
    body = event()
    assert push(site, body, {"X-Hub-Signature-256": signature(body, key="another key")}).status_code == 403
    assert version(site, project) == "before"


def test_the_repository_is_found_whatever_its_case(site: Site) -> None:
    project = create_project(site, "owner/Name")
    for full_name in "Owner/Name", "OWNER/NAME", "owner/name":
        site.admin.update_project(project, version="before")
        assert push(site, event(full_name)).status_code == 200
        assert version(site, project) == COMMIT


def test_another_repository_is_400_and_named(site: Site) -> None:
    project = create_project(site)
    assert "owner/unknown" in refused(push(site, event("owner/unknown")), 400)
    assert version(site, project) == "before"


def test_a_project_without_repository_is_not_that_of_a_repository_without_name(site: Site) -> None:
    project = create_project(site, "")
    refused(push(site, event("")), 400)
    assert version(site, project) == "before"


def test_every_project_of_a_repository_gets_the_version_if_its_own_secret_signed(site: Site) -> None:
    one, same, other = create_project(site), create_project(site), create_project(site, key="another key")
    assert push(site, event()).status_code == 200
    assert [version(site, project) for project in (one, same, other)] == [COMMIT, COMMIT, "before"]


def test_main_and_master_are_production_branches_and_no_other(site: Site) -> None:
    refs = {
        "refs/heads/main": COMMIT,
        "refs/heads/master": COMMIT,
        "refs/heads/develop": "before",
        "refs/heads/feature/main": "before",
        "refs/heads/mainline": "before",
        "refs/tags/main": "before",
        "refs/heads/Main": "before",
        "": "before",
    }
    versions = {}
    for ref in refs:
        project = create_project(site, f"owner/{len(versions)}")
        answer = push(site, event(f"owner/{len(versions)}", ref))
        versions[ref] = version(site, project)
        if versions[ref] == "before":
            assert repr(ref) in refused(answer, 400)
    assert versions == refs


def test_the_production_branches_are_configurable(make_site: Callable[..., Site]) -> None:
    site = make_site(production_branches=("release/stable",))
    project = create_project(site)
    assert push(site, event(ref="refs/heads/master")).status_code == 400
    assert push(site, event(ref="refs/heads/release/stable")).status_code == 200
    assert version(site, project) == COMMIT


def test_the_deletion_of_a_branch_sets_no_version(site: Site) -> None:
    project = create_project(site)
    refused(push(site, event(after="0" * 40, deleted=True)), 400)
    assert version(site, project) == "before"


def test_workers_see_the_new_version_with_their_next_task(site: Site) -> None:
    project = create_project(site)
    worker = site.create_worker(project)
    worker.submit(project)
    push(site, event())
    assert worker.assigned(project)["project"]["version"] == COMMIT


def test_signatures_of_pushes_are_looked_at_one_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may make projects with a repository, and send large bodies that nobody has signed."""
    for _ in range(4):
        create_project(site)
    new, lock = hmac.new, threading.Lock()
    crowds: list[bool] = []

    def counting(key: bytes, message: bytes, algorithm: str) -> Any:
        if algorithm == "sha1":
            crowds.append(not lock.acquire(blocking=False))
            time.sleep(0.02)
            if not crowds[-1]:
                lock.release()
        return new(key, message, algorithm)

    monkeypatch.setattr(hmac, "new", counting)
    with ThreadPoolExecutor(3) as strangers:
        answers = list(strangers.map(lambda _: push(site, event(), {"X-Hub-Signature": "sha1=00"}), range(3)))
    assert {answer.status_code for answer in answers} == {403}
    assert crowds == [False] * 12


def test_the_same_push_is_hashed_once_for_all_headers_of_an_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    new = hmac.new

    def counting(key: bytes, message: bytes, algorithm: str) -> Any:
        hashed.append(algorithm)
        return new(key, message, algorithm)

    monkeypatch.setattr(hmac, "new", counting)
    assert not githook.signed_with(KEY, b"body", dict.fromkeys(githook.SIGNATURE_HEADERS, "00"))
    assert sorted(hashed) == ["sha1", "sha256"]
