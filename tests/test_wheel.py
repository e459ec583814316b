"""`pip install .`: a wheel that carries all that the tracker reads, and its two commands."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Manager, Worker

import tracker

pytest.importorskip("setuptools", minversion="77", reason="makes the wheel")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="its scripts are elsewhere on Windows")
IN_IT = (
    "*.py",
    "schema.sql",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "docs/wheel.py",
    "static",
    "templates",
    "dialects",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the wheel of a copy of the clone was installed; its dependencies are this interpreter's."""
    folder = tmp_path_factory.mktemp("wheel")
    clone, target = folder / "clone", folder / "target"
    for path in (path for pattern in IN_IT for path in tracker.HERE.glob(pattern)):
        place = clone / path.relative_to(tracker.HERE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, place) if path.is_dir() else shutil.copy(path, place)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    made = subprocess.run([*pip, "--target", target, clone], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    shutil.rmtree(clone)
    return target


class Outside:
    """A folder outside the clone, where the installed commands are run."""

    def __init__(self, installed: Path, folder: Path):
        self.installed, self.folder = installed, folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(installed),
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder),
        }

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(self.installed / "bin" / name), *arguments]

    def run(self, name: str, *arguments: str) -> str:
        """What a command printed that ended well."""
        options = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(self.command(name, *arguments), **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """The address of a tracker that the installed command runs until the block ends."""
        printed = self.folder / "printed"
        with printed.open("w") as file:
            process = subprocess.Popen(
                self.command("tracker", "--port", "0"), cwd=self.folder, env=self.environment, stdout=file, stderr=file
            )
        try:
            yield self.address(process, printed)
        finally:
            process.terminate()
            process.wait(30)

    def address(self, process: subprocess.Popen, printed: Path) -> str:
        for _ in range(300):
            if found := re.search(r"http://[\w.:]+:\d+", printed.read_text()):
                return found[0]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                break
        raise AssertionError(printed.read_text())


@pytest.fixture
def outside(installed: Path, tmp_path: Path) -> Outside:
    return Outside(installed, tmp_path)


def test_what_is_installed_works_without_the_clone(outside: Outside) -> None:
    with outside.serving() as url:
        admin = Manager(url, "admin")
        project = admin.create_project(public=True)
        admin.grant(worker := Worker(url), project)
        for recipe in "abc":
            worker.submit(project, recipe)
        for page in ("/ui/static/style.css", "/ui/", "/ui/docs"):
            assert httpx.get(url + page, headers={"accept": "text/html"}).status_code == 200
        server = ("--server", url, "--project", str(project))
        said = outside.run("tracker-worker", "run", *server, "--until-empty", "--", "true")
        assert said == "done 3, failed 0, skipped 0\n"
        assert admin.counts(project) == {"closed": 3}


def test_the_commands_are_the_same_as_in_the_clone(outside: Outside) -> None:
    assert outside.run("tracker", "--version").strip().endswith(tracker.__version__)
    assert "submit" in outside.run("tracker-worker", "--help")
