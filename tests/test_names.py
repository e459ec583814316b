"""Names that people choose: what looks alike is one name, and what nobody sees is in none."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

import lxml.html
import pytest
from conftest import Manager, Site, Worker, client
from hypothesis import given
from hypothesis import strategies as st

import names
import tracker

ALIKE = [  # with ordinary letters, by letters that are folded, and by ones of another script
    *("alice", "ALICE", "\uff21\uff2c\uff29\uff23\uff25", "\uff41lice"),
]


def register(site: Site, username: str) -> int:
    with client(site.url) as http:
        return http.post("/register", json={"username": username, "password": "password"}).status_code


@pytest.mark.parametrize("taken", ["alice", "\uff41lice"])
def test_a_name_that_looks_like_one_that_is_taken_is_taken(site: Site, taken: str) -> None:
    site.create_manager(taken)
    assert [register(site, name) for name in ALIKE] == [409] * 4
    assert register(site, "alicia") == 200


def test_a_word_of_another_script_that_looks_like_a_name_is_that_name(site: Site) -> None:
    site.create_manager("cocoa")
    assert register(site, "\u0441\u043e\u0441\u043e\u0430") == 409  # all of it is Cyrillic
    assert register(site, "\u0430\u043b\u0438\u0441\u0430") == 200


@pytest.mark.parametrize(
    "name",
    [
        "adm1n",
        "adrnin",
        "AdMlN",
        "\u1ea1dmin",
        "\xe4dm\u0131n",
        "\uff41dmin",
        "\U0001d41admin",
        "\u13a0dmin",
        "adm\u0456n",
    ],
)
def test_an_admin_has_no_double(site: Site, name: str) -> None:
    """Digits for letters, letters with dots, two that look like one; letters of other scripts in the word are none."""
    assert register(site, name) == (400 if name in ("\u13a0dmin", "adm\u0456n") else 409)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("\u041d\u0410\u0422\u0410", "HATA"),  # all of it Cyrillic: capitals look like others than small letters
        ("b0b", "Bob"),
        ("Bill", "Bi11"),
        ("\u0142\xf3d\u017a", "lodz"),
        ("\u2780", "1"),
        ("ad\u034fm\u3164in", "admin"),
        ("adm\ufe0fin\u20dd", "admin"),
        ("jane  doe", "jane\u00a0doe"),  # a page shows one blank
        ("ovvner", "owner"),
        ("adrnin", "admin"),
    ],
)
def test_what_looks_alike_is_one_name(name: str, other: str) -> None:
    assert names.look(name) == names.look(other)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (
            "\u0418\u0432\u0430\u043d\u043e\u0439",
            "\u0418\u0432\u0430\u043d\u043e\u0438",
        ),  # a mark makes another letter of it
        ("\u306f\u306f", "\u3070\u3070"),
        ("\u092e\u094b\u0939\u0928", "\u092e\u0939\u0928"),
        ("alice", "alicia"),
        ("anna", "ama"),
    ],
)
def test_other_names_stay_apart(name: str, other: str) -> None:
    assert names.look(name) != names.look(other)


@pytest.mark.parametrize(
    "name",
    [
        "\u0430lice",
        "al\u200dice",
        "al\u202eice",
        "alice\u00ad",
        "\u3164\u2800",
        "ali\x00ce",
        " alice",
        "\u03b1lpha",
        "\u041f\u0435\u0442p",
    ],
)
def test_a_new_name_has_nothing_unseen_and_no_word_of_letters_that_pose_as_latin_ones(site: Site, name: str) -> None:
    assert register(site, name) == 400


@pytest.mark.parametrize(
    "name",
    [
        "\u0418\u0432\u0430\u043d \u041f\u0435\u0442\u0440\u043e\u0432",
        "\u0438\u0432\u0430\u043d.petrov",
        "\u03a9mega",
        "\u03a9\u03bc\u03ad\u03b3\u03b1 Smith",
        "\u5c71\u7530taro",
        "O'Brien",
    ],
)
def test_words_of_several_scripts_are_no_danger(site: Site, name: str) -> None:
    assert register(site, name) == 200


def test_accounts_of_before_are_compared_as_new_ones_are(tmp_path: Path) -> None:
    """What their names look like was stored by a version that could tell less."""
    database = str(tmp_path / "old.db")
    with tracker.serving(tracker.Settings(database=database)) as url:
        Manager(url, "admin")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE manager SET look = 'admin'")
    with tracker.serving(tracker.Settings(database=database)) as url, client(url) as http:
        assert http.post("/register", json={"username": "adm1n", "password": "password"}).status_code == 409


def test_letters_with_marks_are_one_script_however_they_are_typed(site: Site) -> None:
    assert [register(site, name) for name in ("Jose\u0301", "M\u00fcller", "Mu\u0308ller")] == [200, 200, 409]


def test_an_old_account_logs_in_by_its_exact_name(site: Site) -> None:
    """Accounts of before may look alike."""
    site.create_manager("alice")
    with sqlite3.connect(site.settings.database) as connection:
        connection.execute(
            "INSERT INTO manager (username, look, password_hash, tracker_admin, register_time)"
            " SELECT '\u0430lice', look, password_hash, 0, 1 FROM manager WHERE username = 'alice'"
        )
    ids = []
    for name in "alice", "\u0430lice":
        with client(site.url) as http:
            answer = http.post("/login", json={"username": name, "password": "password"})
            ids.append(answer.json()["content"]["manager"]["username"])
    assert ids == ["alice", "\u0430lice"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a\u202eb", "ab"),
        ("\u200b", "worker"),
        ("\u3164", "worker"),
        ("x\x07\ny", "xy"),
        ("z\u00adz", "zz"),
        ("\u2066a\u2069", "a"),
        ("ä ö", "ä ö"),
    ],
)
def test_an_alias_loses_what_nobody_sees(site: Site, given: str, kept: str) -> None:
    worker = Worker(site.url, given)
    assert worker.http.get(f"/worker/get/{worker.id}").json()["content"]["worker"]["alias"] == kept


@pytest.mark.parametrize(
    "alias", ["unassigned", "UNASSIGNED ", "unass1gned", "un\u200bassigned", "un\u0430ssigned", "\uff55nassigned"]
)
def test_no_alias_looks_like_the_reserved_one(site: Site, alias: str) -> None:
    with client(site.url) as http:
        assert http.post("/worker/create", json={"alias": alias}).status_code == 400


@pytest.mark.parametrize("name", ["unassigned", "Unass1gned", "\u3164", "\u200b"])
def test_an_agent_with_the_reserved_name_or_one_that_nobody_sees_is_a_worker_with_the_default_alias(
    site: Site, name: str
) -> None:
    with client(site.url) as http:
        assert http.post("/v1/job", json={"job_queue": "q"}).status_code == 200
        cookie = {"cookie": f"agent_name={quote(name)}"}
        assert http.get("/v1/job?queue=q", headers=cookie).status_code == 200
    assert site.read("SELECT alias FROM worker") == [(site.settings.default_alias,)]


@given(st.text(max_size=30))
def test_what_a_name_looks_like_looks_like_itself(name: str) -> None:
    assert names.look(names.look(name)) == names.look(name)
    assert names.seen(names.seen(name)) == names.seen(name)


def test_a_workers_line_that_poses_as_the_trackers_is_marked_in_a_jobs_log(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    made = site.admin.post("/template/create", {"project": project, "name": "t"}).json()["content"]
    template = made["template"]["id"]
    job = site.admin.post(f"/template/trigger/{template}", {}).json()["content"]["job"]["id"]
    task = worker.assigned(project)["id"]
    posing = ["tracker", " Tracker ", "tr\u0430cker", "track\u200ber", "\uff54racker", "\u202etracker"]
    for scope in (*posing, "tracking"):
        assert worker.log("info", "cancelled", scope=scope, task_id=task).status_code == 204
    page = lxml.html.document_fromstring(site.admin.get(f"/ui/jobs/{job}").text)
    lines = [line.text_content() for line in page.find_class("log")[0]]
    said = [line for line in lines if line.endswith("cancelled")]
    assert ["a worker says" in line for line in said] == [*[True] * len(posing), False]
    assert not [line for line in lines if "a worker says" in line and line not in said]


# ── Names that a stranger has taken ───────────────────────────────────────────────────────────────────────────────────


def project_names(site: Site) -> dict[int, str]:
    return dict(site.read("SELECT id, name FROM project"))


def test_a_project_that_nobody_trusts_gives_its_name_up_for_a_trusted_one(site: Site) -> None:
    stranger = site.create_manager()
    theirs = stranger.create_project("production")
    ours = site.admin.create_project("production")
    assert project_names(site) == {theirs: f"production ({theirs})", ours: "production"}
    assert stranger.post("/project/create", {"name": "production"}).status_code == 409
    assert stranger.update_project(theirs, name="production").status_code == 409
    assert stranger.update_project(theirs, name="other", motd="still mine").status_code == 200
    assert site.admin.update_project(ours, name="other").status_code == 200
    assert project_names(site) == {theirs: f"other ({theirs})", ours: "other"}


def test_names_of_trusted_projects_and_of_strangers_among_themselves_stay_taken(site: Site) -> None:
    first, second, trusted = site.create_manager(), site.create_manager(), site.create_manager()
    project = site.admin.create_project("ours")
    site.admin.set_role(project, trusted, tracker.READ)
    first.create_project("theirs")
    first.create_project("theirs (2)")
    assert second.post("/project/create", {"name": "theirs"}).status_code == 409
    assert [one.post("/project/create", {"name": "ours"}).status_code for one in (site.admin, trusted)] == [409, 409]
    assert trusted.create_project("theirs (2)") and trusted.create_project("theirs")
    assert set(project_names(site).values()) == {"ours", "theirs", "theirs (2)", "theirs (2) (3)", "theirs (2)'"}


def trigger(site: Site, template: str) -> int:
    return site.guest.get("/api/jobs/trigger", params={"template": template}).status_code


def test_a_template_that_programs_trigger_by_name_is_the_trusted_one(site: Site) -> None:
    stranger = site.create_manager()
    theirs, ours = stranger.create_project(), site.admin.create_project()
    template = {"name": "deploy", "recipe": "x", "api": True}
    squatter = stranger.post("/template/create", {**template, "project": theirs}).json()["content"]
    assert trigger(site, "deploy") == 200
    kept = site.admin.post("/template/create", {**template, "project": ours})
    assert kept.status_code == 200
    assert trigger(site, "deploy") == 200
    assert site.read("SELECT project, COUNT(*) FROM job GROUP BY project") == [(theirs, 1), (ours, 1)]
    again = f"/template/update/{squatter['template']['id']}"
    assert stranger.post(again, {"api": True}).status_code == 409
    assert stranger.post(again, {"api": True, "name": "another"}).status_code == 200
    assert trigger(site, "another") == 200


def test_no_stranger_keeps_agents_and_clients_from_a_queue(site: Site) -> None:
    stranger = site.create_manager()
    theirs = stranger.create_project("lab")
    assert site.guest.post("/v1/agents/queues", json={"lab": "ours"}).status_code == 200
    assert site.guest.get("/v1/agents/queues").json() == {"lab": "ours"}
    assert project_names(site)[theirs] == f"lab ({theirs})"
    stranger.create_project("other")
    assert site.guest.post("/v1/job", json={"job_queue": "other"}).status_code == 200
    stranger.create_project("images")
    assert site.guest.post("/v1/agents/images", json={"images": {"new": {}}}).status_code == 200


@pytest.mark.parametrize("path, content", [("queues", "said"), ("images", {"new": {}})])
def test_one_name_that_cannot_be_a_queues_keeps_an_agent_from_none_of_the_others(
    site: Site, path: str, content: object
) -> None:
    site.admin.create_project("guarded")
    told = {"first": content, "guarded": content, "last": content}
    assert site.guest.post(f"/v1/agents/{path}", json=told).status_code == 200
    assert set(project_names(site).values()) == {"first", "guarded", "last"}
    refused = site.guest.post(f"/v1/agents/{path}", json={"guarded": content})
    assert (refused.status_code, "guarded" in refused.text) == (422, True)
