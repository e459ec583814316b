"""Answers are packed for those who ask, sent again only when they have changed, and tell no secret by their length."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import Site
from place import Memory
from test_direct import Line

import packing
import pages
import tracker

GZIP = {"Accept-Encoding": "gzip"}


def raw(site: Site, path: str, http: httpx.Client | None = None, **headers: str) -> httpx.Response:
    """The answer, with its bytes as they came."""
    request = (http or site.admin.http).build_request("GET", path, headers=headers)
    request.headers.pop("accept-encoding", None)
    request.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    answer = (http or site.admin.http).send(request, stream=True)
    answer.sent = b"".join(answer.iter_raw())
    answer.close()
    return answer


def is_packed(answer: httpx.Response) -> bool:
    """Whether it came packed; the length that is said is the one that was sent."""
    assert int(answer.headers["content-length"]) == len(answer.sent)
    return answer.headers.get("content-encoding") == "gzip"


@pytest.mark.parametrize("path", ["/ui/", "/ui/docs", "/ui/static/style.css", "/ui/static/live.js", "/openapi.json"])
def test_a_long_text_is_packed_for_those_who_ask(site: Site, path: str) -> None:
    plain, packed = raw(site, path), raw(site, path, accept_encoding="br, gzip;q=0.5")
    assert not is_packed(plain) and is_packed(packed)
    assert len(packed.sent) < 0.6 * len(plain.sent)
    assert "Accept-Encoding" in packed.headers["vary"]
    unpacked = gzip.decompress(packed.sent)
    if "static" in path or "openapi" in path:
        assert unpacked == plain.sent


def test_a_long_list_is_packed_and_a_short_answer_is_not(site: Site) -> None:
    assert not is_packed(raw(site, "/account", accept_encoding="gzip"))
    for number in range(20):
        site.admin.create_project(f"project number {number}")
    answer = raw(site, "/project/list", accept_encoding="gzip")
    assert is_packed(answer)
    assert gzip.decompress(answer.sent) == raw(site, "/project/list").sent
    assert answer.headers["content-type"] == "application/json" and answer.headers["cache-control"] == "no-store"


def test_hot_answers_are_as_they_were(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project, "x" * 3000)
    with Line(site.url, worker) as line:
        for version in ("1.1", "1.0"):
            line.send(
                line.request("GET", f"/task/get/{project}?count=1", None, "Accept-Encoding: gzip", version=version)
            )
            assert b"content-encoding" not in line.read().lower()


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        (b"gzip", True),
        (b"GZIP , deflate", True),
        (b"*", True),
        (b"x-gzip", True),
        (b"gzip;q=0.001", True),
        (b"", False),
        (b"deflate, br", False),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000, *", False),
        (b"*;q=0", False),
    ],
)
def test_what_a_client_takes_is_heeded(accepted: bytes, taken: bool) -> None:
    assert packing.takes_gzip(accepted) == taken


def test_a_look_at_the_head_says_the_length_of_what_would_come(site: Site) -> None:
    path = "/ui/static/style.css"
    head = site.guest.head(path, headers=GZIP)
    assert head.headers["content-length"] == raw(site, path, accept_encoding="gzip").headers["content-length"]
    assert head.content == b""


def test_a_stream_stays_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PART_BYTES", 1, raising=False)
    answer = site.admin.http.get("/openapi.json")
    assert answer.status_code == 200
    streamed = tracker.Stream(iter([b"x" * 5000]), media_type="text/plain")
    assert not hasattr(streamed, "body")


# ── What has not changed ──────────────────────────────────────────────────────────────────────────────────────────────


def live(site: Site, path: str, **headers: str) -> httpx.Response:
    return raw(site, path, x_live="n" * 22, accept_encoding="gzip", **headers)


def test_a_refresh_that_changes_nothing_is_a_304(site: Site) -> None:
    project = site.admin.create_project()
    path = f"/ui/projects/{project}/submit"
    etag = live(site, path).headers["etag"]
    again = live(site, path, if_none_match=etag)
    assert (again.status_code, again.sent) == (304, b"")
    assert again.headers["etag"] == etag and again.headers["cache-control"] == "no-store"
    site.admin.update_project(project, name="another name")
    assert live(site, path, if_none_match=etag).status_code == 200


def test_charts_are_sent_when_they_have_changed(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "YOUNG", 0)
    site = make_site(snapshot_interval=1e6)
    project = site.admin.create_project()
    path = f"/ui/projects/{project}"
    site.admin.http.get(path)
    page = site.admin.http.get(path, headers={"X-Live": "n" * 22}).text
    versions = dict(re.findall(r'id="([a-z]+-card)" data-live data-version="([^"]+)"', page))
    assert set(versions) == {"throughput-card", "backlog-card"}
    known = ",".join(f"{part}={version}" for part, version in versions.items())
    made = pages.project_charts
    monkeypatch.setattr(pages, "project_charts", None)  # else they are not even made
    refreshed = site.admin.http.get(path, headers={"X-Live": "n" * 22, "X-Known": known})
    assert refreshed.status_code == 200 and "throughput-card" not in refreshed.text
    assert len(refreshed.text) < len(page)
    monkeypatch.setattr(pages, "project_charts", made)
    other = site.admin.http.get(f"{path}?range=7d", headers={"X-Live": "n" * 22, "X-Known": known}).text
    assert "throughput-card" in other


def test_charts_are_sent_with_each_snapshot_also_when_a_clock_that_was_ahead_was_set_right() -> None:
    memory, project, seen = Memory(), 7, []
    now = int(memory.clock.time())
    for stamp in (now - 1000, now + 10**6, now - 60, now):
        memory.connection.execute("INSERT INTO snapshot VALUES (?, ?, 0, 0, 0, 0, 0, 0)", (project, stamp))
        seen.append(memory.do(pages.charts_version, project, "1h"))
    assert seen[0] == seen[1] and len(set(seen)) == 3


# ── Secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tokens(page: str) -> set[str]:
    return set(re.findall(r'name="token" value="([^"]*)"', page))


def test_a_forms_token_looks_different_in_each_page_and_is_in_no_refresh(site: Site) -> None:
    first, second = (tokens(site.admin.http.get("/ui/").text) for _ in range(2))
    assert len(first) == len(second) == 1 and first != second
    assert tokens(site.admin.http.get("/ui/", headers={"X-Live": "n" * 22}).text) == {""}


@pytest.mark.parametrize("token", ["", "é", "====", "A", "AAAA", "x" * 56])
def test_a_token_that_is_none_is_refused(site: Site, token: str) -> None:
    fields = {"name": "made by a form", "token": token}
    answer = site.admin.http.post("/ui/projects/create", data=fields)
    assert answer.status_code >= 400
    assert "made by a form" not in site.admin.get("/project/list").text


def secrets_of(site: Site) -> tuple[dict[str, Any], set[str]]:
    """A project, a template and its job, and the secrets that are kept of them as they are."""
    project = site.admin.create_project()
    site.admin.post(f"/project/secret/{project}", {"secret": "VERY-SECRET-1" + 2000 * "x"})
    site.admin.post(f"/project/webhook_secret/{project}", {"webhook_secret": "VERY-SECRET-2"})
    body = {"project": project, "name": "t", "script": "true" + "# a comment\n" * 200, "env": {"KEY": "VERY-SECRET-3"}}
    made = site.admin.post("/template/create", body)
    assert made.status_code == 200, made.text
    template = made.json()["content"]["template"]
    job = site.admin.post(f"/template/trigger/{template['id']}", {}).json()["content"]["job"]
    job = {"token": job} if isinstance(job, str) else {"token": job.get("token", job.get("id"))}
    values = {"project": project, "template": template["id"], "job": job["token"]}
    return values, {"VERY-SECRET-1", "VERY-SECRET-2", "VERY-SECRET-3", template["secret"]}


@pytest.mark.parametrize("headers", [{}, {"x_live": "n" * 22}])
def test_no_answer_with_a_secret_is_packed(site: Site, headers: dict[str, str]) -> None:
    values, hidden = secrets_of(site)
    paths = [path for methods, path, _ in tracker.all_pages() if "GET" in methods]
    paths += [row.path for row in tracker.API if "GET" in row.methods]
    seen: set[str] = set()
    for path in paths:
        filled = re.sub(r"{(\w+)}", lambda match: str(values.get(match[1], 1)), path)
        answer = raw(site, filled, accept_encoding="gzip", **headers)
        packed = answer.headers.get("content-encoding") == "gzip"
        content = (gzip.decompress(answer.sent) if packed else answer.sent).decode("utf-8", "replace")
        found = {secret for secret in hidden if secret in content}
        seen |= found
        assert not (packed and found), (filled, found)
    assert seen >= {"VERY-SECRET-1", "VERY-SECRET-2", "VERY-SECRET-3"}  # they are shown somewhere


def test_what_is_shown_once_is_not_packed(site: Site) -> None:
    template = secrets_of(site)[0]["template"]
    page = site.admin.http.get(f"/ui/templates/{template}")
    token, nonce = re.search(r'name="token" value="([^"]*)"', page.text)[1], "n" * 22
    site.admin.http.headers["accept-encoding"] = "gzip"
    answer = site.admin.http.post(
        f"/ui/templates/{template}/rotate_secret",
        data={"token": token, "nonce": nonce, "confirmed": "yes"},
        follow_redirects=True,
    )
    assert 'id="secret"' in answer.text and "content-encoding" not in answer.headers
