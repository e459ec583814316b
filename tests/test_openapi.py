"""The OpenAPI document and the page of the API, compared with the code and with the answers of running trackers."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import secrets
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import httpx
import lxml.html
import msgspec
import openapi_spec_validator
import pytest
from conftest import MovedClock, Site, client, wait_until
from jsonschema import Draft202012Validator
from test_pages import Tab

import openapi
import pauses
import shapes
import tracker

HANDLERS = {(method, row.path): row for row in tracker.API for method in row.methods.split()}
Document = dict[str, Any]


class Operation(NamedTuple):
    """A call as the document describes it."""

    method: str
    path: str
    description: dict[str, Any]

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return self.description["parameters"]

    @property
    def body(self) -> dict[str, Any] | None:
        return self.description.get("requestBody", {}).get("content", {}).get("application/json")

    @property
    def statuses(self) -> set[int]:
        return {int(status) for status in self.description["responses"]}

    @property
    def accepted(self) -> int:
        """The status of the answer to the example: of a call that may answer with a file, that without one."""
        return 204 if 204 in self.statuses else min(self.statuses)

    def examples(self, place: str) -> dict[str, Any]:
        return {one["name"]: one["example"] for one in self.parameters if one["in"] == place and "example" in one}

    def answer(self, status: int) -> dict[str, Any] | None:
        """What the document says of the answer's body."""
        return self.description["responses"][str(status)].get("content", {}).get("application/json")


def operations(document: Document) -> list[Operation]:
    return [
        Operation(method.upper(), path, one)
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    ]


@pytest.fixture(scope="module")
def document() -> Document:
    """The document of a tracker with the default settings."""
    return tracker.openapi_document(tracker.Settings())


def fetch(url: str) -> Document:
    with client(url) as http:
        return http.get("/openapi.json").json()


# ── The document and the code ─────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_valid_openapi_3_1(site: Site) -> None:
    answers = [site.guest.get(path) for path in ("/openapi.json", "/api/openapi.json")]
    assert all(answer.headers["content-type"] == "application/json" for answer in answers)
    document, another = (answer.json() for answer in answers)
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)
    assert another == document


def test_it_has_every_route_of_the_api_with_its_methods_and_nothing_else(document: Document) -> None:
    assert sorted((one.method, one.path) for one in operations(document)) == sorted(HANDLERS)
    assert sorted(openapi.NOTES) == sorted(f"{method} {path}" for method, path in HANDLERS)


def test_every_call_says_what_it_does_and_who_may_make_it(document: Document) -> None:
    for one in operations(document):
        assert one.description["summary"] and one.description["x-caller"], one
        assert "\n" not in one.description["summary"] and not one.description["summary"].endswith(".")


def test_what_becomes_of_a_call_that_is_repeated_as_no_answer_came_is_said_and_so(
    site: Site, document: Document
) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    once, twice = {"unique_string": "once"}, {"project": project, "recipe": "x", "unique_string": "twice"}
    assert [worker.submit(project, **once).status_code for _ in range(2)] == [200, 409]
    assert [worker.submit(project).status_code for _ in range(2)] == [200, 200]
    assert [worker.bulk_submit([twice]).json()["content"]["submitted"] for _ in range(2)] == [1, 0]
    assert site.admin.counts(project) == {"waiting": 4}
    task = worker.assigned(project)["id"]
    assert [worker.released(task) for _ in range(2)] == [True, False]
    account = {"username": "newcomer", "password": "correct horse"}
    assert [client(site.url).post("/register", json=account).status_code for _ in range(2)] == [200, 409]
    assert client(site.url).post("/login", json=account).status_code == 200
    for path in "/task/submit", "/task/bulk_submit", "/task/release", "/register":
        assert "no answer" in document["paths"][path]["post"]["description"], path


