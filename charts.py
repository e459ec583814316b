"""Charts: plain values in, a plain structure out that templates/charts.html draws as SVG.

    moments = charts.grid(start, end)  # a query may seek the last snapshot up to each of them, or
    rows = charts.thin(snapshots, moments)  # leave out the others here: (time, count, …), the oldest first
    closed = charts.rates((time, count) for time, count, *_ in rows)
    chart = charts.time_chart(
        [charts.Series("Closed", closed, "series-1", "area")], start, end, title="Throughput", per_second=True
    )
    spark = charts.sparkline(closed, start, end, label="Throughput, last hour")

    {% import "charts.html" as charts %}  {{ charts.time_chart(chart, "throughput") }}  {{ charts.sparkline(spark) }}

Times are unix times in seconds and shown in UTC. Values are never negative; None is a value that nobody knows. What is
not known is drawn as a gap, never as a line across. Positions are percentages of the plot, from its left and its top
edge, so that the browser stretches the lines and leaves the text at its size.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeVar

MOST_POINTS = 150
MOST_ROWS = 60
SHORTEST_SPAN = 600  # seconds; the time axis of a project that has just been made

Point = tuple[float, float | None]
Show = Callable[[float], str]
Row = TypeVar("Row", bound=Sequence)


class Series(NamedTuple):
    """One line of a chart, its points the oldest first; `css` is a class of the stylesheet, such as series-2."""

    label: str
    points: Sequence[Point]
    css: str = "series-1"
    kind: Literal["line", "area"] = "line"


# ── Sampling ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MINUTE, HOUR, DAY, WEEK, MONTH = 60, 3600, 86_400, 604_800, 2_629_746
STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(MINUTE * n for n in (1, 2, 5, 10, 15, 30)),
    *(HOUR * n for n in (1, 2, 3, 6, 12)),
    *(DAY * n for n in (1, 2)),
    WEEK,
)


def grid(start: float, end: float, most: int = MOST_POINTS) -> range:
    """The moments at which a chart from `start` to `end` is sampled: round ones, about `most` of them at the most.

    Each stands for what happened since the one before it. They do not move as time goes by, so a chart that is drawn
    anew keeps its old points. The first is not after `start`: rates need a count to begin with.
    """
    span = max(end - start, SHORTEST_SPAN)
    step = next((step for step in STEPS if span / step <= most), None) or DAY * math.ceil(span / most / DAY)
    return range(math.floor(start / step) * step, math.ceil(end / step) * step + 1, step)


def thin(rows: Iterable[Row], moments: range) -> list[Row]:
    """The last row up to each moment of the grid, where there is one. Rows begin with their time, the oldest first."""
    last = {math.ceil(row[0] / moments.step): row for row in rows}
    return [row for bucket, row in last.items() if bucket * moments.step in moments]


def longest_step(times: Sequence[float]) -> float:
    """The time between two points, in seconds, beyond which something is missing between them: thrice the usual one."""
    steps = [after - before for before, after in itertools.pairwise(times)]
    return 3 * statistics.median_low(steps) if steps else math.inf


def rates(counts: Iterable[tuple[float, float]], gap: float | None = None) -> list[Point]:
    """What a count that only grows gained per second, at the end of each step of (time, count), the oldest first.

    None where that is not known: the count went down (it was reset), or nobody looked for more than `gap` seconds
    (thrice the usual step, unless given).
    """
    counts = list(counts)
    gap = longest_step([time for time, _ in counts]) if gap is None else gap
    return [
        (time, (count - count_before) / (time - before) if count >= count_before and time - before <= gap else None)
        for (before, count_before), (time, count) in itertools.pairwise(counts)
        if time > before
    ]


# ── Numbers and times as text ─────────────────────────────────────────────────────────────────────────────────────────


class RateUnit(NamedTuple):
    sign: str
    name: str
    seconds: int


RATE_UNITS = (
    RateUnit("/s", "per second", 1),
    RateUnit("/min", "per minute", MINUTE),
    RateUnit("/h", "per hour", HOUR),
    RateUnit("/day", "per day", DAY),
)


def rate_unit(per_second: float) -> RateUnit:
    """The shortest unit in which the rate is at least one."""
    if not per_second:
        return RATE_UNITS[0]
    return next((unit for unit in RATE_UNITS if per_second * unit.seconds >= 1), RATE_UNITS[-1])


def number_text(value: float) -> str:
    """Three digits that mean something, or all those before the point: 1,234 and 12.3 and 0.0123."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 99.95 or value == int(value) else f"{value:.3g}"


