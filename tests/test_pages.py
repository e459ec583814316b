"""The manager UI over plain HTTP, as a browser without scripts sees it: every page, every form, every refusal."""

import asyncio
import itertools
import json
import re
import shlex
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urljoin, urlsplit

import httpx
import lxml.html
import pytest
import screenshots
from conftest import Prepared, Site, Worker, client, wait_until

import database
import joblog
import pages
import tracker
from tracker import ALL_ROLES, EDIT, MAINTENANCE, MANAGE_ACCESS, READ, SECRET

LEAD_ON = {  # bookmarks of what stands elsewhere now
    "/ui/testflinger": "/ui/testflinger/queues",
    "/ui/projects/{project}/secrets": "/ui/projects/{project}/edit#secrets",
    "/ui/projects/{project}/workflows": "/ui/projects/{project}/templates#workflows",
}
PUBLIC = "/ui/projects/{project}/crowd"  # of public projects alone: tests/test_crowd.py
GETS = [path for method, path, _ in tracker.all_pages() if method == "GET" and path not in (*LEAD_ON, PUBLIC)]
POSTS = [path for method, path, _ in tracker.all_pages() if method == "POST"]
FOR_ALL = ("/ui/", "/ui/login", "/ui/register", "/ui/docs")
FOR_ADMINS = (
    *("/ui/admin", "/ui/admin/promote/{manager}", "/ui/admin/demote/{manager}", "/ui/workers/pause"),
    *(path for path in GETS + POSTS if path.startswith(("/ui/theeye/", "/ui/testflinger/clients"))),
    *("/ui/testflinger/queues/{queue}/restrict", "/ui/projects/{project}/trust", "/ui/projects/{project}/edit/delete"),
)
OTHERWISE = {  # forms that do not lead on, as these tests send them
    "/ui/testflinger/clients/{client}/rotate": 200,  # it asks
    "/ui/projects/{project}/edit/export": 200,  # the file
    "/ui/projects/import": 400,  # it wants a file
    "/ui/operations/{operation}/stop": 409,  # it has ended
    "/ui/projects/{project}/notices/test": 400,  # nobody is told of anything yet
}
DOWNLOADS = ("/export", "/{file}")
ENTRANCES = ("/ui/login", "/ui/register", "/ui/logout")


class Page:
    """An answer, and what a browser makes of it."""

    def __init__(self, answer: httpx.Response):
        self.answer, self.status, self.html = answer, answer.status_code, answer.text
        self.tree = lxml.html.document_fromstring(answer.text or "<p>", base_url=str(answer.url))
        for area in self.tree.iter("textarea"):
            area.text = (area.text or "").removeprefix("\n")  # as the standard wants it

    @property
    def text(self) -> str:
        """What can be read on the page, with single spaces."""
        return " ".join(self.tree.find("body").text_content().split())

    @property
    def notice(self) -> str:
        """What the last action said, or why it was refused."""
        return " ".join(" ".join(one.text_content().split()) for one in self.tree.find_class("notice"))

    @property
    def links(self) -> list[str]:
        return [link for element, _, link, _ in self.tree.iterlinks() if element.tag != "form"]

    @property
    def buttons(self) -> set[str]:
        return {button.text_content().strip() for button in self.tree.iter("button")}

    def form(self, action: str) -> lxml.html.FormElement:
        """The first form that is sent to an address that ends like this."""
        return next(form for form in self.tree.forms if urlsplit(form.get("action") or "").path.endswith(action))

    def typed(self, name: str, action: str = "") -> str | None:
        """What is in the field that is sent to such an address by POST, seen before hidden."""
        forms = [form for form in self.tree.forms if form.method == "POST" and form.action.endswith(action)]
        fields = [field for form in forms for field in form.inputs if field.name == name]
        return min(fields, key=lambda field: field.get("type") == "hidden").value


