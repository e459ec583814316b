"""Charts: what is read off them is what was put in, and what nobody knows is a gap."""

from __future__ import annotations

import itertools
import math
import re
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import charts
import pages

NOON = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp())  # a Sunday
HOUR, DAY, YEAR = 3600, 86_400, 31_556_952

moments = st.integers(0, 4_000_000_000)
spans = st.integers(600, 40 * YEAR)


def every(seconds: int, values: list[float | None], end: int = NOON) -> list[charts.Point]:
    """Points at equal steps, the last one at `end`."""
    return [(end - seconds * back, value) for back, value in zip(range(len(values) - 1, -1, -1), values, strict=True)]


def chart_of(*values: float | None, **options: object) -> charts.Chart:
    """The chart of one area over the last hour, a value a minute."""
    return charts.time_chart(
        [charts.Series("Closed", every(60, list(values)), "series-1", "area")], NOON - HOUR, NOON, title="T", **options
    )


def labels(start: int, end: int, fine: bool = True) -> list[str]:
    return [label for _, label, is_fine in charts.time_ticks(start, end) if fine or not is_fine]


def macros() -> Any:
    return pages.jinja_environment().get_template("charts.html").module


def draw(chart: charts.Chart) -> ElementTree.Element:
    """The macro's output, which must be well-formed, as a tree."""
    return ElementTree.fromstring(str(macros().time_chart(chart, "it")))


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


# ── Sampling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(moments, spans)
def test_the_grid_covers_the_time_with_few_moments_that_stay_where_they_are(start: int, span: int) -> None:
    grid = charts.grid(start, start + span)
    assert grid[0] <= start and grid[-1] >= start + span
    assert len(grid) <= charts.MOST_POINTS + 2
    assert all(moment % grid.step == 0 for moment in grid)


@given(st.lists(st.integers(NOON - DAY, NOON), unique=True).map(sorted))
def test_thinning_keeps_the_last_row_up_to_each_moment(times: list[int]) -> None:
    grid = charts.grid(NOON - DAY, NOON)
    last = [[time for time in times if moment - grid.step < time <= moment][-1:] for moment in grid]
    assert charts.thin([(time,) for time in times], grid) == [(time,) for found in last for time in found]


def test_a_rate_is_the_gain_by_the_seconds_it_took_however_long_the_step() -> None:
    assert charts.rates([(0, 5), (60, 65), (150, 65), (160, 100)]) == [(60, 1), (150, 0), (160, 3.5)]


def test_a_count_that_went_down_gives_no_rate_and_the_next_step_gives_one_again() -> None:
    assert charts.rates([(0, 100), (60, 160), (120, 0), (180, 30)]) == [(60, 1), (120, None), (180, 0.5)]


def test_a_step_much_longer_than_usual_gives_no_rate() -> None:
    counts = [(0, 0), (60, 60), (120, 120), (4000, 130), (4060, 190)]
    assert charts.rates(counts) == [(60, 1), (120, 1), (4000, None), (4060, 1)]


def test_two_counts_at_one_time_give_no_rate_between_them() -> None:
    assert charts.rates([(0, 0), (60, 60), (60, 90), (120, 150)]) == [(60, 1), (120, 1)]


@pytest.mark.parametrize("counts", [[], [(0, 7)]])
def test_no_step_gives_no_rate(counts: list[tuple[int, int]]) -> None:
    assert charts.rates(counts) == []


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10**9)), min_size=1))
def test_the_rates_of_a_count_that_grows_add_up_to_what_it_gained(steps: list[tuple[int, int]]) -> None:
    counts = [(0, 0), *zip(*(itertools.accumulate(column) for column in zip(*steps, strict=True)), strict=True)]
    times = [time for time, _ in counts]
    gained = sum(
        rate * (time - before) for before, (time, rate) in zip(times, charts.rates(counts, gap=math.inf), strict=False)
    )
    assert gained == pytest.approx(counts[-1][1])


# ── Ticks and texts ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(1e-9, 1e18), st.booleans())
def test_value_ticks_begin_at_zero_reach_the_top_and_differ_by_equal_round_steps(top: float, whole: bool) -> None:
    ticks = charts.value_ticks(top, whole=whole)
    step = ticks[1]
    assert ticks[0] == 0 and ticks[-2] < top <= ticks[-1]
    assert 2 <= len(ticks) <= 7
    assert ticks == pytest.approx([step * number for number in range(len(ticks))])
    assert f"{step:e}"[0] in "125" and float(f"{step:.0e}") == step
    assert not whole or step >= 1