def rate_text(per_second: float) -> str:
    """A rate in the unit that suits it: 12.3/s, 1.2/min."""
    unit = rate_unit(per_second)
    return number_text(per_second * unit.seconds) + unit.sign


def rate_texts(highest: float) -> Show:
    """How to show rates side by side: all in the unit and with the decimals that suit the highest."""
    unit = rate_unit(highest)
    decimals = min(max(2 - math.floor(math.log10(highest * unit.seconds)), 0), 6) if highest else 0
    return lambda per_second: f"{per_second * unit.seconds:,.{decimals}f}{unit.sign}"


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def utc(time: float) -> datetime:
    return datetime.fromtimestamp(time, UTC)


def day_text(moment: datetime) -> str:
    return f"{moment.day} {MONTHS[moment.month - 1]}"


def time_text(time: float) -> str:
    """A moment in full, in UTC: 22 Nov 2026 14:05:00."""
    moment = utc(time)
    return f"{day_text(moment)} {moment.year} {moment:%H:%M:%S}"


# ── Ticks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def value_ticks(top: float, most: int = 5, whole: bool = False) -> list[float]:
    """From 0 to `top` or just above, in at most `most` steps of 1, 2 or 5 × 10^n; `whole`: where n is not negative."""
    if top < 1e-9:  # as good as nothing, and smaller ones would run out of float
        return [0, 1]
    exponent = math.floor(math.log10(top / most))
    if whole:
        exponent = max(exponent, 0)
    steps = ((digit, power) for power in itertools.count(exponent) for digit in (1, 2, 5))
    digit, power = next((digit, power) for digit, power in steps if times_ten(digit * most, power) >= top)
    ticks: list[float] = [0]
    while ticks[-1] < top:
        ticks.append(times_ten(digit * len(ticks), power))
    return ticks


