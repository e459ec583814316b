"""What an export of tasks gives is what makes such tasks: byte for byte, by every way in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, Worker
from hypothesis import given
from hypothesis import strategies as st
from place import Queue
from test_submit_lines import upload
from test_uploads import WAYS, begun, finished

import failures
import pages
import shapes

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50)
TASKS = st.fixed_dictionaries(
    {"recipe": TEXTS},
    optional={
        "priority": st.integers(-(2**15), 2**15 - 1),
        "max_retries": st.integers(0, 2**15 - 1),
        "max_assign_time": st.integers(0, 2**31 - 1),
        "verification_count": st.integers(0, 2**15 - 1),
        "hash64": st.integers(-(2**63), 2**64 - 1),
        "not_before": st.floats(4e9, 1e11),
    },
)
HOSTILE: list[dict[str, Any]] = [
    {"recipe": "{"},
    {"recipe": '{"recipe": "not this"}'},
    {"recipe": "two\nlines\r\nand\rmore\v\f\x1c\x85\u2028\u2029"},
    {"recipe": " \ufeff blanks "},
    {"recipe": "\\u0000 \\ud800 \x01\x7f\"'"},
    {"recipe": "☃ 😀 e\u0301 \U0010ffff"},
    {"recipe": "null"},
    {"recipe": "unique", "unique_string": "☃"},
    {"recipe": "smallest", "hash64": -(2**63), "priority": -(2**15)},
    {"recipe": "largest", "hash64": 2**64 - 2, "priority": 2**15 - 1, "max_retries": 2**15 - 1},
    {"recipe": "long", "max_assign_time": 2**31 - 1, "verification_count": 2**15 - 1},
    {"recipe": "later", "not_before": 1e11 - 0.123456, "unique_string": "later"},
    {"recipe": "at last", "delay": 1e9},
]


def exported(site: Site, project: int) -> bytes:
    """The export of all tasks that are ready or delayed, but their numbers."""
    parts = [site.admin.get(f"/ui/projects/{project}/export", state=state).content for state in ("waiting", "delayed")]
    return re.sub(rb'"id":\d+,', b"", b"".join(parts))


def by_bulk_submit(
    site: Site, worker: Worker, project: int, data: bytes, options: dict[str, str], folder: Path
) -> None:
    tasks = [{**json.loads(line), "project": project} for line in data.split(b"\n") if line]
    answer = worker.bulk_submit(tasks)
    assert answer.json()["content"] == {"submitted": len(tasks), "duplicates": 0}, answer.text


@pytest.mark.parametrize("way", [*WAYS, "by bulk_submit"])
def test_what_is_exported_makes_the_same_tasks_to_the_byte(site: Site, tmp_path: Path, way: str) -> None:
    first, second = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(first)
    site.admin.grant(worker, second)
    for task in HOSTILE:
        assert worker.submit(first, **task).status_code == 200, task
    lines = exported(site, first)
    assert lines.count(b"\n") == len(HOSTILE)
    {**WAYS, "by bulk_submit": by_bulk_submit}[way](site, worker, second, lines, {}, tmp_path)
    for (operation,) in site.read("SELECT max(id) FROM operation HAVING max(id) IS NOT NULL"):
        assert finished(site.admin.http, operation)["report"]["refused"] == []
    assert exported(site, second) == lines


@given(st.lists(TASKS, max_size=5, unique_by=lambda task: task.get("hash64", object())))
def test_any_tasks_make_the_same_ones_to_the_byte(tasks: list[dict[str, Any]]) -> None:
    queue = Queue()
    second = queue.create_project("second")
    for task in tasks:
        queue.submit(**task)

    def lines(project: int) -> bytes:
        rows = queue.rows(f"SELECT *, {failures.AS_JSON} FROM task WHERE project = ? ORDER BY id", project)
        return re.sub(rb'"id":\d+,', b"", b"".join(map(pages.task_line, rows)))

    report = upload(queue, lines(queue.project), second) if tasks else None
    assert report is None or (report.refused_count, report.duplicate_count) == (0, 0), report
    assert lines(second) == lines(queue.project)


def test_the_longest_recipe_comes_back_however_it_was_spelled(site: Site) -> None:
    """A control character is a byte in a line of text, and six in the JSON of an export."""
    first, second = site.admin.create_project(), site.admin.create_project()
    worker = site.create_worker(first)
    site.admin.grant(worker, second)
    recipe = b"\x01" * shapes.MOST_TEXT
    assert finished(worker.http, begun(worker, first, recipe))["affected"] == 1
    lines = exported(site, first)
    assert finished(worker.http, begun(worker, second, lines))["report"]["refused"] == []
    assert exported(site, second) == lines


def test_a_task_with_numbers_of_another_time_is_exported_as_clients_can_hold_it() -> None:
    queue = Queue()
    task = queue.submit()
    queue.connection.execute("UPDATE task SET priority = 1000000, max_retries = 99999 WHERE id = ?", (task,))
    second = queue.create_project("second")
    [row] = queue.rows(f"SELECT *, {failures.AS_JSON} FROM task WHERE id = ?", task)
    assert upload(queue, pages.task_line(row), second).refused == []
    [copy] = queue.rows("SELECT * FROM task WHERE project = ?", second)
    assert (copy["priority"], copy["max_retries"]) == (2**15 - 1, 2**15 - 1)


def test_half_a_character_is_refused_and_keeps_no_other_line_out(site: Site) -> None:
    project = site.admin.create_project()
    worker = site.create_worker(project)
    texts = [r'"a\ud800"', r'"a\u0000"', f'"b","hash64":{2**128}', '"good"']
    data = "".join(f'{{"recipe":{text}}}\n' for text in texts).encode()
    found = finished(worker.http, begun(worker, project, data))
    assert found["affected"] == 1
    assert [line for line, _ in found["report"]["refused"]] == [1, 2, 3]
