"""Benchmarks of the tracker, each against a baseline that is measured in the same run.

One command starts everything itself: trackers on temporary databases, the baselines, the load. Nothing that is
running already is touched. The table goes to standard output, progress to standard error. How to read the table:
trust the ratios, which are formed within each round, and not the absolute figures, which are those of the machine.
Targets are printed beside the figures and nothing fails when one is missed: the exit status is 0 unless a benchmark
could not be carried out, because an answer was refused or work turned out not to have been done.

To add a benchmark, write a function that takes the Lab, returns a list of Figure, and carries @benchmark("name"), in
one of the files imported here. Its docstring is the text that --help shows.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import latency
import readers
import size
import testflinger
import throughput
import traffic
import ui
from figures import BENCHMARKS, LONG, NOTES, machine, positive, table
from harness import ROOT, Lab, require_tools, say

GROUPS = [throughput, latency, size, ui, traffic, testflinger, readers]
NAMES = [name for group in GROUPS for name, run in BENCHMARKS.items() if run.__module__ == group.__name__]


def parse_arguments():
    width = max(map(len, NAMES))
    marks = {name: " (--long)" if name in LONG else "" for name in NAMES}
    listing = "\n".join(f"  {name:{width}}  {BENCHMARKS[name].__doc__.splitlines()[0]}{marks[name]}" for name in NAMES)
    parser = argparse.ArgumentParser(
        prog="python bench/run.py",
        description=__doc__.split("\n\nTo add")[0],
        epilog=f"benchmarks:\n{listing}\n\nWithout the long ones it takes some twenty minutes and, for a while, some"
        " gigabytes of disk.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", metavar="NAME", action="append", choices=NAMES, help="run this benchmark; may be repeated")
    add("--long", action="store_true", help="the long ones, too")
    add("--rounds", metavar="N", type=positive, help="rounds per benchmark (default 7)")
    add("--seconds", metavar="S", type=positive, help="whole seconds per measurement in a round (default 2)")
    add("--quick", action="store_true", help="a tenth of the tasks, 3 rounds of 1 second: a look, not a result")
    add("--dir", metavar="DIR", default=ROOT, help="where the temporary databases go (default: the checkout); "
        "the disk is part of what is measured")  # fmt: skip
    add(
        "--against",
        metavar="DIR",
        type=lambda text: Path(text).resolve(),
        help="another checkout, for the benchmark `versions`",
    )
    arguments = parser.parse_args()
    if arguments.against and not (arguments.against / "tracker.py").exists():
        parser.error(f"--against: there is no tracker.py in {arguments.against}")
    if "versions" in (arguments.only or ()) and not arguments.against:
        parser.error("--only versions: --against DIR must name the other checkout")
    if not os.access(arguments.dir, os.W_OK):
        parser.error(f"--dir: {arguments.dir} is not a directory that can be written to")
    return arguments


def main():
    arguments = parse_arguments()
    require_tools()
    rounds, seconds, scale = (3, 1, 0.1) if arguments.quick else (7, 2, 1)
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    figures, started = [], time.perf_counter()
    with Lab(arguments.dir, rounds, seconds, scale, arguments.against) as lab:
        for name in arguments.only or [name for name in NAMES if arguments.long or name not in LONG]:
            say(f"{name}: {BENCHMARKS[name].__doc__.splitlines()[0]}")
            figures += BENCHMARKS[name](lab)
    print(f"{machine()}; {rounds} rounds of {seconds} s\n")
    print(table(figures))
    print("\n" + "\n".join(NOTES) if NOTES else "")
    say(f"took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are stopped, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except RuntimeError as error:
        sys.exit(f"bench/run.py: {error}")