@given(st.floats(1e-6, 1e18), st.booleans())
def test_the_labels_of_value_ticks_are_short_and_differ(top: float, whole: bool) -> None:
    texts = charts.tick_texts(charts.value_ticks(top, whole=whole))
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 9


@pytest.mark.parametrize(
    ("top", "texts"),
    [
        (0, "0 1"),
        (1, "0 0.2 0.4 0.6 0.8 1.0"),
        (0.02, "0 0.005 0.010 0.015 0.020"),
        (7, "0 2 4 6 8"),
        (9_999, "0 2k 4k 6k 8k 10k"),
        (2_400, "0 500 1,000 1,500 2,000 2,500"),
        (1_900_000, "0 0.5M 1M 1.5M 2M"),
        (3e11, "0 100G 200G 300G"),
    ],
)
def test_value_ticks_are_labelled_in_one_scale_and_precision(top: float, texts: str) -> None:
    assert charts.tick_texts(charts.value_ticks(top)) == texts.split()


@given(moments, spans)
def test_time_ticks_lie_in_the_time_in_order_and_far_enough_apart_for_their_labels(start: int, span: int) -> None:
    ticks = charts.time_ticks(start, start + span)
    times = [time for time, *_ in ticks]
    coarse = [time for time, _, fine in ticks if not fine]
    assert all(start <= time <= start + span for time in times)
    assert all(after - before >= span / 9 for before, after in itertools.pairwise(times))
    assert all(after - before >= span / 7 for before, after in itertools.pairwise(coarse))
    assert len(coarse) >= 1 or span > DAY


@pytest.mark.parametrize(
    ("span", "narrow", "wide"),
    [
        (HOUR, "11:00 11:10 11:20 11:30 11:40 11:50 12:00", None),
        (DAY, "12:00 18:00 22 Nov 06:00 12:00", "12:00 15:00 18:00 21:00 22 Nov 03:00 06:00 09:00 12:00"),
        (7 * DAY, "17 Nov 19 Nov 21 Nov", "16 Nov 17 Nov 18 Nov 19 Nov 20 Nov 21 Nov 22 Nov"),
        (28 * DAY, "26 Oct 2 Nov 9 Nov 16 Nov", None),  # Mondays
        (90 * DAY, "Sep Oct Nov", None),
        (YEAR, "Jan Apr Jul Oct", None),
        (9 * YEAR, "2018 2020 2022 2024 2026", None),
        (1900 * YEAR, "500 1000 1500 2000", None),
    ],
)
def test_time_ticks_are_round_moments_of_the_calendar(span: int, narrow: str, wide: str | None) -> None:
    narrow = narrow.replace("Jan", "2026")
    assert " ".join(labels(NOON - span, NOON, fine=False)) == narrow
    assert " ".join(labels(NOON - span, NOON)) == (wide or narrow)


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (0, "0/s"),
        (1234.5, "1,234/s"),
        (12.34, "12.3/s"),
        (3, "3/s"),
        (0.02, "1.2/min"),
        (0.001, "3.6/h"),
        (0.0001, "8.64/day"),
        (1e-9, "<0.001/day"),
    ],
)
def test_a_rate_is_told_in_the_unit_that_makes_it_readable(per_second: float, text: str) -> None:
    assert charts.rate_text(per_second) == text


# ── Charts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chart_without_points_says_so_and_still_has_its_axes() -> None:
    chart = chart_of()
    assert chart.empty and not chart.readings
    assert [tick.label for tick in chart.value_ticks] == ["0", "1"]
    assert len(chart.time_ticks) > 2


def test_a_point_without_neighbours_is_a_dot() -> None:
    chart = chart_of(5)
    assert chart.lines[0].line == "" and chart.lines[0].dots == [(100, 0)]
    assert [reading.values[0].text for reading in chart.readings] == ["5"]


def test_zeros_are_a_line_on_the_axis() -> None:
    line = chart_of(*[0] * 61).lines[0].line
    assert line.startswith("M0 100L") and line.endswith("L100 100")


