"""The Otter dialect: its document's examples with the real curl, keys, variables, statuses and logs."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Site, client, wait_until
from doors import AGENTS, House, NativeAgent

import tracker

ENDPOINTS = ("trigger", "status", "logs")
KEY = House.KEY


@pytest.fixture
def house(site: Site) -> House:
    """With the template `build`, which has a key, and the open one `ablast`, which has none."""
    house = House(site)
    house.create_template("ablast", variables=[{"name": "TargetServer", "value": "ABLSV0"}])
    return house


@pytest.fixture
def agent(house: House) -> NativeAgent:
    return NativeAgent(house)


def call(house: House, endpoint: str, method: str = "GET", **options: Any) -> httpx.Response:
    """A request by somebody who has no account."""
    return house.site.guest.request(method, f"/api/jobs/{endpoint}", **options)


def trigger(house: House, template: str = "ablast", **parameters: str) -> str:
    """The token of a new job."""
    response = call(house, "trigger", params={"template": template, **parameters})
    assert response.status_code == 200, response.text
    return response.text


def trigger_with_key(house: House) -> str:
    return trigger(house, House.NAME, key=KEY)


def status(house: House, token: str) -> str:
    response = call(house, "status", params={"token": token})
    assert response.status_code == 200, response.text
    return response.text


def log_lines(house: House, token: str) -> list[str]:
    response = call(house, "logs", params={"token": token})
    assert response.status_code == 200, response.text
    assert response.text.endswith("\n")
    return response.text[:-1].split("\n")


def parameters_for(house: House, endpoint: str) -> dict[str, str]:
    """What the endpoint needs besides the key, for the template that has one."""
    return {"template": House.NAME} if endpoint == "trigger" else {"token": trigger_with_key(house)}


def variables(agent: NativeAgent) -> dict[str, Any]:
    """The variables of the job that comes next."""
    return agent.assign()["job"]["variables"]


def refused(response: httpx.Response, code: int, *words: str) -> bool:
    """Whether it was refused with this status, and a reason in plain text that has these words."""
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert all(word in response.text for word in words), response.text
    return True


# ── The document's examples ───────────────────────────────────────────────────────────────────────────────────────────

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def curl(house: House, path: str, *options: str) -> tuple[str, int]:
    """What the real curl prints for this path, and the status."""
    command = ["curl", "--silent", "--noproxy", "*", "--write-out", "|%{http_code}", *options, house.site.url + path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    body, _, code = done.stdout.rpartition("|")
    return body, int(code)


@needs_curl
def test_the_documents_simple_get(house: House) -> None:
    house.create_template("hdars", key="secure123")
    token, code = curl(house, "/api/jobs/trigger?template=hdars&key=secure123")
    assert code == 200
    assert token.isalnum()


@needs_curl
def test_the_documents_post_with_variables(house: House, agent: NativeAgent) -> None:
    data = "TargetServer=ABLSV1&SendNotification=sdennis@example.com"
    token, code = curl(house, "/api/jobs/trigger?template=ablast", "-X", "POST", "-d", data)
    assert (code, token.isalnum()) == (200, True)
    assert variables(agent) == {"TargetServer": "ABLSV1", "SendNotification": "sdennis@example.com"}


@needs_curl
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_token_is_pasted_into_the_documents_other_calls(house: House, agent: NativeAgent, method: str) -> None:
    token, _ = curl(house, f"/api/jobs/trigger?template=build&key={KEY}", "-X", method)
    agent.log(agent.assign(), "hello")
    assert curl(house, f"/api/jobs/status?token={token}&key={KEY}", "-X", method) == ("Executing", 200)
    log, code = curl(house, f"/api/jobs/logs?token={token}&key={KEY}", "-X", method)
    assert (code, log.splitlines()[-1]) == (200, "INFO: hello")


@needs_curl
def test_a_url_in_raw_utf_8_is_understood_as_curl_sends_it(house: House, agent: NativeAgent) -> None:
    house.create_template("blåbær", key="nøkkelen")
    token, code = curl(house, "/api/jobs/trigger?template=blåbær&key=nøkkelen&by=Tromsø")
    assert (code, variables(agent)) == (200, {"by": "Tromsø"})
    assert curl(house, f"/api/jobs/status?token={token}&key=nøkkelen") == ("Executing", 200)


@needs_curl
def test_every_parameter_may_be_in_a_body_that_curl_sends(house: House) -> None:
    token, code = curl(house, "/api/jobs/trigger", "-d", "template=build", "-d", f"key={KEY}")
    assert code == 200
    assert curl(house, "/api/jobs/status", "-F", f"token={token}", "-F", f"key={KEY}") == ("Pending", 200)
    body = json.dumps({"token": token, "API_Key": KEY})
    assert curl(house, "/api/jobs/status", "-d", body) == ("Pending", 200)


# ── Methods and errors ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_other_methods_are_refused_and_trigger_nothing(house: House, endpoint: str) -> None:
    for method in ("PUT", "PATCH", "DELETE"):
        response = call(house, endpoint, method, params={"template": "ablast"})
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")
    assert house.site.read("SELECT COUNT(*) FROM job") == [(0,)]


def test_answers_are_plain_text_that_nobody_keeps(house: House) -> None:
    for endpoint in ENDPOINTS:
        response = call(house, endpoint, params={**parameters_for(house, endpoint), "key": KEY})
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_missing_parameter_is_named(house: House, endpoint: str) -> None:
    name = "template" if endpoint == "trigger" else "token"
    assert refused(call(house, endpoint), 400, f"{name}: is required")
    assert refused(call(house, endpoint, params={name: ""}), 400, f"{name}: is required")


def test_an_unknown_template_is_not_found(house: House) -> None:
    assert refused(call(house, "trigger", params={"template": "nothing"}), 404, "template", "'nothing'")


@pytest.mark.parametrize("endpoint", ["status", "logs"])
@pytest.mark.parametrize("token", ["\0", "é"])
def test_an_unknown_token_is_refused(house: House, endpoint: str, token: str) -> None:
    trigger(house)
    assert refused(call(house, endpoint, params={"token": token}), 400, "token")


def test_the_run_of_a_workflow_has_no_template_and_is_no_job_of_this_dialect(house: House) -> None:
    admin = house.site.admin
    made = admin.post("/workflow/create", {"project": house.project, "name": "flow", "start": house.template["id"]})
    run = admin.post(f"/workflow/trigger/{made.json()['content']['workflow']['id']}", {}).json()["content"]["job"]
    assert refused(call(house, "status", params={"token": run["id"], "key": KEY}), 400, "token")


def test_a_template_that_is_not_for_the_api_is_refused_whatever_the_key(house: House) -> None:
    house.create_template("private", api=False, key=KEY)
    assert refused(call(house, "trigger", params={"template": "private", "key": KEY}), 403, "template")
    assert refused(call(house, "trigger", params={"template": "private"}), 403, "template")


@pytest.mark.parametrize("endpoint", ["status", "logs"])
def test_jobs_of_a_template_that_is_no_longer_for_the_api_are_refused(house: House, endpoint: str) -> None:
    token = trigger_with_key(house)
    house.change_template(api=False)
    assert refused(call(house, endpoint, params={"token": token, "key": KEY}), 403, "template")


def test_the_key_is_checked_before_the_variables(house: House) -> None:
    house.change_template(variables=[{"name": "Size", "required": True}])
    assert refused(call(house, "trigger", params={"template": "build"}), 403, "key")
    assert refused(call(house, "trigger", params={"template": "build", "key": KEY}), 400, "Size")


@pytest.mark.parametrize("body", [b"{", b"{]", b'{"template": 1e999}', b'{"\xff": 1}'])
def test_malformed_json_is_refused(house: House, body: bytes) -> None:
    assert refused(call(house, "trigger", "POST", content=body), 400, "body")


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
@pytest.mark.parametrize("body", [b"", b" \r\n", b"null", b"\xef\xbb\xbf null\n"])
def test_a_body_that_says_nothing_is_as_good_as_none(house: House, agent: NativeAgent, kind: str, body: bytes) -> None:
    options = {"content": body, "headers": {"Content-Type": kind} if kind else {}}
    token = call(house, "trigger", "POST", params={"template": "build", "key": KEY, "a": "b"}, **options).text
    assert variables(agent) == {"a": "b"}
    for endpoint in ("status", "logs"):
        assert call(house, endpoint, "POST", params={"token": token, "key": KEY}, **options).status_code == 200


@pytest.mark.parametrize("body", [b"[]", b"7", b'"template"'])
def test_json_that_is_no_object_is_refused(house: House, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert refused(call(house, "trigger", "POST", content=body, headers=headers), 400, "body")


def test_json_parameters_that_are_no_text_count_as_the_text_that_they_look_like(house: House) -> None:
    house.create_template("7", key="12345678")
    made = call(house, "trigger", "POST", json={"template": 7, "API_Key": 12345678})
    assert made.status_code == 200, made.text
    assert refused(call(house, "trigger", "POST", json={"template": ["7"]}), 404, "template")
    assert refused(call(house, "trigger", "POST", json={"template": None}), 400, "template: is required")
    assert refused(call(house, "trigger", "POST", json={"template": 7, "key": {"a": 1}}), 403, "key")
    assert refused(call(house, "status", "POST", json={"token": 471}), 400, "token")


@pytest.mark.parametrize("form", [b"template=%ff", b"template=\xff", b"&".join([b"a=1"] * 1001)])
def test_a_malformed_form_is_refused(house: House, form: bytes) -> None:
    assert refused(call(house, "trigger", "POST", content=form), 400, "body")


def test_a_malformed_query_is_refused(house: House) -> None:
    assert refused(house.site.guest.get("/api/jobs/trigger?template=%ff"), 400, "query")


@pytest.mark.parametrize("boundary", ["", "; boundary=x"])
def test_a_malformed_multipart_form_is_refused(house: House, boundary: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{boundary}"}
    assert refused(call(house, "trigger", "POST", content=b"--y\r\n", headers=headers), 400, "body")


def test_a_file_is_refused(house: House) -> None:
    parameters = {"params": {"template": "ablast"}, "files": {"file": b"content"}}
    assert refused(call(house, "trigger", "POST", **parameters), 400, "file")


@pytest.mark.parametrize("endpoint", ["status", "logs"])
def test_to_ask_for_a_job_takes_a_small_body(house: House, endpoint: str) -> None:
    assert refused(call(house, endpoint, "POST", content=b"token=x&key=" + b"k" * 70_000), 413, "64 KiB")


def test_too_large_a_body_is_refused(make_site) -> None:
    house = House(make_site(max_body=1))
    assert refused(call(house, "trigger", "POST", content=b"a=" + b"x" * 1024), 413, "body")


def test_triggering_too_fast_is_refused_for_a_while(house: House) -> None:
    house.site.admin.update_project(house.project, submit_rate=0.01)
    trigger(house)
    response = call(house, "trigger", params={"template": "ablast"})
    assert refused(response, 429)
    assert 90 <= int(response.headers["retry-after"]) <= 100
    house.site.clock.pass_time(101)
    trigger(house)


def test_an_internal_error_is_not_told_to_the_caller(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(tracker, "api_template", fail)
    response = call(house, "trigger", params={"template": "ablast"})
    assert (response.status_code, response.text) == (500, "Internal error")
    assert "RuntimeError: inside" in caplog.text


def test_cookies_are_not_looked_at(house: House) -> None:
    """The key, and nothing that a browser adds, opens this door."""
    manager = house.site.admin.http
    assert manager.get("/api/jobs/trigger", params={"template": "build"}).status_code == 403


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

KEY_PLACES = {
    "query": lambda key: {"params": {"key": key}},
    "form": lambda key: {"data": {"key": key}},
    "multipart": lambda key: {"files": {"key": (None, key)}},
    "header": lambda key: {"headers": {"X-ApiKey": key}},
    "json": lambda key: {"json": {"API_Key": key}},
    "json, like a form": lambda key: {"json": {"key": key}},
    "json without its type": lambda key: {"content": f'\n {{"API_Key": "{key}"}}'},
}


@pytest.mark.parametrize("place", KEY_PLACES)
@pytest.mark.parametrize("endpoint", ["trigger"])
def test_a_key_counts_in_every_place(house: House, endpoint: str, place: str) -> None:
    needed = parameters_for(house, endpoint)

    def tried(key: str) -> httpx.Response:
        options = KEY_PLACES[place](key)
        return call(house, endpoint, "POST", **{**options, "params": {**needed, **options.get("params", {})}})

    assert refused(tried("wrong"), 403, "key")
    assert refused(tried(KEY + "4"), 403, "key")
    assert tried(KEY).status_code == 200


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("key", [{}, {"key": ""}])
def test_a_missing_key_is_refused_and_an_empty_one_is_missing(house: House, endpoint: str, key: dict[str, str]) -> None:
    assert refused(call(house, endpoint, params={**parameters_for(house, endpoint), **key}), 403, "key: is required")


@pytest.mark.parametrize("place", KEY_PLACES)
def test_a_superfluous_key_is_ignored(house: House, agent: NativeAgent, place: str) -> None:
    options = KEY_PLACES[place]("anything")
    response = call(house, "trigger", "POST", **{**options, "params": {"template": "ablast"}})
    assert response.status_code == 200
    assert variables(agent) == {"TargetServer": "ABLSV0"}


def test_the_key_of_the_body_counts_before_the_others(house: House) -> None:
    options = {"params": {"template": "build", "key": "wrong"}, "headers": {"X-ApiKey": "wrong"}}
    assert call(house, "trigger", "POST", data={"key": KEY}, **options).status_code == 200
    assert call(house, "trigger", "POST", data={"key": ""}, **options).status_code == 403


def test_an_empty_key_leaves_the_word_to_the_header(house: House) -> None:
    options = {"params": {"template": "build", "key": ""}, "headers": {"X-ApiKey": KEY}}
    assert call(house, "trigger", "POST", data={"key": ""}, **options).status_code == 200


def test_a_key_may_have_any_character(house: House) -> None:
    key = "päss wörd+&=%/日本"
    house.change_template(key=key)
    needed = {"template": "build"}
    assert call(house, "trigger", params={**needed, "key": key}).status_code == 200
    assert call(house, "trigger", params=needed, headers={"X-ApiKey": key.encode()}).status_code == 200


# ── Variables ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SENT = {
    "query": {"params": {"TargetServer": "A&B=C"}},
    "form": {"data": {"TargetServer": "A&B=C"}},
    "form by another name": {"content": "TargetServer=A%26B%3dC", "headers": {"Content-Type": "text/plain"}},
    "form without a type": {"content": "TargetServer=A%26B%3dC"},
    "multipart": {"files": {"TargetServer": (None, "A&B=C")}},
    "json": {"json": {"TargetServer": "A&B=C"}},
    "json by another name": {
        "content": '{"TargetServer": "A&B=C"}',
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    },
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("sent", SENT)
def test_a_variable_overrides_the_templates_value(house: House, agent: NativeAgent, sent: str, method: str) -> None:
    options = {**SENT[sent], "params": {**SENT[sent].get("params", {}), "template": "ablast"}}
    assert call(house, "trigger", method, **options).status_code == 200
    assert variables(agent) == {"TargetServer": "A&B=C"}


def test_the_body_wins_over_the_query(house: House, agent: NativeAgent) -> None:
    query = {"template": "nothing", "TargetServer": "query", "Other": "query"}
    body = {"template": "ablast", "TargetServer": "body"}
    assert call(house, "trigger", "POST", params=query, data=body).status_code == 200
    assert variables(agent) == {"TargetServer": "body", "Other": "query"}


def test_the_last_one_of_a_repeated_parameter_counts(house: House, agent: NativeAgent) -> None:
    house.site.guest.get("/api/jobs/trigger?template=nothing&template=ablast&TargetServer=1&TargetServer=2")
    assert variables(agent) == {"TargetServer": "2"}


def test_an_empty_value_overrides_too(house: House, agent: NativeAgent) -> None:
    trigger(house, TargetServer="")
    assert variables(agent) == {"TargetServer": ""}


def test_json_keeps_the_type_of_a_variable(house: House, agent: NativeAgent) -> None:
    values = {"Count": 3, "Ratio": 0.5, "Dry": True, "Nothing": None, "Hosts": ["a", "b"], "TargetServer": {"n": 1}}
    assert call(house, "trigger", "POST", json={"template": "ablast", **values}).status_code == 200
    assert variables(agent) == values


ARGUMENTS = [
    {"order": 1, "type": "input", "label": "city"},
    {"order": 2, "type": "fixed", "value": "between"},
    {"order": 3, "type": "select", "label": "size", "value": "small", "options": ["small", "large"]},
    {"order": 4, "type": "input", "label": "key"},
    {"order": 5, "type": "input"},
]


def test_arguments_are_given_as_variables_by_their_labels_or_places(house: House, agent: NativeAgent) -> None:
    house.create_template("deploy", arguments=ARGUMENTS, undeclared=False)
    given = {"city": "Tromsø", "argument 3": "a", "argument 4": ""}
    assert trigger(house, "deploy", **given)
    job = agent.assign()["job"]
    assert (job["arguments"], job["variables"]) == (["Tromsø", "between", "small", "a", ""], {})
    body = {"template": "deploy", "argument 1": None, "size": "large", "argument 3": 5, "argument 4": "d", "other": "x"}
    assert refused(call(house, "trigger", "POST", json=body), 400, "other")
    del body["other"]
    assert call(house, "trigger", "POST", json=body).status_code == 200
    assert agent.assign()["job"]["arguments"] == ["", "between", "large", "5", "d"]


def test_an_argument_that_is_missing_is_named(house: House) -> None:
    house.create_template("deploy", arguments=ARGUMENTS)
    for given, missing in (
        ({}, "city"),
        ({"city": "x"}, "argument 3"),
        ({"city": "x", "argument 3": "x"}, "argument 4"),
    ):
        assert refused(call(house, "trigger", params={"template": "deploy", **given}), 400, f"{missing}: is required")


def test_an_argument_may_have_the_name_of_a_variable(house: House, agent: NativeAgent) -> None:
    variables = [{"name": "city", "value": "Oslo"}]
    house.create_template("deploy", arguments=ARGUMENTS[:1], variables=variables, undeclared=False)
    trigger(house, "deploy", city="Bergen")
    job = agent.assign()["job"]
    assert (job["arguments"], job["variables"]) == (["Bergen"], {"city": "Bergen"})


def test_the_reserved_names_are_no_variables(house: House, agent: NativeAgent) -> None:
    trigger(house, token="x", key="y")
    assert variables(agent) == {"TargetServer": "ABLSV0"}


@pytest.mark.parametrize(
    "hostile",
    [
        '{"template": "ablast", "x": %s}' % ("[" * 100_000),
        '{"template": "ablast", "x": %s}' % ("[" * 900 + "]" * 900),
        '{"template": "ablast", "x": %s}' % ("9" * 5000),
        '{"template": "ablast", "x": "\\u0000"}',
        '{"template": "ablast", "\\u0000": "x"}',
        '{"template": "ablast", "": "x"}',
        '{"template": "\\u0000"}',
        "template=ablast&x=%00",
        "template=ablast&%00=x",
        "template=ablast&=x",
    ],
    ids=range(10),
)
def test_hostile_bodies_are_refused_or_pass_through_unharmed(house: House, agent: NativeAgent, hostile: str) -> None:
    response = call(house, "trigger", "POST", content=hostile)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 200:
        assert "TargetServer" in variables(agent)


# ── Status ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("result", "output", "shown"),
    [
        (tracker.OK, ["anything"], "Succeeded"),
        (tracker.OK, {"state": "warning"}, "Warning"),
        (tracker.OK, {"state": "failure"}, "Error"),
        (tracker.FAIL, None, "Error"),
    ],
)
def test_the_status_follows_from_the_result(
    house: House, agent: NativeAgent, result: int, output: Any, shown: str
) -> None:
    token = trigger(house)
    agent.release(agent.assign(), result, output)
    assert status(house, token) == shown


@pytest.mark.parametrize(
    ("level", "shown"),
    [("warn", "Warning"), ("info", "Succeeded")],
)
def test_a_warning_in_the_log_makes_a_success_a_warning(
    house: House, agent: NativeAgent, level: str, shown: str
) -> None:
    token = trigger(house)
    held = agent.assign()
    agent.worker.log(level, "look here", task_id=held["id"])
    assert status(house, token) == "Executing"
    agent.succeed(held)
    assert status(house, token) == shown


def test_a_failure_with_warnings_is_an_error(house: House, agent: NativeAgent) -> None:
    token = trigger(house)
    held = agent.assign()
    agent.worker.log("warn", "look here", task_id=held["id"])
    agent.fail(held)
    assert status(house, token) == "Error"


def test_a_job_that_will_be_tried_again_is_executing(house: House, agent: NativeAgent) -> None:
    house.create_template("twice", max_retries=2)
    token = trigger(house, "twice")
    agent.fail(agent.assign())
    assert status(house, token) == "Executing"
    agent.fail(agent.assign())
    assert status(house, token) == "Error"


def test_a_job_keeps_its_status_when_its_template_is_deleted(house: House, agent: NativeAgent) -> None:
    token = trigger_with_key(house)
    assert house.site.admin.post(f"/template/delete/{house.template['id']}").status_code == 200
    assert refused(call(house, "status", params={"token": token}), 403, "key")
    assert call(house, "status", params={"token": token, "key": KEY}).status_code == 200
    assert refused(call(house, "trigger", params={"template": "build", "key": KEY}), 404, "template")


# ── Logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_entries_are_logged_in_their_order_with_their_levels(house: House, agent: NativeAgent) -> None:
    token = trigger(house)
    held = agent.assign()
    levels = ("error", "trace", "warn", "debug", "info")
    entries = [{"message": f"a {level}", "timestamp": 9 - n, "level": level} for n, level in enumerate(levels)]
    assert agent.http.post("/task/log", json={"task_id": held["id"], "entries": entries}).status_code == 200
    assert log_lines(house, token)[-5:] == [
        "ERROR: a error",
        "DEBUG: a trace",
        "WARN: a warn",
        "DEBUG: a debug",
        "INFO: a info",
    ]


def test_the_tracker_adds_its_own_lines(house: House, agent: NativeAgent) -> None:
    token = trigger(house)
    agent.succeed(agent.assign())
    lines = log_lines(house, token)
    assert all(line.startswith("INFO: ") for line in lines)
    assert any(agent.worker.alias in line for line in lines)
    assert len(lines) >= 3  # created, assigned, released


MESSAGES = (
    ("one\nERROR: two", ["one", "ERROR: two"]),
    ("one\r\ntwo\n", ["one", "two"]),
    ("10 %\r20 %\rdone", ["10 %", "20 %", "done"]),
    ("one\x0btwo\x0cthree\x85four\u2028five\u2029six", ["one", "two", "three", "four", "five", "six"]),
    ("one\n\ntwo", ["one", "", "two"]),
    ("\x1b[31mred\x07", [r"\x1b[31mred\x07"]),
    ("a\ttab", ["a\ttab"]),
    ("", [""]),
    ("日本 ünï", ["日本 ünï"]),
)


@pytest.mark.parametrize(("message", "lines"), MESSAGES)
def test_a_line_of_a_message_is_a_line_with_its_level_whatever_ends_it(
    house: House, agent: NativeAgent, message: str, lines: list[str]
) -> None:
    token = trigger(house)
    held = agent.assign()
    before = log_lines(house, token)
    agent.log(held, message)
    assert log_lines(house, token) == [*before, *(f"INFO: {line}" for line in lines)]


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("parts", [["a\nb\r\nc\rd"], ["\n".join(f"{n} {m}" for m in range(3000)) for n in range(5)]])
def test_what_a_script_prints_is_a_line_each_whoever_runs_it(house: House, kind: str, parts: list[str]) -> None:
    agent = AGENTS[kind](house)
    token = trigger(house)
    held = agent.assign()
    for part in parts:
        agent.log(held, part)
    agent.succeed(held)
    expected = [f"INFO: {line}" for part in parts for line in part.splitlines()]
    shown, printed = log_lines(house, token), set(expected)
    assert [line for line in shown if line in printed] == expected
    assert all(re.match("(DEBUG|INFO|WARN|ERROR): ", line) for line in shown)


def test_a_long_log_arrives_complete_and_in_order(house: House, agent: NativeAgent) -> None:
    token = trigger(house)
    held = agent.assign()
    for start in (0, 1000):
        agent.log(held, *[f"line {number}" for number in range(start, start + 1000)])
    assert log_lines(house, token)[-2000:] == [f"INFO: line {number}" for number in range(2000)]


def test_a_job_shows_its_own_log_only(house: House, agent: NativeAgent) -> None:
    first, second = trigger(house), trigger(house)
    agent.log(agent.assign(), "of the first")
    agent.log(agent.assign(), "of the second")
    assert log_lines(house, first)[-1] == "INFO: of the first"
    assert log_lines(house, second)[-1] == "INFO: of the second"


# ── All at once, and end to end ───────────────────────────────────────────────────────────────────────────────────────


def test_ten_clients_trigger_and_poll_at_once(house: House, agent: NativeAgent) -> None:
    def use(number: int) -> dict[str, str]:
        """Triggers three jobs and polls them to their end: the status of each, and which server it was for."""
        with client(house.site.url) as http:
            tokens = {}
            for n in range(3):
                query = {"template": "ablast", "TargetServer": f"{number}.{n}"}
                tokens[http.post("/api/jobs/trigger", data=query).text] = query["TargetServer"]

            def ended(token: str) -> str:
                shown = http.get("/api/jobs/status", params={"token": token}).text
                return shown if shown not in ("Pending", "Executing") else ""

            shown = {token: wait_until(lambda token=token: ended(token), 60) for token in tokens}
            log = {token: http.get("/api/jobs/logs", params={"token": token}).text for token in tokens}
        assert all(f"INFO: for {target}\n" in log[token] for token, target in tokens.items())
        return shown

    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(use, number) for number in range(10)]
        for _ in range(30):
            held = wait_until(agent.assign)
            agent.log(held, f"for {held['job']['variables']['TargetServer']}")
            agent.succeed(held)
        shown = [job for one in clients for job in one.result().items()]
    assert len(dict(shown)) == 30
    assert {state for _, state in shown} == {"Succeeded"}


WORKER = Path(tracker.__file__).with_name("worker.py")
COMMAND = """
echo "starting $TRACKER_VAR_TargetServer"
case "$TRACKER_VAR_Outcome" in
    warning) echo "nearly full" >&2 ;;
    error) echo "no such host"; exit 3 ;;
