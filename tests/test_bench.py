"""The benchmarks' large database goes with the schema: nothing else would notice that it does not."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from conftest import MovedClock, Site

import tracker

PAGES = ("", "/tasks?state=failed", "/access", "/workflows/new", "/jobs")


def test_the_large_database_can_be_made_and_its_pages_are_there(
    tmp_path: Path, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tracker.HERE / "bench"))
    import large

    settings = tracker.Settings(database=str(tmp_path / "large.db"), log_file=str(tmp_path / "tracker.log"))
    with tracker.serving(settings, clock) as url:
        site = Site(url, clock, settings)
        projects = {name: site.admin.create_project(name) for name in ("main", "other", "third")}
        site.create_worker(projects["main"]).submit(projects["main"])
        cookies = site.admin.http.cookies
    large.furnish(settings.database, projects, scale=0.01)
    [(aliases, workers)] = site.read("SELECT COUNT(DISTINCT alias), COUNT(*) FROM worker")
    assert aliases == workers > 50
    with tracker.serving(settings, clock) as url, httpx.Client(base_url=url, cookies=cookies) as http:
        for project in projects.values():
            for page in PAGES:
                assert http.get(f"/ui/projects/{project}{page}").status_code == 200, page