def test_every_field_that_the_code_decodes_is_in_it_with_its_meaning(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for one in operations(document):
        takes = tracker.takes_of(HANDLERS[one.method, one.path])
        assert (takes.body is None) == (one.body is None), one
        if takes.query:
            names = {field.encode_name for field in msgspec.inspect.type_info(takes.query).fields}
            assert names == {each["name"] for each in one.parameters if each["in"] == "query"}
        ids = {each["name"] for each in one.parameters if each["in"] == "path"}
        assert ids == set(re.findall(r"{(\w+)}", one.path))
        assert all(each["description"] for each in one.parameters), one
        for kind in structs(takes.body):
            fields = schemas[kind.__name__]["properties"]
            assert set(fields) == {field.encode_name for field in msgspec.inspect.type_info(kind).fields}
            assert all(field.get("description") for field in fields.values()), kind


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs that a body is made of."""
    todo = [msgspec.inspect.type_info(kind)] if kind else []
    for one in todo:
        if isinstance(one, msgspec.inspect.Metadata):
            todo.append(one.type)
        if isinstance(one, msgspec.inspect.StructType):
            yield one.cls
        todo += [field.type for field in getattr(one, "fields", ())] + list(getattr(one, "types", ()))
        todo += [one.item_type] if isinstance(one, msgspec.inspect.ListType) else []


def test_every_field_that_is_answered_has_a_meaning(document: Document) -> None:
    for name, schema in document["components"]["schemas"].items():
        for field, one in schema["properties"].items():
            assert one.get("description") or "$ref" in one or field == "ok", (name, field)


def test_every_example_body_and_query_is_what_the_code_decodes(document: Document) -> None:
    tracker.decoding.left = tracker.decoding.most = 10  # of the tasks in a bulk submit
    for one in operations(document):
        takes = tracker.takes_of(HANDLERS[one.method, one.path])
        if takes.body:
            msgspec.json.decode(json.dumps(one.body["example"]), type=takes.body)
        if takes.query:
            msgspec.convert(one.examples("query"), takes.query)


def test_every_example_is_as_its_own_schema_says(document: Document) -> None:
    for one in operations(document):
        for parameter in one.parameters:
            if "example" in parameter:
                check(document, parameter["schema"], parameter["example"])
        for content in (one.body, one.answer(one.accepted)):
            if content:
                check(document, content["schema"], content["example"])


def check(document: Document, schema: dict[str, Any], value: Any) -> None:
    """Checks that the value has every required field, no field that is not documented, and the documented types."""
    checker(document, schema).validate(value)


def checker(document: Document, schema: dict[str, Any]) -> Draft202012Validator:
    """What checks values against one schema of the document."""
    components = strict_components(json.dumps(document["components"]))
    return Draft202012Validator({**strict(schema), "components": components})


@functools.cache
def strict_components(components: str) -> dict[str, Any]:
    """Those of a whole document: made once, as each of thousands of answers is checked against them."""
    return strict(json.loads(components))


def strict(schema: Any) -> Any:
    """The schema, with every object closed to fields that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {name: strict(one) for name, one in schema.items()} | closed


def test_the_limits_beyond_63_bits_are_those_in_force(site: Site, document: Document) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    calls = {
        ("SubmitBody", "hash64"): lambda value: worker.submit(project, hash64=value),
        ("SubmitBody", "hash_u64"): lambda value: worker.submit(project, hash_u64=value),
        ("ReleaseBody", "verification"): lambda value: worker.release(task, verification=value),
    }
    for (kind, field), call in calls.items():
        schema = document["components"]["schemas"][kind]["properties"][field]
        for limit, beyond in ((schema["minimum"], -1), (schema["maximum"], 1)):
            assert call(limit + beyond).status_code == 400, (field, limit)
            assert call(limit).status_code != 400, (field, limit)


def test_it_tells_of_the_settings_of_its_tracker(make_site: Callable[..., Site]) -> None:
    site = make_site(cookie_name="crumb", max_wait=7, max_body=77, open_worker_registration=False, public_logs=True)
    document = fetch(site.url)
    by_id = {one.description["operationId"]: one for one in operations(document)}
    assert document["components"]["securitySchemes"]["session"]["name"] == "crumb"
    [wait] = [one for one in by_id["get_task_get"].parameters if one["name"] == "wait"]
    assert "More than 7 " in wait["description"]
    assert "77 KiB" in document["components"]["responses"]["413"]["description"]
    assert {} not in by_id["post_worker_create"].description["security"]
    assert {} in by_id["get_logs"].description["security"]
    most = by_id["get_project_monitoring_between_project"].description["description"]
    assert f"{tracker.MOST_SNAPSHOTS:,}" in most


def test_its_servers_are_the_places_where_the_api_is_served(make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="/prefix")
    document = fetch(site.url)
    places = [urljoin("https://example.org/prefix/openapi.json", one["url"]) for one in document["servers"]]
    assert places == ["https://example.org/prefix", "https://example.org/prefix/api"]
    for place in places:  # the proxy takes the prefix away
        answer = site.guest.get(place.removeprefix("https://example.org/prefix") + "/project/list")
        assert answer.json()["ok"]
    for one in operations(document):
        [sample] = one.description["x-codeSamples"]
        assert f"{site.url}/prefix{one.path.partition('{')[0]}" in sample["source"]


# ── The examples, and what is answered to them ────────────────────────────────────────────────────────────────────────


def page_of(url: str) -> lxml.html.HtmlElement:
    with client(url) as http:
        answer = http.get("/ui/docs")
    assert answer.status_code == 200, answer.text
    return lxml.html.fromstring(answer.text)


def commands(page: lxml.html.HtmlElement) -> list[str]:
    """What a reader would paste into a terminal, from the top of the page to its end."""
    return [one.text_content() for one in page.xpath("//pre/code") if one.text_content().startswith("curl ")]


@pytest.fixture
def new_tracker(tmp_path: Path, clock: MovedClock) -> Iterator[str]:
    """The URL of a tracker that nobody has used, which takes snapshots all the time."""
    with tracker.serving(tracker.Settings(database=str(tmp_path / "new.db"), snapshot_interval=0.05), clock) as url:
        yield url


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.skipif(not shutil.which("sh"), reason="there is no POSIX shell")
def test_the_examples_on_the_page_work_when_pasted_from_top_to_bottom(new_tracker: str, tmp_path: Path) -> None:
    document = fetch(new_tracker)
    begin, *examples = commands(page_of(new_tracker))
    samples = {one.description["x-codeSamples"][0]["source"]: one for one in operations(document)}
    assert set(samples) == set(examples)
    script = "".join(f"\n{example}\nprintf '\\n<END>\\n'" for example in [begin, *map(remembering, examples)])
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        ["sh", "-c", f"set -e; cd '{tmp_path}'; {script}"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    beginning, *answers = done.stdout.split("\n<END>\n")[:-1]
    assert '"ok":false' not in beginning
    assert len(answers) == len(examples)
    for example, answer in zip(examples, answers, strict=True):
        one = samples[example]
        status = one.accepted
        assert (status == 204) == (answer == ""), (example, answer)
        if answer and one.answer(status):
            assert json.loads(answer)["ok"], (example, answer)
            check(document, one.answer(status)["schema"], json.loads(answer))


def remembering(example: str) -> str:
    """The command; a reader notes the id of the job that it made, as the page says, for the later ones."""
    if "/template/trigger/" not in example:
        return example
    return (
        f"""ANSWER=$({example})\necho "$ANSWER"\nJOB=$(echo "$ANSWER" | sed 's/.*"job":{{"id":"\\([^"]*\\)".*/\\1/')"""
    )


def test_every_call_is_on_the_page_with_its_fields_and_refusals(new_tracker: str) -> None:
    document, page = fetch(new_tracker), page_of(new_tracker)
    for one in operations(document):
        source = one.description["x-codeSamples"][0]["source"]
        [code] = [code for code in page.xpath("//section//pre/code") if code.text_content() == source]
        shown = code.xpath("ancestor::section[1]")[0].text_content()
        fields = [each["name"] for each in one.parameters]
        if one.body:
            fields += msgspec.inspect.type_info(
                next(structs(tracker.takes_of(HANDLERS[one.method, one.path]).body))
            ).fields
        fields = [field if isinstance(field, str) else field.encode_name for field in fields]
        refusals = [str(status) for status in one.statuses if 400 <= status < 500]
        for words in (
            one.method,
            one.path,
            one.description["summary"],
            one.description["x-caller"],
            *fields,
            *refusals,
        ):
            assert words.replace("`", "") in shown, (source, words)


def test_every_link_on_the_page_leads_somewhere(make_site: Callable[..., Site]) -> None:
    site = make_site(root_path="/prefix")
    page = page_of(site.url)
    ids = page.xpath("//@id")
    assert len(ids) == len(set(ids))
    for link in page.xpath("//main//a/@href"):
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert site.guest.get(link.removeprefix("/prefix")).status_code == 200
            assert link.startswith("/prefix/")


def test_a_host_header_cannot_put_anything_into_the_page_or_the_shell(site: Site) -> None:
    text = site.guest.get("/ui/docs", headers={"Host": "x<script>;reboot'"}).text
    assert "x<script>" not in text
    pasted = commands(lxml.html.fromstring(text))
    assert len(pasted) > 40
    for command in pasted:
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        assert "curl" in words and ";" not in words, command


def example_body(one: Operation) -> Any:
    """The example of a body: text as bytes, anything else as the JSON that it is."""
    [(kind, content)] = one.description.get("requestBody", {}).get("content", {None: {"example": None}}).items()
    return content["example"].encode() if kind == "text/plain" else content["example"]


class Reader:
    """Makes the calls of the document's examples, with something changed. `job` is the one that a reader has made."""

    def __init__(self, url: str, job: str = openapi.EXAMPLE_JOB):
        self.http, self.job = client(url), job

    def call(self, one: Operation, **changes: Any) -> httpx.Response:
        path = one.path.format(**{**one.examples("path"), "job": self.job, **changes.pop("path", {})})
        query = {**one.examples("query"), **changes.pop("query", {})}
        body = changes.pop("body", example_body(one))
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = one.examples("header") | changes.pop("headers", {})
        assert not changes
        return self.http.request(one.method, path, params=query, content=content, headers=headers)


def test_what_is_answered_is_what_is_documented_no_more_and_no_less(
    new_tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "attachments_of", lambda tx, job: job)  # as if every job had some
    monkeypatch.setattr(tracker, "MOST_RANKED", 1)
    paused = "SELECT id, alias, 25 AS failures_in_row, 600.0 AS left FROM worker"  # as if all were
    monkeypatch.setattr(pauses, "paused_workers", lambda tx, project: tx.all(paused))
    logged = functools.partial(shapes.TaskLogged, dropped_by="stranger_job_rate")  # as if no line of any task had room
    monkeypatch.setattr(shapes, "TaskLogged", lambda held, stored, *_: logged(held, stored))
    document = fetch(new_tracker)
    reader = Reader(new_tracker)
    begin(reader)
    seen: dict[str, set[str]] = defaultdict(set)
    for one in operations(document):
        name = one.description["operationId"]
        for changes in [{}, *map(dict, MORE_ANSWERS.get(name, ()))]:
            if changes.pop("a job first", False):
                make_job(reader)
            answer = reader.call(one, **changes)
            assert answer.status_code == one.accepted, (name, changes, answer.text)
            if one.answer(answer.status_code):
                check(document, one.answer(answer.status_code)["schema"], answer.json())
                seen[name] |= set(names_in(answer.json()))
            else:
                assert (answer.content == b"") == (name != "post_project_export_project")  # which is a file
        if name == "post_template_trigger_template":
            reader.job = answer.json()["content"]["job"]["id"]
    for one in operations(document):
        if content := one.answer(one.accepted):
            documented = set(names_in_schema(content["schema"], document))
            free = tuple(f"{name}." for name in free_forms(content["schema"], document))
            found = {name for name in seen[one.description["operationId"]] if not name.startswith(free)}
            assert found == documented, one


# Further calls, after the example's own: their answers have what not every answer has.
MORE_ANSWERS: dict[str, list[dict[str, Any]]] = {
    "post_task_bulk_submit": [{"body": [{"project": 1, "recipe": f"more {number}"} for number in range(12)]}],
    "get_task_get_project": [
        {"query": {"count": 1}},
        {"path": {"project": 2}},
        {"a job first": True},
        {"a job first": True, "query": {"count": 1}},
    ],
    "post_task_release": [{}],
    "post_task_extend": [{"body": {"extensions": [{"task_id": 1, "seconds": 1}]}}],
    "get_task_get": [
        {"query": {"count": 0, "project": 1}},
        {"query": {"project": 2, "wait": 0}},
        {"a job first": True, "query": {"count": 0, "project": 1}},
        {"a job first": True, "query": {"count": 1, "project": 1}},
    ],
}


def make_job(reader: Reader) -> None:
    """A job that is assigned before any other task."""
    body = {**openapi.TEMPLATE, "name": secrets.token_hex(8), "priority": 9}
    template = reader.http.post("/template/create", json=body).json()["content"]["template"]["id"]
    answer = reader.http.post(f"/template/trigger/{template}", json={"arguments": ["fast"]})
    assert answer.status_code == 200, answer.text


def begin(reader: Reader) -> None:
    """What the page's commands to begin with do."""
    http = reader.http
    http.post("/register", json={"username": "alice", "password": "correct horse"})
    http.post("/project/create", json={"name": "first"})
    worker = http.post("/worker/create", json={"alias": "my laptop"}).json()["content"]["worker"]
    http.headers.update({"X-Worker-ID": str(worker["id"]), "X-Secret": worker["secret"]})
    http.post("/project/request_access", json={"project": 1, "assign": True, "submit": True})
    http.post(f"/project/accept_request/1/{worker['id']}")
    wait_until(lambda: http.get("/project/monitoring/1").json()["content"]["snapshots"])


def names_in(value: Any, name: str = "") -> Iterator[str]:
    """Where the fields are in an answer: `content.tasks[].id`."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield f"{name}.{key}"
            yield from names_in(one, f"{name}.{key}")
    elif isinstance(value, list):
        for one in value:
            yield from names_in(one, f"{name}[]")


def names_in_schema(schema: dict[str, Any], document: Document, name: str = "") -> Iterator[str]:
    """Where the fields are in the answers that the schema allows."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", ()):
        yield from names_in_schema(one, document, name)
    for key, one in schema.get("properties", {}).items():
        yield f"{name}.{key}"
        yield from names_in_schema(one, document, f"{name}.{key}")
    if schema.get("items"):
        yield from names_in_schema(schema["items"], document, f"{name}[]")


def free_forms(schema: dict[str, Any], document: Document, name: str = "") -> Iterator[str]:
    """Where the answers have objects whose fields are anybody's choice."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if schema.get("type", "object") == "object" and not schema.keys() & {"anyOf", "properties", "const", "enum"}:
        yield name
    for one in schema.get("anyOf", ()):
        yield from free_forms(one, document, name)
    for key, one in schema.get("properties", {}).items():
        yield from free_forms(one, document, f"{name}.{key}")
    if schema.get("items"):
        yield from free_forms(schema["items"], document, f"{name}[]")


# ── Refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_statuses_of_refusals_are_those_that_are_documented(make_site: Callable[..., Site]) -> None:
    """Every call in many wrong ways: no status comes that is not documented, and each documented one comes."""
    site = make_site(max_body=4, max_bulk_body=4, registration_rate=3)
    document = fetch(site.url)
    callers, jobs, seen = callers_of(site), jobs_of(site), set()
    errors = checker(document, document["components"]["schemas"]["Error"])
    for one in operations(document):
        answers = list(wrong_calls(Reader(site.url, jobs["queued"]), one, callers, jobs))
        refusals = [answer for answer in answers if answer.status_code >= 400]
        documented = {status for status in one.statuses if 400 <= status < 500}
        assert {answer.status_code for answer in refusals} == documented, one
        for answer in refusals:
            errors.validate(answer.json())
            assert ("Retry-After" in answer.headers) == (answer.status_code == 429)
            seen |= set(names_in(answer.json()))
    assert seen == set(names_in_schema(document["components"]["schemas"]["Error"], document))


def callers_of(site: Site) -> list[dict[str, str]]:
    """The headers of everybody, on a tracker that has what the examples are about, and a slow project."""
    first, second, slow = (site.admin.create_project(git_repo=name) for name in ("alice/first", "", ""))
    plain, worker, stranger = site.create_manager(), site.create_worker(first), site.create_worker()
    assert (first, second, slow, plain.id, worker.id, stranger.id) == (1, 2, 3, 2, 1, 2)
    site.admin.post("/project/webhook_secret/1", {"webhook_secret": openapi.WEBHOOK_SECRET})
    site.admin.grant(worker, slow)
    assert site.admin.create_project("archived") == 4
    site.admin.grant(worker, 4)
    worker.bulk_submit([{"project": slow, "recipe": str(number)} for number in range(5)])
    site.admin.update_project(slow, name="slow", assign_rate=1e-9, submit_rate=1e-9)
    Tab(site.admin.http).act("/ui/theeye/agents", {"project": "1", "alias": "agent"})  # worker 3
    workers = [{"X-Worker-ID": str(one.id), "X-Secret": one.secret} for one in (worker, stranger)]
    managers = [{"Cookie": f"tt={one.http.cookies['tt']}"} for one in (plain, site.admin)]
    return [{}, *workers, *managers]


def jobs_of(site: Site) -> dict[str, str]:
    """The ids of jobs of the examples' template, which their workflow starts with, and of one in the slow project."""
    for project, name in ((1, "build"), (3, "slow build"), (1, "gone"), (1, "taken"), (4, "archived")):
        site.admin.post(
            "/template/create", {**openapi.TEMPLATE, "project": project, "name": name, "api": name == "taken"}
        )
    for name in ("build and try again", "never"):
        start = {"build and try again": 1, "never": 3}[name]
        site.admin.post("/workflow/create", {"project": 1, "name": name, "start": start})
    site.admin.post("/workflow/create", {"project": 3, "name": "slow", "start": 2})
    site.admin.post("/workflow/create", {"project": 4, "name": "archived", "start": 5})
    site.admin.post("/template/delete/3")
    triggered = {
        name: site.admin.post(f"/template/trigger/{template}", {"arguments": ["fast"]})
        for name, template in (("queued", 1), ("live", 1), ("slow", 2), ("archived", 5))
    }
    jobs = {name: answer.json()["content"]["job"]["id"] for name, answer in triggered.items()}
    for name in "slow", "archived":
        site.admin.post(f"/job/cancel/{jobs[name]}")
    site.admin.update_project(4, archived=True)
    return jobs


def wrong_calls(
    reader: Reader, one: Operation, callers: list[dict[str, str]], jobs: dict[str, str]
) -> Iterator[httpx.Response]:
    """The example's call by everybody; from another site; about what there is not; with nonsense in it."""
    nowhere = {"path": about_nothing(one.examples("path")), "query": about_nothing(one.examples("query"))}
    nowhere |= {"body": about_nothing(one.body["example"])} if one.body else {}
    nonsense = [{"path": dict.fromkeys(set(one.examples("path")) - {"level"}, "x")}, {"query": NONSENSE}]
    nonsense += [{"body": b"{"}, {"body": b" " * 5000}] if "requestBody" in one.description else []
    for headers in callers:
        for changes in [
            {},
            {"headers": {"Sec-Fetch-Site": "cross-site"}},
            nowhere,
            *nonsense,
            *more_refusals(one, jobs),
        ]:
            yield reader.call(one, **{**changes, "headers": {**headers, **changes.get("headers", {})}})


FROM_ELSEWHERE = {"headers": {"X-Forwarded-For": "203.0.113.9"}}
NONSENSE = {"archived": "x", "limit": "x", "count": "x", "priority": "x", "from": "x", "level": "x", "after": "x"}
IDS = ("project", "worker", "manager", "task_id", "template", "workflow", "operation", "task")
NOTHING = {**dict.fromkeys(IDS, 999), "level": "loud", "job": "0" * 24}


def about_nothing(value: Any) -> Any:
    """The same with ids that nothing has."""
    if isinstance(value, list):
        return [about_nothing(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {name: about_nothing(NOTHING.get(name, one)) for name, one in value.items()}


def more_refusals(one: Operation, jobs: dict[str, str]) -> list[dict[str, Any]]:
    """What else may be wrong with a call."""
    slow_task = {"project": 3, "recipe": "x"}
    return {
        "post_project_create": [{"body": {"name": "third", "chain": 999}}],
        "post_template_create": [{"body": {"project": 1, "name": "taken", "api": True}}],
        "post_template_update_template": [{"body": {"name": "taken", "api": True}}],
        "post_template_trigger_template": [
            {"path": {"template": 2}},
            {"path": {"template": 2}},
            {"path": {"template": 5}},
        ],
        "post_workflow_create": [{"body": {"project": 1, "name": "never", "start": 1}}],
        "post_workflow_update_workflow": [{"body": {"name": "never"}}],
        "post_workflow_trigger_workflow": [{"path": {"workflow": number}} for number in (2, 3, 3, 4)],
        "get_job_list": [{"query": {"before": "0" * 24}}],
        "post_job_cancel_job": [{}],
        "post_job_retry_job": [
            {"path": {"job": jobs["live"]}},
            *[{"path": {"job": jobs["slow"]}}] * 2,
            {"path": {"job": jobs["archived"]}},
        ],
        "post_project_update_project": [{"body": {"name": "slow"}}],
        "post_project_accept_request_project_worker": [{}],
        "post_worker_delete_worker": [{"path": {"worker": 3}}],
        "post_project_request_access": [{"body": {"project": 4, "assign": True}}],
        "post_task_submit": [{"body": slow_task}, {"body": slow_task}, {"body": {"project": 4, "recipe": "x"}}],
        "post_task_bulk_submit": [{"body": [slow_task]}, {"body": [{"project": 4, "recipe": "x"}]}],
        "post_task_submit_lines_project": [
            {"path": {"project": 4}},
            {"path": {"project": 3}},
            {"query": {"token": "x"}, "body": b" " * 5000},
        ],
        "post_task_log": [{"body": {"task_id": 999}}],
        "get_task_get_project": [{"path": {"project": 3}}] * 2,
        "get_task_get": [{"query": {"project": 3, "wait": 0}}],
        "post_git_receivehook": [{"headers": {"X-Hub-Signature-256": "sha256=00"}}],
        "get_logs": [{"query": {"before": 999}}],
        "post_logs": [{"body": {"level": 5, "since": 1, "before": 999}}],
        "post_register": [FROM_ELSEWHERE] * 4,
        "post_worker_create": [FROM_ELSEWHERE] * 4,
    }.get(one.description["operationId"], [])


def test_the_document_is_in_memory_once_for_all_who_ask_at_one_url() -> None:
    app, sent = tracker.create_app(), []
    scope = {"type": "http", "method": "GET", "path": "/openapi.json", "headers": [], "query_string": b""}
    scope |= {"scheme": "http", "client": ("testclient", 1), "root_path": ""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body"))

    for _ in range(2):
        asyncio.run(app({**scope}, None, send))
    _, first, _, second = sent
    assert len(first) > 100_000
    assert first is second
