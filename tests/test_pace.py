"""What a project's page says of its pace: charts of a short crawl, the share that is done, the time that is left."""

import re
from collections.abc import Callable

import pytest
from conftest import MovedClock, Site, wait_until
from test_pages import Page, Tab

import pages


@pytest.fixture
def crawl(make_site: Callable[..., Site], clock: MovedClock) -> Callable[[int], Page]:
    """Makes a project, closes so many of its 20 tasks within seconds, and opens its page a minute later."""

    def make(closed: int) -> Page:
        site = make_site(snapshot_interval=0.2)
        project = site.admin.create_project()
        worker = site.create_worker(project)
        for _ in range(20):
            worker.submit(project)
        clock.pass_time(5)
        for _ in range(closed):
            worker.released(worker.assigned(project)["id"])
        clock.pass_time(60)
        taken = "SELECT COUNT(*) FROM snapshot WHERE closed_task_count = ?"
        wait_until(lambda: site.read(taken, closed)[0][0] > 0)
        clock.pass_time(400)
        wait_until(lambda: site.read("SELECT COUNT(*) FROM snapshot WHERE time_stamp > ?", clock.time() - 100)[0][0])
        clock.pass_time(30)
        return Tab(site.admin.http).open(f"/ui/projects/{project}")

    return make


def test_what_a_short_crawl_closed_in_its_first_step_is_drawn(crawl: Callable[[int], Page]) -> None:
    page = crawl(20)
    rows = page.tree.xpath("//*[@id='throughput-data']//tbody/tr/td[2]/text()")
    assert any(float(re.match(r"[\d.]+", text)[0]) > 0 for text in rows if text != "–"), rows
    assert page.tree.xpath("//nav[@aria-label='Time shown']/a[@aria-current]/text()") == ["all"]


def test_the_share_that_is_done_is_told_when_no_more_tasks_come(crawl: Callable[[int], Page]) -> None:
    page = crawl(5)
    assert "25 % of 20 done" in page.text
    [bar] = page.tree.xpath("//*[@id='done']//progress")
    assert (bar.get("value"), bar.get("max")) == ("5", "20")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (20, "under a minute"),
        (60, "about 1 min"),
        (7 * 60 + 40, "about 8 min"),
        (43 * 60, "about 45 min"),
        (7 * 3600 + 46 * 60, "about 8 h"),
        (22 * 3600, "about 20 h"),
        (2.6 * 86400, "about 3 days"),
        (90 * 86400, "about 3 months"),
        (2e9, "about 63 years"),
    ],
)
def test_the_time_left_is_rounded_as_a_person_would(seconds: float | None, said: str) -> None:
    assert pages.roughly(seconds) == said