class Tab:
    """A browser without scripts: it keeps cookies, follows links and redirects, and sends forms."""

    def __init__(self, http: httpx.Client):
        self.http = http
        self.seen: tuple[dict[str, str], str] = ({}, "")  # a session's token, and its cookies

    def open(self, path: str, **query: Any) -> Page:
        return Page(self.http.get(path, params=query or None, follow_redirects=True))

    @property
    def token(self) -> str:
        """What this session's forms carry."""
        if not self.http.cookies or self.seen[0] != dict(self.http.cookies):
            token = self.open("/ui/login").form("/ui/login").fields["token"]
            self.seen = dict(self.http.cookies), token
        return self.seen[1]

    def post(self, path: str, fields: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        """Sends a form's fields with the session's token, and stays at the answer."""
        return self.http.post(path, data={"token": self.token, **(fields or {})}, **options)

    def act(self, path: str, fields: dict[str, Any] | None = None, **options: Any) -> Page:
        """Sends a form's fields with the session's token, and goes where that leads to."""
        return Page(self.post(path, fields, follow_redirects=True, **options))

    def send(self, form: lxml.html.FormElement, button: str = "", **typed: Any) -> Page:
        """Sends a form of a page as it was filled in, with some fields typed, by one of its buttons."""
        for name, value in typed.items():
            form.fields[name] = value
        values = list(form.form_values())
        for element in form.iter("button"):
            if element.get("name") and element.text_content().strip() == button:
                values.append((element.get("name"), element.get("value")))
        data: dict[str, list[str]] = {}
        for name, value in values:
            data.setdefault(name, []).append(value)
        return Page(self.http.request(form.method, form.action, data=data, follow_redirects=True))


class Place:
    """A tracker with something of everything in it."""

    def __init__(self, site: Site, text: str = "plain", username: str = "other"):
        self.site, self.admin = site, Tab(site.admin.http)
        self.text = text
        self.project = site.admin.create_project(f"{text} project", motd=f"{text} motd", version=f"{text} version")
        self.worker = site.create_worker(self.project, f"{text} worker")
        self.asking = site.create_worker(alias=f"{text} asking")
        self.asking.request_access(self.project)
        for number in range(3):
            self.worker.submit(self.project, f"{text} recipe {number}", verification_count=2)
        self.failed = self.worker.assigned(self.project)["id"]
        self.worker.log("error", f"{text} message", task_id=self.failed, scope=f"{text} scope")
        self.worker.release(self.failed, tracker.FAIL, error=f"{text} reason")
        self.verified = self.worker.assigned(self.project)["id"]
        self.worker.release(self.verified, verification=7)
        self.assigned = self.worker.assigned(self.project)["id"]
        self.worker.submit(self.project, f"{text} waiting recipe")
        self.manager = site.create_manager(username)
        self.template = self.create_template(f"{text} template")
        self.job = self.trigger(self.template, {"size": f"{text} value"})["id"]
        answer = self.admin.post(f"/ui/projects/{self.project}/submit/lines", files={"file": ("a", b"one\ntwo\n{\n")})
        self.operation = int(answer.headers["location"].rpartition("/")[2])
        self.names = {
            "project": self.project,
            "task": self.failed,
            "worker": self.asking.id,
            "operation": self.operation,
            "manager": self.manager.id,
            "template": self.template,
            "job": self.job,
            "workflow": self.create_workflow(f"{text} workflow"),
            "token": 1,
            "agent": 1,
            "kind": "reset_failed",
        }
        if "theeye" in tracker.installed_dialects():
            self.let_agent_in(text)
        if "testflinger" in tracker.installed_dialects():
            self.names |= run_in_lab(site, self.admin, text)

    def create_template(self, name: str, **fields: Any) -> int:
        body = {"project": self.project, "name": name, "description": f"{name} description", "priority": -1, **fields}
        answer = self.site.admin.post("/template/create", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["content"]["template"]["id"]

    def create_workflow(self, name: str) -> int:
        body = {"project": self.project, "name": name, "start": self.template}
        return self.site.admin.post("/workflow/create", body).json()["content"]["workflow"]["id"]

    def let_agent_in(self, text: str) -> None:
        """An integration token of theeye.io, and an agent that tells of its host."""
        assert self.admin.act("/ui/theeye/tokens", {"name": f"{text} token"}).status == 200
        made = self.admin.act("/ui/theeye/agents", {"project": self.project, "alias": f"{text} agent"}).tree
        agent, secret = (made.xpath(f"string(//*[@id='fresh-{name}'])") for name in ("id", "secret"))
        guest = self.site.guest
        token = guest.post("/token?customer=tracker", auth=(agent, secret)).json()
        host = {"hostname": f"{text} host", "version": f"{text} version", "info": {"os_name": f"{text} system"}}
        answer = guest.post(f"/host?customer=tracker&access_token={token}", json=host)
        assert answer.status_code == 200, answer.text

    def trigger(self, template: int, variables: dict[str, Any] | None = None, *arguments: Any) -> dict[str, Any]:
        """The job that a manager made of the template."""
        body = {"variables": variables or {}, "arguments": list(arguments)}
        answer = self.site.admin.post(f"/template/trigger/{template}", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["content"]["job"]

    def secret_of(self, template: int) -> str:
        return self.site.read("SELECT secret FROM template WHERE id = ?", template)[0][0]

    def at(self, path: str) -> str:
        """A path of the table of pages, with this place's ids."""
        return path.format(**self.names)

    def fields(self, path: str) -> dict[str, Any]:
        """What a form that is sent there could say."""
        return {
            "/ui/projects/new": {"name": "another one"},
            "/ui/projects/{project}/edit": {"motd": "new words"},
            "/ui/projects/{project}/edit/archive": {"archived": "false"},
            "/ui/projects/{project}/edit/delete": {"confirm": f"{self.text} project"},
            "/ui/projects/{project}/pause": {"paused": "true"},
            "/ui/projects/pause": {"paused": "true", "confirmed": "yes"},
            "/ui/projects/{project}/rate": {"assign_rate": "5"},
            "/ui/projects/{project}/secret": {"secret": "a new one"},
            "/ui/projects/{project}/webhook_secret": {"webhook_secret": "a new one"},
            "/ui/projects/{project}/tasks": {"action": "delete", "task": self.failed, "confirmed": "yes"},
            "/ui/projects/{project}/submit": {"recipe": "one more"},
            "/ui/projects/{project}/submit/lines": {"lines": "three\nfour"},
            "/ui/projects/{project}/templates/new": {"name": "another template"},
            "/ui/templates/{template}/edit": {"name": "a renamed one"},
            "/ui/templates/{template}/delete": {"confirmed": "yes"},
            "/ui/templates/{template}/rotate_secret": {"confirmed": "yes"},
            "/ui/workflows/{workflow}/rotate": {"confirmed": "yes"},
            "/ui/theeye/hosts/{project}/delete": {"confirmed": "yes"},
            "/ui/admin/promote/{manager}": {"confirmed": "yes"},
            "/ui/projects/{project}/workflows/new": {"name": "another workflow", "start": self.template},
            "/ui/workflows/{workflow}": {"name": "a renamed one", "start": self.template},
            "/ui/workflows/{workflow}/delete": {"confirmed": "yes"},
            "/ui/theeye/tokens": {"name": "another token"},
            "/ui/theeye/tokens/{token}/revoke": {"confirmed": "yes"},
            "/ui/theeye/agents": {"project": self.project, "alias": "another agent"},
            "/ui/theeye/agents/{agent}/delete": {"confirmed": "yes"},
            "/ui/testflinger/queues/{queue}/restrict": {"restricted": "true"},
            "/ui/testflinger/clients": {"client_id": "another"},
            "/ui/testflinger/clients/{client}/delete": {"confirmed": "yes"},
            "/ui/testflinger/clients_key": {"confirmed": "yes"},
            "/ui/projects/{project}/access/answer": {"answer": "accept", "which": "all", "confirmed": "yes"},
            "/ui/projects/{project}/access/set": {"worker": self.asking.id, "assign": "true"},
            "/ui/projects/{project}/access/role": {"username": self.manager.username, "read": "true"},
            "/ui/workers/pause": {"worker": self.worker.id, "paused": "true"},
            "/ui/workers/{worker}/delete": {"confirmed": "yes"},
            "/ui/admin/delete/{manager}": {"confirmed": "yes"},
            "/ui/login": {"username": "admin", "password": "password"},
            "/ui/register": {"username": "newcomer", "password": "password"},
            "/ui/account/sessions": {"keep": self.own_mark()},
            "/ui/account/password": {"password": "password", "new_password": "another password"},
        }.get(path, {})

    def own_mark(self) -> str:
        """Which of the admin's logins is the present one."""
        return tracker.digest(self.admin.http.cookies.get("tt", "").partition(".")[0].encode()).hex()[:16]

    def dump(self) -> dict[str, list[tuple]]:
        return self.site.dump()


def run_in_lab(site: Site, admin: Tab, text: str) -> dict[str, Any]:
    """A client of Testflinger, and a job that an agent has in hand; another one waits. Their ids."""
    assert admin.act("/ui/testflinger/clients", {"client_id": "lab-client"}).status == 200
    lab = client(site.url)

    def post(path: str, **options: Any) -> httpx.Response:
        answer = lab.post(path, **options)
        assert answer.status_code == 200, answer.text
        return answer

    queue, agent = f"{text} queue", f"{text} agent".replace("/", "")
    post("/v1/agents/queues", json={queue: f"{text} queue description"})
    post("/v1/agents/images", json={queue: {f"{text} image": {"url": text}}})
    fields = {"queues": [queue, f"{text} other queue"], "log": [f"{text} agent line"], "comment": f"{text} comment"}
    fields |= {"state": f"{text} state", "location": f"{text} location", "provision_type": f"{text} type"}
    post(f"/v1/agents/data/{quote(agent)}", json=fields)
    job = {
        "job_queue": queue,
        "name": f"{text} lab job",
        "tags": [f"{text} tag"],
        "exclude_agents": [f"{text} not this"],
    }
    uuid = post("/v1/job", json={**job, "job_status_webhook": f"{text} webhook"}).json()["job_id"]
    lab.post("/v1/job", json={"job_queue": queue, "name": f"{text} waiting job"})
    assert lab.get("/v1/job", params={"queue": queue}).json()["job_id"] == uuid
    post(f"/v1/agents/data/{quote(agent)}", json={"job_id": uuid})
    post(f"/v1/agents/provision_logs/{quote(agent)}", json={"job_id": uuid, "exit_code": 1, "detail": f"{text} detail"})
    post(f"/v1/result/{uuid}", json={"status": {"provision": 0}, "job_state": "test", "device_info": {"name": text}})
    post(f"/v1/result/{uuid}/output", content=f"{text} output")
    post(f"/v1/result/{uuid}/serial_output", content=f"{text} serial")
    post(f"/v1/result/{uuid}/artifact", files={"file": ("artifact.tar.gz", b"artifact")})
    [(project,)] = site.read("SELECT id FROM project WHERE name = ?", queue)
    return {"queue": project, "uuid": uuid, "file": "artifact", "client": "lab-client", "lab_agent": agent}


@pytest.fixture(scope="module")
def prepared_place(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"), Place)


@pytest.fixture
def place(make_site: Callable[..., Place], prepared_place: Prepared) -> Place:
    return make_site(prepared_place)


def role_of(path: str, method: str = "POST") -> int:
    """The role that a form or page of a project needs."""
    if path.endswith(
        ("/edit", "/archive", "/pause", "/rate", "/submit", "/lines", "/templates", "/templates/new", "/workflows/new")
    ):
        return EDIT
    if "/notices" in path:
        return EDIT
    if path.endswith("/edit/export"):
        return ALL_ROLES
    if path.endswith(("/secret", "/webhook_secret")):
        return SECRET
    if "/access" in path:
        return MANAGE_ACCESS
    return MAINTENANCE if method == "POST" else READ


def manager_with(place: Place, role: int, username: str = "") -> Tab:
    """A manager with these roles in the project."""
    manager = place.site.create_manager(username)
    assert place.site.admin.set_role(place.project, manager, role).status_code == 200
    return Tab(manager.http)


# ── Every page ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_page_answers_an_admin(place: Place) -> None:
    for path in GETS:
        page = place.admin.open(place.at(path))
        assert page.status == 200, (path, page.text)
        if not path.endswith(DOWNLOADS):
            assert page.answer.headers["content-type"] == "text/html; charset=utf-8", path
            assert page.tree.get("lang") == "en" and page.tree.findtext(".//title"), path
            assert len(page.tree.findall(".//h1")) == 1, path
            assert page.tree.find(".//meta[@name='viewport']") is not None, path


def test_the_address_of_what_stands_elsewhere_now_leads_there(place: Place) -> None:
    for path, to in LEAD_ON.items():
        answer = place.admin.http.get(place.at(path), follow_redirects=False)
        assert answer.headers["location"].endswith(place.at(to)), path


def test_every_page_of_the_table_is_among_the_views() -> None:
    """Those that the browser's tests walk through, in every theme and width (docs/screenshots.py)."""
    views = [re.sub(r"\{\w[\w-]*\}|\?.*", "", view.path) for view in screenshots.VIEWS]
    for path in GETS:
        if not path.endswith(DOWNLOADS):
            assert re.sub(r"\{\w+\}", "", path) in views, path


def send_every_form(place: Place) -> Iterator[tuple[str, httpx.Response]]:
    """Each form as an admin sends it, those last that take away what others need; and what came of it."""
    last = (
        "/ui/templates/{template}/delete",
        "/ui/projects/{project}/edit/delete",
        *("/ui/logout", "/ui/login", "/ui/account/password", "/ui/account/sessions", "/ui/register"),
    )
    for path in [path for path in POSTS if path not in last] + list(last):
        yield path, place.admin.post(place.at(path), place.fields(path))
        if path.endswith("/accept/{worker}") or path.endswith("/reject/{worker}"):
            place.asking.request_access(place.project)


def test_every_form_is_taken_from_an_admin(make_site: Callable[..., Site]) -> None:
    """The forms of the tests of refusals are right: only what these tests change in them is refused."""
    for path, answer in send_every_form(Place(make_site())):
        assert answer.status_code == OTHERWISE.get(path, 303), (path, Page(answer).text)


def test_no_page_and_no_form_looks_a_session_up_twice_in_a_transaction(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[list[str]] = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = original(*args, **options)
        connections.append([])
        connection.set_trace_callback(connections[-1].append)
        return connection

    original = database.connect
    monkeypatch.setattr(database, "connect", connect)
    place = Place(make_site())
    for path in GETS:
        place.admin.open(place.at(path))
    for _ in send_every_form(place):
        pass
    said = "\n".join(itertools.chain(*connections))
    found = Counter(one.count("FROM session s JOIN manager") for one in said.split("BEGIN"))
    assert set(found) == {0, 1} and found[1] > len(GETS) + len(POSTS)


def test_looking_at_pages_changes_nothing(place: Place) -> None:
    before = place.dump()
    for path in GETS:
        assert place.admin.open(place.at(path)).status == 200
    assert place.dump() == before


def answers_of_all_kinds(place: Place) -> Iterator[httpx.Response]:
    guest = Tab(place.site.guest)
    for path in GETS:
        yield place.admin.http.get(place.at(path))
        yield guest.http.get(place.at(path))
    yield place.admin.http.get("/ui/no/such/page")
    yield place.admin.http.get("/ui/projects/999")
    yield place.admin.http.get("/ui/projects/one")
    yield Tab(place.manager.http).http.get("/ui/admin")
    yield place.admin.post(place.at("/ui/projects/{project}/pause"), {"paused": "true"})
    yield place.admin.post(place.at("/ui/projects/{project}/pause"), {"paused": "perhaps"})
    yield place.admin.post(place.at("/ui/projects/{project}/edit"), {"name": ""})
    yield place.admin.http.post(place.at("/ui/projects/{project}/pause"))
    yield guest.post("/ui/login", {"username": "admin", "password": "wrong"})


def test_every_answer_has_the_headers_that_keep_a_browser_safe(place: Place) -> None:
    codes = set()
    for answer in answers_of_all_kinds(place):
        codes.add(answer.status_code)
        headers = answer.headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'", answer.url
        assert policy["frame-ancestors"] == "'none'" and policy["form-action"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
    assert codes >= {200, 303, 400, 401, 403, 404}


def test_stylesheet_and_script_may_be_kept_and_nothing_comes_from_elsewhere(place: Place) -> None:
    page = place.admin.open("/ui/")
    needed = [element.get("src") or element.get("href") for element in page.tree.iter("script", "link")]
    assert len(needed) == 3
    for address in needed:
        assert address.startswith("/ui/static/")
        answer = place.site.guest.get(address)
        assert answer.status_code == 200 and "max-age" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_page_has_a_script_or_a_style_of_its_own(place: Place) -> None:
    for path in GETS:
        if not path.endswith(DOWNLOADS):
            tree = place.admin.open(place.at(path)).tree
            assert not tree.findall(".//style") and not tree.xpath("//@style"), path
            assert all(script.get("src") and not script.text for script in tree.iter("script")), path


def test_every_field_has_a_label(place: Place) -> None:
    for path in GETS:
        if path.endswith(DOWNLOADS):
            continue
        tree = place.admin.open(place.at(path)).tree
        labelled = set(tree.xpath("//label/@for"))
        for field in tree.xpath("//select | //textarea | //input[not(@type='hidden')]"):
            assert field.get("id") in labelled or field.get("aria-label"), (path, field.attrib)


def test_ids_are_unique_on_every_page(place: Place) -> None:
    for path in GETS:
        if not path.endswith(DOWNLOADS):
            ids = place.admin.open(place.at(path)).tree.xpath("//@id")
            assert sorted(set(ids)) == sorted(ids), path


def linked(tab: Tab, start: str) -> set[str]:
    """All that a visitor comes to by links from a page on. Each leads to what is for the visitor to see."""
    seen, ahead = {"/ui/docs"}, [start]
    while ahead:
        path = ahead.pop()
        page = tab.open(path)
        assert page.status == 200, path
        assert page.answer.url.path != "/ui/login" or path.startswith("/ui/login"), path
        if "text/html" in page.answer.headers["content-type"]:
            found = {urlsplit(link)._replace(fragment="").geturl() for link in page.links if link.startswith("/")}
            ahead += found - seen
            seen |= found
    return seen


def test_every_link_of_the_pages_leads_somewhere(place: Place) -> None:
    seen = linked(place.admin, "/ui/")
    assert {place.at(path) for path in GETS if path not in ("/ui/login", "/ui/register")} <= seen


def test_no_link_leads_where_its_reader_may_not_go(place: Place) -> None:
    place.site.admin.update_project(place.project, public=True)
    assert len(linked(Tab(place.site.guest), f"/ui/projects/{place.project}")) > 5
    assert len(linked(manager_with(place, EDIT), f"/ui/projects/{place.project}")) > 30


def test_a_project_that_is_being_deleted_is_on_no_page_and_in_no_form(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_nothing(*_: Any) -> asyncio.Future[int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(0)
        return done

    monkeypatch.setattr(tracker.Tracker, "begin_operation", begin_nothing)
    path = "/ui/projects/{project}/edit/delete"
    assert place.admin.post(place.at(path), place.fields(path)).status_code == 303
    of_it = "{project}", "{template}", "{job}", "{workflow}"
    for path in GETS + POSTS:
        if any(name in path for name in of_it) and not path.startswith("/ui/theeye/hosts"):
            answer = place.admin.http.get(place.at(path)) if path in GETS else None
            assert answer is None or answer.status_code == 404, path
            if path in POSTS:
                assert place.admin.post(place.at(path), place.fields(path)).status_code == 404, path
    for path in "/ui/", "/ui/jobs", "/ui/logs", "/ui/workers", "/ui/admin":
        assert place.admin.open(path).status == 200


# ── Forms that are refused ────────────────────────────────────────────────────────────────────────────────────────────


def test_no_form_is_taken_without_this_session_s_token(place: Place) -> None:
    other = Tab(place.manager.http).token
    before = place.dump()
    for path in POSTS:
        fields = place.fields(path)
        for token in ({}, {"token": ""}, {"token": "wrong"}, {"token": "ü"}, {"token": other}):
            answer = place.admin.http.post(place.at(path), data={**fields, **token})
            assert answer.status_code == 403, (path, token)
            assert "out of date" in Page(answer).notice
    assert place.dump() == before


def test_an_upload_without_the_token_is_refused(place: Place) -> None:
    before = place.dump()
    path = place.at("/ui/projects/{project}/submit/lines")
    assert place.admin.http.post(path, files={"file": ("a", b"x\n")}).status_code == 403
    assert place.dump() == before


def test_no_form_is_taken_that_another_site_sent(place: Place) -> None:
    before = place.dump()
    token = place.admin.token
    for path, headers in itertools.product(
        POSTS,
        (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "https://elsewhere.example"},
            {"origin": "null"},
            {"referer": "https://elsewhere.example/page"},
        ),
    ):
        data = {"token": token, **place.fields(path)}
        answer = place.admin.http.post(place.at(path), data=data, headers=headers)
        assert answer.status_code == 403, (path, headers)
        assert "another site" in Page(answer).notice
    assert place.dump() == before


def test_the_browser_s_own_headers_are_no_obstacle(place: Place) -> None:
    headers = {"sec-fetch-site": "same-origin", "origin": place.site.url, "accept": "text/html"}
    assert place.admin.post("/ui/projects/new", {"name": "fresh"}, headers=headers).status_code == 303


def test_who_has_not_logged_in_can_do_nothing(place: Place) -> None:
    guest, before = Tab(place.site.guest), place.dump()
    for path in POSTS:
        if path not in ENTRANCES:
            assert guest.post(place.at(path), place.fields(path)).status_code == 401, path
    assert place.dump() == before


def test_a_manager_without_any_role_can_do_nothing_to_others_projects(place: Place) -> None:
    manager, before = Tab(place.manager.http), place.dump()
    own = (*ENTRANCES, "/ui/projects/new", "/ui/projects/import", "/ui/account/password", "/ui/account/sessions")
    own += ("/ui/projects/pause",)  # of all projects in which it may: here of none
    for path in POSTS:
        if path not in own:
            hidden = "{uuid}" in path  # a job of a queue, which is one
            assert manager.post(place.at(path), place.fields(path)).status_code == (404 if hidden else 403), path
    assert place.dump() == before


def test_all_roles_but_the_one_that_is_needed_are_not_enough(place: Place) -> None:
    for role in tracker.ROLE_NAMES:
        manager = manager_with(place, ALL_ROLES ^ role)
        before = place.dump()
        for path in POSTS:
            if "{project}" in path and path not in FOR_ADMINS and role_of(path) == role:
                answer = manager.post(place.at(path), place.fields(path))
                assert answer.status_code == 403, path
                assert tracker.ROLE_NAMES[role] in Page(answer).notice, path
        assert place.dump() == before


def test_the_role_that_is_needed_is_enough(make_site: Callable[..., Site]) -> None:
    place = Place(make_site())
    for role in (EDIT, SECRET, MAINTENANCE, MANAGE_ACCESS):
        manager = manager_with(place, role | READ)
        for path in POSTS:
            if "{project}" in path and path not in FOR_ADMINS and role_of(path) == role:
                answer = manager.post(place.at(path), place.fields(path))
                assert answer.status_code == OTHERWISE.get(path, 303), path
                if "/access/" in path:
                    place.asking.request_access(place.project)


def test_only_admins_pause_workers_and_promote(place: Place) -> None:
    before = place.dump()
    manager = Tab(place.manager.http)
    for path in FOR_ADMINS:
        if path in POSTS:
            answer = manager.post(place.at(path), place.fields(path))
            assert answer.status_code == 403, path
            assert "admin" in Page(answer).notice
    assert place.dump() == before


# ── Who sees what ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_guests_are_asked_to_log_in_and_come_back(place: Place) -> None:
    guest = Tab(client(place.site.url))
    for_managers = [path for path in GETS if path not in FOR_ALL and path != "/ui/projects/{project}"]
    for path in set(GETS) - set(for_managers):
        assert guest.open(place.at(path)).status == 200
    for number, path in enumerate(for_managers):
        wanted = place.at(path) + "?text=a%26b"
        login = guest.open(wanted)
        assert (login.answer.url.path, login.answer.url.params["back"]) == ("/ui/login", wanted), path
        if number % 10 == 0:  # a login takes time by design
            home = guest.send(login.form("/ui/login"), username="admin", password="password")
            assert str(home.answer.url) == place.site.url + wanted, path
            guest.post("/ui/logout")


def test_a_form_sent_after_the_login_has_ended_says_so(place: Place) -> None:
    tab = Tab(place.manager.http)
    form = tab.open("/ui/projects/new").form("/ui/projects/new")
    cookies = dict(tab.http.cookies)
    tab.post("/ui/logout")
    tab.http.cookies.update(cookies)
    page = tab.send(form, name="kept")
    assert page.status == 401 and "What you typed is kept" in page.text and not page.notice.startswith("Not done")
    page = tab.send(page.form("/ui/login"), username="admin", password="password")
    assert page.status == 200 and "kept" in page.text and "Send it now" in page.buttons
    page = tab.send(page.form("/ui/projects/new"))
    assert page.notice.startswith("The project is there.") and "kept" in page.tree.findtext(".//title")


def test_pages_of_a_project_need_their_role(place: Place) -> None:
    for path in GETS:
        if "{project}" not in path or path == "/ui/projects/{project}":
            continue
        role = role_of(path, "GET")
        also = SECRET if path.endswith("/edit") else 0  # the settings, or their secrets
        page = manager_with(place, ALL_ROLES & ~(role | also)).open(place.at(path))
        assert page.status == 403 and tracker.ROLE_NAMES[role] in page.notice, path


def test_who_has_a_role_for_the_secrets_or_the_settings_alone_sees_no_more_of_them(place: Place) -> None:
    path = f"/ui/projects/{place.project}/edit"
    shown = {role: manager_with(place, role).open(path) for role in (EDIT, SECRET)}
    named = {role: {name for form in page.tree.forms for name in form.fields} for role, page in shown.items()}
    assert "motd" in named[EDIT] and not named[EDIT] & {"secret", "webhook_secret"}
    assert "motd" not in named[SECRET] and named[SECRET] >= {"secret", "webhook_secret"}


def test_tasks_operations_and_jobs_need_read_in_their_project(place: Place) -> None:
    manager = manager_with(place, ALL_ROLES ^ READ)
    for path in ("/ui/tasks/{task}", "/ui/operations/{operation}", "/ui/jobs/{job}"):
        assert manager.open(place.at(path)).status == 403


def test_a_hidden_project_does_not_exist_for_others(place: Place) -> None:
    place.site.admin.update_project(place.project, hidden=True)
    for tab in (Tab(place.manager.http), Tab(place.site.guest)):
        assert "plain project" not in tab.open("/ui/").html
        page = tab.open(f"/ui/projects/{place.project}")
        assert page.status == 404 and "plain" not in page.html
    other = Tab(place.manager.http)
    for path in ("/ui/logs", f"/ui/workers/{place.worker.id}", "/ui/projects/new", "/ui/account"):
        assert "plain project" not in other.open(path).html, path
    reader = manager_with(place, READ)
    assert "plain project" in reader.open("/ui/").text
    assert reader.open(f"/ui/projects/{place.project}").status == 200


def test_the_pages_of_a_hidden_project_say_the_same_as_those_of_none(place: Place) -> None:
    place.site.admin.update_project(place.project, hidden=True)
    other = Tab(place.manager.http)
    for path in GETS:
        if "{project}" in path:
            there, nowhere = other.open(place.at(path)), other.open(path.format(project=999))
            assert there.status == nowhere.status, path
            assert there.notice.replace(str(place.project), "999") == nowhere.notice, path


def test_the_roles_decide_which_tabs_and_buttons_a_project_shows(place: Place) -> None:
    path = f"/ui/projects/{place.project}"
    tabs = {
        READ: {"Tasks", "Jobs"},
        EDIT: {"Submit", "Templates", "Settings"},
        MANAGE_ACCESS: {"Access"},
        SECRET: {"Settings"},
        MAINTENANCE: set(),
    }
    actions = {
        EDIT: {"Pause", "Set"},
        MAINTENANCE: {"Retry all failed", "Requeue all assigned", "Delete all tasks"},
    }
    for role in tracker.ROLE_NAMES:
        page = manager_with(place, role).open(path)
        [nav] = page.tree.xpath("//nav[@aria-label='Project']")
        shown = {re.sub(r" \d+ waiting$", "", link.text_content()) for link in nav.iter("a")}
        assert shown == {"Overview", *tabs[role]}
        assert page.buttons - {"Log out"} == actions.get(role, set())
    assert Tab(place.site.guest).open(path).buttons == set()


def test_the_roles_decide_which_buttons_a_list_of_tasks_shows(place: Place) -> None:
    path = f"/ui/projects/{place.project}/tasks"
    expected = {
        (READ, "failed"): set(),
        (READ | EDIT, "failed"): {"Set priority"},
        (READ | MAINTENANCE, "failed"): {"Retry", "Delete"},
        (READ | MAINTENANCE, "assigned"): {"Requeue", "Delete"},
        (READ | MAINTENANCE | EDIT, "waiting"): {"Set priority", "Delete"},
    }
    for (role, state), buttons in expected.items():
        page = manager_with(place, role).open(path, state=state)
        assert page.buttons - {"Log out", "Search", "Pause", "Set"} == buttons


def test_a_list_of_tasks_with_nothing_in_it_offers_nothing_to_do_with_them(site: Site) -> None:
    project = site.admin.create_project()
    tab = Tab(site.admin.http)
    assert "Delete" not in tab.open(f"/ui/projects/{project}/tasks").buttons
    site.create_worker(project).submit(project)
    assert "Delete" in tab.open(f"/ui/projects/{project}/tasks").buttons


def test_the_administration_is_for_admins(place: Place) -> None:
    manager = Tab(place.manager.http)
    assert manager.open("/ui/admin").status == 403
    assert "/ui/admin" not in manager.open("/ui/").links
    assert "/ui/admin" in place.admin.open("/ui/").links


def test_the_administration_shows_settings_and_database_and_no_secret(place: Place) -> None:
    page = place.admin.open("/ui/admin")
    assert place.site.settings.database in page.text
    assert "snapshot_interval" in page.text and tracker.__version__ in page.text
    [(key,)] = place.site.read("SELECT value FROM meta WHERE key = 'cookie_key'")
    assert key not in page.html


@pytest.mark.parametrize("public", [True, False])
def test_the_logs_are_public_if_the_settings_say_so(make_site: Callable[..., Site], public: bool) -> None:
    place = Place(make_site(public_logs=public))
    guest = Tab(place.site.guest)
    page = guest.open("/ui/logs")
    assert ("plain message" in page.text) == public
    assert page.answer.url.path == ("/ui/logs" if public else "/ui/login")
    assert ("/ui/logs" in guest.open("/ui/").links) == public


def test_a_manager_sees_its_logins_and_ends_them(place: Place) -> None:
    manager = place.site.create_manager("many")
    others = [client(place.site.url) for _ in range(3)]
    for http in others:
        http.post("/login", json={"username": "many", "password": "password"})
    live = lambda: [http.get("/account").json()["content"]["logged_in"] for http in others]  # noqa: E731
    page = Tab(manager.http).open("/ui/account")
    texts = texts_of(page, "sessions", "td")
    assert len(texts) == 12 and texts[2::3].count("this one") == 1
    Tab(manager.http).send(next(form for form in page.tree.forms if "mark" in form.fields))
    assert live().count(False) == 1
    page = Tab(manager.http).open("/ui/account")
    page = Tab(manager.http).send(next(form for form in page.tree.forms if "keep" in form.fields))
    assert live() == [False] * 3 and texts_of(page, "sessions", "td")[2::3] == ["this one"]
    for http in others:
        http.close()


def test_pages_show_log_lines_to_those_who_may_read_the_project(place: Place) -> None:
    manager = place.site.create_manager()
    pages = ("/ui/logs", f"/ui/workers/{place.worker.id}")
    shown = lambda: ["plain message" in Tab(manager.http).open(path).text for path in pages]  # noqa: E731
    before = shown()
    place.site.admin.set_role(place.project, manager, READ)
    assert (before, shown()) == ([False, False], [True, True])


# ── Text that others wrote ────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
NAUGHTY = "<b>\"'&amp;</b>"  # as long as a username may be


def test_all_that_others_wrote_is_shown_as_text(make_site: Callable[..., Site]) -> None:
    place = Place(make_site(), HOSTILE, NAUGHTY)
    place.site.admin.update_project(place.project, clone_url=HOSTILE, git_repo=HOSTILE)
    place.site.admin.set_role(place.project, place.manager, READ)
    place.admin.post(place.at("/ui/projects/{project}/secret"), {"secret": HOSTILE})
    place.admin.post(place.at("/ui/projects/{project}/webhook_secret"), {"webhook_secret": HOSTILE})
    place.names |= hostile_job(place)
    shown = {
        "/ui/": ("project", "motd"),
        "/ui/projects/{project}": ("project", "motd", "version", "worker"),
        "/ui/projects/{project}/edit": ("project", "motd"),
        "/ui/projects/{project}/tasks": ("waiting recipe",),
        "/ui/projects/{project}/access": ("asking", "worker"),
        "/ui/tasks/{task}": ("recipe 0", "worker", "scope", "message"),
        "/ui/projects/{project}/templates": ("template", "template description", "workflow"),
        "/ui/templates/{template}": ("variable", "about", "label", "fixed", "script", "runas %script%", "worker"),
        "/ui/templates/{template}/edit": ("script",),
        "/ui/projects/{project}/jobs": ("template", "worker"),
        "/ui/jobs": ("template", "project"),
        "/ui/jobs/{job}": ("variable", "value", "argument", "worker", "scope", "message"),
        "/ui/workers": ("worker", "asking"),
        "/ui/logs": ("worker", "scope", "message", "project"),
        "/ui/projects/{project}/workflows/new": ("template",),
        "/ui/workflows/{workflow}": ("workflow", "template"),
        "/ui/theeye/tokens": ("token",),
        "/ui/theeye/agents": ("agent", "host", "version"),
        "/ui/testflinger/queues": ("queue", "queue description"),
        "/ui/testflinger/queues/{queue}": ("queue", "lab job", "waiting job", "image", "location", "state"),
        "/ui/testflinger/jobs/{uuid}": ("lab job", "tag", "not this", "webhook", "output"),
        "/ui/testflinger/agents": ("state", "queue", "location", "type", "comment"),
        "/ui/testflinger/agents/{agent}": (
            "state",
            "other queue",
            "location",
            "type",
            "comment",
            "detail",
            "agent line",
        ),
    }
    for path in GETS:
        if path.endswith(DOWNLOADS):
            continue
        page = place.admin.open(place.at(path))
        raw = page.html
        assert "<script>alert" not in raw and "<img" not in raw and NAUGHTY not in raw, path
        if path != "/ui/workflows/{workflow}":  # which shows the source of a button
            assert "&amp;amp;amp;" not in raw, path
        assert not page.tree.xpath("//@*[starts-with(name(), 'on')]"), path
        for what in shown.get(path, ()):
            assert f"{HOSTILE} {what}" in page.text, (path, what)
    for path in ("/ui/admin", "/ui/projects/{project}/access"):
        assert NAUGHTY in place.admin.open(place.at(path)).text


def hostile_job(place: Place) -> dict[str, Any]:
    """A template and its job, with such a text wherever one can be."""
    variable = {"name": f"{HOSTILE} variable", "value": f"{HOSTILE} default", "description": f"{HOSTILE} about"}
    chosen = {"name": f"{HOSTILE} chosen", "allowed": [f"{HOSTILE} one"], "required": False}
    arguments = [
        {"order": 0, "label": f"{HOSTILE} label"},
        {"order": 1, "type": "fixed", "label": f"{HOSTILE} fixed", "value": HOSTILE},
        {"order": 2, "type": "select", "label": f"{HOSTILE} select", "options": [f"{HOSTILE} one"]},
    ]
    fields = {"variables": [variable, chosen], "arguments": arguments, "env": {"TEXT": HOSTILE}}
    fields |= {"script": f"{HOSTILE} script", "runas": f"{HOSTILE} runas %script%", "recipe": f"{HOSTILE} recipe"}
    template = place.create_template(f"{HOSTILE} another template", **fields, priority=9, api=True)
    job = place.trigger(template, {f"{HOSTILE} variable": f"{HOSTILE} value"}, f"{HOSTILE} argument", None)
    place.worker.assigned(place.project)
    entry = {"message": f"{HOSTILE} message", "timestamp": 1, "scope": f"{HOSTILE} scope"}
    place.worker.http.post("/task/log", json={"task_id": job["task"], "entries": [entry]})
    place.worker.release(job["task"], output={"state": HOSTILE, "output": f"{HOSTILE} output"})
    return {"template": template, "job": job["id"]}


@pytest.mark.parametrize(
    "path",
    [
        "/ui/?text={}",
        "/ui/workers?text={}",
        "/ui/logs?text={}",
        "/ui/login?back={}",
        "/ui/{}",
        "/ui/logs?level={}",
    ],
)
def test_what_an_address_says_is_shown_as_text(place: Place, path: str) -> None:
    page = place.admin.open(path.format(httpx.QueryParams({"": HOSTILE}).__str__()[1:].replace("%2F", "/")))
    assert "<script>alert" not in page.html and "<img" not in page.html
    assert "alert(1)" in page.html


def as_a_browser(field: lxml.html.HtmlElement) -> str:
    """What a field that nobody touches says: one of one line has no line ends, and an area has a browser's."""
    value = field.value or ""
    return re.sub(r"[\r\n]", "", value) if field.tag == "input" else re.sub("\r\n?|\n", "\r\n", value)


@pytest.mark.parametrize("kind", ["project", "template"])
def test_a_form_leaves_line_ends_that_it_cannot_show(place: Place, kind: str) -> None:
    given = {"name": "two\nlines"} | ({"motd": "a\r\nb\rc"} if kind == "project" else {"script": "dir\r\npause\r\n"})
    place.admin.http.post(place.at(f"/{kind}/update/{{{kind}}}"), json=given).raise_for_status()
    path = place.at(f"/ui/{kind}s/{{{kind}}}/edit")
    form = place.admin.open(path).form("/edit")
    texts = {name: as_a_browser(field) for name, field in form.inputs.items() if name in given}
    page = place.admin.send(form, **texts, **({"version": "5"} if kind == "project" else {"priority": "5"}))
    assert page.notice.startswith("Saved."), page.notice
    now = place.admin.http.get(place.at(f"/{kind}/get/{{{kind}}}")).json()["content"][kind]
    assert {name: now[name] for name in given} == given


def test_rows_of_a_template_keep_line_ends_that_no_field_shows(place: Place) -> None:
    variable = {"name": " a\nb", "value": "c\r\nd", "description": "e\nf", "allowed": [], "required": True}
    given = {
        "variables": [variable],
        "arguments": [{"order": 0, "type": "se\nlect", "label": "g\r\nh", "value": "i\nj"}],
    }
    place.admin.http.post(place.at("/template/update/{template}"), json=given).raise_for_status()
    form = place.admin.open(place.at("/ui/templates/{template}/edit")).form("/edit")
    fields = {name: field for name, field in form.inputs.items() if re.match("variables|arguments", name)}
    texts = {name: as_a_browser(field) for name, field in fields.items() if field.tag != "select"}
    page = place.admin.send(form, **texts, priority="5")
    assert page.notice.startswith("Saved."), page.notice
    now = place.admin.http.get(place.at("/template/get/{template}")).json()["content"]["template"]
    assert {name: now[name] for name in given} == {**given, "arguments": [{**given["arguments"][0], "options": []}]}


@pytest.mark.parametrize("name", ["two  blanks", "two\nlines", "a\ttab", "a\u00a0blank that keeps together"])
def test_a_project_is_deleted_by_its_name_as_it_is_shown(place: Place, name: str) -> None:
    project = place.site.admin.create_project(name)
    form = place.admin.open(f"/ui/projects/{project}/edit").form("/delete")
    assert "is deleted" in place.admin.send(form, confirm=" ".join(name.split())).notice


def test_what_a_refused_form_said_is_shown_as_text(place: Place) -> None:
    place.site.admin.create_project(HOSTILE)
    page = place.admin.act("/ui/projects/new", {"name": HOSTILE, "motd": HOSTILE, "version": HOSTILE})
    assert page.status == 409
    assert "<script>alert" not in page.html and "<img" not in page.html
    assert page.typed("name") == HOSTILE and page.typed("motd") == HOSTILE


def test_a_text_with_line_ends_comes_back_as_it_was(place: Place) -> None:
    """A browser sends each line end as two characters, and drops one at the beginning of a text area."""
    path, text = place.at("/ui/projects/{project}/edit"), "\n\n first\nlast \n"
    place.admin.post(path, {"motd": text.replace("\n", "\r\n")})
    assert place.site.admin.project(place.project)["motd"] == text
    form = place.admin.open(path).form(path)
    place.admin.send(form)
    assert place.site.admin.project(place.project)["motd"].strip() == text.strip()


# ── Below a path prefix ───────────────────────────────────────────────────────────────────────────────────────────────


class StrippingProxy(httpx.BaseTransport):
    """A reverse proxy that serves the tracker below /queue, and asks it without that."""

    def __init__(self) -> None:
        self.real = httpx.HTTPTransport(verify=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path.startswith("/queue/"), f"escaped from the prefix: {request.url}"
        inner = request.url.copy_with(raw_path=request.url.raw_path.removeprefix(b"/queue"))
        return self.real.handle_request(
            httpx.Request(request.method, inner, headers=request.headers, stream=request.stream)
        )


def test_nothing_escapes_the_path_prefix(make_site: Callable[..., Site]) -> None:
    url = make_site(root_path="/queue").url
    http = httpx.Client(base_url=f"{url}/queue", transport=StrippingProxy(), timeout=90)
    tab, worker = Tab(http), Worker(url)
    login = tab.open("/ui/account")
    assert login.answer.url.path == "/queue/ui/login"
    account = tab.send(login.form("/login"), username="admin", password="password")
    assert account.answer.url.path == "/queue/ui/account" and "Welcome back" in account.notice
    assert {cookie.path for cookie in http.cookies.jar} == {"/queue"}
    created = tab.act("/ui/projects/new", {"name": "in the queue"})
    assert created.answer.url.path == "/queue/ui/projects/1"
    assert f"curl {url}/queue/worker/create" in created.text and f"--server {url}/queue" in created.text
    upload = tab.act("/ui/projects/1/submit/lines", {"lines": "one"})
    assert upload.answer.url.path == "/queue/ui/operations/1"
    tab.act("/ui/projects/1/access/set", {"worker": worker.id, "assign": "true", "submit": "true"})
    tab.act("/ui/projects/1/templates/new", {"name": "build", "script": "make", "api": "true"})
    [job] = re.findall(r"^/queue/ui/jobs/(\w+)$", tab.act("/ui/templates/1/run").answer.url.path)
    names = {"project": 1, "task": worker.assigned(1)["id"], "worker": worker.id, "operation": 1}
    tab.act("/ui/projects/1/workflows/new", {"name": "nightly", "start": "1"})
    names |= {"template": 1, "job": job, "workflow": 1}
    made = tab.act("/ui/testflinger/clients", {"client_id": "lab-client", "role": "agent"})
    auth = ("lab-client", made.tree.xpath("string(//*[@id='fresh-key'])"))
    lab_job = http.post("/v1/job", json={"job_queue": "lab"}, auth=auth).json()["job_id"]
    http.post("/v1/agents/data/lab-agent", json={"queues": ["lab"]}, auth=auth)
    names |= {"queue": 2, "uuid": lab_job, "agent": 1, "client": "lab-client"}
    for path in GETS:
        if not path.endswith(DOWNLOADS):
            page = tab.open(f"{path.format(**names)}?text=nothing+such")
            assert page.status == 200
            for link in (*page.links, *page.tree.xpath("//form/@action")):
                assert link.startswith(("/queue/", "#")), (path, link)
    paused = tab.act("/ui/projects/1/pause", {"paused": "true"})
    assert paused.answer.url.path == "/queue/ui/projects/1" and paused.notice.startswith("Paused")
    assert http.get("/", headers={"accept": "text/html"}).headers["location"] == "/queue/ui/"
    assert http.get("/ui").headers["location"] == "/queue/ui/"
    assert http.get("/ui/projects/1/?text=a").headers["location"] == "/queue/ui/projects/1?text=a"


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/ui/account/", "/ui/account"),
        ("/ui//elsewhere.example//", "/ui/elsewhere.example"),
        ("/ui/%2F%2Felsewhere.example/", "/ui/elsewhere.example"),
        ("/ui/a%0D%0ASet-Cookie:x/", None),
        ("/ui/%5Celsewhere.example/", "/ui/%5Celsewhere.example"),
        ("/ui/nothing", None),
    ],
)
def test_an_address_that_ends_in_a_slash_leads_to_the_one_without_and_nowhere_else(
    site: Site, path: str, location: str | None
) -> None:
    answer = site.guest.get(path)
    assert (answer.status_code, answer.headers.get("location")) == ((308, location) if location else (404, None))


# ── Messages, and where an action leads to ────────────────────────────────────────────────────────────────────────────


def test_what_an_action_did_is_said_once(place: Place) -> None:
    page = place.admin.act(place.at("/ui/projects/{project}/reset/reset_failed"))
    assert page.notice == "1 failed task is waiting again."
    assert page.answer.url.path == f"/ui/projects/{place.project}"
    assert place.admin.open(place.at("/ui/projects/{project}")).notice == ""


def test_a_page_that_refreshes_itself_does_not_take_the_message(place: Place) -> None:
    answer = place.admin.post(place.at("/ui/projects/{project}/reset/reset_failed"))
    assert answer.status_code == 303
    refreshed = Page(place.admin.http.get("/ui/", headers={"x-live": "1"}))
    assert "waiting again" not in refreshed.text
    assert "waiting again" in place.admin.open("/ui/account").notice


def test_a_message_that_the_tracker_did_not_sign_is_not_shown(place: Place) -> None:
    for forged in (b"aGVsbG8.x", b"hello", b"=", b"\xff"):
        page = Page(place.site.guest.get("/ui/login", headers={"cookie": b"tt-message=" + forged}))
        assert page.status == 200 and page.notice == ""


ELSEWHERE = (
    "https://elsewhere.example/",
    "//elsewhere.example/ui/",
    "/\\elsewhere.example",
    "\\\\elsewhere.example",
    "/ui/\\..\\..\\elsewhere.example",
    "/ui/\r\nset-cookie: a=b",
    "javascript:alert(1)",
    "ui/",
    "",
)


@pytest.mark.parametrize("back", ELSEWHERE)
def test_no_form_leads_to_another_site(place: Place, back: str) -> None:
    login = Tab(place.site.guest).post("/ui/login", {"username": "admin", "password": "password", "back": back})
    pause = place.admin.post("/ui/workers/pause", {"worker": place.worker.id, "paused": "true", "back": back})
    task = place.admin.post(
        place.at("/ui/projects/{project}/tasks"), {"action": "retry", "task": place.failed, "back": back}
    )
    for answer in (login, pause, task):
        assert answer.status_code == 303
        target = urljoin(str(answer.url), answer.headers["location"])
        assert target.startswith(f"{place.site.url}/ui/") and "set-cookie: a=b" not in str(answer.headers)


def test_the_filter_survives_an_action_on_the_selected(place: Place) -> None:
    path = f"{place.at('/ui/projects/{project}/tasks')}?state=failed&text=recipe&priority=0"
    page = place.admin.open(path)
    form = page.form("/tasks")
    form.fields["task"] = str(place.failed)
    after = place.admin.send(form, "Retry", task=[str(place.failed)])
    assert after.notice == "1 failed task is waiting again."
    assert parse_qs(after.answer.url.query.decode()) == {"state": ["failed"], "text": ["recipe"], "priority": ["0"]}
    assert after.tree.xpath("string(//input[@name='text']/@value)") == "recipe"


def test_the_filter_survives_the_question_before_an_action_on_all(place: Place) -> None:
    path = f"{place.at('/ui/projects/{project}/tasks')}?state=waiting&text=recipe"
    question = place.admin.send(place.admin.open(path).form("/tasks"), "Set priority", which="all", priority="8")
    assert "Set the priority of all waiting tasks that match?" in question.text
    after = place.admin.send(question.form("/tasks"), "Set the priority of all")
    assert after.notice == "1 task got priority 8."
    assert parse_qs(after.answer.url.query.decode()) == {"state": ["waiting"], "text": ["recipe"]}
    assert place.site.read("SELECT count(*) FROM task WHERE priority = 8") == [(1,)]


def test_nothing_happens_to_all_before_it_is_confirmed(place: Place) -> None:
    before = place.dump()
    question = place.admin.act(place.at("/ui/projects/{project}/tasks"), {"action": "delete", "which": "all"})
    assert question.status == 200 and "Delete all" in question.buttons
    assert place.dump() == before


def test_what_may_not_be_done_is_not_asked_about(place: Place) -> None:
    path = place.at("/ui/projects/{project}/tasks")
    reader = manager_with(place, READ)
    assert reader.act(path, {"action": "delete", "which": "all"}).status == 403
    page = place.admin.act(path, {"action": "set_priority", "which": "all", "priority": ""})
    assert page.status == 400 and "priority" in page.notice


def test_the_action_on_all_works_in_every_state(place: Place) -> None:
    path = place.at("/ui/projects/{project}/tasks")
    for state, action, said in (
        ("failed", "retry", "1 failed task is waiting again."),
        ("assigned", "requeue", "1 assigned task is waiting again."),
        ("awaiting_verification", "delete", "1 task was deleted."),
        ("waiting", "delete", "tasks were deleted."),
    ):
        fields = {"action": action, "which": "all", "confirmed": "yes"}
        assert said in place.admin.act(f"{path}?state={state}", fields).notice
    assert not [name for name in place.site.admin.counts(place.project) if name != "closed"]


def test_deleting_selected_tasks_asks_first(place: Place) -> None:
    before = place.site.admin.counts(place.project)
    question = place.admin.act(
        place.at("/ui/projects/{project}/tasks?state=failed"), {"action": "delete", "task": place.failed}
    )
    assert question.status == 200 and str(place.failed) in question.form("/tasks").xpath(".//*[@name='task']/@value")
    assert place.site.admin.counts(place.project) == before


def test_a_task_deleted_on_its_page_leads_back_to_the_list(place: Place) -> None:
    waiting = place.site.read("SELECT max(id) FROM task WHERE recipe = 'plain waiting recipe'")[0][0]
    page = place.admin.open(f"/ui/tasks/{waiting}")
    question = place.admin.send(page.form("/tasks"), "Delete")
    after = place.admin.send(question.form("/tasks"), "Delete")
    assert after.status == 200 and after.notice == "1 task was deleted."
    assert after.answer.url.path == place.at("/ui/projects/{project}/tasks")


def test_an_action_on_a_task_s_page_comes_back_to_it(place: Place) -> None:
    page = place.admin.open(f"/ui/tasks/{place.failed}")
    after = place.admin.send(page.form("/tasks"), "Retry")
    assert after.answer.url.path == f"/ui/tasks/{place.failed}" and after.notice == "1 failed task is waiting again."


# ── What is typed, and what is wrong with it ──────────────────────────────────────────────────────────────────────────


def invalid_fields(page: Page) -> list[str]:
    return page.tree.xpath("//*[@aria-invalid='true']/@name")


@pytest.mark.parametrize(
    "path, fields, wrong",
    [
        ("/ui/projects/new", {"name": "plain project", "motd": "typed", "priority": "7"}, "name"),
        ("/ui/projects/new", {"name": "  ", "motd": "typed"}, "name"),
        ("/ui/projects/new", {"name": "fresh", "motd": "typed", "priority": "high"}, "priority"),
        ("/ui/projects/{project}/edit", {"name": "x" * 201, "motd": "typed"}, "name"),
        ("/ui/projects/{project}/edit", {"name": "fresh", "motd": "typed", "assign_rate": "-1"}, "assign_rate"),
        ("/ui/projects/{project}/submit", {"recipe": "typed", "priority": "high"}, "priority"),
        ("/ui/projects/{project}/submit", {"recipe": "", "unique_string": "typed"}, "recipe"),
        ("/ui/projects/{project}/submit/lines", {"lines": "typed", "max_retries": "-1"}, "max_retries"),
        ("/ui/projects/{project}/submit/lines", {"lines": " ", "priority": "7"}, "lines"),
        ("/ui/projects/{project}/templates/new", {"name": " ", "script": "typed\ntwice"}, "name"),
        ("/ui/projects/{project}/templates/new", {"name": "fresh", "runas": "bash", "key": "typed"}, "runas"),
        ("/ui/projects/{project}/templates/new", {"name": "fresh", "timeout": "-1", "keep_count": "3"}, "timeout"),
        ("/ui/projects/{project}/templates/new", {"name": "fresh", "keep_days": "0", "env": "A=typed"}, "keep_days"),
        ("/ui/projects/{project}/templates/new", {"name": "fresh", "env": "A=typed\nB"}, "env"),
        ("/ui/projects/{project}/templates/new", {"name": "fresh", "env": "A=typed\nA=twice"}, "env"),
        ("/ui/projects/{project}/templates/new", {"name": "x", "variables[7].value": "typed"}, "variables[7].name"),
        ("/ui/templates/{template}/edit", {"name": "x", "arguments[2].label": "typed"}, "arguments[2].type"),
        (
            "/ui/templates/{template}/edit",
            {"name": "x", "arguments[1].type": "fixed", "arguments[1].order": "1st"},
            "arguments[1].order",
        ),
        ("/ui/templates/{template}/run", {"more": "typed=\nwrong"}, "more"),
        ("/ui/projects/{project}/access/set", {"worker": "many"}, "worker"),
        ("/ui/projects/{project}/access/role", {"username": "nobody"}, "username"),
        ("/ui/register", {"username": "admin", "password": "long enough"}, "username"),
        ("/ui/register", {"username": "typed", "password": "short"}, "password"),
    ],
)
def test_a_refused_form_keeps_what_was_typed_and_names_the_field(
    place: Place, path: str, fields: dict[str, str], wrong: str
) -> None:
    before = {**place.dump(), "login_failure": []}
    page = place.admin.act(place.at(path), fields)
    assert page.status in (400, 404, 409)
    assert page.notice.startswith(f"Not done. {wrong}: "), page.notice
    assert invalid_fields(page) == [wrong]
    for name, value in fields.items():
        assert page.typed(name, place.at(path)) in ((value,) if name != "password" else (None, "")), name
    assert {**place.dump(), "login_failure": []} == before


def test_the_address_of_an_action_leads_to_its_page(place: Place) -> None:
    """A browser that is opened anew asks for what was refused there; and what is done on that page leads back to it."""
    others = re.compile(r"/ui/(projects|workers)/pause|/ui/testflinger/jobs/.*")  # have the form of other addresses
    for path in [path for path in map(place.at, POSTS) if not others.fullmatch(path)]:
        page = place.admin.open(path)
        assert page.status == 200, (path, page.notice)


@pytest.mark.parametrize(
    "page, action, fields",
    [
        ("/ui/projects/{project}/edit", "/edit", {"name": ""}),
        ("/ui/projects/{project}/edit", "/notices", {"failing_share": "x"}),
        ("/ui/projects/{project}/edit", "/secret", {"secret": "x" * 100_001}),
        ("/ui/projects/{project}/edit", "/webhook_secret", {"webhook_secret": "x" * 1001}),
        ("/ui/projects/{project}/edit", "/delete", {"confirm": "another one"}),
        ("/ui/projects/{project}", "/reset/hard_reset", {"confirm": "another one"}),
        ("/ui/projects/{project}/submit", "/submit/lines", {"lines": ""}),
        ("/ui/projects/{project}/access", "/role", {"username": "nobody"}),
        ("/ui/templates/{template}/edit", "/edit", {"name": ""}),
        ("/ui/workers/{worker}", "/rename", {"alias": "x" * 201}),
        ("/ui/account", "/password", {"password": "wrong", "new_password": "long enough"}),
    ],
)
def test_a_page_that_says_what_was_refused_has_forms_that_go_where_they_went(
    place: Place, page: str, action: str, fields: dict[str, str]
) -> None:
    def actions(shown: Page) -> list[str]:
        return [form.get("action") for form in shown.tree.forms if form.method == "POST"]

    first = place.admin.open(place.at(page))
    refused = place.admin.send(first.form(action), **fields)
    assert refused.status in (400, 401, 404), refused.notice
    assert actions(refused) == actions(first)


def test_a_wrong_password_is_not_named_and_not_kept(place: Place) -> None:
    page = Tab(place.site.guest).act("/ui/login", {"username": "admin", "password": "wrong horse", "back": "/ui/logs"})
    assert page.status == 401 and page.typed("username") == "admin" and "wrong horse" not in page.html
    assert page.typed("back") == "/ui/logs"


def test_the_two_forms_of_the_submit_page_do_not_mix(place: Place) -> None:
    page = place.admin.act(place.at("/ui/projects/{project}/submit"), {"recipe": "typed", "priority": "77x"})
    assert page.form("/submit").fields["priority"] == "77x"
    assert page.form("/submit/lines").fields["priority"] == "0"


def test_a_refused_action_on_tasks_leaves_the_filter_alone(place: Place) -> None:
    path = place.at("/ui/projects/{project}/tasks")
    page = place.admin.act(f"{path}?state=failed", {"action": "set_priority", "priority": "4", "which": "selected"})
    assert page.status == 400 and "select at least one" in page.notice
    assert page.tree.xpath("string(//form[@role='search']//input[@name='priority']/@value)") == ""


def test_settings_saved_from_an_old_page_leave_what_was_set_since(place: Place) -> None:
    path = place.at("/ui/projects/{project}/edit")
    project = int(path.split("/")[3])
    old = place.admin.open(path).form("/edit")
    place.site.admin.update_project(project, paused=True, version="2", assign_rate=0.1, max_lost_leases=7)
    refused = place.admin.send(old, motd="a new\nday", priority="x")
    assert refused.status == 400
    assert place.admin.send(refused.form("/edit"), priority="9").notice == "Saved."
    row = place.site.read(
        "SELECT paused, version, assign_rate, max_lost_leases, motd, priority FROM project WHERE id = ?", project
    )
    assert row == [(1, "2", 0.1, 7, "a new\nday", 9)]


def test_who_is_told_of_create_admin_is_told_that_the_tracker_is_stopped_for_it(make_site: Callable[..., Site]) -> None:
    site = make_site(open_registration=False)
    for page in (Tab(site.admin.http).open("/ui/admin"), Tab(site.guest).open("/ui/register")):
        assert re.search(r"create-admin.*while (the tracker|it) is stopped", page.html)
    assert re.search(r"create-admin.*while it is stopped", tracker.NO_ADMIN)


def test_an_archived_project_s_pages_offer_nothing_that_it_refuses(place: Place) -> None:
    project = place.site.admin.create_project("an archived one")
    made = {"project": project, "name": "echo", "script": "echo"}
    template = place.site.admin.post("/template/create", made).json()["content"]["template"]["id"]
    beginning = ("/submit", "/submit/lines", "/templates/new", "/workflows/new", "/run")

    def offered() -> set[str]:
        here = f"/ui/projects/{project}"
        pages = [here, here + "/tasks", here + "/submit", here + "/templates", f"/ui/templates/{template}"]
        trees = [place.admin.open(page).tree for page in pages]
        buttons = [tree.xpath("//form[.//button[normalize-space()]]/@action | //a/@href") for tree in trees]
        return {end for end in beginning for paths in buttons for path in paths if path.endswith(end)}

    assert offered() == set(beginning)
    place.site.admin.update_project(project, archived=True)
    assert offered() == set()


def test_settings_sent_as_they_are_change_nothing(place: Place) -> None:
    path = place.at("/ui/projects/{project}/edit")
    project = int(path.split("/")[3])
    set_ones = {"motd": "two\nlines", "assign_rate": 0.1, "retry_delay": 1.5, "max_lost_leases": 0, "keep_hashes": True}
    place.site.admin.update_project(project, **set_ones)
    before = place.site.read("SELECT * FROM project")
    assert place.admin.send(place.admin.open(path).form("/edit")).notice == "Saved."
    assert place.site.read("SELECT * FROM project") == before
    place.admin.send(place.admin.open(path).form("/edit"), max_lost_leases="")
    assert place.site.read("SELECT max_lost_leases FROM project WHERE id = ?", project) == [(None,)]


def test_notices_saved_from_an_old_page_leave_what_was_set_since(place: Place) -> None:
    path = place.at("/ui/projects/{project}/edit")
    notices = place.at("/project/notices/{project}")
    old = place.admin.open(path).form("/notices")
    url = "https://chat.example/hook"
    set_since = {"url": url, "kind": "slack", "events": ["worker_paused"], "failing_share": 9}
    assert place.site.admin.post(notices, set_since).status_code == 200
    refused = place.admin.send(old, stalled_minutes="0")
    assert refused.status == 400
    assert (
        place.admin.send(refused.tree.get_element_by_id("notices").find("form"), stalled_minutes="7").notice == "Saved."
    )
    now = place.site.admin.get(notices).json()["content"]["notices"]
    assert now | set_since == now and now["stalled_minutes"] == 7


@pytest.mark.parametrize("name", ["secret", "webhook_secret"])
def test_a_secret_that_others_have_changed_since_is_changed_by_an_old_page_only_when_sent_once_more(
    place: Place, name: str
) -> None:
    path, action = place.at("/ui/projects/{project}/edit"), f"/projects/{place.project}/{name}"
    old = place.admin.open(path).form(action)
    assert place.admin.send(place.admin.open(path).form(action), **{name: "theirs"}).status == 200
    refused = place.admin.send(old, **{name: "mine"})
    assert refused.status == 409 and f"{name}: was changed since this page was shown" in refused.notice
    assert place.site.read(f"SELECT {name} FROM project WHERE id = ?", place.project) == [("theirs",)]
    assert place.admin.send(refused.form(action)).status == 200
    assert place.site.read(f"SELECT {name} FROM project WHERE id = ?", place.project) == [("mine",)]


def test_where_notices_go_and_of_what_kind_they_are_is_one_thing_to_the_form(place: Place) -> None:
    path = place.at("/ui/projects/{project}/edit")
    old = place.admin.open(path).form("/notices")
    place.site.admin.post(place.at("/project/notices/{project}"), {"url": "https://slack.example/", "kind": "slack"})
    refused = place.admin.send(old, url="https://elsewhere.example/", kind="json")
    place.admin.send(refused.form("/notices"))
    assert place.site.read("SELECT url, kind FROM notice_hook") == [("https://elsewhere.example/", "json")]


def test_a_manager_s_roles_saved_from_an_old_page_leave_those_that_were_given_or_taken_since(place: Place) -> None:
    path = place.at("/ui/projects/{project}/access")
    place.admin.act(f"{path}/role", {"username": "other", "read": "true", "edit": "true"})
    old = next(form for form in place.admin.open(path).tree.forms if form.get("id") == f"role-{place.manager.id}")
    place.admin.act(f"{path}/role", {"username": "other", "read": "true", "secret": "true"})
    ticked = {"read": "true", "edit": "true", "maintenance": "true"}  # for this browser the boxes are not part of it
    place.admin.act(f"{path}/role", {**old.fields, **ticked})
    role = place.site.read("SELECT role FROM manager_role WHERE manager = ?", place.manager.id)
    assert role == [(READ | SECRET | MAINTENANCE,)]


def test_a_workflow_saved_from_an_old_page_leaves_what_was_changed_since(place: Place) -> None:
    path = place.at("/ui/workflows/{workflow}")
    workflow = int(path.rpartition("/")[2])
    old = place.admin.open(path).form(path)
    edges = [{"template": place.template, "ending": "failure", "target": place.template}]
    changed = place.site.admin.post(f"/workflow/update/{workflow}", {"name": "theirs", "edges": edges})
    assert changed.status_code == 200
    assert place.admin.send(old).notice == "Saved."
    now = place.site.admin.get(f"/workflow/get/{workflow}").json()["content"]["workflow"]
    assert (now["name"], now["edges"]) == ("theirs", edges)


OF_OTHERS = {  # what a page that there is changes of what others have changed since it was shown
    "/ui/projects/{project}/edit": ("/edit", "/project/update/{project}", "motd", "paused"),
    "/ui/projects/{project}/edit#notices": ("/notices", "/project/notices/{project}", "url", "failing_share"),
    "/ui/workflows/{workflow}": ("/ui/workflows/{workflow}", "/workflow/update/{workflow}", "name", "edges"),
}


@pytest.mark.parametrize("page", OF_OTHERS)
def test_what_others_have_changed_since_is_changed_by_an_old_page_only_when_sent_once_more(
    place: Place, page: str
) -> None:
    action, call, field, untouched = OF_OTHERS[page]
    action, call = place.at(action), place.at(call)
    edges = [{"template": place.template, "ending": "failure", "target": place.template}]
    both = {"motd": "theirs", "paused": True, "name": "theirs", "edges": edges}
    both |= {"url": "https://theirs.example/", "kind": "slack", "events": [], "failing_share": 9}
    old = place.admin.open(place.at(page)).form(action)
    sent = ("url", "kind", "events", "failing_share") if field == "url" else (field, untouched)
    assert place.site.admin.post(call, {name: both[name] for name in both if name in sent}).status_code == 200
    mine = "https://mine.example/" if field == "url" else "mine"
    refused = place.admin.send(old, **{field: mine})
    assert refused.status == 409 and f"{field}: was changed since this page was shown" in refused.notice
    assert place.admin.send(refused.form(action)).notice == "Saved."
    answer = place.site.admin.get(call.replace("update", "get")).json()["content"]
    now = answer[call.split("/")[2 if "notices" in call else 1]]
    assert (now[field], now[untouched]) == (mine, both[untouched])


@pytest.mark.parametrize("name", ["", "plain projec", "PLAIN PROJECT", "plain project 2"])
def test_a_hard_reset_without_the_project_s_name_deletes_nothing(place: Place, name: str) -> None:
    before = place.dump()
    page = place.admin.act(place.at("/ui/projects/{project}/reset/hard_reset"), {"confirm": name})
    assert page.status == 400 and page.notice.startswith("Not done. confirm: ")
    assert place.dump() == before


def test_a_hard_reset_with_the_name_deletes_every_task(place: Place) -> None:
    page = place.admin.open(place.at("/ui/projects/{project}"))
    after = place.admin.send(page.form("/reset/hard_reset"), confirm="plain project")
    assert after.notice == "The project was reset: 7 tasks deleted, hashes forgotten."
    assert place.site.read("SELECT count(*) FROM task WHERE project = ?", place.project) == [(0,)]


def test_an_upload_that_is_too_large_is_refused_before_it_is_read(make_site: Callable[..., Site]) -> None:
    site = make_site(max_bulk_body=64)
    tab, project = Tab(site.admin.http), site.admin.create_project()
    page = tab.act(f"/ui/projects/{project}/submit/lines", files={"file": ("big", b"recipe\n" * 20_000)})
    assert page.status == 413 and "file: more than 64 KiB" in page.notice
    assert site.admin.counts(project) == {}
    assert site.read("SELECT count(*) FROM bulk_piece") == [(0,)]


def test_a_form_that_is_too_large_is_refused(make_site: Callable[..., Site]) -> None:
    site = make_site(max_body=4)
    tab, project = Tab(site.admin.http), site.admin.create_project()
    assert tab.act(f"/ui/projects/{project}/submit", {"recipe": "x" * 5000}).status == 413


@pytest.mark.parametrize("body", [b"\xff\xfe", b"a" * 10 + b"&b=1" * 3000, b"token=%ff"])
def test_a_body_that_is_no_form_is_refused_with_a_page(place: Place, body: bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    page = Page(place.admin.http.post("/ui/projects/new", content=body, headers=headers))
    assert page.status in (400, 403) and page.notice.startswith("Not done.")


def test_a_broken_upload_is_refused_with_a_page(place: Place) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    path = place.at("/ui/projects/{project}/submit/lines")
    for body in (b"nonsense", b"--x\r\nbroken", b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--"):
        page = Page(place.admin.http.post(path, content=body, headers=headers))
        assert page.status in (400, 403) and page.notice.startswith("Not done."), body


@pytest.mark.parametrize(
    "path",
    [
        "/ui/?after=" + "x" * 400,
        "/ui/projects/{project}?range=year",
        "/ui/projects/{project}/tasks?state=asleep",
        "/ui/projects/{project}/tasks?priority=high",
        "/ui/projects/{project}/tasks?after=there",
        "/ui/workers?sort=shoe+size",
        "/ui/workers?after=x",
        "/ui/logs?worker=me",
        "/ui/logs?level=loud",
        "/ui/tasks/first",
        "/ui/jobs?state=asleep",
        "/ui/jobs?from=yesterday",
        "/ui/jobs?to=1+June",
        "/ui/jobs?before=x",
        "/ui/projects/{project}/jobs?template=999",
        "/ui/jobs/{job}?before=0",
    ],
)
def test_an_address_with_a_mistake_is_refused_with_a_page_that_names_it(place: Place, path: str) -> None:
    page = place.admin.open(place.at(path))
    assert page.status == 400
    name = urlsplit(path).query.partition("=")[0] or "task"
    assert page.notice.startswith(f"Not done. {name}: ")


@pytest.mark.parametrize(
    "path",
    [
        *("/ui/projects/999", "/ui/tasks/999", "/ui/workers/999", "/ui/operations/999", "/ui/x/y"),
        *(
            "/ui/templates/999",
            "/ui/templates/999/edit",
            f"/ui/jobs/{24 * '0'}",
            "/ui/jobs/1",
        ),
    ],
)
def test_what_is_not_there_is_said_on_a_page(place: Place, path: str) -> None:
    page = place.admin.open(path)
    assert page.status == 404 and "Not done." not in page.text and "/ui/" in page.links


def test_an_unexpected_fault_is_a_page_without_its_details(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "pace", lambda *_: 1 / 0)
    page = place.admin.open("/ui/")
    assert page.status == 500 and "Internal error" in page.notice
    assert "division" not in page.html and "Traceback" not in page.html


# ── First visit ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_tracker_leads_from_the_first_account_to_the_first_task() -> None:
    with tracker.serving() as url, client(url) as http:
        tab = Tab(http)
        welcome = tab.open("/ui/")
        assert "This tracker is new" in welcome.text and "/ui/register" in welcome.links
        register = tab.open("/ui/register")
        assert "becomes the administrator" in register.text
        home = tab.send(register.form("/register"), username="alice", password="correct horse")
        assert home.notice == "Welcome, alice." and "No project yet" in home.text
        assert "/ui/projects/new" in home.links
        page = tab.send(tab.open("/ui/projects/new").form("/new"), name="my 'first' crawl")
        assert "Workers may ask for access" in page.notice
        [project] = [int(number) for number in re.findall(r"/ui/projects/(\d+)$", str(page.answer.url))]
        assert f"curl {url}/worker/create" in page.text
        assert f"examples/crawl.py https://example.org/docs/ --server {url} --project" in page.text
        tab.act(f"/ui/projects/{project}/submit", {"recipe": "begin"})
        assert "The queue is empty" not in tab.open(f"/ui/projects/{project}").text


def test_the_commands_of_the_first_visit_are_safe_to_paste(site: Site) -> None:
    """The project's name is quoted for the shell."""
    project = site.admin.create_project("it's $(touch /tmp/oops)")
    page = Tab(site.admin.http).open(f"/ui/projects/{project}")
    line = next(code.text_content() for code in page.tree.iter("code") if "crawl.py" in code.text_content())
    words = shlex.split(line)
    assert words[words.index("--project") + 1] == "it's $(touch /tmp/oops)"


def test_a_guest_is_told_why_there_is_nothing_to_see(site: Site) -> None:
    site.admin.create_project("secret", hidden=True)
    page = Tab(site.guest).open("/ui/")
    assert "Log in to see yours" in page.text and "secret" not in page.text


# ── Accounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_closed_registration_offers_no_form_and_takes_none(make_site: Callable[..., Site]) -> None:
    site = make_site(open_registration=False)
    guest = Tab(site.guest)
    assert "/ui/register" not in guest.open("/ui/").links
    page = guest.open("/ui/register")
    assert "Registration is closed" in page.text and not [form for form in page.tree.forms if form.method == "POST"]
    refused = guest.act("/ui/register", {"username": "newcomer", "password": "password"})
    assert refused.status == 403 and site.read("SELECT count(*) FROM manager") == [(1,)]


def test_a_new_password_ends_all_other_logins_and_keeps_this_one(site: Site) -> None:
    here, there = Tab(client(site.url)), Tab(client(site.url))
    for tab in (here, there):
        tab.post("/ui/login", {"username": "admin", "password": "password"})
    form = here.open("/ui/account").form("/password")
    page = here.send(form, password="password", new_password="another password")
    assert "all other logins are ended" in page.notice
    assert here.open("/ui/account").answer.url.path == "/ui/account"
    assert there.open("/ui/account").answer.url.path == "/ui/login"
    again = Tab(client(site.url))
    assert again.act("/ui/login", {"username": "admin", "password": "password"}).status == 401
    assert again.act("/ui/login", {"username": "admin", "password": "another password"}).status == 200


@pytest.mark.parametrize(
    "fields, wrong",
    [
        ({"password": "wrong", "new_password": "another password"}, ""),
        ({"password": "password", "new_password": "short"}, "new_password"),
    ],
)
def test_a_password_change_that_is_refused_changes_nothing(place: Place, fields: dict[str, str], wrong: str) -> None:
    before = place.dump()["manager"]
    page = place.admin.act("/ui/account/password", fields)
    assert page.status in (400, 401, 403) and page.notice.startswith(f"Not done. {wrong}")
    assert place.dump()["manager"] == before
    assert place.admin.open("/ui/account").answer.url.path == "/ui/account"


def test_logging_out_ends_the_session(site: Site) -> None:
    tab = Tab(client(site.url))
    tab.post("/ui/login", {"username": "admin", "password": "password"})
    cookies = dict(tab.http.cookies)
    page = tab.act("/ui/logout")
    assert page.notice == "You are logged out." and "Log in" in page.text
    tab.http.cookies.update(cookies)
    assert tab.open("/ui/account").answer.url.path == "/ui/login"


def test_an_admin_promotes_and_demotes(place: Place) -> None:
    page = place.admin.open("/ui/admin")
    question = place.admin.send(page.form(f"/promote/{place.manager.id}"))
    promoted = place.admin.send(question.form(f"/promote/{place.manager.id}"))
    assert promoted.notice == "The manager is a tracker admin now."
    assert Tab(place.manager.http).open("/ui/admin").status == 200
    place.admin.send(promoted.form(f"/demote/{place.manager.id}"))
    assert Tab(place.manager.http).open("/ui/admin").status == 403


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def exported(tab: Tab, project: int, **query: Any) -> list[dict[str, Any]]:
    answer = tab.http.get(f"/ui/projects/{project}/export", params=query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson"
    assert "attachment" in answer.headers["content-disposition"]
    return [json.loads(line) for line in answer.text.splitlines()]


def pages_of(tab: Tab, path: str) -> Iterator[Page]:
    """A list's pages, by their links to the next one."""
    while True:
        page = tab.open(path)
        yield page
        following = page.tree.xpath("//a[@rel='next']/@href")
        if not following:
            return
        path = following[0]


def test_the_export_is_what_the_list_shows(site: Site) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    worker = site.create_worker(project)
    tasks = [{"project": project, "recipe": f'recipe {n}\n"{n}"', "priority": n % 3} for n in range(1200)]
    assert worker.bulk_submit(tasks).status_code == 200
    for query, count in (({}, 1200), ({"priority": 2}, 400), ({"text": "recipe 7"}, 111)):
        lines = exported(tab, project, **query)
        path = f"/ui/projects/{project}/tasks?{httpx.QueryParams(query)}"
        listed = [id for page in pages_of(tab, path) for id in page.tree.xpath("//input[@name='task']/@value")]
        assert [str(line["id"]) for line in lines] == listed and len(lines) == count
    assert {line["recipe"] for line in exported(tab, project)} == {task["recipe"] for task in tasks}


def test_the_export_says_in_which_state_a_task_is_and_who_holds_it(place: Place) -> None:
    [task] = exported(place.admin, place.project, state="assigned")
    assert (task["id"], task["state"], task["assignee"]) == (place.assigned, "assigned", place.worker.id)
    [task] = exported(place.admin, place.project, state="failed")
    assert (task["id"], task["state"], task["retries"]) == (place.failed, "failed", 1)
    [task] = exported(place.admin, place.project, state="awaiting_verification")
    assert (task["id"], task["state"]) == (place.verified, "awaiting_verification")


def test_an_export_can_be_uploaded_again(place: Place) -> None:
    lines = place.admin.http.get(f"/ui/projects/{place.project}/export").text
    recipes = [json.loads(line)["recipe"] for line in lines.splitlines()]
    other = place.site.admin.create_project()
    text = "\n".join(json.dumps({"recipe": recipe}) for recipe in recipes)
    page = place.admin.act(f"/ui/projects/{other}/submit/lines", {"lines": text})
    assert f"{len(recipes)} tasks were submitted" in page.text


def test_projects_are_found_by_name_and_paged(site: Site) -> None:
    for number in range(pages.PAGE_ROWS + 5):
        site.admin.create_project(f"crawl {number:03} 100%")
    tab = Tab(site.admin.http)
    names = [name for page in pages_of(tab, "/ui/?text=crawl") for name in page.tree.xpath("//tbody/tr/th/a/text()")]
    assert len(names) == pages.PAGE_ROWS + 5 and names == sorted(set(names))
    assert tab.open("/ui/", text="crawl 03").tree.xpath("count(//table[@id='projects']/tbody/tr)") == 10
    assert "No project has “_” in its name" in tab.open("/ui/", text="_").text
    assert tab.open("/ui/", text="100%").tree.xpath("count(//table[@id='projects']/tbody/tr)") == pages.PAGE_ROWS


@pytest.mark.parametrize("sort", ["last_seen", "closed_task_count", "alias"])
def test_workers_are_listed_page_by_page_in_any_order(site: Site, sort: str) -> None:
    workers = {Worker(site.url, f"alias: {number % 7}").id for number in range(pages.PAGE_ROWS + 12)}
    found = [
        int(id.removeprefix("worker-"))
        for page in pages_of(Tab(site.admin.http), f"/ui/workers?sort={sort}")
        for id in page.tree.xpath("//table[@id='workers']/tbody/tr/@id")
    ]
    assert sorted(found) == sorted(workers)


def test_workers_are_found_by_alias_and_by_number(place: Place) -> None:
    assert place.admin.open("/ui/workers", text="LAIN ask").tree.xpath("//tbody/tr/@id") == [
        f"worker-{place.asking.id}"
    ]
    access = place.at("/ui/projects/{project}/access")
    for text in (str(place.worker.id), f" #{place.worker.id}"):
        assert f"worker-{place.worker.id}" in place.admin.open("/ui/workers", text=text).tree.xpath("//tbody/tr/@id")
        assert f"access-{place.worker.id}" in place.admin.open(access, text=text).tree.xpath("//tbody/tr/@id")
    assert "No worker like this" in place.admin.open("/ui/workers", text="nobody").text


def test_log_lines_are_filtered_and_paged(place: Place) -> None:
    for number in range(130):
        place.asking.log("info", f"line {number}")
    tab = place.admin
    lines = [line for page in pages_of(tab, "/ui/logs?text=line") for line in page.tree.xpath("//ul[@id='log']/li/@id")]
    assert len(lines) == 130 and lines == sorted(lines, key=lambda id: -int(id.partition("-")[2]))
    only = {"level": "error"}, {"worker": place.worker.id}, {"project": place.project}, {"text": "LAIN mess"}
    for query in only:
        assert len(tab.open("/ui/logs", **query).tree.xpath("//ul[@id='log']/li")) == 1, query
    assert "No such line" in tab.open("/ui/logs", text="never logged").text


def test_numbers_have_thousands_separators_and_times_their_exact_moment(place: Place) -> None:
    lines = "\n".join(f"line {number}" for number in range(1234))
    report = place.admin.act(place.at("/ui/projects/{project}/submit/lines"), {"lines": lines})
    wait_until(lambda: "1,234 tasks were submitted." in place.admin.open(report.answer.url.path).text)
    page = place.admin.open(f"/ui/workers/{place.worker.id}")
    [seen] = page.tree.xpath("//dt[text()='Last seen']/following-sibling::dd[1]/time")
    assert seen.text_content().endswith(("now", "ago"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", seen.get("title"))
    moment = time.strptime(seen.get("datetime"), "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(moment) - time.timezone - place.site.clock.time()) < 3600


# ── Submit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def report_of(tab: Tab, project: int, **sent: Any) -> Page:
    """The report of an upload, when it is finished."""
    answer = tab.post(f"/ui/projects/{project}/submit/lines", sent.pop("fields", None), **sent)
    assert answer.status_code == 303, Page(answer).text
    path = answer.headers["location"]
    return wait_until(lambda: (page := tab.open(path)) and "Finished" in page.text and page)


def test_an_upload_reports_stored_duplicate_and_refused_lines_by_number(site: Site) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    lines = (
        "one",
        "",
        "two",
        "one",
        '{"recipe": 5}',
        '{"recipe": "three", "priority": 4}',
        "{",
        '{"recipe": "x", "y": 1}',
    )
    page = report_of(tab, project, fields={"once": "true"}, files={"file": ("f", "\r\n".join(lines).encode())})
    counts = dict(zip(page.tree.xpath("//dl/div/dt/text()"), page.tree.xpath("//dl/div/dd/text()"), strict=True))
    assert counts == {"Lines": "7", "Stored": "3", "Duplicates": "1", "Refused": "3"}
    refused = [row.findtext("td") for row in page.tree.xpath("//h2[text()='Refused lines']/following::tbody[1]/tr")]
    assert refused == ["5", "7", "8"]
    assert page.tree.xpath("string(//p[@class='numbers'])") == "4"
    stored = {(task["recipe"], task["priority"]) for task in exported(tab, project)}
    assert stored == {("one", 0), ("two", 0), ("three", 4)}


def test_the_fields_beside_an_upload_count_for_lines_that_say_nothing_else(site: Site) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    fields = {
        "lines": '{"recipe": "a", "priority": 9}\nb',
        "priority": "2",
        "max_retries": "3",
        "max_assign_time": "60",
    }
    report_of(tab, project, fields=fields)
    a, b = exported(tab, project)
    assert (a["priority"], a["max_retries"], b["priority"], b["max_retries"]) == (9, 3, 2, 3)
    assert b["max_assign_time"] == 60


def test_a_duplicate_task_is_refused_by_its_unique_string(site: Site) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    path, fields = f"/ui/projects/{project}/submit", {"recipe": "once", "unique_string": "same"}
    assert tab.act(path, fields).notice == "The task is submitted."
    page = tab.act(path, fields)
    assert page.status == 409 and invalid_fields(page) == ["unique_string"]


# ── Templates ─────────────────────────────────────────────────────────────────────────────────────────────────────────

FORM = {
    "name": "build",
    "description": "of the site",
    "script": "#!/bin/sh\necho $1\n",
    "runas": "sh %script%",
    "recipe": "build {size}",
    "env": "A=1\nB= two = 2 ",
    "undeclared": "false",
    "timeout": "90",
    "max_retries": "2",
    "priority": "-3",
    "api": "true",
    "key": "secure123",
    "keep_count": "20",
    "keep_days": "1.5",
    "variables[1].name": "size",
    "variables[1].value": "large",
    "variables[1].required": "true",
    "variables[1].allowed": "small\nlarge\n",
    "variables[1].description": "of it",
    "variables[3].name": "note",
    "arguments[1].type": "input",
    "arguments[1].order": "5",
    "arguments[1].label": "Who",
    "arguments[2].type": "fixed",
    "arguments[2].order": "4",
    "arguments[2].value": "-v",
    "arguments[3].type": "select",
    "arguments[3].order": "6",
    "arguments[3].options": "a\nb",
}


def template_json(place: Place, template: int) -> dict[str, Any]:
    return place.site.admin.get(f"/template/get/{template}").json()["content"]["template"]


def made_template(place: Place, fields: dict[str, str]) -> tuple[int, Page]:
    """A template made by the form: its id, and the page that follows."""
    page = place.admin.act(f"/ui/projects/{place.project}/templates/new", fields)
    assert page.status == 200, page.notice
    return place.site.read("SELECT max(id) FROM template")[0][0], page


def test_a_template_gets_all_that_its_form_says(place: Place) -> None:
    template, _ = made_template(place, FORM)
    made = template_json(place, template)
    texts = ("name", "description", "script", "runas", "recipe")
    assert {name: made[name] for name in texts} == {name: FORM[name] for name in texts}
    assert made["env"] == {"A": "1", "B": " two = 2 "}
    assert made["variables"] == [
        {"name": "size", "value": "large", "required": True, "allowed": ["small", "large"], "description": "of it"},
        {"name": "note", "value": None, "required": False, "allowed": [], "description": ""},
    ]
    assert [(one["order"], one["type"], one["label"], one["value"], one["options"]) for one in made["arguments"]] == [
        (5, "input", "Who", None, []),
        (4, "fixed", "", "-v", []),
        (6, "select", "", None, ["a", "b"]),
    ]
    assert (made["timeout"], made["max_retries"], made["priority"]) == (90, 2, -3)
    assert (made["undeclared"], made["api"], made["has_key"]) == (False, True, True)
    assert (made["keep_count"], made["keep_time"]) == (20, 129_600)


def test_a_form_that_is_sent_as_it_is_changes_nothing(place: Place) -> None:
    """Also what a form can only show as text: numbers, texts of several lines."""
    variables = [
        {"name": "count", "value": 3, "allowed": [1, 3, "three", {"a": "b\nc"}]},
        {"name": "empty", "value": ""},
        {"name": "text", "value": "one\ttwo", "allowed": []},
        {"name": "lines", "value": "b\r\nc", "allowed": ["a\r\nb", "b\r\nc"]},
    ]
    arguments = [{"order": 7, "type": "date", "label": "When"}, {"order": -1, "type": "fixed", "value": [1, None]}]
    fields = {"variables": variables, "arguments": arguments, "env": {"A": "one\ntwo", "B": ""}, "script": "\n\nls\n"}
    template = place.create_template("all sorts", **fields, key="anything", keep_time=100_000, timeout=0.5)
    secret, before = place.secret_of(template), template_json(place, template)
    for _ in range(2):
        form = place.admin.open(f"/ui/templates/{template}/edit").form("/edit")
        assert place.admin.send(form).notice == "Saved. Jobs that were made before stay as they are."
        after = template_json(place, template)
        arguments = sorted(before["arguments"], key=lambda argument: argument["order"])
        assert {**after, "updated": 0} == {**before, "updated": 0, "arguments": arguments}
    assert place.secret_of(template) == secret


def test_a_template_saved_from_an_old_page_takes_the_place_of_what_others_changed_only_when_sent_once_more(
    place: Place,
) -> None:
    template = place.create_template("x", script="echo 1", priority=1)
    path = f"/ui/templates/{template}/edit"
    old = place.admin.open(path).form("/edit")
    assert place.site.admin.post(f"/template/update/{template}", {"script": "echo 2"}).status_code == 200
    refused = place.admin.send(old, priority="7")
    assert refused.status == 409 and "changed since this page was shown" in refused.notice
    assert template_json(place, template)["script"] == "echo 2"
    again = refused.form("/edit")
    assert (again.fields["script"].strip(), again.fields["priority"]) == ("echo 1", "7")
    assert place.admin.send(again).status == 200
    after = template_json(place, template)
    assert (after["script"], after["priority"]) == ("echo 1", 7)


def test_a_value_of_several_lines_has_a_field_of_several_lines(place: Place) -> None:
    """A browser takes the line ends out of what is in a field of one line."""
    template = place.create_template("x", variables=[{"name": "lines", "value": "one\ntwo"}])
    form = place.admin.open(f"/ui/templates/{template}/edit").form("/edit")
    assert form.inputs["variables[1].value"].tag == "textarea"


def test_an_environment_of_several_lines_a_value_is_not_changed_by_a_form(place: Place) -> None:
    template = place.create_template("x", env={"CERT": "one\nB=two"})
    form = place.admin.open(f"/ui/templates/{template}/edit").form("/edit")
    refused = place.admin.send(form, env=form.fields["env"] + "\nNEW=1")
    assert refused.notice.startswith("Not done. env: it has a value of several lines")
    assert template_json(place, template)["env"] == {"CERT": "one\nB=two"}


def test_fields_that_are_emptied_go_back_to_the_defaults(place: Place) -> None:
    template, _ = made_template(place, FORM)
    emptied = ("script", "runas", "env", "timeout", "keep_count", "keep_days", "variables[1].name")
    emptied = dict.fromkeys((*emptied, "variables[1].value", "variables[1].allowed", "variables[1].description"), "")
    form = place.admin.open(f"/ui/templates/{template}/edit").form("/edit")
    place.admin.send(form, **emptied)
    saved = template_json(place, template)
    assert (saved["script"], saved["env"], [one["name"] for one in saved["variables"]]) == ("", {}, ["note"])
    assert (saved["timeout"], saved["keep_count"], saved["keep_time"]) == (None, None, None)
    assert saved["has_key"]


def test_a_form_with_a_mistake_shows_all_rows_that_were_typed_and_empty_ones(place: Place) -> None:
    fields = {"name": "", "variables[5].name": "fifth", "variables[5].required": "true", "arguments[1].type": "select"}
    page = place.admin.act(f"/ui/projects/{place.project}/templates/new", fields)
    form = page.form("/templates/new")
    assert form.fields["variables[5].name"] == "fifth" and form.fields["variables[8].name"] == ""
    assert page.tree.xpath("//input[@name='variables[5].required'][@checked]")
    assert form.fields["arguments[1].type"] == "select" and "arguments[5].type" not in form.fields


def test_a_name_that_is_declared_twice_is_marked(place: Place) -> None:
    fields = {"name": "x", "variables[1].name": "same", "variables[2].name": "same "}
    page = place.admin.act(f"/ui/projects/{place.project}/templates/new", fields)
    assert page.status == 400 and page.notice == "Not done. variables: same is declared twice"
    assert invalid_fields(page) == ["variables[1].name", "variables[2].name"]


def test_a_template_s_secret_is_shown_once_when_it_is_made_and_when_it_is_rotated(place: Place) -> None:
    template, page = made_template(place, FORM)
    first = place.secret_of(template)
    assert page.tree.xpath("string(//*[@id='secret']//code)") == first
    for answer in (*page.answer.history, page.answer):
        assert first not in str(answer.headers) and first not in str(answer.url)
    assert page.answer.url.path == f"/ui/templates/{template}"  # to load it again sends nothing again
    again = place.admin.open(f"/ui/templates/{template}")
    assert first not in again.html and not again.tree.xpath("//*[@id='secret']")
    question = place.admin.send(again.form("/rotate_secret"))
    assert "A new secret for" in question.text and place.secret_of(template) == first
    rotated = place.admin.send(question.form("/rotate_secret"))
    second = place.secret_of(template)
    assert second != first and rotated.tree.xpath("string(//*[@id='secret']//code)") == second
    for path in (f"/ui/templates/{template}/edit", f"/ui/projects/{place.project}/templates", "/ui/jobs"):
        assert second not in place.admin.open(path).html and "secure123" not in place.admin.open(path).html


def test_the_page_with_the_secret_does_not_refresh_itself(place: Place) -> None:
    """It would fetch the page of another address, and lose what was shown once."""
    _, page = made_template(place, FORM)
    assert page.tree.find("body").get("data-refresh") is None


def test_a_key_is_kept_replaced_and_removed(place: Place) -> None:
    template, _ = made_template(place, FORM)
    key = "SELECT hex(key_hash) FROM template WHERE id = ?"
    first, path = place.site.read(key, template), f"/ui/templates/{template}/edit"
    assert "It has a key" in place.admin.open(path).text
    place.admin.send(place.admin.open(path).form("/edit"), key="another one")
    assert place.site.read(key, template) not in (first, [("",)])
    place.admin.post(path, {**FORM, "key": "", "remove_key": "true"})
    assert place.site.read(key, template) == [("",)]
    assert "It has none" in place.admin.open(path).text


def test_deleting_a_template_asks_first(place: Place) -> None:
    before = place.dump()
    question = place.admin.send(place.admin.open(f"/ui/templates/{place.template}").form("/delete"))
    assert question.status == 200 and "Delete template plain template?" in question.text
    assert place.dump() == before
    after = place.admin.send(question.form("/delete"))
    assert after.answer.url.path == f"/ui/projects/{place.project}/templates" and "is deleted" in after.notice
    assert place.admin.open(f"/ui/templates/{place.template}").status == 404
    assert "deleted" in place.admin.open(f"/ui/jobs/{place.job}").text


def test_the_question_before_a_deletion_names_the_workflows_that_go_through_the_template(place: Place) -> None:
    body = {"project": place.project, "name": "nightly", "start": place.template}
    assert place.site.admin.post("/workflow/create", body).status_code == 200
    assert "nightly" in place.admin.act(f"/ui/templates/{place.template}/delete").text
    assert "nightly" not in place.admin.act(f"/ui/templates/{place.create_template('other')}/delete").text


def test_templates_are_found_by_name_and_paged(place: Place) -> None:
    for number in range(pages.PAGE_ROWS + 3):
        place.create_template(f"build {number:02} 100%")
    path = f"/ui/projects/{place.project}/templates"
    shown = pages_of(place.admin, f"{path}?text=build")
    names = [name for page in shown for name in page.tree.xpath("//tbody/tr/th/a/text()")]
    assert len(names) == pages.PAGE_ROWS + 3 and names == sorted(set(names))
    assert "No template like this" in place.admin.open(path, text="_").text
    for _ in range(pages.PAGE_ROWS + 3):
        place.create_template("a name of many")
    rows = [
        page.tree.xpath("//tbody/tr[starts-with(@id, 'template-')]/@id")
        for page in pages_of(place.admin, f"{path}?text=many")
    ]
    assert len({one for page in rows for one in page}) == pages.PAGE_ROWS + 3


def test_the_list_of_templates_shows_how_their_last_jobs_ended(place: Place) -> None:
    place.admin.post(f"/ui/jobs/{place.job}/cancel")
    newer = place.trigger(place.template)["id"]
    page = place.admin.open(f"/ui/projects/{place.project}/templates")
    links = page.tree.xpath(f"//tr[@id='template-{place.template}']/td[@data-label='Last jobs']/a")
    assert [(link.get("href"), link.text_content()) for link in links] == [
        (f"/ui/jobs/{newer}", "waiting"),
        (f"/ui/jobs/{place.job}", "cancelled"),
    ]


# ── Run now ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def job_json(place: Place, page: Page) -> dict[str, Any]:
    """The job on whose page a form led."""
    token = page.answer.url.path.removeprefix("/ui/jobs/")
    return place.site.admin.get(f"/job/get/{token}").json()["content"]["job"]


def test_the_form_to_run_a_template_is_made_from_what_it_declares(place: Place) -> None:
    variables = [
        {"name": "count", "value": 3, "allowed": [1, 3]},
        {"name": "mode", "allowed": ["fast", "slow"]},
        {"name": "who", "required": True, "description": "Whose it is"},
        {"name": "text", "value": "one\ntwo"},
        {"name": "unset"},
    ]
    arguments = [
        {"order": 2, "type": "select", "label": "Depth", "value": 5, "options": [1, 5]},
        {"order": 1, "label": "First", "value": "x"},
        {"order": 3, "type": "fixed", "value": "always"},
    ]
    template = place.create_template("declared", variables=variables, arguments=arguments)
    form = place.admin.open(f"/ui/templates/{template}").form("/run")
    assert form.xpath(".//select/@name") == ["variable:count", "variable:mode", "argument:2"]
    assert form.xpath(".//input[@required]/@name") == ["variable:who"]
    assert [form.fields[name] for name in ("variable:count", "variable:mode", "argument:1")] == ["3", "", "x"]
    page = place.admin.send(
        form, **{"variable:count": "1", "variable:who": "me", "argument:2": "1", "more": "further= a=b "}
    )
    assert page.notice == "The job is made."
    job = job_json(place, page)
    assert job["variables"] == {"count": 1, "who": "me", "text": "one\ntwo", "further": " a=b "}
    assert job["arguments"] == ["x", "1", "always"]
    assert job["origin"] == "page" and "manager admin" in page.text


def test_who_may_run_a_template_and_not_read_its_jobs_stays_at_the_template(place: Place) -> None:
    editor = manager_with(place, EDIT)
    page = editor.send(editor.open(f"/ui/templates/{place.template}").form("/run"))
    assert page.notice == "The job is made." and page.answer.url.path == f"/ui/templates/{place.template}"


def test_a_run_without_a_required_value_names_it_and_keeps_the_others(place: Place) -> None:
    template = place.create_template("needy", variables=[{"name": "who", "required": True}, {"name": "what"}])
    before = place.dump()
    form = place.admin.open(f"/ui/templates/{template}").form("/run")
    page = place.admin.send(form, **{"variable:what": "typed"})
    assert page.status == 400 and page.notice == "Not done. who: is required"
    assert invalid_fields(page) == ["variable:who"] and page.typed("variable:what", "/run") == "typed"
    assert place.dump() == before


def test_a_template_that_takes_no_other_variables_offers_no_field_for_them(place: Place) -> None:
    template = place.create_template("closed", undeclared=False)
    assert "more" not in place.admin.open(f"/ui/templates/{template}").form("/run").fields
    page = place.admin.act(f"/ui/templates/{template}/run", {"more": "other=1"})
    assert page.status == 400 and "other: the template has no such variable" in page.notice


@pytest.mark.skipif("otter" not in tracker.installed_dialects(), reason="needs the dialect")
def test_the_line_to_trigger_a_template_by_its_name_works_as_it_stands(place: Place) -> None:
    variables = [{"name": "who & what", "required": True}]
    arguments = [{"order": order, "label": label} for order, label in enumerate(("til hvem?", "", "key"))]
    fields = {"variables": variables, "arguments": arguments}
    template = place.create_template("it's a 100% & $(odd) name", **fields, api=True, key="YOUR_KEY")
    page = place.admin.open(f"/ui/templates/{template}")
    [line, *_] = [
        one for code in page.tree.iter("code") for one in code.text_content().splitlines() if "trigger" in one
    ]
    curl, address = shlex.split(line)
    answer = place.site.guest.get(address)
    assert curl == "curl" and answer.status_code == 200, answer.text
    assert f"/ui/jobs/{answer.text}" in place.admin.open(f"/ui/templates/{template}").links
    shut = place.create_template("not by its name")
    assert "/api/jobs/trigger" not in place.admin.open(f"/ui/templates/{shut}").text


@pytest.mark.skipif("theeye" not in tracker.installed_dialects(), reason="needs the dialect")
def test_the_line_and_the_button_with_the_secret_work_as_they_stand(place: Place) -> None:
    arguments = {"arguments[1].type": "input", "arguments[2].type": "input"}
    template, page = made_template(place, {"name": "by secret", **arguments})
    codes = [code.text_content() for code in page.tree.iter("code")]
    words = shlex.split(next(code for code in codes if "--data" in code))
    answer = place.site.guest.post(
        words[-1], content=words[words.index("--data") + 1], headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    [button] = lxml.html.fromstring(next(code for code in codes if code.startswith("<form"))).xpath("//form")
    answer = place.site.guest.post(button.action, data=dict_of_lists(button.form_values()))
    assert answer.status_code == 200, answer.text
    given = place.site.read("SELECT arguments FROM job WHERE template = ?", template)
    assert given == [('["argument 1","argument 2"]',)] * 2


def dict_of_lists(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {name: [value for other, value in pairs if other == name] for name, _ in pairs}


# ── Jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_job(place: Place, result: int = tracker.OK, lines: int = 0, **fields: Any) -> dict[str, Any]:
    """A job that a worker took, logged so many lines of, and released."""
    job = place.trigger(place.create_template(f"priority {place.site.clock.uptime()}", priority=9, **fields))
    task = place.worker.assigned(place.project)["id"]
    entries = [{"message": f"line {number}.", "timestamp": 1, "scope": "out"} for number in range(lines)]
    place.worker.http.post("/task/log", json={"task_id": task, "entries": entries})
    place.worker.released(task, result, output={"code": result, "output": ["handed on"]})
    return job


def test_a_job_s_page_tells_what_became_of_it(place: Place) -> None:
    page = place.admin.open(f"/ui/jobs/{run_job(place, lines=2)['id']}")
    facts = dict(
        zip(page.tree.xpath("//*[@id='job-facts']//th/text()"), texts_of(page, "job-facts", "td"), strict=True)
    )
    assert facts["Made by"].startswith("manager admin") and facts["Attempts"] == "1" and "Task" not in facts
    events = page.tree.xpath("//li[contains(@class, 'event')]//*[@class='message']/bdi/text()")
    assert events == [
        "created by manager admin",
        f"assigned to plain worker ({place.worker.id})",
        "released as done",
    ]
    messages = page.tree.xpath("//ol//*[@class='message']/bdi/text()")
    assert messages[2:4] == ["line 0.", "line 1."] and messages[-1] == "released as done"
    assert '"code": 0' in page.text and '[ "handed on" ]' in page.text
    assert texts_of(page, "job-state", "strong") == ["succeeded"]


def texts_of(page: Page, id: str, tag: str) -> list[str]:
    found = page.tree.xpath(f"//*[@id='{id}']//{tag}")
    return [" ".join(element.text_content().split()) for element in found]


def test_a_large_result_is_cut_off_and_leads_to_all_of_it(place: Place) -> None:
    job = place.trigger(place.create_template("large", priority=9))
    place.worker.released(place.worker.assigned(place.project)["id"], output=["x" * 20_000])
    page = place.admin.open(f"/ui/jobs/{job['id']}")
    assert "Cut off after 10,000 characters" in page.text and len(page.html) < 40_000
    [link] = [link for link in page.links if link.startswith("/job/get")]
    assert place.admin.http.get(link).json()["content"]["job"]["result"] == ["x" * 20_000]


def test_a_result_that_is_nested_deeply_is_not_spread_over_lines(place: Place) -> None:
    job = place.trigger(place.create_template("deep", priority=9))
    deep = [1] * 8000
    for _ in range(150):
        deep = [deep]
    place.worker.released(place.worker.assigned(place.project)["id"], output=deep)
    assert len(place.admin.open(f"/ui/jobs/{job['id']}").html) < 40_000


def test_a_long_log_is_read_from_its_end_page_by_page(place: Place) -> None:
    path, shown = f"/ui/jobs/{run_job(place, lines=250)['id']}", []
    while path:
        page = place.admin.open(path)
        shown.append(page.tree.xpath("//ol//*[@class='message']/bdi/text()"))
        path = page.tree.xpath("string(//a[@rel='prev']/@href)").partition("#")[0]
    assert [len(lines) for lines in shown] == [100, 100, 53]
    lines = [line for lines in reversed(shown) for line in lines]
    assert lines[2:-1] == [f"line {number}." for number in range(250)]


def test_long_lines_come_with_those_after_them(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of a log ends after so many characters; its last lines are on the page nevertheless."""
    monkeypatch.setattr(joblog, "MOST_LOG_TEXT", 20)
    page = place.admin.open(f"/ui/jobs/{run_job(place, lines=30)['id']}")
    assert page.tree.xpath("//ol//*[@class='message']/bdi/text()")[-2:] == ["line 29.", "released as done"]


def test_a_job_and_its_task_lead_to_each_other(place: Place) -> None:
    [(task,)] = place.site.read("SELECT task FROM job WHERE token = ?", place.job)
    assert f"/ui/tasks/{task}" in place.admin.open(f"/ui/jobs/{place.job}").links
    assert f"/ui/jobs/{place.job}" in place.admin.open(f"/ui/tasks/{task}").links


def test_a_job_is_cancelled_and_retried_on_its_page(place: Place) -> None:
    page = place.admin.open(f"/ui/jobs/{place.job}")
    assert page.tree.xpath("//main//button[@disabled]/text()") == ["Retry"]
    cancelled = place.admin.send(page.form("/cancel"))
    assert cancelled.notice == "The job is cancelled." and texts_of(cancelled, "job-state", "strong") == ["cancelled"]
    assert cancelled.tree.xpath("//main//button[@disabled]/text()") == ["Cancel"]
    late = place.admin.act(f"/ui/jobs/{place.job}/cancel")
    assert late.status == 409 and "it has ended already" in late.notice
    again = place.admin.send(cancelled.form("/retry"))
    job = job_json(place, again)
    assert (job["retry_of"], job["state"], job["variables"]) == (place.job, "waiting", {"size": "plain value"})
    assert f"/ui/jobs/{place.job}" in again.links
    early = place.admin.act(f"/ui/jobs/{job['id']}/retry")
    assert early.status == 409 and "it has not ended yet" in early.notice


def test_who_may_only_read_sees_a_job_without_what_may_be_secret(place: Place) -> None:
    job = run_job(place, script="echo s3cret", env={"TOKEN": "t0ken"})
    page = manager_with(place, READ).open(f"/ui/jobs/{job['id']}")
    assert page.status == 200 and page.buttons == {"Log out"}
    assert "s3cret" not in page.html and "t0ken" not in page.html
    assert not [link for link in page.links if "/ui/templates" in link]
    page = manager_with(place, READ | EDIT).open(f"/ui/jobs/{job['id']}")
    assert "s3cret" in page.text and "t0ken" in page.text
    assert page.buttons == {"Log out", "Cancel", "Retry", "Pause", "Set"}


def test_the_steps_of_a_workflow_are_listed_with_its_run(place: Place) -> None:
    body = {"project": place.project, "name": "chain", "start": place.template}
    workflow = place.site.admin.post("/workflow/create", body).json()["content"]["workflow"]["id"]
    run = place.site.admin.post(f"/workflow/trigger/{workflow}", {}).json()["content"]["job"]["id"]
    page = place.admin.open(f"/ui/jobs/{run}")
    [step] = page.tree.xpath("//*[@id='job-steps']//tbody//a/@href")
    assert "Workflow run chain" in page.text and f"/ui/jobs/{run}" in place.admin.open(step).links


def listed(tab: Tab, path: str) -> list[str]:
    """The tokens of the jobs on all pages of a list."""
    rows = [row for page in pages_of(tab, path) for row in page.tree.xpath("//table[@id='jobs']/tbody/tr/@id")]
    return [row.removeprefix("job-") for row in rows]


def test_jobs_are_listed_page_by_page_the_newest_first(place: Place) -> None:
    tokens = [place.job, *(place.trigger(place.template)["id"] for _ in range(pages.PAGE_ROWS + 5))]
    for path in (f"/ui/projects/{place.project}/jobs", f"/ui/jobs?state=waiting&template={place.template}"):
        assert listed(place.admin, path) == tokens[::-1], path
    everything = place.site.read("SELECT token FROM job ORDER BY id DESC")
    assert [(token,) for token in listed(place.admin, "/ui/jobs")] == everything


def test_jobs_are_found_by_state_template_and_time(place: Place) -> None:
    place.site.clock.pass_time(3600)
    done = run_job(place)["id"]
    [(minute, template)] = place.site.read("SELECT created, template FROM job WHERE token = ?", done)
    minute = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(minute))
    path = f"/ui/projects/{place.project}/jobs"
    for query in ({"state": "succeeded"}, {"template": template}, {"from": minute}, {"from": minute, "to": minute}):
        assert listed(place.admin, f"{path}?{httpx.QueryParams(query)}") == [done], query
    assert listed(place.admin, f"{path}?to=2001-01-01T00:00") == []
    assert "No job like this" in place.admin.open(path, state="failed").text
    page = place.admin.open(path, **{"state": "waiting", "template": place.template, "from": "2001-01-01T00:00"})
    assert page.tree.xpath("string(//input[@name='from']/@value)") == "2001-01-01T00:00"
    assert page.tree.xpath("//select[@name='template']/option[@selected]/@value") == [str(place.template)]
    assert listed(place.admin, str(page.answer.url)) == [place.job]


def test_the_list_of_all_jobs_has_those_of_the_projects_that_one_may_read(place: Place) -> None:
    assert place.job in listed(place.admin, "/ui/jobs")
    assert listed(Tab(place.manager.http), "/ui/jobs") == []
    assert "plain" not in Tab(place.manager.http).open("/ui/jobs").html
    assert listed(manager_with(place, ALL_ROLES ^ READ), "/ui/jobs") == []
    assert listed(manager_with(place, READ), "/ui/jobs") == [place.job]


def test_another_project_s_template_shows_none_of_its_jobs(place: Place) -> None:
    project = place.site.admin.create_project()
    page = place.admin.open(f"/ui/projects/{project}/jobs", template=place.template)
    assert page.status == 400 and place.job not in page.html


def test_lists_and_pages_of_jobs_refresh_themselves_unless_they_show_older_ones(place: Place) -> None:
    for _ in range(pages.PAGE_ROWS):
        place.trigger(place.template)
    for path in ("/ui/jobs", f"/ui/projects/{place.project}/jobs"):
        first, second = pages_of(place.admin, path)
        live = [page.tree.xpath("//*[@id='job-list'][@data-live]") for page in (first, second)]
        assert live[0] and not live[1]
    page = place.admin.open(f"/ui/jobs/{place.job}")
    assert {"job-state", "job-log", "job-result"} <= set(page.tree.xpath("//*[@data-live]/@id"))


# ── Access ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_for_access_are_announced_to_those_who_can_answer(place: Place) -> None:
    announced = "1 worker asks for access to plain project"
    assert announced in place.admin.open("/ui/").text
    assert announced in manager_with(place, MANAGE_ACCESS).open("/ui/").text
    for tab in (manager_with(place, ALL_ROLES ^ MANAGE_ACCESS), Tab(place.site.guest)):
        assert announced not in tab.open("/ui/").text


def test_a_request_is_accepted_and_the_access_withdrawn(place: Place) -> None:
    path = place.at("/ui/projects/{project}/access")
    page = place.admin.open(path)
    assert not place.asking.assigned(place.project)
    accepted = place.admin.send(page.form(f"/accept/{place.asking.id}"))
    assert accepted.notice == "The worker has access now." and accepted.answer.url.path == path
    assert place.asking.assigned(place.project)
    withdrawn = place.admin.send(accepted.form(f"/reject/{place.asking.id}"))
    assert "no access" in withdrawn.notice
    assert "no ASSIGN access" in place.asking.assign(place.project).json()["reason"]


def test_a_request_is_rejected(place: Place) -> None:
    place.admin.send(place.admin.open(place.at("/ui/projects/{project}/access")).form(f"/reject/{place.asking.id}"))
    assert not place.asking.assigned(place.project)
    assert "Nobody asks" in place.admin.open(place.at("/ui/projects/{project}/access")).text


def test_an_unticked_box_takes_a_role_away(place: Place) -> None:
    path = place.at("/ui/projects/{project}/access")
    fields = {"username": "other", "read": "true", "edit": "true"}
    assert place.admin.act(f"{path}/role", fields).notice == "The manager's roles are set."
    form = next(form for form in place.admin.open(path).tree.forms if form.get("id") == f"role-{place.manager.id}")
    assert place.site.read("SELECT role FROM manager_role WHERE manager = ?", place.manager.id) == [(READ | EDIT,)]
    place.admin.send(form)  # the boxes outside of it are not part of it for this browser: it sends none of them
    assert place.site.read("SELECT role FROM manager_role WHERE manager = ?", place.manager.id) == []


def test_the_message_of_the_day_and_the_pause_show_everywhere_at_once(place: Place) -> None:
    place.admin.act(place.at("/ui/projects/{project}/pause"), {"paused": "true"})
    overview = place.admin.open("/ui/")
    [row] = overview.tree.xpath(f"//tr[@id='project-{place.project}']")
    assert "paused" in row.text_content() and "plain motd" in row.text_content()
    page = place.admin.open(place.at("/ui/projects/{project}"))
    assert "Paused: nothing is assigned" in page.text and "Resume" in page.buttons
    assert place.worker.assigned(place.project) is None


def test_it_is_told_what_a_worker_holds_and_when_it_is_free_at_the_latest(place: Place) -> None:
    place.worker.submit(place.project, "long", max_assign_time=7230, priority=9)
    task = place.worker.assigned(place.project)["id"]
    job = place.trigger(place.create_template("quick", timeout=7000, priority=10))
    assert place.worker.assigned(place.project)["job"]["id"] == job["id"]
    place.site.clock.pass_time(60)
    path = f"/ui/workers/{place.worker.id}"
    held = place.admin.open(path).tree.get_element_by_id("worker-held")
    rows = {row.find("th").text_content(): row.findall("td")[-1].text_content() for row in held.iterfind(".//tbody/tr")}
    assert rows[f"task {task}"] == "in 1 h 59 min, unless extended" and rows["quick"] == "in 1 h 55 min at the latest"
    assert "in 1 h 55 min at the latest" in place.admin.open(f"/ui/jobs/{job['id']}").text
    holders = place.admin.open(f"/ui/projects/{place.project}").tree.get_element_by_id("holders")
    assert "in 1 h 59 min, unless extended" in holders.text_content()
    assert "at the latest" not in Tab(place.manager.http).open(path).text  # who may not read the project


# ── Requests for access ───────────────────────────────────────────────────────────────────────────────────────────────


def asking(site: Site, project: int, *aliases: str) -> list[int]:
    """Workers that ask for access."""
    workers = [Worker(site.url, alias) for alias in aliases]
    assert all(worker.request_access(project).status_code == 200 for worker in workers)
    return [worker.id for worker in workers]


def answered(site: Site, project: int) -> tuple[set[int], set[int]]:
    """Which workers have access, and which still ask for it."""
    rows = site.read("SELECT worker, request FROM worker_access WHERE project = ?", project)
    return {worker for worker, request in rows if not request}, {worker for worker, request in rows if request}


@pytest.mark.parametrize("answer", ["accept", "reject"])
def test_the_selected_requests_are_answered_together_after_a_question(site: Site, answer: str) -> None:
    project, visitor = site.admin.create_project(), Tab(site.admin.http)
    first, second, third = asking(site, project, "a", "b", "c")
    path = f"/ui/projects/{project}/access/answer"
    asked = visitor.act(path, {"answer": answer, "worker": [first, third]})
    assert f"{answer.capitalize()} 2 requests?" in asked.text and "a, c." in asked.text
    assert answered(site, project) == (set(), {first, second, third})
    assert visitor.send(asked.form(path)).notice == f"2 requests are {answer}ed."
    assert answered(site, project) == ({first, third} if answer == "accept" else set(), {second})


@pytest.mark.parametrize("answer", ["accept", "reject"])
def test_all_requests_that_match_are_answered_together_after_a_question(site: Site, answer: str) -> None:
    project, other, visitor = site.admin.create_project(), site.admin.create_project(), Tab(site.admin.http)
    *_, third = asking(site, project, "crew a", "crew b", "other")
    asking(site, other, "crew c")
    path, fields = f"/ui/projects/{project}/access/answer", {"answer": answer, "which": "all"}
    for text, said, count in ((str(third), "1 request is", 1), ("crew", "2 requests are", 2)):
        asked = visitor.act(path, fields | {"text": text})
        assert "the one request?" in asked.text if count == 1 else "2 requests?" in asked.text
        assert said in visitor.send(asked.form(path)).notice
    assert answered(site, project)[1] == set()
    assert len(answered(site, other)[1]) == 1


def test_who_asks_for_access_after_the_question_is_not_among_all_that_are_accepted(site: Site) -> None:
    project, visitor = site.admin.create_project(), Tab(site.admin.http)
    (first,) = asking(site, project, "a")
    path = f"/ui/projects/{project}/access/answer"
    asked = visitor.act(path, {"answer": "accept", "which": "all"})
    site.clock.pass_time(2)
    (later,) = asking(site, project, "b")
    assert visitor.send(asked.form(path)).notice == "1 request is accepted."
    assert answered(site, project) == ({first}, {later})


def test_who_asks_after_the_question_is_not_among_all_though_a_clock_was_ahead_before(site: Site) -> None:
    project, visitor = site.admin.create_project(), Tab(site.admin.http)
    site.clock.wall = 3600
    (first,) = asking(site, project, "a")
    site.clock.wall = 0
    path = f"/ui/projects/{project}/access/answer"
    asked = visitor.act(path, {"answer": "accept", "which": "all"})
    (later,) = asking(site, project, "b")
    assert "look at the list again" in visitor.send(asked.form(path)).text
    assert answered(site, project) == (set(), {first, later})


def test_a_question_about_requests_that_is_answered_with_no_leads_back_to_the_search(site: Site) -> None:
    project, visitor = site.admin.create_project(), Tab(site.admin.http)
    asking(site, project, "crew a")
    page = visitor.open(f"/ui/projects/{project}/access", text="crew")
    form = page.form("/access/answer")
    form.fields["which"] = "all"
    asked = visitor.send(form, "Reject them")
    assert f"/ui/projects/{project}/access?text=crew" in asked.links
    assert visitor.send(asked.form("/access/answer")).answer.url.params["text"] == "crew"
    assert answered(site, project) == (set(), set())


def test_answers_to_requests_need_a_selection_and_manage_access(site: Site) -> None:
    project = site.admin.create_project()
    (worker,) = asking(site, project, "a")
    path, fields = f"/ui/projects/{project}/access/answer", {"answer": "accept"}
    refused = Tab(site.admin.http).post(path, fields)
    assert (refused.status_code, "select at least one request" in refused.text) == (400, True)
    reader = site.create_manager()
    site.admin.set_role(project, reader, READ)
    assert Tab(reader.http).post(path, fields | {"worker": worker}).status_code == 403
    assert answered(site, project) == (set(), {worker})


def test_the_number_of_requests_stands_on_the_tab_for_who_may_answer_them(site: Site) -> None:
    project = site.admin.create_project()
    asking(site, project, "a", "b")
    tab = Tab(site.admin.http).open(f"/ui/projects/{project}").tree.get_element_by_id("access-tab")
    assert " ".join(tab.text_content().split()) == "Access 2 waiting"
    reader = site.create_manager()
    site.admin.set_role(project, reader, READ)
    assert "access-tab" not in reader.http.get(f"/ui/projects/{project}").text


# ── The first worker ──────────────────────────────────────────────────────────────────────────────────────────────────


def guide(http: httpx.Client, project: int) -> str:
    return Page(http.get(f"/ui/projects/{project}")).tree.get_element_by_id("guide").text_content()


def test_while_tasks_wait_and_nobody_was_assigned_one_the_project_says_how_to_work(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    assert "Nobody works here yet" not in guide(site.admin.http, project)
    worker.submit(project)
    shown = guide(site.admin.http, project)
    assert "Nobody works here yet" in shown
    assert f".venv/bin/python worker.py run --server {site.url} --project {project} -- echo {{recipe}}" in shown
    worker.assigned(project)
    worker.submit(project)
    assert "Nobody works here yet" not in guide(site.admin.http, project)


def test_guests_of_a_public_project_are_asked_to_join_in(site: Site) -> None:
    project = site.admin.create_project(public=True)
    worker = site.create_worker(project)
    for recipe in "ab":
        worker.submit(project, recipe)
    worker.assigned(project)
    assert "Join in" in guide(site.guest, project)
    assert "Join in" not in guide(site.admin.http, project)
    worker.assigned(project)
    assert "Join in" not in guide(site.guest, project)


def test_who_is_to_do_jobs_with_scripts_is_told_to_allow_them(site: Site) -> None:
    project = site.admin.create_project()
    body = {"project": project, "name": "build", "script": "echo hi"}
    template = site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    site.admin.post(f"/template/trigger/{template}", {})
    assert f"--project {project} --allow-scripts\n" in guide(site.admin.http, project)


@pytest.mark.parametrize("priority", [-1, 1])
def test_the_line_for_a_worker_is_for_jobs_with_scripts_and_for_plain_tasks_if_both_wait(
    site: Site, priority: int
) -> None:
    project = site.admin.create_project(public=True)
    body = {"project": project, "name": "build", "script": "echo hi"}
    template = site.admin.post("/template/create", body).json()["content"]["template"]["id"]
    site.admin.post(f"/template/trigger/{template}", {})
    site.create_worker(project).submit(project, priority=priority)
    line = f"worker.py run --server {site.url} --project {project} --allow-scripts -- "
    assert line + "echo {recipe}" in guide(site.admin.http, project)
    assert line + "echo {recipe}" in site.guest.get(f"/ui/projects/{project}/crowd").text
    assert line + "YOUR_COMMAND" in site.admin.http.get(f"/ui/templates/{template}").text
