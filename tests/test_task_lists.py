"""Lists of tasks: every task once and in order, whatever happens between two pages; and what a search finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from place import Queue

import pages
import searching
import shapes
import tracker
from tracker import EDIT, MAINTENANCE, READ, TASK_STATES, TaskFilter, Tx

STATES = list(TASK_STATES)
WORKERS = (3, 5, 2**40)


@dataclasses.dataclass
class Entry:
    """A task as the model of a list knows it."""

    state: str
    priority: int
    assignee: int
    recipe: str
    id: int = 0

    def matches(self, wanted: TaskFilter) -> bool:
        assignee = self.assignee if self.state == "assigned" else None
        return (
            self.state == wanted.state
            and lowered(wanted.text) in lowered(self.recipe)
            and wanted.priority in (None, self.priority)
            and (wanted.assignee is None or wanted.assignee == assignee)
        )

    def place(self) -> tuple[int, int]:
        """Waiting tasks are shown by priority, assigned ones by assignee; the oldest first."""
        lane = {"waiting": -self.priority, "assigned": self.assignee}.get(self.state, 0)
        return lane, self.id


def lowered(text: str) -> str:
    """SQLite's lower() knows ASCII letters only."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


CHANGES = {
    "waiting": "status = 1, assignee = NULL, verifiers = NULL",
    "assigned": "status = 1, assignee = :assignee, assign_time = 1, assigned_uptime = 0, deadline_uptime = 1e9",
    "awaiting_verification": "status = 1, assignee = NULL, verifiers = 1",
    "failed": "status = 2, retries = 1, assignee = NULL",
    "delayed": "status = 3, not_before = 9e9, assignee = NULL",
}


def store(tx: Tx, project: int, entry: Entry) -> int:
    """Makes a new task of it, or (it has an id) changes its task. The task's id."""
    values = {**dataclasses.asdict(entry), "project": project}
    if not entry.id:
        tx.execute(
            "INSERT INTO task (project, recipe, priority, max_retries, max_assign_time, verification_count)"
            " VALUES (:project, :recipe, :priority, 0, 0, 0)",
            values,
        )
        values["id"] = tx.one("SELECT last_insert_rowid()")[0]
    tx.execute(f"UPDATE task SET priority = :priority, {CHANGES[entry.state]} WHERE id = :id", values)
    tracker.recount(tx)
    return values["id"]


def fill(queue: Queue, entries: list[Entry]) -> None:
    for entry in entries:
        entry.id = queue.do(store, queue.project, entry)


def each_page(queue: Queue, wanted: TaskFilter, sizes: Iterator[int] | int = 50) -> Iterator[list[Any]]:
    """A list's pages, one after the other, to its end."""
    after = ""
    while True:
        limit = sizes if isinstance(sizes, int) else next(sizes)
        rows, after = queue.do(tracker.list_tasks, queue.session, queue.project, wanted, after, limit)
        assert len(rows) <= limit
        yield rows
        if not after:
            return


def listed(queue: Queue, wanted: TaskFilter, sizes: Iterator[int] | int = 50) -> list[int]:
    return [row["id"] for rows in each_page(queue, wanted, sizes) for row in rows]


def recipes(queue: Queue, text: str) -> list[str]:
    return [row["recipe"] for rows in each_page(queue, TaskFilter(text=text)) for row in rows]


letters = st.text("aAbB%_\\'\"éÉß☃😀 \n", max_size=6)
priorities = st.sampled_from([0, 0, 1, -1, 2**63 - 1, -(2**63)])
assignees = st.sampled_from(WORKERS)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[Entry], TaskFilter]:
    """Some tasks, and a filter that many of them match."""
    wanted = TaskFilter(
        draw(st.sampled_from(STATES)),
        draw(st.one_of(*3 * [st.just("")], letters)),
        draw(st.one_of(*3 * [st.none()], assignees, st.just(99))),
        draw(st.one_of(*3 * [st.none()], priorities)),
    )
    states = st.sampled_from([*STATES, *8 * [wanted.state]])
    recipes = st.one_of(st.just(f"a{wanted.text}b"), st.just(f"a{wanted.text.swapcase()}b"), letters.map("x{}".format))
    return draw(st.lists(st.builds(Entry, states, priorities, assignees, recipes), max_size=25)), wanted


page_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def repeated(values: list[int]) -> Iterator[int]:
    while True:
        yield from values