def test_a_constant_value_is_a_level_line_below_the_top() -> None:
    heights = set(re.findall(r" ([\d.]+)", chart_of(*[7] * 61).lines[0].line))
    assert heights == {"12.5"}  # 7 of 8, from the top


def test_a_value_that_nobody_knows_breaks_the_line() -> None:
    assert chart_of(1, 2, None, 2, 1).lines[0].line.count("M") == 2


def test_a_time_without_points_breaks_the_line_and_the_area_and_nothing_is_read_there() -> None:
    points = [point for point in every(60, [3.0] * 60) if not NOON - 2400 < point[0] < NOON - 1200]
    chart = charts.time_chart([charts.Series("A", points, kind="area")], NOON - HOUR, NOON, title="T")
    assert chart.lines[0].line.count("M") == chart.lines[0].area.count("M") == chart.lines[0].area.count("Z") == 2
    in_the_gap = 100 * (HOUR - 1800) / HOUR
    assert not any(reading.left <= in_the_gap <= reading.left + reading.width for reading in chart.readings)


@given(st.sets(st.integers(NOON - HOUR, NOON), min_size=1, max_size=charts.MOST_POINTS))
def test_each_place_is_read_at_most_once_and_each_point_where_it_lies(times: set[int]) -> None:
    points = [(time, float(time % 97)) for time in sorted(times)]
    readings = charts.time_chart([charts.Series("A", points)], NOON - HOUR, NOON, title="T").readings
    assert len(readings) == len(points)
    assert all(a.left + a.width <= b.left + 0.03 for a, b in itertools.pairwise(readings))
    assert all(0 <= r.left <= r.at + 0.01 and r.at <= r.left + r.width + 0.01 <= 100.02 for r in readings)


@given(st.lists(st.floats(0, 1e15), min_size=1, max_size=60), st.booleans())
def test_all_that_is_drawn_lies_within_the_plot(values: list[float], per_second: bool) -> None:
    chart = chart_of(*values, per_second=per_second)
    assert all(0 <= value.at <= 100 for reading in chart.readings for value in reading.values if value)
    assert all(0 <= tick.at <= 100 for tick in (*chart.value_ticks, *chart.time_ticks))
    assert all(0 <= float(number) <= 100 for number in re.findall(r"[\d.e+-]+", chart.lines[0].line))


def test_rates_of_a_slow_project_are_drawn_and_read_in_one_readable_unit() -> None:
    chart = chart_of(0.02, 0.03, 0, per_second=True)
    assert chart.unit == "tasks per minute"
    assert [reading.values[0].text for reading in chart.readings] == ["1.20/min", "1.80/min", "0.00/min"]
    assert [tick.label for tick in chart.value_ticks] == ["0", "0.5", "1.0", "1.5", "2.0"]


def test_counts_are_whole_and_have_thousands_separators() -> None:
    chart = chart_of(1_234_567, 3)
    assert [reading.values[0].text for reading in chart.readings] == ["1,234,567", "3"]
    assert [tick.label for tick in chart_of(1, 2).value_ticks] == ["0", "1", "2"]


def test_points_outside_the_time_are_left_out() -> None:
    points = [(NOON - HOUR - 1, 1e9), (NOON - 60, 1.0), (NOON + 1, 1e9)]
    chart = charts.time_chart([charts.Series("A", points)], NOON - HOUR, NOON, title="T")
    assert [reading.values[0].text for reading in chart.readings] == ["1"]


def test_a_hundred_thousand_points_are_thinned_and_the_newest_is_kept() -> None:
    points = [(NOON - 60 * back, float(back)) for back in range(100_000, -1, -1)]
    chart = charts.time_chart([charts.Series("A", points)], points[0][0], NOON, title="T")
    assert len(chart.readings) <= charts.MOST_POINTS + 2
    assert chart.readings[-1].values[0].text == "0"


def test_a_time_of_no_length_still_has_an_axis() -> None:
    chart = charts.time_chart([charts.Series("A", [(NOON, 3)])], NOON, NOON, title="T")
    assert chart.readings[0].at == 100 and len(chart.time_ticks) > 2