def times_ten(digits: int, power: int) -> float:
    """digits × 10^power; 3 × 10^-1 is the float that prints as 0.3."""
    return digits * 10**power if power >= 0 else digits / 10**-power


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Labels of one scale and one precision: 0, 0.5, 1.0 and 0, 2,000, 4,000 and 0, 0.5M, 1M."""
    top, step = ticks[-1], ticks[1]
    if top >= 10_000:
        scale = min(int(math.log10(top)) // 3, 6)
        return [f"{tick / 1000**scale:,g}{'kMGTPE'[scale - 1]}" if tick else "0" for tick in ticks]
    decimals = next(n for n in itertools.count() if round(step, n) == step)
    return [f"{tick:,.{decimals}f}" if tick else "0" for tick in ticks]


MOST_FINE_TICKS = 8


def time_ticks(start: float, end: float) -> list[tuple[int, str, bool]]:
    """(time, label, fine) of round moments in UTC, few enough for a narrow page, with the fine ones for a wide one."""
    span = end - start
    if span > WEEK * most_ticks(WEEK):
        return month_ticks(start, end)
    step = next(step for step in STEPS if span <= step * most_ticks(step))
    fine = next(fine for fine in STEPS if step % fine == 0 and (span <= fine * MOST_FINE_TICKS or fine == step))
    coarse = multiples(start, end, step)
    return [(time, tick_time_text(time, fine), time not in coarse) for time in multiples(start, end, fine)]


def most_ticks(step: int) -> int:
    return 6 if MINUTE <= step < DAY else 5  # "14:05" is shorter than "22 Nov" and "14:05:30"


def multiples(start: float, end: float, step: int) -> range:
    """The multiples of a step from `start` to `end`; weeks begin on a Monday."""
    offset = 4 * DAY if step == WEEK else 0  # the unix epoch was a Thursday
    return range(math.ceil((start - offset) / step) * step + offset, math.floor(end) + 1, step)


def tick_time_text(time: int, step: int) -> str:
    if time % DAY == 0:
        return day_text(utc(time))
    return f"{utc(time):%H:%M}" if step >= MINUTE else f"{utc(time):%H:%M:%S}"


def month_ticks(start: float, end: float) -> list[tuple[int, str, bool]]:
    """Like time_ticks, at the first of a month, a quarter, a half year or a number of years."""
    months = next(months for months in MONTH_STEPS if end - start <= months * MONTH * most_ticks(months * MONTH))
    first, last = (moment.year * 12 + moment.month - 1 for moment in (utc(start), utc(end)))
    counted = (month for month in range(first, last + 1) if month % months == 0)
    moments = [datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC) for month in counted]
    return [
        (int(moment.timestamp()), str(moment.year) if moment.month == 1 else MONTHS[moment.month - 1], False)
        for moment in moments
        if moment.timestamp() >= start
    ]


MONTH_STEPS = (1, 3, 6, *(12 * years for years in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)))


# ── The chart ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tick(NamedTuple):
    """A line of the grid. `fine` ones are for a chart that is wide enough."""

    at: float
    label: str
    fine: bool = False


class Line(NamedTuple):
    """A series as drawn: SVG path data in a square of 100 × 100, and the points that have no neighbour as dots."""

    label: str
    css: str
    line: str
    area: str
    dots: list[tuple[float, float]]


class Value(NamedTuple):
    css: str
    text: str
    at: float


class Reading(NamedTuple):
    """What is read at one moment: at `at`, while the pointer is between `left` and `left + width`."""

    at: float
    left: float
    width: float
    time: str
    iso: str
    values: list[Value | None]  # one of each series, None where it is not known


class Box(NamedTuple):
    """The size of a readout, in em."""

    width: float
    height: float


class Table(NamedTuple):
    """The newest reading first, each row (time, ISO time, one text a series); `note` says what was left out."""

    columns: list[str]
    rows: list[tuple[str, str, list[str]]]
    note: str


class Chart(NamedTuple):
    title: str
    unit: str
    summary: str
    empty: str
    value_ticks: list[Tick]
    time_ticks: list[Tick]
    lines: list[Line]
    readings: list[Reading]
    box: Box
    table: Table


class Plot(NamedTuple):
    """Where a point lies: the time and the value at the edges."""

    start: float
    end: float
    top: float

    def x(self, time: float) -> float:
        return round(100 * (time - self.start) / (self.end - self.start), 2)

    def y(self, value: float) -> float:
        return round(100 - 100 * value / self.top, 2)


def time_chart(
    series: Sequence[Series],
    start: float,
    end: float,
    *,
    title: str,
    per_second: bool = False,
    noun: str = "tasks",
) -> Chart:
    """The chart of some series from `start` to `end`; points outside are left out.

    `per_second`: the values are rates, shown in the unit that makes them readable; otherwise they are whole counts of
    `noun`. Nothing is drawn between two points that lie more than thrice the usual step apart.
    More than MOST_POINTS points are thinned; thin the counts before rates() to get means instead of samples.
    """
    start = min(start, end - SHORTEST_SPAN)
    series = [one._replace(points=within(one.points, start, end)) for one in series]
    known = [point for one in series for point in known_points(one.points)]
    times = sorted({time for time, _ in known})
    gap = longest_step(times)
    highest = max((value for _, value in known), default=0)
    unit = rate_unit(highest) if per_second else None
    scale = unit.seconds if unit else 1
    ticks = value_ticks(highest * scale, whole=not per_second)
    plot = Plot(start, end, ticks[-1] / scale)
    show = rate_texts(highest) if per_second else "{:,.0f}".format
    readings = read(series, times, plot, gap, show)
    return Chart(
        title=title,
        unit=f"{noun} {unit.name}" if unit else noun,
        summary=" ".join(summary(one, show) for one in series),
        empty="" if times else "No snapshots in this time yet",
        value_ticks=[Tick(plot.y(tick / scale), text) for tick, text in zip(ticks, tick_texts(ticks), strict=True)],
        time_ticks=[Tick(plot.x(time), text, fine) for time, text, fine in time_ticks(start, end)],
        lines=[draw(one, plot, gap) for one in series],
        readings=readings,
        box=box(series, readings),
        table=tabulate(series, readings),
    )


def known_points(points: Iterable[Point]) -> list[tuple[float, float]]:
    """Those whose value is known."""
    return [(time, value) for time, value in points if value is not None]


def within(points: Iterable[Point], start: float, end: float) -> list[Point]:
    """The points from `start` to `end`, thinned if there are more than MOST_POINTS."""
    inside = [point for point in points if start <= point[0] <= end]
    return inside if len(inside) <= MOST_POINTS else thin(inside, grid(start, end))


def unbroken(points: Iterable[Point], gap: float) -> list[list[tuple[float, float]]]:
    """The stretches of known points that lie at most `gap` seconds apart."""
    runs: list[list[tuple[float, float]]] = []
    before = None
    for time, value in points:
        if value is not None:
            if before is None or time - before > gap:
                runs.append([])
            runs[-1].append((time, value))
        before = time if value is not None else None
    return runs


def draw(series: Series, plot: Plot, gap: float) -> Line:
    runs = [[(plot.x(time), plot.y(value)) for time, value in run] for run in unbroken(series.points, gap)]
    paths = [("M" + "L".join(f"{x:g} {y:g}" for x, y in run), run[0][0]) for run in runs if len(run) > 1]
    return Line(
        label=series.label,
        css=series.css,
        line="".join(path for path, _ in paths),
        area="".join(f"{path}V100H{first:g}Z" for path, first in paths) if series.kind == "area" else "",
        dots=[run[0] for run in runs if len(run) == 1],
    )


def read(series: Sequence[Series], times: list[float], plot: Plot, gap: float, show: Show) -> list[Reading]:
    """A reading for each time, from halfway to its neighbours, and nothing inside a gap."""
    known = [(one, dict(known_points(one.points))) for one in series]
    seconds, year = longest_step(times) < 3 * MINUTE, plot.end - plot.start > 300 * DAY
    readings = []
    for before, time, after in zip([-math.inf, *times], times, [*times[1:], math.inf], strict=False):
        left = max(plot.start, time - gap / 2, (before + time) / 2)
        right = min(plot.end, time + gap / 2, (time + after) / 2)
        readings.append(
            Reading(
                at=plot.x(time),
                left=plot.x(left),
                width=round(plot.x(right) - plot.x(left), 2),
                time=reading_time_text(time, year, seconds),
                iso=iso_text(time),
                values=[
                    Value(one.css, show(values[time]), plot.y(values[time])) if time in values else None
                    for one, values in known
                ],
            )
        )
    return readings


# Charts are drawn again and again with the same moments; to write these out would take a third of the time.
@functools.lru_cache(maxsize=4096)
def reading_time_text(time: float, year: bool, seconds: bool) -> str:
    moment = utc(time)
    return f"{day_text(moment)}{f' {moment.year}' if year else ''} {moment:{'%H:%M:%S' if seconds else '%H:%M'}}"


@functools.lru_cache(maxsize=4096)
def iso_text(time: float) -> str:
    return f"{utc(time):%Y-%m-%dT%H:%M:%SZ}"


def box(series: Sequence[Series], readings: Iterable[Reading]) -> Box:
    """Room for the longest line of any readout. The server cannot measure text, so a wide font is assumed."""
    texts = [len(reading.time) for reading in readings]
    for number, one in enumerate(series):
        values = (reading.values[number] for reading in readings)
        texts.append(len(one.label) + max((len(value.text) for value in values if value), default=1) + 3)
    return Box(round(0.56 * max(texts, default=0) + 1.6, 1), round(2.2 + 1.4 * len(series), 1))


def summary(series: Series, show: Show) -> str:
    """A sentence for who cannot see the line."""
    known = known_points(series.points)
    if not known:
        return f"{series.label}: nothing known."
    (time, last), values = known[-1], [value for _, value in known]
    extremes = f"lowest {show(min(values))}, highest {show(max(values))}"
    return f"{series.label}: {show(last)} at {time_text(time)} UTC, {extremes}."


def tabulate(series: Sequence[Series], readings: Sequence[Reading]) -> Table:
    """The readings as a table of at most MOST_ROWS rows: one of every so many, and always the newest."""
    every = math.ceil(len(readings) / MOST_ROWS) or 1
    rows = [
        (reading.time, reading.iso, [value.text if value else "–" for value in reading.values])
        for reading in readings[::-1][::every]
    ]
    note = f"One of every {every} readings." if every > 1 else ""
    return Table(["Time (UTC)", *(one.label for one in series)], rows, note)


# ── The sparkline ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Spark(NamedTuple):
    line: Line
    text: str


def sparkline(points: Sequence[Point], start: float, end: float, *, label: str) -> Spark:
    """A small chart of rates, without axes, from `start` to `end`, and what it shows in words."""
    start = min(start, end - SHORTEST_SPAN)
    points = within(points, start, end)
    known = known_points(points)
    if not known:
        return Spark(Line(label, "series-1", "", "", []), f"{label}: nothing known")
    highest = max(value for _, value in known)
    plot, gap = Plot(start, end, highest or 1), longest_step([time for time, _ in known])
    text = f"{label}: last {rate_text(known[-1][1])}, highest {rate_text(highest)}"
    return Spark(draw(Series(label, points, kind="area"), plot, gap), text)