esac
echo finished
"""


@pytest.fixture
def worker_process(house: House, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """worker.py, running COMMAND for the tasks of the house, with warnings on standard error."""
    worker = house.site.create_worker(house.project, "runner")
    credentials = tmp_path / "credentials.json"
    mine = {"id": worker.id, "alias": worker.alias, "secret": worker.secret}
    credentials.touch(0o600)
    credentials.write_text(json.dumps({"servers": {house.site.url: mine}}))
    command = [sys.executable, str(WORKER), "run", "--server", house.site.url, "--project", str(house.project)]
    command += ["--credentials", str(credentials), "--stderr-level", "warn", "--", "sh", "-c", COMMAND]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@needs_curl
@pytest.mark.skipif(os.name != "posix", reason="the command is a shell script")
@pytest.mark.usefixtures("worker_process")
def test_jobs_triggered_by_curl_and_run_by_worker_py_end_in_every_status(house: House) -> None:
    """Their log is what the tracker and the command said, in order: standard output as INFO, standard error as WARN."""
    expected = {
        "fine": ("Succeeded", ["INFO: starting ABLSV1", "INFO: finished"]),
        "warning": ("Warning", ["INFO: starting ABLSV1", "INFO: finished"]),
        "error": ("Error", ["INFO: starting ABLSV1", "INFO: no such host"]),
    }
    tokens = {}
    for outcome in expected:
        data = f"TargetServer=ABLSV1&Outcome={outcome}"
        tokens[outcome], _ = curl(house, "/api/jobs/trigger?template=ablast", "-d", data)

    def end(token: str) -> str | None:
        shown, _ = curl(house, f"/api/jobs/status?token={token}")
        return None if shown in ("Pending", "Executing") else shown

    for outcome, (status, printed) in expected.items():
        assert wait_until(functools.partial(end, tokens[outcome]), 60) == status
        log = curl(house, f"/api/jobs/logs?token={tokens[outcome]}")[0].splitlines()
        assert "created" in log[0]
        assert "assigned to runner" in log[1]
        assert [line for line in log if line in printed] == printed
        assert ("WARN: nearly full" in log) == (outcome == "warning")
        assert "released" in log[-1]
