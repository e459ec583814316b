"""No call tells a hidden project from one that is not there to a caller who has no part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import Site
from test_bad_input import Answer, Example, House, as_bytes

NOBODYS = 986_123  # a number that nothing has
NAMES = ("project", "template", "workflow", "task", "task_id", "operation", "start", "target", "chain")
MISSING = {**dict.fromkeys(NAMES, NOBODYS), "job": "0123456789abcdef01234567", "full_name": "owner/none"}
TELL_OF_NONE = {  # what these say tells nothing of a project
    *(
        ("POST", "/task/log"),
        ("POST", "/task/release"),
        ("GET", "/task/attachments/{task}"),
    ),  # numbers are given in turn
    *(("POST", "/worker/create"), ("POST", "/register"), ("GET", "/logout"), ("POST", "/logout")),
}


class Hidden(House):
    """The house, whose project has been hidden, and who asks about it: a worker, a manager and somebody."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.known = {endpoint: one for endpoint, one in self.examples().items() if endpoint not in TELL_OF_NONE}
        chained = {"chain": self.project, "name": "chained"}
        nothing = {"project": self.project, "assign": False, "submit": False}
        self.known["POST", "/api/project/request_access"] = Example(self.as_stranger, body=nothing)
        self.known["POST", "/project/delete/{project}"] = Example(self.as_admin, {"project": self.project})
        self.known["POST", "/project/create"] = Example(self.as_admin, body=chained)
        site.admin.post(f"/project/update/{self.project}", {"hidden": True})
        manager = self.cookie(self.other)
        self.callers = {"worker": self.as_stranger, "manager": lambda body: manager, "nobody": self.as_nobody}

    def ask(self, caller: str, endpoint: tuple[str, str], example: Example) -> Answer:
        """The example by somebody else."""
        data = b"" if example.body is None else as_bytes(example.body)
        path = endpoint[1].format(**(example.ids or {})) + "?" * bool(example.query) + urlencode(example.query or {})
        return self.send(endpoint[0], path, data, self.callers[caller](data))


def without(value: Any) -> Any:
    """The same with numbers and names that nothing has."""
    if isinstance(value, dict):
        return {key: MISSING[key] if key in MISSING and inner else without(inner) for key, inner in value.items()}
    return [without(inner) for inner in value] if isinstance(value, list) else value


def names(value: Any) -> set[str]:
    """The numbers and names that are replaced."""
    if isinstance(value, dict):
        here = {str(inner) for key, inner in value.items() if key in MISSING and not isinstance(inner, dict)}
        return here.union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def told(answer: Answer, *parts: Any) -> tuple[int, str]:
    """What an answer tells, but for the names of what was asked about."""
    text = str(answer.content)
    for name in sorted(set().union(*map(names, parts)), key=len, reverse=True):
        text = text.replace(name, "N")
    return answer.status, text


@pytest.fixture
def hidden(make_site: Callable[..., Site]) -> Iterator[Hidden]:
    house = Hidden(make_site(snapshot_interval=1e6))
    yield house
    house.watcher.close()


@pytest.mark.parametrize("caller", ["worker", "manager", "nobody"])
def test_no_call_tells_a_hidden_project_from_a_missing_one(hidden: Hidden, caller: str) -> None:
    for endpoint, example in hidden.known.items():
        parts = example.ids, example.query, example.body
        other = Example(example.headers, *map(without, (example.ids, example.body, example.query)))
        there, missing = hidden.ask(caller, endpoint, example), hidden.ask(caller, endpoint, other)
        assert told(there, *parts) == told(missing, *map(without, parts)), endpoint
