"""A tracker inside somebody else's test process."""

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

import tracker


def test_the_lines_in_the_readme_work_as_they_stand() -> None:
    readme = (Path(tracker.__file__).parent / "README.md").read_text("utf-8")
    lines = re.search(r"## In a test.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len([line for line in lines.splitlines() if line.strip()]) <= 7
    scope: dict = {}
    exec(compile(lines, "README.md", "exec"), scope)
    tests = [value for name, value in scope.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_two_trackers_in_one_process_share_nothing() -> None:
    with tracker.serving() as one, tracker.serving() as other:
        account = {"username": "alice", "password": "password"}
        cookie = httpx.post(f"{one}/register", json=account).cookies
        assert httpx.get(f"{one}/account", cookies=cookie).json()["ok"]
        assert not httpx.get(f"{other}/account", cookies=cookie).json()["ok"]
        assert httpx.post(f"{other}/register", json=account).json()["content"]["manager"]["tracker_admin"]


def test_its_database_is_gone_afterwards_unless_one_was_named(tmp_path: Path) -> None:
    settings = tracker.Settings(database=str(tmp_path / "kept.db"), log_file="")
    with tracker.serving(settings) as url:
        httpx.post(f"{url}/worker/create", json={"alias": "remembered"})
    with tracker.serving(settings) as url:
        assert httpx.get(f"{url}/worker/get/1").json()["content"]["worker"]["alias"] == "remembered"


def test_nothing_runs_on_after_the_block() -> None:
    before = threading.active_count()
    with tracker.serving() as url:
        assert httpx.get(url).status_code == 200
    assert threading.active_count() == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_tracker_that_cannot_start_says_why_in_the_callers_thread(tmp_path: Path) -> None:
    settings = tracker.Settings(database=str(tmp_path / "nowhere" / "x.db"))
    with pytest.raises(tracker.TrackerError, match="no such folder"), tracker.serving(settings):
        pass


def test_create_app_gives_an_application_for_any_asgi_server(tmp_path: Path) -> None:
    """The lifespan opens and closes the database; no server of ours is needed."""
    import asyncio

    app = tracker.create_app(tracker.Settings(database=str(tmp_path / "x.db"), log_file=""))

    async def visit() -> dict:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
                return (await client.post("/worker/create", json={"alias": "asgi"})).json()

    assert asyncio.run(visit())["content"]["worker"]["alias"] == "asgi"


def test_an_application_whose_lifespan_nobody_runs_says_so_at_every_call(tmp_path: Path) -> None:
    """As of one that is mounted in another application, which runs no lifespan but its own."""
    import asyncio

    app = tracker.create_app(tracker.Settings(database=str(tmp_path / "x.db"), log_file=""))

    async def visit() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
            reads = [
                await client.get(path) for path in ("/project/list", "/ui/", "/api/jobs/status?token=x", "/health")
            ]
            return [*reads, await client.post("/worker/create", json={"alias": "asgi"})]

    for answer in asyncio.run(visit()):
        assert answer.status_code == 503 and "The tracker has not been started" in answer.text


def test_it_works_below_a_path_prefix(tmp_path: Path) -> None:
    """The proxy strips the prefix; the cookie must be bound to it, and every call still found."""
    settings = tracker.Settings(database=str(tmp_path / "x.db"), log_file="", root_path="/queue")
    with tracker.serving(settings) as url:
        answer = httpx.post(f"{url}/register", json={"username": "alice", "password": "password"})
        assert "Path=/queue;" in answer.headers["set-cookie"]
        assert httpx.get(f"{url}/task/get/1").status_code == 401
        assert httpx.get(f"{url}/project/list").json()["content"] == {"projects": []}


WITHOUT_DIALECTS = """
import httpx
import tracker

with tracker.serving() as url:
    assert httpx.get(f"{url}/account").json()["ok"] is False
    assert httpx.get(f"{url}/ui/").status_code == 200
    assert httpx.get(f"{url}/api/jobs/trigger").status_code == httpx.get(f"{url}/tracker/task").status_code == 404
print(tracker.__file__)
"""


def test_a_tracker_without_the_folder_of_dialects_still_runs(tmp_path: Path) -> None:
    here = Path(tracker.__file__).parent
    for file in (*here.glob("*.py"), here / "schema.sql"):
        shutil.copy(file, tmp_path)
    for name in ("templates", "static"):
        shutil.copytree(here / name, tmp_path / name)
    command = [sys.executable, "-c", WITHOUT_DIALECTS]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, str(tmp_path / "tracker.py")), run.stderr