@given(lists(), page_sizes, st.sampled_from([1, 2, 3, 2000]), st.booleans())
def test_a_list_shows_each_task_that_matches_once_and_in_order(
    case: tuple[list[Entry], TaskFilter], sizes: list[int], scan: int, hurried: bool
) -> None:
    """With pages of any size, however much of a list one step looks at, and when the time is up after each."""
    queue, (entries, wanted) = Queue(), case
    fill(queue, entries)
    other = queue.create_project("second")
    queue.do(store, other, Entry(wanted.state, wanted.priority or 0, wanted.assignee or 3, wanted.text or "x"))
    expected = sorted((entry for entry in entries if entry.matches(wanted)), key=Entry.place)
    hurry = -1 if hurried else 1
    with mock.patch.object(searching, "SCAN", scan), mock.patch.object(tracker, "SEARCH_TIME", hurry):
        assert listed(queue, wanted, repeated(sizes)) == [entry.id for entry in expected]


@given(st.data(), lists(), page_sizes, st.sampled_from([1, 3, 2000]))
def test_what_happens_between_two_pages_hides_or_repeats_no_task_that_stays_as_it_is(
    data: st.DataObject, case: tuple[list[Entry], TaskFilter], sizes: list[int], scan: int
) -> None:
    queue, (entries, wanted) = Queue(), case
    changed: set[int] = set()
    shown: list[int] = []
    fill(queue, entries)
    with mock.patch.object(searching, "SCAN", scan), mock.patch.object(tracker, "SEARCH_TIME", -1):
        for rows in each_page(queue, wanted, repeated(sizes)):
            by_id = {entry.id: entry for entry in entries}
            assert all(by_id[row["id"]].matches(wanted) for row in rows)
            shown += [row["id"] for row in rows]
            if len(changed) < 20:
                happens(data, queue, entries, changed)
    expected = sorted((entry for entry in entries if entry.matches(wanted)), key=Entry.place)
    assert [id for id in shown if id not in changed] == [entry.id for entry in expected if entry.id not in changed]


def happens(data: st.DataObject, queue: Queue, entries: list[Entry], changed: set[int]) -> None:
    """Some tasks are submitted, deleted, or get into another state or another priority."""
    new = Entry(data.draw(st.sampled_from(STATES)), data.draw(priorities), data.draw(st.sampled_from(WORKERS)), "aB%")
    old = data.draw(st.sampled_from([None, *entries]))
    if old is None:
        new.id = queue.do(store, queue.project, new)
        entries.append(new)
        changed.add(new.id)
    elif data.draw(st.booleans()):
        queue.act("delete", [old.id])
        entries.remove(old)
        changed.add(old.id)
    else:
        old.state, old.priority, old.assignee = new.state, new.priority, new.assignee
        queue.do(store, queue.project, old)
        changed.add(old.id)


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_page_says_that_it_is_the_last_one() -> None:
    queue = Queue()
    for _ in range(4):
        queue.submit()
    assert [len(rows) for rows in each_page(queue, TaskFilter(), 2)] == [2, 2]
    assert [len(rows) for rows in each_page(queue, TaskFilter(), 3)] == [3, 1]
    assert [len(rows) for rows in each_page(queue, TaskFilter(), 4)] == [4]


@pytest.mark.parametrize("state", STATES)
def test_an_empty_list_has_one_empty_page(state: str) -> None:
    assert list(each_page(Queue(), TaskFilter(state, "text", 1, 1))) == [[]]


@pytest.mark.parametrize(
    "after",
    [
        "x",
        "1",
        ":",
        "1:",
        ":1",
        "a:b",
        "1:2:3",
        "1.5:2",
        "1:2 OR 1",
        "99999999999999999999:1",
        "1:-9999999999999999999999",
    ],
)
@pytest.mark.parametrize("state", ["waiting", "failed"])
def test_what_is_no_place_in_a_list_is_refused(state: str, after: str) -> None:
    queue = Queue()
    refusal = queue.refusal(tracker.list_tasks, queue.session, queue.project, TaskFilter(state), after, 10)
    assert refusal.startswith("invalid: after: ")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "after", ["-9223372036854775808:9223372036854775807", "9223372036854775807:9223372036854775807"]
)
def test_a_place_beyond_the_end_of_a_list_is_followed_by_nothing_twice(state: str, after: str) -> None:
    queue = Queue()
    fill(queue, [Entry(state, 0, 3, "recipe") for _ in range(3)])
    seen: list[int] = []
    while after:
        rows, after = queue.do(tracker.list_tasks, queue.session, queue.project, TaskFilter(state), after, 2)
        seen += [row["id"] for row in rows]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("wanted", "after"), [(TaskFilter("assigned", assignee=3), "5:0"), (TaskFilter("waiting", priority=1), "2:0")]
)
def test_a_place_in_another_list_shows_nothing_that_does_not_match(wanted: TaskFilter, after: str) -> None:
    queue = Queue()
    fill(queue, [Entry(wanted.state, priority, worker, "recipe") for priority in (1, 2) for worker in (3, 5)])
    assert queue.do(tracker.list_tasks, queue.session, queue.project, wanted, after, 10)[0] == []