def test_series_of_different_times_are_read_together_with_nothing_where_one_has_no_point() -> None:
    two = [charts.Series("A", [(NOON - 60, 1), (NOON, 2)]), charts.Series("B", [(NOON - 60, 7), (NOON, None)])]
    chart = charts.time_chart(two, NOON - HOUR, NOON, title="T")
    assert [[value and value.text for value in reading.values] for reading in chart.readings] == [
        ["1", "7"],
        ["2", None],
    ]
    assert chart.table.rows[0][2] == ["2", "–"]


def test_the_table_has_at_most_sixty_rows_with_the_newest_first_and_says_what_it_leaves_out() -> None:
    whole = chart_of(*range(60)).table
    assert len(whole.rows) == 60 and whole.note == "" and whole.rows[0][2] == ["59"]
    part = charts.time_chart([charts.Series("A", every(600, list(range(140))))], NOON - DAY, NOON, title="T").table
    assert len(part.rows) == 47 and part.note == "One of every 3 readings." and part.rows[0][2] == ["139"]


def test_the_summary_tells_the_last_the_lowest_and_the_highest_value() -> None:
    assert chart_of(4, 1, 9, 5).summary == "Closed: 5 at 22 Nov 2026 12:00:00 UTC, lowest 1, highest 9."


def test_a_sparkline_says_in_words_what_it_shows() -> None:
    spark = charts.sparkline(every(60, [2, 8, 4.5]), NOON - HOUR, NOON, label="Throughput, last hour")
    assert spark.text == "Throughput, last hour: last 4.5/s, highest 8/s"
    assert spark.line.line and spark.line.area


def test_a_sparkline_of_nothing_says_so() -> None:
    spark = charts.sparkline([(NOON, None)], NOON - HOUR, NOON, label="Throughput")
    assert spark.text == "Throughput: nothing known" and spark.line.line == ""


# ── As SVG ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_reading_has_a_band_with_its_marker_its_dots_and_its_texts() -> None:
    bands = draw(chart_of(1, None, 3)).findall(".//g[@class='chart-at']")
    assert [[text_of(tspan) for tspan in band.iter("tspan")] for band in bands] == [
        ["22 Nov 11:58", "1"],
        ["22 Nov 12:00", "3"],
    ]
    assert [len(band.findall("svg/line")) + len(band.findall("svg/circle")) for band in bands] == [2, 2]


def test_a_readout_stays_between_the_edges_of_the_plot() -> None:
    chart = chart_of(*range(61))
    figure = draw(chart)
    boxes = [float(box.get("x").removesuffix("em")) for box in figure.findall(".//g[@class='chart-at']/svg/svg")]
    assert boxes[0] == 0 and boxes[-1] == -chart.box.width
    assert boxes == sorted(boxes, reverse=True)


def test_nothing_drawn_needs_a_style_or_a_script_of_its_own() -> None:
    names = {name for element in draw(chart_of(1, None, 3)).iter() for name in (element.tag, *element.attrib)}
    assert not [name for name in names if name in ("style", "script") or name.startswith("on")]


@pytest.mark.parametrize("values", [[], [5], [1, 2, 3]])
def test_every_reference_of_a_chart_leads_to_an_element_of_it(values: list[int]) -> None:
    figure = draw(chart_of(*values))
    ids = [element.get("id") for element in figure.iter() if element.get("id")]
    named = [element.get(name) for element in figure.iter() for name in ("aria-labelledby", "aria-describedby")]
    used = [use.get("href").removeprefix("#") for use in figure.iter("use")]
    assert len(ids) == len(set(ids))
    assert {*filter(None, named), *used} <= set(ids)


def test_labels_and_titles_are_shown_as_text_and_never_as_markup() -> None:
    evil = "<script>alert(1)</script> & \"quotes' ]]>"
    chart = charts.time_chart([charts.Series(evil, every(60, [1, 2]))], NOON - HOUR, NOON, title=evil, noun=evil)
    figure = draw(chart)
    assert not list(figure.iter("script"))
    assert text_of(figure.find(".//strong")) == text_of(figure.find(".//th[2]")) == evil
    assert text_of(figure.find(".//defs")) == f"● {evil}"


def test_a_sparkline_is_a_picture_named_by_its_text() -> None:
    spark = charts.sparkline(every(60, [2, 8]), NOON - HOUR, NOON, label="<b>")
    picture = ElementTree.fromstring(str(macros().sparkline(spark)))
    assert picture.get("role") == "img" and picture.findtext("title") == spark.text
    assert len(picture.findall("svg/path")) == 2
