"""What the project depends on: no version with a known hole, and the one set of versions that CI installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

HOME = Path(__file__).parent.parent
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [*map(Requirement, PROJECT["dependencies"])]
DECLARED += [one for extra in EXTRAS.values() for one in map(Requirement, extra) if one.name != PROJECT["name"]]
LOCK = (HOME / ".ci" / "requirements.txt").read_text("utf-8")
LOCKED = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", LOCK, re.MULTILINE))

HOLES = {  # the last versions with one that matters to a server
    "starlette": ("0.49.0", "a Range header of quadratic cost"),
    "jinja2": ("3.1.5", "a way out of the sandbox"),
    "python-multipart": ("0.0.29", "headers of a part without end"),
    "pyjwt": ("2.10.0", "issuers that match in part"),
    "httpcore": ("1.0.8", "an h11 that takes malformed chunks"),
    "filelock": ("3.20.2", "a lock file that a link leads elsewhere"),
}


@pytest.mark.parametrize("name", HOLES)
def test_no_version_with_a_known_hole_may_be_installed(name: str) -> None:
    [declared] = [one for one in DECLARED if one.name == name]
    assert not declared.specifier.contains(HOLES[name][0])


def test_the_lock_file_has_what_is_declared() -> None:
    """After a change of pyproject.toml it is made anew: its first line says how."""
    assert {one.name for one in DECLARED if not one.specifier.contains(LOCKED.get(one.name.lower(), "0"))} == set()


def test_every_locked_version_has_a_hash() -> None:
    entries = re.split(r"^(?=\w)", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) == len(LOCKED) > 30
    assert all("--hash=sha256:" in entry for entry in entries)
