"""The life of a task: submitted, assigned, verified, released, expired, chained."""

import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import Site, Worker, wait_until

import lines
import tracker
from tracker import FAIL, OK, SKIP

UNLIMITED = 1.7976931348623157e308  # what existing clients compare with


def project_and_worker(site: Site, **fields: Any) -> tuple[int, Worker]:
    """A project, and a worker that may submit to it and be assigned its tasks."""
    project = site.admin.create_project(**fields)
    return project, site.create_worker(project)


def recipes(worker: Worker, project: int, most: int = 100) -> list[str]:
    """The recipes of the tasks that the worker is assigned until there is none left, in this order."""
    tasks = iter(lambda: worker.assigned(project), None)
    return [task["recipe"] for task, _ in zip(tasks, range(most), strict=False)]


def delay_of(refusal: httpx.Response) -> float:
    """The seconds that a refusal for being too fast asks to wait."""
    assert refusal.status_code == 429, refusal.text
    assert refusal.json()["ok"] is False
    delay = refusal.json()["rate_limit_delay"]
    assert 0 <= int(refusal.headers["Retry-After"]) - delay <= 1
    return delay


def refused_field(refusal: httpx.Response) -> str:
    """The field that a refusal with status 400 names."""
    assert (refusal.status_code, refusal.json()["ok"]) == (400, False), refusal.text
    return refusal.json()["message"].split(":")[0]


def nearly(seconds: float) -> Any:
    """A delay that was just set: some of it may have passed on a slow machine."""
    return pytest.approx(seconds - 10, abs=10.1)


# ── Submit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_is_handed_out_as_it_was_submitted(site: Site) -> None:
    project, worker = project_and_worker(site)
    fields = {"max_retries": 3, "priority": -(2**15), "max_assign_time": 60, "verification_count": 2}
    recipe = 'naïve ☃ 𝄞 "quoted" \\ \n\t'
    assert worker.submit(project, recipe, **fields).json() == {"ok": True}
    task = worker.assigned(project)
    assert {name: task[name] for name in fields} == fields
    assert (task["recipe"], task["status"], task["retries"]) == (recipe, tracker.NEW, 0)


# ── Uniqueness ────────────────────────────────────────────────────────────────────────────────────────────────────────

SAME_TASK = [
    ({"hash64": 5}, {"hash64": 5}),
    ({"hash64": 5}, {"hash_u64": 5}),
    ({"hash64": -1}, {"hash64": 2**64 - 1}),
    ({"hash64": -(2**63)}, {"hash_u64": 2**63}),
    ({"unique_string": "page"}, {"unique_string": "page"}),
    ({"unique_string": "page"}, {"unique_str": "page"}),
]


def test_a_second_task_with_a_live_hash_is_refused(site: Site) -> None:
    for one, same in SAME_TASK:
        project, worker = project_and_worker(site)
        assert worker.submit(project, **one).status_code == 200
        refusal = worker.submit(project, **same)
        assert (refusal.status_code, refusal.json()["ok"]) == (409, False), (one, same)
        assert site.admin.counts(project) == {"waiting": 1}


def test_hashes_that_differ_in_their_lowest_bit_only_are_different(site: Site) -> None:
    project, worker = project_and_worker(site)
    hashes = [2**63 - 1, 2**63 - 2, 2**64 - 1, 2**64 - 2, -(2**63), -(2**63) + 1]  # doubles would round them together
    assert [worker.submit(project, hash64=hash64).status_code for hash64 in hashes] == [200] * 6


def test_hash_0_and_an_empty_unique_string_are_none(site: Site) -> None:
    project, worker = project_and_worker(site)
    nothing = [{}, {"hash64": 0}, {"hash_u64": 0}, {"unique_string": ""}, {"unique_str": ""}] * 2
    assert [worker.submit(project, **fields).status_code for fields in nothing] == [200] * 10


def test_a_hash_and_a_unique_string_together_are_refused_in_every_spelling(site: Site) -> None:
    project, worker = project_and_worker(site)
    for hash_name, string_name in itertools.product(("hash64", "hash_u64"), ("unique_string", "unique_str")):
        refusal = worker.submit(project, **{hash_name: 5, string_name: "page"})
        assert refused_field(refusal) == "hash64, unique_string", (hash_name, string_name)
    assert site.admin.counts(project) == {}


def test_uniqueness_is_per_project(site: Site) -> None:
    project, worker = project_and_worker(site)
    other = site.admin.create_project()
    site.admin.grant(worker, other)
    assert [worker.submit(one, hash64=5).status_code for one in (project, other)] == [200, 200]


def test_a_hash_is_taken_while_its_task_is_new_assigned_or_failed_and_free_once_it_is_closed(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, unique_string="page")
    again = {"new": worker.submit(project, unique_string="page").status_code}
    worker.released(worker.assigned(project)["id"], FAIL)
    again["failed"] = worker.submit(project, unique_string="page").status_code
    site.admin.post(f"/project/reset_failed_tasks/{project}")
    task = worker.assigned(project)
    again["assigned"] = worker.submit(project, unique_string="page").status_code
    worker.released(task["id"])
    again["closed"] = worker.submit(project, unique_string="page").status_code
    assert again == {"new": 409, "failed": 409, "assigned": 409, "closed": 200}


