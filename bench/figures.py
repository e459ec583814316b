"""What a benchmark finds out and how it is printed: figures of several rounds, and the table that compares them.

A shared machine is noisy and its speed drifts, so measurement and baseline take turns round by round, a ratio is
formed within each round, and the table shows median, min and max over the rounds. Trust the ratios; the absolute
figures are those of the machine. Goals are printed beside the figures and nothing fails when one is missed: the exit
status is 0 unless a benchmark could not be carried out, because an answer was refused or work turned out not to have
been done.
"""

import argparse
import contextlib
import os
import platform
import sqlite3
import statistics
from dataclasses import dataclass

BENCHMARKS = {}
LONG = set()  # the names of those that run only with --long, or when they are asked for
NOTES = []  # sentences that are printed below the table


def benchmark(name, long=False):
    """Put a function into the table of benchmarks under this name."""

    def register(function):
        BENCHMARKS[name] = function
        if long:
            LONG.add(name)
        return function

    return register


@dataclass
class Figure:
    """One line of the table: the figure of each round, and what it is compared with.

    The target, as (">=", 0.6), is for the median ratio to `base`, or for the figure itself where there is no base, or
    absolute=True; with judge=max it is for the worst round.
    """

    label: str
    unit: str
    values: list
    against: str = ""
    base: list | None = None
    target: tuple | None = None
    judge: object = statistics.median
    absolute: bool = False

    def ratios(self):
        return [value / base for value, base in zip(self.values, self.base, strict=True)] if self.base else None

    def judged(self):
        """What the target is for."""
        return self.values if self.absolute or not self.base else self.ratios()

    def met(self):
        figure = self.judge(self.judged())
        return figure >= self.target[1] if self.target[0] == ">=" else figure <= self.target[1]


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def milliseconds(rounds, percent):
    """That percentile of each round of seconds, in milliseconds."""
    return [percentile(values, percent) * 1000 for values in rounds]


def number(value):
    """Three significant digits at least, thousands separated."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def line(figure):
    """The cells of one figure: what, median, min–max, against, ratio, min–max, target, met."""

    def spread(values, show):
        return [show(statistics.median(values)), f"{show(min(values))}–{show(max(values))}" if len(values) > 1 else ""]

    ratios, target, met = figure.ratios(), "", ""
    if figure.target:
        limit = f"{figure.target[1]:.2f}" if figure.judged() == ratios else f"{figure.target[1]} {figure.unit}"
        target = {">=": "≥", "<=": "≤"}[figure.target[0]] + " " + limit
        met = "yes" if figure.met() else "NO"
    median, between = spread(figure.values, number)
    against = f"{figure.against}: {number(statistics.median(figure.base))}" if ratios else ""
    ratio = spread(ratios, "{:.2f}".format) if ratios else ["", ""]
    return [figure.label, f"{median} {figure.unit}", between, against, *ratio, target, met]


def table(figures):
    """The figures as a Markdown table whose columns line up."""
    rows = [line(figure) for figure in figures]
    head = ["measurement", "median", "min–max", "against", "ratio", "min–max", "target", "met"]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def row(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([row(head), row(["-" * width for width in widths]), *map(row, rows)])


def machine():
    """One line that says what the figures were measured on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as info:
        model = next(text.split(":", 1)[1].strip() for text in info if text.startswith("model name"))
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()}, Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}, synchronous=FULL"
    )


def positive(text):
    """A whole number from 1, as an argument of the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
