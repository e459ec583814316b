"""A form that is sent twice is carried out once, and what is shown once is shown by a page that may be loaded again."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Site
from test_pages import Page, Tab

import forms


def recipes(site: Site) -> list[str]:
    return [recipe for (recipe,) in site.read("SELECT recipe FROM task ORDER BY id")]


def sent_form(tab: Tab, path: str, action: str = "", **fields: str) -> dict[str, str]:
    """What a browser sends of the form of a page that it has just loaded."""
    return dict(tab.open(path).form(action or path).fields) | fields


def test_a_button_that_is_pressed_twice_makes_one_task(site: Site) -> None:
    tab, path = Tab(site.admin.http), f"/ui/projects/{site.admin.create_project()}/submit"
    fields = sent_form(tab, path, recipe="once")
    answers = [Page(site.admin.http.post(path, data=fields, follow_redirects=True)) for _ in range(2)]
    assert [page.notice for page in answers] == ["The task is submitted."] * 2
    assert recipes(site) == ["once"]


def test_of_two_that_come_at_once_the_second_waits_for_the_answer_of_the_first(site: Site) -> None:
    tab, path = Tab(site.admin.http), f"/ui/projects/{site.admin.create_project()}/submit"
    for number in range(5):
        fields = sent_form(tab, path, recipe=f"task {number}")
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(site.admin.http.post, path, data=fields) for _ in range(4)]
            assert [one.result(timeout=60).status_code for one in sent] == [303] * 4
    assert recipes(site) == [f"task {number}" for number in range(5)]


def test_the_same_said_on_another_page_or_something_else_on_the_same_one_is_another_task(site: Site) -> None:
    tab, path = Tab(site.admin.http), f"/ui/projects/{site.admin.create_project()}/submit"
    first, second = (sent_form(tab, path, recipe="x") for _ in range(2))
    for fields in (first, second, first | {"recipe": "y"}):
        assert site.admin.http.post(path, data=fields).status_code == 303
    assert recipes(site) == ["x", "x", "y"]


def test_an_upload_that_is_sent_twice_is_submitted_once(site: Site) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    path = f"/ui/projects/{project}/submit"
    fields = sent_form(tab, path, f"{path}/lines")
    file = {"file": ("list.txt", b"one\ntwo\n")}
    answers = [site.admin.http.post(f"{path}/lines", data=fields, files=file) for _ in range(2)]
    assert [answer.headers["location"] for answer in answers] == ["/ui/operations/1"] * 2
    assert recipes(site) == ["one", "two"]


def test_a_form_that_was_refused_counts_when_it_is_sent_again(site: Site) -> None:
    tab, path = Tab(site.admin.http), "/ui/projects/new"
    other = site.admin.create_project("taken")
    fields = sent_form(tab, path, name="taken")
    assert site.admin.http.post(path, data=fields).status_code == 409
    site.admin.update_project(other, name="another")
    assert site.admin.http.post(path, data=fields).status_code == 303


@pytest.mark.parametrize("what", ["rotate_secret", "templates/new"])
def test_a_page_with_a_new_secret_has_an_address_of_its_own_and_may_be_loaded_again(site: Site, what: str) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    made = tab.act(f"/ui/projects/{project}/templates/new", {"name": "build"})
    if what == "rotate_secret":
        made = tab.act("/ui/templates/1/rotate_secret", {"confirmed": "yes"})
    assert made.tree.xpath("string(//*[@id='secret']//code)") == site.read("SELECT secret FROM template")[0][0]
    again = tab.open(str(made.answer.url))
    assert again.status == 200 and not again.tree.xpath("//*[@id='secret']")


def test_a_secret_is_shown_to_the_session_that_made_it_alone(site: Site) -> None:
    tab, project = Tab(site.admin.http), site.admin.create_project()
    assert tab.post(f"/ui/projects/{project}/templates/new", {"name": "build"}).status_code == 303
    other = site.create_manager()
    site.admin.set_role(project, other, 31)
    assert not Tab(other.http).open("/ui/templates/1").tree.xpath("//*[@id='secret']")
    assert tab.open("/ui/templates/1").tree.xpath("//*[@id='secret']")


def test_what_is_kept_ends_with_its_time_and_is_bounded() -> None:
    now = [0.0]
    kept: forms.Lately[int] = forms.Lately(10, 3, lambda: now[0])
    for number in range(5):
        kept.keep(b"%d" % number, number)
    assert [kept.get(b"%d" % number) for number in range(5)] == [None, None, 2, 3, 4]
    assert (kept.take(b"3"), kept.take(b"3")) == (3, None)
    now[0] = 11
    assert kept.get(b"4") is None and not kept.kept


def test_of_several_that_wait_for_one_that_did_not_count_one_is_carried_out() -> None:
    async def send() -> int:
        sent, done = forms.Sent(), []

        async def act() -> str:
            done.append("one")
            await asyncio.sleep(0.01)
            return "done" if len(done) > 1 else "refused"

        answers = [sent.once(b"key", act, lambda answer: answer == "done") for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(*answers), 30)
        return len(done)

    assert asyncio.run(send()) == 2


def test_what_was_typed_before_a_login_is_none_of_very_many_parts(site: Site) -> None:
    """Anybody may send it."""
    fields = dict(Tab(site.guest).open("/ui/login").form("/ui/login").fields)
    many = "{" + ",".join(f'"{number}":[]' for number in range(100_000)) + "}"
    fields |= {"kept": many, "username": "admin", "password": "password"}
    assert site.guest.post("/ui/login", data=fields).status_code == 413