def test_a_project_that_keeps_hashes_never_takes_a_closed_task_again(site: Site) -> None:
    project, worker = project_and_worker(site, keep_hashes=True)
    worker.submit(project, unique_string="page")
    worker.released(worker.assigned(project)["id"])
    assert worker.submit(project, unique_string="page").status_code == 409
    assert worker.submit(project, unique_string="other").status_code == 200


def test_tasks_without_a_hash_are_unaffected_by_kept_hashes(site: Site) -> None:
    project, worker = project_and_worker(site, keep_hashes=True)
    for _ in range(2):
        assert worker.submit(project).status_code == 200
        assert worker.released(worker.assigned(project)["id"])


# ── Bulk submit ───────────────────────────────────────────────────────────────────────────────────────────────────────

MANY = 1200  # more than one transaction takes: these go another way


def bulk(project: int, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"project": project, "recipe": str(number), **fields} for number in range(count)]


def test_a_bulk_submit_is_an_array_bare_or_under_requests(site: Site) -> None:
    project, worker = project_and_worker(site)
    for body in bulk(project, 2), {"requests": bulk(project, 2)}:
        answer = worker.http.post("/task/bulk_submit", json=body)
        assert answer.json() == {"ok": True, "content": {"submitted": 2, "duplicates": 0}}
        assert recipes(worker, project) == ["0", "1"]


@pytest.mark.parametrize("count", [3, MANY])
def test_a_bulk_of_two_projects_is_refused_and_nothing_stored(site: Site, count: int) -> None:
    project, worker = project_and_worker(site)
    other = site.admin.create_project()
    site.admin.grant(worker, other)
    refusal = worker.bulk_submit([*bulk(project, count), *bulk(other, 1)])
    assert refused_field(refusal) == f"requests[{count}].project"
    assert (site.admin.counts(project), site.admin.counts(other)) == ({}, {})


@pytest.mark.parametrize("count", [3, MANY])
def test_a_bulk_with_one_bad_task_at_the_end_stores_nothing(site: Site, count: int) -> None:
    project, worker = project_and_worker(site)
    refusal = worker.bulk_submit([*bulk(project, count), {"project": project, "recipe": ""}])
    assert refused_field(refusal) == f"requests[{count}].recipe"
    assert site.admin.counts(project) == {}


@pytest.mark.parametrize("count", [3, MANY])
def test_a_bulk_skips_and_counts_existing_duplicates_and_repeats_and_stores_the_rest(site: Site, count: int) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, "existing", unique_string="0")
    tasks = [{**task, "unique_string": task["recipe"]} for task in bulk(project, count)]
    tasks.insert(2, {**tasks[1], "recipe": "repeated"})
    answer = worker.bulk_submit([*tasks, {**tasks[-1], "recipe": "repeated"}])
    assert answer.json()["content"] == {"submitted": count - 1, "duplicates": 3}
    assert site.admin.counts(project) == {"waiting": count}
    assert recipes(worker, project, 3) == ["existing", "1", "2"]


@pytest.mark.parametrize("count", [3, MANY])
def test_a_bulk_skips_and_counts_the_closed_tasks_of_a_project_that_keeps_hashes(site: Site, count: int) -> None:
    project, worker = project_and_worker(site, keep_hashes=True)
    worker.submit(project, unique_string="1")
    worker.released(worker.assigned(project)["id"])
    tasks = [{**task, "unique_string": task["recipe"]} for task in bulk(project, count)]
    assert worker.bulk_submit(tasks).json()["content"] == {"submitted": count - 1, "duplicates": 1}
    assert recipes(worker, project, 2) == ["0", "2"]


AWKWARD = [
    '"},{"',
    "},{",
    "}, {}",
    '}]}, {"recipe": "x"}',
    "[{",
    "]}",
    "\\",
    '\\"},\n{\\"',
    "null",
    ",null],[",
    "ü\n\t",
]