def test_a_list_needs_read() -> None:
    queue = Queue()
    reader, other = queue.create_manager("reader", READ), queue.create_manager("other", EDIT | MAINTENANCE)
    for wanted in TaskFilter(), TaskFilter("failed", "text"):
        arguments = (queue.project, wanted, "", 10)
        assert queue.do(tracker.list_tasks, reader, *arguments) == ([], "")
        assert queue.refusal(tracker.list_tasks, other, *arguments).startswith("forbidden")
        assert queue.refusal(tracker.list_tasks, None, *arguments).startswith("unauthorized")
        assert queue.refusal(tracker.list_tasks, reader, 99, *arguments[1:]).startswith("not_found")


# ── Search ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["100%", "a_b", "back\\slash", "it's", 'say "hi"', "%", "_", "\\", "';--", "☃", "\\%"])
def test_a_text_is_found_as_it_is_written(text: str) -> None:
    queue = Queue()
    queue.submit("none of them: a b, 100 percent, x")
    queue.submit(f"before {text} after")
    assert recipes(queue, text) == [f"before {text} after"]


def test_the_case_of_latin_letters_does_not_matter() -> None:
    queue = Queue()
    queue.submit("http://Example.org/")
    assert recipes(queue, "EXAMPLE") == ["http://Example.org/"]


def test_a_text_in_a_long_recipe_is_found() -> None:
    queue = Queue()
    queue.submit(500_000 * "x" + "needle" + 499_994 * "y")
    assert len(recipes(queue, "needle")) == 1
    assert recipes(queue, 999 * "x" + "z") == []


def test_a_search_that_takes_too_long_ends_early_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tasks at a time: nothing among the first twenty, then the 25th."""
    queue = Queue()
    for number in range(1, 31):
        queue.submit("needle" if number == 25 else "hay")
    monkeypatch.setattr(searching, "SCAN", 10)
    monkeypatch.setattr(searching, "FIRST", 10)
    assert [len(rows) for rows in each_page(queue, TaskFilter(text="needle"))] == [1]
    monkeypatch.setattr(tracker, "SEARCH_TIME", -1)
    assert [len(rows) for rows in each_page(queue, TaskFilter(text="needle"))] == [0, 0, 1, 0]


@pytest.mark.parametrize("priorities", [[0] * 6, range(6)], ids=["one priority", "several"])
def test_few_long_tasks_are_read_at_once(priorities: Iterable[int]) -> None:
    queue = Queue()
    for priority in priorities:
        queue.submit("x" * (searching.MOST_FOUND // 2), priority=priority)
    assert [len(rows) for rows in each_page(queue, TaskFilter())] == [2, 2, 2, 0]


def test_a_search_looks_at_few_long_tasks_before_it_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    for _ in range(30):
        queue.submit("x" * 100_000)
    monkeypatch.setattr(tracker, "SEARCH_TIME", -1)
    assert queue.do(tracker.list_tasks, queue.session, queue.project, TaskFilter(text="needle"), "", 50) == ([], "0:1")


def test_a_list_without_a_search_is_not_cut_short_by_the_time_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    for _ in range(30):
        queue.submit()
    monkeypatch.setattr(tracker, "SEARCH_TIME", -1)
    assert [len(rows) for rows in each_page(queue, TaskFilter(), 12)] == [12, 12, 6]


@given(st.lists(letters.filter(bool), max_size=20), letters, st.sampled_from([1, 3, 2000]))
def test_a_search_of_the_log_finds_the_newest_lines_first(messages: list[str], text: str, scan: int) -> None:
    queue, found, before = Queue(), [], tracker.INT64_MAX
    for message in messages:
        queue.do(tracker.add_log_entry, queue.worker, "info", shapes.LogBody("scope", 1, message))
    with mock.patch.object(searching, "SCAN", scan), mock.patch.object(tracker, "SEARCH_TIME", -1):
        while before:
            shown = queue.do(pages.log_page, queue.session, pages.LogQuery(text=text, before=before))
            found += [row["message"] for row in shown["logs"]]
            before = shown["more"]
    assert found == [message for message in reversed(messages) if lowered(text) in lowered(message)]