@pytest.mark.parametrize("part", [1, 50, 1000])
@pytest.mark.parametrize("spelled", [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
@pytest.mark.parametrize(
    "around", ["{}", ' {{ "requests" :{} }}\n', '{{"a": [{{"b": 1}}], "requests": {}}}', "\ufeff{}"]
)
def test_a_bulk_is_read_in_parts_whatever_its_texts_look_like(
    monkeypatch: pytest.MonkeyPatch, part: int, spelled: dict[str, Any], around: str
) -> None:
    monkeypatch.setattr(lines, "PART_BYTES", part)
    recipes = [first + second for first in AWKWARD for second in AWKWARD]
    tasks = [{"other": [{}, {"x": None}, {"x": 1}], "recipe": recipe, "project": 1} for recipe in recipes]
    bulk = tracker.read_bulk(around.format(json.dumps(tasks, **spelled)).encode(), len(tasks))
    assert (bulk.project, bulk.count) == (1, len(tasks))
    assert [row[1] for piece in bulk.pieces for row in json.loads(piece)] == recipes


def test_large_bulks_that_anybody_may_send_are_read_one_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    read, lock = tracker.read_bulk, threading.Lock()
    crowds: list[bool] = []

    def counting(body: bytes, most: int) -> Any:
        crowds.append(not lock.acquire(blocking=False))
        time.sleep(0.02)
        if not crowds[-1]:
            lock.release()
        return read(body, most)

    monkeypatch.setattr(tracker, "read_bulk", counting)
    strangers = [site.create_worker() for _ in range(4)]
    tasks = [{"project": 1, "recipe": 1000 * "x"}] * 100
    with ThreadPoolExecutor(4) as at_once:
        answers = list(at_once.map(lambda stranger: stranger.bulk_submit(tasks), strangers))
    assert {answer.status_code for answer in answers} == {404}
    assert crowds == [False] * 4


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": "b"]', "body"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": "b"},]', "body"),
        (b'{"requests": [{"project": 1, "recipe": "a"}, {"project": 1, "recipe": "b"}]', "body"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": "b"}]}', "body"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": 2}]', "requests[1].recipe"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": null}]', "requests[1].recipe"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": "\\u0000"}]', "requests[1].recipe"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 2, "recipe": "b"}]', "requests[1].project"),
        (b'[{"project": 1, "recipe": "a"}, {"project": 1, "recipe": "b"}, {"project": 1, "recipe": "c"}]', "requests"),
    ],
)
def test_what_is_wrong_in_a_bulk_is_named_though_it_is_read_in_parts(
    monkeypatch: pytest.MonkeyPatch, body: bytes, field: str
) -> None:
    monkeypatch.setattr(lines, "PART_BYTES", 1)
    with pytest.raises(tracker.TrackerError) as refused:
        tracker.read_bulk(body, 2)
    assert refused.value.field == field


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 25])
def test_a_bulk_whose_hashes_are_far_is_stored_as_any_other(
    site: Site, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """The readers look all of them up before, and the writer goes no further than they have come."""
    monkeypatch.setattr(tracker, "FAR", -1)
    monkeypatch.setattr(tracker.Tx, "STEP_SECONDS", -1)
    monkeypatch.setattr(tracker, "PIECE_TASKS", 1)
    monkeypatch.setattr(tracker, "BULK_TASKS", 20)
    project, worker = project_and_worker(site)
    tasks = [{**task, "unique_string": task["recipe"]} for task in bulk(project, 20 * pieces)]
    answer = worker.bulk_submit([*tasks[:-1], tasks[0]])
    assert answer.json()["content"] == {"submitted": 20 * pieces - 1, "duplicates": 1}
    assert recipes(worker, project, 20 * pieces - 1) == [str(number) for number in range(20 * pieces - 1)]


def test_a_large_bulk_is_assigned_in_the_order_of_its_tasks(site: Site) -> None:
    project, worker = project_and_worker(site)
    assert worker.bulk_submit(bulk(project, MANY)).json()["content"] == {"submitted": MANY, "duplicates": 0}
    tasks = worker.assign(project, count=1000).json()["content"]["tasks"]
    tasks += worker.assign(project, count=1000).json()["content"]["tasks"]
    assert [task["recipe"] for task in tasks] == [str(number) for number in range(MANY)]


@pytest.mark.parametrize("count", [3, MANY])
def test_a_bulk_without_access_is_403_and_to_no_project_404(site: Site, count: int) -> None:
    project = site.admin.create_project(public=True)
    worker = site.create_worker(project, submit=False)
    assert worker.bulk_submit(bulk(project, count)).status_code == 403
    assert worker.bulk_submit(bulk(7, count)).status_code == 404
    assert site.admin.counts(project) == {}


def test_more_tasks_than_the_settings_allow_are_refused_and_nothing_stored(make_site: Callable[..., Site]) -> None:
    site = make_site(max_bulk=3)
    project, worker = project_and_worker(site)
    assert refused_field(worker.bulk_submit(bulk(project, 4))) == "requests"
    assert site.admin.counts(project) == {}
    assert worker.bulk_submit(bulk(project, 3)).json()["content"]["submitted"] == 3


def test_an_empty_bulk_is_refused(site: Site) -> None:
    for body in ("[]", '{"requests": []}'):
        assert refused_field(site.create_worker().http.post("/task/bulk_submit", content=body)) == "requests"


def test_a_bulk_that_is_no_array_of_tasks_is_refused_by_name(site: Site) -> None:
    http = site.create_worker().http
    bodies = [{}, {"requests": 1}, {"requests": None}, None, 5, {"requests": [5]}, [None]]
    refusals = [http.post("/task/bulk_submit", content=json.dumps(body)) for body in bodies]
    named = ["requests", "requests", "requests", "requests", "body", "requests[0]", "requests[0]"]
    assert [refused_field(refusal) for refusal in refusals] == named


def no_task(reason: str) -> dict[str, Any]:
    return {"ok": False, "message": "No task available", "reason": reason}


def test_two_spellings_of_one_field_with_two_values_are_refused(site: Site) -> None:
    project, worker = project_and_worker(site)
    for fields in ({"hash64": 1, "hash_u64": 2}, {"unique_string": "a", "unique_str": "b"}):
        assert refused_field(worker.submit(project, **fields)) == ", ".join(fields)
    assert worker.submit(project, unique_string="a", unique_str="a").status_code == 200


# ── Assign ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_paused_project_has_no_task_available(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    site.admin.update_project(project, paused=True)
    assert worker.assign(project).json() == no_task(f"A manager has paused project {project}")
    site.admin.update_project(project, paused=False)
    assert worker.assigned(project)


def test_a_task_is_held_by_one_worker_at_a_time(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    assert worker.assigned(project)
    assert worker.assigned(project) is None
    assert site.create_worker(project).assigned(project) is None


def test_higher_priority_comes_first_then_the_oldest(site: Site) -> None:
    project, worker = project_and_worker(site)
    for recipe, priority in [("b1", 0), ("c1", -5), ("a1", 7), ("b2", 0), ("a2", 7), ("c2", -5)]:
        worker.submit(project, recipe, priority=priority)
    assert recipes(worker, project) == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_a_task_that_came_back_keeps_its_place(site: Site) -> None:
    project, worker = project_and_worker(site)
    for recipe in "first", "second":
        worker.submit(project, recipe, max_retries=5)
    for result in (SKIP, FAIL):
        task = worker.assigned(project)
        worker.released(task["id"], result)
    assert recipes(worker, project) == ["first", "second"]


# ── Release ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("max_retries, attempts", [(0, 1), (1, 1), (3, 3)])
def test_a_task_is_failed_after_max_retries_attempts_and_0_means_one(
    site: Site, max_retries: int, attempts: int
) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, max_retries=max_retries)
    for attempt in range(attempts):
        assert site.admin.counts(project) == {"waiting": 1}
        task = worker.assigned(project)
        assert (task["retries"], task["status"]) == (attempt, tracker.NEW)
        assert worker.released(task["id"], FAIL)
    assert site.admin.counts(project) == {"failed": 1}
    assert worker.assigned(project) is None
    assert site.read("SELECT status, retries FROM task") == [(tracker.FAILED, attempts)]


def test_skipping_a_task_counts_nothing(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, max_retries=1)
    for _ in range(3):
        task = worker.assigned(project)
        assert (task["retries"], task["status"]) == (0, tracker.NEW)
        assert worker.released(task["id"], SKIP)
    assert site.admin.counts(project) == {"waiting": 1}


def test_a_release_by_anyone_but_the_assignee_changes_nothing(site: Site) -> None:
    project, worker = project_and_worker(site)
    other = site.create_worker(project)
    worker.submit(project, max_retries=1)
    task = worker.assigned(project)["id"]
    for result in OK, FAIL, SKIP:
        answer = other.release(task, result)
        assert (answer.status_code, answer.json()["content"]) == (200, {"updated": False})
        assert site.admin.counts(project) == {"assigned": 1}
    assert worker.released(task)


def test_a_second_release_of_the_same_task_changes_nothing(site: Site) -> None:
    for result, state in (OK, "closed"), (FAIL, "failed"), (SKIP, "waiting"):
        project, worker = project_and_worker(site)
        worker.submit(project, max_retries=1)
        task = worker.assigned(project)["id"]
        assert worker.released(task, result)
        assert not worker.released(task, OK)
        assert not worker.released(task, FAIL)
        assert site.admin.counts(project) == {state: 1}


def test_a_release_of_a_task_that_never_was_is_404(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    assert [worker.release(task).status_code for task in (0, 2, 2**63 - 1)] == [404, 404, 404]


def test_a_verification_beyond_64_bits_is_refused_whatever_the_result(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    for result in FAIL, SKIP, OK:
        assert refused_field(worker.release(task, result, verification=2**64)) == "verification", result
    assert site.admin.counts(project) == {"assigned": 1}


# ── Verification ──────────────────────────────────────────────────────────────────────────────────────────────────────


def verify(worker: Worker, project: int, verification: int) -> bool:
    """Whether the project's next task for the worker closes with this result."""
    return worker.released(worker.assigned(project)["id"], OK, verification=verification)


def crew(site: Site, project: int, size: int) -> list[Worker]:
    return [site.create_worker(project) for _ in range(size)]


def test_a_task_closes_when_enough_different_workers_have_reported_the_same_hash(site: Site) -> None:
    project = site.admin.create_project()
    workers = crew(site, project, 3)
    workers[0].submit(project, verification_count=3)
    assert [verify(worker, project, 17) for worker in workers] == [False, False, True]
    assert site.admin.counts(project) == {"closed": 1}


def test_one_verification_or_none_asked_for_closes_at_once(site: Site) -> None:
    project, worker = project_and_worker(site)
    for verification_count in 0, 1:
        worker.submit(project, verification_count=verification_count)
        assert verify(worker, project, 17)


def test_a_hash_that_another_worker_did_not_report_leaves_the_task_open(site: Site) -> None:
    project = site.admin.create_project()
    workers = crew(site, project, 4)
    workers[0].submit(project, verification_count=2)
    closed = [verify(worker, project, hash) for worker, hash in zip(workers, (1, 2, 3, 2), strict=True)]
    assert closed == [False, False, False, True]


def test_a_worker_never_gets_a_task_that_it_has_already_verified(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    one.submit(project, "verified", verification_count=2, priority=9)
    assert not verify(one, project, 17)
    one.submit(project, "fresh")
    assert recipes(one, project) == ["fresh"]
    assert one.assign(project).json() == no_task(f"You have verified every task that is ready in project {project}")
    assert recipes(other, project) == ["verified"]


def test_a_task_failed_and_reset_still_does_not_go_to_who_has_verified_it(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    one.submit(project, verification_count=2)
    assert not verify(one, project, 17)
    assert other.released(other.assigned(project)["id"], FAIL)
    site.admin.post(f"/project/reset_failed_tasks/{project}")
    assert one.assigned(project) is None
    assert verify(other, project, 17)


def test_a_task_that_awaits_verification_is_counted_as_such(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    one.submit(project, verification_count=2)
    verify(one, project, 17)
    assert site.admin.counts(project) == {"awaiting_verification": 1}
    task = other.assigned(project)
    assert site.admin.counts(project) == {"assigned": 1}
    other.released(task["id"], SKIP)
    assert site.admin.counts(project) == {"awaiting_verification": 1}


def test_tasks_awaiting_verification_and_untouched_ones_are_assigned_by_priority_then_age(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    for recipe, priority in [("a", 5), ("b", 5), ("c", 1), ("d", 1)]:
        one.submit(project, recipe, priority=priority, verification_count=2)
    held = {task["recipe"]: task["id"] for task in (one.assigned(project) for _ in range(4))}
    for recipe in "b", "c":
        one.released(held[recipe], OK)
    for recipe in "a", "d":
        one.released(held[recipe], SKIP)
    assert recipes(other, project) == ["a", "b", "c", "d"]


def test_a_verification_may_be_signed_or_unsigned(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    for signed in -32315129, -(2**63), -1:
        one.submit(project, verification_count=2)
        assert [verify(one, project, signed), verify(other, project, signed + 2**64)] == [False, True]


def test_verifications_that_differ_in_their_lowest_bit_only_do_not_match(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    one.submit(project, verification_count=2)
    assert [verify(one, project, 2**64 - 1), verify(other, project, 2**64 - 2)] == [False, False]


def test_a_verified_task_is_one_closed_task_of_the_worker_that_closed_it(site: Site) -> None:
    project = site.admin.create_project()
    one, other = crew(site, project, 2)
    one.submit(project, verification_count=2)
    verify(one, project, 17)
    verify(other, project, 17)
    stats = site.guest.get("/worker/stats").json()["content"]["stats"]
    assert {worker["id"]: worker["closed_task_count"] for worker in stats} == {one.id: 0, other.id: 1}


# ── Chain ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def chained(site: Site, **fields: Any) -> tuple[int, int, Worker]:
    """A project, the one that it is chained to, and a worker with access to both."""
    target = site.admin.create_project()
    project, worker = project_and_worker(site, chain=target, **fields)
    return project, target, site.admin.grant(worker, target)


def test_a_closed_task_is_submitted_to_the_project_that_its_own_is_chained_to(site: Site) -> None:
    project, target, worker = chained(site)
    limits = {"max_retries": 3, "priority": 4, "max_assign_time": 60, "verification_count": 1}
    worker.submit(project, "twice", hash64=5, **limits)
    assert worker.released(worker.assigned(project)["id"])
    assert (site.admin.counts(project), site.admin.counts(target)) == ({"closed": 1}, {"waiting": 1})
    assert worker.submit(target, hash64=5).status_code == 409  # the hash went with it
    task = worker.assigned(target)
    assert {name: task[name] for name in limits} == limits
    assert (task["recipe"], task["retries"], task["project"]["id"]) == ("twice", 0, target)


@pytest.mark.parametrize("result", [FAIL, SKIP])
def test_only_a_closed_task_is_chained(site: Site, result: int) -> None:
    project, target, worker = chained(site)
    worker.submit(project)
    worker.released(worker.assigned(project)["id"], result)
    assert site.admin.counts(target) == {}


def test_a_task_is_chained_once_however_many_verifications_it_needs(site: Site) -> None:
    project, target, worker = chained(site)
    worker.submit(project, verification_count=2)
    verify(worker, project, 17)
    assert site.admin.counts(target) == {}
    verify(site.create_worker(project), project, 17)
    assert site.admin.counts(target) == {"waiting": 1}


def test_a_duplicate_in_the_chained_project_is_dropped_and_the_task_closes_all_the_same(site: Site) -> None:
    project, target, worker = chained(site)
    worker.submit(target, "first", hash64=5)
    worker.submit(project, "second", hash64=5)
    assert worker.released(worker.assigned(project)["id"])
    assert site.admin.counts(project) == {"closed": 1}
    assert recipes(worker, target) == ["first"]


def test_a_chained_task_is_submitted_in_the_transaction_that_closes_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, target, worker = chained(site)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "insert_task", lambda *_: 1 / 0)
        assert worker.release(task).status_code == 500
    assert (site.admin.counts(project), site.admin.counts(target)) == ({"assigned": 1}, {})
    assert worker.released(task)
    assert (site.admin.counts(project), site.admin.counts(target)) == ({"closed": 1}, {"waiting": 1})


def test_a_chain_needs_no_access_of_the_worker_and_no_submit_rate(site: Site) -> None:
    project, target, worker = chained(site)
    site.admin.update_project(target, submit_rate=0.001)
    site.admin.post(f"/project/reject_request/{target}/{worker.id}")
    for _ in range(2):
        worker.submit(project)
        assert worker.released(worker.assigned(project)["id"])
    assert site.admin.counts(target) == {"waiting": 2}


# ── Deadlines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_held_past_its_deadline_goes_to_another_worker(site: Site) -> None:
    project = site.admin.create_project(public=True)
    slow, quick = site.create_worker(project), site.create_worker(project)
    slow.submit(project, max_assign_time=60)
    held = slow.assigned(project)
    assert quick.assigned(project) is None
    site.clock.pass_time(61)
    assert wait_until(lambda: quick.assigned(project))["id"] == held["id"]
    assert not slow.released(held["id"])
    assert quick.released(held["id"], tracker.OK)
    assert site.admin.counts(project) == {"closed": 1}


def test_a_task_is_not_taken_back_before_its_deadline(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, max_assign_time=10)
    worker.submit(project, max_assign_time=1000)
    short, long = worker.assigned(project), worker.assigned(project)
    site.clock.pass_time(500)
    wait_until(lambda: site.admin.counts(project) == {"waiting": 1, "assigned": 1})
    assert not worker.released(short["id"])
    assert worker.released(long["id"])


def test_a_timeout_counts_no_retry(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, max_assign_time=10, max_retries=1)
    worker.assigned(project)
    site.clock.pass_time(11)
    task = wait_until(lambda: worker.assigned(project))
    assert (task["retries"], task["status"]) == (0, tracker.NEW)


def test_max_assign_time_0_means_the_default(make_site: Callable[..., Site]) -> None:
    site = make_site(default_max_assign_time=1000)
    project, worker = project_and_worker(site)
    worker.submit(project)
    worker.submit(project, max_assign_time=3000)
    default, own = worker.assigned(project), worker.assigned(project)
    assert default["max_assign_time"] == 0
    site.clock.pass_time(900)
    assert worker.released(default["id"], SKIP)
    assert worker.assigned(project)["id"] == default["id"]
    site.clock.pass_time(1001)
    wait_until(lambda: site.admin.counts(project) == {"waiting": 1, "assigned": 1})
    assert worker.released(own["id"])


# ── Rates ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_limit_lets_one_assignment_through_at_once_and_then_spaces(site: Site) -> None:
    project, worker = project_and_worker(site, assign_rate=0.01)
    worker.bulk_submit(bulk(project, 3))
    site.clock.pass_time(10_000)  # what was not used is not saved up
    for _ in range(2):
        assert worker.assigned(project)
        assert delay_of(worker.assign(project)) == nearly(100)
        site.clock.pass_time(100.1)
    assert worker.assigned(project)


def test_a_rate_limit_lets_one_submit_through_at_once_and_then_spaces(site: Site) -> None:
    project, worker = project_and_worker(site, submit_rate=0.01)
    site.clock.pass_time(10_000)
    for count in (1, 2):
        assert worker.submit(project).status_code == 200
        assert delay_of(worker.submit(project)) == nearly(100)
        assert site.admin.counts(project) == {"waiting": count}
        site.clock.pass_time(100.1)
    assert worker.submit(project).status_code == 200


def test_a_rate_limit_is_shared_by_all_workers_of_the_project(site: Site) -> None:
    project, worker = project_and_worker(site, assign_rate=0.01, submit_rate=0.01)
    other = site.create_worker(project)
    worker.bulk_submit(bulk(project, 2))
    assert delay_of(other.submit(project)) == nearly(200)
    worker.assigned(project)
    assert delay_of(other.assign(project)) == nearly(100)


@pytest.mark.parametrize("count", [50, MANY])
def test_a_bulk_is_let_through_when_a_single_submit_would_be_and_then_pays_for_each_task(
    site: Site, count: int
) -> None:
    project, worker = project_and_worker(site, submit_rate=0.1)
    assert worker.bulk_submit(bulk(project, count)).json()["content"]["submitted"] == count
    assert delay_of(worker.submit(project)) == nearly(count * 10)
    assert delay_of(worker.bulk_submit(bulk(project, count))) == nearly(count * 10)
    site.clock.pass_time(count * 10 + 0.1)
    assert worker.submit(project).status_code == 200


def test_several_tasks_at_once_pay_for_each(site: Site) -> None:
    project, worker = project_and_worker(site, assign_rate=0.01)
    worker.bulk_submit(bulk(project, 10))
    assert len(worker.assign(project, count=5).json()["content"]["tasks"]) == 5
    assert delay_of(worker.assign(project)) == nearly(500)


def test_a_refused_or_failed_submit_costs_nothing(site: Site) -> None:
    project, worker = project_and_worker(site, submit_rate=0.001)
    worker.submit(project, hash64=5)
    site.clock.pass_time(1001)
    refused = [worker.submit(project, hash64=5), worker.submit(project, ""), worker.submit(project, max_retries=-1)]
    refused += [site.create_worker().submit(project), worker.bulk_submit([{"project": project, "recipe": ""}])]
    assert [answer.status_code for answer in refused] == [409, 400, 400, 403, 400]
    assert worker.submit(project).status_code == 200


@pytest.mark.parametrize("count", [5, MANY])
def test_a_bulk_pays_for_its_duplicates_too(site: Site, count: int) -> None:
    project, worker = project_and_worker(site, submit_rate=0.1)
    tasks = [{**task, "unique_string": "page"} for task in bulk(project, count)]
    assert worker.bulk_submit(tasks).json()["content"] == {"submitted": 1, "duplicates": count - 1}
    assert delay_of(worker.submit(project)) == nearly(count * 10)


def test_a_refusal_for_being_too_fast_does_not_prolong_the_wait(site: Site) -> None:
    project, worker = project_and_worker(site, submit_rate=0.01)
    worker.submit(project)
    site.clock.pass_time(50)
    assert delay_of(worker.submit(project)) == nearly(50)
    site.clock.pass_time(50.1)
    assert worker.submit(project).status_code == 200


def test_a_poll_that_found_no_task_costs_nothing(site: Site) -> None:
    project, worker = project_and_worker(site, assign_rate=0.001)
    assert [worker.assigned(project) for _ in range(3)] == [None] * 3
    worker.submit(project)
    assert worker.assigned(project)


def test_a_rate_of_0_or_none_or_the_largest_number_is_unlimited(site: Site) -> None:
    for rate in 0, None, UNLIMITED:
        project, worker = project_and_worker(site, assign_rate=rate, submit_rate=rate)
        shown = site.admin.project(project)
        assert (shown["assign_rate"], shown["submit_rate"]) == (UNLIMITED, UNLIMITED)
        assert [worker.submit(project).status_code for _ in range(5)] == [200] * 5
        assert [worker.assign(project).json()["ok"] for _ in range(5)] == [True] * 5


# ── Several at once ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_count_assigns_up_to_that_many_tasks_in_order(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.bulk_submit(bulk(project, 5))
    taken = [worker.assign(project, count=3).json()["content"]["tasks"] for _ in range(2)]
    assert [[task["recipe"] for task in tasks] for tasks in taken] == [["0", "1", "2"], ["3", "4"]]
    assert all(task["assignee"] == worker.id for tasks in taken for task in tasks)
    assert worker.assign(project, count=3).json() == no_task(f"No task is ready in project {project}")


def test_count_1_answers_with_a_list_too(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project, "only")
    assert [task["recipe"] for task in worker.assign(project, count=1).json()["content"]["tasks"]] == ["only"]


def test_the_best_task_over_several_projects_is_by_project_priority_then_task_priority_then_age(site: Site) -> None:
    low = site.admin.create_project(priority=1)
    high, same = site.admin.create_project(priority=5), site.admin.create_project(priority=5)
    worker = site.create_worker()
    for project in (low, high, same):
        site.admin.grant(worker, project)
    for project, recipe, priority in [
        (low, "low", 100),
        (high, "b", 1),
        (same, "c", 1),
        (high, "d", 0),
        (same, "a", 2),
    ]:
        worker.submit(project, recipe, priority=priority)
    query = {"project": [low, high, same]}
    got = [worker.http.get("/task/get", params=query).json()["content"]["task"] for _ in range(5)]
    assert [task["recipe"] for task in got] == ["a", "b", "c", "d", "low"]
    assert [task["project"]["id"] for task in got] == [same, high, same, high, low]
    assert worker.http.get("/task/get", params=query).json()["message"] == "No task available"


def test_a_project_that_is_paused_or_at_its_rate_limit_leaves_the_turn_to_the_others(site: Site) -> None:
    worker = site.create_worker()
    paused = site.admin.create_project(priority=9, paused=True)
    limited = site.admin.create_project(priority=5, assign_rate=0.001)
    free = site.admin.create_project(priority=1)
    for project in (paused, limited, free):
        site.admin.grant(worker, project)
        worker.bulk_submit(bulk(project, 2))
    query = {"project": [paused, limited, free]}
    got = [worker.http.get("/task/get", params=query).json()["content"]["task"] for _ in range(3)]
    assert [task["project"]["id"] for task in got] == [limited, free, free]
    assert delay_of(worker.http.get("/task/get", params=query)) == nearly(1000)


def test_every_one_of_several_projects_needs_access(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    other = site.admin.create_project()
    assert worker.http.get("/task/get", params={"project": [project, other]}).status_code == 403
    assert worker.http.get("/task/get", params={"project": [project, 7]}).status_code == 404


def bulk_release(worker: Worker, *releases: tuple[int, int]) -> httpx.Response:
    body = {"releases": [{"task_id": task, "result": result} for task, result in releases]}
    return worker.http.post("/task/bulk_release", json=body)


@pytest.mark.parametrize("body", [{}, {"result": None}, {"verification": None}], ids=str)
def test_a_release_that_says_nothing_of_its_result_is_one_that_is_done(site: Site, body: dict[str, Any]) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    answer = worker.http.post("/task/release", json={"task_id": worker.assigned(project)["id"], **body})
    assert answer.json() == {"ok": True, "content": {"updated": True}}
    assert site.admin.counts(project) == {"closed": 1}


def test_a_bulk_release_answers_for_each_task_whether_it_was_updated(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.bulk_submit(bulk(project, 4))
    done, failed, skipped = (task["id"] for task in worker.assign(project, count=3).json()["content"]["tasks"])
    not_held = site.create_worker(project).assigned(project)["id"]
    answer = bulk_release(worker, (done, OK), (not_held, OK), (failed, FAIL), (skipped, SKIP), (done, OK))
    assert answer.json() == {"ok": True, "content": {"updated": [True, False, True, True, False]}}
    assert site.admin.counts(project) == {"closed": 1, "failed": 1, "waiting": 1, "assigned": 1}


def test_a_bulk_release_with_one_bad_release_changes_nothing(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.submit(project)
    task = worker.assigned(project)["id"]
    assert bulk_release(worker, (task, OK), (task, 3)).status_code == 400
    assert site.admin.counts(project) == {"assigned": 1}


def test_an_unknown_task_in_a_bulk_release_keeps_no_other_from_being_released(site: Site) -> None:
    """A tracker that was restored from a backup does not know the tasks that came after it."""
    project, worker = project_and_worker(site)
    worker.bulk_submit(bulk(project, 2))
    first, second = (task["id"] for task in worker.assign(project, count=2).json()["content"]["tasks"])
    answer = bulk_release(worker, (first, OK), (second + 1000, OK), (0, OK), (second, FAIL))
    assert answer.json() == {"ok": True, "content": {"updated": [True, False, False, True]}}
    assert site.admin.counts(project) == {"closed": 1, "failed": 1}


def test_the_settings_bound_how_many_tasks_are_assigned_or_released_at_once(make_site: Callable[..., Site]) -> None:
    site = make_site(max_count=3)
    project, worker = project_and_worker(site)
    worker.bulk_submit(bulk(project, 5))
    held = [task["id"] for _ in range(2) for task in worker.assign(project, count=1000).json()["content"]["tasks"]]
    assert len(held) == 5
    assert site.admin.counts(project) == {"assigned": 5}
    assert refused_field(bulk_release(worker, *((task, OK) for task in held[:4]))) == "releases"
    assert bulk_release(worker, *((task, OK) for task in held[:3])).json()["content"]["updated"] == [True] * 3


def test_a_bulk_release_that_is_no_array_of_releases_is_refused_by_name(site: Site) -> None:
    http = site.create_worker().http
    bodies = [{}, {"releases": 1}, {"releases": [{"task_id": 1, "result": 0}, {"result": 0}]}, None]
    refusals = [http.post("/task/bulk_release", content=json.dumps(body)) for body in bodies]
    assert [refused_field(refusal) for refusal in refusals] == [
        "releases",
        "releases",
        "releases[1].task_id",
        "releases",
    ]


# ── Maintenance ───────────────────────────────────────────────────────────────────────────────────────────────────────


def affected(site: Site, call: str, project: int) -> int:
    answer = site.admin.post(f"/project/{call}/{project}")
    assert answer.status_code == 200, answer.text
    return answer.json()["content"]["affected_tasks"]


def test_resetting_failed_tasks_makes_them_new_with_no_retries(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.bulk_submit(bulk(project, 4, max_retries=2))
    for count in 4, 2:  # two tasks fail twice, and two only once
        for task in worker.assign(project, count=count).json()["content"]["tasks"]:
            worker.released(task["id"], FAIL)
    assert site.admin.counts(project) == {"waiting": 2, "failed": 2}
    assert affected(site, "reset_failed_tasks", project) == 2
    tasks = worker.assign(project, count=4).json()["content"]["tasks"]
    assert [(task["retries"], task["status"]) for task in tasks] == [(0, 1), (0, 1), (1, 1), (1, 1)]


def test_reclaiming_takes_every_assigned_task_from_its_worker(site: Site) -> None:
    project, worker = project_and_worker(site)
    worker.bulk_submit(bulk(project, 3))
    held = [worker.assigned(project)["id"] for _ in range(2)]
    assert affected(site, "reclaim_assigned_tasks", project) == 2
    assert site.admin.counts(project) == {"waiting": 3}
    assert not worker.released(held[0])


def test_a_hard_reset_deletes_every_task_and_closes_none(site: Site) -> None:
    project, worker = project_and_worker(site, keep_hashes=True)
    other = site.create_worker(project)
    for name, count in [("waiting", 1), ("assigned", 1), ("failed", 1), ("closed", 1), ("verified", 2)]:
        worker.submit(project, unique_string=name, verification_count=count)
    tasks = worker.assign(project, count=4).json()["content"]["tasks"]
    worker.released(tasks[2]["id"], FAIL)
    worker.released(tasks[3]["id"], OK)
    worker.released(tasks[0]["id"], SKIP)
    verified = other.assign(project, count=2).json()["content"]["tasks"]
    other.released(verified[0]["id"], SKIP)
    other.released(verified[1]["id"], OK)
    states = {"waiting": 1, "assigned": 1, "failed": 1, "closed": 1, "awaiting_verification": 1}
    assert site.admin.counts(project) == states
    assert affected(site, "hard_reset", project) == 4
    assert site.admin.counts(project) == {"closed": 1}
    assert worker.assigned(project) is None
    again = [worker.submit(project, unique_string=name).status_code for name in ("waiting", "failed", "closed")]
    assert again == [200, 200, 200]


@pytest.mark.parametrize("call", ["reset_failed_tasks", "reclaim_assigned_tasks", "hard_reset"])
def test_maintenance_of_one_project_leaves_the_others_alone(site: Site, call: str) -> None:
    project, worker = project_and_worker(site)
    untouched = site.admin.create_project()
    site.admin.grant(worker, untouched)
    for one in project, untouched:
        worker.bulk_submit(bulk(one, 3))
        failed, _ = worker.assign(one, count=2).json()["content"]["tasks"]
        worker.released(failed["id"], FAIL)
    assert affected(site, call, project)
    assert site.admin.counts(untouched) == {"waiting": 1, "assigned": 1, "failed": 1}
